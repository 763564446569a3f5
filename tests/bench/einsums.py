"""A network as the einsums that a person would write for it: one n-ary einsum per term, and operands to fill in.

It is the literal meaning of a network, as `tngraph.evaluate` reads it, on torch tensors and with the contraction left
to whoever is given: torch, opt_einsum, cotengra, quimb. A convolved leg becomes a view of windows, which is what an
einsum needs to express a convolution.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import opt_einsum
import torch
from torch import Tensor
from torch.nn import functional

import tngraph as tg
from tngraph.language.binding import bind_sizes, index_sizes
from tngraph.language.network import Access, Core, Equation, Index, Port, Read, Term

Contraction = Callable[..., Tensor]
Contractor = Callable[[str, Sequence[tuple[int, ...]]], Contraction]
"""Given an einsum and the shapes of its operands: a function of the operands."""
FUNCTIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class Product:
    """One term: an einsum over accesses, times a number.

    Attributes:
        text: the einsum.
        accesses: its operands.
        shapes: of the operands, as the einsum sees them.
        shape: of the result, broadcast over the legs of the equation that the term lacks.
        scale: the number.
    """

    text: str
    accesses: tuple[Access, ...]
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    scale: float


def write_product(term: Term, legs: Sequence[Index], extents: Mapping[str, int]) -> Product:
    """The einsum of one term under the legs of its equation."""
    accesses = term.accesses
    names = list(dict.fromkeys(index.name for access in accesses for index in access.indices))
    letters = {name: opt_einsum.get_symbol(k) for k, name in enumerate(names)}
    sides = ["".join(letters[index.name] for index in access.indices) for access in accesses]
    present = "".join(letters[leg.name] for leg in legs if leg.name in letters)
    return Product(
        f"{','.join(sides)}->{present}",
        accesses,
        tuple(tuple(extents[index.name] for index in access.indices) for access in accesses),
        tuple(extents[leg.name] if leg.name in letters else 1 for leg in legs),
        term.scale,
    )


def write_products(equation: Equation, extents: Mapping[str, int]) -> tuple[Product, ...]:
    """The einsums that an equation is the sum of."""
    return tuple(write_product(term, equation.legs, extents) for term in equation.terms)


def read_windows(source: Tensor, access: Access, sizes: Mapping[str, int], extents: Mapping[str, int]) -> Tensor:
    """A tensor under the indices of an access: a leg read at ``a·p + b·k + c`` becomes windows, one axis per index.

    Raises:
        NotImplementedError: a read that no ``unfold`` expresses.
    """
    reads = [(axis, leg) for axis, leg in enumerate(access.legs) if isinstance(leg, Read)]
    if not reads:
        return source
    axes = [leg.indices[0].name if isinstance(leg, Read) else leg.name for leg in access.legs]
    for axis, leg in reads:
        if leg.wrap or len(leg.terms) != 2 or min(number for number, _ in leg.terms) < 1:
            raise NotImplementedError(f"no windows for the read {leg}")
        (stride, place), (dilation, offset) = leg.terms
        low = int(leg.offset.subs(sizes))
        high = low + stride * (extents[place.name] - 1) + dilation * (extents[offset.name] - 1)
        padding = (max(0, -low), max(0, high - source.shape[axis] + 1))
        # functional.pad counts axes from the last one
        source = functional.pad(source, (0, 0) * (source.ndim - 1 - axis) + padding)
        source = source.narrow(axis, low + padding[0], high - low + 1)
        source = source.unfold(axis, dilation * (extents[offset.name] - 1) + 1, stride)[..., ::dilation]
        axes.append(offset.name)
    return source.permute([axes.index(index.name) for index in access.indices])


class Einsums:
    """A network of one input as its einsums, contracted by somebody.

    Attributes:
        network: what it computes.
        params: the values of params and buffers by name; they are used, not copied.
        sizes: every named size, at the shape of input it was made for.
        extents: of every index.
    """

    def __init__(
        self, network: tg.Network, params: Mapping[str, Tensor], shape: Sequence[int], contractor: Contractor
    ) -> None:
        self.network, self.port, self.out = network, network.inputs[0], network.outputs[0]
        self.sizes = bind_sizes(network, {self.port.name: tuple(shape)})
        self.extents = index_sizes(network, self.sizes)
        like = next(iter(params.values()))
        self.values = {**params, **{core.name: tensor for core, tensor in _consts(network, self.extents, like)}}
        self.steps = [(equation, self._prepare(equation, contractor)) for equation in network.equations]
        self.shape = [self.extents[leg.name] for leg in self.port.legs]
        legs = [leg.name for leg in network.sources()[self.out.name].legs]
        self.order = [legs.index(leg.name) for leg in self.out.legs]
        self.out_shape = _fused_shape(self.out, self.extents)

    def _prepare(self, equation: Equation, contractor: Contractor) -> list[tuple[Product, Contraction]]:
        products = write_products(equation, self.extents)
        return [(product, contractor(product.text, product.shapes)) for product in products]

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output."""
        values = {**self.values, self.port.name: x.reshape(self.shape)}
        for equation, products in self.steps:
            values[equation.name] = self._evaluate(equation, products, values)
        return values[self.out.name].permute(self.order).reshape(self.out_shape)

    def _evaluate(
        self, equation: Equation, products: Sequence[tuple[Product, Contraction]], values: Mapping[str, Tensor]
    ) -> Tensor:
        total: Tensor | None = None
        for product, contract in products:
            operands = [read_windows(values[a.source], a, self.sizes, self.extents) for a in product.accesses]
            result = contract(*operands).reshape(product.shape)
            result = result if product.scale == 1 else result * product.scale
            total = result if total is None else total + result
        assert total is not None, "an equation has a term"
        return total if equation.function is None else FUNCTIONS[equation.function.name](total)


def _consts(network: tg.Network, extents: Mapping[str, int], like: Tensor) -> Iterator[tuple[Core, Tensor]]:
    for core in network.cores:
        if core.role == "const":
            yield core, _const(core, [extents[leg.name] for leg in core.legs], like)


def _const(core: Core, shape: Sequence[int], like: Tensor) -> Tensor:
    """1 everywhere, at position k of ``basis(k)``, or where all positions are equal."""
    assert core.init is not None, "a const has a kind"
    if core.init.kind == "ones":
        return like.new_ones(shape)
    const = like.new_zeros(shape)
    places = [int(core.init.args[0])] if core.init.kind == "basis" else range(min(shape))
    for place in places:
        const[(place,) * len(shape)] = 1
    return const


def _fused_shape(port: Port, extents: Mapping[str, int]) -> list[int]:
    return [int(torch.Size([extents[leg.name] for leg in axis]).numel()) for axis in port.axes]


# Who contracts.


def is_plain(text: str) -> bool:
    """Whether an einsum has one operand only, which nobody needs a library for."""
    return "," not in text


def contract_by_torch(text: str, shapes: Sequence[tuple[int, ...]]) -> Contraction:
    """One ``torch.einsum``, which asks opt_einsum for an order at every call."""
    return lambda *operands: torch.einsum(text, *operands)


MOST_OPTIMAL = 9
"""Up to so many operands opt_einsum tries every order: with ten that takes minutes."""


def contract_by_opt_einsum(text: str, shapes: Sequence[tuple[int, ...]]) -> Contraction:
    """opt_einsum's expression in its optimal order, beyond nine operands in the best that ``auto-hq`` finds."""
    if is_plain(text):
        return contract_by_torch(text, shapes)
    optimize = "optimal" if len(shapes) <= MOST_OPTIMAL else "auto-hq"
    expression = opt_einsum.contract_expression(text, *shapes, optimize=optimize)
    return lambda *operands: expression(*operands, backend="torch")


def contract_in_order(text: str, shapes: Sequence[tuple[int, ...]]) -> Contraction:
    """Operand after operand as they are written, each step one ``torch.einsum``: what the papers' code does."""
    if is_plain(text):
        return contract_by_torch(text, shapes)
    # opt_einsum puts each result at the end of what is left
    path = [(0, 1), *((0, count - 1) for count in range(len(shapes) - 1, 1, -1))]
    expression = opt_einsum.contract_expression(text, *shapes, optimize=path)
    return lambda *operands: expression(*operands, backend="torch")


def contract_by_cotengra(text: str, shapes: Sequence[tuple[int, ...]]) -> Contraction:
    """Cotengra's expression, in the best order that its ``auto-hq`` finds."""
    import cotengra

    if is_plain(text):
        return contract_by_torch(text, shapes)
    inputs, output = _indices(text)
    sizes = _sizes(inputs, shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optional packages that it looks for
        expression = cotengra.array_contract_expression(inputs, output, sizes, optimize="auto-hq")
    return lambda *operands: expression(*operands)


def contract_by_quimb(text: str, shapes: Sequence[tuple[int, ...]]) -> Contraction:
    """A quimb tensor network built around the operands at every call, contracted along a path found before."""
    import cotengra
    import quimb.tensor as qtn

    if is_plain(text):
        return contract_by_torch(text, shapes)
    inputs, output = _indices(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = cotengra.array_contract_path(inputs, output, _sizes(inputs, shapes), optimize="auto-hq")

    def contract(*operands: Tensor) -> Tensor:
        tensors = [qtn.Tensor(data, inds) for data, inds in zip(operands, inputs, strict=True)]
        made = qtn.TensorNetwork(tensors, virtual=True)
        result: Tensor = made.contract(output_inds=output, optimize=path, preserve_tensor=True).data
        return result

    return contract


def _indices(text: str) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    sides, output = text.split("->")
    return [tuple(side) for side in sides.split(",")], tuple(output)


def _sizes(inputs: Sequence[Sequence[str]], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    every = zip(inputs, shapes, strict=True)
    return {index: size for side, shape in every for index, size in zip(side, shape, strict=True)}
