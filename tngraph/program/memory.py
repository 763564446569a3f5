"""The memory of a module's lines: the bytes alive at every moment, and the bytes that autograd saves.

`trace_memory` runs the lines of a program on layouts instead of tensors (see `trace`). Params, buffers and inputs exist
anyway and do not count. Every storage has a size in bytes and a formula; `cases` says for which sizes formulas hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import sympy

from tngraph.language.sizes import symbol
from tngraph.program.clock import Timer
from tngraph.program.counts import maximum
from tngraph.program.lines import Program
from tngraph.program.storages import Sizes, Storage
from tngraph.program.trace import Evaluator, Trace

ITEMSIZE = 4
"""The size of a number in single precision, the default [bytes]."""
DOUBLE = 8
"""The size of a number in double precision, in which layers are verified [bytes]."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The storages of a run.

    Attributes:
        moments: the storages alive together, at each moment when more are alive than just before and just after.
        saved_storages: the storages that autograd saves.
        keepers: each saved storage, with the operations that write to it and those that save it.
        moved: the storages of copies into another order.
    """

    moments: tuple[tuple[Storage, ...], ...]
    saved_storages: tuple[Storage, ...]
    keepers: tuple[tuple[Storage, frozenset[int], frozenset[int]], ...] = ()
    moved: tuple[Storage, ...] = ()

    @property
    def peak(self) -> int:
        """The most bytes alive at once [bytes]."""
        return max((sum(storage.bytes for storage in alive) for alive in self.moments), default=0)

    @property
    def saved(self) -> int:
        """The bytes saved for the backward pass [bytes]."""
        return sum(storage.bytes for storage in self.saved_storages)

    @property
    def moves(self) -> int:
        """The bytes written by copies into another order [bytes]."""
        return sum(storage.bytes for storage in self.moved)

    def formulas(self, fixed: Mapping[str, int]) -> MemoryFormulas:
        """Return peak, saved and moves as formulas, with numbers for the fixed sizes [bytes]."""
        peak = maximum(sympy.Add(*(storage.formula for storage in alive)) for alive in self.moments)
        saved, moves = (sympy.Add(*(storage.formula for storage in held)) for held in (self.saved_storages, self.moved))
        return MemoryFormulas(*(fix_sizes(formula, fixed) for formula in (peak, saved, moves)))


class MemoryFormulas(NamedTuple):
    """The peak, and the bytes saved and moved, as formulas [bytes]."""

    peak: sympy.Expr
    saved: sympy.Expr
    moves: sympy.Expr


def fix_sizes(formula: sympy.Expr, fixed: Mapping[str, int]) -> sympy.Expr:
    """Return a count with numbers for some sizes, multiplied out."""
    numbers = {symbol(name): sympy.Integer(value) for name, value in fixed.items()}
    candidates = formula.args if formula.func is sympy.Max else (formula,)
    return maximum(sympy.expand(candidate.xreplace(numbers)) for candidate in candidates)


def trace_memory(
    program: Program,
    numbers: Mapping[str, int],
    trained: Iterable[str] = (),
    itemsize: int = ITEMSIZE,
    timer: Timer | None = None,
) -> Memory:
    """Return the storages that the lines of a module hold at some sizes.

    Args:
        program: the lines.
        numbers: an integer for every named size.
        trained: the tensors that take a gradient; the peak is still that of a run without gradients.
        itemsize: the size of a number [bytes].
        timer: is told of every call, to add up times.
    """
    evaluator = Evaluator(Sizes(numbers), frozenset(trained), itemsize, timer or Timer())
    Trace(program, evaluator).run(program.lines)
    for result in program.results:
        evaluator.evaluate(result)
    evaluator.heap.note()
    saved = evaluator.saved
    keepers = ((storage, frozenset(saved.writers[storage]), frozenset(by)) for storage, by in saved.savers.items())
    return Memory(tuple(evaluator.heap.moments), tuple(saved.storages.values()), tuple(keepers), tuple(evaluator.moved))
