"""Printed source: goldens, names that would clash, arguments, checks, and how params start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tngraph as tg
from tngraph.language.functions import ARITY
from tngraph.language.sizes import symbol
from tngraph.lowering import initialise
from tngraph.lowering.calls import FUNCTIONS
from tngraph.lowering.names import MODULE_ATTRIBUTES

SPECS = Path("examples/specs")
GOLDEN = Path(__file__).parent / "golden"
PRINTED = ["born_machine", "conv_cp", "conv_rtk", "fc2_mpo", "fc_ntt", "quanta_adapter", "ring_tied"]


@pytest.mark.parametrize("name", PRINTED)
def test_the_printed_file_is_the_golden_one(name: str):
    """Update with: TNGRAPH_UPDATE_GOLDEN=1 make test."""
    check_golden(tg.plan(tg.load(SPECS / f"{name}.tn")), name)


def test_the_printed_file_for_serving_is_the_golden_one():
    check_golden(tg.plan(tg.load(SPECS / "fc2_mpo.tn"), mode="serve"), "fc2_mpo_served")


def check_golden(plan: tg.Plan, name: str) -> None:
    text, golden = tg.emit(plan), GOLDEN / f"{name}.py"
    if os.environ.get("TNGRAPH_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("name", PRINTED)
def test_the_printed_file_stands_alone(name: str, tmp_path: Path):
    """It imports torch and math only, and builds its class of default sizes."""
    file = tmp_path / "printed.py"
    file.write_text(tg.emit(tg.plan(tg.load(SPECS / f"{name}.tn"))))
    imported = [line for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert set(imported) <= {"import math", "import torch", "import torch.nn.functional as F", "from torch import nn"}
    space: dict = {}
    exec(compile(file.read_text(), str(file), "exec"), space)
    assert isinstance(space[name](), nn.Module)


def test_one_file_builds_any_bond_dimension():
    network = tg.load(SPECS / "fc2_mpo.tn")
    layer = tg.compile(network)
    wide = type(layer)(D=7)
    assert wide.w2.shape == (7, 7, 4, 7)
    x = torch.randn(3, 784)
    arrays = {name: p.detach().numpy() for name, p in wide.named_parameters()} | {"x": x.numpy()}
    np.testing.assert_allclose(wide(x).detach(), tg.evaluate(network, arrays, {"D": 7}), rtol=1e-3, atol=1e-5)
    assert wide.flops((3, 784)) == layer.plan.at(D=7, batch=3).flops
    assert wide.verify().is_equal


def test_a_plan_builds_modules_of_other_sizes():
    plan = tg.plan(tg.load(SPECS / "fc2_mpo.tn"), {"D": 4})
    assert tg.compile(plan, {"D": 6}).verify().is_equal
    assert tg.compile(plan, {"D": 6}).sizes() == {"D": 6}
    with pytest.raises(tg.SizeError, match="'batch' is a run-time size"):
        tg.compile(plan, {"batch": 3})


def test_shapes_that_do_not_fit_are_refused():
    layer = tg.compile(tg.load(SPECS / "fc2_mpo.tn"))
    with pytest.raises(ValueError, match=r"x has shape \(784,\), and takes \(batch, 784\)"):
        layer(torch.zeros(784))
    with pytest.raises(ValueError, match=r"axis 1 of x has size 780, .* i1, i2, i3, i4 have 784 = 4 \* 7 \* 7 \* 4"):
        layer(torch.zeros(2, 780))
    with pytest.raises(ValueError, match="the size D is 0; a size is at least 1"):
        type(layer)(D=0)


def test_a_run_time_size_in_a_group_has_to_divide_its_axis():
    text = "network n { size m; input x[(a:4, b:m)]; param w[a]; y[b] = x * w; output y[b] }"
    layer = tg.compile(tg.parse(text))
    assert layer(torch.zeros(12)).shape == (3,)
    with pytest.raises(ValueError, match="axis 0 of x has size 13"):
        layer(torch.zeros(13))


def test_an_input_too_small_for_a_window_is_refused():
    text = "network n { size h; input x[p:h]; param w[k:3]; y[q] = x[q + k] * w; output y[q] }"
    with pytest.raises(ValueError, match="the index q = h - 2 has size 0"):
        tg.compile(tg.parse(text))(torch.zeros(2))


@pytest.mark.parametrize("term", ["0 * w * x", "1e-320 * w * x", "w * x * v"])
def test_every_factor_leaves_params_to_draw(term: str):
    text = f"network n {{ input x[i:4]; param w[i]; param v[i] = normal(1e200); y[] = {term}; output y[] }}"
    assert tg.compile(tg.parse(text)).w.isfinite().all()


def test_a_moment_with_a_fraction_in_it_is_printed():
    core = "param p[j:D, k:1] = near_eye(0.1)"
    text = f"network n {{ size D = 2; input x[]; param a[]; {core}; y[] = x * a * p; output y[] }}"
    assert "math.log(100) - math.log(3*D + 300)" in tg.emit(tg.parse(text))


@pytest.mark.parametrize("init", ["normal(-1)", "uniform(1, -1)"])
def test_an_initialisation_that_draws_nothing_is_an_error(init: str):
    with pytest.raises(tg.SpecError, match=r"negative standard deviation|is empty"):
        tg.parse(f"network n {{ input x[i:4]; param w[i] = {init}; y[] = x * w; output y[] }}")


def test_a_basis_vector_needs_its_entry():
    text = "network n { size D = 4; const e[i:D] = basis(3); input x[i]; y[] = e * x; output y[] }"
    with pytest.raises(tg.SizeError, match=r"the const 'e' = basis\(3\) has 2 entries, from 0"):
        tg.plan(tg.parse(text), {"D": 2})


def test_two_inputs_have_to_agree():
    text = "network n { size m; input x[a:m]; input z[a]; y[] = x * z; output y[] }"
    layer = tg.compile(tg.parse(text))
    with pytest.raises(ValueError, match="axis 0 of z has size 4, and its indices a have 3"):
        layer(torch.zeros(3), torch.zeros(4))


def test_the_blocked_attributes_are_those_of_a_module():
    """Every attribute of nn.Module is either escaped or dunder, whatever this version of torch has."""
    own = {name for name in {*dir(nn.Module()), *vars(nn.Module())} if not name.startswith("__")}
    assert own <= MODULE_ATTRIBUTES


def test_every_function_of_the_language_is_printed():
    assert FUNCTIONS.keys() == ARITY.keys()


CLASHES = [
    "self", "torch", "nn", "F", "math", "forward", "training", "parameters", "state_dict", "plan", "flops", "verify",
    "class", "lambda", "None", "True", "import", "def", "__class__", "__init__", "__dict__", "__debug__", "_parameters",
    "t1", "t2", "x0", "device", "dtype", "super", "max", "ValueError", "print", "exec", "weight", "batch", "D",
]  # fmt: skip


@pytest.mark.parametrize("name", CLASHES)
def test_a_name_that_clashes_with_python_works_everywhere(name: str):
    """The same name for the network, an input, a size, an index, params of two networks, and a result."""
    text = f"""network {name} {{
      size {name}, rows
      size E = 3
      input {name}[{name}:{name}, r:rows, i:4]
      param {name}_p[i, e:E]
      y[{name}, e] = relu({name} * {name}_p)
      output y[{name}, e]
    }}"""
    assert tg.compile(tg.parse(text)).verify().is_equal
    stored = f"""network n {{
      size {name} = 3
      input x[i:4, {name}:2]
      param {name}[i, e:{name}]
      buffer {name}_[e]
      {name}__[{name}, e] = x * {name} + 2 * {name}_
      output {name}__[{name}, e]
    }}"""
    layer = tg.compile(tg.parse(stored))
    assert layer.verify().is_equal
    assert len(layer.state_dict()) == 2


@pytest.mark.parametrize("name", CLASHES)
def test_a_dotted_name_that_clashes_with_python_works_everywhere(name: str):
    """The same name as every part of an input, of indices, of what is stored, of a result and of a folder."""
    text = f"""network n {{
      size rows
      size {name} = 3
      input {name}.{name}[{name}.r:rows, {name}.e:{name}, {name}.i:4]
      param {name}.{name}.{name}[{name}.i, {name}.e]
      param {name}_.{name}[{name}.i]
      buffer {name}.{name}.{name}_[{name}.e]
      const {name}.{name}_[{name}.e] = basis(1)
      {name}_{name}[{name}.r, {name}.e] = relu({name}.{name} * {name}.{name}.{name})
      {name}[{name}.r, {name}.e] = {name}_{name} * {name}.{name}.{name}_ + {name}.{name}_ * {name}_.{name}
      output {name}[{name}.r, {name}.e]
    }}"""
    layer = tg.compile(tg.parse(text))
    assert layer.verify().is_equal
    assert len(layer.state_dict()) == 3


def test_what_is_stored_under_dotted_names_lies_in_modules():
    layer = tg.compile(
        tg.parse("""network n {
      input x[i:2]
      param to.class.g1[i]; param to_.g1[i]; param W.to[i]; param W.to_[i]; buffer W.__f[i]; const W.c[i] = basis(1)
      W.forward[] = x * to.class.g1 * to_.g1
      y[] = W.forward * W.to * W.to_ * W.__f * W.c
      output y[]
    }""")
    )
    assert list(layer.state_dict()) == ["to_.class_.g1", "to__.g1", "W.to_", "W.to__", "W.x__f"]
    assert [name for name, _ in layer.named_buffers()] == ["W.x__f", "W.c"]
    assert layer.printed.attributes["to.class.g1"] == "to_.class_.g1"
    assert layer.verify().is_equal
    forward = layer.source.partition("def forward")[2].partition("def extra_repr")[0]
    looked_up = re.findall(r"(\w+) = self\.([\w.]+)\n", forward)
    assert looked_up == [("to_class", "to_.class_"), ("to_", "to__"), ("W", "W")]
    assert forward.count("self.") == len(looked_up)


OVERWRITING = {
    "y[b, j] = relu(x * w)": 1,
    "y[b, j] = tanh(x * w + c)": 1,
    "y[b, j] = gelu(x * w)": 0,  # a gradient that is found from the operand
    "y[b, j] = exp(x * w)": 0,  # mixed precision takes it in single precision
    "y[b, i] = relu(x)": 0,  # what is given is not written to
    "t[b, j] = tanh(x * w); y[b, j] = relu(t)": 1,  # tanh alone: its gradient is found from its value
    "t[b, j] = x * w; z[b, j] = relu(t); y[b, j] = z + t": 0,  # another reads it
    "t[b, j] = x * w; y[b, j] = relu(t); output t[b, j]": 0,
}


@pytest.mark.parametrize(("equations", "expected"), OVERWRITING.items())
def test_a_function_is_put_in_place_of_its_operand_where_nothing_else_needs_it(equations: str, expected: int):
    last = "i" if "y[b, i]" in equations else "j"
    layer = tg.compile(
        tg.parse(f"""network n {{ size batch; input x[b:batch, i:3]; param w[i, j:4]; param c[j]
          {equations}; output y[b, {last}] }}""")
    )
    assert layer.source.count("_(t") == expected
    assert layer.verify().is_equal
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer.double(), x)


def test_what_runs_once_more_finds_its_operand_as_it_was():
    network = tg.parse("""network n { size batch; input x[b:batch, i:3]
      param w[i, j:4]; param v[j, k:5]; param u[k, l:2]
      h[b, j] = relu(x * w); g[b, k] = relu(h * v); y[b, l] = g * u; output y[b, l] }""")
    points = tg.front(network, {"batch": 64}, mode="train").points
    assert len(points) > 1
    for point in points:
        assert tg.compile(point.plan).verify().is_equal


INJECTIONS = [
    "a'; import os; '", 'a"b', "a\nb", "a b", "a..b", "a.", ".a", "a[0]", "a()", "\u0430", "\uff41", "a\u200b", "é", "",
    "1a", "a-b",
    "\\", "__import__('os')", "a#b", "{a}", "x" * 129,
]  # fmt: skip


@pytest.mark.parametrize("name", INJECTIONS)
def test_no_name_becomes_python_by_any_door(name: str):
    with pytest.raises(tg.NetworkError):
        tg.parse(f"network n {{ size m; input {name}[i:m]; y[] = {name}; output y[] }}")
    for role in ("input", "param"):
        b = tg.Builder("n")
        with pytest.raises(tg.NetworkError):
            getattr(b, role)(name, b.index("i", 3))
    with pytest.raises(tg.NetworkError):
        tg.Builder(name).build()


def test_text_of_a_file_stays_text(tmp_path: Path):
    """A name in an error, a comment and a string literal never reaches the printed file."""
    text = 'network n { # """ + exec("boom")\n input x[i:2]\n y[] = x\n output y[] }'
    assert "boom" not in tg.emit(tg.plan(tg.parse(text)))


@pytest.mark.parametrize(
    ("text", "fan_in"),
    [
        ("input x[b:1, (i{1..3}: 6, 5, 4)]; index o{1..3}: 4; index r{1..2}: 6; param a[i1, o1, r1]; "
         "param c[r1, i2, o2, r2]; param d[r2, i3, o3]; y[b, o{1..3}] = x * a * c * d; output y[b, (o{1..3})]", 120),
        ("input x[b:1, s:16, H:9]; param a[s, r:40]; param k[r, u:3]; param c[r, t:32]; "
         "y[b, t, h:9] = x[b, s, h + u - 1] * a * k * c; output y[b, t, h]", 48),
        ("input x[b:1, i:200]; param w[i, o:50]; y[b, o] = x * w; output y[b, o]", 200),
        ("input x[b:1, i:100]; param u[i, r:30]; param v[r, o:50] = normal(0.3); y[b, o] = 0.5 * x * u * v; "
         "output y[b, o]", 100),
        ("input x[b:1, i:64]; param q[i, j:64] = orthogonal; param w[j, o:80]; y[b, o] = x * q * w; "
         "output y[b, o]", 64),
        ("input x[b:1, i:64]; param q[i, j:64] = near_eye(0.2); param s[j, p:64] = signs(0.3); "
         "param f[p, k:64] = fan_in(2*64); param e[k, l:64] = eye(-2); param w[l, o:80]; "
         "y[b, o] = x * q * s * f * e * w; output y[b, o]", 64),
    ],
)  # fmt: skip
def test_a_dense_entry_starts_with_the_variance_of_a_linear_layer(text: str, fan_in: int):
    """Entries of the dense weight, read off by an identity as input, over many draws: 1 / (3 fan_in)."""
    network = tg.parse(f"network n {{ {text} }}")
    layer = tg.compile(network, dtype=torch.float64)
    shape = [int(np.prod([int(i.size) for i in axis])) for axis in network.inputs[0].axes]
    moments = []
    torch.manual_seed(0)
    for _ in range(600):
        layer.reset_parameters()
        x = torch.zeros(shape, dtype=torch.float64)
        x[:, 0] = 1.0 if len(shape) == 2 else 0.0
        if len(shape) == 3:
            x[0, 0, 4] = 1.0
        out = layer(x).detach()
        moments.append((out[out != 0] ** 2).mean().item())
    assert np.mean(moments) == pytest.approx(1 / (3 * fan_in), rel=0.15)


def test_a_bias_starts_as_its_neighbours_fan_in_says():
    layer = tg.compile(tg.load(SPECS / "fc2_mpo.tn"))
    torch.manual_seed(0)
    draws = []
    for _ in range(20):
        layer.reset_parameters()
        draws.append(layer.bias.detach().clone())
    assert torch.stack(draws).var().item() == pytest.approx(1 / (3 * 784), rel=0.1)


KINDS = [
    "normal(0.5)", "uniform(-1.0, 3.0)", "zeros", "ones", "eye", "eye(-1)", "eye(0.5)", "orthogonal", "orthogonal(2)",
    "fan_in(2*D)", "near_eye(0.1)", "signs(0.3)",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["param", "buffer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_named_initialisation_is_what_it_says(kind: str, role: str, dtype: torch.dtype):
    core = f"{role} w[i, j, k, l] = {kind}"
    text = f"network n {{ size D = 4; input x[i:40, j:3, k:40, l:3]; {core}; y[] = x * w; output y[] }}"
    network = tg.parse(text)
    assert tg.parse(tg.format(network)) == network
    layer = tg.compile(network, {"D": 8}, dtype=dtype)
    w = layer.state_dict()["w"]
    matrix, identity = w.reshape(120, 120), torch.eye(120, dtype=dtype)
    square = w.abs().square().mean().item()
    if kind.startswith("uniform"):
        parts = torch.view_as_real(w) if dtype.is_complex else w
        assert -1.0 <= parts.min() < -0.9
        assert 2.9 < parts.max() <= 3.0
        square = parts.square().mean().item()
    elif kind.startswith("orthogonal"):
        factor = 2 if kind == "orthogonal(2)" else 1
        torch.testing.assert_close(matrix @ matrix.mH, factor**2 * identity, atol=1e-4, rtol=0)
    elif kind == "near_eye(0.1)":
        noise = matrix - identity
        assert noise.abs().square().mean().item() == pytest.approx(0.01, rel=0.05)
        assert noise.diagonal().mean().abs() < 0.05
    elif kind == "signs(0.3)":
        assert torch.equal(w.real.abs(), torch.full_like(w.real, 0.3))
        assert (w.real > 0).double().mean().item() == pytest.approx(0.5, abs=0.05)
    elif not kind.startswith(("normal", "fan_in")):
        factor = {"eye(-1)": -1, "eye(0.5)": 0.5}.get(kind, 1)
        expected = {"zeros": torch.zeros(120, 120), "ones": torch.ones(120, 120)}.get(kind, factor * identity)
        assert torch.equal(matrix, expected.to(dtype))
    moment = initialise._moment(network.sources()["w"])
    assert square == pytest.approx(0 if kind == "zeros" else float(moment.subs(symbol("D"), 8)), rel=0.05)
    layer.get_buffer("w").zero_() if role == "buffer" else layer.w.data.zero_()
    layer.reset_parameters()
    assert layer.state_dict()["w"].any() == (kind != "zeros")


def test_a_buffer_without_an_initialisation_is_left_alone():
    layer = tg.compile(tg.parse("network n { input x[i:3]; buffer w[i]; y[] = x * w; output y[] }"))
    assert not layer.w.any()
    layer.w.fill_(2)
    layer.reset_parameters()
    assert torch.equal(layer.w, torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("more", "product", "variance"),
    [
        ("const e[c:4] = basis(0); param w[i, o, c]", "w * e", 1 / 18),
        ("const e[c:4] = ones; param w[i, o, c]", "w * e", 1 / 72),
        ("buffer m[c:4] = normal(0.5); param w[i, o, c]", "w * m", 1 / 18),
        ("index r{1..2}:4; const e[r1, r2] = eye; param w[i, r1]; param v[r2, o]", "w * e * v", (1 / 72) ** 0.5),
        ("index r{1..3}:4; const e[r1, r2, r3] = delta; param w[i, r1]; param v[r2, r3, o]", "w * e * v", 1 / 72**0.5),
        ("buffer m[i, o]; param w[i, o]", "w * m", 1 / 18),
    ],
)
def test_what_is_stored_beside_params_counts_in_their_start(
    more: str, product: str, variance: float, monkeypatch: pytest.MonkeyPatch
):
    """By hand: 1/(3·6) = the number of terms that are not zero times their mean square, of six inputs."""
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, std: tensor.data.fill_(std))
    layer = tg.compile(tg.parse(f"network n {{ input x[i:6]; index o:3; {more}; y[o] = x * {product}; output y[o] }}"))
    assert [p.detach().flatten()[0].item() for p in layer.parameters()] == pytest.approx(
        [variance**0.5] * len(list(layer.parameters()))
    )


def test_a_fan_in_keeps_the_names_of_its_sizes():
    b = tg.Builder("n")
    size = b.size("D", 3)
    i, r = b.index("i", 4), b.index("r", size)
    x, w = b.input("x", i), b.param("w", i, r, init=("fan_in", 4 * size))
    v = b.buffer("v", r, init=("fan_in", 5))
    b.output(b.equation("y", (), x * w * v))
    network = b.build()
    text = "network n { size D = 3; input x[i:4]; param w[i, r:D] = fan_in(4*D); buffer v[r] = fan_in(5)"
    assert network == tg.parse(f"{text}; y[] = x * w * v; output y[] }}") == tg.parse(tg.format(network))
    lines = tg.emit(network).splitlines()
    assert "        nn.init.normal_(self.w, std=(4*D)**-0.5)" in lines
    assert "        nn.init.normal_(self.v, std=5**-0.5)" in lines
    for wrong in (0, 0.5, True, "D", size - 3, symbol("E")):
        with pytest.raises(tg.NetworkError):
            b.param(f"wrong{wrong}".translate(str.maketrans(".- ", "___")), i, init=("fan_in", wrong))


def test_a_fan_in_is_at_least_one_at_the_sizes_of_a_layer_too():
    text = "network n { size D = 3; input x[i:4]; param w[i] = fan_in(D - 2); y[] = x * w; output y[] }"
    assert tg.compile(tg.parse(text), {"D": 4}).verify().is_equal
    with pytest.raises(tg.SizeError, match="the fan-in D - 2 of 'w' is 0"):
        tg.compile(tg.plan(tg.parse(text)), {"D": 2})


def test_values_are_dropped_after_their_last_use():
    """In every method: what it makes and does not put out is deleted."""
    for name in PRINTED:
        for method in tg.emit(tg.plan(tg.load(SPECS / f"{name}.tn"))).split("    def ")[1:]:
            lines = [line.strip() for line in method.splitlines()]
            made = {line.split(" = ")[0] for line in lines if re.match(r"t\d+ = ", line)}
            dropped = {value for line in lines if line.startswith("del ") for value in line[4:].split(", ")}
            put_out = {word for line in lines if line.startswith("return ") for word in re.findall(r"\w+", line)}
            assert made <= dropped | put_out
            assert not dropped & put_out


def test_same_network_same_text_in_another_process():
    code = "import tngraph as tg; print(tg.emit(tg.plan(tg.load('examples/specs/quanta_adapter.tn'))), end='')"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1


SEVERAL = """network n { size batch
  input x[b:batch, i:8]; param a[i, r:30]; param c[r, j:6]; param d[j, s:10]; param e[s, o:9]
  h[b, j] = relu(x * a * c); y[b, o] = h * d * e; output y[b, o] }"""


def test_a_method_is_printed_per_tree_and_called_where_it_is_best():
    """`h` changes at 1440/372, `y` at 540/96; each is told by the end of its range alone."""
    lines = [line.strip() for line in tg.emit(tg.parse(SEVERAL)).splitlines()]
    chosen = [line.removeprefix("if not torch.compiler.is_exporting() and ") for line in lines if "batch <=" in line]
    assert chosen == ["batch <= 3:", "batch <= 5:"]
    assert [line.partition("(")[0] for line in lines if line.startswith("def _") and "__" not in line] == [
        *("def _h_1", "def _h_2", "def _y_1", "def _y_2"),
    ]
    docs = ["h for batch 1–3: ((x a) c).", "h for batch ≥ 4: (x (a c)).", "y for batch 1–5: ((h d) e)."]
    assert all(f'"""{doc}"""' in lines for doc in docs)


def test_a_tree_that_is_best_in_two_ranges_is_printed_once():
    """A plan may be put together so that one tree runs below and above another."""
    plan = tg.plan(tg.load(SPECS / "ring_tied.tn"))
    first, second, third = plan.regimes
    again = replace(plan, regimes=(first, second, replace(third, stages=first.stages)))
    text = tg.emit(again)
    test = "if not torch.compiler.is_exporting() and (batch <= 1 or batch >= 8)"
    assert f"        {test}:\n            y = self._y_1(x, batch)\n        else:\n" in text
    assert "y for batch 1, ≥ 8: " in text
    layer, x = tg.compile(again), torch.randn(9, *6 * [2])
    for batch in (1, 2, 7, 8, 9):
        torch.testing.assert_close(layer(x[:batch]), layer.at(batch=2)(x[:batch]))


def test_names_of_methods_and_of_what_chooses_them_are_free_of_clashes():
    text = """network n { size batch, m
      input order[b:batch, c:m, i:20]; param _y_1[i, r:12]; param _y_2[r, o:16]; input cost_1[c, r]
      y[b, c, o] = order * _y_1 * _y_2 * cost_1; output y[b, c, o] }"""
    plan = tg.plan(tg.parse(text))
    assert len(plan.regimes) > 1
    layer = tg.compile(plan)
    assert list(layer.state_dict()) == ["_y_1", "_y_2"]
    assert layer.verify().is_equal


COMPLEX = """network n {
  size batch
  input x[batch, i:3]
  param w[i, j:4]
  param v[j]
  h[batch, j] = abs(x * w)
  y[batch] = abs(h * v)
  z[batch, i] = sigmoid(x * w - 2 * h * w)
  q[batch] = square(x * w)
  e[batch] = sqrt(x * w)
  l[batch] = log(q * e)
  output y[batch]
  output h[j, batch]
  output z[batch, i]
  output l[batch]
}"""


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_functions_of_complex_numbers_are_verified(mode: str):
    layer = tg.compile(tg.parse(COMPLEX), dtype=torch.complex64, mode=mode)
    assert layer.verify().is_equal
    outputs = layer(torch.randn(2, 3, dtype=torch.complex64))
    assert {output.dtype for output in outputs} == {torch.complex64}
    assert not outputs[0].imag.any()
    assert layer.verify().checks[-2].what == "forward and backward"  # FLOPs, and no bytes
    assert tg.compile(tg.parse(COMPLEX.replace("log(", "abs(").replace("sqrt(", "abs("))).verify().is_equal


@pytest.mark.parametrize("function", ["relu", "gelu", "silu", "softplus", "leaky_relu(0.1)", "elu(1.0)"])
def test_a_function_without_a_complex_meaning_is_refused_before_it_runs(function: str):
    network = tg.parse(f"network n {{ input x[i:3]; h[i] = {function}(x); output h[i] }}")
    name = function.partition("(")[0]
    for what in (network, tg.plan(network)):
        with pytest.raises(tg.NetworkError) as caught:
            tg.compile(what, dtype=torch.complex64)
        assert str(caught.value) == (
            f"{name} is not a function of complex numbers, and 'h' is {name} of some\n"
            "  these are: tanh, sigmoid, exp, log, sqrt, abs, square, sin, cos"
        )
