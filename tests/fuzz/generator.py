"""Random networks over the whole language: few tensors, sizes of 1 to 4, and 1 most often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import sympy

from tests.fuzz.meaning import Meaning
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
)
from tngraph.language.sizes import symbol

TYPICAL = {"n": 3, "m": 2, "D": 2}
"""Numbers at which reads are made to reach their legs."""
MOST_WORK = 4096
"""A term has at most so many entries at these numbers, written out."""
SIZES = (*"1" * 7, *"2" * 6, *"3" * 4, "4", *"n" * 4, "m", *"D" * 3, "2*D", "n + 1", "2*n", "(n - 1)//2 + 1")
NAMES = (*"abcdefgh", "W.c", "V.k.e")
FOLDERS = ("", "", "", "W.", "V.k.")
SCALES = (1, 1, 1, 1, -1, 2, 0.5, -1.5)
HOLOMORPHIC = tuple(Function(name) for name in ("tanh", "sigmoid", "square", "sin", "cos"))
FUNCTIONS = (
    *HOLOMORPHIC,
    *(Function(name) for name in ("relu", "relu", "gelu", "silu", "softplus", "abs")),
    Function("leaky_relu", (0.1,)),
    Function("elu", (1.0,)),
)
INITS = (Init("zeros"), Init("ones"), Init("normal", (0.5,)), Init("uniform", (-1.0, 1.0)), Init("signs", (2,)))


def size_of(text: str) -> sympy.Expr:
    """A size as it is written above."""
    names = {name: symbol(name) for name in TYPICAL}
    if "//" in text:
        return sympy.floor((names["n"] - 1) / 2) + 1
    return sympy.sympify(text, locals=names)


def random_network(seed: int) -> Network:
    """A valid network with numbers in it, the same for the same seed, that is small enough to be written out."""
    rng = Random(seed)
    while True:
        network = _Maker(rng).network()
        has_numbers = any(core.role != "const" for core in network.cores)
        if has_numbers and Meaning(network, TYPICAL).work() <= MOST_WORK:
            return network


@dataclass
class _Maker:
    """A network in the making: the indices its terms use, and what has been defined so far."""

    rng: Random
    cores: list[Core] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)

    def __post_init__(self) -> None:
        sizes = [size_of(self.rng.choice(SIZES)) for _ in range(self.rng.randint(1, 4))]
        names = self.rng.sample(NAMES, self.rng.randint(2, 7))
        self.pool = [Index(name, self.rng.choice(sizes)) for name in names]
        self.on_left: list[Index] = []

    def happens(self, share: float) -> bool:
        return self.rng.random() < share

    def some(self, choices: Sequence[Index], most: int, least: int = 0) -> list[Index]:
        most = min(most, len(choices))
        return self.rng.sample(list(choices), self.rng.randint(min(least, most), most))

    def network(self) -> Network:
        first = self.binding_input() if self.runtime() or self.happens(0.5) else None
        for number in range(self.rng.choice((1, 1, 1, 2, 2, 3))):
            self.equation([first] if first is not None and number == 0 else [])
        if self.happens(0.07):
            self.positive_chain()
        return Network("drawn", self.sizes(), tuple(self.cores), tuple(self.equations), self.inputs(), self.outputs())

    # ------------------------------------------------------------------------------------------- sizes and ports

    def runtime(self) -> list[str]:
        names = {s.name for index in self.pool for s in index.size.free_symbols}
        return [name for name in ("n", "m") if name in names]

    def sizes(self) -> tuple[Size, ...]:
        every = [leg.size for core in self.cores for leg in core.legs] + [index.size for index in self.pool]
        used = {s.name for size in every for s in size.free_symbols}
        return tuple(Size(n, None if n in ("n", "m") else sympy.Integer(TYPICAL[n])) for n in TYPICAL if n in used)

    def inputs(self) -> tuple[Port, ...]:
        bound = [self.cores[0].legs[k] for k in range(len(self.runtime()))] if self.cores else []
        return tuple(self.port(core.name, core.legs, bound) for core in self.cores if core.role == "input")

    def outputs(self) -> tuple[Port, ...]:
        shown: list[Core | Equation] = [e for e in self.equations[:-1] if self.happens(0.25)]
        shown += [core for core in self.cores if core.role != "const" and self.happens(0.05)]
        if not shown or not self.happens(0.05):
            shown.append(self.equations[-1])
        self.rng.shuffle(shown)
        return tuple(
            self.port(s.name, self.rng.sample(s.legs, len(s.legs)) if self.happens(0.5) else s.legs) for s in shown
        )

    def port(self, name: str, legs: Sequence[Index], apart: Sequence[Index] = ()) -> Port:
        """The legs, at times fused or with an empty group; those that bind a size on axes of their own."""
        axes: list[tuple[Index, ...]] = []
        for leg in legs:
            if axes and leg not in apart and not set(axes[-1]) & set(apart) and self.happens(0.4):
                axes[-1] += (leg,)
            else:
                axes.append((leg,))
        if self.happens(0.06):
            axes.insert(self.rng.randint(0, len(axes)), ())
        return Port(name, tuple(axes))

    # ------------------------------------------------------------------------------------------- tensors

    def core(self, role: Role, sizes: Sequence[sympy.Expr], legs: Sequence[Leg], init: Init | None = None) -> Core:
        """A core under legs of its own, or under the indices that it is read with."""
        name = f"{self.rng.choice(FOLDERS)}{'x' if role == 'input' else role[0]}{len(self.cores)}"
        own = [
            leg if isinstance(leg, Index) and leg not in legs[:k] and self.happens(0.7) else Index(f"{name}_{k}", size)
            for k, (size, leg) in enumerate(zip(sizes, legs, strict=True))
        ]
        core = Core(name, tuple(own), role, init)
        self.cores.append(core)
        return core

    def binding_input(self) -> Access:
        """An input on which every run-time size stands on an axis of its own."""
        sizes = [symbol(name) for name in self.runtime()]
        legs: list[Leg | None] = [self.fitting(size) for size in sizes]
        others = self.some(self.pool, 2)
        name = f"x{len(self.cores)}"
        own = [Index(f"{name}_{k}", size) for k, size in enumerate([*sizes, *(leg.size for leg in others)])]
        core = Core(name, tuple(own), "input")
        self.cores.append(core)
        read = [self.read(leg) if index is None else index for leg, index in zip(own, [*legs, *others], strict=True)]
        return Access(core.name, tuple(read))

    def fitting(self, size: sympy.Expr) -> Index | None:
        fitting = [index for index in self.pool if index.size == size]
        return self.rng.choice(fitting) if fitting and self.happens(0.8) else None

    def role(self, sizes: Sequence[sympy.Expr]) -> Role:
        is_runtime = any(s.name in ("n", "m") for size in sizes for s in size.free_symbols)
        return "input" if is_runtime else self.rng.choice(("param", "param", "param", "param", "input", "buffer"))

    def fresh(self) -> Access:
        """A new tensor under indices, one of which may stand twice."""
        legs: list[Leg] = list(self.some(self.pool, 3))
        if legs and self.happens(0.12):
            legs.insert(self.rng.randint(0, len(legs)), self.rng.choice(legs))
        return self.new(legs, [leg.size for leg in legs if isinstance(leg, Index)])

    def new(self, legs: Sequence[Leg], sizes: Sequence[sympy.Expr]) -> Access:
        role = self.role(sizes)
        init = self.rng.choice(INITS) if role in ("param", "buffer") and self.happens(0.2) else None
        return Access(self.core(role, sizes, legs, init).name, tuple(legs))

    def const(self) -> Access:
        """A delta or eye over indices of one size, a basis vector, or ones."""
        first = self.rng.choice(self.pool)
        alike = [first, *(index for index in self.pool if index.size == first.size and index != first)]
        kind = self.rng.choice(("delta", "delta", "eye", "ones", "basis"))
        if kind == "basis":
            top = int(first.size) - 1 if first.size.is_Integer else 0
            return self.constant([first], Init(kind, (self.rng.randint(0, top),)))
        if kind == "ones":
            return self.constant(self.some(self.pool, 2), Init(kind))
        if kind == "eye" and len(alike) < 2:
            alike.append(first)
        legs = alike[:2] if kind == "eye" else self.rng.sample(alike, self.rng.randint(1, min(4, len(alike))))
        return self.constant(legs, Init(kind))

    def constant(self, legs: Sequence[Index], init: Init) -> Access:
        return Access(self.core("const", [leg.size for leg in legs], legs, init).name, tuple(legs))

    def again(self) -> Access:
        """A tensor that there is, under other indices or at positions."""
        sources = [*self.equations, *self.equations, *(core for core in self.cores if core.role != "const")]
        source = self.rng.choice(sources)
        return Access(source.name, tuple(self.leg(own) for own in source.legs))

    def leg(self, own: Index) -> Leg:
        fitting = self.fitting(own.size)
        if fitting is None or self.happens(0.15):
            return self.read(own) if self.happens(0.7) else own
        return fitting

    # ------------------------------------------------------------------------------------------- reads

    def read(self, own: Index) -> Read:
        indices = self.some(self.pool, 3, least=0 if self.happens(0.1) else 1)
        terms = tuple((self.rng.choice((1, 1, 1, 1, 2, -1, -1, -2)), index) for index in indices)
        wrap = bool(terms) and self.happens(0.2)
        offset = self.rng.choice((sympy.Integer(0), *map(sympy.Integer, (0, 1, -1, 2, -2)), own.size - 1))
        return Read(own, terms, offset if wrap else _reaching(own.size, terms, offset), wrap)

    def window(self) -> list[Access]:
        """A tensor read at an output position and a kernel position, and mostly the kernel."""
        if len(self.pool) < 2:
            return [self.fresh()]
        position, kernel = self.rng.sample(self.pool, 2)
        stride, dilation = self.rng.choice((1, 1, 1, 2, 3)), self.rng.choice((1, 1, 1, 2, -1, -2))
        terms = ((stride, position), (dilation, kernel))
        reach = stride * (position.size - 1) + abs(dilation) * (kernel.size - 1)
        padding = self.rng.choice((0, 0, 1, 2))
        fits = (reach + 1 - padding, reach + 1 - 2 * padding, position.size, stride * position.size, kernel.size)
        size = self.rng.choice([size for size in fits if _at(size) >= 1 and _is_size(size)] or [position.size])
        wrap = self.happens(0.15)
        low = sympy.Integer(0) if dilation > 0 else -dilation * (kernel.size - 1)
        offset = low - padding if wrap else _reaching(size, terms, low - padding)
        if self.happens(0.12):  # The transposed convolution: the kernel is read, and the position is summed.
            terms = ((1, position), (-stride, kernel))
            offset, size, wrap = _reaching(position.size, terms, sympy.Integer(padding)), position.size, False
        self.on_left.append(position)
        others: list[Leg] = list(self.some([i for i in self.pool if i not in (position, kernel)], 2))
        source = self.windowed(terms, offset, wrap, size, others)
        if not self.happens(0.85):
            return [source]
        legs = [kernel, *self.some([i for i in self.pool if i not in (position, kernel)], 2)]
        self.rng.shuffle(legs)
        return [source, self.new(legs, [leg.size for leg in legs])]

    def windowed(
        self, terms: tuple[tuple[int, Index], ...], offset: sympy.Expr, wrap: bool, size: sympy.Expr, others: list[Leg]
    ) -> Access:
        place = self.rng.randint(0, len(others))
        sizes = [leg.size for leg in others if isinstance(leg, Index)]
        sizes.insert(place, size)
        core = self.core(
            self.role(sizes), sizes, [*others[:place], Read(Index("_", size), terms, offset), *others[place:]]
        )
        legs = [*others[:place], Read(core.legs[place], terms, offset, wrap), *others[place:]]
        return Access(core.name, tuple(legs))

    # ------------------------------------------------------------------------------------------- equations

    def factors(self) -> list[Access]:
        kind = self.rng.choice(("fresh", "fresh", "fresh", "fresh", "again", "again", "window", "window", "const"))
        if kind == "window":
            return self.window()
        if kind == "again" and (self.cores or self.equations):
            has_sources = self.equations or any(core.role != "const" for core in self.cores)
            return [self.again()] if has_sources else [self.fresh()]
        return [self.const() if kind == "const" else self.fresh()]

    def equation(self, first: Sequence[Access]) -> None:
        terms = []
        for number in range(self.rng.choice((1, 1, 1, 2, 3))):
            accesses = [
                *(first if number == 0 else ()),
                *(f for _ in range(self.rng.choice((1, 1, 2, 2, 3))) for f in self.factors()),
            ]
            self.rng.shuffle(accesses)
            terms.append(Term(self.rng.choice(SCALES), tuple(accesses[:6])))
        before = self.equations[-1:]
        if before and not any(a.source == before[0].name for term in terms for a in term.accesses):
            access = Access(before[0].name, tuple(self.leg(own) for own in before[0].legs))
            terms[0] = Term(terms[0].scale, (access, *terms[0].accesses[:5]))
        function = self.rng.choice(FUNCTIONS) if self.happens(0.3) else None
        self.add(self.left(terms), tuple(terms), function)

    def left(self, terms: Sequence[Term]) -> tuple[Index, ...]:
        present = [*dict.fromkeys(i for term in terms for access in term.accesses for i in access.indices)]
        wanted = [index for index in dict.fromkeys(self.on_left) if index in present and self.happens(0.8)][:2]
        legs = wanted + self.some([index for index in present if index not in wanted], 3 - len(wanted))
        self.rng.shuffle(legs)
        return tuple(legs)

    def add(self, legs: tuple[Index, ...], terms: tuple[Term, ...], function: Function | None) -> None:
        taken = {source.name for source in (*self.cores, *self.equations)}
        names = [
            f"{self.rng.choice(FOLDERS)}y{len(self.equations)}",
            *({"W", "V.k"} - taken if self.happens(0.1) else ()),
        ]
        self.equations.append(Equation(sorted(names)[0], legs, terms, function))

    def positive_chain(self) -> None:
        """A logarithm or a root of what is positive."""
        last = self.equations[-1]
        whole = Access(last.name, last.legs)
        self.add(last.legs, (Term(1, (whole,)),), Function(self.rng.choice(("softplus", "exp", "sigmoid"))))
        positive = Access(self.equations[-1].name, last.legs)
        self.add(last.legs, (Term(2, (positive,)),), Function(self.rng.choice(("log", "sqrt"))))


def _at(size: sympy.Expr) -> int:
    return int(sympy.sympify(size).xreplace({symbol(name): sympy.Integer(value) for name, value in TYPICAL.items()}))


def _is_size(size: sympy.Expr) -> bool:
    """Whether a size is a positive integer however small the sizes in it are."""
    ones = {symbol(name): sympy.Integer(1) for name in TYPICAL}
    return int(sympy.sympify(size).xreplace(ones)) >= 1


def _reaching(size: sympy.Expr, terms: Sequence[tuple[int, Index]], offset: sympy.Expr) -> sympy.Expr:
    """The offset, or one at which the read reaches its leg: that all positions lie outside is an error."""
    low = _at(offset) + sum(min(0, c * (_at(index.size) - 1)) for c, index in terms)
    high = _at(offset) + sum(max(0, c * (_at(index.size) - 1)) for c, index in terms)
    if high < 0:
        return offset - high
    return offset - (low - _at(size) + 1) if low >= _at(size) else offset
