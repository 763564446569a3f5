"""Kernels timed as they are asked for: the model of a machine whose products and copies are measured, not modelled.

How fast a product runs depends on its shape and on how its matrices lie in ways that no formula of a few numbers
follows: with eight columns a transposed left matrix may take ten times as long. Tuning lays axes out by these times.
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
from tngraph.planning.machine import Copy, Machine

try:
    import resource
except ImportError:  # on Windows, whose memory goes by other rules
    resource = None  # type: ignore[assignment]

STORE = 2**24
"""The elements that operands are taken of, and that results are written into [elements]."""
LARGEST_PRODUCT = 2**26
"""Of larger products a part is timed that has about so many multiply-adds [MAC]."""
LARGEST_COPY = 2**22
"""Of larger copies a part that has about so many elements [elements]."""
OPERANDS = 8
"""So many operands and results are taken in turns."""
ALIGNED = 16
"""The elements between places where a tensor may begin: 64 bytes of float32 [elements]."""
TURNS, ENOUGH = 5, 0.003
"""A time is the least of so many turns, or of those that fit into so long [s]."""
SECONDS_PER_TURN = 1e-4
"""A turn lasts about so long [s]."""
IN_LAYER = 1.5
"""A kernel takes so many times as long in a layer, where it finds less in cache: as whole layers did on two cores."""
MOST_SECONDS = 10.0
"""When so much time has gone into kernels since the operands were made, the model answers for those not known [s]."""
LARGE, TOUCHED, BLOCKS = 2**27, 2**22, 4
"""A block that a process has no room for by chance, what is written of it to see whether its pages are new [bytes], and
how many are tried, each with room where the one before was."""


class Product(NamedTuple):
    """So many products of matrices, and which of these lie transposed."""

    batch: int
    rows: int
    columns: int
    summed: int
    is_left_turned: bool
    is_right_turned: bool


class CopyClass(NamedTuple):
    """Copies that take about as long: by powers of two, of how the three innermost axes of the result are read.

    Attributes:
        elements: all that is copied.
        sizes: of these axes, the innermost first.
        strides: of these axes in what is copied.
    """

    elements: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, copy: Copy) -> CopyClass:
        """The class of a copy."""
        inner = copy.order[:-4:-1]
        strides = tuple(prod(copy.sizes[axis + 1 :]).bit_length() for axis in inner)
        return cls(copy.elements.bit_length(), tuple(copy.sizes[axis].bit_length() for axis in inner), strides)


@dataclass
class KernelTimes:
    """The times of kernels in a layer on a device [s].

    Each runs on one operand after the other, and its results are kept for a while, since those of a layer are rarely in
    the cache that is nearest. Copies are timed once per class.

    Attributes:
        known: the times; of copies, those of one element.
        spent: on them, since the operands were made [s].
    """

    device: torch.device
    dtype: torch.dtype
    known: dict[Product | CopyClass, float] = field(default_factory=dict)
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
        """Let go of operands and results, and keep the times."""
        for store in ("_operands", "_results"):
            self.__dict__.pop(store, None)
        self.spent = 0.0

    def multiply(self, product: Product) -> float | None:
        """The time of a product; None if it is not known, and there is no time left to find it."""
        if product not in self.known and self.spent < MOST_SECONDS:
            batch, rows, columns, summed, *turned = product
            tensors = zip(
                _matrices(self._operands, (batch, rows, summed), turned[0]),
                reversed(_matrices(self._operands, (batch, summed, columns), turned[1])),
                _matrices(self._results, (batch, rows, columns)),
                strict=True,
            )
            if batch > 1:
                calls = [partial(torch.bmm, left, right, out=result) for left, right, result in tensors]
            else:
                calls = [partial(torch.mm, left[0], right[0], out=result[0]) for left, right, result in tensors]
            self.known[product] = self._measure(calls)
        return self.known.get(product)

    def rearrange(self, copy: Copy) -> float | None:
        """The time of a copy; None as above."""
        key = CopyClass.of(copy)
        if key not in self.known and self.spent < MOST_SECONDS:
            made = [copy.sizes[axis] for axis in copy.order]
            tensors = zip(
                _tensors_in(self._operands, copy.elements), _tensors_in(self._results, copy.elements), strict=True
            )
            calls = [
                partial(result.view(made).copy_, given.view(copy.sizes).permute(copy.order))
                for given, result in tensors
            ]
            self.known[key] = self._measure(calls) / copy.elements
        return self.known[key] * copy.elements if key in self.known else None

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


def _matrices(store: torch.Tensor, shape: tuple[int, int, int], is_turned: bool = False) -> list[torch.Tensor]:
    batch, rows, columns = shape
    made = _tensors_in(store, prod(shape))
    return [each.view(batch, columns, rows).mT if is_turned else each.view(shape) for each in made]


def _tensors_in(store: torch.Tensor, elements: int) -> list[torch.Tensor]:
    """Some tensors of a size, apart from each other as far as there is room, where PyTorch would let them begin."""
    apart = min(-(-elements // ALIGNED), (len(store) - elements) // (OPERANDS - 1) // ALIGNED) * ALIGNED
    return [store[k * apart : k * apart + elements] for k in range(OPERANDS)]


def _part_of(sizes: Iterable[int], fits: Callable[[Sequence[int]], bool]) -> tuple[int, ...]:
    """The same sizes but for the largest, which are halved until all is small; the first one before all."""
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
    """A machine whose products and copies are measured; of large ones a part, and the model says what is beyond.

    Attributes:
        kernels: their times.
    """

    kernels: KernelTimes | None = field(default=None, compare=False)

    @classmethod
    def like(cls, machine: Machine, kernels: KernelTimes) -> MeasuredMachine:
        """A machine with its products measured."""
        return cls(**{each.name: getattr(machine, each.name) for each in fields(Machine)}, kernels=kernels)

    def product(
        self, batch: Any, rows: Any, columns: Any, summed: Any, left_turned: Any = False, right_turned: Any = False
    ) -> Any:
        """The time of so many matrix products in one kernel, whichever of the matrices lie transposed [s]."""
        given = np.broadcast_arrays(batch, rows, columns, summed, left_turned, right_turned)
        cases = np.maximum(np.stack([each.ravel().astype(np.int64) for each in given], axis=1), [1, 1, 1, 1, 0, 0])
        distinct, places = np.unique(cases, axis=0, return_inverse=True)
        times = np.array([self._multiply(tuple(map(int, case[:4])), *map(bool, case[4:])) for case in distinct])
        return times[places.ravel()].reshape(given[0].shape)[()]

    def _multiply(self, sizes: tuple[int, ...], is_left_turned: bool, is_right_turned: bool) -> float:
        assert self.kernels is not None
        part = _part_of(sizes, _is_small_product)
        batch, rows, columns, summed = part
        seconds = self.kernels.multiply(Product(batch, rows, columns, summed, is_left_turned, is_right_turned))
        if seconds is not None and part == sizes:
            return seconds + float(self.renew(prod(sizes[:3])))
        whole = float(Machine.product(self, *sizes))
        if seconds is None:
            return whole
        return self._extend(seconds, (float(Machine.product(self, *part)), prod(part[:3])), (whole, prod(sizes[:3])))

    def rearrange(self, copy: Copy) -> float:
        """The time of one copy [s]."""
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
        """The time of a kernel of which a part was measured, in memory that was there [s].

        Args:
            seconds: of the part.
            part: what the model says of it [s], and what it writes [elements].
            whole: the same of the kernel.
        """
        renewed = [float(self.renew(written)) for _, written in (part, whole)]
        return seconds * (whole[0] - renewed[1]) / (part[0] - renewed[0]) + renewed[1]


def in_this_process(machine: Machine, device: torch.device) -> Machine:
    """A machine whose memory is never new where the process keeps what it has freed, however large."""
    return replace(machine, reused=2.0**63) if device.type == "cpu" and keeps_memory() else machine


def keeps_memory() -> bool:
    """Whether a large block that is freed is there for the next one, as the page faults of writing into that tell.

    The C library of Linux takes blocks of 32 MiB and more from the system each time, unless it is told otherwise.
    """
    if resource is None:
        return False
    faults = list[int]()
    for number in range(BLOCKS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(LARGE - number * TOUCHED, dtype=torch.uint8)[:TOUCHED].zero_()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults) < TOUCHED / PAGESIZE / 2


@cache
def kernels_of(device: torch.device, dtype: torch.dtype, *names: str) -> KernelTimes:
    """What is known of the kernels of a device in this process, where device and type have such names."""
    return KernelTimes(device, dtype)
