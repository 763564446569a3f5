"""The command line: what it prints where, how it exits, and what it leaves alone."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tngraph
from tngraph.cli import app
from tngraph.language.families import FAMILIES
from tngraph.options import parse_bytes
from tngraph.report.fitting import show_fit_progress

ROOT = Path(__file__).parent.parent
SPECS = ROOT / "examples" / "specs"
FC2, RING = str(SPECS / "fc2_mpo.tn"), str(SPECS / "ring_tied.tn")
WRONG = "network wrong {\n  input x[i:2]\n  y[i] = z\n  output y[i]\n}\n"
TWO = """
network first { size batch; input x[batch, i:3]; param w[i, j:2]; y[batch, j] = x * w; output y[batch, j] }
network second { size n = 2; input x[i:n]; buffer shift[i]; y[i] = relu(x + shift); output y[i] }
"""


def invoke(*args: str, stdin: str | None = None):
    return CliRunner().invoke(app, args, input=stdin, prog_name="tngraph")


def run(*args: str, code: str | None = None, **options) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, or some code that has it as its arguments."""
    command = ["-m", "tngraph"] if code is None else ["-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command, *args], capture_output=True, text=True, timeout=120, env=environment, **options
    )


@pytest.fixture
def two(tmp_path) -> str:
    (tmp_path / "two.tn").write_text(TWO)
    return str(tmp_path / "two.tn")


@pytest.fixture
def wrong(tmp_path) -> str:
    (tmp_path / "wrong.tn").write_text(WRONG)
    return str(tmp_path / "wrong.tn")


def error_of(*args, **options) -> str:
    """The text of the error that `tngraph.load` raises."""
    with pytest.raises(tngraph.TngraphError) as error:
        tngraph.load(*args, **options)
    return f"{error.value}\n"


# check


def test_check_counts_and_goes_on_after_an_error(wrong):
    result = invoke("check", FC2, wrong, RING)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{FC2}: ok, network fc2_mpo: 2 sizes, 1 input, 5 params, 1 equation",
        f"{wrong}: wrong",
        f"{RING}: ok, network ring_tied: 2 sizes, 1 input, 1 param, 1 equation",
    ]
    assert result.stderr == error_of(wrong)


def test_check_as_json_has_the_same_keys_for_right_and_wrong(wrong):
    result = invoke("check", FC2, wrong, "--json")
    assert result.exit_code == 1
    right, other = json.loads(result.stdout)["files"]
    assert right == {
        "file": FC2,
        "is_ok": True,
        "error": None,
        "warnings": [],
        "network": "fc2_mpo",
        "size_count": 2,
        "input_count": 1,
        "param_count": 5,
        "equation_count": 1,
    }
    assert list(other) == list(right)
    assert other["is_ok"] is False
    assert other["error"] + "\n" == error_of(wrong)


SILENT = """network silent {
  size batch; size D = 3
  input x[batch, i:5]
  index ii: 5
  param w[i, o:4]
  param gone[i]
  W[(i), (o)] = cp(rank=9)
  y[batch, o] = x[batch, ii] * w + x * W
  output y[batch, o]
}
"""
WARNINGS = """warning: <stdin>:2:20: the size 'D' is used nowhere
      size batch; size D = 3
                       ^
  use it, or take it away
warning: <stdin>:6:9: the param 'gone' is used nowhere
      param gone[i]
            ^
  use it, or take it away
warning: <stdin>:7:3: the bond 'W.r' is cut from 9 to 4: more than 4 cannot matter
      W[(i), (o)] = cp(rank=9)
      ^
warning: <stdin>:8:26: 'ii' on 'x' and 'i' on 'w' join nothing: each is summed alone
      y[batch, o] = x[batch, ii] * w + x * W
                             ^
  did you mean 'i' for 'ii'?
"""


def test_check_warns_of_silent_mistakes_and_refuses_them_under_strict():
    counts = "network silent: 2 sizes, 1 input, 4 params, 2 equations; 4 warnings\n"
    result = invoke("check", "-", stdin=SILENT)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"-: ok, {counts}", WARNINGS)
    result = invoke("check", "-", "--strict", stdin=SILENT)
    assert (result.exit_code, result.stdout, result.stderr) == (1, f"-: wrong, {counts}", WARNINGS)
    assert invoke("check", FC2, "--strict").exit_code == 0


def test_warnings_are_in_the_json_of_check():
    (record,) = json.loads(invoke("check", "-", "--json", "--strict", stdin=SILENT).stdout)["files"]
    assert (record["is_ok"], record["error"], record["network"]) == (False, None, "silent")
    assert record["warnings"][3] == {
        "message": "'ii' on 'x' and 'i' on 'w' join nothing: each is summed alone",
        "hint": "did you mean 'i' for 'ii'?",
        "line": 8,
        "column": 26,
    }
    assert [warning["line"] for warning in record["warnings"]] == [2, 6, 7, 8]


@pytest.mark.parametrize("command", ["plan", "emit"])
def test_other_commands_warn_once_and_go_on(command):
    result = invoke(command, "-", "--set", "D=4", stdin=SILENT)
    assert (result.exit_code, result.stderr) == (0, WARNINGS)
    assert result.stdout


def test_check_reads_standard_input():
    result = invoke("check", "-", stdin=TWO)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "-: ok, network second: 1 size, 1 input, 0 params, 1 equation\n"


def test_an_error_in_standard_input_says_so():
    result = invoke("check", "-", stdin=WRONG)
    assert result.exit_code == 1
    assert result.stderr.startswith("<stdin>:3:10: ")


@pytest.mark.parametrize("command", ["check", "plan", "emit", "verify"])
def test_a_file_that_cannot_be_read_is_an_error(command, tmp_path):
    hint = "\n  give the path of a spec file\n"
    for path, reason in ((tmp_path / "none.tn", os.strerror(errno.ENOENT)), (tmp_path, os.strerror(errno.EISDIR))):
        result = invoke(command, str(path))
        assert (result.exit_code, result.stderr) == (1, f"{path}: {reason.lower()}{hint}")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (2**20 + 1)], ids=["not UTF-8", "too long"])
def test_a_file_is_refused_as_load_refuses_it(tmp_path, content):
    path = tmp_path / "bad.tn"
    path.write_bytes(content)
    with pytest.raises(tngraph.TngraphError) as error:
        tngraph.load(path)
    assert invoke("check", str(path)).stderr == f"{error.value}\n"


# new


def test_new_writes_a_spec_that_is_right_and_verifies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("new", "first")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "wrote first.tn; next:\n  tngraph check first.tn\n  tngraph plan first.tn --batch 64\n"
        "  tngraph verify first.tn\n  tngraph emit first.tn\n"
    )
    assert "network first {" in Path("first.tn").read_text()
    for command in result.stdout.splitlines()[1:]:
        told = invoke(*command.split()[1:])
        assert (told.exit_code, told.stderr) == (0, "")
    assert invoke("check", "first.tn", "--strict").exit_code == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_new_starts_from_any_family(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("new", "n1", "--family", family).exit_code == 0
    assert tngraph.load("n1.tn").name == "n1"
    assert tngraph.check("n1.tn") == ()


def test_new_overwrites_nothing_unless_it_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("first.tn").write_text("mine")
    result = invoke("new", "first")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "first.tn exists\n  --force overwrites a file\n"
    assert Path("first.tn").read_text() == "mine"
    assert invoke("new", "first", "--force").exit_code == 0
    assert Path("first.tn").read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("../up",),
            "'../up' cannot name a network\n"
            "  a name is ASCII letters, digits and underscores, at most 128, and starts with no digit\n",
        ),
        (("a.b",), "'a.b' cannot name a network\n  only tensors and indices have dots in their names\n"),
        (("n", "--family", "mpa"), "there is no family 'mpa'\n  did you mean 'mpo'?\n"),
    ],
)
def test_new_refuses_what_is_no_name(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("new", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", expected)
    assert list(tmp_path.iterdir()) == []


# plan


def test_plan_prints_the_table_of_the_plan():
    made = tngraph.plan(tngraph.load(FC2, sizes={"D": 8}), {"batch": 128})
    result = invoke("plan", FC2, "--batch", "128", "--set", "D=8")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == made.table() + "\n"


def test_plan_as_json_agrees_with_the_plan():
    record = json.loads(invoke("plan", FC2, "--batch", "7", "--set", "D=3", "--json").stdout)
    made = tngraph.plan(tngraph.load(FC2, sizes={"D": 3}), {"batch": 7})
    counts = made.at(batch=7, D=3)
    keys = {
        "params_elements": "params",
        "macs": "macs",
        "flops": "flops",
        "elementwise_operations": "elementwise",
        "largest_elements": "largest",
        "peak_bytes": "peak",
        "saved_bytes": "saved",
        "cost_operations": "cost",
    }
    for key, name in keys.items():
        assert record[key] == getattr(counts, name)
        assert record["formulas"][key] == str(getattr(made, name))
    assert record["sizes"] == {"batch": 7, "D": 3}
    assert record["region_count"] == record["proven_region_count"] == 2
    assert [step["step"] for step in record["steps"]] == [1, 2, 3, 4, 5, 6]
    assert sum(step["macs"] for step in record["steps"]) == record["macs"]
    assert sum(step["elementwise_operations"] for step in record["steps"]) == record["elementwise_operations"]
    assert max(step["size_elements"] for step in record["steps"]) == record["largest_elements"]


def test_the_dense_weight_is_null_where_there_is_none(two):
    dense = json.loads(invoke("plan", FC2, "--json").stdout)
    none = json.loads(invoke("plan", str(SPECS / "fc_ntt.tn"), "--json").stdout)
    assert list(dense) == list(none)
    for spec, record in ((FC2, dense), (SPECS / "fc_ntt.tn", none)):
        made = tngraph.plan(tngraph.load(spec))
        assert (made.dense is None) == (record["dense_macs"] is None) == (record["formulas"]["dense_macs"] is None)
    assert dense["dense_params_elements"] == 784 * 256 + 256


def test_a_size_that_bounds_a_loop_is_set_while_reading():
    record = json.loads(invoke("plan", RING, "--set", "n=8", "--set", "batch=5", "--json").stdout)
    made = tngraph.plan(tngraph.load(RING, sizes={"n": 8}), {"batch": 5})
    assert record["flops"] == made.at().flops
    assert len(made.network.inputs[0].legs) == 9


def test_several_networks(two):
    assert json.loads(invoke("plan", two, "--json").stdout)["network"] == "second"
    assert json.loads(invoke("plan", two, "--network", "first", "--json").stdout)["network"] == "first"
    result = invoke("plan", two, "--network", "fisrt")
    assert (result.exit_code, result.stderr) == (1, error_of(two, "fisrt"))


@pytest.mark.parametrize("command", ["check", "plan", "emit", "verify"])
def test_an_unknown_size_is_an_error_of_the_input(command):
    result = invoke(command, FC2, "--set", "DD=8")
    assert (result.exit_code, result.stdout.replace(f"{FC2}: wrong\n", "")) == (1, "")
    assert result.stderr == error_of(FC2, sizes={"DD": 8})


@pytest.mark.parametrize("command", ["check", "plan", "emit", "verify"])
def test_a_size_that_is_not_positive_is_an_error_of_the_input(command):
    result = invoke(command, FC2, "--batch", "0")
    assert result.exit_code == 1
    assert result.stderr == "the size 'batch' cannot be 0\n  a size is an integer from 1 to 2**62\n"


@pytest.mark.parametrize(
    "args",
    [
        ("--set", "D"),
        ("--set", "D=x"),
        ("--set", "D=1.5"),
        ("--set", "D=" + "9" * 5000),
        ("--set", "D=2", "--set", "D=3"),
        ("--set", "batch=2", "--batch", "3"),
        ("--batch", "many"),
        ("--seed", "-1"),
        ("--nonsense",),
        ("another.tn",),
    ],
)
def test_wrong_usage_exits_with_2(args):
    result = invoke("plan", FC2, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: tngraph plan [OPTIONS]")


def test_plan_is_asked_for_by_options():
    args = (
        "--batch",
        "64",
        "--mode",
        "train",
        "--minimize",
        "writes",
        "--memory-limit",
        "1MiB",
        "--frozen",
        "w1",
        "--frozen",
        "x",
    )
    made = tngraph.plan(
        tngraph.load(FC2),
        {"batch": 64},
        mode="train",
        minimize="writes",
        memory_limit=2**20,
        requires_grad={"w1": False, "x": False},
    )
    result = invoke("plan", FC2, *args)
    assert (result.exit_code, result.stdout) == (0, made.table() + "\n")


@pytest.mark.parametrize("command", ["plan", "emit", "verify", "diff", "front"])
@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("--mode", "dream"), "Invalid value for '--mode': 'dream' is not one of infer, train, serve"),
        (
            ("--minimize", "regret"),
            "Invalid value for '--minimize': 'regret' is not one of flops, memory, writes, time",
        ),
        (
            ("--frozen", "w9"),
            "Invalid value for --frozen: fc2_mpo has no tensor 'w9'; its tensors: x, w1, w2, w3, w4, bias",
        ),
        (("--machine", "cpu"), "Invalid value for --machine: it goes with --minimize time"),
        (("--set", "D"), "Invalid value for '--set': 'D' is not NAME=N with an integer N, as in D=8"),
        (("--set", "D=2", "--set", "D=3"), "Invalid value for --set, --batch: the size 'D' is given twice"),
        (("--trials", "0"), "Invalid value for '--trials': "),
    ],
)
def test_wrong_usage_names_the_option(command, args, error):
    files = [FC2, FC2] if command == "diff" else [FC2]
    result = invoke(command, *files, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith(f"Error: {error}")


def test_several_orders_have_names():
    named = invoke("plan", FC2, "--order", "y=x w1 w2 w3 w4")
    assert named.stdout == invoke("plan", FC2, "--order", "x w1 w2 w3 w4").stdout
    result = invoke("plan", FC2, "--order", "x w1", "--order", "y=x w1")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        2,
        "Error: Invalid value for --order: 'x w1' is not NAME=ORDER, which several are",
    )
    result = invoke("plan", FC2, "--order", "y=x w1", "--order", "y=x w1")
    assert "Invalid value for --order: 'y' has two orders; join them by +" in result.stderr


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("12 B", 12), ("3kB", 3000), ("3KiB", 3072), ("64MiB", 2**26), ("2GB", 2 * 10**9), (" 1 TiB ", 2**40)],
)
def test_bytes_have_units(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5GB", "64 mib", "1e9", "9" * 19])
def test_bytes_that_are_none_are_wrong_usage(text):
    result = invoke("plan", FC2, "--memory-limit", text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not a number of bytes" in result.stderr


# saved plans


@pytest.fixture
def saved(tmp_path) -> str:
    """A plan of FC2 with an order by hand."""
    result = invoke("plan", FC2, "--order", "x w1 w2 w3 w4", "--save", str(tmp_path / "plan.json"))
    assert result.exit_code == 0
    return str(tmp_path / "plan.json")


def test_a_plan_is_saved_beside_its_table(saved):
    made = tngraph.plan(tngraph.load(FC2), order="x w1 w2 w3 w4")
    assert tngraph.load_plan(saved) == made
    assert invoke("plan", saved).stdout == made.table() + "\n"
    assert invoke("plan", saved, "--batch", "1").stdout == made.table(batch=1) + "\n"
    assert json.loads(invoke("plan", saved, "--batch", "1", "--json").stdout)["macs"] == 95_488
    assert invoke("plan", "-", stdin=Path(saved).read_text()).stdout == made.table() + "\n"
    assert invoke("emit", saved).stdout == tngraph.emit(made)
    assert invoke("verify", saved, "--batch", "3", "--set", "D=2").stdout.startswith("fc2_mpo at batch = 3, D = 2\n")


def test_a_saved_plan_is_overwritten_only_when_told(saved):
    result = invoke("plan", FC2, "--save", saved)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{saved} exists\n  --force overwrites a file\n")
    assert invoke("plan", FC2, "--save", saved, "--force").exit_code == 0
    assert tngraph.load_plan(saved) == tngraph.plan(tngraph.load(FC2))


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("plan", ("--mode", "infer")),
        ("plan", ("--minimize", "flops")),
        ("plan", ("--memory-limit", "1GB")),
        ("plan", ("--frozen", "w1")),
        ("plan", ("--order", "x w1")),
        ("plan", ("--network", "fc2_mpo")),
        ("plan", ("--trials", "3")),
        ("emit", ("--set", "D=8")),
        ("emit", ("--batch", "8")),
        ("emit", ("--mode", "train")),
        ("verify", ("--minimize", "writes")),
        ("front", ()),
        ("tune", ()),
    ],
)
def test_a_saved_plan_is_not_planned_anew(saved, command, args):
    result = invoke(command, saved, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Invalid value for {args[0] if args else 'FILE'}" in result.stderr.replace(
        "--set, --batch", args[0] if args else ""
    )


def test_a_saved_plan_that_was_damaged_is_refused(saved):
    text = Path(saved).read_text()
    Path(saved).write_text(text.replace('"operands": [0, ', '"operands": [9, ', 1))
    for command in ("plan", "emit", "verify"):
        result = invoke(command, saved)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"{saved}: regime 1, 'y', term 1, move 1 takes the value 9, which is not there\n"


def test_diff_prints_the_difference_of_two_plans(saved):
    pinned, best = tngraph.load_plan(saved), tngraph.plan(tngraph.load(FC2), {"batch": 1})
    result = invoke("diff", saved, FC2, "--batch", "1")
    assert (result.exit_code, result.stdout) == (0, f"{pinned.diff(best, batch=1)}\n")
    assert invoke("diff", FC2, FC2, "--batch", "3").stdout == "fc2_mpo at batch = 3, D = 4\n  the plans do the same\n"


def test_diff_as_json(saved):
    record = json.loads(invoke("diff", saved, FC2, "--batch", "1", "--json").stdout)
    macs = next(count for count in record["counts"] if count["count"] == "MAC")
    difference = "-3136*D**2*batch + 448*D**2 + 9408*D*batch"
    assert macs == {
        "count": "MAC", "unit": "MAC", "before": 95_488, "after": 90_112, "formulas": {"difference": difference}
    }  # fmt: skip
    assert record["steps"][0] == {
        "computes": "(x w1)",
        "unit": "MAC",
        "before": 12_544,
        "after": None,
        "formulas": {"before": "3136*D*batch", "after": None},
    }
    assert record["is_empty"] is False


# emit


def test_emit_prints_the_source():
    result = invoke("emit", RING, "--set", "n=4")
    assert result.stdout == tngraph.emit(tngraph.plan(tngraph.load(RING, sizes={"n": 4})))


def test_an_emitted_file_runs_without_tngraph(tmp_path):
    out = tmp_path / "ring.py"
    result = invoke("emit", RING, "-o", str(out), "--set", "n=3")
    assert (result.exit_code, result.output) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["ring.py"]
    code = (
        "import sys; sys.modules['tngraph'] = None\n"
        "import ring, torch; print(ring.ring_tied()(torch.ones(5, 2, 2, 2)).shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (0, "torch.Size([5, 2, 2, 2])\n"), found.stderr


def test_emit_overwrites_only_when_told(tmp_path):
    out = tmp_path / "ring.py"
    out.write_text("mine")
    result = invoke("emit", RING, "-o", str(out))
    assert (result.exit_code, result.stderr) == (1, f"{out} exists\n  --force overwrites a file\n")
    assert out.read_text() == "mine"
    assert invoke("emit", RING, "-o", str(out), "--force").exit_code == 0
    assert out.read_text() == tngraph.emit(tngraph.plan(tngraph.load(RING)))
    assert invoke("emit", RING, "-o", str(tmp_path), "--force").exit_code == 1


def test_emit_and_verify_take_the_options_of_plan(tmp_path):
    saved = str(tmp_path / "plan.json")
    options = ("--batch", "64", "--mode", "train", "--minimize", "writes", "--frozen", "w1")
    wanted = tngraph.plan(
        tngraph.load(FC2), {"batch": 64}, mode="train", minimize="writes", requires_grad={"w1": False}
    )
    assert invoke("emit", FC2, *options, "--save", saved).stdout == tngraph.emit(wanted)
    assert tngraph.load_plan(saved) == wanted
    record = json.loads(invoke("verify", FC2, *options, "--save", saved, "--force", "--json").stdout)
    assert tngraph.load_plan(saved) == wanted
    counts = wanted.at(batch=64)
    found = {check["what"]: check["found"] for check in record["checks"] if check["unit"] in ("FLOPs", "bytes")}
    assert (record["is_equal"], record["sizes"]["batch"]) == (True, 64)
    assert (found["forward"], found["saved for backward"]) == (counts.flops, 2 * counts.saved)  # in float64


def test_emit_follows_a_link(tmp_path):
    real, link = tmp_path / "real.py", tmp_path / "link.py"
    real.write_text("old")
    link.symlink_to(real)
    assert invoke("emit", RING, "-o", str(link), "--force").exit_code == 0
    assert link.is_symlink()
    assert real.read_text().startswith('"""ring_tied')


def test_a_wrong_file_leaves_nothing_behind(tmp_path, wrong):
    out = tmp_path / "out" / "wrong.py"
    out.parent.mkdir()
    result = invoke("emit", wrong, "-o", str(out))
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", error_of(wrong))
    assert list(out.parent.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", fail)
    out = tmp_path / "ring.py"
    result = invoke("emit", RING, "-o", str(out))
    assert (result.exit_code, result.stderr) == (
        1,
        f"{out} cannot be written: {os.strerror(errno.ENOSPC).lower()}\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    out = tmp_path / "none" / "ring.py"
    result = invoke("emit", RING, "-o", str(out))
    assert result.exit_code == 1
    assert result.stderr == f"{out} cannot be written: {os.strerror(errno.ENOENT).lower()}\n"


# verify


def test_verify_prints_what_it_compared():
    result = invoke("verify", RING, "--set", "n=3", "--batch", "4")
    assert (result.exit_code, result.stderr) == (0, "")
    title, header, *rows = result.stdout.splitlines()
    assert title == "ring_tied at batch = 4, D = 3"
    assert header.split() == ["compared", "expected", "found"]
    assert [row.split("  ")[0] for row in rows] == [
        "value of y [relative error]",
        "gradient of g [relative error]",
        "gradient of x [relative error]",
        "forward [FLOPs]",
        "forward and backward [FLOPs]",
        "peak [bytes]",
        "saved for backward [bytes]",
        "params [elements]",
    ]
    assert all(row.endswith("ok") for row in rows)


def test_verify_as_json_has_integers(two):
    record = json.loads(invoke("verify", two, "--network", "first", "--batch", "6", "--seed", "3", "--json").stdout)
    assert (record["network"], record["is_equal"], record["sizes"]) == ("first", True, {"batch": 6})
    checks = {check["what"]: check for check in record["checks"]}
    flops = 2 * 6 * 3 * 2
    assert checks["forward"] == {
        "what": "forward", "unit": "FLOPs", "expected": flops, "found": flops, "is_equal": True
    }  # fmt: skip
    assert checks["value of y"]["unit"] == "relative error"
    assert checks["value of y"]["found"] <= checks["value of y"]["expected"] < 1e-6


def forget_the_buffer(monkeypatch) -> None:
    """Make the module of `second` in TWO take the relu of its input alone."""
    from tngraph.modules import layer

    right = layer.print_source

    def print_wrong(plan):
        printed = right(plan)
        text = printed.text.replace("torch.relu_(t1)", "torch.relu(x)")
        assert text != printed.text
        return replace(printed, text=text)

    monkeypatch.setattr(layer, "print_source", print_wrong)


@pytest.mark.parametrize("as_json", [False, True])
def test_verify_refuses_a_module_that_ignores_a_buffer_of_zeros(two, monkeypatch, as_json):
    forget_the_buffer(monkeypatch)
    result = invoke("verify", two, *(["--json"] if as_json else []))
    assert result.exit_code == 1
    assert "DIFFERS" in result.stderr
    assert "Traceback" not in result.stderr
    if as_json:
        record = json.loads(result.stdout)
        assert record["is_equal"] is False
        assert next(c["what"] for c in record["checks"] if not c["is_equal"]) == "value of y"
    else:
        assert result.stdout == ""


def test_values_outside_a_functions_domain_agree_where_both_are_nan():
    spec = "network n { input x[i:3]; buffer c[]; y[i] = log(-1 * c * c * x * x); output y[i] }"
    result = invoke("verify", "-", "--json", stdin=spec)
    record = json.loads(result.stdout, parse_constant=pytest.fail)
    assert (result.exit_code, record["checks"][0]["found"]) == (0, 0.0)


def test_verify_refuses_what_memory_would_not_hold():
    result = invoke("verify", FC2, "--batch", str(10**12))
    assert result.exit_code == 1
    assert result.stderr.startswith("verifying fc2_mpo here takes ")


def test_a_layer_verifies_at_given_run_time_sizes():
    layer = tngraph.compile(tngraph.load(RING, sizes={"n": 3}))
    assert layer.verify(sizes={"batch": 9}).sizes["batch"] == 9
    with pytest.raises(tngraph.SizeError) as error:
        layer.verify(sizes={"D": 2})
    assert str(error.value) == "ring_tied has no run-time size 'D'\n  its run-time sizes: batch"
    with pytest.raises(tngraph.SizeError):
        layer.verify(sizes={"batch": 0})


# tune


def test_tune_as_json():
    record = json.loads(invoke("tune", RING, "--set", "n=3", "--batch", "2,9", "--mode", "train", "--json").stdout)
    assert (record["network"], record["mode"]) == ("ring_tied", "train")
    kept = [candidate for candidate in record["candidates"] if candidate["is_kept"]]
    assert [candidate["sizes"] for candidate in kept] == [{"batch": 2}, {"batch": 9}]
    assert all(candidate["measured_seconds"] > 0 for candidate in record["candidates"])


# as a process


@pytest.mark.parametrize("command", ["check", "plan", "emit"])
def test_torch_is_not_imported(command):
    code = (
        "import sys\nfrom tngraph.cli import main\ntry: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    result = run(command, FC2, code=code)
    assert (result.returncode, result.stderr) == (0, "False\n")


def test_errors_have_no_traceback(wrong):
    result = run("plan", wrong)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", error_of(wrong))


def test_piped_output_is_plain_and_whole():
    result = run("plan", FC2)
    assert result.stdout == tngraph.plan(tngraph.load(FC2)).table() + "\n"
    assert "\x1b" not in result.stdout


def test_standard_input_is_read_through_a_pipe():
    result = run("plan", "-", "--set", "n=4", input=Path(RING).read_text())
    assert result.returncode == 0
    assert result.stdout.startswith("ring_tied at batch = 64, D = 3\n")


def test_a_broken_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "tngraph", "emit", FC2], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, timeout=120
    )
    os.close(writer)
    assert result.stderr == b""
    assert result.returncode in (0, -signal.SIGPIPE)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["check", "plan", "emit"])
def test_a_full_disk_is_one_line(command):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "tngraph", command, FC2], stdout=full, stderr=subprocess.PIPE, cwd=ROOT, timeout=120
        )
    assert (result.returncode, result.stderr.decode()) == (1, f"tngraph: {os.strerror(errno.ENOSPC).lower()}\n")


@pytest.mark.parametrize("command", ["check", "plan", "diff", "emit", "verify"])
def test_help_has_examples_that_are_spelled_right(command):
    text = invoke(command, "--help").stdout
    lines = text.partition("Examples:\n")[2].splitlines()
    assert len(lines) >= 3
    assert all(line.startswith(f"    tngraph {command} ") for line in lines)


def test_version():
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"tngraph {tngraph.__version__}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("command", ["plan", "emit", "verify"])
def test_a_terminal_gets_colours(command):
    import pty

    lead, follow = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "60"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "tngraph", command, RING], stdout=follow, cwd=ROOT, env=environment
    )
    os.close(follow)
    shown = b""
    while True:
        try:
            block = os.read(lead, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(lead)
    assert process.wait(timeout=120) == 0
    assert b"\x1b[" in shown
    assert b"ring_tied" in shown


# fit


LAYER = """network layer { size batch; size R = 2; input x[batch, i:16]; param u[i, r:R]; param v[r, o:12]
  y[batch, o] = x * u * v; output y[batch, o] }"""


@pytest.fixture
def weights(tmp_path, monkeypatch) -> dict[str, Any]:
    """A folder with a weight, inputs of it, and a layer, and the tensors that it has."""
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    monkeypatch.chdir(tmp_path)
    tensors = {"fc.weight": torch.randn(12, 16), "fc.bias": torch.randn(12), "steps": torch.ones(2, 2, dtype=torch.int)}
    inputs = torch.randn(50, 16) * torch.linspace(0.1, 2, 16)
    safetensors.save_file(tensors, "m.safetensors")
    safetensors.save_file({"x": inputs}, "x.safetensors")
    Path("layer.tn").write_text(LAYER)
    return {**tensors, "x": inputs}


def test_fit_writes_the_cores_of_a_family_and_says_how_good_they_are(weights):
    import safetensors.torch

    from tngraph.layers import Generated

    result = invoke("fit", "low_rank(rank=3)", "--weights", "m.safetensors:fc.weight", "-o", "out.safetensors")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("84 params for 192 (43.75%), truncation, ")
    assert lines[1].startswith("weight error  ")
    assert lines[1].endswith(", proven least")
    generator = Generated((12, 16), "low_rank", rank=3)
    generator.load_state_dict(safetensors.torch.load_file("out.safetensors"))
    error = (generator() - weights["fc.weight"]).norm() / weights["fc.weight"].norm()
    assert lines[1].split()[2] == f"{error.item():.4g},"


def test_fit_takes_a_layer_with_an_input_and_inputs_of_its_weight(weights):
    import safetensors.torch

    args = ("--set", "R=3", "--weights", "m.safetensors:fc.weight", "--inputs", "x.safetensors")
    result = invoke("fit", "layer.tn", *args, "-o", "out.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert list(record)[:6] == [
        *("method", "params_elements", "dense_params_elements", "weight_error", "output_error", "is_proven")
    ]
    assert record["is_proven"]
    assert record["input_count"] == 50
    assert record["low_rank"]["output_error"] == pytest.approx(record["output_error"])
    layer = tngraph.compile(tngraph.load("layer.tn", sizes={"R": 3}))
    layer.load_state_dict(safetensors.torch.load_file("out.safetensors"))
    dense = weights["x"] @ weights["fc.weight"].T
    error = (layer(weights["x"]) - dense).norm() / dense.norm()
    assert record["output_error"] == pytest.approx(error.item(), rel=1e-4)


def test_a_fit_goes_on_from_what_it_wrote(weights):
    args = (
        "mpo(bond=2, modes=((4, 4), (4, 3)))",
        "--weights",
        "m.safetensors:fc.weight",
        "--inputs",
        "x.safetensors:x",
    )
    args = ("fit", *args, "-o", "out.safetensors", "--json", "--tolerance", "0", "--sweeps")
    first = json.loads(invoke(*args, "12").stdout)
    again = invoke(*args, "3")
    assert again.exit_code == 1
    assert again.stderr == "out.safetensors exists\n  --force overwrites it, and --resume goes on from it\n"
    second = json.loads(invoke(*args, "3", "--resume").stdout)
    assert first["method"] == "truncation, 12 sweeps"
    assert second["method"] == "resumed, 3 sweeps"
    assert second["history"][0] == pytest.approx(first["history"][-1], rel=1e-4)
    assert second["output_error"] <= first["output_error"] * (1 + 1e-6)
    other = invoke("fit", "low_rank(rank=2)", *args[2:], "3", "--resume")
    assert other.stderr == "out.safetensors has the cores of another network\n  leave out --resume to start anew\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("mp(bond=3)", "m.safetensors:fc.weight"), "there is no family 'mp'\n  did you mean 'mpo'?\n"),
        (("mpo(bond=", "m.safetensors:fc.weight"), "'mpo(bond=' is not a family with options\n  write mpo(bond=8), or"),
        (
            ("mpo(__import__('os'))", "m.safetensors:fc.weight"),
            "\"mpo(__import__('os'))\" is not a family",
        ),
        (("mpo(bond=open('x'))", "m.safetensors:fc.weight"), "\"mpo(bond=open('x'))\" is not a family with options"),
        (("mpo", "m.safetensors:fc.wieght"), "m.safetensors has no tensor 'fc.wieght'\n  did you mean 'fc.weight'?"),
        (("mpo", "m.safetensors"), "m.safetensors has 3 tensors\n  add :NAME; it has: fc.bias, fc.weight, steps\n"),
        (("mpo", "none.safetensors:x"), "none.safetensors is not a file of tensors: "),
        (("mpo", "layer.tn:x"), "layer.tn is not a file of tensors: "),
        (("mpo", "m.safetensors:steps"), "m.safetensors:steps has the type int32\n  give a tensor of floating point\n"),
        (("layer.tn", "m.safetensors:fc.bias"), "the target has shape (12,), and the network makes (12, 16)\n"),
        (("none.tn", "m.safetensors:fc.bias"), "none.tn: no such file or directory"),
    ],
)
def test_a_fit_that_cannot_be_is_explained(args, message, weights):
    spec, weight = args
    result = invoke("fit", spec, "--weights", weight, "-o", "out.safetensors")
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert not Path("out.safetensors").exists()


def test_the_progress_of_a_fit_is_a_bar(capsys):
    show_fit_progress(3, 12, 0.25)
    assert capsys.readouterr().err == "\r\033[K" + "█" * 7 + "░" * 23 + " 3 of 12, error 0.25"
