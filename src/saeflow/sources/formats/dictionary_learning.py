"""dictionary_learning folders: ae.pt (a state dict) and config.json, for every dict_class that is a single SAE.

    AutoEncoder             bias          encoder.{weight,bias}  decoder.weight   relu, h - bias
    AutoEncoderNew          decoder.bias  encoder.{weight,bias}  decoder.weight   relu
    GatedAutoEncoder        decoder_bias  encoder.weight  gate_bias mag_bias r_mag  decoder.weight   gated, h - bias
    JumpReluAutoEncoder     b_dec  W_enc  b_enc  W_dec  threshold [n_features]     jumprelu
    AutoEncoderTopK         b_dec  encoder.{weight,bias}  decoder.weight  k        topk, h - b_dec
    BatchTopKSAE            b_dec  encoder.{weight,bias}  decoder.weight  k  threshold   h - b_dec, pre > threshold
    MatryoshkaBatchTopKSAE  b_dec  W_enc  b_enc  W_dec  k  threshold               the same

    encoder.weight, W_dec [n_features d_in]      decoder.weight, W_enc [d_in n_features]

Activations are those of the weights as stored. The library's own `from_pretrained` can multiply them by the norms of
the decoder rows (whether it does depends on the version); reconstruction and directions are the same.
Where config.json is missing or names no class, the class is inferred from the tensors if they are unambiguous.
The site comes from the submodule's name in config.json, or else from a folder's, such as `mlp_out_layer3`; the layer
in config.json must agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from saeflow.errors import UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.activations import Activation, ActivationKind, JumpReLU, ReLU, TopK, kept_threshold
from saeflow.sources.architectures import Tap, View
from saeflow.sources.dictionary import Dictionary, Preprocessing, TrainingInfo
from saeflow.sources.formats.configs import count, read_json
from saeflow.sources.formats.file_weights import FileWeights, Stored, refused
from saeflow.sources.formats.sae_lens import gated_activation, gated_weights
from saeflow.sources.formats.tensors import LoadedTensors, TorchFile

CONFIG: Final = "config.json"
WEIGHTS: Final = "ae.pt"
_LINEAR: Final = {
    "W_enc": Stored("encoder.weight"),
    "b_enc": Stored("encoder.bias"),
    "W_dec": Stored("decoder.weight", transposed=True),
    "b_dec": Stored("b_dec"),
}
_PARAMETERS: Final = {
    "W_enc": Stored("W_enc", transposed=True),
    "b_enc": Stored("b_enc"),
    "W_dec": Stored("W_dec"),
    "b_dec": Stored("b_dec"),
}


@dataclass(frozen=True)
class _Class:
    """How a class stores its tensors, its activation, and whether it subtracts its decoder bias from the input."""

    layout: Mapping[str, Stored]
    activation: ActivationKind
    subtracts: bool
    gated: bool = False


_CLASSES: Final = {
    "AutoEncoder": _Class({**_LINEAR, "b_dec": Stored("bias")}, ActivationKind.RELU, subtracts=True),
    "AutoEncoderNew": _Class({**_LINEAR, "b_dec": Stored("decoder.bias")}, ActivationKind.RELU, subtracts=False),
    "GatedAutoEncoder": _Class(
        {
            **_LINEAR,
            "b_enc": Stored("mag_bias"),
            "b_dec": Stored("decoder_bias"),
            "b_gate": Stored("gate_bias"),
            "r_mag": Stored("r_mag"),
        },
        ActivationKind.JUMPRELU,
        subtracts=True,
        gated=True,
    ),
    "JumpReluAutoEncoder": _Class(
        {**_PARAMETERS, "threshold": Stored("threshold")}, ActivationKind.JUMPRELU, subtracts=False
    ),
    "AutoEncoderTopK": _Class(_LINEAR, ActivationKind.TOPK, subtracts=True),
    "BatchTopKSAE": _Class(_LINEAR, ActivationKind.BATCHTOPK, subtracts=True),
    "MatryoshkaBatchTopKSAE": _Class(_PARAMETERS, ActivationKind.BATCHTOPK, subtracts=True),
}
_TELLTALES: Final = {
    "gate_bias": "GatedAutoEncoder",
    "bias": "AutoEncoder",
    "decoder.bias": "AutoEncoderNew",
    "group_sizes": "MatryoshkaBatchTopKSAE",
}
_NAMED_SITE: Final = re.compile(
    r"(?:.*_)?(?:(res|resid)(?:_post|_out)?|(mlp|attn|att|attention)(?:_out)?)_layer_?([0-9]+)"
)
_PARTS: Final = {
    "resid": Part.RES,
    "res": Part.RES,
    "mlp": Part.MLP,
    "attn": Part.ATT,
    "attention": Part.ATT,
    "att": Part.ATT,
}


def read_dictionary_learning(folder: Path, site: Site | None = None) -> Dictionary:
    """Open the dictionary in a folder with an ae.pt; reads names and shapes only. `site` overrides config.json.

    Raises:
        BadFile: when ae.pt or config.json does not follow the format, or loading ae.pt would run code.
        UnsupportedFormat: for any other dict_class, or when nothing states the site.
    """
    path = folder / CONFIG
    config = read_json(path) if path.is_file() else {}
    trainer = config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else config
    file = TorchFile(folder / WEIGHTS)
    return learned_dictionary(trainer, file, site or _site(folder, config, trainer), where=path)


def learned_dictionary(
    trainer: Mapping[str, Any], file: TorchFile | LoadedTensors, site: Site, *, where: Path
) -> Dictionary:
    """Make a dictionary from its trainer's configuration (`dict_class`, `k`) and tensors; `where` is for messages.

    Raises:
        BadFile: when the two do not fit together.
        UnsupportedFormat: for any other class.
    """
    # 1. the class: the one named, or else the one that the tensors identify
    name = trainer.get("dict_class")
    if name is None:
        name = next((made for sign, made in _TELLTALES.items() if sign in file.shapes), None)
    two_classes = name is None and {stored.name for stored in _LINEAR.values()} <= set(file.shapes)
    if two_classes:  # AutoEncoderTopK and BatchTopKSAE, which differ only in their activation
        name = "AutoEncoderTopK"
    if not isinstance(name, str) or name not in _CLASSES:
        raise UnsupportedFormat(
            f"{where}: dict_class is {name!r}. Supported: {', '.join(_CLASSES)}. Its tensors, "
            f"{sorted(file.shapes)}, leave more than one possible; add trainer.dict_class to {CONFIG}."
        )
    made = _CLASSES[name]

    # 2. its tensors
    layout = dict(made.layout)
    # a batch top-k class may store its tensors in the other layout
    if made.activation is ActivationKind.BATCHTOPK and layout["W_enc"].name not in file.shapes:
        layout = dict(_PARAMETERS if layout["W_enc"].name == "encoder.weight" else _LINEAR)
    weights = FileWeights(file, layout)
    activation = _activation(made, trainer, file, weights, where)
    if two_classes:
        activation = refused(
            f"{where}: there is no dict_class, and the tensors of {file.path} are those of an AutoEncoderTopK and of a "
            "BatchTopKSAE alike, whose activations differ. Directions are known, activations are not. Add "
            f"trainer.dict_class to {CONFIG}."
        )
    return Dictionary.reading(
        site,
        tap=Tap.of(site.part),
        weights=gated_weights(weights) if made.gated else weights,
        activation=activation,
        preprocessing=Preprocessing(subtract_b_dec=made.subtracts),
        # `mlp_out` and `attn_out` are what the module returns, even in models that apply a norm before adding it
        training=TrainingInfo(View.OWN if site.part is Part.RES else View.MODULE),
    )


def _activation(
    made: _Class, trainer: Mapping[str, Any], file: TorchFile | LoadedTensors, weights: FileWeights, path: Path
) -> Callable[[], Activation]:
    if made.gated:
        return lambda: gated_activation(weights)
    if made.activation is ActivationKind.RELU:
        return ReLU
    if made.activation is ActivationKind.JUMPRELU:
        return lambda: JumpReLU(weights.vector("threshold"))
    if made.activation is ActivationKind.TOPK:
        return lambda: TopK(
            count({"k": int(file.number("k"))}, "k", file.path) if "k" in file.shapes else count(trainer, "k", path)
        )
    if "threshold" not in file.shapes:
        return refused(
            f"{file.path}: there is no tensor 'threshold'. Without one, which features of a BatchTopK are "
            "active depends on what else is in the batch. Directions are known, activations are not. Use one trained "
            "with a later version."
        )
    return lambda: kept_threshold(torch.tensor(file.number("threshold")), str(file.path))


def _site(folder: Path, config: Mapping[str, Any], trainer: Mapping[str, Any]) -> Site:
    """The site named by the submodule, or else by the innermost folder that names one; must agree with the layer."""
    buffer = config.get("buffer")
    side = buffer.get("io", "out") if isinstance(buffer, dict) else "out"
    submodule, layer = trainer.get("submodule_name"), trainer.get("layer")
    names = [*([str(submodule)] if submodule else []), *reversed(folder.absolute().parts)]
    named = next((found for name in names if (found := _NAMED_SITE.fullmatch(name))), None)
    site = None if named is None else Site(int(named[3]), _PARTS[named[1] or named[2]])
    if site is None or side != "out" or (isinstance(layer, int) and layer != site.layer):
        raise UnsupportedFormat(
            f"{folder}: submodule {submodule!r}, layer {layer!r} and io {side!r} give no site. Sites are outputs of "
            "blocks, MLPs or attention, named as resid_post_layer_3, mlp_out_layer3 or attn_out_layer3. Pass "
            "site=... if it is one."
        )
    return site
