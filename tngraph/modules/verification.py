"""Verification of a layer against the reference meaning and against what PyTorch counts.

Values and gradients are compared in float64 with `tngraph.evaluate` and `tngraph.gradients`. FLOPs, forward and with
backward, have to equal what ``torch.utils.flop_counter`` counts (see `measuring`), to the last unit. Params have to
equal the module's. The peak and what autograd saves have to equal the storages of a run, to the last byte.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from tngraph.errors import SizeError, VerificationError
from tngraph.language.binding import bind_sizes, check_size
from tngraph.language.network import Network, Port
from tngraph.language.reference import evaluate, gradients
from tngraph.language.sizes import evaluate_size, product
from tngraph.lowering.printing import PrintedSource
from tngraph.modules.measuring import measure_flops, measure_peak, measure_saved
from tngraph.plans.plan import Plan
from tngraph.program.counts import evaluate_count

TOLERANCE = 1e-8
"""The largest error of a value or gradient in float64, relative to the largest entry compared.

A product of a few hundred numbers has an error of about 1e-14, which saturated functions in a chain amplify.
"""
SMALLEST = 1e-6
"""Errors are relative to this if all entries are smaller, since a saturated function leaves only rounding of 1."""
SMALL_GRADIENT = 1e-3
"""Errors of a gradient smaller than this fraction of the largest one are relative to that, for the same reason."""

Shown = int | float | str


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison, and whether both sides agree.

    Attributes:
        what: the value, gradient or count that was compared.
        unit: unit of both numbers; for a tensor they are the largest allowed error and the actual error.
        expected: the value from the reference or the plan.
        found: the value from the layer.
        is_equal: whether they agree.
    """

    what: str
    unit: str
    expected: Shown
    found: Shown
    is_equal: bool

    def row(self) -> tuple[str, str, str, str]:
        """Return the cells of the check's row in a table."""
        expected = f"<= {self.expected:g}" if isinstance(self.expected, float) else _show(self.expected)
        return f"{self.what} [{self.unit}]", expected, _show(self.found), "ok" if self.is_equal else "DIFFERS"


def _show(value: Shown) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.1e}"


@dataclass(frozen=True, slots=True)
class Verification:
    """Everything that was compared for one layer at one set of sizes."""

    name: str
    sizes: Mapping[str, int]
    checks: tuple[Check, ...]

    @property
    def is_equal(self) -> bool:
        """True if everything agrees."""
        return all(check.is_equal for check in self.checks)

    def __str__(self) -> str:
        at = ", ".join(f"{name} = {value}" for name, value in self.sizes.items())
        rows = [("compared", "expected", "found", ""), *(check.row() for check in self.checks)]
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        lines = [
            "  ".join((row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3]))
            for row in rows
        ]
        return "\n".join([f"{self.name}" + (f" at {at}" if at else ""), *(line.rstrip() for line in lines)])


def join_verifications(verifications: Mapping[str, Verification]) -> Verification:
    """Return the checks of several regimes as one verification, each check with where its regime runs."""
    first = next(iter(verifications.values()))
    checks = (
        replace(check, what=f"{check.what}, {where}")
        for where, verification in verifications.items()
        for check in verification.checks
    )
    return Verification(first.name, first.sizes, tuple(checks))


Arrays = Mapping[str, np.ndarray[Any, Any]]


class Reference:
    """The meaning of a network, which several layers compare with; it is evaluated once for the same arrays."""

    def __init__(self, network: Network, sizes: Mapping[str, int]) -> None:
        self.network, self.sizes = network, sizes
        self._cached: dict[str, tuple[list[Any] | None, Any]] = {}

    def values(self, arrays: Arrays) -> tuple[Any, ...]:
        """Return the results, one per output."""
        results: tuple[Any, ...] = self._once(
            "values", list(arrays.values()), lambda: as_tuple(evaluate(self.network, arrays, self.sizes))
        )
        return results

    def gradients(self, arrays: Arrays, cotangents: Sequence[Any]) -> dict[str, Any]:
        """Return the gradient of each tensor, for one cotangent per output."""
        direction = cotangents if len(cotangents) > 1 else cotangents[0]
        results: dict[str, Any] = self._once(
            "gradients",
            [*arrays.values(), *cotangents],
            lambda: gradients(self.network, arrays, direction, self.sizes),
        )
        return results

    def _once(self, what: str, arrays: list[Any], compute: Callable[[], Any]) -> Any:
        """Return a cached result if it was computed for equal arrays, and compute it otherwise."""
        before, result = self._cached.get(what, (None, None))
        if before is None or len(before) != len(arrays) or not all(map(np.array_equal, before, arrays)):
            result = compute()
            self._cached[what] = arrays, result
        return result


def verify_layer(
    layer: nn.Module,
    plan: Plan,
    printed: PrintedSource,
    sizes: Mapping[str, int],
    inputs: Sequence[torch.Tensor],
    seed: int = 0,
    runtime: Mapping[str, int] | None = None,
    reference: Reference | None = None,
) -> Verification:
    """Compare a layer with the reference and with the costs of a run; see `Layer.verify`.

    Tensors that a layer stores as zeros (buffers, and params that start so) are filled with noise first, since zeros
    would hide every error.

    Raises:
        SizeError: inputs that do not fit, or run-time sizes that are unknown or not positive.
        VerificationError: something does not agree; its argument is the `Verification`.
    """
    network = plan.network
    generator = torch.Generator().manual_seed(seed)
    if not inputs:
        inputs = random_inputs(network, sizes, generator, runtime)
    if len(inputs) != len(network.inputs):
        raise SizeError(f"{network.name} has {len(network.inputs)} inputs, and {len(inputs)} were given")
    shapes = {port.name: tuple(x.shape) for port, x in zip(network.inputs, inputs, strict=True)}
    numbers = bind_sizes(network, shapes, sizes)
    wide, stored = _widen(layer), _Stored(plan, printed.attributes)
    is_complex = any(tensor.is_complex() for tensor in (*wide.parameters(), *inputs))
    values = [_in_order(x).to(torch.complex128 if is_complex else torch.float64) for x in inputs]
    _fill_zeros(stored.of(wide, "param", "buffer"), generator)
    if printed.buffers:
        wide.refold()  # type: ignore[operator]
    checks = [
        *_check_meaning(wide, stored, reference or Reference(network, sizes), values, generator),
        *_check_costs(wide, plan, numbers, values, is_complex),
        _count("params", "elements", evaluate_count(plan.params, numbers), sum(p.numel() for p in layer.parameters())),
        *_check_folded(layer, plan, printed, numbers),
    ]
    result = Verification(network.name, numbers, tuple(checks))
    if not result.is_equal:
        raise VerificationError(result)
    return result


def random_inputs(
    network: Network, sizes: Mapping[str, int], generator: torch.Generator, runtime: Mapping[str, int] | None = None
) -> list[torch.Tensor]:
    """Return normally distributed inputs at some run-time sizes; the others are small and distinct [float64].

    Raises:
        SizeError: a run-time size that the network does not have, or that is not positive.
    """
    small = {name: 5 + k for k, name in enumerate(network.runtime_sizes())}
    runtime = runtime or {}
    for name, value in runtime.items():
        if name not in small:
            options = ", ".join(small) or "none"
            raise SizeError(f"{network.name} has no run-time size {name!r}\n  its run-time sizes: {options}")
        check_size(name, value)
    numbers = {**sizes, **small, **runtime}
    for size in network.sizes:
        if size.name not in numbers and size.value is not None:
            numbers[size.name] = evaluate_size(size.value, numbers)
    shapes = [_port_shape(port, numbers) for port in network.inputs]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _port_shape(port: Port, numbers: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate_size(product(index.size for index in axis), numbers) for axis in port.axes)


def _widen(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer on the CPU in double precision."""
    wide = copy.deepcopy(layer).cpu()
    for tensor in (*wide.parameters(), *wide.buffers()):
        tensor.data = _in_order(tensor)
    if not any(p.is_complex() for p in wide.parameters()):
        return wide.double()
    with warnings.catch_warnings():  # PyTorch warns that complex modules are new
        warnings.simplefilter("ignore")
        return wide.to(torch.complex128)


def _in_order(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU that is contiguous like a new tensor, which is what the plan assumes."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The tensors of a layer by the names they were declared under."""

    plan: Plan
    attributes: Mapping[str, str]

    def of(self, layer: nn.Module, *roles: str) -> dict[str, torch.Tensor]:
        """Return the tensors of some roles by name."""
        cores = [core for core in self.plan.network.cores if core.role in roles]
        return {core.name: attrgetter(self.attributes[core.name])(layer) for core in cores}


def _fill_zeros(tensors: Mapping[str, torch.Tensor], generator: torch.Generator) -> None:
    """Fill every tensor that is all zero with normal noise."""
    for tensor in tensors.values():
        if not tensor.detach().any():
            tensor.detach().normal_(generator=generator)


def _check_meaning(
    layer: nn.Module,
    stored: _Stored,
    reference: Reference,
    inputs: Sequence[torch.Tensor],
    generator: torch.Generator,
) -> list[Check]:
    """Return the checks of values, and of the gradients of every input and of every param that takes one.

    PyTorch conjugates the derivative of a complex function, and the reference does not. So the cotangents and the
    gradients are conjugated.
    """
    network = stored.plan.network
    leaves = dict(zip((port.name for port in network.inputs), _leaves(stored.plan, inputs), strict=True))
    arrays = {n: t.detach().numpy() for n, t in (stored.of(layer, "param", "buffer") | leaves).items()}
    expected, outputs = reference.values(arrays), as_tuple(layer(*leaves.values()))
    checks = [
        _compare(f"value of {port.name}", e, o) for port, e, o in zip(network.outputs, expected, outputs, strict=True)
    ]
    if not any(output.requires_grad for output in outputs):
        return checks
    directions = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    tensors = {name: t for name, t in (stored.of(layer, "param") | leaves).items() if t.requires_grad}
    trained = [k for k, output in enumerate(outputs) if output.requires_grad]
    computed = torch.autograd.grad(
        [outputs[k] for k in trained],
        list(tensors.values()),
        [directions[k] for k in trained],
        materialize_grads=True,
    )
    cotangents = [direction.numpy().conj() for direction in directions]
    wanted = reference.gradients(arrays, cotangents)
    least = SMALL_GRADIENT * max(float(np.abs(wanted[name]).max(initial=0.0)) for name in tensors)
    for name, gradient in zip(tensors, computed, strict=True):
        checks.append(_compare(f"gradient of {name}", wanted[name], gradient.conj().resolve_conj(), least))
    return checks


def _leaves(plan: Plan, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the inputs, with a gradient for those that the plan trains."""
    pairs = zip(plan.network.inputs, inputs, strict=True)
    return [x.clone().requires_grad_(port.name in plan.request.trained) for port, x in pairs]


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return the outputs of a layer as a tuple, even if there is only one."""
    return value if isinstance(value, tuple) else (value,)


def _compare(what: str, expected: Any, value: torch.Tensor, least: float = SMALLEST) -> Check:
    """Return the check of the largest difference, relative to the largest finite entry, against `TOLERANCE`.

    Outside a function's domain, both have to be infinite or nan in the same places.
    """
    array = value.detach().numpy()
    if expected.shape != array.shape:
        return Check(f"shape of {what}", "elements", str(expected.shape), str(array.shape), False)
    is_same = (expected == array) | (np.isnan(expected) & np.isnan(array))
    with np.errstate(invalid="ignore"):
        difference = np.where(is_same, 0.0, np.abs(expected - array))
    scale = max(
        float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)), SMALLEST, np.nan_to_num(least, posinf=0.0)
    )
    error = float(difference.max(initial=0.0)) / scale
    return Check(what, "relative error", TOLERANCE, error, error <= TOLERANCE)


def _convolves(plan: Plan) -> bool:
    """Return whether a plan has convolutions, including transposed ones."""
    return any(op.kind in ("conv", "conv_transpose") for regime in plan.regimes for op in regime.operations)


def _has_absolute(plan: Plan) -> bool:
    return any(e.function is not None and e.function.name == "abs" for e in plan.network.equations)


def _count(what: str, unit: str, expected: int, counted: int) -> Check:
    return Check(what, unit, expected, counted, expected == counted)


def _check_folded(layer: nn.Module, plan: Plan, printed: PrintedSource, numbers: Mapping[str, int]) -> list[Check]:
    """Return the check of the bytes in folded buffers, with elements of the size planned for."""
    if plan.request.mode != "serve":
        return []
    elements = sum(layer.get_buffer(name).numel() for name in printed.buffers)
    return [_count("folded", "bytes", evaluate_count(plan.folded, numbers), elements * plan.request.itemsize)]


def _check_costs(
    layer: nn.Module, plan: Plan, numbers: Mapping[str, int], inputs: Sequence[torch.Tensor], is_complex: bool
) -> list[Check]:
    """Return the checks of a call's FLOPs and bytes, as far as PyTorch treats complex numbers like real ones.

    PyTorch runs a complex convolution as three real ones, so neither is checked then. The ``abs`` of a complex tensor
    is real before it becomes complex again, so bytes are not checked with it.
    """
    if is_complex and _convolves(plan):
        return []
    memory = [] if is_complex and _has_absolute(plan) else _check_memory(layer, plan, numbers, inputs)
    return [*_check_flops(layer, plan, numbers, inputs), *memory]


def _check_flops(
    layer: nn.Module, plan: Plan, numbers: Mapping[str, int], inputs: Sequence[torch.Tensor]
) -> list[Check]:
    """Return the checks of what PyTorch counts for a call, and for a call with its backward pass.

    ``forward`` is called directly, because the counter's module hooks fail on modules that return a param.
    """
    counts = plan.regime_of(numbers).counts(numbers)
    leaves = _leaves(plan, inputs)

    def train() -> None:
        outputs = [output for output in as_tuple(layer.forward(*leaves)) if output.grad_fn is not None]
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    with torch.no_grad():
        forward = measure_flops(lambda: layer.forward(*inputs))
    return [
        _count("forward", "FLOPs", counts.flops, forward),
        _count("forward and backward", "FLOPs", counts.training_flops, measure_flops(train)),
    ]


def _check_memory(
    layer: nn.Module, plan: Plan, numbers: Mapping[str, int], inputs: Sequence[torch.Tensor]
) -> list[Check]:
    """Return the checks of the most bytes a call holds, and of the bytes that autograd saves.

    The bytes saved are those of a call with gradients for params and inputs.
    """
    stored = [*layer.parameters(), *layer.buffers()]
    itemsize = max((tensor.itemsize for tensor in (*stored, *inputs)), default=torch.get_default_dtype().itemsize)
    expected = plan.regime_of(numbers).memory(numbers, itemsize)
    leaves = _leaves(plan, inputs)
    peak = measure_peak(lambda: layer.forward(*inputs))
    saved = measure_saved(lambda: layer.forward(*leaves), [*stored, *leaves])
    return [
        _count("peak", "bytes", expected.peak, peak),
        _count("saved for backward", "bytes", expected.saved, saved),
    ]
