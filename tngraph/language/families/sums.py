"""Families that are a sum of products over a shared rank, or a core with a factor on every leg."""

from __future__ import annotations

import sympy

from tngraph.errors import NetworkError
from tngraph.language.families.weight import Flag, Legs, Nested, Rank, Ranks, Weight, multiply
from tngraph.language.handles import Expression, Position


def cp(w: Weight, rank: Rank = sympy.Integer(8), separable: Flag = False) -> Expression:
    r"""Canonical polyadic (CP): one factor per leg, all joined by one index.

        i1   i2   o1   o2
        |    |    |    |
       (a1) (a2) (c1) (c2)
         \____\__r_/____/

    A convolution's window is one factor of its own (a depthwise convolution of r channels).

    Args:
        rank: the size of the shared index.
        separable: one factor for every axis of the window.

    Source: Lebedev et al., arXiv 1412.6553.
    """
    windows: list[Legs] = [(leg,) for leg in w.kernel] if separable else [w.kernel] if w.kernel else []
    r = _shared(w, rank, [*((leg,) for leg in w.rows + w.columns), *windows])
    factors = [w.param(f"a{k}", leg, r) for k, leg in enumerate(w.rows, 1)]
    factors += [w.param(f"k{k}", r, *window) for k, window in enumerate(windows, 1)]
    return multiply([*factors, *(w.param(f"c{k}", r, leg) for k, leg in enumerate(w.columns, 1))])


def rcp(w: Weight, rank: Rank = sympy.Integer(8)) -> Expression:
    r"""Reshaped CP: one factor per site, with the site's row and column, all joined by one index.

        i1 o1  i2 o2  i3 o3
         \ /    \ /    \ /
         (g1)   (g2)   (g3)
           \_____|__r__/

    A sum of ``rank`` Kronecker products. A convolution's window is one more site.

    Args:
        rank: the size of the shared index.

    Source: Su et al., arXiv 1805.10352.
    """
    sites = w.sites()
    r = _shared(w, rank, sites)
    return multiply([w.param(f"g{k}", r, *site) for k, site in enumerate(sites, 1)])


def _shared(w: Weight, rank: sympy.Expr, groups: list[Legs]) -> Position:
    """Return the index that all factors share.

    Any tensor is a sum of at most as many products as the volume of all its factors but the largest.
    """
    volumes = sorted((w.volume(group) for group in groups), key=w.known)
    return w.bond("r", rank, sympy.Mul(*volumes[:-1]) if len(volumes) > 1 else sympy.Integer(1))


def tucker(w: Weight, rank: Ranks = sympy.Integer(4)) -> Expression:
    """Tucker: a core with one factor on every row and column; a window stays on the core (Tucker-2).

        i1   i2   o1   o2
        |    |    |    |
       (u1) (u2) (v1) (v2)
        |p1  |p2  |q1  |q2
       (_______core_______)

    Args:
        rank: one for all factors or one each, rows first.

    Source: Kim et al., arXiv 1511.06530; Su et al., arXiv 1805.10352 (rTK).
    """
    legs = w.rows + w.columns
    ranks = w.ranks(rank, len(legs), "factors")
    names = [f"p{k}" for k in range(1, len(w.rows) + 1)] + [f"q{k}" for k in range(1, len(w.columns) + 1)]
    inner = [w.bond(name, r, w.size(leg)) for name, r, leg in zip(names, ranks, legs, strict=True)]
    ins, outs = inner[: len(w.rows)], inner[len(w.rows) :]
    factors = [w.param(f"u{k}", leg, p) for k, (leg, p) in enumerate(zip(w.rows, ins, strict=True), 1)]
    factors.append(w.param("core", *ins, *w.kernel, *outs))
    factors += [w.param(f"v{k}", q, leg) for k, (leg, q) in enumerate(zip(w.columns, outs, strict=True), 1)]
    return multiply(factors)


def block_term(w: Weight, blocks: Rank = sympy.Integer(2), rank: Rank = sympy.Integer(2)) -> Expression:
    r"""Block term: a sum of Tucker weights, with one index over the blocks on every core.

        i1-(u1)-p1-(core)-q1-(v1)-o1
             \_______|__n_____/

    Args:
        rank: of every factor of a block.
        blocks: how many there are.

    Source: De Lathauwer (2008); Ye et al., arXiv 1712.05134.
    """
    n = w.index("n", blocks)
    ins = [w.bond(f"p{k}", rank, w.size(leg)) for k, leg in enumerate(w.rows, 1)]
    outs = [w.bond(f"q{k}", rank, w.size(leg)) for k, leg in enumerate(w.columns, 1)]
    factors = [w.param(f"u{k}", n, leg, p) for k, (leg, p) in enumerate(zip(w.rows, ins, strict=True), 1)]
    factors.append(w.param("core", n, *ins, *w.kernel, *outs))
    factors += [w.param(f"v{k}", n, q, leg) for k, (leg, q) in enumerate(zip(w.columns, outs, strict=True), 1)]
    return multiply(factors)


def tree(w: Weight, bond: Rank = sympy.Integer(4), grouping: Nested = ()) -> Expression:
    r"""Tree, or hierarchical Tucker: a core per site, joined group by group.

        i1 o1  i2 o2  i3 o3  i4 o4
         \ /    \ /    \ /    \ /
         (g1)   (g2)   (g3)   (g4)
          b1\   /b2     b4\   /b5         grouping=[[1, 2], [3, 4]]
             (t1)          (t2)
              b3\__(t3)__/b6

    Args:
        bond: the bond dimension.
        grouping: the sites, counted from 1, in groups of groups: ``[[1, 2], [3, [4, 5]]]``; halves of halves when
            absent. A convolution's window is one more site at the end, joined at the top if no group names it.

    Source: Grasedyck (2010); Yin et al., arXiv 2012.01000.
    """
    sites = w.sites()
    nested = grouping or _halves(range(1, len(sites) + 1))
    nested = (*nested, *(site for site in range(len(w.pairs()) + 1, len(sites) + 1) if site not in _sites_of(nested)))
    named = sorted(_sites_of(nested))
    if named != list(range(1, len(sites) + 1)):
        raise NetworkError(
            f"the grouping of tree names the sites {named}, and {w.name!r} has {len(sites)}",
            "name every site once, counted from 1",
            at=w.name,
        )
    return multiply(_SiteTree(w, bond, sites).cores(nested))


def _halves(sites: range) -> Nested:
    """Return sites in balanced groups of groups."""
    if len(sites) <= 2:
        return tuple(sites)
    half = (len(sites) + 1) // 2
    parts = (_halves(sites[:half]), _halves(sites[half:]))
    return tuple(part[0] if len(part) == 1 else part for part in parts)


def _sites_of(nested: Nested | int) -> list[int]:
    return [nested] if isinstance(nested, int) else [site for part in nested for site in _sites_of(part)]


class _SiteTree:
    """A builder of the cores of a tree, leaves first."""

    def __init__(self, w: Weight, rank: sympy.Expr, sites: list[Legs]) -> None:
        self.w, self.rank, self.sites = w, rank, sites
        self.bonds = self.inner = 0

    def cores(self, nested: Nested) -> list[Expression]:
        """Return all cores, the top one last."""
        factors: list[Expression] = []
        self._join(nested, factors, is_top=True)
        return factors

    def _join(self, nested: Nested | int, factors: list[Expression], *, is_top: bool = False) -> Legs:
        """Add the cores below a group, and return the bond above it."""
        if isinstance(nested, int):
            name, legs = f"g{nested}", self.sites[nested - 1]
        else:
            legs = tuple(leg for part in nested for leg in self._join(part, factors))
            self.inner += 1
            name = f"t{self.inner}"
        bond = () if is_top else (self._bond(nested, legs),)
        factors.append(self.w.param(name, *legs, *bond))
        return bond

    def _bond(self, nested: Nested | int, below: Legs) -> Position:
        self.bonds += 1
        inside = {leg for site in _sites_of(nested) for leg in self.sites[site - 1]}
        outside = self.w.volume(leg for site in self.sites for leg in site if leg not in inside)
        return self.w.bond(f"b{self.bonds}", self.rank, self.w.least(self.w.volume(below), outside))
