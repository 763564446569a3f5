"""Regions, steps and trees: what the search sees, and what one step does to the legs.

A `Region` is one product of accesses to be contracted. Its leaves are first *prepared* (repeated indices and
irregular reads laid out, indices that stand on one access alone summed); from then on each value is a set of
plain indices and *folded* reads. A folded read is a leg still addressed by a position Σ c·i; joining it with
the tensor that holds one of its indices resolves that index (a convolution step). Every position of the result may
collect what it reads, or every position of the leg may be spread over the results that read it, as a transposed
convolution does. Opening a read lays its indices out as plain ones (an unfold), after which ordinary steps apply. All
of that is part of the search.

Source: the folded/opened distinction is ours; with no reads this is the ordinary contraction tree of
opt_einsum and cotengra, hyperedges included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import gcd, prod
from typing import Literal, NamedTuple, TypeVar

import sympy

from tngraph.language.network import Access, Index, Leg, Read
from tngraph.language.sizes import evaluate_size, is_same, product, symbol
from tngraph.planning.machine import Work
from tngraph.planning.objectives import Price, Pricing

Rename = Callable[[Iterable[Leg]], tuple[Leg, ...]]
"""What gives legs other names, one by one."""
StepKind = Literal["read", "sum", "contract", "mul", "conv", "conv_transpose"]


@dataclass(frozen=True, slots=True)
class Region:
    """One merged term between barriers: accesses, and the indices its result keeps.

    Every leg of an access is as `bare_leg` makes it, so that what searches, slices, writes and loads it sees the same.
    """

    accesses: tuple[Access, ...]
    legs: tuple[Index, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on one or two values; ``legs`` are those of its result."""

    operands: tuple[int, ...]
    legs: tuple[Leg, ...]
    kind: StepKind


class Form(NamedTuple):
    """How a step is one kernel, and the order its result lies in: `outer`, `rows`, `columns`.

    A contraction is as many matrix products as the outer legs have values; one operand gives the rows, the other the
    columns, and the legs `summed` lie in that order in both. A matrix that is `turned` lies transposed: that of the
    rows with the summed legs before its rows, that of the columns with them after its columns. Every other step has
    an order alone, as its columns.
    """

    outer: tuple[Leg, ...]
    rows: tuple[Leg, ...]
    columns: tuple[Leg, ...]
    summed: tuple[Leg, ...] = ()
    turned: tuple[bool, bool] = (False, False)

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs of the result in memory order."""
        return (*self.outer, *self.rows, *self.columns)

    @property
    def is_matrix(self) -> bool:
        """Whether it is a product of matrices, and not of entries."""
        return bool(self.outer or self.rows or self.summed)

    def renamed(self, rename: Rename) -> Form:
        """The same with other legs."""
        return Form(rename(self.outer), rename(self.rows), rename(self.columns), rename(self.summed), self.turned)


class Gradient(NamedTuple):
    """How the gradient of an operand of a step is made: of that of the step's result and the other operand.

    Attributes:
        step: the number of the step.
        operand: the value whose gradient it is.
        form: of the product; that of the tree's result lies in the order of the region.
        is_arranged: whether the other operand is taken as the step's own product takes it, in an order of its own.
        added: the outer legs of the form, where its products are added up: then it needs no copies to sum over these.
    """

    step: int
    operand: int
    form: Form
    is_arranged: bool = False
    added: tuple[Leg, ...] = ()

    def renamed(self, rename: Rename) -> Gradient:
        """The same with other legs."""
        return self._replace(form=self.form.renamed(rename), added=rename(self.added))


@dataclass(frozen=True, slots=True)
class Tile:
    """An index that the steps on it run for so many values of at a time, one after the other.

    Attributes:
        index: of a run-time size of its own, or of a number; then what stands on it is made of params alone.
        size: how many values a part has, but for the last one.
    """

    index: Index
    size: int

    @property
    def is_runtime(self) -> bool:
        """Whether it is known at each call only how many values there are."""
        return not self.index.size.is_Integer

    @property
    def part(self) -> Index:
        """The index in a part. One of run time is the same there, since a part is run as a smaller whole."""
        return self.index if self.is_runtime else Index(self.index.name, symbol(f"{self.index.name} part"))

    def enter(self, legs: Iterable[Leg]) -> tuple[Leg, ...]:
        """Legs as they are in a part."""
        return tuple(self.part if leg == self.index else leg for leg in legs)

    def leave(self, legs: Iterable[Leg]) -> tuple[Leg, ...]:
        """The same legs of the whole."""
        return tuple(self.index if leg == self.part else leg for leg in legs)


@dataclass(frozen=True, slots=True)
class ContractionTree:
    """Single assignment: values 0…n-1 are the region's accesses, step k makes value n+k; the last is the result.

    Attributes:
        region: what is contracted.
        steps: how.
        is_proven: whether no other tree is cheaper.
        is_pinned: whether its order was given by hand.
        sliced: indices that the steps run for one value at a time, and that stand on none of them.
        forms: of every step; empty where each step takes its operands as they come.
        tile: what the steps run for in parts, so that a part stays in cache.
        gradients: of every value but the result, from the last step to the first; empty where PyTorch finds them.
    """

    region: Region
    steps: tuple[Step, ...]
    is_proven: bool
    is_pinned: bool = False
    sliced: tuple[Index, ...] = ()
    forms: tuple[Form, ...] = ()
    tile: Tile | None = None
    gradients: tuple[Gradient, ...] = ()

    @property
    def way(self) -> tuple[object, ...]:
        """All that decides what runs."""
        return self.steps, self.forms, self.tile, self.gradients

    def renamed(self, rename: Rename) -> ContractionTree:
        """The same with other legs."""
        accesses = tuple(replace(access, legs=rename(access.legs)) for access in self.region.accesses)
        return replace(
            self,
            region=Region(accesses, rename(self.region.legs)),  # type: ignore[arg-type]
            steps=tuple(replace(step, legs=rename(step.legs)) for step in self.steps),
            forms=tuple(form.renamed(rename) for form in self.forms),
            gradients=tuple(each.renamed(rename) for each in self.gradients),
        )

    def legs_of(self, value: int) -> tuple[Leg, ...]:
        """The legs of a value in no order."""
        count = len(self.region.accesses)
        return bare_legs(self.region.accesses[value]) if value < count else self.steps[value - count].legs

    def order(self, value: int) -> tuple[Leg, ...]:
        """The legs of a value in memory order, where the tree is laid out."""
        count = len(self.region.accesses)
        return bare_legs(self.region.accesses[value]) if value < count else self.forms[value - count].legs


MOST_FOLDED = 6
"""Reads of one region that may stay folded; further ones are laid out first, since each doubles what is searched."""


class Value(NamedTuple):
    """The legs of an intermediate by number: leaves below it, plain indices, folded reads with what remains of them."""

    leaves: int
    plain: tuple[int, ...]
    folded: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def indices(self) -> tuple[int, ...]:
        """All that it has, those of folded reads last."""
        return (*self.plain, *(i for _, rest in self.folded for i in rest))


def is_unit(index: Index) -> bool:
    """Whether an index has the literal size 1: it carries nothing and stands on no step."""
    return bool(index.size == 1)


def bare_legs(access: Access) -> tuple[Leg, ...]:
    """The legs of an access of a region without its unit indices."""
    return tuple(leg for leg in access.legs if not (isinstance(leg, Index) and is_unit(leg)))


def bare_leg(leg: Leg) -> Leg:
    """Return a leg as regions have it: a read lacks unit indices, and is the index where it only names one."""
    if not isinstance(leg, Read):
        return leg
    read = with_terms(leg, tuple(term for term in leg.terms if not is_unit(term[1])))
    if len(read.terms) == 1 and read.offset == 0:
        coefficient, index = read.terms[0]
        if coefficient == 1 and is_same(read.leg.size, index.size):
            return index
    return read


def leg_size(leg: Leg) -> sympy.Expr:
    """The elements along a leg."""
    return leg.leg.size if isinstance(leg, Read) else leg.size


def legs_size(legs: Sequence[Leg]) -> sympy.Expr:
    """The elements of a tensor with these legs."""
    return product(leg_size(leg) for leg in legs)


def depends_on(legs: Iterable[Leg], names: Collection[str]) -> bool:
    """Whether the size of a leg is made of one of some named sizes."""
    return any(str(size) in names for leg in legs for size in leg_size(leg).free_symbols)


def sliced_legs(access: Access, sliced: Sequence[Index]) -> tuple[Leg, ...]:
    """The bare legs of an access at one value of some indices."""
    return tuple(leg for leg in bare_legs(access) if leg not in sliced)


def with_terms(read: Read, terms: tuple[tuple[int, Index], ...]) -> Read:
    """A read at other terms; a cyclic one that has none left is at a constant position."""
    if terms or not read.wrap:
        return replace(read, terms=terms)
    return Read(read.leg, (), sympy.Mod(read.offset, read.leg.size))


T = TypeVar("T")


def arrangements(outer: tuple[T, ...], first: tuple[T, ...], second: tuple[T, ...]) -> tuple[tuple[T, ...], ...]:
    """The orders in which matrices with these sides are taken as they lie; a copy is made in the first one.

    Vectors with gaps are not taken: PyTorch multiplies them one by one.
    """
    copied = (*outer, *first, *second)
    return copied, (*first, *outer, *second) if second else copied


def leg_indices(legs: Iterable[Leg]) -> tuple[Index, ...]:
    """Every index legs depend on, once, in order of mention."""
    return tuple(dict.fromkeys(i for leg in legs for i in (leg.indices if isinstance(leg, Read) else (leg,))))


def counted_legs(kind: str, operands: Iterable[Sequence[Leg]], legs: Sequence[Leg]) -> tuple[Leg, ...]:
    """The legs whose sizes multiply to the operations of a step: those of its result, and the indices it sums.

    A transposed convolution meets every position of its operands instead.

    Args:
        kind: of the step.
        operands: the legs of each.
        legs: of the result.
    """
    every = tuple(leg for each in operands for leg in each)
    if kind == "conv_transpose":
        return tuple(dict.fromkeys(every))
    kept = leg_indices(legs)
    return (*legs, *(index for index in leg_indices(every) if index not in kept))


def prepare(legs: tuple[Leg, ...], lone: frozenset[Index], most: int) -> list[tuple[StepKind, tuple[Leg, ...]]]:
    """The unary steps that make an access with these legs regular, with the legs each leaves behind.

    A read stays folded only if it has two indices or more, none of which stands elsewhere on the access or on
    this access alone; and at most so many do.
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
    kept = tuple(leg for leg in regular if leg not in lone)
    return steps if kept == regular else [*steps, ("sum", kept)]


class Topology:
    """A region by number: who holds which index, at numeric sizes, and what a step costs. Made once per search."""

    def __init__(
        self,
        region: Region,
        sizes: Mapping[str, int],
        pricing: Pricing | None = None,
        sliced: tuple[Index, ...] = (),
    ) -> None:
        self.region, self.named, self.sliced = region, sizes, sliced
        self.pricing = pricing or Pricing()
        given = [sliced_legs(access, sliced) for access in region.accesses]
        holders = Counter(i for legs in given for i in leg_indices(legs))
        lone = frozenset(i for i, count in holders.items() if count == 1 and i not in region.legs)
        self.preparation = []
        self.leaf_legs = []
        folded = 0
        for bare in given:
            steps = prepare(bare, lone, MOST_FOLDED - folded)
            legs = steps[-1][1] if steps else bare
            folded += sum(isinstance(leg, Read) for leg in legs)
            self.preparation.append(steps)
            self.leaf_legs.append(legs)
        self.indices = leg_indices(leg for legs in self.leaf_legs for leg in legs)
        self.number = {index: k for k, index in enumerate(self.indices)}
        self.sizes = [evaluate_size(index.size, sizes) for index in self.indices]
        self.is_output = [index in region.legs for index in self.indices]
        self.reads: list[tuple[int, Read]] = []
        self.leaves = [self._leaf(k, legs) for k, legs in enumerate(self.leaf_legs)]
        self.coefficients = [{self.number[i]: c for c, i in read.terms} for _, read in self.reads]
        self.axis_sizes = [evaluate_size(read.leg.size, sizes) for _, read in self.reads]
        self.holders = self._find_holders(self.leaves)

    def _find_holders(self, leaves: Iterable[Value]) -> list[int]:
        """The set of leaves that have an index, for every index."""
        holders = [0] * len(self.indices)
        for leaf in leaves:
            for i in leaf.indices:
                holders[i] |= leaf.leaves
        return holders

    def _leaf(self, k: int, legs: Sequence[Leg]) -> Value:
        folded = []
        for leg in legs:
            if isinstance(leg, Read):
                folded.append((len(self.reads), tuple(self.number[i] for i in leg.indices)))
                self.reads.append((k, leg))
        return Value(1 << k, tuple(self.number[leg] for leg in legs if isinstance(leg, Index)), tuple(folded))

    @cached_property
    def everything(self) -> int:
        """The set of all leaves."""
        return (1 << len(self.leaves)) - 1

    def priced(self, pricing: Pricing) -> Topology:
        """The same region with other prices."""
        made = copy(self)
        for name in ("everything", "unfit"):
            made.__dict__.pop(name, None)
        made.pricing = pricing
        return made

    def part(self, values: Sequence[Value]) -> Topology:
        """What joins some values, as if these were the leaves; indices keep their numbers.

        Args:
            values: of different leaves, without folded reads.
        """
        known = self.pricing
        trained = sum(1 << k for k, value in enumerate(values) if value.leaves & known.trained)
        fixed = sum(1 << k for k, value in enumerate(values) if not value.leaves & ~known.fixed)
        made = self.priced(replace(known, trained=trained, fixed=fixed))
        below = sum(value.leaves for value in values)
        made.is_output = [self.is_alive(i, below) for i in range(len(self.indices))]
        made.leaves = [Value(1 << k, value.plain, ()) for k, value in enumerate(values)]
        made.preparation = [[] for _ in values]
        made.holders = self._find_holders(made.leaves)
        return made

    def is_alive(self, index: int, leaves: int) -> bool:
        """Whether an index is still needed once these leaves are joined."""
        return self.is_output[index] or bool(self.holders[index] & ~leaves)

    def span(self, read: int, rest: Sequence[int]) -> int:
        """The positions a folded read still ranges over [elements]."""
        coefficients = self.coefficients[read]
        if len(rest) == len(coefficients):
            return self.axis_sizes[read]
        step = gcd(*(coefficients[i] for i in rest))
        return sum(abs(coefficients[i]) // step * (self.sizes[i] - 1) for i in rest) + 1

    def size(self, value: Value) -> int:
        """The elements of a value."""
        return prod(self.sizes[i] for i in value.plain) * prod(self.span(r, rest) for r, rest in value.folded)

    def open(self, value: Value, read: int) -> Value:
        """A value with one folded read laid out along its indices."""
        opened = next(rest for r, rest in value.folded if r == read)
        folded = tuple(entry for entry in value.folded if entry[0] != read)
        return Value(value.leaves, value.plain + opened, folded)

    def join(self, left: Value, right: Value) -> Value | None:
        """The value one step makes of two, or None where a folded read stands in the way."""
        leaves = left.leaves | right.leaves
        plain = [i for i in dict.fromkeys(left.plain + right.plain) if self.is_alive(i, leaves)]
        folded = []
        for side, other in ((left, right), (right, left)):
            busy = {i for _, rest in other.folded for i in rest}
            for read, rest in side.folded:
                dead = [i for i in rest if not self.is_alive(i, leaves)]
                met = [i for i in rest if i in other.plain]
                if met != dead or len(met) > 1 or not busy.isdisjoint(rest):
                    return None
                kept = tuple(i for i in rest if i not in dead)
                if len(kept) >= 2:
                    folded.append((read, kept))
                else:
                    plain.extend(kept)
        return Value(leaves, tuple(plain), tuple(folded))

    def kinds(self, left: Value, right: Value, result: Value) -> tuple[StepKind, ...]:
        """What the step may be that makes a value of two."""
        resolved = [[entry for entry in side.folded if entry not in result.folded] for side in (left, right)]
        if not any(resolved):
            kept = set(result.plain)
            return ("mul" if kept.issuperset(left.plain) and kept.issuperset(right.plain) else "contract",)
        can_transpose = not all(resolved) and all(
            self.is_dense(read, [i for i in rest if self.is_alive(i, result.leaves)]) for read, rest in chain(*resolved)
        )
        return ("conv", "conv_transpose") if can_transpose else ("conv",)

    def is_dense(self, read: int, rest: Iterable[int]) -> bool:
        """Whether what remains of a read reaches neighbouring positions of a leg that ends.

        Then every position of the leg has a place in the result for each value of the index that is resolved.
        """
        return not self.reads[read][1].wrap and gcd(*(self.coefficients[read][i] for i in rest)) == 1

    def volume(self, left: Value, right: Value, result: Value, kind: StepKind) -> int:
        """The multiplications of a step: those of the sizes of `counted_legs` [MAC]."""
        if kind == "conv_transpose":
            involved, folded = {*left.plain, *right.plain}, {*left.folded, *right.folded}
        else:
            involved, folded = {*left.plain, *right.plain, *result.plain}, {*result.folded}
        return prod(self.sizes[i] for i in involved) * prod(self.span(r, rest) for r, rest in folded)

    def is_too_large(self, value: Value) -> bool:
        """Whether a value has more elements than one may have; the result of all has what it has."""
        most = self.pricing.most_elements
        if most is None or value.leaves == self.everything:
            return False
        return self.size(value) > most and not self.is_folded(value)

    @cached_property
    def unfit(self) -> int:
        """The set of the leaves that are prepared in steps which write more than one may.

        The last step of a leaf that is alone writes the result, which has what it has.
        """
        most = self.pricing.most_elements
        if most is None:
            return 0
        inner = slice(-1) if len(self.leaves) == 1 else slice(None)
        return sum(
            leaf.leaves
            for leaf, steps in zip(self.leaves, self.preparation, strict=True)
            if not self.is_folded(leaf)
            and any(evaluate_size(legs_size(legs), self.named) > most for _, legs in steps[inner])
        )

    def is_folded(self, value: Value) -> bool:
        """Whether a value is made before the first call."""
        return not value.leaves & ~self.pricing.fixed and self.pricing.is_folded(value.leaves, self.size(value))

    def price(self, left: Value, right: Value, result: Value) -> Price:
        """What the objective says of a step of the cheapest kind; nothing where its result is folded."""
        if self.is_folded(result):
            return 0
        return min(self._price_as(kind, left, right, result) for kind in self.kinds(left, right, result))

    def _price_as(self, kind: StepKind, left: Value, right: Value, result: Value) -> Price:
        grads = (int(bool(value.leaves & self.pricing.trained)) for value in (left, right))
        sizes = (self.size(value) for value in (left, right, result))
        price: Price = self.pricing.rate(Work(self.volume(left, right, result, kind), *sizes, *grads))
        return price

    def kind(self, left: Value, right: Value, result: Value) -> StepKind:
        """The cheapest kind of step that makes a value of two, the first of equals."""
        kinds = self.kinds(left, right, result)
        if len(kinds) == 1:
            return kinds[0]
        return min(kinds, key=lambda kind: self._price_as(kind, left, right, result))

    def legs(self, value: Value) -> tuple[Leg, ...]:
        """The symbolic legs of a value."""
        plain: list[Leg] = [self.indices[i] for i in value.plain]
        return (*plain, *(self.folded_leg(read, rest) for read, rest in value.folded))

    def folded_leg(self, read: int, rest: Sequence[int]) -> Read:
        """What remains of a read once its other indices are resolved: positions 0…span-1 of its own axis."""
        original = self.reads[read][1]
        if len(rest) == len(original.terms):
            return original
        step = gcd(*(self.coefficients[read][i] for i in rest))
        terms = tuple((self.coefficients[read][i] // step, self.indices[i]) for i in rest)
        least, greatest = position_range(terms)
        return Read(Index(original.leg.name, greatest - least + 1), terms, -least)


def position_range(terms: Iterable[tuple[int, Index]]) -> tuple[sympy.Expr, sympy.Expr]:
    """The least and the greatest value of Σ c·i over the indices' ranges."""
    pairs = tuple(terms)
    least = sympy.Add(*(c * (i.size - 1) for c, i in pairs if c < 0))
    greatest = sympy.Add(*(c * (i.size - 1) for c, i in pairs if c > 0))
    return least, greatest
