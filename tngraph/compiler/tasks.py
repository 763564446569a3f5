"""What there is to plan: a network at sizes, its regions, and the tree of each at given numbers."""

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
from tngraph.plans.assembly import Cleaned, clean_equations
from tngraph.plans.regime import Regime
from tngraph.search.layouts import Run, lay_out
from tngraph.search.objectives import Price, Pricing, Request
from tngraph.search.orders import Search, pinned_tree, search_tree
from tngraph.search.pinning import Pin, match_pins
from tngraph.search.regimes import Interval, RegimeTrees, region_sizes
from tngraph.search.region import ContractionTree, Region, Topology


@dataclass
class Task:
    """What to plan, at which sizes and how; the trees and the equations' costs found so far."""

    network: Network
    given: Mapping[str, int]
    request: Request
    search: Search
    pins: Mapping[str, tuple[Pin, ...]]
    trees: dict[object, ContractionTree] = field(default_factory=dict)
    costs: dict[Equation, Price] = field(default_factory=dict)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The numbers of all sizes, free ones at their default."""
        return number_sizes(self.network, self.given)

    @cached_property
    def free(self) -> tuple[str, ...]:
        """The run-time sizes the plan is to be the best at every value of."""
        if self.request.is_bounded:
            return ()
        return tuple(name for name in self.network.runtime_sizes() if name not in self.given)

    @cached_property
    def formulas(self) -> dict[sympy.Symbol, sympy.Expr]:
        """Every size by its symbol: a number, or a formula in the free ones."""
        formulas: dict[sympy.Symbol, sympy.Expr] = {}
        for size in self.network.sizes:
            if size.value is not None and size.name not in self.given:
                formulas[size.symbol] = size.value.xreplace(formulas)
            elif size.name not in self.free:
                formulas[size.symbol] = sympy.Integer(self.numbers[size.name])
        return formulas

    def write_out(self, size: sympy.Expr) -> sympy.Expr:
        """A size as a number, or as a formula in the free ones."""
        return size.xreplace(self.formulas)

    def sizes_of(self, region: Region) -> frozenset[str]:
        """The names of the sizes that a region depends on, derived ones written out."""
        written = [self.write_out(size) for size in region_sizes(region)]
        return frozenset(each.name for size in written for each in size.free_symbols)

    def show_formula(self, size: sympy.Expr) -> str:
        """A size as a formula in the one free size, whatever that is called."""
        (name,) = self.free
        return str(self.write_out(size).xreplace({symbol(name): symbol("n")}))

    def numbers_at(self, /, **sizes: int) -> dict[str, int]:
        """The numbers of all sizes where some have other values."""
        return number_sizes(self.network, {**self.given, **sizes})


def merge_where_cheaper(task: Task, network: Network) -> Network:
    """Inline equations that are read often or have several terms, one by one, where the total gets cheaper."""
    for equation in reversed(network.equations):
        if can_inline(network, equation):
            candidate = merge_chains(drop_unused(inline(network, equation)))
            if _keeps_pinned(task, network, candidate) and _cost(task, candidate) < _cost(task, network):
                network = candidate
    return network


def _keeps_pinned(task: Task, network: Network, candidate: Network) -> bool:
    """Whether the equations with an order of their own are the same in both."""
    return all(e in candidate.equations for e in network.equations if e.name in task.pins)


def _cost(task: Task, merged: Network) -> Price:
    """What a network costs: the sum over its equations, each planned once."""
    missing = [equation for equation in merged.equations if equation not in task.costs]
    cleaned = clean_equations(merged, missing)
    for each, priced_regions in zip(cleaned, price_regions(task, merged, cleaned), strict=True):
        stage = each.stage([find_tree(task, priced) for priced in priced_regions])
        regime = Regime(merged, merged, (stage,), task.numbers, task.request)
        task.costs[each.equation] = regime.price(task.numbers)
    return sum(task.costs[equation] for equation in merged.equations)


class PricedRegion(NamedTuple):
    """One region to find a tree for, how its steps are priced, and the order pinned for it."""

    region: Region
    pricing: Pricing
    pin: Pin | None = None
    positions: tuple[int, ...] = ()


def price_regions(task: Task, merged: Network, cleaned: Iterable[Cleaned]) -> Iterator[list[PricedRegion]]:
    """The regions of each equation, one per term."""
    trained, varying = reached(merged, task.request.trained), find_varying(merged)
    for equation, regions, _ in cleaned:
        pinned = match_pins(task.pins.get(equation.name, ()), equation.name, regions)
        yield [
            PricedRegion(region, _pricing(task.request, region, trained, varying), *pinned.get(k, ()))
            for k, region in enumerate(regions)
        ]


def clean_regions(task: Task, merged: Network) -> tuple[tuple[Cleaned, ...], list[PricedRegion]]:
    """The equations of a merged network with their terms as regions, and the same with their prices in order."""
    cleaned = clean_equations(merged, merged.equations)
    return cleaned, [priced for each in price_regions(task, merged, cleaned) for priced in each]


def _pricing(request: Request, region: Region, trained: Container[str], varying: Varying) -> Pricing:
    bits = [(1 << k, access) for k, access in enumerate(region.accesses)]
    grads = sum(bit for bit, access in bits if request.mode == "train" and access.source in trained)
    fixed = sum(bit for bit, access in bits if request.mode == "serve" and varying.is_same(access))
    return Pricing(request.rate, grads, fixed, request.most_folded)


def find_tree(task: Task, priced: PricedRegion) -> ContractionTree:
    """The tree of a region at the numbers of the task, pinned or searched."""
    if priced not in task.trees:
        topology = Topology(priced.region, task.numbers, priced.pricing)
        if priced.pin is None:
            key = cache_key(priced.region, priced.pricing, task.search, lambda size: evaluate_size(size, task.numbers))
            (interval,) = find_cached(topology, key, lambda: [Interval(1, None, search_tree(topology, task.search))])
            task.trees[priced] = interval.tree
        else:
            task.trees[priced] = pinned_tree(topology, task.search, priced.pin, priced.positions)
    return task.trees[priced]


def lay_out_all(task: Task, priced_regions: Sequence[PricedRegion], found: Sequence[RegimeTrees]) -> list[RegimeTrees]:
    """Ranges whose trees are laid out, each as where it runs first."""
    known: dict[object, ContractionTree] = {}
    made: list[RegimeTrees] = []
    for low, high, trees in found:
        numbers = task.numbers
        if len(task.free) == 1:
            (name,) = task.free
            value = max(low, numbers[name] if high is None else min(high, numbers[name]))
            numbers = task.numbers_at(**{name: value})
        for priced, tree in zip(priced_regions, trees, strict=True):
            if (priced, tree) not in known:
                run = Run(numbers, task.request.machine, priced.pricing.trained, priced.pricing.fixed)
                known[priced, tree] = lay_out(tree, run)
        made.append((low, high, tuple(known[pair] for pair in zip(priced_regions, trees, strict=True))))
    return made
