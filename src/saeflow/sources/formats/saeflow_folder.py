"""Read and write saeflow's own folders: release.json and one safetensors file per site.

    release.json    {"format": "saeflow-dictionaries", "version": 1, "name": ..., "model": ...,
                     "sites": {"0/res": {"file": "0.res.safetensors", "tap": "res",
                                         "activation": {"kind": "jumprelu"},
                                         "training": {"prepend_bos": true, "context_size": 128}}}}
    0.res.safetensors   W_enc [n_features d_in], W_dec [n_features d_out], b_enc, b_dec, threshold where the
                        activation has one, W_skip [d_out d_in] where a transcoder has one; an int8 matrix comes
                        with the factors of its rows, such as W_enc_scale [n_features]

`release.json` is written last, by a rename, so a folder that has one is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, InvalidId, UnsupportedFormat
from saeflow.files import atomic_file, write_atomic
from saeflow.ids import Site
from saeflow.reading import read_json
from saeflow.sources.activations import (
    Activation,
    ActivationKind,
    BatchTopK,
    Function,
    JumpReLU,
    ReLU,
    TopK,
    kept_threshold,
)
from saeflow.sources.architectures import Tap, View
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing, TrainingInfo
from saeflow.sources.formats.file_weights import FileWeights, Stored
from saeflow.sources.formats.tensors import SafetensorsFile
from saeflow.sources.weights import row_peaks

FORMAT = "saeflow-dictionaries"
VERSION = 1
MANIFEST = "release.json"
_MATRICES = ("W_enc", "W_dec", "W_skip")
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
_SCALE = "_scale"


class ScaledRows(SafetensorsFile):
    """A safetensors file in which a matrix may be stored as integers, with the factors of its rows beside it."""

    def _read(self, name: str, part: tuple[slice, ...]) -> Tensor:
        if (scale := f"{name}{_SCALE}") not in self.shapes:
            return super()._read(name, part)
        if self.shapes[scale] != self.shapes[name][:1]:
            raise BadFile(
                f"{self.path}: tensor {scale!r} has shape {list(self.shapes[scale])}, expected one number for each "
                f"row of {name!r} {list(self.shapes[name])}. Fetch the file again."
            )
        return self._stored(name, part).to(torch.float32) * super()._read(scale, part[:1])[:, None]


@dataclass(frozen=True)
class Manifest:
    """The contents of release.json: the entry of each site, and why other entries were left out."""

    folder: Path
    name: str
    model: str
    sites: Mapping[Site, Mapping[str, Any]]
    left_out: Mapping[str, str]

    def open(self, site: Site) -> Dictionary:
        """Open the dictionary at a site; reads headers only.

        Raises:
            BadFile: when the entry or its file does not follow the format.
            KeyError: when the release has no such site.
        """
        # 1. the file and its tensors
        entry: Mapping[str, Any] = {"preprocessing": {}, "training": {}, **self.sites[site]}
        where = f"{self.folder / MANIFEST}, site {site}"
        name = _entry(entry, "file", str, where)
        if PurePath(name).name != name:
            raise BadFile(f"{where}: file {name!r} is no plain name. Files lie beside {MANIFEST}.")
        settings = _entry(entry, "activation", dict, where)
        kind = _member(ActivationKind, _entry(settings, "kind", str, where), where)
        stored = _NAMES + (("threshold",) if kind in (ActivationKind.JUMPRELU, ActivationKind.BATCHTOPK) else ())
        tap: Tap = _member(Tap, _entry(entry, "tap", str, where), where)
        file = ScaledRows(self.folder / name)
        stored += ("W_skip",) if "W_skip" in file.shapes else ()
        weights = FileWeights(file, {key: Stored(key) for key in stored}, transcoder=tap.is_read_only)

        # 2. the activation
        k = _entry(settings, "k", int, where) if kind is ActivationKind.TOPK else 0
        activations: dict[ActivationKind, Callable[[], Activation]] = {
            ActivationKind.RELU: ReLU,
            ActivationKind.TOPK: lambda: TopK(k),
            ActivationKind.JUMPRELU: lambda: JumpReLU(weights.vector("threshold")),
            ActivationKind.BATCHTOPK: lambda: kept_threshold(weights.vector("threshold"), where),
        }

        # 3. how h is preprocessed, and what is known of the training
        before = _entry(entry, "preprocessing", dict, where)
        if unknown := sorted(set(before) - {"subtract_b_dec", "center", "norm"}):
            raise UnsupportedFormat(f"{where}: preprocessing {unknown} is not known. Update saeflow.")
        norm = _member(Norm, str(before.get("norm", "none")), where)
        trained = _entry(entry, "training", dict, where)
        begins, context = trained.get("prepend_bos"), trained.get("context_size")
        known = isinstance(begins, bool | None) and isinstance(context, int | None)
        if set(trained) - {"view", "prepend_bos", "context_size"} or not known:
            raise UnsupportedFormat(f"{where}: training {dict(trained)!r} is not known. Update saeflow.")
        return Dictionary.reading(
            site,
            tap=tap,
            weights=weights,
            activation=activations[kind],
            preprocessing=Preprocessing(
                bool(before.get("subtract_b_dec", False)), bool(before.get("center", False)), norm
            ),
            training=TrainingInfo(_member(View, str(trained.get("view", "")), where), begins, context),
        )


def read_manifest(folder: Path) -> Manifest:
    """Read the release.json of a folder; no other file is opened.

    Raises:
        BadFile: when it is not JSON, or lacks an entry.
        UnsupportedFormat: when it has another format or version.
    """
    path = folder / MANIFEST
    try:
        data: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read as JSON ({error}). Fetch the folder again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        found = (data.get("format"), data.get("version")) if isinstance(data, dict) else type(data).__name__
        raise UnsupportedFormat(
            f"{path}: format and version are {found}, expected {(FORMAT, VERSION)}. Update saeflow if the "
            "version is newer."
        )
    entries = _entry(data, "sites", dict, str(path))
    sites: dict[Site, Mapping[str, Any]] = {}
    left_out: dict[str, str] = {}
    for text in entries:
        try:
            sites[Site.parse(text)] = _entry(entries, text, dict, str(path))
        except (InvalidId, BadFile) as error:
            left_out[text] = str(error)
    if left_out and not sites:
        raise BadFile(f"{path}: {next(iter(left_out.values()))}")
    name, model = (_entry(data, key, str, str(path)) for key in ("name", "model"))
    return Manifest(folder, name, model, dict(sorted(sites.items())), left_out)


def save_release(
    folder: Path | str,
    dictionaries: Mapping[Site, Dictionary],
    *,
    name: str,
    model: str,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write dictionaries as a saeflow folder; matrices in `dtype`, biases and thresholds in float32.

    With torch.int8 the entries of each row are rounded to 255 evenly spaced values. This takes a quarter of the space
    of float32, and a row has a cosine of 0.9999 with the row read back where none of its entries stands out.

    Each file is written under a temporary name and renamed, release.json last; an old release.json is removed
    first. Only one dictionary is in memory at a time if the mapping reads them on demand.

    Raises:
        InvalidArgument: when there is nothing to write, a matrix does not fit `dtype` (a value overflows, or a
            decoder row becomes all zeros), or an activation is a Python function.
        BadFile: when a dictionary read from disk is bad.
    """
    if not dictionaries:
        raise InvalidArgument(f"There is no dictionary to write to {folder}. Pass at least one site.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    sites: dict[str, dict[str, Any]] = {}
    for site in sorted(dictionaries):
        dictionary = dictionaries[site]
        file = f"{site.layer}.{site.part.value}.safetensors"
        tensors = _tensors(site, dictionary, dtype)
        with atomic_file(folder / file) as part:
            save_file(tensors, part)
        sites[str(site)] = _describe(dictionary, file)
        dictionary.unload()
    text = json.dumps({"format": FORMAT, "version": VERSION, "name": name, "model": model, "sites": sites}, indent=1)
    write_atomic(folder / MANIFEST, f"{text}\n".encode())


def _tensors(site: Site, dictionary: Dictionary, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in (*_NAMES, "W_skip"):
        tensor: Tensor | None = getattr(dictionary, name)
        if tensor is None:
            continue
        whole = tensor.detach().to("cpu", torch.float32).contiguous()
        if name not in _MATRICES:
            tensors[name] = whole
            continue
        if dtype is torch.int8:
            # the scale of a row is not finite where one of its values is not, and 0 for a row of zeros
            peak = tensors[name + _SCALE] = row_peaks(whole) / torch.iinfo(torch.int8).max
            steps = whole / torch.where(peak > 0, peak, 1.0)[:, None]
            tensors[name] = steps.nan_to_num().round().to(torch.int8)
        else:
            tensors[name] = whole.to(dtype)
            peak = row_peaks(tensors[name])
        if not bool(torch.isfinite(peak).all()) or (name == "W_dec" and bool(whole[peak == 0].any())):
            raise InvalidArgument(
                f"{name} of the dictionary at {site} does not fit {dtype}: a value overflows or a row "
                "becomes zeros. Save with dtype=torch.float32."
            )
    activation = dictionary.activation
    if isinstance(activation, Function):
        raise InvalidArgument(
            f"the activation at {site} is a function of Python, which no file can say. Make it in Python each time, or "
            "give one of saeflow.sources.activations."
        )
    if isinstance(activation, JumpReLU | BatchTopK):
        whole = activation.threshold.detach().to("cpu", torch.float32)
        tensors["threshold"] = whole.expand(dictionary.n_features).contiguous()
    return tensors


def _describe(dictionary: Dictionary, file: str) -> dict[str, Any]:
    activation, before, training = dictionary.activation, dictionary.preprocessing, dictionary.training
    settings: dict[str, Any] = {"kind": activation.kind.value}
    if isinstance(activation, TopK):
        settings["k"] = activation.k
    entry: dict[str, Any] = {"file": file, "tap": dictionary.tap.value, "activation": settings}
    if before != Preprocessing():
        entry["preprocessing"] = asdict(before) | {"norm": before.norm.value}
    trained = asdict(training) | {"view": training.view.value or None}
    if known := {key: value for key, value in trained.items() if value is not None}:
        entry["training"] = known
    return entry


def _entry(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = data.get(key)
    if not isinstance(value, kind):
        raise BadFile(f"{where}: entry {key!r} is {value!r}, expected {kind.__name__}. Write the release again.")
    return value


def _member(kind: Any, value: str, where: str) -> Any:
    if value not in [member.value for member in kind]:
        raise UnsupportedFormat(
            f"{where}: {kind.__name__} {value!r} is not known, expected one of {[m.value for m in kind]}. "
            "Update saeflow."
        )
    return kind(value)
