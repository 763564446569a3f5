"""The type of each value under autocast, so that a layer has the type of a dense one.

In mixed precision PyTorch computes matrix products and convolutions in a narrow type, and leaves params wide. The sum
or the entrywise product of both would be wide. A dense layer, which adds its bias inside the product, is narrow. So a
value computed from stored tensors alone is converted to the type of the product that it is combined with. Outside mixed
precision all types are the same, and nothing is converted.

A product of inputs alone may be of another type than the params. No value takes its type or the type of an input.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Literal

from tngraph.language.network import Network
from tngraph.program.expressions import Call, variables
from tngraph.program.kinds import entry_of
from tngraph.program.layout import LaidOut
from tngraph.program.operations import Operation

ValueType = Literal["data", "constant", "weight", "product"]
"""The origin of a value's type: an input or PyTorch's rules, a constant, stored tensors, or a product."""
_STRENGTH: Sequence[ValueType] = ("constant", "weight", "product")
"""Types other than data by precedence: two values together have the type that comes later."""
_ROLES: dict[str, ValueType] = {"input": "data", "const": "constant", "param": "weight", "buffer": "weight"}


def find_types(
    network: Network, operations: Sequence[Operation], folded: Container[int] = frozenset()
) -> tuple[ValueType, ...]:
    """Return the origin of the type of each operation's value.

    Args:
        network: the network whose tensors they read.
        operations: the operations in the order they run; a load of a folded value has no access.
        folded: the operations whose values are stored before the first call, outside mixed precision.
    """
    roles = {core.name: _ROLES[core.role] for core in network.cores}
    types: list[ValueType] = []
    for number, op in enumerate(operations):
        operands = [types[k] for k in op.operands]
        if number in folded or (op.kind == "load" and op.access is None):
            types.append("weight")
        elif op.access is not None and not operands:
            types.append(roles[op.access.source])
        elif entry_of(op).is_matrix_product:
            types.append("product" if {"weight", "product"} & {*operands} else "data")
        else:
            types.append("data" if "data" in operands else max(operands, key=_STRENGTH.index))
    return tuple(types)


def take_type_of_product(operands: Sequence[LaidOut], types: Sequence[ValueType]) -> list[LaidOut]:
    """Return two operands, of which one computed from stored tensors has the type of the other if that is a product."""
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
