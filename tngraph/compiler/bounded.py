"""Planning within bounds: of memory, by the front of cost against bytes, or of the largest value that is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from tngraph.compiler.fronts import FrontSearch
from tngraph.compiler.tasks import PricedRegion, Task, clean_regions, find_tree
from tngraph.errors import PlanError
from tngraph.language.network import Network
from tngraph.plans.assembly import assemble_plan
from tngraph.plans.plan import Plan, Regime
from tngraph.search.exact import MOST_LEAVES
from tngraph.search.objectives import Pricing, Rate
from tngraph.search.orders import find_order
from tngraph.search.region import ContractionTree, Topology
from tngraph.search.slicing import Sliceable, Slicing, slice_tree, tree_order
from tngraph.search.trees import Order, build_tree, order_cost


def plan_within(task: Task, merged: Network, most: int) -> Plan:
    """The cheapest plan found that writes no larger value: with other trees, or in slices.

    Raises:
        PlanError: there is none.
    """
    search, rate = front_search(task, merged), task.request.rate
    whole = search.find(None, rate) or ()
    is_small = all(len(tree.region.accesses) <= MOST_LEAVES for tree in whole)
    within = search.find(most, rate) if is_small else None
    try:
        found = [search.make(trees) for trees in search.cut(whole, most)]
    except PlanError:
        if within is None:
            raise
        found = []
    if within is not None:
        found.append(search.make(within))
    return Plan((min(found, key=lambda regime: regime.price(task.numbers)),))


def check_given(task: Task) -> None:
    """Refuse a run-time size without a number: memory grows with it.

    Raises:
        PlanError: there is one.
    """
    missing = [name for name in task.network.runtime_sizes() if name not in task.given]
    if missing:
        raise PlanError(
            f"how much memory a plan takes depends on {', '.join(map(repr, missing))}\n"
            "  give every run-time size a number: it is the largest that the limit is to hold for"
        )


def front_search(task: Task, merged: Network) -> FrontSearch:
    """How the trees of a network are found, cut and put together."""
    cleaned, priced_regions = clean_regions(task, merged)
    cutters = [_Cutter(task, priced) for priced in priced_regions]

    def find(most: int | None, rate: Rate) -> tuple[ContractionTree, ...] | None:
        trees = [
            _find_tree_within(task, priced, replace(priced.pricing, rate=rate, most_elements=most))
            for priced in priced_regions
        ]
        return tuple(tree for tree in trees if tree is not None) if None not in trees else None

    def cut(trees: tuple[ContractionTree, ...], most: int) -> Iterator[tuple[ContractionTree, ...]]:
        pairs = [cutter.cut(tree, most) for cutter, tree in zip(cutters, trees, strict=True)]
        yield from dict.fromkeys(zip(*pairs, strict=True))

    def make(trees: tuple[ContractionTree, ...]) -> Regime:
        made = assemble_plan(task.network, merged, cleaned, [(1, None, trees)], task.numbers, task.request, ())
        return made.regimes[0]

    return FrontSearch(find, cut, make)


def _find_tree_within(task: Task, priced: PricedRegion, pricing: Pricing) -> ContractionTree | None:
    """The best tree of a region under another pricing; None where values get larger than they may."""
    topology = Topology(priced.region, task.numbers, pricing)
    if priced.pin is None:
        order, is_proven = find_order(topology, task.search)
    else:
        order, is_proven = tuple(tree_order(find_tree(task, priced))), False
    if order_cost(topology, order) == inf:
        return None
    return replace(build_tree(topology, order, is_proven), is_pinned=priced.pin is not None)


@dataclass
class _Cutter:
    """Cuts the trees of a region into slices under one bound after the other.

    A large tree is rearranged with all trials for its first bound, and what that gives with one more for each bound
    that follows.

    Attributes:
        task: what to plan.
        priced: whose trees they are.
        rearranged: the tree that a large one was rearranged into for the bound before.
    """

    task: Task
    priced: PricedRegion
    rearranged: ContractionTree | None = None

    def cut(self, tree: ContractionTree, most: int) -> tuple[ContractionTree, ContractionTree]:
        """A tree in slices: in the order that was sliced and in the best one of a slice; a large one in two orders."""
        if len(self.priced.region.accesses) > MOST_LEAVES:
            first, second = (self._build(tree, slicing, most)[0] for slicing in self._slice_large(tree, most))
            return first, second
        return self._build(tree, slice_tree(tree, self.task.numbers, most, self.task.search), most)

    def _build(self, tree: ContractionTree, slicing: Slicing, most: int) -> tuple[ContractionTree, ContractionTree]:
        """A slicing of a tree as trees: in the order that was sliced and, unless that is large, in the best one."""
        priced = self.priced
        if slicing.tree == tree and not slicing.indices:
            return tree, tree
        pricing = replace(priced.pricing, most_elements=most)
        topology = Topology(priced.region, self.task.numbers, pricing, slicing.indices)
        cut: Order = tuple(tree_order(slicing.tree))
        is_kept = priced.pin is not None or len(priced.region.accesses) > MOST_LEAVES
        best = cut if is_kept else find_order(topology, self.task.search, [cut])[0]
        first, second = (replace(build_tree(topology, o, False), is_pinned=tree.is_pinned) for o in (cut, best))
        return first, second

    def _slice_large(self, tree: ContractionTree, most: int) -> tuple[Slicing, Slicing]:
        """The cheapest slicing found, and that of the tree as it is.

        Nothing is searched where the tree as it is costs no more in slices than whole, but for adding them up once.
        """
        numbers, search = self.task.numbers, self.task.search
        own = replace(slice_tree(replace(tree, is_pinned=True), numbers, most), tree=tree)
        whole = Sliceable(tree, numbers)
        if tree.is_pinned or own.total <= whole.slicing(()).total + whole.result:
            return own, own
        if self.rearranged is not None:
            search = replace(search, trials=1)
        try:
            other = slice_tree(self.rearranged or tree, numbers, most, search)
        except PlanError:  # of the tree before; this one can be sliced so far
            return own, own
        self.rearranged = other.tree
        return min(other, own, key=Slicing.rank), own
