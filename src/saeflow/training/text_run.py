"""A training run on texts that can be sent to another process: it is pickled as names, which the other side opens."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from saeflow.ids import Site
from saeflow.loggers import Log
from saeflow.plain_types import Progress
from saeflow.sources.architectures import Point
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.massive import is_massive, norm_limit
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.training.buffer import ActivationRows, Rows
from saeflow.training.folding import Normalisation, TrainedWeights, fold
from saeflow.training.metrics import Affordable, Evaluation
from saeflow.training.record import Trained
from saeflow.training.run import train
from saeflow.training.settings import TrainingSettings, TrainingTarget, measured_at_once
from saeflow.training.sparse_trainer import SparseTrainer
from saeflow.training.texts import ReadTexts, TextBatches, evaluation_texts
from saeflow.training.trainer_interface import LOOKED_AT, REACHED, MakeTrainer, Trainer, TrainerInputs


@dataclass(frozen=True)
class Pace:
    """How long parts of a run take, in seconds.

    Attributes:
        row: one row of activations at all points.
        step: a step of all targets, at the target L0 if there is one.
        measurement: a measurement of all targets at the end.
        on_the_way: a measurement before the end, which uses fewer texts.
        loss: additional time to measure the model's loss.
        first_step: a step with the first thresholds.
        first_l0: active features per row in such a step; None where thresholds are not moved to a target.
    """

    row: float
    step: float
    measurement: float
    on_the_way: float
    loss: float
    first_step: float = 0.0
    first_l0: float | None = None

    def seconds(self, settings: TrainingSettings) -> float:
        """The time of a whole run: the first filling, every step with its rows, every measurement.

        Between the first L0 and the target, `l0_due` changes geometrically over `REACHED` of the steps, and the time of
        a step is taken to be linear in it.
        """
        optimiser, every = settings.optimiser, settings.metrics_every
        rows = settings.stream.buffer + optimiser.steps * optimiser.batch / settings.stream.uses
        before_the_end = optimiser.steps * optimiser.batch // every if every else 0
        losses = 1 + before_the_end * settings.loss_every_time
        steps = optimiser.steps * self.step
        if self.first_l0 and self.first_l0 > (target := settings.sparsity.l0):
            over = (1 / math.log(self.first_l0 / target) - target / (self.first_l0 - target)) * REACHED
            steps += optimiser.steps * over * (self.first_step - self.step)
        measured = self.measurement + before_the_end * self.on_the_way + losses * self.loss
        return rows * self.row + steps + measured


@dataclass(frozen=True, eq=False)
class TextRun:
    """What is trained on which texts, and how.

    Attributes:
        model: the model whose activations are read; must come from `load_model` if a worker is to open it again.
        read: returns the texts of a pass. Workers get it by pickle: a module-level function, or an object that holds
            names and a seed.
        targets: what to train, one per site.
        settings: settings of the run.
        evaluated: how many texts are held out for measuring.
        start: dictionaries to continue from; must come from `load_dictionaries` if a worker is to open them again.
        texts: where the texts come from, for the metadata.
        model_name: the model's name, for the metadata; `model.name` if empty.
        trainer: what updates the weights.
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
        self,
        out: Path,
        *,
        targets: Sequence[TrainingTarget] | None = None,
        progress: Progress | None = None,
        log: Log | None = None,
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
            log=log,
        )

    def _batches(self) -> TextBatches:
        stream = self.settings.stream
        return TextBatches(self.model, self.read, context=stream.context, windows=stream.windows)

    def _measured(self) -> list[Tokens]:
        """The held-out texts, tokenised in batches."""
        length = self.settings.stream.context
        kept, n = evaluation_texts(self.read, self.evaluated), measured_at_once(length, n_vocabulary(self.model))
        return [self.model.tokenize(kept[i : i + n], max_length=length) for i in range(0, len(kept), n)]

    def probe(self, *, steps: int = 3) -> Pace:
        """Measure how fast a run goes here: a batch through the model; steps and measurements at the widest targets.

        Nothing is written. Steps are taken with as many targets as step side by side, on the rows training would use;
        the time of the others is assumed proportional to their number of weights. Where thresholds are moved to a
        target L0, steps are timed twice: with one threshold for all features at which random weights have that L0, and
        with the first thresholds.

        Raises:
            What `train` raises.
        """
        # 1. rows of all points, through the model
        points = tuple(dict.fromkeys(point for target in self.targets for point in target.points))
        device, settings = self.model.device, self.settings
        rows = ActivationRows(self.model, self._batches(), points, half=settings.stream.half)
        read = [next(rows)]  # not timed: it tokenises texts for many batches
        batch, began = settings.optimiser.batch, time.perf_counter()
        while len(read) < 2 or sum(len(one[points[0]]) for one in read) < batch:
            read.append(next(rows))
        row_seconds = (time.perf_counter() - began) / sum(len(one[points[0]]) for one in read[1:])
        widths = {one.name: (read[0][one.read].shape[1], read[0][one.written].shape[1]) for one in self.targets}
        sizes = {one.name: one.width * sum(widths[one.name]) for one in self.targets}

        # 2. the widest targets, and the rows they would train on
        together = min(torch.get_num_threads(), len(self.targets)) if device.type == "cpu" else 1
        chosen = sorted(self.targets, key=lambda one: sizes[one.name], reverse=True)[:together]
        norms, ready = self._ready(read, chosen)

        # 3. steps with the first L0, and with that of most of the run
        trainer = self.trainer(TrainerInputs(chosen, widths, settings, device, {}))
        first = {name: trainer.weights(name) for name in ready}
        first_l0: float | None = None
        step_seconds = first_seconds = _seconds_a_step(trainer, ready, steps)
        if settings.sparsity.holds_l0:
            some = {name: x[:LOOKED_AT, : widths[name][0]] for name, x in ready.items()}
            first_l0 = sum(_l0(first[name], x) for name, x in some.items()) / len(some)
            held_at = {name: _at_l0(first[name], x, settings.sparsity.l0) for name, x in some.items()}
            del trainer  # two sets of weights and moments may not fit in memory
            trainer = self.trainer(TrainerInputs(chosen, widths, settings, device, held_at))
            step_seconds = _seconds_a_step(trainer, ready, steps)

        # 4. measurements of the widest target
        target = chosen[0]
        affordable = Affordable.of(self.model, self.targets, settings)
        evaluation = Evaluation(self.model, self._measured(), [target], affordable=affordable)
        dictionary = fold(trainer.weights(target.name), target, norms[target.read], norms[target.written])
        measured: list[float] = []
        for loss, last in ((False, True), (True, True), (False, False)):
            began = time.perf_counter()
            evaluation.measure({target.site: dictionary}, loss=loss, last=last)
            measured.append(time.perf_counter() - began)
        # all targets share the model's pass, but not what follows
        shared = min(measured[0], row_seconds * evaluation.n_tokens)
        whole = shared + (measured[0] - shared) * len(sizes)
        all_of_them = sum(sizes.values()) / sum(sizes[one.name] for one in chosen)
        return Pace(
            row=row_seconds,
            step=step_seconds * all_of_them,
            measurement=whole,
            on_the_way=whole * measured[2] / measured[0],
            loss=max(measured[1] - measured[0], 0.0) * len(sizes),
            first_step=first_seconds * all_of_them,
            first_l0=first_l0,
        )

    def _ready(
        self, read: Sequence[Rows], targets: Sequence[TrainingTarget]
    ) -> tuple[dict[Point, Normalisation], dict[str, Float[Tensor, "batch columns"]]]:
        """Normalisations from some rows, and a batch of these rows for each target, without massive ones."""
        norms: dict[Point, Normalisation] = {}
        ready: dict[str, Tensor] = {}
        for target in targets:
            held = {p: torch.cat([one[p] for one in read])[: self.settings.optimiser.batch] for p in target.points}
            massive = [is_massive(h, norm_limit(h, self.settings.massive)) for h in held.values()]
            usual = {p: h[~torch.stack(massive).any(dim=0)].float() for p, h in held.items()}
            for p, h in usual.items():
                norms[p] = Normalisation.of(h.mean(0).double(), (h - h.mean(0)).norm(dim=1).double().mean(), str(p))
            ready[target.name] = torch.cat([norms[p](h.to(self.model.device)) for p, h in usual.items()], dim=1)
        return norms, ready


def product_seconds(model: LanguageModel, tokens: int = 1024) -> dict[torch.dtype, float]:
    """How long the largest product of the model's first block takes on some tokens, in float32 and in bfloat16.

    Which is faster depends on the processor: many lack instructions for products in bfloat16, which then take several
    times as long.
    """
    weight = max((p for p in model.block(0).parameters() if p.ndim == 2), key=Tensor.numel).detach()
    found: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        w = weight.to(dtype)
        x = torch.ones(tokens, w.shape[1], dtype=dtype, device=w.device)
        taken: list[float] = []
        for _ in range(4):  # the first one is a warm-up
            began = time.perf_counter()
            float((x @ w.T)[0, 0])  # waits for the device
            taken.append(time.perf_counter() - began)
        found[dtype] = min(taken[1:])
    return found


def _seconds_a_step(trainer: Trainer, ready: Mapping[str, Tensor], steps: int) -> float:
    trainer.step(ready)  # the first one builds what later ones reuse
    began = time.perf_counter()
    for _ in range(steps):
        trainer.step(ready)
    for name in ready:
        trainer.weights(name)  # waits for the device
    return (time.perf_counter() - began) / steps


def _l0(weights: TrainedWeights, x: Float[Tensor, "n d_in"]) -> float:
    assert weights.threshold is not None  # noqa: S101 - only called for JumpReLUs
    return float((linear(x, weights.W_enc, weights.b_enc) > weights.threshold).float().sum(dim=1).mean())


def _at_l0(weights: TrainedWeights, x: Float[Tensor, "n d_in"], l0: float) -> TrainedWeights:
    """The same weights with one threshold for all features, such that `l0` are active per row on average."""
    pre = linear(x, weights.W_enc, weights.b_enc).flatten()
    cut = pre.topk(min(len(pre), max(1, round(l0 * len(x))))).values[-1]
    return replace(weights, threshold=torch.full_like(weights.b_enc, float(cut.clamp(min=0))))


def n_vocabulary(model: LanguageModel) -> int:
    """How many logits the model gives per token."""
    return int(model.hf_model.config.get_text_config().vocab_size)
