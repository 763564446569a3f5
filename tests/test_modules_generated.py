"""Generated weights as parametrisations: nothing full-size is left, PyTorch's own tools work, one serves several."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

import tngraph as tg
from tngraph.language.families import FAMILIES
from tngraph.layers import Generated, share

pytestmark = pytest.mark.filterwarnings("ignore::tngraph.GrowthWarning")  # the layers here are small
OPTIONS: dict[str, dict[str, Any]] = {"graph": {"edges": ((1, 2),)}}
WEIGHTS = [name for name, family in FAMILIES.items() if not family.is_map]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def generate(layer: nn.Module, family: str = "adtn", **options: Any) -> Generated:
    generator = Generated.like(layer.weight, family, **options)
    register_parametrization(layer, "weight", generator)
    return generator


@pytest.mark.parametrize("family", WEIGHTS)
def test_a_generated_weight_trains_its_cores(family: str) -> None:
    layer = nn.Linear(11, 6)
    generator = generate(layer, family, **OPTIONS.get(family, {}))
    assert layer.weight.shape == (6, 11)
    assert count(layer) == 6 + count(generator)
    layer(torch.randn(5, 11)).square().sum().backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("family", WEIGHTS)
def test_a_residual_starts_as_the_layer_it_adapts(family: str) -> None:
    layer = nn.Linear(11, 6)
    layer.weight.requires_grad_(False)
    weight, kept = layer.weight.clone(), layer.weight
    generator = generate(layer, family, residual=True, **OPTIONS.get(family, {}))
    torch.testing.assert_close(layer.weight, weight)
    original = layer.parametrizations.weight.original
    assert original is kept
    assert not original.requires_grad
    layer(torch.randn(5, 11)).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in generator.parameters())
    if family == "quanta":
        assert all(p.grad is not None and p.grad.any() for p in generator.parameters())  # every gate learns at once
    elif family != "tied_ring":
        assert torch.equal(original, weight)
        assert not generator().any()


def test_a_residual_without_a_frozen_weight_trains_both() -> None:
    layer = nn.Linear(8, 8)
    generate(layer, "quanta", residual=True, base=False)
    layer(torch.randn(5, 8)).square().sum().backward()
    assert layer.parametrizations.weight.original.grad.any()
    weight = torch.randn(8, 8)
    layer.weight = weight
    torch.testing.assert_close(layer.weight, weight)


@pytest.mark.parametrize("shape", [(1,), (13,), (10, 3), (6, 4, 3), (6, 4, 3, 3), (5, 3, 2, 3, 2)])
@pytest.mark.parametrize("family", ["adtn", "mpo", "cp", "tree_generator"])
def test_shapes_from_one_to_five_axes(shape: tuple[int, ...], family: str) -> None:
    generator = Generated(shape, family, dtype=torch.float64)
    assert generator().shape == shape
    assert generator().dtype == torch.float64


def test_a_generator_starts_with_the_variance_of_a_linear_layer() -> None:
    for family in ("adtn", "mpo"):
        weights = torch.stack([Generated((64, 48), family)() for _ in range(20)])
        assert 0.7 < weights.var().item() * 3 * 48 < 1.4


def test_a_parametrised_layer_goes_through_what_pytorch_does() -> None:
    layer = nn.Linear(16, 8)
    generate(layer, layers=2)
    weight = layer.weight
    assert {name.split(".")[0] for name in layer.state_dict()} == {"bias", "parametrizations"}
    assert all(p.numel() <= 16 for p in layer.parameters())
    other = nn.Linear(16, 8)
    generate(other, layers=2)
    other.load_state_dict(layer.state_dict())
    for each in (other, copy.deepcopy(layer)):
        assert torch.equal(each.weight, weight)
    with parametrize.cached():
        assert layer.weight is layer.weight
    remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight, weight)


def test_an_adapter_is_taken_off() -> None:
    layer = nn.Linear(16, 8)
    weight = layer.weight.clone()
    generator = generate(layer, residual=True)
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(0.1)
    assert not torch.allclose(layer.weight, weight)
    remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert torch.equal(layer.weight, weight)


def test_training_lowers_a_loss() -> None:
    layer = nn.Linear(16, 8)
    generate(layer, layers=2)
    x, y = torch.randn(64, 16), torch.randn(64, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = (layer(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_reset_draws_anew_and_a_residual_is_zero_again() -> None:
    generator = Generated((8, 8), "mpo", residual=True)
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(1.0)
    assert generator().any()
    generator.reset_parameters()
    assert not generator().any()
    plain = Generated((8, 8), "mpo")
    before = plain().clone()
    plain.reset_parameters()
    assert not torch.equal(plain(), before)


def test_a_map_generates_no_weight() -> None:
    with pytest.raises(tg.NetworkError, match="ntt has no dense weight"):
        Generated((4, 4), "ntt")


def test_what_a_generator_says_of_itself() -> None:
    text = "(6, 4), family=mpo(bond=2), modes=2·2 -> 3·2, residual=True, params=20 of 24"
    assert Generated((6, 4), "mpo", bond=2, residual=True).extra_repr() == text


# ------------------------------------------------------------------------------------------- sharing


def shared_net(**options: Any) -> tuple[nn.Sequential, Generated]:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    return net, share(net, ("2", "4", "0"), **options)


def test_one_generator_serves_several_layers() -> None:
    net, generator = shared_net(family="adtn", layers=2)
    assert generator.recipe.shape == (32 * 64 + 64 * 10 + 8 * 3 * 9,)
    assert count(net) == 8 + 64 + 10 + count(generator)
    cores = [name for name in net.state_dict() if ".g" in name.rpartition("W")[2]]
    assert len(cores) == len(list(generator.parameters()))
    assert all(name.startswith("2.parametrizations.weight.0.generator.") for name in cores)
    vector, start = generator(), 0
    for layer, shape in ((net[2], (64, 32)), (net[4], (10, 64)), (net[0], (8, 3, 3, 3))):
        size, fan_in = torch.Size(shape).numel(), torch.Size(shape[1:]).numel()
        expected = vector[start : start + size].view(shape) * fan_in**-0.5
        torch.testing.assert_close(layer.weight, expected)
        start += size
    net(torch.randn(2, 3, 4, 4)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_it_runs_once_when_cached() -> None:
    net, generator = shared_net()
    runs: list[int] = []
    generator.register_forward_hook(lambda *_: runs.append(1))
    x = torch.randn(2, 3, 4, 4)
    with parametrize.cached():
        y = net(x)
    assert len(runs) == 1
    assert torch.equal(net(x), y)
    assert len(runs) == 4


def test_copies_of_a_sharing_net_share_among_themselves() -> None:
    net, generator = shared_net()
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(twin(x), net(x))
    with torch.no_grad():
        for p in generator.parameters():
            p.mul_(2)
    assert not torch.allclose(twin(x), net(x))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), net(x))
    twin.double()
    assert {layer.weight.dtype for layer in (twin[0], twin[2], twin[4])} == {torch.float64}


def test_shared_weights_become_ordinary_again() -> None:
    net, _ = shared_net()
    x = torch.randn(2, 3, 4, 4)
    y = net(x)
    for layer in (net[2], net[4], net[0]):
        remove_parametrizations(layer, "weight")
    torch.testing.assert_close(net(x), y)
    assert list(net.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight", "4.bias", "4.weight"]


def test_shared_weights_have_to_be_alike() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3).double())
    with pytest.raises(tg.SizeError) as error:
        share(net, ("0", "1"))
    assert str(error.value) == (
        "the weights are not alike: 0 on cpu as torch.float32, 1 on cpu as torch.float64\n"
        "  one vector has one device and one type"
    )


def test_a_layer_is_shared_once() -> None:
    net, _ = shared_net()
    with pytest.raises(tg.NetworkError) as error:
        share(net, ("2", "0"))
    assert str(error.value) == "'2' is generated already\n  such layers are: none"


@pytest.mark.slow
def test_the_linear_layers_of_vgg_16_as_one_circuit() -> None:
    net = nn.Sequential(nn.Linear(512, 4096), nn.ReLU(), nn.Linear(4096, 4096))
    generator = share(net, ("0", "2"), layers=2)
    assert generator.recipe.shape == (18_874_368,)
    assert count(generator) == 4 * 12 + 16 * (2 * 24 - 12)
    with parametrize.cached():
        net(torch.randn(2, 512)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
