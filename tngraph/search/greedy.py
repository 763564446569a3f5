"""Greedy orders for networks of many thousand tensors, in nearly linear time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import combinations
from math import log2, prod

MOST_HOLDERS = 8
"""An index that more tensors than this share does not pair them, since there are too many pairs."""


def join_greedily(
    legs: Sequence[Sequence[int]], output: Sequence[int], sizes: Mapping[int, int]
) -> list[tuple[int, int]]:
    """Join repeatedly the two neighbours whose result exceeds their own sizes by the least.

    Args:
        legs: the indices of each tensor.
        output: the indices of the result.
        sizes: the size of each index [elements].

    Returns:
        Pairs in single-assignment numbering. Values that share no index at the end are left unjoined.
    """
    pool = _Pool(legs, output, sizes)
    queue = [pool.rate(*pair) for pair in pool.pairs()]
    heapify(queue)
    joined: list[tuple[int, int]] = []
    while queue:
        _, left, right = heappop(queue)
        if left in pool.held and right in pool.held:
            value = len(legs) + len(joined)
            joined.append((left, right))
            pool.join(left, right, value)
            for other in pool.neighbours(value):
                heappush(queue, pool.rate(other, value))
    return joined


def grow_order(
    legs: Sequence[Sequence[int]], output: Sequence[int], sizes: Mapping[int, int], draw: Callable[[], float]
) -> list[tuple[int, int]]:
    """Join one tensor after the other to a single value, always the one that lets it grow by the least.

    In a lattice this sweeps a front across it, which joining pairs of small values never does.

    Args:
        legs: the indices of each tensor.
        output: the indices of the result.
        sizes: the size of each index [elements].
        draw: gives random numbers from 0 to 1; they choose the first tensor, and among those that are about as good.

    Returns:
        Pairs in single-assignment numbering that join all tensors.
    """
    front = _Front(legs, output, sizes, draw)
    tensors = [int(draw() * len(legs))]
    front.take(tensors[0])
    while front.untaken:
        tensors.append(front.nearest())
        front.take(tensors[-1])
    values = [tensors[0], *range(len(legs), 2 * len(legs) - 2)]
    return list(zip(values, tensors[1:], strict=False))


class _Front:
    """A value that takes tensor after tensor, and by how many bits each of the others would let it grow."""

    def __init__(
        self,
        legs: Sequence[Sequence[int]],
        output: Sequence[int],
        sizes: Mapping[int, int],
        draw: Callable[[], float],
    ) -> None:
        self.legs, self.bits = legs, {i: log2(size) for i, size in sizes.items()}
        self.holders: dict[int, dict[int, None]] = {}
        for tensor, indices in enumerate(legs):
            for i in indices:
                self.holders.setdefault(i, {})[tensor] = None
        self.output, self.met = frozenset(output), set[int]()
        self.growth: list[float] = [draw() / 2 + sum(self.bits[i] for i in set(indices)) for indices in legs]
        self.untaken: dict[int, None] = dict.fromkeys(range(len(legs)))
        self.queue: list[tuple[float, int]] = []

    def take(self, tensor: int) -> None:
        """Join a tensor to the value."""
        del self.untaken[tensor]
        touched: dict[int, None] = {}
        for i in set(self.legs[tensor]):
            others = self.holders[i]
            del others[tensor]
            is_last = len(others) == 1 and i not in self.output
            for other in others if i not in self.met or is_last else ():
                self.growth[other] -= self.bits[i] * ((i not in self.met) + is_last)
                touched[other] = None
            self.met.add(i)
        for other in touched:
            heappush(self.queue, (self.growth[other], other))

    def nearest(self) -> int:
        """Return the tensor that lets the value grow by the least; any where no other shares an index with it."""
        while self.queue:
            growth, tensor = heappop(self.queue)
            if tensor in self.untaken and growth == self.growth[tensor]:
                return tensor
        return next(iter(self.untaken))


class _Pool:
    """The values that are not joined yet, with their indices and sizes, and the holders of each index."""

    def __init__(self, legs: Sequence[Sequence[int]], output: Sequence[int], sizes: Mapping[int, int]) -> None:
        self.output, self.sizes = frozenset(output), sizes
        self.held: dict[int, frozenset[int]] = {}
        self.elements: dict[int, int] = {}
        self.holders: dict[int, set[int]] = {i: set() for i in sizes}
        for value, indices in enumerate(legs):
            self._add(value, frozenset(indices))

    def _add(self, value: int, indices: frozenset[int]) -> None:
        self.held[value] = indices
        self.elements[value] = prod(self.sizes[i] for i in indices)
        for i in indices:
            self.holders[i].add(value)

    def pairs(self) -> list[tuple[int, int]]:
        """Return all pairs of values that share an index."""
        shared = (combinations(sorted(holders), 2) for holders in self.holders.values() if len(holders) <= MOST_HOLDERS)
        return sorted({pair for pairs in shared for pair in pairs})

    def neighbours(self, value: int) -> list[int]:
        """Return the values that share an index with this one."""
        near = (self.holders[i] for i in self.held[value] if len(self.holders[i]) <= MOST_HOLDERS)
        return sorted(set().union(*near) - {value})

    def rate(self, left: int, right: int) -> tuple[int, int, int]:
        """Return by how much the result of two values exceeds their own sizes [elements], and the two."""
        result = prod(self.sizes[i] for i in self._result(left, right))
        return result - self.elements[left] - self.elements[right], left, right

    def _result(self, left: int, right: int) -> frozenset[int]:
        both = self.held[left] | self.held[right]
        return frozenset(i for i in both if i in self.output or not self.holders[i] <= {left, right})

    def join(self, left: int, right: int, value: int) -> None:
        """Replace two values by their result."""
        result = self._result(left, right)
        for operand in (left, right):
            for i in self.held.pop(operand):
                self.holders[i].discard(operand)
        self._add(value, result)
