"""Measurement of a run: the FLOPs it takes, the bytes alive at once, and the bytes that autograd keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

_CONV_BACKWARD = torch.ops.aten.convolution_backward


def conv_backward_flops(*arguments: Any, out_shape: Any) -> int:
    """Return the FLOPs of the gradients of a convolution, corrected because PyTorch's counter overcounts groups.

    The gradient of a weight `(out, in / groups, *taps)` takes as many products as the forward pass, since each channel
    of the result is multiplied by the channels of its own group. PyTorch's formula multiplies it by those of all
    groups. Its counts for weights without groups, and for signals, are right and left as they are.

    Args:
        arguments: the arguments of ``aten::convolution_backward``, with shapes for tensors.
        out_shape: the shapes of the gradients of signal, weight and bias.
    """
    *tensors, groups, mask = arguments

    def count(*wanted: bool) -> int:
        flops: int = flop_registry[_CONV_BACKWARD](*tensors, groups, (*wanted, False), out_val=out_shape)
        return flops

    return count(mask[0], False) + count(False, mask[1]) // int(groups)


def measure_flops(call: Callable[[], object]) -> int:
    """Return the FLOPs that `FlopCounterMode` counts for a call, with grouped convolutions corrected [FLOPs]."""
    with FlopCounterMode(display=False, custom_mapping={_CONV_BACKWARD: conv_backward_flops}) as counter:
        call()
    return int(counter.get_total_flops())


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A watch on the storages that operations allocate. A storage that was freed no longer counts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and update the peak by the storages that it allocates [bytes]."""
        operands = {storage._cdata for storage in storages(tree_leaves((args, kwargs)))}
        result = func(*args, **(kwargs or {}))
        self.made = {key: entry for key, entry in self.made.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        for storage in storages(tree_leaves(result)):
            if storage._cdata not in operands:
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, sum(count for _, count in self.made.values()))
        return result


def storages(values: Iterable[object]) -> Iterator[torch.UntypedStorage]:
    """Return the storages of the tensors among some values."""
    return (value.untyped_storage() for value in values if isinstance(value, torch.Tensor))


def measure_peak(call: Callable[[], object]) -> int:
    """Return the most bytes alive at once in storages that a call without gradients allocates [bytes]."""
    allocations = _Allocations()
    with torch.no_grad(), allocations:
        call()
    return allocations.peak


@contextmanager
def _packing(saved: dict[int, torch.UntypedStorage]) -> Iterator[None]:
    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def measure_saved(call: Callable[[], object], existing: Iterable[torch.Tensor]) -> int:
    """Return the bytes that autograd keeps for the backward pass of a call, beside the tensors it is given [bytes].

    Args:
        call: the function to run. Its result is held until everything is counted.
        existing: params, buffers and inputs, whose storages do not count because they exist anyway.
    """
    saved: dict[int, torch.UntypedStorage] = {}
    with _packing(saved):
        result = call()
    own = {storage._cdata for storage in storages(existing)}
    total = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    del result
    return total
