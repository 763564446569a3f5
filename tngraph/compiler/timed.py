"""Planning for time: trees, axis orders and tiles together, as a machine runs them.

What a step takes depends on how its operands lie, so that time is no sum over steps that a search could minimise at
once. Candidates are: for every size of a part, and for the whole, the tree of the least time of its products and that
of the fewest operations, each with its axes laid out (`planning.layouts`). The model of the machine then runs all lines
of each, copies included, and the fastest is taken. Dense reconstruction is a tree like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tngraph.compiler.cache import cache_key, find_cached
from tngraph.compiler.tasks import PricedRegion, Task, clean_regions
from tngraph.language.legs import bare_legs, depends_on, legs_size
from tngraph.language.network import Index, Network
from tngraph.language.sizes import evaluate_size
from tngraph.plans.assembly import assemble_plan
from tngraph.plans.decision import Measured
from tngraph.plans.plan import Plan
from tngraph.plans.regime import Regime
from tngraph.plans.table import draw_stages
from tngraph.search.exact import MOST_LEAVES
from tngraph.search.gradients import can_plan_backward, lay_out_gradients
from tngraph.search.layouts import Run, lay_out
from tngraph.search.machine import Machine
from tngraph.search.objectives import Rate, Weighted
from tngraph.search.orders import search_tree
from tngraph.search.regimes import Interval, RegimeTrees, has_sizes
from tngraph.search.region import ContractionTree, Tile, Topology
from tngraph.search.tiling import find_tiled

SAMPLED = (1, 4, 16, 64, 256, 1024)
"""The values of a free size at which candidates are compared; in between the model says where one takes over."""
PARTS = (8, 16, 32, 64, 128)
"""The sizes of parts that are tried."""
OPERATIONS_PER_WRITE = 64
"""Between the fewest operations and the least time: an element that is written counts as so many [operations]."""
BLOCKS = (1, 2, 4, 8)
"""How many values of an index a block of a dense weight may have."""
LARGE_WEIGHT = 2**22
"""A dense weight that is smaller is made whole [elements]."""
WORTH = 0.97
"""Another choice than that for a smaller size has to take no more than this share of its time."""

IN_PARTS = 1.06
"""A way in parts has to be so many times as fast as one that runs whole: where the model saw a tie, it was slower."""

Trees = tuple[ContractionTree, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a network, and what the model says of it.

    Attributes:
        trees: of all regions.
        seconds: of a call at the size it was made for, in training with its backward pass [s].
        is_laid_for_step: whether axes are laid out for all of a training step, and not for its forward pass alone.
    """

    trees: Trees
    seconds: float
    is_laid_for_step: bool = True

    @property
    def price(self) -> float:
        """By which it is chosen: its time, and some more if calls run in parts."""
        is_parted = any(tree.tile is not None and tree.tile.is_runtime for tree in self.trees)
        return IN_PARTS * self.seconds if is_parted else self.seconds

    @property
    def is_whole(self) -> bool:
        """Whether nothing runs in parts."""
        return not any(tree.tile for tree in self.trees)

    @property
    def is_planned(self) -> bool:
        """Whether a backward pass is planned, and not left to PyTorch."""
        return any(tree.gradients for tree in self.trees)

    @property
    def orders(self) -> tuple[object, ...]:
        """The steps of every tree."""
        return tuple(tree.steps for tree in self.trees)


@dataclass
class TimedSearch:
    """Finds the fastest way to run a network, by the size that is cut into parts.

    Attributes:
        task: what to plan.
        merged: the network that is contracted.
        bench: the machine that axes are laid out for and candidates are compared on; that of the request, when absent.
    """

    task: Task
    merged: Network
    bench: Machine | None = None
    _trees: dict[object, ContractionTree] = field(default_factory=dict)
    _laid: dict[object, ContractionTree] = field(default_factory=dict)
    _regimes: dict[Trees, Regime] = field(default_factory=dict)
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cleaned, self.priced_regions = clean_regions(self.task, self.merged)
        self.machine = self.bench or self.task.request.machine
        self.tiles = [find_tiled(self.merged, priced.region, is_runtime=True) for priced in self.priced_regions]
        self.blocked = [find_tiled(self.merged, priced.region, is_runtime=False) for priced in self.priced_regions]

    def candidates(self, /, **sizes: int) -> list[Candidate]:
        """All ways that are tried at some sizes, the fastest first, among near ties those that run whole."""
        numbers = self.task.numbers_at(**sizes)
        found: dict[Trees, bool] = {}
        for is_for_step in (True, False) if self.task.request.mode == "train" else (True,):
            for trees in self._tree_candidates(numbers, is_for_step):
                for each in (trees, by_autograd(trees)):
                    found.setdefault(each, is_for_step)
        made = [Candidate(trees, self.seconds(trees, numbers), is_for_step) for trees, is_for_step in found.items()]
        return sorted(made, key=lambda each: each.price)

    def plan(self, found: Sequence[RegimeTrees], measured: Sequence[Measured] = ()) -> Plan:
        """The plan that has a regime for each range."""
        task = self.task
        made = assemble_plan(task.network, self.merged, self.cleaned, found, task.numbers, task.request, task.free)
        return replace(made, measured=tuple(measured))

    def describe(self, candidate: Candidate) -> str:
        """The order of a candidate, its parts, and whose backward pass it has, in a line."""
        plan = self.plan([(1, None, candidate.trees)])
        parts = {f"{tree.tile.size} of {tree.tile.index.name}": None for tree in candidate.trees if tree.tile}
        details = [f"{', '.join(parts)} at a time"] if parts else []
        if self.task.request.mode == "train" and not candidate.is_planned:
            details.append("gradients by PyTorch")
        if not candidate.is_laid_for_step:
            details.append("laid out for its forward pass")
        return ", ".join([draw_stages(plan.regimes[0]), *details])

    def seconds(self, trees: Trees, numbers: dict[str, int]) -> float:
        """What the model says of some trees at some sizes [s]."""
        if trees not in self._regimes:
            self._regimes[trees] = self.plan([(1, None, trees)]).regimes[0]
        return self._regimes[trees].seconds(numbers, self.machine, self._known)

    def _tree_candidates(self, numbers: dict[str, int], is_for_step: bool) -> Iterator[Trees]:
        sizes = {str(index.size) for index in self.tiles if index is not None}
        machines: tuple[Rate, ...] = (self.machine, self.task.request.machine)
        rates = tuple(dict.fromkeys((*machines, Weighted(), Weighted(1, OPERATIONS_PER_WRITE))))
        is_beyond_cache = False  # else nothing is gained by parts
        for rate in rates:
            trees = tuple(self._tree(priced, rate, is_for_step, numbers, numbers) for priced in self.priced_regions)
            yield trees
            is_beyond_cache = is_beyond_cache or self._is_beyond_cache(trees, numbers)
            if is_for_step:
                yield from self._blocked(trees, numbers)  # laid out anew, and always for the step
        for part in PARTS if is_beyond_cache else ():
            cut = {name: min(part, numbers[name]) for name in sizes}
            if any(cut[name] < numbers[name] for name in sizes):
                smaller = self.task.numbers_at(**cut)
                for rate in rates:
                    yield tuple(
                        self._tile(self._tree(priced, rate, is_for_step, smaller, numbers), index, part)
                        for priced, index in zip(self.priced_regions, self.tiles, strict=True)
                    )

    def _is_beyond_cache(self, trees: Trees, numbers: dict[str, int]) -> bool:
        """Whether a value of some trees is too large for the cache, or for memory that is used again."""
        legs = {
            each for tree in trees for each in (*map(bare_legs, tree.region.accesses), *(s.legs for s in tree.steps))
        }
        largest = max((evaluate_size(legs_size(each), numbers) for each in legs), default=0)
        return largest > min(self.machine.cache, self.machine.reused)

    def _blocked(self, trees: Trees, numbers: dict[str, int]) -> Iterator[Trees]:
        """The same trees, those that make large dense weights in blocks."""
        if self.task.request.mode == "serve":
            return
        found = zip(trees, self.blocked, strict=True)
        blocks = [self._block_sizes(tree, index, numbers) for tree, index in found]
        for size in sorted({size for _, sizes in blocks for size in sizes}):
            yield tuple(
                self._block(priced, tree, Tile(index, size), numbers) if index and size in sizes else tree
                for priced, tree, (index, sizes) in zip(self.priced_regions, trees, blocks, strict=True)
            )

    def _block_sizes(
        self, tree: ContractionTree, index: Index | None, numbers: dict[str, int]
    ) -> tuple[Index | None, tuple[int, ...]]:
        """The index, if a tree makes a large weight along it, and how many of its values a block may have."""
        runtime = self.merged.runtime_sizes()
        made = (step.legs for step in tree.steps[:-1] if index in step.legs and not depends_on(step.legs, runtime))
        largest = max((evaluate_size(legs_size(legs), numbers) for legs in made), default=0)
        if index is None or largest < LARGE_WEIGHT:
            return None, ()
        return index, tuple(size for size in BLOCKS if size < index.size and index.size % size == 0)

    def _block(
        self, priced: PricedRegion, tree: ContractionTree, tile: Tile, numbers: dict[str, int]
    ) -> ContractionTree:
        """A tree that makes its weight block by block, laid out for one."""
        entered = replace(tree, matmuls=(), gradients=()).renamed(tile.enter)
        laid = self.lay_out(priced, entered, {**numbers, str(tile.part.size): tile.size})
        return replace(laid.renamed(tile.leave), tile=tile)

    def _tile(self, tree: ContractionTree, index: Index | None, part: int) -> ContractionTree:
        if index is None or len(tree.region.accesses) == 1:
            return tree
        return replace(tree, tile=Tile(index, part))

    def _tree(
        self, priced: PricedRegion, rate: Rate, is_for_step: bool, numbers: dict[str, int], whole: dict[str, int]
    ) -> ContractionTree:
        """The tree of a region that is the best at some sizes, those of a part or of the whole, laid out for them.

        A large one is searched for once, at the sizes of the task, or where it is tuned, at those of each call; by the
        model alone, for the steps that are compared are too many to be measured.
        """
        searched = numbers
        if len(priced.region.accesses) > MOST_LEAVES:
            searched = self.task.numbers if self.bench is None else whole
            rate = self.task.request.machine if rate == self.bench else rate
        pricing = replace(priced.pricing, rate=rate)
        topology = Topology(priced.region, searched, pricing)
        key = priced, rate, tuple(topology.sizes)
        if key not in self._trees:
            self._trees[key] = replace(self._search(topology, searched), is_proven=False)
        return self.lay_out(priced, self._trees[key], numbers, is_for_step)

    def _search(self, topology: Topology, numbers: dict[str, int]) -> ContractionTree:
        """The tree of least cost; what was measured just now is not kept for another time."""
        search = self.task.search
        if topology.pricing.rate == self.bench:
            return search_tree(topology, search)
        known = cache_key(topology.region, topology.pricing, search, lambda size: evaluate_size(size, numbers))
        (interval,) = find_cached(topology, known, lambda: [Interval(1, None, search_tree(topology, search))])
        return interval.tree

    def lay_out(
        self, priced: PricedRegion, tree: ContractionTree, numbers: dict[str, int], is_for_step: bool = True
    ) -> ContractionTree:
        """A tree with the axes of its values in order: for all of a training step, or for its forward pass alone."""
        run = Run(numbers, self.machine, priced.pricing.trained, priced.pricing.fixed, self._known)
        key = priced, tree, is_for_step, tuple(Topology(tree.region, numbers).sizes)
        if key not in self._laid:
            laid = lay_out(tree, run if is_for_step else run._replace(trained=0))
            is_trained = self.task.request.mode == "train" and bool(priced.pricing.trained)
            is_planned = is_trained and can_plan_backward(self.merged, priced.region)
            self._laid[key] = lay_out_gradients(laid, run) if is_planned else laid
        return self._laid[key]


def by_autograd(trees: Trees) -> Trees:
    """The same trees, with the backward pass of PyTorch."""
    return tuple(replace(tree, gradients=()) for tree in trees)


def find_timed(search: TimedSearch) -> list[RegimeTrees]:
    """The fastest ways by the value of the one free size; at the sizes of the task where there is none, or several."""
    task = search.task
    if len(task.free) != 1:
        return [(1, None, search.candidates()[0].trees)]
    (name,) = task.free

    def price(trees: Trees, value: int) -> float:
        return Candidate(trees, search.seconds(trees, task.numbers_at(**{name: value}))).price

    def is_there(value: int) -> bool:
        return all(
            has_sizes(priced.region, lambda v: task.numbers_at(**{name: v}), value) for priced in search.priced_regions
        )

    points = [value for value in SAMPLED if is_there(value)] or [task.numbers[name]]
    chosen: list[tuple[int, Trees]] = []
    for number, value in enumerate(points, 1):
        best = search.candidates(**{name: value})[0]
        if task.search.progress is not None:
            task.search.progress(number, len(points), best.seconds)
        if not chosen:
            chosen.append((1, best.trees))
        elif best.trees != chosen[-1][1] and best.price < WORTH * price(chosen[-1][1], value):
            before, old, new = points[points.index(value) - 1], chosen[-1][1], best.trees
            chosen.append((_first_faster(price, old, new, before, value), new))
    ends = [low - 1 for low, _ in chosen[1:]]
    return [(low, high, trees) for (low, trees), high in zip(chosen, [*ends, None], strict=True)]


def _first_faster(price: Callable[[Trees, int], float], old: Trees, new: Trees, low: int, high: int) -> int:
    """A value from which on the new trees are faster, which they are at the higher one and not at the lower one."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if price(new, middle) < price(old, middle) else (middle, high)
    return high
