"""Files of a release on the Hugging Face hub: read tensor by tensor or fetched whole, or looked up without a network.

`open_entry` returns the path that a format's reader takes. It is a whole file in the hub's cache if that holds the
files already, if the format does not allow single tensors to be fetched (.pt), or if SAEFLOW_WHOLE_FILES is set.
Otherwise it is a pointer (`formats.remote_tensors`), and each tensor is fetched when it is read.
"""

from __future__ import annotations

import enum
import os
import shutil
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from saeflow.errors import BadFile, NoSpace, Unreachable
from saeflow.files import write_atomic
from saeflow.reading import read_bytes, read_text
from saeflow.sources.formats.remote_tensors import ENDINGS, read_pointer, tensors_here, unlink_pointer, write_pointer
from saeflow.sources.releases import ReleaseEntry
from saeflow.sources.remote.hub_file import REFUSALS, is_commit, is_offline, refused, resolve
from saeflow.sources.remote.transport import RangesIgnored, fetch_whole

WHOLE_FILES = "SAEFLOW_WHOLE_FILES"
"""An environment variable: if set to anything but 0, files are fetched whole."""
_DECODERS = ("W_dec", "w_dec", "decoder.weight")


class CacheState(enum.StrEnum):
    """How much of a dictionary's files is on this machine."""

    NO = "no"
    HEADERS = "headers"
    """Its sizes are known, but the decoder is not here."""
    DECODER = "W_dec only"
    """The decoder, which matching reads, is here, perhaps with other tensors, but not all."""
    YES = "yes"


def cache_state(entry: ReleaseEntry) -> CacheState:
    """How much of an entry is on this machine; uses no network."""
    if is_cached(entry):
        return CacheState.YES
    tree = _tree(entry)
    if tree is None or not all((tree / file).is_file() for file in entry.files):
        return CacheState.NO
    held: list[bool] = []
    decoder = False
    for file in (file for file in entry.files if file.endswith(ENDINGS)):
        found = tensors_here(tree / file)
        if found is None:
            return CacheState.NO
        held.append(all(found.values()))
        decoder = decoder or any(found.get(name, False) for name in _DECODERS)
    return CacheState.YES if held and all(held) else CacheState.DECODER if decoder else CacheState.HEADERS


def is_cached(entry: ReleaseEntry) -> bool:
    """Whether the hub's cache on this machine holds every file of an entry, whole; uses no network."""
    return all(
        isinstance(huggingface_hub.try_to_load_from_cache(entry.repo, file, revision=entry.revision), str)
        for file in entry.files
    )


def open_entry(entry: ReleaseEntry) -> Path:
    """The first file of an entry, or a pointer to it, with the others next to it; see the module docstring.

    Raises:
        Unreachable: when a file cannot be fetched, naming it.
        NoSpace: when a whole file does not fit on the disk.
        BadFile: when the headers of a file do not follow its format.
    """
    apart = any(file.endswith(ENDINGS) for file in entry.files)
    if not apart or os.environ.get(WHOLE_FILES, "0") != "0" or is_cached(entry):
        return fetch(entry)
    try:
        commit = _pointers(entry)
    except REFUSALS as error:
        if isinstance(error, Unreachable | NoSpace):
            raise
        code = getattr(getattr(error, "response", None), "status_code", None)
        if code in (401, 403, 404):
            raise refused(entry.files[0], entry.repo, error, revision=entry.revision) from error
        tree = _tree(entry)
        if tree is None or not all((tree / file).is_file() for file in entry.files):
            return fetch(entry)  # raises an error that says what is wrong, or finds the files after all
        return tree / entry.files[0]
    except RangesIgnored:
        return fetch(entry)
    return fetch(entry) if commit is None else _root(entry) / commit / entry.files[0]


def fetch(entry: ReleaseEntry) -> Path:
    """The first file of an entry, with the others next to it; fetched whole where the hub's cache lacks them.

    Raises:
        Unreachable: when a file cannot be fetched, naming it.
        NoSpace: when the dictionary is larger than the free space on the disk.
    """
    if entry.size is not None and not is_cached(entry):
        folder = next(path for path in (_root(entry), *_root(entry).parents) if path.is_dir() or path == path.parent)
        free = shutil.disk_usage(folder).free
        if free < entry.size.n_bytes:
            raise NoSpace(
                f"{entry.files[0]} of {entry.repo} is about {entry.size.n_bytes / 1e6:,.1f} MB, and "
                f"{free / 1e6:,.1f} MB are free on the disk of {folder}. Free some, or set HF_HUB_CACHE to a folder on "
                "a larger disk."
            )
    for file in entry.optional:
        try:
            fetch_whole(entry.repo, file, entry.revision)
        except EntryNotFoundError:  # the repository does not have it, or this machine has no network
            continue
        except REFUSALS:
            break  # fetching the required files will report why
    paths: list[Path] = []
    for file in entry.files:
        try:
            paths.append(fetch_whole(entry.repo, file, entry.revision))
        except REFUSALS as error:
            raise refused(file, entry.repo, error, revision=entry.revision) from error
    return paths[0]


def _pointers(entry: ReleaseEntry) -> str | None:
    """Write pointers to the large files of an entry and copies of the small ones; return their commit.

    Returns None where the hub does not say enough to pin a file to a commit.

    Raises:
        RangesIgnored: when the server sends whole files only.
        Unreachable, BadFile, and what `resolve` raises.
    """
    if is_offline():
        raise ConnectionError("HF_HUB_OFFLINE is set")
    large = [file for file in entry.files if file.endswith(ENDINGS)]
    found = [resolve(entry.repo, file, entry.revision) for file in large]
    commit = "" if found[0] is None else found[0].commit
    for file in found:
        if file is None or file.commit != commit:
            return None
        path = _root(entry) / commit / file.file
        try:
            pointer = read_pointer(path)
        except BadFile:
            path.unlink()
            pointer = None
        if pointer is None or pointer.file != file:
            unlink_pointer(path)
            write_pointer(path, file)
    if not is_commit(commit):
        return None
    tree = _root(entry) / commit
    for name in (*entry.optional, *(name for name in entry.files if name not in large)):
        if not (tree / name).is_file():
            try:
                whole = fetch_whole(entry.repo, name, commit)
            except EntryNotFoundError:
                if name in entry.optional:
                    continue
                raise
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(tree / name, read_bytes(whole))
    # without this folder, `hf cache` takes the repository's folder for a damaged one and does not remove it
    (_root(entry).parent / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    if entry.revision != commit:
        write_atomic(_root(entry) / "refs" / entry.revision, commit.encode())
    return commit


def _root(entry: ReleaseEntry) -> Path:
    """saeflow's folder inside the repository's folder in the hub's cache, so that both are removed together."""
    name = repo_folder_name(repo_id=entry.repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / name / "saeflow"


def _tree(entry: ReleaseEntry) -> Path | None:
    """The folder of the commit that the revision stood for when the hub last answered; None if it never did."""
    root = _root(entry)
    try:
        commit = read_text(root / "refs" / entry.revision).strip()
        return root / commit if is_commit(commit) else None
    except (OSError, ValueError):
        tree = root / PurePosixPath(entry.revision)
        return tree if tree.is_dir() else None
