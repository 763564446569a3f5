"""Reads at affine positions: windows as views, and convolutions, transposed or not, as one call of PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import sympy

from tngraph.language.legs import leg_size, legs_size
from tngraph.language.network import Index, Leg, Read
from tngraph.language.sizes import is_same
from tngraph.program.expressions import Call, Expression, Variable, contiguous, every, flip, replace_axis, reshape
from tngraph.program.layout import Axes, Context, LaidOut, arrange, axes_shape, separate
from tngraph.search.region import position_range

MOST_SPATIAL = 3
"""The most dimensions that PyTorch convolves over at once."""
FEWEST_POSITIONS = 32
"""With fewer positions per sample, one matrix product over all samples is faster, despite its copies [elements]."""
Window = tuple[int, Read, sympy.Expr, sympy.Expr]
"""An axis, the read on it, and the first and the last position needed."""
Sides = tuple[sympy.Expr, sympy.Expr]
"""The zeros before and after an axis."""
ZERO = sympy.Integer(0)


def _extend(code: Expression, windows: Sequence[Window], context: Context) -> Expression:
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
        code = _pad(code, [pads.get(axis, (ZERO, ZERO)) for axis in range(len(code.shape))])
    for axis, first, length in crops:
        code = Call("narrow", (code,), (axis, first, length), replace_axis(code.shape, axis, length))
    for axis, read, start, last in windows:
        if read.wrap:
            code = _select(code, axis, (start, last + 1), read.leg.size, context)
    return code


def _pad(code: Expression, sides: Sequence[Sides]) -> Call:
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
    code = _extend(code, windows, context)
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
    windows = [(legs.index(each.read), each.read, each.start, each.last) for each in resolved]
    code = _extend(arrange(tensor, separate(legs)), windows, context)
    for (axis, _, _, _), each in zip(windows, resolved, strict=True):
        place = axis
        if each.rest is not None:
            legs[axis] = each.rest
            place = len(legs)
            legs.append(each.kernel)
            span = each.dilation * (each.kernel.size - 1) + 1
            code = _slide(code, axis, (each.extent, span, each.stride), context)
        legs[place] = each.kernel
        code = every(code, place, each.dilation, each.kernel.size)
        code = flip(code, [axis] * each.is_reversed + [place] * each.is_flipped)
    return LaidOut(code, separate(legs))


def can_convolve(
    signal: LaidOut, kernel: LaidOut, resolved: Sequence[Resolved], legs: Sequence[Leg], context: Context
) -> bool:
    """Return whether a convolution is one ``F.conv*``: along few axes, in a number of groups that is fixed."""
    groups = tuple(leg for leg in signal.legs if leg in kernel.legs and leg in legs)
    return len(resolved) <= MOST_SPATIAL and context.is_fixed(legs_size(groups))


@dataclass(frozen=True, slots=True)
class _Slide:
    """An axis of a convolution: a read that it resolves, or legs along which the kernel has one entry.

    Attributes:
        legs: the legs of the signal on this axis.
        taps: the legs of the kernel.
        result: the legs that remain in the result.
        resolved: the read, if there is one.
    """

    legs: tuple[Leg, ...]
    taps: tuple[Leg, ...]
    result: tuple[Leg, ...]
    resolved: Resolved | None = None


def _slides(signal: LaidOut, kernel: LaidOut, resolving: Iterable[_Slide], context: Context) -> tuple[_Slide, ...]:
    """Return the axes of a convolution, in the signal's order.

    Positions behind the channels are axes even if the convolution does not resolve them, since rows in front of the
    channels would need a copy of the signal.
    """
    by_leg = {slide.legs[0]: slide for slide in resolving}
    is_behind = not any(leg in kernel.legs for leg in signal.legs)
    slides: list[_Slide] = []
    for leg in signal.legs:
        is_behind = is_behind or leg in kernel.legs
        if leg in by_leg:
            slides.append(by_leg[leg])
        elif is_behind and context.is_position(leg) and leg not in kernel.legs:
            beside = slides.pop().legs if slides and slides[-1].resolved is None else ()
            slides.append(_Slide((*beside, leg), (), (*beside, leg)))
    if len(slides) > MOST_SPATIAL:
        return tuple(slide for slide in slides if slide.resolved is not None)
    return tuple(slides)


class _Roles(NamedTuple):
    """The legs of a convolution that are not on its axes."""

    rows: tuple[Leg, ...]
    groups: tuple[Leg, ...]
    channels: tuple[Leg, ...]
    columns: tuple[Leg, ...]


def _find_roles(signal: LaidOut, kernel: LaidOut, slides: Sequence[_Slide], legs: Sequence[Leg]) -> _Roles:
    """Return the roles of the legs that are not on axes.

    Legs of the signal alone are its batch. Legs of both operands are channels if they are summed, and groups otherwise.
    """
    placed = [leg for slide in slides for leg in (*slide.legs, *slide.taps)]
    shared = tuple(leg for leg in signal.legs if leg in kernel.legs)
    groups, channels = (tuple(leg for leg in shared if (leg in legs) == is_kept) for is_kept in (True, False))
    rows, columns = (
        tuple(leg for leg in tensor.legs if leg not in shared and leg not in placed) for tensor in (signal, kernel)
    )
    return _Roles(rows, groups, channels, columns)


def convolve(
    signal: LaidOut, kernel: LaidOut, resolved: Sequence[Resolved], legs: Sequence[Leg], context: Context
) -> LaidOut:
    """Return one ``F.conv*`` over all resolved reads."""
    resolving = [_Slide((each.read,), (each.kernel,), each.left, each) for each in resolved]
    slides = _slides(signal, kernel, resolving, context)
    rows, groups, channels, columns = _find_roles(signal, kernel, slides, legs)
    code = arrange(signal, (rows, groups + channels, *(slide.legs for slide in slides)))
    pads = [_padding(slide.resolved) for slide in slides]
    if None in pads:  # the ``padding`` argument cannot do one axis, so all are extended first
        reads = [(2 + k, slide.resolved) for k, slide in enumerate(slides) if slide.resolved is not None]
        code = _extend(code, [(axis, each.read, each.start, each.last) for axis, each in reads], context)
    elif isinstance(code, Call) and code.function == "permute":
        code = contiguous(code)  # inductor cannot keep a permuted view of unknown strides for the backward pass
    weight = arrange(kernel, (groups + columns, channels, *(slide.taps for slide in slides)))
    weight = flip(weight, [2 + k for k, slide in enumerate(slides) if slide.resolved and slide.resolved.is_flipped])
    if len(slides) == MOST_SPATIAL:
        code, weight = _in_order(code), _in_order(weight)
    elif kernel.legs[-1] in channels:
        weight = _in_order(weight)  # else PyTorch would copy the signal to channels-last
    options = (
        tuple(slide.resolved.stride if slide.resolved else 1 for slide in slides),
        tuple(0 if pad is None or None in pads else pad for pad in pads),
        tuple(slide.resolved.dilation if slide.resolved else 1 for slide in slides),
        legs_size(groups),
    )
    axes = (rows, groups + columns, *(slide.result for slide in slides))
    code = Call("conv", (code, weight), options, axes_shape(axes))
    reversed_axes = [2 + k for k, slide in enumerate(slides) if slide.resolved and slide.resolved.is_reversed]
    return LaidOut(flip(code, reversed_axes), axes)


@dataclass(frozen=True, slots=True)
class _Spread:
    """An axis of the result of a transposed convolution, and where its wanted positions begin.

    Each value of the resolved index shifts the positions of the read leg by another `step`.
    """

    resolved: Resolved

    @property
    def step(self) -> int:
        """The distance on the result between two values of the index."""
        return self.resolved.dilation

    @property
    def full(self) -> sympy.Expr:
        """The number of all positions that are reached [elements]."""
        return self.step * (self.resolved.kernel.size - 1) + self.resolved.read.leg.size

    @property
    def first(self) -> sympy.Expr:
        """The first wanted position, negative if zeros come before the reached ones."""
        return self.resolved.last - self.resolved.extent + 1

    @property
    def margins(self) -> tuple[int, int] | None:
        """The ``padding`` and ``output_padding`` that leave the wanted positions, or None if no such arguments do."""
        added = sympy.expand(self.resolved.extent - self.full + 2 * self.first)
        if not self.first.is_Integer or self.first < 0 or not added.is_Integer or not 0 <= added < self.step:
            return None
        return int(self.first), int(added)

    def cut(self, code: Expression, axis: int, context: Context) -> Expression:
        """Return the wanted positions of all reached ones, with zeros where none is reached."""
        leg = Index(self.resolved.read.leg.name, self.full)
        window = (axis, Read(leg, ((1, leg),), ZERO), self.first, self.first + self.resolved.extent - 1)
        return _extend(code, [window], context)


def convolve_transposed(
    signal: LaidOut, kernel: LaidOut, resolved: Sequence[Resolved], legs: Sequence[Leg], context: Context
) -> LaidOut:
    """Return one ``F.conv_transpose*``, which adds every position of the kernel to all results that read it.

    Args:
        signal: the operand with the indices that are resolved.
        kernel: the operand that is read.
        resolved: the reads.
        legs: the legs of the result.
        context: the sizes that are known once the module is built.
    """
    resolving = [_Slide((each.kernel,), (each.read,), each.left, each) for each in resolved]
    slides = _slides(signal, kernel, resolving, context)
    rows, groups, channels, columns = _find_roles(signal, kernel, slides, legs)
    code = arrange(signal, (rows, groups + channels, *(slide.legs for slide in slides)))
    code = flip(code, [2 + k for k, slide in enumerate(slides) if slide.resolved and not slide.resolved.is_flipped])
    weight = arrange(kernel, (groups + channels, columns, *(slide.taps for slide in slides)))
    spreads = {2 + k: _Spread(slide.resolved) for k, slide in enumerate(slides) if slide.resolved}
    margins = [spreads[axis].margins or (0, 0) if axis in spreads else (0, 0) for axis in range(2, 2 + len(slides))]
    steps = tuple(spreads[axis].step if axis in spreads else 1 for axis in range(2, 2 + len(slides)))
    padding, added = zip(*margins, strict=True)
    axes = (rows, groups + columns, *(slide.result for slide in slides))
    sizes = list(axes_shape(axes))
    by_hand = {axis: spread for axis, spread in spreads.items() if spread.margins is None}
    for axis, spread in by_hand.items():
        sizes[axis] = spread.full
    arguments = (steps, padding, added, legs_size(groups))
    code = Call("conv_transpose", (_in_order(code), _in_order(weight)), arguments, tuple(sizes))
    for axis, spread in by_hand.items():
        code = spread.cut(code, axis, context)
    reversed_axes = [axis for axis, spread in spreads.items() if spread.resolved.is_reversed]
    return LaidOut(flip(code, reversed_axes), axes)


def add_up(tensor: LaidOut, resolved: Sequence[Resolved], context: Context) -> LaidOut:
    """Return the sums along diagonals of the resolved index and the leg it shifts, from the product of all pairs.

    Each row is padded to one step more than the result has positions. The whole is then read as rows that are one step
    shorter, which lines the diagonals up as columns.
    """
    for spread in map(_Spread, resolved):
        read = spread.resolved
        rest = tuple(leg for leg in tensor.legs if leg not in (read.kernel, read.read))
        axis = len(rest)
        code = arrange(tensor, separate((*rest, read.kernel, read.read)))
        code = flip(code, () if read.is_flipped else (axis,))
        code = _pad(
            code, [*((ZERO, ZERO) for _ in range(axis + 1)), (ZERO, spread.full + spread.step - read.read.leg.size)]
        )
        shape, count = axes_shape(separate(rest)), read.kernel.size
        code = reshape(code, (*shape, count * (spread.full + spread.step)))
        code = Call("narrow", (code,), (axis, ZERO, count * spread.full), (*shape, count * spread.full))
        code = Call("sum", (reshape(code, (*shape, count, spread.full)),), (axis,), (*shape, spread.full))
        code = spread.cut(code, axis, context)
        tensor = LaidOut(flip(code, [axis] * read.is_reversed), separate((*rest, *read.left)))
    return tensor


def mix_channels(operands: Sequence[LaidOut], legs: Sequence[Leg], context: Context) -> LaidOut | None:
    """Return a product over channels that stand before the positions, which keep their place.

    Return None if the legs are not in this order, or if there are few positions. The product is ``weight @ signal`` per
    sample, with one weight for all samples, as in a convolution with windows of one entry. It needs no copy if the
    channels are adjacent in memory.
    """
    signal, weight = operands if any(map(context.is_position, operands[0].legs)) else (operands[1], operands[0])
    channels = tuple(leg for leg in signal.legs if leg in weight.legs)
    is_kept = any(leg in legs for leg in channels)
    if (
        is_kept
        or not channels
        or any(map(context.is_position, weight.legs))
        or not context.is_position(signal.legs[-1])
    ):
        return None
    start = signal.legs.index(channels[0])
    rows = signal.legs[:start]
    positions = tuple(leg for leg in signal.legs[start:] if leg not in channels)
    columns = tuple(leg for leg in weight.legs if leg not in channels)
    if channels[-1] == signal.legs[-1] or context.size(positions) < FEWEST_POSITIONS:
        return None
    factor = arrange(weight, (columns, channels))
    if not rows:
        axes: Axes = (columns, positions)
        return LaidOut(Call("mm", (factor, arrange(signal, (channels, positions))), (), axes_shape(axes)), axes)
    axes = (rows, columns, positions)
    factor = Call("expand", (factor,), (), axes_shape((rows, columns, channels)))
    return LaidOut(Call("bmm", (factor, arrange(signal, (rows, channels, positions))), (), axes_shape(axes)), axes)


def _in_order(code: Expression) -> Expression:
    """Return a contiguous tensor, copied if necessary.

    The layout that a convolution over three dimensions returns for other tensors depends on the type of the numbers.
    """
    is_given = isinstance(code, Variable) and code.kind != "value"
    is_done = isinstance(code, Call) and code.function == "contiguous"
    return code if is_given or is_done else contiguous(code)


def _padding(each: Resolved | None) -> int | None:
    """Return the ``padding`` argument that yields the needed positions, or None if there is none."""
    if each is None:
        return 0
    pad = -each.start
    if each.read.wrap or not pad.is_Integer or pad < 0:
        return None
    span = each.dilation * (each.kernel.size - 1)
    windows = sympy.floor((each.read.leg.size + 2 * pad - span - 1) / sympy.Integer(each.stride)) + 1
    return int(pad) if is_same(windows, each.extent) else None
