"""Measuring the few ways that the model of a machine likes best, and keeping the fastest: for sizes that are called.

A plan that was tuned says what was measured, where, and what the model had said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isqrt

import torch

from tngraph.errors import PlanError
from tngraph.kernels.cost import evaluate_count
from tngraph.language.binding import bind_sizes, compile_time_sizes
from tngraph.language.network import Network
from tngraph.modules.calibration import describe_device, machine_for, name_dtype, waiting
from tngraph.modules.layer import Layer, layer_class
from tngraph.modules.timing import MeasuredMachine, in_this_process, kernels_of
from tngraph.modules.verification import as_tuple, random_inputs
from tngraph.planning.machine import Machine
from tngraph.planning.objectives import Mode
from tngraph.planning.search import Search
from tngraph.plans.dense import dense_equivalent
from tngraph.plans.pipeline import plan, timed_search
from tngraph.plans.plans import Measured, Plan
from tngraph.plans.timed import Candidate, TimedSearch, by_autograd

TRIED = 6
"""The most ways that are measured at one size."""
NEAR = 4.0
"""A way that the model gives more than this many times the least time is not measured."""
ROUNDS = (5, 21)
"""The least and the most turns that a way gets; its time is the median."""
SECONDS = 0.2
"""About so long a way runs within these turns, and at most as long again in calls that are not counted [s]."""
SECONDS_PER_TURN = 0.005
"""A turn lasts at least about so long: a fast call is repeated [s]."""
BEHIND, SOME = (3.0, 1.5), 2
"""A way that has taken so many times as long as the fastest, at first or after some turns, gets no more of them, unless
its calls are shorter than a turn."""
TIE, MOST_TIED = 1.15, 3
"""Ways that took no more than so many times as long as the fastest, and so many of them, are measured once more."""
CLOSE, AGAIN = 2.0, 2
"""A dense weight that takes neither twice the time of the fastest way nor half of it is measured so often again."""
MOST_DENSE = 2**28
"""A larger dense weight is not measured [bytes]."""
MOST_DENSE_SECONDS = 1.0
"""Nor is one of which the model says that it takes longer [s]."""

Sizes = tuple[tuple[str, int], ...]
"""Run-time sizes by name."""
Run = tuple[Candidate, Measured]
"""A way, and what was measured of it."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A tuned plan, and all that was measured for it."""

    plan: Plan
    trials: tuple[Measured, ...]

    def __str__(self) -> str:
        header = ("at", "way", "model [ms]", "measured [ms]", "measured / model", "")
        rows = [header, *(_row(trial, trial in self.plan.measured) for trial in self.trials)]
        rows += [_dense_row(each) for each in self.plan.measured if each.dense is not None]
        widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(trial: Measured, is_kept: bool) -> tuple[str, ...]:
    times = f"{trial.model * 1e3:.3g}", f"{trial.seconds * 1e3:.3g}", f"{trial.seconds / trial.model:.2f}"
    return _at(trial), trial.way, *times, "kept" if is_kept else ""


def _dense_row(kept: Measured) -> tuple[str, ...]:
    assert kept.dense is not None
    return _at(kept), "a dense weight", "", f"{kept.dense * 1e3:.3g}", "", "faster" * kept.is_slower_than_dense


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
    """Measure the best few ways to run a network, and plan it for the fastest.

    That is measured beside the network with a dense weight in place of its params, where it is a linear map.

    Args:
        network: what to plan.
        sizes: as for `tngraph.plan`.
        inputs: what the layer is called with: one sequence of tensors per size that counts. With one run-time size,
            the fastest way at each holds up to the middle, on a log scale, between it and the next.
        mode: ``infer`` measures a call, ``train`` a call with its backward pass, ``serve`` a call on folded weights.
        machine: whose model proposes; that of the device, if it was calibrated, when absent.
        search: seed and effort.
        device: where it runs; that of the inputs when absent.
        dtype: of the params; that of the inputs when absent.

    Raises:
        PlanError: no inputs, or several where several sizes vary.
        SizeError: inputs that do not fit.
    """
    if not inputs:
        raise PlanError("there is nothing to tune for\n  give the inputs of the calls that are to be fast")
    runner = _Runner(torch.device(device or inputs[0][0].device), dtype or inputs[0][0].dtype, mode)
    bound = [_bind(network, given, sizes) for given in inputs]
    names = [name for name in network.runtime_sizes() if name not in (sizes or {})]
    points = {tuple((name, each[name]) for name in names): given for each, given in zip(bound, inputs, strict=True)}
    fixed = dict(sizes or {})
    if len(names) != 1:
        if len(points) > 1:
            raise PlanError(f"the inputs differ in {', '.join(names)}\n  give numbers for all of these but one")
        fixed.update(next(iter(points)))
    machine = machine or in_this_process(machine_for(runner.device, runner.dtype), runner.device)
    itemsize = runner.dtype.itemsize
    kernels = kernels_of(runner.device, runner.dtype, *runner.names)
    bench = MeasuredMachine.like(machine, kernels)
    finder = timed_search(network, fixed, machine=machine, bench=bench, mode=mode, itemsize=itemsize, search=search)
    trials: list[Measured] = []
    kept: list[Run] = []
    try:
        for at, given in sorted(points.items(), key=lambda point: point[0]):
            made, fastest = _try(finder, runner, given, at)
            trials.extend(measured for _, measured in made)
            kept.append(fastest)
    finally:
        kernels.release()
    values = [trial.sizes[0][1] for _, trial in kept] if len(names) == 1 else [1]
    ends = [isqrt(low * high) for low, high in pairwise(values)]
    ranges = zip([1, *(end + 1 for end in ends)], [*ends, None], kept, strict=True)
    found = [(low, high, candidate.trees) for low, high, (candidate, _) in ranges]
    return Tuning(finder.plan(found, [trial for _, trial in kept]), tuple(trials))


def _try(finder: TimedSearch, runner: _Runner, given: Sequence[torch.Tensor], at: Sizes) -> tuple[list[Run], Run]:
    """The ways that are tried for some inputs, as the model likes them, and the fastest of them.

    Those that took about as long are measured once more, each beside itself with the other backward pass, and the
    fastest beside a dense weight; what all these take of its time in the same turns counts.
    """
    candidates = finder.candidates(**dict(at))
    tried = choose_tried(candidates)
    made = dict(zip(tried, runner.measure(finder, tried, given, at), strict=True))
    fastest, *others = sorted(made, key=lambda each: made[each].seconds)
    close = [each for each in others if made[each].seconds <= TIE * made[fastest].seconds][:MOST_TIED]
    kinds = {by_autograd(each.trees) for each in (fastest, *close)}
    again = [each for each in candidates if by_autograd(each.trees) in kinds]
    if close or not all(each in made for each in again):
        found = dict(zip(again, runner.measure(finder, again, given, at), strict=True))
        share = made[fastest].seconds / found[fastest].seconds
        for each, measured in found.items():
            before = [made[each].seconds] if each in made else []
            made[each] = replace(measured, seconds=statistics.mean([*before, share * measured.seconds]))
        fastest = min(again, key=lambda each: made[each].seconds)
    made[fastest] = replace(made[fastest], dense=_time_dense(finder, runner, given, (fastest, made[fastest])))
    return [(each, made[each]) for each in candidates if each in made], (fastest, made[fastest])


def _time_dense(finder: TimedSearch, runner: _Runner, given: Sequence[torch.Tensor], way: Run) -> float | None:
    """What the network takes with a dense weight, as much as it took of the way in the same turns [s].

    None where that is nothing else, as if it is folded anyway, or far too large.
    """
    candidate, measured = way
    task, goal = finder.task, finder.task.goal
    numbers = task.numbers_at(**dict(measured.sizes))
    dense = dense_equivalent(finder.merged)
    if dense is None or goal.mode == "serve" or not _has_factors(finder.merged):
        return None
    if goal.itemsize * evaluate_count(dense.params, numbers) > MOST_DENSE:
        return None
    sizes = {**task.given, **dict(measured.sizes)}
    other = plan(dense.network, sizes, mode=goal.mode, minimize=goal.machine, itemsize=goal.itemsize)
    if other.regimes[0].seconds(numbers) > MOST_DENSE_SECONDS:
        return None
    both = [finder.plan([(1, None, candidate.trees)]), other]
    shares = [runner.compare(both, given)]
    if 1 / CLOSE < shares[0] < CLOSE:
        shares += [runner.compare(both, given) for _ in range(AGAIN)]
    return measured.seconds * statistics.median(shares)


def _has_factors(network: Network) -> bool:
    """Whether a weight of a linear map is a product of several, and not dense as it is."""
    inputs = {port.name for port in network.inputs}
    (equation,) = network.equations
    return any(sum(access.source not in inputs for access in term.accesses) > 1 for term in equation.terms)


def choose_tried(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The ways that are measured, fastest first: the best of each kind, and one of every order.

    A kind is whether all runs whole, and whose backward pass it has.

    Args:
        candidates: the fastest first; those that the model gives far more time than that are left out.
    """
    kinds: dict[object, Candidate] = {}
    orders: dict[object, Candidate] = {}
    for each in candidates:
        kinds.setdefault((each.is_whole, each.is_planned), each)
        orders.setdefault(each.orders, each)
    wanted = dict.fromkeys([*kinds.values(), *orders.values(), *candidates])
    tried = [each for each in wanted if each.seconds <= NEAR * candidates[0].seconds][:TRIED]
    return [each for each in candidates if each in tried]


def random_calls(
    network: Network, sizes: Mapping[str, int], values: Iterable[int], seed: int = 0
) -> list[list[torch.Tensor]]:
    """Random inputs of a network for several values of its first run-time size that has no number; one call if all do.

    Args:
        network: whose inputs they are.
        sizes: numbers for the other run-time sizes, and compile-time ones.
        values: of the size.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    runtime = {name: number for name, number in sizes.items() if name in network.runtime_sizes()}
    known = compile_time_sizes(network, {name: sizes[name] for name in sizes if name not in runtime})
    free = [name for name in network.runtime_sizes() if name not in runtime][:1]
    points = [dict.fromkeys(free, value) for value in values] if free else [{}]
    return [[x.float() for x in random_inputs(network, known, generator, {**runtime, **point})] for point in points]


def _bind(network: Network, given: Sequence[torch.Tensor], sizes: Mapping[str, int] | None) -> Mapping[str, int]:
    shapes = {port.name: tuple(x.shape) for port, x in zip(network.inputs, given, strict=True)}
    settable = {name: number for name, number in (sizes or {}).items() if name not in network.runtime_sizes()}
    return bind_sizes(network, shapes, settable)


@dataclass(frozen=True, slots=True)
class _Runner:
    """Where and how ways are measured."""

    device: torch.device
    dtype: torch.dtype
    mode: Mode

    @property
    def names(self) -> tuple[str, str]:
        """Of the device and of the type of numbers, as a plan keeps them."""
        return describe_device(self.device), name_dtype(self.dtype, self.device)

    def measure(
        self, finder: TimedSearch, tried: Sequence[Candidate], inputs: Sequence[torch.Tensor], at: Sizes
    ) -> list[Measured]:
        """What each way takes."""
        times = self.time([finder.plan([(1, None, each.trees)]) for each in tried], inputs)
        return [
            Measured(*self.names, at, finder.describe(each), each.seconds, seconds)
            for each, seconds in zip(tried, times, strict=True)
        ]

    def compare(self, plans: Sequence[Plan], inputs: Sequence[torch.Tensor]) -> float:
        """What the second of two takes, in times of the first."""
        first, second = self.time(plans, inputs)
        return second / first

    def time(self, plans: Sequence[Plan], inputs: Sequence[torch.Tensor]) -> list[float]:
        """Median seconds of a call of each, in turns."""
        settle_memory(self.device)
        given = [x.to(self.device, self.dtype if x.is_floating_point() else None) for x in inputs]
        layers = [layer_class(each)(device=self.device, dtype=self.dtype) for each in plans]
        calls = [_make_call(layer, given, self.mode) for layer in layers]
        first = [min(self._time(call, 1) for _ in range(2)) for call in calls]
        repeats = [max(1, round(SECONDS_PER_TURN / seconds)) for seconds in first]
        least, most = ROUNDS
        rounds = min(most, max(least, round(SECONDS / max(SECONDS_PER_TURN, min(first)))))
        least_seconds, times = [*first], [list[float]() for _ in calls]
        for number in range(rounds):
            for k, call in enumerate(calls):
                if least_seconds[k] <= max(SECONDS_PER_TURN, BEHIND[number >= SOME] * min(least_seconds)):
                    times[k].append(self._time(call, repeats[k]))
                    least_seconds[k] = min(least_seconds[k], times[k][-1])
        return [statistics.median(taken or [seconds]) for taken, seconds in zip(times, first, strict=True)]

    def _time(self, call: Callable[[], object], count: int) -> float:
        """Mean seconds of so many calls, after one that finds memory as another way has left it."""
        wait = waiting(self.device)
        call()
        wait()
        began = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        return (time.perf_counter() - began) / count


def settle_memory(device: torch.device) -> None:
    """Bring the memory of the process to where it is after some work: blocks that are freed are kept and used again.

    The C library of Linux hands small blocks back to the system until it has seen a large one freed, up to 32 MiB.
    """
    if device.type == "cpu":
        torch.empty(31 << 20, dtype=torch.uint8)


def _make_call(layer: Layer, inputs: Sequence[torch.Tensor], mode: Mode) -> Callable[[], object]:
    if mode != "train":
        return torch.no_grad()(lambda: layer(*inputs))
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    wanted = [*(x for x in leaves if x.requires_grad), *layer.parameters()]
    slopes = [torch.ones_like(y, memory_format=torch.contiguous_format) for y in as_tuple(layer(*leaves))]

    def step() -> object:
        return torch.autograd.grad(as_tuple(layer(*leaves)), wanted, slopes, allow_unused=True)

    return step
