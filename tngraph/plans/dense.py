"""The one dense weight that a linear map stands for: what a factorised layer is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import sympy

from tngraph.language.legs import depends_on, leg_indices, legs_size
from tngraph.language.network import Access, Core, Index, Leg, Network, Read, Term


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
    (equation, *others) = network.equations or (None,)
    roles, runtime = {core.name: core.role for core in network.cores}, network.runtime_sizes()
    inputs = [core.name for core in network.cores if core.role == "input"]
    if equation is None or others or any(port.name not in (equation.name, *inputs) for port in network.outputs):
        return None
    names = (name for k in count(1) if (name := f"weight{k}") not in network.sources())
    taken = {index.name for index in network.indices()}
    windows = (window for k in count(1) if (window := f"k{k}") not in taken)
    weights: dict[tuple[frozenset[Leg], tuple[Access, ...]], Core] = {}
    terms: dict[object, Term] = {}
    for term in equation.terms:
        data = tuple(access for access in term.accesses if access.source in inputs)
        held = {index for access in term.accesses if access not in data for index in access.indices}
        stored = {roles[access.source] for access in term.accesses} & {"param", "buffer"}
        if len(data) > 1:
            return None
        if not stored:
            terms[term] = term
            continue
        kernels = _find_kernels(term, data, equation.legs)
        held -= set(leg_indices(kernels))
        read = (index for access in data for index in access.indices)
        legs: tuple[Leg, ...] = (
            *(index for index in dict.fromkeys([*equation.legs, *read]) if index in held),
            *kernels,
        )
        if depends_on(legs, runtime):
            return None
        key = frozenset(legs), data
        shared = weights.get(key)
        is_param = "param" in stored or (shared is not None and shared.role == "param")
        name = shared.name if shared is not None else next(names)
        own = (leg if isinstance(leg, Index) else Index(next(windows), leg.leg.size) for leg in legs)
        weight = Core(name, tuple(own) if shared is None else shared.legs, "param" if is_param else "buffer")
        weights[key] = weight
        terms[key] = Term(1, (*data, Access(name, tuple(map(_read_as, legs, weight.legs)))))
    maps = [(access, weight) for (_, data), weight in weights.items() for access in data]
    if not maps:
        return None
    unchanged = [core for core in network.cores if core.role in ("input", "const")]
    dense = replace(equation, terms=tuple(terms.values()))
    return Dense(
        replace(network, cores=(*unchanged, *weights.values()), equations=(dense,)),
        sympy.Add(*(legs_size(weight.legs) for weight in weights.values())),
        sympy.Add(*(legs_size(tuple(dict.fromkeys([*access.indices, *weight.legs]))) for access, weight in maps)),
    )


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
