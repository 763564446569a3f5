"""Which run-time sizes the inputs determine, decided before there is any input."""

from __future__ import annotations

from collections.abc import Iterable

import sympy

from tngraph.language.network import Port, Size
from tngraph.language.sizes import product


def unbound_sizes(sizes: Iterable[Size], inputs: Iterable[Port]) -> list[Size]:
    """The run-time sizes that no axis of an input determines.

    An axis determines a size that is the only one unknown in it and stands there to the first power, as
    `binding.bind_sizes` solves for it.
    """
    every = list(sizes)
    missing = {size.symbol: size for size in every if size.value is None}
    axes = [_in_basic_sizes(product(leg.size for leg in axis), every) for port in inputs for axis in port.axes]
    before = -1
    while len(missing) != before:
        before = len(missing)
        for axis in axes:
            unknown = [symbol for symbol in missing if symbol in axis.free_symbols]
            if len(unknown) == 1 and axis.is_polynomial(*unknown) and sympy.degree(axis, *unknown) == 1:
                del missing[unknown[0]]
    return list(missing.values())


def _in_basic_sizes(expr: sympy.Expr, sizes: list[Size]) -> sympy.Expr:
    for size in reversed(sizes):
        if size.value is not None and size.symbol in expr.free_symbols:
            expr = expr.xreplace({size.symbol: size.value})
    return sympy.expand(expr)
