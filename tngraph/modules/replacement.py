"""Putting layers built of cores in the place of those of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import nn

from tngraph.errors import NetworkError, SizeError
from tngraph.language.families.family import Family
from tngraph.modules.compressed import Compressed
from tngraph.modules.convolution import Conv1d, Conv2d, Conv3d
from tngraph.modules.linear import Linear

_LIKE: dict[type[nn.Module], Callable[..., Compressed]] = {
    nn.Linear: Linear.like,
    nn.Conv1d: Conv1d.like,
    nn.Conv2d: Conv2d.like,
    nn.Conv3d: Conv3d.like,
}


class Replaced(NamedTuple):
    """A layer that was replaced: its name, its parameters before and now, biases included [elements]."""

    name: str
    dense_params: int
    params: int


def replace(model: nn.Module, family: str | Family, *, skip: Sequence[str] = (), **options: Any) -> list[Replaced]:
    """Replace every ``nn.Linear`` and ``nn.Conv1d`` to ``Conv3d`` of a model, in place, by layers of a family.

    Sizes, biases, devices, types and modes are those of the old layers; the parameters are drawn. Subclasses and
    layers with parametrisations are left alone. If one layer cannot be built, none is replaced.

    Args:
        model: whose layers are replaced.
        family: a word or a `Family`.
        skip: names of modules to leave alone, with everything inside them.
        options: what the layers take by keyword, as ``bond=8``.

    Returns:
        What was replaced, in the order of the model.

    Raises:
        SizeError: modes that do not fit a layer (it says which).
        NetworkError: a name to skip that is none, a family or options that do not fit a layer (it says which), or a
            model that is such a layer itself.
    """
    if type(model) in _LIKE:
        name = type(model).__name__
        raise NetworkError(f"the model is a {name} itself, with nothing around it", f"use {name}.like(model, family)")
    _check_skipped(model, skip)
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name and type(module) in _LIKE and not any(f"{name}.".startswith(f"{each}.") for each in skip)
    }
    made: dict[nn.Module, Compressed] = {}
    for name, module in found.items():
        if module not in made:
            made[module] = _replacement(name, module, family, options)
    for name, module in found.items():
        model.set_submodule(name, made[module])
    return [Replaced(name, _params(module), _params(made[module])) for name, module in found.items()]


def _replacement(name: str, module: nn.Module, family: str | Family, options: dict[str, Any]) -> Compressed:
    try:
        return _LIKE[type(module)](module, family, **options)
    except NetworkError as error:
        hint = error.hint or "choose another family or other options for it"
        raise NetworkError(f"{name}: {error.message}", f"{hint}; or leave it alone: skip=({name!r},)") from None
    except SizeError as error:
        raise SizeError(f"{name}: {error}; or leave it alone: skip=({name!r},)") from None


def _check_skipped(model: nn.Module, skip: Sequence[str]) -> None:
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in [skip] if isinstance(skip, str) else skip:
        if name not in known or isinstance(skip, str):
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "the names are those of model.named_modules()"
            raise NetworkError(f"skip names {name!r}, which is no module", hint)


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
