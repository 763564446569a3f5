"""The planner's exactness: at every batch the regime that runs costs what the best of all trees costs.

The judge is `tests.brute_force`, which shares no code with the planner. Random regions, the named cases of the field,
objectives, degenerate inputs, and what a wrong plan looks like to the judge.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import tngraph as tg
from tests.brute_force import Line, Product, Step, Tensor, Window, at_batch, flops, trees, writes
from tngraph.compiler.ranges import GRID
from tngraph.plans.plan import Plan
from tngraph.search.machine import Machine
from tngraph.search.region import ContractionTree

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
    sizes = {leg: (draw.randint(2, 9), 0) for tensor in tensors for leg in tensor.legs} | {
        "r": (draw.randint(2, 60), 0)
    }
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
        trimmed = draw.choice((0, 1)) if kernel > 2 or is_deep else 0
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
    """The least number of lines that cover the envelope: the one that lasts longest, again and again."""
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
    assert all(one != other for one, other in itertools.pairwise(found))
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


@pytest.mark.parametrize("seed", range(24))
def test_sets_of_tensors_give_what_enumeration_of_all_trees_gives(seed: int):
    product = region(seed)
    if len(product.tensors) <= 6:
        assert product.lines_by_sets() == product.lines_by_enumeration()


@pytest.mark.parametrize(("count", "number"), [(2, 1), (3, 3), (4, 15), (5, 105), (6, 945)])
def test_brute_force_visits_every_tree_once(count: int, number: int):
    found = [repr(each) for each in trees(tuple(range(count)))]
    assert len(found) == len(set(found)) == number


def test_the_lines_of_two_trees_by_hand():
    """x[b, i] a[i, r] c[r, o]: row by row b·r·(i + o), or the matrix first i·r·o + b·i·o."""
    assert two_cores(i=5, r=3, o=7).lines_by_enumeration() == {(0, 3 * (5 + 7)), (5 * 3 * 7, 5 * 7)}


# ------------------------------------------------------------------------------------ wrong plans


def two_cores(mode: str = "infer", frozen: tuple[str, ...] = (), **sizes: int) -> Product:
    tensors = (Tensor("x", ("b", "i"), "input"), Tensor("a", ("i", "r")), Tensor("c", ("r", "o")))
    numbers = {"b": (0, 1)} | {name: (size, 0) for name, size in sizes.items()}
    return Product(tensors, ("b", "o"), numbers, mode, frozen)


def tt_matrix(sites: int, size: int, rank: int, mode: str = "infer") -> Product:
    """A tensor-train matrix on an input: Oseledets (2011)."""
    bonds = [[f"r{k}"] if 0 <= k < sites - 1 else [] for k in range(-1, sites)]
    cores = [Tensor(f"g{k}", (*bonds[k], f"i{k}", f"o{k}", *bonds[k + 1])) for k in range(sites)]
    x = Tensor("x", ("b", *(f"i{k}" for k in range(sites))), "input")
    sizes: dict[str, Line] = {leg: (rank if leg[0] == "r" else size, 0) for core in cores for leg in core.legs}
    return Product((x, *cores), ("b", *(f"o{k}" for k in range(sites))), sizes | {"b": (0, 1)}, mode)


def with_bounds(plan: Plan, *bounds: tuple[int, int, int | None]) -> Plan:
    """A plan of some regimes of another by number, in other ranges."""
    return Plan(tuple(replace(plan.regimes[k], low=low, high=high) for k, low, high in bounds), plan.free)


@pytest.mark.parametrize(
    "bounds",
    [
        ((0, 1, 2), (1, 3, 12), (2, 13, None)),
        ((0, 1, 1), (1, 2, 11), (2, 12, None)),
        ((0, 1, 1), (1, 2, 13), (2, 14, None)),
        ((0, 1, 1), (2, 2, None)),
        ((1, 1, 12), (2, 13, None)),
        ((0, 1, 1), (1, 2, None)),
        ((0, 1, 1), (1, 2, 7), (1, 8, 12), (2, 13, None)),
        ((0, 1, 1), (1, 2, 12), (2, 14, None)),
        ((0, 1, 1), (1, 2, 12), (2, 13, 10**6)),
        ((1, 1, 1), (0, 2, 12), (2, 13, None)),
    ],
)
def test_a_wrong_envelope_is_rejected(bounds: tuple[tuple[int, int, int | None], ...]):
    product = tt_matrix(3, 8, 16)
    plan = plan_of(product)
    found, lines = [product.line(regime.trees[0]) for regime in plan.regimes], product.lines_by_sets()
    judge(plan, found, lines)
    wrong = with_bounds(plan, *bounds)
    with pytest.raises(AssertionError):
        judge(wrong, [found[k] for k, _, _ in bounds], lines)


@pytest.mark.parametrize("wrong", [{"frozen": ()}, {"frozen": ("x", "a", "c")}, {"mode": "infer"}])
def test_a_wrong_gradient_factor_is_rejected(wrong: dict):
    product = two_cores("train", ("a", "c"), i=8, r=16, o=8)
    check(product)
    other = replace(product, **wrong, made={}, ways={})
    plan = plan_of(other)
    with pytest.raises(AssertionError):
        judge(plan, [product.line(regime.trees[0]) for regime in plan.regimes], all_lines(product))


def test_a_step_that_cannot_be_made_is_rejected():
    """The kernel's index stands on two kernels, so x may not be joined with one of them in place."""
    window = Window(((1, "h"), (1, "k")), (8, 0))
    tensors = (Tensor("x", ("b", window), "input"), Tensor("u", ("k", "r")), Tensor("v", ("k", "r")))
    product = Product(tensors, ("b", "h", "r"), {"b": (0, 1), "h": (6, 0), "k": (3, 0), "r": (4, 0)})
    x, u, v = product.leaves
    assert product.join(x, u) is None
    assert product.join(product.open(x)[1], u) is not None
    kernels = product.join(u, v)
    assert kernels is not None
    assert product.join(x, kernels[0]) is not None
    check(product)


# ------------------------------------------------------------------------------------ named cases


def test_tt_matrices_break_where_the_literature_says():
    """At 16/9 and at 64/5 for d = 3, n = 8, R = 16: core by core, a pair of cores first, the dense matrix first."""
    product = tt_matrix(3, 8, 16)
    plan = plan_of(product, minimize="flops")
    assert [(r.low, r.high) for r in plan.regimes] == [(1, 1), (2, 12), (13, None)]
    assert plan.breakpoints == (Fraction(16, 9), Fraction(64, 5))
    n, rank = 8, 16
    sweep = (0, 2 * n**4 * rank + n**4 * rank**2)
    pair = (n**4 * rank**2, n**5 * rank + n**4 * rank)
    dense = (n**4 * rank**2 + n**6 * rank, n**6)
    assert [product.line(r.trees[0]) for r in plan.regimes] == [sweep, pair, dense]
    check(product)


def test_a_tt_matrix_of_four_sites_breaks_at_an_integer():
    product = tt_matrix(4, 4, 16)
    plan = plan_of(product, minimize="flops")
    assert [(r.low, r.high) for r in plan.regimes] == [(1, 16), (17, None)]
    assert plan.breakpoints == (Fraction(16),)
    first, second = (regime.price(plan.values(batch=16)) for regime in plan.regimes)
    assert first == second
    check(product)


def test_frozen_cores_move_the_batch_at_which_a_matrix_is_built_first():
    """Rows: b·r·(i + o); matrix: i·r·o + b·i·o. With frozen cores the gradient of x doubles what is per row only."""
    i, r, o = 8, 16, 8
    called = plan_of(two_cores(i=i, r=r, o=o))
    assert called.breakpoints == (Fraction(i * r * o, r * (i + o) - i * o),)
    frozen = plan_of(two_cores("train", ("a", "c"), i=i, r=r, o=o))
    assert frozen.breakpoints == (Fraction(i * r * o, 2 * (r * (i + o) - i * o)),)
    batch = 4
    assert called.regimes[0].high >= batch > frozen.regimes[0].high  # type: ignore[operator]
    rows, matrix = (2 * batch * r * (i + o), i * r * o + 2 * batch * i * o)
    assert (frozen.at(batch=batch).cost, rows > matrix) == (matrix, True)
    assert called.at(batch=batch).cost == batch * r * (i + o) < i * r * o + batch * i * o


def test_the_best_tree_to_train_a_cp_layer_is_not_the_best_one_to_call_it():
    """x[b, i, j] a[i, r] c[j, r] d[r, o] with a and c frozen: called, the whole weight first; trained, d last."""
    b, i, j, r, o = 16, 8, 8, 16, 8
    factors = (Tensor("a", ("i", "r")), Tensor("c", ("j", "r")), Tensor("d", ("r", "o")))
    sizes = {"b": (0, 1), "i": (i, 0), "j": (j, 0), "r": (r, 0), "o": (o, 0)}
    train = Product((Tensor("x", ("b", "i", "j"), "input"), *factors), ("b", "o"), sizes, "train", ("a", "c"))
    infer = replace(train, mode="infer", made={}, ways={})
    called, trained = (plan_of(each).regime(batch=b).trees[0] for each in (infer, train))

    def cost(product: Product, tree: ContractionTree) -> int:
        constant, slope = product.line(tree)
        return constant + slope * b

    assert cost(infer, called) == j * r * o + i * j * r * o + b * i * j * o == 17_408
    assert cost(infer, trained) == i * j * r + b * i * j * r + b * r * o == 19_456
    assert cost(train, called) == 2 * j * r * o + 2 * i * j * r * o + 3 * b * i * j * o == 43_008
    assert cost(train, trained) == i * j * r + 2 * b * i * j * r + 3 * b * r * o == 39_936
    check(train)
    check(infer)


# ------------------------------------------------------------------------------------ objectives


def weighted(operations: int, written: int) -> Callable[[Step], Line]:
    def price(step: Step) -> Line:
        first, second = flops(step), writes(step)
        return operations * first[0] + written * second[0], operations * first[1] + written * second[1]

    return price


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("minimize", "price"),
    [
        ("writes", writes),
        ({"writes": 2}, writes),
        ({"flops": 1, "writes": 8}, weighted(1, 8)),
        ({"flops": 0.5, "writes": 0.125}, weighted(4, 1)),
        ({"flops": 3}, flops),
    ],
)
def test_regimes_of_other_sums_are_exact_too(minimize: str | dict, price: Callable[[Step], Line], seed: int):
    product = region(1000 + seed)
    plan = plan_of(product, minimize=minimize)
    assert plan.is_proven
    lines = product.lines_by_sets(price)
    judge(plan, [product.line(regime.trees[0], price) for regime in plan.regimes], lines)


def seconds(work: tuple[int, ...]) -> float:
    """What the default machine says of a step and of each gradient, written down from its documentation."""
    operations, left, right, result, *grads = work
    rows, columns, summed = (max(1, operations / each) for each in (right, left, result))
    batch, machine = operations / (rows * columns * summed), Machine()

    def product(*shape: float) -> float:
        return min(one_way(*shape), one_way(shape[1], shape[0], shape[2]))

    def one_way(rows: float, columns: float, summed: float) -> float:
        sides = ordered(rows, columns)
        if batch <= 1 and min(rows, columns) <= 1:
            sides = min(sides, ordered(columns, rows))
        arithmetic = batch * sides * (summed + machine.half_summed) / machine.operations_per_second
        result = batch * rows * columns
        fresh = result / machine.fresh_per_second if result > machine.reused else 0
        traffic = sum(map(moved, (batch * rows * summed, batch * summed * columns, result)))
        return arithmetic + traffic + fresh + machine.seconds_per_product

    def ordered(rows: float, columns: float) -> float:
        return (rows + machine.half_rows) * (columns**2 + 3 * machine.half_columns**2) ** 0.5

    def moved(n: float) -> float:
        beyond = max(0, n - machine.cache)
        return (n - beyond) / machine.cached_per_second + beyond / machine.elements_per_second

    left_grad, right_grad = grads
    total = product(rows, columns, summed)
    return total + left_grad * product(rows, summed, columns) + right_grad * product(summed, columns, rows)


def of_a_user(work: tuple[int, ...]) -> float:
    return work[0] ** 0.5 + 3 * max(work[1], work[2]) + 10 * (work[4] + work[5])


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize(
    ("minimize", "price"),
    [(lambda work: float(Machine()(work)), seconds), (lambda work: of_a_user(tuple(work)), of_a_user)],
)
def test_objectives_of_numbers_find_the_best_tree(minimize: object, price: Callable, seed: int):
    product = region(2000 + seed)
    if len(product.tensors) <= 5:
        for batch in (1, 7, 300):
            plan = plan_of(product, sizes={"batch": batch}, minimize=minimize)
            found = sum(price(at_batch(step, batch)) for step in product.walk(plan.regimes[0].trees[0]))
            assert plan.is_proven
            assert found == pytest.approx(product.least(price, batch), rel=1e-12)


# ------------------------------------------------------------------------------------ several free sizes


def numeric(tensors: tuple[Tensor, ...], kept: tuple[str, ...], **sizes: int) -> Product:
    return Product(tensors, kept, {name: (size, 0) for name, size in sizes.items()})


def attention(batch: int, m: int) -> Product:
    """Queries, keys and values of two free lengths."""
    tensors = (Tensor("q", ("b", "i"), "input"), Tensor("k", ("c", "i"), "input"), Tensor("v", ("c", "o"), "input"))
    return numeric((*tensors, Tensor("w", ("o", "p"))), ("b", "p"), b=batch, c=m, i=12, o=20, p=9)


def sequences(batch: int, m: int) -> Product:
    tensors = (Tensor("x", ("b", "c", "i"), "input"), Tensor("a", ("i", "r")), Tensor("w", ("r", "o")))
    return numeric((*tensors, Tensor("g", ("c", "r"), "input")), ("b", "c", "o"), b=batch, c=m, i=20, r=12, o=16)


def images(batch: int, m: int) -> Product:
    window = Window(((1, "h"), (1, "k")), (m + 2, 0))
    tensors = (Tensor("x", ("b", "s", window), "input"), Tensor("a", ("s", "r")), Tensor("w", ("r", "k", "t")))
    return numeric(tensors, ("b", "t", "h"), b=batch, h=m, s=8, r=7, k=3, t=10)


SEVERAL = {
    attention: """input q[b:batch, i:12]\ninput k[c:m, i]\ninput v[c, o:20]\nparam w[o, p:9]
      y[b, p] = q * k * v * w\noutput y[b, p]""",
    sequences: """input x[b:batch, c:m, i:20]\nparam a[i, r:12]\nparam w[r, o:16]\ninput g[c, r]
      y[b, c, o] = x * a * w * g\noutput y[b, c, o]""",
    images: """input x[b:batch, s:8, H:m + 2]\nparam a[s, r:7]\nparam w[r, k:3, t:10]
      y[b, t, h:m] = x[b, s, h + k] * a * w\noutput y[b, t, h]""",
}


@pytest.mark.parametrize("made", SEVERAL, ids=lambda made: made.__name__)
def test_several_free_sizes_are_served_by_the_best_on_the_grid_and_never_worse_than_the_reference(made: Callable):
    network = tg.parse(f"network n {{ size batch, m\n{SEVERAL[made]} }}")
    plan, reference = tg.plan(network), tg.plan(network, {"batch": 64, "m": 64})
    for batch, m in itertools.product((1, 2, 20, 32, 64, 100, 1024, 5000), repeat=2):
        product = made(batch, m)
        found = product.line(plan.regime(batch=batch, m=m).trees[0])
        if {batch, m} <= {*GRID} or batch == m == 64:
            assert {found} == product.lines_by_enumeration()
        assert found <= product.line(reference.regimes[0].trees[0])


# ------------------------------------------------------------------------------------ degenerate inputs


def one(*lines: str) -> Plan:
    return tg.plan(tg.parse("network n {\nsize batch\n" + "\n".join(lines) + "\n}"))


def bounds(plan: Plan) -> list[tuple[int, int | None]]:
    return [(regime.low, regime.high) for regime in plan.regimes]


@pytest.mark.parametrize(
    "lines",
    [
        ("input x[b:batch, i:3]", "y[b] = x", "output y[b]"),
        ("input x[b:batch, i:3]", "y[i, b] = x", "output y[i, b]"),
        ("input x[b:batch, i:3]", "y[] = x", "output y[]"),
        ("input x[b:batch, i:3]", "param w[i]", "y[] = x * w", "output y[]"),
        ("input x[b:batch, i:3]", "output x[b, i]"),
        ("input x[b:batch, i:3]", "output x[i, b]", "y[b] = x", "output y[b]"),
        ("input z[b:batch]", "input x[i:9]", "param a[i, k:4]", "param c[k, l:5]", "y[l] = x * a * c", "output y[l]"),
        ("input z[b:batch]", "param a[i:9, k:4]", "param c[k, l:5]", "y[i, l] = a * c", "output y[i, l]"),
        ("input x[b:batch, i:1]", "param a[i, k:1]", "param c[k, l:1]", "y[b, l] = x * a * c", "output y[b, l]"),
    ],
)
def test_where_there_is_one_tree_there_is_one_proven_regime(lines: tuple[str, ...]):
    plan = one(*lines)
    assert bounds(plan) == [(1, None)]
    assert plan.is_proven
    assert plan.breakpoints == ()


def test_a_scalar_result_has_regimes():
    tensors = (Tensor("x", ("b", "i"), "input"), Tensor("a", ("i", "j")), Tensor("c", ("j", "k")), Tensor("v", ("k",)))
    sizes = {"b": (0, 1), "i": (4, 0), "j": (30, 0), "k": (3, 0)}
    check(Product((*tensors, Tensor("z", ("b", "k"), "input")), (), sizes))


def test_sizes_of_one_change_nothing():
    product = tt_matrix(3, 8, 16)
    thin = replace(product, sizes=product.sizes | {"i1": (1, 0), "r0": (1, 0)}, made={}, ways={})
    check(thin)


FACTORS = ("param a[i, r:20]", "param c[r, o:30]")


@pytest.mark.parametrize(("size", "slope"), [("2*batch", 2), ("3*batch + 1", 3), ("batch", 1)])
def test_a_size_derived_from_the_free_one_has_its_regimes(size: str, slope: int):
    plan = one(
        f"size m = {size}", "size q = m", "input x[b:q, i:20]", *FACTORS, "y[b, o] = x * a * c", "output y[b, o]"
    )
    lines = {(0, 20 * (20 + 30)), (20 * 20 * 30, 20 * 30)}
    constant = 1 if "+" in size else 0
    at = [(a + s * constant, s * slope) for a, s in sorted(lines)]
    judge(plan, at, {*at})
    assert plan.is_proven
    assert plan.breakpoints == (Fraction(at[1][0] - at[0][0], at[0][1] - at[1][1]),)


def test_an_unpadded_convolution_begins_where_it_has_positions():
    """Of a height of n there are n - 4 positions: sizes below 5 have none, and take the first regime."""
    text = ("input x[s:4, H:batch]", "param a[s, r:9]", "param k[r, u:5]", "param c[r, t:6]")
    plan = one(*text, "y[t, h:batch - 4] = x[s, h + u] * a * k * c", "output y[t, h]")
    window = Window(((1, "h"), (1, "u")), (0, 1))
    tensors = (
        Tensor("x", ("s", window), "input"),
        Tensor("a", ("s", "r")),
        Tensor("k", ("r", "u")),
        Tensor("c", ("r", "t")),
    )
    sizes = {"h": (-4, 1), "s": (4, 0), "r": (9, 0), "u": (5, 0), "t": (6, 0)}
    product = Product(tensors, ("t", "h"), sizes)
    found = [product.line(regime.trees[0]) for regime in plan.regimes]
    lines = product.lines_by_sets()
    low = np.arange(5, 20_000)
    running = np.searchsorted([regime.low for regime in plan.regimes], low, side="right") - 1
    np.testing.assert_array_equal(
        np.array(found)[running][:, 0] + np.array(found)[running][:, 1] * low, least_at(lines, low)
    )
    assert plan.is_proven


def test_two_unpadded_sizes_are_planned_on_what_is_left_of_the_grid():
    text = ("size m", "input x[b:batch, H:m]", "param k[u:5, r:9]", "param c[r, t:6]")
    plan = one(*text, "y[b, t, h:m - 4] = x[b, h + u] * k * c", "output y[b, t, h]")
    assert plan.at(batch=1, m=32).macs == min(28 * (5 * 9 + 9 * 6), 5 * 9 * 6 + 28 * 5 * 6)


@pytest.mark.parametrize(
    ("size", "number"),
    [
        ("batch // 2", lambda batch: batch // 2),
        ("batch**4", lambda batch: batch**4),
        ("batch * batch", lambda batch: batch**2),
    ],
)
def test_a_size_that_is_no_line_is_sampled_and_not_called_proven(size: str, number: Callable[[int], int]):
    lines = (f"size m = {size}", "input z[b:batch]", "input x[j:m, i:20]", *FACTORS)
    plan = one(*lines, "y[j, o] = x * a * c", "output y[j, o]", "output z[b]")
    assert not plan.is_proven
    for power in (2, 8, 64, 1024):
        m = number(power)
        assert plan.at(batch=power).cost == min(20 * (20 + 30) * m, 20 * 20 * 30 + 20 * 30 * m)


def test_two_indices_that_depend_on_the_batch_are_sampled_and_not_called_proven():
    plan = one(
        "input x[b:batch, i:3]", "input z[c:batch, i]", "param a[i, k:4]", "y[b, c, k] = x * a * z", "output y[b, c, k]"
    )
    assert not plan.is_proven
    for n in (1, 2, 4, 64, 4096, 2**20):
        assert plan.at(batch=n).cost == min(n * 3 * 4, n * n * 3) + n * n * 3 * 4
    assert one("input x[b:batch, i:3]", "input z[c:batch, i]", "y[b, c] = x * z", "output y[b, c]").is_proven


TWO = """network n { size batch
  input x[b:batch, i:8]; param a[i, r:30]; param c[r, j:6]; param d[j, s:10]; param e[s, o:9]
  h[b, j] = relu(x * a * c); y[b, o] = h * d * e; output y[b, o] }"""


def cut(first: int, rank: int, last: int) -> Fraction:
    """Where building the matrix of two factors first starts to pay."""
    return Fraction(first * rank * last, rank * (first + last) - first * last)


def test_regimes_of_two_equations_are_refined():
    plan = tg.plan(tg.parse(TWO))
    cuts = sorted((cut(8, 30, 6), cut(6, 10, 9)))
    assert bounds(plan) == [(1, int(cuts[0])), (int(cuts[0]) + 1, int(cuts[1])), (int(cuts[1]) + 1, None)]
    assert plan.breakpoints == tuple(cuts)
    for batch in (*range(1, 30), 1000):
        first = min(30 * (8 + 6) * batch, 8 * 30 * 6 + 8 * 6 * batch)
        second = min(10 * (6 + 9) * batch, 6 * 10 * 9 + 6 * 9 * batch)
        assert plan.at(batch=batch).cost == first + second + 6 * batch


def test_a_pinned_order_stands_at_every_batch_and_the_rest_has_its_regimes():
    plan = tg.plan(tg.parse(TWO), order={"h": "((x a) c)"})
    assert bounds(plan) == [(1, int(cut(6, 10, 9))), (int(cut(6, 10, 9)) + 1, None)]
    assert not plan.is_proven
    assert len({regime.stages[0].trees for regime in plan.regimes}) == 1
    whole = tg.plan(tg.parse(TWO), order={"h": "((x a) c)", "y": "(h (d e))"})
    assert bounds(whole) == [(1, None)]
    assert whole.at(batch=1).cost == 30 * (8 + 6) + 6 + 6 * 10 * 9 + 6 * 9


def test_a_given_batch_is_planned_for_alone():
    product = tt_matrix(3, 8, 16)
    plan = plan_of(product, sizes={"batch": 5})
    assert bounds(plan) == [(1, None)]
    assert plan.breakpoints == ()
    assert product.line(plan.regimes[0].trees[0]) == product.line(plan_of(product).regimes[1].trees[0])
