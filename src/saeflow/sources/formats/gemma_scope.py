"""Gemma Scope: params.npz (Gemma 2), and config.json with params.safetensors (Gemma Scope 2, Gemma 3).

    W_enc [d_in n_features]   W_dec [n_features d_in]   b_enc   b_dec   threshold      (Lieberum et al. 2024,
    pre = h @ W_enc + b_enc;  acts = relu(pre) * (pre > threshold)                      arXiv 2408.05147)

`b_dec` is not subtracted from the input. Attention SAEs read z, the head outputs before `o_proj`. An .npz does
not state its site, so the site is taken from the path:
`.../gemma-scope-2b-pt-res/.../layer_24/width_16k/average_l0_73/params.npz`. Gemma Scope transcoders read the
MLP's input before the gain of its norm, h / rms(h); Gemma Scope 2 transcoders read it after the gain, and may
add `h @ affine_skip_connection` [d_in d_out]. A Gemma Scope 2 folder without config.json is identified by its
path: `.../resid_post/layer_7_width_16k_l0_medium/params.safetensors`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saeflow.errors import UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.activations import JumpReLU
from saeflow.sources.dictionary import PLAIN, Dictionary, Norm, Preprocessing, Tap
from saeflow.sources.formats.configs import read_json
from saeflow.sources.formats.file_weights import FileWeights, Stored
from saeflow.sources.formats.hook_names import place_of_hooks
from saeflow.sources.formats.remote_tensors import open_tensors
from saeflow.sources.formats.tensors import TensorFile

PARAMS = "params.npz"
CONFIG_2 = "config.json"
PARAMS_2 = "params.safetensors"
_TAPS = {Part.RES: Tap.RES, Part.MLP: Tap.MLP, Part.ATT: Tap.Z}
_REPO = re.compile(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att|transcoders)")
_LAYER = re.compile(r"layer_(\d+)")
_PART = re.compile(r"res|mlp|att|transcoders")
_FOLDER_2 = re.compile(r"layer_(\d+)_width_\w+_l0_\w+")
_HOOKS_2 = {
    "resid_post": ("model.layers.{}.output", None),
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm.output", None),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", None),
    "transcoder": (
        "model.layers.{}.pre_feedforward_layernorm.output",
        "model.layers.{}.post_feedforward_layernorm.output",
    ),
}
_MODEL_2 = "gemma-3"
_SKIP = "affine_skip_connection"


def read_gemma_scope(file: Path, site: Site | None = None) -> Dictionary:
    """Open the dictionary in a params.npz; reads headers only. `site` overrides the site in the path.

    Raises:
        BadFile: when the file does not follow the format.
        UnsupportedFormat: when the path gives no site and `site` is None, or a transcoder is given a site that is
            not an MLP's.
    """
    kind = _kind_of_path(file)
    place = site if site is not None else _site_of_path(file, kind)
    if kind != "transcoders":
        return _dictionary(place, _TAPS[place.part], open_tensors(file))
    if place.part is not Part.MLP:
        raise UnsupportedFormat(f"{file}: a transcoder writes what an MLP writes, not {place}. Pass its mlp site.")
    return _dictionary(place, Tap.MID, open_tensors(file), Preprocessing(norm=Norm.RESCALE))


def read_gemma_scope_2(folder: Path, site: Site | None = None) -> Dictionary:
    """Open the dictionary in a Gemma Scope 2 folder; reads headers only. `site` overrides config.json.

    Raises:
        BadFile: when a file does not follow the format.
        UnsupportedFormat: when the dictionary sits at no site, or reads one layer and writes to others.
    """
    path = folder / CONFIG_2
    config = read_json(path) if path.is_file() else _config_of_path(folder)
    read, written = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if read is None and site is not None:
        return _dictionary(site, _TAPS[site.part], open_tensors(folder / PARAMS_2))
    hooks = str(read), str(read if written is None else written)
    place, tap, norm = place_of_hooks(*hooks, _MODEL_2, str(path), site)
    return _dictionary(place, tap, open_tensors(folder / PARAMS_2), Preprocessing(norm=norm))


def _dictionary(site: Site, tap: Tap, file: TensorFile, preprocessing: Preprocessing = PLAIN) -> Dictionary:
    def name(key: str) -> str:  # some files spell the matrices w_enc and w_dec
        return key.lower() if key.lower() in file.shapes else key

    layout = {key: Stored(name(key)) for key in ("b_enc", "W_dec", "b_dec", "threshold")}
    layout["W_enc"] = Stored(name("W_enc"), transposed=True)
    if _SKIP in file.shapes:
        layout["W_skip"] = Stored(_SKIP, transposed=True)
    weights = FileWeights(file, layout, transcoder=tap.is_read_only)
    return Dictionary.reading(
        site,
        tap=tap,
        weights=weights,
        activation=lambda: JumpReLU(weights.vector("threshold")),
        preprocessing=preprocessing,
    )


def _kind_of_path(file: Path) -> str:
    """res, mlp, att or transcoders, from the repository's folder or else a folder of that name; empty for neither."""
    parents = file.absolute().parts[:-1]
    kinds = [found[1] for part in parents if (found := _REPO.search(part))]
    kinds = kinds or [part for part in parents if _PART.fullmatch(part)]
    return kinds[-1] if kinds else ""


def _site_of_path(file: Path, kind: str) -> Site:
    layers = [found[1] for part in file.absolute().parts[:-1] if (found := _LAYER.fullmatch(part))]
    if not layers or not kind:
        raise UnsupportedFormat(
            f"{file}: the path gives no site. Keep the folders of the release, such as "
            "gemma-scope-2b-pt-res/layer_24/width_16k/average_l0_73/params.npz, or pass site=... Embedding "
            "SAEs have no site."
        )
    return Site(int(layers[-1]), Part.MLP if kind == "transcoders" else Part(kind))


def _config_of_path(folder: Path) -> dict[str, Any]:
    """The hooks that config.json would state, derived from folder names."""
    found = _FOLDER_2.fullmatch(folder.absolute().name)
    kind = folder.absolute().parent.name.removesuffix("_all")
    if found is None or kind not in _HOOKS_2:
        raise UnsupportedFormat(
            f"{folder}: there is no {CONFIG_2}, and the path gives no site. Fetch {CONFIG_2} too, or keep the folders "
            "of the release, such as resid_post/layer_7_width_16k_l0_medium."
        )
    read, written = _HOOKS_2[kind]
    return {
        "hf_hook_point_in": read.format(found[1]),
        "hf_hook_point_out": None if written is None else written.format(found[1]),
    }
