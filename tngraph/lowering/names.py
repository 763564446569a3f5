"""Names from a network, made safe in Python: a documented rule, and only where a name would clash.

A name the generated file cannot use as it stands (a keyword, an attribute of ``nn.Module``, ``self``, ``torch``, …)
gets underscores appended until it is free; one that starts with two underscores, which Python mangles, gets an
``x`` in front. All other names stay exactly as declared.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable

MODULE_ATTRIBUTES = frozenset(
    """T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict
    modules mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu zero_grad
    _apply _backward_hooks _backward_pre_hooks _buffers _call_impl _compiled_call_impl _forward_hooks
    _forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks _forward_pre_hooks_with_kwargs
    _get_backward_hooks _get_backward_pre_hooks _get_name _is_full_backward_hook _load_from_state_dict
    _load_state_dict_post_hooks _load_state_dict_pre_hooks _maybe_warn_non_full_backward_hook _modules _named_members
    _non_persistent_buffers_set _parameters _register_load_state_dict_pre_hook _register_state_dict_hook
    _replicate_for_data_parallel _save_to_state_dict _slow_forward _state_dict_hooks _state_dict_pre_hooks _version
    _wrapped_call_impl reset_parameters plan printed source sizes flops verify""".split()  # noqa: SIM905 - a list a person can read
)
"""What a param may not be called on a module: the attributes of ``torch.nn.Module``, and tngraph's own."""

KEYWORDS = frozenset(keyword.kwlist)
LOCALS = KEYWORDS | {"self", "torch", "nn", "F", "math", "super", "param", "sum", "tuple", "min", "max", "ValueError"}
LOCALS |= {"device", "dtype"}
"""What a variable of the generated methods may not be called."""


def escape(name: str, reserved: Iterable[str], taken: set[str]) -> str:
    """A name free of clashes, which is then taken."""
    blocked = frozenset(reserved)
    safe = f"x{name}" if name.startswith("__") else name
    while safe in blocked or safe in taken:
        safe += "_"
    taken.add(safe)
    return safe
