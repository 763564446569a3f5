"""The table of ``make exact`` has no row that differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exactness import SPECS, rows

SLOW = {"vgg_fc_adtn", "quanta_adapter", "fc_ntt"}


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in SLOW), id=p.stem) for p in SPECS]
)
def test_what_is_predicted_is_what_is_measured(path: Path):
    found = list(rows(path))
    assert len(found) >= 5
    assert [row for row in found if row[-1] != "equal"] == []
