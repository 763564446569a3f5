"""Planning for time: trees, axis orders and tiles together, as a machine runs them.

The time of a step depends on how its operands lie in memory. So time is not a sum over steps that a search could
minimise at once. Instead the planner compares candidates: for every size of a tile, and without tiles, the tree whose
products take the least time and that of the fewest operations, each with its axes laid out (`search.layouts`). The
model of the machine runs all lines of each candidate, copies included, and the fastest is taken. Building the dense
weight first is a tree like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tngraph.compiler.cache import cache_key, find_cached
from tngraph.compiler.tasks import PlanProblem, PricedRegion
from tngraph.language.legs import bare_legs, depends_on, legs_size
from tngraph.language.network import Index
from tngraph.language.sizes import evaluate_size
from tngraph.plans.measured import Measured
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
from tngraph.search.tiling import find_runtime_index, find_weight_index

SAMPLED = (1, 4, 16, 64, 256, 1024)
"""The values of a free size at which candidates are compared. In between, the model says where one takes over."""
OPERATIONS_PER_WRITE = 64
"""The price of a written element in the tree between the fewest operations and the least time [operations]."""
RUNTIME_TILES = (8, 16, 32, 64, 128)
"""The sizes of tiles of a run-time index that are tried."""
WEIGHT_TILES = (1, 2, 4, 8)
"""The sizes of tiles of a dense weight that are tried."""
LARGE_WEIGHT = 2**22
"""A dense weight that is smaller is built whole [elements]."""
TILING_GAIN = 1.06
"""How many times as fast a call in tiles must be as a whole one: where the model saw a tie, tiles were slower."""
TAKEOVER = 0.97
"""At a larger size another candidate takes over if it takes at most this share of the time."""

Trees = tuple[ContractionTree, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """The trees that a network may run with, and the time that the model predicts for them.

    Attributes:
        trees: of all regions.
        seconds: of a call at the sizes it was predicted for, in training with its backward pass [s].
        is_laid_for_step: whether axes are laid out for all of a training step, and not for its forward pass alone.
    """

    trees: Trees
    seconds: float
    is_laid_for_step: bool = True

    @property
    def price(self) -> float:
        """The predicted time, increased if calls run in tiles, by which candidates are compared."""
        has_tiles = any(tree.tile is not None and tree.tile.is_runtime for tree in self.trees)
        return TILING_GAIN * self.seconds if has_tiles else self.seconds

    @property
    def is_whole(self) -> bool:
        """True if nothing runs in tiles."""
        return not any(tree.tile for tree in self.trees)

    @property
    def is_planned(self) -> bool:
        """True if a backward pass is planned, and not left to PyTorch."""
        return any(tree.gradients for tree in self.trees)

    @property
    def orders(self) -> tuple[object, ...]:
        """The steps of every tree."""
        return tuple(tree.steps for tree in self.trees)


@dataclass
class TimedSearch:
    """Finds and compares candidates for running a network, and remembers the results.

    Attributes:
        problem: the regions to find trees for.
        bench: the machine that axes are laid out for and candidates are compared on; that of the request, when absent.
    """

    problem: PlanProblem
    bench: Machine | None = None
    _searched: dict[object, ContractionTree] = field(default_factory=dict)
    _laid_out: dict[object, ContractionTree] = field(default_factory=dict)
    _regimes: dict[Trees, Regime] = field(default_factory=dict)
    _kernels: dict[Hashable, Any] = field(default_factory=dict)

    @cached_property
    def machine(self) -> Machine:
        """The machine that axes are laid out for and candidates are compared on."""
        return self.bench or self.problem.task.request.machine

    @cached_property
    def rates(self) -> tuple[Rate, ...]:
        """The prices of a step for which trees are searched."""
        machines: tuple[Rate, ...] = (self.machine, self.problem.task.request.machine)
        return tuple(dict.fromkeys((*machines, Weighted(), Weighted(1, OPERATIONS_PER_WRITE))))

    @cached_property
    def runtime_indices(self) -> list[Index | None]:
        """The run-time index of each region that its steps can run over in tiles."""
        return [find_runtime_index(self.problem.merged, priced.region) for priced in self.problem.regions]

    @cached_property
    def weight_indices(self) -> list[Index | None]:
        """The index of each region's weights that its steps can run over in tiles."""
        return [find_weight_index(self.problem.merged, priced.region) for priced in self.problem.regions]

    def candidates(self, /, **sizes: int) -> list[Candidate]:
        """Return all candidates at some sizes, the fastest first, among near ties those that run whole."""
        numbers = self.problem.task.numbers_at(**sizes)
        proposals: dict[Trees, bool] = {}
        for is_for_step in (True, False) if self.problem.task.request.mode == "train" else (True,):
            for trees in self._propose(numbers, is_for_step):
                for variant in (trees, by_autograd(trees)):
                    proposals.setdefault(variant, is_for_step)
        candidates = (
            Candidate(trees, self.seconds(trees, numbers), is_for_step) for trees, is_for_step in proposals.items()
        )
        return sorted(candidates, key=lambda candidate: candidate.price)

    def plan(self, ranges: Sequence[RegimeTrees], measured: Sequence[Measured] = ()) -> Plan:
        """Return the plan that has a regime for each range."""
        return replace(self.problem.plan(ranges), measured=tuple(measured))

    def describe(self, candidate: Candidate) -> str:
        """Return the order of a candidate, its tiles, and who finds its gradients, on one line."""
        tiles = {f"{tree.tile.size} of {tree.tile.index.name}": None for tree in candidate.trees if tree.tile}
        details = [f"{', '.join(tiles)} at a time"] if tiles else []
        if self.problem.task.request.mode == "train" and not candidate.is_planned:
            details.append("gradients by PyTorch")
        if not candidate.is_laid_for_step:
            details.append("laid out for its forward pass")
        return ", ".join([draw_stages(self._regime(candidate.trees)), *details])

    def seconds(self, trees: Trees, numbers: dict[str, int]) -> float:
        """Return the time that the model predicts for some trees at some sizes [s]."""
        return self._regime(trees).seconds(numbers, self.machine, self._kernels)

    def _regime(self, trees: Trees) -> Regime:
        if trees not in self._regimes:
            self._regimes[trees] = self.problem.assembly.regime(trees)
        return self._regimes[trees]

    def _propose(self, numbers: dict[str, int], is_for_step: bool) -> Iterator[Trees]:
        """Yield the best trees at each rate, with and without tiles."""
        is_beyond_cache = False
        for rate in self.rates:
            trees = tuple(
                self._find_tree(priced, rate, is_for_step, numbers, numbers) for priced in self.problem.regions
            )
            yield trees
            is_beyond_cache = is_beyond_cache or self._is_beyond_cache(trees, numbers)
            if is_for_step:  # a tiled weight is laid out again, and always for the step
                yield from self._tile_weights(trees, numbers)
        if is_beyond_cache:  # else a call gains nothing by tiles
            yield from self._tile_calls(numbers, is_for_step)

    def _is_beyond_cache(self, trees: Trees, numbers: dict[str, int]) -> bool:
        """Return whether a value of some trees is too large for the cache, or for memory that is used again."""
        values = {
            legs
            for tree in trees
            for legs in (*map(bare_legs, tree.region.accesses), *(step.legs for step in tree.steps))
        }
        largest = max((evaluate_size(legs_size(legs), numbers) for legs in values), default=0)
        return largest > min(self.machine.cache, self.machine.reused)

    def _tile_calls(self, numbers: dict[str, int], is_for_step: bool) -> Iterator[Trees]:
        """Yield the best trees of calls in tiles of a run-time index, for every size of a tile and every rate."""
        names = {str(index.size) for index in self.runtime_indices if index is not None}
        for size in RUNTIME_TILES:
            cut = {name: min(size, numbers[name]) for name in names}
            if any(cut[name] < numbers[name] for name in names):
                in_tile = self.problem.task.numbers_at(**cut)
                for rate in self.rates:
                    yield tuple(
                        _tile(self._find_tree(priced, rate, is_for_step, in_tile, numbers), index, size)
                        for priced, index in zip(self.problem.regions, self.runtime_indices, strict=True)
                    )

    def _tile_weights(self, trees: Trees, numbers: dict[str, int]) -> Iterator[Trees]:
        """Yield the same trees, those that build large dense weights in tiles, for every size of a tile."""
        if self.problem.task.request.mode == "serve":
            return
        tiles = [
            self._weight_tiles(tree, index, numbers) for tree, index in zip(trees, self.weight_indices, strict=True)
        ]
        for size in sorted({tile.size for own in tiles for tile in own}):
            own_tiles = [next((tile for tile in own if tile.size == size), None) for own in tiles]
            yield tuple(
                tree if tile is None else self.tile_weight(priced, tree, tile, numbers)
                for priced, tree, tile in zip(self.problem.regions, trees, own_tiles, strict=True)
            )

    def _weight_tiles(self, tree: ContractionTree, index: Index | None, numbers: dict[str, int]) -> list[Tile]:
        """Return the tiles of an index to try, if a tree builds a large weight along the index."""
        runtime = self.problem.merged.runtime_sizes()
        weights = (step.legs for step in tree.steps[:-1] if index in step.legs and not depends_on(step.legs, runtime))
        largest = max((evaluate_size(legs_size(legs), numbers) for legs in weights), default=0)
        if index is None or largest < LARGE_WEIGHT:
            return []
        return [Tile(index, size) for size in WEIGHT_TILES if size < index.size and index.size % size == 0]

    def tile_weight(
        self, priced: PricedRegion, tree: ContractionTree, tile: Tile, numbers: dict[str, int]
    ) -> ContractionTree:
        """Return a tree that builds its weight tile by tile, laid out for one tile."""
        inside = replace(tree, matmuls=(), gradients=()).renamed(tile.enter)
        laid_out = self._lay_out(priced, inside, {**numbers, str(tile.part.size): tile.size})
        return replace(laid_out.renamed(tile.leave), tile=tile)

    def _find_tree(
        self, priced: PricedRegion, rate: Rate, is_for_step: bool, numbers: dict[str, int], whole: dict[str, int]
    ) -> ContractionTree:
        """Return the best tree of a region at some sizes, laid out for them.

        A large region is searched once, at the sizes of the task, or at those of each call if it is tuned. It is
        searched by the model alone, since a search compares too many steps to measure them all.

        Args:
            priced: the region.
            rate: what a step costs.
            is_for_step: whether axes are laid out for all of a training step.
            numbers: the sizes of a tile, or of the whole call.
            whole: the sizes of the whole call.
        """
        task, searched = self.problem.task, numbers
        if len(priced.region.accesses) > MOST_LEAVES:
            searched = task.numbers if self.bench is None else whole
            rate = task.request.machine if rate == self.bench else rate
        topology = Topology(priced.region, searched, replace(priced.pricing, rate=rate))
        key = priced, rate, tuple(topology.sizes)
        if key not in self._searched:
            self._searched[key] = replace(self._search(topology, searched), is_proven=False)
        return self._lay_out(priced, self._searched[key], numbers, is_for_step)

    def _search(self, topology: Topology, numbers: dict[str, int]) -> ContractionTree:
        """Return the tree of least cost. Results on measured kernels are not cached: the next measurement differs."""
        search = self.problem.task.search
        if topology.pricing.rate == self.bench:
            return search_tree(topology, search)
        key = cache_key(topology.region, topology.pricing, search, lambda size: evaluate_size(size, numbers))
        (interval,) = find_cached(topology, key, lambda: [Interval(1, None, search_tree(topology, search))])
        return interval.tree

    def _lay_out(
        self, priced: PricedRegion, tree: ContractionTree, numbers: dict[str, int], is_for_step: bool = True
    ) -> ContractionTree:
        """Return a tree with the axes of its values in order: for a training step, or for its forward pass alone."""
        run = Run(numbers, self.machine, priced.pricing.trained, priced.pricing.fixed, self._kernels)
        key = priced, tree, is_for_step, tuple(Topology(tree.region, numbers).sizes)
        if key not in self._laid_out:
            laid_out = lay_out(tree, run if is_for_step else run._replace(trained=0))
            is_trained = self.problem.task.request.mode == "train" and bool(priced.pricing.trained)
            is_planned = is_trained and can_plan_backward(self.problem.merged, priced.region)
            self._laid_out[key] = lay_out_gradients(laid_out, run) if is_planned else laid_out
        return self._laid_out[key]


def _tile(tree: ContractionTree, index: Index | None, size: int) -> ContractionTree:
    """Return a tree in tiles of a run-time index, unless it has no such index or nothing to contract."""
    if index is None or len(tree.region.accesses) == 1:
        return tree
    return replace(tree, tile=Tile(index, size))


def by_autograd(trees: Trees) -> Trees:
    """Return the same trees, with gradients by PyTorch."""
    return tuple(replace(tree, gradients=()) for tree in trees)


def find_fastest(search: TimedSearch) -> list[RegimeTrees]:
    """Return the fastest trees by the value of the one free size; those at the task's sizes if none or several are."""
    task = search.problem.task
    if len(task.free) != 1:
        return [(1, None, search.candidates()[0].trees)]
    (name,) = task.free

    def price(trees: Trees, value: int) -> float:
        return Candidate(trees, search.seconds(trees, task.numbers_at(**{name: value}))).price

    chosen: list[tuple[int, Trees]] = []
    points = _sampled_values(search.problem, name)
    for number, value in enumerate(points, 1):
        best = search.candidates(**{name: value})[0]
        if task.search.progress is not None:
            task.search.progress(number, len(points), best.seconds)
        if not chosen:
            chosen.append((1, best.trees))
            continue
        current = chosen[-1][1]
        if best.trees != current and best.price < TAKEOVER * price(current, value):
            chosen.append((_first_faster(price, current, best.trees, points[number - 2], value), best.trees))
    ends = [low - 1 for low, _ in chosen[1:]]
    return [(low, high, trees) for (low, trees), high in zip(chosen, [*ends, None], strict=True)]


def _sampled_values(problem: PlanProblem, name: str) -> list[int]:
    """Return the values of a free size at which candidates are compared: those at which every leg has a size."""
    task = problem.task

    def numbers_at(value: int) -> dict[str, int]:
        return task.numbers_at(**{name: value})

    sampled = [v for v in SAMPLED if all(has_sizes(priced.region, numbers_at, v) for priced in problem.regions)]
    return sampled or [task.numbers[name]]


def _first_faster(price: Callable[[Trees, int], float], old: Trees, new: Trees, low: int, high: int) -> int:
    """Return a value from which on the new trees are faster, as they are at `high` and not at `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if price(new, middle) < price(old, middle) else (middle, high)
    return high
