"""What searches found, on disk, so that a region is searched once.

A file is named by all that a search depends on, up to names: how a region hangs together, the numbers of its sizes,
what a step costs, seed and effort, and the code that searches. It holds moves, which are made again when they are read
(see `replay`), so that no file makes a plan that its network does not allow. What goes wrong with a file or the folder
is never an error: then the region is searched.

``TNGRAPH_CACHE`` is the folder, or ``off``. Files appear in one move and are never changed, so that any number of
processes may share the folder and end at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec
import sympy
from platformdirs import user_cache_dir

from tngraph.files import read_bytes, write_whole
from tngraph.language.legs import bare_legs
from tngraph.language.network import Index, Leg
from tngraph.plans.schema import Positive
from tngraph.search.objectives import PerStep, Pricing
from tngraph.search.orders import Search
from tngraph.search.regimes import Interval
from tngraph.search.region import Region, Topology
from tngraph.search.replay import Move, find_moves, replay_moves

MOST_BYTES = 2**26
"""The folder is cut back to three quarters of this when it is seen to hold more [bytes]."""
LONGEST_ENTRY = 2**24
"""The longest file that is read [bytes]."""
_BLOCK = 4096
"""What the smallest file takes on a disk [bytes]."""
_OWN_FILE = re.compile(r"[0-9a-f]{64}\.json|\.tngraph-.*\.tmp")


def find_cached(
    topology: Topology, key: str | None, search_intervals: Callable[[], Sequence[Interval]]
) -> Sequence[Interval]:
    """What was found for a region under a key before, or else what is found now.

    Args:
        topology: the region by number, at any sizes.
        key: see `cache_key`.
        search_intervals: the search.
    """
    folder = cache_folder()
    if key is None or folder is None:
        return search_intervals()
    place = folder / f"{key}.json"
    known = _read_entry(place, topology)
    if known is not None:
        return known
    found = search_intervals()
    if not any(interval.tree.sliced for interval in found):
        write_entry(place, _format_entry(topology, found))
    return found


def cache_key(
    region: Region, pricing: Pricing, search: Search, show_size: Callable[[sympy.Expr], object], points: int = 1
) -> str | None:
    """The name of all that a search depends on; None where a user's function is one of it.

    Args:
        region: what is contracted.
        pricing: what a step costs.
        search: seed and effort.
        show_size: a size as the search sees it: its number, or numbers, or its formula in a free size.
        points: how many numbers that are, which a region without sizes does not tell.
    """
    if isinstance(pricing.rate, PerStep):
        return None
    effort = repr(replace(search, progress=None, parallel=None))  # which change no plan
    parts = [code_version(), effort, repr(pricing), points, _describe(region, show_size)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _describe(region: Region, show_size: Callable[[sympy.Expr], object]) -> object:
    """A region up to the names in it: indices by number, in order of mention."""
    numbers: dict[Index, int] = {}
    shown: dict[sympy.Expr, object] = {}

    def size(expr: sympy.Expr) -> object:
        if expr not in shown:
            shown[expr] = show_size(expr)
        return shown[expr]

    def leg(each: Leg) -> object:
        if isinstance(each, Index):
            return numbers.setdefault(each, len(numbers))
        return size(each.leg.size), each.wrap, [(c, numbers.setdefault(i, len(numbers))) for c, i in each.terms]

    accesses = [[leg(each) for each in bare_legs(access)] for access in region.accesses]
    return accesses, [size(index.size) for index in numbers], sorted(numbers[i] for i in region.legs if i in numbers)


@lru_cache(maxsize=1)
def code_version() -> str:
    """The versions of what searches, whatever changed in it, of what is kept here, and of cotengra.

    A number that is raised by hand when the search changes would be forgotten once.
    """
    digest = hashlib.sha256(version("cotengra").encode())
    here = Path(__file__)
    for path in (*sorted((here.parents[1] / "search").glob("*.py")), here):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Where the files are; None where there shall be none."""
    chosen = os.environ.get("TNGRAPH_CACHE")
    if chosen == "off":
        return None
    return Path(chosen or _default_folder())


def named_folder(name: str) -> Path | None:
    """Where something else is kept than searches: in the folder that is chosen, or beside that of the searches."""
    folder = cache_folder()
    if folder is None:
        return None
    return (folder if os.environ.get("TNGRAPH_CACHE") else folder.parent) / name


@lru_cache(maxsize=1)
def _default_folder() -> str:
    return str(Path(user_cache_dir("tngraph", appauthor=False)) / "searches")


def _read_entry(place: Path, topology: Topology) -> tuple[Interval, ...] | None:
    """The intervals in a file; None where there is none, or a damaged one, which is removed."""
    with suppress(OSError):
        data = read_bytes(place, LONGEST_ENTRY)
        try:
            intervals = tuple(_parse_entry(data, topology))
        except (ValueError, RecursionError):
            place.unlink()
            return None
        os.utime(place)  # what was used last is removed last
        return intervals
    return None


class _CachedInterval(NamedTuple):
    """An interval as its file holds it."""

    low: Positive
    high: Positive | None
    is_proven: bool
    moves: tuple[Move, ...]


def _format_entry(topology: Topology, intervals: Sequence[Interval]) -> str:
    """Return the check sum of what follows, and the intervals."""
    rows = [_CachedInterval(low, high, tree.is_proven, find_moves(topology, tree)) for low, high, tree in intervals]
    body = msgspec.json.encode(rows)
    return f"{check_sum(body)}\n{body.decode()}"


def _parse_entry(data: bytes, topology: Topology) -> Iterator[Interval]:
    """Yield the intervals in a file.

    Raises:
        ValueError: they are not those of the region.
    """
    total, _, body = data.partition(b"\n")
    if total.decode() != check_sum(body):
        raise ValueError("the file is damaged")
    next_low: int | None = 1
    for low, high, is_proven, moves in msgspec.json.decode(body, type=list[_CachedInterval]):
        if low != next_low or (high is not None and high < low):
            raise ValueError("the intervals have gaps")
        yield Interval(low, high, replay_moves(topology, moves, is_proven=is_proven))
        next_low = None if high is None else high + 1
    if next_low is not None:
        raise ValueError("the intervals have no end")


def check_sum(body: bytes) -> str:
    """Return the sha256 of what is in a file, which stands on its first line."""
    return hashlib.sha256(body).hexdigest()


def write_entry(place: Path, text: str) -> None:
    """Put a file into the folder, and now and then, as its name decides, make room there."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, text)
        if place.name.startswith("00"):
            _make_room(place.parent)


def _make_room(folder: Path) -> None:
    """Remove the files that were not used for longest where all are too large; those of killed processes among them."""
    with os.scandir(folder) as entries:
        files = [(e.stat().st_mtime_ns, max(e.stat().st_size, _BLOCK), e.path) for e in entries if _is_own(e)]
    total = sum(size for _, size, _ in files)
    if total <= MOST_BYTES:
        return
    for _, size, path in sorted(files):
        if total <= MOST_BYTES * 3 // 4:
            return
        with suppress(OSError):
            os.unlink(path)
        total -= size


def _is_own(entry: os.DirEntry[str]) -> bool:
    return _OWN_FILE.fullmatch(entry.name) is not None and entry.is_file(follow_symlinks=False)
