"""Trees as minimal moves: which values are joined and how, and which unresolved reads are laid out.

Everything else in a tree follows from its region. So a tree from a file is not trusted but derived again: `Replay`
derives the steps from the moves and refuses a move that the region does not allow. Whatever the moves are, the result
is a contraction of that region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tngraph.search.region import ContractionTree, Step, Topology, Value
from tngraph.search.trees import opened, prepare_leaves


@dataclass(frozen=True, slots=True)
class Move:
    """A join of two values, or one value some of whose unresolved reads are laid out. Values are numbered as in a tree.

    A join may be a transposed convolution where a convolution is possible, too.
    """

    operands: tuple[int, ...]
    reads: tuple[int, ...] = ()
    is_transposed: bool = False


class ReplayError(ValueError):
    """A move that the region does not allow. Its message is the end of a sentence that the caller starts."""


class Replay:
    """The steps of a tree so far: those that prepare the region's accesses, then one per move."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.steps, where = prepare_leaves(topology)
        self.values: dict[int, Value] = dict(zip(where, topology.leaves, strict=True))

    def make(self, move: Move) -> None:
        """Make one move, which uses up its operands.

        Raises:
            ReplayError: the region does not allow the move.
        """
        taken = [self.take(value) for value in move.operands]
        if len(taken) == 2 and not move.reads:
            self._join(move, taken[0], taken[1])
        elif len(taken) == 1 and move.reads and not move.is_transposed:
            self._lay_out(move, taken[0])
        else:
            raise ReplayError("joins no two values and lays out none")

    def take(self, value: int) -> Value:
        """Return a value that no step has used yet, and mark it as used.

        Raises:
            ReplayError: there is no unused value of this number.
        """
        if value not in self.values:
            raise ReplayError(f"takes the value {value}, which is not there")
        return self.values.pop(value)

    def _join(self, move: Move, left: Value, right: Value) -> None:
        joined = self.topology.join(left, right)
        if joined is None:
            raise ReplayError("joins values of which an unresolved read is to be laid out first")
        kinds = self.topology.kinds(left, right, joined)
        if move.is_transposed and "conv_transpose" not in kinds:
            raise ReplayError("joins values by a transposed convolution, which they do not allow")
        kind = "conv_transpose" if move.is_transposed else kinds[0]
        self._put(Step(move.operands, self.topology.legs(joined), kind), joined)

    def _lay_out(self, move: Move, value: Value) -> None:
        unresolved = {read for read, _ in value.unresolved}
        if len(set(move.reads)) != len(move.reads) or not unresolved.issuperset(move.reads):
            raise ReplayError("lays out a read that is resolved there")
        for read in move.reads:
            value = self.topology.open(value, read)
        self._put(Step(move.operands, self.topology.legs(value), "read"), value)

    def _put(self, step: Step, value: Value) -> None:
        self.steps.append(step)
        self.values[len(self.topology.leaves) + len(self.steps) - 1] = value

    def finish(self, *, is_proven: bool, is_pinned: bool = False) -> ContractionTree:
        """Return the tree, once a single value is left.

        Raises:
            ReplayError: several values are left, or the last one has a read that is not laid out.
        """
        if len(self.values) != 1:
            raise ReplayError(f"leaves {len(self.values)} values and not one")
        (value,) = self.values.values()
        if value.unresolved:
            raise ReplayError("leaves an unresolved read")
        return ContractionTree(self.topology.region, tuple(self.steps), is_proven, is_pinned, self.topology.sliced)


def find_moves(topology: Topology, tree: ContractionTree) -> tuple[Move, ...]:
    """Return the moves of a tree."""
    replay, moves = Replay(topology), list[Move]()
    for step in tree.steps[len(replay.steps) :]:
        moves.append(_find_move(replay, step))
        replay.make(moves[-1])
    return tuple(moves)


def _find_move(replay: Replay, step: Step) -> Move:
    """Return the move that makes a step. The legs of a step on one value say which reads it lays out."""
    if len(step.operands) != 1:
        return Move(step.operands, is_transposed=step.kind == "conv_transpose")
    value = replay.values[step.operands[0]]
    results = (result for result in opened(replay.topology, value) if result != value)
    result = next(result for result in results if replay.topology.legs(result) == step.legs)
    left = {read for read, _ in result.unresolved}
    return Move(step.operands, tuple(read for read, _ in value.unresolved if read not in left))


def replay_moves(topology: Topology, moves: Sequence[Move], *, is_proven: bool) -> ContractionTree:
    """Return the tree that some moves lead to.

    Raises:
        ReplayError: the region does not allow them.
    """
    replay = Replay(topology)
    for move in moves:
        replay.make(move)
    return replay.finish(is_proven=is_proven)
