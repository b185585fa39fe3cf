"""What the tests of training share: small settings, windows of tokens, runs in processes of their own."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saeflow.ids import Site
from saeflow.sources.architectures import Tap
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.training import (
    ActivationStream,
    Optimiser,
    Trained,
    TrainingSettings,
    TrainingTarget,
    WindowBatches,
    sparsity,
    train,
)
from saeflow.training.run import TRAINERS
from saeflow.training.sparse_trainer import SparseTrainer

from ..sources.tiny_models import VOCAB, tiny_model


def windows(n: int = 60, length: int = 12, seed: int = 0) -> np.ndarray:
    """Random token ids of the tiny models, each row opened by the begin-of-text token."""
    ids = np.random.default_rng(seed).integers(3, VOCAB, (n, length))
    ids[:, 0] = 1
    return ids


def tokens(ids: np.ndarray) -> Tokens:
    rows = torch.from_numpy(ids.astype(np.int64))
    return Tokens(rows, torch.ones_like(rows))


def settings(objective: str = "jumprelu-l0", *, steps: int = 12, **told: Any) -> TrainingSettings:
    """A small run: batches of 64, a buffer of 200 rows."""
    loss = {
        key: told.pop(key) for key in ("l0", "coefficient", "bandwidth", "threshold", "unit_decoder") if key in told
    }
    loss.setdefault("l0", 4)
    lr = told.pop("lr", 3e-3)
    return TrainingSettings(
        sparsity(objective, **loss), Optimiser(64 * steps, 64, lr), ActivationStream(12, 8, 200), **told
    )


TARGETS = (
    TrainingTarget(Site.parse("0/att"), Tap.Z, 30),
    TrainingTarget(Site.parse("1/mlp"), Tap.MLP_IN, 40),
    TrainingTarget(Site.parse("1/res"), Tap.RES, 40),
)


def run(
    out: Path, told: TrainingSettings, *, trainer: Any = SparseTrainer, model: LanguageModel | None = None, **more: Any
) -> Trained:
    """A run over the tiny Gemma 2, whose z is wider than its stream."""
    return train(
        model or tiny_model("gemma2"),
        WindowBatches(windows(), at_once=8, seed=told.seed),
        more.pop("targets", TARGETS),
        told,
        out=out,
        evaluation=[tokens(windows(6, seed=99))],
        trainer=trainer,
        **more,
    )


def files(folder: Path) -> dict[str, bytes]:
    """The weights and metrics of a run, as bytes; what says how long it took left out."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


if __name__ == "__main__":
    # a process that is killed: OUT, trainer, objective; slow enough to be killed between two checkpoints
    folder, kind, objective = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)

    def slowly(_done: int, _total: int, _now: str) -> None:
        time.sleep(0.05)

    run(
        folder,
        settings(objective, steps=48, checkpoint_every=192, metrics_every=1024),
        trainer=TRAINERS[kind],
        progress=slowly,
    )
