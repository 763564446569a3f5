"""Calibration of a `Machine`: kernels of many shapes are timed on a device, and the model is fitted to their times.

Kernels are timed in turns of a fraction of a millisecond, and the shortest turn of each kernel counts, because other
programs on the machine lengthen some turns of every kernel but not all turns of one. Every third kernel is held out of
the fit, to judge the model on kernels it has not seen.
"""

from __future__ import annotations

import platform
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from heapq import heapify, heappop, heappush
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tngraph.compiler.machines import built_in_machine, load_machine, save_machine
from tngraph.errors import PlanError
from tngraph.search.machine import Machine

DTYPES = ("float32", "float64", "bfloat16", "float16", TF32 := "tf32")
LARGEST = 36_000_000
"""The size of the largest value in a kernel [elements]."""
ON_GPU = 4
"""On a GPU the largest value is this many times larger, and so are the axes of every second kernel, because smaller
kernels all take as long as starting one."""
TURN = 3e-4
"""The length of a turn, in which one kernel is called repeatedly [s]."""
LONGEST = 0.02
"""A kernel that is expected to take more than this share of the available time is left out."""
ROUNDS = 3
"""Every kernel gets this many turns. After that, the kernel that has taken the least time gets the next turn."""
HELD_OUT = 3
"""One kernel of this many is held out of the fit."""
FEWEST = 0.75
"""If the model is within a factor of 2 for a smaller share of kernels, something disturbed the measurement."""
_SIZES = (1, 2, 4, 4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 256, 512, 784, 1024, 2048, 4096, 65536)
_BATCHES = (4, 16, 64, 256, 1024, 4096)
_RUNS = (1, 1, 2, 4, 8, 16, 32, 64, 128)
_STEPS = (2.0, 1.5, 1.2, 1.1, 1.05, 1.02)
_TOLERATED = 0.3
"""Errors of a logarithm beyond this count linearly and not by their square, as in Huber's loss."""


class KernelCase(NamedTuple):
    """One call of PyTorch: its kind, and its sizes as arguments of that kind's rules."""

    kind: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {' × '.join(f'{size:,}' for size in self.sizes)}"


class _KernelRule(NamedTuple):
    """A kind of kernel: the sizes of its operands and result, its call, and its predicted time."""

    values: Callable[..., tuple[int, ...]]
    call: Callable[..., Callable[[], object]]
    seconds: Callable[..., Any]


def _values_of_product(b: int, r: int, c: int, s: int) -> tuple[int, ...]:
    return b * r * s, b * s * c, b * r * c


def _call_matrix(x: Tensor, y: Tensor, b: int, r: int, c: int, s: int) -> Callable[[], object]:
    left, right = x[: r * s].view(r, s), y[: s * c].view(s, c)
    return lambda: torch.mm(left, right)


def _call_matrices(x: Tensor, y: Tensor, b: int, r: int, c: int, s: int) -> Callable[[], object]:
    left, right = x[: b * r * s].view(b, r, s), y[: b * s * c].view(b, s, c)
    return lambda: torch.bmm(left, right)


def _call_broadcast(x: Tensor, y: Tensor, b: int, r: int, c: int, s: int) -> Callable[[], object]:
    left, right = x[: r * s].view(r, s).expand(b, r, s), y[: b * s * c].view(b, s, c)
    return lambda: torch.bmm(left, right)


def _call_copy(order: tuple[int, ...]) -> Callable[..., Callable[[], object]]:
    def call(x: Tensor, y: Tensor, *shape: int) -> Callable[[], object]:
        permuted = x[: prod(shape)].view(shape).permute(order)
        return lambda: permuted.contiguous()

    return call


def _call_relu(x: Tensor, y: Tensor, n: int) -> Callable[[], object]:
    value = x[:n]
    return lambda: torch.relu(value)


def _call_add(x: Tensor, y: Tensor, n: int) -> Callable[[], object]:
    first, second = x[:n], y[:n]
    return lambda: torch.add(first, second)


def _call_view(x: Tensor, y: Tensor, n: int) -> Callable[[], object]:
    value = x[:n]
    return lambda: value.view(1, n)


_RULES: Mapping[str, _KernelRule] = {
    "matrix": _KernelRule(_values_of_product, _call_matrix, Machine.product),
    "matrices": _KernelRule(_values_of_product, _call_matrices, Machine.product),
    "broadcast": _KernelRule(_values_of_product, _call_broadcast, Machine.product),
    "copy": _KernelRule(lambda *n: (prod(n),), _call_copy((0, 2, 1, 3)), lambda m, *n: m.copy(prod(n), n[-1])),
    "reverse": _KernelRule(lambda *n: (prod(n),), _call_copy((2, 1, 0, 3)), lambda m, *n: m.copy(prod(n), n[-1])),
    "relu": _KernelRule(lambda n: (n,), _call_relu, lambda m, n: m.elementwise(n, written=n)),
    "add": _KernelRule(lambda n: (n,), _call_add, lambda m, n: m.elementwise(n, n, written=n)),
    "view": _KernelRule(lambda n: (n,), _call_view, lambda m, n: m.seconds_per_view),
}
_SHARES = {"matrix": 70, "matrices": 60, "broadcast": 20, "copy": 40, "reverse": 20, "relu": 20, "add": 10, "view": 6}
"""The number of kernels of each kind that are measured."""


class Measurement(NamedTuple):
    """A kernel and its measured time [s]."""

    kernel: KernelCase
    seconds: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A machine and the measurements it was fitted to.

    Attributes:
        device: the full name of the device.
        dtype: the type of numbers.
        machine: the machine that fits best.
        fitted: the measurements it was fitted to.
        held_out: the measurements that the fit has not seen.
    """

    device: str
    dtype: str
    machine: Machine
    fitted: tuple[Measurement, ...]
    held_out: tuple[Measurement, ...]

    def share_within(self, factor: float) -> float:
        """Return the share of held-out kernels for which the model is right within a factor."""
        errors = np.abs(np.log(_ratios(self.machine, self.held_out or self.fitted)))
        return float(np.mean(errors <= np.log(factor)))

    def numbers(self) -> list[tuple[str, str, str]]:
        """Return a row for each number of the machine: name, value and unit."""
        return [
            (constant.name.replace("_", " "), f"{getattr(self.machine, constant.name):.3g}", _unit(constant.name))
            for constant in fields(self.machine)
        ]

    def sample(self, most: int = 16) -> list[tuple[str, str, str, str]]:
        """Return rows for some held-out kernels: kernel, measured and predicted time [us], and their ratio."""
        shown = sorted(self.held_out or self.fitted)
        shown = shown[:: max(1, -(-len(shown) // most))]
        ratios = _ratios(self.machine, shown)
        return [
            (str(kernel), f"{1e6 * seconds:,.1f}", f"{1e6 * seconds * ratio:,.1f}", f"{ratio:.2f}")
            for (kernel, seconds), ratio in zip(shown, ratios, strict=True)
        ]

    def __str__(self) -> str:
        numbers = [f"  {name:<22} {value:>9} [{unit}]" for name, value, unit in self.numbers()]
        cells = [("kernel", "measured [us]", "model [us]", "ratio"), *self.sample()]
        width = max(len(row[0]) for row in cells)
        kernels = [f"{name:<{width}} {measured:>14} {model:>12} {ratio:>6}" for name, measured, model, ratio in cells]
        return "\n".join([f"{self.device}, {self.dtype}", *numbers, "", *kernels, "", self.verdict()])

    def verdict(self) -> str:
        """Return how accurate the model is, with advice if it is not accurate."""
        within = ", ".join(f"{self.share_within(factor):.0%} within {factor:g} times" for factor in (1.3, 2))
        told = f"of {len(self.held_out or self.fitted)} kernels kept from the fit: {within} the time measured"
        is_disturbed = self.share_within(2) < FEWEST
        return told + "\n  that is little: calibrate again when nothing else runs, or for longer" * is_disturbed


def _unit(name: str) -> str:
    if name.endswith("per_second"):
        return "MAC/s" if name.startswith("operations") else "elements/s"
    return "s" if name.startswith("seconds") else "elements"


def calibrate(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seconds: float = 5) -> Machine:
    """Measure a device, and save the fitted machine for `machine_for`.

    Args:
        device: the device as PyTorch names it.
        dtype: the type of numbers.
        seconds: the approximate time to measure for [s].

    Raises:
        PlanError: there is no such device, or it does not compute with this type.
        OSError: the machine cannot be saved.
    """
    calibration = run_calibration(device, dtype, seconds)
    save_machine(calibration.machine, calibration.device, calibration.dtype)
    return calibration.machine


def run_calibration(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seconds: float = 5
) -> Calibration:
    """Measure a device and fit a machine to it, without saving it; see `calibrate`."""
    measured = measure_kernels(draw_kernels(_scale(_find_device(device))), device, dtype, seconds)
    held_out = tuple(measurement for k, measurement in enumerate(measured) if k % HELD_OUT == HELD_OUT - 1)
    fitted = tuple(measurement for k, measurement in enumerate(measured) if k % HELD_OUT != HELD_OUT - 1)
    return Calibration(describe_device(device), name_dtype(dtype, device), fit_machine(fitted), fitted, held_out)


def machine_for(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Machine:
    """Return the machine that `calibrate` saved for the current number of threads, or else the built-in one."""
    names = describe_device(device), name_dtype(dtype, device)
    return load_machine(*names) or built_in_machine(*names)


@contextmanager
def computing_in(name: str, device: str | torch.device = "cpu") -> Iterator[torch.dtype]:
    """Yield the type of numbers of a name. For ``tf32`` it is float32, and a GPU rounds products within the context.

    Raises:
        PlanError: this type cannot be measured on the device.
    """
    if name not in DTYPES:
        raise PlanError(f"the dtype is {name!r}\n  dtypes: {', '.join(DTYPES)}")
    if name == TF32 and _find_device(device).type != "cuda":
        raise PlanError(f"the dtype is {TF32!r}, and the device {str(device)!r}\n  a GPU alone has it: --device cuda")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == TF32 else "highest")
    try:
        yield getattr(torch, name) if name != TF32 else torch.float32
    finally:
        torch.set_float32_matmul_precision(before)


def name_dtype(dtype: torch.dtype, device: str | torch.device = "cpu") -> str:
    """Return the name of a type of numbers, as ``float32``, or ``tf32`` where a GPU rounds what it multiplies."""
    if dtype == torch.float32 and torch.device(device).type == "cuda":
        return "float32" if torch.get_float32_matmul_precision() == "highest" else TF32
    return str(dtype).removeprefix("torch.")


def describe_device(device: str | torch.device) -> str:
    """Return the full name of a device: its type and model, and for a CPU the number of threads that PyTorch uses.

    Raises:
        PlanError: there is no such device.
    """
    usable = _find_device(device)
    if usable.type == "cpu":
        count = torch.get_num_threads()
        return f"cpu {_processor()}, {count} thread{'s' if count > 1 else ''}"
    name = getattr(getattr(torch, usable.type, None), "get_device_name", None)
    return usable.type if name is None else f"{usable.type} {name(usable)}"


def _find_device(device: str | torch.device) -> torch.device:
    try:
        usable = torch.device(device)
        torch.empty(1, device=usable)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise PlanError(f"the device {str(device)!r} cannot be used\n  PyTorch says: {_first_line(error)}") from None
    return usable


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _processor() -> str:
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    return model.group(1).strip() if model else platform.processor() or platform.machine()


def draw_kernels(scale: int = 1, seed: int = 0) -> list[KernelCase]:
    """Return kernels like those of factorised layers, fastest first, from within the cache to far beyond it.

    Args:
        scale: the factor by which the axes of every second kernel are larger.
        seed: the seed for the sizes.
    """
    rng, kernels = random.Random(seed), []
    for kind, count in _SHARES.items():
        for k in range(count):
            factor = scale if k % 2 else 1
            sizes = iter(lambda kind=kind, factor=factor: _draw_sizes(kind, rng, factor), None)  # type: ignore[misc]
            most = LARGEST * scale
            kernels.append(
                KernelCase(kind, next(s for s in sizes if max(_RULES[kind].values(*s)) <= most and prod(s) >= 512))
            )
    return sorted(dict.fromkeys(kernels), key=lambda kernel: float(predict(Machine(), [kernel])[0]))


def _draw_sizes(kind: str, rng: random.Random, factor: int) -> tuple[int, ...]:
    if kind in ("relu", "add", "view"):
        return (factor * round(10 ** rng.uniform(3, np.log10(LARGEST))),)
    if kind in ("copy", "reverse"):
        outer, first, second = rng.choice((1, 4, 16, 64, 256)), rng.choice(_SIZES[2:-1]), rng.choice(_SIZES[2:-1])
        return (outer if kind == "copy" else max(4, outer)), factor * first, factor * second, rng.choice(_RUNS)
    batch = 1 if kind == "matrix" else rng.choice(_BATCHES)
    return batch, *(factor * rng.choice(_SIZES) for _ in range(3))


@dataclass
class _Turns:
    """The turns of one kernel so far."""

    kernel: KernelCase
    call: Callable[[], object]
    wait: Callable[[], None]
    times: list[float] = field(default_factory=list)
    spent: float = 0.0

    def take(self) -> None:
        """Call the kernel for the length of a turn. A first call of a short one brings its operands into cache."""
        last = self.times[-1] if self.times else 0.0
        if last < 1e-3:
            self.call()
        self.wait()
        count = max(1, min(1000, int(TURN / last))) if last else 1
        start = time.perf_counter()
        for _ in range(count):
            self.call()
        self.wait()
        spent = time.perf_counter() - start
        self.times.append(max(spent / count, 1e-9))
        self.spent += spent

    def measurement(self) -> Measurement:
        """Return the kernel with its shortest turn."""
        return Measurement(self.kernel, min(self.times))


@torch.no_grad()
def measure_kernels(
    kernels: Sequence[KernelCase], device: str | torch.device, dtype: torch.dtype, seconds: float
) -> tuple[Measurement, ...]:
    """Measure kernels on a device in turns until the time is over. Large ones may be left out.

    Args:
        kernels: the kernels, fastest first.
        device: the device as PyTorch names it.
        dtype: the type of numbers.
        seconds: the time to measure for; at least one kernel is measured [s].

    Raises:
        PlanError: there is no such device, it does not compute with this type, or the time is not positive.
    """
    if not 0 < seconds < inf:
        raise PlanError(f"calibrating cannot take {seconds!r} seconds\n  give a positive number")
    usable, end = _find_device(device), time.perf_counter() + seconds
    try:
        x, y = _make_operands(usable, dtype)
        turns = list(_take_first_turns(kernels, (x, y), seconds, end))
    except (RuntimeError, NotImplementedError) as error:
        raise PlanError(
            f"{usable} cannot be measured with {name_dtype(dtype)}\n  PyTorch says: {_first_line(error)}"
        ) from None
    queue = [(1, turn.spent, k) for k, turn in enumerate(turns)]
    heapify(queue)
    while queue and time.perf_counter() < end:
        *_, k = heappop(queue)
        turns[k].take()
        heappush(queue, (min(len(turns[k].times), ROUNDS), turns[k].spent, k))
    return tuple(turn.measurement() for turn in turns)


def _make_operands(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two stores of random numbers that operands are cut from."""
    generator, most = torch.Generator(device).manual_seed(0), LARGEST * _scale(device)
    x, y = (torch.empty(most, device=device, dtype=dtype) for _ in range(2))
    return x.uniform_(-1, 1, generator=generator), y.uniform_(-1, 1, generator=generator)


def _scale(device: torch.device) -> int:
    return 1 if device.type == "cpu" else ON_GPU


def waiting(device: torch.device) -> Callable[[], None]:
    """Return a function that waits for the kernels of a device. CPU kernels are over when their call returns."""
    return (lambda: None) if device.type == "cpu" else (lambda: torch.accelerator.synchronize(device))


def _take_first_turns(
    kernels: Sequence[KernelCase], operands: tuple[Tensor, Tensor], seconds: float, end: float
) -> Iterator[_Turns]:
    """Yield kernels after one turn each, skipping those that would take too long, as the ones before show."""
    wait = waiting(operands[0].device)
    ratios = [1.0]
    for kernel in kernels:
        expected = float(predict(Machine(), [kernel])[0])
        if expected * np.quantile(ratios[-20:], 0.25) > LONGEST * seconds:
            continue
        turns = _Turns(kernel, _RULES[kernel.kind].call(*operands, *kernel.sizes), wait)
        turns.take()
        ratios.append(turns.times[0] / expected)
        yield turns
        if time.perf_counter() > end:
            return


def predict(machine: Machine, kernels: Sequence[KernelCase]) -> np.ndarray:
    """Return the predicted times of kernels [s]."""
    return _Table(kernels).seconds(machine)


def _ratios(machine: Machine, measured: Sequence[Measurement]) -> np.ndarray:
    """Return the ratios of predicted to measured times."""
    predicted = predict(machine, [measurement.kernel for measurement in measured])
    return predicted / [measurement.seconds for measurement in measured]


class _Table:
    """Kernels as arrays of sizes, kind by kind, so that a machine predicts all kernels of a kind at once."""

    def __init__(self, kernels: Sequence[KernelCase]) -> None:
        self.count, self.columns = len(kernels), {}
        for kind in dict.fromkeys(kernel.kind for kernel in kernels):
            places = [k for k, kernel in enumerate(kernels) if kernel.kind == kind]
            self.columns[kind] = places, np.array([kernels[k].sizes for k in places], dtype=np.float64).T

    def seconds(self, machine: Machine) -> np.ndarray:
        """Return the predicted time of each kernel [s]."""
        times = np.empty(self.count)
        for kind, (places, columns) in self.columns.items():
            times[places] = _RULES[kind].seconds(machine, *columns)
        return times


def fit_machine(measured: Sequence[Measurement], start: Machine | None = None) -> Machine:
    """Return the machine whose predicted times are nearest to the measured ones on a logarithmic scale.

    Numbers are changed one after the other by ever smaller factors, as long as that helps. A number that no
    measurement depends on stays as it was at the start.

    Source: the pattern search of Hooke and Jeeves (1961), the loss of Huber (1964).
    """
    table, machine = _Table([measurement.kernel for measurement in measured]), start or Machine()
    wanted = np.log([measurement.seconds for measurement in measured])

    def loss(machine: Machine) -> float:
        error = np.abs(np.log(table.seconds(machine)) - wanted)
        inner = np.minimum(error, _TOLERATED)
        return float(np.sum(inner * (error - inner / 2)))

    least = loss(machine)
    for step in _STEPS:
        is_better = True
        while is_better:
            is_better = False
            for name, factor in product([constant.name for constant in fields(machine)], (step, 1 / step)):
                changed = replace(machine, **{name: getattr(machine, name) * factor})
                changed_loss = loss(changed)
                if changed_loss < least * (1 - 1e-6):
                    machine, least, is_better = changed, changed_loss, True
    return machine
