"""Sizes and values that may differ from call to call: sizes read off inputs, and values that depend on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sympy

from tngraph.language.network import Access, Leg, Network, Read
from tngraph.language.rewrites import reached


def call_sizes(network: Network) -> frozenset[str]:
    """Return the sizes that are known only at each call, including those derived from run-time sizes."""
    return frozenset(size.name for size in network.sizes) - {size.name for size in network.settable_sizes()}


@dataclass(frozen=True, slots=True)
class Varying:
    """The values that may differ from call to call.

    Attributes:
        sources: the tensors and equations that depend on an input or a run-time size.
        sizes: the run-time sizes, and those derived from them.
    """

    sources: frozenset[str]
    sizes: frozenset[str]

    def is_same(self, access: Access) -> bool:
        """Return whether an access reads the same numbers at every call."""
        return access.source not in self.sources and not _depends(access.legs, self.sizes)


def find_varying(network: Network) -> Varying:
    """Return the values that may differ from call to call: all of them, if the network has no weights to serve."""
    sizes = call_sizes(network)
    if not any(core.role in ("param", "buffer") for core in network.cores):
        return Varying(frozenset(network.sources()), sizes)
    inputs = {core.name for core in network.cores if core.role == "input"}
    return Varying(reached(network, inputs | {name for name, legs in _legs(network) if _depends(legs, sizes)}), sizes)


def _depends(legs: Sequence[Leg], sizes: frozenset[str]) -> bool:
    """Return whether one of some sizes decides the length of legs or where they are read."""
    return any(symbol.name in sizes for leg in legs for size in _sizes(leg) for symbol in size.free_symbols)


def _legs(network: Network) -> Iterator[tuple[str, Sequence[Leg]]]:
    """Yield the legs of every core and equation, and the legs by which equations read them."""
    for name, source in network.sources().items():
        yield name, source.legs
    for equation in network.equations:
        for term in equation.terms:
            yield from ((equation.name, access.legs) for access in term.accesses)


def _sizes(leg: Leg) -> tuple[sympy.Expr, ...]:
    """Return everything that a leg's length and read position depend on."""
    if isinstance(leg, Read):
        return (leg.leg.size, leg.offset, *(index.size for index in leg.indices))
    return (leg.size,)
