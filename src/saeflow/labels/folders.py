"""Where words of a release are kept, and how a folder of words describes itself. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from saeflow.errors import InvalidArgument, UnknownRelease
from saeflow.files import add_check, agrees_with_check, cache_folder, folder_and_pattern, pack_folder, write_atomic
from saeflow.labels.neuronpedia import Neuronpedia, sources_of
from saeflow.labels.words import Merged, Words, WordsFolder, no_words, words_sites
from saeflow.reading import read_json

NEURONPEDIA: Final = "neuronpedia"
LOCAL: Final = "local"
TRANSFERRED: Final = "transferred"

ABOUT: Final = "about.json"
"""The file in which a folder of words describes itself."""

FORMAT: Final = "saeflow-words"
VERSION: Final = 1


def words_folder(release: str | Path, origin: str) -> Path:
    """The folder in saeflow's cache for words of a release, by origin ("neuronpedia", "local", "transferred").

    A path is named by its last part and a digest, so that two folders of the same name stay apart.
    """
    name, pattern = folder_and_pattern(str(release))
    if Path(name).exists():
        path = Path(name).absolute().resolve()
        full = f"{path}@{pattern}" if pattern else str(path)
        name = f"{path.name}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
    return cache_folder() / "words" / name.replace("/", "--").lstrip(".") / origin


def words_folders(release: str | Path, *, beside: Path | None = None) -> tuple[Path, ...]:
    """Every folder that holds words of a release, in order of precedence.

    Args:
        release: "demo", the name of a release, or a folder.
        beside: a folder that may have words in its folder `words`, such as that of an atlas.
    """
    places: list[Path] = [] if beside is None else [beside / "words"]
    if (pack := pack_folder(str(release))) is not None:
        places.append(pack / "atlas" / "words")
    elif Path(release).is_dir():
        places += [Path(release) / "words", Path(release)]
    places += [words_folder(release, origin) for origin in (NEURONPEDIA, LOCAL, TRANSFERRED)]
    return tuple(dict.fromkeys(place for place in places if place.is_dir() and words_sites(place)))


def words_for(release: str | Path, *, beside: Path | None = None) -> Words:
    """The words of a release that are on this machine, merged from all places; never uses the network.

    What one place does not know about a feature is taken from the next: words next to an atlas, words fetched from
    Neuronpedia, words made here, labels transferred from another release, and single features requested before.

    Args:
        release: "demo", the name of a release, or a folder.
        beside: a folder that may have words in its folder `words`, such as that of an atlas.
    """
    places: list[Words] = [WordsFolder(folder) for folder in words_folders(release, beside=beside)]
    api = Neuronpedia(offline=True)
    if api.has_any:
        with suppress(UnknownRelease, InvalidArgument):
            places.append(api.words(sources_of(str(release))))
    if not places:
        return no_words
    return places[0] if len(places) == 1 else Merged(tuple(places))


def read_about(folder: Path, **facts: str) -> dict[str, Any]:
    """A folder's description: `facts` and its `sites`; no sites if it is missing, damaged or has other facts."""
    fresh: dict[str, Any] = {"format": FORMAT, "version": VERSION, **facts, "sites": {}}
    try:
        found = read_json(folder / ABOUT)
        same = all(found[name] == fresh[name] for name in fresh if name != "sites") and agrees_with_check(found)
        return cast("dict[str, Any]", found) if same and isinstance(found["sites"], dict) else fresh
    except (OSError, ValueError, KeyError, TypeError):
        return fresh


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Write a folder's description, whole or not at all."""
    write_atomic(folder / ABOUT, json.dumps(add_check(about), indent=1).encode())
