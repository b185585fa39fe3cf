"""Llama Scope folders: hyperparams.json and checkpoints/final.safetensors.

    encoder.weight [n_features d_in]   encoder.bias   decoder.weight [d_in n_features]   decoder.bias

stored in bfloat16 (He et al. 2024, arXiv 2410.20526). The SAEs were trained on s * h with s = sqrt(d_model) /
(average norm of h), so on raw h the same features have

    W_enc * s,   b_enc,   W_dec / s,   b_dec / s,   threshold * s

The first four follow from feeding in s * h and dividing the output by s. As for the threshold, the release's own
code runs inference with b_enc / s in place of W_enc * s, which makes its pre-activations smaller by a factor of s,
and compares them with the stored threshold; here they are larger by s, and so is the threshold. Where
`sparsity_include_decoder_norm` is set, pre * |decoder row| is compared, with rows as stored; then feature i has
threshold * s / |row i|.

A transcoder (the TC release) reads h / rms(h), the output of the norm before the MLP without its gain, and
predicts the MLP's output y. It was trained on s_in * (h / rms(h)) and s_out * y, so W_dec and b_dec are divided
by s_out, and s = s_in everywhere else.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.ids import Site
from saeflow.sources.activations import JumpReLU
from saeflow.sources.dictionary import Dictionary, Preprocessing
from saeflow.sources.formats.configs import positive_number, read_json
from saeflow.sources.formats.file_weights import FileWeights, Stored, refused
from saeflow.sources.formats.hook_names import place_of_hooks
from saeflow.sources.formats.remote_tensors import open_tensors
from saeflow.sources.weights import DirectionsOnly

CONFIG = "hyperparams.json"
WEIGHTS = Path("checkpoints") / "final.safetensors"
_MODEL = "llama-3.1-8b"


def read_llama_scope(folder: Path, site: Site | None = None) -> Dictionary:
    """Open the dictionary in a Llama Scope folder; reads headers only. `site` overrides hyperparams.json.

    Raises:
        BadFile: when a file does not follow the format.
        UnsupportedFormat: when its hooks do not denote a site.
    """
    path = folder / CONFIG
    config = read_json(path)
    read, written = str(config.get("hook_point_in")), str(config.get("hook_point_out"))
    place, tap, norm = place_of_hooks(read, written, _MODEL, str(path), site)
    unsized = ""
    try:
        scale = _scale(config, "in", path)
        after = _scale(config, "out", path) if tap.is_read_only else scale
    except BadFile as error:
        unsized, scale, after = f"{error} Directions are known, activations are not.", 1.0, 1.0
    layout = {
        "W_enc": Stored("encoder.weight", times=scale),
        "b_enc": Stored("encoder.bias"),
        "W_dec": Stored("decoder.weight", transposed=True, times=1 / after),
        "b_dec": Stored("decoder.bias", times=1 / after),
    }
    weights = FileWeights(open_tensors(folder / WEIGHTS), layout, transcoder=tap.is_read_only)
    by_norm = bool(config.get("sparsity_include_decoder_norm", False))

    def norms() -> Tensor:
        return torch.linalg.vector_norm(weights.read("W_dec"), dim=1)

    def activation() -> JumpReLU:
        cut = positive_number(config, "jump_relu_threshold", path) * scale
        threshold = torch.full((weights.shape[0],), cut)
        # the norms of the rows as stored: those that norms() sees are divided by `after`
        return JumpReLU(threshold / (norms() * after) if by_norm else threshold)

    subtract = bool(config.get("apply_decoder_bias_to_pre_encoder", False))
    why = unsized
    if config.get("use_glu_encoder"):
        why = f"{path}: use_glu_encoder is set. Directions are known, activations are not. Use another."
    elif subtract and tap.is_read_only:
        why = (
            f"{path}: apply_decoder_bias_to_pre_encoder is set on a transcoder, whose decoder bias is of another "
            "tensor than it reads. Directions are known, activations are not. Use an SAE."
        )
    return Dictionary.reading(
        place,
        tap=tap,
        weights=DirectionsOnly(weights, unsized) if unsized else weights,
        activation=refused(why) if why else activation,
        preprocessing=Preprocessing(subtract_b_dec=subtract, norm=norm),
    )


def _scale(config: dict[str, Any], side: str, path: Path) -> float:
    """sqrt(d_model) / the average norm of the input (side "in") or the output ("out")."""
    norms = config.get("dataset_average_activation_norm")
    if not isinstance(norms, dict):
        raise BadFile(
            f"{path}: dataset_average_activation_norm is {norms!r}, expected an object with {side!r}. Fetch the "
            "file again."
        )
    return math.sqrt(positive_number(config, "d_model", path)) / positive_number(norms, side, path)
