"""A plan from a file, which is not believed.

The network is read as any text is, and merged anew; the trees are made again move by move. What the file says of a step
is compared with what the step is. So a plan that loads computes what its network says, whoever wrote the file: all that
is taken on trust is that a tree was proven, or pinned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn

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
from tngraph.plans.plan import Measured, Plan, Regime
from tngraph.plans.saving import FORMAT, VERSION, Fields, digest, show_accesses, show_step
from tngraph.plans.table import format_leg
from tngraph.search.gradients import can_differentiate, is_elementwise, other_operand
from tngraph.search.layouts import can_lay_out, is_possible, is_product
from tngraph.search.machine import Machine
from tngraph.search.matmul import arranged_axes
from tngraph.search.objectives import Objective, Request, Weighted, make_request
from tngraph.search.regimes import RegimeTrees
from tngraph.search.region import ContractionTree, Gradient, MatmulLayout, Region, Tile, Topology
from tngraph.search.replay import Replay, ReplayError, find_move
from tngraph.search.tiling import can_tile_runtime, can_tile_weight

LONGEST_PLAN = 2**26
"""The longest file of a plan [bytes]."""
LONGEST_ERROR = 4000
"""What is wrong with a file may quote it: an error longer than this is cut [characters]."""
MOST_REGIMES = 1000
"""The most regimes of a plan in a file."""


def load_plan(path: str | Path) -> Plan:
    """The plan of a file that `Plan.save` wrote, equal to the one that was saved.

    Raises:
        PlanError: the file cannot be read, or is none of a plan, damaged, or of another version; it says what is wrong.
    """
    try:
        data = read_bytes(path, LONGEST_PLAN)
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: {explain(error)}\n  give the path of a saved plan") from None
    return parse_plan(data, str(path))


def is_plan_file(data: bytes) -> bool:
    """Whether a file is rather one of a plan than a spec."""
    return data[:100].lstrip().startswith(b"{")


def parse_plan(data: bytes, file: str = "<text>") -> Plan:
    """The plan of a file's content.

    Args:
        data: the content.
        file: what errors call it.

    Raises:
        PlanError: see `load_plan`.
    """
    try:
        return _read_plan(_read_json(data))
    except TngraphError as error:
        text = str(error)
        raise PlanError(f"{file}: {text if len(text) <= LONGEST_ERROR else text[:LONGEST_ERROR] + ' …'}") from None


def _read_json(data: bytes) -> Any:
    if len(data) > LONGEST_PLAN:
        raise PlanError(f"the file is longer than {LONGEST_PLAN:,} bytes")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise PlanError("the file is nested too deep for a plan") from None
    except ValueError as error:
        raise PlanError(f"the file is no JSON: {error}") from None


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field stands twice in one object")
    return fields


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "anything": lambda value: True,
    "text": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "a positive integer": _is_count,
    "a positive integer or null": lambda value: value is None or _is_count(value),
    "an integer from 0 or null": lambda value: value is None or (type(value) is int and value == 0) or _is_count(value),
    "a positive number": _is_rate,
    "a positive number or null": lambda value: value is None or _is_rate(value),
    "a list": lambda value: isinstance(value, list),
    "two truth values": lambda value: isinstance(value, list) and [type(each) for each in value] == [bool, bool],
    "a list of texts": _is_texts,
    "an object": lambda value: isinstance(value, dict),
}
_DECISIONS = {"inlined": "a list of texts", "free": "a list of texts", "regimes": "a list"}
_PLAN = {
    "format": "anything",
    "version": "anything",
    "sha256": "text",
    "network": "text",
    "request": "an object",
    "sizes": "an object",
    **_DECISIONS,
    "unpinned": "anything",
    "measured": "a list",
}
_REQUEST = {
    "mode": "text",
    "minimize": "anything",
    "trained": "a list of texts",
    "itemsize": "a positive integer",
    "memory_limit": "an integer from 0 or null",
    "largest": "a positive integer or null",
    "most_folded": "an integer from 0 or null",
}
_REGIME = {
    "first": "a positive integer",
    "last": "a positive integer or null",
    "trees": "an object",
    "recomputed": "a list",
}
_TREE = {
    "contracts": "a list",
    "is_proven": "true or false",
    "is_pinned": "true or false",
    "sliced": "a list of texts",
    "steps": "a list",
    "matmuls": "a list",
    "gradients": "a list",
    "tile": "anything",
}
_PARTS = MatmulLayout._fields[:-1]
_MATMUL = {**dict.fromkeys(_PARTS, "a list of texts"), "transposed": "two truth values"}
_GRADIENT = {
    "step": "anything",
    "operand": "anything",
    "matmul": "anything",
    "arranged": "true or false",
    "added": "true or false",
}
_MEASURED = {
    "device": "text",
    "dtype": "text",
    "sizes": "an object",
    "way": "text",
    "model": "a positive number",
    "seconds": "a positive number",
    "dense": "a positive number or null",
}
_TILE = {"index": "text", "size": "a positive integer"}


def _check_fields(data: object, where: str, kinds: Mapping[str, str]) -> Fields:
    """An object that has exactly these fields, of these kinds.

    Raises:
        PlanError: it is no such object.
    """
    if not isinstance(data, dict):
        raise PlanError(f"{where} is {_shown(data)}, and not an object")
    for name in kinds:
        if name not in data:
            raise PlanError(f"{where} has no {name!r}")
    for name, value in data.items():
        if name not in kinds:
            raise PlanError(f"{where} has {_shown(name)}, which means nothing there")
        if not _KINDS[kinds[name]](value):
            raise PlanError(f"the {name!r} of {where} is {_shown(value)}, and not {kinds[name]}")
    return data


def _shown(value: object) -> str:
    return (
        shorten(repr(value), 80, placeholder=" …") if not isinstance(value, dict | list) else f"a {_kind_word(value)}"
    )


def _kind_word(value: object) -> str:
    return "list" if isinstance(value, list) else "object"


def _read_plan(data: Any) -> Plan:
    """A plan from its fields, from top to bottom."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PlanError(f"the file is no plan\n  that of a plan has 'format': {FORMAT!r}")
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        raise PlanError(f"the plan is of version {_shown(data.get('version'))}, and this tngraph reads {VERSION}")
    fields = _check_fields(data, "the plan", _PLAN)
    network = _read_network(fields)
    request = _read_request(network, fields["request"])
    numbers = _read_sizes(network, fields["sizes"])
    decided = {name: fields[name] for name in _DECISIONS}
    made = _read_decisions(network, request, numbers, decided)
    made = replace(made, measured=tuple(map(_read_measured, fields["measured"])))
    if fields["unpinned"] is None:
        return made
    other = _check_fields(fields["unpinned"], "the unpinned plan", _DECISIONS)
    return replace(made, unpinned=_read_decisions(network, request, numbers, other))


def _read_network(fields: Fields) -> Network:
    if digest(fields["network"]) != fields["sha256"]:
        raise PlanError("the network is not the one that was saved: its sha256 is another")
    try:
        return parse(fields["network"], file="network")
    except TngraphError as error:
        raise PlanError(f"the network is none\n{error}") from None


def _read_request(network: Network, data: object) -> Request:
    fields = _check_fields(data, "the request", _REQUEST)
    can = dict.fromkeys((core.name for core in network.cores if core.role != "const"), False)
    grads = {**can, **dict.fromkeys(fields["trained"], True)}
    minimize = _read_minimize(fields["minimize"])
    limits = fields["memory_limit"], fields["largest"]
    request = make_request(network, fields["mode"], minimize, grads, fields["itemsize"], *limits)
    return replace(request, minimize=minimize, most_folded=fields["most_folded"])


def _read_minimize(data: Any) -> Objective:
    """A name, weights of names, or the numbers of a machine."""
    if not isinstance(data, dict) or data.keys() != {"machine"}:
        return data if isinstance(data, dict) else str(data)
    numbers = _check_fields(data["machine"], "the machine", dict.fromkeys(asdict(Machine()), "a positive number"))
    return Machine(**numbers)


def _read_sizes(network: Network, data: Mapping[str, Any]) -> dict[str, int]:
    names = [size.name for size in network.sizes]
    _check_fields(data, "the object 'sizes'", dict.fromkeys(names, "a positive integer"))
    numbers = {name: data[name] for name in names}
    derived = number_sizes(network, given_sizes(network, numbers))
    for name in names:
        if derived[name] != numbers[name]:
            raise PlanError(
                f"the size {name!r} is {numbers[name]:,}, and derived from the others it is {derived[name]:,}"
            )
    check_sizes(network, numbers)
    return numbers


def _read_decisions(network: Network, request: Request, numbers: Mapping[str, int], fields: Fields) -> Plan:
    """The plan of some decisions for a network."""
    merged = merge(network, fields["inlined"])
    cleaned = clean_equations(merged, merged.equations)
    free = tuple(fields["free"])
    if list(free) != [name for name in network.runtime_sizes() if name in free]:
        raise PlanError(f"the free sizes are {_shown(', '.join(free))}, and not run-time sizes in their order")
    topologies = [[Topology(region, numbers) for region in each.regions] for each in cleaned]
    found = [
        _read_regime(data, f"regime {number}", cleaned, topologies)
        for number, data in enumerate(fields["regimes"][: MOST_REGIMES + 1], 1)
    ]
    _check_ranges(found, free, request)
    for _, _, trees in found:
        for tree in trees:
            if tree.tile is None:
                continue
            if not tree.tile.is_runtime and (request.mode == "serve" or tree.tile.size >= tree.tile.index.size):
                raise PlanError(
                    f"tiles of {tree.tile.size} of {tree.tile.index.name!r} are not possible in mode {request.mode!r}"
                )
            can_tile = can_tile_runtime if tree.tile.is_runtime else can_tile_weight
            if not can_tile(merged, tree.region, tree.tile.index):
                raise PlanError(
                    f"{tree.tile.index.name!r} cannot be tiled: not every tensor that has it can be cut along it"
                )
    made = Assembly(network, merged, cleaned, numbers, request).plan(found, free)
    regimes = [
        _recompute(regime, data["recomputed"], f"regime {number}")
        for number, (regime, data) in enumerate(zip(made.regimes, fields["regimes"], strict=True), 1)
    ]
    return replace(made, regimes=tuple(regimes))


def _read_measured(data: object) -> Measured:
    """What a call took, as a note: nothing depends on it."""
    fields = _check_fields(data, "what was measured", _MEASURED)
    sizes = _check_fields(fields["sizes"], "the sizes measured", dict.fromkeys(fields["sizes"], "a positive integer"))
    return Measured(**{**fields, "sizes": tuple(sizes.items())})


def _recompute(regime: Regime, intervals: Sequence[Any], where: str) -> Regime:
    """A regime in which operations run once more: in training, and where only the last value of them leaves them."""
    if not intervals:
        return regime
    blocked = {k for block in regime.schedule.blocks for k in range(block.first, block.last + 1)}
    after = -1
    for interval in intervals:
        is_pair = isinstance(interval, list) and len(interval) == 2 and all(type(k) is int for k in interval)
        if (
            regime.request.mode != "train"
            or not is_pair
            or not after < interval[0] < interval[1] < len(regime.operations)
        ):
            raise PlanError(f"{where} computes {_written(interval)} once more, which are not the ends of operations")
        if _leaves_inside(regime, *interval) or not blocked.isdisjoint(range(interval[0], interval[1] + 1)):
            raise PlanError(f"{where} computes {_written(interval)} once more, and values of these are used elsewhere")
        after = interval[1]
    return replace(regime, recomputed=tuple((first, last) for first, last in intervals))


def _leaves_inside(regime: Regime, first: int, last: int) -> bool:
    """Whether a load is at an end, or another value than the last is used after it."""
    made = [k for k in range(first, last) if regime.operations[k].kind != "load"]
    ends = {regime.operations[first].kind, regime.operations[last].kind}
    return "load" in ends or any(k in regime.outputs or max(regime.users(k), default=k) > last for k in made)


def _check_ranges(found: Sequence[RegimeTrees], free: Sequence[str], request: Request) -> None:
    """Refuse regimes that leave it open which of them runs."""
    if not 1 <= len(found) <= (MOST_REGIMES if free else 1):
        raise PlanError(f"the plan has {len(found):,} regimes\n  it has 1, and up to {MOST_REGIMES:,} with a free size")
    next_low: int | None = 1
    for number, (low, high, _) in enumerate(found, 1):
        is_last = number == len(found) or len(free) != 1
        if low != next_low or (high is None) != is_last or (high is not None and high < low):
            raise PlanError(f"regime {number} is from {low} to {high}, which does not continue the one before")
        next_low = 1 if high is None else high + 1
    if len(free) > 1 and len(found) > 1 and not isinstance(request.rate, Weighted):
        raise PlanError(
            "regimes of several free sizes are compared by their cost, which this request has no formula for"
        )


def _read_regime(
    data: object, where: str, cleaned: Sequence[Cleaned], topologies: Sequence[Sequence[Topology]]
) -> RegimeTrees:
    fields = _check_fields(data, where, _REGIME)
    names = [each.equation.name for each in cleaned]
    given = _check_fields(fields["trees"], f"the object 'trees' of {where}", dict.fromkeys(names, "a list"))
    trees: list[ContractionTree] = []
    for name, terms in zip(names, topologies, strict=True):
        if len(given[name]) != len(terms):
            raise PlanError(f"{where} has {len(given[name])} trees for the {len(terms)} terms of {name!r}")
        for number, (tree, topology) in enumerate(zip(given[name], terms, strict=True), 1):
            trees.append(_read_tree(tree, f"{where}, {name!r}, term {number}", topology))
    return fields["first"], fields["last"], tuple(trees)


def _read_tree(data: object, where: str, topology: Topology) -> ContractionTree:
    """The tree of a region that the moves in a file make."""
    fields = _check_fields(data, where, _TREE)
    _check_accesses(fields["contracts"], where, topology.region)
    replay = Replay(_slice(topology, fields["sliced"], where))
    prepared = len(replay.steps)
    for number, step in enumerate(fields["steps"], 1):
        at = f"{where}, step {number}"
        if not isinstance(step, dict) or not _is_operands(step.get("operands")):
            raise PlanError(f"{at} has no list of one or two operands")
        try:
            if number > prepared:
                kind, legs = step.get("kind"), _is_shown_as(step.get("legs"))
                replay.make(find_move(replay, tuple(step["operands"]), kind, legs))
        except ReplayError as error:
            raise PlanError(f"{at} {error}") from None
        _check_step(step, at, show_step(replay.steps[number - 1]))
    if len(fields["steps"]) < prepared:
        raise PlanError(f"{where} has {len(fields['steps'])} steps, and its tensors are prepared in {prepared}")
    try:
        tree = replay.finish(is_proven=fields["is_proven"], is_pinned=fields["is_pinned"])
    except ReplayError as error:
        raise PlanError(f"{where} {error}") from None
    tree = replace(
        tree, matmuls=_read_matmuls(fields["matmuls"], where, tree), tile=_read_tile(fields["tile"], where, tree)
    )
    return replace(tree, gradients=_read_gradients(fields["gradients"], where, tree))


def _read_matmuls(data: Sequence[object], where: str, tree: ContractionTree) -> tuple[MatmulLayout, ...]:
    """The order of the axes of every step, each of the legs that the step has."""
    if data and (len(data) != len(tree.steps) or not can_lay_out(tree)):
        raise PlanError(
            f"{where} has {len(data)} matmul layouts for {len(tree.steps)} steps, which take none or one each"
        )
    matmuls: list[MatmulLayout] = []
    for number, (given, step) in enumerate(zip(data, tree.steps, strict=False), 1):
        at = f"{where}, form {number}"
        matmuls.append(_read_matmul(given, at, [leg for o in step.operands for leg in tree.legs_of(o)]))
        _check_made(matmuls[-1], at, step.legs)
    made = replace(tree, matmuls=tuple(matmuls))
    for number in range(len(matmuls)):
        if not is_possible(made, number):
            raise PlanError(f"{where}, form {number + 1} is no matrix product of what its step takes")
    return made.matmuls


def _read_matmul(data: object, where: str, given: Sequence[Leg]) -> MatmulLayout:
    """A form of operands with some legs."""
    parts = _check_fields(data, where, _MATMUL)
    known = {format_leg(leg): leg for leg in given}
    unknown = [name for part in _PARTS for name in parts[part] if name not in known]
    if unknown:
        raise PlanError(f"{where} has the leg {_shown(unknown[0])}, which its operands do not have")
    first, second = parts["transposed"]
    outer, rows, columns, summed = (tuple(known[name] for name in parts[part]) for part in _PARTS)
    return MatmulLayout(outer, rows, columns, summed, (first, second))


def _check_made(matmul: MatmulLayout, where: str, made: Sequence[Leg]) -> None:
    """Refuse a form whose result has other legs."""
    if sorted(map(format_leg, matmul.legs)) != sorted(map(format_leg, made)):
        shown = _written([format_leg(leg) for leg in matmul.legs])
        raise PlanError(f"{where} has the legs {shown}, where its step has {_written(list(map(format_leg, made)))}")


def _read_gradients(data: Sequence[object], where: str, tree: ContractionTree) -> tuple[Gradient, ...]:
    """How the gradients of a tree are made, each of the product that it is."""
    wanted = [(step, operand) for step in reversed(range(len(tree.steps))) for operand in tree.steps[step].operands]
    if data and (len(data) != len(wanted) or not can_differentiate(tree)):
        raise PlanError(f"{where} has {len(data)} gradients for the operands of its steps, which take none or one each")
    count, made = len(tree.region.accesses), list[Gradient]()
    for (step, operand), given in zip(wanted, data, strict=False):
        at = f"{where}, the gradient of value {operand}"
        fields = _check_fields(given, at, _GRADIENT)
        if (fields["step"], fields["operand"]) != (step, operand):
            raise PlanError(f"{at} stands where another one does")
        above = tree.legs_of(count + step)
        other = other_operand(tree.steps[step].operands, operand)
        beside = tree.legs_of(other)
        own, matmul = tree.legs_of(operand), _read_matmul(fields["matmul"], at, [*above, *beside])
        summed = (leg for leg in above if fields["added"] and leg in beside and leg not in own)
        added = tuple(leg for leg in summed if leg in matmul.outer)
        _check_made(matmul, at, (*own, *added))
        if fields["added"] and not (added and {*added} == {*matmul.outer}):
            raise PlanError(f"{at} adds up products along legs that are no sum")
        is_fitting = not matmul.is_matrix if is_elementwise(tree, step, operand) else is_product(matmul, above, beside)
        if not is_fitting:
            raise PlanError(f"{at} is no product of that of its step's result and the other operand")
        if fields["arranged"] and not arranged_axes(tree, step, other):
            raise PlanError(f"{at} is made of a value that its step does not arrange")
        made.append(Gradient(step, operand, matmul, fields["arranged"], matmul.outer if added else ()))
    return tuple(made)


def _read_tile(data: object, where: str, tree: ContractionTree) -> Tile | None:
    if data is None:
        return None
    fields = _check_fields(data, f"the tile of {where}", _TILE)
    index = next((leg for leg in tree.region.legs if leg.name == fields["index"]), None)
    if index is None or not tree.steps or tree.sliced:
        raise PlanError(f"{where} runs in tiles of {_shown(fields['index'])}, which cannot be cut there")
    return Tile(index, fields["size"])


def _slice(topology: Topology, names: Sequence[str], where: str) -> Topology:
    """The region at one value of the indices of these names."""
    if not names:
        return topology
    legs = [leg for access in topology.region.accesses for leg in bare_legs(access)]
    read = {index for leg in legs if isinstance(leg, Read) for index in leg.indices}
    plain = {leg.name: leg for leg in legs if isinstance(leg, Index) and leg not in read}
    for name in names:
        if name not in plain or names.count(name) > 1:
            raise PlanError(f"{where} runs for each value of {_shown(name)}, which cannot be cut there")
    return Topology(topology.region, topology.named, sliced=tuple(plain[name] for name in names))


def _is_operands(value: object) -> bool:
    return isinstance(value, list) and len(value) in (1, 2) and all(type(each) is int for each in value)


def _is_shown_as(legs: object) -> Callable[[Iterable[Leg]], bool]:
    return lambda made: [format_leg(leg) for leg in made] == legs


def _check_accesses(given: Sequence[object], where: str, region: Region) -> None:
    wanted = show_accesses(region)
    if given != wanted:
        k = next((k for k, pair in enumerate(zip(given, wanted, strict=False)) if pair[0] != pair[1]), None)
        if k is None:
            raise PlanError(f"{where} contracts {len(given)} tensors, and its network {len(wanted)} there")
        raise PlanError(f"{where} contracts {_shown(given[k])}, and its network {wanted[k]!r} there")


def _check_step(given: Fields, where: str, made: Fields) -> None:
    """Refuse a step that is not what its operands make."""
    if given.keys() != made.keys():
        raise PlanError(f"{where} has not exactly the fields {', '.join(made)}")
    for name, value in made.items():
        if given[name] != value:
            raise PlanError(
                f"{where} has the {name} {_written(given[name])}, where its operands make {_written(value)}"
            )


def _written(value: object) -> str:
    return shorten(", ".join(map(str, value)) if isinstance(value, list) else repr(value), 200, placeholder=" …")
