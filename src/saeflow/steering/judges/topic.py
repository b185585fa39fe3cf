"""How much of a theme is in a text, by a classifier of the theme's example texts against other texts. No torch.

1. Cut texts into windows of about `window` words, the length of a generation, so that length carries no information.
2. Represent a window by TF-IDF of words and word pairs, and of character n-grams of 3 to 5 characters within words:
   "prayed" is then close to "prayer", and code is described by more than its words.
3. Fit a logistic regression. Both classes have the same total weight, however many texts each has, so that a mark of
   2.5 out of 5 means equal odds of example and background.
4. Regularised regression on few texts is underconfident. A logistic curve turns its output into a probability; it is
   fitted to windows that were held out fold by fold (Platt 1999), with Platt's smoothed targets.
5. The mark of a text is 5 times the mean probability of its windows. Windows of the training texts are marked by the
   classifier of step 4 that was fitted without them.

Nothing is random: folds follow the order of the texts. `held_out` repeats steps 2 to 4 without each fold and reports
how its windows are judged, so no example is scored by a classifier that has seen any part of it.
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
"""Words in a window: about the 36 tokens of a generation in appendix B.2."""

FEWEST: Final = 5
"""The fewest example texts, and background texts: one for each fold."""

FOLDS: Final = 5
BINS: Final = 5

TOKENS: Final = r"\w+|[^\w\s]+"
"""Words and runs of punctuation, since code is largely punctuation."""

STRENGTH: Final = 1.0
"""C of the logistic regression. On themes of the demo pack, 10 separated examples of different themes no better."""

_WORD: Final = re.compile(r"\S+\s*")


class Bin(NamedTuple):
    """Held-out windows whose probability lies in one fifth of 0 to 1.

    Attributes:
        predicted: their mean probability.
        observed: the share of them that are of the theme, with both classes weighted equally overall.
        weight: their share of the weight of all windows, where each class has half.
        n: how many there are.
    """

    predicted: float
    observed: float
    weight: float
    n: int


@dataclass(frozen=True, slots=True)
class TopicReport:
    """How well the classifier separates a theme from its background, on windows of held-out texts.

    Attributes:
        theme: name of the theme.
        examples: number of example texts; the folds hold out whole texts.
        windows: number of windows of examples.
        background: number of windows of the background.
        auc: probability that a window of an example gets a higher mark than one of the background; 0.5 is chance.
        brier: mean squared error of the probability, with both classes weighted equally; 0.25 for a constant 0.5.
        error: calibration error: mean distance between predicted and observed over `bins`, by their weight; 0 is best.
        on_topic: mean mark of the examples' windows, 0 to 5.
        off_topic: mean mark of the background's windows, 0 to 5.
        bins: the calibration curve behind `error`; empty bins are left out.
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
    """Windows of texts, and the texts they come from.

    Attributes:
        texts: the windows.
        groups: number of the text that each comes from; texts are held out as a whole.
        topic: whether that text is an example of the theme.
    """

    texts: tuple[str, ...]
    groups: Int[np.ndarray, " n"]
    topic: Bool[np.ndarray, " n"]

    def rows(self, index: Int[np.ndarray, " k"]) -> Windows:
        """The windows at some indices."""
        return Windows(tuple(self.texts[i] for i in index.tolist()), self.groups[index], self.topic[index])


def cut(text: str, window: int = WINDOW) -> list[str]:
    """Cut a text into pieces of about equal size and about `window` words, keeping white space; [] without words.

    >>> cut("one two three four five six", 4)
    ['one two three ', 'four five six']
    """
    words = _WORD.findall(text)
    n = max(1, round(len(words) / window)) if words else 0
    ends = [round(len(words) * part / n) for part in range(n + 1)] if n else []
    return ["".join(words[a:b]) for a, b in itertools.pairwise(ends)]


def windows_of(examples: Sequence[str], background: Sequence[str], window: int = WINDOW) -> Windows:
    """All windows of the examples, and one window per background text: the first of one, the second of the next, …

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
        decide: texts -> decision value of the regression for each, higher for the theme.
        held: training window -> its decision value from a regression that was fitted without its fold.
        slope: of the logistic curve, 0 or more: 0 if held-out examples do not stand out from the background.
        offset: of the curve.
        window: words in a window.
    """

    decide: Callable[[Sequence[str]], Float[np.ndarray, " n"]]
    held: Mapping[str, float]
    slope: float
    offset: float
    window: int

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Probability that each text, taken as one window, is of the theme.

        Training windows are scored by a classifier that has not seen them. Otherwise unsteered samples, which are part
        of the background, would look further from the theme than steered ones only because of the training.
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
    """Fit a classifier to windows, and calibrate it on held-out folds of them.

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
    """Judge windows by classifiers that have seen nothing of their texts, and report how well.

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
    """Fit the logistic regression to these windows; return its decision function on texts."""
    text = scikit_learn("feature_extraction.text")
    features = scikit_learn("pipeline").make_union(
        text.TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKENS, sublinear_tf=True),
        text.TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
    )
    model = scikit_learn("linear_model").LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=2000)
    model.fit(features.fit_transform(windows.texts), windows.topic)
    return lambda texts: np.asarray(model.decision_function(features.transform(list(texts))), np.float64)


def _folds(windows: Windows) -> list[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]]:
    """Pairs of indices (train, test) that keep the windows of a text together, with examples in every fold."""
    selection = scikit_learn("model_selection")
    n = min(FOLDS, len(set(windows.groups[windows.topic].tolist())))
    split = selection.StratifiedGroupKFold(n_splits=n).split(windows.texts, windows.topic, windows.groups)
    return [(np.asarray(train), np.asarray(test)) for train, test in split]


def logistic_curve(decisions: Float[np.ndarray, " n"], topic: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """Fit slope and offset of the logistic curve to held-out decisions (Platt 1999); both classes weigh the same."""
    linear = scikit_learn("linear_model")
    yes, no = int(topic.sum()), int((~topic).sum())
    target = np.where(topic, (yes + 1) / (yes + 2), 1 / (no + 2))
    weights = _weights(topic)
    spread = float(decisions.std()) or 1.0
    # express a target between 0 and 1 as one row of each class, with the target as weight
    rows = np.concatenate([decisions, decisions])[:, None] / spread
    classes = np.repeat([1, 0], len(decisions))
    of_rows = np.concatenate([target * weights, (1 - target) * weights]) * len(decisions)
    model = linear.LogisticRegression(C=1e4, max_iter=2000).fit(rows, classes, sample_weight=of_rows)
    slope = float(model.coef_[0, 0]) / spread
    if slope <= 0:  # the background looks more like the theme than held-out examples do: nothing was learned
        return 0.0, 0.0
    return slope, float(model.intercept_[0])


def _weights(topic: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Weights that sum to 1, half of it in each class."""
    return np.where(topic, 0.5 / topic.sum(), 0.5 / (~topic).sum())


def scikit_learn(module: str) -> Any:
    """Import a module of scikit-learn, or raise MissingExtra."""
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError:
        raise MissingExtra(
            "the offline judge classifies topics with the package scikit-learn, which is not installed.", "judge"
        ) from None
