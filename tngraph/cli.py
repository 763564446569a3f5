"""The command ``tngraph``: arguments in, exit code out.

Exit codes: 0 fine; 1 a file is wrong, or a module does not do what its plan says; 2 the command line itself is wrong.
Results go to standard output, errors to standard error as they are. Only ``verify`` imports torch.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

import tngraph
from tngraph.errors import NetworkError, SizeError, TngraphError, VerificationError
from tngraph.language.families import named_family
from tngraph.language.network import Network
from tngraph.language.sizes import LARGEST, evaluate_size
from tngraph.language.text import read
from tngraph.planning.memory import DOUBLE
from tngraph.planning.plans import Plan
from tngraph.planning.schedule import legs_size
from tngraph.planning.search import Search
from tngraph.report.gallery import describe, entries, format_entry, format_list, record
from tngraph.report.records import Record, network_record, plan_record, verification_record
from tngraph.report.terminal import show_plan, show_progress, show_source, show_text, show_verification

MOST_ELEMENTS = 2**27
"""The most that `verify` holds in inputs, params or values before it refuses: 1 GiB in float64 [elements]."""
SMALL = 8
"""About the run-time sizes at which `verify` draws inputs when it is not told any."""

app = typer.Typer(
    help="Compile tensor networks to PyTorch modules with exact, verified costs.",
    epilog="Exit codes: 0 fine; 1 a file is wrong or a verification failed; 2 the command line is wrong.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _examples(*lines: str) -> str:
    """The end of a help page; the sign in front keeps its lines apart."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


File = Annotated[str, typer.Argument(metavar="FILE", help="A spec file; - reads standard input.", show_default=False)]
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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: stable keys, units in their names.")]
Orders = Annotated[
    list[str] | None,
    typer.Option("--order", metavar="[NAME=]ORDER", help="Pin the order of an equation by names. Repeatable."),
]
Output = Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="The file to write; - is standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")]


def main() -> None:
    """Run the command line, and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has enough, as head, ends this quietly
    warnings.showwarning = _show_warning
    try:
        app(prog_name="tngraph")
    except OSError as error:
        print(f"tngraph: {_reason(error)}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what Python flushes as it ends would fail once more
        sys.exit(1)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        show_text(f"tngraph {tngraph.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compile tensor networks to PyTorch modules with exact, verified costs."""


@app.command(
    epilog=_examples(
        "tngraph check examples/specs/*.tn",
        "tngraph check ring_tied.tn --set n=8",
        "tngraph check --json - < fc2_mpo.tn",
    )
)
def check(
    files: Files, network: NetworkName = None, sizes: Sizes = None, batch: Batch = None, as_json: AsJson = False
) -> None:
    """Say whether spec files are right; show all errors."""
    given = _parse_sizes(sizes, batch)
    records = []
    for file in files:
        records.append(_check_file(file, network, given))
        if not as_json:
            show_text(_describe(records[-1]))
        if records[-1]["error"] is not None:
            print(records[-1]["error"], file=sys.stderr)
    if as_json:
        _show_json({"files": records})
    if not all(record["is_ok"] for record in records):
        raise typer.Exit(1)


@app.command(
    "families",
    epilog=_examples("tngraph families", "tngraph families mpo", "tngraph families --full"),
)
def list_families(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one in full.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Show each in full: drawing, options, formulas, a spec.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the families of weights, with what they cost."""
    with _errors_reported():
        found = [describe(named_family(name))] if name is not None else list(entries())
    if as_json:
        _show_json({"families": [record(entry) for entry in found]})
    elif full or name is not None:
        show_text("\n\n\n".join(map(format_entry, found)))
    else:
        show_text(format_list())


@app.command(
    epilog=_examples(
        "tngraph plan fc2_mpo.tn --batch 128 --set D=8",
        "tngraph plan ring_tied.tn --set n=8 --json",
        'tngraph plan fc2_mpo.tn --order "((x w1) (w2 (w3 w4)))"',
    )
)
def plan(
    file: File,
    network: NetworkName = None,
    sizes: Sizes = None,
    batch: Batch = None,
    seed: Seed = 0,
    order: Orders = None,
    as_json: AsJson = False,
) -> None:
    """Print the order of a contraction and what it costs."""
    with _errors_reported():
        made, _ = _plan_file(file, network, _parse_sizes(sizes, batch), seed, _parse_orders(order or ()))
        if as_json:
            _show_json(plan_record(made))
        else:
            show_plan(made)


@app.command(
    epilog=_examples(
        "tngraph emit fc2_mpo.tn",
        "tngraph emit fc2_mpo.tn -o fc2_mpo.py --set D=8",
        "tngraph emit fc2_mpo.tn -o fc2_mpo.py --force --batch 128",
    )
)
def emit(
    file: File,
    output: Output = "-",
    force: Force = False,
    network: NetworkName = None,
    sizes: Sizes = None,
    batch: Batch = None,
    seed: Seed = 0,
) -> None:
    """Print a network as a standalone PyTorch file."""
    with _errors_reported():
        made, _ = _plan_file(file, network, _parse_sizes(sizes, batch), seed)
        source = tngraph.emit(made)
        if output == "-":
            show_source(source)
        else:
            _write(Path(output), source, force)


@app.command(
    epilog=_examples(
        "tngraph verify fc2_mpo.tn",
        "tngraph verify fc2_mpo.tn --batch 16 --set D=2 --seed 1",
        "tngraph verify conv_cp.tn --set height=12 --set width=12 --json",
    )
)
def verify(
    file: File,
    network: NetworkName = None,
    sizes: Sizes = None,
    batch: Batch = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare values, gradients and counts with what runs."""
    with _errors_reported():
        made, runtime = _plan_file(file, network, _parse_sizes(sizes, batch), seed)
        _refuse_large(made, runtime)
        try:
            result = tngraph.compile(made).verify(sizes=runtime, seed=seed)
        except VerificationError as error:
            if as_json:
                _show_json(verification_record(error.args[0]))
            raise
        if as_json:
            _show_json(verification_record(result))
        else:
            show_verification(result)


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Turn what is wrong with the input into its text and exit code 1."""
    try:
        yield
    except TngraphError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None


def _parse_sizes(settings: Iterable[str] | None, batch: int | None) -> dict[str, int]:
    """The numbers of ``--set`` and ``--batch`` by name.

    Raises:
        typer.BadParameter: one that is not NAME=INTEGER, or a name given twice.
    """
    items = [*(settings or ()), *([] if batch is None else [f"batch={batch}"])]
    sizes: dict[str, int] = {}
    for item in items:
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(-?[0-9]{1,40})\s*", item)
        if found is None:
            raise typer.BadParameter(f"{item!r} is not NAME=N with an integer N, as in D=8", param_hint="--set")
        name, number = found.groups()
        if name in sizes:
            raise typer.BadParameter(f"the size {name!r} is given twice", param_hint="--set, --batch")
        sizes[name] = int(number)
    return sizes


def _parse_orders(items: Sequence[str]) -> str | dict[str, str] | None:
    """The orders of ``--order`` by equation, or the only one.

    Raises:
        typer.BadParameter: several, one of which names no equation or the same as another.
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


def _plan_file(
    file: str,
    name: str | None,
    given: Mapping[str, int],
    seed: int,
    order: str | Mapping[str, str] | None = None,
) -> tuple[Plan, dict[str, int]]:
    """The plan of a network of a file, and the run-time sizes among the given ones."""
    network, runtime = _load(file, name, given)
    search = Search(seed=seed, progress=show_progress if sys.stderr.isatty() else None)
    return tngraph.plan(network, runtime, search=search, order=order), runtime


def _load(file: str, name: str | None, given: Mapping[str, int]) -> tuple[Network, dict[str, int]]:
    """The network of a file, and the run-time sizes among the given ones.

    The others are set while the text is read, since they may bound loops; which are which, a first reading tells.
    """
    label = "<stdin>" if file == "-" else file
    text = read(label, sys.stdin.buffer if file == "-" else None)
    network = tngraph.parse(text, name, file=label)
    runtime = {size: given[size] for size in given if size in network.runtime_sizes()}
    for size, number in runtime.items():
        if not 1 <= number <= LARGEST:
            raise SizeError(f"the size {size!r} cannot be {number}\n  a size is an integer from 1 to 2**62")
    others = {size: given[size] for size in given if size not in runtime}
    return (tngraph.parse(text, name, others, label) if others else network), runtime


def _reason(error: OSError) -> str:
    return str(getattr(error, "strerror", None) or error).lower()


def _check_file(file: str, name: str | None, given: Mapping[str, int]) -> Record:
    """What `check` says of one file."""
    try:
        network, _ = _load(file, name, given)
    except TngraphError as error:
        return {"file": file, "is_ok": False, "error": str(error), **network_record(None)}
    return {"file": file, "is_ok": True, "error": None, **network_record(network)}


def _describe(record: Record) -> str:
    if not record["is_ok"]:
        return f"{record['file']}: wrong"
    words = ("size", "input", "param", "equation")
    counts = ((record[f"{word}_count"], word) for word in words)
    shown = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    return f"{record['file']}: ok, network {record['network']}: {shown}"


def _show_json(record: Record) -> None:
    show_text(json.dumps(record, indent=2, allow_nan=False))


def _write(path: Path, text: str, force: bool) -> None:
    """Write a whole file or none: beside its place first, then in one move.

    Raises:
        NetworkError: the file exists and is not to be overwritten, or the folder cannot be written to.
    """
    place = Path(os.path.realpath(path))
    beside = place.with_name(f".tngraph-{os.getpid()}.tmp")
    try:
        if place.exists() and not (force and place.is_file()):
            raise NetworkError(f"{path} exists", "--force overwrites a file")
        beside.write_text(text, "utf-8")
        beside.replace(place)
    except OSError as error:
        raise NetworkError(f"{path} cannot be written: {_reason(error)}") from None
    finally:
        with suppress(OSError):
            beside.unlink()


def _refuse_large(made: Plan, runtime: Mapping[str, int]) -> None:
    """Refuse what would not fit in memory before anything of it is made.

    Raises:
        SizeError: more than `MOST_ELEMENTS`.
    """
    sizes = dict.fromkeys(made.network.runtime_sizes(), SMALL) | dict(runtime)
    numbers = made.values(**sizes)
    inputs = sum(evaluate_size(legs_size(port.legs), numbers) for port in made.network.inputs)
    count = (
        evaluate_size(made.params, numbers) + made.regime_of(numbers).memory(numbers, DOUBLE).peak // DOUBLE + inputs
    )
    if count > MOST_ELEMENTS:
        raise SizeError(
            f"verifying {made.network.name} here takes {count:,} elements, more than {MOST_ELEMENTS:,}\n"
            "  verify it at smaller sizes: its formulas are the same"
        )
