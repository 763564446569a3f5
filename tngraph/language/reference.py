"""The meaning of a network: literally one einsum per term, in NumPy, with exact gradients.

Every rewrite, plan and printed module is judged by `evaluate` and `gradients`, so nothing here is clever: a read is a
gather at explicit positions, a const is written out in full, and an equation is the sum of its terms. No memory is
saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import opt_einsum
from numpy.typing import ArrayLike, NDArray

from tngraph.errors import SizeError
from tngraph.language.arguments import check_network
from tngraph.language.binding import bind_sizes, check_names, compile_time_sizes, index_sizes
from tngraph.language.functions import apply, pull_back
from tngraph.language.network import Access, Core, Equation, Index, Network, Port, Read, Term
from tngraph.language.sizes import LARGEST, evaluate_size

__all__ = ["bind_sizes", "compile_time_sizes", "evaluate", "gradients"]

Array = NDArray[Any]
Operand = tuple[Array, tuple[Index, ...]]


@dataclass(frozen=True, slots=True)
class _Run:
    """The state of one evaluation.

    Attributes:
        sizes: the value of every named size.
        extents: the size of every index.
        values: every source, with axes in the order of its own legs.
        linear: every result before its function is applied.
    """

    sizes: dict[str, int]
    extents: dict[str, int]
    values: dict[str, Array]
    linear: dict[str, Array]


def evaluate(
    network: Network, arrays: Mapping[str, ArrayLike], sizes: Mapping[str, int] | None = None
) -> Array | tuple[Array, ...]:
    """Return the outputs of a network for these arrays, in float64 (complex128 if an array is complex).

    Args:
        network: the network.
        arrays: one for each input (as ``forward`` receives it, with fused axes), param and buffer (as declared).
        sizes: overrides of compile-time sizes.

    Returns:
        The output with the axes of its port; a tuple if there are several.

    Raises:
        SizeError: an array is missing, unknown or has the wrong shape, or a size cannot be bound.
    """
    run = _run(network, arrays, sizes)
    sources = network.sources()
    results = tuple(
        _fuse(run.values[port.name], sources[port.name].legs, port, run.extents) for port in network.outputs
    )
    return results[0] if len(results) == 1 else results


def gradients(
    network: Network,
    arrays: Mapping[str, ArrayLike],
    cotangents: ArrayLike | Sequence[ArrayLike],
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Return the gradient of Σ cotangent·output with respect to every input, param and buffer, in reverse mode.

    Args:
        network: the network.
        arrays: as for `evaluate`. Complex arrays get ∂/∂x − i∂/∂y of Re Σ cotangent·output, which is the holomorphic
            derivative if there is one. PyTorch returns its conjugate.
        cotangents: one array, or one per output, with the shapes of what `evaluate` returns.
        sizes: overrides of compile-time sizes.

    Returns:
        The gradient for each array, of the same shape.

    Raises:
        SizeError: as for `evaluate`, or the number or shapes of the cotangents are wrong.
    """
    run = _run(network, arrays, sizes)
    adjoints = _seed(network, run, cotangents)
    for equation in reversed(network.equations):
        if equation.name in adjoints:
            adjoint = _before_function(equation, adjoints[equation.name], run)
            for term in equation.terms:
                _pull_back(term, (adjoint, equation.legs), run, adjoints)
    ports = {port.name: port for port in network.inputs}
    adjoint_of = {core.name: _adjoint(core.name, adjoints, run) for core in network.cores if core.role != "const"}
    legs = {core.name: core.legs for core in network.cores}
    return {n: _fuse(g, legs[n], ports[n], run.extents) if n in ports else g for n, g in adjoint_of.items()}


def _run(network: Network, arrays: Mapping[str, ArrayLike], sizes: Mapping[str, int] | None) -> _Run:
    check_network(network)
    if not isinstance(arrays, Mapping):
        raise SizeError(f"arrays is {arrays!r}\n  it maps the name of each input, param and buffer to its array")
    roles = {core.name: core.role for core in network.cores if core.role != "const"}
    check_names(arrays, roles, "array")
    plain = {name: _numbers(name, array) for name, array in arrays.items()}
    dtype = np.complex128 if any(map(np.iscomplexobj, plain.values())) else np.float64
    bound = bind_sizes(network, {port.name: plain[port.name].shape for port in network.inputs}, sizes)
    run = _Run(bound, index_sizes(network, bound), {}, {})
    ports = {port.name: port for port in network.inputs}
    for core in network.cores:
        run.values[core.name] = _core(core, plain, ports, run.extents).astype(dtype)
    for equation in network.equations:
        run.linear[equation.name] = _linear(equation, run, dtype)
        run.values[equation.name] = _after_function(equation, run.linear[equation.name])
    return run


def _numbers(name: str, array: ArrayLike) -> Array:
    """Return an array of numbers."""
    try:
        values = np.asarray(array)
    except (TypeError, ValueError):  # lists of different lengths, a tensor that takes a gradient
        raise SizeError(f"{name!r} is {array!r}, which NumPy makes no array of\n  give an array of numbers") from None
    if values.dtype.kind not in "biufc":
        raise SizeError(f"{name!r} has entries of type {values.dtype}\n  give an array of numbers")
    return values


def _core(core: Core, arrays: Mapping[str, Array], ports: Mapping[str, Port], extents: Mapping[str, int]) -> Array:
    if core.role == "const":
        return _const(core, _shape(core.legs, extents))
    if core.role == "input":
        return _unfuse(arrays[core.name], core.legs, ports[core.name], extents)
    array, shape = arrays[core.name], _shape(core.legs, extents)
    if array.shape != shape:
        names = ", ".join(map(repr, core.legs))
        raise SizeError(f"the {core.role} {core.name!r}[{names}] has shape {shape}, and not {array.shape}")
    return array


def _const(core: Core, shape: tuple[int, ...]) -> Array:
    """Return the array of a const: 1 at equal positions (``delta``, ``eye``), at k (``basis(k)``), or everywhere."""
    assert core.init is not None, "a const has a kind: Core checks it"
    if core.init.kind == "ones" or not shape:
        return np.ones(shape)
    array = np.zeros(shape)
    if core.init.kind == "basis":
        k = int(core.init.args[0])
        if not 0 <= k < min(shape):
            raise SizeError(f"the const {core.name!r} = basis({k}) has legs of size {min(shape)}")
        array[(k,) * len(shape)] = 1.0
    else:
        array[(np.arange(min(shape)),) * len(shape)] = 1.0
    return array


def _linear(equation: Equation, run: _Run, dtype: type) -> Array:
    total: Array = np.zeros(_shape(equation.legs, run.extents), dtype)
    for term in equation.terms:
        total = total + _contract(_operands(term, run), equation.legs, run.extents)
    return total


def _operands(term: Term, run: _Run) -> list[Operand]:
    return [(np.asarray(term.scale), ()), *((_read(access, run), access.indices) for access in term.accesses)]


def _contract(operands: Sequence[Operand], legs: Sequence[Index], extents: Mapping[str, int]) -> Array:
    """Return the product of operands summed over all indices but these legs. A leg that no operand has is broadcast."""
    symbols: dict[str, str] = {}
    for _, indices in operands:
        for index in indices:
            symbols.setdefault(index.name, opt_einsum.get_symbol(len(symbols)))
    sides = ",".join("".join(symbols[index.name] for index in indices) for _, indices in operands)
    present = "".join(symbols.get(leg.name, "") for leg in legs)
    result = opt_einsum.contract(f"{sides}->{present}", *(array for array, _ in operands))
    aligned = np.reshape(result, [extents[leg.name] if leg.name in symbols else 1 for leg in legs])
    return np.broadcast_to(aligned, _shape(legs, extents))


def _read(access: Access, run: _Run) -> Array:
    """Return an access as an array with one axis per index, which is zero where it reads outside its source."""
    source = run.values[access.source]
    positions, inside = _positions(access, source.shape, run)
    return np.where(inside, source[positions], 0.0)


def _positions(access: Access, shape: tuple[int, ...], run: _Run) -> tuple[tuple[Array, ...], Array]:
    """Return, for all values of an access's indices, the positions on each leg and whether they are inside."""
    axis = {index.name: k for k, index in enumerate(access.indices)}
    grid = np.indices(_shape(access.indices, run.extents), sparse=True)
    inside: Array = np.ones(_shape(access.indices, run.extents), bool)
    positions = []
    for leg, extent in zip(access.legs, shape, strict=True):
        if isinstance(leg, Read):
            position: Any = evaluate_size(leg.offset, run.sizes, LARGEST)
            for coefficient, index in leg.terms:
                position = position + coefficient * grid[axis[index.name]]
            position = np.asarray(position % extent if leg.wrap else position)
        else:
            position = grid[axis[leg.name]]
        inside = inside & (position >= 0) & (position < extent)
        positions.append(np.clip(position, 0, extent - 1))
    return tuple(positions), inside


def _after_function(equation: Equation, linear: Array) -> Array:
    function = equation.function
    return linear if function is None else apply(function.name, function.args, linear).astype(linear.dtype)


def _seed(network: Network, run: _Run, cotangents: ArrayLike | Sequence[ArrayLike]) -> dict[str, Array]:
    by_output: Any = [cotangents] if len(network.outputs) == 1 else list(cotangents)  # type: ignore[arg-type]
    if len(by_output) != len(network.outputs):
        raise SizeError(f"{network.name} has {len(network.outputs)} outputs, and there are {len(by_output)} cotangents")
    sources, adjoints = network.sources(), dict[str, Array]()
    for port, cotangent in zip(network.outputs, map(np.asarray, by_output), strict=True):
        shape = tuple(_length(axis, run.extents) for axis in port.axes)
        if cotangent.shape != shape:
            raise SizeError(f"the output {port.name!r} has shape {shape}, and its cotangent {cotangent.shape}")
        unfused = _unfuse(cotangent, sources[port.name].legs, port, run.extents)
        adjoints[port.name] = _adjoint(port.name, adjoints, run) + unfused
    return adjoints


def _adjoint(name: str, adjoints: Mapping[str, Array], run: _Run) -> Array:
    adjoint = adjoints.get(name)
    return np.zeros_like(run.values[name]) if adjoint is None else adjoint


def _before_function(equation: Equation, adjoint: Array, run: _Run) -> Array:
    function = equation.function
    if function is None:
        return adjoint
    with np.errstate(all="ignore"):  # 0 times an infinite derivative is nan, as in torch
        return pull_back(function.name, function.args, run.linear[equation.name], adjoint)


def _pull_back(term: Term, adjoint: Operand, run: _Run, adjoints: dict[str, Array]) -> None:
    """Add to the adjoint of each access's source the adjoint times the other accesses, at the positions read."""
    scale, *reads = _operands(term, run)
    for position, access in enumerate(term.accesses):
        others = [scale, adjoint, *reads[:position], *reads[position + 1 :]]
        gradient = _contract(others, access.indices, run.extents)
        into = adjoints[access.source] = np.array(_adjoint(access.source, adjoints, run))
        positions, inside = _positions(access, into.shape, run)
        np.add.at(into, positions, np.where(inside, gradient, 0.0))


def _shape(legs: Sequence[Index], extents: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(extents[leg.name] for leg in legs)


def _length(axis: Sequence[Index], extents: Mapping[str, int]) -> int:
    return int(np.prod(_shape(axis, extents), dtype=np.int64))


def _fuse(array: Array, legs: Sequence[Index], port: Port, extents: Mapping[str, int]) -> Array:
    """Convert an array from its own legs to the axes of a port."""
    return np.transpose(array, _order(legs, port.legs)).reshape([_length(axis, extents) for axis in port.axes])


def _unfuse(array: Array, legs: Sequence[Index], port: Port, extents: Mapping[str, int]) -> Array:
    """Convert an array from the axes of a port to its own legs."""
    return np.transpose(array.reshape(_shape(port.legs, extents)), _order(port.legs, legs))


def _order(have: Sequence[Index], want: Sequence[Index]) -> list[int]:
    """Return the position of each wanted leg."""
    names = [leg.name for leg in have]
    return [names.index(leg.name) for leg in want]
