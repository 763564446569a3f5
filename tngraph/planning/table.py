"""A plan as text: totals on top, one row per step, a unit on every number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import sympy

from tngraph.language.network import Index, Leg
from tngraph.planning.cost import evaluate_count, volume
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


def format_count(expr: sympy.Expr, numbers: Mapping[str, int], unit: str) -> str:
    """A count as a formula and as an integer."""
    value = f"{evaluate_count(expr, numbers):,} [{unit}]"
    return value if expr.is_Integer else f"{value} = {format_formula(expr)}"


def format_formula(expr: sympy.Expr, width: int = 120) -> str:
    """A formula in one line; one too long for that says how long it is instead."""
    text = str(expr)
    return text if len(text) <= width else f"a sum of {len(expr.args)} terms"


def format_plan(plan: Plan, numbers: Mapping[str, int]) -> str:
    """Totals, then one row per step, at the given numbers of all sizes."""
    return "\n".join([*_totals(plan, numbers), "", *_rows(plan, numbers)])


def _totals(plan: Plan, numbers: Mapping[str, int]) -> Iterable[str]:
    at = ", ".join(f"{name} = {value}" for name, value in numbers.items())
    yield f"{plan.network.name}" + (f" at {at}" if at else "")
    yield f"  params       {format_count(plan.params, numbers, 'elements')}"
    if plan.dense is not None:
        dense = evaluate_count(plan.dense.params, numbers)
        ratio = dense / max(1, evaluate_count(plan.params, numbers))
        yield f"  dense        {format_count(plan.dense.params, numbers, 'elements')}: {ratio:.1f} times the params"
        yield f"  dense MAC    {format_count(plan.dense.macs, numbers, 'MAC')}"
    yield f"  MAC          {format_count(plan.macs, numbers, 'MAC')}"
    yield f"  FLOPs        {format_count(plan.flops, numbers, 'FLOPs')}"
    yield f"  training     {format_count(plan.training_flops, numbers, 'FLOPs')}"
    yield f"  elementwise  {format_count(plan.elementwise, numbers, 'operations')}"
    yield f"  largest      {format_count(plan.largest, numbers, 'elements')}"
    yield f"  peak         {format_count(plan.peak, numbers, 'elements')}"
    trees = [tree for stage in plan.stages for tree in stage.trees]
    proven = sum(tree.is_proven for tree in trees)
    searched = ", ".join(f"{name} = {value}" for name, value in plan.sizes.items()) or "fixed sizes"
    yield f"  order        {proven} of {len(trees)} regions proven optimal, at {searched}"


def _rows(plan: Plan, numbers: Mapping[str, int]) -> list[str]:
    operations = plan.operations
    header = ("step", "kind", "computes", "legs", "operations", "size [elements]")
    rows: list[Sequence[str]] = [header]
    for number, op in enumerate(operations):
        if op.kind != "load":
            unit = "MAC" if op.kind in ("contract", "conv") else "elementwise"
            work = f"{evaluate_count(volume(operations, number), numbers):,} {unit}"
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
