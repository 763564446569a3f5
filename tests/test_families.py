"""Families: in a spec and in Python the same network, with the meaning, the counts and the start they promise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from math import comb, prod

import networkx as nx
import numpy as np
import pytest
import sympy
import torch

import tngraph as tg
from tests.networks import random_arrays
from tngraph.errors import RankWarning
from tngraph.language import families
from tngraph.language.families import ALIASES, FAMILIES, Family, find_family
from tngraph.language.families.modes import binary_modes, choose_modes, equal_modes, factorise, split_modes
from tngraph.layers.recipe import make_recipe


@dataclass(frozen=True)
class Case:
    """A family at modes: its options in Python and in text, and its params for rows and columns alone."""

    family: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    params: int
    options: dict[str, object] = field(default_factory=dict)
    text: str = ""


CASES = {
    "mpo": Case("mpo", (4, 3), (2, 5), 2 * (8 + 15), {"bond": 2}, "bond=2"),
    "mpo, a bond each": Case("mpo", (4, 3, 2), (2, 5, 2), 16 + 90 + 12, {"bond": (2, 3)}, "bond=[2, 3]"),
    "plain_tt": Case("plain_tt", (4, 3), (2, 5), 8 + 12 + 12 + 15, {"bond": (2, 2, 3)}, "bond=[2, 2, 3]"),
    "ring": Case("ring", (4, 3, 2), (2, 5, 2), 9 * (8 + 15 + 4), {"bond": 3}, "bond=3"),
    "ring of one": Case("ring", (4,), (2,), 9 * 8, {"bond": 3}, "bond=3"),
    "tied_ring": Case("tied_ring", (3, 3, 3), (2, 2, 2), 4 * 6, {"bond": 2}, "bond=2"),
    "tree": Case("tree", (2, 3, 2, 2), (2, 2, 3, 1), 8 + 12 + 12 + 4 + 8 + 8 + 4, {"bond": 2}, "bond=2"),
    "tree, grouped": Case(
        "tree", (2, 3, 2), (2, 2, 3), 8 + 12 + 12 + 8 + 4, {"bond": 2, "grouping": ((1, 3), 2)},
        "bond=2, grouping=[[1, 3], 2]"
    ),
    "graph": Case(
        "graph", (2, 3, 2), (2, 2, 2), 4 * (4 + 6 + 4), {"edges": ((1, 2), (2, 3), (3, 1))},
        "edges=[[1, 2], [2, 3], [3, 1]]"
    ),
    "graph with an inner node": Case(
        "graph", (2, 3), (2, 2), 8 + 12 + 4, {"edges": ((1, 3), (3, 2)), "bond": 2}, "bond=2, edges=[[1, 3], [3, 2]]"
    ),
    "tucker": Case("tucker", (4, 3), (2, 5), 8 + 6 + 16 + 4 + 10, {"rank": 2}, "rank=2"),
    "cp": Case("cp", (4, 3), (2, 5), 3 * 14, {"rank": 3}, "rank=3"),
    "rcp": Case("rcp", (4, 3), (2, 5), 3 * 23, {"rank": 3}, "rank=3"),
    "block_term": Case(
        "block_term", (4, 3), (2, 5), 3 * (8 + 6 + 16 + 4 + 10), {"blocks": 3, "rank": 2}, "blocks=3, rank=2"
    ),
    "kronecker": Case("kronecker", (4, 3), (2, 5), 23),
    "low_rank": Case("low_rank", (4, 3), (2, 5), 3 * 22, {"rank": 3}, "rank=3"),
    "adtn": Case("adtn", (2, 2, 2), (2, 2), 2 * 4 + 2 * 16),
    "adtn, deep": Case(
        "adtn", (2, 2), (2, 2), 2 * 4 + 16 + 48, {"layers": 2, "activation": "gelu"}, "layers=2, activation=gelu"
    ),
    "adtn, wide": Case(
        "adtn", (3, 2), (2, 2), 3 * 4 + 4 * 2 * 4 + 4 * 4, {"bond": 4, "layout": "staircase"},
        "bond=4, layout=staircase"
    ),
    "adtn, gates on three": Case("adtn", (2, 2), (2, 2), 8 + 64, {"gate": 3}, "gate=3"),
    "adtn, linear": Case(
        "adtn", (2, 2), (2,), 20 + 32, {"layers": 2, "activation": "none"}, "layers=2, activation=none"
    ),
    "tree_generator": Case("tree_generator", (2, 2, 2), (2, 2), 4 + 8 + 4 + 8 + 8 + 4 + 32, {"bond": 2}, "bond=2"),
    "tree_generator, plain": Case(
        "tree_generator", (2, 2), (2, 2), 4 + 16, {"disentangle": False}, "disentangle=0"
    ),
    "mera": Case("mera", (2, 2, 2), (2, 2), 4 + 8 + 4 + 16 + 8 + 8 + 4 + 32),
    "quanta": Case("quanta", (4, 3, 2), (4, 3, 2), 36 + 64 + 144),
    "quanta, square no more": Case(
        "quanta", (4, 3), (2, 3), 4 * 3 * 6 + 9 * 1, {"gates": ((1, 2), (2,))}, "gates=[[1, 2], [2]]"
    ),
    "quanta, an axis left alone": Case("quanta", (4, 3, 2), (4, 3, 2), 144, {"gates": ((1, 2),)}, "gates=[[1, 2]]"),
    "quanta on a base": Case("quanta", (4, 3), (4, 3), 144, {"base": True}, "base=1"),
    "btt": Case("btt", (3, 4), (2, 5), 2 * (3 * 4 * 2 + 2 * 3 * 5), {"rank": 2}, "rank=2"),
    "btt of three": Case(
        "btt", (3, 4, 2), (2, 5, 2), 2 * 24 * 2 + 2 * 3 * 12 * 10 + 3 * 3 * 10 * 2, {"rank": (2, 3)}, "rank=[2, 3]"
    ),
    "einsum": Case("einsum", (3, 4, 2), (2, 5, 3), 2 * 2 * 3 * (5 * 2 + 3 * 4), {"rank": 2}, "rank=2"),
    "monarch": Case("monarch", (3, 4), (2, 5), 3 * 5 * 4 + 5 * 2 * 3),
    "butterfly": Case("butterfly", (2, 2, 2), (2, 2, 2), 3 * 16),
    "ntt": Case("ntt", (4, 3), (2, 5), 2 * (8 + 15), {"bond": 2, "activation": ("leaky_relu", 0.1)},
                "bond=2, activation=leaky_relu(0.1)"),
}  # fmt: skip
WEIGHTS = {name: case for name, case in CASES.items() if not FAMILIES[case.family].is_map}
MATRICES = ("low_rank", "quanta", "btt", "einsum", "monarch", "butterfly")
"""Families that need rows and columns."""
WINDOWED = {
    name: case
    for name, case in CASES.items()
    if FAMILIES[case.family].has_window and not any(isinstance(case.options.get(r), tuple) for r in ("bond", "rank"))
}
"""Those that a site for the window leaves room for: a list of ranks is as long as it is."""


def spec(case: Case) -> str:
    """The layer of a case as text."""
    rows, columns = range(1, len(case.rows) + 1), range(1, len(case.columns) + 1)
    i, o = ", ".join(f"i{k}" for k in rows), ", ".join(f"o{k}" for k in columns)
    sizes = "; ".join(
        f"index {letter}{k}: {mode}"
        for letter, modes in (("i", case.rows), ("o", case.columns))
        for k, mode in enumerate(modes, 1)
    )
    call = f"{case.family}({case.text})"
    is_map = FAMILIES[case.family].is_map
    body = (
        f"y[batch, {o}] = {case.family}(x, {case.text})"
        if is_map
        else f"W[({i}), ({o})] = {call}\ny[batch, {o}] = x * W"
    )
    return f"network n {{\nsize batch\n{sizes}\ninput x[batch, ({i})]\n{body}\noutput y[batch, ({o})]\n}}"


def build(case: Case, *more: object, **options: object) -> tg.Network:
    return FAMILIES[case.family](case.rows, case.columns, *more, **{**case.options, **options})


def test_every_family_has_a_case():
    assert {case.family for case in CASES.values()} == set(FAMILIES)
    assert all(find_family(word) is FAMILIES[meant] for word, meant in ALIASES.items())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_text_and_python_say_the_same(case: Case):
    written, built = tg.parse(spec(case)), build(case)
    assert [(c.name, c.legs, c.role, c.init) for c in written.cores] == [
        (c.name, c.legs, c.role, c.init) for c in built.cores
    ]
    arrays = random_arrays(built)
    np.testing.assert_array_equal(tg.evaluate(written, arrays), tg.evaluate(built, arrays))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_family_has_the_params_of_its_formula_and_verifies(case: Case):
    network = build(case)
    assert tg.plan(network).at().params == case.params
    assert tg.parse(tg.format(network)) == network
    assert tg.compile(network).verify().is_equal


@pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS)
def test_a_weight_is_what_its_layer_applies(case: Case):
    layer, weight = build(case), FAMILIES[case.family].weight(case.rows, case.columns, **case.options)
    arrays = random_arrays(layer)
    dense = np.asarray(tg.evaluate(weight, {name: a for name, a in arrays.items() if name != "x"}))
    assert dense.shape == (prod(case.columns), prod(case.rows))
    np.testing.assert_allclose(
        tg.evaluate(layer, arrays), arrays["x"] @ dense.T, rtol=0, atol=1e-10 * np.abs(dense).max() * 100
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", WINDOWED.values(), ids=WINDOWED)
def test_a_window_makes_it_a_convolution(case: Case, groups: int):
    network = build(case, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=groups, bias=True, function="relu")
    assert tg.parse(tg.format(network)) == network
    assert tg.compile(network, {"batch": 3, "height": 6, "width": 7}).verify(sizes={"height": 6, "width": 7}).is_equal


@pytest.mark.parametrize("name", ["mpo", "cp", "tucker", "low_rank", "adtn"])
def test_a_convolution_is_that_of_pytorch(name: str):
    case, groups = CASES[name], 2
    network = build(case, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=groups)
    weight = FAMILIES[name].weight(case.rows, case.columns, (3, 2), groups=groups, **case.options)
    arrays = random_arrays(network, {"batch": 2, "height": 6, "width": 7})
    dense = np.asarray(tg.evaluate(weight, {n: a for n, a in arrays.items() if n != "x"}))
    expected = torch.nn.functional.conv2d(
        torch.tensor(arrays["x"]), torch.tensor(dense), stride=2, padding=(1, 0), dilation=(1, 2), groups=groups
    )
    torch.testing.assert_close(torch.tensor(np.asarray(tg.evaluate(network, arrays))), expected)


@pytest.mark.parametrize("kernel", [(3,), (3, 2, 2)])
def test_convolutions_of_one_and_three_axes_verify(kernel: tuple[int, ...]):
    network = families.tucker((4,), (6,), kernel, padding=1, rank=2)
    runtime = dict.fromkeys([size for size in network.runtime_sizes() if size != "batch"], 5)
    assert tg.compile(network, runtime).verify(sizes=runtime).is_equal


@pytest.mark.parametrize("legs", [(2, 1), (3, 2), (6, 5), (9, 12), (12, 12)])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_an_adtn_has_the_params_of_the_paper(legs: tuple[int, int], layers: int):
    q = sum(legs)
    network = families.adtn((2,) * legs[0], (2,) * legs[1], layers=layers)
    counted = sum(prod(int(leg.size) for leg in core.legs) for core in network.cores if core.role == "param")
    assert counted == 4 * (q // 2) + 16 * (layers * (q - 1) - q // 2)


def test_quanta_counts_of_the_paper():
    network = families.quanta((16, 8, 8, 4), (16, 8, 8, 4))
    gates = "W.g1 W.g2 W.g3 W.g4 W.g5 W.g6"
    plan = tg.plan(network, {"batch": 1}, order=f"x {gates}")
    assert (plan.at().params, plan.at().macs) == (43_008, 1_835_008)


def test_quanta_on_a_base_starts_at_zero():
    layer = tg.compile(families.quanta.weight((4, 3, 2), (4, 3, 2), base=True))
    assert not layer().any()


def test_ranks_stay_symbols():
    network = families.mpo(("n", 3), (2, 5), bond="D", sizes={"n": 4, "D": 2})
    d, n = (sympy.Symbol(name, integer=True, positive=True) for name in "Dn")
    assert sympy.expand(tg.plan(network).params - (2 * n * d + 15 * d)) == 0
    text = spec(CASES["mpo"]).replace("size batch", "size batch, D = 3").replace("bond=2", "bond=D")
    assert tg.plan(tg.parse(text)).params == 23 * d
    assert tg.plan(tg.parse(text, sizes={"D": 2})).at().params == 46


def test_a_rank_that_is_no_use_is_clamped_with_a_warning_that_names_the_bond():
    with pytest.warns(RankWarning, match=r"^the bond 'W.b2' is cut from 5 to 4: more than 4 cannot matter$") as caught:
        network = families.mpo((4, 3, 2), (2, 5, 2), bond=5)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert {str(index.size) for index in network.indices() if index.name == "W.b2"} == {"4"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        families.mpo((2, 2), (1, 1))  # a default is no choice


@pytest.mark.parametrize(
    ("name", "rows", "columns", "options", "bond"),
    [
        ("plain_tt", (2, 3), (5, 7), {"bond": 40}, "W.b1"),
        ("cp", (2, 2), (2, 2), {"rank": 9}, "W.r"),
        ("rcp", (2, 2), (2, 2), {"rank": 5}, "W.r"),
        ("tucker", (2,), (5,), {"rank": 3}, "W.p1"),
        ("block_term", (2,), (5,), {"rank": 3}, "W.p1"),
        ("tree", (2, 2, 2), (2, 2, 2), {"bond": 5}, "W.b1"),
        ("low_rank", (4,), (5,), {"rank": 6}, "W.r"),
        ("tree_generator", (2,), (2, 2), {"bond": 5}, "W.h0_1"),
    ],
)
def test_what_a_rank_is_clamped_to_still_makes_every_weight(name, rows, columns, options, bond):
    """The clamped family has params enough for any weight: a bond of full rank."""
    with pytest.warns(RankWarning) as caught:
        network = FAMILIES[name](rows, columns, **options)
    assert any(f"the bond '{bond}' is cut from" in str(warning.message) for warning in caught)
    if name in ("plain_tt", "tucker", "tree", "low_rank", "rcp", "cp"):
        params = sum(prod(int(leg.size) for leg in c.legs) for c in network.cores if c.role == "param")
        assert params >= prod(rows) * prod(columns)


@pytest.mark.parametrize(
    "graph", [nx.grid_2d_graph(2, 2), nx.hypercube_graph(3), nx.random_regular_graph(3, 6, seed=0)]
)
def test_any_graph_is_a_family(graph: nx.Graph):
    count = len(graph)
    network = families.graph(graph, (2,) * count, (2,) * count, bond=2)
    assert sum(core.role == "param" for core in network.cores) == count
    bonds = [index for index in network.indices() if index.name.startswith("W.b")]
    assert len(bonds) == graph.number_of_edges()
    params = sum(prod(int(leg.size) for leg in c.legs) for c in network.cores if c.role == "param")
    assert params == sum(4 * 2**degree for _, degree in graph.degree)
    assert tg.compile(network).verify().is_equal


def test_one_group_of_legs_is_a_vector():
    network = tg.parse("network n { index q{1..6}: 2; G[(q{1..6})] = adtn(layers=2); output G[(q{1..6})] }")
    assert tg.compile(network).verify().is_equal
    with pytest.raises(tg.NetworkError, match="low_rank is a matrix, and 'G' has 0 rows and 6 columns"):
        tg.parse("network n { index q{1..6}: 2; G[(q{1..6})] = low_rank(rank=2); output G[(q{1..6})] }")


REFUSE_EMPTY = {
    (4, 4): {"low_rank", "quanta", "btt", "einsum", "monarch", "butterfly", "ntt"},
    (): {"low_rank", "quanta", "btt", "einsum", "monarch", "butterfly", "ntt", "tied_ring"},
}
"""By the one group that is left (none: a window alone), the families that need more."""


@pytest.mark.filterwarnings("ignore::tngraph.RankWarning")
@pytest.mark.parametrize("groups", [((4, 4), (), ()), ((), (4, 4), ()), ((4, 4), (), (3,)), ((), (), (3,))], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_without_rows_or_columns_reads_back_or_is_refused(name: str, groups):
    rows, columns, kernel = groups
    options = {"edges": [[1, 2], [2, 3]]} if name == "graph" else {}
    options |= {"rank": 2} if name in ("cp", "rcp") else {}
    if name in REFUSE_EMPTY[rows or columns]:
        with pytest.raises(tg.NetworkError, match=f"^{name} (is a matrix|has no place|has no site)"):
            FAMILIES[name](rows, columns, kernel, **options)
        return
    network = FAMILIES[name](rows, columns, kernel, **options)
    assert tg.parse(tg.format(network)) == network
    value = tg.evaluate(network, random_arrays(network))
    assert value.shape == (3, 16 if columns else 1, *(1 for _ in kernel))


def test_a_network_with_an_empty_group_is_saved_and_verified(tmp_path):
    network = families.cp((10, 20), (), rank=3)
    assert [port.axes[1] for port in network.outputs] == [()]
    plan = tg.plan(network)
    plan.save(tmp_path / "plan.json")
    layer = tg.compile(tg.load_plan(tmp_path / "plan.json"))
    assert layer(torch.ones(5, 200)).shape == (5, 1)
    assert layer.verify().is_equal
    with pytest.raises(ValueError, match=r"^axis 1 of x has size 2, and its group \(\) has 1$"):
        tg.compile(families.cp((), 20, rank=1))(torch.ones(5, 2))


def test_one_generator_may_cover_two_layers():
    """Each layer reads its half of one generated tensor."""
    network = tg.parse("""network n {
      size batch
      input x[batch, (i{1..3}: 2)]
      index o{1..2}: 2
      G[(l:2, a{1..3}: 2), (c{1..2}: 2)] = adtn(layers=2)
      h[batch, o{1..2}] = relu(x * G[0, i{1..3}, o{1..2}])
      y[batch, i{1..3}] = h * G[1, i{1..3}, o{1..2}]
      output y[batch, (i{1..3})]
    }""")
    assert tg.compile(network).verify().is_equal


def test_a_family_applied_to_a_tensor_is_its_weight_times_it():
    text = spec(CASES["cp"])
    applied = text.replace(
        "W[(i1, i2), (o1, o2)] = cp(rank=3)\ny[batch, o1, o2] = x * W", "y[batch, o1, o2] = cp(x, rank=3)"
    )
    assert applied != text
    one, other = tg.plan(tg.parse(text)), tg.plan(tg.parse(applied))
    assert (one.params, one.macs) == (other.params, other.macs)
    assert {core.name for core in other.network.cores} == {"x", "y.a1", "y.a2", "y.c1", "y.c2"}
    plain = text.replace("cp(rank=3)", "ntt()").replace(
        "W[(i1, i2), (o1, o2)] = ntt()\ny[batch, o1, o2] = x * W", "y[batch, o1, o2] = ntt(x)"
    )
    assert tg.compile(tg.parse(plain)).verify().is_equal


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: families.mpo((2, 2), (2,)), "mpo pairs rows with columns, and 'W' has 2 rows and 1 columns"),
        (lambda: families.mpo((2, 2), (2, 2), rank=2), "mpo has no option 'rank'"),
        (lambda: families.mpo((2, 2), (2, 2), bond=0), "bond is 0"),
        (lambda: families.mpo((2, 2), (2, 2), bond="D"), "there is no size 'D' here"),
        (lambda: families.mpo((2, 2), (2, 2), (3,) * 4), "a window has 1 to 3 axes, not 4"),
        (lambda: families.mpo((2, 2), (2, 2), (3, 3), stride=(1, 2, 3)), "a window of 2 axes has 3 numbers"),
        (lambda: families.btt((2, 2), (2, 2), (3,)), "btt has no place for the window of a convolution"),
        (lambda: families.monarch((2,), (2,)), r"monarch has rows \(k, p\) and columns \(s, q\), and 'W' has 1 rows"),
        (lambda: families.adtn((2, 2), (2, 2), layers=0), "layers is 0"),
        (lambda: families.adtn((2, 2), (2, 2), layers=10**6), "layers is 1000000"),
        (lambda: families.quanta((2, 2), (2, 2), gates=((1, 3),)), r"the gate \[1, 3\] of 'W' names no axes"),
        (lambda: families.quanta((2, 3), (2, 2), gates=((1,),)), "no gate of 'W' acts on axis 2, which has 3 rows"),
        (lambda: families.tied_ring((2, 3), (2, 2)), "tied_ring has one core for all sites"),
        (lambda: families.ntt((2,), ()), "ntt is a matrix"),
        (lambda: families.mpo((), ()), "'W' has no legs"),
    ],
)  # fmt: skip
def test_what_a_family_refuses(call, message: str):
    with pytest.raises(tg.NetworkError, match=message):
        call()


@pytest.mark.parametrize("features", [1, 2, 10, 13, 84, 784, 1000, 1009, 4096])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_modes_multiply_to_the_features_or_a_little_more(features: int, count: int):
    exact = factorise(features, count)
    assert prod(exact) == features
    assert list(exact) == sorted(exact, reverse=True)
    modes = choose_modes(features, count)
    assert features <= prod(modes) <= features * 1.02 + 1
    assert modes == exact or exact[0] > 16
    assert prod(binary_modes(features)) < 2 * features or features == 1
    assert prod(equal_modes(features, count)) >= features


def test_exponents_name_the_members_of_the_einsum_family():
    """Of 64 rows and columns: (g, b, a) = (1, 1, 64) is low rank, (8, 1, 8) with (8, 1, 8) is BTT."""
    rows, columns = split_modes(64, (0, 0, 1)), split_modes(64, (0, 0, 1))
    assert (rows, columns) == ((1, 1, 64), (1, 1, 64))
    assert split_modes(64, (0.5, 0.5, 0)) == (8, 8, 1)
    assert prod(split_modes(1000, (0.3, 0.3, 0.4))) == 1000
    with pytest.raises(tg.SizeError, match="exponents from 0 on add up to 1"):
        split_modes(64, (0.5, 0.6))


STARTS = {
    "square": ((64, 64), 1),
    "wide": ((256, 64), 1),
    "tall": ((10, 64), 1),
    "padded": ((13, 100), 1),
    "padded more": ((100, 13), 1),
    "a window": ((24, 16, 3, 3), 1),
    "groups": ((24, 6, 3), 2),
    "a vector": ((64,), 1),
}
"""Shapes of a weight, `(out, in / groups, *kernel)`, and its groups."""
OWN_START = ("btt", "quanta", "ntt")
"""Families that document a rule of their own."""
BARRED = ("tree_generator", "mera")
"""Families with activations inside: what a relu leaves is known on average alone."""


def is_fit(family: Family, shape: tuple[int, ...]) -> bool:
    """Whether a weight of a shape can be of a family: a matrix is no vector, and some have no window."""
    return (family.has_window or len(shape) <= 2) and (len(shape) > 1 or family.name not in MATRICES)


def mean_squares(network: tg.Network, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The mean squares of the entries of each core as a module of the network starts, without noise."""
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, mean=0.0, std=1.0: tensor.data.fill_(std))
    layer = tg.compile(network, dict.fromkeys(network.runtime_sizes(), 8))
    squares = {name: param.detach().double().square() for name, param in layer.named_parameters()}
    return {name: np.full(square.shape, float(square.mean())) for name, square in squares.items()}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in (*OWN_START, *BARRED)])
def test_every_weight_starts_with_the_variance_of_a_dense_one(name: str, start: str, monkeypatch: pytest.MonkeyPatch):
    """Independent entries of mean zero: the mean square of a weight is the network of the mean squares of its cores."""
    (shape, groups), family = STARTS[start], FAMILIES[name]
    if not is_fit(family, shape):
        return
    recipe = make_recipe(name, shape, groups, options={"edges": ((1, 2),)} if name == "graph" else {})
    as_layer = (recipe.layer(),) if start in ("square", "padded", "groups") else ()
    for network in (recipe.weight(), *as_layer):
        squares = np.asarray(tg.evaluate(recipe.weight(), mean_squares(network, monkeypatch)))
        variance = float(recipe.crop(torch.tensor(squares)).mean())
        assert variance * 3 * prod(shape[1:]) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("start", ["square", "padded"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].is_map and name not in OWN_START])
def test_a_drawn_weight_is_about_as_spread_as_a_dense_one(name: str, start: str):
    """The same, measured on weights as they are drawn: products of a few numbers vary, so the bounds are wide."""
    shape = {"square": (16, 16), "padded": (5, 13)}[start] if name in BARRED else STARTS[start][0]
    recipe = make_recipe(name, shape, options={"edges": ((1, 2),)} if name == "graph" else {})
    layer, squares = tg.compile(recipe.weight()), []
    for seed in range(40):
        torch.manual_seed(seed)
        layer.reset_parameters()
        squares.append(float(recipe.crop(layer().detach()).square().mean()) * 3 * shape[1])
    assert 0.6 < float(np.mean(squares)) < 1.6
    assert min(squares) > 0


@pytest.mark.parametrize(("rows", "columns"), [((8, 8), (8, 8)), ((16, 8), (4, 4)), ((4, 4), (16, 8))])
def test_families_with_a_start_of_their_own_keep_it(rows: tuple[int, int], columns: tuple[int, int]):
    """By hand: a core of btt has the variance min(1/fan-in, fan-out/fan-in²), quanta is orthogonal, ntt 1/fan-in."""
    torch.manual_seed(0)
    btt = tg.compile(families.btt(rows, columns, rank=2))
    for core, (fan_in, fan_out) in zip(
        btt.parameters(), ((rows[1], 2 * columns[0]), (2 * rows[0], columns[1])), strict=True
    ):
        variance = min(1 / fan_in, fan_out / fan_in**2)
        assert float(core.detach().square().mean()) == pytest.approx(variance, rel=0.15)
    weight = tg.compile(families.quanta.weight(rows, columns))().detach().numpy()
    small, large = sorted((prod(rows), prod(columns)))
    singular = np.linalg.svd(weight, compute_uv=False)
    np.testing.assert_allclose(singular, np.ones(small), atol=1e-5)
    assert float(np.square(weight).mean()) == pytest.approx(1 / large, rel=1e-5)
    ntt = tg.compile(families.ntt(rows, columns, bond=32))
    for core, fan_in in zip(ntt.parameters(), (rows[0], 32 * rows[1]), strict=True):
        assert float(core.detach().square().mean()) == pytest.approx(1 / fan_in, rel=0.15)


def _at_size(case: Case) -> dict[str, object]:
    """The options of a case that hold at other modes."""
    shaped: dict[str, object] = {"edges": ((1, 2),), "bond": 2} if case.family == "graph" else {}
    return {**{name: value for name, value in case.options.items() if not isinstance(value, tuple)}, **shaped}


@pytest.mark.parametrize(
    "name", ["contraction", "convolution", "outer_product", "partial_outer_product", "composition"]
)
def test_the_five_tensor_operations_are_an_equation_each(name: str):
    network = tg.load("examples/tensor_operations.tn", name)
    assert len(network.equations) == 1
    assert tg.compile(network).verify().is_equal


def test_how_many_gates_quanta_has():
    network = families.quanta((2,) * 5, (2,) * 5)
    assert sum(core.role == "param" for core in network.cores) == comb(5, 2)


def test_a_cut_rank_follows_the_sizes_it_depends_on():
    """Where a symbol is involved the cut stays a minimum, and not what it is at the defaults."""
    sized = """network n {
      size batch
      size n = 2, R = 9
      input x[batch, i{1..2}: n]
      W[(i{1..2}), (o{1..2}: n)] = mpo(bond=R)
      y[batch, o{1..2}] = x * W
      output y[batch, o{1..2}]
    }"""
    with pytest.warns(RankWarning, match=r"^<text>:5:7: the bond 'W.b1' is cut from 9 to 4: more "):
        network = tg.parse(sized)
    plan = tg.plan(network)
    assert [plan.at(**at).params for at in ({}, {"R": 2}, {"n": 8})] == [2 * 4 * 4, 2 * 4 * 2, 2 * 64 * 9]
    assert tg.parse(tg.format(network)) == network
    assert tg.compile(network, {"n": 3}).verify().is_equal


@pytest.mark.parametrize(
    "read",
    [
        "index p:3; y[batch, o{1..2}:2, p] = ntt(x[batch, i{1..2}, 2*p, 1], bond=2); output y[batch, o{1..2}, p]",
        "index p:3; index k:2; y[batch, o:2, q:2, p, m] = ntt(x[batch, i{1..2}, 2*p, m+k]); output y[batch,o,q,p,m]",
        "index k:2; y[batch, o{1..2}:2, l, m] = ntt(x[batch, i{1..2}, m, l + k - 1]); output y[batch, o{1..2}, l, m]",
    ],
    ids=["a stride", "a stride and a window", "a window along a leg of another name"],
)  # fmt: skip
def test_a_sweep_reads_its_input_anywhere(read: str):
    network = tg.parse(f"network n {{ size batch; input x[batch, i{{1..2}}:2, l:6, m:6]; {read} }}")
    assert tg.compile(network).verify().is_equal


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: families.quanta((4, 4), (2, 2), base=True), "the base of quanta starts as minus an identity"),
        (lambda: families.adtn((2, 2), (2, 2), gate=1), "a gate acts on two legs or more, and gate is 1"),
        (lambda: families.adtn((2, 2), (2, 2), layers=1500), "layers is 1500"),
        (lambda: families.tree((2, 2), (2, 2), grouping=3), "grouping is not a list"),
        (lambda: families.mpo((2, 2), (2, 2), bond=2**60), "bond is 1152921504606846976"),
    ],
)
def test_what_has_no_meaning_is_refused(call, message: str):
    with pytest.raises(tg.NetworkError, match=message):
        call()


@pytest.mark.parametrize("name", ["adtn", "mera", "quanta"])
def test_circuits_start_in_half_precision_too(name: str):
    layer = tg.compile(FAMILIES[name]((2, 2), (2, 2)), dtype=torch.bfloat16)
    assert all(param.isfinite().all() and param.dtype == torch.bfloat16 for param in layer.parameters())
