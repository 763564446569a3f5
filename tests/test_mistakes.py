"""What `check` warns of: each kind of mistake with its whole text, and nothing in any spec there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

import tngraph as tg
from tests.networks import networks
from tests.test_examples import PAGES, read_blocks
from tngraph.language.families import FAMILIES
from tngraph.language.text.parsing import parse_with_warnings

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "examples").rglob("*.tn"))
WRITTEN = {path.name: path.read_text() for path in FILES} | {
    f"{page.name}:{block.line}": block.text
    for page in PAGES
    for block in read_blocks(page.read_text())
    if block.kind == "tn"
}
ALONE = "put it on the left, or sum it in an equation of its own"
UNUSED = "use it, or take it away"


def warnings_of(body: str) -> list[tuple[str, str]]:
    text = f"network n {{ {body} }}"
    _, placed = parse_with_warnings(text)
    assert sorted(p.message for p in placed) == sorted(p.message for p in tg.check(tg.parse(text)))
    return [(problem.message, problem.hint) for problem in placed]


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ("size D = 2; input x[i:2]; y[] = x; output y[]", "the size 'D' is used nowhere", UNUSED),
        ("input x[i:2]; param w[i]; y[] = x; output y[]", "the param 'w' is used nowhere", UNUSED),
        ("input x[i:2]; buffer w[i]; y[] = x; output y[]", "the buffer 'w' is used nowhere", UNUSED),
        ("input x[i:2]; const w[i] = ones; y[] = x; output y[]", "the const 'w' is used nowhere", UNUSED),
        ("input x[i:2]; input z[]; y[] = x; output y[]", "the input 'z' is used nowhere", UNUSED),
        ("input x[i:2]; h[i] = relu(x); y[] = x; output y[]", "the result 'h' is used nowhere", UNUSED),
        (
            "input x[b:3, i:2]; index j: 2; param w[i, o:5]; y[b, o] = x[b, j] * w; output y[b, o]",
            "'j' on 'x' and 'i' on 'w' join nothing: each is summed alone",
            "did you mean 'i' for 'j'?",
        ),
        (
            "input x[b:3, i:2]; param w[j:2, o:5]; y[b, o] = x * w; output y[b, o]",
            "'i' on 'x' and 'j' on 'w' join nothing: each is summed alone",
            "did you mean 'j' for 'i'?",
        ),
        (
            "input x[b:3, l:9]; index q: 2; param w[k:2]; y[b, p] = x[b, p + q] * w; output y[b, p]",
            "'q' on 'x' and 'k' on 'w' join nothing: each is summed alone",
            "did you mean 'k' for 'q'?",
        ),
        (
            "input x[b:3, i:2]; param w[i, o:5, r:4]; y[b, o] = x * w; output y[b, o]",
            "the index 'r' stands on 'w' alone, and is summed there",
            ALONE,
        ),
        (
            "input x[b:3, i:2]; param w[i, o:5]; param bias[p:5]; y[b, o] = x * w + bias; output y[b, o]",
            "the index 'p' stands on 'bias' alone, and is summed there",
            "did you mean 'o'?",
        ),
        (
            "input x[b:3, i:2]; param w[i, o:5]; param bias[p:7]; y[b, o] = x * w + bias; output y[b, o]",
            "the index 'p' stands on 'bias' alone, and is summed there",
            ALONE,
        ),
    ],
)  # fmt: skip
def test_each_kind_of_mistake_is_told(body: str, message: str, hint: str) -> None:
    assert warnings_of(body) == [(message, hint)]


def test_an_index_that_was_declared_for_nothing_is_told_of_a_text() -> None:
    _, (problem,) = parse_with_warnings("network n { input x[i:2]; index j: 3; y[] = x; output y[] }")
    assert (problem.message, problem.hint) == ("the index 'j' stands on no tensor", UNUSED)


@pytest.mark.parametrize(
    "body",
    [
        "input x[b:3, i:2]; y[b] = x; output y[b]",  # a mean, but for its factor
        "input x[b:3, l:8]; index k: 2; y[b, p] = 0.5 * x[b, 2*p + k]; output y[b, p]",  # average pooling
        "input x[b:3, c:2, l:8]; index k: 2; param w[c, o:4]; y[b, o, p] = x[b, c, 2*p + k] * w; output y[b, o, p]",
        "input x[b:3, o:5]; index j: 5; y[b, o] = x - 0.2 * x[b, j]; output y[b, o]",  # what is less its mean
        "input x[b:3, o:5]; index j: 5; y[b, o] = x * x[b, j]; output y[b, o]",  # what is times its sum
        "input x[b:3, i:2]; param w[i, o:5, r:1]; y[b, o] = x * w; output y[b, o]",  # a bond of size 1
        "input x[b:3]; param w[i:4, j:4]; y[b] = x * w[i, i]; output y[b]",  # a trace
        "input x[b:3]; param w[i:4]; param v[i]; y[b] = x + w * v; output y[b]",  # a product that is added
        "param w[i:4]; param v[i]; y[] = w + v; output y[]",  # sums alone
        "size D = 2, wide = 2*D; input x[i:wide]; y[] = x; output y[]",
        "size D = 3; input x[i:2]; param w[i] = fan_in(D); y[] = x * w; output y[]",
        "size D = 3; input x[i:9]; index p: 2; y[p] = x[p + D]; output y[p]",
    ],
)
def test_what_is_likely_meant_is_not_told(body: str) -> None:
    assert warnings_of(body) == []


def test_an_input_that_tells_a_run_time_size_is_used() -> None:
    assert not warnings_of("size n; input like[i:n]; const one[j:n] = ones; y[j] = one; output y[j]")
    assert warnings_of("size n; input x[i:n]; input like[j:n]; y[i] = x; output y[i]") == [
        ("the input 'like' is used nowhere", UNUSED)
    ]


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_no_spec_of_the_project_is_warned_of(text: str) -> None:
    assert parse_with_warnings(text)[1] == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_is_warned_of(name: str) -> None:
    options = {"edges": [[1, 2], [2, 3], [3, 1]]} if name == "graph" else {}
    for modes in ((2, 2), (4, 4), (2, 2, 2)):
        if name in ("low_rank", "monarch", "einsum"):
            modes = {"low_rank": (4,), "monarch": (2, 2), "einsum": (2, 2, 2)}[name]
        layer = FAMILIES[name](modes, modes, **options)
        assert tg.check(layer) == ()


@given(networks())
def test_a_text_and_its_network_are_told_the_same(network: tg.Network) -> None:
    """But for ranks and indices on nothing, which a network no longer has."""
    placed = parse_with_warnings(tg.format(network))[1]
    assert sorted(p.message for p in placed) == sorted(p.message for p in tg.check(network))
    assert all(problem.place is not None for problem in placed)


def test_a_file_is_checked_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "n.tn"
    path.write_text("network n {\n  size k = 2\n  input x[i{1..k}:3]; param w[i1]\n  y[] = x; output y[]\n}")
    (problem,) = tg.check(path, sizes={"k": 3})
    assert str(problem) == (
        f"{path}:3:29: the param 'w' is used nowhere\n"
        "      input x[i{1..k}:3]; param w[i1]\n"
        "                                ^\n"
        "  use it, or take it away"
    )
