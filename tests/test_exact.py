"""The exact search against enumeration of every tree, and the cotengra border."""

from __future__ import annotations

import itertools
import random

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import tngraph as tg
from tests.networks import networks
from tngraph.language.network import Index, Network, Read
from tngraph.search.cleaning import clean_term
from tngraph.search.exact import MOST_LEAVES, prove_order
from tngraph.search.machine import Work
from tngraph.search.objectives import Pricing
from tngraph.search.orders import Search, search_tree
from tngraph.search.region import Region, Topology, Value
from tngraph.search.trees import build_tree, opened, order_cost


def regions(network: Network) -> list[Region]:
    sources = network.sources()
    return [clean_term(term, e.legs, sources)[0] for e in network.equations for term in e.terms]


def least_cost(topology: Topology) -> int:
    """The cheapest way to join all leaves, by trying every pair of every set of values left, unfolded or not."""
    best: dict[frozenset[Value], int] = {}

    def fits(value: Value, laid_out: Value) -> bool:
        return laid_out == value or not topology.is_too_large(laid_out)

    def finish(values: frozenset[Value]) -> int:
        if len(values) == 1:
            return 0
        if values not in best:
            best[values] = min(
                (
                    topology.price(a, b, joined) + finish(values - {left, right} | {joined})
                    for left, right in itertools.combinations(values, 2)
                    for a in opened(topology, left)
                    for b in opened(topology, right)
                    if (joined := topology.join(a, b)) is not None and fits(left, a) and fits(right, b)
                    if not topology.is_too_large(joined)
                ),
                default=2**59,
            )
        return best[values]

    return finish(frozenset(topology.leaves))


def left_to_right(count: int) -> list[tuple[int, int]]:
    return [(k if k == 0 else count + k - 1, k + 1) for k in range(count - 1)]


def random_order(count: int, seed: int) -> list[tuple[int, int]]:
    generator = random.Random(seed)
    alive, pairs = list(range(count)), []
    while len(alive) > 1:
        pair = tuple(alive.pop(generator.randrange(len(alive))) for _ in range(2))
        pairs.append(pair)
        alive.append(count + len(pairs) - 1)
    return pairs


@given(networks(max_equations=1), st.integers(1, 5))
def test_the_program_finds_the_cheapest_of_all_trees(network: Network, scale: int):
    numbers = tg.plan(network, {name: scale + k for k, name in enumerate(network.runtime_sizes())}).sizes
    for region in regions(network):
        topology = Topology(region, numbers)
        if 2 <= len(topology.leaves) <= 5:
            order, is_proven = prove_order(topology, left_to_right(len(topology.leaves)))
            assert is_proven
            assert order_cost(topology, order) == least_cost(topology)


@given(networks(max_equations=1), st.integers(2, 60))
def test_the_program_finds_the_cheapest_tree_of_small_values(network: Network, most: int):
    """What is laid out is written too: it counts against the most elements of a value."""
    numbers = tg.plan(network, {name: 2 + k for k, name in enumerate(network.runtime_sizes())}).sizes
    for region in regions(network):
        topology = Topology(region, numbers, Pricing(most_elements=most))
        if 2 <= len(topology.leaves) <= 5 and not topology.unfit:
            order, _ = prove_order(topology, left_to_right(len(topology.leaves)))
            assert min(order_cost(topology, order), 2**59) == least_cost(topology)


CONVOLUTION = """network deep {
  size batch, n
  input x[batch, s:3, L:n, M:n]
  param a[s, r:R1]
  param k1[r, u:3]
  param k2[u, v:2, q:2]
  param k3[q, v, t:4]
  y[batch, t, l:n, m] = x[batch, s, l + u + 2*v - 2, m + v] * a * k1 * k2 * k3
  output y[batch, t, l, m]
}"""


@pytest.mark.parametrize("rank", [1, 3, 20])
@pytest.mark.parametrize("batch", [1, 50])
def test_the_program_finds_the_cheapest_convolution(rank: int, batch: int):
    network = tg.parse(CONVOLUTION.replace("R1", str(rank)))
    (region,) = regions(network)
    topology = Topology(region, {"batch": batch, "n": 9})
    order, is_proven = prove_order(topology, left_to_right(5))
    assert is_proven
    assert order_cost(topology, order) == least_cost(topology)


@pytest.mark.parametrize(("count", "seed"), [(3, 0), (4, 1), (5, 2), (5, 3), (6, 4), (6, 5)])
def test_the_program_finds_the_cheapest_of_all_trees_of_dense_random_graphs(count: int, seed: int):
    generator = random.Random(seed)
    inputs: list[list[str]] = [[] for _ in range(count)]
    for k in range(2 * count):
        for tensor in generator.sample(range(count), generator.choice([2, 2, 2, 3])):
            inputs[tensor].append(f"e{k}")
    sizes = {f"e{k}": generator.randint(2, 7) for k in range(2 * count)}
    network = tg.from_indices(inputs, ["e0", "e1"], sizes)
    (region,) = regions(network)
    topology = Topology(region, {})
    order, is_proven = prove_order(topology, left_to_right(count))
    assert is_proven
    assert order_cost(topology, order) == least_cost(topology)


def test_a_wrong_order_is_improved_upon():
    network = tg.from_einsum("ab,bc,cd,de->ae", dict(zip("abcde", (2, 50, 3, 70, 4), strict=True)))
    (region,) = regions(network)
    topology = Topology(region, {})
    worst = max((random_order(4, seed) for seed in range(50)), key=lambda order: order_cost(topology, order))
    order, _ = prove_order(topology, worst)
    assert order_cost(topology, order) < order_cost(topology, worst)


def test_an_outer_product_is_found_where_it_is_cheapest():
    """B·i·j + B·j for one vector after the other; i·j + B·i·j for their outer product first."""
    network = tg.from_einsum("bij,i,j->b", {"b": 100, "i": 3, "j": 4})
    assert tg.plan(network).at().cost == 3 * 4 + 100 * 3 * 4


def test_a_region_beyond_the_program_is_not_called_proven():
    count = MOST_LEAVES + 1
    labels = [chr(97 + k) for k in range(count + 1)]
    network = tg.from_indices(list(itertools.pairwise(labels)), [labels[0], labels[-1]], dict.fromkeys(labels, 4))
    plan = tg.plan(network)
    assert not plan.is_proven
    assert plan.at().cost == (count - 1) * 4**3


def test_costs_beyond_64_bits_are_exact_and_not_called_proven():
    big = 2**21
    network = tg.from_einsum("ab,bc,cd->ad", dict.fromkeys("abcd", big))
    plan = tg.plan(network)
    assert not plan.is_proven
    assert plan.at().macs == 2 * big**3


def test_the_search_is_deterministic():
    network = tg.load("examples/specs/quanta_adapter.tn")
    assert tg.plan(network).regimes[0].stages == tg.plan(network).regimes[0].stages
    sizes = {f"e{k}": 2 + k % 3 for k in range(60)}
    inputs = [[f"e{k}", f"e{(k * 7 + 3) % 60}", f"e{(k + 1) % 60}"] for k in range(60)]
    region = Region(*_plain(inputs, sizes))
    topology = Topology(region, {})
    assert search_tree(topology, Search(seed=3)) == search_tree(topology, Search(seed=3))


def _plain(inputs: list[list[str]], sizes: dict[str, int]):
    network = tg.from_indices(inputs, [], sizes)
    return network.equations[0].terms[0].accesses, ()


@settings(max_examples=50)
@given(networks(max_equations=1), st.integers(0, 2**20))
def test_every_order_that_can_be_built_ends_in_the_regions_legs(network: Network, seed: int):
    numbers = tg.plan(network).sizes
    for region in regions(network):
        topology = Topology(region, numbers)
        tree = build_tree(topology, random_order(len(topology.leaves), seed), False)
        if tree.steps:
            legs = tree.steps[-1].legs
            assert all(isinstance(leg, Index) for leg in legs)
            assert set(legs) == set(region.legs)


def test_a_kernel_is_resolved_only_with_all_its_kernels():
    """The index u stands on k1 and k2: contracting x with k1 alone has to carry u, laid out."""
    network = tg.parse("""network two {
      size n
      input x[s:3, L:n]
      param k1[r:4, u:3]
      param k2[u, t:5]
      y[s, r, t, l:n] = x[s, l + u - 1] * k1 * k2
      output y[s, r, t, l]
    }""")
    (region,) = regions(network)
    topology = Topology(region, {"n": 7})
    x, k1, k2 = topology.leaves
    assert topology.join(x, k1) is None
    joined = topology.join(topology.open(x, 0), k1)
    assert joined is not None
    assert {topology.indices[i].name for i in joined.plain} == {"s", "l", "u", "r"}
    kernels = topology.join(k1, k2)
    assert kernels is not None
    resolved = topology.join(x, kernels)
    assert resolved is not None
    assert not resolved.unresolved
    assert {topology.indices[i].name for i in resolved.plain} == {"s", "l", "r", "t"}


def test_a_partly_resolved_read_spans_what_is_left():
    network = tg.parse("""network two {
      size n
      input x[L:n]
      param a[u:3]
      param b[v:5]
      y[l] = x[l + u + 2*v - 3] * a * b
      output y[l]
    }""")
    (region,) = regions(network)
    topology = Topology(region, {"n": 20})
    joined = topology.join(topology.leaves[0], topology.leaves[1])
    assert joined is not None
    (read,) = topology.legs(joined)
    assert isinstance(read, Read)
    l_size = network.equations[0].legs[0].size
    assert sympy.expand(read.leg.size - (l_size - 1 + 2 * 4 + 1)) == 0


def test_the_positions_of_several_folded_reads_are_clipped_where_they_are_beyond():
    """At a million positions each those of three reads are more than 63 bits hold, and no step has less than none."""
    network = tg.parse(
        """network long { size n; input x[l:2*n]; input z[m:2*n]; input u[o:2*n]; param k[c:2, g:2, h:2]
        y[p:2*n, q:2*n, r:2*n] = x[p + 2*c] * z[q + g] * u[r + h] * k; output y[p, q, r] }"""
    )
    priced: list[float] = []

    def price(work: Work) -> float:
        priced.append(min(work.operations, work.result))
        return work.operations + 3 * work.result

    tg.plan(network, minimize=price)
    assert min(priced) > 0
