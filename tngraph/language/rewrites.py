"""Rewrites of a network before the search: merging linear equations, and cleaning a term into a region.

Every rewrite returns new values and keeps the meaning. No rewrite moves anything across a function.

An equation that is read at affine positions is zero outside its range, but its definition need not be. So it is merged
into its reader only if, in each of its terms, the index that is read this way is a whole leg of only one tensor. The
term is then zero outside the range too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tngraph.errors import PlanError
from tngraph.language.legs import with_terms
from tngraph.language.network import LONGEST_NAME, Access, Core, Equation, Index, Leg, Network, Read, Term
from tngraph.language.sizes import is_same

MOST_TERMS = 16
"""The most terms that an equation may get when products are distributed over sums."""

MOST_GROWTH = 2**20
"""The most growth of a reader when a file requests to inline an equation (see `_growth`)."""

Renaming = Mapping[Index, Index]
Sources = Mapping[str, Core | Equation]
"""The tensors that an access may name."""


def drop_unused(network: Network) -> Network:
    """Remove the equations that no output depends on. Their params stay, as parts of the module."""
    needed = {port.name for port in network.outputs}
    for equation in reversed(network.equations):
        if equation.name in needed:
            needed |= {access.source for term in equation.terms for access in term.accesses}
    return replace(network, equations=tuple(e for e in network.equations if e.name in needed))


def reached(network: Network, names: Iterable[str]) -> frozenset[str]:
    """Return these tensors, and every equation that depends on one of them."""
    names_reached = set(names)
    for equation in network.equations:
        if any(access.source in names_reached for term in equation.terms for access in term.accesses):
            names_reached.add(equation.name)
    return frozenset(names_reached)


def merge_chains(network: Network) -> Network:
    """Inline every linear equation that has one term and is used once, which loses no contraction order."""
    uses = Counter(a.source for e in network.equations for t in e.terms for a in t.accesses)
    uses.update(port.name for port in network.outputs)
    remaining = {equation.name: equation for equation in network.equations}
    once = {name for name, e in remaining.items() if uses[name] == len(e.terms) == 1 and e.function is None}
    taken, sources = {index.name for index in network.indices()}, network.sources()
    merged = []
    # Readers come first, and take the equations that only they use out of the remaining ones.
    for equation in reversed(network.equations):
        if equation.name in remaining:
            terms = tuple(_expand(term, equation, remaining, once, taken, sources) for term in equation.terms)
            merged.append(equation if terms == equation.terms else replace(equation, terms=terms))
    return replace(network, equations=tuple(reversed(merged)))


def _expand(
    term: Term, reader: Equation, equations: dict[str, Equation], once: set[str], taken: set[str], sources: Sources
) -> Term:
    """Return a term in which the equations that only it uses are replaced by their terms.

    These equations are removed from ``equations``.
    """
    scale, done, ahead = term.scale, list[Access](), list(reversed(term.accesses))
    busy = {*reader.legs, *(i for access in term.accesses for i in access.indices)}
    while ahead:
        access = ahead.pop()
        if access.source in once and _keeps_indices(equations[access.source], access, sources):
            equation = equations.pop(access.source)
            scale *= equation.terms[0].scale
            written = _instantiate(equation.terms[0], equation, access, busy, taken, sources)
            busy.update(i for other in written for i in other.indices)
            ahead.extend(reversed(written))
        else:
            done.append(access)
    return Term(scale, tuple(done))


def can_inline(network: Network, equation: Equation) -> bool:
    """Return whether an equation is read, and may be replaced by its terms wherever it is read."""
    readers = [e for e in network.equations if any(a.source == equation.name for t in e.terms for a in t.accesses)]
    sources = network.sources()
    return (
        equation.function is None and len(readers) > 0 and all(_fits_everywhere(equation, r, sources) for r in readers)
    )


def _fits_everywhere(equation: Equation, reader: Equation, sources: Sources) -> bool:
    """Return whether a reader can take the terms of an equation without becoming too long a sum."""
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
    """Return whether every index of an access occurs in each term of the equation it reads, or elsewhere in the reader.

    Elsewhere means where it stays: the left-hand side, and the accesses of other sources.
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
    """Return whether an equation's terms may be read as an access reads the equation.

    No index may then cancel in a read.
    """
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
    """Return whether an index occurs once in a term, as a whole leg.

    A leg of a delta does not count, since the delta ties it to other indices.
    """
    holders = [access for access in term.accesses if index in access.indices]
    return (
        len(holders) == 1
        and holders[0].legs.count(index) == 1
        and not is_delta(holders[0], sources)
        and not any(index in leg.indices for leg in holders[0].legs if isinstance(leg, Read))
    )


def merge(network: Network, inlined: Iterable[str]) -> Network:
    """Return a network without unused equations, with linear chains merged and with some equations inlined one by one.

    Raises:
        PlanError: one of these equations cannot be inlined, or would make an equation too long.
    """
    merged = merge_chains(drop_unused(network))
    for name in inlined:
        equations = {equation.name: equation for equation in merged.equations}
        if name not in equations or not can_inline(merged, equations[name]):
            raise PlanError(f"the equation {name!r} cannot be written into its readers")
        if _growth(merged, equations[name]) > MOST_GROWTH:
            raise PlanError(f"the equation {name!r} is read too often to be written into its readers")
        merged = merge_chains(drop_unused(inline(merged, equations[name])))
    return merged


def _growth(network: Network, equation: Equation) -> int:
    """Return the growth of the term that grows most if an equation is inlined.

    The growth is the number of readings times the number of factors afterwards.
    """
    longest = max((len(term.accesses) for term in equation.terms), default=0)
    most = 0
    for term in (term for reader in network.equations for term in reader.terms):
        copies = sum(access.source == equation.name for access in term.accesses)
        most = max(most, copies * (len(term.accesses) - copies + copies * longest))
    return most


def find_inlined(network: Network, merged: Network) -> tuple[str, ...]:
    """Return the equations that were inlined, in order, given the networks before and after `merge`.

    An equation was inlined if nothing reads it afterwards. Equations inlined later read only earlier ones, so they
    neither bring a reading back nor remove the last one.
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
    """Replace every reading of an equation by its terms, and remove the equation unless it is an output."""
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
    """Yield the terms that a reader's term becomes when every reading of an equation is replaced."""
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
        replaced = []
        for inner in equation.terms:
            middle = _instantiate(inner, equation, access, busy, taken, sources)
            replaced.append((Term(term.scale * inner.scale, (*before, *middle, *after)), position + len(middle)))
        ahead.extend(reversed(replaced))


def _instantiate(
    inner: Term, equation: Equation, access: Access, busy: set[Index], taken: set[str], sources: Sources
) -> tuple[Access, ...]:
    """Return the accesses of a term under the reader's indices. Its own summed indices are renamed if they clash."""
    renaming: dict[Index, Index] = {}
    placed: dict[Index, Read] = {}
    for own, leg in zip(equation.legs, access.legs, strict=True):
        if isinstance(leg, Index):
            renaming[own] = leg
        else:
            placed[own] = leg
    for index in (i for a in inner.accesses for i in a.indices):
        if index not in renaming and index not in placed:
            renaming[index] = Index(fresh_name(index.name, taken), index.size) if index in busy else index
    return tuple(_place(a, renaming, placed, sources[a.source].legs) for a in inner.accesses)


def _place(access: Access, renaming: Renaming, placed: Mapping[Index, Read], own: Sequence[Index]) -> Access:
    """Return an access under other indices, with some of its legs read at positions."""
    legs = (
        replace(placed[leg], leg=stored) if isinstance(leg, Index) and leg in placed else _rename_leg(leg, renaming)
        for leg, stored in zip(access.legs, own, strict=True)
    )
    return replace(access, legs=tuple(legs))


def fresh_name(name: str, taken: set[str]) -> str:
    """Return a name similar to this one that is not among the taken ones, and add it to them."""
    stem = name.rstrip("0123456789").rstrip("_")[: LONGEST_NAME - 10] or "i"
    count = 1
    while f"{stem}_{count}" in taken:
        count += 1
    taken.add(f"{stem}_{count}")
    return f"{stem}_{count}"


def rename(access: Access, renaming: Renaming) -> Access:
    """Return an access under other indices. If indices of a read become equal, their coefficients are added."""
    return replace(access, legs=tuple(_rename_leg(leg, renaming) for leg in access.legs))


def _rename_leg(leg: Leg, renaming: Renaming) -> Leg:
    if isinstance(leg, Index):
        return renaming.get(leg, leg)
    coefficients: dict[Index, int] = {}
    for c, index in leg.terms:
        new = renaming.get(index, index)
        coefficients[new] = coefficients.get(new, 0) + c
    return with_terms(leg, tuple((c, i) for i, c in coefficients.items() if c))


def is_delta(access: Access, sources: Sources) -> bool:
    """Return whether an access is a constant that is 1 where all its indices agree, and else 0."""
    source = sources[access.source]
    if not isinstance(source, Core) or source.init is None or source.role != "const":
        return False
    is_square = len(source.legs) > 0 and all(is_same(leg.size, source.legs[0].size) for leg in source.legs)
    plain = not any(isinstance(leg, Read) for leg in access.legs)
    return bool(plain and is_square and source.init.kind in ("delta", "eye"))
