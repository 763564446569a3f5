"""Second moments of the inputs of a layer, streamed in float64: the metric in which its weight is fitted.

For a convolution the inputs are the patches that its window reads, so that the error is again that of the outputs.
Layers that are given the same tensor (the projections to queries, keys and values) share their moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tngraph.errors import NetworkError, SizeError

Batches = Tensor | Iterable[Any]
"""One batch, or several in turn."""
_Key = tuple[object, ...]
"""A tensor that entered a layer, at a version, and how the layer reads it."""
MOST_PATCHES = 2**24
"""The most entries of patches that are taken out of a feature map at once (128 MiB in float64)."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
"""The layers whose inputs have moments."""


@dataclass(frozen=True)
class Moments:
    """The first and second moments of a layer's inputs.

    Attributes:
        second: E[x xᵀ] of each group of channels, `(groups, in, in)`, in float64.
        mean: E[x], `(groups, in)`.
        count: the number of inputs or patches that were averaged.
    """

    second: Tensor
    mean: Tensor
    count: int

    @classmethod
    def of(cls, inputs: Batches, layer: nn.Module | None = None) -> Moments:
        """Return the moments of some inputs.

        Args:
            inputs: `(*, in)`, or a batch of feature maps where ``layer`` is a convolution; or an iterable of such.
            layer: the layer that they enter.

        Raises:
            SizeError: no inputs, or inputs of another size than the layer takes.
        """
        stream = _Stream(layer)
        for batch in as_batches(inputs):
            stream.add(batch)
        return stream.moments()

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both samples together."""
        total = self.count + other.count
        own, share = self.count / total, other.count / total
        return Moments(own * self.second + share * other.second, own * self.mean + share * other.mean, total)

    @property
    def covariance(self) -> Tensor:
        """The moments about the mean, `(groups, in, in)`."""
        return self.second - self.mean[:, :, None] * self.mean[:, None, :]


def as_batches(inputs: Batches) -> Iterable[Any]:
    """Return inputs as batches: one tensor is one batch.

    Raises:
        SizeError: a value that is neither a tensor nor a series of batches.
    """
    if isinstance(inputs, Tensor):
        return [inputs]
    if not isinstance(inputs, Iterable) or isinstance(inputs, str | Mapping):
        raise SizeError(f"the inputs to fit to are {inputs!r}\n  give a tensor, or a list or loader of batches")
    return inputs


class _Stream:
    """Sums of inputs and of their products."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        self.layer, self.count = layer, 0
        self.second: Tensor | None = None
        self.mean: Tensor | None = None

    def add(self, batch: object) -> None:
        """Add a batch of inputs."""
        if not isinstance(batch, Tensor):
            raise SizeError(f"the inputs to fit to are tensors, and not {type(batch).__name__}")
        for rows in _inputs_of(self.layer, batch.detach()):
            exact = rows.to(torch.float64)
            second, total = exact.mT @ exact, exact.sum(1)
            if not second.isfinite().all():
                raise SizeError("the inputs have entries that are infinite or not a number")
            self.second = second if self.second is None else self.second + second
            self.mean = total if self.mean is None else self.mean + total
            self.count += exact.shape[1]

    def merge(self, other: _Stream) -> None:
        """Add what another stream has summed."""
        assert other.second is not None
        assert other.mean is not None
        self.second = other.second if self.second is None else self.second + other.second
        self.mean = other.mean if self.mean is None else self.mean + other.mean
        self.count += other.count

    def moments(self) -> Moments:
        """Return the moments of everything that was added."""
        if self.second is None or self.mean is None or not self.count:
            raise SizeError("there are no inputs to fit to\n  give at least one batch")
        return Moments(self.second / self.count, self.mean / self.count, self.count)


def _inputs_of(layer: nn.Module | None, batch: Tensor) -> Iterable[Tensor]:
    """Yield the vectors that a weight is multiplied by, `(groups, count, in)`, a few at a time."""
    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)):
        yield from _patches(layer, batch)
        return
    features = getattr(layer, "in_features", batch.shape[-1] if batch.dim() else None)
    if not batch.dim() or batch.shape[-1] != features:
        raise SizeError(f"the inputs have shape {tuple(batch.shape)}, and the layer takes (*, {features})")
    yield batch.reshape(1, -1, batch.shape[-1])


def _patches(layer: nn.Module, batch: Tensor) -> Iterable[Tensor]:
    """Yield the patches of feature maps that the window of a convolution reads, `(groups, count, in·window)`."""
    convolution: Any = layer
    axes, groups = len(convolution.kernel_size), convolution.groups
    if batch.dim() == axes + 1:
        batch = batch[None]
    if batch.dim() != axes + 2 or batch.shape[1] != convolution.in_channels:
        takes = f"(batch, {convolution.in_channels}{', …' * axes})"
        raise SizeError(f"the inputs have shape {tuple(batch.shape)}, and the convolution takes {takes}")
    is_transposed = isinstance(layer, _TRANSPOSED)
    padded = _spread(convolution, batch) if is_transposed else _pad(convolution, batch)
    stride = (1,) * axes if is_transposed else convolution.stride
    count = max(1, MOST_PATCHES // max(1, padded[0].numel() * prod(convolution.kernel_size)))
    for some in torch.split(padded, count):
        view = some
        for axis in range(axes):
            reach = convolution.dilation[axis] * (convolution.kernel_size[axis] - 1) + 1
            view = view.unfold(2 + axis, reach, stride[axis])
        for axis in range(axes):
            taps = torch.arange(convolution.kernel_size[axis], device=view.device) * convolution.dilation[axis]
            view = view.index_select(2 + axes + axis, taps.flip(0) if is_transposed else taps)
        count = prod(view.shape[2 : 2 + axes])
        rows = view.reshape(len(some), groups, -1, count, prod(convolution.kernel_size))
        yield rows.permute(1, 0, 3, 2, 4).reshape(groups, len(some) * count, -1)


def _pad(convolution: Any, batch: Tensor) -> Tensor:
    """Return feature maps with the padding of a convolution around them."""
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    return F.pad(batch, convolution._reversed_padding_repeated_twice, mode=mode)


def _spread(convolution: Any, batch: Tensor) -> Tensor:
    """Return feature maps with zeros between and around their entries.

    A transposed convolution is an ordinary one over such maps, of stride 1 and with the window reversed.
    """
    sizes = [(size - 1) * step + 1 for size, step in zip(batch.shape[2:], convolution.stride, strict=True)]
    spread = batch.new_zeros((*batch.shape[:2], *sizes))
    entries = tuple(slice(None, None, step) for step in convolution.stride)
    spread[(slice(None), slice(None), *entries)] = batch
    margins: list[int] = []
    for axis in reversed(range(len(sizes))):
        border = convolution.dilation[axis] * (convolution.kernel_size[axis] - 1) - convolution.padding[axis]
        margins += [border, border + convolution.output_padding[axis]]
    return F.pad(spread, margins)


def collect_moments(
    model: nn.Module,
    batches: Batches,
    names: Sequence[str] | None = None,
    call: Callable[[nn.Module, Any], Any] | None = None,
) -> Mapping[str, Moments]:
    """Return the moments of the inputs of some layers of a model, from one pass over some batches.

    They take in² numbers of 8 bytes for every different input.

    Args:
        model: the model, which is run as it is, without gradients; in training mode its batch norms go on learning.
        batches: inputs of the model; a tuple is a call with several, a mapping one with named ones.
        names: names of linear or convolutional layers; all of the model's if absent.
        call: runs the model on a batch, where calling it is not enough.

    Raises:
        NetworkError: a name that is not a layer of the model.
        SizeError: a layer that no batch reached.
    """
    modules = dict(model.named_modules())
    if names is None:
        names = [name for name, module in modules.items() if isinstance(module, LAYERS)]
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise NetworkError(f"the model has no layer {unknown[0]!r}", f"it has: {', '.join(n for n in modules if n)}")
    streams: dict[str, _Stream] = {}
    parts: dict[_Key, tuple[Tensor, _Stream]] = {}
    calls: dict[str, list[_Key]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            batch = arguments[0]
            key = (id(batch), 0 if batch.is_inference() else batch._version, *_reading(module))
            if key not in parts:  # summed up at once, since the model may write over its values
                parts[key] = batch, _Stream(module)  # the batch is kept, so that no other one gets its id
                parts[key][1].add(batch)
            calls.setdefault(name, []).append(key)

        return record

    handles = [modules[name].register_forward_pre_hook(hook(name)) for name in names]
    try:
        with torch.no_grad():
            for batch in as_batches(batches):
                _run(model, batch, call)
                _add_up(streams, {key: stream for key, (_, stream) in parts.items()}, calls)
                parts.clear()
                calls.clear()
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in names if name not in streams]
    if missing:
        raise SizeError(f"no batch reached the layer {missing[0]!r}, so it has no moments")
    moments = {id(stream): stream.moments() for stream in streams.values()}
    return {name: moments[id(streams[name])] for name in names}


def _add_up(streams: dict[str, _Stream], parts: Mapping[_Key, _Stream], calls: Mapping[str, Sequence[_Key]]) -> None:
    """Add what entered some layers in a batch to their streams. Layers share one as long as the same enters them."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, keys in calls.items():
        groups.setdefault((id(streams.get(name)), *keys), []).append(name)
    for names in groups.values():
        stream = streams.get(names[0], _Stream())
        if any(other is stream for name, other in streams.items() if name not in names):
            stream = copy(stream)
        for key in calls[names[0]]:
            stream.merge(parts[key])
        streams.update(dict.fromkeys(names, stream))


def _run(model: nn.Module, batch: Any, call: Callable[[nn.Module, Any], Any] | None) -> None:
    if call is not None:
        call(model, batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple):
        model(*batch)
    else:
        model(batch)


def _reading(module: nn.Module) -> tuple[object, ...]:
    """Return how a layer reads its input: layers that read alike can share moments."""
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        parts = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "output_padding")
        return (isinstance(module, _TRANSPOSED), *(getattr(module, part) for part in parts))
    return ("linear",)
