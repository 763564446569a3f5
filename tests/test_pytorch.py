"""Every spec under everything PyTorch does to a module: `CASES` × `FEATURES`, each cell a test.

A test is spread over the specs by `across`, which leaves out the cells that cannot be and marks those of `KNOWN`.
The table in docs/pytorch.md is compared with the same three.
"""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch.export import Dim
from torch.func import functional_call, grad, stack_module_state, vmap

import tngraph as tg
from tests.networks import random_arrays

ROOT = Path(__file__).resolve().parents[1]
BATCHES = (2, 3, 7, 4096)

# ------------------------------------------------------------------------------------------- the specs


@dataclass(frozen=True)
class Case:
    """A network with sizes at which its tests are quick: compile-time ones, and run-time ones beside the batch."""

    network: tg.Network
    sizes: Mapping[str, int] = field(default_factory=dict)
    space: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_linear(self) -> bool:
        """Whether no function stands in the network."""
        return all(equation.function is None for equation in self.network.equations)

    @property
    def has_batch(self) -> bool:
        return "batch" in self.network.runtime_sizes()

    def numbers(self, batch: int, stretch: int = 0) -> dict[str, int]:
        """Every size that is given from outside, the run-time ones beside the batch made longer by `stretch`."""
        space = {name: size + stretch for name, size in self.space.items()}
        return {**self.sizes, **space, **({"batch": batch} if self.has_batch else {})}

    def inputs(self, batch: int = 2, seed: int = 0, stretch: int = 0, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Normal inputs, complex ones with a part of either kind."""
        parts = [random_arrays(self.network, self.numbers(batch, stretch), seed + k) for k in (0, 1000)]
        dtype = dtype or torch.get_default_dtype()
        return [
            torch.from_numpy(np.asarray(a + 1j * b if dtype.is_complex else a)).to(dtype)
            for a, b in ([part[port.name] for part in parts] for port in self.network.inputs)
        ]

    @property
    def plan(self) -> tg.Plan:
        """The best at every value of the run-time sizes."""
        return _plan(self.network, tuple(self.sizes.items()))

    def layer(self, **options: object) -> tg.Layer:
        return tg.compile(self.plan, **options)

    def regimes_at(self, batches: Iterable[int]) -> set[tg.Regime]:
        """The regimes that some batches run in."""
        return {self.plan.regime(**self.numbers(batch)) for batch in batches}

    def alone(self, layer: tg.Layer) -> list[tg.Layer]:
        """A layer in each of its regimes, at the least sizes that run there."""
        free = layer.plan.free
        points = (dict.fromkeys(free, size) for size in range(1, 65))
        first = {layer.plan.regime(**point): point for point in reversed([*points])}
        assert set(first) == set(layer.plan.regimes)
        return [layer.at(**first[regime]) for regime in layer.plan.regimes]


@cache
def _plan(network: tg.Network, sizes: tuple[tuple[str, int], ...]) -> tg.Plan:
    return tg.plan(network, dict(sizes))


def _spec(name: str, space: Mapping[str, int] | None = None, **sizes: int) -> Case:
    return Case(tg.load(ROOT / "examples" / "specs" / f"{name}.tn"), sizes, space or {})


def _text(text: str, **space: int) -> Case:
    return Case(tg.parse(text), {}, space)


PLANE = {"height": 5, "width": 6}

CASES: dict[str, Case] = {
    "fc2_mpo": _spec("fc2_mpo", D=2),
    "fc2_head_mpo": _spec("fc2_head_mpo", D=2),
    "fc_ntt": _spec("fc_ntt", R=2),
    "ring_tied": _spec("ring_tied", D=2),
    "born_machine": _spec("born_machine"),
    "quanta_adapter": _spec("quanta_adapter", scale_in=2),
    "conv_cp": _spec("conv_cp", PLANE, R=2),
    "conv_rtk": _spec("conv_rtk", PLANE, R=2),
    "two adtn layers": _text("""
        network adtn {
          size batch
          input x[batch, (i{1..4}: 2)]
          W1[(i{1..4}), (m{1..3}: 2)] = adtn(layers=2)
          W2[(m{1..3}), (o{1..4}: 2)] = adtn()
          h[batch, m{1..3}] = relu(x * W1)
          y[batch, o{1..4}] = relu(h * W2)
          output y[batch, (o{1..4})]
        }"""),
    "circular padding": _text(
        """
        network conv_circular {
          size batch, n
          input x[batch, c:2, L:n]
          param w[c, k:3, t:3]
          y[batch, t, l:n] = x[batch, c, (l + k - 1) % n] * w
          output y[batch, t, l]
        }""",
        n=5,
    ),
    "stride and dilation": _text(
        """
        network conv_strided {
          size batch, height, width
          input x[batch, s:2, H:height, W:width]
          param w[s, kh:3, kw:2, t:3]
          y[batch, t, h, w] = tanh(x[batch, s, 2*h + 2*kh - 2, 2*w + kw] * w)
          output y[batch, t, h, w]
        }""",
        **PLANE,
    ),
    "several kernels, depthwise": _text(
        """
        network conv_depthwise {
          size batch, height, width
          index r: 2
          input x[batch, c:3, H:height, W:width]
          param d[c, kh:3, kw:3]
          param e[c, k2:2, r]
          param p[c, r, t:4]
          y[batch, t, h:height, w:width] = x[batch, c, h + kh + k2 - 1, w + kw - 1] * d * e * p
          output y[batch, t, h, w]
        }""",
        **PLANE,
    ),
    "one size read twice": _text(
        """
        network shifts {
          size batch, n
          index j, k: 3
          input x[batch, L:n, M:n]
          input z[batch, P:n]
          param a[k]
          param b[j]
          y[batch, l:n, m:n] = sin(x[batch, l + k - 1, m + j - 1] * a * b + 0.5 * z[batch, l - m])
          output y[batch, l, m]
        }""",
        n=5,
    ),
    "constants and buffers": _text("""
        network constants {
          size batch
          input x[batch, i:3]
          const fixed.one[k:4] = basis(1)
          const fixed.same[i, j:3] = eye
          const both[j, p:3, q:3] = delta
          buffer stored.more.scale[k]
          param stored.u[p, r:2] = orthogonal
          param v[r, q] = uniform(-1, 1)
          y[batch, q, k] = x * fixed.same * both * stored.u * v * stored.more.scale + fixed.one
          z[] = y
          output y[batch, (q, k)]
          output z[]
        }"""),
}

# ---------------------------------------------------------------------------------------- the features

FEATURES: dict[str, str] = {
    "compile": "torch.compile",
    "step": "compiled step",
    "inductor": "inductor, inference",
    "export": "torch.export",
    "onnx": "ONNX",
    "autocast": "autocast",
    "vmap": "vmap",
    "double_backward": "double backward",
    "copies": "copy, pickle",
    "state": "state_dict",
    "ddp": "DDP",
    "meta": "meta, float64",
    "complex": "complex",
}

PLAIN = ("conv_cp", "circular padding", "several kernels, depthwise", "one size read twice")
TWO_GRAPHS = (
    "on a CPU in float32, PyTorch chooses between oneDNN and its own convolution by `batch >= 16` while it traces, for"
    " a convolution without stride and dilation; nn.Conv2d is two graphs for the same reason"
)
LONG_SUM = "inductor writes a sum of more than 4,096 numbers in another way on a CPU, and chooses while it traces"
KNOWN: dict[tuple[str, str], str] = {
    **{(name, by): TWO_GRAPHS for name in PLAIN for by in ("compile", "inductor")},
    ("constants and buffers", "inductor"): LONG_SUM,
}
"""Cells that cannot work because of PyTorch itself, and why."""


def cell(name: str, feature: str) -> str:
    """What the table of the docs says: `yes`, what happens instead, or `–` where there is nothing to ask."""
    if (name, feature) in KNOWN:
        return "two graphs"
    return "–" if feature == "complex" and not CASES[name].is_linear else "yes"


def across(feature: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for every spec of which the feature can be asked."""
    assert feature in FEATURES
    cells = [
        pytest.param(
            CASES[name],
            id=name.replace(" ", "_"),
            marks=[pytest.mark.xfail(strict=True, reason=KNOWN[name, feature])] if (name, feature) in KNOWN else [],
        )
        for name in CASES
        if cell(name, feature) != "–"
    ]
    return pytest.mark.parametrize("case", cells)


def test_the_table_of_the_docs_says_what_is_tested():
    rows = re.findall(r"^\|(.*)\|$", (ROOT / "docs" / "pytorch.md").read_text(), re.MULTILINE)
    table = [[text.strip().strip("`") for text in row.split("|")] for row in rows]
    start = next(k for k, row in enumerate(table) if row[0] == "spec")
    expected = [[name, *(cell(name, feature) for feature in FEATURES)] for name in CASES]
    assert table[start] == ["spec", *FEATURES.values()]
    assert table[start + 2 : start + 2 + len(CASES)] == expected


def test_every_example_spec_has_a_row():
    large = {"vgg_fc_adtn"}  # which `two adtn layers` stands for: its weights have 18 million entries
    assert {path.stem for path in (ROOT / "examples" / "specs").glob("*.tn")} - large <= set(CASES)


# -------------------------------------------------------------------------------------------- comparing


def _outputs(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _loss(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A scalar on which every entry has a slope of its own."""
    terms = [torch.cos(torch.arange(y.numel()).to(y)) @ y.reshape(-1).to(y) for y in _outputs(value)]
    return torch.stack([term.to(terms[0].dtype) for term in terms]).sum()


def _grads(layer: Callable[..., Tensor], model: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The slopes of the loss to inputs and params."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    return list(torch.autograd.grad(_loss(layer(*inputs)), [*inputs, *model.parameters()]))


def _assert_close(found: object, expected: object, tolerance: float = 1e-4) -> None:
    """Equal up to a part of the largest entry compared."""
    for a, b in zip(_outputs(found), _outputs(expected), strict=True):
        assert a.shape == b.shape
        scale = max(1.0, b.detach().abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b.to(a.dtype), rtol=0, atol=tolerance * scale)


def test_the_comparison_rejects_a_wrong_value():
    layer = CASES["fc2_mpo"].layer()
    y = layer(*CASES["fc2_mpo"].inputs())
    with pytest.raises(AssertionError):
        _assert_close(y * 1.01, y)


# ------------------------------------------------------------------------------- compile, export, ONNX


class _Counter:
    """A backend of ``torch.compile`` that counts the graphs it is given and hands them on."""

    def __init__(self, backend: str) -> None:
        self.backend = lookup_backend(backend)
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1
        return self.backend(graph, inputs)


@pytest.fixture
def dynamo():
    """A compiler without memory of other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _count_graphs(layer: tg.Layer, case: Case, backend: str, batches: Iterable[int] = BATCHES) -> int:
    """The graphs that some batches take.

    PyTorch takes sizes that are equal at the first call to be equal always. So the batch is marked.
    """
    counter, dtype = _Counter(backend), next((p.dtype for p in layer.parameters()), torch.float32)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for batch in batches if case.has_batch else (1,):
        inputs = case.inputs(batch, dtype=dtype)
        for x in inputs if case.has_batch else ():
            torch._dynamo.maybe_mark_dynamic(x, 0)
        _assert_close(compiled(*inputs), layer(*inputs))
    return counter.graphs


@across("compile")
@pytest.mark.usefixtures("dynamo")
def test_one_graph_serves_every_batch_of_a_regime(case):
    assert _count_graphs(case.layer(), case, "eager") == len(case.regimes_at(BATCHES))


@pytest.mark.usefixtures("dynamo")
def test_only_what_makes_two_graphs_of_conv2d_makes_two_of_ours():
    counter = _Counter("eager")
    conv = torch.compile(nn.Conv2d(2, 3, 3), fullgraph=True, dynamic=True, backend=counter)
    for batch in (7, 2, 4096):
        conv(torch.randn(batch, 2, 5, 6))
    assert counter.graphs == 2
    for name in PLAIN:
        torch._dynamo.reset()
        case = CASES[name]
        assert _count_graphs(case.layer(dtype=torch.float64), case, "eager") == len(case.regimes_at(BATCHES))


@across("step")
@pytest.mark.usefixtures("dynamo")
def test_a_compiled_step_has_the_gradients_of_the_layer_at_every_size(case):
    layer, counter = case.layer(dtype=torch.float64), _Counter("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for batch, stretch in ((7, 0), (12, 2)):
        inputs = case.inputs(batch, stretch=stretch, dtype=torch.float64)
        _assert_close(tuple(_grads(compiled, layer, inputs)), tuple(_grads(layer, layer, inputs)))
    assert counter.graphs == len(case.regimes_at((7, 12)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@across("inductor")
@pytest.mark.usefixtures("dynamo")
def test_one_compiled_kernel_serves_every_batch_of_a_regime(case):
    with torch.no_grad():
        assert _count_graphs(case.layer(), case, "inductor") == len(case.regimes_at(BATCHES))


def _dynamic(case: Case) -> tuple[dict[int, object], ...]:
    """Every axis of an input that a run-time size stands on."""
    free = {size.name for size in case.network.sizes if size.value is None}
    return tuple(
        {
            k: Dim.DYNAMIC
            for k, axis in enumerate(port.axes)
            if any(symbol.name in free for index in axis for symbol in index.size.free_symbols)
        }
        for port in case.network.inputs
    )


@across("export")
def test_an_exported_regime_runs_at_all_sizes(case):
    layer = case.layer()
    for alone in case.alone(layer):
        exported = torch.export.export(alone, tuple(case.inputs(3)), dynamic_shapes=_dynamic(case), strict=False)
        for batch, stretch in ((3, 0), (2, 1), (17, 3)):
            inputs = case.inputs(batch, seed=batch, stretch=stretch)
            _assert_close(exported.module()(*inputs), layer(*inputs))


@across("onnx")
def test_onnxruntime_computes_the_values_of_a_regime_at_all_sizes(case, tmp_path):
    layer = case.layer().eval()
    for number, alone in enumerate(case.alone(layer)):
        file = tmp_path / f"layer{number}.onnx"
        torch.onnx.export(
            alone, tuple(case.inputs(3)), str(file), dynamo=True, dynamic_shapes=_dynamic(case), verbose=False
        )
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        for batch, stretch in ((3, 0), (2, 1), (17, 3)):
            inputs = case.inputs(batch, seed=batch, stretch=stretch)
            found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
            _assert_close(tuple(map(torch.from_numpy, map(np.asarray, found))), layer(*inputs))


# ------------------------------------------------------------------------ autocast, functions, gradients


WIDE = (CASES["one size read twice"], CASES["constants and buffers"])
"""Where an input is added to a product, or only multiplied with what is stored: float32 if it is, as in PyTorch."""


@across("autocast")
def test_autocast_computes_in_bfloat16_and_gradients_flow(case):
    layer, inputs = case.layer(), case.inputs(3)
    with torch.no_grad():
        for buffer in layer.buffers():
            buffer.normal_()
    expected = layer(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(*inputs)
    assert {y.dtype for y in _outputs(found)} == {torch.float32 if case in WIDE else torch.bfloat16}
    _assert_close(found, expected, tolerance=0.1)
    _loss(found).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@across("vmap")
def test_vmap_over_inputs_is_a_loop(case):
    layer = case.layer()
    many = [case.inputs(3, seed=seed) for seed in range(4)]
    found = vmap(layer)(*map(torch.stack, zip(*many, strict=True)))
    expected = zip(*(_outputs(layer(*inputs)) for inputs in many), strict=True)
    _assert_close(found, tuple(map(torch.stack, expected)))


@across("vmap")
@pytest.mark.filterwarnings(
    "ignore:.*not yet implemented the batching rule for aten..unfold_backward"
)  # slow, not wrong
def test_vmap_over_params_is_a_loop_over_layers(case):
    layers, inputs = [case.layer() for _ in range(3)], case.inputs(2)
    params, buffers = stack_module_state(layers)

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return _loss(functional_call(layers[0], (params, buffers), tuple(inputs)))

    slopes = vmap(grad(loss))(params, buffers)
    for k, layer in enumerate(layers):
        for name, slope in zip(params, torch.autograd.grad(_loss(layer(*inputs)), layer.parameters()), strict=True):
            _assert_close(slopes[name][k], slope)


@across("double_backward")
def test_slopes_and_their_slopes_are_those_of_finite_differences(case):
    layer = case.layer(dtype=torch.float64)
    torch.manual_seed(0)
    names = [name for name, _ in layer.named_parameters()]
    state = [torch.randn_like(p).requires_grad_() for p in layer.parameters()]
    inputs = [x.requires_grad_() for x in case.inputs(2, dtype=torch.float64)]

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        params = dict(zip(names, values[len(inputs) :], strict=True))
        return _outputs(functional_call(layer, params, values[: len(inputs)]))

    values = (*inputs, *state)
    assert torch.autograd.gradcheck(call, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, values, fast_mode=True)


# ------------------------------------------------------------------------------------ copies and states


@across("copies")
def test_copies_are_equal_and_apart(case):
    layer, inputs = case.layer(), case.inputs()
    expected = layer(*inputs)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin).__name__ == type(layer).__name__
        assert twin.source == layer.source
        _assert_close(twin(*inputs), expected, tolerance=0)
        with torch.no_grad():
            for value in twin.parameters():
                value.add_(1)
        _assert_close(layer(*inputs), expected, tolerance=0)


@across("state")
def test_a_state_has_the_declared_names_and_shapes_and_loads_into_any_plan(case, tmp_path):
    layer, inputs = case.layer(), case.inputs()
    state = layer.state_dict()
    shapes = {core.name: core.legs for core in case.network.cores if core.role in ("param", "buffer")}
    assert set(state) == set(shapes)
    arrays = random_arrays(case.network, case.numbers(2))
    assert {name: tuple(value.shape) for name, value in state.items()} == {name: arrays[name].shape for name in shapes}
    safetensors.torch.save_file(state, tmp_path / "layer.safetensors")
    elsewhere = {name: value + 3 for name, value in case.sizes.items()}
    other = type(tg.compile(case.network, elsewhere)).__mro__[2](**case.sizes)  # printed at other sizes, built at ours
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "layer.safetensors"))
    _assert_close(other(*inputs), layer(*inputs))


@across("meta")
def test_layers_are_built_without_memory_and_filled_later(case):
    layer = case.layer(device="meta", dtype=torch.float64)
    assert {value.device.type for value in layer.state_dict().values()} == {"meta"}
    layer.to_empty(device="cpu")
    for value in (*layer.parameters(), *layer.buffers()):
        value.data.fill_(torch.nan)  # what `to_empty` may leave there
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    twin = case.layer(dtype=torch.float64)
    buffers = twin.state_dict().keys() - dict(twin.named_parameters()).keys()  # stored weights: no one can draw them
    layer.load_state_dict({name: twin.get_buffer(name) for name in buffers}, strict=False)
    inputs = case.inputs(dtype=torch.float64)
    _assert_close(layer(*inputs), twin(*inputs), tolerance=0)
    assert {y.dtype for y in _outputs(layer(*inputs))} == {torch.float64}
    layer.verify(*inputs)


@across("complex")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=["complex64", "complex128"])
def test_complex_values_are_those_of_the_reference(case, dtype):
    layer, inputs = case.layer(dtype=dtype), case.inputs(dtype=dtype)
    torch.manual_seed(0)
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
    found = _outputs(layer(*inputs))
    assert {y.dtype for y in found} == {dtype}
    arrays = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    arrays |= {port.name: x.numpy() for port, x in zip(case.network.inputs, inputs, strict=True)}
    expected = tg.evaluate(case.network, arrays, case.sizes)
    _assert_close(found, tuple(map(torch.from_numpy, map(np.asarray, _outputs(expected)))))
    layer.reset_parameters()
    assert all(torch.isfinite(torch.view_as_real(p)).all() for p in layer.parameters())


# ---------------------------------------------------------------------------------------------- regimes

CHANGING: dict[str, Case] = {
    "fc2_mpo": _spec("fc2_mpo"),
    "ring_tied": _spec("ring_tied"),
    "two adtn layers": CASES["two adtn layers"],
    "constants and buffers": CASES["constants and buffers"],
}
"""Networks whose order changes with the batch."""

TWO_LENGTHS = _text(
    """
    network lengths {
      size batch, m
      input x[b:batch, c:m, i:20]
      input g[c, r:12]
      param a[i, r]
      param w[r, o:16]
      y[b, c, o] = tanh(x * a * w * g)
      output y[b, c, o]
    }""",
    m=5,
)
"""A network whose order changes with two sizes."""

changing = pytest.mark.parametrize("case", CHANGING.values(), ids=[name.replace(" ", "_") for name in CHANGING])


def _thresholds(plan: tg.Plan) -> list[int]:
    """The batches on both sides of every end of a regime."""
    return sorted({regime.low for regime in plan.regimes} | {regime.high for regime in plan.regimes if regime.high})


@changing
@pytest.mark.usefixtures("dynamo")
def test_a_compiled_step_is_that_of_the_layer_on_both_sides_of_every_threshold(case):
    layer, counter = case.layer(dtype=torch.float64), _Counter("aot_eager")
    assert len(layer.plan.regimes) > 1
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for batch in reversed(_thresholds(layer.plan)):
        inputs = case.inputs(batch, seed=batch, dtype=torch.float64)
        for x in inputs:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        found, expected = _grads(compiled, layer, inputs), tuple(_grads(layer, layer, inputs))
        _assert_close(tuple(found), expected, tolerance=1e-12)
        for alone in case.alone(layer):
            _assert_close(tuple(_grads(alone, alone, inputs)), expected, tolerance=1e-10)
    assert counter.graphs <= len(layer.plan.regimes) + (layer.plan.regimes[0].high != 1)


@changing
@pytest.mark.usefixtures("dynamo")
def test_guards_stand_at_thresholds_only(case):
    """Every batch up to well above the last threshold: one graph per regime, and one more for a batch of 1."""
    layer = case.layer()
    regimes = layer.plan.regimes
    batches = [*range(2, regimes[-1].low + 10), 1, 999]
    assert _count_graphs(layer, case, "eager", batches) == len(regimes) + (regimes[0].high != 1)
    torch._dynamo.reset()
    assert _count_graphs(case.alone(layer)[0], case, "eager", (2, 3, regimes[-1].low, 999)) == 1


@pytest.mark.usefixtures("dynamo")
def test_two_sizes_that_decide_are_compared_in_the_graph_of_each_regime():
    layer, counter = TWO_LENGTHS.layer(dtype=torch.float64), _Counter("aot_eager")
    assert layer.plan.free == ("batch", "m")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    points = [*itertools.product((2, 5, 17, 60), (3, 7, 40))]
    for batch, m in points:
        inputs = TWO_LENGTHS.inputs(batch, stretch=m - 5, dtype=torch.float64)
        _assert_close(tuple(_grads(compiled, layer, inputs)), tuple(_grads(layer, layer, inputs)), tolerance=1e-12)
    assert 1 < counter.graphs <= len({layer.plan.regime(batch=batch, m=m) for batch, m in points})


@changing
def test_a_layer_of_several_regimes_is_exported_in_the_last_one_for_all_sizes(case):
    """A graph has no branches, and refuses no size."""
    layer = case.layer()
    exported = torch.export.export(layer, tuple(case.inputs(3)), dynamic_shapes=_dynamic(case), strict=False)
    last = layer.plan.regimes[-1]
    for batch in {2, *(max(2, regime.low) for regime in layer.plan.regimes), last.low + 5}:
        inputs = case.inputs(batch)
        _assert_close(exported.module()(*inputs), layer(*inputs))


@changing
def test_a_layer_in_one_regime_has_the_params_of_the_layer_itself(case):
    layer = case.layer(dtype=torch.float64)
    for alone in case.alone(layer):
        assert len(alone.plan.regimes) == 1
        assert "_1(" not in alone.source
        assert all(p is layer.get_parameter(name) for name, p in alone.named_parameters())
        assert all(b is layer.get_buffer(name) for name, b in alone.named_buffers())
        inputs = case.inputs(dtype=torch.float64)
        layer.zero_grad()
        _loss(alone(*inputs)).backward()
        assert all(p.grad is not None for p in layer.parameters())
        with torch.no_grad():
            for p in alone.parameters():
                p.mul_(0.9)
        _assert_close(alone(*inputs), layer(*inputs), tolerance=1e-10)
        alone.verify()


@changing
def test_copies_have_every_regime(case):
    layer = case.layer()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.plan == layer.plan
        for batch in _thresholds(layer.plan):
            inputs = case.inputs(batch)
            _assert_close(twin(*inputs), layer(*inputs), tolerance=0)
    alone = case.alone(layer)[0]
    twin = copy.deepcopy(alone)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert all(torch.equal(p, layer.get_parameter(name)) for name, p in alone.named_parameters())


@changing
def test_a_state_loads_into_plans_of_other_batches_and_modes(case):
    layer, inputs = case.layer(dtype=torch.float64), case.inputs(3, dtype=torch.float64)
    state, expected = layer.state_dict(), layer(*inputs)
    others = [tg.plan(case.network, {**case.sizes, "batch": batch}) for batch in _thresholds(layer.plan)]
    others += [tg.plan(case.network, case.sizes, mode=mode) for mode in ("train", "serve")]
    others += [tg.plan(case.network, case.sizes, minimize="writes")]
    for plan in others:
        other = tg.compile(plan, dtype=torch.float64)
        assert other.state_dict().keys() == state.keys()
        other.load_state_dict(state)
        _assert_close(other(*inputs), expected, tolerance=1e-10)
        back = case.layer(dtype=torch.float64)
        back.load_state_dict(other.state_dict())
        _assert_close(back(*inputs), expected, tolerance=0)


@changing
def test_vmap_and_autocast_run_in_the_regime_of_the_batch(case):
    layer = case.layer()
    for batch in _thresholds(layer.plan):
        many = [case.inputs(batch, seed=seed) for seed in range(2)]
        expected = zip(*(_outputs(layer(*inputs)) for inputs in many), strict=True)
        _assert_close(vmap(layer)(*map(torch.stack, zip(*many, strict=True))), tuple(map(torch.stack, expected)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer(*many[0])
        _assert_close(found, layer(*many[0]), tolerance=0.1)


# -------------------------------------------------------------------------------------------------- DDP

WORLD = 2
RANK_BATCH = 3


def _step(layer: Callable[..., Tensor], model: nn.Module, case: Case, rank: int) -> dict[str, Tensor]:
    """The gradients of one step on the part of the batch that a process has."""
    model.zero_grad()
    _loss(layer(*case.inputs(RANK_BATCH, seed=rank))).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def _work(rank: int, folder: str) -> None:
    """One process: a step of every spec under DDP."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    results = {}
    for name, case in CASES.items():
        torch.manual_seed(rank)  # DDP brings every process to the params of the first
        layer = case.layer()
        results[name] = _step(nn.parallel.DistributedDataParallel(layer), layer, case, rank), layer.state_dict()
    torch.distributed.destroy_process_group()
    torch.save(results, f"{folder}/rank{rank}.pt")


@pytest.fixture(scope="session")
def distributed(tmp_path_factory):
    """What two processes on loopback computed: for each, spec -> gradients and state."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(_work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


@across("ddp")
def test_two_processes_average_their_gradients(case, distributed):
    name = next(name for name in CASES if CASES[name] is case)
    layer = case.layer()
    layer.load_state_dict(distributed[0][name][1])
    single = [_step(layer, layer, case, rank) for rank in range(WORLD)]
    for results in distributed:
        gradients, _ = results[name]
        for param, value in gradients.items():
            _assert_close(value, sum(step[param] for step in single) / WORLD)
