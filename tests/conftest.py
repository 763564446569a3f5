"""What every test stands on: how many examples hypothesis draws, threads, random numbers and a cache of its own."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two xdist workers with two threads each on two cores wait for one another. Set before anything imports torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# Derandomised: the same tree gives the same verdict on every machine. No deadline: a busy machine is not a bug.
_common = {"derandomize": True, "deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("some", max_examples=200, **_common)
settings.register_profile("all", max_examples=3000, **_common)
settings.load_profile("some")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what searches find: a test neither reads nor writes that of a user or of another test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TNGRAPH_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def random_numbers() -> None:
    """The same params in a test whatever ran before it; PyTorch itself starts from one seed, if it is not there yet."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
