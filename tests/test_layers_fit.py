"""Layers that start from a trained weight: the calls of layers, generated weights and whole models that fit them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import tngraph as tg
from tngraph.errors import NetworkError, SizeError
from tngraph.fitting.modes import search_modes
from tngraph.layers import Conv1d, Conv2d, ConvTranspose2d, Generated, Linear, replace

pytestmark = pytest.mark.filterwarnings("ignore::tngraph.GrowthWarning")  # the layers here are small


def error_of(layer: nn.Module, dense: nn.Module, x: torch.Tensor) -> float:
    """The error of outputs about their mean, relative to the outputs about theirs."""
    axes = [0, *range(2, 2 + x.dim() - 2)]
    with torch.no_grad():
        missed, y = layer(x) - dense(x), dense(x)
        var = [t.var(axes, unbiased=False).sum() for t in (missed, y)]
    return float((var[0] / var[1]) ** 0.5)


def test_a_layer_without_a_fit_is_drawn():
    dense = nn.Linear(16, 16)
    assert not torch.equal(Linear.like(dense, "low_rank", rank=2).bias, dense.bias)


def test_a_layer_is_fitted_to_a_weight_and_takes_its_bias_over():
    dense = nn.Linear(16, 12)
    layer = Linear.like(dense, "low_rank", rank=12, fit=True)
    torch.testing.assert_close(layer.weight, dense.weight)
    assert torch.equal(layer.bias, dense.bias)


def test_a_layer_is_fitted_to_inputs_to_moments_and_to_arguments():
    dense, x = nn.Linear(24, 16), torch.randn(200, 24) * torch.linspace(0.1, 2, 24) + 1
    at_inputs = Linear.like(dense, "low_rank", rank=3, fit=x)
    for start in ([x[:50], x[50:]], tg.Moments.of(x), {"inputs": x, "sweeps": 3}):
        layer = Linear.like(dense, "low_rank", rank=3, fit=start)
        torch.testing.assert_close(layer.weight, at_inputs.weight, rtol=1e-4, atol=1e-5)
    at_weight = Linear.like(dense, "low_rank", rank=3, fit=True)
    assert error_of(at_inputs, dense, x) < error_of(at_weight, dense, x)
    torch.testing.assert_close(at_inputs(x).mean(0), dense(x).mean(0), rtol=1e-4, atol=1e-5)


def test_a_layer_keeps_device_type_and_mode():
    dense = nn.Linear(8, 8, dtype=torch.bfloat16).eval()
    layer = Linear.like(dense, "mpo", bond=4, modes=((4, 2), (4, 2)), fit=True)
    assert not layer.training
    assert layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(layer.weight, dense.weight, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("dense", "options", "shape"),
    [
        (nn.Conv1d(8, 6, 3, stride=2, padding=1), {"family": "low_rank", "rank": 4}, (3, 8, 11)),
        (nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), {"family": "low_rank", "rank": 4}, (3, 8, 6, 6)),
        (nn.Conv2d(8, 8, 3, dilation=2, groups=2), {"family": "low_rank", "rank": 2}, (3, 8, 8, 8)),
        (nn.Conv2d(4, 4, 3, padding="same"), {"family": "low_rank", "rank": 2, "modes": ((5,), (6,))}, (3, 4, 6, 6)),
        (
            nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
            {"family": "low_rank", "rank": 4},
            (3, 8, 5, 4),
        ),
        (nn.ConvTranspose2d(8, 6, (2, 3), groups=2, stride=(3, 1)), {"family": "low_rank", "rank": 2}, (3, 8, 5, 4)),
    ],
    ids=str,
)
def test_the_error_of_a_convolution_is_that_of_its_outputs(dense, options, shape):
    kind = {nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.ConvTranspose2d: ConvTranspose2d}[type(dense)]
    x = torch.randn(shape) + 0.5
    layer = kind.like(dense, **options)
    report = tg.fit(layer, dense, x)
    assert report.output_error == pytest.approx(error_of(layer, dense, x), rel=1e-3)
    other = kind.like(dense, **options, fit=x)
    assert error_of(other, dense, x) == pytest.approx(report.output_error, rel=1e-3)


def test_an_argument_that_fit_does_not_take_is_named():
    with pytest.raises(NetworkError, match="fit has no argument 'sweps'\n  it takes: inputs, sweeps"):
        Linear.like(nn.Linear(4, 4), fit={"sweps": 3})


def test_a_map_cannot_be_fitted():
    with pytest.raises(NetworkError, match="ntt has no dense weight"):
        Linear.like(nn.Linear(16, 16), "ntt", fit=True)


def test_a_generated_weight_is_fitted():
    layer = nn.Linear(16, 12)
    before = layer.weight.detach().clone()
    generator = Generated.like(layer.weight, "mpo", bond=12, modes=((4, 4), (4, 3)), fit=True)
    parametrize.register_parametrization(layer, "weight", generator)
    torch.testing.assert_close(layer.weight, before, rtol=1e-4, atol=1e-5)


def test_a_fitted_residual_holds_the_largest_part_and_the_layer_starts_as_it_was():
    layer = nn.Linear(16, 12)
    before = layer.weight.detach().clone()
    adapter = Generated.like(layer.weight, "low_rank", rank=2, residual=True, fit=True)
    parametrize.register_parametrization(layer, "weight", adapter)
    torch.testing.assert_close(layer.weight, before)
    values = torch.linalg.svdvals(before)
    rest = torch.linalg.svdvals(layer.parametrizations.weight.original.detach())
    torch.testing.assert_close(rest[:10], values[2:], rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    """A layer in two places, and one that reads what the first place reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = self.first
        self.beside = nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.beside(x) + self.second(self.first(x).relu() * 3).sum()


def test_moments_of_layers_part_where_their_inputs_do():
    model, x, y = Tied(), torch.randn(50, 12), torch.randn(40, 12)
    moments = tg.collect_moments(model, [x, y])
    assert list(moments) == ["first", "beside"]
    both = torch.cat([x, y])
    inner = torch.cat([both, model.first(both).relu() * 3]).detach()
    for name, inputs in (("first", inner), ("beside", both)):
        torch.testing.assert_close(moments[name].second, tg.Moments.of(inputs).second, rtol=1e-5, atol=1e-6)
        assert moments[name].count == len(inputs)


def test_layers_that_read_the_same_share_their_moments():
    model = nn.ModuleDict({"q": nn.Linear(6, 6), "k": nn.Linear(6, 6)})
    moments = tg.collect_moments(model, torch.randn(9, 6), call=lambda m, x: (m["q"](x), m["k"](x)))
    assert moments["q"] is moments["k"]


def test_inputs_are_taken_before_the_model_writes_over_them():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x += self.one(x)
            return self.two(x)

    model, x = InPlace(), torch.randn(30, 6)
    moments = tg.collect_moments(model, [x])
    torch.testing.assert_close(moments["one"].second, tg.Moments.of(x).second)
    torch.testing.assert_close(moments["two"].second, tg.Moments.of((x + model.one(x)).detach()).second)


def test_a_model_is_fitted_on_its_own_inputs():
    net = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(300, 24)
    hidden = net[1](net[0](x)).detach()
    alone = tg.fit(Linear.like(net[2], "low_rank", rank=4), net[2], hidden)
    told: list[tuple[int, int, str]] = []
    table = replace(
        net,
        {"0": {"family": "low_rank", "rank": 3}, "2": "low_rank", "4": {"family": "low_rank", "fit": False}},
        rank=4,
        inputs=x,
        progress=lambda *state: told.append(state),
    )
    assert told == [(1, 3, "0"), (2, 3, "2"), (3, 3, "4")]
    assert table[1].fit.output_error == pytest.approx(alone.output_error, rel=1e-4)
    assert table[2].fit is None
    lines = str(table).splitlines()
    assert lines[0].split() == ["replaced", "params", "now", "error", "low", "rank"]
    error, low_rank = f"{table[0].fit.output_error:.4f}", f"{table[0].fit.low_rank.error:.4f}"
    assert lines[1] == f"0               400  136  {error}    {low_rank}  low_rank(rank=3), 24 -> 16"
    assert lines[3].split()[3] == "drawn"


def test_a_layer_in_several_places_is_fitted_on_the_inputs_of_all_and_stays_one():
    model, x = Tied(), torch.randn(60, 12)
    moments = tg.collect_moments(model, x, ["first"])
    alone = tg.fit(Linear.like(model.first, "low_rank", rank=3), model.first, moments["first"])
    table = replace(model, "low_rank", rank=3, inputs=[x])
    assert model.first is model.second
    assert table[0].name == "first = second"
    assert table[0].fit.output_error == pytest.approx(alone.output_error, rel=1e-4)


def test_moments_that_were_collected_before_are_taken_by_name():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    moments = tg.collect_moments(net, torch.randn(40, 8))
    copy = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    copy.load_state_dict(net.state_dict())
    x = torch.randn(3, 8)
    replace(net, "low_rank", rank=2, inputs=moments)
    replace(copy, "low_rank", rank=2, fit={"sweeps": 5}, inputs=moments)
    torch.testing.assert_close(net(x), copy(x))
    with pytest.raises(NetworkError, match="there are no moments for '1'\n  there are some for: 0"):
        replace(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), "low_rank", inputs={"0": moments["0"]})


def test_a_model_stays_as_it_is_if_a_layer_cannot_be_fitted():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        net[1].weight[0, 0] = float("nan")
    with pytest.raises(SizeError, match="1: the target has entries that are infinite"):
        replace(net, "low_rank", rank=2, fit=True)
    assert type(net[0]) is nn.Linear
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    with pytest.raises(SizeError, match="no batch reached the layer 'unused'"):
        tg.collect_moments(model, torch.randn(3, 4), call=lambda m, x: m["used"](x))


@pytest.mark.parametrize("inputs", ["text", 3, {"a": torch.ones(2)}])
def test_inputs_of_another_kind_are_refused(inputs):
    with pytest.raises(SizeError, match="the inputs to fit to are"):
        tg.fit(Linear(4, 4), nn.Linear(4, 4), inputs)


def test_modes_are_searched_on_request():
    """They are those that the search finds, in the metric of the inputs, at the number of sites that is given."""
    torch.manual_seed(0)
    dense = nn.Linear(24, 36)
    x = torch.randn(200, 24) @ torch.randn(24, 24)
    layer = Linear.like(dense, "mpo", bond=3, modes="search", sites=2, fit=x)
    assert (layer.recipe.rows, layer.recipe.columns) == search_modes(dense, x, "mpo", sites=(2,), bond=3)
    with pytest.raises(tg.NetworkError, match="modes of cp cannot be searched"):
        Linear.like(dense, "cp", rank=3, modes="search")
