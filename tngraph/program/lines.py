"""The kernels of a module: every operation of a schedule as one PyTorch expression.

A contraction becomes one (batched) matrix product and a convolution one ``F.conv*``. So PyTorch's FLOP counter sees the
MACs of the plan, forward and backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tngraph.language.legs import bare_legs, is_unit, leg_indices, leg_size, legs_size
from tngraph.language.network import Access, Core, Function, Index, Leg, Network, Port, Read
from tngraph.language.varying import call_sizes
from tngraph.program.backward import Backward, differentiate
from tngraph.program.counts import aliases, blocks_around, last_uses
from tngraph.program.diagonals import gather_diagonals
from tngraph.program.expressions import Call, Expression, Variable, calls_in, permute, variables
from tngraph.program.layout import Axes, Context, Tensor, arrange, axes_shape, lay, separate
from tngraph.program.operations import Block, Operation, Product, Schedule, Stage
from tngraph.program.pytorch import POINTWISE
from tngraph.program.types import arrange_then_convert, find_types, take_type_of_product
from tngraph.program.windows import (
    add_up,
    can_convolve,
    convolve,
    convolve_transposed,
    lay_taps,
    mix_channels,
    resolved_reads,
    unfold,
)
from tngraph.search.matmul import gives_rows, is_copied, operand_axes
from tngraph.search.region import ContractionTree, MatmulLayout, Tile


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
        reads = (line for line in self.lines if self.operations[line.number].kind == "read")
        return frozenset(line.number for line in reads if any(call.torch.is_gather for call in calls_in(line.code)))

    def given(self, block: Block) -> frozenset[str]:
        """Return the names of the values from before a block that its lines use."""
        return frozenset(variable.name for variable in self.tensors(block) if variable.kind == "value")

    def tensors(self, block: Block) -> tuple[Variable, ...]:
        """Return the variables that the lines of a block use and do not compute, in order."""
        inside = [line for line in self.lines if block.first <= line.number <= block.last]
        computed = {self.operations[line.number].name for line in inside}
        used = dict.fromkeys(variable for line in inside for variable in variables(line.code))
        return tuple(v for v in used if v.kind != "value" or v.name not in computed)

    def parts(self, last: int) -> dict[Variable, int]:
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
    operations = schedule.operations
    tiles = _find_tiles(schedule)
    parts = {str(tile.part.size): tile.size for tile in tiles.values()}
    context = Context({**numbers, **parts}, call_sizes(network) | parts.keys(), find_positions(stages))
    outputs = [schedule.results[port.name] for port in network.outputs]
    drops, overwriting = find_drops(schedule, outputs), _find_overwriting(schedule, outputs)
    loader, types = _Loader(network, stages, context), find_types(network, operations, folded)
    tensors: list[Tensor] = []
    lines: list[Line] = []
    for number, op in enumerate(operations):
        if op.kind == "load":
            tensors.append(loader.load(op, tensors))
            continue
        operands = [tensors[k] for k in op.operands]
        if number in tiles:
            op, operands = _in_part(op, tiles[number]), [_cut(operand, tiles[number]) for operand in operands]
        if op.kind in ("mul", "add"):
            operands = take_type_of_product(operands, [types[k] for k in op.operands])
        result = _write(op, operands, _wanted(network, stages, schedule, number), context)
        if number in overwriting and _is_new(lines, op.operands[0]):
            result = _overwrite(result)
        lines.append(Line(number, result.code, result.axes, drops[number]))
        tensors.append(Tensor(Variable("value", op.name, axes_shape(result.axes)), result.axes))
    results = (arrange(tensors[k], _port_axes(port)) for k, port in zip(outputs, network.outputs, strict=True))
    program = Program(operations, schedule.blocks, tuple(lines), tuple(results))

    def multiply(product: Product, op: Operation, operands: Sequence[Tensor]) -> Tensor:
        if op.kind == "mul" and not product.matmul.is_matrix:
            return _mul(replace(op, matmul=product.matmul), operands, (), context)
        multiplied = _contract_as(product.matmul, operands, context)
        return _compute("sum", (multiplied.code,), multiplied.axes[1:], 0) if product.added else multiplied

    def undo(block: Block) -> Backward:
        tile, values = tiles.get(block.first), tensors
        if tile is not None:
            products = (product._replace(matmul=product.matmul.renamed(tile.enter)) for product in block.products)
            block, values = replace(block, products=tuple(products)), [_cut(tensor, tile) for tensor in tensors]
        return differentiate(block, operations, values, program.tensors(block), multiply)

    return replace(program, backward={block.first: undo(block) for block in schedule.blocks if block.kind == "planned"})


def _find_tiles(schedule: Schedule) -> dict[int, Tile]:
    """Return the tile that each operation runs in, for tiles of an index whose size is a number."""
    tiles: dict[int, Tile] = {}
    for block in schedule.blocks:
        tile = schedule.operations[block.last].tile
        if block.kind == "tiles" and tile is not None and not tile.is_runtime:
            tiles.update(dict.fromkeys(range(block.first, block.last), tile))
    return tiles


def _in_part(op: Operation, tile: Tile) -> Operation:
    """Return an operation with the legs it has inside a tile."""
    matmul = None if op.matmul is None else op.matmul.renamed(tile.enter)
    return replace(op, legs=tile.enter(op.legs), matmul=matmul, axes=tuple(map(tile.enter, op.axes)))


def _cut(tensor: Tensor, tile: Tile) -> Tensor:
    """Return the part of an earlier value that a tile reads."""
    axes = tuple(map(tile.enter, tensor.axes))
    if axes == tensor.axes or not isinstance(tensor.code, Variable):
        return tensor
    return Tensor(replace(tensor.code, shape=axes_shape(axes)), axes)


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


def find_drops(schedule: Schedule, kept: Iterable[int]) -> list[tuple[int, ...]]:
    """Return for every operation the values that are not needed after it.

    Values in ``kept`` are never dropped.
    """
    operations, alias = schedule.operations, aliases(schedule.operations)
    drops = last_uses(operations, kept, schedule.blocks)
    return [
        tuple(k for k in drops.get(number, ()) if k == alias[k] and operations[k].name != op.name)
        for number, op in enumerate(operations)
    ]


def _find_overwriting(schedule: Schedule, kept: Container[int]) -> frozenset[int]:
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
        if readers[operand] == 1 and operand not in kept and around.get(operand) == around.get(number)
    )


def _overwrite(tensor: Tensor) -> Tensor:
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

    def load(self, op: Operation, tensors: Sequence[Tensor]) -> Tensor:
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
            return _select(Tensor(Call("ones", (), (), (leg_size(leg),)), ((leg,),)), op.loops[:1])
        port = next((port for port in self.network.inputs if port.name == core.name), None)
        axes = port.axes if port is not None else tuple((leg,) for leg in core.legs)
        renamed = dict(zip(core.legs, legs, strict=True))
        fused = tuple(tuple(r for leg in axis if (r := renamed[leg]) is not None) for axis in axes)
        return _select(Tensor(self._source(core, axes), fused), op.loops)

    def _source(self, core: Core, axes: Axes) -> Expression:
        """Return a stored core, or a new constant if its shape is known only at each call."""
        if core.role == "const" and not all(self.context.is_fixed(leg.size) for leg in core.legs):
            return _constant(core)
        return Variable("input" if core.role == "input" else "stored", core.name, axes_shape(axes))


def _select(tensor: Tensor, sliced: Sequence[Index]) -> Tensor:
    """Return a tensor at the current slice's values of some of its legs."""
    if sliced:
        tensor = Tensor(arrange(tensor, separate(tensor.legs)), separate(tensor.legs))
    for index in sliced:
        axis = tensor.legs.index(index)
        tensor = _compute("select", (tensor.code,), (*tensor.axes[:axis], *tensor.axes[axis + 1 :]), axis, index)
    return tensor


def _reload(stored: Tensor, own: Sequence[Index], legs: Sequence[Leg | None]) -> Tensor:
    """Return an earlier result under the legs of an access. A unit leg that is read at positions gets its axis back."""
    read = [leg for leg, stored_leg in zip(legs, own, strict=True) if leg is not None and is_unit(stored_leg)]
    code = arrange(stored, (*stored.axes, *(() for _ in read)))
    renamed = dict(zip(own, legs, strict=True))
    fused = tuple(tuple(r for leg in axis if (r := renamed[leg]) is not None) for axis in stored.axes)  # type: ignore[index]
    return Tensor(code, (*fused, *((leg,) for leg in read)))


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


def _write(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    """Return the expression that computes an operation, with the axes of its result.

    Args:
        op: any operation except a load.
        operands: the values it takes.
        wanted: the leg order that suits its user best.
        context: the sizes planned for.
    """
    return RULES[op.kind](op, operands, wanted, context)


def _compute(function: str, operands: tuple[Expression, ...], axes: Axes, *arguments: object) -> Tensor:
    """Return a call whose result has these axes."""
    return Tensor(Call(function, operands, arguments, axes_shape(axes)), axes)


def _contract(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    if op.matmul is not None:
        return _contract_as(op.matmul, operands, context)
    left, right, shared, rows, columns = _split(operands, wanted, context)
    batch = tuple(leg for leg in shared if leg in op.legs)
    summed = tuple(leg for leg in shared if leg not in op.legs)
    outer: Axes = (batch,) if batch else ()
    a = arrange(left, (*outer, rows, summed))
    b = arrange(right, (*outer, summed, columns))
    return _compute("bmm" if batch else "mm", (a, b), (*outer, rows, columns))


def _contract_as(matmul: MatmulLayout, operands: Sequence[Tensor], context: Context) -> Tensor:
    """Return a contraction in the matmul layout of a form."""
    orders = [tensor.legs for tensor in operands]
    axes = [operand_axes(matmul, orders, side) for side in (0, 1)]
    left, right = (0, 1) if gives_rows(matmul, orders, 0) else (1, 0)
    a = _matrices(operands[left], matmul, axes[left], matmul.transposed[0])
    b = _matrices(operands[right], matmul, axes[right], matmul.transposed[1])
    outer: Axes = (matmul.outer,) if matmul.outer else ()
    return _compute("bmm" if outer else "mm", (a, b), (*outer, matmul.rows, matmul.columns))


def _matrices(tensor: Tensor, matmul: MatmulLayout, axes: Axes, is_transposed: bool) -> Expression:
    """Return an operand as matrices, repeated for all products if it lacks the outer legs."""
    code = lay(tensor, axes) if is_copied(tensor.legs, axes) else arrange(tensor, axes)
    if is_transposed:
        code = permute(code, (0, 2, 1) if len(axes) == 3 else (1, 0))
    if matmul.outer and len(axes) == 2:
        code = Call("expand", (code,), (), (legs_size(matmul.outer), *code.shape))
    return code


class _Split(NamedTuple):
    """Two operands in the order they multiply, with their legs by role.

    The shared legs are in the larger operand's order.
    """

    left: Tensor
    right: Tensor
    shared: tuple[Leg, ...]
    rows: tuple[Leg, ...]
    columns: tuple[Leg, ...]


def _split(operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> _Split:
    """Return both operands in the order they multiply, with their legs by role."""
    left, right = _orient(operands, wanted, context)
    big, small = sorted(operands, key=lambda t: -context.size(t.legs))
    shared = tuple(leg for leg in big.legs if leg in small.legs)
    rows, columns = (tuple(leg for leg in t.legs if leg not in shared) for t in (left, right))
    return _Split(left, right, shared, rows, columns)


def _orient(operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> tuple[Tensor, Tensor]:
    """Return the two operands in the order of their own legs in the result.

    The one with the first wanted leg comes first, or else the larger one.
    """
    first, second = operands
    own = [{leg for leg in a.legs if leg not in b.legs} for a, b in ((first, second), (second, first))]
    for leg in wanted:
        if leg in own[0] or leg in own[1]:
            return (first, second) if leg in own[0] else (second, first)
    return (first, second) if context.size(first.legs) >= context.size(second.legs) else (second, first)


def _mul(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    if op.matmul is not None:
        first, second = operands
        axes = _runs(op.matmul.legs, lambda leg: (leg in first.legs, leg in second.legs))
        return _compute("mul", (_broadcast(first, axes), _broadcast(second, axes)), axes)
    left, right, shared, rows, columns = _split(operands, wanted, context)
    axes = tuple(axis for axis in (shared, rows, columns) if axis)
    return _compute("mul", (_broadcast(left, axes), _broadcast(right, axes)), axes)


def _broadcast(tensor: Tensor, axes: Axes) -> Expression:
    """Return a tensor with these axes, of size 1 where it lacks their legs.

    Missing leading axes are left to PyTorch's broadcasting.
    """
    own: list[tuple[Leg, ...]] = []
    for axis in axes:
        if own or all(leg in tensor.legs for leg in axis):
            own.append(axis if all(leg in tensor.legs for leg in axis) else ())
    return arrange_then_convert(tensor, tuple(own))


def _sum(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    (tensor,) = operands
    axes = _runs(tensor.legs, lambda leg: leg in op.legs)
    gone = [k for k, axis in enumerate(axes) if axis[0] not in op.legs]
    remaining = tuple(axis for axis in axes if axis[0] in op.legs)
    return _compute("sum", (arrange(tensor, axes),), remaining, *gone)


def _runs(legs: Sequence[Leg], key: Callable[[Leg], object]) -> Axes:
    """Return legs as axes, with neighbours fused if they agree on a key."""
    runs: list[tuple[Leg, ...]] = []
    for leg in legs:
        if runs and key(leg) == key(runs[-1][0]):
            runs[-1] += (leg,)
        else:
            runs.append((leg,))
    return tuple(runs)


def _read(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    tensor = _diagonals(operands[0])
    reads = [leg for leg in tensor.legs if leg not in op.legs and isinstance(leg, Read)]
    tensor = gather_diagonals(tensor, reads, context)
    return unfold(tensor, [read for read in reads if read in tensor.legs], context)


def _diagonals(tensor: Tensor) -> Tensor:
    """Return a tensor with only one axis for each index that it has twice."""
    legs = list(tensor.legs)
    tensor = Tensor(arrange(tensor, separate(legs)), separate(legs))
    for leg in dict.fromkeys(legs):
        while legs.count(leg) > 1:
            first = legs.index(leg)
            second = legs.index(leg, first + 1)
            legs = [other for k, other in enumerate(legs) if k not in (first, second)] + [leg]
            tensor = _compute("diagonal", (tensor.code,), separate(legs), first, second)
    return tensor


def _conv(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    first, second = operands
    ours, theirs = resolved_reads(first, second, op.legs), resolved_reads(second, first, op.legs)
    if ours and theirs:
        return _conv(op, [first, lay_taps(second, theirs, context)], wanted, context)
    signal, kernel, resolved = (first, second, ours) if ours else (second, first, theirs)
    if can_convolve(signal, kernel, resolved, op.legs, context):
        return convolve(signal, kernel, resolved, op.legs, context)
    return _contract(op, [lay_taps(signal, resolved, context), kernel], wanted, context)


def _conv_transpose(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    first, second = operands
    ours = resolved_reads(first, second, op.legs)
    signal, kernel = (second, first) if ours else (first, second)
    resolved = ours or resolved_reads(second, first, op.legs)
    if can_convolve(signal, kernel, resolved, op.legs, context):
        return convolve_transposed(signal, kernel, resolved, op.legs, context)
    return add_up(_contract(op, operands, wanted, context), resolved, context)


def _mix(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    """Return a contraction; a product over channels has a rule of its own."""
    return mix_channels(operands, op.legs, context) or _contract(op, operands, wanted, context)


def _scale(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    (tensor,) = operands
    return _compute("scale", (tensor.code,), tensor.axes, op.number)


def _embed(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    (tensor,) = operands
    for inner in dict.fromkeys(op.pattern):
        outer = [leg for leg, own in zip(op.legs, op.pattern, strict=True) if own == inner]
        others = tuple(leg for leg in tensor.legs if leg != inner)
        axes = separate((*others, inner))
        if len(outer) > 1:
            tensor = Tensor(arrange(tensor, axes), axes)
            for count in range(2, len(outer) + 1):
                tensor = _compute("diag_embed", (tensor.code,), separate((*others, *outer[:count])))
    return tensor


def _view(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    axes = separate(op.legs)
    return Tensor(arrange(operands[0], axes), axes)


def _arrange(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    return Tensor(lay(operands[0], op.axes), op.axes)


def _join(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    """Return the whole value, joined from tiles like the operand."""
    assert op.tile is not None
    axes = _runs(op.legs, lambda leg: leg == op.tile.index)  # type: ignore[union-attr]
    place, part = axes.index((op.tile.index,)), tuple(map(op.tile.enter, axes))
    return Tensor(Call("join", (arrange(operands[0], part),), (place, op.tile.size), axes_shape(axes)), axes)


def _accumulate(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    """Return the whole value, to which each slice is added in its place."""
    own = [leg for leg in op.legs if leg not in op.loops]
    code = arrange(operands[0], separate(own))
    return Tensor(Call("accumulate", (code,), op.loops, axes_shape(separate(op.legs))), separate(op.legs))


def _add(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    first, second = operands
    order = next((t.legs for t in operands if set(t.legs) == set(op.legs)), op.legs)
    axes = _runs(order, lambda leg: (leg in first.legs, leg in second.legs))
    both = (_broadcast(first, axes), _broadcast(second, axes))
    return _compute("sub" if op.number < 0 else "add", both, axes)


def _pointwise(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    (tensor,) = operands
    assert isinstance(op.function, Function)
    return _compute("pointwise", (tensor.code,), tensor.axes, op.function.name, *op.function.args)


Rule = Callable[[Operation, Sequence[Tensor], Sequence[Leg], Context], Tensor]

RULES: Mapping[str, Rule] = {
    "contract": _mix,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "mul": _mul,
    "sum": _sum,
    "read": _read,
    "scale": _scale,
    "embed": _embed,
    "add": _add,
    "pointwise": _pointwise,
    "view": _view,
    "accumulate": _accumulate,
    "arrange": _arrange,
    "join": _join,
}
