"""The weight that a family builds: its legs by group, and the cores that the family adds to the network for it.

Everything that a family adds is named after the weight: the params ``W.g1``, ``W.g2``, …, the bonds ``W.b1``, ….
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import sympy

from tngraph.errors import NetworkError, RankWarning
from tngraph.language.builder import Builder, Call
from tngraph.language.handles import Expression, Factor, Position, Tensor
from tngraph.language.network import Core, Init
from tngraph.language.sizes import product

Legs = tuple[Position, ...]
Rank: TypeAlias = sympy.Expr
"""The size of an index between cores, which may be symbolic."""
Ranks: TypeAlias = sympy.Expr | tuple[sympy.Expr, ...]
"""One rank for all bonds, or one each."""
Count = int
"""A number that shapes the network, such as a number of layers."""
Flag = bool
Nested = tuple["Nested | int", ...]
"""Numbers in groups of groups."""
Pairs = tuple[tuple[int, ...], ...]
"""Pairs of numbers."""
Activation = Call | None
"""A pointwise function, or none."""


@dataclass(slots=True)
class Weight:
    """A tensor while a family builds it.

    Attributes:
        builder: the builder of the network it is part of.
        name: its name.
        family: the word that names its family, for messages.
        rows: the legs that are summed with the input, slowest first.
        columns: the legs of the output.
        kernel: the legs of a convolution's window.
        source: the tensor that a map (as ``ntt``) is applied to; None for a weight.
        is_grouped: true if the first column is the group of a grouped convolution, which pairs with no row.
        is_ranked: true if the caller chose ranks, who is then warned if one is cut. Defaults are cut silently.
        inputs: the number of inputs that one output sums over, if padding makes the rows more; else None.
    """

    builder: Builder
    name: str
    family: str
    rows: Legs = ()
    columns: Legs = ()
    kernel: Legs = ()
    source: Factor | None = None
    is_grouped: bool = False
    is_ranked: bool = False
    inputs: int | None = None
    _count: int = field(default=0)

    @property
    def legs(self) -> Legs:
        """The legs of all groups: rows, columns, kernel."""
        return self.rows + self.columns + self.kernel

    def size(self, leg: Position) -> sympy.Expr:
        """Return the size of a leg [elements]."""
        return self.builder.index_sizes[leg.terms[0][1]]

    def volume(self, legs: Iterable[Position]) -> sympy.Expr:
        """Return the product of the sizes of legs [elements]."""
        return product(map(self.size, legs))

    def known(self, size: sympy.Expr) -> int:
        """Return the value of a size under the defaults of the named sizes.

        Raises:
            NetworkError: the size is known only at run time.
        """
        value = self.builder.known(size, self.name)
        if value is None:
            raise NetworkError(
                f"the weight {self.name!r} has the run-time size {size}", "a weight has one shape", at=self.name
            )
        return value

    def least(self, left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
        """Return the smaller of two sizes under the defaults."""
        return left if self.known(left) <= self.known(right) else right

    def index(self, name: str, size: sympy.Expr | int) -> Position:
        """Make an index of the weight's own."""
        return self.builder.index(f"{self.name}.{name}", size)

    def bond(self, name: str, rank: sympy.Expr, most: sympy.Expr | None = None) -> Position:
        """Make a bond. A rank beyond the most that can matter is cut, with a warning that names the bond."""
        if most is not None and self.known(rank) > self.known(most):
            if self.is_ranked:
                cut = f"cut from {self.known(rank)} to {self.known(most)}: more than {self.known(most)} cannot matter"
                warnings.warn(f"the bond '{self.name}.{name}' is {cut}", RankWarning, stacklevel=outside())
            rank = most if rank.is_Integer and most.is_Integer else sympy.Min(rank, most)
        return self.index(name, rank)

    def ranks(self, rank: Ranks, count: int, what: str = "bonds") -> tuple[sympy.Expr, ...]:
        """Return one rank for each of `count` bonds.

        Raises:
            NetworkError: a list of ranks has another length.
        """
        if not isinstance(rank, tuple):
            return (rank,) * count
        if len(rank) != count:
            raise NetworkError(
                f"{self.family} has {count} {what} here, and {len(rank)} ranks are given",
                "give one rank for all, or one each",
                at=self.name,
            )
        return rank

    def param(self, name: str, *legs: Position, init: Call | None = None) -> Tensor:
        """Add a param of the weight's own."""
        return self.builder.param(f"{self.name}.{name}", *legs, init=init)

    def buffer(self, name: str, *legs: Position, init: Call | None = None) -> Tensor:
        """Add a buffer of the weight's own."""
        return self.builder.buffer(f"{self.name}.{name}", *legs, init=init)

    def vector(self, leg: Position) -> Tensor:
        """Add the constant vector [1, 0, …] on a leg."""
        self._count += 1
        return self.builder.const(f"{self.name}.v{self._count}", leg, kind=("basis", 0))

    def equation(self, name: str, legs: Legs, expression: Expression, function: Call | None) -> Tensor:
        """Add an equation of the weight's own. With a function it is a barrier."""
        return self.builder.equation(f"{self.name}.{name}", legs, expression, function)

    @property
    def fan_in(self) -> int:
        """The number of inputs that one output sums over."""
        return self.inputs or self.known(self.volume(self.rows + self.kernel))

    def spread(self, product: Expression) -> None:
        """Initialise cores of a product that lack it, so that the product has a dense layer's variance, 1/(3·fan-in).

        In a layer the default rule sees the input and does this. A weight on its own has no input.
        """
        for summand in product.summands:
            names = [factor.source for factor in summand.factors]
            cores = [core for name in names if isinstance(core := self.builder.tensors[name], Core)]
            drawn = [core for core in cores if core.role == "param" and core.init is None]
            inner = {i for f in summand.factors for _, i in (t for p in f.positions for t in p.terms)}
            bonds = self.volume(map(Position.of, inner - {str(leg.plain) for leg in self.legs}))
            std = (3.0 * self.fan_in * self.known(bonds)) ** (-0.5 / max(len(drawn), 1))
            for core in drawn:
                self.builder.tensors[core.name] = replace(core, init=Init("normal", (std,)))

    def pairs(self) -> list[Legs]:
        """Return row k with column k, for every k.

        Raises:
            NetworkError: the numbers of rows and columns differ, and neither is 0.
        """
        columns = self.columns[self.is_grouped :]
        if self.rows and columns and len(self.rows) != len(columns):
            raise NetworkError(
                f"{self.family} pairs rows with columns, and {self.name!r} has {len(self.rows)} rows and "
                f"{len(columns)} columns",
                "make the shorter side as long with indices of size 1",
                at=self.name,
            )
        return [self.rows[k : k + 1] + columns[k : k + 1] for k in range(max(len(self.rows), len(columns)))]

    def sites(self) -> list[Legs]:
        """Return the pairs of rows and columns. The group and the window of a convolution are further sites.

        Raises:
            NetworkError: see `pairs`.
        """
        group = self.columns[: self.is_grouped]
        return [*self.pairs(), *(site for site in (group, self.kernel) if site)]

    def check_groups(self) -> None:
        """Raise `NetworkError` unless the weight has rows and columns.

        Raises:
            NetworkError: rows or columns are missing.
        """
        if not self.rows or not self.columns:
            raise NetworkError(
                f"{self.family} is a matrix, and {self.name!r} has {len(self.rows)} rows and {len(self.columns)} "
                "columns",
                "write its legs in two groups: W[(rows), (columns)]",
                at=self.name,
            )


def multiply(factors: Sequence[Expression]) -> Expression:
    """Return the product of tensors, left to right."""
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


def outside() -> int:
    """Return the stack level of the first caller outside tngraph, for a warning to point at."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("tngraph."):
        frame, level = frame.f_back, level + 1
    return level
