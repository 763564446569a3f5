"""conv_rtk: a tensor network as a PyTorch module, printed by tngraph.

params: 9*R**4 + 48*R [elements]
FLOPs: 18*R**4*batch*h*w + 32*R**2*batch*h*w + 16*R**2*batch*height*width + 512*R*batch*h*w + 128*R*batch*height*width [FLOPs]
elementwise: 0 [operations]
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class conv_rtk(nn.Module):
    """conv_rtk: x[batch, (s1 s2), H, W] -> y[batch, (t1 t2), h, w]."""

    def __init__(self, R=4, *, device=None, dtype=None):
        super().__init__()
        if R < 1:
            raise ValueError(f"the size R is {R}; a size is at least 1")
        self.R = R
        self.u1 = nn.Parameter(torch.empty((8, R), device=device, dtype=dtype))  # [s1, p1]
        self.u2 = nn.Parameter(torch.empty((8, R), device=device, dtype=dtype))  # [s2, p2]
        self.core = nn.Parameter(torch.empty((R, R, 3, 3, R, R), device=device, dtype=dtype))  # [p1, p2, kh, kw, q1, q2]
        self.v1 = nn.Parameter(torch.empty((R, 16), device=device, dtype=dtype))  # [q1, t1]
        self.v2 = nn.Parameter(torch.empty((R, 16), device=device, dtype=dtype))  # [q2, t2]
        self.reset_parameters()

    def reset_parameters(self):
        """Draw the params anew: a linear map starts with the variance its dense weight would have."""
        R = self.R
        for param in (self.u1, self.u2, self.core, self.v1, self.v2):
            nn.init.normal_(param, std=math.exp(-math.log(1728*R**4) / 10))

    def forward(self, x):
        """Contract the network.

        Args:
            x: (batch, 64, height, width).

        Returns:
            y: (batch, 256, (height - 1)//2 + 1, (width - 1)//2 + 1).
        """
        R = self.R
        if x.dim() != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}, and takes (batch, 64, height, width)")
        batch = x.shape[0]
        height = x.shape[2]
        width = x.shape[3]
        if x.shape[1] != 64:
            raise ValueError(f"axis 1 of x has size {x.shape[1]}, and its indices s1, s2 have 64 = 8 * 8")
        h = (height - 1)//2 + 1
        w = (width - 1)//2 + 1
        # t1[batch, p1, s2, 2*h + kh - 1, 2*w + kw - 1] = x * u1: 64*R*batch*height*width MAC
        t1 = torch.bmm(self.u1.mT.expand(batch, R, 8), x.reshape(batch, 8, 8*height*width))
        # t2[batch, p1, p2, 2*h + kh - 1, 2*w + kw - 1] = t1 * u2: 8*R**2*batch*height*width MAC
        t2 = torch.bmm(self.u2.mT.expand(R*batch, R, 8), t1.reshape(R*batch, 8, height*width))
        del t1
        # t3[batch, q1, q2, h, w] = t2 * core: 9*R**4*batch*h*w MAC
        t3 = F.conv2d(
            t2.reshape(batch, R**2, height, width),
            self.core.reshape(R**2, 3, 3, R**2).permute(3, 0, 1, 2),
            stride=(2, 2),
            padding=(1, 1),
        )
        del t2
        # t4[batch, t1, q2, h, w] = t3 * v1: 16*R**2*batch*h*w MAC
        t4 = torch.bmm(self.v1.mT.expand(batch, 16, R), t3.reshape(batch, R, R*h*w))
        del t3
        # y[batch, t1, t2, h, w] = t4 * v2: 256*R*batch*h*w MAC
        y = torch.bmm(self.v2.mT.expand(16*batch, 16, R), t4.reshape(16*batch, R, h*w))
        del t4
        return y.reshape(batch, 256, h, w)

    def extra_repr(self):
        return f"R={self.R}, params={sum(p.numel() for p in self.parameters())}"
