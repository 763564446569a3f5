"""The environment of a core: the network with that core taken out and its legs opened.

The output of a network that is linear in a core is the core contracted with its environment, so the environment is the
derivative of the output. It is built backwards from the output: the environment of a result collects, from every term
that reads the result, the other factors and the environment of the reader. Sums stay sums: nothing
is multiplied out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tngraph.errors import LimitError, NetworkError
from tngraph.language.arguments import check_network
from tngraph.language.builder import unknown
from tngraph.language.limits import LEGS
from tngraph.language.network import (
    LONGEST_NAME,
    Access,
    Core,
    Equation,
    Index,
    Init,
    Leg,
    Network,
    Port,
    Read,
    Size,
    Term,
    folders,
)
from tngraph.language.rewrites import Renaming, drop_unused, fresh_name, merge_chains, reached, rename
from tngraph.language.runtime import unbound_sizes


def environment(network: Network, name: str, output: str | None = None) -> Network:
    """Return the network with one core taken out and its legs opened: the derivative of its output by that core.

    The result has the axes of the output, then those of the core: those of its port if it is an input, else one for
    each leg. A leg that the core has under the name of a leg of the output, and that leads there, stands among those of
    the output alone. A leg that nothing else depends on is left out, for instance the batch of a layer's input. So

    - the core times its environment, each under its own legs, is the output less the terms that lack the core;
    - the gradient by the core is its environment times that of the output, broadcast over what is left out;
    - the environment of the input of a linear layer is its weight, `(out, in)`.

    A leg of the core that the output has under the same name and that does not lead there is called ``core.leg``.

    Args:
        network: a network that is linear in the core: it may be read in several terms, but in no product twice, and
            under no function.
        name: the core: an input, param, buffer or const.
        output: the output that is differentiated, if there are several.

    Raises:
        NetworkError: no such core, an output that does not depend on it, or not linearly; or a run-time size that only
            this core determines.
        LimitError: the environment has too many legs.

    Example:
        >>> import tngraph as tg
        >>> layer = tg.from_einsum("bi,ir,ro->bo", names=("x", "u", "v"), sizes={"b": 2, "i": 3, "r": 2, "o": 4})
        >>> [core.name for core in environment(layer, "u").cores]
        ['x', 'v']
        >>> [leg.name for leg in environment(layer, "u").outputs[0].legs]
        ['b', 'o', 'i', 'r']
        >>> [leg.name for leg in environment(layer, "x").outputs[0].legs]
        ['o', 'i']
    """
    check_network(network)
    port = _chosen(network, output)
    core = _core(network, name)
    alone = drop_unused(replace(network, outputs=(port,)))
    if port.name not in reached(alone, [name]):
        raise NetworkError(f"{port.name!r} does not depend on {name!r}", "its environment would be zero", at=name)
    derivation = _Derivation(alone, core, port)
    derivation.run()
    return derivation.result()


def _chosen(network: Network, output: str | None) -> Port:
    ports = {port.name: port for port in network.outputs}
    if output is None and len(ports) == 1:
        return network.outputs[0]
    if output is None:
        raise NetworkError(f"{network.name} has {len(ports)} outputs", f"choose one: output={next(iter(ports))!r}")
    if output not in ports:
        raise NetworkError(f"{network.name} has no output {output!r}", f"its outputs: {', '.join(ports)}", at=output)
    return ports[output]


def _core(network: Network, name: str) -> Core:
    cores = {core.name: core for core in network.cores}
    if name in cores:
        return cores[name]
    if isinstance(name, str) and name in network.sources():
        raise NetworkError(f"{name!r} is a result", f"give a core: {', '.join(cores)}", at=name)
    raise unknown("core", name, cores)


@dataclass(frozen=True, slots=True)
class _Own:
    """A leg of a tensor, by its place."""

    place: int


@dataclass(frozen=True, slots=True)
class _Out:
    """A leg of the output, by its place."""

    place: int


@dataclass(frozen=True, slots=True)
class _Environment:
    """The environment of a core or a result.

    Attributes:
        name: the equation that defines it; None if it is 1.
        ties: per leg of the tensor, the place of the leg of the output that it is, or None.
        indices: per leg of the tensor, the index that stands for it.
        legs: the legs of the equation, without those that nothing depends on; one that is tied is the tensor's own.
    """

    name: str | None
    ties: tuple[int | None, ...]
    indices: tuple[Index, ...]
    legs: tuple[_Own | _Out, ...] = ()

    def has(self, place: int) -> bool:
        """Return whether it depends on a leg of the tensor."""
        return _Own(place) in self.legs


@dataclass(frozen=True, slots=True)
class _Reading:
    """One access that leads from the output to the core, in the term of its reader."""

    reader: Equation
    term: Term
    access: Access

    @property
    def others(self) -> tuple[Access, ...]:
        """The other factors of the product."""
        return tuple(other for other in self.term.accesses if other is not self.access)


class _Derivation:
    """The equations of the environments so far, from the output towards the core."""

    def __init__(self, network: Network, core: Core, port: Port) -> None:
        self.network, self.core, self.port = network, core, port
        self.sources = network.sources()
        self.out = self.sources[port.name].legs
        self.on_the_way = reached(network, [core.name])
        self.equations: list[Equation] = []
        self.consts: list[Core] = []
        self.environments: dict[str, _Environment] = {}
        self.readings: dict[str, list[_Reading]] = {}
        for reader in network.equations:
            for term in reader.terms:
                for access in term.accesses:
                    self.readings.setdefault(access.source, []).append(_Reading(reader, term, access))
        self.names = {part for source in self.sources for part in (source, *folders(source))}
        self.indices = {index.name for index in network.indices()}

    def run(self) -> None:
        """Build the environment of every result on the way, and then of the core."""
        for equation in self.network.equations:
            if equation.name in self.on_the_way:
                self._check(equation)
        names = [e.name for e in reversed(self.network.equations) if e.name in self.on_the_way]
        for name in (*names, self.core.name):
            self.environments[name] = self._of_output() if name == self.port.name else self._of(name)

    def _check(self, equation: Equation) -> None:
        """Refuse a result that is not linear in the core.

        Raises:
            NetworkError: a function, or a product of two factors that depend on the core.
        """
        name = self.core.name
        hint = f"an environment is taken of a core that the output is linear in: {name!r} is not one"
        if equation.function is not None:
            raise NetworkError(
                f"{equation.function.name} is applied to {equation.name!r}, which depends on {name!r}", hint, at=name
            )
        for term in equation.terms:
            factors = [access.source for access in term.accesses if access.source in self.on_the_way]
            if len(factors) > 1:
                first, second = factors[:2]
                what = f"{first!r} twice" if first == second else f"{first!r} by {second!r}"
                depends = "" if factors == [name, name] else f", and both depend on {name!r}"
                raise NetworkError(f"{equation.name!r} multiplies {what}{depends}", hint, at=name)

    def _of_output(self) -> _Environment:
        """Return the environment of the output itself: 1 where its legs agree."""
        return _Environment(None, tuple(range(len(self.out))), self.out)

    def _may_tie(self, name: str, place: int, out: int) -> bool:
        """Return whether a leg may stand for one of the output: one of the core only under the same name."""
        return name != self.core.name or self.core.legs[place].name == self.out[out].name

    def _ties(self, name: str, readings: Sequence[_Reading]) -> tuple[int | None, ...]:
        """Return, per leg of a tensor, the leg of the output that every reading of it leads to."""
        ties: list[int | None] = []
        for place in range(len(self.sources[name].legs)):
            ends = {self._end(reading, place) for reading in readings}
            end = ends.pop() if len(ends) == 1 else None
            ties.append(end if end is not None and end not in ties and self._may_tie(name, place, end) else None)
        return tuple(ties)

    def _end(self, reading: _Reading, place: int) -> int | None:
        """Return the leg of the output that a reading leads a leg to, if any."""
        leg, legs = reading.access.legs[place], reading.reader.legs
        if isinstance(leg, Read) or leg not in legs:
            return None
        return self.environments[reading.reader.name].ties[legs.index(leg)]

    def _of(self, name: str) -> _Environment:
        """Return the environment of a tensor, whose readers have theirs."""
        readings = self.readings[name]
        ties = self._ties(name, readings)
        own, is_last = self._own_indices(name, ties), name == self.core.name
        terms = [self._term(reading, ties, own) for reading in readings]
        if is_last:
            terms[0] = self._with_ambiguous(terms[0], terms, ties, own)
        present = {index for term in terms for access in term.accesses for index in access.indices}
        kinds: list[_Own | _Out] = [_Own(k) for k, index in enumerate(own) if index in present]
        kinds += [_Out(k) for k, index in enumerate(self.out) if k not in ties and index in present]
        legs = tuple(own[kind.place] if isinstance(kind, _Own) else self.out[kind.place] for kind in kinds)
        if len(legs) > LEGS:
            raise LimitError(f"the environment of {name!r} has {len(legs)} legs", f"a tensor has at most {LEGS}")
        called = self._named("environment" if is_last else f"environment.{name}")
        self.equations.append(Equation(called, legs, tuple(terms)))
        return _Environment(called, ties, tuple(own), tuple(kinds))

    def _own_indices(self, name: str, ties: Sequence[int | None]) -> list[Index]:
        """Return the index of every leg of a tensor: the output's if it is tied, else its own name if that is free."""
        taken = {index.name for index in self.out}
        own = []
        for leg, tie in zip(self.sources[name].legs, ties, strict=True):
            if tie is not None:
                own.append(self.out[tie])
            elif leg.name in taken:
                own.append(Index(_free(f"{name}.{leg.name}", self.indices), leg.size))
            else:
                own.append(leg)
        return own

    def _with_ambiguous(
        self, term: Term, terms: Sequence[Term], ties: Sequence[int | None], own: Sequence[Index]
    ) -> Term:
        """Return a term that has the core's legs that could be mistaken for legs of the output, were they left out."""
        present = {index for other in terms for access in other.accesses for index in access.indices}
        names = {index.name for index in self.out}
        legs = zip(self.core.legs, ties, own, strict=True)
        missing = [index for leg, tie, index in legs if tie is None and leg.name in names and index not in present]
        return replace(term, accesses=(*term.accesses, *(self._const("ones", index) for index in missing)))

    def _term(self, reading: _Reading, ties: Sequence[int | None], own: Sequence[Index]) -> Term:
        """Return what one reading adds to the environment of a tensor."""
        outer, legs = self.environments[reading.reader.name], reading.reader.legs
        renaming: dict[Index, Index] = {}
        agreeing: list[tuple[Index, Leg]] = []
        for leg, index in zip(reading.access.legs, own, strict=True):
            if isinstance(leg, Index) and leg not in renaming:
                renaming[leg] = index
            else:
                agreeing.append((index, leg))
        for leg, tie in zip(legs, outer.ties, strict=True):
            if tie is not None and tie not in ties:
                if leg in renaming:
                    agreeing.append((self.out[tie], leg))
                else:
                    renaming[leg] = self.out[tie]
        self._rename_rest(reading, renaming, own)
        accesses = [rename(other, renaming) for other in reading.others]
        accesses += [self._agree(index, leg, renaming) for index, leg in agreeing]
        if outer.name is not None:
            accesses.append(Access(outer.name, tuple(self._outer_leg(kind, legs, renaming) for kind in outer.legs)))
        present = {index for access in reading.term.accesses for index in access.indices}
        for place, (leg, tie) in enumerate(zip(legs, outer.ties, strict=True)):
            if tie is None and leg not in present and not outer.has(place):
                accesses.append(self._const("ones", renaming[leg]))  # the term is broadcast along it, and then summed
        return Term(reading.term.scale, tuple(accesses) or (self._const("ones"),))

    def _rename_rest(self, reading: _Reading, renaming: dict[Index, Index], own: Iterable[Index]) -> None:
        """Give every other index of a term a name that no leg of the environment has."""
        busy = {index.name for index in (*own, *self.out)}
        mentioned = (*reading.reader.legs, *(i for access in reading.term.accesses for i in access.indices))
        for index in mentioned:
            if index not in renaming:
                name = fresh_name(index.name, self.indices) if index.name in busy else index.name
                renaming[index] = Index(name, index.size)

    def _outer_leg(self, kind: _Own | _Out, legs: Sequence[Index], renaming: Renaming) -> Index:
        return renaming[legs[kind.place]] if isinstance(kind, _Own) else self.out[kind.place]

    def _agree(self, index: Index, leg: Leg, renaming: Renaming) -> Access:
        """Return a factor that is 1 where an index equals a leg's position."""
        (read,) = rename(Access("", (leg,)), renaming).legs
        const = self._const("eye", index, Index(fresh_name(index.name, self.indices), index.size))
        if isinstance(read, Read):
            (_, column) = self.consts[-1].legs
            read = replace(read, leg=column)
        return replace(const, legs=(index, read))

    def _const(self, kind: str, *legs: Index) -> Access:
        name = self._named(kind)
        self.consts.append(Core(name, legs, "const", Init(kind)))
        return Access(name, legs)

    def _named(self, name: str) -> str:
        return _free(name, self.names)

    def result(self) -> Network:
        """Return the network of the core's environment.

        Raises:
            NetworkError: a run-time size that only the core determines.
        """
        last = self.environments[self.core.name]
        if last.name is None:  # the output is the core itself
            last = replace(last, name=self._named("environment"))
            self.equations.append(Equation(str(last.name), (), (Term(1, (self._const("ones"),)),)))
        kept = (e for e in self.network.equations if e.name not in self.on_the_way)
        whole = replace(
            self.network,
            cores=(*(core for core in self.network.cores if core.name != self.core.name), *self.consts),
            equations=(*kept, *self.equations),
            inputs=tuple(port for port in self.network.inputs if port.name != self.core.name),
            outputs=(Port(str(last.name), tuple(self._axes(last))),),
        )
        return _without_surplus(_without_factors_of_one(merge_chains(drop_unused(whole))), self.core.name)

    def _axes(self, last: _Environment) -> Iterator[tuple[Index, ...]]:
        """Yield the axes of the output, then those of the core, without the legs that are left out."""
        legs = self.equations[-1].legs
        for axis in self.port.axes:
            yield from _nonempty(leg for leg in axis if leg in legs)
        ports = {port.name: port.axes for port in self.network.inputs}
        free = {
            leg.name: index
            for leg, tie, index in zip(self.core.legs, last.ties, last.indices, strict=True)
            if tie is None and index in legs
        }
        for axis in ports.get(self.core.name, tuple((leg,) for leg in self.core.legs)):
            yield from _nonempty(free[leg.name] for leg in axis if leg.name in free)


def _free(name: str, taken: set[str]) -> str:
    """Return a name if it is free, else one similar to it, and add it to those taken."""
    if name in taken or len(name) > LONGEST_NAME:
        return fresh_name(name, taken)
    taken.add(name)
    return name


def _nonempty(legs: Iterable[Index]) -> Iterator[tuple[Index, ...]]:
    axis = tuple(legs)
    if axis:
        yield axis


def _without_factors_of_one(network: Network) -> Network:
    """Return a network without scalar ones in products of other tensors."""
    ones = {core.name for core in network.cores if core.init == Init("ones") and core.role == "const" and not core.legs}
    equations = []
    for equation in network.equations:
        terms = []
        for term in equation.terms:
            accesses = tuple(access for access in term.accesses if access.source not in ones)
            terms.append(replace(term, accesses=accesses or term.accesses[:1]))
        equations.append(replace(equation, terms=tuple(terms)))
    return replace(network, equations=tuple(equations))


def _without_surplus(network: Network, name: str) -> Network:
    """Return a network without the cores that nothing reads, and the run-time sizes that nothing has.

    Inputs stay where they are needed to determine a run-time size.

    Args:
        network: the network.
        name: the core that was taken out.

    Raises:
        NetworkError: a run-time size that no input determines.
    """
    read = {access.source for e in network.equations for term in e.terms for access in term.accesses}
    for read_alone in (True, False):
        cores = tuple(core for core in network.cores if core.name in read or (core.role == "input" and not read_alone))
        inputs = tuple(port for port in network.inputs if port.name in {core.name for core in cores})
        sizes = _sizes_of(network, cores)
        missing = unbound_sizes(sizes, inputs)
        if not missing:
            return replace(network, cores=cores, inputs=inputs, sizes=sizes)
    size = missing[0].name
    raise NetworkError(
        f"the environment of {name!r} has the run-time size {size!r}, which only {name!r} determines",
        f"give the size a value: size {size} = 16",
        at=name,
    )


def _sizes_of(network: Network, cores: Iterable[Core]) -> tuple[Size, ...]:
    """Return the compile-time sizes of a network, and the others that some cores and the equations need."""
    accesses = [access for e in network.equations for term in e.terms for access in term.accesses]
    reads = [leg for access in accesses for leg in access.legs if isinstance(leg, Read)]
    indices = [*(leg for core in cores for leg in core.legs), *(i for access in accesses for i in access.indices)]
    needed = {
        size for expr in [*(i.size for i in indices), *(read.offset for read in reads)] for size in expr.free_symbols
    }
    settable, kept = set(network.settable_sizes()), []
    for size in reversed(network.sizes):
        if size in settable or size.symbol in needed:
            kept.append(size)
            needed |= size.value.free_symbols if size.value is not None else set()
    return tuple(reversed(kept))
