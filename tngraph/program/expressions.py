"""Printed lines as data: an expression is a variable or one call of PyTorch on expressions.

Every expression has a shape in the sizes of the network. Printing (`lowering`) and following memory (`memory`) are two
loops over the same values, with a rule per function.

A call stands for PyTorch's function of that name. `pytorch.FUNCTIONS` has an entry for each, with its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import sympy

from tngraph.program.pytorch import FUNCTIONS, TorchFunction

Shape = tuple[sympy.Expr, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A name of the generated code: an input, a stored tensor, the value of an earlier operation, or a folded one."""

    kind: Literal["input", "stored", "value", "buffer"]
    name: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Call:
    """One call of PyTorch, with the shape of what it returns."""

    function: str
    operands: tuple[Expression, ...]
    arguments: tuple[Any, ...]
    shape: Shape

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            raise LookupError(
                f"nothing is known of the PyTorch function {self.function!r}: "
                "add an entry to FUNCTIONS in tngraph/program/pytorch.py, and a rule to print it in lowering/calls.py"
            )

    @property
    def torch(self) -> TorchFunction:
        """The entry of its function in the table of PyTorch functions."""
        return FUNCTIONS[self.function]


Expression = Variable | Call


def reshape(operand: Expression, shape: Sequence[sympy.Expr]) -> Call:
    """Return a tensor with its entries under other axes: a view where the strides allow one."""
    return Call("reshape", (operand,), (), tuple(shape))


def permute(operand: Expression, order: Sequence[int]) -> Call:
    """Return a view whose axis k is axis ``order[k]`` of the operand."""
    if isinstance(operand, Call) and operand.function == "permute":
        (source,) = operand.operands
        return permute(source, [operand.arguments[k] for k in order])
    return Call("permute", (operand,), tuple(order), tuple(operand.shape[k] for k in order))


def contiguous(operand: Expression) -> Call:
    """Return a copy in the order of the axes, or the operand itself if it already lies so."""
    return Call("contiguous", (operand,), (), operand.shape)


def flip(operand: Expression, axes: Sequence[int]) -> Expression:
    """Return a copy with some axes reversed, or the operand itself if there are none."""
    return Call("flip", (operand,), tuple(axes), operand.shape) if axes else operand


def variables(code: Expression) -> Iterator[Variable]:
    """Yield the variables in an expression, from left to right."""
    if isinstance(code, Variable):
        yield code
    else:
        for operand in code.operands:
            yield from variables(operand)


def calls_in(code: Expression) -> Iterator[Call]:
    """Yield the calls in an expression, each before those in its operands."""
    if isinstance(code, Call):
        yield code
        for operand in code.operands:
            yield from calls_in(operand)


def substitute(code: Expression, replacements: Mapping[Expression, Expression]) -> Expression:
    """Return an expression with replacements for some of its subexpressions."""
    if code in replacements:
        return replacements[code]
    if isinstance(code, Variable):
        return code
    return replace(code, operands=tuple(substitute(operand, replacements) for operand in code.operands))


def replace_axis(shape: Shape, axis: int, size: sympy.Expr) -> Shape:
    """Return a shape with another size on one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def every(operand: Expression, axis: int, step: int, size: sympy.Expr) -> Expression:
    """Return a view of every `step`-th entry along an axis, which then has `size` entries."""
    if step == 1:
        return operand
    return Call("every", (operand,), (axis, step), replace_axis(operand.shape, axis, size))
