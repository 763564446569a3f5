"""Every error of a spec file by its whole text, every limit, and attempts to smuggle something in by a name."""

from __future__ import annotations

import cProfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tngraph as tg
from tngraph.errors import LimitError, NetworkError, PlanError, SpecError
from tngraph.language import limits
from tngraph.language.builder import Builder
from tngraph.language.text.parsing import load, parse

END = "y[] = x\noutput y[]"


@contextmanager
def at_most(calls: int) -> Iterator[None]:
    """Fails where more functions of Python are called: work as a count, which no load on the machine changes."""
    profile = cProfile.Profile(builtins=False)
    with profile:
        yield
    assert sum(entry.callcount for entry in profile.getstats()) <= calls


def message(text: str, **options: object) -> str:
    with pytest.raises(NetworkError) as caught:
        parse(text, file="f.tn", **options)  # type: ignore[arg-type]
    return str(caught.value)


def body(*lines: str) -> str:
    return "\n".join(("network n {", *lines, "}"))


ONE_ERROR = {
    "unknown tensor": (
        ("input x[i:2]", "param w[i]", "y[] = x * wv", "output y[]"),
        "f.tn:4:11: there is no tensor 'wv' here\n    y[] = x * wv\n              ^\n  did you mean 'w'?",
    ),
    "unknown index": (
        ("index left: 2", "input x[i:2]", "y[] = x[lft]", "output y[]"),
        "f.tn:4:9: there is no index 'lft' here\n    y[] = x[lft]\n            ^\n  did you mean 'left'?",
    ),
    "an index of a result without a size": (
        ("input x[i:2]", "y[i, j] = x", "output y[i, j]"),
        "f.tn:3:6: there is no index 'j' here\n    y[i, j] = x\n         ^\n  define the index before it is used",
    ),
    "an input leg without a size": (
        ("input x[batch]", "y[] = x", "output y[]"),
        "f.tn:2:9: there is no index 'batch' here\n    input x[batch]\n            ^\n"
        "  define the index before it is used",
    ),
    "unknown size": (
        ("size height = 3", "input x[i:heigth]", END),
        "f.tn:3:11: there is no size 'heigth' here\n    input x[i:heigth]\n              ^\n  did you mean 'height'?",
    ),
    "unknown function": (
        ("input x[i:2]", "y[] = relo(x)", "output y[]"),
        "f.tn:3:7: there is no pointwise function 'relo'\n    y[] = relo(x)\n          ^\n  did you mean 'relu'?",
    ),
    "numbers of a function": (
        ("input x[i:2]", "y[] = leaky_relu(x)", "output y[]"),
        "f.tn:3:7: leaky_relu takes 1 number(s), not 0\n    y[] = leaky_relu(x)\n          ^",
    ),
    "unknown family": (
        ("input x[i:2]", "W[(i), (o:2)] = mpp(bond=4)", END),
        "f.tn:3:17: there is no family 'mpp' here\n    W[(i), (o:2)] = mpp(bond=4)\n"
        "                    ^\n  did you mean 'mpo'?",
    ),
    "unknown option of a family": (
        ("input x[i:2]", "W[(i), (o:2)] = mpo(D=4)", END),
        "f.tn:3:21: mpo has no option 'D'\n    W[(i), (o:2)] = mpo(D=4)\n                        ^\n  it takes bond",
    ),
    "an option without its name": (
        ("input x[i:2]", "W[(i), (o:2)] = mpo(4)", END),
        "f.tn:3:21: an option of mpo has no name\n    W[(i), (o:2)] = mpo(4)\n                        ^\n"
        "  its options: bond",
    ),
    "an option twice": (
        ("input x[i:2]", "W[(i), (o:2)] = mpo(bond=4, bond=2)", END),
        "f.tn:3:29: the option 'bond' is given twice\n    W[(i), (o:2)] = mpo(bond=4, bond=2)\n"
        "                                ^",
    ),
    "rows and columns of a family that differ in number": (
        ("input x[i:2]", "W[(i), (o:2, p:2)] = mpo()", END),
        "f.tn:3:1: mpo pairs rows with columns, and 'W' has 1 rows and 2 columns\n    W[(i), (o:2, p:2)] = mpo()\n"
        "    ^\n  make the shorter side as long with indices of size 1",
    ),
    "a list of ranks of another length": (
        ("input x[i{1..3}:2]", "W[(i{1..3}), (o{1..3}:2)] = mpo(bond=[2, 2, 2])", END),
        "f.tn:3:1: mpo has 2 bonds here, and 3 ranks are given\n"
        "    W[(i{1..3}), (o{1..3}:2)] = mpo(bond=[2, 2, 2])\n    ^\n  give one rank for all, or one each",
    ),
    "a map as a weight": (
        ("input x[i:2]", "W[(i), (o:2)] = ntt(bond=2)", END),
        "f.tn:3:1: ntt is not a weight: it has activations inside\n    W[(i), (o:2)] = ntt(bond=2)\n    ^\n"
        "  apply it to a tensor: y[batch, o1, o2] = ntt(x)",
    ),
    "a family applied to a product": (
        ("input x[i:2]", "y[o:2] = mpo(2 * x)", END),
        "f.tn:3:10: mpo is applied to one tensor\n    y[o:2] = mpo(2 * x)\n             ^\n"
        "  give the rest a name of its own first",
    ),
    "an activation of a family that there is not": (
        ("input x[i:2]", "W[(i), (o:2)] = adtn(layers=2, activation=relo)", END),
        "f.tn:3:32: there is no pointwise function 'relo'\n    W[(i), (o:2)] = adtn(layers=2, activation=relo)\n"
        "                                   ^\n  did you mean 'relu'?",
    ),
    "an option that is a list": (
        ("input x[i:2]", "W[(i), (o:2)] = adtn(layers=[2])", END),
        "f.tn:3:22: layers is a list\n    W[(i), (o:2)] = adtn(layers=[2])\n                         ^\n"
        "  it is one number",
    ),
    "a flag that is none": (
        ("input x[i:2]", "W[(i), (o:2)] = cp(rank=2, separable=3)", END),
        "f.tn:3:28: separable is 3\n    W[(i), (o:2)] = cp(rank=2, separable=3)\n                               ^\n"
        "  it is 0 or 1",
    ),
    "a layout that there is not": (
        ("input x[i:2]", "W[(i), (o:2)] = adtn(layout=bricks)", END),
        "f.tn:3:22: layout is bricks\n    W[(i), (o:2)] = adtn(layout=bricks)\n                         ^\n"
        "  it is one of brick, staircase",
    ),
    "sites of a tree named twice": (
        ("input x[i{1..2}:2]", "W[(i{1..2}), (o{1..2}:2)] = tree(grouping=[[1, 1], 2])", END),
        "f.tn:3:1: the grouping of tree names the sites [1, 1, 2], and 'W' has 2\n"
        "    W[(i{1..2}), (o{1..2}:2)] = tree(grouping=[[1, 1], 2])\n    ^\n  name every site once, counted from 1",
    ),
    "an edge to itself": (
        ("input x[i{1..2}:2]", "W[(i{1..2}), (o{1..2}:2)] = graph(edges=[[1, 1]])", END),
        "f.tn:3:1: the edge [1, 1] joins no two nodes\n"
        "    W[(i{1..2}), (o{1..2}:2)] = graph(edges=[[1, 1]])\n    ^\n  an edge is two numbers, counted from 1",
    ),
    "a family without what it needs": (
        ("input x[i{1..2}:2]", "W[(i{1..2}), (o{1..2}:2)] = graph(bond=2)", END),
        "f.tn:3:1: graph needs edges\n    W[(i{1..2}), (o{1..2}:2)] = graph(bond=2)\n    ^\n  write graph(edges=…)",
    ),
    "two sizes for one index": (
        ("input x[i:2]", "param w[i:3]", END),
        "f.tn:3:9: the index 'i' has two sizes: 2 and 3\n    param w[i:3]\n            ^\n  use two names, or one size",
    ),
    "a leg under an index of another size": (
        ("input x[i:2]", "index j: 3", "y[] = x[j]", "output y[]"),
        "f.tn:4:9: the leg 'i' of 'x' has size 2, and the index 'j' has 3\n    y[] = x[j]\n            ^\n"
        "  an index and the leg it reads have one size",
    ),
    "too many legs on an access": (
        ("input x[i:2]", "y[] = x[i, i]", "output y[]"),
        "f.tn:3:7: 'x' has 1 legs and is read with 2\n    y[] = x[i, i]\n          ^\n  its legs: [i]",
    ),
    "a left-hand index that no term has": (
        ("input x[i:2]", "index j: 2", "y[i, j] = x", "output y[i, j]"),
        "f.tn:4:6: no term of 'y' has the index 'j' of its left-hand side\n    y[i, j] = x\n         ^\n"
        "  put the index on a term, or drop it on the left",
    ),
    "an index twice on the left": (
        ("input x[i:2]", "y[i, i] = x", "output y[i, i]"),
        "f.tn:3:6: the left-hand side of 'y' names 'i' twice\n    y[i, i] = x\n         ^",
    ),
    "an index twice on a core": (
        ("input x[i:2]", "param w[i, i]", END),
        "f.tn:3:12: the param 'w' has the leg 'i' twice\n    param w[i, i]\n               ^\n"
        "  a tensor's own legs differ; use one index twice where it is read",
    ),
    "an output that is not the result's legs": (
        ("input x[i:2, j:3]", "y[i, j] = x", "output y[(i, i)]"),
        "f.tn:4:8: 'y' has the legs [i, j], and not [i, i]\n    output y[(i, i)]\n           ^",
    ),
    "a tensor with the name of a folder": (
        ("input x[i:2]", "param W[i]", "param W.g.c[i]", END),
        "f.tn:4:7: 'W' is a tensor, and 'W.g.c' needs a folder of this name\n    param W.g.c[i]\n          ^\n"
        "  what is stored lies in folders by its dots: give one of them another name",
    ),
    "a folder with the name of a tensor": (
        ("input x[i:2]", "param W.g.c[i]", "const W.g[i] = ones", END),
        "f.tn:4:7: 'W.g' is a tensor, and 'W.g.c' needs a folder of this name\n    const W.g[i] = ones\n"
        "          ^\n"
        "  what is stored lies in folders by its dots: give one of them another name",
    ),
    "a dot in the name of a size": (
        ("size W.D = 2", "input x[i:2]", END),
        "f.tn:2:6: 'W.D' cannot name a size\n    size W.D = 2\n         ^\n"
        "  only tensors and indices have dots in their names",
    ),
    "a dot in the name of a loop variable": (
        ("input x[i:2]", "for W.k in 1..2 { }", END),
        "f.tn:3:5: 'W.k' cannot name a loop variable\n    for W.k in 1..2 { }\n        ^\n"
        "  only tensors and indices have dots in their names",
    ),
    "a dot in the variable of a product": (
        ("input x[i:2]", "y[] = prod(W.k in 1..2: x)", "output y[]"),
        "f.tn:3:12: 'W.k' cannot name a loop variable\n    y[] = prod(W.k in 1..2: x)\n               ^\n"
        "  only tensors and indices have dots in their names",
    ),
    "a dotted size that is not there": (
        ("input x[i:W.D]", END),
        "f.tn:2:11: there is no size 'W.D' here\n    input x[i:W.D]\n              ^\n"
        "  define the size before it is used",
    ),
    "a dotted function": (
        ("input x[i:2]", "y[] = F.relu(x)", "output y[]"),
        "f.tn:3:7: there is no pointwise function 'F.relu'\n    y[] = F.relu(x)\n          ^\n"
        "  did you mean 'relu'?",
    ),
    "a dotted initialisation": (
        ("param w[a:2] = nn.ones", "input x[i:2]", END),
        "f.tn:2:16: 'nn.ones' is no initialisation\n    param w[a:2] = nn.ones\n                   ^\n"
        "  there are: normal, uniform, zeros, ones, eye, orthogonal, fan_in, near_eye, signs",
    ),
    "a dotted template that is not a name": (
        ("input x[i:2]", "for k in 1..1 { param W{k}.g{-k}[i] }", END),
        "f.tn:3:23: 'W1.g-1' cannot name anything\n    for k in 1..1 { param W{k}.g{-k}[i] }\n"
        "                          ^\n"
        "  a name is ASCII letters, digits and underscores, at most 128, and starts with no digit",
    ),
    "a name defined twice": (
        ("input x[i:2]", "param x[i]", END),
        "f.tn:3:7: the name 'x' is defined twice\n    param x[i]\n          ^\n  give one of them another name",
    ),
    "a size defined twice": (
        ("size D = 2", "size D = 3", "input x[i:D]", END),
        "f.tn:3:6: the size 'D' is defined twice\n    size D = 3\n         ^\n  give one of them another name",
    ),
    "a run-time size that no input binds": (
        ("size batch", "input x[i:2]", END),
        "f.tn:2:6: no input binds the run-time size 'batch'\n    size batch\n         ^\n"
        "  put an index of this size on an input, or give it a value: size batch = 1",
    ),
    "a loop bound at run time": (
        ("size B", "input x[b:B]", "for k in 1..B { }", END),
        "f.tn:4:13: 'B' is a run-time size, and a loop bound or a number in a name is an integer\n"
        "    for k in 1..B { }\n                ^\n  give it a value: size B = 1",
    ),
    "a loop bound that is not an integer": (
        ("input x[i:2]", "for k in 1..2.5 { }", END),
        "f.tn:3:13: 2.5 is not an integer\n    for k in 1..2.5 { }\n                ^\n"
        "  sizes and positions are integers",
    ),
    "a read that is all outside": (
        ("input x[i:2]", "index h: 3", "y[h] = x[h + 5]", "output y[h]"),
        "f.tn:4:10: every position from 5 to 7 lies outside the leg 'i' of size 2\n    y[h] = x[h + 5]\n"
        "             ^\n  positions count from 0; what is read outside is zero",
    ),
    "a read that is outside whatever the run-time size": (
        ("size L", "input x[i:L]", "index h: 3", "y[h] = x[h + L]", "output y[h]"),
        "f.tn:5:10: every position from L to L + 2 lies outside the leg 'i' of size L\n    y[h] = x[h + L]\n"
        "             ^\n  positions count from 0; what is read outside is zero",
    ),
    "a cyclic read modulo another size": (
        ("input x[i:8]", "param w[k:3]", "y[i] = x[(i + k) % 7] * w", "output y[i]"),
        "f.tn:4:11: the leg 'i' of size 8 is read modulo 7\n    y[i] = x[(i + k) % 7] * w\n              ^\n"
        "  a cyclic read is modulo the size of its leg",
    ),
    "a window count that is not determined": (
        ("input x[i:8]", "y[h, g] = x[h + g]", "output y[h, g]"),
        "f.tn:3:3: the reads of 'h' do not determine its size\n    y[h, g] = x[h + g]\n      ^\n"
        "  declare it: index h: SIZE",
    ),
    "a position that is not affine": (
        ("input x[i:8]", "y[i] = x[i * i]", "output y[i]"),
        "f.tn:3:12: the index 'i' is multiplied by the index 'i'\n    y[i] = x[i * i]\n               ^\n"
        "  a position is affine: an index times an integer",
    ),
    "a family of unequal length": (
        ("index i{1..4}: 2, 3", "input x[i1]", END),
        "f.tn:2:7: there are 4 indices and 2 sizes\n    index i{1..4}: 2, 3\n          ^\n"
        "  give one size for all, or one each",
    ),
    "a family of unequal length among legs": (
        ("input x[i{1..2}: 2, 3, 4]", END),
        "f.tn:2:9: there are 2 indices and 3 sizes\n    input x[i{1..2}: 2, 3, 4]\n            ^\n"
        "  give one size for all, or one each",
    ),
    "an empty range": (
        ("input x[i{2..1}: 2]", END),
        "f.tn:2:9: the range 2..1 is empty\n    input x[i{2..1}: 2]\n            ^\n  a..b includes both",
    ),
    "an empty product": (
        ("input x[i:2]", "y[] = prod(k in 2..1: x)", "output y[]"),
        "f.tn:3:12: the product over 'k' is empty\n    y[] = prod(k in 2..1: x)\n               ^\n"
        "  a..b includes both",
    ),
    "a delta of two sizes": (
        ("const d[a:2, b:3] = delta", "input x[i:2]", END),
        "f.tn:2:14: the legs of the delta 'd' have the sizes 2 and 3\n    const d[a:2, b:3] = delta\n"
        "                 ^\n  all legs of a delta have one size",
    ),
    "an eye of one leg": (
        ("const d[a:2] = eye", "input x[i:2]", END),
        "f.tn:2:7: eye has 2 leg(s), and 'd' has 1\n    const d[a:2] = eye\n          ^\n  give it that many",
    ),
    "a basis vector outside": (
        ("size D = 2", "const d[a:D] = basis(2)", "input x[i:2]", END),
        "f.tn:3:7: basis(2) is outside the leg 'a' of size D\n    const d[a:D] = basis(2)\n          ^\n"
        "  its entries count from 0",
    ),
    "a const without a kind": (
        ("const d[a:2]", "input x[i:2]", END),
        "f.tn:2:7: the const 'd' says no kind\n    const d[a:2]\n          ^\n  kinds: delta, basis(k), ones, eye",
    ),
    "an unknown initialisation": (
        ("param w[a:2] = normall(1)", "input x[i:2]", END),
        "f.tn:2:16: 'normall' is no initialisation\n    param w[a:2] = normall(1)\n                   ^\n"
        "  there are: normal, uniform, zeros, ones, eye, orthogonal, fan_in, near_eye, signs",
    ),
    "too many numbers of an initialisation": (
        ("param w[a:2] = eye(1, 2)", "input x[i:2]", END),
        "f.tn:2:16: eye takes 0 or 1 number(s), not 2\n    param w[a:2] = eye(1, 2)\n                   ^",
    ),
    "a const with the factor of a param": (
        ("const w[a:2, b:2] = eye(2)", "input x[i:2]", END),
        "f.tn:2:21: eye takes 0 number(s), not 1\n    const w[a:2, b:2] = eye(2)\n                        ^",
    ),
    "a buffer of no kind": (
        ("buffer w[a:2] = fanin(2)", "input x[i:2]", END),
        "f.tn:2:17: 'fanin' is no initialisation\n    buffer w[a:2] = fanin(2)\n                    ^\n"
        "  there are: normal, uniform, zeros, ones, eye, orthogonal, fan_in, near_eye, signs",
    ),
    "a fan-in at run time": (
        ("size B", "input x[b:B]", "param w[a:2] = fan_in(2 * B)", END),
        "f.tn:4:16: the fan-in of 'w' depends on 'B', which is not a compile-time size\n"
        "    param w[a:2] = fan_in(2 * B)\n"
        "                   ^\n  what is stored starts before any input: give the size a value",
    ),
    "a fan-in below 1": (
        ("size D = 2", "param w[a:D] = fan_in(D - 2)", "input x[i:2]", END),
        "f.tn:3:16: fan_in(D - 2) is 0\n    param w[a:D] = fan_in(D - 2)\n                   ^\n"
        "  a fan-in is at least 1",
    ),
    "a fan-in of nothing": (
        ("param w[a:2] = fan_in(0)", "input x[i:2]", END),
        "f.tn:2:16: fan_in(0) is not a number of entries\n    param w[a:2] = fan_in(0)\n                   ^\n"
        "  it is a size, and at least 1",
    ),
    "a fan-in that is no integer": (
        ("param w[a:2] = fan_in(2.5)", "input x[i:2]", END),
        "f.tn:2:23: 2.5 is not an integer\n    param w[a:2] = fan_in(2.5)\n                          ^\n"
        "  sizes and positions are integers",
    ),
    "a fan-in of an unknown size": (
        ("size rank = 2", "param w[a:2] = fan_in(rnk)", "input x[i:2]", END),
        "f.tn:3:23: there is no size 'rnk' here\n    param w[a:2] = fan_in(rnk)\n                          ^\n"
        "  did you mean 'rank'?",
    ),
    "a negative deviation": (
        ("param w[a:2] = near_eye(-0.1)", "input x[i:2]", END),
        "f.tn:2:16: near_eye(-0.1) has a negative standard deviation\n    param w[a:2] = near_eye(-0.1)\n"
        "                   ^",
    ),
    "a param of a run-time size": (
        ("size B", "input x[b:B]", "param w[b]", END),
        "f.tn:4:9: the leg 'b' of the param 'w' has the run-time size B\n    param w[b]\n            ^\n"
        "  what is stored has sizes known before any input: give the size a value",
    ),
    "a size below 1": (
        ("size D = 2 - 2", "input x[i:2]", END),
        "f.tn:2:6: 'D' has size 0\n    size D = 2 - 2\n         ^\n  a size is at least 1",
    ),
    "a division by zero": (
        ("size D = 4 // (2 - 2)", "input x[i:2]", END),
        "f.tn:2:12: a division by zero\n    size D = 4 // (2 - 2)\n               ^\n"
        "  under the defaults the divisor is 0",
    ),
    "no output": (
        ("input x[i:2]",),
        "f.tn:1:9: the network 'n' has no output\n    network n {\n            ^\n  end it with: output NAME[AXES]",
    ),
    "a group on a param": (
        ("param w[(i:2)]", "input x[i:2]", END),
        "f.tn:2:7: the param 'w' has a group of indices\n    param w[(i:2)]\n          ^\n  only inputs and outputs do",
    ),
    "a group in a group": (
        ("input x[(i:2, (j:2))]", END),
        "f.tn:2:15: a group of indices is inside another\n    input x[(i:2, (j:2))]\n                  ^\n"
        "  groups do not nest",
    ),
    "an empty group in a group": (
        ("input x[(i:2, ())]", END),
        "f.tn:2:15: a group of indices is inside another\n    input x[(i:2, ())]\n                  ^\n"
        "  groups do not nest",
    ),
    "an empty group where it is no axis": (
        ("input x[i:2]", "y[] = x[()]", "output y[]"),
        "f.tn:3:9: a group of indices stands only on an axis\n    y[] = x[()]\n            ^\n"
        "  in arithmetic, parentheses hold one sum",
    ),
    "a group with a size": (
        ("input x[():2]", END),
        "f.tn:2:9: a group of indices has a size\n    input x[():2]\n            ^\n"
        "  give each of its indices one, as in (i:2, j:3)",
    ),
    "an empty range in a group": (
        ("input x[(i{1..0}:2)]", END),
        "f.tn:2:10: the range 1..0 is empty\n    input x[(i{1..0}:2)]\n             ^\n  a..b includes both",
    ),
    "a weight without legs": (
        ("input x[i:2]", "W[(), ()] = cp(rank=2)", END),
        "f.tn:3:1: the weight 'W' has no legs\n    W[(), ()] = cp(rank=2)\n    ^\n  give it rows or columns",
    ),
    "a tied ring that is all window": (
        ("index k: 3", "input x[i:2]", "W[(), (), (k)] = tied_ring(bond=2)", END),
        "f.tn:4:1: tied_ring has no site for its core: 'W' is all window\n"
        "    W[(), (), (k)] = tied_ring(bond=2)\n    ^\n  give it rows or columns",
    ),
    "a function that is not outermost": (
        ("input x[i:2]", "y[] = relu(x) + x", "output y[]"),
        "f.tn:3:15: '+' does not belong here\n    y[] = relu(x) + x\n                  ^\n"
        "  a function stands outermost: give its result a name in an equation of its own",
    ),
    "two statements on one line": (
        ("input x[i:2] param w[i]", END),
        "f.tn:2:14: 'param' does not belong here\n    input x[i:2] param w[i]\n                 ^\n"
        "  expected the end of the statement or '}'",
    ),
    "a statement cut short": (
        ("param w[i:2] =", "input x[i:2]", END),
        "f.tn:2:15: the statement ends too early\n    param w[i:2] =\n                  ^\n  expected a name",
    ),
    "a bracket left open": (
        ("param w[i:2", "input x[i:2]", END),
        "f.tn:2:8: the '[' is never closed\n    param w[i:2\n           ^\n  close it with ']'",
    ),
    "a brace too many": (
        ("input x[i:2]", END, "}"),
        "f.tn:6:1: the '}' closes nothing\n    }\n    ^\n  take it away, or open a '{'",
    ),
    "a number that is not finite": (
        ("input x[i:2]", "y[] = 1e999 * x", "output y[]"),
        "f.tn:3:7: the number 1e999 is not finite\n    y[] = 1e999 * x\n          ^\n  the largest is about 1.8e308",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "expected"), ONE_ERROR.values(), ids=ONE_ERROR)
def test_the_whole_text_of_an_error(lines: tuple[str, ...], expected: str) -> None:
    assert message(body(*lines)) == expected


def test_independent_errors_are_reported_together_and_their_consequences_are_not() -> None:
    text = body(
        "size D = Q",
        "input x[i:2]",
        "param w[i, o:D]",
        "param v[i, i]",
        "y[o] = x * w * v",
        "z[] = x * unheard_of",
        "for k in 1..3 { param u{k}[p{k}] }",
        "output y[o]",
        "output z[]",
    )
    with pytest.raises(SpecError) as caught:
        parse(text, file="f.tn")
    assert [problem.message for problem in caught.value.problems] == [
        "there is no size 'Q' here",
        "the param 'v' has the leg 'i' twice",
        "there is no tensor 'unheard_of' here",
        "there is no index 'p1' here",
        "there is no index 'p2' here",
        "there is no index 'p3' here",
    ]
    assert str(caught.value).endswith("\n\n6 errors")


def test_syntax_errors_and_errors_of_meaning_are_reported_together() -> None:
    text = body("size = 3", "index j", "param w[", "input x[i:2]", "y[] = x * w", "z[] = x[i, i]", "output y[]")
    with pytest.raises(SpecError) as caught:
        parse(text, file="f.tn")
    assert [(p.place.line, p.message) for p in caught.value.problems if p.place] == [
        (2, "'=' does not belong here"),
        (3, "the statement ends too early"),
        (4, "the '[' is never closed"),
        (7, "'x' has 1 legs and is read with 2"),
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("param w[qq, rr]", "y[] = foo * bar + baz", "output y[]"), ("qq", "rr", "foo", "bar", "baz")),
        (("param f[", "y[] = foo * x", "output y[]"), ("'['", "foo")),
        (("param w{1..3}[", "y[] = w1 * wa", "output y[]"), ("'['", "wa")),
        (("size q", "param w[i, i]", "y[] = x", "output y[]"), ("'q'", "'w'")),
        (("param w[i, i]", "y[] = x"), ("has no output", "'w'")),
        (("param w[i, i]", "y[] = x", "outptu y[]"), ("'w'", "'y'")),
        (("size q", "input v[i, j:q", "y[] = x", "output y[]"), ("'['",)),
    ],
)
def test_one_mistake_hides_its_consequences_only(lines: tuple[str, ...], expected: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        parse(body("input x[i:2]", *lines))
    found = [problem.message for problem in caught.value.problems]
    assert len(found) == len(expected)
    assert all(part in text for part, text in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        (("size D = 2", "y[] = D * x"), "'D' is a size, and a factor is a tensor"),
        (("y[] = x * i",), "'i' is an index, and a factor is a tensor"),
        (("y[] = x * 2",), "a number stands first in a product, as in 2 * x"),
        (("y[] = x + 2",), "a term has a tensor: multiply the number by a const of ones"),
        (("parm w[i]",), "did you mean 'param'?"),
    ],
)
def test_likely_mistakes_are_told_what_to_do(lines: tuple[str, ...], hint: str) -> None:
    assert hint in message(body("input x[i:2]", *lines, "output x[i]"))


def test_the_legs_of_an_equation_are_a_tuple() -> None:
    builder = Builder("n")
    i = builder.index("i", 2)
    x = builder.input("x", i)
    for legs in (i, "i", x, None):
        with pytest.raises(NetworkError, match="the legs of 'y' are not a tuple"):
            builder.equation("y", legs, x)  # type: ignore[arg-type]


def test_a_group_is_an_axis_of_an_input_or_output() -> None:
    builder = Builder("n")
    i, j = builder.indices("i, j", 2)
    expected = "a group of indices stands on a leg\n  only axes of inputs and outputs are groups, unnested"
    for declare in (
        lambda: builder.param("w", ()),
        lambda: builder.param("w", (i, j)),
        lambda: builder.input("x", (i, (j,))),
        lambda: builder.equation("y", (i, ()), builder.param("v", i)),
    ):
        with pytest.raises(NetworkError) as caught:
            declare()
        assert str(caught.value) == expected


def test_no_indices_have_no_sizes() -> None:
    with pytest.raises(NetworkError) as caught:
        Builder("n").indices([], 2, 3)
    assert str(caught.value) == "there are 0 indices and 2 sizes\n  give one size for all, or one each"


def test_a_byte_order_mark_and_any_line_ends() -> None:
    text = body("input x[i:2]", END)
    for end in ("\n", "\r\n", "\r"):
        assert parse("\ufeff" + text.replace("\n", end)) == parse(text)
    assert message(body("# a", "input x[j]", END).replace("\n", "\r")).startswith("f.tn:3:9: ")


@pytest.mark.parametrize("name", ["none.tn", ".", "a\0b"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(NetworkError, match="give the path of a spec file"):
        load(tmp_path / name)


def test_every_network_of_a_file_is_checked() -> None:
    text = (
        f"network a {{ input x[i:2]; y[] = w; output y[] }}\n{body('input x[i:2]', END)}\n{body('input x[i:2]', END)}"
    )
    assert "f.tn:1:33: there is no tensor 'w' here" in message(text)
    assert "f.tn:7:9: the network 'n' is defined twice" in message(text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "m"}, "there is no network 'm' in the text\n  there are: n"),
        ({"sizes": {"E": 3}}, "the network 'n' has no size 'E' to set\n  its sizes: batch, D"),
        ({"sizes": {"DD": 3}}, "the network 'n' has no size 'DD' to set\n  did you mean 'D'?"),
        (
            {"sizes": {"batch": 3}},
            "'batch' is a run-time size: it is read off the inputs at each call\n  do not set it",
        ),
        ({"sizes": {"D": 0}}, "the size 'D' cannot be 0\n  a size is an integer from 1 to 2**62"),
        ({"sizes": {"D": 2.5}}, "the size 'D' cannot be 2.5\n  a size is an integer from 1 to 2**62"),
    ],
)
def test_what_cannot_be_chosen_or_set(options: dict[str, object], expected: str) -> None:
    assert message(body("size batch, D = 2", "input x[batch, i:D]", END), **options) == expected


LIMITS = {
    "file": ("#" * (limits.FILE_BYTES + 1), "f.tn: the text is longer than 1,048,576 bytes\n  split it, or use loops"),
    "open parentheses": ("(" * 10**6, "f.tn:1:33: brackets are nested deeper than 32"),
    "loops in loops": (body("for k in 1..1 { " * 500), "f.tn:2:511: brackets are nested deeper than 32"),
    "minus signs": (body("size a = " + "-" * 10**6), "the text has more than 120,000 words and signs"),
    "statements": (body("size a\n" * 100_000), "f.tn:20001:1: the text has more than 20,000 statements"),
    "digits": (body("size a = " + "9" * 10**6), "f.tn:2:10: the integer has 1,000,000 digits"),
    "decimals": (body("size a = 0." + "9" * 10**6), "f.tn:2:10: the number has 1,000,002 characters"),
    "range": (body("index i{1..10**9}: 2"), "f.tn:2:7: the range has 1,000,000,000 members"),
    "product": (body("input x[i:2]", "y[] = prod(k in 1..10**6: x)"), "f.tn:3:12: the range has 1,000,000 members"),
    "empty loops": (
        body("for a in 1..10**6 { for b in 1..10**6 { } }"),
        "f.tn:2:25: the file expands to more than 20,000 statements",
    ),
    "names": (
        body("for k in 1..100 {", "index i{1..10000}: 2", "}"),
        "f.tn:3:7: the file computes more than 100,000 names",
    ),
    "tensors": (
        body(*[f"param w{k}[z:2]" for k in range(10_001)]),
        "more than 10,000 tensors",
    ),
    "legs": (body("param w[i{1..65}: 2]"), "f.tn:2:7: 'w' has 65 legs\n    param w[i{1..65}: 2]\n          ^\n"),
    "factors": (
        body("input x[i:2]", "y[] = prod(k in 1..10000: x) * x"),
        "f.tn:3:12: the equation has more than 10,000 factors",
    ),
    "indices of a position": (
        body("index h{1..65}: 2", "input x[i:2]", "y[] = x[" + " + ".join(f"h{k}" for k in range(1, 66)) + "]"),
        "a position has more than 64 indices",
    ),
    "tower": (body("size a = 9**9**9**9"), "f.tn:2:10: an exponent is 387,420,489"),
    "power": (body("size a = 2**63"), "f.tn:2:10: the value is larger than 2**62"),
    "product of sizes": (body("size a = 10**18, b = a*a"), "f.tn:2:23: the value is larger than 2**62"),
    "symbolic power": (body("size h", "size a = (h - 1)**100"), "more than 32 terms when multiplied out"),
    "coefficient": (body("size h", "size a = (2*h)**600"), "f.tn:3:11: a power has more than 512 bits"),
    "slow arithmetic": (
        body("size a, b, c", *(f"size d{k} = (a*b + {k}*c)%(c + a*{k} + 1)" for k in range(1000))),
        "//, %, min and max of sizes have more than 300 terms",
    ),
}


@pytest.mark.parametrize(("text", "expected"), LIMITS.values(), ids=LIMITS)
def test_a_text_beyond_a_limit_is_refused_at_once(text: str, expected: str) -> None:
    with at_most(calls=5_000_000), pytest.raises(LimitError) as caught:
        parse(text, file="f.tn")
    assert expected in str(caught.value)


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.tn"
    with path.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(LimitError, match="the file is longer than 1,048,576 bytes"):
        load(path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bytes.tn"
    path.write_bytes(b"network \xff")
    with pytest.raises(NetworkError, match=r"bytes.tn: byte 8 is not UTF-8"):
        load(path)


def test_at_most_fifty_errors_are_reported() -> None:
    with pytest.raises(SpecError) as caught:
        parse(body(*(f"param w{k}[unheard{k}]" for k in range(5000))))
    assert len(caught.value.problems) == limits.PROBLEMS


@pytest.mark.parametrize("name", ["import", "class", "__class__", "__import__", "None", "lambda", "_", "self"])
def test_python_words_are_plain_names(name: str) -> None:
    net = parse(f"network {name} {{ size {name} = 2; input {name}[{name}]; y[] = {name}; output y[] }}")
    assert (net.name, net.inputs[0].name) == (name, name)


@pytest.mark.parametrize(
    "name",
    ["wé", "\u0445", "w\u200b", "\uff57", "w²", '"w"', "'w'", "w\\n", "w`", "w$", "w..w", ".w", "w.", "w.1",
     "w-w", "w\x00", "1w", "w w"],
)  # fmt: skip
def test_nothing_but_an_ascii_identifier_is_a_name(name: str) -> None:
    text = message(body(f"param {name}[i:2]", "input x[i]", END))
    assert text.startswith("f.tn:2:")
    assert text.count("\n") == 3


@pytest.mark.parametrize(
    "name",
    ["wé", "", "1w", "w w", "w;import os", "w\n", "a" * 129, "w.", ".w", "w..w", "w.1", "w." * 64 + "w", "w.\n",
     "w\u200b", "\uff57"],
)  # fmt: skip
def test_a_name_from_python_is_checked_too(name: str) -> None:
    with pytest.raises(NetworkError, match="cannot name a param"):
        Builder("n").param(name)


def test_a_network_has_no_dots_in_its_name() -> None:
    assert message(f"network a.b {{ input x[i:2]; {END} }}").startswith("f.tn:1:9: 'a.b' cannot name a network\n")
    with pytest.raises(NetworkError, match="cannot name a network"):
        Builder("a.b")


def test_a_mistake_in_a_dotted_statement_hides_its_consequences() -> None:
    lines = ("input x[i:2]", "param W.g[i, i]", "param W{1..3}.h[", "y[] = W.g * W2.h * W.q", "output y[]")
    text = message(body(*lines))
    assert text.count("f.tn:") == 3
    assert all(part in text for part in ("the leg 'i' twice", "'[' is never closed", "no tensor 'W.q'"))


def test_a_template_cannot_leave_the_identifiers() -> None:
    assert "'w-1' cannot name anything" in message(body("for k in 0..0 { param w{k - 1}[i:2] }", "input x[i]", END))
    long = message(body("param w" + "{10**17}" * 9 + "[i:2]", "input x[i]", END))
    assert "… cannot name anything" in long


@pytest.mark.parametrize("step", ["{0} * {0}", "({0} + 1) // 2", "min({0}, 7) + 1"])
@pytest.mark.parametrize("count", [7, 25, 200])
def test_a_chain_of_derived_run_time_sizes_ends_quickly(step: str, count: int) -> None:
    chain = [f"size a{k} = {step.format(f'a{k - 1}')}" for k in range(1, count + 1)]
    for legs, is_bound in ((f"q:a{count}, w:a0", True), (f"(q:a{count}, w:a0)", False)):
        text = body("size a0", *chain, f"input z[{legs}]", "y[] = z", "output y[]")
        with at_most(calls=500_000):
            if count == 200 or (count == 25 and "* " in step):
                with pytest.raises(LimitError):
                    parse(text)
            elif is_bound:
                assert parse(text).runtime_sizes() == ("a0",)
            else:
                assert "no input binds the run-time size 'a0'" in message(text)


def test_a_size_that_is_derived_through_too_much() -> None:
    chain = [f"size a{k} = a{k - 1} * a{k - 1}" for k in range(1, 27)]
    expected = "the size 'a8' is derived through more than 200 operations on run-time sizes"
    assert expected in message(body("size a0", *chain, "input z[q:a26, w:a0]", "y[] = z", "output y[]"))


@pytest.mark.parametrize(
    ("line", "column"), [("param w[i, o:3]]", 16), ("param w[i, o:3])", 16), ("param w[i]], o", 11)]
)
@pytest.mark.parametrize("separator", ["\n", "; "])
def test_a_sign_that_closes_nothing_spoils_its_own_statement_only(line: str, column: int, separator: str) -> None:
    text = "network n {\n" + separator.join((line, "input x[i:2]", "y[] = x * foo", "output y[] }"))
    found = message(text)
    assert found.startswith(f"f.tn:2:{column}: the {line[column - 1]!r} closes nothing\n")
    assert "there is no tensor 'foo' here" in found
    assert found.endswith("2 errors")


def test_the_networks_of_a_file_share_its_bounds() -> None:
    network = "network n { index i{1..9999}: 2; input x[i1]; y[] = x; output y[] }\n"
    with pytest.raises(LimitError, match="the file computes more than 100,000 names"):
        parse(network * 300)


OBJECTIVES = (
    "\n  it is one of flops, memory, writes, time, weights as {'flops': 1, 'writes': 8}, or a function of a step"
)
WEIGHTS = "\n  weights are for 'flops' and 'writes': 0, or numbers from 1/1000 to 2**20"
PRICES = " for a step of 12 operations\n  a function of a step says a finite number, 0 or more"
TENSORS = "\n  tensors: x, a, c, f"
BYTES = "\n  it is an integer from 0 to 2**62, in bytes"
ITEMS = "\n  it is the bytes of an element: 4 for float32"

REQUESTS = [
    ({"mode": "fit"}, "the mode is 'fit'\n  modes: infer, train, serve"),
    ({"mode": None}, "the mode is None\n  modes: infer, train, serve"),
    ({"mode": ["train"]}, "the mode is ['train']\n  modes: infer, train, serve"),
    ({"minimize": "flop"}, "minimize is 'flop'" + OBJECTIVES),
    ({"minimize": 3}, "minimize is 3" + OBJECTIVES),
    ({"minimize": None}, "minimize is None" + OBJECTIVES),
    ({"minimize": {}}, "minimize is {}" + OBJECTIVES),
    ({"minimize": ["flops"]}, "minimize is ['flops']" + OBJECTIVES),
    ({"minimize": int}, "minimize is <class 'int'>" + OBJECTIVES),
    ({"minimize": {"flops": -1}}, "minimize weighs 'flops' by -1" + WEIGHTS),
    ({"minimize": {"flops": 1, "time": 1}}, "minimize weighs 'time' by 1" + WEIGHTS),
    ({"minimize": {"writes": float("nan")}}, "minimize weighs 'writes' by nan" + WEIGHTS),
    ({"minimize": {"writes": 2**20}}, "minimize weighs 'writes' by 1048576" + WEIGHTS),
    ({"minimize": {"flops": 1, "writes": 1e-9}}, "minimize weighs 'writes' by 1e-09" + WEIGHTS),
    ({"minimize": {"flops": True}}, "minimize weighs 'flops' by True" + WEIGHTS),
    ({"minimize": {"flops": "8"}}, "minimize weighs 'flops' by '8'" + WEIGHTS),
    ({"minimize": {3: 1}}, "minimize weighs 3 by 1" + WEIGHTS),
    ({"minimize": {"flops": 0}}, "minimize weighs everything by 0\n  give a weight above 0"),
    ({"minimize": lambda work: -1.0}, "minimize gave -1.0" + PRICES),
    ({"minimize": lambda work: float("nan")}, "minimize gave nan" + PRICES),
    ({"minimize": lambda work: float("inf")}, "minimize gave inf" + PRICES),
    ({"minimize": lambda work: None}, "minimize gave None" + PRICES),
    ({"minimize": lambda work: True}, "minimize gave True" + PRICES),
    ({"requires_grad": {"w": False}}, "requires_grad names 'w'" + TENSORS),
    ({"requires_grad": {"one": False}}, "requires_grad names 'one'" + TENSORS),
    ({"requires_grad": {"y": True}}, "requires_grad names 'y'" + TENSORS),
    (
        {"requires_grad": {"f": True}, "mode": "train"},
        "requires_grad asks for a gradient of 'f', and a buffer takes no gradient\n  leave it out",
    ),
    (
        {"requires_grad": {"a": True}, "mode": "serve"},
        "requires_grad asks for a gradient of 'a', and weights never change in serve\n  leave it out",
    ),
    (
        {"requires_grad": ["a"]},
        "requires_grad is ['a']\n  it says True or False of tensors, as {'w1': False}",
    ),
    ({"requires_grad": {"a": "no"}}, "requires_grad says 'no' of 'a'\n  it is True or False"),
    ({"memory_limit": -1}, "the memory limit is -1" + BYTES),
    ({"memory_limit": False}, "the memory limit is False" + BYTES),
    (
        {"minimize": "memory", "mode": "serve"},
        "minimize is 'memory' in serve\n  there memory_limit says how much is folded into buffers",
    ),
    ({"memory_limit": 2**80}, f"the memory limit is {2**80}" + BYTES),
    ({"memory_limit": 1e9}, "the memory limit is 1000000000.0" + BYTES),
    ({"memory_limit": True}, "the memory limit is True" + BYTES),
    ({"memory_limit": "1GB"}, "the memory limit is '1GB'" + BYTES),
    ({"itemsize": 0}, "the itemsize is 0" + ITEMS),
    ({"itemsize": True}, "the itemsize is True" + ITEMS),
    ({"itemsize": 2.0}, "the itemsize is 2.0" + ITEMS),
]


@pytest.mark.parametrize(("request_", "expected"), REQUESTS, ids=[text.splitlines()[0] for _, text in REQUESTS])
def test_a_plan_that_cannot_be_asked_for(request_: dict[str, object], expected: str) -> None:
    lines = ("size batch", "input x[b:batch, i:3]", "param a[i, j:4]", "param c[j, k:5]", "buffer f[k]")
    network = parse(body(*lines, "const one[k] = ones", "y[b] = x * a * c * f * one", "output y[b]"))
    with pytest.raises(PlanError) as caught:
        tg.plan(network, **request_)  # type: ignore[arg-type]
    assert str(caught.value) == expected
