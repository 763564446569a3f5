"""born_machine: a tensor network as a PyTorch module, printed by tngraph.

params: 315 [elements]
FLOPs: 3906 [FLOPs]
elementwise: 0 [operations]
"""

import math

import torch
from torch import nn


class born_machine(nn.Module):
    """born_machine: f[s1, s2, s3, s4, s5] -> amplitude[]."""

    def __init__(self, *, device=None, dtype=None):
        super().__init__()
        self.p = nn.Parameter(torch.empty((7, 3, 3), device=device, dtype=dtype))  # [c1, s1, s2]
        self.q = nn.Parameter(torch.empty((7, 3, 3), device=device, dtype=dtype))  # [c2, s2, s3]
        self.r = nn.Parameter(torch.empty((7, 3, 3, 3), device=device, dtype=dtype))  # [c3, s3, s4, s5]
        self.reset_parameters()

    def reset_parameters(self):
        """Draw the params anew: a linear map starts with the variance its dense weight would have."""
        for param in (self.p, self.q, self.r):
            nn.init.normal_(param, std=math.exp(-math.log(5103) / 6))

    def forward(self, f):
        """Contract the network.

        Args:
            f: (3, 3, 3, 3, 3).

        Returns:
            amplitude: ().
        """
        if f.dim() != 5:
            raise ValueError(f"f has shape {tuple(f.shape)}, and takes (3, 3, 3, 3, 3)")
        if f.shape[0] != 3:
            raise ValueError(f"axis 0 of f has size {f.shape[0]}, and its indices s1 have 3")
        if f.shape[1] != 3:
            raise ValueError(f"axis 1 of f has size {f.shape[1]}, and its indices s2 have 3")
        if f.shape[2] != 3:
            raise ValueError(f"axis 2 of f has size {f.shape[2]}, and its indices s3 have 3")
        if f.shape[3] != 3:
            raise ValueError(f"axis 3 of f has size {f.shape[3]}, and its indices s4 have 3")
        if f.shape[4] != 3:
            raise ValueError(f"axis 4 of f has size {f.shape[4]}, and its indices s5 have 3")
        # t1[s3, c1, s2, s1] = f * r: 1701 MAC
        t1 = torch.bmm(
            self.r.reshape(7, 3, 9).permute(1, 0, 2),
            f.reshape(3, 3, 3, 9).permute(2, 1, 0, 3).contiguous().reshape(3, 9, 9).mT,
        )
        # t2[c1, s2, s1] = t1 * q: 189 MAC
        t2 = torch.bmm(self.q.reshape(21, 1, 3), t1.reshape(3, 21, 3).permute(1, 0, 2))
        del t1
        # amplitude[] = t2 * p: 63 MAC
        amplitude = torch.mm(t2.reshape(1, 63), self.p.mT.contiguous().reshape(63, 1))
        del t2
        return amplitude.reshape(())

    def extra_repr(self):
        return f"params={sum(p.numel() for p in self.parameters())}"
