"""Printing a plan as a standalone Python file: one class, importing torch (and math), that a person can read.

One line per operation with its legs and cost as a comment; values dropped after their last use; compile-time sizes
as constructor arguments, run-time sizes read from shapes and checked. Every name from the network is escaped, so
text from a file never becomes anything but a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import NamedTuple

import sympy

from tngraph.errors import SizeError
from tngraph.language.binding import in_basic_sizes
from tngraph.language.network import Core, Index, Leg, Network, Port, Size
from tngraph.language.sizes import product
from tngraph.lowering.construction import is_diagonal, print_constructor, print_extra_repr, print_reset, show_tuple
from tngraph.lowering.kernels import lower
from tngraph.lowering.layout import Axes, Context, Show, Tensor, arrange
from tngraph.lowering.names import Names
from tngraph.planning.cost import aliases, last_uses, volume, work_unit
from tngraph.planning.pipeline import plan as plan_network
from tngraph.planning.plans import Plan
from tngraph.planning.region import is_unit
from tngraph.planning.schedule import Operation, leg_size
from tngraph.planning.table import format_formula, format_step, format_value


@dataclass(frozen=True, slots=True)
class Source:
    """A printed module and the Python names in it.

    Attributes:
        text: the file.
        class_name: the class it defines.
        attributes: of every param, buffer and const.
        size_arguments: of the constructor, by compile-time size.
        size_attributes: where the module keeps those sizes.
    """

    text: str
    class_name: str
    attributes: Mapping[str, str]
    size_arguments: Mapping[str, str]
    size_attributes: Mapping[str, str]


def emit(plan: Plan | Network) -> str:
    """Print a plan as a standalone Python file that imports torch and nothing of tngraph.

    The file holds one ``torch.nn.Module`` named after the network, with the network's param names and shapes,
    its compile-time sizes as constructor arguments (the plan's values by default), and `device` and `dtype`.

    Args:
        plan: what to print; a network is planned first.
    """
    return print_source(plan if isinstance(plan, Plan) else plan_network(plan)).text


def print_source(plan: Plan) -> Source:
    """The printed module of a plan together with its names."""
    plan = plan.only()
    names = Names(plan)
    body = _class(plan, names)
    text = f"{_header(plan, names, body)}\n\n{body}"
    return Source(text, names.class_name, names.attributes, names.size_arguments, names.size_attributes)


def _header(plan: Plan, names: Names, body: str) -> str:
    lines = [f'"""{plan.network.name}: a tensor network as a PyTorch module, printed by tngraph.', ""]
    for label, expr, unit in (
        ("params", plan.params, "elements"),
        ("FLOPs", plan.flops, "FLOPs"),
        ("elementwise", plan.elementwise, "operations"),
    ):
        lines.append(f"{label}: {format_formula(expr.xreplace(names.windows))} [{unit}]")
    lines.append('"""\n')
    if "math." in body:
        lines.append("import math\n")
    lines.append("import torch")
    if "F." in body:
        lines.append("import torch.nn.functional as F")
    return "\n".join([*lines, "from torch import nn"]) + "\n"


def _class(plan: Plan, names: Names) -> str:
    inputs = ", ".join(map(_signature, plan.network.inputs)) or "no input"
    outputs = ", ".join(map(_signature, plan.network.outputs))
    doc = f'"""{plan.network.name}: {inputs} -> {outputs}."""'
    methods = [
        print_constructor(plan, names),
        print_reset(plan, names),
        _forward(plan, names),
        print_extra_repr(plan, names),
    ]
    body = "\n\n".join([doc, *methods])
    return f"class {names.class_name}(nn.Module):\n{indent(body, '    ')}\n"


def _signature(port: Port) -> str:
    axes = [axis[0].name if len(axis) == 1 else f"({' '.join(i.name for i in axis)})" for axis in port.axes]
    return f"{port.name}[{', '.join(axes)}]"


def _forward(plan: Plan, names: Names) -> str:
    arguments = ", ".join(["self", *names.arguments.values()])
    body = [*_bind(plan, names), *_compute(plan, names)]
    lines = [*_forward_doc(plan, names), *names.size_lines(body), *body]
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
    """Read run-time sizes off the shapes, refuse shapes that do not fit, name the counts of windows."""
    for port in plan.network.inputs:
        argument = names.arguments[port.name]
        yield f"if {argument}.dim() != {len(port.axes)}:"
        shape = f"{{tuple({argument}.shape)}}"
        yield f'    raise ValueError(f"{port.name} has shape {shape}, and takes {_shape(port, names)}")'
    axes = [_Axis(port, k, axis) for port in plan.network.inputs for k, axis in enumerate(port.axes)]
    yield from _bind_sizes(plan, names, axes)
    for axis in axes:
        yield from _check_axis(axis, names)
    for size, local in names.windows.items():
        yield f"{local} = {names.show_size(size)}"
    yield from _check_indices(plan, names)


def _check_indices(plan: Plan, names: Names) -> Iterator[str]:
    """The lines that refuse inputs too small for an index to have an element."""
    runtime = names.runtime()
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
        """The extent found at run time."""
        return f"{names.arguments[self.port.name]}.shape[{self.number}]"


def _bind_sizes(plan: Plan, names: Names, axes: Sequence[_Axis]) -> Iterator[str]:
    """One line per run-time size, each as soon as all it needs is known."""
    known = {size.name for size in plan.network.settable_sizes()}
    pending = [size for size in plan.network.sizes if size.name not in known]
    while pending:
        lines = {size.name: line for size in pending if (line := _bind_size(size, axes, known, names)) is not None}
        if not lines:
            raise SizeError(f"no input determines the size {pending[0].name!r}")
        yield from lines.values()
        known |= lines.keys()
        pending = [size for size in pending if size.name not in known]


def _bind_size(size: Size, axes: Sequence[_Axis], known: set[str], names: Names) -> str | None:
    """The line that gives a run-time size its value, once everything it needs is known."""
    if size.value is not None:
        ready = all(symbol.name in known for symbol in size.value.free_symbols)
        return f"{names.sizes[size.name]} = {names.show_size(size.value)}" if ready else None
    for axis in axes:
        whole = product(index.size for index in axis.indices)
        extent = sympy.expand(in_basic_sizes(names.plan.network, whole, known))
        unknown = {symbol for symbol in extent.free_symbols if symbol.name not in known}
        if unknown == {size.symbol} and extent.is_polynomial(size.symbol) and sympy.degree(extent, size.symbol) == 1:
            slope, rest = extent.coeff(size.symbol, 1), extent.coeff(size.symbol, 0)
            code = axis.code(names)
            if whole == size.symbol:
                names.readers.add((axis.port.name, axis.number))
            code = code if rest == 0 else f"({code} - ({names.show_size(rest)}))"
            return f"{names.sizes[size.name]} = {code}" + ("" if slope == 1 else f" // ({names.show_size(slope)})")
    return None


def _check_axis(axis: _Axis, names: Names) -> Iterator[str]:
    """The lines that refuse an axis of another size; none for the axis a run-time size was just read off."""
    if (axis.port.name, axis.number) in names.readers:
        return
    code, wanted = axis.code(names), names.show_size(product(index.size for index in axis.indices))
    own = ", ".join(index.name for index in axis.indices)
    shown = wanted if wanted.isdigit() else f"{{{wanted}}}"
    factors = " * ".join(names.show_size(index.size) for index in axis.indices)
    fused = f" = {factors}" if len(axis.indices) > 1 else ""
    message = f"axis {axis.number} of {axis.port.name} has size {{{code}}}, and its indices {own} have {shown}{fused}"
    yield f"if {code} != {wanted}:"
    yield f'    raise ValueError(f"{message}")'


def _compute(plan: Plan, names: Names) -> Iterator[str]:
    """One line per operation, its legs and cost above it, and the values that are not needed any more below."""
    operations = plan.regimes[0].operations
    anchor = _anchor(plan, names)
    context = Context(names.show, plan.sizes, f"{anchor}.device", names.runtime())
    drops = last_uses(operations, plan.regimes[0].outputs)
    alias = aliases(operations)
    tensors: list[Tensor] = []
    for number, op in enumerate(operations):
        if op.kind == "load":
            tensors.append(_load(plan, op, tensors, names, anchor))
            continue
        result = lower(op, [tensors[k] for k in op.operands], _wanted(plan, number), context)
        name = names.values[op.name]
        yield f"# {_comment(operations, number, result, names)}"
        yield f"{name} = {result.code}"
        tensors.append(Tensor(name, result.axes))
        dropped = [names.values[operations[k].name] for k in drops.get(number, ()) if k == alias[k]]
        if dropped:
            yield f"del {', '.join(dropped)}"
    results = [
        arrange(tensors[k], _port_axes(port), names.show)
        for k, port in zip(plan.regimes[0].outputs, plan.network.outputs, strict=True)
    ]
    yield f"return {', '.join(results)}"


def _constant(core: Core, show: Show, device: str, dtype: str) -> str:
    """The code of a constant tensor whose size is known at each call only."""
    assert core.init is not None
    sizes = [show(leg.size) for leg in core.legs]
    options = f"{device}, dtype={dtype}"
    if core.init.kind == "ones":
        return f"torch.ones({show_tuple(sizes)}, {options})"
    if core.init.kind == "eye":
        return f"torch.eye({', '.join(sizes)}, {options})"
    if core.init.kind == "basis":
        return f"(torch.arange({sizes[0]}, {device}) == {int(core.init.args[0])}).to({dtype})"
    code = f"torch.ones({sizes[0]}, {options})" if sizes else f"torch.ones((), {options})"
    for _ in sizes[1:]:
        code = f"torch.diag_embed({code})"
    return code


def _anchor(plan: Plan, names: Names) -> str:
    """A tensor whose device and dtype those made inside ``forward`` take."""
    if names.arguments:
        return next(iter(names.arguments.values()))
    stored = [core for core in plan.network.cores if core.role in ("param", "buffer")]
    return f"self.{names.attributes[stored[0].name]}" if stored else "torch.empty(())"


def _comment(operations: Sequence[Operation], number: int, result: Tensor, names: Names) -> str:
    """The value with its legs in memory order, what it is, and what it costs."""
    op = operations[number]
    cost = volume(operations, number).xreplace(names.windows)
    price = f": {format_formula(cost)} {work_unit(op)}" if cost != 0 else ""
    return f"{format_value(op.name, result.legs)} = {format_step(operations, number)}{price}"


def _load(plan: Plan, op: Operation, tensors: Sequence[Tensor], names: Names, anchor: str) -> Tensor:
    """The tensor an access names, its axes under the access's legs."""
    assert op.access is not None
    bare = iter(op.legs)
    legs = [None if isinstance(leg, Index) and is_unit(leg) else next(bare) for leg in op.access.legs]
    if op.operands:
        stage = next(stage for stage in plan.regimes[0].stages if stage.equation.name == op.access.source)
        return _reload(tensors[op.operands[0]], stage.equation.legs, legs, names)
    core = next(core for core in plan.network.cores if core.name == op.access.source)
    if is_diagonal(core, op.access):
        (leg,) = set(op.legs)
        return Tensor(
            f"torch.ones({names.show(leg_size(leg))}, device={anchor}.device, dtype={anchor}.dtype)", ((leg,),)
        )
    code = names.arguments.get(core.name) or f"self.{names.attributes[core.name]}"
    if core.role == "const" and names.is_runtime(core):
        code = _constant(core, names.show, f"device={anchor}.device", f"{anchor}.dtype")
    port = next((port for port in plan.network.inputs if port.name == core.name), None)
    axes = port.axes if port is not None else tuple((leg,) for leg in core.legs)
    renamed = dict(zip(core.legs, legs, strict=True))
    return Tensor(code, tuple(tuple(r for leg in axis if (r := renamed[leg]) is not None) for axis in axes))


def _reload(stored: Tensor, own: Sequence[Index], legs: Sequence[Leg | None], names: Names) -> Tensor:
    """An earlier result under the legs of an access; a unit leg read at positions gets its axis back."""
    read = [leg for leg, kept in zip(legs, own, strict=True) if leg is not None and is_unit(kept)]
    axes = (*stored.axes, *(() for _ in read))
    code = arrange(stored, axes, names.show)
    renamed = dict(zip(own, legs, strict=True))
    kept = tuple(tuple(r for leg in axis if (r := renamed[leg]) is not None) for axis in stored.axes)  # type: ignore[index]
    return Tensor(code, (*kept, *((leg,) for leg in read)))


def _wanted(plan: Plan, number: int) -> tuple[Index, ...]:
    """The leg order an operation's value is put out in, where it is a result or the way to one."""
    for stage in plan.regimes[0].stages:
        if plan.regimes[0].schedule.results[stage.equation.name] >= number:
            port = next((p for p in plan.network.outputs if p.name == stage.equation.name), None)
            return port.legs if port is not None else stage.equation.legs
    return ()


def _port_axes(port: Port) -> Axes:
    return tuple(tuple(index for index in axis if not is_unit(index)) for axis in port.axes)
