"""Measured machines: some are built in, others are on disk.

There is one file per device and type of numbers, in the folder `machines` of the cache. ``TNGRAPH_CACHE`` moves the
folder or turns it ``off``, as it does for the results of searches. Files are written atomically. A file that is
damaged or belongs to another device is ignored.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict
from math import inf
from pathlib import Path

from tngraph.compiler.cache import named_folder
from tngraph.files import read_bytes, write_whole
from tngraph.search.machine import Machine

_KEPT = 1e15
"""On a GPU PyTorch reuses all the memory it has ever allocated, so no result needs fresh pages."""
BUILT_IN = {
    "float32": Machine(3.0e13, 28, 20, 0.02, 7.1e12, 6.5e11, 3.2e6, 3.2e10, _KEPT, 6.6, 7.8e-6, 1.2e-5, 1.2e-6),
    "tf32": Machine(2.3e14, 76, 58, 14, 1.5e12, 4.6e11, 7.6e7, 3.2e10, _KEPT, 20, 6.9e-6, 1.1e-5, 1.1e-6),
    "bfloat16": Machine(1.8e15, 82, 121, 0.002, 3.8e12, 5.2e11, 9.1e7, 3.2e10, _KEPT, 82, 6.9e-6, 1.1e-5, 1.1e-6),
}
"""A GPU for each type of numbers, as measured on an H100. Starting a kernel takes as long as running a short one."""
LONGEST_PROFILE = 2**16
"""The longest file that is read [bytes]."""


def save_machine(machine: Machine, device: str, dtype: str) -> Path | None:
    """Save a machine on disk, in place of the one saved before for this device and type.

    Args:
        machine: the measured machine.
        device: the full name of the device, with its number of threads.
        dtype: the type of numbers, as ``float32``.

    Returns:
        The file, or None if the cache is off.

    Raises:
        OSError: the file cannot be written.
    """
    place = _place(device, dtype)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        fields = {"device": device, "dtype": dtype, "machine": asdict(machine)}
        write_whole(place, json.dumps(fields, indent=2) + "\n")
    return place


def built_in_machine(device: str, dtype: str) -> Machine:
    """Return the machine to assume for a device that was not measured: an H100 for any GPU, two CPU cores for all else.

    Args:
        device: the full name of the device.
        dtype: the type of numbers. On a GPU, a type that is not built in counts as float32.
    """
    return BUILT_IN.get(dtype, BUILT_IN["float32"]) if device.startswith("cuda") else Machine()


def load_machine(device: str, dtype: str) -> Machine | None:
    """Return the machine that was saved for a device and a type of numbers, or None if there is none."""
    place = _place(device, dtype)
    if place is not None:
        with suppress(OSError, ValueError, RecursionError):
            return _parse_profile(read_bytes(place, LONGEST_PROFILE), device, dtype)
    return None


def _place(device: str, dtype: str) -> Path | None:
    folder = named_folder("machines")
    name = re.sub(r"[^a-z0-9]+", "-", f"{device} {dtype}".lower()).strip("-")
    return None if folder is None else folder / f"{name[-200:]}.json"


def _parse_profile(data: bytes, device: str, dtype: str) -> Machine:
    """Return the machine in a file.

    Raises:
        ValueError: the file holds no machine, or that of another device.
    """
    fields = json.loads(data)
    if not isinstance(fields, dict) or (fields.get("device"), fields.get("dtype")) != (device, dtype):
        raise ValueError("the file is of another device")
    numbers = fields.get("machine")
    if not isinstance(numbers, dict) or numbers.keys() != asdict(Machine()).keys():
        raise ValueError("the file has no machine")
    if not all(type(number) in (int, float) and 0 < number < inf for number in numbers.values()):
        raise ValueError("a number of the machine is not positive")
    return Machine(**{name: float(number) for name, number in numbers.items()})
