"""Which values follow the type of the matrix products, so that a layer has the type of a dense one under autocast.

In mixed precision PyTorch computes matrix products and convolutions in a narrow type, and leaves params wide. The sum
or the entrywise product of both would be wide: a dense layer, which adds its bias inside the product, is narrow. So
what is made of stored tensors alone takes the type of the product that it meets. Elsewhere all types are one, and
nothing is converted.

A product of inputs alone may be of another type than the params. Nothing takes its type, nor that of an input.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Literal

from tngraph.kernels.expressions import Call, Expression, variables
from tngraph.kernels.layout import Axes, Tensor, arrange
from tngraph.kernels.schedule import Operation
from tngraph.language.network import Network

ValueType = Literal["data", "constant", "weight", "product"]
"""What the type of a value follows from: an input or PyTorch's rules, a constant, stored tensors, or a product."""
_STRENGTH: Sequence[ValueType] = ("constant", "weight", "product")
"""The types of two values of which none is data, the one that both together have last."""
_ROLES: dict[str, ValueType] = {"input": "data", "const": "constant", "param": "weight", "buffer": "weight"}


def find_types(
    network: Network, operations: Sequence[Operation], folded: Container[int] = frozenset()
) -> tuple[ValueType, ...]:
    """Return what the type of each operation's value follows from.

    Args:
        network: whose tensors they read.
        operations: in the order they run; one that reads what is folded has no access.
        folded: the operations whose values are stored before the first call, outside of mixed precision.
    """
    roles = {core.name: _ROLES[core.role] for core in network.cores}
    types: list[ValueType] = []
    for number, op in enumerate(operations):
        operands = [types[k] for k in op.operands]
        if number in folded or (op.kind == "load" and op.access is None):
            types.append("weight")
        elif op.access is not None and not operands:
            types.append(roles[op.access.source])
        elif op.kind in ("contract", "conv"):
            types.append("product" if {"weight", "product"} & {*operands} else "data")
        else:
            types.append("data" if "data" in operands else max(operands, key=_STRENGTH.index))
    return tuple(types)


def take_type_of_product(operands: Sequence[Tensor], types: Sequence[ValueType]) -> list[Tensor]:
    """Return two operands, the one that is made of stored tensors in the type of the other if that is a product."""
    product = next((tensor for tensor, kind in zip(operands, types, strict=True) if kind == "product"), None)
    if product is None:
        return list(operands)
    like = next(variables(product.code))
    return [
        replace(tensor, code=Call("type_as", (tensor.code, like), (), tensor.code.shape))
        if kind in ("constant", "weight")
        else tensor
        for tensor, kind in zip(operands, types, strict=True)
    ]


def arrange_then_convert(tensor: Tensor, axes: Axes) -> Expression:
    """Return `arrange`, where what takes the type of another value takes it last: what is below may be folded."""
    code = tensor.code
    if not isinstance(code, Call) or code.function != "type_as":
        return arrange(tensor, axes)
    arranged = arrange(replace(tensor, code=code.operands[0]), axes)
    return replace(code, operands=(arranged, code.operands[1]), shape=arranged.shape)
