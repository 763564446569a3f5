"""Regions, steps and trees: the input and the result of the search, and what one step does to the legs.

A `Region` is one product of accesses to contract. Its leaves are first *prepared*: repeated indices and irregular reads
are laid out, and indices of one access alone are summed. From then on each value is a set of plain indices and
*unresolved* reads. An unresolved read is a leg that is still addressed by a position Σ c·i. Joining it with a tensor
that has one of its indices resolves that index, which is a convolution step. In a convolution every position of the
result collects what it reads. In a transposed convolution every position of the leg is added to all results that read
it. Opening a read lays its indices out as plain ones, after which ordinary steps apply. The search chooses between all
of these.

Source: the distinction of unresolved and opened reads is ours. Without reads this is the ordinary contraction tree of
opt_einsum and cotengra, including hyperedges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from math import gcd, prod
from typing import Any, Literal, NamedTuple, TypeVar

import sympy

from tngraph.language.legs import Rename, bare_legs, leg_indices, legs_size, sliced_legs
from tngraph.language.network import Access, Index, Leg, Read
from tngraph.language.sizes import evaluate_size, symbol
from tngraph.search.machine import Work
from tngraph.search.objectives import Price, Pricing

StepKind = Literal["read", "sum", "contract", "mul", "conv", "conv_transpose"]


@dataclass(frozen=True, slots=True)
class Region:
    """One merged term between barriers: its accesses, and the indices of its result.

    Every leg of an access has the form that `bare_leg` returns, so that search, slicing, schedule and kernels see the
    same.
    """

    accesses: tuple[Access, ...]
    legs: tuple[Index, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on one or two values; ``legs`` are those of its result."""

    operands: tuple[int, ...]
    legs: tuple[Leg, ...]
    kind: StepKind


class MatmulLayout(NamedTuple):
    """The matmul layout of a step, and the order of its result in memory: `outer`, `rows`, `columns`.

    A contraction is one matrix product per value of the outer legs. One operand has the rows, the other the columns,
    and both have the legs `summed` in this order. `transposed` says which matrix lies transposed in memory: the one
    with the rows has the summed legs before its rows, the one with the columns has them after its columns. Every other
    step has only an order, stored as its columns.
    """

    outer: tuple[Leg, ...]
    rows: tuple[Leg, ...]
    columns: tuple[Leg, ...]
    summed: tuple[Leg, ...] = ()
    transposed: tuple[bool, bool] = (False, False)

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs of the result in memory order."""
        return (*self.outer, *self.rows, *self.columns)

    @property
    def is_matrix(self) -> bool:
        """True for a product of matrices, and false for a product of entries."""
        return bool(self.outer or self.rows or self.summed)

    def renamed(self, rename: Rename) -> MatmulLayout:
        """Return the same form with other legs."""
        return MatmulLayout(
            rename(self.outer), rename(self.rows), rename(self.columns), rename(self.summed), self.transposed
        )


class Gradient(NamedTuple):
    """The product that computes the gradient of one operand of a step.

    Its factors are the gradient of the step's result and the other operand.

    Attributes:
        step: the number of the step.
        operand: the value whose gradient it is.
        matmul: matmul layout of the product; the gradient of the tree's result has the order of the region.
        is_arranged: whether the other operand is read in the copied order that the step's own product reads.
        added: the outer legs of the layout if the products along them are added up, which saves a copy to sum.
    """

    step: int
    operand: int
    matmul: MatmulLayout
    is_arranged: bool = False
    added: tuple[Leg, ...] = ()

    def renamed(self, rename: Rename) -> Gradient:
        """Return the same gradient with other legs."""
        return self._replace(matmul=self.matmul.renamed(rename), added=rename(self.added))


@dataclass(frozen=True, slots=True)
class Tile:
    """An index that steps process in tiles, a number of its values at a time.

    Attributes:
        index: an index with a run-time size of its own, or with a number as its size; then every value that has it is
            computed from params alone.
        size: the number of values in a tile; the last tile may have fewer.
    """

    index: Index
    size: int

    @property
    def is_runtime(self) -> bool:
        """True if the size of the index is known only at each call."""
        return not self.index.size.is_Integer

    @property
    def part(self) -> Index:
        """The index inside a tile. A run-time index is the same there, since a tile runs like a smaller whole."""
        return self.index if self.is_runtime else Index(self.index.name, symbol(f"{self.index.name} part"))

    def enter(self, legs: Iterable[Leg]) -> tuple[Leg, ...]:
        """Return legs as they are inside a tile."""
        return tuple(self.part if leg == self.index else leg for leg in legs)

    def leave(self, legs: Iterable[Leg]) -> tuple[Leg, ...]:
        """Return legs from inside a tile as they are outside."""
        return tuple(self.index if leg == self.part else leg for leg in legs)


@dataclass(frozen=True, slots=True)
class ContractionTree:
    """A contraction order in single assignment.

    Values 0…n-1 are the region's accesses, step k computes value n+k, and the last value is the result.

    Attributes:
        region: the product to contract.
        steps: the steps in order.
        is_proven: whether no other tree is cheaper.
        is_pinned: whether its order was given by hand.
        sliced: indices that the steps run for one value at a time; no step has them among its legs.
        matmuls: the matmul layout of every step; empty if each step takes its operands as they are.
        tile: the tile that the steps run in, so that a tile stays in cache; None if they run whole.
        gradients: the gradient of every value except the result, from the last step to the first; empty if PyTorch
            computes them.
    """

    region: Region
    steps: tuple[Step, ...]
    is_proven: bool
    is_pinned: bool = False
    sliced: tuple[Index, ...] = ()
    matmuls: tuple[MatmulLayout, ...] = ()
    tile: Tile | None = None
    gradients: tuple[Gradient, ...] = ()

    @property
    def choices(self) -> tuple[object, ...]:
        """The fields of the tree that decide what runs."""
        return self.steps, self.matmuls, self.tile, self.gradients

    def renamed(self, rename: Rename) -> ContractionTree:
        """Return the same tree with other legs."""
        accesses = tuple(replace(access, legs=rename(access.legs)) for access in self.region.accesses)
        return replace(
            self,
            region=Region(accesses, rename(self.region.legs)),  # type: ignore[arg-type]
            steps=tuple(replace(step, legs=rename(step.legs)) for step in self.steps),
            matmuls=tuple(matmul.renamed(rename) for matmul in self.matmuls),
            gradients=tuple(gradient.renamed(rename) for gradient in self.gradients),
        )

    def legs_of(self, value: int) -> tuple[Leg, ...]:
        """Return the legs of a value in no particular order."""
        count = len(self.region.accesses)
        return bare_legs(self.region.accesses[value]) if value < count else self.steps[value - count].legs

    def order(self, value: int) -> tuple[Leg, ...]:
        """Return the legs of a value in memory order, if the tree has layouts."""
        count = len(self.region.accesses)
        return bare_legs(self.region.accesses[value]) if value < count else self.matmuls[value - count].legs


MOST_UNRESOLVED = 6
"""The most reads of a region that may stay unresolved. Others are laid out first, since each doubles the search."""


class Value(NamedTuple):
    """The legs of an intermediate by number: leaves below it, plain indices, and the rest of unresolved reads."""

    leaves: int
    plain: tuple[int, ...]
    unresolved: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices of the value, those of unresolved reads last."""
        return (*self.plain, *(i for _, rest in self.unresolved for i in rest))


T = TypeVar("T")


def arrangements(outer: tuple[T, ...], first: tuple[T, ...], second: tuple[T, ...]) -> tuple[tuple[T, ...], ...]:
    """Return the orders in which a product reads matrices with these sides; a copy takes the first one.

    Vectors with gaps are excluded, because PyTorch multiplies them one by one.
    """
    copied = (*outer, *first, *second)
    return copied, (*first, *outer, *second) if second else copied


def counted_legs(kind: str, operands: Iterable[Sequence[Leg]], legs: Sequence[Leg]) -> tuple[Leg, ...]:
    """Return the legs whose sizes multiply to the operations of a step: those of its result, and the indices it sums.

    A transposed convolution counts every position of its operands instead.

    Args:
        kind: the kind of the step.
        operands: the legs of each operand.
        legs: the legs of the result.
    """
    every = tuple(leg for own in operands for leg in own)
    if kind == "conv_transpose":
        return tuple(dict.fromkeys(every))
    remaining = leg_indices(legs)
    return (*legs, *(index for index in leg_indices(every) if index not in remaining))


def work_of(step: Step, operands: Sequence[Sequence[Leg]], size: Callable[[Iterable[Leg]], Any]) -> Work:
    """Return the work of a step without gradients, as integers or as formulas.

    Args:
        step: the step.
        operands: the legs of each operand.
        size: returns the product of the sizes of some legs.
    """
    left, right = (*map(size, operands), 0)[:2]
    return Work(size(counted_legs(step.kind, operands, step.legs)), left, right, size(step.legs), 0, 0)


def prepare(legs: tuple[Leg, ...], lone: frozenset[Index], most: int) -> list[tuple[StepKind, tuple[Leg, ...]]]:
    """Return the unary steps that make an access with these legs regular, each with the legs of its result.

    A read stays unresolved only if it has at least two indices, each of which occurs once on this access, and also on
    another one or in the result. At most ``most`` reads stay unresolved.
    """
    counts = Counter(i for leg in legs for i in (leg.indices if isinstance(leg, Read) else (leg,)))
    regular_reads = [
        leg
        for leg in legs
        if isinstance(leg, Read) and len(leg.terms) >= 2 and not any(counts[i] > 1 or i in lone for i in leg.indices)
    ]
    laid_out: list[Leg] = []
    for leg in legs:
        if leg in regular_reads[:most]:
            laid_out.append(leg)
        else:
            laid_out.extend(leg.indices if isinstance(leg, Read) else (leg,))
    regular = tuple(dict.fromkeys(laid_out))
    steps: list[tuple[StepKind, tuple[Leg, ...]]] = [] if regular == legs else [("read", regular)]
    remaining = tuple(leg for leg in regular if leg not in lone)
    return steps if remaining == regular else [*steps, ("sum", remaining)]


class Topology:
    """A region by number for one search: which leaf has which index, the numeric sizes, and the price of a step."""

    def __init__(
        self,
        region: Region,
        sizes: Mapping[str, int],
        pricing: Pricing | None = None,
        sliced: tuple[Index, ...] = (),
    ) -> None:
        self.region, self.named, self.sliced = region, sizes, sliced
        self.pricing = pricing or Pricing()
        self.prices: dict[Work, Price] = {}  # of steps that are alike, which large regions have many of
        bare_accesses = [sliced_legs(access, sliced) for access in region.accesses]
        holders = Counter(i for legs in bare_accesses for i in leg_indices(legs))
        lone = frozenset(i for i, count in holders.items() if count == 1 and i not in region.legs)
        self.preparation = []
        self.leaf_legs = []
        unresolved = 0
        for bare in bare_accesses:
            steps = prepare(bare, lone, MOST_UNRESOLVED - unresolved)
            legs = steps[-1][1] if steps else bare
            unresolved += sum(isinstance(leg, Read) for leg in legs)
            self.preparation.append(steps)
            self.leaf_legs.append(legs)
        self.indices = leg_indices(leg for legs in self.leaf_legs for leg in legs)
        self.places = {index: k for k, index in enumerate(self.indices)}
        self.sizes = [evaluate_size(index.size, sizes) for index in self.indices]
        self.is_output = [index in region.legs for index in self.indices]
        self.reads: list[tuple[int, Read]] = []
        self.leaves = [self._leaf(k, legs) for k, legs in enumerate(self.leaf_legs)]
        self.coefficients = [{self.places[i]: c for c, i in read.terms} for _, read in self.reads]
        self.axis_sizes = [evaluate_size(read.leg.size, sizes) for _, read in self.reads]
        self.holders = self._find_holders(self.leaves)

    def _find_holders(self, leaves: Iterable[Value]) -> list[int]:
        """Return for every index the set of leaves that have it."""
        holders = [0] * len(self.indices)
        for leaf in leaves:
            for i in leaf.indices:
                holders[i] |= leaf.leaves
        return holders

    def _leaf(self, k: int, legs: Sequence[Leg]) -> Value:
        unresolved = []
        for leg in legs:
            if isinstance(leg, Read):
                unresolved.append((len(self.reads), tuple(self.places[i] for i in leg.indices)))
                self.reads.append((k, leg))
        return Value(1 << k, tuple(self.places[leg] for leg in legs if isinstance(leg, Index)), tuple(unresolved))

    @property
    def everything(self) -> int:
        """The set of all leaves, one bit per leaf."""
        return (1 << len(self.leaves)) - 1

    def priced(self, pricing: Pricing) -> Topology:
        """Return the same region with other prices."""
        topology = copy(self)
        topology.pricing = pricing
        if pricing.rate != self.pricing.rate:
            topology.prices = {}
        return topology

    def restrict(self, values: Sequence[Value]) -> Topology:
        """Return the topology that has some values as its leaves; indices keep their numbers.

        Args:
            values: values without unresolved reads or common leaves.
        """
        pricing = self.pricing
        trained = sum(1 << k for k, value in enumerate(values) if value.leaves & pricing.trained)
        fixed = sum(1 << k for k, value in enumerate(values) if not value.leaves & ~pricing.fixed)
        topology = self.priced(replace(pricing, trained=trained, fixed=fixed))
        below = sum(value.leaves for value in values)
        topology.is_output = [self.is_alive(i, below) for i in range(len(self.indices))]
        topology.leaves = [Value(1 << k, value.plain, ()) for k, value in enumerate(values)]
        topology.preparation = [[] for _ in values]
        topology.holders = self._find_holders(topology.leaves)
        return topology

    def is_alive(self, index: int, leaves: int) -> bool:
        """Return whether an index is still needed once these leaves are joined."""
        return self.is_output[index] or bool(self.holders[index] & ~leaves)

    def span(self, read: int, rest: Sequence[int]) -> int:
        """Return the number of positions that an unresolved read still ranges over [elements]."""
        coefficients = self.coefficients[read]
        if len(rest) == len(coefficients):
            return self.axis_sizes[read]
        step = gcd(*(coefficients[i] for i in rest))
        return sum(abs(coefficients[i]) // step * (self.sizes[i] - 1) for i in rest) + 1

    def size(self, value: Value) -> int:
        """Return the number of elements of a value [elements]."""
        return prod(self.sizes[i] for i in value.plain) * prod(self.span(r, rest) for r, rest in value.unresolved)

    def open(self, value: Value, read: int) -> Value:
        """Return a value with one of its unresolved reads laid out along its indices."""
        opened = next(rest for r, rest in value.unresolved if r == read)
        unresolved = tuple(entry for entry in value.unresolved if entry[0] != read)
        return Value(value.leaves, value.plain + opened, unresolved)

    def join(self, left: Value, right: Value) -> Value | None:
        """Return the value that one step computes from two, or None if an unresolved read does not allow it."""
        leaves = left.leaves | right.leaves
        plain = [i for i in dict.fromkeys(left.plain + right.plain) if self.is_alive(i, leaves)]
        unresolved = []
        for side, other in ((left, right), (right, left)):
            busy = {i for _, rest in other.unresolved for i in rest}
            for read, rest in side.unresolved:
                dead = [i for i in rest if not self.is_alive(i, leaves)]
                met = [i for i in rest if i in other.plain]
                # A step resolves at most one index of a read: one that the other value has as a plain index, and that
                # nothing else needs.
                if met != dead or len(met) > 1 or not busy.isdisjoint(rest):
                    return None
                remaining = tuple(i for i in rest if i not in dead)
                if len(remaining) >= 2:
                    unresolved.append((read, remaining))
                else:
                    plain.extend(remaining)
        return Value(leaves, tuple(plain), tuple(unresolved))

    def kinds(self, left: Value, right: Value, result: Value) -> tuple[StepKind, ...]:
        """Return the kinds of step that can compute a value from two others."""
        resolved = [[entry for entry in side.unresolved if entry not in result.unresolved] for side in (left, right)]
        if not any(resolved):
            remaining = set(result.plain)
            return ("mul" if remaining.issuperset(left.plain) and remaining.issuperset(right.plain) else "contract",)
        can_transpose = not all(resolved) and all(
            self.is_dense(read, [i for i in rest if self.is_alive(i, result.leaves)]) for read, rest in chain(*resolved)
        )
        return ("conv", "conv_transpose") if can_transpose else ("conv",)

    def is_dense(self, read: int, rest: Iterable[int]) -> bool:
        """Return whether the rest of a read reaches neighbouring positions of a leg that is not cyclic.

        Then every position of the leg has a place in the result for each value of the resolved index.
        """
        return not self.reads[read][1].wrap and gcd(*(self.coefficients[read][i] for i in rest)) == 1

    def volume(self, left: Value, right: Value, result: Value, kind: StepKind) -> int:
        """Return the multiplications of a step, the product of the sizes of its `counted_legs` [MAC]."""
        if kind == "conv_transpose":
            involved, unresolved = {*left.plain, *right.plain}, {*left.unresolved, *right.unresolved}
        else:
            involved, unresolved = {*left.plain, *right.plain, *result.plain}, {*result.unresolved}
        return prod(self.sizes[i] for i in involved) * prod(self.span(r, rest) for r, rest in unresolved)

    def is_too_large(self, value: Value) -> bool:
        """Return whether a value exceeds the limit on elements.

        The result of all leaves never does, since it has to be written.
        """
        most = self.pricing.most_elements
        if most is None or value.leaves == self.everything:
            return False
        return self.size(value) > most and not self.is_folded(value)

    @property
    def unfit(self) -> int:
        """The set of the leaves that are prepared in steps which write more than one may."""
        most = self.pricing.most_elements
        if most is None:
            return 0
        return sum(
            leaf.leaves
            for leaf, steps in zip(self.leaves, self.preparation, strict=True)
            if not self.is_folded(leaf)
            and any(evaluate_size(legs_size(legs), self.named) > most for _, legs in steps if not self._is_result(legs))
        )

    def _is_result(self, legs: Sequence[Leg]) -> bool:
        """Return whether a step on the only leaf writes the result, which may have any size."""
        return len(self.leaves) == 1 and {*legs} == {leg for leg in self.region.legs if leg not in self.sliced}

    def is_folded(self, value: Value) -> bool:
        """Return whether a value is computed before the first call."""
        return not value.leaves & ~self.pricing.fixed and self.pricing.is_folded(value.leaves, self.size(value))

    def price(self, left: Value, right: Value, result: Value) -> Price:
        """Return the objective's price of the cheapest kind of step, or 0 if the result is folded."""
        if self.is_folded(result):
            return 0
        return min(self._price_as(kind, left, right, result) for kind in self.kinds(left, right, result))

    def _price_as(self, kind: StepKind, left: Value, right: Value, result: Value) -> Price:
        grads = (int(bool(value.leaves & self.pricing.trained)) for value in (left, right))
        sizes = (self.size(value) for value in (left, right, result))
        work = Work(self.volume(left, right, result, kind), *sizes, *grads)
        if work not in self.prices:
            self.prices[work] = self.pricing.rate(work)
        return self.prices[work]

    def kind(self, left: Value, right: Value, result: Value) -> StepKind:
        """Return the cheapest kind of step that computes a value from two others, the first of equals."""
        kinds = self.kinds(left, right, result)
        if len(kinds) == 1:
            return kinds[0]
        return min(kinds, key=lambda kind: self._price_as(kind, left, right, result))

    def legs(self, value: Value) -> tuple[Leg, ...]:
        """Return the symbolic legs of a value."""
        plain: list[Leg] = [self.indices[i] for i in value.plain]
        return (*plain, *(self.remaining_read(read, rest) for read, rest in value.unresolved))

    def remaining_read(self, read: int, rest: Sequence[int]) -> Read:
        """Return the rest of a read after its other indices are resolved: positions 0…span-1 of an axis of its own."""
        original = self.reads[read][1]
        if len(rest) == len(original.terms):
            return original
        step = gcd(*(self.coefficients[read][i] for i in rest))
        terms = tuple((self.coefficients[read][i] // step, self.indices[i]) for i in rest)
        least, greatest = position_range(terms)
        return Read(Index(original.leg.name, greatest - least + 1), terms, -least)


def position_range(terms: Iterable[tuple[int, Index]]) -> tuple[sympy.Expr, sympy.Expr]:
    """Return the least and the greatest value of Σ c·i over the indices' ranges."""
    pairs = tuple(terms)
    least = sympy.Add(*(c * (i.size - 1) for c, i in pairs if c < 0))
    greatest = sympy.Add(*(c * (i.size - 1) for c, i in pairs if c > 0))
    return least, greatest
