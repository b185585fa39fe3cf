"""Words for every feature of the pack: top tokens, passages, histograms, logit lens, near rows and firing frequency.

Top tokens and frequencies are counted on training text (only single tokens are kept, no sentences). Passages and
histograms come only from text that the pack may ship: passages the model wrote, and the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from saeflow.demo.texts import DOMAINS, texts
from saeflow.labels.from_texts import Passage, make_words
from saeflow.labels.words import FeatureWords, WordsFolder, label_of, write_words
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import DictionarySet
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens

from .corpus import load_windows
from .model import CONTEXT, MIXTURE

COUNTED_TOKENS = 300_000
SHOWN_TEXTS = 150
"""Number of texts per domain that passages are taken from."""
TOKENS = 10


def _counted(data: Path, seed: int) -> torch.Tensor:
    """Training windows in the mixture of domains: [n_windows, CONTEXT]."""
    rng = np.random.default_rng(seed)
    rows = []
    for domain in DOMAINS:
        found = load_windows(data, domain, "train", CONTEXT)
        rows.append(rng.permutation(found)[: round(COUNTED_TOKENS * MIXTURE[domain] / CONTEXT)])
    return torch.from_numpy(np.concatenate(rows))


class _Site:
    """The counts for the dictionary of one site."""

    def __init__(self, n_features: int, vocabulary: int) -> None:
        self.total = torch.zeros(vocabulary, n_features)
        self.fired = torch.zeros(n_features)
        self.occurred = torch.zeros(vocabulary)
        self.seen = 0

    def count(self, acts: torch.Tensor, ids: torch.Tensor) -> None:
        self.total.index_add_(0, ids, acts)
        self.fired += (acts > 0).sum(0)
        self.seen += len(ids)
        self.occurred.index_add_(0, ids, torch.ones(len(ids)))


@torch.no_grad()
def write_counted(model: LanguageModel, dictionaries: DictionarySet, data: Path, out: Path, seed: int) -> None:
    """Write {layer}.{part}.jsonl.gz for every site, without passages."""
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
    for site in sites:
        write_words(out, site, _rows(model, dictionaries[site], gathered[site]))


def add_passages(model: LanguageModel, dictionaries: DictionarySet, out: Path) -> None:
    """Add passages, histograms, suppressed tokens (logit lens) and near rows to the words in `out`."""
    shown = [Passage(text, domain) for domain in DOMAINS for text in texts(domain, SHOWN_TEXTS, seed=3)]
    with TemporaryDirectory() as folder:
        print(f"words: reading {len(shown)} texts", flush=True)
        made = make_words(model, dictionaries, shown, Path(folder), release="demo")
        for site in sorted(dictionaries):
            lens = _lens(model, -dictionaries[site].directions())
            rows: list[FeatureWords | None] = []
            for counted, found, low in zip(
                WordsFolder(out).site(site), WordsFolder(made).site(site), lens, strict=True
            ):
                known = counted or FeatureWords("", frequency=0.0)
                if found is None and not known.frequency:
                    rows.append(None)
                    continue
                own = {name: getattr(known, name) for name in ("label", "tokens", "promotes", "frequency")}
                rows.append(replace(found or FeatureWords(""), **own, suppresses=low))
            write_words(out, site, rows)
            print(f"words: {site}, {sum(r is not None for r in rows)} of {len(rows)} features have words", flush=True)


def _lens(model: LanguageModel, directions: torch.Tensor) -> list[tuple[str, ...]]:
    found = model.logit_lens(directions, TOKENS)
    return [tuple(logit.token for logit in row if logit.token.strip()) for row in found]


def _rows(model: LanguageModel, dictionary: Dictionary, found: _Site) -> Iterator[FeatureWords]:
    decode = [model.spelling.token(i) for i in range(len(found.total))]
    promotes = _lens(model, dictionary.directions())
    # Mean activation per token, shrunk towards 0 for rarely seen tokens.
    mean = (found.total / (found.occurred + 10)[:, None]).T.contiguous()
    for f in range(dictionary.n_features):
        best = mean[f].topk(TOKENS)
        tokens = tuple(decode[i] for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True) if v > 0)
        frequency = round(float(found.fired[f] / found.seen), 6)
        yield FeatureWords(label_of(tokens), tokens, promotes[f], frequency=frequency)
