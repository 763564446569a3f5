"""Comparison of two plans: totals, regimes and steps.

A step is identified by the values it combines, and a value by the tensors it is a product of, regardless of their order
and of the names of indices. So plans can be compared across bonds, orders, modes, and versions of a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from textwrap import shorten

import sympy

from tngraph.language.sizes import find_case
from tngraph.plans.decision import Decision
from tngraph.plans.regime import Regime
from tngraph.plans.table import format_formula, format_range, list_totals, window_names
from tngraph.program.counts import evaluate_count, volume, work_unit
from tngraph.program.operations import Operation

LONGEST_NAME = 60
"""The description of what a step contracts is cut to this length [characters]."""


@dataclass(frozen=True, slots=True)
class CountChange:
    """A total that differs between two plans.

    Attributes:
        name: its label.
        unit: of both values.
        before: its value in the first plan; None where it has no such total.
        after: its value in the second plan; None where it has no such total.
        formula: the second formula minus the first; None where one plan lacks the total.
    """

    name: str
    unit: str
    before: int | None
    after: int | None
    formula: sympy.Expr | None

    def __str__(self) -> str:
        numbers = f"{_number(self.before)} -> {_number(self.after)} [{self.unit}]"
        if self.formula is None:
            return f"{self.name:<12} {numbers}"
        if self.formula == 0:
            return f"{self.name:<12} {numbers}, the same formula"
        return f"{self.name:<12} {numbers}, difference {format_formula(self.formula)}"


@dataclass(frozen=True, slots=True)
class StepChange:
    """A step of one plan or of both.

    Attributes:
        computes: the nested names of what it computes.
        unit: of its work.
        before: its work in the first plan; None where it has no such step.
        after: its work in the second plan; None where it has no such step.
        before_formula: its work in the first plan as a formula.
        after_formula: its work in the second plan as a formula.
    """

    computes: str
    unit: str
    before: int | None
    after: int | None
    before_formula: sympy.Expr | None
    after_formula: sympy.Expr | None

    @property
    def sign(self) -> str:
        """``-`` if only the first plan has the step, ``+`` if only the second; ``=`` if both, ``~`` at another cost."""
        if self.after is None:
            return "-"
        if self.before is None:
            return "+"
        return "=" if (self.before, self.before_formula) == (self.after, self.after_formula) else "~"

    def __str__(self) -> str:
        if self.sign == "~":
            change = f"{_number(self.before)} -> {_number(self.after)} {self.unit}"
            formulas = [format_formula(expr) for expr in (self.before_formula, self.after_formula) if expr is not None]
            return f"~ {self.computes}: {change} = {' -> '.join(dict.fromkeys(formulas))}"
        work, formula = (self.after, self.after_formula) if self.before is None else (self.before, self.before_formula)
        shown = "" if formula is None or formula.is_Integer else f" = {format_formula(formula)}"
        return f"{self.sign} {self.computes}: {_number(work)} {self.unit}{shown}"


@dataclass(frozen=True, slots=True)
class PlanDifference:
    """Two plans side by side. It prints as text.

    Attributes:
        titles: each network with its sizes.
        requests: the request of each plan.
        counts: the totals that differ, in value or in formula.
        regimes: where the regimes of each plan run.
        steps: of the regimes that run at these sizes: those of the first plan in order, then those only in the second.
    """

    titles: tuple[str, str]
    requests: tuple[str, str]
    counts: tuple[CountChange, ...]
    regimes: tuple[str, str]
    steps: tuple[StepChange, ...]

    @property
    def is_empty(self) -> bool:
        """True if nothing but names differs."""
        return not self.counts and len({*self.requests}) == len({*self.regimes}) == 1 and not self._changed()

    def _changed(self) -> list[StepChange]:
        return [step for step in self.steps if step.sign != "="]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield " -> ".join(dict.fromkeys(self.titles))
        if self.is_empty:
            yield "  the plans do the same"
            return
        for label, pair in (("request", self.requests), ("regimes", self.regimes)):
            if pair[0] != pair[1]:
                yield f"  {label:<12} {pair[0]} -> {pair[1]}"
        yield from (f"  {count}" for count in self.counts)
        changed = self._changed()
        yield f"  steps        {len(self.steps) - len(changed)} in both at the same cost"
        yield from (f"  {step}" for step in changed)


def compare_plans(before: Decision, after: Decision, /, **sizes: int) -> PlanDifference:
    """Return how a second plan differs from a first, at some sizes, with the others as each plan was searched.

    Raises:
        SizeError: one of the networks does not have a size that is given, or a value is not a positive integer.
    """
    plans = (before, after)
    numbers = [plan.values(**sizes) for plan in plans]
    regimes = [plan.regime_of(values) for plan, values in zip(plans, numbers, strict=True)]
    windows = {**window_names(before.network), **window_names(after.network)}
    steps = [_list_steps(regime, values) for regime, values in zip(regimes, numbers, strict=True)]
    rows = [
        {t.label: (find_case(t.formula, values)[0], t.value, t.unit) for t in list_totals(plan, regime, values)}
        for plan, regime, values in zip(plans, regimes, numbers, strict=True)
    ]
    return PlanDifference(
        titles=(_title(before, numbers[0]), _title(after, numbers[1])),
        requests=(_describe_request(before), _describe_request(after)),
        counts=tuple(_changed_counts(rows[0], rows[1], windows)),
        regimes=(_describe_regimes(before), _describe_regimes(after)),
        steps=tuple(_match_steps(steps[0], steps[1], windows)),
    )


def _title(plan: Decision, numbers: Mapping[str, int]) -> str:
    at = ", ".join(f"{name} = {value}" for name, value in numbers.items())
    return f"{plan.network.name} at {at}" if at else plan.network.name


def _describe_request(plan: Decision) -> str:
    request = plan.request
    minimize = request.minimize if isinstance(request.minimize, str | Mapping) else type(request.rate).__name__
    limit = "" if request.memory_limit is None else f" within {request.memory_limit:,} bytes"
    stored = [core.name for core in plan.network.cores if core.role == "param"]
    frozen = [name for name in stored if name not in request.trained] if request.mode == "train" else []
    return f"{request.mode}, least {minimize}{limit}{f', {_listed(frozen)} frozen' if frozen else ''}"


def _listed(names: Sequence[str]) -> str:
    return shorten(", ".join(names), LONGEST_NAME, placeholder=" …")


def _describe_regimes(plan: Decision) -> str:
    if len(plan.free) == 1:
        return f"{plan.free[0]} {', '.join(format_range(regime.low, regime.high) for regime in plan.regimes)}"
    return f"{len(plan.regimes)} by cost" if len(plan.regimes) > 1 else "one for all sizes"


Row = tuple[sympy.Expr, int, str]
"""A count as a formula, its value, and its unit."""


def _changed_counts(
    before: Mapping[str, Row], after: Mapping[str, Row], windows: Mapping[sympy.Expr, sympy.Symbol]
) -> Iterator[CountChange]:
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            unit = (old or after[name])[2]
            yield CountChange(name, unit, old[1] if old else None, new[1] if new else None, None)
        elif old[:2] != new[:2]:
            difference = new[0].xreplace(windows) - old[0].xreplace(windows)
            yield CountChange(name, new[2], old[1], new[1], difference)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of one plan. Steps of two plans that compute the same have the same ``key``."""

    key: object
    computes: str
    unit: str
    formula: sympy.Expr
    work: int


def _list_steps(regime: Regime, numbers: Mapping[str, int]) -> list[_Step]:
    """Return the steps of a regime that do any work."""
    operations = regime.operations
    keys: list[int] = []
    drawn: list[str] = []
    steps = []
    for number, op in enumerate(operations):
        below = [keys[operand] for operand in op.operands]
        keys.append(_value_key(op, below))
        drawn.append(_draw(op, drawn))
        formula = volume(operations, number)
        if formula != 0:
            key = op.kind, op.number, op.function, *sorted(below)
            name = shorten(drawn[-1], LONGEST_NAME, placeholder=" …")
            steps.append(_Step(key, name, work_unit(op), formula, evaluate_count(formula, numbers)))
    return steps


def _value_key(op: Operation, below: Sequence[int]) -> int:
    """Return a key for a value. A product's is the sum of its factors' keys, so that their order does not matter."""
    if op.kind == "add" or op.function is not None:
        return _digest(op.kind, op.number, op.function, *below)
    if op.kind == "scale":
        return below[0] + _digest(op.number)
    if op.kind == "load" and not below:
        return _digest(op.name)
    return below[0] if op.kind in ("load", "view", "accumulate", "arrange", "join") else sum(below)


def _digest(*parts: object) -> int:
    return int.from_bytes(sha256(repr(parts).encode()).digest())


def _draw(op: Operation, drawn: Sequence[str]) -> str:
    """Return the computation of an operation as nested names, cut to little more than can be shown."""
    operands = [drawn[operand] for operand in op.operands]
    if op.kind == "load" or (op.kind in ("view", "read", "embed", "accumulate", "arrange", "join") and operands):
        return operands[0] if operands else op.name
    if op.kind == "add":
        sign = "-" if op.number < 0 else "+"
        text = f"({operands[0]} {sign} {operands[1]})"
    elif op.function is not None:
        text = f"{op.function.name}({operands[0]})"
    elif op.kind == "scale":
        text = f"({op.number} * {operands[0]})"
    else:
        text = f"({' '.join(operands)})" if len(operands) > 1 else f"{op.kind}({operands[0]})"
    return text[: 2 * LONGEST_NAME]


def _match_steps(
    before: Sequence[_Step], after: Sequence[_Step], windows: Mapping[sympy.Expr, sympy.Symbol]
) -> Iterable[StepChange]:
    """Yield each step of the first plan with its match in the second, then the unmatched steps of the second."""
    waiting: dict[object, list[_Step]] = {}
    for step in reversed(after):
        waiting.setdefault(step.key, []).append(step)
    for step in before:
        equals = waiting.get(step.key)
        yield _change(step, equals.pop() if equals else None, windows)
    left = {id(step) for steps in waiting.values() for step in steps}
    for step in after:
        if id(step) in left:
            yield _change(None, step, windows)


def _change(old: _Step | None, new: _Step | None, windows: Mapping[sympy.Expr, sympy.Symbol]) -> StepChange:
    named = old or new
    assert named is not None
    formulas = [None if step is None else step.formula.xreplace(windows) for step in (old, new)]
    return StepChange(
        named.computes, named.unit, old.work if old else None, new.work if new else None, formulas[0], formulas[1]
    )


def _number(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
