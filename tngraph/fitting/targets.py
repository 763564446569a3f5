"""The target of a layer of cores: the network of its weight, and the dense weight in the axes of that network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tngraph.errors import SizeError
from tngraph.fitting.problem import Metric, Values
from tngraph.language.network import Network
from tngraph.modules.layer import Layer

DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""The layers whose weight can be a target."""


class DenseWeight(Protocol):
    """The dense weight that a layer of cores stands for, and how its axes are cut into modes and padded."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape `(out, in / groups, *kernel)`, or `(out,)`, whatever PyTorch's layout is."""

    @property
    def rows(self) -> tuple[int, ...]:
        """The modes of its inputs, which may multiply to more."""

    @property
    def groups(self) -> int:
        """The number of groups of channels."""

    @property
    def is_transposed(self) -> bool:
        """Whether PyTorch stores it as `(in, out / groups, *kernel)`."""

    def weight_again(self) -> Network:
        """Return the network whose output is the padded weight."""

    def pad(self, weight: Tensor) -> Tensor:
        """Return a weight in PyTorch's layout as the output of that network."""

    def crop(self, weight: Tensor) -> Tensor:
        """Return the output of that network in PyTorch's layout."""


@dataclass(frozen=True)
class WeightPlace:
    """The place where the cores of a weight are stored.

    Attributes:
        network: the network whose output is the weight.
        layer: the compiled network that holds the params.
        recipe: how a dense weight is cut into modes and padded; None for a network of its own.
        bias: the bias of the layer, if it has one.
    """

    network: Network
    layer: Layer
    recipe: DenseWeight | None = None
    bias: nn.Parameter | None = None

    @property
    def params(self) -> Mapping[str, nn.Parameter]:
        """The params by their names in the network."""
        named = dict(self.layer.named_parameters())
        return {name: named[at] for name, at in self.layer.printed.attributes.items() if at in named}

    def values(self) -> Values:
        """Return the params and buffers in float64, by their names in the network."""
        stored = {**dict(self.layer.named_parameters()), **dict(self.layer.named_buffers())}
        attributes = self.layer.printed.attributes
        return {name: stored[at].detach().double() for name, at in attributes.items() if at in stored}

    def store(self, values: Mapping[str, Tensor]) -> None:
        """Write values into the params, in their type."""
        with torch.no_grad():
            for name, param in self.params.items():
                param.copy_(values[name])

    def as_output(self, weight: Tensor) -> Tensor:
        """Return a dense weight in the shape of the network's output, in float64, with zeros where it is padded.

        Raises:
            SizeError: a weight of another shape.
        """
        dense = weight.detach().double()
        if self.recipe is None:
            axes = self.network.outputs[0].axes
            wanted = tuple(prod(int(leg.size) for leg in axis) for axis in axes)
            if tuple(dense.shape) != wanted:
                raise SizeError(f"the target has shape {tuple(dense.shape)}, and the network makes {wanted}")
            return dense
        wanted, groups = self.recipe.shape, self.recipe.groups
        if self.recipe.is_transposed:
            wanted = (wanted[1] * groups, wanted[0] // groups, *wanted[2:])
        if tuple(dense.shape) != wanted:
            raise SizeError(f"the target has a weight of shape {tuple(dense.shape)}, and the layer one of {wanted}")
        return self.recipe.pad(dense)

    def by_group(self, weight: Tensor) -> Tensor:
        """Return an output of the network as the matrices of its groups, `(groups, out / groups, in)`, unpadded."""
        if self.recipe is None:
            return weight.reshape(1, weight.shape[0], -1)
        groups, cropped = self.recipe.groups, self.recipe.crop(weight)
        if self.recipe.is_transposed:
            cropped = cropped.reshape(groups, -1, *cropped.shape[1:]).transpose(1, 2)
        return cropped.reshape(groups, self.recipe.shape[0] // groups, -1)

    def metric(self, second: Tensor, form_legs: tuple[int, ...]) -> Metric:
        """Return the metric of some moments on the input legs of the weight.

        Args:
            second: the moments, `(groups, in, in)`, in the order of PyTorch's weight.
            form_legs: the indices of the weight in the order of the network's output.
        """
        legs = form_legs[len(self.network.outputs[0].axes[0]) :]
        if self.recipe is None:
            return Metric(second[0], (), legs)
        rows, kernel, groups = prod(self.recipe.rows), prod(self.recipe.shape[2:]), self.recipe.groups
        surplus = rows - self.recipe.shape[1]
        if surplus:
            split = second.reshape(groups, rows - surplus, kernel, rows - surplus, kernel)
            padded = F.pad(split, (0, 0, 0, surplus, 0, 0, 0, surplus))
            second = padded.reshape(groups, rows * kernel, rows * kernel)
        return Metric(second[0], (), legs) if groups == 1 else Metric(second, form_legs[:1], legs)
