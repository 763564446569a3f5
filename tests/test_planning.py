"""Plans: the papers' numbers, merging, clean-up, counts at sizes, and what a plan prints."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Sequence
from dataclasses import fields

import pytest
import sympy
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

import tngraph as tg
from tests.networks import is_steady, networks
from tngraph.cli import app
from tngraph.language.network import Network
from tngraph.language.rewrites import drop_unused, merge_chains
from tngraph.language.sizes import symbol
from tngraph.plans.counts import COUNTS
from tngraph.program.counts import Counts
from tngraph.search.cleaning import clean_term
from tngraph.search.pinning import DEEPEST_ORDER, LONGEST_ORDER, MOST_WORDS


def load(name: str, **sizes: int) -> tg.Network:
    return tg.load(f"examples/specs/{name}.tn", sizes=sizes)


def test_fc2_costs_no_more_than_contracting_two_and_two():
    """Gao et al., arXiv 1904.06194: two pairs of cores first, then the input with each: 14,336 + 78,848 per row."""
    counts = tg.plan(load("fc2_mpo"), {"batch": 64}).at(batch=64)
    assert counts.macs <= 14_336 + 78_848 * 64
    assert counts.flops == 2 * counts.macs
    assert counts.params == 1_024 + 256


def test_the_sweep_wins_at_batch_one():
    """The sweep of Gao et al., 95,488 MAC, is no better than the plan for one row."""
    assert tg.plan(load("fc2_mpo"), {"batch": 1}).at().macs <= 95_488


@pytest.mark.parametrize(("rank", "least"), [(64, 3_442_475_008)])
def test_a_cp_convolution_costs_what_its_optimum_does(rank: int, least: int):
    """Rabbani et al., arXiv 2401.03384: batch 128, 64 to 64 channels, 3x3, 56x56."""
    text = tg.format(load("conv_cp")).replace("t:128", "t:64")
    plan = tg.plan(tg.parse(text), {"batch": 128, "height": 56, "width": 56, "R": rank})
    assert plan.is_proven
    assert plan.at().macs == least == 128 * 56 * 56 * (64 * 64 + 3 * 64 + 3 * 64 + 64 * 64)


def test_two_adtns_generate_vggs_linear_layers_from_424_weights():
    """Qing et al., arXiv 2305.06058: 200 and 224 weights for 18,874,368; never formed at batch 1."""
    plan = tg.plan(load("vgg_fc_adtn"), {"batch": 1})
    assert plan.at().params == 424
    assert plan.at().macs < 512 * 4096 // 50
    assert plan.at().largest == 4096


def test_the_values_of_counts_are_those_of_the_table():
    names = [count.name for count in COUNTS]
    assert [field.name for field in fields(Counts)] == [*names, "cost"]
    plan = tg.plan(tg.load("examples/specs/fc2_mpo.tn"), mode="serve")
    totals = str(plan).split("\n\n")[0]
    assert [count.label for count in COUNTS if f"\n  {count.label} " not in totals] == []


def test_a_tied_core_is_counted_once():
    plan = tg.plan(load("ring_tied"))
    assert plan.params == 4 * sympy.Symbol("D", integer=True, positive=True) ** 2
    assert tg.plan(load("ring_tied", n=3)).at().params == plan.at().params == 36


def test_bonds_stay_symbols_and_count_at_other_sizes():
    plan = tg.plan(load("fc2_mpo"))
    assert plan.at(D=8, batch=1).params == plan.params.subs(dict.fromkeys(plan.params.free_symbols, 8))
    assert {s.name for s in plan.flops.free_symbols} == {"batch", "D"}


def test_derived_sizes_follow_what_they_derive_from():
    text = "network n { size D = 2; size E = 2*D; input x[i:3]; param a[i, j:E]; y[j] = x * a; output y[j] }"
    plan = tg.plan(tg.parse(text))
    assert plan.at().params == 12
    assert plan.at(D=5).params == 30
    assert plan.at(E=7).params == 21
    assert tg.plan(tg.parse(text), {"E": 5}).at(D=9).params == 15


def test_equations_are_merged_as_if_written_as_one():
    one = tg.parse("""network n { size batch; input x[batch, i:4]; param a[i, j:5]; param b[j, k:6]
      y[batch, k] = 2 * x * a * b; output y[batch, k] }""")
    two = tg.parse("""network n { size batch; input x[batch, i:4]; param a[i, j:5]; param b[j, k:6]
      h[batch, j] = x * a; y[batch, k] = 2 * h * b; output y[batch, k] }""")
    assert tg.plan(one, {"batch": 999}).at().cost == tg.plan(two, {"batch": 999}).at().cost
    assert len(merge_chains(two).equations) == 1


def test_an_equation_of_one_access_is_merged():
    text = "network n { input x[a:3, b:4]; param w[b]; h[b, a] = 2 * x; y[a] = -h * w; output y[a] }"
    network = tg.parse(text)
    assert len(merge_chains(network).equations) == 1
    assert tg.compile(network).verify().is_equal


def test_three_thousand_equations_merge_without_delay():
    text = """network n { input x[i0:3]; index i{1..3000}: 3
      for k in 1..3000 { param w{k}[i{k-1}, i{k}] }
      h1[i1] = x * w1
      for k in 2..3000 { h{k}[i{k}] = h{k-1} * w{k} }
      output h3000[i3000] }"""
    (equation,) = merge_chains(tg.parse(text)).equations
    assert len(equation.terms[0].accesses) == 3001


def test_a_result_used_twice_is_kept_where_that_is_cheaper():
    text = """network n { size batch; input x[batch, i:40]; param a[i, j:40]; param b[j, k:2]; param c[j, k]
      h[batch, j] = x * a; y[batch, k] = h * b; z[batch, k] = h * c; output y[batch, k]; output z[batch, k] }"""
    assert tg.plan(tg.parse(text), {"batch": 1}).at().macs == 40 * 40 + 2 * 40 * 2
    wide = tg.plan(tg.parse(text), {"batch": 1000})
    assert wide.at().macs == 2 * (40 * 40 * 2 + 1000 * 40 * 2)


def test_a_broadcast_sum_read_twice_keeps_its_size():
    """Each copy of y lacks i or k in one of its terms, and the other copy is replaced too."""
    text = """network n { size batch; input x[batch, i:3]; param one[k:2]
      y[batch, i, k] = x + one; z[] = y * y; output z[] }"""
    assert tg.compile(tg.parse(text)).verify().is_equal


def test_an_index_that_cancels_in_a_read_is_not_merged_away():
    for left in ("y[]", "y[i]"):
        text = f"network n {{ input x[p:5]; index i, j: 4; a[i, j] = x[i - j + 1]; {left} = a[i, i]; output {left} }}"
        assert tg.compile(tg.parse(text)).verify().is_equal


def test_a_core_is_put_out_in_the_order_asked_for():
    text = "network n { size a; input x[i:a, (j:2, k:3)]; buffer b[i:4, j]; output x[(k, i), j]; output b[j, i] }"
    text = text.replace("b[i:4", "b[q:4").replace("b[j, i]", "b[j, q]")
    assert tg.compile(tg.parse(text)).verify().is_equal


def test_counts_that_subtract_bound_nothing():
    text = """network n { size h; input x[p:h]; param w[k:3]
      a[q:h - 2] = exp(x[q + k] * w); b[p] = exp(a[p + k - 2] * w); output b[p] }"""
    plan = tg.plan(tg.parse(text))
    counts = plan.at(h=10)
    assert (counts.largest, counts.peak) == (10, 4 * (8 + 3 + 10))  # a, the flipped kernel, and b before its function
    assert plan.peak == 4 * (symbol("h") - 2) + 4 * 3 + 4 * symbol("h")


def test_a_plan_is_a_value():
    plan = tg.plan(load("fc2_mpo"))
    plan.at()
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert copy.deepcopy(plan) is plan
    assert len({plan, tg.plan(load("fc2_mpo")), tg.plan(load("fc2_mpo"), {"D": 5})}) == 2


def test_a_size_derived_from_a_run_time_size():
    text = "network n { size h; size half = h // 2; size d = 2*h; input x[i:d]; y[j:half] = x[2*j]; output y[j] }"
    network = tg.parse(text)
    assert tg.compile(network).verify().is_equal
    with pytest.raises(tg.SizeError, match="'half' is a run-time size"):
        tg.plan(network, {"half": 3})


def test_a_large_delta_that_is_read_along_its_diagonal_is_never_formed():
    text = "network n { input x[i1:2]; index i{2..40}: 2; const d[i{1..40}] = delta; z[i1] = x * d; output z[i1] }"
    assert torch.equal(tg.compile(tg.parse(text))(torch.arange(2.0)), torch.arange(2.0))
    lone = text.replace("x * d", "d")
    assert tg.compile(tg.parse(lone))(torch.zeros(2)).tolist() == [1.0, 1.0]


def test_a_skip_connection_is_no_weight():
    dense = tg.plan(tg.parse("network n { input x[i:6]; param w[i, j:6]; y[j] = x * w + x[j]; output y[j] }")).dense
    assert dense is not None
    assert dense.params == 36


def test_what_is_no_network_is_named():
    with pytest.raises(TypeError, match=r"plan takes a network, and not 'fc2\.tn'; tg\.load reads one from a file"):
        tg.plan("fc2.tn")
    assert repr(tg.plan(load("fc2_mpo"))) == "<plan of fc2_mpo at batch=64, D=4: cost 5,093,376, 2 regimes>"
    assert tg.emit(load("fc2_mpo")) == tg.emit(tg.plan(load("fc2_mpo")))


def test_a_sum_is_distributed_where_that_is_cheaper():
    text = """network n { size batch; input x[batch, i:30]; param a[i, j:30]; param c[j]; param v[j]
      h[batch, j] = x * a + c; y[batch] = h * v; output y[batch] }"""
    counts = tg.plan(tg.parse(text), {"batch": 1000}).at()
    assert counts.macs == 30 * 30 + 1000 * 30 + 30


def test_nothing_moves_across_a_function():
    counts = tg.plan(load("fc_ntt"), {"batch": 10}).at()
    linear = tg.parse(tg.format(load("fc_ntt")).replace("relu(", "(").replace("] = (", "] = ").replace(")\n", "\n"))
    assert len(merge_chains(drop_unused(linear)).equations) == 1
    assert len(tg.plan(load("fc_ntt")).regimes[0].stages) == 4
    assert tg.plan(linear, {"batch": 10}).at().cost < counts.cost


def test_a_padded_intermediate_is_not_merged_into_its_reader():
    text = """network n { size n; input x[L:n]; param a[k:3]; param b[q:3]
      h[l:n] = x[l + k - 1] * a; y[m:n] = h[m + q - 1] * b; output y[m] }"""
    network = tg.parse(text)
    assert len(tg.plan(network).regimes[0].stages) == 2
    tg.compile(network).verify()


def test_deltas_cost_nothing():
    text = "network n { input x[a:5]; input z[c:5]; const d[a:5, b:5, c] = delta; y[b] = x * z * d; output y[b] }"
    counts = tg.plan(tg.parse(text)).at()
    assert (counts.macs, counts.elementwise, counts.params) == (0, 5, 0)


def test_a_sum_over_an_index_of_one_tensor_is_counted():
    text = "network n { input x[a:5, b:7]; param w[b]; y[] = x * w; output y[] }"
    plan = tg.plan(tg.parse(text))
    assert [op.kind for op in plan.regimes[0].operations if op.kind != "load"] == ["sum", "contract"]
    assert (plan.at().elementwise, plan.at().macs) == (35, 7)


def test_training_counts_a_step_once_more_per_operand_that_takes_a_gradient():
    text = """network n { size batch; input x[batch, i:3]; buffer f[i, j:5]; param w[j, k:7]
      h[batch, j] = relu(x * f); y[batch, k] = h * w; output y[batch, k] }"""
    plan = tg.plan(tg.parse(text), {"batch": 2})
    assert int(plan.training_flops.subs(dict.fromkeys(plan.training_flops.free_symbols, 2))) == 2 * (
        2 * 2 * 3 * 5 + 3 * 2 * 5 * 7
    )


def test_the_dense_weight_of_a_linear_map():
    plan = tg.plan(load("fc2_mpo"), {"batch": 8})
    assert plan.dense is not None
    assert plan.dense.params == 200_704 + 256
    convolution = tg.plan(load("conv_cp")).dense
    assert convolution is not None
    assert convolution.params == 64 * 128 * 9
    assert tg.plan(load("fc_ntt")).dense is None


def test_the_table_shows_totals_and_one_row_per_step():
    plan = tg.plan(load("fc2_mpo"), {"batch": 64})
    table = plan.table(batch=128)
    assert table.startswith("fc2_mpo at batch = 128, D = 4\n  params       1,280 [elements] = 56*D**2 + 32*D + 256\n")
    assert "2 of 2 regions proven optimal, at batch = 64, D = 4" in table
    rows = table.split("\n\n")[1].splitlines()
    assert len(rows) == 1 + sum(op.kind != "load" for op in plan.regimes[0].operations)
    assert str(plan) == plan.table()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"bach": 3}, "fc2_mpo has no size 'bach'\n  did you mean 'batch'?; a size that bounds a loop is set when"),
        ({"k": 3}, "fc2_mpo has no size 'k'\n  its sizes: batch, D; a size that bounds a loop is set when the text"),
        ({"batch": 0}, "the size 'batch' cannot be 0\n  a size is an integer from 1 to 2**62"),
        ({"batch": 2.5}, "the size 'batch' cannot be 2.5\n  a size is an integer from 1 to 2**62"),
        ({"D": -1}, "the size 'D' cannot be -1\n  a size is an integer from 1 to 2**62"),
    ],
)
def test_a_wrong_size_is_an_error(sizes: dict, message: str):
    with pytest.raises(tg.SizeError) as caught:
        tg.plan(load("fc2_mpo"), sizes)
    assert str(caught.value).startswith(message)
    with pytest.raises(tg.SizeError):
        tg.plan(load("fc2_mpo")).at(**sizes)


def test_a_search_without_effort_is_an_error():
    with pytest.raises(tg.PlanError, match="at least one sample and one trial, not 0 and 4"):
        tg.Search(samples=0)


def test_a_large_search_reports_its_progress():
    seen = []
    text = "network c { index s{1..20}: 2; index b{1..19}: 3; param a1[s1, b1]; param a20[b19, s20]\n"
    text += "for k in 2..19 { param a{k}[b{k-1}, s{k}, b{k}] }\n input f[s20]; y[s1] = a{1..20} * f; output y[s1] }"
    tg.plan(tg.parse(text), search=tg.Search(trials=2, progress=lambda *state: seen.append(state)))
    assert [state[:2] for state in seen] == [(1, 2), (2, 2)]
    assert seen[0][2] >= seen[1][2] > 0


# ------------------------------------------------------------------------------------ orders pinned by hand

SWEEP = "x w1 w2 w3 w4"


def random_groups(names: Sequence[str], generator: random.Random) -> object:
    """The names in a random binary order, as nested tuples or as text."""
    groups: list[object] = list(names)
    while len(groups) > 1:
        pair = tuple(groups.pop(generator.randrange(len(groups))) for _ in range(2))
        groups.append(pair)
    return (groups[0],) if isinstance(groups[0], str) else groups[0]


def random_orders(network: Network, seed: int) -> dict[str, object]:
    """For each equation the order of one of its terms, at times of a part of the only one."""
    generator = random.Random(seed)
    merged = merge_chains(drop_unused(network))
    orders = {}
    for equation in merged.equations:
        term = generator.choice(equation.terms)
        region, _ = clean_term(term, equation.legs, merged.sources())
        names = [access.source for access in region.accesses]
        if len(equation.terms) == 1 and len(names) > 2 and generator.random() < 0.5:
            names = generator.sample(names, 2)
        orders[equation.name] = random_groups(names, generator)
    return orders


@given(networks(), st.integers(0, 2**20))
def test_every_pinned_order_is_verified(network: Network, seed: int):
    assume(is_steady(network))
    sizes = dict.fromkeys(network.runtime_sizes(), 3)
    orders = random_orders(network, seed)
    plan = tg.plan(network, sizes, order=orders)
    assert not plan.is_proven
    assert set(orders) <= {
        stage.equation.name for stage in plan.regimes[0].stages if any(t.is_pinned for t in stage.trees)
    }
    assert tg.compile(plan).verify().is_equal
    assert tg.plan(network, sizes, order={name: as_text(order) for name, order in orders.items()}) == plan


def as_text(order: object) -> str:
    return order if isinstance(order, str) else "(" + " ".join(map(as_text, order)) + ")"  # type: ignore[call-overload]


def test_the_sweep_costs_what_its_formula_says():
    """MAC of step k: D_{k-1} D_k n_k m_k, times the n still to come, times the m already there."""
    plan = tg.plan(load("fc2_mpo"), {"batch": 1}, order=SWEEP)
    n, m, bonds = (4, 7, 7, 4), (4, 4, 4, 4), (1, 4, 4, 4, 1)
    steps = [
        bonds[k] * bonds[k + 1] * n[k] * m[k] * torch.Size(n[k + 1 :]).numel() * torch.Size(m[:k]).numel()
        for k in range(4)
    ]
    assert plan.at().macs == sum(steps) == 95_488
    assert plan.at(batch=7).macs == 7 * 95_488


@pytest.mark.parametrize(
    ("order", "cost"),
    [
        ("(((x w1) w2) w3) w4", 95_488),
        ("(x w1 w2 w3 w4)", 95_488),
        (("x", "w1", "w2", "w3", "w4"), 95_488),
        ([["x", ["w1", "w2"]], ["w3", "w4"]], 93_184),
        ("\t((x(w1 w2))\n(w3 w4)) + bias", 93_184),
        ({"y": "(x w1)"}, 95_488),
    ],
)
def test_an_order_is_taken_as_it_is(order: object, cost: int):
    plan = tg.plan(load("fc2_mpo"), {"batch": 1}, order=order)
    assert plan.at().macs == cost
    assert "pinned by hand" in str(plan)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert tg.compile(plan).verify().is_equal


def test_what_is_left_open_is_searched():
    """Both pairs first is the optimum at a batch of 64: pinned one of them, the search finds the other."""
    best = tg.plan(load("fc2_mpo"), {"batch": 64})
    plan = tg.plan(load("fc2_mpo"), {"batch": 64}, order="w3 w4")
    assert plan.at().cost == best.at().cost
    assert best.is_proven
    assert not plan.is_proven
    assert "1 of 2 regions proven optimal, 1 pinned by hand, at" in str(plan)
    assert "by hand" not in str(best)


def test_terms_have_orders_of_their_own():
    text = """network n { input x[i:3]; param a[i, j:4]; param b[j, k:5]; param c[i, k]; param d[k, l:2]
      y[l] = x * a * b * d + 2 * x * c * d; output y[l] }"""
    plan = tg.plan(tg.parse(text), order="((x a) (b d)) + (x (c d))")
    steps = [
        tuple(plan.regimes[0].operations[k].name for k in op.operands)
        for op in plan.regimes[0].operations
        if op.kind == "contract"
    ]
    assert [set(pair) for pair in (steps[0], steps[1], steps[3])] == [{"x", "a"}, {"b", "d"}, {"c", "d"}]
    assert tg.compile(plan).verify().is_equal
    with pytest.raises(tg.PlanError, match="a part of 2 terms"):
        tg.plan(tg.parse(text), order="x d")
    with pytest.raises(tg.PlanError, match="two orders of 'y' are for one term"):
        tg.plan(tg.parse(text), order="(x (c d)) + ((x c) d)")
    with pytest.raises(tg.PlanError, match="names of several terms"):
        tg.plan(tg.parse(text), order="x a b c d")


def test_a_tied_core_is_named_as_often_as_it_stands():
    text = """network n { input x[i0:3]; index i{1..3}: 3; param w[p:3, q:3]
      y[i3] = x * w[i0, i1] * w[i1, i2] * w[i2, i3]; output y[i3] }"""
    plan = tg.plan(tg.parse(text), order="x (w (w w))")
    accesses = [op.access for op in plan.regimes[0].operations if op.kind == "load" and op.name == "w"]
    assert [[leg.name for leg in access.legs] for access in accesses] == [["i0", "i1"], ["i1", "i2"], ["i2", "i3"]]
    assert plan.at().macs == 27 + 27 + 9
    assert tg.plan(tg.parse(text), order="x w w w").at().macs == 27
    with pytest.raises(tg.PlanError, match="names 'w' more often"):
        tg.plan(tg.parse(text), order="x w w w w")


SHARED = """network n { size batch; input x[batch, i:40]; param a[i, j:40]; param b[j, k:2]; param c[j, k]
  h[batch, j] = x * a; y[batch, k] = h * b; z[batch, k] = h * c; output y[batch, k]; output z[batch, k] }"""


def test_a_pinned_equation_is_not_rewritten():
    """At a batch of 1000, h is better written out in both of its readers."""
    for orders in ({"h": "x a"}, {"y": "h b"}):
        plan = tg.plan(tg.parse(SHARED), {"batch": 1000}, order=orders)
        assert [e.name for e in plan.merged.equations] == ["h", "y", "z"]
    with pytest.raises(tg.PlanError, match=r"names 'x', which is not a tensor(.|\n)*contract: h b"):
        tg.plan(tg.parse(SHARED), order={"y": "x a b"})
    with pytest.raises(tg.PlanError, match=r"for which equation.*\n.*: h, y, z"):
        tg.plan(tg.parse(SHARED), order="x a")


def test_names_are_those_after_merging():
    text = """network n { input x[i:3]; param a[i, j:4]; param b[j, k:5]
      h[j] = x * a; u[j] = 2 * h; y[k] = h * b; output y[k] }"""
    assert tg.plan(tg.parse(text), order="x (a b)").at().macs == 60 + 15
    for name in ("h", "u"):
        with pytest.raises(tg.PlanError, match=f"'{name}' is not an equation any more: linear chains are merged"):
            tg.plan(tg.parse(text), order={name: "x a"})


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("x w1 w2 w3 weight", "names 'weight', which is not a tensor"),
        ("x w1 w2 w3 biass", "did you mean 'bias'"),
        ("x w1 w1 w2 w3 w4", "names 'w1' more often"),
        ("x", "joins nothing"),
        ("x bias", "names of several terms"),
        ("((x w1) w2", "leaves a parenthesis open"),
        ("(x w1)) w2", "closes a parenthesis"),
        ("(x w1) + (w2 + w3)", "leaves a parenthesis open"),
        ("x () w1", "empty group"),
        ("", "empty group"),
        ((), "empty group"),
        ("x w1 +", "empty group"),
        (("x", 3), "not of 3"),
        (("x", None), "not of None"),
        (3, "not of 3"),
        (("x w1", "w2"), "is not a name"),
        (("x", ")"), "is not a name"),
        (("x", ""), "is not a name"),
        ({"z": "x"}, "no equation 'z'"),
        ({3: "x"}, "no equation 3"),
        ({"y": {"y": "x"}}, "not of {'y': 'x'}"),
        ("(" * (DEEPEST_ORDER + 1), "deep"),
        ("x" * (LONGEST_ORDER + 1), "longer"),
        ("x " * (MOST_WORDS + 1), "more than"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(order: object, message: str):
    with pytest.raises(tg.PlanError) as caught:
        tg.plan(load("fc2_mpo"), order=order)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_an_order_within_itself_is_refused():
    order: list[object] = ["x"]
    order += [order, order]
    with pytest.raises(tg.PlanError, match="deep"):
        tg.plan(load("fc2_mpo"), order=order)


def test_the_deepest_order_is_read():
    text = "(" * DEEPEST_ORDER + SWEEP + ")" * DEEPEST_ORDER
    assert tg.plan(load("fc2_mpo"), {"batch": 1}, order=text).at().macs == 95_488


def run_plan(*orders: str):
    options = [word for order in orders for word in ("--order", order)]
    return CliRunner().invoke(app, ["plan", "examples/specs/fc2_mpo.tn", "--batch", "1", *options])


def test_the_command_takes_orders():
    for order in (SWEEP, f"y = {SWEEP}"):
        result = run_plan(order)
        assert result.exit_code == 0
        assert " 95,488 [MAC]" in result.output
    assert run_plan("x w9").exit_code == 1
    assert run_plan(SWEEP, SWEEP).exit_code == run_plan("y=x w1", "y=w3 w4").exit_code == 2
