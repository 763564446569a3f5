"""Contraction trees from an order of joins, with the cheapest choice of when to lay reads out.

An order is a list of pairs in single-assignment numbering, as every contraction-order library returns it. With
convolved legs an order alone does not say whether a read is resolved in place or laid out first. `best_states` finds
the cheapest consistent choice along a fixed order exactly, and `build_tree` returns it as steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import inf
from typing import NamedTuple

from tngraph.search.objectives import Price
from tngraph.search.region import ContractionTree, Step, Topology, Value

Order = Sequence[tuple[int, int]]


class State(NamedTuple):
    """The origin of a value: its price so far, and its two operands as they were when joined."""

    cost: Price
    operands: tuple[Value, Value] | None


def opened(topology: Topology, value: Value) -> Iterable[Value]:
    """Yield a value with every subset of its unresolved reads laid out, including none."""
    reads = [read for read, _ in value.unresolved]
    for count in range(len(reads) + 1):
        for chosen in combinations(reads, count):
            result = value
            for read in chosen:
                result = topology.open(result, read)
            yield result


def best_states(topology: Topology, order: Order) -> list[dict[Value, State]]:
    """Return, for every node of an order, the values it may have with the cheapest way to compute each.

    Returns:
        One mapping per node in single-assignment numbering. A mapping has several values if some reads may be either
            unresolved or laid out.
    """
    unfit = topology.unfit
    nodes: list[dict[Value, State]] = [
        {} if leaf.leaves & unfit else {leaf: State(0, None)} for leaf in topology.leaves
    ]
    for left, right in order:
        states: dict[Value, State] = {}
        for a, b, cost in _operand_pairs(topology, nodes[left], nodes[right]):
            result = topology.join(a, b)
            if result is not None and not topology.is_too_large(result):
                total = (0 if topology.is_folded(result) else cost) + topology.price(a, b, result)
                if result not in states or total < states[result].cost:
                    states[result] = State(total, (a, b))
        nodes.append(states)
    return nodes


def _operand_pairs(
    topology: Topology, left: dict[Value, State], right: dict[Value, State]
) -> Iterable[tuple[Value, Value, Price]]:
    for a, state_a in left.items():
        for b, state_b in right.items():
            for open_a in _within(topology, a):
                for open_b in _within(topology, b):
                    yield open_a, open_b, state_a.cost + state_b.cost


def _within(topology: Topology, value: Value) -> Iterable[Value]:
    """Return a value as it is, and with reads laid out, as far as no result exceeds the limit on elements."""
    return (result for result in opened(topology, value) if result == value or not topology.is_too_large(result))


def order_cost(topology: Topology, order: Order) -> Price:
    """Return the price of an order with the best reads laid out, or infinity if a value would be too large."""
    return min((state.cost for state in best_states(topology, order)[-1].values()), default=inf)


def build_tree(topology: Topology, order: Order, is_proven: bool) -> ContractionTree:
    """Return an order as a tree of steps, with reads laid out where that is cheapest."""
    nodes = best_states(topology, order)
    chosen = _choose(topology, nodes, order)
    leaves = len(topology.leaves)
    steps, where = prepare_leaves(topology)
    for (left, right), value, node in zip(order, chosen[leaves:], nodes[leaves:], strict=True):
        a, b = node[value].operands or (value, value)
        first = _open(topology, where[left], chosen[left], a, steps)
        second = _open(topology, where[right], chosen[right], b, steps)
        steps.append(Step((first, second), topology.legs(value), topology.kind(a, b, value)))
        where.append(leaves + len(steps) - 1)
    _open(topology, where[-1], chosen[-1], _flat(topology, chosen[-1]), steps)
    return ContractionTree(topology.region, tuple(steps), is_proven, sliced=topology.sliced)


def _choose(topology: Topology, nodes: list[dict[Value, State]], order: Order) -> list[Value]:
    """Return the value that each node has in the cheapest tree, chosen from the root down."""
    chosen = [min(node, key=lambda value, node=node: node[value].cost) for node in nodes]  # type: ignore[misc]
    for k in range(len(order) - 1, -1, -1):
        node = nodes[len(topology.leaves) + k]
        for child, wanted in zip(order[k], node[chosen[len(topology.leaves) + k]].operands or (), strict=True):
            candidates = [value for value in nodes[child] if wanted in opened(topology, value)]
            chosen[child] = min(candidates, key=lambda value, child=child: nodes[child][value].cost)  # type: ignore[misc]
    return chosen


def prepare_leaves(topology: Topology) -> tuple[list[Step], list[int]]:
    """Return the steps that every tree of a region begins with, and the number of each access after them."""
    steps: list[Step] = []
    where = list(range(len(topology.leaves)))
    for leaf, preparation in enumerate(topology.preparation):
        for kind, legs in preparation:
            steps.append(Step((where[leaf],), legs, kind))
            where[leaf] = len(topology.leaves) + len(steps) - 1
    return steps, where


def _open(topology: Topology, where: int, value: Value, wanted: Value, steps: list[Step]) -> int:
    if value == wanted:
        return where
    steps.append(Step((where,), topology.legs(wanted), "read"))
    return len(topology.leaves) + len(steps) - 1


def _flat(topology: Topology, value: Value) -> Value:
    for read, _ in value.unresolved:
        value = topology.open(value, read)
    return value
