"""The fit of a network to a weight in a file, with the cores in another file: what ``tngraph fit`` does."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tngraph.errors import ModelError, NetworkError, SizeError
from tngraph.files import explain, replacing
from tngraph.fitting.fits import Fit, fit
from tngraph.fitting.moments import Moments
from tngraph.language.environments import environment
from tngraph.language.network import Network
from tngraph.layers.generated import Generated
from tngraph.modules.compiling import compile

CHUNK = 10
"""The cores are written after so many sweeps, so that a fit that is stopped can go on."""


def read_tensor(place: str) -> Tensor:
    """Return a tensor of a safetensors file: ``FILE:NAME``, or ``FILE`` if it has only one.

    Raises:
        ModelError: there is no such file or tensor.
        SizeError: a tensor that is not of floating point.
    """
    path, name = place, ""
    if not Path(place).exists() and ":" in place:
        path, _, name = place.rpartition(":")
    try:
        with safetensors.safe_open(path, "pt") as file:
            names = list(file.keys())
            chosen = names[0] if not name and len(names) == 1 else name
            if chosen in names:
                return _floating(place, file.get_tensor(chosen))
    except (OSError, safetensors.SafetensorError) as error:
        reason = explain(error) if isinstance(error, OSError) else str(error)
        raise ModelError(f"{path} is not a file of tensors: {reason}", "give FILE.safetensors:NAME") from None
    near = get_close_matches(name, names, 1)
    listed = ", ".join(names[:8]) + (f", {len(names) - 8} more" if len(names) > 8 else "")
    problem = f"{path} has no tensor {name!r}" if name else f"{path} has {len(names)} tensors"
    raise ModelError(problem, f"did you mean {near[0]!r}?" if near else f"add :NAME; it has: {listed}")


def _floating(place: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        name = str(tensor.dtype).removeprefix("torch.")
        raise SizeError(f"{place} has the type {name}\n  give a tensor of floating point")
    return tensor


def family_layer(call: str, weight: Tensor) -> Generated:
    """Return a generator of a weight in float64, from the text of a call: ``mpo(bond=8, modes=((4, 8), (8, 8)))``.

    Raises:
        NetworkError: the text is not such a call; or no such family, or options that it does not take.
        SizeError: modes that do not fit.
    """
    word, options = _read_call(call)
    return Generated(tuple(weight.shape), word, dtype=torch.float64, **options)


def _read_call(text: str) -> tuple[str, dict[str, Any]]:
    """Return the word and the options of a call, in which a bare word is a text: ``activation=relu``."""
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            return call.func.id, {str(item.arg): _literal(item.value) for item in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise NetworkError(f"{text!r} is not a family with options", "write mpo(bond=8), or the path of a .tn file")


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def network_layer(network: Network) -> nn.Module:
    """Return the weight that a network makes, or that of its only input, as a module in float64.

    Raises:
        NetworkError: a network that is not linear in its input, or has several.
    """
    if len(network.inputs) > 1:
        names = ", ".join(port.name for port in network.inputs)
        raise NetworkError(f"{network.name} has several inputs: {names}", "fit takes a network with one, or with none")
    weight = environment(network, network.inputs[0].name) if network.inputs else network
    return compile(weight, mode="train", dtype=torch.float64)


def fit_file(
    layer: nn.Module,
    weight: Tensor,
    inputs: Tensor | None,
    output: Path,
    *,
    sweeps: int,
    tolerance: float,
    seed: int,
    resume: bool,
    metadata: dict[str, str],
    progress: Callable[[int, int, float], None] | None = None,
) -> Fit:
    """Fit a layer to a weight, and write its tensors to a file, in the type of the weight, every few sweeps.

    Args:
        layer: a layer in float64 that `tngraph.fit` takes.
        weight: the dense weight.
        inputs: what enters it, `(*, in)`; None if all directions count the same.
        output: the file.
        sweeps: the most sweeps.
        tolerance: as for `tngraph.fit`.
        seed: of what is drawn.
        resume: start from the tensors of the file.
        metadata: texts for the file to carry.
        progress: called as ``progress(done, most, error)`` after every sweep or step.

    Raises:
        ModelError: the file cannot be read or written, or is one of another network.
        SizeError: inputs of another size than the weight's.
    """
    moments = None if inputs is None else Moments.of(inputs)
    if resume:
        _load(layer, output)
    total: Fit | None = None
    done = 0
    while total is None or done < sweeps:
        most = min(CHUNK, sweeps - done)
        begin = done

        def show(step: int, steps: int, error: float, begin: int = begin, most: int = most) -> None:
            if progress is not None:
                progress(begin * steps // max(1, most) + step, sweeps * steps // max(1, most), error)

        part = fit(
            layer,
            weight,
            moments,
            sweeps=most,
            tolerance=tolerance,
            seed=seed,
            resume=resume or total is not None,
            progress=show,
        )
        steps = len(part.history) - 1
        done += most
        total = part if total is None else _join(total, part)
        _save(layer, weight.dtype, output, {**metadata, "fit": json.dumps(_summary(total))})
        if total.is_proven or steps < most:
            break
    return total


def _join(before: Fit, after: Fit) -> Fit:
    """Return a fit and what went on from it as one."""
    history = (*before.history, *after.history[1:])
    bound, seconds = max(before.bound, after.bound), before.seconds + after.seconds
    word, _, unit = before.method.rpartition(", ")
    method = f"{word or before.method}, {len(history) - 1} {unit.rpartition(' ')[2]}"
    return replace(after, history=history, bound=bound, seconds=seconds, method=method)


def _summary(report: Fit) -> dict[str, float | str]:
    return {"method": report.method, "output_error": report.output_error, "weight_error": report.weight_error}


def _load(layer: nn.Module, path: Path) -> None:
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        reason = explain(error) if isinstance(error, OSError) else str(error)
        raise ModelError(f"{path} cannot be resumed: {reason}", "leave out --resume to start anew") from None
    wanted = layer.state_dict()
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in wanted.items()}:
        raise ModelError(f"{path} has the cores of another network", "leave out --resume to start anew")
    layer.load_state_dict(state)


def _save(layer: nn.Module, dtype: torch.dtype, path: Path, metadata: dict[str, str]) -> None:
    tensors = {name: value.to(dtype).contiguous() for name, value in layer.state_dict().items()}
    try:
        with replacing([path]) as (beside,):
            safetensors.torch.save_file(tensors, beside, {"format": "pt", **metadata})
    except (OSError, safetensors.SafetensorError) as error:
        reason = explain(error) if isinstance(error, OSError) else str(error)
        raise ModelError(f"{path} cannot be written: {reason}") from None
