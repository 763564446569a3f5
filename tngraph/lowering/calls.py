"""Prints expressions: one rule per function that a line of ``forward`` calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import sympy

from tngraph.language.network import Index
from tngraph.lowering.names import Names
from tngraph.program.expressions import Call, Expression

WIDTH = 100
"""A call longer than this is printed with one argument per line [characters]."""
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


@dataclass(frozen=True, slots=True)
class Words:
    """The names and options that expressions are printed with.

    Attributes:
        names: the Python names of the module.
        anchor: a tensor whose device and dtype new tensors take.
        is_static: true in static methods, where there is no ``self`` and stored tensors have local names.
    """

    names: Names
    anchor: str
    is_static: bool = False

    @property
    def device(self) -> str:
        """The argument that gives a new tensor its device."""
        return f"device={self.anchor}.device"

    @property
    def options(self) -> str:
        """The arguments that give a new tensor its device and dtype."""
        return f"{self.device}, dtype={self.anchor}.dtype"

    def sizes(self, sizes: Sequence[sympy.Expr]) -> str:
        """Return sizes as arguments."""
        return ", ".join(map(self.names.show, sizes))


def print_expression(code: Expression, words: Words) -> str:
    """Return an expression as Python code."""
    if isinstance(code, Call):
        operands = [_print_operand(code, k, words) for k in range(len(code.operands))]
        return PRINTINGS[code.function].rule(code, operands, words)
    if code.kind == "stored":
        return words.names.values[code.name] if words.is_static else words.names.stored(code.name)
    if code.kind == "buffer":
        return f"self.{words.names.buffers[code.name]}"
    return (words.names.arguments if code.kind == "input" else words.names.values)[code.name]


def _print_operand(call: Call, number: int, words: Words) -> str:
    """Return an operand as code, in parentheses if it has a sign: a method after it would apply to one side alone."""
    operand, text = call.operands[number], print_expression(call.operands[number], words)
    is_split = number == 0 and PRINTINGS[call.function].form == "method" and _has_sign(operand)
    return f"({text})" if is_split else text


def _has_sign(code: Expression) -> bool:
    return isinstance(code, Call) and PRINTINGS[code.function].form == "operator"


Rule = Callable[[Call, Sequence[str], Words], str]


@dataclass(frozen=True, slots=True)
class Printing:
    """The rule and the form by which a call is printed.

    Attributes:
        rule: returns the code of a call from the code of its operands.
        form: whether the code begins with a name (``call``), with the first operand and a dot or bracket after it
            (``method``), or has a sign between its operands (``operator``).
    """

    rule: Rule
    form: Literal["call", "method", "operator"] = "call"


def _as_method(rule: Rule) -> Printing:
    return Printing(rule, "method")


def _method(name: str) -> Printing:
    """Return the printing of a method whose arguments are numbers."""
    return _as_method(lambda call, operands, words: _write_method(name, call, operands))


def _write_method(name: str, call: Call, operands: Sequence[str]) -> str:
    return f"{operands[0]}.{name}({', '.join(map(str, call.arguments))})"


def _operator(sign: str) -> Printing:
    return Printing(lambda call, operands, words: f"{operands[0]} {sign} {operands[1]}", "operator")


def _function(name: str) -> Printing:
    return Printing(lambda call, operands, words: wrap(name, operands))


def wrap(function: str, arguments: Sequence[str]) -> str:
    """Return a call on one line, or with one argument per line if that is too long."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{function}(", *(f"    {argument}," for argument in arguments), ")"])


def _reshape(call: Call, operands: Sequence[str], words: Words) -> str:
    return f"{operands[0]}.reshape({words.sizes(call.shape) or '()'})"


def _permute(call: Call, operands: Sequence[str], words: Words) -> str:
    count = len(call.arguments)
    is_transposed = count > 1 and call.arguments == (*range(count - 2), count - 1, count - 2)
    return f"{operands[0]}.mT" if is_transposed else _write_method("permute", call, operands)


def _pad(call: Call, operands: Sequence[str], words: Words) -> str:
    """Print a pad. PyTorch counts axes from the last one and wants nothing for those before the first padded one."""
    first = next(axis for axis, sides in enumerate(call.arguments) if any(side != 0 for side in sides))
    sides = [side for axis in range(len(call.arguments) - 1, first - 1, -1) for side in call.arguments[axis]]
    return f"F.pad({operands[0]}, ({words.sizes(sides)}))"


def _narrow(call: Call, operands: Sequence[str], words: Words) -> str:
    axis, *sizes = call.arguments
    return f"{operands[0]}.narrow({axis}, {words.sizes(sizes)})"


def _unfold(call: Call, operands: Sequence[str], words: Words) -> str:
    axis, size, step = call.arguments
    return f"{operands[0]}.unfold({axis}, {words.names.show(size)}, {step})"


def _select(call: Call, operands: Sequence[str], words: Words) -> str:
    """Print a select, at a number or at the loop variable of an index."""
    axis, position = call.arguments
    return (
        f"{operands[0]}.select({axis}, {words.names.loops[position.name] if isinstance(position, Index) else position})"
    )


def _subscript(operand: str, axis: int, last: str) -> str:
    return f"{operand}[{':, ' * axis}{last}]"


def _remainder(call: Call, operands: Sequence[str], words: Words) -> str:
    positions = call.operands[0]
    is_sum = isinstance(positions, Call) and positions.function == "add"
    first = f"({operands[0]})" if is_sum else operands[0]
    if not call.arguments:
        return f"{first} % {operands[1]}"
    modulus = words.names.show(call.arguments[0])
    return f"{first} % {modulus if modulus.isidentifier() or modulus.isdigit() else f'({modulus})'}"


def _conv(call: Call, operands: Sequence[str], words: Words) -> str:
    named = zip(("stride", "padding", "dilation"), call.arguments[:3], (1, 0, 1), strict=True)
    return _convolution("conv", call, operands, named, words)


def _convolution(
    function: str,
    call: Call,
    operands: Sequence[str],
    named: Iterable[tuple[str, Sequence[int], int]],
    words: Words,
) -> str:
    """Return a call with the options whose values differ from the defaults."""
    options = [f"{name}={numbers}" for name, numbers, default in named if set(numbers) != {default}]
    groups = call.arguments[3]
    options += [f"groups={words.names.show(groups)}"] * (groups != 1)
    return wrap(f"F.{function}{len(call.shape) - 2}d", [*operands, *options])


def _conv_transpose(call: Call, operands: Sequence[str], words: Words) -> str:
    named = zip(("stride", "padding", "output_padding"), call.arguments[:3], (1, 0, 0), strict=True)
    return _convolution("conv_transpose", call, operands, named, words)


def _pointwise(call: Call, operands: Sequence[str], words: Words) -> str:
    name, *numbers = call.arguments
    in_place = "_" * call.function.endswith("_")
    if name == "abs":  # real of complex numbers, which multiply with complex ones alone
        return f"torch.abs({operands[0]}).to({operands[0]}.dtype)"
    return f"{FUNCTIONS[name]}{in_place}({', '.join([*operands, *map(repr, numbers)])})"


def _ones(call: Call, operands: Sequence[str], words: Words) -> str:
    shape = words.sizes(call.shape)
    return f"torch.ones({shape if len(call.shape) == 1 else f'({shape})'}, {words.options})"


PRINTINGS: Mapping[str, Printing] = {
    "reshape": _as_method(_reshape),
    "permute": _as_method(_permute),
    "expand": _as_method(lambda call, operands, words: f"{operands[0]}.expand({words.sizes(call.shape)})"),
    "contiguous": _method("contiguous"),
    "movedim": _method("movedim"),
    "narrow": _as_method(_narrow),
    "select": _as_method(_select),
    "every": _as_method(
        lambda call, operands, words: _subscript(operands[0], call.arguments[0], f"::{call.arguments[1]}")
    ),
    "unfold": _as_method(_unfold),
    "gather": _as_method(
        lambda call, operands, words: _subscript(operands[0], call.arguments[0], ", ".join(operands[1:]))
    ),
    "index_select": _as_method(
        lambda call, operands, words: f"{operands[0]}.index_select({call.arguments[0]}, {operands[1]})"
    ),
    "diagonal": _as_method(
        lambda call, operands, words: f"{operands[0]}.diagonal(0, {call.arguments[0]}, {call.arguments[1]})"
    ),
    "unsqueeze": _method("unsqueeze"),
    "flip": _method("flip"),
    "sum": _as_method(lambda call, operands, words: f"{operands[0]}.sum({call.arguments})"),
    "type_as": _as_method(lambda call, operands, words: f"{operands[0]}.type_as({operands[1]})"),
    "masked_fill": _as_method(lambda call, operands, words: f"{operands[0]}.masked_fill({operands[1]}, 0)"),
    "convert": _as_method(lambda call, operands, words: f"{operands[0]}.to({words.anchor}.dtype)"),
    "mul": _operator("*"),
    "add": _operator("+"),
    "sub": _operator("-"),
    "scale": Printing(lambda call, operands, words: f"{call.arguments[0]!r} * {operands[0]}", "operator"),
    "remainder": Printing(_remainder, "operator"),
    "mm": _function("torch.mm"),
    "bmm": _function("torch.bmm"),
    "diag_embed": _function("torch.diag_embed"),
    "pad": Printing(_pad),
    "conv": Printing(_conv),
    "conv_transpose": Printing(_conv_transpose),
    **dict.fromkeys(("pointwise", "pointwise_"), Printing(_pointwise)),
    "ones": Printing(_ones),
    "eye": Printing(lambda call, operands, words: f"torch.eye({words.sizes(call.shape)}, {words.options})"),
    "full": Printing(lambda call, operands, words: f"torch.full((), {words.sizes(call.arguments)}, {words.device})"),
    "arange": Printing(lambda call, operands, words: f"torch.arange({words.sizes(call.arguments)}, {words.device})"),
    "clamp": Printing(lambda call, operands, words: f"torch.clamp({operands[0]}, 0, {words.sizes(call.arguments)})"),
    "differs": Printing(lambda call, operands, words: f"({operands[0]} != {operands[1]})"),
    "equals": Printing(lambda call, operands, words: f"({operands[0]} == {call.arguments[0]})"),
    **dict.fromkeys(("accumulate", "join"), Printing(lambda call, operands, words: operands[0])),
}
"""How each function of `program.pytorch.FUNCTIONS` is printed."""
