"""The sizes at which the formulas of a plan's memory are found, and the cases in which an index has one entry.

Which calls are views depends on which sizes are 1, so memory is traced at numbers, and every storage has a formula. At
`generic_sizes`, where no size is 1 and none equals another by chance, the formulas hold for all such sizes. If some
sizes are *fixed* at numbers at which an index has one entry, they hold for all other values of the other sizes.
`find_cases` lists such sets of fixed sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, islice, permutations
from itertools import product as cartesian

import sympy

from tngraph.errors import SizeError
from tngraph.language.network import Network
from tngraph.language.sizes import evaluate_size
from tngraph.search.region import Tile

FIRST_PRIME = 5
"""The number of the smallest prime used: 11, which is larger than usual literal steps and windows."""
APART = 40
"""The distance of two sizes in the list of primes, so that one slides over the next however it is padded."""
MOST_ORDERED = 4
"""The most sizes that are tried in every order, to find an order where windows fit what they slide over."""


MOST_SPECIAL = 8
"""The largest size that is tried to find where an index has one entry, as a window with one position."""
MOST_CASES = 64
"""The most cases of sizes that get formulas of their own: those in which the fewest sizes are fixed."""


def generic_sizes(
    network: Network, numbers: Mapping[str, int], tiles: Iterable[Tile] = (), fixed: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return numbers for all sizes at which no index has size 1 and none equals another by chance, except fixed ones.

    Args:
        network: the network.
        numbers: the numbers to return if there are no generic ones, as for a window that never slides.
        tiles: tiles whose indices get several tiles, the last one not full if possible.
        fixed: the numbers of some sizes.
    """
    return _find_generic(network, tiles, fixed or {}) or {**numbers, **(fixed or {})}


def _find_generic(network: Network, tiles: Iterable[Tile], fixed: Mapping[str, int]) -> dict[str, int] | None:
    cut = {str(tile.index.size): tile.size for tile in tiles if tile.is_runtime}
    free = [name for name in _free_sizes(network) if name not in fixed]
    orders = (list(dict.fromkeys([*order, *free])) for order in (free, *permutations(free[:MOST_ORDERED])))
    numbered = (_number(network, order, cut, fixed) for order in orders)
    return next((candidate for candidate in numbered if candidate is not None), None)


def _free_sizes(network: Network) -> list[str]:
    """Return the sizes that may have any number.

    Run-time sizes come last, and so get the largest numbers, since windows slide over them.
    """
    settable = network.settable_sizes()
    return list(dict.fromkeys(s.name for s in (*settable, *network.sizes) if s.value is None or s in settable))


def _number(
    network: Network, order: Sequence[str], cut: Mapping[str, int], fixed: Mapping[str, int]
) -> dict[str, int] | None:
    """Return primes for sizes in this order, and the numbers derived from them; None if an index has only one entry.

    With fixed sizes an index may have one entry.
    """
    numbers = {name: int(sympy.prime(FIRST_PRIME + APART * k)) for k, name in enumerate(order)}
    numbers.update(
        {name: int(sympy.nextprime(3 * size + numbers[name])) for name, size in cut.items() if name in numbers}
    )
    numbers.update(fixed)
    try:
        for size in network.sizes:
            if size.name not in numbers and size.value is not None:
                numbers[size.name] = evaluate_size(size.value, numbers)
        sizes = [(size, evaluate_size(size, numbers)) for size in _index_sizes(network)]
    except SizeError:
        return None
    is_generic = all(size == 1 or number > (0 if fixed else 1) for size, number in sizes)
    return {size.name: numbers[size.name] for size in network.sizes} if is_generic else None


def _index_sizes(network: Network) -> Iterable[sympy.Expr]:
    """Return the sizes of all indices, each once."""
    return dict.fromkeys(index.size for index in network.indices())


def find_cases(network: Network) -> list[dict[str, int]]:
    """Return the sets of sizes to fix, which together show every index that may have one entry with one entry.

    The empty set comes first. A size is fixed at 1, and at other numbers up to `MOST_SPECIAL` that give some index one
    entry.
    """
    names, special = _free_sizes(network), range(1, MOST_SPECIAL + 1)
    numbers_of = {name: [n for n in special if _is_case(network, {name: n})] for name in names}
    cases = (
        dict(zip(chosen, values, strict=True))
        for count in range(len(names) + 1)
        for chosen in combinations(names, count)
        for values in cartesian(*(numbers_of[name] for name in chosen))
    )
    return [case for case in islice(cases, MOST_CASES) if not case or _is_case(network, case)]


def case_at(network: Network, numbers: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes that give an index one entry at these numbers of all sizes, each with its number."""
    single = [size for size in _index_sizes(network) if evaluate_size(size, numbers) == 1]
    names, free = {symbol.name for size in single for symbol in size.free_symbols}, _free_sizes(network)
    for size in reversed(network.sizes):
        if size.name in names and size.name not in free and size.value is not None:
            names.update(symbol.name for symbol in size.value.free_symbols)
    return {name: numbers[name] for name in free if name in names}


def _is_case(network: Network, fixed: Mapping[str, int]) -> bool:
    """Return whether every index has an entry with some sizes fixed, and each fixed size gives some index only one."""
    numbers = _find_generic(network, (), fixed)
    return numbers is not None and case_at(network, numbers) == {**fixed}
