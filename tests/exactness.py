"""What every plan predicts beside what a run does: ``make exact``.

For every spec, mode and regime, and for plans that memory bounds: FLOPs of a call and of a training step, the bytes
that autograd keeps and those alive at once. Predicted and measured have to be equal to the unit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tngraph as tg
from tngraph.modules.verification import Verification
from tngraph.plans.table import describe_regimes

SPECS = sorted((Path(__file__).parent.parent / "examples" / "specs").glob("*.tn"))
COUNTED = ("forward", "forward and backward", "saved for backward", "peak")
HEADER = ("spec", "plan", "regime", "forward [FLOPs]", "and backward [FLOPs]", "saved [bytes]", "peak [bytes]", "")


def plans(path: Path) -> Iterator[tuple[str, tg.Plan]]:
    """The plans of one spec: every mode at every size, and at one size those of least memory for twice the cost."""
    network = tg.load(path)
    for mode in ("infer", "train", "serve"):
        yield mode, tg.plan(network, mode=mode)
    sizes = dict.fromkeys(network.runtime_sizes(), 6)
    for mode in ("infer", "train"):
        points = tg.front(network, sizes, mode=mode).points
        yield f"{mode}, little memory", [point.plan for point in points if point.cost <= 2 * points[0].cost][-1]


def rows(path: Path) -> Iterator[tuple[str, ...]]:
    """A row per regime of each plan: what was predicted, and whether it is what was measured."""
    for name, plan in plans(path):
        for where, alone in zip(describe_regimes(plan), plan.each(), strict=True):
            found = {check.what: check for check in verify(alone).checks}
            checks = [found[what] for what in COUNTED if what in found]
            shown = (f"{found[what].expected:,}" if what in found else "-" for what in COUNTED)
            verdict = "equal" if all(check.expected == check.found for check in checks) else "DIFFERS"
            yield path.stem, name, where or "every size", *shown, verdict


def verify(plan: tg.Plan) -> Verification:
    """What a module of a plan does; a difference is in the table, and no error."""
    try:
        return tg.compile(plan).verify()
    except tg.VerificationError as error:
        return error.args[0]


WIDTHS = (14, 20, 16, 15, 20, 13, 12, 7)


def show(row: Sequence[str]) -> None:
    """A row of the table, as soon as it is known."""
    cells = (cell.ljust(w) if k < 3 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, WIDTHS, strict=True)))
    print("  ".join(cells).rstrip(), flush=True)


def main() -> None:
    """Print the table; exit with 1 where anything differs."""
    show(HEADER)
    verdicts = []
    for row in (row for path in SPECS for row in rows(path)):
        show(row)
        verdicts.append(row[-1])
    print(f"\n{len(verdicts)} regimes of plans, {verdicts.count('DIFFERS')} differ")
    sys.exit("DIFFERS" in verdicts)


if __name__ == "__main__":
    main()
