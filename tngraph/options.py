"""The options that commands share, parsers of their values, and readers of files.

`Options` is one value with everything that a command line can say about reading, planning and output. A command lists
the options that it takes with `takes`, and gets that value.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

import tngraph
from tngraph.compiler.fronts import Front
from tngraph.errors import NetworkError, Problem, SizeError
from tngraph.files import explain, read_bytes
from tngraph.language.network import Network
from tngraph.language.sizes import LARGEST
from tngraph.language.text.parsing import decode, parse_with_warnings
from tngraph.plans.loading import LONGEST_PLAN, is_plan_file, parse_plan
from tngraph.plans.plan import Plan
from tngraph.report.terminal import show_progress, show_warning
from tngraph.search.objectives import MODES, Objective
from tngraph.search.orders import Search

READING = ("network", "sizes", "batch")
"""The options that say which network of a file is meant, at which sizes."""
SEARCHING = ("seed", "trials", "seconds")
"""The options that say how long to search, and from which seed."""
PLANNING = ("mode", "minimize", "machine", "memory_limit", "largest", "frozen", "order", *SEARCHING)
"""The options that say what plan to make."""
SAVING = ("save", "force")
"""The options that say where to keep a plan."""
_OBJECTIVES = ("flops", "memory", "writes", "time")
_BYTES = re.compile(r"\s*([0-9]{1,18})\s*(?:([kKMGT])(i?)B|B)?\s*")

File = Annotated[
    str,
    typer.Argument(metavar="FILE", help="A spec file, or a saved plan; - reads standard input.", show_default=False),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="As PyTorch names it.")]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="TYPE", help="float32, float64, bfloat16, float16, or, on a GPU, tf32."),
]


class Setting(NamedTuple):
    """A size and its number, as ``--set`` gives them."""

    name: str
    size: int


class PinnedOrder(NamedTuple):
    """An order as ``--order`` gives it, and the equation that it is for; empty if there is only one equation."""

    equation: str
    order: str


class PlannedFile(NamedTuple):
    """The plan of a file, and the given sizes that are not part of it: run-time sizes, or all if the plan was saved."""

    plan: Plan
    sizes: Mapping[str, int]
    is_saved: bool = False


def parse_setting(text: str) -> Setting:
    """Return the name and the number of ``NAME=N``.

    Raises:
        typer.BadParameter: the text is not of this form.
    """
    match = re.fullmatch(r"\s*(\w+)\s*=\s*(-?[0-9]{1,40})\s*", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not NAME=N with an integer N, as in D=8")
    return Setting(match[1], int(match[2]))


def parse_pinned_order(text: str) -> PinnedOrder:
    """Return the equation and the order of ``NAME=ORDER``, or of ``ORDER`` alone."""
    equation, sign, order = text.partition("=")
    return PinnedOrder(equation.strip(), order) if sign else PinnedOrder("", text)


def parse_bytes(text: str) -> int:
    """Return a number of bytes from a text with a unit: ``1000``, ``64MiB``, ``2GB``.

    Raises:
        typer.BadParameter: the text is not such a number.
    """
    match = _BYTES.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number of bytes, as 1000000 or 64MiB")
    digits, prefix, is_binary = match.groups()
    unit: int = (1024 if is_binary else 1000) ** " KMGT".index((prefix or " ").upper())
    return int(digits) * unit


def parse_batches(text: str) -> list[int]:
    """Return positive integers from a text that separates them by commas, as ``1,32,512``.

    Raises:
        typer.BadParameter: a part is not a positive integer.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,18}", part) and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is not N,N,... with positive integers, as 1,32,512", param_hint="--batch")
    return list(dict.fromkeys(map(int, parts)))


def _one_of(*words: str) -> Callable[[str], str]:
    """Return a parser that accepts these words alone."""

    def parse(text: str) -> str:
        if text not in words:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a command line. Those that it does not give, or that a command does not take, have their defaults.

    Typer parses the value of each option. What follows from several of them, a method says.
    """

    network: Annotated[
        str | None,
        typer.Option("--network", metavar="NAME", help="Which network of the file; the last one if not given."),
    ] = None
    sizes: Annotated[
        list[Setting] | None,
        typer.Option(
            "--set",
            metavar="NAME=N",
            parser=parse_setting,
            help="A size: another default, or a run-time size to work at. Repeatable.",
        ),
    ] = None
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Short for --set batch=N.")] = None
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode", metavar="MODE", parser=_one_of(*MODES), help="The purpose: infer (default), train, or serve."
        ),
    ] = None
    minimize: Annotated[
        str | None,
        typer.Option(
            "--minimize",
            metavar="OBJECTIVE",
            parser=_one_of(*_OBJECTIVES),
            help="flops (default), memory, writes, or time.",
        ),
    ] = None
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine",
            metavar="DEVICE",
            help="Minimize the time of this device, cpu or cuda, as `tngraph calibrate` measured it.",
        ),
    ] = None
    memory_limit: Annotated[
        int | None,
        typer.Option(
            "--memory-limit",
            metavar="BYTES",
            parser=parse_bytes,
            help="The most a call may hold: 1000000, 64MiB, 2GB.",
        ),
    ] = None
    largest: Annotated[
        int | None,
        typer.Option(
            "--largest", metavar="N", help="The most elements of a value. Steps that exceed it run in slices."
        ),
    ] = None
    frozen: Annotated[
        list[str] | None,
        typer.Option("--frozen", metavar="NAME", help="A tensor that takes no gradient. Repeatable."),
    ] = None
    order: Annotated[
        list[PinnedOrder] | None,
        typer.Option(
            "--order",
            metavar="[NAME=]ORDER",
            parser=parse_pinned_order,
            help="Pin the order of an equation, written with the names of its tensors. Repeatable.",
        ),
    ] = None
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, max=2**32 - 1, help="Seed of everything random.")
    ] = 0
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", min=1, help="How many orders to try for a large product.")
    ] = None
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="T", help="Start no trial of a large product after this time.")
    ] = None
    save: Annotated[str | None, typer.Option("--save", metavar="OUT", help="Write the plan to a file as well.")] = None
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: stable keys, units in their names.")] = False

    def set_sizes(self) -> dict[str, int]:
        """Return the numbers of ``--set`` and ``--batch`` by name.

        Raises:
            typer.BadParameter: a name with two numbers.
        """
        numbers: dict[str, int] = {}
        for name, size in [*(self.sizes or ()), *([] if self.batch is None else [("batch", self.batch)])]:
            if name in numbers:
                raise typer.BadParameter(f"the size {name!r} is given twice", param_hint="--set, --batch")
            numbers[name] = size
        return numbers

    def orders(self) -> str | dict[str, str] | None:
        """Return the orders of ``--order`` by equation, or the only order as text.

        Raises:
            typer.BadParameter: several orders, one without an equation or two for the same one.
        """
        pins = self.order or ()
        if len(pins) == 1 and not pins[0].equation:
            return pins[0].order
        orders: dict[str, str] = {}
        for equation, order in pins:
            if not equation:
                raise typer.BadParameter(f"{order!r} is not NAME=ORDER, which several are", param_hint="--order")
            if equation in orders:
                raise typer.BadParameter(f"{equation!r} has two orders; join them by +", param_hint="--order")
            orders[equation] = order
        return orders or None

    def objective(self) -> Objective:
        """Return the objective of ``--minimize``, or the machine whose time it is.

        Raises:
            typer.BadParameter: a machine, and an objective that is not time.
            PlanError: PyTorch has no such device.
        """
        if self.machine is None:
            return self.minimize or "flops"
        if self.minimize != "time":
            raise typer.BadParameter("it goes with --minimize time", param_hint="--machine")
        from tngraph.modules.calibration import machine_for

        return machine_for(self.machine)

    def search(self) -> Search:
        """Return the seed and the effort of a search, which shows its progress on a terminal."""
        progress = show_progress if sys.stderr.isatty() else None
        return Search(seed=self.seed, trials=self.trials, seconds=self.seconds, progress=progress)

    def load(self, file: str) -> tuple[Network, dict[str, int]]:
        """Return the network of a spec file, and the run-time sizes among the given sizes. Show its warnings.

        Raises:
            TngraphError: the file is wrong.
            typer.BadParameter: a saved plan.
        """
        label, data = _read(file)
        if is_plan_file(data):
            raise typer.BadParameter(f"{label} is a saved plan, and this command takes a spec", param_hint="FILE")
        return self._parse(label, data)

    def check(self, file: str) -> tuple[Network, tuple[Problem, ...]]:
        """Return the network of a spec file, and its likely mistakes.

        Raises:
            TngraphError: the file is wrong.
        """
        network, _, problems = _parse(*_read(file), self.network, self.set_sizes())
        return network, problems

    def plan(self, file: str, *, with_saved: bool = False) -> PlannedFile:
        """Return the plan of a file: a new one as requested, or the one that was saved.

        Args:
            file: its path, or ``-``.
            with_saved: whether to accept a saved plan along with planning options, which are then for another file.

        Raises:
            TngraphError: the file is wrong, or its network cannot be planned so.
            typer.BadParameter: a saved plan along with options that make a plan.
        """
        label, data = _read(file)
        if is_plan_file(data):
            if not with_saved:
                self._refuse_planning(label)
            return PlannedFile(parse_plan(data, label), self.set_sizes(), is_saved=True)
        network, runtime = self._parse(label, data)
        limits: dict[str, Any] = {"memory_limit": self.memory_limit, "largest": self.largest}
        planned = tngraph.plan(network, runtime, order=self.orders(), **self._request(network), **limits)
        return PlannedFile(planned, runtime)

    def front(self, file: str) -> Front:
        """Return the front of cost against memory for a spec file.

        Raises:
            TngraphError: the file is wrong, or its network cannot be planned as requested.
            typer.BadParameter: a saved plan.
        """
        network, runtime = self.load(file)
        return tngraph.front(network, runtime, **self._request(network))

    def _parse(self, label: str, data: bytes) -> tuple[Network, dict[str, int]]:
        network, runtime, problems = _parse(label, data, self.network, self.set_sizes())
        for problem in problems:
            show_warning(problem)
        return network, runtime

    def _request(self, network: Network) -> dict[str, Any]:
        """Return the arguments that plans and fronts have in common.

        Raises:
            typer.BadParameter: a frozen tensor that the network does not have.
        """
        frozen = self.frozen or ()
        tensors = [core.name for core in network.cores if core.role != "const"]
        for name in frozen:
            if name not in tensors:
                reason = f"{network.name} has no tensor {name!r}; its tensors: {', '.join(tensors)}"
                raise typer.BadParameter(reason, param_hint="--frozen")
        return {
            "mode": self.mode or "infer",
            "minimize": self.objective(),
            "requires_grad": dict.fromkeys(frozen, False),
            "search": self.search(),
        }

    def _refuse_planning(self, label: str) -> None:
        """Refuse planning options for a saved plan."""
        for name in ("network", *PLANNING):
            if getattr(self, name):
                raise typer.BadParameter(
                    f"{label} is a saved plan, and is used as it is", param_hint=f"--{name.replace('_', '-')}"
                )


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command these fields of `Options` as options of its own.

    Typer reads the options of a command off its signature, and has no groups of options. So the signature of the
    decorated command has one parameter per field, where the command itself has the parameter ``options``.
    """
    hints = get_type_hints(Options, include_extras=True)
    defaults = Options()
    spelled = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(defaults, name), annotation=hints[name])
        for name in hints
        if name in names
    ]

    def spell_out(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            command(options=Options(**{name: values.pop(name) for name in names}), **values)

        own = inspect.signature(command, eval_str=True).parameters
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own.values()]
        position = [*own].index("options")
        parameters[position : position + 1] = spelled
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return spell_out


def _read(file: str) -> tuple[str, bytes]:
    """Return what errors call a file, and its content, up to the longest that is allowed.

    Raises:
        NetworkError: the file cannot be read.
    """
    if file == "-":
        return "<stdin>", read_bytes("<stdin>", LONGEST_PLAN, sys.stdin.buffer)
    try:
        return file, read_bytes(file, LONGEST_PLAN)
    except (OSError, ValueError) as error:
        raise NetworkError(f"{file}: {explain(error)}", "give the path of a spec file") from None


def _parse(
    label: str, data: bytes, name: str | None, sizes: Mapping[str, int]
) -> tuple[Network, dict[str, int], tuple[Problem, ...]]:
    """Return the network of a spec's text, the run-time sizes among the given sizes, and likely mistakes.

    Compile-time sizes may bound loops, so they are set while the text is read. A first reading finds out which sizes
    those are.
    """
    text = decode(label, data)
    network, problems = parse_with_warnings(text, name, file=label)
    runtime = {size: sizes[size] for size in sizes if size in network.runtime_sizes()}
    for size, value in runtime.items():
        if not 1 <= value <= LARGEST:
            raise SizeError(f"the size {size!r} cannot be {value}\n  a size is an integer from 1 to 2**62")
    others = {size: sizes[size] for size in sizes if size not in runtime}
    if others:
        network, problems = parse_with_warnings(text, name, others, label)
    return network, runtime, problems
