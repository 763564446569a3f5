"""How params start, so that training works from scratch whatever the topology.

The params of one linear map without an initialisation of their own are drawn with one standard deviation σ such that
an entry of the dense tensor they stand for has the variance ``torch.nn.Linear`` and ``Conv2d`` give theirs,
1/(3·fan_in): the entry is a sum over bonds of products, of variance scale²·∏σ²·∏bonds.

Source: LeCun et al. (1998), Efficient BackProp, for the scale; the bond factor is the variance of a sum of
independent products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from tngraph.language.network import Access, Core, Equation, Index, Network
from tngraph.language.sizes import product
from tngraph.planning.rewrites import clean_term, drop_unused, merge_chains

SMALLEST_SCALE = 1e-30
"""A term scaled by less than this is as good as absent, and its params are drawn as if it were not scaled."""


@dataclass(frozen=True, slots=True)
class Spread:
    """σ = ``factor``^(-1/(2·``count``)): the params drawn with it share out a variance of 1/``factor``."""

    factor: sympy.Expr
    count: int


def default_spreads(network: Network) -> dict[str, Spread]:
    """The spread of every param that names no initialisation, by name; a shared one takes its first use's."""
    merged = merge_chains(drop_unused(network))
    cores = {core.name: core for core in network.cores}
    spreads: dict[str, Spread] = {}
    for equation in merged.equations:
        for name, spread in _equation_spreads(equation, merged, cores):
            spreads.setdefault(name, spread)
    unused = [core for core in network.cores if core.role == "param" and core.init is None]
    return spreads | {c.name: Spread(sympy.Integer(3), 1) for c in unused if c.name not in spreads}


def _equation_spreads(equation: Equation, network: Network, cores: Mapping[str, Core]) -> Iterable[tuple[str, Spread]]:
    """Each term's params; a term without data (a bias) takes the fan-in of its neighbours."""
    sources = network.sources()
    regions = [clean_term(term, equation.legs, sources)[0] for term in equation.terms]
    shared: sympy.Expr = sympy.Integer(1)
    for region in regions:
        shared = sympy.Max(shared, _fan_in(region.accesses, region.legs, cores))
    for term, region in zip(equation.terms, regions, strict=True):
        params = [a for a in region.accesses if _is_param(a, cores)]
        has_data = len(params) < len(region.accesses)
        fan_in = _fan_in(region.accesses, region.legs, cores) if has_data else shared
        bonds = _sizes(
            set(_indices(params)) - set(_indices(a for a in region.accesses if a not in params)), region.legs
        )
        moments = [_moment(cores[access.source]) for access in params]
        known = product(moment for moment in moments if moment is not None)
        for access in params:
            if cores[access.source].init is None:
                scale = sympy.Rational(term.scale) if abs(term.scale) > SMALLEST_SCALE else 1
                yield access.source, Spread(3 * fan_in * bonds * known * scale**2, moments.count(None))


def _is_param(access: Access, cores: Mapping[str, Core]) -> bool:
    return access.source in cores and cores[access.source].role == "param"


def _indices(accesses: Iterable[Access]) -> Iterable[Index]:
    return (index for access in accesses for index in access.indices)


def _sizes(indices: set[Index], kept: Iterable[Index]) -> sympy.Expr:
    summed = indices - set(kept)
    return product(index.size for index in sorted(summed, key=lambda index: index.name))


def _fan_in(accesses: tuple[Access, ...], legs: tuple[Index, ...], cores: Mapping[str, Core]) -> sympy.Expr:
    """The entries of the data that one output entry sums over with weights."""
    params = [a for a in accesses if _is_param(a, cores)]
    data = [a for a in accesses if not _is_param(a, cores)]
    return _sizes(set(_indices(params)) & set(_indices(data)), legs)


def _moment(core: Core) -> sympy.Expr | None:
    """The second moment of an entry that is not drawn with the rest; None for one that is (zeros stand for one)."""
    if core.init is None or core.init.kind == "zeros":
        return None
    if core.fan_in is not None:
        return 1 / core.fan_in
    numbers = [sympy.Rational(str(number)) for number in core.init.args]
    return _MOMENTS[core.init.kind](1 / sympy.Max(*matrix_sizes(core)), numbers) or sympy.Integer(1)


_MOMENTS: Mapping[str, Callable[[sympy.Expr, Sequence[sympy.Expr]], sympy.Expr]] = {
    "ones": lambda diagonal, numbers: sympy.Integer(1),
    "normal": lambda diagonal, numbers: numbers[0] ** 2,
    "uniform": lambda diagonal, numbers: (numbers[0] ** 2 + numbers[0] * numbers[1] + numbers[1] ** 2) / 3,
    "signs": lambda diagonal, numbers: numbers[0] ** 2,
    "orthogonal": lambda diagonal, numbers: diagonal * sympy.prod(numbers) ** 2,
    "eye": lambda diagonal, numbers: diagonal * sympy.prod(numbers) ** 2,
    "near_eye": lambda diagonal, numbers: diagonal + numbers[0] ** 2,
}
"""The second moment of an initialisation, given that of a diagonal of ones, and its numbers."""


def matrix_sizes(core: Core) -> tuple[sympy.Expr, sympy.Expr]:
    """The sizes of a core as a matrix: the first half of its legs are the rows, the others the columns."""
    half = len(core.legs) // 2
    return product(leg.size for leg in core.legs[:half]), product(leg.size for leg in core.legs[half:])
