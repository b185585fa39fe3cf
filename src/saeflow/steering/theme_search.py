"""Themes found among a release's own features: one start feature each, and the keywords of its subject.

The search steers nothing, so no theme is chosen for how well it steers. The steps:

1. Cut the texts into windows of about 28 words, as long as a generation. In each half of the texts, a feature's
   holding windows are the `HELD` windows it is most active on, at most two from one text. A feature that fires on more
   than `ACTIVE` of all windows is left out.
2. A feature's keywords are content words that it fires on or promotes, that occur in at least two holding windows of
   the first half, and that those use more than the other windows of that half: by a log-odds ratio of at least 2
   standard errors, with a prior from the half (Monroe, Colaresi and Quinn 2008, doi 10.1093/pan/mpn018). They are rare:
   in at most `COMMON` of all windows.
3. The keywords must identify holding windows of the second half: a holding window has more of them than another window
   in at least `AUC` of all pairs, and at least two different ones occur in at least `HOLDING` of the holding windows
   and in at most `OTHERS` of the other windows.
4. Unsteered text must lack the theme: two different keywords in at most `UNSTEERED` of the samples.
5. Going from the clearest feature down (by the share of windows with two keywords, holding windows less others), take
   each one that is not near one already taken: their rows have a cosine of at most `COSINE`, they share at most
   `SHARED` of the keywords, and at most `TOLD` of the holding windows of either have two keywords of the other.

A theme's examples are holding windows of the second half, so that what a judge learns from them and the keywords come
from different texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.labels import FeatureWords, Words
from saeflow.plain_types import Progress
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.steering.activity import activity
from saeflow.steering.generate import Request, Sampling, generate
from saeflow.steering.judges.topic import cut, scikit_learn
from saeflow.steering.sizes import unit_rows
from saeflow.steering.theme import Task, Theme

HELD: Final = 32
EXAMPLES: Final = 24
"""Holding windows of the second half that a theme has as examples."""

KEYWORDS: Final = (4, 12)
"""The fewest and the most keywords of a theme."""

Z: Final = 2.0
COMMON: Final = 0.04
ACTIVE: Final = 0.3
AUC: Final = 0.8
HOLDING: Final = 0.3
OTHERS: Final = 0.05
UNSTEERED: Final = 0.1
COSINE: Final = 0.3
SHARED: Final = 0.25
TOLD: Final = 0.5

SAMPLES: Final = 64
"""Unsteered samples of the prompt."""

OPENINGS: Final = (6, 8)
"""How many openings of holding windows are tried as the prompt for suppression, and unsteered samples of each."""

_OPENING_WORDS: Final = 10
_TOKENS: Final = 36
_PRIOR: Final = 500.0
"""Total word count of the prior in the log-odds ratio."""

_MAX_LENGTH: Final = 96
_WORD: Final = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class FoundTheme:
    """A theme, and how clear it is.

    Attributes:
        theme: with one start, keywords, examples and both tasks.
        auc: the probability that a holding window of the second half has more of the keywords than another window of
            it, with ties counted half.
        holding: the share of holding windows of the second half with at least two different keywords.
        others: that share among the other windows of the second half.
        unsteered: that share among unsteered samples of the prompt.
        active: the share of all windows that the feature fires on.
    """

    theme: Theme
    auc: float
    holding: float
    others: float
    unsteered: float
    active: float


@dataclass(frozen=True, slots=True)
class ThemeSearch:
    """The themes found, clearest first; how many features were examined, and how many each reason left out."""

    found: tuple[FoundTheme, ...]
    looked_at: int
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Tested:
    """A feature that passed steps 1 to 3: its holding windows in both halves, its keywords and how clear they are."""

    feature: FeatureId
    first: Int[np.ndarray, " k"]
    second: Int[np.ndarray, " k"]
    keywords: tuple[str, ...]
    auc: float
    holding: float
    others: float
    active: float


def keywords_in(text: str, keywords: Iterable[str]) -> int:
    """How many different keywords a text has, as whole words in any case."""
    return len(frozenset(keywords).intersection(_WORD.findall(text.casefold())))


def search_themes(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    words: Words,
    texts: Sequence[str],
    *,
    sites: Iterable[Site],
    release: str = "",
    limit: int = 16,
    prompt: str = "I think",
    seed: int = 0,
    progress: Progress | None = None,
) -> ThemeSearch:
    """Find the clearest themes that single features of some sites stand for, by the steps of the module docstring.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: by site.
        words: what is known about features: tokens they fire on and promote, and passages.
        texts: hundreds or more, of the kinds the model writes; not those that judges learn from.
        sites: where start features may lie.
        release: what the themes record as the release of their features.
        limit: how many themes at most.
        prompt: what texts that are steered towards a theme begin with.
        seed: of the halves and of unsteered samples.
        progress: called with (units done, units, what).

    Raises:
        InvalidArgument: for a limit below 1, no words at the sites, or texts of fewer than 4 windows.
        UnknownSite: for a site without a dictionary.
        MissingExtra: when scikit-learn is not installed.
    """
    wanted = tuple(sorted(set(sites)))
    if limit < 1:
        raise InvalidArgument(f"limit = {limit} finds nothing. Give 1 or more.")
    known = {site: words.site(site) for site in wanted}
    if not any(any(rows) for rows in known.values()):
        raise InvalidArgument(
            f"nothing is known of features at {', '.join(map(str, wanted)) or 'no site'}. Words lie in the folder "
            "`words` of an atlas: `saeflow labels make` makes them."
        )

    # 1. windows, and how active every feature is on each
    windows, text_of = _cut_all(texts)
    if len(windows) < 4:
        raise InvalidArgument(f"{len(windows)} windows of texts are too few to find themes in. Give hundreds of texts.")
    made = activity(model, dictionaries, windows, sites=wanted, max_length=_MAX_LENGTH, progress=progress)
    first = np.random.default_rng(seed).permutation(text_of.max() + 1) % 2 == 0
    table = _WordTable.of(windows, text_of, first[text_of])

    # 2. and 3. keywords of each feature, and whether they identify its windows
    left_out: Counter[str] = Counter()
    tested: list[_Tested] = []
    for site in wanted:
        means = sp.csc_array(made.means[site])
        for index, of_row in enumerate(known[site]):
            one = table.tested(FeatureId(site, index), means[:, [index]].toarray()[:, 0], of_row)
            if isinstance(one, str):
                left_out[one] += 1
            else:
                tested.append(one)
    tested.sort(key=lambda one: (one.others - one.holding, one.feature))

    # 4. and 5. from the clearest feature down, those that unsteered text lacks and that are near none already taken
    requests = [Request(prompt, seed + sample) for sample in range(SAMPLES)]
    unsteered = [one.text for one in generate(model, None, requests, Sampling(_TOKENS))]
    found: list[FoundTheme] = []
    taken: list[_Tested] = []
    rows = {one.feature: unit_rows(dictionaries[one.feature.site], [one.feature], model)[0] for one in tested}
    for one in tested:
        share = float(np.mean([keywords_in(text, one.keywords) >= 2 for text in unsteered]))
        if why := _unwanted(one, share, taken, rows, table, full=len(found) == limit):
            left_out[why] += 1
            continue
        if progress:
            progress(len(found), limit, one.keywords[0])
        taken.append(one)
        theme = Theme(
            name="-".join(one.keywords[:2]),
            subject=", ".join(one.keywords[:5]),
            release=release,
            starts=(one.feature,),
            examples=tuple(windows[place].strip("\n") for place in one.second[:EXAMPLES]),
            activate=Task(prompt, f"{_on_one_line(windows[one.first[0]])} {prompt}", _TOKENS),
            suppress=_suppression(one, model, windows, table, seed),
            note=f"Found by `saeflow themes find`: the start fires on {one.active:.1%} of windows of text. Two of the "
            f"keywords or more are in {one.holding:.0%} of those it is most active on, in {one.others:.1%} of others, "
            f"and in {share:.0%} of unsteered texts. Nothing was chosen by what it does.",
            keywords=one.keywords,
        )
        found.append(FoundTheme(theme, one.auc, one.holding, one.others, share, one.active))
    return ThemeSearch(tuple(found), sum(map(len, known.values())), dict(left_out))


def _unwanted(
    one: _Tested,
    unsteered: float,
    taken: Sequence[_Tested],
    rows: Mapping[FeatureId, torch.Tensor],
    table: _WordTable,
    *,
    full: bool,
) -> str:
    """Why steps 4 and 5 leave a feature out; empty if they keep it."""
    if full:
        return "enough were found before"
    if unsteered > UNSTEERED:
        return "unsteered text has its words"
    return "near a clearer one" if any(_near(one, other, rows, table) for other in taken) else ""


def _cut_all(texts: Sequence[str]) -> tuple[list[str], Int[np.ndarray, " n"]]:
    """All windows of some texts that have enough words to hold a theme's keywords, and the text each comes from."""
    windows: list[str] = []
    text_of: list[int] = []
    for number, text in enumerate(texts):
        pieces = [piece for piece in cut(text) if len(_WORD.findall(piece)) >= KEYWORDS[0]]
        windows += pieces
        text_of += [number] * len(pieces)
    return windows, np.array(text_of, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _WordTable:
    """How often each content word is in each window.

    Attributes:
        counts: windows by words.
        vocabulary: word -> column.
        rare: whether a word occurs in at most `COMMON` of the windows and is not a stop word.
        text_of: the text each window comes from.
        first: whether a window belongs to the first half of the texts.
        every: how often each word occurs in the windows of the first half.
        names: column -> word.
    """

    counts: sp.csr_array
    vocabulary: Mapping[str, int]
    rare: Bool[np.ndarray, " n_words"]
    text_of: Int[np.ndarray, " n"]
    first: Bool[np.ndarray, " n"]
    every: Float[np.ndarray, " n_words"]
    names: Mapping[int, str]

    @staticmethod
    def of(windows: Sequence[str], text_of: Int[np.ndarray, " n"], first: Bool[np.ndarray, " n"]) -> _WordTable:
        """Count the words of all windows."""
        text = scikit_learn("feature_extraction.text")
        vectorizer = text.CountVectorizer(token_pattern=_WORD.pattern)
        counts = sp.csr_array(vectorizer.fit_transform(windows), dtype=np.float64)
        vocabulary: dict[str, int] = vectorizer.vocabulary_
        share = np.bincount(counts.indices, minlength=len(vocabulary)) / len(windows)
        stop = [vocabulary[word] for word in text.ENGLISH_STOP_WORDS & set(vocabulary)]
        rare = share <= COMMON
        rare[stop] = False
        every = np.asarray(counts[np.flatnonzero(first)].sum(axis=0)).ravel()
        names = {column: word for word, column in vocabulary.items()}
        return _WordTable(counts, vocabulary, rare, text_of, first, every, names)

    def hits(self, keywords: Sequence[str]) -> Int[np.ndarray, " n"]:
        """How many different words of `keywords` each window has."""
        columns = [self.vocabulary[word] for word in keywords]
        return np.diff(sp.csr_array(self.counts[:, columns]).indptr)

    def holding(self, active: Float[np.ndarray, " n"], *, first: bool) -> Int[np.ndarray, " k"]:
        """The `HELD` windows of a half with the highest activation, strongest first, at most two from one text."""
        found: list[int] = []
        of_text: Counter[int] = Counter()
        there = np.flatnonzero((self.first == first) & (active > 0))
        for place in there[np.argsort(-active[there], kind="stable")].tolist():
            of_text[int(self.text_of[place])] += 1
            if of_text[int(self.text_of[place])] <= 2:
                found.append(place)
            if len(found) == HELD:
                break
        return np.array(found, np.int64)

    def tested(self, feature: FeatureId, active: Float[np.ndarray, " n"], known: FeatureWords | None) -> _Tested | str:
        """Take a feature through steps 1 to 3; return it with its keywords, or the reason why it is left out."""
        if known is None:
            return "nothing is known of it"
        if np.mean(active > 0) > ACTIVE:
            return "fires on too many texts"
        first, second = (self.holding(active, first=half) for half in (True, False))
        if min(len(first), len(second)) < HELD:
            return "fires on too few texts"
        keywords = self.keywords(first, own_words(known))
        if len(keywords) < KEYWORDS[0]:
            return "too few words of its own"
        hits = self.hits(keywords)
        others = np.setdiff1d(np.flatnonzero(~self.first), second)
        auc = float(stats.mannwhitneyu(hits[second], hits[others]).statistic) / (len(second) * len(others))
        holding, of_others = (float(np.mean(hits[places] >= 2)) for places in (second, others))
        if auc < AUC or holding < HOLDING or of_others > OTHERS:
            return "its words do not tell other texts"
        return _Tested(feature, first, second, keywords, auc, holding, of_others, float(np.mean(active > 0)))

    def keywords(self, holding: Int[np.ndarray, " k"], own: frozenset[str]) -> tuple[str, ...]:
        """The rare words among a feature's own that its holding windows of the first half use more, clearest first."""
        columns = np.array(sorted(self.vocabulary[word] for word in own if word in self.vocabulary), np.int64)
        columns = columns[self.rare[columns]]
        every = self.every
        here = np.asarray(self.counts[holding].sum(axis=0)).ravel()
        there = every - here
        # log-odds ratio with a Dirichlet prior of `_PRIOR` words, distributed as in the half, in standard errors
        prior = _PRIOR * (every + 1) / (every + 1).sum()

        def log_odds(counts: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
            return np.log((counts + prior) / (counts.sum() + _PRIOR - counts - prior))

        z = (log_odds(here) - log_odds(there)) / np.sqrt(1 / (here + prior) + 1 / (there + prior))
        spread = np.bincount(sp.csr_array(self.counts[holding]).indices, minlength=len(self.vocabulary))
        kept = columns[(z[columns] >= Z) & (spread[columns] >= 2)]
        return tuple(self.names[column] for column in kept[np.argsort(-z[kept], kind="stable")][: KEYWORDS[1]].tolist())


def own_words(known: FeatureWords) -> frozenset[str]:
    """Words of the tokens a feature fires on or promotes, and words where it reaches half its maximum in a passage.

    Tokens that do not begin a word count only in passages, where the rest of the word is known.
    """
    whole = [token for token in (*known.tokens, *known.promotes) if token[:1].isspace()]
    found = {word for token in whole for word in _WORD.findall(token.casefold())}
    for passage in known.contexts:
        half, text, ends, active = max(passage.values, default=0.0) / 2, "", list[int](), list[float]()
        for token, value in zip(passage.tokens, passage.values, strict=True):
            text += token
            ends.append(len(text))
            active.append(value)
        for match in _WORD.finditer(text):
            inside = [value for end, value in zip(ends, active, strict=True) if match.start() < end]
            reach = sum(match.start() < end < match.end() for end in ends) + 1
            if max(inside[:reach], default=0.0) >= half > 0:
                found.add(match.group().casefold())
    return frozenset(found)


def _near(one: _Tested, other: _Tested, rows: Mapping[FeatureId, torch.Tensor], table: _WordTable) -> bool:
    shared = len(set(one.keywords) & set(other.keywords)) / min(len(one.keywords), len(other.keywords))
    cosine = float(rows[one.feature] @ rows[other.feature])
    told = max(np.mean(table.hits(a.keywords)[b.second] >= 2) for a, b in ((one, other), (other, one)))
    return bool(shared > SHARED or cosine > COSINE or told > TOLD)


def _suppression(one: _Tested, model: LanguageModel, windows: Sequence[str], table: _WordTable, seed: int) -> Task:
    """The task of steering away: its prompt is the opening whose unsteered continuations have most keywords.

    An opening ends with the first keyword of a holding window of the first half. The prompting baseline puts a window
    without keywords before it.
    """
    wanted = set(one.keywords)
    openings: list[str] = []
    for place in map(int, one.first):
        words = windows[place].split()
        at = next((n for n, word in enumerate(words) if wanted.intersection(_WORD.findall(word.casefold()))), None)
        if at is not None and at + 1 >= _OPENING_WORDS // 2:
            openings.append(" ".join(words[max(0, at + 1 - _OPENING_WORDS) : at + 1]))
        if len(openings) == OPENINGS[0]:
            break
    openings = openings or [one.keywords[0]]
    requests = [Request(opening, seed + sample) for opening in openings for sample in range(OPENINGS[1])]
    made = generate(model, None, requests, Sampling(_TOKENS))
    of_opening: Counter[str] = Counter()
    for text in made:
        of_opening[text.request.prompt] += keywords_in(text.text, one.keywords)
    best = max(openings, key=lambda opening: of_opening[opening])
    without = np.flatnonzero(table.hits(one.keywords) == 0)
    other = _on_one_line(windows[int(np.random.default_rng(seed).permutation(without)[0])])
    return Task(best, f"{other} {best}", _TOKENS)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
