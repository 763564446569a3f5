"""Laws over random networks: text, rewrites, trees, printed modules, gradients and counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cotengra
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tngraph as tg
from tests.networks import TABLE, networks, random_arrays
from tests.test_exact import random_order, regions
from tests.test_memory import held_as_predicted
from tngraph.language.network import Equation, Network, Term
from tngraph.language.rewrites import can_inline, drop_unused, inline, merge_chains
from tngraph.language.sizes import evaluate_size
from tngraph.plans.plan import Plan
from tngraph.program.operations import Stage
from tngraph.search.region import Topology
from tngraph.search.trees import build_tree, order_cost


def same_values(left: Any, right: Any) -> None:
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (left, right)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * max(1.0, float(np.abs(b).max(initial=0.0))))


@given(networks())
def test_text_says_the_same_network(network: Network):
    assert tg.parse(tg.format(network)) == network


@given(networks())
def test_a_layer_is_verified(network: Network):
    layer = tg.compile(network, {name: 4 + k for k, name in enumerate(network.runtime_sizes())})
    assert layer.verify().is_equal


@pytest.mark.parametrize("name", TABLE)
def test_a_layer_of_each_feature_is_verified(name: str):
    assert tg.compile(TABLE[name]).verify().is_equal


def test_a_network_of_constants_alone_is_verified():
    network = tg.parse("network two { const unit[i:2, j:2] = eye; y[] = unit; output y[] }")
    assert tg.evaluate(network, {}) == 2
    assert tg.compile(network).verify().is_equal
    layer = tg.compile(network, dtype=torch.float64)
    assert layer().dtype == torch.float64
    assert layer.float()().dtype == torch.float32
    assert not layer.state_dict()


def test_a_term_has_a_tensor():
    with pytest.raises(tg.NetworkError) as error:
        Term(2, ())
    assert str(error.value) == "the term 2 has no tensor\n  multiply the number by a const of ones"


def test_an_equation_has_a_term():
    with pytest.raises(tg.NetworkError) as error:
        Equation("y", (), ())
    assert str(error.value) == "the equation 'y' has no terms\n  an empty sum cannot be written"


@given(networks())
def test_rewrites_keep_the_meaning(network: Network):
    arrays = random_arrays(network)
    expected = tg.evaluate(network, arrays)
    used = drop_unused(network)
    same_values(tg.evaluate(used, arrays), expected)
    same_values(tg.evaluate(merge_chains(used), arrays), expected)
    for equation in used.equations:
        if can_inline(used, equation):
            same_values(tg.evaluate(inline(used, equation), arrays), expected)


def with_random_trees(plan: Plan, seed: int) -> Plan:
    """The plan with every region contracted in some other order."""
    (regime,) = plan.regimes
    stages = []
    for stage in regime.stages:
        trees = []
        for tree in stage.trees:
            topology = Topology(tree.region, plan.sizes)
            trees.append(build_tree(topology, random_order(len(topology.leaves), seed), False))
        stages.append(Stage(stage.equation, tuple(trees), stage.patterns))
    return Plan((replace(regime, stages=tuple(stages)),))


@given(networks(), st.integers(0, 2**20))
def test_every_tree_is_verified(network: Network, seed: int):
    plan = with_random_trees(tg.plan(network, dict.fromkeys(network.runtime_sizes(), 3)), seed)
    assert tg.compile(plan).verify().is_equal


@given(networks(), st.integers(0, 2**20))
def test_no_random_tree_beats_the_plan(network: Network, seed: int):
    plan = tg.plan(network, dict.fromkeys(network.runtime_sizes(), 3))
    assert plan.is_proven
    assert plan.at().cost <= with_random_trees(plan, seed).at().cost


@given(networks(linear=True, reads=False), st.integers(0, 2**20))
def test_costs_of_ordinary_networks_are_cotengras(network: Network, seed: int):
    numbers = tg.plan(network).sizes
    for region in regions(network):
        topology = Topology(region, numbers)
        if len(topology.leaves) > 1:
            order = random_order(len(topology.leaves), seed)
            legs = [leaf.plain for leaf in topology.leaves]
            output = [i for i, kept in enumerate(topology.is_output) if kept]
            tree = cotengra.ContractionTree.from_path(legs, output, dict(enumerate(topology.sizes)), ssa_path=order)
            assert order_cost(topology, order) == tree.contraction_cost()


@given(networks(), st.integers(1, 4), st.sampled_from([1, 2]), st.sampled_from([torch.float32, torch.float64]))
def test_what_a_run_holds_is_what_the_plan_says(network: Network, size: int, rank: int, dtype: torch.dtype):
    """To the byte, at sizes not planned for: 1 among them, where a permutation moves nothing."""
    plan, compiled = tg.plan(network), {size.name: rank for size in network.settable_sizes()}
    runtime = {name: size + k for k, name in enumerate(network.runtime_sizes())}
    if all(evaluate_size(index.size, plan.values(**runtime, **compiled)) > 0 for index in network.indices()):
        held_as_predicted(plan, {**runtime, **compiled}, dtype)


@given(networks())
def test_counts_hold_at_sizes_that_were_not_planned_for(network: Network):
    """The layer of another bond dimension and batch does what the same plan's formulas say."""
    plan = tg.plan(network)
    others = {name: 2 + k for k, name in enumerate(network.runtime_sizes())}
    layer = tg.compile(plan)
    shapes = [
        tuple(
            int(
                np.prod(
                    [int(i.size.subs({s: plan.values(**others)[s.name] for s in i.size.free_symbols})) for i in axis]
                )
            )
            for axis in port.axes
        )
        for port in network.inputs
    ]
    assert (
        layer.flops(*shapes)
        == plan.at(**others).flops
        == int(plan.flops.subs({symbol: plan.values(**others)[symbol.name] for symbol in plan.flops.free_symbols}))
    )
