"""Prints expressions: one rule per function that a line of ``forward`` calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

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
        return RULES[code.function](code, [_print_operand(code, k, words) for k in range(len(code.operands))], words)
    if code.kind == "stored":
        return words.names.values[code.name] if words.is_static else words.names.stored(code.name)
    if code.kind == "buffer":
        return f"self.{words.names.buffers[code.name]}"
    return (words.names.arguments if code.kind == "input" else words.names.values)[code.name]


def _print_operand(call: Call, number: int, words: Words) -> str:
    """Return an operand as code, in parentheses if it has a sign: a method after it would apply to one side alone."""
    operand, text = call.operands[number], print_expression(call.operands[number], words)
    is_split = number == 0 and call.function in METHODS and isinstance(operand, Call) and operand.function in OPERATORS
    return f"({text})" if is_split else text


Rule = Callable[[Call, Sequence[str], Words], str]


def _method(name: str) -> Rule:
    """Return the rule for a method whose arguments are numbers."""
    return lambda call, operands, words: f"{operands[0]}.{name}({', '.join(map(str, call.arguments))})"


def _operator(sign: str) -> Rule:
    return lambda call, operands, words: f"{operands[0]} {sign} {operands[1]}"


def _function(name: str) -> Rule:
    return lambda call, operands, words: wrap(name, operands)


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
    return f"{operands[0]}.mT" if is_transposed else _method("permute")(call, operands, words)


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


def _sum(call: Call, operands: Sequence[str], words: Words) -> str:
    return f"{operands[0]}.sum({call.arguments})"


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


RULES: Mapping[str, Rule] = {
    "reshape": _reshape,
    "permute": _permute,
    "expand": lambda call, operands, words: f"{operands[0]}.expand({words.sizes(call.shape)})",
    "contiguous": _method("contiguous"),
    "movedim": _method("movedim"),
    "pad": _pad,
    "narrow": _narrow,
    "select": _select,
    "accumulate": lambda call, operands, words: operands[0],
    "join": lambda call, operands, words: operands[0],
    "every": lambda call, operands, words: _subscript(operands[0], call.arguments[0], f"::{call.arguments[1]}"),
    "unfold": _unfold,
    "gather": lambda call, operands, words: _subscript(operands[0], call.arguments[0], ", ".join(operands[1:])),
    "index_select": lambda call, operands, words: f"{operands[0]}.index_select({call.arguments[0]}, {operands[1]})",
    "diagonal": lambda call, operands, words: f"{operands[0]}.diagonal(0, {call.arguments[0]}, {call.arguments[1]})",
    "unsqueeze": _method("unsqueeze"),
    "flip": _method("flip"),
    "mm": _function("torch.mm"),
    "bmm": _function("torch.bmm"),
    "mul": _operator("*"),
    "add": _operator("+"),
    "sub": _operator("-"),
    "scale": lambda call, operands, words: f"{call.arguments[0]!r} * {operands[0]}",
    "sum": _sum,
    **dict.fromkeys(("pointwise", "pointwise_"), _pointwise),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "diag_embed": _function("torch.diag_embed"),
    "ones": _ones,
    "eye": lambda call, operands, words: f"torch.eye({words.sizes(call.shape)}, {words.options})",
    "full": lambda call, operands, words: f"torch.full((), {words.sizes(call.arguments)}, {words.device})",
    "arange": lambda call, operands, words: f"torch.arange({words.sizes(call.arguments)}, {words.device})",
    "remainder": _remainder,
    "type_as": lambda call, operands, words: f"{operands[0]}.type_as({operands[1]})",
    "clamp": lambda call, operands, words: f"torch.clamp({operands[0]}, 0, {words.sizes(call.arguments)})",
    "differs": lambda call, operands, words: f"({operands[0]} != {operands[1]})",
    "masked_fill": lambda call, operands, words: f"{operands[0]}.masked_fill({operands[1]}, 0)",
    "equals": lambda call, operands, words: f"({operands[0]} == {call.arguments[0]})",
    "convert": lambda call, operands, words: f"{operands[0]}.to({words.anchor}.dtype)",
}

OPERATORS = ("mul", "add", "sub", "scale", "remainder")
"""Calls that are printed with a sign between their operands."""
METHODS = (
    *("reshape", "permute", "expand", "contiguous", "movedim", "narrow", "select", "every", "unfold", "gather"),
    *("index_select", "diagonal", "unsqueeze", "flip", "sum", "convert", "type_as", "masked_fill"),
)
"""Calls that are printed as a method or a subscript of their first operand."""
