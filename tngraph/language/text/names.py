"""The meaning of names and expressions in a file: templates, ranges, sizes and positions under loop variables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import cast

import sympy
from lark import Token, Tree

from tngraph.errors import NetworkError
from tngraph.language.builder import Axis, Builder, unknown
from tngraph.language.handles import Position
from tngraph.language.limits import Budget
from tngraph.language.network import check_dotted_name, check_name
from tngraph.language.text.arithmetic import (
    Amount,
    Operand,
    Reading,
    Syntax,
    amount,
    evaluate,
    first_token,
    is_declaration,
)


class Name(str):
    """A name with its place in the file, which the builder's checks return as the error's ``at``."""

    __slots__ = ("column", "line")
    line: int
    column: int

    def __new__(cls, text: str, token: Token) -> Name:
        """Create the name with this text at the place of a token."""
        name = super().__new__(cls, text)
        name.line, name.column = token.line or 1, token.column or 1
        return name


Loop = Mapping[str, int]
"""The loop variables in scope."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The names visible to one statement: the builder's, the loop variables, the indices on its left."""

    builder: Builder
    budget: Budget
    loop: Loop
    left: Collection[str] = ()

    def inside(self, variable: Token, value: int) -> Scope:
        """Return the scope of a loop's body."""
        return Scope(self.builder, self.budget, {**self.loop, str(variable): value}, self.left)

    def turns(self, variable: Token, first: Syntax, last: Syntax) -> range:
        """Return the values that a loop variable takes."""
        check_name(Name(str(variable), variable), "a loop variable")
        return self.range(first, last)

    def under(self, left: Collection[str]) -> Scope:
        """Return the scope of the right-hand side of an equation with these indices on its left."""
        return Scope(self.builder, self.budget, self.loop, left)

    def names(self, tree: Tree[Token]) -> list[Name]:
        """Return the names that one template stands for: one, or one per member of its range."""
        token = cast(Token, tree.children[0])
        ranges = [part for part in tree.children if isinstance(part, Tree) and part.children[1] is not None]
        if len(ranges) > 1:
            raise NetworkError("a name has two ranges", "write one range, in a for loop", at=token)
        count = self._numbers(ranges[0], token) if ranges else range(1)
        self.budget.names(len(count), token)
        return [self._name(tree, token, k) for k in count]

    def _numbers(self, slot: Tree[Token], token: Token) -> range:
        members = self.range(slot.children[0], slot.children[1])
        if not members:
            raise NetworkError(
                f"the range {members.start}..{members.stop - 1} is empty", "a..b includes both", at=token
            )
        return members

    def _name(self, tree: Tree[Token], token: Token, k: int) -> Name:
        text = "".join(map(str, self._parts(tree, k)))
        name = Name(text, token)
        check_dotted_name(name, "anything")
        return name

    def _parts(self, tree: Tree[Token], k: int) -> Iterator[str | int]:
        for part in tree.children:
            if isinstance(part, Token):
                yield str(part)
            elif part.children[1] is not None:
                yield k
            else:
                yield self.integer(part.children[0])

    def name(self, tree: Tree[Token]) -> Name:
        """Return the only name that a template stands for."""
        names = self.names(tree)
        if len(tree.children) > 1 and len(names) > 1:
            raise NetworkError(f"{names[0]!r} to {names[-1]!r} stand where one name is expected", at=names[0])
        return names[0]

    def range(self, first: Syntax, last: Syntax) -> range:
        """Return the integers from one expression to another, both included."""
        return range(self.integer(first), self.integer(last) + 1)

    def integer(self, tree: Syntax) -> int:
        """Return the value of an expression that has to be known when the file is read."""
        value = self.amount(tree).value
        if value is None:
            token = next((t for t in names_in(tree) if self._is_runtime(t)), first_token(tree))
            raise NetworkError(
                f"{str(token)!r} is a run-time size, and a loop bound or a number in a name is an integer",
                f"give it a value: size {token} = 1",
                at=token,
            )
        return value

    def _is_runtime(self, token: Token) -> bool:
        return token not in self.loop and token in self.builder.sizes and token not in self.builder.defaults

    def number(self, tree: Syntax) -> int | float:
        """Return an argument of an initialisation: an integer expression, or a decimal with its sign."""
        leaves = _tokens(tree)
        if leaves[-1].type == "FLOAT" and all(leaf.type == "MINUS" for leaf in leaves[:-1]):
            return literal(leaves[-1]) * (-1 if len(leaves) % 2 == 0 else 1)
        return self.integer(tree)

    def amount(self, tree: Syntax) -> Amount:
        """Return the meaning of an expression over sizes."""
        return amount(evaluate(tree, Reading(self._size, self._size, self.budget.arithmetic)))

    def _size(self, syntax: Syntax) -> Operand:
        name = self.name(syntax) if isinstance(syntax, Tree) else Name(str(syntax), syntax)
        if name in self.loop:
            return Amount.of(sympy.Integer(self.loop[name]), self.loop[name])
        if name not in self.builder.sizes:
            raise unknown("size", name, self.builder.sizes)
        expr = self.builder.sizes[name]
        return Amount.of(expr, int(expr) if expr.is_Integer else self.builder.defaults.get(name))

    def position(self, tree: Syntax) -> Position:
        """Return the meaning of an expression as a position on a leg."""
        value = evaluate(tree, Reading(self._index_or_size, self._size, self.budget.arithmetic))
        return value if isinstance(value, Position) else Position((), value.expr)

    def _index_or_size(self, syntax: Syntax) -> Operand:
        name = self.name(syntax) if isinstance(syntax, Tree) else Name(str(syntax), syntax)
        if name in self.builder.index_sizes or name in self.left:
            return Position.of(name)
        if name in self.loop or name in self.builder.sizes:
            return self._size(syntax)
        raise unknown("index", name, (*self.builder.index_sizes, *self.left))

    def own_legs(self, items: Tree[Token] | None) -> list[Axis]:
        """Return the axes of a declaration; an index without a size takes the size of the same name."""
        return self._axes(items, lambda tree: tuple(map(self.builder.index, self._plain_names(tree))))

    def left_legs(self, items: Tree[Token] | None) -> list[Axis]:
        """Return the axes of a left-hand side or an output: names, declared or not."""
        return self._axes(items, lambda tree: tuple(map(Position.of, self._plain_names(tree))))

    def read_legs(self, items: Tree[Token] | None) -> list[Position]:
        """Return the positions at which an access reads."""
        legs: list[Position] = []
        trees = items.children if items is not None else []
        for _, positions in self._items(trees, self._read, groups=False):
            legs.extend(positions)
        return legs

    def _read(self, tree: Syntax) -> tuple[Position, ...]:
        if isinstance(tree, Tree) and tree.data == "name":
            names = self.names(tree)
            if len(names) > 1:
                return tuple(map(Position.of, names))
        return (self.position(tree),)

    def _plain_names(self, tree: Syntax) -> list[Name]:
        if isinstance(tree, Tree) and tree.data == "name":
            return self.names(tree)
        if isinstance(tree, Tree) and tree.data == "group":
            raise NetworkError("a group of indices is inside another", "groups do not nest", at=first_token(tree))
        raise NetworkError(
            "a leg here is an index, and not a position",
            "read a leg at a position on the right of an equation",
            at=first_token(tree),
        )

    def _axes(self, items: Tree[Token] | None, read: _Reader) -> list[Axis]:
        axes: list[Axis] = []
        for tree, positions in self._items(items.children if items is not None else [], read, groups=True):
            if isinstance(tree, Tree) and tree.data == "group":
                axes.append(positions)
            else:
                axes.extend(positions)
        return axes

    def _items(
        self, trees: Sequence[Syntax], read: _Reader, groups: bool
    ) -> Iterator[tuple[Syntax, tuple[Position, ...]]]:
        """Yield each item with its positions.

        The sizes that follow the first size of a family, as in ``i{1..3}: 2, 3, 4``, belong to the family.
        """
        rest = list(reversed(trees))
        while rest:
            tree = rest.pop()
            if is_declaration(tree):
                yield tree, self._declare(cast("Tree[Token]", tree), rest)
            elif groups and isinstance(tree, Tree) and tree.data == "group":
                inner = cast("Tree[Token] | None", tree.children[1])
                within = inner.children if inner is not None else ()
                yield tree, tuple(p for _, inside in self._items(within, read, groups=False) for p in inside)
            else:
                yield tree, read(tree)

    def _declare(self, tree: Tree[Token], rest: list[Syntax]) -> tuple[Position, ...]:
        """Declare an index or a family, and remove the family's further sizes from ``rest``."""
        if isinstance(tree.children[0], Tree) and tree.children[0].data == "group":
            hint = "give each of its indices one, as in (i:2, j:3)"
            raise NetworkError("a group of indices has a size", hint, at=first_token(tree))
        names = self._plain_names(tree.children[0])
        sizes = [tree.children[1]]
        if len(names) > 1:
            more = list(takewhile(self._is_size, reversed(rest)))
            literal_count = len(list(takewhile(lambda item: not names_in(item), more)))
            if len(more) >= len(names) - 1 or literal_count:
                taken = max(literal_count, len(names) - 1)
                sizes.extend(more[:taken])
                del rest[len(rest) - taken :]
        return self.builder.indices(names, *(self.amount(size).expr for size in sizes))

    def _is_size(self, tree: Syntax) -> bool:
        """Return whether an item after a family's size can be its next size.

        Such an item has only integers, loop variables and compile-time sizes.
        """
        if is_declaration(tree) or any(True for _ in _subtrees(tree, "slot")):
            return False
        return all(
            token not in self.builder.index_sizes and (token in self.loop or self._is_compile_time(token))
            for token in names_in(tree)
        )

    def _is_compile_time(self, token: Token) -> bool:
        return token in self.builder.sizes and not self._is_runtime(token)


_Reader = Callable[[Syntax], tuple[Position, ...]]


def literal(token: Token) -> int | float:
    """Return the number that a literal stands for."""
    value = float(token) if token.type == "FLOAT" else int(token)
    if value in (float("inf"), float("-inf")):
        raise NetworkError(f"the number {token} is not finite", "the largest is about 1.8e308", at=token)
    return value


def names_in(tree: Syntax) -> list[Token]:
    """Return the names in an expression, except ``min`` and ``max`` themselves."""
    if isinstance(tree, Token):
        return [tree] if tree.type == "NAME" else []
    functions = {id(bound.children[0]) for bound in _subtrees(tree, "bound")}
    return [t for t in _tokens(tree) if t.type == "NAME" and id(t) not in functions]


def _tokens(tree: Syntax) -> list[Token]:
    if isinstance(tree, Token):
        return [tree]
    return [value for value in tree.scan_values(lambda value: True) if isinstance(value, Token)]


def _subtrees(tree: Syntax, rule: str) -> Iterator[Tree[Token]]:
    if isinstance(tree, Tree):
        yield from tree.find_data(rule)
