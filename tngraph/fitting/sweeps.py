"""Alternating least squares: each core in turn takes the value that is best while the others stay.

The sum of products is linear in a core g, so the error is L = c − 2⟨b, g⟩ + ⟨g, N g⟩. Both b (the target contracted
with everything but the core) and N (the core's environment contracted with itself through the metric) are networks
that the planner orders as any other. A leg of the core that is an output of the whole, and that the metric does not
mix, is shared by both sides of N: it makes N block-diagonal if another core has it, too, and is a column of
right-hand sides if none has. N is factorised, or conjugate gradients use planned products N v where a few of these
take fewer operations.

The step d solves (N + λ) d = b − N g, so that the error changes by −⟨d, (N + 2λ) d⟩ and never rises. A sweep starts a
little beyond the cores that the last one reached, in its direction. If that turns out worse, it is done over from the
cores themselves.

Source: alternating least squares as for PARAFAC (Carroll and Chang 1970, Harshman 1970), here over any network;
Mitchell, Ye and De Sterck, arXiv 1810.05846, for the momentum with restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tngraph.fitting.multilinear import Contraction, Indices, Multilinear, Product, TensorFactor, contraction, volume
from tngraph.fitting.problem import FitProblem, Values

FEW_UNKNOWNS = 512
"""Systems of no more unknowns than this are factorised, which solves them to the last digit."""
MOST_ENTRIES = 2**26
"""The most entries of all blocks of a system that is factorised (512 MiB)."""
RIDGE = 1e-13
"""What is added to the diagonal, relative to its mean: enough for Cholesky, too little to slow the descent."""
STEPS = 12
"""The steps of conjugate gradients in one update: the next sweep goes on where they stop."""
_TARGET, _METRIC, _SEARCHED = "target", "metric", "searched"


@dataclass(frozen=True)
class CoreUpdate:
    """The least-squares problem of one core.

    Attributes:
        problem: the whole problem.
        name: the core.
    """

    problem: FitProblem
    name: str

    @property
    def form(self) -> Multilinear:
        """The sum of products."""
        return self.problem.form

    @cached_property
    def legs(self) -> Indices:
        """The indices of the core, in storage order."""
        return self.form.factors_of(self.name)[0].indices

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """The products with the core, without it."""
        return tuple(p.without(self.name) for p in self.form.products if self._has(p))

    def _has(self, product: Product) -> bool:
        return any(factor.source == self.name for factor in product.factors)

    @cached_property
    def _shared(self) -> frozenset[int]:
        """The indices of the result that both sides of N share: those that no metric mixes."""
        mixed = self.problem.metric.legs if self.problem.metric else ()
        return frozenset(self.form.legs).difference(mixed)

    @cached_property
    def _elsewhere(self) -> frozenset[int]:
        return frozenset(index for product in self.products for index in product.indices)

    @cached_property
    def blocks(self) -> Indices:
        """The legs that N is block-diagonal in: shared ones that other cores or the metric have, too."""
        group = self.problem.metric.group if self.problem.metric else ()
        return tuple(i for i in self.legs if i in self._shared and (i in self._elsewhere or i in group))

    @cached_property
    def columns(self) -> Indices:
        """The legs that count right-hand sides: shared ones that nothing else has."""
        return tuple(i for i in self.legs if i in self._shared and i not in self.blocks)

    @cached_property
    def unknowns(self) -> Indices:
        """The legs that N couples."""
        return tuple(i for i in self.legs if i not in self._shared)

    @cached_property
    def is_direct(self) -> bool:
        """True if N is factorised: it is small, or that takes fewer operations than conjugate gradients."""
        count, blocks = volume(self.form.sizes, self.unknowns), volume(self.form.sizes, self.blocks)
        if count <= FEW_UNKNOWNS or count**2 * blocks > MOST_ENTRIES:
            return count <= FEW_UNKNOWNS
        factorised = self.normal.plan.at().flops + blocks * count**3 // 3
        return factorised <= STEPS * self.normal_times.plan.at().flops

    @cached_property
    def right_side(self) -> Contraction:
        """The contraction of the weighted target with the environment of the core: b."""
        target = TensorFactor(_TARGET, self.form.legs)
        products = [Product(p.scale, (target, *p.factors)) for p in self.products]
        return contraction(self.form.sizes, products, self.legs)

    @cached_property
    def rest(self) -> Contraction | None:
        """The sum of the products without the core, if there are any."""
        others = [product for product in self.form.products if not self._has(product)]
        return contraction(self.form.sizes, others, self.form.legs) if others else None

    def _pairs(self) -> tuple[list[int], list[tuple[Product, Product, tuple[TensorFactor, ...]]], dict[int, int]]:
        """Return the sizes with those of the other side, pairs of products with the metric, and the renaming."""
        sizes = list(self.form.sizes)
        other: dict[int, int] = {}
        for index in range(len(self.form.sizes)):
            if index not in self._shared:
                other[index] = len(sizes)
                sizes.append(self.form.sizes[index])
        metric = self.problem.metric
        middle: tuple[TensorFactor, ...] = ()
        if metric is not None:
            middle = (TensorFactor(_METRIC, (*metric.group, *metric.legs, *(other[i] for i in metric.legs))),)
        pairs = [(left, right.renamed(other), middle) for left in self.products for right in self.products]
        return sizes, pairs, other

    def _scale(self, left: Product, right: Product) -> float:
        """Return the factor of legs of the result that neither the core nor a product has, and so are summed freely."""
        named = left.indices | right.indices | {*self.legs}
        mixed = {*self.problem.metric.group} if self.problem.metric else set()
        free = [i for i in self._shared if i not in named and i not in mixed]
        return left.scale * right.scale * volume(self.form.sizes, free)

    @cached_property
    def normal(self) -> Contraction:
        """The contraction to N, with the legs `blocks`, `unknowns` and `unknowns` of the other side."""
        sizes, pairs, other = self._pairs()
        products = [Product(self._scale(a, b), (*a.factors, *middle, *b.factors)) for a, b, middle in pairs]
        return contraction(sizes, products, (*self.blocks, *self.unknowns, *(other[i] for i in self.unknowns)))

    @cached_property
    def normal_times(self) -> Contraction:
        """The contraction to N v for a tensor v like the core."""
        sizes, pairs, other = self._pairs()
        searched = TensorFactor(_SEARCHED, tuple(other.get(i, i) for i in self.legs))
        products = [Product(self._scale(a, b), (*a.factors, *middle, *b.factors, searched)) for a, b, middle in pairs]
        return contraction(sizes, products, self.legs)

    def contractions(self) -> Iterator[Contraction]:
        """Yield the contractions of one update, without the steps of conjugate gradients."""
        yield self.right_side
        if self.rest is not None:
            yield self.rest
        yield self.normal if self.is_direct else self.normal_times

    @property
    def _entries(self) -> tuple[int, int, int]:
        """The numbers of blocks, unknowns and columns of the system."""
        blocks, unknowns, columns = (volume(self.form.sizes, i) for i in (self.blocks, self.unknowns, self.columns))
        return blocks, unknowns, columns

    @property
    def _has_metric_product(self) -> bool:
        return self.rest is not None and self.problem.metric is not None

    def flops(self) -> int:
        """Return what PyTorch counts of one update that is solved directly; it counts no factorisation [FLOPs]."""
        blocks, unknowns, columns = self._entries
        total = sum(contraction.plan.at().flops for contraction in self.contractions())
        metric = self.problem.metric
        if self._has_metric_product and metric is not None:
            total += 2 * self.problem.target.numel() * metric.moments.shape[-1]
        return total + (4 * blocks * unknowns**2 * columns if self.is_direct else 0)

    def peak(self) -> int:
        """Return a bound of the bytes that one update allocates at once [bytes]."""
        blocks, unknowns, columns = self._entries
        core, system = 8 * blocks * unknowns * columns, 8 * blocks * unknowns**2
        contracted = max(contraction.plan.at().peak for contraction in self.contractions())
        solving = 4 * system if self.is_direct else 0
        weighted = 4 * 8 * self.problem.target.numel() if self.rest is not None else 0
        return max(contracted, solving) + 6 * core + weighted

    def step(self, values: Values) -> float:
        """Improve the core in place of its value, and return by how much the squared error falls."""
        weighted = self.problem.weighted
        if self.rest is not None:
            weighted = weighted - self.problem.apply_metric(self.rest(values))
        tensors = {**values, _TARGET: weighted}
        if self.problem.metric is not None:
            metric = self.problem.metric
            shape = self.form.shape((*metric.group, *metric.legs, *metric.legs))
            tensors[_METRIC] = metric.moments.reshape(shape)
        wanted = self.right_side(tensors)
        solve = self._solve_directly if self.is_direct else self._solve_iteratively
        step, gain = solve(tensors, wanted, values[self.name])
        if gain > 0:
            values[self.name] = values[self.name] + step
        return max(gain, 0.0)

    def _solve_directly(self, tensors: Mapping[str, Tensor], wanted: Tensor, core: Tensor) -> tuple[Tensor, float]:
        """Return the step of a core and the fall of the error, with a factorised N."""
        sizes, order = self.form.sizes, (*self.blocks, *self.unknowns, *self.columns)
        blocks, count = volume(sizes, self.blocks), volume(sizes, self.unknowns)
        normal = self.normal(tensors).reshape(blocks, count, count)
        places = [self.legs.index(index) for index in order]
        shape = self.form.shape(order)

        def as_matrix(tensor: Tensor) -> Tensor:
            return tensor.permute(places).reshape(blocks, count, -1)

        missing = as_matrix(wanted) - normal @ as_matrix(core)
        step = _solve(normal, missing)
        gain = 2 * float((step * missing).sum()) - float((step * (normal @ step)).sum())
        back = [order.index(index) for index in self.legs]
        return step.reshape(shape).permute(back), gain

    def _solve_iteratively(self, tensors: Mapping[str, Tensor], wanted: Tensor, core: Tensor) -> tuple[Tensor, float]:
        """Return the step of a core and the fall of the error, by conjugate gradients."""
        times = self.normal_times

        def multiply(tensor: Tensor) -> Tensor:
            return times({**tensors, _SEARCHED: tensor})

        return _conjugate_gradients(multiply, wanted - multiply(core))


def _solve(normal: Tensor, missing: Tensor) -> Tensor:
    """Return d of (N + λ) d = r, block by block."""
    mean = normal.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    for ridge in (RIDGE, 1e3 * RIDGE, 1e6 * RIDGE):
        shifted = normal + (ridge * mean).clamp_min(torch.finfo(normal.dtype).tiny) * eye
        factor, fault = torch.linalg.cholesky_ex(shifted)
        if not fault.any():
            solution: Tensor = torch.cholesky_solve(missing, factor)
            return solution
    values, vectors = torch.linalg.eigh(normal)
    usable = values > 1e-12 * values[..., -1:]
    inverse = torch.where(usable, 1 / values.clamp_min(torch.finfo(values.dtype).tiny), 0.0)
    least: Tensor = vectors @ (inverse[..., None] * (vectors.mT @ missing))
    return least


def _conjugate_gradients(multiply: Callable[[Tensor], Tensor], residual: Tensor) -> tuple[Tensor, float]:
    """Return d of N d = r after some steps from 0, and the fall 2⟨d, r⟩ − ⟨d, N d⟩ of the error.

    Source: Hestenes and Stiefel (1952).
    """
    step, gain = torch.zeros_like(residual), 0.0
    direction, square = residual, float((residual * residual).sum())
    enough = 1e-20 * square
    for _ in range(STEPS):
        if square <= enough or square == 0.0:
            break
        image = multiply(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0.0:
            break
        length = square / curvature
        step, residual = step + length * direction, residual - length * image
        gain += length * square
        new = float((residual * residual).sum())
        direction, square = residual + (new / square) * direction, new
    return step, gain


def _beyond(reached: Values, before: Values, weight: float) -> Values:
    """Return cores beyond those reached, in the direction from those before."""
    return {name: core + weight * (core - before[name]) for name, core in reached.items()} if weight else reached


@dataclass
class Sweeper:
    """Sweeps over the cores of a problem.

    Attributes:
        problem: what is fitted.
        updates: the update of every core, in the order in which they are improved.
        history: the relative error of the outputs after every sweep, from the start on.
    """

    problem: FitProblem
    updates: tuple[CoreUpdate, ...]
    history: list[float] = field(default_factory=list)

    @classmethod
    def over(cls, problem: FitProblem) -> Sweeper:
        """Return a sweeper over all cores."""
        return cls(problem, tuple(CoreUpdate(problem, name) for name in problem.form.cores))

    def run(
        self,
        values: Values,
        most: int,
        tolerance: float,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> Values:
        """Return better cores, after sweeps over all of them until one gains too little.

        Args:
            values: the cores to start from.
            most: the number of sweeps at most.
            tolerance: the least fall of the relative error in one sweep, relative to it.
            progress: called as ``progress(done, most, error)`` after every sweep.
        """
        reached, loss, before = dict(values), self.problem.loss(values), dict(values)
        self.history, momentum = [self.problem.relative(loss)], 1.0
        for sweep in range(most):
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            weight, momentum = (momentum - 1) / following, following
            result, result_loss = self._sweep(_beyond(reached, before, weight))
            if result_loss > loss:
                momentum = 1.0
                result, result_loss = self._sweep(reached)
            if result_loss <= loss:
                before, reached, loss = reached, result, result_loss
            last, error = self.history[-1], self.problem.relative(loss)
            self.history.append(error)
            if progress is not None:
                progress(sweep + 1, most, error)
            if momentum != 1.0 and last - error <= tolerance * last:
                break
        return reached

    def _sweep(self, start: Values) -> tuple[Values, float]:
        """Return the cores after an update of each, and their squared error."""
        values = dict(start)
        for update in self.updates:
            update.step(values)
        return values, self.problem.loss(values)

    def flops(self) -> int:
        """Return what PyTorch counts of one sweep that solves every system directly [FLOPs]."""
        return sum(update.flops() for update in self.updates)

    def peak(self) -> int:
        """Return a bound of the bytes that a sweep allocates at once, without target and moments [bytes]."""
        return max((update.peak() for update in self.updates), default=0)
