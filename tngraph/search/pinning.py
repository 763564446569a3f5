"""Orders pinned by hand, converted from nested names to pairs of a region's accesses.

An order is text, as ``((x w1) (w2 w3))``, or nested sequences of names. A ``+`` separates the orders of two terms.
Text comes from outside, so its length and nesting are bounded, and nothing here recurses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from textwrap import shorten

from tngraph.errors import PlanError
from tngraph.language.limits import FACTORS
from tngraph.language.network import LONGEST_NAME
from tngraph.search.region import Region

LONGEST_ORDER = 2**20
"""The longest text of an order [characters]."""
DEEPEST_ORDER = 1000
"""The deepest nesting of an order."""
MOST_WORDS = 5 * FACTORS
"""The most names and signs of an order."""

Nested = str | Sequence["Nested"]
"""The text of an order, or nested groups of names."""

_WORD = re.compile(r"([()+])|([^\s()+]+)")
_END = object()
_HINT = "an order is names in parentheses, as ((x w1) (w2 w3))"


@dataclass(frozen=True, slots=True)
class Pin:
    """An order by name. Value k is the k-th name, and pair k gives value ``len(names) + k``; the last is the whole."""

    names: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


def read_orders(
    order: Nested | Mapping[str, Nested] | None, equations: Mapping[str, bool]
) -> dict[str, tuple[Pin, ...]]:
    """Return the orders by equation.

    Args:
        order: the order of the only equation, or orders of some equations by name.
        equations: every equation of the network, with whether it is still one after linear chains were merged.

    Raises:
        PlanError: an order is not well formed, or is for an equation that does not exist.
    """
    present = [name for name, is_present in equations.items() if is_present]
    if order is None:
        return {}
    if isinstance(order, Mapping):
        for name in order:
            if name not in present:
                raise PlanError(_missing_equation(name, equations, present))
        return {name: read_order(nested) for name, nested in order.items()}
    if len(present) != 1:
        raise PlanError(f"an order for which equation?\n  give it by name, there are: {_listed(present)}")
    return {present[0]: read_order(order)}


def _missing_equation(name: object, equations: Mapping[str, bool], present: Sequence[str]) -> str:
    hint = f"an order is for one of: {_listed(present)}"
    if name in equations:
        return f"{name!r} is not an equation any more: linear chains are merged and unused equations dropped\n  {hint}"
    return f"there is no equation {_shown(name)} to order{_nearest(name, present)}\n  {hint}"


def read_order(order: Nested) -> tuple[Pin, ...]:
    """Return the orders between the ``+`` signs of a text. A group of several values is joined from left to right.

    Raises:
        PlanError: parentheses do not match, a group is empty, something is not a name, or the order is too long or
            too deep.
    """
    pins: list[Pin] = []
    reader = _PinReader()
    for k, word in enumerate(_words(order)):
        if k >= MOST_WORDS:
            raise PlanError(f"an order has more than {MOST_WORDS:,} names and signs")
        if word == "+":
            pins.append(reader.finish())
            reader = _PinReader()
        else:
            reader.take(word)
    return (*pins, reader.finish())


class _PinReader:
    """A tree while it is read. Pair k has the number -1 - k until all names are counted."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.pairs: list[tuple[int, int]] = []
        self.groups: list[list[int]] = [[]]

    def take(self, word: str) -> None:
        """Read one name or parenthesis."""
        if word == "(":
            if len(self.groups) > DEEPEST_ORDER:
                raise PlanError(f"an order is nested more than {DEEPEST_ORDER:,} deep")
            self.groups.append([])
        elif word == ")":
            if len(self.groups) == 1:
                raise PlanError(f"an order closes a parenthesis that is not open\n  {_HINT}")
            value = self._join_group()
            self.groups[-1].append(value)
        else:
            self.groups[-1].append(len(self.names))
            self.names.append(word)

    def _join_group(self) -> int:
        group = self.groups.pop()
        if not group:
            raise PlanError(f"an order has an empty group\n  {_HINT}")
        value = group[0]
        for other in group[1:]:
            self.pairs.append((value, other))
            value = -len(self.pairs)
        return value

    def finish(self) -> Pin:
        """Return the whole order, once every parenthesis is closed."""
        if len(self.groups) > 1:
            raise PlanError(f"an order leaves a parenthesis open\n  {_HINT}")
        self._join_group()
        count = len(self.names)
        numbered = ((a if a >= 0 else count - 1 - a, b if b >= 0 else count - 1 - b) for a, b in self.pairs)
        return Pin(tuple(self.names), tuple(numbered))


def _words(order: Nested) -> Iterator[str]:
    """Yield the names and signs of an order, from left to right."""
    if isinstance(order, str):
        if len(order) > LONGEST_ORDER:
            raise PlanError(f"an order is longer than {LONGEST_ORDER:,} characters")
        yield from (match[0] for match in _WORD.finditer(order))
        return
    ahead = [_items(order)]
    while ahead:
        item = next(ahead[-1], _END)
        if item is _END:
            ahead.pop()
            if ahead:
                yield ")"
        elif isinstance(item, str):
            if (item != "+" and _WORD.fullmatch(item) is None) or item in "()":
                raise PlanError(f"{_shown(item)} is not a name\n  in nested groups every name is a string of its own")
            yield item
        else:
            yield "("
            ahead.append(_items(item))


def _items(group: object) -> Iterator[object]:
    if not isinstance(group, list | tuple):
        raise PlanError(f"an order is made of names, and not of {_shown(group)}\n  {_HINT}")
    return iter(group)


def match_pins(pins: Sequence[Pin], equation: str, regions: Sequence[Region]) -> dict[int, tuple[Pin, tuple[int, ...]]]:
    """Return the pinned terms of an equation, each with its order and the access that each name stands for.

    An order pins every term that has exactly its names. If there is none, it pins the one term that contains them.

    Args:
        pins: the orders.
        equation: the name of the equation.
        regions: its terms.

    Raises:
        PlanError: an order fits none of the terms, or two orders fit one term.
    """
    matched: dict[int, tuple[Pin, tuple[int, ...]]] = {}
    for pin in pins:
        for k, positions in _match_pin(pin, equation, regions).items():
            if k in matched:
                raise PlanError(f"two orders of {equation!r} are for one term: {_listed(_sources(regions[k]), ' ')}")
            matched[k] = pin, positions
    return matched


def _match_pin(pin: Pin, equation: str, regions: Sequence[Region]) -> dict[int, tuple[int, ...]]:
    candidates = {k: where for k, region in enumerate(regions) if (where := _positions(pin, region)) is not None}
    whole = {k: where for k, where in candidates.items() if len(where) == len(regions[k].accesses)}
    if whole:
        return whole
    if len(candidates) == 1 and pin.pairs:
        return candidates
    terms = _listed([" ".join(_sources(region)) for region in regions], "; ")
    reason = _mismatch(pin, [_sources(region) for region in regions], len(candidates))
    raise PlanError(f"the order of {equation!r} {reason}\n  what its terms contract: {terms}")


def _sources(region: Region) -> list[str]:
    return [access.source for access in region.accesses]


def _positions(pin: Pin, region: Region) -> tuple[int, ...] | None:
    """Return the access of each name, equal names from left to right, or None if a name is missing."""
    places: dict[str, list[int]] = {}
    for k, source in reversed(list(enumerate(_sources(region)))):
        places.setdefault(source, []).append(k)
    if any(count > len(places.get(name, ())) for name, count in Counter(pin.names).items()):
        return None
    return tuple(places[name].pop() for name in pin.names)


def _mismatch(pin: Pin, terms: Sequence[Sequence[str]], fitting: int) -> str:
    """Return why an order fits none of some terms, as the end of a sentence."""
    most: Counter[str] = Counter()
    for names in terms:
        most |= Counter(names)
    for name, count in Counter(pin.names).items():
        if name not in most:
            return f"names {_shown(name)}, which is not a tensor of its terms{_nearest(name, list(most))}"
        if count > most[name]:
            return f"names {_shown(name)} more often than any of its terms has it"
    if not fitting:
        return "has names of several terms"
    return f"names a part of {fitting} terms, not all of one" if pin.pairs else "joins nothing"


def _nearest(name: object, names: Sequence[str]) -> str:
    near = get_close_matches(str(name)[:LONGEST_NAME], names, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _shown(value: object) -> str:
    return shorten(repr(value), LONGEST_NAME, placeholder=" …")


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    return shorten(separator.join(names), 1000, placeholder=" …")
