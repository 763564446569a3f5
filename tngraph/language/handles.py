"""The values a Python user works with while building a network: positions on legs, and sums of products of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from tngraph.errors import LimitError, NetworkError
from tngraph.language.limits import LEGS
from tngraph.language.sizes import as_integer


@dataclass(frozen=True, slots=True)
class Position:
    """A position on a leg: Σ coefficient·index + offset, modulo a size if there is one. A bare index is a position too.

    ``2*h + kh - 1`` reads with stride 2 and padding 1, ``(l + k - 1) % n`` cyclically. A bare ``h`` runs over a leg of
    its own size; ``h + 0`` reads the positions 0, 1, … of a leg of any size.
    """

    terms: tuple[tuple[int, str], ...]
    offset: sympy.Expr = sympy.Integer(0)
    modulus: sympy.Expr | None = None
    is_bare: bool = False

    @classmethod
    def of(cls, name: str) -> Position:
        """Return the position that is just the index of this name."""
        return cls(((1, name),), is_bare=True)

    @property
    def plain(self) -> str | None:
        """The name of the index if the position is a bare one, else None."""
        return self.terms[0][1] if self.is_bare else None

    def coefficient(self, name: str) -> int:
        """Return the coefficient of an index, or 0 if the position does not depend on it."""
        return next((factor for factor, index in self.terms if index == name), 0)

    def __add__(self, other: Position | sympy.Expr | int) -> Position:
        self._check_open()
        if not isinstance(other, Position):
            return replace(self, offset=self.offset + integer(other), is_bare=False)
        other._check_open()
        factors: dict[str, int] = {name: factor for factor, name in self.terms}
        for factor, name in other.terms:
            factors[name] = factors.get(name, 0) + factor
        if len(factors) > LEGS:
            raise LimitError(f"a position has more than {LEGS} indices", at=self.terms[0][1])
        return Position(tuple((f, name) for name, f in factors.items() if f), self.offset + other.offset)

    def __radd__(self, other: sympy.Expr | int) -> Position:
        return self + other

    def __neg__(self) -> Position:
        return self * -1

    def __sub__(self, other: Position | sympy.Expr | int) -> Position:
        return self + (-other if isinstance(other, Position) else -integer(other))

    def __rsub__(self, other: sympy.Expr | int) -> Position:
        return -self + other

    def __mul__(self, other: sympy.Expr | int) -> Position:
        self._check_open()
        factor = None if isinstance(other, Position) else integer(other)
        if factor is None or not factor.is_Integer:
            raise NetworkError(
                f"the index {self._shown} is multiplied by {_shown(other)}",
                "a position is affine: an index times an integer",
                at=self._at,
            )
        if factor == 0:
            return Position((), sympy.Integer(0))
        return Position(tuple((int(factor) * f, name) for f, name in self.terms), self.offset * factor)

    def __rmul__(self, other: sympy.Expr | int) -> Position:
        return self * other

    def __mod__(self, other: sympy.Expr | int) -> Position:
        self._check_open()
        if isinstance(other, Position):
            raise NetworkError("a position is taken modulo an index", "write the size of the leg", at=self._at)
        return replace(self, modulus=integer(other), is_bare=False)

    def _refuse(self, other: object) -> Position:
        raise NetworkError(
            f"the index {self._shown} is divided or raised", "a position is affine: +, - and *", self._at
        )

    __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = __rmod__ = __truediv__ = _refuse

    def _check_open(self) -> None:
        if self.modulus is not None:
            raise NetworkError("a cyclic position is changed after its %", "write % last", at=self._at)

    @property
    def _at(self) -> object:
        return self.terms[0][1] if self.terms else None

    @property
    def _shown(self) -> str:
        return repr(str(self._at))


def _shown(factor: object) -> str:
    return f"the index {str(factor._at)!r}" if isinstance(factor, Position) else f"{factor}"


def integer(value: object) -> sympy.Expr:
    """Return a value as an integer expression."""
    as_int = as_integer(value)
    expr = value if isinstance(value, sympy.Expr) else None if as_int is None else sympy.Integer(as_int)
    if expr is None or not _is_integral(expr):
        raise NetworkError(f"{value!r} is not an integer", "sizes and positions are integers and sizes")
    return expr


def _is_integral(expr: sympy.Expr) -> bool:
    """Return whether an expression is integer arithmetic as it is written.

    Sympy's own ``is_integer`` is undecided where a divisor might be zero, as in ``7 // (h - 1)``.
    """
    if expr.is_Symbol or expr.is_Integer or expr.func == sympy.floor:
        return bool(expr.is_integer) or expr.func == sympy.floor
    if expr.func == sympy.Pow and expr.exp.is_negative:
        return False
    return expr.func in _INTEGRAL and all(map(_is_integral, expr.args))


_INTEGRAL = (sympy.Add, sympy.Mul, sympy.Pow, sympy.Mod, sympy.Min, sympy.Max)


@dataclass(frozen=True, slots=True)
class Factor:
    """A tensor at positions on its legs."""

    source: str
    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class Summand:
    """A number times a product of tensors."""

    scale: int | float
    factors: tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class Expression:
    """A sum of products of tensors, the right-hand side of an equation: ``2.0 * x * w - y``."""

    summands: tuple[Summand, ...]

    def __add__(self, other: Expression) -> Expression:
        return Expression(self.summands + _expression(other).summands)

    def __radd__(self, other: int) -> Expression:
        # sum() starts from 0.
        return self if isinstance(other, int) and other == 0 else self + _expression(other)

    def __sub__(self, other: Expression) -> Expression:
        return self + -_expression(other)

    def __rsub__(self, other: object) -> Expression:
        return _expression(other)

    def __neg__(self) -> Expression:
        return Expression(tuple(replace(s, scale=-s.scale) for s in self.summands))

    def __mul__(self, other: Expression | float) -> Expression:
        if isinstance(other, int | float):
            return Expression(tuple(replace(s, scale=s.scale * other) for s in self.summands))
        left, right = _product(self), _product(other)
        return Expression((Summand(left.scale * right.scale, left.factors + right.factors),))

    def __rmul__(self, other: float) -> Expression:
        return self * other

    def _refuse(self, other: object) -> Expression:
        raise NetworkError(
            "a tensor is divided or raised", "an equation has sums of products; multiply by 0.5, or repeat the factor"
        )

    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _refuse


def _expression(value: object) -> Expression:
    if not isinstance(value, Expression):
        raise NetworkError(f"{value!r} is added to a tensor", "a term is a product of tensors; make it a const")
    return value


def _product(value: object) -> Summand:
    if not isinstance(value, Expression):
        raise NetworkError(f"a tensor is multiplied by {value!r}", "multiply by a tensor or a number")
    if len(value.summands) != 1:
        raise NetworkError("a sum is multiplied", "give the sum a name in an equation of its own")
    return value.summands[0]


@dataclass(frozen=True, slots=True)
class Tensor(Expression):
    """A core or an earlier result. ``t`` has its own legs, and ``t[i, h + k]`` is read at other positions."""

    name: str
    legs: tuple[Position, ...]

    # Without these, ``for`` and ``in`` would try the positions 0, 1, 2, … for ever, since ``__getitem__`` never fails.
    __iter__ = None
    __contains__ = None

    def __getitem__(
        self, positions: Position | int | sympy.Expr | tuple[Position | int | sympy.Expr, ...]
    ) -> Expression:
        items = positions if isinstance(positions, tuple) else (positions,)
        return access(self.name, tuple(p if isinstance(p, Position) else Position((), integer(p)) for p in items))


def access(source: str, positions: tuple[Position, ...]) -> Expression:
    """Return the expression of one tensor at positions on its legs."""
    return Expression((Summand(1, (Factor(source, positions),)),))


def tensor(name: str, legs: tuple[str, ...]) -> Tensor:
    """Return the handle of a tensor with these legs."""
    own = tuple(map(Position.of, legs))
    return Tensor(access(name, own).summands, name, own)
