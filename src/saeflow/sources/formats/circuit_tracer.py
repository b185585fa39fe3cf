"""circuit-tracer transcoder sets: config.yaml and one layer_L.safetensors per layer.

    W_enc [n_features d_in]   b_enc   W_dec [n_features d_out]   b_dec   W_skip [d_out d_in] (optional)
    activation_function.threshold [n_features] (JumpReLU)

    pre = h @ W_enc^T + b_enc;   h' = acts @ W_dec + b_dec (+ h @ W_skip^T)

config.yaml names the model and the tensors read and written (`feature_input_hook`, `feature_output_hook`), as
TransformerLens hooks without `blocks.L.`. It may name the activation: `topk` with `k`, or `relu`. Otherwise it is
JumpReLU where thresholds are stored, and ReLU where they are not. Under topk, circuit-tracer keeps the k largest even
where they are negative; here those are 0. Based on circuit-tracer 0.5.0 (`single_layer_transcoder.py`, `hf_utils.py`).

Cross-layer transcoders (W_enc_L.safetensors and W_dec_L.safetensors; params_layer_L.safetensors in Gemma Scope 2) are
refused: a feature has a row in every layer it writes to, W_dec [n_features layers d_out], not one direction at a site.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from saeflow.errors import UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.activations import Activation, JumpReLU, ReLU, TopK
from saeflow.sources.dictionary import Dictionary, Preprocessing, TrainingInfo
from saeflow.sources.formats.configs import count, read_yaml
from saeflow.sources.formats.file_weights import FileWeights, Stored
from saeflow.sources.formats.hook_names import transcoder_of_hooks, view_of_hook
from saeflow.sources.formats.remote_tensors import open_tensors

CONFIG: Final = "config.yaml"
FILE: Final = re.compile(r"layer_(\d+)\.safetensors")
CROSS_LAYER: Final = re.compile(r"(?:W_enc|W_dec|params_layer)_\d+\.safetensors")
_THRESHOLD: Final = "activation_function.threshold"


def read_circuit_tracer(file: Path, site: Site | None = None) -> Dictionary:
    """Open the transcoder of one layer; reads headers only. `site` overrides the layer in the file name.

    Raises:
        BadFile: when config.yaml or the tensors do not follow the format.
        UnsupportedFormat: when there is no config.yaml, or the transcoder does not map an MLP's input to its output.
    """
    path = file.parent / CONFIG
    if not path.is_file():
        raise UnsupportedFormat(
            f"{file}: no {CONFIG} lies beside it to say what is read and written. Write one with model_name, "
            "model_kind: transcoder_set, feature_input_hook and feature_output_hook."
        )
    config = read_yaml(path)
    found = FILE.fullmatch(file.name)
    layer = int(found[1]) if found else -1
    read, written = (f"blocks.{layer}.{config.get(f'feature_{way}_hook')}" for way in ("input", "output"))
    place, tap, norm = transcoder_of_hooks(read, written, str(config.get("model_name")), str(path))
    tensors = open_tensors(file)
    optional = {"W_skip": "W_skip", "threshold": _THRESHOLD}
    names = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    names |= {name: stored for name, stored in optional.items() if stored in tensors.shapes}
    layout = {name: Stored(stored) for name, stored in names.items()}
    weights = FileWeights(tensors, layout, transcoder=True)
    activation: Callable[[], Activation] = lambda: JumpReLU(weights.vector("threshold"))  # noqa: E731
    if config.get("activation") == "topk":
        activation = lambda: TopK(count(config, "k", path))  # noqa: E731
    elif config.get("activation") == "relu" or "threshold" not in layout:
        activation = ReLU
    return Dictionary.reading(
        site or place,
        tap=tap,
        weights=weights,
        activation=activation,
        preprocessing=Preprocessing(norm=norm),
        training=TrainingInfo(view_of_hook(written, norm)),
    )


def refuse_cross_layer(file: Path, site: Site | None = None) -> Dictionary:  # noqa: ARG001  (a reader)
    """Refuse a cross-layer transcoder and say why.

    Raises:
        UnsupportedFormat: always.
    """
    raise UnsupportedFormat(
        f"{file}: of a cross-layer transcoder, whose features write to several layers with a row of their own in each, "
        "so that none has one direction at one site. Use transcoders of one layer each; circuit-tracer reads these."
    )
