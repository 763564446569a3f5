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
from tngraph.program.pytorch import TorchFunction
from tngraph.program.strides import Ints, Layout, contiguous_strides, reshaped_strides
from tngraph.search.machine import Copy, Machine, find_copy

_VIEWS_PER_CALL = 5
"""Calling a module, which then checks the shapes of its inputs, takes as long as this many views."""
_VIEWS_PER_TILE = 20
"""Cutting a tile, calling a method with it and joining its result to the others takes as long as this many views."""
_VIEWS_PER_BACKWARD = 20
"""Starting a backward pass takes as long as this many views."""
_VIEWS_PER_FUNCTION = 60
"""Calling a Python autograd function, and later its backward, takes as long as this many views."""
_VIEWS_PER_NODE = 5
"""Recording a call for autograd, and later finding its backward, takes as long as this many views."""
_IN_SLICES = 2
"""Copying matrices one by one takes this many times as long as all at once: the data that they share is read again."""


class Origin(NamedTuple):
    """The call that computed a tensor, however the tensor is viewed later.

    Attributes:
        sizes: the sizes of the tensor.
        gradients: the number of matrix products in the call's backward.
    """

    sizes: Ints
    gradients: int = 0


class Timer:
    """A listener to the calls of a run. This one takes no notice of them, and `Clock` adds up their times."""

    is_timing = False

    def repeat(self, times: int) -> None:
        """Take the next calls to run this number of times."""

    def call(self, code: Call, operands: Sequence[Layout], sizes: Ints, needs: Sequence[bool], is_view: bool) -> None:
        """Take notice of a call, with the operands that gradients flow to, and whether it returns a view."""

    def undo(self, code: Call, operand: Layout, origin: Origin) -> None:
        """Take notice that the gradient of a call's operand goes back to the operand's origin."""

    def copy(self, layout: Layout) -> None:
        """Take notice of a copy into the order of the axes that has no backward."""

    def tile(self) -> None:
        """Take notice that a tile is cut and a method is called with it."""

    def function(self) -> None:
        """Take notice of a call of a function that has a backward pass of its own."""


@dataclass
class Clock(Timer):
    """A sum of the predicted seconds of calls.

    Attributes:
        machine: the machine that runs them.
        times: the number of times that the current calls run.
        seconds: the sum so far [s].
        cache: the seconds of kernels on this machine; clocks of one machine may share them.
    """

    machine: Machine
    is_timing = True
    times: int = 1
    seconds: float = 0.0
    cache: dict[Hashable, Any] = field(default_factory=dict)

    def add(self, seconds: float) -> None:
        """Add some time, multiplied by how often the current calls run."""
        self.seconds += self.times * float(seconds)

    def _ask(self, kind: str, *numbers: Any, **named: int) -> Any:
        """Return the machine's estimate for a kernel, computed at the first request."""
        key = kind, numbers, *named.values()
        if key not in self.cache:
            self.cache[key] = getattr(self.machine, kind)(*numbers, **named)
        return self.cache[key]

    def repeat(self, times: int) -> None:
        """Multiply the times of the next calls by the number of times that they run."""
        self.times = times

    def call(self, code: Call, operands: Sequence[Layout], sizes: Ints, needs: Sequence[bool], is_view: bool) -> None:
        """Add the time of a call and of its gradients. The gradient of a view is another view."""
        if code.torch.kernel == "nothing":
            return
        seconds = self.machine.seconds_per_view
        forward, backward = (seconds, seconds) if is_view else self._kernel(code.torch, operands, sizes, needs)
        node = _VIEWS_PER_NODE * self.machine.seconds_per_view
        self.add(forward + any(needs) * (backward + node))

    def _kernel(
        self, function: TorchFunction, operands: Sequence[Layout], sizes: Ints, needs: Sequence[bool]
    ) -> tuple[float, float]:
        """Return the times of a call that is not a view, and of its gradients."""
        if function.kernel == "product":
            return self._product(operands, needs)
        if function.kernel in ("convolution", "transposed convolution"):
            seconds = self._convolution(operands, sizes if function.kernel == "convolution" else operands[0].sizes)
            return seconds, sum(needs) * seconds
        if function.kernel == "copy":
            return self._ask("rearrange", copy_of(operands[0])), 0.0  # its gradient is a view, see `undo`
        read, written = [prod(operand.sizes) for operand in operands], prod(sizes)
        fresh = self._ask("elementwise", *read, written=written)
        forward = self._ask("elementwise", *read, written) if function.kernel == "in place" else fresh
        return forward, fresh * (any(needs) if function.has_one_gradient else sum(needs))

    def undo(self, code: Call, operand: Layout, origin: Origin) -> None:
        """Add the time to copy an operand's gradient into an order that the backward of its origin can read.

        The gradient lies in the order of the operand's axes. Backward views it in the shape that the origin returned,
        and copies it if there is no such view. A product of matrices that cannot read its operands as they lie copies
        them one by one, for the gradient of either operand.
        """
        if code.torch.kernel not in ("product", "copy"):
            return
        if code.torch.kernel == "product" and len(operand.sizes) == 2 and is_transposed(operand):
            return  # PyTorch computes the gradient of such a matrix transposed as well
        axes = [axis for axis, stride in enumerate(operand.strides) if stride or operand.sizes[axis] == 1]
        strides = contiguous_strides(tuple(operand.sizes[axis] for axis in axes))
        lying = sorted(zip(axes, strides, strict=True), key=lambda pair: -operand.strides[pair[0]])
        gradient = Layout(tuple(operand.sizes[axis] for axis, _ in lying), tuple(stride for _, stride in lying))
        if prod(gradient.sizes) != prod(origin.sizes):
            return
        seen = gradient.strides if gradient.sizes == origin.sizes else reshaped_strides(gradient, origin.sizes)
        if seen is None:
            self.add(self._ask("rearrange", copy_of(gradient)))
        elif origin.gradients and not _is_read_as_it_lies(Layout(origin.sizes, seen)):
            per_matrix = self.machine.seconds_per_kernel + self.machine.seconds_per_product
            matrices = origin.sizes[0] if len(origin.sizes) == 3 else 1
            copied = self._ask("rearrange", copy_of(Layout(origin.sizes, seen)))
            self.add(origin.gradients * (_IN_SLICES * copied + matrices * per_matrix))

    def module(self, is_trained: bool) -> None:
        """Add the time to call a module, and in training to start a backward pass."""
        self.add((_VIEWS_PER_CALL + is_trained * _VIEWS_PER_BACKWARD) * self.machine.seconds_per_view)

    def copy(self, layout: Layout) -> None:
        """Add the time of a copy into the order of the axes that has no backward."""
        self.add(self._ask("rearrange", copy_of(layout)))

    def tile(self) -> None:
        """Add the time to cut a tile and to call a method with it."""
        self.add(_VIEWS_PER_TILE * self.machine.seconds_per_view)

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
