"""Legs of one tensor that share an index, at least one of them read at positions: gathered together.

`windows.unfold` lays out each read separately: ``x[i + j, i]`` would first have three axes, of which two are then taken
along their diagonal. Here only the entries of the result are read, each once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import sympy

from tngraph.language.legs import leg_indices, leg_size
from tngraph.language.network import Index, Leg
from tngraph.program.expressions import Call, Expression, Shape, reshape
from tngraph.program.layout import Context, LaidOut, arrange, separate
from tngraph.program.windows import wrap_positions
from tngraph.search.region import position_range

ZERO, ONE = sympy.Integer(0), sympy.Integer(1)


def gather_diagonals(tensor: LaidOut, reads: Sequence[Leg], context: Context) -> LaidOut:
    """Lay out the reads that share an index with another leg, together with the legs they share it with.

    Args:
        tensor: the tensor, which has no leg twice.
        reads: the legs to lay out.
        context: the sizes that are known once the module is built.
    """
    for read in reads:
        tied = _tied(tensor.legs, read)
        if len(tied) > 1:
            tensor = _gather(tensor, tied, context)
    return tensor


def _tied(legs: Sequence[Leg], read: Leg) -> tuple[Leg, ...]:
    """Return the legs that shared indices tie to a read, including the read; none if it is laid out already."""
    tied: tuple[Leg, ...] = tuple(leg for leg in legs if leg == read)
    while True:
        indices = leg_indices(tied)
        wider = tuple(leg for leg in legs if any(index in indices for index in leg_indices([leg])))
        if len(wider) <= len(tied):
            return tied
        tied = wider


def _gather(tensor: LaidOut, tied: Sequence[Leg], context: Context) -> LaidOut:
    """Return a tensor with the tied legs laid out along their indices, which come first.

    A position outside its leg is moved to the border, and the entry read there is then set to zero.
    """
    indices, rest = leg_indices(tied), tuple(leg for leg in tensor.legs if leg not in tied)
    positions = [_positions(leg, indices, context) for leg in tied]
    inside = [
        position if _is_inside(leg) else _clamp(position, leg) for position, leg in zip(positions, tied, strict=True)
    ]
    shape = tuple(leg_size(leg) for leg in (*indices, *rest))
    code = Call("gather", (arrange(tensor, separate((*tied, *rest))), *inside), (0,), shape)
    for position, leg in zip(positions, tied, strict=True):
        if not _is_inside(leg):
            outside = Call("differs", (position, _clamp(position, leg)), (), position.shape)
            mask = reshape(outside, (*position.shape, *(ONE for _ in rest))) if rest else outside
            code = Call("masked_fill", (code, mask), (), shape)
    return LaidOut(code, separate((*indices, *rest)))


def _positions(leg: Leg, indices: Sequence[Index], context: Context) -> Expression:
    """Return the positions at which a leg is read, with one axis per index.

    The axis has length 1 if the leg does not depend on the index.
    """
    if isinstance(leg, Index):
        return _run(ZERO, 1, leg, indices)
    starts = (leg.offset, *(ZERO for _ in leg.terms[1:]))
    runs = [_run(start, c, index, indices) for start, (c, index) in zip(starts, leg.terms, strict=True)]
    total = reduce(lambda left, right: Call("add", (left, right), (), _spread(left.shape, right.shape)), runs)
    return wrap_positions(total, leg.leg.size, context) if leg.wrap else total


def _run(start: sympy.Expr, step: int, index: Index, indices: Sequence[Index]) -> Expression:
    """Return the positions along one index, on its axis."""
    stop = start + step * index.size
    bounds = (start, stop, sympy.Integer(step)) if step != 1 else (start, stop) if start != 0 else (stop,)
    along = Call("arange", (), bounds, (index.size,))
    shape = tuple(index.size if other == index else ONE for other in indices)
    return along if len(shape) == 1 else reshape(along, shape)


def _spread(left: Shape, right: Shape) -> Shape:
    """Return the broadcast shape of two tensors that are longer than one entry on different axes."""
    return tuple(b if a == 1 else a for a, b in zip(left, right, strict=True))


def _is_inside(leg: Leg) -> bool:
    """Return whether a leg is never read outside its range."""
    if isinstance(leg, Index) or leg.wrap:
        return True
    least, greatest = position_range(leg.terms)
    return all(side.is_nonnegative for side in (leg.offset + least, leg.leg.size - 1 - leg.offset - greatest))


def _clamp(positions: Expression, leg: Leg) -> Expression:
    return Call("clamp", (positions,), (leg_size(leg) - 1,), positions.shape)
