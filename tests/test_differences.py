"""Two plans side by side: what differs is said once, with the difference of the formulas."""

from __future__ import annotations

import re

import pytest
from hypothesis import given

import tngraph as tg
from tests.networks import networks
from tngraph.language.network import Network

FC2 = "examples/specs/fc2_mpo.tn"


def test_a_pinned_order_beside_the_best():
    network = tg.load(FC2)
    pinned, best = tg.plan(network, {"batch": 1}, order="x w1 w2 w3 w4"), tg.plan(network, {"batch": 1})
    assert pinned.unpinned == best
    found = pinned.diff(best)
    assert next(c for c in found.counts if c.name == "MAC").formula == best.macs - pinned.macs
    assert [str(step) for step in found.steps if step.sign != "="] == [
        "- (x w1): 12,544 MAC = 3136*D*batch",
        "- ((x w1) w2): 50,176 MAC = 3136*D**2*batch",
        "+ (w1 w2): 7,168 MAC = 448*D**2",
        "+ ((w1 w2) x): 50,176 MAC = 12544*D*batch",
    ]
    assert sum(step.sign == "=" for step in found.steps) == 4
    lines = str(found).splitlines()
    assert lines[0] == "fc2_mpo at batch = 1, D = 4"
    assert lines[1] == "  MAC          95,488 -> 90,112 [MAC], difference -3136*D**2*batch + 448*D**2 + 9408*D*batch"


def test_the_table_says_what_a_pin_costs():
    network = tg.load(FC2)
    line = "  pinned       96,000 [operations], 1.06 times the best, 90,624 [operations]\n"
    assert line in str(tg.plan(network, {"batch": 1}, order="x w1 w2 w3 w4"))
    assert "  pinned  " not in str(tg.plan(network, {"batch": 1}))
    at_all = tg.plan(network, order="x w1 w2 w3 w4")
    assert line in at_all.table(batch=1)
    assert " [elements], " in str(tg.plan(network, order="w1 w2", minimize="writes"))
    assert re.search(
        r" \[s\], \d\.\d\d times the best, ", str(tg.plan(network, order="x w1 w2 w3 w4", minimize="time"))
    )
    assert " [weighted operations], " in str(tg.plan(network, order="w1 w2", minimize={"flops": 1, "writes": 8}))


def test_other_bonds_have_the_same_formulas():
    order = "((x w1) w2) (w3 w4)"
    four, eight = (tg.plan(tg.load(FC2, sizes={"D": size}), {"batch": 1}, order=order) for size in (4, 8))
    found = four.diff(eight)
    assert found.titles == ("fc2_mpo at batch = 1, D = 4", "fc2_mpo at batch = 1, D = 8")
    macs = next(count for count in found.counts if count.name == "MAC")
    assert macs.formula == 0
    assert str(macs).endswith(", the same formula")
    assert {step.sign for step in found.steps} == {"~", "="}
    assert "~ (x w1): 12,544 -> 25,088 MAC = 3136*D*batch" in map(str, found.steps)


def test_an_edited_network():
    before = tg.parse("network n { size batch; input x[batch, i:8]; param a[i, j:4]; y[batch, j] = relu(x * a); "
                      "output y[batch, j] }")  # fmt: skip
    after = tg.parse("network n { size batch; input x[batch, i:8]; param a[i, j:4]; param c[j, k:2]; "
                     "h[batch, j] = relu(x * a); y[batch, k] = tanh(h * c); output y[batch, k] }")  # fmt: skip
    found = tg.plan(before, {"batch": 2}).diff(tg.plan(after, {"batch": 2}))
    assert [str(step) for step in found.steps] == [
        "= (x a): 64 MAC = 32*batch",
        "= relu((x a)): 8 elementwise = 4*batch",
        "+ (relu((x a)) c): 16 MAC = 8*batch",
        "+ tanh((relu((x a)) c)): 4 elementwise = 2*batch",
    ]
    assert "  dense        32 -> none [elements]" in str(found).splitlines()


def test_modes_and_what_is_frozen():
    network = tg.load(FC2)
    trained = tg.plan(network, {"batch": 8}, mode="train", requires_grad={"w1": False}, memory_limit=10**9)
    found = tg.plan(network).diff(trained)
    assert found.requests == ("infer, least flops", "train, least flops within 1,000,000,000 bytes, w1 frozen")
    assert "  request      infer, least flops -> train, least flops within 1,000,000,000 bytes, w1 frozen" in str(found)


def test_regimes_that_begin_elsewhere():
    four, eight = (tg.plan(tg.load(FC2, sizes={"D": size})) for size in (4, 8))
    assert four.diff(eight).regimes == ("batch 1, ≥ 2", "batch ≥ 1")


def test_a_size_that_one_of_them_does_not_have():
    with pytest.raises(tg.SizeError, match="conv_cp has no size 'D'"):
        tg.plan(tg.load(FC2)).diff(tg.plan(tg.load("examples/specs/conv_cp.tn")), D=3)


def test_a_long_chain_is_compared_quickly():
    lines = "".join(f"param w{k}[b{k - 1}, b{k}:3]; " for k in range(1, 301))
    product = " * ".join(f"w{k}" for k in range(1, 301))
    text = f"network n {{ input x[b0:3]; {lines} y[b300] = x * {product}; output y[b300] }}"
    forward = tg.plan(tg.parse(text), order=f"x {product.replace('* ', '')}")
    found = forward.diff(forward.unpinned)
    assert max(len(str(step)) for step in found.steps) < 120


@given(networks())
def test_nothing_differs_from_itself(network: Network):
    plan = tg.plan(network)
    assert plan.diff(plan).is_empty
    assert {step.sign for step in plan.diff(plan).steps} <= {"="}


@given(networks())
def test_differences_add_up(network: Network):
    """What a step costs in each of two plans sums to the total of each."""
    plans = [tg.plan(network, minimize=name) for name in ("flops", "writes")]
    found = plans[0].diff(plans[1])
    for plan, number in zip(plans, ("before", "after"), strict=True):
        steps = [step for step in found.steps if step.unit == "MAC"]
        assert sum(getattr(step, number) or 0 for step in steps) == plan.at().macs
