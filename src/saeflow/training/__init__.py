"""Training SAEs and transcoders at chosen sites: streamed activations, sae-lens's losses, exact resume.

The paper trains JumpReLU SAEs on attention outputs because none existed (section 4.1 of arXiv 2502.03032);
`train` does it for any sites of any mapped model. Needs the extra `train` when a run begins; settings, streams and
metrics do not.
"""

from saeflow.training.learners import Job, Learners
from saeflow.training.metrics import Evaluation, Quality
from saeflow.training.record import Trained, read_metrics
from saeflow.training.run import train
from saeflow.training.settings import (
    Objective,
    Optimiser,
    Settings,
    Sparsity,
    Stream,
    Target,
    needs,
    sparsity,
    targets_of,
)
from saeflow.training.shards import train_in_shards
from saeflow.training.text_run import TextRun
from saeflow.training.texts import TextBatches, WindowBatches, evaluation_texts

__all__ = [
    "Evaluation",
    "Job",
    "Learners",
    "Objective",
    "Optimiser",
    "Quality",
    "Settings",
    "Sparsity",
    "Stream",
    "Target",
    "TextBatches",
    "TextRun",
    "Trained",
    "WindowBatches",
    "evaluation_texts",
    "needs",
    "read_metrics",
    "sparsity",
    "targets_of",
    "train",
    "train_in_shards",
]
