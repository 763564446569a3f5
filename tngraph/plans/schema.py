"""The schema of a plan's file: what `saving` writes and `loading` reads, each field with its type.

A file holds decisions only. What follows from them is not in the file, so that a file cannot contradict itself.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from tngraph.errors import PlanError
from tngraph.language.sizes import LARGEST
from tngraph.plans.measured import Measured
from tngraph.search.replay import Move

FORMAT = "tngraph plan"
VERSION = 2
"""The version of the file format. It changes when the meaning of a file changes."""

Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Names = list[str]
"""Names of indices or equations, or legs as the language writes them."""


class Fields(msgspec.Struct, forbid_unknown_fields=True):
    """An object of the file, with exactly these fields."""


class RequestFields(Fields):
    """A request; `make_request` checks it."""

    mode: str
    minimize: str | dict[str, Any]
    trained: Names
    itemsize: int
    memory_limit: int | None
    largest: int | None
    most_folded: Count | None


class MatmulFields(Fields):
    """A matmul layout."""

    outer: Names
    rows: Names
    columns: Names
    summed: Names
    transposed: tuple[bool, bool]


class GradientFields(Fields):
    """The product that computes a gradient. Gradients stand in the order of their steps, from the last one on."""

    matmul: MatmulFields
    arranged: bool
    added: bool


class TileFields(Fields):
    """A tile."""

    index: str
    size: Positive


class TreeFields(Fields):
    """The tree of a term."""

    is_proven: bool
    is_pinned: bool
    sliced: Names
    moves: list[Move]
    matmuls: list[MatmulFields]
    gradients: list[GradientFields]
    tile: TileFields | None


class EquationFields(Fields):
    """An equation of the merged network, with a tree per term."""

    name: str
    terms: list[TreeFields]


class RegimeFields(Fields):
    """A regime, and the intervals of its operations that run once more in the backward pass."""

    first: Positive
    last: Positive | None
    equations: list[EquationFields]
    recomputed: list[tuple[Count, Count]]


class Decisions(Fields):
    """The decisions for a network: the equations that were inlined, the free sizes, and the regimes."""

    inlined: Names
    free: Names
    regimes: list[RegimeFields]


class PlanFields(Fields):
    """A whole file."""

    format: str
    version: int
    sha256: str
    network: str
    request: RequestFields
    sizes: dict[str, Any]
    plan: Decisions
    unpinned: Decisions | None
    measured: list[Measured]


class _Header(msgspec.Struct):
    """The fields that say whether the others can be read."""

    format: Any = None
    version: Any = None


def decode_plan(data: bytes) -> PlanFields:
    """Return the fields of a file.

    Raises:
        PlanError: the file is not JSON, not a plan, of another version, or a field has another type.
    """
    try:
        header = msgspec.json.decode(data, type=_Header)
        if header.format == FORMAT and header.version == VERSION:
            return msgspec.json.decode(data, type=PlanFields)
    except msgspec.ValidationError as error:
        if data.lstrip().startswith(b"{"):
            raise PlanError(_describe_mismatch(str(error))) from None
        header = _Header()
    except RecursionError:
        raise PlanError("the file is nested too deep for a plan") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        problem = str(error).removeprefix("JSON is malformed: ")
        raise PlanError(f"the file is not JSON: {problem}") from None
    if header.format != FORMAT:
        raise PlanError(f"the file is not a plan\n  a plan has 'format': {FORMAT!r}")
    raise PlanError(f"the plan is of version {header.version!s:.20}, and this tngraph reads version {VERSION}")


_TYPES = {
    "array": "a list",
    "bool": "a truth value",
    "float": "a number",
    "int": "an integer",
    "null": "null",
    "object": "an object",
    "str": "a text",
}


def _describe_mismatch(error: str) -> str:
    """Return an error of msgspec in the words of the docs.

    Example:
        >>> _describe_mismatch("Expected `int | null`, got `str` - at `$.plan.regimes[0].last`")
        'regime 1, last: expected an integer or null, got a text'
    """
    problem, _, path = error.partition(" - at ")
    numbered = re.sub(r"(\w+?)s?\[(\d+)\]", lambda match: f"{match[1]} {int(match[2]) + 1}", path.strip("`$."))
    place = numbered.replace("[...]", "").replace(".", ", ").removeprefix("plan, ") or "the plan"
    words = re.sub(r"`([^`]*)`", lambda quoted: _name_types(quoted[1]), problem)
    return f"{place}: {words[:1].lower()}{words[1:]}"


def _name_types(quoted: str) -> str:
    """Return types in the words of the docs, and the name of a field in quotes."""
    return " or ".join(_TYPES.get(name, repr(name)) for name in quoted.split(" | "))
