"""A fit in plain values for JSON, and its progress on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tngraph.report.records import Record

if TYPE_CHECKING:
    from tngraph.fitting.fits import Fit

WIDTH = 30
"""The characters of a bar."""


def fit_record(fit: Fit) -> Record:
    """Return what a fit says."""
    low_rank = fit.low_rank
    return {
        "method": fit.method,
        "params_elements": fit.params,
        "dense_params_elements": fit.dense_params,
        "weight_error": fit.weight_error,
        "output_error": fit.output_error,
        "is_proven": fit.is_proven,
        "bound": fit.bound,
        "low_rank": None
        if low_rank is None
        else {"rank": low_rank.rank, "params_elements": low_rank.params, "output_error": low_rank.error},
        "input_count": fit.samples,
        "history": list(fit.history),
        "seconds": fit.seconds,
    }


def show_fit_progress(done: int, most: int, error: float) -> None:
    """Show on standard error how far a fit is, in a line that the next one overwrites."""
    full = "█" * (WIDTH * done // max(1, most))
    print(f"\r\033[K{full:░<{WIDTH}} {done} of {most}, error {error:.4g}", end="", file=sys.stderr, flush=True)


def hide_progress() -> None:
    """Clear the line of the progress."""
    print("\r\033[K", end="", file=sys.stderr, flush=True)
