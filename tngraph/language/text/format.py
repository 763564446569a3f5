"""Conversion of a network to text, which `parse` reads back as an equal network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

import sympy

from tngraph.language.arguments import check_network
from tngraph.language.network import (
    Access,
    Core,
    Equation,
    Function,
    Index,
    Init,
    Leg,
    Network,
    Port,
    Read,
    Size,
    Term,
)
from tngraph.language.sizes import symbol

_SUM, _PRODUCT, _POWER, _ATOM = range(4)
"""Binding strengths of expressions, weakest first."""


def format_network(network: Network) -> str:
    """Return the text of a network, which `parse` reads back as an equal one.

    Example:
        >>> from tngraph.language.text.parsing import parse
        >>> print(format_network(parse("network n { input x[i:3]; y[] = x * x; output y[] }")))
        network n {
          input x[i:3]
        <BLANKLINE>
          y[] = x * x
        <BLANKLINE>
          output y[]
        }
        <BLANKLINE>
    """
    check_network(network)
    groups = [list(group) for group in _Formatter(network).statements()]
    body = "\n\n".join("\n".join(f"  {line}" for line in group) for group in groups if group)
    return f"network {network.name} {{\n{body}\n}}\n"


def format_size(size: sympy.Expr) -> str:
    """Return a size as an expression of the language."""
    return _expression(size)[0]


class _Formatter:
    """A writer of one network, which declares each index where it is first on a core or on a left-hand side."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.declared: set[str] = set()
        self.names = {index.name for index in network.indices()}
        self.sources = network.sources()

    def statements(self) -> Iterator[Iterator[str]]:
        network = self.network
        ports = {port.name: port for port in network.inputs}
        yield map(_size, network.sizes)
        yield (self._family(size, list(family)) for size, family in groupby(self._undeclared(), lambda i: i.size))
        yield (self._core(core, ports) for core in network.cores)
        yield map(self._equation, network.equations)
        yield (f"output {port.name}[{self._axes(port)}]" for port in network.outputs)

    def _undeclared(self) -> list[Index]:
        """Return the indices that are read before any core or left-hand side has them."""
        seen = {leg.name for core in self.network.cores for leg in core.legs}
        missing: dict[Index, None] = {}
        for equation in self.network.equations:
            seen.update(leg.name for leg in equation.legs)
            read = [index for term in equation.terms for access in term.accesses for index in access.indices]
            missing.update(dict.fromkeys(index for index in read if index.name not in seen))
            seen.update(index.name for index in missing)
        return list(missing)

    def _family(self, size: sympy.Expr, indices: list[Index]) -> str:
        names = [index.name for index in indices]
        self.declared.update(names)
        return f"index {', '.join(names)}: {format_size(size)}"

    def _core(self, core: Core, ports: Mapping[str, Port]) -> str:
        # On a core, unlike on a left-hand side, an index without a size has the size of the same name.
        self.declared.update(leg.name for leg in core.legs if leg.size == symbol(leg.name))
        legs = self._axes(ports[core.name]) if core.role == "input" else ", ".join(map(self._leg, core.legs))
        init = "" if core.init is None else f" = {_call(core.init)}"
        return f"{core.role} {core.name}[{legs}]{init}"

    def _axes(self, port: Port) -> str:
        axes = (", ".join(map(self._leg, axis)) for axis in port.axes)
        return ", ".join(text if len(axis) == 1 else f"({text})" for text, axis in zip(axes, port.axes, strict=True))

    def _leg(self, index: Index) -> str:
        """Return an index, with its size if it is mentioned here first."""
        if index.name in self.declared:
            return index.name
        self.declared.add(index.name)
        return f"{index.name}:{format_size(index.size)}"

    def _equation(self, equation: Equation) -> str:
        # The legs on the left come first, since what they declare is declared for the right-hand side too.
        left = ", ".join(map(self._leg, equation.legs))
        right = "".join(self._term(term, first=not k) for k, term in enumerate(equation.terms))
        if equation.function is not None:
            right = f"{_call(equation.function)}({right})"
        return f"{equation.name}[{left}] = {right}"

    def _term(self, term: Term, *, first: bool) -> str:
        negative = str(term.scale).startswith("-")
        size = -term.scale if negative else term.scale
        sign = ("-" if negative else "") if first else (" - " if negative else " + ")
        factors = [] if size == 1 and isinstance(size, int) else [repr(size)]
        return sign + " * ".join([*factors, *map(self._access, term.accesses)])

    def _access(self, access: Access) -> str:
        own = self.sources[access.source].legs
        if access.legs == own:
            return access.source
        return f"{access.source}[{', '.join(map(self._read, access.legs))}]"

    def _read(self, leg: Leg) -> str:
        if isinstance(leg, Index):
            return leg.name
        position = self._position(leg)
        return f"({position}) % {_operand(leg.leg.size, _POWER)}" if leg.wrap else position

    def _position(self, read: Read) -> str:
        parts = [(factor < 0, _times(abs(factor), index.name)) for factor, index in read.terms]
        is_bare = not read.wrap and len(read.terms) == 1 and read.terms[0][0] == 1
        if read.offset != 0 or not parts or is_bare:
            parts.extend((negative, self._sizes_only(text, size)) for negative, text, size in _addends(read.offset))
        return _joined(parts)

    def _sizes_only(self, text: str, size: sympy.Expr) -> str:
        """Return the text of a size in a position, where a name that is also an index would be read as the index."""
        return f"min({text})" if any(symbol.name in self.names for symbol in size.free_symbols) else text


def _size(size: Size) -> str:
    return f"size {size.name}" if size.value is None else f"size {size.name} = {format_size(size.value)}"


def _call(call: Init | Function) -> str:
    name = call.kind if isinstance(call, Init) else call.name
    return f"{name}({', '.join(map(_number, call.args))})" if call.args else name


def _number(value: float | sympy.Expr) -> str:
    return format_size(value) if isinstance(value, sympy.Expr) else repr(value)


def _times(factor: int, name: str) -> str:
    return name if factor == 1 else f"{factor}*{name}"


def _joined(parts: list[tuple[bool, str]]) -> str:
    """Return a sum of addends, each given with its sign."""
    (negative, first), *rest = parts
    text = f"-{first}" if negative else first
    return text + "".join(f" {'-' if negative else '+'} {addend}" for negative, addend in rest)


def _magnitude(addend: sympy.Expr) -> tuple[bool, sympy.Expr]:
    negative = bool(addend.as_coeff_Mul()[0] < 0)
    return negative, -addend if negative else addend


def _addends(expr: sympy.Expr) -> Iterator[tuple[bool, str, sympy.Expr]]:
    """Yield the addends of a sum, positive ones first: whether each is negative, its text, and itself without sign."""
    for negative, size in sorted(map(_magnitude, expr.as_ordered_terms()), key=lambda part: part[0]):
        # A sign binds tighter than // and %: -(a//b), and not -a//b.
        yield negative, _operand(size, _POWER if negative and not size.is_Mul else _PRODUCT), size


def _operand(expr: sympy.Expr, tightness: int) -> str:
    """Return an expression as text, in parentheses if what surrounds it binds tighter."""
    text, own = _expression(expr)
    return text if own >= tightness else f"({text})"


def _expression(expr: sympy.Expr) -> tuple[str, int]:
    if expr.is_Symbol:
        return str(expr.name), _ATOM
    if expr.is_Integer:
        return str(expr), _ATOM if expr >= 0 else _PRODUCT
    return _RULES[expr.func](expr)


def _sum(expr: sympy.Expr) -> tuple[str, int]:
    return _joined([(negative, text) for negative, text, _ in _addends(expr)]), _SUM


def _product(expr: sympy.Expr) -> tuple[str, int]:
    negative, size = _magnitude(expr)
    factors = size.as_ordered_factors()
    coefficient = [str(factors.pop(0))] if factors[0].is_Integer else []
    texts = [_operand(factor, _POWER) for factor in factors]
    sign = "-" if negative else ""
    if factors[0].is_Add and (coefficient or negative):  # read first, a number would be multiplied into the sum
        return "*".join([*texts, sign + "".join(coefficient or ["1"])]), _PRODUCT
    return sign + "*".join([*coefficient, *texts]), _PRODUCT


def _power(expr: sympy.Expr) -> tuple[str, int]:
    base, exponent = expr.args
    return f"{_operand(base, _ATOM)}**{_operand(exponent, _ATOM)}", _POWER


def _floor(expr: sympy.Expr) -> tuple[str, int]:
    quotient = expr.args[0]
    numerator, denominator = sympy.fraction(sympy.together(quotient) if quotient.is_Add else quotient)
    return f"{_operand(numerator, _POWER)}//{_operand(denominator, _POWER)}", _PRODUCT


def _remainder(expr: sympy.Expr) -> tuple[str, int]:
    return " % ".join(_operand(argument, _POWER) for argument in expr.args), _PRODUCT


def _extreme(name: str) -> Callable[[sympy.Expr], tuple[str, int]]:
    def write(expr: sympy.Expr) -> tuple[str, int]:
        return f"{name}({', '.join(sorted(map(format_size, expr.args)))})", _ATOM

    return write


_RULES: Mapping[object, Callable[[sympy.Expr], tuple[str, int]]] = {
    sympy.Add: _sum,
    sympy.Mul: _product,
    sympy.Pow: _power,
    sympy.floor: _floor,
    sympy.Mod: _remainder,
    sympy.Min: _extreme("min"),
    sympy.Max: _extreme("max"),
}
