"""Every spec on a GPU: values, gradients and counts, graphs, autocast, and what is measured there. Skipped without."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tngraph as tg
from tests.test_pytorch import CASES, WIDE, Case, _assert_close, _grads, _outputs
from tngraph.compiler.machines import BUILT_IN
from tngraph.modules.calibration import calibrate, computing_in, machine_for
from tngraph.modules.measuring import measure_flops, measure_saved
from tngraph.modules.tuning import tune
from tngraph.search.machine import Machine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "_") for name in CASES])
BATCH = 6
SMALL_CACHE = Machine(cache=1e3, elements_per_second=1e8)
"""On which parts pay at a small batch."""


def _twins(case: Case, mode: str = "train", dtype: torch.dtype = torch.float64) -> tuple[tg.Layer, tg.Layer]:
    """A layer here, and the same on the GPU."""
    machine = SMALL_CACHE if mode == "train" else Machine()
    plan = tg.plan(case.network, case.numbers(BATCH), mode=mode, minimize=machine, itemsize=dtype.itemsize)
    here, there = (tg.compile(plan, device=device, dtype=dtype) for device in ("cpu", "cuda"))
    there.load_state_dict(here.state_dict())
    return here, there


def _on_gpu(inputs: list[Tensor]) -> list[Tensor]:
    return [x.to("cuda") for x in inputs]


def _here(values: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(value.detach().cpu() for value in values)


@EVERY
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_values_gradients_and_counts_are_those_of_the_processor(case: Case, mode: str):
    here, there = _twins(case, mode)
    inputs = case.inputs(BATCH, dtype=torch.float64)
    given = _on_gpu(inputs)
    _assert_close(_here(_outputs(there(*given))), _outputs(here(*inputs)), 1e-10)
    if mode == "train":
        _assert_close(_here(_grads(there, there, given)), tuple(_grads(here, here, inputs)), 1e-10)
        given = [x.detach().requires_grad_() for x in given]
        saved = measure_saved(lambda: there(*given), [*given, *there.parameters(), *there.buffers()])
        assert saved == there.plan.at(**case.numbers(BATCH)).saved
    assert measure_flops(lambda: there(*given)) == there.plan.at(**case.numbers(BATCH)).flops


@EVERY
def test_a_cuda_graph_of_a_training_step_replays_it(case: Case):
    _, layer = _twins(case, dtype=torch.float32)
    given = [x.requires_grad_() for x in _on_gpu(case.inputs(BATCH, dtype=torch.float32))]
    wanted = [*given, *layer.parameters()]

    def step() -> list[Tensor]:
        made = _outputs(layer(*given))
        total = torch.stack([y.square().sum() for y in made]).sum()
        return [*made, *torch.autograd.grad(total, wanted)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in given:
            x.copy_(torch.randn_like(x))
    graph.replay()
    _assert_close(_here(captured), _here(step()), 1e-5)


@EVERY
def test_autocast_rounds_and_gradients_flow(case: Case):
    _, layer = _twins(case, dtype=torch.float32)
    given = _on_gpu(case.inputs(BATCH, dtype=torch.float32))
    expected = _outputs(layer(*given))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = _outputs(layer(*given))
        gradients = _grads(layer, layer, given)
    if case.is_linear and case not in WIDE:  # PyTorch computes some functions, and sums, in float32 on a GPU
        assert {y.dtype for y in found} == {torch.bfloat16}
    _assert_close(tuple(y.float() for y in found), expected, 0.1)
    assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("name", ["fc2_mpo", "conv_cp"])
def test_inductor_compiles_a_layer(name: str):
    case = CASES[name]
    _, layer = _twins(case, "infer", torch.float32)
    given = _on_gpu(case.inputs(BATCH, dtype=torch.float32))
    torch._dynamo.reset()
    with torch.no_grad():
        _assert_close(torch.compile(layer, fullgraph=True)(*given), layer(*given), 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_a_gpu_is_calibrated_and_tuned_for_at_every_type(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TNGRAPH_CACHE", str(tmp_path))
    with computing_in(dtype, "cuda") as numbers:
        assert machine_for("cuda", numbers) == BUILT_IN[dtype]
        assert calibrate("cuda", numbers, 0.5) == machine_for("cuda", numbers) != BUILT_IN[dtype]
        network = CASES["fc2_mpo"].network
        tuned = tune(network, {"D": 4}, [[torch.randn(64, 784)]], mode="train", device="cuda", dtype=numbers)
    assert {(each.device, each.dtype) for each in tuned.trials} == {(f"cuda {torch.cuda.get_device_name()}", dtype)}
    assert tg.compile(tuned.plan, device="cuda", dtype=numbers)(torch.randn(9, 784).to("cuda", numbers)).shape[0] == 9
