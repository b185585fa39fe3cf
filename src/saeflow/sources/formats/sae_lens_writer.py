"""Write sae-lens v6 folders, which `SAE.load_from_disk` of sae-lens and `load_dictionaries` open.

    FOLDER/3.res/cfg.json                   architecture, sizes, metadata with TransformerLens and HF hook names
    FOLDER/3.res/sae_weights.safetensors    W_enc [d_in n_features], W_dec, b_enc, b_dec, threshold, W_skip

The inverse of `sae_lens`. A BatchTopK is written as jumprelu, as sae-lens itself does. `cfg.json` is written last, by a
rename, so a folder that has one is complete. Checked against sae-lens 6.54.12.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, UnsupportedFormat
from saeflow.files import atomic_file, write_atomic
from saeflow.ids import Site
from saeflow.sources.activations import COMPETING, BatchTopK, Function, JumpReLU, ReLU, TopK
from saeflow.sources.architectures import Architecture, Point, Tap, View
from saeflow.sources.dictionary import Dictionary, Norm
from saeflow.sources.formats.configs import read_json
from saeflow.sources.formats.sae_lens import CONFIG, WEIGHTS

VERSION: Final = "6.54.12"
"""The version of sae-lens whose layout is written."""

_LENS: Final = {
    Tap.RES: "hook_resid_post",
    Tap.MLP: "hook_mlp_out",
    Tap.ATT: "hook_attn_out",
    Tap.Z: "attn.hook_z",
    Tap.MLP_IN: "mlp.hook_in",
    Tap.MID: "hook_resid_mid",
}
_NORMS: Final = {Norm.NONE: "none", Norm.LAYER_NORM: "layer_norm", Norm.RESCALE: "constant_norm_rescale"}


def lens_hook(point: Point) -> str:
    """The TransformerLens name of a point: `blocks.3.hook_resid_post`."""
    return f"blocks.{point.layer}.{_LENS[point.tap]}"


def hf_hook(point: Point, architecture: Architecture) -> str:
    """The Hugging Face module that holds a point: `model.layers.3.output`, `….self_attn.o_proj.input`."""
    module = architecture.module(point.tap)
    path = [architecture.trunk, architecture.blocks, str(point.layer), *([module] if module else [])]
    return ".".join([*path, "input" if architecture.is_input(point.tap) else "output"])


def write_sae_lens(
    folder: Path | str,
    dictionary: Dictionary,
    *,
    model_name: str = "",
    architecture: Architecture | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write one dictionary as a sae-lens folder, in float32.

    Args:
        folder: created if missing; files of the same names are replaced.
        dictionary: an autoencoder or a transcoder.
        model_name: the model it was trained on, by its name on the hub.
        architecture: architecture of that model; adds Hugging Face hook names to those of TransformerLens.
        metadata: more entries, which override those made here.

    Raises:
        UnsupportedFormat: when sae-lens has no architecture that does what the dictionary does.
        InvalidArgument: when an entry of the metadata cannot be written as JSON.
        BadFile: when a tensor read from disk is bad.
        OSError: when the folder cannot be written.
    """
    folder = Path(folder)
    config, tensors = _described(dictionary)
    entries = _metadata(dictionary, model_name, architecture) | dict(metadata or {})
    try:
        text = json.dumps(config | {"metadata": entries}, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"the metadata of {dictionary.site} cannot be written as JSON ({error}). Give plain, finite values."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    with atomic_file(folder / WEIGHTS) as part:
        save_file(tensors, part)
    write_atomic(folder / CONFIG, f"{text}\n".encode())


def write_sae_lens_release(
    folder: Path | str,
    dictionaries: Mapping[Site, Dictionary],
    *,
    model_name: str = "",
    architecture: Architecture | None = None,
    metadata: Mapping[Site, Mapping[str, Any]] | None = None,
) -> None:
    """Write dictionaries as sae-lens folders side by side, one per site; `load_dictionaries(folder)` opens them.

    Raises:
        InvalidArgument: when there are no dictionaries.
        UnsupportedFormat, BadFile, OSError: as `write_sae_lens`.
    """
    if not dictionaries:
        raise InvalidArgument(f"There is no dictionary to write to {folder}. Pass at least one site.")
    for site in sorted(dictionaries):
        write_sae_lens(
            Path(folder) / f"{site.layer}.{site.part.value}",
            dictionaries[site],
            model_name=model_name,
            architecture=architecture,
            metadata=(metadata or {}).get(site),
        )
        dictionaries[site].unload()


def _described(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    before, activation = dictionary.preprocessing, dictionary.activation
    tensors = {
        "W_enc": dictionary.W_enc.T,
        "b_enc": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    if isinstance(activation, JumpReLU | BatchTopK):
        tensors["threshold"] = activation.threshold.expand(dictionary.n_features)
    config: dict[str, Any] = {
        "architecture": _architecture(dictionary),
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": before.subtract_b_dec,
        # a transcoder's normalisation is expressed by its hook
        "normalize_activations": "none" if dictionary.is_transcoder else _NORMS[before.norm],
        "reshape_activations": "hook_z" if dictionary.tap is Tap.Z else "none",
    }
    if isinstance(activation, TopK):
        config |= {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    if dictionary.is_transcoder:
        config["d_out"] = dictionary.d_out
        if dictionary.W_skip is not None:
            tensors["W_skip"] = dictionary.W_skip
    # cloned: a transposed or expanded view shares its memory, which safetensors refuses
    return config, {
        key: t.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for key, t in tensors.items()
    }


def _architecture(dictionary: Dictionary) -> str:
    activation, skip = dictionary.activation, dictionary.W_skip is not None
    normed = dictionary.preprocessing.norm is not Norm.NONE
    if dictionary.is_transcoder:
        hooked = dictionary.tap is Tap.MID and dictionary.preprocessing.norm is Norm.RESCALE
        if isinstance(activation, COMPETING) or dictionary.preprocessing.subtract_b_dec or (normed and not hooked):
            raise UnsupportedFormat(
                f"the transcoder at {dictionary.site} (activation {activation.kind.value}, {dictionary.preprocessing}) "
                "has no architecture in sae-lens 6.54, whose transcoders have ReLU or thresholds. Train it with "
                "batchtopk or jumprelu."
            )
        kind = "skip_transcoder" if skip else "transcoder"
        return kind if isinstance(activation, ReLU) else f"jumprelu_{kind}"
    if skip:
        raise UnsupportedFormat(
            f"the autoencoder at {dictionary.site} adds a linear skip (W_skip), and no autoencoder of sae-lens 6.54 "
            "does. Keep it with save_release, which writes the skip too."
        )
    if isinstance(activation, Function):
        raise UnsupportedFormat(f"the activation at {dictionary.site} is a function of Python, which no file can say.")
    if isinstance(activation, ReLU):
        return "standard"
    return "topk" if isinstance(activation, TopK) else "jumprelu"


def _metadata(dictionary: Dictionary, model_name: str, architecture: Architecture | None) -> dict[str, Any]:
    read, written = Point(dictionary.site.layer, dictionary.tap), Point.at(dictionary.site)
    rescaled = dictionary.is_transcoder and dictionary.preprocessing.norm is Norm.RESCALE
    entries: dict[str, Any] = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": model_name,
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": f"blocks.{read.layer}.ln2.hook_normalized" if rescaled else lens_hook(read),
        "hook_head_index": None,
        **({} if dictionary.training.prepend_bos is None else {"prepend_bos": dictionary.training.prepend_bos}),
        **({} if dictionary.training.context_size is None else {"context_size": dictionary.training.context_size}),
        "neuronpedia_id": None,
    }
    if dictionary.is_transcoder:
        entries["hook_name_out"] = lens_hook(written)
    # where a module's output is multiplied before it is added to the stream, no module holds the product
    multiplied = architecture is not None and architecture.multiplier and written.tap is not Tap.RES
    if architecture is not None and not rescaled and (read.tap is Tap.Z or not multiplied):
        entries["hf_hook_name"] = hf_hook(read, architecture)
        if dictionary.is_transcoder:
            entries["hf_hook_name_out"] = hf_hook(written, architecture)
    kwargs = {
        "center_writing_weights": dictionary.preprocessing.center,
        "fold_value_biases": dictionary.training.view is View.PROCESSED,
    }
    if any(kwargs.values()):
        entries["model_from_pretrained_kwargs"] = {key: True for key, value in kwargs.items() if value}
    return entries


def trained_on(folder: Path) -> str:
    """The model named by folders that saeflow wrote; empty where they name none, or several.

    Other writers name models as TransformerLens does ("gpt2-small"), and the hub does not know these names.
    """
    named: set[str] = set()
    for path in sorted(folder.rglob(CONFIG)):
        try:
            metadata: Any = read_json(path).get("metadata")
        except BadFile:  # opening the folder leaves its dictionary out
            continue
        if isinstance(metadata, dict) and "saeflow_version" in metadata:
            named.add(str(metadata.get("model_name", "")))
    return named.pop() if len(named) == 1 else ""
