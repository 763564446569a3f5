"""The exact search: the cheapest tree over all subsets of a region's leaves, outer products included.

A dynamic program in the manner of Held and Karp: cost[S] = min over splits S = A + B of cost[A] + cost[B] +
price(A, B), for every choice of which unresolved reads are laid out. It runs in layers of equal subset size, each
a handful of NumPy operations over all subsets and splits at once, in 64-bit integers where prices are integers.
Costs beyond the incumbent's are clipped, so nothing can overflow unnoticed.

Source: the subset program is Pfeifer, Haegeman, Verstraete (2014), arXiv 1304.6112; volumes with convolved
indices, the masks for unresolved reads, gradients and values folded beforehand are ours.
"""

from __future__ import annotations

from functools import cached_property
from itertools import combinations
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from tngraph.search.machine import BEYOND, Work, clip
from tngraph.search.objectives import PerStep, Price, Pricing, Rate, Weighted
from tngraph.search.region import MOST_UNRESOLVED, Topology
from tngraph.search.trees import Order, order_cost

MOST_LEAVES = 14
"""Regions of at most this many leaves are searched exactly: 3^14 splits take a fraction of a second."""

MOST_SPLITS = 2**25
"""A search over more splits than this, counted once per choice of laid-out reads, is not begun."""

MOST_CALLS = 2**18
"""The same where a user's function is called for each split."""

_LARGEST = 2**59
_INFINITE = np.int64(2**60)
_CHUNK = 12

Masks = npt.NDArray[np.int64]
Prices = npt.NDArray[Any]
"""64-bit integers, or floats where the objective is one of floats."""


def prove_order(topology: Topology, incumbent: Order) -> tuple[Order, bool]:
    """Return the cheapest order of all, and whether it is proven to be.

    Args:
        topology: the region by number, at numeric sizes, with its pricing.
        incumbent: a valid order; its cost bounds the search.

    Returns:
        An order at most as expensive as the incumbent. It is proven unless the region is too large for the program:
            more than `MOST_LEAVES` leaves, `MOST_SPLITS` splits, as many unresolved reads as a region may have, 62
            distinct groups of indices, or costs of 2^59 and more.
    """
    price, highest = order_cost(topology, incumbent), _highest(topology.pricing.rate)
    cap = price if price < inf else highest - 1
    if len(topology.leaves) < 2 or cap == 0:
        return incumbent, True
    if not _is_within_reach(topology, cap):
        return incumbent, False
    program = _Program(topology, cap)
    if program.width > 62:
        return incumbent, False
    program.run()
    full = (1 << len(topology.leaves)) - 1
    least = program.cost[:, full].min()
    # Two reads that are too large laid out one by one, and not together, are beyond the program.
    is_proven = topology.pricing.most_elements is None or len(topology.reads) < 2
    return incumbent if least >= min(price, program.infinite) else program.order(full), is_proven


def _highest(rate: Rate) -> Price:
    """Return the price up to which the program can search."""
    return (_LARGEST - 1) // max(rate.operations, rate.writes) if isinstance(rate, Weighted) else 1e300


def _is_within_reach(topology: Topology, cap: Price) -> bool:
    """Return whether the tables fit in memory, and the prices in 64 bits."""
    leaves, reads, rate = len(topology.leaves), len(topology.reads), topology.pricing.rate
    splits = 3**leaves * 2**reads
    most = MOST_CALLS if isinstance(rate, PerStep) else MOST_SPLITS
    return leaves <= MOST_LEAVES and reads < MOST_UNRESOLVED and splits <= most and cap < _highest(rate)


class _Program:
    """The tables of the program: rows are choices of laid-out reads, columns are sets of leaves."""

    def __init__(self, topology: Topology, cap: Price) -> None:
        self.topology, self.cap = topology, cap
        self.is_integral = topology.pricing.rate.is_integral
        self.infinite = _INFINITE if self.is_integral else np.inf
        self.leaves = len(topology.leaves)
        self.reads = len(topology.reads)
        self.subsets = np.arange(1 << self.leaves, dtype=np.int64)
        self._group_indices()
        self.width = len(self.sizes)
        if self.width <= 62:
            self._fill_tables()

    def _group_indices(self) -> None:
        """Number the indices again, those on the same leaves as one: they are summed in the same step."""
        topology = self.topology
        in_reads = {i for leaf in topology.leaves for _, rest in leaf.unresolved for i in rest}
        groups: dict[object, int] = {}
        self.bit: dict[int, int] = {}
        self.sizes: list[int] = []
        for i, holders in enumerate(topology.holders):
            if not holders:
                continue  # an index of a leg outside this component
            key: object = i if i in in_reads else (holders, topology.is_output[i])
            if key not in groups:
                groups[key] = len(self.sizes)
                self.sizes.append(1)
            self.bit[i] = groups[key]
            self.sizes[groups[key]] *= topology.sizes[i]
        self.holders = {self.bit[i]: topology.holders[i] for i in self.bit}
        self.output = {self.bit[i]: topology.is_output[i] for i in self.bit}

    def _mask(self, indices: tuple[int, ...]) -> int:
        return sum(1 << bit for bit in {self.bit[i] for i in indices})

    def _fill_tables(self) -> None:
        subsets = self.subsets
        self.alive = np.zeros_like(subsets)
        for bit, holders in self.holders.items():
            needed = ((subsets & holders) != 0) & (self.output[bit] | ((holders & ~subsets) != 0))
            self.alive |= np.where(needed, np.int64(1 << bit), 0)
        held = np.zeros_like(subsets)
        for k, leaf in enumerate(self.topology.leaves):
            held |= np.where(subsets >> k & 1, np.int64(self._mask(leaf.plain)), 0)
        self.rest = np.zeros((self.reads, len(subsets)), dtype=np.int64)
        self.can_stay = np.zeros((self.reads, len(subsets)), dtype=bool)
        self.is_dense = np.zeros((self.reads, len(subsets)), dtype=bool)
        for leaf in self.topology.leaves:
            for read, rest in leaf.unresolved:
                self.rest[read] = np.where(subsets & leaf.leaves, self._mask(rest) & self.alive, 0)
                self.can_stay[read] = np.bitwise_count(self.rest[read]) >= 2
                rests, inverse = self._rests(read)
                self.is_dense[read] = np.array([self.topology.is_dense(read, rest) for rest in rests])[inverse]
        self.chunks = [self._chunk(start) for start in range(0, max(self.width, 1), _CHUNK)]
        self._fill_choices(held & self.alive)
        self._fill_prices()
        self.cost = np.full((1 << self.reads, len(subsets)), self.infinite)
        for leaf in self.topology.leaves:
            is_written = np.any([self._is_laid_out(read) for read, _ in leaf.unresolved], axis=0)
            is_out = (is_written & self.is_too_large[:, leaf.leaves]) | bool(self.topology.unfit & leaf.leaves)
            self.cost[:, leaf.leaves] = np.where(is_out, self.infinite, 0)
        self.split = np.zeros(self.cost.shape, dtype=np.int64)
        self.origin = np.zeros_like(self.split)

    def _is_laid_out(self, read: int) -> npt.NDArray[np.bool_]:
        """Return, for every choice, whether it lays a read out."""
        return (np.arange(1 << self.reads) >> read & 1).astype(bool)

    def _fill_prices(self) -> None:
        """Fill the tables that prices depend on beside the volume: sizes, gradients, and which values are folded."""
        pricing = self.topology.pricing
        self.size = self._product(self.plain, self.positions)
        self.grad = ((self.subsets & pricing.trained) != 0).astype(np.int64)
        self.is_fixed = (self.subsets & ~np.int64(pricing.fixed)) == 0
        fits = self.size <= (np.inf if pricing.most_folded is None else pricing.most_folded)
        self.is_folded = self.is_fixed & fits
        most = np.inf if pricing.most_elements is None else pricing.most_elements
        self.is_too_large = (self.size > most) & ~self.is_folded & (self.subsets != self.subsets[-1])

    def _fill_choices(self, held: Masks) -> None:
        """Fill in, for every choice of laid-out reads, the plain indices, those in other reads, and their positions."""
        shape = (1 << self.reads, len(self.subsets))
        self.plain, self.busy = np.broadcast_to(held, shape).copy(), np.zeros(shape, dtype=np.int64)
        self.positions = np.ones(shape, dtype=np.int64)
        for choice in range(1 << self.reads):
            for read in range(self.reads):
                is_unresolved = self.can_stay[read] & (not choice >> read & 1)
                self.plain[choice] |= np.where(is_unresolved, 0, self.rest[read])
                self.busy[choice] |= np.where(is_unresolved, self.rest[read], 0)
                self.positions[choice] = self._times(
                    self.positions[choice], np.where(is_unresolved, self._spans(read), 1)
                )

    def _times(self, left: Masks, right: Masks) -> Masks:
        """Return the products of sizes, clipped at `_beyond`."""
        return np.where(left.astype(np.float64) * right > self._beyond, self._beyond, left * right)

    def _spans(self, read: int) -> Masks:
        """Return the number of positions of a read for each set of leaves, by the indices that remain of it there."""
        rests, inverse = self._rests(read)
        spans = [min(self.topology.span(read, rest), self._beyond) if rest else 1 for rest in rests]
        return np.array(spans, dtype=np.int64)[inverse]

    def _rests(self, read: int) -> tuple[list[list[int]], Masks]:
        """Return the sets of indices that may remain of a read, and for each set of leaves the place of its own."""
        names = {self._mask((i,)): i for i in self.topology.coefficients[read]}
        rests, inverse = np.unique(self.rest[read], return_inverse=True)
        return [[i for mask, i in names.items() if rest & mask] for rest in rests.tolist()], inverse

    def _chunk(self, start: int) -> tuple[int, Masks, npt.NDArray[np.float64]]:
        products, beyond = [1], self._beyond
        for size in self.sizes[start : start + _CHUNK]:
            products += [product * size for product in products]
        exact = np.array([min(product, beyond) for product in products], dtype=np.int64)
        return start, exact, np.array([clip(product) for product in products], dtype=np.float64)

    @property
    def _beyond(self) -> int:
        """A size larger than any that matters [elements]."""
        if not self.is_integral:
            return _LARGEST
        pricing = self.topology.pricing
        most = max(int(self.cap), pricing.most_folded or 0, pricing.most_elements or 0)
        return min(most + 1, int(_highest(pricing.rate)))  # a larger value costs more than the cap allows

    def _product(self, masks: Masks, positions: Masks, others: Masks | int = 1) -> Prices:
        """Return the product of the sizes under each mask times positions; integers are clipped at `_beyond`."""
        rough = positions.astype(np.float64) * others
        exact = positions * others
        for start, table, floats in self.chunks:
            place = masks >> start & (len(table) - 1)
            rough = np.minimum(rough * floats[place], BEYOND)
            exact *= table[place]
        return np.where(rough > self._beyond * 1.001, self._beyond, exact) if self.is_integral else rough

    def run(self) -> None:
        """Fill the tables layer by layer."""
        for count in range(2, self.leaves + 1):
            positions = np.array(list(combinations(range(self.leaves), count)), dtype=np.int64)
            patterns = np.arange(1, 1 << (count - 1), dtype=np.int64) << 1
            bits = (patterns[:, None] >> np.arange(count)) & 1
            subsets = (np.int64(1) << positions).sum(axis=1)
            left = bits @ (np.int64(1) << positions).T
            for choice in range(1 << self.reads):
                self._relax(choice, subsets, left)
            self._close(subsets)

    def _relax(self, choice: int, subsets: Masks, left: Masks) -> None:
        right = subsets - left
        before = self.cost[choice][left] + self.cost[choice][right]
        total = np.minimum(before + self._prices(choice, subsets, left, right), self.infinite)
        total = np.where(self.is_folded[choice, subsets] & (before < self.infinite), 0, total)
        total = np.where(self.is_too_large[choice, subsets], self.infinite, total)
        for read in range(self.reads):
            if not choice >> read & 1:
                for side, other in ((left, right), (right, left)):
                    total = np.where(self._is_blocked(choice, read, side, other, subsets), self.infinite, total)
        best = total.argmin(axis=0)
        columns = np.arange(len(subsets))
        least = total[best, columns]
        # A fixed value may cost anything if a value above it is folded, so it is never ruled out.
        clipped = np.where(self.is_fixed[subsets] & (least < self.infinite), self.cap + 1, self.infinite)
        self.cost[choice, subsets] = np.where(least > self.cap, clipped, least)
        self.split[choice, subsets] = left[best, columns]
        self.origin[choice, subsets] = choice

    def _prices(self, choice: int, subsets: Masks, left: Masks, right: Masks) -> Prices:
        plain, positions, size = self.plain[choice], self.positions[choice], self.size[choice]
        volume = self._product(plain[left] | plain[right] | plain[subsets], positions[subsets] + 0 * left)
        work = Work(volume, size[left], size[right], size[subsets] + 0 * left, self.grad[left], self.grad[right])
        prices: Prices = self.topology.pricing.rate(work)
        can_transpose = self._can_transpose(choice, subsets, left, right)
        if can_transpose.any():
            spread = self._product(plain[left] | plain[right], positions[left], positions[right])
            transposed = self.topology.pricing.rate(work._replace(operations=spread))
            prices = np.where(can_transpose, np.minimum(prices, transposed), prices)
        return prices

    def _can_transpose(self, choice: int, subsets: Masks, left: Masks, right: Masks) -> npt.NDArray[np.bool_]:
        """Return whether a step that is not blocked may be a transposed convolution (see `Topology.kinds`)."""
        resolves = np.zeros((2, *left.shape), dtype=bool)
        are_dense = np.ones(left.shape, dtype=bool)
        for read in range(self.reads):
            if not choice >> read & 1:
                for k, side in enumerate((left, right)):
                    is_resolved = self.can_stay[read][side] & (self.rest[read][side] != self.rest[read][subsets])
                    resolves[k] |= is_resolved
                    are_dense &= ~is_resolved | self.is_dense[read][subsets]
        can_transpose: npt.NDArray[np.bool_] = (resolves[0] ^ resolves[1]) & are_dense
        return can_transpose

    def _is_blocked(self, choice: int, read: int, side: Masks, other: Masks, subsets: Masks) -> npt.NDArray[np.bool_]:
        """Return the splits in which an unresolved read of one side forbids the step (see `Topology.join`)."""
        rest = np.where(self.can_stay[read][side], self.rest[read][side], 0)
        met = rest & self.plain[choice][other]
        dead = rest & ~self.alive[subsets]
        entangled = (rest & self.busy[choice][other]) != 0
        blocked: npt.NDArray[np.bool_] = (met != dead) | (np.bitwise_count(met) > 1) | entangled
        return blocked

    def _close(self, subsets: Masks) -> None:
        """Lay reads out at no cost where the value fits; a value without unresolved reads is the same in both rows."""
        for read in range(self.reads):
            for choice in range(1 << self.reads):
                if not choice >> read & 1:
                    target = choice | 1 << read
                    self._improve(target, choice, subsets[~self.is_too_large[target, subsets]])
                    same = subsets[~self.can_stay[read][subsets]]
                    self._improve(choice, choice | 1 << read, same)

    def _improve(self, target: int, source: int, subsets: Masks) -> None:
        better = subsets[self.cost[source, subsets] < self.cost[target, subsets]]
        for table in (self.cost, self.split, self.origin):
            table[target, better] = table[source, better]

    def order(self, full: int) -> Order:
        """Return the pairs of the cheapest tree; in a pair the value with the first of the leaves stands first."""
        pairs: list[tuple[int, int]] = []
        self._descend(int(self.cost[:, full].argmin()), full, pairs)
        return pairs

    def _descend(self, choice: int, subset: int, pairs: list[tuple[int, int]]) -> int:
        if subset & (subset - 1) == 0:
            return subset.bit_length() - 1
        if self.is_folded[choice, subset] and self._unfolded.cost[choice, subset] < self.infinite:
            return self._unfolded._descend(choice, subset, pairs)
        origin, left = int(self.origin[choice, subset]), int(self.split[choice, subset])
        pairs.append((self._descend(origin, subset - left, pairs), self._descend(origin, left, pairs)))
        return self.leaves + len(pairs) - 1

    @cached_property
    def _unfolded(self) -> _Program:
        """The program in which no step is free: it orders the folded values, which cost nothing in this one."""
        program = _Program(self.topology.priced(Pricing()), _LARGEST - 1)
        program.run()
        return program
