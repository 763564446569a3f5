"""The schedule: the whole network as one straight line of operations, which is priced, shown and printed.

Each operation assigns one value: operation k computes value k. A `load` is a core, or an earlier result, under the
indices of one access. The steps of a region's tree keep their order. The scale of a term is applied to the smallest
value.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from tngraph.language.legs import bare_legs, legs_size, sliced_legs
from tngraph.language.network import Access, Equation, Function, Index, Leg, Network
from tngraph.language.sizes import evaluate_size
from tngraph.search.gradients import other_operand
from tngraph.search.matmul import arranged_axes
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


class _Writer:
    """A schedule under construction, which also names the values."""

    def __init__(self, network: Network, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.operations: list[Operation] = []
        self.results: dict[str, int] = {}
        self.blocks: list[Block] = []
        self.constants = {core.name for core in network.cores if core.role == "const"}
        self._taken = {*network.sources()}
        self._made = 0

    def put(self, kind: Kind, operands: tuple[int, ...], legs: tuple[Leg, ...], **details: object) -> int:
        """Append an operation, and return the number of its value."""
        self.operations.append(Operation(kind, operands, legs, "", **details))  # type: ignore[arg-type]
        return len(self.operations) - 1

    def name_values(self) -> tuple[Operation, ...]:
        """Return the operations with names.

        A load has the name of its tensor, the last value of an equation the name of the equation, and a view the name
        of its operand. Other values are ``t1``, ``t2``, ….
        """
        finals = {k: name for name, k in self.results.items()}
        named: list[Operation] = []
        for k, op in enumerate(self.operations):
            is_shown = op.kind == "view" and k not in finals
            named.append(replace(op, name=named[op.operands[0]].name) if is_shown else self._named(k, op, finals))
        return tuple(named)

    def _named(self, number: int, op: Operation, finals: Mapping[int, str]) -> Operation:
        if op.kind == "load":
            assert op.access is not None
            return replace(op, name=op.access.source)
        if number in finals:
            return replace(op, name=finals[number])
        self._made += 1
        while f"t{self._made}" in self._taken:
            self._made += 1
        return replace(op, name=f"t{self._made}")


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
            ``tiles``, the part of a region that runs tile by tile; ``recompute``, operations that are recomputed in the
            backward pass; ``planned``, operations whose backward pass is planned.
        first: the first operation.
        last: the last operation.
        equation: the name of the region's equation.
        term: the number of the region's term in the equation.
        products: the gradients of a planned backward pass.
        kept: the values computed inside that a planned backward pass reads.
        constant: the loads of tensors that take no gradient.
    """

    kind: Literal["branch", "slices", "tiles", "recompute", "planned"]
    first: int
    last: int
    equation: str = ""
    term: int = 0
    products: tuple[GradientProduct, ...] = ()
    kept: frozenset[int] = frozenset()
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


def write_schedule(network: Network, stages: Sequence[Stage], sizes: Mapping[str, int]) -> Schedule:
    """Return the operations of a planned network, in the order they run.

    Args:
        network: the network the stages compute.
        stages: its merged equations with their trees, in order.
        sizes: numbers at which values are compared, to find where to apply the terms' scales [elements].
    """
    writer = _Writer(network, sizes)
    for stage in stages:
        writer.results[stage.equation.name] = _write_stage(writer, stage)
    for port in network.outputs:
        if port.name not in writer.results:
            access = Access(port.name, network.sources()[port.name].legs)
            writer.results[port.name] = writer.put("load", (), bare_legs(access), access=access)
    return Schedule(writer.name_values(), writer.results, tuple(writer.blocks))


def _write_stage(writer: _Writer, stage: Stage) -> int:
    equation = stage.equation
    # A negative term that follows another is subtracted, and needs no scale of -1.
    positive_first = sorted(range(len(equation.terms)), key=lambda k: equation.terms[k].scale < 0)
    total = -1
    for k in positive_first:
        term, pattern, start = equation.terms[k], stage.patterns[k], len(writer.operations)
        sign, before = -1 if term.scale < 0 and total >= 0 else 1, len(writer.blocks)
        value = _write_term(writer, stage.trees[k], sign * term.scale, (equation.name, k))
        if stage.branches and stage.branches[k]:
            if writer.operations[value].kind != "view":
                value = writer.put("view", (value,), stage.trees[k].region.legs)
            writer.blocks.insert(before, Block("branch", start, value, equation.name, k))
        if stage.trees[k].sliced:
            value = _write_accumulation(writer, stage.trees[k], start, value)
            writer.blocks.append(_slices(writer, start, value, equation.name, k))
        value = _write_embedding(writer, value, pattern)
        total = value if total < 0 else _write_sum(writer, equation, total, value, sign)
    if equation.function is not None:
        total = writer.put("pointwise", (total,), writer.operations[total].legs, function=equation.function)
    return total


def _write_term(writer: _Writer, tree: ContractionTree, scale: int | float, place: tuple[str, int]) -> int:
    """Append the steps of a tree, with the term's scale after its smallest value, and return the number of the result.

    Steps that are the same for all slices or tiles come first.
    """
    count = len(tree.region.accesses)
    legs = [sliced_legs(access, tree.sliced) for access in tree.region.accesses] + [step.legs for step in tree.steps]
    loops, moving = _loops(tree), _moving(tree)
    arranged = {
        (g.step, other_operand(tree.steps[g.step].operands, g.operand)) for g in tree.gradients if g.is_arranged
    }
    # A load inside of a loop is scaled only where no step follows: the factor costs as often as the loop runs.
    scalable = [k for k in range(len(legs)) if scale != 1 and (k >= count or not loops[k] or not tree.steps)]
    smallest = min(scalable, key=lambda k: evaluate_size(legs_size(legs[k]), writer.sizes), default=-1)
    where: dict[int, int] = {}
    start = len(writer.operations)

    def write(k: int, operands: tuple[int, ...]) -> None:
        if k < count:
            access = tree.region.accesses[k]
            where[k] = writer.put("load", operands, legs[k], access=access, loops=loops[k])
        else:
            matmul = tree.matmuls[k - count] if tree.matmuls else None
            operands = _arrange_for_gradients(writer, tree, k - count, operands, arranged)
            where[k] = writer.put(tree.steps[k - count].kind, operands, legs[k], loops=loops[k], matmul=matmul)
        if k == smallest:
            where[k] = writer.put("scale", (where[k],), legs[k], number=scale, loops=loops[k])

    for k, access in enumerate(tree.region.accesses):
        write(k, _source(writer, access, moving[k]))
        if moving[k] and tree.tile is not None and not tree.tile.is_runtime:
            where[k] = writer.put("arrange", (where[k],), legs[k], axes=tuple((leg,) for leg in legs[k]))
    for k in sorted(range(count, len(legs)), key=lambda k: (bool(loops[k]), k)):
        if not moving[k]:
            write(k, tuple(where[o] for o in tree.steps[k - count].operands))
    parts = [k for k in range(count, len(legs)) if moving[k]]
    if not parts:
        first = next((k for k in range(start, len(writer.operations)) if writer.operations[k].kind != "load"), start)
        return _write_gradients(writer, tree, first, where, place)
    arranged_operands = {k: _arrange_still(writer, tree, k - count, where, moving) for k in parts}
    start = len(writer.operations)
    for k in parts:
        write(k, tuple(arranged_operands[k].get(o, where.get(o, -1)) for o in tree.steps[k - count].operands))
    value = _write_gradients(writer, tree, start, where, place)
    value = writer.put("join", (value,), tree.region.legs, tile=tree.tile)
    writer.blocks.append(Block("tiles", start, value, *place))
    return value


def _write_gradients(
    writer: _Writer, tree: ContractionTree, first: int, where: Mapping[int, int], place: tuple[str, int]
) -> int:
    """Return the final value of a region.

    With a planned backward pass the region ends in a view with one axis per leg, and all its operations become a block.
    """
    count = len(tree.region.accesses)
    value = where[count + len(tree.steps) - 1]
    if not tree.gradients:
        return value
    value = writer.put("view", (value,), tree.region.legs)
    inside = range(first, value)
    products, saved = [], set()
    for gradient in tree.gradients:
        number = _contracting(writer, where[count + gradient.step])
        if number in inside:
            side = tree.steps[gradient.step].operands.index(gradient.operand)
            products.append(GradientProduct(number, side, gradient.matmul, gradient.added))
            saved.add(writer.operations[number].operands[1 - side])
    saved = {k for k in saved if k in inside and writer.operations[k].kind != "load"}
    accesses = ((k, op.access) for k, op in enumerate(writer.operations))
    constant = frozenset(k for k, access in accesses if access is not None and access.source in writer.constants)
    writer.blocks.append(Block("planned", first, value, *place, tuple(products), frozenset(saved), constant))
    return value


def _contracting(writer: _Writer, number: int) -> int:
    """Return the operation of a step itself, without the scale that may follow it."""
    op = writer.operations[number]
    return op.operands[0] if op.kind == "scale" else number


def _source(writer: _Writer, access: Access, is_moving: bool) -> tuple[int, ...]:
    """Return the result that an access reads, laid out with one axis per leg if tiles are cut from it."""
    if access.source not in writer.results:
        return ()
    result = writer.results[access.source]
    if not is_moving:
        return (result,)
    legs = writer.operations[result].legs
    return (writer.put("arrange", (result,), legs, axes=tuple((leg,) for leg in legs)),)


def _moving(tree: ContractionTree) -> list[bool]:
    """Return for every value of a tree whether it differs between tiles."""
    index = tree.tile.index if tree.tile is not None else None
    moving = [index in bare_legs(access) for access in tree.region.accesses]
    for step in tree.steps:
        moving.append(any(moving[o] for o in step.operands))
    return moving


def _arrange_still(
    writer: _Writer, tree: ContractionTree, number: int, where: Mapping[int, int], moving: Sequence[bool]
) -> dict[int, int]:
    """Return the operands of a step that are the same for all tiles, each laid out once for the step."""
    still = [operand for operand in tree.steps[number].operands if tree.matmuls and not moving[operand]]
    axes = {operand: arranged_axes(tree, number, operand) for operand in still}
    return {operand: _put_arranged(writer, where[operand], axes[operand]) for operand in still if axes[operand]}


def _arrange_for_gradients(
    writer: _Writer, tree: ContractionTree, number: int, operands: tuple[int, ...], arranged: Container[tuple[int, int]]
) -> tuple[int, ...]:
    """Return the operands of a step, with a separate layout for those that a gradient reads the same way."""
    return tuple(
        _put_arranged(writer, value, arranged_axes(tree, number, operand))
        if (number, operand) in arranged and writer.operations[value].kind != "arrange"
        else value
        for operand, value in zip(tree.steps[number].operands, operands, strict=True)
    )


def _put_arranged(writer: _Writer, value: int, axes: tuple[tuple[Leg, ...], ...]) -> int:
    legs = tuple(leg for axis in axes for leg in axis)
    return writer.put("arrange", (value,), legs, axes=axes)


def _loops(tree: ContractionTree) -> list[tuple[Index, ...]]:
    """Return for every value of a tree the indices it is recomputed for.

    A leaf has the sliced indices among its legs. A step has all of them if an operand has any.
    """
    loops = [tuple(leg for leg in access.legs if leg in tree.sliced) for access in tree.region.accesses]
    for step in tree.steps:
        loops.append(tree.sliced if any(loops[o] for o in step.operands) else ())
    return loops


def _write_accumulation(writer: _Writer, tree: ContractionTree, start: int, value: int) -> int:
    """Append the end of a region that runs slice by slice, with all its legs, including sliced ones of the result."""
    return writer.put("accumulate", (value,), tree.region.legs, loops=tree.sliced)


def _slices(writer: _Writer, start: int, last: int, equation: str, term: int) -> Block:
    """Return the block of a region's operations that run once per slice."""
    inside = range(start, last + 1)
    first = next(k for k in inside if writer.operations[k].loops and writer.operations[k].kind != "load")
    return Block("slices", first, last, equation, term)


def _write_embedding(writer: _Writer, value: int, pattern: tuple[tuple[Index, Index], ...]) -> int:
    """Append the step that places one index on the diagonal of several left-hand legs, if there is one.

    Entries off the diagonal are zero.
    """
    own = tuple(inner for _, inner in pattern)
    if len(set(own)) == len(own):
        return value
    return writer.put("embed", (value,), tuple(outer for outer, _ in pattern), pattern=own)


def _write_sum(writer: _Writer, equation: Equation, total: int, value: int, sign: int) -> int:
    present = {*writer.operations[total].legs, *writer.operations[value].legs}
    legs = tuple(leg for leg in equation.legs if leg in present)
    return writer.put("add", (total, value), legs, number=sign)
