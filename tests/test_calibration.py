"""The machine: its model, its fit to what kernels take, and its numbers on disk. Nothing here depends on a clock."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import tngraph as tg
from tngraph.cli import app
from tngraph.compiler.machines import built_in_machine, load_machine, save_machine
from tngraph.errors import PlanError
from tngraph.modules import calibration
from tngraph.modules.calibration import (
    Calibration,
    KernelCase,
    Measurement,
    calibrate,
    computing_in,
    describe_device,
    draw_kernels,
    fit_machine,
    machine_for,
    measure_kernels,
    predict,
    run_calibration,
)
from tngraph.search.machine import Machine, Work

FC2 = "examples/specs/fc2_mpo.tn"
CPU = "cpu Some Processor @ 2 GHz, 2 threads"
GPU = Machine(2.5e13, 90.0, 60.0, 40.0, 1.4e12, 7e11, 1.2e7, 1e15, 4e9, 8.0, 4e-6, 6e-6, 1.5e-6)

numbers = st.floats(1e-3, 1e3)
machines = st.builds(
    lambda factors: Machine(*(n * f for n, f in zip(asdict(Machine()).values(), factors, strict=True))),
    st.lists(numbers, min_size=len(fields(Machine)), max_size=len(fields(Machine))),
)
sizes = st.integers(1, 2**16)


def synthetic(machine: Machine, noise: float = 0.0) -> list[Measurement]:
    """What the kernels of a calibration take on a machine that is known."""
    kernels = draw_kernels()
    errors = np.exp(noise * np.random.default_rng(0).standard_normal(len(kernels)))
    return [Measurement(*pair) for pair in zip(kernels, predict(machine, kernels) * errors, strict=True)]


# the model


@given(machines, st.tuples(sizes, sizes, sizes, sizes), st.integers(0, 3), st.integers(1, 1000))
def test_more_of_anything_never_takes_less_time(machine: Machine, shape: tuple[int, ...], axis: int, more: int):
    larger = tuple(size + more * (k == axis) for k, size in enumerate(shape))
    slack = 1 - 1e-12
    assert machine.product(*larger) >= machine.product(*shape) * slack
    assert machine.either_way(*larger) >= machine.either_way(*shape) * slack
    elements, run, *_ = shape
    assert machine.copy(elements + more, run) >= machine.copy(elements, run) * slack
    assert machine.copy(elements, run) >= machine.copy(elements, run + more) * slack
    assert machine.elementwise(elements + more, run) >= machine.elementwise(elements, run) * slack
    assert machine.elementwise(elements, written=run + more) >= machine.elementwise(elements, written=run) * slack
    assert machine.pass_over(elements + more) >= machine.pass_over(elements) * slack
    assert machine.write(elements + more) >= machine.write(elements) >= machine.pass_over(elements) * slack


@given(machines, st.lists(st.tuples(sizes, sizes, sizes, sizes), min_size=1, max_size=5))
def test_arrays_are_priced_as_their_entries(machine: Machine, shapes: list[tuple[int, ...]]):
    columns = np.array(shapes).T.astype(float)
    for method in (machine.product, machine.either_way):
        np.testing.assert_allclose(method(*columns), [method(*shape) for shape in shapes], rtol=1e-12)
    np.testing.assert_allclose(machine.copy(*columns[:2]), [machine.copy(*shape[:2]) for shape in shapes], rtol=1e-12)
    work = [Work(b * r * c * s, b * r * s, b * s * c, b * r * c, 1, 0) for b, r, c, s in shapes]
    together = machine(Work(*np.array(work, dtype=float).T))
    np.testing.assert_allclose(together, [machine(each) for each in work], rtol=1e-9)


def test_a_product_has_half_the_rate_where_the_numbers_say():
    machine = replace(
        Machine(), cached_per_second=1e30, elements_per_second=1e30, reused=1e30, seconds_per_product=1e-30
    )
    large = 2**20
    for axis, half in ((1, machine.half_rows), (2, machine.half_columns), (3, machine.half_summed)):
        shape = [2.0, large, large, large]
        shape[axis] = half
        rate = 2.0 * half * large * large / machine.product(*shape)
        assert rate == pytest.approx(machine.operations_per_second / 2, rel=1e-4)


def test_a_matrix_times_one_vector_runs_either_way():
    machine = Machine()
    assert machine.product(1, 1024, 1, 512) == machine.product(1, 1, 1024, 512)
    assert machine.product(64, 1024, 1, 512) > machine.product(64, 1, 1024, 512)


def test_a_step_of_one_operand_is_one_pass():
    machine = Machine()
    assert machine(Work(600, 600, 0, 20, 0, 0)) == machine.elementwise(600, written=20)
    trained = machine.elementwise(600, written=20) + machine.elementwise(20, written=600)
    assert machine(Work(600, 600, 0, 20, 1, 0)) == trained


def test_sizes_beyond_any_integer_of_numpy_are_priced():
    assert 0 < Machine()(Work(2**100, 2**62, 2**62, 2**62, 1, 1)) < np.inf


# the fit


@pytest.mark.parametrize("machine", [Machine(operations_per_second=4e10, half_columns=6.0, cache=3e5), GPU])
def test_a_fit_finds_the_machine_that_made_the_times(machine: Machine):
    measured = synthetic(machine)
    found = fit_machine(measured)
    kernels = [each.kernel for each in measured]
    errors = np.abs(np.log(predict(found, kernels) / predict(machine, kernels)))
    assert np.quantile(errors, 0.9) < np.log(1.1)
    assert found.operations_per_second == pytest.approx(machine.operations_per_second, rel=0.2)
    assert found.cached_per_second == pytest.approx(machine.cached_per_second, rel=0.2)


def test_noise_and_outliers_move_a_fit_little():
    machine = Machine(operations_per_second=4e10, half_columns=6.0)
    measured = [
        each._replace(seconds=100 * each.seconds) if k % 12 == 5 else each
        for k, each in enumerate(synthetic(machine, 0.1))
    ]
    kernels = [each.kernel for each in measured]
    errors = np.abs(np.log(predict(fit_machine(measured), kernels) / predict(machine, kernels)))
    assert np.quantile(errors, 0.9) < np.log(1.3)


def test_what_nothing_depends_on_stays():
    measured = [each for each in synthetic(GPU) if each.kernel.kind in ("relu", "add")]
    found = fit_machine(measured)
    for name in ("operations_per_second", "half_rows", "half_columns", "half_summed", "doubling_run"):
        assert getattr(found, name) == getattr(Machine(), name)
    assert fit_machine([]) == Machine()


def test_the_share_says_when_the_model_is_wrong():
    measured = tuple(synthetic(GPU))
    right = Calibration("gpu", "float32", GPU, (), measured)
    wrong = replace(right, machine=Machine())
    assert (right.share_within(1.001), right.verdict().count("\n")) == (1.0, 0)
    assert wrong.share_within(2) < 0.5
    assert "that is little: calibrate again when nothing else runs" in wrong.verdict()


# measuring


def test_the_kernels_are_the_same_every_time_and_of_every_kind():
    kernels = draw_kernels()
    assert kernels == draw_kernels()
    assert {kernel.kind for kernel in kernels} == set(calibration._RULES)
    assert len(kernels) > 200


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_kind_of_kernel_is_measured(dtype: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "LARGEST", 20_000)
    kernels = [
        KernelCase("matrix", (1, 8, 4, 16)),
        KernelCase("matrices", (4, 8, 4, 16)),
        KernelCase("broadcast", (4, 8, 4, 16)),
    ]
    kernels += [
        KernelCase("copy", (2, 4, 8, 2)),
        KernelCase("reverse", (2, 4, 8, 2)),
        KernelCase("relu", (99,)),
        KernelCase("add", (99,)),
        KernelCase("view", (99,)),
    ]
    monkeypatch.setattr(calibration, "LONGEST", 1e9)
    with computing_in(dtype) as numbers:
        measured = measure_kernels(kernels, "cpu", numbers, 0.2)
    assert [each.kernel for each in measured] == kernels[: len(measured)]
    assert measured
    assert all(each.seconds > 0 for each in measured)


def test_a_kernel_does_what_its_kind_says():
    x, y = torch.rand(4096), torch.rand(4096)

    def run(kind: str, *sizes: int) -> torch.Tensor:
        return calibration._RULES[kind].call(x, y, *sizes)()

    assert run("matrix", 1, 3, 5, 7).shape == (3, 5)
    assert run("matrices", 2, 3, 5, 7).shape == run("broadcast", 2, 3, 5, 7).shape == (2, 3, 5)
    torch.testing.assert_close(run("broadcast", 2, 3, 5, 7)[1], x[:21].view(3, 7) @ y[35:70].view(7, 5))
    assert run("copy", 2, 3, 4, 5).shape == (2, 4, 3, 5)
    assert run("reverse", 2, 3, 4, 5).shape == (4, 3, 2, 5)
    torch.testing.assert_close(run("add", 9), x[:9] + y[:9])
    assert run("view", 9)._is_view()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_the_time_is_positive(seconds: float):
    with pytest.raises(PlanError, match=re.escape(f"calibrating cannot take {seconds!r} seconds\n  give a positive")):
        measure_kernels([], "cpu", torch.float32, seconds)


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(PlanError, match=r"^the device 'nonsense' cannot be used\n  PyTorch says: "):
        describe_device("nonsense")
    with (
        pytest.raises(PlanError, match=r"^the dtype is 'int7'\n  dtypes: float32, float64, bfloat16, float16, tf32$"),
        computing_in("int7"),
    ):
        pass
    with (
        pytest.raises(
            PlanError, match=r"^the dtype is 'tf32', and the device 'cpu'\n  a GPU alone has it: --device cuda$"
        ),
        computing_in("tf32"),
    ):
        pass


def test_a_gpu_stands_in_for_any_gpu():
    for dtype in ("float32", "tf32", "bfloat16", "float64"):
        gpu = built_in_machine("cuda Some GPU", dtype)
        assert gpu.product(1, 4096, 4096, 4096) < Machine().product(1, 4096, 4096, 4096) / 100
        assert gpu.product(1, 1, 16, 16) > gpu.seconds_per_view > 0
    assert built_in_machine("cpu Some Processor, 2 threads", "float32") == Machine()


# on disk


def test_a_machine_is_kept_per_device_threads_and_dtype(cache_folder: Path):
    made = [
        (CPU, "float32"),
        (CPU.replace("2 threads", "1 thread"), "float32"),
        (CPU, "float64"),
        ("cuda H100", "float32"),
    ]
    for k, key in enumerate(made):
        place = save_machine(Machine(half_rows=k + 1.0), *key)
        assert place is not None
        assert place.parent == cache_folder / "machines"
    assert [load_machine(*key) for key in made] == [Machine(half_rows=k + 1.0) for k in range(4)]
    assert load_machine(CPU, "bfloat16") is None
    assert load_machine(CPU.replace("@", "-"), "float32") is None  # the same file, of another device
    assert save_machine(GPU, CPU, "float32") is not None
    assert load_machine(CPU, "float32") == GPU


def test_a_damaged_file_is_none(cache_folder: Path):
    place = save_machine(GPU, CPU, "float32")
    assert place is not None
    text = place.read_text()
    fields_of = json.loads(text)
    numbers_of = fields_of["machine"]
    others = [
        {**numbers_of, "half_rows": 0},
        {**numbers_of, "half_rows": True},
        {**numbers_of, "half_rows": "4"},
        {**numbers_of, "half_rows": float("inf")},
        {**numbers_of, "half_rows": float("nan")},
        {**numbers_of, "more": 1.0},
        {"half_rows": 4.0},
        [],
        None,
    ]
    damaged = ["", text[:40], "hello", "[]", "[" * 10**4, "\udcff", json.dumps({**fields_of, "dtype": "float64"})]
    for each in [*damaged, *(json.dumps({**fields_of, "machine": other}) for other in others)]:
        place.write_text(each, errors="surrogateescape")
        assert load_machine(CPU, "float32") is None
    place.write_text(json.dumps({**fields_of, "machine": {**numbers_of, "half_rows": 4}}))
    assert load_machine(CPU, "float32") == replace(GPU, half_rows=4.0)
    place.unlink()
    place.mkdir()
    assert load_machine(CPU, "float32") is None


def test_off_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TNGRAPH_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    assert save_machine(GPU, CPU, "float32") is None
    assert load_machine(CPU, "float32") is None
    assert list(tmp_path.iterdir()) == []


def test_the_users_own_folder_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("TNGRAPH_CACHE")
    monkeypatch.setattr("tngraph.compiler.cache._default_folder", lambda: str(tmp_path / "tngraph" / "searches"))
    place = save_machine(GPU, CPU, "float32")
    assert place is not None
    assert place.parent == tmp_path / "tngraph" / "machines"
    assert load_machine(CPU, "float32") == GPU


def test_a_device_has_the_machine_that_was_measured(monkeypatch: pytest.MonkeyPatch):
    assert machine_for("cpu", torch.float32) == Machine()
    save_machine(GPU, describe_device("cpu"), "float32")
    assert machine_for("cpu", torch.float32) == machine_for(torch.device("cpu")) == GPU
    assert machine_for("cpu", torch.float64) == Machine()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert machine_for("cpu", torch.float32) == Machine()
    assert describe_device("cpu").endswith(", 77 threads")


def test_calibrate_keeps_what_it_finds(monkeypatch: pytest.MonkeyPatch):
    found = Calibration("cpu X, 2 threads", "float64", GPU, (), ())
    monkeypatch.setattr(calibration, "run_calibration", lambda *_: found)
    assert calibrate("cpu", torch.float64) == GPU
    assert load_machine("cpu X, 2 threads", "float64") == GPU


def test_a_plan_holds_the_numbers_it_was_made_with(tmp_path: Path):
    plan = tg.plan(tg.load(FC2), {"batch": 8}, minimize=GPU)
    plan.save(tmp_path / "plan.json")
    assert tg.load_plan(tmp_path / "plan.json").request.rate == GPU


# the command


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that take next to nothing."""
    monkeypatch.setattr(calibration, "LARGEST", 20_000)


@pytest.mark.usefixtures("few")
def test_calibrate_measures_shows_and_keeps(cache_folder: Path):
    result = CliRunner().invoke(app, ["calibrate", "--seconds", "0.3"])
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"{describe_device('cpu')}, float32"
    assert re.fullmatch(r"  operations per second +\S+ \[MAC/s\]", lines[1])
    assert "kernels kept from the fit: " in result.stdout
    (place,) = (cache_folder / "machines").iterdir()
    assert lines[-1] == f"kept in {place}"
    kept = load_machine(describe_device("cpu"), "float32")
    assert kept == machine_for("cpu")
    assert kept is not None
    planned = CliRunner().invoke(app, ["plan", FC2, "--batch", "8", "--minimize", "time", "--machine", "cpu"])
    assert planned.stdout == tg.plan(tg.load(FC2), {"batch": 8}, minimize=kept).table() + "\n"


@pytest.mark.usefixtures("few")
def test_calibrate_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for folder, end in (("off", "not kept: TNGRAPH_CACHE is off\n"), (str(tmp_path / "file" / "below"), "")):
        (tmp_path / "file").write_text("mine")
        monkeypatch.setenv("TNGRAPH_CACHE", folder)
        result = CliRunner().invoke(app, ["calibrate", "--seconds", "0.05"])
        assert result.stdout.endswith(end)
        assert (result.exit_code, result.stderr == "") == ((0, True) if end else (1, False))
    assert result.stderr.startswith("the numbers cannot be kept: ")


@pytest.mark.parametrize(
    ("args", "code", "error"),
    [
        (("calibrate", "--device", "nonsense"), 1, "the device 'nonsense' cannot be used\n  PyTorch says: "),
        (("calibrate", "--dtype", "int7"), 1, "the dtype is 'int7'\n"),
        (("calibrate", "--seconds", "0"), 1, "calibrating cannot take 0.0 seconds\n"),
        (("plan", FC2, "--minimize", "time", "--machine", "nonsense"), 1, "the device 'nonsense' cannot be used\n"),
        (("plan", FC2, "--machine", "cpu"), 2, "Usage: tngraph plan"),
    ],
)
def test_wrong_devices_and_numbers_are_errors(args: tuple[str, ...], code: int, error: str):
    result = CliRunner().invoke(app, args, prog_name="tngraph")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(error)


@pytest.mark.usefixtures("few")
def test_a_calibration_keeps_some_kernels_from_the_fit():
    found = run_calibration("cpu", torch.float64, 0.3)
    assert found.dtype == "float64"
    assert len(found.fitted) >= len(found.held_out)
    assert {each.kernel for each in found.fitted}.isdisjoint(each.kernel for each in found.held_out)
