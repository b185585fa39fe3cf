"""Find the features a theme starts from: by words, or by example texts (appendix B begins with such a set). No torch.

    by words    the query is looked for in a feature's label, in the tokens it fires on and in those it promotes
    by texts    features that are more active on example texts than on a background of other texts

The second is in `contrast`, which needs the model. Either way the list is a set of candidates: whether a feature that
fires on a topic also makes the model write about it, only steering tells (Arad et al. 2025, arXiv 2505.20063).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.labels import FeatureWords, Words

if TYPE_CHECKING:
    from saeflow.sources.dictionary import Dictionary
    from saeflow.sources.model import LanguageModel

MIN_SHARE: Final = 0.25
"""Share of the texts a feature must fire on to be found by texts."""

WHOLE: Final = 1.0
PREFIX: Final = 0.6
INSIDE: Final = 0.1
"""Scores of a whole word, of the beginning of one and of a match inside one; places add less than their gaps."""

_SHORTEST_PREFIX: Final = 3
_PLACES: Final = ("label", "fires on", "promotes")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A feature that may start a theme.

    Attributes:
        feature: which one.
        label: what is known of it in one line; empty where nothing is.
        effect: what the list is ordered by. By texts: Hedges' g, the difference of the per-text mean activations
            of texts and background in pooled standard deviations, with the correction for few texts. By words: the
            mean over the terms of the query of how well each is met, from 0 to 1.2.
        share: by texts, the share of the texts it fires on; by words, the share of the terms that were met.
        background: by texts, the share of the background texts it fires on; by words, the share of tokens it is
            active on, NaN where nothing says it.
        p: by texts, of a one-sided Mann-Whitney test of per-text mean activations, corrected for the number of
            features that were looked at (Benjamini and Hochberg 1995); None by words.
        why: the same in words.
        replicated: by texts, `effect` on the texts that were held out of the choice; None where none were.
    """

    feature: FeatureId
    label: str
    effect: float
    share: float
    background: float
    p: float | None
    why: str
    replicated: float | None = None


def find_by_texts(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    texts: Sequence[str],
    background: Sequence[str],
    *,
    sites: Iterable[Site] | None = None,
    limit: int = 20,
    min_share: float = MIN_SHARE,
) -> list[Candidate]:
    """Features more active on `texts` than on `background`, the largest effect first.

    Chosen on half of both; the other half says whether the effect is there again (`Candidate.replicated`). This is
    `contrast.contrast` with its other options left alone, and without its check of the set as a whole.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: by site.
        texts: examples of the topic, four or more; twenty make a list worth having.
        background: other texts, four or more, best of many kinds.
        sites: where to look; all residual sites when not given.
        limit: how many features at most.
        min_share: the least share of the texts a feature fires on.

    Raises:
        InvalidArgument: for too few texts, no sites, or a setting outside its range.
        UnknownSite: for a site without a dictionary.
        WidthMismatch: for dictionaries that do not fit the model.
    """
    from saeflow.steering.contrast import contrast

    made = contrast(model, dictionaries, texts, background, sites=sites, limit=limit, min_share=min_share)
    return list(made.found)


def find_by_words(words: Words, query: str, sites: Iterable[Site], limit: int = 20) -> list[Candidate]:
    """Features whose words hold the terms of `query`, best first.

    Terms are words with spaces or commas between; capitals do not matter. A term is met by a whole word (1.0), by
    one that begins with it, or by a piece of a token that begins it (0.6: "force" meets "forces", " veloc" meets
    "velocity"), or inside a word (0.1). Being met in several places, and early in the list of tokens, adds up
    to 0.2. So one whole word ranks above any prefix, and a prefix above anything inside a word.

    Args:
        words: what is known of features, such as `open_words(atlas.folder)`.
        query: the terms.
        sites: where to look.
        limit: how many features at most.

    Raises:
        InvalidArgument: for a query without terms, no sites, a limit below 1, or words that know nothing of the sites.
        BadFile: when the words cannot be read.
    """
    terms = tuple(dict.fromkeys(_pieces(query)))
    if not terms:
        raise InvalidArgument(f"the query {query!r} holds no word. Give one or more, such as 'force energy'.")
    asked = tuple(dict.fromkeys(sites))
    if not asked or limit < 1:
        raise InvalidArgument(f"{len(asked)} sites and limit = {limit} find nothing. Give 1 or more of both.")
    told = {site: words.site(site) for site in asked}
    if not any(told.values()):
        raise InvalidArgument(
            f"nothing is known of features at {', '.join(map(str, asked))}. Words lie in the folder `words` of an "
            "atlas; without them, find features by example texts."
        )
    hits = (
        hit
        for site, rows in told.items()
        for index, known in enumerate(rows)
        if known is not None and (hit := _hit(FeatureId(site, index), known, terms)) is not None
    )
    return sorted(hits, key=lambda found: (-found.effect, found.feature))[:limit]


@dataclass(frozen=True, slots=True)
class _Met:
    """How a term is met in one place."""

    level: float
    bonus: float
    text: str
    place: str


def _hit(feature: FeatureId, known: FeatureWords, terms: Sequence[str]) -> Candidate | None:
    met = {term: tuple(_met(known, term)) for term in terms}
    scores = [_score(places) for places in met.values()]
    if not any(scores):
        return None
    effect = sum(scores) / len(terms)
    frequency = math.nan if known.frequency is None else known.frequency
    why = "; ".join(
        f"{term}: {', '.join(f'{place.place} {place.text!r}' for place in places)}"
        for term, places in met.items()
        if places
    )
    share = sum(score > 0 for score in scores) / len(terms)
    return Candidate(feature, known.label, round(effect, 6), share, frequency, None, why)


def _score(places: Sequence[_Met]) -> float:
    """The best level, and a little for every place that reaches it or comes near."""
    if not places:
        return 0.0
    best = max(place.level for place in places)
    return best + sum(place.bonus * place.level / best for place in places) / len(_PLACES)


def _met(known: FeatureWords, term: str) -> Iterator[_Met]:
    """Where a term is met best: in the label, in the tokens it fires on, in those it promotes."""
    for name, entries in zip(_PLACES, ((known.label,), known.tokens, known.promotes), strict=True):
        best: _Met | None = None
        for rank, entry in enumerate(entries):
            level = max((_level(piece, term) for piece in _pieces(entry)), default=0.0)
            if level and (best is None or level > best.level):
                best = _Met(level, 0.2 / (1 + 0.1 * rank), entry.strip(), name)
        if best is not None:
            yield best


def _level(piece: str, term: str) -> float:
    """How well one word meets one term."""
    if piece == term:
        return WHOLE
    begins = piece.startswith(term) and len(term) >= _SHORTEST_PREFIX
    begun = term.startswith(piece) and len(piece) >= _SHORTEST_PREFIX
    if begins or begun:
        return PREFIX
    return INSIDE if term in piece else 0.0


def _pieces(text: str) -> list[str]:
    """The words of a text in small letters; signs count where nothing else is there ("=", "$")."""
    found = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.casefold())
    return found or text.casefold().replace(",", " ").split()
