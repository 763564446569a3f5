"""The PyTorch functions that programs call: one entry per function says everything that is known of it.

The entries answer the questions that following memory, predicting time and folding ask of a call, from integers and
strides alone. How a function is printed stands in `lowering/calls.py`, which has a rule for each name of this table.
A name that is not in the table cannot be called (see `expressions.Call`).

Source: tools/autograd/derivatives.yaml of PyTorch for the operands that its autograd saves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tngraph.program.strides import (
    Ints,
    Layout,
    contiguous_strides,
    elementwise_strides,
    is_contiguous,
    kept_strides,
    reshaped_strides,
    suggested_strides,
    suggests_channels_last,
)

Arguments = tuple[Any, ...]
View = Callable[[Layout, Ints, Arguments], Ints | None]
NewStrides = Callable[[Sequence[Layout], Ints, Arguments], Ints]
Saves = Callable[[Arguments, Sequence[bool]], Sequence[int]]

Kernel = Literal["product", "convolution", "transposed convolution", "copy", "elementwise", "in place", "nothing"]
"""The kinds of kernels that PyTorch starts, as far as their times differ."""
Entries = Literal["operand", "number", "position", "truth"]
"""The type of a new tensor's entries: that of the first operand, the type of the module, int64, or bool."""
UNITS: Mapping[Entries, int] = {"position": 8, "truth": 1}
"""The size of an entry of a type that is the same in every module [bytes]."""
RESULT = -1
"""The place of a call's result among what the call saves."""


def _in_order(operands: Sequence[Layout], sizes: Ints, arguments: Arguments) -> Ints:
    return contiguous_strides(sizes)


def _saves_nothing(arguments: Arguments, needs: Sequence[bool]) -> Sequence[int]:
    return ()


@dataclass(frozen=True, slots=True)
class TorchFunction:
    """The behaviour of PyTorch when it runs one function.

    Attributes:
        view: returns the strides of the result as a view of the first operand, or None where PyTorch makes a new
            tensor; None for functions that never return a view.
        strides: returns the strides of a new tensor.
        saves: returns the places of the operands that autograd saves, given which of them need a gradient; `RESULT` is
            the place of the result.
        kernel: the kernel that computes a new tensor; a view starts none. Nothing runs for conversions that only mixed
            precision needs, and for what the method around a block does.
        entries: the type of a new tensor's entries.
        is_counted: whether PyTorch's FLOP counter counts it. A line that calls it is an operation whose work the plan
            counts.
        is_gather: whether it reads at positions, which autograd saves.
        is_reusable: whether it returns a new tensor that its own gradients do not need, so that a function may
            overwrite it.
        has_one_gradient: whether one kernel computes the gradients of all its operands together.
    """

    view: View | None = None
    strides: NewStrides = _in_order
    saves: Saves = _saves_nothing
    kernel: Kernel = "elementwise"
    entries: Entries = "operand"
    is_counted: bool = False
    is_gather: bool = False
    is_reusable: bool = False
    has_one_gradient: bool = False


@dataclass(frozen=True, slots=True)
class PointwiseFunction:
    """The behaviour of PyTorch when it runs a pointwise function.

    Attributes:
        saves_result: whether its derivative is computed from its value, and not from its operand.
        can_overwrite: whether it may be put in place of its operand: its derivative is computed from its value, and in
            mixed precision its value has the type of the operand.
    """

    saves_result: bool = False
    can_overwrite: bool = False


POINTWISE: Mapping[str, PointwiseFunction] = {
    **dict.fromkeys(("relu", "tanh", "sigmoid"), PointwiseFunction(saves_result=True, can_overwrite=True)),
    **dict.fromkeys(("exp", "sqrt"), PointwiseFunction(saves_result=True)),
    **dict.fromkeys(("log", "abs", "square", "sin", "cos"), PointwiseFunction()),
    **dict.fromkeys(("gelu", "silu", "softplus", "leaky_relu", "elu"), PointwiseFunction()),
}
"""The pointwise functions of the language."""


def _same(layout: Layout, sizes: Ints, arguments: Arguments) -> Ints:
    return layout.strides


def _reshaped(layout: Layout, sizes: Ints, arguments: Arguments) -> Ints | None:
    return reshaped_strides(layout, sizes)


def _if_contiguous(layout: Layout, sizes: Ints, arguments: Arguments) -> Ints | None:
    return layout.strides if is_contiguous(layout) else None


def _permuted(layout: Layout, sizes: Ints, order: Arguments) -> Ints:
    return tuple(layout.strides[axis] for axis in order)


def _moved(layout: Layout, sizes: Ints, axes: Arguments) -> Ints:
    strides = list(layout.strides)
    strides.insert(axes[1], strides.pop(axes[0]))
    return tuple(strides)


def _expanded(layout: Layout, sizes: Ints, arguments: Arguments) -> Ints:
    return (0,) * (len(sizes) - len(layout.sizes)) + layout.strides


def _stepped(layout: Layout, sizes: Ints, arguments: Arguments) -> Ints:
    axis, step = arguments
    return tuple(stride * step if k == axis else stride for k, stride in enumerate(layout.strides))


def _without(layout: Layout, *axes: int) -> Ints:
    return tuple(stride for axis, stride in enumerate(layout.strides) if axis not in axes)


def _selected(layout: Layout, sizes: Ints, arguments: Arguments) -> Ints:
    return _without(layout, arguments[0])


def _unfolded(layout: Layout, sizes: Ints, arguments: Arguments) -> Ints:
    axis, _, step = arguments
    return (*_stepped(layout, sizes, (axis, step)), layout.strides[axis])


def _diagonal(layout: Layout, sizes: Ints, axes: Arguments) -> Ints:
    return (*_without(layout, *axes), sum(layout.strides[axis] for axis in axes))


def _unsqueezed(layout: Layout, sizes: Ints, arguments: Arguments) -> Ints:
    return (*layout.strides, 1)


def _elementwise(operands: Sequence[Layout], sizes: Ints, arguments: Arguments) -> Ints:
    return elementwise_strides(sizes, operands)


def _scaled(operands: Sequence[Layout], sizes: Ints, arguments: Arguments) -> Ints:
    """Return the strides of a scaled tensor. The number counts as an operand without axes."""
    return elementwise_strides(sizes, [*operands, Layout((), ())])


def _as_first(operands: Sequence[Layout], sizes: Ints, arguments: Arguments) -> Ints:
    return kept_strides(operands[0])


def _padded(operands: Sequence[Layout], sizes: Ints, arguments: Arguments) -> Ints:
    """Return the strides of a padded tensor. Without any padding the call clones its operand."""
    if operands[0].sizes == sizes:
        return kept_strides(operands[0])
    return suggested_strides(sizes, suggests_channels_last(operands[0]))


def _gathered(operands: Sequence[Layout], sizes: Ints, arguments: Arguments) -> Ints:
    """Return the strides of gathered entries.

    PyTorch spreads all operands over all axes of the result. The source has stride 0 along the axes of the positions.
    """
    (axis,) = arguments
    source, *positions = operands
    rank, after = len(positions[0].sizes), len(source.sizes) - axis - len(positions)
    still = source.strides[:axis] + (0,) * rank + source.strides[axis + len(positions) :]
    spread = (
        Layout((1,) * axis + index.sizes + (1,) * after, (0,) * axis + index.strides + (0,) * after)
        for index in positions
    )
    return elementwise_strides(sizes, [Layout(sizes, still), *spread])


def _convolved(operands: Sequence[Layout], sizes: Ints, arguments: Arguments) -> Ints:
    """Return the strides of a convolution's result: channels last if either operand is.

    PyTorch runs a convolution over one dimension as one over two, on a contiguous signal.
    """
    if len(sizes) == 5:
        return contiguous_strides(sizes)
    if len(sizes) == 4:
        return suggested_strides(sizes, any(map(suggests_channels_last, operands)))
    signal, kernel = operands
    if not is_contiguous(signal):
        signal = Layout(signal.sizes, contiguous_strides(signal.sizes))
    is_channels_last = any(suggests_channels_last(_with_height(operand)) for operand in (signal, kernel))
    strides = suggested_strides((*sizes[:2], 1, sizes[2]), is_channels_last)
    return (*strides[:2], strides[3])


def _with_height(layout: Layout) -> Layout:
    sizes, strides = layout
    return Layout((*sizes[:2], 1, sizes[2]), (*strides[:2], sizes[2] * strides[2], strides[2]))


def _other_factor(arguments: Arguments, needs: Sequence[bool]) -> list[int]:
    """Return each operand of a product that the other operand's gradient needs."""
    return [k for k in (0, 1) if needs[1 - k]]


def _both(arguments: Arguments, needs: Sequence[bool]) -> Sequence[int]:
    return (0, 1)


def _second(arguments: Arguments, needs: Sequence[bool]) -> Sequence[int]:
    return (1,)


def _positions(arguments: Arguments, needs: Sequence[bool]) -> Sequence[int]:
    return range(1, len(needs))


def _saved_by_pointwise(arguments: Arguments, needs: Sequence[bool]) -> Sequence[int]:
    return (RESULT if POINTWISE[arguments[0]].saves_result else 0,)


def _result(arguments: Arguments, needs: Sequence[bool]) -> Sequence[int]:
    return (RESULT,)


_PRODUCT = TorchFunction(saves=_other_factor, kernel="product", is_counted=True, is_reusable=True)
_SUM_OF_TWO = TorchFunction(strides=_elementwise, is_reusable=True, has_one_gradient=True)
_COMPARISON = TorchFunction(strides=_elementwise, entries="truth")
_BY_THE_BLOCK = TorchFunction(view=_same, kernel="nothing")

FUNCTIONS: Mapping[str, TorchFunction] = {
    "reshape": TorchFunction(view=_reshaped, kernel="copy"),
    "contiguous": TorchFunction(view=_if_contiguous, kernel="copy"),
    "permute": TorchFunction(view=_permuted),  # the order of the axes
    "movedim": TorchFunction(view=_moved),  # from, to
    "expand": TorchFunction(view=_expanded),
    "narrow": TorchFunction(view=_same),  # axis, first, length
    "select": TorchFunction(view=_selected),  # axis, position
    "every": TorchFunction(view=_stepped),  # axis, step
    "unfold": TorchFunction(view=_unfolded),  # axis, size, step
    "diagonal": TorchFunction(view=_diagonal),  # first axis, second axis
    "unsqueeze": TorchFunction(view=_unsqueezed),  # axis
    "type_as": TorchFunction(view=_same, kernel="nothing"),  # of the second operand
    "pad": TorchFunction(strides=_padded),  # (before, after) per axis
    "flip": TorchFunction(strides=_as_first),  # axes
    "gather": TorchFunction(strides=_gathered, saves=_positions, is_gather=True),  # axis of the first positions
    "index_select": TorchFunction(saves=_second, is_gather=True),  # axis
    "diag_embed": TorchFunction(),
    "mm": _PRODUCT,
    "bmm": _PRODUCT,
    "conv": TorchFunction(  # stride, padding, dilation, groups
        strides=_convolved, saves=_both, kernel="convolution", is_counted=True, is_reusable=True
    ),
    "conv_transpose": TorchFunction(  # stride, padding, output_padding, groups
        saves=_both, kernel="transposed convolution", is_counted=True, is_reusable=True
    ),
    "mul": TorchFunction(strides=_elementwise, saves=_other_factor, is_reusable=True),
    "add": _SUM_OF_TWO,
    "sub": _SUM_OF_TWO,
    "scale": TorchFunction(strides=_scaled, is_reusable=True),  # factor
    "sum": TorchFunction(is_reusable=True, has_one_gradient=True),  # axes
    "pointwise": TorchFunction(strides=_elementwise, saves=_saved_by_pointwise),  # the function and its numbers
    "pointwise_": TorchFunction(saves=_result, kernel="in place"),  # the same in place of the operand
    "masked_fill": TorchFunction(strides=_as_first, saves=_second),
    "clamp": TorchFunction(strides=_as_first),  # maximum; the minimum is 0
    "remainder": TorchFunction(strides=_elementwise),  # modulus, unless it is the second operand
    "equals": _COMPARISON,  # number
    "differs": _COMPARISON,
    "convert": TorchFunction(strides=_elementwise, entries="number"),
    "ones": TorchFunction(entries="number"),
    "eye": TorchFunction(entries="number"),
    "full": TorchFunction(entries="position"),  # value
    "arange": TorchFunction(entries="position"),  # stop, or start and stop (and step)
    "accumulate": _BY_THE_BLOCK,  # the indices of the slices
    "join": _BY_THE_BLOCK,  # axis, size of a tile
}
"""The functions by the name that a `Call` has for them, with the arguments that the name stands for."""
