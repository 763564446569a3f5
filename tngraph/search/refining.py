"""Orders that are too long for the exact program, improved subtree by subtree under the objective that counts.

A subtree is a step together with the costliest steps below it, as many as join `WIDTH` values. The exact program finds
its cheapest order and leaves the other steps unchanged. The subtree under the costliest step comes first. A subtree
that a change affects is solved again. The search ends when no subtree gets cheaper or `MOST_SPLITS` were compared.

Proposals minimise operations. The best order for another objective may be far from them: gates that are multiplied
with each other before they meet a large tensor cost more operations, and fewer passes over it.

Source: subtree reconfiguration in cotengra (Gray, Kourtis, Quantum 5, 410 (2021)); solving subtrees for any objective,
with gradients and values computed beforehand, is ours.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf

from tngraph.search.exact import MOST_CALLS, prove_order
from tngraph.search.objectives import PerStep, Price
from tngraph.search.region import Topology, Value
from tngraph.search.trees import Order, order_cost

WIDTH = 9
"""The most values that one subtree joins: its 3^9 splits take about ten milliseconds."""
MOST_SPLITS = 2**22
"""The most splits that are compared to improve an order; fewer if each calls a user's function."""


def refine_order(topology: Topology, order: Order) -> Order:
    """Return an order of which no subtree can be made cheaper, as far as the limit reaches.

    An order with unresolved reads stays as it is: whether to lay a read out depends on all of the order. It also stays
    after an interruption (``KeyboardInterrupt``).

    Args:
        topology: the region at numeric sizes, with its pricing.
        order: a valid order.

    Returns:
        An order at most as expensive.
    """
    price = order_cost(topology, order)
    if topology.reads or price in (0, inf):
        return order
    tree = _RefinedTree(topology, order)
    splits = MOST_CALLS if isinstance(topology.pricing.rate, PerStep) else MOST_SPLITS
    with suppress(KeyboardInterrupt):
        tree.improve(splits // 3**WIDTH)
        refined = tree.order()
        if order_cost(topology, refined) < price:
            return refined
    return order


class _RefinedTree:
    """A tree whose subtrees are replaced by cheaper ones. Steps have the numbers of the order.

    Attributes:
        operands: the operands of every step.
        values: the leaves, and the results of all steps.
        prices: the price of every step.
        solved: the subtrees that are as cheap as can be, each as the sets of leaves that it joins.
    """

    def __init__(self, topology: Topology, order: Order) -> None:
        self.topology = topology
        self.count = len(topology.leaves)
        self.operands: dict[int, tuple[int, int]] = {}
        self.values: dict[int, Value] = dict(enumerate(topology.leaves))
        self.prices: dict[int, Price] = {}
        self.solved: set[frozenset[int]] = set()
        for k, pair in enumerate(order):
            self._join(self.count + k, pair)

    def _join(self, step: int, pair: tuple[int, int]) -> None:
        left, right = (self.values[operand] for operand in pair)
        result = self.topology.join(left, right)
        assert result is not None  # only unresolved reads stand in the way
        self.operands[step], self.values[step] = pair, result
        self.prices[step] = self.topology.price(left, right, result)

    def improve(self, most: int) -> None:
        """Solve subtrees, `most` of them at most, until none can be made cheaper."""
        while True:
            before = len(self.solved)
            for step in sorted(self.operands, key=self.prices.__getitem__, reverse=True):
                if len(self.solved) == most:
                    return
                self._improve(step)
            if len(self.solved) == before:
                return

    def _improve(self, step: int) -> None:
        """Make the subtree under a step as cheap as can be."""
        steps, joined = self._subtree(step)
        leaves = frozenset(self.values[value].leaves for value in joined)
        if len(joined) < 3 or leaves in self.solved:
            return
        self.solved.add(leaves)
        numbers = [*joined, *reversed(steps)]
        place = {value: k for k, value in enumerate(numbers)}
        topology = self.topology.restrict([self.values[value] for value in joined])
        order = [(place[left], place[right]) for left, right in (self.operands[inner] for inner in reversed(steps))]
        refined, _ = prove_order(topology, order)
        if refined is not order and order_cost(topology, refined) < order_cost(topology, order):
            for inner, (left, right) in zip(reversed(steps), refined, strict=True):
                self._join(inner, (numbers[left], numbers[right]))

    def _subtree(self, step: int) -> tuple[list[int], list[int]]:
        """Return the steps of a subtree, each after the step that takes its result, and the values that they join."""
        steps, joined = [step], [*self.operands[step]]
        while len(joined) < WIDTH and (inner := [value for value in joined if value in self.operands]):
            costliest = max(inner, key=self.prices.__getitem__)
            joined.remove(costliest)
            joined.extend(self.operands[costliest])
            steps.append(costliest)
        return steps, joined

    def order(self) -> Order:
        """Return the steps in an order in which each comes right after the last of its operands."""
        ahead, steps = [self.count + len(self.operands) - 1], list[int]()
        while ahead:
            step = ahead.pop()
            if step in self.operands:
                steps.append(step)
                ahead.extend(self.operands[step])
        place = {step: self.count + k for k, step in enumerate(reversed(steps))} | {k: k for k in range(self.count)}
        return [(place[left], place[right]) for left, right in (self.operands[step] for step in reversed(steps))]
