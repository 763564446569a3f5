"""Orders improved by random local moves, by the fewest operations; fast enough for any search.

A move makes a (b c) of the steps (a b) c. It is taken where the two steps then cost less, and otherwise with a
probability that falls with the difference of the logarithms over a temperature, which falls with every sweep. A value
is a mask of the indices that it keeps, so that a move takes a few operations on integers. That needs no count of who
holds an index: the result of b and c keeps their indices that a or the value above them has, too.

Source: the moves and the logarithms are those of Kalachev, Panteleev, Yung, arXiv 2108.05665; the masks are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, log2

from tngraph.search.trees import Order

MOST_GROUPS = 8
"""Indices of more sizes than this are measured by the digits of rounded logarithms instead, of which there are few."""
_ROUNDED = 8
"""The steps per factor of two to which such logarithms are rounded."""


def anneal_order(
    legs: Sequence[Sequence[int]],
    output: Iterable[int],
    sizes: Mapping[int, int],
    order: Order,
    temperatures: tuple[float, float],
    sweeps: int,
    draw: Callable[[], float],
) -> tuple[float, Order]:
    """Return the cheapest order after any sweep, behind the logarithm to base 2 of its operations.

    Args:
        legs: the indices of each tensor.
        output: the indices of the result.
        sizes: the size of each index [elements].
        order: pairs in single-assignment numbering that join all tensors.
        temperatures: of the first sweep and of the last, in natural logarithms per factor of two.
        sweeps: how often every step is looked at; with none the order stays as it is.
        draw: gives random numbers from 0 to 1.
    """
    tree = _AnnealedTree(legs, output, sizes, order)
    hot, cold = temperatures
    least, children = tree.total(), list(tree.children)
    for sweep in range(sweeps):
        tree.sweep(hot * (cold / hot) ** (sweep / max(1, sweeps - 1)), draw)
        total = tree.total()
        if total < least:
            least, children = total, list(tree.children)
    tree.children = children
    return least, tree.order()


def log_operations(
    legs: Sequence[Sequence[int]], output: Iterable[int], sizes: Mapping[int, int], order: Order
) -> float:
    """Return the logarithm to base 2 of the operations of an order that joins all tensors."""
    return _AnnealedTree(legs, output, sizes, order).total()


class _AnnealedTree:
    """The steps of an order by number, the masks of all values and the logarithms of the operations of all steps."""

    def __init__(
        self, legs: Sequence[Sequence[int]], output: Iterable[int], sizes: Mapping[int, int], order: Order
    ) -> None:
        self.count = len(legs)
        self.root = self.count + len(order) - 1
        self.weights = _weights(sizes)
        self.children: list[tuple[int, int]] = [*[(0, 0)] * self.count, *order]
        self.masks = self._find_masks([_mask(indices) for indices in legs], _mask(output))
        self.volumes = [0.0] * self.count
        self.volumes += [self.measure(self.masks[left] | self.masks[right]) for left, right in order]

    def _find_masks(self, below: list[int], output: int) -> list[int]:
        """Return the mask of every value: the indices below it that are needed elsewhere or in the result."""
        for left, right in self.children[self.count :]:
            below.append(below[left] | below[right])
        elsewhere = [output] * len(below)
        for step in range(self.root, self.count - 1, -1):
            left, right = self.children[step]
            elsewhere[left] = elsewhere[step] | below[right]
            elsewhere[right] = elsewhere[step] | below[left]
        return [held & needed for held, needed in zip(below, elsewhere, strict=True)]

    def measure(self, mask: int) -> float:
        """Return the logarithm of the elements under a mask."""
        total = 0.0
        for group, weight in self.weights:
            total += weight * (mask & group).bit_count()
        return total

    def total(self) -> float:
        """Return the logarithm of the operations of all steps."""
        volumes = self.volumes[self.count :]
        highest = max(volumes)
        return highest + log2(sum(2.0 ** (volume - highest) for volume in volumes))

    def sweep(self, temperature: float, draw: Callable[[], float]) -> None:
        """Look once at every step but the leaves."""
        count, masks, volumes, children, measure = self.count, self.masks, self.volumes, self.children, self.measure
        for step in range(count, self.root + 1):
            inner, other = children[step]
            chance = draw()
            if inner < count or (other >= count and chance < 0.5):
                inner, other = other, inner
            if inner < count:
                continue
            moved, left = children[inner]
            if chance * 4 % 2 < 1:
                moved, left = left, moved
            joined = (masks[left] | masks[other]) & (masks[moved] | masks[step])
            below, above = measure(masks[left] | masks[other]), measure(masks[moved] | joined)
            change = _add(below, above) - _add(volumes[inner], volumes[step])
            if change <= 0 or draw() < exp(-change / temperature):
                children[inner], children[step] = (left, other), (moved, inner)
                masks[inner], volumes[inner], volumes[step] = joined, below, above

    def order(self) -> Order:
        """Return the steps in an order in which each comes after what it takes."""
        ahead, steps = [self.root], list[int]()
        while ahead:
            step = ahead.pop()
            if step >= self.count:
                steps.append(step)
                ahead.extend(self.children[step])
        steps.reverse()
        place = {step: self.count + k for k, step in enumerate(steps)}
        pairs = (self.children[step] for step in steps)
        return [(place.get(left, left), place.get(right, right)) for left, right in pairs]


def _mask(indices: Iterable[int]) -> int:
    """Return the bits of some indices."""
    mask = 0
    for i in indices:
        mask |= 1 << i
    return mask


def _weights(sizes: Mapping[int, int]) -> list[tuple[int, float]]:
    """Return masks with the logarithms that they add to the size of a value for each index that it has of them."""
    logarithms = {i: log2(size) for i, size in sizes.items() if size > 1}
    masks: dict[float, int] = {}
    if len(set(logarithms.values())) <= MOST_GROUPS:
        for i, logarithm in logarithms.items():
            masks[logarithm] = masks.get(logarithm, 0) | 1 << i
    else:
        for i, logarithm in logarithms.items():
            rounded = round(logarithm * _ROUNDED)
            for digit in range(rounded.bit_length()):
                if rounded >> digit & 1:
                    masks[2**digit / _ROUNDED] = masks.get(2**digit / _ROUNDED, 0) | 1 << i
    return [(mask, logarithm) for logarithm, mask in masks.items()]


def _add(first: float, second: float) -> float:
    """Return the logarithm of the sum of two numbers from their logarithms."""
    return first + log2(1 + 2.0 ** (second - first)) if first > second else second + log2(1 + 2.0 ** (first - second))
