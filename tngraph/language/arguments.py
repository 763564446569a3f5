"""Checks of what public functions are given: a value of another kind is refused in the caller's words."""

from __future__ import annotations

from collections.abc import Mapping

from tngraph.errors import NetworkError
from tngraph.language.network import Network


def check_network(value: object) -> None:
    """Raise `NetworkError` unless a value is a network."""
    if not isinstance(value, Network):
        raise NetworkError(f"{value!r} is not a network", "tg.load reads one from a file")


def check_mapping(what: str, value: object, hint: str = "it maps each name to its size") -> None:
    """Raise `NetworkError` unless a value maps names to something, or is None."""
    if value is not None and not isinstance(value, Mapping):
        raise NetworkError(f"{what} is {value!r}", hint)
