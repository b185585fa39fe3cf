"""Words for every feature of the pack: top tokens, a few contexts, logit lens, how often it fires.

Top tokens and frequencies are counted on training text (single tokens, no sentence of it is kept);
contexts come only from text the pack may ship: passages the model wrote, and the standard library.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import torch

from saeflow.demo.texts import DOMAINS, texts
from saeflow.ids import Site
from saeflow.sources.library import DictionarySet
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens

from .corpus import load_windows
from .model import CONTEXT, MIXTURE

COUNTED_TOKENS = 300_000
CONTEXTS = 4
AROUND = 9
TOKENS = 10


def _counted(data: Path, seed: int) -> torch.Tensor:
    """Training windows in the mixture of the domains: [n_windows, CONTEXT]."""
    rng = np.random.default_rng(seed)
    rows = []
    for domain in DOMAINS:
        found = load_windows(data, domain, "train", CONTEXT)
        rows.append(rng.permutation(found)[: round(COUNTED_TOKENS * MIXTURE[domain] / CONTEXT)])
    return torch.from_numpy(np.concatenate(rows))


def _shippable(model: LanguageModel) -> tuple[torch.Tensor, list[str]]:
    """Windows of text the pack may ship: [n_windows, 128], padded with 0, and the domain of each."""
    rows, domains = [], []
    for domain in DOMAINS:
        for text in texts(domain, 150, seed=3):
            ids = [0, *model.tokenizer.encode(text, add_special_tokens=False)][:128]
            rows.append(ids + [0] * (128 - len(ids)))
            domains.append(domain)
    return torch.tensor(rows), domains


def _padded(ids: torch.Tensor) -> Tokens:
    """A batch whose zeros after the first place are padding."""
    mask = (ids != 0).long()
    mask[:, 0] = 1
    return Tokens(ids, mask)


class _Site:
    """What is gathered for the dictionary of one site."""

    def __init__(self, n_features: int, vocabulary: int) -> None:
        self.total = torch.zeros(vocabulary, n_features)
        self.fired = torch.zeros(n_features)
        self.occurred = torch.zeros(vocabulary)
        self.seen = 0
        self.peak = torch.full((n_features, CONTEXTS * 4), -1.0)
        self.where = torch.zeros(n_features, CONTEXTS * 4, dtype=torch.int64)

    def count(self, acts: torch.Tensor, ids: torch.Tensor) -> None:
        self.total.index_add_(0, ids, acts)
        self.fired += (acts > 0).sum(0)
        self.seen += len(ids)
        self.occurred.index_add_(0, ids, torch.ones(len(ids)))

    def contexts(self, acts: torch.Tensor, start: int) -> None:
        """Merge the strongest windows of a batch: acts [n_windows, pos, n_features]."""
        peak = acts.amax(dim=1).T  # [n_features, n_windows]
        where = torch.arange(start, start + peak.shape[1]).expand_as(peak)
        both, places = torch.cat([self.peak, peak], 1), torch.cat([self.where, where], 1)
        self.peak, order = both.topk(self.peak.shape[1], dim=1)
        self.where = places.gather(1, order)


@torch.no_grad()
def write_words(model: LanguageModel, dictionaries: DictionarySet, data: Path, out: Path, seed: int) -> None:
    """Write {layer}.{part}.jsonl.gz for every site."""
    out.mkdir(parents=True, exist_ok=True)
    sites = sorted(dictionaries)
    gathered = {s: _Site(dictionaries[s].n_features, model.hf_model.config.vocab_size) for s in sites}
    counted = _counted(data, seed)
    for start in range(0, len(counted), 16):
        ids = counted[start : start + 16]
        captured = model.capture(Tokens(ids, torch.ones_like(ids)), sites)
        keep = ids != 0
        for site in sites:
            gathered[site].count(dictionaries[site].encode(captured[site][keep]), ids[keep])
        if start % 320 == 0:
            print(f"words: counted {start}/{len(counted)} windows", flush=True)
    shown, domains = _shippable(model)
    for start in range(0, len(shown), 32):
        ids = shown[start : start + 32]
        captured = model.capture(_padded(ids), sites)
        for site in sites:
            acts = dictionaries[site].encode(captured[site]) * (ids != 0)[..., None]
            gathered[site].contexts(acts, start)
    for site in sites:
        rows = _rows(model, dictionaries, site, gathered[site], shown, domains)
        # ASCII alone: no character of a token can end a line.
        lines = (json.dumps(row, separators=(",", ":")) for row in rows)
        data_out = "".join(f"{line}\n" for line in lines).encode()
        (out / f"{site.layer}.{site.part.value}.jsonl.gz").write_bytes(gzip.compress(data_out, mtime=0))
        print(f"words: {site}, {sum(r is not None for r in rows)} of {len(rows)} features have words", flush=True)


def _rows(model, dictionaries, site: Site, found: _Site, shown: torch.Tensor, domains: list[str]) -> list[dict | None]:
    dictionary = dictionaries[site]
    decode = [model.spelling.token(i) for i in range(len(found.total))]
    promotes = model.logit_lens(dictionary.directions(), TOKENS)
    chosen = sorted({int(w) for w in found.where[found.peak > 0].tolist()})
    captured = model.capture(_padded(shown[chosen]), [site])[site] if chosen else None
    acts = {w: dictionary.encode(captured[i]) for i, w in enumerate(chosen)} if captured is not None else {}
    # Mean activation on a token, drawn towards 0 where the token was seen a few times only.
    mean = (found.total / (found.occurred + 10)[:, None]).T.contiguous()
    rows: list[dict | None] = []
    for f in range(dictionary.n_features):
        if found.fired[f] == 0 and found.peak[f].max() <= 0:
            rows.append(None)
            continue
        best = mean[f].topk(TOKENS)
        tokens = [decode[i] for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True) if v > 0]
        contexts = _contexts(f, found, acts, shown, domains, decode)
        lens = [logit.token for logit in promotes[f] if logit.token.strip()]
        rows.append(
            {
                "label": _label(tokens),
                "tokens": tokens,
                "promotes": lens,
                "frequency": round(float(found.fired[f] / found.seen), 6),
                "contexts": contexts,
            }
        )
    return rows


def _contexts(
    f: int, found: _Site, acts: dict, shown: torch.Tensor, domains: list[str], decode: list[str]
) -> list[dict]:
    """Up to CONTEXTS passages, centred on the strongest token, none twice."""
    kept: list[dict] = []
    seen: set[str] = set()
    for value, window in zip(found.peak[f].tolist(), found.where[f].tolist(), strict=True):
        if value <= 0 or len(kept) == CONTEXTS:
            break
        row = acts[window][:, f] * (shown[window] != 0)
        top = int(row.argmax())
        span = slice(max(1, top - AROUND), top + AROUND // 2 + 1)
        ids = [i for i in shown[window, span].tolist() if i != 0]
        tokens = [decode[i] for i in ids]
        if "".join(tokens) in seen:
            continue
        seen.add("".join(tokens))
        values = [round(v, 2) for v in row[span].tolist()][: len(ids)]
        kept.append({"tokens": tokens, "values": values, "source": domains[window]})
    return kept


def _label(tokens: list[str]) -> str:
    """The first four different tokens, as one line."""
    kept: list[str] = []
    for token in tokens:
        word = token.strip() or repr(token).strip("'")
        if word.lower() not in {k.lower() for k in kept} and "\ufffd" not in word:
            kept.append(word)
    return ", ".join(kept[:4])
