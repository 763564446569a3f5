"""The lines of a planned backward pass, from the gradient of a region's result to the gradients of its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tngraph.program.expressions import Call, Expression, Variable, substitute, variables
from tngraph.program.layout import Axes, Tensor, arrange, axes_shape, lay
from tngraph.program.operations import Block, Operation, Product

GRADIENT = "grad "
"""The prefix of a gradient's name, before the name of its value. It has a space, so no value's name starts with it."""
LAID = " laid"
"""The suffix of a copy's name, after the name of the value that is copied."""


@dataclass(frozen=True, slots=True)
class GradientLine:
    """One gradient line of a backward pass: it computes the gradient of one value, or a copy that several lines use.

    Attributes:
        number: the operation that the value is an operand of.
        of: the gradient that is multiplied, or the value that is copied.
        by: the name or number that `of` is multiplied by; empty for a copy.
        is_product: true if it is a product of matrices.
        variable: the variable that the result is assigned to.
        made: the expression that computes it, with its axes.
        needs: positions of the region's inputs whose gradients depend on this line.
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
        given: the inputs of the block.
        kept: the values of the forward pass that the backward pass reads.
        start: the gradient of the result.
        lines: in the order they run. A later line may add to an earlier gradient.
        results: the gradient's variable for each input, or None if it has no gradient.
    """

    given: tuple[Variable, ...]
    kept: tuple[Variable, ...]
    start: Variable
    lines: tuple[GradientLine, ...]
    results: tuple[Variable | None, ...]


Multiply = Callable[[Product, Operation, Sequence[Tensor]], Tensor]


def differentiate(
    block: Block,
    operations: Sequence[Operation],
    tensors: Sequence[Tensor],
    given: Sequence[Variable],
    multiply: Multiply,
) -> Backward:
    """Return the backward pass of a block.

    Args:
        block: a block of kind ``planned``.
        operations: all operations of the schedule.
        tensors: the values of the operations.
        given: the inputs of the block.
        multiply: returns the product of a gradient and an operand.
    """
    products = {(product.number, product.side): product for product in block.products}
    needs = _find_needs(block, operations, tensors, given)
    last = tensors[block.last]
    start = _gradient_of(operations[block.last].name, last.axes)
    grads = {block.last: Tensor(start, last.axes)}
    lines: list[GradientLine] = []
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
                by, is_product = operations[other].name, op.kind == "contract" or product.matmul.is_matrix
            is_given = _is_given(block, operations, operand)
            if is_given:
                is_result = operations[operand].kind == "load" and bool(operations[operand].operands)
                put_out = lay if is_result else arrange  # the result's maker reads both in one order
                made = Tensor(put_out(made, source.axes), source.axes)
            variable = _gradient_of(operations[operand].name, made.axes)
            if not is_given:
                grads[operand] = Tensor(variable, made.axes)
            elif source.code in results:
                made = Tensor(Call("add", (variable, made.code), (), variable.shape), made.axes)
            else:
                results[source.code] = variable
            of = next(variables(grad.code))
            lines.append(GradientLine(number, of, by, is_product, variable, made, needs[operand]))
    lines = list(_share_copies(lines))
    kept = dict.fromkeys(v for line in lines for v in variables(line.made.code) if v.kind == "value")
    inside = {operations[k].name for k in range(block.first, block.last + 1) if operations[k].kind != "load"}
    read = tuple(v for v in kept if v.name in inside)
    return Backward(tuple(given), read, start, tuple(lines), tuple(results.get(variable) for variable in given))


def _share_copies(lines: Sequence[GradientLine]) -> Iterator[GradientLine]:
    """Yield the lines, with a copy that several of them make in common put before the first of these."""
    copied = [dict.fromkeys(_copies(line.made.code)) for line in lines]
    users = Counter(code for found in copied for code in found)
    shared: dict[Expression, Expression] = {}
    for line, found in zip(lines, copied, strict=True):
        for code in (code for code in found if users[code] > 1 and code not in shared):
            of = next(variables(code))
            count = sum(next(variables(other)) == of for other in shared)
            variable = Variable("value", f"{of.name}{LAID}{count or ''}", code.shape)
            needs = frozenset().union(*(each.needs for each, had in zip(lines, copied, strict=True) if code in had))
            shared[code] = variable
            yield GradientLine(line.number, of, "", False, variable, Tensor(code, ()), needs)
        yield replace(line, made=replace(line.made, code=substitute(line.made.code, shared)))


def _copies(code: Expression) -> Iterator[Call]:
    """Yield the outermost copies in an expression."""
    if isinstance(code, Call) and code.function == "contiguous":
        yield code
    elif isinstance(code, Call):
        for operand in code.operands:
            yield from _copies(operand)


def _find_needs(
    block: Block, operations: Sequence[Operation], tensors: Sequence[Tensor], given: Sequence[Variable]
) -> dict[int, frozenset[int]]:
    """Return, for every value a block uses, the positions of the inputs it depends on, constants left out."""
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
    """Return whether a value comes from outside a block."""
    return number < block.first or operations[number].kind == "load"


def _gradient_of(name: str, axes: Axes) -> Variable:
    return Variable("value", f"{GRADIENT}{name}", axes_shape(axes))
