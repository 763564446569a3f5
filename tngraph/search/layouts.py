"""The order of the legs of every intermediate: the candidates that make each step one kernel, and the fastest of them.

A contraction is one matrix product, or a batch of them. The legs of the result are `outer`, which number the products,
`rows` from one operand and `columns` from the other; the result has them in that order. PyTorch takes an operand
without a copy if its outer legs, its own and the summed ones stand together, the matrix innermost. Otherwise the step
copies it into such an order. An operand that lacks the outer legs is the same for all products.

`lay_out` finds the orders with the least time on a machine, by a dynamic program over the tree: for every value its
possible orders, and the least time to get there. A result may have any order that one kernel gives of operands without
a copy, or of one that is copied with its legs in the same order or rotated by one. All these are searched. Where a
value has more than `MOST_ORDERS` of them, or a tree many steps, the fastest are kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product, takewhile
from math import prod
from typing import Any, NamedTuple

import numpy as np

from tngraph.language.legs import bare_legs, leg_size
from tngraph.language.network import Leg
from tngraph.language.sizes import evaluate_size
from tngraph.search.machine import BEYOND, Copy, Machine, find_copy
from tngraph.search.region import ContractionTree, MatmulLayout, arrangements

MOST_ORDERS = 8
"""The most orders that the program keeps of one value."""
MOST_KEPT = 48
"""The most orders that the program keeps of all values of a tree together, but for `LEAST_ORDERS` of each."""
LEAST_ORDERS = 2
SMALL = 8
"""An operand at least 8 times smaller than the other is also tried with a copy that may make the product faster."""
MOST_PAIRS = 16
"""The most pairs of orders of two operands that the program joins, those of the least time first."""
FASTER = 1 - 1e-12
"""A later candidate must be faster by more than rounding to take the place of an earlier one."""
_LAID_OUT = {"contract", "mul", "sum"}
"""The kinds of steps that have matmul layouts. Steps that read at positions follow rules of their own."""

Order = tuple[int, ...]
"""Legs by number, the slowest first."""


class Run(NamedTuple):
    """The sizes, the machine and the leaves for which a tree is laid out.

    Attributes:
        numbers: an integer for every named size.
        machine: the machine that runs the tree.
        trained: the leaves that a gradient flows to, as bits.
        fixed: the leaves that are arranged before the first call, as bits.
        kernels: the fastest candidates of each join on this machine so far; runs on one machine may share them.
    """

    numbers: Mapping[str, int]
    machine: Machine
    trained: int = 0
    fixed: int = 0
    kernels: dict[Hashable, Any] | None = None


def lay_out(tree: ContractionTree, run: Run) -> ContractionTree:
    """Return the tree with a matmul layout for every step, or unchanged if it reads at positions or has slices."""
    if not can_lay_out(tree):
        return tree
    program = LayoutProgram(tree, run)
    for place in range(len(tree.steps)):
        program.add(place)
    return replace(tree, matmuls=program.matmuls())


def can_lay_out(tree: ContractionTree) -> bool:
    """Return whether the steps of a tree can have matmul layouts: none reads at positions or runs slice by slice."""
    return not tree.sliced and all(step.kind in _LAID_OUT for step in tree.steps)


def is_possible(tree: ContractionTree, place: int) -> bool:
    """Return whether the matmul layout of a step is one kernel on its operands in the orders of their own layouts."""
    step, matmul = tree.steps[place], tree.matmuls[place]
    if step.kind != "contract":
        return not matmul.is_matrix
    first, second = (tree.order(o) for o in step.operands)
    return is_product(matmul, first, second)


def is_product(matmul: MatmulLayout, one: Sequence[Leg], other: Sequence[Leg]) -> bool:
    """Return whether a matmul layout is one matrix product of operands that have these legs."""
    first, second = set(one), set(other)
    shared = first & second & set(matmul.legs)
    sides = [(first - second, second - first), (second - first, first - second)]
    possible = [side for side in sides if side[0].issuperset(matmul.rows) and side[1].issuperset(matmul.columns)]
    outer = set(matmul.outer)
    is_common = outer == shared or (not shared and (outer <= first - second or outer <= second - first))
    is_summed = sorted(map(repr, matmul.summed)) == sorted(map(repr, (first & second) - shared))
    return bool(possible) and is_common and is_summed


def most_orders(tree: ContractionTree, most: int) -> int:
    """Return how many orders of one value to keep: `most`, or fewer in a tree of many steps."""
    return min(most, max(LEAST_ORDERS, MOST_KEPT // len(tree.steps)))


class MatmulCandidate(NamedTuple):
    """One kernel: the orders of its operands and of its result, and the matrix product.

    Attributes:
        operands: the orders of the two operands.
        matmul: how many legs of the result are outer, and how many of the rest are rows.
        order: the order of the result.
        summed: the order of the summed legs.
        shape: products, rows, columns and the summed size.
        copies: the copy of each operand, or None for an operand that needs none.
        transposed: whether the matrices of the rows are stored transposed, and those of the columns.
        is_left: whether the first operand gives the rows.
    """

    operands: tuple[Order, Order]
    matmul: tuple[int, int]
    order: Order
    summed: Order
    shape: tuple[int, int, int, int]
    copies: tuple[Copy | None, Copy | None]
    transposed: tuple[bool, bool]
    is_left: bool

    def renamed(self, legs: Sequence[int]) -> MatmulCandidate:
        """Return the candidate with other numbers for its legs."""
        first, second = (tuple(legs[k] for k in order) for order in self.operands)
        order, summed = (tuple(legs[k] for k in own) for own in (self.order, self.summed))
        return self._replace(operands=(first, second), order=order, summed=summed)


class _Best(NamedTuple):
    """The least time to a value in one order, and the matmul layout that takes it."""

    seconds: float
    operands: tuple[Order, ...]
    matmul: tuple[int, int] = (0, 0)
    summed: Order = ()
    transposed: tuple[bool, bool] = (False, False)


class Join(NamedTuple):
    """A contraction of two operands whose legs are numbered by place, so that joins that are alike are equal.

    Attributes:
        operands: the orders of the two operands.
        sizes: the elements along every leg.
        result: the legs of the result, in ascending order.
        rank: the order that the caller wants the legs of the result in.
    """

    operands: tuple[Order, Order]
    sizes: Order
    result: Order
    rank: Order

    def candidates(self) -> Iterator[MatmulCandidate]:
        """Return the candidates of the contraction."""
        rank = {leg: place for place, leg in enumerate(self.rank)}
        return _candidates(*self.operands, frozenset(self.result), _Sizes(self.sizes), rank)


class Passes(NamedTuple):
    """The runs of a step that count: those of a call, and those for gradients.

    Attributes:
        copied: how often each operand is copied.
        trained: whether a gradient flows to each operand.
        put_out: how often the result is copied into the order that the caller wants.
        is_called: whether the step runs in a call, and not before the first.
    """

    copied: tuple[int, int]
    trained: tuple[bool, bool]
    put_out: int
    is_called: bool


class _Sizes(tuple[int, ...]):
    """The elements along every leg, and the products and copies of several legs, computed once."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self._products: dict[Order, int] = {}
        self._copies: dict[tuple[Order, Order], Copy] = {}

    def of(self, legs: Order) -> int:
        """Return the elements of a value with these legs."""
        if legs not in self._products:
            self._products[legs] = min(prod(self[leg] for leg in legs), BEYOND)
        return self._products[legs]

    def copy(self, order: Order, wanted: Order) -> Copy:
        """Return the copy from one order into another."""
        if (order, wanted) not in self._copies:
            self._copies[order, wanted] = find_copy(order, wanted, self.__getitem__)
        return self._copies[order, wanted]


@dataclass
class LayoutProgram:
    """The dynamic program: the orders of every value up to the last step added."""

    tree: ContractionTree
    run: Run
    nodes: list[dict[Order, _Best]] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        accesses = [bare_legs(access) for access in self.tree.region.accesses]
        self.kernels = {} if self.run.kernels is None else self.run.kernels
        self.legs: list[Leg] = list(dict.fromkeys(leg for legs in accesses for leg in legs))
        self.places = {leg: k for k, leg in enumerate(self.legs)}
        self.rank = {self.places[leg]: k for k, leg in enumerate(self.tree.region.legs) if leg in self.places}
        self.sizes = _Sizes(evaluate_size(leg_size(leg), self.run.numbers) for leg in self.legs)
        for k, legs in enumerate(accesses):
            self.nodes.append({tuple(self.places[leg] for leg in legs): _Best(0.0, ())})
            self.leaves.append(1 << k)

    def add(self, place: int) -> None:
        """Find the orders of the result of a step."""
        step = self.tree.steps[place]
        result = frozenset(self.places[leg] for leg in step.legs)
        self.leaves.append(sum({self.leaves[o] for o in step.operands}))
        if step.kind == "sum":
            (operand,) = step.operands
            orders = {
                tuple(leg for leg in order if leg in result): _Best(best.seconds, (order,))
                for order, best in self.nodes[operand].items()
            }
        elif step.kind == "mul":
            orders = self._multiply(step.operands)
        else:
            orders = self._contract(step.operands, result)
        fastest = sorted(orders.items(), key=lambda item: item[1].seconds)[: most_orders(self.tree, MOST_ORDERS)]
        self.nodes.append(dict(fastest))

    def _multiply(self, operands: Sequence[int]) -> dict[Order, _Best]:
        """Return the orders of an elementwise product: that of the larger operand, with the legs it lacks inserted."""
        orders: dict[Order, _Best] = {}
        for first, a in self.nodes[operands[0]].items():
            for second, b in self.nodes[operands[1]].items():
                large, small = sorted((first, second), key=lambda order: -self.sizes.of(order))
                extra = tuple(leg for leg in small if leg not in large)
                for cut in range(len(large) + 1) if extra else (0,):
                    order = (*large[:cut], *extra, *large[cut:])
                    seconds = a.seconds + b.seconds
                    if order not in orders or seconds < orders[order].seconds:
                        orders[order] = _Best(seconds, (first, second))
        return orders

    def _contract(self, operands: Sequence[int], result: frozenset[int]) -> dict[Order, _Best]:
        first, second = (self.nodes[o] for o in operands)
        pairs = sorted(product(first, second), key=lambda pair: first[pair[0]].seconds + second[pair[1]].seconds)
        is_root = self.leaves[-1] == (1 << len(self.tree.region.accesses)) - 1
        passes = self._passes(operands, is_root)
        most = most_orders(self.tree, MOST_ORDERS)
        orders: dict[Order, _Best] = {}
        for pair in pairs[:MOST_PAIRS]:
            before = first[pair[0]].seconds + second[pair[1]].seconds
            if len(orders) >= most and before > sorted(best.seconds for best in orders.values())[most - 1]:
                break  # no later pair is among the fastest
            join, legs = self.join(*pair, result, self.rank)
            for seconds, put_out, candidate in self._fastest(join, passes):
                order, total = tuple(legs[k] for k in candidate.order), before + seconds + put_out
                if order not in orders or total < orders[order].seconds:
                    orders[order] = _Best(
                        total, pair, candidate.matmul, tuple(legs[k] for k in candidate.summed), candidate.transposed
                    )
        return orders

    def _passes(self, operands: Sequence[int], is_root: bool) -> Passes:
        leaves, fixed, trained = [self.leaves[o] for o in operands], self.run.fixed, self.run.trained
        copied = [bool(bits & ~fixed) * (1 + bool(bits & trained)) for bits in leaves]
        put_out = is_root * (1 + bool(self.leaves[-1] & trained))
        return Passes(
            (copied[0], copied[1]),
            (bool(leaves[0] & trained), bool(leaves[1] & trained)),
            put_out,
            bool(self.leaves[-1] & ~fixed),
        )

    def join(self, first: Order, second: Order, result: frozenset[int], rank: Iterable[int]) -> tuple[Join, Order]:
        """Return the contraction of two operands in these orders to the legs `result`, and the legs by its numbers."""
        legs = tuple(dict.fromkeys((*first, *second)))
        place = {leg: k for k, leg in enumerate(legs)}
        join = Join(
            (tuple(place[leg] for leg in first), tuple(place[leg] for leg in second)),
            tuple(self.sizes[leg] for leg in legs),
            tuple(k for k, leg in enumerate(legs) if leg in result),
            tuple(place[leg] for leg in rank if leg in place),
        )
        return join, legs

    def _fastest(self, join: Join, passes: Passes) -> Sequence[tuple[float, float, MatmulCandidate]]:
        """Return `_find_fastest` of a join, computed once."""
        if (join, passes) not in self.kernels:
            self.kernels[join, passes] = _find_fastest(join, passes, self.run.machine)
        fastest: Sequence[tuple[float, float, MatmulCandidate]] = self.kernels[join, passes]
        return fastest

    def seconds_to(self, order: Order, wanted: Order) -> float:
        """Return the seconds of a copy into another order; 0 where it is the same."""
        return _seconds_of(self.sizes.copy(order, wanted), self.run.machine)

    def matmuls(self) -> tuple[MatmulLayout, ...]:
        """Return the matmul layouts with the least time to the result."""
        count = len(self.tree.region.accesses)
        chosen: dict[int, Order] = {}
        root = len(self.nodes) - 1
        chosen[root] = min(self.nodes[root], key=lambda order: self.nodes[root][order].seconds)
        matmuls: list[MatmulLayout] = []
        for value in range(root, count - 1, -1):
            order = chosen[value]
            best = self.nodes[value][order]
            matmuls.append(self._matmul(order, best.matmul, best.summed, best.transposed))
            chosen.update(zip(self.tree.steps[value - count].operands, best.operands, strict=True))
        return tuple(reversed(matmuls))

    def matmul(self, candidate: MatmulCandidate) -> MatmulLayout:
        """Return a candidate in the legs of the tree."""
        return self._matmul(candidate.order, candidate.matmul, candidate.summed, candidate.transposed)

    def named(self, order: Order) -> tuple[Leg, ...]:
        """Return the legs that have these numbers."""
        return tuple(self.legs[k] for k in order)

    def _matmul(
        self, order: Order, matmul: tuple[int, int], summed: Order, transposed: tuple[bool, bool]
    ) -> MatmulLayout:
        outer, rows = matmul
        first, second, third = order[:outer], order[outer : outer + rows], order[outer + rows :]
        return MatmulLayout(self.named(first), self.named(second), self.named(third), self.named(summed), transposed)


def _find_fastest(join: Join, passes: Passes, machine: Machine) -> list[tuple[float, float, MatmulCandidate]]:
    """Return the fastest candidate for each order of a result, behind its seconds and those of the copy put out."""
    candidates = list(join.candidates())
    fastest: dict[Order, tuple[float, MatmulCandidate]] = {}
    for candidate, seconds in zip(candidates, _time(candidates, passes, machine).tolist(), strict=True):
        if candidate.order not in fastest or seconds < FASTER * fastest[candidate.order][0]:
            fastest[candidate.order] = seconds, candidate
    copies = {order: _Sizes(join.sizes).copy(order, join.rank) for order in fastest if passes.put_out}
    put_out = {order: passes.put_out * _seconds_of(copy, machine) for order, copy in copies.items()}
    return [(seconds, put_out.get(candidate.order, 0.0), candidate) for seconds, candidate in fastest.values()]


def _seconds_of(copy: Copy, machine: Machine) -> float:
    """Return the seconds of a copy; 0 where the order stays."""
    return 0.0 if len(copy.order) < 2 else machine.rearrange(copy)


def _time(candidates: Sequence[MatmulCandidate], passes: Passes, machine: Machine) -> np.ndarray:
    """Return the seconds of candidates with their gradients, each of which is one matrix product without a copy."""
    if not passes.is_called:
        return np.zeros(len(candidates))
    total = time_products(candidates, machine, passes.copied)
    if any(passes.trained):
        batch, rows, columns, summed = np.array([candidate.shape for candidate in candidates], dtype=np.float64).T
        of_rows, of_columns = np.array([candidate.transposed for candidate in candidates]).T
        left, right = machine.undo_product(batch, rows, columns, summed, of_rows, of_columns)
        is_left = np.array([candidate.is_left for candidate in candidates])
        for gives_rows, is_wanted in zip((is_left, ~is_left), passes.trained, strict=True):
            total = total + is_wanted * np.where(gives_rows, left, right)
    return np.asarray(total)


def time_products(
    candidates: Sequence[MatmulCandidate], machine: Machine, passes: Sequence[int] = (1, 1)
) -> np.ndarray:
    """Return the seconds of products and of the copies of their operands.

    Args:
        candidates: the products.
        machine: the machine that runs them.
        passes: how often each operand is copied.
    """
    batch, rows, columns, summed = np.array([candidate.shape for candidate in candidates], dtype=np.float64).T
    of_rows, of_columns = np.array([candidate.transposed for candidate in candidates]).T
    total = machine.product(batch, rows, columns, summed, of_rows, of_columns)
    for side, count in enumerate(passes):
        copies = [candidate.copies[side] for candidate in candidates]
        seconds = {copy: machine.rearrange(copy) if copy else 0.0 for copy in dict.fromkeys(copies)}
        total = total + count * np.array([seconds[copy] for copy in copies])
    return np.asarray(total)


def _candidates(
    first: Order, second: Order, result: frozenset[int], sizes: _Sizes, rank: Mapping[int, int]
) -> Iterator[MatmulCandidate]:
    """Yield the candidates that contract two operands in these orders; `rank` is the order that the caller wants."""
    for is_first, (spine, other) in ((True, (first, second)), (False, (second, first))):
        for matrices in _matrices(spine, other, result, sizes, rank):
            for is_left in (True, False):
                yield from _multiply((first, second), matrices, is_first, is_left)


class _OperandLayout(NamedTuple):
    """A layout of an operand: whether its own legs come before the summed ones, and the copy it needs, if any."""

    is_own_first: bool
    copied: Copy | None


class _Matrices(NamedTuple):
    """The legs and layouts of a matrix product. One operand is the spine: its own legs keep their order, or nearly.

    Attributes:
        outer: the legs that number the products.
        own: the legs of the result that the matrix of the spine has.
        others: the legs of the result that the matrix of the other operand has.
        summed: the legs that are summed.
        shape: the elements along these four groups of legs.
        layouts: the layouts that the spine may have.
        other_layouts: the layouts that the other operand may have.
    """

    outer: Order
    own: Order
    others: Order
    summed: Order
    shape: tuple[int, int, int, int]
    layouts: tuple[_OperandLayout, ...]
    other_layouts: tuple[_OperandLayout, ...]


def _matrices(
    spine: Order, other: Order, result: frozenset[int], sizes: _Sizes, rank: Mapping[int, int]
) -> Iterator[_Matrices]:
    """Yield the matrix products of a spine and the other operand."""
    if sizes.of(spine) * SMALL < sizes.of(other):
        return  # keeping the order of the much smaller operand saves nothing
    shared = {*spine} & {*other}
    outer = tuple(leg for leg in spine if leg in shared and leg in result)
    summed = tuple(leg for leg in spine if leg in shared and leg not in result)
    own = tuple(leg for leg in spine if leg not in shared)
    cuts = list(_cuts(spine, outer, own, summed, sizes, rank))
    is_small = sizes.of(other) * SMALL <= sizes.of(spine)
    for others in _orders_to_try(tuple(leg for leg in other if leg not in shared), rank):
        other_layouts = _layouts_of(other, outer, others, summed, sizes, is_small)
        for front, rest, layouts in cuts:
            groups = (*outer, *front), rest, others, summed
            shape = sizes.of(groups[0]), sizes.of(rest), sizes.of(others), sizes.of(summed)
            yield _Matrices(*groups, shape, layouts, other_layouts)


def _multiply(
    operands: tuple[Order, Order], matrices: _Matrices, is_first: bool, is_left: bool
) -> Iterator[MatmulCandidate]:
    """Yield the candidates of a matrix product, one for each pair of layouts.

    Args:
        operands: the orders of both operands.
        matrices: the legs and layouts.
        is_first: whether the spine is the first operand.
        is_left: whether the spine gives the rows; else it gives the columns.
    """
    count, own, others, inner = matrices.shape
    shape = (count, own, others, inner) if is_left else (count, others, own, inner)
    rows, columns = (matrices.own, matrices.others) if is_left else (matrices.others, matrices.own)
    order, matmul = (*matrices.outer, *rows, *columns), (len(matrices.outer), len(rows))
    # A matrix without legs on one side is a vector, which has no transposed layout.
    can_transpose = bool(rows and matrices.summed), bool(columns and matrices.summed)
    for layout, other_layout in product(matrices.layouts, matrices.other_layouts):
        copies = (layout.copied, other_layout.copied) if is_first else (other_layout.copied, layout.copied)
        left, right = (layout, other_layout) if is_left else (other_layout, layout)
        transposed = can_transpose[0] and not left.is_own_first, can_transpose[1] and right.is_own_first
        yield MatmulCandidate(operands, matmul, order, matrices.summed, shape, copies, transposed, is_left == is_first)


def _layouts_of(
    order: Order, outer: Order, own: Order, summed: Order, sizes: _Sizes, is_small: bool = False
) -> tuple[_OperandLayout, ...]:
    """Return the layouts of an operand: without a copy if possible, else copied. A small one may also be copied."""
    layouts: list[_OperandLayout] = []
    for is_own_first, (first, second) in ((True, (own, summed)), (False, (summed, own))):
        wanted = arrangements(outer, first, second)
        if order in wanted:
            layouts.append(_OperandLayout(is_own_first, None))
        else:
            layouts.append(_OperandLayout(is_own_first, sizes.copy(order, wanted[0])))
    layouts.sort(key=lambda layout: layout.copied is not None)  # of two that take equally long, the one without a copy
    return tuple(layouts) if is_small or layouts[0].copied is not None else (layouts[0],)


def _cuts(
    spine: Order, outer: Order, own: Order, summed: Order, sizes: _Sizes, rank: Mapping[int, int]
) -> Iterator[tuple[Order, Order, tuple[_OperandLayout, ...]]]:
    """Yield the cuts of an operand's own legs into those that number the products and those of the matrix."""
    orders = _orders_to_try(own, rank)
    if outer:  # these number the products, and stay in front
        yield from (((), order, _layouts_of(spine, outer, order, summed, sizes)) for order in orders)
        return
    places = [k for k, leg in enumerate(spine) if leg in summed]
    if places and places[-1] - places[0] == len(places) - 1:
        before, behind = spine[: places[0]], spine[places[-1] + 1 :]
        if before and behind:  # own legs on both sides of the summed ones: those before can number products uncopied
            yield before, behind, (_OperandLayout(False, None),)
    for order in orders:
        in_result = len(list(takewhile(rank.__contains__, order)))
        # All cuts would be too many: those at either end, and the one behind the legs that the caller wants in front.
        cuts = sorted({0, 1, len(order) - 1, in_result}) if len(order) > 1 else (0,)
        for cut in cuts:
            yield order[:cut], order[cut:], _layouts_of(spine, order[:cut], order[cut:], summed, sizes)


def _orders_to_try(legs: Order, rank: Mapping[int, int]) -> Iterable[Order]:
    """Return some orders of legs: unchanged, rotated by one, and as the caller wants them, before or after bonds."""
    ranked = tuple(sorted((leg for leg in legs if leg in rank), key=rank.__getitem__))
    bonds = tuple(leg for leg in legs if leg not in rank)
    around = ((*ranked, *bonds), (*bonds, *ranked))
    return dict.fromkeys((legs, (*legs[1:], *legs[:1]), (*legs[-1:], *legs[:-1]), *around))
