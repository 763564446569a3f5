"""Convolutions whose weight is built of cores, which replace ``torch.nn.Conv1d`` to ``ConvTranspose3d``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tngraph.errors import SizeError
from tngraph.language.families.family import Family
from tngraph.language.sizes import as_integer
from tngraph.layers.compressed import Compressed, settings
from tngraph.layers.recipe import Modes, check_positive, make_recipe
from tngraph.layers.starting import Start, with_modes
from tngraph.plans.plan import Plan
from tngraph.search.orders import Search

PerAxis = int | Sequence[int]
Padding = PerAxis | Literal["same", "valid"]
PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]
_PADDING_MODES = {"zeros": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
_PLAIN = {"padding": 0, "output_padding": 0, "dilation": 1}
"""Defaults of settings, on each axis."""


class _Windowed(Compressed):
    """The common part of all layers with a window, transposed or not."""

    axes: ClassVar[int]
    ordinary: ClassVar[Callable[..., nn.Module]]
    arguments: ClassVar[tuple[str, ...]]
    in_channels: int
    out_channels: int
    groups: int
    padding_mode: PaddingMode
    _margins: tuple[int, ...] = ()

    @classmethod
    def like(
        cls,
        conv: nn.Module,
        family: str | Family = "cp",
        *,
        fit: Start = False,
        **options: Any,
    ) -> Self:
        """Return a layer with the sizes, bias, device and type of an ordinary one.

        Args:
            conv: the ordinary layer.
            family: family of the weight.
            fit: False for newly drawn parameters; True to fit them to the ordinary weight; feature maps, or the
                `Moments` of their patches, to make the outputs right on them; or a mapping of arguments of
                `tngraph.fit`.
            options: keyword arguments of this class.
        """
        options = with_modes(options, family, conv, fit)
        return cls(**settings(conv, cls.arguments), family=family, **options)._like(conv, fit)

    def _check_channels(self) -> None:
        check_positive(in_channels=self.in_channels, out_channels=self.out_channels, groups=self.groups)
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise SizeError(f"{name} is {channels}, which does not divide into {self.groups} groups")

    def _run(self, input: Tensor) -> Tensor:
        y = self._leave(self.network(self._enter(input)))
        return y if input.dim() == self.axes + 2 else y.squeeze(0)

    def _enter(self, input: Tensor) -> Tensor:
        x = input.unsqueeze(0) if input.dim() == self.axes + 1 else input
        if x.dim() != self.axes + 2 or x.shape[1] != self.in_channels:
            takes = ", ".join((str(self.in_channels), *_AXES[self.axes]))
            name, shape = type(self).__name__, tuple(input.shape)
            raise SizeError(f"the input has shape {shape}, and {name} takes (batch, {takes}) or ({takes})")
        if self._margins:
            x = F.pad(x, self._margins, _PADDING_MODES[self.padding_mode])
        return self._pad_channels(x)

    def _to_ordinary(self) -> nn.Module:
        arguments = {name: getattr(self, name) for name in self.arguments}
        return self._to_dense(self.ordinary(**arguments, bias=self.bias is not None, device="meta"))

    def _shape_repr(self) -> str:
        plain = {name: (default,) * self.axes for name, default in _PLAIN.items()} | {
            "groups": 1,
            "padding_mode": "zeros",
        }
        shown = {name: getattr(self, name) for name in self.arguments[2:]}
        changed = [f"{name}={value!r}" for name, value in shown.items() if plain.get(name) != value]
        return ", ".join([f"{self.in_channels}, {self.out_channels}", *changed, f"bias={self.bias is not None}"])


class _Convolution(_Windowed):
    """A convolution with any number of axes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the window, one number or one per axis; `stride`, `padding` and `dilation` likewise.
        stride: stride of the window.
        padding: padding on each side of every axis; ``"valid"`` is none, and ``"same"`` keeps the size.
        dilation: distance between the positions of the window.
        groups: number of groups of channels.
        bias: whether to add a bias, a parameter `(out_channels,)`.
        padding_mode: ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"``.
        device: device of the parameters.
        dtype: type of the parameters.
        family: family of the weight: a word, as ``"cp"``, or a `Family`.
        modes: modes of the rows (inputs) and of the columns (outputs) of one group. If they multiply to more than the
            channels, the input is padded with zeros and the surplus outputs are dropped.
        sites: number of modes on each side, if the family chooses them.
        sizes: run-time sizes to plan at: ``{"batch": 128, "height": 32, "width": 32}``.
        search: seed and effort of the planning.
        plan: a plan of the network, made before, instead of a new one.
        options: options of the family, as ``rank=8``.

    Raises:
        NetworkError: no such family, or options, modes or a window that it does not take.
        SizeError: numbers that do not fit.
        PlanError: a plan of another network.
    """

    arguments = (
        *("in_channels", "out_channels", "kernel_size", "stride"),
        *("padding", "dilation", "groups", "padding_mode"),
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis,
        stride: PerAxis = 1,
        padding: Padding = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        family: str | Family = "cp",
        modes: Modes | None = None,
        sites: int | None = None,
        sizes: Mapping[str, int] | None = None,
        search: Search | None = None,
        plan: Plan | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _per_axis("kernel_size", kernel_size, self.axes)
        self.stride = _per_axis("stride", stride, self.axes)
        self.dilation = _per_axis("dilation", dilation, self.axes)
        self.padding = padding if isinstance(padding, str) else _per_axis("padding", padding, self.axes, 0)
        self.padding_mode = padding_mode
        self._check()
        self._margins, inner = self._split_padding()
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        recipe = make_recipe(family, shape, groups, modes, sites, options)
        window = {"stride": self.stride, "padding": inner, "dilation": self.dilation}
        self._build(recipe, bias, device, dtype, sizes, search, plan, **window)

    def _check(self) -> None:
        """Refuse settings that PyTorch's convolution refuses too."""
        self._check_channels()
        if self.padding_mode not in _PADDING_MODES:
            raise SizeError(f"padding_mode is {self.padding_mode!r}\n  it is one of {', '.join(_PADDING_MODES)}")
        if isinstance(self.padding, str) and self.padding not in ("same", "valid"):
            raise SizeError(f"padding is {self.padding!r}\n  it is 'same', 'valid', or numbers")
        if self.padding == "same" and any(step != 1 for step in self.stride):
            raise SizeError(f"padding='same' keeps the size, and stride is {self.stride}\n  give padding as numbers")

    def _split_padding(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the padding to put around the input, as ``F.pad`` takes it, and the padding left to the network.

        The network reads past the border, which costs less than padding the input. It can do so for zeros of equal
        number on both sides.
        """
        sides = [self._sides(axis) for axis in range(self.axes)]
        if self.padding_mode == "zeros" and all(before == after for before, after in sides):
            return (), tuple(before for before, _ in sides)
        return tuple(width for pair in reversed(sides) for width in pair), (0,) * self.axes

    def _sides(self, axis: int) -> tuple[int, int]:
        """Return the padding before and after an axis; ``same`` puts an odd one after it, as PyTorch does."""
        if not isinstance(self.padding, str):
            return self.padding[axis], self.padding[axis]
        total = self.dilation[axis] * (self.kernel_size[axis] - 1) if self.padding == "same" else 0
        return total // 2, total - total // 2

    def _inner_sizes(self, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        margins = self._margins or (0, 0) * self.axes
        added = {name: sum(margins[-2 - 2 * k :][:2]) for k, name in enumerate(_AXES[self.axes])}
        return {name: size + added.get(name, 0) for name, size in sizes.items()}

    def _small_sizes(self) -> dict[str, int]:
        windows = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return {name: window + 2 + k for k, (name, window) in enumerate(zip(_AXES[self.axes], windows, strict=True))}

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: `(batch, in_channels, *axes)` or `(in_channels, *axes)`.

        Returns:
            `(batch, out_channels, *axes)`, or without the batch.

        Raises:
            SizeError: the input has another number of axes or channels.
        """
        return self._run(input)


_AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def _per_axis(name: str, value: PerAxis, axes: int, least: int = 1) -> tuple[int, ...]:
    """Return a setting as one number per axis."""
    every = tuple(value) if isinstance(value, Iterable) else (value,) * axes
    numbers = tuple(integer for item in every if (integer := as_integer(item)) is not None)
    if len(every) != axes or numbers != every or min(numbers) < least:
        raise SizeError(f"{name} is {value}\n  it is one number or {axes}, each {least} or more")
    return numbers


class Conv1d(_Convolution):
    """A convolution over `(batch, in_channels, length)` with a weight of some family."""

    axes, ordinary = 1, nn.Conv1d

    def to_dense(self) -> nn.Conv1d:
        """Return an ordinary layer with a copy of this one's weight and bias."""
        return cast(nn.Conv1d, self._to_ordinary())


class Conv2d(_Convolution):
    """A convolution over `(batch, in_channels, height, width)` with a weight of some family."""

    axes, ordinary = 2, nn.Conv2d

    def to_dense(self) -> nn.Conv2d:
        """Return an ordinary layer with a copy of this one's weight and bias."""
        return cast(nn.Conv2d, self._to_ordinary())


class Conv3d(_Convolution):
    """A convolution over `(batch, in_channels, depth, height, width)` with a weight of some family."""

    axes, ordinary = 3, nn.Conv3d

    def to_dense(self) -> nn.Conv3d:
        """Return an ordinary layer with a copy of this one's weight and bias."""
        return cast(nn.Conv3d, self._to_ordinary())


class _Transposed(_Windowed):
    """A transposed convolution with any number of axes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the window, one number or one per axis; so are all settings below.
        stride: distance on the output between the windows of two neighbouring positions of the input.
        padding: positions left out on each side of every axis of the output.
        output_padding: positions added after every axis, fewer than the stride.
        groups: number of groups of channels.
        bias: whether to add a bias, a parameter `(out_channels,)`.
        dilation: 1, since a window of cores has no gaps.
        padding_mode: ``"zeros"``, as in PyTorch.
        device: device of the parameters.
        dtype: type of the parameters.
        family: family of the weight: a word, as ``"cp"``, or a `Family`.
        modes: modes of the rows (inputs) and of the columns (outputs) of one group. If they multiply to more than the
            channels, the input is padded with zeros and the surplus outputs are dropped.
        sites: number of modes on each side, if the family chooses them.
        sizes: run-time sizes to plan at: ``{"batch": 128, "height": 32, "width": 32}``.
        search: seed and effort of the planning.
        plan: a plan of the network, made before, instead of a new one.
        options: options of the family, as ``rank=8``.

    Raises:
        NetworkError: no such family, or options, modes or a window that it does not take.
        SizeError: numbers that do not fit, a dilation, or another padding mode.
        PlanError: a plan of another network.
    """

    arguments = (
        *("in_channels", "out_channels", "kernel_size", "stride"),
        *("padding", "output_padding", "dilation", "groups", "padding_mode"),
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        output_padding: PerAxis = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: PerAxis = 1,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        family: str | Family = "cp",
        modes: Modes | None = None,
        sites: int | None = None,
        sizes: Mapping[str, int] | None = None,
        search: Search | None = None,
        plan: Plan | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _per_axis("kernel_size", kernel_size, self.axes)
        self.stride = _per_axis("stride", stride, self.axes)
        self.padding = _per_axis("padding", padding, self.axes, 0)
        self.output_padding = _per_axis("output_padding", output_padding, self.axes, 0)
        self.dilation = _per_axis("dilation", dilation, self.axes)
        self.padding_mode = padding_mode
        self._check()
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        recipe = make_recipe(family, shape, groups, modes, sites, options, is_transposed=True)
        window = {"stride": self.stride, "padding": self.padding, "output_padding": self.output_padding}
        self._build(recipe, bias, device, dtype, sizes, search, plan, **window)

    def _check(self) -> None:
        """Refuse settings that PyTorch's transposed convolution refuses too, and a dilation."""
        self._check_channels()
        if self.padding_mode != "zeros":
            raise SizeError(f"padding_mode is {self.padding_mode!r}\n  a transposed convolution has 'zeros'")
        if any(step != 1 for step in self.dilation):
            raise SizeError(f"dilation is {self.dilation}\n  a transposed convolution of cores has a dilation of 1")
        for added, step in zip(self.output_padding, self.stride, strict=True):
            if added >= step:
                raise SizeError(
                    f"output_padding is {self.output_padding}, and stride is {self.stride}\n  give less than the stride"
                )

    def _small_sizes(self) -> dict[str, int]:
        per_axis = zip(_AXES[self.axes], self.kernel_size, self.padding, strict=True)
        return {name: 2 + k + max(0, 2 * padding - window + 1) for k, (name, window, padding) in enumerate(per_axis)}

    def forward(self, input: Tensor, output_size: object = None) -> Tensor:
        """Apply the layer.

        Args:
            input: `(batch, in_channels, *axes)` or `(in_channels, *axes)`.
            output_size: None, since `output_padding` sets it once for all calls.

        Returns:
            `(batch, out_channels, *axes)`, or without the batch.

        Raises:
            SizeError: the input has another number of axes or channels, or the call has an ``output_size``.
        """
        if output_size is not None:
            raise SizeError(
                f"output_size is {output_size!r}, and {type(self).__name__} has one size of output for each input\n"
                "  give output_padding when the layer is made"
            )
        return self._run(input)


class ConvTranspose1d(_Transposed):
    """A transposed convolution over `(batch, in_channels, length)` with a weight of some family."""

    axes, ordinary = 1, nn.ConvTranspose1d

    def to_dense(self) -> nn.ConvTranspose1d:
        """Return an ordinary layer with a copy of this one's weight and bias."""
        return cast(nn.ConvTranspose1d, self._to_ordinary())


class ConvTranspose2d(_Transposed):
    """A transposed convolution over `(batch, in_channels, height, width)` with a weight of some family."""

    axes, ordinary = 2, nn.ConvTranspose2d

    def to_dense(self) -> nn.ConvTranspose2d:
        """Return an ordinary layer with a copy of this one's weight and bias."""
        return cast(nn.ConvTranspose2d, self._to_ordinary())


class ConvTranspose3d(_Transposed):
    """A transposed convolution over `(batch, in_channels, depth, height, width)` with a weight of some family."""

    axes, ordinary = 3, nn.ConvTranspose3d

    def to_dense(self) -> nn.ConvTranspose3d:
        """Return an ordinary layer with a copy of this one's weight and bias."""
        return cast(nn.ConvTranspose3d, self._to_ordinary())
