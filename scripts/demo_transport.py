"""Test whether matching by optimal transport beats cosine, on planted data and on the demo pack.

    python scripts/demo_transport.py [--work FOLDER]          writes docs/transport.md

Cao et al. 2026 (arXiv 2605.28567) report that it does. This script measures the share of correct matches on planted
data, agreement with cosine as in docs/agreement.md, and deactivation (section 5.2) on texts that no table was made
from. A killed run resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from demo_build.markdown import table
from saeflow.experiments.deactivation import run_deactivation
from saeflow.experiments.deactivation_tables import summarize_deactivation
from saeflow.experiments.inputs import Inputs
from saeflow.experiments.methods import Tables, top_k
from saeflow.experiments.sampling import expand, held_out, open_dataset
from saeflow.experiments.settings import DeactivationSize, InputNames
from saeflow.ids import Part, Site
from saeflow.matching.agreement import agreement
from saeflow.matching.correlation import correlate, top_correlations
from saeflow.matching.transport import draw_atoms, top_transport, unit_states

DOCS = Path(__file__).parent.parent / "docs"
TOKENS, TEXTS, SEEDS = 100_000, 3, 5
PAIRS = [(Site(layer, Part.RES), Site(layer - 1, Part.RES)) for layer in range(1, 6)]
N, FEATURES, D, DRIFT = 3000, 120, 64, 0.35
HEAD = """\
# Semantic optimal transport: does it beat cosine?

Written by `python scripts/demo_transport.py`. Cao et al. 2026 ([arXiv 2605.28567](https://arxiv.org/abs/2605.28567))
match features by what they fire on. A feature is the distribution of the hidden states that express it, weighted by its
activation; all distributions lie in one shared space and are compared by their Wasserstein distance. They report that
this beats decoder vectors. `saeflow correlate --method transport` implements it, with the hidden states of one
reference site as the shared space; `saeflow.matching.transport` says how. Only the paper's abstract was available: what
it leaves open was chosen here, and the paper's own code may do better.

**Here it does not.** On planted data it is right where decoder rows say little or nothing, but so is Pearson
correlation, which is also better where two features fire on nearly the same tokens, or where a topic dominates the
hidden state. Only transport does well where the two sides saw different tokens and their rows have drifted. In the demo
pack it mostly names the same features as Pearson, and removing its match silences no more features than removing that
of cosine. It needs texts, the model, and an assignment of 64 tokens to 64 for every candidate. Within one model, match
by cosine, or by Pearson where rows cannot be compared; transport is for sides that share no tokens.
"""
PLANTED = """\
## Planted data

{features} features over {n:,} tokens, at two sites, A and B. The table gives the share whose best match is the right
one, the mean of {seeds} seeds. B fires as A does, except that it misses a fifth of the tokens, fires on about as many
others, and its activations vary by about a third.

| world | |
|---|---|
| drift | rows of B at a cosine of about {drift} with those of A |
| turned stream | rows of B are those of A after a random rotation, which a cosine of decoder rows cannot see |
| twins | rows drift; features come in pairs, whose second feature does what the first does on nine tokens of ten |
| topics | rows drift; a token has one of twelve topics, whose vector is most of its hidden state |
| other tokens | rows drift; B is observed on other tokens than A |

"""


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(world: str, seed: int) -> dict[str, float]:
    """The share of features that each method matches correctly in a planted world."""
    # 1. which features fire, and the directions of the rows
    rng = np.random.default_rng(seed)
    topics = rng.integers(0, 12, N)
    fires = rng.random((N, FEATURES)) < rng.uniform(0.005, 0.06, FEATURES)
    if world == "topics":
        fires = (rng.random((N, FEATURES)) < 0.3) & (topics[:, None] == np.arange(FEATURES) % 12)
    if world == "twins":
        half = FEATURES // 2
        fires[:, half:] = np.where(rng.random((N, half)) < 0.9, fires[:, :half], fires[:, half:])
    acts = fires * rng.exponential(size=(N, FEATURES))
    rows = unit(rng.normal(size=(FEATURES, D)))
    if world == "turned stream":
        other_rows = rows @ np.linalg.qr(rng.normal(size=(D, D)))[0]
    else:
        other_rows = unit(DRIFT * rows + (1 - DRIFT**2) ** 0.5 * unit(rng.normal(size=(FEATURES, D))))
    # 2. activations at B, and hidden states at A
    kept = np.where(rng.random(acts.shape) < 0.8, acts, 0) * (1 + 0.33 * rng.normal(size=acts.shape)).clip(0.1)
    other = np.where(rng.random(acts.shape) < 0.2 * fires.mean(), rng.exponential(size=acts.shape), kept)
    states = acts @ rows + 0.1 * rng.normal(size=(N, D))
    if world == "topics":
        states += 3 * unit(rng.normal(size=(12, D)))[topics]
    if world == "other tokens":
        acts, other = acts * (np.arange(N)[:, None] % 2 == 0), other * (np.arange(N)[:, None] % 2 == 1)
    order = rng.permutation(FEATURES)
    # 3. matches
    right = np.argsort(order)
    one, two = sp.csc_array(acts), sp.csc_array(other[:, order])
    ready = unit_states(states.astype(np.float32), np.ones(N, dtype=bool))
    found = {
        "cosine": (rows @ other_rows[order].T).argmax(axis=1),
        "pearson": top_correlations(one, two, 1)[0].index[:, 0],
        "transport": top_transport(draw_atoms(one), draw_atoms(two), ready, 1)[0][0][:, 0],
    }
    return {name: float((index == right).mean()) for name, index in found.items()}


def on_planted() -> str:
    rows = [["world", "cosine", "pearson", "transport"]]
    for world in ("drift", "turned stream", "twins", "topics", "other tokens"):
        found = [planted(world, seed) for seed in range(SEEDS)]
        rows.append([world, *(f"{np.mean([one[name] for one in found]):.3f}" for name in rows[0][1:])])
        print(rows[-1], flush=True)
    return PLANTED.format(features=FEATURES, n=N, seeds=SEEDS, drift=DRIFT) + table(rows)


def compared(tables: Mapping[str, Tables]) -> str:
    """A table of how often two methods name the same predecessor in the layer before, by layer."""
    found = {(row.method_a, row.method_b, row.layer): row for row in agreement(tables).rows}
    layers = [source.layer for source, _ in PAIRS]
    rows = [["method", "against", *(f"layer {layer}" for layer in layers)]]
    for one, other in (("transport", "cosine"), ("transport", "pearson"), ("pearson", "cosine")):
        cells = [found[one, other, layer] for layer in layers]
        rows.append([one, other, *(f"{row.same:.2f} / {row.in_top_k:.2f}" for row in cells)])
    told = (
        "Residual features matched with those of the layer before: the share whose best match is the same, then the "
        "share whose best match is among the other method's best five.\n"
    )
    return f"## Agreement on the demo pack\n\n{told}\n" + table(rows)


def deactivated(inputs: Inputs, tables: Mapping[str, Tables], out: Path) -> str:
    strategies = [top_k("top-1" if name == "cosine" else name, atlas) for name, atlas in tables.items()]
    size = DeactivationSize(("top-1",), texts=TEXTS, r=(0.0,), loss=0)
    results = run_deactivation(
        inputs.model,
        inputs.dictionaries,
        strategies,
        lambda: inputs.samples(size.texts, size.tokens, size.max_length),
        size,
        request=inputs.request("deactivation", strategies, {"texts": TEXTS, "layers": inputs.layers}),
        out=out,
        progress=lambda done, total, _: print(f"deactivation {done}/{total}", flush=True),
    )
    found = {name: made.dicts() for name, made in summarize_deactivation(results).items()}
    rows = [["best match by", "targets", "deactivated", "its control", "mean change"]]
    for row in found["by_strategy_layer"]:
        if row["layer"] == "all":
            name = "cosine" if row["strategy"] == "top-1" else row["strategy"]
            rate = f"{row['deactivated']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            control = f"{row['control_deactivated']:.3f}"
            rows.append([name, f"{row['n']:,}", rate, control, f"{row['change']:.3f}"])
    paired = [["first", "second", "targets", "difference in rate", "p", "n"]]
    for row in found["paired"]:
        first, second = (("cosine" if row[key] == "top-1" else row[key]) for key in ("strategy_a", "strategy_b"))
        told = f"{row['difference']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        paired.append([first, second, row["scope"], told, f"{row['p']:.2g}", f"{row['n']:,}"])
    said = (
        f"Up to {TEXTS} texts of each domain, five tokens each; the best match in the layer before is removed "
        "where it is active, and the layer is recomputed. The tables of Pearson and transport were made on other "
        "texts. Brackets give 95 % intervals over texts.\n"
    )
    return f"## Deactivation on the demo pack\n\n{said}\n{table(rows)}\n{table(paired)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/transport"), help="folder for what can be resumed")
    work = parser.parse_args().work
    pages = [HEAD, on_planted()]
    inputs = Inputs.open(InputNames("demo", datasets=expand(["demo"])), first=1)
    passages = held_out([open_dataset(name) for name in expand(["demo"])], 1000)
    options = {"k": 5, "pairs": PAIRS, "max_tokens": TOKENS, "progress": lambda *told: print(*told, flush=True)}
    tables: dict[str, Tables] = {"cosine": {pair: inputs.atlas[pair] for pair in PAIRS}}
    for method in ("pearson", "transport"):
        reference = Site(3, Part.RES) if method == "transport" else None
        tables[method] = correlate(
            inputs.model,
            inputs.dictionaries,
            passages,
            out=work / method,
            method=method,
            reference=reference,
            **options,
        )
    pages += [compared(tables), deactivated(inputs, tables, work / "deactivation")]
    page = "\n".join(pages)
    (DOCS / "transport.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
