"""Writes schedules: a planned network as one straight line of operations.

The steps of a region's tree keep their order, and the scale of a term is applied to its smallest value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tngraph.language.legs import bare_legs, legs_size, sliced_legs
from tngraph.language.network import Access, Equation, Index, Leg, Network
from tngraph.language.sizes import evaluate_size
from tngraph.program.operations import Block, GradientProduct, Kind, Operation, Schedule, Stage
from tngraph.search.gradients import other_operand
from tngraph.search.matmul import arranged_axes
from tngraph.search.region import ContractionTree

Axes = tuple[tuple[Leg, ...], ...]


class _ScheduleWriter:
    """A schedule under construction. It also gives the values their names."""

    def __init__(self, network: Network, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.operations: list[Operation] = []
        self.results: dict[str, int] = {}
        self.blocks: list[Block] = []
        self.constants = {core.name for core in network.cores if core.role == "const"}
        self._taken = {*network.sources()}
        self._unnamed = 0

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
        self._unnamed += 1
        while f"t{self._unnamed}" in self._taken:
            self._unnamed += 1
        return replace(op, name=f"t{self._unnamed}")


def write_schedule(network: Network, stages: Sequence[Stage], sizes: Mapping[str, int]) -> Schedule:
    """Return the operations of a planned network, in the order they run.

    Args:
        network: the network the stages compute.
        stages: its merged equations with their trees, in order.
        sizes: numbers at which values are compared, to find where to apply the terms' scales [elements].
    """
    writer = _ScheduleWriter(network, sizes)
    for stage in stages:
        writer.results[stage.equation.name] = _write_stage(writer, stage)
    for port in network.outputs:
        if port.name not in writer.results:
            access = Access(port.name, network.sources()[port.name].legs)
            writer.results[port.name] = writer.put("load", (), bare_legs(access), access=access)
    return Schedule(writer.name_values(), writer.results, tuple(writer.blocks))


def _write_stage(writer: _ScheduleWriter, stage: Stage) -> int:
    equation = stage.equation
    # A negative term that follows another is subtracted, and needs no scale of -1.
    positive_first = sorted(range(len(equation.terms)), key=lambda k: equation.terms[k].scale < 0)
    total = -1
    for k in positive_first:
        term, pattern, start = equation.terms[k], stage.patterns[k], len(writer.operations)
        sign, before = -1 if term.scale < 0 and total >= 0 else 1, len(writer.blocks)
        value = _TermWriter(writer, stage.trees[k], sign * term.scale, (equation.name, k)).write()
        if stage.branches and stage.branches[k]:
            if writer.operations[value].kind != "view":
                value = writer.put("view", (value,), stage.trees[k].region.legs)
            writer.blocks.insert(before, Block("branch", start, value, equation.name, k))
        if stage.trees[k].sliced:
            value = writer.put("accumulate", (value,), stage.trees[k].region.legs, loops=stage.trees[k].sliced)
            writer.blocks.append(_slices(writer, start, value, equation.name, k))
        value = _write_embedding(writer, value, pattern)
        total = value if total < 0 else _write_sum(writer, equation, total, value, sign)
    if equation.function is not None:
        total = writer.put("pointwise", (total,), writer.operations[total].legs, function=equation.function)
    return total


class _TermWriter:
    """The steps of a term's tree on their way into a schedule.

    Steps that are the same for all slices or tiles come first. The scale of the term is applied to its smallest value.
    """

    def __init__(
        self, writer: _ScheduleWriter, tree: ContractionTree, scale: int | float, place: tuple[str, int]
    ) -> None:
        self.writer, self.tree, self.scale, self.place = writer, tree, scale, place
        self.accesses = tree.region.accesses
        self.legs = [
            *(sliced_legs(access, tree.sliced) for access in self.accesses),
            *(step.legs for step in tree.steps),
        ]
        self.loops, self.moving = _loops(tree), _moving(tree)
        self.scaled = self._find_scaled()
        self.shared_layouts = {
            (gradient.step, other_operand(tree.steps[gradient.step].operands, gradient.operand))
            for gradient in tree.gradients
            if gradient.is_arranged
        }
        self.numbers: dict[int, int] = {}
        """The number of the operation that computes each value of the tree."""

    def _find_scaled(self) -> int:
        """Return the value that the term's scale is applied to, or -1 if the scale is 1."""
        if self.scale == 1:
            return -1
        # A load inside of a loop is scaled only where no step follows: the factor costs as often as the loop runs.
        count = len(self.accesses)
        scalable = [k for k in range(len(self.legs)) if k >= count or not self.loops[k] or not self.tree.steps]
        return min(scalable, key=lambda k: evaluate_size(legs_size(self.legs[k]), self.writer.sizes), default=-1)

    def write(self) -> int:
        """Append the operations of the tree, and return the number of its result."""
        start, count = len(self.writer.operations), len(self.accesses)
        for k, access in enumerate(self.accesses):
            self._write_load(k, access)
        for k in sorted(range(count, len(self.legs)), key=lambda k: (bool(self.loops[k]), k)):
            if not self.moving[k]:
                self._write_step(k, {})
        in_tiles = [k for k in range(count, len(self.legs)) if self.moving[k]]
        if in_tiles:
            return self._write_tiles(in_tiles)
        inside = range(start, len(self.writer.operations))
        first = next((k for k in inside if self.writer.operations[k].kind != "load"), start)
        return self._end_region(first)

    def _write_load(self, k: int, access: Access) -> None:
        """Append the load of an access. A value that tiles of a fixed index are cut from is laid out leg by leg."""
        operands = _source(self.writer, access, self.moving[k])
        self.numbers[k] = self.writer.put("load", operands, self.legs[k], access=access, loops=self.loops[k])
        self._apply_scale(k)
        if self.moving[k] and self.tree.tile is not None and not self.tree.tile.is_runtime:
            self.numbers[k] = self.writer.put("arrange", (self.numbers[k],), self.legs[k], axes=_separate(self.legs[k]))

    def _write_step(self, k: int, arranged: Mapping[int, int]) -> None:
        """Append a step, with the operations of those of its operands that are arranged for it."""
        step = k - len(self.accesses)
        matmul = self.tree.matmuls[step] if self.tree.matmuls else None
        values = tuple(arranged.get(o, self.numbers.get(o, -1)) for o in self.tree.steps[step].operands)
        operands = self._arrange_for_gradients(step, values)
        kind, legs = self.tree.steps[step].kind, self.legs[k]
        self.numbers[k] = self.writer.put(kind, operands, legs, loops=self.loops[k], matmul=matmul)
        self._apply_scale(k)

    def _apply_scale(self, k: int) -> None:
        if k == self.scaled:
            operands = (self.numbers[k],)
            self.numbers[k] = self.writer.put("scale", operands, self.legs[k], number=self.scale, loops=self.loops[k])

    def _write_tiles(self, in_tiles: Sequence[int]) -> int:
        """Append the steps that run tile by tile, and return the number of the result of all tiles."""
        arranged = {k: self._arrange_still(k - len(self.accesses)) for k in in_tiles}
        start = len(self.writer.operations)
        for k in in_tiles:
            self._write_step(k, arranged[k])
        value = self._end_region(start)
        value = self.writer.put("join", (value,), self.tree.region.legs, tile=self.tree.tile)
        self.writer.blocks.append(Block("tiles", start, value, *self.place))
        return value

    def _end_region(self, first: int) -> int:
        """Return the final value of a region whose steps begin at an operation.

        With a planned backward pass the region ends in a view with one axis per leg, and all its operations become a
        block.
        """
        value = self.numbers[len(self.legs) - 1]
        if not self.tree.gradients:
            return value
        value = self.writer.put("view", (value,), self.tree.region.legs)
        operations, inside = self.writer.operations, range(first, value)
        products = tuple(product for product in self._gradient_products() if product.number in inside)
        factors = {operations[product.number].operands[1 - product.side] for product in products}
        saved = frozenset(k for k in factors if k in inside and operations[k].kind != "load")
        accesses = ((k, op.access) for k, op in enumerate(operations))
        constant = frozenset(
            k for k, access in accesses if access is not None and access.source in self.writer.constants
        )
        self.writer.blocks.append(Block("planned", first, value, *self.place, products, saved, constant))
        return value

    def _gradient_products(self) -> Iterator[GradientProduct]:
        """Yield the products of the planned backward pass. The step itself is the operation before its scale."""
        for gradient in self.tree.gradients:
            number = self.numbers[len(self.accesses) + gradient.step]
            op = self.writer.operations[number]
            number = op.operands[0] if op.kind == "scale" else number
            side = self.tree.steps[gradient.step].operands.index(gradient.operand)
            yield GradientProduct(number, side, gradient.matmul, gradient.added)

    def _arrange_still(self, step: int) -> dict[int, int]:
        """Return the operands of a step that are the same for all tiles, each laid out once for the step."""
        if not self.tree.matmuls:
            return {}
        still = [operand for operand in self.tree.steps[step].operands if not self.moving[operand]]
        axes = {operand: arranged_axes(self.tree, step, operand) for operand in still}
        return {operand: self._put_arranged(self.numbers[operand], axes[operand]) for operand in still if axes[operand]}

    def _arrange_for_gradients(self, step: int, values: tuple[int, ...]) -> tuple[int, ...]:
        """Return the operands of a step, with a separate layout for those that a gradient reads the same way."""
        return tuple(
            self._put_arranged(value, arranged_axes(self.tree, step, operand))
            if (step, operand) in self.shared_layouts and self.writer.operations[value].kind != "arrange"
            else value
            for operand, value in zip(self.tree.steps[step].operands, values, strict=True)
        )

    def _put_arranged(self, value: int, axes: Axes) -> int:
        legs = tuple(leg for axis in axes for leg in axis)
        return self.writer.put("arrange", (value,), legs, axes=axes)


def _separate(legs: Sequence[Leg]) -> Axes:
    """Return axes with one leg each."""
    return tuple((leg,) for leg in legs)


def _source(writer: _ScheduleWriter, access: Access, is_moving: bool) -> tuple[int, ...]:
    """Return the result that an access reads, laid out with one axis per leg if tiles are cut from it."""
    if access.source not in writer.results:
        return ()
    result = writer.results[access.source]
    if not is_moving:
        return (result,)
    legs = writer.operations[result].legs
    return (writer.put("arrange", (result,), legs, axes=_separate(legs)),)


def _moving(tree: ContractionTree) -> list[bool]:
    """Return for every value of a tree whether it differs between tiles."""
    index = tree.tile.index if tree.tile is not None else None
    moving = [index in bare_legs(access) for access in tree.region.accesses]
    for step in tree.steps:
        moving.append(any(moving[o] for o in step.operands))
    return moving


def _loops(tree: ContractionTree) -> list[tuple[Index, ...]]:
    """Return for every value of a tree the indices it is recomputed for.

    A leaf has the sliced indices among its legs. A step has all of them if an operand has any.
    """
    loops = [tuple(leg for leg in access.legs if leg in tree.sliced) for access in tree.region.accesses]
    for step in tree.steps:
        loops.append(tree.sliced if any(loops[o] for o in step.operands) else ())
    return loops


def _slices(writer: _ScheduleWriter, start: int, last: int, equation: str, term: int) -> Block:
    """Return the block of a region's operations that run once per slice."""
    inside = range(start, last + 1)
    first = next(k for k in inside if writer.operations[k].loops and writer.operations[k].kind != "load")
    return Block("slices", first, last, equation, term)


def _write_embedding(writer: _ScheduleWriter, value: int, pattern: tuple[tuple[Index, Index], ...]) -> int:
    """Append the step that places one index on the diagonal of several left-hand legs, if there is one.

    Entries off the diagonal are zero.
    """
    own = tuple(inner for _, inner in pattern)
    if len(set(own)) == len(own):
        return value
    return writer.put("embed", (value,), tuple(outer for outer, _ in pattern), pattern=own)


def _write_sum(writer: _ScheduleWriter, equation: Equation, total: int, value: int, sign: int) -> int:
    present = {*writer.operations[total].legs, *writer.operations[value].legs}
    legs = tuple(leg for leg in equation.legs if leg in present)
    return writer.put("add", (total, value), legs, number=sign)
