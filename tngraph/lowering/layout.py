"""The axes of values in memory, and the views and permutes that bring them into the order a kernel wants.

A `Tensor` is a variable of the generated code with its legs in memory order and how they are fused into axes.
`arrange` prints the cheapest chain of ``reshape`` and ``permute`` to another order and fusing: nothing where it
already fits, a view where only the fusing differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from tngraph.language.network import Leg
from tngraph.language.sizes import evaluate_size
from tngraph.planning.schedule import legs_size

Axes = tuple[tuple[Leg, ...], ...]
Show = Callable[[sympy.Expr], str]
"""Prints a size as Python."""
WIDTH = 100
"""A call longer than this takes a line per argument [characters]."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An expression of the generated code and its axes: each a tuple of legs fused first-slowest, () being size 1."""

    code: str
    axes: Axes

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs in memory order."""
        return tuple(leg for axis in self.axes for leg in axis)


def separate(legs: Sequence[Leg]) -> Axes:
    """One axis per leg."""
    return tuple((leg,) for leg in legs)


def arrange(tensor: Tensor, axes: Axes, show: Show) -> str:
    """The code that gives a tensor these axes.

    Args:
        tensor: what there is.
        axes: its legs in the order and fusing wanted.
        show: prints a size as Python.
    """
    wanted = [leg for axis in axes for leg in axis]
    if list(tensor.legs) == wanted:
        return tensor.code if tensor.axes == axes else _reshape(tensor.code, axes, show)
    blocks = _blocks(tensor.legs, axes)
    code = tensor.code if tensor.axes == blocks else _reshape(tensor.code, blocks, show)
    order = sorted(range(len(blocks)), key=lambda k: wanted.index(blocks[k][0]))
    code += ".t()" if order == [1, 0] else f".permute({', '.join(map(str, order))})"
    permuted = tuple(blocks[k] for k in order)
    return code if permuted == axes else _reshape(code, axes, show)


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


def _reshape(code: str, axes: Axes, show: Show) -> str:
    sizes = ", ".join(show(legs_size(axis)) for axis in axes)
    return f"{code}.reshape({sizes})" if axes else f"{code}.reshape(())"


@dataclass(frozen=True, slots=True)
class Context:
    """What every rule needs: how sizes print, their numbers where a choice depends on them, the device's code.

    `runtime` names the sizes that are read off shapes: what PyTorch would fix in a traced graph may not depend on them.
    """

    show: Show
    numbers: Mapping[str, int]
    device: str
    runtime: frozenset[str] = frozenset()

    def is_fixed(self, expr: sympy.Expr) -> bool:
        """Whether a size is known once the module is built."""
        return all(symbol.name not in self.runtime for symbol in expr.free_symbols)

    def size(self, legs: Sequence[Leg]) -> int:
        """The elements of a value at the sizes planned for."""
        return evaluate_size(legs_size(legs), self.numbers)


def call(function: str, *arguments: str) -> str:
    """A call in one line, or one argument a line where that gets long."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{function}(", *(f"    {argument}," for argument in arguments), ")"])
