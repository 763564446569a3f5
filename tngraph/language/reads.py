"""Checks of affine reads of a leg: the count of windows, and whether a read meets its leg at all."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from tngraph.errors import NetworkError, SizeError
from tngraph.language.handles import Position
from tngraph.language.network import Read
from tngraph.language.sizes import LARGEST, evaluate_size


def window_count(size: sympy.Expr, position: Position, name: str, sizes: Mapping[str, sympy.Expr]) -> sympy.Expr | None:
    """Return the number of windows that an index counts, if the padding at the start of the leg is also at its end.

    Args:
        size: the size of the leg that is read.
        position: the position it is read at.
        name: the index of ``position`` whose size is wanted.
        sizes: the sizes of the other indices.

    Returns:
        ``(size + 2*padding - Σ dilation*(kernel - 1) - 1)//stride + 1``, or None if the read does not determine it.
    """
    stride = position.coefficient(name)
    others = [(factor, index) for factor, index in position.terms if index != name]
    if stride <= 0 or position.modulus is not None or any(index not in sizes for _, index in others):
        return None
    reach = sum((abs(factor) * (sizes[index] - 1) for factor, index in others), sympy.Integer(0))
    below = sum((factor * (sizes[index] - 1) for factor, index in others if factor < 0), sympy.Integer(0))
    padding = -(position.offset + below)
    return sympy.floor((size + 2 * padding - reach - 1) / stride) + 1


def check_reach(read: Read, defaults: Mapping[str, int], at: object) -> None:
    """Raise `NetworkError` if every position of a read is provably outside its leg.

    Args:
        read: the read.
        defaults: the values of the compile-time sizes, at which this is decided.
        at: the name whose place the error shows.
    """
    if read.wrap:
        return
    least, greatest = read.offset, read.offset
    for factor, index in read.terms:
        end = factor * (index.size - 1)
        least, greatest = (least + end, greatest) if factor < 0 else (least, greatest + end)
    if _is_negative(greatest, defaults) or _is_negative(read.leg.size - 1 - least, defaults):
        raise NetworkError(
            f"every position from {least} to {greatest} lies outside the leg {read.leg.name!r} of size {read.leg.size}",
            "positions count from 0; what is read outside is zero",
            at=at,
        )


def _is_negative(expr: sympy.Expr, defaults: Mapping[str, int]) -> bool:
    """Return whether an expression is negative under the defaults, whatever the run-time sizes are."""
    try:
        return evaluate_size(expr, defaults, LARGEST) < 0
    except SizeError:  # it has a run-time size, or a number beyond the bound
        values = {
            symbol: sympy.Integer(defaults[symbol.name]) for symbol in expr.free_symbols if symbol.name in defaults
        }
    # A sum in which no term grows with a size is largest where every size is 1. Sympy's own
    # ``is_negative`` decides more cases, at a hundred times the cost.
    terms = expr.xreplace(values).as_coefficients_dict().items()
    return sum(factor for _, factor in terms) < 0 and all(
        size.is_Integer or (factor < 0 and (size.is_Symbol or size.is_positive)) for size, factor in terms
    )
