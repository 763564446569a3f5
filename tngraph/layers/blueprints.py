"""Blueprints of layers of cores: they are read off a model, kept in a file, and built into another model.

A blueprint is data: words, numbers and a plan. Nothing of it becomes Python but what the layers themselves print.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

from tngraph.errors import GrowthWarning, ModelError, RankWarning
from tngraph.language.families import find_family, named_family
from tngraph.language.sizes import as_integer
from tngraph.layers.compressed import Compressed
from tngraph.layers.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tngraph.layers.generated import Generated, WeightSlice, hand_out
from tngraph.layers.linear import Linear
from tngraph.layers.recipe import Recipe
from tngraph.modules.layer import Layer, build
from tngraph.plans.plan import Plan

State = Mapping[str, Tensor]
CLASSES: Mapping[str, type[Compressed]] = {
    kind.__name__: kind for kind in (Linear, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
}
"""The layers that take the place of an ordinary one."""
NETWORK, GENERATED, SHARED = "Network", "Generated", "share"
"""A compiled network, a generator of one weight, and one of the weights of several layers."""
GENERATOR = "generator.parametrizations.vector.0."
"""Where the first of several layers keeps the generator of their weights."""


@dataclass(frozen=True)
class Blueprint:
    """A layer of cores, as a file describes it.

    Attributes:
        kind: its class, or `NETWORK` or `SHARED`.
        places: its names in the model; of a shared generator, the names of the layers whose weights it generates.
        tensor: the tensor of that layer that it generates, or "" if it is a module of its own.
        dtype: the type of its cores.
        plan: the plan of its network.
        sizes: the sizes that a layer shows its counts at, or that a network was built with.
        arguments: what its class is called with, but for what follows.
        family: the word of its family, with `modes` and `options`; "" for a compiled network.
        modes: the modes of rows and columns.
        options: the options of the family.
    """

    kind: str
    places: tuple[str, ...]
    tensor: str
    dtype: torch.dtype
    plan: Plan
    sizes: Mapping[str, int] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    modes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The first of its names, as an error shows it."""
        return self.places[0] or "the model"

    def build(self) -> nn.Module:
        """Return the layer, on the meta device.

        Raises:
            TngraphError: it cannot be built.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RankWarning)
            warnings.simplefilter("ignore", GrowthWarning)
            if self.kind == NETWORK:
                return build(self.plan, self.sizes, "meta", self.dtype)
            named_family(self.family).check_options(self.options)
            where: dict[str, Any] = {"device": "meta", "dtype": self.dtype, "plan": self.plan}
            where |= {"family": self.family, "modes": self.modes, **self.options}
            if self.kind in (GENERATED, SHARED):
                return Generated(**self.arguments, **where)
            return CLASSES[self.kind](**self.arguments, **where, sizes=self.sizes)


def find_blueprints(model: nn.Module) -> list[tuple[Blueprint, nn.Module]]:
    """Return the layers of cores of a model with their blueprints, in the order of the model.

    Raises:
        ModelError: a layer that a file cannot describe.
    """
    layers: dict[nn.Module, list[str]] = {}
    slices: dict[nn.Module, dict[int, str]] = {}
    for name, module in _walk(model, ""):
        if isinstance(module, WeightSlice):
            slices.setdefault(module.holder, {}).setdefault(module.start, name)
            layers[module.holder] = [name for _, name in sorted(slices[module.holder].items())]
        else:
            layers.setdefault(module, []).append(name)
    blueprints = [(_describe(model, module, names), _cores_of(module)) for module, names in layers.items()]
    for blueprint, module in blueprints:
        if shapes(blueprint.build().state_dict()) != shapes(module.state_dict()):
            raise ModelError(
                f"{blueprint.name} cannot be saved: its tensors are not those that its class would have",
                "remove parametrisations of its cores, and give all its cores one type",
            )
    return blueprints


def shapes(state: State) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return the shapes and types of some tensors."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def join(*parts: str) -> str:
    """Return a dotted name."""
    return ".".join(part for part in parts if part)


def _walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost layers of cores, with all their names."""
    if isinstance(module, Compressed | Generated | WeightSlice | Layer):
        yield name, module
        return
    for part, child in module._modules.items():
        if child is not None:
            yield from _walk(child, join(name, part))


def _cores_of(module: nn.Module) -> nn.Module:
    """Return the module that a blueprint builds: itself, or the generator of a shared vector."""
    if isinstance(module, Compressed | Generated | Layer):
        return module
    holder: Any = module
    return cast(Generated, holder.parametrizations.vector[0])


def _describe(model: nn.Module, module: nn.Module, names: Sequence[str]) -> Blueprint:
    cores = _cores_of(module)
    first = next(chain(cores.parameters(), cores.buffers(), (torch.empty(()),)))
    shown = names[0] or "the model"
    if isinstance(cores, Compressed):
        arguments = {name: getattr(cores, name) for name in cores.arguments}
        arguments["bias"] = cores.bias is not None
        kind = type(cores).__name__
        if CLASSES.get(kind) is not type(cores):
            raise ModelError(f"{shown} cannot be saved: {kind} is a class of your own", "a file holds no code")
        dtype = next(cores.network.parameters(), first).dtype
        recipe = _describe_recipe(cores.recipe, shown)
        return Blueprint(kind, tuple(names), "", dtype, cores.plan, dict(cores.planned), arguments, **recipe)
    if isinstance(cores, Layer):
        return Blueprint(NETWORK, tuple(names), "", first.dtype, cores.plan, cores.sizes())
    assert isinstance(cores, Generated)
    owners = dict(_owner(model, name) for name in names)
    recipe = _describe_recipe(cores.recipe, shown)
    where = {"dtype": first.dtype, "plan": cores.plan, **recipe}
    shape = {"shape": cores.recipe.shape}
    if cores is not module:
        return Blueprint(SHARED, tuple(owners), "weight", arguments=shape, **where)
    (tensor, *others) = dict.fromkeys(owners.values())
    if others or (tensor and len({id(model.get_submodule(owner)) for owner in owners}) > 1):
        raise ModelError(f"{shown} cannot be saved: it generates several tensors", "share() generates several weights")
    places = tuple(owners)[:1] if tensor else tuple(names)
    return Blueprint(GENERATED, places, tensor, arguments={**shape, "residual": cores.residual}, **where)


def _owner(model: nn.Module, name: str) -> tuple[str, str]:
    """Return the layer that a parametrisation belongs to, and its tensor; for another module its name and "".

    Raises:
        ModelError: one of several parametrisations of a tensor.
    """
    parts = name.split(".")
    if parts[-3:-2] != ["parametrizations"]:
        return name, ""
    path, tensor = ".".join(parts[:-3]), parts[-2]
    owner: Any = model.get_submodule(path)
    if len(owner.parametrizations[tensor]) > 1:
        raise ModelError(
            f"{join(path, tensor)} cannot be saved: it has several parametrisations",
            "one that generates it can be saved; remove the others",
        )
    return path, tensor


def _describe_recipe(recipe: Recipe, name: str) -> dict[str, Any]:
    """Return the fields of a blueprint that say how a weight is built.

    Raises:
        ModelError: a family or an option that a file cannot hold.
    """
    family = recipe.family
    if find_family(family.name) is not family:
        raise ModelError(
            f"{name} cannot be saved: its family {family.name!r} is a function of yours, and a file holds no code",
            "save its state_dict, and build the layer again yourself",
        )
    options = {option: _plain(value, f"the option {option!r} of {name}") for option, value in recipe.options.items()}
    return {"family": family.name, "modes": (recipe.rows, recipe.columns), "options": options}


def _plain(value: Any, what: str) -> Any:
    """Return a value with nothing in it but words, numbers and tuples.

    Raises:
        ModelError: it has anything else.
    """
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, Sequence):
        return tuple(_plain(item, what) for item in value)
    number = as_integer(value)
    if number is None:
        raise ModelError(f"{what} is {value!r}, which a file cannot hold", "give words, numbers, and tuples of them")
    return number


def check_place(model: nn.Module, blueprint: Blueprint) -> None:
    """Refuse a place where a layer of other sizes stands, or none.

    Raises:
        ModelError: the message names the layer, and what differs.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for place in blueprint.places:
        old: Any = modules.get(place)
        shown = place or "the model"
        if old is None:
            raise ModelError(f"the model has no layer {place!r}, where a {blueprint.kind} of cores was saved")
        if blueprint.tensor:
            tensor = getattr(old, blueprint.tensor, None)
            if not isinstance(tensor, Tensor):
                raise ModelError(f"{shown} is a {type(old).__name__} without {blueprint.tensor!r}, which was generated")
            shape = tuple(blueprint.arguments["shape"])
            if blueprint.kind == GENERATED and tuple(tensor.shape) != shape:
                raise ModelError(
                    f"{join(place, blueprint.tensor)} has the shape {tuple(tensor.shape)}, and was saved with {shape}"
                )
        elif blueprint.kind in CLASSES:
            _check_class(old, blueprint, shown)
    if blueprint.kind == SHARED:
        total = sum(modules[place].weight.numel() for place in blueprint.places)
        if (total,) != tuple(blueprint.arguments["shape"]):
            (saved,) = blueprint.arguments["shape"]
            names = ", ".join(blueprint.places)
            raise ModelError(f"the weights of {names} have {total:,} entries, and {saved:,} were saved")


def _check_class(old: Any, blueprint: Blueprint, shown: str) -> None:
    if type(old).__name__.removeprefix("Parametrized") != blueprint.kind:
        raise ModelError(f"{shown} is a {type(old).__name__}, and a {blueprint.kind} was saved in its place")
    has = {name: getattr(old, name, None) for name in CLASSES[blueprint.kind].arguments}
    has["bias"] = old.bias is not None
    for name, value in has.items():
        saved = blueprint.arguments[name]
        if value != saved:
            raise ModelError(
                f"{shown} has {name}={value}, and was saved with {name}={saved}",
                "give a model of the architecture that was saved",
            )


def expected_state(model: nn.Module, built: Sequence[tuple[Blueprint, nn.Module]]) -> dict[str, Tensor]:
    """Return the tensors that a model will have with some layers in it, on any device; tied names have one tensor."""
    state = dict(model.state_dict(keep_vars=True))
    for blueprint, layer in built:
        for position, place in enumerate(blueprint.places):
            if not blueprint.tensor:
                prefix, dropped = f"{place}." if place else "", ""
            else:
                prefix, dropped = join(place, "parametrizations", blueprint.tensor) + ".", join(place, blueprint.tensor)
            original = getattr(model.get_submodule(place), blueprint.tensor) if blueprint.tensor else None
            state = {name: value for name, value in state.items() if not name.startswith(prefix) and name != dropped}
            if blueprint.kind == SHARED:
                prefix += f"0.{GENERATOR}"
            elif blueprint.tensor:
                if blueprint.arguments["residual"]:
                    state[prefix + "original"] = original
                prefix += "0."
            if blueprint.kind != SHARED or not position:
                state |= {prefix + name: value for name, value in layer.state_dict(keep_vars=True).items()}
    return state


def put(model: nn.Module, blueprint: Blueprint, layer: nn.Module) -> nn.Module:
    """Put a layer in its places in a model, and return the model, which is the layer itself if there is no other."""
    owners = [model.get_submodule(place) for place in blueprint.places]
    for owner in owners:
        if blueprint.tensor and is_parametrized(owner, blueprint.tensor):
            remove_parametrizations(owner, blueprint.tensor)
    if blueprint.kind == SHARED:
        assert isinstance(layer, Generated)
        hand_out(model, blueprint.places, layer)
        return model
    if blueprint.tensor:
        register_parametrization(owners[0], blueprint.tensor, layer, unsafe=True)
        return model
    layer.train(owners[0].training)
    if "" in blueprint.places:
        return layer
    for place in blueprint.places:
        model.set_submodule(place, layer)
    return model
