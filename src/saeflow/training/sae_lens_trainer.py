"""sae-lens's losses and trainers, fed by saeflow's stream and resumed exactly; `extra` imports sae-lens when needed.

Each dictionary is a training SAE of sae-lens 6.54 (`JumpReLUTrainingSAE` in its step and quadratic modes, TopK,
BatchTopK). Its `MultiSAETrainer` holds them all, and gives each its own Adam and schedules. This module adds decoder
rows that stay at norm 1 (Gemma Scope's constraint: gradients lose their component along the row), thresholds that hold
a target L0, transcoders, first weights seeded per site, and a state without pickle that has everything the next step
depends on.

The trainers are driven through their public method `SAETrainer.step`, as `MultiSAETrainer.fit` does in each iteration.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, MissingExtra
from saeflow.training.folding import TrainedWeights
from saeflow.training.settings import Objective, TrainingSettings, TrainingTarget, first_threshold, seed_of
from saeflow.training.trainer_interface import (
    FREE,
    LOOKED_AT,
    UNIT,
    TrainerInputs,
    dead_window,
    hold_thresholds,
    l0_due,
    refuse_other,
)

_COUNTERS: Final = ("n_training_samples", "n_training_steps", "n_frac_active_samples")
_COUNTS: Final = ("act_freq_scores", "n_forward_passes_since_fired")


def extra(module: str = "sae_lens") -> Any:
    """A module of sae-lens.

    Raises:
        MissingExtra: when the package cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"SAEs are trained with sae-lens, which cannot be imported ({error}).", "train") from error


class SaeLensTrainer:
    """The training SAEs of one run, stepped together. Implements `Trainer`."""

    name: ClassVar[str] = "sae-lens"

    def __init__(self, inputs: TrainerInputs) -> None:
        """Make the SAEs and their trainers.

        Raises:
            MissingExtra: when sae-lens is not installed.
            InvalidArgument: when weights to start from do not fit.
        """
        saes = {target.name: make_sae(target, inputs) for target in inputs.targets}
        self._loss, self._steps = inputs.settings.sparsity, inputs.settings.optimiser.steps
        self._first_l0: dict[str, float] = {}
        multi = extra("sae_lens.training.multi_sae_trainer").MultiSAETrainer(
            cfg=trainer_config(inputs.settings, inputs.device),
            saes=saes,
            hook_names={name: name for name in saes},
            data_provider=iter(()),
        )
        self._trainers: dict[str, Any] = multi.trainers
        self._last: dict[str, Any] = {}
        for name, trainer in self._trainers.items():
            trainer.sae.to(str(inputs.device))
            if name in inputs.start:
                _put(trainer.sae, inputs.start[name])
            if self._loss.unit_decoder:
                _keep_unit_rows(trainer)

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """Take one step with every SAE."""
        for name, trainer in self._trainers.items():
            output = trainer.step(batch[name])
            trainer.n_training_steps += 1
            if self._loss.holds_l0:
                self._hold_l0(name, output)
            # only the scalars are kept: an output holds every activation of its batch
            self._last[name] = {key: value.detach() for key, value in output.losses.items()}

    @torch.no_grad()
    def _hold_l0(self, name: str, output: Any) -> None:
        """Move all thresholds of one SAE together towards the L0 that is due.

        The same as in `sparse_trainer`, but with all pre-activations at hand.
        """
        trainer, goal = self._trainers[name], self._loss.l0
        first = self._first_l0.setdefault(
            name, float((output.feature_acts > 0).sum()) / len(output.feature_acts) or goal
        )
        due = l0_due(first, goal, trainer.n_training_steps, self._steps)
        above = (output.hidden_pre[:LOOKED_AT].float() - trainer.sae.threshold).flatten()
        n = min(max(1, round(due * min(LOOKED_AT, len(output.hidden_pre)))), len(above))
        # moved by the n-th largest distance, thresholds would leave n activations in these rows
        shift, step = above.topk(n, sorted=False).values.min(), trainer.n_training_steps
        hold_thresholds(
            trainer.sae.threshold,
            shift,
            trainer.n_forward_passes_since_fired,
            step,
            lambda of: output.hidden_pre[:, of].amax(dim=0).float(),
        )

    def weights(self, name: str) -> TrainedWeights:
        """Copies of the weights of one SAE."""
        return trained_weights(self._trainers[name].sae)

    def dead(self, name: str) -> float:
        """Share of features that did not fire in the last steps."""
        return float(self._trainers[name].dead_neurons.float().mean())

    def losses(self, name: str) -> dict[str, float]:
        """Terms of the last loss, in the units of normalised activations, and the learning rate of the next step."""
        found = {key: float(value) for key, value in self._last.get(name, {}).items()}
        return found | {"lr": float(self._trainers[name].optimizer.param_groups[0]["lr"])}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, Adam's moments, schedules and counters of every SAE."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for name, trainer in self._trainers.items():
            found = {f"sae.{key}": value for key, value in trainer.sae.state_dict().items()}
            found |= {key: getattr(trainer, key) for key in _COUNTS}
            groups = trainer.optimizer.state_dict()
            for index, moments in groups["state"].items():
                found |= {f"adam.{index}.{key}": value for key, value in moments.items()}
            tensors |= {f"{name}/{key}": value.detach() for key, value in found.items()}
            values[name] = {
                **{key: getattr(trainer, key) for key in _COUNTERS},
                "groups": groups["param_groups"],
                "lr": _plain(trainer.lr_scheduler.state_dict()),
                "coefficients": {k: s.state_dict() for k, s in trainer.coefficient_schedulers.items()},
                "first_l0": self._first_l0.get(name),
            }
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Resume where `state` was taken.

        Raises:
            BadFile: when the state is of other SAEs.
        """
        refuse_other(state, self._trainers)
        for name, trainer in self._trainers.items():
            mine = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
            # cloned: tensors from a file have any alignment, and sums in matrix products can depend on it
            device = trainer.sae.device
            sae = {key.removeprefix("sae."): t.to(device) for key, t in mine.items() if key.startswith("sae.")}
            trainer.sae.load_state_dict(sae)
            for key in _COUNTS:
                setattr(trainer, key, mine[key].to(device).clone())
            for key in _COUNTERS:
                setattr(trainer, key, state[name][key])
            moments: dict[int, dict[str, Tensor]] = {}
            for key, tensor in mine.items():
                if key.startswith("adam."):
                    _, index, which = key.split(".")
                    moments.setdefault(int(index), {})[which] = tensor.clone()
            trainer.optimizer.load_state_dict({"state": moments, "param_groups": state[name]["groups"]})
            trainer.lr_scheduler.load_state_dict(copy.deepcopy(state[name]["lr"]))
            for key, scheduler in trainer.coefficient_schedulers.items():
                scheduler.load_state_dict(state[name]["coefficients"][key])
            if first := state[name].get("first_l0"):
                self._first_l0[name] = first


def trainer_config(settings: TrainingSettings, device: torch.device) -> Any:
    """The settings in the form of sae-lens's trainer, without logging."""
    config, optimiser = extra("sae_lens.config"), settings.optimiser
    return config.SAETrainerConfig(
        total_training_samples=optimiser.steps * optimiser.batch,
        train_batch_size_samples=optimiser.batch,
        lr=optimiser.lr,
        lr_end=optimiser.lr / 10,  # required, but unused by a constant schedule, which decays to 0
        lr_warm_up_steps=round(optimiser.warm_up * optimiser.steps),
        lr_decay_steps=round(optimiser.decay * optimiser.steps),
        adam_beta1=optimiser.beta1,
        device=str(device),
        dead_feature_window=dead_window(settings),
        feature_sampling_window=optimiser.steps + 1,
        logger=config.LoggingConfig(log_to_wandb=False),
    )


def make_sae(target: TrainingTarget, inputs: TrainerInputs) -> Any:
    """A training SAE with first weights from its own seed, whatever the state of torch's global generator.

    Raises:
        MissingExtra: when sae-lens is not installed.
    """
    lens, settings = extra(), inputs.settings
    loss, (d_in, d_out) = settings.sparsity, inputs.widths[target.name]
    rows = UNIT if loss.unit_decoder else FREE
    common: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": target.width,
        "device": "cpu",
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "decoder_init_norm": rows,
    }
    if loss.objective.has_thresholds:
        quadratic = loss.objective is Objective.JUMPRELU_L0
        # pre-activations scale with the norm of the first encoder rows
        start = rows * first_threshold(loss.l0, target.width) if loss.threshold is None else loss.threshold
        base, config = (
            lens.JumpReLUTrainingSAE,
            lens.JumpReLUTrainingSAEConfig(
                **common,
                jumprelu_sparsity_loss_mode="quadratic" if quadratic else "step",
                jumprelu_init_threshold=start,
                jumprelu_bandwidth=loss.bandwidth,
                l0_coefficient=loss.coefficient,
                l0_warm_up_steps=round(loss.warm_up * settings.optimiser.steps),
                target_l0=loss.l0 if quadratic else None,
            ),
        )
    elif loss.objective is Objective.TOPK:
        config = lens.TopKTrainingSAEConfig(**common, k=int(loss.l0), aux_loss_coefficient=loss.coefficient)
        base = lens.TopKTrainingSAE
    else:
        config = lens.BatchTopKTrainingSAEConfig(**common, k=loss.l0, aux_loss_coefficient=loss.coefficient)
        base = lens.BatchTopKTrainingSAE
    made = type(f"Transcoding{base.__name__}", (_Transcoding, base), {}) if target.is_transcoder else base
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(settings.seed, "weights", str(target.site), target.reads.value))
        sae: Any = cast("Any", made)(config)
        if target.is_transcoder:
            sae.split(d_in, d_out)
    return sae


class _Transcoding:
    """Mixin for a training SAE of sae-lens: reads the first d_in columns of a batch and predicts the others.

    The encoder starts as the transpose of the decoder where the widths agree, as in sae-lens's SAEs.
    """

    cfg: Any
    W_dec: Any
    b_dec: Any

    def split(self, d_in: int, d_out: int) -> None:
        """Give the decoder the width of the output, and compute the loss on the output's columns of the batch."""
        self.d_read = d_in
        if d_out != d_in:
            rows = torch.randn(self.cfg.d_sae, d_out)
            rows *= self.cfg.decoder_init_norm / rows.norm(dim=1, keepdim=True)
            self.W_dec = torch.nn.Parameter(rows)
            self.b_dec = torch.nn.Parameter(torch.zeros(d_out))

        def squared_error(made: Tensor, batch: Tensor) -> Tensor:
            return (made - batch[:, d_in:]).square()

        self.mse_loss_fn = squared_error

    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        """The columns that are read."""
        return sae_in[:, : self.d_read]

    def calculate_topk_aux_loss(self, sae_in: Tensor, **inputs: Any) -> Tensor:
        """sae-lens's loss of dead features, on the error in the predicted columns."""
        inherited = cast("Any", super()).calculate_topk_aux_loss
        return cast("Tensor", inherited(sae_in=sae_in[:, self.d_read :], **inputs))


def trained_weights(sae: Any) -> TrainedWeights:
    """Copies of a training SAE's weights, one row per feature, with thresholds in units of pre-activations.

    A BatchTopK has one threshold on activations times the norms of decoder rows; it becomes one threshold per feature.
    """
    held: dict[str, Tensor] = {key: value.detach().clone() for key, value in sae.state_dict().items()}
    threshold: Tensor | None = held.get("threshold")
    if threshold is not None:
        threshold = threshold.clamp(min=0)  # as the next step would
    elif "topk_threshold" in held:
        rows = held["W_dec"].norm(dim=1).clamp(min=1e-8)
        threshold = (held["topk_threshold"] / rows.double()).float()
    k = 0 if threshold is not None else int(sae.cfg.k)
    return TrainedWeights(held["W_enc"].T.contiguous(), held["b_enc"], held["W_dec"], held["b_dec"], threshold, k)


@torch.no_grad()
def _put(sae: Any, start: TrainedWeights) -> None:
    """Start a training SAE from given weights.

    Raises:
        InvalidArgument: when they have other shapes, or another kind of activation.
    """
    given: dict[str, Tensor] = {
        "W_enc": start.W_enc.T,
        "b_enc": start.b_enc,
        "W_dec": start.W_dec,
        "b_dec": start.b_dec,
    }
    held: dict[str, Tensor] = sae.state_dict()
    if "threshold" in held and start.threshold is not None:
        given["threshold"] = start.threshold
    elif "topk_threshold" in held and start.threshold is not None:
        given["topk_threshold"] = (start.threshold * start.W_dec.norm(dim=1)).mean()
    elif start.threshold is not None:  # a TopK has no threshold: refused below
        given["threshold"] = start.threshold
    wrong = {key: tuple(t.shape) for key, t in given.items() if key in held and held[key].shape != t.shape}
    if wrong or set(given) != set(held):
        shapes = {key: tuple(value.shape) for key, value in held.items()}
        raise InvalidArgument(
            f"training cannot start from weights of shapes { ({k: tuple(t.shape) for k, t in given.items()}) } where "
            f"{shapes} are trained. Start from a dictionary of the same width and architecture."
        )
    for key, tensor in given.items():
        held[key].copy_(tensor)


def _keep_unit_rows(trainer: Any) -> None:
    """Keep decoder rows at norm 1: drop the gradient's component along each row, and rescale after each step."""
    rows: torch.nn.Parameter = trainer.sae.W_dec
    with torch.no_grad():
        rows.div_(rows.norm(dim=1, keepdim=True))

    def across(grad: Float[Tensor, "n_features d_out"]) -> Float[Tensor, "n_features d_out"]:
        along = (grad * rows.detach()).sum(dim=1, keepdim=True)
        return grad - along * rows.detach()

    def scale(*_: object) -> None:
        with torch.no_grad():
            rows.div_(rows.norm(dim=1, keepdim=True))

    rows.register_hook(across)
    trainer.optimizer.register_step_post_hook(scale)


def _plain(value: Any) -> Any:
    """A scheduler's state, if it holds only what JSON can store; its functions are rebuilt from the settings."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise BadFile(
        f"the state of a learning-rate schedule holds {value!r}, which a checkpoint cannot. Use sae-lens 6.54."
    )
