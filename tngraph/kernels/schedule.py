"""The whole network as one straight line of operations: what is priced, shown and printed.

Single assignment: operation k makes value k, a `load` being a core (or an earlier result) under the indices of
one access. Steps of the regions' trees come in order; numbers of terms are applied where the value is smallest.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from tngraph.language.network import Access, Equation, Function, Index, Leg, Network
from tngraph.language.sizes import evaluate_size
from tngraph.planning.forms import arranged_axes
from tngraph.planning.gradients import other_operand
from tngraph.planning.region import ContractionTree, Form, StepKind, Tile, bare_legs, legs_size, sliced_legs

Kind = StepKind | Literal["load", "scale", "embed", "add", "pointwise", "view", "accumulate", "arrange", "join"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One merged equation with a tree per term.

    Attributes:
        equation: what it computes.
        trees: of its terms.
        patterns: of each term, its left-hand indices with the index of its tree that stands for each.
        branches: of each term, whether its tree is another one in another regime, so that it runs in a method of its
            own; empty where none does.
    """

    equation: Equation
    trees: tuple[ContractionTree, ...]
    patterns: tuple[tuple[tuple[Index, Index], ...], ...]
    branches: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of the schedule.

    Attributes:
        kind: what it does; ``load``, ``read``, ``embed``, ``view``, ``arrange`` and ``join`` do no arithmetic. A
            ``view`` ends a region that has other trees in other regimes: its operand with an axis per leg. An
            ``accumulate`` ends one that runs slice by slice: it adds each slice to the whole. A ``join`` ends one that
            runs in parts, and puts them side by side; an ``arrange`` before it lays a value out once for all parts.
        operands: the numbers of the values it takes.
        legs: the legs of its result.
        name: the name of its result: a tensor's, an equation's, or ``t1``, ``t2``, ….
        access: of a load, what it reads.
        number: of a ``scale`` the factor, of an ``add`` the sign of the second operand.
        function: of a ``pointwise``.
        pattern: of an ``embed``, the operand's index on each leg of the result.
        loops: the indices it runs for every value of; of a load, those of its legs that it has one value of.
        form: of a step that is laid out, how it is one kernel.
        axes: of an ``arrange``, the axes it makes.
        tile: of a ``join``, how large a part is.
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
    form: Form | None = None
    axes: tuple[tuple[Leg, ...], ...] = ()
    tile: Tile | None = None


class _Writer:
    """Collects operations and names them."""

    def __init__(self, network: Network, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.operations: list[Operation] = []
        self.results: dict[str, int] = {}
        self.blocks: list[Block] = []
        self.constants = {core.name for core in network.cores if core.role == "const"}
        self._taken = {*network.sources()}
        self._made = 0

    def put(self, kind: Kind, operands: tuple[int, ...], legs: tuple[Leg, ...], **details: object) -> int:
        """Write an operation down; the number of its value."""
        self.operations.append(Operation(kind, operands, legs, "", **details))  # type: ignore[arg-type]
        return len(self.operations) - 1

    def name_values(self) -> tuple[Operation, ...]:
        """Name loads by their tensor, equations' last values by the equation, views as what they show, others t1, …."""
        finals = {number: name for name, number in self.results.items()}
        named: list[Operation] = []
        for number, op in enumerate(self.operations):
            is_shown = op.kind == "view" and number not in finals
            named.append(replace(op, name=named[op.operands[0]].name) if is_shown else self._named(number, op, finals))
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


class Product(NamedTuple):
    """How the gradient of an operand is made of that of the result and the other operand.

    Attributes:
        number: of the operation.
        side: which of its operands.
        form: of the product of matrices; of a product of entries, its order.
        added: its outer legs, where its products are added up.
    """

    number: int
    side: int
    form: Form
    added: tuple[Leg, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Operations that run in a method of their own, from the first to the last, whose value is all that leaves it.

    Attributes:
        kind: ``branch``, a region with another tree in another regime; ``slices``, a region that runs slice by slice;
            ``tiles``, the part of a region that runs for some values of an index at a time; ``recompute``, operations
            that run once more in the backward pass; ``planned``, those whose backward pass is planned.
        first: operation.
        last: operation.
        equation: whose region it is.
        term: of the equation.
        products: the gradients of a planned backward pass.
        kept: the values that this reads, made inside.
        constant: the loads of what takes no gradient.
    """

    kind: Literal["branch", "slices", "tiles", "recompute", "planned"]
    first: int
    last: int
    equation: str = ""
    term: int = 0
    products: tuple[Product, ...] = ()
    kept: frozenset[int] = frozenset()
    constant: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Schedule:
    """The operations in order.

    Attributes:
        operations: the lines.
        results: the number of the value each equation (or core put out as it is) ends in.
        blocks: the operations that run in methods of their own, in order.
    """

    operations: tuple[Operation, ...]
    results: Mapping[str, int]
    blocks: tuple[Block, ...] = ()


def write_schedule(network: Network, stages: Sequence[Stage], sizes: Mapping[str, int]) -> Schedule:
    """The operations of a planned network, in the order they run.

    Args:
        network: the network the stages compute.
        stages: its merged equations with their trees, in order.
        sizes: numbers at which values are compared to place the terms' factors [elements].
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
    numbers = sorted(range(len(equation.terms)), key=lambda k: equation.terms[k].scale < 0)
    total = -1
    for k in numbers:
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
    """The tree's steps, and the factor after the smallest of its values; what no slice or part changes comes first."""
    count = len(tree.region.accesses)
    legs = [sliced_legs(access, tree.sliced) for access in tree.region.accesses] + [step.legs for step in tree.steps]
    loops, moving = _loops(tree), _moving(tree)
    arranged = {
        (g.step, other_operand(tree.steps[g.step].operands, g.operand)) for g in tree.gradients if g.is_arranged
    }
    scalable = [k for k in range(len(legs)) if scale != 1 and (k >= count or not loops[k])]
    smallest = min(scalable, key=lambda k: evaluate_size(legs_size(legs[k]), writer.sizes), default=-1)
    where: dict[int, int] = {}
    start = len(writer.operations)

    def write(k: int, operands: tuple[int, ...]) -> None:
        if k < count:
            access = tree.region.accesses[k]
            where[k] = writer.put("load", operands, legs[k], access=access, loops=loops[k])
        else:
            form = tree.forms[k - count] if tree.forms else None
            operands = _arrange_for_gradients(writer, tree, k - count, operands, arranged)
            where[k] = writer.put(tree.steps[k - count].kind, operands, legs[k], loops=loops[k], form=form)
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
    given = {k: _arrange_still(writer, tree, k - count, where, moving) for k in parts}
    start = len(writer.operations)
    for k in parts:
        write(k, tuple(given[k].get(o, where.get(o, -1)) for o in tree.steps[k - count].operands))
    value = _write_gradients(writer, tree, start, where, place)
    value = writer.put("join", (value,), tree.region.legs, tile=tree.tile)
    writer.blocks.append(Block("tiles", start, value, *place))
    return value


def _write_gradients(
    writer: _Writer, tree: ContractionTree, first: int, where: Mapping[int, int], place: tuple[str, int]
) -> int:
    """The end of a region: where its backward pass is planned, the result with an axis per leg, and all as a block."""
    count = len(tree.region.accesses)
    value = where[count + len(tree.steps) - 1]
    if not tree.gradients:
        return value
    value = writer.put("view", (value,), tree.region.legs)
    made = range(first, value)
    products, kept = [], set()
    for gradient in tree.gradients:
        number = _contracting(writer, where[count + gradient.step])
        if number in made:
            side = tree.steps[gradient.step].operands.index(gradient.operand)
            products.append(Product(number, side, gradient.form, gradient.added))
            kept.add(writer.operations[number].operands[1 - side])
    kept = {k for k in kept if k in made and writer.operations[k].kind != "load"}
    accesses = ((k, op.access) for k, op in enumerate(writer.operations))
    constant = frozenset(k for k, access in accesses if access is not None and access.source in writer.constants)
    writer.blocks.append(Block("planned", first, value, *place, tuple(products), frozenset(kept), constant))
    return value


def _contracting(writer: _Writer, number: int) -> int:
    """The operation that a step is, before a factor on its result."""
    op = writer.operations[number]
    return op.operands[0] if op.kind == "scale" else number


def _source(writer: _Writer, access: Access, is_moving: bool) -> tuple[int, ...]:
    """The result that an access reads; with an axis per leg where parts are taken of it."""
    if access.source not in writer.results:
        return ()
    result = writer.results[access.source]
    if not is_moving:
        return (result,)
    legs = writer.operations[result].legs
    return (writer.put("arrange", (result,), legs, axes=tuple((leg,) for leg in legs)),)


def _moving(tree: ContractionTree) -> list[bool]:
    """For every value of a tree whether it is another one in each part."""
    index = tree.tile.index if tree.tile is not None else None
    moving = [index in bare_legs(access) for access in tree.region.accesses]
    for step in tree.steps:
        moving.append(any(moving[o] for o in step.operands))
    return moving


def _arrange_still(
    writer: _Writer, tree: ContractionTree, number: int, where: Mapping[int, int], moving: Sequence[bool]
) -> dict[int, int]:
    """The operands of a step that are the same for all parts, each laid out once as the step takes it."""
    still = [operand for operand in tree.steps[number].operands if tree.forms and not moving[operand]]
    axes = {operand: arranged_axes(tree, number, operand) for operand in still}
    return {operand: _put_arranged(writer, where[operand], axes[operand]) for operand in still if axes[operand]}


def _arrange_for_gradients(
    writer: _Writer, tree: ContractionTree, number: int, operands: tuple[int, ...], arranged: Container[tuple[int, int]]
) -> tuple[int, ...]:
    """The operands of a step, those laid out by themselves that a gradient takes as the step does."""
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
    """For every value of a tree the indices it is made anew for: those sliced on a leaf; all, above one of these."""
    loops = [tuple(leg for leg in access.legs if leg in tree.sliced) for access in tree.region.accesses]
    for step in tree.steps:
        loops.append(tree.sliced if any(loops[o] for o in step.operands) else ())
    return loops


def _write_accumulation(writer: _Writer, tree: ContractionTree, start: int, value: int) -> int:
    """The end of a region that runs slice by slice: its legs, sliced ones of the result included."""
    return writer.put("accumulate", (value,), tree.region.legs, loops=tree.sliced)


def _slices(writer: _Writer, start: int, last: int, equation: str, term: int) -> Block:
    """The operations of a region that run once per slice."""
    made = range(start, last + 1)
    first = next(k for k in made if writer.operations[k].loops and writer.operations[k].kind != "load")
    return Block("slices", first, last, equation, term)


def _write_embedding(writer: _Writer, value: int, pattern: tuple[tuple[Index, Index], ...]) -> int:
    """Where one index stands for several on the left: zero off their diagonal."""
    own = tuple(inner for _, inner in pattern)
    if len(set(own)) == len(own):
        return value
    return writer.put("embed", (value,), tuple(outer for outer, _ in pattern), pattern=own)


def _write_sum(writer: _Writer, equation: Equation, total: int, value: int, sign: int) -> int:
    present = {*writer.operations[total].legs, *writer.operations[value].legs}
    legs = tuple(leg for leg in equation.legs if leg in present)
    return writer.put("add", (total, value), legs, number=sign)
