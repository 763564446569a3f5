"""What a run takes, as it is measured: the correction of PyTorch's FLOP counter, and what it leaves alone."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

import tngraph as tg
from tngraph.modules import verification
from tngraph.modules.measuring import measure_flops

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def plain_flops(call) -> int:
    """What PyTorch counts."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def trained(groups: int, axes: int = 2, *, signal: bool = True, weight: bool = True):
    """A forward and a backward pass of a convolution, 6 channels to 12 at 5 positions an axis, and its MAC."""
    x = torch.randn(2, 6, *[5] * axes, requires_grad=signal)
    w = torch.randn(12, 6 // groups, *[3] * axes, requires_grad=weight)
    return lambda: CONV[axes](x, w, padding=1, groups=groups).sum().backward(), 2 * prod([5] * axes) * w.numel()


@pytest.mark.parametrize("axes", CONV)
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_a_weight_gradient_in_groups_takes_what_the_forward_pass_takes(groups: int, axes: int):
    """Forward, and a gradient each of signal and weight: 3 · 2 · MAC. PyTorch charges the last one once per group."""
    call, macs = trained(groups, axes)
    assert measure_flops(call) == 3 * 2 * macs
    assert plain_flops(call) == (2 + groups) * 2 * macs


@pytest.mark.parametrize("axes", CONV)
def test_a_convolution_without_groups_is_counted_as_pytorch_counts_it(axes: int):
    call, macs = trained(1, axes)
    assert measure_flops(call) == plain_flops(call) == 3 * 2 * macs


def test_a_gradient_of_one_operand_is_counted_alone():
    call, macs = trained(3, weight=False)
    assert measure_flops(call) == plain_flops(call) == 2 * 2 * macs
    call, macs = trained(3, signal=False)
    assert (measure_flops(call), plain_flops(call)) == (2 * 2 * macs, (1 + 3) * 2 * macs)


def test_matrix_products_and_transposed_convolutions_are_counted_as_pytorch_counts_them():
    x = torch.randn(2, 6, 5, requires_grad=True)
    w = torch.randn(6, 4, 3, requires_grad=True)

    def call() -> None:
        F.conv_transpose1d(x, w).sum().backward()
        (x @ x.transpose(1, 2)).sum().backward()

    assert measure_flops(call) == plain_flops(call)


def test_without_the_correction_a_depthwise_layer_is_rejected(monkeypatch: pytest.MonkeyPatch):
    layer = tg.compile(tg.load(Path("examples/specs/conv_cp.tn")), {"R": 3})
    assert layer.verify().is_equal
    monkeypatch.setattr(verification, "measure_flops", plain_flops)
    with pytest.raises(tg.VerificationError, match=r"forward and backward.*DIFFERS"):
        layer.verify()


class Turned(torch.nn.Module):
    """A module of PyTorch alone that returns a view of its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 3))

    def forward(self) -> torch.Tensor:
        return self.weight.mT


VIEWS = {
    "windows": "y[k:3, p:4, i] = w[i, 3*p + 2*k]; output y[k, p, i]",
    "transposed": "y[j, i] = w[i, j]; output y[j, i]",
    "fused": "y[i, j] = w[i, j]; output y[(i, j)]",
    "a diagonal": "y[i] = w[i, i]; output y[i]",
    "one position": "y[i] = w[i, 2]; output y[i]",
}


@pytest.mark.parametrize("name", VIEWS)
def test_networks_that_only_view_a_param_are_counted_with_their_gradients(name: str):
    size = 3 if name == "a diagonal" else 20
    layer = tg.compile(tg.parse(f"network n {{ index i: 3; index j: {size}; param w[a:3, b:{size}]; {VIEWS[name]} }}"))
    assert measure_flops(lambda: layer().sum().backward()) == 0
    assert layer.verify().is_equal


def test_a_view_of_a_param_without_gradients_stops_the_counter_for_any_module():
    """This is PyTorch's to mend, and docs/pytorch.md says so: as soon as it is mended, this test fails."""
    layer = tg.compile(
        tg.parse("network n { index i: 3; index j: 20; param w[a:3, b:20]; y[j, i] = w[i, j]; output y[j, i] }")
    )
    for module in (Turned(), layer):
        with pytest.raises(AssertionError, match="Expected gradient function to be set"), torch.no_grad():
            measure_flops(module)
