"""The fuzz itself: what it draws, that its meaning is right, that a wrong answer is rejected, and a piece of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import sympy
import torch

import tngraph as tg
from tests.fuzz.differences import find_difference, find_reference_difference, find_text_difference
from tests.fuzz.generator import random_network
from tests.fuzz.meaning import Meaning
from tests.fuzz.running import check_seed, ways_of
from tests.fuzz.shrinking import shrink
from tests.fuzz.ways import Way
from tngraph.language.network import Index, Network, Read

QUICK = range(69, 74)
"""The seeds that every run of the tests looks at."""
PIECES, PIECE = 10, 40
"""The slow tests: so many pieces of so many networks."""


@pytest.mark.parametrize("seed", QUICK)
def test_a_few_random_networks_agree_with_their_meaning(seed: int):
    assert [str(finding) for finding in check_seed(seed)] == []


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(PIECES))
def test_random_networks_agree_with_their_meaning(piece: int):
    seeds = range(1000 + piece * PIECE, 1000 + (piece + 1) * PIECE)
    assert [str(finding) for seed in seeds for finding in check_seed(seed)] == []


# ------------------------------------------------------------------------------------------------ what is drawn


def features(network: Network) -> Iterator[str]:
    """What there is in a network of the things that went wrong once, or might."""
    accesses = [access for e in network.equations for term in e.terms for access in term.accesses]
    for access in accesses:
        plain = [leg for leg in access.legs if isinstance(leg, Index)]
        if len(set(plain)) < len(plain):
            yield "diagonal"
        for read in (leg for leg in access.legs if isinstance(leg, Read)):
            yield "cyclic" if read.wrap else "read"
            yield f"{min(len(read.terms), 2)} terms"
            yield from ("stride" for c, _ in read.terms if c > 1)
            yield from ("flip" for c, _ in read.terms if c < 0)
            yield from ("unit beside a read" for _, index in read.terms if index.size == 1)
    ports = (*network.inputs, *network.outputs)
    yield from ("empty group" for port in ports for axis in port.axes if not axis)
    yield from ("fused" for port in ports for axis in port.axes if len(axis) > 1)
    yield from (f"{core.role}" for core in network.cores)
    yield from (f"const {core.init.kind}" for core in network.cores if core.role == "const")
    yield from ("scalar" for core in network.cores if not core.legs)
    yield from ("scalar result" for equation in network.equations if not equation.legs)
    yield from (f"function {equation.function.name}" for equation in network.equations if equation.function)
    yield from ("several terms" for equation in network.equations if len(equation.terms) > 1)
    yield from ("shared" for name, count in Counter(a.source for a in accesses).items() if count > 1)
    yield from (f"run-time size {name}" for name in network.runtime_sizes())
    yield from ("several outputs" for _ in network.outputs[1:])
    yield from ("no input" for _ in (1,) if not network.inputs)
    holders = Counter(i for e in network.equations for t in e.terms for a in t.accesses for i in a.indices)
    yield from ("hyperedge" for count in holders.values() if count > 2)


ALL = """read cyclic diagonal stride flip fused scalar shared hyperedge input param buffer
0 terms|1 terms|2 terms|unit beside a read|empty group|scalar result|several terms|several outputs|no input
const delta|const eye|const basis|const ones|run-time size n|run-time size m|function relu|function abs|function log"""


def test_everything_is_drawn():
    networks = [random_network(seed) for seed in range(200)]
    drawn = {feature for network in networks for feature in features(network)}
    first, *others = ALL.split("\n")
    assert {*first.split(), *"|".join(others).split("|")} - {"input param buffer"} <= drawn
    ways = [way for seed, network in enumerate(networks) for way in ways_of(seed, network)]
    assert {way.mode for way in ways} == {"infer", "train", "serve"}
    assert {way.bound for way in ways} == {"", "largest", "memory_limit", "memory", "front"}
    assert {way.minimize for way in ways} == {"flops", "writes", "time", "weights", "small cache", "step"}
    assert {way.route for way in ways} == {"plan", "compile", "saved", "fold"}
    assert any(way.is_complex for way in ways)
    assert any(dict(call).get("n") == 1 for way in ways for call in way.calls)


def test_a_seed_gives_the_same_network_and_ways():
    assert random_network(3) == random_network(3) != random_network(4)
    assert ways_of(3, random_network(3)) == ways_of(3, random_network(3))


# ------------------------------------------------------------------------------------------------ the meaning

BY_HAND = {
    "window": ("input x[l:3]\n param k[q:2]\n y[p:3] = x[p + q - 1] * k", [[1, 2, 3], [10, 1]], [1, 12, 23]),
    "cyclic": ("input x[l:3]\n y[p:3] = x[(2*p + 1) % 3]", [[1, 2, 3]], [2, 1, 3]),
    "backwards": ("input x[l:3]\n y[p:3] = x[2 - p]", [[1, 2, 3]], [3, 2, 1]),
    "diagonal": ("input x[i:2, j:2]\n index a: 2\n y[a] = x[a, a]", [[1, 2, 3, 4]], [1, 4]),
    "delta": ("input x[i:2]\n const d[i, j:2] = delta\n y[i, j] = 2 * x * d", [[1, 3]], [2, 0, 0, 6]),
    "terms": ("input x[i:2]\n param s[]\n y[i] = relu(x - 2 * s)", [[1, 5], [1]], [0, 3]),
    "basis": ("input x[i:2]\n const e[j:3] = basis(2)\n y[i, j] = x * e", [[1, 3]], [0, 0, 1, 0, 0, 3]),
    "outside": ("input x[l:2]\n h[p:2] = x[p + 1] + x[p]\n y[p] = h[p + 1]", [[1, 3]], [3, 0]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_meaning_is_what_one_computes_by_hand(name: str):
    text, numbers, expected = BY_HAND[name]
    legs = text.rpartition("y[")[2].partition("]")[0].replace(":3", "").replace(":2", "")
    network = tg.parse(f"network hand {{\n{text}\n output y[{legs}] }}")
    meaning = Meaning(network, {})
    tensors = [torch.tensor(given, dtype=torch.float64) for given in numbers]
    stored = [core for core in network.cores if core.role != "const"]
    arrays = {c.name: t.reshape(meaning.shape(c.legs)) for c, t in zip(stored, tensors, strict=True)}
    (result,) = meaning.evaluate(arrays)
    assert result.flatten().tolist() == expected


# ------------------------------------------------------------------------------------------------ what is rejected

CHAIN = tg.parse(
    """network chain { size n
      input x[b:n, i:3]
      param u[i, r:4]
      param v[r, o:2]
      y[b, o] = tanh(x * u * v)
      output y[b, o] }"""
)
HONEST = Way(planned=(("n", 3),), calls=((("n", 3),), (("n", 1),)), seed=5)


@dataclass(frozen=True)
class WrongWay(Way):
    """A way whose modules are spoilt before they are looked at."""

    spoil: Callable[[tg.Layer], None] = field(default=lambda layer: None)

    def layers(self, network: Network) -> Iterator[tg.Layer]:
        """The modules, spoilt."""
        for layer in super().layers(network):
            self.spoil(layer)
            yield layer


def wrap(change: Callable[[tg.Layer, torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[tg.Layer], None]:
    """Change what a module returns, given the module, its input and its result."""

    def spoil(layer: tg.Layer) -> None:
        forward = layer.forward
        layer.forward = lambda x: change(layer, x, forward(x))

    return spoil


SPOILS = {
    "value": wrap(lambda layer, x, y: y + 1e-6),
    "shape of value": wrap(lambda layer, x, y: y.unsqueeze(0)),
    "gradient": wrap(lambda layer, x, y: y + 0 * layer.u.sum() + (layer.v - layer.v.detach()).sum()),
    "FLOPs": wrap(lambda layer, x, y: y + 0 * torch.mm(x.detach(), x.detach().mT).sum()),
    "training FLOPs": wrap(lambda layer, x, y: y + 0 * torch.mm(x, x.mT).sum() if torch.is_grad_enabled() else y),
    "peak": wrap(lambda layer, x, y: y + 0 * x.detach().new_zeros(1000).sum()),
    "saved": wrap(lambda layer, x, y: y + 0 * torch.sin(2 * x).sum() if torch.is_grad_enabled() else y),
    "requires_grad": lambda layer: layer.u.requires_grad_(False),
}


@pytest.mark.parametrize("kind", SPOILS)
def test_a_spoilt_module_is_rejected(kind: str):
    assert find_difference(CHAIN, HONEST) is None
    found = find_difference(CHAIN, WrongWay(**vars(HONEST), spoil=SPOILS[kind]))
    assert found is not None
    assert found.kind == kind


def test_the_module_of_another_network_is_rejected(monkeypatch: pytest.MonkeyPatch):
    """The same shapes, and one read a position further."""
    text = "network a {{ input x[l:5]\n param k[q:2]\n y[p:4] = x[p + q{0}] * k\n output y[p] }}"
    right, wrong = (tg.parse(text.format(offset)) for offset in ("", " + 1"))
    layers = Way.layers
    monkeypatch.setattr(Way, "layers", lambda way, network: layers(way, wrong))
    assert find_difference(wrong, Way()) is None
    assert find_difference(right, Way()).kind == "value"


def test_a_bound_that_is_passed_and_an_error_are_rejected(monkeypatch: pytest.MonkeyPatch):
    plan = tg.plan(CHAIN, {"n": 3}, itemsize=8)
    for bound in ("largest", "memory_limit"):
        request = replace(plan.request, **{bound: 1})
        wrong = replace(plan, regimes=(replace(plan.regimes[0], request=request),))
        monkeypatch.setattr(Way, "_plans", lambda way, network, wrong=wrong: iter([wrong]))
        assert find_difference(CHAIN, HONEST).kind == bound
    monkeypatch.setattr(Way, "_plans", lambda way, network: {}[network.name])
    assert find_difference(CHAIN, HONEST).kind == "KeyError in test_fuzz.py, <lambda>"


def test_a_wrong_text_and_a_wrong_reference_are_rejected(monkeypatch: pytest.MonkeyPatch):
    other = replace(CHAIN, name="other")
    assert find_text_difference(CHAIN) is find_reference_difference(CHAIN, HONEST) is None
    monkeypatch.setattr(tg, "parse", lambda text: other)
    assert find_text_difference(CHAIN).kind == "text"
    monkeypatch.setattr(tg, "evaluate", lambda network, arrays, sizes: torch.zeros(3, 2).double().numpy())
    assert find_reference_difference(CHAIN, HONEST).kind == "value"


def test_a_network_is_made_small():
    network = next(n for n in map(random_network, range(100)) if "cyclic" in features(n) and len(n.equations) > 1)
    smallest = shrink(network, lambda smaller: "cyclic" in features(smaller))
    assert "cyclic" in features(smallest)
    assert len(smallest.equations) == 1
    assert [len(term.accesses) for term in smallest.equations[0].terms] == [1]
    assert all(index.size <= sympy.Integer(2) for index in smallest.indices() if index.size.is_Integer)
