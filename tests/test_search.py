"""Searches for large regions: budgets, interruption, workers, and never worse than cotengra alone."""

from __future__ import annotations

import operator
import random

import cotengra
import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tngraph as tg
from tests.instances import NAMES, load_instance
from tngraph.language.legs import legs_size
from tngraph.language.sizes import evaluate_size
from tngraph.plans.plan import Plan
from tngraph.search import proposals, refining, workers
from tngraph.search.annealing import anneal_order, log_operations
from tngraph.search.bounds import least_cost
from tngraph.search.exact import prove_order
from tngraph.search.greedy import grow_order, join_greedily
from tngraph.search.machine import Machine, Work
from tngraph.search.objectives import PerStep, Pricing, Weighted, read_objective
from tngraph.search.orders import find_order, hypergraph, search_tree
from tngraph.search.proposals import MOST_LABELLED, MOST_RECONFIGURED, propose_greedy
from tngraph.search.reducing import join_alike
from tngraph.search.refining import refine_order
from tngraph.search.region import Region, Topology
from tngraph.search.trees import order_cost
from tngraph.search.workers import run_tasks


def regular(nodes: int, seed: int = 0) -> tg.Network:
    """A random regular graph of degree 3 with bonds of 2."""
    return tg.from_networkx(nx.random_regular_graph(3, nodes, seed), bond=2)


def grid(rows: int, columns: int) -> tg.Network:
    return tg.from_networkx(nx.convert_node_labels_to_integers(nx.grid_2d_graph(rows, columns)), bond=2)


def region(network: tg.Network) -> Region:
    (equation,) = network.equations
    return Region(equation.terms[0].accesses, equation.legs)


def plan(network: tg.Network, **search: object) -> Plan:
    return tg.plan(network, search=tg.Search(samples=4, **search))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"seconds": 0}, "a search needs some time, not 0 seconds"),
        ({"trials": 0}, "a search needs at least one sample and one trial, not 32 and 0"),
        ({"parallel": 0}, "a search cannot run on 0\n  give a number of processes, 'processes' or 'ray'"),
        ({"parallel": True}, "a search cannot run on True\n  give a number of processes, 'processes' or 'ray'"),
        (
            {"parallel": "threads"},
            "a search cannot run on 'threads'\n  give a number of processes, 'processes' or 'ray'",
        ),
    ],
)
def test_a_search_that_cannot_be_is_an_error(search: dict, message: str):
    with pytest.raises(tg.PlanError) as caught:
        tg.Search(**search)
    assert str(caught.value) == message


def test_more_trials_are_never_worse_and_the_first_are_the_same():
    best: dict[int, list[int]] = {}
    for trials in (1, 3):
        best[trials] = []
        plan(regular(40), trials=trials, progress=lambda done, of, cost, seen=best[trials]: seen.append(cost))
    assert best[1] == best[3][:1]
    assert best[3] == sorted(best[3], reverse=True)


def test_seconds_end_a_search_between_trials():
    seen = []
    plan(regular(40), seconds=0.01, progress=lambda done, of, cost: seen.append((done, of)))
    assert seen == [(1, None)]


def test_trials_and_seconds_together_end_with_the_first_of_them():
    seen = []
    plan(regular(20), seconds=600, trials=2, progress=lambda done, of, cost: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]


def test_an_interruption_keeps_the_best_so_far():
    def interrupt(done: int, of: int | None, cost: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    network = regular(40)
    assert plan(network, trials=50, progress=interrupt).regimes[0].stages == plan(network, trials=2).regimes[0].stages


# ------------------------------------------------------------------------------------------------ workers


def test_the_plan_is_the_same_in_one_process_and_in_two():
    network = regular(40)
    assert plan(network, trials=3, parallel=1) == plan(network, trials=3, parallel=2)


def test_workers_import_no_torch():
    (result,) = run_tasks(operator.getitem, {"x": 1}, ["x"], 2)
    assert result == ("x", 1)
    (loaded,) = run_tasks(eval_in, "'torch' in __import__('sys').modules", [None], 2)
    assert loaded == (None, False)


eval_in = eval
"""Called as ``eval(text, None)`` in a worker."""


def test_an_error_in_a_worker_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        list(run_tasks(operator.truediv, 1, [0], 2))


def test_a_worker_that_ends_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "_WORKER", "import sys; sys.stdin.buffer.read(1); sys.exit(3)")
    with pytest.raises(tg.PlanError, match=r"ended with code 3\n  search in one: Search\(parallel=1\)"):
        list(run_tasks(operator.truediv, 1, [1], 2))


def test_an_interruption_ends_the_workers():
    results = run_tasks(operator.truediv, 1, [1, 2, 4, 8], 2)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)


def test_ray_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(workers, "import_module", missing)
    with pytest.raises(tg.PlanError) as caught:
        plan(regular(20), parallel="ray")
    assert str(caught.value) == "the search asks for a Ray cluster, and ray is not installed\n  pip install ray"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_plan_is_the_same_on_a_ray_cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert plan(regular(40), trials=3, parallel="ray") == plan(regular(40), trials=3)
    finally:
        ray.shutdown()


# ------------------------------------------------------------------------------- never worse than cotengra


def alone(legs: list[tuple[int, ...]], sizes: dict[int, int], output: tuple[int, ...], seed: int, trials: int) -> list:
    """The trees of cotengra alone: its greedy optimiser and its hyper-optimiser in turn, each tree reconfigured."""
    trees = []
    for k in range(seed, seed + trials):
        is_greedy = (k - seed) % 2 == 0 or len(legs) > MOST_LABELLED
        random.seed(k)
        greedy = cotengra.RandomGreedyOptimizer(
            max_repeats=4 if is_greedy else 128, seed=k, parallel=False, accel=False
        )
        if is_greedy:
            path = greedy.ssa_path(legs, output, sizes)
            trees.append(cotengra.ContractionTree.from_path(legs, output, sizes, ssa_path=path))
        else:
            trees.append(hyper_tree(legs, sizes, output, k))
    return [tree.subtree_reconfigure() if len(legs) <= MOST_RECONFIGURED else tree for tree in trees]


def hyper_tree(legs: list[tuple[int, ...]], sizes: dict[int, int], output: tuple[int, ...], seed: int) -> object:
    def join(*parts: object, **options: object) -> object:
        own = cotengra.RandomGreedyOptimizer(max_repeats=128, seed=seed, parallel=False, accel=False)
        return own(*parts, **options)

    hyper = cotengra.HyperOptimizer(
        methods=["labels"],
        constants={"labels": {"seed": seed, "super_optimize": join}},
        max_repeats=1,
        optlib="random-uniform",
        seed=seed,
        parallel=False,
        reconf_opts=None,
        slicing_opts=None,
    )
    return hyper.search(legs, output, sizes)


def check_never_worse(network: tg.Network, seed: int, trials: int) -> None:
    topology = Topology(region(network), {})
    graph = hypergraph(topology)
    theirs = [
        order_cost(topology, tree.get_ssa_path())
        for tree in alone(list(graph.legs), dict(graph.sizes), graph.output, seed, trials)
    ]
    ours = []
    search = tg.Search(seed, samples=4, trials=trials, progress=lambda done, of, cost: ours.append(cost))
    search_tree(Topology(region(network), {}), search)
    assert ours[-1] <= min(theirs)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_plan_is_never_worse_than_cotengra_alone(seed: int):
    check_never_worse(regular(50, seed), seed, trials=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_of_a_benchmark_is_never_worse_than_cotengra_alone(name: str):
    check_never_worse(load_instance(name), seed=0, trials=2)


# ----------------------------------------------------------------------------------- parts of a large region


def priced(network: tg.Network, pricing: Pricing) -> Topology:
    return Topology(region(network), {}, pricing)


@pytest.mark.parametrize(
    "pricing",
    [
        Pricing(),
        Pricing(trained=0b1010101),
        Pricing(fixed=0b0011100, most_folded=40),
        Pricing(most_elements=5000),
        Pricing(Machine(), trained=0b11),
        Pricing(PerStep(lambda work: work.operations + 8.0 * work.result)),
    ],
)
def test_an_order_that_is_one_part_is_made_the_cheapest_there_is(pricing: Pricing):
    sizes = {f"e{k}": 2 + k % 4 for k in range(8)}
    inputs = [[f"e{k}", f"e{(k + 4) % 8}", f"e{k + 1}"] for k in range(7)]
    topology = priced(tg.from_indices(inputs, ["e7"], sizes), pricing)
    first = [(0, 1), *((6 + k, k + 1) for k in range(1, 6))]
    cheapest, is_proven = prove_order(topology, first)
    assert is_proven
    assert order_cost(topology, cheapest) < order_cost(topology, first)
    assert order_cost(topology, refine_order(topology, first)) == pytest.approx(order_cost(topology, cheapest))


@pytest.mark.parametrize("objective", ["flops", "writes", "time"])
def test_a_refined_order_is_an_order_and_never_costs_more(objective: str):
    for seed in range(4):
        topology = priced(regular(40, seed), Pricing(read_objective(objective), trained=0b1111))
        proposed = propose_greedy(hypergraph(topology), 1, seed)
        refined = refine_order(topology, proposed)
        joined = [operand for pair in refined for operand in pair]
        assert sorted(joined) == list(range(78))
        assert all(operand < 40 + k for k, pair in enumerate(refined) for operand in pair)
        assert order_cost(topology, refined) <= order_cost(topology, proposed)


def test_an_interruption_leaves_an_order_as_it_was_proposed(monkeypatch: pytest.MonkeyPatch):
    topology = priced(regular(40), Pricing())
    proposed = propose_greedy(hypergraph(topology), 1, 0)
    assert refine_order(topology, proposed) != proposed

    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refining, "prove_order", interrupt)
    assert refine_order(topology, proposed) == proposed


def test_what_writes_least_is_not_among_the_orders_with_the_fewest_operations():
    network = regular(100)
    trees = {
        objective: search_tree(priced(network, Pricing(read_objective(objective))), tg.Search(trials=2))
        for objective in ("flops", "writes")
    }
    writes = {
        objective: sum(evaluate_size(legs_size(step.legs), {}) for step in tree.steps)
        for objective, tree in trees.items()
    }
    assert writes["writes"] < 0.7 * writes["flops"]


def test_gates_are_multiplied_before_they_meet_a_large_tensor():
    """One gate for every qubit, beside a core of 2^16 entries and an input over four of the qubits."""
    gates = " ".join(f"param g{k}[q{k}, p{k}:2];" for k in range(1, 17))
    network = tg.parse(f"""network gates {{
      size batch
      param core[q{{1..16}}: 2]
      input x[batch, (p{{1..4}}: 2)]
      {gates}
      y[batch, p{{5..16}}] = x * core * {" * ".join(f"g{k}" for k in range(1, 17))}
      output y[batch, (p{{5..16}})]
    }}""")
    passes = {}
    for objective in ("flops", "time"):
        (regime,) = tg.plan(network, {"batch": 64}, minimize=objective).regimes
        (tree,) = regime.stages[0].trees
        sizes = [evaluate_size(legs_size(step.legs), {"batch": 64}) for step in tree.steps]
        passes[objective] = sum(size >= 2**12 for size in sizes)
    assert passes["time"] < passes["flops"] / 2


def test_sizes_beyond_any_float_have_a_time():
    assert Machine()(Work(10**400, 10**200, 10**200, 10**200, 1, 1)) > 1e50


# ---------------------------------------------------------------------------------- what a default search does


@pytest.mark.parametrize("network", [regular(30), tg.from_networkx(nx.complete_graph(16), bond=3)])
def test_the_plan_of_a_default_search_is_the_same_in_one_process_and_in_two(network: tg.Network):
    one, two = (tg.plan(network, search=tg.Search(parallel=parallel)) for parallel in (1, 2))
    assert one == two


def test_a_default_search_ends_once_two_trials_agree_and_asks_cotengra_for_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proposals, "_propose", None)
    seen = []
    tg.plan(
        tg.from_networkx(nx.complete_graph(16), bond=2),
        search=tg.Search(progress=lambda done, of, cost: seen.append((done, of))),
    )
    assert seen == [(1, 4), (2, 4)]


def test_trials_that_are_asked_for_are_all_run_and_never_worse():
    seen: list[int] = []
    asked = tg.Search(samples=4, trials=3, progress=lambda done, of, cost: seen.append(done))
    topology = priced(tg.from_networkx(nx.complete_graph(16), bond=2), Pricing())
    costs = [order_cost(topology, find_order(topology, search)[0]) for search in (asked, tg.Search(samples=4))]
    assert seen == [1, 2, 3]
    assert costs[0] <= costs[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 12), st.booleans())
def test_an_annealed_order_is_an_order_with_the_operations_that_it_says(seed: int, count: int, many_sizes: bool):
    generator = random.Random(seed)
    names = [f"e{k}" for k in range(count)]
    inputs = [generator.sample(names, generator.randint(1, 3)) for _ in range(count)]
    used = sorted({name for legs in inputs for name in legs})
    sizes = {name: 2 ** generator.randint(0, 12 if many_sizes else 3) for name in used}
    topology = priced(tg.from_indices(inputs, generator.sample(used, len(used) // 3), sizes), Pricing())
    graph = hypergraph(topology)
    start = [(k if k == 0 else count + k - 1, k + 1) for k in range(count - 1)]
    ring = graph.legs, graph.output, graph.sizes
    least, order = anneal_order(*ring, start, (1.0, 0.1), 5, generator.random)
    assert sorted(operand for pair in order for operand in pair) == list(range(2 * count - 2))
    assert all(operand < count + k for k, pair in enumerate(order) for operand in pair)
    assert 2**least == pytest.approx(order_cost(topology, order)) == pytest.approx(2 ** log_operations(*ring, order))
    assert order_cost(topology, order) <= order_cost(topology, start)


# --------------------------------------------------------------------------------------- a bound below every order


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(0, 127), st.sampled_from("ftawsl"))
def test_the_bound_is_never_above_the_cheapest_order(seed: int, count: int, bits: int, kind: str):
    bits &= (1 << count) - 1
    pricing = {
        "f": Pricing(),
        "t": Pricing(trained=bits),
        "a": Pricing(trained=(1 << count) - 1),
        "w": Pricing(Weighted(2, 3), trained=bits),
        "s": Pricing(fixed=bits, trained=bits >> 1 & ~bits, most_folded=6),
        "l": Pricing(most_elements=12),
    }[kind]
    topology = alike(count, 5, seed, pricing)
    in_turn = [(k if k == 0 else count + k - 1, k + 1) for k in range(count - 1)]
    cheapest, is_proven = prove_order(topology, in_turn)
    assert is_proven
    assert least_cost(topology) <= order_cost(topology, cheapest)


def test_a_chain_on_one_row_is_proven_by_the_bound(monkeypatch: pytest.MonkeyPatch):
    """Every matrix is read once, by the row: 100 steps of 64 multiplications, and three times that in training."""
    monkeypatch.setattr("tngraph.search.orders.run_tasks", None)
    legs = [["b0"], *([f"b{k}", f"b{k + 1}"] for k in range(100))]
    chain = tg.from_indices(legs, ["b100"], {f"b{k}": 8 for k in range(101)}, roles="param")
    for mode, factor in (("infer", 1), ("train", 3)):
        found = tg.plan(chain, mode=mode)  # type: ignore[arg-type]
        assert (found.at().cost, found.is_proven) == (100 * 64 * factor, True)


# --------------------------------------------------------------------------------------- thousands of tensors


def test_the_greedy_order_of_a_chain_costs_what_the_chain_costs():
    legs = [(k, k + 1) for k in range(100)]
    pairs = join_greedily(legs, (0, 100), dict.fromkeys(range(101), 2))
    assert len(pairs) == 99
    assert sorted(v for pair in pairs for v in pair) == list(range(198))


def test_a_swept_chain_is_joined_along_itself_and_parts_that_share_nothing_follow():
    """From any first tensor, every result of the first ten keeps at most the two ends of what was swept."""
    legs = [(k, k + 1) for k in range(10)] + [(20,), (20,)]
    sizes = dict.fromkeys((*range(11), 20), 2)
    for seed in range(5):
        pairs = grow_order(legs, (0, 10), sizes, random.Random(seed).random)
        assert sorted(value for pair in pairs for value in pair) == list(range(22))
        assert 2 ** log_operations(legs, (0, 10), sizes, pairs) <= 9 * 2**3 + 2 * 2**3


@pytest.mark.slow
def test_ten_thousand_tensors_are_planned_and_priced():
    network = grid(10, 990)
    topology = Topology(region(network), {})
    graph = hypergraph(topology)
    greedy = order_cost(topology, join_greedily(graph.legs, graph.output, graph.sizes))
    assert plan(network, trials=1, parallel=1).at().cost <= greedy


# ------------------------------------------------------------------------------------- joined before any search


def alike(count: int, kinds: int, seed: int, pricing: Pricing) -> Topology:
    """A random product in which many tensors stand on the same indices."""
    generator = random.Random(seed)
    names = [f"e{k}" for k in range(5)]
    choices = [generator.sample(names, generator.randint(1, 3)) for _ in range(kinds)]
    inputs = [generator.choice(choices) for _ in range(count)]
    used = sorted({name for legs in inputs for name in legs})
    sizes = {name: generator.randint(1, 5) for name in used}
    return priced(tg.from_indices(inputs, [name for name in used if generator.random() < 0.4], sizes), pricing)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 8), st.integers(1, 4), st.integers(0, 255), st.sampled_from("ftwsl"))
def test_what_is_joined_first_costs_nothing(seed: int, count: int, kinds: int, bits: int, kind: str):
    bits &= (1 << count) - 1
    pricing = {
        "f": Pricing(),
        "t": Pricing(trained=bits),
        "w": Pricing(Weighted(1, 3)),
        "s": Pricing(fixed=bits, most_folded=6),
        "l": Pricing(most_elements=12),
    }[kind]
    topology = alike(count, kinds, seed, pricing)
    in_turn = [(k if k == 0 else count + k - 1, k + 1) for k in range(count - 1)]
    cheapest, is_proven = prove_order(topology, in_turn)
    reduction = join_alike(topology)
    rest, _ = prove_order(reduction.rest, reduction.project(cheapest))
    assert is_proven
    assert order_cost(topology, reduction.complete(rest)) == order_cost(topology, cheapest)


def test_an_untrained_tensor_is_not_joined_with_a_trained_one_first():
    """Two trained vectors cost 3 each, one untrained joined first 2: nothing says that the pair comes first."""
    topology = priced(tg.from_indices([["i"]] * 4, ["i"], {"i": 7}), Pricing(trained=0b0011))
    reduction = join_alike(topology)
    assert len(reduction.pairs) == 2
    assert order_cost(topology, reduction.complete([(0, 1)])) == 7 * (3 + 1 + 2)


def test_tensors_on_one_index_are_planned_without_a_search(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tngraph.search.orders.run_tasks", None)
    vectors = tg.plan(tg.from_indices([["i"]] * 400, ["i"], {"i": 4}))
    assert (vectors.at().cost, vectors.is_proven) == (399 * 4, True)
    own = {f"k{n}": 3 for n in range(500)}
    star = tg.plan(tg.from_indices([["h", k] for k in own], [], {"h": 4, **own}))
    assert (star.at().cost, star.is_proven) == (500 * 3 * 4 + 499 * 4, True)


def test_what_shares_no_index_is_multiplied_out():
    lines = "\n".join(f"  param w{k}[i{k}:3]" for k in range(1, 20))
    scalars = tg.plan(tg.parse(f"network s {{\n{lines}\n  y[] = w{{1..19}}\n  output y[] }}"))
    assert (scalars.at().cost, scalars.is_proven) == (19 * 3 + 18, True)
    units = tg.plan(tg.from_networkx(nx.grid_2d_graph(4, 5), bond=1))
    assert (units.at().cost, units.is_proven) == (19, True)
    names = [f"i{k}" for k in range(16)]
    outer = tg.plan(tg.from_indices([[name] for name in names], names, dict.fromkeys(names, 2)))
    assert outer.at().cost == 8 * 2**2 + 4 * 2**4 + 2 * 2**8 + 2**16


def test_parts_are_planned_one_by_one():
    two = nx.disjoint_union(nx.path_graph(12), nx.path_graph(12))
    one = tg.plan(tg.from_networkx(nx.path_graph(12), bond=3)).at().cost
    assert tg.plan(tg.from_networkx(two, bond=3)).at().cost == 2 * one + 1


# ------------------------------------------------------------------------------------------ proposals that fail


def test_a_proposal_that_fails_is_the_greedy_order(monkeypatch: pytest.MonkeyPatch):
    def fail(*given: object) -> None:
        raise KeyError(2)

    monkeypatch.setattr(proposals, "_propose", fail)
    topology = Topology(region(regular(20)), {})
    graph = hypergraph(topology)
    _, order = proposals.propose(graph, proposals.Trial(0, 0, 4))
    assert order_cost(topology, order) == order_cost(topology, join_greedily(graph.legs, graph.output, graph.sizes))


def wide(bond: int) -> tg.Network:
    """Three tensors of nine legs of 2^62 and small bonds between them."""
    own = [[f"{letter}{k}" for k in range(9)] for letter in "abc"]
    sizes = dict.fromkeys((name for names in own for name in names), 2**62)
    inputs = [[*own[0], "s"], ["s", *own[1], "r"], ["r", *own[2]]]
    return tg.from_indices(
        inputs, [name for names in own for name in names], {**sizes, "s": bond, "r": bond}, roles="param"
    )


@pytest.mark.parametrize("minimize", ["flops", "writes", "time", {"flops": 1, "writes": 8}])
@pytest.mark.parametrize("mode", ["infer", "train", "serve"])
def test_counts_beyond_any_float_are_planned(minimize: object, mode: str):
    plan = tg.plan(wide(2), mode=mode, minimize=minimize)  # type: ignore[arg-type]
    assert plan.macs == (0 if mode == "serve" else 4 * 2 ** (62 * 18) + 2 * 2 ** (62 * 27))
    assert plan.table()


def test_counts_beyond_any_float_are_sliced():
    (regime,) = tg.plan(wide(2), largest=2**62).regimes
    assert all(tree.sliced for stage in regime.stages for tree in stage.trees)


def test_a_large_region_beyond_any_float_is_planned():
    assert plan(tg.from_networkx(nx.complete_graph(16), bond=2**62), trials=2).at().cost > 2**1024


@pytest.mark.slow
def test_dense_and_large_graphs_beyond_any_float_are_planned():
    assert plan(tg.from_networkx(nx.complete_graph(40), bond=16), trials=1).at().cost > 2**1024
    assert plan(tg.from_networkx(nx.random_regular_graph(3, 60, 0), bond=2**62), trials=1).at().cost > 2**400


def test_a_function_of_a_step_that_computes_with_floats_is_told_so():
    with pytest.raises(tg.PlanError) as caught:
        tg.plan(wide(2), minimize=lambda work: work.operations + 8.0 * work.result)
    assert str(caught.value) == (
        "minimize computes with floats, and a step here has more operations or elements than a float holds\n"
        "  make its numbers smaller first: min(work.operations, 10**100)"
    )
