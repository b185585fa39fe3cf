"""What a run needs of whatever moves the weights: a step on a batch, the weights, and a state to resume from.

`sparse_trainer.SparseTrainer` is saeflow's own; `sae_lens_trainer.SaeLensTrainer` drives the trainers of sae-lens. The
stream, the folding, the checkpoints and the measurements know only what stands here.
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
"""The norm at which decoder rows start that are not kept at 1; sae-lens's default."""
REACHED: Final = 0.3
"""Share of the steps after which the target L0 is due; until then its logarithm changes linearly."""
APPROACH: Final = 0.1
"""Share of the distance to the L0 that is due by which thresholds move in a step: the noise of a few rows averages
out."""
LOOKED_AT: Final = 512
"""Rows of a batch from which the distance to the L0 that is due is measured."""

SILENT: Final = 50
"""Steps without firing after which a feature is woken."""


@runtime_checkable
class Trainer(Protocol):
    """The dictionaries that are being trained, by the names of their targets."""

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """One step of all of them.

        Args:
            batch: for each target `Float[Tensor, "batch d_in"]`, normalised; for a transcoder
                `Float[Tensor, "batch d_in+d_out"]`: what it reads, then what it predicts.

        Raises:
            KeyError: when a target has no batch.
        """
        ...

    def weights(self, name: str) -> TrainedWeights:
        """The current weights of one, as copies."""
        ...

    def dead(self, name: str) -> float:
        """The share of its features that fired in none of the last steps; see `dead_window`."""
        ...

    def losses(self, name: str) -> Mapping[str, float]:
        """The terms of its loss in the last step, and the learning rate of the next one."""
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
        widths: (d_in, d_out) by the name of a target.
        settings: of the run.
        device: where to train.
        start: weights to start from, by name; the others start at random.
    """

    targets: Sequence[TrainingTarget]
    widths: Mapping[str, tuple[int, int]]
    settings: TrainingSettings
    device: torch.device
    start: Mapping[str, TrainedWeights]


@runtime_checkable
class MakeTrainer(Protocol):
    """A class of trainers, or what makes one. Workers get it by pickle.

    Attributes:
        name: noted in training.json; a run resumes with the trainer it began with.
    """

    name: str

    def __call__(self, inputs: TrainerInputs) -> Trainer:
        """A trainer for a run.

        Raises:
            MissingExtra: when what it needs is not installed.
            InvalidArgument: when weights to start from do not fit.
        """
        ...


def refuse_other(state: Mapping[str, Any], trained: Iterable[str]) -> None:
    """Check that a checkpoint is of what is trained.

    Raises:
        BadFile: when the state is of other dictionaries.
    """
    if set(state) != set(names := tuple(trained)):
        raise BadFile(
            f"the checkpoint is of {', '.join(sorted(state))}, and the run is of {', '.join(names)}. "
            "Give another --out."
        )


def dead_window(settings: TrainingSettings) -> int:
    """Steps in which a feature must fire to be alive: those of about a million tokens, a quarter of the run at most."""
    return max(1, min(round(1e6 / settings.optimiser.batch), settings.optimiser.steps // 4))


def hold_thresholds(
    threshold: Float[Tensor, " m"], shift: Tensor, silent_for: Float[Tensor, " m"], step: int, peaks: PeaksOf
) -> None:
    """Move all thresholds of a dictionary towards the L0 that is due, in place, and wake silent features.

    The reconstruction lowers the thresholds of the features that fire, and moving all together raises them again. One
    that is silent has no gradient against being raised and would be lost, so it is lowered only; every `SILENT` steps,
    the thresholds of those that have been silent for as long become the largest pre-activation of the batch.

    Args:
        threshold: what is moved.
        shift: by how much thresholds would have to move for the L0 that is due.
        silent_for: steps since each feature fired.
        step: how many steps were made.
        peaks: the largest pre-activations, in this batch, of features by their numbers.
    """
    moved = APPROACH * shift
    threshold += torch.where(silent_for > 0, moved.clamp(max=0), moved)
    if step % SILENT == 0 and len(which := (silent_for >= SILENT).nonzero().flatten()):
        threshold[which] = torch.minimum(threshold[which], peaks(which))


def l0_due(first: float, target: float, step: int, steps: int) -> float:
    """The L0 that is due after `step` of `steps`: from `first` to `target` over the first `REACHED` of them."""
    share = min(1.0, step / (REACHED * steps))
    return target**share * first ** (1 - share)
