"""The exceptions of tngraph, and the common format of their messages.

A message says what is wrong, where, and how to fix it, in the user's own names. Names from a file are ``str``
subclasses that carry ``line`` and ``column``, as Lark's tokens do. So one check serves text and Python: a name with a
position gives the message a place and a caret.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a spec file: 1-based line and column, and the text of that line."""

    file: str
    line: int
    column: int
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: a sentence, a hint that says how to fix it, and the place in a file, if it is in one."""

    message: str
    hint: str = ""
    place: Place | None = None

    def __str__(self) -> str:
        lines = [self.message]
        if self.place is not None:
            place = self.place
            shown, caret = _window(place.text, place.column)
            lines = [f"{place.file}:{place.line}:{place.column}: {self.message}", f"    {shown}", f"    {caret}^"]
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)


def _window(text: str, column: int, width: int = 100) -> tuple[str, str]:
    """Return the part of a line around a column, and the blanks that put a caret under it."""
    start = max(0, column - 1 - width // 2) if len(text) > width else 0
    shown = "".join(c if c.isprintable() else " " for c in text[start : start + width])
    return shown.rstrip(), " " * (column - 1 - start)


class TngraphError(Exception):
    """The base class of every error that tngraph raises."""


class NetworkError(TngraphError, ValueError):
    """A network that is not valid: an unknown name, two sizes for one index, a leg too many.

    Args:
        message: one sentence in the user's names.
        hint: how to fix it.
        at: the name that the sentence is about; its ``line`` and ``column``, if it has them, place the error.
    """

    def __init__(self, message: str, hint: str = "", at: object = None) -> None:
        self.message, self.hint, self.at = message, hint, at
        super().__init__(str(Problem(message, hint)))


class SpecError(NetworkError):
    """The independent errors of a spec file, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        text = "\n\n".join(map(str, self.problems))
        count = len(self.problems)
        super().__init__(text if count == 1 else f"{text}\n\n{count} errors")


class LimitError(NetworkError):
    """A file or network beyond a documented limit, refused before it can cost memory or time."""


class SizeError(TngraphError, ValueError):
    """A size that is missing, not positive, or does not fit the arrays at hand."""


class PlanError(TngraphError, ValueError):
    """A plan that cannot be made or used as requested."""


class ModelError(TngraphError, ValueError):
    """A model that cannot be saved, files that hold none, or a model that they do not fit.

    Args:
        message: one sentence in the user's names.
        hint: how to fix it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(str(Problem(message, hint)))


class VerificationError(TngraphError, AssertionError):
    """A module that does not do what its plan says."""


class RankWarning(UserWarning):
    """A rank larger than can matter, which is cut to the largest that does."""


class GrowthWarning(UserWarning):
    """A layer or weight of cores that has more params than the dense one it replaces."""
