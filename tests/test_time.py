"""Plans for time: axis orders, parts and what is measured, each beside an independent count or a run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import permutations, product
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import tngraph as tg
from tests.bench.running import KEEPING
from tngraph.cli import app
from tngraph.compiler.pipeline import timed_search
from tngraph.compiler.timed import SAMPLED, TILING_GAIN
from tngraph.language import families
from tngraph.modules import timing, tuning
from tngraph.modules.calibration import describe_device
from tngraph.modules.timing import KernelTimes, MeasuredMachine, ProductCase, in_this_process
from tngraph.modules.tuning import Tuning, choose_tried, tune
from tngraph.plans.dense import dense_equivalent
from tngraph.plans.measured import Measured
from tngraph.plans.plan import Plan
from tngraph.program.clock import Clock, Origin, is_transposed
from tngraph.program.counts import evaluate_count
from tngraph.program.expressions import Call, Variable
from tngraph.program.strides import Layout, contiguous_strides
from tngraph.search import layouts
from tngraph.search.gradients import lay_out_gradients
from tngraph.search.layouts import Run, lay_out
from tngraph.search.machine import Copy, Machine
from tngraph.search.region import ContractionTree, Tile

FC2 = "examples/specs/fc2_mpo.tn"
NTT = "examples/specs/fc_ntt.tn"
CHAIN = """network chain {
  size batch
  size R = 3
  input x[batch, (i1:4, i2:5, i3:2)]
  param a[i1, o1:3, r1:R]
  param b[r1, i2, o2:4, r2:R]
  param c[r2, i3, o3:5]
  y[batch, o1, o2, o3] = x * a * b * c
  output y[batch, (o1, o2, o3)]
}"""
COPYING = "network n { size m; input x[i:m, j:3, k:4, l:2]; param w[j, l, o:2]; y[i, k, o] = x * w; output y[i, k, o] }"
BY_PYTORCH = ", gradients by PyTorch"
ASKING = """import torch
from tngraph.modules.timing import Machine, in_this_process
print(in_this_process(Machine(), torch.device("cpu")).renew(2**25) == 0)"""
SMALL_CACHE = Machine(cache=1e4, elements_per_second=1e8, reused=1e4, fresh_per_second=1e8, seconds_per_product=1e-7)
"""A machine on which parts pay for small layers."""


def in_parts(plan: Plan, size: int, name: str = "batch") -> Plan:
    """The plan with every region that depends on an index in parts."""
    (regime,) = plan.regimes
    stages = []
    for stage in regime.stages:
        cut = next(index for index in stage.equation.legs if index.name == name)
        trees = [replace(t, tile=Tile(cut, size)) if cut in t.region.legs and t.steps else t for t in stage.trees]
        stages.append(replace(stage, trees=tuple(trees)))
    return Plan((replace(regime, stages=tuple(stages)),))


@pytest.mark.parametrize("mode", ["infer", "train", "serve"])
@pytest.mark.parametrize("spec", [FC2, NTT])
@pytest.mark.parametrize("batch", [3, 4, 5, 8, 11, 13])
def test_parts_compute_and_hold_what_the_plan_says(spec: str, mode: str, batch: int):
    """Fewer rows than a part, one full part, a row more, several full parts, and a last one of any size."""
    plan = in_parts(tg.plan(tg.load(spec), {"batch": 8}, mode=mode), 4)
    layer = tg.compile(plan)
    assert layer.verify(sizes={"batch": batch}).is_equal
    assert ".split(4)" in layer.source


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("order", ["x (a (b c))", "(x a) (b c)", "((x a) b) c"])
@pytest.mark.parametrize(("name", "size"), [("o1", 1), ("o1", 2), ("o2", 2), ("o3", 3)])
def test_weights_made_in_blocks_are_what_the_plan_says(mode: str, order: str, name: str, size: int):
    """Blocks that divide the index and others, of what the first steps make and of what the last one takes."""
    made = tg.plan(tg.parse(CHAIN), {"batch": 8}, mode=mode, order=order)
    layer = tg.compile(in_parts(made, size, name))
    assert f".split({size}, " in layer.source
    for batch in (1, 5):
        assert layer.verify(sizes={"batch": batch}).is_equal


def test_blocks_have_a_planned_backward_pass_and_all_that_modules_have(tmp_path: Path):
    network = tg.parse(CHAIN)
    finder = timed_search(network, {"batch": 64}, machine=Machine(seconds_per_view=1e-9), mode="train")
    tree = next(each.trees[0] for each in finder.candidates() if each.is_planned and each.is_whole)
    o1 = next(leg for leg in tree.region.legs if leg.name == "o1")
    block = finder.tile_weight(finder.problem.regions[0], tree, Tile(o1, 1), {"batch": 64, "R": 3})
    assert block.gradients
    plan = finder.plan([(1, None, (block,))])
    layer = tg.compile(plan)
    assert "def _y_backward(" in layer.source
    assert layer.verify(sizes={"batch": 3}).is_equal
    x = torch.randn(11, 40)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    double = layer.double()
    x = torch.randn(2, 3, 40, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(torch.vmap(double)(x), torch.stack([double(each) for each in x]))
    assert torch.autograd.gradgradcheck(double, (x[0],), fast_mode=True)
    plan.save(tmp_path / "plan.json")
    assert tg.emit(tg.load_plan(tmp_path / "plan.json")) == layer.source


def test_a_large_weight_is_made_in_blocks_where_that_is_faster():
    network = tg.families.mpo((8, 8, 8, 8), (8, 8, 8, 8), bond=64)
    for mode in ("infer", "train"):
        finder = timed_search(network, {"batch": 512}, machine=Machine(), mode=mode)
        best = finder.candidates()[0]
        assert "of o1 at a time" in finder.describe(best)
        whole = next(each for each in finder.candidates() if each.is_whole)
        numbers = {"batch": 512}
        peaks = [finder.plan([(1, None, each.trees)]).regimes[0].memory(numbers).peak for each in (best, whole)]
        assert peaks[0] < peaks[1] if mode == "infer" else peaks[0] <= peaks[1] + 2**24


def test_the_bytes_of_parts_are_formulas_beyond_the_size_of_a_part():
    regime = in_parts(tg.plan(tg.parse(CHAIN), {"batch": 8}, mode="train"), 4).regimes[0]
    check_formulas(regime, (6, 7, 8, 10, 12, 15, 28, 30))


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize(("name", "size"), [("o1", 1), ("o3", 2)])
def test_the_bytes_of_blocks_are_formulas(mode: str, name: str, size: int):
    regime = in_parts(tg.plan(tg.parse(CHAIN), {"batch": 8}, mode=mode, order="x (a (b c))"), size, name).regimes[0]
    check_formulas(regime, (7, 11, 30))


def check_formulas(regime: tg.Regime, batches: tuple[int, ...]) -> None:
    for batch in batches:
        numbers = {"batch": batch, "R": 3}
        memory = regime.memory(numbers)
        assert int(regime.peak.xreplace({s: numbers[s.name] for s in regime.peak.free_symbols})) == memory.peak
        assert int(regime.saved.xreplace({s: numbers[s.name] for s in regime.saved.free_symbols})) == memory.saved
        assert int(regime.moves.xreplace({s: numbers[s.name] for s in regime.moves.free_symbols})) == memory.moves


def test_what_parts_share_is_laid_out_once():
    source = tg.emit(in_parts(tg.plan(tg.parse(CHAIN), {"batch": 64}, order="((x a) b) c"), 16))
    forward, part = source.split("def _y_part(")
    assert (
        ".permute" in forward.split("self._y_parts(")[0].split("batch = x.shape[0]")[1] or "self.b.permute" not in part
    )
    assert "self.b.permute" not in part


def test_a_traced_layer_has_no_parts():
    layer = tg.compile(in_parts(tg.plan(tg.parse(CHAIN), {"batch": 8}), 4))
    x = torch.randn(11, 40)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=False).module()
    for rows in (2, 7, 32):
        y = torch.randn(rows, 40)
        torch.testing.assert_close(exported(y), layer(y))


def test_parts_work_under_vmap_and_have_second_derivatives():
    layer = tg.compile(in_parts(tg.plan(tg.parse(CHAIN), {"batch": 8}), 2)).double()
    x = torch.randn(3, 5, 40, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(each) for each in x]))
    assert torch.autograd.gradgradcheck(layer, (x[0],), fast_mode=True)


class Copies(TorchDispatchMode):
    """Adds up the bytes of the clones of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.clone.default:
            self.bytes += result.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize("spec", [*map(str, sorted(Path("examples/specs").glob("*.tn"))), CHAIN, COPYING])
@pytest.mark.parametrize("mode", ["infer", "serve"])
def test_moves_are_what_a_run_copies(spec: str, mode: str):
    network = tg.load(spec) if spec.endswith(".tn") else tg.parse(spec)
    plan = tg.plan(network, dict.fromkeys(network.runtime_sizes(), 16), mode=mode)
    layer, copies = tg.compile(plan), Copies()
    runtime = dict.fromkeys(network.runtime_sizes(), 16)
    numbers = {name: value for name, value in plan.values().items() if name not in runtime}
    generator = torch.Generator().manual_seed(0)
    inputs = tuning.random_inputs(network, tuning.compile_time_sizes(network, {}), generator, runtime)
    with torch.no_grad(), copies:
        layer(*(x.float() for x in inputs))
    assert copies.bytes == plan.regimes[0].memory({**numbers, **plan.values()}).moves


def every_way(tree: ContractionTree, run: Run, monkeypatch: pytest.MonkeyPatch) -> float:
    """The least time of all choices of a kernel for every step, one after the other and none left out."""
    program = layouts.LayoutProgram(tree, run)
    least = float("inf")

    def go_on(number: int) -> None:
        nonlocal least
        if number == len(tree.steps):
            least = min(least, *(best.seconds for best in program.nodes[-1].values()))
            return
        program.add(number)
        made = program.nodes.pop()
        for order, best in made.items():
            program.nodes.append({order: best})
            go_on(number + 1)
            program.nodes.pop()
        program.leaves.pop()

    for name in ("MOST_ORDERS", "MOST_KEPT"):
        monkeypatch.setattr(layouts, name, 10**9)
    go_on(0)
    return least


@pytest.mark.parametrize(("batch", "trained"), [*product((1, 64), (0, 15))])
def test_the_orders_of_axes_are_the_best_of_all(batch: int, trained: int, monkeypatch: pytest.MonkeyPatch):
    tree = replace(tg.plan(tg.parse(CHAIN), {"batch": batch}, order="((x a) b) c").regimes[0].trees[0], matmuls=())
    run = Run({"batch": batch, "R": 3}, Machine(), trained)
    program = layouts.LayoutProgram(tree, run)
    for number in range(len(tree.steps)):
        program.add(number)
    found = min(best.seconds for best in program.nodes[-1].values())
    assert found == pytest.approx(every_way(tree, run, monkeypatch), rel=1e-9)
    assert lay_out(tree, run).matmuls == program.matmuls()


def test_a_chain_needs_no_copy_of_a_large_value():
    """The axes of every intermediate are chosen so that the next product takes it as it lies."""
    plan = tg.plan(tg.load(FC2), {"batch": 64}, order="(((x w1) w2) w3) w4")
    intermediate = plan.at().largest * 4
    assert plan.regimes[0].memory(plan.values()).moves < intermediate


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_the_fastest_candidate_runs_at_every_size_compared(mode: str):
    finder = timed_search(tg.load(FC2), machine=SMALL_CACHE, mode=mode)
    plan = tg.plan(tg.load(FC2), mode=mode, minimize=SMALL_CACHE)
    for value in SAMPLED:
        best = finder.candidates(batch=value)[0].price
        regime = plan.regime(batch=value)
        leaving = 3 * SMALL_CACHE.seconds_per_view  # a method's result is given an axis per leg
        assert regime.seconds(plan.values(batch=value)) <= best / 0.97 + leaving
    assert any(tree.tile for regime in plan.regimes for tree in regime.trees)
    for before, after in zip(plan.regimes, plan.regimes[1:], strict=False):
        numbers = plan.values(batch=after.low)
        assert after.seconds(numbers) < TILING_GAIN * before.seconds(numbers)


def test_every_regime_of_a_plan_for_time_is_verified():
    assert tg.compile(tg.plan(tg.load(FC2), minimize=SMALL_CACHE, mode="train")).verify(sizes={"batch": 37}).is_equal


def test_a_plan_with_forms_and_parts_is_read_as_it_was_saved(tmp_path: Path):
    plan = tg.plan(tg.load(FC2), minimize=SMALL_CACHE)
    plan.save(tmp_path / "plan.json")
    loaded = tg.load_plan(tmp_path / "plan.json")
    assert loaded == plan
    assert tg.emit(loaded) == tg.emit(plan)


def matmuls_of(fields: dict[str, Any]) -> list[dict[str, list[str]]]:
    (tree,) = [tree for tree in fields["plan"]["regimes"][-1]["equations"][0]["terms"] if tree["matmuls"]]
    return tree["matmuls"]


def cut(fields: dict[str, Any], index: str, size: int) -> None:
    """Let every tree with steps run in parts."""
    for tree in fields["plan"]["regimes"][-1]["equations"][0]["terms"]:
        if tree["moves"]:
            tree["tile"] = {"index": index, "size": size}


WRONG = {
    "a leg of nothing": (lambda f: matmuls_of(f)[0]["rows"].append("nothing"), "which its operands do not have"),
    "a leg less": (lambda f: matmuls_of(f)[-1]["rows"].clear(), "where its step has"),
    "rows and columns of one operand": (
        lambda f: matmuls_of(f)[-1].update(rows=matmuls_of(f)[-1]["rows"] + matmuls_of(f)[-1]["columns"], columns=[]),
        "is not a matrix product",
    ),
    "no order of what is summed": (lambda f: matmuls_of(f)[0].update(summed=[]), "is not a matrix product"),
    "a layout less": (lambda f: matmuls_of(f).pop(), "matmul layouts for"),
    "parts of what is summed": (
        partial(cut, index="i1", size=2),
        "cannot be cut there",
    ),
    "a block of all": (
        partial(cut, index="o1", size=4),
        "tiles of 4 of 'o1' are not possible in mode 'infer'",
    ),
    "parts of nothing": (
        partial(cut, index="zz", size=2),
        "cannot be cut there",
    ),
    "a part of no rows": (
        partial(cut, index="batch", size=0),
        "expected an integer >= 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_with_other_forms_or_parts_is_refused(name: str, tmp_path: Path):
    edit, complaint = WRONG[name]
    place = tmp_path / "plan.json"
    tg.plan(tg.load(FC2)).save(place)
    fields = json.loads(place.read_text())
    edit(fields)
    place.write_text(json.dumps(fields))
    with pytest.raises(tg.PlanError, match=complaint):
        tg.load_plan(place)


def test_tuning_keeps_the_fastest_that_was_measured(tmp_path: Path):
    network = tg.load(FC2)
    found = tune(network, inputs=[(torch.randn(b, 784),) for b in (64, 2)], machine=SMALL_CACHE)
    sizes = [trial.sizes for trial in found.trials]
    assert set(sizes) == {(("batch", 2),), (("batch", 64),)}
    for at, kept in zip(sorted(set(sizes)), found.plan.measured, strict=True):
        assert kept.seconds == min(trial.seconds for trial in found.trials if trial.sizes == at)
        assert kept.device == describe_device("cpu")
    assert found.plan.regimes[0].high in (None, 11)  # the middle of 2 and 64 on a log scale
    assert str(found).count("kept") == 2
    found.plan.save(tmp_path / "tuned.json")
    assert tg.load_plan(tmp_path / "tuned.json").measured == found.plan.measured


def test_tuning_for_training_measures_the_backward_pass_of_pytorch_too():
    found = tune(tg.parse(CHAIN), inputs=[(torch.randn(8, 40),)], mode="train")
    ways = [trial.way for trial in found.trials]
    (kept,) = found.plan.measured
    trees = {way: way.replace(BY_PYTORCH, "").replace(", laid out for its forward pass", "") for way in ways}
    assert {BY_PYTORCH in way for way in ways if trees[way] == trees[kept.way]} == {True, False}
    assert len(set(ways)) == len(ways)
    assert ("PlannedBackward" in tg.emit(found.plan)) == (BY_PYTORCH not in kept.way)


@pytest.mark.parametrize("is_planned_faster", [False, True])
def test_the_fastest_is_measured_beside_itself_with_the_other_backward_pass(
    is_planned_faster: bool, monkeypatch: pytest.MonkeyPatch
):
    slower = iter([4.0**minute for minute in range(5)])

    def time(self: object, plans: list[Plan], inputs: object) -> list[float]:
        planned, slow = [any(tree.gradients for tree in each.regimes[0].trees) for each in plans], next(slower)
        return [slow if each == is_planned_faster else 2 * slow for each in planned]

    monkeypatch.setattr(tuning, "TRIED", 1)
    monkeypatch.setattr(tuning._Runner, "time", time)
    found = tune(tg.parse(CHAIN), inputs=[(torch.randn(8, 40),)], mode="train")
    assert sorted(trial.seconds for trial in found.trials) == [1.0, 2.0]
    (kept,) = found.plan.measured
    assert kept.seconds == 1.0
    assert (BY_PYTORCH in kept.way) != is_planned_faster


def test_ways_that_took_about_as_long_are_measured_again(monkeypatch: pytest.MonkeyPatch):
    """The second is a little slower at first, and by more faster afterwards, on a machine that got slower."""
    rounds = iter([[1.0, 1.1], [3.0, 2.4]])
    monkeypatch.setattr(tuning, "TRIED", 2)
    monkeypatch.setattr(tuning, "NEAR", 1e9)
    monkeypatch.setattr(tuning._Runner, "time", lambda self, plans, inputs: next(rounds))
    monkeypatch.setattr(tuning, "_time_dense", lambda *given: None)
    found = tune(tg.parse(CHAIN), inputs=[(torch.randn(64, 40),)])
    assert [trial.seconds for trial in found.trials] == [1.0, pytest.approx((1.1 + 0.8) / 2)]
    assert found.plan.measured == found.trials[1:2]


@pytest.mark.parametrize("number", range(4))
def test_whichever_is_the_fastest_at_last_was_measured_with_both_backward_passes(
    number: int, monkeypatch: pytest.MonkeyPatch
):
    rounds: list[list[Plan]] = []

    def time(self: object, plans: list[Plan], inputs: object) -> list[float]:
        rounds.append(plans)
        if len(rounds) == 1:
            return [1.0, *[1.1] * (len(plans) - 1)]
        return [1.0 if each == rounds[0][number] else 3.0 for each in plans]

    monkeypatch.setattr(tuning, "NEAR", 1e9)
    monkeypatch.setattr(tuning._Runner, "time", time)
    monkeypatch.setattr(tuning, "_time_dense", lambda *given: None)
    found = tune(tg.parse(CHAIN), inputs=[(torch.randn(64, 40),)], mode="train")
    (kept,) = found.plan.measured
    other = kept.way.replace(BY_PYTORCH, "") if BY_PYTORCH in kept.way else kept.way
    ways = [trial.way.replace(BY_PYTORCH, "") for trial in found.trials]
    assert ways.count(other) == 2


def test_a_slow_first_call_leaves_no_way_out(monkeypatch: pytest.MonkeyPatch):
    calls = iter(range(2))
    taken = {0: iter([2.0, *[3.0] * 99]), 1: iter([60.0, 1.0, *[2.0] * 99])}
    monkeypatch.setattr(tuning, "_make_call", lambda *given: next(calls))
    monkeypatch.setattr(tuning._Runner, "_time", lambda self, call, count: next(taken[call]))
    runner = tuning._Runner(torch.device("cpu"), torch.float32, "infer")
    assert runner.time([tg.plan(tg.parse(CHAIN))] * 2, [torch.randn(8, 40)]) == [3.0, 2.0]


@pytest.mark.parametrize("name", ["self", "candidate", "value"])
def test_a_size_of_any_name_is_tuned_for(name: str):
    found = tune(tg.parse(CHAIN.replace("batch", name)), inputs=[(torch.randn(4, 40),)], mode="train")
    assert {trial.sizes for trial in found.trials} == {((name, 4),)}


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_the_best_of_every_kind_is_measured_and_then_every_order(mode: str):
    finder = timed_search(tg.parse(CHAIN), {}, machine=SMALL_CACHE, bench=SMALL_CACHE, mode=mode)
    candidates = finder.candidates(batch=512)
    tried = choose_tried(candidates)
    assert len(candidates) > len(tried) == tuning.TRIED
    for key in (attrgetter("is_whole", "is_planned"), attrgetter("orders")):
        best = {key(each): each for each in reversed(candidates)}
        near = {each.trees for each in best.values() if each.seconds <= tuning.NEAR * candidates[0].seconds}
        assert near <= {each.trees for each in tried}
    assert tried == [each for each in candidates if each in tried]
    assert tried[0] == candidates[0]


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_linear_network_is_measured_beside_its_dense_weight(mode: str, tmp_path: Path):
    found = tune(tg.load(FC2), {"D": 3}, inputs=[(torch.randn(b, 784),) for b in (1, 64)], mode=mode)
    assert all(each.dense is not None and each.dense > 0 for each in found.plan.measured)
    assert str(found).count("a dense weight") == 2
    assert sum("dense time" in line for line in str(found.plan).split("\n")) == 2
    found.plan.save(tmp_path / "tuned.json")
    assert tg.load_plan(tmp_path / "tuned.json").measured == found.plan.measured


@pytest.mark.parametrize(("mode", "hint"), [("infer", ": mode='serve' folds to it"), ("train", "")])
def test_a_plan_says_where_a_dense_weight_is_faster(mode: str, hint: str):
    measured = Measured("cpu", "float32", (("batch", 2),), "y = (x w)", 1e-4, 2e-4)
    plan = tg.plan(tg.load(FC2), mode=mode)
    slower, faster, alone = (replace(plan, measured=(replace(measured, dense=t),)) for t in (3e-4, 1e-4, None))
    assert "  dense time   0.0003 [s] at batch = 2 with a dense weight\n" in str(slower)
    assert f"  dense time   0.0001 [s] at batch = 2 with a dense weight, which is faster{hint}\n" in str(faster)
    assert "dense time" not in str(alone)
    shown = [str(Tuning(each, each.measured)).split("\n")[2:] for each in (slower, faster, alone)]
    assert [[" ".join(line.split()) for line in lines] for lines in shown] == [
        ["batch = 2 a dense weight 0.3"],
        ["batch = 2 a dense weight 0.1 faster"],
        [],
    ]


def dense_time(text: str, mode: str = "infer") -> float | None:
    (kept,) = tune(tg.parse(text), inputs=[(torch.randn(2, 40),)], mode=mode).plan.measured
    return kept.dense


def test_a_dense_weight_that_is_none_or_too_large_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    assert dense_time(CHAIN, mode="serve") is None
    assert (
        dense_time("network n { size m; input x[m, i:40]; param w[i, o:3]; y[m, o] = x * w; output y[m, o] }") is None
    )
    assert dense_time(CHAIN.replace("= x * a * b * c", "= relu(x * a * b * c)")) is not None
    monkeypatch.setattr(tuning, "MOST_DENSE_SECONDS", 0.0)
    assert dense_time(CHAIN) is None
    monkeypatch.undo()
    monkeypatch.setattr(tuning, "MOST_DENSE", 4 * 40 * 60 - 1)
    assert dense_time(CHAIN) is None


@pytest.mark.parametrize(("shares", "taken"), [([0.4], 0.4), ([3.0], 3.0), ([1.1, 0.7, 0.9], 0.9)])
def test_a_dense_weight_that_takes_about_as_long_is_measured_again(
    shares: list[float], taken: float, monkeypatch: pytest.MonkeyPatch
):
    left = iter(shares)
    monkeypatch.setattr(tuning._Runner, "compare", lambda runner, plans, inputs: next(left))
    (measured,) = tuning.tune(tg.parse(CHAIN), inputs=tuning.random_calls(tg.parse(CHAIN), {}, [2])).plan.measured
    assert (measured.dense / measured.seconds, [*left]) == (pytest.approx(taken), [])


def test_the_dense_weight_computes_what_the_network_does():
    network = tg.parse(CHAIN)
    layer, dense = tg.compile(network), tg.compile(dense_equivalent(network).network)
    weight = layer(torch.eye(40)).T
    with torch.no_grad():
        dense.weight1.copy_(weight.reshape(dense.weight1.shape))
    x = torch.randn(3, 40)
    torch.testing.assert_close(dense(x), layer(x))
    assert (dense.plan.params, dense.plan.macs) == (layer.plan.dense.params, layer.plan.dense.macs)


@pytest.mark.parametrize(
    ("body", "params", "macs"),
    [
        ("param a[i, r:2]; param b[r, o]; param c[o]; y[m, o] = relu(x * a * b + c)", 3 * 4 + 4, 12),
        ("param a[i, r:2]; param b[r, o]; param w[i, o]; y[m, o] = x * a * b + 2 * x * w", 12, 12),
        ("param a[i]; param b[i]; y[m, i] = x * a + b", 3 + 3, 3),
        ("param a[i, r:2]; param b[r, j:3]; y[m, j] = x * a * b + x[m, j]", 9, 9),
        ("buffer f[i, o]; param a[i, r:2]; param b[r, o]; y[m, o] = x * f + x * a * b", 12, 12),
        ("buffer f[i, o]; y[m, o] = x * f", 12, 12),
        ("const one[m] = ones; param a[i, o]; param c[o]; y[m, o] = x * a + one * c", None, None),
        ("param a[i, o]; y[m, o] = x * x * a", None, None),
        ("param a[i, o]; h[m, o] = relu(x * a); y[m] = h * h[m, o]", None, None),
        ("param a[i, o]; y[o] = a[i, o]", None, None),
    ],
    ids=["bias", "sum", "own bias", "skip", "adapter", "buffer", "of run time", "two inputs", "two equations", "none"],
)
def test_terms_alike_are_one_dense_weight(body: str, params: int | None, macs: int | None):
    legs = body.split("y[")[-1].split("]")[0]
    text = f"network n {{ size m; index i: 3; index o: 4; input x[m, i]; {body}; output y[{legs}] }}"
    network = tg.parse(text)
    made, plan = dense_equivalent(network), tg.plan(network)
    assert "n at" in str(plan)
    assert (made is None) == (plan.dense is None) == (params is None)
    if made is not None:
        dense = tg.plan(made.network, {"m": 5}).at(m=5)
        assert plan.dense.params == params
        assert evaluate_count(plan.dense.macs, {"m": 5}) == 5 * macs
        assert dense.macs in (5 * macs, 0)  # where nothing is summed, it is a product of entries
        assert tg.compile(made.network)(torch.randn(5, 3)).shape == tg.compile(network)(torch.randn(5, 3)).shape


def test_kernels_are_timed_once_and_for_some_time_only(monkeypatch: pytest.MonkeyPatch):
    kernels = KernelTimes(torch.device("cpu"), torch.float32)
    machine = MeasuredMachine.like(Machine(), kernels)
    first, same, other = (Copy(sizes, (1, 0, 2)) for sizes in ((32, 40, 16), (40, 32, 16), (40, 32, 40)))
    assert machine.rearrange(first) == machine.rearrange(same) > 0
    assert len(kernels.times) == 1
    machine.rearrange(other)
    assert len(kernels.times) == 2
    monkeypatch.setattr(timing, "MOST_SECONDS", 0.0)
    assert machine.rearrange(first) == machine.rearrange(same)
    assert machine.product(1, 33, 44, 55) == Machine().product(1, 33, 44, 55)
    assert machine.rearrange(Copy((3, 5, 7), (2, 1, 0))) == Machine().rearrange(Copy((3, 5, 7), (2, 1, 0)))
    kernels.release()
    assert kernels.spent == 0


def test_a_part_of_a_large_kernel_is_timed_and_new_memory_is_added(monkeypatch: pytest.MonkeyPatch):
    given: list[int] = []
    monkeypatch.setattr(KernelTimes, "_measure", lambda kernels, calls: given.append(len(calls)) or 1e-3)
    machine = MeasuredMachine.like(Machine(), KernelTimes(torch.device("cpu"), torch.float32))
    small, double, large = (machine.product(count, 64, 64, 64) for count in (256, 512, 4096))
    assert len(given) == 1  # all have the same part
    assert small == 1e-3
    assert double == pytest.approx(2e-3, rel=0.02)
    new = 4096 * 64 * 64 / machine.fresh_per_second
    assert large == pytest.approx(16e-3 + new, rel=0.02)
    copied = machine.rearrange(Copy((2048, 4096), (1, 0)))
    assert copied == pytest.approx(2e-3 + 2**23 / machine.fresh_per_second, rel=0.05)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the C library of Linux")
@pytest.mark.parametrize("told", [{}, KEEPING])
def test_memory_that_a_process_keeps_is_never_new(told: dict[str, str]):
    environment = {name: value for name, value in os.environ.items() if name not in KEEPING} | told
    asked = subprocess.run([sys.executable, "-c", ASKING], env=environment, capture_output=True, text=True, check=True)
    assert asked.stdout == f"{told == KEEPING}\n"


def test_memory_of_a_gpu_is_as_it_was_measured():
    assert in_this_process(Machine(), torch.device("cuda")) == Machine()


def test_kernels_are_timed_in_memory_that_is_there():
    kernels = KernelTimes(torch.device("cpu"), torch.float32)
    kernels.multiply(ProductCase(1, 8, 8, 8, False, False))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kernels.multiply(ProductCase(3, 500, 300, 20, True, False))
        kernels.rearrange(Copy((30, 50, 70), (2, 0, 1)))
    assert all(event.self_cpu_memory_usage <= 0 for event in found.key_averages())


@pytest.mark.parametrize("mode", ["infer", "train", "serve"])
def test_a_layer_compiled_for_a_call_runs_it(mode: str):
    x = torch.randn(9, 784)
    layer = tg.compile(tg.load(FC2), mode=mode, tune=x)
    assert layer.plan.request.mode == mode
    assert [dict(each.sizes) for each in layer.plan.measured] == [{"batch": 9}]
    assert layer.verify(sizes={"batch": 9}).is_equal
    several = tg.compile(tg.load(FC2), mode=mode, tune=[x, torch.randn(100, 784)])
    assert len(several.plan.measured) == 2


def test_a_plan_is_not_tuned_and_nothing_to_tune_for_is_an_error():
    with pytest.raises(tg.PlanError, match="a plan has been made"):
        tg.compile(tg.plan(tg.load(FC2)), tune=torch.randn(1, 784))
    with pytest.raises(tg.PlanError, match="nothing to tune for"):
        tune(tg.load(FC2))


def test_the_command_tunes_shows_and_saves(tmp_path: Path):
    place = tmp_path / "tuned.json"
    result = CliRunner().invoke(app, ["tune", FC2, "--batch", "1, 16", "--save", str(place)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("at ")
    assert result.stdout.count("kept") == 2
    assert len(tg.load_plan(place).measured) == 2


@pytest.mark.parametrize("order", [*permutations(range(3))])
@pytest.mark.parametrize("sizes", [(6, 20, 24), (6, 1, 64), (6, 64, 1), (1, 20, 24)])
def test_the_model_knows_which_gradients_pytorch_copies(sizes: tuple[int, int, int], order: tuple[int, ...]):
    """A batch of products put out in another order, and the gradient of that."""
    batch, rows, columns = sizes
    left = torch.randn(batch, rows, 16, requires_grad=True)
    right = torch.randn(batch, 16, columns, requires_grad=True)
    y = torch.bmm(left, right).permute(order).contiguous()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        torch.autograd.grad(y, [left, right], torch.randn(y.shape))
    copies = sum(event.count for event in found.key_averages() if event.key == "aten::copy_")
    strides = contiguous_strides(sizes)
    shape = tuple(map(sympy.Integer, y.shape))
    clock = Clock(Machine())
    given = Variable("value", "t1", shape)
    seen = Layout(tuple(y.shape), tuple(strides[axis] for axis in order))
    clock.undo(Call("contiguous", (given,), (), shape), seen, Origin(sizes, 2))
    assert (clock.seconds > 0) == (copies > 0)


@pytest.mark.parametrize("transposed", [*product((False, True), repeat=2)])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_model_knows_which_products_pytorch_makes_gradients_by(batch: int, transposed: tuple[bool, bool]):
    """Their sizes, and how both matrices lie, as PyTorch itself calls them."""

    class Asked(Machine):
        def product(self, *given: Any) -> float:
            asked.append(tuple(int(each) for each in given))
            return 0.0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                left, right = args
                lying = [is_transposed(Layout(tuple(each.shape), each.stride())) for each in args]
                many = left.shape[0] if left.dim() == 3 else 1
                made.append((many, left.shape[-2], right.shape[-1], left.shape[-1], *map(int, lying)))
            return function(*args, **(kwargs or {}))

    def matrices(rows: int, columns: int, is_transposed: bool) -> torch.Tensor:
        shape = (columns, rows) if is_transposed else (rows, columns)
        each = torch.randn(shape if batch == 1 else (batch, *shape))
        return (each.mT if is_transposed else each).requires_grad_()

    asked: list[tuple[int, ...]] = []
    made: list[tuple[int, ...]] = []
    left, right = matrices(5, 6, transposed[0]), matrices(6, 7, transposed[1])
    y = torch.matmul(left, right)
    with Watch():
        torch.autograd.grad(y, [left, right], torch.randn(y.shape))
    Asked().undo_product(batch, 5, 7, 6, *transposed)
    assert sorted(asked) == sorted(made)


def test_pytorch_copies_no_gradient_that_a_planned_backward_pass_makes(monkeypatch: pytest.MonkeyPatch):
    spent = []

    def undo(self: Clock, *given: Any) -> None:
        before = self.seconds
        pytorch_undoes(self, *given)
        spent.append(self.seconds - before)

    pytorch_undoes = Clock.undo
    finder = timed_search(families.monarch((8, 8), (8, 8)), {}, machine=Machine(), mode="train")
    whole = [each for each in finder.candidates(batch=64) if each.is_whole]
    monkeypatch.setattr(Clock, "undo", undo)
    copied = {}
    for each in whole:
        spent.clear()
        finder.seconds(each.trees, finder.problem.task.numbers_at(batch=64))
        copied[each] = sum(spent) > 0
    assert {each.is_planned for each in whole} == {True, False}
    assert all(copied[each] != each.is_planned for each in whole)


@pytest.mark.parametrize("batches", ["0", "1,,2", "x", "-1"])
def test_wrong_batches_are_errors_of_the_command_line(batches: str):
    result = CliRunner().invoke(app, ["tune", FC2, "--batch", batches])
    assert result.exit_code == 2
    assert "positive integers" in result.stderr


def test_planning_for_time_reports_every_size_that_it_compares():
    seen: list[tuple[int, int | None, float]] = []
    search = tg.Search(progress=lambda *state: seen.append(state))
    tg.plan(tg.parse(CHAIN), minimize="time", search=search)
    assert [state[:2] for state in seen] == [(k, len(SAMPLED)) for k in range(1, len(SAMPLED) + 1)]
    assert all(seconds > 0 for _, _, seconds in seen)


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_what_is_known_of_steps_that_are_alike_changes_no_layout(mode: str):
    kernels: dict[object, object] = {}
    for network in (tg.families.ring((4, 4, 4), (4, 4, 4), bond=3), tg.parse(CHAIN), tg.load(FC2)):
        tree = tg.plan(network, {"batch": 8}).regimes[0].trees[0]
        trained = 2 ** len(tree.region.accesses) - 1 if mode == "train" else 0
        run = Run({**tg.plan(network).values(batch=8)}, Machine(), trained)
        for _ in range(2):
            shared = lay_out(tree, run._replace(kernels=kernels))
            assert shared.matmuls == lay_out(tree, run).matmuls
            assert lay_out_gradients(shared, run._replace(kernels=kernels)) == lay_out_gradients(shared, run)
