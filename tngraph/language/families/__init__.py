"""The families: named ways to build a weight out of small cores. Each is a `Family`, which is called with modes.

In a spec: ``W[(i{1..4}), (o{1..4})] = mpo(bond=4)``. In Python: ``tg.families.mpo((4, 7, 7, 4), (4, 4, 4, 4), bond=4)``
returns the `Network` of a layer, and ``tg.families.mpo.weight(…)`` that of the weight alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Protocol

from tngraph.errors import NetworkError
from tngraph.language.families import chains, circuits, structured, sums, sweeps
from tngraph.language.families.family import Family, Modes
from tngraph.language.families.modes import split_modes
from tngraph.language.network import Network

__all__ = [
    "ALIASES",
    "FAMILIES",
    "Family",
    "adtn",
    "block_term",
    "btt",
    "butterfly",
    "cp",
    "einsum",
    "find_family",
    "graph",
    "kronecker",
    "low_rank",
    "mera",
    "monarch",
    "mpo",
    "named_family",
    "ntt",
    "plain_tt",
    "quanta",
    "rcp",
    "ring",
    "split_modes",
    "tied_ring",
    "tree",
    "tree_generator",
    "tucker",
]

mpo = Family(chains.mpo)
plain_tt = Family(chains.plain_tt, is_paired=False)
ring = Family(chains.ring)
tied_ring = Family(chains.tied_ring, is_tied=True)
kronecker = Family(chains.kronecker)
low_rank = Family(chains.low_rank, axes=1)
cp = Family(sums.cp, is_paired=False)
rcp = Family(sums.rcp)
tucker = Family(sums.tucker, is_paired=False, has_core=True)
block_term = Family(sums.block_term, is_paired=False, has_core=True)
tree = Family(sums.tree)
adtn = Family(circuits.adtn, is_binary=True, is_paired=False)
tree_generator = Family(circuits.tree_generator, is_binary=True, is_paired=False)
mera = Family(circuits.mera, is_binary=True, is_paired=False)
quanta = Family(circuits.quanta, has_window=False)
btt = Family(structured.btt, has_window=False)
einsum = Family(structured.einsum, axes=3, has_window=False)
monarch = Family(structured.monarch, axes=2, has_window=False)
butterfly = Family(structured.butterfly, is_binary=True, has_window=False)
ntt = Family(sweeps.ntt, is_map=True)

_GRAPH = Family(chains.graph)
_ALL = (
    *(mpo, plain_tt, ring, tied_ring, tree, _GRAPH),
    *(tucker, cp, rcp, block_term, kronecker, low_rank),
    *(adtn, tree_generator, mera, quanta),
    *(btt, einsum, monarch, butterfly),
    ntt,
)
ALIASES: Mapping[str, str] = {"tt": "mpo", "rtt": "mpo", "rtk": "tucker", "svd": "low_rank"}
"""Other words for families that the literature uses."""
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}
"""The families by word."""


def find_family(name: str) -> Family | None:
    """Return the family that a word names, or None."""
    return FAMILIES.get(ALIASES.get(name, name))


def named_family(family: str | Family) -> Family:
    """Return the family that a word names. A family is returned as it is.

    Raises:
        NetworkError: there is no such family.
    """
    named = family if isinstance(family, Family) else find_family(str(family))
    if named is None:
        near = get_close_matches(str(family), [*FAMILIES, *ALIASES], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(FAMILIES)}"
        raise NetworkError(f"there is no family {family!r}", hint)
    return named


class Graph(Protocol):
    """A graph for `graph`: a networkx graph, or anything else with such nodes and edges."""

    nodes: Any
    edges: Any


def graph(graph: Graph, rows: Modes, columns: Modes, **more: Any) -> Network:
    """Return the network of any graph: a core per node and a bond per edge, with rows and columns on the first nodes.

    Args:
        graph: a networkx graph. Node k, in its order of nodes, has row k and column k.
        rows: the modes of the input features.
        columns: the modes of the output features.
        more: ``bond``, and the arguments that every family takes.

    Raises:
        NetworkError: the options or modes do not fit the graph.
    """
    positions = {node: k for k, node in enumerate(graph.nodes, 1)}
    edges = tuple((positions[edge[0]], positions[edge[1]]) for edge in graph.edges)
    return _GRAPH(rows, columns, edges=edges, **more)
