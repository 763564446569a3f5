"""What a network means, in PyTorch on raw positions: gather, multiply, sum.

Only the values of `tngraph.language.network` are read, and none of its code is run: sizes are evaluated by sympy,
gradients are those of autograd. A term is written out over all of its indices at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import sympy
import torch
from torch import Tensor
from torch.nn import functional

from tngraph.language.network import Access, Core, Equation, Index, Network, Port, Read, Term

FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "square": torch.square,
    "sin": torch.sin,
    "cos": torch.cos,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
}


class Meaning:
    """A network at numbers for all of its sizes.

    Attributes:
        network: the network.
        numbers: an integer for every named size that is not defined by others.
    """

    def __init__(self, network: Network, numbers: Mapping[str, int]) -> None:
        self.network = network
        self.values = {size.symbol: sympy.Integer(numbers[size.name]) for size in network.sizes if size.name in numbers}
        for size in network.sizes:
            if size.name not in numbers:
                self.values[size.symbol] = sympy.Integer(self.number(size.value))

    def number(self, size: sympy.Expr) -> int:
        """The value of a size."""
        return int(size.xreplace(self.values))

    def shape(self, legs: Sequence[Index]) -> tuple[int, ...]:
        """The sizes of some legs."""
        return tuple(self.number(leg.size) for leg in legs)

    def port_shape(self, port: Port) -> tuple[int, ...]:
        """The shape of an argument or a result."""
        return tuple(prod(self.shape(axis)) for axis in port.axes)

    def is_possible(self) -> bool:
        """Whether every index has a size of at least 1."""
        return all(self.number(index.size) >= 1 for index in self.network.indices())

    def work(self) -> int:
        """The entries of the largest term written out."""
        terms = [(term, equation) for equation in self.network.equations for term in equation.terms]
        return max((prod(self.shape(_indices(*pair))) for pair in terms), default=1)

    def evaluate(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The results.

        Args:
            tensors: one per input as ``forward`` takes it, param and buffer.
        """
        dtype = next((tensor.dtype for tensor in tensors.values()), torch.float64)
        values: dict[str, Tensor] = {}
        for core in self.network.cores:
            value = self._const(core, dtype) if core.role == "const" else tensors[core.name]
            values[core.name] = value.reshape(self.shape(core.legs))
        for equation in self.network.equations:
            values[equation.name] = self._equation(equation, values, dtype)
        return tuple(self._put_out(port, values[port.name]) for port in self.network.outputs)

    def _put_out(self, port: Port, value: Tensor) -> Tensor:
        legs = [leg.name for leg in self.network.sources()[port.name].legs]
        return value.permute([legs.index(leg.name) for leg in port.legs]).reshape(self.port_shape(port))

    def _const(self, core: Core, dtype: torch.dtype) -> Tensor:
        assert core.init is not None
        shape = self.shape(core.legs)
        grid = [
            torch.arange(size).reshape([-1 if j == k else 1 for j in range(len(shape))]) for k, size in enumerate(shape)
        ]
        if core.init.kind == "ones" or not grid:
            return torch.ones(shape, dtype=dtype)
        wanted = int(core.init.args[0]) if core.init.kind == "basis" else grid[0]
        inside = torch.ones(shape, dtype=torch.bool)
        for positions in grid:
            inside = inside & (positions == wanted)
        return inside.to(dtype)

    def _equation(self, equation: Equation, values: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        total = torch.zeros(self.shape(equation.legs), dtype=dtype)
        for term in equation.terms:
            total = total + self._term(term, equation, values, dtype)
        if equation.function is None:
            return total
        return FUNCTIONS[equation.function.name](total, *equation.function.args)

    def _term(self, term: Term, equation: Equation, values: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The product over the whole grid of all indices, those on the left first, and the sum over the others."""
        indices = _indices(term, equation)
        shape = self.shape(indices)
        grid = {
            index.name: torch.arange(shape[k]).reshape([-1 if j == k else 1 for j in range(len(shape))])
            for k, index in enumerate(indices)
        }
        result = torch.full(shape, term.scale, dtype=dtype)
        for access in term.accesses:
            result = result * self._read(access, values[access.source], grid)
        return result.reshape(*shape[: len(equation.legs)], -1).sum(-1)

    def _read(self, access: Access, source: Tensor, grid: Mapping[str, Tensor]) -> Tensor:
        """The entries of a source at all points of a grid; zero where they are outside."""
        flat, inside = torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool)
        for leg, size in zip(access.legs, source.shape, strict=True):
            position = grid[leg.name] if isinstance(leg, Index) else self._position(leg, size, grid)
            inside = inside & (position >= 0) & (position < size)
            flat = flat * size + position.clamp(0, size - 1)
        entries = source.reshape(-1)[flat]
        return torch.where(inside, entries, torch.zeros((), dtype=source.dtype))

    def _position(self, leg: Read, size: int, grid: Mapping[str, Tensor]) -> Tensor:
        position = torch.tensor(self.number(sympy.sympify(leg.offset)))
        for coefficient, index in leg.terms:
            position = position + coefficient * grid[index.name]
        return position.remainder(size) if leg.wrap else position


def _indices(term: Term, equation: Equation) -> list[Index]:
    """The indices on the left, then the others of a term."""
    return [*dict.fromkeys([*equation.legs, *(index for access in term.accesses for index in access.indices)])]
