"""Names from a network made safe in Python, by a documented rule that changes only names that would clash.

A name that the generated file cannot use as it stands (a keyword, an attribute of ``nn.Module``, ``self``, ``torch``,
…) gets underscores appended until it is free. A name that starts with two underscores, which Python mangles, gets an
``x`` in front. All other names stay exactly as declared.

A tensor stored under a dotted name lies in folders, which are plain modules inside the module. Each part of the name is
made safe by this rule among its neighbours. A variable has ``_`` for each dot. A method looks up each folder once,
since reading an attribute of a module takes PyTorch as long as a small kernel.
"""

from __future__ import annotations

import ast
import keyword
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from tngraph.language.network import Core
from tngraph.language.sizes import symbol
from tngraph.language.text.format import format_size
from tngraph.language.varying import call_sizes
from tngraph.plans.plan import Plan
from tngraph.program.backward import GRADIENT, LAID

MODULE_ATTRIBUTES = frozenset(
    """T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict
    modules mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu zero_grad
    _apply _backward_hooks _backward_pre_hooks _buffers _call_impl _compiled_call_impl _forward_hooks
    _forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks _forward_pre_hooks_with_kwargs
    _get_backward_hooks _get_backward_pre_hooks _get_name _is_full_backward_hook _load_from_state_dict
    _load_state_dict_post_hooks _load_state_dict_pre_hooks _maybe_warn_non_full_backward_hook _modules _named_members
    _non_persistent_buffers_set _parameters _register_load_state_dict_pre_hook _register_state_dict_hook
    _replicate_for_data_parallel _save_to_state_dict _slow_forward _state_dict_hooks _state_dict_pre_hooks _version
    _wrapped_call_impl reset_parameters plan printed source sizes flops verify at fold refold first_slice
    slice_step""".split()  # noqa: SIM905 - a list a person can read
)
"""Names that a param of a module cannot have: the attributes of ``torch.nn.Module``, and tngraph's own."""

KEYWORDS = frozenset(keyword.kwlist)
LOCALS = KEYWORDS | {"self", "torch", "nn", "F", "math", "super", "param", "sum", "tuple", "min", "max", "ValueError"}
LOCALS |= {"device", "dtype", "range", "checkpoint", "zip", "contract", "PlannedBackward", "needs", "any", "map"}
"""Names that a variable of the generated methods cannot have."""


def escape(name: str, reserved: Iterable[str], taken: set[str]) -> str:
    """Return a name free of clashes, and add it to the taken ones."""
    blocked = frozenset(reserved)
    safe = f"x{name}" if name.startswith("__") else name
    while safe in blocked or safe in taken:
        safe += "_"
    taken.add(safe)
    return safe


@dataclass(slots=True)
class Names:
    """The Python names of everything in a network's module."""

    plan: Plan
    class_name: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    folder_locals: dict[str, str] = field(default_factory=dict)
    size_attributes: dict[str, str] = field(default_factory=dict)
    size_arguments: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    windows: dict[sympy.Expr, sympy.Symbol] = field(default_factory=dict)
    readers: set[tuple[str, int]] = field(default_factory=set)
    loops: dict[str, str] = field(default_factory=dict)
    costs: list[str] = field(default_factory=list)
    order: str = "order"
    number: str = "number"
    anchor: str = ""
    methods: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        network = self.plan.network
        self.class_name = escape(network.name, LOCALS, set())
        taken: dict[str, set[str]] = {"": set()}
        for core in network.cores:
            if core.role != "input":
                for folder in core.folders:
                    if folder not in self.folders:
                        self.folders[folder] = self._attribute(folder, taken)
                        taken[folder] = set()
                self.attributes[core.name] = self._attribute(core.name, taken)
        in_constructor: set[str] = set()
        for size in network.settable_sizes():
            self.size_attributes[size.name] = self._attribute(size.name, taken)
            self.size_arguments[size.name] = escape(size.name, LOCALS, in_constructor)
        in_forward: set[str] = set()
        for port in network.inputs:
            self.arguments[port.name] = _variable(port.name, in_forward)
        for size in network.sizes:
            self.sizes[size.name] = escape(size.name, LOCALS, in_forward)
        for tile in (tree.tile for regime in self.plan.regimes for tree in regime.trees):
            if tile is not None and not tile.is_runtime:
                self.sizes[str(tile.part.size)] = _variable(f"{tile.index.name}_part", in_forward)
        folding = self.plan.folding
        for operations in (*(regime.operations for regime in self.plan.regimes), folding.program.operations):
            for op in operations:
                if op.name not in self.values:
                    self.values[op.name] = _variable(op.name, in_forward)
        for regime in self.plan.regimes:
            for backward in regime.program.backward.values():
                for name in (backward.start.name, *(line.variable.name for line in backward.lines)):
                    if name not in self.values:
                        self.values[name] = _variable(_gradient_name(name), in_forward)
        for k, buffer in enumerate(folding.buffers, 1):
            self.buffers[buffer.name] = escape(f"folded_{k}", MODULE_ATTRIBUTES | in_forward, taken[""])
        for index in network.indices():
            if index.size.has(sympy.floor, sympy.Mod) and index.size not in self.windows:
                self.windows[index.size] = symbol(_variable(index.name, in_forward))
        if len(self.plan.regimes) > 1:
            self.order = _variable("order", in_forward)
            self.costs = [_variable(f"cost_{k + 1}", in_forward) for k in range(len(self.plan.regimes))]
        for regime in self.plan.regimes:
            for index in (index for op in regime.operations for index in op.loops):
                if index.name not in self.loops:
                    self.loops[index.name] = _variable(index.name, in_forward)
        self.number = _variable("number", in_forward) if self.loops else self.number
        self.folder_locals = {folder: _variable(folder, in_forward) for folder in self.folders}
        if not any(core.role in ("input", "param", "buffer") for core in network.cores):
            # Nothing else of the module knows its device and type.
            self.anchor = escape("anchor", MODULE_ATTRIBUTES | KEYWORDS, taken[""])
        self.methods = taken[""]

    def method(self, stem: str) -> str:
        """Return a free name for one more method of the module."""
        return escape(stem, MODULE_ATTRIBUTES | KEYWORDS, self.methods)

    def _attribute(self, name: str, taken: Mapping[str, set[str]]) -> str:
        """Return the attribute path of a stored tensor or folder, and add its name to those taken in its folder."""
        folder, _, own = name.rpartition(".")
        safe = escape(own, MODULE_ATTRIBUTES | KEYWORDS, taken[folder])
        return f"{self.folders[folder]}.{safe}" if folder else safe

    def show(self, expr: sympy.Expr) -> str:
        """Return a size as code inside ``forward``, where counts of windows have local names."""
        return format_size(expr.xreplace(self.windows | _renamed(self.sizes)))

    def show_size(self, expr: sympy.Expr) -> str:
        """Return a size as code in terms of the named sizes alone, for ``forward`` and ``reset_parameters``."""
        return format_size(expr.xreplace(_renamed(self.sizes)))

    def show_argument(self, expr: sympy.Expr) -> str:
        """Return a size as code inside the constructor."""
        return format_size(expr.xreplace(_renamed(self.size_arguments)))

    def is_runtime(self, core: Core) -> bool:
        """Return whether the shape of a core depends on run-time sizes."""
        runtime = call_sizes(self.plan.network)
        return any(symbol.name in runtime for leg in core.legs for symbol in leg.size.free_symbols)

    def stored(self, name: str) -> str:
        """Return the code that reads a stored tensor in a method, through its folder's local name if it has one."""
        folder, _, _ = name.rpartition(".")
        path = self.attributes[name]
        return f"{self.folder_locals[folder]}.{path.rpartition('.')[2]}" if folder else f"self.{path}"

    def local_lines(self, code: Sequence[str]) -> Iterator[str]:
        """Return the lines that give local names to the module's folders and sizes that some code uses."""
        used = names_in(code)
        own = {local: self.folders[folder] for folder, local in self.folder_locals.items()}
        own |= {self.sizes[name]: attribute for name, attribute in self.size_attributes.items()}
        return (f"{local} = self.{path}" for local, path in own.items() if local in used)


def names_in(code: Iterable[str]) -> set[str]:
    """Return the variables that some lines of code read or write."""
    return {node.id for node in ast.walk(ast.parse("\n".join(code))) if isinstance(node, ast.Name)}


def _gradient_name(name: str) -> str:
    """Return the name of a value in a backward pass: a gradient's is from its value, a copy's from what it copies."""
    of, laid, number = name.partition(LAID)
    stem = f"{of.removeprefix(GRADIENT)}_grad" if of.startswith(GRADIENT) else of
    return f"{stem}_laid{number}" if laid else stem


def _variable(name: str, taken: set[str]) -> str:
    return escape(name.replace(".", "_"), LOCALS, taken)


def _renamed(names: Mapping[str, str]) -> dict[sympy.Expr, sympy.Symbol]:
    """Return the substitution of sizes by symbols with their Python names; all else reads the same in Python."""
    return {symbol(own): symbol(name) for own, name in names.items()}
