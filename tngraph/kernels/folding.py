"""What is made before the first call, where weights never change: values that no input and no run-time size goes into.

A schedule is split in two. What is computed at each call takes a folded value as it takes a param: a load, which is no
work and no memory of the call. What comes before the first call ends in *buffers*: the folded values as the lines that
read them want them, axes in order and fused, so that no weight is permuted at a call.

A buffer is called by its content, a digest of all that goes into it: what two regimes fold alike is stored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import count
from typing import NamedTuple

import sympy

from tngraph.kernels.expressions import Call, Expression, Variable, substitute, variables
from tngraph.kernels.kernels import Kernel, Kernels, find_drops
from tngraph.kernels.layout import call_sizes
from tngraph.kernels.schedule import Block, Operation, Schedule
from tngraph.language.network import Access, Index, Leg, Network, Read
from tngraph.language.sizes import evaluate_size, product
from tngraph.planning.objectives import Goal
from tngraph.planning.region import legs_size
from tngraph.planning.rewrites import reached


@dataclass(frozen=True, slots=True)
class Varying:
    """What may be another at another call.

    Attributes:
        sources: the tensors and equations that an input or a run-time size goes into.
        sizes: the run-time sizes, and those derived from them.
    """

    sources: frozenset[str]
    sizes: frozenset[str]

    def is_same(self, access: Access) -> bool:
        """Whether an access reads the same numbers at every call."""
        return access.source not in self.sources and not _depends(access.legs, self.sizes)


def find_varying(network: Network) -> Varying:
    """What of a network may be another at another call: everything, if it has no weights that could be served."""
    sizes = call_sizes(network)
    if not any(core.role in ("param", "buffer") for core in network.cores):
        return Varying(frozenset(network.sources()), sizes)
    inputs = {core.name for core in network.cores if core.role == "input"}
    return Varying(reached(network, inputs | {name for name, legs in _legs(network) if _depends(legs, sizes)}), sizes)


def _depends(legs: Sequence[Leg], sizes: frozenset[str]) -> bool:
    """Whether one of some sizes decides how long legs are or where they are read."""
    return any(symbol.name in sizes for leg in legs for size in _sizes(leg) for symbol in size.free_symbols)


def _legs(network: Network) -> Iterator[tuple[str, Sequence[Leg]]]:
    """The legs that every core and equation has, and those that an equation reads others by."""
    for name, source in network.sources().items():
        yield name, source.legs
    for equation in network.equations:
        for term in equation.terms:
            yield from ((equation.name, access.legs) for access in term.accesses)


def _sizes(leg: Leg) -> tuple[sympy.Expr, ...]:
    """All that a leg's length, and the position it is read at, depend on."""
    if isinstance(leg, Read):
        return (leg.leg.size, leg.offset, *(index.size for index in leg.indices))
    return (leg.size,)


@dataclass(frozen=True, slots=True)
class Split:
    """A schedule in two.

    Attributes:
        whole: all operations.
        fixed: the numbers of those whose value is the same at every call.
        folded: the numbers of those of them whose value may be stored.
        called: the numbers of those that each call runs, or reads where they are folded.
    """

    whole: Schedule
    fixed: frozenset[int]
    folded: frozenset[int]
    called: tuple[int, ...]

    @property
    def places(self) -> dict[int, int]:
        """The numbers that operations have among those of a call."""
        return {number: place for place, number in enumerate(self.called)}

    def schedule(self) -> Schedule:
        """What each call runs."""
        if not self.folded:
            return self.whole
        places = self.places
        operations = tuple(
            _load(op) if number in self.folded else _renumber(op, places)
            for number, op in ((number, self.whole.operations[number]) for number in self.called)
        )
        results = {name: places[number] for name, number in self.whole.results.items() if number in places}
        return Schedule(operations, results, tuple(_move(block, places) for block in self.whole.blocks))


def _load(op: Operation) -> Operation:
    """The reading of what an operation would compute."""
    return Operation("load", (), op.legs, op.name)


def _renumber(op: Operation, places: Mapping[int, int]) -> Operation:
    return replace(op, operands=tuple(places[operand] for operand in op.operands))


def _move(block: Block, places: Mapping[int, int]) -> Block:
    inside = [places[number] for number in range(block.first, block.last + 1) if number in places]
    return replace(block, first=inside[0], last=inside[-1])


def split_schedule(whole: Schedule, merged: Network, goal: Goal, numbers: Mapping[str, int]) -> Split:
    """Find what of a schedule comes before the first call: nothing, unless weights never change.

    Args:
        whole: every operation.
        merged: the network it computes.
        goal: the mode, and the largest value that is folded.
        numbers: an integer for every size; values are compared at these [elements].
    """
    operations = whole.operations
    if goal.mode != "serve":
        return Split(whole, frozenset(), frozenset(), tuple(range(len(operations))))
    fixed = _find_fixed(operations, find_varying(merged))
    most = goal.most_folded
    folded = frozenset(
        number for number in fixed if most is None or evaluate_size(legs_size(operations[number].legs), numbers) <= most
    )
    used = {operand for op in operations for operand in op.operands}
    ends = {whole.results[port.name] for port in merged.outputs}
    ends.update(number for number in range(len(operations)) if number not in used)
    return Split(whole, fixed, folded, _needed(operations, ends, folded))


def _find_fixed(operations: Sequence[Operation], varying: Varying) -> frozenset[int]:
    """The operations, loads left out, whose value is the same at every call and stands by itself."""
    fixed: list[bool] = []
    for op in operations:
        is_same = op.access is None or varying.is_same(op.access)
        stands_alone = op.kind not in ("view", "accumulate", "join") and not op.loops
        fixed.append(is_same and stands_alone and all(fixed[operand] for operand in op.operands))
    return frozenset(number for number, op in enumerate(operations) if fixed[number] and op.kind != "load")


def _needed(operations: Sequence[Operation], roots: Iterable[int], given: frozenset[int]) -> tuple[int, ...]:
    """The operations that go into some values, these included, but for what goes into given ones."""
    needed = set(roots)
    for number in range(len(operations) - 1, -1, -1):
        if number in needed and number not in given:
            needed.update(operations[number].operands)
    return tuple(sorted(needed))


@dataclass(frozen=True, slots=True)
class Folding:
    """What runs before the first call.

    Attributes:
        kernels: its operations and lines; the results are what is stored.
        keys: of every operation, what tells it from others.
        buffers: the variables by which calls read the results.
    """

    kernels: Kernels = field(default_factory=lambda: Kernels((), (), (), ()))
    keys: tuple[str, ...] = ()
    buffers: tuple[Variable, ...] = ()

    @property
    def elements(self) -> sympy.Expr:
        """What is stored [elements]."""
        return sympy.Add(*(product(buffer.shape) for buffer in self.buffers))


class Folded(NamedTuple):
    """The lines of a call, and what comes before the first one."""

    kernels: Kernels
    folding: Folding


def fold_kernels(
    whole: Kernels, split: Split, network: Network, most: int | None, numbers: Mapping[str, int]
) -> Folded:
    """The lines of each call, with buffers in the place of what never changes, and those that make the buffers.

    Args:
        whole: the lines of all operations.
        split: which of them a call runs.
        network: what is computed.
        most: the largest buffer [elements]; None for no limit.
        numbers: an integer for every size; buffers are compared at these.
    """
    hoist = _Hoist(whole, split, most, numbers, call_sizes(network))
    schedule, places = split.schedule(), split.places
    lines = [
        replace(line, number=places[line.number], code=hoist.replace_operands(line.code))
        for line in whole.lines
        if line.number in places and line.number not in split.folded
    ]
    outputs = [schedule.results[port.name] for port in network.outputs]
    results = tuple(map(hoist.replace, whole.results))
    called = Kernels(schedule.operations, schedule.blocks, _drop(schedule, lines, outputs), results)
    return Folded(called, hoist.write())


def _drop(schedule: Schedule, lines: Iterable[Kernel], kept: Iterable[int]) -> tuple[Kernel, ...]:
    """Lines with the values that may be dropped after each."""
    drops = find_drops(schedule, kept)
    return tuple(replace(line, dropped=drops[line.number]) for line in lines)


class _Hoist:
    """Takes what never changes out of expressions and keeps it as buffers."""

    def __init__(
        self, whole: Kernels, split: Split, most: int | None, numbers: Mapping[str, int], runtime: frozenset[str]
    ) -> None:
        self.whole, self.split, self.most, self.numbers, self.runtime = whole, split, most, numbers, runtime
        self.made = {whole.operations[k].name: k for k in split.fixed}
        self.folded = {whole.operations[k].name for k in split.folded}
        self.digests: dict[str, str] = {}
        for line in whole.lines:
            if line.number in split.fixed:
                self.digests[whole.operations[line.number].name] = _digest(line.code, self.digests)
        self.buffers: dict[Variable, Expression] = {}

    def replace(self, code: Expression) -> Expression:
        """An expression that reads buffers where it can."""
        if self._is_stored(code):
            buffer = Variable("buffer", _digest(code, self.digests), code.shape)
            self.buffers[buffer] = code
            return buffer
        return self.replace_operands(code) if isinstance(code, Call) else code

    def replace_operands(self, code: Expression) -> Expression:
        """What a line does, on buffers where it can: the call itself is counted, so that it stays."""
        if isinstance(code, Call):
            return replace(code, operands=tuple(map(self.replace, code.operands)))
        return self.replace(code)

    def _is_stored(self, code: Expression) -> bool:
        """Whether a buffer is worth having: of a folded value, or of a stored tensor that lies in another order."""
        if isinstance(code, Variable):
            return code.kind == "value" and code.name in self.folded
        if code.function == "expand":  # a view of what may be stored
            return False
        names = [*variables(code)]
        is_fixed = bool(names) and all(v.kind == "stored" or v.name in self.folded for v in names)
        return is_fixed and not _is_given(code) and not _varies(code, self.runtime) and self._fits(code)

    def _fits(self, code: Expression) -> bool:
        return self.most is None or evaluate_size(product(code.shape), self.numbers) <= self.most

    def write(self) -> Folding:
        """The operations and lines that make the buffers."""
        ends = {self.made[v.name] for code in self.buffers.values() for v in variables(code) if v.kind == "value"}
        needed = _needed(self.whole.operations, ends, frozenset())
        places = {number: place for place, number in enumerate(needed)}
        operations = tuple(_renumber(self.whole.operations[number], places) for number in needed)
        lines = (replace(x, number=places[x.number]) for x in self.whole.lines if x.number in places)
        kept = _drop(Schedule(operations, {}), lines, [places[number] for number in ends])
        keys = tuple(self.digests.get(op.name, "") if op.kind != "load" else repr(op) for op in operations)
        return Folding(Kernels(operations, (), kept, tuple(self.buffers.values())), keys, tuple(self.buffers))


def _is_given(code: Expression) -> bool:
    """Whether a product takes an expression as it is stored: fused axes are views, and so is one transposition."""
    if isinstance(code, Call) and code.function == "permute" and code.arguments == (1, 0):
        code = code.operands[0]
    while isinstance(code, Call) and code.function in ("reshape", "contiguous"):
        code = code.operands[0]
    return isinstance(code, Variable)


def _varies(code: Expression, runtime: frozenset[str]) -> bool:
    """Whether a size of run time, or a slice's place, stands in an expression."""
    if isinstance(code, Variable):
        return False
    for each in (*code.shape, *code.arguments):
        for number in each if isinstance(each, tuple) else (each,):
            if isinstance(number, Index) or runtime & {s.name for s in getattr(number, "free_symbols", ())}:
                return True
    return any(_varies(operand, runtime) for operand in code.operands)


def _digest(code: Expression, known: Mapping[str, str]) -> str:
    """A name for what an expression makes: the same wherever the same calls are made on the same tensors."""
    if isinstance(code, Variable):
        return known[code.name] if code.kind == "value" else code.name
    parts = code.function, [_digest(operand, known) for operand in code.operands], code.arguments, code.shape
    return sha256(repr(parts).encode()).hexdigest()


def merge_foldings(foldings: Sequence[Folding]) -> Folding:
    """What runs before the first call of several orders, what they have in common once."""
    merge = _Merge()
    for folding in foldings:
        merge.add(folding)
    return merge.write()


class _Merge:
    """Collects operations that differ, and gives each a name of its own."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.operations: list[Operation] = []
        self.lines: list[Kernel] = []
        self.buffers: dict[Variable, Expression] = {}

    def add(self, folding: Folding) -> None:
        """Take the operations that are new."""
        places: list[int] = []
        names: dict[str, str] = {}
        lines = {line.number: line for line in folding.kernels.lines}
        for number, (op, key) in enumerate(zip(folding.kernels.operations, folding.keys, strict=True)):
            if key not in self.places:
                self.places[key] = len(self.operations)
                self.operations.append(replace(_renumber(op, dict(enumerate(places))), name=self._name(op)))
                if number in lines:
                    code = _rename(lines[number].code, names)
                    self.lines.append(replace(lines[number], number=self.places[key], code=code))
            places.append(self.places[key])
            if number in lines:
                names[op.name] = self.operations[places[number]].name
        for buffer, code in zip(folding.buffers, folding.kernels.results, strict=True):
            self.buffers.setdefault(buffer, _rename(code, names))

    def _name(self, op: Operation) -> str:
        taken = {other.name for other in self.operations if other.kind != "load"}
        names = (f"{op.name}_{k}" if k > 1 else op.name for k in count(1))
        return op.name if op.kind == "load" else next(name for name in names if name not in taken)

    def write(self) -> Folding:
        """All of it, values dropped once nothing needs them."""
        made = {op.name: number for number, op in enumerate(self.operations) if op.kind != "load"}
        kept = [made[v.name] for code in self.buffers.values() for v in variables(code) if v.kind == "value"]
        operations, results = tuple(self.operations), tuple(self.buffers.values())
        lines = _drop(Schedule(operations, {}), self.lines, kept)
        return Folding(Kernels(operations, (), lines, results), tuple(self.places), tuple(self.buffers))


def _rename(code: Expression, names: Mapping[str, str]) -> Expression:
    """An expression under other names of values."""
    return substitute(code, {v: replace(v, name=names[v.name]) for v in variables(code) if v.kind == "value"})
