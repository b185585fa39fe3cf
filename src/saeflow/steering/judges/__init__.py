"""Judges of generated text: language quality and presence of a theme, 0 to 5 each (section 4.2, appendix B). No torch.

    llm.LLMJudge           asks a language model, with the rubrics of the paper; costs requests, and keeps the answers
    offline.OfflineJudge   the unsteered model's loss and a topic classifier; no key, no network, deterministic

Both need the extra "judge". Any object with a `name` and a `score` is a judge too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from saeflow.errors import InvalidArgument
from saeflow.plain_types import Progress
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Theme

HIGHEST: Final = 5
"""The highest mark of a rubric; the lowest is 0 (appendix B)."""


def final_score(behavior: float, coherence: float, *, suppress: bool) -> float:
    """Behavioral x Coherence, or (1 - Behavioral) x Coherence to suppress; 0 to 1, from marks of 0 to 5 (section 4.2).

    Both marks are first divided by 5, since 1 - Behavioral needs a share. Appendix C.3 calls the same score
    "Behavioral x Cumulative".
    """
    topic = behavior / HIGHEST
    return (1 - topic if suppress else topic) * (coherence / HIGHEST)


@dataclass(frozen=True, slots=True)
class Score:
    """How well a text is written, and how much of the theme is in it (section 4.2).

    Attributes:
        coherence: language quality, 0 (none) to 5.
        behavior: presence of the theme, 0 (none) to 5, in either direction of steering.

    Raises:
        InvalidArgument: for a mark outside 0 to 5, including NaN.
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
            (`saeflow.steering.metrics.losses`). NaN if unknown; judges that only read the text do not use it.
        ids: its tokens, if known; without them repetition is counted in words.
    """

    text: str
    prompt: str
    loss: float = math.nan
    ids: tuple[int, ...] = ()


@runtime_checkable
class Judge(Protocol):
    """Marks texts. The score of a text does not depend on the other texts judged with it."""

    @property
    def name(self) -> str:
        """A name of the judge, shown next to every number that depends on it."""
        ...

    def score(
        self, theme: Theme, direction: SteeringDirection, texts: Sequence[Judged], *, progress: Progress | None = None
    ) -> list[Score]:
        """A score for each text, in order."""
        ...
