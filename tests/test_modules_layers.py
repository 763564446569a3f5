"""Layers in the place of PyTorch's own: the same values as a dense layer with their weight, whatever the family."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import tngraph as tg
import tngraph.layers
from tngraph.language.families import FAMILIES
from tngraph.layers import (
    Compressed,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Generated,
    Linear,
    replace,
    share,
)
from tngraph.modules.measuring import measure_flops

pytestmark = pytest.mark.filterwarnings("ignore::tngraph.GrowthWarning")  # the layers here are small
OPTIONS: Mapping[str, dict[str, Any]] = {"graph": {"edges": ((1, 2),)}, "adtn": {"layers": 2}}
WEIGHTS = [name for name, family in FAMILIES.items() if not family.is_map]
DOUBLE = {"dtype": torch.float64}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def assert_cores_learn(layer: nn.Module, y: Tensor) -> None:
    y.square().sum().backward()
    assert [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()] == []


def dense_linear(layer: Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def dense_convolution(layer: Any, x: Tensor) -> Tensor:
    return layer.to_dense()(x)


# ------------------------------------------------------------------------------------------- every family


@pytest.mark.parametrize("family", FAMILIES)
def test_a_linear_layer_is_the_dense_one_with_its_weight(family: str) -> None:
    layer = Linear(10, 6, family=family, **DOUBLE, **OPTIONS.get(family, {}))
    x = torch.randn(3, 10, **DOUBLE)
    y = layer(x)
    assert y.shape == (3, 6)
    if family in WEIGHTS:
        assert layer.weight.shape == (6, 10)
        assert_same(y, dense_linear(layer, x))
    assert_cores_learn(layer, y)
    assert layer.verify().is_equal
    assert layer.verify(x).is_equal


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].has_window])
def test_a_convolution_is_the_dense_one_with_its_weight(family: str, groups: int) -> None:
    layer = Conv2d(6, 10, (3, 2), (2, 1), 1, groups=groups, family=family, **DOUBLE, **OPTIONS.get(family, {}))
    x = torch.randn(2, 6, 7, 8, **DOUBLE)
    y = layer(x)
    assert y.shape == (2, 10, 4, 9)
    if family in WEIGHTS:
        assert layer.weight.shape == (10, 6 // groups, 3, 2)
        assert_same(y, F.conv2d(x, layer.weight, layer.bias, (2, 1), 1, 1, groups))
    assert_cores_learn(layer, y)
    assert layer.verify(sizes={"batch": 2}).is_equal


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("family", [name for name in WEIGHTS if FAMILIES[name].has_window])
def test_a_transposed_convolution_is_the_dense_one_with_its_weight(family: str, groups: int) -> None:
    options = {"groups": groups, "family": family, **DOUBLE, **OPTIONS.get(family, {})}
    layer = ConvTranspose2d(6, 10, (3, 2), (2, 1), 1, (1, 0), **options)
    x = torch.randn(2, 6, 5, 4, **DOUBLE)
    y = layer(x)
    assert y.shape == (2, 10, 10, 3)
    assert layer.weight.shape == (6, 10 // groups, 3, 2)
    assert_same(y, F.conv_transpose2d(x, layer.weight, layer.bias, (2, 1), 1, (1, 0), groups))
    assert_cores_learn(layer, y)
    assert layer.verify(sizes={"batch": 2}).is_equal
    assert layer.counts(batch=2, height=5, width=4).flops == measure_flops(lambda: layer(x))


@pytest.mark.parametrize("family", WEIGHTS)
def test_gradients_flow_through_the_weight_to_every_core(family: str) -> None:
    layer = Linear(9, 5, bias=False, family=family, **OPTIONS.get(family, {}))
    assert_cores_learn(layer, layer.weight)


def test_ntt_has_no_weight() -> None:
    layer = Linear(10, 6, family="ntt")
    assert not hasattr(layer, "weight")
    for ask in (layer.build_weight, layer.to_dense):
        with pytest.raises(tg.NetworkError) as error:
            ask()
        assert str(error.value) == (
            "ntt has no dense weight: it is not linear in its input\n  weight and to_dense() are for the other families"
        )


# ------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("family", ["mpo", "cp", "adtn", "monarch", "tied_ring"])
@pytest.mark.parametrize(("ins", "outs"), [(1, 1), (3, 13), (13, 10), (10, 3), (257, 2), (7, 250)])
def test_odd_sizes_are_padded_and_cropped(family: str, ins: int, outs: int) -> None:
    layer = Linear(ins, outs, family=family, **DOUBLE)
    x = torch.randn(2, ins, **DOUBLE)
    assert_same(layer(x), dense_linear(layer, x))


def test_modes_by_hand_may_be_larger_than_the_features() -> None:
    layer = Linear(10, 5, family="mpo", modes=((3, 4), (2, 3)), bond=2, **DOUBLE)
    assert [tuple(p.shape) for p in layer.network.parameters()] == [(3, 2, 2), (2, 4, 3)]
    x = torch.randn(4, 10, **DOUBLE)
    assert_same(layer(x), dense_linear(layer, x))


@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 3), (2, 0), (2, 1, 3)])
@pytest.mark.parametrize("outs", [5, 6])
def test_linear_takes_any_leading_axes(lead: tuple[int, ...], outs: int) -> None:
    layer = Linear(13, outs, family="mpo", **DOUBLE)
    x = torch.randn(*lead, 13, **DOUBLE)
    assert_same(layer(x), dense_linear(layer, x))


WINDOWS: list[tuple[type[Any], tuple[int, ...], dict[str, Any]]] = [
    (Conv1d, (9,), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}),
    (Conv1d, (9,), {"kernel_size": 4, "padding": "same", "family": "mpo"}),
    (Conv1d, (9,), {"kernel_size": 2, "padding": "valid", "groups": 4, "family": "tucker", "bias": False}),
    (Conv2d, (7, 8), {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 2), "dilation": (3, 1)}),
    (Conv2d, (7, 8), {"kernel_size": (2, 3), "padding": "same", "dilation": (1, 2), "family": "low_rank"}),
    (Conv2d, (7, 8), {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "groups": 2}),
    (Conv2d, (7, 8), {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect", "stride": 2}),
    (Conv2d, (7, 8), {"kernel_size": (2, 3), "padding": "same", "padding_mode": "replicate", "family": "ring"}),
    (Conv2d, (7, 8), {"kernel_size": 3, "groups": 4, "family": "adtn"}),
    (Conv3d, (4, 5, 6), {"kernel_size": (1, 2, 3), "stride": (1, 2, 1), "padding": (0, 1, 2)}),
    (Conv3d, (4, 5, 6), {"kernel_size": 2, "padding": "same", "padding_mode": "circular", "family": "mpo"}),
    (ConvTranspose1d, (9,), {"kernel_size": 4, "stride": 2, "padding": 1}),
    (ConvTranspose1d, (1,), {"kernel_size": 1, "family": "mpo"}),
    (ConvTranspose1d, (5,), {"kernel_size": 2, "stride": 3, "output_padding": 2, "groups": 4, "family": "tucker"}),
    (ConvTranspose2d, (3, 4), {"kernel_size": (2, 5), "stride": (2, 1), "padding": (0, 2), "bias": False}),
    (ConvTranspose3d, (2, 3, 2), {"kernel_size": (1, 2, 3), "stride": (1, 2, 2), "output_padding": (0, 0, 1)}),
    (ConvTranspose3d, (2, 1, 3), {"kernel_size": 2, "stride": 2, "groups": 2, "family": "mpo"}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("kind", "space", "options"), WINDOWS)
def test_windows_read_as_those_of_pytorch(kind: type[Any], space: tuple[int, ...], options: dict[str, Any]) -> None:
    layer = kind(4, 12, **options, **DOUBLE)
    x = torch.randn(2, 4, *space, **DOUBLE)
    assert_same(layer(x), dense_convolution(layer, x))
    assert_same(layer(x[0]), layer(x)[0])
    assert layer.verify(x).is_equal


@pytest.mark.parametrize("family", ["mpo", "cp", "tucker"])
@pytest.mark.parametrize("outs", [3, 6])
def test_depthwise_and_three_channels(family: str, outs: int) -> None:
    layer = Conv2d(3, outs, 3, padding=1, groups=3, family=family, **DOUBLE)
    x = torch.randn(2, 3, 5, 5, **DOUBLE)
    assert_same(layer(x), dense_convolution(layer, x))


def test_groups_are_padded_one_by_one() -> None:
    layer = Conv1d(6, 10, 2, groups=2, family="mpo", modes=((2, 2), (3, 2)), bond=2, **DOUBLE)
    x = torch.randn(2, 6, 5, **DOUBLE)
    assert_same(layer(x), dense_convolution(layer, x))
    assert layer.verify(x).is_equal


# ------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("bias", [True, False])
def test_counts_of_a_linear_layer_are_those_of_the_network_with_its_bias(bias: bool) -> None:
    layer = Linear(28, 16, bias, family="mpo", modes=((4, 7), (4, 4)), bond=2)
    network = FAMILIES["mpo"]((4, 7), (4, 4), bond=2, bias=bias)
    assert layer.counts(batch=7) == tg.plan(network, minimize="time").at(batch=7)


LAYERS: dict[str, tuple[Callable[[], Compressed], tuple[int, ...], dict[str, int]]] = {
    "padded": (lambda: Linear(13, 10, modes=((4, 4), (4, 3)), bond=2), (5, 13), {"batch": 5}),
    "circular": (
        lambda: Conv2d(3, 5, 3, padding=(1, 2), padding_mode="circular", rank=2),
        (2, 3, 5, 6),
        {"batch": 2, "height": 5, "width": 6},
    ),
    "uneven": (lambda: Conv1d(4, 6, 4, padding="same", family="mpo"), (2, 4, 9), {"batch": 2, "length": 9}),
    "strided": (
        lambda: Conv2d(4, 6, 3, 2, 1, family="tucker", rank=2),
        (2, 4, 7, 8),
        {"batch": 2, "height": 7, "width": 8},
    ),
    "transposed": (
        lambda: ConvTranspose2d(4, 6, 3, 2, 1, 1, family="cp", rank=2),
        (2, 4, 5, 6),
        {"batch": 2, "height": 5, "width": 6},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_counts_are_those_of_what_runs(name: str) -> None:
    build, shape, sizes = LAYERS[name]
    layer, counts = build(), build().counts(**sizes)
    with FlopCounterMode(display=False) as counter:
        y = layer(torch.randn(shape))
    assert counts.flops == counter.get_total_flops()
    assert counts.params == sum(p.numel() for p in layer.parameters())
    plain = layer.plan.at(**layer._inner_sizes(sizes))
    assert counts.elementwise - plain.elementwise == y.numel()
    assert counts.cost > plain.cost


def test_a_layer_is_planned_at_sizes_of_its_own_input() -> None:
    sizes = {"batch": 3, "height": 10}
    layer = Conv2d(3, 4, 3, padding=1, padding_mode="reflect", rank=2, sizes=sizes)
    assert (layer.plan.sizes["batch"], layer.plan.sizes["height"]) == (3, 12)
    assert layer.counts() == layer.counts(batch=3, height=10, width=64)
    network = layer.recipe.layer(stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    assert layer.counts(width=9).macs == tg.plan(network, {"batch": 3, "height": 12}, minimize="time").at(width=11).macs


def test_a_layer_is_the_best_at_every_batch_that_it_was_not_given() -> None:
    mpo = {"family": "mpo", "bond": 4, "modes": ((4, 7, 7, 4), (4, 4, 4, 4))}
    layer = Linear(784, 256, **mpo, dtype=torch.float64)
    given = [Linear(784, 256, **mpo, sizes={"batch": n}) for n in (1, 2)]
    assert [(regime.low, regime.high) for regime in layer.plan.regimes] == [(1, 1), (2, None)]
    assert [each.counts().macs for each in given] == [layer.counts(batch=n).macs for n in (1, 2)]
    assert given[0].counts(batch=9).macs > layer.counts(batch=9).macs
    for n in (1, 2):
        alone, x = layer.at(batch=n), torch.randn(3, 784, dtype=torch.float64)
        assert (len(alone.plan.regimes), alone.bias, alone.planned["batch"]) == (1, layer.bias, n)
        assert all(p is q for p, q in zip(alone.parameters(), layer.parameters(), strict=True))
        assert alone.state_dict().keys() == layer.state_dict().keys()
        torch.testing.assert_close(alone(x), layer(x))
        program = torch.export.export(alone.float(), (x.float(),), dynamic_shapes=({0: Dim.DYNAMIC},)).module()
        for batch in (2, 9):
            torch.testing.assert_close(program(x[:1].float().expand(batch, -1)), layer(x[:1].float().expand(batch, -1)))
        layer.double()


# ------------------------------------------------------------------------------------------- PyTorch


def test_states_have_only_cores_and_bias() -> None:
    layer = Linear(6, 4, family="mpo", bond=2, sites=2)
    assert layer.weight.shape == (4, 6)
    assert list(layer.state_dict()) == ["bias", "network.W.g1", "network.W.g2"]
    assert [name for name, _ in layer.named_modules()] == ["", "network", "network.W"]
    other = Linear(6, 4, family="mpo", bond=2, sites=2)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(other(x), layer(x))
    assert Linear(6, 4, False).bias is None


@contextmanager
def without_fast_path() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("is_first", [False, True])
def test_an_encoder_of_transformers_reads_the_weights_of_its_layers(is_first: bool) -> None:
    def encode(hidden: Tensor, mask: Tensor | None) -> Tensor:
        return model(hidden, src_key_padding_mask=mask)

    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=is_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not is_first)
    assert len(replace(model, "mpo", bond=2)) == 4
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    for mask in (None, padding):
        seen = slice(None) if mask is None else ~mask
        expected = encode(x, mask)[seen]
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(encode(x, mask)[seen], expected)
            with without_fast_path():
                torch.testing.assert_close(encode(x, mask)[seen], expected)
        model.train()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = encode(x, None)
    torch.testing.assert_close(found.float(), encode(x, None), rtol=0.1, atol=0.1)


def test_attention_reads_the_weight_of_a_layer() -> None:
    model, x = nn.MultiheadAttention(16, 2, batch_first=True), torch.randn(2, 5, 16)
    model.out_proj = Linear(16, 16, family="mpo", bond=2)  # type: ignore[assignment]
    expected, _ = model(x, x, x)
    expected.sum().backward()
    assert_cores_learn(model.out_proj, expected.detach() @ model.out_proj.weight)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x, x, x, need_weights=False)[0], expected)


def test_a_weight_is_wide_in_mixed_precision_and_a_property_of_the_class() -> None:
    layer = Linear(8, 5, family="mpo", bond=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight, dense = layer.weight, layer.to_dense().weight
    assert weight.dtype == dense.dtype == torch.float32
    assert_same(weight, layer.weight)
    assert_same(weight, layer.fold().weight)
    parametrize.register_parametrization(layer.network.W, "g1", nn.Identity())
    assert_same(weight, layer.weight)
    assert not any(name.endswith("weight") for name in layer.state_dict())


def test_an_error_inside_is_not_taken_for_a_layer_without_weight() -> None:
    layer = Linear(8, 5, family="mpo", bond=2)
    del layer.network.W.g1
    with pytest.raises(RuntimeError) as error:
        _ = layer.weight
    assert str(error.value) == "the weight of Linear cannot be built: 'Module' object has no attribute 'g1'"


@pytest.mark.parametrize("family", ["adtn", "quanta", "ntt"])
@pytest.mark.parametrize("has_run", [False, True])
def test_copies_and_pickles(family: str, has_run: bool) -> None:
    layer, x = Linear(8, 8, family=family), torch.randn(3, 8)
    if has_run and family != "ntt":
        assert layer.weight.shape == (8, 8)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False))
    for other in copies:
        assert torch.equal(other(x), layer(x))
        if family != "ntt":
            assert torch.equal(other.weight, layer.weight)


def test_a_weight_follows_its_layer_to_another_type() -> None:
    layer = Linear(8, 5, family="adtn", layers=2)
    before = layer.weight
    layer.double()
    assert layer.weight.dtype == torch.float64
    torch.testing.assert_close(layer.weight.float(), before)
    twice = {name: 2 * p for name, p in layer.named_parameters()}
    x = torch.randn(3, 8, **DOUBLE)
    assert not torch.allclose(functional_call(layer, twice, (x,)), layer(x))


def test_a_layer_on_meta_is_filled_later() -> None:
    layer = Linear(8, 5, family="adtn", layers=2, device="meta", dtype=torch.float64)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    x = torch.randn(3, 8, **DOUBLE)
    assert_same(layer(x), dense_linear(layer, x))
    with torch.device("meta"):
        assert Conv2d(3, 4, 3).weight.is_meta


def test_a_bias_starts_as_that_of_pytorch() -> None:
    layer = Conv2d(40, 400, 3, groups=4, family="cp")
    assert layer.bias is not None
    bound = (10 * 9) ** -0.5
    assert 0.95 * bound < layer.bias.abs().max() <= bound
    before = layer.bias.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.bias, before)


@pytest.mark.parametrize("bias", [True, False])
def test_to_dense_is_an_ordinary_layer(bias: bool) -> None:
    linear = Linear(13, 6, bias, **DOUBLE).eval()
    conv = Conv2d(4, 6, 3, 2, 1, 1, 2, bias, "reflect", None, torch.float64)
    for layer, kind, x in ((linear, nn.Linear, (2, 13)), (conv, nn.Conv2d, (2, 4, 5, 6))):
        dense = layer.to_dense()
        assert type(dense) is kind
        assert dense.training is layer.training
        assert dense.weight.is_contiguous()
        assert all(p.dtype == torch.float64 and p.is_leaf and p.requires_grad for p in dense.parameters())
        assert_same(dense(torch.ones(x, **DOUBLE)), layer(torch.ones(x, **DOUBLE)))
        assert len(list(dense.parameters())) == 1 + bias


@pytest.mark.parametrize(
    "dense",
    [
        nn.Linear(6, 4, bias=False, dtype=torch.float64),
        nn.Conv1d(4, 6, 3, padding="same", device="meta"),
        nn.Conv2d(4, 6, (3, 2), 2, (1, 0), 2, 2, padding_mode="circular").eval(),
        nn.Conv3d(4, 6, 2, dtype=torch.float64),
        nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, dtype=torch.float64),
        nn.ConvTranspose2d(4, 6, (3, 2), 2, (1, 0), groups=2, bias=False).eval(),
        nn.ConvTranspose3d(4, 6, 2, device="meta"),
    ],
)
def test_like_takes_everything_from_an_ordinary_layer(dense: Any) -> None:
    layer = getattr(tngraph.layers, type(dense).__name__).like(dense)
    again = layer.to_dense()
    assert again.extra_repr() == dense.extra_repr()
    assert again.weight.shape == dense.weight.shape
    assert (again.weight.dtype, again.weight.device) == (dense.weight.dtype, dense.weight.device)
    assert (again.bias is None) == (dense.bias is None)
    assert layer.training == dense.training


@pytest.mark.parametrize("name", ["padded", "strided", "transposed"])
def test_torch_compile_and_export(name: str) -> None:
    build, shape, _ = LAYERS[name]
    layer = build()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    program = torch.export.export(layer, (torch.randn(shape),), dynamic_shapes=({0: Dim.DYNAMIC},)).module()
    for batch in (3, 9):
        x = torch.randn(batch, *shape[1:])
        for run in (compiled, program):
            torch.testing.assert_close(run(x), layer(x), rtol=1e-4, atol=1e-5)


def test_what_a_layer_says_of_itself() -> None:
    layer = Linear(784, 256, family="mpo", modes=((4, 7, 7, 4), (4, 4, 4, 4)), bond=4)
    assert layer.extra_repr() == (
        "in_features=784, out_features=256, bias=True, family=mpo(bond=4), modes=4·7·7·4 -> 4·4·4·4\n"
        "params=1,280 of 200,960 (157.0x), MAC=78848*batch + 14336 where batch ≥ 2, in one of 2 regimes"
    )
    assert layer.at(batch=1).extra_repr().endswith("(157.0x), MAC=82944*batch + 7168")
    conv = Conv2d(3, 6, 3, padding="same", padding_mode="circular", bias=False, rank=3)
    assert conv.extra_repr() == (
        "3, 6, kernel_size=(3, 3), stride=(1, 1), padding='same', padding_mode='circular', bias=False, "
        "family=cp(rank=3), modes=3·1 -> 3·2\n"
        "params=54 of 162 (3.0x), MAC=45*batch*height*width + 9*batch*(height + 2)*(width + 2)"
    )
    up = ConvTranspose1d(8, 4, 4, 2, 1, rank=2, sizes={"batch": 4, "length": 16})
    assert up.extra_repr() == (
        "8, 4, kernel_size=(4,), stride=(2,), padding=(1,), bias=True, family=cp(rank=2), modes=4·2 -> 2·2\n"
        "params=32 of 132 (4.1x), MAC=48*batch*length"
    )


# ------------------------------------------------------------------------------------------- replacing


def small_net() -> nn.Sequential:
    tied = nn.Linear(6, 6)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Flatten(2),
        nn.Sequential(nn.Linear(16, 6), tied, nn.ReLU(), tied),
        nn.MultiheadAttention(6, 2),
    )


def test_replace_takes_every_ordinary_layer() -> None:
    net = small_net().double().eval()
    table = replace(net, "mpo", bond=2, sites=2)
    assert [(row.names, row.dense_params, row.params) for row in table] == [
        (("0",), 168, 6 + 44),
        (("2.0",), 102, 6 + 40),
        (("2.1", "2.3"), 42, 6 + 26),
    ]
    assert (len(table), table[2].name) == (3, "2.1 = 2.3")
    assert net[2][1] is net[2][3]
    assert not net[2][1].training
    assert type(net[3].out_proj).__name__ == "NonDynamicallyQuantizableLinear"
    assert net[:3](torch.randn(2, 3, 4, 4, **DOUBLE)).shape == (2, 6, 6)


def test_replace_leaves_alone_what_it_is_told_to() -> None:
    net = small_net()
    assert [row.name for row in replace(net, "btt", skip=("0", "2.0"))] == ["2.1 = 2.3"]
    assert [type(net[0]), type(net[2][0])] == [nn.Conv2d, nn.Linear]
    assert [row.name for row in replace(small_net(), "cp", skip="2")] == ["0"]
    assert [row.name for row in replace(small_net(), "cp", skip="2.[13]")] == ["0", "2.0"]


class Language(nn.Module):
    """A small transformer whose head is tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 64, batch_first=True), 2)
        self.head = nn.Linear(16, 100, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)))


def distinct_params(model: nn.Module) -> int:
    return sum({id(p): p.numel() for p in model.parameters() if not is_lazy(p)}.values())


def test_a_tied_head_stays_tied_and_every_tensor_counts_once() -> None:
    model = Language()
    before = distinct_params(model)
    report = replace(model, "mpo", bond=2)
    assert model.head.weight is model.embed.weight
    assert (report.dense_params, report.params) == (before, distinct_params(model))
    assert report.dense_params - report.params == sum(row.dense_params - row.params for row in report)
    assert (
        str(report)
        == """\
replaced                  params    now
encoder.layers.0.linear1   1,088    192  mpo(bond=2), 4·4 -> 8·8
encoder.layers.0.linear2   1,040    144  mpo(bond=2), 8·8 -> 4·4
encoder.layers.1.linear1   1,088    192  mpo(bond=2), 4·4 -> 8·8
encoder.layers.1.linear2   1,040    144  mpo(bond=2), 8·8 -> 4·4
whole model                8,160  4,576
left as they are
  embed: an Embedding looks up rows of its weight, and no layer of cores does
  encoder.layers.0.self_attn, encoder.layers.1.self_attn: there is no
      MultiheadAttention of cores
  encoder.layers.0.self_attn.out_proj, encoder.layers.1.self_attn.out_proj: its
      MultiheadAttention reads its weight and never calls it
  head: it shares its weight with embed"""
    )
    model(torch.randint(0, 100, (2, 5))).sum().backward()


def test_each_pattern_has_a_family_and_options_of_its_own() -> None:
    model = Language()
    rules = {"encoder.layers.0": {"family": "cp", "rank": 2}, "*.linear1": tg.families.mpo, "head": None}
    report = replace(model, rules, sizes={"batch": 10})
    assert [(row.name, row.recipe.called) for row in report] == [
        ("encoder.layers.0.linear1", "cp(rank=2)"),
        ("encoder.layers.0.linear2", "cp(rank=2)"),
        ("encoder.layers.1.linear1", "mpo"),
    ]
    reasons = {layer.name: layer.reason for layer in report.passed_over}
    assert reasons["encoder.layers.1.linear2"] == "no pattern matches it"
    assert reasons["head"] == "'head' says so"
    assert model.encoder.layers[0].linear1.planned == {"batch": 10}


class Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_what_is_passed_over_is_told_with_its_reason() -> None:
    hooked, old_norm = nn.Linear(4, 4), nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(old_norm)
    net = nn.Sequential(
        *(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.BatchNorm1d(4), Twice(4, 4), hooked, old_norm),
        *(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.LSTM(4, 4), nn.Linear(16, 16), Linear(16, 16)),
    )
    report = replace(net, "kronecker")
    assert [row.name for row in report] == ["8"]
    assert [(layer.name, layer.reason) for layer in report.passed_over] == [
        ("0", "a LazyLinear has no sizes yet: run a batch through the model first"),
        ("3", "a Twice is a subclass of Linear, and may do more than one"),
        ("4", "it has hooks, which a new layer would lose"),
        ("5", "its weight is computed from other parameters"),
        ("6", "its weight is computed from other parameters"),
        ("7", "there is no LSTM of cores"),
        ("9", "it is built of cores already"),
    ]
    assert report.params == distinct_params(net)


def test_a_lazy_model_is_replaced_once_it_has_run() -> None:
    net = nn.Sequential(nn.LazyConv2d(16, 3), nn.Flatten(), nn.LazyLinear(8))
    net(torch.randn(1, 8, 4, 4))
    assert [row.name for row in replace(net, "mpo")] == ["0", "2"]
    assert net(torch.randn(2, 8, 4, 4)).shape == (2, 8)


def test_a_module_at_two_places_stays_one_under_a_pattern_for_one_of_them() -> None:
    net = small_net()
    assert replace(net, {"2.3": "kronecker"})[0].names == ("2.1", "2.3")
    assert net[2][1] is net[2][3]


GROWING: list[tuple[Callable[[], object], str]] = [
    (
        lambda: Linear(64, 10, family="btt", rank=2),
        "family=btt(rank=2), modes=8·8 -> 5·2 has 810 params, and the dense layer 650\n"
        "  a lower rank, other modes or another family have fewer",
    ),
    (
        lambda: Generated((10, 64), "btt", rank=2),
        "family=btt(rank=2), modes=8·8 -> 5·2 has 800 params, and the dense layer 640\n"
        "  a lower rank, other modes or another family have fewer",
    ),
    (
        lambda: replace(nn.Sequential(nn.Linear(64, 10)), "btt", rank=2),
        "0: family=btt(rank=2), modes=8·8 -> 5·2 has 810 params, and the dense layer 650\n"
        "  a lower rank, other modes or another family have fewer",
    ),
]


@pytest.mark.parametrize(("build", "text"), GROWING)
def test_a_layer_larger_than_the_dense_one_is_told(build: Callable[[], object], text: str) -> None:
    with pytest.warns(tg.GrowthWarning) as told:
        build()
    assert [str(warning.message) for warning in told] == [text]
    assert told[0].filename == __file__


@pytest.mark.filterwarnings("error::tngraph.GrowthWarning")
def test_a_core_of_many_legs_has_modes_that_keep_it_small() -> None:
    """By hand: Tucker-2 of a convolution is 512·32 + 32·32·9 + 32·512, and a bias."""
    conv = Conv2d.like(nn.Conv2d(512, 512, 3, device="meta"), "tucker", rank=32)
    assert distinct_params(conv) == 512 * 32 + 32 * 32 * 9 + 32 * 512 + 512
    linear = Linear(4096, 11008, family="tucker", rank=16, device="meta")
    assert linear.recipe.rows == (64, 64)
    assert linear.recipe.columns == (128, 86)
    assert distinct_params(linear) == 16**4 + 16 * (64 + 64 + 128 + 86) + 11008
    few = Linear(512, 512, family="tucker", rank=32, bias=False, device="meta")
    assert distinct_params(few) == 512 * 32 + 32 * 32 + 32 * 512


def test_replace_replaces_all_or_nothing() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3))
    with pytest.raises(tg.NetworkError) as error:
        replace(net, "btt")
    assert str(error.value) == (
        "1: btt has no place for the window of a convolution\n"
        "  leave out the third group; or leave it alone: skip=('1',)"
    )
    assert type(net[0]) is nn.Linear


# ------------------------------------------------------------------------------------------- errors


def assign(value: object) -> None:
    Linear(6, 4, family="mpo").weight = value


ERRORS: list[tuple[Callable[[], object], type[Exception], str]] = [
    *(
        (
            lambda value=value: assign(value),
            tg.NetworkError,
            "the weight of Linear is built of cores, and takes no value\n"
            "  change the cores, or put layer.to_dense() in the place of the layer",
        )
        for value in (nn.Parameter(torch.zeros(4, 6)), torch.zeros(4, 6), None)
    ),
    (
        lambda: Linear(10, 6, family="mpoo"),
        tg.NetworkError,
        "there is no family 'mpoo'\n  did you mean 'mpo'?",
    ),
    (
        lambda: Linear(10, 6, function="relu"),
        tg.NetworkError,
        "mpo has no option 'function'\n  it takes bond",
    ),
    (
        lambda: Conv2d(10, 6, 3, ranks=2),
        tg.NetworkError,
        "cp has no option 'ranks'\n  did you mean 'rank'?",
    ),
    (
        lambda: Linear(10, 6, modes=((3, 3), (2, 3))),
        tg.SizeError,
        "the rows (3, 3) multiply to 9, and there are 10 features\n"
        "  modes are positive, and their product is the number of features or more: the rest is padded",
    ),
    (
        lambda: Linear(10, 6, family="adtn", sites=3),
        tg.SizeError,
        "adtn has 4 sites for a weight of shape (6, 10), and not 3\n"
        "  leave out sites, or give the modes themselves: modes=((4, 7), (4, 4))",
    ),
    (lambda: Linear(0, 6), tg.SizeError, "in_features is 0\n  it is an integer from 1"),
    (lambda: Linear(4, 6.5), tg.SizeError, "out_features is 6.5\n  it is an integer from 1"),  # type: ignore[arg-type]
    (
        lambda: Conv2d(3, 6, (3, 3, 3)),
        tg.SizeError,
        "kernel_size is (3, 3, 3)\n  it is one number or 2, each 1 or more",
    ),
    (lambda: Conv2d(3, 6, 3, groups=2), tg.SizeError, "in_channels is 3, which does not divide into 2 groups"),
    (
        lambda: Conv2d(3, 6, 3, 2, "same"),
        tg.SizeError,
        "padding='same' keeps the size, and stride is (2, 2)\n  give padding as numbers",
    ),
    (
        lambda: Conv2d(3, 6, 3, padding="sam"),  # type: ignore[arg-type]
        tg.SizeError,
        "padding is 'sam'\n  it is 'same', 'valid', or numbers",
    ),
    (
        lambda: Conv2d(3, 6, 3, padding_mode="zero"),  # type: ignore[arg-type]
        tg.SizeError,
        "padding_mode is 'zero'\n  it is one of zeros, circular, reflect, replicate",
    ),
    (
        lambda: ConvTranspose2d(3, 6, 3, dilation=(1, 2)),
        tg.SizeError,
        "dilation is (1, 2)\n  a transposed convolution of cores has a dilation of 1",
    ),
    (
        lambda: ConvTranspose2d(3, 6, 3, 2, output_padding=(0, 2)),
        tg.SizeError,
        "output_padding is (0, 2), and stride is (2, 2)\n  give less than the stride",
    ),
    (
        lambda: ConvTranspose2d(3, 6, 3, padding_mode="circular"),
        tg.SizeError,
        "padding_mode is 'circular'\n  a transposed convolution has 'zeros'",
    ),
    (
        lambda: ConvTranspose1d(3, 6, 3)(torch.randn(3, 9), output_size=(12,)),
        tg.SizeError,
        "output_size is (12,), and ConvTranspose1d has one size of output for each input\n"
        "  give output_padding when the layer is made",
    ),
    (
        lambda: ConvTranspose1d(4, 4, 3, family="ntt"),
        tg.NetworkError,
        "ntt has no dense weight: it is not linear in its input\n  a transposed convolution is for the other families",
    ),
    (
        lambda: tg.families.cp(8, 4, 3, dilation=2, transposed=True, rank=2),
        tg.NetworkError,
        "dilation is 2\n  a transposed convolution of cores has a dilation of 1",
    ),
    (
        lambda: tg.families.cp(8, 4, transposed=True, rank=2),
        tg.NetworkError,
        "a transposed convolution has a window\n  give the sizes of its axes: kernel=(3, 3)",
    ),
    (
        lambda: tg.families.cp(8, 4, 3, output_padding=1, rank=2),
        tg.NetworkError,
        "output_padding is 1\n  it is for a transposed convolution: transposed=True",
    ),
    (
        lambda: Linear(10, 6)(torch.randn(3, 9)),
        tg.SizeError,
        "the input has shape (3, 9), and Linear takes (*, 10)",
    ),
    (
        lambda: Conv2d(3, 6, 3)(torch.randn(3, 9)),
        tg.SizeError,
        "the input has shape (3, 9), and Conv2d takes (batch, 3, height, width) or (3, height, width)",
    ),
    (
        lambda: Generated((1, 2, 3, 4, 5, 6)),
        tg.SizeError,
        "a weight of shape (1, 2, 3, 4, 5, 6) has 6 axes\n  it has 1 to 5: (out, in, *kernel) or (out,)",
    ),
    (
        lambda: replace(nn.Linear(3, 3), "mpo"),
        tg.NetworkError,
        "the model is a Linear itself, with nothing around it\n  use Linear.like(model, family)",
    ),
    (
        lambda: replace(small_net(), "mpo", skip=("2.5",)),
        tg.NetworkError,
        "the pattern '2.5' matches no module\n  did you mean '2.3'?",
    ),
    (
        lambda: replace(small_net(), {"encoder.*": "mpo"}),
        tg.NetworkError,
        "the pattern 'encoder.*' matches no module\n  there are: 0, 2.0, 2.1, 2.3, 3, 3.out_proj",
    ),
    (
        lambda: replace(small_net(), {"*": "mpo", "2.0": None}),
        tg.NetworkError,
        "the pattern '2.0' comes too late: '*' decides about all of its layers\n"
        "  the first pattern that matches decides: put it in front",
    ),
    (
        lambda: replace(Language(), {"head": "mpo"}),
        tg.NetworkError,
        "no layer that the pattern 'head' matches can be replaced\n  head: it shares its weight with embed",
    ),
    (
        lambda: replace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {"1": "mpo"}),
        tg.NetworkError,
        "no layer that the pattern '1' matches can be replaced\n  layers are: 0",
    ),
    (
        lambda: replace(nn.LazyLinear(4), "mpo"),
        tg.NetworkError,
        "no layer that the pattern '*' matches can be replaced\n"
        "  the model: a LazyLinear has no sizes yet: run a batch through the model first",
    ),
    (
        lambda: replace(small_net(), {"2.1": "mpo", "2.3": None}),
        tg.NetworkError,
        "2.1 and 2.3 are one module, and '2.1' and '2.3' decide about it\n  let one pattern match both names",
    ),
    (
        lambda: replace(small_net(), {"2": {"bond": 8}}),
        tg.NetworkError,
        "the pattern '2' says {'bond': 8}, which names no family\n"
        "  give a family, dict(family='mpo', bond=8), or None to leave its layers alone",
    ),
    (
        lambda: replace(small_net(), {"2": "mpoo"}),
        tg.NetworkError,
        "there is no family 'mpoo'\n  did you mean 'mpo'?",
    ),
    (
        lambda: share(small_net(), ("2.0", "1")),
        tg.NetworkError,
        "'1' is no layer with a weight of its own\n  such layers are: 0, 2.0, 2.1, 3.out_proj",
    ),
    (
        lambda: share(small_net(), "2.0"),
        tg.NetworkError,
        "names is '2.0'\n  give the names of several layers, each once",
    ),
]


@pytest.mark.parametrize(("do", "kind", "text"), ERRORS, ids=[text.split("\n")[0] for _, _, text in ERRORS])
def test_errors(do: Callable[[], object], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        do()
    assert str(error.value) == text


def test_a_rank_beyond_use_is_told_once() -> None:
    with pytest.warns(tg.RankWarning) as told:
        Linear(4, 4, family="mpo", sites=2, bond=9).build_weight()
    assert [warning.category for warning in told].count(tg.RankWarning) == 1
    assert told[0].filename == __file__
