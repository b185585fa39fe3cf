"""From what was gathered of a site to its words: decode, project, label. The second half of `local`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, cast

from jaxtyping import Int
from torch import Tensor, nn

from saeflow.ids import Site
from saeflow.labels.gather import Control, Seen, State, means, ranks
from saeflow.labels.neuronpedia import TOKENS
from saeflow.labels.words import Context, FeatureWords, label_of
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Spelling

AT_ONCE: Final = 1 << 26
"""Numbers in memory at a time: activations of some texts, logits of some features."""


def vocabulary_of(model: LanguageModel) -> int:
    """How many tokens the model knows, those that pad its embedding included."""
    return int(cast("nn.Embedding", model.hf_model.get_input_embeddings()).num_embeddings)


def controls_path(folder: Path, site: Site) -> Path:
    """The file of a site's passages drawn at random, in a folder of words."""
    return folder / f"{site.layer}.{site.part.value}.controls.jsonl.gz"


def feature_rows(
    model: LanguageModel, dictionary: Dictionary, state: State, n_contexts: int, spelling: Spelling
) -> Iterator[FeatureWords | None]:
    """Words of every feature of a site, in order; None for one that never fired."""
    seen = state.seen[dictionary.site]
    tokens = _strongest_tokens(seen, state.occurred)
    fired = seen.fired.tolist()
    for row, promoted in enumerate(_promotes(model, dictionary)):
        if fired[row] == 0:
            yield None
            continue
        strong = tuple(spelling.token(token) for token in tokens.get(row, ()))
        contexts = _contexts(seen, row, state.sources, spelling)[:n_contexts]
        frequency = float(f"{fired[row] / state.n_tokens:.4g}")
        yield FeatureWords(label_of(strong), strong, promoted, contexts, frequency)


def control_line(control: Control, site: Site, sources: Sequence[str], spelling: Spelling) -> str:
    """A passage drawn at random as a line of JSON, with the features of the site that fire in it."""
    tokens = spelling.tokens([token for token in control.ids if token >= 0])
    told = {"tokens": tokens, "source": sources[control.source], "active": control.active[str(site)]}
    return json.dumps(told, separators=(",", ":"))


def _strongest_tokens(seen: Seen, occurred: Int[Tensor, " vocab"]) -> dict[int, list[int]]:
    """Of each feature, the ids of the tokens with the highest mean activation, best first."""
    feature, token = seen.pairs // seen.vocabulary, seen.pairs % seen.vocabulary
    rank = ranks(feature, means(seen.sums, occurred[token]))
    shown = rank < TOKENS
    found: dict[int, list[int]] = {}
    order = rank[shown].sort(stable=True).indices
    for row, one in zip(feature[shown][order].tolist(), token[shown][order].tolist(), strict=True):
        found.setdefault(row, []).append(one)
    return found


def _promotes(model: LanguageModel, dictionary: Dictionary) -> Iterator[tuple[str, ...]]:
    """The tokens each row raises most in the logit lens; whitespace alone is left out. A row of zeros raises none."""
    rows = dictionary.directions(model).to(model.device)
    vocabulary = vocabulary_of(model)
    k = min(TOKENS, vocabulary)
    for some in rows.split(max(1, AT_ONCE // vocabulary)):
        has = some.any(dim=1).tolist()
        for directed, logits in zip(has, model.logit_lens(some, k), strict=True):
            yield tuple(logit.token for logit in logits if directed and logit.token.strip())


def _contexts(seen: Seen, row: int, sources: Sequence[str], spelling: Spelling) -> tuple[Context, ...]:
    """The different passages of a feature, strongest first."""
    kept: dict[tuple[int, ...], Context] = {}
    passages = zip(
        seen.peak[row].tolist(),
        seen.ids[row].tolist(),
        seen.values[row].tolist(),
        seen.source[row].tolist(),
        strict=True,
    )
    for peak, ids, values, source in passages:
        if peak > 0:
            real = [(token, value) for token, value in zip(ids, values, strict=True) if token >= 0]
            tokens = tuple(spelling.tokens([token for token, _ in real]))
            shown = tuple(float(f"{value:.4g}") for _, value in real)
            kept.setdefault(tuple(token for token, _ in real), Context(tokens, shown, sources[int(source)]))
    return tuple(kept.values())
