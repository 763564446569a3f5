"""The check of prose: this repository passes it, and a text that should not is told where and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.prose import check_page, check_repository, check_source

HERE = Path("here")


def test_this_repository_passes():
    assert [str(finding) for finding in check_repository()] == []


@pytest.mark.parametrize(
    "code",
    [
        'def f(x):\n    """Return x."""',
        'def mpo(w: Weight):\n    """Matrix product operator."""',
        'class A:\n    """A thing."""\n    @property\n    def size(self):\n        """The entries [elements]."""',
        'def f():\n    raise ValueError("there is no such thing, and it is no longer here")',
    ],
)
def test_plain_code_passes(code: str):
    assert list(check_source(HERE, code)) == []


@pytest.mark.parametrize(
    ("code", "line", "sentence"),
    [
        ('def f(x):\n    """What x is. More."""', 2, "What x is."),
        ('def f(x):\n    """The value of x."""', 2, "The value of x."),
        ('async def f(x):\n    """Whether x is\n    so."""', 2, "Whether x is so."),
        ('def _family(w: Weight):\n    """Matrix product operator."""', 2, "Matrix product operator."),
        ('@property\ndef f(x):\n    """Return x."""', 3, "Return x."),
        ('"""What it is."""', 1, "What it is."),
        ('class A:\n    """A.\n\n    A b that is no\n    list. C.\n    """', 4, "A b that is no list."),
        ('def f(x):\n    raise ValueError(f"{x} is no name")', 2, "is no name"),
    ],
)
def test_a_wrong_sentence_is_found_at_its_line(code: str, line: int, sentence: str):
    (finding,) = check_source(HERE, code)
    assert (finding.line, finding.sentence) == (line, sentence)


def test_pages_are_checked_outside_their_code():
    code = "`x is no list`. Fine.\n\n```text\nx is no list\n```\n    x is no list\n"
    page = f"# A\n\n{code}\n- One.\n- This is no list, or so.\n"
    (finding,) = check_page(HERE, page)
    assert str(finding).startswith("here:11: - This is no list, or so.\n  say ")
