"""Gradient descent for what is not linear in its cores: functions between them, tied cores, several outputs.

L-BFGS with a strong Wolfe line search on the squared error, in float64, through the compiled network.

Source: Liu and Nocedal (1989).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tngraph.fitting.problem import Values

HISTORY = 20
"""The steps that L-BFGS remembers."""


def descend(
    error: Callable[[Mapping[str, Tensor]], Tensor],
    values: Values,
    names: list[str],
    most: int,
    tolerance: float,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Values, list[float]]:
    """Return better params, the best that were seen, and the relative error after every step.

    Args:
        error: the squared relative error, differentiable.
        values: the params and fixed tensors to start from.
        names: the params.
        most: the number of steps at most.
        tolerance: the least relative fall of the error over ten steps.
        progress: called as ``progress(done, most, error)`` after every step.
    """
    leaves = {name: values[name].clone().requires_grad_() for name in names}
    optimizer = torch.optim.LBFGS(
        [*leaves.values()], max_iter=1, history_size=HISTORY, line_search_fn="strong_wolfe", tolerance_grad=0.0
    )
    best, history = dict(values), [float(error(values).detach()) ** 0.5]

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = error({**values, **leaves})
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for step in range(most):
        optimizer.step(evaluate)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            reached = float(error({**values, **leaves})) ** 0.5
        if reached < min(history):
            best = {**values, **{name: leaf.detach().clone() for name, leaf in leaves.items()}}
        history.append(min(reached, history[-1]) if reached == reached else history[-1])
        if progress is not None:
            progress(step + 1, most, history[-1])
        if step >= 10 and history[-11] - history[-1] <= tolerance * history[-11]:
            break
    return best, history
