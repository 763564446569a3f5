"""Where PyTorch puts the entries of a tensor: which calls are views, and in which order a new tensor lies.

Everything here is on integers and decides as PyTorch 2 does, size 1 included: a permuted reshape that moves an axis of
size 1 alone is a view. A stride is in elements.

Source: ``computeStride`` and ``infer_dense_strides`` in aten/src/ATen/TensorUtils.cpp and ExpandUtils.cpp,
``reorder_dimensions`` and ``compute_fast_setup_type`` in TensorIterator.cpp, ``MemoryFormat.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Ints = tuple[int, ...]


class Layout(NamedTuple):
    """The sizes of a tensor and the strides they are walked with [elements]."""

    sizes: Ints
    strides: Ints


def contiguous_strides(sizes: Ints) -> Ints:
    """Those of a tensor whose last axis is fastest."""
    return _dense_strides(sizes, range(len(sizes) - 1, -1, -1))


def _dense_strides(sizes: Ints, order: Sequence[int]) -> Ints:
    """Those of a tensor without gaps whose axes get slower in this order."""
    strides, step = [0] * len(sizes), 1
    for axis in order:
        strides[axis] = step
        step *= sizes[axis]
    return tuple(strides)


CHANNELS_LAST = (1, 3, 2, 0)
"""The axes of `(batch, channels, height, width)` from the fastest, where PyTorch keeps channels last."""
CHANNELS_LAST_3D = (1, 4, 3, 2, 0)


def _is_dense_in(layout: Layout, order: Sequence[int]) -> bool:
    """Whether entries lie without gaps, axes in this order from the fastest; those of size 1 stand anywhere."""
    step = 1
    for axis in order:
        if layout.sizes[axis] != 1:
            if layout.strides[axis] != step:
                return False
            step *= layout.sizes[axis]
    return True


def is_contiguous(layout: Layout) -> bool:
    """Whether the entries lie in the order of the axes."""
    return _is_dense_in(layout, range(len(layout.sizes) - 1, -1, -1))


def _is_dense(layout: Layout) -> bool:
    """Whether the entries lie without gaps in some order of the axes."""
    axes = [axis for axis, size in enumerate(layout.sizes) if size > 1]
    return _is_dense_in(layout, sorted(axes, key=lambda axis: layout.strides[axis]))


def suggests_channels_last(layout: Layout) -> bool:
    """Whether PyTorch takes the order of a tensor of four or five axes for channels last."""
    order = {4: CHANNELS_LAST, 5: CHANNELS_LAST_3D}.get(len(layout.sizes), ())
    least = 0
    for axis in order:
        stride = layout.strides[axis]
        if stride < least or stride == 0 or (axis == 0 and least == layout.strides[1]):
            return False
        least = stride * max(1, layout.sizes[axis])
    return bool(order)


def suggested_strides(sizes: Ints, is_channels_last: bool) -> Ints:
    """Those of a new tensor in either memory format."""
    if not is_channels_last:
        return contiguous_strides(sizes)
    return _dense_strides(sizes, CHANNELS_LAST if len(sizes) == 4 else CHANNELS_LAST_3D)


def reshaped_strides(old: Layout, sizes: Ints) -> Ints | None:
    """The strides of a view of other sizes, or None where there is none: legs that fuse have to lie side by side."""
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
    """Those of what an entrywise operation returns: as its operands lie, the first one first."""
    if all(operand.sizes == sizes for operand in operands):
        if all(map(is_contiguous, operands)):
            return contiguous_strides(sizes)
        if len(sizes) == 4 and all(_is_dense_in(operand, CHANNELS_LAST) for operand in operands):
            return _dense_strides(sizes, CHANNELS_LAST)
        if all(_is_dense(o) and o.strides == operands[0].strides for o in operands):
            return operands[0].strides
    return _dense_strides(sizes, _order(sizes, [_broadcast(operand, sizes) for operand in operands]))


def _broadcast(operand: Layout, sizes: Ints) -> Ints:
    """The strides of an operand over all axes: 0 where it has none, or one that is repeated."""
    missing = len(sizes) - len(operand.sizes)
    own = zip(operand.sizes, operand.strides, sizes[missing:], strict=True)
    return (0,) * missing + tuple(0 if size == 1 != whole else stride for size, stride, whole in own)


def _order(sizes: Ints, strides: Sequence[Ints]) -> list[int]:
    """The axes from the fastest: an insertion sort, since axes that are repeated compare with none."""
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
    """Whether one axis is faster (-1) or slower (1) than another, by the first operand that tells."""
    for own in strides:
        if own[left] and own[right]:
            if own[left] != own[right]:
                return -1 if own[left] < own[right] else 1
            if sizes[left] > sizes[right]:
                return 1
    return 0


def kept_strides(layout: Layout) -> Ints:
    """Those of a copy that lies as the original does, gaps closed."""
    if _is_dense(layout):
        return layout.strides
    return _dense_strides(layout.sizes, _order(layout.sizes, [layout.strides]))
