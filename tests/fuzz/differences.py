"""What does not agree: text, values, gradients, FLOPs and bytes of a network in one way, beside its meaning."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

import tngraph as tg
from tests.fuzz.meaning import Meaning
from tests.fuzz.ways import Way
from tngraph.errors import PlanError
from tngraph.language.legs import legs_size
from tngraph.language.network import Network
from tngraph.language.sizes import evaluate_size
from tngraph.modules.measuring import measure_flops, measure_peak, measure_saved
from tngraph.plans.plan import Plan
from tngraph.search.region import Step

TOLERANCE = 1e-9
"""The largest error of a value or gradient, relative to the largest entry."""
SHAKEN = 1e-12
"""By so much numbers are changed to see how far an error of rounding may go."""
MOST_AMPLIFIED = 1e4
"""An error so many times as large as what that change does is no rounding."""
SMALL_GRADIENT = 1e-3
"""A gradient smaller than this part of the largest one is compared as if that large."""
MOST_WORK = 100_000
"""A call whose largest term has more entries is left out."""
VALUES = (-1.75, -1.25, -0.75, -0.5, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Entries are multiples of a quarter, so that sums and products of them are exact, and none is zero."""
CONVOLUTIONS = ("conv", "conv_transpose")
NO_FIT = ("no slicing keeps every value within", "no plan of ")
"""How an error begins that says that nothing fits a bound."""


@dataclass(frozen=True)
class Difference:
    """One thing that does not agree.

    Attributes:
        kind: what was compared, in one or two words; of an error its type and the line it comes from.
        where: of which tensor, in which call.
        expected: what the meaning or the plan says.
        actual: what came out.
    """

    kind: str
    where: str
    expected: object
    actual: object

    def __str__(self) -> str:
        return f"{self.kind} {self.where}\n  expected  {self.expected}\n  actual    {self.actual}"


def find_text_difference(network: Network) -> Difference | None:
    """Whether the text of a network is read as another network, or not at all."""
    try:
        text = tg.format(network)
        read = tg.parse(text)
    except Exception as error:
        return _as_difference(error)
    return None if read == network else Difference("text", "", text, tg.format(read))


def find_reference_difference(network: Network, way: Way) -> Difference | None:
    """Whether `tngraph.evaluate` and `tngraph.gradients` say what the meaning does, in the first call of a way."""
    try:
        meaning = _meaning(network, way, way.calls[0])
        if not meaning.is_possible() or meaning.work() > MOST_WORK:
            return None
        return next(_reference_differences(Expected(way, meaning)), None)
    except Exception as error:
        return _as_difference(error)


def find_difference(network: Network, way: Way) -> Difference | None:
    """The first difference of a network in one way, or none; that nothing fits a bound is none."""
    try:
        return next(_differences(network, way), None)
    except PlanError as error:
        return None if way.bound and str(error).startswith(NO_FIT) else _as_difference(error)
    except Exception as error:
        return _as_difference(error)


def _as_difference(error: Exception) -> Difference:
    last = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{type(error).__name__} in {last.filename.rpartition('/')[2].split()[0]}, {last.name}"
    return Difference(kind, f"line {last.lineno}", "no error", str(error) or repr(error))


def _meaning(network: Network, way: Way, call: tuple[tuple[str, int], ...]) -> Meaning:
    defaults = {
        size.name: int(size.value) for size in network.sizes if size.value is not None and size.value.is_Integer
    }
    return Meaning(network, {**defaults, **dict(way.built), **dict(call)})


def _differences(network: Network, way: Way) -> Iterator[Difference]:
    for layer in way.layers(network):
        for call in way.calls:
            meaning = _meaning(network, way, call)
            if meaning.is_possible() and meaning.work() <= MOST_WORK:
                yield from Comparison(layer, Expected(way, meaning), f"at {dict(call)}").differences()
        yield from _excesses(layer.plan)


def _excesses(plan: Plan) -> Iterator[Difference]:
    """Where a plan goes beyond what it was asked for, at the sizes that it was made for."""
    request, counts = plan.request, plan.at()
    if request.largest is not None and request.mode != "serve":
        written = [evaluate_size(legs_size(step.legs), plan.sizes) for step in _inner_steps(plan)]
        if max(written, default=0) > request.largest:
            yield Difference("largest", "at the sizes planned for", request.largest, max(written))
    if request.memory_limit is not None:
        held = {"serve": counts.folded, "train": counts.saved, "infer": counts.peak}[request.mode]
        if held > request.memory_limit:
            yield Difference("memory_limit", "at the sizes planned for", request.memory_limit, held)


def _inner_steps(plan: Plan) -> Iterator[Step]:
    """The steps of regions that run whole, without those that join the last two values and lay out the result."""
    for tree in plan.regimes[0].trees:
        joins = [k for k, step in enumerate(tree.steps) if len(step.operands) == 2]
        if not tree.sliced:
            yield from tree.steps[: joins[-1]] if joins else tree.steps[:-1]


# ---------------------------------------------------------------------------------------------- what is expected


class Expected:
    """The numbers of one call, and what comes out of them.

    Attributes:
        inputs: a tensor per input.
        stored: a tensor per param and buffer.
        trained: the tensors that take a gradient.
    """

    def __init__(self, way: Way, meaning: Meaning) -> None:
        self.way, self.meaning, network = way, meaning, meaning.network
        generator = torch.Generator().manual_seed(way.seed)
        self.inputs = {port.name: self._draw(meaning.port_shape(port), generator) for port in network.inputs}
        stored = [core for core in network.cores if core.role in ("param", "buffer")]
        self.stored = {core.name: self._draw(meaning.shape(core.legs), generator) for core in stored}
        self.trained = [core.name for core in network.cores if core.role in way.trained and core.name not in way.frozen]

    def _draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        def draw() -> Tensor:
            choices = torch.randint(len(VALUES), shape, generator=generator)
            return torch.tensor(VALUES, dtype=torch.float64)[choices]

        return torch.complex(draw(), draw()) if self.way.is_complex else draw()

    @cached_property
    def directions(self) -> list[Tensor]:
        """One per result, in which gradients are taken."""
        generator = torch.Generator().manual_seed(self.way.seed + 1)
        network = self.meaning.network
        return [self._draw(self.meaning.port_shape(port), generator) for port in network.outputs]

    @cached_property
    def exact(self) -> tuple[list[Tensor], list[Tensor]]:
        """The results, and the gradients of what takes one."""
        return self._evaluate(0.0)

    @cached_property
    def shaken(self) -> tuple[list[Tensor], list[Tensor]]:
        """The same of numbers that were changed a little."""
        return self._evaluate(SHAKEN)

    def _evaluate(self, change: float) -> tuple[list[Tensor], list[Tensor]]:
        generator = torch.Generator().manual_seed(self.way.seed + 2)
        tensors = {}
        for name, tensor in {**self.inputs, **self.stored}.items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensors[name] = (tensor * (1 + change * noise)).requires_grad_(name in self.trained)
        results = self.meaning.evaluate(tensors)
        found = self.gradients(results, [tensors[name] for name in self.trained])
        return [result.detach() for result in results], found

    def gradients(self, results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of some leaves in the directions; zeros where no result depends on one."""
        pairs = zip(results, self.directions, strict=True)
        reached = [(result, direction) for result, direction in pairs if result.requires_grad]
        if not reached or not leaves:
            return [torch.zeros_like(leaf) for leaf in leaves]
        outputs, directions = zip(*reached, strict=True)
        return [*torch.autograd.grad(outputs, leaves, directions, materialize_grads=True)]

    def compare_values(self, results: Sequence[Tensor], where: str) -> Iterator[Difference]:
        """What differs of results."""
        names = [port.name for port in self.meaning.network.outputs]
        return self._compare("value", 0, names, results, where)

    def compare_gradients(self, gradients: Sequence[Tensor], where: str) -> Iterator[Difference]:
        """What differs of the gradients of what takes one."""
        return self._compare("gradient", 1, self.trained, gradients, where)

    def _compare(
        self, kind: str, part: int, names: Sequence[str], tensors: Sequence[Tensor], where: str
    ) -> Iterator[Difference]:
        largest = max(map(_size, self.exact[part]), default=0.0)
        least = max(SMALL_GRADIENT * largest if part else 0.0, SMALL_GRADIENT)
        for number, (name, expected, tensor) in enumerate(zip(names, self.exact[part], tensors, strict=True)):
            actual = tensor.detach()
            if expected.shape != actual.shape or expected.dtype != actual.dtype:
                forms = [f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in (expected, actual)]
                yield Difference(f"shape of {kind}", f"of {name} {where}", *forms)
                continue
            error = _error(expected, actual, least)
            if error > TOLERANCE and error > MOST_AMPLIFIED * _error(expected, self.shaken[part][number], least):
                yield Difference(kind, f"of {name} {where}, error {error:.1e}", _show(expected), _show(actual))


def _size(tensor: Tensor) -> float:
    """The largest finite entry."""
    entries = tensor.abs().flatten()
    return float(entries[entries.isfinite()].max()) if entries.isfinite().any() else 0.0


def _error(expected: Tensor, actual: Tensor, least: float) -> float:
    """Return the largest difference, relative to the largest entry. Entries are not finite in the same places.

    Once a value overflows, the order decides whether infinity meets another one or a zero: infinite is as good as nan.
    A complex function overflows soon, and all entries that are not finite are left out.
    """
    same = (expected == actual) | ~(expected.isfinite() | actual.isfinite())
    if expected.is_complex():
        same |= ~expected.isfinite()
    difference = torch.where(same, 0.0, (expected - actual).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return float(difference.max()) / max(_size(expected), least)


def _show(tensor: Tensor) -> str:
    return f"{tensor.flatten()[:8].tolist()}{' …' * (tensor.numel() > 8)}"


def _reference_differences(expected: Expected) -> Iterator[Difference]:
    """What `tngraph.evaluate` and `tngraph.gradients` say otherwise; they conjugate nothing, and autograd does."""
    network, way = expected.meaning.network, expected.way
    arrays = {name: tensor.numpy() for name, tensor in {**expected.inputs, **expected.stored}.items()}
    sizes = {name: number for name, number in way.built if name in {size.name for size in network.settable_sizes()}}
    results = as_tuple(tg.evaluate(network, arrays, sizes))
    directions = [direction.numpy().conj() for direction in expected.directions]
    found = tg.gradients(network, arrays, directions if len(directions) > 1 else directions[0], sizes)
    yield from expected.compare_values([*map(_as_tensor, results)], "of the reference")
    gradients = [_as_tensor(np.conj(found[name])) for name in expected.trained]
    yield from expected.compare_gradients(gradients, "of the reference")


def _as_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


# ---------------------------------------------------------------------------------------------- what comes out


def as_tuple(value: object) -> tuple:
    """What a layer puts out, one output as well as several."""
    return value if isinstance(value, tuple) else (value,)


@dataclass
class Comparison:
    """A module in one call, beside what is expected of it.

    Attributes:
        layer: the module, which takes the numbers of the call.
        expected: what comes out.
        where: which call it is.
    """

    layer: tg.Layer
    expected: Expected
    where: str

    def __post_init__(self) -> None:
        attributes = self.layer.printed.attributes
        self.layer.load_state_dict({attributes[name]: tensor for name, tensor in self.expected.stored.items()})
        if hasattr(self.layer, "refold"):
            self.layer.refold()
        params = dict(self.layer.named_parameters())
        self.params = {name: params[at] for name, at in attributes.items() if at in params}

    def differences(self) -> Iterator[Difference]:
        """Everything that does not agree, values first."""
        expected = self.expected
        wrong = [name for name, param in self.params.items() if param.requires_grad != (name in expected.trained)]
        if wrong:
            yield Difference("requires_grad", self.where, expected.trained, wrong)
        leaves = dict(zip(expected.inputs, self.leaves(), strict=True))
        results = as_tuple(self.layer(*leaves.values()))
        trained = [leaves.get(name, self.params.get(name)) for name in expected.trained]
        yield from expected.compare_values(results, self.where)
        yield from expected.compare_gradients(expected.gradients(results, trained), self.where)
        convolves = any(op.kind in CONVOLUTIONS for regime in self.layer.plan.regimes for op in regime.operations)
        if not (expected.way.is_complex and convolves):  # PyTorch runs such a convolution as three real ones.
            yield from self._costs()

    def leaves(self) -> list[Tensor]:
        """The inputs, with a gradient where they take one."""
        return [x.clone().requires_grad_(name in self.expected.trained) for name, x in self.expected.inputs.items()]

    def _costs(self) -> Iterator[Difference]:
        plan, meaning = self.layer.plan, self.expected.meaning
        numbers = plan.values(**{size.name: meaning.number(size.symbol) for size in meaning.network.sizes})
        regime = plan.regime_of(numbers)
        counts, memory = regime.counts(numbers), regime.memory(numbers, self.expected.way.itemsize)
        pairs = {
            "FLOPs": (counts.flops, self._forward_flops()),
            "training FLOPs": (counts.training_flops, measure_flops(self._train)),
            "peak": (memory.peak, measure_peak(self._call)),
            "saved": (memory.saved, self._saved()),
            "params": (counts.params, sum(param.numel() for param in self.params.values())),
        }
        if self.expected.way.is_complex and any(block.kind == "planned" for block in regime.program.blocks):
            del pairs["training FLOPs"]  # of complex numbers PyTorch's own backward pass runs
        for kind, (expected, actual) in pairs.items():
            if expected != actual:
                yield Difference(kind, self.where, expected, actual)

    def _call(self) -> object:
        return self.layer.forward(*self.expected.inputs.values())

    def _forward_flops(self) -> int:
        with torch.no_grad():
            return measure_flops(self._call)

    def _train(self) -> None:
        results = [result for result in as_tuple(self.layer.forward(*self.leaves())) if result.grad_fn is not None]
        if results:
            torch.autograd.backward(results, [torch.ones_like(result) for result in results])

    def _saved(self) -> int:
        leaves = self.leaves()
        stored = [*self.layer.parameters(), *self.layer.buffers()]
        return measure_saved(lambda: self.layer.forward(*leaves), [*stored, *leaves])
