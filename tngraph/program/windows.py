"""Reads at affine positions: legs are extended to the positions needed, and windows are laid out as views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import sympy

from tngraph.language.legs import leg_size, legs_size
from tngraph.language.network import Index, Leg, Read
from tngraph.language.sizes import is_same
from tngraph.program.expressions import Call, Expression, every, flip, replace_axis
from tngraph.program.layout import Context, LaidOut, arrange, separate
from tngraph.search.region import position_range

Window = tuple[int, Read, sympy.Expr, sympy.Expr]
"""An axis, the read on it, and the first and the last position needed."""
Sides = tuple[sympy.Expr, sympy.Expr]
"""The zeros before and after an axis."""
ZERO = sympy.Integer(0)


def extend(code: Expression, windows: Sequence[Window], context: Context) -> Expression:
    """Return a tensor whose axes hold exactly the positions needed.

    Positions outside hold zeros, or the leg again if it is cyclic. Padding comes before cropping. So even if all
    positions are outside, as may be at some run-time sizes, they read zero.
    """
    pads: dict[int, Sides] = {}
    crops = []
    for axis, read, start, last in windows:
        sides = (-start, last - read.leg.size + 1)
        if not read.wrap and not all(is_same(side, ZERO) for side in sides):
            pads[axis] = (sympy.Max(sides[0], ZERO), sympy.Max(sides[1], ZERO))
            if not all(side.is_nonnegative for side in sides):
                crops.append((axis, sympy.Max(start, ZERO), last - start + 1))
    if any(side != 0 for pair in pads.values() for side in pair):
        code = pad(code, [pads.get(axis, (ZERO, ZERO)) for axis in range(len(code.shape))])
    for axis, first, length in crops:
        code = Call("narrow", (code,), (axis, first, length), replace_axis(code.shape, axis, length))
    for axis, read, start, last in windows:
        if read.wrap:
            code = _select(code, axis, (start, last + 1), read.leg.size, context)
    return code


def pad(code: Expression, sides: Sequence[Sides]) -> Call:
    """Return a tensor with zeros around it."""
    shape = tuple(size + before + after for size, (before, after) in zip(code.shape, sides, strict=True))
    return Call("pad", (code,), tuple(sides), shape)


def _select(code: Expression, axis: int, ends: Sides, size: sympy.Expr, context: Context) -> Call:
    """Return a range of positions of a cyclic axis, taken modulo its size."""
    length = ends[1] - ends[0]
    positions = wrap_positions(Call("arange", (), ends, (length,)), size, context)
    return Call("index_select", (code, positions), (axis,), replace_axis(code.shape, axis, length))


def wrap_positions(positions: Expression, size: sympy.Expr, context: Context) -> Call:
    """Return positions modulo the size of a cyclic leg."""
    if context.is_fixed(size):
        return Call("remainder", (positions,), (size,), positions.shape)
    # A run-time modulus has to be a tensor for the ONNX exporter.
    return Call("remainder", (positions, Call("full", (), (size,), ())), (), positions.shape)


def _slide(code: Expression, axis: int, windows: tuple[sympy.Expr, sympy.Expr, int], context: Context) -> Call:
    """Return the windows of an axis. The axis then counts windows, and a new last axis runs inside them.

    Args:
        code: the tensor.
        axis: the axis that windows move along.
        windows: the number of windows, the size of one, and the step between two.
        context: the sizes that are known once the module is built.
    """
    count, size, step = windows
    rank, shape = len(code.shape), (*replace_axis(code.shape, axis, count), size)
    if context.is_fixed(size):
        return Call("unfold", (code,), (axis, size, step), shape)
    # `unfold` takes no symbolic size, so a traced graph would hold for the traced size only.
    bounds = (count,) if step == 1 else (ZERO, step * count, sympy.Integer(step))
    starts = Call("unsqueeze", (Call("arange", (), bounds, (count,)),), (1,), (count, sympy.Integer(1)))
    inside = Call("arange", (), (size,), (size,))
    positions = Call("add", (starts, inside), (), (count, size))
    gathered = Call("gather", (code, positions), (axis,), (*code.shape[:axis], count, size, *code.shape[axis + 1 :]))
    return gathered if axis == rank - 1 else Call("movedim", (gathered,), (axis + 1, rank), shape)


def _windows(code: Expression, axis: int, read: Read, legs: list[Leg], context: Context) -> Expression:
    """Return one axis laid out along its read's indices: the first index stays in place, the others go last.

    Indices whose size is known only at each call come first. The windows of the other indices then have a fixed size
    and are views. In another order the windows would be as long as the run-time index, and would have to be gathered.
    """
    terms = sorted(read.terms, key=lambda term: context.is_fixed(term[1].size))
    if not terms:
        legs.pop(axis)
        return Call("select", (code,), (axis, 0), (*code.shape[:axis], *code.shape[axis + 1 :]))
    place, flips = axis, []
    while terms:
        coefficient, index = terms.pop(0)
        if coefficient < 0:
            flips.append(place)
        step = abs(coefficient)
        if place == axis:
            legs[axis] = index
        else:
            legs.append(index)
        if terms:
            least, greatest = position_range(terms)
            code = _slide(code, place, (index.size, greatest - least + 1, step), context)
            place = len(legs)
        else:
            code = every(code, place, step, index.size)
    return flip(code, flips)


def unfold(tensor: LaidOut, reads: Sequence[Leg], context: Context) -> LaidOut:
    """Lay out reads along their indices: pad (or gather, if cyclic), then take one window view per index."""
    legs = list(tensor.legs)
    code = arrange(tensor, separate(legs))
    windows = []
    for read in reads:
        assert isinstance(read, Read)
        least, greatest = position_range(read.terms)
        windows.append((legs.index(read), read, read.offset + least, read.offset + greatest))
    code = extend(code, windows, context)
    for axis, read, _, _ in sorted(windows, key=lambda window: -window[0]):
        code = _windows(code, axis, read, legs, context)
    return LaidOut(code, separate(legs))


@dataclass(frozen=True, slots=True)
class Resolved:
    """A read that a convolution resolves: the kernel's index, and the geometry that ``F.conv`` needs."""

    read: Read
    kernel: Index
    dilation: int
    is_flipped: bool
    rest: Leg | None
    stride: int
    is_reversed: bool
    start: sympy.Expr
    last: sympy.Expr

    @property
    def extent(self) -> sympy.Expr:
        """The number of output positions [elements]."""
        return legs_size(self.left)

    @property
    def left(self) -> tuple[Leg, ...]:
        """The leg that remains of the read, if one does."""
        return (self.rest,) if self.rest is not None else ()


def _resolve(read: Read, kernel: Index, result: Sequence[Leg]) -> Resolved:
    coefficient = next(c for c, index in read.terms if index == kernel)
    terms = tuple(term for term in read.terms if term[1] != kernel)
    stride = gcd(*(c for c, _ in terms)) if terms else 1
    rest: Leg | None = terms[0][1] if terms else None
    if len(terms) > 1:
        names = {index for _, index in terms}
        rest = next(leg for leg in result if isinstance(leg, Read) and names == set(leg.indices))
    least, _ = position_range(terms)
    shift = coefficient * (kernel.size - 1) if coefficient < 0 else sympy.Integer(0)
    start = read.offset + least + shift
    extent = leg_size(rest) if rest is not None else sympy.Integer(1)
    last = start + stride * (extent - 1) + abs(coefficient) * (kernel.size - 1)
    is_reversed = len(terms) == 1 and terms[0][0] < 0
    return Resolved(read, kernel, abs(coefficient), coefficient < 0, rest, stride, is_reversed, start, last)


def resolved_reads(signal: LaidOut, kernel: LaidOut, result: Sequence[Leg]) -> list[Resolved]:
    """Return the reads of one operand that the other one's indices resolve."""
    gone = [leg for leg in signal.legs if isinstance(leg, Read) and leg not in result]
    return [_resolve(read, next(i for i in read.indices if i in kernel.legs), result) for read in gone]


def lay_taps(tensor: LaidOut, resolved: Sequence[Resolved], context: Context) -> LaidOut:
    """Lay out the kernel's index of each resolved read beside the rest of the read, as a window view."""
    legs = list(tensor.legs)
    windows = [(legs.index(read.read), read.read, read.start, read.last) for read in resolved]
    code = extend(arrange(tensor, separate(legs)), windows, context)
    for (axis, _, _, _), read in zip(windows, resolved, strict=True):
        place = axis
        if read.rest is not None:
            legs[axis] = read.rest
            place = len(legs)
            legs.append(read.kernel)
            span = read.dilation * (read.kernel.size - 1) + 1
            code = _slide(code, axis, (read.extent, span, read.stride), context)
        legs[place] = read.kernel
        code = every(code, place, read.dilation, read.kernel.size)
        code = flip(code, [axis] * read.is_reversed + [place] * read.is_flipped)
    return LaidOut(code, separate(legs))
