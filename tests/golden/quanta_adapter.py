"""quanta_adapter: a tensor network as a PyTorch module, printed by tngraph.

params: 128*scale_in**2 + 4096 [elements]
FLOPs: 10240*batch*scale_in**2 + 8192*batch*scale_in [FLOPs]
elementwise: 64*batch*scale_in + 4096 [operations]
"""

import math

import torch
from torch import nn


class quanta_adapter(nn.Module):
    """quanta_adapter: x[batch, (i1 i2 i3)] -> y[batch, (o1 o2 o3)]."""

    def __init__(self, scale_in=16, *, device=None, dtype=None):
        super().__init__()
        if scale_in < 1:
            raise ValueError(f"the size scale_in is {scale_in}; a size is at least 1")
        self.scale_in = scale_in
        self.register_buffer("W0", torch.zeros((scale_in, 8, 8, scale_in, 8, 8), device=device, dtype=dtype))  # [i1, i2, i3, o1, o2, o3]
        self.u1 = nn.Parameter(torch.empty((scale_in, 8, scale_in, 8), device=device, dtype=dtype))  # [i1, i2, a1, a2]
        self.u2 = nn.Parameter(torch.empty((8, 8, 8, 8), device=device, dtype=dtype))  # [a2, i3, c2, c3]
        self.u3 = nn.Parameter(torch.empty((scale_in, 8, scale_in, 8), device=device, dtype=dtype))  # [a1, c3, o1, o3]
        self.reset_parameters()

    def reset_parameters(self):
        """Draw the params anew: a linear map starts with the variance its dense weight would have."""
        scale_in = self.scale_in
        for param in (self.u1, self.u2):
            nn.init.normal_(param, std=math.exp(-math.log(49152*scale_in**2) / 6))
        nn.init.zeros_(self.u3)

    def forward(self, x):
        """Contract the network.

        Args:
            x: (batch, 64*scale_in).

        Returns:
            y: (batch, 64*scale_in).
        """
        scale_in = self.scale_in
        if x.dim() != 2:
            raise ValueError(f"x has shape {tuple(x.shape)}, and takes (batch, 64*scale_in)")
        batch = x.shape[0]
        if x.shape[1] != 64*scale_in:
            raise ValueError(f"axis 1 of x has size {x.shape[1]}, and its indices i1, i2, i3 have {64*scale_in} = scale_in * 8 * 8")
        # t1[batch, o1, o2, o3] = x * W0: 4096*batch*scale_in**2 MAC
        t1 = torch.mm(x, self.W0.reshape(64*scale_in, 64*scale_in))
        # t2[a2, i3, o2, c3] = 2.0 * u2: 4096 elementwise
        t2 = 2.0 * self.u2
        # t3[batch, i3, a1, a2] = x * u1: 512*batch*scale_in**2 MAC
        t3 = torch.mm(
            x.reshape(batch, 8*scale_in, 8).permute(1, 0, 2).contiguous().reshape(8*scale_in, 8*batch).mT,
            self.u1.reshape(8*scale_in, 8*scale_in),
        )
        # t4[o2, c3, a1, batch] = t3 * t2: 4096*batch*scale_in MAC
        t4 = torch.mm(
            t2.reshape(8, 8, 64).permute(1, 0, 2).contiguous().reshape(64, 64).mT,
            t3.reshape(batch, 8, scale_in, 8).permute(2, 0, 1, 3).contiguous().reshape(batch*scale_in, 64).mT,
        )
        del t2, t3
        # t5[o2, batch, o1, o3] = t4 * u3: 512*batch*scale_in**2 MAC
        t5 = torch.mm(
            t4.reshape(8, 8, scale_in, batch).permute(2, 1, 0, 3).contiguous().reshape(8*scale_in, 8*batch).mT,
            self.u3.reshape(8*scale_in, 8*scale_in),
        )
        del t4
        # y[batch, o1, o2, o3] = t1 + t5: 64*batch*scale_in elementwise
        y = t1.reshape(64*batch*scale_in) + t5.reshape(8, batch*scale_in, 8).permute(1, 0, 2).reshape(64*batch*scale_in)
        del t1, t5
        return y.reshape(batch, 64*scale_in)

    def extra_repr(self):
        return f"scale_in={self.scale_in}, params={sum(p.numel() for p in self.parameters())}"
