"""EleutherAI sparsify folders: cfg.json and sae.safetensors, named by their hookpoint (`layers.3.mlp`).

    encoder.weight [n_features d_in]   encoder.bias   W_dec [n_features d_in]   b_dec   W_skip [d_in d_in] (optional)

    pre  = (h - b_dec) @ encoder.weight^T + encoder.bias;   acts = the k largest of relu(pre), the rest 0
    h'   = acts @ W_dec + b_dec  (+ h @ W_skip^T)

`num_latents` of 0 means d_in * expansion_factor. A transcoder reads the input of the MLP module and predicts its
output. Where cfg.json itself sets `transcode`, `b_dec` is not subtracted; older transcoders are recognised only by
the config.json of their run or by their skip, and subtract it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.activations import Activation, TopK
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Preprocessing, TrainingInfo
from saeflow.sources.formats.configs import count, read_json
from saeflow.sources.formats.file_weights import FileWeights, Stored, refused
from saeflow.sources.formats.hook_names import site_of_hook, tap_at, view_of_hook
from saeflow.sources.formats.remote_tensors import open_tensors
from saeflow.sources.formats.tensors import TensorFile

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae.safetensors"
RUN: Final = "config.json"
"""Next to the folders of the hookpoints; states the model, and in older runs whether they are transcoders."""
_SEED: Final = re.compile(r"seed\d+")
_NOT_READ: Final = ("embed_skip", "gram_lookup", "signed")


def read_sparsify(folder: Path, site: Site | None = None) -> Dictionary:
    """Open the dictionary in a sparsify folder; reads headers only. `site` overrides the folder's name.

    Raises:
        BadFile: when cfg.json or the weights do not follow the format.
        UnsupportedFormat: when its hookpoint does not denote a site, or a transcoder does not sit at an MLP.
    """
    # a run with several seeds has one folder per seed below that of the hookpoint
    hookpoint = folder.absolute()
    hookpoint = hookpoint.parent if _SEED.fullmatch(hookpoint.name) else hookpoint
    run = read_json(hookpoint.parent / RUN) if (hookpoint.parent / RUN).is_file() else {}
    return sparsify_dictionary(
        read_json(folder / CONFIG),
        open_tensors(folder / WEIGHTS),
        site,
        hookpoint=hookpoint.name,
        run=run,
        where=str(folder / CONFIG),
    )


def sparsify_dictionary(
    config: Mapping[str, Any],
    file: TensorFile,
    site: Site | None,
    *,
    hookpoint: str,
    run: Mapping[str, Any],
    where: str,
) -> Dictionary:
    """Make a dictionary from its configuration, the configuration of its run and its tensors; `where` is for messages.

    Raises:
        BadFile: when they do not fit together.
        UnsupportedFormat: when the hookpoint does not denote a site, or a transcoder does not sit at an MLP.
    """
    skip = "W_skip" in file.shapes
    transcodes = bool(config.get("transcode") or run.get("transcode") or (skip and "transcode" not in config))
    if site is None:
        site, tap = site_of_hook(hookpoint, str(run.get("model") or ""), where)
    else:
        tap = tap_at(site, hookpoint)
    if transcodes and site.part is not Part.MLP:
        raise UnsupportedFormat(
            f"{where}: a transcoder at {site}. Transcoders of MLPs are read alone. Use one of an MLP."
        )
    layout = {
        "W_enc": Stored("encoder.weight"),
        "b_enc": Stored("encoder.bias"),
        "W_dec": Stored("W_dec"),
        "b_dec": Stored("b_dec"),
        **({"W_skip": Stored("W_skip")} if skip else {}),
    }
    weights = FileWeights(file, layout)
    n_features, d_in = weights.shape
    stated = config.get("num_latents") or d_in * count(config, "expansion_factor", where)
    if (stated, config.get("d_in")) != (n_features, d_in):
        raise BadFile(
            f"{where}: says {stated} latents of width {config.get('d_in')}, and {weights.origin} holds {n_features} of "
            f"width {d_in}. Fetch both again."
        )
    return Dictionary.reading(
        site,
        tap=Tap.MLP_IN if transcodes else tap,
        weights=weights,
        activation=_activation(config, where),
        preprocessing=Preprocessing(subtract_b_dec=not config.get("transcode")),
        training=TrainingInfo(view_of_hook(hookpoint)),
    )


def _activation(config: Mapping[str, Any], where: str) -> Callable[[], Activation]:
    activation = config.get("activation", "topk")
    used = [name for name in _NOT_READ if config.get(name)]
    if activation != "topk" or used:
        return refused(
            f"{where}: activation {activation!r}{''.join(f', {name}' for name in used)}. Directions are known, "
            f"activations are not. Supported for them: activation topk without {', '.join(_NOT_READ)}."
        )
    return lambda: TopK(count(config, "k", where))
