"""Slicing: the limit is kept, the total is what a loop over the slices computes, and the sum is the network's."""

from __future__ import annotations

from itertools import combinations, product
from math import prod

import networkx as nx
import numpy as np
import pytest
import torch

import tngraph as tg
from tngraph.search.proposals import Cut, CutTrial, Hypergraph, propose_cut
from tngraph.search.region import ContractionTree
from tngraph.search.slicing import Sliceable, Slicing, slice_tree

SEARCH = tg.Search(trials=2, parallel=1)


def network(nodes: int, seed: int, open_legs: bool = False) -> tg.Network:
    graph = nx.random_regular_graph(3, nodes, seed)
    rng = np.random.default_rng(seed)
    for u, v in graph.edges:
        graph.edges[u, v]["size"] = int(rng.integers(2, 4))
    if open_legs:
        graph.nodes[0]["open"] = {"a": 2}
        graph.nodes[1]["open"] = {"c": 3}
    return tg.from_networkx(graph)


def tree_of(net: tg.Network) -> ContractionTree:
    return tg.plan(net, search=SEARCH).regimes[0].trees[0]


def run_loop(slicing: Slicing, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, int, int]:
    """The result of a loop over the slices in NumPy, its operations, and the largest value a step wrote before."""
    tree, cut = slicing.tree, slicing.indices
    letters = {index: k for k, index in enumerate(dict.fromkeys(i for a in tree.region.accesses for i in a.indices))}
    result = np.zeros([int(i.size) for i in tree.region.legs])
    count, largest, before = 0, 0, {}
    for point in product(*(range(int(i.size)) for i in cut)):
        at = dict(zip(cut, point, strict=True))
        values, legs, reached = [], [], []
        for access in tree.region.accesses:
            values.append(arrays[access.source][tuple(at.get(leg, slice(None)) for leg in access.legs)])
            legs.append([leg for leg in access.legs if leg not in at])
            reached.append(not set(cut).isdisjoint(access.legs))
        for k, step in enumerate(tree.steps):
            kept = [leg for leg in step.legs if leg not in at]
            reached.append(any(reached[o] for o in step.operands))
            if reached[-1] or k not in before:
                terms = [t for o in step.operands for t in (values[o], [letters[i] for i in legs[o]])]
                before[k] = np.einsum(*terms, [letters[i] for i in kept])
                count += prod(int(i.size) for i in {*kept, *(i for o in step.operands for i in legs[o])})
                if k + 1 < len(tree.steps):
                    largest = max(largest, before[k].size)
            values.append(before[k])
            legs.append(kept)
        place = tuple(at.get(leg, slice(None)) for leg in tree.region.legs)
        order = [legs[-1].index(leg) for leg in tree.region.legs if leg not in at]
        result[place] += values[-1].transpose(order)
        count += values[-1].size if cut else 0
    return result, count, largest


def arrays_of(net: tg.Network) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {core.name: rng.normal(size=[int(leg.size) for leg in core.legs]) for core in net.cores}


@pytest.mark.parametrize("open_legs", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_loop_over_the_slices_costs_the_total_and_gives_the_network(seed: int, open_legs: bool):
    net = network(10, seed, open_legs)
    tree, arrays = tree_of(net), arrays_of(net)
    whole = slice_tree(tree, {}, 2**40, SEARCH)
    assert (whole.indices, whole.slices, whole.per_slice, whole.tree) == ((), 1, 0, tree)
    assert whole.total == tg.plan(net, search=SEARCH).at().cost
    limit = max(6, whole.largest // 4)
    slicing = slice_tree(tree, {}, limit, SEARCH)
    result, count, largest = run_loop(slicing, arrays)
    assert count == slicing.total
    assert largest == slicing.largest <= limit
    np.testing.assert_allclose(result, tg.evaluate(net, arrays), rtol=1e-9)


def cheapest(own: Sliceable, limit: int) -> Slicing:
    """The best of all choices of indices, tried one by one."""
    every = (chosen for k in range(len(own.allowed) + 1) for chosen in combinations(own.allowed, k))
    fitting = (s for s in map(own.slicing, every) if s.largest <= limit)
    return min(fitting, key=lambda slicing: slicing.total)


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_near_the_best_of_all_choices(seed: int):
    tree = tree_of(network(8, seed))
    limit = max(4, slice_tree(tree, {}, 2**40, SEARCH).largest // 4)
    assert slice_tree(tree, {}, limit, SEARCH).total <= 1.25 * cheapest(Sliceable(tree, {}), limit).total


def test_the_same_search_gives_the_same_slicing():
    tree = tree_of(network(16, 0))
    assert slice_tree(tree, {}, 64, SEARCH) == slice_tree(tree, {}, 64, SEARCH)
    assert slice_tree(tree, {}, 64, SEARCH) == slice_tree(tree, {}, 64, tg.Search(trials=2, parallel=2))


CONVOLUTION = tg.parse(
    "network c { index x: 8; index h: 6; index k: 3; index o: 4; index c: 4; index r: 5;\n"
    " input f[c, h0: 8]; param w[k, r, o]; param u[c, r];\n"
    " y[o, h] = f[c, h + k] * w[k, r, o] * u[c, r]; output y[o, h] }"
)


def test_a_limit_that_no_slicing_meets_is_an_error():
    with pytest.raises(tg.PlanError) as caught:
        slice_tree(tree_of(CONVOLUTION), {}, 7)
    assert str(caught.value) == (
        "no slicing keeps every value within 7 elements\n  the least possible is 8: "
        "an index read at a position such as x + k is not sliced"
    )


def test_a_convolved_index_is_not_sliced():
    own = Sliceable(tree_of(CONVOLUTION), {})
    assert not {index.name for index in own.allowed} & {"h", "k"}
    assert {"o", "c", "r"} <= {index.name for index in own.allowed}


WINDOW_OF_ONE = """network s {
  input x[i:2, j:2, l:5]
  param w[k:2, k2:2, l]
  y[p] = x[p + k, j, l] * w[k, k, l]
  output y[p]
}"""


@pytest.mark.parametrize("largest", [1, 5, 20])
def test_a_window_at_one_position_is_sliced_where_it_is_read(largest: int):
    """Σ_j,l x[0, j, l] + 10·Σ_j,l x[1, j, l] = 45 + 10·145."""
    layer = tg.compile(tg.plan(tg.parse(WINDOW_OF_ONE), largest=largest))
    with torch.no_grad():
        layer.w.zero_()
        layer.w[0, 0], layer.w[1, 1] = 1, 10
    assert layer(torch.arange(20.0).reshape(2, 2, 5)).tolist() == [1495.0]
    assert layer.verify().is_equal


CONVOLVED = """network n {
  size batch
  input x[batch, c:3, i:16]
  param w[c, r:4, k:KERNEL]
  param v[r, o:5]
  y[batch, o, p] = x[batch, c, p + k] * w * v
  output y[batch, o, p]
}"""


@pytest.mark.parametrize("bound", [{"largest": 10}, {"largest": 100}, {"memory_limit": 2_000}, {"minimize": "memory"}])
@pytest.mark.parametrize("kernel", [1, 16])
def test_a_window_with_one_position_or_one_tap_is_sliced(kernel: int, bound: dict[str, object]):
    network = tg.parse(CONVOLVED.replace("KERNEL", str(kernel)))
    if kernel == 1:
        bound = {name: 8_000 if value == 2_000 else value for name, value in bound.items()}
    assert tg.compile(tg.plan(network, {"batch": 4}, **bound)).verify().is_equal


@pytest.mark.parametrize("bound", [{"largest": 1}, {"memory_limit": 20}, {"minimize": "memory"}])
def test_an_index_that_all_tensors_share_is_sliced(bound: dict[str, object]):
    """Nothing of a slice has an index left: cotengra fails there."""
    network = tg.parse("network q { input x[i:3]; param w[i]; y[i] = x * w * w; output y[i] }")
    assert tg.compile(tg.plan(network, **bound)).verify().is_equal


def test_a_proposal_that_fails_is_none():
    graph = Hypergraph(((0,), (0,), (0,)), (0,), {0: 3})
    for number in range(2):
        assert propose_cut(Cut(graph, ((0, 1), (2, 3)), 1), CutTrial(number, 0)) == (((0, 1), (2, 3)), ())


def test_a_read_of_one_tensor_keeps_within_the_limit_or_is_refused():
    read = "input x[i:4, j:4, b:5]; y[h:4] = x[h + 2*j - 2, j, b]"
    network = tg.parse(f"network n {{ {read}; output y[h] }}")
    plan = tg.plan(network, largest=16)
    assert [index.name for tree in plan.regime().trees for index in tree.sliced] == ["b"]
    assert tg.compile(plan).verify().is_equal
    with pytest.raises(tg.PlanError) as error:
        tg.plan(network, largest=15)
    assert str(error.value) == (
        "no slicing keeps every value within 15 elements\n"
        "  the least possible is 16: an index read at a position such as x + k is not sliced"
    )


def test_a_sum_before_the_read_of_one_tensor_keeps_within_the_limit_or_is_refused():
    """It writes 10 elements, and the read after it the 12 of the result."""
    network = tg.parse("network n { input x[i:10, b:5]; y[h:3, k:2, m:2] = x[h + k + m, b]; output y[h, k, m] }")
    plan = tg.plan(network, largest=10)
    assert [op.kind for op in plan.regime().operations] == ["load", "sum", "read"]
    with pytest.raises(tg.PlanError) as error:
        tg.plan(network, largest=9)
    assert str(error.value) == (
        "no slicing keeps every value within 9 elements\n"
        "  the least possible is 10: an index read at a position such as x + k is not sliced"
    )
