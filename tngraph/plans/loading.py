"""A plan from a file. The file is not trusted.

The network is parsed as any text is, and merged again. The trees are made again move by move, and layouts, gradients
and tiles are checked against them. So a plan that loads computes what its network says, whoever wrote the file. Only
the request, and whether a tree was proven or pinned, are taken on trust.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

from tngraph.errors import PlanError, TngraphError
from tngraph.files import explain, read_bytes
from tngraph.language.binding import check_sizes
from tngraph.language.legs import bare_legs
from tngraph.language.network import Index, Leg, Network, Read
from tngraph.language.rewrites import merge
from tngraph.language.sizes import LARGEST
from tngraph.language.sizing import given_sizes, number_sizes
from tngraph.language.text.parsing import parse
from tngraph.plans.assembly import Assembly, Cleaned, clean_equations
from tngraph.plans.plan import Plan
from tngraph.plans.regime import Regime
from tngraph.plans.saving import digest
from tngraph.plans.schema import (
    Decisions,
    GradientFields,
    MatmulFields,
    PlanFields,
    RegimeFields,
    RequestFields,
    TileFields,
    TreeFields,
    decode_plan,
)
from tngraph.plans.table import format_leg
from tngraph.search.gradients import can_differentiate, is_elementwise, other_operand
from tngraph.search.layouts import can_lay_out, is_possible, is_product
from tngraph.search.machine import Machine
from tngraph.search.matmul import arranged_axes
from tngraph.search.objectives import Mode, Objective, Request, Weighted, make_request
from tngraph.search.regimes import RegimeTrees
from tngraph.search.region import ContractionTree, Gradient, MatmulLayout, Tile, Topology
from tngraph.search.replay import Move, Replay, ReplayError
from tngraph.search.tiling import can_tile_runtime, can_tile_weight

LONGEST_PLAN = 2**26
"""The longest file of a plan [bytes]."""
LONGEST_ERROR = 4000
"""A longer error, which may quote the file, is cut [characters]."""
MOST_REGIMES = 1000
"""The most regimes of a plan in a file."""


def load_plan(path: str | Path) -> Plan:
    """Return the plan of a file that `Plan.save` wrote, equal to the one that was saved.

    Raises:
        PlanError: the file cannot be read, is not a plan, is damaged, or is of another version.
    """
    try:
        data = read_bytes(path, LONGEST_PLAN)
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: {explain(error)}\n  give the path of a saved plan") from None
    return parse_plan(data, str(path))


def is_plan_file(data: bytes) -> bool:
    """Return whether a file looks like a plan and not like a spec."""
    return data[:100].lstrip().startswith(b"{")


def parse_plan(data: bytes, file: str = "<text>") -> Plan:
    """Return the plan of a file's content.

    Args:
        data: the content.
        file: what errors call it.

    Raises:
        PlanError: see `load_plan`.
    """
    try:
        if len(data) > LONGEST_PLAN:
            raise PlanError(f"the file is longer than {LONGEST_PLAN:,} bytes")
        return _read_plan(decode_plan(data))
    except TngraphError as error:
        text = str(error)
        raise PlanError(f"{file}: {text if len(text) <= LONGEST_ERROR else text[:LONGEST_ERROR] + ' …'}") from None


def _read_plan(fields: PlanFields) -> Plan:
    """Return the plan of a file's fields."""
    network = _read_network(fields)
    request = _read_request(network, fields.request)
    numbers = _read_sizes(network, fields.sizes)
    plan = _read_decisions(network, request, numbers, fields.plan)
    other = fields.unpinned
    unpinned = None if other is None else _read_decisions(network, request, numbers, other)
    return replace(plan, unpinned=unpinned, measured=tuple(fields.measured))


def _read_network(fields: PlanFields) -> Network:
    if digest(fields.network) != fields.sha256:
        raise PlanError("the network is not the one that was saved: its sha256 is another")
    try:
        return parse(fields.network, file="network")
    except TngraphError as error:
        raise PlanError(f"the network cannot be read\n{error}") from None


def _read_request(network: Network, fields: RequestFields) -> Request:
    can_train = dict.fromkeys((core.name for core in network.cores if core.role != "const"), False)
    is_trained = {**can_train, **dict.fromkeys(fields.trained, True)}
    minimize = _read_minimize(fields.minimize)
    limits = fields.memory_limit, fields.largest
    request = make_request(network, cast(Mode, fields.mode), minimize, is_trained, fields.itemsize, *limits)
    return replace(request, minimize=minimize, most_folded=fields.most_folded)


def _read_minimize(minimize: str | dict[str, Any]) -> Objective:
    """Return an objective: a name, weights of names, or a machine."""
    if isinstance(minimize, str) or minimize.keys() != {"machine"}:
        return minimize
    numbers = minimize["machine"]
    if not isinstance(numbers, dict) or numbers.keys() != asdict(Machine()).keys():
        raise PlanError(f"the machine has not exactly the numbers {', '.join(asdict(Machine()))}")
    for name, number in numbers.items():
        if type(number) not in (int, float) or not 0 < number < LARGEST:
            raise PlanError(f"the {name!r} of the machine is {_shown(number)}, and not a positive number")
    return Machine(**numbers)


def _read_sizes(network: Network, numbers: Mapping[str, int]) -> dict[str, int]:
    names = [size.name for size in network.sizes]
    if set(names) != numbers.keys():
        raise PlanError(f"the sizes are {_listed(list(numbers))}, and those of the network {_listed(names)}")
    for name, number in numbers.items():
        if type(number) is not int or not 1 <= number <= LARGEST:
            raise PlanError(f"the size {name!r} is {_shown(number)}, and not a positive integer")
    derived = number_sizes(network, given_sizes(network, numbers))
    for name in names:
        if derived[name] != numbers[name]:
            raise PlanError(
                f"the size {name!r} is {numbers[name]:,}, and derived from the others it is {derived[name]:,}"
            )
    check_sizes(network, numbers)
    return {name: numbers[name] for name in names}


def _read_decisions(network: Network, request: Request, numbers: Mapping[str, int], fields: Decisions) -> Plan:
    """Return the plan of some decisions for a network."""
    merged = merge(network, fields.inlined)
    equations = clean_equations(merged, merged.equations)
    free = tuple(fields.free)
    if list(free) != [name for name in network.runtime_sizes() if name in free]:
        raise PlanError(f"the free sizes are {_shown(', '.join(free))}, and not run-time sizes in their order")
    _check_ranges(fields.regimes, free, request)
    topologies = [[Topology(region, numbers) for region in equation.regions] for equation in equations]
    ranges = [
        _read_regime(regime, f"regime {number}", equations, topologies)
        for number, regime in enumerate(fields.regimes, 1)
    ]
    for tree in {id(tree): tree for _, _, trees in ranges for tree in trees}.values():
        _check_tile(tree, merged, request)
    plan = Assembly(network, merged, equations, numbers, request).plan(ranges, free)
    regimes = [
        _recompute(regime, own.recomputed, f"regime {number}")
        for number, (regime, own) in enumerate(zip(plan.regimes, fields.regimes, strict=True), 1)
    ]
    return replace(plan, regimes=tuple(regimes))


def _check_ranges(regimes: Sequence[RegimeFields], free: Sequence[str], request: Request) -> None:
    """Refuse regimes among which it is not clear which one runs."""
    if not 1 <= len(regimes) <= (MOST_REGIMES if free else 1):
        raise PlanError(
            f"the plan has {len(regimes):,} regimes\n  it has 1, and up to {MOST_REGIMES:,} with a free size"
        )
    next_low: int | None = 1
    for number, regime in enumerate(regimes, 1):
        low, high = regime.first, regime.last
        is_last = number == len(regimes) or len(free) != 1
        if low != next_low or (high is None) != is_last or (high is not None and high < low):
            raise PlanError(f"regime {number} is from {low} to {high}, which does not continue the one before")
        next_low = 1 if high is None else high + 1
    if len(free) > 1 and len(regimes) > 1 and not isinstance(request.rate, Weighted):
        raise PlanError(
            "regimes of several free sizes are compared by their cost, which this request has no formula for"
        )


def _read_regime(
    fields: RegimeFields, where: str, equations: Sequence[Cleaned], topologies: Sequence[Sequence[Topology]]
) -> RegimeTrees:
    """Return the range of a regime, with a tree for every region of all equations."""
    names, own = [cleaned.equation.name for cleaned in equations], [equation.name for equation in fields.equations]
    if own != names:
        raise PlanError(f"{where} has the equations {_listed(own)}, and its network {_listed(names)}")
    trees: list[ContractionTree] = []
    for equation, regions in zip(fields.equations, topologies, strict=True):
        if len(equation.terms) != len(regions):
            raise PlanError(
                f"{where} has {len(equation.terms)} trees for the {len(regions)} terms of {equation.name!r}"
            )
        for number, (tree, topology) in enumerate(zip(equation.terms, regions, strict=True), 1):
            trees.append(_read_tree(tree, f"{where}, {equation.name!r}, term {number}", topology))
    return fields.first, fields.last, tuple(trees)


def _read_tree(fields: TreeFields, where: str, topology: Topology) -> ContractionTree:
    """Return the tree of a region, made by the moves in a file."""
    tree = _replay(fields.moves, _slice(topology, fields.sliced, where), where)
    tree = replace(tree, is_proven=fields.is_proven, is_pinned=fields.is_pinned)
    matmuls, tile = _read_matmuls(fields.matmuls, where, tree), _read_tile(fields.tile, where, tree)
    tree = replace(tree, matmuls=matmuls, tile=tile)
    return replace(tree, gradients=_read_gradients(fields.gradients, where, tree))


def _slice(topology: Topology, names: Sequence[str], where: str) -> Topology:
    """Return the region at one value of the indices of these names."""
    if not names:
        return topology
    legs = [leg for access in topology.region.accesses for leg in bare_legs(access)]
    read = {index for leg in legs if isinstance(leg, Read) for index in leg.indices}
    plain = {leg.name: leg for leg in legs if isinstance(leg, Index) and leg not in read}
    for name in names:
        if name not in plain or names.count(name) > 1:
            raise PlanError(f"{where} runs for each value of {_shown(name)}, which cannot be cut there")
    return Topology(topology.region, topology.named, sliced=tuple(plain[name] for name in names))


def _replay(moves: Sequence[Move], topology: Topology, where: str) -> ContractionTree:
    replay = Replay(topology)
    for number, move in enumerate(moves, 1):
        try:
            replay.make(move)
        except ReplayError as error:
            raise PlanError(f"{where}, move {number} {error}") from None
    try:
        return replay.finish(is_proven=False)
    except ReplayError as error:
        raise PlanError(f"{where} {error}") from None


def _read_matmuls(fields: Sequence[MatmulFields], where: str, tree: ContractionTree) -> tuple[MatmulLayout, ...]:
    """Return the matmul layouts of the steps, each on the legs that its step has."""
    if fields and (len(fields) != len(tree.steps) or not can_lay_out(tree)):
        raise PlanError(
            f"{where} has {len(fields)} matmul layouts for {len(tree.steps)} steps, which take none or one each"
        )
    matmuls: list[MatmulLayout] = []
    for number, (matmul, step) in enumerate(zip(fields, tree.steps, strict=False), 1):
        at = f"{where}, matmul {number}"
        matmuls.append(_read_matmul(matmul, at, [leg for o in step.operands for leg in tree.legs_of(o)]))
        _check_legs(matmuls[-1], at, step.legs)
    laid_out = replace(tree, matmuls=tuple(matmuls))
    for number in range(len(matmuls)):
        if not is_possible(laid_out, number):
            raise PlanError(f"{where}, matmul {number + 1} is not a matrix product of what its step takes")
    return laid_out.matmuls


def _read_matmul(fields: MatmulFields, where: str, legs: Sequence[Leg]) -> MatmulLayout:
    """Return a matmul layout on some legs."""
    leg_of = {format_leg(leg): leg for leg in legs}
    groups = fields.outer, fields.rows, fields.columns, fields.summed
    for name in (name for group in groups for name in group):
        if name not in leg_of:
            raise PlanError(f"{where} has the leg {_shown(name)}, which its operands do not have")
    outer, rows, columns, summed = (tuple(leg_of[name] for name in group) for group in groups)
    return MatmulLayout(outer, rows, columns, summed, fields.transposed)


def _check_legs(matmul: MatmulLayout, where: str, legs: Sequence[Leg]) -> None:
    """Refuse a matmul layout whose result has other legs than these."""
    own, wanted = [format_leg(leg) for leg in matmul.legs], [format_leg(leg) for leg in legs]
    if sorted(own) != sorted(wanted):
        raise PlanError(f"{where} has the legs {_listed(own)}, where its step has {_listed(wanted)}")


def _read_gradients(fields: Sequence[GradientFields], where: str, tree: ContractionTree) -> tuple[Gradient, ...]:
    """Return the gradients of a tree: one for every operand of every step, or none."""
    operands = [(step, operand) for step in reversed(range(len(tree.steps))) for operand in tree.steps[step].operands]
    if fields and (len(fields) != len(operands) or not can_differentiate(tree)):
        raise PlanError(
            f"{where} has {len(fields)} gradients for the operands of its steps, which take none or one each"
        )
    return tuple(
        _read_gradient(gradient, f"{where}, the gradient of value {operand}", tree, step, operand)
        for (step, operand), gradient in zip(operands, fields, strict=False)
    )


def _read_gradient(fields: GradientFields, where: str, tree: ContractionTree, step: int, operand: int) -> Gradient:
    """Return the gradient of an operand of a step, after checking that its matmul layout is that product."""
    other = other_operand(tree.steps[step].operands, operand)
    above, beside = tree.legs_of(len(tree.region.accesses) + step), tree.legs_of(other)
    own, matmul = tree.legs_of(operand), _read_matmul(fields.matmul, where, [*above, *beside])
    summed = (leg for leg in above if fields.added and leg in beside and leg not in own)
    added = tuple(leg for leg in summed if leg in matmul.outer)
    _check_legs(matmul, where, (*own, *added))
    if fields.added and not (added and {*added} == {*matmul.outer}):
        raise PlanError(f"{where} adds up products along legs that are not summed")
    is_fitting = not matmul.is_matrix if is_elementwise(tree, step, operand) else is_product(matmul, above, beside)
    if not is_fitting:
        raise PlanError(f"{where} is not a product of the gradient of its step's result and the other operand")
    if fields.arranged and not arranged_axes(tree, step, other):
        raise PlanError(f"{where} reads a copied value that its step does not copy")
    return Gradient(step, operand, matmul, fields.arranged, matmul.outer if added else ())


def _read_tile(fields: TileFields | None, where: str, tree: ContractionTree) -> Tile | None:
    if fields is None:
        return None
    index = next((leg for leg in tree.region.legs if leg.name == fields.index), None)
    if index is None or not tree.steps or tree.sliced:
        raise PlanError(f"{where} runs in tiles of {_shown(fields.index)}, which cannot be cut there")
    return Tile(index, fields.size)


def _check_tile(tree: ContractionTree, merged: Network, request: Request) -> None:
    """Refuse a tile of an index that the network or the mode does not allow to be tiled."""
    if tree.tile is None:
        return
    index, size = tree.tile.index, tree.tile.size
    if not tree.tile.is_runtime and (request.mode == "serve" or size >= index.size):
        raise PlanError(f"tiles of {size} of {index.name!r} are not possible in mode {request.mode!r}")
    can_tile = can_tile_runtime if tree.tile.is_runtime else can_tile_weight
    if not can_tile(merged, tree.region, index):
        raise PlanError(f"{index.name!r} cannot be tiled: not every tensor that has it can be cut along it")


def _recompute(regime: Regime, intervals: Sequence[tuple[int, int]], where: str) -> Regime:
    """Return a regime in which operations run once more: in training, and if only the last of their values is used."""
    if not intervals:
        return regime
    in_blocks = {k for block in regime.schedule.blocks for k in range(block.first, block.last + 1)}
    after = -1
    for first, last in intervals:
        if regime.request.mode != "train" or not after < first < last < len(regime.operations):
            raise PlanError(f"{where} computes {first}, {last} once more, which are not the ends of operations")
        if _leaves_inside(regime, first, last) or not in_blocks.isdisjoint(range(first, last + 1)):
            raise PlanError(f"{where} computes {first}, {last} once more, and values of these are used elsewhere")
        after = last
    return replace(regime, recomputed=tuple(intervals))


def _leaves_inside(regime: Regime, first: int, last: int) -> bool:
    """Return whether a load is at an end, or another value than the last is used after it."""
    inner = [k for k in range(first, last) if regime.operations[k].kind != "load"]
    ends = {regime.operations[first].kind, regime.operations[last].kind}
    return "load" in ends or any(k in regime.outputs or max(regime.users(k), default=k) > last for k in inner)


def _shown(value: object) -> str:
    return shorten(repr(value), 80, placeholder=" …")


def _listed(names: Sequence[str]) -> str:
    return shorten(", ".join(names), 200, placeholder=" …")
