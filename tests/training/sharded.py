"""What the tests of shards send to workers: texts, and trainers that are killed or interrupted once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saeflow.sources.model import LanguageModel, load_model
from saeflow.training import TextRun, TrainingSettings
from saeflow.training.sparse_trainer import SparseTrainer
from saeflow.training.trainer_interface import TrainerInputs

from ..sources.tiny_models import tiny_model
from .learning import TARGETS


@dataclass(frozen=True)
class Words:
    """Random words of the tiny models, as texts."""

    seed: int = 0

    def __call__(self, number: int) -> Iterable[str]:
        ids = np.random.default_rng(self.seed + number).integers(3, 40, (80, 20))
        return [" ".join(f"w{i}" for i in row) for row in ids]


class Stopped(Exception):
    """Stands for what ends a driver between two steps."""


@dataclass(frozen=True)
class Ends:
    """Makes trainers that note every step in a folder, and of which one ends once at a step."""

    name = "sparse"

    folder: Path
    target: str
    step: int
    kill: bool

    def __call__(self, inputs: TrainerInputs) -> SparseTrainer:
        ends = self

        class Noting(SparseTrainer):
            def step(self, batch):
                mine = inputs.targets[0].name
                log = ends.folder / mine
                log.parent.mkdir(exist_ok=True)
                with log.open("a") as file:
                    file.write(f"{self.state()[1][mine]['steps']}\n")
                if mine == ends.target and log.read_text().split() == [str(n) for n in range(ends.step + 1)]:
                    if ends.kill:
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise Stopped
                super().step(batch)

        return Noting(inputs)


def named_model(folder: Path) -> LanguageModel:
    """The tiny Gemma 2, saved and opened by name as a worker opens it."""
    made = tiny_model("gemma2")
    made.hf_model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return load_model(folder)


def text_run(model: LanguageModel, told: TrainingSettings, trainer=SparseTrainer, targets=TARGETS, **more) -> TextRun:
    """A run over random words."""
    return TextRun(model, Words(), targets, told, 2, texts="words", trainer=trainer, **more)
