"""A plan as text: totals on top, one row per step, a unit on every number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import sympy

from tngraph.language.format import format_size
from tngraph.language.network import Index, Leg, Network
from tngraph.language.sizes import symbol
from tngraph.planning.cost import evaluate_count, volume, work_unit
from tngraph.planning.schedule import Operation, legs_size

if TYPE_CHECKING:
    from tngraph.planning.pipeline import Plan


def format_leg(leg: Leg) -> str:
    """A leg as it is written in the language."""
    if isinstance(leg, Index):
        return leg.name
    text = " + ".join(index.name if c == 1 else f"{c}*{index.name}" for c, index in leg.terms)
    if leg.offset != 0 or not text:
        text = f"{text} + {leg.offset}" if text else str(leg.offset)
    text = text.replace("+ -", "- ")
    return f"({text}) % {leg.leg.size}" if leg.wrap else text


def format_value(name: str, legs: Sequence[Leg]) -> str:
    """A value with its legs, as ``t1[batch, o1, b1]``."""
    return f"{name}[{', '.join(map(format_leg, legs))}]"


def format_step(operations: Sequence[Operation], number: int) -> str:
    """What a step computes, in names: ``t2 = t1 * w2``."""
    op = operations[number]
    names = [operations[k].name for k in op.operands]
    if op.kind == "add":
        return f"{names[0]} {'-' if op.number < 0 else '+'} {names[1]}"
    if op.kind == "scale":
        return f"{op.number} * {names[0]}"
    if op.kind == "pointwise" and op.function is not None:
        return f"{op.function.name}({names[0]})"
    return " * ".join(names) if len(names) > 1 else f"{op.kind}({names[0]})"


def window_names(network: Network) -> dict[sympy.Expr, sympy.Symbol]:
    """Short names for sizes that count windows: the index that has the size, unless a size is called so too."""
    sizes = {size.name for size in network.sizes}
    named: dict[sympy.Expr, sympy.Symbol] = {}
    for index in network.indices():
        if index.size.has(sympy.floor, sympy.Mod) and index.name not in sizes:
            named.setdefault(index.size, symbol(index.name))
    return named


def format_formula(expr: sympy.Expr, width: int = 160) -> str:
    """A formula in one line; one too long for that says how long it is instead."""
    text = str(expr)
    if len(text) <= width:
        return text
    kind, part = ("the largest", "formulas") if expr.func is sympy.Max else ("a sum", "terms")
    return f"{kind} of {len(expr.args)} {part}"


def format_plan(plan: Plan, numbers: Mapping[str, int]) -> str:
    """Totals, then one row per step, at the given numbers of all sizes."""
    return "\n".join([*_totals(plan, numbers), "", *_rows(plan, numbers)])


def _totals(plan: Plan, numbers: Mapping[str, int]) -> Iterable[str]:
    at = ", ".join(f"{name} = {value}" for name, value in numbers.items())
    yield f"{plan.network.name}" + (f" at {at}" if at else "")
    windows = window_names(plan.network)
    memory = plan.memory(numbers)
    exact = {"peak": memory.peak, "saved": memory.saved}
    for label, expr, unit in _counts(plan):
        number = evaluate_count(expr, numbers)
        value = exact.get(label, number)
        shown = format_formula(expr.xreplace(windows))
        formula = f" = {shown}" if value == number else f", and {shown} where no size is 1"
        yield f"  {label:<12} {value:,} [{unit}]" + ("" if expr.is_Integer and value == number else formula)
    for size, name in windows.items():
        yield f"  where        {name} = {format_size(size)}"
    if plan.dense is not None:
        ratio = evaluate_count(plan.dense.params, numbers) / max(1, evaluate_count(plan.params, numbers))
        yield f"  compression  {ratio:.1f} dense entries per param"
    trees = [tree for stage in plan.stages for tree in stage.trees]
    proven = sum(tree.is_proven for tree in trees)
    searched = ", ".join(f"{name} = {value}" for name, value in plan.sizes.items()) or "fixed sizes"
    pinned = sum(tree.is_pinned for tree in trees)
    by_hand = f", {pinned} pinned by hand" if pinned else ""
    yield f"  order        {proven} of {len(trees)} regions proven optimal{by_hand}, at {searched}"


def _counts(plan: Plan) -> Iterable[tuple[str, sympy.Expr, str]]:
    yield "params", plan.params, "elements"
    if plan.dense is not None:
        yield "dense", plan.dense.params, "elements"
        yield "dense MAC", plan.dense.macs, "MAC"
    yield "MAC", plan.macs, "MAC"
    yield "FLOPs", plan.flops, "FLOPs"
    yield "training", plan.training_flops, "FLOPs"
    yield "elementwise", plan.elementwise, "operations"
    yield "largest", plan.largest, "elements"
    yield "peak", plan.peak, "bytes"
    yield "saved", plan.saved, "bytes"


def _rows(plan: Plan, numbers: Mapping[str, int]) -> list[str]:
    operations = plan.operations
    header = ("step", "kind", "computes", "legs", "operations", "size [elements]")
    rows: list[Sequence[str]] = [header]
    for number, op in enumerate(operations):
        if op.kind != "load":
            work = f"{evaluate_count(volume(operations, number), numbers):,} {work_unit(op)}"
            size = f"{evaluate_count(legs_size(op.legs), numbers):,}"
            legs = format_value(op.name, op.legs)
            rows.append((str(len(rows)), op.kind, format_step(operations, number), legs, work, size))
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    return [_line(row, widths) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Cells side by side: words to the left, the last two columns, which are numbers, to the right."""
    cells = [
        cell.rjust(width) if k >= len(row) - 2 else cell.ljust(width)
        for k, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
