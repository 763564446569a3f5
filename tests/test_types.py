"""Types in mixed precision: what a layer puts out, and keeps, has the type that a dense layer's has under autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tngraph as tg
from tngraph.language.sizes import evaluate_size
from tngraph.layers import Conv2d, Linear

HEAD = "network n {\nsize batch\ninput x[batch, i:6]\nparam a[i, r:3]\nparam c[r, o:4]\nparam s[o]\nparam t[o]\n"
NARROW = {
    "a product": "y[batch, o] = x * a * c",
    "a bias": "y[batch, o] = x * a * c + s",
    "a bias in another order": "param b[o, k:2]\nparam e[r, k]\ny[batch, k, o] = x * a * c * e + b",
    "a product with what is stored": "y[batch, o] = x * a * c * s",
    "a function of a sum": "y[batch, o] = relu(x * a * c + s)",
    "a function that is narrow on a CPU": "y[batch, o] = gelu(x * a * c + s)",
    "a function of what is stored": "f[o] = exp(s)\ny[batch, o] = x * a * c * f + f",
    "a product of what is stored": "y[batch, o] = x * a * c + s * t",
    "a matrix product of what is stored": "param v[o, r]\nparam w[r]\ny[batch, o] = x * a * c * s + v * w",
    "a sum of what is stored": "f[o] = s + t\ny[batch, o] = x * a * c - f",
    "two terms": "param d[i, o]\ny[batch, o] = x * a * c + x * d",
    "numbers": "y[batch, o] = 2 * x * a * c - 0.5 * s",
    "a constant": "const one[o] = basis(1)\ny[batch, o] = x * a * c + one",
    "a constant of run time": "const one[batch] = ones\ny[batch, o] = x * a * c + one * s",
    "a second layer": "h[batch, o] = tanh(x * a * c + s)\ny[batch, o] = h * t + s",
    "a convolution": "input z[batch, L:9]\nparam k[j:3]\ny[batch, o, l] = z[batch, l + j] * k * s + t",
}
"""The equations of layers that are narrow: every term in which an input stands has a matrix product with a param."""
WIDE = {
    "an input": "y[batch, i] = x",
    "an input and what is stored": "param b[i]\ny[batch, i] = x * b + b",
    "a product and an input": "input z[batch, o]\ny[batch, o] = x * a * c + z",
}
"""The equations of layers that are wide, as ``x * b + b`` and ``F.linear(x, w) + z`` are."""
WAYS: dict[str, dict[str, object]] = {
    **{mode: {"mode": mode} for mode in ("infer", "train", "serve")},
    "time": {"minimize": "time", "mode": "train"},
    "slices": {"largest": 5},
    "recomputed": {"mode": "train", "memory_limit": 200},
}


def network(equations: str) -> tg.Network:
    legs = equations.rpartition("y[")[2].partition("]")[0]
    return tg.parse(f"{HEAD}{equations}\noutput y[{legs}]\n}}")


def call(layer: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype=dtype):
        return layer(*inputs)


def inputs_of(net: tg.Network, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [[evaluate_size(index.size, {"batch": 5}) for index in port.legs] for port in net.inputs]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def plan_of(net: tg.Network, way: str) -> tg.Plan:
    try:
        return tg.plan(net, {"batch": 5}, **WAYS[way])  # type: ignore[arg-type]
    except tg.PlanError:
        pytest.skip("no plan is so small")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NARROW)
def test_a_layer_is_narrow_where_a_dense_one_is(name: str, way: str) -> None:
    net = network(NARROW[name])
    layer, given = tg.compile(plan_of(net, way)), inputs_of(net)
    for dtype in (torch.float16, torch.bfloat16):
        y = call(layer, given, dtype)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), layer(*given), rtol=0.1, atol=0.1)
    if way != "serve":
        y.float().sum().backward()
        gradients = {p.grad.dtype for p in layer.parameters() if p.grad is not None}
        assert gradients == {torch.float32}


@pytest.mark.parametrize("name", WIDE)
def test_an_input_keeps_its_type(name: str) -> None:
    net = network(WIDE[name])
    assert call(tg.compile(net), inputs_of(net), torch.bfloat16).dtype == torch.float32


@pytest.mark.parametrize("name", [*NARROW, *WIDE])
def test_nothing_is_converted_outside_of_mixed_precision(name: str) -> None:
    net = network((NARROW | WIDE)[name])
    layer, given = tg.compile(net, dtype=torch.float64), inputs_of(net, torch.float64)
    assert layer(*given).dtype == torch.float64
    assert layer.verify().is_equal
    wide = tg.compile(network("param b[i]\ny[batch, i] = x * b + b"))
    assert wide(torch.ones(2, 6, dtype=torch.complex64)).dtype == torch.complex64


def test_weights_are_folded_outside_of_mixed_precision() -> None:
    plan = tg.plan(network(NARROW["a bias"]), {"batch": 500}, mode="serve")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer = tg.compile(plan)
        layer.fold()
        layer.load_state_dict(layer.state_dict())
    assert {buffer.dtype for buffer in layer.buffers()} == {torch.float32}
    assert layer.verify().is_equal


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_runs_on_the_meta_device(way: str) -> None:
    net = network(NARROW["a bias"])
    layer = tg.compile(plan_of(net, way), device="meta")
    assert layer(*(x.to("meta") for x in inputs_of(net))).is_meta


class Scatter(nn.Module):
    """A layer whose values are added into rows, and put where a mask says."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(8, 8), layer

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y = torch.zeros_like(h)
        y.index_add_(0, torch.tensor([1, 0, 1]), self.layer(h))
        y[y > 0] = self.layer(h)[y > 0]
        return y


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Linear(8, 8),
    "exact": lambda: Linear(8, 8, family="mpo", bond=2),
    "padded": lambda: Linear(8, 8, family="mpo", bond=2, modes=((3, 3), (3, 3))),
    "served": lambda: Linear(8, 8, family="mpo", bond=2).fold(),
    "a convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), Conv2d(2, 2, 3, padding="same", family="cp", rank=2), nn.Flatten()
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_model_that_writes_into_its_values_takes_a_layer_for_a_dense_one(name: str) -> None:
    assert call(Scatter(LAYERS[name]()), [torch.randn(3, 8)], torch.bfloat16).dtype == torch.bfloat16


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """The bytes that a call under autocast keeps for its backward pass, those of params and the input left out."""
    given = {x.data_ptr(), *(p.data_ptr() for p in layer.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in given:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call(lambda x: F.relu(layer(x)), [x], torch.bfloat16)
    return sum(kept.values())


def test_less_is_kept_for_the_backward_pass() -> None:
    layer, x = Linear(64, 32, family="low_rank", rank=4), torch.randn(100, 64)
    copies, values = 100 * 64 + 4 * 32, 100 * 4 + 100 * 32  # of the input and the second factor; the middle, and relu's
    assert saved_bytes(layer, x) == 2 * (copies + values)
