"""The joins before any search: tensors on the same indices are joined first, components that share none last.

Two leaves A and B that stand on the same indices, both trained or neither, both fixed or neither, may be joined first:
of every tree there is one that does so and costs no more. Take A from where it is and join it with B. Every index of A
is one of B's, so no other value keeps an index for longer than before. The new step multiplies |A| entries, and the
step that A left multiplied as many or more. With gradients the new step costs 3 |A|. If A met an untrained value, the
step it left cost 2 |A| or more, and the one after that has one gradient fewer, which is worth |A| or more. So an order
that is proven for the rest is proven for all. For elements written the same holds where no gradient flows to any
leaf. For time it is not shown, and no leaves are joined.

Components that share no index are ordered one by one, then multiplied out, the two smallest values first. This is a
choice: if components keep indices in the result, an outer product in between may be cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush

from tngraph.search.objectives import Weighted
from tngraph.search.region import Topology, Value
from tngraph.search.trees import Order


@dataclass(frozen=True)
class Reduction:
    """A region with some of its leaves joined.

    Attributes:
        topology: of the whole region.
        pairs: the joins, in the numbering of an order.
        numbers: the values that are left to be joined, in that numbering.
        values: the same values themselves.
    """

    topology: Topology
    pairs: Order
    numbers: tuple[int, ...]
    values: tuple[Value, ...]

    @cached_property
    def rest(self) -> Topology:
        """The values that are left to be joined, as a region."""
        return self.topology.restrict(self.values)

    def complete(self, order: Order) -> Order:
        """Return the order of the whole region that starts with the pairs and goes on with an order of the rest."""
        return [*self.pairs, *renumber(order, self.numbers, len(self.topology.leaves) + len(self.pairs))]

    def project(self, order: Order) -> Order:
        """Return the order of the rest in which values are joined as in an order of the whole region.

        A value of several leaves takes the place of its first leaf.
        """
        firsts = [(value.leaves & -value.leaves).bit_length() - 1 for value in self.values]
        return project(order, firsts, len(self.topology.leaves))


def project(order: Order, chosen: Sequence[int], count: int) -> Order:
    """Return the order of some leaves in which they are joined as in an order of all."""
    numbers: dict[int, int] = {leaf: k for k, leaf in enumerate(chosen)}
    pairs: list[tuple[int, int]] = []
    for value, operands in enumerate(order, count):
        present = [numbers[operand] for operand in operands if operand in numbers]
        if len(present) == 2:
            pairs.append((present[0], present[1]))
            numbers[value] = len(chosen) + len(pairs) - 1
        elif present:
            numbers[value] = present[0]
    return pairs


def renumber(order: Order, values: Sequence[int], start: int) -> Order:
    """Return an order of some values in a larger numbering.

    Args:
        order: the order of these values.
        values: their numbers there.
        start: the number of the first result there.
    """
    numbers = [*values, *range(start, start + len(order))]
    return [(numbers[left], numbers[right]) for left, right in order]


def join_alike(topology: Topology) -> Reduction:
    """Join leaves on the same indices until none are left, where that cannot cost more."""
    pairs: list[tuple[int, int]] = []
    values = dict(enumerate(topology.leaves))
    waiting: dict[object, int] = {}
    queue = list(values) if _can_join(topology) else []
    for current in queue:
        kind = _kind(topology, values[current])
        if kind not in waiting:
            waiting[kind] = current
            continue
        other = waiting.pop(kind)
        joined = topology.join(values.pop(other), values.pop(current))
        assert joined is not None  # only unresolved reads stand in the way
        pairs.append((other, current))
        queue.append(len(topology.leaves) + len(pairs) - 1)
        values[queue[-1]] = joined
    return Reduction(topology, pairs, tuple(values), tuple(values.values()))


def _can_join(topology: Topology) -> bool:
    """Return whether it is proven that leaves on the same indices may be joined first."""
    rate = topology.pricing.rate
    is_shown = isinstance(rate, Weighted) and (rate.writes == 0 or topology.pricing.trained == 0)
    return is_shown and not topology.reads and not topology.unfit


def _kind(topology: Topology, value: Value) -> tuple[object, ...]:
    """Return the properties that two values share if they may be joined first."""
    pricing = topology.pricing
    return frozenset(value.plain), bool(value.leaves & pricing.trained), bool(value.leaves & ~pricing.fixed)


def find_components(topology: Topology) -> list[list[int]]:
    """Return the leaves of each component of a region: components share no index."""
    holders: dict[int, list[int]] = {}
    for k, leaf in enumerate(topology.leaves):
        for i in leaf.indices:
            holders.setdefault(i, []).append(k)
    components: list[list[int]] = []
    seen: set[int] = set()
    for first in range(len(topology.leaves)):
        component = [] if first in seen else [first]
        seen.update(component)
        for k in component:
            near = {other for i in topology.leaves[k].indices for other in holders.pop(i, ())}
            component.extend(sorted(near - seen))
            seen.update(near)
        if component:
            components.append(sorted(component))
    return components


def multiply_out(topology: Topology, components: Sequence[Sequence[int]], orders: Sequence[Order]) -> Order:
    """Return the order that joins every component by its own order, then the components, the smallest two first."""
    pairs: list[tuple[int, int]] = []
    count = len(topology.leaves)
    queue: list[tuple[int, int]] = []
    for component, order in zip(components, orders, strict=True):
        pairs.extend(renumber(order, component, count + len(pairs)))
        output = {i for k in component for i in topology.leaves[k].plain if topology.is_output[i]}
        value = Value(0, tuple(output), ())
        queue.append((topology.size(value), count + len(pairs) - 1 if order else component[0]))
    heapify(queue)
    while len(queue) > 1:
        (small, left), (other, right) = heappop(queue), heappop(queue)
        pairs.append((left, right))
        heappush(queue, (small * other, count + len(pairs) - 1))
    return pairs
