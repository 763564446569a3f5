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
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy

from tngraph.language.network import Network
from tngraph.language.sizes import symbol
from tngraph.language.text.format import format_size
from tngraph.program.backward import GRADIENT, LAID
from tngraph.program.folding import Folding
from tngraph.program.lines import Program
from tngraph.search.region import Tile

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


class NameScope:
    """A scope of the generated code, with the names that it has so far."""

    def __init__(self, reserved: Iterable[str]) -> None:
        """Start a scope without names.

        Args:
            reserved: the names that nothing in it can have.
        """
        self.reserved = frozenset(reserved)
        self.taken: set[str] = set()

    def add(self, name: str, avoid: Container[str] = ()) -> str:
        """Return a name that is free in the scope, which has it from now on.

        Args:
            name: the name that is wanted, which may be dotted.
            avoid: further names not to choose.
        """
        free = name.replace(".", "_")
        free = f"x{free}" if free.startswith("__") else free
        while free in self.reserved or free in self.taken or free in avoid:
            free += "_"
        self.taken.add(free)
        return free


@dataclass(frozen=True, slots=True)
class Names:
    """The Python names of everything in a network's module.

    Attributes:
        class_name: the name of the class.
        members: the attributes and methods of the class. Printing a method adds its name.
        folders: the path of every folder of stored tensors.
        folder_locals: the variable of every folder in methods.
        attributes: the path of every stored tensor.
        size_attributes: the attribute of every size that the constructor takes.
        size_arguments: the constructor's argument for each of these sizes.
        arguments: the argument of ``forward`` for every input.
        sizes: the variable of every named size, and of the size of a tile.
        values: the variable of every value and gradient.
        buffers: the attribute of every folded buffer.
        windows: the variable of every size that counts windows.
        order: the variable for the number of the regime that runs.
        costs: the variable for the cost of every regime, if there are several.
        loops: the variable of every index that is sliced.
        slice: the variable for the number of a slice.
        anchor: the attribute that shows the module's device and type; empty where another tensor does.
    """

    class_name: str
    members: NameScope
    folders: Mapping[str, str]
    folder_locals: Mapping[str, str]
    attributes: Mapping[str, str]
    size_attributes: Mapping[str, str]
    size_arguments: Mapping[str, str]
    arguments: Mapping[str, str]
    sizes: Mapping[str, str]
    values: Mapping[str, str]
    buffers: Mapping[str, str]
    windows: Mapping[sympy.Expr, sympy.Symbol]
    order: str
    costs: tuple[str, ...]
    loops: Mapping[str, str]
    slice: str
    anchor: str

    def show(self, expr: sympy.Expr) -> str:
        """Return a size as code inside ``forward``, where counts of windows have local names."""
        return format_size(expr.xreplace({**self.windows, **_renamed(self.sizes)}))

    def show_size(self, expr: sympy.Expr) -> str:
        """Return a size as code in terms of the named sizes alone, for ``forward`` and ``reset_parameters``."""
        return format_size(expr.xreplace(_renamed(self.sizes)))

    def show_argument(self, expr: sympy.Expr) -> str:
        """Return a size as code inside the constructor."""
        return format_size(expr.xreplace(_renamed(self.size_arguments)))

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


def assign_names(network: Network, programs: Sequence[Program], folding: Folding, tiles: Iterable[Tile] = ()) -> Names:
    """Return the Python names of everything in a module.

    Names are assigned in a fixed order, in which the ones that a user reads most keep their spelling: inputs and sizes
    before values.

    Args:
        network: the network of the module.
        programs: the lines of every regime.
        folding: the lines before the first call.
        tiles: the tiles that the programs cut.
    """
    members, arguments, variables = NameScope(MODULE_ATTRIBUTES | KEYWORDS), NameScope(LOCALS), NameScope(LOCALS)
    folders, attributes = _name_stored(network, members)
    sizes = network.settable_sizes()
    several = len(programs) > 1
    loops = dict.fromkeys(index.name for program in programs for op in program.operations for index in op.loops)
    # Only a module without data and stored tensors needs a tensor to take the device and type of its result from.
    has_tensor = any(core.role in ("input", "param", "buffer") for core in network.cores)
    return Names(
        class_name=NameScope(LOCALS).add(network.name),
        members=members,
        folders=folders,
        attributes=attributes,
        size_attributes={size.name: members.add(size.name) for size in sizes},
        size_arguments={size.name: arguments.add(size.name) for size in sizes},
        arguments={port.name: variables.add(port.name) for port in network.inputs},
        sizes=_name_sizes(network, tiles, variables),
        values=_name_values(programs, folding, variables),
        buffers={
            buffer.name: members.add(f"folded_{k}", avoid=variables.taken)
            for k, buffer in enumerate(folding.buffers, 1)
        },
        windows=_name_windows(network, variables),
        order=variables.add("order") if several else "",
        costs=tuple(variables.add(f"cost_{k + 1}") for k in range(len(programs))) if several else (),
        loops={name: variables.add(name) for name in loops},
        slice=variables.add("number") if loops else "",
        folder_locals={folder: variables.add(folder) for folder in folders},
        anchor="" if has_tensor else members.add("anchor"),
    )


def _name_stored(network: Network, members: NameScope) -> tuple[dict[str, str], dict[str, str]]:
    """Return the path of every folder of stored tensors, and of every stored tensor."""
    scopes = {"": members}
    folders: dict[str, str] = {}
    attributes: dict[str, str] = {}

    def path(name: str) -> str:
        folder, _, own = name.rpartition(".")
        member = scopes[folder].add(own)
        return f"{folders[folder]}.{member}" if folder else member

    for core in network.cores:
        if core.role != "input":
            for folder in core.folders:
                if folder not in folders:
                    folders[folder] = path(folder)
                    scopes[folder] = NameScope(members.reserved)
            attributes[core.name] = path(core.name)
    return folders, attributes


def _name_sizes(network: Network, tiles: Iterable[Tile], variables: NameScope) -> dict[str, str]:
    """Return the variable of every named size, and of the size of every tile that has a size of its own."""
    sizes = {size.name: variables.add(size.name) for size in network.sizes}
    for tile in tiles:
        size = str(tile.part.size)
        if not tile.is_runtime and size not in sizes:
            sizes[size] = variables.add(f"{tile.index.name}_part")
    return sizes


def _name_values(programs: Sequence[Program], folding: Folding, variables: NameScope) -> dict[str, str]:
    """Return the variable of every value and of every gradient."""
    values: dict[str, str] = {}
    for program in (*programs, folding.program):
        for op in program.operations:
            if op.name not in values:
                values[op.name] = variables.add(op.name)
    for backward in (backward for program in programs for backward in program.backward.values()):
        for name in (backward.start.name, *(line.variable.name for line in backward.lines)):
            if name not in values:
                values[name] = variables.add(_gradient_name(name))
    return values


def _name_windows(network: Network, variables: NameScope) -> dict[sympy.Expr, sympy.Symbol]:
    """Return the variable of every size that counts windows."""
    windows: dict[sympy.Expr, sympy.Symbol] = {}
    for index in network.indices():
        if index.size.has(sympy.floor, sympy.Mod) and index.size not in windows:
            windows[index.size] = symbol(variables.add(index.name))
    return windows


def names_in(code: Iterable[str]) -> set[str]:
    """Return the variables that some lines of code read or write."""
    return {node.id for node in ast.walk(ast.parse("\n".join(code))) if isinstance(node, ast.Name)}


def _gradient_name(name: str) -> str:
    """Return the name of a value in a backward pass: a gradient's is from its value, a copy's from what it copies."""
    of, laid, number = name.partition(LAID)
    stem = f"{of.removeprefix(GRADIENT)}_grad" if of.startswith(GRADIENT) else of
    return f"{stem}_laid{number}" if laid else stem


def _renamed(names: Mapping[str, str]) -> dict[sympy.Expr, sympy.Symbol]:
    """Return the substitution of sizes by symbols with their Python names; all else reads the same in Python."""
    return {symbol(own): symbol(name) for own, name in names.items()}
