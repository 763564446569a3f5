"""The cells of a case, timed in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import torch

from tests.bench import measuring
from tests.bench.cases import BY_NAME, Case
from tests.bench.contenders import GRAPH, OURS, Captured, Setting, gather, make_call, make_cotangent, make_input
from tests.bench.measuring import Clock, Neighbours, measure
from tests.bench.results import Cell, write_cell
from tngraph.modules.calibration import computing_in

P, T = ParamSpec("P"), TypeVar("T")
UNDISTURBED = 0.05
"""A cell is measured again if other processes took more than this part of the processor."""
KEEPING = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""What has the C library of Linux keep the memory that is freed, read when a process starts. Otherwise it depends on
all that has run before in it whether a large result is written into new pages, which takes several times as long."""


@dataclass(frozen=True)
class Run:
    """How a run is made.

    Attributes:
        device: as torch names it.
        dtype: the type of numbers, by its name.
        threads: of torch.
        budget: per cell [seconds].
        tries: how often a cell is measured at most, until no other process is in the way.
        is_quick: with one batch per case.
        with_compiled: with ``torch.compile`` of the compiled layer.
    """

    device: str
    dtype: str
    threads: int
    budget: float
    tries: int
    is_quick: bool
    with_compiled: bool


@contextmanager
def setting_up(how: Run) -> Iterator[Setting]:
    """Where and in what numbers a process runs, with so many threads."""
    torch.set_num_threads(how.threads)
    with computing_in(how.dtype, how.device) as dtype:
        yield Setting(torch.device(how.device), dtype)


def in_new_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns in a process that has done nothing else, and that keeps its memory."""
    context = multiprocessing.get_context("spawn")
    with patch.dict(os.environ, KEEPING), ProcessPoolExecutor(1, context, initializer=_end_with_parent) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _end_with_parent() -> None:
    """See to it that this process ends when the one that started it does: it would disturb the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_case(name: str, how: Run) -> list[Cell]:
    """All cells of a case."""
    case = BY_NAME[name]
    batches = case.batches[1:2] if how.is_quick else case.batches
    with setting_up(how) as setting:
        return [run_cell(case, batch, is_training, setting, how) for batch in batches for is_training in (False, True)]


def run_cell(case: Case, batch: int, is_training: bool, setting: Setting, how: Run) -> Cell:
    """One case at one batch in one pass; of several tries the one that others disturbed least."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of foreign libraries, at every call
        field = gather(case, batch, is_training, setting, how.with_compiled)
        x, cotangent = make_input(case, batch, setting), make_cotangent(case, batch, setting)
        calls = {each.name: make_call(each, x, cotangent, is_training) for each in field.contenders}
        if setting.device.type == "cuda":
            calls[GRAPH] = Captured(calls[OURS])
        known = measuring.references(setting.device, setting.dtype)
        calls.update({name: reference.call for name, reference in known.items()})
        tried = []
        for _ in range(how.tries):
            neighbours = Neighbours()
            measured = measure(calls, Clock(setting.device), how.budget)
            tried.append((neighbours.share() or 0.0, *measured))
            if tried[-1][0] <= UNDISTURBED:
                break
    disturbed, timings, failed = min(tried, key=lambda one: one[0])
    rates = {name: reference.work / timings.pop(name).median for name, reference in known.items()}
    cell = write_cell(case, batch, is_training, field, timings, failed, rates, setting.dtype.itemsize)
    return {**cell, "disturbed": disturbed}
