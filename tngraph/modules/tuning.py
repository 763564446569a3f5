"""Measurement of the candidates that the machine model predicts to be fastest, at the sizes that will be called.

A tuned plan records what was measured, on which device, and what the model had predicted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isqrt

import torch

from tngraph.compiler.pipeline import plan, timed_search
from tngraph.compiler.timed import Candidate, TimedSearch, by_autograd
from tngraph.errors import PlanError
from tngraph.language.binding import bind_sizes, compile_time_sizes
from tngraph.language.network import Network
from tngraph.modules.calibration import describe_device, machine_for, name_dtype, waiting
from tngraph.modules.layer import Layer, layer_class
from tngraph.modules.timing import MeasuredMachine, in_this_process, kernels_of
from tngraph.modules.verification import as_tuple, random_inputs
from tngraph.plans.dense import dense_equivalent
from tngraph.plans.measured import Measured
from tngraph.plans.plan import Plan
from tngraph.program.counts import evaluate_count
from tngraph.search.machine import Machine
from tngraph.search.objectives import Mode
from tngraph.search.orders import Search
from tngraph.search.regimes import RegimeTrees

TRIED = 6
"""The most candidates that are measured at one size."""
NEAR = 4.0
"""A candidate that the model predicts to take more than this many times the least time is not measured."""
ROUNDS = (5, 21)
"""The fewest and the most turns that a candidate gets; its time is the median of its turns."""
SECONDS = 0.2
"""The approximate time that a candidate runs in its turns; uncounted calls take at most as long again [s]."""
SECONDS_PER_TURN = 0.005
"""The approximate least length of a turn, in which a fast call is repeated [s]."""
BEHIND, SOME = (3.0, 1.5), 2
"""A candidate that is this many times slower than the fastest gets no more turns, unless its calls are shorter than a
turn. The first factor is for the first ``SOME`` turns, the second for later ones.
"""
TIE, MOST_TIED = 1.15, 3
"""Candidates within this factor of the fastest are measured once more, up to this many of them."""
CLOSE, AGAIN = 2.0, 2
"""A dense weight that takes between half and twice the time of the fastest candidate is measured this often again."""
MOST_DENSE = 2**28
"""A larger dense weight is not measured [bytes]."""
MOST_DENSE_SECONDS = 1.0
"""A dense weight that the model predicts to take longer is not measured [s]."""

Sizes = tuple[tuple[str, int], ...]
"""Run-time sizes by name."""
Run = tuple[Candidate, Measured]
"""A candidate and its measurement."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A tuned plan, and every measurement that was made for it."""

    plan: Plan
    trials: tuple[Measured, ...]

    def __str__(self) -> str:
        header = ("at", "way", "model [ms]", "measured [ms]", "measured / model", "")
        rows = [header, *(_row(trial, trial in self.plan.measured) for trial in self.trials)]
        rows += [_dense_row(compared) for compared in self.plan.measured if compared.dense is not None]
        widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(trial: Measured, is_kept: bool) -> tuple[str, ...]:
    times = f"{trial.model * 1e3:.3g}", f"{trial.seconds * 1e3:.3g}", f"{trial.seconds / trial.model:.2f}"
    return _at(trial), trial.way, *times, "kept" if is_kept else ""


def _dense_row(measured: Measured) -> tuple[str, ...]:
    assert measured.dense is not None
    milliseconds = f"{measured.dense * 1e3:.3g}"
    return _at(measured), "a dense weight", "", milliseconds, "", "faster" * measured.is_slower_than_dense


def _at(trial: Measured) -> str:
    return ", ".join(f"{name} = {value}" for name, value in trial.sizes)


def tune(
    network: Network,
    sizes: Mapping[str, int] | None = None,
    inputs: Sequence[Sequence[torch.Tensor]] = (),
    *,
    mode: Mode = "infer",
    machine: Machine | None = None,
    search: Search | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tuning:
    """Measure the fastest candidates for running a network, and plan the network for the best of them.

    If the network is a linear map, its best candidate is also compared with a dense weight in place of the params.

    Args:
        network: what to plan.
        sizes: as for `tngraph.plan`.
        inputs: inputs of the calls that count: one sequence of tensors per call. With one run-time size, the fastest
            candidate at a measured value is used up to the middle, on a log scale, between it and the next value.
        mode: ``infer`` measures a call, ``train`` a call with its backward pass, ``serve`` a call on folded weights.
        machine: the model that proposes candidates; if absent, that of the device, if it was calibrated.
        search: seed and effort of the planning.
        device: device to run on; that of the inputs if absent.
        dtype: type of the params; that of the inputs if absent.

    Raises:
        PlanError: no inputs, or several inputs between which several sizes vary.
        SizeError: inputs that do not fit.
    """
    if not inputs:
        raise PlanError("there is nothing to tune for\n  give the inputs of the calls that are to be fast")
    runner = _Runner(torch.device(device or inputs[0][0].device), dtype or inputs[0][0].dtype, mode)
    points = _read_points(network, sizes, inputs)
    is_free = len(_free_sizes(network, sizes)) == 1
    fixed = dict(sizes or {}) if is_free else {**(sizes or {}), **dict(points[0][0])}
    machine = machine or in_this_process(machine_for(runner.device, runner.dtype), runner.device)
    kernels = kernels_of(runner.device, runner.dtype, *runner.names)
    bench = MeasuredMachine.like(machine, kernels)
    itemsize = runner.dtype.itemsize
    finder = timed_search(network, fixed, machine=machine, bench=bench, mode=mode, itemsize=itemsize, search=search)
    try:
        tried = [_measure_candidates(finder, runner, tensors, at) for at, tensors in points]
    finally:
        kernels.release()
    fastest_runs = [fastest for _, fastest in tried]
    plan = finder.plan(_divide_sizes(fastest_runs, is_free), [measured for _, measured in fastest_runs])
    return Tuning(plan, tuple(measured for runs, _ in tried for _, measured in runs))


def _free_sizes(network: Network, sizes: Mapping[str, int] | None) -> list[str]:
    return [name for name in network.runtime_sizes() if name not in (sizes or {})]


def _read_points(
    network: Network, sizes: Mapping[str, int] | None, inputs: Sequence[Sequence[torch.Tensor]]
) -> list[tuple[Sizes, Sequence[torch.Tensor]]]:
    """Return the free sizes of each call with its inputs, in ascending order, the last call of each size.

    Raises:
        PlanError: several sizes vary between the calls.
        SizeError: inputs that do not fit.
    """
    free = _free_sizes(network, sizes)
    bound = [_bind(network, tensors, sizes) for tensors in inputs]
    points = {
        tuple((name, numbers[name]) for name in free): tensors for numbers, tensors in zip(bound, inputs, strict=True)
    }
    if len(free) != 1 and len(points) > 1:
        raise PlanError(f"the inputs differ in {', '.join(free)}\n  give numbers for all of these but one")
    return sorted(points.items(), key=lambda point: point[0])


def _divide_sizes(fastest_runs: Sequence[Run], is_free: bool) -> list[RegimeTrees]:
    """Return the ranges of the one free size, which end at the geometric means of the measured values."""
    values = [measured.sizes[0][1] for _, measured in fastest_runs] if is_free else [1]
    ends = [isqrt(low * high) for low, high in pairwise(values)]
    ranges = zip([1, *(end + 1 for end in ends)], [*ends, None], fastest_runs, strict=True)
    return [(low, high, candidate.trees) for low, high, (candidate, _) in ranges]


def _measure_candidates(
    finder: TimedSearch, runner: _Runner, tensors: Sequence[torch.Tensor], at: Sizes
) -> tuple[list[Run], Run]:
    """Return the candidates measured for some inputs, in the model's order, and the fastest of them.

    Finally the fastest is compared with a dense weight.
    """
    candidates = finder.candidates(**dict(at))
    tried = choose_tried(candidates)
    runs = dict(zip(tried, runner.measure(finder, tried, tensors, at), strict=True))
    again = _choose_again(candidates, runs)
    if any(candidate not in runs for candidate in again) or len(_find_close(runs)) > 1:
        _average(runs, dict(zip(again, runner.measure(finder, again, tensors, at), strict=True)))
        fastest = min(again, key=lambda candidate: runs[candidate].seconds)
    else:
        (fastest,) = _find_close(runs)
    runs[fastest] = replace(runs[fastest], dense=_time_dense(finder, runner, tensors, (fastest, runs[fastest])))
    return [(candidate, runs[candidate]) for candidate in candidates if candidate in runs], (fastest, runs[fastest])


def _find_close(runs: Mapping[Candidate, Measured]) -> list[Candidate]:
    """Return the fastest candidate, and those nearly as fast."""
    fastest, *others = sorted(runs, key=lambda candidate: runs[candidate].seconds)
    close = [candidate for candidate in others if runs[candidate].seconds <= TIE * runs[fastest].seconds]
    return [fastest, *close[:MOST_TIED]]


def _choose_again(candidates: Sequence[Candidate], runs: Mapping[Candidate, Measured]) -> list[Candidate]:
    """Return the candidates to measure once more: the close ones, and their variants with the other backward pass."""
    orders = {by_autograd(candidate.trees) for candidate in _find_close(runs)}
    return [candidate for candidate in candidates if by_autograd(candidate.trees) in orders]


def _average(runs: dict[Candidate, Measured], second: Mapping[Candidate, Measured]) -> None:
    """Add second measurements to the first ones. They count relative to the fastest candidate's in the same turns."""
    fastest = _find_close(runs)[0]
    share = runs[fastest].seconds / second[fastest].seconds
    for candidate, measured in second.items():
        before = [runs[candidate].seconds] if candidate in runs else []
        runs[candidate] = replace(measured, seconds=statistics.mean([*before, share * measured.seconds]))


def _time_dense(finder: TimedSearch, runner: _Runner, tensors: Sequence[torch.Tensor], run: Run) -> float | None:
    """Return the time of the network with a dense weight [s].

    It is the candidate's time, multiplied by the ratio of both in the same turns.

    Return None if there is no other dense network to compare with, as if the weight is folded anyway, or if the dense
    weight is far too large.
    """
    candidate, measured = run
    task, request = finder.problem.task, finder.problem.task.request
    numbers = task.numbers_at(**dict(measured.sizes))
    dense = dense_equivalent(finder.problem.merged)
    if dense is None or request.mode == "serve" or not _has_factors(finder.problem.merged):
        return None
    if request.itemsize * evaluate_count(dense.params, numbers) > MOST_DENSE:
        return None
    sizes = {**task.fixed, **dict(measured.sizes)}
    other = plan(dense.network, sizes, mode=request.mode, minimize=request.machine, itemsize=request.itemsize)
    if other.regimes[0].seconds(numbers) > MOST_DENSE_SECONDS:
        return None
    both = [finder.plan([(1, None, candidate.trees)]), other]
    shares = [runner.compare(both, tensors)]
    if 1 / CLOSE < shares[0] < CLOSE:
        shares += [runner.compare(both, tensors) for _ in range(AGAIN)]
    return measured.seconds * statistics.median(shares)


def _has_factors(network: Network) -> bool:
    """Return whether a weight of a linear map is a product of several tensors, and not already dense."""
    inputs = {port.name for port in network.inputs}
    (equation,) = network.equations
    return any(sum(access.source not in inputs for access in term.accesses) > 1 for term in equation.terms)


def choose_tried(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates to measure, fastest first: the best of each kind, and one of every order.

    Candidates are of one kind if they agree in whether they run without tiles, and in whether the plan or autograd
    defines their backward pass.

    Args:
        candidates: all candidates, fastest first by the model; those far slower than the first are left out.
    """
    kinds: dict[object, Candidate] = {}
    orders: dict[object, Candidate] = {}
    for candidate in candidates:
        kinds.setdefault((candidate.is_whole, candidate.is_planned), candidate)
        orders.setdefault(candidate.orders, candidate)
    wanted = dict.fromkeys([*kinds.values(), *orders.values(), *candidates])
    tried = [candidate for candidate in wanted if candidate.seconds <= NEAR * candidates[0].seconds][:TRIED]
    return [candidate for candidate in candidates if candidate in tried]


def random_calls(
    network: Network, sizes: Mapping[str, int], values: Iterable[int], seed: int = 0
) -> list[list[torch.Tensor]]:
    """Return random inputs for several values of the network's first run-time size without a number.

    There is one call per value, or a single call if all run-time sizes have numbers.

    Args:
        network: the network that takes the inputs.
        sizes: numbers for the other run-time sizes, and for compile-time ones.
        values: values of the first run-time size.
        seed: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    runtime = {name: number for name, number in sizes.items() if name in network.runtime_sizes()}
    compile_time = compile_time_sizes(network, {name: sizes[name] for name in sizes if name not in runtime})
    free = [name for name in network.runtime_sizes() if name not in runtime][:1]
    points = [dict.fromkeys(free, value) for value in values] if free else [{}]
    return [
        [x.float() for x in random_inputs(network, compile_time, generator, {**runtime, **point})] for point in points
    ]


def _bind(network: Network, tensors: Sequence[torch.Tensor], sizes: Mapping[str, int] | None) -> Mapping[str, int]:
    shapes = {port.name: tuple(x.shape) for port, x in zip(network.inputs, tensors, strict=True)}
    settable = {name: number for name, number in (sizes or {}).items() if name not in network.runtime_sizes()}
    return bind_sizes(network, shapes, settable)


@dataclass(frozen=True, slots=True)
class _Runner:
    """The device, type and mode in which candidates are measured."""

    device: torch.device
    dtype: torch.dtype
    mode: Mode

    @property
    def names(self) -> tuple[str, str]:
        """The names of the device and of the type of numbers, as a plan stores them."""
        return describe_device(self.device), name_dtype(self.dtype, self.device)

    def measure(
        self, finder: TimedSearch, tried: Sequence[Candidate], inputs: Sequence[torch.Tensor], at: Sizes
    ) -> list[Measured]:
        """Return the measurement of each candidate."""
        times = self.time([finder.plan([(1, None, candidate.trees)]) for candidate in tried], inputs)
        return [
            Measured(*self.names, at, finder.describe(candidate), candidate.seconds, seconds)
            for candidate, seconds in zip(tried, times, strict=True)
        ]

    def compare(self, plans: Sequence[Plan], inputs: Sequence[torch.Tensor]) -> float:
        """Return the time of the second of two plans as a multiple of the first one's."""
        first, second = self.time(plans, inputs)
        return second / first

    def time(self, plans: Sequence[Plan], inputs: Sequence[torch.Tensor]) -> list[float]:
        """Return the median time of a call of each plan, where the plans take turns [s]."""
        settle_memory(self.device)
        moved = [x.to(self.device, self.dtype if x.is_floating_point() else None) for x in inputs]
        layers = [layer_class(variant)(device=self.device, dtype=self.dtype) for variant in plans]
        calls = [_make_call(layer, moved, self.mode) for layer in layers]
        first = [min(self._time(call, 1) for _ in range(2)) for call in calls]
        repeats = [max(1, round(SECONDS_PER_TURN / seconds)) for seconds in first]
        least, most = ROUNDS
        rounds = min(most, max(least, round(SECONDS / max(SECONDS_PER_TURN, min(first)))))
        least_seconds, times = [*first], [list[float]() for _ in calls]
        for turn in range(rounds):
            for k, call in enumerate(calls):
                if least_seconds[k] <= max(SECONDS_PER_TURN, BEHIND[turn >= SOME] * min(least_seconds)):
                    times[k].append(self._time(call, repeats[k]))
                    least_seconds[k] = min(least_seconds[k], times[k][-1])
        return [statistics.median(taken or [seconds]) for taken, seconds in zip(times, first, strict=True)]

    def _time(self, call: Callable[[], object], count: int) -> float:
        """Return the mean time of some calls [s].

        An uncounted call comes first, since another candidate has left the memory in another state.
        """
        wait = waiting(self.device)
        call()
        wait()
        began = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        return (time.perf_counter() - began) / count


def settle_memory(device: torch.device) -> None:
    """Bring the memory of the process to the state it has after some work, in which freed blocks are kept and reused.

    The C library of Linux returns freed blocks to the system until it has seen a large one freed, up to 32 MiB.
    """
    if device.type == "cpu":
        torch.empty(31 << 20, dtype=torch.uint8)


def _make_call(layer: Layer, inputs: Sequence[torch.Tensor], mode: Mode) -> Callable[[], object]:
    if mode != "train":
        return torch.no_grad()(lambda: layer(*inputs))
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    wanted = [*(x for x in leaves if x.requires_grad), *layer.parameters()]
    ones = [torch.ones_like(y, memory_format=torch.contiguous_format) for y in as_tuple(layer(*leaves))]

    def step() -> object:
        return torch.autograd.grad(as_tuple(layer(*leaves)), wanted, ones, allow_unused=True)

    return step
