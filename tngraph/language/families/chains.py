"""Families that are a chain, a ring or another graph of cores, with one core per site."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import sympy

from tngraph.errors import NetworkError
from tngraph.language.families.weight import Legs, Pairs, Rank, Ranks, Weight, multiply
from tngraph.language.handles import Expression, Position
from tngraph.language.sizes import is_same


def mpo(w: Weight, bond: Ranks = sympy.Integer(4)) -> Expression:
    """Matrix product operator, or TT-matrix: one core a site, neighbours joined by a bond.

         i1     i2     i3
         |      |      |
        (g1)-b1-(g2)-b2-(g3)
         |      |      |
         o1     o2     o3

    A convolution's window is one more site at the end (rTT).

    Args:
        bond: the bond dimension, one for all bonds or one each.

    Source: Oseledets (2010); Novikov et al., arXiv 1509.06569; Gao et al., arXiv 1904.06194; Su et al.,
        arXiv 1805.10352, for the convolution.
    """
    return _chain(w, w.sites(), bond)


def plain_tt(w: Weight, bond: Ranks = sympy.Integer(4)) -> Expression:
    """Tensor train over all legs in a row: those of the input, of the window, of the output.

         i1     i2     o1     o2
         |      |      |      |
        (g1)-b1-(g2)-b2-(g3)-b3-(g4)

    Args:
        bond: the bond dimension, one for all bonds or one each.

    Source: Yang et al. (LoRETTA), arXiv 2402.11417; Su et al., arXiv 1805.10352, for the convolution.
    """
    return _chain(w, [(leg,) for leg in w.rows + w.kernel + w.columns], bond)


def _chain(w: Weight, sites: Sequence[Legs], bond: Ranks) -> Expression:
    """Return an open chain. A bond needs no more than the smaller volume of the two sides that it joins."""
    ranks = w.ranks(bond, len(sites) - 1)
    volumes = [w.volume(site) for site in sites]
    bonds: list[Legs] = [()]
    for k, rank in enumerate(ranks, 1):
        bonds.append((w.bond(f"b{k}", rank, w.least(sympy.Mul(*volumes[:k]), sympy.Mul(*volumes[k:]))),))
    bonds.append(())
    return multiply([w.param(f"g{k}", *bonds[k - 1], *site, *bonds[k]) for k, site in enumerate(sites, 1)])


def ring(w: Weight, bond: Ranks = sympy.Integer(4)) -> Expression:
    """Tensor ring: a matrix product operator whose ends are joined too.

         i1     i2     i3
         |      |      |
      +-(g1)-b1-(g2)-b2-(g3)-+
      |  |      |      |     |
      |  o1     o2     o3    |
      +----------b3----------+

    Args:
        bond: the bond dimension, one for all bonds or one each; the last bond joins the last site to the first.

    Source: Zhao et al., arXiv 1606.05535; Wang et al., arXiv 1802.09052.
    """
    sites = w.sites()
    bonds = [w.bond(f"b{k}", rank) for k, rank in enumerate(w.ranks(bond, len(sites)), 1)]
    if len(sites) == 1:
        return _traced(w, sites[0], bonds[0])
    return multiply([w.param(f"g{k + 1}", bonds[k - 1], *site, bonds[k]) for k, site in enumerate(sites)])


def _traced(w: Weight, site: Legs, bond: Position) -> Expression:
    """Return a ring of one core."""
    other = w.index("b2", w.size(bond))
    return w.param("g1", bond, *site, other)[(bond, *site, bond)]


def tied_ring(w: Weight, bond: Rank = sympy.Integer(4)) -> Expression:
    """Tensor ring of one shared core: every site is the same. A window has a core of its own.

         i1     i2     i3
         |      |      |
      +-(g)-b1-(g)-b2-(g)-+
      |  |      |      |  |
      |  o1     o2     o3 |
      +---------b3--------+

    Args:
        bond: the bond dimension.

    Source: translation-invariant matrix product operators; params are counted once.
    """
    tied, sites = w.pairs(), w.sites()
    _check_equal(w, tied)
    bonds = [w.bond(f"b{k}", bond) for k in range(1, len(sites) + 1)]
    left, right = w.index("l", bond), w.index("r", bond)
    own = [w.index(f"s{k}", w.size(leg)) for k, leg in enumerate(tied[0], 1)]
    core = w.param("g", left, *own, right)
    factors = [core[(bonds[k - 1], *site, bonds[k])] for k, site in enumerate(tied)]
    for k in range(len(tied), len(sites)):
        factors.append(w.param(f"k{k - len(tied) + 1}", bonds[k - 1], *sites[k], bonds[k]))
    return multiply(factors)


def _check_equal(w: Weight, sites: Sequence[Legs]) -> None:
    if not sites:
        raise NetworkError(
            f"tied_ring has no site for its core: {w.name!r} is all window", "give it rows or columns", at=w.name
        )
    for site, other in pairwise(sites):
        if not all(is_same(w.size(a), w.size(b)) for a, b in zip(site, other, strict=True)):
            raise NetworkError(
                f"tied_ring has one core for all sites, and those of {w.name!r} differ in size",
                "give all rows one size, and all columns one size",
                at=w.name,
            )


def kronecker(w: Weight) -> Expression:
    """Kronecker product: one core a site, and no bond.

         i1    i2    i3
         |     |     |
        (g1)  (g2)  (g3)
         |     |     |
         o1    o2    o3

    Source: Zhou et al., arXiv 1507.05775.
    """
    return multiply([w.param(f"g{k}", *site) for k, site in enumerate(w.sites(), 1)])


def low_rank(w: Weight, rank: Rank = sympy.Integer(8)) -> Expression:
    r"""Low rank: two cores and one bond. A window is split: its first half stands with the rows (SVD).

         i1 i2         o1 o2
          \ |           | /
          (a)-----r-----(b)

    Args:
        rank: the bond dimension.

    Source: Denton et al., arXiv 1404.0736; Jaderberg et al., arXiv 1405.3866, for the split window.
    """
    w.check_groups()
    half = (len(w.kernel) + 1) // 2
    left, right = w.rows + w.kernel[:half], w.kernel[half:] + w.columns
    r = w.bond("r", rank, w.least(w.volume(left), w.volume(right)))
    return w.param("a", *left, r) * w.param("b", r, *right)


def graph(w: Weight, edges: Pairs, bond: Ranks = sympy.Integer(2)) -> Expression:
    """Any graph: one core a node, a bond along every edge; node k has row k and column k.

            i1      i2
            |       |
        o1-(g1)-b1-(g2)-o2          edges=[[1, 2], [2, 3], [3, 4], [4, 1]]
            b4      b2
        o4-(g4)-b3-(g3)-o3
            |       |
            i4      i3

    Nodes beyond the last site have no legs of their own. A convolution's window is one more site at the end.

    Args:
        edges: pairs of nodes, counted from 1.
        bond: the bond dimension, one for all edges or one each.

    Source: projected entangled pairs, hypercubes and random graphs alike.
    """
    sites = w.sites()
    count = max([len(sites), *(node for edge in edges for node in edge)])
    for edge in edges:
        if len(edge) != 2 or edge[0] == edge[1] or min(edge) < 1:
            raise NetworkError(
                f"the edge {list(edge)} joins no two nodes", "an edge is two numbers, counted from 1", w.name
            )
    if count > len(sites) + len(edges):
        raise NetworkError(f"the nodes of the edges count to {count}", "number them without gaps", at=w.name)
    sites += [()] * (count - len(sites))
    bonds = [w.bond(f"b{k}", rank) for k, rank in enumerate(w.ranks(bond, len(edges), "edges"), 1)]
    ends = [tuple(b for b, edge in zip(bonds, edges, strict=True) if k in edge) for k in range(1, count + 1)]
    if any(not site and not end for site, end in zip(sites, ends, strict=True)):
        raise NetworkError(f"a node of the graph of {w.name!r} has no legs", "number nodes without gaps", at=w.name)
    return multiply([w.param(f"g{k}", *end, *site) for k, (site, end) in enumerate(zip(sites, ends, strict=True), 1)])
