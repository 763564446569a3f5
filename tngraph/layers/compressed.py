"""The common part of all layers that replace a dense one, linear or convolutional: a network of cores, and a bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import chain
from math import prod
from operator import attrgetter
from typing import Any, ClassVar, NoReturn, Self, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from tngraph.errors import NetworkError, PlanError, SizeError
from tngraph.language.network import Network
from tngraph.language.sizes import evaluate_size, symbol
from tngraph.language.sizing import DEFAULT_RUNTIME_SIZE
from tngraph.layers.recipe import Recipe
from tngraph.layers.starting import Start, start_as_asked
from tngraph.layers.stored import StoresCores
from tngraph.modules.compiling import compile
from tngraph.modules.inputs import RAW, find_fault
from tngraph.modules.layer import Layer
from tngraph.modules.verification import Verification
from tngraph.plans.plan import Plan
from tngraph.plans.table import describe_regimes
from tngraph.program.counts import Counts
from tngraph.search.machine import Work
from tngraph.search.orders import Search


class Compressed(StoresCores):
    """A layer whose weight is built of cores.

    Attributes:
        network: the compiled network, which holds the cores.
        bias: added to the output, `(out,)`; or None.
        recipe: the dense weight that the layer replaces, and how the cores build it.
        planned: the sizes of the input that counts are shown at. They include the sizes that the caller fixed.
        arguments: the names of the arguments that an ordinary layer has too, but for its bias, device and type.
    """

    arguments: ClassVar[tuple[str, ...]]
    bias: nn.Parameter | None
    recipe: Recipe
    planned: Mapping[str, int]

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the layer, as `nn.Module` does.

        Raises:
            SizeError: an input that is not a tensor, or is of another device or type than the params.
        """
        try:
            return super().__call__(*args, **named)
        except (*RAW, SizeError):
            fault = find_fault(self, ["input"], args, named)
            if fault is None:
                raise
        raise SizeError(fault)

    def _build(
        self,
        recipe: Recipe,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        sizes: Mapping[str, int] | None = None,
        search: Search | None = None,
        plan: Plan | None = None,
        **window: Any,
    ) -> None:
        """Plan and compile the network, and draw the initial cores and bias."""
        self.recipe = recipe
        network = recipe.layer(**window)
        if sizes is not None and not isinstance(sizes, Mapping):
            raise SizeError(f"sizes is {sizes!r}\n  it maps names to numbers, as {{'batch': 64}}")
        fixed = dict(sizes or {})
        self.planned = dict.fromkeys(network.runtime_sizes(), DEFAULT_RUNTIME_SIZE) | fixed
        inner = self._inner_sizes(fixed)
        self.network = compile_or_build(network, inner, plan, search=search, device=device, dtype=dtype)
        parameter = nn.Parameter(torch.empty(recipe.shape[0], device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", parameter)
        self._draw_bias()
        recipe.warn_of_growth(sum(p.numel() for p in self.parameters()), recipe.shape[0] if bias else 0)

    def _inner_sizes(self, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the sizes of the network's input, for sizes of the layer's input."""
        return sizes

    def _enter(self, input: Tensor) -> Tensor:
        """Return the network's input, `(batch, channels, *axes)`, with zeros in surplus rows."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw new initial values for the cores and the bias."""
        cast(Any, self.network).reset_parameters()
        self._draw_bias()

    def _draw_bias(self) -> None:
        """Draw a new bias from the distribution that ``torch.nn.Linear`` and ``Conv2d`` use."""
        if self.bias is not None:
            bound = prod(self.recipe.shape[1:]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def _pad_channels(self, x: Tensor) -> Tensor:
        """Return the input padded with zeros to `(batch, groups * rows, *axes)`, the surplus rows after each group."""
        surplus = self.recipe.surplus[0]
        if not surplus:
            return x
        return F.pad(self._by_group(x), (0, 0) * (x.dim() - 2) + (0, surplus)).flatten(1, 2)

    def _by_group(self, x: Tensor) -> Tensor:
        """Return a tensor with its channels split by group: `(batch, groups, channels of one group, *axes)`."""
        groups = self.recipe.groups
        return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])

    def _leave(self, y: Tensor) -> Tensor:
        """Return the output `(batch, out, *axes)`: the network's without its surplus columns, plus the bias."""
        columns = self.recipe.shape[0] // self.recipe.groups
        if self.recipe.surplus[1]:
            y = self._by_group(y)[:, :, :columns].flatten(1, 2)
        if self.bias is None:
            return y
        return y + self.bias.type_as(y).view(-1, *(1,) * (y.dim() - 2))  # in mixed precision y stays narrow

    def fold(self, memory_limit: int | None = None) -> Self:
        """Return this layer for serving, as `Layer.fold` does: it shares the params, and they take no gradient.

        Args:
            memory_limit: the most memory for all folded buffers together; None for no limit [bytes].

        Raises:
            PlanError: a limit that is not a positive integer.
        """
        served = copy(self)
        served._modules = {**self._modules, "network": self.network.fold(memory_limit)}
        bias = None if self.bias is None else nn.Parameter(self.bias.detach(), requires_grad=False)
        served._parameters = {**self._parameters, "bias": bias}
        return served

    def at(self, /, **sizes: int) -> Self:
        """Return a layer that shares the params and always runs the order that is best at some sizes of its input.

        Raises:
            SizeError: a name that is not a size of the input, or a number that is not a positive integer.
        """
        alone = copy(self)
        alone.planned = {**self.planned, **sizes}
        alone._modules = {**self._modules, "network": self.network.at(**self._inner_sizes(alone.planned))}
        return alone

    @property
    def plan(self) -> Plan:
        """The plan of the network, which does not include the bias."""
        return self.network.plan

    def counts(self, /, **sizes: int) -> Counts:
        """Return the exact counts of a call, with the bias and the padding: ``layer.counts(batch=128)``.

        Peak and saved are those of the network alone. Padding its input, cropping its output and adding the bias come
        on top.

        Args:
            sizes: sizes of the input; absent ones are as in ``planned``.

        Raises:
            SizeError: a name that is not a size of the input, or a number that is not a positive integer.
        """
        inner = self._inner_sizes({**self.planned, **sizes})
        counts = self.plan.at(**inner)
        if self.bias is None:
            return counts
        output = self._output_size(self.plan.values(**inner))
        return replace(
            counts,
            params=counts.params + self.bias.numel(),
            elementwise=counts.elementwise + output,
            cost=counts.cost + self.plan.request.rate(Work(output, output, self.bias.numel(), output, 0, 0)),
            largest=max(counts.largest, output),
        )

    def _output_size(self, numbers: Mapping[str, int]) -> int:
        """Return the size of the layer's output [elements]."""
        batch, _, *axes = self.plan.network.outputs[0].axes
        places = prod(evaluate_size(index.size, numbers) for axis in (batch, *axes) for index in axis)
        return places * self.recipe.shape[0]

    def verify(self, *inputs: Tensor, sizes: Mapping[str, int] | None = None, seed: int = 0) -> Verification:
        """Compare the network with the reference, as `Layer.verify` does.

        Args:
            inputs: an input of the layer; a random one of small sizes if absent.
            sizes: sizes of the random input, where small ones will not do.
            seed: the seed of random inputs and of the direction in which gradients are taken.

        Raises:
            SizeError: inputs or sizes that do not fit.
            VerificationError: something does not agree.
        """
        entered = [self._enter(x) for x in inputs]
        return self.network.verify(*entered, sizes=self._small_sizes() | dict(sizes or {}), seed=seed)

    def _small_sizes(self) -> dict[str, int]:
        """Return sizes of the network's input that are small, but no smaller than the network allows."""
        return {}

    @cached_property
    def _dense(self) -> Layer:
        """The network whose output is the weight; it runs on the cores of this layer and has none of its own.

        A cached property is not a submodule, so this network is not in the layer's state dict and does not move with
        the layer.
        """
        return compile(self.recipe.weight_again(), device="meta")

    @property
    def weight(self) -> Tensor:
        """The dense weight that this layer applies, `(out, in / groups, *kernel)`, rebuilt at each access.

        Gradients flow through it to the cores.

        A layer has no such attribute if its family is not linear in the input.
        """
        if self.recipe.family.is_map:
            raise AttributeError  # nn.Module turns it into: no attribute 'weight'
        try:
            return self.build_weight()
        except AttributeError as error:  # nn.Module would hide its cause the same way
            raise RuntimeError(f"the weight of {type(self).__name__} cannot be built: {error}") from error

    @weight.setter
    def weight(self, value: object) -> NoReturn:
        raise NetworkError(
            f"the weight of {type(self).__name__} is built of cores, and takes no value",
            "change the cores, or put layer.to_dense() in the place of the layer",
        )

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter as PyTorch does, unless it is called ``weight``.

        Raises:
            NetworkError: the name is ``weight``.
        """
        if name == "weight":  # nn.Module calls this when a parameter is assigned
            Compressed.weight.fset(self, param)  # type: ignore[attr-defined]
        super().register_parameter(name, param)

    def build_weight(self) -> Tensor:
        """Build the tensor of `weight`, in the type of the cores even under autocast.

        Raises:
            NetworkError: the family is not linear in its input.
        """
        names = [name for name, _ in chain(self._dense.named_parameters(), self._dense.named_buffers())]
        cores = {name: attrgetter(name)(self.network) for name in names}
        device = next(iter(cores.values())).device.type
        is_mixed = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if is_mixed else nullcontext():
            return self.recipe.crop(functional_call(self._dense, cores, ()))

    def _to_dense(self, dense: nn.Module) -> nn.Module:
        """Return an ordinary layer, built on the meta device, with copies of this layer's weight and bias."""
        for name, tensor in (("weight", self.build_weight()), ("bias", self.bias)):
            if tensor is not None:
                copy = tensor.detach().clone(memory_format=torch.contiguous_format)
                dense.register_parameter(name, nn.Parameter(copy))
        return dense.train(self.training)

    def _like(self, dense: nn.Module, start: Start) -> Self:
        """Start this layer as asked, in the training or evaluation mode of an ordinary one, and return it."""
        start_as_asked(self, dense, start)
        return self.train(dense.training)

    def extra_repr(self) -> str:
        """Return the layer's sizes, how its weight is built, and how many params that saves."""
        params = sum(p.numel() for p in self.parameters())
        dense = prod(self.recipe.shape) + (0 if self.bias is None else self.bias.numel())
        saved = f"params={params:,} of {dense:,} ({dense / params:.1f}x)"
        return f"{self._shape_repr()}, {self.recipe}\n{saved}, MAC={self._macs()}"

    def _macs(self) -> str:
        """Return the multiply-adds of a call as a formula in the sizes of the layer's input [MAC].

        With several regimes the formula is that of the regime at ``planned``.
        """
        regimes, regime = self.plan.regimes, self.plan.regime(**self._inner_sizes(self.planned))
        inner = self._inner_sizes({name: symbol(name) for name in self.plan.network.runtime_sizes()})
        formula = str(regime.macs.xreplace({symbol(name): size for name, size in inner.items()}))
        if len(regimes) == 1:
            return formula
        is_input = len(self.plan.free) == 1 and inner[self.plan.free[0]] == symbol(self.plan.free[0])
        where = f" where {describe_regimes(self.plan)[regimes.index(regime)]}," if is_input else ""
        return f"{formula}{where} in one of {len(regimes)} regimes"

    def _shape_repr(self) -> str:
        raise NotImplementedError


def compile_or_build(
    network: Network, sizes: Mapping[str, int] | None, plan: Plan | None, *, search: Search | None, **where: Any
) -> Layer:
    """Return the module of a network, by a plan that was made before if there is one.

    Raises:
        PlanError: the plan is one of another network.
    """
    if plan is None:
        return compile(network, sizes, search=search, **where)
    if plan.network != network:
        raise PlanError(
            f"the plan is one of another network, {plan.network.name}\n  give a plan of this layer, as layer.plan is"
        )
    return compile(plan, **where)


def settings(layer: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that an ordinary layer was made with: the named attributes, bias, device and type."""
    weight = getattr(layer, "weight", None)
    missing = [name for name in names if not hasattr(layer, name)]
    if missing or not isinstance(weight, Tensor):
        lacks = ", ".join([*missing, *["weight"] * (weight is None)])
        raise NetworkError(f"a layer cannot be made like {layer!r}", f"it has no {lacks}")
    attributes = {name: getattr(layer, name) for name in names}
    return attributes | {"bias": layer.bias is not None, "device": weight.device, "dtype": weight.dtype}
