"""Prints what runs: the lines of ``forward``, and a method for each tree of a region that has several trees.

The printed code chooses a method by comparing integers: a run-time size with the ends of its regimes or, where several
sizes decide, the costs of the regimes with one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from textwrap import indent, shorten
from typing import NamedTuple

import sympy

from tngraph.language.legs import leg_size
from tngraph.language.sizes import product, symbol
from tngraph.lowering.calls import Words, print_expression, wrap
from tngraph.lowering.names import Names, names_in
from tngraph.plans.plan import Plan, Regime
from tngraph.plans.table import draw_tree, format_formula, format_range, format_step, format_value
from tngraph.program.backward import Backward
from tngraph.program.counts import volume, work_unit
from tngraph.program.expressions import Call, Expression, Variable, variables
from tngraph.program.lines import Line, Program
from tngraph.program.operations import Block
from tngraph.program.types import find_types

LONGEST_DOC = 90
"""A tree longer than this is cut in a method's docstring [characters]."""


class Method(NamedTuple):
    """A printed method.

    Attributes:
        name: its name.
        arguments: the names it is called with.
        text: the code of the method, and of the methods that go with it.
        loop: the call of the method that runs it tile by tile, if there is one.
    """

    name: str
    arguments: tuple[str, ...]
    text: str
    loop: str = ""


@dataclass(frozen=True)
class Body:
    """The computing lines of ``forward`` and of the methods beside it, which are printed in different places."""

    plan: Plan
    names: Names

    @cached_property
    def words(self) -> Words:
        """The names and options that expressions are printed with."""
        return Words(self.names, self._anchor())

    def _anchor(self) -> str:
        """Return the tensor whose device and dtype new tensors in ``forward`` take: an input, if there is one."""
        return next(iter(self.names.arguments.values()), self._stored_anchor())

    def _stored_anchor(self) -> str:
        """Return the tensor whose device and dtype new tensors take, chosen among the stored ones."""
        stored = [core for core in self.plan.network.cores if core.role in ("param", "buffer")]
        return self.names.stored(stored[0].name) if stored else f"self.{self.names.anchor}"

    @cached_property
    def methods(self) -> Mapping[tuple[object, ...], Method]:
        """The methods beside ``forward``: one per tree of a region that has several trees, and one per other block."""
        methods: dict[tuple[object, ...], Method] = {}
        for key, variants in self.plan.variants.items():
            for k, numbers in enumerate(variants):
                regime = self.plan.regimes[numbers[0]]
                block = next(b for b in regime.schedule.blocks if b.kind == "branch" and (b.equation, b.term) == key)
                inside = self._inside(regime, block, f"_{k + 1}")
                methods.update({(*key, k, first): method for first, method in inside.items()})
                doc = f"{block.equation}{self._describe(numbers)}: {self._drawing(regime, block)}"
                methods[*key, k] = self._method(regime, block, self._stem(block, f"_{k + 1}"), doc, inside)
        regime = self.plan.regimes[0]
        for block in _outermost(regime.schedule.blocks):
            if block.kind != "branch":
                method, inside = self._block(regime, block)
                methods.update({(block.kind, block.first, first): inner for first, inner in inside.items()})
                methods[block.kind, block.first] = method
        return methods

    def _inside(self, regime: Regime, block: Block, end: str) -> dict[int, Method]:
        """Return the methods of the blocks inside a block, by their last operation."""
        methods: dict[int, Method] = {}
        for inner in _outermost([other for other in regime.schedule.blocks if _is_inside(other, block)]):
            methods[inner.last], further = self._block(regime, inner, end)
            methods.update(further)
        return methods

    def _block(self, regime: Regime, block: Block, end: str = "") -> tuple[Method, dict[int, Method]]:
        """Return the method of a block other than a branch, and the methods of the blocks inside it."""
        inside = self._inside(regime, block, end)
        if block.kind == "planned":
            return self._planned(regime, block, end), inside
        value = regime.operations[block.last]
        if block.kind == "recompute":
            doc = f"{value.name}, made once more in the backward pass instead of being kept"
            stem = f"_make_{value.name.replace('.', '_')}"
        elif block.kind == "tiles":
            assert value.tile is not None
            of = f"up to {value.tile.size} of {value.tile.index.name}"
            doc, stem = f"{block.equation} for {of}: {self._drawing(regime, block)}", self._stem(block, f"{end}_part")
            return self._looped(regime.program, block, self._method(regime, block, stem, doc, inside)), inside
        else:
            doc = f"A slice of {block.equation}: {self._drawing(regime, block)}"
            stem = self._stem(block, f"{end}_slice")
        return self._method(regime, block, stem, doc, inside), inside

    def _stem(self, block: Block, end: str) -> str:
        term = f"_term_{block.term + 1}" if block.term else ""
        return f"_{block.equation.replace('.', '_')}{term}{end}"

    def _drawing(self, regime: Regime, block: Block) -> str:
        stage = next(stage for stage in regime.stages if stage.equation.name == block.equation)
        return shorten(draw_tree(stage.trees[block.term]), LONGEST_DOC, placeholder=" …")

    def _method(
        self, regime: Regime, block: Block, stem: str, doc: str, methods: Mapping[int, Method] | None = None
    ) -> Method:
        """Return the lines of a block as a method that returns the value of the last line."""
        lines = [line for line in regime.program.lines if block.first <= line.number <= block.last]
        inner = _outermost([other for other in regime.program.blocks if _is_inside(other, block)])
        last = lines[-1]
        if any(other.last == block.last for other in inner):
            code = [*self._run(regime.program, lines, inner, methods or {})]
            code.append(f"return {self.names.values[regime.operations[last.number].name]}")
        else:
            code = list(self._run(regime.program, lines[:-1], inner, methods or {}))
            if block.kind == "recompute":
                code.append(f"# {self._comment(regime.program, last)}")
            code.append(f"return {print_expression(last.code, self.words)}")
        name, arguments = self.names.method(stem), tuple(self._given(code, regime, block))
        body = "\n".join([f'"""{doc}."""', *self.names.local_lines(code), *code])
        return Method(name, arguments, f"def {name}({', '.join(['self', *arguments])}):\n{indent(body, '    ')}")

    def _run(
        self, program: Program, lines: Iterable[Line], blocks: Sequence[Block], methods: Mapping[int, Method]
    ) -> Iterator[str]:
        """Yield the code of some lines, with a call of a method in place of the lines of each block."""
        for line in lines:
            block = next((block for block in blocks if block.first <= line.number <= block.last), None)
            if block is None:
                yield from self._line(program, line, line.dropped)
            elif line.number == block.last:
                if block.kind == "branch":
                    yield from self._call_branch(program, line, block)
                else:
                    yield from self._calls[block.kind](program, line, methods[block.last])
                yield from self._drop(program, [k for k in line.dropped if k < block.first])

    def _describe(self, numbers: Sequence[int]) -> str:
        """Return for which values of the free size some regimes run; nothing if several sizes are free."""
        if len(self.plan.free) != 1:
            return ""
        ranges = ", ".join(format_range(low, high) for low, high in self._ranges(numbers))
        return f" for {self.plan.free[0]} {ranges}"

    def _given(self, code: Iterable[str], regime: Regime, block: Block) -> Iterator[str]:
        """Yield the names that a method's code takes from ``forward``: inputs, earlier results, sizes of the call."""
        used = names_in(code)
        earlier = (self.names.values[op.name] for op in regime.operations[: block.first] if op.kind != "load")
        sizes = (own for name, own in self.names.sizes.items() if name not in self.names.size_attributes)
        windows = (local.name for local in self.names.windows.values())
        loops = (self.names.loops[index.name] for index in regime.operations[block.last].loops)
        available = dict.fromkeys((*self.names.arguments.values(), *earlier, *loops, *sizes, *windows))
        return (name for name in available if name in used)

    def lines(self) -> Iterator[str]:
        """Yield the computing lines of ``forward`` and its return statement."""
        program = self.plan.regimes[0].program
        if self.plan.variants and len(self.plan.free) != 1:
            yield from self._choose_order()
        outer = _outermost(program.blocks)
        methods = {block.last: self.methods[block.kind, block.first] for block in outer if block.kind != "branch"}
        yield from self._run(program, program.lines, outer, methods)
        yield f"return {', '.join(print_expression(result, self.words) for result in program.results)}"

    def refold(self) -> Iterator[str]:
        """Yield the method that computes the folded values, if there are any."""
        folding = self.plan.folding
        if not folding.buffers:
            return
        words = replace(self.words, anchor=self._stored_anchor())
        code: list[str] = []
        for line in folding.program.lines:
            code.extend(self._line(folding.program, line, line.dropped, words))
        for buffer, made in zip(folding.buffers, folding.program.results, strict=True):
            code.extend(self._keep(buffer, made, words))
        windows = [f"{local} = {self.names.show_size(size)}" for size, local in self._windows(code)]
        doc = '"""Make what depends on weights alone: again when they change, as ``load_state_dict`` does by itself."""'
        body = "\n".join([doc, *self.names.local_lines([*windows, *code]), *windows, *code])
        wide = '@torch.autocast("cuda", enabled=False)\n@torch.autocast("cpu", enabled=False)'
        yield f"@torch.no_grad()\n{wide}\ndef refold(self, *_):\n{indent(body, '    ')}"

    def _keep(self, buffer: Variable, made: Expression, words: Words) -> Iterator[str]:
        """Yield the lines that store a value as calls read it. They copy it, since it may be a view of a param."""
        names = ", ".join(dict.fromkeys(variable.name for variable in variables(made)))
        yield f"# {names}, as calls read it: {format_formula(product(buffer.shape))} elements"
        name = self.names.buffers[buffer.name]
        yield f"{name} = {print_expression(made, words)}"
        copy = f"{name}.clone(memory_format=torch.contiguous_format)"
        yield f'self.register_buffer("{name}", {copy}, persistent=False)'

    def _windows(self, code: Iterable[str]) -> Iterator[tuple[sympy.Expr, sympy.Symbol]]:
        """Return the counts of windows that some code names, with their local names."""
        used = names_in(code)
        return ((size, local) for size, local in self.names.windows.items() if local.name in used)

    def _line(self, program: Program, line: Line, dropped: Sequence[int], words: Words | None = None) -> Iterator[str]:
        """Yield one operation, with its legs and cost in a comment above and the values to drop below."""
        op = program.operations[line.number]
        yield f"# {self._comment(program, line)}"
        yield f"{self.names.values[op.name]} = {print_expression(line.code, words or self.words)}"
        yield from self._drop(program, dropped)

    def _drop(self, program: Program, numbers: Sequence[int]) -> Iterator[str]:
        if numbers:
            yield f"del {', '.join(self.names.values[program.operations[k].name] for k in numbers)}"

    def _comment(self, program: Program, line: Line) -> str:
        """Return the comment of a line: the value with its legs in memory order, what is computed, and the cost."""
        op = program.operations[line.number]
        cost = self._volume(program, line.number)
        price = f": {format_formula(cost)} {work_unit(op)}" if cost != 0 else ""
        return f"{format_value(op.name, line.legs)} = {format_step(program.operations, line.number)}{price}"

    def _volume(self, program: Program, number: int) -> sympy.Expr:
        """Return the cost of a line in the sizes that are known there: in a tile, those of the tile."""
        cost = volume(program.operations, number).xreplace(self.names.windows)
        block = next((b for b in program.blocks if b.kind == "tiles" and b.first <= number < b.last), None)
        tile = program.operations[block.last].tile if block is not None else None
        if tile is None or tile.is_runtime:
            return cost
        return cost / tile.index.size * symbol(self.names.sizes[str(tile.part.size)])

    @property
    def _calls(self) -> Mapping[str, Callable[[Program, Line, Method], Iterator[str]]]:
        """The functions that print the call of a block's method, by kind of block."""
        return {
            "slices": self._call_slices,
            "tiles": self._call_tiles,
            "recompute": self._call_recompute,
            "planned": self._call_planned,
        }

    def _planned(self, regime: Regime, block: Block, end: str) -> Method:
        """Return the forward and backward methods of a planned block. They are static, and sizes are passed to them."""
        program = regime.program
        backward = program.backward[block.first]
        words = replace(self.words, is_static=True)
        if backward.inputs:  # a static method knows what it is given, and no other tensor
            words = replace(words, anchor=print_expression(backward.inputs[0], words))
        stem = self._stem(block, end)
        forward = list(self._forward(program, block, backward, words))
        slopes = list(self._gradient_lines(regime, backward, words))
        tensors = [print_expression(variable, words) for variable in backward.inputs]
        kept = [print_expression(variable, words) for variable in backward.saved]
        start = print_expression(backward.start, words)
        used = names_in([*forward, *slopes])
        sizes = [name for name in dict.fromkeys(self.names.sizes.values()) if name in used]
        first, second = self.names.method(f"{stem}_forward"), self.names.method(f"{stem}_backward")
        doc = f'"""{block.equation}, and what its gradients are made of: {self._drawing(regime, block)}."""'
        text = _static(first, [*tensors, *sizes], [doc, *forward])
        doc = f'"""The gradients of what ``{first}`` is given, where they are needed."""'
        text += "\n\n" + _static(second, ["needs", start, *tensors, *kept, *sizes], [doc, *slopes])
        inputs = [print_expression(variable, self.words) for variable in backward.inputs]
        shown = f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
        return Method(first, (f"self.{first}", f"self.{second}", shown, *inputs), text)

    def _forward(self, program: Program, block: Block, backward: Backward, words: Words) -> Iterator[str]:
        """Yield the lines of a block, and the return of its result and of the values that its backward pass reads."""
        lines = [line for line in program.lines if block.first <= line.number <= block.last]
        for line in lines[:-1]:
            yield from self._line(program, line, line.dropped, words)
        kept = [print_expression(variable, words) for variable in backward.saved]
        yield f"return {', '.join([print_expression(lines[-1].code, words), *kept])}{',' * (not kept)}"

    def _gradient_lines(self, regime: Regime, backward: Backward, words: Words) -> Iterator[str]:
        """Yield the lines of a backward pass, each under a test of whether its gradient is needed."""
        names = [print_expression(variable, words) if variable else "None" for variable in backward.results]
        gradients = dict.fromkeys(name for name in names if name != "None")
        yield f"{' = '.join(gradients)} = None"
        everything = frozenset().union(*(line.needs for line in backward.lines))
        before: frozenset[int] = everything
        for line in backward.lines:
            if line.needs not in (everything, before):
                yield f"if {' or '.join(f'needs[{place}]' for place in sorted(line.needs))}:"
            before = line.needs
            cost = self._volume(regime.program, line.number) if line.is_product else sympy.S.Zero
            price = f": {format_formula(cost)} MAC" if cost != 0 else ""
            name = print_expression(line.variable, words)
            of = print_expression(line.of, words)
            what = f"{name} = {of}, in another order"
            if line.by:
                what = f"{format_value(name, line.result.legs)} = {of} * {line.by}{price}"
            lines = f"# {what}\n{name} = {print_expression(line.result.code, words)}"
            yield from (lines if line.needs == everything else indent(lines, "    ")).split("\n")
        yield f"return {', '.join(names)}{',' * (len(names) == 1)}"

    def _call_planned(self, program: Program, line: Line, method: Method) -> Iterator[str]:
        """Yield the call of a method that has a backward pass of its own."""
        op = program.operations[line.number]
        yield f"# {format_value(op.name, op.legs)}, with a backward pass of its own"
        yield f"{self.names.values[op.name]} = {wrap('contract', method.arguments)}"

    def _call_recompute(self, program: Program, line: Line, method: Method) -> Iterator[str]:
        """Yield the call of a method whose values are recomputed in the backward pass."""
        op = program.operations[line.number]
        arguments = ", ".join([f"self.{method.name}", *method.arguments, "use_reentrant=False"])
        yield f"{self.names.values[op.name]} = checkpoint({arguments}, preserve_rng_state=False)"

    def _looped(self, program: Program, block: Block, method: Method) -> Method:
        """Return the method of a tile together with one that runs it tile by tile.

        The loop has a method of its own, so that no ``del`` of the caller names what the comprehension reads.
        """
        op = program.operations[block.last]
        assert op.tile is not None
        size = self.names.show(op.tile.part.size)
        parts = {
            (self.names.arguments if variable.kind == "input" else self.names.values)[variable.name]: axis
            for variable, axis in program.cut_axes(block.last).items()
        }
        cuts = [f"{part}.split({op.tile.size}{f', {axis}' if axis else ''})" for part, axis in parts.items()]
        first, axis = next(iter(parts.items()))
        passed = [f"{first}.shape[{axis}]" if argument == size else argument for argument in method.arguments]
        over = cuts[0] if len(cuts) == 1 else f"zip({', '.join(cuts)})"
        tiles = f"self.{method.name}({', '.join(passed)}) for {', '.join(parts)} in {over}"
        code = next(line.code for line in program.lines if line.number == block.last)
        place = code.arguments[0] if isinstance(code, Call) else 0
        loop = self.names.method(f"{method.name}s")
        arguments = [argument for argument in method.arguments if argument != size]
        doc = f'"""All of {self.names.values[op.name]}, {op.tile.size} of {op.tile.index.name} at a time."""'
        body = f"    {doc}\n    return torch.cat([{tiles}]{f', {place}' if place else ''})"
        text = f"{method.text}\n\ndef {loop}({', '.join(['self', *arguments])}):\n{body}"
        return method._replace(text=text, loop=f"self.{loop}({', '.join(arguments)})")

    def _call_tiles(self, program: Program, line: Line, method: Method) -> Iterator[str]:
        """Yield the call of a method tile by tile, or once for the whole where PyTorch traces."""
        op = program.operations[line.number]
        assert op.tile is not None
        name, size = self.names.values[op.name], self.names.show(op.tile.part.size)
        whole = [self.names.show(op.tile.index.size) if argument == size else argument for argument in method.arguments]
        yield f"# {self._comment(program, line)}"
        yield f"if not torch.compiler.is_compiling(){f' and {size} > {op.tile.size}' * op.tile.is_runtime}:"
        yield f"    {name} = {method.loop}"
        yield "else:"
        yield f"    {name} = self.{method.name}({', '.join(whole)})"

    def _call_slices(self, program: Program, line: Line, method: Method) -> Iterator[str]:
        """Yield the loop over the slices that this process adds up, and the sum over all processes."""
        op = program.operations[line.number]
        name, number = self.names.values[op.name], self.names.number
        yield f"# {self._comment(program, line)}"
        shape = self.words.sizes([leg_size(leg) for leg in op.legs])
        yield f"{name} = torch.zeros(({shape}{',' * (len(op.legs) == 1)}), {self.words.options})"
        shown = [self.names.show(index.size) for index in op.loops]
        counts = [size if size.isidentifier() or size.isdigit() else f"({size})" for size in shown]
        yield f"for {number} in range(self.first_slice, {' * '.join(counts)}, self.slice_step):"
        for k, index in enumerate(op.loops):
            below = "".join(f" // {count}" for count in reversed(counts[k + 1 :]))
            yield f"    {self.names.loops[index.name]} = {number}{below}" + (f" % {counts[k]}" if k else "")
        target, axis = name, 0
        for leg in op.legs:
            if leg in op.loops:
                target += f".select({axis}, {self.names.loops[leg.name]})"
            else:
                axis += 1
        yield f"    {target}.add_(self.{method.name}({', '.join(method.arguments)}))"
        yield "if self.slice_step > 1:"
        yield f"    torch.distributed.all_reduce({name})"
        if find_types(self.plan.network, program.operations)[line.number] == "product":
            device = f"{name}.device.type"
            yield f"if not {name}.is_meta and torch.is_autocast_enabled({device}):  # added up wide"
            yield f"    {name} = {name}.to(torch.get_autocast_dtype({device}))"

    def _call_branch(self, program: Program, line: Line, block: Block) -> Iterator[str]:
        """Yield the choice between the methods of a region that has several trees."""
        variants = self.plan.variants[block.equation, block.term]
        op = program.operations[line.number]
        yield f"# {format_value(op.name, op.legs)}, in the order that is best here"
        for k in range(len(variants)):
            method = self.methods[block.equation, block.term, k]
            is_last = k == len(variants) - 1
            yield "else:" if is_last else f"{'elif' if k else 'if'} {self._tested(variants, k)}:"
            call = f"self.{method.name}({', '.join(method.arguments)})"
            yield f"    {self.names.values[op.name]} = {call}"

    def _tested(self, variants: Sequence[Sequence[int]], k: int) -> str:
        """Return the condition of a variant. An exported graph uses the last variant, which is right at all sizes."""
        condition = self._condition(variants, k)
        return f"not torch.compiler.is_exporting() and {f'({condition})' if ' or ' in condition else condition}"

    def _condition(self, variants: Sequence[Sequence[int]], k: int) -> str:
        """Return the condition under which the k-th variant runs, given that none before it does."""
        if len(self.plan.free) != 1:
            return " or ".join(f"{self.names.order} == {number + 1}" for number in variants[k])
        size, (first, *_) = self.names.sizes[self.plan.free[0]], variants[k]
        tested = {number for numbers in variants[:k] for number in numbers}
        tests = []
        for low, high in self._ranges(variants[k]):
            is_least = low == self.plan.regimes[first].low and tested.issuperset(range(first))
            upper = "" if high is None else f"{size} <= {high}"
            tests.append(upper if is_least else f"{size} >= {low}" if high is None else f"{low} <= {upper}")
        return " or ".join(tests)

    def _ranges(self, numbers: Sequence[int]) -> list[tuple[int, int | None]]:
        """Return the values of the one free size that some regimes are for, with neighbouring ranges joined."""
        ranges: list[tuple[int, int | None]] = []
        for number in numbers:
            regime = self.plan.regimes[number]
            if ranges and ranges[-1][1] == regime.low - 1:
                ranges[-1] = ranges[-1][0], regime.high
            else:
                ranges.append((regime.low, regime.high))
        return ranges

    def _choose_order(self) -> Iterator[str]:
        """Yield the lines that find the number of the regime of least cost, the first of several equal ones."""
        costs, order = self.names.costs, self.names.order
        for name, regime in zip(costs, self.plan.regimes, strict=True):
            assert regime.cost is not None
            yield f"{name} = {self.names.show(regime.cost)}"
        for k, name in enumerate(costs):
            test = " and ".join(f"{name} <= {other}" for other in costs[k + 1 :])
            yield f"{'elif' if k else 'if'} {test}:" if test else "else:"
            yield f"    {order} = {k + 1}"


def _static(name: str, arguments: Sequence[str], lines: Sequence[str]) -> str:
    """Return the code of a static method."""
    body = indent("\n".join(lines), "    ")
    return f"@staticmethod\ndef {name}({', '.join(arguments)}):\n{body}"


def _outermost(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that are not inside another one of them."""
    return [block for block in blocks if not any(_is_inside(block, other) for other in blocks)]


def _is_inside(block: Block, other: Block) -> bool:
    """Return whether a block is inside another one."""
    return block != other and other.first <= block.first and block.last <= other.last
