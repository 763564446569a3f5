"""Cores of a layer: read back, and exchanged with TensorLy, quimb and NumPy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import tngraph as tg
from tngraph.layers.generated import Generated
from tngraph.layers.linear import Linear

ROWS, COLUMNS = (2, 3, 2), (3, 2, 2)


def mpo() -> Linear:
    return Linear(12, 12, family="mpo", bond=3, modes=(ROWS, COLUMNS), bias=False, dtype=torch.float64)


def test_cores_have_the_names_of_their_legs():
    layer = mpo()
    assert {name: core.legs for name, core in layer.cores().items()} == {
        "W.g1": ("i1", "o1", "W.b1"),
        "W.g2": ("W.b1", "i2", "o2", "W.b2"),
        "W.g3": ("W.b2", "i3", "o3"),
    }
    assert repr(layer.cores()["W.g1"]) == "StoredCore[i1:2, o1:3, W.b1:3]"
    tensors = [core.tensor for core in layer.cores().values()]
    dense = torch.einsum("adr,rbes,scf->defabc", *tensors).reshape(12, 12)
    torch.testing.assert_close(dense, layer.weight)


def test_cores_that_are_read_are_loaded_again():
    one, other = mpo(), mpo()
    other.load_cores(one.cores())
    assert torch.equal(one.weight, other.weight)
    generator = Generated((12, 12), "mpo", bond=3, modes=(ROWS, COLUMNS), dtype=torch.float64)
    generator.load_cores({name: core.tensor.detach().numpy() for name, core in one.cores().items()})
    torch.testing.assert_close(generator(), one.weight)


def test_buffers_are_cores_too():
    layer = tg.compile(tg.parse("network n { param w[i:2]; buffer v[i]; y[i] = w * v; output y[i] }"))
    layer.load_cores({"v": [1.0, 2.0], "w": torch.tensor([3.0, 4.0])})
    assert layer().tolist() == [3.0, 8.0]


@pytest.mark.parametrize(
    ("cores", "message"),
    [
        ({"W.g4": 0}, "there is no core 'W.g4' here\n  did you mean 'W.g3'?"),
        (
            {"W.g1": torch.zeros(2, 3, 3), "W.g3": torch.zeros(2, 3, 2)},
            "the core 'W.g3'[W.b2, i3, o3] has shape (3, 2, 2), and its values (2, 3, 2)",
        ),
        ({"W.g1": "x"}, "the core 'W.g1' is given 'x'\n  give a tensor or an array of numbers"),
        ([], "the cores are []\n  give a mapping of names to tensors: W.g1, W.g2, W.g3"),
    ],
)
def test_cores_that_do_not_fit_are_refused_and_nothing_changes(cores: object, message: str):
    layer = mpo()
    before = layer.weight
    with pytest.raises(tg.SizeError, match=re.escape(message)):
        layer.load_cores(cores)
    assert torch.equal(layer.weight, before)


def test_a_matrix_train_of_tensorly_is_loaded_and_given_back():
    decomposition = pytest.importorskip("tensorly.decomposition")
    tt_matrix = pytest.importorskip("tensorly.tt_matrix")
    weight = np.random.default_rng(0).normal(size=(12, 12))
    factors = decomposition.tensor_train_matrix(weight.reshape(*COLUMNS, *ROWS), [1, 3, 3, 1]).factors
    layer = mpo()
    layer.load_cores({f"W.g{k}": factor.transpose(0, 2, 1, 3) for k, factor in enumerate(factors, 1)})
    dense = tt_matrix.tt_matrix_to_tensor(factors).reshape(12, 12)
    np.testing.assert_allclose(layer.weight.detach(), dense, atol=1e-12)
    shapes = [factor.transpose(0, 2, 1, 3).shape for factor in factors]
    back = [core.tensor.detach().numpy() for core in layer.cores().values()]
    back = [core.reshape(shape).transpose(0, 2, 1, 3) for core, shape in zip(back, shapes, strict=True)]
    np.testing.assert_allclose(tt_matrix.tt_matrix_to_tensor(back).reshape(12, 12), dense, atol=1e-12)


def test_cp_and_tucker_of_tensorly_are_loaded():
    tensorly = pytest.importorskip("tensorly")
    rng = np.random.default_rng(0)
    modes = (4, 3, 3, 4)  # out, out, in, in
    factors = [rng.normal(size=(mode, 2)) for mode in modes]
    cp = Linear(12, 12, family="cp", rank=2, modes=((3, 4), (4, 3)), bias=False, dtype=torch.float64)
    cp.load_cores({"W.c1": factors[0].T, "W.c2": factors[1].T, "W.a1": factors[2], "W.a2": factors[3]})
    dense = tensorly.cp_to_tensor((None, factors)).reshape(12, 12)
    np.testing.assert_allclose(cp.weight.detach(), dense, atol=1e-12)
    core = rng.normal(size=(2, 2, 2, 2))
    tucker = Linear(12, 12, family="tucker", rank=2, modes=((3, 4), (4, 3)), bias=False, dtype=torch.float64)
    own = {"W.v1": factors[0].T, "W.v2": factors[1].T, "W.u1": factors[2], "W.u2": factors[3]}
    tucker.load_cores({**own, "W.core": core.transpose(2, 3, 0, 1)})
    dense = tensorly.tucker_to_tensor((core, factors)).reshape(12, 12)
    np.testing.assert_allclose(tucker.weight.detach(), dense, atol=1e-12)


def test_a_matrix_product_operator_of_quimb_is_loaded_and_given_back():
    quimb = pytest.importorskip("quimb.tensor")
    rng = np.random.default_rng(0)
    layer = Linear(8, 8, family="mpo", bond=3, modes=((2,) * 3, (2,) * 3), bias=False, dtype=torch.float64)
    arrays = [rng.normal(size=s) for s in ((3, 2, 2), (3, 3, 2, 2), (3, 2, 2))]  # left, right, row, column
    operator = quimb.MatrixProductOperator(arrays, shape="lrud")
    first, middle, last = arrays
    layer.load_cores(
        {"W.g1": first.transpose(2, 1, 0), "W.g2": middle.transpose(0, 3, 2, 1), "W.g3": last.transpose(0, 2, 1)}
    )
    np.testing.assert_allclose(layer.weight.detach(), operator.to_dense(), atol=1e-12)
    first, middle, last = (core.tensor.detach().numpy() for core in layer.cores().values())
    arrays = [first.transpose(2, 1, 0), middle.transpose(0, 3, 2, 1), last.transpose(0, 2, 1)]
    back = quimb.MatrixProductOperator(arrays, shape="lrud")
    np.testing.assert_allclose(back.to_dense(), operator.to_dense(), atol=1e-12)
