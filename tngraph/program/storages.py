"""The tensors of a traced run, the storages they lie in, and the sizes that the run is traced at.

`trace` runs the lines of a program on these instead of on tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import sympy

from tngraph.language.sizes import evaluate_size, product
from tngraph.program.clock import Origin
from tngraph.program.expressions import Shape
from tngraph.program.strides import Ints, Layout, contiguous_strides


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Memory that one call allocates: its shape, its number of elements, and the bytes of each."""

    shape: Shape
    count: int
    unit: int

    @property
    def bytes(self) -> int:
        """The size at the numbers of the trace [bytes]."""
        return self.count * self.unit

    @property
    def formula(self) -> sympy.Expr:
        """The size as a formula in the sizes of the network [bytes]."""
        return product(self.shape) * self.unit


@dataclass(frozen=True, slots=True)
class Array:
    """A tensor of the run.

    Attributes:
        layout: its sizes and strides.
        storage: the storage that it lies in; None if it was there before the run.
        unit: the size of an entry [bytes].
        is_trained: whether a gradient flows to it.
        source: the call's result that it is a view of, or the tensor from before the run, for the time of the backward
            pass; None if autograd does not follow it.
    """

    layout: Layout
    storage: Storage | None
    unit: int
    is_trained: bool
    source: Origin | None = None


@dataclass(frozen=True, slots=True)
class TileRun:
    """Tiles of an index that have the same size and so run alike.

    Attributes:
        size: the symbol for the size of the index in a tile.
        rows: the size of the index in such a tile.
        rows_formula: that size as a formula.
        count: the number of such tiles; 0 for a tile that stands for one that is counted elsewhere.
        count_formula: that number as a formula.
        whole: the size of the index in all tiles together.
    """

    size: sympy.Symbol
    rows: int
    rows_formula: sympy.Expr
    count: int
    count_formula: sympy.Expr
    whole: int


class Sizes:
    """The sizes of shapes as integers, and inside a tile those of the tile."""

    def __init__(self, numbers: Mapping[str, int], tile: TileRun | None = None) -> None:
        self.numbers = numbers if tile is None else {**numbers, str(tile.size): tile.rows}
        self.tile = tile
        self._evaluated: dict[sympy.Expr, int] = {}

    def of(self, size: sympy.Expr) -> int:
        """Return a size as an integer."""
        if size not in self._evaluated:
            self._evaluated[size] = evaluate_size(size, self.numbers)
        return self._evaluated[size]

    def of_shape(self, shape: Shape) -> Ints:
        """Return the sizes of a shape as integers."""
        return tuple(map(self.of, shape))

    def contiguous(self, shape: Shape) -> Layout:
        """Return the layout of a new contiguous tensor."""
        sizes = self.of_shape(shape)
        return Layout(sizes, contiguous_strides(sizes))

    def stored(self, shape: Shape) -> Layout:
        """Return the layout of a contiguous tensor from before the run, of which a tile reads some rows."""
        if self.tile is None:
            return self.contiguous(shape)
        whole = tuple(self.tile.whole if size == self.tile.size else self.of(size) for size in shape)
        return Layout(self.of_shape(shape), contiguous_strides(whole))

    def allocate(self, shape: Shape, count: int, unit: int) -> Storage:
        """Return a new storage for a number of entries, with its shape in the sizes of the network."""
        tile = self.tile
        if tile is not None:
            shape = tuple(size.xreplace({tile.size: tile.rows_formula}) for size in shape)
        return Storage(shape, count, unit)


class Heap:
    """The storages that are alive, and the moments when the most of them are."""

    def __init__(self) -> None:
        self.moments: list[tuple[Storage, ...]] = []
        self._holders: dict[Storage, int] = {}
        self._has_grown = False

    def hold(self, storage: Storage) -> bool:
        """Hold a storage once more, and return whether it is new."""
        is_new = storage not in self._holders
        self._has_grown = self._has_grown or is_new
        self._holders[storage] = self._holders.get(storage, 0) + 1
        return is_new

    def release(self, storage: Storage | None) -> None:
        """Release a storage once. It is freed when the last holder releases it."""
        if storage is None:
            return
        if self._holders[storage] == 1:
            self.note()
            del self._holders[storage]
        else:
            self._holders[storage] -= 1

    def note(self) -> None:
        """Record the storages alive, if there are new ones since the last record."""
        if self._has_grown:
            self.moments.append(tuple(self._holders))
        self._has_grown = False


class Repeats:
    """The number of times that the current lines run, as slices or tiles, and the storages that every run allocates."""

    def __init__(self) -> None:
        self.loops: Shape = ()
        self.own: set[Storage] = set()

    def enter(self, loops: Shape) -> None:
        """Start lines that run once for every value of some indices."""
        self.loops, self.own = loops, set()

    def all_runs(self, storage: Storage, sizes: Sizes) -> Storage | None:
        """Return the storage that all slices or tiles of one kind fill together, or None if they are counted already.

        Its shape has a further axis then, since they all exist at once.
        """
        if storage in self.own and sizes.tile is not None:
            if not sizes.tile.count:
                return None
            shape = (sizes.tile.count_formula, *storage.shape)
            return replace(storage, shape=shape, count=storage.count * sizes.tile.count)
        if storage in self.own and self.loops:
            count = storage.count * prod(sizes.of_shape(self.loops))
            return replace(storage, shape=(*storage.shape, *self.loops), count=count)
        return storage


class Saved:
    """The storages that autograd saves.

    Attributes:
        storages: each saved storage, as all slices or tiles make it together.
        writers: the operations that write to each storage of the run.
        savers: the operations that save each storage.
    """

    def __init__(self) -> None:
        self.storages: dict[Storage, Storage] = {}
        self.writers: dict[Storage, set[int]] = {}
        self.savers: dict[Storage, set[int]] = {}
