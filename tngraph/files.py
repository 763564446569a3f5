"""Reading and writing of files: never longer than allowed, and written whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO


def read_bytes(path: str | Path, most: int, stream: BinaryIO | None = None) -> bytes:
    """Return the content of a file, or of a stream that stands for it, at most ``most + 1`` bytes.

    So a caller who gets ``most + 1`` bytes knows that the file is too long.

    Raises:
        OSError: it cannot be read.
        ValueError: the path is not a valid one.
    """
    _check_path(path)
    with open(path, "rb") if stream is None else nullcontext(stream) as source:
        return source.read(most + 1)


def write_whole(path: str | Path, text: str) -> None:
    """Write a whole file or nothing: write beside it first, then replace it in one move. A link is followed.

    Raises:
        OSError: it cannot be written.
        ValueError: the path is not a valid one.
    """
    with replacing([path]) as (beside,):
        beside.write_text(text, "utf-8", newline="\n")


@contextmanager
def replacing(paths: Sequence[str | Path]) -> Iterator[list[Path]]:
    """Give a path to write beside each of some files; replace the files when all are written, or none at an error.

    Raises:
        OSError: a file cannot be written.
        ValueError: a path is not a valid one.
    """
    for path in paths:
        _check_path(path)
    places = [Path(os.path.realpath(path)) for path in paths]
    stem = f".tngraph-{os.getpid()}-{threading.get_ident()}"
    beside = [place.with_name(f"{stem}-{number}.tmp") for number, place in enumerate(places)]
    try:
        yield beside
        for temporary, place in zip(beside, places, strict=True):
            temporary.replace(place)
    finally:
        for temporary in beside:
            with suppress(OSError):
                temporary.unlink()


def _check_path(path: object) -> None:
    """Raise `ValueError` unless a path is text or a path object. Python would take an integer for an open file."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError("not a path")


def explain(error: OSError | ValueError) -> str:
    """Return why a file cannot be read or written, as the end of a sentence."""
    return str(getattr(error, "strerror", None) or error).lower()
