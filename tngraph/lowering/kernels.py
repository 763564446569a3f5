"""What one printed line does: from an operation on values to the PyTorch expression that computes it.

Contractions become one (batched) matrix product, convolutions one ``F.conv*``, so that what PyTorch's
FLOP counter sees is the MAC of the plan, forward and backward. A grouped convolution is a product of unfolded
windows instead: the counter charges a grouped convolution's weight gradient once per pair of groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tngraph.language.network import Function, Leg, Read
from tngraph.lowering.layout import Axes, Context, Tensor, arrange, call, separate
from tngraph.lowering.windows import convolve, lay_taps, resolved_reads, unfold
from tngraph.planning.schedule import Operation

MOST_SPATIAL = 3
"""PyTorch convolves over at most three dimensions at once."""
FUNCTIONS: Mapping[str, str] = {
    "relu": "torch.relu",
    "tanh": "torch.tanh",
    "sigmoid": "torch.sigmoid",
    "exp": "torch.exp",
    "log": "torch.log",
    "sqrt": "torch.sqrt",
    "abs": "torch.abs",
    "square": "torch.square",
    "sin": "torch.sin",
    "cos": "torch.cos",
    "gelu": "F.gelu",
    "silu": "F.silu",
    "softplus": "F.softplus",
    "leaky_relu": "F.leaky_relu",
    "elu": "F.elu",
}


def lower(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    """The expression that computes an operation, with the axes its result has.

    Args:
        op: any operation but a load.
        operands: the values it takes.
        wanted: the leg order its user would like best.
        context: how sizes print.
    """
    return RULES[op.kind](op, operands, wanted, context)


def _contract(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    left, right, shared, rows, columns = _split(operands, wanted, context)
    batch = tuple(leg for leg in shared if leg in op.legs)
    summed = tuple(leg for leg in shared if leg not in op.legs)
    outer: Axes = (batch,) if batch else ()
    a = arrange(left, (*outer, rows, summed), context.show)
    b = arrange(right, (*outer, summed, columns), context.show)
    return Tensor(call("torch.bmm" if batch else "torch.mm", a, b), (*outer, rows, columns))


class _Split(NamedTuple):
    """Two operands in the order they multiply, and their legs: those of both as the larger has them, and of each."""

    left: Tensor
    right: Tensor
    shared: tuple[Leg, ...]
    rows: tuple[Leg, ...]
    columns: tuple[Leg, ...]


def _split(operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> _Split:
    left, right = _orient(operands, wanted, context)
    big, small = sorted(operands, key=lambda t: -context.size(t.legs))
    shared = tuple(leg for leg in big.legs if leg in small.legs)
    rows, columns = (tuple(leg for leg in t.legs if leg not in shared) for t in (left, right))
    return _Split(left, right, shared, rows, columns)


def _orient(operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> tuple[Tensor, Tensor]:
    """The operand whose own legs should come first: the one that holds the first wanted leg, else the larger."""
    first, second = operands
    own = [{leg for leg in a.legs if leg not in b.legs} for a, b in ((first, second), (second, first))]
    for leg in wanted:
        if leg in own[0] or leg in own[1]:
            return (first, second) if leg in own[0] else (second, first)
    return (first, second) if context.size(first.legs) >= context.size(second.legs) else (second, first)


def _mul(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    left, right, shared, rows, columns = _split(operands, wanted, context)
    axes = tuple(axis for axis in (shared, rows, columns) if axis)
    a = _broadcast(left, axes, context)
    b = _broadcast(right, axes, context)
    return Tensor(f"{a} * {b}", axes)


def _broadcast(tensor: Tensor, axes: Axes, context: Context) -> str:
    """A tensor brought to these axes, size 1 where it lacks one; leading ones are left to broadcasting."""
    own: list[tuple[Leg, ...]] = []
    for axis in axes:
        if own or all(leg in tensor.legs for leg in axis):
            own.append(axis if all(leg in tensor.legs for leg in axis) else ())
    return arrange(tensor, tuple(own), context.show)


def _sum(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    (tensor,) = operands
    axes = _runs(tensor.legs, lambda leg: leg in op.legs)
    gone = [k for k, axis in enumerate(axes) if axis[0] not in op.legs]
    dims = ", ".join(map(str, gone))
    code = arrange(tensor, axes, context.show)
    kept = tuple(axis for axis in axes if axis[0] in op.legs)
    return Tensor(f"{code}.sum(({dims},))" if len(gone) == 1 else f"{code}.sum(({dims}))", kept)


def _runs(legs: Sequence[Leg], key: Callable[[Leg], object]) -> Axes:
    """Legs fused where neighbours agree on a key."""
    runs: list[tuple[Leg, ...]] = []
    for leg in legs:
        if runs and key(leg) == key(runs[-1][0]):
            runs[-1] += (leg,)
        else:
            runs.append((leg,))
    return tuple(runs)


def _read(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    tensor = unfold(
        operands[0], [leg for leg in operands[0].legs if leg not in op.legs and isinstance(leg, Read)], context
    )
    return _diagonals(tensor)


def _diagonals(tensor: Tensor) -> Tensor:
    """Indices that stand twice taken once."""
    legs = list(tensor.legs)
    for leg in dict.fromkeys(legs):
        while legs.count(leg) > 1:
            first = legs.index(leg)
            second = legs.index(leg, first + 1)
            legs = [other for k, other in enumerate(legs) if k not in (first, second)] + [leg]
            tensor = Tensor(f"{tensor.code}.diagonal(0, {first}, {second})", separate(legs))
    return tensor


def _conv(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    first, second = operands
    ours, theirs = resolved_reads(first, second, op.legs), resolved_reads(second, first, op.legs)
    if ours and theirs:
        return _conv(op, [first, lay_taps(second, theirs, context)], wanted, context)
    signal, kernel, resolved = (first, second, ours) if ours else (second, first, theirs)
    batch = [leg for leg in signal.legs if leg in kernel.legs and leg in op.legs]
    if batch or len(resolved) > MOST_SPATIAL:
        return _contract(op, [lay_taps(signal, resolved, context), kernel], wanted, context)
    return convolve(signal, kernel, resolved, op.legs, context)


def _scale(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    (tensor,) = operands
    return Tensor(f"{op.number!r} * {tensor.code}", tensor.axes)


def _embed(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    (tensor,) = operands
    for inner in dict.fromkeys(op.pattern):
        outer = [leg for leg, own in zip(op.legs, op.pattern, strict=True) if own == inner]
        others = tuple(leg for leg in tensor.legs if leg != inner)
        axes = separate((*others, inner))
        if len(outer) > 1:
            code = arrange(tensor, axes, context.show)
            for _ in outer[1:]:
                code = f"torch.diag_embed({code})"
            tensor = Tensor(code, separate((*others, *outer)))
    return tensor


def _add(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    first, second = operands
    order = next((t.legs for t in operands if set(t.legs) == set(op.legs)), op.legs)
    axes = _runs(order, lambda leg: (leg in first.legs, leg in second.legs))
    a, b = _broadcast(first, axes, context), _broadcast(second, axes, context)
    return Tensor(f"{a} {'-' if op.number < 0 else '+'} {b}", axes)


def _pointwise(op: Operation, operands: Sequence[Tensor], wanted: Sequence[Leg], context: Context) -> Tensor:
    (tensor,) = operands
    assert isinstance(op.function, Function)
    arguments = ", ".join([tensor.code, *map(repr, op.function.args)])
    return Tensor(f"{FUNCTIONS[op.function.name]}({arguments})", tensor.axes)


Rule = Callable[[Operation, Sequence[Tensor], Sequence[Leg], Context], Tensor]

RULES: Mapping[str, Rule] = {
    "contract": _contract,
    "conv": _conv,
    "mul": _mul,
    "sum": _sum,
    "read": _read,
    "scale": _scale,
    "embed": _embed,
    "add": _add,
    "pointwise": _pointwise,
}
