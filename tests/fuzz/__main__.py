"""Run a piece of the fuzz: ``python -m tests.fuzz --start 0 --count 1000``."""

from __future__ import annotations

import os
import sys
import time
import warnings
from typing import Annotated

import torch
import typer

from tests.fuzz.running import WAYS, check_seed

SHOWN_EVERY = 15.0
"""Between two lines of progress [s]."""


def main(
    start: Annotated[int, typer.Option(help="The seed of the first network.")] = 0,
    count: Annotated[int, typer.Option(help="How many networks.")] = 1000,
) -> None:
    """Run random networks in random ways beside their meaning; exit with 1 where anything differs."""
    os.environ["TNGRAPH_CACHE"] = "off"
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    begin = shown = time.monotonic()
    found = 0
    for number, seed in enumerate(range(start, start + count), 1):
        for finding in check_seed(seed):
            found += 1
            print(f"\n{finding}", flush=True)
        if number == count or time.monotonic() - shown > SHOWN_EVERY:
            shown = time.monotonic()
            print(f"{number:,} of {count:,} networks, {shown - begin:,.0f} s, {found} differ", flush=True)
    print(f"{count:,} networks from seed {start:,}, each in {WAYS} ways: {found or 'none'} differ")
    sys.exit(found > 0)


if __name__ == "__main__":
    typer.run(main)
