"""How a network is planned, bounded, compiled and called: a way, drawn at random and said in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch

import tngraph as tg
from tests.fuzz.generator import HOLOMORPHIC
from tngraph.language.network import Network
from tngraph.search.machine import Machine

SMALL_CACHE = Machine(cache=16, elements_per_second=1e6, reused=16, fresh_per_second=1e6, seconds_per_product=1e-7)
"""A machine on which parts pay for small layers."""
OBJECTIVES: Mapping[str, Any] = {
    "flops": "flops",
    "writes": "writes",
    "time": "time",
    "weights": {"flops": 1, "writes": 8},
    "small cache": SMALL_CACHE,
    "step": lambda work: work.operations + 3 * work.result,
}
BOUNDS = (*[""] * 5, *["largest"] * 3, "memory_limit", "memory", "front")
"""What bounds a plan, as often as it is drawn; those of memory try many plans."""
MOST_FACTORS = 6
"""With more factors in all the search for plans of little memory takes seconds."""
MOST_POINTS = 3
"""So many points of a front are run, the ends among them."""


@dataclass(frozen=True)
class Way:
    """One way to run a network.

    Attributes:
        mode: as of `tngraph.plan`.
        minimize: a key of `OBJECTIVES`.
        bound: one of `BOUNDS`.
        share: how tight the bound is: 0 the least that there can be, 1 hardly one.
        planned: numbers for run-time sizes, where it is planned at some.
        built: numbers for compile-time sizes that the module is built with.
        calls: numbers for the run-time sizes of each call.
        frozen: what takes no gradient.
        route: how the module is made: of a ``plan``, by ``compile``, of a plan ``saved`` and loaded, or by ``fold``.
        is_complex: whether numbers are complex.
        seed: of the numbers.
    """

    mode: str = "infer"
    minimize: str = "flops"
    bound: str = ""
    share: float = 0.5
    planned: tuple[tuple[str, int], ...] = ()
    built: tuple[tuple[str, int], ...] = ()
    calls: tuple[tuple[tuple[str, int], ...], ...] = ((),)
    frozen: tuple[str, ...] = ()
    route: str = "plan"
    is_complex: bool = False
    seed: int = 0

    def __str__(self) -> str:
        parts = [f"{name}={value!r}" for name, value in vars(self).items() if value != getattr(Way(), name)]
        return f"Way({', '.join(parts)})"

    @property
    def dtype(self) -> torch.dtype:
        """Of every number."""
        return torch.complex128 if self.is_complex else torch.float64

    @property
    def itemsize(self) -> int:
        """Of every number [bytes]."""
        return self.dtype.itemsize

    @property
    def trained(self) -> tuple[str, ...]:
        """The roles of what takes a gradient."""
        return ("input",) if self.mode == "serve" or self.route == "fold" else ("input", "param")

    def layers(self, network: Network) -> Iterator[tg.Layer]:
        """The modules to compare: one, or some along a front.

        Raises:
            PlanError: nothing fits the bound.
        """
        if self.route == "compile":
            yield tg.compile(network, self._sizes, mode=self.mode, minimize=OBJECTIVES[self.minimize], dtype=self.dtype)
            return
        for plan in self._plans(network):
            layer = tg.compile(_reload(plan) if self.route == "saved" else plan, dict(self.built), dtype=self.dtype)
            yield layer.fold() if self.route == "fold" else layer

    @property
    def _sizes(self) -> dict[str, int]:
        return {**dict(self.planned), **dict(self.built)}

    def _plans(self, network: Network) -> Iterator[tg.Plan]:
        asked = {
            "mode": self.mode,
            "minimize": OBJECTIVES[self.minimize],
            "requires_grad": dict.fromkeys(self.frozen, False),
            "itemsize": self.itemsize,
        }
        if self.bound == "front":
            points = tg.front(network, self._sizes, **asked).points
            chosen = dict.fromkeys([0, len(points) - 1, round(self.share * (len(points) - 1))])
            yield from (points[k].plan for k in [*chosen][:MOST_POINTS])
        elif self.bound == "memory":
            yield tg.plan(network, self._sizes, **{**asked, "minimize": "memory"})
        elif self.bound:
            free = tg.plan(network, self._sizes, **asked)
            yield tg.plan(network, self._sizes, **asked, **{self.bound: self.limit(free)})
        else:
            yield tg.plan(network, self._sizes, **asked)

    def limit(self, free: tg.Plan) -> int:
        """A share of what a plan without a bound takes."""
        counts = free.at()
        most = counts.largest if self.bound == "largest" else counts.saved if self.mode == "train" else counts.peak
        if self.mode == "serve" and self.bound == "memory_limit":
            most = counts.folded
        return max(1, int(self.share * most))


def _reload(plan: tg.Plan) -> tg.Plan:
    """A plan as it is read from the file that it writes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan"
        plan.save(path)
        return tg.load_plan(path)


@dataclass
class WayDrawer:
    """Draws ways to run one network."""

    network: Network
    rng: Random
    runtime: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.runtime = [*self.network.runtime_sizes()]

    def happens(self, share: float) -> bool:
        return self.rng.random() < share

    def numbers(self, choices: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
        return tuple((name, self.rng.choice(choices)) for name in self.runtime)

    def draw(self) -> Way:
        """A way that `tngraph.plan` takes."""
        mode = self.rng.choice(("infer", "infer", "train", "train", "serve"))
        minimize = self.rng.choice(("flops", "flops", "flops", "writes", "time", "weights", "small cache", "step"))
        bound = self.rng.choice(BOUNDS if self.is_small() else BOUNDS[:-3])
        if mode == "serve" and bound in ("memory", "front"):
            bound = "memory_limit"
        if bound and minimize in ("time", "small cache") and self.happens(0.7):
            minimize = "flops"
        is_large = minimize == "small cache"
        is_fixed = bound or is_large or (minimize == "step" and not self.is_small())
        planned = self.numbers((16, 24) if is_large else (1, 2, 3, 4)) if is_fixed or self.happens(0.5) else ()
        route = self.route(mode, minimize, bound)
        return Way(
            mode=mode,
            minimize=minimize,
            bound=bound,
            share=self.rng.choice((0.0, 0.25, 0.5, 0.75, 0.9)),
            planned=planned,
            built=self.built(),
            calls=self.calls(planned, is_large),
            frozen=self.frozen(mode) if route != "compile" else (),
            route=route,
            is_complex=self.is_holomorphic() and self.happens(0.12),
            seed=self.rng.randrange(2**20),
        )

    def built(self) -> tuple[tuple[str, int], ...]:
        settable = [size.name for size in self.network.settable_sizes()]
        return tuple((name, self.rng.choice((1, 1, 3))) for name in settable if self.happens(0.5))

    def calls(self, planned: tuple[tuple[str, int], ...], is_large: bool) -> tuple[tuple[tuple[str, int], ...], ...]:
        """The size that was planned for, one of 1, and another one."""
        if not self.runtime:
            return ((),)
        others = [self.numbers((1,)), self.numbers((9, 17) if is_large else (2, 3, 5))]
        if len(self.runtime) > 1:
            others.append(self.numbers((1, 2, 4)))
        chosen = [self.rng.choice(others)]
        return tuple(dict.fromkeys([*([planned] if planned else [self.numbers((2, 3))]), *chosen]))

    def is_small(self) -> bool:
        """Whether all plans of little memory are found in no time, and any price of a step is."""
        return sum(len(term.accesses) for e in self.network.equations for term in e.terms) <= MOST_FACTORS

    def is_holomorphic(self) -> bool:
        """Whether every function is also one of complex numbers."""
        functions = [equation.function for equation in self.network.equations]
        return all(function is None or function in HOLOMORPHIC for function in functions)

    def frozen(self, mode: str) -> tuple[str, ...]:
        roles = ("input",) if mode == "serve" else ("input", "param")
        names = [core.name for core in self.network.cores if core.role in roles]
        return tuple(name for name in names if self.happens(0.25)) if self.happens(0.3) else ()

    def route(self, mode: str, minimize: str, bound: str) -> str:
        if bound:
            return "saved" if minimize != "step" and self.happens(0.1) else "plan"
        routes = ["plan", "plan", "compile", "saved" if minimize != "step" else "plan"]
        return self.rng.choice([*routes, "fold"] if mode == "infer" else routes)
