"""A smaller network with the same difference: one part after the other is dropped while it stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import sympy

from tngraph.errors import TngraphError
from tngraph.language.network import Equation, Index, Network, Port, Read

MOST_TRIES = 400
"""So many smaller networks are tried at most."""


def shrink(network: Network, differs: Callable[[Network], bool]) -> Network:
    """The smallest network found that differs still.

    Args:
        network: one that differs.
        differs: whether another one does so in the same way.
    """
    tries = 0
    while True:
        for smaller in _smaller(network):
            tries += 1
            if tries > MOST_TRIES:
                return network
            if differs(smaller):
                network = smaller
                break
        else:
            return network


def _smaller(network: Network) -> Iterator[Network]:
    """Valid networks that lack one part, the largest parts first."""
    for candidate in _candidates(network):
        try:
            smaller = candidate()
        except TngraphError:
            continue
        if smaller != network:
            yield smaller


def _candidates(network: Network) -> Iterator[Callable[[], Network]]:
    for equation in network.equations[:-1]:
        whole = Port(equation.name, tuple((leg,) for leg in equation.legs))
        yield lambda whole=whole: _without_unused(replace(network, outputs=(whole,)))
    for port in network.outputs:
        yield lambda port=port: replace(network, outputs=tuple(p for p in network.outputs if p != port))
    yield lambda: _without_unused(network)
    for number, equation in enumerate(network.equations):
        for other in _simpler(equation):
            yield lambda number=number, other=other: _with_equation(network, number, other)
    for index in network.indices():
        if index.size != 1:
            yield lambda index=index: _with_size(network, index)


def _simpler(equation: Equation) -> Iterator[Equation]:
    """An equation without a term, a factor, a number or its function, of which something stays."""
    if len(equation.terms) > 1:
        for term in equation.terms:
            yield replace(equation, terms=tuple(t for t in equation.terms if t is not term))
    if equation.function is not None:
        yield replace(equation, function=None)
    for k, term in enumerate(equation.terms):
        for n in range(len(term.accesses) if len(term.accesses) > 1 else 0):
            shorter = replace(term, accesses=term.accesses[:n] + term.accesses[n + 1 :])
            yield replace(equation, terms=(*equation.terms[:k], shorter, *equation.terms[k + 1 :]))
        if term.scale != 1:
            yield replace(equation, terms=(*equation.terms[:k], replace(term, scale=1), *equation.terms[k + 1 :]))


def _with_equation(network: Network, number: int, equation: Equation) -> Network:
    before, after = network.equations[:number], network.equations[number + 1 :]
    present = {index for term in equation.terms for access in term.accesses for index in access.indices}
    equation = replace(equation, legs=tuple(leg for leg in equation.legs if leg in present))
    legs = {leg.name for leg in equation.legs}
    outputs = tuple(
        replace(port, axes=tuple(tuple(leg for leg in axis if leg.name in legs) for axis in port.axes))
        if port.name == equation.name
        else port
        for port in network.outputs
    )
    return replace(network, equations=(*before, equation, *after), outputs=outputs)


def _without_unused(network: Network) -> Network:
    """A network without the tensors and sizes that nothing uses."""
    used = {port.name for port in network.outputs}
    equations = []
    for equation in reversed(network.equations):
        if equation.name in used:
            equations.insert(0, equation)
            used |= {access.source for term in equation.terms for access in term.accesses}
    cores = tuple(core for core in network.cores if core.name in used)
    inputs = tuple(port for port in network.inputs if port.name in used)
    shorter = replace(network, cores=cores, equations=tuple(equations), inputs=inputs)
    names = {symbol.name for index in shorter.indices() for symbol in index.size.free_symbols}
    return replace(shorter, sizes=tuple(size for size in network.sizes if size.name in names))


def _with_size(network: Network, index: Index) -> Network:
    """A network in which every index of the size of one has the size 1, or 2."""
    size = sympy.Integer(2 if index.size.free_symbols or index.size > 2 else 1)

    def of(other: Index) -> Index:
        return replace(other, size=size) if other.size == index.size else other

    def leg(other: Index | Read) -> Index | Read:
        if isinstance(other, Index):
            return of(other)
        return replace(other, leg=of(other.leg), terms=tuple((c, of(i)) for c, i in other.terms))

    return replace(
        network,
        cores=tuple(replace(core, legs=tuple(map(of, core.legs))) for core in network.cores),
        equations=tuple(
            replace(
                equation,
                legs=tuple(map(of, equation.legs)),
                terms=tuple(
                    replace(term, accesses=tuple(replace(a, legs=tuple(map(leg, a.legs))) for a in term.accesses))
                    for term in equation.terms
                ),
            )
            for equation in network.equations
        ),
        inputs=tuple(replace(p, axes=tuple(tuple(map(of, axis)) for axis in p.axes)) for p in network.inputs),
        outputs=tuple(replace(p, axes=tuple(tuple(map(of, axis)) for axis in p.axes)) for p in network.outputs),
    )
