"""Limits on a spec, each checked before exceeding it can cost memory or time."""

from __future__ import annotations

from tngraph.errors import LimitError

FILE_BYTES = 2**20
"""The longest spec [bytes]."""
TOKENS = 120_000
"""The most words and signs in one spec."""
DEPTH = 32
"""The deepest nesting of brackets, braces and loops."""
STATEMENTS = 20_000
"""The most statements of a file after expansion, loop iterations (empty ones too) included."""
RANGE = 10_000
"""The most names in one ``name{A..B}`` or factors in one ``prod``."""
NAMES = 100_000
"""The most names that the networks of a file may compute from templates and ranges."""
FACTORS = 10_000
"""The most factors in one equation."""
ARITHMETIC = 300
"""The most terms under ``//``, ``%``, ``min`` and ``max`` over named sizes in one file: sympy is slow there."""
COMPOSED = 200
"""The most operations in a derived run-time size, including those of the sizes that it is derived from."""
TENSORS = 10_000
"""The most cores and equations of one network."""
LEGS = 64
"""The most legs on one tensor, and indices in one read."""
DIGITS = 18
"""The longest integer literal [digits]."""
LITERAL = 40
"""The longest number literal [characters]."""
PROBLEMS = 50
"""The most errors reported together; after them the rest of a file is not read."""
FAILURES = 200
"""The most statements that may fail, silent follow-ups included; after them the rest of a file is not read."""
SYNTAX_PROBLEMS = 20
"""The most syntax errors reported together."""


class Budget:
    """A count of what the expansion of one file has cost, over all its networks, that refuses to exceed the limits."""

    def __init__(self) -> None:
        self._statements = self._names = self._terms = 0

    def statement(self, at: object) -> None:
        """Count one statement or one iteration of a loop.

        Raises:
            LimitError: beyond `STATEMENTS`.
        """
        self._statements += 1
        if self._statements > STATEMENTS:
            raise LimitError(f"the file expands to more than {STATEMENTS:,} statements", "shorten its loops", at=at)

    def names(self, count: int, at: object) -> None:
        """Count names that are about to be computed together.

        Raises:
            LimitError: beyond `RANGE` at once or `NAMES` in all.
        """
        if count > RANGE:
            raise LimitError(f"the range has {count:,} members", f"a range has at most {RANGE:,}", at=at)
        self._names += count
        if self._names > NAMES:
            raise LimitError(f"the file computes more than {NAMES:,} names", "split it", at=at)

    def arithmetic(self, terms: int, at: object) -> None:
        """Count the terms of one slow operation on named sizes.

        Raises:
            LimitError: beyond `ARITHMETIC`.
        """
        self._terms += terms
        if self._terms > ARITHMETIC:
            hint = "name a size once and use its name"
            raise LimitError(f"//, %, min and max of sizes have more than {ARITHMETIC} terms", hint, at=at)
