"""The builder of a network, statement by statement, which spec files and Python code both use.

Every check of meaning that needs more than one value is here, or in `network`, which the builder calls with the
user's own names. So a spec file and Python code accept and refuse the same networks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import TypeAlias

import sympy

from tngraph.errors import LimitError, NetworkError, SizeError
from tngraph.language.functions import pointwise
from tngraph.language.handles import Expression, Factor, Position, Tensor, integer, tensor
from tngraph.language.limits import COMPOSED, DIGITS, LEGS, RANGE, TENSORS
from tngraph.language.mistakes import find_mistakes
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
    Role,
    Size,
    Term,
    check_count,
    check_dotted_name,
    check_equation,
    check_fan_in,
    check_folders,
    check_name,
    check_new,
    check_port,
)
from tngraph.language.plain import plain_core, plain_equation, plain_port
from tngraph.language.reads import check_reach, window_count
from tngraph.language.runtime import unbound_sizes, written_out
from tngraph.language.sizes import LARGEST, evaluate_size, is_same

SizeLike: TypeAlias = int | sympy.Expr
Axis = Position | tuple[Position, ...]
Call = str | tuple[str | float | sympy.Expr, ...]
"""A kind or a function, alone or with its arguments: ``"zeros"``, ``("normal", 0.02)``, ``("fan_in", size)``."""

_RANGE = re.compile(r"([\w.]*)\{(\d{1,18})\.\.(\d{1,18})\}([\w.]*)", re.ASCII)
_SUGGESTED = 200


class Builder:
    """Builds one `Network`, with one call for each statement that a spec file would have.

    Example:
        >>> b = Builder("layer")
        >>> batch, n, o = b.index("batch", b.size("batch")), b.index("i", 784), b.index("o", 10)
        >>> x, w = b.input("x", batch, n), b.param("w", n, o)
        >>> y = b.equation("y", (batch, o), x * w, function="relu")
        >>> b.output(y, batch, o)
        >>> [index.name for index in b.build().indices()]
        ['batch', 'i', 'o']
    """

    def __init__(self, name: str) -> None:
        check_name(name, "a network")
        self.name = name
        self.sizes: dict[str, sympy.Expr] = {}
        self.defaults: dict[str, int] = {}
        self.index_sizes: dict[str, sympy.Expr] = {}
        self.tensors: dict[str, Core | Equation] = {}
        self._written: dict[str, Core | Equation] = {}
        self._declared: dict[str, Size] = {}
        self._weights: dict[str, int] = {}
        self._members: dict[str, str] = {}
        self._inputs: list[Port] = []
        self._outputs: list[Port] = []

    def size(self, name: str, value: SizeLike | None = None, *, inline: bool = False) -> sympy.Expr:
        """Name a size: a run-time size, read from the inputs at each call, or one with a default.

        Args:
            name: its name.
            value: its default, which may use sizes named before; None for a run-time size.
            inline: use the integer wherever the name is used, and leave no size of this name in the network.

        Raises:
            NetworkError: a name in use, or a value that is not a positive integer.
            LimitError: a value derived through too many run-time sizes.
        """
        check_name(name, "a size")
        if name in self.sizes:
            raise NetworkError(f"the size {name!r} is defined twice", "give one of them another name", at=name)
        expr = None if value is None else integer(value)
        default = None if expr is None else self.known(expr, name)
        if default is not None:
            _check_positive(default, f"{name!r}", name)
            self.defaults[name] = default
        elif expr is not None:
            self._weigh(name, expr)
        if inline and default is not None:
            self.sizes[name] = sympy.Integer(default)
        else:
            size = Size(str(name), expr)
            self._declared[name], self.sizes[name] = size, size.symbol
        return self.sizes[name]

    def _weigh(self, name: str, expr: sympy.Expr) -> None:
        weight = self._weights[name] = written_out(expr, self._weights)
        if any(symbol.name in self._weights for symbol in expr.free_symbols) and weight > COMPOSED:
            raise LimitError(
                f"the size {name!r} is derived through more than {COMPOSED:,} operations on run-time sizes",
                "make one of the sizes that it is derived from a run-time size",
                at=name,
            )

    def index(self, name: str, size: SizeLike | None = None) -> Position:
        """Return an index, declared with this size, or else with the size of the same name, if there is one.

        An index that is not declared yet and has neither gets its size from the equation that has it on its left.

        Raises:
            NetworkError: a second size for one index, or a size that is not positive.
        """
        check_dotted_name(name, "an index")
        if size is None and name not in self.index_sizes and name in self.sizes:
            size = self.sizes[name]
        if size is not None:
            self._declare(name, integer(size))
        return Position.of(name)

    def _declare(self, name: str, size: sympy.Expr) -> None:
        value = self.known(size, name)
        if value is not None:
            _check_positive(value, f"the index {name!r}", name)
        before = self.index_sizes.setdefault(name, size)
        if not is_same(before, size):
            raise NetworkError(
                f"the index {name!r} has two sizes: {before} and {size}", "use two names, or one size", at=name
            )

    def indices(self, names: str | Sequence[str], *sizes: SizeLike) -> tuple[Position, ...]:
        """Declare several indices, ``"i{1..4}"``, ``"a, b"`` or a list of names, with one size for all or one each.

        Raises:
            NetworkError: the number of sizes is neither 1 nor the number of names.
        """
        every = _names(names) if isinstance(names, str) else tuple(names)
        if len(sizes) not in (1, len(every)):
            raise NetworkError(
                f"there are {len(every)} indices and {len(sizes)} sizes",
                "give one size for all, or one each",
                next(iter(every), None),
            )
        shared = sizes if len(sizes) == len(every) else sizes * len(every)
        return tuple(self.index(name, size) for name, size in zip(every, shared, strict=True))

    def input(self, name: str, *axes: Axis) -> Tensor:
        """Declare an argument of ``forward``; a tuple of indices is one axis, first index slowest.

        Raises:
            NetworkError: a name in use, an unknown index or an index twice.
        """
        port = self._port(name, axes)
        handle = self._core(name, port.legs, "input")
        self._inputs.append(plain_port(port))
        return handle

    def param(self, name: str, *legs: Position, init: Call | None = None) -> Tensor:
        """Declare a tensor that is trained.

        Raises:
            NetworkError: a name in use, an unknown index, an index twice or of a run-time size.
        """
        return self._core(name, self._own(legs), "param", init)

    def buffer(self, name: str, *legs: Position, init: Call | None = None) -> Tensor:
        """Declare a tensor that is stored and not trained; it starts as zeros unless ``init`` says otherwise.

        Raises:
            NetworkError: as for `param`.
        """
        return self._core(name, self._own(legs), "buffer", init)

    def const(self, name: str, *legs: Position, kind: Call) -> Tensor:
        """Declare a fixed structured tensor: ``delta``, ``eye``, ``ones`` or ``("basis", k)``.

        Raises:
            NetworkError: a name in use, an unknown index, or legs that the kind cannot have.
        """
        return self._core(name, self._own(legs), "const", kind)

    def _core(self, name: str, legs: tuple[Index, ...], role: Role, init: Call | None = None) -> Tensor:
        self._check_room(name, legs)
        core = Core(name, legs, role, None if init is None else _init(init))
        if role in ("param", "buffer"):
            self._check_storable(core)
        if core.init is not None and core.init.kind == "basis":
            self._check_basis(core, core.init.args[0])
        self._check_fan_in(core)
        check_folders(self.tensors, self._members, core)
        self.tensors[name], self._written[name] = plain_core(core), core
        self._members.update(dict.fromkeys(core.folders, str(name)))
        return self.tensor(name)

    def _check_room(self, name: str, legs: Sequence[object]) -> None:
        check_new(self.tensors, name)
        if len(self.tensors) >= TENSORS:
            raise LimitError(f"the network has more than {TENSORS:,} tensors", "split it", at=name)
        if len(legs) > LEGS:
            raise LimitError(f"{name!r} has {len(legs)} legs", f"a tensor has at most {LEGS}", at=name)

    def _check_storable(self, core: Core) -> None:
        for leg in core.legs:
            if self._is_runtime(leg.size):
                raise NetworkError(
                    f"the leg {leg.name!r} of the {core.role} {core.name!r} has the run-time size {leg.size}",
                    "what is stored has sizes known before any input: give the size a value",
                    at=leg.name,
                )

    def _check_basis(self, core: Core, entry: float) -> None:
        size = self.known(core.legs[0].size, core.name)
        if entry != int(entry) or entry < 0 or (size is not None and entry >= size):
            raise NetworkError(
                f"basis({entry}) is outside the leg {core.legs[0].name!r} of size {core.legs[0].size}",
                "its entries count from 0",
                at=core.name,
            )

    def _check_fan_in(self, core: Core) -> None:
        check_fan_in(core, self.defaults)
        fan_in = self.known(core.fan_in, core.name) if core.fan_in is not None else None
        if core.init is not None and fan_in is not None and fan_in < 1:
            raise NetworkError(f"fan_in({core.fan_in}) is {fan_in}", "a fan-in is at least 1", at=core.init.kind)

    def tensor(self, name: str) -> Tensor:
        """Return the handle of a tensor defined before.

        Raises:
            NetworkError: no tensor has this name.
        """
        if name not in self.tensors:
            raise self._no_tensor(name)
        return tensor(name, tuple(leg.name for leg in self.tensors[name].legs))

    def _no_tensor(self, name: str) -> NetworkError:
        what = "a size" if name in self.sizes else "an index" if name in self.index_sizes else None
        if what is None:
            return unknown("tensor", name, self.tensors)
        return NetworkError(f"{name!r} is {what}, and a factor is a tensor", "make it a const or a buffer", at=name)

    def equation(
        self, name: str, legs: Iterable[Position], expression: Expression, function: Call | None = None
    ) -> Tensor:
        """Define a tensor as ``function(expression)``, which sums over the indices that are not among the legs.

        Raises:
            NetworkError: an unknown name, sizes that differ, or a leg that no term has.
        """
        if not isinstance(legs, Iterable) or isinstance(legs, str | Expression):
            raise NetworkError(
                f"the legs of {name!r} are not a tuple", f"write them as in equation({name!r}, (i, j), …)"
            )
        left = tuple(map(_plain_name, legs))
        self._check_room(name, left)
        self._determine(left, expression)
        pointed = None if function is None else Function(*_call(function))
        if pointed is not None:
            pointwise(pointed.name, pointed.args)
        terms = tuple(
            Term(_number(s.scale, name), tuple(self._access(factor) for factor in s.factors))
            for s in expression.summands
        )
        equation = Equation(name, tuple(map(self._index, left)), terms, pointed)
        check_equation(self.tensors, equation)
        self.tensors[name], self._written[name] = plain_equation(equation), equation
        return self.tensor(name)

    def _determine(self, left: Sequence[str], expression: Expression) -> None:
        """Declare each undeclared index on the left with the size that the first read of it determines.

        The loop repeats because the window of one index can depend on the size of another that is pending too.
        """
        reads = [read for s in expression.summands for factor in s.factors for read in self._reads(factor)]
        pending = [name for name in left if name not in self.index_sizes]
        while pending:
            sizes = {name: self._window(name, reads) for name in pending}
            determined = {name: size for name, size in sizes.items() if size is not None}
            if not determined:
                raise self._undetermined(pending[0], reads)
            for name, size in determined.items():
                self._declare(name, size)
            pending = [name for name in pending if name not in determined]

    def _reads(self, factor: Factor) -> Iterator[tuple[Index, Position]]:
        source = self.tensors.get(factor.source)
        if source is None:
            raise unknown("tensor", factor.source, self.tensors)
        check_count(source, factor.source, len(factor.positions))
        return zip(source.legs, factor.positions, strict=True)

    def _window(self, name: str, reads: Sequence[tuple[Index, Position]]) -> sympy.Expr | None:
        for leg, position in reads:
            if position.coefficient(name):
                return leg.size if position.plain else window_count(leg.size, position, name, self.index_sizes)
        return None

    def _undetermined(self, name: str, reads: Sequence[tuple[Index, Position]]) -> NetworkError:
        if not any(position.coefficient(name) for _, position in reads):
            return unknown("index", name, self.index_sizes)
        return NetworkError(
            f"the reads of {name!r} do not determine its size", f"declare it: index {name}: SIZE", at=name
        )

    def _access(self, factor: Factor) -> Access:
        return Access(factor.source, tuple(self._leg(own, position) for own, position in self._reads(factor)))

    def _leg(self, own: Index, position: Position) -> Leg:
        if position.plain is not None:
            return self._index(position.plain)
        at = position.terms[0][1] if position.terms else None
        wrap = position.modulus is not None
        if wrap and not is_same(position.modulus, own.size):
            raise NetworkError(
                f"the leg {own.name!r} of size {own.size} is read modulo {position.modulus}",
                "a cyclic read is modulo the size of its leg",
                at=at,
            )
        read = Read(own, tuple((c, self._index(name)) for c, name in position.terms), position.offset, wrap)
        check_reach(read, self.defaults, at)
        return read

    def output(self, result: Tensor | str, *axes: Axis) -> None:
        """Declare a result of ``forward``; a tuple of indices is one axis, first index slowest.

        Raises:
            NetworkError: an unknown result, or axes that are not its legs.
        """
        port = self._port(result.name if isinstance(result, Tensor) else result, axes)
        if port.name not in self.tensors:
            raise unknown("tensor", port.name, self.tensors)
        check_port(self.tensors, port)
        self._outputs.append(plain_port(port))

    def problems(self) -> Iterator[NetworkError]:
        """Yield the errors of what a complete network still lacks."""
        for size in unbound_sizes(self._declared.values(), self._inputs):
            name = next(name for name in self._declared if name == size.name)
            hint = f"put an index of this size on an input, or give it a value: size {name} = 1"
            yield NetworkError(f"no input binds the run-time size {name!r}", hint, at=name)
        if not self._outputs:
            yield NetworkError(
                f"the network {self.name!r} has no output", "end it with: output NAME[AXES]", at=self.name
            )

    def build(self) -> Network:
        """Return the finished network.

        Raises:
            NetworkError: no output, or a run-time size that no input binds.
        """
        for problem in self.problems():
            raise problem
        return self._network(tuple(self._declared.values()), self.tensors.values())

    def mistakes(self) -> Iterator[NetworkError]:
        """Yield likely mistakes in a network that builds, at names that know their place in a file."""
        sizes = tuple(Size(name, size.value) for name, size in self._declared.items())
        return find_mistakes(self._network(sizes, self._written.values()), self.index_sizes)

    def _network(self, sizes: tuple[Size, ...], sources: Iterable[Core | Equation]) -> Network:
        every = tuple(sources)
        return Network(
            str(self.name),
            sizes,
            tuple(core for core in every if isinstance(core, Core)),
            tuple(equation for equation in every if isinstance(equation, Equation)),
            tuple(self._inputs),
            tuple(self._outputs),
        )

    def known(self, expr: sympy.Expr, at: object) -> int | None:
        """Return the integer of an expression under the defaults, or None if it depends on a run-time size.

        Raises:
            NetworkError: an unknown size, or a value that is not an integer.
            LimitError: a value beyond 2**62.
        """
        for symbol in sorted(expr.free_symbols, key=str):
            if symbol.name not in self.sizes:
                raise NetworkError(f"there is no size {symbol.name!r}", f"name it first: size {symbol.name}", at=at)
        if any(symbol.name not in self.defaults for symbol in expr.free_symbols):
            return None
        try:
            value = evaluate_size(expr, self.defaults)
        except SizeError as error:
            raise NetworkError(str(error), at=at) from None
        if abs(value) > LARGEST:
            raise LimitError(f"{expr} is larger than 2**62", "no size may pass 2**62", at=at)
        return value

    def _is_runtime(self, size: sympy.Expr) -> bool:
        return any(symbol.name not in self.defaults for symbol in size.free_symbols)

    def _index(self, name: str) -> Index:
        if name not in self.index_sizes:
            raise unknown("index", name, self.index_sizes)
        return Index(name, self.index_sizes[name])

    def _own(self, legs: Iterable[Position]) -> tuple[Index, ...]:
        return tuple(self._index(_plain_name(leg)) for leg in legs)

    def _port(self, name: str, axes: Iterable[Axis]) -> Port:
        return Port(name, tuple(self._own(axis if isinstance(axis, tuple) else (axis,)) for axis in axes))


def unknown(what: str, name: str, names: Iterable[str]) -> NetworkError:
    """Return the error for a name that is not defined, with the closest name that is."""
    candidates = [str(other) for other, _ in zip(names, range(_SUGGESTED), strict=False)]
    near = get_close_matches(str(name), candidates, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"define the {what} before it is used"
    return NetworkError(f"there is no {what} {name!r} here", hint, at=name)


def _names(text: str) -> tuple[str, ...]:
    """Return the names that ``"i{1..4}"`` or ``"a, b"`` stands for."""
    names: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            names.append(part.strip())
            continue
        before, first, last, after = match[1], int(match[2]), int(match[3]), match[4]
        if not first <= last < first + RANGE:
            raise NetworkError(f"{part.strip()!r} has no members, or too many", f"a range has 1 to {RANGE:,}")
        names.extend(f"{before}{k}{after}" for k in range(first, last + 1))
    return tuple(names)


def _call(call: Call) -> tuple[str, tuple[float, ...]]:
    name, args = _named(call)
    return name, tuple(_number(arg, name) for arg in args)


def _named(call: Call) -> tuple[str, Sequence[object]]:
    if not isinstance(call, Sequence):
        raise NetworkError(f"{call!r} is not a name", "write a name, or a name and its numbers")
    name, *args = (call,) if isinstance(call, str) else call or ("",)
    if not isinstance(name, str):
        raise NetworkError(f"{name!r} is not a name", "write a name, or a name and its numbers")
    return name, args


def _init(call: Call) -> Init:
    kind, args = _named(call)
    return Init(kind, tuple(map(integer, args))) if kind == "fan_in" else Init(*_call(call))


def _number(value: object, at: str) -> int | float:
    """Return a number if the language can write it."""
    if isinstance(value, int) and abs(value) < 10**DIGITS:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise NetworkError(f"{value!r} at {at!r} is not a finite number", f"an integer has at most {DIGITS} digits", at=at)


def _plain_name(position: Position) -> str:
    if isinstance(position, tuple):
        raise NetworkError("a group of indices stands on a leg", "only axes of inputs and outputs are groups, unnested")
    if not isinstance(position, Position):
        raise NetworkError(f"{position!r} is not an index", "an index is what Builder.index and Builder.indices return")
    if position.plain is None:
        at = position.terms[0][1] if position.terms else None
        raise NetworkError(
            "a leg here is an index, and not a position", "read a leg at a position on the right of an equation", at=at
        )
    return position.plain


def _check_positive(value: int, what: str, at: object) -> None:
    if value < 1:
        raise NetworkError(f"{what} has size {value}", "a size is at least 1", at=at)
