"""How much of a theme is in a text, from a classifier of the theme's example texts against others. No torch.

1. Texts are cut into windows of about as many words as are generated, at most `window`; nothing is learned from length.
2. A window becomes TF-IDF of words and pairs of words, and of pieces of words of 3 to 5 characters: "prayed" then
   has something of "prayer", and code has more than its words.
3. Logistic regression. Both classes weigh the same in all, however many texts there are of each: 2.5 of 5 says that
   example and background are equally probable, before which nothing is known of the text.
4. Regularised regression on few texts is too unsure of itself. Its output becomes a probability by a logistic curve
   that is fitted to windows held out in turn (Platt 1999), with his smoothed targets.
5. The mark of a text is 5 times the mean probability of its windows. Windows it was fitted on are marked by the
   classifier of step 4 that was fitted without them.

Nothing here is random: folds follow the order of the texts. `held_out` fits steps 2 to 4 again without each fold, and
says how the fold was judged: no example is scored by a classifier that has seen any part of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from saeflow.errors import InvalidArgument, MissingExtra
from saeflow.steering.judges import HIGHEST

WINDOW: Final = 28
"""Words of a window: about the 36 tokens of a generation of appendix B.2."""

FEWEST: Final = 5
"""Example texts below which nothing can be held out."""

FOLDS: Final = 5
BINS: Final = 5

TOKENS: Final = r"\w+|[^\w\s]+"
"""Words and runs of marks: marks are much of what code is made of."""

STRENGTH: Final = 1.0
"""C of the logistic regression. On themes of the demo pack 10 told examples from those of other themes no better."""

_WORD: Final = re.compile(r"\S+\s*")


class Bin(NamedTuple):
    """Held-out windows whose probability lies in one fifth of 0 to 1.

    Attributes:
        predicted: their mean probability.
        observed: the share of them that are of the theme, both classes weighing the same in all.
        weight: what they weigh of all windows, each class half.
        n: how many there are.
    """

    predicted: float
    observed: float
    weight: float
    n: int


@dataclass(frozen=True, slots=True)
class TopicReport:
    """How well a theme is told from its background, on windows of texts that were held out.

    Attributes:
        theme: its name.
        examples: example texts; the folds hold out whole texts.
        windows: windows of examples.
        background: windows of the background.
        auc: probability that a window of an example gets a higher mark than one of the background; 0.5 is chance.
        brier: mean squared error of the probability, both classes weighing the same; 0.25 for one that knows nothing.
        error: mean distance of predicted and observed over `bins`, weighed by what is in them: calibration, 0 is best.
        on_topic: mean mark of the examples' windows, 0 to 5.
        off_topic: mean mark of the background's.
        bins: the curve that `error` is of; bins without a window are left out.
    """

    theme: str
    examples: int
    windows: int
    background: int
    auc: float
    brier: float
    error: float
    on_topic: float
    off_topic: float
    bins: tuple[Bin, ...]


class Windows(NamedTuple):
    """Pieces of texts with what they are pieces of.

    Attributes:
        texts: the pieces.
        groups: the text of each; a text is held out as a whole.
        topic: whether the text is an example of the theme.
    """

    texts: tuple[str, ...]
    groups: Int[np.ndarray, " n"]
    topic: Bool[np.ndarray, " n"]

    def rows(self, index: Int[np.ndarray, " k"]) -> Windows:
        """Some of them."""
        return Windows(tuple(self.texts[i] for i in index.tolist()), self.groups[index], self.topic[index])


def cut(text: str, window: int = WINDOW) -> list[str]:
    """A text in pieces of about equal size and about `window` words, with its white space; [] without words.

    >>> cut("one two three four five six", 4)
    ['one two three ', 'four five six']
    """
    words = _WORD.findall(text)
    n = max(1, round(len(words) / window)) if words else 0
    ends = [round(len(words) * part / n) for part in range(n + 1)] if n else []
    return ["".join(words[a:b]) for a, b in itertools.pairwise(ends)]


def windows_of(examples: Sequence[str], background: Sequence[str], window: int = WINDOW) -> Windows:
    """All windows of the examples, and one of each background text: the first, the second, … in turn.

    Raises:
        InvalidArgument: for fewer than 5 examples or background texts with words.
    """
    pieces = [found for text in examples if (found := cut(text, window))]
    others = [found for text in background if (found := cut(text, window))]
    for what, n in (("examples of the theme", len(pieces)), ("background texts", len(others))):
        if n < FEWEST:
            raise InvalidArgument(f"{n} {what} teach nothing about it. Give {FEWEST} or more, better 20.")
    one_each = [found[number % len(found)] for number, found in enumerate(others)]
    groups = [group for group, found in enumerate(pieces) for _ in found]
    n = len(groups)
    groups += range(len(pieces), len(pieces) + len(one_each))
    texts = [text for found in pieces for text in found] + one_each
    return Windows(tuple(texts), np.array(groups), np.arange(len(texts)) < n)


@dataclass(frozen=True, slots=True, eq=False)
class Topic:
    """A fitted classifier of one theme.

    Attributes:
        decide: texts -> how far each is on the side of the theme, in units of the regression.
        held: the same of each window it was fitted on, by a classifier that was fitted without its fold.
        slope: of the logistic curve, 0 or more: 0 where held-out examples are not told from the background.
        offset: of the curve.
        window: words of a window.
    """

    decide: Callable[[Sequence[str]], Float[np.ndarray, " n"]]
    held: Mapping[str, float]
    slope: float
    offset: float
    window: int

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Probability that each text, as it is, is of the theme.

        A window of the background or an example is told by a classifier that has not seen it: unsteered samples, which
        are part of the background, would else look further from the theme than steered ones for that reason alone.
        """
        new = list(dict.fromkeys(text for text in texts if text not in self.held))
        known = dict(self.held) | dict(zip(new, self.decide(new).tolist() if new else [], strict=True))
        decisions = np.array([known[text] for text in texts], np.float64)
        return np.asarray(0.5 * (1 + np.tanh((self.slope * decisions + self.offset) / 2)))

    def marks(self, texts: Sequence[str]) -> list[float]:
        """5 times the mean probability of each text's windows; 0 for a text without words."""
        pieces = [cut(text, self.window) for text in texts]
        flat = [piece for found in pieces for piece in found]
        values = iter(self.probabilities(flat).tolist() if flat else [])
        means = [sum(next(values) for _ in found) / max(len(found), 1) for found in pieces]
        return [HIGHEST * min(1.0, mean) for mean in means]


def fit(windows: Windows, *, window: int = WINDOW) -> Topic:
    """A classifier from windows, calibrated on folds of them.

    Raises:
        MissingExtra: when scikit-learn is not installed.
    """
    held = np.zeros(len(windows.texts))
    for train, test in _folds(windows):
        fold = windows.rows(test)
        held[test] = _regression(windows.rows(train))(fold.texts)
    slope, offset = logistic_curve(held, windows.topic)
    seen = dict(zip(windows.texts, held.tolist(), strict=True))
    return Topic(_regression(windows), seen, slope, offset, window)


def held_out(name: str, windows: Windows, *, window: int = WINDOW) -> TopicReport:
    """How windows are judged by classifiers that have seen nothing of their texts.

    Raises:
        MissingExtra: when scikit-learn is not installed.
    """
    probabilities = np.zeros(len(windows.texts))
    for train, test in _folds(windows):
        topic = fit(windows.rows(train), window=window)
        probabilities[test] = topic.probabilities(windows.rows(test).texts)
    truth, weights = windows.topic, _weights(windows.topic)
    fifth = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    bins: list[Bin] = []
    for number in sorted(set(fifth.tolist())):
        inside = fifth == number
        weight = float(weights[inside].sum())
        predicted, observed = (float((values * weights)[inside].sum() / weight) for values in (probabilities, truth))
        bins.append(Bin(predicted, observed, weight, int(inside.sum())))
    return TopicReport(
        theme=name,
        examples=len(set(windows.groups[truth].tolist())),
        windows=int(truth.sum()),
        background=int((~truth).sum()),
        auc=float(scikit_learn("metrics").roc_auc_score(truth, probabilities)),
        brier=float(((probabilities - truth) ** 2 * weights).sum()),
        error=sum(b.weight * abs(b.predicted - b.observed) for b in bins),
        on_topic=float(HIGHEST * probabilities[truth].mean()),
        off_topic=float(HIGHEST * probabilities[~truth].mean()),
        bins=tuple(bins),
    )


def _regression(windows: Windows) -> Callable[[Sequence[str]], Float[np.ndarray, " n"]]:
    """Logistic regression on these windows, as a function of texts."""
    text = scikit_learn("feature_extraction.text")
    features = scikit_learn("pipeline").make_union(
        text.TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKENS, sublinear_tf=True),
        text.TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
    )
    model = scikit_learn("linear_model").LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=2000)
    model.fit(features.fit_transform(windows.texts), windows.topic)
    return lambda texts: np.asarray(model.decision_function(features.transform(list(texts))), np.float64)


def _folds(windows: Windows) -> list[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]]:
    """Pairs (train, test) that keep the windows of a text together, and examples in every part."""
    selection = scikit_learn("model_selection")
    n = min(FOLDS, len(set(windows.groups[windows.topic].tolist())))
    split = selection.StratifiedGroupKFold(n_splits=n).split(windows.texts, windows.topic, windows.groups)
    return [(np.asarray(train), np.asarray(test)) for train, test in split]


def logistic_curve(decisions: Float[np.ndarray, " n"], topic: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """Slope and offset of the probability over held-out decisions (Platt 1999), both classes weighing the same."""
    linear = scikit_learn("linear_model")
    yes, no = int(topic.sum()), int((~topic).sum())
    target = np.where(topic, (yes + 1) / (yes + 2), 1 / (no + 2))
    weights = _weights(topic)
    spread = float(decisions.std()) or 1.0
    # a target between 0 and 1 is a row of each class, weighed by it
    rows = np.concatenate([decisions, decisions])[:, None] / spread
    classes = np.repeat([1, 0], len(decisions))
    of_rows = np.concatenate([target * weights, (1 - target) * weights]) * len(decisions)
    model = linear.LogisticRegression(C=1e4, max_iter=2000).fit(rows, classes, sample_weight=of_rows)
    slope = float(model.coef_[0, 0]) / spread
    if slope <= 0:  # held-out examples look less like the theme than the background does: nothing was learned
        return 0.0, 0.0
    return slope, float(model.intercept_[0])


def _weights(topic: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Half of all weight for each class; they sum to 1."""
    return np.where(topic, 0.5 / topic.sum(), 0.5 / (~topic).sum())


def scikit_learn(module: str) -> Any:
    """A module of scikit-learn, imported at first use."""
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError:
        raise MissingExtra(
            "the offline judge classifies topics with the package scikit-learn, which is not installed.", "judge"
        ) from None
