"""A `Plan`: one or more regimes, each of which says how to contract everything in a network.

A plan is data. Each regime holds its stages (merged equations with a tree per term), and the sizes and the request that
the trees were searched for. Everything else is derived: the schedule, every count, the table. Counts are sympy
expressions in all sizes of the network; `Plan.at` turns them into integers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import sympy

from tngraph.language.legs import legs_size
from tngraph.language.network import Network
from tngraph.language.sizes import symbol
from tngraph.language.sizing import given_sizes, number_sizes
from tngraph.plans.dense import Dense, dense_equivalent
from tngraph.plans.differences import PlanDifference, compare_plans
from tngraph.plans.saving import save_plan
from tngraph.plans.table import format_plan
from tngraph.program.cases import find_cases, generic_sizes
from tngraph.program.clock import Clock
from tngraph.program.counts import (
    Counts,
    aliases,
    elementwise,
    evaluate_count,
    macs,
    maximum,
    param_count,
    price_operations,
    training_macs,
)
from tngraph.program.folding import Folded, Folding, Split, fold_program, split_schedule
from tngraph.program.lines import Program, write_program
from tngraph.program.memory import Memory, MemoryFormulas, fix_sizes, trace_memory
from tngraph.program.merging import merge_foldings
from tngraph.program.operations import Block, Operation, Schedule, Stage
from tngraph.program.schedule import write_schedule
from tngraph.search.machine import Machine
from tngraph.search.objectives import Price, Request, Weighted
from tngraph.search.region import ContractionTree

COUNTS = ("params", "macs", "flops", "training_flops", "elementwise", "largest", "folded")
"""The counts of a regime whose one formula holds at all sizes. The formulas of a call's memory have cases."""


@dataclass(frozen=True, repr=False)
class Regime:
    """One order for everything in a network, and the range of a size in which it is the best.

    Attributes:
        network: the network as the caller gave it.
        merged: the network after its linear equations were merged; the stages are its equations.
        stages: the equations of `merged` with their trees.
        sizes: the value of every named size at which formulas are compared.
        request: what the trees were searched for.
        recomputed: intervals of operations, first and last, that run once more in the backward pass.
        low: the smallest value of the plan's run-time size that this regime is for.
        high: the largest one; None where there is no upper end.
    """

    network: Network
    merged: Network
    stages: tuple[Stage, ...]
    sizes: Mapping[str, int]
    request: Request
    recomputed: tuple[tuple[int, int], ...] = ()
    low: int = 1
    high: int | None = None

    @cached_property
    def whole(self) -> Schedule:
        """The operations in the order they run, including those before the first call."""
        schedule = write_schedule(self.network, self.stages, self.sizes)
        again = (Block("recompute", first, last) for first, last in self.recomputed)
        return replace(schedule, blocks=(*schedule.blocks, *again))

    @cached_property
    def split(self) -> Split:
        """The schedule divided into what runs before the first call and what each call runs."""
        return split_schedule(self.whole, self.merged, self.request, self.sizes)

    @cached_property
    def schedule(self) -> Schedule:
        """The operations of one call in the order they run. A folded value is a load."""
        return self.split.schedule()

    @cached_property
    def _lines(self) -> Folded:
        whole = write_program(self.network, self.stages, self.whole, self.sizes, self.split.folded)
        if self.request.mode != "serve":
            return Folded(whole, Folding())
        return fold_program(whole, self.split, self.network, self.request.most_folded, self.sizes)

    @property
    def program(self) -> Program:
        """The lines that a call runs."""
        return self._lines.program

    @property
    def folding(self) -> Folding:
        """The lines that run before the first call."""
        return self._lines.folding

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations of one call."""
        return self.schedule.operations

    @property
    def outputs(self) -> tuple[int, ...]:
        """The numbers of the output values, in the order of the network's outputs."""
        return tuple(self.schedule.results[port.name] for port in self.network.outputs)

    def users(self, number: int) -> frozenset[int]:
        """Return the operations that use a value, including those that use it through an alias."""
        return self._users.get(number, frozenset())

    @cached_property
    def _users(self) -> Mapping[int, frozenset[int]]:
        names, users_of = aliases(self.operations), dict[int, set[int]]()
        for number, op in enumerate(self.operations):
            for operand in op.operands:
                users_of.setdefault(names[operand], set()).add(number)
        return {value: frozenset(users) for value, users in users_of.items()}

    @property
    def trees(self) -> tuple[ContractionTree, ...]:
        """The trees of all stages, term by term."""
        return tuple(tree for stage in self.stages for tree in stage.trees)

    @property
    def is_proven(self) -> bool:
        """True if every tree is proven optimal at all sizes this regime is for."""
        return all(tree.is_proven for tree in self.trees)

    @cached_property
    def params(self) -> sympy.Expr:
        """Learnable entries [elements]."""
        return param_count(self.network)

    @cached_property
    def macs(self) -> sympy.Expr:
        """Multiply-adds of one call [MAC]."""
        return macs(self.operations)

    @property
    def flops(self) -> sympy.Expr:
        """Floating point operations of one call, 2 per MAC [FLOPs]."""
        return 2 * self.macs

    @cached_property
    def elementwise(self) -> sympy.Expr:
        """Elementwise operations of one call: all that are not contractions [operations]."""
        return elementwise(self.operations)

    @cached_property
    def training_flops(self) -> sympy.Expr:
        """FLOPs of a forward and a backward pass, with the requested gradients [FLOPs]."""
        return 2 * training_macs(self.operations, self.request.trained, self.schedule.blocks, self._gathering)

    @cached_property
    def _gathering(self) -> frozenset[int]:
        """The reads that gather, where something is recomputed: only then does it matter for the counts."""
        return self.program.gathering if self.recomputed else frozenset()

    @cached_property
    def largest(self) -> sympy.Expr:
        """The size of the largest value that a step writes [elements]."""
        return maximum(legs_size(op.legs) for op in self.operations if op.kind != "load")

    @property
    def peak(self) -> sympy.Expr:
        """The most that a call without gradients holds at once (see `trace_memory`), by cases of sizes of 1 [bytes]."""
        return self._every_case.peak

    @property
    def saved(self) -> sympy.Expr:
        """Memory that autograd keeps for the requested gradients, by cases of sizes of 1 [bytes]."""
        return self._every_case.saved

    @property
    def moves(self) -> sympy.Expr:
        """Memory that a call copies to change the order of axes, by cases of sizes of 1 [bytes]."""
        return self._every_case.moves

    @cached_property
    def _every_case(self) -> MemoryFormulas:
        return self.memory_formulas(find_cases(self.network))

    def memory_formulas(self, cases: Iterable[Mapping[str, int]]) -> MemoryFormulas:
        """Return the memory of a call as formulas that have a case wherever the general one does not hold.

        Args:
            cases: sizes that are fixed at numbers; none first, and those of fewer before those of more.
        """
        found = [(fixed, self._formulas(fixed)) for fixed in cases]
        return MemoryFormulas(*(_join_cases((f, each[k]) for f, each in found) for k in range(3)))

    def _formulas(self, fixed: Mapping[str, int]) -> MemoryFormulas:
        """Return the formulas where some sizes have these numbers and no other index has size 1."""
        key = tuple(fixed.items())
        if key not in self._known_formulas:
            tiles = [tree.tile for tree in self.trees if tree.tile is not None]
            numbers = generic_sizes(self.network, self.sizes, tiles, fixed)
            self._known_formulas[key] = self.memory(numbers).formulas(fixed)
        return self._known_formulas[key]

    @cached_property
    def _known_formulas(self) -> dict[tuple[tuple[str, int], ...], MemoryFormulas]:
        return {}

    def memory(self, numbers: Mapping[str, int], itemsize: int | None = None) -> Memory:
        """Return the memory a call holds, exact at any sizes, even where a size is 1 or two sizes happen to be equal.

        Args:
            numbers: an integer for every named size, as `Plan.values` returns them.
            itemsize: of one number; when absent, the request's [bytes].
        """
        return trace_memory(self.program, numbers, self.request.trained, itemsize or self.request.itemsize)

    def seconds(
        self,
        numbers: Mapping[str, int],
        machine: Machine | None = None,
        known: dict[Hashable, Any] | None = None,
    ) -> float:
        """Return the predicted time of a call, in training with its backward pass, by the model of a machine [s].

        Args:
            numbers: an integer for every named size.
            machine: the model to use; when absent, the request's.
            known: what the model said of kernels before, for all that are asked about one machine.
        """
        clock = Clock(machine or self.request.machine, cache={} if known is None else known)
        trained = self.request.trained if self.request.mode == "train" else ()
        clock.module(bool(trained))
        trace_memory(self.program, numbers, trained, self.request.itemsize, clock)
        return clock.seconds

    @property
    def folded(self) -> sympy.Expr:
        """Memory of the buffers that calls read instead of computing [bytes]."""
        return self.folding.elements * self.request.itemsize

    @cached_property
    def cost(self) -> sympy.Expr | None:
        """The cost that the search minimised, as a formula; None where the objective is a function of numbers."""
        if not isinstance(self.request.rate, Weighted):
            return None
        return sympy.sympify(
            price_operations(self.operations, self.request, None, self.schedule.blocks, self._gathering)
        )

    def price(self, numbers: Mapping[str, int]) -> Price:
        """Return the cost that the search minimised, at these values of all sizes."""
        price: Price = price_operations(self.operations, self.request, numbers, self.schedule.blocks, self._gathering)
        return price

    def counts(self, numbers: Mapping[str, int]) -> Counts:
        """Return the counts at these values of all sizes."""
        formulas = {name: evaluate_count(getattr(self, name), numbers) for name in COUNTS}
        memory = self.memory(numbers)
        return Counts(**formulas, peak=memory.peak, saved=memory.saved, moves=memory.moves, cost=self.price(numbers))

    def alone(self, numbers: Mapping[str, int]) -> Plan:
        """Return this regime as a plan of its own for all sizes, whose counts are shown at these values."""
        stages = tuple(replace(stage, branches=()) for stage in self.stages)
        return Plan((replace(self, stages=stages, sizes=numbers, low=1, high=None),))

    def __hash__(self) -> int:
        return hash((self.network, self.stages, tuple(self.sizes.items()), self.low, self.high))


def _join_cases(cases: Iterable[tuple[Mapping[str, int], sympy.Expr]]) -> sympy.Expr:
    """Join a general formula with one for each case in which it does not hold, most special first."""
    intervals: list[tuple[Mapping[str, int], sympy.Expr]] = []
    for fixed, formula in cases:
        general = next((each for other, each in intervals if other.items() <= fixed.items()), None)
        if general is None or fix_sizes(general, fixed) != formula:
            intervals.insert(0, (fixed, formula))
    conditions = (
        sympy.And(*(sympy.Eq(symbol(name), number) for name, number in fixed.items())) for fixed, _ in intervals
    )
    return sympy.Piecewise(
        *((formula, condition) for (_, formula), condition in zip(intervals, conditions, strict=True))
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """The measured time of a call beside the time that the model of the machine predicted.

    Attributes:
        device: the device it ran on.
        dtype: the type of its params.
        sizes: the run-time sizes of the call, by name.
        way: the order and the tiles that it ran in.
        model: the predicted time [s].
        seconds: the measured time, the median of several turns [s].
        dense: the time with a dense weight in place of the params, measured in the same run; None where it was not
            measured, because there is no dense weight or it is too large [s].
    """

    device: str
    dtype: str
    sizes: tuple[tuple[str, int], ...]
    way: str
    model: float
    seconds: float
    dense: float | None = None

    @property
    def is_slower_than_dense(self) -> bool:
        """True if a dense weight was measured to be faster."""
        return self.dense is not None and self.dense < self.seconds


@dataclass(frozen=True, repr=False)
class Plan:
    """A network with the best order for everything in it, at every size.

    Attributes:
        regimes: in ascending order of the size they depend on.
        free: the run-time sizes that regimes were searched over. With one, each regime has a range of it; with several,
            the regime of least cost runs.
        unpinned: where an order was pinned by hand, the best plan without the pin at the same sizes.
        measured: where the plan was tuned, the measured times of the candidates it keeps.
    """

    regimes: tuple[Regime, ...]
    free: tuple[str, ...] = ()
    unpinned: Plan | None = None
    measured: tuple[Measured, ...] = ()

    @property
    def network(self) -> Network:
        """The network as the caller gave it."""
        return self.regimes[0].network

    @property
    def merged(self) -> Network:
        """The network after its linear equations were merged; the stages are its equations."""
        return self.regimes[0].merged

    @property
    def sizes(self) -> Mapping[str, int]:
        """The value of every named size. Counts are shown at these, free sizes included."""
        return self.regimes[0].sizes

    @property
    def request(self) -> Request:
        """The request that the plan was searched for."""
        return self.regimes[0].request

    @property
    def is_proven(self) -> bool:
        """True if every tree of every regime is proven optimal."""
        return all(regime.is_proven for regime in self.regimes)

    @property
    def params(self) -> sympy.Expr:
        """Learnable entries [elements]."""
        return self.regimes[0].params

    @cached_property
    def macs(self) -> sympy.Expr:
        """Multiply-adds of one call [MAC]."""
        return self._formula("macs")

    @cached_property
    def flops(self) -> sympy.Expr:
        """Floating point operations of one call, 2 per MAC [FLOPs]."""
        return self._formula("flops")

    @cached_property
    def training_flops(self) -> sympy.Expr:
        """FLOPs of a forward and a backward pass, with the requested gradients [FLOPs]."""
        return self._formula("training_flops")

    @cached_property
    def elementwise(self) -> sympy.Expr:
        """Elementwise operations of one call: all that are not contractions [operations]."""
        return self._formula("elementwise")

    @cached_property
    def largest(self) -> sympy.Expr:
        """The size of the largest value that a step writes [elements]."""
        return self._formula("largest")

    @cached_property
    def peak(self) -> sympy.Expr:
        """The most that a call without gradients holds at once, by cases of sizes of 1 [bytes]."""
        return self._formula("peak")

    @cached_property
    def saved(self) -> sympy.Expr:
        """Memory that autograd keeps for the requested gradients, by cases of sizes of 1 [bytes]."""
        return self._formula("saved")

    @cached_property
    def moves(self) -> sympy.Expr:
        """Memory that a call copies to change the order of axes, by cases of sizes of 1 [bytes]."""
        return self._formula("moves")

    @cached_property
    def folding(self) -> Folding:
        """The lines that run before the first call, for all regimes together."""
        return merge_foldings([regime.folding for regime in self.regimes])

    @property
    def folded(self) -> sympy.Expr:
        """Memory of the buffers of all regimes, which exist whichever regime runs [bytes]."""
        return self.folding.elements * self.request.itemsize

    @cached_property
    def cost(self) -> sympy.Expr | None:
        """The cost that the search minimised, as a formula; None where the objective is a function of numbers."""
        return self._formula("cost") if self.regimes[0].cost is not None else None

    def _formula(self, name: str) -> sympy.Expr:
        """Return a count as one formula, or piecewise with each regime's condition where there are several regimes."""
        if len(self.regimes) == 1:
            return getattr(self.regimes[0], name)
        return sympy.Piecewise(*((getattr(r, name), condition) for r, condition in self._conditions()))

    def _conditions(self) -> Iterator[tuple[Regime, sympy.Basic]]:
        """Yield each regime with the condition under which it runs, given that none before it does."""
        for k, regime in enumerate(self.regimes[:-1]):
            if len(self.free) == 1:
                assert regime.high is not None
                yield regime, symbol(self.free[0]) <= regime.high
            else:
                later = (sympy.Le(regime.cost, other.cost) for other in self.regimes[k + 1 :])
                yield regime, sympy.And(*later)
        yield self.regimes[-1], sympy.true

    @cached_property
    def breakpoints(self) -> tuple[Fraction, ...]:
        """The values of the one free size where the costs of neighbouring regimes meet; empty if several are free.

        A breakpoint is at least the `high` of one regime and less than the `low` of the next. It is exact where both
        costs are linear in the size; elsewhere it is where the lines through the costs at these two ends cross.
        """
        return tuple(self._crossing(*pair) for pair in pairwise(self.regimes)) if len(self.free) == 1 else ()

    def _crossing(self, left: Regime, right: Regime) -> Fraction:
        assert left.high is not None
        ends = [self.values(**{self.free[0]: value}) for value in (left.high, right.low)]
        ahead, behind = (Fraction(right.price(numbers)) - Fraction(left.price(numbers)) for numbers in ends)
        return left.high + ahead / (ahead - behind)

    @cached_property
    def dense(self) -> Dense | None:
        """The dense weight that this network replaces, if it is one linear map (see `dense_equivalent`)."""
        return dense_equivalent(self.merged)

    @cached_property
    def variants(self) -> Mapping[tuple[str, int], tuple[tuple[int, ...], ...]]:
        """The regimes in which each tree runs, for every region with several trees, by equation and term."""
        regimes_of: dict[tuple[str, int], dict[object, list[int]]] = {}
        for number, regime in enumerate(self.regimes):
            for block in (block for block in regime.schedule.blocks if block.kind == "branch"):
                stage = next(stage for stage in regime.stages if stage.equation.name == block.equation)
                trees = regimes_of.setdefault((block.equation, block.term), {})
                trees.setdefault(stage.trees[block.term].choices, []).append(number)
        return {key: tuple(map(tuple, trees.values())) for key, trees in regimes_of.items()}

    def values(self, /, **sizes: int) -> dict[str, int]:
        """Return the value of every named size: those given here, and for the others the value that was searched at.

        Raises:
            SizeError: the network has no size of this name, or a value is not a positive integer.
        """
        return number_sizes(self.network, {**given_sizes(self.network, self.sizes), **sizes})

    def regime(self, /, **sizes: int) -> Regime:
        """Return the regime that runs at given sizes, with the others as searched.

        Raises:
            SizeError: see `values`.
        """
        return self.regime_of(self.values(**sizes))

    def regime_of(self, numbers: Mapping[str, int]) -> Regime:
        """Return the regime that runs at these values of all sizes."""
        if len(self.free) == 1:
            value = numbers[self.free[0]]
            return next(r for r in self.regimes if r.high is None or value <= r.high)
        return min(self.regimes, key=lambda regime: regime.price(numbers)) if len(self.regimes) > 1 else self.regimes[0]

    def only(self, /, **sizes: int) -> Plan:
        """Return a plan with one regime for all sizes: the one that runs at the given sizes.

        Raises:
            SizeError: see `values`.
        """
        numbers = self.values(**sizes)
        return self.regime_of(numbers).alone(numbers)

    def each(self) -> tuple[Plan, ...]:
        """Return each regime as a plan of its own for all sizes."""
        return tuple(regime.alone(regime.sizes) for regime in self.regimes)

    def at(self, /, **sizes: int) -> Counts:
        """Return the counts at given sizes, with the others as searched: ``plan.at(batch=64, D=8)``.

        They are the counts of the regime that runs there, except `folded`, which counts the buffers of all regimes.

        Raises:
            SizeError: see `values`.
        """
        numbers = self.values(**sizes)
        counts = self.regime_of(numbers).counts(numbers)
        return replace(counts, folded=evaluate_count(self.folded, numbers))

    def table(self, /, **sizes: int) -> str:
        """Return the plan as text: totals on top, then one row per step of the regime that runs at these sizes.

        Raises:
            SizeError: see `values`.
        """
        return format_plan(self, self.values(**sizes))

    def __str__(self) -> str:
        return self.table()

    def diff(self, other: Plan, /, **sizes: int) -> PlanDifference:
        """Return how another plan differs, at given sizes, with the others as searched. The result prints as text.

        Raises:
            SizeError: one of the networks does not have a size that is given, or a value is not a positive integer.
            TypeError: `other` is not a plan.
        """
        if not isinstance(other, Plan):
            raise TypeError(f"a plan is compared with a plan, and not with {other!r}")
        return compare_plans(self, other, **sizes)

    def save(self, path: str | Path) -> None:
        """Write the plan to a file that `tngraph.load_plan` reads.

        Raises:
            PlanError: the plan minimises a Python function, which a file cannot hold, or the file cannot be written.
        """
        save_plan(self, path)

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        return Plan, (self.regimes, self.free, self.unpinned, self.measured)

    def __deepcopy__(self, memo: object) -> Plan:
        return self

    def __repr__(self) -> str:
        at = ", ".join(f"{name}={value}" for name, value in self.sizes.items())
        price = self.regime_of(self.sizes).price(self.sizes)
        regimes = f", {len(self.regimes)} regimes" if len(self.regimes) > 1 else ""
        return f"<plan of {self.network.name} at {at or 'fixed sizes'}: cost {price:,}{regimes}>"
