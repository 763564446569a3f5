"""Slicing: which indices to run a loop over, so that no step of a tree writes more than a limit.

A sliced index has one value at a time. The steps that it reaches (those above an access it stands on) run once per
slice, each smaller by its size, and their results are added up or, where the index is on the result, put in place. The
other steps run once, before the loop. `Slicing.total` is exact: it counts the operations of such a loop.

Source: slicing by a greedy choice with repeats, interleaved with rearranging the tree, is cotengra's (Gray, Kourtis,
Quantum 5, 410 (2021)); the cost of a choice is counted here, with steps outside the loop counted once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import reduce
from math import log2, prod
from operator import or_
from typing import NamedTuple

import numpy as np

from tngraph.errors import PlanError
from tngraph.language.legs import bare_legs, leg_indices, leg_size
from tngraph.language.network import Index, Leg, Read
from tngraph.language.sizes import evaluate_size
from tngraph.search.machine import BEYOND, clip
from tngraph.search.orders import Search, hypergraph, parallel_for
from tngraph.search.proposals import Cut, CutTrial, propose_cut
from tngraph.search.region import ContractionTree, Topology, work_of
from tngraph.search.trees import build_tree
from tngraph.search.workers import run_tasks

REPEATS = 4
"""The choices of indices that are tried for one tree; all but the first stray from what looks best."""


@dataclass(frozen=True, slots=True)
class Slicing:
    """A tree, the indices to loop over, and the cost.

    Attributes:
        tree: the order in which each slice is contracted.
        indices: sliced whole, in the order the region mentions them; none where everything fits.
        slices: the number of slices: the product of the indices' sizes.
        once: the cost of the steps that no sliced index reaches [operations].
        per_slice: the cost per slice of the other steps, and of adding its result to the whole [operations].
        largest: the largest value that a step writes, except the result, which is held whole [elements].
    """

    tree: ContractionTree
    indices: tuple[Index, ...]
    slices: int
    once: int
    per_slice: int
    largest: int

    @property
    def total(self) -> int:
        """MAC plus elementwise of all slices [operations]."""
        return self.once + self.slices * self.per_slice

    def rank(self) -> tuple[int, int]:
        """Return the key by which slicings are compared: the total, then the number of slices."""
        return self.total, self.slices


def slice_tree(tree: ContractionTree, sizes: Mapping[str, int], limit: int, search: Search | None = None) -> Slicing:
    """Return the cheapest slicing found in which no step writes more than `limit` elements.

    An index that is read at a position such as ``x + k`` is not sliced. The sizes of the result, which is held whole,
    and of the tensors that the region reads do not count.

    Args:
        tree: a tree without slices. One that is cheaper with them may take its place, unless it is pinned.
        sizes: an integer for every named size [elements].
        limit: the most elements of a value [elements].
        search: seed, trials and processes for rearranging the tree; an interruption keeps the best so far.

    Raises:
        PlanError: a limit that no slicing of this tree meets.
    """
    search = search or Search()
    own = Sliceable(tree, sizes)
    least = own.slicing(own.allowed)
    if least.largest > limit:
        raise PlanError(
            f"no slicing keeps every value within {limit:,} elements\n  the least possible is {least.largest:,}: "
            "an index read at a position such as x + k is not sliced"
        )
    best = min(_choices(own, limit, search.seed, ()), key=Slicing.rank)
    if best.indices and not tree.is_pinned:
        with suppress(KeyboardInterrupt):
            for other in _rearranged(tree, sizes, limit, search):
                best = min(best, other, key=Slicing.rank)
    return best


def _rearranged(tree: ContractionTree, sizes: Mapping[str, int], limit: int, search: Search) -> Iterator[Slicing]:
    """Yield slicings of the trees that cotengra rearranges for the limit, each with its own choice and with ours."""
    topology = Topology(tree.region, sizes)
    graph = hypergraph(topology)
    if len(graph.legs) < 3:
        return
    cut = Cut(graph, tuple(tree_order(tree)), limit)
    trials = (CutTrial(number, search.seed) for number in range(search.most_trials or 1))
    slicings: dict[int, list[Slicing]] = {}
    with closing(run_tasks(propose_cut, cut, trials, parallel_for(search, graph))) as results:
        for trial, (order, chosen) in results:
            rearranged = Sliceable(build_tree(topology, order, False), sizes)
            hint = [topology.indices[i] for i in chosen]
            slicings[trial.number] = list(_choices(rearranged, limit, search.seed, hint))
    for number in sorted(slicings):
        yield from slicings[number]


def tree_order(tree: ContractionTree) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a tree, without its steps on one operand."""
    count = len(tree.region.accesses)
    values, upcoming = list(range(count)), count
    for step in tree.steps:
        operands = [values[k] for k in step.operands]
        values.append(operands[0] if len(operands) == 1 else upcoming)
        if len(operands) == 2:
            upcoming += 1
            yield operands[0], operands[1]


class _Line(NamedTuple):
    """One step in numbers. Sets of indices that may be sliced are bits.

    Attributes:
        volume: the cost of the step without slices [operations].
        size: the size of its result without slices [elements].
        involved: the indices that its operands and its result have as plain legs.
        result: the indices of its result.
        reach: the indices of all accesses below it.
    """

    volume: int
    size: int
    involved: int
    result: int
    reach: int


class Sliceable:
    """A tree priced under any choice of sliced indices. Nothing in it changes."""

    def __init__(self, tree: ContractionTree, sizes: Mapping[str, int]) -> None:
        self.tree = tree
        legs = [leg for access in tree.region.accesses for leg in bare_legs(access)]
        read = {index for leg in legs if isinstance(leg, Read) for index in leg.indices}
        self.allowed = tuple(index for index in leg_indices(legs) if index not in read)
        self.numbers = tuple(evaluate_size(index.size, sizes) for index in self.allowed)
        self._bits = {index: 1 << k for k, index in enumerate(self.allowed)}
        self._products = {0: 1}
        self.lines = tuple(self._lines(sizes))
        self.result = prod(evaluate_size(index.size, sizes) for index in tree.region.legs)
        self.result_mask = self._mask(tree.region.legs)
        self.tables = _Tables(self)

    def slicing(self, indices: Iterable[Index]) -> Slicing:
        """Return the slicing of some of the allowed indices, in exact integers."""
        chosen, slices = self._mask(indices), self._slices
        once = largest = 0
        per_slice = self.result // slices(self.result_mask & chosen) if chosen else 0
        for line in self.lines:
            volume = line.volume // slices(line.involved & chosen)
            if line.reach & chosen:
                per_slice += volume
            else:
                once += volume
            if line is not self.lines[-1]:
                largest = max(largest, line.size // slices(line.result & chosen))
        ordered = tuple(index for k, index in enumerate(self.allowed) if chosen >> k & 1)
        return Slicing(self.tree, ordered, slices(chosen), once, per_slice, largest)

    def _lines(self, sizes: Mapping[str, int]) -> Iterator[_Line]:
        elements: dict[Leg, int] = {}

        def count(legs: Iterable[Leg]) -> int:
            return prod(elements[leg] if leg in elements else elements.setdefault(leg, size_of(leg)) for leg in legs)

        def size_of(leg: Leg) -> int:
            return evaluate_size(leg_size(leg), sizes)

        legs = [bare_legs(access) for access in self.tree.region.accesses]
        reach = [self._mask(leg_indices(own)) for own in legs]
        for step in self.tree.steps:
            operands = [legs[k] for k in step.operands]
            below = reduce(or_, (reach[k] for k in step.operands))
            summed = {*leg_indices(leg for own in operands for leg in own)} - {*leg_indices(step.legs)}
            work = work_of(step, operands, count)
            result = self._mask(leg for leg in step.legs if isinstance(leg, Index))
            volume = 0 if step.kind == "read" else work.operations
            yield _Line(volume, work.result, result | self._mask(summed), result, below)
            legs.append(step.legs)
            reach.append(below)

    def _slices(self, mask: int) -> int:
        """Return the product of the sizes of some indices."""
        if mask not in self._products:
            fewer = mask & (mask - 1)
            self._products[mask] = self._slices(fewer) * self.numbers[(mask ^ fewer).bit_length() - 1]
        return self._products[mask]

    def _mask(self, indices: Iterable[Index]) -> int:
        """Return some indices as bits, without those that may not be sliced."""
        return reduce(or_, (self._bits.get(index, 0) for index in indices), 0)


class _Tables:
    """The lines of a tree as arrays over steps and allowed indices, to compare all next choices at once.

    Sizes are logarithms to base 2, for they decide when to stop and may be larger than any float. Volumes are clipped.
    """

    def __init__(self, own: Sliceable) -> None:
        places, shape = range(len(own.allowed)), (len(own.lines), len(own.allowed))
        masks = [(line.involved, line.result, line.reach) for line in own.lines]
        involved, self.in_result, self.reach = (
            np.array([[column[which] >> k & 1 for k in places] for column in masks], dtype=bool).reshape(shape)
            for which in range(3)
        )
        self.numbers = np.array([clip(number) for number in own.numbers])
        self.shrink = np.where(involved, 1 / self.numbers, 1.0)
        self.volumes = np.array([clip(line.volume) for line in own.lines])
        self.result = clip(own.result)
        self.is_result = np.array([bool(own.result_mask >> k & 1) for k in places], dtype=bool)
        self.sizes = np.array([log2(line.size) for line in own.lines])

    def choose(self, limit: int, noise: np.random.Generator, temperature: float) -> list[int]:
        """Return the indices to slice: in turn, of the largest value, the one that adds least to the total in logs."""
        chosen: list[int] = []
        volumes, sizes, inside = self.volumes.copy(), self.sizes[:-1].copy(), np.zeros(len(self.volumes), dtype=bool)
        slices, added = 1.0, self.result
        while len(sizes) and sizes.max() > log2(limit) + 1e-9:
            open_to = [int(k) for k in np.flatnonzero(self.in_result[sizes.round(9).argmax()]) if k not in chosen]
            if not open_to:  # all other indices of the largest value are read at positions
                break
            reached = inside[:, None] | self.reach[:, open_to]
            per_slice = (reached * volumes[:, None] * self.shrink[:, open_to]).sum(axis=0)
            adding = added * np.where(self.is_result[open_to], 1.0, self.numbers[open_to])
            totals = (~reached * volumes[:, None]).sum(axis=0) + slices * self.numbers[open_to] * per_slice + adding
            before = volumes[~inside].sum() + slices * volumes[inside].sum() + added
            score = np.log(totals / before) / np.log(np.maximum(self.numbers[open_to], 2))
            best = open_to[int((score + temperature * noise.gumbel(size=len(open_to))).argmin())]
            chosen.append(best)
            inside |= self.reach[:, best]
            volumes *= self.shrink[:, best]
            sizes -= np.where(self.in_result[:-1, best], np.log2(self.numbers[best]), 0.0)
            slices = min(slices * self.numbers[best], BEYOND)
            added = min(adding[open_to.index(best)], BEYOND)
        return chosen


def _choices(own: Sliceable, limit: int, seed: int, hint: Iterable[Index]) -> Iterator[Slicing]:
    """Yield the slicings of one tree that meet a limit: by the hint where it does, and by our own choices."""
    noise = np.random.default_rng(seed)
    chosen = [own.tables.choose(limit, noise, 0.05 * repeat / REPEATS) for repeat in range(REPEATS)]
    for indices in (hint, *([own.allowed[k] for k in places] for places in chosen)):
        slicing = own.slicing(indices)
        if slicing.largest <= limit:
            yield _without_idle(own, slicing, limit)


def _without_idle(own: Sliceable, slicing: Slicing, limit: int) -> Slicing:
    """Return a slicing without the indices that it need not slice."""
    for index in slicing.indices:
        fewer = own.slicing([other for other in slicing.indices if other != index])
        if fewer.largest <= limit and fewer.rank() <= slicing.rank():
            slicing = fewer
    return slicing
