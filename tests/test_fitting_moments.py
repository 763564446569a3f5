"""Moments of inputs: those of convolutions are those of their patches, and a stream has those of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tngraph as tg

CONVOLUTIONS: list[Any] = [
    pytest.param(lambda: nn.Conv1d(4, 6, 3, bias=False), id="plain"),
    pytest.param(lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), bias=False), id="stride"),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), bias=False), id="padding"),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False), id="same"),
    pytest.param(
        lambda: nn.Conv2d(4, 6, 2, padding="same", bias=False),
        id="same, even",
        marks=pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    ),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, dilation=2, bias=False), id="dilation"),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False), id="groups"),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=False), id="circular"),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect", bias=False), id="reflect"),
    pytest.param(lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="replicate", bias=False), id="replicate"),
    pytest.param(lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1, bias=False), id="three axes"),
]


@pytest.mark.parametrize("make", CONVOLUTIONS)
def test_the_moments_of_a_convolution_give_those_of_its_outputs(make: Any):
    """For random weights E[y yᵀ] = W M Wᵀ and E[y] = W E[x], where PyTorch computes y."""
    convolution = make().double()
    x = torch.randn(3, convolution.in_channels, *(7, 6, 5)[: len(convolution.kernel_size)], dtype=torch.float64)
    moments = tg.Moments.of(x, convolution)
    groups = convolution.groups
    for _ in range(5):
        nn.init.normal_(convolution.weight)
        weight = convolution.weight.detach().reshape(groups, -1, moments.second.shape[-1])
        y: Tensor = convolution(x).detach().flatten(2)
        assert moments.count == y.shape[0] * y.shape[2]
        y = y.movedim(1, 0).reshape(groups, weight.shape[1], -1)
        torch.testing.assert_close(weight @ moments.second @ weight.mT, y @ y.mT / y.shape[-1])
        torch.testing.assert_close((weight @ moments.mean[..., None])[..., 0], y.mean(-1))


def test_a_stream_has_the_moments_of_the_whole():
    x = torch.randn(20, 5, 6)
    whole, stream = tg.Moments.of(x), tg.Moments.of(iter(x.split(7)))
    assert whole.count == stream.count == 100
    torch.testing.assert_close(stream.second, whole.second)
    torch.testing.assert_close(stream.mean, whole.mean)
    parts = [tg.Moments.of(part) for part in x.split(7)]
    joined = parts[0] + parts[1] + parts[2]
    torch.testing.assert_close(joined.second, whole.second)
    torch.testing.assert_close(whole.second[0], torch.einsum("bti,btj->ij", x.double(), x.double()) / 100)
    torch.testing.assert_close(whole.covariance[0], torch.cov(x.double().reshape(-1, 6).T, correction=0))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.q(x) + self.k(x) + self.v(x))


def test_projections_of_one_tensor_share_their_moments():
    model, x = Attention(), torch.randn(4, 3, 6)
    moments = tg.collect_moments(model, [x[:2], x[2:]], ["q", "k", "v", "o"])
    assert moments["q"] is moments["k"] is moments["v"]
    assert moments["o"] is not moments["q"]
    torch.testing.assert_close(moments["q"].second, tg.Moments.of(x).second)
    torch.testing.assert_close(moments["o"].second, tg.Moments.of(model.q(x) + model.k(x) + model.v(x)).second)


def test_layers_that_nothing_reaches_are_named():
    model = Attention()
    with pytest.raises(tg.SizeError, match="no batch reached the layer 'q'"):
        tg.collect_moments(model, [], ["q"])
    with pytest.raises(tg.NetworkError, match="the model has no layer 'w'"):
        tg.collect_moments(model, torch.randn(2, 6), ["w"])
