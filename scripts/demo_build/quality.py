"""Measure the pack on held-out text: the model by domain, every SAE, and the flow between them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saeflow.ids import Part, Site
from saeflow.matching.atlas import Atlas
from saeflow.matching.topk import top_k_both
from saeflow.report.tables import best_summary, score_summary
from saeflow.sources.library import DictionarySet
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens

from .corpus import DOMAINS, load_windows
from .model import CONTEXT

WINDOWS = 24


def _held_out(data: Path) -> dict[str, torch.Tensor]:
    """The first WINDOWS held-out windows of each domain: [WINDOWS, CONTEXT]."""
    return {d: torch.from_numpy(load_windows(data, d, "held_out", CONTEXT)[:WINDOWS]) for d in DOMAINS}


def _tokens(ids: torch.Tensor) -> Tokens:
    return Tokens(ids, torch.ones_like(ids))


def _loss(model: LanguageModel, batches: list[Tokens]) -> float:
    """Mean loss in nats per token."""
    losses = torch.cat([model.loss(tokens).flatten() for tokens in batches])
    return float(losses.nanmean())


def _loss_with(model: LanguageModel, batches: list[Tokens], site: Site, put: Callable[[Tensor], Tensor]) -> float:
    """Mean loss with `put` applied to a site's activations, except at BOS, which no SAE was trained on."""
    losses: list[Tensor] = []
    for tokens in batches:
        keep = (tokens.input_ids != 0)[..., None]
        with model.intervening({site: lambda h, keep=keep: torch.where(keep, put(h), h)}):
            losses.append(model.loss(tokens).flatten())
    return float(torch.cat(losses).nanmean())


def model_quality(model: LanguageModel, data: Path) -> dict[str, Any]:
    sizes = json.loads((data / "sizes.json").read_text())
    rows: dict[str, Any] = {}
    for domain in DOMAINS:
        ids = load_windows(data, domain, "held_out", CONTEXT)
        batches = [_tokens(torch.from_numpy(b)) for b in np.array_split(ids, max(1, len(ids) // 24))]
        nats = _loss(model, batches)
        size = sizes[f"{domain}.held_out"]
        bits = nats / math.log(2) * size["tokens"] / size["bytes"]
        rows[domain] = {"nats per token": round(nats, 4), "bits per byte": round(bits, 4), "tokens": int(ids.size)}
    return rows


def _fired(model: LanguageModel, dictionaries: DictionarySet, data: Path) -> dict[Site, Tensor]:
    """For every site, which features fire at all on the entire held-out text (about 200,000 tokens)."""
    ids = np.concatenate([load_windows(data, d, "held_out", CONTEXT) for d in DOMAINS])
    sites = sorted(dictionaries)
    fired = {site: torch.zeros(dictionaries[site].n_features, dtype=torch.bool) for site in sites}
    for rows in np.array_split(ids, len(ids) // 32):
        tokens = _tokens(torch.from_numpy(rows))
        captured = model.capture(tokens, sites)
        for site in sites:
            acts = dictionaries[site].encode(captured[site][tokens.input_ids != 0])
            fired[site] |= (acts > 0).any(0)
    return fired


def sae_quality(model: LanguageModel, dictionaries: DictionarySet, data: Path) -> dict[str, Any]:
    """FVE, L0, dead features, loss recovered and loss added for every SAE."""
    batches = [_tokens(ids) for ids in _held_out(data).values()]
    clean = _loss(model, batches)
    fired = _fired(model, dictionaries, data)
    rows: dict[str, Any] = {}
    for site in sorted(dictionaries):
        dictionary = dictionaries[site]
        h = torch.cat([model.capture(t, [site])[site][t.input_ids != 0] for t in batches])
        acts = dictionary.encode(h)
        error = h - dictionary.decode(acts)
        row: dict[str, Any] = {
            "features": dictionary.n_features,
            "fve": 1 - float(error.pow(2).sum() / (h - h.mean(0)).pow(2).sum()),
            "l0": float((acts > 0).sum(1).float().mean()),
            "dead": float((~fired[site]).float().mean()),
        }
        spliced = _loss_with(model, batches, site, lambda x, d=dictionary: d.decode(d.encode(x)))
        zero = _loss_with(model, batches, site, torch.zeros_like)
        row["loss recovered"] = (zero - spliced) / (zero - clean)
        row["loss added"] = spliced - clean
        rows[str(site)] = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print(f"quality {site}: {rows[str(site)]}", flush=True)
    return rows


def _best(dictionaries: DictionarySet, source: Site, target: Site, rotate: int | None = None) -> dict[str, float]:
    """Summary of the best cosines, optionally after a random rotation of the source."""
    a, b = dictionaries[source].directions(), dictionaries[target].directions()
    if rotate is not None:
        noise = torch.randn(a.shape[1], a.shape[1], generator=torch.Generator().manual_seed(rotate))
        a = a @ torch.linalg.qr(noise).Q
    best = top_k_both(a, b, 1)[0].score[:, 0]
    return score_summary(best.numpy())


def flow_quality(dictionaries: DictionarySet, atlas: Atlas) -> dict[str, Any]:
    """Best cosines for each pair of sites, for increasing distances between layers, and for a random rotation."""
    layers = sorted({site.layer for site in dictionaries})
    rows: dict[str, Any] = {}
    for part in (Part.RES, Part.MLP, Part.ATT):
        for layer in layers[1:] if part is Part.RES else layers:
            pair = Site(layer, Part.RES), Site(layer - 1 if part is Part.RES else layer, part)
            if pair[1] in dictionaries:
                rows[f"{pair[0]} to {pair[1]}"] = best_summary(atlas[pair])
    last = Site(layers[-1], Part.RES)
    for layer in reversed(layers[:-1]):
        rows[f"{layers[-1] - layer} layers apart: {last} to {layer}/res"] = _best(
            dictionaries, last, Site(layer, Part.RES)
        )
    middle = layers[len(layers) // 2]
    for part in (Part.RES, Part.MLP, Part.ATT):
        pair = Site(middle, Part.RES), Site(middle - 1 if part is Part.RES else middle, part)
        rows[f"random rotation: {pair[0]} to {pair[1]}"] = _best(dictionaries, *pair, rotate=0)
    modules = [n for n in layers if {Site(n, Part.MLP), Site(n, Part.ATT)} <= set(dictionaries)]
    rows["either module"] = _either(atlas, modules)
    return rows


def _either(atlas: Atlas, layers: list[int]) -> dict[str, float]:
    """The larger of s(M) and s(A), over the residual features of all layers."""
    best = np.concatenate(
        [
            np.maximum(*(atlas[Site(n, Part.RES), Site(n, part)].score[:, 0] for part in (Part.MLP, Part.ATT)))
            for n in layers
        ]
    )
    return score_summary(best)
