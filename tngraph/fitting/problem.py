"""A fit as a problem: a sum of products of cores, the tensor it should equal, and the metric that errors count in.

With the second moments M = E[x xᵀ] of a layer's inputs the squared error tr((W − T) M (W − T)ᵀ) is the mean squared
error of the layer's outputs. Without inputs M is the identity, and the error that of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tngraph.fitting.multilinear import Contraction, Indices, Multilinear, volume

Values = dict[str, Tensor]
"""The cores and fixed tensors of a network, by name, in float64."""


@dataclass(frozen=True)
class Metric:
    """Second moments of a layer's inputs.

    Attributes:
        moments: `(*group, in, in)`, symmetric and positive semi-definite.
        group: the indices that the moments have one matrix for each value of.
        legs: the indices of the weight that ``in`` fuses, slowest first.
    """

    moments: Tensor
    group: Indices
    legs: Indices


@dataclass(frozen=True)
class FitProblem:
    """A tensor to fit.

    Attributes:
        form: the sum of products.
        target: the tensor that it is to equal, with an axis per index of `form.legs`.
        metric: the metric of its input legs; None for the identity.
    """

    form: Multilinear
    target: Tensor
    metric: Metric | None = None

    @cached_property
    def weighted(self) -> Tensor:
        """The target times the moments, with the axes of the target."""
        return self.apply_metric(self.target)

    def apply_metric(self, tensor: Tensor) -> Tensor:
        """Return a tensor with the axes of the target times the moments, or itself without a metric."""
        if self.metric is None:
            return tensor
        matrix, order = self.as_matrix(tensor)
        return self._as_tensor(matrix @ self.metric.moments, order)

    def as_matrix(self, tensor: Tensor) -> tuple[Tensor, Indices]:
        """Return a tensor as `(*group, out, in)`, and the order of the indices that makes it so."""
        group, legs = (self.metric.group, self.metric.legs) if self.metric else ((), ())
        out = tuple(index for index in self.form.legs if index not in group and index not in legs)
        order = (*group, *out, *legs)
        permuted = tensor.permute([self.form.legs.index(index) for index in order])
        sizes = self.form.sizes
        return permuted.reshape(*self.form.shape(group), volume(sizes, out), volume(sizes, legs)), order

    def _as_tensor(self, matrix: Tensor, order: Indices) -> Tensor:
        tensor = matrix.reshape(self.form.shape(order))
        return tensor.permute([order.index(index) for index in self.form.legs])

    @cached_property
    def total(self) -> float:
        """The squared norm of the target in the metric."""
        return float((self.weighted * self.target).sum())

    @cached_property
    def _dense(self) -> Contraction:
        return self.form.dense()

    def residual(self, values: Values) -> Tensor:
        """Return the target minus the sum of products."""
        return self.target - self._dense(values)

    def square(self, residual: Tensor) -> float:
        """Return the squared norm of a residual in the metric."""
        return max(0.0, float((self.apply_metric(residual) * residual).sum()))

    def loss(self, values: Values) -> float:
        """Return the squared error in the metric."""
        return self.square(self.residual(values))

    def relative(self, square: float) -> float:
        """Return a squared error as the root of mean squares of the outputs, relative to them."""
        return float((square / (self.total or 1.0)) ** 0.5)

    def output_error(self, values: Values) -> float:
        """Return the error of the outputs relative to the outputs, a root of mean squares."""
        return self.relative(self.loss(values))


def regularise(moments: Tensor, floor: float) -> Tensor:
    """Return moments plus a multiple of the identity, so that no direction of the inputs counts nothing.

    Args:
        moments: `(*group, in, in)`.
        floor: that multiple, relative to the mean of the eigenvalues, or to 1 if inputs never vary.
    """
    symmetric = (moments + moments.mT) / 2
    mean = symmetric.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > torch.finfo(symmetric.dtype).tiny, mean, 1.0)
    eye = torch.eye(symmetric.shape[-1], dtype=symmetric.dtype, device=symmetric.device)
    return symmetric + floor * mean[..., None, None] * eye


def balance(form: Multilinear, values: Mapping[str, Tensor]) -> Values:
    """Return cores of equal norms, each but the last with a positive largest entry, that make the same tensor.

    Training afterwards depends on the norms. Cores that stand in some products only, or several times, stay as they
    are.
    """
    names = [name for name in form.cores if len(form.factors_of(name)) == 1] if len(form.products) == 1 else []
    values = dict(values)
    norms = {name: float(values[name].norm()) for name in names}
    if len(names) < 2 or min(norms.values()) == 0.0:
        return values
    mean = float(torch.tensor([norms[name] for name in names], dtype=torch.float64).log().mean().exp())
    sign = 1.0
    for name in names:
        largest = values[name].flatten()[values[name].abs().argmax()]
        flipped = -1.0 if name != names[-1] and largest < 0 else 1.0
        sign *= flipped
        values[name] = values[name] * (flipped * mean / norms[name])
    values[names[-1]] = values[names[-1]] * sign
    return values
