"""The one dense weight that a linear map stands for: what a factorised layer is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

import sympy

from tngraph.language.network import Access, Core, Index, Network, Term
from tngraph.planning.region import depends_on, legs_size


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
    weight has those indices of params, buffers and constants that are also on the input or on the left-hand side. Terms
    that read the same input in the same way and have the same indices share one weight. A term without params and
    buffers (a skip connection) stays as it is.
    """
    (equation, *others) = network.equations or (None,)
    roles, runtime = {core.name: core.role for core in network.cores}, network.runtime_sizes()
    inputs = [core.name for core in network.cores if core.role == "input"]
    if equation is None or others or any(port.name not in (equation.name, *inputs) for port in network.outputs):
        return None
    names = (name for k in count(1) if (name := f"weight{k}") not in network.sources())
    weights: dict[tuple[frozenset[Index], tuple[Access, ...]], Core] = {}
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
        read = (index for access in data for index in access.indices)
        legs = tuple(index for index in dict.fromkeys([*equation.legs, *read]) if index in held)
        if depends_on(legs, runtime):
            return None
        key = frozenset(legs), data
        shared = weights.get(key)
        is_param = "param" in stored or (shared is not None and shared.role == "param")
        name = shared.name if shared is not None else next(names)
        weights[key] = Core(name, legs, "param" if is_param else "buffer")
        terms[key] = Term(1, (*data, Access(name, legs)))
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
