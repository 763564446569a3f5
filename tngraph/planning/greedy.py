"""A greedy order for networks of many thousand tensors, in a time that grows with little but their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import combinations
from math import prod

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
        shared = (combinations(sorted(each), 2) for each in self.holders.values() if len(each) <= MOST_HOLDERS)
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
        for each in (left, right):
            for i in self.held.pop(each):
                self.holders[i].discard(each)
        self._add(value, result)
