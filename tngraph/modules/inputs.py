"""Diagnosis of a layer's inputs after a call has failed, so that a successful call pays nothing for it.

PyTorch refuses a tensor of another type in the words of the kernel that meets it, and Python refuses other values in
the words of a missing attribute. The messages here use the names of the layer's inputs instead.
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
"""The errors that Python and PyTorch raise if a layer's input is not a tensor of the right type."""


def find_fault(layer: nn.Module, names: Sequence[str], args: Sequence[Any], named: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the inputs of a layer whose call failed.

    Args:
        layer: the layer.
        names: the names of its inputs.
        args: the positional arguments of the call.
        named: the keyword arguments of the call.

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
    """Return a message about an input of another device or type than the params, or None.

    In mixed precision, floating-point types do not have to match.
    """
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
    """Return whether autocast is on for a tensor's device.

    PyTorch raises an error when it is asked this about the meta device.
    """
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def check_numbers(device: object, dtype: object) -> None:
    """Refuse an unknown device, or a type that params cannot have.

    Raises:
        PlanError: the message says which.
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
    """Refuse a value that is not a tensor.

    Raises:
        SizeError: the message says what the value is.
    """
    if not isinstance(value, Tensor):
        raise SizeError(f"{name} is {_describe(value)}, and not a tensor\n  torch.as_tensor makes one of numbers")
