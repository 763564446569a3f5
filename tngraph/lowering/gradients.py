"""Prints a block whose backward pass is planned: a static method for each direction, and the call that joins them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from textwrap import indent

import sympy

from tngraph.lowering.calls import Words, print_expression, wrap
from tngraph.lowering.names import names_in
from tngraph.lowering.statements import PrintedBlock, StatementContext, gather_methods, print_lines, show_cost
from tngraph.plans.table import format_formula, format_value
from tngraph.program.backward import Backward, GradientLine
from tngraph.program.expressions import Variable
from tngraph.program.lines import Program
from tngraph.program.operations import Block


def print_planned(context: StatementContext, block: Block, inside: Sequence[PrintedBlock]) -> PrintedBlock:
    """Return a block whose backward pass is planned.

    Both methods are static: they take tensors and sizes as arguments, since autograd calls them without the module.
    """
    backward, names = context.program.backward[block.first], context.names
    words = replace(context.words, is_static=True)
    if backward.inputs:  # a static method has no other tensor than its arguments
        words = replace(words, anchor=print_expression(backward.inputs[0], words))
    forward = [*_forward_lines(context, block, backward, words)]
    gradients = [*_backward_lines(context.program, backward, words)]
    used = names_in([*forward, *gradients])
    available = [*names.sizes.values(), *(window.name for window in names.windows.values())]
    sizes = [name for name in dict.fromkeys(available) if name in used]
    tensors, kept = _print_all(backward.inputs, words), _print_all(backward.saved, words)
    start = print_expression(backward.start, words)
    first, second = (names.members.add(f"{context.stem(block)}_{way}") for way in ("forward", "backward"))
    doc = f'"""{block.equation}, and what its gradients are made of: {context.drawing(block)}."""'
    text = _print_static(first, [*tensors, *sizes], [doc, *forward])
    doc = f'"""The gradients of what ``{first}`` is given, where they are needed."""'
    text += "\n\n" + _print_static(second, ["needs", start, *tensors, *kept, *sizes], [doc, *gradients])
    op = context.program.operations[block.last]
    shown = f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
    arguments = [f"self.{first}", f"self.{second}", shown, *_print_all(backward.inputs, context.words)]
    call = (
        f"# {format_value(op.name, op.legs)}, with a backward pass of its own",
        f"{context.value(block)} = {wrap('contract', arguments)}",
    )
    return PrintedBlock(block, call, gather_methods(inside, text))


def _print_all(variables: Sequence[Variable], words: Words) -> list[str]:
    return [print_expression(variable, words) for variable in variables]


def _forward_lines(context: StatementContext, block: Block, backward: Backward, words: Words) -> Iterator[str]:
    """Yield the lines of a block, and the return of its result and of the values that its backward pass reads."""
    lines = context.lines(block)
    yield from print_lines(context.program, lines[:-1], words)
    kept = _print_all(backward.saved, words)
    yield f"return {', '.join([print_expression(lines[-1].code, words), *kept])}{',' * (not kept)}"


def _backward_lines(program: Program, backward: Backward, words: Words) -> Iterator[str]:
    """Yield the lines of a backward pass, each under a test of whether its gradient is needed."""
    names = [print_expression(variable, words) if variable else "None" for variable in backward.results]
    gradients = dict.fromkeys(name for name in names if name != "None")
    yield f"{' = '.join(gradients)} = None"
    everything = frozenset().union(*(line.needs for line in backward.lines))
    before: frozenset[int] = everything
    for line in backward.lines:
        if line.needs not in (everything, before):
            yield f"if {' or '.join(f'needs[{place}]' for place in sorted(line.needs))}:"
        before = line.needs
        text = _print_gradient(program, line, words)
        yield from (text if line.needs == everything else indent(text, "    ")).split("\n")
    yield f"return {', '.join(names)}{',' * (len(names) == 1)}"


def _print_gradient(program: Program, line: GradientLine, words: Words) -> str:
    """Return a gradient line as a statement with a comment above it."""
    cost = show_cost(program, line.number, words.names) if line.is_product else sympy.S.Zero
    price = f": {format_formula(cost)} MAC" if cost != 0 else ""
    name, source = print_expression(line.variable, words), print_expression(line.of, words)
    comment = f"{name} = {source}, in another order"
    if line.by:
        comment = f"{format_value(name, line.result.legs)} = {source} * {line.by}{price}"
    return f"# {comment}\n{name} = {print_expression(line.result.code, words)}"


def _print_static(name: str, arguments: Sequence[str], lines: Sequence[str]) -> str:
    """Return the code of a static method."""
    body = indent("\n".join(lines), "    ")
    return f"@staticmethod\ndef {name}({', '.join(arguments)}):\n{body}"
