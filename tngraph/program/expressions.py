"""Printed lines as data: an expression is a variable or one call of PyTorch on expressions.

Every expression has a shape in the sizes of the network. Printing (`lowering`) and following memory (`memory`) are two
loops over the same values, with a rule per function.

A call stands for PyTorch's function of that name, with these arguments:

| function | arguments | function | arguments |
| --- | --- | --- | --- |
| reshape | | permute | the order of the axes |
| contiguous | | movedim | from, to |
| pad | (before, after) per axis | narrow | axis, first, length |
| select | axis, position | every | axis, step |
| unfold | axis, size, step | gather | axis (at positions, the other operands: one per axis from there on) |
| index_select | axis (at positions) | diagonal | first axis, second axis |
| unsqueeze | axis | flip | axes |
| expand | | | |
| mm, bmm, mul, add, sub | | scale | factor |
| sum | axes | pointwise, pointwise_ | the function and its numbers; over its operand |
| conv | stride, padding, dilation, groups | diag_embed | |
| conv_transpose | stride, padding, output_padding, groups | | |
| ones, eye | | full | value |
| arange | stop, or start and stop (and step) | remainder | modulus, unless it is the second operand |
| equals | number | convert | |
| type_as | (that of the second operand) | | |
| clamp | maximum; the minimum is 0 | differs | |
| masked_fill | | | |
| accumulate | the indices of the slices | join | axis, size of a tile |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import sympy

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


Expression = Variable | Call

COUNTED = frozenset({"mm", "bmm", "conv", "conv_transpose"})
"""The functions whose FLOPs PyTorch counts. A line that calls one is an operation whose work the plan counts."""


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


def functions_in(code: Expression) -> frozenset[str]:
    """Return the functions that an expression calls."""
    if isinstance(code, Variable):
        return frozenset()
    return frozenset({code.function}).union(*map(functions_in, code.operands))


def substitute(code: Expression, known: Mapping[Expression, Expression]) -> Expression:
    """Return an expression with some subexpressions replaced."""
    if code in known:
        return known[code]
    if isinstance(code, Variable):
        return code
    return replace(code, operands=tuple(substitute(operand, known) for operand in code.operands))


def replace_axis(shape: Shape, axis: int, size: sympy.Expr) -> Shape:
    """Return a shape with another size on one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def every(operand: Expression, axis: int, step: int, size: sympy.Expr) -> Expression:
    """Return a view of every `step`-th entry along an axis, which then has `size` entries."""
    if step == 1:
        return operand
    return Call("every", (operand,), (axis, step), replace_axis(operand.shape, axis, size))
