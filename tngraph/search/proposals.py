"""Orders proposed for an ordinary network, one seeded trial at a time: annealed by our own moves, or by cotengra too.

This is the only place that knows cotengra.

A trial is a function of a network and a number: no clock, no state between trials, Python's global random numbers
put back as they were. Whatever process a trial runs in, it gives the same orders.

Source: cotengra (Gray, Kourtis, Quantum 5, 410 (2021)); its annealing follows Kalachev et al., arXiv 2108.05665.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import log2
from typing import Any, Literal

import cotengra

from tngraph.search.annealing import anneal_order, log_operations
from tngraph.search.greedy import grow_order, join_greedily
from tngraph.search.trees import Order

MOST_LABELLED = 500
"""Cotengra's own partitioner runs on networks of at most this many tensors; it is slow on larger ones."""
MOST_RECONFIGURED = 2000
"""Trees of at most this many tensors are improved subtree by subtree; larger ones are annealed only."""
MANY = 1000
"""With more tensors than this, fewer orders are drawn in proportion."""
MANY_LEGS = 8
"""Networks of more indices than this per tensor are dense."""
MOST_SAMPLED = 5000
"""Cotengra draws greedy orders for at most this many tensors: with 2^14 pairs to choose from it turns quadratic."""
MOST_ORDERS = 4
"""The most orders of one trial."""
MOVES = 2**11
"""The most moves of our own annealing for each tensor, with 32 samples; with other numbers of samples in proportion."""
LEAST_MOVES = 2**9
"""The moves for each tensor beside its share of `SHARED_MOVES`, with 32 samples."""
SHARED_MOVES = 2**18
"""The moves that all tensors share; they take a third of a second."""
MOST_BITS = 2**30
"""With 32 samples, the most moves times the number of indices, since a move looks at every index."""
STARTS = 4
"""The greedy orders that are annealed with half of the moves; the best of them gets the other half."""
ABOUT = log2(1.01)
"""Costs this close, in factors of two, are about the same."""
GROWN, SWEPT = 2, 8
"""The starts that join tensor after tensor to one value, and the orders of which each start is the best."""
HOT, WARM, COLD = 1.0, 0.4, 0.1
"""The temperatures at the start of each half and at the end of both, for bonds of 2, in proportion to a bond's bits."""
JITTER = 3.0
"""Each greedy order multiplies sizes by random factors of up to 2 to this power, in proportion to a bond's bits."""
_MOVES = 150_000
_STEPS = 20


@dataclass(frozen=True, slots=True)
class Hypergraph:
    """A network in the form that cotengra takes: the indices of each tensor and of the result, by number."""

    legs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    sizes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a search: its number, the seed of the search, and orders to draw.

    A quick one asks cotengra for nothing.
    """

    number: int
    seed: int
    samples: int
    is_quick: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """A network with an order, to be sliced until no value has more than so many elements."""

    graph: Hypergraph
    order: Order
    limit: int


@dataclass(frozen=True, slots=True)
class CutTrial:
    """One trial of slicing: its number, and the seed of the search."""

    number: int
    seed: int


def propose_greedy(graph: Hypergraph, samples: int, seed: int) -> Order:
    """Return the best of some random greedy orders."""
    (order,) = _attempt(graph, lambda network: (_pairs(_greedy_path(network, samples, seed), len(graph.legs)),))
    return order


def propose(graph: Hypergraph, trial: Trial) -> tuple[Order, ...]:
    """Return the orders of one trial: our own, then one of cotengra, then that improved and improved again.

    A quick trial gives our own alone. In even trials cotengra draws greedy orders; in odd ones it partitions the
    network from the top.
    """
    own = _propose_own(graph, trial)
    return (own,) if trial.is_quick else (own, *_attempt(graph, lambda network: _propose(network, trial)))


def join_all(graph: Hypergraph) -> Order:
    """Return our own greedy order, with values that share no index joined at the end."""
    return _pairs(join_greedily(graph.legs, graph.output, graph.sizes), len(graph.legs))


def _propose_own(graph: Hypergraph, trial: Trial) -> Order:
    """Return the best of some random greedy orders of ours, annealed.

    The start mostly decides the last steps, since moves that change them cost too much in between. If all starts come
    to about the same cost, more moves are not expected to help.
    """
    draw, count = random.Random(trial.seed + trial.number).random, len(graph.legs)
    most = MOST_BITS // (count * max(1, len(graph.sizes)))
    sweeps = trial.samples * min(MOVES, LEAST_MOVES + SHARED_MOVES // count, most) // 64
    bits = max(1.0, sum(map(log2, graph.sizes.values())) / max(1, len(graph.sizes)))

    def anneal(order: Order, hot: float, sweeps: int) -> tuple[float, Order]:
        return anneal_order(graph.legs, graph.output, graph.sizes, order, (hot * bits, COLD * bits), sweeps, draw)

    def join_pairs() -> Order:
        jittered = {i: round(64 * size * 2 ** (JITTER * bits * draw())) for i, size in graph.sizes.items()}
        return join_all(replace(graph, sizes=jittered))

    def grow() -> Order:
        orders = [grow_order(graph.legs, graph.output, graph.sizes, draw) for _ in range(SWEPT)]
        return min(orders, key=lambda order: log_operations(graph.legs, graph.output, graph.sizes, order))

    starts = [grow if k < GROWN else join_pairs for k in range(STARTS)]
    annealed = [anneal(start(), HOT, sweeps // STARTS) for start in starts]
    least, order = min(annealed, key=lambda outcome: outcome[0])
    agree = all(operations - least <= ABOUT for operations, _ in annealed)
    return order if agree else anneal(order, WARM, sweeps)[1]


def _attempt(graph: Hypergraph, propose_orders: Callable[[Hypergraph], tuple[Order, ...]]) -> tuple[Order, ...]:
    """Return the orders that cotengra proposes; our own greedy one if it proposes none.

    Cotengra raises errors of its own if a count is larger than a float, or if it partitions tensors that share no
    index. So the second attempt is a network whose sizes are the logarithms of these.
    """
    logarithms = {i: size.bit_length() for i, size in graph.sizes.items()}
    for network in (graph, replace(graph, sizes=logarithms)):
        with suppress(Exception):
            return propose_orders(network)
    return (join_all(graph),)


def _propose(graph: Hypergraph, trial: Trial) -> tuple[Order, ...]:
    """Return the orders of one trial of cotengra, or raise any error of it."""
    seed, count = trial.seed + trial.number, len(graph.legs)
    with _seeded(seed):
        path = _greedy_path(graph, trial.samples, seed) if _is_greedy(trial, count) else _partition_path(graph, trial)
        tree = _tree(graph, path)
        plain = _reconfigured(tree)
        refined = _reconfigured(_annealed(plain, seed))
        return tuple(_pairs(improved.get_ssa_path(), count) for improved in (tree, plain, refined))


def propose_cut(cut: Cut, trial: CutTrial) -> tuple[Order, tuple[int, ...]]:
    """Return an order, rearranged while it is sliced, and the indices to slice until no value exceeds the limit.

    Cotengra fails once no index is left to slice. Then the order is returned unchanged, with no index.
    """
    seed = trial.seed + trial.number
    try:
        with _seeded(seed):
            return _cut_annealed(cut, seed, "reslice" if trial.number % 2 else "basic")
    except Exception:  # cotengra has no errors of its own: it lets ValueError and KeyError of Python through
        return cut.order, ()


def _cut_annealed(cut: Cut, seed: int, mode: Literal["basic", "reslice"]) -> tuple[Order, tuple[int, ...]]:
    """Return an order annealed while it is sliced, then improved subtree by subtree and sliced further if need be.

    The mode ``reslice`` chooses all indices again at each temperature, which is slower and mostly better; ``basic``
    keeps most.
    """
    tree = _tree(cut.graph, cut.order)
    tree = _reconfigured(_annealed(tree, seed, target_size=cut.limit, slice_mode=mode))
    if tree.max_size() > cut.limit:
        tree = tree.slice(target_size=cut.limit, seed=seed)
    return _pairs(tree.get_ssa_path(), len(cut.graph.legs)), tuple(sorted(tree.sliced_inds))


def _is_greedy(trial: Trial, count: int) -> bool:
    return trial.number % 2 == 0 or count > MOST_LABELLED


def _greedy_path(graph: Hypergraph, samples: int, seed: int) -> Any:
    if len(graph.legs) > MOST_SAMPLED:
        return join_greedily(graph.legs, graph.output, graph.sizes)
    repeats = max(1, samples * MANY // max(MANY, _weight(graph)))
    greedy = cotengra.RandomGreedyOptimizer(max_repeats=repeats, seed=seed, parallel=False, accel=False)
    return greedy.ssa_path(graph.legs, graph.output, graph.sizes)


def _weight(graph: Hypergraph) -> int:
    """Return the number of tensors on few indices for which a greedy order takes as long."""
    count, mentions = len(graph.legs), sum(map(len, graph.legs))
    return max(count, mentions**3 // (150 * count**2))


def _partition_path(graph: Hypergraph, trial: Trial) -> Any:
    """Run one trial of cotengra's hyper-optimiser, and return its path.

    By default it joins the partitions with an optimiser that draws unseeded numbers and starts processes. Here it gets
    the same one with a seed, in this process.
    """
    seed = trial.seed + trial.number

    def join_partitions(*network: Any, **options: Any) -> Any:
        return cotengra.RandomGreedyOptimizer(max_repeats=128, seed=seed, parallel=False, accel=False)(
            *network, **options
        )

    hyper = cotengra.HyperOptimizer(
        methods=["labels"],
        constants={"labels": {"super_optimize": join_partitions, "seed": seed}},
        max_repeats=1,
        optlib="random-uniform",
        seed=seed,
        parallel=False,
        reconf_opts=None,
        slicing_opts=None,
        on_trial_error="raise",
    )
    return hyper.search(graph.legs, graph.output, graph.sizes).get_ssa_path()


def _tree(graph: Hypergraph, path: Iterable[tuple[int, ...]]) -> Any:
    return cotengra.ContractionTree.from_path(graph.legs, graph.output, graph.sizes, ssa_path=path)


def _reconfigured(tree: Any) -> Any:
    """Return a tree improved subtree by subtree; by smaller ones in a dense network, where each takes longer."""
    if tree.N > MOST_RECONFIGURED:
        return tree
    is_dense = sum(map(len, tree.inputs)) > MANY_LEGS * tree.N
    return tree.subtree_reconfigure(subtree_size=6 if is_dense else 8)


def _annealed(tree: Any, seed: int, **slicing: Any) -> Any:
    """Return a tree after random local moves, with fewer sweeps the larger it is."""
    sweeps = min(20, max(1, _MOVES // (_STEPS * tree.N)))
    return tree.simulated_anneal(tstart=0.5, tsteps=_STEPS, numiter=sweeps, seed=seed, **slicing)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's global random numbers, which cotengra draws from, and restore their state afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="cotengra")
            yield
    finally:
        random.setstate(state)


def _pairs(path: Iterable[tuple[int, ...]], count: int) -> Order:
    """Convert a single-assignment path to pairs: unary entries are dropped, values left over joined at the end."""
    pairs: list[tuple[int, int]] = []
    value_of: dict[int, int] = {k: k for k in range(count)}
    upcoming = count
    for step in path:
        operands = [value_of.pop(k) for k in step]
        while len(operands) > 1:
            pairs.append((operands.pop(0), operands.pop(0)))
            operands.append(count + len(pairs) - 1)
        value_of[upcoming] = operands[0]
        upcoming += 1
    rest = list(value_of.values())
    while len(rest) > 1:
        pairs.append((rest.pop(0), rest.pop(0)))
        rest.append(count + len(pairs) - 1)
    return pairs
