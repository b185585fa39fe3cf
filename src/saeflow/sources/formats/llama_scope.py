"""Llama Scope folders: hyperparams.json and checkpoints/final.safetensors.

    encoder.weight [n_features d_in]   encoder.bias   decoder.weight [d_in n_features]   decoder.bias

in bfloat16 (He et al. 2024, arXiv 2410.20526). It was trained on s * h with s = sqrt(d_model) / (average norm
of h), so on raw h the same features are

    W_enc * s,   b_enc,   W_dec / s,   b_dec / s,   threshold * s

The first four follow from putting s * h in and dividing what comes out by s. The threshold: the release's own
code runs inference with b_enc / s in place of W_enc * s, so its pre-activations are smaller by s, and
compares those with the threshold of the file as it stands; here they are larger by s, and so is the
threshold. Where `sparsity_include_decoder_norm` is set the comparison is of pre * |decoder row|, rows as
stored; then feature i has threshold * s / |row i|.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.activations import JumpReLU
from saeflow.sources.dictionary import Dictionary, Preprocessing, Tap
from saeflow.sources.formats.hooks import site_of_hook
from saeflow.sources.formats.sae_lens import read_json
from saeflow.sources.formats.tensors import FileWeights, SafetensorsFile, Stored

CONFIG = "hyperparams.json"
WEIGHTS = Path("checkpoints") / "final.safetensors"
_MODEL = "llama-3.1-8b"


def read_llama_scope(folder: Path, site: Site | None = None) -> Dictionary:
    """The dictionary of a Llama Scope folder; reads headers only. `site` overrides hyperparams.json.

    Raises:
        BadFile: when a file is not as the format says.
        UnsupportedFormat: when it is a transcoder, or does something a Dictionary does not.
    """
    path = folder / CONFIG
    config = read_json(path)
    read, written = config.get("hook_point_in"), config.get("hook_point_out")
    if read != written or config.get("use_glu_encoder"):
        raise UnsupportedFormat(
            f"{path}: reads {read!r} and writes {written!r}, use_glu_encoder "
            f"{bool(config.get('use_glu_encoder'))}. Transcoders and gated encoders are no dictionaries of "
            "one site. Use the R, A or M release."
        )
    place, tap = (site, _tap(site)) if site is not None else site_of_hook(str(read), _MODEL, str(path))
    scale = _scale(config, path)
    layout = {
        "W_enc": Stored("encoder.weight", times=scale),
        "b_enc": Stored("encoder.bias"),
        "W_dec": Stored("decoder.weight", transposed=True, times=1 / scale),
        "b_dec": Stored("decoder.bias", times=1 / scale),
    }
    weights = FileWeights(SafetensorsFile(folder / WEIGHTS), layout)
    cut = _number(config, "jump_relu_threshold", path) * scale
    by_norm = bool(config.get("sparsity_include_decoder_norm", False))

    def activation() -> JumpReLU:
        threshold = torch.full((weights.shape[0],), cut)
        return JumpReLU(threshold / _stored_norms(weights, scale) if by_norm else threshold)

    subtract = bool(config.get("apply_decoder_bias_to_pre_encoder", False))
    before = Preprocessing(subtract_b_dec=subtract)
    return Dictionary.reading(place, tap=tap, weights=weights, activation=activation, preprocessing=before)


def _tap(site: Site) -> Tap:
    return {Part.RES: Tap.RES, Part.MLP: Tap.MLP, Part.ATT: Tap.ATT}[site.part]


def _stored_norms(weights: FileWeights, scale: float) -> Tensor:
    return torch.linalg.vector_norm(weights.read("W_dec"), dim=1) * scale


def _scale(config: dict[str, Any], path: Path) -> float:
    norms = config.get("dataset_average_activation_norm")
    if not isinstance(norms, dict):
        raise BadFile(f"{path}: dataset_average_activation_norm is {norms!r}, expected an object with 'in'.")
    norm = _number(norms, "in", path)
    return math.sqrt(_number(config, "d_model", path)) / norm


def _number(config: dict[str, Any], key: str, path: Path) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0 or math.isinf(value):
        raise BadFile(f"{path}: {key} is {value!r}, expected a positive number. Fetch the file again.")
    return float(value)
