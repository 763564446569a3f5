"""The README, the pages of the docs and the examples do what they say.

A page runs from top to bottom in an empty folder that has ``examples/specs``. What a block is, its kind says:

- ``tn``: a spec. It parses, and from then on the folder has it as ``NAME.tn``, after its last network.
- ``python``: it runs, in the one namespace of its page, which starts empty.
- ``text``: what the Python block before it prints.
- ``console``: each line ``$ tngraph …`` runs, and prints the lines below it.
- ``sh`` and ``toml`` are only shown; there are no other kinds.

Printed text is compared letter by letter, but for two things: a line ``…`` stands for any lines, and a rounding
error, as ``8.3e-16``, is whatever the machine makes it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

import tngraph as tg
from tngraph.cli import app

ROOT = Path(__file__).parents[1]
SPECS = sorted((ROOT / "examples" / "specs").glob("*.tn"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN_ONLY = {"sh", "toml"}

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ROUNDING = re.compile(r"\d\.\de[+-]\d\d")


class Block(NamedTuple):
    """A fenced block of a page: its kind, its text, the line it starts on."""

    kind: str
    text: str
    line: int


def read_blocks(page: str) -> Iterator[Block]:
    for match in _FENCE.finditer(page):
        yield Block(match[1], match[2], page.count("\n", 0, match.start()) + 1)


def expect(shown: str, found: str, where: str) -> None:
    """Compare what a page shows with what was printed."""
    found = found.rstrip("\n") + "\n"
    if not re.fullmatch("".join(map(_pattern, shown.splitlines())), found):
        assert found == shown, where


def _pattern(line: str) -> str:
    if line.strip() == "…":
        return r"(?:.*\n)*?"
    return _ROUNDING.pattern.join(map(re.escape, _ROUNDING.split(line.rstrip()))) + r" *\n"


def run_page(page: str, name: str) -> None:
    """Run every block of a page in the current folder."""
    space: dict[str, object] = {"__name__": "page"}
    printed: str | None = None
    for kind, text, line in read_blocks(page):
        where = f"{name}:{line}"
        assert kind in {"tn", "python", "text", "console"} | SHOWN_ONLY, f"{where}: what is a block of kind {kind!r}?"
        if kind == "text":
            assert printed is not None, f"{where}: the block before this one prints nothing"
            expect(text, printed, where)
        printed = None
        if kind == "tn":
            Path(f"{tg.parse(text, file=where).name}.tn").write_text(text)
        elif kind == "python":
            printed = run_python(text, space, f"{name}, block", line)
        elif kind == "console":
            run_console(text, where)


def run_python(text: str, space: dict[str, object], name: str, line: int) -> str:
    """What a block prints; its lines in tracebacks are those of the page."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile("\n" * line + text, name, "exec"), space)
    return output.getvalue()


def run_console(text: str, where: str) -> None:
    _, *calls = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert calls, f"{where}: no line starts with '$ '"
    for call in calls:
        command, _, shown = call.partition("\n")
        expect(shown, run_command(command), f"{where}: {command}")


def run_command(command: str) -> str:
    """What a command line prints, both streams."""
    program, *arguments = shlex.split(command)
    assert program == "tngraph", f"{program!r} is not run here: show it in a block of kind sh"
    result = CliRunner().invoke(app, arguments, prog_name="tngraph")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in that has the specs."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "specs").symlink_to(ROOT / "examples" / "specs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_does_what_it_says(page: Path) -> None:
    run_page(page.read_text("utf-8"), page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", _FENCE.sub("", page.read_text("utf-8"))):
        if not target.startswith("https://"):
            place = page.parent / target if target else page
            assert place.exists(), target
            assert not heading or heading in read_headings(place.read_text("utf-8")), f"{target}#{heading}"


def read_headings(page: str) -> set[str]:
    """The names by which links find the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


TN = "```tn\nnetwork n { input x[i:3]; y[] = x * x; output y[] }\n```\n"


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```tn\nnetwork n { input x[i:3] }\n```", "no output"),
        ("```python\nassert False, 'wrong'\n```", "wrong"),
        ("```python\nprint(1)\n```\n```text\n2\n```", "page:4"),
        ("```python\nprint(1)\n```\n```text\n1\n2\n```", "page:4"),
        ("```text\n1\n```", "prints nothing"),
        ("```python no-run\n1 / 0\n```", "what is a block"),
        (f"{TN}```console\n$ tngraph check n.tn\nn.tn: wrong\n```", "page:4"),
        ("```console\n$ rm n.tn\n```", "not run here"),
        ("```console\ntngraph check n.tn\n```", "no line starts"),
    ],
)
def test_a_page_that_is_wrong_is_found_out(page: str, complaint: str) -> None:
    with pytest.raises((AssertionError, tg.SpecError), match=complaint):
        run_page(page, "page")


def test_a_page_that_is_right_is_not() -> None:
    shown = "n.tn: ok, network n: 0 sizes, 1 input, 0 params, 1 equation"
    run_page(f"{TN}```console\n$ tngraph check n.tn\n{shown}\n```", "page")
    run_page("```python\nfor n in range(9): print(n, 2e-16)\n```\n```text\n0 2e-16\n…\n8 2e-16\n```", "page")
    expect("error  1.5e-16  ok\n", "error  3.2e-17  ok\n", "page")


@pytest.mark.parametrize(
    "spec", [pytest.param(p, marks=[pytest.mark.slow] * (p.stem == "vgg_fc_adtn"), id=p.stem) for p in SPECS]
)
def test_a_spec_of_the_examples_verifies(spec: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(spec)], prog_name="tngraph")
    assert result.exit_code == 0, result.output


def example(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An example as it is when it runs with these arguments, on the digits that need no download."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    place = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    if hasattr(module, "load_images"):
        monkeypatch.setattr(module, "load_images", lambda *_: None)
    return module


def test_the_demo_in_few_steps_on_digits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    demo = example("fc2_mnist", [], monkeypatch)
    monkeypatch.setattr(demo, "STEPS", 20)
    demo.main()
    assert re.search(r"MPO \d+\.\d\d% with 2,026 parameters, dense \d+\.\d\d% with 203,530\.", capsys.readouterr().out)


@pytest.mark.parametrize("families", [("mpo", "btt"), pytest.param((), marks=pytest.mark.slow, id="all")])
def test_families_in_two_nets_on_few_digits(
    families: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example("families_mnist", [*families, "--images", "128"], monkeypatch).main()
    out = capsys.readouterr().out
    assert all(out.count(f"\n{family} · linear") == 2 for family in families or tg.families.FAMILIES)
    assert "mpo · linear, conv · 2,757 · 22.4× · " in out
    with pytest.raises(SystemExit):
        example("families_mnist", ["mpp"], monkeypatch).main()


def test_two_adtns_are_compared_at_few_batches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("vgg_fc_adtn", [], monkeypatch)
    monkeypatch.setattr(module, "BATCHES", (1,))
    monkeypatch.setattr(module, "ROUNDS", 2)
    module.main()
    plan = tg.plan(tg.families.adtn((2,) * 9, (2,) * 12, layers=1), {"batch": 1}, minimize="time")
    assert f"{plan.at(batch=1).macs:,}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_demo_learns_in_its_time() -> None:
    command = [sys.executable, ROOT / "examples" / "fc2_mnist.py"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    accuracy = re.search(r"MPO (\d+\.\d\d)% with 2,026 parameters", result.stdout)
    assert accuracy is not None, result.stdout
    assert float(accuracy[1]) > 90
