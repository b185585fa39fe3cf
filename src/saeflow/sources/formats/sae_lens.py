"""sae-lens v6 folders: cfg.json and sae_weights.safetensors.

    W_enc [d_in n_features]   W_dec [n_features d_in]   b_enc   b_dec   threshold (jumprelu)

    pre  = (norm(h) - b_dec if apply_b_dec_to_input) @ W_enc + b_enc

A trained BatchTopK is saved by sae-lens as jumprelu. With `rescale_acts_by_decoder_norm` a TopK ranks
pre * |W_dec row| and decodes with unit rows; multiplying W_enc and b_enc by the norms and dividing W_dec by
them is the same function, and is what is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.activations import Activation, JumpReLU, ReLU, TopK
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing, Tap
from saeflow.sources.formats.hooks import site_of_hook
from saeflow.sources.formats.tensors import FileWeights, SafetensorsFile, Stored
from saeflow.sources.weights import RowScaled, Weights

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
_ARCHITECTURES = ("standard", "jumprelu", "topk", "batchtopk")
_NORMS = {"none": Norm.NONE, "layer_norm": Norm.LAYER_NORM, "constant_norm_rescale": Norm.RESCALE}


def read_sae_lens(folder: Path, site: Site | None = None) -> Dictionary:
    """The dictionary of a sae-lens folder; reads headers only. `site` overrides the hook name of cfg.json.

    Raises:
        BadFile: when cfg.json or the weights are not as the format says.
        UnsupportedFormat: when the SAE does something a Dictionary does not, or sits at no site.
    """
    path = folder / CONFIG
    config = read_json(path)
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else config
    architecture = config.get("architecture", "standard")
    _refuse_unsupported(config, metadata, architecture, str(path))
    place, tap = _place(metadata, site, str(path))
    jump = architecture in ("jumprelu", "batchtopk")
    layout = {name: Stored(name) for name in ("b_enc", "W_dec", "b_dec", *(("threshold",) if jump else ()))}
    weights = FileWeights(
        SafetensorsFile(folder / WEIGHTS), layout | {"W_enc": Stored("W_enc", transposed=True)}
    )
    rescaled = architecture == "topk" and bool(config.get("rescale_acts_by_decoder_norm", False))
    told: dict[str, Any] = metadata.get("model_from_pretrained_kwargs") or {}
    return Dictionary.reading(
        place,
        tap=tap,
        weights=_unit_decoder(weights) if rescaled else weights,
        activation=_activation(architecture, config, weights, str(path)),
        preprocessing=Preprocessing(
            subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)),
            center=bool(told.get("center_writing_weights", False)),
            norm=_NORMS[config.get("normalize_activations") or "none"],
        ),
    )


def _unit_decoder(weights: FileWeights) -> Weights:
    def norms() -> Tensor:
        # clamped as sae-lens does; a row of zeros is refused when the decoder is read
        return weights.read("W_dec").norm(dim=1).clamp(min=1e-8)

    return RowScaled(weights, norms)


def _activation(
    architecture: str, config: Mapping[str, Any], weights: FileWeights, where: str
) -> Callable[[], Activation]:
    if architecture == "standard":
        return ReLU
    if architecture != "topk":
        return lambda: JumpReLU(weights.threshold())
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if not isinstance(k, int) or k < 1:
        raise BadFile(f"{where}: architecture topk with k = {k!r}, expected an integer of 1 or more.")
    return lambda: TopK(k)


def _refuse_unsupported(
    config: Mapping[str, Any], metadata: Mapping[str, Any], architecture: Any, where: str
) -> None:
    if architecture not in _ARCHITECTURES:
        raise UnsupportedFormat(
            f"{where}: architecture {architecture!r} is not supported. Supported: "
            f"{', '.join(_ARCHITECTURES)}."
        )
    norm = config.get("normalize_activations") or "none"
    if norm not in _NORMS:
        raise UnsupportedFormat(
            f"{where}: normalize_activations is {norm!r}, whose factor is not in the folder. Supported: "
            f"{', '.join(_NORMS)}. Fold the factor with sae.fold_activation_norm_scaling_factor and save "
            "again."
        )
    if metadata.get("hook_head_index") is not None:
        raise UnsupportedFormat(
            f"{where}: hook_head_index is {metadata['hook_head_index']!r}; an SAE on one head is no site of "
            "saeflow. Use one trained on all heads (attn.hook_z) or on hook_attn_out."
        )
    out = metadata.get("hook_name_out")
    if out is not None and out != metadata.get("hook_name"):
        raise UnsupportedFormat(
            f"{where}: reads {metadata.get('hook_name')!r} and writes {out!r}. A transcoder is no dictionary "
            "of one site. Use an SAE."
        )


def _place(metadata: Mapping[str, Any], site: Site | None, where: str) -> tuple[Site, Tap]:
    if site is not None:
        hook = str(metadata.get("hook_name") or metadata.get("hf_hook_name") or "")
        z = hook.endswith(("hook_z", "o_proj.input", "c_proj.input", "attention.dense.input"))
        return site, Tap.Z if z and site.part is Part.ATT else Tap(site.part.value)
    hooks = [metadata[key] for key in ("hook_name", "hf_hook_name") if isinstance(metadata.get(key), str)]
    if not hooks:
        raise BadFile(f"{where}: neither hook_name nor hf_hook_name is given. Pass site=...")
    model = str(metadata.get("model_name") or "")
    for hook in hooks[:-1]:
        try:
            return site_of_hook(hook, model, where)
        except UnsupportedFormat:
            continue
    return site_of_hook(hooks[-1], model, where)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        BadFile: when the file cannot be read or holds something else.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read as JSON ({error}). Fetch the file again.") from error
    if not isinstance(data, dict):
        raise BadFile(f"{path}: holds {type(data).__name__}, expected an object. Fetch the file again.")
    return data
