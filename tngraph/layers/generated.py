"""Parametrisations that generate weights from cores, for any layer: one weight, or one vector shared by several layers.

They are used through PyTorch's ``torch.nn.utils.parametrize``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from tngraph.errors import NetworkError, SizeError
from tngraph.language.families.family import Family
from tngraph.layers.compressed import compile_or_build
from tngraph.layers.recipe import Modes, make_recipe
from tngraph.layers.starting import Start, start_as_asked
from tngraph.layers.stored import StoresCores
from tngraph.modules.inputs import check_tensor
from tngraph.plans.plan import Plan
from tngraph.search.orders import Search


class Generated(StoresCores):
    """A dense weight that cores generate at each call.

    As a parametrisation it replaces the weight: the cores are trained, and the weight is no longer a parameter. With
    ``residual`` the weight stays a parameter, and the generated one is added to it.

    Args:
        shape: shape of the weight, `(out, in, *kernel)` or `(out,)`; if modes multiply to more, the surplus is cropped.
        family: a word, as ``"adtn"``, or a `Family`.
        residual: add the generated weight to the original one, and start with the original: the last core starts as
            zeros. If that would keep the other cores from learning (``quanta``), or there is no last core (a core at
            every site), all cores start as drawn, and the initial generated weight is subtracted from the original.
        modes: modes of the rows (inputs) and of the columns (outputs); for a vector, ``((), columns)``.
        sites: number of modes on each side, if the family chooses them.
        search: seed and effort of the planning.
        plan: a plan of the network, made before, instead of a new one.
        device: device of the cores.
        dtype: type of the cores.
        options: options of the family, as ``layers=2``.

    Raises:
        NetworkError: no such family, one that is not linear in its input, or options or modes that it does not take.
        SizeError: a value that is not a shape, or modes whose product is too small for it.

    Example:
        >>> layer = nn.Linear(784, 256)
        >>> _ = register_parametrization(layer, "weight", Generated.like(layer.weight, "adtn", layers=2))
        >>> sum(p.numel() for p in layer.parameters()), layer.weight.shape
        (692, torch.Size([256, 784]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        family: str | Family = "adtn",
        *,
        residual: bool = False,
        modes: Modes | None = None,
        sites: int | None = None,
        search: Search | None = None,
        plan: Plan | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.recipe = make_recipe(family, shape, 1, modes, sites, options)
        self.residual = residual
        network = self.recipe.weight()
        self.network = compile_or_build(network, None, plan, search=search, device=device, dtype=dtype)
        self.recipe.warn_of_growth(sum(p.numel() for p in self.parameters()))
        self._start()

    @classmethod
    def like(cls, weight: Tensor, family: str | Family = "adtn", *, fit: Start = False, **options: Any) -> Generated:
        """Return a generator with the shape, device and type of a weight.

        Args:
            weight: the weight that it replaces, or is added to.
            family: a word or a `Family`.
            fit: False for cores that start as drawn; True to fit them to the weight; inputs `(*, in)`, or the
                `Moments` of what enters the layer, to make its outputs right on them; or a mapping of arguments of
                `tngraph.fit`. A residual then starts as the part of the weight that its cores can hold, and what the
                layer keeps beside it is the rest.
            options: keyword arguments of this class.
        """
        check_tensor("the weight", weight)
        generator = cls(weight.shape, family, **{"device": weight.device, "dtype": weight.dtype, **options})
        start_as_asked(generator, weight, fit)
        return generator

    def reset_parameters(self) -> None:
        """Draw new initial values for the cores, as for a layer of this shape."""
        cast(Any, self.network).reset_parameters()
        self._start()

    def _start(self) -> None:
        """Zero the last core of a residual, so that the residual starts as zeros.

        Without such a core, `right_inverse` subtracts the start from the original.
        """
        is_circuit = "base" in self.recipe.family.options
        last = _last_core(self.plan) if self.residual and not is_circuit else None
        if last is not None:
            nn.init.zeros_(attrgetter(self.network.printed.attributes[last])(self.network))

    @property
    def plan(self) -> Plan:
        """The plan by which the weight is contracted."""
        return self.network.plan

    def forward(self, original: Tensor | None = None) -> Tensor:
        """Return the weight, added to the original one if this is a residual.

        Args:
            original: a weight of the same shape; only a residual uses it.

        Returns:
            A tensor of the shape of the weight.
        """
        weight = self.recipe.crop(self.network())
        return weight if original is None or not self.residual else original + weight

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what ``parametrize`` stores for a weight: a residual's original, or nothing."""
        return weight - self.forward() if self.residual else ()

    def extra_repr(self) -> str:
        """Return the weight's shape, and how it is built."""
        params, dense = sum(p.numel() for p in self.parameters()), prod(self.recipe.shape)
        residual = ", residual=True" if self.residual else ""
        return f"{self.recipe.shape}, {self.recipe}{residual}, params={params:,} of {dense:,}"


def _last_core(plan: Plan) -> str | None:
    """Return the last param that is read once, or None.

    If this param is zero, so is the weight, but the param's gradient is not.
    """
    network = plan.network
    if any(core.role == "buffer" for core in network.cores):
        return None
    reads = [access.source for equation in network.equations for term in equation.terms for access in term.accesses]
    params = [core.name for core in network.cores if core.role == "param"]
    return next((name for name in reversed(params) if reads.count(name) == 1), None)


class WeightSlice(nn.Module):
    """A slice of a shared vector as the weight of one layer.

    The first layer holds the generator, and with it the cores. The other layers only refer to it, in a tuple, which
    PyTorch does not register as a submodule.
    """

    def __init__(self, holder: nn.Module, start: int, shape: Sequence[int], is_owner: bool) -> None:
        super().__init__()
        self.start, self.shape = start, tuple(shape)
        self.scale = float(prod(self.shape[1:]) ** -0.5)
        self._holders = (holder,)
        if is_owner:
            self.generator = holder

    @property
    def holder(self) -> nn.Module:
        """The module that has the shared vector."""
        return self._holders[0]

    def forward(self) -> Tensor:
        """Return the weight. Entries of the vector start with variance 1/3, and are scaled by fan-in^(-1/2)."""
        vector = cast(Tensor, self.holder.vector)
        part = vector[self.start : self.start + prod(self.shape)].view(self.shape)
        return part * self.scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return nothing, since nothing of the weight is stored."""
        return ()


def share(model: nn.Module, names: Sequence[str], family: str | Family = "adtn", **options: Any) -> Generated:
    """Generate the weights of several layers by one generator, as slices of one vector in the order of the names.

    Each slice is scaled by the fan-in of its layer, fan-in^(-1/2). Under ``parametrize.cached()`` the generator runs
    once for all of them; without it, once for each.

    Args:
        model: the model whose layers are changed in place.
        names: names of layers with a parameter ``weight``; the first layer holds the generator.
        family: a word or a `Family`.
        options: what `Generated` takes by keyword, except ``residual``.

    Returns:
        The generator.

    Raises:
        NetworkError: names of other modules than such layers; otherwise as for `Generated`.
        SizeError: weights of several devices or types.

    Source: Qing et al., arXiv 2305.06058, who generate the weights of several layers by one network.
    """
    if options.get("residual"):
        raise NetworkError(
            "a generator of several layers cannot start as a residual", "leave out residual, or adapt each layer"
        )
    weights = [_weight_of(model, name) for name in _distinct(names)]
    if len({(weight.device, weight.dtype) for weight in weights}) > 1:
        listed = ", ".join(f"{name} on {w.device} as {w.dtype}" for name, w in zip(names, weights, strict=True))
        raise SizeError(f"the weights are not alike: {listed}\n  one vector has one device and one type")
    total = sum(weight.numel() for weight in weights)
    generator = Generated.like(weights[0].new_empty(total, device="meta"), family, device=weights[0].device, **options)
    hand_out(model, names, generator)
    return generator


def hand_out(model: nn.Module, names: Sequence[str], generator: Generated) -> None:
    """Put slices of the vector of a generator in the place of the weights of some layers."""
    weights = [cast(Tensor, model.get_submodule(name).weight) for name in names]
    holder = nn.Module()
    holder.register_buffer("vector", weights[0].new_empty(generator.recipe.shape, device="meta"))
    register_parametrization(holder, "vector", generator, unsafe=True)
    start = 0
    for name, weight in zip(names, weights, strict=True):
        part = WeightSlice(holder, start, weight.shape, is_owner=not start)
        register_parametrization(model.get_submodule(name), "weight", part, unsafe=True)
        start += weight.numel()


def _distinct(names: Sequence[str]) -> Sequence[str]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not names or len(set(names)) < len(names):
        raise NetworkError(f"names is {names!r}", "give the names of several layers, each once")
    return names


def _weight_of(model: nn.Module, name: str) -> nn.Parameter:
    layers = {place: module for place, module in model.named_modules() if module._parameters.get("weight") is not None}
    if name not in layers:
        reason = "is generated already" if _is_generated(model, name) else "is no layer with a weight of its own"
        raise NetworkError(f"{name!r} {reason}", f"such layers are: {', '.join(layers) or 'none'}")
    return cast(nn.Parameter, layers[name].weight)


def _is_generated(model: nn.Module, name: str) -> bool:
    modules = dict(model.named_modules())
    return name in modules and is_parametrized(modules[name], "weight")
