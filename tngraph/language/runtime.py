"""Check of which run-time sizes the inputs will determine, made before there is any input.

Nothing is substituted or expanded. Only the degree of each definition in every run-time size is kept, so a long chain
of definitions takes no more time than its text is long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import sympy

from tngraph.language.network import Port, Size
from tngraph.language.sizes import product

_Degrees = Mapping[sympy.Symbol, int]
"""A size's degree in each run-time size that it depends on; `_CURVED` where it is not a polynomial."""
_CURVED = 2
"""The degree that stands for anything that is not affine."""


def unbound_sizes(sizes: Iterable[Size], inputs: Iterable[Port]) -> list[Size]:
    """Return the run-time sizes that no axis of an input determines.

    An axis determines a size that is the only unknown in it and occurs there to the first power, which is when
    `binding.bind_sizes` can solve for it.
    """
    missing: dict[sympy.Symbol, Size] = {}
    degrees: dict[sympy.Symbol, _Degrees] = {}
    for size in sizes:
        if size.value is None:
            missing[size.symbol], degrees[size.symbol] = size, {size.symbol: 1}
        else:
            degrees[size.symbol] = _degrees(size.value, degrees)
    axes = [dict(_degrees(product(leg.size for leg in axis), degrees)) for port in inputs for axis in port.axes]
    standing: dict[sympy.Symbol, list[dict[sympy.Symbol, int]]] = {}
    for axis in axes:
        for symbol in axis:
            standing.setdefault(symbol, []).append(axis)
    ready = [axis for axis in axes if len(axis) == 1]
    while ready:
        for symbol, degree in ready.pop().items():
            if degree == 1 and symbol in missing:
                del missing[symbol]
                for axis in standing[symbol]:
                    axis.pop(symbol)
                ready.extend(axis for axis in standing[symbol] if len(axis) == 1)
                break
    return list(missing.values())


def _degrees(expr: sympy.Expr, degrees: Mapping[sympy.Symbol, _Degrees]) -> _Degrees:
    """Return the degrees of an expression, given those of the sizes in it."""
    if expr.is_Symbol:
        return degrees[expr]
    parts = [_degrees(argument, degrees) for argument in expr.args]
    total: Counter[sympy.Symbol] = Counter()
    if expr.func == sympy.Mul:
        for part in parts:
            total.update(part)
    elif expr.func == sympy.Pow and expr.exp.is_Integer and expr.exp > 0:
        total.update({symbol: degree * int(expr.exp) for symbol, degree in parts[0].items()})
    else:
        for part in parts:
            total |= Counter(part if expr.func == sympy.Add else dict.fromkeys(part, _CURVED))
    return {symbol: min(degree, _CURVED) for symbol, degree in total.items()}


def written_out(expr: sympy.Expr, weights: Mapping[str, int]) -> int:
    """Return the count of operations and names in an expression once its sizes are written out.

    Args:
        expr: the expression.
        weights: the count for each derived size; any other size counts as 1.
    """
    if expr.is_Symbol:
        return weights.get(expr.name, 1)
    if expr.func == sympy.Pow and expr.exp.is_Integer:
        return abs(int(expr.exp)) * written_out(expr.base, weights)
    return 1 + sum(written_out(argument, weights) for argument in expr.args)
