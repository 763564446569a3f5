"""Families that are maps with activations inside, not weights: their result is not linear in the input."""

from __future__ import annotations

import sympy

from tngraph.errors import NetworkError
from tngraph.language.families.weight import Activation, Legs, Ranks, Weight
from tngraph.language.handles import Expression, Factor, Position, access


def ntt(w: Weight, bond: Ranks = sympy.Integer(8), activation: Activation = "relu") -> Expression:
    """Nonlinear tensor train: a matrix product operator swept over the input, with activations between its cores.

        x -(g1)- relu -(g2)- relu -(g3)- y              y[batch, o1, o2, o3] = ntt(x, bond=8)

    The order of the cores is part of the function. A convolution's window is one more core at the end of the sweep;
    what it reads outside the feature map is zero. A core starts with the variance 1/fan-in: over what it sums at once.

    Args:
        bond: the bond dimension, one for all bonds or one each.
        activation: between the cores.

    Source: Wang et al., Neural Networks 144 (2021).
    """
    if w.source is None:
        raise NetworkError(
            "ntt is not a weight: it has activations inside", "apply it to a tensor: y[batch, o1, o2] = ntt(x)", w.name
        )
    w.check_groups()
    sites = w.sites()
    ranks = w.ranks(bond, len(sites) - 1)
    bonds: list[Legs] = [(), *((w.index(f"b{k}", rank),) for k, rank in enumerate(ranks, 1)), ()]
    reads = _windows(w, w.source)
    waiting = {position: leg for leg, position in reads.items()}
    legs = tuple(waiting.get(position, position) for position in w.source.positions)
    state = access(w.source.source, legs)
    remaining = tuple(dict.fromkeys(Position.of(name) for leg in legs for _, name in leg.terms))
    for k, (left, site, right) in enumerate(zip(bonds[:-1], sites, bonds[1:], strict=True), 1):
        summed = left + tuple(leg for leg in site if leg not in w.columns)
        core = w.param(f"g{k}", *left, *site, *right, init=("fan_in", w.volume(summed)))
        if k < len(sites):
            remaining = tuple(dict.fromkeys(leg for leg in (*remaining, *site, *right) if leg not in summed))
            state = w.equation(f"h{k}", remaining, state * core, activation)
    if reads:
        state = access(f"{w.name}.h{len(sites) - 1}", tuple(reads.get(leg, leg) for leg in remaining))
    return state * core


def _windows(w: Weight, source: Factor) -> dict[Position, Position]:
    """Make an index for every leg that the window slides along, with the position read at the end of the sweep."""
    own = w.builder.tensors[source.source].legs
    slid = [
        (leg.size, position)
        for leg, position in zip(own, source.positions, strict=True)
        if any(position.coefficient(str(index.plain)) for index in w.kernel)
    ]
    return {w.index(f"x{k}", size): position for k, (size, position) in enumerate(slid, 1)}
