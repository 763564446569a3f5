"""The cores that a layer stores: read back with their legs, and written from those of other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from tngraph.errors import SizeError
from tngraph.language.network import Network


@dataclass(frozen=True, eq=False)
class StoredCore:
    """A core of a layer.

    Attributes:
        legs: the names of its legs, one for each axis of the tensor, in order.
        tensor: its values, which are those of the layer: a change of one changes the other.
    """

    legs: tuple[str, ...]
    tensor: Tensor

    def __repr__(self) -> str:
        sized = ", ".join(f"{leg}:{size}" for leg, size in zip(self.legs, self.tensor.shape, strict=True))
        return f"StoredCore[{sized}]"


def read_cores(module: nn.Module, network: Network, attributes: Mapping[str, str]) -> dict[str, StoredCore]:
    """Return the params and buffers of a module by their names in its network, in order of declaration.

    Args:
        module: the module of the network.
        network: the network.
        attributes: the attribute that holds each tensor.
    """
    stored = [core for core in network.cores if core.role in ("param", "buffer")]
    tensors = [attrgetter(attributes[core.name])(module) for core in stored]
    legs = [tuple(leg.name for leg in core.legs) for core in stored]
    return {core.name: StoredCore(*parts) for core, *parts in zip(stored, legs, tensors, strict=True)}


def write_cores(stored: Mapping[str, StoredCore], values: Mapping[str, Any]) -> None:
    """Copy values into cores.

    Args:
        stored: the cores by name.
        values: for some of them a tensor, an array or a `StoredCore`. Axes of size 1 may be there or not, so that the
            ends of a chain fit.

    Raises:
        SizeError: a name that no core has, or values of another shape. Then no core has changed.
    """
    if not isinstance(values, Mapping):
        raise SizeError(f"the cores are {values!r}\n  give a mapping of names to tensors: {', '.join(stored)}")
    tensors = {}
    for name, value in values.items():
        if name not in stored:
            near = get_close_matches(str(name), stored, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(stored)}"
            raise SizeError(f"there is no core {name!r} here\n  {hint}")
        tensors[name] = _fitting(name, stored[name], value.tensor if isinstance(value, StoredCore) else value)
    with torch.no_grad():
        for name, tensor in tensors.items():
            stored[name].tensor.copy_(tensor)


def _fitting(name: str, core: StoredCore, value: Any) -> Tensor:
    """Return values in the shape of a core.

    Raises:
        SizeError: another shape, or no tensor.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise SizeError(f"the core {name!r} is given {value!r}\n  give a tensor or an array of numbers") from None
    if _without_ones(tensor.shape) != _without_ones(core.tensor.shape):
        legs, shape = ", ".join(core.legs), tuple(core.tensor.shape)
        raise SizeError(f"the core {name!r}[{legs}] has shape {shape}, and its values {tuple(tensor.shape)}")
    return tensor.reshape(core.tensor.shape)


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
