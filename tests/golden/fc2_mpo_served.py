"""fc2_mpo: a tensor network as a PyTorch module, printed by tngraph.

params: 56*D**2 + 32*D + 256 [elements]
FLOPs: 39424*D*batch [FLOPs]
elementwise: 512*batch [operations]
folded: 896*D [elements]
"""

import math

import torch
from torch import nn


class fc2_mpo(nn.Module):
    """fc2_mpo: x[batch, (i1 i2 i3 i4)] -> y[batch, (o1 o2 o3 o4)]."""

    def __init__(self, D=4, *, device=None, dtype=None):
        super().__init__()
        if D < 1:
            raise ValueError(f"the size D is {D}; a size is at least 1")
        self.D = D
        self.w1 = nn.Parameter(torch.empty((4, 4, D), device=device, dtype=dtype), requires_grad=False)  # [i1, o1, b1]
        self.w2 = nn.Parameter(torch.empty((D, 7, 4, D), device=device, dtype=dtype), requires_grad=False)  # [b1, i2, o2, b2]
        self.w3 = nn.Parameter(torch.empty((D, 7, 4, D), device=device, dtype=dtype), requires_grad=False)  # [b2, i3, o3, b3]
        self.w4 = nn.Parameter(torch.empty((D, 4, 4), device=device, dtype=dtype), requires_grad=False)  # [b3, i4, o4]
        self.bias = nn.Parameter(torch.empty((4, 4, 4, 4), device=device, dtype=dtype), requires_grad=False)  # [o1, o2, o3, o4]
        self.reset_parameters()
        self.register_load_state_dict_post_hook(self.refold)

    def reset_parameters(self):
        """Draw the params anew: a linear map starts with the variance its dense weight would have."""
        D = self.D
        for param in (self.w1, self.w2, self.w3, self.w4):
            nn.init.normal_(param, std=math.exp(-math.log(2352*D**3) / 8))
        nn.init.normal_(self.bias, std=math.exp(-math.log(2352) / 2))
        self.refold()

    def forward(self, x):
        """Contract the network.

        Args:
            x: (batch, 784).

        Returns:
            y: (batch, 256).
        """
        D = self.D
        if x.dim() != 2:
            raise ValueError(f"x has shape {tuple(x.shape)}, and takes (batch, 784)")
        batch = x.shape[0]
        if x.shape[1] != 784:
            raise ValueError(f"axis 1 of x has size {x.shape[1]}, and its indices i1, i2, i3, i4 have 784 = 4 * 7 * 7 * 4")
        # t2[batch, i1, i2, b2, o3, o4] = x * t1: 12544*D*batch MAC
        t2 = torch.mm(x.reshape(28*batch, 28), self.folded_1)
        # t4[batch, o1, o2, o3, o4] = t2 * t3: 7168*D*batch MAC
        t4 = torch.bmm(self.folded_2.expand(batch, 16, 28*D), t2.reshape(batch, 28*D, 16))
        del t2
        # t5[batch, o1, o2, o3, o4] = t4 + bias: 256*batch elementwise
        t5 = t4.reshape(batch, 256) + self.bias.reshape(256).type_as(t4)
        del t4
        # y[batch, o1, o2, o3, o4] = relu(t5): 256*batch elementwise
        y = torch.relu_(t5)
        del t5
        return y

    @torch.no_grad()
    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def refold(self, *_):
        """Make what depends on weights alone: again when they change, as ``load_state_dict`` does by itself."""
        D = self.D
        # t1[b2, i3, o3, i4, o4] = w3 * w4: 448*D**2 MAC
        t1 = torch.mm(self.w3.reshape(28*D, D), self.w4.reshape(D, 16))
        # t3[i1, o1, i2, o2, b2] = w1 * w2: 448*D**2 MAC
        t3 = torch.mm(self.w1.reshape(16, D), self.w2.reshape(D, 28*D))
        # t1, as calls read it: 448*D elements
        folded_1 = t1.reshape(D, 7, 4, 4, 4).permute(0, 2, 4, 1, 3).contiguous().reshape(16*D, 28).mT
        self.register_buffer("folded_1", folded_1.clone(memory_format=torch.contiguous_format), persistent=False)
        # t3, as calls read it: 448*D elements
        folded_2 = t3.reshape(4, 4, 7, 4, D).permute(1, 3, 0, 2, 4).contiguous().reshape(16, 28*D)
        self.register_buffer("folded_2", folded_2.clone(memory_format=torch.contiguous_format), persistent=False)

    def extra_repr(self):
        return f"D={self.D}, params={sum(p.numel() for p in self.parameters())}"
