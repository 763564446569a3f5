"""Check of the prose in docstrings, messages and pages: ``python -m tests.prose`` prints what to rewrite, and exits 1.

A function's docstring starts with a verb that says what the caller gets: "Return …", "Check …". A property reads like a
value, so its docstring is a noun phrase. A family's docstring is the title of its entry in the gallery, so functions
whose first parameter is a `Weight` are free to start as they like.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
VERBS = """
Add Allocate Answer Append Apply Ask Assign Balance Bind Bisect Bound Bring Build Call Check Clean Clear Close Collect
Combine Compare Compile Complete Compute Contract Convert Copy Count Create Cut Declare Define Describe
Differentiate Divide Draw Drop Elaborate Emit Enter Estimate Evaluate Expand Export Extend Factor Fill Find Fit
Fold Follow Format Free Generate Give Guess Hold Import Improve Initialise Inline Insert Join Keep Lay Leave Let
List Load Look Lower Make Mark Match Measure Merge Move Multiply Name Narrow Number Open Parse Pick Pin Place Plan
Prepare Print Put Raise Read Record Reduce Refine Refuse Register Release Remember Remove Rename Render Replace
Replay Report Reset Reshape Resolve Restore Return Run Save Say Scale Scan Search Seed Set Shift Show Skip Solve
Sort Split Start Store Substitute Swap Take Tell Trace Translate Transpose Try Tune Undo Update Use Verify Visit
Wait Walk Warn Widen Write Yield Zero
"""
"""The imperatives that a docstring may start with."""
OPENING = re.compile(r"(What|How|That|Those|By which|As|Where|Whatever|Which)\b")
"""Words that no docstring starts with: they hold the reader off from the subject."""
BANNED = {
    r"(?<!here\s)\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|other\b|\w+er\b)\w+": "say 'is not a …'",
    r"\b(?:that|those|none) of which\b": "name the thing, and say what it does in a sentence of its own",
    r"\bnor (?:is|are|was|were|does|do|did|has|have|can|may)\b": "start a new sentence",
    r"\b(?:made|computed|counted|planned|numbered) anew\b": "say 'recomputed', or 'again'",
    r"\bso many times (?:fewer|less|more|smaller|larger)\b": "say how many times",
    r"\bhalf as (?:long|much|many) again\b": "give the factor",
}
"""Turns of phrase that a reader has to read twice, and what to write in their place."""

GAP = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n(?=\s*[|*-] )")
"""The space between two sentences, paragraphs, rows or items."""


class Finding(NamedTuple):
    """A sentence to rewrite: where it stands, the sentence, and what is wrong with it."""

    path: Path
    line: int
    sentence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.sentence}\n  {self.advice}"


def check_source(path: Path, text: str) -> Iterator[Finding]:
    """Yield the findings of a Python file, in its docstrings and in its other texts."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            docstring = ast.get_docstring(node)
            advice = docstring and _check_opening(node, docstring)
            if docstring and advice:
                yield Finding(path, node.body[0].lineno, _first_sentence(docstring), advice)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _check_phrases(path, node.lineno, node.value)


def check_page(path: Path, text: str) -> Iterator[Finding]:
    """Yield the findings of a page in Markdown. Code keeps its lines, but is blank."""
    prose = re.sub(r"^```.*?^```|^    .*?$|`[^`\n]*`", _blank, text, flags=re.DOTALL | re.MULTILINE)
    return _check_phrases(path, 1, prose)


def check_repository() -> list[Finding]:
    """Return all findings in the package, its README and its docs."""
    findings: list[Finding] = []
    for path in sorted((ROOT / "tngraph").rglob("*.py")):
        findings += check_source(path.relative_to(ROOT), path.read_text())
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        findings += check_page(path.relative_to(ROOT), path.read_text())
    return sorted(findings)


def _check_opening(node: ast.AST, docstring: str) -> str | None:
    """Return what is wrong with the first word of a docstring, or None."""
    first = docstring.split()[0].rstrip(",:.")
    if OPENING.match(docstring):
        return f"a docstring does not start with {first!r}"
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_family(node):
        return None
    if _is_property(node):
        return "a property is a value: its docstring is a noun phrase" if first in ("Return", "Yield") else None
    return None if first in VERBS.split() else f"a docstring starts with a verb, and {first!r} is not one of `VERBS`"


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = {getattr(decorator, "id", None) for decorator in node.decorator_list}
    return not decorators.isdisjoint({"property", "cached_property"})


def _is_family(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.args.args[0].annotation if node.args.args else None
    return isinstance(first, ast.Name) and first.id == "Weight" and not node.name.startswith("_")


def _check_phrases(path: Path, line: int, text: str) -> Iterator[Finding]:
    for pattern, advice in BANNED.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE):
            yield Finding(path, line + text.count("\n", 0, match.start()), _sentence_at(text, match.start()), advice)


def _sentence_at(text: str, position: int) -> str:
    start = max((gap.end() for gap in GAP.finditer(text, 0, position)), default=0)
    return _first_sentence(text[start:])


def _first_sentence(text: str) -> str:
    return " ".join(GAP.split(text.strip(), maxsplit=1)[0].split())


def _blank(code: re.Match[str]) -> str:
    return "\n" * code[0].count("\n") or "code"


def main() -> None:
    """Print every finding, and exit with 1 if there is one."""
    findings = check_repository()
    for finding in findings:
        print(finding)
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
