"""The plan: how a network is contracted, with its counts as formulas. `plan` is the pipeline, top to bottom.

A plan is data: stages (merged equations with a tree per term) and the sizes it was searched at. Everything else
is derived: the schedule, every count, the table. Counts are sympy expressions in all sizes of the network;
`Plan.at` turns them into integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import sympy

from tngraph.language.binding import check_size, check_sizes, compile_time_sizes, unknown_size
from tngraph.language.network import Index, Network
from tngraph.language.sizes import LARGEST, evaluate_size, product
from tngraph.planning.cost import (
    Counts,
    elementwise,
    evaluate_count,
    live_sizes,
    macs,
    maximum,
    param_count,
    training_macs,
)
from tngraph.planning.region import ContractionTree, Region
from tngraph.planning.rewrites import can_inline, clean_term, drop_unused, inline, merge_chains
from tngraph.planning.schedule import Operation, Schedule, Stage, legs_size, write_schedule
from tngraph.planning.search import Search, search_tree
from tngraph.planning.table import format_plan

DEFAULT_RUNTIME_SIZE = 64
"""A run-time size nobody gave a number for is taken as this while searching."""


@dataclass(frozen=True, slots=True)
class Dense:
    """The one dense weight a linear map stands for: entries [elements], and MAC of applying it [MAC]."""

    params: sympy.Expr
    macs: sympy.Expr


@dataclass(frozen=True, repr=False)
class Plan:
    """A network with an order for everything in it.

    Attributes:
        network: the network as it was given.
        merged: the network whose equations the stages are, linear ones merged.
        stages: its equations with their trees.
        sizes: the number of every named size the search ran at.
    """

    network: Network
    merged: Network
    stages: tuple[Stage, ...]
    sizes: Mapping[str, int]

    @cached_property
    def schedule(self) -> Schedule:
        """Every operation in the order it runs."""
        return write_schedule(self.network, self.stages, self.sizes)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The lines of the schedule."""
        return self.schedule.operations

    @property
    def outputs(self) -> tuple[int, ...]:
        """The numbers of the values put out, in order."""
        return tuple(self.schedule.results[port.name] for port in self.network.outputs)

    @property
    def is_proven(self) -> bool:
        """Whether every region's tree is proven optimal at the sizes searched."""
        return all(tree.is_proven for stage in self.stages for tree in stage.trees)

    @cached_property
    def params(self) -> sympy.Expr:
        """Learnable entries [elements]."""
        return param_count(self.network)

    @cached_property
    def macs(self) -> sympy.Expr:
        """Multiply-adds of one call [MAC]."""
        return macs(self.operations)

    @property
    def flops(self) -> sympy.Expr:
        """Floating point operations of one call, 2 per MAC [FLOPs]."""
        return 2 * self.macs

    @cached_property
    def elementwise(self) -> sympy.Expr:
        """Operations of one call that are no contraction [operations]."""
        return elementwise(self.operations)

    @property
    def cost(self) -> sympy.Expr:
        """What the search minimised: MAC plus elementwise [operations]."""
        return self.macs + self.elementwise

    @cached_property
    def largest(self) -> sympy.Expr:
        """The largest value a step writes [elements]."""
        return maximum(legs_size(op.legs) for op in self.operations if op.kind != "load")

    @cached_property
    def peak(self) -> sympy.Expr:
        """The most elements of steps' values alive at once, inputs and params not counted [elements]."""
        return maximum(live_sizes(self.operations, self.outputs))

    @cached_property
    def training_flops(self) -> sympy.Expr:
        """FLOPs of a forward and a backward pass with gradients for params and inputs [FLOPs]."""
        trained = (core.name for core in self.network.cores if core.role in ("param", "input"))
        return 2 * training_macs(self.operations, trained)

    @cached_property
    def dense(self) -> Dense | None:
        """The dense weight this network replaces, where it is one linear map (see `dense_equivalent`)."""
        return dense_equivalent(self.merged)

    def values(self, **sizes: int) -> dict[str, int]:
        """The number of every named size: the given ones, the others as searched.

        Raises:
            SizeError: a name that is no size of the network, or a number that is not a positive integer.
        """
        kept = {
            size.name: self.sizes[size.name]
            for size in self.network.sizes
            if size.value is None or evaluate_size(size.value, self.sizes) != self.sizes[size.name]
        }
        return _number_sizes(self.network, {**kept, **sizes})

    def at(self, **sizes: int) -> Counts:
        """The counts at given sizes, the others as searched: ``plan.at(batch=64, D=8)``.

        Raises:
            SizeError: see `values`.
        """
        numbers = self.values(**sizes)
        names = ("params", "macs", "flops", "training_flops", "elementwise", "largest", "peak", "cost")
        return Counts(**{name: evaluate_count(getattr(self, name), numbers) for name in names})

    def table(self, **sizes: int) -> str:
        """The plan as text: totals on top, one row per step, with numbers at these sizes.

        Raises:
            SizeError: see `values`.
        """
        return format_plan(self, self.values(**sizes))

    def __str__(self) -> str:
        return self.table()

    def __hash__(self) -> int:
        return hash((self.network, self.stages, tuple(self.sizes.items())))

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        return Plan, (self.network, self.merged, self.stages, self.sizes)

    def __deepcopy__(self, memo: object) -> Plan:
        return self

    def __repr__(self) -> str:
        at = ", ".join(f"{name}={value}" for name, value in self.sizes.items())
        cost = evaluate_count(self.cost, self.sizes)
        return f"<plan of {self.network.name} at {at or 'fixed sizes'}: {cost:,} operations>"


def plan(network: Network, sizes: Mapping[str, int] | None = None, search: Search | None = None) -> Plan:
    """Find in which order to contract a network.

    Args:
        network: what to plan.
        sizes: numbers for run-time sizes (64 each when absent) and other values for compile-time ones; the
            order is the best found at these, its counts hold at all sizes.
        search: seed and effort.

    Returns:
        The plan; the same arguments give the same plan.

    Raises:
        SizeError: an unknown size, or a number that is not a positive integer.
        TypeError: something else than a network.
    """
    if not isinstance(network, Network):
        raise TypeError(f"plan takes a network, and not {network!r}; tg.load reads one from a file")
    numbers = _number_sizes(network, sizes or {})
    check_sizes(network, numbers)
    memo: dict[Region, ContractionTree] = {}
    used = drop_unused(network)
    chained = merge_chains(used)
    merged = _merge_where_cheaper(chained, numbers, search or Search(), memo)
    return _plan_stages(network, merged, numbers, search or Search(), memo)


def _merge_where_cheaper(
    network: Network, numbers: Mapping[str, int], search: Search, memo: dict[Region, ContractionTree]
) -> Network:
    """Inline equations that are read often or have several terms, one by one, where the total gets cheaper."""
    best = None
    for equation in reversed(network.equations):
        if can_inline(network, equation):
            best = best or _plan_stages(network, network, numbers, search, memo)
            candidate = merge_chains(drop_unused(inline(network, equation)))
            other = _plan_stages(network, candidate, numbers, search, memo)
            if evaluate_count(other.cost, numbers) < evaluate_count(best.cost, numbers):
                network, best = candidate, other
    return network


def _plan_stages(
    original: Network, merged: Network, numbers: Mapping[str, int], search: Search, memo: dict[Region, ContractionTree]
) -> Plan:
    sources = merged.sources()
    stages = []
    for equation in merged.equations:
        cleaned = [clean_term(term, equation.legs, sources) for term in equation.terms]
        for region, _ in cleaned:
            if region not in memo:
                memo[region] = search_tree(region, numbers, search)
        trees = tuple(memo[region] for region, _ in cleaned)
        stages.append(Stage(equation, trees, tuple(pattern for _, pattern in cleaned)))
    return Plan(original, merged, tuple(stages), numbers)


def _number_sizes(network: Network, given: Mapping[str, int]) -> dict[str, int]:
    """An integer for every size: as given, by default, derived; run-time ones default to 64."""
    runtime = network.runtime_sizes()
    known = [size.name for size in network.sizes]
    for name, value in given.items():
        if name not in known:
            raise unknown_size(network, name, known)
        if name in runtime:
            check_size(name, value)
    numbers = compile_time_sizes(network, {n: v for n, v in given.items() if n not in runtime})
    numbers.update({name: int(given.get(name, DEFAULT_RUNTIME_SIZE)) for name in runtime})
    for size in network.sizes:
        if size.name not in numbers and size.value is not None:
            numbers[size.name] = evaluate_size(size.value, numbers, LARGEST)
    return {name: numbers[name] for name in known}


def dense_equivalent(network: Network) -> Dense | None:
    """The dense weight of a network that is one linear map of one input.

    That is: one equation (a function may stand outermost), at least one term with an input and a weight, and none
    with two inputs. The weight has the indices of params and buffers that also stand on the input or on the left;
    terms with the same indices are one weight, and a term without any (a skip connection) adds none.
    """
    if len(network.equations) != 1:
        return None
    cores = {core.name: core for core in network.cores}
    equation = network.equations[0]
    weights: dict[frozenset[Index], None] = {}
    maps: dict[frozenset[Index], None] = {}
    for term in equation.terms:
        data = [a for a in term.accesses if cores[a.source].role == "input"]
        if len(data) > 1:
            return None
        read = {i for a in data for i in a.indices}
        held = {i for a in term.accesses if a not in data for i in a.indices}
        if len(data) == len(term.accesses):
            continue
        weight = frozenset(i for i in held if i in read or i in equation.legs)
        weights[weight] = None
        if data:
            maps[weight | read] = None
    if not maps:
        return None
    count = sympy.Add(*(product(i.size for i in sorted(w, key=lambda i: i.name)) for w in weights))
    return Dense(count, sympy.Add(*(product(i.size for i in sorted(m, key=lambda i: i.name)) for m in maps)))
