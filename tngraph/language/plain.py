"""Conversion to plain names: a name read from a file carries its line and column, in a `Network` it is a ``str``."""

from __future__ import annotations

from tngraph.language.network import Access, Core, Equation, Function, Index, Init, Leg, Port, Read, Term


def plain_index(index: Index) -> Index:
    """Return an index with a plain name."""
    return Index(str(index.name), index.size)


def _leg(leg: Leg) -> Leg:
    if isinstance(leg, Index):
        return plain_index(leg)
    terms = tuple((factor, plain_index(index)) for factor, index in leg.terms)
    return Read(plain_index(leg.leg), terms, leg.offset, leg.wrap)


def plain_core(core: Core) -> Core:
    """Return a core with plain names."""
    init = None if core.init is None else Init(str(core.init.kind), core.init.args)
    return Core(str(core.name), tuple(map(plain_index, core.legs)), core.role, init)


def plain_equation(equation: Equation) -> Equation:
    """Return an equation with plain names."""
    function = equation.function
    return Equation(
        str(equation.name),
        tuple(map(plain_index, equation.legs)),
        tuple(
            Term(term.scale, tuple(Access(str(a.source), tuple(map(_leg, a.legs))) for a in term.accesses))
            for term in equation.terms
        ),
        None if function is None else Function(str(function.name), function.args),
    )


def plain_port(port: Port) -> Port:
    """Return a port with plain names."""
    return Port(str(port.name), tuple(tuple(map(plain_index, axis)) for axis in port.axes))
