"""A training run: texts in, a folder of sae-lens SAEs out; a run killed at any point resumes to the same weights.

1. Windows of tokens pass through the model once, and every requested point is captured.
2. A buffer shuffles the rows of all points together; its first filling sets the normalisation of each point.
3. Each batch is normalised and takes one step at every target.
4. At intervals the weights are folded back to raw activations and measured on held-out texts, and everything the next
step depends on is written to a checkpoint.
5. At the end the folded dictionaries are measured, and written side by side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.ids import Site
from saeflow.loggers import Log
from saeflow.plain_types import Progress
from saeflow.sources.activity import model_digest
from saeflow.sources.architectures import Point
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.formats.sae_lens_writer import VERSION as LENS_VERSION
from saeflow.sources.formats.sae_lens_writer import write_sae_lens_release
from saeflow.sources.massive import is_massive
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.training import checkpoint, record
from saeflow.training.buffer import ActivationRows, ShuffledBuffer
from saeflow.training.folding import Normalisation, TrainedWeights, fold, unfold
from saeflow.training.metrics import Affordable, Evaluation, Quality
from saeflow.training.record import Trained
from saeflow.training.sae_lens_trainer import SaeLensTrainer
from saeflow.training.settings import TrainingSettings, TrainingTarget, check_targets, needs
from saeflow.training.sparse_trainer import SparseTrainer
from saeflow.training.texts import TokenBatches
from saeflow.training.trainer_interface import MakeTrainer, Trainer, TrainerInputs
from saeflow.version import __version__

TRAINERS: Final[Mapping[str, MakeTrainer]] = {made.name: made for made in (SparseTrainer, SaeLensTrainer)}
"""Trainers by name: saeflow's own, and that of sae-lens, which needs the extra `train`."""
_PATIENCE: Final = 20
"""Checkpoints by the clock are at least this many times their duration apart: at most a twentieth of a run."""


def train(
    model: LanguageModel,
    batches: TokenBatches,
    targets: Sequence[TrainingTarget],
    settings: TrainingSettings,
    *,
    out: Path,
    evaluation: Sequence[Tokens],
    start: Mapping[Site, Dictionary] | None = None,
    texts: str = "",
    model_name: str = "",
    progress: Progress | None = None,
    trainer: MakeTrainer = SparseTrainer,
    log: Log | None = None,
) -> Trained:
    """Train a dictionary at every target and write them to `out` as sae-lens folders.

    A run resumes from the checkpoint in its folder and reaches the weights of an uninterrupted run, bit for bit on the
    same machine with the same number of threads; a finished run is only reported.

    Args:
        model: the model whose activations are read.
        batches: tokens to train on; see `TextBatches` and `WindowBatches`.
        targets: what to train, one per site.
        settings: settings of the run.
        out: a folder for this run only.
        evaluation: held-out tokens, which `batches` must not give. Measurements along the way and of the model's loss
            use the first of them, few enough that measuring costs about a tenth of training (`metrics.Affordable`).
        start: dictionaries to continue from, by site; other sites start at random.
        texts: where the tokens come from, for the metadata.
        model_name: the model's name, for the metadata; `model.name` if empty.
        progress: called with (tokens done, tokens in all, a line about the last measurement).
        trainer: what updates the weights; see `TRAINERS`.
        log: called with the rows of every measurement, as they go into metrics.jsonl; see `saeflow.loggers`.

    Raises:
        InvalidArgument: when two targets share a site, activations are not finite, or training diverges.
        UnknownSite: for a layer the model does not have.
        BadFile: when `out` holds another run, this one in shards, or a damaged one.
        MissingExtra: when the trainer needs sae-lens and it is not installed.
        OSError: when the disk is full or cannot be written.
    """
    check_targets(targets, settings)
    for target in targets:
        model.block(target.site.layer)  # a missing layer raises before the folder is made
    manifest = identity(model, targets, settings, start, texts, model_name, trainer.name)
    done = record.finished(out, manifest)
    if done is not None:
        return done
    if (out / record.SHARDS).is_dir():
        raise BadFile(
            f"{out} holds this run in shards, and they are not finished. Go on with --shards or an --engine, or give "
            "another --out."
        )
    run = _TrainingRun(model, batches, tuple(targets), settings, out, manifest, log)
    run.begin(start or {}, trainer)
    run.evaluation = Evaluation(model, evaluation, targets, run.limits, Affordable.of(model, targets, settings))
    return run.to_the_end(progress or (lambda _done, _total, _now: None))


def identity(
    model: LanguageModel,
    targets: Sequence[TrainingTarget],
    settings: TrainingSettings,
    start: Mapping[Site, Dictionary] | None,
    texts: str,
    model_name: str,
    trainer: str,
) -> dict[str, Any]:
    """What training.json says about a run, and what a run that resumes in its folder must share with it."""
    return {
        "saeflow": __version__,
        "model": model_name or model.name,
        "model_digest": model_digest(model),
        "texts": texts,
        "trainer": trainer,
        "targets": [[str(t.site), t.reads.value, t.width] for t in targets],
        "starts": sorted(str(site) for site in start or {}),
        "settings": settings.bound(),
    }


class _TrainingRun:
    """The parts and the state of one run."""

    evaluation: Evaluation
    trainer: Trainer
    norms: dict[Point, Normalisation]
    limits: dict[Point, float]

    def __init__(
        self,
        model: LanguageModel,
        batches: TokenBatches,
        targets: tuple[TrainingTarget, ...],
        settings: TrainingSettings,
        out: Path,
        manifest: dict[str, Any],
        log: Log | None = None,
    ) -> None:
        self.log = log
        self.model, self.batches, self.targets, self.settings = model, batches, targets, settings
        self.out, self.manifest, self.step, self.seconds = out, manifest, 0, 0.0
        self.massive = {target.name: 0 for target in targets}
        self.dtype = next(model.hf_model.parameters()).dtype
        self.points = tuple(dict.fromkeys(point for target in targets for point in target.points))
        self.buffer = ShuffledBuffer(
            ActivationRows(model, batches, self.points, half=settings.stream.half),
            rows=settings.stream.buffer,
            batch=settings.optimiser.batch,
            seed=settings.seed,
            uses=settings.stream.uses,
        )

    def begin(self, start: Mapping[Site, Dictionary], make: MakeTrainer) -> None:
        """Restore the checkpoint, or fill the buffer for the first time and derive the normalisations from it."""
        self.out.mkdir(parents=True, exist_ok=True)
        found = checkpoint.load(self.out)
        if found is None:
            record.begun(self.out, self.manifest)
            self.buffer.fill()
            moments = self.buffer.moments(centre=self.settings.centre, massive=self.settings.massive)
            self.norms = {p: Normalisation.of(one.mean, one.norm, str(p)) for p, one in moments.items()}
            self.limits = {p: one.limit for p, one in moments.items()}
        else:
            self.step, self.seconds = found.step, float(found.values["seconds"])
            self.batches.restore(dict(found.values["batches"]))
            tensors = dict(found.buffer)
            self.norms = {
                p: Normalisation(tensors.pop(f"mean.{p}").clone(), found.values["scales"][str(p)]) for p in self.points
            }
            self.limits = {p: float(found.values["limits"][str(p)]) for p in self.points}
            self.massive = {str(name): int(n) for name, n in found.values["massive"].items()}
            self.buffer.restore(tensors, found.values["buffer"])
            record.cut_metrics(self.out, self.step)
        widths = {t.name: (self._width(t.read), self._width(t.written)) for t in self.targets}
        given: dict[str, TrainedWeights] = {
            t.name: unfold(start[t.site], self.norms[t.read], self.norms[t.written])
            for t in self.targets
            if t.site in start and found is None
        }
        if found is None and self.settings.keeps_checkpoints:
            wanted = needs(self.targets, {p: self._width(p) for p in self.points}, self.settings, self.dtype.itemsize)
            checkpoint.require_space(self.out, wanted.checkpoint, "two checkpoints, one replacing the other,")
        self.trainer = make(TrainerInputs(self.targets, widths, self.settings, self.model.device, given))
        if found is not None:
            self.trainer.restore(found.learners, found.values["learners"])

    def to_the_end(self, progress: Progress) -> Trained:
        """Take the remaining steps, then finish the run."""
        optimiser, settings = self.settings.optimiser, self.settings
        now, quality = "", dict[Site, Quality]()
        began = time.monotonic() - self.seconds
        next_one = self._next_checkpoint(time.monotonic())
        while self.step < optimiser.steps:
            self.trainer.step(self._batch())
            self.step += 1
            self.seconds = time.monotonic() - began
            last = self.step == optimiser.steps
            kept = not last and _due(self.step, optimiser.batch, settings.keep_every)
            if last or kept or _due(self.step, optimiser.batch, settings.metrics_every):
                quality = self._measure(last=last)
                now = record.in_short(quality, [self.trainer.dead(t.name) for t in self.targets])
            if kept:
                self._write(kept_folder(self.out) / f"{self.step * optimiser.batch:012d}", quality)
            tokens_due = _due(self.step, optimiser.batch, settings.checkpoint_every)
            if not last and (tokens_due or time.monotonic() >= next_one):
                written = time.monotonic()
                self._checkpoint()
                next_one = self._next_checkpoint(written)
            progress(self.step * optimiser.batch, optimiser.steps * optimiser.batch, now)
        return self._end(quality)

    def _next_checkpoint(self, written: float) -> float:
        """The time of the next checkpoint by the clock, after one that began at `written` and has just ended."""
        if not self.settings.checkpoint_minutes:
            return math.inf
        now = time.monotonic()
        return now + max(60 * self.settings.checkpoint_minutes, _PATIENCE * (now - written))

    def _batch(self) -> dict[str, Tensor]:
        """The next rows for each target, normalised, without those that are massive where it reads or writes."""
        rows = {p: h.to(self.model.device) for p, h in next(self.buffer).items()}
        ready = {p: self.norms[p](h) for p, h in rows.items()}
        massive = {p: is_massive(h, self.limits[p]) for p, h in rows.items()}
        batch: dict[str, Tensor] = {}
        for t in self.targets:
            x = torch.cat([ready[t.read], ready[t.written]], dim=1) if t.is_transcoder else ready[t.read]
            left_out = massive[t.read] | massive[t.written]
            n = int(left_out.sum())
            self.massive[t.name] += n
            batch[t.name] = x[~left_out] if n else x
        return batch

    def _width(self, point: Point) -> int:
        return len(self.norms[point].mean)

    def _dictionaries(self) -> dict[Site, Dictionary]:
        return {
            t.site: fold(self.trainer.weights(t.name), t, self.norms[t.read], self.norms[t.written])
            for t in self.targets
        }

    def _measure(self, *, last: bool) -> dict[Site, Quality]:
        """Measure the current dictionaries, and add one row per site to metrics.jsonl."""
        with_loss = last or self.settings.loss_every_time
        quality = self.evaluation.measure(self._dictionaries(), loss=with_loss, last=last)
        rows: list[dict[str, Any]] = []
        for target in self.targets:
            # JSON has no NaN
            found = {
                key: value if math.isfinite(value) else None for key, value in asdict(quality[target.site]).items()
            }
            rows.append(
                {
                    "site": str(target.site),
                    "step": self.step,
                    "tokens": self.step * self.settings.optimiser.batch,
                    "seconds": round(self.seconds, 3),
                    "last": last,
                    "measured_on": found.pop("tokens"),
                    **found,
                    "dead": self.trainer.dead(target.name),
                    "losses": dict(self.trainer.losses(target.name)),
                }
            )
        record.add_metrics(self.out, rows)
        if self.log:
            self.log(rows)
        return quality

    def _checkpoint(self) -> None:
        learners, learned = self.trainer.state()
        buffer, buffered = self.buffer.state()
        means = {f"mean.{p}": norm.mean for p, norm in self.norms.items()}
        values = {
            "learners": learned,
            "buffer": buffered,
            "batches": self.batches.state(),
            "scales": {str(p): norm.scale for p, norm in self.norms.items()},
            "limits": {str(p): str(limit) for p, limit in self.limits.items()},
            "massive": self.massive,
            "seconds": self.seconds,
        }
        checkpoint.save(self.out, checkpoint.Checkpoint(self.step, learners, buffer | means, values))

    def _end(self, quality: dict[Site, Quality]) -> Trained:
        dead = self._write(self.out, quality)
        left_out = {t.site: self.massive[t.name] for t in self.targets}
        done = Trained(self.out, quality, dead, left_out)
        record.ended(self.out, self.manifest, done, self.seconds)
        checkpoint.remove(self.out)
        return done

    def _write(self, folder: Path, quality: dict[Site, Quality]) -> dict[Site, float]:
        """Write the current dictionaries; returns the share of dead features of each."""
        dead = {t.site: self.trainer.dead(t.name) for t in self.targets}
        write_sae_lens_release(
            folder,
            self._dictionaries(),
            model_name=str(self.manifest["model"]),
            architecture=self.model.architecture,
            metadata={t.site: self._metadata(t, quality[t.site], dead[t.site]) for t in self.targets},
        )
        return dead

    def _metadata(self, target: TrainingTarget, quality: Quality, dead: float) -> dict[str, Any]:
        settings = self.settings
        return {
            "context_size": settings.stream.context,
            "prepend_bos": self.model.prepend_bos,
            "exclude_special_tokens": True,
            "dataset_path": str(self.manifest["texts"]),
            "sae_lens_training_version": LENS_VERSION,
            "saeflow_version": __version__,
            "training_architecture": settings.sparsity.objective.value,
            "training_tokens": self.step * settings.optimiser.batch,
            "training_settings": settings.bound(),
            "l0": quality.l0,
            "explained_variance": quality.fve,
            "num_dead_features": round(dead * target.width),
        }


def kept_folder(out: Path) -> Path:
    """Where a run saves dictionaries along the way, one release per subfolder: beside the run's own folder.

    Not inside it, because opening a folder of dictionaries also finds those in its subfolders.
    """
    return out.with_name(f"{out.name}-steps")


def _due(step: int, batch: int, every: int) -> bool:
    """Whether this step's tokens cross a multiple of `every`."""
    return bool(every) and (step * batch) // every > ((step - 1) * batch) // every
