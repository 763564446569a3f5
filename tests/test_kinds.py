"""The tables of kinds of operations and of PyTorch functions are whole, and what is not in them is rejected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest

import tngraph as tg
from tngraph.language import functions
from tngraph.lowering.calls import FUNCTIONS as SPELLINGS
from tngraph.lowering.calls import PRINTINGS
from tngraph.program.counts import keeps_values, price_operations, volume
from tngraph.program.expressions import Call
from tngraph.program.kinds import KINDS, entry_of
from tngraph.program.operations import Kind, Operation
from tngraph.program.pytorch import FUNCTIONS, POINTWISE
from tngraph.search.objectives import Request

SOFTMAX = Operation("softmax", (), (), "y")  # type: ignore[arg-type]


def test_every_kind_of_operation_has_an_entry():
    assert set(KINDS) == {kind for kinds in get_args(Kind) for kind in get_args(kinds)}


def test_every_pytorch_function_has_its_entries():
    assert set(PRINTINGS) == set(FUNCTIONS)
    assert set(POINTWISE) == set(functions.FUNCTIONS) == set(SPELLINGS)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: entry_of(SOFTMAX),
        lambda: volume([SOFTMAX], 0),
        lambda: keeps_values([SOFTMAX], [True], 0, ()),
        lambda: price_operations([SOFTMAX], Request(), {}),
    ],
)
def test_a_kind_without_an_entry_is_rejected(ask: Callable[[], Any]):
    with pytest.raises(LookupError, match=r"nothing is known of operations of kind 'softmax': add an entry in tngraph"):
        ask()


def test_a_call_of_a_function_without_an_entry_is_rejected():
    with pytest.raises(LookupError, match=r"nothing is known of the PyTorch function 'matmul': add an entry to FUNC"):
        Call("matmul", (), (), ())


@pytest.mark.parametrize("mode", ["infer", "train", "serve"])
@pytest.mark.parametrize("name", ["fc2_mpo", "fc_ntt"])
def test_the_work_that_is_counted_is_what_pytorch_counts(name: str, mode: str):
    program = tg.plan(tg.load(f"examples/specs/{name}.tn"), mode=mode).regimes[0].program
    assert program.lines
    for line in program.lines:
        assert _calls_counted(line.code) == (entry_of(program.operations[line.number]).unit == "MAC")


def _calls_counted(code: Any) -> bool:
    return isinstance(code, Call) and (code.torch.is_counted or any(map(_calls_counted, code.operands)))
