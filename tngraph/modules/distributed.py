"""Slices over processes: each process of ``torch.distributed`` runs its share, and their sums are added up.

Every process holds the whole input and gets the whole result. Each computes the values that are the same in all slices.
"""

from __future__ import annotations

import torch.distributed

from tngraph.errors import PlanError
from tngraph.modules.layer import Layer


def spread_slices(layer: Layer) -> Layer:
    """Let a layer run only its process's share of the slices, and add up the results of all processes.

    It is for calls without gradients, and every process has to make each call. The layer itself is changed. To undo
    that, set ``layer.first_slice, layer.slice_step = 0, 1``.

    Args:
        layer: a layer whose plan runs slice by slice.

    Returns:
        The same layer, without gradients for its params.

    Raises:
        PlanError: no region of the plan runs slice by slice, or ``torch.distributed`` is not initialised.
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
