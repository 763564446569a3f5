"""The results of a run as plain data: a dict per cell (a case, a batch, a pass), and what they come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import geometric_mean
from typing import Any

import tngraph as tg
from tests.bench.cases import Case
from tests.bench.contenders import COMPILED, DENSE, GRAPH, OURS, Field
from tests.bench.measuring import Timing
from tngraph.plans.measured import Measured

Cell = Mapping[str, Any]
PASSES = ("forward", "forward+backward")
FAST_ENOUGH = 0.9
"""A ratio below this is listed."""
LARGE = 10**9
"""From so many FLOPs on a cell counts for the roofline: below, it is the overhead of calls that takes the time."""
NEAR_BEST = 1.15
"""The model's choice is near the best one if it takes at most so many times as long."""
MODEL_FACTOR = 2
"""The model's time is near the measured one if neither is more than so many times the other."""
MUCH_LESS = 4
"""How many times fewer FLOPs than dense make a cell one where a clear gain is expected."""


def write_cell(
    case: Case,
    batch: int,
    is_training: bool,
    field: Field,
    timings: Mapping[str, Timing],
    failed: Mapping[str, str],
    rates: Mapping[str, float],
    itemsize: int,
) -> dict[str, Any]:
    """A cell of the results.

    Args:
        case: what was timed.
        batch: of its input.
        is_training: which pass.
        field: who took part.
        timings: what each took.
        failed: who failed while being timed, with the error.
        rates: of arithmetic and copies, measured in the same turns.
        itemsize: of a number [bytes].
    """
    counts = field.layer.plan.at(**case.sizes(batch))
    flops = counts.training_flops if is_training else counts.flops
    moved = count_bytes(case, batch, is_training, counts.params, itemsize)
    ours = timings[OURS].median
    return {
        "case": case.name,
        "batch": batch,
        "pass": PASSES[is_training],
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "ratios": {name: timing.median / ours for name, timing in timings.items() if name != OURS},
        "omitted": {**field.omitted, **failed},
        "rates": dict(rates),
        "plan_flops": flops,
        "dense_flops": case.dense_flops(batch, is_training),
        "compulsory_bytes": moved,
        "choice": write_choice(field.trials),
        "plan_says_dense": any(each.is_slower_than_dense for each in field.layer.plan.measured),
    }


def add_roofline(cell: Cell, machine: Mapping[str, Any]) -> dict[str, Any]:
    """A cell with its ideal time divided by the compiled layer's, at the best rates and at those of its own turns.

    Args:
        cell: without that, or with that of other rates.
        machine: the best rates that were seen on it.
    """
    ours = cell["timings"][OURS]["median"]
    best, own = (find_ideal(cell, rates) / ours for rates in (machine, cell["rates"]))
    return {**cell, "roofline": best, "roofline_in_turns": own}


def find_ideal(cell: Cell, rates: Mapping[str, Any]) -> float:
    """The larger of the plan's FLOPs at the rate of a large matrix product and its bytes at that of a copy [s]."""
    arithmetic = cell["plan_flops"] / rates["matmul_flops_per_second"]
    return float(max(arithmetic, cell["compulsory_bytes"] / rates["copy_bytes_per_second"]))


def count_bytes(case: Case, batch: int, is_training: bool, params: int, itemsize: int) -> int:
    """What any implementation has to read and write: inputs, params and outputs, in training their gradients too."""
    numbers = batch * (case.in_features + case.out_features) * positions(case) + params
    return (2 if is_training else 1) * numbers * itemsize


def positions(case: Case) -> int:
    """The positions of a feature map."""
    count = 1
    for size in case.image:
        count *= size
    return count


def write_choice(trials: Sequence[Measured]) -> dict[str, float]:
    """What the model of the machine would have run, what it said of it, and the best that was measured [s]."""
    first = trials[0]
    return {"model": first.model, "measured": first.seconds, "best": min(trial.seconds for trial in trials)}


def describe_case(case: Case) -> dict[str, Any]:
    """A case as it stands in the results."""
    return {
        "name": case.name,
        "about": case.about,
        "params": int(tg.plan(case.network, case.sizes(1)).at().params),
        "dense_params": case.dense_params,
    }


# What cells come to.


def is_rival(name: str) -> bool:
    """Whether a contender computes the same as the compiled layer by other code."""
    return name not in (OURS, DENSE, COMPILED, GRAPH)


def rival_ratio(cell: Cell) -> float | None:
    """How many times longer the fastest rival takes than the compiled layer; None if there is none."""
    return min((ratio for name, ratio in cell["ratios"].items() if is_rival(name)), default=None)


def fastest_rival(cell: Cell) -> str | None:
    """Its name."""
    rivals = [name for name in cell["ratios"] if is_rival(name)]
    return min(rivals, key=cell["ratios"].__getitem__, default=None)


def label(cell: Cell) -> str:
    """A cell's name."""
    return f"{cell['case']}, batch {cell['batch']}, {cell['pass']}"


def summarise(cells: Sequence[Cell]) -> dict[str, Any]:
    """What is asked of a run: against the fastest rival, against the roofline, against the dense layer."""
    rivals = {label(cell): ratio for cell in cells if (ratio := rival_ratio(cell)) is not None}
    large = [cell for cell in cells if cell["plan_flops"] > LARGE]
    dense = [cell for cell in cells if DENSE in cell["ratios"]]
    fewer = {label(c): c["ratios"][DENSE] for c in dense if c["plan_flops"] < c["dense_flops"]}
    said = [label(c) for c in dense if label(c) in fewer and c["plan_says_dense"]]
    far_fewer = [c["ratios"][DENSE] for c in dense if c["plan_flops"] * MUCH_LESS < c["dense_flops"]]
    return {
        "fastest_rival": _ratios(rivals),
        "roofline": {
            "cells": len(large),
            "geometric_mean": _mean(cell["roofline"] for cell in large),
            "in_turns": _mean(cell["roofline_in_turns"] for cell in large),
        },
        "dense_with_fewer_flops": {**_ratios(fewer), "said": said},
        "model": _of_model(cells),
        "dense_with_far_fewer_flops": {"cells": len(far_fewer), "geometric_mean": _mean(far_fewer)},
        "contenders": {
            name: {pass_: _of_contender(cells, name, pass_) for pass_ in PASSES} for name in _contenders(cells)
        },
    }


def _ratios(found: Mapping[str, float]) -> dict[str, Any]:
    return {
        "cells": len(found),
        "geometric_mean": _mean(found.values()),
        "minimum": min(found.values(), default=None),
        "slow": {name: ratio for name, ratio in sorted(found.items(), key=lambda pair: pair[1]) if ratio < FAST_ENOUGH},
    }


def _of_model(cells: Sequence[Cell]) -> dict[str, Any]:
    """How often the model's choice is near the best that was measured, and its time near the measured one."""
    choices = [cell["choice"] for cell in cells]
    off = [choice["measured"] / choice["model"] for choice in choices]
    return {
        "cells": len(cells),
        "near_best": _share(choice["measured"] <= NEAR_BEST * choice["best"] for choice in choices),
        "within_factor": _share(1 / MODEL_FACTOR <= ratio <= MODEL_FACTOR for ratio in off),
    }


def _share(found: Iterable[bool]) -> float | None:
    every = list(found)
    return sum(every) / len(every) if every else None


def _of_contender(cells: Sequence[Cell], name: str, pass_: str) -> dict[str, Any]:
    ratios = [cell["ratios"][name] for cell in cells if cell["pass"] == pass_ and name in cell["ratios"]]
    return {"cells": len(ratios), "geometric_mean": _mean(ratios)}


def _contenders(cells: Iterable[Cell]) -> list[str]:
    return list(dict.fromkeys(name for cell in cells for name in cell["ratios"]))


def _mean(ratios: Iterable[float]) -> float | None:
    every = list(ratios)
    return geometric_mean(every) if every else None
