"""The best tree of a region at every value of a run-time size, and the values at which it changes.

The price of a fixed tree is affine in a size such as the batch, so the least price is the lower envelope of lines and
concave. Between two sizes whose best trees are known, their lines cross once; if nothing is better at the integers
on both sides of the crossing, concavity leaves no room for anything better in between. With exact solves this finds
every interval with about two solves each, and proves it.

If prices are not affine (another objective, a size that enters twice), the best trees at powers of two are compared.
No interval is proven then, unless there is only one tree.

A leg may be empty at small values (``height - 4``) and too large at large ones. So the search runs between the least
and the greatest value at which every leg has a size.

Source: the recursion is the parametric search of Eisner and Severance (1976); on integers it needs no fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

import sympy

from tngraph.errors import SizeError
from tngraph.language.legs import bare_legs, leg_indices, leg_size
from tngraph.language.network import Leg, Read
from tngraph.language.sizes import LARGEST, evaluate_size
from tngraph.language.sizing import DEFAULT_RUNTIME_SIZE
from tngraph.search.objectives import Price, Pricing, Weighted
from tngraph.search.orders import Search, find_order
from tngraph.search.region import ContractionTree, Region, Topology, work_of
from tngraph.search.trees import Order, build_tree

LARGEST_SEARCHED = 2**20
"""The largest run-time size regimes are searched for; the last one serves all sizes beyond."""


class Interval(NamedTuple):
    """A range of a run-time size, without end where `high` is None, and the tree that is best there."""

    low: int
    high: int | None
    tree: ContractionTree


Writer = Callable[[sympy.Expr], sympy.Expr]
"""Writes a size out in sizes that nothing else defines."""


def find_intervals(
    region: Region,
    pricing: Pricing,
    search: Search,
    size: sympy.Symbol,
    write_out: Writer,
    numbers_at: Callable[[int], Mapping[str, int]],
) -> tuple[Interval, ...]:
    """Return the best trees of a region by a run-time size, from 1 on, in the fewest intervals.

    Args:
        region: what to contract.
        pricing: the price of a step.
        search: seed and effort of every solve.
        size: the run-time size.
        write_out: writes sizes that are derived from it in terms of it.
        numbers_at: returns all sizes at a value of that one [elements].
    """
    solver = Solver(region, pricing, search, numbers_at)
    if not any(write_out(expr).has(size) for expr in region_sizes(region)):
        return (Interval(1, None, solver.solve(DEFAULT_RUNTIME_SIZE)),)
    solver.low, solver.high = _find_range(region, numbers_at)
    if isinstance(pricing.rate, Weighted) and is_affine(region, size, write_out):
        solver.refine(solver.low, solver.high)
        return _envelope(solver)
    return _by_sampling(solver)


def region_sizes(region: Region) -> list[sympy.Expr]:
    """Return the sizes of all indices of a region, and of the legs it reads at positions."""
    legs = [leg for access in region.accesses for leg in bare_legs(access)]
    return [
        *(index.size for index in leg_indices(legs)),
        *(leg.leg.size for leg in legs if isinstance(leg, Read)),
    ]


def has_sizes(region: Region, numbers_at: Callable[[int], Mapping[str, int]], value: int) -> bool:
    """Return whether every leg of a region has a size at a value: at least 1, and within bounds."""
    try:
        numbers = numbers_at(value)
        return all(evaluate_size(expr, numbers, LARGEST) >= 1 for expr in region_sizes(region))
    except SizeError:
        return False


def _find_range(region: Region, numbers_at: Callable[[int], Mapping[str, int]]) -> tuple[int, int]:
    """Return the least and the greatest value around the default at which every leg has a size."""
    ends = []
    for end in (1, LARGEST_SEARCHED):
        outside, inside = end, end if has_sizes(region, numbers_at, end) else DEFAULT_RUNTIME_SIZE
        while abs(outside - inside) > 1:
            middle = (outside + inside) // 2
            outside, inside = (outside, middle) if has_sizes(region, numbers_at, middle) else (middle, inside)
        ends.append(inside)
    return ends[0], ends[1]


def is_affine(region: Region, size: sympy.Symbol, write_out: Writer) -> bool:
    """Return whether a size enters every step of every tree at most linearly.

    It does if at most one index and at most one leg read at positions depend on it, both linearly. If both do, the
    index must be one that moves the read, and must stay in the result: then no step has both the leg and the index. (If
    the index were summed, a transposed convolution would have both.)
    """
    legs = [leg for access in region.accesses for leg in bare_legs(access)]
    indices = [index for index in leg_indices(legs) if write_out(index.size).has(size)]
    reads = [leg for leg in legs if isinstance(leg, Read) and write_out(leg.leg.size).has(size)]
    if len(indices) > 1 or len(reads) > 1 or any(indices[0] not in read.indices for read in reads if indices):
        return False
    if reads and any(index not in region.legs for index in indices):
        return False
    return all(_is_linear(write_out(expr), size) for expr in (*(i.size for i in indices), *(r.leg.size for r in reads)))


def _is_linear(expr: sympy.Expr, size: sympy.Symbol) -> bool:
    return bool(expr.is_polynomial(size)) and size not in sympy.diff(expr, size).free_symbols


@dataclass
class Solver:
    """Solves a region at values of one size, and remembers every tree that it finds."""

    region: Region
    pricing: Pricing
    search: Search
    numbers_at: Callable[[int], Mapping[str, int]]
    orders: list[Order] = field(default_factory=list)
    trees: list[ContractionTree] = field(default_factory=list)
    solved: dict[int, ContractionTree] = field(default_factory=dict)
    prices: dict[tuple[int, int], Price] = field(default_factory=dict)
    low: int = 1
    high: int = LARGEST_SEARCHED

    def solve(self, value: int) -> ContractionTree:
        """Return the best tree at one value."""
        if value not in self.solved:
            topology = Topology(self.region, self.numbers_at(value), self.pricing)
            is_end = len(self.solved) < 2  # in between, the orders proposed at both ends are compared
            order, is_proven = find_order(topology, self.search, self.orders, proposes=is_end)
            tree = build_tree(topology, order, is_proven)
            if tree not in self.trees:
                self.orders.append(order)
                self.trees.append(tree)
            self.solved[value] = tree
        return self.solved[value]

    def price(self, tree: ContractionTree, value: int) -> Price:
        """Return the price of one of the trees at a value."""
        key = self.trees.index(tree), value
        if key not in self.prices:
            self.prices[key] = price_tree(tree, self.numbers_at(value), self.pricing)
        return self.prices[key]

    def line(self, tree: ContractionTree) -> tuple[int, int]:
        """Return the slope and the intercept of an affine price."""
        low = self.low
        first, second = int(self.price(tree, low)), int(self.price(tree, low + 1))
        return second - first, first - low * (second - first)

    def refine(self, low: int, high: int) -> None:
        """Solve wherever another tree may be best between two values."""
        left, right = self.solve(low), self.solve(high)
        if high - low < 2 or self.line(left) == self.line(right):
            return
        middle = min(high - 1, max(low, _last_before(self.line(left), self.line(right))))
        if self.price(self.solve(middle), middle) < self.price(left, middle):
            self.refine(low, middle)
            self.refine(middle, high)
        elif self.price(self.solve(middle + 1), middle + 1) < self.price(right, middle + 1):
            self.refine(middle + 1, high)


def _last_before(left: tuple[int, int], right: tuple[int, int]) -> int:
    """Return the last integer at which the left line is not above the right one, which is the flatter."""
    steeper = left[0] - right[0]
    return (right[1] - left[1]) // steeper if steeper > 0 else LARGEST_SEARCHED


def _envelope(solver: Solver) -> tuple[Interval, ...]:
    """Return the lower envelope, on the integers, of the lines of all trees: an interval for each of its lines."""
    lines = {tree: solver.line(tree) for tree in solver.trees}
    is_proven = all(tree.is_proven for tree in solver.solved.values())

    def best(value: int) -> ContractionTree:
        return min(lines, key=lambda tree: (lines[tree][0] * value + lines[tree][1], lines[tree][0]))

    intervals: list[Interval] = []
    low = 1
    while True:
        tree = best(max(low, solver.low))
        ends = [_last_before(lines[tree], other) for other in lines.values() if other[0] < lines[tree][0]]
        high = min(ends, default=LARGEST_SEARCHED)
        marked = replace(tree, is_proven=is_proven)
        if high >= LARGEST_SEARCHED:
            return (*intervals, Interval(low, None, marked))
        intervals.append(Interval(low, high, marked))
        low = high + 1


def _by_sampling(solver: Solver) -> tuple[Interval, ...]:
    """Return intervals from samples at powers of two. Where the best trees of two differ, bisect for the change."""
    inner = (2**k for k in range(LARGEST_SEARCHED.bit_length()))
    points = [solver.low, *(point for point in inner if solver.low < point < solver.high), solver.high]
    for point in points:
        solver.solve(point)
    best = [min(solver.trees, key=lambda tree, point=point: solver.price(tree, point)) for point in points]  # type: ignore[misc]
    intervals, low = [], 1
    for k in range(1, len(points)):
        if best[k] != best[k - 1]:
            change = _bisect(solver, best[k - 1], best[k], points[k - 1], points[k])
            intervals.append(Interval(low, change - 1, replace(best[k - 1], is_proven=False)))
            low = change
    return (*intervals, Interval(low, None, replace(best[-1], is_proven=_is_only_tree(solver.region))))


def _is_only_tree(region: Region) -> bool:
    """Return whether there is only one tree: at most two tensors, and no read to lay out."""
    reads = [leg for access in region.accesses for leg in bare_legs(access) if isinstance(leg, Read)]
    return len(region.accesses) <= 2 and not reads


def _bisect(solver: Solver, before: ContractionTree, after: ContractionTree, low: int, high: int) -> int:
    """Return a value at which the second tree is cheaper, while at the value before it is not."""
    while high - low > 1:
        middle = (low + high) // 2
        if solver.price(after, middle) < solver.price(before, middle):
            high = middle
        else:
            low = middle
    return high


def price_tree(tree: ContractionTree, numbers: Mapping[str, int], pricing: Pricing) -> Price:
    """Return the price of the joins of a tree at any sizes, which the search minimised at its own sizes.

    Args:
        tree: the tree of a region.
        numbers: an integer for every named size [elements].
        pricing: the price of a step.
    """
    sizes: dict[Leg, int] = {}

    def size(legs: Iterable[Leg]) -> int:
        return prod(sizes[leg] if leg in sizes else sizes.setdefault(leg, size_of(leg)) for leg in legs)

    def size_of(leg: Leg) -> int:
        return evaluate_size(leg_size(leg), numbers)

    legs = [bare_legs(access) for access in tree.region.accesses]
    leaves = [1 << k for k in range(len(legs))]
    total: list[Price] = [0] * len(legs)
    for step in tree.steps:
        legs.append(step.legs)
        leaves.append(sum({leaves[o] for o in step.operands}))
        price = sum(total[o] for o in step.operands)
        if pricing.is_folded(leaves[-1], size(step.legs)):
            price = 0
        elif len(step.operands) == 2:
            work = work_of(step, [legs[o] for o in step.operands], size)
            grads = [int(bool(leaves[o] & pricing.trained)) for o in step.operands]
            price += pricing.rate(work._replace(left_grad=grads[0], right_grad=grads[1]))
        total.append(price)
    return total[-1]


RegimeTrees = tuple[int, int | None, tuple[ContractionTree, ...]]
"""The first and last value of a size, and a tree for each of several regions."""


def refine_intervals(columns: Iterable[Sequence[Interval]]) -> list[RegimeTrees]:
    """Return the common refinement of the intervals of several regions: ranges in which no tree changes."""
    columns = [list(column) for column in columns]
    lows = sorted({interval.low for column in columns for interval in column} | {1})
    ranges: list[RegimeTrees] = []
    for k, low in enumerate(lows):
        trees = tuple(max((p for p in column if p.low <= low), key=lambda p: p.low).tree for column in columns)
        ranges.append((low, lows[k + 1] - 1 if k + 1 < len(lows) else None, trees))
    return ranges
