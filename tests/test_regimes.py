"""The planner's exactness: at every batch the regime that runs costs what the best of all trees costs.

The judge is `tests.brute_force`, which shares no code with the planner. Random regions, the named cases of the field,
objectives, degenerate inputs, and what a wrong plan looks like to the judge.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import tngraph as tg
from tests.brute_force import Line, Product, Tensor, Window, lowest
from tngraph.planning.plans import Plan

SEARCHED = 2**20
"""Up to here regimes are promised to be the best."""


# ------------------------------------------------------------------------------------ regions at random


def chain(draw: random.Random, count: int) -> Product:
    """A matrix chain behind a batch: x[b, i0] w1[i0, i1] ….  The last index may be summed too."""
    names = [f"i{k}" for k in range(count)]
    tensors = [Tensor("x", ("b", "i0"), "input")]
    tensors += [Tensor(f"w{k}", (names[k - 1], names[k])) for k in range(1, count)]
    kept = ("b", names[-1]) if draw.random() < 0.8 else ("b",)
    return Product(tuple(tensors), kept, {name: (draw.randint(2, 40), 0) for name in names})


def train_of_matrices(draw: random.Random, count: int, ring: bool = False) -> Product:
    """An MPO or a tensor ring on an input of as many legs; not every site has a column."""
    sites = count - 1
    bonds = [f"r{k}" for k in range(sites + 1)]
    if ring:
        bonds[-1] = bonds[0]
    tensors, kept = [Tensor("x", ("b", *(f"i{k}" for k in range(sites))), "input")], ["b"]
    for k in range(sites):
        has_column = draw.random() < 0.8
        sides = [bonds[n] for n in (k, k + 1) if ring or 0 < n < sites]
        tensors.append(Tensor(f"g{k}", (f"i{k}", *([f"o{k}"] if has_column else []), *dict.fromkeys(sides))))
        kept += [f"o{k}"] if has_column else []
    sizes = {leg: (draw.randint(1, 5) if leg[0] != "r" else draw.randint(2, 9), 0) for t in tensors for leg in t.legs}
    return Product(tuple(tensors), tuple(kept), sizes)


def ring(draw: random.Random, count: int) -> Product:
    return train_of_matrices(draw, count, ring=True)


def tree(draw: random.Random, count: int) -> Product:
    """A random tree of tensors; a leg to the outside here and there, the batch on one of them."""
    legs: list[list[str]] = [[] for _ in range(count)]
    for k in range(1, count):
        other = draw.randrange(k)
        legs[k].append(f"e{k}")
        legs[other].append(f"e{k}")
    kept = ["b"]
    for k in range(count):
        if draw.random() < 0.4 or not legs[k]:
            legs[k].append(f"o{k}")
            kept += [f"o{k}"] if draw.random() < 0.8 else []
    tensors = [Tensor("x", ("b", *legs[0]), "input")]
    tensors += [Tensor(f"t{k}", tuple(legs[k])) for k in range(1, count)]
    return Product(tuple(tensors), tuple(kept), {n: (draw.randint(2, 12), 0) for own in legs for n in own})


def star(draw: random.Random, count: int) -> Product:
    """A CP layer: one rank on all factors, rows contracted with the input, columns kept."""
    rows = draw.randint(1, count - 1)
    tensors = [Tensor("x", ("b", *(f"i{k}" for k in range(rows))), "input")]
    tensors += [Tensor(f"a{k}", ("r", f"i{k}" if k < rows else f"o{k}")) for k in range(count - 1)]
    kept = ("b", *(f"o{k}" for k in range(rows, count - 1)))
    sizes = {leg: (draw.randint(2, 9), 0) for tensor in tensors for leg in tensor.legs} | {"r": (draw.randint(2, 60), 0)}
    return Product(tuple(tensors), kept, sizes)


def hyperedges(draw: random.Random, count: int) -> Product:
    """Indices on two to four tensors each, several of them inputs with the batch; tensors of equal legs may be tied."""
    legs: list[list[str]] = [[] for _ in range(count)]
    names = [f"e{k}" for k in range(draw.randint(count - 1, count + 3))]
    for k, name in enumerate(names):
        for tensor in {k % count, *draw.sample(range(count), draw.choice((1, 1, 2, 3)))}:
            legs[tensor].append(name)
    inputs = draw.randint(1, 3)
    kept = [*(["b"] if draw.random() < 0.7 else []), *draw.sample(names, min(draw.randint(0, 3), len(names)))]
    tensors = [Tensor(f"x{k}", ("b", *legs[k]), "input") for k in range(inputs)]
    tensors += [Tensor(f"w{k}", tuple(legs[k])) for k in range(inputs, count) if legs[k]]
    return Product(tuple(tensors), tuple(kept), {name: (draw.randint(1, 9), 0) for name in names})


def tied(draw: random.Random, count: int) -> Product:
    """One square matrix, or one three-legged core, used all along a chain."""
    size, physical = draw.randint(2, 9), draw.random() < 0.5
    tensors = [Tensor("x", ("b", "i0"), "input")]
    tensors += [Tensor("w", (f"i{k}", f"i{k + 1}", *([f"o{k}"] if physical else []))) for k in range(count - 2)]
    tensors += [Tensor("c", (f"i{count - 2}", "q"))]
    outside = draw.randint(1, 4)
    sizes = {f"i{k}": (size, 0) for k in range(count - 1)} | {f"o{k}": (outside, 0) for k in range(count - 2)}
    kept = ("b", *(f"o{k}" for k in range(count - 2) if physical), "q")
    return Product(tuple(tensors), kept, sizes | {"q": (draw.randint(2, 30), 0)})


def convolution(draw: random.Random, count: int) -> Product:
    """A factored convolution in one or two dimensions; at times strided, or two kernels along one dimension."""
    dimensions = 2 if count >= 5 and draw.random() < 0.6 else 1
    is_deep = dimensions == 1 and count >= 4 and draw.random() < 0.4
    free = draw.choice(("b", "h0"))
    sizes: dict[str, Line] = {"b": (0, 1) if free == "b" else (3, 0), "s": (draw.randint(2, 8), 0)}
    windows, kernels = [], []
    for k in range(dimensions):
        kernel, stride = draw.randint(2, 4), draw.choice((1, 1, 2))
        length = (0, 1) if free == "h0" and k == 0 else (draw.randint(5, 12), 0)
        terms = [(stride, f"h{k}"), (1, f"k{k}")]
        sizes |= {f"h{k}": length, f"k{k}": (kernel, 0)}
        kernels.append(f"k{k}")
        if is_deep:
            terms.append((draw.choice((1, 2)), "u"))
            sizes["u"] = (draw.randint(2, 3), 0)
            kernels.append("u")
        span = sum(c * (sizes[n][0] - 1) for c, n in terms) + 1, sum(c * sizes[n][1] for c, n in terms)
        trimmed = draw.choice((0, 1))
        windows.append(Window(tuple(terms), (span[0] - 2 * trimmed, span[1]), -trimmed))
    tensors = [Tensor("x", ("b", "s", *windows), "input")]
    bonds = [["s"], *([f"r{k}"] for k in range(count - 2)), ["t"]] if draw.random() < 0.5 else None
    for k in range(count - 1):
        own = [*bonds[k], *bonds[k + 1]] if bonds else ["r", *(["s"] if k == 0 else ["t"] if k == count - 2 else [])]
        tensors.append(Tensor(f"w{k}", tuple(own)))
    for name in kernels:
        k = draw.randrange(1, count)
        tensors[k] = replace(tensors[k], legs=(*tensors[k].legs, name))
    kept = ("b", *(["t"] if any("t" in t.legs for t in tensors) else []), *(f"h{k}" for k in range(dimensions)))
    names = {leg for tensor in tensors for leg in tensor.legs if isinstance(leg, str)} - sizes.keys()
    return Product(tuple(tensors), kept, sizes | {name: (draw.randint(2, 9), 0) for name in sorted(names)})


KINDS: tuple[Callable[[random.Random, int], Product], ...] = (
    *(chain, train_of_matrices, ring, tree, star, hyperedges, tied, convolution),
)
MODES = ("infer", "train", "infer", "train", "serve")


def region(seed: int) -> Product:
    """A random region of three to eight tensors with what is asked of its plan; of every kind in turn."""
    draw = random.Random(seed)
    made = KINDS[seed % len(KINDS)](draw, draw.choice((3, 4, 4, 5, 5, 6, 6, 7, 8)))
    tensors = [replace(t, role="buffer") if t.role == "param" and draw.random() < 0.1 else t for t in made.tensors]
    roles = {t.name: t.role for t in tensors}
    tensors = [replace(t, role=roles[t.name]) for t in tensors]
    frozen = tuple(n for n, role in roles.items() if role != "buffer" and draw.random() < 0.4)
    plain = [n for n in {leg: None for t in tensors for leg in t.legs if isinstance(leg, str)} if n != "b"]
    deltas = tuple(draw.sample(plain, 1)) if plain and draw.random() < 0.3 else ()
    moved = {name for t in tensors for leg in t.legs if isinstance(leg, Window) for _, name in leg.terms}
    batch = draw.choice(((0, 1), (0, 1), (0, 1), (0, 2), (1, 3)))
    return replace(
        made,
        tensors=tuple(tensors),
        sizes=made.sizes | ({} if made.sizes.get("h0", (0, 0))[1] else {"b": batch}),
        mode=draw.choice(MODES),
        frozen=frozen,
        deltas=tuple(name for name in deltas if name not in moved),
        made={},
        ways={},
    )


# ------------------------------------------------------------------------------------ the judge


def plan_of(product: Product, **options: object) -> Plan:
    return tg.plan(tg.parse(product.text()), mode=product.mode, requires_grad=product.requires_grad, **options)


def all_lines(product: Product) -> set[Line]:
    return product.lines_by_enumeration() if len(product.tensors) <= 5 else product.lines_by_sets()


def batches(seed: int = 0) -> np.ndarray:
    """Every batch to 2000, and many to a million."""
    spread = np.unique(np.geomspace(2000, 10**6, 1500).astype(np.int64))
    drawn = np.random.default_rng(seed).integers(2000, 10**6, 1500)
    return np.unique([*range(1, 2001), *spread, *drawn, 10**6])


BATCHES = batches()


def least_at(lines: set[Line], batch: np.ndarray) -> np.ndarray:
    """The lower envelope, in exact integers."""
    assert max(abs(a) + SEARCHED * s for a, s in lines) < 2**63
    return np.min([a + s * batch for a, s in lines], axis=0)


def pieces_needed(lines: set[Line]) -> int:
    """The least number of lines that cover the envelope on the integers: the one that lasts longest, again and again."""
    low, count = 1, 0
    while low <= SEARCHED:
        best = min(lines, key=lambda line: (line[0] + line[1] * low, line[1]))
        ends = [(other[0] - best[0]) // (best[1] - other[1]) for other in lines if other[1] < best[1]]
        low, count = min(ends, default=SEARCHED) + 1, count + 1
    return count


def judge(plan: Plan, found: list[Line], lines: set[Line]) -> None:
    """Whether regimes with these prices are the best at every batch, in as few as there can be."""
    regimes = plan.regimes
    assert [regime.low for regime in regimes] == [1, *(regime.high + 1 for regime in regimes[:-1])]
    assert regimes[-1].high is None
    assert all(one != other for one, other in zip(found, found[1:], strict=False))
    running = np.searchsorted([regime.low for regime in regimes], BATCHES, side="right") - 1
    price = np.array([a for a, _ in found])[running] + np.array([s for _, s in found])[running] * BATCHES
    np.testing.assert_array_equal(price, least_at(lines, BATCHES))
    # Between its ends a line that is on the concave envelope at both is on it everywhere.
    for regime, (a, s) in zip(regimes, found, strict=True):
        ends = np.array([regime.low, regime.high or SEARCHED])
        np.testing.assert_array_equal(a + s * ends, least_at(lines, ends))
    assert len(regimes) == pieces_needed(lines)


def check(product: Product) -> int:
    """Judge the plan of a region; the number of its regimes."""
    plan = plan_of(product)
    assert plan.is_proven
    found = [product.line(regime.trees[0]) for regime in plan.regimes]
    judge(plan, found, all_lines(product))
    for regime, (a, s) in zip(plan.regimes, found, strict=True):
        for batch in {regime.low, regime.high or 2 * regime.low}:
            assert plan.regime(batch=batch) is regime
            if product.mode != "serve":
                summed = product.sums()
                assert plan.at(batch=batch).cost == a + summed[0] + (s + summed[1]) * batch
    return len(plan.regimes)


@pytest.mark.parametrize("seed", range(60))
def test_every_regime_costs_what_the_best_of_all_trees_does(seed: int):
    check(region(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 300))
def test_every_regime_of_more_regions_costs_what_the_best_of_all_trees_does(seed: int):
    check(region(seed))
