"""The families as they are shown: on the page of the docs, in the list and one by one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import networkx
import pytest
from typer.testing import CliRunner

import tngraph as tg
from tngraph.cli import app
from tngraph.report.gallery import Entry, entries, format_entry, format_page

PAGE = Path(__file__).parents[1] / "docs" / "families.md"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["families", *arguments], prog_name="tngraph")
    return result.exit_code, result.output


def test_the_page_is_the_one_that_is_made():
    if os.environ.get("TNGRAPH_UPDATE_GOLDEN"):
        PAGE.write_text(format_page() + "\n")
    assert PAGE.read_text() == format_page() + "\n"


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.family.name)
def test_an_entry_says_everything(entry: Entry):
    assert set(entry.options) == set(entry.family.options)
    assert all((entry.title, entry.source, entry.drawing))
    text = format_entry(entry)
    assert entry.params in text
    assert entry.macs in text
    assert run(entry.family.name) == (0, text + "\n")


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.family.name)
def test_the_two_examples_of_an_entry_are_one_network(entry: Entry):
    built = eval(entry.python, {"tg": tg, "networkx": networkx})
    written = tg.parse(entry.spec)
    assert [(core.name, core.legs) for core in built.cores] == [(core.name, core.legs) for core in written.cores]
    assert tg.compile(written).verify().is_equal


def test_the_list_and_its_errors():
    code, text = run()
    assert code == 0
    assert all(f"\n{entry.family.name} " in text for entry in entries())
    assert all(entry.drawing in run("--full")[1] for entry in entries()[:2])
    assert run("mpp") == (1, "there is no family 'mpp'\n  did you mean 'mpo'?\n")
    assert run("xyz")[1].startswith("there is no family 'xyz'\n  there are: mpo, ")
    assert json.loads(run("tt", "--json")[1])["families"][0]["family"] == "mpo"
    assert len(json.loads(run("--json")[1])["families"]) == len(entries())
