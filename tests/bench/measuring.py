"""Wall-clock times taken in turns, and what this machine can do at best.

Contenders are timed round after round, so that a slow minute of the machine is shared by all. A turn repeats a short
call until it lasts milliseconds. Every contender has an equal share of a budget, and its rounds are spread evenly over
the whole: a slow one takes part in few.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tngraph.modules.calibration import name_dtype, waiting

Call = Callable[[], object]
SECONDS_PER_TURN = 0.005
MOST_ROUNDS = 61
LEAST_ROUNDS = 3
TOO_LONG = 2.0
"""A call that takes so many seconds is timed once."""
LIBRARIES = ("opt_einsum", "cotengra", "quimb", "tensorly", "tensorly-torch", "tednet", "torchTT", "tensorkrowch")


@dataclass(frozen=True)
class Timing:
    """What a contender took.

    Attributes:
        median: of the rounds [seconds].
        spread: the interquartile range relative to the median; None with fewer than three rounds.
        rounds: how many there were.
        repeats: calls per round, of which a round is the mean.
    """

    median: float
    spread: float | None
    rounds: int
    repeats: int


class Clock:
    """Wall-clock seconds of calls on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.synchronise = device, waiting(device)

    def time(self, call: Call, repeats: int = 1) -> float:
        """Mean seconds of so many calls, after one that finds cache and memory as another contender has left them."""
        call()
        self.synchronise()
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        self.synchronise()
        return (time.perf_counter() - began) / repeats


class Neighbours:
    """How much of the processor other processes take, from the moment it is made on.

    Threads that wait for each other at every step are slowed many times over by a busy core, and that differently from
    contender to contender: a cell that was measured beside others is worth little.
    """

    def __init__(self) -> None:
        self.start = _ticks()

    def share(self) -> float | None:
        """Their part of all cores' time; None where the system does not say."""
        if self.start is None or (now := _ticks()) is None or now[0] == self.start[0]:
            return None
        total, busy, own = (after - before for after, before in zip(now, self.start, strict=True))
        return max(0.0, (busy - own) / total)


def _ticks() -> tuple[float, float, float] | None:
    """Time of all cores together, of those at work, and of this process [clock ticks]."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    user, nice, system, idle, waiting, interrupts, soft, stolen = fields
    busy = user + nice + system + interrupts + soft + stolen
    own = os.times()
    return busy + idle + waiting, busy, (own.user + own.system) * os.sysconf("SC_CLK_TCK")


@contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure(calls: Mapping[str, Call], clock: Clock, budget: float) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time calls in turns.

    Args:
        calls: by name.
        clock: of their device.
        budget: about how long all of it may take [seconds].

    Returns:
        The timing of each, and of those that failed the error instead.
    """
    first, failed = dict[str, float](), dict[str, str]()
    with without_collection():
        for name, call in calls.items():
            try:
                first[name] = time_first(call, clock)
            except Exception as error:  # a foreign library out of memory, say: the others are timed
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        times = {name: [seconds] for name, seconds in first.items() if seconds > TOO_LONG}
        repeats = {name: max(1, round(SECONDS_PER_TURN / seconds)) for name, seconds in first.items()}
        turns = {name: plan_rounds(first[name], repeats[name], budget / len(first)) for name in first.keys() - times}
        times.update({name: [] for name in turns})
        total = max(turns.values(), default=0)
        for number in range(total):
            for name in first:  # in their order, and not in that of a set
                if name in turns and is_due(number, turns[name], total):
                    times[name].append(clock.time(calls[name], repeats[name]))
    return {name: summarise(times[name], repeats[name]) for name in first}, failed


def time_first(call: Call, clock: Clock) -> float:
    """Seconds of one call, the shortest of a few where they are short. It has run before, when it was checked."""
    first = clock.time(call)
    return first if first > 0.1 else min(clock.time(call) for _ in range(3))


def plan_rounds(seconds: float, repeats: int, share: float) -> int:
    """How many rounds of so many calls fit into a share of the budget."""
    turn = seconds * (repeats + 1)
    return min(MOST_ROUNDS, max(LEAST_ROUNDS, int(share / turn)))


def is_due(number: int, rounds: int, total: int) -> bool:
    """Whether a contender of so many rounds takes part in this one: they are spread evenly over the total."""
    return (number + 1) * rounds // total > number * rounds // total


def summarise(times: Sequence[float], repeats: int) -> Timing:
    """Median and spread of rounds."""
    median = statistics.median(times)
    if len(times) < LEAST_ROUNDS:
        return Timing(median, None, len(times), repeats)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, (high - low) / median, len(times), repeats)


# The machine.


class Reference(NamedTuple):
    """Something large that a device is measured by: how much work a call does, in FLOPs or bytes."""

    work: int
    call: Call


@cache
def references(device: torch.device, dtype: torch.dtype) -> dict[str, Reference]:
    """A large square matrix product and a large copy, reading and writing counted, by what they say per second."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.ones(2**28, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return {
        "matmul_flops_per_second": Reference(2 * size**3, lambda: torch.mm(a, b, out=out)),
        "copy_bytes_per_second": Reference(2 * source.numel(), lambda: target.copy_(source)),
    }


def measure_rates(clock: Clock, dtype: torch.dtype) -> dict[str, float]:
    """What the device does at best: arithmetic and copies, each by the shortest of eleven calls."""
    found = references(clock.device, dtype)
    return {name: work / min(clock.time(call) for _ in range(11)) for name, (work, call) in found.items()}


def describe_machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the run is on: processor and versions, and nothing that names the machine."""
    return {
        "processor": read_processor(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cores": len(_cores()),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "dtype": name_dtype(dtype, device),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def read_processor() -> str:
    """The processor's model name and widest vector instructions, as Linux says; else what Python says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name, flags = found.get("model name", platform.machine()), found.get("flags", "").split()
    vectors = next((text for flag, text in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    return f"{name}, {vectors}" if vectors else name


def _cores() -> Sequence[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
