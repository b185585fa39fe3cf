"""What a run asks of whatever moves the weights: a step on a batch, the weights, and a state to go on from.

`lens.SaeLensLearners` is the one there is: sae-lens's losses and trainers. The stream, the folding, the checkpoints and
the metrics know only what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from saeflow.training.folding import TrainedWeights
from saeflow.training.settings import Settings, Target


@runtime_checkable
class Learners(Protocol):
    """The dictionaries that are being trained, by the names of their targets."""

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """One step of all on `Float[Tensor, "batch d_in"]` each, normalised; a transcoder's has its output beside it.

        Raises:
            KeyError: when a target has no batch.
        """
        ...

    def weights(self, name: str) -> TrainedWeights:
        """The weights of one as they are now, of which nothing is shared."""
        ...

    def dead(self, name: str) -> float:
        """Share of its features that fired in none of the last steps; see `dead_window`."""
        ...

    def losses(self, name: str) -> Mapping[str, float]:
        """The terms of its loss in the last step, and the learning rate."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything the next step depends on: tensors, and plain values."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, bit for bit."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """What learners are made from.

    Attributes:
        targets: what is trained.
        widths: for the name of each target (d_in, d_out).
        settings: of the run.
        device: where to train.
        start: weights to go on from, by name; the others begin at random.
    """

    targets: Sequence[Target]
    widths: Mapping[str, tuple[int, int]]
    settings: Settings
    device: torch.device
    start: Mapping[str, TrainedWeights]


MakeLearners: TypeAlias = Callable[[Job], Learners]


def dead_window(settings: Settings) -> int:
    """Steps in which a feature must fire to be alive: those of about a million tokens, a quarter of the run at most."""
    return max(1, min(round(1e6 / settings.optimiser.batch), settings.optimiser.steps // 4))
