"""Sizes: symbolic integer arithmetic, and its evaluation under bounds.

A size is a sympy expression over one positive integer symbol per named size. Evaluation is a small loop here rather
than sympy's substitution, because a file may say ``10**9**9``: every power is bounded before it is computed, and the
caller may bound every intermediate value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor, prod
from operator import eq, ge, le

import sympy

from tngraph.errors import SizeError

Number = int | Fraction

LARGEST = 2**62
"""No size or count of positions may exceed this. Counts of operations may, since they are plain integers."""


@lru_cache(maxsize=4096)
def symbol(name: str) -> sympy.Symbol:
    """Return the symbol that stands for a named size."""
    return sympy.Symbol(str(name), integer=True, positive=True)


def product(factors: Iterable[sympy.Expr]) -> sympy.Expr:
    """Return the product of sizes, or 1 for none."""
    return sympy.Mul(*factors)


def is_same(left: sympy.Expr, right: sympy.Expr) -> bool:
    """Return whether two sizes are equal for all values of their symbols."""
    return bool(left == right or sympy.expand(left - right) == 0)


def evaluate_size(expr: sympy.Expr, values: Mapping[str, int], largest: int | None = None) -> int:
    """Return the integer that an expression equals when its symbols have these values.

    Args:
        expr: an expression in size symbols.
        values: an integer for each symbol's name.
        largest: the bound for every intermediate value; when absent, there is none.

    Raises:
        SizeError: a symbol has no value, a value is out of bounds, a divisor is zero, or the result is a fraction.
    """
    value = _number(expr, values, largest)
    if isinstance(value, Fraction):
        if value.denominator != 1:
            raise SizeError(f"{expr} is {value}, which is not an integer")
        return value.numerator
    return value


def _number(expr: sympy.Expr, values: Mapping[str, int], largest: int | None) -> Number:
    if expr.is_Symbol:
        if expr.name not in values:
            raise SizeError(f"the size {expr.name!r} has no value here")
        return values[expr.name]
    if expr.is_Integer:
        return int(expr.p)
    if expr.is_Rational:
        return Fraction(int(expr.p), int(expr.q))
    if isinstance(expr, sympy.Piecewise):
        return _number(find_case(expr, values, largest)[0], values, largest)
    rule = _RULES.get(expr.func)
    if rule is None:
        raise SizeError(f"{expr} is not integer arithmetic")
    arguments = [_number(argument, values, largest) for argument in expr.args]
    value = rule(arguments)
    if largest is not None and not -largest <= value <= largest:
        raise SizeError(f"{expr} is larger than 2**62")
    return value


def find_case(
    expr: sympy.Expr, values: Mapping[str, int], largest: int | None = None
) -> tuple[sympy.Expr, sympy.Basic]:
    """Return the case of a count that holds at some numbers, with its condition; a count without cases holds always."""
    if not isinstance(expr, sympy.Piecewise):
        return expr, sympy.true
    return next((case, condition) for case, condition in expr.args if _holds(condition, values, largest))


def _holds(condition: sympy.Basic, values: Mapping[str, int], largest: int | None) -> bool:
    """Return whether a condition of a piecewise count holds: a comparison, or several joined by and/or."""
    if isinstance(condition, sympy.And | sympy.Or):
        quantifier = all if isinstance(condition, sympy.And) else any
        return quantifier(_holds(part, values, largest) for part in condition.args)
    compare = _COMPARISONS.get(condition.func)
    if compare is not None:
        return compare(*(_number(side, values, largest) for side in condition.args))
    return bool(condition)


_COMPARISONS: Mapping[object, Callable[[Number, Number], bool]] = {sympy.Eq: eq, sympy.Le: le, sympy.Ge: ge}


def _power(arguments: list[Number]) -> Number:
    base, exponent = arguments[0], arguments[1]
    if exponent != floor(exponent) or (exponent < 0 and base == 0):
        raise SizeError(f"{base} ** {exponent} is not an integer")
    bits = max(ceil(base), -floor(base)).bit_length()
    if bits > 1 and max(exponent, -exponent) * bits > 4096:
        raise SizeError(f"{base} ** {exponent} is larger than 2**62")
    return Fraction(base) ** int(exponent) if exponent < 0 else base ** int(exponent)


def _remainder(arguments: list[Number]) -> Number:
    if arguments[1] == 0:
        raise SizeError("a remainder by zero")
    return arguments[0] % arguments[1]


_RULES: Mapping[object, Callable[[list[Number]], Number]] = {
    sympy.Add: lambda arguments: sum(arguments, 0),
    sympy.Mul: prod,
    sympy.Pow: _power,
    sympy.floor: lambda arguments: floor(arguments[0]),
    sympy.ceiling: lambda arguments: ceil(arguments[0]),
    sympy.Mod: _remainder,
    sympy.Min: lambda arguments: min(arguments),
    sympy.Max: lambda arguments: max(arguments),
}


def as_integer(value: object) -> int | None:
    """Return an integer of any library as Python's own, and None for a truth value and whatever is no integer."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
