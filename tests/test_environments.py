"""Environments: the core contracted with its environment is the output, and the environment gives its gradient."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import opt_einsum
import pytest
import torch
from hypothesis import given, settings

import tngraph as tg
from tests.networks import TABLE, networks, random_arrays
from tngraph.language.binding import bind_sizes, index_sizes
from tngraph.language.network import Core, Network, Port
from tngraph.language.rewrites import drop_unused

Named = tuple[np.ndarray, list[str]]


def degrees(network: Network, name: str) -> dict[str, float]:
    """The degree of every tensor in a core; infinite under a function."""
    degree = {core.name: float(core.name == name) for core in network.cores}
    for equation in network.equations:
        total = max(sum(degree[access.source] for access in term.accesses) for term in equation.terms)
        degree[equation.name] = inf if total and equation.function else total
    return degree


def extents(network: Network, arrays: dict[str, np.ndarray]) -> dict[str, int]:
    return index_sizes(network, bind_sizes(network, {port.name: arrays[port.name].shape for port in network.inputs}))


def unfused(network: Network, arrays: dict[str, np.ndarray], port: Port) -> Named:
    """The value of an output with an axis per leg, and their names."""
    sizes = extents(network, arrays)
    value = tg.evaluate(replace(network, outputs=(port,)), arrays)
    return value.reshape([sizes[leg.name] for leg in port.legs]), [leg.name for leg in port.legs]


def contract(operands: list[Named], legs: list[str], sizes: dict[str, int]) -> np.ndarray:
    """The product summed to some legs, broadcast along those that no operand has."""
    letters: dict[str, str] = {}
    sides = [
        "".join(letters.setdefault(leg, opt_einsum.get_symbol(len(letters))) for leg in own) for _, own in operands
    ]
    shown = "".join(letters[leg] for leg in legs if leg in letters)
    value = np.einsum(f"{','.join(sides)}->{shown}", *(array for array, _ in operands))
    shape = [sizes[leg] for leg in legs]
    return np.broadcast_to(value.reshape([sizes[leg] if leg in letters else 1 for leg in legs]), shape)


def holds(network: Network, core: Core, port: Port) -> None:
    """The core times its environment is the output, and the environment times a cotangent the gradient."""
    arrays = random_arrays(network)
    environment = tg.environment(network, core.name, port.name)
    assert tg.parse(tg.format(environment)) == environment
    assert core.name not in environment.sources()
    given = {c.name: arrays[c.name] for c in environment.cores if c.role != "const"}
    tensor, legs = unfused(environment, given, environment.outputs[0])
    own = [f"{core.name}.{leg.name}" if f"{core.name}.{leg.name}" in legs else leg.name for leg in core.legs]
    sizes = extents(network, arrays)
    sizes |= {name: sizes[leg.name] for name, leg in zip(own, core.legs, strict=True)}
    output, out = unfused(network, arrays, port)
    value = arrays[core.name].reshape([sizes[name] for name in own])
    rest, _ = unfused(network, {**arrays, core.name: 0 * arrays[core.name]}, port)
    close(contract([(tensor, legs), (value, own)], out, sizes), output - rest)
    alone = replace(network, outputs=(port,))
    cotangent = np.random.default_rng(1).normal(size=output.shape)
    fused = cotangent.reshape(np.shape(tg.evaluate(alone, arrays)))
    gradient = tg.gradients(alone, arrays, fused)[core.name].reshape(value.shape)
    close(contract([(cotangent, out), (tensor, legs)], own, sizes), gradient)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * max(1.0, np.abs(expected).max(initial=0.0)))


def check_every_core(network: Network) -> None:
    """Check the laws for each core that an output is linear in, and that every other core is refused."""
    for port in network.outputs:
        needed = drop_unused(replace(network, outputs=(port,)))
        for core in network.cores:
            degree = degrees(needed, core.name)[port.name]
            if degree == 1 and core.role != "const":
                try:
                    tg.environment(network, core.name, port.name)
                except tg.NetworkError as error:
                    if f"which only {core.name!r} determines" not in str(error):
                        raise
                else:
                    holds(network, core, port)
            elif degree != 1:
                with pytest.raises(tg.NetworkError):
                    tg.environment(network, core.name, port.name)


@settings(max_examples=25)
@given(networks(linear=True))
def test_the_core_times_its_environment_is_the_output_of_random_networks(network: Network):
    check_every_core(network)


@settings(max_examples=15)
@given(networks())
def test_a_core_under_a_function_has_no_environment(network: Network):
    check_every_core(network)


@pytest.mark.slow
@settings(max_examples=500)
@given(networks(linear=True))
def test_the_core_times_its_environment_is_the_output_of_many_random_networks(network: Network):
    check_every_core(network)


@pytest.mark.parametrize("name", TABLE)
def test_the_core_times_its_environment_is_the_output_of_each_feature(name: str):
    check_every_core(TABLE[name])


@pytest.mark.parametrize("name", tg.families.FAMILIES)
def test_the_environment_of_the_input_is_the_weight(name: str):
    family = tg.families.FAMILIES[name]
    options = {"graph": {"edges": ((1, 2),)}}.get(name, {})
    sites = 4 if family.is_binary else None
    rows, columns = family.choose_modes(16, 16, sites)
    network = family(rows, columns, **options)
    if family.is_map:
        with pytest.raises(tg.NetworkError, match="is applied to"):
            tg.environment(network, "x")
        return
    weight, dense = tg.environment(network, "x"), family.weight(rows, columns, **options)
    assert not weight.inputs
    assert [core.name for core in weight.cores if core.role == "param"] == [core.name for core in dense.cores]
    arrays = random_arrays(dense)
    close(tg.evaluate(weight, arrays), tg.evaluate(dense, arrays))
    for core in dense.cores:
        if degrees(dense, core.name)[dense.outputs[0].name] == 1 and core.role != "const":
            holds(dense, core, dense.outputs[0])


def test_it_is_the_jacobian_that_autograd_gives():
    layer = tg.families.mpo((2, 3), (3, 2), bond=2)
    module = tg.compile(layer, dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64)
    weight = tg.compile(tg.environment(layer, "x"), dtype=torch.float64)
    weight.load_state_dict(module.state_dict())
    jacobian = torch.autograd.functional.jacobian(lambda row: module(row[None])[0], x[0])
    torch.testing.assert_close(weight(), jacobian)
    torch.testing.assert_close(module(x), x @ weight().T)


def test_a_convolution_by_its_signal_is_a_toeplitz_matrix():
    network = tg.parse("""network conv {
      size batch
      size length = 5
      input x[batch, l:length]
      param w[k:3]
      y[batch, p:length] = x[batch, p + k - 1] * w
      output y[batch, p]
    }""")
    matrix = tg.evaluate(tg.environment(network, "x"), {"w": np.array([1.0, 2.0, 3.0])})
    np.testing.assert_array_equal(matrix, np.diag([2.0] * 5) + np.diag([1.0] * 4, -1) + np.diag([3.0] * 4, 1))


def test_a_leg_of_another_meaning_gets_another_name():
    network = tg.parse("network other { param g[i:3]; param u[i]; index j: 3; y[i] = u * g[j]; output y[i] }")
    environment = tg.environment(network, "g")
    assert [leg.name for leg in environment.outputs[0].legs] == ["i", "g.i"]


def test_a_chain_of_many_results_is_taken_apart():
    b = tg.Builder("chain")
    legs = b.indices("i{0..400}", 2)
    h = b.param("g0", legs[0], legs[1])
    for k in range(1, 400):
        h = b.equation(f"h{k}", (legs[0], legs[k + 1]), h * b.param(f"g{k}", legs[k], legs[k + 1]))
    b.output(h, legs[0], legs[400])
    environment = tg.environment(b.build(), "g200")
    assert [leg.name for leg in environment.outputs[0].legs] == ["i0", "i400", "i200", "i201"]
    assert len(environment.cores) == 399


PLAIN = """network plain {
  size batch, length
  input x[batch, l:length]
  param w[k:3]
  param v[k]
  h[batch, p:length] = x[batch, p + k - 1] * w
  z[batch, p] = tanh(h)
  y[batch] = h * z
  output h[batch, p]
  output y[batch]
}"""


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("u", "h", "there is no core 'u' here\n  define the core before it is used"),
        ("z", "h", "'z' is a result\n  give a core: x, w, v"),
        ("w", None, "plain has 2 outputs\n  choose one: output='h'"),
        ("w", "q", "plain has no output 'q'\n  its outputs: h, y"),
        ("v", "h", "'h' does not depend on 'v'\n  its environment would be zero"),
        (
            "w",
            "y",
            "tanh is applied to 'z', which depends on 'w'\n"
            "  an environment is taken of a core that the output is linear in: 'w' is not one",
        ),
        (
            "x",
            "h",
            "the environment of 'x' has the run-time size 'length', which only 'x' determines\n"
            "  give the size a value: size length = 16",
        ),
    ],
)
def test_what_has_no_environment_is_refused(name: str, output: str | None, message: str):
    with pytest.raises(tg.NetworkError) as error:
        tg.environment(tg.parse(PLAIN), name, output)
    assert str(error.value) == message


def test_a_product_of_two_factors_that_depend_on_the_core_is_refused():
    network = tg.parse("""network twice {
      param g[i:2, j:2]
      h[i, k:2] = g * g[j, k]
      y[i] = h
      output y[i]
    }""")
    with pytest.raises(tg.NetworkError) as error:
        tg.environment(network, "g")
    hint = "an environment is taken of a core that the output is linear in: 'g' is not one"
    assert str(error.value) == f"'h' multiplies 'g' twice\n  {hint}"
    network = tg.parse("""network twice {
      param g[i:2, j:2]
      h[i] = g
      y[j] = h * g
      output y[j]
    }""")
    with pytest.raises(tg.NetworkError) as error:
        tg.environment(network, "g")
    assert str(error.value) == f"'y' multiplies 'h' by 'g', and both depend on 'g'\n  {hint}"
