"""What papers state of their layers is what the networks of the families are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from math import prod
from pathlib import Path

import pytest

import tngraph as tg
from examples import papers
from examples.papers import Convolution, Row, count

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"
SHOWN = [row for paper in papers.PAPERS for row in paper.rows]

CONVOLUTIONS = (
    *papers.CONVOLUTIONS,
    Convolution(3, (2, 3), (5, 4), (2, 6, 3), (1, 2), (2, 4), 5, 9),
    Convolution(5, (3, 2), (4, 3), (5, 7, 2), (3, 2), (2, 2), 8, 7),
    Convolution(7, (4, 2, 3), (2, 3, 2), (8, 6, 9), (3, 2, 2), (2, 3, 2), 7, 8),
)
"""A feature map is no smaller than the window here: else fewer positions of the kernel meet it."""


def other_rows() -> Iterator[Row]:
    """The formulas at sizes that the page does not show."""
    yield from (papers.adtn_row(m, *split) for m in (1, 2, 3) for split in ((1, 1), (2, 3), (3, 3), (1, 6), (4, 6)))
    yield from chain.from_iterable(map(papers.tnn_rows, CONVOLUTIONS[2:]))
    yield papers.ntt_row((3, 4), (5, 2), (6,))
    yield papers.ntt_row((2, 3, 2, 4), (3, 2, 4, 2), (2, 5, 3))
    yield papers.quanta_row((2, 5))
    yield papers.quanta_row((2, 3, 4, 5))
    yield papers.loretta_row((3, 4, 2), (2, 3), 2)
    yield papers.btt_row((5, 2), (3, 7), 3)
    yield papers.einsum_row((3, 2, 5), (2, 4, 3), 3)
    yield papers.einsum_row((1, 4, 3), (1, 2, 5), 2)
    yield papers.monarch_row(3, 5, 2, 4)
    yield papers.kronecker_row((2, 3), (4, 5))
    yield papers.low_rank_row(30, 20, 4)
    yield papers.tree_row((5, 3), (2, 4), 6)
    yield papers.tree_row((3, 3, 3, 3), (2, 2, 2, 2), 3)
    yield papers.ring_row((2, 3), (4, 3), (3, 5))
    yield papers.block_term_row((3, 4, 2), (2, 3, 4), 2, 2)
    yield papers.mera_row(2, 2)
    yield papers.mera_row(16, 16)


@pytest.mark.parametrize("row", [*SHOWN, *other_rows()], ids=lambda row: f"{row.layer}: {row.call.text}")
def test_a_row_is_what_the_paper_says(row: Row) -> None:
    found = count(row)
    assert found.params == row.params
    assert found.dense == row.dense
    assert papers.agrees(row.macs, found.macs), (row.macs, found.macs)
    assert papers.is_equal(row)


@pytest.mark.parametrize("total", papers.TOTALS, ids=lambda total: total.name)
def test_layers_together_are_what_the_paper_says(total: papers.Total) -> None:
    assert papers.count_total(total) == (total.params, total.dense)


@pytest.mark.parametrize("row", SHOWN, ids=lambda row: f"{row.layer}: {row.call.text}")
def test_no_order_of_a_paper_is_cheaper_than_the_planners(row: Row) -> None:
    network, sizes = row.call.network(), dict(row.sizes)
    if row.order is not None:
        pinned = tg.plan(network, sizes, order=row.order(network))
        assert tg.plan(network, sizes).at().cost <= pinned.at().cost


def test_a_sweep_costs_more_than_seven_of_the_ten_dense_layers_and_the_planner_more_than_two() -> None:
    found = [count(row) for row in papers.MPO.rows if row.replaces is None]
    assert len(found) == 10
    assert sum(c.macs is not None and c.macs > c.dense for c in found) == 7
    assert sum(c.planned > c.dense for c in found) == 2


def test_the_formulas_give_the_numbers_that_are_stated() -> None:
    assert [papers.adtn_row(1, rows, 12).params for rows in (9, 12)] == [row.params for row in papers.VGG] == [200, 224]
    formula = papers.quanta_row((16, 8, 8, 4))
    assert (formula.params, formula.macs) == (papers.QUANTA.params, papers.QUANTA.macs) == (43_008, 1_835_008)
    for row in papers.MPO.rows:
        sites, bond = len(row.call.rows), dict(row.call.options)["bond"]
        bonds = (1, *(bond,) * (sites - 1), 1)
        assert papers.count_chain(row.call.rows, row.call.columns, bonds) == row.params
        assert papers.agrees(row.macs, papers.count_sweep(row.call.rows, row.call.columns, bonds))


@pytest.mark.parametrize("c", CONVOLUTIONS, ids=str)
def test_a_dense_convolution_costs_its_weights_at_every_position(c: Convolution) -> None:
    weights = c.k**2 * prod(c.s) * prod(c.t)
    for row in (*papers.plain_rows(c), *papers.reshaped_rows(c)):
        dense = tg.plan(row.call.network(), dict(row.sizes)).dense
        assert dense is not None
        assert dense.params == weights
        assert dense.macs.subs(dict.fromkeys(dense.macs.free_symbols, 1)) == weights
        assert len(dense.macs.free_symbols) == 3  # batch, height, width


def test_without_padding_what_comes_before_the_window_runs_at_every_input_position() -> None:
    """The formulas count all steps at the same XY positions, which holds where the map keeps its size."""
    s, t, r, height, width = 6, 5, 4, 10, 9
    inside = (height - 2) * (width - 2)
    sizes = {"batch": 1, "height": height, "width": width}
    cp = tg.families.cp((s,), (t,), (3, 3), rank=r)
    swept = tg.plan(cp, sizes, order=papers.sweep(cp)).at().macs
    assert swept == s * r * height * width + (9 * r + r * t) * inside
    svd = tg.families.low_rank((s,), (t,), (3, 3), rank=r)
    swept = tg.plan(svd, sizes, order=papers.sweep(svd)).at().macs
    assert swept == 3 * s * r * (height - 2) * width + 3 * r * t * inside


def test_a_step_that_sums_over_a_rank_of_one_is_counted_as_elementwise() -> None:
    """A formula counts it among its multiply-adds."""
    c = Convolution(3, (4, 2), (3, 2), (2, 2), (3, 2), (2, 1), 5, 6)
    row = papers.reshaped_rows(c)[1]
    network = row.call.network()
    found = tg.plan(network, dict(row.sizes), order=papers.sweep(network)).at()
    assert found.macs + found.elementwise == row.macs
    assert found.elementwise == 3 * 2 * 1 * 5 * 6


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("split", [(4, 4), (4, 5)], ids=str)
def test_only_full_gates_of_a_decoder_have_multiply_adds(m: int, split: tuple[int, int]) -> None:
    legs = sum(split)
    row = papers.adtn_row(m, *split)
    network = row.call.network()
    plan = tg.plan(network, dict(row.sizes), order=papers.decode(network))
    steps = [op for op in plan.regimes[0].operations if op.kind == "contract"]
    assert len(steps) == m * (legs - 1) - legs // 2 + 1  # and the one that applies the weight
    assert all(prod(leg.size for leg in op.legs) == 2**legs for op in steps[:-1])


VERIFIED = (
    papers.adtn_row(1, 3, 4),
    papers.adtn_row(2, 3, 3),
    *papers.plain_rows(CONVOLUTIONS[2]),
    *papers.reshaped_rows(CONVOLUTIONS[2]),
    papers.LENET[2],
    papers.ntt_row((3, 4), (5, 2), (6,)),
    papers.quanta_row((3, 4, 5)),
    papers.btt_row((3, 4), (5, 6), 2),
    papers.einsum_row((2, 3, 4), (5, 3, 2), 4),
    papers.monarch_row(4, 6, 5, 3),
)


@pytest.mark.parametrize("row", VERIFIED, ids=lambda row: row.layer)
def test_the_papers_order_runs_as_counted(row: Row) -> None:
    network = row.call.network()
    order = row.order(network) if row.order else None
    result = tg.compile(tg.plan(network, dict(row.sizes), order=order)).verify()
    assert result.is_equal, str(result)


@pytest.mark.parametrize(
    ("stated", "found", "wanted"),
    [
        (95_488, 95_488, True),
        (95_488, 95_489, False),
        ("1.44e6", 1_441_792, True),
        ("1.44e6", 1_446_000, False),
        ("1.481e10", 14_807_420_928, True),
        ("1.480e10", 14_807_420_928, False),
        (None, 7, True),
        (7, None, False),
    ],
)
def test_a_rounded_number_agrees_to_its_digits(stated: papers.Stated, found: int | None, wanted: bool) -> None:
    assert papers.agrees(stated, found) is wanted


@pytest.mark.parametrize("change", [{"params": 1_025}, {"dense": 1}, {"macs": 95_487}], ids=str)
def test_a_row_that_differs_is_found_out(change: dict[str, int]) -> None:
    assert papers.is_equal(papers.FC2[0])
    assert not papers.is_equal(replace(papers.FC2[0], **change))


def test_a_network_that_is_no_linear_map_needs_what_it_replaces() -> None:
    with pytest.raises(ValueError, match="say which layer it replaces"):
        count(replace(papers.NTT.rows[1], replaces=None))


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    papers.main()
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    block = re.search(r"^\$ make papers\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert block is not None
    assert block[1].splitlines() == printed
