"""Families of block-sparse factors: each core mixes one axis and runs over the others as a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy

from tngraph.errors import NetworkError
from tngraph.language.builder import Call
from tngraph.language.families.weight import Legs, Rank, Ranks, Weight, multiply
from tngraph.language.handles import Expression


def btt(w: Weight, rank: Ranks = sympy.Integer(1)) -> Expression:
    """Block tensor train: core k turns one row into one column, with its own entries for all other axes.

        x[g, a] -> A[g, a, f, r] -> z[f, g, r] -> B[f, g, r, e] -> y[f, e]        (two cores)

    The last row is turned first; there are as many cores as rows (and columns).

    Args:
        rank: of the bond between one core and the next, one for all or one each.

    Source: Qiu et al., arXiv 2406.06248, with its initialisation: a core's standard deviation is
        √(1/fan-in)·min(1, √(fan-out/fan-in)).
    """
    ranks = w.ranks(rank, max(len(w.rows) - 1, 0))
    return _blocks(w, [(w.bond(f"r{k}", r),) for k, r in enumerate(ranks, 1)], _scaled)


def butterfly(w: Weight) -> Expression:
    """Butterfly: a block tensor train without bonds; with axes of size 2 a product of log2(n) sparse factors.

        x[i1, i2, i3] -> g1[i1, i2, i3, o1] -> g2[o1, i1, i2, o2] -> g3[o1, o2, i1, o3] -> y[o1, o2, o3]

    Source: Dao et al., arXiv 1903.05895. It starts with random signs, as a Hadamard matrix in scrambled order.
    """
    count = max(len(w.rows), 1)
    size = (3.0 * w.fan_in) ** (-0.5 / count)
    return _blocks(w, [()] * (count - 1), lambda *_: ("signs", size))


def monarch(w: Weight) -> Expression:
    """Monarch: two block-diagonal factors with a transposition in between; rows (k, p) and columns (s, q).

        x[k, p] -> w1[k, q, p] -> z[k, q] -> w2[q, s, k] -> y[s, q]

    Source: Dao et al., arXiv 2204.00595.
    """
    (k, p), (s, q) = _split(w, 2, "rows (k, p) and columns (s, q)")
    return w.param("w1", k, q, p) * w.param("w2", q, s, k)


def einsum(w: Weight, rank: Rank = sympy.Integer(1)) -> Expression:
    """The einsum family: two factors over three row axes (g, b, a) and three column axes (f, d, e).

        x[g, b, a] -> A[f, d, r, g, a] -> z[g, b, f, d, r] -> B[f, e, r, g, b] -> y[f, d, e]

    By the sizes of its axes, some of which may be 1, it is low rank, Kronecker, tensor train, block tensor train,
    Monarch, or anything between: ``tg.families.split_modes(4096, (0.5, 0.25, 0.25))`` turns its exponents into modes.

    Args:
        rank: the size of r.

    Source: Potapczynski et al., arXiv 2410.02117.
    """
    (g, b, a), (f, d, e) = _split(w, 3, "rows (g, b, a) and columns (f, d, e)")
    r = w.bond("r", rank)
    return w.param("A", f, d, r, g, a) * w.param("B", f, e, r, g, b)


def _split(w: Weight, count: int, shape: str) -> tuple[Legs, Legs]:
    w.check_groups()
    if len(w.rows) != count or len(w.columns) != count:
        raise NetworkError(
            f"{w.family} has {shape}, and {w.name!r} has {len(w.rows)} rows and {len(w.columns)} columns",
            "an axis of size 1 may stand for one that is not there",
            at=w.name,
        )
    return w.rows, w.columns


def _scaled(w: Weight, ins: Legs, outs: Legs) -> Call:
    """Return the initialisation with variance 1/fan-in · min(1, fan-out/fan-in)."""
    fan_in, fan_out = w.volume(ins), w.volume(outs)
    return ("fan_in", fan_in if w.known(fan_in) <= w.known(fan_out) else fan_in**2 // fan_out)


def _blocks(w: Weight, bonds: Sequence[Legs], init: Callable[[Weight, Legs, Legs], Call]) -> Expression:
    """Return one core per pair of a row and a column, last row first, joined by these bonds.

    A core is a batch of matrices. Its legs are first the axes that it has separate entries for, then the summed ones,
    then those of its result.
    """
    w.check_groups()
    w.sites()
    count = len(w.rows)
    ends: list[Legs] = [(), *bonds, ()]
    factors = []
    for k in range(count):
        row, column = w.rows[count - 1 - k], w.columns[k]
        apart, summed, result = (*w.columns[:k], *w.rows[: count - 1 - k]), (row, *ends[k]), (column, *ends[k + 1])
        factors.append(w.param(f"g{k + 1}", *apart, *summed, *result, init=init(w, summed, result)))
    return multiply(factors)
