"""Gemma Scope: params.npz (Gemma 2), and config.json with params.safetensors (Gemma Scope 2, Gemma 3).

    W_enc [d_in n_features]   W_dec [n_features d_in]   b_enc   b_dec   threshold      (Lieberum et al. 2024,
    pre = h @ W_enc + b_enc;  acts = relu(pre) * (pre > threshold)                      arXiv 2408.05147)

`b_dec` is not subtracted from the input. Attention SAEs read z, the heads' outputs before `o_proj`. An .npz
says nothing of its site, so that is taken from its path:
`.../gemma-scope-2b-pt-res/.../layer_24/width_16k/average_l0_73/params.npz`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saeflow.errors import UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.activations import JumpReLU
from saeflow.sources.dictionary import Dictionary, Tap
from saeflow.sources.formats.hooks import site_of_hook
from saeflow.sources.formats.sae_lens import read_json
from saeflow.sources.formats.tensors import FileWeights, NpzFile, SafetensorsFile, Stored, TensorFile

PARAMS = "params.npz"
CONFIG_2 = "config.json"
PARAMS_2 = "params.safetensors"
_TAPS = {Part.RES: Tap.RES, Part.MLP: Tap.MLP, Part.ATT: Tap.Z}
_REPO = re.compile(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att|transcoders)")
_LAYER = re.compile(r"layer_(\d+)")
_PART = re.compile(r"res|mlp|att")


def read_gemma_scope(file: Path, site: Site | None = None) -> Dictionary:
    """The dictionary of a params.npz; reads headers only. `site` overrides what the path says.

    Raises:
        BadFile: when the file is not as the format says.
        UnsupportedFormat: when the path gives no site and `site` is None, or it is a transcoder.
    """
    place = site if site is not None else _site_of_path(file)
    return _dictionary(place, _TAPS[place.part], NpzFile(file))


def read_gemma_scope_2(folder: Path, site: Site | None = None) -> Dictionary:
    """The dictionary of a Gemma Scope 2 folder; reads headers only. `site` overrides config.json.

    Raises:
        BadFile: when a file is not as the format says.
        UnsupportedFormat: when it is a transcoder, has an affine skip, or sits at no site.
    """
    path = folder / CONFIG_2
    config: dict[str, Any] = read_json(path)
    read, written = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    file = SafetensorsFile(folder / PARAMS_2)
    if (written is not None and written != read) or "affine_skip_connection" in file.shapes:
        raise UnsupportedFormat(
            f"{path}: reads {read!r} and writes {written!r}. A transcoder is no dictionary of one site. Use "
            "an SAE."
        )
    if site is not None:
        return _dictionary(site, _TAPS[site.part], file)
    place, tap = site_of_hook(str(read), str(config.get("model_name") or "gemma-3"), str(path))
    return _dictionary(place, tap, file)


def _dictionary(site: Site, tap: Tap, file: TensorFile) -> Dictionary:
    def name(key: str) -> str:  # some files spell the matrices w_enc and w_dec
        return key.lower() if key.lower() in file.shapes else key

    layout = {key: Stored(name(key)) for key in ("b_enc", "W_dec", "b_dec", "threshold")}
    weights = FileWeights(file, layout | {"W_enc": Stored(name("W_enc"), transposed=True)})
    return Dictionary.reading(
        site, tap=tap, weights=weights, activation=lambda: JumpReLU(weights.threshold())
    )


def _site_of_path(file: Path) -> Site:
    parents = file.absolute().parts[:-1]
    layers = [found[1] for part in parents if (found := _LAYER.fullmatch(part))]
    # a folder named after the repository, or one that is only the part
    parts = [found[1] for part in parents if (found := _REPO.search(part))]
    parts = parts or [part for part in parents if _PART.fullmatch(part)]
    if not layers or not parts or parts[-1] == "transcoders":
        raise UnsupportedFormat(
            f"{file}: the path gives no site. Keep the folders of the release, such as "
            "gemma-scope-2b-pt-res/layer_24/width_16k/average_l0_73/params.npz, or pass site=... Embedding "
            "SAEs and transcoders have no site."
        )
    return Site(int(layers[-1]), Part(parts[-1]))
