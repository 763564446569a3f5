"""An amplitude of a 53-qubit circuit: whole, in slices, over two processes, beside quimb."""

from __future__ import annotations

import sys
from math import log10
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

import tngraph as tg

pytest.importorskip("quimb")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import sycamore

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
BITS = "0" * 53


def run(rank: int, folder: str, plan: tg.Plan, arrays: sycamore.Arrays) -> None:
    """One of two processes; the first writes down what both found."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    value = sycamore.contract(plan, arrays)
    if rank == 0:
        Path(folder, "value").write_text(repr(value))
    torch.distributed.destroy_process_group()


def test_ten_cycles_agree_with_quimb(tmp_path: Path):
    circuit = sycamore.build_circuit(10)
    network, arrays = sycamore.amplitude_network(circuit, BITS)
    assert len(network.cores) == 164
    expected = complex(circuit.amplitude(BITS))
    search = tg.Search(trials=4)
    whole, sliced = (tg.plan(network, largest=most, search=search) for most in (None, 2**22))
    assert log10(whole.at().cost) < 9.8
    assert sliced.at().largest <= 2**22
    for plan in (whole, sliced):
        assert abs(sycamore.contract(plan, arrays) - expected) < 1e-4 * abs(expected)
    multiprocessing.spawn(run, (str(tmp_path), sliced, arrays), nprocs=2)
    assert abs(complex(tmp_path.joinpath("value").read_text()) - expected) < 1e-4 * abs(expected)
