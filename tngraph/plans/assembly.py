"""Assembly of a plan: the equations of a merged network as regions, and regimes from the regions' trees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def assemble_plan(
    network: Network,
    merged: Network,
    cleaned: Sequence[Cleaned],
    found: Sequence[RegimeTrees],
    numbers: Mapping[str, int],
    request: Request,
    free: tuple[str, ...],
) -> Plan:
    """Return the plan that has a regime for each range.

    Args:
        network: the network as the caller gave it.
        merged: the network that is contracted.
        cleaned: the equations of `merged`.
        found: ranges of a size, in order, each with a tree for every region of all equations.
        numbers: an integer for every named size.
        request: what the trees were searched for.
        free: the run-time sizes that they were searched over.
    """
    count = sum(len(each.regions) for each in cleaned)
    branches = [len({trees[k].choices for _, _, trees in found}) > 1 for k in range(count)]
    regimes = []
    for low, high, trees in found:
        rest, flags = iter(trees), iter(branches)
        stages = tuple(
            each.stage([next(rest) for _ in each.regions], [next(flags) for _ in each.regions]) for each in cleaned
        )
        regimes.append(Regime(network, merged, stages, numbers, request, low=low, high=high))
    return Plan(tuple(regimes), free if len(free) == 1 or len(regimes) > 1 else ())
