"""Prints what ``forward`` does first: it reads run-time sizes off shapes, and refuses inputs that misfit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import sympy

from tngraph.errors import SizeError
from tngraph.language.binding import in_basic_sizes
from tngraph.language.network import Index, Network, Port, Size
from tngraph.language.sizes import product
from tngraph.language.varying import call_sizes
from tngraph.lowering.names import Names


def show_shape(port: Port, names: Names) -> str:
    """Return the shape of an input or output, with the names of sizes."""
    return f"({', '.join(names.show_size(product(i.size for i in axis)) for axis in port.axes)})"


def bind_sizes(network: Network, names: Names) -> Iterator[str]:
    """Yield the lines that read run-time sizes off shapes, refuse misfits, and name counts of windows."""
    for port in network.inputs:
        argument = names.arguments[port.name]
        yield f"if {argument}.dim() != {len(port.axes)}:"
        shape = f"{{tuple({argument}.shape)}}"
        yield f'    raise ValueError(f"{port.name} has shape {shape}, and takes {show_shape(port, names)}")'
    axes = [_Axis(port, k, axis) for port in network.inputs for k, axis in enumerate(port.axes)]
    bindings = _find_bindings(network, names, axes)
    yield from (binding.line for binding in bindings)
    exact = [binding.axis for binding in bindings]
    for axis in axes:
        if axis not in exact:  # an axis that is the size itself fits
            yield from _check_axis(axis, names)
    for size, local in names.windows.items():
        yield f"{local} = {names.show_size(size)}"
    yield from _check_indices(network, names)


def _check_indices(network: Network, names: Names) -> Iterator[str]:
    """Yield the lines that refuse inputs too small for every index to have a positive size."""
    runtime = call_sizes(network)
    for index in network.indices():
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


def _find_bindings(network: Network, names: Names, axes: Sequence[_Axis]) -> list[_Binding]:
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
