"""Folders of OpenMOSS's library (Llamascopium, formerly lm-saes): config.json and sae_weights.safetensors.

    W_E [d_in n_features]   b_E   W_D [n_features d_out]   b_D   activation_function.log_jumprelu_threshold [n_features]
    encoder.weight [n_features d_in]   encoder.bias   decoder.weight [d_out n_features]   decoder.bias
    log_jumprelu_threshold [n_features]                        (the layout of Llama Scope R1 Distill)

In training, inputs and outputs were scaled to the norm sqrt(d_model). With `norm_activation` "dataset-wise" the factor
is s = sqrt(d_model) / (average norm), one per hook, where the file holds the average norm as
`dataset_average_activation_norm.HOOK`; with "token-wise" each token has its own factor; with "inference" there is none,
as the factors are folded into the weights. So

    pre = s_in * h @ W_E + b_E;   h' = (acts @ W_D + b_D) / s_out

Where `sparsity_include_decoder_norm` is set, the activation function sees pre * |W_D row|, and its output is divided by
|W_D row| again. A JumpReLU then has the threshold exp(log threshold) / |row|. A TopK ranks by the product; it is read
as the same function with unit rows and activations multiplied by the norms. Based on llamascopium 2.0.0b34
(`models/sae.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.activations import Activation, JumpReLU, ReLU, TopK
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing, TrainingInfo
from saeflow.sources.formats.configs import count, positive_number, read_json
from saeflow.sources.formats.file_weights import FileWeights, Stored, refused
from saeflow.sources.formats.hook_names import place_of_hooks, view_of_hook
from saeflow.sources.formats.remote_tensors import open_tensors
from saeflow.sources.formats.tensors import TensorFile
from saeflow.sources.weights import DirectionsOnly, RowScaled

CONFIG: Final = "config.json"
WEIGHTS: Final = "sae_weights.safetensors"
_NORM: Final = "dataset_average_activation_norm"


def read_openmoss(folder: Path, site: Site | None = None) -> Dictionary:
    """Open the dictionary in a folder; reads headers and the average norms. `site` overrides config.json.

    Raises:
        BadFile: when a file does not follow the format.
        UnsupportedFormat: for any other `sae_type`, or when its hooks do not denote a site.
    """
    path = folder / CONFIG
    return openmoss_dictionary(read_json(path), open_tensors(folder / WEIGHTS), site, where=path)


def openmoss_dictionary(config: Mapping[str, Any], file: TensorFile, site: Site | None, *, where: Path) -> Dictionary:
    """Make a dictionary from a configuration and its tensors; `where` is for messages.

    Raises:
        BadFile: when the two do not fit together.
        UnsupportedFormat: for any other `sae_type`, or when its hooks do not denote a site.
    """
    kind = config.get("sae_type")
    if kind != "sae":
        raise UnsupportedFormat(
            f"{where}: sae_type is {kind!r}. Supported: sae, which transcoders are too. Of clt and crosscoder a "
            "feature has several decoder rows, lorsa and molt write by other means; llamascopium reads them."
        )
    read, written = str(config.get("hook_point_in")), str(config.get("hook_point_out"))
    model = str(config.get("model_name") or where.parent.absolute())
    place, tap, norm = place_of_hooks(read, written, model, str(where), site)
    training = TrainingInfo(view_of_hook(written, norm))
    if config.get("use_decoder_bias") is False:
        file = _ZeroBias(file, count(config, "d_model", where))
    s_in, s_out, unknown = 1.0, 1.0, ""
    try:
        s_in, s_out, norm = _scales(config, file, (read, written), norm, where)
    except BadFile as error:
        unknown = f"{error} Directions are known, activations are not."
    weights = FileWeights(file, _layout(file, s_in, s_out), transcoder=tap.is_read_only)
    by_norm = bool(config.get("sparsity_include_decoder_norm", True))

    def norms() -> Tensor:
        if not by_norm:
            return torch.ones(())
        return torch.linalg.vector_norm(weights.read("W_dec"), dim=1).clamp(min=1e-8) * s_out

    ranked = by_norm and config.get("act_fn") == "topk"
    read_by = RowScaled(weights, norms) if ranked else weights
    return Dictionary.reading(
        place,
        tap=tap,
        weights=DirectionsOnly(weights, unknown) if unknown else read_by,
        activation=refused(unknown) if unknown else _activation(config, weights, norms, where),
        preprocessing=Preprocessing(norm=norm),
        training=training,
    )


def _layout(file: TensorFile, s_in: float, s_out: float) -> dict[str, Stored]:
    former = "encoder.weight" in file.shapes
    threshold = ("" if former else "activation_function.") + "log_jumprelu_threshold"
    return {
        "W_enc": Stored("encoder.weight", times=s_in) if former else Stored("W_E", transposed=True, times=s_in),
        "b_enc": Stored("encoder.bias" if former else "b_E"),
        "W_dec": Stored("decoder.weight", transposed=True, times=1 / s_out)
        if former
        else Stored("W_D", times=1 / s_out),
        "b_dec": Stored("decoder.bias" if former else "b_D", times=1 / s_out),
        "threshold": Stored(threshold),
    }


def _scales(
    config: Mapping[str, Any], file: TensorFile, hooks: tuple[str, str], norm: Norm, path: Path
) -> tuple[float, float, Norm]:
    """The factors of the input and the output, and the normalisation of each token.

    Raises:
        BadFile: when an average norm is not a positive number.
        UnsupportedFormat: when a Dictionary cannot scale in this way, or the file lacks an average norm.
    """
    kind = config.get("norm_activation", "dataset-wise")
    if kind == "inference":
        return 1.0, 1.0, norm
    if kind == "token-wise" and hooks[0] == hooks[1]:
        return 1.0, 1.0, Norm.RESCALE
    if kind != "dataset-wise":
        raise UnsupportedFormat(
            f"{path}: norm_activation {kind!r} of {' to '.join(dict.fromkeys(hooks))} scales by what else is in the "
            "batch, or writes in units of each token. Use one trained with dataset-wise."
        )
    names = [f"{_NORM}.{hook}" for hook in hooks]
    if not set(names) <= set(file.shapes):
        raise UnsupportedFormat(
            f"{path}: norm_activation is 'dataset-wise', and {file.path} lacks {names[0]!r}. Save it with "
            "fold_activation_scale, or fetch the file again."
        )
    root = math.sqrt(positive_number(config, "d_model", path))
    s_in, s_out = (
        root / positive_number({name: float(file.read(name).reshape(-1)[0])}, name, file.path) for name in names
    )
    return s_in, s_out, norm


def _activation(
    config: Mapping[str, Any], weights: FileWeights, norms: Callable[[], Tensor], path: Path
) -> Callable[[], Activation]:
    learned = weights.layout["threshold"].name in weights.file.shapes
    function = config.get("act_fn", "jumprelu" if learned else "relu")
    if config.get("use_glu_encoder") or function not in ("relu", "jumprelu", "topk"):
        glu = ", with use_glu_encoder" if config.get("use_glu_encoder") else ""
        return refused(
            f"{path}: act_fn is {function!r}{glu}. Directions are known, activations are not: supported are relu, "
            "jumprelu and topk without use_glu_encoder. llamascopium turns a batchtopk into a jumprelu."
        )
    if function == "relu":
        return ReLU
    if function == "topk":
        return lambda: TopK(count(config, "top_k", path))
    return lambda: JumpReLU(weights.vector("threshold").exp() / norms())


class _ZeroBias(TensorFile):
    """A file without a decoder bias, presented as one with a bias of zeros."""

    def __init__(self, file: TensorFile, width: int) -> None:
        self._file, self._width = file, width
        self._name = "decoder.bias" if "encoder.weight" in file.shapes else "b_D"
        self.path, self.shapes = file.path, {**file.shapes, self._name: (width,)}

    def read(self, name: str) -> Tensor:
        return torch.zeros(self._width) if name == self._name else self._file.read(name)
