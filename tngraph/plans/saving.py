"""A plan as a JSON file: the decisions, and beside them their consequences, for people to read and `loading` to check.

The decisions are few: the network as text, the request, the values of the sizes, which equations were inlined, and the
steps of every tree. What each step contracts, its kind and its legs follow from them. `loading` derives all of that
again and compares.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tngraph.errors import NetworkError, PlanError
from tngraph.files import explain, write_whole
from tngraph.language.network import Network
from tngraph.language.rewrites import find_inlined, merge
from tngraph.language.text.format import format_network
from tngraph.language.text.parsing import parse
from tngraph.plans.decision import Decision
from tngraph.plans.regime import Regime
from tngraph.plans.table import format_leg, format_value
from tngraph.search.machine import Machine
from tngraph.search.objectives import Request
from tngraph.search.region import ContractionTree, Gradient, MatmulLayout, Region, Step

FORMAT = "tngraph plan"
VERSION = 1
"""The version of the file format. It changes when the meaning of a file changes."""

_LIST = re.compile(r'(\[)\n *((?:[^\[\]{}"]|"[^"\n]*")*?)\n *(?=\])')
_OBJECT = re.compile(r"(\{)\n *([^{}]*?)\n *(?=\})")
_BREAK = re.compile(r"\n *")

Fields = dict[str, Any]


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
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": digest(text),
        "network": text,
        "request": _request_fields(plan.request),
        "sizes": dict(plan.sizes),
        **_decisions(plan),
        "unpinned": None if plan.unpinned is None else _decisions(plan.unpinned),
        "measured": [{**asdict(measured), "sizes": dict(measured.sizes)} for measured in plan.measured],
    }
    return _compact(json.dumps(fields, indent=1, allow_nan=False)) + "\n"


def _compact(text: str) -> str:
    """Put each innermost list and object of indented JSON on one line. Strings in JSON hold no newline."""
    for innermost in (_LIST, _OBJECT):
        text = innermost.sub(lambda match: match[1] + _BREAK.sub(" ", match[2]), text)
    return text


def digest(text: str) -> str:
    """Return the sha256 of a text. Surrogates, which a JSON file can contain, are allowed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _check_text(network: Network, text: str) -> None:
    try:
        is_same = parse(text) == network
    except NetworkError as error:
        raise PlanError(f"{network.name} cannot be saved: its text is not read back\n{error}") from None
    if not is_same:
        raise PlanError(f"{network.name} cannot be saved: its text is read back as another network")


def _request_fields(request: Request) -> Fields:
    return {
        "mode": request.mode,
        "minimize": _minimize_field(request),
        "trained": sorted(request.trained),
        "itemsize": request.itemsize,
        "memory_limit": request.memory_limit,
        "largest": request.largest,
        "most_folded": request.most_folded,
    }


def _minimize_field(request: Request) -> Any:
    minimize = request.minimize
    if isinstance(minimize, str):
        return minimize
    if isinstance(minimize, Mapping):
        return dict(minimize)
    if isinstance(minimize, Machine):
        return {"machine": asdict(minimize)}
    raise PlanError("a plan that minimizes a function of a step cannot be saved\n  a file holds no code")


def _decisions(plan: Decision) -> Fields:
    """Return the decisions for a network: which equations were inlined, and the trees of every regime."""
    inlined = find_inlined(plan.network, plan.merged)
    if merge(plan.network, inlined) != plan.merged:
        raise PlanError(f"the plan of {plan.network.name} cannot be saved: its equations are not those of its network")
    return {
        "inlined": list(inlined),
        "free": list(plan.free),
        "regimes": [_regime_fields(regime) for regime in plan.regimes],
    }


def _regime_fields(regime: Regime) -> Fields:
    trees = {stage.equation.name: [_tree_fields(tree) for tree in stage.trees] for stage in regime.stages}
    again = [list(interval) for interval in regime.recomputed]
    return {"first": regime.low, "last": regime.high, "trees": trees, "recomputed": again}


def _tree_fields(tree: ContractionTree) -> Fields:
    return {
        "contracts": show_accesses(tree.region),
        "is_proven": tree.is_proven,
        "is_pinned": tree.is_pinned,
        "sliced": [index.name for index in tree.sliced],
        "steps": [show_step(step) for step in tree.steps],
        "matmuls": [show_matmul(matmul) for matmul in tree.matmuls],
        "gradients": [show_gradient(gradient) for gradient in tree.gradients],
        "tile": None if tree.tile is None else {"index": tree.tile.index.name, "size": tree.tile.size},
    }


def show_accesses(region: Region) -> list[str]:
    """Return the accesses of a region, which are the values 0, 1, … of its tree, as the language writes them."""
    return [format_value(access.source, access.legs) for access in region.accesses]


def show_step(step: Step) -> Fields:
    """Return a step as JSON fields, with its legs as the language writes them."""
    return {"operands": list(step.operands), "kind": step.kind, "legs": show_legs(step)}


def show_matmul(matmul: MatmulLayout) -> Fields:
    """Return a matmul layout as JSON fields: its legs in the language, and which matrices are transposed."""
    groups = {
        group: [format_leg(leg) for leg in legs] for group, legs in zip(matmul._fields[:-1], matmul[:-1], strict=True)
    }
    return {**groups, "transposed": list(matmul.transposed)}


def show_gradient(gradient: Gradient) -> Fields:
    """Return a gradient as JSON fields, with its step, operand and matmul layout."""
    matmul = show_matmul(gradient.matmul)
    named = {"step": gradient.step, "operand": gradient.operand, "matmul": matmul, "arranged": gradient.is_arranged}
    return {**named, "added": bool(gradient.added)}


def show_legs(step: Step) -> list[str]:
    """Return the legs of a step's result as the language writes them."""
    return [format_leg(leg) for leg in step.legs]
