"""Plans of less memory: trees of smaller values, regions run slice by slice, operations run once more.

The request says which memory counts: the peak of a call or, in training, what is kept for the backward pass. Both are
exact. There are three kinds of candidates:

- the results of searches in which values have a largest size, or in which writing has a price;
- slices of these trees;
- in training, sets of consecutive operations that are recomputed in the backward pass.

Each candidate is lowered and followed through memory. A candidate is on the front if no other is both cheaper and
smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from tngraph.errors import PlanError
from tngraph.language.legs import legs_size
from tngraph.language.sizes import evaluate_size
from tngraph.plans.plan import Plan
from tngraph.plans.regime import Regime
from tngraph.plans.table import draw_stages
from tngraph.program.counts import evaluate_count, keeps_values, needs_gradient, volume
from tngraph.program.memory import Memory
from tngraph.search.objectives import Price, Rate, Weighted
from tngraph.search.orders import Progress
from tngraph.search.region import ContractionTree

MOST_CAPS = 12
"""The most searches with ever smaller values. After half of them, the largest value is halved each time."""
WRITES = (1, 8, 64, 512)
"""The prices of a written element that are tried beside 0 [operations]."""
MOST_SETS = 20_000
"""The most sets of operations to recompute that are all compared. If there are more, sets are grown one by one."""

Trees = tuple[ContractionTree, ...]


@dataclass(frozen=True, slots=True)
class FrontSearch:
    """The functions of a search that fronts need, for all regions of a network at once.

    Attributes:
        find: returns the best trees under an objective whose values have at most so many elements (None for no limit),
            or None if there are none.
        cut: yields the best slices of trees in which no value has more elements.
        make: returns the regime of some trees.
    """

    find: Callable[[int | None, Rate], Trees | None]
    cut: Callable[[Trees, int], Iterable[Trees]]
    make: Callable[[Trees], Regime]


@dataclass(frozen=True, slots=True)
class Point:
    """One plan of a front, with its cost and the memory that counts in its mode [bytes]."""

    plan: Plan
    cost: Price
    bytes: int


@dataclass(frozen=True, slots=True)
class Front:
    """Plans of one network, the cheapest first, of which none is both cheaper and smaller than another.

    Attributes:
        points: in ascending order of cost, so in descending order of memory.
    """

    points: tuple[Point, ...]

    def within(self, limit: int) -> Plan:
        """Return the cheapest plan within a limit.

        Args:
            limit: the most memory of the plan [bytes].

        Raises:
            PlanError: every plan needs more. The error gives the least that was found.
        """
        for point in self.points:
            if point.bytes <= limit:
                return point.plan
        least = self.points[-1]
        sizes = least.plan.sizes
        at = ", ".join(f"{name} = {sizes[name]}" for name in least.plan.network.runtime_sizes())
        raise PlanError(
            f"no plan of {least.plan.network.name} {self._verb()} within {limit:,} bytes{at and ' at ' + at}\n"
            f"  the least found is {least.bytes:,} bytes, at {least.cost:,} instead of {self.points[0].cost:,}"
        )

    def _verb(self) -> str:
        return "keeps what it saves" if self.points[0].plan.request.mode == "train" else "stays"

    def __str__(self) -> str:
        rows = [
            ("cost", "bytes", "how"),
            *((f"{p.cost:,}", f"{p.bytes:,}", describe_point(p.plan)) for p in self.points),
        ]
        widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
        table = (f"{row[0].rjust(widths[0])}  {row[1].rjust(widths[1])}  {row[2]}" for row in rows)
        return "\n".join([*draw_points(self.points), "", *table])


def describe_point(plan: Plan) -> str:
    """Return the trees of a plan on one line, with the indices it slices and the values it recomputes."""
    (regime,) = plan.regimes
    sliced = dict.fromkeys(index.name for tree in regime.trees for index in tree.sliced)
    operations = [regime.operations[k] for first, last in regime.recomputed for k in range(first, last)]
    again = [op.name for op in operations if op.kind != "load"]
    notes = [f"slices of {', '.join(sliced)}"] * bool(sliced) + [f"{', '.join(again)} recomputed"] * bool(again)
    return "; ".join([draw_stages(regime), *notes])


WIDTH, HEIGHT = 56, 10
"""The size of a drawing [characters]."""


def draw_points(points: Sequence[Point]) -> list[str]:
    """Return a drawing of the points of a front: bytes upwards, cost to the right."""
    if len(points) < 2:
        return []
    lines = [[" "] * WIDTH for _ in range(HEIGHT)]
    low, high = points[0].cost, points[-1].cost
    least, most = points[-1].bytes, points[0].bytes
    for point in points:
        column = round((point.cost - low) / (high - low) * (WIDTH - 1))
        row = round((most - point.bytes) / (most - least) * (HEIGHT - 1))
        lines[row][column] = "*"
    labels = [f"{most:,}", *[""] * (HEIGHT - 2), f"{least:,}"]
    width = max(map(len, labels))
    drawn = [f"{label.rjust(width)} |{''.join(line).rstrip()}" for label, line in zip(labels, lines, strict=True)]
    axis = f"{' ' * width} +{'-' * WIDTH}"
    return ["bytes", *drawn, axis, f"{' ' * width}  {low:,}{f'{high:,} cost'.rjust(WIDTH - len(f'{low:,}'))}"]


def find_front(search: FrontSearch, numbers: Mapping[str, int], progress: Progress | None = None) -> Front:
    """Return the front of all candidates at these numbers of all sizes, and call `progress` for each candidate."""
    points: dict[Regime, Point] = {}
    for regime in _candidates(search, numbers):
        if regime not in points:
            points[regime] = make_point(Plan((regime,)), numbers)
            if progress is not None:
                progress(len(points), None, min(point.cost for point in points.values()))
    if progress is not None:
        progress(len(points), len(points), min(point.cost for point in points.values()))
    smaller: list[Point] = []
    for point in sorted(points.values(), key=lambda point: (point.cost, point.bytes)):
        if not smaller or point.bytes < smaller[-1].bytes:
            smaller.append(point)
    return Front(tuple(smaller))


def make_point(plan: Plan, numbers: Mapping[str, int]) -> Point:
    """Return a plan of one regime with its cost and its bytes at these numbers of all sizes."""
    (regime,) = plan.regimes
    return Point(plan, regime.price(numbers), _held(regime, regime.memory(numbers)))


def _held(regime: Regime, memory: Memory) -> int:
    """Return the memory that counts for the request [bytes]."""
    return memory.saved if regime.request.mode == "train" else memory.peak


def _candidates(search: FrontSearch, numbers: Mapping[str, int]) -> Iterator[Regime]:
    """Yield the regimes to compare. Only the best trees are cut, since slicing looks for other trees by itself."""
    for k, trees in enumerate(_tree_sets(search, numbers)):
        regime = search.make(trees)
        yield regime
        if regime.request.mode == "train":
            yield from (replace(regime, recomputed=again) for again in _recomputations(regime, numbers))
        elif k == 0:
            yield from _sliced(search, trees, numbers)


def _tree_sets(search: FrontSearch, numbers: Mapping[str, int]) -> Iterator[Trees]:
    """Yield the best trees, those with ever smaller values, and those where writing has a price."""
    first = search.find(None, Weighted()) or ()
    rate = search.make(first).request.rate
    if rate != Weighted():
        first = search.find(None, rate) or first
    trees: Trees | None = first
    for attempt in range(MOST_CAPS):
        if trees is None:
            break
        yield trees
        largest = max((_largest(tree, numbers) for tree in trees), default=0)
        trees = search.find(largest - 1 if attempt < MOST_CAPS // 2 else largest // 2, rate) if largest > 1 else None
    if isinstance(rate, Weighted):
        for price in WRITES:
            yield search.find(None, Weighted(rate.operations or 1, rate.writes + price)) or first


def _largest(tree: ContractionTree, numbers: Mapping[str, int]) -> int:
    """Return the largest value of a tree except its result [elements]."""
    return max((evaluate_size(legs_size(step.legs), numbers) for step in tree.steps[:-1]), default=0)


def _sliced(search: FrontSearch, trees: Trees, numbers: Mapping[str, int]) -> Iterator[Regime]:
    """Yield slices of trees with ever smaller values."""
    largest = max((_largest(tree, numbers) for tree in trees), default=0)
    with suppress(PlanError):
        while largest > 1:
            largest //= 2
            for sliced in search.cut(trees, largest):
                yield search.make(sliced)


Span = tuple[int, int]
"""The first and the last of some consecutive operations."""


def _recomputations(regime: Regime, numbers: Mapping[str, int]) -> Iterator[tuple[Span, ...]]:
    """Yield sets of spans to recompute, of which none is estimated to be both dearer and larger than another.

    The estimate goes by what each operation keeps. A value that only operations of one span keep is recomputed, and
    what the span reads is kept instead.
    """
    savings = _Savings(regime, numbers)
    sets = list(islice(savings.sets(), MOST_SETS + 1))
    if len(sets) > MOST_SETS:
        sets = list(savings.greedy())
    best: int | None = None
    for chosen in sorted(sets, key=lambda chosen: (savings.work(chosen), savings.kept(chosen))):
        if best is None or savings.kept(chosen) < best:
            best = savings.kept(chosen)
            if chosen:
                yield chosen


class _Savings:
    """Estimates what recomputing spans of operations saves and costs, in one regime."""

    def __init__(self, regime: Regime, numbers: Mapping[str, int]) -> None:
        operations = regime.operations
        needs = needs_gradient(operations, regime.request.trained)
        self.lines = [k for k, op in enumerate(operations) if op.kind != "load"]
        self.volumes = {k: evaluate_count(volume(operations, k), numbers) for k in self.lines}
        self.keeping = {k for k in self.lines if keeps_values(operations, needs, k, regime.program.gathering)}
        self.users = {k: regime.users(k) for k in self.lines}
        self.held = [
            (storage.bytes, [(writer, user) for writer in writers for user in self.users[writer]], keepers)
            for storage, writers, keepers in regime.memory(numbers).keepers
        ]
        self.spans = tuple(self._find_spans(frozenset(regime.outputs)))

    def _find_spans(self, outputs: frozenset[int]) -> Iterator[Span]:
        """Yield the spans of several operations that keep something and whose last value alone is used outside."""
        for start, first in enumerate(self.lines):
            for stop in range(start + 1, len(self.lines)):
                last = self.lines[stop]
                inner = self.lines[start:stop]
                leaves = any(k in outputs or max(self.users[k], default=k) > last for k in inner)
                if not leaves and any(first <= k <= last for k in self.keeping):
                    yield first, last

    def work(self, chosen: Iterable[Span]) -> int:
        """Return the work of running spans once more, each up to its last operation that keeps something."""
        total = 0
        for first, last in chosen:
            final = max(k for k in self.keeping if first <= k <= last)
            total += sum(count for k, count in self.volumes.items() if first <= k < final)
        return total

    def kept(self, chosen: Sequence[Span]) -> int:
        """Return what is kept for the backward pass [bytes]."""
        return sum(count for count, uses, keepers in self.held if _is_kept(chosen, uses, keepers))

    def sets(self, after: int = -1) -> Iterator[tuple[Span, ...]]:
        """Yield every set of spans that do not overlap."""
        yield ()
        for span in self.spans:
            if span[0] > after:
                yield from ((span, *rest) for rest in self.sets(span[1]))

    def greedy(self) -> Iterator[tuple[Span, ...]]:
        """Yield sets that grow span by span, each time by the span that frees most per operation."""
        chosen: tuple[Span, ...] = ()
        while True:
            yield chosen
            before, work = self.kept(chosen), self.work(chosen)
            better = [spans for spans in self._extensions(chosen) if self.kept(spans) < before]
            if not better:
                return
            chosen = max(better, key=lambda spans: (before - self.kept(spans)) / max(1, self.work(spans) - work))

    def _extensions(self, chosen: Sequence[Span]) -> Iterator[tuple[Span, ...]]:
        """Yield sets with one more span, in place of those that it covers."""
        for first, last in self.spans:
            rest = [span for span in chosen if not (first <= span[0] and span[1] <= last)]
            if all(last < span[0] or span[1] < first for span in rest):
                yield tuple(sorted([*rest, (first, last)]))


def _is_kept(chosen: Iterable[Span], uses: Iterable[tuple[int, int]], keepers: frozenset[int]) -> bool:
    """Return whether a storage is kept if some spans are recomputed: a span reads it, or an operation outside keeps it.

    Args:
        chosen: the spans.
        uses: each operation that writes to the storage with each that uses what it wrote.
        keepers: the operations that keep it.
    """
    inside = {k for first, last in chosen for k in keepers if first <= k <= last}
    is_read = any(writer < first <= user <= last for first, last in chosen for writer, user in uses)
    return is_read or bool(keepers - inside)
