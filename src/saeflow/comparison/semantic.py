"""Features as distributions of hidden states, matched by optimal transport: beyond cosines of decoder rows.

Cao, Do and Thai 2026 (arXiv 2605.28567) represent a feature by the hidden states that express it, weighted by its
activation, project these into one reference space, and compare features of any two layers by the Wasserstein distance.
What stands here follows their abstract; where it leaves a choice open, ours is

    hidden states   of the `m` tokens on which a feature is most active, with weights activation / sum
    reference       the residual stream of the same tokens at one layer, the last by default, at unit variance
    distance        sliced W_2: over random directions u, the quantiles of <h, u> of the two distributions

    SW_2(f, g)^2 = mean_u mean_q ( Q_f,u(q) - Q_g,u(q) )^2

so that a feature is a row of quantiles and the nearest row is the match. Weights are relative: rescaling activations
changes nothing. A feature that never fires has no row and matches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.ids import Part, Site
from saeflow.matching.table import MatchTable
from saeflow.matching.topk import top_k
from saeflow.sources.activity import encoded, site_states, text_batches
from saeflow.sources.architectures import Point
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

METHOD: Final = "semantic-ot"


def semantic_rows(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    texts: Sequence[str],
    *,
    reference: Site | None = None,
    m: int = 128,
    directions: int = 64,
    quantiles: int = 16,
    max_length: int = 128,
    max_tokens: int = 50_000,
    texts_at_once: int = 16,
    seed: int = 0,
) -> dict[Site, Float[Tensor, "n_features width"]]:
    """A row for every feature whose Euclidean distances are sliced Wasserstein distances; NaN where it never fires.

    Args:
        model: The model the dictionaries were trained on.
        dictionaries: Dictionaries of one model.
        texts: Texts to run.
        reference: Residual site whose hidden states are compared; the last layer's by default.
        m: Tokens of a feature at most, those on which it is most active.
        directions: Random directions of the reference space.
        quantiles: Quantiles of each direction.
        max_length: Tokens of each text at most.
        max_tokens: Tokens that are not special at most.
        texts_at_once: Texts in one forward pass.
        seed: Seed of the directions.

    Raises:
        InvalidArgument: for texts with fewer than two tokens.
        WidthMismatch: when a dictionary does not fit the model.
    """
    model = model.as_trained(dictionaries)
    sites = sorted(dictionaries)
    site = reference or Site(model.n_layers - 1, Part.RES)
    point = Point.at(site)
    u = torch.randn(model.d_model, directions, generator=torch.Generator().manual_seed(seed))
    u = torch.nn.functional.normalize(u, dim=0)
    # 1. on which tokens each feature is most active, and where those lie along every direction
    best = {at: torch.zeros(dictionaries[at].n_features, m) for at in sites}
    where = {at: torch.zeros(dictionaries[at].n_features, m, dtype=torch.long) for at in sites}
    along: list[Tensor] = []
    seen = 0
    batches = text_batches(model, texts, max_length=max_length, max_tokens=max_tokens, texts_at_once=texts_at_once)
    for batch in batches:
        real = batch.real
        captured = model.capture(batch.tokens, [point])[point]
        states = site_states(model, dictionaries, sites, batch.tokens)
        along.append(captured[real].float().cpu() @ u)
        for at in sites:
            acts = torch.cat(list(encoded(dictionaries[at], states[at][real]))).float().cpu().T
            place = torch.arange(seen, seen + acts.shape[1]).expand_as(acts)
            every, places = torch.cat([best[at], acts], dim=1), torch.cat([where[at], place], dim=1)
            best[at], order = every.topk(m, dim=1)
            where[at] = places.gather(1, order)
        seen += int(real.sum())
    whole = torch.cat(along)
    whole = (whole - whole.mean(dim=0)) / whole.std(dim=0).clamp(min=1e-12)
    # 2. the quantiles of each feature along every direction
    levels = (torch.arange(quantiles) + 0.5) / quantiles
    found: dict[Site, Tensor] = {}
    for at in sites:
        rows = torch.full((len(best[at]), directions, quantiles), torch.nan)
        for top in range(0, len(rows), 256):
            weight, places = best[at][top : top + 256].clamp(min=0), where[at][top : top + 256]
            value, order = whole[places].sort(dim=1)  # [some m directions]
            share = weight[:, :, None].expand_as(value).gather(1, order).cumsum(dim=1).mT.contiguous()
            share = share / share[..., -1:]
            index = torch.searchsorted(share, levels.expand(*share.shape[:2], quantiles).contiguous()).clamp(max=m - 1)
            rows[top : top + 256] = value.mT.gather(2, index)
        rows[best[at][:, 0] <= 0] = torch.nan
        found[at] = rows.flatten(1) / (directions * quantiles) ** 0.5
    return found


def semantic_table(
    source: tuple[Site, Float[Tensor, "n_source width"]], target: tuple[Site, Float[Tensor, "n_target width"]], k: int
) -> MatchTable:
    """The `k` nearest features of the target, nearest first; scores are 1 / (1 + SW_2), in (0, 1].

    Raises:
        InvalidArgument: when `k` is not between 1 and the features of the target that fire.
    """
    (site, a), (other, b) = source, target
    live_a, live_b = (torch.nonzero(rows[:, 0].isfinite()).flatten() for rows in (a, b))
    x, y = a[live_a], b[live_b]
    # nearest is largest x.y - |y|^2 / 2
    half = -0.5 * y.square().sum(dim=1, keepdim=True)
    top = top_k(torch.cat([x, x.new_ones(len(x), 1)], dim=1), torch.cat([y, half], dim=1), k)
    squared = x.square().sum(dim=1, keepdim=True) - 2 * top.score
    index = np.zeros((len(a), k), dtype=np.int32)
    score = np.full((len(a), k), -np.inf, dtype=np.float32)
    index[live_a.numpy()] = live_b[top.index].numpy().astype(np.int32)
    score[live_a.numpy()] = (1 / (1 + squared.clamp(min=0).sqrt())).numpy()
    return MatchTable(site, other, METHOD, len(b), index, score)
