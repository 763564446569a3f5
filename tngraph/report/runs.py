"""Tables and records of what ran: verifications, calibrations, tunings.

They show values of the room that imports torch. So the command line imports this file only in commands that run
something.
"""

from __future__ import annotations

import sys
from math import isfinite

from rich.console import Console
from rich.text import Text

from tngraph.modules.calibration import Calibration
from tngraph.modules.tuning import Tuning
from tngraph.modules.verification import Verification
from tngraph.report.records import Record
from tngraph.report.terminal import make_table, show_text


def verification_record(result: Verification) -> Record:
    """Return one record per comparison. A value that is not finite becomes None, since JSON has no nan."""
    checks = [
        {"what": c.what, "unit": c.unit, "expected": c.expected, "found": _finite(c.found), "is_equal": c.is_equal}
        for c in result.checks
    ]
    return {"network": result.name, "is_equal": result.is_equal, "sizes": dict(result.sizes), "checks": checks}


def tuning_record(tuning: Tuning) -> Record:
    """Return one record per measured candidate, with None for the dense weight where it was not measured."""
    candidates = [
        {
            "sizes": dict(trial.sizes),
            "candidate": trial.way,
            "predicted_seconds": trial.model,
            "measured_seconds": trial.seconds,
            "dense_seconds": trial.dense,
            "is_kept": trial in tuning.plan.measured,
        }
        for trial in tuning.trials
    ]
    return {"network": tuning.plan.network.name, "mode": tuning.plan.request.mode, "candidates": candidates}


def _finite(value: float | str) -> float | str | None:
    return None if isinstance(value, float) and not isfinite(value) else value


def show_verification(result: Verification) -> None:
    """Print a verification, with one row per comparison."""
    text = str(result)
    if not sys.stdout.isatty():
        return show_text(text)
    table = make_table(("compared", "expected", "found", ""), numbers=(1, 2))
    for check in result.checks:
        *cells, verdict = check.row()
        table.add_row(*map(Text, cells), Text(verdict, "green" if check.is_equal else "bold red"))
    console = Console()
    console.print(text.partition("\n")[0], markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def show_calibration(calibration: Calibration) -> None:
    """Print the numbers of a machine, some of its held-out kernels, and how accurate the model is."""
    if not sys.stdout.isatty():
        return show_text(str(calibration))
    numbers = make_table(("machine", "number", "unit"), numbers=(1,))
    kernels = make_table(("kernel", "measured [us]", "model [us]", "ratio"), numbers=(1, 2, 3))
    for table, rows in ((numbers, calibration.numbers()), (kernels, calibration.sample())):
        for row in rows:
            table.add_row(*map(Text, row))
    console = Console()
    console.print(f"{calibration.device}, {calibration.dtype}", markup=False, highlight=False, soft_wrap=True)
    console.print(numbers, kernels)
    console.print(calibration.verdict(), markup=False, highlight=False, soft_wrap=True)
