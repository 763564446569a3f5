"""The axes of values in memory, and the calls that bring them into the order that a kernel wants.

A `LaidOut` is an expression of the generated code with its legs in memory order, fused into axes. `arrange` returns the
cheapest chain of ``reshape`` and ``permute`` to another order and fusing: nothing where it already fits, and a view
where only the fusing differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from tngraph.language.legs import legs_size
from tngraph.language.network import Index, Leg, Read
from tngraph.language.sizes import evaluate_size
from tngraph.program.expressions import Call, Expression, Shape, contiguous, permute, reshape

Axes = tuple[tuple[Leg, ...], ...]


@dataclass(frozen=True, slots=True)
class LaidOut:
    """An expression of the generated code and its axes: tuples of fused legs, slowest first; () has size 1."""

    code: Expression
    axes: Axes

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs in memory order."""
        return tuple(leg for axis in self.axes for leg in axis)


def separate(legs: Sequence[Leg]) -> Axes:
    """Return axes with one leg each."""
    return tuple((leg,) for leg in legs)


def axes_shape(axes: Axes) -> Shape:
    """Return the sizes of axes."""
    return tuple(legs_size(axis) for axis in axes)


def arrange(tensor: LaidOut, axes: Axes) -> Expression:
    """Return the expression that gives a tensor these axes.

    Args:
        tensor: the tensor to rearrange.
        axes: its legs in the order and fusing that are wanted.
    """
    wanted = [leg for axis in axes for leg in axis]
    if list(tensor.legs) == wanted:
        return tensor.code if tensor.axes == axes else reshape(tensor.code, axes_shape(axes))
    runs = _adjacent_runs(tensor.legs, axes)
    code = tensor.code if tensor.axes == runs else reshape(tensor.code, axes_shape(runs))
    order = sorted(range(len(runs)), key=lambda k: wanted.index(runs[k][0]))
    permuted = tuple(runs[k] for k in order)
    code = permute(code, order)
    return code if permuted == axes else reshape(code, axes_shape(axes))


def lay(tensor: LaidOut, axes: Axes) -> Expression:
    """Return the expression that gives a tensor these axes, copied into their order before they are fused.

    At some sizes a ``reshape`` alone is a view with gaps, which PyTorch's products copy matrix by matrix.
    """
    code = arrange(tensor, axes)
    if not isinstance(code, Call) or tensor.legs == tuple(leg for axis in axes for leg in axis):
        return code
    if code.function == "permute":
        return contiguous(code)
    return replace(code, operands=(contiguous(code.operands[0]),))


def arrange_then_convert(tensor: LaidOut, axes: Axes) -> Expression:
    """Return a tensor arranged into axes, with any conversion of its type done last.

    The arranged tensor below the conversion may then be folded.
    """
    code = tensor.code
    if not isinstance(code, Call) or code.function != "type_as":
        return arrange(tensor, axes)
    arranged = arrange(replace(tensor, code=code.operands[0]), axes)
    return replace(code, operands=(arranged, code.operands[1]), shape=arranged.shape)


def compute(function: str, operands: tuple[Expression, ...], axes: Axes, *arguments: object) -> LaidOut:
    """Return a call whose result has these axes."""
    return LaidOut(Call(function, operands, arguments, axes_shape(axes)), axes)


def _adjacent_runs(legs: Sequence[Leg], axes: Axes) -> Axes:
    """Return the longest runs of legs that stay adjacent on one axis.

    Longer ones would be fused and split again, and inductor cannot split what was fused.
    """
    place = {leg: (k, position) for k, axis in enumerate(axes) for position, leg in enumerate(axis)}
    runs: list[tuple[Leg, ...]] = []
    for leg in legs:
        axis, position = place[leg]
        if runs and place[runs[-1][-1]] == (axis, position - 1):
            runs[-1] += (leg,)
        else:
            runs.append((leg,))
    return tuple(runs)


@dataclass(frozen=True, slots=True)
class Context:
    """The sizes that the choices of a rule depend on.

    Attributes:
        numbers: the value of every size that was planned for.
        runtime: the sizes read off shapes. A choice that PyTorch would fix in a traced graph must not depend on them.
        positions: the indices that convolutions resolve to, such as height and width.
    """

    numbers: Mapping[str, int]
    runtime: frozenset[str] = frozenset()
    positions: frozenset[Index] = frozenset()

    def is_position(self, leg: Leg) -> bool:
        """Return whether a leg is one that a window slides over or its result."""
        return isinstance(leg, Read) or leg in self.positions

    def is_fixed(self, expr: sympy.Expr) -> bool:
        """Return whether a size is known once the module is built."""
        return all(symbol.name not in self.runtime for symbol in expr.free_symbols)

    def size(self, legs: Sequence[Leg]) -> int:
        """Return the elements of a value at the sizes planned for."""
        return evaluate_size(legs_size(legs), self.numbers)
