"""Prints a plan as a standalone Python file that a person can read: one class, importing torch (and math).

Each operation is one line, with its legs and cost in a comment, and values are dropped after their last use.
Compile-time sizes are constructor arguments. Run-time sizes are read from shapes and checked. Every name from the
network is escaped, so text from a file never becomes anything but a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import indent

import sympy

from tngraph.compiler.pipeline import plan as plan_network
from tngraph.language.network import Network, Port
from tngraph.lowering.binding import bind_sizes, show_shape
from tngraph.lowering.construction import print_constructor, print_extra_repr, print_reset
from tngraph.lowering.methods import print_body, print_refold
from tngraph.lowering.names import Names, assign_names
from tngraph.plans.counts import Count, Counted
from tngraph.plans.plan import Plan
from tngraph.plans.table import describe_regimes, format_formula

PLANNED = '''class PlannedBackward(torch.autograd.Function):
    """The first thing that ``forward`` makes of some tensors, with gradients by ``backward``."""

    @staticmethod
    def forward(ctx, forward, backward, sizes, *tensors):
        result, *kept = forward(*tensors, *sizes)
        ctx.methods, ctx.sizes, ctx.count = (forward, backward), sizes, len(tensors)
        ctx.save_for_backward(*tensors, *kept)
        return result

    @staticmethod
    def backward(ctx, grad):
        tensors, kept = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        forward, backward = ctx.methods
        if torch.is_grad_enabled():
            kept = forward(*tensors, *ctx.sizes)[1:]  # gradients of gradients flow through it
        return None, None, None, *backward(ctx.needs_input_grad[3:], grad, *tensors, *kept, *ctx.sizes)


def contract(forward, backward, sizes, *tensors):
    """The same; with PyTorch's own gradients where it traces or transforms, in mixed precision, of complex numbers."""
    if (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or tensors[0].is_meta
        or torch.is_autocast_enabled(tensors[0].device.type)
        or torch._C._are_functorch_transforms_active()
        or any(map(torch.is_complex, tensors))
    ):
        return forward(*tensors, *sizes)[0]
    return PlannedBackward.apply(forward, backward, sizes, *tensors)
'''
"""Printed code that calls two methods as one function, with the second as the backward pass of the first."""


@dataclass(frozen=True, slots=True)
class PrintedSource:
    """A printed module and the Python names in it.

    Attributes:
        text: the text of the file.
        class_name: the class it defines.
        attributes: the attribute of every param, buffer and const.
        size_arguments: the constructor's argument for each compile-time size.
        size_attributes: the attribute that holds each compile-time size.
        buffers: the names of the folded buffers.
    """

    text: str
    class_name: str
    attributes: Mapping[str, str]
    size_arguments: Mapping[str, str]
    size_attributes: Mapping[str, str]
    buffers: tuple[str, ...] = ()


def emit(plan: Plan | Network) -> str:
    """Print a plan as a standalone Python file that imports torch and nothing of tngraph.

    The file holds one ``torch.nn.Module`` named after the network, with the network's param names and shapes. Its
    constructor takes the compile-time sizes (the plan's values by default), `device` and `dtype`.

    Args:
        plan: the plan to print; a network is planned first.
    """
    return print_source(plan if isinstance(plan, Plan) else plan_network(plan)).text


def print_source(plan: Plan) -> PrintedSource:
    """Return the printed module of a plan together with its names."""
    programs = [regime.program for regime in plan.regimes]
    tiles = [tree.tile for regime in plan.regimes for tree in regime.trees if tree.tile is not None]
    names = assign_names(plan.network, programs, plan.folding, tiles)
    body = _class(plan, names)
    parts = [_header(plan, names, body), *([PLANNED] if "contract(" in body else []), body]
    text = "\n\n".join(parts)
    buffers = tuple(names.buffers.values())
    return PrintedSource(text, names.class_name, names.attributes, names.size_arguments, names.size_attributes, buffers)


def _header(plan: Plan, names: Names, body: str) -> str:
    lines = [f'"""{plan.network.name}: a tensor network as a PyTorch module, printed by tngraph.', ""]
    lines.append(f"{Counted.params.label}: {format_formula(plan.params)} [{Counted.params.unit}]")
    for count in (Counted.flops, Counted.elementwise):
        for where, formula in _by_regime(plan, count):
            shown = format_formula(formula.xreplace(names.windows))
            lines.append(f"{count.label}{where and f' ({where})'}: {shown} [{count.unit}]")
    if names.buffers:
        lines.append(f"folded: {format_formula(plan.folding.elements.xreplace(names.windows))} [elements]")
    lines.append('"""\n')
    if "math." in body:
        lines.append("import math\n")
    lines.append("import torch")
    if "torch.distributed" in body:
        lines.append("import torch.distributed")
    if "F." in body:
        lines.append("import torch.nn.functional as F")
    lines.append("from torch import nn")
    if "checkpoint(" in body:
        lines.append("from torch.utils.checkpoint import checkpoint")
    return "\n".join(lines) + "\n"


def _by_regime(plan: Plan, count: Count) -> list[tuple[str, sympy.Expr]]:
    """Return a count for every regime with where that runs, or only once if it is the same in all."""
    formulas = [getattr(regime, count.name) for regime in plan.regimes]
    return [("", formulas[0])] if len({*formulas}) == 1 else [*zip(describe_regimes(plan), formulas, strict=True)]


def _class(plan: Plan, names: Names) -> str:
    inputs = ", ".join(map(_signature, plan.network.inputs)) or "no input"
    outputs = ", ".join(map(_signature, plan.network.outputs))
    doc = f'"""{plan.network.name}: {inputs} -> {outputs}."""'
    body = print_body(plan, names)
    methods = [
        print_constructor(plan, names),
        print_reset(plan, names),
        _forward(plan, names, body.lines),
        *body.methods,
        *print_refold(plan, names),
        print_extra_repr(plan, names),
    ]
    text = "\n\n".join([doc, *methods])
    return f"class {names.class_name}(nn.Module):\n{indent(text, '    ')}\n"


def _signature(port: Port) -> str:
    axes = [axis[0].name if len(axis) == 1 else f"({' '.join(i.name for i in axis)})" for axis in port.axes]
    return f"{port.name}[{', '.join(axes)}]"


def _forward(plan: Plan, names: Names, body: Iterable[str]) -> str:
    arguments = ", ".join(["self", *names.arguments.values()])
    code = [*bind_sizes(plan.network, names), *body]
    lines = [*_forward_doc(plan, names), *names.local_lines(code), *code]
    return "\n".join([f"def forward({arguments}):", indent("\n".join(lines), "    ")])


def _forward_doc(plan: Plan, names: Names) -> Iterator[str]:
    yield '"""Contract the network.'
    if plan.network.inputs:
        yield ""
        yield "Args:"
    for port in plan.network.inputs:
        yield f"    {port.name}: {show_shape(port, names)}."
    yield ""
    yield "Returns:"
    for port in plan.network.outputs:
        yield f"    {port.name}: {show_shape(port, names)}."
    yield '"""'
