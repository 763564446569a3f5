"""Search of modes: the order and the sizes in which a weight was made are found again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tngraph as tg
from tngraph.fitting.modes import ModesCandidate, rank_modes, search_modes

pytestmark = pytest.mark.filterwarnings("ignore::tngraph.RankWarning")


def small(candidates: list[ModesCandidate]) -> list[ModesCandidate]:
    return [candidate for candidate in candidates if candidate.params <= 24]


def test_the_modes_of_a_kronecker_product_are_found():
    weight = torch.kron(torch.randn(2, 6), torch.randn(6, 2))
    assert search_modes(weight, sites=[2], bond=1, most_params=24) == ((6, 2), (2, 6))
    best, second, *_ = small(rank_modes(weight, sites=[2], bond=1))
    assert best.error < 1e-6 < second.error


def test_the_metric_decides():
    dense = nn.Linear(12, 12)
    weight = torch.kron(torch.randn(4, 3), torch.randn(3, 4))
    noise = torch.randn(12, 12)
    noise[:, :6] = 0.0
    with torch.no_grad():
        dense.weight.copy_(weight + 10 * noise)
    x = torch.randn(100, 12)
    x[:, 6:] *= 1e-6  # the noise acts on what the inputs hardly show
    candidates = rank_modes(dense, x, sites=[2], bond=1)
    assert {candidate.modes for candidate in candidates} >= {((3, 4), (4, 3)), ((4, 3), (3, 4))}
    assert candidates == sorted(candidates, key=lambda candidate: candidate.error)
    assert small(candidates)[0].error < small(rank_modes(dense, sites=[2], bond=1))[0].error


def test_modes_with_too_many_params_are_left_out():
    weight = torch.randn(12, 12)
    modes = search_modes(weight, sites=[2, 3], bond=2, most_params=60)
    layer = tg.families.mpo.weight(*modes, bond=2)
    assert tg.plan(layer).at().params <= 60
    with pytest.raises(tg.SizeError, match="all modes need more than 3 params"):
        search_modes(weight, sites=[2], bond=2, most_params=3)


def test_convolutions_have_modes_too():
    conv = nn.Conv2d(4, 8, 3, groups=2)
    rows, columns = search_modes(conv, torch.randn(2, 4, 6, 6), "tucker", sites=[1, 2], rank=2)
    assert torch.tensor(rows).prod() == 2
    assert torch.tensor(columns).prod() == 4


def test_what_has_no_modes_to_search_is_refused():
    with pytest.raises(tg.NetworkError, match="modes of ring cannot be searched"):
        search_modes(torch.randn(12, 12), family="ring", sites=[3], bond=2)
    with pytest.raises(tg.SizeError, match="the target is ReLU"):
        search_modes(nn.ReLU())
    with pytest.raises(tg.SizeError, match="the moments are of 11 inputs, and the weight has 12"):
        search_modes(torch.randn(12, 12), tg.Moments.of(torch.randn(5, 11)), sites=[2], bond=1)
