"""Families that are circuits of small gates, which act on constant vectors to generate a weight, or on the input.

Gates start orthogonal, and those that see only constants start as random signs. So a generated weight is spread over
all its entries at any depth. The gates of the last layer share the variance that ``torch.nn.Linear`` has, 1/(3·fan-in).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal

import sympy

from tngraph.errors import NetworkError
from tngraph.language.families.weight import Activation, Count, Flag, Legs, Pairs, Rank, Weight, multiply
from tngraph.language.handles import Expression, Position
from tngraph.language.sizes import is_same

Layout = Literal["brick", "staircase"]
Wall = Sequence[tuple[int, ...]]
"""The positions that each gate acts on, in the order of the gates."""
Wires = Sequence[Position | None]
"""The index at each position; None stands for the constant vector."""

MANY_WIRES = 6
"""From this many wires on there are so many entries that random signs do not leave all of them negative."""


def adtn(
    w: Weight,
    layers: Count = 1,
    activation: Activation = "relu",
    gate: Count = 2,
    bond: Rank | None = None,
    layout: Layout = "brick",
) -> Expression:
    """Automatically differentiable tensor network: walls of gates on constant vectors generate the weight.

        v  v  v  v  v  v        v = [1, 0, ...]
        |  |  |  |  |  |
        (g1)  (g2)  (g3)        the first column only ever sees v, and keeps the entries that matter
        |  |__|  |__|  |
        |  (g4)  (g5)  |
        |  |  |  |  |  |        one layer; another one begins behind an activation
        i1 i2 i3 o1 o2 o3

    With one layer the weight is linear in each gate, and the plan may contract the gates with the input and never
    form it. With Q legs of size 2, F = ⌊Q/2⌋ and M layers there are 4F + 16(M(Q − 1) − F) params.

    Args:
        layers: how many walls, with an activation after each but the last.
        activation: between layers; ``none`` for a deep linear circuit.
        gate: how many neighbouring legs a gate acts on.
        bond: the size of the wires inside a layer; that of the legs when absent.
        layout: ``brick``, two columns of gates, or ``staircase``, one gate after the other along the legs.

    Source: Qing et al., arXiv 2305.06058.
    """
    if gate < 2:
        raise NetworkError("a gate acts on two legs or more, and gate is 1", "leave it out for two", at=w.name)
    wall = _wall(len(w.legs), gate, layout)
    gain = _scale(w, layers - 1 if activation else 0) ** (1 / len(wall))
    wires: Wires = [None] * len(w.legs)
    state: list[Expression] = []
    for layer in range(1, layers):
        outs = tuple(w.index(f"h{layer}_{k}", w.size(leg)) for k, leg in enumerate(w.legs, 1))
        product = multiply([*state, *_layer(w, wall, wires, outs, bond, f"g{layer}_", 1.0, layout)])
        state, wires = [w.equation(f"h{layer}", outs, product, activation)], outs
    return multiply([*state, *_layer(w, wall, wires, w.legs, bond, f"g{layers}_", gain, layout)])


def _wall(count: int, gate: int, layout: Layout) -> Wall:
    """Return the gates of one layer: neighbours in two shifted columns, or a staircase."""
    if count <= gate:
        return [tuple(range(count))]
    if layout == "staircase":
        return [tuple(range(k, k + gate)) for k in range(count - gate + 1)]
    starts = [*range(0, count, gate), *range(gate // 2, count, gate)]
    gates = [tuple(range(k, min(k + gate, count))) for k in starts]
    return [positions for positions in gates if len(positions) > 1]


def _layer(
    w: Weight, wall: Wall, wires: Wires, outs: Legs, bond: Rank | None, name: str, gain: float, layout: Layout
) -> list[Expression]:
    """Return the gates of one layer.

    A gate that sees only constants has no input legs. In a brick wall a constant beside a wire stays an input of its
    gate, as in the published count. In a staircase every gate but the first has such constants, and they are left out
    because they never matter.
    """
    last = {position: k for k, positions in enumerate(wall) for position in positions}
    current, factors, constant = list(wires), list[Expression](), list[Position]()
    for k, positions in enumerate(wall):
        if layout == "brick" and any(current[p] is not None for p in positions):
            for p in positions:
                if current[p] is None:
                    leg = current[p] = w.index(f"v{p + 1}", w.size(outs[p]))
                    factors.append(w.vector(leg))
                    constant.append(leg)
        ins = tuple(wire for p in positions if (wire := current[p]) is not None)
        moving = tuple(wire for wire in ins if wire not in constant)
        for p in positions:
            inner = w.size(outs[p]) if bond is None else bond
            current[p] = outs[p] if last[p] == k else w.index(f"{name}{k + 1}_{p + 1}", inner)
        results = tuple(wire for p in positions if (wire := current[p]) is not None)
        factors.append(_gate(w, f"{name}{k + 1}", ins, results, gain, moving))
    return factors


def _gate(w: Weight, name: str, ins: Legs, outs: Legs, gain: float | None, moving: Legs | None = None) -> Expression:
    """Return a gate that multiplies the spread of its input by ``gain``, or starts near the identity without one.

    The entries of an orthogonal matrix have the variance 1 over its larger side. An output sums over only the inputs
    that are ``moving``, since a constant vector has a single entry that is not zero.
    """
    if gain is None:
        return w.param(name, *ins, *outs, init=("near_eye", 0.1))
    if not ins:
        return w.param(name, *outs, init=("signs", gain))
    larger = max(w.known(w.volume(ins)), w.known(w.volume(outs)))
    wider = larger / w.known(w.volume(ins if moving is None else moving))
    return w.param(name, *ins, *outs, init=("orthogonal", gain * wider**0.5))


def _scale(w: Weight, barriers: int) -> float:
    """Return a dense layer's standard deviation, with the variance doubled per activation, which halves it."""
    return float((2.0**barriers / (3.0 * w.fan_in)) ** 0.5)


def tree_generator(
    w: Weight, bond: Rank = sympy.Integer(2), activation: Activation = "relu", disentangle: Flag = True
) -> Expression:
    r"""Tree generator: every wire splits in two, level by level, with an activation between levels.

              (top)
             /     \
          (s1)     (s2)
          /  \_____/  \
          |  (d1)     |        disentanglers across the branches, on the last level
          |  |  |     |
          i1 i2 o1    o2

    Args:
        bond: the size of the wires inside.
        activation: between levels; ``none`` for a tree that is linear in each core.
        disentangle: whether the last level has gates between neighbours of different branches.

    Source: Cichocki and Wietczak, arXiv 2606.00130.
    """
    return _hierarchy(w, bond, activation, lambda is_last: disentangle and is_last)


def mera(w: Weight, bond: Rank = sympy.Integer(2), activation: Activation = "relu") -> Expression:
    r"""MERA generator: a tree generator with disentanglers on every level.

                 (top)
               /       \
            (s1)        (s2)
            /  \________/  \
            |     (d1)     |          an activation, and again:
            |    /    \    |
          (s1) (s2)  (s3) (s4)
          /  \_/  \__/  \_/  \
          |  (d1) (d2)  (d3) |
          |  | |  |  |  | |  |

    Args:
        bond: the size of the wires inside.
        activation: between levels; ``none`` for a MERA that is linear in each core.

    Source: Vidal (2007); Cichocki and Wietczak, arXiv 2606.00130, with activations.
    """
    return _hierarchy(w, bond, activation, lambda is_last: True)


def _hierarchy(w: Weight, bond: Rank, activation: Activation, disentangled: Callable[[bool], bool]) -> Expression:
    """Return levels of wires from the top to the legs, each of which splits every wire above in two.

    The first levels have few entries, and start near an identity applied to ones. With random signs all of these
    entries could be negative at once, and ``relu`` would leave a weight that stays zero.
    """
    counts = _counts(len(w.legs))
    if len(counts) == 1:
        return w.param("top", *w.legs, init=("signs", _scale(w, 0)))
    levels = [_level(w, counts, level, bond) for level in range(len(counts))]
    calm = max(k for k, count in enumerate(counts[:-1]) if count < MANY_WIRES)
    lift = w.known(w.volume(levels[calm])) / w.known(w.volume(levels[0]))
    scale = _scale(w, len(counts) - 2 - calm if activation else 0) * lift**0.5
    product: Expression = w.param("top", *levels[0], init="ones" if calm else ("signs", 1.0))
    for level in range(1, len(counts)):
        is_last = level == len(counts) - 1
        gates = (counts[level - 1], (counts[level] - 1) // 2 if disentangled(is_last) else 0)
        gain = scale ** (1 / sum(gates)) if is_last else None if level <= calm else 1.0
        product = multiply([product, *_split(w, level, levels[level - 1], levels[level], gates[1], gain)])
        if not is_last:
            product = w.equation(f"h{level}", levels[level], product, activation)
    return product


def _counts(legs: int) -> list[int]:
    """Return the number of wires on each level, from the top."""
    counts = [legs]
    while counts[0] > 2:
        counts.insert(0, (counts[0] + 1) // 2)
    return counts


def _level(w: Weight, counts: Sequence[int], level: int, bond: Rank) -> Legs:
    """Return the wires of a level: on the last the legs themselves, else no wider than the legs below can fill."""
    if level == len(counts) - 1:
        return w.legs
    span = 2 ** (len(counts) - 1 - level)
    below = [w.legs[k * span : (k + 1) * span] for k in range(counts[level])]
    return tuple(_wire(w, f"h{level}_{k}", bond, legs) for k, legs in enumerate(below, 1))


def _wire(w: Weight, name: str, bond: Rank, below: Legs) -> Position:
    """Return a wire above some legs. Above a single leg, left over from an odd count, it is no wider than that leg."""
    if len(below) == 1 and w.known(bond) > w.known(w.size(below[0])):
        return w.index(name, w.size(below[0]))
    return w.bond(name, bond, w.volume(below))


def _split(w: Weight, level: int, wires: Legs, outs: Legs, disentanglers: int, gain: float | None) -> list[Expression]:
    """Return a core for each wire above, which splits it in two (the last may stay one), and the disentanglers."""
    met = {p for k in range(disentanglers) for p in (2 * k + 1, 2 * k + 2)}
    middle = [w.index(f"m{level}_{p + 1}", w.size(out)) if p in met else out for p, out in enumerate(outs)]
    factors = [
        _gate(w, f"s{level}_{k + 1}", (wire,), tuple(middle[2 * k : 2 * k + 2]), gain) for k, wire in enumerate(wires)
    ]
    for k in range(disentanglers):
        pair = slice(2 * k + 1, 2 * k + 3)
        factors.append(_gate(w, f"d{level}_{k + 1}", tuple(middle[pair]), outs[pair], gain))
    return factors


def quanta(w: Weight, gates: Pairs = (), base: Flag = False) -> Expression:
    """Quantum-circuit adapter (QuanTA): one gate after the other on pairs of the input's own axes.

        i1 i2 i3
        |  (g1)         the last two axes first: gates=[[3, 2], [3, 1], [2, 1]]
        (--g2-)         a gate has as many entries as the square of its axes' sizes
        (g3)  |
        o1 o2 o3

    It starts as an orthogonal map: its entries have the variance 1 over the larger number of features.

    Args:
        gates: the axes of each gate, counted from 1, in order; every pair, the last axes first, when absent.
        base: add the frozen buffer ``base``, a dense weight that starts as minus the circuit: the sum starts at zero.
            Add a trained weight to it to adapt that.

    Source: Chen et al., arXiv 2406.00132.
    """
    w.check_groups()
    axes = len(w.sites())
    if base and any(not is_same(w.size(row), w.size(column)) for row, column in w.pairs()):
        raise NetworkError(
            f"the base of quanta starts as minus an identity, and the rows and columns of {w.name!r} differ in size",
            "leave out base, or make them equal",
            at=w.name,
        )
    order = gates or tuple(combinations(range(axes, 0, -1), 2)) or ((1,),)
    _check_gates(w, order, axes)
    last = {axis: k for k, pair in enumerate(order) for axis in pair}
    current, factors = list(w.rows), list[Expression]()
    for k, pair in enumerate(order):
        ins = tuple(current[axis - 1] for axis in pair)
        for axis in pair:
            is_last = last[axis] == k
            size = w.size(current[axis - 1])
            current[axis - 1] = w.columns[axis - 1] if is_last else w.index(f"m{k + 1}_{axis}", size)
        outs = tuple(current[axis - 1] for axis in pair)
        factors.append(w.param(f"g{k + 1}", *ins, *outs, init="eye" if base else "orthogonal"))
    factors += [_unmet(w, axis) for axis in range(axes) if axis + 1 not in last]
    circuit = multiply(factors)
    return w.buffer("base", *w.rows, *w.columns, init=("eye", -1)) + circuit if base else circuit


def _check_gates(w: Weight, gates: Pairs, axes: int) -> None:
    for gate in gates:
        if len(set(gate)) != len(gate) or not set(gate) <= set(range(1, axes + 1)):
            raise NetworkError(
                f"the gate {list(gate)} of {w.name!r} names no axes", f"its axes are 1 to {axes}", at=w.name
            )


def _unmet(w: Weight, axis: int) -> Expression:
    """Return the identity for an axis that no gate acts on."""
    row, column = w.rows[axis], w.columns[axis]
    if not is_same(w.size(row), w.size(column)):
        raise NetworkError(
            f"no gate of {w.name!r} acts on axis {axis + 1}, which has {w.size(row)} rows and {w.size(column)} columns",
            "an axis that changes its size needs a gate",
            at=w.name,
        )
    return w.builder.const(f"{w.name}.e{axis + 1}", row, column, kind="delta")
