"""Folding, for weights that never change: values that depend on no input and no run-time size are computed in advance.

A schedule is split in two. The lines of each call load a folded value as they load a param, which costs the call no
work and no memory. The lines before the first call end in *buffers*: the folded values as their readers want them, with
axes in order and fused, so that no weight is permuted at a call.

A buffer is named by a digest of everything that goes into it, so that regimes that fold the same value store it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import NamedTuple

import sympy

from tngraph.language.legs import legs_size
from tngraph.language.network import Index, Network
from tngraph.language.sizes import evaluate_size, product
from tngraph.language.varying import Varying, call_sizes, find_varying
from tngraph.program.expressions import Call, Expression, Variable, calls_in, variables
from tngraph.program.kinds import entry_of
from tngraph.program.lines import Line, Program, find_drops
from tngraph.program.operations import Block, Operation, Schedule
from tngraph.search.objectives import Request


@dataclass(frozen=True, slots=True)
class Split:
    """A schedule divided into what runs before the first call and what each call runs.

    Attributes:
        whole: all operations.
        fixed: the operations whose value is the same at every call.
        folded: the fixed operations whose value may be stored.
        called: the operations that each call runs, or loads if they are folded.
    """

    whole: Schedule
    fixed: frozenset[int]
    folded: frozenset[int]
    called: tuple[int, ...]

    @property
    def places(self) -> dict[int, int]:
        """The place of each operation among those of a call."""
        return {number: place for place, number in enumerate(self.called)}

    def schedule(self) -> Schedule:
        """Return the schedule that each call runs."""
        if not self.folded:
            return self.whole
        places = self.places
        operations = tuple(
            _load(op) if number in self.folded else renumber(op, places)
            for number, op in ((number, self.whole.operations[number]) for number in self.called)
        )
        results = {name: places[number] for name, number in self.whole.results.items() if number in places}
        return Schedule(operations, results, tuple(_move(block, places) for block in self.whole.blocks))


def _load(op: Operation) -> Operation:
    """Return the load that replaces a folded operation."""
    return Operation("load", (), op.legs, op.name)


def renumber(op: Operation, places: Mapping[int, int]) -> Operation:
    """Return an operation whose operands have the numbers of another schedule."""
    return replace(op, operands=tuple(places[operand] for operand in op.operands))


def _move(block: Block, places: Mapping[int, int]) -> Block:
    inside = [places[number] for number in range(block.first, block.last + 1) if number in places]
    return replace(block, first=inside[0], last=inside[-1])


def split_schedule(whole: Schedule, merged: Network, request: Request, numbers: Mapping[str, int]) -> Split:
    """Divide a schedule into what runs before the first call and the rest. Only ``serve`` has the former.

    Args:
        whole: every operation.
        merged: the network it computes.
        request: the mode, and the largest value that is folded.
        numbers: an integer for every size, at which values are compared with that limit.
    """
    operations = whole.operations
    if request.mode != "serve":
        return Split(whole, frozenset(), frozenset(), tuple(range(len(operations))))
    fixed = _find_fixed(operations, find_varying(merged))
    most = request.most_folded
    folded = frozenset(
        number for number in fixed if most is None or evaluate_size(legs_size(operations[number].legs), numbers) <= most
    )
    used = {operand for op in operations for operand in op.operands}
    ends = {whole.results[port.name] for port in merged.outputs}
    ends.update(number for number in range(len(operations)) if number not in used)
    return Split(whole, fixed, folded, _needed(operations, ends, folded))


def _find_fixed(operations: Sequence[Operation], varying: Varying) -> frozenset[int]:
    """Return the operations, without loads, whose value is the same at every call and has storage of its own."""
    fixed: list[bool] = []
    for op in operations:
        is_same = op.access is None or varying.is_same(op.access)
        stands_alone = entry_of(op).stands_alone and not op.loops
        fixed.append(is_same and stands_alone and all(fixed[operand] for operand in op.operands))
    return frozenset(number for number, op in enumerate(operations) if fixed[number] and op.kind != "load")


def _needed(operations: Sequence[Operation], roots: Iterable[int], stored: frozenset[int]) -> tuple[int, ...]:
    """Return the operations that some values depend on, including these, without those of stored ones."""
    needed = set(roots)
    for number in range(len(operations) - 1, -1, -1):
        if number in needed and number not in stored:
            needed.update(operations[number].operands)
    return tuple(sorted(needed))


@dataclass(frozen=True, slots=True)
class Folding:
    """The lines that run before the first call.

    Attributes:
        program: their operations and lines. The results are stored in buffers.
        keys: a key for every operation, equal for operations that compute the same.
        buffers: the variables by which calls read the results.
    """

    program: Program = field(default_factory=lambda: Program((), (), (), ()))
    keys: tuple[str, ...] = ()
    buffers: tuple[Variable, ...] = ()

    @property
    def elements(self) -> sympy.Expr:
        """The entries of all buffers [elements]."""
        return sympy.Add(*(product(buffer.shape) for buffer in self.buffers))


class Folded(NamedTuple):
    """The lines of a call, and those before the first call."""

    program: Program
    folding: Folding


def fold_program(
    whole: Program, split: Split, network: Network, most: int | None, numbers: Mapping[str, int]
) -> Folded:
    """Return the lines of each call, which read buffers for values that never change, and those that fill them.

    Args:
        whole: the lines of all operations.
        split: which of them a call runs.
        network: the network that is computed.
        most: the largest buffer [elements]; None for no limit.
        numbers: an integer for every size, at which buffers are compared with that limit.
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
    called = Program(schedule.operations, schedule.blocks, with_drops(schedule, lines, outputs), results)
    return Folded(called, hoist.write())


def with_drops(schedule: Schedule, lines: Iterable[Line], lasting: Iterable[int]) -> tuple[Line, ...]:
    """Return lines with the values that may be dropped after each."""
    drops = find_drops(schedule, lasting)
    return tuple(replace(line, dropped=drops[line.number]) for line in lines)


class _Hoist:
    """A rewriter of expressions that puts buffers in place of values that never change, and collects the buffers."""

    def __init__(
        self, whole: Program, split: Split, most: int | None, numbers: Mapping[str, int], runtime: frozenset[str]
    ) -> None:
        self.whole, self.split, self.most, self.numbers, self.runtime = whole, split, most, numbers, runtime
        self.numbers_of = {whole.operations[k].name: k for k in split.fixed}
        self.folded = {whole.operations[k].name for k in split.folded}
        self.digests: dict[str, str] = {}
        for line in whole.lines:
            if line.number in split.fixed:
                self.digests[whole.operations[line.number].name] = _digest(line.code, self.digests)
        self.buffers: dict[Variable, Expression] = {}

    def replace(self, code: Expression) -> Expression:
        """Return an expression that reads buffers where it can."""
        if self._is_stored(code):
            buffer = Variable("buffer", _digest(code, self.digests), code.shape)
            self.buffers[buffer] = code
            return buffer
        return self.replace_operands(code) if isinstance(code, Call) else code

    def replace_operands(self, code: Expression) -> Expression:
        """Return a line's expression with buffers as operands where it can.

        The outermost call stays, and the product or convolution of the line wherever it stands in it (a transposed
        convolution is padded to a run-time size): the counts of the plan include them.
        """
        if isinstance(code, Call):
            return replace(code, operands=tuple(map(self.replace, code.operands)))
        return self.replace(code)

    def _is_stored(self, code: Expression) -> bool:
        """Return whether to keep an expression in a buffer: a folded value, or a stored tensor in another order."""
        if isinstance(code, Variable):
            return code.kind == "value" and code.name in self.folded
        if code.function == "expand" or any(call.torch.is_counted for call in calls_in(code)):
            return False  # "expand" is a view of a tensor that may be stored; the plan counts the work of the others
        names = [*variables(code)]
        is_fixed = bool(names) and all(v.kind == "stored" or v.name in self.folded for v in names)
        return is_fixed and not _is_stored_view(code) and not _varies(code, self.runtime) and self._fits(code)

    def _fits(self, code: Expression) -> bool:
        return self.most is None or evaluate_size(product(code.shape), self.numbers) <= self.most

    def write(self) -> Folding:
        """Return the operations and lines that fill the buffers."""
        ends = {self.numbers_of[v.name] for code in self.buffers.values() for v in variables(code) if v.kind == "value"}
        needed = _needed(self.whole.operations, ends, frozenset())
        places = {number: place for place, number in enumerate(needed)}
        operations = tuple(renumber(self.whole.operations[number], places) for number in needed)
        lines = (replace(line, number=places[line.number]) for line in self.whole.lines if line.number in places)
        dropping = with_drops(Schedule(operations, {}), lines, [places[number] for number in ends])
        keys = tuple(self.digests.get(op.name, "") if op.kind != "load" else repr(op) for op in operations)
        return Folding(Program(operations, (), dropping, tuple(self.buffers.values())), keys, tuple(self.buffers))


def _is_stored_view(code: Expression) -> bool:
    """Return whether an expression is only a view of a stored tensor, fused or transposed, as products read it."""
    if isinstance(code, Call) and code.function == "permute" and code.arguments == (1, 0):
        code = code.operands[0]
    while isinstance(code, Call) and code.function in ("reshape", "contiguous"):
        code = code.operands[0]
    return isinstance(code, Variable)


def _varies(code: Expression, runtime: frozenset[str]) -> bool:
    """Return whether an expression contains a run-time size or the position of a slice."""
    if isinstance(code, Variable):
        return False
    entries = (entry for value in (*code.shape, *code.arguments) for entry in _entries(value))
    return any(_is_varying(entry, runtime) for entry in entries) or any(_varies(o, runtime) for o in code.operands)


def _entries(value: object) -> tuple[object, ...]:
    """Return the entries of a pair or list of options, or a value alone."""
    return value if isinstance(value, tuple) else (value,)


def _is_varying(value: object, runtime: frozenset[str]) -> bool:
    """Return whether a size or argument is the position of a slice, or depends on a run-time size."""
    sizes = {size.name for size in getattr(value, "free_symbols", ())}
    return isinstance(value, Index) or not runtime.isdisjoint(sizes)


def _digest(code: Expression, digests: Mapping[str, str]) -> str:
    """Return a name for an expression's value, equal wherever the same calls are made on the same tensors."""
    if isinstance(code, Variable):
        return digests[code.name] if code.kind == "value" else code.name
    call = code.function, [_digest(operand, digests) for operand in code.operands], code.arguments, code.shape
    return sha256(repr(call).encode()).hexdigest()
