"""Convolutions as they are printed: in groups, beside axes that stay, and channels mixed where they stand."""

from __future__ import annotations

import pytest
import torch

import tngraph as tg
from tests.test_memory import held_as_predicted


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
    for given in sizes:
        for dtype in (torch.float32, torch.float64):
            held_as_predicted(plan, given, dtype)


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
