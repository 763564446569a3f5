"""Binding of sizes to integers: defaults, overrides, and what the shapes of the inputs determine.

A run-time size is solved for on an input axis that is affine in it, once everything else on the axis is bound. Then
every axis is checked, so the sizes that `bind_sizes` returns fit the inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator, Mapping, Sequence
from difflib import get_close_matches

import sympy

from tngraph.errors import SizeError
from tngraph.language.network import Index, Network, Port, Size
from tngraph.language.sizes import LARGEST, as_integer, evaluate_size, product


def compile_time_sizes(network: Network, overrides: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the sizes known before any array is given: defaults or their overrides, and what derives from them.

    A size derived from a run-time size is absent, and cannot be overridden.

    Raises:
        SizeError: an override is unknown, names a run-time size or is not a positive integer, or a derived size
            is not positive.
    """
    overrides = dict(overrides or {})
    _check_overrides(network, overrides)
    values: dict[str, int] = {}
    for size in network.sizes:
        if size.name in overrides:
            values[size.name] = operator.index(overrides[size.name])
        elif size.value is not None:
            _derive(size, size.value, values)
    return values


def _check_overrides(network: Network, overrides: Mapping[str, int]) -> None:
    settable = [size.name for size in network.settable_sizes()]
    names = [size.name for size in network.sizes]
    for name, value in overrides.items():
        if name in names and name not in settable:
            raise SizeError(f"{name!r} is a run-time size: it is read off the inputs at each call\n  do not set it")
        if name not in settable:
            raise unknown_size(network, name, settable)
        check_size(name, value)


def check_size(name: str, value: object) -> None:
    """Raise `SizeError` unless a value is an integer that a size can have."""
    if not 1 <= (as_integer(value) or 0) <= LARGEST:
        raise SizeError(f"the size {name!r} cannot be {value!r}\n  a size is an integer from 1 to 2**62")


def check_sizes(network: Network, values: Mapping[str, int]) -> None:
    """Raise `SizeError` if with these values an index or a fan-in is below 1, or a basis vector lacks its entry."""
    index_sizes(network, values)
    for core in network.cores:
        if core.init is not None and core.init.kind == "basis":
            extent = evaluate_size(core.legs[0].size, values, LARGEST)
            if not 0 <= core.init.args[0] < extent:
                raise SizeError(f"the const {core.name!r} = basis({core.init.args[0]}) has {extent} entries, from 0")
        if core.fan_in is not None and (fan_in := evaluate_size(core.fan_in, values, LARGEST)) < 1:
            raise SizeError(f"the fan-in {core.fan_in} of {core.name!r} is {fan_in}\n  a fan-in is at least 1")


def unknown_size(network: Network, name: str, names: Sequence[str]) -> SizeError:
    """Return the error for a size that a network does not have, with the ones it has."""
    near = get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"its sizes: {', '.join(names) or 'none'}"
    loops = f"a size that bounds a loop is set when the text is read: tg.load(path, sizes={{{name!r}: …}})"
    return SizeError(f"{network.name} has no size {name!r}\n  {hint}; {loops}")


def _derive(size: Size, value: sympy.Expr, values: dict[str, int]) -> None:
    """Add a derived size if everything it derives from is bound."""
    if any(symbol.name not in values for symbol in value.free_symbols):
        return
    derived = evaluate_size(value, values, LARGEST)
    if derived < 1:
        raise SizeError(f"the size {size.name!r} = {value} is {derived}\n  a size is at least 1")
    values[size.name] = derived


def bind_sizes(
    network: Network, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return the value of every size of a network, with run-time sizes read off the shapes of its inputs.

    Args:
        network: the network.
        shapes: the shape of each input as ``forward`` receives it, with fused axes.
        sizes: overrides of compile-time sizes.

    Returns:
        A positive integer for each size's name, in order of declaration.

    Raises:
        SizeError: an input is missing or unknown, an axis has the wrong size, or no axis determines a run-time size.
    """
    values = compile_time_sizes(network, sizes)
    check_names(shapes, {port.name: "input" for port in network.inputs}, "shape")
    for port in network.inputs:
        _check_rank(port, shapes[port.name])
    while _bind_more(network, shapes, values):
        pass
    for size in network.sizes:
        if size.name not in values:
            raise SizeError(
                f"no input determines the size {size.name!r}\n  an input axis determines a run-time size when it is "
                "the only unknown in it, with a fixed factor"
            )
    _check_extents(network, shapes, values)
    return {size.name: values[size.name] for size in network.sizes}


def check_names(arrays: Mapping[str, object], wanted: Mapping[str, str], what: str) -> None:
    """Raise `SizeError` unless exactly the wanted tensors (name to role) are given a ``what``."""
    for name, role in wanted.items():
        if name not in arrays:
            raise SizeError(f"there is no {what} for the {role} {name!r}")
    article = "an" if what[0] in "aeiou" else "a"
    for name in arrays:
        if name not in wanted:
            raise SizeError(f"there is no tensor {name!r} that takes {article} {what}\n  these do: {', '.join(wanted)}")


def _check_rank(port: Port, shape: tuple[int, ...]) -> None:
    if len(shape) != len(port.axes):
        raise SizeError(f"the input {port.name!r} has {len(port.axes)} axes, [{_show(port)}], and not {len(shape)}")


def _show(port: Port) -> str:
    return ", ".join(axis[0].name if len(axis) == 1 else f"({', '.join(i.name for i in axis)})" for axis in port.axes)


def _axes(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int, tuple[Index, ...], int]]:
    for port in network.inputs:
        for position, (axis, extent) in enumerate(zip(port.axes, shapes[port.name], strict=True)):
            yield port.name, position, axis, extent


def _bind_more(network: Network, shapes: Mapping[str, tuple[int, ...]], values: dict[str, int]) -> bool:
    """Add the sizes that the axes and the derived sizes determine now, and return whether there were any."""
    before = len(values)
    for size in network.sizes:
        if size.name not in values and size.value is not None:
            _derive(size, size.value, values)
    for name, position, axis, extent in _axes(network, shapes):
        expr = product(index.size for index in axis)
        if all(symbol.name in values for symbol in expr.free_symbols):
            continue
        expr = in_basic_sizes(network, expr, values)
        unknown = [symbol for symbol in expr.free_symbols if symbol.name not in values]
        if len(unknown) == 1 and _is_affine(expr, unknown[0]):
            misfit = _solve(expr, unknown[0], extent, values)
            if misfit is not None:
                hint = f"no positive integer {unknown[0]} makes them equal"
                raise SizeError(f"{_mismatch(name, position, axis, extent, misfit)}\n  {hint}")
    return len(values) > before


def in_basic_sizes(network: Network, expr: sympy.Expr, values: Container[str]) -> sympy.Expr:
    """Return an expression with the derived sizes that have no value yet replaced by their definitions."""
    for size in reversed(network.sizes):
        if size.name not in values and size.value is not None:
            expr = expr.xreplace({size.symbol: size.value})
    return expr


def _is_affine(expr: sympy.Expr, unknown: sympy.Symbol) -> bool:
    # By the derivative, because expanding (n + 1)**10**6 to look at its degree would never end.
    return bool(expr.is_polynomial(unknown)) and unknown not in sympy.diff(expr, unknown).free_symbols


def _solve(expr: sympy.Expr, unknown: sympy.Symbol, extent: int, values: dict[str, int]) -> sympy.Expr | None:
    """Add the size that makes an affine axis this long, or return the axis's size if no positive integer does."""
    at_zero, at_one = (evaluate_size(expr, {**values, unknown.name: n}, LARGEST) for n in (0, 1))
    slope = at_one - at_zero
    if slope == 0:
        return None
    if (extent - at_zero) % slope or (extent - at_zero) // slope < 1:
        return slope * unknown + at_zero
    values[unknown.name] = (extent - at_zero) // slope
    return None


def _check_extents(network: Network, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, int]) -> None:
    for name, position, axis, extent in _axes(network, shapes):
        expected = evaluate_size(product(index.size for index in axis), values, LARGEST)
        if expected != extent:
            involved = {s.name for index in axis for s in index.size.free_symbols}
            assignments = ", ".join(f"{size} = {values[size]}" for size in values if size in involved)
            hint = f"\n  with {assignments}" if assignments else ""
            raise SizeError(f"{_mismatch(name, position, axis, extent, expected)}{hint}")
    index_sizes(network, values)


def _mismatch(name: str, position: int, axis: Sequence[Index], extent: int, expected: object) -> str:
    legs = ", ".join(f"{index.name}:{index.size}" for index in axis)
    own = f"its index {legs} has {expected}" if len(axis) == 1 else f"its group ({legs}) multiplies to {expected}"
    return f"axis {position} of the input {name!r} has size {extent}, and {own}"


def index_sizes(network: Network, values: Mapping[str, int]) -> dict[str, int]:
    """Return the size of every index by name, given every named size.

    Raises:
        SizeError: an index has a size that is not positive.
    """
    extents = {index.name: evaluate_size(index.size, values, LARGEST) for index in network.indices()}
    for index in network.indices():
        if extents[index.name] < 1:
            raise SizeError(
                f"the index {index.name!r} = {index.size} has size {extents[index.name]}\n  a size is at least 1"
            )
    return extents
