"""How well a label tells where a feature fires: detection, after Paulo et al. 2024 (arXiv 2410.13928). No torch.

A model is shown the label and some passages, half of which the feature fires on, and says which. None of these passages
was shown when the label was written. The score is the balanced accuracy, (share of firing passages named + share of
silent passages not named) / 2: 0.5 for a label that says nothing, 1 for a perfect one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from saeflow.errors import BadFile, InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.labels.lines import read_lines
from saeflow.labels.words import Context, FeatureWords
from saeflow.reading import parse_json

CONTROLS: Final = "controls"
OTHERS: Final = "other features"


@dataclass(frozen=True, slots=True)
class Example:
    """A passage, and whether the feature fires in it."""

    text: str
    fires: bool


@dataclass(frozen=True, slots=True)
class Detection:
    """The result of showing a label and some passages.

    Attributes:
        found: share of the firing passages that were named, 0 to 1.
        left: share of the silent passages that were not named, 0 to 1.
        n_firing: number of passages the feature fires on.
        n_silent: number of passages the feature is silent in.
        silent_from: "controls", random passages in which the feature was observed to be silent; or "other features",
            passages of other features that hold none of its tokens, where it may still fire.
    """

    found: float
    left: float
    n_firing: int
    n_silent: int
    silent_from: str

    @property
    def score(self) -> float:
        """The balanced accuracy, 0 to 1; 0.5 is what guessing gives."""
        return (self.found + self.left) / 2


@dataclass(frozen=True, slots=True)
class DetectionTrial:
    """The passages of one feature, in the order they are shown."""

    examples: tuple[Example, ...]
    silent_from: str

    def scored(self, answers: Sequence[bool]) -> Detection:
        """Score the answers, one per passage.

        Raises:
            InvalidArgument: when there is not one answer for each passage.
        """
        if len(answers) != len(self.examples):
            raise InvalidArgument(f"{len(answers)} answers for {len(self.examples)} passages. Give one for each.")
        firing = [said for said, example in zip(answers, self.examples, strict=True) if example.fires]
        silent = [not said for said, example in zip(answers, self.examples, strict=True) if not example.fires]
        return Detection(
            sum(firing) / len(firing), sum(silent) / len(silent), len(firing), len(silent), self.silent_from
        )


@dataclass(frozen=True)
class Silence:
    """Where silent passages of a site are taken from.

    Attributes:
        site: the site.
        controls: passages drawn at random, each with the features that fire in it.
        rows: words of every feature, used if there are no controls.
    """

    site: Site
    controls: tuple[tuple[str, frozenset[int]], ...]
    rows: Sequence[FeatureWords | None]

    @staticmethod
    def of(path: Path, site: Site, rows: Sequence[FeatureWords | None]) -> Silence:
        """Read the controls of a site; there are none if the file does not exist.

        Raises:
            BadFile: when the file cannot be read.
        """
        found: list[tuple[str, frozenset[int]]] = []
        for number, line in enumerate(read_lines(path), 1):
            try:
                row: dict[str, Any] = parse_json(line)
                found.append(("".join(row["tokens"]), frozenset(int(one) for one in row["active"])))
            except (ValueError, KeyError, TypeError) as error:
                raise BadFile(f"{path}: line {number} holds no passage ({error!r}). Make the words again.") from None
        return Silence(site, tuple(found), rows)

    def passages(self, feature: FeatureId, n: int, rng: np.random.Generator) -> tuple[list[str], str]:
        """Draw up to `n` passages in which a feature is silent, and say where they are from."""
        silent = [text for text, active in self.controls if feature.index not in active and text.strip()]
        if silent:
            return [silent[place] for place in rng.permutation(len(silent))[:n].tolist()], CONTROLS
        own = self.rows[feature.index] if feature.index < len(self.rows) else None
        tokens = {token.strip().lower() for token in own.tokens} if own is not None else set[str]()
        texts: list[str] = []
        for place in rng.permutation(len(self.rows)).tolist():
            other = self.rows[place]
            if place == feature.index or other is None or not other.contexts:
                continue
            context = other.contexts[0]
            if not tokens.intersection(token.strip().lower() for token in context.tokens):
                texts.append(text_of(context))
            if len(texts) == n:
                break
        return texts, OTHERS


def make_trial(
    feature: FeatureId, held_out: Sequence[Context], silence: Silence, n_silent: int, rng: np.random.Generator
) -> DetectionTrial | None:
    """The passages to show for a feature, shuffled; None if there are no firing or no silent ones."""
    silent, silent_from = silence.passages(feature, n_silent, rng)
    if not held_out or not silent:
        return None
    examples = [Example(text_of(context), True) for context in held_out] + [Example(text, False) for text in silent]
    order = rng.permutation(len(examples)).tolist()
    return DetectionTrial(tuple(examples[place] for place in order), silent_from)


def text_of(context: Context) -> str:
    """A passage as running text."""
    return "".join(context.tokens)
