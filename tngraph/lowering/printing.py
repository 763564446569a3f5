"""Prints a plan as a standalone Python file that a person can read: one class, importing torch (and math).

Each operation is one line, with its legs and cost in a comment, and values are dropped after their last use.
Compile-time sizes are constructor arguments. Run-time sizes are read from shapes and checked. Every name from the
network is escaped, so text from a file never becomes anything but a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import NamedTuple

import sympy

from tngraph.compiler.pipeline import plan as plan_network
from tngraph.errors import SizeError
from tngraph.language.binding import in_basic_sizes
from tngraph.language.network import Index, Network, Port, Size
from tngraph.language.sizes import product
from tngraph.language.varying import call_sizes
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
class Source:
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


def print_source(plan: Plan) -> Source:
    """Return the printed module of a plan together with its names."""
    programs = [regime.program for regime in plan.regimes]
    tiles = [tree.tile for regime in plan.regimes for tree in regime.trees if tree.tile is not None]
    names = assign_names(plan.network, programs, plan.folding, tiles)
    body = _class(plan, names)
    parts = [_header(plan, names, body), *([PLANNED] if "contract(" in body else []), body]
    text = "\n\n".join(parts)
    buffers = tuple(names.buffers.values())
    return Source(text, names.class_name, names.attributes, names.size_arguments, names.size_attributes, buffers)


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
    code = [*_bind(plan, names), *body]
    lines = [*_forward_doc(plan, names), *names.local_lines(code), *code]
    return "\n".join([f"def forward({arguments}):", indent("\n".join(lines), "    ")])


def _forward_doc(plan: Plan, names: Names) -> Iterator[str]:
    yield '"""Contract the network.'
    if plan.network.inputs:
        yield ""
        yield "Args:"
    for port in plan.network.inputs:
        yield f"    {port.name}: {_shape(port, names)}."
    yield ""
    yield "Returns:"
    for port in plan.network.outputs:
        yield f"    {port.name}: {_shape(port, names)}."
    yield '"""'


def _shape(port: Port, names: Names) -> str:
    return f"({', '.join(names.show_size(product(i.size for i in axis)) for axis in port.axes)})"


def _bind(plan: Plan, names: Names) -> Iterator[str]:
    """Yield the lines that read run-time sizes off shapes, refuse misfits, and name counts of windows."""
    for port in plan.network.inputs:
        argument = names.arguments[port.name]
        yield f"if {argument}.dim() != {len(port.axes)}:"
        shape = f"{{tuple({argument}.shape)}}"
        yield f'    raise ValueError(f"{port.name} has shape {shape}, and takes {_shape(port, names)}")'
    axes = [_Axis(port, k, axis) for port in plan.network.inputs for k, axis in enumerate(port.axes)]
    bindings = _bind_sizes(plan.network, names, axes)
    yield from (binding.line for binding in bindings)
    exact = [binding.axis for binding in bindings]
    for axis in axes:
        if axis not in exact:  # an axis that is the size itself fits
            yield from _check_axis(axis, names)
    for size, local in names.windows.items():
        yield f"{local} = {names.show_size(size)}"
    yield from _check_indices(plan, names)


def _check_indices(plan: Plan, names: Names) -> Iterator[str]:
    """Yield the lines that refuse inputs too small for every index to have a positive size."""
    runtime = call_sizes(plan.network)
    for index in plan.network.indices():
        if any(symbol.name in runtime for symbol in index.size.free_symbols) and not index.size.is_positive:
            size = names.show(index.size)
            yield f"if {size} < 1:"
            yield f'    raise ValueError(f"the index {index.name} = {names.show_size(index.size)} has size {{{size}}}")'


class _Axis(NamedTuple):
    """One axis of an input."""

    port: Port
    number: int
    indices: tuple[Index, ...]

    def code(self, names: Names) -> str:
        """Return the code of the axis's size at run time."""
        return f"{names.arguments[self.port.name]}.shape[{self.number}]"


class _Binding(NamedTuple):
    """The line that gives a run-time size its value, and the axis that is this size and nothing else, if it is one."""

    line: str
    axis: _Axis | None = None


def _bind_sizes(network: Network, names: Names, axes: Sequence[_Axis]) -> list[_Binding]:
    """Return one binding per run-time size, each as soon as everything it needs is bound."""
    bound = {size.name for size in network.settable_sizes()}
    pending = [size for size in network.sizes if size.name not in bound]
    bindings: list[_Binding] = []
    while pending:
        ready = {s.name: b for s in pending if (b := _bind_size(network, s, axes, bound, names)) is not None}
        if not ready:
            raise SizeError(f"no input determines the size {pending[0].name!r}")
        bindings.extend(ready.values())
        bound |= ready.keys()
        pending = [size for size in pending if size.name not in bound]
    return bindings


def _bind_size(network: Network, size: Size, axes: Sequence[_Axis], bound: set[str], names: Names) -> _Binding | None:
    """Return how a run-time size gets its value, or None until everything it needs is bound."""
    variable = names.sizes[size.name]
    if size.value is not None:
        is_ready = all(symbol.name in bound for symbol in size.value.free_symbols)
        return _Binding(f"{variable} = {names.show_size(size.value)}") if is_ready else None
    for axis in axes:
        whole = product(index.size for index in axis.indices)
        extent = sympy.expand(in_basic_sizes(network, whole, bound))
        unknown = {symbol for symbol in extent.free_symbols if symbol.name not in bound}
        if unknown == {size.symbol} and extent.is_polynomial(size.symbol) and sympy.degree(extent, size.symbol) == 1:
            slope, rest = extent.coeff(size.symbol, 1), extent.coeff(size.symbol, 0)
            code = axis.code(names)
            code = code if rest == 0 else f"({code} - ({names.show_size(rest)}))"
            line = f"{variable} = {code}" + ("" if slope == 1 else f" // ({names.show_size(slope)})")
            return _Binding(line, axis if whole == size.symbol else None)
    return None


def _check_axis(axis: _Axis, names: Names) -> Iterator[str]:
    """Yield the lines that refuse an axis of the wrong size."""
    code, wanted = axis.code(names), names.show_size(product(index.size for index in axis.indices))
    own = ", ".join(index.name for index in axis.indices)
    have = f"indices {own} have" if own else "group () has"
    shown = wanted if wanted.isdigit() else f"{{{wanted}}}"
    factors = " * ".join(names.show_size(index.size) for index in axis.indices)
    fused = f" = {factors}" if len(axis.indices) > 1 else ""
    message = f"axis {axis.number} of {axis.port.name} has size {{{code}}}, and its {have} {shown}{fused}"
    yield f"if {code} != {wanted}:"
    yield f'    raise ValueError(f"{message}")'
