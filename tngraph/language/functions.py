"""The pointwise functions of the language, with their values, derivatives and counts of numbers.

Values and derivatives agree with torch, even at kinks (the derivative of ``relu`` and ``abs`` at 0 is 0) and where
torch rounds (``softplus`` is the identity above 20, with a derivative of exactly 1). Outside its domain a function is
nan or infinite without a warning, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tngraph.errors import NetworkError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A function of one real number and ``arity`` constants: ``value(x, *args)``, ``derivative(x, *args)``.

    ``on_complex`` is true if it is also a function of a complex number, and ``is_real`` if its value is real there.
    The derivative is then ∂/∂x − i∂/∂y, which is twice Wirtinger's ∂/∂z; otherwise it is the holomorphic one.
    """

    value: Callable[..., Array]
    derivative: Callable[..., Array]
    arity: int = 0
    on_complex: bool = False
    is_real: bool = False


_LINEAR_SOFTPLUS = 20.0
"""From here on ``torch.nn.functional.softplus`` returns its argument."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _normal_cdf(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + _erf(x / math.sqrt(2.0))))


def _normal_pdf(x: Array) -> Array:
    return np.asarray(np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _silu_derivative(x: Array) -> Array:
    sigmoid = _sigmoid(x)
    return np.asarray(sigmoid * (1.0 + x * (1.0 - sigmoid)))


def _softplus(x: Array) -> Array:
    return np.where(x > _LINEAR_SOFTPLUS, x, np.logaddexp(0.0, x))


def _softplus_derivative(x: Array) -> Array:
    return np.where(x > _LINEAR_SOFTPLUS, 1.0, _sigmoid(x))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def _elu_derivative(x: Array, alpha: float) -> Array:
    return np.where(x > 0, 1.0, alpha * np.exp(np.minimum(x, 0.0)))


FUNCTIONS: Mapping[str, Pointwise] = {
    "relu": Pointwise(lambda x: np.maximum(x, 0.0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "gelu": Pointwise(lambda x: x * _normal_cdf(x), lambda x: _normal_cdf(x) + x * _normal_pdf(x)),
    "silu": Pointwise(lambda x: x * _sigmoid(x), _silu_derivative),  # PyTorch has no gradient of a complex one
    "tanh": Pointwise(np.tanh, lambda x: 1.0 - np.tanh(x) ** 2, on_complex=True),
    "sigmoid": Pointwise(_sigmoid, lambda x: _sigmoid(x) * (1.0 - _sigmoid(x)), on_complex=True),
    "softplus": Pointwise(_softplus, _softplus_derivative),
    "exp": Pointwise(np.exp, np.exp, on_complex=True),
    "log": Pointwise(np.log, lambda x: 1.0 / x, on_complex=True),
    "sqrt": Pointwise(np.sqrt, lambda x: 0.5 / np.sqrt(x), on_complex=True),
    "abs": Pointwise(np.abs, lambda x: np.conj(np.sign(x)), on_complex=True, is_real=True),
    "square": Pointwise(np.square, lambda x: 2.0 * x, on_complex=True),
    "sin": Pointwise(np.sin, np.cos, on_complex=True),
    "cos": Pointwise(np.cos, lambda x: -np.sin(x), on_complex=True),
    "leaky_relu": Pointwise(
        lambda x, slope: np.where(x > 0, x, slope * x), lambda x, slope: np.where(x > 0, 1.0, slope), 1
    ),
    "elu": Pointwise(_elu, _elu_derivative, 1),
}

ARITY: Mapping[str, int] = {name: function.arity for name, function in FUNCTIONS.items()}
"""The count of numbers that each function takes, as ``leaky_relu(0.1)`` takes one."""


def pointwise(name: str, args: Sequence[float]) -> Pointwise:
    """Return the function of a name, after checking that it takes these numbers.

    Raises:
        NetworkError: there is no such function, or it takes another count of numbers.
    """
    function = FUNCTIONS.get(name)
    if function is None:
        near = get_close_matches(name, FUNCTIONS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(FUNCTIONS)}"
        raise NetworkError(f"there is no pointwise function {name!r}", hint, at=name)
    if len(args) != function.arity:
        raise NetworkError(f"{name} takes {function.arity} number(s), not {len(args)}", at=name)
    return function


def apply(name: str, args: Sequence[float], x: Array) -> Array:
    """Apply the function to every entry of an array."""
    with np.errstate(all="ignore"):
        return np.asarray(_on(name, args, x).value(x, *args))


def differentiate(name: str, args: Sequence[float], x: Array) -> Array:
    """Return the derivative of the function at every entry of an array."""
    with np.errstate(all="ignore"):
        return np.asarray(_on(name, args, x).derivative(x, *args))


def pull_back(name: str, args: Sequence[float], x: Array, adjoint: Array) -> Array:
    """Return the gradient of Re Σ adjoint·function at the entries of an array, as ∂/∂x − i∂/∂y if they are complex."""
    return (adjoint.real if FUNCTIONS[name].is_real else adjoint) * differentiate(name, args, x)


def check_complex(name: str, what: str = "") -> None:
    """Raise `NetworkError` unless the function has a meaning for complex numbers.

    Args:
        name: the name of the function.
        what: the result that it is applied to, if an error should name it.
    """
    if not FUNCTIONS[name].on_complex:
        message = f"{name} is not a function of complex numbers" + (f", and {what!r} is {name} of some" if what else "")
        having = ", ".join(other for other, function in FUNCTIONS.items() if function.on_complex)
        raise NetworkError(message, f"these are: {having}", at=name)


def _on(name: str, args: Sequence[float], x: Array) -> Pointwise:
    function = pointwise(name, args)
    if np.iscomplexobj(x):
        check_complex(name)
    return function
