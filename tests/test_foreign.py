"""Values of another kind than is asked for: each is refused in our words, wherever it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tngraph as tg
from tngraph.language.families.family import Family
from tngraph.layers import Conv2d, Generated, Linear, replace, share

NET = tg.parse(
    "network n { size batch\n input x[batch, i:6]\n param w[i, o:4]\n y[batch, o] = x * w\n output y[batch, o] }"
)
TWO = tg.parse("network two { size b\n input x[b, i:6]\n input z[b, j:2]\n y[i, j] = x * z\n output y[i, j] }")


def modes() -> Iterator[int]:
    return iter((2, 2))


def counted(weight: Any, n: int) -> None: ...


def plain(weight: Any, n) -> None: ...  # type: ignore[no-untyped-def]


def layer() -> tg.Layer:
    return tg.compile(NET)


def linear() -> Linear:
    return Linear(6, 4, family="low_rank", rank=1)


KINDS = "write one of these in quotes: Rank, Ranks, Count, Flag, Activation, Layout, Nested, Pairs"
ERRORS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: layer()(None), tg.SizeError, "x is None, and n takes a tensor\n  torch.as_tensor makes one of numbers"),
    (
        lambda: layer()(np.ones((2, 6))),
        tg.SizeError,
        "x is of type numpy.ndarray, and n takes a tensor\n  torch.as_tensor makes one of numbers",
    ),
    (
        lambda: layer()(torch.ones(2, 6, dtype=torch.float64)),
        tg.SizeError,
        "x is of torch.float64, and n is of torch.float32\n  convert one of them: x.to(torch.float32)",
    ),
    (
        lambda: layer().double()(torch.ones(2, 6, dtype=torch.int64)),
        tg.SizeError,
        "x is of torch.int64, and n is of torch.float64\n  convert one of them: x.to(torch.float64)",
    ),
    (
        lambda: tg.compile(TWO)(torch.ones(2, 6), torch.ones(2, 2, dtype=torch.int64)),
        tg.SizeError,
        "z is of torch.int64, and two is of torch.float32\n  convert one of them: z.to(torch.float32)",
    ),
    (
        lambda: tg.compile(NET, device="meta")(torch.ones(2, 6, device="meta", dtype=torch.int64)),
        tg.SizeError,
        "x is of torch.int64, and n is of torch.float32\n  convert one of them: x.to(torch.float32)",
    ),
    (lambda: tg.compile(TWO)(torch.ones(2, 6)), tg.SizeError, "two takes x, z\n  it was called with 1 inputs"),
    (lambda: tg.load(None), tg.NetworkError, "None: not a path\n  give the path of a spec file"),
    (lambda: tg.check(3), tg.NetworkError, "3: not a path\n  give the path of a spec file"),
    (lambda: tg.load_plan(3), tg.PlanError, "3: not a path\n  give the path of a saved plan"),
    (lambda: tg.plan(NET).save(3), tg.PlanError, "3 cannot be written: not a path"),
    (
        lambda: tg.parse(tg.format(NET), 3),
        tg.NetworkError,
        "3 is not the name of a network\n  give its name, or None for the last one",
    ),
    (lambda: replace(None, "mpo"), tg.NetworkError, "replace takes a torch.nn.Module, and not None"),
    (
        lambda: linear()(None),
        tg.SizeError,
        "input is None, and Linear takes a tensor\n  torch.as_tensor makes one of numbers",
    ),
    (
        lambda: linear()(torch.ones(2, 6, dtype=torch.float64)),
        tg.SizeError,
        "input is of torch.float64, and Linear is of torch.float32\n  convert one of them: input.to(torch.float32)",
    ),
    (
        lambda: Conv2d(4, 4, 3, family="cp", rank=2)([1.0]),
        tg.SizeError,
        "input is of type builtins.list, and Conv2d takes a tensor\n  torch.as_tensor makes one of numbers",
    ),
    (
        lambda: tg.compile(NET, dtype=torch.int64),
        tg.PlanError,
        "dtype is torch.int64\n  params are floating-point or complex: torch.float32, torch.complex64, …",
    ),
    (
        lambda: Linear(4, 4, dtype=np.float32),  # type: ignore[arg-type]
        tg.PlanError,
        "dtype is <class 'numpy.float32'>\n  params are floating-point or complex: torch.float32, torch.complex64, …",
    ),
    (
        lambda: tg.compile(tg.plan(NET), device="gpu"),
        tg.PlanError,
        "device is 'gpu'\n  it is 'cpu', 'cuda', 'cuda:1', 'meta', …",
    ),
    (
        lambda: tg.compile(NET, tune=3),  # type: ignore[arg-type]
        tg.PlanError,
        "tune is 3\n  it is a tensor, one tensor per input, or a list of such calls",
    ),
    (
        lambda: tg.compile(NET, tune=[[None]]),  # type: ignore[list-item]
        tg.SizeError,
        "input 1 of a call to tune for is None, and not a tensor\n  torch.as_tensor makes one of numbers",
    ),
    (
        lambda: layer().verify(None),  # type: ignore[arg-type]
        tg.SizeError,
        "input 1 is None, and not a tensor\n  torch.as_tensor makes one of numbers",
    ),
    (lambda: layer().flops(6), tg.SizeError, "6 is not a shape\n  write it as (64, 784)"),  # type: ignore[arg-type]
    (
        lambda: Generated.like(None),  # type: ignore[arg-type]
        tg.SizeError,
        "the weight is None, and not a tensor\n  torch.as_tensor makes one of numbers",
    ),
    (
        lambda: share(nn.Sequential(nn.Linear(2, 2)), 3),  # type: ignore[arg-type]
        tg.NetworkError,
        "names is 3\n  give the names of several layers, each once",
    ),
    (lambda: Linear(784.0, 4), tg.SizeError, "in_features is 784.0\n  it is an integer from 1"),  # type: ignore[arg-type]
    (
        lambda: Linear(4, 4, modes=4),  # type: ignore[arg-type]
        tg.SizeError,
        "modes is 4\n  give the modes of the rows and of the columns: modes=((4, 7), (4, 4))",
    ),
    (lambda: Linear(4, 4, sites=10**30), tg.SizeError, f"sites is {10**30}\n  a tensor has at most 64 legs"),
    (
        lambda: Linear(4, 4, sizes=3),  # type: ignore[arg-type]
        tg.SizeError,
        "sizes is 3\n  it maps names to numbers, as {'batch': 64}",
    ),
    (
        lambda: Linear.like(nn.ReLU()),  # type: ignore[arg-type]
        tg.NetworkError,
        "a layer cannot be made like ReLU()\n  it has no in_features, out_features, weight",
    ),
    (
        lambda: Conv2d(4, 4, 2.5),  # type: ignore[arg-type]
        tg.SizeError,
        "kernel_size is 2.5\n  it is one number or 2, each 1 or more",
    ),
    (
        lambda: Family(None),  # type: ignore[arg-type]
        tg.NetworkError,
        "a family is made of a function, and not of None\n  see docs/families.md",
    ),
    (
        lambda: Linear(4, 4, family=Family(counted), n=2),
        tg.NetworkError,
        f"the option 'n' of the family 'counted' has the annotation 'int'\n  {KINDS}",
    ),
    (
        lambda: Linear(4, 4, family=Family(plain), n=2),
        tg.NetworkError,
        f"the option 'n' of the family 'plain' has no annotation\n  {KINDS}",
    ),
    (
        lambda: tg.from_indices(3, ["a"], {"a": 2}),  # type: ignore[arg-type]
        tg.NetworkError,
        "inputs is 3\n  give a list with one entry per tensor",
    ),
    (
        lambda: tg.from_indices([[["a"]]], [], {}),  # type: ignore[list-item]
        tg.NetworkError,
        "tensor 1 has the index ['a']\n  a label is text or a number, not a list",
    ),
    (
        lambda: tg.from_indices([["a"]], ["a"], {"a": 2}, names=[3]),  # type: ignore[list-item]
        tg.NetworkError,
        "3 stands among the names\n  names are text",
    ),
    (
        lambda: tg.from_networkx(None),
        tg.NetworkError,
        "None is not a graph\n  give one of networkx",
    ),
    *(
        (lambda do=do: do(None), tg.NetworkError, "None is not a network\n  tg.load reads one from a file")  # type: ignore[misc]
        for do in (tg.format, tg.to_networkx, lambda net: tg.evaluate(net, {}))
    ),
    (
        lambda: tg.evaluate(NET, None),  # type: ignore[arg-type]
        tg.SizeError,
        "arrays is None\n  it maps the name of each input, param and buffer to its array",
    ),
    (
        lambda: tg.evaluate(NET, {"x": [["a"] * 6], "w": np.ones((6, 4))}),
        tg.SizeError,
        "'x' has entries of type <U1\n  give an array of numbers",
    ),
    (lambda: tg.parse(None), tg.NetworkError, "None is not the text of a network\n  tg.load reads a file"),  # type: ignore[arg-type]
    (
        lambda: tg.families.cp((2, 2), (2, 2), (3,), rank=2, stride=1.5),  # type: ignore[arg-type]
        tg.NetworkError,
        "a window has the number 1.5\n  give an integer, or one per axis",
    ),
    (
        lambda: tg.families.cp((2, 2), (2, 2), rank=2, function=3),  # type: ignore[arg-type]
        tg.NetworkError,
        "3 is not a name\n  write a name, or a name and its numbers",
    ),
    (
        lambda: tg.families.mpo((2, 2), (2, 2), bond=np.ones(2)),
        tg.NetworkError,
        "array([1., 1.]) is not an integer\n  sizes and positions are integers and sizes",
    ),
    (
        lambda: tg.choose_rank(tg.families.cp, 4, 4, compression="half"),  # type: ignore[arg-type]
        tg.PlanError,
        "the compression is 'half'\n  give params per dense entry, as 0.05 for a twentieth",
    ),
    (
        lambda: tg.Search(trials="many"),  # type: ignore[arg-type]
        tg.PlanError,
        "a search needs at least one sample and one trial, not 32 and 'many'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("do", "kind", "text"), ERRORS, ids=[text.split("\n")[0] for _, _, text in ERRORS])
def test_the_whole_text_of_an_error(do: Callable[[], object], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        do()
    assert str(error.value) == text
    assert error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_integers_of_numpy_and_generators_are_taken() -> None:
    numpy = Linear(4, 4, family="mpo", bond=np.int64(2), modes=(modes(), np.array([2, 2])))
    assert numpy.recipe == Linear(4, 4, family="mpo", bond=2, modes=((2, 2), (2, 2))).recipe
    assert Conv2d(2, 2, np.int64(3), padding=np.array([1, 1]), rank=1).kernel_size == (3, 3)  # type: ignore[arg-type]
    inputs = (iter(labels) for labels in (("a", "b"), ("b", "c")))
    sizes = {"a": np.int64(2), "b": 3, "c": 4}
    assert tg.from_indices(inputs, iter("ac"), sizes) == tg.from_indices(["ab", "bc"], "ac", sizes)  # type: ignore[arg-type]
    assert tg.from_einsum("ab,bc->ac", {"b": np.int64(3), "c": 4}) == tg.from_einsum("ab,bc->ac", {"b": 3, "c": 4})


def test_an_error_that_is_not_the_input_s_comes_through() -> None:
    class Own(Linear):
        def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:
            if scale < 0:
                raise RuntimeError("a scale of its own")
            return super().forward(input) * scale

    own = Own(6, 4, family="low_rank", rank=1)
    assert own(torch.ones(2, 6), 2.0).shape == (2, 4)
    with pytest.raises(RuntimeError, match=r"^a scale of its own$"):
        own(torch.ones(2, 6), scale=-1.0)
    with pytest.raises(tg.SizeError, match=r"^the input has shape \(2, 7\), and Linear takes \(\*, 6\)$"):
        own(torch.ones(2, 7))


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a text": lambda: "abc",
    "an integer of NumPy": lambda: np.int64(3),
    "a number of NumPy": lambda: np.float32(2.0),
    "an array": lambda: np.ones((2, 3)),
    "a generator": modes,
    "a fraction": lambda: 2.5,
    "a whole float": lambda: 4.0,
    "a truth value": lambda: True,
    "a negative": lambda: -1,
    "zero": lambda: 0,
    "no number": lambda: float("nan"),
    "a huge integer": lambda: 10**30,
    "a list": lambda: [2, 2],
    "a mapping": lambda: {"a": 1},
}
ENTRIES: dict[str, Callable[[Any], object]] = {
    "a layer": lambda v: layer()(v),
    "a linear layer": lambda v: linear()(v),
    "features": lambda v: Linear(v, 4),
    "modes": lambda v: Linear(4, 4, modes=v),
    "the modes of a side": lambda v: Linear(4, 4, modes=(v, (2, 2))),
    "a rank": lambda v: Linear(4, 4, bond=v),
    "layers": lambda v: Linear(4, 4, family="adtn", layers=v),
    "sites": lambda v: Linear(4, 4, sites=v),
    "a family": lambda v: Linear(4, 4, family=v),
    "sizes of a layer": lambda v: Linear(4, 4, sizes=v),
    "a size of a layer": lambda v: Linear(4, 4, sizes={"batch": v}),
    "a type": lambda v: Linear(4, 4, dtype=v),
    "a device": lambda v: tg.compile(NET, device=v),
    "a window": lambda v: Conv2d(4, 4, v, rank=1),
    "a stride": lambda v: Conv2d(4, 4, 3, v, rank=1),
    "a padding": lambda v: Conv2d(4, 4, 3, 1, v, rank=1),
    "groups": lambda v: Conv2d(4, 4, 3, groups=v, rank=1),
    "a shape": Generated,
    "a weight": Generated.like,
    "a dense layer": Linear.like,
    "names to share": lambda v: share(nn.Sequential(nn.Linear(2, 2)), v),
    "arrays": lambda v: tg.evaluate(NET, v),
    "an array": lambda v: tg.evaluate(NET, {"x": v, "w": np.ones((6, 4))}),
    "inputs to tune for": lambda v: tg.compile(NET, tune=v),
    "an input to verify": lambda v: layer().verify(v),
    "a shape of an input": lambda v: layer().flops(v),
    "the order of a size": lambda v: layer().at(batch=v),
    "a size to plan at": lambda v: tg.plan(NET, {"batch": v}),
    "a mode": lambda v: tg.plan(NET, mode=v),
    "a limit": lambda v: tg.plan(NET, {"batch": 3}, largest=v),
    "trials": lambda v: tg.Search(trials=v),
    "a text": tg.parse,
    "sizes of a text": lambda v: tg.parse("network n { input x[i:2]; y[] = x; output y[] }", sizes=v),
    "tensors": lambda v: tg.from_indices(v, ["a"], {"a": 2}),
    "labels": lambda v: tg.from_indices([v], ["a"], {"a": 2}),
    "an output": lambda v: tg.from_indices([["a"]], v, {"a": 2}),
    "a size of a label": lambda v: tg.from_indices([["a"]], ["a"], {"a": v}),
    "roles": lambda v: tg.from_indices([["a"]], ["a"], {"a": 2}, roles=v),
    "an einsum": lambda v: tg.from_einsum(v, {"a": 2}),
    "a graph": tg.from_networkx,
    "rows": lambda v: tg.families.mpo(v, (2, 2)),
    "a kernel": lambda v: tg.families.cp((2, 2), (2, 2), v),
    "a stride of a family": lambda v: tg.families.cp((2, 2), (2, 2), (3,), stride=v),
    "a function": lambda v: tg.families.cp((2, 2), (2, 2), function=v),
    "a function that makes a family": Family,
    "a compression": lambda v: tg.choose_rank(tg.families.cp, 4, 4, compression=v),
    "a size of a builder": lambda v: tg.Builder("n").size("D", v),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::tngraph.RankWarning")
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_given_is_taken_or_refused_in_our_words(entry: str, value: str) -> None:
    with suppress(tg.TngraphError):
        ENTRIES[entry](VALUES[value]())
