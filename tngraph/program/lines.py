"""The lines of a module: the operations of a schedule in order, each as one expression, and what dies after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tngraph.language.legs import bare_legs, is_unit, leg_indices, leg_size
from tngraph.language.network import Access, Core, Index, Leg, Network, Port, Read
from tngraph.language.varying import call_sizes
from tngraph.program.backward import Backward, differentiate
from tngraph.program.counts import aliases, blocks_around, last_uses
from tngraph.program.expressions import Call, Expression, Variable, calls_in, variables
from tngraph.program.kinds import entry_of
from tngraph.program.layout import Axes, Context, LaidOut, arrange, axes_shape, compute, separate
from tngraph.program.operations import Block, Operation, Schedule, Stage
from tngraph.program.pytorch import POINTWISE
from tngraph.program.types import find_types, take_type_of_product
from tngraph.search.region import ContractionTree, Tile


@dataclass(frozen=True, slots=True)
class Line:
    """One printed line.

    Attributes:
        number: the number of the operation that it computes.
        code: the expression that computes it.
        axes: the axes of the value, each with its legs fused first-slowest.
        dropped: the operations whose values are not needed after it, except one whose name it takes over.
    """

    number: int
    code: Expression
    axes: Axes
    dropped: tuple[int, ...]

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs in memory order."""
        return tuple(leg for axis in self.axes for leg in axis)


@dataclass(frozen=True, slots=True)
class Program:
    """The lines of ``forward`` in order, and the expressions it returns.

    Attributes:
        operations: the operations of the schedule; each value has the name of its operation.
        blocks: the operations whose lines are printed in methods of their own.
        lines: one per operation except loads, which are part of other lines.
        results: the expressions that are returned, in order.
        backward: the planned backward passes, by the first operation of their blocks.
    """

    operations: tuple[Operation, ...]
    blocks: tuple[Block, ...]
    lines: tuple[Line, ...]
    results: tuple[Expression, ...]
    backward: Mapping[int, Backward] = field(default_factory=dict)

    @property
    def gathering(self) -> frozenset[int]:
        """The operations that read by positions, which PyTorch keeps for the backward pass."""
        return frozenset(
            line.number for line in self.lines if any(call.torch.is_gather for call in calls_in(line.code))
        )

    def given(self, block: Block) -> frozenset[str]:
        """Return the names of the values from before a block that its lines use."""
        return frozenset(variable.name for variable in self.tensors(block) if variable.kind == "value")

    def tensors(self, block: Block) -> tuple[Variable, ...]:
        """Return the variables that the lines of a block use and do not compute, in order."""
        inside = [line for line in self.lines if block.first <= line.number <= block.last]
        computed = {self.operations[line.number].name for line in inside}
        used = dict.fromkeys(variable for line in inside for variable in variables(line.code))
        return tuple(v for v in used if v.kind != "value" or v.name not in computed)

    def cut_axes(self, last: int) -> dict[Variable, int]:
        """Return the variables that a block of tiles cuts, each with its axis that is cut.

        Args:
            last: the last operation of the block.
        """
        block = next(block for block in self.blocks if block.kind == "tiles" and block.last == last)
        tile = self.operations[last].tile
        assert tile is not None
        size = tile.part.size
        return {variable: variable.shape.index(size) for variable in self.tensors(block) if size in variable.shape}


def write_program(
    network: Network,
    stages: Sequence[Stage],
    schedule: Schedule,
    numbers: Mapping[str, int],
    folded: Container[int] = frozenset(),
) -> Program:
    """Return the lines that run a schedule.

    Args:
        network: the network before its equations were merged.
        stages: its merged equations with their trees.
        schedule: every operation in the order it runs.
        numbers: sizes at which values are compared, to choose which one is arranged for the other [elements].
        folded: the operations whose values are stored before the first call.
    """
    writer = _LineWriter(network, stages, schedule, numbers, folded)
    for number in range(len(schedule.operations)):
        writer.write(number)
    outputs = zip(writer.outputs, network.outputs, strict=True)
    results = tuple(arrange(writer.tensors[k], _port_axes(port)) for k, port in outputs)
    program = Program(schedule.operations, schedule.blocks, tuple(writer.lines), results)
    planned = [block for block in schedule.blocks if block.kind == "planned"]
    return replace(program, backward={block.first: writer.differentiate(block, program) for block in planned})


class _LineWriter:
    """The lines of a schedule under construction."""

    def __init__(
        self,
        network: Network,
        stages: Sequence[Stage],
        schedule: Schedule,
        numbers: Mapping[str, int],
        folded: Container[int],
    ) -> None:
        self.network, self.stages, self.schedule = network, stages, schedule
        self.tiles = _find_tiles(schedule)
        rows = {str(tile.part.size): tile.size for tile in self.tiles.values()}
        self.context = Context({**numbers, **rows}, call_sizes(network) | rows.keys(), find_positions(stages))
        self.outputs = [schedule.results[port.name] for port in network.outputs]
        self.drops = find_drops(schedule, self.outputs)
        self.overwriting = _find_overwriting(schedule, self.outputs)
        self.loader = _Loader(network, stages, self.context)
        self.types = find_types(network, schedule.operations, folded)
        self.tensors: list[LaidOut] = []
        self.lines: list[Line] = []

    def write(self, number: int) -> None:
        """Write the line of an operation, and note its value. A load is part of the lines that use it."""
        op = self.schedule.operations[number]
        entry = entry_of(op)
        if entry.write is None:
            self.tensors.append(self.loader.load(op, self.tensors))
            return
        operands, tile = [self.tensors[k] for k in op.operands], self.tiles.get(number)
        if tile is not None:
            op, operands = _enter_tile(op, tile), [_cut(operand, tile) for operand in operands]
        if entry.is_typed_as_product:
            operands = take_type_of_product(operands, [self.types[k] for k in op.operands])
        result = entry.write(op, operands, _wanted(self.network, self.stages, self.schedule, number), self.context)
        if number in self.overwriting and _is_new(self.lines, op.operands[0]):
            result = _overwrite(result)
        self.lines.append(Line(number, result.code, result.axes, self.drops[number]))
        self.tensors.append(LaidOut(Variable("value", op.name, axes_shape(result.axes)), result.axes))

    def differentiate(self, block: Block, program: Program) -> Backward:
        """Return the planned backward pass of a block, in the legs of a tile if the block runs in tiles."""
        tile, values = self.tiles.get(block.first), self.tensors
        if tile is not None:
            products = (product._replace(matmul=product.matmul.renamed(tile.enter)) for product in block.products)
            block, values = replace(block, products=tuple(products)), [_cut(tensor, tile) for tensor in values]
        return differentiate(block, self.schedule.operations, values, program.tensors(block), self.context)


def _find_tiles(schedule: Schedule) -> dict[int, Tile]:
    """Return the tile that each operation runs in, for tiles of an index whose size is a number."""
    tiles: dict[int, Tile] = {}
    for block in schedule.blocks:
        tile = schedule.operations[block.last].tile
        if block.kind == "tiles" and tile is not None and not tile.is_runtime:
            tiles.update(dict.fromkeys(range(block.first, block.last), tile))
    return tiles


def _enter_tile(op: Operation, tile: Tile) -> Operation:
    """Return an operation with the legs it has inside a tile."""
    matmul = None if op.matmul is None else op.matmul.renamed(tile.enter)
    return replace(op, legs=tile.enter(op.legs), matmul=matmul, axes=tuple(map(tile.enter, op.axes)))


def _cut(tensor: LaidOut, tile: Tile) -> LaidOut:
    """Return the rows of an earlier value that a tile reads."""
    axes = tuple(map(tile.enter, tensor.axes))
    if axes == tensor.axes or not isinstance(tensor.code, Variable):
        return tensor
    return LaidOut(replace(tensor.code, shape=axes_shape(axes)), axes)


def find_positions(stages: Iterable[Stage]) -> frozenset[Index]:
    """Return the indices that remain of reads whose windows are summed, or that transposed convolutions sum."""
    trees = [tree for stage in stages for tree in stage.trees]
    reads = [(tree.region, leg) for tree in trees for access in tree.region.accesses for leg in access.legs]
    left = (
        index
        for region, read in reads
        if isinstance(read, Read) and len(read.terms) > 1
        for index in read.indices
        if index in region.legs
    )
    return frozenset((*left, *(index for tree in trees for index in _find_spread(tree))))


def _find_spread(tree: ContractionTree) -> Iterator[Index]:
    """Yield the indices that transposed convolutions sum."""
    for step in tree.steps:
        if step.kind == "conv_transpose":
            resolved = (leg for operand in step.operands for leg in tree.legs_of(operand) if leg not in step.legs)
            remaining = leg_indices(step.legs)
            yield from (i for leg in resolved if isinstance(leg, Read) for i in leg.indices if i not in remaining)


def find_drops(schedule: Schedule, lasting: Iterable[int]) -> list[tuple[int, ...]]:
    """Return for every operation the values that are not needed after it.

    The lasting values are never dropped.
    """
    operations, alias = schedule.operations, aliases(schedule.operations)
    drops = last_uses(operations, lasting, schedule.blocks)
    return [
        tuple(k for k in drops.get(number, ()) if k == alias[k] and operations[k].name != op.name)
        for number, op in enumerate(operations)
    ]


def _find_overwriting(schedule: Schedule, outputs: Container[int]) -> frozenset[int]:
    """Return the operations that may overwrite their operand, because nothing else reads it.

    Their gradient is computed from their value. Neither value may be passed between methods: a method that runs again
    in the backward pass has to find its operand unchanged, and gradients should not pass through more methods than
    necessary.
    """
    operations, around = schedule.operations, blocks_around(schedule.blocks)
    readers = Counter(operand for op in operations for operand in op.operands)
    return frozenset(
        number
        for number, op in enumerate(operations)
        if op.function is not None and POINTWISE[op.function.name].can_overwrite
        for operand in op.operands
        if readers[operand] == 1 and operand not in outputs and around.get(operand) == around.get(number)
    )


def _overwrite(tensor: LaidOut) -> LaidOut:
    """Return a pointwise function as one that overwrites its operand."""
    assert isinstance(tensor.code, Call)
    return replace(tensor, code=replace(tensor.code, function="pointwise_"))


def _is_new(lines: Sequence[Line], number: int) -> bool:
    """Return whether a value is a new tensor of one call, is not a view, and is not saved for a gradient."""
    code = next((line.code for line in lines if line.number == number), None)
    return isinstance(code, Call) and code.torch.is_reusable


def _wanted(network: Network, stages: Sequence[Stage], schedule: Schedule, number: int) -> tuple[Index, ...]:
    """Return the leg order that the result wants, for an operation that computes the result or contributes to it."""
    for stage in stages:
        if schedule.results[stage.equation.name] >= number:
            port = next((p for p in network.outputs if p.name == stage.equation.name), None)
            return port.legs if port is not None else stage.equation.legs
    return ()


def _port_axes(port: Port) -> Axes:
    return tuple(tuple(index for index in axis if not is_unit(index)) for axis in port.axes)


@dataclass(frozen=True, slots=True)
class _Loader:
    """The tensors that accesses name."""

    network: Network
    stages: Sequence[Stage]
    context: Context

    def load(self, op: Operation, tensors: Sequence[LaidOut]) -> LaidOut:
        """Return the tensor that an access names, with the access's legs on its axes."""
        assert op.access is not None
        bare = iter(bare_legs(op.access))
        legs = [None if isinstance(leg, Index) and is_unit(leg) else next(bare) for leg in op.access.legs]
        if op.operands:
            stage = next(stage for stage in self.stages if stage.equation.name == op.access.source)
            return _select(_reload(tensors[op.operands[0]], stage.equation.legs, legs), op.loops)
        core = next(core for core in self.network.cores if core.name == op.access.source)
        if is_diagonal(core, op.access):
            (leg,) = set(bare_legs(op.access))
            return _select(LaidOut(Call("ones", (), (), (leg_size(leg),)), ((leg,),)), op.loops[:1])
        port = next((port for port in self.network.inputs if port.name == core.name), None)
        axes = port.axes if port is not None else tuple((leg,) for leg in core.legs)
        renamed = dict(zip(core.legs, legs, strict=True))
        fused = tuple(tuple(r for leg in axis if (r := renamed[leg]) is not None) for axis in axes)
        return _select(LaidOut(self._source(core, axes), fused), op.loops)

    def _source(self, core: Core, axes: Axes) -> Expression:
        """Return a stored core, or a new constant if its shape is known only at each call."""
        if core.role == "const" and not all(self.context.is_fixed(leg.size) for leg in core.legs):
            return _constant(core)
        return Variable("input" if core.role == "input" else "stored", core.name, axes_shape(axes))


def _select(tensor: LaidOut, sliced: Sequence[Index]) -> LaidOut:
    """Return a tensor at the current slice's values of some of its legs."""
    if sliced:
        tensor = LaidOut(arrange(tensor, separate(tensor.legs)), separate(tensor.legs))
    for index in sliced:
        axis = tensor.legs.index(index)
        tensor = compute("select", (tensor.code,), (*tensor.axes[:axis], *tensor.axes[axis + 1 :]), axis, index)
    return tensor


def _reload(stored: LaidOut, own: Sequence[Index], legs: Sequence[Leg | None]) -> LaidOut:
    """Return an earlier result under the legs of an access. A unit leg that is read at positions gets its axis back."""
    read = [leg for leg, stored_leg in zip(legs, own, strict=True) if leg is not None and is_unit(stored_leg)]
    code = arrange(stored, (*stored.axes, *(() for _ in read)))
    renamed = dict(zip(own, legs, strict=True))
    fused = tuple(tuple(r for leg in axis if (r := renamed[leg]) is not None) for axis in stored.axes)  # type: ignore[index]
    return LaidOut(code, (*fused, *((leg,) for leg in read)))


def is_diagonal(core: Core, access: Access) -> bool:
    """Return whether an access reads a delta only along its diagonal: ones, whatever the number of its legs."""
    return (
        core.role == "const"
        and len(set(access.legs)) == 1
        and isinstance(access.legs[0], Index)
        and (core.init is not None and core.init.kind in ("delta", "eye") and not is_unit(access.legs[0]))
    )


def _constant(core: Core) -> Expression:
    """Return a constant tensor as an expression that runs at each call."""
    assert core.init is not None
    shape = tuple(leg.size for leg in core.legs)
    if core.init.kind in ("ones", "eye"):
        return Call(core.init.kind, (), (), shape)
    if core.init.kind == "basis":
        is_it = Call("equals", (Call("arange", (), shape, shape),), (int(core.init.args[0]),), shape)
        return Call("convert", (is_it,), (), shape)
    code = Call("ones", (), (), shape[:1])
    for count in range(2, len(shape) + 1):
        code = Call("diag_embed", (code,), (), shape[:count])
    return code
