"""A bound below the cost of every order, which ends a search that meets it and proves the order.

Every leaf enters one step, which multiplies at least as many entries as the leaf has; a step that joins two leaves
multiplies those of their product. So each leaf may be given a share of the cost, such that a step never costs less than
the shares of the leaves that it joins: their sum is a bound. Shares are given to the largest leaves first.

A step with a gradient to an operand costs its multiplications once more. Where every leaf is trained, both operands
take one. A fixed leaf has no share, since the steps that join it may be folded. A leaf of one entry
has no share either.
"""

from __future__ import annotations

from math import prod

from tngraph.search.objectives import Weighted
from tngraph.search.region import Topology

MOST_PAIRS = 2**18
"""Where more pairs of leaves than this share an index, no bound is computed."""


def least_cost(topology: Topology) -> int:
    """Return a cost that no order is below; 0 if no bound is known: with unresolved reads, or for time."""
    rate, pricing = topology.pricing.rate, topology.pricing
    pairs = sum(holders.bit_count() ** 2 for holders in topology.holders)
    if not isinstance(rate, Weighted) or topology.reads or pairs > MOST_PAIRS or len(topology.leaves) < 2:
        return 0
    sizes = [topology.size(leaf) for leaf in topology.leaves]
    trained = [pricing.trained >> k & 1 for k in range(len(sizes))]
    everywhere = int(all(trained))
    shares: dict[int, int] = {}
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k] * (1 + trained[k])):
        if sizes[k] == 1 or pricing.fixed >> k & 1:
            continue
        share = sizes[k] * (1 + trained[k] + everywhere)
        for other in _neighbours(topology, k) & shares.keys():
            both = {*topology.leaves[k].plain, *topology.leaves[other].plain}
            volume = prod(topology.sizes[i] for i in both)
            share = min(share, volume * (1 + trained[k] + trained[other]) - shares[other])
        shares[k] = share
    return rate.operations * sum(shares.values())


def _neighbours(topology: Topology, k: int) -> set[int]:
    """Return the leaves that share an index with one."""
    near = 0
    for i in topology.leaves[k].plain:
        near |= topology.holders[i]
    near &= ~(1 << k)
    neighbours = set()
    while near:
        neighbours.add((near & -near).bit_length() - 1)
        near &= near - 1
    return neighbours
