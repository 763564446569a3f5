"""A machine whose products and copies are measured on demand instead of modelled.

No formula of a few numbers predicts how the speed of a product depends on its shape and on the order of its matrices:
with eight columns a transposed left matrix can take ten times as long. Tuning chooses the order of axes by these times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property, partial
from math import prod
from mmap import PAGESIZE
from typing import Any, NamedTuple

import numpy as np
import torch

from tngraph.modules.calibration import waiting
from tngraph.search.machine import Copy, Machine

try:
    import resource
except ImportError:  # on Windows, which allocates memory by other rules
    resource = None  # type: ignore[assignment]

STORE = 2**24
"""The size of the store that operands are cut from, and of the one that results are written into [elements]."""
LARGEST_PRODUCT = 2**26
"""Of a larger product only a part with about this many multiply-adds is timed [MAC]."""
LARGEST_COPY = 2**22
"""Of a larger copy only a part with about this many elements is timed [elements]."""
OPERANDS = 8
"""The number of operands and results that are used in turns."""
ALIGNED = 16
"""The distance between places where a tensor may begin: 64 bytes in float32 [elements]."""
TURNS, ENOUGH = 5, 0.003
"""A time is the least of this many turns, or of those that fit into this time [s]."""
SECONDS_PER_TURN = 1e-4
"""The approximate length of a turn [s]."""
IN_LAYER = 1.5
"""Measured times are multiplied by this, since a kernel in a layer finds less in cache, as measured on two cores."""
MOST_SECONDS = 10.0
"""Once this much time was spent since the operands were made, the model predicts untimed kernels [s]."""
LARGE, TOUCHED, BLOCKS = 2**27, 2**22, 4
"""For the test of whether memory is reused: the size of a block, too large to fit into a hole by chance [bytes]; the
part of it that is written, to see whether its pages are new [bytes]; and how many blocks are tried, each a little
smaller than the one before so that it fits in its place."""


class ProductCase(NamedTuple):
    """A batch of matrix products of one shape, and which of the matrices are transposed."""

    batch: int
    rows: int
    columns: int
    summed: int
    is_left_transposed: bool
    is_right_transposed: bool


class CopyClass(NamedTuple):
    """Copies that take about equally long, since they read the three innermost axes of the result similarly.

    Attributes:
        elements: the bit length of the elements copied.
        sizes: the bit lengths of these axes' sizes, innermost first.
        strides: the bit lengths of these axes' strides in the source.
    """

    elements: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, copy: Copy) -> CopyClass:
        """Return the class of a copy."""
        inner = copy.order[:-4:-1]
        strides = tuple(prod(copy.sizes[axis + 1 :]).bit_length() for axis in inner)
        return cls(copy.elements.bit_length(), tuple(copy.sizes[axis].bit_length() for axis in inner), strides)


@dataclass
class KernelTimes:
    """The times that kernels take in a layer on a device [s].

    A kernel is timed on several operands and results in turns, since in a layer they are rarely in the nearest cache.
    Copies are timed once per class.

    Attributes:
        times: the measured times; of copies, per element.
        spent: the time spent on measuring since the operands were made [s].
    """

    device: torch.device
    dtype: torch.dtype
    times: dict[ProductCase | CopyClass, float] = field(default_factory=dict)
    spent: float = 0.0

    @cached_property
    def _operands(self) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        store = torch.empty(STORE, device=self.device, dtype=torch.float32)
        return store.uniform_(-1, 1, generator=generator).to(self.dtype)

    @cached_property
    def _results(self) -> torch.Tensor:
        return torch.empty(STORE, device=self.device, dtype=self.dtype).fill_(0)

    def release(self) -> None:
        """Release operands and results, and keep the times."""
        for store in ("_operands", "_results"):
            self.__dict__.pop(store, None)
        self.spent = 0.0

    def multiply(self, product: ProductCase) -> float | None:
        """Return the time of a product, or None if it was not timed and there is no time left for that [s]."""
        if product not in self.times and self.spent < MOST_SECONDS:
            batch, rows, columns, summed, *transposed = product
            tensors = zip(
                _matrices(self._operands, (batch, rows, summed), transposed[0]),
                reversed(_matrices(self._operands, (batch, summed, columns), transposed[1])),
                _matrices(self._results, (batch, rows, columns)),
                strict=True,
            )
            if batch > 1:
                calls = [partial(torch.bmm, left, right, out=result) for left, right, result in tensors]
            else:
                calls = [partial(torch.mm, left[0], right[0], out=result[0]) for left, right, result in tensors]
            self.times[product] = self._measure(calls)
        return self.times.get(product)

    def rearrange(self, copy: Copy) -> float | None:
        """Return the time of a copy, or None if its class was not timed and there is no time left for that [s]."""
        key = CopyClass.of(copy)
        if key not in self.times and self.spent < MOST_SECONDS:
            shape = [copy.sizes[axis] for axis in copy.order]
            tensors = zip(
                _tensors_in(self._operands, copy.elements), _tensors_in(self._results, copy.elements), strict=True
            )
            calls = [
                partial(result.view(shape).copy_, source.view(copy.sizes).permute(copy.order))
                for source, result in tensors
            ]
            self.times[key] = self._measure(calls) / copy.elements
        return self.times[key] * copy.elements if key in self.times else None

    def _measure(self, calls: Sequence[Callable[[], object]]) -> float:
        wait, times, start = waiting(self.device), list[float](), time.perf_counter()
        calls[0]()
        wait()
        count, turn = 1, 1
        while len(times) < TURNS and (not times or time.perf_counter() - start < ENOUGH):
            began = time.perf_counter()
            for _ in range(count):
                calls[turn % len(calls)]()
                turn += 1
            wait()
            taken = time.perf_counter() - began
            if count == 1 and not times and taken < SECONDS_PER_TURN / 2:
                count = max(2, round(SECONDS_PER_TURN / taken))
            else:
                times.append(taken / count)
        self.spent += time.perf_counter() - start
        return IN_LAYER * min(times)


def _matrices(store: torch.Tensor, shape: tuple[int, int, int], is_transposed: bool = False) -> list[torch.Tensor]:
    batch, rows, columns = shape
    tensors = _tensors_in(store, prod(shape))
    return [tensor.view(batch, columns, rows).mT if is_transposed else tensor.view(shape) for tensor in tensors]


def _tensors_in(store: torch.Tensor, elements: int) -> list[torch.Tensor]:
    """Return tensors of one size, as far apart as there is room, beginning where PyTorch aligns tensors."""
    apart = min(-(-elements // ALIGNED), (len(store) - elements) // (OPERANDS - 1) // ALIGNED) * ALIGNED
    return [store[k * apart : k * apart + elements] for k in range(OPERANDS)]


def _part_of(sizes: Iterable[int], fits: Callable[[Sequence[int]], bool]) -> tuple[int, ...]:
    """Return sizes that fit: the first is halved to less than 8, then always the largest."""
    part = list(sizes)
    while not fits(part):
        largest = 0 if part[0] >= 8 else max(range(len(part)), key=part.__getitem__)
        part[largest] = (part[largest] + 1) // 2
    return tuple(part)


def _is_small_product(sizes: Sequence[int]) -> bool:
    batch, rows, columns, summed = sizes
    largest = batch * max(rows * columns, rows * summed, summed * columns)
    return prod(sizes) <= LARGEST_PRODUCT and largest <= STORE


def _is_small_copy(sizes: Sequence[int]) -> bool:
    return prod(sizes) <= LARGEST_COPY


@dataclass(frozen=True, slots=True)
class MeasuredMachine(Machine):
    """A machine whose products and copies are measured. Of a large one a part is measured, and the model extrapolates.

    Attributes:
        kernels: the measured times.
    """

    kernels: KernelTimes | None = field(default=None, compare=False)

    @classmethod
    def like(cls, machine: Machine, kernels: KernelTimes) -> MeasuredMachine:
        """Return a machine with these numbers whose products and copies are measured."""
        return cls(**{constant.name: getattr(machine, constant.name) for constant in fields(Machine)}, kernels=kernels)

    def product(
        self, batch: Any, rows: Any, columns: Any, summed: Any, left_turned: Any = False, right_turned: Any = False
    ) -> Any:
        """Return the time of a batch of matrix products in one kernel, by which matrices are transposed [s]."""
        arguments = np.broadcast_arrays(batch, rows, columns, summed, left_turned, right_turned)
        cases = np.maximum(
            np.stack([numbers.ravel().astype(np.int64) for numbers in arguments], axis=1), [1, 1, 1, 1, 0, 0]
        )
        distinct, places = np.unique(cases, axis=0, return_inverse=True)
        times = np.array([self._multiply(tuple(map(int, case[:4])), *map(bool, case[4:])) for case in distinct])
        return times[places.ravel()].reshape(arguments[0].shape)[()]

    def _multiply(self, sizes: tuple[int, ...], is_left_transposed: bool, is_right_transposed: bool) -> float:
        assert self.kernels is not None
        part = _part_of(sizes, _is_small_product)
        batch, rows, columns, summed = part
        seconds = self.kernels.multiply(
            ProductCase(batch, rows, columns, summed, is_left_transposed, is_right_transposed)
        )
        if seconds is not None and part == sizes:
            return seconds + float(self.renew(prod(sizes[:3])))
        whole = float(Machine.product(self, *sizes))
        if seconds is None:
            return whole
        return self._extend(seconds, (float(Machine.product(self, *part)), prod(part[:3])), (whole, prod(sizes[:3])))

    def rearrange(self, copy: Copy) -> float:
        """Return the time of one copy [s]."""
        assert self.kernels is not None
        part = copy._replace(sizes=_part_of(copy.sizes, _is_small_copy))
        seconds = self.kernels.rearrange(part)
        if seconds is not None and part == copy:
            return seconds + float(self.renew(copy.elements))
        whole = Machine.rearrange(self, copy)
        if seconds is None:
            return whole
        return self._extend(seconds, (Machine.rearrange(self, part), part.elements), (whole, copy.elements))

    def _extend(self, seconds: float, part: tuple[float, int], whole: tuple[float, int]) -> float:
        """Return the time of a kernel from the measured time of its part, in memory that was not new [s].

        Args:
            seconds: the measured time of the part [s].
            part: the predicted time of the part [s], and the elements it writes [elements].
            whole: the same for the whole kernel.
        """
        renewed = [float(self.renew(written)) for _, written in (part, whole)]
        return seconds * (whole[0] - renewed[1]) / (part[0] - renewed[0]) + renewed[1]


def in_this_process(machine: Machine, device: torch.device) -> Machine:
    """Return a machine whose memory is never new if this process reuses freed blocks of any size."""
    return replace(machine, reused=2.0**63) if device.type == "cpu" and keeps_memory() else machine


def keeps_memory() -> bool:
    """Return whether this process reuses a large block after it was freed, judged by page faults of writing into it.

    The C library of Linux takes blocks of 32 MiB and more from the system each time, unless it is configured otherwise.
    """
    if resource is None:
        return False
    faults = list[int]()
    for k in range(BLOCKS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(LARGE - k * TOUCHED, dtype=torch.uint8)[:TOUCHED].zero_()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults) < TOUCHED / PAGESIZE / 2


@cache
def kernels_of(device: torch.device, dtype: torch.dtype, *names: str) -> KernelTimes:
    """Return the kernel times of a device in this process. There is one object for each set of names."""
    return KernelTimes(device, dtype)
