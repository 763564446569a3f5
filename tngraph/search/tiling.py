"""Tiling: the indices that the steps of a region can run over in tiles."""

from __future__ import annotations

from tngraph.language.legs import bare_legs
from tngraph.language.network import Access, Index, Network, Read
from tngraph.search.region import Region, Tile


def find_runtime_index(network: Network, region: Region) -> Index | None:
    """Return the first run-time index of a region that its steps can run over in tiles, or None if there is none."""
    return next((index for index in region.legs if can_tile_runtime(network, region, index)), None)


def find_weight_index(network: Network, region: Region) -> Index | None:
    """Return the first weight index of a region that its steps can run over in tiles, or None if there is none."""
    return next((index for index in region.legs if can_tile_weight(network, region, index)), None)


def can_tile_runtime(network: Network, region: Region, index: Index) -> bool:
    """Return whether an index has a run-time size of its own, and every tensor that has it can be cut along it."""
    if not Tile(index, 1).is_runtime or str(index.size) not in network.runtime_sizes():
        return False
    others = [leg for access in region.accesses for leg in bare_legs(access) if leg != index]
    sizes = [s for leg in others for s in ((leg.leg.size, leg.offset) if isinstance(leg, Read) else (leg.size,))]
    if _is_read(index, region) or any(size.has(index.size) for size in sizes):
        return False
    return all(_can_cut(network, access, index) for access in region.accesses if index in access.indices)


def can_tile_weight(network: Network, region: Region, index: Index) -> bool:
    """Return whether the size of an index is a number, and only params and buffers have the index, each on one leg."""
    if Tile(index, 1).is_runtime or index.size <= 1 or _is_read(index, region):
        return False
    weights = {core.name for core in network.cores if core.role in ("param", "buffer")}
    holders = [access for access in region.accesses if index in access.legs]
    return all(access.source in weights and access.legs.count(index) == 1 for access in holders)


def _is_read(index: Index, region: Region) -> bool:
    """Return whether an access is read at positions that depend on an index."""
    legs = (leg for access in region.accesses for leg in bare_legs(access))
    return any(isinstance(leg, Read) and index in leg.indices for leg in legs)


def _can_cut(network: Network, access: Access, index: Index) -> bool:
    """Return whether an access can be cut along an index: a leg of an earlier result, or an input's whole axis."""
    if access.legs.count(index) != 1:
        return False
    port = next((port for port in network.inputs if port.name == access.source), None)
    if port is None:
        return any(equation.name == access.source for equation in network.equations)
    leg = network.sources()[access.source].legs[access.legs.index(index)]
    return (leg,) in tuple(tuple(axis) for axis in port.axes)
