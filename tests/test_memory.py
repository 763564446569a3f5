"""The bytes a plan predicts, beside those that a run holds; and where PyTorch puts entries, beside PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

import tngraph as tg
from tests.networks import TABLE
from tests.test_families import CASES, Case, build
from tngraph.language.sizes import symbol
from tngraph.modules.measuring import measure_peak, measure_saved
from tngraph.modules.verification import random_inputs
from tngraph.plans.plan import Plan
from tngraph.program import pytorch
from tngraph.program.cases import generic_sizes
from tngraph.program.counts import evaluate_count
from tngraph.program.strides import (
    Layout,
    elementwise_strides,
    is_contiguous,
    kept_strides,
    reshaped_strides,
    suggested_strides,
    suggests_channels_last,
)

SPECS = sorted(Path("examples/specs").glob("*.tn"))


def held_as_predicted(plan: Plan, sizes: dict[str, int], dtype: torch.dtype) -> None:
    """Run a layer of a plan at these sizes, and compare what it holds with what the plan says."""
    network, values = plan.network, plan.values(**sizes)
    runtime = {name: values[name] for name in network.runtime_sizes()}
    compiled = {size.name: values[size.name] for size in network.settable_sizes()}
    layer = tg.compile(plan, compiled, dtype=dtype)
    inputs = [x.to(dtype) for x in random_inputs(network, compiled, torch.Generator().manual_seed(0), runtime)]
    expected = plan.regime_of(values).memory(values, dtype.itemsize)
    assert measure_peak(lambda: layer.forward(*inputs)) == expected.peak
    leaves = [x.requires_grad_() for x in inputs]
    given = [*layer.parameters(), *layer.buffers(), *leaves]
    assert measure_saved(lambda: layer.forward(*leaves), given) == expected.saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLE)
def test_each_feature_holds_what_is_predicted(name: str, dtype: torch.dtype):
    network = TABLE[name]
    held_as_predicted(tg.plan(network), {size: 4 + k for k, size in enumerate(network.runtime_sizes())}, dtype)


@pytest.mark.parametrize("name", TABLE)
def test_each_feature_holds_what_is_predicted_at_size_one(name: str):
    network = TABLE[name]
    ones = {size.name: 1 for size in network.sizes if size.value is None or size in network.settable_sizes()}
    plan = tg.plan(network)
    if any(evaluate_count(index.size, plan.values(**ones)) < 1 for index in network.indices()):
        ones = dict.fromkeys(ones, 3)
    held_as_predicted(plan, ones, torch.float32)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_each_example_holds_what_is_predicted(path: Path, batch: int):
    network = tg.load(path)
    runtime = {name: batch if name == "batch" else 7 for name in network.runtime_sizes()}
    held_as_predicted(tg.plan(network), runtime, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [{}, {"S": 1}, {"T": 1}, {"S": 1, "T": 1, "K": 1}])
@pytest.mark.parametrize("stored", ["t, s, KK", "t, KK, s", "KK, s, t"])
@pytest.mark.parametrize("axes", ["H", "H, W", "H, W, Z"])
def test_a_convolution_lies_as_its_weight_does(axes: str, stored: str, sizes: dict[str, int], dtype: torch.dtype):
    """PyTorch returns channels last where the weight or the signal looks so; the order asked for makes copies."""
    names = axes.split(", ")
    kernel = ", ".join(f"k{name}" for name in names)
    places = ", ".join(f"p{name}" for name in names)
    indices = "; ".join(f"index {name}: 5; index k{name}: K; index p{name}: 7 - K" for name in names)
    text = f"""network n {{ size S = 2; size T = 3; size K = 2; {indices}
      index s: S; index t: T; input x[b:2, s, {axes}]; param w[{stored.replace("KK", kernel)}]
      y[b, t, {places}] = relu(x[b, s, {", ".join(f"p{name} + k{name} - 1" for name in names)}] * w)
      output y[b, {places}, t] }}"""
    held_as_predicted(tg.plan(tg.parse(text)), sizes, dtype)


def formulas_hold(plan: Plan, numbers: Iterable[int]) -> None:
    """Compare the formulas with what a call holds, every size being one of some numbers."""
    network = plan.network
    free = [size.name for size in network.sizes if size.value is None or size.value.is_Integer]
    for chosen in product(numbers, repeat=len(free)):
        sizes = dict(zip(free, chosen, strict=True))
        with suppress(tg.SizeError):
            values = plan.values(**sizes)
            if all(evaluate_count(index.size, values) >= 1 for index in network.indices()):
                counts = plan.at(**sizes)
                for name in ("peak", "saved", "moves"):
                    assert evaluate_count(getattr(plan, name), values) == getattr(counts, name), (name, sizes)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_formulas_hold_wherever_sizes_are_not_equal_by_chance(path: Path):
    network = tg.load(path)
    plan = tg.plan(network)
    formulas_hold(plan, (1, 3))
    generic = generic_sizes(network, plan.sizes)
    for factor in (1, 3):
        given = {s.name: factor * generic[s.name] for s in network.sizes if s.value is None or s.value.is_Integer}
        numbers = plan.values(**given)
        counts = plan.at(**given)
        assert evaluate_count(plan.peak, numbers) == counts.peak
        assert evaluate_count(plan.saved, numbers) == counts.saved
        assert evaluate_count(plan.moves, numbers) == counts.moves


@pytest.mark.parametrize("name", TABLE)
def test_the_formulas_of_each_feature_hold_at_sizes_of_one(name: str):
    formulas_hold(tg.plan(TABLE[name], mode="train"), (1, 3, 8))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_formulas_of_each_family_hold_at_sizes_of_one(case: Case):
    plan = tg.plan(build(case), mode="train")
    formulas_hold(plan, (1, 3))
    held_as_predicted(plan, {"batch": 1}, torch.float32)


def test_the_formulas_of_a_compressed_layer_have_a_case_for_each_size_of_one():
    """A matrix product operator of four sites: with one row of a bond of 1 only what the bias is added to is moved."""
    plan = tg.plan(tg.load("examples/specs/fc2_mpo.tn"))
    assert [plan.at(batch=1, D=1).moves, evaluate_count(plan.moves, {"batch": 1, "D": 1})] == [5952, 5952]
    assert "  moves        14,400 [bytes] = 2816*D + 3136 where batch = 1\n" in plan.table(batch=1)
    assert "  moves        5,952 [bytes]\n" in plan.table(batch=1, D=1)
    held_as_predicted(plan, {"batch": 1, "D": 1}, torch.float32)


def test_a_window_with_one_position_is_a_case():
    """Of a leg of one entry; of one of two it is a part of what lies apart, and is copied."""
    text = """network n { size batch, length; input x[batch, j:3, l:length, q:2]; param w[j, q, o:2]
      y[batch, p, o] = x[batch, j, 2*p, q] * w; output y[batch, p, o] }"""
    plan = tg.plan(tg.parse(text))
    moves = [evaluate_count(plan.moves, {"batch": 5, "length": length}) for length in (1, 2, 3, 4, 5)]
    assert moves == [0, *(4 * 5 * 3 * 2 * positions for positions in (1, 2, 2, 3))]
    formulas_hold(plan, range(1, 12))


def test_a_matrix_product_saves_what_the_gradients_need():
    """Of x·a·b: the product x·a for the gradient of b; x, a and b are there anyway. The peak is both products."""
    text = "network n { size batch; input x[n:batch, i:3]; param a[i, r:5]; param b[r, o:7]; y[n, o] = x * a * b"
    plan = tg.plan(tg.parse(text + "; output y[n, o] }"), {"batch": 2}, order="(x a) b")
    batch = symbol("batch")
    assert (plan.peak, plan.saved) == (4 * (5 + 7) * batch, 4 * 5 * batch)
    counts = plan.at(batch=10)
    assert (counts.peak, counts.saved) == (480, 200)
    assert plan.regimes[0].memory({"batch": 10}, 8).peak == 960


def test_a_permutation_that_moves_size_one_is_free():
    """What is summed does not lie together and is copied before the product, unless what lies between has one entry."""
    text = (
        "network n { size m; input x[i:m, j:3, k:4, l:2]; param w[j, l, o:2]; y[i, k, o] = x * w; output y[i, k, o] }"
    )
    plan = tg.plan(tg.parse(text))
    m = symbol("m")
    assert (plan.peak, plan.moves) == (4 * (24 * m + 8 * m), 4 * 24 * m)
    assert [plan.at(m=2).peak, plan.at(m=1).peak] == [256, 128]
    one = tg.plan(tg.parse(text.replace("k:4", "k:1")))
    assert (one.peak, one.moves, one.at(m=5).peak) == (8 * m, 0, 40)


@pytest.mark.parametrize("function", ["mm", "conv", "pointwise", "pointwise_"])
def test_a_wrong_rule_of_what_is_saved_is_rejected(function: str, monkeypatch: pytest.MonkeyPatch):
    text = f"""network n {{ input x[b:2, i:4, H:5]; param a[i, c:3]; param w[c, k:2, o:3]
      y[b, o, h:4] = {"exp" if function == "pointwise" else "tanh"}(x[b, i, h + k] * a * w); output y[b, o, h] }}"""
    plan = tg.plan(tg.parse(text), order="(x a) w")
    assert tg.compile(plan).verify().is_equal
    entry = replace(pytorch.FUNCTIONS[function], saves=lambda arguments, needs: ())
    monkeypatch.setitem(pytorch.FUNCTIONS, function, entry)
    with pytest.raises(tg.VerificationError, match="saved for backward"):
        tg.compile(plan).verify()


def test_a_wrong_rule_of_what_is_a_view_is_rejected(monkeypatch: pytest.MonkeyPatch):
    plan = tg.plan(TABLE["fused axes, bias and function"], {"batch": 64})
    entry = replace(pytorch.FUNCTIONS["reshape"], view=None)
    monkeypatch.setitem(pytorch.FUNCTIONS, "reshape", entry)
    with pytest.raises(tg.VerificationError, match=r"peak \[bytes\].*DIFFERS"):
        tg.compile(plan).verify()


def test_a_layer_that_holds_more_is_rejected(monkeypatch: pytest.MonkeyPatch):
    layer = tg.compile(TABLE["matrix product"])
    forward = type(layer).forward

    def hold_more(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        spare = x.clone()
        return forward(self, x) + 0 * spare.sum()

    monkeypatch.setattr(type(layer), "forward", hold_more)
    with pytest.raises(tg.VerificationError, match=r"peak \[bytes\]"):
        layer.verify()


def test_what_is_measured_is_what_there_is():
    x = torch.ones(8, 4)
    assert measure_peak(lambda: x.t()) == 0
    assert measure_peak(lambda: (x + 1).exp()) == 2 * 128
    assert measure_peak(lambda: x.t().reshape(32).reshape(4, 8)) == 128
    w = torch.ones(4, 3, requires_grad=True)
    assert measure_saved(lambda: x.mm(w).exp(), [x, w]) == 8 * 3 * 4
    assert measure_saved(lambda: x.mm(w).exp(), [w]) == 8 * 3 * 4 + 128


@st.composite
def tensors(draw, most: int = 5) -> torch.Tensor:
    """A permuted view of some part of a tensor, with sizes of 1 among the others."""
    rank = draw(st.integers(1, most))
    order = draw(st.permutations(range(rank)))
    sizes = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=rank, max_size=rank))
    tensor = torch.zeros([size + draw(st.sampled_from([0, 0, 0, 1])) for size in sizes])
    for axis, size in enumerate(sizes):
        tensor = tensor.narrow(axis, 0, size)
    return tensor.permute(order)


def layout(tensor: torch.Tensor) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride())


@given(tensors(), st.data())
def test_a_reshape_is_a_view_where_pytorch_makes_one(tensor: torch.Tensor, data):
    cuts = data.draw(st.lists(st.booleans(), min_size=tensor.dim(), max_size=tensor.dim()))
    sizes: list[int] = []
    for size, cut in zip(tensor.shape, cuts, strict=True):
        if cut or not sizes:
            sizes.append(size)
        else:
            sizes[-1] *= size
    found = tensor.reshape(sizes)
    strides = reshaped_strides(layout(tensor), tuple(sizes))
    assert (strides is not None) == (found.data_ptr() == tensor.data_ptr())
    assert strides is None or strides == found.stride()
    assert is_contiguous(layout(tensor)) == tensor.is_contiguous()


@given(tensors(), st.data())
def test_entrywise_results_lie_as_pytorch_puts_them(tensor: torch.Tensor, data):
    other = torch.zeros(data.draw(st.permutations(tensor.shape)))
    other = other.permute(data.draw(st.permutations(range(tensor.dim()))))
    sides = [tensor, other] if other.shape == tensor.shape else [tensor, tensor[:1]]
    assert elementwise_strides(tuple(tensor.shape), [layout(side) for side in sides]) == (sides[0] + sides[1]).stride()
    assert elementwise_strides(tuple(tensor.shape), [layout(tensor)]) == tensor.exp().stride()
    scaled = [layout(tensor), Layout((), ())]
    assert elementwise_strides(tuple(tensor.shape), scaled) == (2.0 * tensor).stride()
    assert kept_strides(layout(tensor)) == tensor.flip(0).stride()


@given(tensors())
def test_padding_lies_as_pytorch_puts_it(tensor: torch.Tensor):
    padded = F.pad(tensor, (1, 0))
    is_last = suggests_channels_last(layout(tensor))
    assert suggested_strides(tuple(padded.shape), is_last) == padded.stride()
