"""A training run on texts in a form that another process can take up: it holds names, and opens what they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from saeflow.ids import Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.training.learners import MakeLearners
from saeflow.training.lens import sae_lens_learners
from saeflow.training.record import Trained
from saeflow.training.run import Progress, train
from saeflow.training.settings import Settings, Target
from saeflow.training.texts import ReadTexts, TextBatches, evaluation_texts

_AT_ONCE: Final = 8
"""Texts that are measured in one forward pass."""


@dataclass(frozen=True, eq=False)
class TextRun:
    """What is trained on which texts, and how.

    Attributes:
        model: the model whose activations are read; opened by `load_model`, where a worker is to open it again.
        read: texts of a pass. A worker gets it by pickle: a function of a module, or an object of names and a seed.
        targets: what to train, one a site.
        settings: how.
        evaluated: how many texts are kept for measuring.
        start: dictionaries to go on from; opened by `load_dictionaries`, where a worker is to open them again.
        texts: where the texts come from, for the metadata.
        model_name: the model's name, for the metadata; its own where empty.
        learners: what moves the weights.
    """

    model: LanguageModel
    read: ReadTexts
    targets: Sequence[Target]
    settings: Settings
    evaluated: int = 32
    start: Mapping[Site, Dictionary] | None = None
    texts: str = ""
    model_name: str = ""
    learners: MakeLearners = sae_lens_learners

    def train(
        self, out: Path, *, targets: Sequence[Target] | None = None, progress: Progress | None = None
    ) -> Trained:
        """Train all targets, or some of them, in this process. Raises what `saeflow.training.train` does."""
        stream = self.settings.stream
        kept = evaluation_texts(self.read, self.evaluated)
        return train(
            self.model,
            TextBatches(self.model, self.read, context=stream.context, windows=stream.windows),
            self.targets if targets is None else targets, self.settings, out=out,
            evaluation=[
                self.model.tokenize(kept[i : i + _AT_ONCE], max_length=stream.context)
                for i in range(0, len(kept), _AT_ONCE)
            ],
            start=self.start, texts=self.texts, model_name=self.model_name, progress=progress, learners=self.learners,
        )  # fmt: skip
