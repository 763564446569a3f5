"""Planned backward passes: gradients, counts and bytes beside PyTorch's own, and where PyTorch's own runs instead."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import tngraph as tg
from tngraph.compiler.pipeline import timed_search
from tngraph.compiler.timed import by_autograd
from tngraph.language.network import Network
from tngraph.plans.plan import Plan
from tngraph.program.expressions import Call
from tngraph.search.machine import Machine

SMALL_CACHE = Machine(cache=2e3, elements_per_second=1e8, reused=4e3, fresh_per_second=1e8, seconds_per_product=1e-7)
NETWORKS = {
    "a chain": """network n { size batch; size R = 3; input x[batch, (i1:4, i2:5, i3:2)]
        param a[i1, o1:3, r1:R]; param b[r1, i2, o2:4, r2:R]; param c[r2, i3, o3:5]
        y[batch, o1, o2, o3] = x * a * b * c; output y[batch, (o1, o2, o3)] }""",
    "products of entries": """network n { size batch; input x[batch, i:4, j:3]; param a[i, r:5]; param b[j, r]
        param c[o:6, r]; param d[p:2, r]; y[batch, o, p] = x * a * b * c * d; output y[batch, o, p] }""",
    "a factor": """network n { size batch; input x[batch, i:4]; param a[i, r:2]; param b[r, o:5]; param w[i, o]
        y[batch, o] = x * w + 0.25 * x * a * b; output y[batch, o] }""",
    "one param twice": """network n { size batch; input x[batch, i:4]; param a[i:4, j:4]
        y[batch, k:4] = x[batch, i] * a[i, j] * a[j, k]; output y[batch, k] }""",
    "two layers": """network n { size batch; input x[batch, i:6]; param a[i, r:2]; param b[r, h:7]; param c[h, s:3]
        param d[s, o:5]; z[batch, h] = relu(x * a * b); y[batch, o] = z * c * d; output y[batch, o] }""",
    "legs of size 1": """network n { size batch; input x[batch, c:3, d:2]; param u[c, d, a:1]; param v[d, o:1]
        param w[d]; y[batch, o] = x * u * v * w; output y[batch, o] }""",
}


def planned(name: str, batch: int = 6, machine: Machine | None = None) -> Plan:
    return plan_backward(tg.parse(NETWORKS[name]), batch, machine)


def plan_backward(network: Network, batch: int, machine: Machine | None = None) -> Plan:
    """The fastest plan with a backward pass of its own: for small layers that of PyTorch may be faster."""
    finder = timed_search(network, {"batch": batch}, machine=machine or Machine(), mode="train")
    fastest = next(each for each in finder.candidates() if each.is_planned)
    return finder.plan([(1, None, fastest.trees)])


def by_pytorch(plan: Plan) -> Plan:
    """The same plan with PyTorch's own backward pass."""
    (regime,) = plan.regimes
    stages = [replace(s, trees=by_autograd(s.trees)) for s in regime.stages]
    return Plan((replace(regime, stages=tuple(stages)),))


def test_the_gradient_of_a_product_that_lies_in_another_order_is_the_whole_product():
    """A product is printed with a sign, and is in parentheses before it is laid out as the input lies."""
    network = tg.parse(
        """network n { input x[c:2, f:2]; input z[f, a:1, c]; param p[c, f]
        y[f, a] = x + x * z * p; output y[f, a] }"""
    )
    layer = tg.compile(network, mode="train", dtype=torch.float64)
    assert "x_grad = (t2_grad.reshape(4) * z.reshape(4)).reshape(2, 2).mT" in layer.source
    assert layer.verify().is_equal


@pytest.mark.parametrize(
    "text",
    [
        "param p[c:2]; buffer b[]; const d[c] = delta; y[c] = p + d * b; output y[c]",
        "input x[i:2]; param p[c:2]; buffer b[]; const d[c] = delta; y[c] = x[c] + p + d * b; output y[c]",
    ],
)
def test_a_constant_that_is_made_beside_what_is_trained_takes_its_type(text: str):
    layer = tg.compile(tg.parse(f"network n {{ {text} }}"), mode="train", dtype=torch.float64)
    assert layer.verify().is_equal


def test_a_region_without_gradients_has_no_planned_backward_pass():
    text = "const d[a:2, b:2] = delta; const e[c:1] = basis(0); s[] = d[a, b]; y[c] = s * e + s; output y[c]"
    layer = tg.compile(tg.parse(f"network n {{ {text} }}"), mode="train", dtype=torch.float64)
    assert "PlannedBackward" not in layer.source
    assert layer.verify().is_equal


@pytest.mark.parametrize("machine", [None, SMALL_CACHE], ids=["whole", "parts"])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_gradients_counts_and_bytes_are_those_of_the_plan(name: str, machine: Machine | None):
    layer = tg.compile(planned(name, 40, machine))
    assert "PlannedBackward" in layer.source
    for batch in (1, 2, 7, 40, 41):
        assert layer.verify(sizes={"batch": batch}).is_equal


SHARING = """network n { size batch; input x[batch, (i1:4, i2:4, i3:4)]
    param a[i1, o1:4, r1:4]; param b[r1, i2, o2:4, r2:4]; param c[r2, i3, o3:4]
    y[batch, o1, o2, o3] = x * a * b * c; output y[batch, (o1, o2, o3)] }"""
"""A chain of which some copies serve two products each."""


def test_a_copy_that_several_products_take_is_made_once():
    plan = plan_backward(tg.parse(SHARING), 64)
    (tree,) = plan.regimes[0].trees
    assert any(gradient.is_arranged for gradient in tree.gradients)
    lines = [line.strip() for line in tg.emit(plan).split("\n") if ".contiguous()" in line]
    copies = [re.search(r"([\w.]+\.reshape\(.*?\))?[\w.]*\.permute\(.*?\)\.contiguous\(\)", line) for line in lines]
    shown = [found.group() for found in copies if found]
    assert len({*shown}) == len(shown) >= 2
    layer = tg.compile(plan)
    assert any("_laid = " in line for line in lines)
    for batch in (1, 2, 64):
        assert layer.verify(sizes={"batch": batch}).is_equal


def test_both_gradients_of_a_step_take_one_copy_where_that_is_faster():
    """Either alone would copy what it is made of in an order of its own; one takes the other's copy transposed."""
    plan = plan_backward(tg.families.monarch((64, 64), (64, 64)), 512)
    source = tg.emit(plan)
    assert source.count("y_grad_laid = y_grad.") == source.count(".contiguous()") == 1
    assert tg.compile(plan).verify(sizes={"batch": 3}).is_equal


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_gradients(name: str):
    plan = planned(name, 2)
    layer = tg.compile(plan, dtype=torch.float64)
    port = plan.network.inputs[0]
    shape = [2, *(int(torch.tensor([int(i.size) for i in axis]).prod()) for axis in port.axes[1:])]
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def call(x: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    given = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


@pytest.mark.parametrize("frozen", [(), ("x",), ("a",), ("x", "a"), ("a", "b", "c")])
def test_what_needs_no_gradient_costs_none(frozen: tuple[str, ...]):
    network = tg.parse("""network blocks { size batch; input x[batch, i:6, j:5]; param a[j, i, o:4]
      param b[o, i, p:3]; param c[p, q:7]; y[batch, o, q] = x * a * b * c; output y[batch, o, q] }""")
    dear_copies = Machine(seconds_per_view=1e-9, elements_per_second=1e8, cached_per_second=1e8)
    trained = dict.fromkeys(frozen, False)
    plan = tg.plan(network, {"batch": 6}, mode="train", minimize=dear_copies, requires_grad=trained)
    assert any(tree.gradients for tree in plan.regimes[0].trees)
    layer = tg.compile(plan)
    x = torch.randn(6, 6, 5, requires_grad="x" not in frozen)
    for name, param in layer.named_parameters():
        param.requires_grad_(name not in frozen)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == plan.at(batch=6).training_flops
    assert {name for name, param in layer.named_parameters() if param.grad is None} == {*frozen} - {"x"}


def test_complex_numbers_have_the_gradients_of_pytorch():
    plan = planned("a chain")
    first, second = (tg.compile(each, dtype=torch.complex64) for each in (plan, by_pytorch(plan)))
    second.load_state_dict(first.state_dict())
    x = torch.randn(6, 40, dtype=torch.complex64)
    found, expected = (torch.autograd.grad(layer(x).abs().sum(), [*layer.parameters()]) for layer in (first, second))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_transforms_tracing_and_mixed_precision_take_the_plain_calls():
    layer = tg.compile(planned("a chain"))
    x, params = torch.randn(6, 40), dict(layer.named_parameters())
    expected = layer(x)
    torch.testing.assert_close(vmap(layer)(torch.stack([x, x]))[1], expected)
    torch.testing.assert_close(jvp(layer, (x,), (x,))[1], expected)
    slopes = vmap(grad(lambda p, x: functional_call(layer, p, (x,)).sum()), (None, 0))(params, torch.stack([x, 2 * x]))
    torch.testing.assert_close(slopes["a"][1], 2 * slopes["a"][0])
    exported = torch.export.export(layer, (x,))
    torch.testing.assert_close(exported.module()(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = layer(x).sum()
    loss.backward()
    assert all(param.grad is not None for param in layer.parameters())


def test_a_plan_with_gradients_is_read_as_it_was_saved(tmp_path: Path):
    for name in NETWORKS:
        plan = planned(name)
        plan.save(tmp_path / "plan.json")
        assert tg.load_plan(tmp_path / "plan.json") == plan
        (tmp_path / "plan.json").unlink()


def test_small_products_are_added_up_instead_of_copying_what_they_sum_over(tmp_path: Path):
    """The gradient of a weight that every row of the batch meets in the middle of its axes."""
    network = tg.parse("""network shared {
      size batch; input x[batch, i:32, j:128]; param w[i, o:16]; param v[o, p:8]
      y[batch, p, j] = x * w * v
      output y[batch, p, j] }""")
    machine = Machine(seconds_per_view=1e-9, elements_per_second=1e9, cache=1e4)
    finder = timed_search(network, {"batch": 64}, machine=machine, mode="train")
    added = (c for c in finder.candidates() if any(gradient.added for tree in c.trees for gradient in tree.gradients))
    plan = finder.plan([(1, None, next(added).trees)])
    layer = tg.compile(plan)
    assert ").sum((0,))" in layer.source
    for batch in (1, 5):
        assert layer.verify(sizes={"batch": batch}).is_equal
    plan.save(tmp_path / "plan.json")
    assert tg.load_plan(tmp_path / "plan.json") == plan


def gradients_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    return fields["plan"]["regimes"][0]["equations"][0]["terms"][0]["gradients"]


WRONG = {
    "one less": (lambda g: g.pop(), "gradients for the operands"),
    "of another value": (lambda g: g[0].update(matmul=g[1]["matmul"]), "the gradient of value"),
    "a leg of nothing": (lambda g: g[0]["matmul"]["rows"].append("nothing"), "which its operands do not have"),
    "no order of what is summed": (lambda g: g[0]["matmul"].update(summed=[]), "is not a product of the gradient"),
    "of what lies as it did": (lambda g: g[0].update(arranged=True), "that its step does not copy"),
    "products added along no sum": (lambda g: g[0].update(added=True), "along legs that are not summed"),
    "no object": (lambda g: g.__setitem__(0, 3), "gradient 1: expected an object, got an integer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_with_other_gradients_is_refused(name: str, tmp_path: Path):
    edit, complaint = WRONG[name]
    place = tmp_path / "plan.json"
    planned("a chain").save(place)
    fields = json.loads(place.read_text())
    edit(gradients_of(fields))
    place.write_text(json.dumps(fields))
    with pytest.raises(tg.PlanError, match=complaint):
        tg.load_plan(place)


def test_gradients_of_earlier_results_lie_in_the_order_of_their_axes():
    """What made the result, a function, passes over both at once, which is slow where one is a permuted view."""
    network = tg.load("examples/specs/fc_ntt.tn")
    finder = timed_search(network, {"batch": 64}, machine=Machine(seconds_per_view=1e-9), mode="train")
    way = next(each for each in finder.candidates() if each.is_planned and each.is_whole)
    plan = finder.plan([(1, None, way.trees)])
    (program,) = (regime.program for regime in plan.regimes)
    made = {line.variable.name: line.result.code for each in program.backward.values() for line in each.lines}
    for name in ("grad h1", "grad h2", "grad h3"):
        code = made[name]
        while isinstance(code, Call) and code.function == "reshape":
            (code,) = code.operands
        assert not isinstance(code, Call) or code.function != "permute"
    assert tg.compile(plan).verify(sizes={"batch": 5}).is_equal


def test_a_count_of_windows_is_given_to_a_planned_backward_pass():
    """Its static methods know no sizes but their arguments."""
    network = tg.parse("""network counted {
      size n
      input z[q:n]
      input x[i:(n - 1)//2 + 1]
      input w[j:(n - 1)//2 + 1]
      y[i, j] = w * x
      output y[i, j]
    }""")
    small = Machine(cache=16, elements_per_second=1e6, reused=16, fresh_per_second=1e6, seconds_per_product=1e-7)
    plan = tg.plan(network, {"n": 24}, mode="train", minimize=small)
    assert "PlannedBackward" in tg.emit(plan)
    assert tg.compile(plan).verify(sizes={"n": 5}).is_equal
