"""Networks that tests share: `TABLE`, one by hand per feature of the language, and `networks`, drawn at random.

Both stay small: an index has size 1 to 4 and a term at most seven indices, so the literal reading is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import sympy
from hypothesis import strategies as st

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
from tngraph.language.reference import compile_time_sizes
from tngraph.language.sizes import evaluate_size, symbol

Draw = Callable[[st.SearchStrategy], object]
RUNTIME_DEFAULT = 3
RUNTIME = {"n": 3, "m": 2}
"""The run-time sizes of drawn networks, with the values at which a drawn read is made to reach its leg."""


def random_arrays(network: Network, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal arrays for every input (under its axes), param and buffer.

    Args:
        network: the network.
        sizes: values of run-time sizes (`RUNTIME` or 3 where absent) and overrides of compile-time ones.
        seed: of the generator.
    """
    given = dict(sizes or {})
    runtime = {name: given.pop(name, RUNTIME.get(name, RUNTIME_DEFAULT)) for name in network.runtime_sizes()}
    values = {**compile_time_sizes(network, given), **runtime}
    for size in network.sizes:
        if size.name not in values:
            values[size.name] = evaluate_size(size.value, values)
    generator = np.random.default_rng(seed)
    ports = {port.name: port.axes for port in network.inputs}
    arrays = {}
    for core in network.cores:
        if core.role != "const":
            axes = ports.get(core.name, tuple((leg,) for leg in core.legs))
            shape = [int(np.prod([evaluate_size(leg.size, values) for leg in axis])) for axis in axes]
            arrays[core.name] = generator.normal(size=shape)
    return arrays


# ----------------------------------------------------------------------------------- networks by hand


@dataclass(frozen=True)
class At:
    """A leg read at Σ coefficient·index + offset, in a `sketch`."""

    terms: Mapping[str, int]
    offset: int | str = 0
    wrap: bool = False


AccessSketch = tuple[str, Sequence[str | At]]
TermSketch = tuple[float, Sequence[AccessSketch]]


def sketch(
    indices: Mapping[str, int | str],
    cores: Mapping[str, tuple[str, str] | tuple[str, str, Init]],
    equations: Sequence[tuple[str, str, Sequence[TermSketch]] | tuple[str, str, Sequence[TermSketch], Function]],
    ports: Mapping[str, Sequence[str]],
    sizes: Mapping[str, str | int | None] | None = None,
) -> Network:
    """A network from names: legs as ``"b i"``, the axes of a port as ``["b", "i j"]``, sizes as formulas.

    An input without a port has one axis per leg; every other port is an output.
    """
    known = {name: Index(name, _formula(size)) for name, size in indices.items()}
    made = {name: Core(name, _legs(known, legs), role, *init) for name, (role, legs, *init) in cores.items()}
    results: dict[str, Core | Equation] = dict(made)
    for name, legs, terms, *function in equations:
        built = tuple(Term(scale, tuple(_access(known, results, a) for a in accesses)) for scale, accesses in terms)
        results[name] = Equation(name, _legs(known, legs), built, *function)
    inputs = [core for core in made.values() if core.role == "input"]
    return Network(
        "sketch",
        tuple(Size(name, None if value is None else _formula(value)) for name, value in (sizes or {}).items()),
        tuple(made.values()),
        tuple(source for source in results.values() if isinstance(source, Equation)),
        tuple(_port(known, c.name, ports.get(c.name, [leg.name for leg in c.legs])) for c in inputs),
        tuple(_port(known, name, axes) for name, axes in ports.items() if name not in {c.name for c in inputs}),
    )


def _formula(size: int | str) -> sympy.Expr:
    names = {name: symbol(name) for name in ("batch", "height", "width", "n", "m", "D", "E")}
    return sympy.sympify(size, locals=names)


def _legs(known: Mapping[str, Index], names: str) -> tuple[Index, ...]:
    return tuple(known[name] for name in names.split())


def _port(known: Mapping[str, Index], name: str, axes: Sequence[str]) -> Port:
    return Port(name, tuple(_legs(known, axis) for axis in axes))


def _access(known: Mapping[str, Index], sources: Mapping[str, Core | Equation], made: AccessSketch) -> Access:
    source, legs = made
    legs = legs.split() if isinstance(legs, str) else legs
    own = sources[source].legs
    return Access(source, tuple(_leg(known, at, leg) for at, leg in zip(own, legs, strict=True)))


def _leg(known: Mapping[str, Index], own: Index, leg: str | At) -> Leg:
    if isinstance(leg, str):
        return known[leg]
    return Read(own, tuple((c, known[name]) for name, c in leg.terms.items()), _formula(leg.offset), leg.wrap)


def _one(*accesses: AccessSketch) -> list[TermSketch]:
    return [(1, accesses)]


BATCH: Mapping[str, str | int | None] = {"batch": None}
SPACE: Mapping[str, str | int | None] = {"batch": None, "height": None, "width": None}
DELTA = Init("delta")

TABLE: dict[str, Network] = {
    "matrix product": sketch(
        {"b": "batch", "i": 3, "j": 4},
        {"x": ("input", "b i"), "w": ("param", "i j")},
        [("y", "b j", _one(("x", "b i"), ("w", "i j")))],
        {"y": ["b", "j"]},
        BATCH,
    ),
    "fused axes, bias and function": sketch(
        {"b": "batch", "i1": 2, "i2": 3, "o1": 3, "o2": 2, "r": "D"},
        {"x": ("input", "b i1 i2"), "w1": ("param", "i1 o1 r"), "w2": ("param", "r i2 o2"), "bias": ("param", "o1 o2")},
        [
            (
                "y",
                "b o1 o2",
                [(1, [("x", "b i1 i2"), ("w1", "i1 o1 r"), ("w2", "r i2 o2")]), (1, [("bias", "o1 o2")])],
                Function("relu"),
            )
        ],
        {"x": ["b", "i1 i2"], "y": ["b", "o2 o1"]},
        {"batch": None, "D": 2},
    ),
    "tied cores in a ring": sketch(
        {"b": "batch", "i1": 2, "i2": 2, "i3": 2, "r1": 3, "r2": 3, "r3": 3},
        {"x": ("input", "b i1 i2 i3"), "g": ("param", "r1 i1 r2")},
        [("y", "b", _one(("x", "b i1 i2 i3"), ("g", "r1 i1 r2"), ("g", "r2 i2 r3"), ("g", "r3 i3 r1")))],
        {"x": ["b", "i1 i2 i3"], "y": ["b"]},
        BATCH,
    ),
    "hyperedge": sketch(
        {"b": "batch", "i": 3, "j": 4, "o": 2, "r": 3},
        {"x": ("input", "b i j"), "u": ("param", "i r"), "v": ("param", "j r"), "w": ("param", "o r")},
        [("y", "b o", _one(("x", "b i j"), ("u", "i r"), ("v", "j r"), ("w", "o r")))],
        {"y": ["b", "o"]},
        BATCH,
    ),
    "delta inside": sketch(
        {"s": 2, "t": 3, "c1": 3, "c2": 3, "c3": 3},
        {
            "f": ("input", "s t"),
            "copy": ("const", "c1 c2 c3", DELTA),
            "p": ("param", "c1 s"),
            "q": ("param", "c2 t"),
            "r": ("buffer", "c3"),
        },
        [("y", "", _one(("f", "s t"), ("copy", "c1 c2 c3"), ("p", "c1 s"), ("q", "c2 t"), ("r", "c3")))],
        {"y": []},
    ),
    "delta on outputs": sketch(
        {"b": "batch", "i": 3, "j": 3, "k": 3},
        {"x": ("input", "b i"), "copy": ("const", "i j k", DELTA)},
        [("y", "b j k", _one(("x", "b i"), ("copy", "i j k")))],
        {"y": ["b", "j k"]},
        BATCH,
    ),
    "delta alone": sketch(
        {"i": 3, "j": 3, "k": 3, "l": 3},
        {"x": ("input", "i"), "copy": ("const", "i j k l", DELTA)},
        [("y", "i j", [(1, [("copy", "i j k l")]), (1, [("x", "i")])])],
        {"y": ["i", "j"]},
    ),
    "consts": sketch(
        {"b": "batch", "i": 3, "j": 3, "k": 4},
        {
            "x": ("input", "b i"),
            "identity": ("const", "i j", Init("eye")),
            "second": ("const", "k", Init("basis", (1,))),
            "every": ("const", "j", Init("ones")),
        },
        [("y", "b i k", _one(("x", "b i"), ("identity", "i j"), ("second", "k"), ("every", "j")))],
        {"y": ["b", "i", "k"]},
        BATCH,
    ),
    "diagonal and trace": sketch(
        {"b": "batch", "i": 3, "j": 3, "k": 2, "l": 2},
        {"x": ("input", "b i j"), "w": ("param", "k l")},
        [("y", "b i", _one(("x", "b i i"), ("w", "k k")))],
        {"y": ["b", "i"]},
        BATCH,
    ),
    "broadcast terms and scales": sketch(
        {"b": "batch", "i": 3, "j": 2},
        {"x": ("input", "b i"), "u": ("param", "i"), "v": ("param", "j"), "a": ("param", "")},
        [("y", "b i j", [(2, [("x", "b i")]), (-0.5, [("u", "i"), ("v", "j")]), (1, [("a", "")])])],
        {"y": ["b", "i j"]},
        BATCH,
    ),
    "summed alone": sketch(
        {"b": "batch", "i": 3, "r": 4, "s": 2},
        {"x": ("input", "b i"), "w": ("param", "r i"), "v": ("param", "s")},
        [("y", "b", _one(("x", "b i"), ("w", "r i"), ("v", "s")))],
        {"y": ["b"]},
        BATCH,
    ),
    "outer product": sketch(
        {"i": "n", "j": "m"},
        {"x": ("input", "i"), "z": ("input", "j")},
        [("y", "i j", _one(("x", "i"), ("z", "j")))],
        {"y": ["j", "i"]},
        {"n": None, "m": None},
    ),
    "barriers": sketch(
        {"b": "batch", "i": 3, "j": 4, "k": 2},
        {"x": ("input", "b i"), "w": ("param", "i j"), "v": ("param", "j k"), "c": ("param", "k")},
        [
            ("h", "b j", _one(("x", "b i"), ("w", "i j")), Function("gelu")),
            ("z", "b k", [(1, [("h", "b j"), ("v", "j k")]), (1, [("c", "k")])]),
            ("y", "b k", _one(("z", "b k"), ("z", "b k")), Function("leaky_relu", (0.1,))),
        ],
        {"y": ["b", "k"]},
        BATCH,
    ),
    "exp, log and sqrt": sketch(
        {"b": "batch", "i": 3},
        {"x": ("input", "b i"), "w": ("param", "i")},
        [
            ("e", "b i", _one(("x", "b i"), ("w", "i")), Function("exp")),
            ("l", "b", _one(("e", "b i")), Function("log")),
            ("p", "b", _one(("l", "b")), Function("softplus")),
            ("y", "b", _one(("p", "b")), Function("sqrt")),
        ],
        {"y": ["b"]},
        BATCH,
    ),
    "several outputs": sketch(
        {"b": "batch", "i": 3, "j": 2},
        {"x": ("input", "b i"), "w": ("param", "i j")},
        [("h", "b j", _one(("x", "b i"), ("w", "i j")), Function("tanh")), ("y", "", _one(("h", "b j"), ("h", "b j")))],
        {"h": ["b j"], "y": []},
        BATCH,
    ),
    "size one": sketch(
        {"b": "batch", "i": 1, "j": 2, "r": 1},
        {"x": ("input", "b i"), "w": ("param", "i r"), "v": ("param", "r j")},
        [("y", "b j", _one(("x", "b i"), ("w", "i r"), ("v", "r j")))],
        {"y": ["b", "j"]},
        BATCH,
    ),
    "derived sizes": sketch(
        {"b": "batch", "i": "2*n", "r": "D", "s": "E"},
        {"x": ("input", "b i"), "w": ("param", "r s"), "v": ("buffer", "r")},
        [("y", "b s", _one(("x", "b i"), ("w", "r s"), ("v", "r")))],
        {"y": ["b", "s"]},
        {"batch": None, "n": None, "D": 2, "E": "2*D - 1"},
    ),
    "convolution, stride 2": sketch(
        {"b": "batch", "s": 2, "H": "height", "W": "width", "kh": 3, "kw": 3, "t": 2}
        | {"h": "floor((height - 1)/2) + 1", "w": "floor((width - 1)/2) + 1"},
        {"x": ("input", "b s H W"), "k": ("param", "t s kh kw")},
        [
            (
                "y",
                "b t h w",
                _one(
                    ("x", ["b", "s", At({"h": 2, "kh": 1}, -1), At({"w": 2, "kw": 1}, -1)]),
                    ("k", "t s kh kw"),
                ),
            )
        ],
        {"y": ["b", "t", "h", "w"]},
        SPACE,
    ),
    "convolution, dilation 2": sketch(
        {"b": "batch", "s": 2, "H": 6, "h": 2, "k": 3, "t": 3},
        {"x": ("input", "b s H"), "w": ("param", "t s k")},
        [("y", "b t h", _one(("x", ["b", "s", At({"h": 1, "k": 2})]), ("w", "t s k")), Function("relu"))],
        {"y": ["b", "t", "h"]},
        BATCH,
    ),
    "convolution, flipped and separable": sketch(
        {"b": "batch", "H": 4, "W": 4, "h": 4, "w": 4, "kh": 3, "kw": 3, "r": 2},
        {"x": ("input", "b H W"), "u": ("param", "kh r"), "v": ("param", "kw r")},
        [
            (
                "y",
                "b h w",
                _one(("x", ["b", At({"h": 1, "kh": -1}, 1), At({"w": 1, "kw": 1}, -1)]), ("u", "kh r"), ("v", "kw r")),
            )
        ],
        {"y": ["b", "h", "w"]},
        BATCH,
    ),
    "several kernels on one read": sketch(
        {"b": "batch", "L": 7, "l": 4, "k": 3, "q": 2},
        {"x": ("input", "b L"), "u": ("param", "k"), "v": ("param", "q")},
        [("y", "b l", _one(("x", ["b", At({"l": 1, "k": 1, "q": 1})]), ("u", "k"), ("v", "q")))],
        {"y": ["b", "l"]},
        BATCH,
    ),
    "a kernel shared by two reads": sketch(
        {"b": "batch", "L": 4, "M": 4, "l": 3, "k": 2},
        {"x": ("input", "b L"), "z": ("input", "b M"), "u": ("param", "k")},
        [("y", "b l", _one(("x", ["b", At({"l": 1, "k": 1})]), ("z", ["b", At({"l": 1, "k": -1}, 1)]), ("u", "k")))],
        {"y": ["b", "l"]},
        BATCH,
    ),
    "circular convolution": sketch(
        {"b": "batch", "L": "n", "l": "n", "k": 3},
        {"x": ("input", "b L"), "u": ("param", "k")},
        [("y", "b l", _one(("x", ["b", At({"l": 1, "k": 1}, -1, wrap=True)]), ("u", "k")))],
        {"y": ["b", "l"]},
        {"batch": None, "n": None},
    ),
    "toeplitz and circulant params": sketch(
        {"b": "batch", "i": 3, "j": 3, "o": 3, "p": 5},
        {"x": ("input", "b i"), "c": ("param", "p"), "d": ("param", "j")},
        [
            (
                "y",
                "b o",
                [
                    (1, [("x", "b i"), ("c", [At({"o": 1, "i": -1}, 2)])]),
                    (1, [("x", "b i"), ("d", [At({"o": 1, "i": -1}, wrap=True)])]),
                ],
            )
        ],
        {"y": ["b", "o"]},
        BATCH,
    ),
    "reads of an intermediate": sketch(
        {"b": "batch", "L": 4, "l": 4, "k": 3, "q": 3},
        {"x": ("input", "b L"), "u": ("param", "k"), "v": ("param", "q")},
        [
            ("h", "b L", _one(("x", ["b", At({"L": 1, "k": 1}, -1)]), ("u", "k"))),
            ("y", "b l", _one(("h", ["b", At({"l": 1, "q": 1}, -1)]), ("v", "q"))),
        ],
        {"y": ["b", "l"]},
        BATCH,
    ),
    "constant position and shift": sketch(
        {"b": "batch", "L": 4},
        {"x": ("input", "b L")},
        [("y", "b L", [(1, [("x", ["b", At({"L": 1}, 1)])]), (-1, [("x", ["b", At({}, 2)])])])],
        {"y": ["b", "L"]},
        BATCH,
    ),
    "dotted names": sketch(
        {"b": "batch", "x.H": 5, "x.h": 4, "W.k": 2, "W.b1": "D", "o": 3},
        {"x.in": ("input", "b x.H"), "W.g1": ("param", "W.k W.b1"), "W.to.g2": ("param", "W.b1 o")}
        | {"scale.o": ("buffer", "o"), "W.all": ("const", "o", Init("ones"))},
        [
            ("W", "W.k o", _one(("W.g1", "W.k W.b1"), ("W.to.g2", "W.b1 o"), ("W.all", "o"))),
            ("W_h", "b o x.h", _one(("x.in", ["b", At({"x.h": 1, "W.k": 1})]), ("W", "W.k o")), Function("tanh")),
            ("W.h", "b o x.h", _one(("W_h", "b o x.h"), ("scale.o", "o"))),
        ],
        {"x.in": ["b", "x.H"], "W.h": ["b", "o x.h"]},
        {"batch": None, "D": 2},
    ),
    "no input": sketch(
        {"i": 3, "j": 2},
        {"w": ("param", "i j", Init("normal", (0.5,))), "v": ("buffer", "j")},
        [("y", "i", _one(("w", "i j"), ("v", "j")))],
        {"y": ["i"]},
    ),
}


# ------------------------------------------------------------------------------------ networks at random

SCALES = (1, -1, 2, 0.5, -1.5)
SMOOTH = (Function("tanh"), Function("sigmoid"), Function("gelu"), Function("silu"), Function("softplus"))
KINKED = (Function("relu"), Function("abs"), Function("leaky_relu", (0.1,)), Function("elu", (1.0,)))
FUNCTIONS_DRAWN = (*SMOOTH, *KINKED, Function("sin"), Function("cos"))
POOL = ("a", "b", "W.c", "d", "V.k.e", "f", "g")
FOLDERS = ("", "", "", "W.", "V.k.")


def is_steady(network: Network) -> bool:
    """Whether rounding stays rounding: `sin` and `cos` of an argument of 10⁸ leave eight digits, however summed."""
    return not any(e.function and e.function.name in ("sin", "cos") for e in network.equations)


@dataclass
class _Maker:
    """A network in the making: the pool of indices its terms use, and what has been defined so far."""

    draw: Draw
    reads: bool
    pool: tuple[Index, ...]
    cores: list[Core] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)

    def one_of(self, *choices: object) -> object:
        return self.draw(st.sampled_from(choices))

    def some(self, choices: Sequence, most: int, least: int = 0) -> list:
        most = min(most, len(choices))
        return self.draw(st.permutations(list(choices)))[: self.draw(st.integers(min(least, most), most))]

    def core(self, role: Role, sizes: Sequence[sympy.Expr], init: Init | None = None) -> Core:
        name = f"{self.one_of(*FOLDERS)}{'x' if role == 'input' else role[0]}{len(self.cores)}"
        core = Core(name, tuple(Index(f"{name}_{k}", size) for k, size in enumerate(sizes)), role, init)
        self.cores.append(core)
        return core

    def leg(self, own: Index) -> Leg:
        """An index of the pool with the leg's size (or the leg itself), or a read of the leg."""
        fitting = [index for index in self.pool if index.size == own.size]
        if self.reads and (not fitting or self.draw(st.integers(0, 4)) == 0):
            return self.read(own)
        return self.one_of(*fitting or [own])

    def read(self, own: Index) -> Read:
        indices = self.some(self.pool, 3)
        terms = tuple((self.one_of(1, 1, 1, 2, -1, -2), index) for index in indices)
        offset = sympy.sympify(self.one_of(0, 0, 1, -1, 2, -2, own.size - 1))
        wrap = bool(terms) and self.one_of(False, False, True)
        return Read(own, terms, offset if wrap else _reaching(own, terms, offset), wrap)

    def access(self, source: Core | Equation) -> Access:
        return Access(source.name, tuple(self.leg(own) for own in source.legs))

    def const(self) -> Access:
        """A delta or eye over pool indices of one size, or a basis vector or ones."""
        first = self.one_of(*self.pool)
        alike = [index for index in self.pool if index.size == first.size]
        kind = self.one_of("delta", "delta", "eye", "ones", "basis") if len(alike) > 1 else self.one_of("ones", "basis")
        if kind == "basis":
            top = int(first.size) - 1 if first.size.is_Integer else 0
            core, legs = self.core("const", [first.size], Init(kind, (self.draw(st.integers(0, top)),))), [first]
        else:
            legs = self.some(alike, 4, least=2) if kind == "delta" else alike[:2]
            core = self.core("const", [index.size for index in legs], Init(kind))
        return Access(core.name, tuple(legs))

    def fresh(self) -> Access:
        """A new input, param or buffer, mostly under distinct indices, at times with one standing twice."""
        legs = self.some(self.pool, 3)
        is_runtime = any(str(symbol) in RUNTIME for leg in legs for symbol in leg.size.free_symbols)
        role = "input" if is_runtime else self.one_of("param", "param", "param", "input", "buffer")
        if legs and self.draw(st.integers(0, 4)) == 0:
            legs.append(legs[0])
        core = self.core(role, [leg.size for leg in legs], self.init(role, [leg.size for leg in legs]))
        if self.reads and self.draw(st.integers(0, 3)) == 0:
            return self.access(core)
        return Access(core.name, tuple(legs))

    def init(self, role: Role, sizes: Sequence[sympy.Expr]) -> Init | None:
        if role == "input" or self.one_of(True, False):
            return None
        square = (Init("eye"), Init("eye", (-0.5,)), Init("near_eye", (0.1,)), Init("orthogonal"))
        drawn = (Init("normal", (0.5,)), Init("uniform", (-1.0, 1.0)), Init("signs", (2,)))
        fan_in = Init("fan_in", (sympy.Mul(3, *sizes),))
        return self.one_of(Init("zeros"), fan_in, *drawn, *(square if len(sizes) == 2 else ()))

    def factor(self) -> Access:
        kind = self.draw(st.integers(0, 5))
        if kind == 0:
            return self.const()
        if kind <= 2 and (self.cores or self.equations):
            sources = [*self.equations, *self.equations, *(core for core in self.cores if core.role != "const")]
            return self.access(self.one_of(*sources))
        return self.fresh()

    def equation(self, first: Access | None, linear: bool) -> None:
        terms = [
            Term(self.one_of(*SCALES), tuple(self.factor() for _ in range(self.draw(st.integers(1, 4)))))
            for _ in range(self.draw(st.integers(1, 3)))
        ]
        if first is not None:
            terms[0] = Term(terms[0].scale, (first, *terms[0].accesses))
        if self.equations and not any(a.source == self.equations[-1].name for t in terms for a in t.accesses):
            terms.append(Term(1, (self.access(self.equations[-1]),)))
        present = dict.fromkeys(i for term in terms for access in term.accesses for i in access.indices)
        legs = tuple(self.some([index for index in present if index in self.pool], 3))
        function = None if linear else self.draw(st.none() | st.sampled_from(FUNCTIONS_DRAWN))
        folders = {equation.name for equation in self.equations} & {"W", "V.k"}
        name = self.one_of(*(f"{folder}y{len(self.equations)}" for folder in FOLDERS), *sorted({"W", "V.k"} - folders))
        self.equations.append(Equation(name, legs, tuple(terms), function))

    def port(self, name: str, legs: Sequence[Index], keep: Sequence[Index] = ()) -> Port:
        """The legs, at times fused, at times beside an empty group; those to keep on axes of their own."""
        axes: list[tuple[Index, ...]] = []
        for leg in legs:
            apart = not axes or leg in keep or axes[-1][-1] in keep
            if apart or self.draw(st.booleans()):
                axes.append((leg,))
            else:
                axes[-1] += (leg,)
        if self.draw(st.integers(0, 7)) == 0:
            axes.insert(self.draw(st.integers(0, len(axes))), ())
        return Port(name, tuple(axes))


def _reaching(own: Index, terms: Sequence[tuple[int, Index]], offset: sympy.Expr) -> sympy.Expr:
    """The offset, or one at which the read reaches its leg: a read all of whose positions lie outside is an error."""
    spans = [range(_at_default(index.size)) for _, index in terms]
    positions = [sum(c * p for (c, _), p in zip(terms, at, strict=True)) for at in product(*spans)]
    if any(0 <= position + _at_default(offset) < _at_default(own.size) for position in positions):
        return offset
    return sympy.Integer(-positions[0])


def _at_default(size: sympy.Expr) -> int:
    return evaluate_size(size, {**RUNTIME, "D": 2})


@st.composite
def networks(draw: Draw, *, max_equations: int = 3, linear: bool = False, reads: bool = True) -> Network:
    """Random valid networks over the whole language; `random_arrays` gives them arrays.

    Args:
        draw: given by hypothesis.
        max_equations: at most so many equations, each reading the one before.
        linear: no functions.
        reads: whether legs are read at affine positions.
    """
    kinds = ["1", "2", "3", "4", "n", "m", "D", "2*D"]
    sizes = [_formula(kind) for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3, unique=True))]
    count = draw(st.integers(2, len(POOL)))
    pool = tuple(Index(POOL[k], draw(st.sampled_from(sizes))) for k in range(count))
    maker = _Maker(draw, reads, pool)
    first, bound = _binding_input(maker, sizes)
    for number in range(draw(st.integers(1, max_equations))):
        maker.equation(first if number == 0 else None, linear)
    passed = [core for core in maker.cores if core.role != "const" and draw(st.integers(0, 9)) == 0]
    shown = [e for e in maker.equations[:-1] if draw(st.integers(0, 2)) == 0] + [maker.equations[-1]]
    return Network(
        "drawn",
        _named_sizes(maker),
        tuple(maker.cores),
        tuple(maker.equations),
        tuple(maker.port(c.name, c.legs, bound) for c in maker.cores if c.role == "input"),
        tuple(maker.port(e.name, draw(st.permutations(list(e.legs)))) for e in (*shown, *passed)),
    )


def _binding_input(maker: _Maker, sizes: Sequence[sympy.Expr]) -> tuple[Access, tuple[Index, ...]]:
    """An input on which every run-time size stands on an axis of its own, and those legs."""
    runtime = [size for size in sizes if str(size) in RUNTIME]
    others = [index.size for index in maker.some(maker.pool, 2)]
    core = maker.core("input", [*runtime, *others])
    return Access(core.name, tuple(maker.leg(own) for own in core.legs)), core.legs[: len(runtime)]


def _named_sizes(maker: _Maker) -> tuple[Size, ...]:
    used = {s.name for core in maker.cores for leg in core.legs for s in leg.size.free_symbols}
    used |= {s.name for index in maker.pool for s in index.size.free_symbols}
    defaults = {"n": None, "m": None, "D": sympy.Integer(2)}
    return tuple(Size(name, value) for name, value in defaults.items() if name in used)
