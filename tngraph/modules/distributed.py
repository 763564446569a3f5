"""Slices over processes: each process of ``torch.distributed`` runs its share, and the sums are added up.

Every process holds the whole input and gets the whole result. What no slice changes is computed by each.
"""

from __future__ import annotations

import torch.distributed

from tngraph.errors import PlanError
from tngraph.modules.layer import Layer


def spread_slices(layer: Layer) -> Layer:
    """Let a layer run every n-th slice only, n being how many processes there are, and add up what all of them made.

    It is for calls without gradients, and every process has to make each call. The layer itself is changed; alone
    again, ``layer.first_slice, layer.slice_step = 0, 1``.

    Args:
        layer: one whose plan runs slice by slice.

    Returns:
        The same layer, without gradients for its params.

    Raises:
        PlanError: nothing of it runs slice by slice, or ``torch.distributed`` was not initialised.
    """
    if not any(tree.sliced for regime in layer.plan.regimes for tree in regime.trees):
        raise PlanError(
            f"{layer.plan.network.name} has no slices to spread\n"
            "  plan it with largest=…, the most elements of a value, or with a memory limit"
        )
    if not torch.distributed.is_initialized():
        raise PlanError(
            "there are no processes to spread slices over\n  call torch.distributed.init_process_group first"
        )
    layer.first_slice = torch.distributed.get_rank()
    layer.slice_step = torch.distributed.get_world_size()
    return layer.requires_grad_(False)
