"""What every test stands on: how many examples hypothesis draws, and how many threads a worker may use."""

import os

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
