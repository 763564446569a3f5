"""Whole plans on disk, for searches that compare many: those for time, and fronts of cost against memory.

A file holds plans as `Plan.save` writes them. It is read like any saved plan, and not trusted. Its name is a hash of
the network as text, the sizes, the request, the effort, and the code that plans. As with `cache`, a file that cannot be
read is not an error: the plans are searched then.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from tngraph.compiler.cache import LONGEST_ENTRY, cache_folder, check_sum, code_version, write_entry
from tngraph.compiler.tasks import Task
from tngraph.errors import NetworkError, PlanError
from tngraph.files import read_bytes
from tngraph.language.text.format import format_network
from tngraph.plans.loading import parse_plan
from tngraph.plans.plan import Plan
from tngraph.plans.saving import format_plan_file
from tngraph.search.objectives import PerStep


def remember_plans(task: Task, kind: str, search_plans: Callable[[], Sequence[Plan]]) -> Sequence[Plan]:
    """Return the plans that were found for a task before, or else search them.

    Args:
        task: what to plan. A task with pins or a user's function is always searched.
        kind: what the search is for, as ``"front"``.
        search_plans: the search.
    """
    folder = cache_folder()
    if folder is None or task.pins or isinstance(task.request.rate, PerStep):
        return search_plans()
    place = folder / f"{_key(task, kind)}.json"
    remembered = _read_plans(place, task)
    if remembered is not None:
        return remembered
    plans = search_plans()
    with suppress(PlanError, NetworkError):
        body = json.dumps([format_plan_file(plan) for plan in plans])
        write_entry(place, f"{check_sum(body.encode())}\n{body}")
    return plans


def _key(task: Task, kind: str) -> str:
    effort = repr(replace(task.search, progress=None, parallel=None))
    request = repr(replace(task.request, trained=frozenset())), sorted(task.request.trained)
    parts = [_planning_version(), kind, format_network(task.network), sorted(task.fixed.items()), request, effort]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=1)
def _planning_version() -> str:
    """Return a hash of the code that a plan depends on, that of the search included."""
    digest = hashlib.sha256(code_version().encode())
    package = Path(__file__).parents[1]
    for room in ("language", "program", "plans", "compiler"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read_plans(place: Path, task: Task) -> list[Plan] | None:
    """Return the plans in a file, or None if it is missing or is of another task. Then it is removed."""
    with suppress(OSError):
        total, _, body = read_bytes(place, LONGEST_ENTRY).partition(b"\n")
        try:
            is_whole = total.decode() == check_sum(body)
            plans = [parse_plan(text.encode()) for text in json.loads(body)] if is_whole else []
        except (AttributeError, TypeError, ValueError, RecursionError, PlanError):
            plans = []
        if plans and all(plan.network == task.network and plan.request == task.request for plan in plans):
            os.utime(place)  # the file that was used last is removed last
            return plans
        place.unlink()
    return None
