"""The numbers of all sizes of a network: as given, by default, derived from others."""

from __future__ import annotations

from collections.abc import Mapping

from tngraph.language.binding import check_size, compile_time_sizes, unknown_size
from tngraph.language.network import Network
from tngraph.language.sizes import LARGEST, evaluate_size

DEFAULT_RUNTIME_SIZE = 64
"""Counts are shown at this value of a run-time size that nobody gave a number for."""


def number_sizes(network: Network, given: Mapping[str, int]) -> dict[str, int]:
    """An integer for every size: as given, by default, derived; run-time ones default to 64."""
    runtime = network.runtime_sizes()
    known = [size.name for size in network.sizes]
    for name, value in given.items():
        if name not in known:
            raise unknown_size(network, name, known)
        if name in runtime:
            check_size(name, value)
    numbers = compile_time_sizes(network, {n: v for n, v in given.items() if n not in runtime})
    numbers.update({name: int(given.get(name, DEFAULT_RUNTIME_SIZE)) for name in runtime})
    for size in network.sizes:
        if size.name not in numbers and size.value is not None:
            numbers[size.name] = evaluate_size(size.value, numbers, LARGEST)
    return {name: numbers[name] for name in known}


def given_sizes(network: Network, numbers: Mapping[str, int]) -> dict[str, int]:
    """What is to be given so that `number_sizes` has these numbers: all but what is derived as it says."""
    return {
        size.name: numbers[size.name]
        for size in network.sizes
        if size.value is None or evaluate_size(size.value, numbers) != numbers[size.name]
    }
