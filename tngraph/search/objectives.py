"""The request for a plan: the mode it is for, and the cost of a step.

A `Request` is the request in the names of the network; `Pricing` is the same for one region, by leaf. The price of a
tree is the sum of the prices of its steps, which is what the exact search needs, so it works for every objective.
`Work` holds everything a price may depend on: numbers, or arrays of them when many steps are priced at once.

Source: a step's gradient with respect to one operand is a product of the same volume, so training costs
F · (1 + gL + gR), where gL and gR are 1 if a gradient flows to that operand and else 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf, lcm
from typing import Any, Literal, get_args

import numpy as np

from tngraph.errors import PlanError
from tngraph.language.network import Network
from tngraph.language.sizes import LARGEST
from tngraph.search.machine import Machine, Work

Mode = Literal["infer", "train", "serve"]
MODES = get_args(Mode)


Price = int | float
Objective = str | Callable[[Work], Price] | Mapping[str, float]
"""The values that `plan` takes as `minimize`."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A price per operation and a price per element written. Gradients are work of the same kind."""

    operations: int = 1
    writes: int = 0
    is_integral = True

    def __call__(self, work: Work) -> Any:
        """Return the price of a step [weighted operations]."""
        forward = self.operations * work.operations * (1 + work.left_grad + work.right_grad)
        written = work.result + work.left_grad * work.left + work.right_grad * work.right
        return forward + self.writes * written if self.writes else forward


@dataclass(frozen=True, slots=True)
class PerStep:
    """A user's function of a step, called step by step."""

    function: Callable[[Work], Price]
    is_integral = False

    def __call__(self, work: Work) -> Any:
        """Return the function's price of a step, or of each step in arrays of steps.

        Raises:
            PlanError: the function returns something other than a finite number from 0 on.
        """
        if not any(isinstance(entry, np.ndarray) for entry in work):
            return self._price(work)
        columns = np.broadcast_arrays(*work)
        prices = [self._price(Work(*entries)) for entries in zip(*(c.ravel().tolist() for c in columns), strict=True)]
        return np.array(prices, dtype=np.float64).reshape(columns[0].shape)

    def _price(self, work: Work) -> float:
        try:
            price: object = self.function(work)
        except OverflowError:
            raise PlanError(
                "minimize computes with floats, and a step here has more operations or elements than a float holds\n"
                "  make its numbers smaller first: min(work.operations, 10**100)"
            ) from None
        is_number = isinstance(price, int | float | np.number) and not isinstance(price, bool) and price < _HIGHEST
        if not is_number or not 0 <= float(price) < inf:  # type: ignore[arg-type]
            raise PlanError(
                f"minimize gave {price!r} for a step of {work.operations:,} operations\n"
                "  a function of a step says a finite number, 0 or more"
            )
        return float(price)  # type: ignore[arg-type]


Rate = Weighted | Machine | PerStep
_NAMED: Mapping[str, Rate] = {
    "flops": Weighted(),
    "memory": Weighted(),
    "writes": Weighted(0, 1),
    "time": Machine(),
}
"""Objectives by name. Memory is not a sum over steps: a choice among plans minimises it (see `compiler.fronts`)."""
_HIGHEST = 10**300
"""The price of a user's function must stay below this."""
_FINEST = 1000
"""The largest denominator of the fractions that weights are rounded to."""


def read_objective(minimize: Objective) -> Rate:
    """Return the price function of an objective: a name, weights of names, or a function of a step.

    Raises:
        PlanError: the objective is something else.
    """
    if isinstance(minimize, str) and minimize in _NAMED:
        return _NAMED[minimize]
    if isinstance(minimize, Weighted | Machine | PerStep):
        return minimize
    if isinstance(minimize, Mapping) and minimize:
        return _read_weights(minimize)
    if callable(minimize) and not inspect.isclass(minimize):
        return PerStep(minimize)
    raise PlanError(
        f"minimize is {minimize!r}\n"
        f"  it is one of {', '.join(_NAMED)}, weights as {{'flops': 1, 'writes': 8}}, or a function of a step"
    )


def _read_weights(weights: Mapping[str, float]) -> Weighted:
    for name, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if name not in ("flops", "writes") or not is_number or not (weight == 0 or 1 / _FINEST <= weight < 2**20):
            raise PlanError(
                f"minimize weighs {name!r} by {weight!r}\n"
                f"  weights are for 'flops' and 'writes': 0, or numbers from 1/{_FINEST} to 2**20"
            )
    fractions = {name: Fraction(weight).limit_denominator(_FINEST) for name, weight in weights.items()}
    scale = lcm(*(fraction.denominator for fraction in fractions.values()))
    weighted = Weighted(*(int(fractions.get(name, 0) * scale) for name in ("flops", "writes")))
    if weighted == Weighted(0, 0):
        raise PlanError("minimize weighs everything by 0\n  give a weight above 0")
    return weighted


@dataclass(frozen=True, slots=True)
class Request:
    """The request that a plan answers.

    Attributes:
        mode: a call, a call with its backward pass, or many calls with the same weights.
        minimize: the objective as the caller gave it.
        rate: the price function of a step under this objective.
        trained: the tensors that take a gradient.
        itemsize: the size of an element [bytes].
        memory_limit: the most memory that a call may hold, or save for its backward pass in training, or fold in
            serving [bytes].
        largest: the most that a step other than a result may write; None for no limit [elements].
        most_folded: the largest value that is folded into a buffer [elements]; None for no limit.
    """

    mode: Mode = "infer"
    minimize: Objective = field(default="flops", hash=False)
    rate: Rate = Weighted()
    trained: frozenset[str] = frozenset()
    itemsize: int = 4
    memory_limit: int | None = None
    largest: int | None = None
    most_folded: int | None = None

    @property
    def machine(self) -> Machine:
        """The machine that predicts times: the objective's, or else the built-in one."""
        return self.rate if isinstance(self.rate, Machine) else Machine()

    @property
    def is_bounded(self) -> bool:
        """True if a memory limit decides which order is planned. In ``serve`` it decides what is folded instead."""
        is_limited = self.mode != "serve" and (self.memory_limit is not None or self.minimize == "memory")
        return is_limited or self.largest is not None


def make_request(
    network: Network,
    mode: Mode = "infer",
    minimize: Objective = "flops",
    requires_grad: Mapping[str, bool] | None = None,
    itemsize: int = 4,
    memory_limit: int | None = None,
    largest: int | None = None,
) -> Request:
    """Return the request of a plan, after checking it.

    Args:
        network: the network to plan.
        mode: ``infer``, ``train`` or ``serve``.
        minimize: a name, weights of names, or a function of a step.
        requires_grad: whether tensors take a gradient, by name. Params and inputs that are not named do; in ``serve``
            only inputs.
        itemsize: the size of an element [bytes].
        memory_limit: see `Request` [bytes].
        largest: the most that a step may write [elements].

    Raises:
        PlanError: there is no such mode, objective or tensor, a limit is not a valid integer, or two limits are given.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise PlanError(f"the mode is {mode!r}\n  modes: {', '.join(MODES)}")
    if memory_limit is not None and not _is_count(memory_limit, 0):
        raise PlanError(f"the memory limit is {memory_limit!r}\n  it is an integer from 0 to 2**62, in bytes")
    if mode == "serve" and minimize == "memory":
        raise PlanError("minimize is 'memory' in serve\n  there memory_limit says how much is folded into buffers")
    if largest is not None and not _is_count(largest):
        raise PlanError(f"the largest value is {largest!r}\n  it is an integer from 1 to 2**62, in elements")
    if largest is not None and (memory_limit is not None or minimize == "memory"):
        raise PlanError("largest and memory are two limits\n  give one of largest=…, memory_limit=…, minimize='memory'")
    if not _is_count(itemsize):
        raise PlanError(f"the itemsize is {itemsize!r}\n  it is the bytes of an element: 4 for float32")
    trained = _read_trained(network, mode, {} if requires_grad is None else requires_grad)
    return Request(mode, minimize, read_objective(minimize), trained, itemsize, memory_limit, largest)


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def _read_trained(network: Network, mode: Mode, requires_grad: Mapping[str, bool]) -> frozenset[str]:
    if not isinstance(requires_grad, Mapping):
        raise PlanError(f"requires_grad is {requires_grad!r}\n  it says True or False of tensors, as {{'w1': False}}")
    roles = ("input",) if mode == "serve" else ("param", "input")
    can = {core.name: core.role in roles for core in network.cores if core.role in ("param", "input", "buffer")}
    for name, is_wanted in requires_grad.items():
        if name not in can:
            raise PlanError(f"requires_grad names {name!r}\n  tensors: {', '.join(can) or 'none'}")
        if not isinstance(is_wanted, bool):
            raise PlanError(f"requires_grad says {is_wanted!r} of {name!r}\n  it is True or False")
        if is_wanted and not can[name]:
            reason = "weights never change in serve" if mode == "serve" else "a buffer takes no gradient"
            raise PlanError(f"requires_grad asks for a gradient of {name!r}, and {reason}\n  leave it out")
    return frozenset(name for name, default in can.items() if requires_grad.get(name, default))


@dataclass(frozen=True, slots=True)
class Pricing:
    """The prices of one region's steps. Sets of leaves are bits, as in `Value`.

    Attributes:
        rate: the price function of a step.
        trained: the leaves that a gradient flows to.
        fixed: the leaves that are the same at every call, whose products are folded into buffers.
        most_folded: the largest value that is folded [elements]; None for no limit.
        most_elements: the largest value that a step other than the last may write [elements]; None for no limit.
    """

    rate: Rate = Weighted()
    trained: int = 0
    fixed: int = 0
    most_folded: int | None = None
    most_elements: int | None = None

    def is_folded(self, leaves: int, size: int) -> bool:
        """Return whether the product of these leaves, with `size` elements, is computed before the first call."""
        return not leaves & ~self.fixed and (self.most_folded is None or size <= self.most_folded)
