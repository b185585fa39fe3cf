"""A judge that needs no key, no network and no language model except the steered one.

    behavior    a classifier of the theme's example texts against background texts (`topic`)
    coherence   the unsteered model's loss, and repetition, relative to unsteered samples of the same prompt:

    coherence = 5 x probability x variety x length          each factor 0 to 1

    probability   min(1, exp(m - loss)), where m is the upper quartile of the losses of unsteered samples of the
                  same prompt. A text whose every token is half as probable gets half the marks. A loss at or below
                  m gets full marks, since less loss than a typical sample at this temperature does not mean
                  better language. With the median in place of the quartile, unsteered samples of the demo model
                  scored 4.2 to 4.6, now 4.7 to 4.8; they were told from other text equally well.
    variety       the smallest, over n = 1, 2, 3, of min(1, distinct-n / the unsteered samples' 10 % quantile).
                  Loops have a low loss (Holtzman et al. 2020, arXiv 1904.09751); here, a text whose second half
                  repeats the first gets about half the marks. For any one n, 9 of 10 unsteered samples lose nothing.
    length        min(1, 4 x units / the 10 % quantile of the units of unsteered samples): a text that stops at once
                  cannot be judged. A quarter of the usual length is enough for full marks.

Each factor is relative to unsteered text of the same model, prompt and sampling, so no constant depends on the
model, and marks of different models are not comparable. The mark is monotone in the loss and in each distinct-n.
It misses text that is false, unrelated to its prompt, or fluent nonsense such as the model itself would write. The loss
of steered text is also higher because its topic is less expected, which lowers marks although the language is no worse.

The judge is deterministic and learns only from example texts and unsteered text: it never trains on steered text, and
the mark of a text does not depend on the other texts. It is cheap and blunt: it knows the words of a theme, but not
whether a sentence is about it. docs/offline-judge.md reports how well it does; prefer a language model where one is
available.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from saeflow.demo.texts import all_texts, domains, texts
from saeflow.errors import InvalidArgument
from saeflow.plain_types import Progress
from saeflow.steering.judges import HIGHEST, Judged, Score
from saeflow.steering.judges.topic import WINDOW, Topic, TopicReport, Windows, fit, held_out, windows_of
from saeflow.steering.metrics import distinct
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Theme

AT_ONCE: Final = 256
"""Texts between two calls of `progress`."""


def pack_background(pack: str, n: int = 60, seed: int = 0) -> list[str]:
    """Up to `n` texts of each domain of a pack, as a background for its themes; empty if `pack` is not a pack.

    Raises:
        BadFile: when the pack's texts cannot be read.
    """
    sizes = {domain: min(n, len(all_texts(domain, pack))) for domain in domains(pack)}
    return [text for domain, size in sizes.items() for text in texts(domain, size, seed, pack)]


class OfflineJudge:
    """Marks texts by the unsteered model's loss and a classifier of topics.

    A theme's classifier is fitted when it is first needed. Its background consists of the texts of `background` and of
    any unsteered samples of the prompt that the theme is activated on. Samples of the prompt it is suppressed on are
    not used, since they are about the theme; nor are samples of other themes' prompts, so that marks do not depend on
    which themes are judged together.

    Args:
        background: texts about nothing in particular, of the kinds the model writes, of any length. Give equally many
            of each kind; texts about the theme among them make it harder to recognise.
        reference: unsteered samples, by prompt or as one sequence, with their losses. Judged texts must continue one of
            these prompts; a prompt that asks for the theme may be missing, and its texts are then compared with the
            samples of the theme's plain prompt.
        window: words in a window to classify; use the length of the texts to judge.

    Raises:
        InvalidArgument: for a window below 4 words, or fewer than 4 unsteered samples of a prompt.
    """

    def __init__(
        self,
        background: Sequence[str],
        reference: Mapping[Any, Sequence[Judged]] | Iterable[Judged],
        *,
        window: int = WINDOW,
    ) -> None:
        """Measure the unsteered samples."""
        if window < 4:
            raise InvalidArgument(f"window = {window} words show no topic. Give 4 or more, about 28.")
        self._background = tuple(background)
        if isinstance(reference, Mapping):
            groups = cast("Mapping[Any, Sequence[Judged]]", reference)
            reference = [sample for samples in groups.values() for sample in samples]
        self._samples: dict[str, list[Judged]] = {}
        for sample in sorted(reference, key=lambda sample: sample.prompt):
            self._samples.setdefault(sample.prompt, []).append(sample)
        self._usual = {prompt: Usual.of(samples) for prompt, samples in self._samples.items()}
        self._window = window
        self._topics: dict[tuple[tuple[str, ...], str | None], Topic] = {}

    @property
    def name(self) -> str:
        """What the judge reads, as shown next to every number."""
        return "offline (loss and TF-IDF)"

    def score(
        self, theme: Theme, direction: SteeringDirection, texts: Sequence[Judged], *, progress: Progress | None = None
    ) -> list[Score]:
        """A score for each text, in order. The behavior mark is the same in both directions.

        Raises:
            InvalidArgument: for a theme with fewer than 5 examples, a prompt without unsteered samples, or a text
                with tokens and no loss.
            MissingExtra: when scikit-learn is not installed.
        """
        topic = self.topic(theme)
        found: list[Score] = []
        for start in range(0, len(texts), AT_ONCE):
            if progress:
                progress(start, len(texts), f"texts judged {self.name}")
            part = texts[start : start + AT_ONCE]
            for judged, mark in zip(part, topic.marks([j.text for j in part]), strict=True):
                found.append(Score(self._usual_of(theme, direction, judged.prompt).coherence(judged), mark))
        if progress:
            progress(len(texts), len(texts), "done")
        return found

    def report(self, theme: Theme) -> TopicReport:
        """How well the classifier of a theme does on held-out texts; takes some 30 fits.

        Raises:
            InvalidArgument: for a theme with fewer than 5 examples.
            MissingExtra: when scikit-learn is not installed.
        """
        return held_out(theme.name, self._windows(theme), window=self._window)

    def topic(self, theme: Theme) -> Topic:
        """The theme's classifier; fitted once for each combination of examples and plain prompt.

        Raises:
            InvalidArgument: for a theme with fewer than 5 examples, or fewer than 5 background texts.
            MissingExtra: when scikit-learn is not installed.
        """
        key = (theme.examples, _plain(theme))
        if key not in self._topics:
            self._topics[key] = fit(self._windows(theme), window=self._window)
        return self._topics[key]

    def _windows(self, theme: Theme) -> Windows:
        plain = _plain(theme)
        unsteered = [] if plain is None else [sample.text for sample in self._samples.get(plain, [])]
        try:
            return windows_of(theme.examples, [*self._background, *unsteered], self._window)
        except InvalidArgument as error:
            raise InvalidArgument(f"the theme {theme.name!r}: {error}") from None

    def _usual_of(self, theme: Theme, direction: SteeringDirection, prompt: str) -> Usual:
        task = theme.activate if direction is SteeringDirection.ACTIVATE else theme.suppress
        for known in (prompt, task.prompt if task and prompt == task.asked else prompt):
            if known in self._usual:
                return self._usual[known]
        raise InvalidArgument(
            f"there are no unsteered samples of the prompt {prompt!r} to compare with; there are some of "
            f"{', '.join(map(repr, self._usual)) or 'none'}. Give them in reference."
        )


def _plain(theme: Theme) -> str | None:
    """The prompt a theme is activated on; None if it is suppressed on the same one, whose samples may be about it."""
    if theme.activate is None or (theme.suppress and theme.suppress.prompt == theme.activate.prompt):
        return None
    return theme.activate.prompt


# --- coherence --------------------------------------------------------------------------------------------------------

LENGTHS: Final = (1, 2, 3)
"""The n of the n-grams whose repetition is counted."""

FEWEST: Final = 4
"""The fewest unsteered samples for taking quantiles; 50 or more make them stable."""

_TENTH: Final = 0.1
_UPPER: Final = 0.75
_WORD: Final = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Usual:
    """Statistics of the unsteered samples of one prompt.

    Attributes:
        loss: the 75 % quantile of their losses, in nats per token.
        distinct: the 10 % quantile of distinct-1, -2 and -3.
        units: the 10 % quantile of their lengths.
        words: whether units are words; otherwise they are tokens.
        n: how many samples there were.
    """

    loss: float
    distinct: tuple[float, ...]
    units: float
    words: bool
    n: int

    @staticmethod
    def of(samples: Sequence[Judged], *, words: bool | None = None) -> Usual:
        """Take the statistics of unsteered samples of one prompt.

        Args:
            samples: the samples; those without text are left out.
            words: count in words rather than tokens; None for words only if some sample has no ids.

        Raises:
            InvalidArgument: for fewer than 4 samples with text, or one without a loss.
        """
        kept = [sample for sample in samples if sample.text.strip()]
        if len(kept) < FEWEST:
            raise InvalidArgument(
                f"{len(kept)} unsteered samples of one prompt are too few to compare with. Give {FEWEST} or more, "
                "better 50."
            )
        for sample in kept:
            _check(sample)
        in_words = any(not sample.ids for sample in kept) if words is None else words
        units = [_units(sample, words=in_words) for sample in kept]
        tenths = [float(np.quantile([distinct(u, n) for u in units], _TENTH)) for n in LENGTHS]
        return Usual(
            loss=float(np.quantile([sample.loss for sample in kept], _UPPER)),
            distinct=tuple(tenths),
            units=float(np.quantile([len(u) for u in units], _TENTH)),
            words=in_words,
            n=len(kept),
        )

    def coherence(self, judged: Judged) -> float:
        """The mark of a text, 0 to 5; an empty text gets 0.

        Raises:
            InvalidArgument: when the text has no loss, or no ids although the samples have them.
        """
        if not judged.text.strip():
            return 0.0
        _check(judged)
        if not self.words and not judged.ids:
            raise InvalidArgument(
                f"the text {judged.text[:40]!r} comes without token ids, and the unsteered samples with them. Give "
                "ids for all texts, or for none."
            )
        units = _units(judged, words=self.words)
        probability = math.exp(min(0.0, self.loss - judged.loss))
        return HIGHEST * probability * self.variety(units) * min(1.0, 4 * len(units) / max(self.units, 1.0))

    def variety(self, units: Sequence[int] | Sequence[str]) -> float:
        """The variety factor, 0 to 1; values of n that the text is too short for do not count."""
        ratios = [
            distinct(units, n) / usual
            for n, usual in zip(LENGTHS, self.distinct, strict=True)
            if len(units) >= n and usual > 0
        ]
        return min([1.0, *ratios])


def _units(judged: Judged, *, words: bool) -> Sequence[int] | Sequence[str]:
    """The units in which repetition is counted: lower-case words and single punctuation marks, or tokens."""
    return _WORD.findall(judged.text.lower()) if words else judged.ids


def _check(judged: Judged) -> None:
    if not math.isfinite(judged.loss):
        raise InvalidArgument(
            f"the text {judged.text[:40]!r} has the loss {judged.loss}. Give its mean loss under the unsteered model "
            "(saeflow.steering.metrics.losses)."
        )
