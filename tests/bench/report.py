"""The results of a run for people: tables in a terminal, and the page ``docs/performance.md``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from textwrap import fill
from typing import Any

from rich.table import Table

from tests.bench.cases import CASES
from tests.bench.contenders import DENSE, GRAPH, NAMES, OURS
from tests.bench.results import (
    FAST_ENOUGH,
    LARGE,
    MODEL_FACTOR,
    MUCH_LESS,
    NEAR_BEST,
    PASSES,
    Cell,
    fastest_rival,
    rival_ratio,
)

Results = Mapping[str, Any]
NOISY = 0.1
"""A spread above this is marked."""
CONTENDERS: Mapping[str, str] = {
    OURS: "the module that `tngraph.compile` makes with `tune=` the input that is timed",
    "torch.compile": "`torch.compile` of that module",
    GRAPH: "the call of that module as one CUDA graph, replayed",
    DENSE: "`nn.Linear` or `nn.Conv2d` of the same shape, with as many weights as the layer replaces",
    "torch.einsum": "one n-ary `torch.einsum`, which asks opt_einsum for an order at every call",
    "opt_einsum": "`opt_einsum.contract_expression`, the order found beforehand: optimal up to nine operands, else "
    "`auto-hq`",
    "cotengra": "`cotengra.array_contract_expression`, the order found beforehand with `auto-hq`",
    "quimb": "a `quimb` tensor network around the operands, contracted along a path found beforehand",
    "tensorly-torch": "`FactorizedLinear` and `FactorizedConv`, `factorized`",
    "tednet": "`TTLinear`, `TRLinear`, `CPLinear`, `CPConv2D`, `TK2Conv2D`, `TTConv2D`",
    "torchTT": "a tensor train matrix times a dense tensor",
    "tensorkrowch": "a `TensorNetwork` of nodes, contracted from left to right",
    "by hand": "what a careful person writes: `nn.Sequential` of small convolutions, batched products, or the steps of "
    "the paper's code in their order",
}


def tables(results: Results) -> Iterator[Table]:
    """Yield one table per pass."""
    names = present(results)
    for pass_ in PASSES:
        cells = [cell for cell in results["cells"] if cell["pass"] == pass_]
        if cells:
            table = Table(title=f"{pass_}: how many times longer than tngraph", title_justify="left")
            for heading in headings(names):
                table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)
            for cell in cells:
                table.add_row(*row(cell, names))
            yield table


def present(results: Results) -> list[str]:
    """Return the contenders that were timed somewhere, without the compiled layer."""
    timed = {name for cell in results["cells"] for name in cell["ratios"]}
    return [name for name in NAMES if name in timed]


def headings(names: Sequence[str]) -> list[str]:
    """Return the headings of a table of cells."""
    return ["case", "batch", "tngraph", *names, "fastest rival", "FLOPs / dense", "of the ideal"]


def row(cell: Cell, names: Sequence[str]) -> list[str]:
    """Return a cell as texts."""
    rival = rival_ratio(cell)
    return [
        cell["case"],
        str(cell["batch"]),
        seconds(cell["timings"][OURS]["median"]) + mark(cell, OURS),
        *(ratio(cell["ratios"].get(name)) + mark(cell, name) for name in names),
        ratio(rival) if rival is None else f"{ratio(rival)} {fastest_rival(cell)}",
        f"{cell['plan_flops'] / cell['dense_flops']:.3g}",
        f"{100 * cell['roofline']:.0f} %",
    ]


def mark(cell: Cell, name: str) -> str:
    """Return the mark behind a time: ``~`` if it is noisy, ``¹`` if it is of a single call."""
    timing = cell["timings"].get(name)
    if timing is None:
        return ""
    return "¹" if timing["spread"] is None else "~" if timing["spread"] > NOISY else ""


def seconds(value: float) -> str:
    """Return seconds in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def ratio(value: float | None) -> str:
    """Return a ratio, with as many digits as it needs."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


# The page.


def page(results: Results) -> str:
    """Return the text of ``docs/performance.md``."""
    parts = [introduction(results), summary(results["summary"]), who(results), by_case(results), missing(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def introduction(results: Results) -> str:
    """Return the introduction: machine and method."""
    machine, method = results["machine"], results["method"]
    where = machine["accelerator"] or f"{machine['processor']}, {counted(machine['cores'], 'core')}"
    versions = ", ".join(f"{name} {v}" for name, v in machine["libraries"].items() if v is not None)
    command = "make bench" if machine["device"] == "cpu" else f"python -m tests.bench --device {machine['device']}"
    paragraphs: tuple[str, ...] = (
        "This page compares the time of the papers' layers, compiled by tngraph, with the dense layer that each "
        f"replaces and with other ways to write the same layer. `{command}` measures the times and writes this page. "
        "It includes the cases where tngraph is slower.",
        f"**Machine.** {where}, {counted(machine['threads'], 'thread')}, {machine['dtype']}. "
        f"Python {machine['python']}, torch {machine['torch']}; {versions}. A large matrix product runs at "
        f"{machine['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s and a large copy at "
        f"{machine['copy_bytes_per_second'] / 1e9:,.1f} GB/s, both measured in the same run.",
        "**Method.** A cell is a case, a batch and a pass. All contenders of a cell run in one process and take turns, "
        "so a slow minute affects them all. Contenders that compute the same get the same params. Before the timing, "
        "their results are compared with tngraph's: the values, and in training the gradient of the input. A turn "
        "starts with one uncounted call, since another contender has left the caches and the memory in another state. "
        f"Then it repeats the call for about {method['seconds_per_turn'] * 1e3:.0f} ms. A time is the median of "
        f"{method['least_rounds']} to {method['most_rounds']} turns, within {method['budget']:g} s per cell. `~` marks "
        f"a time whose interquartile range is more than {100 * NOISY:.0f} % of it. `¹` marks a time of a single call, "
        f"because the call took more than {method['too_long']:g} s. Other processes took "
        f"{disturbed(results['cells'])} of the processor during a cell.",
        *([keeping(method["environment"])] if "environment" in method else []),
        "*Forward* runs without gradients; *forward and backward* takes the gradients of the input and of every param.",
    )
    if machine["device"] == "cuda":
        passes = results["summary"]["contenders"][GRAPH]
        share = " and ".join(f"{_percent(passes[name]['geometric_mean'])} ({name})" for name in PASSES)
        paragraphs += (
            "**Kernels and calls.** In most cells, Python and PyTorch spend most of the time on starting one kernel "
            f"after the other. So the time hardly grows with the batch. The same module as one CUDA graph takes "
            f"{share} of that time: this is the time that the GPU itself needs.",
        )
    missing = [case.name for case in CASES if case.name not in {measured["name"] for measured in results["cases"]}]
    if missing:
        paragraphs += (f"**Not measured in this run:** {', '.join(missing)}.",)
    title = "# Performance" + " on a GPU" * (machine["device"] == "cuda")
    return "\n\n".join((title, *(fill(paragraph, 120, break_on_hyphens=False) for paragraph in paragraphs)))


def keeping(environment: Mapping[str, str]) -> str:
    """Return how the environment of the cases' processes is set, and why."""
    settings = " ".join(f"{name}={value}" for name, value in environment.items())
    return (
        f"Every case runs in a process of its own, started with `{settings}`. With these settings the C library of "
        "Linux keeps all freed memory. By default, it may take results of 32 MiB and more from the system at each "
        "call, depending on what the process did before, and the same call takes up to twice as long "
        "([Tiles](machine.md#tiles))."
    )


def disturbed(cells: Sequence[Cell]) -> str:
    """Return the share of the processor that other processes took."""
    parts = [cell["disturbed"] for cell in cells]
    return f"{100 * median(parts):.1f} % (median) to {100 * max(parts):.1f} %"


def summary(totals: Mapping[str, Any]) -> str:
    """Return the summary of all cells."""
    rival, roofline = totals["fastest_rival"], totals["roofline"]
    fewer, far = totals["dense_with_fewer_flops"], totals["dense_with_far_fewer_flops"]
    lines = [
        "## Summary",
        "",
        "A ratio is the time of the other contender divided by tngraph's. Above 1, tngraph is faster.",
        "",
        "| | cells | geometric mean | minimum |",
        "| --- | ---: | ---: | ---: |",
        f"| the fastest other code for the same layer, in each cell | {rival['cells']} | "
        f"{ratio(rival['geometric_mean'])} | {ratio(rival['minimum'])} |",
        f"| the dense layer, where the plan has fewer FLOPs | {fewer['cells']} | {ratio(fewer['geometric_mean'])} | "
        f"{ratio(fewer['minimum'])} |",
        f"| the dense layer, where the plan has less than a {_ordinal(MUCH_LESS)} of its FLOPs | {far['cells']} | "
        f"{ratio(far['geometric_mean'])} | |",
        f"| part of the ideal speed, in cells of more than {LARGE / 1e9:g} GFLOP | {roofline['cells']} | "
        f"{_percent(roofline['geometric_mean'])} | |",
    ]
    if "in_turns" in roofline:
        own = _percent(roofline["in_turns"])
        lines.append(f"| the same, with rates measured in turns with each layer | {roofline['cells']} | {own} | |")
    model = totals["model"]
    lines += [
        "",
        fill(
            f"In {model['cells']} cells the model of the machine also chose without tuning. "
            f"{_percent(model['near_best'])} of its choices take at most {NEAR_BEST:g} times as long as the best that "
            f"tuning measured. {_percent(model['within_factor'])} of its predictions for them are within a factor of "
            f"{MODEL_FACTOR}.",
            120,
        ),
    ]
    lines += slow("Slower than the fastest other code", rival["slow"])
    lines += slow("Slower than the dense layer, with fewer FLOPs", fewer["slow"], fewer["said"])
    lines += ["", "The geometric mean of each contender, over all cells that it has:", ""]
    lines += ["| contender | " + " | ".join(f"cells, {p} | {p}" for p in PASSES) + " |"]
    lines += ["| --- |" + " ---: |" * (2 * len(PASSES))]
    for name, passes in totals["contenders"].items():
        cells = (f"{passes[p]['cells']} | {ratio(passes[p]['geometric_mean'])}" for p in PASSES)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def slow(title: str, cells: Mapping[str, float], said: Sequence[str] = ()) -> list[str]:
    """Return a list of slow cells, which marks those whose plan itself says that the dense layer is faster."""
    if not cells:
        return ["", f"{title} (a ratio below {FAST_ENOUGH}): no cell."]
    shown = (f"- {name}: {ratio(r)}{', as the plan says' * (name in said)}" for name, r in cells.items())
    return ["", f"{title} (a ratio below {FAST_ENOUGH}):", "", *shown]


def who(results: Results) -> str:
    """Return the section that describes the columns."""
    lines = ["## Columns", "", "| column | |", "| --- | --- |"]
    lines += [f"| {name} | {CONTENDERS[name]} |" for name in (OURS, *present(results))]
    lines += [
        "| fastest rival | the smallest ratio among the contenders that compute the same layer with other code, "
        "without the dense layer and the graph |",
        "| FLOPs / dense | the [FLOPs](counts.md) of the plan, of this pass, divided by those of the dense layer |",
        "| of the ideal | the ideal time divided by tngraph's. The ideal is the larger of two times: the plan's FLOPs "
        "at the rate of a large matrix product, and one pass over inputs, params and outputs (in training their "
        "gradients too) at the bandwidth of a large copy. Values that fit into a cache can be faster |",
    ]
    return "\n".join(lines)


def by_case(results: Results) -> str:
    """Return the sections of all cells, pass by pass, after the list of cases."""
    names, lines = present(results), ["## Every cell", ""]
    lines += ["| case | | params | dense |", "| --- | --- | ---: | ---: |"]
    lines += [f"| {c['name']} | {c['about']} | {c['params']:,} | {c['dense_params']:,} |" for c in results["cases"]]
    for pass_ in PASSES:
        lines += ["", f"### {pass_.replace('+', ' and ').capitalize()}", ""]
        lines += ["The time of tngraph, and the times of the others as multiples of it.", ""]
        lines += ["| " + " | ".join(headings(names)) + " |", "| --- |" + " ---: |" * (len(headings(names)) - 1)]
        lines += [f"| {' | '.join(row(c, names))} |" for c in results["cells"] if c["pass"] == pass_]
    return "\n".join(lines)


def missing(results: Results) -> str:
    """Return the section of contenders that are missing in some case, with the reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for cell in results["cells"]:
        for name, reason in cell["omitted"].items():
            cases = reasons.setdefault((name, reason), [])
            if cell["case"] not in cases:
                cases.append(cell["case"])
    lines = ["## Left out", "", "| contender | where | why |", "| --- | --- | --- |"]
    for (name, reason), cases in sorted(reasons.items(), key=lambda item: NAMES.index(item[0][0])):
        lines.append(f"| {name} | {', '.join(cases)} | {reason.replace('|', '¦')} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _ordinal(count: int) -> str:
    return {2: "half", 3: "third", 4: "quarter"}.get(count, f"1/{count}")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
