"""A training run on texts in a form that another process can take up: it holds names, and opens what they name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saeflow.ids import Site
from saeflow.records import Progress
from saeflow.sources.architectures import Point
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.massive import is_massive, norm_limit
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.training.buffer import ActivationRows
from saeflow.training.folding import Normalisation, fold
from saeflow.training.metrics import Evaluation
from saeflow.training.record import Trained
from saeflow.training.run import train
from saeflow.training.settings import TrainingSettings, TrainingTarget, measured_at_once
from saeflow.training.sparse_trainer import SparseTrainer
from saeflow.training.texts import ReadTexts, TextBatches, evaluation_texts
from saeflow.training.trainer_interface import MakeTrainer, TrainerInputs


@dataclass(frozen=True)
class Pace:
    """How long parts of a run take, in seconds: a row of activations; a step and a measurement of all targets; the
    model's loss, where it is measured too."""

    row: float
    step: float
    measurement: float
    loss: float

    def seconds(self, settings: TrainingSettings) -> float:
        """What a whole run takes: the first filling, every step with its rows, every measurement."""
        optimiser, every = settings.optimiser, settings.metrics_every
        rows = settings.stream.buffer + optimiser.steps * optimiser.batch / settings.stream.uses
        measurements = 1 + (optimiser.steps * optimiser.batch // every if every else 0)
        losses = measurements if settings.loss_every_time else 1
        return rows * self.row + optimiser.steps * self.step + measurements * self.measurement + losses * self.loss


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
        trainer: what moves the weights.
    """

    model: LanguageModel
    read: ReadTexts
    targets: Sequence[TrainingTarget]
    settings: TrainingSettings
    evaluated: int = 32
    start: Mapping[Site, Dictionary] | None = None
    texts: str = ""
    model_name: str = ""
    trainer: MakeTrainer = SparseTrainer

    def train(
        self, out: Path, *, targets: Sequence[TrainingTarget] | None = None, progress: Progress | None = None
    ) -> Trained:
        """Train all targets, or some of them, in this process. Raises what `saeflow.training.train` does."""
        return train(
            self.model,
            self._batches(),
            self.targets if targets is None else targets,
            self.settings,
            out=out,
            evaluation=self._measured(),
            start=self.start,
            texts=self.texts,
            model_name=self.model_name,
            progress=progress,
            trainer=self.trainer,
        )

    def _batches(self) -> TextBatches:
        stream = self.settings.stream
        return TextBatches(self.model, self.read, context=stream.context, windows=stream.windows)

    def _measured(self) -> list[Tokens]:
        """The texts that are kept for measuring."""
        length = self.settings.stream.context
        kept, n = evaluation_texts(self.read, self.evaluated), measured_at_once(length, n_vocabulary(self.model))
        return [self.model.tokenize(kept[i : i + n], max_length=length) for i in range(0, len(kept), n)]

    def probe(self, *, steps: int = 3) -> Pace:
        """How fast a run goes here: a batch through the model, and steps and a measurement at the widest target.

        Nothing is written. Steps of other targets are taken to need time as they have weights.

        Raises:
            What `train` raises.
        """
        points = tuple(dict.fromkeys(point for target in self.targets for point in target.points))
        target = max(self.targets, key=lambda one: one.width)
        rows = ActivationRows(self.model, self._batches(), points, half=self.settings.stream.half)
        read = [next(rows)]  # the first one cuts texts for many
        batch, began = self.settings.optimiser.batch, time.perf_counter()
        while len(read) < 2 or sum(len(one[target.read]) for one in read) < batch:
            read.append(next(rows))
        row_seconds = (time.perf_counter() - began) / sum(len(one[target.read]) for one in read[1:])
        held = {p: torch.cat([one[p] for one in read])[:batch].float() for p in target.points}
        norms: dict[Point, Normalisation] = {}
        for p, h in held.items():
            usual = h[~is_massive(h, norm_limit(h, self.settings.massive))]
            norm = (usual - usual.mean(0)).norm(dim=1).double().mean()
            norms[p] = Normalisation.of(usual.mean(0).double(), norm, str(p))
        widths = {one.name: (read[0][one.read].shape[1], read[0][one.written].shape[1]) for one in self.targets}
        trainer = self.trainer(TrainerInputs([target], widths, self.settings, self.model.device, {}))
        ready = {target.name: torch.cat([norms[p](h.to(self.model.device)) for p, h in held.items()], dim=1)}
        trainer.step(ready)  # the first one makes Adam's moments
        began = time.perf_counter()
        for _ in range(steps):
            trainer.step(ready)
        made = trainer.weights(target.name)  # waits for the device
        step_seconds = (time.perf_counter() - began) / steps
        evaluation = Evaluation(self.model, self._measured(), [target])
        dictionary = fold(made, target, norms[target.read], norms[target.written])
        measured: list[float] = []
        for loss in (False, True):
            began = time.perf_counter()
            evaluation.measure({target.site: dictionary}, loss=loss)
            measured.append(time.perf_counter() - began)
        sizes = [one.width * sum(widths[one.name]) for one in self.targets]
        # the pass of the model is shared by all targets, what follows is not
        shared = min(measured[0], row_seconds * evaluation.n_tokens)
        return Pace(
            row=row_seconds,
            step=step_seconds * sum(sizes) / (target.width * sum(widths[target.name])),
            measurement=shared + (measured[0] - shared) * len(sizes),
            loss=max(measured[1] - measured[0], 0.0) * len(sizes),
        )


def n_vocabulary(model: LanguageModel) -> int:
    """How many logits a token has."""
    return int(model.hf_model.config.get_text_config().vocab_size)
