"""A plan as text: totals on top, one row per step, and a unit on every number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import NamedTuple

import sympy

from tngraph.language.legs import legs_size
from tngraph.language.network import Index, Leg, Network
from tngraph.language.sizes import find_case, symbol
from tngraph.language.text.format import format_size
from tngraph.plans.counts import COUNTS, Count, Counted
from tngraph.plans.decision import Decision
from tngraph.plans.measured import Measured
from tngraph.plans.regime import Regime
from tngraph.program.cases import case_at
from tngraph.program.counts import evaluate_count, volume, work_unit
from tngraph.program.kinds import entry_of
from tngraph.program.operations import Operation
from tngraph.search.machine import Machine
from tngraph.search.objectives import Rate, Request, Weighted
from tngraph.search.region import ContractionTree

LONGEST_DRAWING = 400
"""A line of trees longer than this is cut [characters]."""


def format_leg(leg: Leg) -> str:
    """Return a leg as the language writes it."""
    if isinstance(leg, Index):
        return leg.name
    text = " + ".join(index.name if c == 1 else f"{c}*{index.name}" for c, index in leg.terms)
    if leg.offset != 0 or not text:
        text = f"{text} + {leg.offset}" if text else str(leg.offset)
    text = text.replace("+ -", "- ")
    return f"({text}) % {leg.leg.size}" if leg.wrap else text


def format_value(name: str, legs: Sequence[Leg]) -> str:
    """Return a value with its legs, as ``t1[batch, o1, b1]``."""
    return f"{name}[{', '.join(map(format_leg, legs))}]"


def format_step(operations: Sequence[Operation], number: int) -> str:
    """Return the computation of a step in terms of the names of its operands, as ``t1 * w2``."""
    op = operations[number]
    names = [operations[k].name for k in op.operands]
    return entry_of(op).show(op, names)


def window_names(network: Network) -> dict[sympy.Expr, sympy.Symbol]:
    """Return a short name for each size that counts windows: its index's name, unless a size has that name."""
    sizes = {size.name for size in network.sizes}
    named: dict[sympy.Expr, sympy.Symbol] = {}
    for index in network.indices():
        if index.size.has(sympy.floor, sympy.Mod) and index.name not in sizes:
            named.setdefault(index.size, symbol(index.name))
    return named


def format_formula(expr: sympy.Expr, width: int = 160) -> str:
    """Return a formula on one line, or a note of how many terms it has if it is too long."""
    text = str(expr)
    if len(text) <= width:
        return text
    kind, arguments = ("the largest", "formulas") if expr.func is sympy.Max else ("a sum", "terms")
    return f"{kind} of {len(expr.args)} {arguments}"


def draw_tree(tree: ContractionTree) -> str:
    """Return a tree as nested names, as a pinned order is written: ``((x w1) (w2 w3))``."""
    drawn = [access.source for access in tree.region.accesses]
    for step in tree.steps:
        operands = [drawn[k] for k in step.operands]
        drawn.append(f"({' '.join(operands)})" if len(operands) > 1 else operands[0])
    return drawn[-1]


def draw_stages(regime: Regime) -> str:
    """Return the trees of a regime on one line, without those of a single tensor."""
    drawn = []
    for stage in regime.stages:
        trees = [draw_tree(tree) for tree in stage.trees if len(tree.region.accesses) > 1]
        if trees:
            drawn.append(f"{stage.equation.name} = {' + '.join(trees)}")
    return "; ".join(drawn) or "nothing to contract"


def format_range(low: int, high: int | None) -> str:
    """Return the range of a regime as text: ``1–7``, ``8``, ``≥ 64``."""
    if high is None:
        return f"≥ {low:,}"
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def format_plan(plan: Decision, numbers: Mapping[str, int]) -> str:
    """Return the text of a plan: totals, regimes if several, then one row per step of the regime that runs here."""
    regime = plan.regime_of(numbers)
    return "\n".join([*_totals(plan, regime, numbers), "", *_rows(regime, numbers)])


def _totals(plan: Decision, regime: Regime, numbers: Mapping[str, int]) -> Iterable[str]:
    at = ", ".join(f"{name} = {value}" for name, value in numbers.items())
    yield f"{plan.network.name}" + (f" at {at}" if at else "")
    windows = window_names(plan.network)
    for total in list_totals(plan, regime, numbers):
        case, condition = find_case(total.formula, numbers)
        shown = f" = {format_formula(case.xreplace(windows))}{_format_condition(condition)}"
        is_formula = not case.is_Integer and total.value == evaluate_count(case, numbers)
        yield f"  {total.label:<12} {total.value:,} [{total.unit}]{shown if is_formula else ''}"
    for size, name in windows.items():
        yield f"  where        {name} = {format_size(size)}"
    if plan.dense is not None:
        ratio = evaluate_count(plan.dense.params, numbers) / max(1, evaluate_count(plan.params, numbers))
        yield f"  compression  {ratio:.1f} dense entries per param"
    if isinstance(plan.request.rate, Machine):
        yield f"  time         {regime.seconds(numbers):.3g} [s], by the model of the machine"
    for measured in plan.measured:
        yield from _format_measured(measured, plan.request)
    yield f"  order        {_describe_proof(plan, regime)}"
    if plan.unpinned is not None:
        yield f"  pinned       {_compare_best(plan, plan.unpinned, numbers)}"
    if len(plan.regimes) > 1:
        yield from format_regimes(plan, regime)


def _format_measured(measured: Measured, request: Request) -> Iterable[str]:
    """Yield the measured time of a call, and that with a dense weight if it was measured."""
    where = ", ".join(f"{name} = {value}" for name, value in measured.sizes)
    at = f" at {where}" if where else ""
    yield f"  measured     {measured.seconds:.3g} [s]{at} on {measured.device}, {measured.dtype}"
    if measured.dense is not None:
        folds = ": mode='serve' folds to it" if request.mode == "infer" else ""
        faster = f", which is faster{folds}" if measured.is_slower_than_dense else ""
        yield f"  dense time   {measured.dense:.3g} [s]{at} with a dense weight{faster}"


def _format_condition(condition: sympy.Basic) -> str:
    """Return the only sizes that a formula holds for, as `` where batch = 1``."""
    fixed = sorted(f"{size} = {value}" for size, value in (equality.args for equality in condition.atoms(sympy.Eq)))
    return f" where {', '.join(fixed)}" if fixed else ""


def _describe_proof(plan: Decision, regime: Regime) -> str:
    proven = sum(tree.is_proven for tree in regime.trees)
    pinned = sum(tree.is_pinned for tree in regime.trees)
    by_hand = f", {pinned} pinned by hand" if pinned else ""
    fixed = [f"{name} = {value}" for name, value in plan.sizes.items() if name not in plan.free]
    searched = ", ".join([*(f"every {name}" for name in plan.free), *fixed]) or "fixed sizes"
    return f"{proven} of {len(regime.trees)} regions proven optimal{by_hand}, at {searched}"


def _compare_best(plan: Decision, best: Decision, numbers: Mapping[str, int]) -> str:
    """Return the cost of a pinned order beside that of the best one, in the units that were minimised."""
    regimes = [decision.regime_of(numbers) for decision in (plan, best)]
    is_peak = plan.request.minimize == "memory"
    costs = [regime.memory(numbers).peak if is_peak else regime.price(numbers) for regime in regimes]
    own, least = (f"{cost:{'.3g' if isinstance(cost, float) else ','}}" for cost in costs)
    unit = _price_unit(plan.request)
    ratio = f"{costs[0] / costs[1]:.2f} times the best" if costs[1] else "and the best"
    return f"{own} [{unit}], {ratio}, {least} [{unit}]"


def _price_unit(request: Request) -> str:
    """Return the unit of a request's price."""
    if request.minimize == "memory":
        return "bytes"
    units: dict[Rate, str] = {Weighted(): "operations", Weighted(0, 1): "elements"}
    return "s" if isinstance(request.rate, Machine) else units.get(request.rate, "weighted operations")


def describe_regimes(plan: Decision) -> list[str]:
    """Return where each regime runs: a range of the free size, "order 1", … if several are free, or "" if alone."""
    if len(plan.regimes) == 1:
        return [""]
    if len(plan.free) == 1:
        return [f"{plan.free[0]} {format_range(regime.low, regime.high)}" for regime in plan.regimes]
    return [f"order {k + 1}" for k in range(len(plan.regimes))]


def format_regimes(plan: Decision, running: Regime) -> Iterable[str]:
    """Yield one line per regime: where it runs, its cost and its trees, with a mark at the one that runs."""
    windows = window_names(plan.network)
    for regime, where in zip(plan.regimes, describe_regimes(plan), strict=True):
        mark = "*" if regime is running else " "
        cost = "" if regime.cost is None else f"{format_formula(regime.cost.xreplace(windows))}: "
        yield f"  regime     {mark} {where}: {cost}{shorten(draw_stages(regime), LONGEST_DRAWING, placeholder=' …')}"


class Total(NamedTuple):
    """A total of the regime that runs at some sizes.

    Attributes:
        name: the name of the count.
        label: its name in tables.
        unit: of its value.
        formula: in all sizes; with a case of its own where sizes of 1 make a difference at these sizes.
        value: at these sizes.
    """

    name: str
    label: str
    unit: str
    formula: sympy.Expr
    value: int


def list_totals(plan: Decision, regime: Regime, numbers: Mapping[str, int]) -> list[Total]:
    """Return the totals of a regime at these sizes, beside those of a dense weight if there is one."""
    formulas, memory = regime.memory_formulas([{}, case_at(plan.network, numbers)]), regime.memory(numbers)

    def total(count: Count) -> Total:
        if count.has_cases:
            formula, value = getattr(formulas, count.name), getattr(memory, count.name)
        else:
            formula = getattr(plan if count.is_stored else regime, count.name)
            value = evaluate_count(formula, numbers)
        return Total(count.name, count.label, count.unit, formula, value)

    totals = [total(count) for count in COUNTS if count is not Counted.folded or plan.request.mode == "serve"]
    if plan.dense is None:
        return totals
    params, macs = plan.dense.params, plan.dense.macs
    dense = (
        Total("dense_params", "dense", "elements", params, evaluate_count(params, numbers)),
        Total("dense_macs", "dense MAC", "MAC", macs, evaluate_count(macs, numbers)),
    )
    return [totals[0], *dense, *totals[1:]]


def _rows(regime: Regime, numbers: Mapping[str, int]) -> list[str]:
    operations = regime.operations
    header = ("step", "kind", "computes", "legs", "operations", "size [elements]")
    rows: list[Sequence[str]] = [header]
    for number, op in enumerate(operations):
        if entry_of(op).has_row:
            work = f"{evaluate_count(volume(operations, number), numbers):,} {work_unit(op)}"
            size = f"{evaluate_count(legs_size(op.legs), numbers):,}"
            legs = format_value(op.name, op.legs)
            rows.append((str(len(rows)), op.kind, format_step(operations, number), legs, work, size))
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    return [_line(row, widths) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Join the cells of a row: words aligned left, and the last two columns, which are numbers, aligned right."""
    cells = [
        cell.rjust(width) if k >= len(row) - 2 else cell.ljust(width)
        for k, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
