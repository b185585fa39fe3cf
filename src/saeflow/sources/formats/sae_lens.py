"""sae-lens folders: cfg.json and sae_weights.safetensors, from version 6 and earlier.

    W_enc [d_in n_features]   W_dec [n_features d_out]   b_enc   b_dec   threshold (jumprelu)
    W_skip [d_out d_in] (skip transcoders)   b_gate, r_mag, b_mag in place of b_enc (gated)

    pre  = (norm(h) - b_dec if apply_b_dec_to_input) @ W_enc + b_enc

sae-lens saves a trained BatchTopK as jumprelu; a checkpoint from training has `topk_threshold` instead. With
`rescale_acts_by_decoder_norm` a TopK ranks pre * |W_dec row| and decodes with unit rows; it is read as the same
function with W_enc and b_enc multiplied by the norms, and W_dec divided by them.

A gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014) with x = prepare(h) @ W_enc computes

    acts = (x + b_gate > 0) * relu(exp(r_mag) * x + b_mag)

Its gate is open where exp(r_mag) * x + b_mag > b_mag - exp(r_mag) * b_gate. So it equals, and is read as, a
JumpReLU with the encoder exp(r_mag) * W_enc, the bias b_mag and that threshold (see their appendix on the
equivalence).

Before version 6, cfg.json was one flat object with older names; `_modern` converts it as sae-lens does
(`handle_pre_6_0_config` in 6.54.12). Settings that a Dictionary cannot reproduce are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.activations import Activation, JumpReLU, ReLU, TopK, kept_threshold
from saeflow.sources.architectures import Tap, View
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing, TrainingInfo
from saeflow.sources.formats.configs import count, positive_number, read_json
from saeflow.sources.formats.file_weights import FileWeights, Stored, refused
from saeflow.sources.formats.hook_names import site_of_hook, tap_at, transcoder_of_hooks, view_of_hook
from saeflow.sources.formats.remote_tensors import open_tensors
from saeflow.sources.formats.tensors import TensorFile
from saeflow.sources.weights import DirectionsOnly, RowScaled, Weights

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"
SCALER: Final = "activation_scaler.json"
"""Next to the weights in a training checkpoint whose factor is not yet folded into them."""
_LOG: Final = "log_threshold"
_BATCHTOPK: Final = ("batchtopk", "matryoshka_batchtopk", "matryoshka")
"""Architectures of checkpoints saved during training; once trained, these are saved as jumprelu."""
_TRANSCODERS: Final = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_ARCHITECTURES: Final = ("standard", "jumprelu", "topk", "gated", *_BATCHTOPK, *_TRANSCODERS)
_AVERAGE: Final = "expected_average_only_in"
"""Every h is multiplied by one number, estimated in training."""
_NORMS: Final = {
    "none": Norm.NONE,
    "layer_norm": Norm.LAYER_NORM,
    "constant_norm_rescale": Norm.RESCALE,
    _AVERAGE: Norm.NONE,
}
_OLD_NAMES: Final = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def read_sae_lens(folder: Path, site: Site | None = None) -> Dictionary:
    """Open the dictionary in a sae-lens folder; reads headers only. `site` overrides the hook name in cfg.json.

    Raises:
        BadFile: when cfg.json or the weights do not follow the format.
        UnsupportedFormat: when the SAE does something a Dictionary cannot, or sits at no site.
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
    """Make a dictionary from a configuration and its tensors; `where` is for messages.

    `factor` reads the number that h is multiplied by, where the configuration asks for one.

    Raises:
        BadFile: when the two do not fit together.
        UnsupportedFormat: when the SAE does something a Dictionary cannot, or sits at no site.
    """
    # 1. the configuration in the form of version 6, a check that a Dictionary can reproduce it, and where it sits
    config, metadata = _modern(config)
    _refuse_unsupported(config, metadata, where)
    architecture = str(config.get("architecture", "standard"))
    transcoder = architecture in _TRANSCODERS
    at = _location(metadata, site, where, transcoder=transcoder)

    # 2. the weights, and what is folded into them
    file = open_file()
    scale, unsized = _scale(config, factor, where)
    weights = FileWeights(file, _layout(architecture, file, scale), transcoder=at.tap.is_read_only)
    rescaled = architecture in ("topk", *_BATCHTOPK) and bool(config.get("rescale_acts_by_decoder_norm", False))
    model: dict[str, Any] = metadata.get("model_from_pretrained_kwargs") or {}
    norm = _NORMS[config.get("normalize_activations") or "none"]
    read: Weights = gated_weights(weights) if architecture == "gated" else weights
    if rescaled:
        read = RowScaled(weights, lambda: _row_norms(weights))

    # 3. how it was trained
    begins, context = metadata.get("prepend_bos"), metadata.get("context_size")
    training = TrainingInfo(
        View.PROCESSED if at.view is View.OWN and _processed(config, metadata) else at.view,
        begins if isinstance(begins, bool) else None,
        context if isinstance(context, int) and context > 0 else None,
    )
    why = unsized or _unknown_activation(config, where)
    return Dictionary.reading(
        at.site,
        tap=at.tap,
        weights=DirectionsOnly(read, unsized) if unsized else read,
        # thresholds on pre * |W_dec row| scale with the rows, which are divided by the factor
        activation=refused(why)
        if why
        else _activation(architecture, config, weights, where, 1 / scale if rescaled else 1.0),
        preprocessing=Preprocessing(
            subtract_b_dec=not transcoder and bool(config.get("apply_b_dec_to_input", True)),
            center=bool(model.get("center_writing_weights", False)),
            norm=at.norm if norm is Norm.NONE else norm,
        ),
        training=training,
    )


def _processed(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether it was trained on weights that TransformerLens had processed.

    Until September 2024 (its pull request 279) sae-lens trained on `HookedTransformer.from_pretrained` and did not
    record it; since then `model_from_pretrained_kwargs` states the processing, by default none.
    """
    kwargs = metadata.get("model_from_pretrained_kwargs")
    if isinstance(kwargs, dict):
        return bool(kwargs.get("fold_value_biases", False))
    if metadata is not config or not str(metadata.get("hook_name") or "").startswith("blocks."):
        return False  # version 6, or a model from another library
    # files older than the entry hold training settings such as lr; files converted from other formats do not
    return metadata.get("model_class_name", "HookedTransformer" if "lr" in config else "") == "HookedTransformer"


def _row_norms(weights: FileWeights) -> Tensor:
    # clamped as sae-lens does, so that a row of zeros stays zeros
    return torch.linalg.vector_norm(weights.read("W_dec"), dim=1).clamp(min=1e-8)


def gated_weights(weights: FileWeights) -> Weights:
    """The weights of a gated SAE's magnitude path; the layout has r_mag, and b_mag as b_enc."""
    return RowScaled(weights, lambda: weights.vector("r_mag").exp(), encoder_only=True)


def gated_activation(weights: FileWeights) -> JumpReLU:
    """The gate of a gated SAE as thresholds on its magnitudes; see the module docstring.

    Raises:
        BadFile: when a vector needed for it cannot be read or is not finite.
    """
    return JumpReLU(weights.vector("b_enc") - weights.vector("r_mag").exp() * weights.vector("b_gate"))


def _scale(config: Mapping[str, Any], factor: Callable[[], float] | None, where: str) -> tuple[float, str]:
    """(the factor of h, 1 where there is none; why it is unknown, "" where it is known)."""
    if config.get("normalize_activations") != _AVERAGE:
        return 1.0, ""
    try:
        if factor is not None:
            return factor(), ""
        missing = f"{where}: normalize_activations is {_AVERAGE!r}, whose factor is not in the folder ({SCALER})."
    except BadFile as error:
        missing = f"{where}: normalize_activations is {_AVERAGE!r}, and {error}"
    return 1.0, (
        f"{missing} Directions are known, activations are not. Put {SCALER} of the checkpoint beside it, or fold the "
        "factor with sae.fold_activation_norm_scaling_factor and save again."
    )


def _layout(architecture: str, file: TensorFile, scale: float) -> dict[str, Stored]:
    names = {name: Stored(name, times=1 / scale) for name in ("W_dec", "b_dec")}
    names |= {"b_enc": Stored("b_enc"), "W_enc": Stored("W_enc", transposed=True, times=scale)}
    if architecture == "gated":
        names |= {"b_enc": Stored("b_mag"), "b_gate": Stored("b_gate"), "r_mag": Stored("r_mag")}
    if architecture.startswith("jumprelu") or (architecture in _BATCHTOPK and "topk_threshold" not in file.shapes):
        # before July 2026 sae-lens stored the logarithm of the threshold
        names["threshold"] = Stored(_LOG if _LOG in file.shapes else "threshold")
    if "skip" in architecture:
        names["W_skip"] = Stored("W_skip")
    return names


def _activation(
    architecture: str, config: Mapping[str, Any], weights: FileWeights, where: str, times: float
) -> Callable[[], Activation]:
    if config.get("finetuning_scaling_factor") and "scaling_factor" in weights.file.shapes:
        # before version 6 this multiplied the activations; in most files it is all ones
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
        return lambda: JumpReLU((weights.vector("threshold").exp() if log else weights.vector("threshold")) * times)
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


@dataclass(frozen=True)
class _Location:
    """Where a dictionary sits, what it reads, and how it normalises its input."""

    site: Site
    tap: Tap
    norm: Norm = Norm.NONE
    view: View = View.OWN


def _modern(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(configuration, metadata) in the form of version 6, whichever version wrote the file."""
    metadata = config.get("metadata")
    if isinstance(metadata, dict):
        return dict(config), dict(metadata)
    new = {_OLD_NAMES.get(key, key): value for key, value in config.items()}
    kwargs = new.get("activation_fn_kwargs")
    if new.get("activation_fn") == "topk" and isinstance(kwargs, dict) and kwargs.get("k") is not None:
        new |= {"architecture": "topk", "k": kwargs["k"]}
    norm = new.get("normalize_activations")
    if isinstance(norm, bool):
        new["normalize_activations"] = "expected_average_only_in" if norm else "none"
    return new, new


def _refuse_unsupported(config: Mapping[str, Any], metadata: Mapping[str, Any], where: str) -> None:
    """Refuse settings that a Dictionary cannot reproduce, saying what to use instead.

    Raises:
        UnsupportedFormat: naming the entry and its value.
    """
    architecture = config.get("architecture", "standard")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedFormat(
            f"{where}: architecture {architecture!r} is not supported. Supported: {', '.join(_ARCHITECTURES)}."
        )
    norm = config.get("normalize_activations") or "none"
    if norm not in _NORMS:
        raise UnsupportedFormat(
            f"{where}: normalize_activations is {norm!r}, which is not read. Supported: "
            f"{', '.join(_NORMS)}; covariance_whitening after sae.fold_activation_whitening(mean, "
            "whitening_matrix, unwhitening_matrix), with the three of activation_whitening.safetensors, and saving "
            "again."
        )
    head = metadata.get("hook_head_index")
    if head is not None:
        raise UnsupportedFormat(
            f"{where}: hook_head_index is {head!r}; an SAE on one head is no site of "
            "saeflow. Use one trained on all heads (attn.hook_z) or on hook_attn_out."
        )
    out = metadata.get("hook_name_out")
    writes_elsewhere = out is not None and out != metadata.get("hook_name")
    if writes_elsewhere and architecture not in _TRANSCODERS:
        raise UnsupportedFormat(
            f"{where}: reads {metadata.get('hook_name')!r} and writes {out!r}, and architecture {architecture!r} "
            f"is no transcoder. Supported for that: {', '.join(_TRANSCODERS)}."
        )


def _unknown_activation(config: Mapping[str, Any], where: str) -> str:
    """Why activations are unknown, and what to do; empty where they are known. Directions are not affected."""
    function = config.get("activation_fn") or "relu"
    if function not in ("relu", "topk"):
        return (
            f"{where}: activation_fn is {function!r}. Directions are known, activations are not. Supported for them: "
            "relu, topk."
        )
    norm = config.get("normalize_activations") or "none"
    if config.get("architecture") in _TRANSCODERS and (norm != "none" or config.get("apply_b_dec_to_input")):
        return (
            f"{where}: a transcoder with normalize_activations {norm!r} and apply_b_dec_to_input "
            f"{bool(config.get('apply_b_dec_to_input'))}, which sae-lens trains none of. Directions are known, "
            "activations are not. Check the file."
        )
    return ""


def _location(metadata: Mapping[str, Any], site: Site | None, where: str, *, transcoder: bool) -> _Location:
    """The location that the hook names state; `site` overrides the site.

    Raises:
        BadFile: when no hook is named and `site` is None, or a transcoder does not name both of its hooks.
        UnsupportedFormat: when the hooks do not denote a site.
    """
    if transcoder:
        return _transcoder(metadata, site, where)
    if site is not None:
        hook = str(metadata.get("hook_name") or metadata.get("hf_hook_name") or "")
        return _Location(site, tap_at(site, hook), view=view_of_hook(hook))
    model = str(metadata.get("model_name") or "")
    hooks = [metadata[key] for key in ("hook_name", "hf_hook_name") if isinstance(metadata.get(key), str)]
    if not hooks:
        raise BadFile(f"{where}: neither hook_name nor hf_hook_name is given. Pass site=...")
    return _first(
        [lambda hook=hook: _Location(*site_of_hook(hook, model, where), view=view_of_hook(hook)) for hook in hooks]
    )


def _transcoder(metadata: Mapping[str, Any], site: Site | None, where: str) -> _Location:
    """The location of a transcoder, by Hugging Face modules first: `hook_mlp_in` may mean before or after the norm."""
    model = str(metadata.get("model_name") or "")
    keys = (("hf_hook_name", "hf_hook_name_out"), ("hook_name", "hook_name_out"))
    pairs = [(metadata.get(read), metadata.get(written)) for read, written in keys]
    named = [(read, written) for read, written in pairs if isinstance(read, str) and isinstance(written, str)]
    if not named:
        raise BadFile(f"{where}: a transcoder without hook_name and hook_name_out. Add them to its metadata.")
    found = _first(
        [
            lambda pair=pair: _Location(*transcoder_of_hooks(*pair, model, where), view=view_of_hook(pair[1]))
            for pair in named
        ]
    )
    if found.norm is Norm.RESCALE:
        found = replace(found, view=View.RMS)
    return found if site is None else replace(found, site=site)


def _first(ways: list[Callable[[], _Location]]) -> _Location:
    """The result of the first way that is supported; raises the error of the first, the preferred, when none is."""
    refusals: list[UnsupportedFormat] = []
    for way in ways:
        try:
            return way()
        except UnsupportedFormat as error:
            refusals.append(error)
    raise refusals[0]
