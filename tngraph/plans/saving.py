"""A plan as a JSON file, which holds the decisions and nothing that follows from them.

The decisions are few: the network as text, the request, the values of the sizes, which equations were inlined, and the
moves, layouts and tiles of every tree. What each step contracts, its kind and its legs follow from the moves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from tngraph.errors import NetworkError, PlanError
from tngraph.files import explain, write_whole
from tngraph.language.network import Network
from tngraph.language.rewrites import find_inlined, merge
from tngraph.language.text.format import format_network
from tngraph.language.text.parsing import parse
from tngraph.plans.decision import Decision
from tngraph.plans.regime import Regime
from tngraph.plans.schema import (
    FORMAT,
    VERSION,
    Decisions,
    EquationFields,
    GradientFields,
    MatmulFields,
    PlanFields,
    RegimeFields,
    RequestFields,
    TileFields,
    TreeFields,
)
from tngraph.plans.table import format_leg
from tngraph.search.machine import Machine
from tngraph.search.objectives import Request
from tngraph.search.region import ContractionTree, MatmulLayout, Topology
from tngraph.search.replay import find_moves

_LIST = re.compile(r'(\[)\n *((?:[^\[\]{}"]|"[^"\n]*")*?)\n *(?=\])')
_OBJECT = re.compile(r"(\{)\n *([^{}]*?)\n *(?=\})")
_BREAK = re.compile(r"\n *")


def save_plan(plan: Decision, path: str | Path) -> None:
    """Write a plan to a file, whole or not at all.

    Raises:
        PlanError: a file cannot hold the plan, or the file cannot be written.
    """
    text = format_plan_file(plan)
    try:
        write_whole(path, text)
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be written: {explain(error)}") from None


def format_plan_file(plan: Decision) -> str:
    """Return a plan as the text of its file.

    Raises:
        PlanError: the plan minimises a Python function, or its network's text cannot be read back.
    """
    text = format_network(plan.network)
    _check_text(plan.network, text)
    fields = PlanFields(
        format=FORMAT,
        version=VERSION,
        sha256=digest(text),
        network=text,
        request=_request_fields(plan.request),
        sizes=dict(plan.sizes),
        plan=_decisions(plan),
        unpinned=None if plan.unpinned is None else _decisions(plan.unpinned),
        measured=list(plan.measured),
    )
    return _compact(msgspec.json.format(msgspec.json.encode(fields), indent=1).decode()) + "\n"


def _compact(text: str) -> str:
    """Put each innermost list and object of indented JSON on one line. Strings in JSON hold no newline."""
    for innermost in (_LIST, _OBJECT):
        text = innermost.sub(lambda match: match[1] + _BREAK.sub(" ", match[2]), text)
    return text


def digest(text: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _check_text(network: Network, text: str) -> None:
    try:
        is_same = parse(text) == network
    except NetworkError as error:
        raise PlanError(f"{network.name} cannot be saved: its text is not read back\n{error}") from None
    if not is_same:
        raise PlanError(f"{network.name} cannot be saved: its text is read back as another network")


def _request_fields(request: Request) -> RequestFields:
    limits = request.memory_limit, request.largest, request.most_folded
    return RequestFields(request.mode, _minimize_field(request), sorted(request.trained), request.itemsize, *limits)


def _minimize_field(request: Request) -> str | dict[str, Any]:
    minimize = request.minimize
    if isinstance(minimize, str):
        return minimize
    if isinstance(minimize, Mapping):
        return dict(minimize)
    if isinstance(minimize, Machine):
        return {"machine": asdict(minimize)}
    raise PlanError("a plan that minimizes a function of a step cannot be saved\n  a file holds no code")


def _decisions(plan: Decision) -> Decisions:
    """Return the decisions for a network: which equations were inlined, and the trees of every regime."""
    inlined = find_inlined(plan.network, plan.merged)
    if merge(plan.network, inlined) != plan.merged:
        raise PlanError(f"the plan of {plan.network.name} cannot be saved: its equations are not those of its network")
    return Decisions(list(inlined), list(plan.free), [_regime_fields(regime) for regime in plan.regimes])


def _regime_fields(regime: Regime) -> RegimeFields:
    equations = [
        EquationFields(stage.equation.name, [_tree_fields(tree, regime.sizes) for tree in stage.trees])
        for stage in regime.stages
    ]
    return RegimeFields(regime.low, regime.high, equations, list(regime.recomputed))


def _tree_fields(tree: ContractionTree, sizes: Mapping[str, int]) -> TreeFields:
    return TreeFields(
        is_proven=tree.is_proven,
        is_pinned=tree.is_pinned,
        sliced=[index.name for index in tree.sliced],
        moves=list(find_moves(Topology(tree.region, sizes, sliced=tree.sliced), tree)),
        matmuls=[_matmul_fields(matmul) for matmul in tree.matmuls],
        gradients=[
            GradientFields(_matmul_fields(gradient.matmul), gradient.is_arranged, bool(gradient.added))
            for gradient in tree.gradients
        ],
        tile=None if tree.tile is None else TileFields(tree.tile.index.name, tree.tile.size),
    )


def _matmul_fields(matmul: MatmulLayout) -> MatmulFields:
    groups = matmul.outer, matmul.rows, matmul.columns, matmul.summed
    outer, rows, columns, summed = ([format_leg(leg) for leg in legs] for legs in groups)
    return MatmulFields(outer, rows, columns, summed, matmul.transposed)
