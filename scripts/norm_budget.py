"""Compare the cost of steering budgets across models: a share of |h| against a share of |h - mean|.

    saeflow models get smollm2-135m
    saeflow models get gemma-3-270m
    python scripts/norm_budget.py

Random directions are added at every token of the residual stream of the middle layer. Their length is a share of the
mean norm |h| there, or a share of the centred norm; the script prints the loss that each adds, as a table. The centred
norm is that of `saeflow.steering.centred_norms`, on the same texts; both norms leave out massive positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import saeflow as sf
from demo_build.markdown import table
from saeflow.experiments.sampling import read_texts
from saeflow.ids import Part, Site
from saeflow.sources.activity import text_batches
from saeflow.sources.massive import ordinary
from saeflow.sources.model import LanguageModel
from saeflow.steering import centred_norms

MODELS = {"demo": "demo", "smollm2-135m": "smollm2-135m", "gemma-3-270m": "smollm2-135m"}
"""Each model with the release whose texts it reads."""

SHARES = {"|h|": 0.4, "|h - mean|": 0.5}
"""The budgets compared: a share of each norm."""

TEXTS, TOKENS, DIRECTIONS = 8, 96, 2


def main() -> None:
    rows = [["model", "layer", "mean of |h|", "mean state / |h|", "|h - mean| / |h|"]]
    rows[0] += [f"nats at {share:.0%} of {name}" for name, share in SHARES.items()]
    for name, release in MODELS.items():
        model = sf.load_model(name)
        site = Site(model.n_layers // 2, Part.RES)
        texts = read_texts([release], TEXTS)
        plain, constant = norms(model, site, texts)
        centred = centred_norms(model, [site], texts)[site]
        lengths = [SHARES["|h|"] * plain, SHARES["|h - mean|"] * centred]
        added = losses_added(model, site, texts, lengths)
        rows.append([name, str(site.layer), f"{plain:.1f}", f"{constant / plain:.2f}", f"{centred / plain:.2f}"])
        rows[-1] += [f"{nats:.2f}" for nats in added]
    print(table(rows))


def norms(model: LanguageModel, site: Site, texts: Sequence[str]) -> tuple[float, float]:
    """The mean of |h|, and the norm of the mean of h."""
    states = []
    for batch in text_batches(model, texts, max_length=TOKENS):
        h = model.capture(batch.tokens, [site])[site]
        states.append(h[ordinary(h, batch.real)].double())
    every = torch.cat(states)
    return float(every.norm(dim=-1).mean()), float(every.mean(0).norm())


def losses_added(model: LanguageModel, site: Site, texts: Sequence[str], lengths: Sequence[float]) -> list[float]:
    """Mean loss, in nats per token, added by random directions of each length; all lengths use the same directions."""
    drawn = torch.randn(DIRECTIONS, model.d_model, generator=torch.Generator().manual_seed(0))
    directions = drawn / drawn.norm(dim=-1, keepdim=True)
    total, n = [0.0] * len(lengths), 0
    for batch in text_batches(model, texts, max_length=TOKENS):
        follows = batch.real[:, 1:]
        without = model.loss(batch.tokens)[follows]
        for i, length in enumerate(lengths):
            for direction in directions:
                with model.intervening({site: lambda h, step=length * direction: h + step.to(h)}):
                    total[i] += float((model.loss(batch.tokens)[follows] - without).double().sum())
        n += DIRECTIONS * int(follows.sum())
    return [nats / n for nats in total]


if __name__ == "__main__":
    main()
