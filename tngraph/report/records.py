"""Records of networks, plans and their differences in plain values, for JSON and for tables.

The key of a number names its unit. Counts are integers. Their formulas are there too, uncut, as text under ``formulas``
with the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from tngraph.compiler.fronts import Front, describe_point
from tngraph.errors import Problem
from tngraph.language.legs import legs_size
from tngraph.language.network import Network
from tngraph.plans.differences import PlanDifference
from tngraph.plans.plan import Plan
from tngraph.plans.regime import Regime
from tngraph.plans.table import Total, draw_stages, format_step, format_value, list_totals
from tngraph.program.counts import evaluate_count, volume, work_unit
from tngraph.program.kinds import entry_of

Record = dict[str, Any]


def network_record(network: Network | None) -> Record:
    """Return the counts of a network's sizes, inputs, params and equations; each is None if there is no network."""
    if network is None:
        return dict.fromkeys(("network", "size_count", "input_count", "param_count", "equation_count"))
    return {
        "network": network.name,
        "size_count": len(network.sizes),
        "input_count": len(network.inputs),
        "param_count": sum(core.role == "param" for core in network.cores),
        "equation_count": len(network.equations),
    }


def problem_record(problem: Problem) -> Record:
    """Return the message, the hint and the place of a problem; line and column are None if it has no place."""
    place = problem.place
    where = {"line": None, "column": None} if place is None else {"line": place.line, "column": place.column}
    return {"message": problem.message, "hint": problem.hint, **where}


def plan_record(plan: Plan, /, **sizes: int) -> Record:
    """Return totals, regimes and steps of a plan, at given sizes, with the others as searched."""
    numbers = plan.values(**sizes)
    running = plan.regime_of(numbers)
    return {
        "network": plan.network.name,
        "sizes": numbers,
        "mode": plan.request.mode,
        **_totals_record(plan, running, numbers),
        "region_count": len(running.trees),
        "proven_region_count": sum(tree.is_proven for tree in running.trees),
        "free_sizes": list(plan.free),
        "regimes": [_regime_record(plan, regime, regime is running) for regime in plan.regimes],
        "steps": step_records(running, numbers),
    }


def _regime_record(plan: Plan, regime: Regime, is_running: bool) -> Record:
    """Return where a regime runs, its trees, and its cost as a formula, or None if the cost is not a formula."""
    ends = {"first": regime.low, "last": regime.high} if len(plan.free) == 1 else {"first": None, "last": None}
    cost = None if regime.cost is None else str(regime.cost)
    return {**ends, "is_running": is_running, "orders": draw_stages(regime), "formulas": {"cost_operations": cost}}


def _totals_record(plan: Plan, regime: Regime, numbers: Mapping[str, int]) -> Record:
    """Return the totals of a regime, and its cost. Those of the dense weight are None if there is none."""
    totals = {_key(total): total for total in list_totals(plan, regime, numbers)}
    keys = dict.fromkeys(["params_elements", "dense_params_elements", "dense_macs", *totals])
    values = {key: totals[key].value if key in totals else None for key in keys}
    formulas = {key: _text(totals[key].formula) if key in totals else None for key in keys}
    cost = _count({"cost_operations": regime.cost}, numbers)
    return {**values, **cost, "formulas": {**formulas, **cost["formulas"]}}


def _key(total: Total) -> str:
    """Return the key of a total, which names its unit: macs and flops do so by themselves."""
    return total.name if total.unit in ("MAC", "FLOPs") else f"{total.name}_{total.unit}"


def step_records(regime: Regime, sizes: Mapping[str, int]) -> list[Record]:
    """Return one record per step, in the order they run, with values at these sizes."""
    zero = sympy.Integer(0)
    records: list[Record] = []
    for position, op in enumerate(regime.operations):
        if not entry_of(op).has_row:
            continue
        work, is_matrix = volume(regime.operations, position), work_unit(op) == "MAC"
        counts = {
            "macs": work if is_matrix else zero,
            "elementwise_operations": zero if is_matrix else work,
            "size_elements": legs_size(op.legs),
        }
        named = {"step": len(records) + 1, "kind": op.kind, "computes": format_step(regime.operations, position)}
        records.append({**named, "result": format_value(op.name, op.legs), **_count(counts, sizes)})
    return records


def difference_record(difference: PlanDifference) -> Record:
    """Return the difference of two plans, in pairs ``before`` and ``after``. A formula that one plan lacks is None."""
    return {
        "is_empty": difference.is_empty,
        "plans": _pair(*difference.titles),
        "requests": _pair(*difference.requests),
        "regimes": _pair(*difference.regimes),
        "counts": [
            {"count": c.name, "unit": c.unit, **_pair(c.before, c.after), "formulas": {"difference": _text(c.formula)}}
            for c in difference.counts
        ],
        "steps": [
            {
                "computes": s.computes,
                "unit": s.unit,
                **_pair(s.before, s.after),
                "formulas": _pair(_text(s.before_formula), _text(s.after_formula)),
            }
            for s in difference.steps
        ],
    }


def _pair(before: Any, after: Any) -> Record:
    return {"before": before, "after": after}


def _text(expr: sympy.Expr | None) -> str | None:
    return None if expr is None else str(expr)


def front_record(front: Front) -> Record:
    """Return the plans of a front, cheapest first: cost, bytes, and how each plan stays within them."""
    rows = [{"cost": p.cost, "bytes": p.bytes, "how": describe_point(p.plan)} for p in front.points]
    return {"network": front.points[0].plan.network.name, "plans": rows}


def _count(formulas: Mapping[str, sympy.Expr | None], sizes: Mapping[str, int]) -> Record:
    """Return formulas as integers, and again as text under ``formulas``."""
    numbers = {key: None if expr is None else evaluate_count(expr, sizes) for key, expr in formulas.items()}
    return {**numbers, "formulas": {key: None if expr is None else str(expr) for key, expr in formulas.items()}}
