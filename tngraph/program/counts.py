"""The costs of a schedule as formulas: the one definition that every number comes from.

The MAC of a step are the product of the sizes of its result's axes and of the indices it sums. For a convolution that
is output positions times kernel positions times the rest, for a transposed one input positions times kernel positions.
FLOPs are 2·MAC, the convention of ``torch.utils.flop_counter``.
Products, sums, factors, additions and functions are *elementwise* operations, which are counted separately from FLOPs.
`kinds` says which of both each kind of operation is, and how many it takes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from tngraph.language.legs import legs_size
from tngraph.language.network import Network
from tngraph.language.sizes import evaluate_size, product
from tngraph.program.kinds import entry_of
from tngraph.program.operations import Block, Operation
from tngraph.search.machine import Work
from tngraph.search.objectives import Price, Request


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of a plan at given sizes, as integers.

    Attributes:
        params: learnable entries; a shared core counts once [elements].
        macs: multiply-adds of contractions and convolutions [MAC].
        flops: twice that [FLOPs].
        training_flops: FLOPs of a forward and a backward pass, with the requested gradients [FLOPs].
        elementwise: products, sums, additions, factors and functions [operations].
        largest: the size of the largest value that a step writes [elements].
        peak: the most that a call without gradients holds at once, without inputs and params [bytes].
        saved: memory that autograd keeps for the requested gradients, without params and inputs [bytes].
        moves: memory that a call copies to change the order of axes [bytes].
        folded: buffers computed before the first call, in ``serve`` [bytes].
        cost: the cost that the search minimised; by default MAC plus elementwise [operations].
    """

    params: int
    macs: int
    flops: int
    training_flops: int
    elementwise: int
    largest: int
    peak: int
    saved: int
    moves: int
    folded: int
    cost: Price


def volume(operations: Sequence[Operation], number: int) -> sympy.Expr:
    """Return the scalar operations of one line in all slices: products if it contracts, else entries [operations]."""
    op = operations[number]
    in_slice = entry_of(op).count(op, [operations[k].legs for k in op.operands])
    return in_slice * product(index.size for index in op.loops)


def work_unit(op: Operation) -> str:
    """Return the unit of a line's volume."""
    return entry_of(op).unit or "elementwise"


def macs(operations: Sequence[Operation]) -> sympy.Expr:
    """Return the multiply-adds of a schedule [MAC]."""
    return sympy.Add(*(volume(operations, k) for k, op in enumerate(operations) if _is_matrix(op)))


def _is_matrix(op: Operation) -> bool:
    """Return whether the work of an operation is counted as multiply-adds."""
    return entry_of(op).unit == "MAC"


def elementwise(operations: Sequence[Operation]) -> sympy.Expr:
    """Return the operations of a schedule outside contractions and convolutions [operations]."""
    return sympy.Add(*(volume(operations, k) for k, op in enumerate(operations) if not _is_matrix(op)))


def find_largest(operations: Sequence[Operation]) -> sympy.Expr:
    """Return the size of the largest value that a step of a schedule writes [elements]."""
    return maximum(legs_size(op.legs) for op in operations if op.kind != "load")


def training_macs(
    operations: Sequence[Operation],
    trained: Iterable[str],
    blocks: Sequence[Block] = (),
    gathering: Container[int] = (),
) -> sympy.Expr:
    """Return the multiply-adds of a forward and a backward pass [MAC].

    Each step runs once more for every operand that a gradient flows to.

    Args:
        operations: a schedule.
        trained: the names of the tensors that take a gradient.
        blocks: the blocks of the schedule. Those to recompute run once more in the backward pass.
        gathering: the reads that gather, see `keeps_values`.
    """
    needs = needs_gradient(operations, trained)
    again = recomputed(operations, needs, blocks, gathering)
    terms = (
        volume(operations, k) * (1 + (k in again) + sum(needs[o] for o in op.operands))
        for k, op in enumerate(operations)
        if _is_matrix(op)
    )
    return sympy.Add(*terms, *_macs_of_gradient_lines(operations, needs, blocks))


def _macs_of_gradient_lines(
    operations: Sequence[Operation], needs: Sequence[bool], blocks: Iterable[Block]
) -> Iterator[sympy.Expr]:
    """Yield the multiply-adds of gradients of elementwise products that are matrix products, since they sum [MAC]."""
    for gradient in (gradient for block in blocks for gradient in block.products):
        op = operations[gradient.number]
        if not _is_matrix(op) and needs[op.operands[gradient.side]] and gradient.matmul.is_matrix:
            yield volume(operations, gradient.number)


def recomputed(
    operations: Sequence[Operation], needs: Sequence[bool], blocks: Iterable[Block], gathering: Container[int]
) -> frozenset[int]:
    """Return the operations that run once more in the backward pass.

    PyTorch recomputes a block until it has every value that backward needs. It stops before the last operation that
    keeps something, because by then that operation's operands are there.
    """
    again: set[int] = set()
    for block in blocks:
        keeping = [k for k in range(block.first, block.last + 1) if keeps_values(operations, needs, k, gathering)]
        if block.kind == "recompute" and keeping:
            again.update(range(block.first, keeping[-1]))
    return frozenset(again)


def keeps_values(
    operations: Sequence[Operation], needs: Sequence[bool], number: int, gathering: Container[int]
) -> bool:
    """Return whether an operation keeps something for the backward pass: operands, its result, or positions read.

    Args:
        operations: a schedule.
        needs: for every value, whether a gradient flows to it.
        number: of the operation.
        gathering: the reads that are printed as gathers, whose positions PyTorch keeps; the others are views.
    """
    op = operations[number]
    is_saving = entry_of(op).is_saving or number in gathering
    return is_saving and any(needs[k] for k in op.operands)


def needs_gradient(operations: Sequence[Operation], trained: Iterable[str]) -> list[bool]:
    """Return for every value whether a gradient flows to it.

    Args:
        operations: a schedule.
        trained: the names of the tensors that take a gradient.
    """
    names = set(trained)
    needs: list[bool] = []
    for op in operations:
        is_leaf = op.access is not None and not op.operands and op.access.source in names
        needs.append(is_leaf or any(needs[o] for o in op.operands))
    return needs


def price_operations(
    operations: Sequence[Operation],
    request: Request,
    numbers: Mapping[str, int] | None,
    blocks: Iterable[Block] = (),
    gathering: Container[int] = (),
) -> Any:
    """Return the cost of a schedule under an objective, at these values of all sizes or as a formula.

    Args:
        operations: a schedule.
        request: the objective and, in training, the tensors that take a gradient.
        numbers: an integer for every size; None for a formula, which only `Weighted` objectives have.
        blocks: the blocks of the schedule. Those to recompute run once more in the backward pass.
        gathering: the reads that gather, see `keeps_values`.
    """

    def show(expr: sympy.Expr) -> Any:
        return expr if numbers is None else evaluate_count(expr, numbers)

    needs = needs_gradient(operations, request.trained if request.mode == "train" else ())
    again = recomputed(operations, needs, blocks, gathering)
    total = []
    for k, op in enumerate(operations):
        if entry_of(op).unit is not None:
            grads = [int(needs[o] and entry_of(op).is_differentiated) for o in op.operands]
            sizes = [show(legs_size(operations[o].legs)) for o in op.operands]
            second = (sizes[1], grads[1]) if len(sizes) > 1 else (0, 0)
            work = Work(show(volume(operations, k)), sizes[0], second[0], show(legs_size(op.legs)), grads[0], second[1])
            total.append(request.rate(work))
            if k in again:
                total.append(request.rate(work._replace(left_grad=0, right_grad=0)))
    return sympy.Add(*total) if numbers is None else sum(total)


def param_count(network: Network) -> sympy.Expr:
    """Return the learnable entries of a network, each param once [elements]."""
    return sympy.Add(*(legs_size(core.legs) for core in network.cores if core.role == "param"))


def last_uses(
    operations: Sequence[Operation], outputs: Iterable[int], blocks: Sequence[Block] = ()
) -> dict[int, list[int]]:
    """Return the values that each operation is the last to use. A use of an alias (a load of a result) counts as one.

    Args:
        operations: a schedule.
        outputs: values that outlive the schedule.
        blocks: operations in methods of their own. The caller holds the inputs of a method until it returns. The values
            that it returns for a backward pass also live until then.

    Returns:
        For each operation the values that may be dropped after it.
    """
    alias = aliases(operations)
    held = {alias[k] for k in outputs}
    around = blocks_around(blocks)
    last: dict[int, int] = {}
    for number, op in enumerate(operations):
        if op.kind != "load":
            last[number] = number
            for operand in (alias[operand] for operand in op.operands):
                last[operand] = next((b.last for b in around.get(number, ()) if operand < b.first), number)
    last.update({value: block.last for block in blocks for value in block.saved})
    drops: dict[int, list[int]] = {}
    for value, user in last.items():
        if operations[value].kind != "load" and value not in held:
            drops.setdefault(user, []).append(value)
    return drops


def blocks_around(blocks: Iterable[Block]) -> dict[int, list[Block]]:
    """Return the blocks around every operation, outermost first."""
    around: dict[int, list[Block]] = {}
    for block in sorted(blocks, key=lambda block: block.first - block.last):
        for number in range(block.first, block.last + 1):
            around.setdefault(number, []).append(block)
    return around


def aliases(operations: Sequence[Operation]) -> list[int]:
    """Return for every value the one whose storage it shares: a load of a result shares that of the result."""
    alias: list[int] = []
    for number, op in enumerate(operations):
        alias.append(alias[op.operands[0]] if op.kind == "load" and op.operands else number)
    return alias


def find_users(operations: Sequence[Operation]) -> dict[int, frozenset[int]]:
    """Return the operations that use each value, including those that use it through an alias."""
    names, users_of = aliases(operations), dict[int, set[int]]()
    for number, op in enumerate(operations):
        for operand in op.operands:
            users_of.setdefault(names[operand], set()).add(number)
    return {value: frozenset(users) for value, users in users_of.items()}


def maximum(values: Iterable[sympy.Expr]) -> sympy.Expr:
    """Return the largest of some counts, leaving out those that another one bounds at all positive sizes."""
    rest: list[sympy.Expr] = []
    for value in dict.fromkeys(values):
        if not any(_is_bounded(value, other) for other in rest):
            rest = [other for other in rest if not _is_bounded(other, value)] + [value]
    if not rest:
        return sympy.Integer(0)
    return rest[0] if len(rest) == 1 else sympy.Max(*rest, evaluate=False)


def _is_bounded(value: sympy.Expr, other: sympy.Expr) -> bool:
    """Return whether value <= other follows term by term from every size being at least 1.

    Each product of sizes in `value` is charged to products in `other` that it divides, as far as their coefficients
    reach. If `other` has a negative coefficient, it bounds only itself.
    """
    left = dict(other.as_coefficients_dict())
    if any(coefficient < 0 for coefficient in left.values()):
        return bool(value == other)
    for product_of_sizes, wanted in value.as_coefficients_dict().items():
        for larger in left:
            if wanted > 0 and _divides(product_of_sizes, larger):
                taken = min(wanted, left[larger])
                left[larger] -= taken
                wanted -= taken
        if wanted > 0:
            return False
    return True


def _divides(factor: sympy.Expr, whole: sympy.Expr) -> bool:
    powers, others = whole.as_powers_dict(), factor.as_powers_dict()
    return all(base.is_positive and (powers[base] - power).is_nonnegative for base, power in others.items()) and all(
        base.is_positive for base in powers
    )


def evaluate_count(expr: sympy.Expr, values: Mapping[str, int]) -> int:
    """Return a count as an integer, however large."""
    return evaluate_size(expr, values)
