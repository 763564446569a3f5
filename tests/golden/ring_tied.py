"""ring_tied: a tensor network as a PyTorch module, printed by tngraph.

params: 4*D**2 [elements]
FLOPs: 320*D**3 + 8192*D**2 + 8192*batch [FLOPs]
elementwise: 0 [operations]
"""

import math

import torch
from torch import nn


class ring_tied(nn.Module):
    """ring_tied: x[batch, i1, i2, i3, i4, i5, i6] -> y[batch, o1, o2, o3, o4, o5, o6]."""

    def __init__(self, D=3, *, device=None, dtype=None):
        super().__init__()
        if D < 1:
            raise ValueError(f"the size D is {D}; a size is at least 1")
        self.D = D
        self.g = nn.Parameter(torch.empty((D, 2, 2, D), device=device, dtype=dtype))  # [left, in_, out, right]
        self.reset_parameters()

    def reset_parameters(self):
        """Draw the params anew: a linear map starts with the variance its dense weight would have."""
        D = self.D
        nn.init.normal_(self.g, std=math.exp(-math.log(192*D**6) / 12))

    def forward(self, x):
        """Contract the network.

        Args:
            x: (batch, 2, 2, 2, 2, 2, 2).

        Returns:
            y: (batch, 2, 2, 2, 2, 2, 2).
        """
        D = self.D
        if x.dim() != 7:
            raise ValueError(f"x has shape {tuple(x.shape)}, and takes (batch, 2, 2, 2, 2, 2, 2)")
        batch = x.shape[0]
        if x.shape[1] != 2:
            raise ValueError(f"axis 1 of x has size {x.shape[1]}, and its indices i1 have 2")
        if x.shape[2] != 2:
            raise ValueError(f"axis 2 of x has size {x.shape[2]}, and its indices i2 have 2")
        if x.shape[3] != 2:
            raise ValueError(f"axis 3 of x has size {x.shape[3]}, and its indices i3 have 2")
        if x.shape[4] != 2:
            raise ValueError(f"axis 4 of x has size {x.shape[4]}, and its indices i4 have 2")
        if x.shape[5] != 2:
            raise ValueError(f"axis 5 of x has size {x.shape[5]}, and its indices i5 have 2")
        if x.shape[6] != 2:
            raise ValueError(f"axis 6 of x has size {x.shape[6]}, and its indices i6 have 2")
        # t1[b2, i2, o2, i3, o3, b4] = g * g: 16*D**3 MAC
        t1 = torch.mm(self.g.reshape(4*D, D), self.g.reshape(D, 4*D))
        # t2[b5, i5, o5, i6, o6, b1] = g * g: 16*D**3 MAC
        t2 = torch.mm(self.g.reshape(4*D, D), self.g.reshape(D, 4*D))
        # t3[i1, o1, b2, b5, i5, o5, i6, o6] = t2 * g: 64*D**3 MAC
        t3 = torch.mm(self.g.reshape(D, 4*D).t(), t2.reshape(16*D, D).t())
        del t2
        # t4[b2, i2, o2, i3, o3, i4, o4, b5] = t1 * g: 64*D**3 MAC
        t4 = torch.mm(t1.reshape(16*D, D), self.g.reshape(D, 4*D))
        del t1
        # t5[i1, o1, i5, o5, i6, o6, i2, o2, i3, o3, i4, o4] = t4 * t3: 4096*D**2 MAC
        t5 = torch.mm(
            t3.reshape(4, D**2, 16).permute(0, 2, 1).reshape(64, D**2),
            t4.reshape(D, 64, D).permute(0, 2, 1).reshape(D**2, 64),
        )
        del t3, t4
        # y[batch, o1, o5, o6, o2, o3, o4] = t5 * x: 4096*batch MAC
        y = torch.mm(
            x.reshape(batch, 2, 8, 4).permute(0, 1, 3, 2).reshape(batch, 64),
            t5.reshape(2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2).permute(0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11).reshape(64, 64),
        )
        del t5
        return y.reshape(batch, 2, 2, 2, 2, 2, 2).permute(0, 1, 4, 5, 6, 2, 3)

    def extra_repr(self):
        return f"D={self.D}, params={sum(p.numel() for p in self.parameters())}"
