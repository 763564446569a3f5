"""One folding for several regimes: what they compute in common before the first call runs, and is stored, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

from tngraph.program.expressions import Expression, Variable, substitute, variables
from tngraph.program.folding import Folding, renumber, with_drops
from tngraph.program.lines import Line, Program
from tngraph.program.operations import Operation, Schedule


def merge_foldings(foldings: Sequence[Folding]) -> Folding:
    """Return what runs before the first call for several regimes, with what they have in common only once."""
    merge = _Merge()
    for folding in foldings:
        merge.add(folding)
    return merge.write()


class _Merge:
    """A collection of distinct operations, each under a name of its own."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.operations: list[Operation] = []
        self.lines: list[Line] = []
        self.buffers: dict[Variable, Expression] = {}

    def add(self, folding: Folding) -> None:
        """Add the operations of a folding that are new."""
        places: list[int] = []
        names: dict[str, str] = {}
        lines = {line.number: line for line in folding.program.lines}
        for number, (op, key) in enumerate(zip(folding.program.operations, folding.keys, strict=True)):
            if key not in self.places:
                self.places[key] = len(self.operations)
                self.operations.append(replace(renumber(op, dict(enumerate(places))), name=self._name(op)))
                if number in lines:
                    code = _rename(lines[number].code, names)
                    self.lines.append(replace(lines[number], number=self.places[key], code=code))
            places.append(self.places[key])
            if number in lines:
                names[op.name] = self.operations[places[number]].name
        for buffer, code in zip(folding.buffers, folding.program.results, strict=True):
            self.buffers.setdefault(buffer, _rename(code, names))

    def _name(self, op: Operation) -> str:
        taken = {other.name for other in self.operations if other.kind != "load"}
        names = (f"{op.name}_{k}" if k > 1 else op.name for k in count(1))
        return op.name if op.kind == "load" else next(name for name in names if name not in taken)

    def write(self) -> Folding:
        """Return the whole collection, with values dropped once nothing needs them."""
        numbers = {op.name: number for number, op in enumerate(self.operations) if op.kind != "load"}
        stored = [numbers[v.name] for code in self.buffers.values() for v in variables(code) if v.kind == "value"]
        operations, results = tuple(self.operations), tuple(self.buffers.values())
        lines = with_drops(Schedule(operations, {}), self.lines, stored)
        return Folding(Program(operations, (), lines, results), tuple(self.places), tuple(self.buffers))


def _rename(code: Expression, names: Mapping[str, str]) -> Expression:
    """Return an expression with its values renamed."""
    return substitute(code, {v: replace(v, name=names[v.name]) for v in variables(code) if v.kind == "value"})
