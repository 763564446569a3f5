"""Every way to bound a plan gives the network: limits, fronts, tiles and what is recomputed, sizes of 1 too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import tngraph as tg
from tests.test_time import SMALL_CACHE
from tngraph.compiler.pipeline import timed_search
from tngraph.language.network import Network
from tngraph.modules.verification import random_inputs
from tngraph.plans.plan import Plan

SEARCH = tg.Search(trials=1, parallel=1)
SIZES = (1, 1, 2, 3)
"""Half of all sizes are 1."""
Draw = Callable[[st.SearchStrategy], object]


class _Drawn:
    """A network being drawn: one equation of an input with windows and of weights, and maybe one that reads it."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.sizes: dict[str, object] = {}
        self.lines: list[str] = []

    def one_of(self, *choices: object) -> object:
        return self.draw(st.sampled_from(choices))

    def index(self, name: str, size: object = None) -> str:
        """A new index, or one that is there."""
        if name not in self.sizes:
            self.sizes[name] = size or self.one_of(*SIZES, "D")
            self.lines.append(f"index {name}: {self.sizes[name]}")
        return name

    def window(self, number: int) -> tuple[int, str]:
        """A leg's size with how it is read: by a position, one or two kernels or a bond, at times cyclically."""
        own, kernel, wide = self.one_of(1, 1, 2, 3, 4, 5), self.index(f"k{number}"), self.one_of(1, 1, 2)
        position = self.index(f"p{number}", self.one_of(1, 1, 2, 3))
        more = self.one_of("", "", f" + {self.index('k3')}", f" - {self.index('a')}")
        text = f"{self.one_of('', '', '2*')}{position} + {wide}*{kernel}{more}"
        if self.one_of(False, False, True):
            return own, f"({text}) % {own}"
        return own, text + self.one_of("", "", " - 1" if own > 1 else "")

    def weight(self, number: int, names: list[str]) -> str:
        """A param under some indices, one of them twice at times."""
        legs = [name for name in names if self.one_of(True, False)]
        if legs and self.one_of(False, False, False, True):
            legs.append(legs[0])
        declared = ", ".join(f"w{number}_{k}: {self.sizes[leg]}" for k, leg in enumerate(legs))
        self.lines.append(f"param w{number}[{declared}]")
        return f"w{number}[{', '.join(legs)}]"

    def text(self) -> str:
        """The network in the language."""
        windows = [self.window(number) for number in (1, 2)[: self.one_of(0, 1, 1, 2)]]
        plain = [self.index(name) for name in ("c", "d")[: self.one_of(1, 2)]]
        self.lines.append(
            f"input x[b: batch, {', '.join(plain)}{''.join(f', h{k}: {n}' for k, (n, _) in enumerate(windows))}]"
        )
        for name in ("a", "r", "o"):
            self.index(name)
        factors = [f"x[{', '.join(['b', *plain, *(read for _, read in windows)])}]"]
        names = list(self.sizes)
        factors += [self.weight(k, names) for k in range(self.one_of(1, 2, 3, 3))]
        present = [name for name in names if any(name in _names(factor) for factor in factors)]
        left = ["b", *(name for name in present if self.one_of(True, False))]
        function = self.one_of("", "", "tanh")
        self.lines.append(f"y[{', '.join(left)}] = {function}({self.one_of('', '2 * ')}{' * '.join(factors)})")
        if self.one_of(False, False, True):
            self.lines += [f"z[b] = y * {self.weight(9, left[1:])}", "output z[b]"]
        else:
            self.lines.append(f"output y[{', '.join(left)}]")
        body = "\n  ".join(self.lines)
        return f"network drawn {{\n  size batch\n  size D = {self.one_of(1, 1, 2)}\n  {body}\n}}"


def _names(factor: str) -> set[str]:
    return set("".join(c if c.isalnum() else " " for c in factor).split())


@st.composite
def bounded(draw: Draw) -> Network:
    """Networks with windows, kernels, bonds and batches of which half have size 1."""
    text = _Drawn(draw).text()
    try:
        return tg.parse(text)
    except tg.SpecError:  # all positions of a window lie outside, or it has none
        reject()


def plans(network: Network, batch: int) -> Iterator[Plan]:
    """The plans of every bound there is, each once."""
    sizes = {"batch": batch}
    for largest in (1, 2, 3, 5, 8, 16, 40):
        with suppress(tg.PlanError):
            yield tg.plan(network, sizes, largest=largest, search=SEARCH)
    for mode in ("infer", "train"):
        front = tg.front(network, sizes, mode=mode, search=SEARCH)
        yield from (point.plan for point in front.points)
        yield tg.plan(network, sizes, mode=mode, minimize="memory", search=SEARCH)
        finder = timed_search(network, {"batch": 20}, machine=SMALL_CACHE, mode=mode, search=SEARCH)
        yield from (finder.plan([(1, None, way.trees)]) for way in finder.candidates())


class Meaning:
    """The value and the gradients of a network by the reference, at one batch, of numbers at random."""

    def __init__(self, network: Network, batch: int) -> None:
        generator = torch.Generator().manual_seed(batch)
        layer = tg.compile(network, dtype=torch.float64)
        (x,) = random_inputs(network, {}, generator, {"batch": batch})
        self.state = {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in layer.named_parameters()}
        self.x = x.double()
        arrays = {name: array.numpy() for name, array in {"x": self.x, **self.state}.items()}
        self.value = np.asarray(tg.evaluate(network, arrays))
        self.direction = torch.randn(self.value.shape, generator=generator, dtype=torch.float64)
        self.gradients = tg.gradients(network, arrays, self.direction.numpy())

    def check(self, plan: Plan) -> None:
        """Run a plan, and compare."""
        layer = tg.compile(plan, dtype=torch.float64)
        layer.load_state_dict(self.state)
        x = self.x.clone().requires_grad_()
        value = layer(x)
        np.testing.assert_allclose(value.detach(), self.value, rtol=1e-8, atol=1e-8)
        value.backward(self.direction)
        for name, tensor in {"x": x, **dict(layer.named_parameters())}.items():
            found = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            np.testing.assert_allclose(found, self.gradients[name], rtol=1e-8, atol=1e-8)


def check_bounds(network: Network, batch: int) -> None:
    """Run every bounded plan at its batch, at 1 and beyond a tile, and count one of them to the unit."""
    meanings = [Meaning(network, run) for run in dict.fromkeys((batch, 1, 19))]
    found = list(dict.fromkeys(plans(network, batch)))
    for plan in found:
        for meaning in meanings:
            meaning.check(plan)
    tg.compile(found[len(str(network)) % len(found)]).verify()


@settings(max_examples=5)
@given(bounded(), st.sampled_from([1, 1, 2, 3]))
def test_every_bound_gives_the_network(network: Network, batch: int):
    check_bounds(network, batch)


@pytest.mark.slow
@settings(max_examples=1000)
@given(bounded(), st.sampled_from([1, 1, 2, 3]))
def test_every_bound_gives_every_network(network: Network, batch: int):
    check_bounds(network, batch)
