"""Slicing: which indices to run a loop over, so that no step of a tree writes more than a limit.

A sliced index has one value at a time. The steps that it reaches (those above an access it stands on) run once per
slice, each smaller by its size, and their results are added up or, where the index is on the result, put in place. The
other steps run once, before the loop. `Slicing.total` is exact: what a loop that does just this multiplies.

Source: slicing by a greedy choice with repeats, interleaved with rearranging the tree, is cotengra's (Gray, Kourtis,
Quantum 5, 410 (2021)); what a choice costs is counted here, with steps outside the loop counted once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from math import log2, prod

import numpy as np

from tngraph.errors import PlanError
from tngraph.language.legs import bare_legs, leg_indices, leg_size
from tngraph.language.network import Index, Read
from tngraph.language.sizes import evaluate_size
from tngraph.search.machine import BEYOND, clip
from tngraph.search.orders import Search, hypergraph, parallel_for
from tngraph.search.proposals import Cut, CutTrial, propose_cut
from tngraph.search.region import ContractionTree, Topology, counted_legs
from tngraph.search.trees import build_tree
from tngraph.search.workers import run_tasks

REPEATS = 4
"""How often the indices of one tree are chosen, all but the first time straying from what looks best."""


@dataclass(frozen=True, slots=True)
class Slicing:
    """A tree, the indices to loop over, and what that costs.

    Attributes:
        tree: the order in which each slice is contracted.
        indices: sliced whole, in the order the region mentions them; none where everything fits.
        slices: how many: the product of the indices' sizes.
        once: what the steps cost that no sliced index reaches [operations].
        each: what the other steps cost per slice [operations].
        largest: the largest value a step writes but for the result, which is held whole [elements].
    """

    tree: ContractionTree
    indices: tuple[Index, ...]
    slices: int
    once: int
    each: int
    largest: int

    @property
    def total(self) -> int:
        """MAC plus elementwise of all slices, adding up their results left aside [operations]."""
        return self.once + self.slices * self.each


def slice_tree(tree: ContractionTree, sizes: Mapping[str, int], limit: int, search: Search | None = None) -> Slicing:
    """The cheapest slicing found in which no step writes more than so many elements.

    An index that is read at a position such as ``x + k`` is not sliced. The result is held whole, and the tensors that
    the region reads are given: their own size does not count.

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
    best = min(_choices(own, limit, search.seed, ()), key=_rank)
    if best.indices and not tree.is_pinned:
        with suppress(KeyboardInterrupt):
            for other in _rearranged(tree, sizes, limit, search):
                best = min(best, other, key=_rank)
    return best


def _rank(slicing: Slicing) -> tuple[int, int]:
    return slicing.total, slicing.slices


def _rearranged(tree: ContractionTree, sizes: Mapping[str, int], limit: int, search: Search) -> Iterator[Slicing]:
    """Slicings of the trees that cotengra makes of one for the purpose, each with its own choice and with ours."""
    topology = Topology(tree.region, sizes)
    graph = hypergraph(topology)
    if len(graph.legs) < 3:
        return
    cut = Cut(graph, tuple(tree_order(tree)), limit)
    trials = (CutTrial(number, search.seed) for number in range(search.most_trials or 1))
    found: dict[int, list[Slicing]] = {}
    with closing(run_tasks(propose_cut, cut, trials, parallel_for(search, graph))) as results:
        for trial, (order, chosen) in results:
            made = Sliceable(build_tree(topology, order, False), sizes)
            hint = [topology.indices[i] for i in chosen]
            found[trial.number] = list(_choices(made, limit, search.seed, hint))
    for number in sorted(found):
        yield from found[number]


def tree_order(tree: ContractionTree) -> Iterator[tuple[int, int]]:
    """The pairs of a tree, without its steps on one operand."""
    count = len(tree.region.accesses)
    number, made = list(range(count)), count
    for step in tree.steps:
        operands = [number[k] for k in step.operands]
        number.append(operands[0] if len(operands) == 1 else made)
        if len(operands) == 2:
            made += 1
            yield operands[0], operands[1]


@dataclass(frozen=True, slots=True)
class _Line:
    """One step in numbers: what it costs, what it writes, and from which indices that comes.

    Attributes:
        volume: without slices [operations].
        size: of its result without slices [elements].
        involved: the indices its operands and its result have as plain legs.
        kept: those of its result.
        reach: the indices of all accesses below it.
    """

    volume: int
    size: int
    involved: frozenset[Index]
    kept: frozenset[Index]
    reach: frozenset[Index]


class Sliceable:
    """A tree priced under any choice of sliced indices. Made once per tree; nothing in it changes."""

    def __init__(self, tree: ContractionTree, sizes: Mapping[str, int]) -> None:
        self.tree = tree
        every = [leg for access in tree.region.accesses for leg in bare_legs(access)]
        read = {index for leg in every if isinstance(leg, Read) for index in leg.indices}
        self.allowed = tuple(index for index in leg_indices(every) if index not in read)
        self.numbers = {index: evaluate_size(index.size, sizes) for index in self.allowed}
        self.lines = tuple(_lines(tree, sizes))
        self.tables = _Tables(self)

    def slicing(self, chosen: Collection[Index]) -> Slicing:
        """What a choice comes to, in exact integers."""
        indices = tuple(index for index in self.allowed if index in chosen)
        once = each = largest = 0
        for line in self.lines:
            volume = line.volume // prod(self.numbers[i] for i in indices if i in line.involved)
            if line.reach.isdisjoint(indices):
                once += volume
            else:
                each += volume
            if line is not self.lines[-1]:
                largest = max(largest, line.size // prod(self.numbers[i] for i in indices if i in line.kept))
        return Slicing(self.tree, indices, prod(self.numbers[i] for i in indices), once, each, largest)


def _lines(tree: ContractionTree, sizes: Mapping[str, int]) -> Iterator[_Line]:
    legs = [bare_legs(access) for access in tree.region.accesses]
    reach = [frozenset(leg_indices(each)) for each in legs]
    for step in tree.steps:
        below = frozenset[Index]().union(*(reach[k] for k in step.operands))
        summed = set(leg_indices(leg for k in step.operands for leg in legs[k])) - set(leg_indices(step.legs))
        size = prod(evaluate_size(leg_size(leg), sizes) for leg in step.legs)
        counted = counted_legs(step.kind, [legs[k] for k in step.operands], step.legs)
        volume = 0 if step.kind == "read" else prod(evaluate_size(leg_size(leg), sizes) for leg in counted)
        kept = frozenset(leg for leg in step.legs if isinstance(leg, Index))
        yield _Line(volume, size, kept | summed, kept, below)
        legs.append(step.legs)
        reach.append(below)


class _Tables:
    """The lines of a tree as arrays over steps and allowed indices, to compare all next choices at once.

    Sizes are logarithms to base 2, for they decide when to stop and may be larger than any float. Volumes are clipped.
    """

    def __init__(self, own: Sliceable) -> None:
        held = [(line.involved, line.kept, line.reach) for line in own.lines]
        shape = len(own.lines), len(own.allowed)
        involved, self.kept, self.reach = (
            np.array([[index in sets[k] for index in own.allowed] for sets in held], dtype=bool).reshape(shape)
            for k in range(3)
        )
        self.numbers = np.array([clip(own.numbers[index]) for index in own.allowed])
        self.shrink = np.where(involved, 1 / self.numbers, 1.0)
        self.volumes = np.array([clip(line.volume) for line in own.lines])
        self.sizes = np.array([log2(line.size) for line in own.lines])

    def choose(self, limit: int, noise: np.random.Generator, temperature: float) -> list[int]:
        """Index after index of the largest value, each the one that adds least to the logarithm of the total."""
        chosen: list[int] = []
        volumes, sizes, inside = self.volumes.copy(), self.sizes[:-1].copy(), np.zeros(len(self.volumes), dtype=bool)
        slices = 1.0
        while len(sizes) and sizes.max() > log2(limit) + 1e-9:
            open_to = [int(k) for k in np.flatnonzero(self.kept[sizes.round(9).argmax()]) if k not in chosen]
            if not open_to:  # what is left of the largest value is read at positions
                break
            reached = inside[:, None] | self.reach[:, open_to]
            each = (reached * volumes[:, None] * self.shrink[:, open_to]).sum(axis=0)
            totals = (~reached * volumes[:, None]).sum(axis=0) + slices * self.numbers[open_to] * each
            before = volumes[~inside].sum() + slices * volumes[inside].sum()
            score = np.log(totals / before) / np.log(np.maximum(self.numbers[open_to], 2))
            best = open_to[int((score + temperature * noise.gumbel(size=len(open_to))).argmin())]
            chosen.append(best)
            inside |= self.reach[:, best]
            volumes *= self.shrink[:, best]
            sizes -= np.where(self.kept[:-1, best], np.log2(self.numbers[best]), 0.0)
            slices = min(slices * self.numbers[best], BEYOND)
        return chosen


def _choices(own: Sliceable, limit: int, seed: int, hint: Iterable[Index]) -> Iterator[Slicing]:
    """The slicings of one tree that meet a limit: by the hint where it does, and by our own choice."""
    noise = np.random.default_rng(seed)
    chosen = [own.tables.choose(limit, noise, 0.05 * repeat / REPEATS) for repeat in range(REPEATS)]
    hinted = own.slicing(set(hint) & set(own.allowed))
    for slicing in (hinted, *(own.slicing([own.allowed[k] for k in each]) for each in chosen)):
        if slicing.largest <= limit:
            yield _without_idle(own, slicing, limit)


def _without_idle(own: Sliceable, slicing: Slicing, limit: int) -> Slicing:
    """A slicing without the indices that it need not slice."""
    for index in slicing.indices:
        fewer = own.slicing([other for other in slicing.indices if other != index])
        if fewer.largest <= limit and _rank(fewer) <= _rank(slicing):
            slicing = fewer
    return slicing
