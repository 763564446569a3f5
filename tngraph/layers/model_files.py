"""Models as files: their tensors as safetensors, and a recipe by which their layers of cores are built again.

The recipe is JSON without code: the class, family, modes, options and plan of each layer. Nothing of it is believed:
every plan is derived again, every layer built without memory and compared with what the tensors are, before a model is
changed. The tensors carry the hash of the recipe that they were saved with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tngraph.errors import ModelError, TngraphError
from tngraph.files import explain, read_bytes, replacing
from tngraph.layers.blueprints import (
    CLASSES,
    GENERATED,
    NETWORK,
    SHARED,
    Blueprint,
    check_place,
    expected_state,
    find_blueprints,
    put,
    shapes,
)
from tngraph.plans.loading import parse_plan
from tngraph.plans.saving import digest, format_plan_file

MODEL, RECIPE = "model.safetensors", "recipe.json"
FORMAT, VERSION = "tngraph model", 1
"""The version changes when the meaning of a file changes."""
LONGEST_RECIPE = 2**26
"""The longest recipe [bytes]."""
DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64)
}
"""The types that cores may have in a file."""
_HASH = "tngraph_recipe_sha256"
Fields = dict[str, Any]


def save(model: nn.Module, folder: str | Path) -> None:
    """Save a model that has layers of cores, so that `load_model` builds it again in another process.

    ``model.safetensors`` holds its params and buffers under their names, tied ones once; ``recipe.json`` says how its
    layers of cores are built. Both are written whole or not at all. Other files of the folder stay.

    Args:
        model: the model.
        folder: where to save it; it is made if there is none.

    Raises:
        ModelError: a family that is a function of yours, or anything else that these files cannot hold; or a folder
            that cannot be written to.
    """
    tensors, ties = _untie(_state_of(model))
    recipe = _format_recipe(model, ties)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing([folder / MODEL, folder / RECIPE]) as (beside, recipe_beside):
            safetensors.torch.save_file(_apart(tensors), beside, {"format": "pt", _HASH: digest(recipe)})
            recipe_beside.write_text(recipe, "utf-8", newline="\n")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = explain(error) if isinstance(error, OSError | ValueError) else str(error)
        raise ModelError(f"{folder} cannot be written: {reason}") from None


def load_model(folder: str | Path, base: nn.Module) -> nn.Module:
    """Load a model that `save` has saved: build its layers of cores, put them in a base model, and load all tensors.

    Args:
        folder: where it was saved.
        base: a model of the same architecture, with ordinary layers or already with layers of cores. It is changed in
            place; if anything does not fit, it stays as it is.

    Returns:
        The base, or, if the whole model was one layer of cores, that layer.

    Raises:
        ModelError: files that are missing, damaged or of another version; or a base that they do not fit. The message
            names the layer.
    """
    folder = Path(folder)
    with _named(folder / RECIPE):
        text, fields = _read_recipe(folder / RECIPE)
        blueprints = _read_blueprints(fields)
        built = [(blueprint, _build(blueprint)) for blueprint in blueprints]
        ties, frozen = _texts(fields, "ties"), _names(fields, "frozen")
    with _opened(folder / MODEL) as file:
        if (file.metadata() or {}).get(_HASH) != digest(text):
            raise ModelError(f"{folder / MODEL} and {RECIPE} are not of one save", "save the model again")
        _check(base, built, file, ties)
        model = base
        for blueprint, layer in built:
            model = put(model, blueprint, layer.to_empty(device=_device_of(base, blueprint)))
        _tie(model, ties)
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model.load_state_dict({**state, **{name: state[first] for name, first in ties.items()}})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the params and buffers of a model by name.

    Raises:
        ModelError: one that a file cannot hold.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module, and not {model!r}")
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(f"{name} is a {type(value).__name__}, and files hold tensors alone")
        if is_lazy(value):
            raise ModelError(f"{name} has no size yet", "run a batch through the model first")
        if value.is_meta:
            raise ModelError(f"{name} is on the meta device and has no values", "model.to_empty(device='cpu')")
    return state


def _untie(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every tensor under its first name, and the first name of every other."""
    first: dict[int, str] = {}
    ties = {name: first[id(tensor)] for name, tensor in state.items() if first.setdefault(id(tensor), name) != name}
    return {name: tensor for name, tensor in state.items() if name not in ties}, ties


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        values = tensor.detach().contiguous()
        place = values.untyped_storage().data_ptr()
        apart[name] = values.clone() if place in seen else values
        seen.add(place)
    return apart


def _format_recipe(model: nn.Module, ties: Mapping[str, str]) -> str:
    plans: dict[str, int] = {}
    layers = [_fields_of(blueprint, plans) for blueprint, _ in find_blueprints(model)]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    fields = {"format": FORMAT, "version": VERSION, "ties": ties, "frozen": frozen, "layers": layers}
    rows = [f" {json.dumps(name)}: {_rows(value)}" for name, value in fields.items()]
    rows.append(f' "plans": {_rows([json.loads(plan) for plan in plans])}')
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _rows(value: Any) -> str:
    """Return JSON with the items of a list on lines of their own."""
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"


def _fields_of(blueprint: Blueprint, plans: dict[str, int]) -> Fields:
    """Return a blueprint as JSON; layers with the same plan share it.

    Raises:
        ModelError: a plan that minimises a Python function.
    """
    try:
        plan = plans.setdefault(format_plan_file(blueprint.plan), len(plans))
    except TngraphError as error:
        raise ModelError(f"{blueprint.name} cannot be saved: {error}") from None
    dtype = str(blueprint.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(f"{blueprint.name} cannot be saved as {dtype}", f"cores are {', '.join(DTYPES)}")
    fields = {"at": blueprint.places, "class": blueprint.kind, "dtype": dtype, "sizes": blueprint.sizes, "plan": plan}
    if blueprint.kind == NETWORK:
        return fields
    recipe = {"family": blueprint.family, "modes": blueprint.modes, "options": blueprint.options}
    return {**fields, "tensor": blueprint.tensor, "arguments": blueprint.arguments, **recipe}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the name of a file in front of what is wrong with it."""
    try:
        yield
    except (TngraphError, TypeError) as error:
        raise ModelError(f"{path}: {error}") from None


def _read_recipe(path: Path) -> tuple[str, Fields]:
    try:
        data = read_bytes(path, LONGEST_RECIPE)
    except (OSError, ValueError) as error:
        raise ModelError(explain(error), "give a folder that tngraph.save has written") from None
    if len(data) > LONGEST_RECIPE:
        raise ModelError(f"the file is longer than {LONGEST_RECIPE:,} bytes")
    try:
        text = data.decode("utf-8")
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the file is not JSON: {str(error)[:200]}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ModelError("the file is not the recipe of a model")
    if fields.get("version") != VERSION:
        raise ModelError(
            f"the file has version {fields.get('version')!r}, and this tngraph reads version {VERSION}",
            "read it with the tngraph that wrote it, or save it again",
        )
    return text, fields


def _read_blueprints(fields: Fields) -> list[Blueprint]:
    texts = _take(fields, "plans", list, "a list")
    plans = [parse_plan(json.dumps(plan).encode(), f"plan {number}") for number, plan in enumerate(texts)]
    return [_read_blueprint(layer, plans) for layer in _take(fields, "layers", list, "a list")]


def _read_blueprint(fields: Any, plans: list[Any]) -> Blueprint:
    """Return the blueprint of some fields, in which every value is of its kind.

    Raises:
        ModelError: a value of another kind.
    """
    if not isinstance(fields, dict):
        raise ModelError(f"a layer is {_show(fields)}, and not an object")
    places = _names(fields, "at")
    kind, dtype = _take(fields, "class", str, "a text"), _take(fields, "dtype", str, "a text")
    number, sizes = _take(fields, "plan", int, "a number"), _take(fields, "sizes", dict, "an object")
    if not places:
        raise ModelError("a layer has no place in the model")
    if kind not in (*CLASSES, GENERATED, SHARED, NETWORK):
        raise ModelError(f"there is no class {_show(kind)} of layers")
    if dtype not in DTYPES:
        raise ModelError(f"there is no type {_show(dtype)} of cores", f"there are {', '.join(DTYPES)}")
    if not 0 <= number < len(plans):
        raise ModelError(f"{places[0]} has plan {number}, and there are {len(plans)}")
    if not all(type(size) is int for size in sizes.values()):
        raise ModelError(f"a size of {places[0]} is not an integer")
    common = (kind, tuple(places), DTYPES[dtype], plans[number], sizes)
    if kind == NETWORK:
        return Blueprint(common[0], common[1], "", *common[2:])
    tensor = _take(fields, "tensor", str, "a text")
    wanted = {"shape"} if kind == SHARED else {"shape", "residual"}
    if kind in CLASSES:
        wanted = {*CLASSES[kind].arguments, "bias"}
    arguments = _take(fields, "arguments", dict, "an object")
    if set(arguments) != wanted or (bool(tensor) and kind in CLASSES) or (kind == SHARED and tensor != "weight"):
        raise ModelError(f"{places[0]} has the arguments {_show(sorted(arguments))}, and a {kind} takes others")
    modes = _tuples(_take(fields, "modes", list, "a list"))
    if not (len(modes) == 2 and all(isinstance(side, tuple) and all(type(m) is int for m in side) for side in modes)):
        raise ModelError(f"the modes of {places[0]} are not two lists of integers")
    family = _take(fields, "family", str, "a text")
    options = _take(fields, "options", dict, "an object")
    plain = [{name: _tuples(value) for name, value in each.items()} for each in (arguments, options)]
    return Blueprint(common[0], common[1], tensor, *common[2:], plain[0], family, modes, plain[1])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _take(fields: Fields, name: str, kind: type, shown: str) -> Any:
    value = fields.get(name)
    if type(value) is not kind:
        raise ModelError(f"the field {name!r} is {_show(value)}, and not {shown}")
    return value


def _names(fields: Fields, name: str) -> list[str]:
    names: list[Any] = _take(fields, name, list, "a list")
    if not all(isinstance(item, str) for item in names) or len(set(names)) < len(names):
        raise ModelError(f"the field {name!r} is not a list of different names")
    return names


def _texts(fields: Fields, name: str) -> dict[str, str]:
    texts: dict[str, Any] = _take(fields, name, dict, "an object")
    if not all(isinstance(text, str) for text in texts.values()):
        raise ModelError(f"the field {name!r} does not map names to names")
    return texts


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _build(blueprint: Blueprint) -> nn.Module:
    try:
        return blueprint.build()
    except (TngraphError, TypeError, ValueError) as error:
        raise ModelError(f"{blueprint.name} cannot be built: {error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file."""
    try:
        opened = safetensors.safe_open(path, "pt")
    except (OSError, safetensors.SafetensorError) as error:
        reason = explain(error) if isinstance(error, OSError) else str(error)
        raise ModelError(f"{path} is not a file of tensors: {reason}") from None
    with opened as file:
        yield file


def _check(base: nn.Module, built: list[tuple[Blueprint, nn.Module]], file: Any, ties: Mapping[str, str]) -> None:
    """Refuse a model that some files do not fit.

    Raises:
        ModelError: the message names the layer or the tensor, and what differs.
    """
    _state_of(base)
    for blueprint, _ in built:
        check_place(base, blueprint)
    expected = expected_state(base, built)
    saved = {name: _header(file, name) for name in file.keys()}  # noqa: SIM118
    dangling = [first for first in ties.values() if first not in saved]
    if dangling:
        raise ModelError(f"the files tie a tensor to {dangling[0]!r}, which they do not have")
    first = {**{name: name for name in saved}, **ties}
    for name, (shape, dtype) in shapes(expected).items():
        if name not in first:
            raise ModelError(f"the model has {name!r}, and the files do not", _cure(expected, first))
        if saved[first[name]] != (shape, dtype):
            there, numbers = saved[first[name]]
            raise ModelError(
                f"{name!r} is {_kind(shape, dtype)} in the model, and {_kind(there, numbers)} in the files",
                "give a model of the architecture that was saved, in the same type",
            )
    surplus = [name for name in first if name not in expected]
    if surplus:
        raise ModelError(f"the files have {surplus[0]!r}, and the model does not", _cure(expected, first))
    for name, other in _untie(expected)[1].items():
        if first[name] != first[other]:
            raise ModelError(f"the model ties {name!r} to {other!r}, and they were saved apart")


def _cure(expected: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    count = len(expected.keys() ^ first.keys()) - 1
    more = f"{count} more differ; " if count else ""
    return f"{more}give a model of the architecture that was saved"


def _header(file: Any, name: str) -> tuple[tuple[int, ...], torch.dtype]:
    part = file.get_slice(name)
    return tuple(part.get_shape()), _TYPES.get(part.get_dtype(), torch.uint8)


_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"BOOL": torch.bool, "C64": torch.complex64, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""The types of safetensors."""


def _kind(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{shape} {str(dtype).removeprefix('torch.')}"


def _device_of(model: nn.Module, blueprint: Blueprint) -> torch.device:
    """Return the device of the layer that another one replaces."""
    old = model.get_submodule(blueprint.places[0])
    return next((tensor.device for tensor in (*old.parameters(), *old.buffers())), torch.device("cpu"))


def _tie(model: nn.Module, ties: Mapping[str, str]) -> None:
    """Make tied names one tensor again."""
    state = model.state_dict(keep_vars=True)
    for name, first in ties.items():
        if state[name] is not state[first]:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, state[first])
