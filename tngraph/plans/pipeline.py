"""The pipeline of a plan, top to bottom: rewrites, regions, the best tree of each at every size, regimes.

A run-time size that is given a number is planned for at this number; the others are *free*: the plan is the best at
every value of them. With one free size every region is solved for all its values and the plan's regimes are the common
refinement. With several, the regions are solved on a grid, and the regime of least cost runs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product as combinations
from math import inf
from typing import NamedTuple

import sympy

from tngraph.errors import PlanError
from tngraph.kernels.folding import Varying, find_varying
from tngraph.language.binding import check_sizes
from tngraph.language.network import Equation, Network
from tngraph.language.sizes import evaluate_size, product, symbol
from tngraph.planning.exact import MOST_LEAVES
from tngraph.planning.objectives import Goal, Mode, Objective, Price, Pricing, Rate, Weighted, make_goal
from tngraph.planning.pinning import Nested, Pin, match_pins, read_orders
from tngraph.planning.regimes import Piece, Range, Solver, find_pieces, has_sizes, refine_pieces, region_sizes
from tngraph.planning.region import ContractionTree, Region, Topology
from tngraph.planning.rewrites import can_inline, drop_unused, inline, merge_chains, reached
from tngraph.planning.search import Search, find_order, pinned_tree, search_tree
from tngraph.planning.sizing import number_sizes
from tngraph.planning.slicing import slice_tree, tree_order
from tngraph.planning.trees import Order, build_tree, order_cost
from tngraph.plans.assembly import Cleaned, assemble_plan, clean_equations
from tngraph.plans.cache import cache_key, find_cached
from tngraph.plans.fronts import Front, FrontSearch, find_front
from tngraph.plans.plans import Plan, Regime

GRID = (1, 32, 1024)
"""The values of each of several free sizes at which trees are searched."""
MOST_GRID = 3
"""Where more sizes are free than this, the plan is made for the default sizes alone."""


def plan(
    network: Network,
    sizes: Mapping[str, int] | None = None,
    *,
    mode: Mode = "infer",
    minimize: Objective = "flops",
    requires_grad: Mapping[str, bool] | None = None,
    memory_limit: int | None = None,
    largest: int | None = None,
    itemsize: int = 4,
    search: Search | None = None,
    order: Nested | Mapping[str, Nested] | None = None,
) -> Plan:
    """Find in which order to contract a network.

    Args:
        network: what to plan.
        sizes: numbers for run-time sizes and other values for compile-time ones. The order is the best found at
            these; at every value of the run-time sizes that are not given. Counts hold at all sizes.
        mode: ``infer``, one call; ``train``, forward and backward; ``serve``, many calls with the same weights.
        minimize: ``flops`` (all operations, elementwise ones too), ``memory``, ``writes``, ``time``, weights as
            ``{"flops": 1, "writes": 8}``, or a function of a step, which is given a `Work`.
        requires_grad: which tensors take a gradient; params and inputs do when it does not say.
        memory_limit: the most that a call may hold; in ``train`` what it may keep for the backward pass, in ``serve``
            what may be folded into buffers [bytes].
        largest: the most that a step may write but for results; what no order does is run slice by slice [elements].
        itemsize: of an element, 4 for float32 [bytes].
        search: seed and effort.
        order: the order of the only equation, pinned by hand: ``"((x w1) (w2 w3))"`` or nested sequences of
            names; or the orders of some equations by name. What they leave open is searched.

    Returns:
        The plan; the same arguments give the same plan.

    Raises:
        SizeError: an unknown size, or a number that is not a positive integer.
        PlanError: an order, a mode, an objective or a limit that does not fit the network.
        TypeError: something else than a network.
    """
    if not isinstance(network, Network):
        raise TypeError(f"plan takes a network, and not {network!r}; tg.load reads one from a file")
    goal = make_goal(network, mode, minimize, requires_grad, itemsize, memory_limit, largest)
    given = dict(sizes or {})
    numbers = number_sizes(network, given)
    check_sizes(network, numbers)
    used = drop_unused(network)
    chained = merge_chains(used)
    kept = {equation.name for equation in chained.equations}
    pins = read_orders(order, {equation.name: equation.name in kept for equation in network.equations})
    task = _Task(network, given, goal, search or Search(), pins)
    if goal.is_bounded:
        _check_given(task)
    unpinned = _plan(replace(task, pins={}, costs={}), chained) if pins else None
    return replace(_plan(task, chained), unpinned=unpinned)


def _plan(task: _Task, chained: Network) -> Plan:
    """The plan of a network whose linear chains are merged."""
    merged = _merge_where_cheaper(task, chained)
    if task.goal.largest is not None:
        return _plan_within(task, merged, task.goal.largest)
    if task.goal.is_bounded:
        front = find_front(_front_search(task, merged), task.numbers)
        return front.points[-1].plan if task.goal.memory_limit is None else front.within(task.goal.memory_limit)
    if task.goal.mode == "serve" and task.goal.memory_limit is not None:
        return _fold_within(task, chained, task.goal.memory_limit)
    return _find_regimes(task, merged)


def front(
    network: Network,
    sizes: Mapping[str, int] | None = None,
    *,
    mode: Mode = "infer",
    minimize: Objective = "flops",
    requires_grad: Mapping[str, bool] | None = None,
    itemsize: int = 4,
    search: Search | None = None,
) -> Front:
    """Cost against memory: plans of which none is both cheaper and smaller than another.

    Args:
        network: what to plan.
        sizes: numbers for all run-time sizes, and other values for compile-time ones.
        mode: ``infer``, where memory is the peak of a call; ``train``, where it is what autograd keeps.
        minimize: what cost is, as for `plan`.
        requires_grad: as for `plan`.
        itemsize: of an element [bytes].
        search: seed and effort.

    Raises:
        SizeError: an unknown size, or a number that is not a positive integer.
        PlanError: a run-time size without a number, or arguments that do not fit the network.
    """
    goal = make_goal(network, mode, minimize, requires_grad, itemsize)
    if mode == "serve":
        raise PlanError("there is no front in serve\n  memory_limit says how much is folded into buffers")
    task = _Task(network, dict(sizes or {}), goal, search or Search(), {})
    check_sizes(network, task.numbers)
    _check_given(task)
    merged = _merge_where_cheaper(task, merge_chains(drop_unused(network)))
    return find_front(_front_search(task, merged), task.numbers)


def _plan_within(task: _Task, merged: Network, most: int) -> Plan:
    """The cheapest plan found that writes no larger value: with other trees, or in slices.

    Raises:
        PlanError: there is none.
    """
    search, rate = _front_search(task, merged), task.goal.rate
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


def _check_given(task: _Task) -> None:
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


def _front_search(task: _Task, merged: Network) -> FrontSearch:
    """How the trees of a network are found, cut and put together."""
    cleaned = clean_equations(merged, merged.equations)
    slots = [slot for each in _slots(task, merged, cleaned) for slot in each]

    def find(most: int | None, rate: Rate) -> tuple[ContractionTree, ...] | None:
        trees = [_find_tree_within(task, slot, replace(slot.pricing, rate=rate, most_elements=most)) for slot in slots]
        return tuple(tree for tree in trees if tree is not None) if None not in trees else None

    def cut(trees: tuple[ContractionTree, ...], most: int) -> Iterator[tuple[ContractionTree, ...]]:
        pairs = [_cut_tree(task, slot, tree, most) for slot, tree in zip(slots, trees, strict=True)]
        yield from dict.fromkeys(zip(*pairs, strict=True))

    def make(trees: tuple[ContractionTree, ...]) -> Regime:
        made = assemble_plan(task.network, merged, cleaned, [(1, None, trees)], task.numbers, task.goal, ())
        return made.regimes[0]

    return FrontSearch(find, cut, make)


def _find_tree_within(task: _Task, slot: _Slot, pricing: Pricing) -> ContractionTree | None:
    """The best tree of a slot under another pricing; None where values get larger than they may."""
    topology = Topology(slot.region, task.numbers, pricing)
    if slot.pin is None:
        order, is_proven = find_order(topology, task.search)
    else:
        order, is_proven = tuple(tree_order(_find_tree(task, slot))), False
    if order_cost(topology, order) == inf:
        return None
    return replace(build_tree(topology, order, is_proven), is_pinned=slot.pin is not None)


def _cut_tree(task: _Task, slot: _Slot, tree: ContractionTree, most: int) -> tuple[ContractionTree, ContractionTree]:
    """A tree in slices, in the order that was sliced and in the best one of a slice."""
    if len(slot.region.accesses) == 1:
        return tree, tree
    found = slice_tree(tree, task.numbers, most, task.search)
    if found.tree == tree and not found.indices:
        return tree, tree
    topology = Topology(slot.region, task.numbers, replace(slot.pricing, most_elements=most), found.indices)
    cut: Order = tuple(tree_order(found.tree))
    if slot.pin is not None or len(slot.region.accesses) > MOST_LEAVES:
        best: Order = cut
    else:
        best, _ = find_order(topology, task.search, [cut])
    first, second = (replace(build_tree(topology, o, False), is_pinned=tree.is_pinned) for o in (cut, best))
    return first, second


def _fold_within(task: _Task, network: Network, limit: int) -> Plan:
    """The plan that folds the largest values whose buffers together stay within a limit [bytes].

    The search bounds one value. So the bound is lowered until the sum, which is exact, fits; at 0 nothing is folded.
    """
    most = limit // task.goal.itemsize
    while True:
        tried = replace(task, goal=replace(task.goal, most_folded=most), costs={})
        found = _find_regimes(tried, _merge_where_cheaper(tried, network))
        if evaluate_size(found.folded, found.sizes) <= limit:
            return found
        largest = max(evaluate_size(product(buffer.shape), found.sizes) for buffer in found.folding.buffers)
        most = min(most // 2, largest - 1)


def plan_for_serving(known: Plan, sizes: Mapping[str, int], memory_limit: int | None, itemsize: int) -> Plan:
    """Plan the network of another plan for calls with weights that never change.

    Args:
        known: whose objective, run-time sizes and gradients of inputs are kept.
        sizes: numbers for compile-time sizes.
        memory_limit: what may be folded into buffers [bytes].
        itemsize: of an element [bytes].

    Raises:
        PlanError: a limit that is no positive integer.
    """
    network, goal = known.network, known.goal
    fixed = {name: known.sizes[name] for name in network.runtime_sizes() if name not in known.free}
    return plan(
        network,
        {**fixed, **sizes},
        mode="serve",
        minimize=goal.minimize,
        requires_grad={port.name: port.name in goal.trained for port in network.inputs},
        memory_limit=memory_limit,
        itemsize=itemsize,
    )


@dataclass
class _Task:
    """What to plan, at which sizes and how; the trees and the equations' costs found so far."""

    network: Network
    given: Mapping[str, int]
    goal: Goal
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
        if self.goal.is_bounded:
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


def _merge_where_cheaper(task: _Task, network: Network) -> Network:
    """Inline equations that are read often or have several terms, one by one, where the total gets cheaper."""
    for equation in reversed(network.equations):
        if can_inline(network, equation):
            candidate = merge_chains(drop_unused(inline(network, equation)))
            if _keeps_pinned(task, network, candidate) and _cost(task, candidate) < _cost(task, network):
                network = candidate
    return network


def _keeps_pinned(task: _Task, network: Network, candidate: Network) -> bool:
    """Whether the equations with an order of their own are the same in both."""
    return all(e in candidate.equations for e in network.equations if e.name in task.pins)


def _cost(task: _Task, merged: Network) -> Price:
    """What a network costs: the sum over its equations, each planned once."""
    missing = [equation for equation in merged.equations if equation not in task.costs]
    cleaned = clean_equations(merged, missing)
    for each, slots in zip(cleaned, _slots(task, merged, cleaned), strict=True):
        stage = each.stage([_find_tree(task, slot) for slot in slots])
        regime = Regime(merged, merged, (stage,), task.numbers, task.goal)
        task.costs[each.equation] = regime.price(task.numbers)
    return sum(task.costs[equation] for equation in merged.equations)


class _Slot(NamedTuple):
    """One region to find a tree for, how its steps are priced, and the order pinned for it."""

    region: Region
    pricing: Pricing
    pin: Pin | None = None
    positions: tuple[int, ...] = ()


def _slots(task: _Task, merged: Network, cleaned: Iterable[Cleaned]) -> Iterator[list[_Slot]]:
    """The slots of each equation, one per term."""
    trained, varying = reached(merged, task.goal.trained), find_varying(merged)
    for equation, regions, _ in cleaned:
        pinned = match_pins(task.pins.get(equation.name, ()), equation.name, regions)
        yield [
            _Slot(region, _pricing(task.goal, region, trained, varying), *pinned.get(k, ()))
            for k, region in enumerate(regions)
        ]


def _pricing(goal: Goal, region: Region, trained: Container[str], varying: Varying) -> Pricing:
    bits = [(1 << k, access) for k, access in enumerate(region.accesses)]
    grads = sum(bit for bit, access in bits if goal.mode == "train" and access.source in trained)
    fixed = sum(bit for bit, access in bits if goal.mode == "serve" and varying.is_same(access))
    return Pricing(goal.rate, grads, fixed, goal.most_folded)


def _find_tree(task: _Task, slot: _Slot) -> ContractionTree:
    """The tree of a slot at the numbers of the task, pinned or searched."""
    if slot not in task.trees:
        topology = Topology(slot.region, task.numbers, slot.pricing)
        if slot.pin is None:
            key = cache_key(slot.region, slot.pricing, task.search, lambda size: evaluate_size(size, task.numbers))
            (piece,) = find_cached(topology, key, lambda: [Piece(1, None, search_tree(topology, task.search))])
            task.trees[slot] = piece.tree
        else:
            task.trees[slot] = pinned_tree(topology, task.search, slot.pin, slot.positions)
    return task.trees[slot]


def _find_regimes(task: _Task, merged: Network) -> Plan:
    """A plan of as few regimes as there are best orders."""
    cleaned = clean_equations(merged, merged.equations)
    slots = [slot for each in _slots(task, merged, cleaned) for slot in each]
    is_additive = isinstance(task.goal.rate, Weighted)
    found: list[Range]
    if len(task.free) == 1:
        found = refine_pieces(_find_pieces(task, slot) for slot in slots)
    elif 1 < len(task.free) <= MOST_GRID and is_additive:
        found = [(1, None, trees) for trees in _find_combinations(task, slots)]
    else:
        found = [(1, None, tuple(_find_tree(task, slot) for slot in slots))]
    return assemble_plan(task.network, merged, cleaned, found, task.numbers, task.goal, task.free)


def _find_pieces(task: _Task, slot: _Slot) -> Sequence[Piece]:
    """The trees of a slot at all values of the one free size."""
    if slot.pin is not None:
        return (Piece(1, None, _find_tree(task, slot)),)
    (name,) = task.free

    def numbers_at(value: int) -> dict[str, int]:
        return task.numbers_at(**{name: value})

    def search() -> Sequence[Piece]:
        return find_pieces(slot.region, slot.pricing, task.search, symbol(name), task.write_out, numbers_at)

    key = cache_key(slot.region, slot.pricing, task.search, task.show_formula)
    return find_cached(Topology(slot.region, task.numbers, slot.pricing), key, search)


def _find_combinations(task: _Task, slots: Sequence[_Slot]) -> list[tuple[ContractionTree, ...]]:
    """The trees of all slots that are the best together somewhere on a grid of the free sizes, in as few as will do."""
    points = [*combinations(GRID, repeat=len(task.free)), tuple(task.numbers[name] for name in task.free)]

    def numbers_of(k: int) -> dict[str, int]:
        return task.numbers_at(**dict(zip(task.free, points[k], strict=True)))

    valid = [k for k in range(len(points)) if all(has_sizes(slot.region, numbers_of, k) for slot in slots)]
    numbers = [numbers_of(k) for k in valid]
    solvers = [_solver(task, slot, numbers) for slot in slots]
    chosen: list[tuple[ContractionTree, ...]] = []

    def price(trees: Sequence[ContractionTree], k: int) -> Price:
        return sum(solver.price(tree, k) for solver, tree in zip(solvers, trees, strict=True))

    for k in range(len(numbers)):
        best = tuple(solver.solve(k) for solver in solvers)
        if price(best, k) < min((price(trees, k) for trees in chosen), default=inf):
            chosen.append(best)
    if len(chosen) == 1:
        return chosen
    # Between the points of the grid nothing is proven but what does not depend on where one is.
    moving = [not task.sizes_of(slot.region).isdisjoint(task.free) for slot in slots]
    return [
        tuple(replace(tree, is_proven=tree.is_proven and not moves) for tree, moves in zip(trees, moving, strict=True))
        for trees in chosen
    ]


def _solver(task: _Task, slot: _Slot, numbers: Sequence[Mapping[str, int]]) -> Solver:
    """A solver that has solved a slot at the k-th of some numbers; a pinned one has the same tree everywhere."""
    solver = Solver(slot.region, slot.pricing, task.search, numbers.__getitem__)
    if slot.pin is not None:
        trees = [_find_tree(task, slot)] * len(numbers)
    else:
        key = cache_key(
            slot.region, slot.pricing, task.search, lambda size: [evaluate_size(size, each) for each in numbers]
        )
        topology = Topology(slot.region, task.numbers, slot.pricing)
        trees = [piece.tree for piece in find_cached(topology, key, lambda: _solve_points(solver, len(numbers)))]
    return replace(solver, trees=[*dict.fromkeys(trees)], solved=dict(enumerate(trees)))


def _solve_points(solver: Solver, count: int) -> list[Piece]:
    """The trees at some points, the k-th as the range that is k."""
    return [Piece(k + 1, k + 1 if k < count - 1 else None, solver.solve(k)) for k in range(count)]
