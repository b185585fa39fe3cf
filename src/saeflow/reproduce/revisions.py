"""Which version of everything a reproduction read: commits of the repositories, and of the demo pack a checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub

from saeflow.files import PACK
from saeflow.reproduce.recipe import Recipe
from saeflow.sources.releases import is_release, read_release


def revisions(recipe: Recipe) -> dict[str, str]:
    """Repository -> commit, or the branch where no commit is known on this machine; asks no network.

    Raises:
        Nothing.
    """
    found: dict[str, str] = {}
    if recipe.release == "demo":
        found["demo pack"] = f"sha256 {hashlib.sha256((PACK / 'atlas' / 'atlas.json').read_bytes()).hexdigest()[:16]}"
    elif is_release(recipe.release):
        for entry in read_release(recipe.release).sites.values():
            found.setdefault(entry.repo, _commit(entry.repo, entry.files[0], entry.revision))
    if recipe.model.count("/") == 1 and not Path(recipe.model).exists():
        found[recipe.model] = _commit(recipe.model, "config.json", "main")
    return found


def _commit(repo: str, file: str, revision: str) -> str:
    """The commit whose file is in the cache; the revision as it was asked for where none is."""
    held = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
    if not isinstance(held, str):
        return revision
    parts = Path(held).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision


def is_held(model: str) -> bool:
    """Whether a language model is on this machine: the demo's, a folder or file, or weights in the hub's cache.

    Raises:
        Nothing.
    """
    if model == "demo" or Path(model).expanduser().exists():
        return True
    if model.count("/") != 1:
        return False
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(model, file), str) for file in weights)
