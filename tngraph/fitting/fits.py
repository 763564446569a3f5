"""Fits layers of cores to trained weights, in the metric of the data that enters them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tngraph.compiler.pipeline import plan
from tngraph.errors import NetworkError, SizeError
from tngraph.fitting.baseline import LowRank, best_low_rank
from tngraph.fitting.descent import descend
from tngraph.fitting.moments import Batches, Moments
from tngraph.fitting.multilinear import Multilinear, as_multilinear
from tngraph.fitting.problem import FitProblem, Values, balance, regularise
from tngraph.fitting.sweeps import Sweeper
from tngraph.fitting.targets import DENSE, WeightPlace
from tngraph.fitting.truncation import find_branches, truncate
from tngraph.modules.layer import Layer, build

Progress = Callable[[int, int, float], None]
"""Called as ``progress(done, most, error)`` after every sweep or step."""
FLOOR = 1e-8
"""Moments get so much of the identity, relative to their mean eigenvalue, so that what the data never show is kept."""
TRIAL_SWEEPS = 8
"""The sweeps after which the worse half of several drawn starts is given up."""


@dataclass(frozen=True)
class Fit:
    """The result of a fit. It prints as a few lines.

    Attributes:
        layer: the layer whose params were set.
        method: how they were found.
        params: their number, without the bias [elements].
        dense_params: the entries of the weight that they stand for [elements].
        weight_error: ‖W − T‖ / ‖W‖ of the stored params.
        output_error: the root of the mean squared error of the outputs, relative to them; equal to the weight error
            if there were no inputs.
        bound: an output error that no params can be below; 0 if none is known.
        low_rank: the best low-rank weight with no more params, in the same metric; None if the target has one axis.
        samples: the inputs or patches that the metric was measured on; 0 for the identity.
        history: the output error after every sweep or step, from the start on.
        seconds: the time that it took [s].
        sweep_flops: what PyTorch counts of a sweep over all cores, factorisations aside; 0 without sweeps [FLOPs].
        peak: a bound of the bytes that a sweep allocates at once, besides target and moments; 0 without sweeps [bytes].
    """

    layer: nn.Module
    method: str
    params: int
    dense_params: int
    weight_error: float
    output_error: float
    bound: float
    low_rank: LowRank | None
    samples: int
    history: tuple[float, ...]
    seconds: float
    sweep_flops: int = 0
    peak: int = 0

    @property
    def is_proven(self) -> bool:
        """True if no params have a smaller output error."""
        return self.output_error <= self.bound * (1 + 1e-6) + 1e-12

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        share = self.params / self.dense_params
        yield f"{self.params:,} params for {self.dense_params:,} ({share:.2%}), {self.method}, {self.seconds:.1f} s"
        if self.samples:
            yield f"output error  {self.output_error:.4g}  on {self.samples:,} inputs{self._proof()}"
            yield f"weight error  {self.weight_error:.4g}"
        else:
            yield f"weight error  {self.weight_error:.4g}{self._proof()}"
            yield "no inputs were given: all directions of the input count the same"
        if self.low_rank is not None:
            known = f"{self.low_rank.error:.4g}  of rank {self.low_rank.rank}, {self.low_rank.params:,} params"
            yield f"low rank      {known}, for comparison"

    def _proof(self) -> str:
        if self.is_proven:
            return ", proven least"
        return f", {self.bound:.4g} at least" if self.bound > 0 else ""


def fit(
    layer: nn.Module,
    target: Tensor | nn.Module,
    inputs: Batches | Moments | None = None,
    *,
    sweeps: int = 30,
    tolerance: float = 1e-4,
    starts: int = 5,
    seed: int = 0,
    resume: bool = False,
    progress: Progress | None = None,
) -> Fit:
    """Set the params of a layer so that it stands for a trained weight.

    Weights that are linear in every core start as truncations (see `tngraph.fitting.truncation`) or as drawn, and are
    improved by alternating least squares; others by gradient descent. With inputs, errors are those of the layer's
    outputs, and a bias is set so that their mean is right.

    Args:
        layer: a layer of cores (`Linear`, `Conv2d`, …), a `Generated` weight, or a compiled network without inputs.
        target: the dense weight, or the trained layer that has it; its bias is taken over.
        inputs: what enters the layer: a tensor `(*, in)` or feature maps, an iterable of batches, or their `Moments`.
        sweeps: the most sweeps over all cores; gradient descent makes ten steps for each.
        tolerance: stop when a sweep lowers the error by less, relative to it.
        starts: how many starts are drawn where no truncation gives one. The best after a few sweeps goes on.
        seed: of what is drawn.
        resume: start from the params that the layer has.
        progress: called as ``progress(done, most, error)`` after every sweep or step.

    Returns:
        The fit, which says how good it is; the layer itself is changed in place.

    Raises:
        NetworkError: a layer without a dense weight, or a module that is not a layer of cores.
        SizeError: a target or inputs of another size, a complex target, or too few sweeps or starts.
    """
    started = time.perf_counter()
    for name, count, least in (("sweeps", sweeps, 0), ("starts", starts, 1)):
        if count < least:
            raise SizeError(f"{name} is {count}\n  it is an integer from {least}")
    place, dense = find_place(layer), _weight_of(target)
    moments = _moments_of(inputs, target, layer)
    is_centered = moments is not None and place.bias is not None
    second = None if moments is None else moments.covariance if is_centered else moments.second
    output = place.as_output(dense)
    problem = _make_problem(place, output, second)
    if problem.form.products and problem.form.is_linear:
        begin = _resume if resume else partial(_begin, starts=starts, seed=seed, sweeps=sweeps)
        found = _alternate(problem, begin(place, problem), sweeps, tolerance, progress)
    else:
        found = _descend(place, problem, sweeps * 10, tolerance, progress)
    place.store(balance(problem.form, found.values))
    residual = _residual(place, problem)
    if place.bias is not None:
        _set_bias(place, target, residual.reshape(output.shape), moments if is_centered else None)
    params = sum(param.numel() for param in place.params.values())
    return Fit(
        layer,
        found.method,
        params,
        dense.numel(),
        weight_error=float(residual.norm() / problem.target.norm().clamp_min(torch.finfo(torch.float64).tiny)),
        output_error=problem.relative(problem.square(residual)),
        bound=problem.relative(found.bound),
        low_rank=_compare(place, output, second, params),
        samples=moments.count if moments is not None else 0,
        history=tuple(found.history),
        seconds=time.perf_counter() - started,
        sweep_flops=found.sweep_flops,
        peak=found.peak,
    )


class _Found(NamedTuple):
    """Params with how they were found, and what `Fit` says of that."""

    values: Values
    method: str
    bound: float
    history: list[float]
    sweep_flops: int = 0
    peak: int = 0


def find_place(layer: nn.Module) -> WeightPlace:
    """Return where the cores of a layer live.

    Raises:
        NetworkError: the layer has no weight that is built of cores.
    """
    network, recipe = getattr(layer, "network", None), getattr(layer, "recipe", None)
    if isinstance(network, Layer) and recipe is not None:
        bias = getattr(layer, "bias", None)
        return WeightPlace(recipe.weight_again(), network, recipe, bias)
    if isinstance(layer, Layer) and not layer.plan.network.inputs and len(layer.plan.network.outputs) == 1:
        return WeightPlace(layer.plan.network, layer)
    raise NetworkError(
        f"{type(layer).__name__} has no weight that is built of cores",
        "fit takes tngraph's layers, a Generated weight, or a compiled network without inputs and with one output",
    )


def _weight_of(target: Tensor | nn.Module) -> Tensor:
    weight = target if isinstance(target, Tensor) else getattr(target, "weight", None)
    if not isinstance(weight, Tensor):
        raise SizeError(f"the target is {target!r}\n  give a dense weight, or a layer that has one")
    if weight.is_complex():
        raise SizeError("the target is complex\n  fit takes real weights: fit its real and imaginary parts apart")
    if not weight.isfinite().all():
        raise SizeError("the target has entries that are infinite or not a number")
    return weight


def _moments_of(inputs: Batches | Moments | None, target: Tensor | nn.Module, layer: nn.Module) -> Moments | None:
    if inputs is None or isinstance(inputs, Moments):
        return inputs
    return Moments.of(inputs, target if isinstance(target, DENSE) else layer)


def _make_problem(place: WeightPlace, output: Tensor, second: Tensor | None) -> FitProblem:
    """Return the weight of a layer as a problem. What is not one sum of products has no products.

    Args:
        place: where the cores are.
        output: the target as the output of the network.
        second: the moments of the inputs, `(groups, in, in)`; None for the identity.

    Raises:
        SizeError: moments of other inputs than the weight has.
    """
    sizes = tuple(int(leg.size) for leg in place.network.outputs[0].legs)
    form = as_multilinear(place.network) or Multilinear(sizes, tuple(range(len(sizes))), (), {}, {})
    if second is None:
        return FitProblem(form, output.reshape(sizes))
    groups, _, ins = place.by_group(output).shape
    if second.shape[-1] != ins:
        raise SizeError(f"the moments are of {second.shape[-1]} inputs, and the weight has {ins}")
    if len(second) != groups:
        raise SizeError(f"the moments are of {len(second)} groups, and the weight has {groups}")
    metric = place.metric(second, form.legs)
    return FitProblem(form, output.reshape(sizes), replace(metric, moments=regularise(metric.moments, FLOOR)))


def _residual(place: WeightPlace, problem: FitProblem) -> Tensor:
    """Return what the stored params miss of the target."""
    if problem.form.products:
        return problem.residual(place.values())
    return problem.target - _dense_of(place)(place.values()).reshape(problem.target.shape)


class _Start(NamedTuple):
    """The cores to start from, how they were found, and a squared error that no cores can be below."""

    values: Values
    method: str
    bound: float = 0.0


def _alternate(problem: FitProblem, start: _Start, sweeps: int, tolerance: float, progress: Progress | None) -> _Found:
    """Return cores by alternating least squares, or those of the start if none can be better."""
    values, method, bound = start
    if problem.loss(values) <= bound * (1 + 1e-7) + 1e-24 * problem.total:
        return _Found(values, method, bound, [problem.output_error(values)])
    sweeper = Sweeper.over(problem)
    values = sweeper.run(values, sweeps, tolerance, progress)
    method = f"{method}, {len(sweeper.history) - 1} sweeps"
    return _Found(values, method, bound, sweeper.history, sweeper.flops(), sweeper.peak())


def _resume(place: WeightPlace, problem: FitProblem) -> _Start:
    return _Start(place.values(), "resumed")


def _begin(place: WeightPlace, problem: FitProblem, starts: int, seed: int, sweeps: int) -> _Start:
    """Return the better of two truncations, or the best of several drawn starts."""
    branches = find_branches(problem.form)
    if branches is None:
        return _Start(_best_start(place, problem, starts, seed, sweeps), f"best of {starts} starts")
    candidates = [truncate(problem, branches)]
    if problem.metric is not None:
        candidates.append(truncate(FitProblem(problem.form, problem.target), branches))
    best = min(candidates, key=lambda c: problem.loss(c.values))
    return _Start({**place.values(), **best.values}, "truncation", candidates[0].bound)


def _best_start(place: WeightPlace, problem: FitProblem, starts: int, seed: int, sweeps: int) -> Values:
    """Return the best of several drawn starts after a few sweeps.

    Starts that are led into a corner fall as fast as others at first. So the better half of them get a quarter of all
    sweeps before the best is chosen.
    """
    sweeper = Sweeper.over(problem)
    candidates = [_draw(place, problem.form, seed + number) for number in range(starts)]
    for trial in (TRIAL_SWEEPS, sweeps // 4):
        if len(candidates) > 1:
            candidates = [sweeper.run(values, trial, 0.0) for values in candidates]
            candidates = sorted(candidates, key=problem.loss)[: (len(candidates) + 1) // 2]
    return candidates[0]


def _draw(place: WeightPlace, form: Multilinear, seed: int) -> Values:
    """Return drawn cores of equal norms, in float64."""
    generator = torch.Generator().manual_seed(seed)
    values = place.values()
    for name, shape in form.cores.items():
        values[name] = torch.randn(shape, generator=generator, dtype=torch.float64) / max(1, prod(shape)) ** 0.5
    return values


def _dense_of(place: WeightPlace) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return the function from params and fixed tensors to the weight, differentiable, in float64."""
    layer = build(plan(place.network, mode="train", itemsize=8), dtype=torch.float64)
    attributes = layer.printed.attributes

    def dense(values: Mapping[str, Tensor]) -> Tensor:
        result: Tensor = functional_call(layer, {at: values[name] for name, at in attributes.items()}, ())
        return result

    return dense


def _descend(
    place: WeightPlace, problem: FitProblem, steps: int, tolerance: float, progress: Progress | None
) -> _Found:
    """Return params by gradient descent from the layer's own."""
    dense, total = _dense_of(place), problem.total or 1.0

    def error(values: Mapping[str, Tensor]) -> Tensor:
        residual = problem.target - dense(values).reshape(problem.target.shape)
        return (problem.apply_metric(residual) * residual).sum() / total

    names = [*place.params]
    values, history = descend(error, place.values(), names, steps, tolerance, progress)
    return _Found(values, f"L-BFGS, {len(history) - 1} steps", 0.0, history)


def _set_bias(place: WeightPlace, target: Tensor | nn.Module, residual: Tensor, moments: Moments | None) -> None:
    """Take the bias of the target over, plus what the fitted weight misses at the mean of the inputs."""
    bias = getattr(target, "bias", None)
    assert place.bias is not None
    with torch.no_grad():
        if isinstance(bias, Tensor):
            place.bias.copy_(bias)
        elif isinstance(target, nn.Module):
            place.bias.zero_()
        if moments is not None:
            missing = place.by_group(residual)
            shift = (missing @ moments.mean[:, :, None].to(missing)).flatten()
            place.bias.add_(shift.to(place.bias))


def _compare(place: WeightPlace, output: Tensor, second: Tensor | None, params: int) -> LowRank | None:
    """Return the best low-rank weight of as many params in the same metric; None if the weight has one axis."""
    if output.dim() < 2:
        return None
    return best_low_rank(place.by_group(output), None if second is None else regularise(second, FLOOR), params)
