"""The largest rank that a budget allows, found from exact counts of candidate networks."""

from __future__ import annotations

import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import floor, isfinite, prod
from numbers import Real
from typing import Any

from tngraph.compiler.pipeline import plan
from tngraph.errors import PlanError, RankWarning
from tngraph.language.families import named_family
from tngraph.language.families.family import Family, Modes
from tngraph.language.network import Network
from tngraph.language.sizes import LARGEST, as_integer
from tngraph.program.counts import param_count
from tngraph.search.orders import Search


@dataclass(frozen=True, slots=True)
class RankChoice:
    """The rank that a budget allows, with its params and FLOPs beside the request.

    Attributes:
        family: the word of the family.
        option: the name of the rank option.
        rank: the largest that fits. The next rank exceeds the budget or adds no params.
        params: the params of the weight at that rank [elements].
        dense: the entries of the dense weight it replaces [elements].
        flops: of one call, if the budget was in FLOPs [FLOPs].
        nominal: the requested params per dense entry, if the budget was a compression.
    """

    family: str
    option: str
    rank: int
    params: int
    dense: int
    flops: int | None = None
    nominal: float | None = None

    @property
    def actual(self) -> float:
        """Params per dense entry."""
        return self.params / self.dense

    def __str__(self) -> str:
        asked = "" if self.nominal is None else f"asked {self.nominal:.2%}, "
        flops = "" if self.flops is None else f", {self.flops:,} FLOPs"
        kept = f"{asked}kept {self.actual:.2%}"
        return f"{self.family}({self.option}={self.rank}): {self.params:,} params for {self.dense:,}: {kept}{flops}"


def choose_rank(
    family: str | Family,
    rows: Modes,
    columns: Modes,
    kernel: Modes = (),
    *,
    params: int | None = None,
    flops: int | None = None,
    compression: float | None = None,
    sizes: Mapping[str, int] | None = None,
    search: Search | None = None,
    **options: Any,
) -> RankChoice:
    """Return the largest rank of a family within a budget of params, of FLOPs of a call, or of params per dense entry.

    The rank to choose is the option called `rank` or else the family's first rank option, among those that the caller
    did not give. Every candidate is built as a network, in which ranks larger than useful are cut, and counted exactly.

    Args:
        family: as ``tg.families.mpo``, or its word.
        rows: the modes of the input features.
        columns: the modes of the output features.
        kernel: the sizes of the window; empty for a linear layer.
        params: the most learnable entries of the weight [elements].
        flops: the most that a call may cost, planned at `sizes` [FLOPs].
        compression: the most params per entry of the dense weight, as 0.05 for a twentieth.
        sizes: run-time sizes of the call, as ``{"batch": 32}``; 1 each when absent.
        search: seed and effort of the planning.
        options: options of the family, and those that every family takes.

    Raises:
        PlanError: not exactly one budget is given, the family has no rank to choose, or rank 1 exceeds the budget.
        NetworkError: the family does not accept these options or modes.
    """
    if sum(budget is not None for budget in (params, flops, compression)) != 1:
        raise PlanError("a rank is chosen for one budget\n  give one of params, flops and compression")
    family = named_family(family)
    option = _free_rank(family, options)

    @cache
    def make(rank: int) -> Network:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RankWarning)
            return family(rows, columns, kernel, **{**options, option: rank, "bias": False})

    def count_params(rank: int) -> int:
        return int(param_count(make(rank)))

    @cache
    def count_flops(rank: int) -> int:
        network = make(rank)
        return plan(network, dict.fromkeys(network.runtime_sizes(), 1) | dict(sizes or {}), search=search).at().flops

    dense = _volume(rows) * _volume(columns) * _volume(kernel) * int(options.get("groups", 1))
    count, most = (count_flops, flops) if flops is not None else (count_params, params)
    if most is None:
        most = _entries(0 if compression is None else compression, dense)
    rank = _largest(count, most, "FLOPs" if flops is not None else "params", family.name)
    spent = count_flops(rank) if flops is not None else None
    return RankChoice(family.name, option, rank, count_params(rank), dense, spent, compression)


def _free_rank(family: Family, options: Mapping[str, Any]) -> str:
    ranks = [option.name for option in family.options.values() if option.is_size and option.default is not None]
    free = [name for name in ranks if name not in options]
    if not free:
        reason = f"{' and '.join(ranks)} are given" if ranks else "it has none"
        raise PlanError(f"{family.name} has no rank to choose: {reason}\n  a budget is met by a rank")
    return "rank" if "rank" in free else free[0]


def _volume(modes: Modes) -> int:
    every = modes if isinstance(modes, Sequence) and not isinstance(modes, str) else (modes,)
    if not all(as_integer(mode) is not None for mode in every):
        raise PlanError(f"the modes {modes} are not all numbers\n  a budget is met at modes that are integers")
    return prod(int(mode) for mode in every)


def _entries(compression: float, dense: int) -> int:
    """Return the whole entries within a rate, read as the decimal that was written: 0.29 of 100 is 29, not 28.

    Raises:
        PlanError: the rate is not a finite number.
    """
    if isinstance(compression, bool) or not isinstance(compression, Real) or not isfinite(compression):
        raise PlanError(f"the compression is {compression!r}\n  give params per dense entry, as 0.05 for a twentieth")
    return floor(Fraction(str(compression)) * dense)


def _largest(count: Callable[[int], int], most: int, unit: str, family: str) -> int:
    """Return the largest rank whose count is within a budget, or the smallest beyond which larger ranks add nothing."""
    if count(1) > most:
        raise PlanError(
            f"{family} at rank 1 has {count(1):,} {unit}, and the budget is {most:,}\n"
            f"  allow {count(1):,}, or choose other modes"
        )
    high = 1
    while high < LARGEST and count(high) <= most and count(2 * high) != count(high):
        high *= 2
    ranks = range(1, high + 1)
    if count(high) > most:
        return bisect_right(ranks, most, key=count)
    return bisect_left(ranks, count(high), key=count) + 1
