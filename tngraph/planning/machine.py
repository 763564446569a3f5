"""What a step takes on a machine: seconds of matrix products, copies and elementwise kernels, by their shapes.

A kernel takes the longer of its arithmetic and its memory traffic, and the time to start it. A matrix product gets to
the rate of a large one as its rows, columns and summed size grow; what a kernel reads and writes goes at the speed of
the cache up to a size, and at that of fresh memory beyond. `tngraph.modules.calibration` measures the numbers of a
device; those of the class are of two cores of a server, in float32.

Source: the roofline of Williams, Waterman and Patterson (2009), with an efficiency for small shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Work(NamedTuple):
    """One step, as numbers or as arrays of numbers.

    Attributes:
        operations: multiplications of the forward pass [operations].
        left: elements of the one operand [elements].
        right: elements of the other [elements].
        result: elements written [elements].
        left_grad: 1 where a gradient flows to the one operand in training, else 0.
        right_grad: the same of the other.
    """

    operations: Any
    left: Any
    right: Any
    result: Any
    left_grad: Any
    right_grad: Any


@dataclass(frozen=True, slots=True)
class Machine:
    """How fast a device is, at one type of numbers. Every method takes numbers or arrays of them.

    Attributes:
        operations_per_second: multiply-adds of a large matrix product [MAC/s].
        half_rows: rows of the left operand at which a product runs at half of that [elements].
        half_columns: columns of the right operand, as much [elements].
        half_summed: the summed size, as much [elements].
        cached_per_second: read or written, of values that stay in cache [elements/s].
        elements_per_second: read or written, of larger ones [elements/s].
        cache: the largest value that stays in cache [elements].
        half_run: the entries side by side at which a permuted copy goes half as fast as a plain one [elements].
        seconds_per_kernel: of every kernel [s].
    """

    operations_per_second: float = 9.5e10
    half_rows: float = 4.0
    half_columns: float = 16.0
    half_summed: float = 12.0
    cached_per_second: float = 2.5e10
    elements_per_second: float = 2.0e9
    cache: float = 4.0e6
    half_run: float = 6.0
    seconds_per_kernel: float = 4e-6
    is_integral = False

    def __call__(self, work: Work) -> Any:
        """The time of a step and of its gradients, each as one matrix product [s]."""
        rows, columns, summed = (np.maximum(1, work.operations / each) for each in (work.right, work.left, work.result))
        batch = work.operations / (rows * columns * summed)
        forward = self.either_way(batch, rows, columns, summed)
        left = work.left_grad * self.either_way(batch, rows, summed, columns)
        right = work.right_grad * self.either_way(batch, summed, columns, rows)
        return forward + left + right

    def either_way(self, batch: Any, rows: Any, columns: Any, summed: Any) -> Any:
        """The time of the products or of their transposes, whichever is the less [s]."""
        return np.minimum(self.product(batch, rows, columns, summed), self.product(batch, columns, rows, summed))

    def product(self, batch: Any, rows: Any, columns: Any, summed: Any) -> Any:
        """The time of so many matrix products in one kernel [s]."""
        reached = _reached(rows, self.half_rows) * _reached(columns, self.half_columns)
        reached = reached * _reached(summed, self.half_summed)
        arithmetic = batch * rows * columns * summed / (self.operations_per_second * reached)
        traffic = self.pass_over(batch * rows * summed) + self.pass_over(batch * summed * columns)
        traffic = traffic + self.pass_over(batch * rows * columns)
        return np.maximum(arithmetic, traffic) + self.seconds_per_kernel

    def copy(self, elements: Any, run: Any) -> Any:
        """The time of a copy in another order, in which so many entries stay side by side [s]."""
        return 2 * self.pass_over(elements) * (1 + self.half_run / run) + self.seconds_per_kernel

    def elementwise(self, *elements: Any) -> Any:
        """The time of a kernel that reads and writes values of these sizes once [s]."""
        return sum(map(self.pass_over, elements)) + self.seconds_per_kernel

    def pass_over(self, elements: Any) -> Any:
        """The time to read or write a value once [s]."""
        return elements / np.where(elements <= self.cache, self.cached_per_second, self.elements_per_second)


def _reached(size: Any, half: float) -> Any:
    """The share of the full rate at a size, one half at `half`."""
    return size**2 / (size**2 + half**2)
