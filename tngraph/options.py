"""The request of a command line: types for its options, parsers of their values, readers of its files."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

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
from tngraph.search.machine import Machine
from tngraph.search.orders import Search

File = Annotated[
    str,
    typer.Argument(metavar="FILE", help="A spec file, or a saved plan; - reads standard input.", show_default=False),
]
Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Spec files; - reads standard input.")]
NetworkName = Annotated[
    str | None, typer.Option("--network", metavar="NAME", help="Which network of the file; the last one if not given.")
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=N", help="A size: another default, or a run-time size to work at. Repeatable."),
]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", help="Short for --set batch=N.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, max=2**32 - 1, help="Of everything random.")]
Strict = Annotated[bool, typer.Option("--strict", help="Take warnings as errors: exit code 1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: stable keys, units in their names.")]
Orders = Annotated[
    list[str] | None,
    typer.Option("--order", metavar="[NAME=]ORDER", help="Pin the order of an equation by names. Repeatable."),
]
Output = Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="The file to write; - is standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")]
Mode = Annotated[str | None, typer.Option("--mode", metavar="MODE", help="What for: infer (default), train, or serve.")]
Minimize = Annotated[
    str | None, typer.Option("--minimize", metavar="WHAT", help="flops (default), memory, writes, or time.")
]
MachineOf = Annotated[
    str | None,
    typer.Option("--machine", metavar="DEVICE", help="Whose time: cpu or cuda, as `tngraph calibrate` measured it."),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option("--memory-limit", metavar="BYTES", help="What a call may hold: 1000000, 64MiB, 2GB."),
]
Largest = Annotated[
    int | None,
    typer.Option("--largest", metavar="N", help="Elements of a value; what no order keeps runs in slices."),
]
Trials = Annotated[int | None, typer.Option("--trials", metavar="N", help="Orders tried for a large product.")]
Seconds = Annotated[
    float | None, typer.Option("--seconds", metavar="T", help="No trial of a large product begins later.")
]
Frozen = Annotated[
    list[str] | None, typer.Option("--frozen", metavar="NAME", help="A tensor that takes no gradient. Repeatable.")
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="TYPE", help="float32, float64, bfloat16, float16, or, on a GPU, tf32."),
]
Save = Annotated[str | None, typer.Option("--save", metavar="OUT", help="Write the plan to a file as well.")]


class Source(NamedTuple):
    """The plan of a file, and the given sizes that are not part of it: run-time sizes, or all if the plan was saved."""

    plan: Plan
    sizes: Mapping[str, int]
    is_saved: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a command, which say how to read and plan its file; an absent option is None.

    Attributes:
        network: the network of the file to take.
        sizes: the sizes of ``--set`` and ``--batch`` by name.
        seed: seed of the search.
        order: the orders pinned by hand.
        mode: what the plan is for.
        minimize: the objective.
        memory_limit: the most that a call may hold [bytes].
        frozen: the tensors that take no gradient.
        largest: the largest value that a step may write [elements].
        trials: number of trials of the search.
        seconds: time limit of the search [s].
    """

    network: str | None
    sizes: Mapping[str, int]
    seed: int = 0
    order: str | Mapping[str, str] | None = None
    mode: str | None = None
    minimize: str | Machine | None = None
    memory_limit: int | None = None
    frozen: tuple[str, ...] = ()
    largest: int | None = None
    trials: int | None = None
    seconds: float | None = None

    def front(self, file: str) -> Front:
        """Return the front of cost against memory for a spec file.

        Raises:
            TngraphError: the file is wrong, or its network cannot be planned as requested.
            typer.BadParameter: a saved plan.
        """
        label, data = _take(file)
        if is_plan_file(data):
            raise typer.BadParameter(f"{label} is a saved plan; a front is of a spec", param_hint="FILE")
        network, runtime = _read_network(label, data, self.network, self.sizes)
        return tngraph.front(network, runtime, search=self._search(), **self._goal())

    def _search(self) -> Search:
        progress = show_progress if sys.stderr.isatty() else None
        return Search(seed=self.seed, trials=self.trials, seconds=self.seconds, progress=progress)

    def _goal(self) -> dict[str, Any]:
        """Return the options that plans and fronts have in common."""
        frozen = dict.fromkeys(self.frozen, False)
        return {"mode": self.mode or "infer", "minimize": self.minimize or "flops", "requires_grad": frozen}

    def plan(self, file: str, *, with_saved: bool = False) -> Source:
        """Return the plan of a file: a new one as requested, or the one that was saved.

        Args:
            file: its path, or ``-``.
            with_saved: whether to accept a saved plan along with planning options, which are then for another file.

        Raises:
            TngraphError: the file is wrong, or its network cannot be planned so.
            typer.BadParameter: a saved plan along with options that make a plan.
        """
        label, data = _take(file)
        if is_plan_file(data):
            if not with_saved:
                self._refuse_options(label)
            return Source(parse_plan(data, label), self.sizes, is_saved=True)
        network, runtime = _read_network(label, data, self.network, self.sizes)
        bounds: dict[str, Any] = {"memory_limit": self.memory_limit, "largest": self.largest}
        planned = tngraph.plan(network, runtime, search=self._search(), order=self.order, **self._goal(), **bounds)
        return Source(planned, runtime)

    def _refuse_options(self, label: str) -> None:
        """Refuse planning options for a saved plan."""
        for name in ("network", "order", "mode", "minimize", "memory_limit", "largest", "frozen", "trials", "seconds"):
            if getattr(self, name):
                raise typer.BadParameter(f"{label} is a saved plan", param_hint=f"--{name.replace('_', '-')}")


def parse_sizes(settings: Iterable[str] | None, batch: int | None) -> dict[str, int]:
    """Return the numbers of ``--set`` and ``--batch`` by name.

    Raises:
        typer.BadParameter: an item that is not NAME=INTEGER, or a name given twice.
    """
    items = [*(settings or ()), *([] if batch is None else [f"batch={batch}"])]
    sizes: dict[str, int] = {}
    for item in items:
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(-?[0-9]{1,40})\s*", item)
        if match is None:
            raise typer.BadParameter(f"{item!r} is not NAME=N with an integer N, as in D=8", param_hint="--set")
        name, number = match.groups()
        if name in sizes:
            raise typer.BadParameter(f"the size {name!r} is given twice", param_hint="--set, --batch")
        sizes[name] = int(number)
    return sizes


def parse_numbers(text: str) -> list[int]:
    """Return positive integers from a text that separates them by commas, as ``1,32,512``.

    Raises:
        typer.BadParameter: a part is not a positive integer.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,18}", part) and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is not N,N,... with positive integers, as 1,32,512", param_hint="--batch")
    return list(dict.fromkeys(map(int, parts)))


def parse_orders(items: Sequence[str]) -> str | dict[str, str] | None:
    """Return the orders of ``--order`` by equation, or the only order as text.

    Raises:
        typer.BadParameter: several orders, one without an equation or two for the same one.
    """
    if len(items) == 1 and "=" not in items[0]:
        return items[0]
    orders: dict[str, str] = {}
    for item in items:
        name, sign, order = item.partition("=")
        if not sign:
            raise typer.BadParameter(f"{item!r} is not NAME=ORDER, which several are", param_hint="--order")
        if name.strip() in orders:
            raise typer.BadParameter(f"{name.strip()!r} has two orders; join them by +", param_hint="--order")
        orders[name.strip()] = order
    return orders or None


_BYTES = re.compile(r"\s*([0-9]{1,18})\s*(?:([kKMGT])(i?)B|B)?\s*")


def parse_bytes(text: str | None) -> int | None:
    """Return a number of bytes from a text with a unit: ``1000``, ``64MiB``, ``2GB``.

    Raises:
        typer.BadParameter: the text is not such a number.
    """
    if text is None:
        return None
    match = _BYTES.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number of bytes, as 1000000 or 64MiB", param_hint="--memory-limit")
    number, prefix, is_binary = match.groups()
    unit: int = (1024 if is_binary else 1000) ** " KMGT".index((prefix or " ").upper())
    return int(number) * unit


def _take(file: str) -> tuple[str, bytes]:
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


def load_network(file: str, name: str | None, given: Mapping[str, int]) -> tuple[Network, dict[str, int]]:
    """Return the network of a spec file, and the run-time sizes among the given sizes.

    Raises:
        TngraphError: the file is wrong.
    """
    return _read_network(*_take(file), name, given)


def check_network(file: str, name: str | None, given: Mapping[str, int]) -> tuple[Network, tuple[Problem, ...]]:
    """Return the network of a spec file, and its likely mistakes.

    Raises:
        TngraphError: the file is wrong.
    """
    network, _, problems = _check_network(*_take(file), name, given)
    return network, problems


def _read_network(
    label: str, data: bytes, name: str | None, given: Mapping[str, int]
) -> tuple[Network, dict[str, int]]:
    """Return the network of a spec's text, and the run-time sizes among the given sizes. Show its warnings."""
    network, runtime, problems = _check_network(label, data, name, given)
    for problem in problems:
        show_warning(problem)
    return network, runtime


def _check_network(
    label: str, data: bytes, name: str | None, given: Mapping[str, int]
) -> tuple[Network, dict[str, int], tuple[Problem, ...]]:
    """Return the network of a spec's text, the run-time sizes among the given sizes, and likely mistakes.

    Compile-time sizes may bound loops, so they are set while the text is read. A first reading finds out which sizes
    those are.
    """
    text = decode(label, data)
    network, problems = parse_with_warnings(text, name, file=label)
    runtime = {size: given[size] for size in given if size in network.runtime_sizes()}
    for size, number in runtime.items():
        if not 1 <= number <= LARGEST:
            raise SizeError(f"the size {size!r} cannot be {number}\n  a size is an integer from 1 to 2**62")
    others = {size: given[size] for size in given if size not in runtime}
    if others:
        network, problems = parse_with_warnings(text, name, others, label)
    return network, runtime, problems
