"""Training SAEs and transcoders at chosen sites: streamed activations, sparse steps, exact resume.

The paper trains JumpReLU SAEs on attention outputs because none existed (section 4.1 of arXiv 2502.03032);
`train` does so for any sites of any mapped model.
"""

from saeflow.training.metrics import Evaluation, Quality
from saeflow.training.record import Trained, read_metrics
from saeflow.training.run import train
from saeflow.training.settings import (
    ActivationStream,
    Objective,
    Optimiser,
    Sparsity,
    TrainingSettings,
    TrainingTarget,
    needs,
    sparsity,
    targets_of,
)
from saeflow.training.shards import train_in_shards
from saeflow.training.text_run import TextRun
from saeflow.training.texts import TextBatches, WindowBatches, evaluation_texts

__all__ = [
    "ActivationStream",
    "Evaluation",
    "Objective",
    "Optimiser",
    "Quality",
    "Sparsity",
    "TextBatches",
    "TextRun",
    "Trained",
    "TrainingSettings",
    "TrainingTarget",
    "WindowBatches",
    "evaluation_texts",
    "needs",
    "read_metrics",
    "sparsity",
    "targets_of",
    "train",
    "train_in_shards",
]
