"""The text and the builder: every spec, one example for each rule of meaning, and the round trip."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import sympy

from tngraph.errors import NetworkError
from tngraph.language.builder import Builder
from tngraph.language.network import Core, Index, Init, Network, Read
from tngraph.language.reference import evaluate
from tngraph.language.sizes import symbol
from tngraph.language.text.format import format_network, format_size
from tngraph.language.text.parsing import load, parse

SPECS = Path(__file__).parents[1] / "examples" / "specs"
EVERY_SPEC = sorted(SPECS.glob("*.tn"))
SMALL = "input x[i:2]\ny[] = x\noutput y[]"


def network(body: str, **sizes: int) -> Network:
    return parse(f"network n {{\n{body}\n}}", sizes=sizes)


def index(net: Network, name: str) -> Index:
    return next(i for i in net.indices() if i.name == name)


def core(net: Network, name: str) -> Core:
    return next(c for c in net.cores if c.name == name)


@pytest.mark.parametrize("path", EVERY_SPEC, ids=lambda path: path.stem)
def test_every_spec_parses_and_its_text_parses_back(path: Path) -> None:
    net = load(path)
    text = format_network(net)
    assert net.name == path.stem
    assert parse(text) == net
    assert format_network(parse(text)) == text
    assert pickle.loads(pickle.dumps(net)) == net


def test_no_name_keeps_its_place_in_the_file() -> None:
    net = load(SPECS / "quanta_adapter.tn")
    names = [net.name, *(s.name for s in net.sizes), *(i.name for i in net.indices()), *net.sources()]
    names += [access.source for e in net.equations for term in e.terms for access in term.accesses]
    names += [c.init.kind for c in net.cores if c.init] + [port.name for port in (*net.inputs, *net.outputs)]
    assert {type(name) for name in names} == {str}


def test_the_first_spec_in_python_is_the_same_network() -> None:
    b = Builder("fc2_mpo")
    batch, bond = b.size("batch"), b.size("D", 4)
    n = b.index("batch", batch)
    i, o, r = b.indices("i{1..4}", 4, 7, 7, 4), b.indices("o{1..4}", 4), b.indices("b{1..3}", bond)
    x = b.input("x", n, i)
    w1 = b.param("w1", i[0], o[0], r[0])
    w2 = b.param("w2", r[0], i[1], o[1], r[1])
    w3 = b.param("w3", r[1], i[2], o[2], r[2])
    w4 = b.param("w4", r[2], i[3], o[3])
    bias = b.param("bias", *o)
    y = b.equation("y", (n, *o), x * w1 * w2 * w3 * w4 + bias, function="relu")
    b.output(y, n, o)
    assert b.build() == load(SPECS / "fc2_mpo.tn")


def test_a_convolution_in_python_is_the_same_network() -> None:
    b = Builder("conv_rtk")
    n, height, width = (
        b.index(name, b.size(size))
        for name, size in zip(("batch", "H", "W"), ("batch", "height", "width"), strict=True)
    )
    rank = b.size("R", 4)
    s, p, q, t = (
        b.indices(f"{stem}1, {stem}2", size) for stem, size in (("s", 8), ("p", rank), ("q", rank), ("t", 16))
    )
    kh, kw = b.indices("kh, kw", 3)
    h, w = b.index("h"), b.index("w")
    x = b.input("x", n, s, height, width)
    u = [b.param(f"u{k + 1}", s[k], p[k]) for k in range(2)]
    middle = b.param("core", *p, kh, kw, *q)
    v = [b.param(f"v{k + 1}", q[k], t[k]) for k in range(2)]
    read = x[n, s[0], s[1], 2 * h + kh - 1, 2 * w + kw - 1]
    y = b.equation("y", (n, *t, h, w), read * u[0] * u[1] * middle * v[0] * v[1])
    b.output(y, n, t, h, w)
    assert b.build() == load(SPECS / "conv_rtk.tn")


def test_a_tied_ring_and_an_adapter_in_python() -> None:
    b = Builder("ring_tied")
    n = b.index("batch", b.size("batch"))
    bond = b.size("D", 3)
    i, o, r = b.indices("i{1..6}", 2), b.indices("o{1..6}", 2), b.indices("b{1..6}", bond)
    x = b.input("x", n, *i)
    g = b.param("g", b.index("left", bond), b.index("in_", 2), b.index("out", 2), b.index("right", bond))
    product = x
    for k in range(6):
        product = product * g[r[k], i[k], o[k], r[(k + 1) % 6]]
    b.output(b.equation("y", (n, *o), product), n, *o)
    assert b.build() == load(SPECS / "ring_tied.tn")


def test_signs_numbers_consts_and_buffers_in_python_and_text() -> None:
    b = Builder("n")
    i, j = b.index("i", 3), b.index("j", 3)
    x, w = b.input("x", i), b.buffer("w", i, j)
    d, e = b.const("d", i, j, kind="delta"), b.const("e", j, kind=("basis", 2))
    p = b.param("p", j, init=("normal", 0.02))
    b.output(b.equation("y", (j,), 2.0 * x * w - x * d + -(x * d * e * p), function=("leaky_relu", 0.1)), j)
    assert b.build() == network(
        """input x[i:3]; buffer w[i, j:3]; const d[i, j] = delta; const e[j] = basis(2); param p[j] = normal(0.02)
        y[j] = leaky_relu(0.1)(2.0 * x * w - x * d - x * d * e * p); output y[j]"""
    )


def test_an_empty_group_is_an_axis_of_size_1_in_python_and_text() -> None:
    b = Builder("n")
    n, i = b.index("batch", b.size("batch")), b.index("i", 3)
    x, s, w = b.input("x", (), n, (i,)), b.input("s"), b.param("w", i)
    b.output(b.equation("y", (n,), x * w * s), n, ())
    b.output(b.equation("t", (), s * s), ())
    net = b.build()
    assert net == network(
        """size batch; input x[(), batch, (i:3)]; input s[]; param w[i]
        y[batch] = x * w * s; t[] = s * s; output y[batch, ()]; output t[(  # nothing
        )]"""
    )
    assert parse(format_network(net)) == net
    y, t = evaluate(net, {"x": [[[1, 2, 3], [4, 5, 6]]], "s": 2, "w": [1, 10, 100]})
    assert y.tolist() == [[642], [1308]]
    assert t.tolist() == [4]


def test_loops_and_products_over_nothing() -> None:
    assert network("input x[i:2]; for k in 1..0 { param w{k}[i] }; y[] = x; output y[()]") == network(
        "input x[i:2]; y[] = x; output y[()]"
    )


def test_a_size_that_bounds_a_loop_is_replaced_by_its_value() -> None:
    body = "size m = 2, k = m + 1, D = m; input x[i{1..k}: D]; y[] = x; output y[]"
    net = network(body)
    assert [leg.name for leg in net.inputs[0].legs] == ["i1", "i2", "i3"]
    assert [(size.name, size.value) for size in net.sizes] == [("D", 2)]
    assert len(network(body, m=3).inputs[0].legs) == 4
    assert len(network(body, k=1).inputs[0].legs) == 1


def test_a_derived_size_keeps_its_symbol_and_follows_an_override() -> None:
    net = network("size D = 4, E = 2*D\ninput x[i:E]\ny[] = x\noutput y[]", D=8)
    assert [(size.name, size.value) for size in net.sizes] == [("D", 8), ("E", 2 * symbol("D"))]
    assert index(net, "i").size == symbol("E")


def test_a_size_may_derive_from_a_runtime_size() -> None:
    net = network("size height; size half = height // 2\ninput x[H:height]\nindex h: half\ny[h] = x[2*h]\noutput y[h]")
    assert net.sizes[1].value == sympy.floor(symbol("height") / 2)
    assert net.runtime_sizes() == ("height",)


def test_a_fused_input_axis_binds_what_is_not_bound_elsewhere() -> None:
    net = network("size batch, length\ninput x[(batch, length)]\ninput z[batch]\ny[] = x * z\noutput y[]")
    assert net.runtime_sizes() == ("batch", "length")


@pytest.mark.parametrize(
    ("read", "size"),
    [
        ("h + k", "height - 2"),
        ("h + k - 1", "height"),
        ("2*h + k - 1", "(height - 1)//2 + 1"),
        ("h + 2*k", "height - 4"),
        ("h - k + 1", "height"),
        ("h - k + 2", "height - 2"),
        ("4*h", "(height - 1)//4 + 1"),
        ("h", "height"),
    ],
)
def test_the_number_of_windows(read: str, size: str) -> None:
    net = network(f"size height\nparam w[k:3]\ninput x[H:height]\ny[h] = x[{read}] * w\noutput y[h]")
    assert format_size(index(net, "h").size) == size


def test_positions_are_put_together() -> None:
    net = network("size N = 5\ninput x[n:N]\nindex h, g: 2\ny[h] = x[h + g - g + h + 1 - N + 4]\noutput y[h]")
    read = net.equations[0].terms[0].accesses[0].legs[0]
    assert isinstance(read, Read)
    assert read.terms == ((2, index(net, "h")),)
    assert read.offset == 5 - symbol("N")


def test_a_constant_position_and_a_plain_one() -> None:
    net = network("input x[batch:3, i:4]\nfor k in 0..1 { y{k}[batch] = x[batch, k] }\noutput y1[batch]")
    first, second = net.equations[1].terms[0].accesses[0].legs
    assert first == index(net, "batch")
    assert isinstance(second, Read)
    assert (second.terms, second.offset) == ((), 1)


def test_a_toeplitz_and_a_circulant_matrix() -> None:
    net = network(
        """size n = 4
        input x[i:n]
        param c[d:2*n - 1]
        param e[f:n]
        y[o:n] = x * c[o - i + n - 1] + x * e[(o - i) % n]
        output y[o]"""
    )
    toeplitz, circulant = (term.accesses[1].legs[0] for term in net.equations[0].terms)
    assert isinstance(toeplitz, Read)
    assert isinstance(circulant, Read)
    assert toeplitz.offset == symbol("n") - 1
    assert circulant.wrap
    assert not toeplitz.wrap


def test_loops_nest_and_their_variables_shadow_sizes() -> None:
    net = network(
        """size k = 9
        for k in 1..2 { for j in k..2 { param w{k}_{j}[i{k}:k + 1] } }
        for k in 2..1 { param never[nowhere] }
        """
        + SMALL
    )
    assert [c.name for c in net.cores] == ["w1_1", "w1_2", "w2_2", "x"]
    assert index(net, "i2").size == 3


def test_a_family_of_indices_takes_one_size_or_each_its_own() -> None:
    net = network("size D = 3\ninput x[i{1..3}: 2, D, D + 1, j{1..2}: D, z:5]\ny[] = x\noutput y[]")
    assert [str(leg.size) for leg in net.inputs[0].legs] == ["2", "D", "D + 1", "D", "D", "5"]


def test_keywords_are_names_where_nothing_else_can_stand() -> None:
    net = network("size size = 2\ninput input[index:size, in:2, for:3]\ny[in] = relu(input)\noutput y[in]")
    assert [leg.name for leg in net.inputs[0].legs] == ["index", "in", "for"]


def test_comments_semicolons_and_lines_inside_brackets() -> None:
    net = network("# a comment; with [ brackets\n;; input x[i:2, # one\n  j:3\n]; y[] = x # {\n\n;output y[]")
    assert len(net.inputs[0].legs) == 2


def test_the_last_network_is_taken_unless_one_is_named() -> None:
    text = f"network a {{ {SMALL} }}\nnetwork b {{ size D = 2; {SMALL} }}"
    assert parse(text).name == "b"
    assert parse(text, "a").name == "a"
    assert parse(text, "b", {"D": 5}).sizes[0].value == 5


def test_inits_are_read_with_their_numbers() -> None:
    net = network(
        "size k = 3\nparam u[i:2] = uniform(-0.5, 1e-3)\nparam z[i] = zeros\nconst b[j:4] = basis(k)\n" + SMALL
    )
    assert core(net, "u").init == Init("uniform", (-0.5, 0.001))
    assert core(net, "z").init == Init("zeros")
    assert core(net, "b").init == Init("basis", (3,))


@pytest.mark.parametrize(
    "size",
    [
        "D", "2*D + 1", "D**2 - E", "(h - 1)//2", "(h + 1)//E + 1", "-(D//3) + E", "2**D", "(D + 1)**2*E", "h % 4 + 1",
        "(D - E % 3) % 5", "min(D, 3*E, h)", "max(D//2, 1)", "D*D**E", "2*(D//2)", "(D//2)//E", "7//2 + D",
        "h*(h - 1)//2", "2*(D + 1)*E", "(2**D)**2", "-(-D)",
    ],
)  # fmt: skip
def test_sizes_are_printed_as_they_are_read(size: str) -> None:
    body = "size D = 7, E = 3, h\ninput x[H:h, i:{}]\ny[] = x\noutput y[]"
    net = network(body.format(size))
    assert parse(format_network(net)) == net
    assert network(body.format(format_size(index(net, "i").size))) == net


def test_a_size_whose_name_is_also_an_index_keeps_its_meaning_in_a_position() -> None:
    b = Builder("n")
    size = b.size("m", 4)
    m, h = b.index("m", 3), b.index("h", 2)
    x, w = b.input("x", b.index("long", 9)), b.param("w", m)
    b.output(b.equation("y", (h, m), x[h + m + size - 2] * w), h, m)
    net = b.build()
    assert "x[h + m + min(m) - 2]" in format_network(net)
    assert parse(format_network(net)) == net


def test_an_index_of_accesses_alone_is_declared_by_its_own_statement() -> None:
    b = Builder("n")
    i, s = b.index("i", 4), b.index("s", 2)
    x, w = b.input("x", i), b.const("w", b.index("k", 2), kind="ones")
    b.output(b.equation("y", (), x[2 * s] * w[s] - 1e-05 * x[3 - s]))
    net = b.build()
    assert format_network(net) == (
        "network n {\n  index s: 2\n\n  input x[i:4]\n  const w[k:2] = ones\n\n"
        "  y[] = x[2*s] * w[s] - 1e-05 * x[-s + 3]\n\n  output y[]\n}\n"
    )
    assert parse(format_network(net)) == net
    assert i.plain == "i"


def test_a_broken_builder_call_leaves_the_rest_usable() -> None:
    b = Builder("n")
    i = b.index("i", 2)
    x = b.input("x", i)
    with pytest.raises(NetworkError, match="the name 'x' is defined twice"):
        b.param("x", i)
    b.output(b.equation("y", (i,), x), i)
    assert len(b.build().cores) == 1


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda b, i, x: x * (x + x), "a sum is multiplied"),
        (lambda b, i, x: x + 1, "1 is added to a tensor"),
        (lambda b, i, x: x * "w", "a tensor is multiplied by 'w'"),
        (lambda b, i, x: i * i, "the index 'i' is multiplied by the index 'i'"),
        (lambda b, i, x: i // 2, "the index 'i' is divided or raised"),
        (lambda b, i, x: (i % 2) + 1, "a cyclic position is changed after its %"),
        (lambda b, i, x: x[0.5], "0.5 is not an integer"),
        (lambda b, i, x: b.index("j", 0), "the index 'j' has size 0"),
        (lambda b, i, x: b.index("j", symbol("Q")), "there is no size 'Q'"),
        (lambda b, i, x: b.index("two words", 2), "'two words' cannot name an index"),
        (lambda b, i, x: b.param("w", b.index("unheard")), "there is no index 'unheard' here"),
        (lambda b, i, x: b.equation("y", (), float("nan") * x), "nan at 'y' is not a finite number"),
        (lambda b, i, x: b.equation("y", (), x, function="gelo"), "there is no pointwise function 'gelo'"),
        (lambda b, i, x: b.tensor("z"), "there is no tensor 'z' here"),
        (lambda b, i, x: b.size("D", sympy.Rational(1, 2)), "1/2 is not an integer"),
        (lambda b, i, x: b.build(), "the network 'n' has no output"),
    ],
)
def test_the_builder_refuses_with_the_users_names(attempt: object, message: str) -> None:
    b = Builder("n")
    i = b.index("i", 2)
    x = b.input("x", i)
    with pytest.raises(NetworkError) as caught:
        attempt(b, i, x)  # type: ignore[operator]
    assert caught.value.message == message


def test_dotted_names() -> None:
    net = network("""
        size n = 3
        input x.in[i:4]
        index W.b{0..n}: 2
        for k in 1..n { param W{k}.g{k}[W.b{k-1}, i]; param V.g{k}.c[W.b{k-1}, W.b{k}] }
        V[W.b0,W.b{n}] = prod(k in 1..n: V.g{k}.c)
        size.y[W.b{0..0}] = x.in[i] * W{1..1}.g1 * V
        for.z[]=size.y * size.y
        output for.z[]""")
    assert [core.name for core in net.cores][-2:] == ["W3.g3", "V.g3.c"]
    assert [index.name for index in net.indices()] == ["i", "W.b0", "W.b1", "W.b2", "W.b3"]
    assert [equation.name for equation in net.equations] == ["V", "size.y", "for.z"]
    assert parse(format_network(net)) == net
    b = Builder("n")
    i = b.indices("W.b{1..2}.c, a.b", 2)
    assert [leg.plain for leg in i] == ["W.b1.c", "W.b2.c", "a.b"]
    b.param("W", i[0])
    with pytest.raises(NetworkError, match="needs a folder of this name"):
        b.buffer("W.f", i[0])


def test_words_of_the_language_are_names_of_tensors() -> None:
    words = ("size", "index", "input", "output", "param", "buffer", "const", "for", "network", "prod", "in")
    lines = [f"{word}[i] = {before}" for before, word in pairwise(("x", *words))]
    net = network("\n".join(("input x[i:2]", *lines, "y[] = prod * prod(k in 1..2: prod) * size", "output y[]")))
    assert [equation.name for equation in net.equations] == [*words, "y"]
    assert len(net.equations[-1].terms[0].accesses) == 4
    assert parse(format_network(net)) == net


def test_tensors_are_summed_and_not_iterated_over() -> None:
    builder = Builder("n")
    x = builder.input("x", builder.index("i", 3))
    assert sum([x, x]) == x + x
    with pytest.raises(TypeError):
        list(x)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        x in x  # type: ignore[operator]  # noqa: B015
    attempts = (lambda: 1 + x, lambda: x + 1, lambda: x - 1, lambda: 1 - x, lambda: sum([x], 2))
    for attempt in attempts:
        with pytest.raises(NetworkError, match="is added to a tensor"):
            attempt()  # type: ignore[no-untyped-call]
    for attempt in (lambda: x / 2, lambda: 2 / x, lambda: x**2, lambda: 2**x, lambda: x // 2, lambda: x % 2):
        with pytest.raises(NetworkError, match="a tensor is divided or raised"):
            attempt()  # type: ignore[no-untyped-call]
