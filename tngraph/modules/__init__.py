"""The rooms that import torch: layers, their verification, and layers in the place of PyTorch's own."""

from tngraph.modules.compressed import Compressed
from tngraph.modules.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tngraph.modules.generated import Generated, share
from tngraph.modules.linear import Linear
from tngraph.modules.replacement import PassedOver, Replaced, Replacements, replace

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
