"""The initial entries of params, chosen so that training works from scratch whatever the topology.

The params of one linear map without an initialisation of their own are drawn with one standard deviation σ such that
an entry of the dense tensor they stand for has the variance ``torch.nn.Linear`` and ``Conv2d`` give theirs,
1/(3·fan_in): the entry is a sum over bonds of products, of variance scale²·∏σ²·∏bonds. The other factors that are not
data (params with an initialisation of their own, consts, buffers) count with the mean square of their entries. The
cores are assumed to be independent: a core that is read twice varies a little more, by the entries that are read at
once.

Source: LeCun et al. (1998), Efficient BackProp, for the scale; the bond factor is the variance of a sum of
independent products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from tngraph.language.legs import legs_size
from tngraph.language.network import Access, Core, Equation, Index, Network
from tngraph.language.rewrites import drop_unused, merge_chains
from tngraph.language.sizes import product
from tngraph.search.cleaning import clean_term

SMALLEST_SCALE = 1e-30
"""A term scaled by less than this is as good as absent, and its params are drawn as if it were not scaled."""


@dataclass(frozen=True, slots=True)
class Spread:
    """σ = ``factor``^(-1/(2·``count``)): the params drawn with it share out a variance of 1/``factor``."""

    factor: sympy.Expr
    count: int


def default_spreads(network: Network) -> dict[str, Spread]:
    """Return the spread of every param that names no initialisation, by name.

    A param that several equations read takes the spread of the first.
    """
    merged = merge_chains(drop_unused(network))
    cores = {core.name: core for core in network.cores}
    spreads: dict[str, Spread] = {}
    for equation in merged.equations:
        for name, spread in _equation_spreads(equation, merged, cores):
            spreads.setdefault(name, spread)
    unused = [core for core in network.cores if core.role == "param" and core.init is None]
    return spreads | {c.name: Spread(sympy.Integer(3), 1) for c in unused if c.name not in spreads}


def _equation_spreads(equation: Equation, network: Network, cores: Mapping[str, Core]) -> Iterable[tuple[str, Spread]]:
    """Yield the spread of the params of each term.

    A term without data (a bias) takes the largest fan-in of the other terms.
    """
    sources = network.sources()
    regions = [clean_term(term, equation.legs, sources)[0] for term in equation.terms]
    largest: sympy.Expr = sympy.Integer(1)
    for region in regions:
        largest = sympy.Max(largest, _fan_in(region.accesses, region.legs, cores))
    for term, region in zip(equation.terms, regions, strict=True):
        weights, data = _split(region.accesses, cores)
        fan_in = _fan_in(region.accesses, region.legs, cores) if data else largest
        bonds = _summed_size(set(_indices(weights)) - set(_indices(data)), region.legs)
        moments = [_moment(cores[access.source]) for access in weights]
        fixed = product(moment for moment in moments if moment is not None)
        for access in weights:
            if _is_drawn(cores[access.source]):
                scale = sympy.Rational(term.scale) if abs(term.scale) > SMALLEST_SCALE else 1
                yield access.source, Spread(3 * fan_in * bonds * fixed * scale**2, moments.count(None))


def _split(accesses: Iterable[Access], cores: Mapping[str, Core]) -> tuple[list[Access], list[Access]]:
    """Return the accesses of the weight, and those of the data that it is applied to."""
    factors = list(accesses)
    weights = [access for access in factors if access.source in cores and cores[access.source].role != "input"]
    return weights, [access for access in factors if access not in weights]


def _is_drawn(core: Core) -> bool:
    return core.role == "param" and core.init is None


def _indices(accesses: Iterable[Access]) -> Iterable[Index]:
    return (index for access in accesses for index in access.indices)


def _summed_size(indices: set[Index], legs: Iterable[Index]) -> sympy.Expr:
    """Return the product of the sizes of those indices that are summed, since the result has no leg for them."""
    summed = indices - set(legs)
    return product(index.size for index in sorted(summed, key=lambda index: index.name))


def _fan_in(accesses: tuple[Access, ...], legs: tuple[Index, ...], cores: Mapping[str, Core]) -> sympy.Expr:
    """Return how many entries of the data one output entry sums over with weights."""
    weights, data = _split(accesses, cores)
    return _summed_size(set(_indices(weights)) & set(_indices(data)), legs)


def _moment(core: Core) -> sympy.Expr | None:
    """Return the mean square of the entries of a core, or None if its entries are drawn with the spread.

    A param that starts at zero counts as drawn, since training moves it. A buffer that is filled later counts as ones.
    """
    if core.init is None or core.init.kind == "zeros":
        return None if core.role == "param" else sympy.Integer(1)
    if core.init.kind in _FILLED:
        return _FILLED[core.init.kind](core) / legs_size(core.legs)
    if core.fan_in is not None:
        return 1 / core.fan_in
    numbers = [sympy.Rational(str(number)) for number in core.init.args]
    return _MOMENTS[core.init.kind](1 / sympy.Max(*matrix_sizes(core)), numbers) or sympy.Integer(1)


_FILLED: Mapping[str, Callable[[Core], sympy.Expr]] = {
    "basis": lambda core: sympy.Integer(1),
    "delta": lambda core: core.legs[0].size,
}
"""Returns how many entries of a const are ones."""

_MOMENTS: Mapping[str, Callable[[sympy.Expr, Sequence[sympy.Expr]], sympy.Expr]] = {
    "ones": lambda diagonal, numbers: sympy.Integer(1),
    "normal": lambda diagonal, numbers: numbers[0] ** 2,
    "uniform": lambda diagonal, numbers: (numbers[0] ** 2 + numbers[0] * numbers[1] + numbers[1] ** 2) / 3,
    "signs": lambda diagonal, numbers: numbers[0] ** 2,
    "orthogonal": lambda diagonal, numbers: diagonal * sympy.prod(numbers) ** 2,
    "eye": lambda diagonal, numbers: diagonal * sympy.prod(numbers) ** 2,
    "near_eye": lambda diagonal, numbers: diagonal + numbers[0] ** 2,
}
"""Returns the mean square of an initialisation, from that of a diagonal of ones and from its numbers."""


def matrix_sizes(core: Core) -> tuple[sympy.Expr, sympy.Expr]:
    """Return the rows and columns of a core as a matrix: the first half of its legs, and the others."""
    half = len(core.legs) // 2
    return product(leg.size for leg in core.legs[:half]), product(leg.size for leg in core.legs[half:])
