"""Replacement of a model's layers by layers built of cores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from textwrap import fill
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from tngraph.errors import NetworkError, SizeError
from tngraph.fitting.fits import Fit
from tngraph.fitting.moments import Batches, Moments, collect_moments
from tngraph.language.families import named_family
from tngraph.language.families.family import Family
from tngraph.language.families.weight import outside
from tngraph.layers.compressed import Compressed
from tngraph.layers.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tngraph.layers.linear import Linear
from tngraph.layers.recipe import Recipe
from tngraph.layers.starting import fit_options, start_as_asked

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, most, name)`` after every layer."""
Choice = str | Family | Mapping[str, Any] | None
"""The replacement of a layer: a family, a family with its options, or None to leave the layer as it is."""

_LIKE: dict[type[nn.Module], Callable[..., Compressed]] = {
    nn.Linear: Linear.like,
    nn.Conv1d: Conv1d.like,
    nn.Conv2d: Conv2d.like,
    nn.Conv3d: Conv3d.like,
    nn.ConvTranspose1d: ConvTranspose1d.like,
    nn.ConvTranspose2d: ConvTranspose2d.like,
    nn.ConvTranspose3d: ConvTranspose3d.like,
}
"""The constructor of a layer of cores, for each type of layer that can be replaced."""

_UNLIKE: dict[type[nn.Module], str] = {
    nn.Embedding: "an Embedding looks up rows of its weight, and no layer of cores does",
    NonDynamicallyQuantizableLinear: "its MultiheadAttention reads its weight and never calls it",
}
"""Reasons not to replace some layers that a user may expect to be replaced."""

WIDTH = 80
MOST_NAMES = 8
"""The most names that an error lists."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """A layer that was replaced.

    Attributes:
        names: the layer's names in the model; several if it is used in several places.
        dense_params: number of its parameters before, bias included [elements].
        params: number of its parameters now [elements].
        recipe: the ``family``, the ``options``, and the modes of ``rows`` and ``columns`` of its new weight.
        fit: how well its cores were fitted to the old weight; None if they were drawn.
    """

    names: tuple[str, ...]
    dense_params: int
    params: int
    recipe: Recipe
    fit: Fit | None = None

    @property
    def name(self) -> str:
        """The names of the layer as one text."""
        return " = ".join(self.names)

    @property
    def built(self) -> str:
        """The family with its options, and the modes."""
        return f"{self.recipe.called}, {self.recipe.modes}"


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A layer that was left as it is, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replacements:
    """The result of `replace`: a sequence of the replaced layers, which prints as a table.

    Attributes:
        replaced: the layers that were replaced, in the order of the model.
        passed_over: the layers with a weight that were not replaced, each with the reason.
        dense_params: number of parameters of the whole model before, each tensor counted once [elements].
        params: number of parameters of the whole model now [elements].
    """

    replaced: tuple[Replaced, ...]
    passed_over: tuple[PassedOver, ...]
    dense_params: int
    params: int

    def __iter__(self) -> Iterator[Replaced]:
        return iter(self.replaced)

    def __len__(self) -> int:
        return len(self.replaced)

    def __getitem__(self, position: int) -> Replaced:
        return self.replaced[position]

    def __str__(self) -> str:
        titles, fitted = ("replaced", "params", "now"), any(row.fit for row in self.replaced)
        rows = [
            (*titles, *(_ERRORS if fitted else ()), ""),
            *(
                (row.name, f"{row.dense_params:,}", f"{row.params:,}", *(_errors(row.fit) if fitted else ()), row.built)
                for row in self.replaced
            ),
            ("whole model", f"{self.dense_params:,}", f"{self.params:,}", *(("", "") if fitted else ()), ""),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        lines = [_wrap(_format_row(row, widths)) for row in rows]
        by_reason: dict[str, list[str]] = {}
        for layer in self.passed_over:
            by_reason.setdefault(layer.reason, []).append(layer.name or "the model")
        unchanged = [_wrap(f"  {', '.join(names)}: {reason}") for reason, names in by_reason.items()]
        return "\n".join([*lines, *(["left as they are", *unchanged] if unchanged else [])])


_ERRORS = ("error", "low rank")


def _errors(fit: Fit | None) -> tuple[str, str]:
    """Return the error of a fitted layer, and that of the best low-rank weight with no more params."""
    if fit is None:
        return "drawn", ""
    return f"{fit.output_error:.4f}", "" if fit.low_rank is None else f"{fit.low_rank.error:.4f}"


def _format_row(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, built = row
    columns = [f"{name:<{widths[0]}}", *(f"{n:>{width}}" for n, width in zip(numbers, widths[1:], strict=True)), built]
    return "  ".join(columns).rstrip()


def _wrap(line: str) -> str:
    return fill(line, WIDTH, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True, slots=True)
class _LayerRule:
    """A pattern, and the options of the layers that replace its matches, or None if they stay."""

    pattern: str
    options: Mapping[str, Any] | None

    def matches(self, name: str) -> bool:
        """Return whether the pattern matches a module, or another one that contains it."""
        parts = name.split(".")
        return any(fnmatchcase(".".join(parts[:count]), self.pattern) for count in range(1, len(parts) + 1))


_ELSE = _LayerRule("", None)
"""The rule for a layer that no pattern matches."""


def replace(
    model: nn.Module,
    family: str | Family | Mapping[str, Choice],
    *,
    skip: str | Sequence[str] = (),
    fit: bool | Mapping[str, Any] = False,
    inputs: Batches | Mapping[str, Moments] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Replacements:
    """Replace the linear and convolutional layers of a model, in place, by layers of a family.

    These are ``nn.Linear``, ``nn.Conv1d`` to ``Conv3d`` and ``nn.ConvTranspose1d`` to ``ConvTranspose3d``. Sizes,
    biases, devices, types and modes are those of the old layers. The parameters are newly drawn, or fitted to the old
    weights. A module that is used in several places is replaced by one new module in all of them. These layers are left
    as they are: layers without sizes yet (``Lazy…``), layers whose weight is shared with another module or computed
    from other parameters, layers with hooks, and subclasses, which may do more. The result names each with the reason.
    If one layer cannot be built, none is replaced.

    Args:
        model: the model whose layers are replaced.
        family: a word or a `Family` for all layers; or a mapping from patterns to what each layer that they match is
            built of: a family, ``dict(family="mpo", bond=8)``, or None to leave it alone. The first pattern that
            matches decides, and layers that none matches stay. A pattern matches dotted names of modules, with ``*``,
            ``?`` and ``[…]`` as in names of files, and everything inside these modules.
        skip: patterns of modules to leave alone.
        fit: fit the new layers to the old weights, as `tngraph.fit` does; or a mapping of its arguments, as
            ``dict(sweeps=50)``. What a pattern is mapped to may have a ``fit`` of its own.
        inputs: batches of the model's inputs, to fit the outputs of the layers on, which implies ``fit``: the model
            runs on all of them once, as it is. Or the `Moments` of every layer that is fitted, by name, as
            `tngraph.collect_moments` returns them.
        progress: called as ``progress(done, most, name)`` after every layer.
        options: keyword arguments of all new layers, as ``bond=8``.

    Returns:
        The layers that were replaced, in the order of the model, and those that were not. It prints as a table.

    Raises:
        SizeError: modes that do not fit a layer, which the message names.
        NetworkError: a pattern that matches nothing, or nothing that can be replaced; a family or options that do not
            fit a layer, which the message names; or a model that is such a layer itself.

    Example:
        >>> net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
        >>> print(replace(net, {"0": dict(family="mpo", bond=4), "2": None}))
        replaced      params    now
        0            200,960  1,840  mpo(bond=4), 14·8·7 -> 8·8·4
        whole model  203,530  4,410
        left as they are
          2: '2' says so
    """
    if not isinstance(model, nn.Module):
        raise NetworkError(f"replace takes a torch.nn.Module, and not {model!r}")
    if type(model) in _LIKE:
        name = type(model).__name__
        raise NetworkError(f"the model is a {name} itself, with nothing around it", f"use {name}.like(model, family)")
    rules = [_LayerRule(pattern, None) for pattern in ([skip] if isinstance(skip, str) else skip)]
    shared = {**options, "fit": fit or inputs is not None}
    rules += _read_rules(family, shared)
    layers = dict(_layers(model))
    deciding = _decide(layers, rules)
    holders = _holders(model)
    reasons = {name: _reason(module, deciding[name], holders) for name, module in layers.items()}
    _check_rules(model, rules, deciding, reasons)
    places: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in layers.items():
        if not reasons[name]:
            places[module] = (*places.get(module, ()), name)
    chosen = {module: deciding[names[0]].options or {} for module, names in places.items()}
    fitted = [names[0] for module, names in places.items() if fit_options(chosen[module]["fit"]) is not None]
    moments = _moments(model, inputs, fitted)
    # All layers are built before the first is replaced, so that an error leaves the model as it was.
    built: dict[nn.Module, _New] = {}
    for module, names in places.items():
        built[module] = _build(names, module, chosen[module], moments.get(names[0]))
        if progress is not None:
            progress(len(built), len(places), names[0])
    return _put(model, built, tuple(PassedOver(name, reason) for name, reason in reasons.items() if reason))


class _New(NamedTuple):
    """A new layer, its names in the model, and its fit."""

    names: tuple[str, ...]
    layer: Compressed
    fit: Fit | None


def _moments(
    model: nn.Module, inputs: Batches | Mapping[str, Moments] | None, names: Sequence[str]
) -> Mapping[str, Moments]:
    """Return the moments of the inputs of some layers by name; none without inputs."""
    if inputs is None or not names:
        return {}
    if not isinstance(inputs, Mapping):
        return collect_moments(model, inputs, names)
    missing = [name for name in names if name not in inputs]
    if missing:
        raise NetworkError(f"there are no moments for {missing[0]!r}", f"there are some for: {_names(inputs)}")
    return inputs


def _put(model: nn.Module, built: Mapping[nn.Module, _New], passed_over: tuple[PassedOver, ...]) -> Replacements:
    """Put the new layers in the places of the old ones, and return what was replaced."""
    before = _params(model)
    rows = [
        Replaced(new.names, _params(old), _params(new.layer), new.layer.recipe, new.fit) for old, new in built.items()
    ]
    for new in built.values():
        for name in new.names:
            model.set_submodule(name, new.layer)
    return Replacements(tuple(rows), passed_over, before, _params(model))


def _read_rules(family: str | Family | Mapping[str, Choice], options: Mapping[str, Any]) -> list[_LayerRule]:
    choices = family if isinstance(family, Mapping) else {"*": family}
    return [_LayerRule(pattern, _read_choice(pattern, choice, options)) for pattern, choice in choices.items()]


def _read_choice(pattern: str, choice: Choice, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if choice is None:
        return None
    taken = choice if isinstance(choice, Mapping) else {"family": choice}
    if not isinstance(taken.get("family"), str | Family):
        hint = "give a family, dict(family='mpo', bond=8), or None to leave its layers alone"
        raise NetworkError(f"the pattern {pattern!r} says {choice!r}, which names no family", hint)
    named_family(taken["family"])
    return {**options, **taken}


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module that holds a weight, with its name, in the order of the model; a shared one once per place."""
    if _has_weight(module):
        yield name, module
    if isinstance(module, Compressed):
        return
    for part, child in module._modules.items():
        if child is not None and not (part == "parametrizations" and is_parametrized(module)):
            yield from _layers(child, f"{name}.{part}" if name else part)


def _has_weight(module: nn.Module) -> bool:
    """Return whether a module counts as a layer.

    It does if it has a matrix of its own, will have one once its sizes are known, or has one computed from other
    parameters.
    """
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    if any(map(is_lazy, own)):
        return getattr(module, "cls_to_become", None) in _LIKE
    return (
        any(parameter.dim() > 1 for parameter in own)
        or isinstance(module, (Compressed, *_LIKE))
        or is_parametrized(module)
    )


def _decide(layers: Mapping[str, nn.Module], rules: Sequence[_LayerRule]) -> dict[str, _LayerRule]:
    """Return the first rule that matches each layer, under any of its names.

    Raises:
        NetworkError: several rules match one module under several names.
    """
    deciding: dict[nn.Module, tuple[str, _LayerRule]] = {}
    for name, module in layers.items():
        rule = next((rule for rule in rules if rule.matches(name)), None)
        if rule is None:
            continue
        other, earlier = deciding.setdefault(module, (name, rule))
        if earlier is not rule:
            raise NetworkError(
                f"{other} and {name} are one module, and {earlier.pattern!r} and {rule.pattern!r} decide about it",
                "let one pattern match both names",
            )
    return {name: deciding.get(module, ("", _ELSE))[1] for name, module in layers.items()}


Holders = Mapping[nn.Parameter, Sequence[tuple[str, nn.Module]]]
"""The modules that hold each parameter, with their names; a module in several places is listed once."""


def _holders(model: nn.Module) -> Holders:
    holders: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in dict.fromkeys(module._parameters.values()):
            if parameter is not None:
                holders.setdefault(parameter, []).append((name, module))
    return holders


def _reason(module: nn.Module, rule: _LayerRule, holders: Holders) -> str:
    """Return why a layer is not replaced, or "" if it is."""
    if rule is _ELSE:
        return "no pattern matches it"
    if rule.options is None:
        return f"{rule.pattern!r} says so"
    return _reason_of_kind(module) or _reason_of_state(module, holders)


def _reason_of_kind(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, Compressed):
        return "it is built of cores already"
    if any(parameter is not None and is_lazy(parameter) for parameter in module._parameters.values()):
        return f"a {kind} has no sizes yet: run a batch through the model first"
    if type(module) in _UNLIKE:
        return _UNLIKE[type(module)]
    if is_parametrized(module) or (isinstance(module, tuple(_LIKE)) and "weight" not in module._parameters):
        return "its weight is computed from other parameters"
    if isinstance(module, tuple(_LIKE)) and type(module) not in _LIKE:
        above = next(ordinary for ordinary in _LIKE if isinstance(module, ordinary)).__name__
        return f"a {kind} is a subclass of {above}, and may do more than one"
    return "" if type(module) in _LIKE else f"there is no {kind} of cores"


def _reason_of_state(module: nn.Module, holders: Holders) -> str:
    for name, parameter in module._parameters.items():
        for place, other in holders[parameter] if parameter is not None else ():
            if other is not module:
                return f"it shares its {name} with {place or 'the model'}"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks, which a new layer would lose"
    return ""


def _check_rules(
    model: nn.Module, rules: Sequence[_LayerRule], deciding: Mapping[str, _LayerRule], reasons: Mapping[str, str]
) -> None:
    """Refuse a pattern that changes nothing."""
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for rule in rules:
        decided = [name for name, first in deciding.items() if first is rule]
        earlier = sorted({repr(first.pattern) for name, first in deciding.items() if rule.matches(name)})
        if not any(map(rule.matches, modules)):
            near = get_close_matches(rule.pattern, modules, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {_names(reasons)}"
            raise NetworkError(f"the pattern {rule.pattern!r} matches no module", hint)
        if not decided and earlier:
            raise NetworkError(
                f"the pattern {rule.pattern!r} comes too late: {' and '.join(earlier)} decides about all of its layers",
                "the first pattern that matches decides: put it in front",
            )
        if rule.options is not None and all(reasons[name] for name in decided):
            whys = [f"{name or 'the model'}: {reasons[name]}" for name in decided]
            raise NetworkError(
                f"no layer that the pattern {rule.pattern!r} matches can be replaced",
                _names(whys, "; ") if whys else f"layers are: {_names(reasons)}",
            )


def _names(names: Iterable[str], comma: str = ", ") -> str:
    every = [name or "the model" for name in names]
    more = [f"{len(every) - MOST_NAMES} more"] if len(every) > MOST_NAMES else []
    return comma.join(every[:MOST_NAMES] + more) or "none"


def _build(names: tuple[str, ...], module: nn.Module, options: Mapping[str, Any], moments: Moments | None) -> _New:
    """Return a layer of cores like an ordinary one. Warnings and errors get the name of the layer in front."""
    name = names[0]
    taken = {key: value for key, value in options.items() if key != "fit"}
    wish = fit_options(options["fit"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            layer = _LIKE[type(module)](module, **taken)
            fit = None if wish is None else start_as_asked(layer, module, {"inputs": moments, **wish})
        except NetworkError as error:
            hint = error.hint or "choose another family or other options for it"
            raise NetworkError(f"{name}: {error.message}", f"{hint}; or leave it alone: skip=({name!r},)") from None
        except SizeError as error:
            raise SizeError(f"{name}: {error}; or leave it alone: skip=({name!r},)") from None
    for warning in told:
        warnings.warn(f"{name}: {warning.message}", warning.category, stacklevel=outside())
    return _New(names, layer, fit)


def _params(module: nn.Module) -> int:
    """Return the entries of all parameters, each counted once; one without sizes yet counts as 0 [elements]."""
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))
