"""Laws of fitting: what can hold a weight returns it, members of a family are found again, errors never rise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tngraph as tg
from tngraph.fitting.fits import find_place
from tngraph.fitting.multilinear import as_multilinear
from tngraph.fitting.problem import FitProblem, Metric, Values, regularise
from tngraph.fitting.sweeps import CoreUpdate, Sweeper
from tngraph.fitting.truncation import find_branches, truncate
from tngraph.layers.compressed import Compressed
from tngraph.layers.convolution import Conv1d, Conv2d, ConvTranspose2d
from tngraph.layers.generated import Generated
from tngraph.layers.linear import Linear
from tngraph.modules.measuring import measure_flops, measure_peak

pytestmark = pytest.mark.filterwarnings("ignore::tngraph.RankWarning", "ignore::tngraph.GrowthWarning")

Modes = tuple[tuple[int, ...], tuple[int, ...]]
THREE: Modes = ((2, 3, 2), (3, 2, 2))
TWO: Modes = ((4, 3), (3, 4))
FULL: dict[str, tuple[Modes, dict[str, Any]]] = {
    "mpo": (THREE, {"bond": 36}),
    "plain_tt": (THREE, {"bond": 64}),
    "tree": (THREE, {"bond": 64}),
    "ring": (TWO, {"bond": 4}),
    "graph": (THREE, {"bond": 36, "edges": ((1, 2), (1, 3))}),
    "tucker": (TWO, {"rank": 4}),
    "cp": (((12,), (12,)), {"rank": 12}),
    "rcp": (TWO, {"rank": 12}),
    "block_term": (((12,), (12,)), {"blocks": 2, "rank": 6}),
    "kronecker": (((12,), (12,)), {}),
    "low_rank": (((12,), (12,)), {"rank": 12}),
    "btt": (TWO, {"rank": 4}),
    "monarch": (((12, 1), (12, 1)), {}),
}
"""Families that can hold every weight of 12 × 12, at a rank at which they do."""
MEMBERS: dict[str, tuple[Modes, dict[str, Any]]] = {
    "mpo": (THREE, {"bond": 3}),
    "plain_tt": (THREE, {"bond": 3}),
    "tree": (THREE, {"bond": 2}),
    "graph": (((2, 3, 2, 2), (3, 2, 2, 1)), {"bond": 2, "edges": ((1, 2), (1, 3), (3, 4))}),
    "tucker": (TWO, {"rank": 2}),
    "rcp": (TWO, {"rank": 2}),
    "kronecker": (TWO, {}),
    "low_rank": (((12,), (12,)), {"rank": 3}),
    "btt": (TWO, {"rank": 2}),
    "monarch": (TWO, {}),
    "einsum": (((2, 3, 2), (2, 3, 2)), {}),
    "butterfly": (((2,) * 4, (2,) * 4), {}),
}
"""Families without loops, of which every member is found."""
LOOPED: dict[str, tuple[Modes, dict[str, Any]]] = {
    "ring": (THREE, {"bond": 2}),
    "cp": (((4, 4), (4, 4)), {"rank": 3}),
    "rcp": (((3, 3, 2), (3, 2, 3)), {"rank": 2}),
    "block_term": (((4, 4), (4, 4)), {"blocks": 2, "rank": 2}),
    "graph": (((2, 3, 2, 2), (3, 2, 2, 2)), {"bond": 2, "edges": ((1, 2), (2, 3), (3, 4), (4, 1))}),
}
"""Families with loops or sums, of which members are sought from several starts."""


def linear(family: str, modes: Modes, options: dict[str, Any], **more: Any) -> Linear:
    sizes = more.pop("sizes", tuple(map(prod, modes)))
    return Linear(*sizes, family=family, modes=modes, **{"bias": False, **more}, **options)


def member(family: str, modes: Modes, options: dict[str, Any], seed: int) -> tuple[Linear, Tensor]:
    """A layer with drawn cores, and the dense weight of another draw."""
    torch.manual_seed(seed)
    layer = linear(family, modes, options)
    for core in layer.parameters():
        nn.init.normal_(core)
    weight = layer.weight.detach().clone()
    layer.reset_parameters()
    return layer, weight


def problem_of(layer: nn.Module, weight: Tensor, moments: Tensor | None = None) -> FitProblem:
    place = find_place(layer)
    form = as_multilinear(place.network)
    assert form is not None
    metric = None
    if moments is not None:
        counts = len(place.network.outputs[0].axes[0])
        metric = Metric(regularise(moments, 1e-8), (), form.legs[counts:])
    return FitProblem(form, place.as_output(weight).reshape(form.shape(form.legs)), metric)


def drawn(problem: FitProblem, seed: int = 0) -> Values:
    generator = torch.Generator().manual_seed(seed)
    shapes = problem.form.cores.items()
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes}


def correlated(count: int, seed: int = 0, samples: int = 200) -> Tensor:
    """Inputs whose second moments are far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(count, count, generator=generator) * torch.logspace(0, -2, count)
    return torch.randn(samples, count, generator=generator) @ mixing.T


# ------------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize("with_inputs", [False, True])
@pytest.mark.parametrize("family", FULL)
def test_a_family_that_can_hold_every_weight_returns_the_layer(family: str, with_inputs: bool):
    dense = nn.Linear(12, 12)
    layer = linear(family, *FULL[family], bias=True)
    result = tg.fit(layer, dense, correlated(12) if with_inputs else None, sweeps=200, tolerance=1e-7)
    assert result.output_error < 1e-6
    x = torch.randn(5, 12)
    tolerance = 1e-3 if with_inputs else 2e-6  # what the inputs hardly show is hardly fitted
    torch.testing.assert_close(layer(x), dense(x), atol=tolerance, rtol=0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", MEMBERS)
def test_a_member_of_a_family_without_loops_is_found(family: str, seed: int):
    layer, weight = member(family, *MEMBERS[family], seed)
    result = tg.fit(layer, weight)
    assert result.weight_error < 1e-5
    torch.testing.assert_close(layer.weight, weight, atol=1e-5 * float(weight.abs().max()), rtol=0)


@pytest.mark.parametrize("family", MEMBERS)
def test_a_member_of_a_family_without_loops_is_found_by_its_outputs(family: str):
    layer, weight = member(family, *MEMBERS[family], 0)
    assert tg.fit(layer, weight, correlated(weight.shape[1])).output_error < 1e-5


@pytest.mark.parametrize("family", LOOPED)
def test_a_member_of_a_family_with_loops_is_found_from_several_starts(family: str):
    layer, weight = member(family, *LOOPED[family], 0)
    assert tg.fit(layer, weight, sweeps=400, tolerance=1e-6).weight_error < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 10))
@pytest.mark.parametrize("family", LOOPED)
def test_many_members_of_families_with_loops_are_found(family: str, seed: int):
    layer, weight = member(family, *LOOPED[family], seed)
    assert tg.fit(layer, weight, sweeps=400, tolerance=1e-6, starts=20).weight_error < 1e-3


SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 4 else []) for seed in range(20)]


def random_graph(seed: int, bond: int = 2) -> tg.Network:
    """A connected graph of 3 to 5 cores with a leg or two each, and at times a loop or more."""
    rng = random.Random(seed)
    count = rng.randint(3, 5)
    bonds = [(rng.randrange(k), k) for k in range(1, count)]
    for _ in range(rng.randint(0, 2)):
        pair = tuple(sorted(rng.sample(range(count), 2)))
        if pair not in bonds:
            bonds.append(pair)
    sizes: dict[str, int] = {f"b{k}": bond for k in range(len(bonds))}
    legs: list[list[str]] = []
    for node in range(count):
        own = [f"o{node}_{k}" for k in range(rng.randint(1, 2))]
        sizes.update({name: rng.randint(1, 3) for name in own})
        legs.append(own + [f"b{k}" for k, ends in enumerate(bonds) if node in ends])
    output = [leg for own in legs for leg in own if leg.startswith("o")]
    names = [f"g{k}" for k in range(count)]
    return tg.from_indices(legs, output, sizes, roles="param", names=names)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_member_of_a_random_graph_is_found(seed: int):
    layer = tg.compile(random_graph(seed), dtype=torch.float64)
    for core in layer.parameters():
        nn.init.normal_(core)
    weight = layer().detach().clone()
    is_tree = find_branches(problem_of(layer, weight).form) is not None
    result = tg.fit(layer, weight, sweeps=400, tolerance=1e-7)
    assert result.weight_error < (1e-5 if is_tree else 1e-3)


# -------------------------------------------------------------------------------------------------------- descent


def problems() -> Iterator[Any]:
    chosen = {name: MEMBERS[name] for name in ("mpo", "tree", "tucker", "btt")} | LOOPED
    for name, (modes, options) in chosen.items():
        yield pytest.param(lambda name=name, modes=modes, options=options: linear(name, modes, options), id=name)
    for seed in range(3):
        yield pytest.param(lambda seed=seed: tg.compile(random_graph(seed)), id=f"graph {seed}")


def drawn_problem(layer: nn.Module, with_metric: bool) -> tuple[FitProblem, Values]:
    """A random weight for a layer, and cores to start from."""
    axes = find_place(layer).network.outputs[0].axes
    weight = torch.randn([prod(int(leg.size) for leg in axis) for axis in axes], dtype=torch.float64)
    x = correlated(weight.shape[-1]).double()
    problem = problem_of(layer, weight, x.T @ x / len(x) if with_metric else None)
    return problem, drawn(problem)


@pytest.mark.parametrize("with_metric", [False, True])
@pytest.mark.parametrize("make", [*problems()])
def test_no_update_of_a_core_raises_the_error(make: Any, with_metric: bool):
    layer = make()
    if with_metric and not isinstance(layer, Compressed):
        pytest.skip("a weight of its own has no inputs")
    problem, values = drawn_problem(layer, with_metric)
    losses = [problem.loss(values)]
    for _ in range(4):
        for name in problem.form.cores:
            gain = CoreUpdate(problem, name).step(values)
            losses.append(problem.loss(values))
            assert losses[-2] - losses[-1] == pytest.approx(gain, abs=1e-9 * losses[0])
    assert all(after <= before + 1e-12 * problem.total for before, after in pairwise(losses))


@pytest.mark.parametrize("with_metric", [False, True])
@pytest.mark.parametrize("make", [*problems()])
def test_the_flops_and_the_memory_of_a_sweep_are_known_beforehand(make: Any, with_metric: bool):
    layer = make()
    if with_metric and not isinstance(layer, Compressed):
        pytest.skip("a weight of its own has no inputs")
    problem, values = drawn_problem(layer, with_metric)
    sweeper = Sweeper.over(problem)
    assert all(update.is_direct for update in sweeper.updates)
    assert problem.total > 0
    for update in sweeper.updates:  # contractions are planned where they are needed first
        update.step(dict(values))
        found = measure_peak(lambda update=update: update.step(dict(values)))
        assert found <= update.peak(), update.name
        assert measure_flops(lambda update=update: update.step(dict(values))) == update.flops(), update.name
    assert sweeper.flops() == sum(update.flops() for update in sweeper.updates)


def test_a_sum_of_products_is_fitted_core_by_core():
    network = tg.parse("""network sum {
      param a[i:4, r:2]
      param b[r, j:5]
      param c[i, j]
      param d[j]
      buffer s[i]
      y[i, j] = 2 * a * b + d * s
      output y[i, j]
    }""")
    layer = tg.compile(network, dtype=torch.float64)
    for tensor in (*layer.parameters(), *layer.buffers()):
        nn.init.normal_(tensor)
    weight = layer().detach().clone()
    for core in layer.parameters():
        nn.init.normal_(core)
    assert tg.fit(layer, weight, sweeps=300, tolerance=1e-6).weight_error < 1e-3


# --------------------------------------------------------------------------------------------------------- oracles


def reconstruction(problem: FitProblem, values: Values) -> Tensor:
    return problem.target - problem.residual(values)


def test_the_truncation_of_a_low_rank_weight_is_that_of_its_singular_values():
    weight = torch.randn(12, 10, dtype=torch.float64)
    problem = problem_of(linear("low_rank", ((10,), (12,)), {"rank": 3}), weight)
    u, s, vt = np.linalg.svd(weight.numpy())
    found = truncate(problem, find_branches(problem.form) or ())
    best = (u[:, :3] * s[:3]) @ vt[:3]
    np.testing.assert_allclose(reconstruction(problem, found.values).reshape(12, 10), best, atol=1e-10)
    assert found.bound == pytest.approx(float((s[3:] ** 2).sum()), rel=1e-10)


def test_the_truncation_of_a_whitened_low_rank_weight_is_its_optimum():
    weight, x = torch.randn(12, 10, dtype=torch.float64), correlated(10).double()
    layer = linear("low_rank", ((10,), (12,)), {"rank": 3})
    result = tg.fit(layer.double(), weight, x)
    moments = regularise(x.T @ x / len(x), 1e-8)
    root = torch.linalg.cholesky(moments)
    s = torch.linalg.svdvals(weight @ root)
    assert result.output_error == pytest.approx(float((s[3:].square().sum() / s.square().sum()) ** 0.5), rel=1e-7)
    assert result.is_proven
    assert result.low_rank is not None
    assert result.low_rank.error == pytest.approx(result.output_error, rel=1e-6)


def test_the_truncation_of_two_sites_is_van_loans_sum_of_kronecker_products():
    weight = torch.randn(12, 12, dtype=torch.float64)
    problem = problem_of(linear("mpo", TWO, {"bond": 3}), weight)
    found = truncate(problem, find_branches(problem.form) or ())
    blocks = weight.numpy().reshape(3, 4, 4, 3).transpose(0, 2, 1, 3).reshape(12, 12)
    s = np.linalg.svd(blocks, compute_uv=False)
    assert problem.loss(found.values) == pytest.approx((s[3:] ** 2).sum(), rel=1e-10)


def test_the_truncation_of_blocks_is_that_of_every_block():
    weight = torch.randn(12, 12, dtype=torch.float64)
    layer = linear("btt", TWO, {"rank": 2})
    problem = problem_of(layer, weight)
    found = truncate(problem, find_branches(problem.form) or ())
    first, second = find_branches(problem.form) or ()
    legs, sizes = problem.form.legs, problem.form.sizes
    blocks = [leg for leg in legs if leg in first.legs and leg in second.legs]
    left = [leg for leg in legs if leg in first.legs and leg not in blocks]
    right = [leg for leg in legs if leg not in first.legs]
    cut = problem.target.permute([legs.index(leg) for leg in (*blocks, *left, *right)])
    cut = cut.reshape(-1, prod(sizes[leg] for leg in left), prod(sizes[leg] for leg in right))
    dropped = np.linalg.svd(cut.numpy(), compute_uv=False)[:, prod(sizes[leg] for leg in first.bond) :]
    assert len(cut) > 1
    assert problem.loss(found.values) == pytest.approx((dropped**2).sum(), rel=1e-10)
    assert found.bound == pytest.approx((dropped**2).sum(), rel=1e-10)


def test_the_truncation_of_a_chain_is_tensorlys():
    decomposition = pytest.importorskip("tensorly.decomposition")
    weight = torch.randn(12, 12, dtype=torch.float64)
    problem = problem_of(linear("plain_tt", THREE, {"bond": 3}), weight)
    found = reconstruction(problem, truncate(problem, find_branches(problem.form) or ()).values)
    order = [leg for core in problem.form.products[0].factors for leg in core.indices if leg in problem.form.legs]
    places = [problem.form.legs.index(leg) for leg in order]
    tensor = problem.target.permute(places).numpy()
    ranks = [1, *(min(3, prod(tensor.shape[:k]), prod(tensor.shape[k:])) for k in range(1, 6)), 1]
    best = decomposition.tensor_train(tensor, ranks).to_tensor()
    np.testing.assert_allclose(found.permute(places), best, atol=1e-10)


def test_the_truncation_of_a_matrix_chain_is_tensorlys():
    decomposition = pytest.importorskip("tensorly.decomposition")
    weight = torch.randn(12, 12, dtype=torch.float64)
    problem = problem_of(linear("mpo", THREE, {"bond": 3}), weight)
    found = reconstruction(problem, truncate(problem, find_branches(problem.form) or ()).values)
    best = decomposition.tensor_train_matrix(weight.reshape(3, 2, 2, 2, 3, 2).numpy(), [1, 3, 3, 1]).to_tensor()
    np.testing.assert_allclose(found, best, atol=1e-10)


def test_a_tucker_weight_is_truncated_one_leg_after_another_and_then_fitted_as_well_as_tensorlys():
    decomposition = pytest.importorskip("tensorly.decomposition")
    weight = torch.randn(12, 12, dtype=torch.float64)
    layer = linear("tucker", TWO, {"rank": 2}).double()
    problem = problem_of(layer, weight)
    branches = find_branches(problem.form) or ()
    left, rest = problem.target, problem.target
    for branch in branches[:-1]:
        (axis,) = (problem.form.legs.index(leg) for leg in branch.legs if leg in problem.form.legs)
        u = torch.linalg.svd(left.movedim(axis, 0).flatten(1), full_matrices=False)[0][:, :2]
        left = torch.tensordot(u @ u.T, left, dims=([1], [axis])).movedim(0, axis)
    rest = left
    found = reconstruction(problem, truncate(problem, branches).values)
    np.testing.assert_allclose(found, rest, atol=1e-10)
    core, factors = decomposition.tucker(problem.target.numpy(), [2, 2, 2, 2], n_iter_max=100, tol=1e-10)
    error = (1 - float(np.square(core).sum()) / problem.total) ** 0.5
    assert tg.fit(layer, weight, sweeps=100, tolerance=1e-8).weight_error < error * 1.01
    assert len(factors) == 4


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seed", SEEDS)
def test_sweeps_reach_what_quimb_reaches_on_random_graphs(seed: int):
    quimb = pytest.importorskip("quimb.tensor")
    layer = tg.compile(random_graph(seed), dtype=torch.float64)
    names = [f"g{k}" for k in range(len(list(layer.parameters())))]
    legs = {core.name: [leg.name for leg in core.legs] for core in layer.plan.network.cores}
    output = [leg.name for leg in layer.plan.network.outputs[0].legs]
    target = torch.randn(layer().shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = tg.fit(layer, target, sweeps=300, tolerance=1e-7).weight_error * float(target.norm())
    errors = []
    for start in range(3):
        rng = np.random.default_rng(start)
        shapes = {name: layer.get_parameter(name).shape for name in names}
        network = quimb.TensorNetwork([quimb.Tensor(rng.normal(size=shapes[n]), inds=legs[n]) for n in names])
        whole = quimb.TensorNetwork([quimb.Tensor(target.numpy(), inds=output)])
        fitted = quimb.tensor_network_fit_als(network, whole, steps=300, tol=1e-9, solver_dense="lstsq")
        dense = fitted.contract(output_inds=output).transpose(*output).data
        errors.append(float(np.linalg.norm(dense - target.numpy())))
    assert ours <= min(errors) * 1.01 + 1e-6


# ------------------------------------------------------------------------------------------------- shapes of layers


def test_sizes_of_one_are_fitted():
    layer, weight = member("mpo", ((1, 3, 1), (4, 1, 1)), {"bond": 2}, 0)
    assert tg.fit(layer, weight).weight_error < 1e-5


@pytest.mark.parametrize("with_inputs", [False, True])
def test_padded_modes_hold_the_layer(with_inputs: bool):
    dense = nn.Linear(10, 7)
    layer = linear("mpo", ((4, 3), (2, 4)), {"bond": 8}, sizes=(10, 7), bias=True)
    result = tg.fit(layer, dense, correlated(10) if with_inputs else None)
    assert result.output_error < 1e-6
    x = correlated(10, samples=5)
    torch.testing.assert_close(layer(x), dense(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_convolutions_are_fitted(groups: int, with_inputs: bool):
    dense = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, groups=groups)
    layer = Conv2d.like(dense, "tucker", rank=18, modes=((4 // groups,), (6 // groups,)))
    x = torch.randn(3, 4, 7, 6)
    result = tg.fit(layer, dense, x if with_inputs else None)
    assert result.output_error < 1e-6
    torch.testing.assert_close(layer(x), dense(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_are_fitted(groups: int):
    dense = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=groups)
    layer = ConvTranspose2d.like(dense, "tucker", rank=18, modes=((4 // groups,), (6 // groups,)))
    assert tg.fit(layer, dense).output_error < 1e-6
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(x), dense(x), atol=1e-5, rtol=0)


def test_the_error_of_the_outputs_is_the_one_that_is_measured():
    dense, x = nn.Linear(12, 12), correlated(12) + 1.0
    layer = Linear.like(dense, "mpo", bond=2, modes=TWO)
    result = tg.fit(layer, dense, x)
    outputs = x @ dense.weight.T
    outputs = outputs - outputs.mean(0)
    measured = float(((layer(x) - dense(x)).norm() / outputs.norm()).detach())
    assert result.output_error == pytest.approx(measured, rel=1e-3)
    assert result.sweep_flops > 0
    assert result.peak > 0
    torch.testing.assert_close(layer(x).mean(0), dense(x).mean(0), atol=1e-5, rtol=0)
    without = tg.fit(Linear.like(dense, "mpo", bond=2, modes=TWO), dense).layer
    assert measured < float(((without(x) - dense(x)).norm() / outputs.norm()).detach())


def test_a_generated_weight_and_a_network_of_its_own_are_fitted():
    weight = torch.randn(12, 12)
    generator = Generated((12, 12), "low_rank", rank=12)
    assert tg.fit(generator, weight).weight_error < 1e-6
    torch.testing.assert_close(generator(), weight, atol=1e-5, rtol=0)
    alone = tg.compile(tg.families.mpo.weight(*TWO, bond=12))
    assert tg.fit(alone, weight).weight_error < 1e-6


def test_what_is_not_linear_in_its_cores_is_fitted_by_descent():
    layer, weight = member("mpo", TWO, {"bond": 2}, 0)
    tied = linear("tied_ring", ((2, 2), (2, 2)), {"bond": 2})
    target = tied.weight.detach().clone()
    with torch.no_grad():
        for core in tied.parameters():
            core.add_(0.1 * torch.randn_like(core))
    result = tg.fit(tied, target)
    assert result.method.startswith("L-BFGS")
    assert result.weight_error < 1e-3
    assert all(after <= before for before, after in pairwise(result.history))
    assert layer.weight.shape == weight.shape


# ----------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("family", ["mpo", "ring", "cp", "tied_ring"])
def test_the_same_input_gives_the_same_bytes(family: str):
    modes, options = {**MEMBERS, **LOOPED}.get(family, (((2, 2), (2, 2)), {"bond": 2}))
    weight = torch.randn(prod(modes[1]), prod(modes[0]))
    layers = [linear(family, modes, options) for _ in range(2)]
    if family == "tied_ring":  # descent starts from the params as they are
        layers[1].load_state_dict(layers[0].state_dict())
    results = [tg.fit(layer, weight, correlated(prod(modes[0])), sweeps=5) for layer in layers]
    for first, second in zip(*(layer.parameters() for layer in layers), strict=True):
        assert first.detach().numpy().tobytes() == second.detach().numpy().tobytes()
    assert results[0].history == results[1].history


def test_cores_have_equal_norms_and_positive_largest_entries():
    layer, weight = member("mpo", THREE, {"bond": 3}, 0)
    tg.fit(layer, weight)
    cores = [core.detach() for core in layer.parameters()]
    norms = torch.stack([core.norm() for core in cores])
    torch.testing.assert_close(norms, norms.mean().expand(len(norms)))
    assert all(core.flatten()[core.abs().argmax()] > 0 for core in cores[:-1])


# ---------------------------------------------------------------------------------------------------------- errors


def refusal(call: Any) -> str:
    with pytest.raises(tg.TngraphError) as error:
        call()
    return str(error.value)


def test_what_cannot_be_fitted_is_refused_in_the_users_words():
    layer, conv = linear("mpo", TWO, {"bond": 2}), Conv1d(4, 4, 3, family="cp", rank=2)
    weight = torch.randn(12, 12)
    assert refusal(lambda: tg.fit(layer, torch.randn(12, 11))) == (
        "the target has a weight of shape (12, 11), and the layer one of (12, 12)"
    )
    assert refusal(lambda: tg.fit(layer, weight.log())) == "the target has entries that are infinite or not a number"
    assert refusal(lambda: tg.fit(layer, weight, torch.randn(5, 11))).startswith("the inputs have shape (5, 11)")
    assert refusal(lambda: tg.fit(layer, weight, [])) == "there are no inputs to fit to\n  give at least one batch"
    assert refusal(lambda: tg.fit(layer, weight, torch.zeros(0, 12))).startswith("there are no inputs to fit to")
    assert refusal(lambda: tg.fit(layer, weight, torch.full((5, 12), torch.nan))) == (
        "the inputs have entries that are infinite or not a number"
    )
    assert refusal(lambda: tg.fit(layer, weight, tg.Moments.of(torch.randn(5, 11)))) == (
        "the moments are of 11 inputs, and the weight has 12"
    )
    assert refusal(lambda: tg.fit(nn.Linear(12, 12), weight)).startswith(
        "Linear has no weight that is built of cores\n  fit takes tngraph's layers"
    )
    assert refusal(lambda: tg.fit(layer, nn.ReLU())).startswith("the target is ReLU()")
    assert refusal(lambda: tg.fit(conv, nn.Conv1d(4, 4, 3), torch.randn(2, 5, 8))).startswith(
        "the inputs have shape (2, 5, 8), and the convolution takes (batch, 4, …)"
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("is_padded", [False, True])
def test_the_low_rank_weight_beside_a_fit_is_that_of_the_whole_matrix(groups: int, is_padded: bool):
    """It is the best `(out, in)` matrix of each group with as many params as the cores, whatever their modes."""
    dense = nn.Conv1d(24, 20, 1, groups=groups, bias=False)
    out, ins = 20 // groups, 24 // groups
    modes = ((4, -(-ins // 4) + is_padded), (5, -(-out // 5) + is_padded))
    layer = Conv1d.like(dense, "mpo", bond=4, modes=modes)
    result = tg.fit(layer, dense, sweeps=1)
    rank = min(result.params // (groups * (out + ins)), out)
    squares = np.linalg.svd(dense.weight.detach().double().reshape(groups, out, ins).numpy())[1] ** 2
    assert result.low_rank is not None
    assert (result.low_rank.rank, result.low_rank.params) == (rank, groups * rank * (out + ins))
    assert result.low_rank.error == pytest.approx(float((squares[:, rank:].sum() / squares.sum()) ** 0.5), abs=1e-7)
    x = torch.randn(50, 24, 3)
    assert tg.fit(layer, dense, x, sweeps=1).low_rank.rank == rank


def test_moments_of_other_inputs_are_refused_where_modes_are_padded_and_for_groups():
    layer = Linear(11, 12, family="mpo", bond=2, modes=((4, 3), (3, 4)))
    with pytest.raises(tg.SizeError, match="the moments are of 9 inputs, and the weight has 11"):
        tg.fit(layer, nn.Linear(11, 12), tg.Moments.of(torch.randn(50, 9)))
    grouped = Conv1d(4, 6, 1, groups=2, family="low_rank", rank=1)
    with pytest.raises(tg.SizeError, match="the moments are of 1 groups, and the weight has 2"):
        tg.fit(grouped, nn.Conv1d(4, 6, 1, groups=2), tg.Moments.of(torch.randn(50, 2)))


def test_a_vector_is_fitted():
    vector = torch.randn(24)
    result = tg.fit(Generated((24,), "mpo", bond=4, modes=((), (4, 6))), vector)
    assert (result.weight_error < 1e-6, result.low_rank) == (True, None)


def test_inputs_that_never_vary_leave_the_weight_to_itself():
    """About their mean they have no moments, and the bias makes the outputs right."""
    dense = nn.Linear(12, 8)
    layer = Linear.like(dense, "mpo", bond=2, modes=((3, 4), (4, 2)))
    x = torch.ones(5, 12)
    tg.fit(layer, dense, x)
    torch.testing.assert_close(layer(x), dense(x))


def test_complex_targets_and_numbers_that_cannot_be_are_refused():
    layer = Linear(12, 8, family="mpo", bond=2)
    with pytest.raises(tg.SizeError, match="the target is complex"):
        tg.fit(layer, torch.randn(8, 12, dtype=torch.complex64))
    with pytest.raises(tg.SizeError, match="sweeps is -1\n  it is an integer from 0"):
        tg.fit(layer, torch.randn(8, 12), sweeps=-1)
    with pytest.raises(tg.SizeError, match="starts is 0\n  it is an integer from 1"):
        tg.fit(layer, torch.randn(8, 12), starts=0)
