"""Read dictionaries from disk: one module per format; `load` picks the reader by the files it finds.

    saeflow          release.json, one .safetensors per site            a mapping from site to Dictionary
    sae-lens v6      cfg.json, sae_weights.safetensors                one Dictionary
    Gemma Scope      layer_L/width_W/average_l0_N/params.npz          one
    Gemma Scope 2    config.json, params.safetensors                  one
    Llama Scope      hyperparams.json, checkpoints/final.safetensors  one
    sparsify         cfg.json, sae.safetensors                        one
    dictionary_learning  config.json, ae.pt                           one
    OpenMOSS         config.json, sae_weights.safetensors             one
    circuit-tracer   config.yaml, layer_L.safetensors                 one per file
    Qwen Scope       layerL.sae.pt                                    one per file
    Goodfire         ...-SAE-lL.pth                                   one per file

A .safetensors file may be sharded, `sae_weights-00001-of-00002.safetensors`.

Any other folder is searched for these. Opening reads only headers; each Dictionary reads a tensor at its first
use. A transcoder is a dictionary at the site it writes to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Final

from saeflow.errors import BadFile, InvalidArgument, UnknownSite, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    named_pt,
    openmoss,
    sae_lens,
    saeflow_folder,
    sparsify,
)
from saeflow.sources.formats.saeflow_folder import save_release
from saeflow.sources.formats.tensors import shards_of

__all__ = ["Found", "discover", "first_sentence", "left_out_sentence", "load", "save_release"]

Reader = Callable[[Path, Site | None], Dictionary]

_SUPPORTED: Final = (
    f"a saeflow folder ({saeflow_folder.MANIFEST}), sae-lens v6 ({sae_lens.CONFIG} and {sae_lens.WEIGHTS}), "
    f"Gemma Scope ({gemma_scope.PARAMS}), Gemma Scope 2 ({gemma_scope.CONFIG_2} and {gemma_scope.PARAMS_2}), "
    f"Llama Scope ({llama_scope.CONFIG} and {llama_scope.WEIGHTS.as_posix()}), EleutherAI sparsify "
    f"({sparsify.CONFIG} and {sparsify.WEIGHTS}), dictionary_learning ({dictionary_learning.WEIGHTS} and "
    f"{dictionary_learning.CONFIG}), OpenMOSS ({openmoss.CONFIG} and {openmoss.WEIGHTS}), circuit-tracer "
    f"({circuit_tracer.CONFIG} and layer_0.safetensors), Qwen Scope (layer0.sae.pt), Goodfire (...-SAE-l19.pth), or a "
    "folder that holds some of these. sae-lens:RELEASE is any release of sae-lens, through its own loader"
)
_FILES: Final[tuple[tuple[re.Pattern[str], Reader], ...]] = (
    (circuit_tracer.FILE, circuit_tracer.read_circuit_tracer),
    (circuit_tracer.CROSS_LAYER, circuit_tracer.refuse_cross_layer),
    (named_pt.QWEN_SCOPE, named_pt.read_qwen_scope),
    (named_pt.SAE_L, named_pt.read_sae_l),
)
"""Formats with one SAE per file, of which a folder may hold several."""


@dataclass(frozen=True)
class Found:
    """The dictionaries found under a folder.

    Attributes:
        openers: for each site, in order of computation, a function that opens its dictionary. Where several SAEs
            share the site, it raises InvalidArgument, naming them.
        left_out: why SAEs were left out, by their path relative to the folder searched, or by their entry in the
            manifest of a saeflow folder.
    """

    openers: Mapping[Site, Callable[[], Dictionary]]
    left_out: Mapping[str, str]


def load(path: Path | str, site: Site | None = None, *, pattern: str = "") -> Dictionary | Mapping[Site, Dictionary]:
    """Open what is at `path`: a Dictionary for a single SAE, a mapping from site to Dictionary for a folder of several.

    For a single SAE, `site` overrides the site stated by its files, or supplies a missing one. For a folder of
    several, `site` picks one, and `pattern` selects by folder name, as in `discover`.

    Raises:
        UnsupportedFormat: when no reader knows the files, or nothing states the site; the message lists formats.
        BadFile: when a file is truncated, lacks a tensor or has one of the wrong shape.
        UnknownSite: when `site` is given and a folder of several lacks it.
        InvalidArgument: when `path` does not exist, the pattern matches nothing, or several SAEs share a site.
    """
    path = Path(path)
    single = _single(path)
    if single is not None:
        reader, place = single
        return reader(place, site)
    found = discover(path, pattern)
    if site is None:
        return {place: make() for place, make in found.openers.items()}
    if site not in found.openers:
        raise UnknownSite(
            f"{path} has no dictionary at {site}. It has {', '.join(map(str, found.openers))}."
            f"{left_out_sentence(found.left_out)}"
        )
    return found.openers[site]()


def discover(path: Path | str, pattern: str = "") -> Found:
    """Find every dictionary under a folder. Reads headers only.

    An SAE that sits at no saeflow site, or whose file is bad, is left out without affecting the others.

    Args:
        path: a folder, or a file of one SAE.
        pattern: a shell pattern; keeps the SAEs whose folder path, or the end of it, matches, such as `*/trainer_1`.
            A saeflow folder has no subfolders; there the pattern is matched with sites, such as `*/res`.

    Raises:
        UnsupportedFormat: when nothing under the folder has a known format, or no SAE sits at a site.
        BadFile: when there is only one SAE and its file is bad.
        InvalidArgument: when `path` does not exist, or the pattern matches nothing.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidArgument(f"{path} does not exist. Check the path, or name a release.")
    if (path / saeflow_folder.MANIFEST).is_file():
        manifest = saeflow_folder.read_manifest(path)
        _check_pattern(path, pattern, [str(site) for site in manifest.sites])
        chosen = [site for site in manifest.sites if _fits(str(site), pattern)]
        return Found({site: partial(manifest.open, site) for site in chosen}, manifest.left_out)
    singles = {_name(path, place): (reader, place) for reader, place in _singles(path)}
    if not singles and path.suffix in (".gz", ".tgz", ".tar", ".zip", ".xz", ".bz2", ".zst", ".7z"):
        raise UnsupportedFormat(f"{path} is a packed file. Unpack it, and give the folder it holds.")
    if not singles:
        raise UnsupportedFormat(f"{path} is of no known format. Supported: {_SUPPORTED}.")
    _check_pattern(path, pattern, list(singles))
    at: dict[Site, dict[str, Dictionary]] = {}
    refused: dict[str, BadFile] = {}
    for name, (reader, place) in singles.items():
        if not _fits(name, pattern):
            continue
        try:
            dictionary = reader(place, None)
        except BadFile as error:
            refused[name] = error
        else:
            at.setdefault(dictionary.site, {})[name] = dictionary
    left_out = {name: str(error) for name, error in refused.items()}
    if not at:
        first = next(iter(refused.values()))
        raise (
            first
            if len(refused) == 1
            else UnsupportedFormat(
                f"{path} has no dictionary that can be opened.{left_out_sentence(left_out)} The first in full: {first}"
            )
        )
    return Found({site: partial(_only, path, site, at[site]) for site in sorted(at)}, left_out)


def left_out_sentence(left_out: Mapping[str, str], most: int = 3) -> str:
    """` Left out: embed (...).`, with the first sentence of each reason; empty where nothing was left out."""
    if not left_out:
        return ""
    named = [f"{name} ({first_sentence(why)})" for name, why in list(left_out.items())[:most]]
    more = f"; and {len(left_out) - most} more, which saeflow info lists" if len(left_out) > most else ""
    return f" Left out: {'; '.join(named)}{more}."


def first_sentence(why: str) -> str:
    """The first sentence of an error message, without the path it begins with."""
    return why.split(": ", 1)[-1].split(". ", maxsplit=1)[0].rstrip(".")


def _only(path: Path, site: Site, there: Mapping[str, Dictionary]) -> Dictionary:
    names = list(there)
    if len(names) > 1:
        like = names[0].replace(str(site.layer), "*", 1)
        raise InvalidArgument(
            f"{path} has {len(names)} dictionaries at {site}: {', '.join(names[:6])}{', ...' * (len(names) > 6)}. "
            f"Choose with a pattern of their folders: pattern={like!r} in Python, '{path}@{like}' on the command line."
        )
    return there[names[0]]


def _name(path: Path, place: Path) -> str:
    """The name that patterns are matched with: the folder of an SAE, or its file where the folder holds several."""
    folder = place.parent if place.name == gemma_scope.PARAMS else place
    return (folder.relative_to(path) if folder.is_relative_to(path) else Path()).as_posix()


def _fits(name: str, pattern: str) -> bool:
    return not pattern or fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")


def _check_pattern(path: Path, pattern: str, names: list[str]) -> None:
    if not any(_fits(name, pattern) for name in names):
        raise InvalidArgument(
            f"the pattern {pattern!r} fits none of the {len(names)} dictionaries of {path}: "
            f"{', '.join(names[:6])}{', ...' * (len(names) > 6)}. Give one that does."
        )


def _singles(path: Path) -> list[tuple[Reader, Path]]:
    if path.is_file():
        single = _single(path)
        return [] if single is None else [single]
    singles: list[tuple[Reader, Path]] = []
    for folder, below, files in os.walk(path, followlinks=True):
        below.sort()
        single = _single(Path(folder))
        if single is not None:
            singles.append(single)
            below.clear()
        else:
            singles += [found for name in sorted(files) if (found := _of_name(Path(folder, name))) is not None]
    return singles


def _single(path: Path) -> tuple[Reader, Path] | None:
    """The reader of the single SAE at `path`, a folder or one of its files, and the path to pass to that reader."""
    folder = path.parent if path.is_file() else path
    if path.is_file() and path.name == llama_scope.WEIGHTS.name and folder.name == llama_scope.WEIGHTS.parent.name:
        folder = folder.parent
    rules: tuple[tuple[tuple[Path | str, ...], Reader, Path], ...] = (
        ((sae_lens.CONFIG, sae_lens.WEIGHTS), sae_lens.read_sae_lens, folder),
        ((llama_scope.CONFIG, llama_scope.WEIGHTS), llama_scope.read_llama_scope, folder),
        ((gemma_scope.CONFIG_2, gemma_scope.PARAMS_2), gemma_scope.read_gemma_scope_2, folder),
        ((gemma_scope.PARAMS_2,), gemma_scope.read_gemma_scope_2, folder),
        ((gemma_scope.PARAMS,), gemma_scope.read_gemma_scope, folder / gemma_scope.PARAMS),
        ((sparsify.CONFIG, sparsify.WEIGHTS), sparsify.read_sparsify, folder),
        (
            (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
            dictionary_learning.read_dictionary_learning,
            folder,
        ),
        ((dictionary_learning.WEIGHTS,), dictionary_learning.read_dictionary_learning, folder),
        ((openmoss.CONFIG, openmoss.WEIGHTS), openmoss.read_openmoss, folder),
    )
    for files, reader, place in rules:
        mine = path.is_dir() or path in [folder / file for file in files]
        if mine and all((folder / file).is_file() or _is_in_parts(folder / file) for file in files):
            return reader, place
    if path.is_file() and (named := _of_name(path)) is not None:
        return named
    if path.is_file() and path.suffix == ".npz":
        return gemma_scope.read_gemma_scope, path
    return None


def _of_name(file: Path) -> tuple[Reader, Path] | None:
    """The reader of a file that holds a whole SAE, recognised by its name."""
    return next(((reader, file) for names, reader in _FILES if names.fullmatch(file.name)), None)


def _is_in_parts(file: Path) -> bool:
    return file.suffix == ".safetensors" and bool(shards_of(file))
