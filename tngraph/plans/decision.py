"""The decisions for a network: its regimes, and which of them runs at given sizes.

`Plan` adds that decisions are shown, saved and compared. The modules that do so work on a `Decision`, so that they can
lie between the two: a plan prints itself, and the module that prints it does not import the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import sympy

from tngraph.language.network import Network
from tngraph.language.sizes import symbol
from tngraph.language.sizing import given_sizes, number_sizes
from tngraph.plans.counts import Count, Counted
from tngraph.plans.dense import Dense, dense_equivalent
from tngraph.plans.measured import Measured
from tngraph.plans.regime import Regime
from tngraph.program.counts import Counts, evaluate_count
from tngraph.program.folding import Folding
from tngraph.program.merging import merge_foldings
from tngraph.search.objectives import Request


@dataclass(frozen=True, repr=False)
class Decision(Counted):
    """The best orders for everything in a network, at every size.

    Attributes:
        regimes: in ascending order of the size they depend on.
        free: the run-time sizes that regimes were searched over. With one, each regime has a range of it; with several,
            the regime of least cost runs.
        unpinned: where an order was pinned by hand, the best orders without the pin at the same sizes.
        measured: where they were tuned, the measured times of the candidates it keeps.
    """

    regimes: tuple[Regime, ...]
    free: tuple[str, ...] = ()
    unpinned: Decision | None = None
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
        """The request that the orders were searched for."""
        return self.regimes[0].request

    @property
    def is_proven(self) -> bool:
        """True if every tree of every regime is proven optimal."""
        return all(regime.is_proven for regime in self.regimes)

    @cached_property
    def folding(self) -> Folding:
        """The lines that run before the first call, for all regimes together."""
        return merge_foldings([regime.folding for regime in self.regimes])

    def derive(self, count: Count) -> sympy.Expr:
        """Return a count as a formula, by regimes where they differ."""
        return count.formula(self) if count.is_stored else self._join(count.name)

    def _join(self, name: str) -> sympy.Expr:
        """Return a formula of the regimes, piecewise with each regime's condition where there are several."""
        if len(self.regimes) == 1:
            return getattr(self.regimes[0], name)
        return sympy.Piecewise(*((getattr(regime, name), condition) for regime, condition in self._conditions()))

    @cached_property
    def cost(self) -> sympy.Expr | None:
        """The cost that the search minimised, as a formula; None where the objective is a function of numbers."""
        return self._join("cost") if self.regimes[0].cost is not None else None

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

    def at(self, /, **sizes: int) -> Counts:
        """Return the counts at given sizes, with the others as searched: ``plan.at(batch=64, D=8)``.

        They are the counts of the regime that runs there, except `folded`, which counts the buffers of all regimes.

        Raises:
            SizeError: see `values`.
        """
        numbers = self.values(**sizes)
        counts = self.regime_of(numbers).counts(numbers)
        return replace(counts, folded=evaluate_count(self.folded, numbers))
