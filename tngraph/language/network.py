"""Networks as frozen values that only check themselves.

A `Network` has cores (tensors with named legs) and equations over them. The text of a file, the Python builder and the
imports all produce these values, and everything downstream (meaning, plan, counts, code) is a loop over them.

Invariants: Names are ASCII identifiers; those of tensors and indices may be several joined by dots. An index name has
one size in the whole network. An access has exactly the legs of its source. A name is defined once, and before it is
used.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import sympy

from tngraph.errors import NetworkError
from tngraph.language.sizes import is_same, symbol

Role = Literal["input", "param", "buffer", "const"]

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"
_NAME = re.compile(rf"{_IDENTIFIER}\Z", re.ASCII)
_DOTTED = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*\Z", re.ASCII)
LONGEST_NAME = 128


def is_dotted_name(text: str) -> bool:
    """Return whether a text is ASCII identifiers joined by single dots, of at most 128 characters in all."""
    return len(text) <= LONGEST_NAME and bool(_DOTTED.match(text))


def check_name(name: str, what: str) -> None:
    """Raise `NetworkError` unless a name is an ASCII identifier of at most 128 characters."""
    if not isinstance(name, str) or not is_dotted_name(name):
        raise _no_name(name, what)
    if not _NAME.match(name):
        raise NetworkError(f"{name!r} cannot name {what}", "only tensors and indices have dots in their names", at=name)


def check_dotted_name(name: str, what: str) -> None:
    """Raise `NetworkError` unless a name is ASCII identifiers joined by single dots, of at most 128 characters."""
    if not isinstance(name, str) or not is_dotted_name(name):
        raise _no_name(name, what)


def _no_name(name: object, what: str) -> NetworkError:
    shown = repr(name) if len(str(name)) <= LONGEST_NAME else repr(str(name)[:LONGEST_NAME]) + "…"
    return NetworkError(
        f"{shown} cannot name {what}",
        f"a name is ASCII letters, digits and underscores, at most {LONGEST_NAME}, and starts with no digit",
        at=name,
    )


def folders(name: str) -> tuple[str, ...]:
    """Return the folders that a dotted name lies in, outermost first: ``a`` and ``a.b`` for ``a.b.c``."""
    parts = name.split(".")
    return tuple(".".join(parts[:count]) for count in range(1, len(parts)))


@dataclass(frozen=True, slots=True)
class Size:
    """A named size: read off an input at run time (``value`` is None), or with a default in terms of earlier sizes."""

    name: str
    value: sympy.Expr | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "a size")

    @property
    def symbol(self) -> sympy.Symbol:
        """The symbol that stands for this size in every formula."""
        return symbol(self.name)


@dataclass(frozen=True, slots=True)
class Index:
    """A label with a size [elements]."""

    name: str
    size: sympy.Expr

    def __post_init__(self) -> None:
        check_dotted_name(self.name, "an index")
        if self.size.is_Integer and self.size <= 0:
            raise NetworkError(f"the index {self.name!r} has size {self.size}", "a size is at least 1", at=self.name)

    def __repr__(self) -> str:
        return f"{self.name}:{self.size}"


@dataclass(frozen=True, slots=True)
class Read:
    """A leg read at the affine position Σ coefficient·index + offset. Reads outside the leg give zero.

    ``leg`` is the source's own leg. With ``wrap`` the position is taken modulo the leg's size instead.
    """

    leg: Index
    terms: tuple[tuple[int, Index], ...]
    offset: sympy.Expr
    wrap: bool = False

    def __post_init__(self) -> None:
        indices = [index for _, index in self.terms]
        if len(set(indices)) != len(indices) or any(coefficient == 0 for coefficient, _ in self.terms):
            raise NetworkError(f"a read of {self.leg.name!r} has an index twice, or times 0", "add up its coefficients")
        if self.wrap and not self.terms:
            raise NetworkError(f"a cyclic read of {self.leg.name!r} has no index", "drop the modulo")

    @property
    def indices(self) -> tuple[Index, ...]:
        """The indices the position depends on, in order of mention."""
        return tuple(index for _, index in self.terms)


Leg = Index | Read


@dataclass(frozen=True, slots=True)
class Init:
    """The initialisation of a stored tensor, or the kind of a const: a word and its numbers, as ``normal(0.02)``.

    The number of ``fan_in`` is a size.
    """

    kind: str
    args: tuple[float | sympy.Expr, ...] = ()


INIT_ARGS: Mapping[str, tuple[int, ...]] = {
    "normal": (1,),
    "uniform": (2,),
    "zeros": (0,),
    "ones": (0,),
    "eye": (0, 1),
    "orthogonal": (0, 1),
    "fan_in": (1,),
    "near_eye": (1,),
    "signs": (1,),
}
"""The counts of numbers that each initialisation can take."""
CONST_ARGS: Mapping[str, tuple[int, ...]] = {"delta": (0,), "basis": (1,), "ones": (0,), "eye": (0,)}
"""The counts of numbers that each kind of const can take."""


@dataclass(frozen=True, slots=True)
class Core:
    """A tensor of the network: its legs in storage order, its role and its initialisation."""

    name: str
    legs: tuple[Index, ...]
    role: Role
    init: Init | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of a module that it is stored in, outermost first; empty for an input, which is not stored."""
        return folders(self.name) if self.role != "input" else ()

    @property
    def fan_in(self) -> sympy.Expr | None:
        """The size that a ``fan_in`` initialisation is for; None for other initialisations."""
        init = self.init
        return sympy.sympify(init.args[0]) if init is not None and init.kind == "fan_in" else None

    def __post_init__(self) -> None:
        check_dotted_name(self.name, f"a {self.role}")
        _check_legs(self)
        kinds = CONST_ARGS if self.role == "const" else INIT_ARGS
        if self.init is None:
            if self.role == "const":
                raise NetworkError(f"the const {self.name!r} says no kind", f"kinds: {', '.join(kinds)}", at=self.name)
            return
        if self.role == "input":
            raise NetworkError(f"the {self.role} {self.name!r} takes no initialisation", at=self.name)
        if self.init.kind not in kinds:
            raise NetworkError(
                f"{self.init.kind!r} is no {'kind of const' if self.role == 'const' else 'initialisation'}",
                f"there are: {', '.join(kinds)}",
                at=self.init.kind,
            )
        _check_numbers(self.init, kinds[self.init.kind])
        if self.role == "const":
            _check_structure(self, self.init)


def _check_numbers(init: Init, counts: tuple[int, ...]) -> None:
    """Raise `NetworkError` unless an initialisation has the numbers that its kind needs."""
    kind, args = init.kind, init.args
    if len(args) not in counts:
        raise NetworkError(f"{kind} takes {' or '.join(map(str, counts))} number(s), not {len(args)}", at=kind)
    if kind in ("normal", "near_eye") and args[0] < 0:
        raise NetworkError(f"{kind}({args[0]}) has a negative standard deviation", at=kind)
    if kind == "uniform" and args[0] > args[1]:
        raise NetworkError(f"uniform({args[0]}, {args[1]}) is empty", "the lower number stands first", at=kind)
    if kind == "fan_in":
        fan_in = sympy.sympify(args[0]) if isinstance(args[0], int | sympy.Expr) else sympy.nan
        if not fan_in.free_symbols and not (fan_in.is_Integer and fan_in >= 1):
            raise NetworkError(f"fan_in({args[0]}) is not a number of entries", "it is a size, and at least 1", at=kind)


def _check_legs(core: Core) -> None:
    for position, leg in enumerate(core.legs):
        if any(leg.name == earlier.name for earlier in core.legs[:position]):
            raise NetworkError(
                f"the {core.role} {core.name!r} has the leg {leg.name!r} twice",
                "a tensor's own legs differ; use one index twice where it is read",
                at=leg.name,
            )


def _check_structure(core: Core, init: Init) -> None:
    """Raise `NetworkError` unless a const has the legs that its kind needs."""
    count = len(core.legs)
    if init.kind == "delta":
        for leg in core.legs[1:]:
            if not is_same(leg.size, core.legs[0].size):
                raise NetworkError(
                    f"the legs of the delta {core.name!r} have the sizes {core.legs[0].size} and {leg.size}",
                    "all legs of a delta have one size",
                    at=leg.name,
                )
    wanted = {"delta": max(1, count), "eye": 2, "basis": 1}.get(init.kind, count)
    if count != wanted:
        raise NetworkError(
            f"{init.kind} has {wanted} leg(s), and {core.name!r} has {count}", "give it that many", at=core.name
        )


@dataclass(frozen=True, slots=True)
class Access:
    """A source (a core or an earlier equation) with an index, or a read, in place of each of its legs."""

    source: str
    legs: tuple[Leg, ...]

    @property
    def indices(self) -> tuple[Index, ...]:
        """The indices this access depends on, once each, in order of mention."""
        return tuple(dict.fromkeys(i for leg in self.legs for i in (leg.indices if isinstance(leg, Read) else (leg,))))


@dataclass(frozen=True, slots=True)
class Term:
    """A number times a product of accesses, summed over every index that is not on the left-hand side."""

    scale: int | float
    accesses: tuple[Access, ...]

    def __post_init__(self) -> None:
        if not self.accesses:
            raise NetworkError(f"the term {self.scale} has no tensor", "multiply the number by a const of ones")


@dataclass(frozen=True, slots=True)
class Function:
    """A pointwise function and its numbers, as ``leaky_relu(0.1)``."""

    name: str
    args: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Equation:
    """``name[legs] = function(Σ terms)``. A leg that a term lacks is broadcast."""

    name: str
    legs: tuple[Index, ...]
    terms: tuple[Term, ...]
    function: Function | None = None

    def __post_init__(self) -> None:
        check_dotted_name(self.name, "a result")
        if not self.terms:
            raise NetworkError(f"the equation {self.name!r} has no terms", "an empty sum cannot be written", self.name)


@dataclass(frozen=True, slots=True)
class Port:
    """An argument or a result of ``forward``. Each axis is a tuple of fused indices, slowest first."""

    name: str
    axes: tuple[tuple[Index, ...], ...]

    @property
    def legs(self) -> tuple[Index, ...]:
        """The axes unfused, in order."""
        return tuple(index for axis in self.axes for index in axis)


@dataclass(frozen=True, slots=True)
class Network:
    """One tensor network: sizes, cores in order of declaration, equations in order, inputs and outputs."""

    name: str
    sizes: tuple[Size, ...]
    cores: tuple[Core, ...]
    equations: tuple[Equation, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def __post_init__(self) -> None:
        check_name(self.name, "a network")
        _check_definitions(self)
        _check_indices(self)
        _check_stored(self)
        _check_ports(self)

    def sources(self) -> dict[str, Core | Equation]:
        """Return everything that an access may name, by name."""
        sources: tuple[Core | Equation, ...] = (*self.cores, *self.equations)
        return {source.name: source for source in sources}

    def indices(self) -> tuple[Index, ...]:
        """Return every index of the network, once each, in order of first mention."""
        return tuple(dict.fromkeys(_mentions(self)))

    def runtime_sizes(self) -> tuple[str, ...]:
        """Return the names of the sizes read off inputs at each call."""
        return tuple(size.name for size in self.sizes if size.value is None)

    def settable_sizes(self) -> tuple[Size, ...]:
        """Return the sizes known before any input is given: those whose value depends on no run-time size."""
        settable: dict[str, Size] = {}
        for size in self.sizes:
            if size.value is not None and all(symbol.name in settable for symbol in size.value.free_symbols):
                settable[size.name] = size
        return tuple(settable.values())


def _mentions(network: Network) -> Iterator[Index]:
    for core in network.cores:
        yield from core.legs
    for equation in network.equations:
        yield from equation.legs
        for term in equation.terms:
            for access in term.accesses:
                yield from access.indices


def _check_definitions(network: Network) -> None:
    defined: dict[str, Core | Equation] = {}
    members: dict[str, str] = {}
    for core in network.cores:
        check_new(defined, core.name)
        check_folders(defined, members, core)
        defined[core.name] = core
        members.update(dict.fromkeys(core.folders, core.name))
    for equation in network.equations:
        check_equation(defined, equation)
        defined[equation.name] = equation


def check_new(defined: Mapping[str, object], name: str) -> None:
    """Raise `NetworkError` if there is already a tensor of this name."""
    if name in defined:
        raise NetworkError(f"the name {name!r} is defined twice", "give one of them another name", at=name)


def check_folders(defined: Mapping[str, Core | Equation], members: Mapping[str, str], core: Core) -> None:
    """Raise `NetworkError` if a module would need the same name for a tensor and for a folder of tensors.

    Args:
        defined: the tensors so far.
        members: a tensor in each folder of the stored tensors so far.
        core: the next tensor.
    """
    outer = [defined[folder] for folder in core.folders if folder in defined]
    stored = [source for source in outer if isinstance(source, Core) and source.role != "input"]
    inner = members.get(core.name) if core.role != "input" else None
    if stored or inner is not None:
        tensor, member = (stored[0].name, core.name) if stored else (core.name, inner)
        raise NetworkError(
            f"{str(tensor)!r} is a tensor, and {str(member)!r} needs a folder of this name",
            "what is stored lies in folders by its dots: give one of them another name",
            at=core.name,
        )


def check_equation(defined: Mapping[str, Core | Equation], equation: Equation) -> None:
    """Raise `NetworkError` unless an equation defines a new name from earlier ones, with legs that fit."""
    check_new(defined, equation.name)
    for term in equation.terms:
        for access in term.accesses:
            _check_access(defined, access)
    on_right = {i.name for term in equation.terms for access in term.accesses for i in access.indices}
    seen: set[str] = set()
    for index in equation.legs:
        if index.name not in on_right:
            raise NetworkError(
                f"no term of {equation.name!r} has the index {index.name!r} of its left-hand side",
                "put the index on a term, or drop it on the left",
                at=index.name,
            )
        if index.name in seen:
            raise NetworkError(f"the left-hand side of {equation.name!r} names {index.name!r} twice", at=index.name)
        seen.add(index.name)


def _check_access(defined: Mapping[str, Core | Equation], access: Access) -> None:
    source = defined.get(access.source)
    if source is None:
        raise NetworkError(f"there is no tensor {access.source!r} here", at=access.source)
    check_count(source, access.source, len(access.legs))
    for own, leg in zip(source.legs, access.legs, strict=True):
        size = leg.leg.size if isinstance(leg, Read) else leg.size
        if not is_same(own.size, size):
            name = leg.leg.name if isinstance(leg, Read) else leg.name
            raise NetworkError(
                f"the leg {own.name!r} of {access.source!r} has size {own.size}, and the index {name!r} has {size}",
                "an index and the leg it reads have one size",
                at=name,
            )


def check_count(source: Core | Equation, name: str, count: int) -> None:
    """Raise `NetworkError` unless a source has this many legs; ``name`` is the source's name as the user wrote it."""
    if len(source.legs) != count:
        legs = ", ".join(leg.name for leg in source.legs)
        raise NetworkError(
            f"{name!r} has {len(source.legs)} legs and is read with {count}", f"its legs: [{legs}]", name
        )


def _check_indices(network: Network) -> None:
    sizes: dict[str, sympy.Expr] = {}
    symbols = {size.symbol for size in network.sizes}
    for index in _mentions(network):
        if not is_same(sizes.setdefault(index.name, index.size), index.size):
            raise NetworkError(
                f"the index {index.name!r} has two sizes: {sizes[index.name]} and {index.size}",
                "use two names, or one size",
                at=index.name,
            )
        for unknown in index.size.free_symbols - symbols:
            raise NetworkError(f"the index {index.name!r} has the unknown size {unknown.name!r}", at=index.name)


def _check_stored(network: Network) -> None:
    """Raise `NetworkError` unless every tensor that a module stores has a shape before any input is seen."""
    symbols = {size.symbol for size in network.settable_sizes()}
    for core in network.cores:
        for leg in core.legs:
            if core.role in ("param", "buffer") and leg.size.free_symbols - symbols:
                raise NetworkError(
                    f"the leg {leg.name!r} of the {core.role} {core.name!r} has the run-time size {leg.size}",
                    f"a {core.role} has one shape whatever the input: give the size a value",
                    at=leg.name,
                )
        check_fan_in(core, {symbol.name for symbol in symbols})


def check_fan_in(core: Core, settable: Container[str]) -> None:
    """Raise `NetworkError` if the fan-in of a core depends on a size that is not a compile-time size."""
    names = sorted(symbol.name for symbol in core.fan_in.free_symbols) if core.fan_in is not None else []
    unknown = [name for name in names if name not in settable]
    if unknown:
        raise NetworkError(
            f"the fan-in of {core.name!r} depends on {unknown[0]!r}, which is not a compile-time size",
            "what is stored starts before any input: give the size a value",
            at=core.init.kind if core.init is not None else None,
        )


def _check_ports(network: Network) -> None:
    sources = network.sources()
    inputs = [core.name for core in network.cores if core.role == "input"]
    if inputs != [port.name for port in network.inputs]:
        raise NetworkError("the inputs of a network are its cores of role input, in order")
    if not network.outputs:
        raise NetworkError(
            f"the network {network.name!r} has no output", "end it with: output NAME[AXES]", at=network.name
        )
    for port in (*network.inputs, *network.outputs):
        check_port(sources, port)
    for port in network.inputs:
        if port.legs != sources[port.name].legs:
            raise NetworkError(f"the axes of the input {port.name!r} are its legs in order", at=port.name)


def check_port(sources: Mapping[str, Core | Equation], port: Port) -> None:
    """Raise `NetworkError` unless a port has the legs of a tensor of the network, in some order."""
    source = sources.get(port.name)
    if source is None:
        raise NetworkError(f"there is no result {port.name!r} to put out", at=port.name)
    if {leg.name for leg in source.legs} != {leg.name for leg in port.legs} or len(source.legs) != len(port.legs):
        raise NetworkError(
            f"{port.name!r} has the legs [{', '.join(leg.name for leg in source.legs)}], "
            f"and not [{', '.join(leg.name for leg in port.legs)}]",
            at=port.name,
        )
