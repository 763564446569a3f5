"""The benchmark's own parts: what its contenders compute, how turns are planned, what a page says. No timing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tngraph as tg
from tests.bench import report
from tests.bench.__main__ import PAGES, RESULTS
from tests.bench.cases import BY_NAME, CASES, Case
from tests.bench.contenders import (
    EINSUMS,
    OURS,
    Mode,
    Setting,
    as_contender,
    check,
    make_einsums,
    make_foreign,
    make_input,
    probe,
)
from tests.bench.einsums import contract_by_opt_einsum, contract_by_torch, contract_in_order
from tests.bench.libraries import LIBRARIES
from tests.bench.measuring import Clock, Neighbours, is_due, measure, plan_rounds
from tests.bench.results import add_roofline, count_bytes, summarise
from tests.bench.running import KEEPING, in_new_process

EXACT = Setting(torch.device("cpu"), torch.float64)
SINGLE = Setting(torch.device("cpu"), torch.float32)
LIGHT = [
    case for case in CASES if case.name not in ("vgg_fc1_adtn2", "vgg_fc2_adtn1", "vgg_fc1_large_mpo", "tt_4096_bond64")
]
"""Cases that take no second here."""
NAMED = pytest.mark.parametrize("case", LIGHT, ids=lambda case: case.name)


def small(case: Case) -> Case:
    return replace(case, image=(5, 4)) if case.image else case


def compiled(case: Case, mode: Mode, batch: int, setting: Setting) -> tg.Layer:
    return tg.compile(case.network, case.sizes(batch), mode=mode, minimize="time", dtype=setting.dtype)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take seconds for what is here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@NAMED
def test_the_einsum_of_a_case_is_the_compiled_layer(case: Case):
    case = small(case)
    layer = compiled(case, "train", 2, EXACT)
    x = make_input(case, 2, EXACT)
    expected = probe(as_contender(OURS, layer, EXACT), x, True)
    params = dict(layer.named_parameters())
    contractor = contract_by_torch if len(params) < 10 else contract_by_opt_einsum
    check(probe(make_einsums(layer.plan.merged, params, tuple(x.shape), contractor), x, True), expected, EXACT)


def test_a_wrong_contender_is_found_out():
    case = BY_NAME["monarch_4096"]
    layer = compiled(case, "infer", 2, EXACT)
    x = make_input(case, 2, EXACT)
    expected = probe(as_contender(OURS, layer, EXACT), x, False)
    params = {name: param + 0.01 for name, param in layer.named_parameters()}
    with pytest.raises(AssertionError):
        check(probe(make_einsums(case.network, params, tuple(x.shape), contract_by_torch), x, False), expected, EXACT)


@pytest.mark.parametrize("name", sorted(set(EINSUMS) - {"quimb"}))
def test_whoever_contracts_an_einsum_finds_the_same(name: str):
    case = BY_NAME["fc2_mpo"]
    layer = compiled(case, "infer", 3, EXACT)
    x = make_input(case, 3, EXACT)
    made = make_einsums(layer.plan.merged, dict(layer.named_parameters()), tuple(x.shape), EINSUMS[name])
    check(probe(made, x, True), probe(as_contender(OURS, layer, EXACT), x, True), EXACT)


@pytest.mark.parametrize("case", [c for c in CASES if c.kind in LIBRARIES["by hand"]], ids=lambda case: case.name)
def test_what_is_written_by_hand_is_the_compiled_layer(case: Case):
    case = small(case)
    layer = compiled(case, "infer", 2, SINGLE)
    x = make_input(case, 2, SINGLE)
    made = make_foreign(case, LIBRARIES["by hand"][case.kind], dict(layer.named_parameters()), SINGLE)
    check(probe(made, x, True), probe(as_contender(OURS, layer, SINGLE), x, True), SINGLE)


def test_gates_in_their_order_are_the_compiled_layer():
    network = tg.families.adtn((2, 2, 2), (2, 2, 2), layers=2)
    layer = tg.compile(network, {"batch": 2}, dtype=torch.float64)
    x = torch.randn(2, 8, dtype=torch.float64)
    made = make_einsums(network, dict(layer.named_parameters()), (2, 8), contract_in_order)
    torch.testing.assert_close(made.forward(x), layer(x))


def test_strides_dilations_and_offsets_are_windows():
    network = tg.families.cp(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(2, 1), rank=2)
    layer = tg.compile(network, dtype=torch.float64)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    made = make_einsums(network, dict(layer.named_parameters()), (2, 3, 9, 7), contract_by_torch)
    torch.testing.assert_close(made.forward(x), layer(x))


def test_rounds_are_spread_evenly_and_all_taken():
    for rounds in (3, 7, 61):
        assert sum(is_due(number, rounds, 61) for number in range(61)) == rounds
    assert plan_rounds(1.0, 1, 0.5) == 3
    assert plan_rounds(0.001, 5, 0.6) == 61


def test_a_contender_that_fails_leaves_the_others():
    def fail() -> None:
        raise ValueError("no memory")

    timings, failed = measure({"good": lambda: sum(range(100)), "bad": fail}, Clock(torch.device("cpu")), 0.02)
    assert list(timings) == ["good"]
    assert failed == {"bad": "ValueError: no memory"}
    assert timings["good"].rounds >= 3
    assert timings["good"].median > 0


def test_the_share_of_others_is_a_part():
    neighbours = Neighbours()
    sum(range(10**6))
    share = neighbours.share()
    assert share is None or 0 <= share <= 1


def test_a_dense_layer_counts_as_torch_counts_it():
    case = BY_NAME["conv_tt"]
    assert case.dense_params == sum(p.numel() for p in nn.Conv2d(64, 128, 3, bias=False).parameters())
    assert case.dense_flops(2, False) == 2 * 2 * 32 * 32 * case.dense_params
    assert count_bytes(case, 2, True, 100, 4) == 2 * 4 * (2 * (64 + 128) * 1024 + 100)


def cell(case: str, pass_: str, ours: float, others: dict[str, float], flops: int) -> dict[str, Any]:
    times = {OURS: ours, **others}
    timings = {name: {"median": t, "spread": 0.02, "rounds": 5, "repeats": 1} for name, t in times.items()}
    made = {
        "case": case,
        "batch": 32,
        "pass": pass_,
        "timings": timings,
        "ratios": {name: t / ours for name, t in others.items()},
        "omitted": {"tednet": "has no | such layer"},
        "plan_flops": flops,
        "dense_flops": 10**10,
        "compulsory_bytes": 10**6,
        "choice": {"model": 1.0, "measured": 1.5, "best": 1.0},
        "plan_says_dense": others["dense"] < ours,
        "disturbed": 0.01,
        "rates": {name: rate / 2 for name, rate in RATES.items()},
    }
    return add_roofline(made, RATES)


RATES = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}
CELLS = (
    cell("fc2_mpo", "forward", 0.1, {"dense": 0.4, "cotengra": 0.2, "quimb": 0.3}, 2 * 10**9),
    cell("fc2_mpo", "forward+backward", 0.2, {"dense": 0.1, "cotengra": 0.1, "torch.compile": 0.01}, 5 * 10**9),
    cell("conv_cp", "forward", 1e-3, {"dense": 2e-3}, 10**7),
)


def test_a_summary_is_what_is_asked():
    found = summarise(CELLS)
    assert found["fastest_rival"] == {
        "cells": 2,
        "geometric_mean": pytest.approx(1.0),
        "minimum": 0.5,
        "slow": {"fc2_mpo, batch 32, forward+backward": 0.5},
    }
    ideal = (0.2 * 0.25) ** 0.5
    assert found["roofline"] == {
        "cells": 2,
        "geometric_mean": pytest.approx(ideal),
        "in_turns": pytest.approx(2 * ideal),
    }
    assert found["dense_with_fewer_flops"]["cells"] == 3
    assert found["dense_with_fewer_flops"]["minimum"] == 0.5
    assert found["dense_with_fewer_flops"]["said"] == ["fc2_mpo, batch 32, forward+backward"]
    assert found["dense_with_far_fewer_flops"] == {"cells": 2, "geometric_mean": pytest.approx(8**0.5)}
    assert found["contenders"]["quimb"]["forward"] == {"cells": 1, "geometric_mean": pytest.approx(3.0)}
    assert found["contenders"]["quimb"]["forward+backward"] == {"cells": 0, "geometric_mean": None}


@pytest.mark.parametrize("device", RESULTS)
def test_the_pages_are_made_of_the_results(device: str):
    assert PAGES[device].read_text() == report.page(json.loads(RESULTS[device].read_text()))


def test_a_page_has_every_cell_and_every_reason():
    machine = {
        "processor": "A chip",
        "accelerator": None,
        "cores": 2,
        "threads": 2,
        "dtype": "float32",
        "device": "cpu",
    }
    machine |= {"python": "3.11", "torch": "2.13", "libraries": {"quimb": "1.15", "tednet": None}}
    method = {"budget": 4.0, "seconds_per_turn": 0.005, "most_rounds": 61, "least_rounds": 3, "too_long": 2.0}
    method |= {"environment": {"KEEP": "all"}}
    about = [{"name": n, "about": "a layer", "params": 5, "dense_params": 50} for n in ("fc2_mpo", "conv_cp")]
    page = report.page(
        {"machine": {**machine, **RATES}, "method": method, "cases": about, "cells": CELLS, "summary": summarise(CELLS)}
    )
    assert page.startswith("# Performance\n")
    assert "**Not measured in this run:** vgg_fc1_mpo, " in page
    assert "A chip, 2 cores, 2 threads, float32" in page
    assert "started with `KEEP=all`" in page
    assert "| fc2_mpo | 32 | 100 ms | – | 4.00 | 2.00 | 3.00 | 2.00 cotengra | 0.2 | 20 % |" in page
    assert "| the same, with rates measured in turns with each layer | 2 | 45 % | |" in page
    assert "- fc2_mpo, batch 32, forward+backward: 0.50\n" in page
    assert "- fc2_mpo, batch 32, forward+backward: 0.50, as the plan says\n" in page
    assert "| tednet | fc2_mpo, conv_cp | has no ¦ such layer |" in page
    assert [table.row_count for table in report.tables({"cells": CELLS})] == [2, 1]
    assert max(map(len, page.split("\n## Summary")[0].splitlines())) <= 120


def test_a_case_runs_in_a_process_of_its_own_that_keeps_its_memory():
    assert in_new_process(os.getpid) not in (os.getpid(), in_new_process(os.getpid))
    assert {name: in_new_process(os.getenv, name) for name in KEEPING} == KEEPING


def test_a_case_does_not_outlive_the_run(tmp_path: Path):
    noted = tmp_path / "pid"
    code = f"import os, time; open({str(noted)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    asking = f"from tests.bench.running import in_new_process; in_new_process(exec, {code!r})"
    run = subprocess.Popen([sys.executable, "-c", asking])
    wait_until(lambda: noted.exists() and noted.read_text() != "")
    run.kill()
    run.wait()
    wait_until(lambda: not is_running(noted.read_text()))


def is_running(process: str) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
