"""What is wrong with what a layer is called with, found once a call has failed: a call that works pays nothing.

PyTorch refuses a tensor of another type in the words of the kernel that meets it, and Python what is no tensor in those
of an attribute. Both are said here in the names of the layer's inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tngraph.errors import PlanError, SizeError

RAW = (AttributeError, TypeError, RuntimeError)
"""What Python and PyTorch raise where a layer meets something else than a tensor of its type."""


def find_fault(layer: nn.Module, names: Sequence[str], args: Sequence[Any], named: Mapping[str, Any]) -> str | None:
    """Find what a layer does not take.

    Args:
        layer: whose call has failed.
        names: of its inputs.
        args: what it was called with by position.
        named: by name.

    Returns:
        A message with a hint; None if the inputs are not at fault.
    """
    kind, signature = type(layer).__name__, inspect.signature(layer.forward)
    try:
        bound = signature.bind(*args, **named).arguments
    except TypeError:
        takes = ", ".join(signature.parameters) or "no input"
        return f"{kind} takes {takes}\n  it was called with {len(args) + len(named)} inputs"
    values = {name: bound[name] for name in names if name in bound}
    for name, value in values.items():
        if not isinstance(value, Tensor) and not hasattr(value, "dim"):
            return f"{name} is {_describe(value)}, and {kind} takes a tensor\n  torch.as_tensor makes one of numbers"
    return _find_stranger(kind, values, next(chain(layer.parameters(), layer.buffers()), None))


def _describe(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__module__}.{type(value).__name__}"


def _find_stranger(kind: str, values: Mapping[str, Any], stored: Tensor | None) -> str | None:
    """Find an input of another device or type than the params; in mixed precision floating-point types are alike."""
    for name, x in values.items():
        own = next(iter(values.values())) if stored is None else stored
        if x.device != own.device:
            return (
                f"{name} is on the device {x.device}, and {kind} is on {own.device}\n"
                f"  move one of them: {name}.to({str(own.device)!r})"
            )
        if x.dtype != own.dtype and not (x.is_floating_point() and own.is_floating_point() and _is_mixed(x)):
            return (
                f"{name} is of {x.dtype}, and {kind} is of {own.dtype}\n  convert one of them: {name}.to({own.dtype})"
            )
    return None


def _is_mixed(x: Tensor) -> bool:
    """Whether autocast is on where a tensor is; PyTorch refuses to say so of the meta device."""
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def check_numbers(device: object, dtype: object) -> None:
    """Refuse a device that there is not, and a type that params cannot have.

    Raises:
        PlanError: it says which.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)):
        raise PlanError(
            f"dtype is {dtype!r}\n  params are floating-point or complex: torch.float32, torch.complex64, …"
        )
    if device is None or isinstance(device, torch.device):
        return
    try:
        torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise PlanError(f"device is {device!r}\n  it is 'cpu', 'cuda', 'cuda:1', 'meta', …") from None


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor.

    Raises:
        SizeError: it says what it is.
    """
    if not isinstance(value, Tensor):
        raise SizeError(f"{name} is {_describe(value)}, and not a tensor\n  torch.as_tensor makes one of numbers")
