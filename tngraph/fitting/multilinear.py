"""A network as one sum of products of its cores, which is linear in each core: what alternating least squares needs.

Indices are numbers here, so that networks of one structure share their plans whatever their indices are called.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import prod

import sympy
import torch
from torch import Tensor

from tngraph.compiler.pipeline import plan
from tngraph.language.binding import compile_time_sizes
from tngraph.language.network import Access, Core, Equation, Index, Network, Port, Term
from tngraph.language.rewrites import can_inline, drop_unused, inline, merge_chains
from tngraph.language.sizes import evaluate_size
from tngraph.modules.layer import Layer, build
from tngraph.plans.plan import Plan

Indices = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorFactor:
    """A tensor of a product, and the index on each of its axes."""

    source: str
    indices: Indices


@dataclass(frozen=True, slots=True)
class Product:
    """A number times a product of tensors, summed over every index that is not asked for."""

    scale: float
    factors: tuple[TensorFactor, ...]

    @property
    def indices(self) -> frozenset[int]:
        """Every index of the product."""
        return frozenset(index for factor in self.factors for index in factor.indices)

    def without(self, source: str) -> Product:
        """Return the product of the other factors."""
        return Product(self.scale, tuple(factor for factor in self.factors if factor.source != source))

    def renamed(self, numbers: Mapping[int, int]) -> Product:
        """Return the product with other indices."""
        factors = (TensorFactor(f.source, tuple(numbers.get(i, i) for i in f.indices)) for f in self.factors)
        return Product(self.scale, tuple(factors))


@dataclass(frozen=True, slots=True)
class Multilinear:
    """A sum of products of tensors.

    Attributes:
        sizes: the size of every index [elements].
        legs: the indices of the result, in order.
        products: the products that are added up.
        cores: the params that the products read, in order of declaration, and their shapes.
        fixed: the other tensors that the products read (buffers and constants), and their shapes.
    """

    sizes: Indices
    legs: Indices
    products: tuple[Product, ...]
    cores: Mapping[str, Indices]
    fixed: Mapping[str, Core]

    def shape(self, indices: Iterable[int]) -> Indices:
        """Return the sizes of some indices."""
        return tuple(self.sizes[index] for index in indices)

    def factors_of(self, name: str) -> list[TensorFactor]:
        """Return every factor that is a tensor of this name."""
        return [factor for product in self.products for factor in product.factors if factor.source == name]

    def is_linear_in(self, name: str) -> bool:
        """Return whether a core stands at most once in each product, under the same distinct indices."""
        factors = self.factors_of(name)
        once = all(sum(f.source == name for f in product.factors) <= 1 for product in self.products)
        return once and all(f == factors[0] and len(set(f.indices)) == len(f.indices) for f in factors)

    @property
    def is_linear(self) -> bool:
        """True if the sum is linear in every core."""
        return all(self.is_linear_in(name) for name in self.cores)

    def dense(self) -> Contraction:
        """Return the contraction of the whole sum."""
        return contraction(self.sizes, self.products, self.legs)


def as_multilinear(network: Network) -> Multilinear | None:
    """Return the output of a network as one sum of products, or None.

    None stands for a network with inputs, functions, several outputs or legs that are read at positions, or one whose
    sums would become too long when they are multiplied out.
    """
    if network.inputs or len(network.outputs) != 1:
        return None
    merged = merge_chains(drop_unused(network))
    for equation in reversed(merged.equations):
        if can_inline(merged, equation) and all(port.name != equation.name for port in merged.outputs):
            merged = merge_chains(drop_unused(inline(merged, equation)))
    (port,) = merged.outputs
    if len(merged.equations) != 1 or merged.equations[0].name != port.name:
        return None
    (equation,) = merged.equations
    accesses = [access for term in equation.terms for access in term.accesses]
    if equation.function is not None or any(not isinstance(leg, Index) for a in accesses for leg in a.legs):
        return None
    return _number(merged, equation, port)


def _number(network: Network, equation: Equation, port: Port) -> Multilinear:
    """Return the sum of an equation with its indices numbered."""
    numbers = compile_time_sizes(network, {})
    places = {index: k for k, index in enumerate(equation.legs)}
    sizes = [evaluate_size(index.size, numbers) for index in equation.legs]
    products = []
    for term in equation.terms:
        factors = []
        for access in term.accesses:
            legs = [leg for leg in access.legs if isinstance(leg, Index)]
            for index in legs:
                if index not in places:
                    places[index] = len(sizes)
                    sizes.append(evaluate_size(index.size, numbers))
            factors.append(TensorFactor(access.source, tuple(places[index] for index in legs)))
        products.append(Product(float(term.scale), tuple(factors)))
    shapes = {core.name: tuple(evaluate_size(leg.size, numbers) for leg in core.legs) for core in network.cores}
    read = {factor.source for product in products for factor in product.factors}
    cores = {core.name: shapes[core.name] for core in network.cores if core.role == "param" and core.name in read}
    fixed = {core.name: core for core in network.cores if core.role != "param"}
    return Multilinear(tuple(sizes), tuple(places[index] for index in port.legs), tuple(products), cores, fixed)


@dataclass(frozen=True, slots=True)
class Contraction:
    """A planned sum of products of given tensors.

    Attributes:
        names: the tensors that it takes, in order.
        layer: the compiled network.
    """

    names: tuple[str, ...]
    layer: Layer

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the result for these tensors, by name."""
        first = next(iter(tensors.values()))
        operands = [first.new_ones(()) if name == _ONE.source else tensors[name] for name in self.names]
        with torch.no_grad():
            result: Tensor = self.layer(*operands)
        return result

    @property
    def plan(self) -> Plan:
        """The plan by which it is contracted."""
        return self.layer.plan


def contraction(sizes: Sequence[int], products: Sequence[Product], legs: Sequence[int]) -> Contraction:
    """Return the planned contraction of a sum of products.

    Args:
        sizes: the size of every index [elements].
        products: the products to add up.
        legs: the indices of the result.
    """
    products = [product if product.factors else Product(product.scale, (_ONE,)) for product in products]
    names = tuple(dict.fromkeys(factor.source for product in products for factor in product.factors))
    numbers = {name: k for k, name in enumerate(names)}
    mentioned = dict.fromkeys([*legs, *(i for p in products for f in p.factors for i in f.indices)])
    renaming = dict(zip(mentioned, count(), strict=False))
    plain = tuple(
        (p.scale, tuple((numbers[f.source], tuple(renaming[i] for i in f.indices)) for f in p.factors))
        for p in products
    )
    return Contraction(names, _compiled(tuple(sizes[i] for i in mentioned), plain, tuple(renaming[i] for i in legs)))


_ONE = TensorFactor("one", ())
"""The factor of a product of nothing."""
_Numbered = tuple[float, tuple[tuple[int, Indices], ...]]


@lru_cache(maxsize=512)
def _compiled(sizes: Indices, products: tuple[_Numbered, ...], legs: Indices) -> Layer:
    """Return the compiled contraction of products of numbered tensors."""
    index = [Index(f"i{k}", sympy.Integer(size)) for k, size in enumerate(sizes)]
    shapes: dict[int, Indices] = {}
    for _, factors in products:
        for number, indices in factors:
            shapes.setdefault(number, indices)
    inputs = []
    for number in sorted(shapes):
        taken: set[int] = set()
        own = []
        for axis, k in enumerate(shapes[number]):  # an index that stands twice is read on a diagonal
            own.append(index[k] if k not in taken else Index(f"t{number}_{axis}", index[k].size))
            taken.add(k)
        inputs.append(Core(f"t{number}", tuple(own), "input"))
    terms = tuple(
        Term(scale, tuple(Access(f"t{number}", tuple(index[k] for k in indices)) for number, indices in factors))
        for scale, factors in products
    )
    result = Equation("y", tuple(index[k] for k in legs), terms)
    ports = tuple(Port(core.name, tuple((leg,) for leg in core.legs)) for core in inputs)
    output = Port("y", tuple((index[k],) for k in legs))
    network = Network("contraction", (), tuple(inputs), (result,), ports, (output,))
    return build(plan(network, itemsize=8))


def volume(sizes: Sequence[int], indices: Collection[int]) -> int:
    """Return the number of entries of a tensor with some indices [elements]."""
    return prod(sizes[index] for index in indices)
