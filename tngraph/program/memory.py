"""The memory of a module's lines: the bytes alive at every moment, and the bytes that autograd saves.

`trace_memory` runs the expressions of `program` on layouts instead of tensors, as Python and PyTorch would run them.
Operands are evaluated from the left, and each is held until the call that takes it returns. A value is held until the
line that drops it, and results to the end. Each call returns a view of its first operand or makes a storage. Params,
buffers and inputs exist anyway and do not count; inputs are assumed to be contiguous.

Which calls are views depends on which sizes are 1, so the trace runs at numbers. Every storage also has a formula. At
`generic_sizes`, where no size is 1 and none equals another by chance, the formulas hold for all such sizes. If some
sizes are *fixed* at numbers at which an index has one entry, they hold for all other values of the other sizes.
`find_cases` lists such sets of fixed sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, permutations
from itertools import product as cartesian
from math import prod
from typing import Any, NamedTuple

import sympy

from tngraph.errors import SizeError
from tngraph.language.legs import leg_size
from tngraph.language.network import Network
from tngraph.language.sizes import evaluate_size, product, symbol
from tngraph.program.backward import Backward
from tngraph.program.clock import Clock, Made
from tngraph.program.counts import maximum
from tngraph.program.expressions import Call, Expression, Shape, Variable
from tngraph.program.lines import Line, Program
from tngraph.program.operations import Block
from tngraph.program.strides import (
    Ints,
    Layout,
    contiguous_strides,
    elementwise_strides,
    is_contiguous,
    kept_strides,
    reshaped_strides,
    suggested_strides,
    suggests_channels_last,
)
from tngraph.search.region import Tile

ITEMSIZE = 4
"""The size of a number in single precision, the default [bytes]."""
DOUBLE = 8
"""The size of a number in double precision, in which layers are verified [bytes]."""
UNITS: Mapping[str, int] = {"arange": 8, "full": 8, "equals": 1, "differs": 1}
"""The size of an entry that is a position or a truth value, by the call that makes it [bytes]."""


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Memory that one call allocates: its shape, its number of elements, and the bytes of each."""

    shape: Shape
    count: int
    unit: int

    @property
    def bytes(self) -> int:
        """The size at the numbers of the trace [bytes]."""
        return self.count * self.unit

    @property
    def formula(self) -> sympy.Expr:
        """The size as a formula in the sizes of the network [bytes]."""
        return product(self.shape) * self.unit


@dataclass(frozen=True, slots=True)
class Memory:
    """The storages of a run.

    Attributes:
        moments: the storages alive together, at each moment when more are alive than just before and just after.
        kept: the storages that autograd saves.
        keepers: each saved storage, with the operations that write to it and those that save it.
        moved: the storages of copies into another order.
    """

    moments: tuple[tuple[Storage, ...], ...]
    kept: tuple[Storage, ...]
    keepers: tuple[tuple[Storage, frozenset[int], frozenset[int]], ...] = ()
    moved: tuple[Storage, ...] = ()

    @property
    def peak(self) -> int:
        """The most bytes alive at once [bytes]."""
        return max((sum(storage.bytes for storage in alive) for alive in self.moments), default=0)

    @property
    def saved(self) -> int:
        """The bytes saved for the backward pass [bytes]."""
        return sum(storage.bytes for storage in self.kept)

    @property
    def moves(self) -> int:
        """The bytes written by copies into another order [bytes]."""
        return sum(storage.bytes for storage in self.moved)

    def formulas(self, fixed: Mapping[str, int]) -> MemoryFormulas:
        """Return peak, saved and moves as formulas, with numbers for the fixed sizes [bytes]."""
        peak = maximum(sympy.Add(*(storage.formula for storage in alive)) for alive in self.moments)
        saved, moves = (sympy.Add(*(storage.formula for storage in held)) for held in (self.kept, self.moved))
        return MemoryFormulas(*(fix_sizes(formula, fixed) for formula in (peak, saved, moves)))


class MemoryFormulas(NamedTuple):
    """The peak, and the bytes saved and moved, as formulas [bytes]."""

    peak: sympy.Expr
    saved: sympy.Expr
    moves: sympy.Expr


def fix_sizes(formula: sympy.Expr, fixed: Mapping[str, int]) -> sympy.Expr:
    """Return a count with numbers for some sizes, multiplied out."""
    numbers = {symbol(name): sympy.Integer(value) for name, value in fixed.items()}
    parts = formula.args if formula.func is sympy.Max else (formula,)
    return maximum(sympy.expand(part.xreplace(numbers)) for part in parts)


def trace_memory(
    program: Program,
    numbers: Mapping[str, int],
    trained: Iterable[str] = (),
    itemsize: int = ITEMSIZE,
    clock: Clock | None = None,
) -> Memory:
    """Return the storages that the lines of a module hold at some sizes.

    Args:
        program: the lines.
        numbers: an integer for every named size.
        trained: the tensors that take a gradient; the peak is still that of a run without gradients.
        itemsize: size of a number [bytes].
        clock: adds up the time of every call, if given.
    """
    trace = _Trace(program, numbers, frozenset(trained), itemsize, clock)
    trace.run(program.lines)
    for result in program.results:
        trace.evaluate(result)
    trace.note()
    keepers = ((storage, frozenset(trace.makers[storage]), frozenset(by)) for storage, by in trace.keepers.items())
    return Memory(tuple(trace.moments), tuple(trace.kept.values()), tuple(keepers), tuple(trace.moved))


@dataclass(frozen=True, slots=True)
class _Array:
    """A tensor of the run: its layout, its storage if the run allocated it, and the bytes of an element.

    ``is_trained`` is true if a gradient flows to it. ``source`` is the call's result that it is a view of, or the given
    tensor, for the backward pass; None if autograd does not follow it.
    """

    layout: Layout
    storage: Storage | None
    unit: int
    is_trained: bool
    source: Made | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """Tiles of an index that have the same size and so run alike.

    Attributes:
        size: the symbol for the size of the index in a tile.
        rows: the size of the index in such a tile.
        rows_formula: that size as a formula.
        count: the number of such tiles.
        formula: that number as a formula.
        whole: the size of the index in all tiles together.
    """

    size: sympy.Symbol
    rows: int
    rows_formula: sympy.Expr
    count: int
    formula: sympy.Expr
    whole: int = 1


class _Trace:
    """A run in progress. The caller of `evaluate` holds the array that it returns, and has to release it."""

    def __init__(
        self,
        program: Program,
        numbers: Mapping[str, int],
        trained: Collection[str],
        itemsize: int,
        clock: Clock | None,
    ) -> None:
        self.program, self.numbers, self.trained, self.itemsize = program, numbers, trained, itemsize
        self.clock = clock
        entered = ("slices", "recompute", "planned")
        self.starts = {block.first: block for block in program.blocks if block.kind in entered}
        self.tiles = {block.first: block for block in program.blocks if block.kind == "tiles"}
        self.values: dict[str, _Array] = {}
        self.holders: dict[Storage, int] = {}
        self.kept: dict[Storage, Storage] = {}
        self.number = 0
        self.makers: dict[Storage, set[int]] = {}
        self.keepers: dict[Storage, set[int]] = {}
        self.moved: list[Storage] = []
        self.block: Block | None = None
        self.loops: tuple[sympy.Expr, ...] = ()
        self.part: _Part | None = None
        self.given: tuple[_Array, ...] = ()
        self.made: set[Storage] = set()
        self.moments: list[tuple[Storage, ...]] = []
        self._has_grown = False
        self._known: dict[sympy.Expr, int] = {}

    def run(self, lines: Sequence[Line]) -> None:
        """Run lines in order. Lines of tiles run once for each kind of tile that `run_tiles` needs."""
        k = 0
        while k < len(lines):
            line, block = lines[k], self.tiles.get(lines[k].number)
            if block is not None and self.part is None:
                inside = [later for later in lines[k:] if later.number <= block.last]
                self.run_tiles(block, inside)
                line, k = inside[-1], k + len(inside)
                self._drop(number for number in line.dropped if number < block.first)
            else:
                self._run_line(line)
                self._drop(line.dropped)
                k += 1
            if self.block is not None and line.number == self.block.last:
                self.leave()

    def _drop(self, numbers: Iterable[int]) -> None:
        """Release the values of some operations."""
        for number in numbers:
            self.release(self.values.pop(self.program.operations[number].name))

    def _run_line(self, line: Line) -> None:
        self.number = line.number
        if line.number in self.starts:
            self.enter(self.starts[line.number])
        self.bind(self.program.operations[line.number].name, self.evaluate(line.code))
        if self.is_planned and self.block is not None and line.number == self.block.last:
            self._differentiate(self.block)

    @property
    def is_planned(self) -> bool:
        """True if the current lines have a planned backward pass, so that autograd does not record them."""
        return self.block is not None and self.block.kind == "planned"

    def _differentiate(self, block: Block) -> None:
        """Save the values that a planned backward pass reads, and add the time of its lines to the clock."""
        backward = self.program.backward[block.first]
        arrays = [self.values[v.name] if v.kind == "value" else self._given(v) for v in backward.given]
        trained = {place for place, array in enumerate(arrays) if array.is_trained}
        if not trained:
            return
        for array in (*arrays, *(self.values[variable.name] for variable in backward.kept)):
            if array.storage is not None:
                self.keepers.setdefault(array.storage, set()).add(block.last)
                for stored in self._times(array.storage):
                    self.kept[array.storage] = stored
        if self.clock is not None:
            self._run_backward(backward, trained, self.clock)

    def _run_backward(self, backward: Backward, trained: Collection[int], clock: Clock) -> None:
        clock.function()
        trace = _Trace(self.program, self.numbers, (), self.itemsize, clock)
        trace.part, trace.block, trace._known = self.part, self.block, self._known
        trace.values = dict(self.values)
        sizes = self._sizes(backward.start.shape)
        trace.values[backward.start.name] = _Array(Layout(sizes, contiguous_strides(sizes)), None, self.itemsize, False)
        for line in backward.lines:
            if not line.needs.isdisjoint(trained):
                trace.values[line.variable.name] = trace.evaluate(line.made.code)

    def run_tiles(self, block: Block, lines: Sequence[Line]) -> None:
        """Run lines tile by tile.

        The most is alive during the last two tiles, when the results of the other full tiles exist. So only the first
        full tile, the last full tile and the rest run. An index no larger than a tile runs whole.
        """
        op = self.program.operations[block.last]
        assert op.tile is not None
        all_rows, cut, size = op.tile.index.size, op.tile.part.size, op.tile.size
        rows = self._size(all_rows)
        full = (rows - 1) // size
        count = sympy.floor((all_rows - 1) / sympy.Integer(size))
        if full == 0:
            whole = self._run_part(block, lines, _Part(cut, rows, all_rows, 1, sympy.S.One, rows))
        else:
            first = self._run_part(block, lines, _Part(cut, size, sympy.Integer(size), full, count, rows))
            self.release(first)
            stack = self._stack(first, full - 1, count - 1)
            another = self._run_part(block, lines, _Part(cut, size, sympy.Integer(size), 0, sympy.S.Zero, rows))
            self.release(another)
            self.release(stack)
            stack = self._stack(first, full, count)
            rest = _Part(cut, rows - full * size, all_rows - size * count, 1, sympy.S.One, rows)
            last = self._run_part(block, lines, rest)
            shape = lines[-1].code.shape
            sizes = self._sizes(shape)
            joined = Storage(shape, prod(sizes), self.itemsize)
            whole = _Array(Layout(sizes, contiguous_strides(sizes)), joined, self.itemsize, last.is_trained)
            self._hold(whole)
            self.release(stack)
            self.release(last)
            if self.clock is not None:
                self.clock.copy(whole.layout)
        self.bind(op.name, whole)

    def _stack(self, part: _Array, count: int, formula: sympy.Expr) -> _Array:
        """Return the results of a number of equal tiles as one array, which is alive as a whole."""
        if part.storage is None:
            return part
        shape = (formula, *part.storage.shape)
        stack = replace(part, storage=Storage(shape, count * part.storage.count, part.unit))
        self._hold(stack)
        return stack

    def _run_part(self, block: Block, lines: Sequence[Line], part: _Part) -> _Array:
        """Run lines where the index has the size of a tile, on arrays cut to the tile."""
        numbers, cached, values = self.numbers, self._known, dict(self.values)
        self.part, self._known = part, {}
        if self.clock is not None:
            self.clock.times = part.count
            self.clock.part()
        self.numbers = {**numbers, str(part.size): part.rows}
        for variable, axis in self.program.parts(block.last).items():
            if variable.kind == "value":
                sizes = self.values[variable.name].layout.sizes
                cut = Layout((*sizes[:axis], part.rows, *sizes[axis + 1 :]), values[variable.name].layout.strides)
                self.values[variable.name] = replace(values[variable.name], layout=cut)
        self.made = set()
        self.run(lines[:-1])
        self.number = lines[-1].number
        result = self.evaluate(lines[-1].code)
        self._drop(number for number in lines[-1].dropped if number >= block.first)
        self.part, self.numbers, self._known = None, numbers, cached
        if self.clock is not None:
            self.clock.times = 1
        self.values.update({name: values[name] for name in values if name in self.values})
        return result

    def bind(self, name: str, array: _Array) -> None:
        """Give a value its name, and release the value that had it."""
        before = self.values.get(name)
        self.values[name] = array
        if before is not None:
            self.release(before)

    def enter(self, block: Block) -> None:
        """Enter the method of a block. The sum of slices is allocated before the first slice."""
        self.block = block
        if block.kind == "planned":
            return
        self.made = set()
        self.given = tuple(self.values[name] for name in sorted(self.program.given(block)))
        whole = self.program.operations[block.last]
        self.loops = tuple(index.size for index in whole.loops)
        if self.clock is not None:
            self.clock.times = prod(self._sizes(self.loops))
        if block.kind == "slices":
            shape = tuple(leg_size(leg) for leg in whole.legs)
            sizes = self._sizes(shape)
            storage = Storage(shape, prod(sizes), self.itemsize)
            self.whole = _Array(Layout(sizes, contiguous_strides(sizes)), storage, self.itemsize, False)
            self._hold(self.whole)

    def leave(self) -> None:
        """Return from the method of a block."""
        if not self.is_planned and self.clock is not None:
            self.clock.times = 1
        self.block, self.loops = None, ()

    def evaluate(self, code: Expression) -> _Array:
        """Return the array of an expression."""
        if isinstance(code, Call) and code.function == "join":
            return self.evaluate(code.operands[0])
        if isinstance(code, Call) and code.function == "accumulate":
            part = self.evaluate(code.operands[0])
            self.release(part)
            return replace(self.whole, is_trained=part.is_trained)
        if isinstance(code, Call):
            operands = [self.evaluate(operand) for operand in code.operands]
            array = self._call(code, operands)
            for operand in operands:
                self.release(operand)
            return array
        array = self.values[code.name] if code.kind == "value" else self._given(code)
        self._hold(array)
        return array

    def _given(self, code: Variable) -> _Array:
        sizes = self._sizes(code.shape)
        strides = contiguous_strides(sizes)
        if self.part is not None:
            whole = self.part.whole
            strides = contiguous_strides(
                tuple(whole if size == self.part.size else n for size, n in zip(code.shape, sizes, strict=True))
            )
        return _Array(Layout(sizes, strides), None, self.itemsize, code.name in self.trained, Made(sizes))

    def _sizes(self, shape: Shape) -> Ints:
        return tuple(map(self._size, shape))

    def _size(self, size: sympy.Expr) -> int:
        if size not in self._known:
            self._known[size] = evaluate_size(size, self.numbers)
        return self._known[size]

    def _call(self, code: Call, operands: Sequence[_Array]) -> _Array:
        sizes, layouts = self._sizes(code.shape), [operand.layout for operand in operands]
        view, needs = VIEWS.get(code.function), [operand.is_trained for operand in operands]
        followed = [need and not self.is_planned for need in needs]
        strides = view(layouts[0], sizes, code.arguments) if view is not None else None
        is_view = strides is not None
        if strides is not None:
            array = replace(operands[0], layout=Layout(sizes, strides))
        elif code.function == "pointwise_":
            array = replace(operands[0], source=Made(sizes))
            if array.storage is not None:
                self.makers[array.storage].add(self.number)
        else:
            strides, unit = (
                ORDERS.get(code.function, _in_order)(layouts, sizes, code.arguments),
                self._unit(code, operands),
            )
            storage = Storage(self._formulas(code.shape), prod(sizes), unit)
            source = None if self.is_planned else Made(sizes, sum(needs) if code.function in ("mm", "bmm") else 0)
            array = _Array(Layout(sizes, strides), storage, unit, any(needs), source)
            if code.function in COPIES:
                self.moved.extend(self._times(storage))
        if self.clock is not None and is_view and code.function != "type_as":  # outside mixed precision it does nothing
            self.clock.view(any(followed))
        elif self.clock is not None and not is_view:
            self.clock.call(code, layouts, sizes, followed)
            for operand, is_followed in zip(operands, followed, strict=True):
                if is_followed and operand.source is not None:
                    self.clock.undo(code, operand.layout, operand.source)
        self._hold(array)
        if any(followed) and code.function in SAVES:
            self._keep([*operands, array], SAVES[code.function](code, needs))
        return array

    def _unit(self, code: Call, operands: Sequence[_Array]) -> int:
        """Return the bytes of an element of a new tensor.

        They are those of the first operand, unless the call makes numbers, positions or truth values of its own.
        """
        unit = UNITS.get(code.function)
        if unit is not None:
            return unit
        return operands[0].unit if operands and code.function != "convert" else self.itemsize

    def _keep(self, arrays: Sequence[_Array], saved: Iterable[int]) -> None:
        for k in saved:
            storage = arrays[k].storage
            if storage is not None:
                self.keepers.setdefault(storage, set()).add(self.number)
            if self.block is not None and self.block.kind == "recompute":
                self._keep_given()
            elif storage is not None:
                for stored in self._times(storage):
                    self.kept[storage] = stored

    def _keep_given(self) -> None:
        """Save what a recomputed block is given, and nothing that it computes itself."""
        for array in self.given:
            if array.storage is not None:
                self.kept[array.storage] = array.storage

    def _times(self, storage: Storage) -> Iterator[Storage]:
        """Yield a storage once for all slices, or for all tiles of one kind, if each of them makes its own.

        Its shape has a further axis then, since they all exist at once.
        """
        if self.part is not None and storage in self.made:
            if self.part.count:
                shape = (self.part.formula, *storage.shape)
                yield replace(storage, shape=shape, count=storage.count * self.part.count)
        elif storage not in self.made or not self.loops:
            yield storage
        else:
            count = storage.count * prod(self._sizes(self.loops))
            yield replace(storage, shape=(*storage.shape, *self.loops), count=count)

    def _formulas(self, shape: Shape) -> Shape:
        """Return a shape in the sizes of the network, where the size of a tile has its formula."""
        part = self.part
        return shape if part is None else tuple(size.xreplace({part.size: part.rows_formula}) for size in shape)

    def _hold(self, array: _Array) -> None:
        if array.storage is not None:
            if array.storage not in self.holders:
                self._has_grown = True
                self.makers[array.storage] = {self.number}
                self.made.add(array.storage)
            self.holders[array.storage] = self.holders.get(array.storage, 0) + 1

    def release(self, array: _Array) -> None:
        """Release a tensor once; its storage is freed when the last holder releases it."""
        if array.storage is None:
            return
        if self.holders[array.storage] == 1:
            self.note()
            del self.holders[array.storage]
        else:
            self.holders[array.storage] -= 1

    def note(self) -> None:
        """Record the storages alive, if there are new ones since the last record."""
        if self._has_grown:
            self.moments.append(tuple(self.holders))
        self._has_grown = False


COPIES = ("reshape", "contiguous")
"""Calls that copy a tensor into another order, unless they return a view."""

View = Callable[[Layout, Ints, tuple[Any, ...]], Ints | None]


def _permuted(layout: Layout, sizes: Ints, order: tuple[Any, ...]) -> Ints:
    return tuple(layout.strides[axis] for axis in order)


def _moved(layout: Layout, sizes: Ints, axes: tuple[Any, ...]) -> Ints:
    strides = list(layout.strides)
    strides.insert(axes[1], strides.pop(axes[0]))
    return tuple(strides)


def _stepped(layout: Layout, sizes: Ints, arguments: tuple[Any, ...]) -> Ints:
    axis, step = arguments
    return tuple(stride * step if k == axis else stride for k, stride in enumerate(layout.strides))


def _without(layout: Layout, *axes: int) -> Ints:
    return tuple(stride for axis, stride in enumerate(layout.strides) if axis not in axes)


def _unfolded(layout: Layout, sizes: Ints, arguments: tuple[Any, ...]) -> Ints:
    axis, _, step = arguments
    return (*_stepped(layout, sizes, (axis, step)), layout.strides[axis])


def _diagonal(layout: Layout, sizes: Ints, axes: tuple[Any, ...]) -> Ints:
    return (*_without(layout, *axes), sum(layout.strides[axis] for axis in axes))


VIEWS: Mapping[str, View] = {
    "reshape": lambda layout, sizes, arguments: reshaped_strides(layout, sizes),
    "contiguous": lambda layout, sizes, arguments: layout.strides if is_contiguous(layout) else None,
    "permute": _permuted,
    "movedim": _moved,
    "expand": lambda layout, sizes, arguments: (0,) * (len(sizes) - len(layout.sizes)) + layout.strides,
    "narrow": lambda layout, sizes, arguments: layout.strides,
    "select": lambda layout, sizes, arguments: _without(layout, arguments[0]),
    "every": _stepped,
    "unfold": _unfolded,
    "diagonal": _diagonal,
    "unsqueeze": lambda layout, sizes, arguments: (*layout.strides, 1),
    "type_as": lambda layout, sizes, arguments: layout.strides,
}
"""The strides of a call's result if it is a view, or None if it is a copy."""

Order = Callable[[Sequence[Layout], Ints, tuple[Any, ...]], Ints]


def _in_order(operands: Sequence[Layout], sizes: Ints, arguments: tuple[Any, ...]) -> Ints:
    return contiguous_strides(sizes)


def _elementwise(operands: Sequence[Layout], sizes: Ints, arguments: tuple[Any, ...]) -> Ints:
    return elementwise_strides(sizes, operands)


def _scaled(operands: Sequence[Layout], sizes: Ints, arguments: tuple[Any, ...]) -> Ints:
    """Return the strides of a scaled tensor. The number counts as an operand without axes."""
    return elementwise_strides(sizes, [*operands, Layout((), ())])


def _kept(operands: Sequence[Layout], sizes: Ints, arguments: tuple[Any, ...]) -> Ints:
    return kept_strides(operands[0])


def _padded(operands: Sequence[Layout], sizes: Ints, arguments: tuple[Any, ...]) -> Ints:
    """Return the strides of a padded tensor. Without any padding the call clones its operand."""
    if operands[0].sizes == sizes:
        return kept_strides(operands[0])
    return suggested_strides(sizes, suggests_channels_last(operands[0]))


def _gathered(operands: Sequence[Layout], sizes: Ints, arguments: tuple[Any, ...]) -> Ints:
    """Return the strides of gathered entries.

    PyTorch spreads all operands over all axes of the result. The source has stride 0 along the axes of the positions.
    """
    (axis,) = arguments
    source, *positions = operands
    rank, after = len(positions[0].sizes), len(source.sizes) - axis - len(positions)
    still = source.strides[:axis] + (0,) * rank + source.strides[axis + len(positions) :]
    spread = (
        Layout((1,) * axis + index.sizes + (1,) * after, (0,) * axis + index.strides + (0,) * after)
        for index in positions
    )
    return elementwise_strides(sizes, [Layout(sizes, still), *spread])


def _convolved(operands: Sequence[Layout], sizes: Ints, arguments: tuple[Any, ...]) -> Ints:
    """Return the strides of a convolution's result: channels last if either operand is.

    PyTorch runs a convolution over one dimension as one over two, on a contiguous signal.
    """
    if len(sizes) == 5:
        return contiguous_strides(sizes)
    if len(sizes) == 4:
        return suggested_strides(sizes, any(map(suggests_channels_last, operands)))
    signal, kernel = operands
    if not is_contiguous(signal):
        signal = Layout(signal.sizes, contiguous_strides(signal.sizes))
    is_channels_last = any(suggests_channels_last(_with_height(operand)) for operand in (signal, kernel))
    strides = suggested_strides((*sizes[:2], 1, sizes[2]), is_channels_last)
    return (*strides[:2], strides[3])


def _with_height(layout: Layout) -> Layout:
    sizes, strides = layout
    return Layout((*sizes[:2], 1, sizes[2]), (*strides[:2], sizes[2] * strides[2], strides[2]))


ORDERS: Mapping[str, Order] = {
    **dict.fromkeys(("mul", "add", "sub", "pointwise", "remainder", "equals", "differs", "convert"), _elementwise),
    "scale": _scaled,
    **dict.fromkeys(("flip", "clamp", "masked_fill"), _kept),
    "pad": _padded,
    "gather": _gathered,
    "conv": _convolved,
}
"""The strides of a new tensor by its call; calls not listed return contiguous tensors."""

RESULT = -1
SAVES_RESULT = ("relu", "tanh", "sigmoid", "exp", "sqrt")
"""Functions whose derivative PyTorch computes from their value, and not from the operand."""


def _other(code: Call, needs: Sequence[bool]) -> list[int]:
    """Return each operand of a product that the other operand's gradient needs."""
    return [k for k in (0, 1) if needs[1 - k]]


SAVES: Mapping[str, Callable[[Call, Sequence[bool]], Sequence[int]]] = {
    **dict.fromkeys(("mm", "bmm", "mul"), _other),
    **dict.fromkeys(("conv", "conv_transpose"), lambda code, needs: (0, 1)),
    "pointwise": lambda code, needs: (RESULT if code.arguments[0] in SAVES_RESULT else 0,),
    "pointwise_": lambda code, needs: (RESULT,),
    "index_select": lambda code, needs: (1,),
    "gather": lambda code, needs: range(1, len(code.operands)),
    "masked_fill": lambda code, needs: (1,),
}
"""The operands that a call saves for the backward pass if a gradient flows through it; `RESULT` is its result.

Source: tools/autograd/derivatives.yaml of PyTorch.
"""


FIRST_PRIME = 5
"""The number of the smallest prime used: 11, which is larger than usual literal steps and windows."""
APART = 40
"""The distance of two sizes in the list of primes, so that one slides over the next however it is padded."""
MOST_ORDERED = 4
"""The most sizes that are tried in every order, to find an order where windows fit what they slide over."""


MOST_SPECIAL = 8
"""The largest size that is tried to find where an index has one entry, as a window with one position."""
MOST_CASES = 64
"""The most cases of sizes that get formulas of their own: those in which the fewest sizes are fixed."""


def generic_sizes(
    network: Network, numbers: Mapping[str, int], tiles: Iterable[Tile] = (), fixed: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return numbers for all sizes at which no index has size 1 and none equals another by chance, except fixed ones.

    Args:
        network: the network.
        numbers: the numbers to return if there are no generic ones, as for a window that never slides.
        tiles: tiles whose indices get several tiles, the last one not full if possible.
        fixed: the numbers of some sizes.
    """
    return _find_generic(network, tiles, fixed or {}) or {**numbers, **(fixed or {})}


def _find_generic(network: Network, tiles: Iterable[Tile], fixed: Mapping[str, int]) -> dict[str, int] | None:
    cut = {str(tile.index.size): tile.size for tile in tiles if tile.is_runtime}
    free = [name for name in _free_sizes(network) if name not in fixed]
    orders = (list(dict.fromkeys([*order, *free])) for order in (free, *permutations(free[:MOST_ORDERED])))
    numbered = (_number(network, order, cut, fixed) for order in orders)
    return next((candidate for candidate in numbered if candidate is not None), None)


def _free_sizes(network: Network) -> list[str]:
    """Return the sizes that may have any number.

    Run-time sizes come last, and so get the largest numbers, since windows slide over them.
    """
    settable = network.settable_sizes()
    return list(dict.fromkeys(s.name for s in (*settable, *network.sizes) if s.value is None or s in settable))


def _number(
    network: Network, order: Sequence[str], cut: Mapping[str, int], fixed: Mapping[str, int]
) -> dict[str, int] | None:
    """Return primes for sizes in this order, and the numbers derived from them; None if an index has only one entry.

    With fixed sizes an index may have one entry.
    """
    numbers = {name: int(sympy.prime(FIRST_PRIME + APART * k)) for k, name in enumerate(order)}
    numbers.update(
        {name: int(sympy.nextprime(3 * size + numbers[name])) for name, size in cut.items() if name in numbers}
    )
    numbers.update(fixed)
    try:
        for size in network.sizes:
            if size.name not in numbers and size.value is not None:
                numbers[size.name] = evaluate_size(size.value, numbers)
        sizes = [(size, evaluate_size(size, numbers)) for size in _index_sizes(network)]
    except SizeError:
        return None
    is_generic = all(size == 1 or number > (0 if fixed else 1) for size, number in sizes)
    return {size.name: numbers[size.name] for size in network.sizes} if is_generic else None


def _index_sizes(network: Network) -> Iterable[sympy.Expr]:
    """Return the sizes of all indices, each once."""
    return dict.fromkeys(index.size for index in network.indices())


def find_cases(network: Network) -> list[dict[str, int]]:
    """Return the sets of sizes to fix, which together show every index that may have one entry with one entry.

    The empty set comes first. A size is fixed at 1, and at other numbers up to `MOST_SPECIAL` that give some index one
    entry.
    """
    names, special = _free_sizes(network), range(1, MOST_SPECIAL + 1)
    numbers_of = {name: [n for n in special if _is_case(network, {name: n})] for name in names}
    cases = (
        dict(zip(chosen, values, strict=True))
        for count in range(len(names) + 1)
        for chosen in combinations(names, count)
        for values in cartesian(*(numbers_of[name] for name in chosen))
    )
    return [case for case in islice(cases, MOST_CASES) if not case or _is_case(network, case)]


def case_at(network: Network, numbers: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes that give an index one entry at these numbers of all sizes, each with its number."""
    single = [size for size in _index_sizes(network) if evaluate_size(size, numbers) == 1]
    names, free = {symbol.name for size in single for symbol in size.free_symbols}, _free_sizes(network)
    for size in reversed(network.sizes):
        if size.name in names and size.name not in free and size.value is not None:
            names.update(symbol.name for symbol in size.value.free_symbols)
    return {name: numbers[name] for name in free if name in names}


def _is_case(network: Network, fixed: Mapping[str, int]) -> bool:
    """Return whether every index has an entry with some sizes fixed, and each fixed size gives some index only one."""
    numbers = _find_generic(network, (), fixed)
    return numbers is not None and case_at(network, numbers) == {**fixed}
