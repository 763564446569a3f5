"""An amplitude of a random circuit on 53 qubits, as Google's Sycamore ran it: what contracting it costs.

    python examples/sycamore.py --cycles 10 --limit 22
    python examples/sycamore.py --cycles 20 --limit 30 --seconds 120

Needs quimb, which builds the circuit's network and simplifies it.

Source: Arute et al., Nature 574, 505 (2019): the layout, the pattern of couplers ABCDCDAB, random single-qubit gates of
√X, √Y and √W that never repeat on a qubit, and two-qubit gates fSim(π/2, π/6).
"""

from __future__ import annotations

import argparse
import random
import time
from math import log2, log10, pi

import numpy as np
import quimb.tensor as qtn
from numpy.typing import NDArray

import tngraph as tg
from tngraph.planning.slicing import slice_tree

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


def main() -> None:
    """Build the circuit, plan it, slice the plan, print what each costs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=22, help="log2 of the largest value written [elements]")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seconds", type=float, help="no trial begins later")
    given = parser.parse_args()
    network, _ = amplitude_network(build_circuit(given.cycles, given.seed), "0" * 53)
    print(f"{given.cycles} cycles: {len(network.cores)} tensors")
    search = tg.Search(given.seed, trials=given.trials, seconds=given.seconds)
    start = time.monotonic()
    plan = tg.plan(network, search=search)
    counts = plan.at()
    print(f"whole:  10^{log10(counts.cost):.2f} operations, largest 2^{log2(counts.largest):.0f} elements")
    print(f"        planned in {time.monotonic() - start:.0f} s")
    start = time.monotonic()
    sliced = slice_tree(plan.regimes[0].trees[0], plan.sizes, 2**given.limit, search)
    print(f"sliced: 10^{log10(sliced.total):.2f} operations, largest 2^{log2(sliced.largest):.0f} elements")
    print(f"        {len(sliced.indices)} indices, {sliced.slices:,} slices of {sliced.each:,} operations")
    print(
        f"        and {sliced.once:,} before them: {sliced.total:,} in all, found in {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
