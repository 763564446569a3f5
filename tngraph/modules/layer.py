"""Loading printed source as modules, and what a compiled layer knows about itself.

The class of a layer is the class of the printed file, unchanged, with `Layer` in front of it: its plan, its predicted
FLOPs, its verification, and pickling by plan. The source is what runs, and what a traceback shows.
"""

from __future__ import annotations

import builtins
import hashlib
import linecache
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import nn

from tngraph.errors import PlanError, SizeError
from tngraph.language.binding import bind_sizes, check_sizes, compile_time_sizes
from tngraph.lowering.printing import Source, print_source
from tngraph.modules.verification import Reference, Verification, join_verifications, verify_layer
from tngraph.plans.pipeline import plan_for_serving
from tngraph.plans.plans import Plan
from tngraph.plans.table import describe_regimes

_loaded: WeakValueDictionary[str, type[Layer]] = WeakValueDictionary()
"""The class of each source in use: layers of one plan are of one class, as ``torch.func.stack_module_state`` asks."""


class Layer(nn.Module):
    """A compiled network: the printed module with its plan.

    Attributes:
        plan: the plan it was printed from.
        source: the text of the file it runs.
        printed: that text with the Python names in it.
        first_slice: where regions run slice by slice, the first that this process runs.
        slice_step: and from each the way to the next.
    """

    plan: Plan
    source: str
    printed: Source
    first_slice: int
    slice_step: int

    def flops(self, *input_shapes: Sequence[int], backward: bool = False) -> int:
        """The FLOPs of a call with inputs of these shapes, as the plan predicts them [FLOPs].

        Args:
            input_shapes: the shape of each input, in the order of ``forward``.
            backward: count a training step instead: forward and backward, with gradients for params and inputs.

        Raises:
            SizeError: shapes that do not fit.
        """
        network = self.plan.network
        if len(input_shapes) != len(network.inputs):
            raise SizeError(
                f"{network.name} has {len(network.inputs)} inputs, and {len(input_shapes)} shapes were given"
            )
        shapes = {port.name: tuple(shape) for port, shape in zip(network.inputs, input_shapes, strict=True)}
        numbers = bind_sizes(network, shapes, self.sizes())
        counts = self.plan.regime_of(numbers).counts(numbers)
        return counts.training_flops if backward else counts.flops

    def sizes(self) -> dict[str, int]:
        """The compile-time sizes this layer was built with."""
        return {name: getattr(self, attribute) for name, attribute in self.printed.size_attributes.items()}

    def at(self, /, **sizes: int) -> Layer:
        """A layer with the params of this one that always runs the regime of given sizes, whatever its input is.

        It has no branches, so that it exports with a dynamic batch: ``layer.at(batch=64)``.

        Raises:
            SizeError: a name that is no size of the network, or a number that is not a positive integer.
        """
        return self._under(self.plan.only(**{**self.sizes(), **sizes}))

    def verify(self, *inputs: torch.Tensor, sizes: Mapping[str, int] | None = None, seed: int = 0) -> Verification:
        """Compare this layer with the reference: values, gradients, FLOPs, params, and the bytes it holds.

        Without inputs that is done in every regime.

        Args:
            inputs: what to call it with; random inputs of small sizes when absent.
            sizes: run-time sizes of the random inputs, where small ones will not do.
            seed: of random inputs and of the direction gradients are taken in.

        Returns:
            What was compared, which prints as a table.

        Raises:
            SizeError: inputs or sizes that do not fit.
            VerificationError: something does not agree; it says what, with both numbers.
        """
        if inputs or len(self.plan.regimes) == 1:
            return verify_layer(self, self.plan, self.printed, self.sizes(), inputs, seed, sizes)
        reference = Reference(self.plan.network, self.sizes())
        found = {}
        for where, plan in zip(describe_regimes(self.plan), self.plan.each(), strict=True):
            layer = self._under(plan)
            found[where] = verify_layer(layer, plan, layer.printed, self.sizes(), (), seed, sizes, reference)
        return join_verifications(found)

    def fold(self, memory_limit: int | None = None) -> Layer:
        """This layer for serving: with the same params in memory, which take no gradient and are not to change.

        Its orders are searched anew; one that was given by hand is not kept. What no input goes into is computed here,
        once, and stored in buffers. A layer that is made for serving computes its buffers anew, as after a change of
        its params that was no ``load_state_dict``, and is returned itself.

        Args:
            memory_limit: of the buffers together; None for none [bytes].

        Raises:
            PlanError: a limit that is no positive integer, or given to a layer that is made for serving.
        """
        if self.plan.goal.mode == "serve":
            if memory_limit is not None:
                name = self.plan.network.name
                raise PlanError(f"{name} is planned for serving already\n  give the limit to the layer it was made of")
            self._refold()
            return self
        first = next(chain(self.parameters(), self.buffers(), (torch.empty(()),)))
        plan = plan_for_serving(self.plan, self.sizes(), memory_limit, first.element_size())
        layer = build(plan, self.sizes(), device=first.device, dtype=first.dtype)
        layer.load_state_dict(self.state_dict(), assign=True)
        return layer.train(self.training)

    def _refold(self) -> None:
        if self.printed.buffers:
            cast(Any, self).refold()

    def _under(self, plan: Plan) -> Layer:
        """A layer with the params of this one that runs as another plan says; its folded buffers are its own."""
        made = layer_class(plan)
        layer = made.__new__(made)
        layer.__dict__.update(self.__dict__)
        if self.plan.goal.mode == "serve":
            folded, hooks = self.printed.buffers, self._load_state_dict_post_hooks
            layer._buffers = {name: buffer for name, buffer in self._buffers.items() if name not in folded}
            layer._non_persistent_buffers_set = self._non_persistent_buffers_set.difference(folded)
            own = getattr(self, "refold", None)
            layer._load_state_dict_post_hooks = OrderedDict((k, hook) for k, hook in hooks.items() if hook != own)
            if made.printed.buffers:
                cast(Any, layer).register_load_state_dict_post_hook(cast(Any, layer).refold)
            layer._refold()
        return layer

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self.plan,), self.__dict__


def build(
    plan: Plan,
    sizes: Mapping[str, int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Layer:
    """The module of a plan, at other compile-time sizes where they are given.

    Raises:
        SizeError: an unknown size, one of run time, or a number that is not a positive integer.
    """
    made = layer_class(plan)
    numbers = compile_time_sizes(plan.network, sizes)
    check_sizes(plan.network, plan.values(**{name: numbers[name] for name in sizes or {}}))
    arguments = {made.printed.size_arguments[name]: numbers[name] for name in sizes or {}}
    return made(**arguments, device=device, dtype=dtype)


def layer_class(plan: Plan) -> type[Layer]:
    """The class printed for a plan, loaded; its source is visible in tracebacks."""
    printed = print_source(plan)
    known = _loaded.get(printed.text)
    if known is not None and known.plan == plan:
        return known
    digest = hashlib.sha256(printed.text.encode()).hexdigest()[:12]
    file = f"<tngraph {printed.class_name} {digest}>"
    linecache.cache[file] = (len(printed.text), None, printed.text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": f"tngraph.printed.{printed.class_name}"}
    exec(builtins.compile(printed.text, file, "exec"), space)
    del space["__name__"]  # torch.compile imports the module that a function it inlines names, and there is none
    body = {"plan": plan, "source": printed.text, "printed": printed, "__doc__": space[printed.class_name].__doc__}
    made = cast(type[Layer], type(printed.class_name, (Layer, space[printed.class_name]), body))
    _loaded[printed.text] = made
    return made


def _rebuild(plan: Plan) -> Layer:
    made = layer_class(plan)
    return made.__new__(made)
