"""Are the paper's effects real in the demo pack? Flow, origins and deactivation, measured.

    python scripts/demo_effects.py            writes docs/demo-effects.md

1. Flow: best cosine by pair of sites, from pack/quality.json.
2. Origins (section 5.1): for active residual features, which matched predecessors are active.
3. Deactivation (section 5.2): every active feature of a predecessor site is removed at one token, alone, and
   the layer is run again: one row of the batch for each feature removed. All strategies are then read off
   the same matrix of activation changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demo_build.markdown import table
from saeflow.demo import DOMAINS, quality, texts
from saeflow.ids import Part, Site
from saeflow.matching.atlas import Atlas, open_atlas
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model
from saeflow.sources.values import Tokens

LONGEST = 96
PARTS = (Part.RES, Part.MLP, Part.ATT)
STRATEGIES = ("top-1", "random of top-5", "random active feature", "exhaustive search")


@dataclass
class Setup:
    model: LanguageModel
    dictionaries: DictionarySet
    atlas: Atlas
    rng: np.random.Generator

    def samples(self, n_texts: int, n_tokens: int) -> Iterator[tuple[str, Tokens, list[int]]]:
        """(domain, one text, positions drawn from it without BOS)."""
        for domain in DOMAINS:
            for text in texts(domain, n_texts, seed=11):
                tokens = self.model.tokenize([text], max_length=LONGEST)
                length = tokens.lengths[0]
                if length > 8:
                    drawn = self.rng.choice(np.arange(1, length), min(n_tokens, length - 1), replace=False)
                    yield domain, tokens, sorted(drawn.tolist())


@dataclass
class Origins:
    """Counts and scores by layer and group."""

    counts: dict[int, np.ndarray] = field(default_factory=dict)
    scores: dict[tuple[int, str, Part], list[float]] = field(default_factory=dict)
    tokens: int = 0


GROUPS = ("nowhere", "RES", "MLP", "ATT", "RES & MLP", "RES & ATT", "MLP & ATT", "RES & MLP & ATT")


def group_name(active: dict[Part, bool]) -> str:
    return " & ".join(part.value.upper() for part in PARTS if active[part]) or "nowhere"


def origins(setup: Setup, layers: list[int], n_texts: int, n_tokens: int) -> Origins:
    found = Origins({layer: np.zeros(len(GROUPS), dtype=int) for layer in layers})
    sites = sorted(setup.dictionaries)
    for _, tokens, positions in setup.samples(n_texts, n_tokens):
        captured = setup.model.capture(tokens, sites)
        acts = {s: setup.dictionaries[s].encode(captured[s][0, positions]) for s in sites}
        found.tokens += len(positions)
        for layer in layers:
            site = Site(layer, Part.RES)
            tables = {p.part: setup.atlas[site, p] for p in site.predecessors}
            for row, feature in acts[site].nonzero().tolist():
                active = {
                    part: bool(acts[tables[part].target][row, tables[part].index[feature, 0]] > 0)
                    for part in PARTS
                }
                name = group_name(active)
                found.counts[layer][GROUPS.index(name)] += 1
                for part in PARTS:
                    found.scores.setdefault((layer, name, part), []).append(
                        float(tables[part].score[feature, 0])
                    )
    return found


def changes(setup: Setup, tokens: Tokens, position: int, site: Site, removed: Site) -> dict[str, Any] | None:
    """Activation changes 1 - z_new / z_old: [features removed, targets], and which they are."""
    here = slice(0, position + 1)
    clean = Tokens(tokens.input_ids[:, here], tokens.attention_mask[:, here])
    captured = setup.model.capture(clean, [site, removed])
    z = setup.dictionaries[site].encode(captured[site][0, -1])
    a = setup.dictionaries[removed].encode(captured[removed][0, -1])
    targets, features = z.nonzero().flatten(), a.nonzero().flatten()
    if not len(targets) or not len(features):
        return None
    delta = -a[features, None] * setup.dictionaries[removed].W_dec[features]

    def edit(h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        h[:, -1] += delta
        return h

    batch = Tokens(clean.input_ids.expand(len(features), -1), clean.attention_mask.expand(len(features), -1))
    with setup.model.intervening({removed: edit}):
        after = setup.model.capture(batch, [site])[site][:, -1]
    new = setup.dictionaries[site].encode(after)[:, targets]
    return {"targets": targets.tolist(), "features": features.tolist(), "change": 1 - new / z[targets]}


def deactivation(setup: Setup, layers: list[int], n_texts: int, n_tokens: int) -> dict[Any, list[float]]:
    """Activation changes by (layer, part of the predecessor, strategy)."""
    found: dict[Any, list[float]] = {}
    for _, tokens, positions in setup.samples(n_texts, n_tokens):
        for position in positions:
            for layer in layers:
                site = Site(layer, Part.RES)
                for removed in site.predecessors:
                    measured = changes(setup, tokens, position, site, removed)
                    if measured is not None:
                        _read_off(setup, measured, site, removed, found)
    return found


def _read_off(
    setup: Setup, measured: dict[str, Any], site: Site, removed: Site, found: dict[Any, list[float]]
) -> None:
    """What each strategy would have got, for the targets whose top-1 predecessor is active."""
    table = setup.atlas[site, removed]
    rows = {feature: row for row, feature in enumerate(measured["features"])}
    for column, target in enumerate(measured["targets"]):
        effect = measured["change"][:, column]
        best = table.index[target].tolist()
        chosen: dict[str, float] = {}
        any_of_5 = int(setup.rng.choice(best[:5]))
        if any_of_5 in rows:
            chosen["random of top-5"] = float(effect[rows[any_of_5]])
        if best[0] in rows:
            chosen["top-1"] = float(effect[rows[best[0]]])
            chosen["exhaustive search"] = float(effect.max())
            others = [row for feature, row in rows.items() if feature != best[0]]
            if others:
                chosen["random active feature"] = float(effect[int(setup.rng.choice(others))])
        for strategy, value in chosen.items():
            for key in (str(site.layer), "all"):
                found.setdefault((key, removed.part, strategy), []).append(value)


def flow_page() -> str:
    rows = [["match", "mean best cosine", "share above 0.5", "share above 0.7"]]
    for name, row in quality()["flow"].items():
        rows.append([name, f"{row['mean best']:.3f}", f"{row['above 0.5']:.3f}", f"{row['above 0.7']:.3f}"])
    return "## Flow: best cosine of each feature\n\n" + table(rows)


def origins_page(found: Origins) -> str:
    shares = [["layer", "features", *GROUPS]]
    for layer, counts in found.counts.items():
        shares.append([str(layer), f"{counts.sum():,}", *(f"{c / counts.sum():.1%}" for c in counts)])
    scores = [["group", "n", "s(R)", "s(M)", "s(A)"]]
    for name in GROUPS:
        values = {
            p: [v for (_, g, q), vs in found.scores.items() if g == name and q is p for v in vs]
            for p in PARTS
        }
        if values[Part.RES]:
            scores.append([name, f"{len(values[Part.RES]):,}", *(f"{np.mean(values[p]):.3f}" for p in PARTS)])
    return (
        f"\n## Origins (section 5.1): which matched predecessors are active\n\n{found.tokens:,} tokens of five "
        "domains; share of the active residual features of a layer by group.\n\n" + table(shares)
        + "\nMean scores by group, all layers together.\n\n" + table(scores)
    )  # fmt: skip


def interval(values: list[float], statistic: Any, rng: np.random.Generator) -> str:
    """95 % bootstrap interval."""
    data = np.asarray(values)
    drawn = statistic(data[rng.integers(0, len(data), (1000, len(data)))], 1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{low:.2f}-{high:.2f}"


def deactivation_page(found: dict[Any, list[float]], rng: np.random.Generator) -> str:
    rows = [["layer", "predecessor", "strategy", "trials", "deactivated", "95 %", "mean change", "95 %"]]
    for layer in ["all", *sorted({key for key, _, _ in found} - {"all"})]:
        for part in PARTS:
            for strategy in STRATEGIES:
                values = found.get((layer, part, strategy))
                if values:
                    gone = [float(v >= 1) for v in values]
                    rows.append([
                        layer, part.value, strategy, f"{len(values):,}", f"{np.mean(gone):.3f}",
                        interval(gone, np.mean, rng), f"{np.mean(values):.3f}", interval(values, np.mean, rng),
                    ])  # fmt: skip
    return (
        "\n## Deactivation (section 5.2): remove one predecessor at one token\n\nThe predecessor's share of the hidden "
        "state is taken out at its own site (r = 0) and the layer is run again. Deactivated: the target is silent "
        "afterwards; change: 1 - z_new / z_old. `exhaustive search` tries every active feature of the site and keeps "
        "the best; `random active feature` is the control, any active feature of the site but the match.\n\n"
        + table(rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "demo-effects.md")
    parser.add_argument("--texts", type=int, default=48, help="texts of each domain")
    parser.add_argument("--tokens", type=int, default=5, help="tokens of each text")
    arguments = parser.parse_args()
    setup = Setup(load_model("demo"), load_dictionaries("demo"), open_atlas("demo"), np.random.default_rng(5))
    layers = list(range(1, setup.model.n_layers))
    with torch.no_grad():
        origin_page = origins_page(origins(setup, layers, arguments.texts, arguments.tokens))
        removed = deactivation(setup, layers, max(1, arguments.texts // 4), arguments.tokens)
    head = (
        "# The paper's effects in the demo pack\n\nWritten by `python scripts/demo_effects.py`; seeds are fixed. The "
        "model has 6 layers and 3.4 million parameters: what holds here is a check of the method and of this code, not "
        "evidence about large models.\n\n"
    )
    page = head + flow_page() + origin_page + deactivation_page(removed, np.random.default_rng(0))
    arguments.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
