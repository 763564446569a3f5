"""Who is timed for a case: the compiled layer and everything else, all with the same params.

A contender that cannot be built, fails, or does not agree with the compiled layer is left out, and the reason is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

import tngraph as tg
from tests.bench.cases import Case
from tests.bench.einsums import (
    FUNCTIONS,
    Contractor,
    Einsums,
    contract_by_cotengra,
    contract_by_opt_einsum,
    contract_by_quimb,
    contract_by_torch,
    contract_in_order,
)
from tests.bench.libraries import LACKING, LIBRARIES, Builder
from tngraph.modules.calibration import name_dtype
from tngraph.modules.layer import build
from tngraph.modules.tuning import Tuning, tune
from tngraph.plans.measured import Measured

Mode = Literal["infer", "train"]
Forward = Callable[[Tensor], Tensor]
OURS = "tngraph"
COMPILED = "torch.compile"
GRAPH = "CUDA graph"
DENSE = "dense"
EINSUMS: Mapping[str, Contractor] = {
    "torch.einsum": contract_by_torch,
    "opt_einsum": contract_by_opt_einsum,
    "cotengra": contract_by_cotengra,
    "quimb": contract_by_quimb,
}
IN_ORDER = ("quanta", "adtn")
"""Structures whose papers' code is the network's own equations, operand after operand."""
NAMES = (OURS, COMPILED, GRAPH, DENSE, *EINSUMS, *LIBRARIES)
"""Every contender, in the order of columns."""


@dataclass(frozen=True)
class Setting:
    """Where and in what numbers everything runs."""

    device: torch.device
    dtype: torch.dtype

    @property
    def tolerance(self) -> float:
        """How far two results may be apart, relative to the largest entry."""
        return {"float64": 1e-9, "float32": 1e-3}.get(self.name, 5e-2)

    @property
    def name(self) -> str:
        """Of the type of numbers."""
        return name_dtype(self.dtype, self.device)


@dataclass(frozen=True)
class Contender:
    """Something to time: a forward, and the params that it takes gradients for."""

    name: str
    forward: Forward
    params: tuple[Tensor, ...]


@dataclass(frozen=True)
class Field:
    """All contenders of one case, batch and pass, and why others are missing.

    Attributes:
        layer: the compiled layer.
        trials: what was measured to tune it, the model's own choice first.
        contenders: in the order of columns, the compiled layer first.
        omitted: by name the reason.
    """

    layer: tg.Layer
    trials: tuple[Measured, ...]
    contenders: tuple[Contender, ...]
    omitted: Mapping[str, str]


def tune_case(case: Case, mode: Mode, batch: int, setting: Setting) -> Tuning:
    """What `tngraph.compile` does with ``tune=``: for a forward pass (``infer``) or for training (``train``)."""
    inputs = [(make_input(case, batch, setting),)]
    return tune(case.network, case.sizes(batch), inputs, mode=mode, device=setting.device, dtype=setting.dtype)


class Finished(nn.Module):
    """A layer with a bias and a function behind it."""

    def __init__(self, layer: nn.Module, bias: Tensor | None, function: str) -> None:
        super().__init__()
        self.layer = layer
        self.bias = None if bias is None else nn.Parameter(bias.detach().flatten().clone())
        self.function = FUNCTIONS.get(function)

    def forward(self, x: Tensor) -> Tensor:
        """``function(layer(x) + bias)``."""
        y = self.layer(x)
        y = y if self.bias is None else y + self.bias
        return y if self.function is None else self.function(y)


def gather(case: Case, batch: int, is_training: bool, setting: Setting, with_compiled: bool = False) -> Field:
    """Everybody for one case, batch and pass, who agrees with the compiled layer.

    Args:
        case: the case.
        batch: of its input.
        is_training: whether gradients are compared too.
        setting: device and type.
        with_compiled: with ``torch.compile`` of the compiled layer.
    """
    torch.manual_seed(0)
    tuned = tune_case(case, "train" if is_training else "infer", batch, setting)
    layer = build(tuned.plan, device=setting.device, dtype=setting.dtype)
    ours = as_contender(OURS, layer, setting)
    x = make_input(case, batch, setting)
    expected = probe(ours, x, is_training)
    found, omitted = [ours], dict[str, str]()
    for name, make in offers(case, batch, layer, setting, with_compiled):
        try:
            contender = replace(make(), name=name)
            results = probe(contender, x, is_training)
            if name != DENSE:
                check(results, expected, setting)
            found.append(contender)
        except Exception as error:  # whatever a foreign library does, the rest is timed
            omitted[name] = describe(error)
    for name, builders in LIBRARIES.items():
        if case.kind not in builders and not (name == "by hand" and case.kind in IN_ORDER):
            omitted[name] = LACKING[name]
    return Field(layer, tuned.trials, tuple(found), omitted)


def offers(
    case: Case, batch: int, layer: tg.Layer, setting: Setting, with_compiled: bool
) -> Iterator[tuple[str, Callable[[], Contender]]]:
    """Name and builder of every contender but the compiled layer."""
    params, shape = dict(layer.named_parameters()), case.input_shape(batch)
    if with_compiled:
        yield COMPILED, partial(make_compiled, layer)
    yield DENSE, lambda: as_contender(DENSE, make_dense(case), setting)
    for name, contractor in EINSUMS.items():
        yield name, partial(make_einsums, layer.plan.merged, params, shape, contractor)
    for name, builders in LIBRARIES.items():
        if case.kind in builders:
            yield name, partial(make_foreign, case, builders[case.kind], params, setting)
    if case.kind in IN_ORDER:
        # the gates of a generator are decoded first, as its paper does; those of a circuit act on the input
        network = case.network if case.kind == "adtn" else layer.plan.merged
        yield "by hand", partial(make_einsums, network, params, shape, contract_in_order)


def as_contender(name: str, layer: nn.Module, setting: Setting) -> Contender:
    """A module to time, moved to where everything is."""
    layer = layer.to(setting.device, setting.dtype)
    return Contender(name, layer, tuple(param for param in layer.parameters() if param.requires_grad))


def make_compiled(layer: tg.Layer) -> Contender:
    """``torch.compile`` of the compiled layer."""
    return Contender(COMPILED, torch.compile(layer), tuple(layer.parameters()))


def make_einsums(network: tg.Network, params: Mapping[str, Tensor], shape: Sequence[int], by: Contractor) -> Contender:
    """A network's einsums over the compiled layer's own params."""
    return Contender("einsum", Einsums(network, params, shape, by), tuple(params.values()))


def make_foreign(case: Case, build: Builder, params: Mapping[str, Tensor], setting: Setting) -> Contender:
    """A library's layer with a copy of the params; libraries build on the processor and in float32."""
    values = {name: param.detach().to("cpu", torch.float32) for name, param in params.items()}
    return as_contender("foreign", finish(case, build(case, values), values), setting)


def make_dense(case: Case) -> nn.Module:
    """The dense layer of the same shape, with the same bias and function, and another weight."""
    has_bias = bool(case.bias)
    if case.window:
        height, width = case.window
        layer: nn.Module = nn.Conv2d(case.in_features, case.out_features, (height, width), padding=1, bias=has_bias)
    else:
        layer = nn.Linear(case.in_features, case.out_features, bias=has_bias)
    return Finished(layer, None, case.function) if case.function else layer


def finish(case: Case, layer: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A library's layer with the bias and the function of a case."""
    if not case.bias and not case.function:
        return layer
    return Finished(layer, values[case.bias] if case.bias else None, case.function)


def make_input(case: Case, batch: int, setting: Setting) -> Tensor:
    """A random input."""
    return torch.randn(case.input_shape(batch), device=setting.device, dtype=setting.dtype)


def make_cotangent(case: Case, batch: int, setting: Setting) -> Tensor:
    """A random direction that gradients are taken in."""
    return torch.randn(case.output_shape(batch), device=setting.device, dtype=setting.dtype)


def make_call(contender: Contender, x: Tensor, cotangent: Tensor, is_training: bool) -> Callable[[], object]:
    """What is timed: a forward pass, or a forward pass and the gradients of the input and of every param."""
    if not is_training:
        return torch.no_grad()(lambda: contender.forward(x))
    x = x.detach().clone().requires_grad_()
    wanted = [x, *contender.params]
    return lambda: torch.autograd.grad(contender.forward(x), wanted, cotangent)


class Captured:
    """A call whose kernels a GPU is sent as one graph; they are noted when it is called first."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.graph = call, torch.cuda.CUDAGraph()
        self.results: object = None

    def __call__(self) -> None:
        """Run the graph."""
        if self.results is None:
            with torch.cuda.graph(self.graph):
                self.results = self.call()
        self.graph.replay()


def probe(contender: Contender, x: Tensor, is_training: bool) -> list[Tensor]:
    """What a contender computes: the output, and in training the gradient of the input for a fixed direction.

    It does what is timed later, all gradients included, so that nothing has to be warmed up or compiled then.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not is_training:
            with torch.no_grad():
                return [contender.forward(x)]
        x = x.detach().clone().requires_grad_()
        y = contender.forward(x)
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
        gradient, *_ = torch.autograd.grad(y, [x, *contender.params], direction)
        return [y.detach(), gradient]


def check(found: list[Tensor], expected: list[Tensor], setting: Setting) -> None:
    """Raise `AssertionError` unless results are equal, up to rounding relative to the largest entry."""
    for ours, theirs in zip(expected, found, strict=True):
        scale = ours.abs().max()
        torch.testing.assert_close(theirs / scale, ours / scale, rtol=0, atol=setting.tolerance)


def describe(error: Exception) -> str:
    """An error as one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200]
