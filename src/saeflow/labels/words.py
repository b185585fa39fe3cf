"""Words for features, one compressed file per site, read at first use.

A folder of words holds `{layer}.{part}.jsonl.gz`, with one line of JSON per row of the dictionary (null where
nothing is known). A graph asks for one feature of many sites, so that only the lines asked for are parsed:

    {"label": "...", "tokens": ["...", ...], "promotes": ["...", ...], "frequency": 0.01,
     "contexts": [{"tokens": [...], "values": [...], "source": "python"}, ...]}
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from saeflow.errors import BadFile
from saeflow.ids import FeatureId, Site


@dataclass(frozen=True, slots=True)
class Context:
    """A short passage a feature fires on: tokens, and its activation on each (0 where silent)."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class FeatureWords:
    """What is known of one feature.

    `label` is one line for a table or a node. `tokens` are those it fires on most strongly;
    `promotes` those its row raises most in the logit lens (the row through the final norm's gain and
    the unembedding); `frequency` is the share of tokens it is active on, None when unknown.
    """

    label: str
    tokens: tuple[str, ...] = ()
    promotes: tuple[str, ...] = ()
    contexts: tuple[Context, ...] = ()
    frequency: float | None = None


@runtime_checkable
class Words(Protocol):
    """Anything that knows words for features."""

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """What is known of `feature`, None when nothing is."""
        ...

    def site(self, site: Site) -> list[FeatureWords | None]:
        """Words of every row of a site, in order; empty when nothing is known there."""
        ...


@dataclass(frozen=True)
class WordsFolder:
    """Words read from a folder, a site at a time."""

    folder: Path

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """What the folder says of `feature`; None when it says nothing.

        Raises:
            BadFile: when the site's file cannot be read.
        """
        path = _path(self.folder, feature.site)
        lines = _lines(path)
        return _words(path, feature.index, lines[feature.index]) if feature.index < len(lines) else None

    def site(self, site: Site) -> list[FeatureWords | None]:
        """Words of every row of a site, in order; empty when the folder has none."""
        path = _path(self.folder, site)
        return [_words(path, row, line) for row, line in enumerate(_lines(path))]


def open_words(atlas_folder: Path) -> Words:
    """The words that lie beside an atlas, in its folder `words`; none when there is no such folder."""
    folder = atlas_folder / "words"
    return WordsFolder(folder) if folder.is_dir() else no_words


class _NoWords:
    """Knows nothing."""

    def get(self, feature: FeatureId) -> FeatureWords | None:  # noqa: ARG002 - the protocol's signature
        return None

    def site(self, site: Site) -> list[FeatureWords | None]:  # noqa: ARG002
        return []


no_words: Words = _NoWords()


def _path(folder: Path, site: Site) -> Path:
    return folder / f"{site.layer}.{site.part.value}.jsonl.gz"


@lru_cache(maxsize=128)
def _lines(path: Path) -> tuple[str, ...]:
    """Lines of a site's file, none when there is no file."""
    if not path.exists():
        return ()
    try:
        return tuple(gzip.decompress(path.read_bytes()).decode().splitlines())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BadFile(f"{path}: these words cannot be read ({error}). Fetch or build them again.") from None


def _words(path: Path, row: int, line: str) -> FeatureWords | None:
    try:
        told = cast("dict[str, Any] | None", json.loads(line))
        if told is None:
            return None
        contexts = tuple(
            Context(tuple(c["tokens"]), tuple(float(v) for v in c["values"]), c.get("source", ""))
            for c in told.get("contexts", ())
        )
        return FeatureWords(
            label=told["label"],
            tokens=tuple(told.get("tokens", ())),
            promotes=tuple(told.get("promotes", ())),
            contexts=contexts,
            frequency=told.get("frequency"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(
            f"{path}: line {row + 1} holds no words ({error!r}). Fetch or build them again."
        ) from None
