"""The predicted time of a module's calls on a machine, from the strides of their operands, for `minimize="time"`.

A view takes the time of a call that starts no kernel. The speed of a copy depends on how many entries stay adjacent,
and the speed of a product on its shape. Everything else reads and writes its values once. In training every call runs
once more for each operand that a gradient flows to, and the gradient of a matrix shared by many products is summed over
them. PyTorch does not rearrange gradients in advance: a gradient lies as the call that produced it left it, and is
copied where the backward of the next call cannot read it that way.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from tngraph.program.expressions import Call
from tngraph.program.strides import Ints, Layout, contiguous_strides, reshaped_strides
from tngraph.search.machine import Copy, Machine, find_copy

_VIEWS_PER_CALL = 5
"""Calling a module, which then checks the shapes of its inputs, takes as long as this many views."""
_VIEWS_PER_PART = 20
"""Cutting a tile, calling a method with it and joining its result to the others takes as long as this many views."""
_VIEWS_PER_BACKWARD = 20
"""Starting a backward pass takes as long as this many views."""
_VIEWS_PER_FUNCTION = 60
"""Calling a Python autograd function, and later its backward, takes as long as this many views."""
_VIEWS_PER_NODE = 5
"""Recording a call for autograd, and later finding its backward, takes as long as this many views."""
_IN_SLICES = 2
"""Copying matrices one by one takes this many times as long as all at once: what they share is read again."""


class Made(NamedTuple):
    """The call that computed a tensor, however the tensor is viewed later.

    Attributes:
        sizes: the sizes of the tensor.
        gradients: the number of matrix products in the call's backward.
    """

    sizes: Ints
    gradients: int = 0


@dataclass
class Clock:
    """A sum of the predicted seconds of calls.

    Attributes:
        machine: the machine that runs them.
        times: the number of times that the current calls run.
        seconds: the sum so far [s].
        known: the seconds of kernels on this machine, by what they are; clocks of one machine may share them.
    """

    machine: Machine
    times: int = 1
    seconds: float = 0.0
    known: dict[Hashable, Any] = field(default_factory=dict)

    def add(self, seconds: float) -> None:
        """Add some time, multiplied by how often the current calls run."""
        self.seconds += self.times * float(seconds)

    def _ask(self, kind: str, *numbers: Any, **named: int) -> Any:
        """Return what the machine says of a kernel, which is asked once."""
        key = kind, numbers, *named.values()
        if key not in self.known:
            self.known[key] = getattr(self.machine, kind)(*numbers, **named)
        return self.known[key]

    def call(self, code: Call, operands: Sequence[Layout], sizes: Ints, needs: Sequence[bool]) -> None:
        """Add the time of a call that is not a view, and of its gradients."""
        if code.function in ("mm", "bmm"):
            forward, backward = self._product(operands, needs)
        elif code.function in ("conv", "conv_transpose"):
            is_transposed = code.function == "conv_transpose"
            forward = self._convolution(operands, operands[0].sizes if is_transposed else sizes)
            backward = sum(needs) * forward
        elif code.function in ("reshape", "contiguous"):
            forward, backward = self._ask("rearrange", copy_of(operands[0])), 0.0  # its gradient is a view, see `undo`
        else:
            given, written = [prod(each.sizes) for each in operands], prod(sizes)
            forward = backward = self._ask("elementwise", *given, written=written)
            if code.function == "pointwise_":
                forward = self._ask("elementwise", *given, written)
            backward = backward * (sum(needs) if code.function not in ("sum", "add", "sub") else any(needs))
        self._run(forward, backward, any(needs))

    def _run(self, forward: float, backward: float, is_trained: bool) -> None:
        """Add a call, its backward, and what autograd needs to record it."""
        node = _VIEWS_PER_NODE * self.machine.seconds_per_view
        self.add(forward + is_trained * (backward + node))

    def undo(self, code: Call, operand: Layout, made: Made) -> None:
        """Add the time to copy an operand's gradient into an order that its maker's backward can read.

        The gradient lies in the order of the operand's axes. Backward views it in the shape that the maker returned,
        and copies it if there is no such view. A product of matrices that cannot read its operands as they lie copies
        them one by one, for the gradient of either operand.
        """
        if code.function not in ("mm", "bmm", "reshape", "contiguous"):
            return
        if code.function == "mm" and is_transposed(operand):
            return  # PyTorch computes the gradient of such a matrix transposed as well
        axes = [axis for axis, stride in enumerate(operand.strides) if stride or operand.sizes[axis] == 1]
        strides = contiguous_strides(tuple(operand.sizes[axis] for axis in axes))
        lying = sorted(zip(axes, strides, strict=True), key=lambda pair: -operand.strides[pair[0]])
        gradient = Layout(tuple(operand.sizes[axis] for axis, _ in lying), tuple(stride for _, stride in lying))
        if prod(gradient.sizes) != prod(made.sizes):
            return
        seen = gradient.strides if gradient.sizes == made.sizes else reshaped_strides(gradient, made.sizes)
        if seen is None:
            self.add(self._ask("rearrange", copy_of(gradient)))
        elif made.gradients and not _is_read_as_it_lies(Layout(made.sizes, seen)):
            each = self.machine.seconds_per_kernel + self.machine.seconds_per_product
            matrices = made.sizes[0] if len(made.sizes) == 3 else 1
            copied = self._ask("rearrange", copy_of(Layout(made.sizes, seen)))
            self.add(made.gradients * (_IN_SLICES * copied + matrices * each))

    def module(self, is_trained: bool) -> None:
        """Add the time to call a module, and in training to start a backward pass."""
        self.add((_VIEWS_PER_CALL + is_trained * _VIEWS_PER_BACKWARD) * self.machine.seconds_per_view)

    def view(self, is_trained: bool) -> None:
        """Add the time of a view, whose gradient is another view."""
        self._run(self.machine.seconds_per_view, self.machine.seconds_per_view, is_trained)

    def copy(self, given: Layout) -> None:
        """Add the time of a copy into the order of the axes that has no backward."""
        self.add(self._ask("rearrange", copy_of(given)))

    def part(self) -> None:
        """Add the time to cut a tile and to call a method with it."""
        self.add(_VIEWS_PER_PART * self.machine.seconds_per_view)

    def function(self) -> None:
        """Add the time to call a function that has a backward pass of its own."""
        self.add(_VIEWS_PER_FUNCTION * self.machine.seconds_per_view)

    def _product(self, operands: Sequence[Layout], needs: Sequence[bool]) -> tuple[float, float]:
        left, right = operands
        batch = left.sizes[0] if len(left.sizes) == 3 else 1
        rows, summed, columns = left.sizes[-2], left.sizes[-1], right.sizes[-1]
        of_rows, of_columns = map(is_transposed, operands)
        forward = self._ask("product", batch, rows, columns, summed, of_rows, of_columns)
        backward = 0.0
        if any(needs):
            undone = self._ask("undo_product", batch, rows, columns, summed, of_rows, of_columns)
            for operand, seconds, is_wanted in zip(operands, undone, needs, strict=True):
                backward += is_wanted * (float(seconds) + self._spread(operand))
        return float(forward), backward

    def _spread(self, operand: Layout) -> float:
        """Return the time to sum the gradient of one shared matrix over all products."""
        is_shared = len(operand.sizes) == 3 and operand.strides[0] == 0 and operand.sizes[0] > 1
        return float(self._ask("elementwise", prod(operand.sizes))) if is_shared else 0.0

    def _convolution(self, operands: Sequence[Layout], sizes: Ints) -> float:
        """Return the time of a convolution, taken as the matrix product of all windows with the kernel."""
        _, kernel = operands
        positions = sizes[0] * prod(sizes[2:])
        return float(self._ask("product", 1, positions, kernel.sizes[0], prod(kernel.sizes[1:])))


def is_transposed(layout: Layout) -> bool:
    """Return whether matrices lie transposed. Those of one column do if PyTorch sees them so."""
    return layout.strides[-1] != 1 and (layout.sizes[-1] != 1 or layout.strides[-2] == 1)


def _is_read_as_it_lies(matrices: Layout) -> bool:
    """Return whether a product reads matrices without a copy, for which rows or columns must be adjacent in memory.

    Source: batch_items_contiguous_or_transposed in aten/src/ATen/native/LinearAlgebra.cpp of PyTorch.
    """
    (rows, columns), (down, along) = matrices.sizes[-2:], matrices.strides[-2:]
    return (along == 1 and down >= columns) or (down == 1 and along >= rows)


def copy_of(layout: Layout) -> Copy:
    """Return the copy of a tensor into the order of its axes."""
    axes = range(len(layout.sizes))
    lying = sorted(axes, key=lambda axis: -layout.strides[axis])
    return find_copy(lying, axes, layout.sizes.__getitem__)
