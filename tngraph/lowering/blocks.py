"""Prints the blocks of a regime: for each kind a method, and the statements that call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from tngraph.language.legs import leg_size
from tngraph.lowering.gradients import print_planned
from tngraph.lowering.statements import (
    Method,
    PrintedBlock,
    StatementContext,
    describe_line,
    gather_methods,
    print_method,
)
from tngraph.program.expressions import Call
from tngraph.program.operations import Block
from tngraph.program.types import find_types
from tngraph.search.region import Tile


def print_block(context: StatementContext, block: Block) -> PrintedBlock:
    """Return a block of a regime, which is not the branch of a region with several trees."""
    return _PRINTERS[block.kind](context, block, print_inside(context, block))


def print_inside(context: StatementContext, block: Block) -> list[PrintedBlock]:
    """Return the blocks inside a block, without those inside of them again."""
    inner = [other for other in context.program.blocks if _is_inside(other, block)]
    return [print_block(context, other) for other in outermost(inner)]


def outermost(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that are not inside another one of them."""
    return [block for block in blocks if not any(_is_inside(block, other) for other in blocks)]


def _is_inside(block: Block, other: Block) -> bool:
    return block != other and other.first <= block.first and block.last <= other.last


def _print_recompute(context: StatementContext, block: Block, inside: Sequence[PrintedBlock]) -> PrintedBlock:
    """Return a block that PyTorch runs once more in the backward pass instead of keeping its values."""
    name = context.program.operations[block.last].name
    doc = f"{name}, made once more in the backward pass instead of being kept"
    method = print_method(context, block, f"_make_{name.replace('.', '_')}", doc, inside)
    arguments = ", ".join([f"self.{method.name}", *method.arguments, "use_reentrant=False"])
    call = f"{context.value(block)} = checkpoint({arguments}, preserve_rng_state=False)"
    return PrintedBlock(block, (call,), gather_methods(inside, method.text))


def _print_slices(context: StatementContext, block: Block, inside: Sequence[PrintedBlock]) -> PrintedBlock:
    """Return a block that runs slice by slice."""
    doc = f"A slice of {block.equation}: {context.drawing(block)}"
    method = print_method(context, block, f"{context.stem(block)}_slice", doc, inside)
    return PrintedBlock(block, tuple(_call_slices(context, block, method)), gather_methods(inside, method.text))


def _call_slices(context: StatementContext, block: Block, method: Method) -> Iterator[str]:
    """Yield the loop over the slices that this process adds up, and the sum over all processes."""
    op, name, names = context.program.operations[block.last], context.value(block), context.names
    yield f"# {describe_line(context.program, context.lines(block)[-1], names)}"
    shape = context.words.sizes([leg_size(leg) for leg in op.legs])
    yield f"{name} = torch.zeros(({shape}{',' * (len(op.legs) == 1)}), {context.words.options})"
    shown = [names.show(index.size) for index in op.loops]
    counts = [size if size.isidentifier() or size.isdigit() else f"({size})" for size in shown]
    yield f"for {names.slice} in range(self.first_slice, {' * '.join(counts)}, self.slice_step):"
    for k, index in enumerate(op.loops):
        below = "".join(f" // {count}" for count in reversed(counts[k + 1 :]))
        yield f"    {names.loops[index.name]} = {names.slice}{below}" + (f" % {counts[k]}" if k else "")
    target, axis = name, 0
    for leg in op.legs:
        if leg in op.loops:
            target += f".select({axis}, {names.loops[leg.name]})"
        else:
            axis += 1
    yield f"    {target}.add_({method.call(method.arguments)})"
    yield "if self.slice_step > 1:"
    yield f"    torch.distributed.all_reduce({name})"
    if find_types(context.regime.network, context.program.operations)[block.last] == "product":
        device = f"{name}.device.type"
        yield f"if not {name}.is_meta and torch.is_autocast_enabled({device}):  # added up wide"
        yield f"    {name} = {name}.to(torch.get_autocast_dtype({device}))"


def _print_tiles(context: StatementContext, block: Block, inside: Sequence[PrintedBlock]) -> PrintedBlock:
    """Return a block that runs tile by tile, or once for the whole where PyTorch traces."""
    tile = _tile(context, block)
    doc = f"{block.equation} for up to {tile.size} of {tile.index.name}: {context.drawing(block)}"
    method = print_method(context, block, f"{context.stem(block)}_part", doc, inside)
    loop = _print_loop(context, block, method)
    size, value = context.names.show(tile.part.size), context.value(block)
    whole = [context.names.show(tile.index.size) if argument == size else argument for argument in method.arguments]
    call = (
        f"# {describe_line(context.program, context.lines(block)[-1], context.names)}",
        f"if not torch.compiler.is_compiling(){f' and {size} > {tile.size}' * tile.is_runtime}:",
        f"    {value} = {loop.call(loop.arguments)}",
        "else:",
        f"    {value} = {method.call(whole)}",
    )
    return PrintedBlock(block, call, gather_methods(inside, method.text, loop.text))


def _print_loop(context: StatementContext, block: Block, method: Method) -> Method:
    """Return the method that runs the method of a tile for every tile.

    The loop has a method of its own, so that no ``del`` of the caller names what the comprehension reads.
    """
    tile, names = _tile(context, block), context.names
    size = names.show(tile.part.size)
    axes = {
        (names.arguments if variable.kind == "input" else names.values)[variable.name]: axis
        for variable, axis in context.program.cut_axes(block.last).items()
    }
    cuts = [f"{tensor}.split({tile.size}{f', {axis}' if axis else ''})" for tensor, axis in axes.items()]
    first, first_axis = next(iter(axes.items()))
    passed = [f"{first}.shape[{first_axis}]" if argument == size else argument for argument in method.arguments]
    over = cuts[0] if len(cuts) == 1 else f"zip({', '.join(cuts)})"
    tiles = f"{method.call(passed)} for {', '.join(axes)} in {over}"
    code = context.lines(block)[-1].code
    joined_axis = code.arguments[0] if isinstance(code, Call) else 0
    name = names.members.add(f"{method.name}s")
    arguments = tuple(argument for argument in method.arguments if argument != size)
    doc = f'"""All of {context.value(block)}, {tile.size} of {tile.index.name} at a time."""'
    body = f"    {doc}\n    return torch.cat([{tiles}]{f', {joined_axis}' if joined_axis else ''})"
    return Method(name, arguments, f"def {name}({', '.join(['self', *arguments])}):\n{body}")


def _tile(context: StatementContext, block: Block) -> Tile:
    tile = context.program.operations[block.last].tile
    assert tile is not None
    return tile


_PRINTERS: Mapping[str, Callable[[StatementContext, Block, Sequence[PrintedBlock]], PrintedBlock]] = {
    "recompute": _print_recompute,
    "slices": _print_slices,
    "tiles": _print_tiles,
    "planned": print_planned,
}
