"""What a run needs from its trainer: a step on a batch, the weights, and a state to resume from.

`sparse_trainer.SparseTrainer` is saeflow's own; `sae_lens_trainer.SaeLensTrainer` drives the trainers of sae-lens. The
stream, the folding, the checkpoints and the measurements rely only on this interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.training.folding import TrainedWeights
from saeflow.training.settings import TrainingSettings, TrainingTarget

UNIT: Final = 1.0
FREE: Final = 0.1
"""Initial norm of decoder rows that are kept at 1 (`UNIT`), or not (`FREE`, sae-lens's default)."""
REACHED: Final = 0.3
"""Share of the steps after which the target L0 is due; until then its logarithm changes linearly."""
APPROACH: Final = 0.1
"""Share of the distance to the L0 that is due by which thresholds move per step: averages out the noise of few rows."""
LOOKED_AT: Final = 512
"""Rows of a batch from which the distance to the L0 that is due is measured."""

SILENT: Final = 50
"""Steps without firing after which a feature is woken."""


@runtime_checkable
class Trainer(Protocol):
    """Dictionaries in training, by the names of their targets."""

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """Take one step with all dictionaries.

        Args:
            batch: for each target `Float[Tensor, "batch d_in"]`, normalised; for a transcoder
                `Float[Tensor, "batch d_in+d_out"]`: what it reads, then what it predicts.

        Raises:
            KeyError: when a target has no batch.
        """
        ...

    def weights(self, name: str) -> TrainedWeights:
        """Copies of the current weights of one dictionary."""
        ...

    def dead(self, name: str) -> float:
        """The share of one dictionary's features that fired in none of the last steps; see `dead_window`."""
        ...

    def losses(self, name: str) -> Mapping[str, float]:
        """The terms of one dictionary's loss in the last step, and the learning rate of the next step."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything the next step depends on: tensors, and plain values."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Resume where `state` was taken, bit for bit."""
        ...


PeaksOf = Callable[[Int[Tensor, " n"]], Float[Tensor, " n"]]


@dataclass(frozen=True, eq=False)
class TrainerInputs:
    """What a trainer is made from.

    Attributes:
        targets: what is trained.
        widths: (d_in, d_out) by the name of the target.
        settings: settings of the run.
        device: where to train.
        start: weights to start from, by the name of the target; the others start at random.
    """

    targets: Sequence[TrainingTarget]
    widths: Mapping[str, tuple[int, int]]
    settings: TrainingSettings
    device: torch.device
    start: Mapping[str, TrainedWeights]


@runtime_checkable
class MakeTrainer(Protocol):
    """A class of trainers, or a factory of them. Workers get it by pickle.

    Attributes:
        name: recorded in training.json; a run resumes with the trainer it began with.
    """

    name: str

    def __call__(self, inputs: TrainerInputs) -> Trainer:
        """Make a trainer for a run.

        Raises:
            MissingExtra: when a package it needs is not installed.
            InvalidArgument: when weights to start from do not fit.
        """
        ...


def refuse_other(state: Mapping[str, Any], trained: Iterable[str]) -> None:
    """Check that a checkpoint belongs to the dictionaries being trained.

    Raises:
        BadFile: when the state is of other dictionaries.
    """
    if set(state) != set(names := tuple(trained)):
        raise BadFile(
            f"the checkpoint is of {', '.join(sorted(state))}, and the run is of {', '.join(names)}. "
            "Give another --out."
        )


def dead_window(settings: TrainingSettings) -> int:
    """Steps in which a feature must fire to count as alive: about a million tokens, at most a quarter of the run."""
    return max(1, min(round(1e6 / settings.optimiser.batch), settings.optimiser.steps // 4))


def hold_thresholds(
    threshold: Float[Tensor, " m"], shift: Tensor, silent_for: Float[Tensor, " m"], step: int, peaks: PeaksOf
) -> None:
    """Move all thresholds of a dictionary towards the L0 that is due, in place, and wake silent features.

    The reconstruction loss lowers the thresholds of features that fire, and moving all thresholds together raises them
    again. A silent feature has no gradient against being raised and would be lost, so its threshold is only lowered.
    Every `SILENT` steps, the thresholds of features that have been silent for as long drop to their largest
    pre-activation in the batch.

    Args:
        threshold: the thresholds to move.
        shift: how far thresholds would have to move to reach the L0 that is due.
        silent_for: steps since each feature fired.
        step: number of steps taken.
        peaks: returns the largest pre-activations, in this batch, of features given by their numbers.
    """
    moved = APPROACH * shift
    threshold += torch.where(silent_for > 0, moved.clamp(max=0), moved)
    if step % SILENT == 0 and len(which := (silent_for >= SILENT).nonzero().flatten()):
        threshold[which] = torch.minimum(threshold[which], peaks(which))


def l0_due(first: float, target: float, step: int, steps: int) -> float:
    """The L0 that is due after `step` of `steps`: geometric from `first` to `target` over the first share `REACHED`."""
    share = min(1.0, step / (REACHED * steps))
    return target**share * first ** (1 - share)
