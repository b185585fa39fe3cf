"""Pearson matching of two sites, against scipy's sparse product and against dense Z_A^T Z_B.

    python benchmarks/pearson.py [--json] [--quick] [--size 16384] [--tokens 100000] [--active 100]

saeflow ranks the five best matches in both directions. The others only form the products; they are timed on a sample
of the source features and scaled by the number of products these take. Seconds are for all tokens.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.sparse as sp
import torch

from _timing import Row, arguments, interleaved, peak_memory, show
from saeflow.matching.correlation import top_correlations

SAMPLE = 512
Inputs = tuple[sp.csc_array, sp.csr_array, sp.csc_array]


def activations(tokens: int, size: int, active: int, seed: int) -> sp.csc_array:
    """Random activations with up to `active` features per token, of uneven frequencies as in real dictionaries."""
    rng = np.random.default_rng(seed)
    weight = 1.0 / (rng.permutation(size) + size / 8)
    index = rng.choice(size, size=(tokens, active), p=weight / weight.sum()).astype(np.int32)
    value = rng.exponential(size=index.size).astype(np.float32)
    made = sp.csr_array((value, index.ravel(), np.arange(0, index.size + 1, active)), (tokens, size))
    made.sum_duplicates()
    return made.tocsc()


def inputs(tokens: int, size: int, active: int) -> Inputs:
    """The source, a sample of the source's features as rows, and the target."""
    x = activations(tokens, size, active, 0)
    return x, sp.csr_array(x[:, :SAMPLE].T), activations(tokens, size, active, 1)


def both_directions(made: Inputs) -> None:
    top_correlations(made[0], made[2], 5)


def sparse_sample(made: Inputs) -> None:
    (made[1] @ sp.csr_array(made[2])).toarray()


def dense_sample(made: Inputs) -> None:
    """Dense product, 4,096 tokens at a time to limit memory; the time includes making the activations dense."""
    sample, target = sp.csr_array(made[1].T), sp.csr_array(made[2])
    out = torch.zeros(sample.shape[1], target.shape[1])
    for start in range(0, sample.shape[0], 4096):
        some, other = (torch.from_numpy(z[start : start + 4096].toarray()) for z in (sample, target))
        out += some.T @ other


def products(x: sp.csc_array, y: sp.csc_array) -> np.ndarray:
    """The number of products per source feature: the active target features, summed over the tokens it fires on."""
    active = np.diff(sp.csr_array(y).indptr).astype(np.float64)
    pattern = sp.csc_array((np.ones(x.nnz), x.indices, x.indptr), shape=x.shape)
    return pattern.T @ active


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=16384, help="features of each side")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--active", type=int, default=100, help="active features a token")
    parser.add_argument("--repeats", type=int, default=1)
    asked = parser.parse_args()
    tokens, size, active = (8_000, 1_024, 12) if asked.quick else (asked.tokens, asked.size, asked.active)
    prepare = functools.partial(inputs, tokens, size, active)
    made = prepare()
    work = products(made[0], made[2])
    scaled = {sparse_sample: work.sum() / work[:SAMPLE].sum(), dense_sample: size / SAMPLE}
    names = {
        both_directions: "saeflow, top 5 of both directions",
        sparse_sample: "scipy sparse product, to dense",
        dense_sample: "dense float32 product",
    }
    found = interleaved({name: functools.partial(way, made) for way, name in names.items()}, asked.repeats)
    base = found[names[both_directions]]
    rows = [
        Row(
            method=name,
            size=f"{size:,} x {size:,}, {tokens:,} tokens, {active} active",
            seconds=found[name] * scaled.get(way, 1.0),
            ratio=found[name] * scaled.get(way, 1.0) / base,
            against=names[both_directions],
            extra_mb=peak_memory(prepare, way),
            note=f"from {SAMPLE} sources: seconds scaled, memory not" if way in scaled else "",
        )
        for way, name in names.items()
    ]
    show(rows, as_json=asked.json, products=f"{work.sum():.3g}")


if __name__ == "__main__":
    main()
