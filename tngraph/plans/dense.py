"""The one dense weight that a linear map stands for: what a factorised layer is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

import sympy

from tngraph.kernels.cost import param_count
from tngraph.language.network import Access, Core, Index, Network, Term
from tngraph.planning.region import legs_size


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense weight: entries [elements], and MAC of applying it [MAC]."""

    params: sympy.Expr
    macs: sympy.Expr


def dense_equivalent(network: Network) -> Dense | None:
    """The dense weight of a network that is one linear map of one input; None where it is another (`dense_network`)."""
    made = dense_network(network)
    if made is None:
        return None
    (equation,) = made.equations
    maps = (
        dict.fromkeys(index for access in term.accesses for index in access.indices)
        for term in equation.terms
        if len(term.accesses) > 1
    )
    return Dense(param_count(made), sympy.Add(*(legs_size(tuple(indices)) for indices in maps)))


def dense_network(network: Network) -> Network | None:
    """The network with dense weights in place of its params; None where it is no linear map of one input.

    It is one where there is one equation (a function may stand outermost) and nothing else is put out, at least one
    term has an input and a weight, and none has two inputs. A weight has the indices of params, buffers and constants
    that also stand on the input or on the left; terms with the same indices are one, and a term without any (a skip
    connection) adds none.
    """
    (equation, *others) = network.equations or (None,)
    if equation is None or others or any(port.name != equation.name for port in network.outputs):
        return None
    inputs = {core.name: core for core in network.cores if core.role == "input"}
    names = (name for k in count(1) if (name := f"weight{k}") not in network.sources())
    weights: dict[frozenset[Index], Core] = {}
    terms: dict[object, Term] = {}
    for term in equation.terms:
        data = tuple(access for access in term.accesses if access.source in inputs)
        if len(data) > 1:
            return None
        if len(data) == len(term.accesses):
            terms[term] = term
            continue
        read = {index: None for access in data for index in access.indices}
        held = {index for access in term.accesses if access not in data for index in access.indices}
        legs = tuple(index for index in dict.fromkeys([*equation.legs, *read]) if index in held)
        if frozenset(legs) not in weights:
            weights[frozenset(legs)] = Core(next(names), legs, "param")
        weight = weights[frozenset(legs)]
        terms.setdefault((weight, data), Term(1, (*data, Access(weight.name, weight.legs))))
    if not any(len(term.accesses) > 1 for term in terms.values()):
        return None
    made = replace(equation, terms=tuple(terms.values()))
    return replace(network, cores=(*inputs.values(), *weights.values()), equations=(made,))
