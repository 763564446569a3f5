"""The schedule: the whole network as one straight line of operations, which is priced, shown and printed.

Each operation assigns one value: operation k computes value k. A `load` is a core, or an earlier result, under the
indices of one access. `schedule` writes them, and `kinds` says what is known of each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tngraph.language.network import Access, Equation, Function, Index, Leg
from tngraph.search.region import ContractionTree, MatmulLayout, StepKind, Tile

Kind = StepKind | Literal["load", "scale", "embed", "add", "pointwise", "view", "accumulate", "arrange", "join"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One merged equation with a tree per term.

    Attributes:
        equation: the equation that it computes.
        trees: one tree per term.
        patterns: for each term, its left-hand indices, each with the index of the tree that stands for it.
        branches: for each term, whether another regime has another tree, so that it runs in a method of its own; empty
            if no term does.
    """

    equation: Equation
    trees: tuple[ContractionTree, ...]
    patterns: tuple[tuple[tuple[Index, Index], ...], ...]
    branches: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of the schedule.

    Attributes:
        kind: the kind of operation; ``load``, ``read``, ``embed``, ``view``, ``arrange`` and ``join`` do no arithmetic.
            A ``view`` ends a region that has other trees in other regimes, and gives its operand one axis per leg. An
            ``accumulate`` ends a region that runs slice by slice, and adds each slice to the whole. A ``join`` ends a
            region that runs in tiles, and concatenates them. An ``arrange`` before it lays out a value once for all
            tiles.
        operands: the numbers of the values it takes.
        legs: the legs of its result.
        name: the name of its result: a tensor's, an equation's, or ``t1``, ``t2``, ….
        access: the access that a ``load`` reads.
        number: the factor of a ``scale``, or the sign of the second operand of an ``add``.
        function: the function of a ``pointwise``.
        pattern: for an ``embed``, the operand's index on each leg of the result.
        loops: the indices that it runs once per value of; for a load, its legs that are fixed at one value.
        matmul: the matmul layout of a step, if the tree has one.
        axes: the axes that an ``arrange`` makes.
        tile: the tile of a ``join``.
    """

    kind: Kind
    operands: tuple[int, ...]
    legs: tuple[Leg, ...]
    name: str
    access: Access | None = None
    number: int | float = 1
    function: Function | None = None
    pattern: tuple[Index, ...] = ()
    loops: tuple[Index, ...] = ()
    matmul: MatmulLayout | None = None
    axes: tuple[tuple[Leg, ...], ...] = ()
    tile: Tile | None = None


class GradientProduct(NamedTuple):
    """The product of matrices or entries that computes the gradient of one operand from the result's gradient.

    The other factor is the other operand.

    Attributes:
        number: the number of the operation.
        side: the number of the operand, 0 or 1.
        matmul: the matmul layout of a product of matrices, or the order of a product of entries.
        added: the outer legs, if the products along them are added up.
    """

    number: int
    side: int
    matmul: MatmulLayout
    added: tuple[Leg, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive operations that run in a method of their own; only the value of the last one leaves it.

    Attributes:
        kind: ``branch``, a region with another tree in another regime; ``slices``, a region that runs slice by slice;
            ``tiles``, the steps of a region that run tile by tile; ``recompute``, operations that are recomputed in the
            backward pass; ``planned``, operations whose backward pass is planned.
        first: the first operation.
        last: the last operation.
        equation: the name of the region's equation.
        term: the number of the region's term in the equation.
        products: the gradients of a planned backward pass.
        saved: the values computed inside that a planned backward pass reads.
        constant: the loads of tensors that take no gradient.
    """

    kind: Literal["branch", "slices", "tiles", "recompute", "planned"]
    first: int
    last: int
    equation: str = ""
    term: int = 0
    products: tuple[GradientProduct, ...] = ()
    saved: frozenset[int] = frozenset()
    constant: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Schedule:
    """The operations of a network in order.

    Attributes:
        operations: all operations.
        results: the number of the final value of each equation, and of each core that is an output itself.
        blocks: the operations that run in methods of their own, in order.
    """

    operations: tuple[Operation, ...]
    results: Mapping[str, int]
    blocks: tuple[Block, ...] = ()
