"""The plan: how a network is contracted, with its counts as formulas. `plan` is the pipeline, top to bottom.

A plan is data: stages (merged equations with a tree per term) and the sizes it was searched at. Everything else
is derived: the schedule, every count, the table. Counts are sympy expressions in all sizes of the network;
`Plan.at` turns them into integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy

from tngraph.language.binding import check_size, check_sizes, compile_time_sizes, unknown_size
from tngraph.language.network import Core, Equation, Index, Network
from tngraph.language.sizes import LARGEST, evaluate_size, product
from tngraph.planning.cost import (
    Counts,
    elementwise,
    evaluate_count,
    macs,
    maximum,
    param_count,
    training_macs,
)
from tngraph.planning.kernels import Kernels, write_kernels
from tngraph.planning.memory import ITEMSIZE, Memory, generic_sizes, trace_memory
from tngraph.planning.pinning import Nested, Pin, match_pins, read_orders
from tngraph.planning.region import ContractionTree, Region
from tngraph.planning.rewrites import can_inline, clean_term, drop_unused, inline, merge_chains
from tngraph.planning.schedule import Operation, Schedule, Stage, legs_size, write_schedule
from tngraph.planning.search import Search, pinned_tree, search_tree
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

    @cached_property
    def kernels(self) -> Kernels:
        """Every line of the module."""
        return write_kernels(self.network, self.stages, self.schedule, self.sizes)

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
        """The most bytes a call without gradients holds at once in single precision (see `trace_memory`) [bytes]."""
        return self._memory.peak_formula

    @cached_property
    def saved(self) -> sympy.Expr:
        """What autograd keeps of a call with gradients for params and inputs, in single precision [bytes]."""
        return self._memory.saved_formula

    @cached_property
    def _memory(self) -> Memory:
        return self.memory(generic_sizes(self.network, self.sizes))

    def memory(self, numbers: Mapping[str, int], itemsize: int = ITEMSIZE) -> Memory:
        """What a call holds, exact at any sizes, those that are 1 or equal by chance included.

        Args:
            numbers: an integer for every named size, as `values` gives them.
            itemsize: of a number, 4 in single precision [bytes].
        """
        return trace_memory(self.kernels, numbers, self.trained, itemsize)

    @property
    def trained(self) -> tuple[str, ...]:
        """The tensors that take a gradient in a training step: params and inputs."""
        return tuple(core.name for core in self.network.cores if core.role in ("param", "input"))

    @cached_property
    def training_flops(self) -> sympy.Expr:
        """FLOPs of a forward and a backward pass with gradients for params and inputs [FLOPs]."""
        return 2 * training_macs(self.operations, self.trained)

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
        memory = self.memory(numbers)
        names = ("params", "macs", "flops", "training_flops", "elementwise", "largest", "cost")
        counts = {name: evaluate_count(getattr(self, name), numbers) for name in names}
        return Counts(**counts, peak=memory.peak, saved=memory.saved)

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


def plan(
    network: Network,
    sizes: Mapping[str, int] | None = None,
    search: Search | None = None,
    order: Nested | Mapping[str, Nested] | None = None,
) -> Plan:
    """Find in which order to contract a network.

    Args:
        network: what to plan.
        sizes: numbers for run-time sizes (64 each when absent) and other values for compile-time ones; the
            order is the best found at these, its counts hold at all sizes.
        search: seed and effort.
        order: the order of the only equation, pinned by hand: ``"((x w1) (w2 w3))"`` or nested sequences of
            names; or the orders of some equations by name. What they leave open is searched.

    Returns:
        The plan; the same arguments give the same plan.

    Raises:
        SizeError: an unknown size, or a number that is not a positive integer.
        PlanError: an order that does not fit the network.
        TypeError: something else than a network.
    """
    if not isinstance(network, Network):
        raise TypeError(f"plan takes a network, and not {network!r}; tg.load reads one from a file")
    numbers = _number_sizes(network, sizes or {})
    check_sizes(network, numbers)
    used = drop_unused(network)
    chained = merge_chains(used)
    kept = {equation.name for equation in chained.equations}
    pins = read_orders(order, {equation.name: equation.name in kept for equation in network.equations})
    task = _Task(network, numbers, search or Search(), pins, {}, {})
    return _plan_stages(task, _merge_where_cheaper(task, chained))


@dataclass(frozen=True, slots=True)
class _Task:
    """What to plan, at which sizes and how; the trees and the equations' costs [operations] found so far."""

    network: Network
    numbers: Mapping[str, int]
    search: Search
    pins: Mapping[str, tuple[Pin, ...]]
    trees: dict[tuple[Region, Pin | None], ContractionTree]
    costs: dict[Equation, int]


def _merge_where_cheaper(task: _Task, network: Network) -> Network:
    """Inline equations that are read often or have several terms, one by one, where the total gets cheaper."""
    for equation in reversed(network.equations):
        if can_inline(network, equation):
            candidate = merge_chains(drop_unused(inline(network, equation)))
            if _keeps_pinned(task, network, candidate) and _cost(task, candidate) < _cost(task, network):
                network = candidate
    return network


def _keeps_pinned(task: _Task, network: Network, candidate: Network) -> bool:
    """Whether the equations with an order of their own are the same in both."""
    return all(e in candidate.equations for e in network.equations if e.name in task.pins)


def _cost(task: _Task, merged: Network) -> int:
    """What a network costs [operations]: the sum over its equations, each planned once."""
    sources = merged.sources()
    for equation in merged.equations:
        if equation not in task.costs:
            stage = _plan_stage(task, equation, sources)
            operations = write_schedule(merged, (stage,), task.numbers).operations
            task.costs[equation] = evaluate_count(macs(operations) + elementwise(operations), task.numbers)
    return sum(task.costs[equation] for equation in merged.equations)


def _plan_stages(task: _Task, merged: Network) -> Plan:
    sources = merged.sources()
    stages = tuple(_plan_stage(task, equation, sources) for equation in merged.equations)
    return Plan(task.network, merged, stages, task.numbers)


def _plan_stage(task: _Task, equation: Equation, sources: Mapping[str, Core | Equation]) -> Stage:
    cleaned = [clean_term(term, equation.legs, sources) for term in equation.terms]
    trees = _find_trees(task, equation, [region for region, _ in cleaned])
    return Stage(equation, trees, tuple(pattern for _, pattern in cleaned))


def _find_trees(task: _Task, equation: Equation, regions: Sequence[Region]) -> tuple[ContractionTree, ...]:
    """A tree per term of an equation, pinned or searched."""
    pinned = match_pins(task.pins.get(equation.name, ()), equation.name, regions)
    return tuple(_find_tree(task, region, *pinned.get(k, (None, ()))) for k, region in enumerate(regions))


def _find_tree(task: _Task, region: Region, pin: Pin | None, positions: Sequence[int]) -> ContractionTree:
    if (region, pin) not in task.trees:
        task.trees[region, pin] = (
            search_tree(region, task.numbers, task.search)
            if pin is None
            else pinned_tree(region, task.numbers, task.search, pin, positions)
        )
    return task.trees[region, pin]


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
