"""The lines of a planned backward pass, from the gradient of a region's result to the gradients of its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tngraph.program.expressions import Call, Expression, Variable, substitute, variables
from tngraph.program.kinds import entry_of
from tngraph.program.layout import Axes, Context, LaidOut, arrange, axes_shape, compute, lay
from tngraph.program.operations import Block, Operation

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
        result: the expression that computes it, with its axes.
        needs: positions of the region's inputs whose gradients depend on this line.
    """

    number: int
    of: Variable
    by: str
    is_product: bool
    variable: Variable
    result: LaidOut
    needs: frozenset[int]


@dataclass(frozen=True, slots=True)
class Backward:
    """The backward pass of a block.

    Attributes:
        inputs: the inputs of the block.
        saved: the values of the forward pass that the backward pass reads.
        start: the gradient of the result.
        lines: in the order they run. A later line may add to an earlier gradient.
        results: the gradient's variable for each input, or None if it has no gradient.
    """

    inputs: tuple[Variable, ...]
    saved: tuple[Variable, ...]
    start: Variable
    lines: tuple[GradientLine, ...]
    results: tuple[Variable | None, ...]


def differentiate(
    block: Block,
    operations: Sequence[Operation],
    tensors: Sequence[LaidOut],
    inputs: Sequence[Variable],
    context: Context,
) -> Backward:
    """Return the backward pass of a block.

    Args:
        block: a block of kind ``planned``.
        operations: all operations of the schedule.
        tensors: the values of the operations.
        inputs: the inputs of the block.
        context: the sizes planned for.
    """
    writer = _GradientWriter(block, operations, tensors, inputs, context)
    for number in range(block.last, block.first - 1, -1):
        writer.pass_back(number)
    return writer.backward()


class _GradientWriter:
    """A backward pass under construction, from the block's last operation to its first."""

    def __init__(
        self,
        block: Block,
        operations: Sequence[Operation],
        tensors: Sequence[LaidOut],
        inputs: Sequence[Variable],
        context: Context,
    ) -> None:
        self.block, self.operations, self.tensors, self.inputs = block, operations, tensors, inputs
        self.context = context
        self.products = {(product.number, product.side): product for product in block.products}
        self.needs = _find_needs(block, operations, tensors, inputs)
        last = tensors[block.last]
        self.start = _gradient_of(operations[block.last].name, last.axes)
        self.gradients = {block.last: LaidOut(self.start, last.axes)}
        self.lines: list[GradientLine] = []
        self.results: dict[Expression, Variable] = {}

    def pass_back(self, number: int) -> None:
        """Write the lines that compute the gradients of an operation's operands from that of its value."""
        op = self.operations[number]
        if number not in self.gradients:
            return
        if entry_of(op).is_rearranging:
            self.gradients[op.operands[0]] = self.gradients[number]
            return
        for side, operand in enumerate(op.operands):
            if self.needs[operand]:
                self._write_line(number, side, self._before_copy(operand))

    def _before_copy(self, operand: int) -> int:
        """Return the value itself for an operand that the block only lays out in another order."""
        op = self.operations[operand]
        return op.operands[0] if entry_of(op).is_rearranging and operand >= self.block.first else operand

    def _write_line(self, number: int, side: int, operand: int) -> None:
        op, gradient = self.operations[number], self.gradients[number]
        entry, product = entry_of(op), self.products.get((number, side))
        if entry.gradient is None:
            raise LookupError(
                f"no gradient is known of {op.kind!r} in a planned backward pass: add one in tngraph/program/kinds.py"
            )
        others = () if product is None else (op.operands[1 - side],)
        factors = [gradient, *(self.tensors[other] for other in others)]
        result = entry.gradient(op, product, factors, self.context)
        by = self.operations[others[0]].name if others else str(op.number)
        is_product = product is not None and (entry.unit == "MAC" or product.matmul.is_matrix)
        variable, result = self._assign(operand, result)
        of = next(variables(gradient.code))
        self.lines.append(GradientLine(number, of, by, is_product, variable, result, self.needs[operand]))

    def _assign(self, operand: int, result: LaidOut) -> tuple[Variable, LaidOut]:
        """Return the variable of a value's gradient, and the expression that is assigned to it.

        The gradients of inputs leave the block with the axes of the input. If an input is used twice, its gradients are
        added up.
        """
        source, name = self.tensors[operand], self.operations[operand].name
        if not _is_input(self.block, self.operations, operand):
            variable = _gradient_of(name, result.axes)
            self.gradients[operand] = LaidOut(variable, result.axes)
            return variable, result
        is_result = self.operations[operand].kind == "load" and bool(self.operations[operand].operands)
        put_out = lay if is_result else arrange  # the call that computed a result reads both in one order
        result = LaidOut(put_out(result, source.axes), source.axes)
        variable = _gradient_of(name, result.axes)
        if source.code in self.results:
            return variable, compute("add", (variable, result.code), result.axes)
        self.results[source.code] = variable
        return variable, result

    def backward(self) -> Backward:
        """Return the backward pass, once all operations are passed."""
        lines, block = tuple(_share_copies(self.lines)), self.block
        names = {op.name for op in self.operations[block.first : block.last + 1] if op.kind != "load"}
        read = dict.fromkeys(v for line in lines for v in variables(line.result.code))
        saved = tuple(v for v in read if v.kind == "value" and v.name in names)
        return Backward(tuple(self.inputs), saved, self.start, lines, tuple(map(self.results.get, self.inputs)))


def _share_copies(lines: Sequence[GradientLine]) -> Iterator[GradientLine]:
    """Yield the lines, with a copy that several of them make in common put before the first of these."""
    copied = [dict.fromkeys(_copies(line.result.code)) for line in lines]
    users = Counter(code for copies in copied for code in copies)
    shared: dict[Expression, Expression] = {}
    for line, copies in zip(lines, copied, strict=True):
        for code in (code for code in copies if users[code] > 1 and code not in shared):
            of = next(variables(code))
            count = sum(next(variables(other)) == of for other in shared)
            variable = Variable("value", f"{of.name}{LAID}{count or ''}", code.shape)
            sharing = (other for other, copies in zip(lines, copied, strict=True) if code in copies)
            needs = frozenset().union(*(other.needs for other in sharing))
            shared[code] = variable
            yield GradientLine(line.number, of, "", False, variable, LaidOut(code, ()), needs)
        yield replace(line, result=replace(line.result, code=substitute(line.result.code, shared)))


def _copies(code: Expression) -> Iterator[Call]:
    """Yield the outermost copies in an expression."""
    if isinstance(code, Call) and code.function == "contiguous":
        yield code
    elif isinstance(code, Call):
        for operand in code.operands:
            yield from _copies(operand)


def _find_needs(
    block: Block, operations: Sequence[Operation], tensors: Sequence[LaidOut], inputs: Sequence[Variable]
) -> dict[int, frozenset[int]]:
    """Return, for every value a block uses, the positions of the inputs it depends on, constants left out."""
    places = {variable: frozenset({place}) for place, variable in enumerate(inputs)}
    needs: dict[int, frozenset[int]] = {}
    inside = [k for k in range(block.first, block.last + 1) if not _is_input(block, operations, k)]
    for number in sorted({*inside, *(operand for k in inside for operand in operations[k].operands)}):
        code = tensors[number].code
        if not _is_input(block, operations, number):
            needs[number] = frozenset().union(*(needs[operand] for operand in operations[number].operands))
        elif isinstance(code, Variable) and number not in block.constant:
            needs[number] = places[code]
        else:
            needs[number] = frozenset()
    return needs


def _is_input(block: Block, operations: Sequence[Operation], number: int) -> bool:
    """Return whether a value comes from outside a block."""
    return number < block.first or operations[number].kind == "load"


def _gradient_of(name: str, axes: Axes) -> Variable:
    return Variable("value", f"{GRADIENT}{name}", axes_shape(axes))
