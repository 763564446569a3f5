"""The start of a layer in the place of a trained one: its params are drawn, or fitted to that layer."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor, nn

from tngraph.errors import NetworkError
from tngraph.fitting.fits import Fit, fit
from tngraph.fitting.modes import SITES, search_modes
from tngraph.fitting.moments import Batches, Moments
from tngraph.language.families import named_family
from tngraph.language.families.family import Family

Start = bool | Batches | Moments | Mapping[str, Any]
"""False: params are drawn. True: they are fitted to the trained weight. Inputs of the layer, or their moments: fitted
so that its outputs are right on them. A mapping: arguments of `tngraph.fit`, as ``dict(inputs=x, sweeps=50)``."""

_ARGUMENTS = tuple(signature(fit).parameters)[2:]


def start_as_asked(layer: nn.Module, target: Tensor | nn.Module, start: Start) -> Fit | None:
    """Fit the params of a new layer as the caller wishes, and return the fit, or None if they stay as drawn.

    Raises:
        NetworkError: a layer without a dense weight, or arguments that `tngraph.fit` does not take.
        SizeError: inputs of another size than the layer's.
    """
    options = fit_options(start)
    return None if options is None else fit(layer, target, **options)


def with_modes(options: dict[str, Any], family: str | Family, target: nn.Module, start: Start | None) -> dict[str, Any]:
    """Return the options of a layer, with the best modes for its target where they say ``modes="search"``.

    Raises:
        NetworkError: a family whose modes are not searched.
        SizeError: no modes have fewer params than the dense weight.
    """
    if options.get("modes") != "search":
        return options
    named = named_family(family)
    own = {name: value for name, value in options.items() if name in named.options}
    sites = SITES if options.get("sites") is None else (options["sites"],)
    inputs = (fit_options(start) or {}).get("inputs")
    return {**options, "modes": search_modes(target, inputs, named, sites=sites, **own)}


def fit_options(start: Start | None) -> dict[str, Any] | None:
    """Return the arguments of `tngraph.fit` that a wish stands for, or None if params are to be drawn.

    Raises:
        NetworkError: arguments that `tngraph.fit` does not take.
    """
    if start is None or isinstance(start, bool):
        return {} if start else None
    if not isinstance(start, Mapping):
        return {"inputs": start}
    unknown = [name for name in start if name not in _ARGUMENTS]
    if unknown:
        raise NetworkError(f"fit has no argument {unknown[0]!r}", f"it takes: {', '.join(_ARGUMENTS)}")
    return dict(start)
