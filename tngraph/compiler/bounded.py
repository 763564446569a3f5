"""Planning within bounds: of memory, by the front of cost against bytes, or of the largest value that is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from tngraph.compiler.fronts import FrontSearch
from tngraph.compiler.tasks import PlanProblem, PricedRegion, Task, find_tree
from tngraph.errors import PlanError
from tngraph.plans.plan import Plan
from tngraph.search.exact import MOST_LEAVES
from tngraph.search.objectives import Pricing, Rate
from tngraph.search.orders import find_order
from tngraph.search.region import ContractionTree, Topology
from tngraph.search.slicing import Sliceable, Slicing, slice_tree, tree_order
from tngraph.search.trees import Order, build_tree, order_cost


def plan_largest(problem: PlanProblem) -> Plan:
    """Return the cheapest plan found that writes no larger value than it may: with other trees, or in slices.

    Raises:
        PlanError: there is none.
    """
    task, most = problem.task, problem.task.request.largest
    assert most is not None
    search, rate = front_search(problem), task.request.rate
    whole = search.find(None, rate) or ()
    is_small = all(len(tree.region.accesses) <= MOST_LEAVES for tree in whole)
    within = search.find(most, rate) if is_small else None
    try:
        regimes = [search.make(trees) for trees in search.cut(whole, most)]
    except PlanError:
        if within is None:
            raise
        regimes = []
    if within is not None:
        regimes.append(search.make(within))
    return Plan((min(regimes, key=lambda regime: regime.price(task.numbers)),))


def check_given(task: Task) -> None:
    """Refuse run-time sizes without a number, since memory grows with them.

    Raises:
        PlanError: a run-time size has no number.
    """
    missing = [name for name in task.network.runtime_sizes() if name not in task.fixed]
    if missing:
        raise PlanError(
            f"how much memory a plan takes depends on {', '.join(map(repr, missing))}\n"
            "  give every run-time size a number: it is the largest that the limit is to hold for"
        )


def front_search(problem: PlanProblem) -> FrontSearch:
    """Return the functions that find, cut and put together the trees of a problem."""
    task = problem.task
    cutters = [_Cutter(task, priced) for priced in problem.regions]

    def find(most: int | None, rate: Rate) -> tuple[ContractionTree, ...] | None:
        trees = [
            _find_tree_within(task, priced, replace(priced.pricing, rate=rate, most_elements=most))
            for priced in problem.regions
        ]
        return tuple(tree for tree in trees if tree is not None) if None not in trees else None

    def cut(trees: tuple[ContractionTree, ...], most: int) -> Iterator[tuple[ContractionTree, ...]]:
        pairs = [cutter.cut(tree, most) for cutter, tree in zip(cutters, trees, strict=True)]
        yield from dict.fromkeys(zip(*pairs, strict=True))

    return FrontSearch(find, cut, problem.assembly.regime)


def _find_tree_within(task: Task, priced: PricedRegion, pricing: Pricing) -> ContractionTree | None:
    """Return the best tree of a region under another pricing, or None if a value is larger than it may be."""
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

    A large tree is rearranged with all trials for its first bound. The result is rearranged with one more trial for
    each bound that follows.

    Attributes:
        task: what to plan.
        priced: the region.
        rearranged: the tree that a large one was rearranged into for the bound before.
    """

    task: Task
    priced: PricedRegion
    rearranged: ContractionTree | None = None

    def cut(self, tree: ContractionTree, most: int) -> tuple[ContractionTree, ContractionTree]:
        """Return a tree in slices, in two orders.

        The first is the order that was sliced. The second is the best order of a slice, or for a large tree that of the
        tree as it is.
        """
        if len(self.priced.region.accesses) > MOST_LEAVES:
            first, second = (self._build(tree, slicing, most)[0] for slicing in self._slice_large(tree, most))
            return first, second
        return self._build(tree, slice_tree(tree, self.task.numbers, most, self.task.search), most)

    def _build(self, tree: ContractionTree, slicing: Slicing, most: int) -> tuple[ContractionTree, ContractionTree]:
        """Return the trees of a slicing: in the order that was sliced and, unless that is large, in the best order."""
        priced = self.priced
        if slicing.tree == tree and not slicing.indices:
            return tree, tree
        pricing = replace(priced.pricing, most_elements=most)
        topology = Topology(priced.region, self.task.numbers, pricing, slicing.indices)
        order: Order = tuple(tree_order(slicing.tree))
        is_final = priced.pin is not None or len(priced.region.accesses) > MOST_LEAVES
        best = order if is_final else find_order(topology, self.task.search, [order])[0]
        first, second = (replace(build_tree(topology, o, False), is_pinned=tree.is_pinned) for o in (order, best))
        return first, second

    def _slice_large(self, tree: ContractionTree, most: int) -> tuple[Slicing, Slicing]:
        """Return the cheapest slicing found, and that of the tree as it is.

        Nothing is searched if the tree as it is costs no more in slices than whole, except for adding them up once.
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
        except PlanError:  # the rearranged tree cannot be sliced this far, while this one can
            return own, own
        self.rearranged = other.tree
        return min(other, own, key=Slicing.rank), own
