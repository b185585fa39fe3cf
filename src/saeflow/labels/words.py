"""Words for features, one compressed JSON file per site, read at first use.

A folder of words holds `{layer}.{part}.json.gz`, each a list with one entry per row of the
dictionary (null where nothing is known):

    {"label": "...", "tokens": ["...", ...], "promotes": ["...", ...], "frequency": 0.01,
     "contexts": [{"tokens": [...], "values": [...], "source": "python"}, ...]}
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from saeflow.errors import BadFile
from saeflow.ids import FeatureId, Part, Site


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
        rows = _rows(self.folder, feature.layer, feature.part)
        if feature.index >= len(rows) or rows[feature.index] is None:
            return None
        return _words(cast("Mapping[str, Any]", rows[feature.index]))

    def site(self, site: Site) -> list[FeatureWords | None]:
        """Words of every row of a site, in order; empty when the folder has none."""
        return [None if r is None else _words(r) for r in _rows(self.folder, site.layer, site.part)]


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


@lru_cache(maxsize=128)
def _rows(folder: Path, layer: int, part: Part) -> Sequence[Mapping[str, Any] | None]:
    path = folder / f"{layer}.{part.value}.json.gz"
    if not path.exists():
        return ()
    try:
        return cast("list[Any]", json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError) as error:
        raise BadFile(
            f"{path}: the words of {layer}/{part} cannot be read ({error}). Fetch or build them again."
        ) from None


def _words(row: Mapping[str, Any]) -> FeatureWords:
    contexts = tuple(
        Context(tuple(c["tokens"]), tuple(float(v) for v in c["values"]), c.get("source", ""))
        for c in row.get("contexts", ())
    )
    return FeatureWords(
        label=row["label"],
        tokens=tuple(row.get("tokens", ())),
        promotes=tuple(row.get("promotes", ())),
        contexts=contexts,
        frequency=row.get("frequency"),
    )
