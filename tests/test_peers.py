"""The einsum cases of opt_einsum, cotengra, NumPy and PyTorch: values, counts, and never above their best order.

`peers.txt` holds them as data. An ellipsis is written out, and where an axis of 1 meets a longer one of the same letter
it becomes an index of its own, as tngraph has neither. What another library's order costs is counted here, by the
definition of `docs/counts.md`: lone indices are summed first, and a step is the product of the sizes of all indices in
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import opt_einsum
import pytest
import torch
from cotengra.pathfinders.path_basic import optimize_optimal

import tngraph as tg

SIZES = dict(zip("abcdefghij", (2, 3, 4, 5, 4, 3, 2, 6, 5, 4), strict=True))
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_WORK = 200_000
"""An equation with more multiplications is called, but not run with gradients beside the reference."""
MOST_OPERANDS = 8
"""The most operands of which opt_einsum looks at all orders in no time; beyond, its dynamic program stands in."""

Shape = tuple[int, ...]
Order = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        equation: as its source writes it, without spaces.
        shapes: of the operands.
    """

    equation: str
    shapes: tuple[Shape, ...]

    def arrays(self) -> list[np.ndarray]:
        """Normal operands."""
        rng = np.random.default_rng(0)
        return [rng.normal(size=shape) for shape in self.shapes]

    def plain(self) -> tuple[list[str], str, dict[str, int]]:
        """The letters of each operand and of the output, with one size per letter."""
        operands, output = _written_out(self.equation, self.shapes)
        sizes: dict[str, int] = {}
        for letter, size in (
            (a, n) for o, shape in zip(operands, self.shapes, strict=True) for a, n in zip(o, shape, strict=True)
        ):
            sizes[letter] = max(size, sizes.get(letter, 1))
        free = iter(letter for letter in LETTERS if letter not in sizes)
        for k, shape in enumerate(self.shapes):
            for axis, size in enumerate(shape):
                if size != sizes[operands[k][axis]]:
                    operands[k] = operands[k][:axis] + (short := next(free)) + operands[k][axis + 1 :]
                    sizes[short] = size
        return operands, output, sizes


def _written_out(equation: str, shapes: Sequence[Shape]) -> tuple[list[str], str]:
    """The sides of an equation, each ellipsis as letters, and the output that is not said in the order of NumPy."""
    left, arrow, output = equation.partition("->")
    operands = left.split(",")
    count = max(
        len(shape) - len(o.replace("...", "")) if "..." in o else 0 for o, shape in zip(operands, shapes, strict=True)
    )
    hidden = "".join([letter for letter in reversed(LETTERS) if letter not in equation][:count])
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        output = "..." * ("..." in left) + "".join(
            sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        )
    for k, shape in enumerate(shapes):
        own = len(shape) - len(operands[k].replace("...", ""))
        operands[k] = operands[k].replace("...", hidden[count - own :])
    return operands, output.replace("...", hidden)


def read_cases() -> Iterator[Case]:
    """The table."""
    for line in (Path(__file__).parent / "peers.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            equation, _, shapes = line.partition(" : ")
            operands = equation.partition("->")[0].replace("...", "ij").split(",")
            given = [tuple(map(int, re.findall(r"\d+", shape))) for shape in re.findall(r"\(([\d,]*)\)", shapes)]
            yield Case(equation, tuple(given or [tuple(SIZES[letter] for letter in operand) for operand in operands]))


CASES = [*read_cases()]


def network_of(case: Case) -> tg.Network:
    """The network of a case, all of whose operands but the first are params."""
    operands, output, sizes = case.plain()
    roles = ["input", *["param"] * (len(operands) - 1)]
    return tg.from_indices(operands, output, sizes, roles=roles)


def cost_of(case: Case, order: Order) -> int:
    """What an order of pairs costs: multiply-adds, sums and products, each counted once."""
    operands, output, sizes = case.plain()
    left = [frozenset(operand) for operand in operands]
    total = 0
    for k, legs in enumerate(left):
        others = frozenset(output).union(*(other for j, other in enumerate(left) if j != k))
        lone = [letter for letter in legs - others if sizes[letter] > 1]
        total += _volume(legs, sizes) if lone else 0
        left[k] = legs & others
    for positions in order:
        taken = [left.pop(position) for position in sorted(positions, reverse=True)]
        while len(taken) > 1:
            first, second = taken.pop(), taken.pop()
            total += _volume(first | second, sizes)
            taken.append((first | second) & frozenset(output).union(*left, *taken))
        left.append(taken[0])
    return total


def _volume(letters: Iterable[str], sizes: dict[str, int]) -> int:
    return prod(sizes[letter] for letter in letters)


def orders_of_peers(case: Case) -> Iterator[tuple[str, Order]]:
    """The best orders that the others find."""
    operands, output, sizes = case.plain()
    if len(operands) < 2:
        return
    shapes = [tuple(sizes[letter] for letter in operand) for operand in operands]
    equation = f"{','.join(operands)}->{output}"
    kinds = ("optimal", "dp") if len(operands) <= MOST_OPERANDS else ("dp",)
    for kind in kinds:
        yield f"opt_einsum {kind}", opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=kind)[0]
    if len(operands) <= MOST_OPERANDS:
        yield "cotengra optimal", optimize_optimal([*map(tuple, operands)], tuple(output), sizes, search_outer=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.equation}:{case.shapes}")
def test_a_case_of_the_peers(case: Case):
    plan = tg.plan(network_of(case))
    layer = tg.compile(plan, dtype=torch.float64)
    arrays = case.arrays()
    first, *others = map(torch.from_numpy, arrays)
    with torch.no_grad():
        for name, array in zip(layer.printed.attributes.values(), others, strict=True):
            dict(layer.named_parameters())[name].copy_(array)
    expected = np.einsum(case.equation, *arrays, optimize="greedy" if len(arrays) > 4 else False)
    np.testing.assert_allclose(layer(first).detach(), expected, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(expected).max()))
    if plan.at().cost <= MOST_WORK:
        assert layer.verify().is_equal
    for peer, order in orders_of_peers(case):
        assert plan.at().cost <= cost_of(case, order), peer


def test_a_lattice_costs_what_cotengra_found_to_be_the_least():
    """20 tensors, 4 by 5: 1,464 operations, as cotengra's own tests say."""
    (case,) = (case for case in CASES if len(case.shapes) == 20)
    assert tg.plan(network_of(case)).at().cost == 1464


def test_a_dearer_order_is_told_from_the_best():
    case = Case("ab,bc,cd", ((2, 3), (3, 4), (4, 5)))
    assert cost_of(case, [(0, 1), (0, 1)]) == 2 * 3 * 4 + 2 * 4 * 5 == tg.plan(network_of(case)).at().cost
    assert cost_of(case, [(1, 2), (0, 1)]) == 3 * 4 * 5 + 2 * 3 * 5
    assert cost_of(Case("ab,b->", ((2, 3), (3,))), [(0, 1)]) == 2 * 3 + 3  # a is summed first
