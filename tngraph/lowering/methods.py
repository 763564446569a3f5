"""Prints what a module computes: the lines of ``forward`` with the methods beside it, and ``refold``."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import indent
from typing import NamedTuple

from tngraph.language.sizes import product
from tngraph.lowering.blocks import outermost, print_block
from tngraph.lowering.calls import Words, print_expression
from tngraph.lowering.choices import print_choice, print_order
from tngraph.lowering.names import Names, names_in
from tngraph.lowering.statements import StatementContext, print_lines
from tngraph.plans.plan import Plan
from tngraph.plans.table import format_formula
from tngraph.program.expressions import Expression, Variable, variables


class Body(NamedTuple):
    """The computing lines of ``forward``, the last of which returns, and the methods beside it."""

    lines: tuple[str, ...]
    methods: tuple[str, ...]


def print_body(plan: Plan, names: Names) -> Body:
    """Return the computing lines of ``forward`` and the methods beside it.

    There is a method per tree of a region that has several trees, and per other block of lines. Outside of the regions
    that have several trees, the regimes have the same lines.
    """
    # New tensors take device and dtype of an input if there is one, since that is what a result is to be like.
    words = Words(names, next(iter(names.arguments.values()), _stored_anchor(plan, names)))
    program = plan.regimes[0].program
    blocks = outermost(program.blocks)
    printed = [print_choice(plan, words, block) for block in blocks if block.kind == "branch"]
    printed += [
        print_block(StatementContext(plan.regimes[0], words), block) for block in blocks if block.kind != "branch"
    ]
    lines = (
        *print_order(plan, names),
        *print_lines(program, program.lines, words, printed),
        f"return {', '.join(print_expression(result, words) for result in program.results)}",
    )
    return Body(lines, tuple(text for block in printed for text in block.methods))


def _stored_anchor(plan: Plan, names: Names) -> str:
    """Return the tensor whose device and dtype new tensors take, chosen among the stored ones."""
    stored = [core for core in plan.network.cores if core.role in ("param", "buffer")]
    return names.stored(stored[0].name) if stored else f"self.{names.anchor}"


def print_refold(plan: Plan, names: Names) -> Iterator[str]:
    """Yield the method that computes the folded values, if there are any."""
    program, buffers = plan.folding.program, plan.folding.buffers
    if not buffers:
        return
    words = Words(names, _stored_anchor(plan, names))
    code = [*print_lines(program, program.lines, words)]
    for buffer, value in zip(buffers, program.results, strict=True):
        code.extend(_store(buffer, value, words))
    used = names_in(code)
    windows = [f"{local} = {names.show_size(size)}" for size, local in names.windows.items() if local.name in used]
    doc = '"""Make what depends on weights alone: again when they change, as ``load_state_dict`` does by itself."""'
    body = "\n".join([doc, *names.local_lines([*windows, *code]), *windows, *code])
    wide = '@torch.autocast("cuda", enabled=False)\n@torch.autocast("cpu", enabled=False)'
    yield f"@torch.no_grad()\n{wide}\ndef refold(self, *_):\n{indent(body, '    ')}"


def _store(buffer: Variable, value: Expression, words: Words) -> Iterator[str]:
    """Yield the lines that store a value as calls read it. They copy it, since it may be a view of a param."""
    sources = ", ".join(dict.fromkeys(variable.name for variable in variables(value)))
    yield f"# {sources}, as calls read it: {format_formula(product(buffer.shape))} elements"
    name = words.names.buffers[buffer.name]
    yield f"{name} = {print_expression(value, words)}"
    copy = f"{name}.clone(memory_format=torch.contiguous_format)"
    yield f'self.register_buffer("{name}", {copy}, persistent=False)'
