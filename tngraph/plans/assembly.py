"""Assembly of a plan: the equations of a merged network as regions, and regimes from the regions' trees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tngraph.language.network import Equation, Index, Network
from tngraph.plans.plan import Plan
from tngraph.plans.regime import Regime
from tngraph.program.operations import Stage
from tngraph.search.cleaning import clean_term
from tngraph.search.objectives import Request
from tngraph.search.regimes import RegimeTrees
from tngraph.search.region import ContractionTree, Region


class Cleaned(NamedTuple):
    """One equation, a region per term, and which index of a region stands for which index of the equation."""

    equation: Equation
    regions: tuple[Region, ...]
    patterns: tuple[tuple[tuple[Index, Index], ...], ...]

    def stage(self, trees: Sequence[ContractionTree], branches: Sequence[bool] = ()) -> Stage:
        """Return the equation with a tree for every region."""
        return Stage(self.equation, tuple(trees), self.patterns, tuple(branches) if any(branches) else ())


def clean_equations(merged: Network, equations: Iterable[Equation]) -> tuple[Cleaned, ...]:
    """Return equations of a merged network with their terms as regions."""
    sources = merged.sources()
    cleaned = []
    for equation in equations:
        terms = [clean_term(term, equation.legs, sources) for term in equation.terms]
        cleaned.append(Cleaned(equation, tuple(region for region, _ in terms), tuple(pattern for _, pattern in terms)))
    return tuple(cleaned)


@dataclass(frozen=True)
class Assembly:
    """Everything in a plan but its trees. Trees are given for every region of all equations, in order.

    Attributes:
        network: the network as the caller gave it.
        merged: the network that is contracted.
        equations: the equations of `merged`, as regions.
        sizes: an integer for every named size.
        request: what the trees are searched for.
    """

    network: Network
    merged: Network
    equations: tuple[Cleaned, ...]
    sizes: Mapping[str, int]
    request: Request

    def regime(self, trees: Iterable[ContractionTree]) -> Regime:
        """Return the regime that runs these trees at all sizes."""
        return self._regime((1, None, tuple(trees)), frozenset())

    def plan(self, ranges: Sequence[RegimeTrees], free: tuple[str, ...]) -> Plan:
        """Return the plan that has a regime for each range.

        Args:
            ranges: ranges of a size, in order, each with its trees.
            free: the run-time sizes that the trees were searched over.
        """
        choices = [{tree.choices for tree in trees} for trees in zip(*(trees for _, _, trees in ranges), strict=True)]
        branches = frozenset(k for k, different in enumerate(choices) if len(different) > 1)
        regimes = tuple(self._regime(trees_in_range, branches) for trees_in_range in ranges)
        return Plan(regimes, free if len(free) == 1 or len(regimes) > 1 else ())

    def _regime(self, trees_in_range: RegimeTrees, branches: frozenset[int]) -> Regime:
        """Return the regime of a range, where the trees with these numbers differ from regime to regime."""
        low, high, trees = trees_in_range
        numbered, stages = iter(enumerate(trees)), list[Stage]()
        for equation in self.equations:
            own = [next(numbered) for _ in equation.regions]
            stages.append(equation.stage([tree for _, tree in own], [k in branches for k, _ in own]))
        return Regime(self.network, self.merged, tuple(stages), self.sizes, self.request, low=low, high=high)
