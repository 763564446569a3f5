"""conv_cp: a tensor network as a PyTorch module, printed by tngraph.

params: 198*R [elements]
FLOPs: 396*R*batch*height*width [FLOPs]
elementwise: 0 [operations]
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class conv_cp(nn.Module):
    """conv_cp: x[batch, s, H, W] -> y[batch, t, h, w]."""

    def __init__(self, R=32, *, device=None, dtype=None):
        super().__init__()
        if R < 1:
            raise ValueError(f"the size R is {R}; a size is at least 1")
        self.R = R
        self.a = nn.Parameter(torch.empty((64, R), device=device, dtype=dtype))  # [s, r]
        self.kv = nn.Parameter(torch.empty((R, 3), device=device, dtype=dtype))  # [r, kh]
        self.kw_ = nn.Parameter(torch.empty((R, 3), device=device, dtype=dtype))  # [r, kw]
        self.c = nn.Parameter(torch.empty((R, 128), device=device, dtype=dtype))  # [r, t]
        self.reset_parameters()

    def reset_parameters(self):
        """Draw the params anew: a linear map starts with the variance its dense weight would have."""
        R = self.R
        for param in (self.a, self.kv, self.kw_, self.c):
            nn.init.normal_(param, std=math.exp(-math.log(1728*R) / 8))

    def forward(self, x):
        """Contract the network.

        Args:
            x: (batch, 64, height, width).

        Returns:
            y: (batch, 128, height, width).
        """
        R = self.R
        if x.dim() != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}, and takes (batch, 64, height, width)")
        batch = x.shape[0]
        height = x.shape[2]
        width = x.shape[3]
        if x.shape[1] != 64:
            raise ValueError(f"axis 1 of x has size {x.shape[1]}, and its indices s have 64")
        # t1[batch, r, h + kh - 1, w + kw - 1] = x * a: 64*R*batch*height*width MAC
        t1 = torch.bmm(self.a.mT.expand(batch, R, 64), x.reshape(batch, 64, height*width))
        # t2[batch, r, h, w + kw - 1] = t1 * kv: 3*R*batch*height*width MAC
        t2 = F.conv2d(t1.reshape(batch, R, height, width), self.kv.reshape(R, 1, 3, 1), padding=(1, 0), groups=R)
        del t1
        # t3[batch, r, h, w] = t2 * kw_: 3*R*batch*height*width MAC
        t3 = F.conv2d(t2, self.kw_.reshape(R, 1, 1, 3), padding=(0, 1), groups=R)
        del t2
        # y[batch, t, h, w] = t3 * c: 128*R*batch*height*width MAC
        y = torch.bmm(self.c.mT.expand(batch, 128, R), t3.reshape(batch, R, height*width))
        del t3
        return y.reshape(batch, 128, height, width)

    def extra_repr(self):
        return f"R={self.R}, params={sum(p.numel() for p in self.parameters())}"
