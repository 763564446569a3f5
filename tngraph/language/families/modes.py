"""Choosing modes: a number of features as a product of small, balanced factors.

The rule: an exact product wherever its largest mode is at most 16, or 4 times what a perfect balance would have; else
the features are padded to the next number of which that holds. Nothing is padded for a family that takes any modes
unless a large prime leaves no choice; families of binary legs pad to the next power of 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import ceil, log2, prod

from sympy import divisors

from tngraph.errors import SizeError

LARGE_MODE = 16
"""A mode up to this is never a reason to pad."""
SLACK = 4
"""How many times larger than a perfect balance a mode may be before features are padded."""


def factorise(features: int, count: int) -> tuple[int, ...]:
    """A number as the most balanced product of ``count`` factors, in descending order; 1 fills up.

    The largest factor is as small as can be, then the next one, and so on.

    Raises:
        SizeError: numbers that are not positive.

    Example:
        >>> factorise(784, 4), factorise(10, 4), factorise(13, 2)
        ((7, 7, 4, 4), (5, 2, 1, 1), (13, 1))
    """
    if features < 1 or count < 1:
        raise SizeError(f"{features} features have no {count} modes\n  both are at least 1")
    return _balanced(features, count, features)


@lru_cache(maxsize=4096)
def _balanced(features: int, count: int, most: int) -> tuple[int, ...]:
    """The least product of so many factors up to ``most``, comparing from the largest; () if there is none."""
    if count == 1:
        return (features,) if features <= most else ()
    for divisor in _divisors(features):
        if divisor <= most and divisor**count >= features:
            rest = _balanced(features // divisor, count - 1, divisor)
            if rest:
                return (divisor, *rest)
    return ()


@lru_cache(maxsize=4096)
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(divisors(number))


def choose_modes(features: int, count: int) -> tuple[int, ...]:
    """Modes for a number of features, whose product is that number or, by the rule above, the next that fits.

    Raises:
        SizeError: numbers that are not positive.

    Example:
        >>> choose_modes(1000, 3), choose_modes(10, 3), choose_modes(1009, 3)
        ((10, 10, 10), (5, 2, 1), (23, 11, 4))
    """
    return next(modes for modes in _padded(features, count) if _is_balanced(modes))


def _padded(features: int, count: int) -> Iterator[tuple[int, ...]]:
    while True:
        yield factorise(features, count)
        features += 1


def _is_balanced(modes: tuple[int, ...]) -> bool:
    return modes[0] <= LARGE_MODE or modes[0] ** len(modes) <= SLACK ** len(modes) * prod(modes)


def binary_modes(features: int) -> tuple[int, ...]:
    """As many 2s as it takes to reach a number of features; (1,) for one.

    Example:
        >>> binary_modes(10)
        (2, 2, 2, 2)
    """
    return (2,) * ceil(log2(features)) if features > 1 else (1,)


def equal_modes(features: int, count: int) -> tuple[int, ...]:
    """The smallest modes of one size that reach a number of features.

    Example:
        >>> equal_modes(784, 2), equal_modes(10, 3)
        ((28, 28), (3, 3, 3))
    """
    return (next(mode for mode in range(1, features + 1) if mode**count >= features),) * count


def split_modes(features: int, exponents: Sequence[float]) -> tuple[int, ...]:
    """The exact product nearest to features**θ per mode: the sizes of the einsum family for its exponents.

    Args:
        features: what the modes multiply to.
        exponents: one per mode, of sum 1.

    Raises:
        SizeError: numbers that are not positive, or exponents that do not add up to 1.

    Source: Potapczynski et al., arXiv 2410.02117.

    Example:
        >>> split_modes(4096, (0.5, 0.25, 0.25)), split_modes(768, (0.0, 0.5, 0.5))
        ((64, 8, 8), (1, 24, 32))
    """
    if features < 1 or min(exponents, default=-1) < 0 or abs(sum(exponents) - 1) > 1e-6:
        raise SizeError(f"{features} features are not split by {tuple(exponents)}\n  exponents from 0 on add up to 1")
    wanted = [theta * log2(features) for theta in exponents]
    return min(
        _products(features, len(wanted)), key=lambda m: sum((log2(a) - b) ** 2 for a, b in zip(m, wanted, strict=True))
    )


def _products(features: int, count: int) -> Iterator[tuple[int, ...]]:
    """Every ordered product of so many factors."""
    if count == 1:
        yield (features,)
        return
    for divisor in _divisors(features):
        for rest in _products(features // divisor, count - 1):
            yield (divisor, *rest)
