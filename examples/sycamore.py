"""An amplitude of a random circuit on 53 qubits, as Google's Sycamore ran it: what contracting it costs.

    python examples/sycamore.py --cycles 10 --limit 22 --run
    python examples/sycamore.py --cycles 10 --limit 22 --run --processes 2
    python examples/sycamore.py --cycles 20 --limit 30 --seconds 120

``--run`` contracts it whole and in slices, over so many processes, beside quimb, which builds the circuit's network and
simplifies it.

Source: Arute et al., Nature 574, 505 (2019): the layout, the pattern of couplers ABCDCDAB, random single-qubit gates of
√X, √Y and √W that never repeat on a qubit, and two-qubit gates fSim(π/2, π/6).
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from math import log2, log10, pi

import numpy as np
import quimb.tensor as qtn
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import multiprocessing

import tngraph as tg
from tngraph.modules.distributed import spread_slices

ROWS = {0: (5, 6), 1: (4, 7), 2: (3, 8), 3: (2, 9), 4: (1, 9), 5: (0, 8), 6: (1, 7), 7: (2, 6), 8: (3, 5), 9: (4, 4)}
"""The columns of each row of the grid, first and last."""
BROKEN = (3, 2)
"""The qubit that did not work."""
PATTERN = "ABCDCDAB"
GATES = ("X_1_2", "Y_1_2", "W_1_2")

Site = tuple[int, int]


def qubits() -> list[Site]:
    """The 53 qubits, row by row."""
    every = [(row, column) for row, (first, last) in ROWS.items() for column in range(first, last + 1)]
    return [site for site in every if site != BROKEN]


def couplers(letter: str) -> list[tuple[Site, Site]]:
    """The pairs of neighbours that one letter of the pattern couples: every other one of one direction, staggered."""
    is_vertical, parity = letter in "AB", letter in "BD"
    sites = qubits()
    step = (1, 0) if is_vertical else (0, 1)
    pairs = [((row, column), (row + step[0], column + step[1])) for row, column in sites]
    return [(a, b) for a, b in pairs if b in sites and sum(a) % 2 == parity]


def build_circuit(cycles: int, seed: int = 0) -> qtn.Circuit:
    """A random circuit of so many cycles; a half cycle of single-qubit gates ends it."""
    draw, sites = random.Random(seed), qubits()
    number = {site: k for k, site in enumerate(sites)}
    circuit = qtn.Circuit(len(sites), gate_opts={"contract": False})
    last = dict.fromkeys(sites, "")
    for cycle in range(cycles + 1):
        for site in sites:
            last[site] = draw.choice([gate for gate in GATES if gate != last[site]])
            circuit.apply_gate(last[site], number[site], gate_round=cycle)
        if cycle < cycles:
            for a, b in couplers(PATTERN[cycle % len(PATTERN)]):
                circuit.apply_gate("FSIM", pi / 2, pi / 6, number[a], number[b], gate_round=cycle)
    return circuit


def amplitude_network(circuit: qtn.Circuit, bits: str) -> tuple[tg.Network, dict[str, NDArray[np.complex64]]]:
    """The network of one amplitude after quimb's simplification, and its tensors by name."""
    tensors = circuit.amplitude_tn(bits, simplify_sequence="R", simplify_equalize_norms=False, dtype="complex64")
    sizes = {index: tensors.ind_size(index) for index in tensors.ind_map}
    network = tg.from_indices([t.inds for t in tensors], tensors.outer_inds(), sizes, name="amplitude")
    arrays = {core.name: np.asarray(t.data) for core, t in zip(network.cores, tensors, strict=True)}
    return network, arrays


def describe(name: str, plan: tg.Plan, seconds: float) -> None:
    """What a plan costs, exactly."""
    cost, largest = plan.at().cost, plan.at().largest
    print(f"{name}: 10^{log10(cost):.2f} operations ({cost:,}), 2^{log2(largest):.0f} elements at most")
    sliced = [index for tree in plan.regimes[0].trees for index in tree.sliced]
    if sliced:
        print(f"        {len(sliced)} indices sliced: {2 ** len(sliced):,} slices")
    print(f"        planned in {seconds:.0f} s")


def contract(plan: tg.Plan, arrays: dict[str, NDArray[np.complex64]]) -> complex:
    """The amplitude as a compiled module gives it, in slices spread over the processes that there are."""
    layer = tg.compile(plan)
    if torch.distributed.is_initialized():
        spread_slices(layer)
    with torch.no_grad():
        return complex(layer(*map(torch.from_numpy, arrays.values())).item())


def contract_as_one_of(
    rank: int, count: int, file: str, plan: tg.Plan, arrays: dict[str, NDArray[np.complex64]]
) -> None:
    """The part of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=count)
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    start = time.monotonic()
    value = contract(plan, arrays)
    if rank == 0:
        print(f"sliced, {count} processes: {value:.6e} in {time.monotonic() - start:.1f} s")
    torch.distributed.destroy_process_group()


def run(plans: dict[str, tg.Plan], arrays: dict[str, NDArray[np.complex64]], expected: complex, processes: int) -> None:
    """Contract the network whole and in slices, and say by how much each misses what is expected."""
    print(f"quimb:  {expected:.6e}")
    for name, plan in plans.items():
        start = time.monotonic()
        value = contract(plan, arrays)
        error = abs(value - expected) / abs(expected)
        print(f"{name:<7} {value:.6e} in {time.monotonic() - start:.1f} s, off by {error:.1e}")
    if processes > 1:
        with tempfile.TemporaryDirectory() as folder:
            given = (processes, f"{folder}/meet", plans["sliced"], arrays)
            multiprocessing.spawn(contract_as_one_of, given, nprocs=processes)


def main() -> None:
    """Build the circuit, plan it whole and in slices, print what each costs; run them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=22, help="log2 of the largest value written [elements]")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seconds", type=float, help="no trial begins later")
    parser.add_argument("--run", action="store_true", help="contract it, too")
    parser.add_argument("--processes", type=int, default=1, help="share the slices among so many")
    given = parser.parse_args()
    circuit = build_circuit(given.cycles, given.seed)
    network, arrays = amplitude_network(circuit, "0" * 53)
    print(f"{given.cycles} cycles: {len(network.cores)} tensors")
    search = tg.Search(given.seed, trials=given.trials, seconds=given.seconds)
    plans = {}
    for name, largest in (("whole", None), ("sliced", 2**given.limit)):
        start = time.monotonic()
        plans[name] = tg.plan(network, largest=largest, search=search)
        describe(name, plans[name], time.monotonic() - start)
    if given.run:
        run(plans, arrays, complex(circuit.amplitude("0" * 53)), given.processes)


if __name__ == "__main__":
    main()
