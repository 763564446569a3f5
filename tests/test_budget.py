"""Ranks for a budget: the largest that fits, by exact counts; and the published rule that misses by three times."""

from __future__ import annotations

from math import ceil

import pytest

import tngraph as tg

FC2 = (4, 7, 7, 4), (4, 4, 4, 4)
families = tg.families
pytestmark = pytest.mark.filterwarnings(
    "ignore::tngraph.RankWarning"
)  # the largest rank fills some bonds and not others


def params(network: tg.Network) -> int:
    return tg.plan(network).at().params


@pytest.mark.parametrize("budget", [88, 500, 1024, 1535, 60_000])
@pytest.mark.parametrize("family", [families.mpo, families.ring, families.plain_tt, families.cp, families.ntt])
def test_the_largest_rank_within_a_number_of_params(family, budget):
    choice = tg.choose_rank(family, *FC2, params=budget)
    assert choice.params == params(family(*FC2, **{choice.option: choice.rank})) <= budget
    assert params(family(*FC2, **{choice.option: choice.rank + 1})) > budget


def test_no_rank_is_larger_than_is_of_use():
    choice = tg.choose_rank(families.mpo, *FC2, params=10**7)
    assert choice.rank == 448
    assert (
        params(families.mpo(*FC2, bond=448))
        == params(families.mpo(*FC2, bond=500))
        > params(families.mpo(*FC2, bond=447))
    )
    assert str(choice) == "mpo(bond=448): 401,920 params for 200,704: kept 200.26%"


def test_a_rate_is_reported_beside_what_it_comes_to():
    choice = tg.choose_rank(families.cp, 64, 64, (3, 3), compression=0.1)
    assert str(choice) == "cp(rank=26): 3,562 params for 36,864: asked 10.00%, kept 9.66%"
    assert choice.actual <= 0.1 < 27 * (64 + 9 + 64) / 36_864
    grouped = tg.choose_rank(families.cp, 16, 16, (3, 3), compression=0.5, groups=4)
    assert grouped.dense == 64 * 16 * 9


def test_a_rate_is_taken_as_it_is_written():
    """In floating point 0.29 · 100 is less than 29, which rank 1 needs."""
    assert tg.choose_rank(families.low_rank, 4, 25, compression=0.29).params == 29
    with pytest.raises(tg.PlanError, match="the compression is nan"):
        tg.choose_rank(families.cp, 4, 4, compression=float("nan"))


def test_a_rank_is_as_large_as_a_budget_allows():
    choice = tg.choose_rank(families.ring, (4, 4), (4, 4), params=10**15)
    assert 2 * 16 * choice.rank**2 <= 10**15 < 2 * 16 * (choice.rank + 1) ** 2


def test_a_budget_of_flops_is_met_by_the_planned_order():
    choice = tg.choose_rank(families.mpo, *FC2, flops=2_000_000, sizes={"batch": 10})
    plans = [tg.plan(families.mpo(*FC2, bond=choice.rank + k), {"batch": 10}) for k in (0, 1)]
    assert choice.flops == plans[0].at().flops <= 2_000_000 < plans[1].at().flops


def test_the_rank_that_is_free_is_chosen():
    choice = tg.choose_rank(families.block_term, (4, 4), (4, 4), params=200, blocks=2)
    assert (choice.option, choice.rank) == ("rank", 2)
    other = tg.choose_rank(families.block_term, (4, 4), (4, 4), params=200, rank=2)
    assert (other.option, other.rank) == ("blocks", 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tg.choose_rank(families.mpo, *FC2), "a rank is chosen for one budget\n  give one of"),
        (lambda: tg.choose_rank(families.mpo, *FC2, params=1, flops=1), "a rank is chosen for one budget"),
        (lambda: tg.choose_rank(families.mpo, *FC2, params=10), "mpo at rank 1 has 88 params, and the budget is 10\n"),
        (lambda: tg.choose_rank(families.mpo, *FC2, params=99, bond=2), "mpo has no rank to choose: bond are given"),
        (lambda: tg.choose_rank(families.kronecker, *FC2, params=99), "kronecker has no rank to choose: it has none"),
        (lambda: tg.choose_rank(families.adtn, *FC2, params=99), "adtn has no rank to choose: it has none"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_met(call, message):
    with pytest.raises(tg.PlanError) as caught:
        call()
    assert str(caught.value).startswith(message)


MODES = {16: (4, 4), 32: (4, 8), 64: (8, 8)}
RESNET_32 = (
    *[(3, 16, 16)] * 10, (3, 16, 32), *[(3, 32, 32)] * 9, (3, 32, 64), *[(3, 64, 64)] * 9,
    (1, 16, 16), (1, 16, 32), (1, 32, 64),
)  # fmt: skip
"""Window, channels in and out of the convolutions that are compressed, those of the shortcuts last."""


@pytest.mark.parametrize(
    ("nominal", "kept", "ours"), [(0.02, 7.2, 1.9), (0.05, 17.2, 4.8), (0.1, 34.1, 9.6), (0.2, 67.7, 19.6)]
)
def test_the_published_rule_for_rcp_keeps_three_times_what_it_says(nominal: float, kept: float, ours: float):
    """Su et al., arXiv 1805.10352, count 2k + Σs + Σt params per rank; there are k² + Σ s·t."""
    dense = sum(k * k * s * t for k, s, t in RESNET_32)
    assert dense == 463_616
    published = exact = 0
    for k, s, t in RESNET_32:
        rank = ceil(nominal * k * k * s * t / (2 * k + sum(MODES[s]) + sum(MODES[t])))
        network = families.rcp(MODES[s], MODES[t], (k, k), rank=1)
        published += rank * params(network)
        least = params(network) / (k * k * s * t)
        exact += tg.choose_rank(families.rcp, MODES[s], MODES[t], (k, k), compression=max(nominal, least)).params
    assert round(100 * published / dense, 1) == kept
    assert round(100 * exact / dense, 1) == ours


def test_a_bias_is_no_part_of_the_weight():
    assert tg.choose_rank("low_rank", (8,), (8,), params=64, bias=True).params == 64
    with pytest.raises(tg.PlanError, match="the modes \\('n', 'n'\\) are not all numbers"):
        tg.choose_rank("mpo", ("n", "n"), ("n", "n"), params=64)
