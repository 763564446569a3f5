"""Tasks and problems: what to plan, the regions to find trees for, and the tree of one region at given numbers."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import sympy

from tngraph.compiler.cache import cache_key, find_cached
from tngraph.language.network import Equation, Network
from tngraph.language.rewrites import can_inline, drop_unused, inline, merge_chains, reached
from tngraph.language.sizes import evaluate_size, symbol
from tngraph.language.sizing import number_sizes
from tngraph.language.varying import Varying, find_varying
from tngraph.plans.assembly import Assembly, Cleaned, clean_equations
from tngraph.plans.plan import Plan
from tngraph.plans.regime import Regime
from tngraph.search.objectives import Price, Pricing, Request
from tngraph.search.orders import Search, pinned_tree, search_tree
from tngraph.search.pinning import Pin, match_pins
from tngraph.search.regimes import Interval, RegimeTrees, region_sizes
from tngraph.search.region import ContractionTree, Region, Topology


@dataclass
class Task:
    """A network to plan, the sizes and the request to plan it for, and the results on the way.

    Attributes:
        network: the network as the caller gave it.
        fixed: the numbers of sizes that the caller gave; run-time sizes without one are free.
        request: what the plan is for.
        search: seed and effort.
        pins: orders by hand, by the name of their equation.
        trees: the trees that were found, by region.
        costs: the costs of equations that were planned.
    """

    network: Network
    fixed: Mapping[str, int]
    request: Request
    search: Search
    pins: Mapping[str, tuple[Pin, ...]]
    trees: dict[object, ContractionTree] = field(default_factory=dict)
    costs: dict[Equation, Price] = field(default_factory=dict)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The numbers of all sizes, free ones at their default."""
        return number_sizes(self.network, self.fixed)

    @cached_property
    def free(self) -> tuple[str, ...]:
        """The run-time sizes for which the plan is the best at every value."""
        if self.request.is_bounded:
            return ()
        return tuple(name for name in self.network.runtime_sizes() if name not in self.fixed)

    @cached_property
    def formulas(self) -> dict[sympy.Symbol, sympy.Expr]:
        """Every size by its symbol: a number, or a formula in the free sizes."""
        formulas: dict[sympy.Symbol, sympy.Expr] = {}
        for size in self.network.sizes:
            if size.value is not None and size.name not in self.fixed:
                formulas[size.symbol] = size.value.xreplace(formulas)
            elif size.name not in self.free:
                formulas[size.symbol] = sympy.Integer(self.numbers[size.name])
        return formulas

    def write_out(self, size: sympy.Expr) -> sympy.Expr:
        """Return a size as a number, or as a formula in the free sizes."""
        return size.xreplace(self.formulas)

    def sizes_of(self, region: Region) -> frozenset[str]:
        """Return the names of the sizes that a region depends on, derived ones written out."""
        formulas = [self.write_out(size) for size in region_sizes(region)]
        return frozenset(size.name for formula in formulas for size in formula.free_symbols)

    def show_formula(self, size: sympy.Expr) -> str:
        """Return a size as a formula in the one free size, which is called `n` whatever its name is."""
        (name,) = self.free
        return str(self.write_out(size).xreplace({symbol(name): symbol("n")}))

    def numbers_at(self, /, **sizes: int) -> dict[str, int]:
        """Return the numbers of all sizes where some have other values."""
        return number_sizes(self.network, {**self.fixed, **sizes})


def merge_where_cheaper(task: Task, network: Network) -> Network:
    """Inline equations that are read often or have several terms, one by one, where the total gets cheaper."""
    for equation in reversed(network.equations):
        if can_inline(network, equation):
            candidate = merge_chains(drop_unused(inline(network, equation)))
            if _keeps_pinned(task, network, candidate) and _cost(task, candidate) < _cost(task, network):
                network = candidate
    return network


def _keeps_pinned(task: Task, network: Network, candidate: Network) -> bool:
    """Return whether the equations with an order by hand are the same in both networks."""
    pinned = (equation for equation in network.equations if equation.name in task.pins)
    return all(equation in candidate.equations for equation in pinned)


def _cost(task: Task, merged: Network) -> Price:
    """Return the cost of a network: the sum over its equations, each planned once."""
    missing = [equation for equation in merged.equations if equation not in task.costs]
    cleaned = clean_equations(merged, missing)
    for equation, regions in zip(cleaned, _price_equations(task, merged, cleaned), strict=True):
        stage = equation.stage([find_tree(task, priced) for priced in regions])
        regime = Regime(merged, merged, (stage,), task.numbers, task.request)
        task.costs[equation.equation] = regime.price(task.numbers)
    return sum(task.costs[equation] for equation in merged.equations)


class PricedRegion(NamedTuple):
    """One region to find a tree for, how its steps are priced, and the order pinned for it."""

    region: Region
    pricing: Pricing
    pin: Pin | None = None
    positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class PlanProblem:
    """The regions of a merged network, each of which needs a tree.

    Attributes:
        task: what to plan.
        assembly: what the trees are put into.
        regions: the regions of all equations, in order, with their prices.
    """

    task: Task
    assembly: Assembly
    regions: tuple[PricedRegion, ...]

    @property
    def merged(self) -> Network:
        """The network that is contracted."""
        return self.assembly.merged

    def plan(self, ranges: Sequence[RegimeTrees]) -> Plan:
        """Return the plan that has a regime for each range."""
        return self.assembly.plan(ranges, self.task.free)


def price_regions(task: Task, merged: Network) -> PlanProblem:
    """Return the regions of a merged network with the prices of their steps."""
    equations = clean_equations(merged, merged.equations)
    regions = tuple(priced for regions in _price_equations(task, merged, equations) for priced in regions)
    return PlanProblem(task, Assembly(task.network, merged, equations, task.numbers, task.request), regions)


def _price_equations(task: Task, merged: Network, cleaned: Iterable[Cleaned]) -> Iterator[list[PricedRegion]]:
    """Yield the regions of each equation, one per term."""
    trained, varying = reached(merged, task.request.trained), find_varying(merged)
    for equation, regions, _ in cleaned:
        pinned = match_pins(task.pins.get(equation.name, ()), equation.name, regions)
        yield [
            PricedRegion(region, _pricing(task.request, region, trained, varying), *pinned.get(k, ()))
            for k, region in enumerate(regions)
        ]


def _pricing(request: Request, region: Region, trained: Container[str], varying: Varying) -> Pricing:
    bits = [(1 << k, access) for k, access in enumerate(region.accesses)]
    grads = sum(bit for bit, access in bits if request.mode == "train" and access.source in trained)
    fixed = sum(bit for bit, access in bits if request.mode == "serve" and varying.is_same(access))
    return Pricing(request.rate, grads, fixed, request.most_folded)


def find_tree(task: Task, priced: PricedRegion) -> ContractionTree:
    """Return the tree of a region at the numbers of the task, pinned or searched."""
    if priced not in task.trees:
        topology = Topology(priced.region, task.numbers, priced.pricing)
        if priced.pin is None:
            key = cache_key(priced.region, priced.pricing, task.search, lambda size: evaluate_size(size, task.numbers))
            (interval,) = find_cached(topology, key, lambda: [Interval(1, None, search_tree(topology, task.search))])
            task.trees[priced] = interval.tree
        else:
            task.trees[priced] = pinned_tree(topology, task.search, priced.pin, priced.positions)
    return task.trees[priced]
