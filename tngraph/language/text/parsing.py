"""The parser of specs: limits, syntax, then meaning statement by statement.

All independent errors are reported together: a statement that cannot be parsed is blanked out, and parsing goes on.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.lark import PostLex

from tngraph.errors import LimitError, NetworkError, Problem, RankWarning, SpecError
from tngraph.files import explain, read_bytes
from tngraph.language.arguments import check_mapping
from tngraph.language.limits import FILE_BYTES, PROBLEMS, SYNTAX_PROBLEMS, TOKENS, Budget
from tngraph.language.mistakes import find_mistakes
from tngraph.language.network import Network
from tngraph.language.text.elaborate import Elaborator
from tngraph.language.text.scanner import BracketError, Source, scan

_WORDS = {
    "NETWORK": "'network'",
    "NAME": "a name",
    "PART": "",
    "INT": "an integer",
    "FLOAT": "",
    "_SEP": "the end of the statement",
    "_OPEN": "",
    "LBRACE": "'{'",
    "RBRACE": "'}'",
    "LSQB": "'['",
    "RSQB": "']'",
    "LPAR": "'('",
    "RPAR": "')'",
    "EQUAL": "'='",
    "COLON": "':'",
    "COMMA": "','",
    "__DOTS": "'..'",
    "IN": "'in'",
    "PLUS": "an operator",
    "STAR": "an operator",
    "MINUS": "",
    "FLOOR": "an operator",
    "PERCENT": "an operator",
    "_SIZE": "a statement",
    "$END": "the end of the text",
}
_ALPHABET = (
    "names are ASCII letters, digits and underscores, joined by dots; signs are + - * // % ** = : , ; .. ( ) [ ] { } #"
)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*\{?")
_KEYWORDS = ("size", "index", "input", "output", "param", "buffer", "const", "for")
_MISSPELT = re.compile(r"\s*([A-Za-z_]\w*)[ \t]+[A-Za-z_]", re.ASCII)
_AFTER_STAR = re.compile(r"\*\s*\Z")
_LONE_NUMBER = re.compile(r"[-+=(]\s*[0-9][0-9.eE]*\s*\Z")


class _Lines(PostLex):
    """A filter that drops the newlines inside round and square brackets."""

    always_accept = ("_SEP",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        depth = 0
        for token in stream:
            depth += (token.type in ("LPAR", "LSQB")) - (token.type in ("RPAR", "RSQB"))
            if token.type != "_SEP" or not depth:
                yield token


@lru_cache(maxsize=1)
def _parser() -> Lark:
    grammar = Path(__file__).with_name("grammar.lark").read_text("utf-8")
    return Lark(grammar, parser="lalr", postlex=_Lines(), maybe_placeholders=True)


def parse(text: str, name: str | None = None, sizes: Mapping[str, int] | None = None, file: str = "<text>") -> Network:
    """Return the network that a spec describes.

    Args:
        text: the spec.
        name: the name of the wanted network; the last one of the spec if absent.
        sizes: values that replace the defaults of compile-time sizes.
        file: the name that errors give the text.

    Raises:
        SpecError: all errors in the text, in order of their places.
        LimitError: the text or what it expands to is beyond a limit.
        NetworkError: no network of this name, or no such size to set.

    Example:
        >>> network = parse("network n { size N = 3; input x[i:N]; y[] = x * x; output y[] }")
        >>> list(map(str, network.indices()))
        ['i:N']
    """
    return _elaborate(text, name, sizes, file)[0]


def parse_with_warnings(
    text: str, name: str | None = None, sizes: Mapping[str, int] | None = None, file: str = "<text>"
) -> tuple[Network, tuple[Problem, ...]]:
    """Return the network that a spec describes, and likely mistakes in the text, in order of their places.

    A rank that is cut is among the mistakes, and gives no Python warning.

    Args: as for `parse`, with the same errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        network, elaborators = _elaborate(text, name, sizes, file)
    mistakes = [problem for elaborator in elaborators for problem in elaborator.warnings()]
    return network, tuple(_ordered(mistakes)[:PROBLEMS])


def _elaborate(
    text: str, name: str | None, sizes: Mapping[str, int] | None, file: str
) -> tuple[Network, list[Elaborator]]:
    """Return the wanted network of a text, and the elaborators of all its networks."""
    if not isinstance(text, str):
        raise NetworkError(f"{text!r} is not the text of a network", "tg.load reads a file")
    if name is not None and not isinstance(name, str):
        raise NetworkError(f"{name!r} is not the name of a network", "give its name, or None for the last one")
    check_mapping("sizes", sizes)
    source = Source(file, text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
    trees, problems, suspects = _syntax(source)
    names = [str(tree.children[0]) for tree in trees]
    wanted = _wanted(names, name) if names and not problems else None
    networks: dict[str, Network] = {}
    budget, elaborators = Budget(), list[Elaborator]()
    for k, tree in enumerate(trees):
        overrides = dict(sizes or {}) if k == wanted else {}
        elaborators.append(elaborator := Elaborator(source, tree, suspects, overrides, budget))
        network = elaborator.run()
        problems.extend(elaborator.problems)
        if network is not None:
            networks[network.name] = network
    problems.extend(_repeated(source, trees))
    if problems:
        raise SpecError(_ordered(problems)[:PROBLEMS])
    network = networks[names[wanted]] if wanted is not None else next(iter(networks.values()))
    return network, elaborators


def _ordered(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems in order of their places."""
    return sorted(problems, key=lambda p: (p.place.line, p.place.column) if p.place else (0, 0))


def load(path: str | Path, name: str | None = None, sizes: Mapping[str, int] | None = None) -> Network:
    """Return the network of a spec file, read as `parse` reads text.

    Raises:
        SpecError: all errors in the file, in order of their places.
        LimitError: the file or what it expands to is beyond a limit.
        NetworkError: no such file, no network of this name, or no such size to set.
    """
    return parse(read(path), name, sizes, str(path))


def check(
    network: Network | str | Path, name: str | None = None, sizes: Mapping[str, int] | None = None
) -> tuple[Problem, ...]:
    """Return likely mistakes in a valid network, each with a cure.

    Those are a size, tensor or result that nothing uses, an index that only one tensor of a product has and that is
    summed there, and a rank that is cut. Where several readings are likely, nothing is reported: a term of one tensor
    may sum any of its legs, and a size of 1 sums nothing.

    Args:
        network: the network, or the path of a spec file; mistakes then have their places in the file.
        name: the network of the file whose sizes are set; all networks are checked.
        sizes: values that replace the defaults of its compile-time sizes.

    Raises: as `load`.

    Example:
        >>> network = parse("network n { input x[i:2]; param w[i]; param v[i]; y[] = x * w; output y[] }")
        >>> print(*check(network))
        the param 'v' is used nowhere
          use it, or take it away
    """
    if isinstance(network, Network):
        return tuple(Problem(mistake.message, mistake.hint) for mistake in find_mistakes(network))
    return parse_with_warnings(read(network), name, sizes, str(network))[1]


def read(path: str | Path, stream: BinaryIO | None = None) -> str:
    """Return the text of a spec file, or of a stream that errors call by this path.

    Raises:
        NetworkError: a file that cannot be read or is not UTF-8.
        LimitError: a file that is too long.
    """
    try:
        data = read_bytes(path, FILE_BYTES, stream)
    except (OSError, ValueError) as error:
        raise NetworkError(f"{path}: {explain(error)}", "give the path of a spec file") from None
    return decode(path, data)


def decode(path: str | Path, data: bytes) -> str:
    """Return the text of a spec file whose bytes have been read.

    Raises:
        NetworkError: it is not UTF-8.
        LimitError: it is too long.
    """
    if len(data) > FILE_BYTES:
        raise LimitError(f"{path}: the file is longer than {FILE_BYTES:,} bytes", "split it, or use loops")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NetworkError(f"{path}: byte {error.start} is not UTF-8", "a spec is a text file in UTF-8") from None


def _wanted(names: list[str], name: str | None) -> int:
    if name is None:
        return len(names) - 1
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names[:20])}"
        raise NetworkError(f"there is no network {name!r} in the text", hint)
    return names.index(name)


def _repeated(source: Source, trees: Iterable[Tree[Token]]) -> Iterator[Problem]:
    seen: set[str] = set()
    for tree in trees:
        token = tree.children[0]
        if isinstance(token, Token) and str(token) in seen:
            hint = "give one of them another name"
            yield Problem(f"the network {str(token)!r} is defined twice", hint, source.place(token.start_pos or 0))
        seen.add(str(token))


def _syntax(source: Source) -> tuple[list[Tree[Token]], list[Problem], frozenset[str]]:
    """Return the networks of a text, its syntax errors, and the names that the broken statements were about."""
    problems: list[Problem] = []
    suspects: set[str] = set()
    text = source.text
    # Each attempt reads the whole text again, so a long text gets fewer attempts.
    for _ in range(max(1, min(SYNTAX_PROBLEMS, 2 * TOKENS // (len(text) + 1)))):
        try:
            scanned = scan(Source(source.file, text))
            tree = _parser().parse(text)
            return [child for child in tree.children if isinstance(child, Tree)], problems, frozenset(suspects)
        except BracketError as error:
            problems.append(error.problem)
            start, end = error.start, error.end
        except UnexpectedInput as error:
            offset = error.pos_in_stream if error.pos_in_stream is not None and error.pos_in_stream >= 0 else len(text)
            start, end = scanned.statement(offset)
            meant = _meant(text[start:end])
            suspects.update([meant] if meant else [])
            problems.append(_describe(source, error, offset, text[start:offset], meant))
        broken = text[start:end]
        if end < 0 or text[end : end + 1] == "{" or not broken.strip():
            break
        suspects.update(_IDENTIFIER.findall(broken))
        text = text[:start] + re.sub(r"[^\n]", " ", broken) + text[end:]
    raise SpecError(problems)


def _meant(statement: str) -> str | None:
    """Return the keyword that a statement's misspelt first word was probably meant to be, or None."""
    match = _MISSPELT.match(statement)
    near = get_close_matches(match[1], _KEYWORDS, 1) if match else []
    return near[0] if match and near and near[0] != match[1] else None


def _describe(source: Source, error: UnexpectedInput, offset: int, before: str, meant: str | None) -> Problem:
    place = source.place(offset)
    if isinstance(error, UnexpectedCharacters):
        shown = repr(source.text[offset])
        return Problem(f"the character {shown} means nothing here", _ALPHABET, place)
    expected, token = _expected(error), getattr(error, "token", None)
    kind = "" if token is None else token.type
    if meant is not None and before.split() and len(before.split()) == 1:
        expected = f"did you mean {meant!r}?"
    elif kind in ("INT", "FLOAT") and _AFTER_STAR.search(before):
        expected = "a number stands first in a product, as in 2 * x"
    elif _LONE_NUMBER.search(before) and expected == "expected an operator":
        expected = "a term has a tensor: multiply the number by a const of ones"
    if kind in ("_SEP", "$END"):
        return Problem(f"the {'statement' if kind == '_SEP' else 'text'} ends too early", expected, place)
    if kind in ("PLUS", "MINUS", "STAR") and "end of the statement" in expected:
        expected = "a function stands outermost: give its result a name in an equation of its own"
    return Problem(f"{str(token)[:40]!r} does not belong here", expected, place)


def _expected(error: UnexpectedInput) -> str:
    names = error.accepts or error.expected if isinstance(error, UnexpectedToken) else set()
    words = [word for name, word in _WORDS.items() if name in names and word]
    unique = list(dict.fromkeys(words))
    return f"expected {_either(unique)}" if unique else ""


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
