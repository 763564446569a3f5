"""The exact search: the cheapest tree over all subsets of a region's leaves, outer products included.

A dynamic program in the manner of Held and Karp: cost[S] = min over splits S = A + B of cost[A] + cost[B] +
volume(A, B), for every choice of which folded reads are laid out. It runs in layers of equal subset size, each
a handful of NumPy operations over all subsets and splits at once, in 64-bit integers. Costs beyond the
incumbent's are clipped, so nothing can overflow unnoticed.

Source: the subset program is Pfeifer, Haegeman, Verstraete (2014), arXiv 1304.6112; volumes with convolved
indices and the masks for folded reads are ours.
"""

from __future__ import annotations

from itertools import combinations
from math import prod

import numpy as np
import numpy.typing as npt

from tngraph.planning.region import MOST_FOLDED, Topology
from tngraph.planning.trees import Order, order_cost

MOST_LEAVES = 14
"""Regions of at most this many leaves are searched exactly: 3^14 splits take a fraction of a second."""

MOST_SPLITS = 2**25
"""A search over more splits than this, counted once per choice of laid-out reads, is not begun."""

_INFINITE = np.int64(2**60)
_CHUNK = 12

Masks = npt.NDArray[np.int64]


def prove_order(topology: Topology, incumbent: Order) -> tuple[Order, bool]:
    """The cheapest order there is, and whether that is proven.

    Args:
        topology: the region by number, at numeric sizes.
        incumbent: a valid order; its cost bounds the search.

    Returns:
        An order at most as expensive as the incumbent; proven unless the region is too large for the program
        (more than `MOST_LEAVES` leaves, `MOST_SPLITS` splits, as many folded reads as a region may have, 62 distinct
        groups of indices, or costs of 2^59 and more).
    """
    if len(topology.leaves) < 2:
        return incumbent, True
    cap = order_cost(topology, incumbent)
    leaves, reads = len(topology.leaves), len(topology.reads)
    if leaves > MOST_LEAVES or 3**leaves * 2**reads > MOST_SPLITS or reads >= MOST_FOLDED or cap >= 2**59:
        return incumbent, False
    program = _Program(topology, cap)
    if program.width > 62:
        return incumbent, False
    program.run()
    full = (1 << len(topology.leaves)) - 1
    return (incumbent, True) if program.cost[:, full].min() >= cap else (program.order(full), True)


class _Program:
    """The tables of the program: rows are choices of laid-out reads, columns are sets of leaves."""

    def __init__(self, topology: Topology, cap: int) -> None:
        self.topology, self.cap = topology, cap
        self.leaves = len(topology.leaves)
        self.reads = len(topology.reads)
        self.subsets = np.arange(1 << self.leaves, dtype=np.int64)
        self._group_indices()
        self.width = len(self.sizes)
        if self.width <= 62:
            self._fill_tables()

    def _group_indices(self) -> None:
        """Number the indices anew, those on the same leaves as one: they live and die together."""
        topology = self.topology
        in_reads = {i for leaf in topology.leaves for _, rest in leaf.folded for i in rest}
        groups: dict[object, int] = {}
        self.bit: dict[int, int] = {}
        self.sizes: list[int] = []
        for i, holders in enumerate(topology.holders):
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
        self.is_foldable = np.zeros((self.reads, len(subsets)), dtype=bool)
        for leaf in self.topology.leaves:
            for read, rest in leaf.folded:
                self.rest[read] = np.where(subsets & leaf.leaves, self._mask(rest) & self.alive, 0)
                self.is_foldable[read] = np.bitwise_count(self.rest[read]) >= 2
        self._fill_choices(held & self.alive)
        self.cost = np.full((1 << self.reads, len(subsets)), _INFINITE)
        self.cost[:, 1 << np.arange(self.leaves)] = 0
        self.split = np.zeros_like(self.cost)
        self.origin = np.zeros_like(self.cost)
        self.chunks = [self._chunk(start) for start in range(0, max(self.width, 1), _CHUNK)]

    def _fill_choices(self, held: Masks) -> None:
        """For every choice of laid-out reads: the plain indices, those in folds, and the folds' positions."""
        shape = (1 << self.reads, len(self.subsets))
        self.plain, self.busy = np.broadcast_to(held, shape).copy(), np.zeros(shape, dtype=np.int64)
        self.positions = np.ones(shape, dtype=np.int64)
        for choice in range(1 << self.reads):
            for read in range(self.reads):
                folded = self.is_foldable[read] & (not choice >> read & 1)
                self.plain[choice] |= np.where(folded, 0, self.rest[read])
                self.busy[choice] |= np.where(folded, self.rest[read], 0)
                self.positions[choice] *= np.where(folded, self._spans(read), 1)

    def _spans(self, read: int) -> Masks:
        """The positions of a read for each set of leaves, by what remains of it there."""
        names = {self._mask((i,)): i for i in self.topology.coefficients[read]}
        rests, inverse = np.unique(self.rest[read], return_inverse=True)
        kept = [[i for mask, i in names.items() if rest & mask] for rest in rests.tolist()]
        spans = [min(self.topology.span(read, rest), self.cap + 1) if rest else 1 for rest in kept]
        return np.array(spans, dtype=np.int64)[inverse]

    def _chunk(self, start: int) -> tuple[int, Masks, npt.NDArray[np.float64]]:
        sizes = self.sizes[start : start + _CHUNK]
        products = [prod(s for k, s in enumerate(sizes) if m >> k & 1) for m in range(1 << len(sizes))]
        exact = np.array([min(p, self.cap + 1) for p in products], dtype=np.int64)
        return start, exact, np.array(products, dtype=np.float64)

    def _volume(self, masks: Masks, positions: Masks) -> Masks:
        """The product of the sizes under each mask times positions; infinite beyond the cap."""
        rough = positions.astype(np.float64)
        exact = positions.copy()
        for start, table, floats in self.chunks:
            part = masks >> start & (len(table) - 1)
            rough *= floats[part]
            exact *= table[part]
        return np.where(rough > self.cap * 1.001, _INFINITE, exact)

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
        cost = self.cost[choice]
        plain = self.plain[choice]
        volume = self._volume(plain[left] | plain[right] | plain[subsets], self.positions[choice, subsets] + 0 * left)
        total = np.minimum(cost[left] + cost[right] + volume, _INFINITE)
        for read in range(self.reads):
            if not choice >> read & 1:
                for side, other in ((left, right), (right, left)):
                    total = np.where(self._is_blocked(choice, read, side, other, subsets), _INFINITE, total)
        best = total.argmin(axis=0)
        columns = np.arange(len(subsets))
        self.cost[choice, subsets] = np.where(total[best, columns] > self.cap, _INFINITE, total[best, columns])
        self.split[choice, subsets] = left[best, columns]
        self.origin[choice, subsets] = choice

    def _is_blocked(self, choice: int, read: int, side: Masks, other: Masks, subsets: Masks) -> npt.NDArray[np.bool_]:
        """Where a folded read of one side cannot take part in the step (see `Topology.join`)."""
        rest = np.where(self.is_foldable[read][side], self.rest[read][side], 0)
        met = rest & self.plain[choice][other]
        dead = rest & ~self.alive[subsets]
        entangled = (rest & self.busy[choice][other]) != 0
        blocked: npt.NDArray[np.bool_] = (met != dead) | (np.bitwise_count(met) > 1) | entangled
        return blocked

    def _close(self, subsets: Masks) -> None:
        """A folded value may be laid out at no cost; one that has nothing folded is the same in both rows."""
        for read in range(self.reads):
            for choice in range(1 << self.reads):
                if not choice >> read & 1:
                    self._improve(choice | 1 << read, choice, subsets)
                    same = subsets[~self.is_foldable[read][subsets]]
                    self._improve(choice, choice | 1 << read, same)

    def _improve(self, target: int, source: int, subsets: Masks) -> None:
        better = subsets[self.cost[source, subsets] < self.cost[target, subsets]]
        for table in (self.cost, self.split, self.origin):
            table[target, better] = table[source, better]

    def order(self, full: int) -> Order:
        """The pairs of the cheapest tree."""
        pairs: list[tuple[int, int]] = []
        self._descend(int(self.cost[:, full].argmin()), full, pairs)
        return pairs

    def _descend(self, choice: int, subset: int, pairs: list[tuple[int, int]]) -> int:
        if subset & (subset - 1) == 0:
            return subset.bit_length() - 1
        origin, left = int(self.origin[choice, subset]), int(self.split[choice, subset])
        pairs.append((self._descend(origin, left, pairs), self._descend(origin, subset - left, pairs)))
        return self.leaves + len(pairs) - 1
