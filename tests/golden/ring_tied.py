"""ring_tied: a tensor network as a PyTorch module, printed by tngraph.

params: 4*D**2 [elements]
FLOPs (batch 1): 512*D**3*batch + 64*D**3 + 1024*D**2*batch [FLOPs]
FLOPs (batch 2–7): 320*D**3 + 2048*D**2*batch [FLOPs]
FLOPs (batch ≥ 8): 320*D**3 + 8192*D**2 + 8192*batch [FLOPs]
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
        # y[batch, o1, o2, o3, o4, o5, o6], in the order that is best here
        if not torch.compiler.is_exporting() and batch <= 1:
            y = self._y_1(x, batch)
        elif not torch.compiler.is_exporting() and batch <= 7:
            y = self._y_2(x, batch)
        else:
            y = self._y_3(x, batch)
        return y

    def _y_1(self, x, batch):
        """y for batch 1: ((((x (g g)) g) g) (g g))."""
        D = self.D
        # t1[b5, i5, o5, i6, o6, b1] = g * g: 16*D**3 MAC
        t1 = torch.mm(self.g.reshape(4*D, D), self.g.reshape(D, 4*D))
        # t2[batch, i1, i2, i3, i4, b5, o5, o6, b1] = x * t1: 256*D**2*batch MAC
        t2 = torch.mm(
            x.reshape(16*batch, 4),
            t1.reshape(D, 2, 2, 2, 2*D).permute(1, 3, 0, 2, 4).contiguous().reshape(4, 4*D**2),
        )
        del t1
        # t3[batch, i1, i2, i3, b4, o4, o5, o6, b1] = t2 * g: 128*D**3*batch MAC
        t3 = torch.bmm(
            self.g.permute(0, 2, 1, 3).contiguous().reshape(2*D, 2*D).expand(8*batch, 2*D, 2*D),
            t2.reshape(8*batch, 2*D, 4*D),
        )
        del t2
        # t4[batch, i1, i2, b3, o3, o4, o5, o6, b1] = t3 * g: 128*D**3*batch MAC
        t4 = torch.bmm(
            self.g.permute(0, 2, 1, 3).contiguous().reshape(2*D, 2*D).expand(4*batch, 2*D, 2*D),
            t3.reshape(4*batch, 2*D, 8*D),
        )
        del t3
        # t5[b1, i1, o1, i2, o2, b3] = g * g: 16*D**3 MAC
        t5 = torch.mm(self.g.reshape(4*D, D), self.g.reshape(D, 4*D))
        # t6[o1, o2, batch, o3, o4, o5, o6] = t4 * t5: 256*D**2*batch MAC
        t6 = torch.mm(
            t5.reshape(D, 2, 2, 2, 2, D).permute(2, 4, 1, 3, 5, 0).contiguous().reshape(4, 4*D**2),
            t4.reshape(batch, 4*D, 16, D).permute(0, 2, 1, 3).contiguous().reshape(16*batch, 4*D**2).mT,
        )
        del t4, t5
        return t6.reshape(2, 2, batch, 2, 2, 2, 2).permute(2, 0, 1, 3, 4, 5, 6)

    def _y_2(self, x, batch):
        """y for batch 2–7: ((x ((g g) g)) ((g g) g))."""
        D = self.D
        # t1[b4, i4, o4, i5, o5, b6] = g * g: 16*D**3 MAC
        t1 = torch.mm(self.g.reshape(4*D, D), self.g.reshape(D, 4*D))
        # t2[b4, i4, o4, i5, o5, i6, o6, b1] = t1 * g: 64*D**3 MAC
        t2 = torch.mm(t1.reshape(16*D, D), self.g.reshape(D, 4*D))
        del t1
        # t3[b4, o4, o5, o6, b1, batch, i1, i2, i3] = x * t2: 512*D**2*batch MAC
        t3 = torch.mm(
            t2.reshape(D, 2, 2, 2, 2, 2, 2*D).permute(1, 3, 5, 0, 2, 4, 6).contiguous().reshape(8, 8*D**2).mT,
            x.reshape(8*batch, 8).mT,
        )
        del t2
        # t4[i2, b1, i1, o1, o2, b3] = g * g: 16*D**3 MAC
        t4 = torch.bmm(self.g.reshape(4*D, D).expand(2, 4*D, D), self.g.reshape(D, 2, 2*D).permute(1, 0, 2))
        # t5[i3, o3, b4, i2, b1, i1, o1, o2] = t4 * g: 64*D**3 MAC
        t5 = torch.mm(self.g.reshape(D, 4*D).mT, t4.reshape(16*D, D).mT)
        del t4
        # t6[o3, o1, o2, batch, o4, o5, o6] = t3 * t5: 512*D**2*batch MAC
        t6 = torch.mm(
            t5.reshape(2, 2, D, 2, 2*D, 4).permute(2, 4, 3, 0, 1, 5).contiguous().reshape(8*D**2, 8).mT,
            t3.reshape(D, 8, D, batch, 8).permute(3, 1, 0, 2, 4).contiguous().reshape(8*batch, 8*D**2).mT,
        )
        del t3, t5
        return t6.reshape(2, 2, 2, batch, 2, 2, 2).permute(3, 1, 2, 0, 4, 5, 6)

    def _y_3(self, x, batch):
        """y for batch ≥ 8: (x (((g g) g) ((g g) g)))."""
        D = self.D
        # t1[b6, i6, o6, i1, o1, b2] = g * g: 16*D**3 MAC
        t1 = torch.mm(self.g.reshape(4*D, D), self.g.reshape(D, 4*D))
        # t2[b5, i5, o5, i6, o6, i1, o1, b2] = t1 * g: 64*D**3 MAC
        t2 = torch.mm(self.g.reshape(4*D, D), t1.reshape(D, 16*D))
        del t1
        # t3[b2, i2, o2, i3, o3, b4] = g * g: 16*D**3 MAC
        t3 = torch.mm(self.g.reshape(4*D, D), self.g.reshape(D, 4*D))
        # t4[i4, o4, b5, b2, i2, o2, i3, o3] = t3 * g: 64*D**3 MAC
        t4 = torch.mm(self.g.reshape(D, 4*D).mT, t3.reshape(16*D, D).mT)
        del t3
        # t5[i4, o4, i2, o2, i3, o3, i5, i6, i1, o1, o5, o6] = t2 * t4: 4096*D**2 MAC
        t5 = torch.bmm(
            t4.reshape(4, D**2, 16).mT,
            t2.reshape(D, 2, 2, 2, 2, 4, D).permute(1, 3, 5, 2, 4, 0, 6).contiguous().reshape(64, D**2).mT.expand(4, D**2, 64),
        )
        del t2, t4
        # t6[batch, o1, o2, o3, o4, o5, o6] = x * t5: 4096*batch MAC
        t6 = torch.mm(
            x.reshape(batch, 64),
            t5.reshape(2, 2, 2, 2, 2, 2, 4, 2, 2, 4).permute(7, 2, 4, 0, 6, 8, 3, 5, 1, 9).contiguous().reshape(64, 64),
        )
        del t5
        return t6.reshape(batch, 2, 2, 2, 2, 2, 2)

    def extra_repr(self):
        return f"D={self.D}, params={sum(p.numel() for p in self.parameters())}"
