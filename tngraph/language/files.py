"""Files as they are read and written: no longer than is allowed, and whole or not at all."""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import BinaryIO


def read_bytes(path: str | Path, most: int, stream: BinaryIO | None = None) -> bytes:
    """The content of a file, or of a stream that stands for it; of a longer one than ``most`` the first ``most + 1``.

    Raises:
        OSError: it cannot be read.
        ValueError: the path is none.
    """
    _check_path(path)
    with open(path, "rb") if stream is None else nullcontext(stream) as source:
        return source.read(most + 1)


def write_whole(path: str | Path, text: str) -> None:
    """Write a whole file or none: beside its place first, then in one move. A link is followed.

    Raises:
        OSError: it cannot be written.
        ValueError: the path is none.
    """
    _check_path(path)
    place = Path(os.path.realpath(path))
    beside = place.with_name(f".tngraph-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        beside.write_text(text, "utf-8", newline="\n")
        beside.replace(place)
    finally:
        with suppress(OSError):
            beside.unlink()


def _check_path(path: object) -> None:
    """Refuse anything but text and path objects: Python would take an integer for an open file."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError("not a path")


def explain(error: OSError | ValueError) -> str:
    """Why a file cannot be read or written, as the end of a sentence."""
    return str(getattr(error, "strerror", None) or error).lower()
