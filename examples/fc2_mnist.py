"""FC-2 (784 → 256 → 10) from two spec files: plan it, compile it, train it on real images beside the dense net.

Run it with `make demo`, or in an environment that has tngraph and scikit-learn:

    python examples/fc2_mnist.py [--data FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

import tngraph as tg
from data import DataError, Images, load_digits, load_images

SPECS = Path(__file__).parent / "specs"
BATCH = 128
LEARNING_RATE = 5e-3
STEPS = 5000
"""Updates of each net: about 10 passes through MNIST, or 450 through the digits."""


def main() -> None:
    """Compile, count, train, compare."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", metavar="FOLDER", help="where the four IDX files of MNIST lie, plain or gzipped")
    folder = arguments.parse_args().data
    console = Console(highlight=False)

    plans = [tg.plan(tg.load(SPECS / file), sizes={"batch": BATCH}) for file in ("fc2_mpo.tn", "fc2_head_mpo.tn")]
    for plan in plans:
        console.print(str(plan), markup=False, soft_wrap=True)
        console.print()

    torch.manual_seed(0)
    mpo = nn.Sequential(*(tg.compile(plan) for plan in plans))
    dense = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    console.print(compare_counts(plans))

    try:
        images = load_images("mnist", folder) or load_digits()
    except DataError as problem:  # the folder on the command line is not what it should be
        raise SystemExit(f"fc2_mnist: {problem}") from None
    accuracies = {
        title: train(net, images, title, console) for title, net in (("two MPO layers", mpo), ("dense", dense))
    }
    weights = count_weights(mpo), count_weights(dense)
    console.print(
        f"\nOn the {len(images.test_y):,} test images of {images.name}: "
        f"MPO {accuracies['two MPO layers']:.2%} with {weights[0]:,} parameters, "
        f"dense {accuracies['dense']:.2%} with {weights[1]:,}.",
        soft_wrap=True,
    )


def compare_counts(plans: list[tg.Plan]) -> Table:
    """What the plans count at this batch, beside the dense layers they stand for."""
    table = Table(title=f"Counts at batch {BATCH}; weights without biases", title_justify="left")
    table.add_column("layer")
    for column in ("weights", "dense weights", "compression", "FLOPs", "dense FLOPs"):
        table.add_column(column, justify="right")
    rows = []
    for plan, (fan_in, fan_out) in zip(plans, ((784, 256), (256, 10)), strict=True):
        counts, dense = plan.at(batch=BATCH), fan_in * fan_out
        rows.append((counts.params - fan_out, dense, counts.flops, 2 * BATCH * dense))
        table.add_row(f"{fan_in} → {fan_out}", *_format_row(*rows[-1]))
    table.add_row("both", *_format_row(*(sum(column) for column in zip(*rows, strict=True))))
    return table


def _format_row(weights: int, dense: int, flops: int, dense_flops: int) -> tuple[str, ...]:
    return f"{weights:,}", f"{dense:,}", f"{dense / weights:.1f}×", f"{flops:,}", f"{dense_flops:,}"


def train(net: nn.Module, images: Images, title: str, console: Console) -> float:
    """Train `net` and say how it goes; its accuracy on the test images, 0 to 1."""
    x, y = as_tensors(images.train_x, images.train_y)
    test_x, test_y = as_tensors(images.test_x, images.test_y)
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    shuffle = torch.Generator().manual_seed(0)
    began, order = time.perf_counter(), x.new_empty(0, dtype=torch.int64)
    with show_progress(console) as progress:
        for _ in progress.track(range(STEPS), description=f"training {title}"):
            if len(order) < BATCH:
                order = torch.randperm(len(x), generator=shuffle)
            chosen, order = order[:BATCH], order[BATCH:]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    accuracy = measure_accuracy(net, test_x, test_y)
    seconds = time.perf_counter() - began
    console.print(f"{title}: {accuracy:.2%} on the test images after {STEPS:,} steps in {seconds:.0f} s")
    return accuracy


def show_progress(console: Console) -> Progress:
    """A bar in a terminal; nothing in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def as_tensors(x: object, y: object) -> tuple[Tensor, Tensor]:
    """Images as `(n, 784)` with mean and spread near 0 and 1 (MNIST's own: 0.1307 and 0.3081), labels as integers."""
    pixels = torch.tensor(x).flatten(1).float() / 255
    return (pixels - 0.1307) / 0.3081, torch.tensor(y).long()


@torch.no_grad()
def measure_accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of `x` that `net` names right."""
    return torch.cat([net(part).argmax(1) for part in x.split(1000)]).eq(y).double().mean().item()


def count_weights(net: nn.Module) -> int:
    """Trained numbers [elements], biases included."""
    return sum(parameter.numel() for parameter in net.parameters())


if __name__ == "__main__":
    main()
