"""Fit the 42 linear layers of a language model, in the metric of what it reads itself, without training.

    python examples/fit_stories15m.py [--share 0.6] [--families mpo2 low_rank …] [--plain] [--model FILE]

The model is stories15M. Its inputs are 28 stories that it tells itself, so no text is needed. Each weight keeps the
same share of its params; the perplexity is that of 12 other stories of the dense model (1,524 tokens). With
``--plain`` every direction of the input counts the same, as in tools that know no metric.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import nn

import tngraph as tg
from models import Llama, load_stories
from tngraph.layers import Linear

Modes = tuple[tuple[int, ...], tuple[int, ...]]
TWO = {288: (16, 18), 768: (24, 32)}
THREE = {288: (6, 6, 8), 768: (8, 8, 12)}
ONE = {288: (288,), 768: (768,)}
FAMILIES: Mapping[str, tuple[str, Mapping[int, tuple[int, ...]]]] = {
    "low_rank": ("low_rank", ONE),
    "mpo2": ("mpo", TWO),
    "mpo3": ("mpo", THREE),
    "btt": ("btt", TWO),
    "tucker": ("tucker", TWO),
    "kronecker": ("rcp", TWO),
    "cp": ("cp", TWO),
    "tree": ("tree", THREE),
    "ring": ("ring", THREE),
    "monarch": ("monarch", TWO),
}
"""Each row of the table: a family, and the modes of its sides."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.6, help="params kept, of those of the 42 weights")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES], help="rows of the table")
    parser.add_argument("--plain", action="store_true", help="without inputs: the metric is the identity")
    parser.add_argument("--sweeps", type=int, default=30, help="the most sweeps per layer")
    parser.add_argument("--model", help="a model file of llama2.c, instead of a download")
    options = parser.parse_args(arguments)
    dense = load_stories(options.model)
    own, held_out = dense.tell(28, 128, seed=0), dense.tell(12, 128, seed=1000)
    names = [name for name, layer in dense.named_modules() if isinstance(layer, nn.Linear)]
    started = time.perf_counter()
    moments = None if options.plain else tg.collect_moments(dense, own[:, :-1], names)
    print(f"dense: perplexity {dense.perplexity(held_out):.3f}; moments in {time.perf_counter() - started:.1f} s")
    print(f"{'family':<10} {'kept':>6} {'output error':>13} {'low rank':>9} {'perplexity':>11} {'seconds':>8}")
    for row in options.families:
        print(fit_row(row, dense, names, moments, options.share, options.sweeps, held_out), flush=True)


def fit_row(
    row: str,
    dense: Llama,
    names: Sequence[str],
    moments: Mapping[str, tg.Moments] | None,
    share: float,
    sweeps: int,
    held_out: torch.Tensor,
) -> str:
    """Return a line of the table: all layers fitted as one family."""
    family, modes = FAMILIES[row]
    model, started = deepcopy(dense), time.perf_counter()
    fits = []
    for name in names:
        layer = dense.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        sides = modes[layer.in_features], modes[layer.out_features]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cores = Linear.like(layer, family, modes=sides, **_rank(family, sides, share))
        fits.append(tg.fit(cores, layer, None if moments is None else moments[name], sweeps=sweeps))
        model.set_submodule(name, cores)
    seconds = time.perf_counter() - started
    kept = sum(done.params for done in fits) / sum(done.dense_params for done in fits)
    error = (sum(done.output_error**2 for done in fits) / len(fits)) ** 0.5
    low_rank = (sum(done.low_rank.error**2 for done in fits if done.low_rank) / len(fits)) ** 0.5
    perplexity = model.perplexity(held_out)
    return f"{row:<10} {kept:>6.3f} {error:>13.4f} {low_rank:>9.4f} {perplexity:>11.2f} {seconds:>8.1f}"


def _rank(family: str, sides: Modes, share: float) -> dict[str, int]:
    """Return the largest rank that keeps the share of the params, if the family has one."""
    if family == "monarch":
        return {}
    choice = tg.choose_rank(family, *sides, compression=share)
    return {choice.option: choice.rank}


if __name__ == "__main__":
    main()
