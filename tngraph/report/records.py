"""Records of networks, plans and verifications in plain values, for JSON and for tables.

The key of a number names its unit. Counts are integers. Their formulas are there too, uncut, as text under ``formulas``
with the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

import sympy

from tngraph.compiler.fronts import Front, describe_point
from tngraph.errors import Problem
from tngraph.language.legs import legs_size
from tngraph.language.network import Network
from tngraph.plans.differences import PlanDifference
from tngraph.plans.plan import Plan, Regime
from tngraph.plans.table import draw_stages, format_step, format_value
from tngraph.program.cases import case_at
from tngraph.program.counts import evaluate_count, volume, work_unit
from tngraph.program.kinds import entry_of

if TYPE_CHECKING:
    from tngraph.modules.verification import Verification

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
    """What is wrong, or likely so, what would mend it, and where it stands; None where there is no place."""
    place = problem.place
    where = {"line": None, "column": None} if place is None else {"line": place.line, "column": place.column}
    return {"message": problem.message, "hint": problem.hint, **where}


def plan_record(plan: Plan, /, **sizes: int) -> Record:
    """Return totals, regimes and steps of a plan, at given sizes, with the others as searched."""
    numbers = plan.values(**sizes)
    regime = plan.regime_of(numbers)
    memory = regime.memory(numbers)
    return {
        "network": plan.network.name,
        "sizes": numbers,
        "mode": plan.request.mode,
        **_count(plan_totals(plan, regime, numbers), numbers),
        "peak_bytes": memory.peak,
        "saved_bytes": memory.saved,
        "moves_bytes": memory.moves,
        "region_count": len(regime.trees),
        "proven_region_count": sum(tree.is_proven for tree in regime.trees),
        "free_sizes": list(plan.free),
        "regimes": [_regime_record(plan, each, each is regime) for each in plan.regimes],
        "steps": step_records(regime, numbers),
    }


def _regime_record(plan: Plan, regime: Regime, is_running: bool) -> Record:
    """Return where a regime runs, its trees, and its cost as a formula, or None if the cost is not a formula."""
    ends = {"first": regime.low, "last": regime.high} if len(plan.free) == 1 else {"first": None, "last": None}
    cost = None if regime.cost is None else str(regime.cost)
    return {**ends, "is_running": is_running, "orders": draw_stages(regime), "formulas": {"cost_operations": cost}}


def plan_totals(plan: Plan, regime: Regime, numbers: Mapping[str, int]) -> dict[str, sympy.Expr | None]:
    """Return the totals of a regime as formulas. Those of the dense weight are None if there is none.

    Formulas of memory have a case of their own where sizes of 1 make a difference at these numbers.
    """
    memory = regime.memory_formulas([{}, case_at(plan.network, numbers)])
    return {
        "params_elements": plan.params,
        "dense_params_elements": plan.dense.params if plan.dense is not None else None,
        "dense_macs": plan.dense.macs if plan.dense is not None else None,
        "macs": regime.macs,
        "flops": regime.flops,
        "training_flops": regime.training_flops,
        "elementwise_operations": regime.elementwise,
        "largest_elements": regime.largest,
        "peak_bytes": memory.peak,
        "saved_bytes": memory.saved,
        "moves_bytes": memory.moves,
        **({"folded_bytes": plan.folded} if plan.request.mode == "serve" else {}),
        "cost_operations": regime.cost,
    }


def step_records(regime: Regime, sizes: Mapping[str, int]) -> list[Record]:
    """Return one record per step, in the order they run, with values at these sizes."""
    zero = sympy.Integer(0)
    records: list[Record] = []
    for number, op in enumerate(regime.operations):
        if not entry_of(op).has_row:
            continue
        work, is_matrix = volume(regime.operations, number), work_unit(op) == "MAC"
        counts = {
            "macs": work if is_matrix else zero,
            "elementwise_operations": zero if is_matrix else work,
            "size_elements": legs_size(op.legs),
        }
        named = {"step": len(records) + 1, "kind": op.kind, "computes": format_step(regime.operations, number)}
        records.append({**named, "result": format_value(op.name, op.legs), **_count(counts, sizes)})
    return records


def difference_record(found: PlanDifference) -> Record:
    """Return the difference of two plans, in pairs ``before`` and ``after``. A formula that one plan lacks is None."""
    return {
        "is_empty": found.is_empty,
        "plans": _pair(*found.titles),
        "requests": _pair(*found.requests),
        "regimes": _pair(*found.regimes),
        "counts": [
            {"count": c.name, "unit": c.unit, **_pair(c.before, c.after), "formulas": {"difference": _text(c.formula)}}
            for c in found.counts
        ],
        "steps": [
            {
                "computes": s.computes,
                "unit": s.unit,
                **_pair(s.before, s.after),
                "formulas": _pair(_text(s.before_formula), _text(s.after_formula)),
            }
            for s in found.steps
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


def verification_record(result: Verification) -> Record:
    """Return one record per comparison. A value that is not finite becomes None, since JSON has no nan."""
    checks = [
        {"what": c.what, "unit": c.unit, "expected": c.expected, "found": _finite(c.found), "is_equal": c.is_equal}
        for c in result.checks
    ]
    return {"network": result.name, "is_equal": result.is_equal, "sizes": dict(result.sizes), "checks": checks}


def _finite(value: float | str) -> float | str | None:
    return None if isinstance(value, float) and not isfinite(value) else value


def _count(formulas: Mapping[str, sympy.Expr | None], sizes: Mapping[str, int]) -> Record:
    """Return formulas as integers, and again as text under ``formulas``."""
    numbers = {key: None if expr is None else evaluate_count(expr, sizes) for key, expr in formulas.items()}
    return {**numbers, "formulas": {key: None if expr is None else str(expr) for key, expr in formulas.items()}}
