"""Every tree of one product by brute force, priced as docs/counts.md says: what the planner is judged by.

Nothing here is shared with `tngraph.planning`: a `Product` is data of its own, which `Product.text` writes in the
language; every size, and with it every price, is a line in the batch, ``(at batch 0, per batch)``, in plain integers.
So one enumeration covers all batches at once. `lines_by_enumeration` tries all (2n-3)!! trees; `lines_by_sets` keeps,
of every set of tensors, all the lines that no other line is below at every batch, and reaches eight tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations
from math import gcd, prod
from typing import NamedTuple

from tngraph.language.network import Index, Read
from tngraph.search.region import ContractionTree

Line = tuple[int, int]
"""A size or a price: at batch 0, and so much more per batch."""
ZERO: Line = (0, 0)


@dataclass(frozen=True)
class Window:
    """A leg of so many positions, read at Σ coefficient·index + offset."""

    terms: tuple[tuple[int, str], ...]
    size: Line
    offset: int = 0

    def __str__(self) -> str:
        text = " + ".join(name if c == 1 else f"{c}*{name}" for c, name in self.terms)
        return f"{text} + {self.offset}".replace("+ -", "- ")


@dataclass(frozen=True)
class Tensor:
    """One factor of a product; the same name twice is one tensor used twice."""

    name: str
    legs: tuple[str | Window, ...]
    role: str = "param"


class Value(NamedTuple):
    """What a node of a tree holds: which tensors are below it, and which of their windows are laid out."""

    below: int
    opened: frozenset[int]


class Step(NamedTuple):
    """What a price may depend on [operations, elements], and whether a gradient flows to the operands."""

    operations: Line
    left: Line
    right: Line
    result: Line
    left_grad: int
    right_grad: int


Pricer = Callable[[Step], Line]


def flops(step: Step) -> Line:
    """F · (1 + gL + gR)."""
    times = 1 + step.left_grad + step.right_grad
    return step.operations[0] * times, step.operations[1] * times


def writes(step: Step) -> Line:
    """The elements of the result and, in training, of the gradients of the operands."""
    parts = [step.result, *([step.left] if step.left_grad else []), *([step.right] if step.right_grad else [])]
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def volume(sizes: Iterable[Line]) -> Line:
    """The product of sizes, of which one at most depends on the batch."""
    lines = list(sizes)
    moving = [line for line in lines if line[1]]
    assert len(moving) <= 1, "a price that is no line"
    rest = prod(line[0] for line in lines if not line[1])
    return (rest * moving[0][0], rest * moving[0][1]) if moving else (rest, 0)


def add(left: Line, right: Line) -> Line:
    return left[0] + right[0], left[1] + right[1]


@dataclass(frozen=True)
class Product:
    """One product of tensors, the indices it keeps, and what is asked of its plan.

    Attributes:
        tensors: its factors.
        kept: the indices of the result.
        sizes: of every index.
        mode: ``infer``, ``train`` or ``serve``.
        frozen: tensors that take no gradient though they could.
        deltas: indices that are written as one per tensor, tied by a delta.
    """

    tensors: tuple[Tensor, ...]
    kept: tuple[str, ...]
    sizes: Mapping[str, Line]
    mode: str = "infer"
    frozen: tuple[str, ...] = ()
    deltas: tuple[str, ...] = ()
    made: dict[tuple[Value, Value], tuple[Value, tuple[Step, ...]] | None] = field(
        default_factory=dict, compare=False, repr=False
    )
    ways: dict[Value, list[Value]] = field(default_factory=dict, compare=False, repr=False)

    # ------------------------------------------------------------------------------------ as a network

    def text(self) -> str:
        """The product in the language."""
        lines = [f"index {name}: {_written(size)}" for name, size in self.sizes.items()]
        factors, ties = [], {name: [] for name in self.deltas}
        for k, tensor in enumerate(self.tensors):
            sizes = [leg.size if isinstance(leg, Window) else self.sizes[leg] for leg in tensor.legs]
            legs = ", ".join(f"{tensor.name}_{n}: {_written(size)}" for n, size in enumerate(sizes))
            if tensor.name not in [other.name for other in self.tensors[:k]]:
                lines.append(f"{tensor.role} {tensor.name}[{legs}]")
            factors.append(f"{tensor.name}[{', '.join(self._read(leg, k, ties) for leg in tensor.legs)}]")
        for name, tied in ties.items():
            lines += [f"index {other}: {_written(self.sizes[name])}" for other in tied]
            legs = [f"d_{name}_{n}: {_written(self.sizes[name])}" for n in range(len(tied) + 1)]
            lines.append(f"const d_{name}[{', '.join(legs)}] = delta")
            factors.append(f"d_{name}[{', '.join([name, *tied])}]")
        legs = ", ".join(self.kept)
        body = "\n  ".join([*lines, f"y[{legs}] = {' * '.join(factors)}", f"output y[{legs}]"])
        free = "size batch\n  " if "batch" in body else ""
        return f"network drawn {{\n  {free}{body}\n}}"

    def _read(self, leg: str | Window, k: int, ties: Mapping[str, list[str]]) -> str:
        if isinstance(leg, Window) or leg not in self.deltas:
            return str(leg)
        ties[leg].append(f"{leg}_{k}")
        return f"{leg}_{k}"

    @property
    def requires_grad(self) -> dict[str, bool]:
        """What `plan` takes."""
        return dict.fromkeys(self.frozen, False)

    # ------------------------------------------------------------------------------------ what a value holds

    @cached_property
    def windows(self) -> list[tuple[int, Window]]:
        """Every window with the tensor it is read from."""
        return [(k, leg) for k, t in enumerate(self.tensors) for leg in t.legs if isinstance(leg, Window)]

    @cached_property
    def holders(self) -> dict[str, int]:
        """The tensors that each index stands on."""
        found = dict.fromkeys(self.sizes, 0)
        for k, tensor in enumerate(self.tensors):
            for leg in tensor.legs:
                for name in [leg] if isinstance(leg, str) else [name for _, name in leg.terms]:
                    found[name] |= 1 << k
        return found

    @cached_property
    def lone(self) -> set[str]:
        """Indices that stand on one tensor and not on the result: summed before anything else."""
        return {name for name, below in self.holders.items() if below.bit_count() == 1 and name not in self.kept}

    @cached_property
    def leaves(self) -> list[Value]:
        return [Value(1 << k, frozenset()) for k in range(len(self.tensors))]

    def is_alive(self, name: str, below: int) -> bool:
        """Whether an index that stands below is still needed."""
        holders = self.holders[name]
        return bool(holders & below) and name not in self.lone and (name in self.kept or bool(holders & ~below))

    def folded(self, value: Value) -> dict[int, tuple[str, ...]]:
        """The windows that are not laid out, with the indices that move them still."""
        found = {}
        for number, (tensor, window) in enumerate(self.windows):
            rest = tuple(name for _, name in window.terms if self.is_alive(name, value.below))
            if value.below >> tensor & 1 and number not in value.opened and len(rest) >= 2:
                found[number] = rest
        return found

    def plain(self, value: Value) -> set[str]:
        """The indices with an axis of their own."""
        inside = {name for rest in self.folded(value).values() for name in rest}
        return {name for name in self.sizes if self.is_alive(name, value.below)} - inside

    def span(self, number: int, rest: tuple[str, ...]) -> Line:
        """The positions that a window still ranges over."""
        window = self.windows[number][1]
        if len(rest) == len(window.terms):
            return window.size
        steps = {name: c for c, name in window.terms if name in rest}
        common = gcd(*steps.values())
        parts = [(c // common * (self.sizes[n][0] - 1), c // common * self.sizes[n][1]) for n, c in steps.items()]
        return add((1, 0), (sum(part[0] for part in parts), sum(part[1] for part in parts)))

    def elements(self, value: Value) -> Line:
        spans = [self.span(number, rest) for number, rest in self.folded(value).items()]
        return volume([*(self.sizes[name] for name in self.plain(value)), *spans])

    # ------------------------------------------------------------------------------------ what a step does

    def join(self, left: Value, right: Value) -> tuple[Value, tuple[Step, ...]] | None:
        """What joining two values makes and how it may, or None where a window has to be laid out first."""
        key = left, right
        if key not in self.made:
            self.made[key] = self._join(left, right) if self._may_join(left, right) else None
        return self.made[key]

    def _may_join(self, left: Value, right: Value) -> bool:
        """A window takes one kernel index at a time, wholly summed by it, and meets nothing else that moves it."""
        below = left.below | right.below
        for side, other in ((left, right), (right, left)):
            inside = {name for rest in self.folded(other).values() for name in rest}
            for rest in self.folded(side).values():
                met = {name for name in rest if name in self.plain(other)}
                done = {name for name in rest if not self.is_alive(name, below)}
                if met != done or len(met) > 1 or inside & set(rest):
                    return False
        return True

    def _join(self, left: Value, right: Value) -> tuple[Value, tuple[Step, ...]]:
        raw = Value(left.below | right.below, left.opened | right.opened)
        still = self.folded(Value(raw.below, frozenset()))
        result = Value(raw.below, raw.opened.intersection(still))
        involved = self.plain(left) | self.plain(right) | self.plain(result)
        spans = [self.span(number, rest) for number, rest in self.folded(result).items()]
        work = volume([*(self.sizes[name] for name in involved), *spans])
        sizes = tuple(self.elements(value) for value in (left, right, result))
        grads = self.takes_gradient(left), self.takes_gradient(right)
        steps = [Step(work, *sizes, *grads)]
        if self.may_spread(left, right, result):
            plain = [self.sizes[name] for name in self.plain(left) | self.plain(right)]
            spans = [self.span(n, rest) for side in (left, right) for n, rest in self.folded(side).items()]
            steps.append(Step(volume([*plain, *spans]), *sizes, *grads))
        return result, tuple(steps)

    def may_spread(self, left: Value, right: Value, result: Value) -> bool:
        """Whether every position of a window may be sent to the results that read it, for each value of the index met.

        That is so where it has a place in all of them: what moves the window still moves it by one. All windows that
        take an index are on one side.
        """
        still = self.folded(result)
        taken = [{n for n, rest in self.folded(side).items() if still.get(n) != rest} for side in (left, right)]
        if all(taken) or not any(taken):
            return False
        rests = [
            [c for c, name in self.windows[n][1].terms if self.is_alive(name, result.below)]
            for n in taken[0] | taken[1]
        ]
        return all(gcd(*rest) == 1 for rest in rests)

    def takes_gradient(self, value: Value) -> int:
        """1 where a gradient flows to a value in training."""
        below = [tensor for k, tensor in enumerate(self.tensors) if value.below >> k & 1]
        trained = [t for t in below if t.role in ("param", "input") and t.name not in self.frozen]
        return int(self.mode == "train" and bool(trained))

    def is_free(self, value: Value) -> bool:
        """Whether a value depends on no input, and is made before the first call."""
        roles = [tensor.role for k, tensor in enumerate(self.tensors) if value.below >> k & 1]
        return self.mode == "serve" and "input" not in roles

    def open(self, value: Value) -> list[Value]:
        """A value with every choice of its windows laid out, which costs nothing."""
        if value not in self.ways:
            self.ways[value] = [Value(value.below, value.opened | {*each}) for each in _subsets(self.folded(value))]
        return self.ways[value]

    # ------------------------------------------------------------------------------------ all trees

    def pairs(self, left: Iterable[Value], right: Iterable[Value]) -> Iterator[tuple[Value, Value, Value, Value]]:
        """Values of the two sides, and what each is laid out to before they are joined."""
        second = [(value, opened) for value in right for opened in self.open(value)]
        for value in left:
            for opened in self.open(value):
                for other, other_opened in second:
                    yield value, other, opened, other_opened

    def lines_by_enumeration(self, price: Pricer = flops) -> set[Line]:
        """The prices of all trees, those left out that another is below at every batch."""
        lines: set[Line] = set()
        for tree in trees(tuple(range(len(self.tensors)))):
            for found in self._tree_lines(tree, price).values():
                lines |= found
        return lowest(lines)

    def _tree_lines(self, tree: object, price: Pricer) -> dict[Value, set[Line]]:
        if isinstance(tree, int):
            return {self.leaves[tree]: {ZERO}}
        left, right = (self._tree_lines(each, price) for each in tree)  # type: ignore[attr-defined]
        return self._join_lines(left, right, price)

    def _join_lines(
        self, left: Mapping[Value, set[Line]], right: Mapping[Value, set[Line]], price: Pricer
    ) -> dict[Value, set[Line]]:
        found: dict[Value, set[Line]] = {}
        for one, other, a, b in self.pairs(left, right):
            joined = self.join(a, b)
            if joined is not None:
                lines = found.setdefault(joined[0], set())
                for step in joined[1]:
                    own = ZERO if self.is_free(joined[0]) else price(step)
                    lines |= {add(own, add(first, second)) for first in left[one] for second in right[other]}
        return {value: lowest(lines) for value, lines in found.items()}

    def lines_by_sets(self, price: Pricer = flops) -> set[Line]:
        """The same as `lines_by_enumeration`, by sets of tensors."""
        best: dict[int, dict[Value, set[Line]]] = {leaf.below: {leaf: {ZERO}} for leaf in self.leaves}
        for count in range(2, len(self.tensors) + 1):
            for members in combinations(range(len(self.tensors)), count):
                whole = sum(1 << k for k in members)
                merged: dict[Value, set[Line]] = {}
                for chosen in _subsets(members[1:]):
                    left = sum(1 << k for k in (members[0], *chosen))
                    if left != whole:
                        for value, lines in self._join_lines(best[left], best[whole - left], price).items():
                            merged.setdefault(value, set()).update(lines)
                best[whole] = {value: lowest(lines) for value, lines in merged.items()}
        return lowest(set(chain.from_iterable(best[(1 << len(self.tensors)) - 1].values())))

    def least(self, price: Callable[[tuple[int, ...]], float], batch: int) -> float:
        """The cheapest of all trees at one batch under any price of a step, which is given six numbers."""

        def cheapest(tree: object) -> dict[Value, float]:
            if isinstance(tree, int):
                return {self.leaves[tree]: 0}
            left, right = (cheapest(each) for each in tree)  # type: ignore[attr-defined]
            found: dict[Value, float] = {}
            for one, other, a, b in self.pairs(left, right):
                joined = self.join(a, b)
                if joined is not None:
                    prices = (price(at_batch(step, batch)) for step in joined[1])
                    own = 0 if self.is_free(joined[0]) else min(prices)
                    total = own + left[one] + right[other]
                    found[joined[0]] = min(total, found.get(joined[0], total))
            return found

        return min(min(cheapest(tree).values()) for tree in trees(tuple(range(len(self.tensors)))))

    # ------------------------------------------------------------------------------------ the planner's tree

    def walk(self, tree: ContractionTree) -> Iterator[Step]:
        """The steps of a tree of the planner's, each checked to be one that may be made, with the legs it says."""
        values = list(self.leaves)
        for step in tree.steps:
            given = [values[operand] for operand in step.operands]
            if len(given) == 1:
                closed = {frozenset(i.name for i in leg.indices) for leg in step.legs if isinstance(leg, Read)}
                opened = {n for n, rest in self.folded(given[0]).items() if frozenset(rest) not in closed}
                values.append(Value(given[0].below, given[0].opened | opened))
                continue
            joined = self.join(given[0], given[1])
            assert joined is not None, "a step that cannot be made"
            values.append(joined[0])
            legs = {leg.name for leg in step.legs if isinstance(leg, Index)}
            assert {n for n in legs ^ self.plain(joined[0]) if self.sizes[n] != (1, 0)} == set()
            if not self.is_free(joined[0]):
                yield joined[1][step.kind == "conv_transpose"]
        assert values[-1].below == (1 << len(self.tensors)) - 1

    def line(self, tree: ContractionTree, price: Pricer = flops) -> Line:
        """What a tree of the planner's costs."""
        prices = [price(step) for step in self.walk(tree)]
        return sum(price[0] for price in prices), sum(price[1] for price in prices)

    def sums(self) -> Line:
        """What summing lone indices costs: the entries of every tensor that has some."""
        total = ZERO
        for k, tensor in enumerate(self.tensors):
            mine = [name for name in self.lone if self.holders[name] == 1 << k and self.sizes[name] != (1, 0)]
            if mine:
                assert all(isinstance(leg, str) for leg in tensor.legs)
                total = add(total, volume(self.sizes[leg] for leg in tensor.legs))  # type: ignore[index]
        return total


def at_batch(step: Step, batch: int) -> tuple[int, ...]:
    """A step in numbers."""
    return tuple(each if isinstance(each, int) else each[0] + each[1] * batch for each in step)


def trees(leaves: tuple[int, ...]) -> Iterator[object]:
    """All binary trees over some leaves: (2n-3)!! of them."""
    if len(leaves) == 1:
        yield leaves[0]
        return
    first, rest = leaves[0], leaves[1:]
    for chosen in _subsets(rest):
        others = tuple(leaf for leaf in rest if leaf not in chosen)
        if others:
            for left in trees((first, *chosen)):
                for right in trees(others):
                    yield left, right


def _subsets(items: Iterable) -> Iterator[tuple]:
    pool = tuple(items)
    return chain.from_iterable(combinations(pool, count) for count in range(len(pool) + 1))


def lowest(lines: Iterable[Line]) -> set[Line]:
    """The lines that no other one is below or on at every batch from 1 on: dearer at 1, or steeper."""
    found: list[Line] = []
    for line in sorted(set(lines), key=lambda line: (line[0] + line[1], line[1])):
        if not found or line[1] < found[-1][1]:
            found.append(line)
    return set(found)


def _written(size: Line) -> str:
    constant, slope = size
    if not slope:
        return str(constant)
    batch = "batch" if slope == 1 else f"{slope}*batch"
    return f"{batch} + {constant}".replace("+ -", "- ") if constant else batch
