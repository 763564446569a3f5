"""Finding an order for a region: cotengra proposes, our own cost decides, the exact program proves.

The only place that knows cotengra. It sees an ordinary network (every read laid out along its indices); each
order it proposes is priced again by `order_cost`, convolutions included. Seeds and repeats are fixed and no
clock is read, so the same region gives the same tree everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cotengra

from tngraph.errors import PlanError
from tngraph.planning.exact import MOST_LEAVES, prove_order
from tngraph.planning.pinning import Pin
from tngraph.planning.region import ContractionTree, Topology, Value
from tngraph.planning.trees import Order, build_tree, order_cost


@dataclass(frozen=True, slots=True)
class Search:
    """How hard to search, and from which seed.

    Attributes:
        seed: of every random choice.
        samples: greedy orders drawn per trial.
        trials: for a region too large for a proof, how often the best sample is refined subtree by subtree.
        progress: called with the trials done and their number after each, where there are several.
    """

    seed: int = 0
    samples: int = 32
    trials: int = 4
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.trials < 1:
            raise PlanError(f"a search needs at least one sample and one trial, not {self.samples} and {self.trials}")


def find_order(topology: Topology, search: Search, known: Sequence[Order] = ()) -> tuple[Order, bool]:
    """The best order found for a region, and whether it is proven to be the cheapest there is.

    Args:
        topology: the region at numeric sizes, with its pricing.
        search: seed and effort.
        known: orders found at other sizes; where a proof follows, one of them is a start that needs no proposals.
    """
    orders = list(known)
    is_large = len(topology.leaves) > MOST_LEAVES
    if is_large or not orders:
        legs = [_legs_above(topology, [leaf]) for leaf in topology.leaves]
        orders.extend(_proposals(topology, legs, search, is_large=is_large))
    return prove_order(topology, min(orders, key=lambda order: order_cost(topology, order)))


def search_tree(topology: Topology, search: Search) -> ContractionTree:
    """The best tree found for a region, which says whether it is proven optimal.

    Args:
        topology: the region at numeric sizes, with its pricing.
        search: seed and repeats.
    """
    return build_tree(topology, *find_order(topology, search))


def pinned_tree(topology: Topology, search: Search, pin: Pin, positions: Sequence[int]) -> ContractionTree:
    """The tree of an order pinned by hand; where it names a part, the best one found around that.

    Args:
        topology: the region at numeric sizes, with its pricing.
        search: seed and repeats, for what is not pinned.
        pin: the order.
        positions: which access each of its names is.
    """
    orders = _orders_around(topology, search, pin, positions)
    order = min(orders, key=lambda order: order_cost(topology, order))
    return replace(build_tree(topology, order, False), is_pinned=True)


def _orders_around(topology: Topology, search: Search, pin: Pin, positions: Sequence[int]) -> Iterator[Order]:
    """The pinned pairs, then each order proposed for what they make and the other leaves."""
    count, made = len(topology.leaves), len(pin.pairs)
    values = [*positions, *range(count, count + made)]
    pinned = [(values[a], values[b]) for a, b in pin.pairs]
    rest = sorted({*range(count)} - {*positions})
    groups = [[topology.leaves[k] for k in positions], *([topology.leaves[k]] for k in rest)]
    legs = [_legs_above(topology, group) for group in groups]
    around = [values[-1], *rest, *range(count + made, 2 * count)]
    for order in _proposals(topology, legs, search, is_large=True):
        yield [*pinned, *((around[a], around[b]) for a, b in order)]


def _legs_above(topology: Topology, leaves: Sequence[Value]) -> tuple[int, ...]:
    """The indices still needed once some leaves are joined, folded ones laid out."""
    below = sum(leaf.leaves for leaf in leaves)
    held = dict.fromkeys(i for leaf in leaves for i in (*leaf.plain, *(i for _, rest in leaf.folded for i in rest)))
    return tuple(i for i in held if topology.is_alive(i, below))


def _proposals(
    topology: Topology, legs: Sequence[tuple[int, ...]], search: Search, *, is_large: bool
) -> Iterator[Order]:
    """Orders of values with these legs that are worth pricing, at least one; large ones are refined."""
    count = len(legs)
    yield [(k if k == 0 else count + k - 1, k + 1) for k in range(count - 1)]
    if count <= 2:
        return
    output = [i for i, kept in enumerate(topology.is_output) if kept]
    sizes = dict(enumerate(topology.sizes))
    for trial in range(search.trials if is_large else 1):
        seed = search.seed + trial
        greedy = cotengra.RandomGreedyOptimizer(max_repeats=search.samples, seed=seed, parallel=False, accel=False)
        path = greedy.ssa_path(legs, output, sizes)
        yield _pairs(path, count)
        if is_large:
            tree = cotengra.ContractionTree.from_path(legs, output, sizes, ssa_path=path)
            yield _pairs(tree.subtree_reconfigure(seed=seed).get_ssa_path(), count)
            if search.progress is not None:
                search.progress(trial + 1, search.trials)


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
