"""The results of searches on disk, so that a region is searched once.

The name of a file is a hash of everything that a search depends on, up to names: how a region hangs together, the
numbers of its sizes, what a step costs, seed and effort, and the code that searches. The file holds moves, which are
made again when they are read (see `replay`). So no file leads to a plan that its network does not allow. A file or a
folder that cannot be read or written is not an error: the region is searched then.

``TNGRAPH_CACHE`` is the folder, or ``off``. Files are written atomically and never changed, so that any number of
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
"""A folder that holds more is cut back to three quarters of this [bytes]."""
LONGEST_ENTRY = 2**24
"""The longest file that is read [bytes]."""
_BLOCK = 4096
"""The space that the smallest file takes on a disk [bytes]."""
_OWN_FILE = re.compile(r"[0-9a-f]{64}\.json|\.tngraph-.*\.tmp")


def find_cached(
    topology: Topology, key: str | None, search_intervals: Callable[[], Sequence[Interval]]
) -> Sequence[Interval]:
    """Return the intervals that were found for a region before, or else search them.

    Args:
        topology: the region by number, at any sizes.
        key: see `cache_key`. Without a key the region is always searched.
        search_intervals: the search.
    """
    folder = cache_folder()
    if key is None or folder is None:
        return search_intervals()
    place = folder / f"{key}.json"
    cached = _read_entry(place, topology)
    if cached is not None:
        return cached
    intervals = search_intervals()
    if not any(interval.tree.sliced for interval in intervals):
        write_entry(place, _format_entry(topology, intervals))
    return intervals


def cache_key(
    region: Region, pricing: Pricing, search: Search, show_size: Callable[[sympy.Expr], object], points: int = 1
) -> str | None:
    """Return a hash of everything that a search depends on, or None if that includes a user's function.

    Args:
        region: the product to contract.
        pricing: what a step costs.
        search: seed and effort.
        show_size: returns a size as the search sees it: its number or numbers, or its formula in a free size.
        points: the number of points that are searched, which a region without sizes does not tell.
    """
    if isinstance(pricing.rate, PerStep):
        return None
    effort = repr(replace(search, progress=None, parallel=None))  # which change no plan
    parts = [code_version(), effort, repr(pricing), points, _describe(region, show_size)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _describe(region: Region, show_size: Callable[[sympy.Expr], object]) -> object:
    """Return a region up to the names in it, with indices by number, in order of mention."""
    numbers: dict[Index, int] = {}
    shown_sizes: dict[sympy.Expr, object] = {}

    def number(index: Index) -> int:
        return numbers.setdefault(index, len(numbers))

    def show(size: sympy.Expr) -> object:
        if size not in shown_sizes:
            shown_sizes[size] = show_size(size)
        return shown_sizes[size]

    def describe_leg(leg: Leg) -> object:
        if isinstance(leg, Index):
            return number(leg)
        return show(leg.leg.size), leg.wrap, [(coefficient, number(index)) for coefficient, index in leg.terms]

    accesses = [[describe_leg(leg) for leg in bare_legs(access)] for access in region.accesses]
    return accesses, [show(index.size) for index in numbers], sorted(numbers[i] for i in region.legs if i in numbers)


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return a hash of the code that searches, of this file, and of the version of cotengra.

    A version number would have to be raised by hand with every change of the search, and would be forgotten once.
    """
    digest = hashlib.sha256(version("cotengra").encode())
    here = Path(__file__)
    for path in (*sorted((here.parents[1] / "search").glob("*.py")), here):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Return the folder of the files, or None if the cache is off."""
    chosen = os.environ.get("TNGRAPH_CACHE")
    if chosen == "off":
        return None
    return Path(chosen or _default_folder())


def named_folder(name: str) -> Path | None:
    """Return the folder of something else than searches: in the chosen folder, or beside that of the searches."""
    folder = cache_folder()
    if folder is None:
        return None
    return (folder if os.environ.get("TNGRAPH_CACHE") else folder.parent) / name


@lru_cache(maxsize=1)
def _default_folder() -> str:
    return str(Path(user_cache_dir("tngraph", appauthor=False)) / "searches")


def _read_entry(place: Path, topology: Topology) -> tuple[Interval, ...] | None:
    """Return the intervals in a file, or None if it is missing or damaged. A damaged file is removed."""
    with suppress(OSError):
        data = read_bytes(place, LONGEST_ENTRY)
        try:
            intervals = tuple(_parse_entry(data, topology))
        except (ValueError, RecursionError):
            place.unlink()
            return None
        os.utime(place)  # the file that was used last is removed last
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
    """Write a file to the folder. Where the name starts with 00, one time in 256, make room there too."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, text)
        if place.name.startswith("00"):
            _make_room(place.parent)


def _make_room(folder: Path) -> None:
    """Remove the files that were not used for longest, and leftovers of killed processes, if all are too large."""
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
