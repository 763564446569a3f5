"""The kinds of operations: one entry per kind says everything that the package knows of it.

Counting, typing, folding, writing lines, differentiating and showing a schedule are loops over its operations that look
up the entry of each. An operation of a kind without an entry raises in the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import sympy

from tngraph.language.legs import legs_size
from tngraph.language.network import Leg
from tngraph.program import kernels
from tngraph.program.kernels import GradientRule, Rule
from tngraph.program.operations import Kind, Operation
from tngraph.search.region import counted_legs

Unit = Literal["MAC", "elementwise"]
Count = Callable[[Operation, Sequence[Sequence[Leg]]], sympy.Expr]
Show = Callable[[Operation, Sequence[str]], str]


def _count_nothing(op: Operation, operands: Sequence[Sequence[Leg]]) -> sympy.Expr:
    return sympy.Integer(0)


def _count_step(op: Operation, operands: Sequence[Sequence[Leg]]) -> sympy.Expr:
    """Count the products of a step, or the entries that it sums."""
    return legs_size(counted_legs(op.kind, operands, op.legs))


def _count_result(op: Operation, operands: Sequence[Sequence[Leg]]) -> sympy.Expr:
    return legs_size(op.legs)


def _count_operand(op: Operation, operands: Sequence[Sequence[Leg]]) -> sympy.Expr:
    return legs_size(operands[0])


def _show_function(op: Operation, names: Sequence[str]) -> str:
    return f"{op.kind}({', '.join(names)})"


def _show_product(op: Operation, names: Sequence[str]) -> str:
    return " * ".join(names)


def _show_operand(op: Operation, names: Sequence[str]) -> str:
    return names[0]


def _show_add(op: Operation, names: Sequence[str]) -> str:
    return f"{names[0]} {'-' if op.number < 0 else '+'} {names[1]}"


def _show_pointwise(op: Operation, names: Sequence[str]) -> str:
    assert op.function is not None
    return f"{op.function.name}({names[0]})"


def _show_join(op: Operation, names: Sequence[str]) -> str:
    assert op.tile is not None
    return f"{names[0]} for {op.tile.size} of {op.tile.index.name} at a time"


def _show_accumulate(op: Operation, names: Sequence[str]) -> str:
    return f"sum of {names[0]} over {', '.join(index.name for index in op.loops)}"


@dataclass(frozen=True, slots=True)
class KindEntry:
    """Everything that is known of a kind of operation.

    Attributes:
        write: returns its result as an expression; None if it is part of the lines that use it.
        unit: the unit of its work; None if it does no arithmetic.
        count: returns its work in one slice, given the legs of its operands.
        is_differentiated: whether the gradient of an operand is as much work as the step.
        is_saving: whether autograd saves an operand or its result. A line that gathers saves positions besides.
        gradient: returns the gradient of an operand in a planned backward pass; None if none is planned.
        is_rearranging: whether it only gives its operand other axes, so that gradients pass through it.
        stands_alone: whether it may run before the first call, away from the operations around it.
        is_matrix_product: whether its result has the type that PyTorch gives matrix products in mixed precision.
        is_typed_as_product: whether an operand computed from stored tensors takes the type of a product beside it.
        has_row: whether the table of a plan has a row for it.
        show: returns what it computes from the names of its operands, as ``t1 * w2``.
    """

    write: Rule | None
    unit: Unit | None = "elementwise"
    count: Count = _count_step
    is_differentiated: bool = False
    is_saving: bool = False
    gradient: GradientRule | None = None
    is_rearranging: bool = False
    stands_alone: bool = True
    is_matrix_product: bool = False
    is_typed_as_product: bool = False
    has_row: bool = True
    show: Show = _show_function


KINDS: Mapping[Kind, KindEntry] = {
    "load": KindEntry(write=None, unit=None, count=_count_nothing, has_row=False),
    "read": KindEntry(kernels.write_read, unit=None, count=_count_nothing),
    "sum": KindEntry(kernels.write_sum),
    "contract": KindEntry(
        kernels.write_contraction,
        unit="MAC",
        is_differentiated=True,
        is_saving=True,
        gradient=kernels.multiply_matrices,
        is_matrix_product=True,
        show=_show_product,
    ),
    "mul": KindEntry(
        kernels.write_mul,
        is_differentiated=True,
        is_saving=True,
        gradient=kernels.multiply_entries,
        is_typed_as_product=True,
        show=_show_product,
    ),
    "conv": KindEntry(
        kernels.write_conv,
        unit="MAC",
        is_differentiated=True,
        is_saving=True,
        is_matrix_product=True,
        show=_show_product,
    ),
    # Where PyTorch has no call for it, it is a product and a sum, which mixed precision leaves wide.
    "conv_transpose": KindEntry(
        kernels.write_conv_transpose, unit="MAC", is_differentiated=True, is_saving=True, show=_show_product
    ),
    "scale": KindEntry(
        kernels.write_scale,
        count=_count_result,
        is_differentiated=True,
        gradient=kernels.scale_gradient,
        show=lambda op, names: f"{op.number} * {names[0]}",
    ),
    "add": KindEntry(kernels.write_add, count=_count_result, is_typed_as_product=True, show=_show_add),
    "pointwise": KindEntry(
        kernels.write_pointwise, count=_count_result, is_differentiated=True, is_saving=True, show=_show_pointwise
    ),
    "embed": KindEntry(kernels.write_embed, unit=None, count=_count_nothing),
    "view": KindEntry(
        kernels.write_view,
        unit=None,
        count=_count_nothing,
        is_rearranging=True,
        stands_alone=False,
        has_row=False,
        show=_show_operand,
    ),
    "arrange": KindEntry(
        kernels.write_arrange, unit=None, count=_count_nothing, is_rearranging=True, show=_show_operand
    ),
    "accumulate": KindEntry(kernels.write_accumulate, count=_count_operand, stands_alone=False, show=_show_accumulate),
    "join": KindEntry(kernels.write_join, unit=None, count=_count_nothing, stands_alone=False, show=_show_join),
}


def entry_of(op: Operation) -> KindEntry:
    """Return the entry of an operation's kind.

    Raises:
        LookupError: if the kind has no entry.
    """
    entry = KINDS.get(op.kind)
    if entry is None:
        raise LookupError(
            f"nothing is known of operations of kind {op.kind!r}: add an entry in tngraph/program/kinds.py"
        )
    return entry
