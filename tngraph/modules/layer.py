"""Loads printed source as modules, and defines what a compiled layer offers beside ``forward``.

The class of a layer derives from `Layer` and from the unchanged class of the printed file. `Layer` adds the plan,
predicted FLOPs, verification, and pickling by plan. The printed source is what runs and what a traceback shows.
"""

from __future__ import annotations

import builtins
import hashlib
import inspect
import linecache
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import nn

from tngraph.compiler.pipeline import plan_for_serving
from tngraph.errors import PlanError, SizeError
from tngraph.language.binding import bind_sizes, check_sizes, compile_time_sizes
from tngraph.language.functions import check_complex
from tngraph.language.network import Network
from tngraph.lowering.printing import PrintedSource, print_source
from tngraph.modules.cores import StoredCore, read_cores, write_cores
from tngraph.modules.inputs import RAW, check_numbers, check_tensor, find_fault
from tngraph.modules.verification import Reference, Verification, join_verifications, verify_layer
from tngraph.plans.plan import Plan
from tngraph.plans.table import describe_regimes

_loaded: WeakValueDictionary[str, type[Layer]] = WeakValueDictionary()
"""The class of each source in use. ``torch.func.stack_module_state`` needs layers of one plan to be of one class."""


class Layer(nn.Module):
    """A compiled network: the printed module with its plan.

    Attributes:
        plan: the plan it was printed from.
        source: the text of the file it runs.
        printed: that text with the Python names in it.
        first_slice: where regions run slice by slice, the first slice that this process runs.
        slice_step: the distance from one slice that this process runs to the next.
    """

    plan: Plan
    source: str
    printed: PrintedSource
    first_slice: int
    slice_step: int

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the layer, as `nn.Module` does.

        Raises:
            SizeError: an input that is not a tensor, or is of another device or type than the params.
        """
        try:
            return super().__call__(*args, **named)
        except RAW:
            fault = find_fault(self, self._inputs, args, named)
            if fault is None:
                raise
        raise SizeError(fault)

    @property
    def _inputs(self) -> Sequence[str]:
        """The names that ``forward`` gives the inputs, which come first in its signature."""
        return [*inspect.signature(self.forward).parameters][: len(self.plan.network.inputs)]

    def flops(self, *input_shapes: Sequence[int], backward: bool = False) -> int:
        """Return the FLOPs that the plan predicts for a call with inputs of these shapes [FLOPs].

        Args:
            input_shapes: the shape of each input, in the order of ``forward``.
            backward: count a training step instead: forward and backward, with the requested gradients.

        Raises:
            SizeError: the shapes do not fit.
        """
        network = self.plan.network
        if len(input_shapes) != len(network.inputs):
            raise SizeError(
                f"{network.name} has {len(network.inputs)} inputs, and {len(input_shapes)} shapes were given"
            )
        for shape in input_shapes:
            if not isinstance(shape, Sequence):
                raise SizeError(f"{shape!r} is not a shape\n  write it as (64, 784)")
        shapes = {port.name: tuple(shape) for port, shape in zip(network.inputs, input_shapes, strict=True)}
        numbers = bind_sizes(network, shapes, self.sizes())
        counts = self.plan.regime_of(numbers).counts(numbers)
        return counts.training_flops if backward else counts.flops

    def sizes(self) -> dict[str, int]:
        """Return the compile-time sizes that this layer was built with."""
        return {name: getattr(self, attribute) for name, attribute in self.printed.size_attributes.items()}

    def cores(self) -> dict[str, StoredCore]:
        """Return the params and buffers by their names in the network, each with the names of its legs."""
        return read_cores(self, self.plan.network, self.printed.attributes)

    def load_cores(self, cores: Mapping[str, Any]) -> None:
        """Copy values into params and buffers, by their names in the network.

        Args:
            cores: a tensor, an array or a `StoredCore` for some of them, with its axes in the order of the legs. Axes
                of size 1 may be there or not.

        Raises:
            SizeError: a name that no core has, or values of another shape. Then nothing has changed.
        """
        write_cores(self.cores(), cores)

    def at(self, /, **sizes: int) -> Layer:
        """Return a layer that shares this one's params and always runs the regime of given sizes, whatever its input.

        It has no branches, so it can be exported with a dynamic batch: ``layer.at(batch=64)``.

        Raises:
            SizeError: the network has no size of this name, or a value is not a positive integer.
        """
        return self._under(self.plan.only(**{**self.sizes(), **sizes}))

    def verify(self, *inputs: torch.Tensor, sizes: Mapping[str, int] | None = None, seed: int = 0) -> Verification:
        """Compare this layer with the reference: values, gradients, FLOPs, params, and the bytes it holds.

        Without inputs every regime is compared.

        Args:
            inputs: the inputs to call it with; when absent, random inputs of small sizes.
            sizes: run-time sizes of the random inputs, where small ones will not do.
            seed: the seed for random inputs and for the direction of the gradients.

        Returns:
            The comparisons, which print as a table.

        Raises:
            SizeError: the inputs or sizes do not fit.
            VerificationError: something does not agree; the message says what, with both values.
        """
        for position, x in enumerate(inputs, 1):
            check_tensor(f"input {position}", x)
        if inputs or len(self.plan.regimes) == 1:
            return verify_layer(self, self.plan, self.printed, self.sizes(), inputs, seed, sizes)
        reference = Reference(self.plan.network, self.sizes())
        verifications = {}
        for where, plan in zip(describe_regimes(self.plan), self.plan.each(), strict=True):
            layer = self._under(plan)
            verifications[where] = verify_layer(layer, plan, layer.printed, self.sizes(), (), seed, sizes, reference)
        return join_verifications(verifications)

    def fold(self, memory_limit: int | None = None) -> Layer:
        """Return this layer for serving, with the same params in memory, which take no gradient and must not change.

        Orders are searched again for serving, without any that were pinned by hand. Values that depend on no input are
        computed once, here, and stored in buffers. A layer that is already for serving recomputes its buffers and is
        returned itself, which is needed after its params were changed by anything but ``load_state_dict``.

        Args:
            memory_limit: the most memory for all buffers together; None for no limit [bytes].

        Raises:
            PlanError: the limit is not a valid integer, or is given to a layer that is already for serving.
        """
        if self.plan.request.mode == "serve":
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
        """Return a layer that shares this one's params and runs another plan, with folded buffers of its own."""
        loaded = layer_class(plan)
        layer = loaded.__new__(loaded)
        layer.__dict__.update(self.__dict__)
        if self.plan.request.mode == "serve":
            folded, hooks = self.printed.buffers, self._load_state_dict_post_hooks
            layer._buffers = {name: buffer for name, buffer in self._buffers.items() if name not in folded}
            layer._non_persistent_buffers_set = self._non_persistent_buffers_set.difference(folded)
            own = getattr(self, "refold", None)
            layer._load_state_dict_post_hooks = OrderedDict((k, hook) for k, hook in hooks.items() if hook != own)
            if loaded.printed.buffers:
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
    """Return the module of a plan, at other compile-time sizes where given.

    Raises:
        SizeError: a size is unknown or a run-time size, or its value is not a positive integer.
    """
    check_numbers(device, dtype)
    check_functions(plan.network, dtype)
    loaded = layer_class(plan)
    numbers = compile_time_sizes(plan.network, sizes)
    check_sizes(plan.network, plan.values(**{name: numbers[name] for name in sizes or {}}))
    arguments = {loaded.printed.size_arguments[name]: numbers[name] for name in sizes or {}}
    return loaded(**arguments, device=device, dtype=dtype)


def check_functions(network: Network, dtype: torch.dtype | None) -> None:
    """Raise `NetworkError` if a type is complex and a function of a network has no meaning for complex numbers."""
    if dtype is not None and dtype.is_complex:
        for equation in network.equations:
            if equation.function is not None:
                check_complex(equation.function.name, equation.name)


def layer_class(plan: Plan) -> type[Layer]:
    """Return the loaded class that is printed for a plan. Tracebacks show its source."""
    printed = print_source(plan)
    cached = _loaded.get(printed.text)
    if cached is not None and cached.plan == plan:
        return cached
    digest = hashlib.sha256(printed.text.encode()).hexdigest()[:12]
    file = f"<tngraph {printed.class_name} {digest}>"
    linecache.cache[file] = (len(printed.text), None, printed.text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": f"tngraph.printed.{printed.class_name}"}
    exec(builtins.compile(printed.text, file, "exec"), space)
    del space["__name__"]  # torch.compile would import the module of this name to inline functions, and there is none
    body = {"plan": plan, "source": printed.text, "printed": printed, "__doc__": space[printed.class_name].__doc__}
    loaded = cast(type[Layer], type(printed.class_name, (Layer, space[printed.class_name]), body))
    _loaded[printed.text] = loaded
    return loaded


def _rebuild(plan: Plan) -> Layer:
    loaded = layer_class(plan)
    return loaded.__new__(loaded)
