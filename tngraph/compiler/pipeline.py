"""The pipeline of a plan, top to bottom: rewrites, regions, the best tree of each at every size, regimes.

A run-time size that is given a number is planned for at this number; the others are *free*: the plan is the best at
every value of them. With one free size every region is solved for all its values and the plan's regimes are the common
refinement. With several, the regions are solved on a grid, and the regime of least cost runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product as combinations
from math import inf

from tngraph.compiler.bounded import check_given, front_search, plan_within
from tngraph.compiler.cache import cache_key, find_cached
from tngraph.compiler.fronts import Front, find_front, make_point
from tngraph.compiler.remembered import remember_plans
from tngraph.compiler.tasks import PricedRegion, Task, clean_regions, find_tree, lay_out_all, merge_where_cheaper
from tngraph.compiler.timed import TimedSearch, find_timed
from tngraph.errors import PlanError
from tngraph.language.binding import check_sizes
from tngraph.language.network import Network
from tngraph.language.rewrites import drop_unused, merge_chains
from tngraph.language.sizes import evaluate_size, product, symbol
from tngraph.plans.assembly import assemble_plan
from tngraph.plans.plan import Plan
from tngraph.search.machine import Machine
from tngraph.search.objectives import Mode, Objective, Price, Request, Weighted, make_request
from tngraph.search.orders import Search
from tngraph.search.pinning import Nested, read_orders
from tngraph.search.regimes import Interval, RegimeTrees, Solver, find_intervals, has_sizes, refine_intervals
from tngraph.search.region import ContractionTree, Topology

GRID = (1, 32, 1024)
"""The values of each of several free sizes at which trees are searched."""
MOST_GRID = 3
"""Where more sizes are free than this, the plan is made for the default sizes alone."""


def plan(
    network: Network,
    sizes: Mapping[str, int] | None = None,
    *,
    mode: Mode = "infer",
    minimize: Objective = "flops",
    requires_grad: Mapping[str, bool] | None = None,
    memory_limit: int | None = None,
    largest: int | None = None,
    itemsize: int = 4,
    search: Search | None = None,
    order: Nested | Mapping[str, Nested] | None = None,
) -> Plan:
    """Find in which order to contract a network.

    Args:
        network: what to plan.
        sizes: numbers for run-time sizes and other values for compile-time ones. The order is the best found at
            these; at every value of the run-time sizes that are not given. Counts hold at all sizes.
        mode: ``infer``, one call; ``train``, forward and backward; ``serve``, many calls with the same weights.
        minimize: ``flops`` (all operations, elementwise ones too), ``memory``, ``writes``, ``time``, weights as
            ``{"flops": 1, "writes": 8}``, or a function of a step, which is given a `Work`.
        requires_grad: which tensors take a gradient; params and inputs do when it does not say.
        memory_limit: the most that a call may hold; in ``train`` what it may keep for the backward pass, in ``serve``
            what may be folded into buffers [bytes].
        largest: the most that a step may write but for results; what no order does is run slice by slice [elements].
        itemsize: of an element, 4 for float32 [bytes].
        search: seed and effort.
        order: the order of the only equation, pinned by hand: ``"((x w1) (w2 w3))"`` or nested sequences of
            names; or the orders of some equations by name. What they leave open is searched.

    Returns:
        The plan; the same arguments give the same plan.

    Raises:
        SizeError: an unknown size, or a number that is not a positive integer.
        PlanError: an order, a mode, an objective or a limit that does not fit the network.
        TypeError: something else than a network.
    """
    request = make_request(_check_network(network), mode, minimize, requires_grad, itemsize, memory_limit, largest)
    task = _make_task(network, sizes, request, search)
    used = drop_unused(network)
    chained = merge_chains(used)
    kept = {equation.name for equation in chained.equations}
    pins = read_orders(order, {equation.name: equation.name in kept for equation in network.equations})
    task = replace(task, pins=pins)
    if request.is_bounded:
        check_given(task)
    unpinned = _plan(replace(task, pins={}, costs={}), chained) if pins else None
    return replace(_plan(task, chained), unpinned=unpinned)


def _check_network(network: object) -> Network:
    """What is to be planned.

    Raises:
        TypeError: something else than a network.
    """
    if not isinstance(network, Network):
        raise TypeError(f"plan takes a network, and not {network!r}; tg.load reads one from a file")
    return network


def _make_task(network: Network, sizes: Mapping[str, int] | None, request: Request, search: Search | None) -> Task:
    """What to plan, its arguments checked.

    Raises:
        SizeError: an unknown size, or a number that is not a positive integer.
        TypeError: what is no sizes or no search.
    """
    _check_arguments(sizes, search)
    task = Task(network, dict(sizes or {}), request, search or Search(), {})
    check_sizes(network, task.numbers)
    return task


def timed_search(
    network: Network,
    sizes: Mapping[str, int] | None = None,
    *,
    machine: Machine,
    bench: Machine | None = None,
    mode: Mode = "infer",
    itemsize: int = 4,
    search: Search | None = None,
) -> TimedSearch:
    """The ways to run a network that the model of a machine compares, for those who measure them.

    Args:
        network: what to plan.
        sizes: as for `plan`.
        machine: on which it runs.
        bench: the same as it was measured, by which ways are laid out and compared.
        mode: as for `plan`.
        itemsize: of an element [bytes].
        search: seed and effort.

    Raises:
        SizeError, PlanError, TypeError: as `plan` does.
    """
    request = make_request(_check_network(network), mode, machine, itemsize=itemsize)
    task = _make_task(network, sizes, request, search)
    return TimedSearch(task, merge_where_cheaper(task, merge_chains(drop_unused(network))), bench)


def _plan(task: Task, chained: Network) -> Plan:
    """The plan of a network whose linear chains are merged."""
    if task.request.mode == "serve" and task.request.memory_limit is not None:
        return _fold_within(task, chained, task.request.memory_limit)
    merged = merge_where_cheaper(task, chained)
    if task.request.largest is not None:
        return plan_within(task, merged, task.request.largest)
    if task.request.is_bounded:
        front = _find_front(task, merged)
        return front.points[-1].plan if task.request.memory_limit is None else front.within(task.request.memory_limit)
    return _find_regimes(task, merged)


def front(
    network: Network,
    sizes: Mapping[str, int] | None = None,
    *,
    mode: Mode = "infer",
    minimize: Objective = "flops",
    requires_grad: Mapping[str, bool] | None = None,
    itemsize: int = 4,
    search: Search | None = None,
) -> Front:
    """Cost against memory: plans of which none is both cheaper and smaller than another.

    Args:
        network: what to plan.
        sizes: numbers for all run-time sizes, and other values for compile-time ones.
        mode: ``infer``, where memory is the peak of a call; ``train``, where it is what autograd keeps.
        minimize: what cost is, as for `plan`.
        requires_grad: as for `plan`.
        itemsize: of an element [bytes].
        search: seed and effort.

    Raises:
        SizeError: an unknown size, or a number that is not a positive integer.
        PlanError: a run-time size without a number, or arguments that do not fit the network.
    """
    request = make_request(_check_network(network), mode, minimize, requires_grad, itemsize)
    if minimize == "memory":
        raise PlanError("a front is of cost against memory\n  minimize says what cost is: flops, writes, time, …")
    if mode == "serve":
        raise PlanError("there is no front in serve\n  memory_limit says how much is folded into buffers")
    task = _make_task(network, sizes, request, search)
    check_given(task)
    merged = merge_where_cheaper(task, merge_chains(drop_unused(network)))
    return _find_front(task, merged)


def _find_front(task: Task, merged: Network) -> Front:
    """The front of a network, from the folder of searches where it was found before."""

    def search() -> list[Plan]:
        found = find_front(front_search(task, merged), task.numbers, task.search.progress)
        return [point.plan for point in found.points]

    return Front(tuple(make_point(each, task.numbers) for each in remember_plans(task, "front", search)))


def _fold_within(task: Task, network: Network, limit: int) -> Plan:
    """The plan that folds the largest values whose buffers together stay within a limit [bytes].

    The search bounds one value. So the bound is lowered until the sum, which is exact, fits; at 0 nothing is folded.
    """
    most = limit // task.request.itemsize
    while True:
        tried = replace(task, request=replace(task.request, most_folded=most), costs={})
        found = _find_regimes(tried, merge_where_cheaper(tried, network))
        if evaluate_size(found.folded, found.sizes) <= limit:
            return found
        largest = max(evaluate_size(product(buffer.shape), found.sizes) for buffer in found.folding.buffers)
        most = min(most // 2, largest - 1)


def _check_arguments(sizes: object, search: object) -> None:
    """Refuse what is no sizes or no search.

    Raises:
        TypeError: it is something else.
    """
    if sizes is not None and not isinstance(sizes, Mapping):
        raise TypeError(f"sizes are numbers by name, as {{'batch': 64}}, and not {sizes!r}")
    if search is not None and not isinstance(search, Search):
        raise TypeError(f"a search is tg.Search(…), and not {search!r}")


def plan_for_serving(known: Plan, sizes: Mapping[str, int], memory_limit: int | None, itemsize: int) -> Plan:
    """Plan the network of another plan for calls with weights that never change.

    Args:
        known: whose objective, run-time sizes, gradients of inputs and largest value are kept; an order by hand is not.
        sizes: numbers for compile-time sizes.
        memory_limit: what may be folded into buffers [bytes].
        itemsize: of an element [bytes].

    Raises:
        PlanError: a limit that is no positive integer.
    """
    network, request = known.network, known.request
    fixed = {name: known.sizes[name] for name in network.runtime_sizes() if name not in known.free}
    return plan(
        network,
        {**fixed, **sizes},
        mode="serve",
        minimize="flops" if request.minimize == "memory" else request.minimize,
        requires_grad={port.name: port.name in request.trained for port in network.inputs},
        memory_limit=memory_limit,
        largest=request.largest,
        itemsize=itemsize,
    )


def _find_regimes(task: Task, merged: Network) -> Plan:
    """A plan of as few regimes as there are best orders."""
    if isinstance(task.request.rate, Machine) and not task.pins:
        timed = TimedSearch(task, merged)
        (fastest,) = remember_plans(task, "time", lambda: [timed.plan(find_timed(timed))])
        return fastest
    cleaned, priced_regions = clean_regions(task, merged)
    is_additive = isinstance(task.request.rate, Weighted)
    found: list[RegimeTrees]
    if len(task.free) == 1:
        found = refine_intervals(_find_intervals(task, priced) for priced in priced_regions)
    elif 1 < len(task.free) <= MOST_GRID and is_additive:
        found = [(1, None, trees) for trees in _find_combinations(task, priced_regions)]
    else:
        found = [(1, None, tuple(find_tree(task, priced) for priced in priced_regions))]
    found = lay_out_all(task, priced_regions, found)
    return assemble_plan(task.network, merged, cleaned, found, task.numbers, task.request, task.free)


def _find_intervals(task: Task, priced: PricedRegion) -> Sequence[Interval]:
    """The trees of a region at all values of the one free size."""
    if priced.pin is not None:
        return (Interval(1, None, find_tree(task, priced)),)
    (name,) = task.free

    def numbers_at(value: int) -> dict[str, int]:
        return task.numbers_at(**{name: value})

    def search() -> Sequence[Interval]:
        return find_intervals(priced.region, priced.pricing, task.search, symbol(name), task.write_out, numbers_at)

    key = cache_key(priced.region, priced.pricing, task.search, task.show_formula)
    return find_cached(Topology(priced.region, task.numbers, priced.pricing), key, search)


def _find_combinations(task: Task, priced_regions: Sequence[PricedRegion]) -> list[tuple[ContractionTree, ...]]:
    """Return the trees of all regions that are best together somewhere on a grid of the free sizes, in few sets."""
    points = [*combinations(GRID, repeat=len(task.free)), tuple(task.numbers[name] for name in task.free)]

    def numbers_of(k: int) -> dict[str, int]:
        return task.numbers_at(**dict(zip(task.free, points[k], strict=True)))

    valid = [k for k in range(len(points)) if all(has_sizes(priced.region, numbers_of, k) for priced in priced_regions)]
    numbers = [numbers_of(k) for k in valid]
    solvers = [_solver(task, priced, numbers) for priced in priced_regions]
    chosen: list[tuple[ContractionTree, ...]] = []

    def price(trees: Sequence[ContractionTree], k: int) -> Price:
        return sum(solver.price(tree, k) for solver, tree in zip(solvers, trees, strict=True))

    for k in range(len(numbers)):
        best = tuple(solver.solve(k) for solver in solvers)
        if price(best, k) < min((price(trees, k) for trees in chosen), default=inf):
            chosen.append(best)
    if len(chosen) == 1:
        return chosen
    # Between the points of the grid nothing is proven but what does not depend on where one is.
    moving = [not task.sizes_of(priced.region).isdisjoint(task.free) for priced in priced_regions]
    return [
        tuple(replace(tree, is_proven=tree.is_proven and not moves) for tree, moves in zip(trees, moving, strict=True))
        for trees in chosen
    ]


def _solver(task: Task, priced: PricedRegion, numbers: Sequence[Mapping[str, int]]) -> Solver:
    """A solver that has solved a region at the k-th of some numbers; a pinned one has the same tree everywhere."""
    solver = Solver(priced.region, priced.pricing, task.search, numbers.__getitem__)
    if priced.pin is not None:
        trees = [find_tree(task, priced)] * len(numbers)
    else:
        points = len(numbers)
        key = cache_key(
            priced.region,
            priced.pricing,
            task.search,
            lambda size: [evaluate_size(size, each) for each in numbers],
            points,
        )
        topology = Topology(priced.region, task.numbers, priced.pricing)
        trees = [interval.tree for interval in find_cached(topology, key, lambda: _solve_points(solver, len(numbers)))]
    return replace(solver, trees=[*dict.fromkeys(trees)], solved=dict(enumerate(trees)))


def _solve_points(solver: Solver, count: int) -> list[Interval]:
    """The trees at some points, the k-th as the range that is k."""
    return [Interval(k + 1, k + 1 if k < count - 1 else None, solver.solve(k)) for k in range(count)]
