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
from importlib.util import find_spec
from math import log2
from typing import Any, Literal

import cotengra

from tngraph.errors import PlanError
from tngraph.search.annealing import anneal_order, log_operations
from tngraph.search.greedy import grow_order, join_greedily
from tngraph.search.trees import Order

Partitioner = Literal["labels", "kahypar"]

MOST_LABELLED = 500
"""Cotengra's own partitioner is asked about networks of at most this many tensors; it is slow beyond."""
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
"""The most moves of our own annealing for each tensor, with 32 samples; in proportion with other numbers of these."""
LEAST_MOVES = 2**9
"""For each tensor so many moves, with 32 samples, come on top of `SHARED_MOVES`."""
SHARED_MOVES = 2**18
"""These, for all tensors, take a third of a second."""
MOST_BITS = 2**30
"""With 32 samples, there are never more moves than this over the number of indices, which a move looks at."""
STARTS = 4
"""So many greedy orders are annealed with half of the moves, the best of them then with the other half."""
ABOUT = log2(1.01)
"""Costs this close, in factors of two, are about the same."""
GROWN, SWEPT = 2, 8
"""So many of the starts join tensor after tensor to one value, each the best of so many."""
HOT, WARM, COLD = 1.0, 0.4, 0.1
"""The temperatures of both at first and at last, for bonds of two; higher in proportion to the bits of others."""
JITTER = 3.0
"""Greedy orders differ since sizes are multiplied by up to two to this power, in proportion likewise."""
_MOVES = 150_000
_STEPS = 20


@dataclass(frozen=True, slots=True)
class Hypergraph:
    """A network as cotengra takes it: the indices of each tensor and of the result, by number."""

    legs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    sizes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a search: its number, the seed of the search, orders to draw, and who partitions.

    A quick one asks cotengra for nothing.
    """

    number: int
    seed: int
    samples: int
    partitioner: Partitioner = "labels"
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


def check_partitioner(name: str) -> None:
    """Refuse a partitioner that is none, or is not installed.

    Raises:
        PlanError: either.
    """
    if name not in ("labels", "kahypar"):
        raise PlanError(f"there is no partitioner {name!r}\n  partitioners: labels, kahypar")
    if name == "kahypar" and find_spec("kahypar") is None:
        raise PlanError("the partitioner kahypar is not installed\n  pip install kahypar, or use labels")


def propose_greedy(graph: Hypergraph, samples: int, seed: int) -> Order:
    """The best of some random greedy orders."""
    (order,) = _attempt(graph, lambda each: (_pairs(_greedy_path(each, samples, seed), len(graph.legs)),))
    return order


def propose(graph: Hypergraph, trial: Trial) -> tuple[Order, ...]:
    """The orders of one trial: our own, then what cotengra makes of it by itself, then that refined.

    A quick trial is our own alone. Of cotengra's, even trials draw greedy orders, odd ones partition the network from
    the top.
    """
    own = _propose_own(graph, trial)
    return (own,) if trial.is_quick else (own, *_attempt(graph, lambda each: _propose(each, trial)))


def join_all(graph: Hypergraph) -> Order:
    """Our own greedy order, with what shares no index joined at the end."""
    return _pairs(join_greedily(graph.legs, graph.output, graph.sizes), len(graph.legs))


def _propose_own(graph: Hypergraph, trial: Trial) -> Order:
    """The best of some random greedy orders of ours, annealed.

    What is joined last is mostly decided by the start, for moves that change it cost too much in between. Where all
    starts come to about the same cost, more moves are not expected to help.
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
    least, order = min(annealed, key=lambda each: each[0])
    agree = all(operations - least <= ABOUT for operations, _ in annealed)
    return order if agree else anneal(order, WARM, sweeps)[1]


def _attempt(graph: Hypergraph, propose_orders: Callable[[Hypergraph], tuple[Order, ...]]) -> tuple[Order, ...]:
    """The orders that cotengra proposes; our own greedy one where it proposes none.

    Cotengra raises errors of its own where a count is larger than a float, or where it partitions what shares no index.
    So it is asked again about a network whose sizes are the logarithms of these.
    """
    logarithms = {i: size.bit_length() for i, size in graph.sizes.items()}
    for each in (graph, replace(graph, sizes=logarithms)):
        with suppress(Exception):
            return propose_orders(each)
    return (join_all(graph),)


def _propose(graph: Hypergraph, trial: Trial) -> tuple[Order, ...]:
    """The orders of one trial, or any error of cotengra."""
    seed, count = trial.seed + trial.number, len(graph.legs)
    with _seeded(seed):
        path = _greedy_path(graph, trial.samples, seed) if _is_greedy(trial, count) else _partition_path(graph, trial)
        tree = _tree(graph, path)
        plain = _reconfigured(tree)
        refined = _reconfigured(_annealed(plain, seed))
        return tuple(_pairs(each.get_ssa_path(), count) for each in (tree, plain, refined))


def propose_cut(cut: Cut, trial: CutTrial) -> tuple[Order, tuple[int, ...]]:
    """An order with the indices to slice until no value is larger than the limit, the tree rearranged in between.

    Where cotengra finds none, as it fails once nothing is left to slice, the order in hand stands with no index.
    """
    seed = trial.seed + trial.number
    try:
        with _seeded(seed):
            return _cut_annealed(cut, seed, "reslice" if trial.number % 2 else "basic")
    except Exception:  # it has no errors of its own: here ValueError and KeyError of Python's come through
        return cut.order, ()


def _cut_annealed(cut: Cut, seed: int, mode: Literal["basic", "reslice"]) -> tuple[Order, tuple[int, ...]]:
    """An order annealed while it is sliced, then improved subtree by subtree and sliced further where that needs it.

    The mode ``reslice`` chooses all indices anew at each temperature, which is slower and mostly better; ``basic``
    keeps most.
    """
    tree = _tree(cut.graph, cut.order)
    tree = _reconfigured(_annealed(tree, seed, target_size=cut.limit, slice_mode=mode))
    if tree.max_size() > cut.limit:
        tree = tree.slice(target_size=cut.limit, seed=seed)
    return _pairs(tree.get_ssa_path(), len(cut.graph.legs)), tuple(sorted(tree.sliced_inds))


def _is_greedy(trial: Trial, count: int) -> bool:
    return trial.number % 2 == 0 or (trial.partitioner == "labels" and count > MOST_LABELLED)


def _greedy_path(graph: Hypergraph, samples: int, seed: int) -> Any:
    if len(graph.legs) > MOST_SAMPLED:
        return join_greedily(graph.legs, graph.output, graph.sizes)
    repeats = max(1, samples * MANY // max(MANY, _weight(graph)))
    greedy = cotengra.RandomGreedyOptimizer(max_repeats=repeats, seed=seed, parallel=False, accel=False)
    return greedy.ssa_path(graph.legs, graph.output, graph.sizes)


def _weight(graph: Hypergraph) -> int:
    """The number of tensors on few indices that a greedy order takes as long for."""
    count, mentions = len(graph.legs), sum(map(len, graph.legs))
    return max(count, mentions**3 // (150 * count**2))


def _partition_path(graph: Hypergraph, trial: Trial) -> Any:
    """One trial of cotengra's hyper-optimiser.

    It joins the parts by an optimiser that would draw unseeded numbers, and start processes of its own; it gets the
    same one with a seed, in this process.
    """
    seed = trial.seed + trial.number

    def join_parts(*parts: Any, **options: Any) -> Any:
        return cotengra.RandomGreedyOptimizer(max_repeats=128, seed=seed, parallel=False, accel=False)(
            *parts, **options
        )

    hyper = cotengra.HyperOptimizer(
        methods=[trial.partitioner],
        constants={trial.partitioner: {"super_optimize": join_parts, "seed": seed}},
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
    """A tree improved subtree by subtree; by smaller ones in a dense network, where each takes longer."""
    if tree.N > MOST_RECONFIGURED:
        return tree
    is_dense = sum(map(len, tree.inputs)) > MANY_LEGS * tree.N
    return tree.subtree_reconfigure(subtree_size=6 if is_dense else 8)


def _annealed(tree: Any, seed: int, **slicing: Any) -> Any:
    """A tree after a fixed number of random local moves, fewer sweeps the larger it is."""
    sweeps = min(20, max(1, _MOVES // (_STEPS * tree.N)))
    return tree.simulated_anneal(tstart=0.5, tsteps=_STEPS, numiter=sweeps, seed=seed, **slicing)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's global random numbers, which some of cotengra draws from, seeded and then as they were before."""
    state = random.getstate()
    random.seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="cotengra")
            yield
    finally:
        random.setstate(state)


def _pairs(path: Iterable[tuple[int, ...]], count: int) -> Order:
    """A single-assignment path as pairs: unary entries dropped, what is left over joined at the end."""
    pairs: list[tuple[int, int]] = []
    number: dict[int, int] = {k: k for k in range(count)}
    made = count
    for step in path:
        operands = [number.pop(k) for k in step]
        while len(operands) > 1:
            pairs.append((operands.pop(0), operands.pop(0)))
            operands.append(count + len(pairs) - 1)
        number[made] = operands[0]
        made += 1
    rest = list(number.values())
    while len(rest) > 1:
        pairs.append((rest.pop(0), rest.pop(0)))
        rest.append(count + len(pairs) - 1)
    return pairs
