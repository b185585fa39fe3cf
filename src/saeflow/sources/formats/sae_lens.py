"""sae-lens folders: cfg.json and sae_weights.safetensors, of version 6 and before.

    W_enc [d_in n_features]   W_dec [n_features d_out]   b_enc   b_dec   threshold (jumprelu)
    W_skip [d_out d_in] (skip transcoders)   b_gate, r_mag, b_mag in place of b_enc (gated)

    pre  = (norm(h) - b_dec if apply_b_dec_to_input) @ W_enc + b_enc

A trained BatchTopK is saved by sae-lens as jumprelu; one saved in training has `topk_threshold`. With
`rescale_acts_by_decoder_norm` a TopK ranks pre * |W_dec row| and decodes with unit rows; multiplying W_enc
and b_enc by the norms and dividing W_dec by them is the same function, and is what is read.

A gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014) with x = prepare(h) @ W_enc computes

    acts = (x + b_gate > 0) * relu(exp(r_mag) * x + b_mag)

Its gate is open where exp(r_mag) * x + b_mag > b_mag - exp(r_mag) * b_gate. So it is a JumpReLU with the
encoder exp(r_mag) * W_enc, the bias b_mag and that threshold (their appendix on the equivalence), and is
read as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.activations import Activation, JumpReLU, ReLU, TopK, kept_threshold
from saeflow.sources.architectures import View
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing, TrainingInfo
from saeflow.sources.formats.configs import count, positive_number, read_json
from saeflow.sources.formats.file_weights import FileWeights, Stored, refused
from saeflow.sources.formats.remote_tensors import open_tensors
from saeflow.sources.formats.sae_lens_config import (
    AVERAGE,
    BATCHTOPK,
    NORMS,
    TRANSCODERS,
    Place,
    modern,
    place_of,
    refuse_unsupported,
    undone,
)
from saeflow.sources.formats.tensors import TensorFile
from saeflow.sources.weights import DirectionsOnly, EncoderScaled, RowScaled, Weights

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"
"""Beside the weights in a checkpoint of training, before the factor is folded into them."""
_LOG = "log_threshold"


def read_sae_lens(folder: Path, site: Site | None = None) -> Dictionary:
    """The dictionary of a sae-lens folder; reads headers only. `site` overrides the hook name of cfg.json.

    Raises:
        BadFile: when cfg.json or the weights are not as the format says.
        UnsupportedFormat: when the SAE does something a Dictionary does not, or sits at no site.
    """
    path = folder / CONFIG
    factor: Callable[[], float] | None = None
    if (folder / SCALER).is_file():
        factor = lambda: positive_number(read_json(folder / SCALER), "scaling_factor", folder / SCALER)  # noqa: E731
    return sae_lens_dictionary(
        read_json(path), lambda: open_tensors(folder / WEIGHTS), site, where=str(path), factor=factor
    )


def sae_lens_dictionary(
    config: Mapping[str, Any],
    open_file: Callable[[], TensorFile],
    site: Site | None,
    *,
    where: str,
    factor: Callable[[], float] | None = None,
) -> Dictionary:
    """The dictionary of a configuration and the tensors that go with it; `where` is for messages.

    `factor` reads the number that h is multiplied by where the configuration says that it is by one.

    Raises:
        BadFile: when the two do not go together.
        UnsupportedFormat: when the SAE does something a Dictionary does not, or sits at no site.
    """
    config, metadata = modern(config)
    refuse_unsupported(config, metadata, where)
    architecture = str(config.get("architecture", "standard"))
    transcoder = architecture in TRANSCODERS
    place = place_of(metadata, site, where, transcoder=transcoder)
    file = open_file()
    scale, unsized = _scale(config, factor, where)
    weights = FileWeights(file, _layout(architecture, file, scale), transcoder=place.tap.is_read_only)
    rescaled = architecture in ("topk", *BATCHTOPK) and bool(config.get("rescale_acts_by_decoder_norm", False))
    told: dict[str, Any] = metadata.get("model_from_pretrained_kwargs") or {}
    norm = NORMS[config.get("normalize_activations") or "none"]
    read: Weights = gated_weights(weights) if architecture == "gated" else weights
    read = _unit_decoder(weights) if rescaled else read
    why = unsized or undone(config, where)
    return Dictionary.reading(
        place.site,
        tap=place.tap,
        weights=DirectionsOnly(read, unsized) if unsized else read,
        # thresholds of pre * |W_dec row| go with the rows, which are divided by the factor
        activation=refused(why)
        if why
        else _activation(architecture, config, weights, where, 1 / scale if rescaled else 1.0),
        preprocessing=Preprocessing(
            subtract_b_dec=not transcoder and bool(config.get("apply_b_dec_to_input", True)),
            center=bool(told.get("center_writing_weights", False)),
            norm=place.norm if norm is Norm.NONE else norm,
        ),
        training=_told(config, metadata, place),
    )


def _told(config: Mapping[str, Any], metadata: Mapping[str, Any], place: Place) -> TrainingInfo:
    begins, context = metadata.get("prepend_bos"), metadata.get("context_size")
    return TrainingInfo(
        View.PROCESSED if place.view is View.OWN and _processed(config, metadata) else place.view,
        begins if isinstance(begins, bool) else None,
        context if isinstance(context, int) and context > 0 else None,
    )


def _processed(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether it was trained on weights that TransformerLens had processed.

    Until September 2024 sae-lens trained on `HookedTransformer.from_pretrained`, and said neither that nor otherwise
    (its pull request 279); since, `model_from_pretrained_kwargs` says what is done, by default nothing.
    """
    kwargs = metadata.get("model_from_pretrained_kwargs")
    if isinstance(kwargs, dict):
        return bool(kwargs.get("fold_value_biases", False))
    if metadata is not config or not str(metadata.get("hook_name") or "").startswith("blocks."):
        return False  # of version 6, or of a model of another library
    # files older than the entry hold the settings of the training, which converted ones do not
    return metadata.get("model_class_name", "HookedTransformer" if "lr" in config else "") == "HookedTransformer"


def gated_weights(weights: FileWeights) -> Weights:
    """The encoder of the magnitudes of a gated SAE, whose layout has r_mag, and b_mag as its b_enc."""
    return EncoderScaled(weights, lambda: weights.vector("r_mag").exp())


def gated_activation(weights: FileWeights) -> JumpReLU:
    """The gate of a gated SAE as thresholds on its magnitudes; see the head of the file.

    Raises:
        BadFile: when a vector it is made of cannot be read or is not finite.
    """
    return JumpReLU(weights.vector("b_enc") - weights.vector("r_mag").exp() * weights.vector("b_gate"))


def _scale(config: Mapping[str, Any], factor: Callable[[], float] | None, where: str) -> tuple[float, str]:
    """(what h is multiplied by, why that is not known). 1 where it is by nothing."""
    if config.get("normalize_activations") != AVERAGE:
        return 1.0, ""
    try:
        if factor is not None:
            return factor(), ""
        missing = f"{where}: normalize_activations is {AVERAGE!r}, whose factor is not in the folder ({SCALER})."
    except BadFile as error:
        missing = f"{where}: normalize_activations is {AVERAGE!r}, and {error}"
    return 1.0, (
        f"{missing} Directions are known, activations are not. Put {SCALER} of the checkpoint beside it, or fold the "
        "factor with sae.fold_activation_norm_scaling_factor and save again."
    )


def _layout(architecture: str, file: TensorFile, scale: float) -> dict[str, Stored]:
    names = {name: Stored(name, times=1 / scale) for name in ("W_dec", "b_dec")}
    names |= {"b_enc": Stored("b_enc"), "W_enc": Stored("W_enc", transposed=True, times=scale)}
    if architecture == "gated":
        names |= {"b_enc": Stored("b_mag"), "b_gate": Stored("b_gate"), "r_mag": Stored("r_mag")}
    if architecture.startswith("jumprelu") or (architecture in BATCHTOPK and "topk_threshold" not in file.shapes):
        # before July 2026 sae-lens kept its logarithm
        names["threshold"] = Stored(_LOG if _LOG in file.shapes else "threshold")
    if "skip" in architecture:
        names["W_skip"] = Stored("W_skip")
    return names


def _unit_decoder(weights: FileWeights) -> Weights:
    def norms() -> Tensor:
        # clamped as sae-lens does; a row of zeros is refused when the decoder is read
        return weights.read("W_dec").norm(dim=1).clamp(min=1e-8)

    return RowScaled(weights, norms)


def _activation(
    architecture: str, config: Mapping[str, Any], weights: FileWeights, where: str, times: float
) -> Callable[[], Activation]:
    if config.get("finetuning_scaling_factor") and "scaling_factor" in weights.file.shapes:
        # multiplied into the activations before version 6; most are ones
        found = _activation(architecture, dict(config) | {"finetuning_scaling_factor": False}, weights, where, times)
        return lambda: _unless_finetuned(found, weights.file)
    if architecture in ("standard", "transcoder", "skip_transcoder"):
        return ReLU
    if architecture == "gated":
        return lambda: gated_activation(weights)
    if architecture == "topk":
        kwargs: dict[str, Any] = config.get("activation_fn_kwargs") or {}
        return lambda: TopK(count({"k": config.get("k", kwargs.get("k"))}, "k", f"{where}: architecture topk"))
    if "threshold" in weights.layout:
        log = weights.layout["threshold"].name == _LOG
        return lambda: JumpReLU((weights.threshold().exp() if log else weights.threshold()) * times)
    return lambda: kept_threshold(_topk_threshold(weights.file) * times, str(weights.file.path))


def _topk_threshold(file: TensorFile) -> Tensor:
    threshold = file.read("topk_threshold")
    if threshold.numel() != 1 or not bool(threshold.isfinite().all()):
        raise BadFile(
            f"{file.path}: tensor 'topk_threshold' is {threshold.flatten()[:5].tolist()}, expected one finite number. "
            "Fetch the file again."
        )
    return threshold.reshape(())


def _unless_finetuned(activation: Callable[[], Activation], file: TensorFile) -> Activation:
    factors = file.read("scaling_factor")
    if not torch.allclose(factors, torch.ones_like(factors)):
        raise UnsupportedFormat(
            f"{file.path}: finetuning_scaling_factor is set, and 'scaling_factor' multiplies activations. sae-lens 6 "
            "no longer applies it. Directions are known, activations are not. Multiply W_enc and b_enc by it, and save "
            "again without it."
        )
    return activation()
