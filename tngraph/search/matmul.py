"""The operands of a contraction in a given matmul layout: matrices with the axes and the order that it wants.

The schedule uses this to lay out once what never changes and what gradients read too. Gradients and kernels use it to
read what the schedule has laid out.
"""

from __future__ import annotations

from collections.abc import Sequence

from tngraph.language.network import Leg
from tngraph.search.region import ContractionTree, MatmulLayout, arrangements

Legs = tuple[Leg, ...]


def operand_axes(matmul: MatmulLayout, orders: Sequence[Legs], side: int) -> tuple[Legs, ...]:
    """Return the axes that an operand is brought to: the outer legs, if it has them, and the two sides of its matrices.

    Args:
        matmul: the matmul layout of the contraction.
        orders: the legs of both operands as they lie.
        side: 0 for the left operand, 1 for the right one.
    """
    is_left = gives_rows(matmul, orders, side)
    sides = (matmul.rows, matmul.summed) if is_left else (matmul.summed, matmul.columns)
    if matmul.transposed[not is_left]:
        sides = sides[::-1]
    outer = matmul.outer if set(matmul.outer).issubset(orders[side]) else ()
    return (outer, *sides) if outer else sides


def gives_rows(matmul: MatmulLayout, orders: Sequence[Legs], side: int) -> bool:
    """Return whether an operand is the one whose own legs are the rows."""
    is_first = set(orders[0]).issuperset(matmul.rows) and set(orders[1]).issuperset(matmul.columns)
    return is_first == (side == 0)


def arranged_axes(tree: ContractionTree, step: int, operand: int) -> tuple[Legs, ...]:
    """Return the axes that a step of a laid-out tree copies an operand into; none if it reads it as it lies."""
    if tree.steps[step].kind != "contract":
        return ()
    operands = tree.steps[step].operands
    side, orders = operands.index(operand), [tree.order(o) for o in operands]
    axes = operand_axes(tree.matmuls[step], orders, side)
    return axes if is_copied(orders[side], axes) else ()


def is_copied(order: Legs, axes: Sequence[Legs]) -> bool:
    """Return whether bringing a value to these axes copies it."""
    outer = axes[0] if len(axes) == 3 else ()
    return order not in arrangements(outer, *axes[-2:])
