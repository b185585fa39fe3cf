"""Reading dictionaries from disk: one module a format, `load` picks by what lies there.

    saeflow          release.json, one .safetensors a site            a mapping from site to Dictionary
    sae-lens v6      cfg.json, sae_weights.safetensors                one Dictionary
    Gemma Scope      layer_L/width_W/average_l0_N/params.npz          one
    Gemma Scope 2    config.json, params.safetensors                  one
    Llama Scope      hyperparams.json, checkpoints/final.safetensors  one
    sparsify         cfg.json, sae.safetensors                        one
    dictionary_learning  config.json, ae.pt                           one

Any other folder is searched for these. Only headers are read; each Dictionary reads a tensor at its first
use. Transcoders are dictionaries at the site they write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from saeflow.errors import BadFile, InvalidArgument, UnknownSite, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.formats import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    sae_lens,
    saeflow_folder,
    sparsify,
)
from saeflow.sources.formats.saeflow_folder import save_release

__all__ = ["discover", "load", "save_release"]

Reader = Callable[[Path, Site | None], Dictionary]

_SUPPORTED: Final = (
    f"a saeflow folder ({saeflow_folder.MANIFEST}), sae-lens v6 ({sae_lens.CONFIG} and {sae_lens.WEIGHTS}), "
    f"Gemma Scope ({gemma_scope.PARAMS}), Gemma Scope 2 ({gemma_scope.CONFIG_2} and {gemma_scope.PARAMS_2}), "
    f"Llama Scope ({llama_scope.CONFIG} and {llama_scope.WEIGHTS.as_posix()}), EleutherAI sparsify "
    f"({sparsify.CONFIG} and {sparsify.WEIGHTS}), dictionary_learning ({dictionary_learning.WEIGHTS} and "
    f"{dictionary_learning.CONFIG}), or a folder that holds some of these"
)


def load(path: Path | str, site: Site | None = None) -> Dictionary | Mapping[Site, Dictionary]:
    """Read what lies at `path`: one Dictionary from the files of one SAE, a mapping from a folder of several.

    `site` says where a single SAE belongs when its files do not; for a folder of several it picks one.

    Raises:
        UnsupportedFormat: when no reader knows what is there, or no site can be told; the message lists
        formats. BadFile: when a file is truncated, lacks a tensor or has one of the wrong shape, or two SAEs
        claim one site. UnknownSite: when `site` is given and a folder of several lacks it.
        InvalidArgument: when `path` does not exist.
    """
    path = Path(path)
    single = _single(path)
    if single is not None:
        reader, place = single
        return reader(place, site)
    found = discover(path)
    if site is None:
        return {place: make() for place, make in found.items()}
    if site not in found:
        raise UnknownSite(f"{path} has no dictionary at {site}. It has {', '.join(map(str, found))}.")
    return found[site]()


def discover(path: Path | str) -> dict[Site, Callable[[], Dictionary]]:
    """Every site under a folder, in order, each with what opens its dictionary. Reads headers only.

    Raises:
        UnsupportedFormat: when nothing under the folder is of a known format.
        BadFile: when a file is bad, or two SAEs claim one site.
        InvalidArgument: when `path` does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidArgument(f"{path} does not exist. Check the path, or name a release.")
    if (path / saeflow_folder.MANIFEST).is_file():
        manifest = saeflow_folder.read_manifest(path)
        return {site: lambda site=site: manifest.open(site) for site in manifest.sites}
    found: dict[Site, tuple[Path, Dictionary]] = {}
    for reader, place in _singles(path):
        dictionary = reader(place, None)
        if dictionary.site in found:
            raise BadFile(
                f"{found[dictionary.site][0]} and {place} are both dictionaries at {dictionary.site}. Pass a "
                "folder with one a site."
            )
        found[dictionary.site] = (place, dictionary)
    if not found:
        raise UnsupportedFormat(f"{path} is of no known format. Supported: {_SUPPORTED}.")
    return {site: lambda made=found[site][1]: made for site in sorted(found)}


def _singles(path: Path) -> list[tuple[Reader, Path]]:
    if path.is_file():
        single = _single(path)
        return [] if single is None else [single]
    singles: list[tuple[Reader, Path]] = []
    for folder, below, _ in os.walk(path, followlinks=True):
        below.sort()
        single = _single(Path(folder))
        if single is not None:
            singles.append(single)
            below.clear()
    return singles


def _single(path: Path) -> tuple[Reader, Path] | None:
    """The reader of the one SAE at `path`, a folder or one of its files, and what to give it."""
    folder = path.parent if path.is_file() else path
    if (
        path.is_file()
        and path.name == llama_scope.WEIGHTS.name
        and folder.name == llama_scope.WEIGHTS.parent.name
    ):
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
    )
    for files, reader, place in rules:
        mine = path.is_dir() or path in [folder / file for file in files]
        if mine and all((folder / file).is_file() for file in files):
            return reader, place
    if path.is_file() and path.suffix == ".npz":
        return gemma_scope.read_gemma_scope, path
    return None
