"""The axes of values in memory, and the views and permutes that bring them into the order a kernel wants.

A `Tensor` is an expression of the generated code with its legs in memory order and how they are fused into axes.
`arrange` makes the cheapest chain of ``reshape`` and ``permute`` to another order and fusing: nothing where it
already fits, a view where only the fusing differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from tngraph.kernels.expressions import Call, Expression, Shape, contiguous, permute, reshape
from tngraph.language.network import Index, Leg, Network, Read
from tngraph.language.sizes import evaluate_size
from tngraph.planning.region import legs_size

Axes = tuple[tuple[Leg, ...], ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An expression of the generated code and its axes: each a tuple of legs fused first-slowest, () being size 1."""

    code: Expression
    axes: Axes

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs in memory order."""
        return tuple(leg for axis in self.axes for leg in axis)


def separate(legs: Sequence[Leg]) -> Axes:
    """One axis per leg."""
    return tuple((leg,) for leg in legs)


def axes_shape(axes: Axes) -> Shape:
    """The sizes of axes."""
    return tuple(legs_size(axis) for axis in axes)


def arrange(tensor: Tensor, axes: Axes) -> Expression:
    """The expression that gives a tensor these axes.

    Args:
        tensor: what there is.
        axes: its legs in the order and fusing wanted.
    """
    wanted = [leg for axis in axes for leg in axis]
    if list(tensor.legs) == wanted:
        return tensor.code if tensor.axes == axes else reshape(tensor.code, axes_shape(axes))
    blocks = _blocks(tensor.legs, axes)
    code = tensor.code if tensor.axes == blocks else reshape(tensor.code, axes_shape(blocks))
    order = sorted(range(len(blocks)), key=lambda k: wanted.index(blocks[k][0]))
    permuted = tuple(blocks[k] for k in order)
    code = permute(code, order)
    return code if permuted == axes else reshape(code, axes_shape(axes))


def lay(tensor: Tensor, axes: Axes) -> Expression:
    """The same, copied into the order of the axes before they are fused.

    A ``reshape`` alone is at some sizes a view with gaps, of which PyTorch copies matrix by matrix what it multiplies.
    """
    code = arrange(tensor, axes)
    if not isinstance(code, Call) or tensor.legs == tuple(leg for axis in axes for leg in axis):
        return code
    if code.function == "permute":
        return contiguous(code)
    return replace(code, operands=(contiguous(code.operands[0]),))


def _blocks(legs: Sequence[Leg], axes: Axes) -> Axes:
    """The longest runs of legs that stay side by side on one axis; inductor cannot split what was fused in between."""
    place = {leg: (k, position) for k, axis in enumerate(axes) for position, leg in enumerate(axis)}
    blocks: list[tuple[Leg, ...]] = []
    for leg in legs:
        axis, position = place[leg]
        if blocks and place[blocks[-1][-1]] == (axis, position - 1):
            blocks[-1] += (leg,)
        else:
            blocks.append((leg,))
    return tuple(blocks)


@dataclass(frozen=True, slots=True)
class Context:
    """What every rule needs: the numbers of sizes where a choice depends on them.

    `runtime` names the sizes that are read off shapes: what PyTorch would fix in a traced graph may not depend on them.
    `positions` are the indices that convolutions resolve to, such as height and width.
    """

    numbers: Mapping[str, int]
    runtime: frozenset[str] = frozenset()
    positions: frozenset[Index] = frozenset()

    def is_position(self, leg: Leg) -> bool:
        """Whether a leg is what a window slides over, or has slid over."""
        return isinstance(leg, Read) or leg in self.positions

    def is_fixed(self, expr: sympy.Expr) -> bool:
        """Whether a size is known once the module is built."""
        return all(symbol.name not in self.runtime for symbol in expr.free_symbols)

    def size(self, legs: Sequence[Leg]) -> int:
        """The elements of a value at the sizes planned for."""
        return evaluate_size(legs_size(legs), self.numbers)


def call_sizes(network: Network) -> frozenset[str]:
    """The sizes known at each call only, those derived from run-time sizes included."""
    return frozenset(size.name for size in network.sizes) - {size.name for size in network.settable_sizes()}
