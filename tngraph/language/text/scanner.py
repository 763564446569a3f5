"""A scan of a spec before it is parsed: one linear pass that checks its limits and finds its statements.

A text that passes can be parsed without deep recursion. A broken statement can be blanked out by itself, so that one
mistake does not hide the next.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import NoReturn

from tngraph.errors import LimitError, Place, Problem
from tngraph.language.limits import DEPTH, DIGITS, FILE_BYTES, LITERAL, STATEMENTS, TOKENS

_PIECE = re.compile(
    r"(?P<blank>[ \t\r\f]+|\#[^\n]*)|(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)|(?P<sign>\.\.|\*\*|//|.|\n)",
    re.VERBOSE,
)
_STATEMENT = re.compile(r"(?:size|index|input|param|buffer|const|output|network|for)[ \t]+[A-Za-z_]")
_STATEMENT_END = re.compile(r"[\n;#]|(?<![A-Za-z0-9_}])[{}]")
_PAIRS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True, slots=True)
class Source:
    """A spec's text, with the file name that its errors show."""

    file: str
    text: str

    def place(self, offset: int) -> Place:
        """Return the place of an offset."""
        start = self.text.rfind("\n", 0, offset) + 1
        end = self.text.find("\n", offset)
        line = self.text[start : len(self.text) if end < 0 else end]
        return Place(self.file, self.text.count("\n", 0, offset) + 1, offset - start + 1, line)

    def line(self, line: int, column: int) -> Place:
        """Return the place of a line and column."""
        lines = self.text.split("\n", line)
        return Place(self.file, line, column, lines[line - 1] if line <= len(lines) else "")

    def limit(self, message: str, hint: str, offset: int) -> LimitError:
        """Return the error for a limit that is exceeded at an offset."""
        return LimitError(str(Problem(message, hint, self.place(offset))))


@dataclass(frozen=True, slots=True)
class Scan:
    """The ends of statements: the offsets of the newlines, semicolons and braces between them."""

    ends: tuple[int, ...]

    def statement(self, offset: int) -> tuple[int, int]:
        """Return the start and end of the statement at an offset; the end is -1 for the last one."""
        after = bisect_left(self.ends, offset)
        before = bisect_right(self.ends, offset - 1) - 1
        start = self.ends[before] + 1 if before >= 0 else 0
        return start, self.ends[after] if after < len(self.ends) else -1


class _Scanner:
    """The state of one pass over a source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.open: list[tuple[str, int]] = []
        self.brackets = 0
        self.ends: list[int] = []
        self.statements = 0
        self.fresh = True

    def run(self) -> Scan:
        tokens = 0
        for match in _PIECE.finditer(self.source.text):
            kind, offset = match.lastgroup, match.start()
            if kind == "blank":
                continue
            tokens += 1
            if tokens > TOKENS:
                raise self.source.limit(f"the text has more than {TOKENS:,} words and signs", "split the file", offset)
            if kind == "number":
                self._number(match[0], offset)
            elif kind == "word":
                self._word(offset)
            else:
                self._sign(match[0], offset)
        if self.open:
            self._unclosed(self.open[-1])
        return Scan(tuple(self.ends))

    def _number(self, literal: str, offset: int) -> None:
        digits = len(literal) if literal.isdigit() else 0
        if digits > DIGITS:
            raise self.source.limit(f"the integer has {digits:,} digits", f"an integer has at most {DIGITS}", offset)
        if len(literal) > LITERAL:
            raise self.source.limit(f"the number has {len(literal):,} characters", f"at most {LITERAL} do", offset)

    def _word(self, offset: int) -> None:
        if self.brackets and _STATEMENT.match(self.source.text, offset):
            line = self.source.text[self.source.text.rfind("\n", 0, offset) + 1 : offset]
            if not line.strip():
                self._unclosed(next(mark for mark in reversed(self.open) if mark[0] != "{"))
        if self.fresh:
            self.statements += 1
            self.fresh = False
        if self.statements > STATEMENTS:
            raise self.source.limit(f"the text has more than {STATEMENTS:,} statements", "split the file", offset)

    def _sign(self, sign: str, offset: int) -> None:
        if sign in "([{":
            self._open(sign, offset)
        elif sign in _PAIRS:
            self._close(sign, offset)
        elif sign in "\n;" and not self.brackets:
            self._end(offset)

    def _end(self, offset: int) -> None:
        self.ends.append(offset)
        self.fresh = True

    def _open(self, sign: str, offset: int) -> None:
        self.open.append((sign, offset))
        if len(self.open) > DEPTH:
            raise self.source.limit(f"brackets are nested deeper than {DEPTH}", "name parts of it", offset)
        if sign != "{":
            self.brackets += 1
        elif not self._is_template(offset):
            self._end(offset)

    def _is_template(self, offset: int) -> bool:
        before = self.source.text[offset - 1 : offset]
        return before == "}" or before == "_" or (before.isascii() and before.isalnum())

    def _close(self, sign: str, offset: int) -> None:
        if not self.open:
            self._closes_nothing(sign, offset, offset, offset + 1)
        opened, start = self.open[-1]
        if opened == "{" and sign != "}" and not self._is_template(start):
            end = _STATEMENT_END.search(self.source.text, offset)
            self._closes_nothing(sign, offset, self.ends[-1] + 1, end.start() if end else len(self.source.text))
        if opened != _PAIRS[sign]:
            self._unclosed((opened, start))
        self.open.pop()
        if sign != "}":
            self.brackets -= 1
        elif not self._is_template(start):
            self._end(offset)

    def _closes_nothing(self, sign: str, offset: int, start: int, end: int) -> NoReturn:
        hint = f"take it away, or open a {_PAIRS[sign]!r}"
        problem = Problem(f"the {sign!r} closes nothing", hint, self.source.place(offset))
        raise BracketError(problem, start, end)

    def _unclosed(self, mark: tuple[str, int]) -> None:
        sign, offset = mark
        closing = next(closer for closer, opener in _PAIRS.items() if opener == sign)
        end = self.source.text.find("\n", offset)
        whole_block = sign == "{" and not self._is_template(offset)
        before = bisect_left(self.ends, offset)
        problem = Problem(f"the {sign!r} is never closed", f"close it with {closing!r}", self.source.place(offset))
        raise BracketError(problem, self.ends[before - 1] + 1 if before else 0, -1 if whole_block else end)


class BracketError(Exception):
    """An error about a bracket without its partner.

    Args:
        problem: the error to report.
        start: the start of the text that it spoils.
        end: the end of that text; -1 if it spoils the rest of the file.
    """

    def __init__(self, problem: Problem, start: int, end: int) -> None:
        super().__init__(str(problem))
        self.problem, self.start, self.end = problem, start, end


def scan(source: Source) -> Scan:
    """Check the limits of a source and find its statements.

    Raises:
        LimitError: the text is too long or too deeply nested, or has too many statements or too long a number.
        BracketError: brackets do not match.
    """
    if len(source.text) > FILE_BYTES or len(source.text.encode("utf-8", "replace")) > FILE_BYTES:
        raise LimitError(f"{source.file}: the text is longer than {FILE_BYTES:,} bytes\n  split it, or use loops")
    return _Scanner(source).run()
