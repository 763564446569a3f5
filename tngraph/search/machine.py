"""A model of a machine: the seconds of matrix products, copies and elementwise kernels, by their shapes.

The time of a kernel is the sum of its start, its arithmetic and its memory traffic, so more of any of these never takes
less time. A matrix product approaches its full rate as its rows, columns and summed size grow. Values are read and
written at the speed of the cache up to a size, and at that of memory beyond. A result so large that the allocator asks
the system for memory is slower still, because the system clears its pages first. `tngraph.modules.calibration` measures
the numbers of a device. The defaults of the class are for two cores of a server in float32. They are fitted to whole
layers, in which a kernel finds less in cache than one that is measured alone.

Source: the roofline of Williams, Waterman and Patterson (2009), with an efficiency for small shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


BEYOND = 10**75
"""Larger counts of elements or operations are cut to this, so that the product of four of them is still a float."""


class Work(NamedTuple):
    """One step, as numbers or as arrays of numbers.

    Attributes:
        operations: multiplications of the forward pass [operations].
        left: elements of the left operand [elements].
        right: elements of the right operand, or 0 if there is none [elements].
        result: elements written [elements].
        left_grad: 1 if a gradient flows to the left operand in training, else 0.
        right_grad: the same for the right operand.
    """

    operations: Any
    left: Any
    right: Any
    result: Any
    left_grad: Any
    right_grad: Any


class Copy(NamedTuple):
    """A copy of a value into another order of axes.

    Attributes:
        sizes: the sizes of its axes as they lie, slowest first; axes that stay adjacent count as one [elements].
        order: the axis that comes to each position.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The entries that are copied [elements]."""
        return prod(self.sizes)

    @property
    def run(self) -> int:
        """The entries that stay adjacent in memory [elements]."""
        last = len(self.sizes) - 1
        return self.sizes[last] if self.sizes and self.order[-1] == last else 1


def clip(count: Any) -> Any:
    """Return a count of elements or operations as a float of at most `BEYOND`; floats and arrays stay as they are."""
    return float(min(count, BEYOND)) if isinstance(count, int) else count


def find_copy(order: Sequence[T], wanted: Sequence[T], size: Callable[[T], int]) -> Copy:
    """Return the copy that brings axes from one order into another."""
    moved = [axis for axis in wanted if size(axis) != 1]
    place = {axis: k for k, axis in enumerate(moved)}
    groups: list[list[T]] = []
    for axis in (axis for axis in order if size(axis) != 1):
        if groups and place[groups[-1][-1]] == place[axis] - 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    ranks = sorted(range(len(groups)), key=lambda k: place[groups[k][0]])
    return Copy(tuple(prod(map(size, group)) for group in groups), tuple(ranks))


@dataclass(frozen=True, slots=True)
class Machine:
    """The speed of a device for one type of numbers. Every method takes numbers or arrays of numbers.

    Attributes:
        operations_per_second: rate of a large matrix product [MAC/s].
        half_rows: rows of the left operand at which a product runs at half that rate [elements].
        half_columns: columns of the right operand at which it does; fewer take hardly less time [elements].
        half_summed: summed size at which it does [elements].
        cached_per_second: rate of reading or writing in cache [elements/s].
        elements_per_second: rate of reading or writing beyond the cache [elements/s].
        cache: the part of a value that goes at the speed of the cache [elements].
        fresh_per_second: additional rate of writing into memory that is new to the process [elements/s].
        reused: the largest result whose memory is reused; in float32 everything below 32 MiB [elements].
        doubling_run: adjacent entries at which a permuted copy takes twice as long to read [elements].
        seconds_per_kernel: time to start a kernel other than a product [s].
        seconds_per_product: time to start a kernel of matrix products [s].
        seconds_per_view: time of a call that starts no kernel, as Python and PyTorch need for a view [s].
    """

    operations_per_second: float = 6e10
    half_rows: float = 6.0
    half_columns: float = 15.0
    half_summed: float = 8.0
    cached_per_second: float = 1.3e10
    elements_per_second: float = 1.0e10
    cache: float = 3.0e6
    fresh_per_second: float = 2.0e9
    reused: float = 2**23 - 1
    doubling_run: float = 100.0
    seconds_per_kernel: float = 1e-6
    seconds_per_product: float = 1e-5
    seconds_per_view: float = 1e-6
    is_integral = False

    def __call__(self, work: Work) -> Any:
        """Return the time of a step and of its gradients [s].

        A step of two operands and each gradient count as one matrix product; a step of one operand as one pass.
        """
        work = Work(*map(clip, work))
        others = np.maximum(1, work.right), work.left, work.result
        rows, columns, summed = (np.maximum(1, work.operations / extent) for extent in others)
        batch = work.operations / (rows * columns * summed)
        forward = self.either_way(batch, rows, columns, summed)
        left = work.left_grad * self.either_way(batch, rows, summed, columns)
        right = work.right_grad * self.either_way(batch, summed, columns, rows)
        alone = self.elementwise(work.left, written=work.result)
        alone = alone + work.left_grad * self.elementwise(work.result, written=work.left)
        return np.where(work.right == 0, alone, forward + left + right)[()]

    def either_way(self, batch: Any, rows: Any, columns: Any, summed: Any) -> Any:
        """Return the time of the products or of their transposes, whichever is less [s]."""
        return np.minimum(self.product(batch, rows, columns, summed), self.product(batch, columns, rows, summed))

    def product(
        self, batch: Any, rows: Any, columns: Any, summed: Any, left_turned: Any = False, right_turned: Any = False
    ) -> Any:
        """Return the time of a batch of matrix products in one kernel, whichever matrices are transposed [s]."""
        batch, rows, columns, summed = map(clip, (batch, rows, columns, summed))
        sides = (rows + self.half_rows) * self._reach(columns)
        transposed = (columns + self.half_rows) * self._reach(rows)  # one vector: either side may be the rows
        sides = np.where((batch <= 1) & (np.minimum(rows, columns) <= 1), np.minimum(sides, transposed), sides)
        arithmetic = batch * sides * (summed + self.half_summed) / self.operations_per_second
        traffic = self.pass_over(batch * rows * summed) + self.pass_over(batch * summed * columns)
        return arithmetic + traffic + self.write(batch * rows * columns) + self.seconds_per_product

    def undo_product(
        self, batch: Any, rows: Any, columns: Any, summed: Any, left_turned: Any = False, right_turned: Any = False
    ) -> tuple[Any, Any]:
        """Return the times of the products that give the gradients of the left and of the right matrix [s].

        PyTorch computes the gradient of a single matrix that lies transposed in transposed order.

        Source: mm_mat1_grad and mm_mat2_grad in torch/csrc/autograd/FunctionsManual.cpp of PyTorch.
        """
        batch, rows, columns, summed = map(clip, (batch, rows, columns, summed))
        of_left, of_right = ((np.asarray(batch) <= 1) & transposed for transposed in (left_turned, right_turned))
        left = self.product(
            batch,
            np.where(of_left, summed, rows),
            np.where(of_left, rows, summed),
            columns,
            of_left & right_turned,
            of_left | np.logical_not(right_turned),
        )
        right = self.product(
            batch,
            np.where(of_right, columns, summed),
            np.where(of_right, summed, columns),
            rows,
            of_right | np.logical_not(left_turned),
            of_right & left_turned,
        )
        return left, right

    def copy(self, elements: Any, run: Any) -> Any:
        """Return the time of a copy in another order in which runs of entries stay adjacent [s]."""
        reading = self.pass_over(elements) * (1 + (self.doubling_run / run) ** _BY_RUN)
        return reading + self.write(elements) + self.seconds_per_kernel

    def rearrange(self, copy: Copy) -> float:
        """Return the time of one copy [s]."""
        return float(self.copy(clip(copy.elements), clip(copy.run)))

    def elementwise(self, *elements: Any, written: Any = 0) -> Any:
        """Return the time of a kernel that passes once over values of these sizes and writes a new one [s]."""
        return sum(map(self.pass_over, map(clip, elements))) + self.write(clip(written)) + self.seconds_per_kernel

    def pass_over(self, elements: Any) -> Any:
        """Return the time to read a value once, or to write one into memory that is not new [s]."""
        cached = np.minimum(1.0 * elements, self.cache)
        return cached / self.cached_per_second + (elements - cached) / self.elements_per_second

    def write(self, elements: Any) -> Any:
        """Return the time to write a new value [s]."""
        return self.pass_over(elements) + self.renew(elements)

    def renew(self, elements: Any) -> Any:
        """Return the additional time to write a value into memory that is new to the process [s]."""
        return np.where(elements > self.reused, elements / self.fresh_per_second, 0.0)

    def _reach(self, columns: Any) -> Any:
        """Return how many columns take as long at the full rate: twice as many as there are at `half_columns`."""
        return np.hypot(columns, _TWICE * self.half_columns)


_BY_RUN = 0.7
"""The measured exponent by which reading for a copy gets slower as runs get shorter."""
_TWICE = 3**0.5
"""hypot(1, √3) is 2."""
