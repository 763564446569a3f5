"""The pipeline from a network to its plan, read top to bottom.

A run-time size that is given a number is planned for at this number. The others are *free*: the plan is the best at
every value of them (`ranges`). Requests with a bound (`bounded`) or for time (`timed`) have a strategy of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tngraph.compiler.bounded import check_given, front_search, plan_largest
from tngraph.compiler.fronts import Front, find_front, make_point
from tngraph.compiler.ranges import find_ranges, lay_out_ranges
from tngraph.compiler.remembered import remember_plans
from tngraph.compiler.tasks import PlanProblem, Task, merge_where_cheaper, price_regions
from tngraph.compiler.timed import TimedSearch, find_fastest
from tngraph.errors import PlanError
from tngraph.language.binding import check_sizes
from tngraph.language.network import Network
from tngraph.language.rewrites import drop_unused, merge_chains
from tngraph.language.sizes import evaluate_size, product
from tngraph.plans.plan import Plan
from tngraph.search.machine import Machine
from tngraph.search.objectives import Mode, Objective, Request, make_request
from tngraph.search.orders import Search
from tngraph.search.pinning import Nested, read_orders

Strategy = Callable[[PlanProblem], Plan]
"""Finds the trees of a problem's regions, and returns the plan of them."""


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
    names = {equation.name for equation in chained.equations}
    pins = read_orders(order, {equation.name: equation.name in names for equation in network.equations})
    if request.is_bounded:
        check_given(task)
    unpinned = _plan_within_folding(task, chained) if pins else None
    return replace(_plan_within_folding(replace(task, pins=pins), chained), unpinned=unpinned)


def _plan_within_folding(task: Task, chained: Network) -> Plan:
    """Return the plan of a network whose linear chains are merged, in which the buffers are no larger than they may be.

    The search limits only each single folded value. So this limit is lowered until the sum of all buffers, which is
    exact, is within the request's limit. At a limit of 0 nothing is folded.
    """
    limit = task.request.memory_limit if task.request.mode == "serve" else None
    most = None if limit is None else limit // task.request.itemsize
    while True:
        attempt = replace(task, request=replace(task.request, most_folded=most), costs={})
        merged = merge_where_cheaper(attempt, chained)
        problem = price_regions(attempt, merged)
        plan = _choose_strategy(problem)(problem)
        if most is None or limit is None or evaluate_size(plan.folded, plan.sizes) <= limit:
            return plan
        largest = max(evaluate_size(product(buffer.shape), plan.sizes) for buffer in plan.folding.buffers)
        most = min(most // 2, largest - 1)


def _choose_strategy(problem: PlanProblem) -> Strategy:
    """Return the first strategy that fits the request."""
    request = problem.task.request
    strategies: tuple[tuple[bool, Strategy], ...] = (
        (request.largest is not None, plan_largest),
        (request.is_bounded, _plan_for_memory),
        (isinstance(request.rate, Machine) and not problem.task.pins, _plan_for_time),
        (True, _plan_for_cost),
    )
    return next(strategy for is_fitting, strategy in strategies if is_fitting)


def _plan_for_memory(problem: PlanProblem) -> Plan:
    """Return the cheapest plan within the memory limit, or the plan of the least memory if there is no limit."""
    limit, plans = problem.task.request.memory_limit, _find_front(problem)
    return plans.points[-1].plan if limit is None else plans.within(limit)


def _plan_for_time(problem: PlanProblem) -> Plan:
    """Return the plan that the model of a machine predicts to be fastest."""
    search = TimedSearch(problem)
    (fastest,) = remember_plans(problem.task, "time", lambda: [search.plan(find_fastest(search))])
    return fastest


def _plan_for_cost(problem: PlanProblem) -> Plan:
    """Return the plan of the cheapest trees at every value of the free sizes."""
    ranges = find_ranges(problem)
    laid_out = lay_out_ranges(problem, ranges)
    return problem.plan(laid_out)


def _find_front(problem: PlanProblem) -> Front:
    """Return the front of a problem, from the folder of searches if it was found before."""
    task = problem.task

    def search() -> list[Plan]:
        points = find_front(front_search(problem), task.numbers, task.search.progress).points
        return [point.plan for point in points]

    return Front(tuple(make_point(plan, task.numbers) for plan in remember_plans(task, "front", search)))


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
    """Find plans of ever less memory, of which none is both cheaper and smaller than another.

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
    return _find_front(_pose_problem(task))


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
    """Return the search for the fastest candidates to run a network, for callers that measure them.

    Args:
        network: what to plan.
        sizes: as for `plan`.
        machine: on which it runs.
        bench: the same machine as it was measured, on which candidates are laid out and compared.
        mode: as for `plan`.
        itemsize: of an element [bytes].
        search: seed and effort.

    Raises:
        SizeError, PlanError, TypeError: as `plan` does.
    """
    request = make_request(_check_network(network), mode, machine, itemsize=itemsize)
    return TimedSearch(_pose_problem(_make_task(network, sizes, request, search)), bench)


def _pose_problem(task: Task) -> PlanProblem:
    """Return the problem of a task without pins or a limit on what is folded."""
    chained = merge_chains(drop_unused(task.network))
    return price_regions(task, merge_where_cheaper(task, chained))


def plan_for_serving(other: Plan, sizes: Mapping[str, int], memory_limit: int | None, itemsize: int) -> Plan:
    """Plan the network of another plan for calls with weights that never change.

    Args:
        other: the plan whose objective, run-time sizes, gradients of inputs and largest value are kept. An order by
            hand is not kept.
        sizes: numbers for compile-time sizes.
        memory_limit: what may be folded into buffers [bytes].
        itemsize: of an element [bytes].

    Raises:
        PlanError: the limit is not a positive integer.
    """
    network, request = other.network, other.request
    fixed = {name: other.sizes[name] for name in network.runtime_sizes() if name not in other.free}
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


def _check_network(network: object) -> Network:
    """Return the network to plan.

    Raises:
        TypeError: it is something other than a network.
    """
    if not isinstance(network, Network):
        raise TypeError(f"plan takes a network, and not {network!r}; tg.load reads one from a file")
    return network


def _make_task(network: Network, sizes: Mapping[str, int] | None, request: Request, search: Search | None) -> Task:
    """Return the task of a network, after checking the caller's arguments.

    Raises:
        SizeError: an unknown size, or a number that is not a positive integer.
        TypeError: sizes or a search of another type.
    """
    if sizes is not None and not isinstance(sizes, Mapping):
        raise TypeError(f"sizes are numbers by name, as {{'batch': 64}}, and not {sizes!r}")
    if search is not None and not isinstance(search, Search):
        raise TypeError(f"a search is tg.Search(…), and not {search!r}")
    task = Task(network, dict(sizes or {}), request, search or Search(), {})
    check_sizes(network, task.numbers)
    return task
