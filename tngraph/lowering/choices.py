"""Prints the choice between regimes: a method per tree of a region that has several, and the test of which one runs.

The printed code compares integers: a run-time size with the ends of the regimes' ranges or, where several sizes decide,
the costs of the regimes with one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tngraph.lowering.blocks import print_inside
from tngraph.lowering.calls import Words
from tngraph.lowering.names import Names
from tngraph.lowering.statements import Method, PrintedBlock, StatementContext, gather_methods, print_method
from tngraph.plans.plan import Plan
from tngraph.plans.table import format_range, format_value
from tngraph.program.operations import Block

Variants = Sequence[Sequence[int]]
"""For each tree of a region, the numbers of the regimes in which it runs."""


def print_choice(plan: Plan, words: Words, block: Block) -> PrintedBlock:
    """Return a region that has several trees: a method for each, and the choice between them."""
    variants = plan.variants[block.equation, block.term]
    methods: list[Method] = []
    texts: list[str] = []
    for k, numbers in enumerate(variants):
        context = StatementContext(plan.regimes[numbers[0]], words, f"_{k + 1}")
        branch = next(b for b in context.program.blocks if (b.kind, b.equation, b.term) == _key(block))
        inside = print_inside(context, branch)
        doc = f"{branch.equation}{_describe_sizes(plan, numbers)}: {context.drawing(branch)}"
        methods.append(print_method(context, branch, context.stem(branch), doc, inside))
        texts.extend(gather_methods(inside, methods[-1].text))
    return PrintedBlock(block, tuple(_call_choice(plan, words.names, block, methods)), tuple(texts))


def _key(block: Block) -> tuple[str, str, int]:
    return block.kind, block.equation, block.term


def _describe_sizes(plan: Plan, numbers: Sequence[int]) -> str:
    """Return for which values of the free size some regimes run; nothing if several sizes are free."""
    if len(plan.free) != 1:
        return ""
    return f" for {plan.free[0]} {', '.join(format_range(low, high) for low, high in _join_ranges(plan, numbers))}"


def _call_choice(plan: Plan, names: Names, block: Block, methods: Sequence[Method]) -> Iterator[str]:
    """Yield the call of one of several methods."""
    variants = plan.variants[block.equation, block.term]
    op = plan.regimes[0].program.operations[block.last]
    yield f"# {format_value(op.name, op.legs)}, in the order that is best here"
    for k, method in enumerate(methods):
        is_last = k == len(variants) - 1
        yield "else:" if is_last else f"{'elif' if k else 'if'} {_print_test(plan, names, variants, k)}:"
        yield f"    {names.values[op.name]} = {method.call(method.arguments)}"


def _print_test(plan: Plan, names: Names, variants: Variants, k: int) -> str:
    """Return the test for a variant. An exported graph uses the last variant, which is right at all sizes."""
    condition = _print_condition(plan, names, variants, k)
    return f"not torch.compiler.is_exporting() and {f'({condition})' if ' or ' in condition else condition}"


def _print_condition(plan: Plan, names: Names, variants: Variants, k: int) -> str:
    """Return the condition under which the k-th variant runs, given that none before it does."""
    if len(plan.free) != 1:
        return " or ".join(f"{names.order} == {number + 1}" for number in variants[k])
    size, first = names.sizes[plan.free[0]], variants[k][0]
    tested = {number for numbers in variants[:k] for number in numbers}
    tests = []
    for low, high in _join_ranges(plan, variants[k]):
        is_least = low == plan.regimes[first].low and tested.issuperset(range(first))
        upper = "" if high is None else f"{size} <= {high}"
        tests.append(upper if is_least else f"{size} >= {low}" if high is None else f"{low} <= {upper}")
    return " or ".join(tests)


def _join_ranges(plan: Plan, numbers: Sequence[int]) -> list[tuple[int, int | None]]:
    """Return the values of the one free size that some regimes are for, with neighbouring ranges joined."""
    ranges: list[tuple[int, int | None]] = []
    for number in numbers:
        regime = plan.regimes[number]
        if ranges and ranges[-1][1] == regime.low - 1:
            ranges[-1] = ranges[-1][0], regime.high
        else:
            ranges.append((regime.low, regime.high))
    return ranges


def print_order(plan: Plan, names: Names) -> Iterator[str]:
    """Yield the lines that find the number of the regime of least cost, where several sizes decide.

    Of several regimes that cost the same, the first one runs.
    """
    if not plan.variants or len(plan.free) == 1:
        return
    for name, regime in zip(names.costs, plan.regimes, strict=True):
        assert regime.cost is not None
        yield f"{name} = {names.show(regime.cost)}"
    for k, name in enumerate(names.costs):
        test = " and ".join(f"{name} <= {other}" for other in names.costs[k + 1 :])
        yield f"{'elif' if k else 'if'} {test}:" if test else "else:"
        yield f"    {names.order} = {k + 1}"
