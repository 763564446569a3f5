"""Time planning and compiling, with an empty folder of searches and then again: ``python -m tests.bench.planning``.

Times are of the processor, so that other processes disturb them little. Nothing asserts them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from tempfile import TemporaryDirectory
from typing import Annotated

import networkx as nx
import typer

import tngraph as tg


def hub(count: int) -> tg.Network:
    """Vectors on one index, which the result keeps."""
    return tg.from_indices([("i",)] * count, ("i",), {"i": 4})


def star(count: int) -> tg.Network:
    """Matrices that share one index, each with one of its own."""
    own = {f"k{n}": 3 for n in range(count)}
    return tg.from_indices([("h", k) for k in own], (), {"h": 4, **own})


def complete(count: int) -> tg.Network:
    """Every tensor with a bond to every other."""
    return tg.from_networkx(nx.complete_graph(count), bond=2)


def chain(count: int) -> tg.Network:
    """Cores one after the other, applied to a batch."""
    return tg.parse(f"""network chain {{
  size batch
  index b{{0..{count}}}: 8
  input x[batch, b0]
  for k in 1..{count} {{ param w{{k}}[b{{k-1}}, b{{k}}] }}
  y[batch, b{count}] = x * w{{1..{count}}}
  output y[batch, b{count}]
}}""")


def classifier(sites: int) -> tg.Network:
    """A matrix product state over the features of as many sites, its label in the middle."""
    middle = sites // 2
    return tg.parse(f"""network classifier {{
  size batch
  index i{{1..{sites}}}: 2
  index b{{0..{sites}}}: 10
  index label: 10
  for k in 1..{sites} {{ input x{{k}}[batch, i{{k}}] }}
  for k in 1..{middle - 1} {{ param w{{k}}[b{{k-1}}, i{{k}}, b{{k}}] }}
  param w{middle}[b{middle - 1}, i{middle}, b{middle}, label]
  for k in {middle + 1}..{sites} {{ param w{{k}}[b{{k-1}}, i{{k}}, b{{k}}] }}
  y[batch, label] = x{{1..{sites}}} * w{{1..{sites}}}
  output y[batch, label]
}}""")


def peps(rows: int, columns: int) -> tg.Network:
    """A grid of cores that map one mode of an input each to one of the result."""
    sites = [(r, c) for r in range(1, rows + 1) for c in range(1, columns + 1)]

    def core(r: int, c: int) -> str:
        bonds = [f"h{r}x{c - 1}"] * (c > 1) + [f"h{r}x{c}"] * (c < columns)
        bonds += [f"v{r - 1}x{c}"] * (r > 1) + [f"v{r}x{c}"] * (r < rows)
        return ", ".join([f"i{r}x{c}:2", f"o{r}x{c}:2", *(f"{bond}:3" for bond in bonds)])

    cores = "\n".join(f"  param w{r}x{c}[{core(r, c)}]" for r, c in sites)
    inputs, outputs = (", ".join(f"{side}{r}x{c}" for r, c in sites) for side in "io")
    return tg.parse(f"""network peps {{
  size batch
{cores}
  input x[batch, ({inputs})]
  y[batch, {outputs}] = x * {" * ".join(f"w{r}x{c}" for r, c in sites)}
  output y[batch, ({outputs})]
}}""")


def ring(count: int) -> tg.Network:
    """One core, shared by all sites of a ring."""
    factors = " * ".join(f"g[i{k}, o{k}, b{k}, b{k % count + 1}]" for k in range(1, count + 1))
    return tg.parse(f"""network ring {{
  size batch
  index i{{1..{count}}}: 2
  index o{{1..{count}}}: 2
  index b{{1..{count}}}: 3
  param g[i1, o1, b1, b2]
  input x[batch, (i{{1..{count}}})]
  y[batch, o{{1..{count}}}] = x * {factors}
  output y[batch, (o{{1..{count}}})]
}}""")


def vgg() -> tg.Network:
    return tg.load("examples/specs/vgg_fc_adtn.tn")


CASES: Mapping[str, Callable[[], object]] = {
    "plan: 400 vectors on one index": lambda: tg.plan(hub(400)),
    "plan: star of 500 matrices": lambda: tg.plan(star(500)),
    "plan: complete graph of 15": lambda: tg.plan(complete(15)),
    "plan: complete graph of 30": lambda: tg.plan(complete(30)),
    "plan: chain of 1,000 cores": lambda: tg.plan(chain(1000)),
    "plan: classifier of 196 sites": lambda: tg.plan(classifier(196)),
    "plan: 3 x 3 PEPS": lambda: tg.plan(peps(3, 3)),
    "compile: classifier of 196 sites": lambda: tg.compile(classifier(196)),
    "compile: 3 x 3 PEPS": lambda: tg.compile(peps(3, 3)),
    "compile: ring of 8 shared cores": lambda: tg.compile(ring(8)),
    "front: vgg_fc_adtn": lambda: tg.front(vgg(), {"batch": 64}),
    "compile: vgg_fc_adtn": lambda: tg.compile(vgg()),
    "compile: chain of 1,000 cores": lambda: tg.compile(chain(1000)),
}


def seconds(name: str) -> float:
    """The processor time of one case, in this process and in those that it starts [s]."""
    began = sum(os.times()[:4])
    CASES[name]()
    return sum(os.times()[:4]) - began


def measure(name: str, folder: str) -> float:
    """The same in a process of its own, with a folder for what is searched."""
    code = f"from tests.bench.planning import seconds; import tngraph.modules.layer; print(seconds({name!r}))"
    environment = {**os.environ, "TNGRAPH_CACHE": folder}
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main(only: Annotated[str, typer.Option(help="Cases with such names alone: 'compile*'.")] = "*") -> None:
    """Print the processor seconds of every case, cold and warm."""
    print(f"{'':36}{'cold [s]':>10}{'warm [s]':>10}")
    for name in (name for name in CASES if fnmatch(name, only)):
        with TemporaryDirectory() as folder:
            cold, warm = measure(name, folder), measure(name, folder)
        print(f"{name:36}{cold:10.2f}{warm:10.2f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
