"""Integer arithmetic of spec files, where the size of a result is bounded before it is computed.

A file may say ``10**9**9`` or ``(h - 1)**99999``. Every operation first bounds its result: the value under the
defaults, and the terms and coefficients when multiplied out. Only then does it ask sympy to compute it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, cast

import sympy
from lark import Token, Tree

from tngraph.errors import LimitError, NetworkError
from tngraph.language.handles import Position
from tngraph.language.sizes import LARGEST

TERMS = 32
"""The most terms a size may have when multiplied out."""
BITS = 512
"""The longest coefficient a size may have when multiplied out [bits]."""


@dataclass(frozen=True, slots=True)
class Amount:
    """An integer expression over sizes, with bounds on how large it is.

    Args:
        expr: the expression.
        value: its integer under the defaults; None if it depends on a run-time size.
        terms: a bound on the number of its terms when multiplied out.
        norm: a bound on the sum of its coefficients' magnitudes.
    """

    expr: sympy.Expr
    value: int | None
    terms: int = 1
    norm: int = 1

    @classmethod
    def of(cls, expr: sympy.Expr, value: int | None) -> Amount:
        """Return the amount of a named size or of an integer."""
        return cls(expr, value, 1, max(1, abs(int(expr)))) if expr.is_Integer else cls(expr, value)

    def __add__(self, other: Amount) -> Amount:
        return _combine(operator.add, self, other, self.terms + other.terms, self.norm + other.norm)

    def __sub__(self, other: Amount) -> Amount:
        return _combine(operator.sub, self, other, self.terms + other.terms, self.norm + other.norm)

    def __mul__(self, other: Amount) -> Amount:
        return _combine(operator.mul, self, other, self.terms * other.terms, self.norm * other.norm)

    def __neg__(self) -> Amount:
        return Amount(-self.expr, None if self.value is None else -self.value, self.terms, self.norm)

    def __floordiv__(self, other: Amount) -> Amount:
        _check_divisor(other, "division")
        if other.expr.could_extract_minus_sign():  # a//-b and -a//b are equal, and get one form
            return -self // -other
        return _combine(operator.floordiv, self, other, self.terms + other.terms, self.norm + other.norm)

    def __mod__(self, other: Amount) -> Amount:
        _check_divisor(other, "remainder")
        return _combine(operator.mod, self, other, self.terms + other.terms, self.norm + other.norm)

    def __pow__(self, other: Amount) -> Amount:
        if other.value is None:
            raise NetworkError("an exponent is a run-time size", "give the size a value, or multiply it out")
        if other.value < 0:
            raise NetworkError(f"an exponent is {other.value}", "an exponent is not negative")
        if other.norm.bit_length() > 12:
            raise LimitError(f"an exponent is {other.norm:,}", "no size may pass 2**62")
        if self.norm.bit_length() * other.norm > BITS and not (self.expr.is_Integer and abs(self.norm) == 1):
            raise LimitError(f"a power has more than {BITS} bits", "no size may pass 2**62")
        return _combine(operator.pow, self, other, self.terms**other.norm, self.norm**other.norm)


def _combine(operation: Callable[[Any, Any], Any], left: Amount, right: Amount, terms: int, norm: int) -> Amount:
    if terms > TERMS:
        raise LimitError(f"the expression has more than {TERMS} terms when multiplied out", "name parts of it as sizes")
    value = None if left.value is None or right.value is None else int(operation(left.value, right.value))
    if (value is not None and abs(value) > LARGEST) or norm.bit_length() > BITS:
        raise LimitError("the value is larger than 2**62", "no size may pass 2**62")
    return _settled(operation(left.expr, right.expr), value, terms, norm)


def _settled(expr: sympy.Expr, value: int | None, terms: int, norm: int) -> Amount:
    """Return an amount, with tight bounds if the expression turned out to be a plain integer."""
    return Amount.of(expr, int(expr)) if expr.is_Integer else Amount(expr, value, terms, norm)


def _check_divisor(divisor: Amount, what: str) -> None:
    if divisor.value == 0 or divisor.expr.is_zero:
        raise NetworkError(f"a {what} by zero", "under the defaults the divisor is 0")


def _extreme(name: str, amounts: Sequence[Amount]) -> Amount:
    terms, norm = sum(a.terms for a in amounts), sum(a.norm for a in amounts)
    pick, function = (min, sympy.Min) if name == "min" else (max, sympy.Max)
    values = [a.value for a in amounts if a.value is not None]
    if terms > TERMS:
        raise LimitError(f"{name} has more than {TERMS} terms when multiplied out", "name parts of it as sizes")
    value = pick(values) if len(values) == len(amounts) else None
    return _settled(function(*(a.expr for a in amounts)), value, terms, norm)


Operand = Amount | Position
Syntax = Token | Tree[Token]
Resolve = Callable[[Syntax], Operand]
"""A function that returns the meaning of a name in an expression."""

_OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """The rules by which an expression is read in its place.

    Args:
        resolve: returns the meaning of a name.
        sizes: the same right of a cyclic ``%`` and in ``min`` and ``max``, where only sizes are allowed.
        spend: called with the terms of each operation that is slow on symbols, and its place.
    """

    resolve: Resolve
    sizes: Resolve
    spend: Callable[[int, object], None]


def evaluate(tree: Syntax, reading: Reading) -> Operand:
    """Return the meaning of an expression, a tree of the rules ``expr`` or ``_position``.

    Raises:
        NetworkError: an unknown name, or an expression that is not integer arithmetic.
        LimitError: a value beyond 2**62.
    """
    if isinstance(tree, Token):
        return _literal(tree) if tree.type in ("INT", "FLOAT") else reading.resolve(tree)
    if tree.data == "name":
        return reading.resolve(tree)
    return _RULES[tree.data](tree, reading)


def _literal(token: Token) -> Amount:
    if token.type == "FLOAT":
        raise NetworkError(f"{token} is not an integer", "sizes and positions are integers", at=token)
    return Amount.of(sympy.Integer(int(token)), int(token))


def _located(operation: Callable[[Any, Any], Any], left: Operand, right: Operand, at: object) -> Operand:
    """Apply an operation, and place its errors at its sign."""
    if isinstance(left, Position) or isinstance(right, Position):
        left, right = (x.expr if isinstance(x, Amount) else x for x in (left, right))
    try:
        return cast(Operand, operation(left, right))
    except LimitError as error:
        raise LimitError(error.message, error.hint, at=at) from None
    except NetworkError as error:
        raise NetworkError(error.message, error.hint, at=at) from None


def _chain(tree: Tree[Token], reading: Reading) -> Operand:
    total = evaluate(tree.children[0], reading)
    for sign, child in zip(tree.children[1::2], tree.children[2::2], strict=True):
        cyclic = sign == "%" and isinstance(total, Position)
        right = evaluate(child, replace(reading, resolve=reading.sizes) if cyclic else reading)
        total = _located(_OPERATIONS[str(sign)], total, right, sign)
        if sign in ("%", "//"):
            # sympy divides by a plain number quickly, however many terms there are.
            quick = sign == "//" and isinstance(right, Amount) and right.expr.is_Integer
            _spend(total, reading, sign, quick=quick)
    return total


def _spend(result: Operand, reading: Reading, at: object, *, quick: bool = False) -> None:
    if isinstance(result, Amount) and not result.expr.is_Integer:
        reading.spend(1 if quick else result.terms, at)


def _signed(tree: Tree[Token], reading: Reading) -> Operand:
    value = evaluate(tree.children[-1], reading)
    return -value if len(tree.children) % 2 == 0 else value


def _power(tree: Tree[Token], reading: Reading) -> Operand:
    base, *exponents = (evaluate(child, reading) for child in tree.children)
    if not exponents:
        return base
    at = first_token(tree)
    exponent = reduce(lambda upper, lower: _located(operator.pow, lower, upper, at), reversed(exponents))
    return _located(operator.pow, base, exponent, at)


def _bound(tree: Tree[Token], reading: Reading) -> Operand:
    name, *arguments = tree.children
    if name not in ("min", "max"):
        raise NetworkError(f"there is no function {str(name)!r} of sizes", "there are: min, max", at=name)
    inner = replace(reading, resolve=reading.sizes)
    result = _extreme(str(name), [amount(evaluate(argument, inner)) for argument in arguments])
    _spend(result, reading, name)
    return result


def _group(tree: Tree[Token], reading: Reading) -> Operand:
    _, items = tree.children
    if not isinstance(items, Tree) or len(items.children) != 1 or is_declaration(items.children[0]):
        raise NetworkError(
            "a group of indices stands only on an axis", "in arithmetic, parentheses hold one sum", at=first_token(tree)
        )
    return evaluate(items.children[0], reading)


_RULES: Mapping[str, Callable[[Tree[Token], Reading], Operand]] = {
    "expr": lambda tree, reading: evaluate(tree.children[0], reading),
    "sum": _chain,
    "product": _chain,
    "signed": _signed,
    "power": _power,
    "bound": _bound,
    "group": _group,
}


def amount(operand: Operand) -> Amount:
    """Return an operand that has to be a size."""
    if isinstance(operand, Position):
        name = operand.terms[0][1]
        raise NetworkError(f"the index {str(name)!r} stands where a size is expected", at=name)
    return operand


def is_declaration(tree: Syntax) -> bool:
    """Return whether an item of a leg list declares a size, as ``i1:4`` does."""
    return isinstance(tree, Tree) and tree.data == "declaration"


def first_token(tree: Syntax) -> Token | None:
    """Return the leftmost word of a tree, where its errors are placed."""
    if isinstance(tree, Token):
        return tree
    return next(tree.scan_values(lambda value: isinstance(value, Token)), None)
