"""fc_ntt: a tensor network as a PyTorch module, printed by tngraph.

params: 56*R**2 + 32*R + 256 [elements]
FLOPs: 9856*R**2*batch + 8320*R*batch [FLOPs]
elementwise: 1488*R*batch + 256*batch [operations]
"""

import math

import torch
from torch import nn


class fc_ntt(nn.Module):
    """fc_ntt: x[batch, (i1 i2 i3 i4)] -> y[batch, (o1 o2 o3 o4)]."""

    def __init__(self, R=8, *, device=None, dtype=None):
        super().__init__()
        if R < 1:
            raise ValueError(f"the size R is {R}; a size is at least 1")
        self.R = R
        self.g1 = nn.Parameter(torch.empty((4, 4, R), device=device, dtype=dtype))  # [i1, o1, r1]
        self.g2 = nn.Parameter(torch.empty((R, 7, 4, R), device=device, dtype=dtype))  # [r1, i2, o2, r2]
        self.g3 = nn.Parameter(torch.empty((R, 7, 4, R), device=device, dtype=dtype))  # [r2, i3, o3, r3]
        self.g4 = nn.Parameter(torch.empty((R, 4, 4), device=device, dtype=dtype))  # [r3, i4, o4]
        self.bias = nn.Parameter(torch.empty((4, 4, 4, 4), device=device, dtype=dtype))  # [o1, o2, o3, o4]
        self.reset_parameters()

    def reset_parameters(self):
        """Draw the params anew: a linear map starts with the variance its dense weight would have."""
        R = self.R
        nn.init.normal_(self.g1, std=math.exp(-math.log(12) / 2))
        for param in (self.g2, self.g3):
            nn.init.normal_(param, std=math.exp(-math.log(21*R) / 2))
        for param in (self.g4, self.bias):
            nn.init.normal_(param, std=math.exp(-math.log(12*R) / 2))

    def forward(self, x):
        """Contract the network.

        Args:
            x: (batch, 784).

        Returns:
            y: (batch, 256).
        """
        R = self.R
        if x.dim() != 2:
            raise ValueError(f"x has shape {tuple(x.shape)}, and takes (batch, 784)")
        batch = x.shape[0]
        if x.shape[1] != 784:
            raise ValueError(f"axis 1 of x has size {x.shape[1]}, and its indices i1, i2, i3, i4 have 784 = 4 * 7 * 7 * 4")
        # t1[batch, o1, r1, i2, i3, i4] = x * g1: 3136*R*batch MAC
        t1 = torch.bmm(self.g1.reshape(4, 4*R).mT.expand(batch, 4*R, 4), x.reshape(batch, 4, 196))
        # h1[batch, o1, r1, i2, i3, i4] = relu(t1): 784*R*batch elementwise
        h1 = torch.relu_(t1)
        del t1
        # t2[batch, o1, o2, r2, i3, i4] = h1 * g2: 3136*R**2*batch MAC
        t2 = torch.bmm(self.g2.reshape(7*R, 4*R).mT.expand(4*batch, 4*R, 7*R), h1.reshape(4*batch, 7*R, 28))
        del h1
        # h2[batch, o1, o2, r2, i3, i4] = relu(t2): 448*R*batch elementwise
        h2 = torch.relu_(t2)
        del t2
        # t3[o3, r3, batch, o1, o2, i4] = h2 * g3: 1792*R**2*batch MAC
        t3 = torch.mm(
            self.g3.reshape(7*R, 4*R).mT,
            h2.reshape(16*batch, 7*R, 4).permute(1, 0, 2).contiguous().reshape(7*R, 64*batch),
        )
        del h2
        # h3[o3, r3, batch, o1, o2, i4] = relu(t3): 256*R*batch elementwise
        h3 = torch.relu_(t3)
        del t3
        # t4[o4, batch, o1, o2, o3] = h3 * g4: 1024*R*batch MAC
        t4 = torch.mm(
            self.g4.reshape(4*R, 4).mT,
            h3.reshape(4, R, 16*batch, 4).permute(2, 0, 1, 3).contiguous().reshape(64*batch, 4*R).mT,
        )
        del h3
        # y[o4, batch, o1, o2, o3] = t4 + bias: 256*batch elementwise
        y = t4.reshape(4, batch, 64) + self.bias.reshape(64, 4).mT.reshape(4, 1, 64).type_as(t4)
        del t4
        return y.permute(1, 2, 0).reshape(batch, 256)

    def extra_repr(self):
        return f"R={self.R}, params={sum(p.numel() for p in self.parameters())}"
