"""Search of modes: which factorisation of the features, in which order, loses least when a weight is truncated."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import log, prod
from typing import Any

import torch
from sympy import divisors
from torch import Tensor, nn

from tngraph.errors import NetworkError, RankWarning, SizeError
from tngraph.fitting.moments import Batches, Moments
from tngraph.fitting.multilinear import as_multilinear
from tngraph.fitting.problem import FitProblem, Metric, regularise
from tngraph.fitting.truncation import FLOOR, find_branches, truncate
from tngraph.language.families import Family, named_family
from tngraph.language.network import Network

Modes = tuple[tuple[int, ...], tuple[int, ...]]
"""The modes of the rows (inputs) and of the columns (outputs)."""
SITES = (2, 3, 4)
"""The numbers of sites that are tried."""
MOST_PAIRS = 40
"""The most pairs of factorisations that are tried for each number of sites, the most balanced ones."""


@dataclass(frozen=True)
class ModesCandidate:
    """Modes that were tried.

    Attributes:
        modes: of the rows and of the columns.
        error: the relative error of the outputs, or of the weight without inputs, after truncation.
        params: the params of the cores [elements].
        dense_params: the entries of the weight [elements].
    """

    modes: Modes
    error: float
    params: int
    dense_params: int


def search_modes(
    target: Tensor | nn.Module,
    inputs: Batches | Moments | None = None,
    family: str | Family = "mpo",
    *,
    sites: Iterable[int] = SITES,
    most_params: int | None = None,
    **options: Any,
) -> Modes:
    """Return the modes at which a weight is truncated with the least error.

    Args:
        target: the dense weight `(out, in / groups, *kernel)`, or a linear or convolutional layer.
        inputs: what enters it, as for `fit`; None for the identity.
        family: a family without loops and sums: truncation is all that is tried.
        sites: the numbers of modes on each side to try.
        most_params: leave out modes that need more params; when absent, those that need as many as the dense weight
            [elements].
        options: options of the family.

    Raises:
        NetworkError: no such family or option, or a family that is not fitted by truncation.
        SizeError: a target without a weight, or moments of other inputs.
    """
    candidates = rank_modes(target, inputs, family, sites=sites, **options)
    most = candidates[0].dense_params - 1 if most_params is None and candidates else most_params or 0
    fitting = [candidate for candidate in candidates if candidate.params <= most]
    if not fitting:
        least = min((candidate.params for candidate in candidates), default=0)
        raise SizeError(f"all modes need more than {most:,} params\n  the fewest are {least:,}: lower the ranks")
    return fitting[0].modes


def rank_modes(
    target: Tensor | nn.Module,
    inputs: Batches | Moments | None = None,
    family: str | Family = "mpo",
    *,
    sites: Iterable[int] = SITES,
    **options: Any,
) -> list[ModesCandidate]:
    """Return the modes that `search_modes` tries, those of least error first, then those of fewest params.

    Raises:
        NetworkError: no such family or option, or a family that is not fitted by truncation.
        SizeError: a target without a weight, or moments of other inputs.
    """
    weight = target if isinstance(target, Tensor) else getattr(target, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or getattr(target, "transposed", False):
        raise SizeError(f"the target is {target!r}\n  give a weight (out, in, *kernel), or a layer that has one")
    moments = inputs if inputs is None or isinstance(inputs, Moments) else Moments.of(inputs, _layer(target))
    groups = int(getattr(target, "groups", 1))
    is_centered = isinstance(getattr(target, "bias", None), Tensor)
    named = named_family(family)
    named.check_options(options)
    candidates = []
    for modes in _candidates(weight.shape[1], weight.shape[0] // groups, sites):
        network = _network(named, modes, tuple(weight.shape[2:]), groups, options)
        if network is not None:
            problem = _problem(network, weight, moments, groups, is_centered)
            candidates.append(_truncated(named, modes, problem))
    return sorted(candidates, key=lambda c: (c.error, c.params, c.modes))


def _layer(target: Tensor | nn.Module) -> nn.Module | None:
    return None if isinstance(target, Tensor) else target


def _network(family: Family, modes: Modes, kernel: tuple[int, ...], groups: int, options: Any) -> Network | None:
    """Return the network of a weight, or None if the ranks do not fit the modes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        try:
            return family.weight(*modes, kernel, groups=groups, **options)
        except NetworkError:
            return None


def _problem(network: Network, weight: Tensor, moments: Moments | None, groups: int, is_centered: bool) -> FitProblem:
    form = as_multilinear(network)
    if form is None or find_branches(form) is None:
        raise NetworkError(
            f"modes of {network.name} cannot be searched: its cores are not found by truncation",
            "families without loops, sums and functions are: mpo, plain_tt, tree, tucker, btt, …",
        )
    metric = None
    if moments is not None:
        second = moments.covariance if is_centered else moments.second
        if second.shape[-1] != prod(weight.shape[1:]):
            raise SizeError(
                f"the moments are of {second.shape[-1]} inputs, and the weight has {prod(weight.shape[1:])}"
            )
        columns = len(network.outputs[0].axes[0])
        group = form.legs[:1] if groups > 1 else ()
        shifted = regularise(second if groups > 1 else second[0], FLOOR)
        metric = Metric(shifted, group, form.legs[columns:])
    return FitProblem(form, weight.detach().double().reshape(form.shape(form.legs)), metric)


def _truncated(family: Family, modes: Modes, problem: FitProblem) -> ModesCandidate:
    """Return what truncation makes of a problem."""
    branches = find_branches(problem.form)
    assert branches is not None, f"{family.name} was found to have no loops"
    with torch.no_grad():
        values = truncate(problem, branches).values
    params = sum(prod(shape) for shape in problem.form.cores.values())
    return ModesCandidate(modes, problem.output_error(values), params, problem.target.numel())


def _candidates(rows: int, columns: int, sites: Iterable[int]) -> Iterator[Modes]:
    """Yield pairs of factorisations, for each number of sites the most balanced ones."""
    for count in sites:
        sides = [sorted(_factorisations(n, count), key=_imbalance)[:MOST_PAIRS] for n in (rows, columns)]
        pairs = [(left, right) for left in sides[0] for right in sides[1]]
        yield from sorted(pairs, key=lambda pair: _imbalance(pair[0])[0] + _imbalance(pair[1])[0])[:MOST_PAIRS]


@lru_cache(maxsize=4096)
def _factorisations(number: int, count: int) -> tuple[tuple[int, ...], ...]:
    """Return every way to write a number as an ordered product."""
    if count == 1:
        return ((number,),)
    return tuple((d, *rest) for d in divisors(number) for rest in _factorisations(number // d, count - 1))


def _imbalance(modes: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    """Return how far modes are from equal ones; modes themselves decide between equals."""
    mean = log(prod(modes)) / len(modes)
    return round(sum((log(mode) - mean) ** 2 for mode in modes), 9), modes
