"""A family as one value: its word, its options, and the ways to add it to a network or make a network of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from math import log
from typing import Any, get_args

import sympy

from tngraph.errors import NetworkError
from tngraph.language.arguments import check_mapping
from tngraph.language.builder import Builder, Call, SizeLike, unknown
from tngraph.language.families.circuits import Layout
from tngraph.language.families.modes import binary_modes, choose_modes, equal_modes
from tngraph.language.families.weight import Legs, Weight
from tngraph.language.functions import pointwise
from tngraph.language.handles import Expression, Factor, Position, Tensor, access, integer
from tngraph.language.network import Network
from tngraph.language.sizes import as_integer

Mode = SizeLike | str
"""A size, or the name of one."""
Modes = Mode | Sequence[Mode]
PerAxis = int | Sequence[int]
MOST = 1000
"""The largest number of layers, or of legs of a gate, that a family accepts."""
LARGEST_RANK = 2**32
_SPATIAL = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a family: its name, the kind of its value, and its default."""

    name: str
    kind: str
    default: Any

    @property
    def is_size(self) -> bool:
        """True if its value may stay a symbol in the counts, as a rank may. Other options shape the network."""
        return self.kind in ("Rank", "Ranks")

    @property
    def is_word(self) -> bool:
        """True if its value is a word, as the name of a function is."""
        return self.kind in ("Activation", "Layout")


@dataclass(frozen=True)
class Family:
    """A named way to build a weight (or, for ``ntt``, a map) out of cores.

    Attributes:
        make: a function that adds the cores to a network and returns their product.
        is_map: true if it is applied to a tensor, because its result is not linear in the tensor.
        axes: the number of rows (and of columns), if that is fixed.
        is_binary: true if its legs have size 2 by default.
        is_paired: true if it has as many rows as columns.
        has_window: true if it can be the kernel of a convolution.
        is_tied: true if all its rows have one size, and all its columns too.
        has_core: true if one core has a leg for every row and column, so that more modes can mean more params.
    """

    make: Callable[..., Expression]
    is_map: bool = False
    axes: int | None = None
    is_binary: bool = False
    is_paired: bool = True
    has_window: bool = True
    is_tied: bool = False
    has_core: bool = False

    @property
    def name(self) -> str:
        """The word that names it in a spec."""
        return self.make.__name__

    def __post_init__(self) -> None:
        if not callable(self.make) or not hasattr(self.make, "__name__"):
            raise NetworkError(f"a family is made of a function, and not of {self.make!r}", "see docs/families.md")
        object.__setattr__(self, "__doc__", inspect.getdoc(self.make))  # what help() shows

    @cached_property
    def options(self) -> Mapping[str, Option]:
        """The options by name."""
        parameters = list(inspect.signature(self.make).parameters.values())[1:]
        return {p.name: Option(p.name, self._kind(p), p.default) for p in parameters}

    def _kind(self, parameter: inspect.Parameter) -> str:
        """Return the kind of an option, which its annotation says."""
        kind = parameter.annotation
        word = kind.removesuffix(" | None") if isinstance(kind, str) else ""
        if word not in _READERS:
            shown = "no annotation" if kind is inspect.Parameter.empty else f"the annotation {_shown(kind)}"
            raise NetworkError(
                f"the option {parameter.name!r} of the family {self.name!r} has {shown}",
                f"write one of these in quotes: {', '.join(_READERS)}",
            )
        return word

    def define(self, builder: Builder, name: str, groups: Sequence[Legs], options: Mapping[str, Any]) -> Tensor:
        """Add a weight to a network.

        Args:
            builder: the builder of the network.
            name: the name of the weight, which is the prefix of everything it adds.
            groups: the legs of the weight: rows, columns, and the window of a convolution; or a single group.
            options: the options of the family.

        Raises:
            NetworkError: the family does not accept these options or legs.
        """
        if not 1 <= len(groups) <= 3:
            raise NetworkError(
                f"{name!r} has {len(groups)} groups of legs", "write W[(rows), (columns), (window)]", at=name
            )
        rows, columns, kernel = ((), *groups, ()) if len(groups) == 1 else (*groups, ())[:3]
        weight = Weight(builder, name, self.name, rows, columns, kernel)
        return builder.equation(name, weight.legs, self.build(weight, options))

    def build(self, weight: Weight, options: Mapping[str, Any]) -> Expression:
        """Return the product of cores that a weight stands for.

        Raises:
            NetworkError: the family does not accept these options or legs.
        """
        if not weight.legs:
            raise NetworkError(f"the weight {weight.name!r} has no legs", "give it rows or columns", at=weight.name)
        if weight.kernel and not self.has_window:
            raise NetworkError(
                f"{self.name} has no place for the window of a convolution", "leave out the third group", weight.name
            )
        weight.is_ranked = any(self.options[name].is_size for name in options if name in self.options)
        return self.make(weight, **self._read(weight, options))

    def apply(self, builder: Builder, name: str, left: Legs, source: Factor, options: Mapping[str, Any]) -> Expression:
        """Return a tensor with the family applied to it. Indices that are not on the left are the rows and the window.

        Raises:
            NetworkError: the family does not accept these options or legs.
        """
        weight = _applied(builder, name, self.name, left, source)
        product = self.build(weight, options)
        if self.is_map:
            return product
        return access(source.source, source.positions) * builder.equation(f"{name}.weight", weight.legs, product)

    def choose_modes(
        self, in_features: int, out_features: int, sites: int | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return modes of rows and columns for numbers of features, whose products are these or the next that fit.

        Args:
            in_features: the product of the rows, or a little less.
            out_features: the product of the columns, or a little less.
            sites: the number of modes of each; when absent, about one per factor of 8, but at least 2.

        Raises:
            SizeError: a number is not positive.
        """
        if self.is_binary:
            rows, columns = binary_modes(in_features), binary_modes(out_features)
            count = max(len(rows), len(columns)) if self.is_paired else 0
            return (1,) * (count - len(rows)) + rows, (1,) * (count - len(columns)) + columns
        count = self.axes or sites or max(2, round(log(max(in_features, out_features), 8)))
        choose = equal_modes if self.is_tied else choose_modes
        return choose(in_features, count), choose(out_features, count)

    def check_options(self, names: Iterable[str]) -> None:
        """Raise `NetworkError` unless the family has all these options.

        Raises:
            NetworkError: the family has no option of some name; the message suggests the nearest one.
        """
        for name in names:
            if name not in self.options:
                near = get_close_matches(name, self.options, 1)
                takes = f"it takes {', '.join(self.options) or 'none'}"
                hint = f"did you mean {near[0]!r}?" if near else takes
                raise NetworkError(f"{self.name} has no option {str(name)!r}", hint, at=name)

    def _read(self, weight: Weight, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options converted to the values that the family takes."""
        self.check_options(options)
        for option in self.options.values():
            if option.default is inspect.Parameter.empty and option.name not in options:
                raise NetworkError(
                    f"{self.name} needs {option.name}", f"write {self.name}({option.name}=…)", at=weight.name
                )
        return {name: _READERS[self.options[name].kind](weight, name, value) for name, value in options.items()}

    def weight(
        self,
        rows: Modes,
        columns: Modes,
        kernel: Modes = (),
        *,
        groups: Mode = 1,
        fan_in: int | None = None,
        sizes: Mapping[str, int] | None = None,
        **options: Any,
    ) -> Network:
        """Return the network whose output is the weight itself, in PyTorch's shape ``W[(columns), (rows), *kernel]``.

        It starts as in a layer, with the variance 1/(3·fan-in) at the sizes given here.

        Args: as for calling the family.
        """
        assembly = _Assembly(self, rows, columns, kernel, groups, sizes, fan_in)
        weight = assembly.weight("W")
        product = self.build(weight, options)
        weight.spread(product)
        assembly.builder.equation("W", weight.legs, product)
        axes = [weight.columns, weight.rows, *((leg,) for leg in weight.kernel)]
        assembly.builder.output("W", *(axis for axis in axes if axis))
        return assembly.builder.build()

    def __call__(
        self,
        rows: Modes,
        columns: Modes,
        kernel: Modes = (),
        *,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        transposed: bool = False,
        output_padding: PerAxis = 0,
        groups: Mode = 1,
        bias: bool = False,
        function: Call | None = None,
        fan_in: int | None = None,
        sizes: Mapping[str, int] | None = None,
        **options: Any,
    ) -> Network:
        """Return the network that applies a weight of this family to ``x``: a linear layer, or a convolution.

        Args:
            rows: the modes of the input features, slowest first; for groups, of the channels of one group.
            columns: the modes of the output features; for groups, of the channels of one group.
            kernel: the sizes of the window; empty for a linear layer.
            stride: the stride of the window, one number or one per axis; `padding` and `dilation` likewise.
            padding: the number of zeros on each side of an axis.
            dilation: the distance between the positions of the window.
            transposed: make a transposed convolution, as ``torch.nn.ConvTranspose2d``: its window is put on the result
                at every `stride` positions, and `padding` positions on each side are left out.
            output_padding: the number of positions added after each axis of a transposed convolution.
            groups: the number of groups of channels.
            bias: add a param ``bias[columns]``.
            function: a pointwise function of the result.
            fan_in: the number of inputs that one output sums over, if rows are padded with zeros. The initial variance
                depends on it.
            sizes: names of sizes with their values, which modes and ranks may use: ``bond="D", sizes={"D": 4}``.
            options: the options of the family.

        Returns:
            ``x[batch, (rows)] -> y[batch, (columns)]``, or with the axes of a feature map after the channels.

        Raises:
            NetworkError: the family does not accept these options or modes.
        """
        assembly = _Assembly(self, rows, columns, kernel, groups, sizes, fan_in)
        if transposed:
            assembly.check_transposed(dilation)
            return assembly.transposed_layer(options, (stride, padding, output_padding), bias, function)
        if output_padding != 0:
            raise NetworkError(
                f"output_padding is {output_padding}", "it is for a transposed convolution: transposed=True"
            )
        return assembly.layer(options, (stride, padding, dilation), bias, function)


class _Assembly:
    """The assembly of a network of one family on its own."""

    def __init__(
        self,
        family: Family,
        rows: Modes,
        columns: Modes,
        kernel: Modes,
        groups: Mode,
        sizes: Mapping[str, int] | None,
        fan_in: int | None,
    ) -> None:
        self.family, self.builder, self.fan_in = family, Builder(family.name), fan_in
        check_mapping("sizes", sizes)
        for name, value in (sizes or {}).items():
            self.builder.size(name, value)
        self.rows, self.columns = self._indices("i", rows), self._indices("o", columns)
        self.kernel = self._indices("k", kernel)
        if self.kernel and len(self.kernel) not in _SPATIAL:
            raise NetworkError(f"a window has 1 to 3 axes, not {len(self.kernel)}")
        is_grouped = as_integer(groups) != 1
        self.group = (self.builder.index("g", _size(self.builder, groups)),) if is_grouped else ()

    def _indices(self, letter: str, modes: Modes) -> Legs:
        every = modes if isinstance(modes, Sequence) and not isinstance(modes, str) else (modes,)
        return tuple(self.builder.index(f"{letter}{k}", _size(self.builder, m)) for k, m in enumerate(every, 1))

    def weight(self, name: str) -> Weight:
        columns, is_grouped = self.group + self.columns, bool(self.group)
        weight = Weight(self.builder, name, self.family.name, self.rows, columns, self.kernel, is_grouped=is_grouped)
        weight.inputs = self.fan_in
        return weight

    def layer(
        self, options: Mapping[str, Any], window: Sequence[PerAxis], bias: bool, function: Call | None
    ) -> Network:
        """Return the network that applies the weight to an input."""
        batch, axes = self._enter()
        outs = tuple(Position.of(f"p{k}") for k in range(1, len(axes) + 1))
        places = tuple(
            stride * out + dilation * leg - padding
            for out, leg, stride, padding, dilation in zip(
                outs, self.kernel, *(_per_axis(setting, len(axes)) for setting in window), strict=True
            )
        )
        left = (batch, *self.group, *self.columns, *outs)
        source = Factor("x", (batch, *self.group, *self.rows, *places))
        read = access("x", source.positions)
        weight = self.weight("y" if self.family.is_map else "W")
        if self.family.is_map:
            weight.source = source
            total = self.family.build(weight, options)
        else:
            total = read * self._dense(weight, options)
        return self._leave(left, total, bias, function)

    def check_transposed(self, dilation: PerAxis) -> None:
        """Refuse what no transposed convolution has.

        Raises:
            NetworkError: a family without a dense weight, no window, or a dilation.
        """
        if self.family.is_map:
            reason = f"{self.family.name} has no dense weight: it is not linear in its input"
            raise NetworkError(reason, "a transposed convolution is for the other families")
        if not self.kernel:
            raise NetworkError("a transposed convolution has a window", "give the sizes of its axes: kernel=(3, 3)")
        if any(step != 1 for step in _per_axis(dilation, len(self.kernel))):
            raise NetworkError(f"dilation is {dilation}", "a transposed convolution of cores has a dilation of 1")

    def transposed_layer(
        self, options: Mapping[str, Any], window: Sequence[PerAxis], bias: bool, function: Call | None
    ) -> Network:
        """Return the network of a transposed convolution.

        The dense weight is read at the position of the result minus where the stride puts the input.
        """
        builder = self.builder
        batch, axes = self._enter()
        per_axis = zip(axes, self.kernel, *(_per_axis(setting, len(axes)) for setting in window), strict=True)
        outs, places = [], []
        for k, (leg, tap, stride, padding, added) in enumerate(per_axis, 1):
            length, size = (builder.index_sizes[str(position.plain)] for position in (leg, tap))
            outs.append(builder.index(f"p{k}", stride * (length - 1) + size - 2 * padding + added))
            places.append(outs[-1] - stride * leg + padding)
        weight = self.weight("W")
        dense = self._dense(weight, options)
        total = access("x", (batch, *self.group, *self.rows, *axes)) * dense[*weight.rows, *weight.columns, *places]
        return self._leave((batch, *self.group, *self.columns, *outs), total, bias, function)

    def _dense(self, weight: Weight, options: Mapping[str, Any]) -> Tensor:
        """Add the dense weight as an equation of its own."""
        product = self.family.build(weight, options)
        if self.fan_in is not None:  # else the rule for params without initialisation sees it in the input
            weight.spread(product)
        return self.builder.equation("W", weight.legs, product)

    def _enter(self) -> tuple[Position, Legs]:
        """Add the input, and return its batch and the axes of its feature map."""
        builder = self.builder
        batch = builder.index("batch", builder.size("batch"))
        names = _SPATIAL.get(len(self.kernel), ())
        axes = tuple(builder.index(f"x{k}", builder.size(size)) for k, size in enumerate(names, 1))
        builder.input("x", batch, self.group + self.rows, *axes)
        return batch, axes

    def _leave(self, left: Legs, total: Expression, bias: bool, function: Call | None) -> Network:
        """Add the bias, if any, and the output, and return the network."""
        channels = self.group + self.columns
        if bias:
            total = total + self.builder.param("bias", *channels)
        y = self.builder.equation("y", left, total, function)
        self.builder.output(y, left[0], channels, *left[1 + len(channels) :])
        return self.builder.build()


def _applied(builder: Builder, name: str, family: str, left: Legs, source: Factor) -> Weight:
    """Return the weight between a tensor and a left-hand side."""
    outside = {index for _, index in (term for leg in left for term in leg.terms)}
    read = dict.fromkeys(index for position in source.positions for _, index in position.terms)
    plain = {position.plain for position in source.positions}
    rows = tuple(Position.of(index) for index in read if index in plain and index not in outside)
    kernel = tuple(Position.of(index) for index in read if index not in plain and index not in outside)
    columns = tuple(leg for leg in left if leg.plain not in read)
    for leg in (*rows, *kernel, *columns):
        if leg.plain not in builder.index_sizes:
            raise unknown("index", str(leg.plain), builder.index_sizes)
    return Weight(builder, name, family, rows, columns, kernel, source)


def _size(builder: Builder, value: object) -> sympy.Expr:
    """Return a size as an expression, looked up by name if it is text."""
    if isinstance(value, str):
        if value not in builder.sizes:
            raise unknown("size", value, builder.sizes)
        return builder.sizes[value]
    return integer(value)


def _shown(annotation: object) -> str:
    return repr(annotation) if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _per_axis(value: PerAxis, count: int) -> tuple[int, ...]:
    listed = tuple(value) if isinstance(value, Iterable) else (value,) * count
    every = tuple(integer for item in listed if (integer := as_integer(item)) is not None)
    if len(every) != len(listed):
        raise NetworkError(f"a window has the number {value!r}", "give an integer, or one per axis")
    if len(every) != count:
        raise NetworkError(f"a window of {count} axes has {len(every)} numbers", "give one number, or one per axis")
    return every


def _read_rank(w: Weight, name: str, value: Any) -> sympy.Expr:
    size = _size(w.builder, value)
    if not 1 <= w.known(size) <= LARGEST_RANK:
        raise NetworkError(f"{name} is {size}", f"a rank is 1 to {LARGEST_RANK:,}", at=name)
    return size


def _read_ranks(w: Weight, name: str, value: Any) -> sympy.Expr | tuple[sympy.Expr, ...]:
    if isinstance(value, tuple | list):
        return tuple(_read_rank(w, name, rank) for rank in value)
    return _read_rank(w, name, value)


def _read_count(w: Weight, name: str, value: Any) -> int:
    count = _read_number(w, name, value)
    if not 1 <= count <= MOST:
        raise NetworkError(f"{name} is {count}", f"it is 1 to {MOST:,}", at=name)
    return count


def _read_number(w: Weight, name: str, value: Any) -> int:
    if isinstance(value, tuple | list):
        raise NetworkError(f"{name} is a list", "it is one number", at=name)
    return w.known(_size(w.builder, value))


def _read_flag(w: Weight, name: str, value: Any) -> bool:
    flag = int(value) if isinstance(value, bool) else _read_number(w, name, value)
    if flag not in (0, 1):
        raise NetworkError(f"{name} is {flag}", "it is 0 or 1", at=name)
    return bool(flag)


def _read_activation(w: Weight, name: str, value: Any) -> Call | None:
    if value is None or value == "none":
        return None
    call = (value,) if isinstance(value, str) else value
    if not isinstance(call, tuple | list) or not call or not isinstance(call[0], str):
        raise NetworkError(f"{name} is not a function", "write its name, or none", at=name)
    try:
        pointwise(call[0], call[1:])
    except NetworkError as error:
        raise NetworkError(error.message, error.hint, at=name) from None
    return tuple(call)


def _read_layout(w: Weight, name: str, value: Any) -> str:
    if value not in get_args(Layout):
        raise NetworkError(f"{name} is {value}", f"it is one of {', '.join(get_args(Layout))}", at=name)
    return str(value)


def _read_nested(w: Weight, name: str, value: Any) -> Any:
    if not isinstance(value, tuple | list):
        raise NetworkError(f"{name} is not a list", f"write {name}=[[1, 2], [3, 4]]", at=name)
    return tuple(
        _read_nested(w, name, item) if isinstance(item, tuple | list) else _read_number(w, name, item) for item in value
    )


def _read_pairs(w: Weight, name: str, value: Any) -> Any:
    nested = _read_nested(w, name, value)
    if not all(isinstance(pair, tuple) for pair in nested):
        raise NetworkError(f"{name} is not a list of lists", f"write {name}=[[1, 2], [2, 3]]", at=name)
    if not all(isinstance(item, int) for pair in nested for item in pair):
        raise NetworkError(f"{name} has lists in its pairs", f"write {name}=[[1, 2], [2, 3]]", at=name)
    return nested


_READERS: Mapping[str, Callable[[Weight, str, Any], Any]] = {
    "Rank": _read_rank,
    "Ranks": _read_ranks,
    "Count": _read_count,
    "Flag": _read_flag,
    "Activation": _read_activation,
    "Layout": _read_layout,
    "Nested": _read_nested,
    "Pairs": _read_pairs,
}
