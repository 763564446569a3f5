"""Conversion of einsum strings, index lists and networkx graphs to networks, and of networks to graphs.

Each import makes one equation ``y``, the product of all tensors. `_Names` turns labels of any kind into names. A dotted
name stays as it is. In other labels, runs of characters that no name may have become ``_``. A name that would start
with a digit gets a letter in front. A name that is taken, or is the folder of other names, gets ``_2``, ``_3``, …, in
order of mention.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import networkx as nx
import sympy
from opt_einsum.parser import find_output_str

from tngraph.errors import LimitError, NetworkError
from tngraph.language.arguments import check_mapping, check_network
from tngraph.language.limits import LEGS, TENSORS
from tngraph.language.network import (
    LONGEST_NAME,
    Access,
    Core,
    Equation,
    Index,
    Init,
    Network,
    Port,
    Read,
    Role,
    Size,
    Term,
    folders,
    is_dotted_name,
)
from tngraph.language.sizes import LARGEST, as_integer, symbol

SizeLike = int | str | None
"""An integer, or the name of a size; None is a run-time size named after its index."""


def from_einsum(
    equation: str,
    sizes: Mapping[str, SizeLike] | None = None,
    *,
    roles: Role | Sequence[Role] | None = None,
    names: Sequence[str] | None = None,
    defaults: Mapping[str, int] | None = None,
    name: str = "einsum",
) -> Network:
    """Return the network of an einsum equation.

    >>> network = from_einsum("bi,ij->bj", {"i": 3, "j": 4})
    >>> [(core.name, core.role) for core in network.cores], network.runtime_sizes()
    ([('x', 'input'), ('w1', 'param')], ('b',))

    Args:
        equation: as for ``numpy.einsum``: any letters, spaces ignored, no ellipsis; without ``->`` the output is
            the letters that occur once, in alphabetical order.
        sizes: per letter an integer, or the name of a size; a letter without one has a run-time size of its own name.
        roles: one role for all operands, or one each; if absent, the first is an input, and each other is a param if
            all its sizes are known and an input otherwise.
        names: the names of the operands; ``x``, ``w1``, ``w2``, … if absent.
        defaults: the sizes named in ``sizes`` that are compile-time ones, with their values; other names are run-time.
        name: the name of the network.

    Raises:
        NetworkError: an equation that cannot be read, or a network that is not valid.
    """
    operands, output = _split(equation)
    check_mapping("sizes", sizes)
    check_mapping("defaults", defaults)
    letters = dict.fromkeys(letter for operand in operands for letter in operand)
    every: dict[str, SizeLike] = {**dict.fromkeys(letters), **(sizes or {})}
    fixed = {letter for letter, size in every.items() if as_integer(size) is not None or size in (defaults or {})}
    return from_indices(
        operands,
        output,
        every,
        roles=roles or ["param" if k and fixed.issuperset(legs) else "input" for k, legs in enumerate(operands)],
        names=names or ["x", *(f"w{k}" for k in range(1, len(operands)))],
        defaults=defaults,
        name=name,
    )


def _split(equation: str) -> tuple[list[str], str]:
    """Return the letters of each operand and of the output."""
    if not isinstance(equation, str):
        raise NetworkError(f"{equation!r} is not an einsum", "write one as in 'bi,ij->bj'")
    text = "".join(equation.split())
    if "." in text:
        raise NetworkError(f"the einsum {equation!r} has an ellipsis", "write a letter for each of its axes")
    left, arrow, output = text.partition("->")
    for character in left + output:
        if not character.isalpha() and character != ",":
            raise NetworkError(f"the einsum {equation!r} has the character {character!r}", "an axis is a letter")
    if "," in output:
        raise NetworkError(f"the einsum {equation!r} has a comma in its output", "an einsum has one output")
    return left.split(","), output if arrow else find_output_str(left)


def from_indices(
    inputs: Sequence[Sequence[Hashable]],
    output: Sequence[Hashable],
    sizes: Mapping[Any, SizeLike],
    *,
    roles: Role | Sequence[Role] = "input",
    names: Sequence[str] | None = None,
    defaults: Mapping[str, int] | None = None,
    name: str = "network",
) -> Network:
    """Return the network of index labels per tensor and for the output, as cotengra and quimb write them.

    >>> network = from_indices([("a", 1), (1, "c")], ["a", "c"], {"a": 2, 1: 3, "c": 4})
    >>> network.indices()
    (a:2, i1:3, c:4)

    Args:
        inputs: the labels of each tensor, hashable values of any kind; a tensor may have a label twice.
        output: the labels of the result.
        sizes: per label an integer, the name of a size, or None for a run-time size of its own name.
        roles: one role for all tensors, or one each.
        names: the names of the tensors; ``t1``, ``t2``, … if absent.
        defaults: the sizes named in ``sizes`` that are compile-time ones, with their values; other names are run-time.
        name: the name of the network.

    Raises:
        NetworkError: a label without a size, a size for an unknown label, or a network that is not valid.
    """
    check_mapping("sizes", sizes)
    check_mapping("defaults", defaults)
    operands = [_labels(f"tensor {k}", labels) for k, labels in enumerate(_items("inputs", inputs), 1)]
    result, count = _labels("the output", output), len(operands)
    every_name = [f"t{k}" for k in range(1, count + 1)] if names is None else _items("names", names)
    every_role = (roles,) * count if isinstance(roles, str) else _items("roles", roles)
    for what, values in (("names", every_name), ("roles", every_role)):
        if len(values) != count:
            raise NetworkError(f"there are {count} tensors and {len(values)} {what}")
        for value in values:
            if not isinstance(value, str):
                raise NetworkError(f"{value!r} stands among the {what}", f"{what} are text")
    tensors = [_Tensor(*parts) for parts in zip(every_name, every_role, operands, strict=True)]
    return _network(name, tensors, result, sizes or {}, defaults or {})


def _items(what: str, values: object) -> tuple[Any, ...]:
    """Return the entries of an argument that has to be a list, and neither text nor a number."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise NetworkError(f"{what} is {values!r}", "give a list with one entry per tensor")
    return tuple(values)


def _labels(whose: str, labels: object) -> tuple[Hashable, ...]:
    """Return the index labels of a tensor; a text has one per letter."""
    if not isinstance(labels, Iterable):
        raise NetworkError(f"the indices of {whose} are {labels!r}", "write them as a list")
    legs = tuple(labels)
    for label in legs:
        if not isinstance(label, Hashable):
            raise NetworkError(f"{whose} has the index {label!r}", "a label is text or a number, not a list")
    return legs


def from_networkx(
    graph: Any,
    *,
    bond: SizeLike = None,
    inputs: Iterable[Hashable] = (),
    defaults: Mapping[str, int] | None = None,
    name: str = "graph",
) -> Network:
    """Return the network of a graph: a core per node, a bond per edge, and an output with every open leg.

    A core's legs are its open legs, then its bonds in edge order. Node attributes, all optional: ``open`` (the open
    legs: a mapping or pairs of name and size; one name on several nodes is one shared index), ``role`` (``param`` if
    absent) and ``init`` (an `Init`, or a kind as ``"delta"`` or ``("normal", 0.1)``). Edge attributes: ``size`` and
    ``name``.

    Args:
        graph: any networkx graph; directions are ignored, parallel edges are several bonds, a loop is a trace.
        bond: the size of an edge without one: an integer or the name of a size.
        inputs: the nodes that are inputs.
        defaults: the named sizes that are compile-time ones, with their values; other names are run-time sizes.
        name: the name of the network.

    Raises:
        NetworkError: an edge without a size, an input that is not a node, or a network that is not valid.
    """
    if not isinstance(graph, nx.Graph):
        raise NetworkError(f"{graph!r} is not a graph", "give one of networkx")
    chosen = set(inputs)
    for node in sorted(chosen - set(graph), key=repr):
        raise NetworkError(f"the input {node!r} is not a node of the graph", f"nodes: {', '.join(map(repr, graph))}")
    names = _Names("t")
    for node in graph:
        names.of(node)
    sizes: dict[Hashable, SizeLike] = {}
    legs: dict[Hashable, list[Hashable]] = {
        node: _open_legs(node, data, sizes) for node, data in graph.nodes(data=True)
    }
    output = tuple(sizes)
    for u, v, data in graph.edges(data=True):
        label = _Bond(data.get("name", f"{names.of(u)}_{names.of(v)}".replace(".", "_")), len(sizes))
        sizes[label] = _bond_size(u, v, data.get("size", bond))
        legs[u].append(label)
        legs[v].append(label)
    tensors = [
        _Tensor(
            names.of(node),
            "input" if node in chosen else data.get("role", "param"),
            tuple(legs[node]),
            _init(node, data.get("init")),
        )
        for node, data in graph.nodes(data=True)
    ]
    return _network(name, tensors, output, sizes, defaults or {})


def _open_legs(node: Hashable, data: Mapping[str, Any], sizes: dict[Hashable, SizeLike]) -> list[Hashable]:
    declared = data.get("open", ())
    try:
        pairs = [(label, size) for label, size in (declared.items() if isinstance(declared, Mapping) else declared)]
    except (TypeError, ValueError):
        raise NetworkError(
            f"the node {node!r} has open={declared!r}", "its open legs are a mapping or pairs of name and size"
        ) from None
    for label, size in pairs:
        if sizes.setdefault(label, size) != size:
            raise NetworkError(
                f"the open leg {label!r} of the node {node!r} has size {size}, and elsewhere {sizes[label]}"
            )
    return [label for label, _ in pairs]


def _init(node: Hashable, init: object) -> Init | None:
    if init is None or isinstance(init, Init):
        return init
    kind, *args = (init,) if isinstance(init, str) else (init or (None,)) if isinstance(init, tuple) else (None,)
    if not isinstance(kind, str):
        raise NetworkError(f"the node {node!r} has init={init!r}", "a kind is 'delta', or ('normal', 0.1)")
    return Init(kind, tuple(args))


def _bond_size(u: Hashable, v: Hashable, size: SizeLike) -> int | str:
    if size is None:
        raise NetworkError(f"the edge from {u!r} to {v!r} has no size", "give it an attribute 'size', or pass bond=…")
    return size


def to_networkx(network: Network) -> Any:
    """Return a network as a bipartite multigraph of tensors and indices; a hyperedge is an index with several edges.

    Nodes ``("tensor", name)`` have the attributes ``kind="tensor"``, ``role`` (``result`` for an equation), ``legs``
    and ``function``; nodes ``("index", name)`` have ``kind="index"`` and ``size`` (an int, or a formula as str).
    There is one edge per leg of every access, with ``equation``, ``term``, ``access``, ``axis`` and ``coefficient``
    (other than 1 only where the leg is read at an affine position), and one per leg of every result, where ``term``
    and ``access`` are None. A tensor used twice is one node with the edges of both uses.
    """
    check_network(network)
    graph = nx.MultiGraph(name=network.name)
    for source in network.sources().values():
        role = source.role if isinstance(source, Core) else "result"
        function = source.function.name if isinstance(source, Equation) and source.function else None
        legs = tuple(leg.name for leg in source.legs)
        graph.add_node(("tensor", source.name), kind="tensor", role=role, legs=legs, function=function)
    for index in network.indices():
        size = int(index.size) if index.size.is_Integer else str(index.size)
        graph.add_node(("index", index.name), kind="index", size=size)
    for equation in network.equations:
        own = Access(equation.name, equation.legs)
        _add_edges(graph, own, equation=equation.name, term=None, access=None)
        for t, term in enumerate(equation.terms):
            for a, access in enumerate(term.accesses):
                _add_edges(graph, access, equation=equation.name, term=t, access=a)
    return graph


def _add_edges(graph: Any, tensor: Access, **attributes: object) -> None:
    for axis, leg in enumerate(tensor.legs):
        for coefficient, index in leg.terms if isinstance(leg, Read) else ((1, leg),):
            ends = ("tensor", tensor.source), ("index", index.name)
            graph.add_edge(*ends, axis=axis, coefficient=coefficient, **attributes)


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    role: Role
    legs: tuple[Hashable, ...]
    init: Init | None = None


@dataclass(frozen=True, slots=True)
class _Bond:
    """The label of an edge: its text becomes its name, and its number distinguishes it from all others."""

    text: str
    number: int

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class _Names:
    """A valid name for each label, assigned in order of mention."""

    letter: str
    taken: dict[Hashable, str] = field(default_factory=dict)
    used: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.used = {prefix for name in self.taken.values() for prefix in (name, *folders(name))}

    def of(self, label: Hashable, text: str | None = None) -> str:
        """Return the name of a label, the same at every call, derived from its text."""
        if label not in self.taken:
            name = self.fresh(str(label) if text is None else text)
            self.taken[label] = name
            self.used.update((name, *folders(name)))
        return self.taken[label]

    def fresh(self, text: str) -> str:
        """Return a name that resembles a text and that no label has."""
        keeps = is_dotted_name(text) and self.used.isdisjoint(folders(text))
        clean = text if keeps else re.sub(r"\W+|_+", "_", text, flags=re.ASCII).strip("_")
        base = (clean if clean and not clean[0].isdigit() else f"{self.letter}{clean}")[: LONGEST_NAME - 8]
        name, count = base, 1
        while name in self.used:
            count += 1
            name = f"{base}_{count}"
        return name


def _network(
    name: str,
    tensors: Sequence[_Tensor],
    output: tuple[Hashable, ...],
    sizes: Mapping[Any, SizeLike],
    defaults: Mapping[str, int],
) -> Network:
    """Return the network whose only equation is the product of all tensors."""
    if not tensors:
        raise NetworkError("there are no tensors here", "a network has at least one")
    if len(tensors) >= TENSORS:
        raise LimitError(f"the network has {len(tensors) + 1:,} tensors", f"a network has at most {TENSORS:,}")
    for tensor in tensors:
        if tensor.role not in get_args(Role):
            raise NetworkError(f"{tensor.role!r} is not a role", f"roles: {', '.join(get_args(Role))}", at=tensor.role)
        if len(tensor.legs) > LEGS:
            raise LimitError(f"{tensor.name!r} has {len(tensor.legs)} legs", f"a tensor has at most {LEGS}")
    if len(output) > LEGS:
        raise LimitError(f"the output has {len(output)} legs", f"a tensor has at most {LEGS}")
    labels = dict.fromkeys(label for tensor in tensors for label in tensor.legs)
    _check_labels(labels, output, sizes)
    names = _Names("i")
    for label in labels:
        # An index without a size has a size of the same name, and names of sizes have no dots.
        names.of(label, str(label).replace(".", "_") if sizes[label] is None else None)
    indices = {label: Index(names.of(label), _size(names.of(label), sizes[label])) for label in labels}
    _check_runtime(tensors, indices, defaults)
    cores = tuple(Core(t.name, _own_legs(t, indices, names), t.role, t.init) for t in tensors)
    accesses = tuple(Access(t.name, tuple(indices[label] for label in t.legs)) for t in tensors)
    taken = _Names("t", {core.name: core.name for core in cores})
    result = Equation(taken.fresh("y"), tuple(indices[label] for label in output), (Term(1, accesses),))
    return Network(
        name,
        _sizes(indices.values(), defaults),
        cores,
        (result,),
        tuple(_port(core.name, core.legs) for core in cores if core.role == "input"),
        (_port(result.name, result.legs),),
    )


def _own_legs(tensor: _Tensor, indices: Mapping[Hashable, Index], names: _Names) -> tuple[Index, ...]:
    """Return a tensor's legs under names of their own: a label that it has twice is two legs of one size."""
    legs: list[Index] = []
    for k, label in enumerate(tensor.legs):
        index = indices[label]
        if label in tensor.legs[:k]:
            index = Index(names.of((tensor.name, k), index.name), index.size)
        legs.append(index)
    return tuple(legs)


def _port(name: str, legs: tuple[Index, ...]) -> Port:
    return Port(name, tuple((leg,) for leg in legs))


def _check_labels(labels: Mapping[Hashable, None], output: Sequence[Hashable], sizes: Mapping[Any, SizeLike]) -> None:
    for label in output:
        if label not in labels:
            raise NetworkError(f"the output has the index {str(label)!r}, and no tensor has it")
    for label in labels:
        if label not in sizes:
            raise NetworkError(f"the index {str(label)!r} has no size", "give it one in sizes")
    for label in sizes:
        if label not in labels:
            raise NetworkError(f"sizes has the index {str(label)!r}, and no tensor has it")


def _size(name: str, size: SizeLike) -> sympy.Expr:
    if size is None or isinstance(size, str):
        return symbol(name if size is None else size)
    return sympy.Integer(
        _positive(f"the index {name!r}", size, "a size is an integer or the name of one, from 1 to 2**62")
    )


def _positive(what: str, size: object, hint: str = "a size is an integer from 1 to 2**62") -> int:
    value = as_integer(size) or 0
    if not 1 <= value <= LARGEST:
        raise NetworkError(f"{what} has size {size!r}", hint)
    return int(value)


def _check_runtime(tensors: Sequence[_Tensor], indices: Mapping[Hashable, Index], defaults: Mapping[str, int]) -> None:
    bound = {s for t in tensors if t.role == "input" for label in t.legs for s in indices[label].size.free_symbols}
    for index in indices.values():
        for unbound in index.size.free_symbols - bound:
            if unbound.name not in defaults:
                raise NetworkError(
                    f"the index {index.name!r} has the run-time size {unbound.name!r}, and stands on no input",
                    "give it an integer in sizes, or give the size a value in defaults",
                )


def _sizes(indices: Iterable[Index], defaults: Mapping[str, int]) -> tuple[Size, ...]:
    named = dict.fromkeys(index.size.name for index in indices if index.size.is_Symbol)
    every = dict.fromkeys((*named, *defaults))
    return tuple(Size(name, _default(name, defaults)) for name in every)


def _default(name: str, defaults: Mapping[str, int]) -> sympy.Integer | None:
    return sympy.Integer(_positive(f"{name!r} in defaults", defaults[name])) if name in defaults else None
