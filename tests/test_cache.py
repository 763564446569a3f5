"""What searches found, on disk: hits are what the search would give, and nothing that happens to a file matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tngraph as tg
from tests.networks import networks
from tngraph.compiler import cache, ranges, tasks, timed
from tngraph.language.network import Network

RING = "examples/specs/ring_tied.tn"
CHAIN = """network chain { size batch; size D = 4; input x[batch, b0:D]; index b{1..5}: D
  for k in 1..5 { param w{k}[b{k-1}, b{k}] }
  y[batch, b5] = x * w{1..5}; output y[batch, b5] }"""
WINDOWS = """network windows { size batch; size h; input x[batch, p:h, q:9]; param a[k:3, c:2]; param b[l:3, c]
  index i: h - 2; index j: 7
  y[batch, i, j] = relu(x[batch, i + k, j + l] * a * b); output y[batch, i, j] }"""


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The searches that are made, by what they are made with."""
    made: list[str] = []
    places = [("find_intervals", ranges), ("search_tree", tasks), ("search_tree", timed), ("_solve_points", ranges)]
    for name, module in places:
        inner = getattr(module, name)

        def count(*args: Any, name: str = name, inner: Any = inner) -> Any:
            made.append(name)
            return inner(*args)

        monkeypatch.setattr(module, name, count)
    return made


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".json")


def plan_without(network: Network, **options: Any) -> tg.Plan:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TNGRAPH_CACHE", "off")
        return tg.plan(network, **options)


@settings(max_examples=settings().max_examples // 3)
@given(networks(), st.sampled_from(["infer", "train", "serve"]), st.sampled_from(["flops", "writes", "time"]))
def test_a_hit_is_what_the_search_would_give(network: Network, mode: Any, minimize: str):
    searched = plan_without(network, mode=mode, minimize=minimize)
    first = tg.plan(network, mode=mode, minimize=minimize)
    assert tg.plan(network, mode=mode, minimize=minimize) == first == searched


@pytest.mark.parametrize("text", [CHAIN, WINDOWS])
@pytest.mark.parametrize("sizes", [{}, {"batch": 8}])
def test_a_second_plan_searches_nothing(text: str, sizes: dict[str, int], searches: list[str], cache_folder: Path):
    first = tg.plan(tg.parse(text), sizes)
    assert searches
    searches.clear()
    assert tg.plan(tg.parse(text), sizes) == first
    assert searches == []
    assert entries(cache_folder)
    assert plan_without(tg.parse(text), sizes=sizes) == first


def test_a_region_without_sizes_is_not_that_of_many_points():
    """One search is of the points of a grid, as there are two free sizes; the other is of one."""
    grid = "size a; size b; input x[i:a, j:b]; param s[]; param t[]; y[] = relu(s * t); z[i, j] = x * y; output z[i, j]"
    one = "param s[]; param t[]; y[] = relu(s * t); output y[]"
    for text in (grid, one, grid):
        assert tg.plan(tg.parse(f"network n {{ {text} }}")).is_proven


def test_names_do_not_matter(searches: list[str]):
    tg.plan(tg.parse(CHAIN))
    searches.clear()
    renamed = CHAIN.replace("batch", "rows").replace("w{", "core{").replace("b{", "bond{").replace("b0", "bond0")
    tg.plan(tg.parse(renamed.replace("b5", "bond5").replace("D", "R")))
    assert searches == []


@pytest.mark.parametrize(
    "options",
    [
        {"sizes": {"D": 5}},
        {"sizes": {"batch": 3}},
        {"mode": "train"},
        {"mode": "train", "requires_grad": {"w1": False}},
        {"mode": "serve"},
        {"minimize": "writes"},
        {"minimize": "time"},
        {"search": tg.Search(seed=1)},
        {"search": tg.Search(samples=3)},
    ],
    ids=str,
)
def test_what_a_search_depends_on_does(options: dict[str, Any], searches: list[str]):
    tg.plan(tg.parse(CHAIN))
    searches.clear()
    tg.plan(tg.parse(CHAIN), **options)
    assert searches


def test_progress_is_no_part_of_a_search(searches: list[str]):
    tg.plan(tg.parse(CHAIN))
    searches.clear()
    tg.plan(tg.parse(CHAIN), search=tg.Search(progress=print))
    assert searches == []


def test_other_code_searches_anew(searches: list[str], monkeypatch: pytest.MonkeyPatch):
    tg.plan(tg.parse(CHAIN))
    searches.clear()
    monkeypatch.setattr(cache, "code_version", lambda: "another")
    tg.plan(tg.parse(CHAIN))
    assert searches


def test_an_edit_searches_only_what_it_touches(searches: list[str]):
    """Twenty layers of different bonds with a function between."""
    lines = [f"h{k}[batch, i] = relu(h{k - 1} * a{k} * c{k})" for k in range(1, 21)]
    cores = [f"param a{k}[i, r{k}:{k + 1}]; param c{k}[r{k}, j:64]" for k in range(1, 21)]
    lines = [line.replace("[batch, i]", "[batch, j]").replace(f"h{k - 1} *", f"h{k - 1}[batch, i] *")
             for k, line in enumerate(lines, 1)]  # fmt: skip
    text = "\n".join(["network deep { size batch; input h0[batch, i:64]", *cores, *lines, "output h20[batch, j] }"])
    tg.plan(tg.parse(text))
    searches.clear()
    tg.plan(tg.parse(text.replace("r7:8", "r7:9000")))
    assert searches.count("find_intervals") == 1


def test_a_users_function_is_asked_every_time(cache_folder: Path):
    tg.plan(tg.parse(CHAIN), {"batch": 2}, minimize=lambda work: work.operations)
    assert entries(cache_folder) == []


def test_off_is_off(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TNGRAPH_CACHE", "off")
    tg.plan(tg.parse(CHAIN))
    assert entries(cache_folder) == []
    assert not Path("off").exists()


def test_the_users_own_folder_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TNGRAPH_CACHE", "")
    monkeypatch.setattr(cache, "_default_folder", lambda: str(tmp_path / "made" / "here"))
    tg.plan(tg.parse(CHAIN))
    assert entries(tmp_path / "made" / "here")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_no_cache(cache_folder: Path):
    cache_folder.chmod(0o500)
    assert tg.plan(tg.parse(CHAIN)) == plan_without(tg.parse(CHAIN))
    cache_folder.chmod(0o700)


def test_a_folder_that_is_a_file_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("TNGRAPH_CACHE", str(place))
        assert tg.plan(tg.parse(CHAIN)) == plan_without(tg.parse(CHAIN))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_no_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", fail)
    assert tg.plan(tg.parse(CHAIN)) == plan_without(tg.parse(CHAIN))
    assert list(cache_folder.iterdir()) == []


def forge(body: str) -> str:
    """A file whose sum is right."""
    return f"{cache.check_sum(body.encode())}\n{body}"


SWEEP = [[0, 1], [6, 2], [7, 3], [8, 4], [9, 5]]


def row(
    low: object = 1, high: object = None, is_proven: object = True, order: list[Any] = SWEEP, reads: Sequence[int] = ()
) -> str:
    """One interval of the chain, as its file holds it; the first move lays out the reads."""
    moves = [{"operands": operands, "reads": [] if k else list(reads)} for k, operands in enumerate(order)]
    return json.dumps([[low, high, is_proven, moves]])


def test_a_forged_interval_is_read(cache_folder: Path, searches: list[str]):
    plan = tg.plan(tg.parse(CHAIN), {"batch": 2})
    for path in entries(cache_folder):
        path.write_text(forge(row()))
    searches.clear()
    assert tg.plan(tg.parse(CHAIN), {"batch": 2}).at().macs == plan.at().macs
    assert searches == []


DAMAGED = {
    "empty": "",
    "half": None,
    "text": "hello",
    "not UTF-8": "\udcff",
    "no list": forge("{}"),
    "no rows": forge("[1]"),
    "no JSON": forge("[[1,"),
    "deep": forge("[" * 10**5),
    "a gap": forge(row(2)),
    "no end": forge(row(1, 7)),
    "a range that ends before it begins": forge(row(1, 0)),
    "true for one": forge(row(True)),
    "no proof": forge(row(is_proven=1)),
    "too few moves": forge(row(order=[[0, 1]])),
    "a value twice": forge(row(order=[[0, 1], [0, 2], *SWEEP[2:]])),
    "a move that is none": forge(row(order=[[0]])),
    "a number that is none": forge(row(order=[[0, 1.0], *SWEEP[1:]])),
    "a read that is not there": forge(row(order=[[0], *SWEEP], reads=[3])),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_a_miss_and_goes(name: str, cache_folder: Path, searches: list[str]):
    plan = tg.plan(tg.parse(CHAIN))
    damaged = DAMAGED[name]
    for path in entries(cache_folder):
        whole = path.read_text()
        path.write_text(whole[: len(whole) // 2] if damaged is None else damaged, errors="surrogateescape")
    searches.clear()
    assert tg.plan(tg.parse(CHAIN)) == plan
    assert searches
    searches.clear()
    assert tg.plan(tg.parse(CHAIN)) == plan
    assert searches == []


def test_a_forged_order_is_another_order_and_no_other_result(cache_folder: Path):
    """Who can write to the folder can make a plan dear; not wrong."""
    network = tg.parse(CHAIN)
    plan = tg.plan(network, {"batch": 2})
    for path in entries(cache_folder):
        path.write_text(forge(row(order=[[5, 4], [3, 6], [7, 2], [8, 1], [9, 0]])))
    forged = tg.plan(network, {"batch": 2})
    assert forged.at().macs > plan.at().macs
    assert tg.compile(forged).verify().is_equal


def test_what_was_not_used_for_longest_makes_room(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 8 * 4096)
    names = [f"{number:064x}.json" for number in range(6)]
    for age, name in enumerate([*names, ".tngraph-1-2.tmp", "mine.txt", ".tngraph-1-3.tmp"]):
        (cache_folder / name).write_text("x" * 5000 if name.endswith("json") else "x")
        os.utime(cache_folder / name, (1000 + age, 1000 + age))
    (cache_folder / "mine.txt").write_text("x" * 10**6)
    cache._make_room(cache_folder)
    left = {path.name for path in cache_folder.iterdir()}
    assert left == {*names[3:], ".tngraph-1-2.tmp", "mine.txt", ".tngraph-1-3.tmp"}
    cache._make_room(cache_folder)
    assert {path.name for path in cache_folder.iterdir()} == left


def test_a_write_now_and_then_makes_room(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 100 * 4096)
    for number in range(256 * 4):
        cache.write_entry(cache_folder / f"{number % 256:02x}{number:062x}.json", "x")
    assert len(entries(cache_folder)) <= 100 + 256


def test_a_hit_is_used_last(cache_folder: Path):
    plan = tg.plan(tg.parse(CHAIN))
    for path in entries(cache_folder):
        os.utime(path, (1000, 1000))
    assert tg.plan(tg.parse(CHAIN)) == plan
    assert any(path.stat().st_mtime > 2000 for path in entries(cache_folder))


WORKER = """
import sys, tngraph as tg
seed = 0
while True:
    for D in range(2, 8):
        tg.plan(tg.parse(sys.argv[1]), {"D": D, "batch": 2 + seed % 5}, search=tg.Search(seed=seed))
    seed += 1
    print(seed, flush=True)
"""
KILLED = """
import os, signal, sys, pathlib, tngraph as tg
pathlib.Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
tg.plan(tg.parse(sys.argv[1]))
"""


def start(code: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", code, CHAIN], stdout=subprocess.PIPE, env=environment)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_process_killed_as_it_writes_leaves_no_entry(cache_folder: Path):
    with start(KILLED) as worker:
        assert worker.wait(timeout=60) == -signal.SIGKILL
    assert [path.suffix for path in cache_folder.iterdir()] == [".tmp"]
    assert tg.plan(tg.parse(CHAIN)) == plan_without(tg.parse(CHAIN))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_writers_that_are_killed_do_not_disturb_readers(cache_folder: Path):
    """Three processes search and write the same regions and are killed at any moment; what is left is whole."""
    workers = [start(WORKER) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    for worker in workers:
        time.sleep(0.05)
        worker.kill()
        worker.wait(timeout=60)
        worker.stdout.close()  # type: ignore[union-attr]
    found = entries(cache_folder)
    assert len(found) >= 6
    for path in found:
        given, _, body = path.read_bytes().partition(b"\n")
        assert given.decode() == cache.check_sum(body)
    for bond in range(2, 8):
        options: dict[str, Any] = {"sizes": {"D": bond, "batch": 2}}
        assert tg.plan(tg.parse(CHAIN), **options) == plan_without(tg.parse(CHAIN), **options)


# -------------------------------------------------------------------------------------------- whole plans


def test_plans_for_time_and_fronts_are_read_back(searches: list[str], monkeypatch: pytest.MonkeyPatch):
    network = tg.parse(CHAIN)
    first = tg.plan(network, {"batch": 4}, minimize="time"), tg.front(network, {"batch": 4})
    monkeypatch.setattr("tngraph.compiler.pipeline.find_fastest", None)
    monkeypatch.setattr("tngraph.compiler.pipeline.find_front", None)
    assert (tg.plan(network, {"batch": 4}, minimize="time"), tg.front(network, {"batch": 4})) == first


def test_a_damaged_plan_is_searched_for_again(cache_folder: Path):
    network = tg.parse(CHAIN)
    first = tg.plan(network, {"batch": 4}, minimize="time")
    for file in cache_folder.glob("*.json"):
        file.write_text(file.read_text()[:-3])
    assert tg.plan(network, {"batch": 4}, minimize="time") == first
