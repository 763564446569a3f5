"""Weights that never change: what is folded, what a call still does, and that the buffers follow the weights."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim
from torch.func import functional_call, stack_module_state, vmap

import tngraph as tg
from tests.networks import TABLE, is_steady, networks
from tngraph.language.network import Network
from tngraph.layers import Conv2d, Linear
from tngraph.modules.measuring import measure_flops
from tngraph.program.merging import merge_foldings

SPECS = sorted((Path(__file__).parents[1] / "examples" / "specs").glob("*.tn"))
FC2 = next(path for path in SPECS if path.stem == "fc2_mpo")
ADTN = """
network adtn {
  size batch
  input x[batch, (i{1..3}: 2)]
  W[(i{1..3}), (m{1..3}: 2)] = adtn(layers=2)
  y[batch, m{1..3}] = relu(x * W)
  output y[batch, m{1..3}]
}"""
"""Its first layer of gates has an activation, and its params lie in a folder."""


def serve(network: Network | str | Path, sizes: dict[str, int] | None = None, **options: object) -> tg.Plan:
    if not isinstance(network, Network):
        network = tg.load(network) if isinstance(network, Path) else tg.parse(network)
    return tg.plan(network, sizes, mode="serve", **options)


def fc2(**options: object) -> tg.Layer:
    """FC-2 at a bond where the whole weight is folded."""
    return tg.compile(serve(FC2, {"D": 16}), **options)


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------- what is planned


SLOW = ("vgg_fc_adtn",)
"""Specs whose regimes take a minute to plan for serving."""


@pytest.mark.parametrize(
    "spec",
    [pytest.param(spec, marks=pytest.mark.slow) if spec.stem in SLOW else spec for spec in SPECS],
    ids=[spec.stem for spec in SPECS],
)
def test_every_spec_is_verified_in_every_regime(spec: Path):
    assert tg.compile(serve(spec)).verify().is_equal


@pytest.mark.parametrize("name", TABLE)
def test_every_feature_is_verified(name: str):
    assert tg.compile(serve(TABLE[name])).verify().is_equal


@settings(max_examples=settings().max_examples // 3)
@given(networks(), st.sampled_from([None, 8, 40, 400]))
def test_a_serving_layer_is_verified_and_within_its_limit(network: Network, limit: int | None):
    assume(is_steady(network))
    sizes = {name: 4 + k for k, name in enumerate(network.runtime_sizes())}
    plan = serve(network, sizes, memory_limit=limit)
    assert limit is None or plan.at().folded <= limit
    assert plan.at().cost <= tg.plan(network, sizes).at().cost
    assert tg.compile(plan).verify().is_equal


def test_a_whole_weight_is_folded_to_one_product_at_the_cost_of_a_dense_layer():
    plan = serve(FC2, {"D": 16})
    (regime,) = plan.regimes
    assert [op.kind for op in regime.operations if op.kind != "load"] == ["contract", "add", "pointwise"]
    assert plan.macs == plan.dense.macs
    assert plan.at(batch=512).flops == 2 * 512 * 784 * 256
    assert plan.at().folded == 4 * 784 * 256
    forward = tg.emit(plan).split("def forward")[1].split("def ")[0]
    assert "torch.mm(x, self.folded_1)" in forward
    assert "permute" not in forward
    assert "self.w" not in forward


def test_less_is_folded_in_less_memory_and_nothing_in_none():
    limits = (1_000_000, 150_000, 4)
    plans = [serve(FC2, {"D": 16}, memory_limit=limit) for limit in limits]
    folded = [plan.at().folded for plan in plans]
    assert folded == sorted(folded, reverse=True)
    assert len(set(folded)) == 3
    assert all(count <= limit for count, limit in zip(folded, limits, strict=True))
    assert len(plans[1].regimes) > 1
    assert tg.compile(plans[1]).verify().is_equal
    assert folded[-1] == 0
    assert "refold" not in tg.emit(plans[-1])
    costs = [plan.at(batch=64).cost for plan in plans]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_a_generator_with_activations_is_folded_whole():
    plan = serve(ADTN)
    assert {op.kind for op in plan.regimes[0].operations} <= {"load", "contract", "pointwise", "view"}
    assert plan.at().folded == 4 * 64
    assert tg.compile(plan).verify().is_equal


def test_regimes_share_what_they_fold_alike():
    (regime,) = serve(FC2).regimes
    assert merge_foldings([regime.folding, regime.folding]) == regime.folding
    (other,) = serve(FC2, {"D": 16}).regimes
    both = merge_foldings([regime.folding, other.folding])
    assert set(both.buffers) == {*regime.folding.buffers, *other.folding.buffers}
    names = [op.name for op in both.program.operations if op.kind != "load"]
    assert len(set(names)) == len(names) < len(regime.folding.program.lines) + len(other.folding.program.lines)


def test_what_a_run_time_size_goes_into_is_not_folded():
    plan = serve("""
        network window {
          size batch, n
          input x[batch, L:n]
          param w[K:9]
          y[batch, l:n] = x[batch, l] * w[l + 1]
          output y[batch, l]
        }""")
    assert plan.folded == 0
    assert tg.compile(plan).verify().is_equal


def test_a_convolution_of_weights_is_counted_where_only_its_padding_varies():
    """The transposed convolution runs at every call: it is not computed in advance behind the back of the counts."""
    plan = serve("""network padded {
      size m
      input x[i:m]
      param w[d:1, j:2]
      buffer b[e:2, d]
      y[h:m] = w[d, h + 2*e - 1] * b[e, d]
      output y[h]
    }""")
    layer = tg.compile(plan)
    for m in (1, 4, 5):
        with torch.no_grad():
            assert plan.at(m=m).flops == measure_flops(lambda m=m: layer(torch.zeros(m))) > 0


def test_a_network_without_weights_has_nothing_to_serve():
    plan = serve(
        "network sum { size batch\ninput x[batch, i:3]\nconst e[i] = ones\ny[batch] = x * e\noutput y[batch] }"
    )
    assert plan.folded == 0
    assert tg.compile(plan).verify().is_equal


def test_a_saved_plan_folds_the_same(tmp_path: Path):
    for limit in (None, 150_000, 4):
        plan = serve(FC2, {"D": 16}, memory_limit=limit)
        plan.save(tmp_path / "plan.json")
        read = tg.load_plan(tmp_path / "plan.json")
        assert read == plan
        assert tg.emit(read) == tg.emit(plan)


def test_the_table_and_the_records_have_what_is_folded():
    plan = serve(FC2, {"D": 16})
    assert "folded       802,816 [bytes]" in str(plan)
    assert "folded" not in str(tg.plan(plan.network))


# ------------------------------------------------------------------------------------------ what is run


def test_a_state_of_any_plan_loads_and_the_buffers_follow():
    served, trained = fc2(), tg.compile(tg.load(FC2), {"D": 16})
    x = torch.randn(5, 784)
    assert list(served.state_dict()) == list(trained.state_dict())
    served.load_state_dict(trained.state_dict())
    close(served(x), trained(x))


def test_the_buffers_follow_when_a_parent_loads_and_in_folders():
    served = nn.Sequential(tg.compile(serve(ADTN)), nn.ReLU())
    trained = nn.Sequential(tg.compile(tg.parse(ADTN)), nn.ReLU())
    served.load_state_dict(trained.state_dict())
    x = torch.randn(5, 8)
    close(served(x), trained(x))


def test_a_change_in_place_is_taken_up_by_fold():
    layer, x = fc2(), torch.randn(5, 784)
    with torch.no_grad():
        layer.w1.mul_(2)
    before = layer.folded_1.clone()
    assert layer.fold() is layer
    close(layer.folded_1, 2 * before)
    assert layer.verify(x).is_equal


def test_fold_shares_the_params_and_stays_within_its_limit():
    layer = tg.compile(tg.load(FC2), {"D": 16}, minimize="flops")
    served, x = layer.fold(), torch.randn(5, 784)
    assert type(served).plan.request.mode == "serve"
    assert served.w1.data_ptr() == layer.w1.data_ptr()
    assert not any(param.requires_grad for param in served.parameters())
    assert all(param.requires_grad for param in layer.parameters())
    close(served(x), layer(x))
    assert served.plan.at().folded == 4 * 784 * 256
    assert layer.fold(10_000).plan.at().folded <= 10_000
    assert layer.double().fold(10_000).plan.at().folded <= 10_000


def test_fold_keeps_sizes_types_and_mode():
    layer = tg.compile(tg.plan(tg.load(FC2)), {"D": 3}, dtype=torch.float64)
    served = layer.eval().fold()
    assert served.sizes() == {"D": 3}
    assert not served.training
    assert served.verify().is_equal


def test_a_limit_is_given_before_a_layer_is_planned_for_serving():
    with pytest.raises(tg.errors.PlanError, match="is planned for serving already"):
        fc2().fold(memory_limit=100)


def test_copies_and_pickles_follow_their_own_weights():
    layer, x = fc2(), torch.randn(5, 784)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    for other in others:
        close(other(x), layer(x))
        other.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})
        assert other.verify(x).is_equal
    assert layer.verify(x).is_equal


def test_a_standalone_file_pickles_and_follows(tmp_path: Path):
    module = ModuleType("served")
    exec(compile(tg.emit(serve(FC2, {"D": 16})), "served.py", "exec"), module.__dict__)
    sys.modules["served"] = module
    try:
        layer = module.fc2_mpo(D=2)
        other = pickle.loads(pickle.dumps(layer))
    finally:
        del sys.modules["served"]
    state = {name: 2 * tensor for name, tensor in layer.state_dict().items()}
    other.load_state_dict(state)
    close(other.folded_1, 16 * layer.folded_1)


def test_a_layer_at_one_regime_has_its_own_buffers():
    layer = fc2()
    at, x = layer.at(batch=7), torch.randn(7, 784)
    close(at(x), layer(x))
    at.load_state_dict(tg.compile(tg.load(FC2), {"D": 16}).state_dict())
    assert at.verify(x).is_equal


def test_built_on_the_meta_device_and_given_weights():
    trained, x = tg.compile(tg.load(FC2), {"D": 16}), torch.randn(5, 784)
    layer = fc2(device="meta")
    assert layer.folded_1.is_meta
    assert layer.folded_1.shape == (784, 256)
    layer.load_state_dict(trained.state_dict(), assign=True)
    close(layer(x), trained(x))
    drawn = fc2(device="meta").to_empty(device="cpu")
    drawn.reset_parameters()
    assert drawn.verify(x).is_equal


def test_other_sizes_than_planned_for_have_buffers_of_their_shape():
    layer = tg.compile(serve(FC2), {"D": 2})
    assert layer.verify().is_equal
    assert sum(layer.get_buffer(name).numel() for name in layer.printed.buffers) == 2 * 896


def test_types_and_complex_numbers():
    network = tg.load(next(path for path in SPECS if path.stem == "fc2_head_mpo"))
    assert tg.compile(serve(network), dtype=torch.complex64).verify().is_equal
    layer = tg.compile(serve(network)).to(torch.float64)
    assert layer(torch.randn(2, 256, dtype=torch.float64)).dtype == torch.float64


def test_compile_export_and_autocast():
    layer = fc2()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    exported = torch.export.export(layer, (torch.randn(3, 784),), dynamic_shapes=({0: Dim.DYNAMIC},)).module()
    for batch in (2, 3, 7):
        x = torch.randn(batch, 784)
        close(compiled(x), layer(x))
        close(exported(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), layer.float()(x).float(), rtol=0.1, atol=0.1)


def test_vmap_over_layers_takes_their_buffers():
    plan = serve(FC2, {"D": 16})
    layers, x = [tg.compile(plan) for _ in range(3)], torch.randn(7, 784)
    params, buffers = stack_module_state(layers)
    y = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(params, buffers)
    close(y[1], layers[1](x))


# -------------------------------------------------------------------------- in the place of dense layers


def test_a_linear_layer_folds():
    layer, x = Linear(64, 32, family="mpo", bond=8), torch.randn(5, 64)
    served = layer.fold()
    assert isinstance(served, Linear)
    assert not any(param.requires_grad for param in served.parameters())
    close(served(x), layer(x))
    assert layer.network.plan.request.mode == "infer"
    assert served.verify().is_equal


def test_a_convolution_folds():
    layer, x = Conv2d(6, 8, 3, padding=1, family="mpo"), torch.randn(2, 6, 5, 5)
    served = layer.fold(memory_limit=10_000)
    close(served(x), layer(x))
