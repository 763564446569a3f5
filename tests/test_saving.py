"""Plans as files: saved and loaded they are equal, and a file that is not what it says is refused with a reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

import tngraph as tg
from tests.networks import TABLE, networks
from tngraph.language.network import Core, Network
from tngraph.plans import loading
from tngraph.plans.loading import parse_plan
from tngraph.plans.plan import Plan
from tngraph.plans.saving import digest, format_plan_file
from tngraph.search.machine import Machine
from tngraph.search.region import Topology
from tngraph.search.trees import build_tree

FC2 = "examples/specs/fc2_mpo.tn"
SHARED = """network shared { size batch; input x[batch, i:40]; param a[i, j:40]; param b[j, k:2]; param c[j, k]
  h[batch, j] = x * a; y[batch, k] = h * b; z[batch, k] = h * c; output y[batch, k]; output z[batch, k] }"""
CONV = "network conv { size batch; input x[batch, p:9]; param w[k:3, o:2]; param v[o, r:2]; index h: 7\n" + (
    "  y[batch, h, r] = x[batch, h + k] * w * v; output y[batch, h, r] }"
)


def again(plan: Plan) -> Plan:
    return parse_plan(format_plan_file(plan).encode())


def fields_of(plan: Plan) -> dict[str, Any]:
    return json.loads(format_plan_file(plan))


@given(networks())
def test_a_plan_that_is_loaded_is_the_one_that_was_saved(network: Network):
    plan = tg.plan(network)
    assert again(plan) == plan
    assert tg.emit(again(plan)) == tg.emit(plan)


@pytest.mark.parametrize("name", TABLE)
def test_a_plan_of_each_feature_is_loaded_as_it_was(name: str):
    plan = tg.plan(TABLE[name], mode="train")
    assert again(plan) == plan


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "train", "requires_grad": {"w1": False, "x": False}},
        {"mode": "serve", "memory_limit": 4096},
        {"sizes": {"batch": 64}, "minimize": "memory"},
        {"sizes": {"batch": 64}, "memory_limit": 400_000},
        {"minimize": {"flops": 0.3, "writes": 7}},
        {"minimize": "time", "sizes": {"batch": 5, "D": 3}},
        {"minimize": Machine(elements_per_second=1e9)},
        {"order": "((x w1) (w2 (w3 w4)))"},
        {"order": "w1 w2", "mode": "train", "itemsize": 2},
    ],
    ids=str,
)
def test_what_was_asked_is_kept(options: dict[str, Any], tmp_path: Path):
    plan = tg.plan(tg.load(FC2), **options)
    plan.save(tmp_path / "plan.json")
    loaded = tg.load_plan(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.unpinned == plan.unpinned
    assert str(loaded) == str(plan)


def test_equations_that_were_inlined_are_inlined_again():
    plan = tg.plan(tg.parse(SHARED), {"batch": 1000})
    kept = tg.plan(tg.parse(SHARED), {"batch": 1})
    assert [fields_of(each)["plan"]["inlined"] for each in (plan, kept)] == [["h"], []]
    assert again(plan) == plan
    assert again(kept) == kept


def test_a_tree_that_runs_slice_by_slice_is_kept():
    plan = tg.plan(tg.load(FC2), {"batch": 4})
    (regime,) = plan.regimes
    region = regime.stages[0].trees[0].region
    bond = next(leg for leg in region.accesses[1].legs if leg.name == "b1")
    topology = Topology(region, plan.sizes, sliced=(bond,))
    sliced = build_tree(topology, [(0, 1), (5, 2), (6, 3), (7, 4)], is_proven=False)
    stages = (replace(regime.stages[0], trees=(sliced, *regime.stages[0].trees[1:])),)
    changed = Plan((replace(regime, stages=stages),))
    assert again(changed) == changed
    data = fields_of(changed)
    tree(data)["sliced"] = ["b1", "b1"]
    with pytest.raises(tg.PlanError) as error:
        parse_plan(json.dumps(data).encode())
    assert str(error.value) == "<text>: regime 1, 'y', term 1 runs for each value of 'b1', which cannot be cut there"


def test_what_runs_once_more_is_kept():
    plan = tg.plan(tg.load(FC2), {"batch": 64}, mode="train", memory_limit=300_000)
    assert plan.regimes[0].recomputed == ((7, 11),)
    assert again(plan) == plan
    assert tg.emit(again(plan)) == tg.emit(plan)


@pytest.mark.parametrize(
    ("intervals", "complaint"),
    [
        ([[7, 99]], "7, 99 once more, which are not the ends of operations"),
        ([[11, 7]], "11, 7 once more, which are not the ends of operations"),
        ([[7, 8], [8, 9]], "8, 9 once more, which are not the ends of operations"),
        ([[0, 8]], "0, 8 once more, and values of these are used elsewhere"),
    ],
)
def test_what_cannot_run_once_more_is_refused(intervals: object, complaint: str):
    data = fields_of(tg.plan(tg.load(FC2), {"batch": 64}, mode="train", memory_limit=300_000))
    data["plan"]["regimes"][0]["recomputed"] = intervals
    with pytest.raises(tg.PlanError) as error:
        parse_plan(json.dumps(data).encode())
    assert str(error.value) == f"<text>: regime 1 computes {complaint}"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan, place = tg.plan(tg.load(FC2), {"batch": 1}), tmp_path / "plan.json"
    place.write_text("mine")

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(tg.PlanError) as error:
            plan.save(place)
    assert str(error.value) == f"{place} cannot be written: {os.strerror(28).lower()}"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    plan.save(place)
    assert tg.load_plan(place) == plan


def test_a_function_cannot_be_saved():
    plan = tg.plan(tg.load(FC2), {"batch": 1}, minimize=lambda work: work.operations)
    with pytest.raises(tg.PlanError) as error:
        format_plan_file(plan)
    text = "a plan that minimizes a function of a step cannot be saved\n  a file holds no code"
    assert str(error.value) == text


def test_a_network_longer_than_a_text_may_be_cannot_be_saved():
    network = tg.parse("network long { input x[i:2]; y[] = x * x; output y[] }")
    extra = tuple(Core(f"w{k}", network.cores[0].legs, "param") for k in range(20_001))
    network = replace(network, cores=(*network.cores, *extra))
    with pytest.raises(tg.PlanError, match="long cannot be saved: its text is not read back"):
        format_plan_file(tg.plan(network))


# what is wrong with a file


Edit = Callable[[dict[str, Any]], object]


def tree(data: dict[str, Any]) -> dict[str, Any]:
    return data["plan"]["regimes"][0]["equations"][0]["terms"][0]


def move(data: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return tree(data)["moves"][number]


def set_network(data: dict[str, Any], old: str, new: str) -> None:
    """Another network with the sum that belongs to it."""
    assert old in data["network"]
    data["network"] = data["network"].replace(old, new)
    data["sha256"] = digest(data["network"])


WRONG: dict[str, tuple[Edit, str]] = {
    "another format": (
        lambda d: d.update(format="other"),
        "the file is not a plan\n  a plan has 'format': 'tngraph plan'",
    ),
    "another version": (
        lambda d: d.update(version=1),
        "the plan is of version 1, and this tngraph reads version 2",
    ),
    "a field too few": (lambda d: d.pop("request"), "the plan: object missing required field 'request'"),
    "a field too many": (lambda d: d.update(code="x"), "the plan: object contains unknown field 'code'"),
    "a field of another kind": (
        lambda d: d["plan"].update(regimes={}),
        "regimes: expected a list, got an object",
    ),
    "an edited network": (
        lambda d: d.update(network=d["network"].replace("relu", "tanh")),
        "the network is not the one that was saved: its sha256 is another",
    ),
    "a network that is none": (
        lambda d: set_network(d, "relu(x", "relo(x"),
        "the network cannot be read\nnetwork:12:30: there is no pointwise function 'relo'\n"
        "      y[batch, o1, o2, o3, o4] = relo(x * w1 * w2 * w3 * w4 + bias)\n"
        "                                 ^\n  did you mean 'relu'?",
    ),
    "a network with one core less": (
        lambda d: set_network(d, " * w4", ""),
        "regime 1, 'y', term 1, move 2 takes the value 0, which is not there",
    ),
    "a mode that there is not": (
        lambda d: d["request"].update(mode="dream"),
        "the mode is 'dream'\n  modes: infer, train, serve",
    ),
    "an objective that is none": (
        lambda d: d["request"].update(minimize=["flops"]),
        "request, minimize: expected a text or an object, got a list",
    ),
    "a machine that stands still": (
        lambda d: d["request"].update(minimize={"machine": {**asdict(Machine()), "operations_per_second": 0}}),
        "the 'operations_per_second' of the machine is 0, and not a positive number",
    ),
    "a gradient of nothing": (
        lambda d: d["request"].update(trained=["w9"]),
        "requires_grad names 'w9'\n  tensors: x, w1, w2, w3, w4, bias",
    ),
    "a size too few": (lambda d: d["sizes"].pop("D"), "the sizes are batch, and those of the network batch, D"),
    "a size that is none": (
        lambda d: d["sizes"].update(D=0),
        "the size 'D' is 0, and not a positive integer",
    ),
    "a size that is true": (
        lambda d: d["sizes"].update(D=True),
        "the size 'D' is True, and not a positive integer",
    ),
    "an equation that cannot be inlined": (
        lambda d: d["plan"].update(inlined=["y"]),
        "the equation 'y' cannot be written into its readers",
    ),
    "a free size that is fixed": (
        lambda d: d["plan"].update(free=["D"]),
        "the free sizes are 'D', and not run-time sizes in their order",
    ),
    "no regimes": (
        lambda d: d["plan"].update(regimes=[]),
        "the plan has 0 regimes\n  it has 1, and up to 1,000 with a free size",
    ),
    "too many regimes": (
        lambda d: d["plan"].update(regimes=d["plan"]["regimes"] * 501),
        "the plan has 1,002 regimes\n  it has 1, and up to 1,000 with a free size",
    ),
    "two regimes of no size": (
        lambda d: d["plan"].update(free=[]),
        "the plan has 2 regimes\n  it has 1, and up to 1,000 with a free size",
    ),
    "a gap between regimes": (
        lambda d: d["plan"]["regimes"][1].update(first=9),
        "regime 2 is from 9 to None, which does not continue the one before",
    ),
    "regimes without an end": (
        lambda d: d["plan"]["regimes"][1].update(last=9),
        "regime 2 is from 2 to 9, which does not continue the one before",
    ),
    "an equation too few": (
        lambda d: d["plan"]["regimes"][0]["equations"].pop(),
        "regime 1 has the equations , and its network y",
    ),
    "a term too few": (
        lambda d: d["plan"]["regimes"][0]["equations"][0]["terms"].pop(),
        "regime 1 has 1 trees for the 2 terms of 'y'",
    ),
    "a regime that begins nowhere": (
        lambda d: d["plan"]["regimes"][0].update(first=0),
        "regime 1, first: expected an integer >= 1",
    ),
    "a move too few": (lambda d: tree(d)["moves"].pop(), "regime 1, 'y', term 1 leaves 2 values and not one"),
    "a move too many": (
        lambda d: tree(d)["moves"].append({"operands": [8, 0]}),
        "regime 1, 'y', term 1, move 5 takes the value 0, which is not there",
    ),
    "a move of nothing": (
        lambda d: move(d).update(operands=[]),
        "regime 1, 'y', term 1, move 1 joins no two values and lays out none",
    ),
    "a move without operands": (
        lambda d: move(d).update(operands="12"),
        "regime 1, equation 1, term 1, move 1, operands: expected a list, got a text",
    ),
    "an operand of another kind": (
        lambda d: move(d).update(operands=[1, True]),
        "regime 1, equation 1, term 1, move 1, operand 2: expected an integer, got a truth value",
    ),
    "an operand that is not there": (
        lambda d: move(d).update(operands=[1, 12]),
        "regime 1, 'y', term 1, move 1 takes the value 12, which is not there",
    ),
    "an operand twice": (
        lambda d: move(d).update(operands=[1, 1]),
        "regime 1, 'y', term 1, move 1 takes the value 1, which is not there",
    ),
    "an operand of before": (
        lambda d: move(d, 1).update(operands=[5, 2]),
        "regime 1, 'y', term 1, move 2 takes the value 2, which is not there",
    ),
    "another order with the layouts of before": (
        lambda d: tree(d).update(moves=[{"operands": pair} for pair in ([0, 2], [1, 3], [5, 6], [7, 4])]),
        "regime 1, 'y', term 1, matmul 1 has the leg 'o1', which its operands do not have",
    ),
    "a convolution without a window": (
        lambda d: move(d).update(is_transposed=True),
        "regime 1, 'y', term 1, move 1 joins values by a transposed convolution, which they do not allow",
    ),
    "a slice of nothing": (
        lambda d: tree(d).update(sliced=["nothing"]),
        "regime 1, 'y', term 1 runs for each value of 'nothing', which cannot be cut there",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_was_changed_is_refused(name: str, tmp_path: Path):
    edit, complaint = WRONG[name]
    data = fields_of(tg.plan(tg.load(FC2)))
    assert len(data["plan"]["regimes"]) == 2
    edit(data)
    place = tmp_path / "plan.json"
    place.write_text(json.dumps(data))
    with pytest.raises(tg.PlanError) as error:
        tg.load_plan(place)
    assert str(error.value) == f"{place}: {complaint}"


def test_the_unpinned_plan_is_not_believed_either():
    data = fields_of(tg.plan(tg.load(FC2), {"batch": 1}, order="x w1"))
    data["unpinned"]["regimes"][0]["equations"][0]["terms"][0]["moves"][0]["operands"] = [0, 9]
    with pytest.raises(tg.PlanError, match="regime 1, 'y', term 1, move 1 takes the value 9"):
        parse_plan(json.dumps(data).encode())


def test_a_read_is_laid_out_only_where_it_is_folded():
    plan = tg.plan(tg.parse(CONV), {"batch": 3})
    for reads, complaint in (
        ([0], "leaves 3 values"),
        ([7], "move 1 lays out a read that is resolved there"),
        ([], "move 1 joins no two values and lays out none"),
    ):
        data = fields_of(plan)
        tree(data)["moves"] = [{"operands": [0], "reads": reads}]
        with pytest.raises(tg.PlanError) as error:
            parse_plan(json.dumps(data).encode())
        assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "the file is not JSON: Input data was truncated"),
        (b"\xff", "the file is not JSON: invalid character (byte 0)"),
        (b'{"version": ' + b"[" * 10**5, "the file is nested too deep for a plan"),
        (b'{"version": NaN}', "the file is not JSON: invalid character (byte 12)"),
        (b"[1]", "the file is not a plan\n  a plan has 'format': 'tngraph plan'"),
        (b"network n { }", "the file is not JSON: invalid character (byte 4)"),
    ],
)
def test_what_is_no_plan_is_refused(data: bytes, complaint: str):
    with pytest.raises(tg.PlanError) as error:
        parse_plan(data, "f.json")
    assert str(error.value) == f"f.json: {complaint}"


def test_a_long_number_is_refused():
    with pytest.raises(tg.PlanError, match="version: integer value out of range"):
        parse_plan(b'{"version": ' + b"9" * 10**5 + b"}")


def test_a_file_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "LONGEST_PLAN", 10)
    with pytest.raises(tg.PlanError) as error:
        parse_plan(b" " * 11, "f.json")
    assert str(error.value) == "f.json: the file is longer than 10 bytes"


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(tg.PlanError) as error:
        tg.load_plan(tmp_path / "none.json")
    reason = os.strerror(2).lower()
    assert str(error.value) == f"{tmp_path / 'none.json'}: {reason}\n  give the path of a saved plan"


def test_a_file_cannot_make_an_equation_explode():
    """Each of these squares the one before: inlined, the last would have 2^40 factors."""
    lines = [f"y{k}[i] = y{k - 1} * y{k - 1}" for k in range(1, 41)]
    text = "\n".join(["network deep { input x[i:2]", "y0[i] = x * x", *lines, "output y40[i] }"])
    data = fields_of(tg.plan(tg.parse(text)))
    data["plan"]["inlined"] = [f"y{k}" for k in range(39, -1, -1)]
    with pytest.raises(tg.PlanError) as error:
        parse_plan(json.dumps(data).encode())
    assert str(error.value) == "<text>: the equation 'y30' is read too often to be written into its readers"


def test_an_error_quotes_no_whole_file():
    data = fields_of(tg.plan(tg.load(FC2)))
    data["request"]["minimize"] = "x" * 10**6
    with pytest.raises(tg.PlanError) as error:
        parse_plan(json.dumps(data).encode())
    assert len(str(error.value)) < 5000


def test_characters_that_are_none_are_refused():
    data = fields_of(tg.plan(tg.load(FC2)))
    data["network"] = "network \ud800 {}"
    with pytest.raises(tg.PlanError, match="the file is not JSON: unexpected end of hex escape"):
        parse_plan(json.dumps(data).encode())
