"""What every layer that stands for a dense one has, linear or convolutional: a network of cores, and a bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import chain
from math import prod
from operator import attrgetter
from typing import Any, NoReturn, Self, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from tngraph.errors import NetworkError, SizeError
from tngraph.kernels.cost import Counts
from tngraph.language.sizes import evaluate_size, symbol
from tngraph.modules.compiling import compile
from tngraph.modules.inputs import RAW, find_fault
from tngraph.modules.layer import Layer
from tngraph.modules.recipe import Recipe
from tngraph.modules.verification import Verification
from tngraph.planning.machine import Work
from tngraph.planning.search import Search
from tngraph.planning.sizing import DEFAULT_RUNTIME_SIZE
from tngraph.plans.plans import Plan
from tngraph.plans.table import describe_regimes


class Compressed(nn.Module):
    """A layer whose weight is built of cores.

    Attributes:
        network: the compiled network, which holds the cores.
        bias: added to what it puts out, `(out,)`; or None.
        recipe: the dense weight it stands for, and how that is built.
        planned: the sizes of the input that counts are shown at; what was given, and is planned for alone, among them.
    """

    network: Layer
    bias: nn.Parameter | None
    recipe: Recipe
    planned: Mapping[str, int]

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the layer, as `nn.Module` does.

        Raises:
            SizeError: something else than a tensor, or one of another device or type than the params.
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
        **window: Any,
    ) -> None:
        """Plan and compile the network, and draw everything."""
        self.recipe = recipe
        network = recipe.layer(**window)
        if sizes is not None and not isinstance(sizes, Mapping):
            raise SizeError(f"sizes is {sizes!r}\n  it maps names to numbers, as {{'batch': 64}}")
        given = dict(sizes or {})
        self.planned = dict.fromkeys(network.runtime_sizes(), DEFAULT_RUNTIME_SIZE) | given
        self.network = compile(network, self._inner_sizes(given), search=search, device=device, dtype=dtype)
        drawn = nn.Parameter(torch.empty(recipe.shape[0], device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", drawn)
        self._draw_bias()
        recipe.warn_of_growth(sum(p.numel() for p in self.parameters()), recipe.shape[0] if bias else 0)

    def _inner_sizes(self, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """The sizes of what the network sees, for sizes of the layer's input."""
        return sizes

    def _enter(self, input: Tensor) -> Tensor:
        """What the network is called with, `(batch, channels, *axes)`; its surplus rows are zero."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw the cores and the bias anew."""
        cast(Any, self.network).reset_parameters()
        self._draw_bias()

    def _draw_bias(self) -> None:
        """As ``torch.nn.Linear`` and ``Conv2d`` do."""
        if self.bias is not None:
            bound = prod(self.recipe.shape[1:]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def _pad_channels(self, x: Tensor) -> Tensor:
        """`(batch, groups * in, *axes)`, every group with its surplus rows."""
        surplus = self.recipe.surplus[0]
        if not surplus:
            return x
        return F.pad(self._by_group(x), (0, 0) * (x.dim() - 2) + (0, surplus)).flatten(1, 2)

    def _by_group(self, x: Tensor) -> Tensor:
        """`(batch, groups, channels of one, *axes)`."""
        groups = self.recipe.groups
        return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])

    def _leave(self, y: Tensor) -> Tensor:
        """`(batch, out, *axes)`: what the network puts out, without its surplus columns and with the bias."""
        columns = self.recipe.shape[0] // self.recipe.groups
        if self.recipe.surplus[1]:
            y = self._by_group(y)[:, :, :columns].flatten(1, 2)
        if self.bias is None:
            return y
        return y + self.bias.type_as(y).view(-1, *(1,) * (y.dim() - 2))  # in mixed precision y is narrow, and stays so

    def fold(self, memory_limit: int | None = None) -> Self:
        """This layer for serving, as `Layer.fold`: with the same params in memory, which take no gradient.

        Args:
            memory_limit: of the folded buffers together; None for none [bytes].

        Raises:
            PlanError: a limit that is no positive integer.
        """
        served = copy(self)
        served._modules = {**self._modules, "network": self.network.fold(memory_limit)}
        bias = None if self.bias is None else nn.Parameter(self.bias.detach(), requires_grad=False)
        served._parameters = {**self._parameters, "bias": bias}
        return served

    def at(self, /, **sizes: int) -> Self:
        """This layer, with the same params, always in the order that is best at some sizes of its input.

        Raises:
            SizeError: a name that is no size of the input, or a number that is not a positive integer.
        """
        alone = copy(self)
        alone.planned = {**self.planned, **sizes}
        alone._modules = {**self._modules, "network": self.network.at(**self._inner_sizes(alone.planned))}
        return alone

    @property
    def plan(self) -> Plan:
        """How the network is contracted; the bias is not in it."""
        return self.network.plan

    def counts(self, /, **sizes: int) -> Counts:
        """The exact counts of a call, the bias included, padding as it runs: ``layer.counts(batch=128)``.

        Peak and saved are those of the network: what pads its input, crops its output and adds the bias is beside it.

        Args:
            sizes: of the input; those not given are as planned.

        Raises:
            SizeError: a name that is no size of the input, or a number that is not a positive integer.
        """
        inner = self._inner_sizes({**self.planned, **sizes})
        counts = self.plan.at(**inner)
        if self.bias is None:
            return counts
        kept = self._output_size(self.plan.values(**inner))
        return replace(
            counts,
            params=counts.params + self.bias.numel(),
            elementwise=counts.elementwise + kept,
            cost=counts.cost + self.plan.goal.rate(Work(kept, kept, self.bias.numel(), kept, 0, 0)),
            largest=max(counts.largest, kept),
        )

    def _output_size(self, numbers: Mapping[str, int]) -> int:
        """What the layer puts out [elements]."""
        batch, _, *axes = self.plan.network.outputs[0].axes
        places = prod(evaluate_size(index.size, numbers) for axis in (batch, *axes) for index in axis)
        return places * self.recipe.shape[0]

    def verify(self, *inputs: Tensor, sizes: Mapping[str, int] | None = None, seed: int = 0) -> Verification:
        """Compare the network with the reference, as `Layer.verify` does.

        Args:
            inputs: an input of the layer; a random one of small sizes when absent.
            sizes: of the random input, where small ones will not do.
            seed: of random inputs and of the direction gradients are taken in.

        Raises:
            SizeError: inputs or sizes that do not fit.
            VerificationError: something does not agree.
        """
        entered = [self._enter(x) for x in inputs]
        return self.network.verify(*entered, sizes=self._small_sizes() | dict(sizes or {}), seed=seed)

    def _small_sizes(self) -> dict[str, int]:
        """Sizes of what the network sees that are small, and still large enough for it."""
        return {}

    @cached_property
    def _dense(self) -> Layer:
        """The network that puts out the weight; it runs on the cores of this layer and has none of its own.

        A cached property is no submodule: it is in no state, and moves nowhere.
        """
        return compile(self.recipe.weight_again(), device="meta")

    @property
    def weight(self) -> Tensor:
        """The dense weight this layer applies, `(out, in / groups, *kernel)`, built at each look; gradients flow.

        A layer whose family is no weight has no such attribute.
        """
        if self.recipe.family.is_map:
            raise AttributeError  # of which nn.Module says that there is no attribute 'weight'
        try:
            return self.build_weight()
        except AttributeError as error:  # nn.Module would say the same of any other
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
            NetworkError: the weight takes no value.
        """
        if name == "weight":  # this is what nn.Module does where a parameter is assigned
            Compressed.weight.fset(self, param)  # type: ignore[attr-defined]
        super().register_parameter(name, param)

    def build_weight(self) -> Tensor:
        """Build what `weight` is, in the type of the cores under autocast too.

        Raises:
            NetworkError: the family is no weight.
        """
        names = [name for name, _ in chain(self._dense.named_parameters(), self._dense.named_buffers())]
        cores = {name: attrgetter(name)(self.network) for name in names}
        device = next(iter(cores.values())).device.type
        is_mixed = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if is_mixed else nullcontext():
            return self.recipe.crop(functional_call(self._dense, cores, ()))

    def _to_dense(self, dense: nn.Module) -> nn.Module:
        """An ordinary layer, built on the meta device, with copies of the weight and the bias of this one."""
        for name, tensor in (("weight", self.build_weight()), ("bias", self.bias)):
            if tensor is not None:
                copy = tensor.detach().clone(memory_format=torch.contiguous_format)
                dense.register_parameter(name, nn.Parameter(copy))
        return dense.train(self.training)

    def _like(self, dense: nn.Module) -> Self:
        """This layer in the mode of another."""
        return self.train(dense.training)

    def extra_repr(self) -> str:
        """The sizes of the layer, how its weight is built, and what that saves."""
        params = sum(p.numel() for p in self.parameters())
        dense = prod(self.recipe.shape) + (0 if self.bias is None else self.bias.numel())
        saved = f"params={params:,} of {dense:,} ({dense / params:.1f}x)"
        return f"{self._shape_repr()}, {self.recipe}\n{saved}, MAC={self._macs()}"

    def _macs(self) -> str:
        """The multiply-adds of a call in the sizes of the layer's input, in the regime that was planned at [MAC]."""
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


def settings(layer: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """What an ordinary layer was made with: the named attributes, and what every layer has."""
    weight = getattr(layer, "weight", None)
    missing = [name for name in names if not hasattr(layer, name)]
    if missing or not isinstance(weight, Tensor):
        lacks = ", ".join([*missing, *["weight"] * (weight is None)])
        raise NetworkError(f"a layer cannot be made like {layer!r}", f"it has no {lacks}")
    made = {name: getattr(layer, name) for name in names}
    return made | {"bias": layer.bias is not None, "device": weight.device, "dtype": weight.dtype}
