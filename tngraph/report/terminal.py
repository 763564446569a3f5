"""Output of the command line: coloured tables on a terminal, plain text anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from tngraph.errors import Problem
from tngraph.plans.plan import Plan
from tngraph.report.records import step_records
from tngraph.search.objectives import Price


def show_text(text: str) -> None:
    """Print text as it is, and flush, so that a closed pipe raises here and not when Python ends."""
    print(text, flush=True)


def show_plan(plan: Plan, /, **sizes: int) -> None:
    """Print a plan: totals, then one row per step, at given sizes, with the others as searched."""
    text = plan.table(**sizes)
    if not sys.stdout.isatty():
        return show_text(text)
    totals, _, _ = text.partition("\n\n")
    header = ("step", "kind", "computes", "legs", "operations", "size [elements]")
    table = make_table(header, numbers=(0, 4, 5))
    for step in step_records(plan.regime(**sizes), plan.values(**sizes)):
        work = f"{step['macs']:,} MAC" if step["macs"] else f"{step['elementwise_operations']:,} elementwise"
        cells = (str(step["step"]), step["kind"], step["computes"], step["result"], work, f"{step['size_elements']:,}")
        table.add_row(*map(Text, cells))
    console = Console()
    console.print(totals, markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def show_source(text: str) -> None:
    """Print Python source."""
    if not sys.stdout.isatty():
        return show_text(text.rstrip("\n"))
    Console().print(Syntax(text, "python", theme="ansi_dark", background_color="default"), soft_wrap=True)


def show_warning(warning: Problem | Warning | str) -> None:
    """Print a warning on standard error."""
    print(f"warning: {warning}", file=sys.stderr)


def show_progress(done: int, total: int | None, cost: Price) -> None:
    """Show on standard error how far a search is, in a line that disappears when the search is done."""
    end = "\r\033[K" if done == total else ""
    of = "" if total is None else f" of {total}"
    print(f"\r\033[Ksearching: {done}{of}, best {Decimal(cost):.2e}{end}", end="", file=sys.stderr, flush=True)


def make_table(header: Sequence[str], numbers: Sequence[int]) -> Table:
    """Return an empty table. Columns at these positions hold numbers, which are aligned right and not wrapped."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for position, title in enumerate(header):
        is_number = position in numbers
        justify: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(Text(title), justify=justify, no_wrap=is_number, overflow="fold")
    return table
