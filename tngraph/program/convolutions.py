"""Convolutions, transposed or not, as one call of PyTorch each, and their equals where there is no such call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from tngraph.language.legs import legs_size
from tngraph.language.network import Index, Leg, Read
from tngraph.language.sizes import is_same
from tngraph.program.expressions import Call, Expression, Variable, contiguous, flip, reshape
from tngraph.program.layout import Axes, Context, LaidOut, arrange, axes_shape, compute, separate
from tngraph.program.windows import ZERO, Resolved, extend, pad

MOST_SPATIAL = 3
"""The most dimensions that PyTorch convolves over at once."""
FEWEST_POSITIONS = 32
"""With fewer positions per sample, one matrix product over all samples is faster, despite its copies [elements]."""
SPATIAL = 2
"""The first axis of a convolution's operands and result that windows slide along."""


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


@dataclass(frozen=True, slots=True)
class _Roles:
    """The legs of a convolution by role.

    Legs of the signal alone are its rows, as a batch is, unless they are positions. Legs of both operands are channels
    if they are summed, and groups otherwise. Legs of the kernel alone are its columns.
    """

    slides: tuple[_Slide, ...]
    rows: tuple[Leg, ...]
    groups: tuple[Leg, ...]
    channels: tuple[Leg, ...]
    columns: tuple[Leg, ...]

    @property
    def signal(self) -> Axes:
        """The axes of the signal."""
        return (self.rows, self.groups + self.channels, *(slide.legs for slide in self.slides))

    @property
    def result(self) -> Axes:
        """The axes of the result."""
        return (self.rows, self.groups + self.columns, *(slide.result for slide in self.slides))

    @property
    def resolved(self) -> dict[int, Resolved]:
        """The reads that the convolution resolves, by axis."""
        reads = ((axis, slide.resolved) for axis, slide in enumerate(self.slides, SPATIAL))
        return {axis: read for axis, read in reads if read is not None}

    def options(self, by_axis: Mapping[int, int], default: int) -> tuple[int, ...]:
        """Return an option of PyTorch's call, with its default on axes that resolve no read."""
        return tuple(by_axis.get(axis, default) for axis in range(SPATIAL, SPATIAL + len(self.slides)))


def _find_roles(signal: LaidOut, kernel: LaidOut, slides: tuple[_Slide, ...], legs: Sequence[Leg]) -> _Roles:
    placed = [leg for slide in slides for leg in (*slide.legs, *slide.taps)]
    shared = tuple(leg for leg in signal.legs if leg in kernel.legs)
    groups, channels = (tuple(leg for leg in shared if (leg in legs) == is_kept) for is_kept in (True, False))
    rows, columns = (
        tuple(leg for leg in tensor.legs if leg not in shared and leg not in placed) for tensor in (signal, kernel)
    )
    return _Roles(slides, rows, groups, channels, columns)


def convolve(
    signal: LaidOut, kernel: LaidOut, resolved: Sequence[Resolved], legs: Sequence[Leg], context: Context
) -> LaidOut:
    """Return one ``F.conv*`` over all resolved reads."""
    resolving = [_Slide((read.read,), (read.kernel,), read.left, read) for read in resolved]
    roles = _find_roles(signal, kernel, _slides(signal, kernel, resolving, context), legs)
    reads = roles.resolved
    paddings = _paddings(reads)
    code = _extend_signal(arrange(signal, roles.signal), reads, paddings is not None, context)
    weight = arrange(kernel, (roles.groups + roles.columns, roles.channels, *(slide.taps for slide in roles.slides)))
    weight = flip(weight, [axis for axis, read in reads.items() if read.is_flipped])
    if len(roles.slides) == MOST_SPATIAL:
        code, weight = _in_order(code), _in_order(weight)
    elif kernel.legs[-1] in roles.channels:
        weight = _in_order(weight)  # else PyTorch would copy the signal to channels-last
    options = (
        roles.options({axis: read.stride for axis, read in reads.items()}, 1),
        roles.options(paddings or {}, 0),
        roles.options({axis: read.dilation for axis, read in reads.items()}, 1),
    )
    convolved = compute("conv", (code, weight), roles.result, *options, legs_size(roles.groups))
    return _unreverse(convolved.code, reads, roles.result)


def _extend_signal(code: Expression, reads: Mapping[int, Resolved], can_pad: bool, context: Context) -> Expression:
    """Return a signal whose axes hold all positions needed, unless the ``padding`` argument of the call adds them."""
    if not can_pad:
        return extend(code, [(axis, read.read, read.start, read.last) for axis, read in reads.items()], context)
    if isinstance(code, Call) and code.function == "permute":
        return contiguous(code)  # inductor cannot keep a permuted view of unknown strides for the backward pass
    return code


def _paddings(reads: Mapping[int, Resolved]) -> dict[int, int] | None:
    """Return the ``padding`` of every axis, or None if the argument cannot give some axis the positions needed."""
    paddings = {axis: _padding(read) for axis, read in reads.items()}
    possible = {axis: padding for axis, padding in paddings.items() if padding is not None}
    return possible if len(possible) == len(paddings) else None


def _padding(read: Resolved) -> int | None:
    """Return the ``padding`` argument that yields the needed positions, or None if there is none."""
    before = -read.start
    if read.read.wrap or not before.is_Integer or before < 0:
        return None
    span = read.dilation * (read.kernel.size - 1)
    windows = sympy.floor((read.read.leg.size + 2 * before - span - 1) / sympy.Integer(read.stride)) + 1
    return int(before) if is_same(windows, read.extent) else None


def _unreverse(code: Expression, reads: Mapping[int, Resolved], axes: Axes) -> LaidOut:
    """Return the result of a convolution in the direction of its legs, some of which count backwards."""
    return LaidOut(flip(code, [axis for axis, read in reads.items() if read.is_reversed]), axes)


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
        return extend(code, [window], context)


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
    resolving = [_Slide((read.kernel,), (read.read,), read.left, read) for read in resolved]
    roles = _find_roles(signal, kernel, _slides(signal, kernel, resolving, context), legs)
    reads = roles.resolved
    spreads = {axis: _Spread(read) for axis, read in reads.items()}
    code = flip(arrange(signal, roles.signal), [axis for axis, read in reads.items() if not read.is_flipped])
    weight = arrange(kernel, (roles.groups + roles.channels, roles.columns, *(slide.taps for slide in roles.slides)))
    margins = {axis: spread.margins or (0, 0) for axis, spread in spreads.items()}
    options = (
        roles.options({axis: spread.step for axis, spread in spreads.items()}, 1),
        roles.options({axis: padding for axis, (padding, _) in margins.items()}, 0),
        roles.options({axis: added for axis, (_, added) in margins.items()}, 0),
        legs_size(roles.groups),
    )
    by_hand = {axis: spread for axis, spread in spreads.items() if spread.margins is None}
    shape = tuple(by_hand[axis].full if axis in by_hand else size for axis, size in enumerate(axes_shape(roles.result)))
    code = Call("conv_transpose", (_in_order(code), _in_order(weight)), options, shape)
    for axis, spread in by_hand.items():
        code = spread.cut(code, axis, context)
    return _unreverse(code, reads, roles.result)


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
        code = pad(
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
