"""The time of the calls of a module on a machine, from the strides they meet: what `minimize="time"` compares.

A view takes what a call takes that starts no kernel. A copy goes as fast as entries stay side by side; a product as
its shape allows; everything else reads and writes its values once. In training every call runs once more for each
operand that a gradient flows to, and the gradient of a matrix that many products share is summed over these. PyTorch
lays nothing out for its backward pass: a gradient lies as the call that takes it has left it, and is copied where the
call before cannot be undone by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from tngraph.kernels.expressions import Call
from tngraph.kernels.strides import Ints, Layout, contiguous_strides, reshaped_strides
from tngraph.planning.machine import Copy, Machine, find_copy

_VIEWS_PER_CALL = 5
"""So many views can be taken while a module is called and looks at the shapes it is given."""
_VIEWS_PER_PART = 20
"""As many while a part is cut, a method is called with it, and its result is put beside the others."""
_VIEWS_PER_BACKWARD = 20
"""As many while a backward pass is started."""
_VIEWS_PER_FUNCTION = 60
"""As many while Python calls a function of its own, and later its backward pass."""
_VIEWS_PER_NODE = 5
"""As many while PyTorch notes a call, and later finds what undoes it."""
_IN_SLICES = 2
"""A copy of one matrix after the other takes so many times as long as one of all: what they share is read again."""


class Made(NamedTuple):
    """How a call made a tensor, whatever is seen of it later.

    Attributes:
        sizes: that it has.
        gradients: how many products of matrices undo the call.
    """

    sizes: Ints
    gradients: int = 0


@dataclass
class Clock:
    """Adds up the seconds of calls.

    Attributes:
        machine: what runs them.
        times: how often what is called now runs.
        seconds: so far.
    """

    machine: Machine
    times: int = 1
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Let some time pass, as often as what is called now runs."""
        self.seconds += self.times * float(seconds)

    def call(self, code: Call, operands: Sequence[Layout], sizes: Ints, needs: Sequence[bool]) -> None:
        """The time of a call that is no view, and of its gradients."""
        if code.function in ("mm", "bmm"):
            forward, backward = self._product(operands, needs)
        elif code.function in ("conv", "conv_transpose"):
            is_transposed = code.function == "conv_transpose"
            forward = self._convolution(operands, operands[0].sizes if is_transposed else sizes)
            backward = sum(needs) * forward
        elif code.function in ("reshape", "contiguous"):
            forward, backward = self.machine.rearrange(copy_of(operands[0])), 0.0  # its gradient is a view: `undo`
        else:
            given, made = [prod(each.sizes) for each in operands], prod(sizes)
            forward = backward = self.machine.elementwise(*given, written=made)
            if code.function == "pointwise_":
                forward = self.machine.elementwise(*given, made)
            backward = backward * (sum(needs) if code.function not in ("sum", "add", "sub") else any(needs))
        self._run(forward, backward, any(needs))

    def _run(self, forward: float, backward: float, is_trained: bool) -> None:
        """A call, and what PyTorch undoes it by."""
        node = _VIEWS_PER_NODE * self.machine.seconds_per_view
        self.add(forward + is_trained * (backward + node))

    def undo(self, code: Call, operand: Layout, made: Made) -> None:
        """What it takes PyTorch to bring the gradient of an operand into an order that its maker can be undone in.

        It lies in the order of the operand's axes, and is looked at as what the operand is a view of: it is copied
        where there is no such view. Products of matrices that cannot be read as they lie copy them one by one, for the
        gradient of either operand.
        """
        if code.function not in ("mm", "bmm", "reshape", "contiguous"):
            return
        if code.function == "mm" and is_turned(operand):
            return  # PyTorch makes the gradient of such a matrix transposed as well
        axes = [axis for axis, stride in enumerate(operand.strides) if stride or operand.sizes[axis] == 1]
        strides = contiguous_strides(tuple(operand.sizes[axis] for axis in axes))
        lying = sorted(zip(axes, strides, strict=True), key=lambda pair: -operand.strides[pair[0]])
        gradient = Layout(tuple(operand.sizes[axis] for axis, _ in lying), tuple(stride for _, stride in lying))
        if prod(gradient.sizes) != prod(made.sizes):
            return
        seen = gradient.strides if gradient.sizes == made.sizes else reshaped_strides(gradient, made.sizes)
        if seen is None:
            self.add(self.machine.rearrange(copy_of(gradient)))
        elif made.gradients and not _is_read_as_it_lies(Layout(made.sizes, seen)):
            each = self.machine.seconds_per_kernel + self.machine.seconds_per_product
            matrices = made.sizes[0] if len(made.sizes) == 3 else 1
            copied = self.machine.rearrange(copy_of(Layout(made.sizes, seen)))
            self.add(made.gradients * (_IN_SLICES * copied + matrices * each))

    def module(self, is_trained: bool) -> None:
        """What it takes to call a module, and to start a backward pass."""
        self.add((_VIEWS_PER_CALL + is_trained * _VIEWS_PER_BACKWARD) * self.machine.seconds_per_view)

    def view(self, is_trained: bool) -> None:
        """A view; its gradient is another."""
        self._run(self.machine.seconds_per_view, self.machine.seconds_per_view, is_trained)

    def copy(self, given: Layout) -> None:
        """A copy in the order of the axes, which nothing undoes."""
        self.add(self.machine.rearrange(copy_of(given)))

    def part(self) -> None:
        """What it takes to cut a part and to call a method with it."""
        self.add(_VIEWS_PER_PART * self.machine.seconds_per_view)

    def function(self) -> None:
        """What it takes to call a function that has a backward pass of its own."""
        self.add(_VIEWS_PER_FUNCTION * self.machine.seconds_per_view)

    def _product(self, operands: Sequence[Layout], needs: Sequence[bool]) -> tuple[float, float]:
        left, right = operands
        batch = left.sizes[0] if len(left.sizes) == 3 else 1
        rows, summed, columns = left.sizes[-2], left.sizes[-1], right.sizes[-1]
        of_rows, of_columns = map(is_turned, operands)
        forward = self.machine.product(batch, rows, columns, summed, of_rows, of_columns)
        backward = 0.0
        if any(needs):
            undone = self.machine.undo_product(batch, rows, columns, summed, of_rows, of_columns)
            for operand, seconds, is_wanted in zip(operands, undone, needs, strict=True):
                backward += is_wanted * (float(seconds) + self._spread(operand))
        return float(forward), backward

    def _spread(self, operand: Layout) -> float:
        """To sum what the gradients of one shared matrix are over all products."""
        is_shared = len(operand.sizes) == 3 and operand.strides[0] == 0 and operand.sizes[0] > 1
        return float(self.machine.elementwise(prod(operand.sizes))) if is_shared else 0.0

    def _convolution(self, operands: Sequence[Layout], sizes: Ints) -> float:
        """As the matrix product of all windows with the kernel."""
        _, kernel = operands
        positions = sizes[0] * prod(sizes[2:])
        return float(self.machine.product(1, positions, kernel.sizes[0], prod(kernel.sizes[1:])))


def is_turned(layout: Layout) -> bool:
    """Whether matrices lie transposed; those of one column do, if PyTorch sees them so, and run as fast as that."""
    return layout.strides[-1] != 1 and (layout.sizes[-1] != 1 or layout.strides[-2] == 1)


def _is_read_as_it_lies(matrices: Layout) -> bool:
    """Whether a product reads matrices without a copy: rows or columns have to be side by side, however few they are.

    Source: batch_items_contiguous_or_transposed in aten/src/ATen/native/LinearAlgebra.cpp of PyTorch.
    """
    (rows, columns), (down, along) = matrices.sizes[-2:], matrices.strides[-2:]
    return (along == 1 and down >= columns) or (down == 1 and along >= rows)


def copy_of(layout: Layout) -> Copy:
    """The copy of a tensor in the order of its axes."""
    axes = range(len(layout.sizes))
    lying = sorted(axes, key=lambda axis: -layout.strides[axis])
    return find_copy(lying, axes, layout.sizes.__getitem__)
