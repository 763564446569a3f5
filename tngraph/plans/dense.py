"""The one dense weight that a linear map stands for: what a factorised layer is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import sympy

from tngraph.language.legs import depends_on, leg_indices, legs_size
from tngraph.language.network import Access, Core, Equation, Index, Leg, Network, Read, Term


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear map with dense weights.

    Attributes:
        network: the network with dense weights in place of its params.
        params: the entries of the dense weights [elements].
        macs: the multiply-adds of applying them [MAC].
    """

    network: Network
    params: sympy.Expr
    macs: sympy.Expr


def dense_equivalent(network: Network) -> Dense | None:
    """Return the dense weights that a network stands for, or None if it is not one linear map of one input.

    A network is one linear map if it has one equation (with at most an outermost function), outputs no other value, at
    least one term has an input and a weight, no term has two inputs, and no weight has a leg of run-time size. A dense
    weight has those indices of params, buffers and constants that are also on the input or on the left-hand side; the
    kernel of a transposed convolution has a leg of its own (see `_find_kernels`). Terms that read the same input in the
    same way and have the same indices share one weight. A term without params and buffers (a skip connection) stays as
    it is.
    """
    equation = _find_map(network)
    if equation is None:
        return None
    terms = [_split_term(network, term, equation.legs) for term in equation.terms]
    weighted = [term for term in terms if term.is_weighted]
    if any(len(term.data) > 1 for term in terms) or not any(term.data for term in weighted):
        return None
    if any(depends_on(term.legs, network.runtime_sizes()) for term in weighted):
        return None
    weights = _Weights(network)
    dense_terms = {
        term.key if term.is_weighted else term.term: weights.apply(term) if term.is_weighted else term.term
        for term in terms
    }
    unchanged = [core for core in network.cores if core.role in ("input", "const")]
    cores, equations = (*unchanged, *weights.cores.values()), (replace(equation, terms=tuple(dense_terms.values())),)
    volumes = (_volume(access, weight) for (_, data), weight in weights.cores.items() for access in data)
    return Dense(
        replace(network, cores=cores, equations=equations),
        sympy.Add(*(legs_size(weight.legs) for weight in weights.cores.values())),
        sympy.Add(*volumes),
    )


def _volume(access: Access, weight: Core) -> sympy.Expr:
    """Return the multiply-adds of applying a weight to what an access reads [MAC]."""
    return legs_size(tuple(dict.fromkeys([*access.indices, *weight.legs])))


def _find_map(network: Network) -> Equation | None:
    """Return the only equation of a network that outputs nothing else but inputs, or None."""
    inputs = [core.name for core in network.cores if core.role == "input"]
    if len(network.equations) != 1:
        return None
    (equation,) = network.equations
    return equation if all(port.name in (equation.name, *inputs) for port in network.outputs) else None


class _SplitTerm(NamedTuple):
    """A term as a weight that is applied to what it reads of inputs.

    Attributes:
        term: the whole term.
        data: its accesses of inputs.
        roles: the roles of its weights, ``param`` or ``buffer``.
        legs: those of the dense weight.
    """

    term: Term
    data: tuple[Access, ...]
    roles: frozenset[str]
    legs: tuple[Leg, ...]

    @property
    def is_weighted(self) -> bool:
        """True if the term has a param or a buffer."""
        return bool(self.roles)

    @property
    def key(self) -> _Key:
        """The legs and the data that two terms have in common if they share a weight."""
        return frozenset(self.legs), self.data


_Key = tuple[frozenset[Leg], tuple[Access, ...]]


def _split_term(network: Network, term: Term, left: Sequence[Index]) -> _SplitTerm:
    """Return a term of an equation with the legs of its dense weight."""
    role_of = {core.name: core.role for core in network.cores}
    data = tuple(access for access in term.accesses if role_of[access.source] == "input")
    roles = frozenset(role_of[access.source] for access in term.accesses) & {"param", "buffer"}
    kernels = _find_kernels(term, data, left)
    own = {index for access in term.accesses if access not in data for index in access.indices}
    own -= set(leg_indices(kernels))
    read = (index for access in data for index in access.indices)
    return _SplitTerm(
        term, data, roles, (*(index for index in dict.fromkeys([*left, *read]) if index in own), *kernels)
    )


class _Weights:
    """The dense weights of a network, each with a new name, by what their terms have in common."""

    def __init__(self, network: Network) -> None:
        taken = {index.name for index in network.indices()}
        self.cores: dict[_Key, Core] = {}
        self.names = (name for k in count(1) if (name := f"weight{k}") not in network.sources())
        self.windows = (window for k in count(1) if (window := f"k{k}") not in taken)

    def apply(self, term: _SplitTerm) -> Term:
        """Return a term with a dense weight in place of its own weights: that of a term before, or a new one."""
        weight = self.cores.get(term.key)
        if weight is None:
            legs = (leg if isinstance(leg, Index) else Index(next(self.windows), leg.leg.size) for leg in term.legs)
            weight = Core(next(self.names), tuple(legs), "buffer")
        weight = replace(weight, role="param") if "param" in term.roles else weight
        self.cores[term.key] = weight
        return Term(1, (*term.data, Access(weight.name, tuple(map(_read_as, term.legs, weight.legs)))))


def _find_kernels(term: Term, data: Sequence[Access], left: Sequence[Index]) -> tuple[Read, ...]:
    """Return the reads of weights that make a term a transposed convolution.

    Such a read moves along indices of the input and of the result that no other weight has, and its leg is shorter than
    the result. A leg as long as that is a matrix with equal entries, as a Toeplitz matrix.
    """
    legs = [leg for access in term.accesses if access not in data for leg in access.legs]
    counts = Counter(index for leg in legs for index in leg_indices([leg]))
    plain = [leg for access in data for leg in access.legs]
    kernels = []
    for read in legs:
        if isinstance(read, Read) and not read.wrap and all(counts[index] == 1 for index in read.indices):
            results = [index for index in read.indices if index in left]
            inputs = [index for index in read.indices if index in plain]
            is_longer = (read.leg.size - legs_size(results)).is_nonnegative
            if results and len(inputs) + len(results) == len(read.indices) > len(results) and not is_longer:
                kernels.append(read)
    return tuple(kernels)


def _read_as(leg: Leg, own: Index) -> Leg:
    """Return a leg of a weight, or a read of it."""
    return replace(leg, leg=own) if isinstance(leg, Read) else leg
