"""Legs as tensors have them: their sizes, their indices, and the form that regions keep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import sympy

from tngraph.language.network import Access, Index, Leg, Read
from tngraph.language.sizes import is_same, product


def is_unit(index: Index) -> bool:
    """Return whether an index has the literal size 1. Such an index carries nothing, and no step has it."""
    return bool(index.size == 1)


def bare_legs(access: Access) -> tuple[Leg, ...]:
    """Return the legs of an access of a region without its unit indices."""
    return tuple(leg for leg in access.legs if not (isinstance(leg, Index) and is_unit(leg)))


def bare_leg(leg: Leg) -> Leg:
    """Return a leg in the form that regions have.

    A read has no unit indices. It is replaced by the index if it only names one.
    """
    if not isinstance(leg, Read):
        return leg
    read = with_terms(leg, tuple(term for term in leg.terms if not is_unit(term[1])))
    if len(read.terms) == 1 and read.offset == 0:
        coefficient, index = read.terms[0]
        if coefficient == 1 and is_same(read.leg.size, index.size):
            return index
    return read


def leg_size(leg: Leg) -> sympy.Expr:
    """Return the number of elements along a leg."""
    return leg.leg.size if isinstance(leg, Read) else leg.size


def legs_size(legs: Sequence[Leg]) -> sympy.Expr:
    """Return the number of elements of a tensor with these legs."""
    return product(leg_size(leg) for leg in legs)


def depends_on(legs: Iterable[Leg], names: Collection[str]) -> bool:
    """Return whether the size of a leg depends on one of some named sizes."""
    return any(str(size) in names for leg in legs for size in leg_size(leg).free_symbols)


def sliced_legs(access: Access, sliced: Sequence[Index]) -> tuple[Leg, ...]:
    """Return the bare legs of an access at one value of some indices."""
    return tuple(leg for leg in bare_legs(access) if leg not in sliced)


def with_terms(read: Read, terms: tuple[tuple[int, Index], ...]) -> Read:
    """Return a read with other terms. A cyclic read without terms is at a constant position."""
    if terms or not read.wrap:
        return replace(read, terms=terms)
    return Read(read.leg, (), sympy.Mod(read.offset, read.leg.size))


def leg_indices(legs: Iterable[Leg]) -> tuple[Index, ...]:
    """Return every index that legs depend on, once, in order of mention."""
    return tuple(dict.fromkeys(i for leg in legs for i in (leg.indices if isinstance(leg, Read) else (leg,))))


Rename = Callable[[Iterable[Leg]], tuple[Leg, ...]]
"""A function that renames legs one by one."""
