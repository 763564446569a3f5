"""The low-rank weight of as many params, at its optimum: what every fit is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_EXACT = 2048
"""Of larger matrices only the singular values that are kept are computed, by randomised subspace iteration."""


@dataclass(frozen=True)
class LowRank:
    """The best weight of low rank in a metric.

    Attributes:
        rank: its rank, the largest with no more params than the fitted cores have; 0 if not even one fits.
        params: its params, rank · (out + in) [elements].
        error: its error of the outputs, relative to them.
    """

    rank: int
    params: int
    error: float


def best_low_rank(weight: Tensor, moments: Tensor | None, params: int) -> LowRank:
    """Return the low-rank weight of least error among those of at most so many params.

    Args:
        weight: `(groups, out, in)`, in float64.
        moments: `(groups, in, in)`, or None for the identity.
        params: the params that it may have [elements].

    Source: Eckart and Young (1936); in a metric Wang et al., arXiv 2403.07378.
    """
    groups, out, ins = weight.shape
    rank = min(params // (groups * (out + ins)), out, ins)
    gram = weight @ (weight if moments is None else weight @ moments).mT
    total = float(gram.diagonal(dim1=-2, dim2=-1).sum())
    if total <= 0.0:
        return LowRank(rank, rank * groups * (out + ins), 0.0)
    if out <= MOST_EXACT or rank > out // 4:
        squares = torch.linalg.eigvalsh(gram)
        dropped = float(squares[..., : out - rank].clamp_min(0).sum())
    else:
        dropped = total - _largest(gram, rank)
    return LowRank(rank, rank * groups * (out + ins), max(0.0, dropped / total) ** 0.5)


def _largest(gram: Tensor, rank: int) -> float:
    """Return the sum of the largest eigenvalues of positive semi-definite matrices, a little less than exact."""
    generator = torch.Generator(device=gram.device).manual_seed(0)
    start = torch.randn(*gram.shape[:-1], rank + 16, generator=generator, dtype=gram.dtype, device=gram.device)
    basis, _ = torch.linalg.qr(gram @ start)
    for _ in range(3):
        basis, _ = torch.linalg.qr(gram @ basis)
    squares = torch.linalg.eigvalsh(basis.mT @ gram @ basis)
    return float(squares[..., squares.shape[-1] - rank :].sum())
