"""Time compiled layers beside what else one could write for them: ``make bench``, or ``python -m tests.bench --help``."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from tests.bench import measuring, report
from tests.bench.cases import CASES, Case
from tests.bench.contenders import Setting, gather, make_call, make_input
from tests.bench.measuring import Clock, measure
from tests.bench.results import describe_case, summarise, write_cell

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results.json"
PAGE = ROOT / "docs" / "performance.md"
THREADS = 2
QUICK_BUDGET = 0.5


def main(
    only: Annotated[str, typer.Option(help="Cases with such names alone, as in a shell: 'conv*'.")] = "*",
    quick: Annotated[bool, typer.Option(help="Little time per cell, and one batch per case.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16, float16.")] = "float32",
    compiled: Annotated[bool, typer.Option(help="With torch.compile of the compiled layer.")] = False,
    budget: Annotated[float, typer.Option(help="Seconds per cell.")] = 4.0,
    out: Annotated[Path | None, typer.Option(help="Where the results go; the page is made of full runs alone.")] = None,
    page: Annotated[bool, typer.Option("--report", help="Time nothing: make the page of the last results.")] = False,
) -> None:
    """Time every case, print a table per pass, and keep the results."""
    if page:
        write_page(json.loads((out or RESULTS).read_text()))
        return
    is_full = only == "*" and not quick and device == "cpu" and dtype == "float32"
    cases = [case for case in CASES if fnmatch(case.name, only)]
    setting = Setting(torch.device(device), getattr(torch, dtype))
    target = out or (RESULTS if is_full else None)
    results = run(cases, setting, QUICK_BUDGET if quick else budget, quick, compiled, target)
    console = Console(width=None if Console().is_terminal else 220)
    for table in report.tables(results):
        console.print(table)
    console.print_json(json.dumps({k: v for k, v in results["summary"].items() if k != "contenders"}))
    if is_full and target == RESULTS:
        write_page(results)


def run(
    cases: list[Case], setting: Setting, budget: float, is_quick: bool, with_compiled: bool, target: Path | None
) -> dict[str, Any]:
    """Time cases, cell by cell; the results are kept after every case, so that a run that is stopped is not lost."""
    torch.set_num_threads(THREADS)
    clock, began = Clock(setting.device), time.perf_counter()
    results: dict[str, Any] = {
        "machine": measuring.describe_machine(clock, setting.dtype, is_quick),
        "method": {
            "budget": budget,
            "seconds_per_turn": measuring.SECONDS_PER_TURN,
            "most_rounds": measuring.MOST_ROUNDS,
            "least_rounds": measuring.LEAST_ROUNDS,
            "too_long": measuring.TOO_LONG,
        },
        "cases": [describe_case(case) for case in cases],
        "cells": [],
    }
    for case in cases:
        for cell in run_case(case, setting, budget, is_quick, with_compiled, results["machine"]):
            results["cells"].append(cell)
        results["summary"] = summarise(results["cells"])
        if target is not None:
            target.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"{time.perf_counter() - began:6.0f} s  {case.name}", flush=True)
    return results


def run_case(
    case: Case, setting: Setting, budget: float, is_quick: bool, with_compiled: bool, machine: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The cells of one case."""
    batches = case.batches[1:2] if is_quick else case.batches
    for batch in batches:
        for is_training in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of foreign libraries, at every call
                field = gather(case, batch, is_training, setting, with_compiled)
                x = make_input(case, batch, setting)
                calls = {each.name: make_call(each, x, is_training) for each in field.contenders}
                timings, failed = measure(calls, clock := Clock(setting.device), budget)
            clock.synchronise()
            yield write_cell(
                case, batch, is_training, field, timings, failed, machine, setting.dtype.itemsize
            )


def write_page(results: dict[str, Any]) -> None:
    """Write ``docs/performance.md``."""
    PAGE.write_text(report.page(results))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
