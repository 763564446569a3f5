"""The command ``tngraph``: arguments in, exit code out.

Exit codes: 0 fine; 1 a file is wrong, or has warnings under ``check --strict``, or a module does not do what its plan
says; 2 the command line itself is wrong. Results go to standard output; errors and warnings go unchanged to standard
error. Only ``verify``, ``calibrate``, ``tune``, ``fit`` and ``--machine`` import torch.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import tngraph
from tngraph.compiler.machines import save_machine
from tngraph.errors import NetworkError, PlanError, Problem, SizeError, TngraphError, VerificationError
from tngraph.files import explain, write_whole
from tngraph.language.families import named_family
from tngraph.language.legs import legs_size
from tngraph.language.network import Network
from tngraph.language.sizes import evaluate_size
from tngraph.options import (
    PLANNING,
    READING,
    SAVING,
    SEARCHING,
    Device,
    Dtype,
    File,
    Options,
    PlannedFile,
    parse_batches,
    takes,
)
from tngraph.plans.plan import Plan
from tngraph.plans.saving import format_plan_file
from tngraph.program.memory import DOUBLE
from tngraph.report.fitting import fit_record, hide_progress, show_fit_progress
from tngraph.report.gallery import describe, entries, first_spec, format_entry, format_list, record
from tngraph.report.records import (
    Record,
    difference_record,
    front_record,
    network_record,
    plan_record,
    problem_record,
)
from tngraph.report.terminal import show_plan, show_source, show_text, show_warning

MOST_ELEMENTS = 2**27
"""The most elements of inputs, params and values that `verify` accepts: 1 GiB in float64 [elements]."""
SMALL = 8
"""The approximate run-time sizes of random inputs for `verify`, if none are given."""

app = typer.Typer(
    help="Compile tensor networks to PyTorch modules with exact, verified costs.",
    epilog="Exit codes: 0 fine; 1 a file is wrong or a verification failed; 2 the command line is wrong.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _examples(*lines: str) -> str:
    """Return the examples at the end of a help page. The sign in front keeps typer from joining their lines."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def main() -> None:
    """Run the command line, and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that stops early, as head does, ends this quietly
    warnings.showwarning = _show_warning
    try:
        app(prog_name="tngraph")
    except OSError as error:
        print(f"tngraph: {explain(error)}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python's flush at exit would fail again
        sys.exit(1)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    show_warning(message)


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
    epilog=_examples("tngraph new layer", "tngraph new adapter --family quanta", "tngraph families"),
)
@takes("force")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the network; NAME.tn is written.")],
    *,
    family: Annotated[
        str | None, typer.Option("--family", metavar="FAMILY", help="Start from the example of a family.")
    ] = None,
    options: Options,
) -> None:
    """Write a first spec to start from."""
    with _errors_reported():
        text = first_spec(name, None if family is None else named_family(family))
        _write(Path(f"{name}.tn"), text, options.force)
    show_text(
        f"wrote {name}.tn; next:\n  tngraph check {name}.tn\n  tngraph plan {name}.tn --batch 64\n"
        f"  tngraph verify {name}.tn\n  tngraph emit {name}.tn"
    )


@app.command(
    epilog=_examples(
        "tngraph check examples/specs/*.tn",
        "tngraph check ring_tied.tn --set n=8",
        "tngraph check --strict fc2_mpo.tn",
        "tngraph check --json - < fc2_mpo.tn",
    )
)
@takes(*READING, "as_json")
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Spec files; - reads standard input.")],
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings as errors: exit code 1.")] = False,
    options: Options,
) -> None:
    """Say whether spec files are right; show all errors and warnings."""
    records = [_check_file(file, options, strict) for file in files]
    if options.as_json:
        _show_json({"files": records})
    if not all(record["is_ok"] for record in records):
        raise typer.Exit(1)


@app.command(
    "families",
    epilog=_examples("tngraph families", "tngraph families mpo", "tngraph families --full"),
)
@takes("as_json")
def list_families(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one in full.")] = None,
    *,
    full: Annotated[
        bool, typer.Option("--full", help="Show each in full: drawing, options, formulas, a spec.")
    ] = False,
    options: Options,
) -> None:
    """List the families of weights, with what they cost."""
    with _errors_reported():
        families = [describe(named_family(name))] if name is not None else list(entries())
    if options.as_json:
        _show_json({"families": [record(entry) for entry in families]})
    elif full or name is not None:
        show_text("\n\n\n".join(map(format_entry, families)))
    else:
        show_text(format_list())


@app.command(
    epilog=_examples(
        "tngraph plan fc2_mpo.tn --batch 128 --set D=8",
        "tngraph plan fc2_mpo.tn --batch 128 --mode train --frozen w1 --minimize writes --memory-limit 64MiB",
        "tngraph plan fc2_mpo.tn --batch 128 --minimize time --machine cpu",
        'tngraph plan fc2_mpo.tn --order "((x w1) (w2 (w3 w4)))" --save pinned.json',
        "tngraph plan pinned.json --batch 1 --json",
    )
)
@takes(*READING, *PLANNING, *SAVING, "as_json")
def plan(file: File, options: Options) -> None:
    """Print the order of a contraction and what it costs."""
    with _errors_reported():
        source = _plan_and_save(file, options)
        sizes = source.sizes if source.is_saved else {}
        if options.as_json:
            _show_json(plan_record(source.plan, **sizes))
        else:
            show_plan(source.plan, **sizes)


@app.command(
    epilog=_examples(
        "tngraph front fc2_mpo.tn --batch 128",
        "tngraph front fc2_mpo.tn --batch 128 --mode train --frozen w1",
        "tngraph front conv_cp.tn --batch 8 --set height=32 --set width=32 --json",
    )
)
@takes(*READING, "mode", "minimize", "machine", "frozen", *SEARCHING, "as_json")
def front(file: File, options: Options) -> None:
    """Show cost against memory: the plans worth choosing."""
    with _errors_reported():
        front = options.front(file)
        if options.as_json:
            _show_json(front_record(front))
        else:
            show_text(str(front))


@app.command(
    epilog=_examples(
        "tngraph diff fc2_mpo.tn fc2_mpo_edited.tn",
        "tngraph diff pinned.json fc2_mpo.tn --batch 1",
        "tngraph diff before.json after.json --json",
    )
)
@takes(*READING, *PLANNING, "as_json")
def diff(
    file: File,
    other: Annotated[
        str, typer.Argument(metavar="OTHER", help="A spec file, or a saved plan, to compare.", show_default=False)
    ],
    options: Options,
) -> None:
    """Show where two plans differ: totals, regimes, steps."""
    with _errors_reported():
        before, after = (options.plan(path, with_saved=True) for path in (file, other))
        sizes = options.set_sizes() if before.is_saved or after.is_saved else {}
        difference = before.plan.diff(after.plan, **sizes)
        if options.as_json:
            _show_json(difference_record(difference))
        else:
            show_text(str(difference))


@app.command(
    epilog=_examples(
        "tngraph emit fc2_mpo.tn",
        "tngraph emit fc2_mpo.tn -o fc2_mpo.py --set D=8",
        "tngraph emit fc2_mpo.tn --mode train --minimize time --save fc2_mpo.json -o fc2_mpo.py",
        "tngraph emit pinned.json -o fc2_mpo.py --force",
    )
)
@takes(*READING, *PLANNING, *SAVING)
def emit(
    file: File,
    *,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", help="The file to write; - is standard output.")
    ] = "-",
    options: Options,
) -> None:
    """Print a network as a standalone PyTorch file."""
    with _errors_reported():
        source = _plan_and_save(file, options)
        if source.is_saved and source.sizes:
            raise typer.BadParameter(f"{file} is a saved plan, which has its sizes", param_hint="--set, --batch")
        text = tngraph.emit(source.plan)
        if output == "-":
            show_source(text)
        else:
            _write(Path(output), text, options.force)


@app.command(
    epilog=_examples(
        "tngraph verify fc2_mpo.tn",
        'tngraph verify fc2_mpo.tn --batch 16 --mode train --order "x w1 w2 w3 w4"',
        "tngraph verify pinned.json --batch 16 --set D=2 --seed 1",
        "tngraph verify conv_cp.tn --set height=12 --set width=12 --json",
    )
)
@takes(*READING, *PLANNING, *SAVING, "as_json")
def verify(file: File, options: Options) -> None:
    """Compare values, gradients and counts with what runs."""
    with _errors_reported():
        from tngraph.report.runs import show_verification, verification_record

        planned, sizes, _ = _plan_and_save(file, options)
        _refuse_large(planned, sizes)
        runtime = {name: size for name, size in sizes.items() if name in planned.network.runtime_sizes()}
        others = {name: size for name, size in sizes.items() if name not in runtime}
        try:
            result = tngraph.compile(planned, others).verify(sizes=runtime, seed=options.seed)
        except VerificationError as error:
            if options.as_json:
                _show_json(verification_record(error.args[0]))
            raise
        if options.as_json:
            _show_json(verification_record(result))
        else:
            show_verification(result)


@app.command(
    epilog=_examples(
        "tngraph calibrate",
        "tngraph calibrate --device cuda --dtype bfloat16 --seconds 10",
    )
)
def calibrate(
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seconds: Annotated[float, typer.Option("--seconds", metavar="T", help="How long to measure.")] = 5.0,
) -> None:
    """Measure a device, for plans that minimize time on it."""
    with _errors_reported():
        from tngraph.modules.calibration import computing_in, run_calibration
        from tngraph.report.runs import show_calibration

        with computing_in(dtype, device) as torch_dtype:
            calibration = run_calibration(device, torch_dtype, seconds)
        show_calibration(calibration)
        try:
            place = save_machine(calibration.machine, calibration.device, calibration.dtype)
        except OSError as error:
            raise PlanError(f"the numbers cannot be kept: {explain(error)}\n  TNGRAPH_CACHE names a folder") from None
        show_text("not kept: TNGRAPH_CACHE is off" if place is None else f"kept in {place}")


@app.command(
    epilog=_examples(
        "tngraph tune fc2_mpo.tn --batch 1,32,512",
        "tngraph tune fc2_mpo.tn --set D=8 --batch 64 --mode train --save tuned.json",
        "tngraph tune fc2_mpo.tn --batch 64 --json",
    )
)
@takes("network", "sizes", "mode", *SEARCHING, *SAVING, "as_json")
def tune(
    file: File,
    *,
    batches: Annotated[
        str, typer.Option("--batch", metavar="N,N,...", help="The values of the first run-time size to measure at.")
    ] = "1,32,512",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    options: Options,
) -> None:
    """Measure the best few ways to run a network on random inputs, and keep the fastest."""
    values = parse_batches(batches)
    with _errors_reported():
        from tngraph.modules.calibration import computing_in
        from tngraph.modules.tuning import random_calls
        from tngraph.modules.tuning import tune as tune_network
        from tngraph.report.runs import tuning_record

        network, runtime = options.load(file)
        calls = random_calls(network, runtime, values)
        request: dict[str, Any] = {"mode": options.mode or "infer", "search": options.search(), "device": device}
        with computing_in(dtype, device) as torch_dtype:
            tuning = tune_network(network, runtime, calls, dtype=torch_dtype, **request)
        if options.save is not None:
            _write(Path(options.save), format_plan_file(tuning.plan), options.force)
        if options.as_json:
            _show_json(tuning_record(tuning))
        else:
            show_text(str(tuning))


@app.command(
    epilog=_examples(
        "tngraph fit 'mpo(bond=8)' --weights model.safetensors:fc.weight -o fc.safetensors",
        "tngraph fit 'btt(rank=2)' --weights m.safetensors:fc.weight --inputs x.safetensors:x -o fc.safetensors",
        "tngraph fit tree.tn --weights m.safetensors:fc.weight -o fc.safetensors --sweeps 100 --resume",
    )
)
@takes("network", "sizes", "seed", "force", "as_json")
def fit(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="A spec file, or a family: 'mpo(bond=8)'.", show_default=False)
    ],
    *,
    weights: Annotated[
        str, typer.Option("--weights", metavar="FILE:NAME", help="The tensor of a safetensors file to stand for.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="The safetensors file to write.")],
    inputs: Annotated[
        str | None,
        typer.Option("--inputs", metavar="FILE:NAME", help="What enters the weight, (*, in)."),
    ] = None,
    sweeps: Annotated[int, typer.Option("--sweeps", metavar="N", min=1, help="The most sweeps over the cores.")] = 30,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", metavar="T", min=0, help="Stop if a sweep gains so little."),
    ] = 1e-4,
    resume: Annotated[bool, typer.Option("--resume", help="Start from the cores in OUT.")] = False,
    options: Options,
) -> None:
    """Fit a network to a trained weight, and write its cores."""
    with _errors_reported():
        from tngraph.layers.weight_files import family_layer, fit_file, network_layer, read_tensor

        if Path(output).exists() and not (options.force or resume):
            raise NetworkError(f"{output} exists", "--force overwrites it, and --resume goes on from it")
        weight = read_tensor(weights)
        is_file = spec == "-" or spec.endswith(".tn")
        layer = network_layer(options.load(spec)[0]) if is_file else family_layer(spec, weight)
        is_shown = sys.stderr.isatty()
        report = fit_file(
            layer,
            weight,
            None if inputs is None else read_tensor(inputs),
            Path(output),
            sweeps=sweeps,
            tolerance=tolerance,
            seed=options.seed,
            resume=resume,
            metadata={"spec": spec, "weights": weights},
            progress=show_fit_progress if is_shown else None,
        )
        if is_shown:
            hide_progress()
        if options.as_json:
            _show_json(fit_record(report))
        else:
            show_text(str(report))


def _plan_and_save(file: str, options: Options) -> PlannedFile:
    """Return the plan of a file, after writing it to the file of ``--save``."""
    source = options.plan(file)
    if options.save is not None:
        _write(Path(options.save), format_plan_file(source.plan), options.force)
    return source


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Print an error in the input to standard error, and exit with code 1."""
    try:
        yield
    except TngraphError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None


def _check_file(file: str, options: Options, is_strict: bool) -> Record:
    """Show the result of `check` for one file, and return it as a record."""
    network: Network | None = None
    problems: tuple[Problem, ...] = ()
    error = None
    try:
        network, problems = options.check(file)
    except TngraphError as caught:
        error = str(caught)
    record = {
        "file": file,
        "is_ok": error is None and not (is_strict and problems),
        "error": error,
        "warnings": list(map(problem_record, problems)),
        **network_record(network),
    }
    if not options.as_json:
        show_text(_describe(record))
    if error is not None:
        print(error, file=sys.stderr)
    for problem in problems:
        show_warning(problem)
    return record


def _describe(record: Record) -> str:
    if record["error"] is not None:
        return f"{record['file']}: wrong"
    words = ("size", "input", "param", "equation")
    shown = ", ".join(_number(record[f"{word}_count"], word) for word in words)
    count = len(record["warnings"])
    warned = f"; {_number(count, 'warning')}" if count else ""
    return f"{record['file']}: {'ok' if record['is_ok'] else 'wrong'}, network {record['network']}: {shown}{warned}"


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _show_json(record: Record) -> None:
    show_text(json.dumps(record, indent=2, allow_nan=False))


def _write(path: Path, text: str, force: bool) -> None:
    """Write a whole file or nothing.

    Raises:
        NetworkError: the file exists and is not to be overwritten, or the folder cannot be written to.
    """
    try:
        if path.exists() and not (force and path.is_file()):
            raise NetworkError(f"{path} exists", "--force overwrites a file")
        write_whole(path, text)
    except OSError as error:
        raise NetworkError(f"{path} cannot be written: {explain(error)}") from None


def _refuse_large(plan: Plan, runtime: Mapping[str, int]) -> None:
    """Refuse a verification that would not fit in memory, before it allocates anything.

    Raises:
        SizeError: it would take more than `MOST_ELEMENTS`.
    """
    sizes = plan.values(**(dict.fromkeys(plan.network.runtime_sizes(), SMALL) | dict(runtime)))
    inputs = sum(evaluate_size(legs_size(port.legs), sizes) for port in plan.network.inputs)
    values = plan.regime_of(sizes).memory(sizes, DOUBLE).peak // DOUBLE
    count = evaluate_size(plan.params, sizes) + values + inputs
    if count > MOST_ELEMENTS:
        raise SizeError(
            f"verifying {plan.network.name} here takes {count:,} elements, more than {MOST_ELEMENTS:,}\n"
            "  verify it at smaller sizes: its formulas are the same"
        )
