"""The run of a program on arrays that have layouts and storages, but no entries.

Lines run as Python and PyTorch would run them: operands are evaluated from the left, and each is held until the call
that takes it returns. A value is held until the line that drops it, and results to the end. Each call returns a view of
its first operand, or allocates a storage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import sympy

from tngraph.language.legs import leg_size
from tngraph.program.backward import Backward
from tngraph.program.clock import Origin, Timer
from tngraph.program.expressions import Call, Expression, Shape, Variable
from tngraph.program.lines import Line, Program
from tngraph.program.operations import Block
from tngraph.program.pytorch import UNITS
from tngraph.program.storages import Array, Heap, Repeats, Saved, Sizes, Storage, TileRun
from tngraph.program.strides import Layout


@dataclass(frozen=True, slots=True)
class _Recording:
    """The way in which autograd follows the current lines.

    Attributes:
        is_followed: whether it records calls. It does not in a block whose backward pass is planned.
        inputs: the arrays that a recomputed block reads. Autograd saves them, and nothing that the block computes. None
            for all other lines.
    """

    is_followed: bool = True
    inputs: tuple[Array, ...] | None = None


class Evaluator:
    """Evaluates expressions on named values, and follows what is alive, what is saved and how long it takes.

    The caller of `evaluate` holds the array that it returns, and has to release it.
    """

    def __init__(self, sizes: Sizes, trained: Collection[str], itemsize: int, timer: Timer) -> None:
        self.sizes, self.trained, self.itemsize, self.timer = sizes, trained, itemsize, timer
        self.values: dict[str, Array] = {}
        self.heap, self.saved, self.repeats = Heap(), Saved(), Repeats()
        self.moved: list[Storage] = []
        self.recording = _Recording()
        self.operation = 0
        self.sum_of_slices: Array | None = None

    def evaluate(self, code: Expression) -> Array:
        """Return the array of an expression."""
        if isinstance(code, Variable):
            array = self.values[code.name] if code.kind == "value" else self.stored(code)
            self.hold(array)
            return array
        operands = [self.evaluate(operand) for operand in code.operands]
        if code.function == "join":  # the lines around the tiles join them
            return operands[0]
        array = self._add_slice(operands[0]) if code.function == "accumulate" else self._call(code, operands)
        for operand in operands:
            self.release(operand)
        return array

    def stored(self, variable: Variable) -> Array:
        """Return a tensor from before the run. Inputs are assumed to be contiguous."""
        layout = self.sizes.stored(variable.shape)
        return Array(layout, None, self.itemsize, variable.name in self.trained, Origin(layout.sizes))

    def bind(self, name: str, array: Array) -> None:
        """Give a value its name, and release the value that had it."""
        before = self.values.get(name)
        self.values[name] = array
        if before is not None:
            self.release(before)

    def hold(self, array: Array) -> None:
        """Hold a tensor once more."""
        if array.storage is not None and self.heap.hold(array.storage):
            self.saved.writers[array.storage] = {self.operation}
            self.repeats.own.add(array.storage)

    def release(self, array: Array) -> None:
        """Release a tensor once."""
        self.heap.release(array.storage)

    def allocate_sum(self, shape: Shape) -> None:
        """Allocate and hold the sum that slices are added to."""
        self.sum_of_slices = self._new(shape, is_trained=False)
        self.hold(self.sum_of_slices)

    def stack(self, tile: Array, count: int, count_formula: sympy.Expr) -> Array:
        """Return the results of a number of equal tiles as one array, which is alive as a whole."""
        if tile.storage is None:
            return tile
        shape = (count_formula, *tile.storage.shape)
        stack = replace(tile, storage=Storage(shape, count * tile.storage.count, tile.unit))
        self.hold(stack)
        return stack

    def join(self, shape: Shape, is_trained: bool) -> Array:
        """Return the new tensor that the results of all tiles are copied to."""
        whole = self._new(shape, is_trained)
        self.hold(whole)
        self.timer.copy(whole.layout)
        return whole

    def _new(self, shape: Shape, is_trained: bool) -> Array:
        """Return a new contiguous tensor that no call of the lines makes."""
        layout = self.sizes.contiguous(shape)
        storage = self.sizes.allocate(shape, prod(layout.sizes), self.itemsize)
        return Array(layout, storage, self.itemsize, is_trained)

    def time_backward(self, backward: Backward, trained: Collection[int]) -> None:
        """Add the time of the gradient lines that some inputs of a planned backward pass need.

        Their memory is not followed, so they have a heap of their own.
        """
        self.timer.function()
        run = Evaluator(self.sizes, (), self.itemsize, self.timer)
        run.recording, run.values = _Recording(is_followed=False), dict(self.values)
        start = self.sizes.contiguous(backward.start.shape)
        run.values[backward.start.name] = Array(start, None, self.itemsize, False)
        for line in backward.lines:
            if not line.needs.isdisjoint(trained):
                run.values[line.variable.name] = run.evaluate(line.result.code)

    def save(self, storage: Storage) -> None:
        """Save a storage for the backward pass, in all slices or tiles that make one."""
        everywhere = self.repeats.all_runs(storage, self.sizes)
        if everywhere is not None:
            self.saved.storages[storage] = everywhere

    def _add_slice(self, slice_: Array) -> Array:
        """Return the sum of all slices, which is held since before the first one."""
        assert self.sum_of_slices is not None
        return replace(self.sum_of_slices, is_trained=slice_.is_trained)

    def _call(self, code: Call, operands: Sequence[Array]) -> Array:
        """Return the result of a call, which views its first operand, overwrites it, or lies in a new storage."""
        sizes, layouts = self.sizes.of_shape(code.shape), [operand.layout for operand in operands]
        needs = [operand.is_trained for operand in operands]
        followed = needs if self.recording.is_followed else [False] * len(needs)
        function = code.torch
        view = function.view
        strides = view(layouts[0], sizes, code.arguments) if view is not None else None
        if strides is not None:
            array = replace(operands[0], layout=Layout(sizes, strides))
        elif function.kernel == "in place":
            array = self._overwrite(operands[0])
        else:
            layout = Layout(sizes, function.strides(layouts, sizes, code.arguments))
            array = self._allocate(code, layout, operands, needs)
        self.timer.call(code, layouts, sizes, followed, strides is not None)
        self.hold(array)
        if any(followed):
            if strides is None:
                self._time_gradients(code, operands)
            self._save_for_backward([*operands, array], function.saves(code.arguments, needs))
        return array

    def _overwrite(self, operand: Array) -> Array:
        if operand.storage is not None:
            self.saved.writers[operand.storage].add(self.operation)
        return replace(operand, source=Origin(operand.layout.sizes))

    def _allocate(self, code: Call, layout: Layout, operands: Sequence[Array], needs: Sequence[bool]) -> Array:
        """Return the new tensor of a call."""
        entries, kernel = code.torch.entries, code.torch.kernel
        unit = operands[0].unit if entries == "operand" else UNITS.get(entries, self.itemsize)
        storage = self.sizes.allocate(code.shape, prod(layout.sizes), unit)
        if kernel == "copy":
            self.moved.append(storage)
        products = sum(needs) if kernel == "product" else 0
        origin = Origin(layout.sizes, products) if self.recording.is_followed else None
        return Array(layout, storage, unit, any(needs), origin)

    def _time_gradients(self, code: Call, operands: Sequence[Array]) -> None:
        """Add the time to bring the gradients of a call's operands into the order that their origins read."""
        for operand in operands:
            if operand.is_trained and operand.source is not None:
                self.timer.undo(code, operand.layout, operand.source)

    def _save_for_backward(self, arrays: Sequence[Array], places: Iterable[int]) -> None:
        """Save some operands of a call, or its result, or in a recomputed block what the block reads."""
        for storage in (arrays[place].storage for place in places):
            if storage is not None:
                self.saved.savers.setdefault(storage, set()).add(self.operation)
            if self.recording.inputs is not None:
                read = (array.storage for array in self.recording.inputs)
                self.saved.storages.update({other: other for other in read if other is not None})
            elif storage is not None:
                self.save(storage)


class Trace:
    """A run of a program's lines in order, with the blocks that they form."""

    def __init__(self, program: Program, evaluator: Evaluator) -> None:
        self.program, self.evaluator = program, evaluator
        entered = ("slices", "recompute", "planned")
        self._starts = {block.first: block for block in program.blocks if block.kind in entered}
        self._tiles = {block.first: block for block in program.blocks if block.kind == "tiles"}
        self._block: Block | None = None

    def run(self, lines: Sequence[Line]) -> None:
        """Run lines in order. Lines of tiles run once for each size of tile that `_run_tiles` needs."""
        k = 0
        while k < len(lines):
            line, block = lines[k], self._tiles.get(lines[k].number)
            if block is not None and self.evaluator.sizes.tile is None:
                inside = [later for later in lines[k:] if later.number <= block.last]
                self._run_tiles(block, inside)
                line, k = inside[-1], k + len(inside)
                self._drop(number for number in line.dropped if number < block.first)
            else:
                self._run_line(line)
                self._drop(line.dropped)
                k += 1
            if self._block is not None and line.number == self._block.last:
                self._leave(self._block)

    def _run_line(self, line: Line) -> None:
        self.evaluator.operation = line.number
        if line.number in self._starts:
            self._enter(self._starts[line.number])
        self.evaluator.bind(self.program.operations[line.number].name, self.evaluator.evaluate(line.code))
        if self._block is not None and self._block.kind == "planned" and line.number == self._block.last:
            self._run_backward(self._block)

    def _drop(self, numbers: Iterable[int]) -> None:
        """Release the values of some operations."""
        for number in numbers:
            self.evaluator.release(self.evaluator.values.pop(self.program.operations[number].name))

    def _enter(self, block: Block) -> None:
        """Enter the method of a block. The sum of slices is allocated before the first slice."""
        evaluator, self._block = self.evaluator, block
        if block.kind == "planned":
            evaluator.recording = _Recording(is_followed=False)
            return
        inputs = tuple(evaluator.values[name] for name in sorted(self.program.given(block)))
        evaluator.recording = _Recording(inputs=inputs if block.kind == "recompute" else None)
        last = self.program.operations[block.last]
        evaluator.repeats.enter(tuple(index.size for index in last.loops))
        evaluator.timer.repeat(prod(evaluator.sizes.of_shape(evaluator.repeats.loops)))
        if block.kind == "slices":
            evaluator.allocate_sum(tuple(leg_size(leg) for leg in last.legs))

    def _leave(self, block: Block) -> None:
        """Return from the method of a block."""
        if block.kind != "planned":
            self.evaluator.timer.repeat(1)
        self._block, self.evaluator.repeats.loops, self.evaluator.recording = None, (), _Recording()

    def _run_backward(self, block: Block) -> None:
        """Save the values that a planned backward pass reads, and time its lines."""
        evaluator, backward = self.evaluator, self.program.backward[block.first]
        arrays = [evaluator.values[v.name] if v.kind == "value" else evaluator.stored(v) for v in backward.inputs]
        trained = {place for place, array in enumerate(arrays) if array.is_trained}
        if not trained:
            return
        for array in (*arrays, *(evaluator.values[variable.name] for variable in backward.saved)):
            if array.storage is not None:
                evaluator.saved.savers.setdefault(array.storage, set()).add(block.last)
                evaluator.save(array.storage)
        if evaluator.timer.is_timing:
            evaluator.time_backward(backward, trained)

    def _run_tiles(self, block: Block, lines: Sequence[Line]) -> None:
        """Run lines tile by tile.

        The most is alive during the last two tiles, when the results of the other full tiles exist. So only the first
        full tile, the last full tile and the rest run. An index no larger than a tile runs whole.
        """
        op, evaluator = self.program.operations[block.last], self.evaluator
        assert op.tile is not None
        all_rows, cut, size = op.tile.index.size, op.tile.part.size, op.tile.size
        rows, full_rows = evaluator.sizes.of(all_rows), sympy.Integer(size)
        full, full_count = (rows - 1) // size, sympy.floor((all_rows - 1) / full_rows)
        if full == 0:
            whole = self._run_tile(block, lines, TileRun(cut, rows, all_rows, 1, sympy.S.One, rows))
        else:
            first = self._run_tile(block, lines, TileRun(cut, size, full_rows, full, full_count, rows))
            evaluator.release(first)
            earlier = evaluator.stack(first, full - 1, full_count - 1)
            evaluator.release(self._run_tile(block, lines, TileRun(cut, size, full_rows, 0, sympy.S.Zero, rows)))
            evaluator.release(earlier)
            earlier = evaluator.stack(first, full, full_count)
            rest = TileRun(cut, rows - full * size, all_rows - size * full_count, 1, sympy.S.One, rows)
            last = self._run_tile(block, lines, rest)
            whole = evaluator.join(lines[-1].code.shape, last.is_trained)
            evaluator.release(earlier)
            evaluator.release(last)
        evaluator.bind(op.name, whole)

    def _run_tile(self, block: Block, lines: Sequence[Line], tile: TileRun) -> Array:
        """Run lines where the index has the size of a tile, on values cut to the tile."""
        evaluator = self.evaluator
        sizes, values = evaluator.sizes, dict(evaluator.values)
        evaluator.sizes = Sizes(sizes.numbers, tile)
        evaluator.repeats.own = set()
        evaluator.timer.repeat(tile.count)
        evaluator.timer.tile()
        for variable, axis in self.program.cut_axes(block.last).items():
            if variable.kind == "value":
                evaluator.values[variable.name] = _cut(values[variable.name], axis, tile.rows)
        self.run(lines[:-1])
        evaluator.operation = lines[-1].number
        result = evaluator.evaluate(lines[-1].code)
        self._drop(number for number in lines[-1].dropped if number >= block.first)
        evaluator.sizes = sizes
        evaluator.timer.repeat(1)
        evaluator.values.update({name: array for name, array in values.items() if name in evaluator.values})
        return result


def _cut(array: Array, axis: int, rows: int) -> Array:
    """Return the rows of a value that a tile reads."""
    sizes = array.layout.sizes
    return replace(array, layout=array.layout._replace(sizes=(*sizes[:axis], rows, *sizes[axis + 1 :])))
