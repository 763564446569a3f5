"""Plans within memory: fronts, limits, slices and operations run once more, all measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tngraph as tg
from tests.networks import TABLE, is_steady, networks
from tngraph.compiler.fronts import Front
from tngraph.language.legs import legs_size
from tngraph.language.network import Network
from tngraph.language.sizes import evaluate_size
from tngraph.modules.measuring import measure_peak, measure_saved
from tngraph.plans.plan import Plan
from tngraph.plans.regime import Regime
from tngraph.program.counts import keeps_values, needs_gradient

FC2 = "examples/specs/fc2_mpo.tn"
NTT = "examples/specs/fc_ntt.tn"


def measured(plan: Plan, batch: int) -> tuple[int, int]:
    """The peak and what is saved of a call in single precision, as they run."""
    layer = tg.compile(plan)
    x = torch.randn(batch, 784)
    leaf = x.clone().requires_grad_()
    saved = measure_saved(lambda: layer(leaf), [*layer.parameters(), leaf])
    return measure_peak(lambda: layer(x)), saved


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_front_is_one_and_every_plan_of_it_holds_what_it_says(mode: str):
    front = tg.front(tg.load(FC2), {"batch": 16}, mode=mode)
    costs, held = [p.cost for p in front.points], [p.bytes for p in front.points]
    assert len(front.points) >= 2
    assert costs == sorted(set(costs))
    assert held == sorted(set(held), reverse=True)
    assert costs[0] == tg.plan(tg.load(FC2), {"batch": 16}, mode=mode).at().cost
    for point in front.points:
        counts = point.plan.at()
        assert measured(point.plan, 16) == (counts.peak, counts.saved)
        assert point.bytes == (counts.peak if mode == "infer" else counts.saved)
        assert point.cost == counts.cost
        assert tg.compile(point.plan).verify().is_equal


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_limit_gives_the_cheapest_plan_of_the_front_within_it(mode: str):
    network = tg.load(FC2)
    for point in tg.front(network, {"batch": 16}, mode=mode).points:
        assert tg.plan(network, {"batch": 16}, mode=mode, memory_limit=point.bytes) == replace_goal(
            point.plan, point.bytes
        )


def replace_goal(plan: Plan, limit: int) -> Plan:
    (regime,) = plan.regimes
    return replace(plan, regimes=(replace(regime, request=replace(regime.request, memory_limit=limit)),))


def test_a_limit_holds_for_smaller_batches_too():
    plan = tg.plan(tg.load(FC2), {"batch": 32}, memory_limit=200_000)
    for batch in (1, 2, 7, 32):
        peak, _ = measured(plan, batch)
        assert peak == plan.at(batch=batch).peak <= 200_000


def test_the_least_memory_is_the_end_of_the_front():
    network = tg.load(NTT)
    least = tg.plan(network, {"batch": 4}, mode="train", minimize="memory")
    assert least.at().saved == tg.front(network, {"batch": 4}, mode="train").points[-1].bytes == 0
    assert least.at().training_flops > tg.plan(network, {"batch": 4}, mode="train").at().training_flops


def test_an_impossible_limit_says_the_least_that_was_found():
    with pytest.raises(tg.PlanError) as caught:
        tg.plan(tg.load(FC2), {"batch": 16}, memory_limit=500)
    assert str(caught.value) == (
        "no plan of fc2_mpo stays within 500 bytes at batch = 16\n"
        "  the least found is 32,768 bytes, at 1,380,352 instead of 1,284,096"
    )


def test_memory_needs_the_sizes_that_it_grows_with():
    for ask in ({"memory_limit": 10**6}, {"minimize": "memory"}, {"largest": 100}):
        with pytest.raises(tg.PlanError) as caught:
            tg.plan(tg.load(FC2), **ask)
        assert str(caught.value) == (
            "how much memory a plan takes depends on 'batch'\n"
            "  give every run-time size a number: it is the largest that the limit is to hold for"
        )


def test_what_is_no_front_is_said():
    with pytest.raises(tg.PlanError, match="a front is of cost against memory"):
        tg.front(tg.load(FC2), {"batch": 4}, minimize="memory")
    with pytest.raises(tg.PlanError, match="there is no front in serve"):
        tg.front(tg.load(FC2), {"batch": 4}, mode="serve")


def test_nothing_kept_is_a_limit_too():
    assert tg.plan(tg.load(NTT), {"batch": 4}, mode="train", memory_limit=0).at().saved == 0


def test_what_are_no_arguments_is_said():
    network = tg.load(FC2)
    with pytest.raises(TypeError, match="sizes are numbers by name"):
        tg.plan(network, [3])
    with pytest.raises(TypeError, match=r"a search is tg\.Search"):
        tg.plan(network, search=3)
    with pytest.raises(TypeError, match="a plan is compared with a plan"):
        tg.plan(network).diff(3)
    with pytest.raises(tg.PlanError, match="a function of a step says a finite number"):
        tg.plan(network, {"batch": 4}, minimize=lambda work: 10**400)


def test_serving_keeps_the_largest_value():
    layer = tg.compile(tg.plan(tg.load(FC2), {"batch": 4}, largest=300))
    assert layer.fold().plan.request.largest == 300


def test_two_limits_are_refused():
    with pytest.raises(tg.PlanError, match="largest and memory are two limits"):
        tg.plan(tg.load(FC2), {"batch": 4}, largest=100, memory_limit=100)


@pytest.mark.parametrize("most", [4, 16, 64, 256])
def test_no_step_before_the_result_writes_more_than_the_largest_value(most: int):
    network = tg.load("examples/specs/ring_tied.tn")
    plan = tg.plan(network, {"batch": 8}, largest=most)
    (tree, *_) = plan.regimes[0].trees
    numbers = plan.values()
    for step in tree.steps[:-1]:
        size = 1
        for leg in step.legs:
            size *= int(leg.size.subs({s: numbers[s.name] for s in leg.size.free_symbols}))
        assert size <= most
    if most >= 64:  # below, thousands of slices take their time
        assert tg.compile(plan).verify().is_equal


TAPS = """network taps {
  size batch
  input x[batch, c:4, H:20]
  param w[kh:3, lh:4, c, t:2]
  param v[t, u:3]
  y[batch, u, h:20] = x[batch, c, h + kh + lh - 2] * w * v
  output y[batch, u, h]
}"""


@pytest.mark.parametrize(("most", "sliced"), [(2_000, ""), (1_500, "batch"), (800, "c")])
def test_windows_that_are_laid_out_are_no_larger_than_the_largest_value(most: int, sliced: str):
    plan = tg.plan(tg.parse(TAPS), {"batch": 2}, largest=most)
    (tree,) = plan.regimes[0].trees
    assert "".join(index.name for index in tree.sliced) == sliced
    assert plan.at().largest <= most
    assert plan.is_proven == (not sliced)
    assert tg.compile(plan).verify().is_equal


def test_an_order_by_hand_is_sliced_and_stays_pinned():
    network, order = tg.load(FC2), "x w1 w2 w3 w4"
    plan = tg.plan(network, {"batch": 16}, order=order, largest=500)
    pinned, _ = plan.regimes[0].trees
    assert pinned.is_pinned
    assert pinned.sliced
    for step in pinned.steps[:-1]:
        assert evaluate_size(legs_size(step.legs), plan.sizes) <= 500
    assert tg.compile(plan).verify().is_equal
    assert plan == tg.plan(network, {"batch": 16}, order=order, largest=500)


def test_slices_take_gradients_copies_and_states():
    plan = tg.plan(tg.load(FC2), {"batch": 8}, largest=300)
    sliced, whole = tg.compile(plan), tg.compile(tg.load(FC2))
    sliced.load_state_dict(whole.state_dict())
    x = torch.randn(3, 784)
    for layer in (sliced, whole):
        layer(x).sum().backward()
    for name, param in sliced.named_parameters():
        torch.testing.assert_close(param.grad, dict(whole.named_parameters())[name].grad, rtol=1e-4, atol=1e-5)


def intervals(regime: Regime, seed: int) -> tuple[int, int] | None:
    """Some consecutive operations that keep something, of which only the last value is used by others."""
    operations = regime.operations
    lines = [k for k, op in enumerate(operations) if op.kind != "load"]
    needs = needs_gradient(operations, regime.request.trained)
    found = [
        (first, last)
        for k, first in enumerate(lines)
        for n, last in enumerate(lines[k + 1 :], k + 1)
        if not any(j in regime.outputs or max(regime.users(j), default=j) > last for j in lines[k:n])
        and any(keeps_values(operations, needs, j, regime.program.gathering) for j in lines[k : n + 1])
    ]
    return found[seed % len(found)] if found else None


GATHERED = {
    "a window of run-time size": "input x[i:2*k - 1]; y[a] = u * w + x[a + b]",
    "a diagonal": "input x[i:6, j:4]; y[a] = u * w + x[a + j, j]",
    "a cyclic leg": "input x[i:4, j:2]; y[a] = u * w + x[(a + j) % 4, j]",
}


@pytest.mark.parametrize("name", GATHERED)
def test_a_read_that_keeps_its_positions_is_recomputed_up_to_there(name: str):
    network = tg.parse(f"network n {{ size k; input u[a:k, b:k]; input w[b]; {GATHERED[name]}; output y[a] }}")
    (regime,) = tg.plan(network, {"k": 4}, mode="train").regimes
    lines = [k for k, op in enumerate(regime.operations) if op.kind != "load"]
    plan = Plan((replace(regime, recomputed=((lines[0], lines[-1]),)),))
    product = 2 * 4 * 4  # FLOPs of u * w: forward, its two gradients, and once more on the way to the read
    assert plan.at(k=4).training_flops == product * (1 + 2 + 1)
    assert tg.compile(plan).verify().is_equal


@settings(max_examples=40)
@given(networks(), st.integers(0, 2**20))
def test_whatever_is_made_anew_is_counted(network: Network, seed: int):
    assume(is_steady(network))
    plan = tg.plan(network, dict.fromkeys(network.runtime_sizes(), 3), mode="train")
    (regime,) = plan.regimes
    chosen = intervals(regime, seed)
    if chosen is not None:
        assert tg.compile(Plan((replace(regime, recomputed=(chosen,)),))).verify().is_equal


@settings(max_examples=25)
@given(networks(reads=False), st.integers(8, 40))
def test_whatever_is_sliced_is_counted(network: Network, most: int):
    assume(is_steady(network))
    plan = tg.plan(network, dict.fromkeys(network.runtime_sizes(), 3), largest=most)
    assert tg.compile(plan).verify().is_equal


@pytest.mark.parametrize("name", TABLE)
def test_every_feature_runs_in_little_memory(name: str):
    network = TABLE[name]
    sizes = {size: 5 + k for k, size in enumerate(network.runtime_sizes())}
    for mode in ("infer", "train"):
        assert tg.compile(tg.plan(network, sizes, mode=mode, minimize="memory")).verify().is_equal


def test_a_front_is_drawn():
    front = tg.front(tg.load(FC2), {"batch": 16}, mode="train")
    lines = str(front).splitlines()
    assert lines[0] == "bytes"
    assert sum(line.count("*") for line in lines[:12]) == len(front.points)
    assert lines[-1].endswith("recomputed")
    assert str(Front(front.points[:1])).splitlines()[0] == ""


def test_a_front_reports_every_plan_that_it_tries():
    seen: list[tuple[int, int | None, float]] = []
    front = tg.front(tg.load(NTT), {"batch": 2}, search=tg.Search(progress=lambda *state: seen.append(state)))
    assert [done for done, _, _ in seen] == [*range(1, len(seen)), len(seen) - 1]
    assert {total for _, total, _ in seen[:-1]} == {None}
    assert seen[-1] == (len(seen) - 1, len(seen) - 1, front.points[0].cost)


def test_a_chain_too_long_for_a_proof_is_cut_for_smaller_bounds_too():
    text = "network c { size batch; index s{1..16}: 2; index b{1..15}: 3; param a1[s1, b1]; param a16[b15, s16]\n"
    text += "for k in 2..15 { param a{k}[b{k-1}, s{k}, b{k}] }\n input x[batch, s{1..15}]; "
    text += "y[batch, s16] = a{1..16} * x; output y[batch, s16] }"
    front = tg.front(tg.parse(text), {"batch": 2}, search=tg.Search(trials=1))
    whole, smaller = front.points[:2]
    assert front.points[-1].bytes < smaller.bytes < whole.bytes
    first, second = (tg.compile(point.plan) for point in (whole, smaller))
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, *[2] * 15)
    torch.testing.assert_close(second(x), first(x))
    assert [measure_peak(partial(layer, x)) for layer in (first, second)] == [whole.bytes, smaller.bytes]
