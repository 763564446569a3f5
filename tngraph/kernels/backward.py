"""The lines of a planned backward pass: from the gradient of a region's result to those of what the region is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tngraph.kernels.expressions import Call, Expression, Variable, substitute, variables
from tngraph.kernels.layout import Axes, Tensor, arrange, axes_shape, lay
from tngraph.kernels.schedule import Block, Operation, Product

GRADIENT = "grad "
"""What comes before the name of a value in that of its gradient; no value is called so."""
LAID = " laid"
"""What comes behind the name of a value in that of a copy in another order."""


@dataclass(frozen=True, slots=True)
class Slope:
    """One line of a backward pass, which makes the gradient of one value, or a copy that several lines take.

    Attributes:
        number: of the operation that the value is an operand of.
        of: the gradient, or the value, that it is made of.
        by: the name of what that is multiplied by, or the number; empty where it is copied.
        is_product: whether it is a product of matrices.
        variable: what the gradient is called.
        made: what computes it, with its axes.
        needs: the places, among what the region is given, whose gradients it is needed for.
    """

    number: int
    of: Variable
    by: str
    is_product: bool
    variable: Variable
    made: Tensor
    needs: frozenset[int]


@dataclass(frozen=True, slots=True)
class Backward:
    """The backward pass of a block.

    Attributes:
        given: the tensors that the block is given.
        kept: the values of the forward pass that it reads.
        start: the gradient of the result.
        lines: in order; a gradient may be added to.
        results: for each tensor that is given the variable of its gradient; None where it has none.
    """

    given: tuple[Variable, ...]
    kept: tuple[Variable, ...]
    start: Variable
    lines: tuple[Slope, ...]
    results: tuple[Variable | None, ...]


Multiply = Callable[[Product, Operation, Sequence[Tensor]], Tensor]


def differentiate(
    block: Block,
    operations: Sequence[Operation],
    tensors: Sequence[Tensor],
    given: Sequence[Variable],
    multiply: Multiply,
) -> Backward:
    """The backward pass of a block.

    Args:
        block: of kind ``planned``.
        operations: all of the schedule.
        tensors: their values.
        given: what the block is given.
        multiply: makes the product of a gradient and an operand.
    """
    products = {(product.number, product.side): product for product in block.products}
    needs = _find_needs(block, operations, tensors, given)
    last = tensors[block.last]
    start = _gradient_of(operations[block.last].name, last.axes)
    grads = {block.last: Tensor(start, last.axes)}
    lines: list[Slope] = []
    results: dict[Expression, Variable] = {}
    for number in range(block.last, block.first - 1, -1):
        op = operations[number]
        if op.kind == "view":
            grads[op.operands[0]] = grads[number]
            continue
        for side, operand in enumerate(op.operands if number in grads else ()):
            if not needs[operand]:
                continue
            if operations[operand].kind == "arrange" and operand >= block.first:
                (operand,) = operations[operand].operands
            grad, source = grads[number], tensors[operand]
            if op.kind == "scale":
                made = Tensor(Call("scale", (grad.code,), (op.number,), axes_shape(grad.axes)), grad.axes)
                by, is_product = str(op.number), False
            else:
                product, other = products[number, side], op.operands[1 - side]
                made = multiply(product, op, (grad, tensors[other]))
                by, is_product = operations[other].name, op.kind == "contract" or product.form.is_matrix
            is_given = _is_given(block, operations, operand)
            if is_given:
                is_result = operations[operand].kind == "load" and bool(operations[operand].operands)
                put_out = lay if is_result else arrange  # what made the result passes over both in one order
                made = Tensor(put_out(made, source.axes), source.axes)
            variable = _gradient_of(operations[operand].name, made.axes)
            if not is_given:
                grads[operand] = Tensor(variable, made.axes)
            elif source.code in results:
                made = Tensor(Call("add", (variable, made.code), (), variable.shape), made.axes)
            else:
                results[source.code] = variable
            of = next(variables(grad.code))
            lines.append(Slope(number, of, by, is_product, variable, made, needs[operand]))
    lines = list(_share_copies(lines))
    kept = dict.fromkeys(v for line in lines for v in variables(line.made.code) if v.kind == "value")
    inside = {operations[k].name for k in range(block.first, block.last + 1) if operations[k].kind != "load"}
    read = tuple(v for v in kept if v.name in inside)
    return Backward(tuple(given), read, start, tuple(lines), tuple(results.get(variable) for variable in given))


def _share_copies(lines: Sequence[Slope]) -> Iterator[Slope]:
    """The lines, with what several of them copy in the same way copied once, before the first of them."""
    copied = [dict.fromkeys(_copies(line.made.code)) for line in lines]
    users = Counter(code for found in copied for code in found)
    known: dict[Expression, Expression] = {}
    for line, found in zip(lines, copied, strict=True):
        for code in (code for code in found if users[code] > 1 and code not in known):
            of = next(variables(code))
            count = sum(next(variables(other)) == of for other in known)
            variable = Variable("value", f"{of.name}{LAID}{count or ''}", code.shape)
            needs = frozenset().union(*(each.needs for each, had in zip(lines, copied, strict=True) if code in had))
            known[code] = variable
            yield Slope(line.number, of, "", False, variable, Tensor(code, ()), needs)
        yield replace(line, made=replace(line.made, code=substitute(line.made.code, known)))


def _copies(code: Expression) -> Iterator[Call]:
    """The copies in an expression, but for those inside of others."""
    if isinstance(code, Call) and code.function == "contiguous":
        yield code
    elif isinstance(code, Call):
        for operand in code.operands:
            yield from _copies(operand)


def _find_needs(
    block: Block, operations: Sequence[Operation], tensors: Sequence[Tensor], given: Sequence[Variable]
) -> dict[int, frozenset[int]]:
    """For every value a block uses the places of what it depends on, constants left out."""
    places = {variable: frozenset({place}) for place, variable in enumerate(given)}
    needs: dict[int, frozenset[int]] = {}
    made = [k for k in range(block.first, block.last + 1) if not _is_given(block, operations, k)]
    for number in sorted({*made, *(operand for k in made for operand in operations[k].operands)}):
        code = tensors[number].code
        if not _is_given(block, operations, number):
            needs[number] = frozenset().union(*(needs[operand] for operand in operations[number].operands))
        elif isinstance(code, Variable) and number not in block.constant:
            needs[number] = places[code]
        else:
            needs[number] = frozenset()
    return needs


def _is_given(block: Block, operations: Sequence[Operation], number: int) -> bool:
    """Whether a value that a block uses is not made inside."""
    return number < block.first or operations[number].kind == "load"


def _gradient_of(name: str, axes: Axes) -> Variable:
    return Variable("value", f"{GRADIENT}{name}", axes_shape(axes))
