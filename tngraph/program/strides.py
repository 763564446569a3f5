"""The strides that PyTorch gives tensors: which calls return views, and in which order a new tensor lies.

Everything here works on integers and decides as PyTorch 2 does, even for size 1: a permutation that moves only an axis
of size 1 can still be reshaped as a view. Strides are in elements.

Source: ``computeStride`` and ``infer_dense_strides`` in aten/src/ATen/TensorUtils.cpp and ExpandUtils.cpp,
``reorder_dimensions`` and ``compute_fast_setup_type`` in TensorIterator.cpp, ``MemoryFormat.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Ints = tuple[int, ...]


class Layout(NamedTuple):
    """The sizes and strides of a tensor [elements]."""

    sizes: Ints
    strides: Ints


def contiguous_strides(sizes: Ints) -> Ints:
    """Return the strides of a tensor without gaps whose last axis is the fastest."""
    return _dense_strides(sizes, range(len(sizes) - 1, -1, -1))


def _dense_strides(sizes: Ints, order: Sequence[int]) -> Ints:
    """Return the strides of a tensor without gaps, with axes ordered from the fastest to the slowest."""
    strides, step = [0] * len(sizes), 1
    for axis in order:
        strides[axis] = step
        step *= sizes[axis]
    return tuple(strides)


CHANNELS_LAST = (1, 3, 2, 0)
"""The axes of `(batch, channels, height, width)` from the fastest, where PyTorch keeps channels last."""
CHANNELS_LAST_3D = (1, 4, 3, 2, 0)


def _is_dense_in(layout: Layout, order: Sequence[int]) -> bool:
    """Return whether entries lie without gaps in this order of axes, fastest first. Axes of size 1 may be anywhere."""
    step = 1
    for axis in order:
        if layout.sizes[axis] != 1:
            if layout.strides[axis] != step:
                return False
            step *= layout.sizes[axis]
    return True


def is_contiguous(layout: Layout) -> bool:
    """Return whether the entries lie without gaps in the order of the axes."""
    return _is_dense_in(layout, range(len(layout.sizes) - 1, -1, -1))


def _is_dense(layout: Layout) -> bool:
    """Return whether the entries lie without gaps in some order of the axes."""
    axes = [axis for axis, size in enumerate(layout.sizes) if size > 1]
    return _is_dense_in(layout, sorted(axes, key=lambda axis: layout.strides[axis]))


def suggests_channels_last(layout: Layout) -> bool:
    """Return whether PyTorch takes a tensor of four or five axes to be in channels-last order."""
    order = {4: CHANNELS_LAST, 5: CHANNELS_LAST_3D}.get(len(layout.sizes), ())
    least = 0
    for axis in order:
        stride = layout.strides[axis]
        if stride < least or stride == 0 or (axis == 0 and least == layout.strides[1]):
            return False
        least = stride * max(1, layout.sizes[axis])
    return bool(order)


def suggested_strides(sizes: Ints, is_channels_last: bool) -> Ints:
    """Return the strides of a new tensor, contiguous or channels last."""
    if not is_channels_last:
        return contiguous_strides(sizes)
    return _dense_strides(sizes, CHANNELS_LAST if len(sizes) == 4 else CHANNELS_LAST_3D)


def reshaped_strides(old: Layout, sizes: Ints) -> Ints | None:
    """Return the strides of a view with other sizes, or None if axes to fuse are not adjacent in memory."""
    if not old.sizes:
        return (1,) * len(sizes)
    strides, place = [0] * len(sizes), len(sizes) - 1
    base, count, seen = old.strides[-1], 1, 1
    for axis in range(len(old.sizes) - 1, -1, -1):
        count *= old.sizes[axis]
        if axis == 0 or (old.sizes[axis - 1] != 1 and old.strides[axis - 1] != count * base):
            while place >= 0 and (seen < count or sizes[place] == 1):
                strides[place] = seen * base
                seen *= sizes[place]
                place -= 1
            if seen != count:
                return None
            if axis > 0:
                base, count, seen = old.strides[axis - 1], 1, 1
    return tuple(strides) if place == -1 else None


def elementwise_strides(sizes: Ints, operands: Sequence[Layout]) -> Ints:
    """Return the strides of an elementwise result, which lies as its operands do, the first one deciding."""
    if all(operand.sizes == sizes for operand in operands):
        if all(map(is_contiguous, operands)):
            return contiguous_strides(sizes)
        if len(sizes) == 4 and all(_is_dense_in(operand, CHANNELS_LAST) for operand in operands):
            return _dense_strides(sizes, CHANNELS_LAST)
        if all(_is_dense(o) and o.strides == operands[0].strides for o in operands):
            return operands[0].strides
    return _dense_strides(sizes, _order(sizes, [_broadcast(operand, sizes) for operand in operands]))


def _broadcast(operand: Layout, sizes: Ints) -> Ints:
    """Return the strides of an operand over all axes, with 0 for each axis that it lacks or repeats."""
    missing = len(sizes) - len(operand.sizes)
    own = zip(operand.sizes, operand.strides, sizes[missing:], strict=True)
    return (0,) * missing + tuple(0 if size == 1 != whole else stride for size, stride, whole in own)


def _order(sizes: Ints, strides: Sequence[Ints]) -> list[int]:
    """Return the axes, fastest first.

    This is PyTorch's insertion sort. Another sort would give other results, since repeated axes compare with nothing.
    """
    order = list(range(len(sizes) - 1, -1, -1))
    for start in range(1, len(order)):
        place = start
        for other in range(start - 1, -1, -1):
            comparison = _compare(sizes, strides, order[other], order[place])
            if comparison > 0:
                order[other], order[place] = order[place], order[other]
                place = other
            elif comparison < 0:
                break
    return order


def _compare(sizes: Ints, strides: Sequence[Ints], left: int, right: int) -> int:
    """Return -1 if one axis is faster than another, 1 if slower, by the first operand that tells; 0 if none does."""
    for own in strides:
        if own[left] and own[right]:
            if own[left] != own[right]:
                return -1 if own[left] < own[right] else 1
            if sizes[left] > sizes[right]:
                return 1
    return 0


def kept_strides(layout: Layout) -> Ints:
    """Return the strides of a copy in the original's order without gaps."""
    if _is_dense(layout):
        return layout.strides
    return _dense_strides(layout.sizes, _order(layout.sizes, [layout.strides]))
