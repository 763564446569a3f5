"""Time compiled layers beside what else one could write for them: ``python -m tests.bench --help``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tests.bench import measuring, report
from tests.bench.cases import CASES, Case
from tests.bench.measuring import Clock
from tests.bench.results import Cell, add_roofline, describe_case, summarise
from tests.bench.running import KEEPING, Run, in_new_process, run_case, setting_up

ROOT = Path(__file__).parents[2]
RESULTS = {"cpu": Path(__file__).parent / "results.json", "cuda": Path(__file__).parent / "results_cuda.json"}
PAGES = {"cpu": ROOT / "docs" / "performance.md", "cuda": ROOT / "docs" / "performance_gpu.md"}
THREADS = 2
QUICK_BUDGET = 0.5


def main(
    only: Annotated[str, typer.Option(help="Cases with such names alone, as in a shell: 'conv*'.")] = "*",
    quick: Annotated[bool, typer.Option(help="Little time per cell, one try, and one batch per case.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16, float16; tf32 on a GPU.")] = "float32",
    compiled: Annotated[bool, typer.Option(help="With torch.compile of the compiled layer.")] = False,
    threads: Annotated[int, typer.Option(help="Of torch.")] = THREADS,
    budget: Annotated[float, typer.Option(help="Seconds per cell.")] = 4.0,
    tries: Annotated[int, typer.Option(help="Measure a cell so often while other processes are in the way.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Where the results go; the page is made of full runs alone.")] = None,
    page: Annotated[bool, typer.Option("--report", help="Time nothing: make the page of the last results.")] = False,
) -> None:
    """Time every case, print a table per pass, and keep the results."""
    if page:
        write_page(json.loads((out or RESULTS[device]).read_text()))
        return
    is_full = (only, quick, dtype, threads) == ("*", False, "float32", THREADS)
    target = out or (RESULTS.get(device) if is_full else None)
    how = Run(device, dtype, threads, QUICK_BUDGET if quick else budget, 1 if quick else tries, quick, compiled)
    results = run([case for case in CASES if fnmatch(case.name, only)], how, target)
    console = Console(width=None if Console().is_terminal else 220)
    for table in report.tables(results):
        console.print(table)
    console.print_json(json.dumps({k: v for k, v in results["summary"].items() if k != "contenders"}))
    if target is not None and target == RESULTS.get(device):
        write_page(results)


def run(cases: Sequence[Case], how: Run, target: Path | None) -> dict[str, Any]:
    """Time cases, one process after the other; the results are kept after every case, so that none is lost."""
    began, cells, results = time.perf_counter(), list[Cell](), dict[str, Any]()
    with setting_up(how) as setting:
        clock = Clock(setting.device)
        machine = measuring.describe_machine(clock.device, setting.dtype)
        rates = measuring.measure_rates(clock, setting.dtype)
        for number, case in enumerate(cases, 1):
            cells += in_new_process(run_case, case.name, how)
            if number == len(cases):  # once more: the better one is nearer to what the machine can do
                again = measuring.measure_rates(clock, setting.dtype)
                rates = {name: max(rate, again[name]) for name, rate in rates.items()}
            results = collect(cases[:number], cells, {**machine, **rates}, how)
            if target is not None:
                target.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
            print(f"{time.perf_counter() - began:6.0f} s  {case.name}", flush=True)
    return results


def collect(cases: Sequence[Case], cells: Sequence[Cell], machine: Mapping[str, Any], how: Run) -> dict[str, Any]:
    """The results so far, as they are kept."""
    rated = [add_roofline(cell, machine) for cell in cells]
    method = {
        "budget": how.budget,
        "tries": how.tries,
        "seconds_per_turn": measuring.SECONDS_PER_TURN,
        "most_rounds": measuring.MOST_ROUNDS,
        "least_rounds": measuring.LEAST_ROUNDS,
        "too_long": measuring.TOO_LONG,
        "environment": KEEPING,
    }
    described = [describe_case(case) for case in cases]
    return {"machine": machine, "method": method, "summary": summarise(rated), "cases": described, "cells": rated}


def write_page(results: dict[str, Any]) -> None:
    """Write the page of a device, as ``docs/performance.md``."""
    page = PAGES[results["machine"]["device"]]
    page.write_text(report.page(results))
    print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
