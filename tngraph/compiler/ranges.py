"""Ranges of run-time sizes: the best trees of all regions at every value of the sizes that are free.

With one free size every region is solved for all its values, and the ranges are the common refinement of the regions'
intervals. With several, regions are solved on a grid. With none there is one range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product as combinations
from math import inf

from tngraph.compiler.cache import cache_key, find_cached
from tngraph.compiler.tasks import PlanProblem, PricedRegion, Task, find_tree
from tngraph.language.sizes import evaluate_size, symbol
from tngraph.search.layouts import Run, lay_out
from tngraph.search.objectives import Price, Weighted
from tngraph.search.regimes import Interval, RegimeTrees, Solver, find_intervals, has_sizes, refine_intervals
from tngraph.search.region import ContractionTree, Topology

GRID = (1, 32, 1024)
"""The values of each of several free sizes at which trees are searched."""
MOST_GRID = 3
"""Where more sizes are free than this, the plan is made for the default sizes alone."""


def find_ranges(problem: PlanProblem) -> list[RegimeTrees]:
    """Return the ranges of the free size, each with the best tree of every region there.

    Several free sizes have no ranges: then each result stands for one set of trees.
    """
    task = problem.task
    if len(task.free) == 1:
        return refine_intervals(_find_intervals(task, priced) for priced in problem.regions)
    if 1 < len(task.free) <= MOST_GRID and isinstance(task.request.rate, Weighted):
        return [(1, None, trees) for trees in _find_on_grid(problem)]
    return [(1, None, tuple(find_tree(task, priced) for priced in problem.regions))]


def lay_out_ranges(problem: PlanProblem, ranges: Sequence[RegimeTrees]) -> list[RegimeTrees]:
    """Return ranges whose trees are laid out. A tree of several ranges is laid out once, for the first of them."""
    laid_out: dict[object, ContractionTree] = {}
    for low, high, trees in ranges:
        numbers = _numbers_in(problem.task, low, high)
        for priced, tree in zip(problem.regions, trees, strict=True):
            if (priced, tree) not in laid_out:
                run = Run(numbers, problem.task.request.machine, priced.pricing.trained, priced.pricing.fixed)
                laid_out[priced, tree] = lay_out(tree, run)
    return [
        (low, high, tuple(laid_out[pair] for pair in zip(problem.regions, trees, strict=True)))
        for low, high, trees in ranges
    ]


def _numbers_in(task: Task, low: int, high: int | None) -> dict[str, int]:
    """Return the numbers of all sizes in a range of the one free size: the default value, or else the nearest one."""
    if len(task.free) != 1:
        return task.numbers
    (name,) = task.free
    default = task.numbers[name]
    return task.numbers_at(**{name: max(low, default if high is None else min(high, default))})


def _find_intervals(task: Task, priced: PricedRegion) -> Sequence[Interval]:
    """Return the trees of a region at all values of the one free size."""
    if priced.pin is not None:
        return (Interval(1, None, find_tree(task, priced)),)
    (name,) = task.free

    def numbers_at(value: int) -> dict[str, int]:
        return task.numbers_at(**{name: value})

    def search() -> Sequence[Interval]:
        return find_intervals(priced.region, priced.pricing, task.search, symbol(name), task.write_out, numbers_at)

    key = cache_key(priced.region, priced.pricing, task.search, task.show_formula)
    return find_cached(Topology(priced.region, task.numbers, priced.pricing), key, search)


def _find_on_grid(problem: PlanProblem) -> list[tuple[ContractionTree, ...]]:
    """Return the trees of all regions that are best together somewhere on a grid of the free sizes, in few sets."""
    task = problem.task
    numbers = _grid_numbers(problem)
    solvers = [_solve_region(task, priced, numbers) for priced in problem.regions]
    chosen: list[tuple[ContractionTree, ...]] = []

    def price(trees: Sequence[ContractionTree], k: int) -> Price:
        return sum(solver.price(tree, k) for solver, tree in zip(solvers, trees, strict=True))

    for k in range(len(numbers)):
        best = tuple(solver.solve(k) for solver in solvers)
        if price(best, k) < min((price(trees, k) for trees in chosen), default=inf):
            chosen.append(best)
    if len(chosen) == 1:
        return chosen
    # Between the points of the grid only a region that does not depend on the free sizes is proven.
    is_fixed = [task.sizes_of(priced.region).isdisjoint(task.free) for priced in problem.regions]
    return [
        tuple(replace(tree, is_proven=tree.is_proven and fixed) for tree, fixed in zip(trees, is_fixed, strict=True))
        for trees in chosen
    ]


def _grid_numbers(problem: PlanProblem) -> list[dict[str, int]]:
    """Return the numbers of all sizes at the points of the grid where every leg has a size, the defaults last."""
    task = problem.task
    points = [*combinations(GRID, repeat=len(task.free)), tuple(task.numbers[name] for name in task.free)]

    def numbers_of(k: int) -> dict[str, int]:
        return task.numbers_at(**dict(zip(task.free, points[k], strict=True)))

    valid = (
        k for k in range(len(points)) if all(has_sizes(priced.region, numbers_of, k) for priced in problem.regions)
    )
    return [numbers_of(k) for k in valid]


def _solve_region(task: Task, priced: PricedRegion, numbers: Sequence[Mapping[str, int]]) -> Solver:
    """Return a solver that has solved a region at some numbers, the k-th at `k`. A pinned tree is the same at all."""
    solver = Solver(priced.region, priced.pricing, task.search, numbers.__getitem__)
    count = len(numbers)
    if priced.pin is not None:
        trees = [find_tree(task, priced)] * count
    else:
        topology = Topology(priced.region, task.numbers, priced.pricing)
        key = cache_key(
            priced.region, priced.pricing, task.search, lambda size: [evaluate_size(size, n) for n in numbers], count
        )
        trees = [interval.tree for interval in find_cached(topology, key, lambda: _solve_points(solver, count))]
    return replace(solver, trees=[*dict.fromkeys(trees)], solved=dict(enumerate(trees)))


def _solve_points(solver: Solver, count: int) -> list[Interval]:
    """Return the trees at some points, the k-th as the interval of the value k + 1."""
    return [Interval(k + 1, k + 1 if k < count - 1 else None, solver.solve(k)) for k in range(count)]
