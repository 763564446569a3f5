"""Layers built of cores, in the place of PyTorch's own, and generated weights."""

from tngraph.layers.compressed import Compressed
from tngraph.layers.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tngraph.layers.generated import Generated, share
from tngraph.layers.linear import Linear
from tngraph.layers.replacement import PassedOver, Replaced, Replacements, replace

__all__ = [
    "Compressed",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Generated",
    "Linear",
    "PassedOver",
    "Replaced",
    "Replacements",
    "replace",
    "share",
]
