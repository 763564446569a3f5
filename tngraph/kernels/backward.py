"""The lines of a planned backward pass: from the gradient of a region's result to those of what the region is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tngraph.kernels.expressions import Call, Expression, Variable, variables
from tngraph.kernels.layout import Axes, Tensor, arrange, axes_shape
from tngraph.kernels.schedule import Block, Operation, Product
from tngraph.language.network import Leg


@dataclass(frozen=True, slots=True)
class Slope:
    """One line of a backward pass, which makes the gradient of one value.

    Attributes:
        number: of the operation that the value is an operand of.
        of: the gradient that it is made of.
        by: the name of what that is multiplied by, or the number.
        is_product: whether it is a product of matrices.
        made: the variable, and the code that computes it.
        axes: of the gradient.
        needs: the places, among what the region is given, whose gradients it is needed for.
    """

    number: int
    of: Variable
    by: str
    is_product: bool
    made: tuple[Variable, Call]
    axes: Axes
    needs: frozenset[int]

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs in memory order."""
        return tuple(leg for axis in self.axes for leg in axis)


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
            grad, source = grads[number], tensors[operand]
            if op.kind == "scale":
                made = Tensor(Call("scale", (grad.code,), (op.number,), axes_shape(grad.axes)), grad.axes)
                by, is_product = str(op.number), False
            else:
                product, other = products[number, side], op.operands[1 - side]
                made = multiply(product, op, (grad, tensors[other]))
                by, is_product = operations[other].name, op.kind == "contract" or product.form.is_matrix
            is_given = operand < block.first or operations[operand].kind == "load"
            if is_given:
                made = Tensor(arrange(made, source.axes), source.axes)
            variable = _gradient_of(operations[operand].name, made.axes)
            if not is_given:
                grads[operand] = Tensor(variable, made.axes)
            elif source.code in results:
                made = Tensor(Call("add", (variable, made.code), (), variable.shape), made.axes)
            else:
                results[source.code] = variable
            code = made.code
            assert isinstance(code, Call)
            lines.append(
                Slope(number, next(variables(grad.code)), by, is_product, (variable, code), made.axes, needs[operand])
            )
    kept = dict.fromkeys(v for line in lines for v in variables(line.made[1]) if v.kind == "value")
    inside = {operations[k].name for k in range(block.first, block.last + 1) if operations[k].kind != "load"}
    read = tuple(v for v in kept if v.name in inside)
    return Backward(tuple(given), read, start, tuple(lines), tuple(results.get(variable) for variable in given))


def _find_needs(
    block: Block, operations: Sequence[Operation], tensors: Sequence[Tensor], given: Sequence[Variable]
) -> dict[int, frozenset[int]]:
    """For every value a block uses the places of what it depends on, constants left out."""
    places = {variable: frozenset({place}) for place, variable in enumerate(given)}
    needs: dict[int, frozenset[int]] = {}

    def find(number: int) -> frozenset[int]:
        if number not in needs:
            op = operations[number]
            if block.first <= number and op.kind != "load":
                needs[number] = frozenset().union(*(find(operand) for operand in op.operands))
            else:
                code = tensors[number].code
                is_learned = isinstance(code, Variable) and number not in block.constant
                needs[number] = places[code] if is_learned else frozenset()  # type: ignore[index]
        return needs[number]

    find(block.last)
    return needs


def _gradient_of(name: str, axes: Axes) -> Variable:
    return Variable("value", gradient_name(name), axes_shape(axes))


def gradient_name(name: str) -> str:
    """What the gradient of a value is called; no value is called so."""
    return f"grad {name}"
