"""Compilation of a network to a module in one call: planned for the time of its calls, and measured on request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from tngraph.compiler.pipeline import plan as plan_network
from tngraph.errors import PlanError
from tngraph.language.network import Network
from tngraph.modules.calibration import machine_for
from tngraph.modules.inputs import check_numbers, check_tensor
from tngraph.modules.layer import Layer, build, check_functions, layer_class
from tngraph.modules.tuning import tune as tune_network
from tngraph.plans.plan import Plan
from tngraph.search.objectives import Mode, Objective
from tngraph.search.orders import Search

Inputs = torch.Tensor | Sequence[torch.Tensor] | Sequence[Sequence[torch.Tensor]]
"""The inputs of a call: one tensor, or one per input; or a list of several such calls."""


def compile(
    network: Network | Plan,
    sizes: Mapping[str, int] | None = None,
    *,
    mode: Mode = "infer",
    minimize: Objective = "time",
    tune: Inputs | None = None,
    search: Search | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Layer:
    """Compile a network, or a plan, to the ``torch.nn.Module`` that `tngraph.emit` prints.

    Args:
        network: what to compile; a network is planned first.
        sizes: numbers to plan at and to build with, as for `tngraph.plan`; with a plan, other compile-time sizes to
            build its module with.
        mode: ``infer``, for calls; ``train``, for calls with their backward pass; ``serve``, for weights that never
            change. It decides which plan is the best; every module supports calls and backward passes.
        minimize: the objective, as for `tngraph.plan`; ``time`` is the device's, if it was calibrated.
        tune: inputs of the calls that have to be fast: a tensor, or one per input; or a list of such calls, as of
            several batch sizes. The candidates that the machine model predicts to be fastest are measured on them, and
            the fastest are kept (see `tngraph.modules.tuning.tune`).
        search: seed and effort of the planning.
        device: device of the params.
        dtype: type of the params, which may be complex if all functions of the network can be.

    Raises:
        NetworkError: a complex type, if a function of the network has no meaning for complex numbers.
        SizeError: an unknown size, a run-time size along with a plan, or a number that is not a positive integer.
        PlanError: an unknown mode or objective, or tuning inputs that leave several sizes open.
    """
    check_numbers(device, dtype)
    if isinstance(network, Plan):
        if tune is not None:
            raise PlanError("a plan has been made, and is not tuned\n  give the network it was made for")
        return build(network, sizes, device, dtype)
    if isinstance(network, Network):  # before anything is planned or measured
        check_functions(network, dtype)
    if tune is None:
        numbers = dtype or torch.get_default_dtype()
        objective = machine_for(device or "cpu", numbers) if minimize == "time" else minimize
        plan = plan_network(network, sizes, mode=mode, minimize=objective, itemsize=numbers.itemsize, search=search)
    else:
        calls = _calls(tune, len(network.inputs))
        plan = tune_network(network, sizes, calls, mode=mode, search=search, device=device, dtype=dtype).plan
    return layer_class(plan)(device=device, dtype=dtype)


def _calls(inputs: Inputs, count: int) -> list[tuple[torch.Tensor, ...]]:
    """Return inputs to tune for as a list of calls, each with one tensor per input."""
    if isinstance(inputs, torch.Tensor):
        return [(inputs,)]
    items = [item if isinstance(item, torch.Tensor) else _call(item) for item in _listed(inputs)]
    if count > 1 and len(items) == count and all(isinstance(x, torch.Tensor) for x in items):
        return [tuple(items)]  # type: ignore[arg-type]
    return [(item,) if isinstance(item, torch.Tensor) else item for item in items]


def _call(inputs: object) -> tuple[torch.Tensor, ...]:
    """Return one call as a tuple of its inputs."""
    call = tuple(_listed(inputs))
    for position, x in enumerate(call, 1):
        check_tensor(f"input {position} of a call to tune for", x)
    return call


def _listed(inputs: object) -> Iterable[Any]:
    if not isinstance(inputs, Iterable) or isinstance(inputs, str):
        raise PlanError(f"tune is {inputs!r}\n  it is a tensor, one tensor per input, or a list of such calls")
    return inputs
