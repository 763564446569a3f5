"""Prints the methods that build a module: ``__init__``, ``reset_parameters`` and ``extra_repr``."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from itertools import groupby
from textwrap import indent

import sympy

from tngraph.language.legs import depends_on
from tngraph.language.network import Core, Size
from tngraph.language.varying import call_sizes
from tngraph.lowering.initialise import Spread, default_spreads, matrix_sizes
from tngraph.lowering.names import Names
from tngraph.plans.plan import Plan
from tngraph.program.lines import is_diagonal
from tngraph.program.operations import Operation


def print_constructor(plan: Plan, names: Names) -> str:
    """Return ``__init__``: sizes as arguments, and every stored tensor with its legs in a comment."""
    sizes = [_print_size(size, plan.sizes, names) for size in plan.network.settable_sizes()]
    lines = ["super().__init__()", *(line for _, checks in sizes for line in checks)]
    constants = _constants(plan, names)
    stored = [core for core in plan.network.cores if core.role in ("param", "buffer") or core in constants]
    paths = dict.fromkeys(names.folders[folder] for core in stored for folder in core.folders)
    lines.extend(f"self.{path} = nn.Module()" for path in paths)
    lines.extend(_register(core, names, plan.request.trained) for core in stored)
    if names.anchor:
        empty = "torch.empty((), device=device, dtype=dtype)"
        lines.append(f'self.register_buffer("{names.anchor}", {empty}, persistent=False)  # what results are like')
    if any(op.loops for op in _operations(plan)):
        lines.append("self.first_slice, self.slice_step = 0, 1  # the slices that this process adds up")
    lines.append("self.reset_parameters()")
    if names.buffers:
        lines.append("self.register_load_state_dict_post_hook(self.refold)")
    arguments = ["self", *(argument for argument, _ in sizes), "*", "device=None", "dtype=None"]
    signature = f"def __init__({', '.join(arguments)}):"
    return "\n".join([signature, indent("\n".join(lines), "    ")])


def _print_size(size: Size, numbers: Mapping[str, int], names: Names) -> tuple[str, list[str]]:
    """Return the argument for a size with its default, and the lines that check and store it.

    A size that was planned at its formula's value keeps the formula as its default, so that it follows other sizes.
    """
    argument, planned = names.size_arguments[size.name], numbers[size.name]
    lines = [
        f"if {argument} < 1:",
        f'    raise ValueError(f"the size {size.name} is {{{argument}}}; a size is at least 1")',
        f"self.{names.size_attributes[size.name]} = {argument}",
    ]
    formula = size.value
    if formula is not None and formula.free_symbols:
        at_default = formula.subs({other: numbers[other.name] for other in formula.free_symbols})
        if at_default == planned:
            default = f"{argument} = {names.show_argument(formula)} if {argument} is None else {argument}"
            return f"{argument}=None", [default, *lines]
    return f"{argument}={planned}", lines


def _operations(plan: Plan) -> list[Operation]:
    """Return the operations of all regimes, including those before the first call."""
    return [op for regime in plan.regimes for op in regime.split.whole.operations]


def _constants(plan: Plan, names: Names) -> list[Core]:
    """Return the constants that a module stores: those that it reads and whose sizes are known when it is built."""
    cores = {core.name: core for core in plan.network.cores if core.role == "const"}
    runtime = call_sizes(plan.network)
    accesses = [op.access for op in _operations(plan) if op.access is not None and op.access.source in cores]
    loaded = {access.source for access in accesses if not is_diagonal(cores[access.source], access)}
    return [core for core in cores.values() if core.name in loaded and not depends_on(core.legs, runtime)]


def _register(core: Core, names: Names, trained: Container[str]) -> str:
    """Return the line that registers a core with the module. A frozen param has ``requires_grad=False``."""
    shape = _show_tuple([names.show_argument(leg.size) for leg in core.legs])
    name = names.attributes[core.name]
    comment = f"  # [{', '.join(leg.name for leg in core.legs)}]"
    empty = f"torch.empty({shape}, device=device, dtype=dtype)"
    if core.role == "param":
        frozen = "" if core.name in trained else ", requires_grad=False"
        return f"self.{name} = nn.Parameter({empty}{frozen}){comment}"
    *path, own = name.split(".")
    register = ".".join(["self", *path, "register_buffer"])
    if core.role == "buffer":
        initial = empty if core.init is not None else empty.replace("empty", "zeros")
        return f'{register}("{own}", {initial}){comment}'
    return f'{register}("{own}", {empty}, persistent=False){comment}'


def _show_tuple(items: Sequence[str]) -> str:
    """Return the code of a tuple."""
    return f"({', '.join(items)},)" if len(items) == 1 else f"({', '.join(items)})"


def print_reset(plan: Plan, names: Names) -> str:
    """Return ``reset_parameters``, which sets params, constants, and the buffers that have an initialisation."""
    doc = '"""Draw the params anew: a linear map starts with the variance its dense weight would have."""'
    lines: list[str] = []
    drawn = [c for c in plan.network.cores if c.role == "param" or (c.role == "buffer" and c.init is not None)]
    spreads = default_spreads(plan.network)
    for std, cores in groupby(drawn, lambda core: spreads[core.name] if core.init is None else None):
        targets = {f"self.{names.attributes[core.name]}": core for core in cores}
        if std is None:
            lines.extend(_fixed_init(core, target, names) for target, core in targets.items())
        else:
            lines.extend(_draw(list(targets), _std(plan, std, names)))
    lines.extend(_fill(core, f"self.{names.attributes[core.name]}") for core in _constants(plan, names))
    if names.buffers:
        lines.append("self.refold()")
    lines = [doc, *names.local_lines(lines), *lines]
    return "\n".join(["def reset_parameters(self):", indent("\n".join(lines), "    ")])


def _draw(targets: Sequence[str], std: str) -> list[str]:
    """Return the lines that draw some params with one standard deviation."""
    if len(targets) == 1:
        return [f"nn.init.normal_({targets[0]}, std={std})"]
    return [f"for param in ({', '.join(targets)}):", f"    nn.init.normal_(param, std={std})"]


def _fill(core: Core, target: str) -> str:
    """Return the line that fills a stored constant.

    It is in ``reset_parameters`` so that a module built on the meta device can be filled later.
    """
    assert core.init is not None
    if core.init.kind == "basis":
        return f"nn.init.zeros_({target})[{int(core.init.args[0])}] = 1"
    if core.init.kind == "ones" or len(core.legs) < 2:
        return f"nn.init.ones_({target})"
    return f"nn.init.zeros_({target}).fill_diagonal_(1)"


def _std(plan: Plan, spread: Spread, names: Names) -> str:
    """Return the code of factor^(-1/(2·count)), through logarithms since the factor can exceed the largest float."""
    settable = plan.network.settable_sizes()
    runtime = {size.symbol: plan.sizes[size.name] for size in plan.network.sizes if size not in settable}
    over, under = sympy.fraction(sympy.together(spread.factor.subs(runtime)))
    whole = over.as_content_primitive()[0].q  # sympy leaves fractions inside a sum
    over, under = whole * over, whole * under
    if under == 1:
        return f"math.exp(-math.log({names.show_size(over)}) / {2 * spread.count})"
    log = f"math.log({names.show_size(under)}) - math.log({names.show_size(over)})"
    return f"math.exp(({log}) / {2 * spread.count})"


def _fixed_init(core: Core, target: str, names: Names) -> str:
    assert core.init is not None
    kind, args = core.init.kind, core.init.args
    if kind in _MATRICES:
        rows, columns = map(names.show_size, matrix_sizes(core))
        return f"with torch.no_grad():\n    {_MATRICES[kind](target, rows, columns, args)}"
    if kind == "uniform":
        both = f"torch.view_as_real({target}) if {target}.is_complex() else {target}"
        return f"nn.init.uniform_({both}, {args[0]!r}, {args[1]!r})"
    if kind == "normal":
        return f"nn.init.normal_({target}, std={args[0]!r})"
    if core.fan_in is not None:
        shown = names.show_size(core.fan_in)
        return f"nn.init.normal_({target}, std={shown if core.fan_in.is_Atom else f'({shown})'}**-0.5)"
    if kind == "signs":  # drawn real even for complex tensors, as for orthogonal: PyTorch draws no complex signs
        drawn = f"{target}.real.new_empty({target}.shape).bernoulli_(0.5).mul_(2).sub_(1).mul_({args[0]!r})"
        return f"with torch.no_grad():\n    {target}.copy_({drawn})"
    return f"nn.init.{kind}_({target})"


def _eye(target: str, rows: str, columns: str, args: Sequence[object]) -> str:
    if args:
        return f"nn.init.zeros_({target}).view({rows}, {columns}).fill_diagonal_({args[0]!r})"
    return f"nn.init.eye_({target}.view({rows}, {columns}))"


def _near_eye(target: str, rows: str, columns: str, args: Sequence[object]) -> str:
    return f"nn.init.normal_({target}, std={args[0]!r}).view({rows}, {columns}).diagonal().add_(1)"


def _orthogonal(target: str, rows: str, columns: str, args: Sequence[object]) -> str:
    wide = f"dtype=torch.promote_types({target}.real.dtype, torch.float32)"
    gain = f", gain={args[0]!r}" if args else ""
    drawn = f"nn.init.orthogonal_({target}.real.new_empty({rows}, {columns}, {wide}){gain})"
    return f"{target}.copy_({drawn}.view_as({target}))"


_MATRICES: Mapping[str, Callable[[str, str, str, Sequence[object]], str]] = {
    "eye": _eye,
    "near_eye": _near_eye,
    "orthogonal": _orthogonal,
}
"""Code that initialises a tensor as a matrix, from its target, rows, columns and numbers."""


def print_extra_repr(plan: Plan, names: Names) -> str:
    """Return ``extra_repr``, which shows the sizes that the module was built with and its count of params."""
    sizes = plan.network.settable_sizes()
    shown = ", ".join(f"{size.name}={{self.{names.size_attributes[size.name]}}}" for size in sizes)
    count = "params={sum(p.numel() for p in self.parameters())}"
    return "\n".join(["def extra_repr(self):", f'    return f"{", ".join(filter(None, (shown, count)))}"'])
