"""The PyTorch code of each kind of operation: one expression per operation, with the axes of its result.

A contraction becomes one (batched) matrix product and a convolution one ``F.conv*``. So PyTorch's FLOP counter sees the
MACs of the plan, forward and backward. The gradients of a planned backward pass are written by the same means.

Every ``write_`` function is the rule of one kind. It takes the operation, its operands, the leg order that suits the
user of the result best, and the sizes planned for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from tngraph.language.legs import legs_size
from tngraph.language.network import Function, Leg, Read
from tngraph.program.convolutions import add_up, can_convolve, convolve, convolve_transposed, mix_channels
from tngraph.program.diagonals import gather_diagonals
from tngraph.program.expressions import Call, Expression, permute
from tngraph.program.layout import (
    Axes,
    Context,
    LaidOut,
    arrange,
    arrange_then_convert,
    axes_shape,
    compute,
    lay,
    separate,
)
from tngraph.program.operations import GradientProduct, Operation
from tngraph.program.windows import lay_taps, resolved_reads, unfold
from tngraph.search.matmul import gives_rows, is_copied, operand_axes
from tngraph.search.region import MatmulLayout

Rule = Callable[[Operation, Sequence[LaidOut], Sequence[Leg], Context], LaidOut]
GradientRule = Callable[[Operation, GradientProduct | None, Sequence[LaidOut], Context], LaidOut]
"""Takes an operation, the product that is planned for a gradient, the gradient of the result and the other operand."""


def _contract(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    if op.matmul is not None:
        return _contract_as(op.matmul, operands, context)
    left, right, shared, rows, columns = _split(operands, wanted, context)
    batch = tuple(leg for leg in shared if leg in op.legs)
    summed = tuple(leg for leg in shared if leg not in op.legs)
    outer: Axes = (batch,) if batch else ()
    a = arrange(left, (*outer, rows, summed))
    b = arrange(right, (*outer, summed, columns))
    return compute("bmm" if batch else "mm", (a, b), (*outer, rows, columns))


def _contract_as(matmul: MatmulLayout, operands: Sequence[LaidOut], context: Context) -> LaidOut:
    """Return a contraction that is read and returned in a matmul layout."""
    orders = [tensor.legs for tensor in operands]
    axes = [operand_axes(matmul, orders, side) for side in (0, 1)]
    left, right = (0, 1) if gives_rows(matmul, orders, 0) else (1, 0)
    a = _matrices(operands[left], matmul, axes[left], matmul.transposed[0])
    b = _matrices(operands[right], matmul, axes[right], matmul.transposed[1])
    outer: Axes = (matmul.outer,) if matmul.outer else ()
    return compute("bmm" if outer else "mm", (a, b), (*outer, matmul.rows, matmul.columns))


def _matrices(tensor: LaidOut, matmul: MatmulLayout, axes: Axes, is_transposed: bool) -> Expression:
    """Return an operand as matrices, repeated for all products if it lacks the outer legs."""
    code = lay(tensor, axes) if is_copied(tensor.legs, axes) else arrange(tensor, axes)
    if is_transposed:
        code = permute(code, (0, 2, 1) if len(axes) == 3 else (1, 0))
    if matmul.outer and len(axes) == 2:
        code = Call("expand", (code,), (), (legs_size(matmul.outer), *code.shape))
    return code


class _Split(NamedTuple):
    """Two operands in the order they multiply, with their legs by role.

    The shared legs are in the larger operand's order.
    """

    left: LaidOut
    right: LaidOut
    shared: tuple[Leg, ...]
    rows: tuple[Leg, ...]
    columns: tuple[Leg, ...]


def _split(operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> _Split:
    """Return both operands in the order they multiply, with their legs by role."""
    left, right = _orient(operands, wanted, context)
    big, small = sorted(operands, key=lambda t: -context.size(t.legs))
    shared = tuple(leg for leg in big.legs if leg in small.legs)
    rows, columns = (tuple(leg for leg in t.legs if leg not in shared) for t in (left, right))
    return _Split(left, right, shared, rows, columns)


def _orient(operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> tuple[LaidOut, LaidOut]:
    """Return the two operands in the order of their own legs in the result.

    The one with the first wanted leg comes first, or else the larger one.
    """
    first, second = operands
    own = [{leg for leg in a.legs if leg not in b.legs} for a, b in ((first, second), (second, first))]
    for leg in wanted:
        if leg in own[0] or leg in own[1]:
            return (first, second) if leg in own[0] else (second, first)
    return (first, second) if context.size(first.legs) >= context.size(second.legs) else (second, first)


def write_mul(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return a product of entries, with neighbouring axes fused where both operands have them or neither does."""
    if op.matmul is not None:
        first, second = operands
        axes = _runs(op.matmul.legs, lambda leg: (leg in first.legs, leg in second.legs))
        return compute("mul", (_broadcast(first, axes), _broadcast(second, axes)), axes)
    left, right, shared, rows, columns = _split(operands, wanted, context)
    axes = tuple(axis for axis in (shared, rows, columns) if axis)
    return compute("mul", (_broadcast(left, axes), _broadcast(right, axes)), axes)


def _broadcast(tensor: LaidOut, axes: Axes) -> Expression:
    """Return a tensor with these axes, of size 1 where it lacks their legs.

    Missing leading axes are left to PyTorch's broadcasting.
    """
    own: list[tuple[Leg, ...]] = []
    for axis in axes:
        if own or all(leg in tensor.legs for leg in axis):
            own.append(axis if all(leg in tensor.legs for leg in axis) else ())
    return arrange_then_convert(tensor, tuple(own))


def write_sum(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return the sum over the legs that the result lacks."""
    (tensor,) = operands
    axes = _runs(tensor.legs, lambda leg: leg in op.legs)
    gone = [k for k, axis in enumerate(axes) if axis[0] not in op.legs]
    remaining = tuple(axis for axis in axes if axis[0] in op.legs)
    return compute("sum", (arrange(tensor, axes),), remaining, *gone)


def _runs(legs: Sequence[Leg], key: Callable[[Leg], object]) -> Axes:
    """Return legs as axes, with neighbours fused if they agree on a key."""
    runs: list[tuple[Leg, ...]] = []
    for leg in legs:
        if runs and key(leg) == key(runs[-1][0]):
            runs[-1] += (leg,)
        else:
            runs.append((leg,))
    return tuple(runs)


def write_read(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return a tensor whose legs that are read at positions are laid out along their indices."""
    tensor = _diagonals(operands[0])
    reads = [leg for leg in tensor.legs if leg not in op.legs and isinstance(leg, Read)]
    tensor = gather_diagonals(tensor, reads, context)
    return unfold(tensor, [read for read in reads if read in tensor.legs], context)


def _diagonals(tensor: LaidOut) -> LaidOut:
    """Return a tensor with only one axis for each index that it has twice."""
    legs = list(tensor.legs)
    tensor = LaidOut(arrange(tensor, separate(legs)), separate(legs))
    for leg in dict.fromkeys(legs):
        while legs.count(leg) > 1:
            first = legs.index(leg)
            second = legs.index(leg, first + 1)
            legs = [other for k, other in enumerate(legs) if k not in (first, second)] + [leg]
            tensor = compute("diagonal", (tensor.code,), separate(legs), first, second)
    return tensor


def write_conv(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return a convolution, or the product of its windows and the kernel where PyTorch has no such convolution."""
    first, second = operands
    ours, theirs = resolved_reads(first, second, op.legs), resolved_reads(second, first, op.legs)
    if ours and theirs:
        return write_conv(op, [first, lay_taps(second, theirs, context)], wanted, context)
    signal, kernel, resolved = (first, second, ours) if ours else (second, first, theirs)
    if can_convolve(signal, kernel, resolved, op.legs, context):
        return convolve(signal, kernel, resolved, op.legs, context)
    return _contract(op, [lay_taps(signal, resolved, context), kernel], wanted, context)


def write_conv_transpose(
    op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context
) -> LaidOut:
    """Return a transposed convolution, or the sums of all products where PyTorch has no such call."""
    first, second = operands
    ours = resolved_reads(first, second, op.legs)
    signal, kernel = (second, first) if ours else (first, second)
    resolved = ours or resolved_reads(second, first, op.legs)
    if can_convolve(signal, kernel, resolved, op.legs, context):
        return convolve_transposed(signal, kernel, resolved, op.legs, context)
    return add_up(_contract(op, operands, wanted, context), resolved, context)


def write_contraction(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return a contraction as a matrix product, or as one per sample over channels that stand before positions."""
    return mix_channels(operands, op.legs, context) or _contract(op, operands, wanted, context)


def write_scale(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return the operand times a number."""
    (tensor,) = operands
    return compute("scale", (tensor.code,), tensor.axes, op.number)


def write_embed(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return the operand on the diagonal of legs that stand for one index, with zeros elsewhere."""
    (tensor,) = operands
    for inner in dict.fromkeys(op.pattern):
        outer = [leg for leg, own in zip(op.legs, op.pattern, strict=True) if own == inner]
        others = tuple(leg for leg in tensor.legs if leg != inner)
        axes = separate((*others, inner))
        if len(outer) > 1:
            tensor = LaidOut(arrange(tensor, axes), axes)
            for count in range(2, len(outer) + 1):
                tensor = compute("diag_embed", (tensor.code,), separate((*others, *outer[:count])))
    return tensor


def write_view(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return the operand with one axis per leg."""
    axes = separate(op.legs)
    return LaidOut(arrange(operands[0], axes), axes)


def write_arrange(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return the operand copied into the order of some axes."""
    return LaidOut(lay(operands[0], op.axes), op.axes)


def write_join(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return the whole value, joined from tiles like the operand."""
    assert op.tile is not None
    axes = _runs(op.legs, lambda leg: leg == op.tile.index)  # type: ignore[union-attr]
    place, inside = axes.index((op.tile.index,)), tuple(map(op.tile.enter, axes))
    return LaidOut(Call("join", (arrange(operands[0], inside),), (place, op.tile.size), axes_shape(axes)), axes)


def write_accumulate(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return the whole value, to which each slice is added in its place."""
    own = [leg for leg in op.legs if leg not in op.loops]
    code = arrange(operands[0], separate(own))
    return LaidOut(Call("accumulate", (code,), op.loops, axes_shape(separate(op.legs))), separate(op.legs))


def write_add(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return the sum or difference of two values."""
    first, second = operands
    order = next((t.legs for t in operands if set(t.legs) == set(op.legs)), op.legs)
    axes = _runs(order, lambda leg: (leg in first.legs, leg in second.legs))
    both = (_broadcast(first, axes), _broadcast(second, axes))
    return compute("sub" if op.number < 0 else "add", both, axes)


def write_pointwise(op: Operation, operands: Sequence[LaidOut], wanted: Sequence[Leg], context: Context) -> LaidOut:
    """Return a function of every entry."""
    (tensor,) = operands
    assert isinstance(op.function, Function)
    return compute("pointwise", (tensor.code,), tensor.axes, op.function.name, *op.function.args)


def multiply_matrices(
    op: Operation, product: GradientProduct | None, operands: Sequence[LaidOut], context: Context
) -> LaidOut:
    """Return the gradient of an operand of a contraction: the matrix product of both, added up over outer legs."""
    assert product is not None
    multiplied = _contract_as(product.matmul, operands, context)
    return compute("sum", (multiplied.code,), multiplied.axes[1:], 0) if product.added else multiplied


def multiply_entries(
    op: Operation, product: GradientProduct | None, operands: Sequence[LaidOut], context: Context
) -> LaidOut:
    """Return the gradient of a factor: the product of entries, or one of matrices if it sums."""
    assert product is not None
    if product.matmul.is_matrix:
        return multiply_matrices(op, product, operands, context)
    return write_mul(replace(op, matmul=product.matmul), operands, (), context)


def scale_gradient(
    op: Operation, product: GradientProduct | None, operands: Sequence[LaidOut], context: Context
) -> LaidOut:
    """Return the gradient of an operand that is scaled: the gradient scaled by the same number."""
    return write_scale(op, operands, (), context)
