"""The families: named ways to build a weight out of small cores, each a `Family` to call with modes.

In a spec: ``W[(i{1..4}), (o{1..4})] = mpo(bond=4)``. In Python: ``tg.families.mpo((4, 7, 7, 4), (4, 4, 4, 4), bond=4)``
gives the `Network` of a layer, and ``tg.families.mpo.weight(…)`` that of the weight alone.
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
"""Other words for a family, as the literature has them."""
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}
"""Every family by its word."""


def find_family(name: str) -> Family | None:
    """The family that a word names, or None."""
    return FAMILIES.get(ALIASES.get(name, name))


def named_family(family: str | Family) -> Family:
    """The family of a word; a family is itself.

    Raises:
        NetworkError: no such family.
    """
    found = family if isinstance(family, Family) else find_family(str(family))
    if found is None:
        near = get_close_matches(str(family), [*FAMILIES, *ALIASES], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(FAMILIES)}"
        raise NetworkError(f"there is no family {family!r}", hint)
    return found


class Graph(Protocol):
    """What `graph` takes: a networkx graph, or anything that has nodes and edges as one has."""

    nodes: Any
    edges: Any


def graph(graph: Graph, rows: Modes, columns: Modes, **more: Any) -> Network:
    """The network of any graph: one core a node, a bond along every edge; its first nodes carry rows and columns.

    Args:
        graph: a networkx graph; node k, in its order of nodes, has row k and column k.
        rows: the modes of the input features.
        columns: the modes of the output features.
        more: ``bond``, and what every family takes when it is called.

    Raises:
        NetworkError: options or modes that do not fit the graph.
    """
    number = {node: k for k, node in enumerate(graph.nodes, 1)}
    edges = tuple((number[edge[0]], number[edge[1]]) for edge in graph.edges)
    return _GRAPH(rows, columns, edges=edges, **more)
