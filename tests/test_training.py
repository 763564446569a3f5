"""Every family trains from its own start on real images, deep generators included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from tngraph.language.families import FAMILIES
from tngraph.layers import Conv2d, Linear

STEPS = 60
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "graph": {"sites": 3, "edges": ((1, 2), (2, 3), (3, 1)), "bond": 3},
    "btt": {"rank": 2},
}
DEEP = [
    ("adtn", {"layers": 2}),
    ("adtn", {"layers": 4}),
    ("adtn", {"layers": 3, "gate": 3, "activation": "gelu"}),
    ("adtn", {"layers": 2, "layout": "staircase", "activation": "tanh"}),
    ("tree_generator", {"bond": 3, "activation": ("leaky_relu", 0.1)}),
    ("mera", {"bond": 3, "activation": "silu"}),
]
DENSE = [(name, OPTIONS.get(name, {})) for name in FAMILIES]
WINDOWED = [(name, options) for name, options in DENSE + DEEP if FAMILIES[name].has_window]


def _train(model: nn.Module) -> list[float]:
    """The losses of a few steps on the digits."""
    digits = load_digits()
    x, y = torch.tensor(digits.images / 8 - 1).float().unsqueeze(1), torch.tensor(digits.target)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for chosen in torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: 25 * STEPS].split(25):
        loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _check(model: nn.Module) -> None:
    started = {name: param.detach().clone() for name, param in model.named_parameters()}
    losses = _train(model)
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert all(not torch.equal(param, started[name]) for name, param in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "options"), DENSE + DEEP[:1] + [pytest.param(*each, marks=pytest.mark.slow) for each in DEEP[1:]]
)
def test_a_family_learns_as_a_linear_layer(name: str, options: Mapping[str, Any]):
    torch.manual_seed(0)
    _check(nn.Sequential(nn.Flatten(), Linear(64, 32, family=name, **options), nn.ReLU(), nn.Linear(32, 10)))


@pytest.mark.filterwarnings("ignore::tngraph.GrowthWarning")  # a deep adtn is more than so small a window
@pytest.mark.parametrize(("name", "options"), WINDOWED)
def test_a_family_learns_as_a_convolution(name: str, options: Mapping[str, Any]):
    torch.manual_seed(0)
    conv = Conv2d(6, 8, 3, padding=1, family=name, **options)
    _check(nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), conv, nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)))
