"""Cleaning: one term of an equation as the region that the search sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from tngraph.language.legs import bare_leg, is_unit
from tngraph.language.network import Access, Index, Term
from tngraph.language.rewrites import Sources, is_delta, rename
from tngraph.search.region import Region


def clean_term(term: Term, legs: tuple[Index, ...], sources: Sources) -> tuple[Region, tuple[tuple[Index, Index], ...]]:
    """Return a term as a region without deltas and unit legs.

    Args:
        term: the term; its scale is ignored.
        legs: the left-hand side.
        sources: the tensors that an access may name.

    Returns:
        The region, and each left-hand index of the term, except units, with the region's index that stands for it. One
            index may stand for several; the term is then zero off their diagonal.
    """
    deltas = [access for access in term.accesses if is_delta(access, sources)]
    others = [access for access in term.accesses if access not in deltas]
    find = _merge_deltas(deltas, legs)
    renaming = {i: find(i) for a in term.accesses for i in a.indices}
    renamed = [rename(access, renaming) for access in others]
    accesses = [replace(access, legs=tuple(map(bare_leg, access.legs))) for access in renamed]
    standing = {i for access in accesses for i in access.indices}
    for delta in deltas:
        delta_access = rename(delta, renaming)
        if not standing.issuperset(delta_access.indices):
            accesses.append(delta_access)
            standing.update(delta_access.indices)
    pattern = tuple((leg, renaming[leg]) for leg in legs if leg in renaming and not is_unit(leg))
    return Region(tuple(accesses), tuple(dict.fromkeys(inner for _, inner in pattern))), pattern


def _merge_deltas(deltas: Iterable[Access], legs: tuple[Index, ...]) -> Callable[[Index], Index]:
    """Return a function from each index to the one that stands for it.

    Left-hand indices come first, so that results keep the user's names.
    """
    parent: dict[Index, Index] = {}

    def find(index: Index) -> Index:
        while index in parent:
            index = parent[index]
        return index

    for delta in deltas:
        roots = sorted({find(i): None for i in delta.indices}, key=lambda i: legs.index(i) if i in legs else len(legs))
        parent.update(dict.fromkeys(roots[1:], roots[0]))
    return find
