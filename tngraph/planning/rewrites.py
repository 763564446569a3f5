"""Rewrites of a network before the search: merging linear equations, and cleaning a term into a region.

Every rewrite returns new values and keeps the meaning. Nothing moves across a function. An equation that is read at
affine positions is zero outside its range, and its definition need not be: it is merged into its reader only where each
of its terms has the index that is read so on one tensor alone, as a whole leg. That is zero there, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from tngraph.errors import PlanError
from tngraph.language.network import LONGEST_NAME, Access, Core, Equation, Index, Leg, Network, Read, Term
from tngraph.language.sizes import is_same
from tngraph.planning.region import Region, bare_leg, is_unit, with_terms

MOST_TERMS = 16
"""Distributing a product over sums stops before an equation has more terms than this."""

MOST_GROWTH = 2**20
"""An equation that makes its readers grow by more is not inlined where a file says so (see `_growth`)."""

Renaming = Mapping[Index, Index]
Sources = Mapping[str, Core | Equation]
"""What an access may name."""


def drop_unused(network: Network) -> Network:
    """Remove the equations no output depends on (their params stay: they are part of the module)."""
    needed = {port.name for port in network.outputs}
    for equation in reversed(network.equations):
        if equation.name in needed:
            needed |= {access.source for term in equation.terms for access in term.accesses}
    return replace(network, equations=tuple(e for e in network.equations if e.name in needed))


def reached(network: Network, names: Iterable[str]) -> frozenset[str]:
    """These tensors, and every equation that depends on one of them."""
    found = set(names)
    for equation in network.equations:
        if any(access.source in found for term in equation.terms for access in term.accesses):
            found.add(equation.name)
    return frozenset(found)


def merge_chains(network: Network) -> Network:
    """Inline every linear equation of one term that is used once: no order is lost by it."""
    uses = Counter(a.source for e in network.equations for t in e.terms for a in t.accesses)
    uses.update(port.name for port in network.outputs)
    known = {equation.name: equation for equation in network.equations}
    once = {name for name, e in known.items() if uses[name] == len(e.terms) == 1 and e.function is None}
    taken, sources = {index.name for index in network.indices()}, network.sources()
    merged = []
    for equation in reversed(network.equations):
        if equation.name in known:
            terms = tuple(_expand(term, equation, known, once, taken, sources) for term in equation.terms)
            merged.append(equation if terms == equation.terms else replace(equation, terms=terms))
    return replace(network, equations=tuple(reversed(merged)))


def _expand(
    term: Term, reader: Equation, known: dict[str, Equation], once: set[str], taken: set[str], sources: Sources
) -> Term:
    """A term with the equations that it alone uses written out; these are taken from the known ones."""
    scale, done, ahead = term.scale, list[Access](), list(reversed(term.accesses))
    busy = {*reader.legs, *(i for access in term.accesses for i in access.indices)}
    while ahead:
        access = ahead.pop()
        if access.source in once and _keeps_indices(known[access.source], access, sources):
            equation = known.pop(access.source)
            scale *= equation.terms[0].scale
            written = _instantiate(equation.terms[0], equation, access, busy, taken, sources)
            busy.update(i for each in written for i in each.indices)
            ahead.extend(reversed(written))
        else:
            done.append(access)
    return Term(scale, tuple(done))


def can_inline(network: Network, equation: Equation) -> bool:
    """Whether an equation may be replaced by its terms wherever it is read (and is read at all)."""
    readers = [e for e in network.equations if any(a.source == equation.name for t in e.terms for a in t.accesses)]
    sources = network.sources()
    return (
        equation.function is None and len(readers) > 0 and all(_fits_everywhere(equation, r, sources) for r in readers)
    )


def _fits_everywhere(equation: Equation, reader: Equation, sources: Sources) -> bool:
    """Whether a reader can take the terms of an equation, and does not become too long a sum by it."""
    for term in reader.terms:
        own = [access for access in term.accesses if access.source == equation.name]
        others = [access for access in term.accesses if access.source != equation.name]
        if len(reader.terms) - 1 + len(equation.terms) ** len(own) > max(MOST_TERMS, len(reader.terms)):
            return False
        if not all(_fits(equation, reader.legs, others, access, sources) for access in own):
            return False
    return True


def _fits(
    equation: Equation, legs: Iterable[Index], others: Iterable[Access], access: Access, sources: Sources
) -> bool:
    """Whether every index of an access stands in each term of the equation it reads, or elsewhere in the reader.

    Elsewhere is what stays: the left-hand side, and the accesses of other sources.
    """
    if not _keeps_indices(equation, access, sources):
        return False
    present = [{i for a in inner.accesses for i in a.indices} for inner in equation.terms]
    missing = {
        leg
        for own, leg in zip(equation.legs, access.legs, strict=True)
        if isinstance(leg, Index) and not all(own in indices for indices in present)
    }
    return not missing or missing <= {*legs, *(i for other in others for i in other.indices)}


def _keeps_indices(equation: Equation, access: Access, sources: Sources) -> bool:
    """Whether an access reads what may be read in its place, and none of its indices cancels in a read there."""
    placed = [own for own, leg in zip(equation.legs, access.legs, strict=True) if isinstance(leg, Read)]
    if not all(_is_on_one_leg(own, term, sources) for own in placed for term in equation.terms):
        return False
    renaming = {own: leg for own, leg in zip(equation.legs, access.legs, strict=True) if isinstance(leg, Index)}
    reads = [leg for term in equation.terms for a in term.accesses for leg in a.legs if isinstance(leg, Read)]
    for read in reads:
        totals: Counter[Index] = Counter()
        for coefficient, index in read.terms:
            totals[renaming.get(index, index)] += coefficient
        if 0 in totals.values():
            return False
    return True


def _is_on_one_leg(index: Index, term: Term, sources: Sources) -> bool:
    """Whether an index stands once in a term, as a whole leg, and not on a delta, which ties it to others."""
    holders = [access for access in term.accesses if index in access.indices]
    return (
        len(holders) == 1
        and holders[0].legs.count(index) == 1
        and not _is_delta(holders[0], sources)
        and not any(index in leg.indices for leg in holders[0].legs if isinstance(leg, Read))
    )


def merge(network: Network, inlined: Iterable[str]) -> Network:
    """A network without what is unused, linear chains merged, and these equations inlined one by one.

    Raises:
        PlanError: one of them cannot be inlined, or makes an equation too long.
    """
    merged = merge_chains(drop_unused(network))
    for name in inlined:
        known = {equation.name: equation for equation in merged.equations}
        if name not in known or not can_inline(merged, known[name]):
            raise PlanError(f"the equation {name!r} cannot be written into its readers")
        if _growth(merged, known[name]) > MOST_GROWTH:
            raise PlanError(f"the equation {name!r} is read too often to be written into its readers")
        merged = merge_chains(drop_unused(inline(merged, known[name])))
    return merged


def _growth(network: Network, equation: Equation) -> int:
    """How often a term reads an equation, times the factors it has in its place; of the term with the most."""
    longest = max((len(term.accesses) for term in equation.terms), default=0)
    most = 0
    for term in (term for reader in network.equations for term in reader.terms):
        copies = sum(access.source == equation.name for access in term.accesses)
        most = max(most, copies * (len(term.accesses) - copies + copies * longest))
    return most


def find_inlined(network: Network, merged: Network) -> tuple[str, ...]:
    """The equations that were inlined, in order, where `merge` made the one network of the other.

    An equation is inlined where nothing reads it afterwards: what is inlined later reads what stands before it, so that
    it neither brings a reading back nor takes the last one away.
    """
    reads = {access.source for e in merged.equations for term in e.terms for access in term.accesses}
    network = merge_chains(drop_unused(network))
    names = []
    for equation in reversed(network.equations):
        if equation.name not in reads and can_inline(network, equation):
            network = merge_chains(drop_unused(inline(network, equation)))
            names.append(equation.name)
    return tuple(names)


def inline(network: Network, equation: Equation) -> Network:
    """Replace every reading of an equation by its terms; the equation goes unless it is an output."""
    taken, sources = {index.name for index in network.indices()}, network.sources()
    equations = []
    for reader in network.equations:
        if reader.name == equation.name and all(port.name != reader.name for port in network.outputs):
            continue
        terms = tuple(new for term in reader.terms for new in _distribute(term, reader.legs, equation, taken, sources))
        equations.append(reader if terms == reader.terms else replace(reader, terms=terms))
    return replace(network, equations=tuple(equations))


def _distribute(
    term: Term, legs: tuple[Index, ...], equation: Equation, taken: set[str], sources: Sources
) -> Iterable[Term]:
    """The terms a term of a reader with these legs becomes when every reading of an equation is replaced."""
    ahead = [(term, 0)]
    while ahead:
        term, done = ahead.pop()
        names = (access.source for access in term.accesses[done:])
        position = next((done + k for k, name in enumerate(names) if name == equation.name), None)
        if position is None:
            yield term
            continue
        before, access, after = term.accesses[:position], term.accesses[position], term.accesses[position + 1 :]
        busy = {*legs, *(i for other in term.accesses for i in other.indices)}
        made = []
        for inner in equation.terms:
            middle = _instantiate(inner, equation, access, busy, taken, sources)
            made.append((Term(term.scale * inner.scale, (*before, *middle, *after)), position + len(middle)))
        ahead.extend(reversed(made))


def _instantiate(
    inner: Term, equation: Equation, access: Access, busy: set[Index], taken: set[str], sources: Sources
) -> tuple[Access, ...]:
    """The accesses of a term under the reader's indices; its own summed indices are renamed where they clash."""
    renaming: dict[Index, Index] = {}
    placed: dict[Index, Read] = {}
    for own, leg in zip(equation.legs, access.legs, strict=True):
        if isinstance(leg, Index):
            renaming[own] = leg
        else:
            placed[own] = leg
    for index in (i for a in inner.accesses for i in a.indices):
        if index not in renaming and index not in placed:
            renaming[index] = Index(_fresh(index.name, taken), index.size) if index in busy else index
    return tuple(_place(a, renaming, placed, sources[a.source].legs) for a in inner.accesses)


def _place(access: Access, renaming: Renaming, placed: Mapping[Index, Read], own: Sequence[Index]) -> Access:
    """An access under other indices, some of its legs read at positions."""
    legs = (
        replace(placed[leg], leg=stored) if isinstance(leg, Index) and leg in placed else _rename_leg(leg, renaming)
        for leg, stored in zip(access.legs, own, strict=True)
    )
    return replace(access, legs=tuple(legs))


def _fresh(name: str, taken: set[str]) -> str:
    """A name like this one that no index of the network has."""
    stem = name.rstrip("0123456789").rstrip("_")[: LONGEST_NAME - 10] or "i"
    count = 1
    while f"{stem}_{count}" in taken:
        count += 1
    taken.add(f"{stem}_{count}")
    return f"{stem}_{count}"


def rename(access: Access, renaming: Renaming) -> Access:
    """An access under other indices; a read whose indices fall together adds their coefficients."""
    return replace(access, legs=tuple(_rename_leg(leg, renaming) for leg in access.legs))


def _rename_leg(leg: Leg, renaming: Renaming) -> Leg:
    if isinstance(leg, Index):
        return renaming.get(leg, leg)
    coefficients: dict[Index, int] = {}
    for c, index in leg.terms:
        new = renaming.get(index, index)
        coefficients[new] = coefficients.get(new, 0) + c
    return with_terms(leg, tuple((c, i) for i, c in coefficients.items() if c))


def clean_term(term: Term, legs: tuple[Index, ...], sources: Sources) -> tuple[Region, tuple[tuple[Index, Index], ...]]:
    """A term as a region without deltas and unit legs.

    Args:
        term: the term, its scale left aside.
        legs: the left-hand side.
        sources: what an access may name.

    Returns:
        The region, and each left-hand index the term has (units aside) with the region's index that stands for
        it: one may stand for several, the term being zero off their diagonal.
    """
    deltas = [access for access in term.accesses if _is_delta(access, sources)]
    others = [access for access in term.accesses if access not in deltas]
    find = _merge_deltas(deltas, legs)
    renaming = {i: find(i) for a in term.accesses for i in a.indices}
    renamed = [rename(access, renaming) for access in others]
    accesses = [replace(access, legs=tuple(map(bare_leg, access.legs))) for access in renamed]
    standing = {i for access in accesses for i in access.indices}
    for delta in deltas:
        kept = rename(delta, renaming)
        if not standing.issuperset(kept.indices):
            accesses.append(kept)
            standing.update(kept.indices)
    pattern = tuple((leg, renaming[leg]) for leg in legs if leg in renaming and not is_unit(leg))
    return Region(tuple(accesses), tuple(dict.fromkeys(inner for _, inner in pattern))), pattern


def _is_delta(access: Access, sources: Sources) -> bool:
    source = sources[access.source]
    if not isinstance(source, Core) or source.init is None or source.role != "const":
        return False
    is_square = len(source.legs) > 0 and all(is_same(leg.size, source.legs[0].size) for leg in source.legs)
    plain = not any(isinstance(leg, Read) for leg in access.legs)
    return bool(plain and is_square and source.init.kind in ("delta", "eye"))


def _merge_deltas(deltas: Iterable[Access], legs: tuple[Index, ...]) -> Callable[[Index], Index]:
    """Which index stands for each: left-hand ones first, so that results keep the user's names."""
    parent: dict[Index, Index] = {}

    def find(index: Index) -> Index:
        while index in parent:
            index = parent[index]
        return index

    for delta in deltas:
        roots = sorted({find(i): None for i in delta.indices}, key=lambda i: legs.index(i) if i in legs else len(legs))
        parent.update(dict.fromkeys(roots[1:], roots[0]))
    return find
