"""Tiling: which indices the steps of a region can run over in tiles."""

from __future__ import annotations

from tngraph.language.legs import bare_legs
from tngraph.language.network import Access, Index, Network, Read
from tngraph.search.region import Region, Tile


def find_tiled(network: Network, region: Region, is_runtime: bool) -> Index | None:
    """The first index of a region, of run time or of a number, that its steps can run in parts of, if there is one."""
    found = (index for index in region.legs if Tile(index, 1).is_runtime == is_runtime)
    return next((index for index in found if can_tile(network, region, index)), None)


def can_tile(network: Network, region: Region, index: Index) -> bool:
    """Whether parts can be taken along an index.

    One of run time has to stand on an axis of its own wherever it does, one of a number on params and buffers alone.
    """
    if not Tile(index, 1).is_runtime:
        stored = {core.name for core in network.cores if core.role in ("param", "buffer")}
        legs = [(access, leg) for access in region.accesses for leg in access.legs]
        is_read = any(isinstance(leg, Read) and index in leg.indices for _, leg in legs)
        given = [access for access, leg in legs if leg == index]
        return index.size > 1 and not is_read and all(a.source in stored and given.count(a) == 1 for a in given)
    others = [leg for access in region.accesses for leg in bare_legs(access) if leg != index]
    sizes = [s for leg in others for s in ((leg.leg.size, leg.offset) if isinstance(leg, Read) else (leg.size,))]
    is_read = any(isinstance(leg, Read) and index in leg.indices for leg in others)
    is_free = str(index.size) in network.runtime_sizes() and not any(size.has(index.size) for size in sizes)
    given = [access for access in region.accesses if index in access.indices]
    return is_free and not is_read and all(_stands_alone(network, access, index) for access in given)


def _stands_alone(network: Network, access: Access, index: Index) -> bool:
    """Whether parts of an access can be taken along an index: an input's axis, or a leg of an earlier result."""
    if access.legs.count(index) != 1:
        return False
    port = next((port for port in network.inputs if port.name == access.source), None)
    if port is None:
        return any(equation.name == access.source for equation in network.equations)
    leg = network.sources()[access.source].legs[access.legs.index(index)]
    return (leg,) in tuple(tuple(axis) for axis in port.axes)
