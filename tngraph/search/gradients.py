"""The planned backward pass of a contraction tree: the product that computes each gradient, and the order of its legs.

The gradient of an operand is the gradient of its step's result contracted with the other operand, one more product of
matrices. It may have any order that one kernel gives, whatever the forward pass does. `lay_out_gradients` finds the
orders with the least time. On the way down the tree it keeps the orders that are reached fastest; on the way up it adds
up the time of each.

Source: reverse accumulation (Linnainmaa 1976); the orders as in `tngraph.search.layouts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from tngraph.language.legs import depends_on
from tngraph.language.network import Network, Read
from tngraph.search.layouts import Join, LayoutProgram, MatmulCandidate, Order, Run, most_orders, time_products
from tngraph.search.machine import Copy, Machine
from tngraph.search.matmul import arranged_axes
from tngraph.search.region import ContractionTree, Gradient, MatmulLayout, Region

MOST_ORDERS = 6
"""The orders of one gradient that are kept; fewer in a tree of many steps (see `most_orders`)."""


def lay_out_gradients(tree: ContractionTree, run: Run) -> ContractionTree:
    """Return a tree with matmul layouts also for the gradients of all values but the result."""
    return replace(tree, gradients=_Backward(tree, run).gradients()) if can_differentiate(tree) else tree


def can_differentiate(tree: ContractionTree) -> bool:
    """Return whether the gradients of a tree are products: it is laid out and joins its values by pairs."""
    return bool(tree.matmuls) and all(len(step.operands) == 2 for step in tree.steps)


class _Candidate(NamedTuple):
    """One way to compute the gradient of an operand from the gradient of its step's result.

    Attributes:
        seconds: the time that it takes.
        order: the order of the legs of the operand's gradient.
        product: the matrix product; None if the gradient is elementwise.
        added: the outer legs of the product that are summed after it.
    """

    seconds: float
    order: Order
    product: MatmulCandidate | None = None
    added: Order = ()

    @property
    def copied(self) -> Copy | None:
        """The copy of the result's gradient that the product needs, or None."""
        return self.product.copies[0] if self.product else None


@dataclass
class _Backward:
    """The orders of the gradients of all values so far, from the result down."""

    tree: ContractionTree
    run: Run
    candidates: dict[tuple[int, Order, int], list[_Candidate]] = field(default_factory=dict)
    seconds: dict[tuple[int, Order], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layouts = LayoutProgram(self.tree, self.run)
        self.count = len(self.tree.region.accesses)
        self.most = most_orders(self.tree, MOST_ORDERS)
        values = range(self.count + len(self.tree.steps))
        self.orders: list[Order] = [tuple(self.layouts.places[leg] for leg in self.tree.order(v)) for v in values]

    def gradients(self) -> tuple[Gradient, ...]:
        """Return the fastest gradients, from the result down."""
        root = len(self.orders) - 1
        wanted = tuple(self.layouts.places[leg] for leg in self.tree.region.legs if leg in self.layouts.places)
        fastest: dict[int, dict[Order, float]] = {root: {wanted: 0.0}}
        for value in range(root, self.count - 1, -1):
            self._go_down(value, fastest)
        for value in range(self.count, root + 1):
            for order in fastest[value]:
                self._cost(value, order)  # from the leaves up, so that the recursion stays shallow
        return tuple(self._choose(root, wanted))

    def _go_down(self, value: int, fastest: dict[int, dict[Order, float]]) -> None:
        """Find the gradients of the operands of a step, for every order that the gradient of its result may have."""
        operands = self.tree.steps[value - self.count].operands
        for operand in operands:
            others = self._orders_of(value - self.count, other_operand(operands, operand))
            seconds_to: dict[Order, float] = {}
            for order, before in fastest[value].items():
                candidates = self._find_candidates(order, operand, value - self.count, others)
                self.candidates[value, order, operand] = candidates
                for candidate in candidates:
                    total = before + candidate.seconds
                    seconds_to[candidate.order] = min(seconds_to.get(candidate.order, np.inf), total)
            from_each = (self.candidates[value, order, operand][0].order for order in fastest[value])
            wanted = {*sorted(seconds_to, key=seconds_to.__getitem__)[: self.most], *from_each}
            fastest[operand] = {order: seconds_to[order] for order in seconds_to if order in wanted}
            for order in fastest[value]:
                candidates = self.candidates[value, order, operand]
                self.candidates[value, order, operand] = [c for c in candidates if c.order in wanted]

    def _orders_of(self, step: int, operand: int) -> tuple[Order, ...]:
        """Return the orders in which an operand is in memory: its own, and the one into which the step copies it."""
        arranged = tuple(self.layouts.places[leg] for axis in arranged_axes(self.tree, step, operand) for leg in axis)
        return (self.orders[operand], arranged) if arranged else (self.orders[operand],)

    def _find_candidates(self, order: Order, operand: int, step: int, others: tuple[Order, ...]) -> list[_Candidate]:
        """Return the fastest candidates for the gradient of an operand of a step, by their orders and copies.

        The other operand is in memory in each of `others`.
        """
        layouts = self.layouts
        if is_elementwise(self.tree, step, operand):
            seconds = self.run.machine.elementwise(
                layouts.sizes.of(order), layouts.sizes.of(others[0]), written=layouts.sizes.of(order)
            )
            return [_Candidate(float(seconds), order)]
        alone = (
            _Candidate(seconds, product.order, product)
            for other in others
            for seconds, product in self._products(order, other, self.orders[operand])
        )
        fastest_of: dict[tuple[Order, Copy | None], _Candidate] = {}
        least: dict[Order, float] = {}
        for candidate in (*alone, *self._add_up(order, others, self.orders[operand])):
            key = candidate.order, candidate.copied  # the gradient of the other operand may need the same copy
            if key not in fastest_of or candidate.seconds < fastest_of[key].seconds:
                fastest_of[key] = candidate
                least[candidate.order] = min(least.get(candidate.order, np.inf), candidate.seconds)
        of_use = [c for c in fastest_of.values() if c.seconds == least[c.order] or self._is_of_use(c, least)]
        is_leaf = operand < self.count
        fastest = sorted(of_use, key=lambda c: c.seconds + (self._cost(operand, c.order) if is_leaf else 0.0))
        return fastest[: 2 * self.most]

    def _products(
        self, order: Order, other: Order, own: Order, added: Order = ()
    ) -> Iterator[tuple[float, MatmulCandidate]]:
        """Return the fastest products of a gradient and an operand, one per order and copy, with their seconds.

        Args:
            order: the order of the gradient.
            other: the order of the operand.
            own: the legs of the result.
            added: more legs of the result, which are then all of its outer ones.
        """
        join, legs = self.layouts.join(order, other, frozenset((*own, *added)), own)
        key = join, tuple(legs.index(leg) for leg in added)
        if key not in self.layouts.kernels:
            self.layouts.kernels[key] = _find_fastest(*key, self.run.machine)
        return ((seconds, product.renamed(legs)) for seconds, product in self.layouts.kernels[key])

    def _is_of_use(self, candidate: _Candidate, least: Mapping[Order, float]) -> bool:
        """Return whether a candidate is the fastest to its order if the other gradient needs the same copy."""
        copied = candidate.copied
        return copied is not None and candidate.seconds - self.run.machine.rearrange(copied) < least[candidate.order]

    def _add_up(self, order: Order, others: tuple[Order, ...], own: Order) -> Iterator[_Candidate]:
        """Yield candidates that sum over the slowest legs of a gradient by adding products, where these legs are small.

        Args:
            order: the order of the result's gradient.
            others: the orders in which the other operand is in memory.
            own: the order of the operand whose gradient is wanted.
        """
        sizes, machine = self.layouts.sizes, self.run.machine
        run = tuple(takewhile(lambda leg: leg not in own and leg in others[0], order))
        small = sizes.of(order) // sizes.of(own)
        for added in dict.fromkeys(run[:count] for count in (1, len(run)) if run):
            if sizes.of(added) > small:
                continue
            products = (timed for other in others for timed in self._products(order, other, own, added))
            for seconds, product in products:
                total = machine.elementwise(sizes.of(product.order), written=sizes.of(own))
                yield _Candidate(
                    seconds + float(total), product.order[len(added) :], product, product.order[: len(added)]
                )

    def _cost(self, value: int, order: Order) -> float:
        """Return the time from the gradient of a value to those of the leaves below, each in its leaf's order."""
        if value < self.count:
            return self.layouts.seconds_to(order, self.orders[value])
        if (value, order) not in self.seconds:
            self.seconds[value, order] = self._best(value, order)[0]
        return self.seconds[value, order]

    def _best(self, value: int, order: Order) -> tuple[float, tuple[_Candidate, ...]]:
        """Return the least time from the gradient of a value to all below it, and the candidates for the next two.

        A copy that both of these need is counted once.
        """
        operands = self.tree.steps[value - self.count].operands
        costs = [
            [(c.seconds + self._cost(operand, c.order), c) for c in self.candidates[value, order, operand]]
            for operand in operands
        ]
        copies = [{candidate.copied for _, candidate in column if candidate.copied} for column in costs]
        pairs = [_least_pair(costs)]
        for copy in copies[0] & copies[1]:
            seconds, pair = _least_pair([[timed for timed in column if timed[1].copied == copy] for column in costs])
            pairs.append((seconds - self.run.machine.rearrange(copy), pair))
        return min(pairs, key=lambda pair: pair[0])

    def _choose(self, root: int, wanted: Order) -> Iterator[Gradient]:
        """Yield the fastest gradients below the result, whose gradient has the wanted order."""
        orders = {root: wanted}
        for value in range(root, self.count - 1, -1):
            step = value - self.count
            _, pair = self._best(value, orders[value])
            for operand, chosen in zip(self.tree.steps[step].operands, pair, strict=True):
                orders[operand] = chosen.order
                order = self.layouts.named(chosen.order)
                if chosen.product is None:
                    yield Gradient(step, operand, MatmulLayout((), (), order))
                else:
                    other = other_operand(self.tree.steps[step].operands, operand)
                    is_arranged = chosen.product.operands[1] != self.orders[other]
                    added = self.layouts.named(chosen.added)
                    yield Gradient(step, operand, self.layouts.matmul(chosen.product), is_arranged, added)


def _find_fastest(join: Join, added: Order, machine: Machine) -> list[tuple[float, MatmulCandidate]]:
    """Return the fastest candidate of a join for each order and each copy of its first operand, with its seconds."""
    candidates = [
        candidate
        for candidate in join.candidates()
        if not added or {*candidate.order[: candidate.matmul[0]]} == {*added}
    ]
    fastest: dict[tuple[Order, Copy | None], tuple[float, MatmulCandidate]] = {}
    for candidate, seconds in zip(
        candidates, time_products(candidates, machine).tolist() if candidates else (), strict=True
    ):
        key = candidate.order, candidate.copies[0]
        if key not in fastest or seconds < fastest[key][0]:
            fastest[key] = seconds, candidate
    return list(fastest.values())


def _least_pair(costs: Sequence[Sequence[tuple[float, _Candidate]]]) -> tuple[float, tuple[_Candidate, ...]]:
    """Return the least time to the gradients of two operands that share no copy, and their candidates."""
    (a, left), (b, right) = (min(candidates, key=lambda timed: timed[0]) for candidates in costs)
    return a + b, (left, right)


def is_elementwise(tree: ContractionTree, place: int, operand: int) -> bool:
    """Return whether the gradient of an operand of a step is elementwise, so that nothing is summed."""
    step = tree.steps[place]
    return step.kind == "mul" and set(step.legs) == set(tree.legs_of(operand))


def other_operand(operands: Sequence[int], operand: int) -> int:
    """Return the other one of two operands."""
    first, second = operands
    return second if operand == first else first


def can_plan_backward(network: Network, region: Region) -> bool:
    """Return whether the gradients of a region can be planned: all is stored, and nothing is read at positions."""
    runtime = network.runtime_sizes()
    constant = {core.name: core for core in network.cores if core.role == "const"}
    for access in region.accesses:
        if any(isinstance(leg, Read) for leg in access.legs) or len(set(access.legs)) < len(access.legs):
            return False
        core = constant.get(access.source)
        if core is not None and depends_on(core.legs, runtime):
            return False
    return True
