"""The layers of other libraries, and those a careful person writes by hand, given the params of a case.

One table at the end says which library has which structure, another one why the rest is missing. A builder takes a
case and its params by name, and returns a module from ``x[batch, features, …]`` to ``y`` without bias or function.
Libraries are imported where they are used: each may be absent.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.bench.cases import Case, Kind

Params = Mapping[str, Tensor]
Foreign = Any
"""A module of a library that is published without types."""
Builder = Callable[[Case, Params], Foreign]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries print when they are imported or build a layer."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def load(name: str) -> Any:
    """A library's module."""
    with quiet():
        return import_module(name)


@torch.no_grad()
def fill(target: Any, value: Tensor) -> None:
    """Copy a value into a library's param, whose shape may have additional axes of size 1."""
    assert target.numel() == value.numel(), (target.shape, value.shape)
    target.copy_(value.reshape(target.shape))


def as_chain(case: Case, params: Params) -> list[Tensor]:
    """The cores of a chain, each with four legs: ``(left, in, out, right)``."""
    ends = (1, *case.ranks, 1)
    return [
        params[name].reshape(ends[k], case.rows[k], case.columns[k], ends[k + 1])
        for k, name in enumerate(case.core_names(len(case.rows)))
    ]


def shared(value: Tensor) -> nn.Parameter:
    """A param of the same value."""
    return nn.Parameter(value.detach().clone().contiguous())


def split(x: Tensor, modes: Sequence[int]) -> Tensor:
    """The features of an input as their modes: ``(batch, modes…)``."""
    return x.reshape(x.shape[0], *modes)


class ByHand(nn.Module):
    """A forward written by hand over params copied from a case.

    Attributes:
        params: in the order that the forward takes them.
        rows: the modes of the input.
        columns: those of the output.
    """

    def __init__(self, case: Case, params: Sequence[Tensor]) -> None:
        super().__init__()
        self.params = nn.ParameterList(map(shared, params))
        self.rows, self.columns = case.rows, case.columns


# tensorly-torch.


def tensorly_linear(case: Case, factorization: str, rank: Any) -> Foreign:
    """Its layer; it contracts input and factors by one einsum."""
    tltorch = load("tltorch")
    with quiet():
        return tltorch.FactorizedLinear(
            case.rows, case.columns, bias=False, factorization=factorization, rank=rank, implementation="factorized"
        )


def tensorly_chain(case: Case, params: Params) -> Foreign:
    """Its block tensor train, with cores ``(left, out, in, right)``."""
    layer = tensorly_linear(case, "blocktt", (1, *case.ranks, 1))
    for factor, core in zip(layer.weight.factors, as_chain(case, params), strict=True):
        fill(factor, core.transpose(1, 2))
    return layer


def tensorly_cp(case: Case, params: Params) -> Foreign:
    """Its CP, with weights of the terms that stay one."""
    layer = tensorly_linear(case, "cp", case.ranks[0])
    fill(layer.weight.weights, torch.ones(case.ranks))
    factors = [params[name] for name in numbered("W.a", case.rows)]
    factors = [params[name].T for name in numbered("W.c", case.columns)] + factors
    for target, factor in zip(layer.weight.factors, factors, strict=True):
        fill(target, factor)
    return layer


def tensorly_tucker(case: Case, params: Params) -> Foreign:
    """Its Tucker, with the columns first."""
    sites = len(case.rows)
    layer = tensorly_linear(case, "tucker", case.ranks[sites:] + case.ranks[:sites])
    fill(layer.weight.core, params["W.core"].permute(*range(sites, 2 * sites), *range(sites)))
    factors = [params[name].T for name in numbered("W.v", case.columns)]
    factors += [params[name] for name in numbered("W.u", case.rows)]
    for target, factor in zip(layer.weight.factors, factors, strict=True):
        fill(target, factor)
    return layer


def tensorly_conv(case: Case, factorization: str, rank: Any, **options: Any) -> Foreign:
    """Its convolution, factor after factor."""
    tltorch, features = load("tltorch"), (case.in_features, case.out_features)
    with quiet():
        return tltorch.FactorizedConv(
            *features, case.window, padding=1, factorization=factorization, rank=rank, **options
        )


def tensorly_cp_conv(case: Case, params: Params) -> Foreign:
    """Its CP convolution: one depthwise convolution per axis of the window."""
    layer = tensorly_conv(case, "cp", case.ranks[0])
    fill(layer.weight.weights, torch.ones(case.ranks))
    factors = [params["W.c1"].T, params["W.a1"], params["W.k1"].T, params["W.k2"].T]
    for target, factor in zip(layer.weight.factors, factors, strict=True):
        fill(target, factor)
    return layer


def tensorly_tucker_conv(case: Case, params: Params) -> Foreign:
    """Its Tucker convolution; it has factors on the window too, which are the identity here."""
    r1, r2 = case.ranks
    layer = tensorly_conv(case, "tucker", (r2, r1, *case.window), fixed_rank_modes="spatial")
    fill(layer.weight.core, params["W.core"].permute(3, 0, 1, 2))
    factors = [params["W.v1"].T, params["W.u1"], *map(torch.eye, case.window)]
    for target, factor in zip(layer.weight.factors, factors, strict=True):
        fill(target, factor)
    return layer


def tensorly_tt_conv(case: Case, params: Params) -> Foreign:
    """Its tensor train convolution: one convolution per axis of the window."""
    layer = tensorly_conv(case, "tt", (1, *case.ranks, 1))
    for target, name in zip(layer.weight.factors, case.core_names(4), strict=True):
        fill(target, params[name])
    return layer


# tednet.


def tednet_chain(case: Case, params: Params) -> Foreign:
    """Its tensor train layer, with cores ``(in, out, left, right)``; it sweeps from left to right."""
    with quiet():
        layer = load("tednet.tnn.tensor_train").TTLinear(case.rows, case.columns, case.ranks, bias=False)
    for k, core in enumerate(as_chain(case, params)):
        fill(getattr(layer, f"node{k}"), core.permute(1, 2, 0, 3))
    return layer


def tednet_ring(case: Case, params: Params) -> Foreign:
    """Its tensor ring layer: a core per leg, ``(left, leg, right)``."""
    ranks = (case.ranks[-1], *case.ranks[:-1])
    with quiet():
        layer = load("tednet.tnn.tensor_ring").TRLinear(case.rows, case.columns, ranks, bias=False)
    for k, name in enumerate(case.core_names(len(case.ranks))):
        fill(getattr(layer, f"node{k}"), params[name])
    return layer


def tednet_cp(case: Case, params: Params) -> Foreign:
    """Its CP layer: a loop over the terms, with a vector per leg and term."""
    with quiet():
        layer = load("tednet.tnn.cp").CPLinear(case.rows, case.columns, case.ranks[0], bias=False)
    factors = [params[name].T for name in numbered("W.a", case.rows)]
    factors += [params[name] for name in numbered("W.c", case.columns)]
    for j, factor in enumerate(factors):
        for r, vector in enumerate(factor):
            fill(getattr(layer, f"node{j}_block{r}"), vector)
    return layer


def tednet_cp_conv(case: Case, params: Params) -> Foreign:
    """Its CP convolution, which rebuilds the dense kernel term by term."""
    with quiet():
        layer = load("tednet.tnn.cp").CPConv2D(
            case.in_features, case.out_features, case.ranks[0], case.window, padding=1, bias=False
        )
    nodes = {"in": params["W.a1"].T, "out": params["W.c1"], "k0": params["W.k1"], "k1": params["W.k2"]}
    for name, factor in nodes.items():
        for r, vector in enumerate(factor):
            fill(getattr(layer, f"node_{name}_block{r}"), vector)
    return layer


def tednet_tucker_conv(case: Case, params: Params) -> Foreign:
    """Its Tucker-2 convolution."""
    with quiet():
        layer = load("tednet.tnn.tucker2").TK2Conv2D(
            case.in_features, case.out_features, list(case.ranks), case.window, padding=1, bias=False
        )
    fill(layer.node0, params["W.u1"])
    fill(layer.node1, params["W.v1"])
    fill(layer.kernel.weight, params["W.core"].permute(3, 0, 1, 2))
    return layer


def tednet_rtt_conv(case: Case, params: Params) -> Foreign:
    """Its tensor train convolution: the window first, on every channel, then the chain."""
    with quiet():
        layer = load("tednet.tnn.tensor_train").TTConv2D(
            list(case.rows), list(case.columns), list(case.ranks), case.window, padding=1, bias=False
        )
    fill(layer.kernel.weight, params["kernel"])
    fill(layer.node0, params["g1"].permute(1, 2, 0, 3))
    fill(layer.node1, params["g2"].permute(1, 2, 0))
    return layer


# torchTT and tensorkrowch.


def torchtt_chain(case: Case, params: Params) -> Foreign:
    """Its linear layer, with cores ``(left, out, in, right)``; its bias is left out."""
    with quiet():
        layer = load("torchtt.nn").LinearLayerTT(list(case.rows), list(case.columns), [1, *case.ranks, 1])
    cores = nn.ParameterList(shared(core.transpose(1, 2)) for core in as_chain(case, params))
    layer.cores, layer.bias = cores, None

    class Applied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cores, self.multiply = cores, load("torchtt._aux_ops").dense_matvec

        def forward(self, x: Tensor) -> Tensor:
            # what `torchtt.TT(cores) @ x` runs, without making a TT of the cores at each call
            result: Tensor = self.multiply(list(self.cores), split(x, case.rows))
            return result.flatten(1)

    return Applied()


def tensorkrowch_chain(case: Case, params: Params) -> Foreign:
    """A `TensorNetwork` of nodes: the library's own MPO takes product states only, so the sweep is written here."""
    tk = load("tensorkrowch")
    rows, count = case.rows, len(case.rows)

    class Sweep(tk.TensorNetwork):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(name="sweep")
            self.cores: list[Any] = []
            for k, name in enumerate(case.core_names(count)):
                axes = ["left"] * (k > 0) + ["input", "output"] + ["right"] * (k < count - 1)
                node = tk.ParamNode(tensor=params[name].clone(), axes_names=axes, name=f"core_{k}", network=self)
                if self.cores:
                    self.cores[-1]["right"] ^ node["left"]
                self.cores.append(node)

        def set_data_nodes(self) -> None:
            axes = ("batch", *(f"x_{k}" for k in range(count)))
            self.data = tk.Node(shape=(1, *rows), axes_names=axes, name="data", network=self, data=True)
            for k, core in enumerate(self.cores):
                self.data[f"x_{k}"] ^ core["input"]

        def add_data(self, data: Tensor) -> None:
            self.data.tensor = data

        def contract(self) -> Any:
            result = self.data
            for core in self.cores:
                result = result @ core
            return result

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = super().forward(split(x, rows))
            return result.flatten(1)

    with quiet():
        return Sweep()


# By hand.


def numbered(prefix: str, modes: Sequence[int]) -> tuple[str, ...]:
    """The names of factors, one per mode."""
    return tuple(f"{prefix}{k}" for k in range(1, len(modes) + 1))


class HandCP(ByHand):
    """The rows' and the columns' factors are multiplied out to one matrix each: two matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        """``x (a1 ⊙ a2 ⊙ …) (c1 ⊙ c2 ⊙ …)``."""
        rows, columns = self.params[: len(self.rows)], self.params[len(self.rows) :]
        left, right = rows[0], columns[0]
        for factor in rows[1:]:
            left = (left[:, None, :] * factor).flatten(0, 1)
        for factor in columns[1:]:
            right = (right[:, :, None] * factor[:, None, :]).flatten(1)
        y: Tensor = x @ left @ right
        return y


class HandTucker(ByHand):
    """A matrix product per row, one with the core, one per column."""

    def forward(self, x: Tensor) -> Tensor:
        """Mode after mode; each product puts its new mode last, so that the next one stands first again."""
        count = len(self.rows)
        batch, y = x.shape[0], split(x, self.rows)
        rows, core, columns = self.params[:count], self.params[count], self.params[count + 1 :]
        for factor in rows:
            y = torch.tensordot(y, factor, ([1], [0]))
        ranks = core.shape[count:]
        y = y.reshape(batch, -1) @ core.reshape(-1, prod(ranks))
        y = split(y, ranks)
        for factor in columns:
            y = torch.tensordot(y, factor, ([1], [0]))
        return y.reshape(batch, -1)


class HandBTT(ByHand):
    """Two batched matrix products with a transposition between, as the paper's code."""

    def forward(self, x: Tensor) -> Tensor:
        """g1 is ``(i1, i2, o1·r)`` and g2 ``(o1, i1·r, o2)``."""
        batch, (n1, _), (m1, m2) = x.shape[0], self.rows, self.columns
        y = torch.bmm(split(x, self.rows).transpose(0, 1), self.params[0])
        y = y.view(n1, batch, m1, -1).permute(2, 1, 0, 3).reshape(m1, batch, -1)
        return torch.bmm(y, self.params[1]).transpose(0, 1).reshape(batch, m1 * m2)


class HandMonarch(ByHand):
    """Two batched matrix products with a transposition between, as the paper's code."""

    def forward(self, x: Tensor) -> Tensor:
        """w1 is ``(i1, o2, i2)`` and w2 ``(o2, o1, i1)``."""
        y = torch.bmm(split(x, self.rows).transpose(0, 1), self.params[0].transpose(1, 2))
        y = torch.bmm(y.permute(2, 1, 0), self.params[1].transpose(1, 2))
        return y.permute(1, 2, 0).reshape(x.shape[0], -1)


def hand_cp(case: Case, params: Params) -> nn.Module:
    """See `HandCP`."""
    return HandCP(case, [params[n] for n in numbered("W.a", case.rows) + numbered("W.c", case.columns)])


def hand_tucker(case: Case, params: Params) -> nn.Module:
    """See `HandTucker`."""
    names = (*numbered("W.u", case.rows), "W.core", *numbered("W.v", case.columns))
    return HandTucker(case, [params[name] for name in names])


def hand_btt(case: Case, params: Params) -> nn.Module:
    """See `HandBTT`."""
    return HandBTT(case, [params["W.g1"].flatten(2), params["W.g2"].flatten(1, 2)])


def hand_monarch(case: Case, params: Params) -> nn.Module:
    """See `HandMonarch`."""
    return HandMonarch(case, [params["W.w1"], params["W.w2"]])


def pointwise_conv(weight: Tensor) -> nn.Conv2d:
    """A convolution of one position; the weight is ``(out, in)``."""
    return with_weight(nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False), weight)


def with_weight(layer: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    """A convolution with another weight."""
    fill(layer.weight, weight)
    return layer


def hand_cp_conv(case: Case, params: Params) -> nn.Module:
    """1 × 1, a depthwise convolution per axis of the window, 1 × 1."""
    (rank,), (height, width) = case.ranks, case.window
    down = nn.Conv2d(rank, rank, (height, 1), padding=(1, 0), groups=rank, bias=False)
    across = nn.Conv2d(rank, rank, (1, width), padding=(0, 1), groups=rank, bias=False)
    return nn.Sequential(
        pointwise_conv(params["W.a1"].T),
        with_weight(down, params["W.k1"]),
        with_weight(across, params["W.k2"]),
        pointwise_conv(params["W.c1"].T),
    )


def hand_tucker_conv(case: Case, params: Params) -> nn.Module:
    """1 × 1, a small convolution, 1 × 1."""
    (r1, r2), (height, width) = case.ranks, case.window
    core = nn.Conv2d(r1, r2, (height, width), padding=1, bias=False)
    return nn.Sequential(
        pointwise_conv(params["W.u1"].T),
        with_weight(core, params["W.core"].permute(3, 0, 1, 2)),
        pointwise_conv(params["W.v1"].T),
    )


def hand_tt_conv(case: Case, params: Params) -> nn.Module:
    """1 × 1, 3 × 1, 1 × 3, 1 × 1."""
    (r1, r2, r3), (height, width) = case.ranks, case.window
    down = nn.Conv2d(r1, r2, (height, 1), padding=(1, 0), bias=False)
    across = nn.Conv2d(r2, r3, (1, width), padding=(0, 1), bias=False)
    return nn.Sequential(
        pointwise_conv(params["W.g1"].T),
        with_weight(down, params["W.g2"].permute(2, 0, 1)),
        with_weight(across, params["W.g3"].permute(2, 0, 1)),
        pointwise_conv(params["W.g4"].T),
    )


class HandRTTConv(ByHand):
    """The chain is multiplied out to a matrix on the channels, with the window's bond; then one small convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """The dense kernel is rebuilt: its channels are few, and the positions many."""
        kernel, g1, g2 = self.params
        weight = torch.einsum("rij,rabs,scd->bdacij", kernel, g1, g2)
        return functional.conv2d(x, weight.reshape(prod(self.columns), prod(self.rows), 3, 3), padding=1)


def hand_rtt_conv(case: Case, params: Params) -> nn.Module:
    """See `HandRTTConv`."""
    return HandRTTConv(case, [params["kernel"], params["g1"], params["g2"]])


LIBRARIES: Mapping[str, Mapping[Kind, Builder]] = {
    "tensorly-torch": {
        "chain": tensorly_chain,
        "cp": tensorly_cp,
        "tucker": tensorly_tucker,
        "cp conv": tensorly_cp_conv,
        "tucker conv": tensorly_tucker_conv,
        "tt conv": tensorly_tt_conv,
    },
    "tednet": {
        "chain": tednet_chain,
        "ring": tednet_ring,
        "cp": tednet_cp,
        "cp conv": tednet_cp_conv,
        "tucker conv": tednet_tucker_conv,
        "rtt conv": tednet_rtt_conv,
    },
    "torchTT": {"chain": torchtt_chain},
    "tensorkrowch": {"chain": tensorkrowch_chain},
    "by hand": {
        "cp": hand_cp,
        "tucker": hand_tucker,
        "btt": hand_btt,
        "monarch": hand_monarch,
        "cp conv": hand_cp_conv,
        "tucker conv": hand_tucker_conv,
        "tt conv": hand_tt_conv,
        "rtt conv": hand_rtt_conv,
    },
}
"""Who has which structure."""
LACKING: Mapping[str, str] = {
    "tensorly-torch": "has block tensor trains, CP and Tucker for linear layers; CP, Tucker-2 and plain trains for "
    "convolutions",
    "tednet": "has trains, rings with a core per leg and CP; its Tucker for linear layers has one factor on the input "
    "and one on the output, and its BTT is a block term decomposition, no block tensor train",
    "torchTT": "has tensor trains only",
    "tensorkrowch": "has no layer for a dense input: its matrix product operator takes product states, and a chain is "
    "written with its nodes here",
    "by hand": "what one would write is what the sweeps of tednet and torchTT do, or the einsum itself",
}
"""Why a library is not beside a structure that it lacks."""
