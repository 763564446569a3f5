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
    """One table per pass."""
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
    """The contenders that were timed somewhere, but for the compiled layer."""
    timed = {name for cell in results["cells"] for name in cell["ratios"]}
    return [name for name in NAMES if name in timed]


def headings(names: Sequence[str]) -> list[str]:
    """Of the columns of a table of cells."""
    return ["case", "batch", "tngraph", *names, "fastest rival", "FLOPs / dense", "of the ideal"]


def row(cell: Cell, names: Sequence[str]) -> list[str]:
    """A cell as texts."""
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
    """``~`` behind a noisy time, ``¹`` behind one of a single call."""
    timing = cell["timings"].get(name)
    if timing is None:
        return ""
    return "¹" if timing["spread"] is None else "~" if timing["spread"] > NOISY else ""


def seconds(value: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def ratio(value: float | None) -> str:
    """A ratio, with as many digits as it needs."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


# The page.


def page(results: Results) -> str:
    """``docs/performance.md``."""
    parts = [introduction(results), summary(results["summary"]), who(results), by_case(results), missing(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def introduction(results: Results) -> str:
    """Method and machine."""
    machine, method = results["machine"], results["method"]
    where = machine["accelerator"] or f"{machine['processor']}, {counted(machine['cores'], 'core')}"
    versions = ", ".join(f"{name} {v}" for name, v in machine["libraries"].items() if v is not None)
    command = "make bench" if machine["device"] == "cpu" else f"python -m tests.bench --device {machine['device']}"
    paragraphs: tuple[str, ...] = (
        "How long the layers of the papers take, compiled by tngraph, beside the dense layer they replace and beside "
        f"what else one could write for them. `{command}` measures it and writes this page; cases where tngraph is "
        "slower are in it like all others.",
        f"**Machine.** {where}, {counted(machine['threads'], 'thread')}, {machine['dtype']}. "
        f"Python {machine['python']}, torch {machine['torch']}; {versions}. A large matrix product runs at "
        f"{machine['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s and a large copy at "
        f"{machine['copy_bytes_per_second'] / 1e9:,.1f} GB/s, both measured in the same run.",
        "**Method.** All contenders of a cell (a case, a batch, a pass) run in one process, in turns, round after "
        "round, so that a slow minute is shared by all. Those that compute the same are given the same params, and "
        "their results are compared with tngraph's before anything is timed: values, and in training the gradient of "
        f"the input. A turn repeats a call until it lasts about {method['seconds_per_turn'] * 1e3:.0f} ms, after a "
        "call that is not counted, which finds cache and memory as another contender has left them; a time is "
        f"the median of up to {method['most_rounds']} turns, and of at least {method['least_rounds']}, within "
        f"{method['budget']:g} s per cell. `~` marks a time whose interquartile range is more than {100 * NOISY:.0f} % "
        f"of it, and `¹` one of a single call, because that took more than {method['too_long']:g} s. While a cell was "
        f"measured, other processes took {disturbed(results['cells'])} of the processor.",
        *([keeping(method["environment"])] if "environment" in method else []),
        "*Forward* runs without gradients; *forward and backward* takes the gradients of the input and of every param.",
    )
    if machine["device"] == "cuda":
        passes = results["summary"]["contenders"][GRAPH]
        share = " and ".join(f"{_percent(passes[each]['geometric_mean'])} ({each})" for each in PASSES)
        paragraphs += (
            "**Kernels and calls.** In most cells Python and PyTorch start one kernel after the other, and that takes "
            "most of the time. So the time hardly grows with the batch. As one CUDA graph the same module takes "
            f"{share} of that time: this is what the GPU itself needs.",
        )
    missing = [case.name for case in CASES if case.name not in {each["name"] for each in results["cases"]}]
    if missing:
        paragraphs += (f"**Not measured in this run:** {', '.join(missing)}.",)
    title = "# Performance" + " on a GPU" * (machine["device"] == "cuda")
    return "\n\n".join((title, *(fill(paragraph, 120, break_on_hyphens=False) for paragraph in paragraphs)))


def keeping(environment: Mapping[str, str]) -> str:
    """What the processes of the cases are told."""
    told = " ".join(f"{name}={value}" for name, value in environment.items())
    return (
        f"Every case runs in a process of its own, started with `{told}`: there the C library of Linux keeps all "
        "memory that is freed. By itself it would take results of 32 MiB and more from the system each time, or not, "
        "as it has come about in the process before, and the same call takes up to twice as long "
        "([Tiles](machine.md#tiles))."
    )


def disturbed(cells: Sequence[Cell]) -> str:
    """The part of the processor that other processes took."""
    parts = [cell["disturbed"] for cell in cells]
    return f"{100 * median(parts):.1f} % (median) to {100 * max(parts):.1f} %"


def summary(found: Mapping[str, Any]) -> str:
    """What all cells come to."""
    rival, roofline = found["fastest_rival"], found["roofline"]
    fewer, far = found["dense_with_fewer_flops"], found["dense_with_far_fewer_flops"]
    lines = [
        "## Summary",
        "",
        "A ratio is the time of the other one divided by tngraph's: above 1 tngraph is faster.",
        "",
        "| | cells | geometric mean | minimum |",
        "| --- | ---: | ---: | ---: |",
        f"| the fastest other code for the same layer, whichever that is in a cell | {rival['cells']} | "
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
        lines.append(
            f"| the same, by the rates that were measured in turns with each layer | {roofline['cells']} | {own} | |"
        )
    model = found["model"]
    lines += [
        "",
        fill(
            f"In {model['cells']} cells the model of the machine chose by itself: {_percent(model['near_best'])} of "
            f"its choices take at most {NEAR_BEST:g} times as long as the best that tuning measured, and what it says "
            f"of them is within a factor of {MODEL_FACTOR} in {_percent(model['within_factor'])}.",
            120,
        ),
    ]
    lines += slow("Slower than the fastest other code", rival["slow"])
    lines += slow("Slower than the dense layer, with fewer FLOPs", fewer["slow"], fewer["said"])
    lines += ["", "One by one, over all cells that a contender has:", ""]
    lines += ["| contender | " + " | ".join(f"cells, {p} | {p}" for p in PASSES) + " |"]
    lines += ["| --- |" + " ---: |" * (2 * len(PASSES))]
    for name, passes in found["contenders"].items():
        cells = (f"{passes[p]['cells']} | {ratio(passes[p]['geometric_mean'])}" for p in PASSES)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def slow(title: str, cells: Mapping[str, float], said: Sequence[str] = ()) -> list[str]:
    """The cells of a list of slow ones, and of which of them the plan itself says that the dense layer is faster."""
    if not cells:
        return ["", f"{title} (a ratio below {FAST_ENOUGH}): no cell."]
    shown = (f"- {name}: {ratio(r)}{', as the plan says' * (name in said)}" for name, r in cells.items())
    return ["", f"{title} (a ratio below {FAST_ENOUGH}):", "", *shown]


def who(results: Results) -> str:
    """What the columns are."""
    lines = ["## Columns", "", "| column | |", "| --- | --- |"]
    lines += [f"| {name} | {CONTENDERS[name]} |" for name in (OURS, *present(results))]
    lines += [
        "| fastest rival | the least ratio of those that compute the same layer by other code: not dense, no graph of "
        "ours |",
        "| FLOPs / dense | the [FLOPs](counts.md) of the plan, of this pass, divided by those of the dense layer |",
        "| of the ideal | the ideal time divided by tngraph's: the larger of the plan's FLOPs at the rate of a large "
        "matrix product, and of reading and writing inputs, params and outputs (in training their gradients too) once "
        "at the bandwidth of a large copy. What fits into a cache can be faster than that |",
    ]
    return "\n".join(lines)


def by_case(results: Results) -> str:
    """All cells, pass by pass, and what the cases are."""
    names, lines = present(results), ["## Every cell", ""]
    lines += ["| case | | params | dense |", "| --- | --- | ---: | ---: |"]
    lines += [f"| {c['name']} | {c['about']} | {c['params']:,} | {c['dense_params']:,} |" for c in results["cases"]]
    for pass_ in PASSES:
        lines += ["", f"### {pass_.replace('+', ' and ').capitalize()}", ""]
        lines += ["The time of tngraph, and how many times longer the others take.", ""]
        lines += ["| " + " | ".join(headings(names)) + " |", "| --- |" + " ---: |" * (len(headings(names)) - 1)]
        lines += [f"| {' | '.join(row(c, names))} |" for c in results["cells"] if c["pass"] == pass_]
    return "\n".join(lines)


def missing(results: Results) -> str:
    """Who is missing where, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in results["cells"]:
        for name, reason in cell["omitted"].items():
            cases = found.setdefault((name, reason), [])
            if cell["case"] not in cases:
                cases.append(cell["case"])
    lines = ["## Left out", "", "| contender | where | why |", "| --- | --- | --- |"]
    for (name, reason), cases in sorted(found.items(), key=lambda item: NAMES.index(item[0][0])):
        lines.append(f"| {name} | {', '.join(cases)} | {reason.replace('|', '¦')} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _ordinal(number: int) -> str:
    return {2: "half", 3: "third", 4: "quarter"}.get(number, f"1/{number}")


def counted(number: int, noun: str) -> str:
    """So many of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
