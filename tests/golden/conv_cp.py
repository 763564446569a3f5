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
        # t1[batch, h + kh - 1, w + kw - 1, r] = x * a: 64*R*batch*height*width MAC
        t1 = torch.mm(
            x.reshape(batch, 64, height*width).permute(0, 2, 1).reshape(batch*height*width, 64),
            self.a,
        )
        # t2[r, batch, h, w + kw - 1] = t1 * kv: 3*R*batch*height*width MAC
        t2 = torch.bmm(
            F.pad(t1.reshape(batch, height, width, R), (0, 0, 0, 0, 1, 1)).unfold(1, 3, 1).reshape(batch*height*width, R, 3).permute(1, 0, 2),
            self.kv.reshape(R, 3, 1),
        )
        del t1
        # t3[r, batch, h, w] = t2 * kw_: 3*R*batch*height*width MAC
        t3 = torch.bmm(
            F.pad(t2.reshape(R, batch, height, width), (1, 1)).unfold(3, 3, 1).reshape(R, batch*height*width, 3),
            self.kw_.reshape(R, 3, 1),
        )
        del t2
        # y[batch, h, w, t] = t3 * c: 128*R*batch*height*width MAC
        y = torch.mm(t3.reshape(R, batch*height*width).t(), self.c)
        del t3
        return y.reshape(batch, height, width, 128).permute(0, 3, 1, 2)

    def extra_repr(self):
        return f"R={self.R}, params={sum(p.numel() for p in self.parameters())}"
