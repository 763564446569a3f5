"""The one dense weight that a linear map stands for: what a factorised layer is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

import sympy

from tngraph.language.network import Access, Core, Index, Network, Term
from tngraph.planning.region import depends_on, legs_size


@dataclass(frozen=True, slots=True)
class Dense:
    """What a linear map is with dense weights.

    Attributes:
        network: with these in place of its params.
        params: their entries [elements].
        macs: of applying them [MAC].
    """

    network: Network
    params: sympy.Expr
    macs: sympy.Expr


def dense_equivalent(network: Network) -> Dense | None:
    """The dense weights of a network that is one linear map of one input; None where it is another.

    It is one where there is one equation (a function may stand outermost), no other value is put out, at least one term
    has an input and a weight, none has two inputs, and no weight has a leg of run-time size. A weight has the indices
    of params, buffers and constants that also stand on the input or on the left. Terms that read the same input alike
    and have the same indices are one; one without params and buffers (a skip connection) stays as it is.
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
        known = weights.get(key)
        is_param = "param" in stored or (known is not None and known.role == "param")
        name = known.name if known is not None else next(names)
        weights[key] = Core(name, legs, "param" if is_param else "buffer")
        terms[key] = Term(1, (*data, Access(name, legs)))
    maps = [(access, weight) for (_, data), weight in weights.items() for access in data]
    if not maps:
        return None
    kept = [core for core in network.cores if core.role in ("input", "const")]
    made = replace(equation, terms=tuple(terms.values()))
    return Dense(
        replace(network, cores=(*kept, *weights.values()), equations=(made,)),
        sympy.Add(*(legs_size(weight.legs) for weight in weights.values())),
        sympy.Add(*(legs_size(tuple(dict.fromkeys([*access.indices, *weight.legs]))) for access, weight in maps)),
    )
