"""What the tests of training share: a plain learner without sae-lens, windows of tokens, runs in own processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saeflow.ids import Site
from saeflow.sources.architectures import Tap
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.training import Optimiser, Settings, Stream, Target, Trained, WindowBatches, sparsity, train
from saeflow.training.folding import TrainedWeights
from saeflow.training.learners import Job
from saeflow.training.lens import sae_lens_learners
from saeflow.training.settings import seed_of

from ..sources.tiny_models import VOCAB, tiny_model


class PlainLearners:
    """A JumpReLU with fixed thresholds and Adam at each target: what a learner must do, and nothing else."""

    def __init__(self, job: Job) -> None:
        self.job, self.targets = job, {t.name: t for t in job.targets}
        self.parameters: dict[str, dict[str, torch.nn.Parameter]] = {}
        self.adam: dict[str, torch.optim.Adam] = {}
        self.steps = 0
        for name, target in self.targets.items():
            d_in, d_out = job.widths[name]
            generator = torch.Generator().manual_seed(seed_of(job.settings.seed, name))
            rows = torch.randn(target.width, d_out, generator=generator)
            made = {
                "W_enc": torch.randn(target.width, d_in, generator=generator) * 0.3,
                "b_enc": torch.zeros(target.width),
                "W_dec": rows * 0.3,
                "b_dec": torch.zeros(d_out),
            }
            if name in job.start:
                made = {key: getattr(job.start[name], key).clone() for key in made}
            self.parameters[name] = {key: torch.nn.Parameter(t) for key, t in made.items()}
            self.adam[name] = torch.optim.Adam(self.parameters[name].values(), lr=job.settings.optimiser.lr)

    def step(self, batch: Mapping[str, Tensor]) -> None:
        for name, target in self.targets.items():
            p, d_in = self.parameters[name], self.job.widths[name][0]
            x = batch[name]
            read, written = (x[:, :d_in], x[:, d_in:]) if target.is_transcoder else (x, x)
            pre = read @ p["W_enc"].T + p["b_enc"]
            acts = torch.relu(pre) * (pre > 0.1)
            loss = (acts @ p["W_dec"] + p["b_dec"] - written).square().sum(1).mean() + 0.1 * acts.sum(1).mean()
            loss.backward()
            self.adam[name].step()
            self.adam[name].zero_grad()
        self.steps += 1

    def weights(self, name: str) -> TrainedWeights:
        held = {key: p.detach().clone() for key, p in self.parameters[name].items()}
        return TrainedWeights(**held, threshold=torch.full((self.targets[name].width,), 0.1))

    def dead(self, name: str) -> float:
        return 0.0

    def losses(self, name: str) -> dict[str, float]:
        return {"steps": float(self.steps)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for name, held in self.parameters.items():
            tensors |= {f"{name}/{key}": p.detach() for key, p in held.items()}
            for i, moments in self.adam[name].state_dict()["state"].items():
                tensors |= {f"{name}/adam.{i}.{key}": t for key, t in moments.items()}
        groups = {name: adam.state_dict()["param_groups"] for name, adam in self.adam.items()}
        return tensors, {"groups": groups, "steps": self.steps}

    def restore(self, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        self.steps = told["steps"]
        with torch.no_grad():
            for name, held in self.parameters.items():
                for key, p in held.items():
                    p.copy_(tensors[f"{name}/{key}"])
                state: dict[int, dict[str, Tensor]] = {}
                for key, t in tensors.items():
                    if key.startswith(f"{name}/adam."):
                        _, i, which = key.split("/")[1].split(".")
                        state.setdefault(int(i), {})[which] = t.clone()
                self.adam[name].load_state_dict({"state": state, "param_groups": told["groups"][name]})


def windows(n: int = 60, length: int = 12, seed: int = 0) -> np.ndarray:
    """Random token ids of the tiny models, each row opened by the begin-of-text token."""
    ids = np.random.default_rng(seed).integers(3, VOCAB, (n, length))
    ids[:, 0] = 1
    return ids


def tokens(ids: np.ndarray) -> Tokens:
    rows = torch.from_numpy(ids.astype(np.int64))
    return Tokens(rows, torch.ones_like(rows))


def settings(objective: str = "jumprelu-l0", *, steps: int = 12, **told: Any) -> Settings:
    """A small run: batches of 64, a buffer of 200 rows."""
    loss = {
        key: told.pop(key) for key in ("l0", "coefficient", "bandwidth", "threshold", "unit_decoder") if key in told
    }
    loss.setdefault("l0", 4)
    lr = told.pop("lr", 3e-3)
    return Settings(sparsity(objective, **loss), Optimiser(64 * steps, 64, lr), Stream(12, 8, 200), **told)


TARGETS = (
    Target(Site.parse("0/att"), Tap.Z, 30),
    Target(Site.parse("1/mlp"), Tap.MLP_IN, 40),
    Target(Site.parse("1/res"), Tap.RES, 40),
)


def run(
    out: Path, told: Settings, *, learners: Any = PlainLearners, model: LanguageModel | None = None, **more: Any
) -> Trained:
    """A run over the tiny Gemma 2, whose z is wider than its stream."""
    return train(
        model or tiny_model("gemma2"),
        WindowBatches(windows(), at_once=8, seed=told.seed),
        more.pop("targets", TARGETS),
        told,
        out=out,
        evaluation=[tokens(windows(6, seed=99))],
        learners=learners,
        **more,
    )


def files(folder: Path) -> dict[str, bytes]:
    """The weights and metrics of a run, as bytes; what says how long it took left out."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


if __name__ == "__main__":
    # a process that is killed: OUT, kind of learner, objective; slow enough to be killed between two checkpoints
    folder, kind, objective = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)

    def slowly(_done: int, _total: int, _now: str) -> None:
        time.sleep(0.05)

    run(
        folder,
        settings(objective, steps=48, checkpoint_every=192, metrics_every=1024),
        learners=sae_lens_learners if kind == "sae_lens" else PlainLearners,
        progress=slowly,
    )
