"""The recipe of a dense weight built of cores: the family, its modes and options, and the shape of the weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, prod
from typing import Any

from torch import Tensor
from torch.nn import functional

from tngraph.errors import GrowthWarning, NetworkError, RankWarning, SizeError
from tngraph.language.families import named_family
from tngraph.language.families.family import Family
from tngraph.language.families.weight import outside
from tngraph.language.limits import LEGS
from tngraph.language.network import Network
from tngraph.language.sizes import as_integer
from tngraph.program.counts import param_count

Modes = tuple[Sequence[int], Sequence[int]]
"""The modes of the rows and those of the columns."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """A dense weight and how it is built.

    Attributes:
        family: the family that builds it.
        shape: shape of the dense weight in PyTorch's layout, `(out, in / groups, *kernel)`, or `(out,)`.
        rows: modes whose product is ``in / groups`` or more; none for a vector.
        columns: modes whose product is ``out / groups`` or more.
        groups: number of groups of channels.
        options: options of the family.
        is_transposed: whether PyTorch stores the weight as that of a transposed convolution, `(in, out / groups,
            *kernel)`.
    """

    family: Family
    shape: Shape
    rows: Shape
    columns: Shape
    groups: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    is_transposed: bool = False

    @property
    def is_exact(self) -> bool:
        """True if the modes multiply to the features, so that nothing is padded."""
        return self.surplus == (0, 0)

    @property
    def surplus(self) -> tuple[int, int]:
        """The number of rows and columns of a group beyond the features.

        Surplus rows read zeros, and surplus columns are dropped.
        """
        needed = prod(self.shape[1:2]), self.shape[0] // self.groups
        return prod(self.rows) - needed[0], prod(self.columns) - needed[1]

    def layer(self, **window: Any) -> Network:
        """Return the network that applies the weight.

        Args:
            window: ``stride``, ``padding`` and ``dilation``; for a transposed convolution ``output_padding`` too.
        """
        window = {**window, "transposed": self.is_transposed}
        return self.family(self.rows, self.columns, self.shape[2:], **window, **self._shared())

    def weight(self) -> Network:
        """Return the network whose output is the weight, surplus rows and columns included.

        Raises:
            NetworkError: the family is not linear in its input.
        """
        if self.family.is_map:
            raise NetworkError(
                f"{self.family.name} has no dense weight: it is not linear in its input",
                "weight and to_dense() are for the other families",
            )
        return self.family.weight(self.rows, self.columns, self.shape[2:], **self._shared())

    def _shared(self) -> dict[str, Any]:
        """Return the keyword arguments of both networks.

        The fan-in leaves out padded rows, which always read zeros.
        """
        fan_in = prod(self.shape[1:]) if self.surplus[0] else None
        return {"groups": self.groups, "fan_in": fan_in, **self.options}

    def weight_again(self) -> Network:
        """Return the network of `weight`, without warning about its ranks a second time."""
        return _quietly(self.weight)

    def warn_of_growth(self, params: int, bias: int = 0) -> None:
        """Warn if a layer has more params than the dense one, biases included [elements]."""
        dense = prod(self.shape) + bias
        if params > dense:
            warnings.warn(
                f"{self} has {params:,} params, and the dense layer {dense:,}\n"
                "  a lower rank, other modes or another family have fewer",
                GrowthWarning,
                stacklevel=outside(),
            )

    def crop(self, weight: Tensor) -> Tensor:
        """Return the weight of `shape`, cut from the output of `weight`, in PyTorch's layout."""
        if self.is_exact and not self.is_transposed:
            return weight
        groups = weight.reshape(self.groups, -1, *weight.shape[1:])[:, : self.shape[0] // self.groups]
        if self.rows:
            groups = groups[:, :, : self.shape[1]]
        return groups.transpose(1, 2).flatten(0, 1) if self.is_transposed else groups.reshape(self.shape)

    def pad(self, weight: Tensor) -> Tensor:
        """Return a weight in PyTorch's layout as the output of `weight`, with zeros in surplus rows and columns."""
        shape, columns = self.shape, self.shape[0] // self.groups
        if self.is_transposed:
            weight = weight.reshape(self.groups, -1, columns, *shape[2:]).transpose(1, 2)
        groups = weight.reshape(self.groups, columns, *shape[1:])
        surplus = (0, 0) * len(shape[2:]) + ((0, self.surplus[0]) if self.rows else ()) + (0, self.surplus[1])
        return functional.pad(groups, surplus).flatten(0, 1)

    @property
    def called(self) -> str:
        """The family with its options: ``mpo(bond=4)``."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.family.name}({options})" if options else self.family.name

    @property
    def modes(self) -> str:
        """The modes of the rows and of the columns: ``8·8 -> 8·4``."""
        return " -> ".join("·".join(map(str, modes)) for modes in (self.rows, self.columns) if modes)

    def __str__(self) -> str:
        return f"family={self.called}, modes={self.modes}"


def _quietly(build: Callable[[], Network]) -> Network:
    """Return a network, without warnings about its ranks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        return build()


def make_recipe(
    family: str | Family,
    shape: Sequence[int],
    groups: int = 1,
    modes: Modes | None = None,
    sites: int | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    is_transposed: bool = False,
) -> Recipe:
    """Return a recipe with the given modes, or with modes that its family chooses.

    Args:
        family: a word or a family.
        shape: shape of the dense weight, `(out, in / groups, *kernel)`, or `(out,)`.
        groups: number of groups of channels.
        modes: modes of rows and columns.
        sites: number of modes on each side.
        options: options of the family.
        is_transposed: whether it is the weight of a transposed convolution.

    Raises:
        NetworkError: no such family, or an option that it does not have.
        SizeError: modes whose product is less than the features, or another number of sites than the family has.
    """
    if not isinstance(shape, Sequence):
        raise SizeError(f"the shape is {shape!r}\n  it is a tuple: (out, in, *kernel) or (out,)")
    named, size = named_family(family), tuple(shape)
    named.check_options(options or {})  # so that an argument of Family.__call__, as stride, is refused
    if not 1 <= len(size) <= 5:
        raise SizeError(f"a weight of shape {size} has {len(size)} axes\n  it has 1 to 5: (out, in, *kernel) or (out,)")
    check_positive(**{f"axis {axis} of the weight": length for axis, length in enumerate(size)})
    if sites is not None:
        check_positive(sites=sites)
        if sites > LEGS:
            raise SizeError(f"sites is {sites}\n  a tensor has at most {LEGS} legs")
    recipe = Recipe(named, size, (), (), groups, dict(options or {}), is_transposed)
    chosen = _choose(recipe, sites) if modes is None else _given(recipe, modes)
    _check_modes(chosen, sites)
    return chosen


def _given(recipe: Recipe, modes: Modes) -> Recipe:
    sides = [*modes] if isinstance(modes, Iterable) else []
    if len(sides) == 2 and all(isinstance(side, Iterable) for side in sides):
        rows, columns = ([as_integer(mode) for mode in side] for side in sides)
        if None not in (*rows, *columns):
            return replace(recipe, rows=tuple(rows), columns=tuple(columns))  # type: ignore[arg-type]
    raise SizeError(f"modes is {modes!r}\n  give the modes of the rows and of the columns: modes=((4, 7), (4, 4))")


def check_positive(**numbers: object) -> None:
    """Refuse a value that is not a positive integer.

    Raises:
        SizeError: the message names the value.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SizeError(f"{name} is {value!r}\n  it is an integer from 1")


def _choose(recipe: Recipe, sites: int | None) -> Recipe:
    """Return a recipe with modes that its family chooses.

    A family with one central core gets the number of modes with the fewest params. With a window there is one row and
    one column: the core is then the window between fewer channels (Tucker-2).

    Source: Kim et al., arXiv 1511.06530, for the convolution.
    """
    default = _with_modes(recipe, sites)
    if sites is not None or not recipe.family.has_core:
        return default
    most = 1 if recipe.shape[2:] else max(len(default.rows), len(default.columns))
    return min((_with_modes(recipe, count) for count in range(1, most + 1)), key=_params)


def _with_modes(recipe: Recipe, sites: int | None) -> Recipe:
    ins, outs = prod(recipe.shape[1:2]), recipe.shape[0] // recipe.groups
    rows, columns = recipe.family.choose_modes(ins, outs, sites)
    return replace(recipe, rows=rows if len(recipe.shape) > 1 else (), columns=columns)


def _params(recipe: Recipe) -> float:
    """Return the number of params of a weight, or infinity if its ranks do not fit its factors."""
    try:
        return float(param_count(_quietly(recipe.weight)))
    except NetworkError:
        return inf


def _check_modes(recipe: Recipe, sites: int | None) -> None:
    shape = recipe.shape
    needs = prod(shape[1:2]), shape[0] // recipe.groups
    for side, features, modes in zip(("rows", "columns"), needs, (recipe.rows, recipe.columns), strict=True):
        if min(modes, default=1) < 1 or prod(modes) < features:
            raise SizeError(
                f"the {side} {modes} multiply to {prod(modes)}, and there are {features} features\n"
                "  modes are positive, and their product is the number of features or more: the rest is padded"
            )
    count = max(len(recipe.rows), len(recipe.columns))
    if sites is not None and sites != count:
        raise SizeError(
            f"{recipe.family.name} has {count} sites for a weight of shape {shape}, and not {sites}\n"
            "  leave out sites, or give the modes themselves: modes=((4, 7), (4, 4))"
        )
