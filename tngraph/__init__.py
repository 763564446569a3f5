"""tngraph compiles tensor networks to PyTorch modules with exact, verified costs.

A network is parsed (`parse`, `load`), built (`Builder`, `families`) or imported (`from_einsum`, `from_indices`,
`from_networkx`); `check` warns of likely mistakes; `evaluate` is what it means; `plan` finds in which order to contract
it and prices that exactly; `emit` prints the plan as a standalone PyTorch file and `compile` loads it as a module;
`fit` makes its params stand for a trained weight; `save` and `load_model` keep models that have such layers.
Importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tngraph.compiler.budget import RankChoice, choose_rank
from tngraph.compiler.pipeline import front, plan
from tngraph.errors import (
    GrowthWarning,
    LimitError,
    ModelError,
    NetworkError,
    PlanError,
    RankWarning,
    SizeError,
    SpecError,
    TngraphError,
    VerificationError,
)
from tngraph.language import families
from tngraph.language.builder import Builder
from tngraph.language.environments import environment
from tngraph.language.graphs import from_einsum, from_indices, from_networkx, to_networkx
from tngraph.language.network import Network
from tngraph.language.reference import evaluate, gradients
from tngraph.language.text.format import format_network as format
from tngraph.language.text.parsing import check, load, parse
from tngraph.lowering.printing import emit
from tngraph.plans.loading import load_plan
from tngraph.plans.plan import Plan
from tngraph.search.orders import Search

if TYPE_CHECKING:
    from tngraph.fitting.fits import Fit, fit
    from tngraph.fitting.moments import Moments, collect_moments
    from tngraph.layers.model_files import load_model, save
    from tngraph.modules.compiling import compile
    from tngraph.modules.layer import Layer

__version__ = "0.1.0"

__all__ = [
    "Builder",
    "Fit",
    "GrowthWarning",
    "Layer",
    "LimitError",
    "ModelError",
    "Moments",
    "Network",
    "NetworkError",
    "Plan",
    "PlanError",
    "RankChoice",
    "RankWarning",
    "Search",
    "SizeError",
    "SpecError",
    "TngraphError",
    "VerificationError",
    "check",
    "choose_rank",
    "collect_moments",
    "compile",
    "emit",
    "environment",
    "evaluate",
    "families",
    "fit",
    "format",
    "from_einsum",
    "from_indices",
    "from_networkx",
    "front",
    "gradients",
    "load",
    "load_model",
    "load_plan",
    "parse",
    "plan",
    "save",
    "to_networkx",
]


_TORCH = {
    "Fit": "fitting.fits",
    "Layer": "modules.layer",
    "Moments": "fitting.moments",
    "collect_moments": "fitting.moments",
    "compile": "modules.compiling",
    "fit": "fitting.fits",
    "load_model": "layers.model_files",
    "save": "layers.model_files",
}
"""The names whose modules import torch, which is loaded at their first use."""


def __getattr__(name: str) -> Any:
    """Return a name of torch's rooms, after importing torch."""
    if name not in _TORCH:
        raise AttributeError(f"module 'tngraph' has no attribute {name!r}")
    return getattr(import_module(f"tngraph.{_TORCH[name]}"), name)


def __dir__() -> list[str]:
    """Return what a user needs, and not the modules that are loaded along with it."""
    return sorted(__all__)
