"""A regime: one order for everything in a network, with all that follows from it.

A regime is data: stages (merged equations with a tree per term), and the sizes and the request that the trees were
searched for. The schedule, the lines and every count are derived. Counts are formulas in all sizes of the network, and
stand in one table (`counts`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import sympy

from tngraph.language.network import Network
from tngraph.language.sizes import symbol
from tngraph.plans.counts import COUNTS, Count, Counted
from tngraph.program.cases import find_cases, generic_sizes
from tngraph.program.clock import Clock
from tngraph.program.counts import (
    Counts,
    evaluate_count,
    find_users,
    price_operations,
    training_macs,
)
from tngraph.program.folding import Folded, Folding, Split
from tngraph.program.lines import Program
from tngraph.program.memory import Memory, MemoryFormulas, fix_sizes, trace_memory
from tngraph.program.operations import Operation, Schedule, Stage
from tngraph.program.writing import write_lines, write_operations
from tngraph.search.machine import Machine
from tngraph.search.objectives import Price, Request, Weighted
from tngraph.search.region import ContractionTree


@dataclass(frozen=True, repr=False)
class Regime(Counted):
    """One order for everything in a network, and the range of a size in which it is the best.

    It holds decisions only. What follows from them is derived when it is asked for, and kept: `split` and `schedule`
    (the operations, which are enough for costs), then `lowered` (the lines, for memory and time, and for printing).

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
    def split(self) -> Split:
        """All operations, divided into those before the first call and those of each call."""
        return write_operations(self.network, self.merged, self.stages, self.sizes, self.request, self.recomputed)

    @cached_property
    def schedule(self) -> Schedule:
        """The operations of one call in the order they run. A folded value is a load."""
        return self.split.schedule()

    @cached_property
    def lowered(self) -> Folded:
        """The lines of a call, and those before the first call."""
        return write_lines(self.network, self.stages, self.sizes, self.request, self.split)

    @property
    def program(self) -> Program:
        """The lines that a call runs."""
        return self.lowered.program

    @property
    def folding(self) -> Folding:
        """The lines that run before the first call."""
        return self.lowered.folding

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
        return find_users(self.operations)

    @property
    def trees(self) -> tuple[ContractionTree, ...]:
        """The trees of all stages, term by term."""
        return tuple(tree for stage in self.stages for tree in stage.trees)

    @property
    def is_proven(self) -> bool:
        """True if every tree is proven optimal at all sizes this regime is for."""
        return all(tree.is_proven for tree in self.trees)

    def derive(self, count: Count) -> sympy.Expr:
        """Return a count of this regime as a formula."""
        return count.formula(self)

    def training_macs(self) -> sympy.Expr:
        """Return the multiply-adds of a forward and a backward pass, with the requested gradients [MAC]."""
        return training_macs(self.operations, self.request.trained, self.schedule.blocks, self._gathering)

    @property
    def _gathering(self) -> frozenset[int]:
        """The reads that gather, where something is recomputed: only then does it matter for the counts."""
        return self.program.gathering if self.recomputed else frozenset()

    @cached_property
    def memory_by_case(self) -> MemoryFormulas:
        """The memory of a call as formulas, which have a case wherever an index has size 1."""
        return self.memory_formulas(find_cases(self.network))

    def memory_formulas(self, cases: Iterable[Mapping[str, int]]) -> MemoryFormulas:
        """Return the memory of a call as formulas that have a case wherever the general one does not hold.

        Args:
            cases: sizes that are fixed at numbers; none first, and those of fewer before those of more.
        """
        formulas = [(fixed, self._formulas(fixed)) for fixed in cases]
        return MemoryFormulas(*(_join_cases((fixed, three[k]) for fixed, three in formulas) for k in range(3)))

    def _formulas(self, fixed: Mapping[str, int]) -> MemoryFormulas:
        """Return the formulas where some sizes have these numbers and no other index has size 1."""
        tiles = [tree.tile for tree in self.trees if tree.tile is not None]
        return self.memory(generic_sizes(self.network, self.sizes, tiles, fixed)).formulas(fixed)

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
            known: the model's times of kernels so far, to share between regimes that run on one machine.
        """
        clock = Clock(machine or self.request.machine, cache={} if known is None else known)
        trained = self.request.trained if self.request.mode == "train" else ()
        clock.module(bool(trained))
        trace_memory(self.program, numbers, trained, self.request.itemsize, clock)
        return clock.seconds

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
        memory = self.memory(numbers)
        values = {
            count.name: getattr(memory, count.name)
            if count.has_cases
            else evaluate_count(getattr(self, count.name), numbers)
            for count in COUNTS
        }
        return Counts(**values, cost=self.price(numbers))

    def alone(self, numbers: Mapping[str, int]) -> Regime:
        """Return this order for all sizes, whose counts are shown at these values."""
        stages = tuple(replace(stage, branches=()) for stage in self.stages)
        return replace(self, stages=stages, sizes=numbers, low=1, high=None)

    def __hash__(self) -> int:
        return hash((self.network, self.stages, tuple(self.sizes.items()), self.low, self.high))


def _join_cases(cases: Iterable[tuple[Mapping[str, int], sympy.Expr]]) -> sympy.Expr:
    """Join a general formula with one for each case in which it does not hold, most special first."""
    special: list[tuple[Mapping[str, int], sympy.Expr]] = []
    for fixed, formula in cases:
        general = next((expr for other, expr in special if other.items() <= fixed.items()), None)
        if general is None or fix_sizes(general, fixed) != formula:
            special.insert(0, (fixed, formula))
    conditions = (sympy.And(*(sympy.Eq(symbol(name), value) for name, value in fixed.items())) for fixed, _ in special)
    return sympy.Piecewise(*((formula, condition) for (_, formula), condition in zip(special, conditions, strict=True)))
