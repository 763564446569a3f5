"""The numbers of all sizes of a network: given, by default, or derived from other sizes."""

from __future__ import annotations

from collections.abc import Mapping

from tngraph.language.binding import check_size, compile_time_sizes, unknown_size
from tngraph.language.network import Network
from tngraph.language.sizes import LARGEST, evaluate_size

DEFAULT_RUNTIME_SIZE = 64
"""The value of a run-time size without a number, for showing counts."""


def number_sizes(network: Network, values: Mapping[str, int]) -> dict[str, int]:
    """Return an integer for every size: given, by default, or derived; run-time sizes default to 64."""
    runtime = network.runtime_sizes()
    names = [size.name for size in network.sizes]
    for name, value in values.items():
        if name not in names:
            raise unknown_size(network, name, names)
        if name in runtime:
            check_size(name, value)
    numbers = compile_time_sizes(network, {n: v for n, v in values.items() if n not in runtime})
    numbers.update({name: int(values.get(name, DEFAULT_RUNTIME_SIZE)) for name in runtime})
    for size in network.sizes:
        if size.name not in numbers and size.value is not None:
            numbers[size.name] = evaluate_size(size.value, numbers, LARGEST)
    return {name: numbers[name] for name in names}


def given_sizes(network: Network, numbers: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers to give to `number_sizes` so that it returns these: all except those it would derive."""
    return {
        size.name: numbers[size.name]
        for size in network.sizes
        if size.value is None or evaluate_size(size.value, numbers) != numbers[size.name]
    }
