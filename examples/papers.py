"""What papers say their layers cost, beside what tngraph counts for the networks that its families build.

Run it with `make papers`, or in an environment that has tngraph:

    python examples/papers.py

A row holds the numbers of a paper, or its formulas at the row's sizes. Ours come from plans: one in the paper's own
order, pinned, and one in the order that the search finds. Nothing else of ours is written down here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise
from math import prod

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import tngraph as tg

Modes = tuple[int, ...]
Stated = int | str | None
"""A number of a paper: exact, rounded as it is printed there (``"1.48e10"``), or not given."""
Order = Callable[[tg.Network], str | Mapping[str, str]]
"""An order by hand for a network."""
BATCH = 1
NARROW, WIDE = 130, 200
"""The least width of a terminal to fold the tables into, and the width without one [characters]."""


def main() -> None:
    """Print every paper's table, then the totals."""
    console = Console(highlight=False)
    if not console.is_terminal or console.width < NARROW:
        console.width = WIDE  # numbers are never cut
    for paper in PAPERS:
        console.print(_paper_table(paper, console.is_terminal))
        console.print()
    console.print(_totals_table(console.is_terminal))


@dataclass(frozen=True)
class Call:
    """A family with what it is called with; `text` is that call as one would type it."""

    family: str
    rows: Modes
    columns: Modes
    kernel: Modes = ()
    options: tuple[tuple[str, object], ...] = ()

    @property
    def text(self) -> str:
        """The call in Python."""
        modes = [_modes_text(self.rows), _modes_text(self.columns)]
        modes += [_modes_text(self.kernel)] if self.kernel else []
        return f"{self.family}({', '.join(modes + [f'{k}={_value_text(v)}' for k, v in self.options])})"

    def network(self) -> tg.Network:
        """What the call builds."""
        network: tg.Network = getattr(tg.families, self.family)(
            self.rows, self.columns, self.kernel, **dict(self.options)
        )
        return network


def call(family: str, rows: Modes, columns: Modes, kernel: Modes = (), **options: object) -> Call:
    """A call of a family; a convolution is padded so that its output has as many positions as its input."""
    padding = {"padding": kernel[0] // 2} if kernel else {}
    return Call(family, rows, columns, kernel, tuple({**options, **padding}.items()))


def _modes_text(modes: Modes) -> str:
    if len(modes) > 3 and len(set(modes)) == 1:
        return f"({modes[0]},)*{len(modes)}"
    return str(modes[0]) if len(modes) == 1 else f"({','.join(map(str, modes))})"


def _value_text(value: object) -> str:
    return _modes_text(value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Row:
    """One layer of a paper.

    Attributes:
        layer: what the paper calls it.
        call: the family that builds it.
        params: what the paper counts [elements].
        dense: the weights it stands for [elements].
        macs: what the paper counts for its own order [MAC].
        order: that order; None is the planner's, where it is the only one or the best one that the paper means.
        sizes: the run-time sizes.
        replaces: the layer of which it takes the place, where that is not a dense one with the same modes.
    """

    layer: str
    call: Call
    params: int
    dense: int
    macs: Stated = None
    order: Order | None = None
    sizes: tuple[tuple[str, int], ...] = (("batch", BATCH),)
    replaces: Call | None = None


@dataclass(frozen=True)
class Paper:
    """The rows of one paper."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Total:
    """Several layers together: how often each, and what the paper counts for all of them [elements]."""

    name: str
    parts: tuple[tuple[int, Row], ...]
    params: int
    dense: int


@dataclass(frozen=True)
class Counts:
    """What tngraph counts for a row: elements, and MAC of the paper's order and of the planner's."""

    params: int
    dense: int
    macs: int | None
    planned: int


@cache
def count(row: Row) -> Counts:
    """Plan a row in both orders."""
    network, sizes = row.call.network(), dict(row.sizes)
    planned = tg.plan(network, sizes)
    pinned = tg.plan(network, sizes, order=row.order(network)) if row.order else None
    own = pinned or (planned if row.macs is not None else None)
    return Counts(planned.at().params, _dense(row), own.at().macs if own else None, planned.at().macs)


def _dense(row: Row) -> int:
    dense = tg.plan((row.replaces or row.call).network(), dict(row.sizes)).dense
    if dense is None:
        raise ValueError(f"{row.layer} is no linear map: say which layer it replaces")
    return int(dense.params)


def is_equal(row: Row) -> bool:
    """Whether everything that the paper states of a row is what tngraph counts."""
    found = count(row)
    return (found.params, found.dense) == (row.params, row.dense) and agrees(row.macs, found.macs)


def agrees(stated: Stated, found: int | None) -> bool:
    """Whether a count is what a paper states, to as many digits as it states."""
    if stated is None or found is None:
        return stated is None
    if isinstance(stated, int):
        return stated == found
    digits = len(stated.partition("e")[0].partition(".")[2])
    return float(stated) == float(f"{found:.{digits}e}")


def count_total(total: Total) -> tuple[int, int]:
    """The params and the dense params of all parts [elements]."""
    counts = [(times, count(row)) for times, row in total.parts]
    return sum(times * c.params for times, c in counts), sum(times * c.dense for times, c in counts)


# The orders of the papers.


def sweep(network: tg.Network) -> str:
    """The input meets one core after the other, in the order in which the family has them."""
    return " ".join(["x", *_params(network)])


def rebuild(network: tg.Network) -> str:
    """The dense weight first, then the input."""
    return f"({' '.join(_params(network))}) x"


def _params(network: tg.Network) -> list[str]:
    return [core.name for core in network.cores if core.role == "param"]


def decode(network: tg.Network) -> Mapping[str, str]:
    """Gate after gate on all 2^Q entries, then the input: first whatever has no input wires, which sums nothing."""
    legs = {core.name: len(core.legs) for core in network.cores}
    names = {
        equation.name: sorted((a.source for a in equation.terms[0].accesses), key=lambda name: legs.get(name, 0) > 2)
        for equation in network.equations
    }
    weight = " ".join(names.pop("W"))
    return {**{name: " ".join(sources) for name, sources in names.items()}, "y": f"({weight}) x"}


# The formulas of the papers.


def count_chain(rows: Modes, columns: Modes, bonds: Modes) -> int:
    """Σ R_{l−1}·R_l·s_l·t_l over the sites of a chain; the bonds at its ends are among `bonds`."""
    return sum(a * b * s * t for (a, b), s, t in zip(pairwise(bonds), rows, columns, strict=True))


def count_sweep(rows: Modes, columns: Modes, bonds: Modes) -> int:
    """Σ R_{l−1}·R_l·(t_1…t_l)(s_l…s_m): a vector swept through a chain."""
    return sum(a * b * prod(columns[: k + 1]) * prod(rows[k:]) for k, (a, b) in enumerate(pairwise(bonds)))


def count_shared(rows: Modes, columns: Modes, rank: int) -> int:
    """R·Σ s_l·t_l: cores that share one index."""
    return rank * sum(s * t for s, t in zip(rows, columns, strict=True))


def count_shared_sweep(rows: Modes, columns: Modes, rank: int) -> int:
    """R·Σ (t_1…t_l)(s_l…s_m): a vector swept through cores that share one index."""
    return rank * count_sweep(rows, columns, (1,) * (len(rows) + 1))


def count_factors(modes: Modes, ranks: Modes) -> int:
    """Σ s_l·R_l: one factor per mode."""
    return sum(m * r for m, r in zip(modes, ranks, strict=True))


# ADTN: Qing, Li, Zhou, Ran, arXiv 2305.06058.


def adtn_row(layers: int, rows: int, columns: int, batch: int = BATCH, params: int | None = None) -> Row:
    """M brick walls on Q legs of size 2: 4F + 16(M(Q − 1) − F) params; decoding costs 4·2^Q MAC per full gate."""
    legs = rows + columns
    first = legs // 2
    full = layers * (legs - 1) - first
    return Row(
        f"{2**rows} → {2**columns}, M = {layers}, Q = {legs}",
        call("adtn", (2,) * rows, (2,) * columns, layers=layers),
        4 * first + 16 * full if params is None else params,
        2**legs,
        macs=4 * 2**legs * full + 2**legs * batch,
        order=decode,
        sizes=(("batch", batch),),
        replaces=call("mpo", (2**rows,), (2**columns,)),
    )


VGG = (adtn_row(1, 9, 12, params=200), adtn_row(1, 12, 12, params=224))
ADTN = Paper(
    "ADTN, arXiv 2305.06058: decoded gate after gate, then applied to one sample",
    (*VGG, *(adtn_row(*shape) for shape in ((1, 4, 5), (2, 4, 4), (2, 4, 5), (2, 9, 12), (3, 4, 4), (3, 5, 6)))),
)


# TNN: Su, Li, Bhattacharjee, Huang, arXiv 1805.10352.


@dataclass(frozen=True)
class Convolution:
    """A window of k × k over XY positions, S = ∏s_l channels in and T = ∏t_l out, and ranks to choose from."""

    k: int
    s: Modes
    t: Modes
    ranks: Modes
    row_ranks: Modes
    column_ranks: Modes
    height: int
    width: int

    def row(self, layer: str, made: Call, params: int, macs: int | None = None) -> Row:
        """A row of such a convolution; macs are per position."""
        sizes = (("batch", BATCH), ("height", self.height), ("width", self.width))
        positions = self.height * self.width
        return Row(
            layer, made, params, self.k**2 * prod(self.s) * prod(self.t), macs and macs * positions, sweep, sizes=sizes
        )


def tnn_rows(c: Convolution) -> tuple[Row, ...]:
    """The layers of the paper's table, at one set of sizes."""
    return (*plain_rows(c), *reshaped_rows(c), *dense_rows(c))


def plain_rows(c: Convolution) -> tuple[Row, ...]:
    """The layers that leave the channels as they are."""
    k, s, t, (r1, r2, r3) = c.k, prod(c.s), prod(c.t), c.ranks[:3]
    svd, cp = k * r1 * (s + t), r1 * (s + k**2 + t)
    tk = s * r1 + k**2 * r1 * r2 + r2 * t
    tt = s * r1 + k * r1 * r2 + k * r2 * r3 + r3 * t
    return (
        c.row("SVD", call("low_rank", (s,), (t,), (k, k), rank=r1), svd, svd),
        c.row("CP", call("cp", (s,), (t,), (k, k), rank=r1), cp, cp),
        c.row("TK", call("tucker", (s,), (t,), (k, k), rank=(r1, r2)), tk, tk),
        c.row("TT", call("plain_tt", (s,), (t,), (k, k), bond=(r1, r2, r3)), tt, tt),
    )


def reshaped_rows(c: Convolution) -> tuple[Row, ...]:
    """The layers that split the channels into modes: s_l and t_l share a core, and the window has its own."""
    k, s, t, r = c.k, c.s, c.t, c.ranks[0]
    bonds = (1, *c.ranks[: len(s)])
    window = k**2 * bonds[-1]
    inner = c.row_ranks + c.column_ranks
    return (
        c.row(
            "rCP",
            call("rcp", s, t, (k, k), rank=r),
            count_shared(s, t, r) + r * k**2,
            count_shared_sweep(s, t, r) + k**2 * r * prod(t),
        ),
        c.row(
            "rTK",
            call("tucker", s, t, (k, k), rank=inner),
            count_factors(s + t, inner) + k**2 * prod(inner),
            count_tucker_sweep(c, k**2),
        ),
        c.row(
            "rTT",
            call("mpo", s, t, (k, k), bond=bonds[1:]),
            count_chain(s, t, bonds) + window,
            count_sweep(s, t, bonds) + window * prod(t),
        ),
    )


def dense_rows(c: Convolution) -> tuple[Row, ...]:
    """The layers without a window."""
    s, t, r = c.s, c.t, c.ranks[0]
    bonds, inner = (1, *c.ranks[: len(s) - 1], 1), c.row_ranks + c.column_ranks
    dense = prod(s) * prod(t)
    tk = count_factors(s + t, inner) + prod(inner)
    return (
        Row("dense-CP", call("rcp", s, t, rank=r), count_shared(s, t, r), dense, order=sweep),
        Row("dense-TK", call("tucker", s, t, rank=inner), tk, dense, order=sweep),
        Row(
            "dense-TT",
            call("mpo", s, t, bond=bonds[1:-1]),
            count_chain(s, t, bonds),
            dense,
            count_sweep(s, t, bonds),
            sweep,
        ),
    )


def count_tucker_sweep(c: Convolution, window: int) -> int:
    """A vector swept through a factor per row, the core, a factor per column."""
    rows = count_sweep(c.s, c.row_ranks, (1,) * (len(c.s) + 1))
    columns = count_sweep(c.column_ranks, c.t, (1,) * (len(c.t) + 1))
    return rows + window * prod(c.row_ranks) * prod(c.column_ranks) + columns


CONVOLUTIONS = (
    Convolution(3, (4, 4), (4, 8), (6, 5, 4), (2, 3), (3, 4), 16, 16),
    Convolution(5, (3, 4, 5), (4, 2, 6), (7, 4, 6), (2, 3, 2), (2, 2, 3), 12, 10),
)
TNN = Paper(
    "TNN, arXiv 1805.10352: one sample, stride 1, padded; 16 × 16 positions for 3 × 3, 12 × 10 for 5 × 5",
    tuple(row for c in CONVOLUTIONS for row in tnn_rows(c)),
)


# MPO: Gao et al., arXiv 1904.06194.


def mpo_row(
    layer: str, rows: Modes, columns: Modes, bond: int, dense: int, params: int, macs: Stated = None, channels: int = 0
) -> Row:
    """A layer; with channels it is the flattened map of a 3 × 3 convolution of so many that is one MPO."""
    bonds = (1, *(bond,) * (len(rows) - 1), 1)
    return Row(
        layer,
        call("mpo", rows, columns, bond=bond),
        params,
        dense,
        macs=macs or count_sweep(rows, columns, bonds),
        order=sweep,
        replaces=call("mpo", (channels,), (channels,), (3, 3)) if channels else None,
    )


FC2 = (
    mpo_row("FC2 784 → 256", (4, 7, 7, 4), (4, 4, 4, 4), 4, 200_704, 1_024, 95_488),
    mpo_row("FC2 256 → 10", (4, 4, 4, 4), (1, 10, 1, 1), 4, 2_560, 736),
)
LENET = (
    mpo_row("LeNet-5 400 → 120", (2, 10, 10, 2), (2, 5, 6, 2), 4, 48_000, 1_792),
    mpo_row("LeNet-5 120 → 84", (2, 5, 6, 2), (2, 3, 7, 2), 4, 10_080, 944),
    mpo_row("LeNet-5 84 → 10", (2, 3, 7, 2), (1, 5, 2, 1), 2, 840, 124),
)
VGG_CONV = mpo_row("VGG conv5, a map of 2048", (2, 8, 8, 8, 2), (2, 8, 8, 8, 2), 4, 2_359_296, 3_104, channels=512)
VGG_FC = (
    mpo_row("VGG 512 → 4096", (4, 4, 4, 4, 2), (4, 4, 8, 8, 4), 4, 2_097_152, 1_376),
    mpo_row("VGG 4096 → 4096", (4, 4, 8, 8, 4), (4, 4, 8, 8, 4), 4, 16_777_216, 2_432, "1.44e6"),
    mpo_row("VGG 4096 → 10", (4, 4, 8, 8, 4), (1, 10, 1, 1, 1), 4, 40_960, 928),
)
_MAP = (2, 4, 4, 4, 4, 4, 4, 2)
RESNET = mpo_row("ResNet block, a map of 16384", _MAP, _MAP, 4, 589_824, 1_568, channels=256)
RESNET_HEAD = mpo_row("ResNet 256 → 10", (4, 4, 4, 4), (1, 5, 2, 1), 3, 2_560, 276)
DENSENET = mpo_row("DenseNet 448 → 10", (4, 4, 7, 4), (1, 5, 2, 1), 4, 4_480, 576)
MPO = Paper(
    "MPO, arXiv 1904.06194: one sample, swept from left to right",
    (*FC2, *LENET, VGG_CONV, *VGG_FC, RESNET, RESNET_HEAD, DENSENET),
)


# NTT: Wang, Li, Deng, Chen, Zhao, Liu, Neural Networks 144 (2021).


def ntt_row(rows: Modes, columns: Modes, bonds: Modes) -> Row:
    """A sweep with activations between its cores, which leave one order only."""
    ends = (1, *bonds, 1)
    return Row(
        f"{prod(rows)} → {prod(columns)}",
        call("ntt", rows, columns, bond=bonds),
        count_chain(rows, columns, ends),
        prod(rows) * prod(columns),
        macs=count_sweep(rows, columns, ends),
        replaces=call("mpo", rows, columns, bond=bonds),
    )


NTT = Paper(
    "NTT, Neural Networks 144 (2021): one sample; the only order there is",
    (
        ntt_row((4, 7, 7, 4), (4, 4, 4, 4), (4, 4, 4)),
        ntt_row((3, 5, 4), (6, 2, 5), (8, 3)),
        ntt_row((8, 20, 20, 18), (4, 4, 4, 4), (4, 4, 4)),
    ),
)


# conv_einsum: Rabbani et al., arXiv 2401.03384.


def conv_einsum_row(layer: str, rank: int, order: Order | None, macs: Stated) -> Row:
    """The CP convolution of the paper with one factor per axis of the window: R(S + 3 + 3 + T) params."""
    return Row(
        layer,
        call("cp", (64,), (64,), (3, 3), rank=rank, separable=True),
        rank * (64 + 3 + 3 + 64),
        3 * 3 * 64 * 64,
        macs,
        order,
        (("batch", 128), ("height", 56), ("width", 56)),
    )


CONV_EINSUM = Paper(
    "conv_einsum, arXiv 2401.03384: CP convolution, batch 128, 64 → 64 channels, 56 × 56 positions, 3 × 3",
    (
        conv_einsum_row("R = 64, kernel first: its order", 64, rebuild, "1.48e10"),
        conv_einsum_row("R = 64, the optimum", 64, None, "3.44e9"),
        conv_einsum_row("R = 269, kernel first", 269, rebuild, "1.481e10"),
        conv_einsum_row("R = 269, factor after factor", 269, sweep, "1.447e10"),
    ),
)


# Relatives.


def quanta_row(axes: Modes) -> Row:
    """One gate per pair of axes: Σ(d_i·d_j)² params, D·Σ d_i·d_j MAC."""
    pairs = [a * b for a, b in combinations(axes, 2)]
    params, macs = sum(pair**2 for pair in pairs), prod(axes) * sum(pairs)
    return Row("QuanTA, 2406.00132", call("quanta", axes, axes), params, prod(axes) ** 2, macs, sweep)


def loretta_row(rows: Modes, columns: Modes, rank: int) -> Row:
    """One tensor train over all factors of the input and the output: Σ r·n·r params."""
    modes = rows + columns
    ranks = (1, *(rank,) * (len(modes) - 1), 1)
    params = sum(a * n * b for (a, b), n in zip(pairwise(ranks), modes, strict=True))
    return Row("LoRETTA, 2402.11417", call("plain_tt", rows, columns, bond=rank), params, prod(modes), order=sweep)


def btt_row(m: Modes, n: Modes, rank: int) -> Row:
    """A (m1, m0, n0·r) and B (n0, m1·r, n1): r(n0·d_in + m1·d_out) params, and as many MAC."""
    count = rank * (n[0] * prod(m) + m[0] * prod(n))
    return Row("BTT, 2406.06248", call("btt", m, n, rank=rank), count, prod(m) * prod(n), count, sweep)


def einsum_row(rows: Modes, columns: Modes, rank: int) -> Row:
    """Rows (g, b, a), columns (f, d, e): r·f·g(d·a + e·b) params, r·f·g·d·b(a + e) MAC."""
    (g, b, a), (f, d, e) = rows, columns
    params, macs = rank * f * g * (d * a + e * b), rank * f * g * d * b * (a + e)
    dense = prod(rows) * prod(columns)
    return Row("einsum family, 2410.02117", call("einsum", rows, columns, rank=rank), params, dense, macs, sweep)


def monarch_row(k: int, p: int, s: int, q: int) -> Row:
    """w1 (k, q, p) and w2 (l = q, s, r = k): k·q·p + l·s·r params, and as many MAC."""
    count = k * q * p + q * s * k
    return Row("Monarch, 2204.00595", call("monarch", (k, p), (s, q)), count, k * p * s * q, count, sweep)


def kronecker_row(rows: Modes, columns: Modes) -> Row:
    """Σ s·t params."""
    ends = (1,) * (len(rows) + 1)
    dense, macs = prod(rows) * prod(columns), count_sweep(rows, columns, ends)
    return Row("Kronecker", call("kronecker", rows, columns), count_chain(rows, columns, ends), dense, macs, sweep)


def low_rank_row(rows: int, columns: int, rank: int) -> Row:
    """r(S + T) params, and as many MAC."""
    count = rank * (rows + columns)
    return Row("low rank, LoRA", call("low_rank", (rows,), (columns,), rank=rank), count, rows * columns, count, sweep)


def tree_row(rows: Modes, columns: Modes, bond: int) -> Row:
    """A binary tree (HT) over sites whose number is a power of 2: Σ s·t·r, r³ per inner core, r² on top."""
    params = count_shared(rows, columns, bond) + (len(rows) - 2) * bond**3 + bond**2
    return Row("tree, HT", call("tree", rows, columns, bond=bond), params, prod(rows) * prod(columns))


def ring_row(rows: Modes, columns: Modes, bonds: Modes) -> Row:
    """Σ r·s·t·r params, the last bond also the first."""
    params = count_chain(rows, columns, (bonds[-1], *bonds))
    return Row("ring, TR", call("ring", rows, columns, bond=bonds), params, prod(rows) * prod(columns))


def block_term_row(rows: Modes, columns: Modes, blocks: int, rank: int) -> Row:
    """N(r·Σ s + r·Σ t + r^legs) params."""
    modes = rows + columns
    params = blocks * (rank * sum(modes) + rank ** len(modes))
    return Row("block term", call("block_term", rows, columns, blocks=blocks, rank=rank), params, prod(modes))


def mera_row(rows: int, columns: int) -> Row:
    """Legs of size 2, a power of 2 of them: n − 2 isometries of 2³ under a top of 2², a disentangler of 2⁴ per gap."""
    legs = rows + columns
    levels = legs.bit_length() - 1
    params = 4 + 8 * (legs - 2) + 16 * (legs - 2 - (levels - 1))
    dense = call("mpo", (2**rows,), (2**columns,))
    return Row("MERA", call("mera", (2,) * rows, (2,) * columns), params, 2**legs, replaces=dense)


QUANTA = Row("QuanTA, 2406.00132", call("quanta", (16, 8, 8, 4), (16, 8, 8, 4)), 43_008, 4096**2, 1_835_008, sweep)
RELATIVES = Paper(
    "Relatives: one sample",
    (
        QUANTA,
        quanta_row((3, 4, 5)),
        loretta_row((8, 8, 12), (8, 8, 12), 5),
        loretta_row((4, 6), (5, 3), 3),
        btt_row((16, 48), (48, 16), 2),
        btt_row((3, 4), (5, 6), 2),
        einsum_row((2, 3, 4), (5, 3, 2), 4),
        einsum_row((4, 1, 8), (2, 6, 3), 2),
        monarch_row(4, 6, 5, 3),
        monarch_row(16, 16, 16, 16),
        kronecker_row((4, 5, 3), (6, 2, 7)),
        low_rank_row(4096, 4096, 8),
        tree_row((4, 4, 4, 4), (3, 3, 3, 3), 4),
        tree_row((3,) * 8, (3,) * 8, 5),
        ring_row((4, 5, 6), (3, 4, 2), (3, 4, 5)),
        block_term_row((4, 5), (6, 3), 3, 2),
        mera_row(4, 4),
        mera_row(8, 8),
    ),
)

PAPERS = (ADTN, TNN, MPO, NTT, CONV_EINSUM, RELATIVES)
TOTALS = (
    Total("ADTN: VGG-16's two linear layers", tuple((1, row) for row in VGG), 424, 18_874_368),
    Total("MPO: FC2", tuple((1, row) for row in FC2), 1_760, 203_264),
    Total("MPO: LeNet-5", tuple((1, row) for row in LENET), 2_860, 58_920),
    Total("MPO: VGG-16, conv5 twice", ((2, VGG_CONV), *((1, row) for row in VGG_FC)), 10_944, 23_633_920),
    Total("MPO: ResNet, last block, two convolutions", ((2, RESNET),), 3_136, 1_179_648),
    Total("MPO: DenseNet", ((1, DENSENET),), 576, 4_480),
)


# What is printed.


def _paper_table(paper: Paper, is_boxed: bool) -> Table:
    words = ("layer", "tg.families.")
    numbers = ("params: paper", "ours", "dense", "MAC: paper", "its order", "planned", "gain", "equal")
    table = _table(paper.title, words, numbers, is_boxed)
    for row in paper.rows:
        found = count(row)
        counts = (row.params, found.params, found.dense, row.macs, found.macs, found.planned)
        gain = "–" if found.macs is None else f"{found.macs / found.planned:,.2f}"
        table.add_row(row.layer, row.call.text, *map(_number, counts), gain, _verdict(is_equal(row)))
    return table


def _totals_table(is_boxed: bool) -> Table:
    numbers = ("params: paper", "ours", "dense: paper", "ours", "dense / params", "equal")
    table = _table("Several layers together", ("layers",), numbers, is_boxed)
    for total in TOTALS:
        params, dense = count_total(total)
        verdict = _verdict((params, dense) == (total.params, total.dense))
        counts = (total.params, params, total.dense, dense)
        table.add_row(total.name, *map(_number, counts), f"{dense / params:,.1f}", verdict)
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str], is_boxed: bool) -> Table:
    box = SIMPLE_HEAD if is_boxed else None
    table = Table(title=title, title_justify="left", title_style="bold", box=box, pad_edge=False)
    for word in words:
        table.add_column(word, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def _number(value: Stated) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else value


def _verdict(equal: bool) -> Text:
    return Text("yes", "green") if equal else Text("no", "bold red")


if __name__ == "__main__":
    main()
