"""Reads at affine positions: windows laid out as views, and convolutions resolved by ``F.conv*``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import sympy

from tngraph.language.network import Index, Leg, Read
from tngraph.language.sizes import is_same
from tngraph.lowering.layout import Context, Tensor, arrange, call, separate
from tngraph.planning.region import position_range
from tngraph.planning.schedule import leg_size

Window = tuple[int, Read, sympy.Expr, sympy.Expr]
"""An axis, the read on it, and the first and last position that are needed."""


def _extend(code: str, rank: int, windows: Sequence[Window], context: Context) -> str:
    """Make every axis hold exactly the positions needed: zeros outside, or the leg again where it is cyclic.

    Padding comes before cropping, so that positions all outside (possible at some run-time sizes) read zero too.
    """
    zero = sympy.Integer(0)
    pads: dict[int, tuple[sympy.Expr, sympy.Expr]] = {}
    crops = []
    for axis, read, start, last in windows:
        sides = (-start, last - read.leg.size + 1)
        if not read.wrap and not all(is_same(side, zero) for side in sides):
            pads[axis] = (sympy.Max(sides[0], zero), sympy.Max(sides[1], zero))
            if not all(side.is_nonnegative for side in sides):
                crops.append((axis, sympy.Max(start, zero), last - start + 1))
    if any(side != 0 for pair in pads.values() for side in pair):
        every = [pads.get(axis, (zero, zero)) for axis in range(rank - 1, min(pads) - 1, -1)]
        code = f"F.pad({code}, ({', '.join(context.show(side) for pair in every for side in pair)}))"
    for axis, first, length in crops:
        code += f".narrow({axis}, {context.show(first)}, {context.show(length)})"
    for axis, read, start, last in windows:
        if read.wrap:
            positions = f"torch.arange({context.show(start)}, {context.show(last + 1)}, device={context.device})"
            code = f"{code}.index_select({axis}, {positions} % {_modulus(read.leg.size, context)})"
    return code


def _modulus(size: sympy.Expr, context: Context) -> str:
    """A size to take remainders by; one of run time as a tensor, since the ONNX exporter takes no other."""
    code = context.show(size)
    if not context.is_fixed(size):
        return f"torch.full((), {code}, device={context.device})"
    return code if code.isidentifier() or code.isdigit() else f"({code})"


def _slide(code: str, rank: int, axis: int, windows: tuple[sympy.Expr, sympy.Expr, int], context: Context) -> str:
    """The windows of an axis, which then counts them, along one more axis, the last.

    Args:
        code: a tensor of so many axes.
        rank: how many.
        axis: the one that windows move along.
        windows: how many there are, the size of one, and the step between two.
        context: how sizes print.
    """
    count, size, step = windows
    if context.is_fixed(size):
        return f"{code}.unfold({axis}, {context.show(size)}, {step})"
    # `unfold` takes no symbolic size: a traced graph would serve this one only.
    given = context.show(count) if step == 1 else f"0, {context.show(step * count)}, {step}"
    starts, inside = (f"torch.arange({sizes}, device={context.device})" for sizes in (given, context.show(size)))
    code = f"{code}[{':, ' * axis}{starts}.unsqueeze(1) + {inside}]"
    return code if axis == rank - 1 else f"{code}.movedim({axis + 1}, {rank})"


def _windows(code: str, axis: int, read: Read, legs: list[Leg], context: Context) -> str:
    """The positions of one axis along the read's indices: the first index stays in place, the others go last."""
    terms = list(read.terms)
    if not terms:
        legs.pop(axis)
        return f"{code}.select({axis}, 0)"
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
            windows = (index.size, greatest - least + 1, step)
            code = _slide(code, len(legs), place, windows, context)
            place = len(legs)
        elif step > 1:
            code = f"{code}[{':, ' * place}::{step}]"
    return f"{code}.flip({', '.join(map(str, flips))})" if flips else code


def unfold(tensor: Tensor, reads: Sequence[Leg], context: Context) -> Tensor:
    """Lay reads out along their indices: pad (or gather, if cyclic), then one window view per index."""
    legs = list(tensor.legs)
    code = arrange(tensor, separate(legs), context.show)
    windows = []
    for read in reads:
        assert isinstance(read, Read)
        least, greatest = position_range(read.terms)
        windows.append((legs.index(read), read, read.offset + least, read.offset + greatest))
    code = _extend(code, len(legs), windows, context)
    for axis, read, _, _ in sorted(windows, key=lambda window: -window[0]):
        code = _windows(code, axis, read, legs, context)
    return Tensor(code, separate(legs))


@dataclass(frozen=True, slots=True)
class Resolved:
    """A read that a convolution resolves: the kernel's index, and the geometry of ``F.conv``."""

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
        """The output positions [elements]."""
        return leg_size(self.rest) if self.rest is not None else sympy.Integer(1)


def _resolve(read: Read, kernel: Index, result: Sequence[Leg]) -> Resolved:
    coefficient = next(c for c, index in read.terms if index == kernel)
    terms = tuple(term for term in read.terms if term[1] != kernel)
    stride = gcd(*(c for c, _ in terms)) if terms else 1
    rest: Leg | None = terms[0][1] if terms else None
    if len(terms) > 1:
        names = {index for _, index in terms}
        rest = next(leg for leg in result if isinstance(leg, Read) and names == set(leg.indices))
    least, _ = position_range(terms)
    turn = coefficient * (kernel.size - 1) if coefficient < 0 else sympy.Integer(0)
    start = read.offset + least + turn
    extent = leg_size(rest) if rest is not None else sympy.Integer(1)
    last = start + stride * (extent - 1) + abs(coefficient) * (kernel.size - 1)
    is_reversed = len(terms) == 1 and terms[0][0] < 0
    return Resolved(read, kernel, abs(coefficient), coefficient < 0, rest, stride, is_reversed, start, last)


def resolved_reads(signal: Tensor, kernel: Tensor, result: Sequence[Leg]) -> list[Resolved]:
    """The reads of one operand that the other's indices resolve."""
    gone = [leg for leg in signal.legs if isinstance(leg, Read) and leg not in result]
    return [_resolve(read, next(i for i in read.indices if i in kernel.legs), result) for read in gone]


def lay_taps(tensor: Tensor, resolved: Sequence[Resolved], context: Context) -> Tensor:
    """Lay the kernel's index of each resolved read out beside what remains of the read, as a window view."""
    legs = list(tensor.legs)
    windows = [(legs.index(each.read), each.read, each.start, each.last) for each in resolved]
    code = _extend(arrange(tensor, separate(legs), context.show), len(legs), windows, context)
    for (axis, _, _, _), each in zip(windows, resolved, strict=True):
        place = axis
        if each.rest is not None:
            legs[axis] = each.rest
            place = len(legs)
            legs.append(each.kernel)
            span = each.dilation * (each.kernel.size - 1) + 1
            code = _slide(code, len(legs) - 1, axis, (each.extent, span, each.stride), context)
        legs[place] = each.kernel
        code += f"[{':, ' * place}::{each.dilation}]" if each.dilation > 1 else ""
        code += _flip([axis] * each.is_reversed + [place] * each.is_flipped)
    return Tensor(code, separate(legs))


def convolve(
    signal: Tensor, kernel: Tensor, resolved: Sequence[Resolved], legs: Sequence[Leg], context: Context
) -> Tensor:
    """One ``F.conv*`` over all resolved reads; legs of the signal alone are its batch, shared ones its channels."""
    reads = [each.read for each in resolved]
    taps = [each.kernel for each in resolved]
    rows = tuple(leg for leg in signal.legs if leg not in reads and leg in legs)
    channels = tuple(leg for leg in signal.legs if leg not in reads and leg not in legs)
    columns = tuple(leg for leg in kernel.legs if leg not in taps and leg not in channels)
    code = arrange(signal, (rows, channels, *separate(reads)), context.show)
    pads = [_padding(each) for each in resolved]
    if any(pad is None for pad in pads):
        windows = [(2 + k, each.read, each.start, each.last) for k, each in enumerate(resolved)]
        code = _extend(code, 2 + len(resolved), windows, context)
    elif code.rpartition(".")[2].startswith("permute("):
        code += ".contiguous()"  # inductor cannot keep a permuted view of unknown strides for the backward pass
    weight = arrange(kernel, (columns, channels, *separate(taps)), context.show)
    weight += _flip([2 + k for k, each in enumerate(resolved) if each.is_flipped])
    options = [
        f"{name}={tuple(numbers)}"
        for name, numbers, default in (
            ("stride", [each.stride for each in resolved], 1),
            ("padding", [0 if pad is None or None in pads else pad for pad in pads], 0),
            ("dilation", [each.dilation for each in resolved], 1),
        )
        if any(number != default for number in numbers)
    ]
    code = call(f"F.conv{len(resolved)}d", code, weight, *options)
    code += _flip([2 + k for k, each in enumerate(resolved) if each.is_reversed])
    return Tensor(code, (rows, columns, *(() if each.rest is None else (each.rest,) for each in resolved)))


def _flip(axes: Sequence[int]) -> str:
    return f".flip({', '.join(map(str, axes))})" if axes else ""


def _padding(each: Resolved) -> int | None:
    """The ``padding`` argument that does it, or None where the axis has to be extended by hand."""
    pad = -each.start
    if each.read.wrap or not pad.is_Integer or pad < 0:
        return None
    span = each.dilation * (each.kernel.size - 1)
    windows = sympy.floor((each.read.leg.size + 2 * pad - span - 1) / sympy.Integer(each.stride)) + 1
    return int(pad) if is_same(windows, each.extent) else None
