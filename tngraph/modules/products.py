"""Matrix products timed as they are asked for: the model of a machine whose products are measured, not modelled.

How fast a product runs depends on its shape and on how its matrices lie in ways that no formula of a few numbers
follows: with eight columns a transposed left matrix may take ten times as long. Tuning lays axes out by these times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from tngraph.modules.calibration import waiting
from tngraph.planning.machine import Machine

LARGEST = 2**21
"""Of larger products a part is timed that has about so many multiply-adds [MAC]."""
TURNS = 3
"""A time is the least of so many turns."""
SECONDS_PER_TURN = 1e-4
"""A turn lasts about so long [s]."""


class Product(NamedTuple):
    """So many products of matrices, and which of these lie transposed."""

    batch: int
    rows: int
    columns: int
    summed: int
    is_left_turned: bool
    is_right_turned: bool


@dataclass
class Products:
    """The times of matrix products on a device [s]."""

    device: torch.device
    dtype: torch.dtype
    known: dict[Product, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator(self.device).manual_seed(0)
        store = torch.empty(2 * LARGEST, device=self.device, dtype=torch.float32)
        self._store = store.uniform_(-1, 1, generator=generator).to(self.dtype)

    def seconds(self, product: Product) -> float:
        """What a product takes, by a part of it where it is large."""
        part = _part_of(product)
        if part not in self.known:
            self.known[part] = self._measure(part)
        return self.known[part] * (prod(product[:4]) / prod(part[:4]))

    def _measure(self, product: Product) -> float:
        call, wait = self._call(product), waiting(self.device)
        call()
        wait()
        count, times = 1, []
        while len(times) < TURNS:
            began = time.perf_counter()
            for _ in range(count):
                call()
            wait()
            taken = time.perf_counter() - began
            if count == 1 and taken < SECONDS_PER_TURN / 2 and not times:
                count = max(2, round(SECONDS_PER_TURN / taken))
            else:
                times.append(taken / count)
        return min(times)

    def _call(self, product: Product) -> Callable[[], object]:
        batch, rows, columns, summed, is_left_turned, is_right_turned = product
        left = self._matrices(0, batch, rows, summed, is_left_turned)
        right = self._matrices(LARGEST, batch, summed, columns, is_right_turned)
        if batch > 1:
            return lambda: torch.bmm(left, right)
        left, right = left[0], right[0]
        return lambda: torch.mm(left, right)

    def _matrices(self, start: int, batch: int, rows: int, columns: int, is_turned: bool) -> torch.Tensor:
        shape = (batch, columns, rows) if is_turned else (batch, rows, columns)
        made = self._store[start : start + prod(shape)].view(shape)
        return made.mT if is_turned else made


def _part_of(product: Product) -> Product:
    """The same but for its largest sizes, which are halved until it is small."""
    sizes = list(product[:4])
    while prod(sizes) > LARGEST:
        largest = 0 if sizes[0] >= 8 else max((1, 2, 3), key=sizes.__getitem__)
        sizes[largest] = (sizes[largest] + 1) // 2
    return Product(*sizes, *product[4:])


@dataclass(frozen=True, slots=True)
class MeasuredMachine(Machine):
    """A machine whose products are measured.

    Attributes:
        products: their times.
    """

    products: Products | None = field(default=None, compare=False)

    @classmethod
    def like(cls, machine: Machine, products: Products) -> MeasuredMachine:
        """A machine with its products measured."""
        return cls(**{each.name: getattr(machine, each.name) for each in fields(Machine)}, products=products)

    def product(
        self, batch: Any, rows: Any, columns: Any, summed: Any, left_turned: Any = False, right_turned: Any = False
    ) -> Any:
        """The time of so many matrix products in one kernel, and of their traffic beyond the cache [s]."""
        assert self.products is not None
        given = np.broadcast_arrays(batch, rows, columns, summed, left_turned, right_turned)
        cases = np.stack([each.ravel().astype(np.int64) for each in given], axis=1)
        distinct, places = np.unique(cases, axis=0, return_inverse=True)
        times = [self.products.seconds(Product(*map(int, case[:4]), *map(bool, case[4:]))) for case in distinct]
        seconds = np.array(times)[places.ravel()].reshape(given[0].shape)
        values = batch * rows * summed, batch * summed * columns, batch * rows * columns
        beyond = sum(self.pass_over(value) - value / self.cached_per_second for value in values)
        return (seconds + beyond + self.write(values[-1]) - self.pass_over(values[-1]))[()]
