"""Slices spread over processes of ``torch.distributed``, on real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import multiprocessing

import tngraph as tg
from tngraph.modules.distributed import spread_slices

COMPLEX = tg.from_einsum("ab,bc,cd,da->", dict(zip("abcd", (3, 4, 5, 2), strict=True)))


def sliced_plan() -> tg.Plan:
    return tg.plan(tg.load("examples/specs/fc2_mpo.tn"), {"batch": 16}, largest=500)


def run(rank: int, folder: str) -> None:
    """One of two processes: its part of two layers, which add up to the whole."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = tg.compile(sliced_plan(), dtype=torch.float64)
    x = torch.randn(16, 784, dtype=torch.float64)
    whole = layer(x)
    spread_slices(layer)
    assert (layer.first_slice, layer.slice_step) == (rank, 2)
    torch.testing.assert_close(layer(x), whole, rtol=1e-12, atol=1e-12)
    ring = tg.compile(tg.plan(COMPLEX, largest=2), dtype=torch.complex128)
    tensors = [torch.randn([int(leg.size) for leg in port.legs], dtype=torch.complex128) for port in COMPLEX.inputs]
    alone = ring(*tensors)
    torch.testing.assert_close(spread_slices(ring)(*tensors), alone, rtol=1e-12, atol=1e-12)
    torch.distributed.destroy_process_group()


def test_two_processes_add_up_to_one(tmp_path: Path):
    multiprocessing.spawn(run, (str(tmp_path),), nprocs=2)


def test_what_cannot_be_spread_is_said():
    with pytest.raises(tg.PlanError) as caught:
        spread_slices(tg.compile(tg.load("examples/specs/fc2_mpo.tn")))
    assert str(caught.value) == (
        "fc2_mpo has no slices to spread\n"
        "  plan it with largest=…, the most elements of a value, or with a memory limit"
    )
    with pytest.raises(tg.PlanError) as caught:
        spread_slices(tg.compile(sliced_plan()))
    assert str(caught.value) == (
        "there are no processes to spread slices over\n  call torch.distributed.init_process_group first"
    )
