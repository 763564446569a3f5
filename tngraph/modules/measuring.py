"""What a run of a module really does: the FLOPs it takes, the bytes alive at once, and those that autograd keeps."""

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
    """The FLOPs of the gradients of a convolution: a correction of PyTorch's counter, which overcharges groups.

    The gradient of a weight `(out, in / groups, *taps)` takes as many products as the forward pass: a channel of the
    result meets the channels of its own group. PyTorch's formula multiplies it with those of all groups. What it says
    of weights without groups, and of signals, is left as it is.

    Args:
        arguments: those of ``aten::convolution_backward``, tensors as shapes.
        out_shape: of the gradients of signal, weight and bias.
    """
    *given, groups, mask = arguments

    def count(*wanted: bool) -> int:
        flops: int = flop_registry[_CONV_BACKWARD](*given, groups, (*wanted, False), out_val=out_shape)
        return flops

    return count(mask[0], False) + count(False, mask[1]) // int(groups)


def measure_flops(call: Callable[[], object]) -> int:
    """What `FlopCounterMode` counts for a call, weight gradients of grouped convolutions corrected [FLOPs]."""
    with FlopCounterMode(display=False, custom_mapping={_CONV_BACKWARD: conv_backward_flops}) as counter:
        call()
    return int(counter.get_total_flops())


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the storages that operations make; one that dies is not counted any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it leaves behind [bytes]."""
        given = {storage._cdata for storage in storages(tree_leaves((args, kwargs)))}
        result = func(*args, **(kwargs or {}))
        self.made = {key: entry for key, entry in self.made.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        for storage in storages(tree_leaves(result)):
            if storage._cdata not in given:
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, sum(count for _, count in self.made.values()))
        return result


def storages(values: Iterable[object]) -> Iterator[torch.UntypedStorage]:
    """The storages of the tensors among some values."""
    return (value.untyped_storage() for value in values if isinstance(value, torch.Tensor))


def measure_peak(call: Callable[[], object]) -> int:
    """The most bytes of storages alive at once that a call makes, without gradients [bytes]."""
    allocations = _Allocations()
    with torch.no_grad(), allocations:
        call()
    return allocations.peak


@contextmanager
def _packing(kept: dict[int, torch.UntypedStorage]) -> Iterator[None]:
    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def measure_saved(call: Callable[[], object], given: Iterable[torch.Tensor]) -> int:
    """The bytes that autograd keeps for the backward pass of a call, beside the tensors it is given [bytes].

    Args:
        call: what is run; its result is held until all is counted.
        given: params, buffers and inputs, whose storages there would be anyway.
    """
    kept: dict[int, torch.UntypedStorage] = {}
    with _packing(kept):
        result = call()
    own = {storage._cdata for storage in storages(given)}
    total = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    del result
    return total
