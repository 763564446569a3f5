"""Fit the dense layer of a network for digits, 98 % of its weights, to what 6,000 images without labels put into it.

    python examples/fit_mnist_cnn.py [--bonds 16 4] [--images 6000] [--sweeps 12] [--data FOLDER] [--model FILE]

The layer maps 9,216 features to 128. As an MPO its modes follow the axes of the feature map: (12, 12, 64) for height,
width and channel, to (4, 4, 8). Nothing is trained.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

import tngraph as tg
from data import load_images
from models import DigitNet, load_digit_net
from tngraph.layers import Linear

MODES = ((12, 12, 64), (4, 4, 8))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the accuracy of each fit on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bonds", type=int, nargs="+", default=[16, 4], help="bonds of the MPO")
    parser.add_argument("--images", type=int, default=6000, help="training images that the metric is measured on")
    parser.add_argument("--sweeps", type=int, default=12, help="the most sweeps of a fit")
    parser.add_argument("--data", help="a folder with the IDX files of MNIST, instead of a download")
    parser.add_argument("--model", help="the HDF5 file of the network, instead of a download")
    options = parser.parse_args(arguments)
    images = load_images("mnist", options.data)
    if images is None:
        raise SystemExit("the images cannot be had: give a folder with --data")
    model = load_digit_net(options.model)
    train, test = (torch.from_numpy(x.copy()).float() / 255 for x in (images.train_x, images.test_x))
    labels = torch.from_numpy(images.test_y.copy()).long()
    started = time.perf_counter()
    with torch.no_grad():
        moments = tg.Moments.of(model.features(batch) for batch in train[: options.images].split(500))
        read = torch.cat([model.features(batch) for batch in test.split(500)])
    print(f"dense: {accuracy(model, read, labels):.2f} %, moments in {time.perf_counter() - started:.0f} s")
    dense = model.dense
    for bond in options.bonds:
        for inputs, name in ((None, "weight alone"), (moments, "metric of the data")):
            model.dense = Linear.like(dense, "mpo", bond=bond, modes=MODES)
            fit = tg.fit(model.dense, dense, inputs, sweeps=options.sweeps)
            reached = accuracy(model, read, labels)
            print(
                f"bond {bond}, {name}: {reached:.2f} %, {fit.params:,} params, {fit.seconds:.0f} s\n{fit}\n", flush=True
            )


@torch.no_grad()
def accuracy(model: DigitNet, features: Tensor, labels: Tensor) -> float:
    """Return the share of test images that are recognised [%]."""
    scores = [model.scores(torch.relu(model.dense(batch))) for batch in features.split(1000)]
    return float((torch.cat(scores).argmax(1) == labels).double().mean()) * 100


if __name__ == "__main__":
    main()
