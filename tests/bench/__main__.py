"""How fast the compiled FC-2 layer (784 → 256, four sites, D = 4) is beside what else one could write for it.

    make bench

Every candidate computes relu(W x + b) with a bias and, the dense one excepted, from cores of the same shapes. They
are timed in turns, round after round, so that a slow minute of the machine is shared by all; each number is a median.
A ratio above 1 is how many times longer a candidate takes than the compiled layer.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tednet.tnn.tensor_train
import tltorch
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tngraph as tg

SPEC = Path(__file__).parents[2] / "examples" / "specs" / "fc2_mpo.tn"
IN, OUT, BOND = (4, 7, 7, 4), (4, 4, 4, 4), 4
BATCHES = (1, 32, 512)
THREADS = 2
ROUNDS = 31
SECONDS_PER_TURN = 0.01

Call = Callable[[], object]


class Einsum(nn.Module):
    """The layer as one `torch.einsum` over the compiled layer's own parameters, in the order torch picks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.cores = dict(layer.named_parameters())

    def forward(self, x: Tensor) -> Tensor:
        cores = [self.cores[name] for name in ("w1", "w2", "w3", "w4")]
        y = torch.einsum("zabcd,aep,pbfq,qcgr,rdh->zefgh", x.unflatten(1, IN), *cores)
        return torch.relu(y + self.cores["bias"]).flatten(1)


def make_candidates() -> dict[str, nn.Module]:
    """Name to layer, each `(batch, 784)` to `(batch, 256)`; the compiled one first."""
    compiled = tg.compile(tg.load(SPEC))
    tensorly = tltorch.FactorizedLinear(IN, OUT, bias=True, factorization="blocktt", rank=BOND)
    for parameter in tensorly.parameters():
        nn.init.normal_(parameter, std=0.1)
    with contextlib.redirect_stdout(None):  # it prints its compression ratio
        tt = tednet.tnn.tensor_train.TTLinear(IN, OUT, [BOND] * 3)
    return {
        "compiled": compiled,
        "dense": nn.Sequential(nn.Linear(784, 256), nn.ReLU()),
        "torch.einsum": Einsum(compiled),
        "tensorly-torch": nn.Sequential(tensorly, nn.ReLU()),
        "tednet": nn.Sequential(tt, nn.ReLU()),
    }


def make_call(layer: nn.Module, x: Tensor, backward: bool) -> Call:
    """One turn of `layer`: forward, or forward and the gradients of every parameter and of the input."""
    if not backward:
        return torch.no_grad()(lambda: layer(x))
    x = x.clone().requires_grad_()
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    if isinstance(layer, Einsum):
        parameters = list(layer.cores.values())
    return lambda: torch.autograd.grad(layer(x).sum(), [x, *parameters])


def measure(calls: dict[str, Call]) -> dict[str, float]:
    """Median seconds of one call of each, timed in turns."""
    repeats = {name: max(1, round(SECONDS_PER_TURN / time_once(call, 3))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(time_once(call, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def time_once(call: Call, repeats: int) -> float:
    """Mean seconds of `repeats` calls, after one that is not counted."""
    call()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def main() -> None:
    """Check that the candidates agree where they share weights, time them, print the ratios."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    candidates = make_candidates()
    names = list(candidates)
    table = Table(title=f"FC-2 MPO layer, float32, {THREADS} threads, medians of {ROUNDS} rounds", title_justify="left")
    table.add_column("batch", justify="right")
    table.add_column("pass")
    table.add_column("compiled [µs]", justify="right")
    for name in names[1:]:
        table.add_column(f"{name} / compiled", justify="right")
    for batch in BATCHES:
        x = torch.randn(batch, 784)
        torch.testing.assert_close(candidates["torch.einsum"](x), candidates["compiled"](x))
        for backward in (False, True):
            seconds = measure({name: make_call(layer, x, backward) for name, layer in candidates.items()})
            ratios = (f"{seconds[name] / seconds['compiled']:.2f}" for name in names[1:])
            label = "with backward" if backward else "forward"
            table.add_row(str(batch), label, f"{seconds['compiled'] * 1e6:.0f}", *ratios)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
