"""Language quality of a text without a judge that reads: the unsteered model's own loss, and repetition. No torch.

    coherence = 5 x probability x variety x length          each factor 0 to 1

    probability   min(1, exp(m - loss)), where m is the upper quartile of the losses of unsteered samples of the
                  same prompt. A text whose every token is half as probable gets half the marks. As probable as
                  three of four of the model's own, or more, gets full marks: less loss than a sample at this
                  temperature is no better language. With the median in place of the quartile unsteered samples
                  of the demo model had 4.2 to 4.6, now 4.7 to 4.8; other text was told from them as well.
    variety       the smallest, over n = 1, 2, 3, of min(1, distinct-n / the unsteered samples' 10 % quantile).
                  A loop has a low loss (Holtzman et al. 2020, arXiv 1904.09751): a text of which half says the
                  same again gets half the marks. 9 of 10 unsteered samples lose nothing for one n.
    length        min(1, 4 x units / the 10 % quantile of units of unsteered samples): a text that stops at once
                  cannot be read. From a quarter of the usual length on nothing is lost.

Each factor is a ratio to unsteered text of the same model, prompt and sampling, so no constant depends on the
model, and the marks of two models do not compare. The mark is monotone in the loss and in each distinct-n.
What it does not see: text that is false, off the point of its prompt, or fluent and senseless in a way that the
model itself would be. Steered and unsteered loss differ also because the topic is less expected; that is no fault of
the language, and lowers marks all the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from saeflow.errors import InvalidArgument
from saeflow.steering.judges.scores import HIGHEST, Judged
from saeflow.steering.metrics import distinct

LENGTHS: Final = (1, 2, 3)
"""The n of the n-grams whose repetition is counted."""

FEWEST: Final = 4
"""Unsteered samples below which no quantile is taken; 50 or more give steady ones."""

_TENTH: Final = 0.1
_UPPER: Final = 0.75
_WORD: Final = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Usual:
    """What unsteered samples of one prompt are like.

    Attributes:
        loss: the 75 % quantile of their losses, nats a token.
        distinct: the 10 % quantile of distinct-1, -2 and -3.
        units: the 10 % quantile of their lengths.
        words: whether units are words; else tokens.
        n: how many samples there were.
    """

    loss: float
    distinct: tuple[float, ...]
    units: float
    words: bool
    n: int

    @staticmethod
    def of(samples: Sequence[Judged], *, words: bool | None = None) -> Usual:
        """From unsteered samples of one prompt.

        Args:
            samples: those without text are left out.
            words: count in words; None: only where some sample comes without ids.

        Raises:
            InvalidArgument: for fewer than 4 samples with text, or one without a loss.
        """
        told = [sample for sample in samples if sample.text.strip()]
        if len(told) < FEWEST:
            raise InvalidArgument(
                f"{len(told)} unsteered samples of one prompt are too few to compare with. Give {FEWEST} or more, "
                "better 50."
            )
        for sample in told:
            _check(sample)
        in_words = any(not sample.ids for sample in told) if words is None else words
        units = [units_of(sample, words=in_words) for sample in told]
        tenths = [float(np.quantile([distinct(u, n) for u in units], _TENTH)) for n in LENGTHS]
        return Usual(
            loss=float(np.quantile([sample.loss for sample in told], _UPPER)),
            distinct=tuple(tenths),
            units=float(np.quantile([len(u) for u in units], _TENTH)),
            words=in_words,
            n=len(told),
        )

    def coherence(self, judged: Judged) -> float:
        """The mark of a text, 0 to 5; an empty text gets 0.

        Raises:
            InvalidArgument: when the text has no loss, or no ids where the samples have them.
        """
        if not judged.text.strip():
            return 0.0
        _check(judged)
        if not self.words and not judged.ids:
            raise InvalidArgument(
                f"the text {judged.text[:40]!r} comes without token ids, and the unsteered samples with them. Give "
                "ids for all texts, or for none."
            )
        units = units_of(judged, words=self.words)
        probability = math.exp(min(0.0, self.loss - judged.loss))
        return HIGHEST * probability * self.variety(units) * min(1.0, 4 * len(units) / max(self.units, 1.0))

    def variety(self, units: Sequence[int] | Sequence[str]) -> float:
        """What is left after repetition, 0 to 1; an n that the text is too short for does not count."""
        ratios = [
            distinct(units, n) / usual
            for n, usual in zip(LENGTHS, self.distinct, strict=True)
            if len(units) >= n and usual > 0
        ]
        return min([1.0, *ratios])


def units_of(judged: Judged, *, words: bool) -> Sequence[int] | Sequence[str]:
    """What repetition is counted in: words in lower case and single marks, or tokens."""
    return _WORD.findall(judged.text.lower()) if words else judged.ids


def by_prompt(samples: Iterable[Judged]) -> dict[str, list[Judged]]:
    """Samples by the prompt they continue, prompts sorted."""
    found: dict[str, list[Judged]] = {}
    for sample in samples:
        found.setdefault(sample.prompt, []).append(sample)
    return dict(sorted(found.items()))


def _check(judged: Judged) -> None:
    if not math.isfinite(judged.loss):
        raise InvalidArgument(
            f"the text {judged.text[:40]!r} has the loss {judged.loss}. Give its mean loss under the unsteered model "
            "(saeflow.steering.metrics.losses)."
        )
