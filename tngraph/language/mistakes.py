"""Likely mistakes in a valid network: what nothing uses, and an index that joins nothing.

Each is a `NetworkError` that is not raised, placed at the name that it is about. Where several readings are likely,
nothing is reported: a term of one tensor may sum any of its legs, and a size of 1 sums nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy

from tngraph.errors import NetworkError
from tngraph.language.network import Access, Core, Equation, Index, Network, Read, Term
from tngraph.language.runtime import unbound_sizes
from tngraph.language.sizes import is_same

_UNUSED = "use it, or take it away"
_COMPARED = 200
"""The most indices that are compared to find the one that was meant."""
_SUMMED = "put it on the left, or sum it in an equation of its own"


def find_mistakes(network: Network, declared: Mapping[str, sympy.Expr] | None = None) -> Iterator[NetworkError]:
    """Yield likely mistakes, one kind after another.

    Args:
        network: a valid network.
        declared: the indices that were declared, with their sizes, whether or not a tensor has them.
    """
    declared = declared or {}
    yield from _unused_sizes(network, declared)
    standing = {index.name for index in network.indices()}
    for name in declared:
        if name not in standing:
            yield NetworkError(f"the index {str(name)!r} stands on no tensor", _UNUSED, at=name)
    yield from _unused_tensors(network)
    sources = network.sources()
    for equation in network.equations:
        for term in equation.terms:
            yield from _lone_indices(sources, equation, term)


def _unused_sizes(network: Network, declared: Mapping[str, sympy.Expr]) -> Iterator[NetworkError]:
    expressions = [*declared.values(), *(index.size for index in network.indices())]
    expressions += [size.value for size in network.sizes if size.value is not None]
    expressions += [core.fan_in for core in network.cores if core.fan_in is not None]
    expressions += [leg.offset for leg in _read_legs(network) if isinstance(leg, Read)]
    used = {symbol for expression in expressions for symbol in expression.free_symbols}
    for size in network.sizes:
        if size.symbol not in used:
            yield NetworkError(f"the size {str(size.name)!r} is used nowhere", _UNUSED, at=size.name)


def _read_legs(network: Network) -> Iterator[Index | Read]:
    for equation in network.equations:
        for term in equation.terms:
            for access in term.accesses:
                yield from access.legs


def _unused_tensors(network: Network) -> Iterator[NetworkError]:
    """Yield an error for each tensor that no equation reads and no output returns.

    An input that binds a run-time size counts as used.
    """
    used = {access.source for equation in network.equations for term in equation.terms for access in term.accesses}
    used |= {port.name for port in network.outputs}
    sources: tuple[Core | Equation, ...] = (*network.cores, *network.equations)
    for source in sources:
        if source.name in used:
            continue
        role = source.role if isinstance(source, Core) else "result"
        others = [port for port in network.inputs if port.name != source.name]
        if role != "input" or not unbound_sizes(network.sizes, others):
            yield NetworkError(f"the {role} {str(source.name)!r} is used nowhere", _UNUSED, at=source.name)


@dataclass(frozen=True, slots=True)
class _Lone:
    """An index that only one access of a term has, and that is summed there."""

    index: Index
    access: Access
    is_own: bool
    is_read: bool

    @property
    def at(self) -> str:
        """The name to point at: the index where it is written, else the tensor."""
        return self.index.name if hasattr(self.index.name, "line") else self.access.source

    @property
    def text(self) -> str:
        """The index and its tensor, as errors write them."""
        return f"{str(self.index.name)!r} on {str(self.access.source)!r}"


def _lone_indices(sources: Mapping[str, Core | Equation], equation: Equation, term: Term) -> Iterator[NetworkError]:
    """Yield errors for the indices of a term that were probably meant to join two tensors, or to stay on the left."""
    lone = list(_find_lone(sources, equation, term))
    if len(term.accesses) == 1:
        yield from _broadcast_sums(equation, term, lone)
        return
    rest = sorted(lone, key=lambda one: one.is_own)  # a name that this access gave is the likelier mistake
    while rest:
        one = rest.pop(0)
        other = _partner(one, rest)
        if other is not None:
            rest.remove(other)
            message = f"{one.text} and {other.text} join nothing: each is summed alone"
            yield NetworkError(message, f"did you mean {str(other.index.name)!r} for {str(one.index.name)!r}?", one.at)
        elif one.is_own and not one.is_read:
            yield _summed(one, _SUMMED)


def _partner(one: _Lone, others: Sequence[_Lone]) -> _Lone | None:
    """Return another lone index that may have been meant, of the same size and on another tensor.

    Two indices that both stand in windows are never partners.
    """
    for other in others[:_COMPARED]:
        is_fitting = other.access is not one.access and not (one.is_read and other.is_read)
        if is_fitting and one.index.size == other.index.size:
            return other
    return None


def _broadcast_sums(equation: Equation, term: Term, lone: Sequence[_Lone]) -> Iterator[NetworkError]:
    """Yield errors for a tensor of a sum that is itself summed over one leg and broadcast over another.

    That is typical of a bias with a wrong name.
    """
    (access,) = term.accesses
    readings = sum(access.source == other.source for summand in equation.terms for other in summand.accesses)
    lacking = [leg for leg in equation.legs if leg not in access.indices]
    if len(equation.terms) == 1 or readings > 1 or not lacking:
        return
    for one in lone:
        if one.is_own and not one.is_read:
            near = next((leg for leg in lacking if is_same(leg.size, one.index.size)), None)
            yield _summed(one, _SUMMED if near is None else f"did you mean {str(near.name)!r}?")


def _summed(one: _Lone, hint: str) -> NetworkError:
    name, source = str(one.index.name), str(one.access.source)
    return NetworkError(f"the index {name!r} stands on {source!r} alone, and is summed there", hint, at=one.at)


def _find_lone(sources: Mapping[str, Core | Equation], equation: Equation, term: Term) -> Iterator[_Lone]:
    every = [(index.name, leg) for access in term.accesses for leg in access.legs for index in _indices(leg)]
    count = Counter(name for name, _ in every)
    left = {leg.name for leg in equation.legs}
    for access in term.accesses:
        for own, leg in zip(sources[access.source].legs, access.legs, strict=True):
            for index in _indices(leg):
                if count[index.name] == 1 and index.name not in left and index.size != 1:
                    yield _Lone(index, access, own.name == index.name, isinstance(leg, Read))


def _indices(leg: Index | Read) -> tuple[Index, ...]:
    return leg.indices if isinstance(leg, Read) else (leg,)
