"""Files of a release on the Hugging Face hub: fetched into its cache, or looked up there without a network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from saeflow.errors import Unreachable
from saeflow.sources.recipes import Entry


def is_cached(entry: Entry) -> bool:
    """Whether the hub's cache on this machine holds every file of an entry; asks no network.

    Raises:
        Nothing.
    """
    return all(
        isinstance(huggingface_hub.try_to_load_from_cache(entry.repo, file, revision=entry.revision), str)
        for file in entry.files
    )


def fetch(entry: Entry) -> Path:
    """The first file of an entry, with the others beside it; fetched where the cache lacks them.

    Raises:
        Unreachable: when a file cannot be fetched, naming it.
    """
    for file in entry.optional:
        try:
            _download(entry, file)
        except EntryNotFoundError:  # the repository has none, or this machine has no network
            continue
        except (OSError, HfHubHTTPError, HFValidationError):
            break  # the files that are needed will say why
    paths = [_fetched(entry, file) for file in entry.files]
    return paths[0]


def _fetched(entry: Entry, file: str) -> Path:
    try:
        return _download(entry, file)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise Unreachable(
            f"{file} of {entry.repo} (revision {entry.revision}) cannot be fetched ({_told(error)}). "
            "Check the network and that your account may read the repository (hf auth login), or pass a folder "
            "that holds the file already."
        ) from error


def _download(entry: Entry, file: str) -> Path:
    return Path(huggingface_hub.hf_hub_download(entry.repo, file, revision=entry.revision))


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
