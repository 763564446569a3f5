"""Prints lines as statements, and some lines as a method.

A statement has a comment above it with the legs of its value in memory order and its cost. Values are dropped below the
last statement that uses them. The lines of a block stand in a method of their own, and a call stands in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import indent, shorten
from typing import NamedTuple

import sympy

from tngraph.language.sizes import symbol
from tngraph.lowering.calls import Words, print_expression
from tngraph.lowering.names import Names, names_in
from tngraph.plans.regime import Regime
from tngraph.plans.table import draw_tree, format_formula, format_step, format_value
from tngraph.program.counts import volume, work_unit
from tngraph.program.lines import Line, Program
from tngraph.program.operations import Block

LONGEST_DOC = 90
"""A tree longer than this is cut in a method's docstring [characters]."""


@dataclass(frozen=True, slots=True)
class StatementContext:
    """The regime whose blocks are printed, and how.

    Attributes:
        regime: the regime.
        words: the names and options of expressions.
        suffix: the end of the names of methods, where several regimes have methods for one region.
    """

    regime: Regime
    words: Words
    suffix: str = ""

    @property
    def program(self) -> Program:
        """The lines of the regime."""
        return self.regime.program

    @property
    def names(self) -> Names:
        """The Python names of the module."""
        return self.words.names

    def lines(self, block: Block) -> list[Line]:
        """Return the lines of a block."""
        return [line for line in self.program.lines if block.first <= line.number <= block.last]

    def value(self, block: Block) -> str:
        """Return the variable of a block's value."""
        return self.names.values[self.program.operations[block.last].name]

    def stem(self, block: Block) -> str:
        """Return the name of a region's method, before anything is added to it."""
        term = f"_term_{block.term + 1}" if block.term else ""
        return f"_{block.equation.replace('.', '_')}{term}{self.suffix}"

    def drawing(self, block: Block) -> str:
        """Return the tree of a region as text for a docstring."""
        stage = next(stage for stage in self.regime.stages if stage.equation.name == block.equation)
        return shorten(draw_tree(stage.trees[block.term]), LONGEST_DOC, placeholder=" …")


@dataclass(frozen=True, slots=True)
class PrintedBlock:
    """A block as source.

    Attributes:
        block: the block.
        call: the statements that compute its value where the block was.
        methods: the methods that they call, each after those that it calls itself.
    """

    block: Block
    call: tuple[str, ...]
    methods: tuple[str, ...]


def gather_methods(inside: Iterable[PrintedBlock], *texts: str) -> tuple[str, ...]:
    """Return the methods of the blocks inside a block, and then its own."""
    return (*(text for printed in inside for text in printed.methods), *texts)


class Method(NamedTuple):
    """A printed method: its name, its arguments without ``self``, and its text."""

    name: str
    arguments: tuple[str, ...]
    text: str

    def call(self, arguments: Sequence[str]) -> str:
        """Return a call of the method."""
        return f"self.{self.name}({', '.join(arguments)})"


def print_lines(
    program: Program, lines: Iterable[Line], words: Words, inside: Sequence[PrintedBlock] = ()
) -> Iterator[str]:
    """Yield lines as statements, with the calls of blocks in place of their lines."""
    for line in lines:
        printed = next((p for p in inside if p.block.first <= line.number <= p.block.last), None)
        if printed is None:
            yield from _print_line(program, line, words)
        elif line.number == printed.block.last:
            yield from printed.call
            yield from _print_drop(program, [k for k in line.dropped if k < printed.block.first], words.names)


def _print_line(program: Program, line: Line, words: Words) -> Iterator[str]:
    yield f"# {describe_line(program, line, words.names)}"
    yield f"{words.names.values[program.operations[line.number].name]} = {print_expression(line.code, words)}"
    yield from _print_drop(program, line.dropped, words.names)


def _print_drop(program: Program, numbers: Sequence[int], names: Names) -> Iterator[str]:
    if numbers:
        yield f"del {', '.join(names.values[program.operations[k].name] for k in numbers)}"


def describe_line(program: Program, line: Line, names: Names) -> str:
    """Return the comment of a line: its value with the legs in memory order, what is computed, and the cost."""
    op = program.operations[line.number]
    cost = show_cost(program, line.number, names)
    price = f": {format_formula(cost)} {work_unit(op)}" if cost != 0 else ""
    return f"{format_value(op.name, line.legs)} = {format_step(program.operations, line.number)}{price}"


def show_cost(program: Program, number: int, names: Names) -> sympy.Expr:
    """Return the cost of a line in the sizes that have a name there: inside a tile, the tile's."""
    cost = volume(program.operations, number).xreplace(names.windows)
    block = next((b for b in program.blocks if b.kind == "tiles" and b.first <= number < b.last), None)
    tile = program.operations[block.last].tile if block is not None else None
    if tile is None or tile.is_runtime:
        return cost
    return cost / tile.index.size * symbol(names.sizes[str(tile.part.size)])


def print_method(
    context: StatementContext, block: Block, stem: str, doc: str, inside: Sequence[PrintedBlock]
) -> Method:
    """Return the lines of a block as a method that returns the value of the last one.

    Args:
        context: the regime.
        block: the block.
        stem: the name to give to the method, or to extend if it is taken.
        doc: its docstring, without the full stop.
        inside: the blocks inside the block.
    """
    program, lines = context.program, context.lines(block)
    if any(printed.block.last == block.last for printed in inside):
        code = [*print_lines(program, lines, context.words, inside), f"return {context.value(block)}"]
    else:
        code = [*print_lines(program, lines[:-1], context.words, inside)]
        if block.kind == "recompute":  # the call of another block has this comment
            code.append(f"# {describe_line(program, lines[-1], context.names)}")
        code.append(f"return {print_expression(lines[-1].code, context.words)}")
    name, arguments = context.names.members.add(stem), tuple(_arguments(code, context, block))
    body = "\n".join([f'"""{doc}."""', *context.names.local_lines(code), *code])
    return Method(name, arguments, f"def {name}({', '.join(['self', *arguments])}):\n{indent(body, '    ')}")


def _arguments(code: Iterable[str], context: StatementContext, block: Block) -> Iterator[str]:
    """Yield the names that a method's code takes from ``forward``: inputs, earlier results, sizes of the call."""
    used, names, operations = names_in(code), context.names, context.program.operations
    earlier = (names.values[op.name] for op in operations[: block.first] if op.kind != "load")
    sizes = (variable for name, variable in names.sizes.items() if name not in names.size_attributes)
    windows = (variable.name for variable in names.windows.values())
    loops = (names.loops[index.name] for index in operations[block.last].loops)
    available = dict.fromkeys((*names.arguments.values(), *earlier, *loops, *sizes, *windows))
    return (name for name in available if name in used)
