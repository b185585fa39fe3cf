"""Judges of generated text: language quality and presence of a theme, 0 to 5 each (section 4.2, appendix B). No torch.

    llm.LLMJudge           asks a language model, with the rubrics of the paper; costs requests, answers are kept
    offline.OfflineJudge   the unsteered model's loss and a classifier of topics; no key, no network, deterministic

Both come with the extra "judge". Any object with a `name` and a `score` is a judge too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from saeflow.errors import InvalidArgument
from saeflow.records import Progress
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Theme

HIGHEST: Final = 5
"""The highest mark of a rubric; the lowest is 0 (appendix B)."""


def final_score(behavior: float, coherence: float, *, suppress: bool) -> float:
    """Behavioral x Coherence, or (1 - Behavioral) x Coherence to suppress, of marks 0 to 5: 0 to 1 (section 4.2).

    Both marks are divided by 5 first: 1 - Behavioral needs shares. Appendix C.3 writes "Behavioral x Cumulative" for
    the same.
    """
    topic = behavior / HIGHEST
    return (1 - topic if suppress else topic) * (coherence / HIGHEST)


@dataclass(frozen=True, slots=True)
class Score:
    """How well a text is written, and how much of the theme is in it (section 4.2).

    Attributes:
        coherence: language quality, 0 (none) to 5.
        behavior: presence of the theme, 0 (none) to 5, whether it was to be promoted or suppressed.

    Raises:
        InvalidArgument: for a mark outside 0 to 5, NaN among them.
    """

    coherence: float
    behavior: float

    def __post_init__(self) -> None:
        """Refuse marks outside their range."""
        for name, mark in (("coherence", self.coherence), ("behavior", self.behavior)):
            if not 0 <= mark <= HIGHEST:
                raise InvalidArgument(f"{name} = {mark} is no mark. Give a number from 0 to {HIGHEST}.")


@dataclass(frozen=True, slots=True)
class Judged:
    """A generated text, as judges see it.

    Attributes:
        text: what was generated, without the prompt.
        prompt: what it continues.
        loss: mean loss of its tokens in nats under the unsteered model, given the prompt
            (`saeflow.steering.metrics.losses`). NaN where there is none: a judge that reads texts only never looks.
        ids: its tokens, where they are known; without them repetition is counted in words.
    """

    text: str
    prompt: str
    loss: float = math.nan
    ids: tuple[int, ...] = ()


@runtime_checkable
class Judge(Protocol):
    """Marks texts. The scores of a text do not depend on the texts it is judged with."""

    @property
    def name(self) -> str:
        """What is said of the judge next to every number that rests on it."""
        ...

    def score(
        self, theme: Theme, direction: SteeringDirection, texts: Sequence[Judged], *, progress: Progress | None = None
    ) -> list[Score]:
        """A score for each text, in order."""
        ...
