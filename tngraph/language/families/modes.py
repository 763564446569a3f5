"""Choice of modes: a number of features as a product of small, balanced factors.

The product is exact if its largest mode is at most 16, or at most 4 times as large as in a perfect balance. Otherwise
the features are padded to the next number for which that holds. So for a family that takes any modes, padding happens
only if a large prime leaves no choice. Families of binary legs pad to the next power of 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import ceil, log2, prod

from sympy import divisors

from tngraph.errors import SizeError

LARGE_MODE = 16
"""Modes up to this are never a reason to pad."""
SLACK = 4
"""A mode may be this many times larger than in a perfect balance before features are padded."""


def factorise(features: int, count: int) -> tuple[int, ...]:
    """Return a number as the most balanced product of ``count`` factors, in descending order, filled up with 1.

    The largest factor is as small as possible, then the next one, and so on.

    Raises:
        SizeError: a number is not positive.

    Example:
        >>> factorise(784, 4), factorise(10, 4), factorise(13, 2)
        ((7, 7, 4, 4), (5, 2, 1, 1), (13, 1))
    """
    if features < 1 or count < 1:
        raise SizeError(f"{features} features have no {count} modes\n  both are at least 1")
    return _balanced(features, count, features)


@lru_cache(maxsize=4096)
def _balanced(features: int, count: int, most: int) -> tuple[int, ...]:
    """Return the most balanced product of `count` factors up to ``most``, or () if there is none."""
    if count == 1:
        return (features,) if features <= most else ()
    for divisor in _divisors(features):
        if divisor <= most and divisor**count >= features:
            rest = _balanced(features // divisor, count - 1, divisor)
            if rest:
                return (divisor, *rest)
    return ()


@lru_cache(maxsize=4096)
def _divisors(integer: int) -> tuple[int, ...]:
    return tuple(divisors(integer))


def choose_modes(features: int, count: int) -> tuple[int, ...]:
    """Return modes for a number of features, whose product is that number or, by this module's rule, the next.

    Raises:
        SizeError: a number is not positive.

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
    """Return as many 2s as it takes to reach a number of features, or (1,) for one feature.

    Example:
        >>> binary_modes(10)
        (2, 2, 2, 2)
    """
    return (2,) * ceil(log2(features)) if features > 1 else (1,)


def equal_modes(features: int, count: int) -> tuple[int, ...]:
    """Return the smallest modes of one size whose product reaches a number of features.

    Example:
        >>> equal_modes(784, 2), equal_modes(10, 3)
        ((28, 28), (3, 3, 3))
    """
    return (next(mode for mode in range(1, features + 1) if mode**count >= features),) * count


def split_modes(features: int, exponents: Sequence[float]) -> tuple[int, ...]:
    """Return the exact product nearest to features**θ per mode: the modes of the einsum family for its exponents.

    Args:
        features: the product of the modes.
        exponents: one per mode, with sum 1.

    Raises:
        SizeError: a number is not positive, or the exponents do not add up to 1.

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
    """Yield every ordered product of `count` factors."""
    if count == 1:
        yield (features,)
        return
    for divisor in _divisors(features):
        for rest in _products(features // divisor, count - 1):
            yield (divisor, *rest)
