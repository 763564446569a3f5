"""Translation of one network's syntax into calls of the builder, statement by statement, collecting every problem.

The names that a failed statement would have defined are poisoned. An error about such a name follows from one that is
reported already, and stays silent.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import cast

from lark import Token, Tree

from tngraph.errors import LimitError, NetworkError, Problem, RankWarning
from tngraph.language.builder import Axis, Builder, Call, unknown
from tngraph.language.families import FAMILIES, find_family
from tngraph.language.families.family import Family
from tngraph.language.families.weight import Legs, outside
from tngraph.language.handles import Expression, Factor, Position, Summand
from tngraph.language.limits import FACTORS, FAILURES, PROBLEMS, Budget
from tngraph.language.network import Network
from tngraph.language.sizes import LARGEST, as_integer
from tngraph.language.text.arithmetic import Syntax, first_token
from tngraph.language.text.names import Name, Scope, literal, names_in
from tngraph.language.text.scanner import Source

Statement = Tree[Token]

_DIGITS = re.compile("[0-9]")
_SYMBOLIC = "fan_in"
"""The initialisation whose argument stays a formula in named sizes."""


class _SeveralError(NetworkError):
    """Several independent errors of one statement."""

    def __init__(self, errors: list[NetworkError]) -> None:
        super().__init__(errors[0].message, errors[0].hint, errors[0].at)
        self.errors = errors


class _EnoughError(Exception):
    """Raised at the limit of problems: the rest of the file is not read."""


class Elaborator:
    """Builds the network of one ``network`` block.

    Args:
        source: the text, in which problems are located.
        tree: the block.
        suspects: the words of broken statements; a word that ends in ``{`` is the stem of a template's names.
        overrides: values that replace the defaults of sizes.
        budget: the limits on what the file may still expand to.

    Raises:
        NetworkError: an override of a size that the network lacks, or of a run-time size.
    """

    def __init__(
        self,
        source: Source,
        tree: Statement,
        suspects: frozenset[str],
        overrides: Mapping[str, int],
        budget: Budget,
    ) -> None:
        name, *self._statements = cast("list[Statement]", tree.children)
        token = cast(Token, name)
        self.problems: list[Problem] = []
        self._ranks: list[Problem] = []
        self._source, self._overrides = source, overrides
        self._suspects, self._poisoned = set(suspects), set[str]()
        self._broken = set[str]()
        self._failures = 0
        self._budget = budget
        self._definitions = _definitions(tree)
        self._structural = _structural(tree, self._definitions)
        self._check_overrides(str(token))
        self._builder: Builder | None = None
        self._name = Name(str(token), token)

    def run(self) -> Network | None:
        """Return the network, or None if it has problems, which are then in ``problems``.

        Raises:
            LimitError: the file expands beyond a limit.
        """
        try:
            builder = self._builder = Builder(self._name)
            self._block(self._statements, Scope(builder, self._budget, {}))
            self._finish(builder)
            return None if self.problems or self._suspects else builder.build()
        except LimitError as error:
            raise LimitError(str(self._problem(error, self._name))) from None
        except NetworkError as error:
            self._report(error, self._name)
        except _EnoughError:
            pass
        return None

    def warnings(self) -> list[Problem]:
        """Return likely mistakes in the network that `run` built, and the ranks that were cut."""
        assert self._builder is not None, "run() comes first"
        return [*self._ranks, *(self._problem(mistake, self._name) for mistake in self._builder.mistakes())]

    def _finish(self, builder: Builder) -> None:
        """Report what the whole network lacks, unless a failed statement would have supplied it."""
        broken = self._broken | self._suspects
        for problem in builder.problems():
            if not {"loop", "for", "output" if problem.at == self._name else "input"} & broken:
                self._report(problem, self._name)

    def _check_overrides(self, network: str) -> None:
        for name, value in self._overrides.items():
            if name not in self._definitions:
                near = get_close_matches(name, self._definitions, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"its sizes: {', '.join([*self._definitions][:20])}"
                hint = hint if self._definitions else "it has no sizes"
                raise NetworkError(f"the network {network!r} has no size {name!r} to set", hint)
            if self._definitions[name] is None:
                raise NetworkError(
                    f"{name!r} is a run-time size: it is read off the inputs at each call", "do not set it"
                )
            if not 1 <= (as_integer(value) or 0) <= LARGEST:
                raise NetworkError(f"the size {name!r} cannot be {value!r}", "a size is an integer from 1 to 2**62")

    def _block(self, statements: list[Statement], scope: Scope) -> None:
        for statement in statements:
            self._budget.statement(first_token(statement))
            try:
                _RULES[statement.data](self, statement, scope)
            except LimitError as error:
                raise LimitError(error.message, error.hint, error.at or first_token(statement)) from None
            except NetworkError as error:
                for failure in error.errors if isinstance(error, _SeveralError) else [error]:
                    self._report(failure, first_token(statement))
                self._broken.add(str(statement.data))
                self._poison(statement, scope)

    def _report(self, error: NetworkError, fallback: object) -> None:
        self._failures += 1
        at = str(error.at)
        if at not in self._poisoned and not self._is_suspect(at):
            problem = self._problem(error, fallback)
            if problem not in self.problems:
                self.problems.append(problem)
        if len(self.problems) >= PROBLEMS or self._failures >= FAILURES:
            raise _EnoughError

    def _is_suspect(self, name: str) -> bool:
        stems = (name[: digit.start()] + "{" for digit in _DIGITS.finditer(name))
        return name in self._suspects or not self._suspects.isdisjoint(stems)

    def _problem(self, error: NetworkError, fallback: object) -> Problem:
        at = error.at if getattr(error.at, "line", None) is not None else fallback
        line, column = getattr(at, "line", None) or 1, getattr(at, "column", None) or 1
        return Problem(error.message, error.hint, self._source.line(line, column))

    def _poison(self, statement: Statement, scope: Scope) -> None:
        """Mark as poisoned the names that a failed statement would have defined."""
        for tree in _defining(statement):
            if isinstance(tree, Token):
                names = [str(tree)]
            else:
                try:
                    names = [str(name) for name in scope.names(tree)]
                except NetworkError:
                    self._suspects.add(f"{tree.children[0]}{{")
                    continue
            builder = scope.builder
            spaces = (builder.sizes, builder.index_sizes, builder.tensors)
            self._poisoned.update(name for name in names if not any(name in space for space in spaces))

    def _size(self, statement: Statement, scope: Scope) -> None:
        failed: NetworkError | None = None
        for definition in cast("list[Statement]", statement.children):
            token, tree = cast(Token, definition.children[0]), definition.children[1]
            try:
                self._define(Name(str(token), token), tree, scope)
            except LimitError:
                raise
            except NetworkError as error:
                if failed is not None:
                    self._report(failed, token)
                failed = error
        if failed is not None:
            raise failed

    def _define(self, name: Name, tree: Syntax | None, scope: Scope) -> None:
        if tree is None:
            scope.builder.size(name)
            return
        if name in self._overrides:
            scope.builder.size(name, int(self._overrides[name]), inline=name in self._structural)
            return
        amount = scope.amount(tree)
        scope.builder.size(name, amount.expr, inline=name in self._structural)

    def _index(self, statement: Statement, scope: Scope) -> None:
        *trees, sizes = cast("list[Statement]", statement.children)
        names = [name for tree in trees for name in scope.names(tree)]
        scope.builder.indices(names, *(scope.amount(size).expr for size in sizes.children))

    def _input(self, statement: Statement, scope: Scope) -> None:
        tree, items = cast("list[Statement]", statement.children)
        legs = scope.own_legs(items)
        _check_known(legs, scope.builder)
        scope.builder.input(scope.name(tree), *legs)

    def _core(self, statement: Statement, scope: Scope) -> None:
        role, tree, items, init = statement.children
        name, legs = scope.name(cast(Statement, tree)), scope.own_legs(cast(Statement, items))
        call = None if init is None else self._call(cast(Statement, init), scope)
        for leg in legs:
            if isinstance(leg, tuple):
                raise NetworkError(f"the {role} {name!r} has a group of indices", "only inputs and outputs do", at=name)
        _check_known(legs, scope.builder)
        own = cast("list[Position]", legs)
        if role == "param":
            scope.builder.param(name, *own, init=call)
        elif role == "const":
            scope.builder.const(name, *own, kind=call) if call is not None else _no_kind(name)
        else:
            scope.builder.buffer(name, *own, init=call)

    def _call(self, tree: Statement, scope: Scope) -> Call:
        token, *args = tree.children
        name = Name(str(token), cast(Token, token))
        written = [arg for arg in args if arg is not None]
        return (name, *((scope.amount(arg).expr if name == _SYMBOLIC else scope.number(arg)) for arg in written))

    def _output(self, statement: Statement, scope: Scope) -> None:
        tree, items = cast("list[Statement]", statement.children)
        scope.builder.output(scope.name(tree), *scope.left_legs(items))

    def _loop(self, statement: Statement, scope: Scope) -> None:
        variable, first, last, *body = statement.children
        token = cast(Token, variable)
        for value in scope.turns(token, first, last):
            self._budget.statement(token)
            self._block(cast("list[Statement]", body), scope.inside(token, value))

    def _equation(self, statement: Statement, scope: Scope) -> None:
        tree, items, right = cast("list[Statement]", statement.children)
        name = scope.name(tree)
        family = _family_of(right)
        if family is not None:
            self._family(name, items, right, family, scope)
            return
        legs = scope.left_legs(items)
        left = _ungrouped(name, legs)
        inner = scope.under(frozenset(leg.terms[0][1] for leg in left))
        function, total = (None, right) if right.data == "total" else cast("list[Statement]", right.children)
        pointed = None if function is None else _function(function)
        scope.builder.equation(name, left, _total(total, inner), pointed)

    def _family(self, name: Name, items: Statement, right: Statement, word: Token, scope: Scope) -> None:
        """Define a weight as a named family, or a tensor as a family applied to another tensor."""
        family = find_family(word)
        if family is None:
            raise unknown("family", Name(str(word), word), FAMILIES)
        before = len(scope.builder.tensors)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RankWarning)
            self._build_family(name, items, right, family, scope)
        place = self._source.line(name.line, name.column)
        for warning in caught:
            self._ranks.append(Problem(str(warning.message), place=place))
            text = f"{place.file}:{place.line}:{place.column}: {warning.message}"
            warnings.warn(text, warning.category, stacklevel=outside())
        scope.budget.names(len(scope.builder.tensors) - before, word)

    def _build_family(self, name: Name, items: Statement, right: Statement, family: Family, scope: Scope) -> None:
        if right.data == "family":
            axes = scope.own_legs(items)
            _check_known(axes, scope.builder)
            groups = [axis if isinstance(axis, tuple) else (axis,) for axis in axes]
            family.define(scope.builder, name, groups, _settings(right.children[0], family, scope))
        else:
            left = _ungrouped(name, scope.left_legs(items))
            source = _operand(right, family, scope.under(frozenset(leg.terms[0][1] for leg in left)))
            total = family.apply(scope.builder, name, left, source, _settings(right, family, scope))
            scope.builder.equation(name, left, total)


_RULES: Mapping[str, Callable[[Elaborator, Statement, Scope], None]] = {
    "size": Elaborator._size,
    "index": Elaborator._index,
    "input": Elaborator._input,
    "core": Elaborator._core,
    "output": Elaborator._output,
    "loop": Elaborator._loop,
    "equation": Elaborator._equation,
}


def _ungrouped(name: Name, axes: Sequence[Axis]) -> Legs:
    for axis in axes:
        if isinstance(axis, tuple):
            raise NetworkError(f"the result {name!r} has a group of indices", "fuse them in its output", at=name)
    return cast("Legs", tuple(axes))


def _family_of(right: Statement) -> Token | None:
    """Return the word of the family on a right-hand side, or None if there is none."""
    if right.data == "family":
        return cast(Token, cast(Statement, right.children[0]).children[0])
    word = right.children[0]
    is_applied = right.data == "applied" and isinstance(word, Token) and find_family(word) is not None
    return cast(Token, word) if is_applied or right.data == "mapping" else None


def _operand(right: Statement, family: Family, scope: Scope) -> Factor:
    """Return the tensor that a family is applied to."""
    tree = cast(Statement, right.children[1])
    total = _total(tree, scope) if tree.data == "total" else Expression((Summand(1, tuple(_factors(tree, scope))),))
    if len(total.summands) != 1 or len(total.summands[0].factors) != 1 or total.summands[0].scale != 1:
        raise NetworkError(
            f"{family.name} is applied to one tensor", "give the rest a name of its own first", at=first_token(right)
        )
    return total.summands[0].factors[0]


def _settings(tree: Syntax, family: Family, scope: Scope) -> dict[str, object]:
    """Return the options that a family is called with."""
    options: dict[str, object] = {}
    for child in cast(Statement, tree).children[1:]:
        if isinstance(child, Tree) and child.data == "setting":
            token, value = child.children
            name = Name(str(token), cast(Token, token))
            if name in options:
                raise NetworkError(f"the option {str(name)!r} is given twice", at=name)
            option = family.options.get(name)
            options[name] = _value(cast(Statement, value), scope, is_word=option is not None and option.is_word)
        elif isinstance(child, Tree) and child.data == "argument":
            takes = ", ".join(family.options) or "none"
            raise NetworkError(
                f"an option of {family.name} has no name", f"its options: {takes}", at=first_token(child)
            )
    return options


def _value(tree: Statement, scope: Scope, is_word: bool) -> object:
    """Return an option's value: a size, a word with or without numbers, or a list."""
    if tree.data == "list":
        return tuple(_value(cast(Statement, child), scope, is_word) for child in tree.children)
    if not is_word:
        return scope.amount(tree).expr
    word = tree.children[0]
    if isinstance(word, Token) and word.type == "NAME":
        return str(word)
    if isinstance(word, Tree) and word.data == "bound":
        return (str(word.children[0]), *(scope.number(argument) for argument in word.children[1:]))
    raise NetworkError("this option is a word", "as relu, or leaky_relu(0.1)", at=first_token(tree))


def _check_known(axes: Sequence[Axis], builder: Builder) -> None:
    """Refuse all unknown indices among the legs of a core in one error."""
    names = [leg.terms[0][1] for axis in axes for leg in (axis if isinstance(axis, tuple) else (axis,))]
    errors = [unknown("index", name, builder.index_sizes) for name in names if name not in builder.index_sizes]
    if errors:
        raise _SeveralError(errors)


def _no_kind(name: Name) -> None:
    raise NetworkError(f"the const {name!r} says no kind", "kinds: delta, basis(k), ones, eye", at=name)


def _function(tree: Syntax) -> Call:
    if isinstance(tree, Token):
        return Name(str(tree), tree)
    token, *arguments = tree.children
    name = Name(str(token), cast(Token, token))
    return (name, *(_argument(cast(Statement, argument)) for argument in arguments if argument is not None))


def _argument(tree: Statement) -> int | float:
    if tree.data == "setting":
        raise NetworkError("a pointwise function takes plain numbers", at=tree.children[0])
    value = literal(cast(Token, tree.children[-1]))
    return -value if len(tree.children) == 2 else value


def _total(tree: Statement, scope: Scope) -> Expression:
    """Return the sum of products that a right-hand side stands for."""
    sign, summands = cast("Token | None", tree.children[0]), []
    errors: list[NetworkError] = []
    for child in tree.children[1:]:
        if isinstance(child, Token):
            sign = child
        else:
            summands.append(_term(child, scope, -1 if sign == "-" else 1, errors))
        if sum(len(summand.factors) for summand in summands) > FACTORS:
            raise LimitError(f"the equation has more than {FACTORS:,} factors", "split it", at=first_token(tree))
    if errors:
        raise _SeveralError(errors)
    return Expression(tuple(summands))


def _term(tree: Statement, scope: Scope, sign: int, errors: list[NetworkError]) -> Summand:
    """Return one product of a sum, and append the errors of its factors to ``errors``."""
    coefficient, *factors = tree.children
    scale = sign * (1 if coefficient is None else literal(cast(Token, coefficient)))
    every: list[Factor] = []
    for factor in factors:
        try:
            every.extend(islice(_factors(cast(Statement, factor), scope), FACTORS + 1 - len(every)))
        except LimitError:
            raise
        except NetworkError as error:
            errors.append(error)
    return Summand(scale, tuple(every))


def _factors(tree: Statement, scope: Scope) -> Iterator[Factor]:
    if tree.data == "prod":
        variable, first, last, inner = tree.children
        token = cast(Token, variable)
        numbers = scope.turns(token, first, last)
        scope.budget.names(len(numbers), token)
        if not numbers:
            raise NetworkError(f"the product over {str(token)!r} is empty", "a..b includes both", at=token)
        for value in numbers:
            yield from _factors(cast(Statement, inner), scope.inside(token, value))
        return
    for name in scope.names(cast(Statement, tree.children[0])):
        tensor = scope.builder.tensor(name)
        if len(tree.children) > 1:
            items = cast("Statement | None", cast(Statement, tree.children[1]).children[0])
            yield Factor(name, tuple(scope.read_legs(items)))
        else:
            yield Factor(name, tensor.legs)


def _definitions(tree: Statement) -> dict[str, Syntax | None]:
    """Return the sizes that a network defines, with their expressions."""
    return {str(d.children[0]): d.children[1] for d in tree.find_data("definition")}


def _structural(tree: Statement, definitions: Mapping[str, Syntax | None]) -> frozenset[str]:
    """Return the sizes that shape the text itself, and the sizes that these depend on.

    A size in a loop bound or in a name decides which statements there are, so no formula can keep its name.
    """
    pending = list(_shaping(tree, frozenset()))
    structural: set[str] = set()
    while pending:
        name = pending.pop()
        if name in structural:
            continue
        structural.add(name)
        expression = definitions.get(name)
        pending.extend(map(str, names_in(expression)) if expression is not None else ())
    return frozenset(structural)


def _shaping(tree: Syntax, variables: frozenset[str]) -> Iterator[str]:
    """Yield the names in loop bounds, templates, ranges and arguments, except loop variables."""
    if isinstance(tree, Token):
        return
    children = [child for child in tree.children if child is not None]
    if tree.data == "init" and children[0] == _SYMBOLIC:
        return
    if tree.data in ("slot", "init"):
        yield from (str(t) for child in children for t in names_in(child) if t not in variables)
    elif tree.data in ("call", "mapping"):
        family = find_family(cast(Token, children[0]))
        for setting in tree.find_data("setting"):
            option = family.options.get(str(setting.children[0])) if family is not None else None
            if option is None or not option.is_size:
                yield from (str(t) for t in names_in(setting.children[1]) if t not in variables)
    elif tree.data in ("loop", "prod"):
        variable, first, last, *body = children
        yield from (str(t) for bound in (first, last) for t in names_in(bound) if t not in variables)
        for child in body:
            yield from _shaping(child, variables | {str(variable)})
    else:
        for child in children:
            yield from _shaping(child, variables)


def _defining(statement: Statement) -> Iterator[Syntax]:
    """Yield the names that a statement would define: its own and those of its legs, or all that a loop mentions."""
    if statement.data == "size":
        yield from (cast(Token, definition.children[0]) for definition in statement.find_data("definition"))
    elif statement.data == "loop":
        yield from statement.find_data("name")
    else:
        last = {"equation": 1, "core": 1}.get(str(statement.data), 0)
        for child in statement.children[: len(statement.children) - last]:
            if isinstance(child, Tree) and child.data != "sizes":
                yield from child.find_data("name")
