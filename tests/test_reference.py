import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from tests.networks import TABLE, At, networks, random_arrays, sketch
from tngraph.errors import NetworkError, SizeError
from tngraph.language.functions import ARITY, FUNCTIONS, apply, differentiate, pointwise, pull_back
from tngraph.language.network import Function, Index, Init, Read
from tngraph.language.reference import bind_sizes, compile_time_sizes, evaluate, gradients
from tngraph.language.text.parsing import parse

# ------------------------------------------------------------------------------------------ functions

POINTS = torch.tensor([-30.0, -3.1, -1.0, -0.2, 0.0, 0.3, 1.0, 2.7, 19.0, 21.0], dtype=torch.float64)
TORCH = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "square": torch.square,
    "sin": torch.sin,
    "cos": torch.cos,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
}


def test_every_function_of_the_language_is_checked_against_torch():
    assert set(TORCH) == set(FUNCTIONS) == set(ARITY)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_derivatives_are_those_of_torch(name):
    args = (0.3,) * ARITY[name]
    points = POINTS.abs() + 0.1 if name in ("log", "sqrt") else POINTS
    x = points.clone().requires_grad_()
    value = TORCH[name](x, *args)
    value.sum().backward()
    np.testing.assert_allclose(apply(name, args, points.numpy()), value.detach().numpy(), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(differentiate(name, args, points.numpy()), x.grad.numpy(), rtol=1e-11, atol=1e-12)


def test_a_function_outside_its_domain_is_nan_without_a_warning():
    assert np.isnan(apply("log", (), np.array(-1.0)))
    assert apply("exp", (), np.array(1e4)) == np.inf


def test_an_unknown_function_names_the_nearest():
    with pytest.raises(NetworkError, match=r"there is no pointwise function 'rellu'\n  did you mean 'relu'\?"):
        pointwise("rellu", ())
    with pytest.raises(NetworkError, match=r"elu takes 1 number\(s\), not 0"):
        pointwise("elu", ())
    with pytest.raises(NetworkError) as caught:
        apply("relu", (), np.array(1j))
    assert str(caught.value) == (
        "relu is not a function of complex numbers\n  these are: tanh, sigmoid, exp, log, sqrt, abs, square, sin, cos"
    )


@pytest.mark.parametrize("name", [name for name, function in FUNCTIONS.items() if function.on_complex])
def test_a_complex_gradient_is_that_of_small_steps_and_the_conjugate_of_torchs(name):
    """Of Re(c·f(z)): ∂/∂x − i∂/∂y by central differences, and PyTorch's, which is its conjugate."""
    generator = np.random.default_rng(0)
    z, c = (generator.normal(size=20) + 1j * generator.normal(size=20) for _ in range(2))
    step = 1e-6
    along_x, along_y = (
        ((c * apply(name, (), z + h)).real - (c * apply(name, (), z - h)).real) / (2 * step) for h in (step, 1j * step)
    )
    found = pull_back(name, (), z, c)
    np.testing.assert_allclose(found, along_x - 1j * along_y, rtol=1e-6, atol=1e-8)
    leaf = torch.from_numpy(z).requires_grad_()
    (torch.from_numpy(c) * TORCH[name](leaf)).real.sum().backward()
    np.testing.assert_allclose(found, np.conj(leaf.grad.numpy()), rtol=1e-9)
    np.testing.assert_allclose(apply(name, (), z), TORCH[name](leaf).detach().numpy(), rtol=1e-9)


def test_what_is_absolute_stays_complex_and_has_a_slope_of_0_at_0():
    network = parse("network n { input x[i:2]; y[i] = abs(x); output y[i] }")
    x = np.array([3 - 4j, 0])
    assert evaluate(network, {"x": x}).dtype == np.complex128
    assert evaluate(network, {"x": x}).tolist() == [5, 0]
    assert gradients(network, {"x": x}, np.array([10, 10]))["x"].tolist() == [6 + 8j, 0]


# ------------------------------------------------------------------------------- evaluate, feature by feature


def run(name, **sizes):
    """A network of the table, its arrays as torch tensors, and its value."""
    network = TABLE[name]
    arrays = random_arrays(network, sizes, seed=1)
    return {key: torch.from_numpy(np.asarray(a)) for key, a in arrays.items()}, evaluate(network, arrays)


def same(value, expected):
    expected = np.asarray(expected)
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


def test_a_fused_input_unfuses_first_slowest_and_an_output_fuses_in_its_own_order():
    a, y = run("fused axes, bias and function")
    x = a["x"].reshape(-1, 2, 3)
    same(y, F.relu(torch.einsum("bij,ikr,rjl->bkl", x, a["w1"], a["w2"]) + a["bias"]).permute(0, 2, 1).reshape(-1, 6))


def test_a_ring_uses_one_core_three_times():
    a, y = run("tied cores in a ring")
    g = a["g"]
    same(y, torch.einsum("bijk,piq,qjr,rkp->b", a["x"].reshape(-1, 2, 2, 2), g, g, g))


def test_hyperedges_and_deltas_say_the_same():
    a, y = run("hyperedge")
    same(y, torch.einsum("bij,ir,jr,or->bo", a["x"], a["u"], a["v"], a["w"]))
    a, y = run("delta inside")
    same(y, torch.einsum("st,cs,ct,c->", a["f"], a["p"], a["q"], a["r"]))
    a, y = run("delta on outputs")
    same(y, torch.diag_embed(a["x"]).reshape(-1, 9))
    a, y = run("delta alone")
    same(y, torch.eye(3) + a["x"][:, None])


def test_consts_are_what_their_kinds_say():
    a, y = run("consts")
    expected = torch.zeros(*a["x"].shape, 4, dtype=torch.float64)
    expected[:, :, 1] = a["x"]
    same(y, expected)


def test_an_index_twice_is_a_diagonal_or_a_trace():
    a, y = run("diagonal and trace")
    same(y, torch.diagonal(a["x"], dim1=1, dim2=2) * torch.trace(a["w"]))


def test_a_term_is_scaled_and_broadcast_to_the_left_hand_side():
    a, y = run("broadcast terms and scales")
    same(y, (2 * a["x"][:, :, None] - 0.5 * torch.outer(a["u"], a["v"]) + a["a"]).reshape(-1, 6))


def test_an_index_on_one_operand_alone_is_summed():
    a, y = run("summed alone")
    same(y, torch.einsum("bi,ri,s->b", a["x"], a["w"], a["v"]))


def test_functions_stand_outermost_and_take_numbers():
    a, y = run("barriers")
    z = F.gelu(a["x"] @ a["w"]) @ a["v"] + a["c"]
    same(y, F.leaky_relu(z * z, 0.1))


def test_several_outputs_are_a_tuple_and_no_legs_are_a_number():
    a, (h, y) = run("several outputs")
    expected = torch.tanh(a["x"] @ a["w"])
    same(h, expected.reshape(-1))
    same(y, (expected**2).sum())


def test_strided_padded_convolution_is_that_of_torch():
    a, y = run("convolution, stride 2", height=7, width=8)
    same(y, F.conv2d(a["x"], a["k"], stride=2, padding=1))


def test_dilated_convolution_is_that_of_torch():
    a, y = run("convolution, dilation 2")
    same(y, F.relu(F.conv1d(a["x"], a["w"], dilation=2)))


def test_a_negative_coefficient_flips_the_kernel():
    a, y = run("convolution, flipped and separable")
    kernel = torch.einsum("hr,wr->hw", a["u"].flip(0), a["v"])
    same(y, F.conv2d(a["x"][:, None], kernel[None, None], padding=1)[:, 0])


def test_one_read_takes_several_kernels():
    a, y = run("several kernels on one read")
    kernel = F.conv1d(a["u"][None, None], a["v"].flip(0)[None, None], padding=1)
    same(y, F.conv1d(a["x"][:, None], kernel)[:, 0])


def test_a_wrapped_read_is_circular_padding():
    a, y = run("circular convolution", n=5)
    same(y, F.conv1d(F.pad(a["x"][:, None], (1, 1), mode="circular"), a["u"][None, None])[:, 0])


def test_a_param_read_at_differences_is_toeplitz_or_circulant():
    a, y = run("toeplitz and circulant params")
    matrix = torch.tensor(
        [[float(a["c"][o - i + 2] + a["d"][(o - i) % 3]) for i in range(3)] for o in range(3)], dtype=torch.float64
    )
    same(y, a["x"] @ matrix.T)


def test_an_intermediate_is_zero_outside():
    a, y = run("reads of an intermediate")
    h = F.conv1d(a["x"][:, None], a["u"][None, None], padding=1)
    same(y, F.conv1d(h, a["v"][None, None], padding=1)[:, 0])


def test_a_read_may_be_a_shift_or_one_position():
    a, y = run("constant position and shift")
    same(y, F.pad(a["x"][:, 1:], (0, 1)) - a["x"][:, 2:3])


def test_more_than_52_indices_stand_in_one_term():
    count = 60
    indices = {f"i{k}": 2 if k in (0, count) else 1 for k in range(count + 1)}
    cores = {f"w{k}": ("param", f"i{k} i{k + 1}") for k in range(count)}
    terms = [(1, [(name, legs) for name, (_, legs) in cores.items()])]
    network = sketch(indices, cores, [("y", f"i0 i{count}", terms)], {"y": ["i0", f"i{count}"]})
    arrays = random_arrays(network)
    expected = np.linalg.multi_dot([arrays[name] for name in cores])
    same(evaluate(network, arrays), expected)


def test_complex_arrays_are_evaluated_as_complex():
    network = TABLE["matrix product"]
    arrays = random_arrays(network)
    same(evaluate(network, {**arrays, "x": 1j * arrays["x"]}), 1j * (arrays["x"] @ arrays["w"]))
    assert evaluate(network, {k: a.astype(np.float32) for k, a in arrays.items()}).dtype == np.float64


# ------------------------------------------------------------------------------------------- gradients


def pairing(network, arrays, cotangents):
    outputs = evaluate(network, arrays)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(float((c * o).sum()) for c, o in zip(cotangents, outputs, strict=True))


def check_gradients(network, seed=0):
    """Central differences in one random direction per array agree with the gradients."""
    arrays = random_arrays(network, seed=seed)
    generator = np.random.default_rng(seed + 1)
    outputs = evaluate(network, arrays)
    cotangents = [generator.normal(size=o.shape) for o in (outputs if isinstance(outputs, tuple) else (outputs,))]
    found = gradients(network, arrays, cotangents if len(cotangents) > 1 else cotangents[0])
    assert list(found) == list(arrays)
    step = 1e-6
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        direction = generator.normal(size=array.shape)
        up, down = (pairing(network, {**arrays, name: array + s * direction}, cotangents) for s in (step, -step))
        slope, scale = (found[name] * direction).sum(), abs(pairing(network, arrays, cotangents))
        np.testing.assert_allclose((up - down) / (2 * step), slope, rtol=1e-4, atol=1e-7 + 1e-8 * scale)


@pytest.mark.parametrize("name", TABLE)
def test_gradients_are_the_slopes(name):
    check_gradients(TABLE[name])


@settings(max_examples=40)
@given(networks(linear=True), st.integers(0, 9))
def test_gradients_of_random_networks_are_the_slopes(network, seed):
    check_gradients(network, seed)


def test_gradients_are_those_of_autograd():
    network = TABLE["convolution, stride 2"]
    arrays = random_arrays(network, {"height": 5, "width": 6})
    x, k = (torch.from_numpy(arrays[name]).requires_grad_() for name in ("x", "k"))
    y = F.conv2d(x, k, stride=2, padding=1)
    cotangent = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y.backward(cotangent)
    found = gradients(network, arrays, cotangent.numpy())
    same(found["x"], x.grad)
    same(found["k"], k.grad)


def test_a_wrong_gradient_is_rejected(monkeypatch):
    monkeypatch.setattr("tngraph.language.functions.differentiate", lambda name, args, x: np.ones_like(x))
    with pytest.raises(AssertionError):
        check_gradients(TABLE["barriers"])


def test_an_array_that_no_output_needs_has_gradient_zero():
    network = sketch(
        {"i": 2},
        {"x": ("input", "i"), "w": ("param", "i")},
        [("unused", "i", [(1, [("w", "i")])]), ("y", "i", [(1, [("x", "i")])])],
        {"y": ["i"]},
    )
    found = gradients(network, random_arrays(network), np.ones(2))
    same(found["w"], np.zeros(2))


def test_cotangents_have_the_shapes_of_the_outputs():
    network = TABLE["several outputs"]
    arrays = random_arrays(network)
    with pytest.raises(SizeError, match="has 2 outputs, and there are 1 cotangents"):
        gradients(network, arrays, [np.ones(6)])
    with pytest.raises(SizeError, match=r"the output 'h' has shape \(6,\), and its cotangent \(5,\)"):
        gradients(network, arrays, [np.ones(5), 1.0])


# ----------------------------------------------------------------------------------- tables and random ones


@given(networks(), st.integers(0, 9))
def test_random_networks_are_finite_and_have_their_shapes(network, seed):
    arrays = random_arrays(network, seed=seed)
    outputs = evaluate(network, arrays)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(network.outputs)
    for output, port in zip(outputs, network.outputs, strict=True):
        assert output.ndim == len(port.axes)
        assert np.isfinite(output).all()
        assert output.dtype == np.float64


def accesses(network):
    return [access for equation in network.equations for term in equation.terms for access in term.accesses]


def reads(network):
    return [(access, leg) for access in accesses(network) for leg in access.legs if isinstance(leg, Read)]


def plain(access):
    return [leg for leg in access.legs if isinstance(leg, Index)]


def deltas(network):
    return {core.name for core in network.cores if core.init and core.init.kind == "delta"}


FEATURES = {
    "run-time sizes": lambda n: len(n.runtime_sizes()) == 2,
    "barriers": lambda n: sum(e.function is not None for e in n.equations) > 1,
    "scalar results": lambda n: any(not e.legs for e in n.equations),
    "several outputs": lambda n: len(n.outputs) > 1,
    "fused inputs": lambda n: any(len(axis) > 1 for port in n.inputs for axis in port.axes),
    "broadcast terms": lambda n: any(
        not set(e.legs) <= {i for a in t.accesses for i in a.indices} for e in n.equations for t in e.terms
    ),
    "tied params": lambda n: any(
        len({a.legs for a in accesses(n) if a.source == c.name}) > 1 for c in n.cores if c.role == "param"
    ),
    "diagonals": lambda n: any(len(set(plain(a))) < len(plain(a)) for a in accesses(n)),
    "deltas on outputs": lambda n: any(
        a.source in deltas(n) and len(set(a.legs) & set(e.legs)) > 1
        for e in n.equations
        for t in e.terms
        for a in t.accesses
    ),
    "hyperedges": lambda n: any(
        sum(i in a.legs for a in t.accesses) > 2 for e in n.equations for t in e.terms for i in n.indices()
    ),
    "reads that wrap": lambda n: any(r.wrap for _, r in reads(n)),
    "two reads on one access": lambda n: any(sum(isinstance(x, Read) for x in a.legs) > 1 for a in accesses(n)),
    "negative coefficients": lambda n: any(c < 0 for _, r in reads(n) for c, _ in r.terms),
    "several kernels": lambda n: any(len(r.terms) > 2 for _, r in reads(n)),
    "reads of results": lambda n: any(a.source in {e.name for e in n.equations} for a, _ in reads(n)),
    "reads of params": lambda n: any(a.source in {c.name for c in n.cores if c.role == "param"} for a, _ in reads(n)),
    "symbolic offsets": lambda n: any(r.offset.free_symbols for _, r in reads(n)),
    "buffers and consts": lambda n: {"buffer", "const"} <= {c.role for c in n.cores},
    "size one": lambda n: any(index.size == 1 for index in n.indices()),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_random_networks_have_every_feature(feature):
    search = settings(max_examples=1000, phases=[Phase.generate], database=None, derandomize=True)
    assert find(networks(), FEATURES[feature], settings=search)


@settings(max_examples=50)
@given(networks(linear=True, reads=False, max_equations=1))
def test_a_sketch_can_be_asked_for_one_linear_equation_without_reads(network):
    (equation,) = network.equations
    assert equation.function is None
    assert all(isinstance(leg, Index) for t in equation.terms for a in t.accesses for leg in a.legs)


def test_random_arrays_follow_the_sizes_given():
    arrays = random_arrays(TABLE["derived sizes"], {"batch": 5, "n": 4, "D": 3})
    assert {name: array.shape for name, array in arrays.items()} == {"x": (5, 8), "w": (3, 5), "v": (3,)}


# --------------------------------------------------------------------------------------------------- sizes


def test_run_time_sizes_are_read_off_the_inputs_and_derived_ones_follow():
    network = TABLE["derived sizes"]
    assert bind_sizes(network, {"x": (7, 6)}) == {"batch": 7, "n": 3, "D": 2, "E": 3}
    assert bind_sizes(network, {"x": (7, 6)}, {"D": 5}) == {"batch": 7, "n": 3, "D": 5, "E": 9}
    assert bind_sizes(network, {"x": (7, 6)}, {"E": 8}) == {"batch": 7, "n": 3, "D": 2, "E": 8}
    assert compile_time_sizes(network, {"D": np.int64(4)}) == {"D": 4, "E": 7}


def chain(axes, sizes):
    """A network that sums one input, whose fused axes are given as lists of sizes."""
    names = [[f"i{a}_{k}" for k in range(len(axis))] for a, axis in enumerate(axes)]
    indices = {n: size for axis, row in zip(axes, names, strict=True) for n, size in zip(row, axis, strict=True)}
    legs = " ".join(indices)
    port = [" ".join(row) for row in names]
    return sketch(indices, {"x": ("input", legs)}, [("y", "", [(1, [("x", legs)])])], {"x": port, "y": []}, sizes)


def test_a_fused_axis_binds_once_its_other_sizes_are_known():
    network = chain([["n", "m"], ["m", 2]], {"n": None, "m": None})
    assert bind_sizes(network, {"x": (15, 10)}) == {"n": 3, "m": 5}


def test_a_size_derived_from_run_time_sizes_is_seen_through():
    network = chain([["D"], ["m", "n"]], {"n": None, "m": None, "D": "3*n + 1"})
    assert bind_sizes(network, {"x": (7, 10)}) == {"n": 2, "m": 5, "D": 7}
    assert compile_time_sizes(network) == {}


def message(function, *args):
    with pytest.raises(SizeError) as caught:
        function(*args)
    return str(caught.value)


def test_a_group_that_does_not_multiply_out():
    network = TABLE["fused axes, bias and function"]
    assert message(bind_sizes, network, {"x": (3, 7)}) == (
        "axis 1 of the input 'x' has size 7, and its group (i1:2, i2:3) multiplies to 6"
    )


def test_a_group_that_no_run_time_size_makes_fit():
    assert message(bind_sizes, chain([["n", 4]], {"n": None}), {"x": (10,)}) == (
        "axis 0 of the input 'x' has size 10, and its group (i0_0:n, i0_1:4) multiplies to 4*n\n"
        "  no positive integer n makes them equal"
    )


def test_an_empty_axis_is_no_run_time_size():
    assert "no positive integer n makes them equal" in message(bind_sizes, chain([["n"]], {"n": None}), {"x": (0,)})


def test_two_axes_that_disagree():
    assert message(bind_sizes, chain([["n"], ["n"]], {"n": None}), {"x": (3, 4)}) == (
        "axis 1 of the input 'x' has size 4, and its index i1_0:n has 3\n  with n = 3"
    )


def test_a_high_power_is_not_expanded():
    network = chain([["(n + 1)**1000000"], ["n"]], {"n": None})
    assert "is larger than 2**62" in message(bind_sizes, network, {"x": (1, 3)})


def test_a_run_time_size_that_nothing_determines():
    expected = "no input determines the size 'n'\n  an input axis determines a run-time size when"
    assert message(bind_sizes, chain([["n", "n"]], {"n": None}), {"x": (9,)}).startswith(expected)


def test_a_derived_index_that_vanishes():
    assert message(bind_sizes, chain([["n"], ["n - 2"]], {"n": None}), {"x": (2, 0)}) == (
        "the index 'i1_0' = n - 2 has size 0\n  a size is at least 1"
    )


def test_the_number_of_axes_is_shown():
    assert message(bind_sizes, TABLE["fused axes, bias and function"], {"x": (3, 2, 3)}) == (
        "the input 'x' has 2 axes, [b, (i1, i2)], and not 3"
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"batch": 3}, "'batch' is a run-time size: it is read off the inputs at each call"),
        ({"DD": 3}, "sketch has no size 'DD'\n  did you mean 'D'?; a size that bounds a loop is set when the text is"),
        ({"D": 0}, "the size 'D' cannot be 0"),
        ({"D": True}, "the size 'D' cannot be True"),
        ({"D": 2.0}, "the size 'D' cannot be 2.0"),
        ({"D": 2**63}, "a size is an integer from 1 to 2**62"),
    ],
)
def test_an_override_that_cannot_be(overrides, expected):
    assert expected in message(compile_time_sizes, TABLE["derived sizes"], overrides)


def test_a_derived_size_that_is_not_positive():
    network = chain([["D"]], {"D": 2, "E": "D - 2"})
    assert message(compile_time_sizes, network) == "the size 'E' = D - 2 is 0\n  a size is at least 1"


def test_arrays_that_are_missing_unknown_or_of_another_shape():
    network = TABLE["matrix product"]
    arrays = random_arrays(network)
    assert message(evaluate, network, {"x": arrays["x"]}) == "there is no array for the param 'w'"
    assert message(evaluate, network, {**arrays, "z": 1.0}) == (
        "there is no tensor 'z' that takes an array\n  these do: x, w"
    )
    assert message(evaluate, network, {**arrays, "w": np.ones((4, 3))}) == (
        "the param 'w'[i:3, j:4] has shape (3, 4), and not (4, 3)"
    )


def test_a_basis_vector_beyond_its_leg():
    network = sketch(
        {"i": 2}, {"e": ("const", "i", Init("basis", (2,)))}, [("y", "i", [(1, [("e", "i")])])], {"y": ["i"]}
    )
    assert re.match(r"the const 'e' = basis\(2\) has legs of size 2", message(evaluate, network, {}))


def test_reads_wrap_where_coefficients_are_negative():
    network = sketch(
        {"i": 3, "L": 4},
        {"x": ("input", "L")},
        [("y", "i", [(1, [("x", [At({"i": -2}, -1, wrap=True)])])])],
        {"y": ["i"]},
    )
    same(evaluate(network, {"x": np.arange(4.0)}), np.array([3.0, 1.0, 3.0]))


def test_a_derivative_that_is_infinite_times_nothing_is_nan_as_in_torch():
    network = sketch(
        {"i": 2},
        {"x": ("input", "i")},
        [("y", "i", [(1, [("x", "i")])], Function("sqrt"))],
        {"y": ["i"]},
    )
    x = torch.tensor([0.0, 4.0], dtype=torch.float64, requires_grad=True)
    torch.sqrt(x).backward(torch.tensor([0.0, 1.0], dtype=torch.float64))
    found = gradients(network, {"x": x.detach().numpy()}, [0.0, 1.0])["x"]
    np.testing.assert_array_equal(found, x.grad.numpy())
    assert np.isnan(found[0])
