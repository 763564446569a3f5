"""The gallery of families: drawing, options, formulas and a spec for each, for the command line and a page of the docs.

The formulas are counts of planned networks, and the specs are parsed before they are shown.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from textwrap import dedent, indent
from typing import Any

import sympy

from tngraph.compiler.pipeline import plan
from tngraph.language.families import ALIASES, FAMILIES
from tngraph.language.families.family import Family, Option
from tngraph.language.network import Network, check_name
from tngraph.language.text.parsing import parse
from tngraph.plans.table import format_formula
from tngraph.program.counts import param_count

Names = tuple[str, ...]
_LONGER = ("mpo", "ring", "tied_ring", "tree", "graph", "ntt")
"""Families whose pattern shows only from three sites on."""
SIZES = {"n": 4, "m": 3, "R": 2}
"""The values of sizes at which the orders shown are searched."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The description of a family.

    Attributes:
        family: the family itself.
        title: its description in one line.
        drawing: its drawing as text.
        notes: further paragraphs.
        options: the description of each option, by name.
        source: the paper or library it comes from.
        spec: a layer of the family as text.
        python: the same layer in Python.
        network: the network of that layer.
    """

    family: Family
    title: str
    drawing: str
    notes: tuple[str, ...]
    options: Mapping[str, str]
    source: str
    spec: str
    python: str
    network: Network

    @property
    def params(self) -> str:
        """The learnable entries of the layer [elements]."""
        return format_formula(sympy.factor_terms(param_count(self.network)))

    @property
    def macs(self) -> str:
        """Multiply-adds of a call with one sample, in the order that is best at `SIZES` [MAC]."""
        return format_formula(plan(self.network, {"batch": 1}).macs.subs(_batch(self.network), 1))


def _batch(network: Network) -> sympy.Symbol:
    return next(size.symbol for size in network.sizes if size.name == "batch")


@cache
def entries() -> tuple[Entry, ...]:
    """Return every family's entry, in the order of the package."""
    return tuple(map(describe, FAMILIES.values()))


def describe(family: Family) -> Entry:
    """Return the entry of a family, from its docstring and from an example."""
    title, *blocks = (inspect.getdoc(family.make) or "").split("\n\n")
    parts: dict[str, list[str]] = {"drawing": [], "notes": [], "options": [], "source": []}
    for block in blocks:
        kind = "drawing" if block.startswith(" ") else "options" if block.startswith("Args:") else "notes"
        parts["source" if block.startswith("Source:") else kind].append(block)
    spec, python = _example(family)
    return Entry(
        family,
        " ".join(title.split()).rstrip("."),
        "\n\n".join(parts["drawing"]).rstrip(),
        tuple(" ".join(note.split()) for note in parts["notes"]),
        _options(parts["options"][0] if parts["options"] else ""),
        " ".join(" ".join(parts["source"]).removeprefix("Source:").split()),
        spec,
        python,
        parse(spec),
    )


def _options(block: str) -> dict[str, str]:
    """Return the descriptions under ``Args:`` by name."""
    descriptions: dict[str, str] = {}
    for line in block.splitlines()[1:]:
        name, colon, text = line.strip().partition(": ")
        if colon and line.startswith("    ") and not line.startswith("     "):
            descriptions[name] = text
        elif descriptions:
            descriptions[[*descriptions][-1]] += " " + line.strip()
    return descriptions


def _example(family: Family) -> tuple[str, str]:
    """Return a layer of a family with symbols for sizes, as text and as a line of Python."""
    count = family.axes or (3 if family.is_binary or family.name in _LONGER else 2)
    row, column = ("2", "2") if family.is_binary else ("n", "n" if family.name == "quanta" else "m")
    rows, columns = (row,) * count, (column,) * count
    options = {option.name: "R" for option in family.options.values() if option.is_size and option.default is not None}
    if "blocks" in options:
        options["blocks"] = "2"
    if "edges" in family.options:
        options["edges"] = "[[1, 2], [1, 3], [2, 3]]"
    if "layers" in family.options:
        options["layers"] = "1"
    return _spec(family, rows, columns, options), _python(family, rows, columns, options)


def _spec(family: Family, rows: Names, columns: Names, chosen: Mapping[str, str]) -> str:
    symbols = [name for name in SIZES if name in (*rows, *columns, *chosen.values())]
    sizes = ", ".join(f"{name} = {SIZES[name]}" for name in symbols)
    i, o = f"i{{1..{len(rows)}}}", f"o{{1..{len(columns)}}}"
    options = ", ".join(f"{name}={value}" for name, value in chosen.items())
    if family.is_map:
        body = [f"  index {o}: {columns[0]}", f"  y[batch, {o}] = {family.name}(x, {options})"]
    else:
        body = [f"  W[({i}), ({o}: {columns[0]})] = {family.name}({options})", f"  y[batch, {o}] = x * W"]
    size = f"  size batch\n  size {sizes}" if sizes else "  size batch"
    lines = [f"  input x[batch, ({i}: {rows[0]})]", *body, f"  output y[batch, ({o})]"]
    return "\n".join([f"network {family.name} {{", size, *lines, "}"])


def _python(family: Family, rows: Names, columns: Names, chosen: Mapping[str, str]) -> str:
    modes = [f"({', '.join(map(_literal, axes))}{',' * (len(axes) == 1)})" for axes in (rows, columns)]
    graph = ["networkx.cycle_graph(3)"] if "edges" in chosen else []
    options = [f"{name}={_literal(value)}" for name, value in chosen.items() if name != "edges"]
    symbols = {name: SIZES[name] for name in SIZES if name in (*rows, *columns, *chosen.values())}
    sizes = ["sizes={" + ", ".join(f'"{name}": {value}' for name, value in symbols.items()) + "}"] if symbols else []
    return f"tg.families.{family.name}({', '.join([*graph, *modes, *options, *sizes])})"


def _literal(text: str) -> str:
    return f'"{text}"' if text in SIZES else text


STARTER = """# A dense layer of 784 × 256 weights as two cores with a bond between them.
network layer {
  size batch                               # read off the input at each call
  size D = 8                               # fixed when the module is built
  input x[batch, (i1:28, i2:28)]           # arrives as (batch, 784)
  param w1[i1, o1:16, r:D]
  param w2[r, i2, o2:16]
  param bias[o1, o2] = zeros
  y[batch, o1, o2] = relu(x * w1 * w2 + bias)
  output y[batch, (o1, o2)]                # leaves as (batch, 256)
}
"""
"""A first spec to start from."""


def first_spec(name: str, family: Family | None = None) -> str:
    """Return a spec to start from under a name: `STARTER`, or the example of a family.

    Raises:
        NetworkError: the name cannot name a network.
    """
    check_name(name, "a network")
    text = STARTER if family is None else f"{_example(family)[0]}\n"
    return re.sub(r"^network \w+", f"network {name}", text, flags=re.MULTILINE)


def show_default(option: Option) -> str:
    """Return the default of an option as text."""
    if option.default is inspect.Parameter.empty:
        return "needed"
    if option.default is None or option.default == ():
        return "–"
    return str(int(option.default) if isinstance(option.default, bool) else option.default)


def format_entry(entry: Entry) -> str:
    """Return one family as text for a terminal."""
    lines = [
        f"{entry.family.name}: {entry.title}",
        *([f"also: {_also(entry).replace('`', '')}"] if _also(entry) else []),
    ]
    sections = ["\n".join(lines), entry.drawing, *entry.notes]
    if entry.options:
        width = max(map(len, entry.options))
        defaults = {name: show_default(option) for name, option in entry.family.options.items()}
        rows = [f"  {name:{width}}  {text} (default {defaults[name]})" for name, text in entry.options.items()]
        sections.append("\n".join(["options", *rows]))
    sections.append(f"params       {entry.params} [elements]\nMAC          {entry.macs} [MAC], one sample")
    sections.append(entry.spec)
    sections.append(f"source       {entry.source}")
    return "\n\n".join(section for section in sections if section)


def _also(entry: Entry) -> str:
    return ", ".join(f"`{word}`" for word, name in ALIASES.items() if name == entry.family.name)


def record(entry: Entry) -> dict[str, Any]:
    """Return one family as a record for JSON, with stable keys that name their units."""
    return {
        "family": entry.family.name,
        "also": [word for word, name in ALIASES.items() if name == entry.family.name],
        "title": entry.title,
        "options": {name: show_default(option) for name, option in entry.family.options.items()},
        "params_elements": entry.params,
        "macs_of_one_sample": entry.macs,
        "spec": entry.spec,
        "python": entry.python,
        "source": entry.source,
    }


def format_list() -> str:
    """Return a table of all families: word, options, and the params and MAC of the example."""
    header = ("family", "options", "params [elements]", "MAC [MAC] of one sample")
    rows = [header]
    for entry in entries():
        options = ", ".join(f"{o.name}={show_default(o)}" for o in entry.family.options.values())
        rows.append((entry.family.name, options, entry.params, entry.macs))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3])).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", "`tngraph families NAME` shows one; the formulas are of its example there."])


def format_page() -> str:
    """Return the text of the page of the docs."""
    return "\n".join([_INTRODUCTION, *_contents(), *(text for entry in entries() for text in _section(entry))])


def _contents() -> Iterator[str]:
    yield "| family | what it is | params | MAC, one sample |"
    yield "| --- | --- | --- | --- |"
    for entry in entries():
        name = entry.family.name
        yield f"| [{name}](#{name}) | {entry.title} | `{entry.params}` | `{entry.macs}` |"


def _section(entry: Entry) -> Iterator[str]:
    yield f"\n## {entry.family.name}\n\n{entry.title}." + (f" Also {_also(entry)}." if _also(entry) else "")
    if entry.drawing:
        yield f"\n{indent(dedent(entry.drawing), '    ')}"
    for note in entry.notes:
        yield f"\n{note}"
    if entry.options:
        yield "\n| option | default | |\n| --- | --- | --- |"
        for name, text in entry.options.items():
            yield f"| `{name}` | {show_default(entry.family.options[name])} | {text} |"
    yield f"\n```tn\n{entry.spec}\n```\n\n    {entry.python}\n"
    yield f"- params: `{entry.params}` [elements]\n- MAC: `{entry.macs}` [MAC] of one sample\n- source: {entry.source}"


_INTRODUCTION = """# Families

A family is a named way to build a weight out of small cores. Each is a word in a [spec](language.md#families), a
function in [Python](python.md#families), and an option of a [layer](layers.md):

    W[(i{1..4}), (o{1..4})] = mpo(bond=4)
    tg.families.mpo((4, 7, 7, 4), (4, 4, 4, 4), bond=4)
    tngraph.layers.Linear(784, 256, family="mpo", bond=4)

The formulas below are the exact counts of the example beside them: planned, not copied. `tngraph families` prints the
table, and `tngraph families mpo` one entry.

- **Names.** The cores of a weight `W` are `W.g1`, `W.g2`, …, its bonds `W.b1`, …, whatever the order of contraction.
- **Modes.** Rows and columns multiply to the features. `tg.families.mpo.choose_modes(784, 10)` factors them into
  balanced modes; only where a large prime leaves no choice, and for families of binary legs, they multiply to a little
  more, and a layer pads. Families that pair rows with columns have as many of each; an index of size 1 fills up.
- **Ranks.** One number for all bonds, or a list. A rank beyond what can matter is cut, and a `tg.RankWarning` names its
  bond. A rank may be the name of a size, and is a symbol in the counts then.
- **Starting.** A weight starts with the variance 1/(3·fan-in) that `torch.nn.Linear` gives, exactly if it has no
  activation inside. Normal inputs then have outputs of standard deviation 0.58. Padded rows do not count as inputs.
  Circuits start orthogonal, and deep ones such that no activation silences them. They are scaled for the default
  values of named sizes. `quanta`, `btt` and `ntt` start by the rules of their papers: see there.

## Ranks for a budget

`tg.choose_rank` finds the largest rank within a number of params, a number of FLOPs of a planned call, or a rate, by
counting the networks themselves. It reports what was asked beside what it comes to.

```python
import tngraph as tg

print(tg.choose_rank(tg.families.rcp, (4, 4), (4, 4), (3, 3), compression=0.2))
print(tg.choose_rank(tg.families.mpo, (4, 7, 7, 4), (4, 4, 4, 4), flops=2_000_000, sizes={"batch": 10}))
```
```text
rcp(rank=11): 451 params for 2,304: asked 20.00%, kept 19.57%
mpo(bond=4): 1,024 params for 200,704: kept 0.51%, 1,605,632 FLOPs
```

The rule that was published for `rcp` solves for the rank with 2k + Σs + Σt params per rank, and a rank has k² + Σ s·t.
On the 463,616 compressible weights of ResNet-32 (30 windows of 3 × 3 and three shortcuts of 1 × 1, ranks rounded up;
channels 16 = 4·4, 32 = 4·8, 64 = 8·8) it keeps more than three times what it says. The last column is the sum of
`tg.choose_rank` over these layers. Where rank 1 is too much (three shortcuts at 2 %, two at 5 %, one at 10 %), it is
rank 1.

| asked | kept by the published rule | kept by `choose_rank` |
| --- | --- | --- |
| 2 % | 7.2 % | 1.9 % |
| 5 % | 17.2 % | 4.8 % |
| 10 % | 34.1 % | 9.6 % |
| 20 % | 67.7 % | 19.6 % |

## All of them
"""
