"""The two steps from the decisions for a network to the lines that run: operations, then lines.

The operations are enough to price an order, and the planner prices many orders for each one that runs. The lines cost
more to write. Memory and time are computed from them, and the module is printed from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tngraph.language.network import Network
from tngraph.program.folding import Folded, Folding, Split, fold_program, split_schedule
from tngraph.program.lines import write_program
from tngraph.program.operations import Block, Stage
from tngraph.program.schedule import write_schedule
from tngraph.search.objectives import Request


def write_operations(
    network: Network,
    merged: Network,
    stages: Sequence[Stage],
    sizes: Mapping[str, int],
    request: Request,
    recomputed: Iterable[tuple[int, int]],
) -> Split:
    """Return the operations of a network, divided into those before the first call and those of each call.

    Args:
        network: the network as the caller gave it.
        merged: the network after its linear equations were merged.
        stages: the equations of `merged` with their trees.
        sizes: an integer for every size, at which values are compared.
        request: the mode, and the largest value that is folded.
        recomputed: intervals of operations, first and last, that run once more in the backward pass.
    """
    schedule = write_schedule(network, stages, sizes)
    again = (Block("recompute", first, last) for first, last in recomputed)
    return split_schedule(replace(schedule, blocks=(*schedule.blocks, *again)), merged, request, sizes)


def write_lines(
    network: Network, stages: Sequence[Stage], sizes: Mapping[str, int], request: Request, split: Split
) -> Folded:
    """Return the lines of each call, and those before the first call.

    Args:
        network: the network as the caller gave it.
        stages: its merged equations with their trees.
        sizes: an integer for every size, at which values are compared.
        request: the mode, and the largest value that is folded.
        split: the operations of the network.
    """
    program = write_program(network, stages, split.whole, sizes, split.folded)
    if request.mode != "serve":
        return Folded(program, Folding())
    return fold_program(program, split, network, request.most_folded, sizes)
