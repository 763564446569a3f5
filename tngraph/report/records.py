"""Networks, plans and verifications as records of plain values, for JSON and for tables.

A key says its unit where a number has one. Counts are integers; their formulas stand beside them as text, whole, under
``formulas`` with the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

import sympy

from tngraph.language.network import Network
from tngraph.planning.cost import evaluate_count, volume
from tngraph.planning.pipeline import Plan
from tngraph.planning.schedule import legs_size
from tngraph.planning.table import format_step, format_value

if TYPE_CHECKING:
    from tngraph.modules.verification import Verification

Record = dict[str, Any]


def network_record(network: Network | None) -> Record:
    """How much of everything a network has; the same keys with None where there is no network."""
    if network is None:
        return dict.fromkeys(("network", "size_count", "input_count", "param_count", "equation_count"))
    return {
        "network": network.name,
        "size_count": len(network.sizes),
        "input_count": len(network.inputs),
        "param_count": sum(core.role == "param" for core in network.cores),
        "equation_count": len(network.equations),
    }


def plan_record(plan: Plan) -> Record:
    """Totals and one row per step, with numbers at the sizes the plan was made for."""
    trees = [tree for stage in plan.stages for tree in stage.trees]
    memory = plan.memory(plan.sizes)
    return {
        "network": plan.network.name,
        "sizes": dict(plan.sizes),
        **_count(plan_totals(plan), plan.sizes),
        "peak_bytes": memory.peak,
        "saved_bytes": memory.saved,
        "region_count": len(trees),
        "proven_region_count": sum(tree.is_proven for tree in trees),
        "steps": step_records(plan),
    }


def plan_totals(plan: Plan) -> dict[str, sympy.Expr | None]:
    """The totals of a plan as formulas; those of the dense weight are None where there is none."""
    return {
        "params_elements": plan.params,
        "dense_params_elements": plan.dense.params if plan.dense is not None else None,
        "dense_macs": plan.dense.macs if plan.dense is not None else None,
        "macs": plan.macs,
        "flops": plan.flops,
        "training_flops": plan.training_flops,
        "elementwise_operations": plan.elementwise,
        "largest_elements": plan.largest,
        "peak_bytes": plan.peak,
        "saved_bytes": plan.saved,
        "cost_operations": plan.cost,
    }


def step_records(plan: Plan) -> list[Record]:
    """One record per step, in the order they run."""
    zero = sympy.Integer(0)
    records: list[Record] = []
    for number, op in enumerate(plan.operations):
        if op.kind == "load":
            continue
        work, is_matrix = volume(plan.operations, number), op.kind in ("contract", "conv")
        counts = {
            "macs": work if is_matrix else zero,
            "elementwise_operations": zero if is_matrix else work,
            "size_elements": legs_size(op.legs),
        }
        named = {"step": len(records) + 1, "kind": op.kind, "computes": format_step(plan.operations, number)}
        records.append({**named, "result": format_value(op.name, op.legs), **_count(counts, plan.sizes)})
    return records


def verification_record(result: Verification) -> Record:
    """What was compared: one row per comparison; an error that is no number (JSON has no nan) is found as None."""
    checks = [
        {"what": c.what, "unit": c.unit, "expected": c.expected, "found": _finite(c.found), "is_equal": c.is_equal}
        for c in result.checks
    ]
    return {"network": result.name, "is_equal": result.is_equal, "sizes": dict(result.sizes), "checks": checks}


def _finite(value: float | str) -> float | str | None:
    return None if isinstance(value, float) and not isfinite(value) else value


def _count(formulas: Mapping[str, sympy.Expr | None], sizes: Mapping[str, int]) -> Record:
    """The formulas as integers, and once more as text."""
    numbers = {key: None if expr is None else evaluate_count(expr, sizes) for key, expr in formulas.items()}
    return {**numbers, "formulas": {key: None if expr is None else str(expr) for key, expr in formulas.items()}}
