from contextlib import nullcontext

import networkx as nx
import numpy as np
import pytest

from tests.networks import TABLE, random_arrays
from tngraph.errors import LimitError, NetworkError
from tngraph.language.graphs import from_einsum, from_indices, from_networkx, to_networkx
from tngraph.language.network import Init
from tngraph.language.reference import evaluate

EQUATIONS = [
    "bi,ij->bj",
    "bi, ij -> bj",
    "bi,ij",
    "ij,jk,kl->il",
    "ij,jk,kl->li",
    "bxi,bxj,xk->bijk",
    "ii->i",
    "ii",
    "iij,j->i",
    "iij,ik,jk->",
    "a,b,c->cab",
    "ab,ab->ab",
    ",ab->ba",
    "a->",
    "aXb,bYc,cZa->XYZ",
    "zyx,x",
    "ab,bc,cd,de,ef,fa->",
    "αβ,βγ->αγ",
    "ijk,ij,jk,k->ik",
]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_an_einsum_means_what_numpy_says(equation):
    letters = sorted({c for c in equation if c.isalpha()})
    network = from_einsum(equation, {c: 2 + k % 3 for k, c in enumerate(letters)}, roles="input")
    arrays = random_arrays(network)
    plain = equation.translate(str.maketrans("αβγ", "pqr"))
    expected = np.einsum(plain.replace(" ", ""), *arrays.values())
    np.testing.assert_allclose(evaluate(network, arrays), expected, rtol=1e-12, atol=1e-12)


def test_the_first_operand_is_an_input_and_so_are_those_of_run_time_sizes():
    network = from_einsum("bi,ij,jk->bk", {"j": 4, "k": "D"}, defaults={"D": 5})
    assert [(core.name, core.role) for core in network.cores] == [("x", "input"), ("w1", "input"), ("w2", "param")]
    assert network.runtime_sizes() == ("b", "i")
    arrays = random_arrays(network, {"b": 2, "i": 3, "D": 6})
    assert evaluate(network, arrays, {"D": 6}).shape == (2, 6)


def test_operands_may_be_named_and_given_roles():
    network = from_einsum("ab,bc->ac", {"b": 2, "c": 3}, names=["y", "frozen"], roles=["input", "buffer"], name="layer")
    assert [(core.name, core.role) for core in network.cores] == [("y", "input"), ("frozen", "buffer")]
    assert (network.name, network.outputs[0].name) == ("layer", "y_2")


@pytest.mark.parametrize(
    ("equation", "sizes", "options", "message"),
    [
        ("...i,ij->...j", {}, {}, "the einsum '...i,ij->...j' has an ellipsis\n  write a letter for each of its axes"),
        ("b1->b", {}, {}, "the einsum 'b1->b' has the character '1'\n  an axis is a letter"),
        ("a->b->c", {}, {}, "the einsum 'a->b->c' has the character '-'"),
        ("a->a,a", {}, {}, "the einsum 'a->a,a' has a comma in its output"),
        ("ab->c", {}, {}, "the output has the index 'c', and no tensor has it"),
        ("ab->aa", {}, {}, "names 'a' twice"),
        ("ab->a", {"c": 2}, {}, "sizes has the index 'c', and no tensor has it"),
        ("ab->a", {"a": 0}, {}, "the index 'a' has size 0"),
        ("ab->a", {"a": True}, {}, "the index 'a' has size True"),
        ("ab->a", {"a": 2**62 + 1}, {}, "the index 'a' has size 4611686018427387905\n  a size is an integer"),
        ("ab->a", {"a": "D"}, {"defaults": {"D": 0}}, "'D' in defaults has size 0\n  a size is an integer from 1"),
        ("ab->a", {"a": "D"}, {"defaults": {"D": None}}, "'D' in defaults has size None"),
        ("ab->a", [2, 3], {}, "sizes is [2, 3]\n  it maps each name to its size"),
        (None, {}, {}, "None is not an einsum\n  write one as in 'bi,ij->bj'"),
        ("ab->a", {"a": 2.5}, {}, "the index 'a' has size 2.5\n  a size is an integer or the name of one"),
        (
            "ab,bc->a",
            {},
            {"roles": ["input", "param"]},
            "the index 'c' has the run-time size 'c', and stands on no input",
        ),
        ("ab->a", {}, {"names": ["x", "y"]}, "there are 1 tensors and 2 names"),
        ("ab->a", {}, {"roles": ["input", "param"]}, "there are 1 tensors and 2 roles"),
        ("ab->a", {}, {"roles": "weight"}, "'weight' is not a role\n  roles: input, param, buffer, const"),
        ("ab->a", {"a": 2, "b": 2}, {"roles": "const"}, "the const 'x' says no kind"),
        ("ab,b->a", {"a": 1, "b": 2}, {"names": ["x", "x"]}, "the name 'x' is defined twice"),
    ],
)
def test_an_einsum_that_means_nothing(equation, sizes, options, message):
    with pytest.raises(NetworkError) as caught:
        from_einsum(equation, sizes, **options)
    assert message in str(caught.value)


def test_index_lists_take_labels_of_any_kind():
    a, b, one, text = ("site", 0), ("site", 1), 1, "1"
    network = from_indices([(a, one), (one, text), (text, b)], (b, a), {a: 2, b: 3, one: 4, text: 5})
    assert [index.name for index in network.indices()] == ["site_0", "i1", "i1_2", "site_1"]
    arrays = random_arrays(network)
    np.testing.assert_allclose(evaluate(network, arrays), np.linalg.multi_dot(list(arrays.values())).T)


def test_a_label_twice_on_one_tensor_is_a_diagonal_of_two_legs():
    network = from_indices([("i", "i", "j")], ("i",), {"i": 3, "j": 2})
    assert [leg.name for leg in network.cores[0].legs] == ["i", "i_2", "j"]
    arrays = random_arrays(network)
    np.testing.assert_allclose(evaluate(network, arrays), np.einsum("iij->i", arrays["t1"]))


def test_an_index_list_names_its_missing_sizes():
    with pytest.raises(NetworkError, match="the index 'b' has no size\n  give it one in sizes"):
        from_indices([("a", "b")], ("a",), {"a": 2})
    with pytest.raises(NetworkError, match="there are no tensors here"):
        from_indices([], (), {})


def test_a_grid_contracts_to_what_einsum_says():
    graph = nx.grid_2d_graph(2, 3)
    graph.nodes[0, 0]["open"] = {"top": 2}
    graph.nodes[1, 2]["open"] = [("bottom", 3)]
    network = from_networkx(graph, bond=2)
    assert [core.name for core in network.cores] == ["t0_0", "t0_1", "t0_2", "t1_0", "t1_1", "t1_2"]
    assert [leg.name for leg in network.outputs[0].legs] == ["top", "bottom"]
    assert [leg.name for leg in network.cores[0].legs] == ["top", "t0_0_t1_0", "t0_0_t0_1"]
    check_against_numpy(network)


def check_against_numpy(network):
    arrays = random_arrays(network)
    (equation,) = network.equations
    (term,) = equation.terms
    number = {index.name: k for k, index in enumerate(network.indices())}
    operands = [x for a in term.accesses for x in (arrays[a.source], [number[leg.name] for leg in a.legs])]
    expected = np.einsum(*operands, [number[leg.name] for leg in equation.legs], optimize=True)
    np.testing.assert_allclose(evaluate(network, arrays), expected, rtol=1e-10, atol=1e-12)


def test_a_hypercube_is_a_number():
    network = from_networkx(nx.hypercube_graph(3), bond=2, name="cube")
    assert len(network.cores) == 8
    assert network.outputs[0].axes == ()
    check_against_numpy(network)


def test_parallel_edges_are_several_bonds_and_a_loop_is_a_trace():
    graph = nx.MultiGraph()
    graph.add_node("u", open={"p": 2})
    graph.add_edge("u", "v", size=2)
    graph.add_edge("u", "v", size=3)
    graph.add_edge("v", "v", size=4, name="loop")
    network = from_networkx(graph)
    u, v = network.cores
    assert repr(u.legs) == "(p:2, u_v:2, u_v_2:3)"
    assert repr(v.legs) == "(u_v:2, u_v_2:3, loop:4, loop_2:4)"
    arrays = random_arrays(network)
    np.testing.assert_allclose(evaluate(network, arrays), np.einsum("pab,abcc->p", arrays["u"], arrays["v"]))


def test_nodes_choose_their_roles_and_an_open_leg_may_be_shared():
    graph = nx.Graph()
    graph.add_node("x", open={"batch": None, "i": 3})
    graph.add_node("w", open={"i": 3}, init=Init("normal", (0.1,)))
    graph.add_node("copy", role="const", init="delta")
    graph.add_edges_from([("w", "copy"), ("copy", "frozen")])
    graph.nodes["frozen"]["role"] = "buffer"
    network = from_networkx(graph, bond="D", inputs=["x"], defaults={"D": 4})
    assert [core.role for core in network.cores] == ["input", "param", "const", "buffer"]
    assert network.cores[1].init == Init("normal", (0.1,))
    arrays = random_arrays(network, {"batch": 5, "D": 2})
    expected = np.einsum("bi,id,d->bi", *arrays.values())
    np.testing.assert_allclose(evaluate(network, arrays, {"D": 2}), expected)


def test_a_graph_that_means_nothing():
    graph = nx.path_graph(2)
    with pytest.raises(NetworkError, match="the edge from 0 to 1 has no size\n  give it an attribute 'size'"):
        from_networkx(graph)
    with pytest.raises(NetworkError, match="the input 7 is not a node of the graph\n  nodes: 0, 1"):
        from_networkx(graph, bond=2, inputs=[7])
    with pytest.raises(NetworkError, match="has the run-time size 'D', and stands on no input"):
        from_networkx(graph, bond="D")
    with pytest.raises(NetworkError, match="there are no tensors here"):
        from_networkx(nx.Graph())
    graph.nodes[0]["open"], graph.nodes[1]["open"] = {"p": 2}, {"p": 3}
    with pytest.raises(NetworkError, match="the open leg 'p' of the node 1 has size 3, and elsewhere 2"):
        from_networkx(graph, bond=2)


@pytest.mark.parametrize("wrong", [None, 3, "pq", [("p",)], ["p"]])
def test_open_legs_are_a_mapping_or_pairs(wrong):
    graph = nx.path_graph(2)
    graph.nodes[1]["open"] = wrong
    with pytest.raises(NetworkError, match="the node 1 has open="):
        from_networkx(graph, bond=2)


def test_a_node_says_how_it_starts():
    graph = nx.path_graph(3)
    graph.nodes[0]["init"], graph.nodes[1]["init"] = ("normal", 0.1), "zeros"
    assert [core.init for core in from_networkx(graph, bond=2).cores] == [Init("normal", (0.1,)), Init("zeros"), None]
    for wrong in (7, (0.1,), ()):
        graph.nodes[0]["init"] = wrong
        with pytest.raises(NetworkError, match="the node 0 has init="):
            from_networkx(graph, bond=2)


def test_a_tensor_has_at_most_64_legs():
    for count in (64, 65):
        legs = tuple(range(count))
        with nullcontext() if count == 64 else pytest.raises(LimitError, match="'t1' has 65 legs"):
            from_indices([legs], (), dict.fromkeys(legs, 2))
    legs = tuple(range(65))
    with pytest.raises(LimitError, match="the output has 65 legs"):
        from_indices([legs[:40], legs[40:]], legs, dict.fromkeys(legs, 2))
    with pytest.raises(NetworkError, match="the indices of tensor 2 are None"):
        from_indices([legs[:2], None], (), {0: 2, 1: 2})


def test_hostile_names_become_identifiers():
    graph = nx.path_graph(3)
    nx.relabel_nodes(graph, {0: "import os; x", 1: "x" * 500, 2: "é"}, copy=False)
    network = from_networkx(graph, bond=2)
    assert [core.name for core in network.cores] == ["import_os_x", "x" * 120, "t"]
    check_against_numpy(network)


def test_dotted_names_stay_where_no_tensor_is_in_the_way():
    graph = nx.Graph([("W.g1", "W"), ("W", "W.g1.c"), ("W.g1.c", "a..b"), ("a..b", "V.g")])
    graph.nodes["W"]["open"] = {"W.b1": 2}
    graph.nodes["W.g1"]["open"] = {"in.h": None}
    network = from_networkx(graph, bond=3, inputs=["W.g1"])
    assert [core.name for core in network.cores] == ["W.g1", "W_2", "W_g1_c", "a_b", "V.g"]
    names = ["in_h", "W_g1_W_2", "W.b1", "W_2_W_g1_c", "W_g1_c_a_b", "a_b_V_g"]
    assert [index.name for index in network.indices()] == names
    assert network.runtime_sizes() == ("in_h",)
    assert ("tensor", "V.g") in to_networkx(network)


def test_a_network_is_a_bipartite_graph_with_an_edge_per_leg():
    graph = to_networkx(TABLE["hyperedge"])
    assert graph.nodes["index", "r"] == {"kind": "index", "size": 3}
    assert graph.nodes["index", "b"] == {"kind": "index", "size": "batch"}
    assert graph.nodes["tensor", "u"] == {"kind": "tensor", "role": "param", "legs": ("i", "r"), "function": None}
    assert graph.nodes["tensor", "y"]["role"] == "result"
    assert sorted(name for _, name in graph["index", "r"]) == ["u", "v", "w"]
    assert nx.is_bipartite(graph)


@pytest.mark.parametrize("name", TABLE)
def test_every_network_has_a_graph_of_all_its_tensors_and_indices(name):
    network = TABLE[name]
    graph = to_networkx(network)
    kinds = nx.get_node_attributes(graph, "kind")
    assert sum(kind == "tensor" for kind in kinds.values()) == len(network.sources())
    assert sum(kind == "index" for kind in kinds.values()) == len(network.indices())
    assert all({kinds[u], kinds[v]} == {"tensor", "index"} for u, v in graph.edges())


def test_reads_and_several_equations_are_on_the_edges():
    graph = to_networkx(TABLE["reads of an intermediate"])
    edges = graph.get_edge_data(("tensor", "h"), ("index", "l"))
    assert list(edges.values()) == [{"axis": 1, "coefficient": 1, "equation": "y", "term": 0, "access": 0}]
    (own,) = graph.get_edge_data(("tensor", "h"), ("index", "L")).values()
    assert (own["equation"], own["term"]) == ("h", None)
    ring = to_networkx(TABLE["tied cores in a ring"])
    assert ring.number_of_edges(("tensor", "g"), ("index", "r2")) == 2
