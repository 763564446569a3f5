"""Finding an order for a region: annealing and cotengra propose, our own cost decides, the exact program proves.

Proposals are for an ordinary network (every read laid out along its indices). `order_cost` prices each again,
convolutions included. The cheapest wins, and of equals the first in the order of the trials. So the same region, seed
and number of trials give the same tree everywhere, however many trials run at once. The search reads a clock only if
the caller gives it seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import count as count_from
from math import inf
from numbers import Real

from tngraph.errors import PlanError
from tngraph.language.sizes import as_integer
from tngraph.search.annealing import log_operations
from tngraph.search.bounds import least_cost
from tngraph.search.exact import MOST_LEAVES, prove_order
from tngraph.search.objectives import Price
from tngraph.search.pinning import Pin
from tngraph.search.proposals import (
    ABOUT,
    MOST_ORDERS,
    Hypergraph,
    Trial,
    join_all,
    propose,
    propose_greedy,
)
from tngraph.search.reducing import find_components, join_alike, multiply_out, project
from tngraph.search.refining import refine_order
from tngraph.search.region import ContractionTree, Topology, Value
from tngraph.search.trees import Order, build_tree, order_cost
from tngraph.search.workers import Parallel, count_cores, run_tasks

DEFAULT_TRIALS = 4
"""The trials of a search that was given neither trials nor seconds."""
PAYS = 200
"""From this many tensors on, a search with cotengra uses every core unless the caller says how many.

For fewer it does not pay: a worker takes a second to start.
"""

MOST_KEPT = 16
"""The most networks whose proposals are remembered, the latest ones."""
_proposed: dict[object, list[tuple[int, Order] | None]] = {}

Progress = Callable[[int, int | None, Price], None]


@dataclass(frozen=True, slots=True)
class Search:
    """The seed and the effort of a search.

    Attributes:
        seed: of every random choice.
        samples: effort of a trial: moves of the annealing in proportion, and greedy orders that cotengra draws; fewer
            in proportion above 1,000 tensors.
        trials: for a region too large for a proof, how many trials are run, each with proposals of cotengra. When
            neither these nor seconds are given, up to 4 without any, until two of them cost about the same.
        seconds: no trial of a region begins later than this; then how many there are, and with it the plan, depends
            on the machine. The first always runs.
        parallel: how many processes share the trials (1 is this one), ``"processes"`` for one per core, or ``"ray"``
            for a Ray cluster; when absent one per core where that pays: for many tensors, with cotengra. The plan is
            the same.
        progress: called as ``progress(done, total, cost)`` after each trial of a large region, each size at which
            candidates are timed, and each plan tried for a front: their number (None while it is open) and the cost of
            the best so far.
    """

    seed: int = 0
    samples: int = 32
    trials: int | None = None
    seconds: float | None = None
    parallel: Parallel | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        trials = DEFAULT_TRIALS if self.trials is None else self.trials
        if min(as_integer(self.samples) or 0, as_integer(trials) or 0) < 1:
            raise PlanError(f"a search needs at least one sample and one trial, not {self.samples!r} and {trials!r}")
        if self.seconds is not None and not (isinstance(self.seconds, Real) and self.seconds > 0):
            raise PlanError(f"a search needs some time, not {self.seconds!r} seconds")
        if self.parallel not in (None, "processes", "ray") and not (
            isinstance(self.parallel, int) and not isinstance(self.parallel, bool) and self.parallel >= 1
        ):
            raise PlanError(
                f"a search cannot run on {self.parallel!r}\n  give a number of processes, 'processes' or 'ray'"
            )

    @property
    def is_quick(self) -> bool:
        """Whether nothing says how hard to look: then large regions are ordered without cotengra."""
        return self.trials is None and self.seconds is None

    @property
    def most_trials(self) -> int | None:
        """The trials of a large region; None where only the clock ends them."""
        return DEFAULT_TRIALS if self.is_quick else self.trials


def find_order(
    topology: Topology, search: Search, earlier: Sequence[Order] = (), *, proposes: bool = False
) -> tuple[Order, bool]:
    """Return the best order found for a region, and whether it is proven to be the cheapest of all.

    An interruption (``KeyboardInterrupt``) ends the trials of a large region, and the best so far stands.

    Args:
        topology: the region at numeric sizes, with its pricing.
        search: seed and effort.
        earlier: orders found before. With at least one, the search starts without proposals.
        proposes: ask for proposals even so, where no proof follows.
    """
    if len(topology.leaves) <= MOST_LEAVES or topology.reads or topology.unfit:
        return _find_connected(topology, search, earlier, proposes)
    reduction = join_alike(topology)
    order, is_proven = _find_rest(reduction.rest, search, [reduction.project(o) for o in earlier], proposes)
    return reduction.complete(order), is_proven


def _find_rest(topology: Topology, search: Search, earlier: Sequence[Order], proposes: bool) -> tuple[Order, bool]:
    """Return the best order found for the rest: component by component, unless the size of values is limited."""
    components = find_components(topology)
    if len(components) == 1 or topology.pricing.most_elements is not None:
        return _find_connected(topology, search, earlier, proposes)
    orders: list[Order] = []
    for component in components:
        connected = topology.restrict([topology.leaves[k] for k in component])
        within = [project(order, component, len(topology.leaves)) for order in earlier]
        orders.append(_find_connected(connected, search, within, proposes)[0])
    return refine_order(topology, multiply_out(topology, components, orders)), False


def _find_connected(topology: Topology, search: Search, earlier: Sequence[Order], proposes: bool) -> tuple[Order, bool]:
    """Return the best order found for a region as it is."""
    graph = hypergraph(topology)
    if len(graph.legs) > MOST_LEAVES:
        return _find_large(topology, graph, search, earlier, proposes)
    orders = earlier or [_cheapest(topology, graph, search, _small_orders, lambda order: order)]
    return prove_order(topology, min(orders, key=lambda order: order_cost(topology, order)))


def _find_large(
    topology: Topology, graph: Hypergraph, search: Search, earlier: Sequence[Order], proposes: bool
) -> tuple[Order, bool]:
    """Return the best order of a region too large for the exact program; it is proven if it meets the least cost."""
    least, orders = least_cost(topology), list(earlier)
    if not orders or proposes:
        proposed = _cheapest(topology, graph, search, _large_orders, lambda order: order, least)
        orders.append(proposed if order_cost(topology, proposed) == least else refine_order(topology, proposed))
    cost, place = min((order_cost(topology, order), k) for k, order in enumerate(orders))
    return orders[place], bool(cost == least)


def search_tree(topology: Topology, search: Search) -> ContractionTree:
    """Return the best tree found for a region, which says whether it is proven optimal.

    Args:
        topology: the region at numeric sizes, with its pricing.
        search: seed and effort.
    """
    return build_tree(topology, *find_order(topology, search))


def hypergraph(topology: Topology, groups: Sequence[Sequence[Value]] | None = None) -> Hypergraph:
    """Return an ordinary network over a region's leaves, or over groups of them that are joined already."""
    groups = [[leaf] for leaf in topology.leaves] if groups is None else groups
    held = [i for i, holders in enumerate(topology.holders) if holders]
    output = tuple(i for i in held if topology.is_output[i])
    return Hypergraph(tuple(_legs_above(topology, g) for g in groups), output, {i: topology.sizes[i] for i in held})


def parallel_for(search: Search, graph: Hypergraph) -> Parallel:
    """Return where the trials for a network run: as the search says, else on every core if the network is large."""
    return search.parallel or (count_cores() if len(graph.legs) >= PAYS and not search.is_quick else 1)


def pinned_tree(topology: Topology, search: Search, pin: Pin, positions: Sequence[int]) -> ContractionTree:
    """Return the tree of an order pinned by hand. If it names only some tensors, a search joins it with the others.

    Args:
        topology: the region at numeric sizes, with its pricing.
        search: seed and effort, for what is not pinned.
        pin: the order.
        positions: the access that each of its names stands for.
    """
    order = _order_around(topology, search, pin, positions)
    return replace(build_tree(topology, order, False), is_pinned=True)


def _order_around(topology: Topology, search: Search, pin: Pin, positions: Sequence[int]) -> Order:
    """Return the pinned pairs, then the best order found for their result and the other leaves."""
    count, joined = len(topology.leaves), len(pin.pairs)
    values = [*positions, *range(count, count + joined)]
    pinned = [(values[a], values[b]) for a, b in pin.pairs]
    rest = sorted({*range(count)} - {*positions})
    groups = [[topology.leaves[k] for k in positions], *([topology.leaves[k]] for k in rest)]
    around = [values[-1], *rest, *range(count + joined, 2 * count)]

    def complete(order: Order) -> Order:
        return [*pinned, *((around[a], around[b]) for a, b in order)]

    graph = hypergraph(topology, groups)
    orders = _large_orders if len(groups) > 2 else _small_orders
    return complete(_cheapest(topology, graph, search, orders, complete))


def _legs_above(topology: Topology, leaves: Sequence[Value]) -> tuple[int, ...]:
    """Return the indices still needed once some leaves are joined, those of unresolved reads laid out."""
    below = sum(leaf.leaves for leaf in leaves)
    held = dict.fromkeys(i for leaf in leaves for i in leaf.indices)
    return tuple(i for i in held if topology.is_alive(i, below))


Proposals = Generator[tuple[int, Order] | None, None, None]
"""Orders, each with a number that tells which of equally cheap ones comes first; None says that a trial is done."""


def _cheapest(
    topology: Topology,
    graph: Hypergraph,
    search: Search,
    propose_orders: Callable[[Hypergraph, Search], Proposals],
    complete: Callable[[Order], Order],
    least: Price = 0,
) -> Order:
    """Return the cheapest of the orders proposed; after an interruption, of those before it.

    If a plain order costs the least possible, nothing is proposed.
    """
    plain = [_in_turn(len(graph.legs))]
    if len(graph.legs) > MOST_LEAVES:  # of a small network the proposal stands, even if this is equally cheap
        plain.append(join_all(graph))
    best, order = min(((order_cost(topology, complete(plain[k])), k - 2), plain[k]) for k in range(len(plain)))
    done = 0
    if best[0] <= least:
        return order
    with suppress(KeyboardInterrupt), closing(_remembered(propose_orders, graph, search)) as proposed:
        for proposal in proposed:
            if proposal is not None:
                key = (order_cost(topology, complete(proposal[1])), proposal[0])
                best, order = min((key, proposal[1]), (best, order), key=lambda candidate: candidate[0])
            else:
                done += 1
                if search.progress is not None:
                    search.progress(done, search.most_trials, best[0])
    return order


def _in_turn(count: int) -> Order:
    """Return the order that joins one leaf after the other."""
    return [(k if k == 0 else count + k - 1, k + 1) for k in range(count - 1)]


def _small_orders(graph: Hypergraph, search: Search) -> Proposals:
    if len(graph.legs) > 2:
        yield 0, propose_greedy(graph, search.samples, search.seed)


def _remembered(
    propose_orders: Callable[[Hypergraph, Search], Proposals], graph: Hypergraph, search: Search
) -> Proposals:
    """Yield the orders proposed for a network, and remember them: they are the same under any objective."""
    key = graph.legs, graph.output, *graph.sizes.items(), replace(search, parallel=None, progress=None)
    if key in _proposed:
        yield from _proposed[key]
        return
    orders: list[tuple[int, Order] | None] = []
    with closing(propose_orders(graph, search)) as proposed:
        for proposal in proposed:
            orders.append(proposal)
            yield proposal
    if search.seconds is None:
        while len(_proposed) >= MOST_KEPT:
            del _proposed[next(iter(_proposed))]
        _proposed[key] = orders


def _large_orders(graph: Hypergraph, search: Search) -> Proposals:
    """Yield the orders of trial after trial; a quick search stops once a trial costs about as much as the cheapest."""
    least = inf
    with closing(run_tasks(propose, graph, _trials(search), parallel_for(search, graph))) as results:
        for trial, orders in _in_sequence(results) if search.is_quick else results:
            for k, order in enumerate(orders):
                yield trial.number * MOST_ORDERS + k, order
            yield None
            if search.is_quick:
                operations = log_operations(graph.legs, graph.output, graph.sizes, orders[0])
                if abs(operations - least) <= ABOUT:
                    return
                least = min(operations, least)


def _in_sequence(results: Iterator[tuple[Trial, tuple[Order, ...]]]) -> Iterator[tuple[Trial, tuple[Order, ...]]]:
    """Yield the results of trials by their numbers, each as soon as those before it have ended."""
    waiting: dict[int, tuple[Trial, tuple[Order, ...]]] = {}
    upcoming = 0
    for trial, orders in results:
        waiting[trial.number] = trial, orders
        while upcoming in waiting:
            yield waiting.pop(upcoming)
            upcoming += 1


def _trials(search: Search) -> Iterator[Trial]:
    """Yield trials until there are enough, or until the time is up."""
    end = None if search.seconds is None else time.monotonic() + search.seconds
    for number in count_from() if search.most_trials is None else range(search.most_trials):
        if number and end is not None and time.monotonic() >= end:
            return
        yield Trial(number, search.seed, search.samples, search.is_quick)
