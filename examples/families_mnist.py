"""FC-2 and LeNet-5 on real MNIST, with every family in place of their linear and convolutional layers.

Prints one table: parameters, compression, FLOPs of a forward pass, accuracy after one epoch, seconds it took. A family
that has no place for a window leaves the convolutions as they are; the table says which were replaced.

    python examples/families_mnist.py [FAMILY ...] [--net fc2|lenet5] [--images N] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tngraph as tg
from data import DataError, Images, load_digits, load_images
from tngraph.layers import replace

BATCH = 128
LEARNING_RATE = 5e-3
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "adtn": {"layers": 2},
    "btt": {"rank": 2},
    "graph": {"sites": 3, "edges": ((1, 2), (2, 3), (3, 1)), "bond": 4},
    "mpo": {"bond": 4},
}
"""What differs from a family's defaults."""


def main() -> None:
    """Train the dense nets, then each family's, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="only these; all when absent")
    parser.add_argument("--net", choices=NETS, help="only this net")
    parser.add_argument("--images", type=int, metavar="N", help="train on the first N images only")
    parser.add_argument("--data", metavar="FOLDER", help="where the four IDX files of MNIST lie, plain or gzipped")
    arguments = parser.parse_args()
    unknown = sorted({*arguments.families} - {*tg.families.FAMILIES})
    if unknown:
        parser.error(f"there is no family {unknown[0]!r}; there are: {', '.join(tg.families.FAMILIES)}")
    try:
        images = load_images("mnist", arguments.data) or load_digits()
    except DataError as problem:
        raise SystemExit(f"families_mnist: {problem}") from None

    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    names = [None, *(arguments.families or tg.families.FAMILIES)]
    for net in [arguments.net] if arguments.net else NETS:
        table = Table(title=f"{net} on {images.name}, one epoch, batch {BATCH}, {torch.get_num_threads()} threads")
        for column in ("family", "replaced", "params", "compression", "FLOPs/image", "accuracy", "s/epoch"):
            table.add_column(column, justify="left" if column in ("family", "replaced") else "right")
        dense = count(build(net, None)[0])
        for family in names:
            row = train(net, family, images, arguments.images, dense)
            table.add_row(*row)
            console.print(" · ".join(row), style="dim", soft_wrap=True)
        console.print(table)


def fc2() -> nn.Module:
    """784 → 256 → 10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def lenet5() -> nn.Module:
    """LeCun et al. (1998), with max pooling and ReLU as it is used today: 61,706 parameters."""
    features = [
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    ]
    return nn.Sequential(*features, nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


NETS: Mapping[str, Callable[[], nn.Module]] = {"fc2": fc2, "lenet5": lenet5}


def build(net: str, family: str | None) -> tuple[nn.Module, str]:
    """A net with its layers replaced, and which were."""
    torch.manual_seed(0)
    model = NETS[net]()
    if family is None:
        return model, "–"
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    skip = [n for n, m in layers.items() if isinstance(m, nn.Conv2d) and not tg.families.FAMILIES[family].has_window]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.RankWarning)  # one rank for all layers is more than the small ones can use
        warnings.simplefilter("ignore", tg.GrowthWarning)  # or more than they gain by: the table counts the whole net
        replace(model, family, skip=skip, sizes={"batch": BATCH}, **OPTIONS.get(family, {}))
    has_windows = any(isinstance(module, nn.Conv2d) for module in layers.values())
    return model, "linear" if skip or not has_windows else "linear, conv"


def train(net: str, family: str | None, images: Images, most: int | None, dense: int) -> tuple[str, ...]:
    """Train a net for one epoch; its row of the table."""
    model, replaced = build(net, family)
    x, y = as_tensors(images.train_x[:most], images.train_y[:most])
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    began = time.perf_counter()
    for chosen in batches(len(x)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    seconds = time.perf_counter() - began
    right = accuracy(model, *as_tensors(images.test_x, images.test_y))
    params = count(model)
    rate = f"{dense / params:.1f}×"
    return (
        *(family or "dense", replaced, f"{params:,}", rate),
        *(f"{flops(model, x[:BATCH]) / min(BATCH, len(x)):,.0f}", f"{right:.2%}", f"{seconds:.1f}"),
    )


def batches(count: int) -> Iterator[Tensor]:
    """The numbers of the images of each step, in one fixed random order."""
    yield from torch.randperm(count, generator=torch.Generator().manual_seed(0)).split(BATCH)


def as_tensors(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Images as `(n, 1, 28, 28)` with mean and spread near 0 and 1, labels as integers."""
    return (torch.tensor(x).unsqueeze(1).float() / 255 - 0.1307) / 0.3081, torch.tensor(y).long()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images that are named right."""
    return torch.cat([model(part).argmax(1) for part in x.split(1000)]).eq(y).double().mean().item()


def count(model: nn.Module) -> int:
    """Trained numbers [elements], biases included."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def flops(model: nn.Module, x: Tensor) -> int:
    """What PyTorch counts for one forward pass [FLOPs]."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
