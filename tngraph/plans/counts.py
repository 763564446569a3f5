"""The table of counts: what each is called, its unit, and its formula for a regime.

Regimes and plans have the counts as attributes. Tables, records and comparisons of plans go through `COUNTS`, so a
count that is added here is shown everywhere. `tngraph.program.counts.Counts` holds their values at given sizes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import sympy

from tngraph.program.counts import elementwise, find_largest, macs, param_count


class Count:
    """A count of a network: a row of every table, and the attribute of regimes and plans that is its formula.

    Attributes:
        name: the name of the attribute.
        label: its name in tables.
        unit: the unit of its value.
        formula: returns it for a regime in all sizes of the network.
        is_stored: whether it counts what a module stores whichever regime runs; then `formula` also takes a plan.
        has_cases: whether the formula has a case wherever an index has size 1, as those of memory have.
    """

    name: str

    def __init__(
        self,
        label: str,
        unit: str,
        formula: Callable[[Any], sympy.Expr],
        is_stored: bool = False,
        has_cases: bool = False,
    ) -> None:
        self.label, self.unit, self.formula, self.is_stored, self.has_cases = label, unit, formula, is_stored, has_cases

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Counted | None, kind: type | None = None) -> Any:
        """Return the formula, which is derived once and then kept; on a class, the count itself."""
        if owner is None:
            return self
        formula = owner.__dict__[self.name] = owner.derive(self)
        return formula


class Counted(ABC):
    """Something with counts, each a formula in all sizes of a network: a regime, or a plan over its regimes."""

    params = Count("params", "elements", lambda regime: param_count(regime.network), is_stored=True)
    """Learnable entries; a shared core counts once."""
    macs = Count("MAC", "MAC", lambda regime: macs(regime.operations))
    """Multiply-adds of one call."""
    flops = Count("FLOPs", "FLOPs", lambda regime: 2 * regime.macs)
    """Floating point operations of one call, 2 per MAC."""
    training_flops = Count("training", "FLOPs", lambda regime: 2 * regime.training_macs())
    """FLOPs of a forward and a backward pass, with the requested gradients."""
    elementwise = Count("elementwise", "operations", lambda regime: elementwise(regime.operations))
    """Elementwise operations of one call: all that are not contractions."""
    largest = Count("largest", "elements", lambda regime: find_largest(regime.operations))
    """The size of the largest value that a step writes."""
    peak = Count("peak", "bytes", lambda regime: regime.memory_by_case.peak, has_cases=True)
    """The most that a call without gradients holds at once (see `trace_memory`)."""
    saved = Count("saved", "bytes", lambda regime: regime.memory_by_case.saved, has_cases=True)
    """Memory that autograd keeps for the requested gradients."""
    moves = Count("moves", "bytes", lambda regime: regime.memory_by_case.moves, has_cases=True)
    """Memory that a call copies to change the order of axes."""
    folded = Count("folded", "bytes", lambda regime: regime.folding.elements * regime.request.itemsize, is_stored=True)
    """Memory of the buffers that calls read instead of computing; of a plan, those of all regimes."""

    @abstractmethod
    def derive(self, count: Count) -> sympy.Expr:
        """Return a count as a formula."""


COUNTS = tuple(count for count in vars(Counted).values() if isinstance(count, Count))
"""The counts, in the order in which tables show them."""
