"""Convolutions as they are printed: in groups, beside axes that stay, and channels mixed where they stand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

import tngraph as tg
from tests.test_memory import held_as_predicted
from tngraph.language.sizes import symbol


def network(body: str, output: str) -> tg.Network:
    return tg.parse(f"network n {{ {body}; output y[{output}] }}")


BATCH = "size batch; input x[batch, "
CASES = {
    "depthwise": (
        BATCH + "r:3, H:6]; param k[r, kh:3]; y[batch, r, h:6] = x[batch, r, h + kh - 1] * k",
        "batch, r, h",
        ["groups=3"],
    ),
    "a window first": (
        BATCH + "r:3, H:6]; param k[kh:3, r]; y[batch, r, h:6] = x[batch, r, h + kh - 1] * k",
        "batch, r, h",
        ["groups=3"],
    ),
    "several shared legs": (
        BATCH + "r:3, q:2, H:6]; param k[q, r, kh:3]; y[batch, q, r, h:6] = x[batch, r, q, h + kh - 1] * k",
        "batch, q, r, h",
        ["groups=6"],
    ),
    "channels in every group": (
        BATCH + "g:2, i:3, H:6, W:5]; param k[g, i, o:4, kh:3, kw:2]"
        "; y[batch, g, o, h:6, w:4] = x[batch, g, i, h + kh - 1, w + kw] * k",
        "batch, g, o, h, w",
        ["groups=2", "padding=(1, 0)"],
    ),
    "groups behind the channels": (
        BATCH + "i:3, g:2, H:6]; param k[i, kh:3, g, o:4]; y[batch, g, o, h:6] = x[batch, i, g, h + kh - 1] * k",
        "batch, g, o, h",
        ["groups=2"],
    ),
    "stride, dilation and a window turned around": (
        BATCH + "r:3, H:9]; param k[r, kh:3]; y[batch, r, h:4] = x[batch, r, 2*h - 2*kh + 3] * k",
        "batch, r, h",
        ["groups=3", "dilation=(2,)", "stride=(2,)"],
    ),
    "cyclic": (
        BATCH + "r:3, H:6]; param k[r, kh:3]; y[batch, r, h:6] = x[batch, r, (h + kh - 1) % 6] * k",
        "batch, r, h",
        ["groups=3", "index_select"],
    ),
    "axes one after another": (
        BATCH + "r:3, H:6, W:5]; param k[r, kh:3]; param l[r, kw:3]"
        "; y[batch, r, h:6, w:5] = x[batch, r, h + kh - 1, w + kw - 1] * k * l",
        "batch, r, h, w",
        ["F.conv2d(x, self.k.reshape(3, 1, 3, 1), padding=(1, 0), groups=3)", "padding=(0, 1), groups=3"],
    ),
    "three axes, two of which stay": (
        BATCH + "r:3, D:4, H:6, W:5]; param k[r, kd:3]; param l[r, kh:3]; param m[r, kw:3]"
        "; y[batch, r, d:4, h:6, w:5] = x[batch, r, d + kd - 1, h + kh - 1, w + kw - 1] * k * l * m",
        "batch, r, d, h, w",
        ["F.conv2d", "F.conv3d"],
    ),
    "channels mixed where they stand": (
        BATCH + "s:4, H:6, W:8]; param a[s, r:2]; param k[r, kh:3, kw:3, t:5]"
        "; y[batch, t, h:6, w:8] = x[batch, s, h + kh - 1, w + kw - 1] * a * k",
        "batch, t, h, w",
        ["torch.bmm(self.a.mT.expand(batch, 2, 4), x.reshape(batch, 4, 48))"],
    ),
    "channels mixed without a batch": (
        "input x[s:4, H:6, W:8]; param a[s, r:2]; param k[r, kh:3, kw:3, t:5]"
        "; y[t, h:6, w:8] = x[s, h + kh - 1, w + kw - 1] * a * k",
        "t, h, w",
        ["torch.mm(self.a.mT, x.reshape(4, 48))"],
    ),
    "channels that lie apart": (
        BATCH + "s:2, g:3, q:2, H:6, W:8]; param a[s, q, r:2]; param k[r, g, kh:3, kw:3, t:5]"
        "; y[batch, t, h:6, w:8] = x[batch, s, g, q, h + kh - 1, w + kw - 1] * a * k",
        "batch, t, h, w",
        [".expand(batch, 2, 4)"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_is_printed_so_and_is_right_to_the_last_byte(name: str):
    body, output, wanted = CASES[name]
    plan = tg.plan(network(body, output))
    text = " ".join(tg.emit(plan).split())
    assert [part for part in wanted if part not in text] == []
    assert tg.compile(plan).verify().is_equal
    sizes = [{"batch": 1}, {"batch": 3}] if "batch" in body else [{}]
    for numbers in sizes:
        for dtype in (torch.float32, torch.float64):
            held_as_predicted(plan, numbers, dtype)


def test_groups_that_are_as_many_as_a_call_says_are_windows():
    """Traced graphs would serve one number of groups only."""
    plan = tg.plan(
        network(
            "size batch; input x[batch, s:4, H:6]; input k[batch, s, kh:3, o:5]"
            "; y[batch, o, h:6] = x[batch, s, h + kh - 1] * k",
            "batch, o, h",
        )
    )
    text = tg.emit(plan)
    assert "unfold" in text
    assert "groups" not in text
    assert tg.compile(plan).verify().is_equal


def test_few_positions_are_one_matrix_product_with_those_of_all_samples():
    body, output, _ = CASES["channels mixed where they stand"]
    text = tg.emit(tg.plan(network(body.replace("H:6", "H:2").replace("h:6", "h:2"), output)))
    assert "torch.mm(" in text
    assert "expand" not in text


def test_a_folded_weight_is_kept_once_for_all_samples():
    body, output, _ = CASES["channels that lie apart"]
    layer = tg.compile(tg.plan(network(body, output), {"batch": 7}, mode="serve"))
    assert layer.verify().is_equal
    assert sum(buffer.numel() for buffer in layer.buffers()) <= sum(p.numel() for p in layer.parameters())


DIAGONALS = {
    "stays inside": ("x[L:3*n, d:n, q:2]", "j:3, i:n, q", "x[3*i + j, i, q]", 24 + 8 + 24, 24 + 8),
    "beyond the border": ("x[L:3*n, d:n, q:2]", "j:3, k:2, i:n, q", "x[j - k + 3*i, i, q]", 4 * 48, 48 + 8 + 6),
    "on a cyclic leg": ("x[d:n, q:2, L:n]", "i:n, j:2, q", "x[i, q, (i - j) % n]", 8 + 16 + 16, 8 + 16),
    "two reads of one index": ("x[L:n, d:n, q:2]", "i:n, j:2, k:3, q", "x[i + j, i - k, q]", 2 * 48 + 24, 16 + 24 + 5),
    "four legs": ("x[L:n, d:n, M:4, e:n]", "i:n, m:2, k:3", "x[2*i + 0, i, m + k, i]", 24 + 8 + 8, 8 + 8 + 1),
}
"""What is read of what, and the peak and the bytes saved for every entry along n [bytes]."""


@pytest.mark.parametrize("name", DIAGONALS)
def test_a_diagonal_that_is_read_at_positions_takes_what_it_has(name: str):
    """Positions of 8 bytes, a byte of each that may lie outside, and the result: linear in n, as the input is not."""
    legs_read, left, read, peak, saved = DIAGONALS[name]
    legs = ", ".join(leg.split(":")[0] for leg in left.split(","))
    plan = tg.plan(network(f"size n; input {legs_read}; y[{left}] = {read}", legs))
    low, high = plan.at(n=10**4), plan.at(n=10**4 + 1)
    assert (high.peak - low.peak, high.saved - low.saved) == (peak, saved)
    assert tg.compile(plan).verify().is_equal
    for count in (1, 2, 5):
        for dtype in (torch.float32, torch.float64):
            held_as_predicted(plan, {"n": count}, dtype)


def test_a_diagonal_is_taken_of_axes_that_arrive_as_one():
    plan = tg.plan(network("input x[p:3, (q:3, r:2), s:3]; y[a:3, b:3, c:2] = x[a, b, c, a]", "a, b, c"))
    assert (plan.peak, plan.saved) == (0, 0)  # a view
    assert tg.compile(plan).verify().is_equal


def test_what_a_diagonal_reads_beyond_the_border_is_zero_whatever_the_border_is():
    layer = tg.compile(network("size n; input x[L:n, d:n]; y[i:n, j:3] = x[i + j, i]", "i, j"))
    x = torch.full((3, 3), torch.inf)
    assert layer(x).tolist() == [[torch.inf] * 3, [torch.inf, torch.inf, 0], [torch.inf, 0, 0]]
    x.requires_grad_()
    layer(x)[2, 1:].sum().backward()
    assert x.grad.tolist() == [[0.0] * 3] * 3


def test_windows_of_a_fixed_size_are_views_of_as_many_positions_as_there_are():
    """The index that has as many values as a call says comes first, however the position is written."""
    plan = tg.plan(network("size n; input x[L:n + 2]; y[k:3, p:n] = x[k + p]", "p, k"))
    assert "unfold(0, 3, 1)" in tg.emit(plan)
    assert plan.peak == plan.saved == 0
    assert tg.compile(plan).verify().is_equal


@pytest.mark.slow
@given(st.data())
def test_any_legs_that_share_indices_are_read_as_they_say(data):
    size = st.sampled_from(["n", "n", "2", "3"])
    sizes = {name: data.draw(size) for name in "abc"}
    legs, own = [], []
    for number in range(data.draw(st.integers(2, 3))):
        names = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
        own.append(f"L{number}:{data.draw(st.sampled_from(['n', 'n', '3', '1', '4']))}")
        terms = " + ".join(f"{data.draw(st.sampled_from([1, 1, 2, 3, -1, -2]))}*{name}" for name in names)
        legs.append(f"{terms} + {data.draw(st.integers(-2, 2))}".replace("+ -", "- "))
        if data.draw(st.integers(0, 3)) == 0:
            legs[-1] = f"({legs[-1]}) % {own[-1].split(':')[1]}"
    indices = "; ".join(f"index {name}: {each}" for name, each in sizes.items())
    kept = ", ".join(data.draw(st.permutations([name for name in "abc" if any(name in leg for leg in legs)])))
    body = f"size n; {indices}; input z[zn:n]; input x[{', '.join(own)}]; s[] = z; y[{kept}] = x[{', '.join(legs)}]"
    try:
        plan = tg.plan(network(f"{body}; output s[]", kept))
    except tg.SpecError:  # nothing of a leg is read
        reject()
    for count in (1, 2, 4):
        assert tg.compile(plan).verify(sizes={"n": count}).is_equal
        held_as_predicted(plan, {"n": count}, torch.float64)


# ------------------------------------------------------------------------------------------- transposed convolutions

TRANSPOSED = {
    "as PyTorch has it": (
        BATCH + "c:3, l:9]; param w[c, r:4, k:3]; y[batch, r, o:18] = x * w[c, r, o - 2*l + 1]",
        "batch, r, o",
        9 * 3 * 3 * 4,
        ["F.conv_transpose1d(x, self.w, stride=(2,), padding=(1,), output_padding=(1,))"],
    ),
    "of any length": (
        "size batch, length; input x[batch, c:3, l:length]; param w[c, r:4, k:3]"
        "; y[batch, r, o:2*length] = x * w[c, r, o - 2*l + 1]",
        "batch, r, o",
        None,
        ["F.conv_transpose1d(x, self.w, stride=(2,), padding=(1,), output_padding=(1,))"],
    ),
    "zeros around it": (
        BATCH + "c:3, l:9]; param w[c, r:4, k:3]; y[batch, r, o:30] = x * w[c, r, o - 2*l - 3]",
        "batch, r, o",
        9 * 3 * 3 * 4,
        ["F.pad(F.conv_transpose1d(x, self.w, stride=(2,)), (3, 8))"],
    ),
    "cut on one side": (
        BATCH + "c:3, l:9]; param w[c, r:4, k:5]; y[batch, r, o:18] = x * w[c, r, o - 2*l]",
        "batch, r, o",
        9 * 5 * 3 * 4,
        ["narrow(2, 0, 18)"],
    ),
    "turned around": (
        BATCH + "c:3, l:9]; param w[c, r:4, k:3]; y[batch, r, o:18] = x * w[c, r, 2*l - o + 1]",
        "batch, r, o",
        9 * 3 * 3 * 4,
        ["x.flip(2)", "conv_transpose1d"],
    ),
    "in groups": (
        BATCH + "g:2, c:3, l:9]; param w[c, g, r:4, k:3]; y[batch, g, r, o:18] = x * w[c, g, r, o - 2*l + 1]",
        "batch, g, r, o",
        2 * 9 * 3 * 3 * 4,
        ["groups=2"],
    ),
    "in groups that are as many as a call says": (
        BATCH + "c:3, l:9]; input w[batch, c, r:4, k:3]; y[batch, r, o:18] = x * w[batch, c, r, o - 2*l + 1]",
        "batch, r, o",
        9 * 3 * 3 * 4,
        ["torch.bmm", "sum"],
    ),
    "over two axes": (
        BATCH + "c:3, l:5, m:4]; param w[c, r:4, k:3, q:2]"
        "; y[batch, r, o:10, p:12] = x * w[c, r, o - 2*l + 1, p - 3*m]",
        "batch, r, o, p",
        5 * 3 * 4 * 2 * 3 * 4,
        ["F.conv_transpose2d(x, self.w, stride=(2, 3), padding=(1, 0), output_padding=(1, 1))"],
    ),
    "over three axes": (
        BATCH + "c:2, l:3, m:2, n:4]; param w[c, r:2, k:3, q:2, j:2]"
        "; y[batch, r, o:6, p:4, s:4] = x * w[c, r, o - 2*l + 1, p - 2*m, s - n]",
        "batch, r, o, p, s",
        None,
        ["F.conv_transpose3d"],
    ),
    "axes one after another": (
        BATCH + "r:3, l:5, m:4]; param k[r, kh:3]; param q[r, kw:2]"
        "; y[batch, r, o:10, p:12] = x * k[r, o - 2*l + 1] * q[r, p - 3*m]",
        "batch, r, o, p",
        None,
        ["conv_transpose2d"],
    ),
    "a window of two tensors": (
        BATCH + "c:3, l:9]; param a[c, k:3, s:2]; param b[s, r:4]; W[c, r, k] = a * b"
        "; y[batch, r, o:18] = x * W[c, r, o - 2*l + 1]",
        "batch, r, o",
        9 * 3 * 3 * 2 + 18 * 2 * 4,
        ["conv_transpose1d"],
    ),
    "one position each": (
        BATCH + "c:1, l:1]; param w[c, r:1, k:1]; y[batch, r, o:1] = x * w[c, r, o - 2*l + 0]",
        "batch, r, o",
        0,
        [],
    ),
    "windows that leave gaps": (
        BATCH + "c:3, l:9]; param w[c, r:4, k:2]; y[batch, r, o:27] = x * w[c, r, o - 3*l]",
        "batch, r, o",
        9 * 2 * 3 * 4,
        ["stride=(3,), output_padding=(1,)"],
    ),
}
"""A transposed convolution, the multiply-adds of one sample, and what it is printed as."""


@pytest.mark.parametrize("name", TRANSPOSED)
def test_each_transposed_convolution_costs_its_positions_times_its_window(name: str):
    body, output, macs, wanted = TRANSPOSED[name]
    plan = tg.plan(network(body, output))
    text = " ".join(tg.emit(plan).split())
    assert [part for part in wanted if part not in text] == []
    assert macs is None or plan.at(batch=7).macs == 7 * macs
    for mode in ("infer", "train", "serve"):
        assert tg.compile(tg.plan(network(body, output), mode=mode)).verify().is_equal
    for batch in (1, 3):
        for dtype in (torch.float32, torch.float64):
            held_as_predicted(plan, {"batch": batch}, dtype)


def test_a_long_transposed_convolution_costs_what_the_dense_one_does():
    """2 · 2048 · 64 · 64 · 4 FLOPs, and no length times length; the plan is one of the best at every batch."""
    body = "size batch; input x[batch, c:64, l:2048]; param w[c, r:64, k:4]"
    body += "; y[batch, r, o:4096] = x * w[c, r, o - 2*l + 1]"
    plan = tg.plan(network(body, "batch, r, o"))
    assert plan.at(batch=1).flops == 2 * 2048 * 64 * 64 * 4
    assert all(tree.is_proven for regime in plan.regimes for stage in regime.stages for tree in stage.trees)


DENSE = {
    "of one tensor": ("param w[c, r:4, k:5]; y[batch, r, o:18] = x * w[c, r, o - 2*l + 1]", 3 * 4 * 5, 9),
    "of three": (
        "param a[c, d:2]; param w[d, k:5]; param b[d, r:4]; y[batch, r, o:18] = x * a * w[d, o - 2*l + 1] * b",
        3 * 4 * 5,
        9,
    ),
    "as long as the result": ("param w[c, r:4, k:26]; y[batch, r, o:18] = x * w[c, r, o - l + 8]", 3 * 4 * 9 * 18, 1),
}
"""Weights of a transposed convolution, the entries of the dense one, and how often each is used for a sample."""


@pytest.mark.parametrize("name", DENSE)
def test_the_dense_weight_of_a_transposed_convolution_is_its_kernel(name: str):
    body, params, uses = DENSE[name]
    plan = tg.plan(network(f"{BATCH}c:3, l:9]; {body}", "batch, r, o"))
    assert plan.dense is not None
    assert (plan.dense.params, plan.dense.macs.subs(symbol("batch"), 7)) == (params, 7 * params * uses)
    assert tg.compile(tg.plan(plan.dense.network)).verify().is_equal


def test_a_kernel_as_long_as_the_result_is_read_where_it_is_met():
    """Every position of 5 meets 3 inputs: 15, where spreading the 13 of the kernel would cost 39."""
    plan = tg.plan(
        network("size batch; input x[batch, l:3]; param w[k:13]; y[batch, o:5] = x * w[o - l + 4]", "batch, o")
    )
    assert [op.kind for op in plan.regime().operations if op.kind != "load"] == ["conv"]
    assert plan.at(batch=2).macs == 2 * 15


def test_a_window_padded_to_more_positions_than_there_are_is_spread():
    """Full padding has 4 + 3 - 1 positions of 3 taps; the 4 that there are meet 3 taps each."""
    plan = tg.plan(
        network("size batch; input x[batch, l:4]; param w[k:3]; y[batch, o:6] = x[batch, o + k - 2] * w", "batch, o")
    )
    assert plan.at(batch=5).macs == 5 * 12
    assert tg.compile(plan).verify().is_equal


@pytest.mark.parametrize(
    "body",
    [
        "input x[batch, l:6]; param w[k:6]; y[batch, o:6] = x * w[(o - 2*l) % 6]",
        "input x[batch, l:6]; param w[k:3]; y[batch, o:6] = x * w[2*o - l]",
    ],
    ids=["cyclic", "every other position"],
)
def test_what_no_transposed_convolution_computes_is_an_ordinary_one(body: str):
    plan = tg.plan(network(f"size batch; {body}", "batch, o"))
    assert "conv_transpose" not in {op.kind for op in plan.regime().operations}
    assert tg.compile(plan).verify().is_equal


def test_a_saved_plan_says_which_convolutions_are_transposed(tmp_path):
    body, output, *_ = TRANSPOSED["over two axes"]
    plan = tg.plan(network(body, output))
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert tg.load_plan(tmp_path / "plan.json") == plan
    (tmp_path / "plan.json").write_text(text.replace('"is_transposed": true', '"is_transposed": false'))
    assert tg.load_plan(tmp_path / "plan.json").at(batch=1).macs == 10 * 12 * 5 * 4 * 3 * 4


def test_an_index_that_is_summed_beside_its_leg_is_searched_at_every_size():
    """Spreading the leg over the index would be quadratic in m, so that no price is a line in it."""
    body = "size m; index a: m; index b: 4; input x[L:m]; param p[k:4, j:4]; y[w:4] = x[2*a + w - 2*b] * p[w, b] * x[a]"
    plan = tg.plan(network(body, "w"))
    assert tg.compile(plan).verify().is_equal


@pytest.mark.slow
@given(st.data())
def test_any_read_of_a_kernel_is_what_it_says(data):
    """Strides, offsets and lengths as they come, ones among them, on one or two axes: values, gradients and counts."""
    axes = []
    for k in range(data.draw(st.integers(1, 2))):
        step, sign = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 1, -1]))
        length, window = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
        out = data.draw(st.integers(1, step * length + window))
        read = f"{sign}*o{k} {'-+'[sign < 0]} {step}*l{k} + {data.draw(st.integers(0, 3))}"
        axes.append((f"l{k}:{length}", f"k{k}:{window}", f"o{k}:{out}", read))
    lengths, windows, outs, reads = (", ".join(each) for each in zip(*axes, strict=True))
    channels, columns, groups = (data.draw(st.integers(1, 3)) for _ in range(3))
    body = (
        f"size batch; input x[batch, g:{groups}, c:{channels}, {lengths}]; param a[c, d:2]"
        f"; param w[g, d, r:{columns}, {windows}]; y[batch, g, r, {outs}] = x * a * w[g, d, r, {reads}]"
    )
    try:
        built = network(body, "batch, g, r, " + ", ".join(f"o{k}" for k in range(len(axes))))
    except tg.SpecError:  # nothing of a leg is read
        reject()
    for mode in ("infer", "train", "serve"):
        plan = tg.plan(built, mode=mode)
        assert tg.compile(plan).verify().is_equal
    for batch in (1, 3):
        held_as_predicted(tg.plan(built), {"batch": batch}, torch.float64)
