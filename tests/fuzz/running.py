"""One network of the fuzz after another: draw it, run it in some ways, and make what differs small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import tngraph as tg
from tests.fuzz.differences import Difference, find_difference, find_reference_difference, find_text_difference
from tests.fuzz.generator import random_network
from tests.fuzz.shrinking import shrink
from tests.fuzz.ways import Way, WayDrawer
from tngraph.language.network import Network

WAYS = 3
"""So many ways to run each network are tried."""

Check = Callable[[Network], Difference | None]


@dataclass(frozen=True)
class Finding:
    """A network that differs.

    Attributes:
        seed: of the network and its ways.
        network: the network, or a smaller one with the same difference.
        what: the way it is run in, or what else of it differs.
        difference: what differs.
    """

    seed: int
    network: Network
    what: str
    difference: Difference

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.difference}\n{self.what}\n{tg.format(self.network)}"


def ways_of(seed: int, network: Network) -> list[Way]:
    """The ways that the network of a seed is run in."""
    drawer = WayDrawer(network, Random(f"ways of {seed}"))
    return [drawer.draw() for _ in range(WAYS)]


def check_seed(seed: int) -> Iterator[Finding]:
    """What differs of the network of a seed, at most once for its text, its reference and each way."""
    network = random_network(seed)
    ways = ways_of(seed, network)
    yield from _check(seed, network, "its text", find_text_difference)
    yield from _check(seed, network, f"the reference, {ways[0]}", lambda n: find_reference_difference(n, ways[0]))
    for way in ways:
        yield from _check(seed, network, str(way), lambda n, way=way: find_difference(n, way))


def _check(seed: int, network: Network, what: str, check: Check) -> Iterator[Finding]:
    difference = check(network)
    if difference is None:
        return

    def differs(smaller: Network) -> bool:
        found = check(smaller)
        return found is not None and found.kind == difference.kind

    smallest = shrink(network, differs)
    yield Finding(seed, smallest, what, check(smallest) or difference)
