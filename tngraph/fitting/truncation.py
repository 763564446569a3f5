"""Truncation: the cores of a network without loops by one singular value decomposition per bond, leaves first.

On a chain this is the TT-SVD, on a star the sequentially truncated HOSVD, on a tree the hierarchical SVD, on two cores
the SVD itself and, where each core has legs of rows and columns, Van Loan's nearest sum of Kronecker products. A leg of
the result that several cores have (as in BTT and Monarch) makes every decomposition block by block.

In a metric each side of a cut is scaled by the root of the moments of its own legs. That is exact where all legs of
the metric stand on one side, as in a low-rank weight or a Tucker-2 one, and a start for alternating least squares
otherwise.

Source: Oseledets (2011) for TT-SVD, Vannieuwenhoven et al. (2012) for the sequential truncation, Grasedyck (2010) for
trees, Van Loan and Pitsianis (1993) for Kronecker products; Wang et al., arXiv 2403.07378, for the scaling of low rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tngraph.fitting.multilinear import Indices, Multilinear, volume
from tngraph.fitting.problem import FitProblem, Values, regularise

FLOOR = 1e-10
"""What is added to the moments before their root is inverted, relative to the mean eigenvalue."""


@dataclass(frozen=True)
class Branch:
    """A core with the bond to the core that is decomposed after it.

    Attributes:
        name: the core.
        legs: its indices, in storage order.
        bond: the indices that it shares with later cores and that are summed; none at the root.
    """

    name: str
    legs: Indices
    bond: Indices


def find_branches(form: Multilinear) -> tuple[Branch, ...] | None:
    """Return the cores of a network without loops, leaves first, or None for another network.

    Such a network is one product in which each core stands once, and every summed index on two cores at most.
    """
    if len(form.products) != 1 or form.fixed.keys() & {f.source for f in form.products[0].factors}:
        return None
    factors = form.products[0].factors
    names = [factor.source for factor in factors]
    if len(set(names)) < len(names) or any(len(set(f.indices)) < len(f.indices) for f in factors):
        return None
    legs = {factor.source: factor.indices for factor in factors}
    summed = frozenset(index for factor in factors for index in factor.indices).difference(form.legs)
    if any(sum(index in f.indices for f in factors) != 2 for index in summed):
        return None
    return _peel(names, legs, summed)


def _peel(names: Sequence[str], legs: Mapping[str, Indices], summed: frozenset[int]) -> tuple[Branch, ...] | None:
    """Return the cores in an order in which each has a bond to at most one later core, or None.

    Of several ends the first one with a leg of the result is split off, so that a chain is decomposed from its first
    core to its last one, and a Tucker weight down to its central core.
    """
    remaining, branches = list(names), []
    while len(remaining) > 1:
        bonds = {name: _bond(name, remaining, legs, summed) for name in remaining}
        ends = [name for name in remaining if bonds[name] is not None]
        if not ends:
            return None
        end = next((name for name in ends if not summed.issuperset(legs[name])), ends[0])
        branches.append(Branch(end, legs[end], tuple(i for i in legs[end] if i in (bonds[end] or ()))))
        remaining.remove(end)
    return (*branches, Branch(remaining[0], legs[remaining[0]], ()))


def _bond(
    name: str, remaining: Sequence[str], legs: Mapping[str, Indices], summed: frozenset[int]
) -> frozenset[int] | None:
    """Return the indices that a core shares with one other core, or None if it shares some with several."""
    bonds = [summed.intersection(legs[name], legs[other]) for other in remaining if other != name]
    shared = [bond for bond in bonds if bond]
    return None if len(shared) > 1 else shared[0] if shared else frozenset()


@dataclass(frozen=True)
class Truncation:
    """The cores of a truncated tensor.

    Attributes:
        values: the cores.
        bound: a bound from below of the squared error of every network with these bonds, in the metric; 0 where the
            metric does not let it be known.
    """

    values: Values
    bound: float


def truncate(problem: FitProblem, branches: Sequence[Branch]) -> Truncation:
    """Return the cores of a network without loops by decompositions from the leaves to the root.

    Args:
        problem: the tensor and the metric.
        branches: the cores, leaves first, see `find_branches`.
    """
    splitter = _Splitter(problem)
    values: Values = {}
    bound = 0.0
    for number, branch in enumerate(branches[:-1]):
        later = {index for other in branches[number + 1 :] for index in other.legs}
        values[branch.name], tail = splitter.split(branch, later)
        bound = max(bound, tail) if splitter.is_exact and number == 0 else bound
    values[branches[-1].name] = splitter.rest(branches[-1])
    scale = problem.form.products[0].scale
    values[branches[-1].name] = values[branches[-1].name] / scale if scale else values[branches[-1].name]
    return Truncation(values, bound)


class _Splitter:
    """The rest of a tensor while cores are split off, and the moments of the legs that are left."""

    def __init__(self, problem: FitProblem) -> None:
        self.form, self.metric = problem.form, problem.metric
        self.tensor, self.legs = problem.target, problem.form.legs
        self.is_exact = True

    def split(self, branch: Branch, later: Iterable[int]) -> tuple[Tensor, float]:
        """Split a core off, and return it with the tail of the squared singular values that it drops."""
        form, bond = self.form, branch.bond
        own = tuple(leg for leg in branch.legs if leg not in bond)
        blocks = tuple(leg for leg in own if leg in set(later))
        left = self._metric_last(tuple(leg for leg in own if leg not in blocks))
        right = self._metric_last(tuple(leg for leg in self.legs if leg not in own))
        self.is_exact = self.is_exact and self._stands_on_one_side(blocks, left, right)
        sides = [_Side(self._moments(blocks, side), volume(form.sizes, side)) for side in (left, right)]
        matrix = self._permuted((*blocks, *left, *right)).reshape(volume(form.sizes, blocks), *(s.size for s in sides))
        u, s, vt = torch.linalg.svd(sides[1].scale(sides[0].scale(matrix.mT).mT), full_matrices=False)
        rank = volume(form.sizes, bond)
        tail = float(s[..., rank:].square().sum())
        u, rest = _fix_signs(u[..., :rank], s[..., :rank, None] * vt[..., :rank, :])
        u, rest = sides[0].unscale(u.mT).mT, sides[1].unscale(rest)
        missing = rank - u.shape[-1]
        if missing > 0:
            u = torch.nn.functional.pad(u, (0, missing))
            rest = torch.nn.functional.pad(rest, (0, 0, 0, missing))
        order = (*blocks, *left, *bond)
        core = u.reshape(form.shape(order)).permute([order.index(leg) for leg in branch.legs])
        self.legs = (*blocks, *bond, *right)
        self.tensor = rest.reshape(form.shape(self.legs))
        return core.contiguous(), tail

    def rest(self, branch: Branch) -> Tensor:
        """Return what is left, as the last core."""
        return self._permuted(branch.legs).contiguous()

    def _permuted(self, order: Sequence[int]) -> Tensor:
        return self.tensor.permute([self.legs.index(leg) for leg in order])

    def _stands_on_one_side(self, blocks: Indices, left: Indices, right: Indices) -> bool:
        """Return whether the scaling of the two sides is the metric itself."""
        if self.metric is None:
            return True
        legs = self.metric.legs
        sides = [any(leg in side for leg in legs) for side in (blocks, left, right)]
        return sides in ([False, True, False], [False, False, True], [False, False, False])

    def _metric_last(self, side: Indices) -> Indices:
        """Return the legs of one side of a cut with those of the metric at the end."""
        mixed = self.metric.legs if self.metric else ()
        return (*(leg for leg in side if leg not in mixed), *(leg for leg in side if leg in mixed))

    def _moments(self, blocks: Indices, side: Indices) -> Tensor | None:
        """Return the moments of the legs of one side, `(blocks, own, own)`, or None if the metric has none of them.

        Legs of the other side are traced out. Legs of the blocks take the same value on both sides of the moments.
        """
        metric = self.metric
        own = tuple(leg for leg in side if metric is not None and leg in metric.legs)
        if metric is None or not own:
            return None
        letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        first = {leg: next(letters) for leg in (*metric.group, *metric.legs)}
        second = {leg: next(letters) if leg in own else first[leg] for leg in metric.legs}
        known = [leg for leg in blocks if leg in first]
        given = "".join([*(first[leg] for leg in (*metric.group, *metric.legs)), *(second[leg] for leg in metric.legs)])
        wanted = "".join([*(first[leg] for leg in (*known, *own)), *(second[leg] for leg in own)])
        moments = metric.moments.reshape(self.form.shape((*metric.group, *metric.legs, *metric.legs)))
        count = volume(self.form.sizes, own)
        part = torch.einsum(f"{given}->{wanted}", moments)
        part = part.reshape(*(self.form.sizes[leg] if leg in known else 1 for leg in blocks), count, count)
        return part.expand(*self.form.shape(blocks), count, count).reshape(-1, count, count)


class _Side:
    """One side of a cut, whose last legs are those of the metric, and the root of their moments."""

    def __init__(self, moments: Tensor | None, size: int) -> None:
        self.size, self.root = size, None
        if moments is not None:
            shifted = regularise(moments, FLOOR)
            factor, fault = torch.linalg.cholesky_ex(shifted)
            self.root = _symmetric_root(shifted) if fault.any() else factor

    def scale(self, matrix: Tensor) -> Tensor:
        """Return a matrix `(blocks, rows, size)` times the root."""
        return matrix if self.root is None else self._grouped(matrix, lambda x, root: x @ root)

    def unscale(self, matrix: Tensor) -> Tensor:
        """Return a matrix `(blocks, rows, size)` times the inverse of the root."""
        if self.root is None:
            return matrix
        return self._grouped(matrix, lambda x, root: torch.linalg.solve(root, x, left=False))

    def _grouped(self, matrix: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        assert self.root is not None
        grouped = matrix.reshape(len(matrix), -1, self.root.shape[-1])
        return apply(grouped, self.root).reshape(matrix.shape)


def _symmetric_root(moments: Tensor) -> Tensor:
    """Return the symmetric root of moments that rounding has made indefinite."""
    values, vectors = torch.linalg.eigh(moments)
    least = FLOOR * values[..., -1:].clamp_min(torch.finfo(values.dtype).tiny)
    root: Tensor = vectors * torch.maximum(values, least).sqrt()[..., None, :] @ vectors.mT
    return root


def _fix_signs(u: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors with the largest entry of each left vector positive, so that a result is unique."""
    if u.shape[-2] == 0:
        return u, rest
    largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    return u * signs, rest * signs.mT
