"""Which source of Neuronpedia holds the features of a site, and where words of a release are kept. No torch.

The names are those of the release's recipe (`labels` in sources/releases/*.toml), or of a pattern such as
`gemma-2-2b/{layer}-gemmascope-{part}-16k`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from saeflow.errors import InvalidArgument, UnknownRelease
from saeflow.files import PACK, cache_folder, folder_and_pattern
from saeflow.ids import Part, Site
from saeflow.labels.words import Merged, Words, WordsFolder, no_words, words_sites
from saeflow.sources.releases import CANONICAL, is_release, read_release

NEURONPEDIA: Final = "neuronpedia"
LOCAL: Final = "local"

_PATTERN: Final = re.compile(r"(?P<model>[A-Za-z0-9][\w.-]*)/(?P<source>[\w.{}-]+)")
_PLACEHOLDER: Final = re.compile(r"\{(layer|next|part)\}")
_LAYER: Final = re.compile(r"\{(layer|next)\}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """A set of features as Neuronpedia names it: its id of the model and of the source."""

    model: str
    id: str

    def __post_init__(self) -> None:
        """Refuse what is no part of an address or a file name."""
        for segment in (self.model, self.id):
            if not _SEGMENT.fullmatch(segment):
                raise InvalidArgument(
                    f"{segment!r} is no id of Neuronpedia. Ids are letters, digits, '.', '_' and '-': "
                    "'gemma-2-2b', '20-gemmascope-res-16k'."
                )

    def __str__(self) -> str:
        """`gemma-2-2b/20-gemmascope-res-16k`."""
        return f"{self.model}/{self.id}"


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of a release: site by site, or by a pattern for any site.

    Attributes:
        model: Neuronpedia's id of the model.
        named: the ids of sources, by site.
        patterns: for other sites, by part: an id with `{layer}`, or `{next}` for the layer + 1, in it.
    """

    model: str
    named: Mapping[Site, str] = field(default_factory=dict[Site, str])
    patterns: Mapping[Part, str] = field(default_factory=dict[Part, str])

    def at(self, site: Site) -> Source | None:
        """The source of a site; None for one that has none."""
        if site in self.named:
            return Source(self.model, self.named[site])
        pattern = self.patterns.get(site.part)
        if pattern is None:
            return None
        return Source(self.model, pattern.format(layer=site.layer, next=site.layer + 1))


def sources_of(release: str, pattern: str = "") -> Sources:
    """The sources of a release: as its recipe names them, or as a pattern does.

    Args:
        release: the name of a release, such as "gemma-scope-2b" or "gemma-scope-2b@width=65k".
        pattern: "MODEL/SOURCE" with `{layer}` (or `{next}`) and, unless all parts share one, `{part}`.

    Raises:
        UnknownRelease: when neither says it.
        InvalidArgument: when the pattern has another form, or the release is of another L0 than Neuronpedia shows.
    """
    if pattern:
        return _from_pattern(pattern)
    recipe = read_release(release) if is_release(release) else None
    told = {site: entry.labels for site, entry in recipe.sites.items() if entry.labels} if recipe else {}
    if recipe is None or not told:
        raise UnknownRelease(
            f"Nothing says what Neuronpedia calls the features of {release!r}. Give a pattern (--source on the command "
            "line): 'gemma-2-2b/{layer}-gemmascope-{part}-16k'."
        )
    if recipe.chosen.get("l0", CANONICAL) != CANONICAL:
        raise InvalidArgument(
            f"{release} has L0 {recipe.chosen['l0']}, and Neuronpedia shows the canonical dictionaries, whose features "
            "are others. Leave l0 out, or make words of your own (saeflow labels make)."
        )
    models = {one.partition("/")[0] for one in told.values()}
    if len(models) != 1:
        raise InvalidArgument(f"the labels of {release} are of several models: {', '.join(sorted(models))}.")
    return Sources(models.pop(), {site: one.partition("/")[2] for site, one in told.items()})


def words_folder(release: str | Path, origin: str) -> Path:
    """Where words of a release are kept: in saeflow's cache, apart for each origin ("neuronpedia", "local").

    A path gets a name of its own, of its last part and a digest, so that two folders of one name stay apart.
    """
    name, pattern = folder_and_pattern(str(release))
    if Path(name).exists():
        path = Path(name).absolute().resolve()
        told = f"{path}@{pattern}" if pattern else str(path)
        name = f"{path.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return cache_folder() / "words" / name.replace("/", "--").lstrip(".") / origin


def words_folders(release: str | Path, *, beside: Path | None = None) -> tuple[Path, ...]:
    """Every folder that holds words of a release, the most telling first.

    Args:
        release: "demo", the name of a release, or a folder.
        beside: a folder that may have words in `words`, such as that of an atlas.

    Raises:
        Nothing.
    """
    places: list[Path] = [] if beside is None else [beside / "words"]
    if str(release) == "demo":
        places.append(PACK / "atlas" / "words")
    elif Path(release).is_dir():
        places += [Path(release) / "words", Path(release)]
    places += [words_folder(release, origin) for origin in (NEURONPEDIA, LOCAL)]
    return tuple(dict.fromkeys(place for place in places if place.is_dir() and words_sites(place)))


def words_for(release: str | Path, *, beside: Path | None = None) -> Words:
    """The words of a release that are on this machine, from all places together; never asks the network.

    What one place does not know of a feature is taken from the next: words that lie beside an atlas, those
    fetched from Neuronpedia, those made here, and single features asked for before.

    Args:
        release: "demo", the name of a release, or a folder.
        beside: a folder that may have words in `words`, such as that of an atlas.

    Raises:
        Nothing.
    """
    from saeflow.labels.neuronpedia import Neuronpedia

    places: list[Words] = [WordsFolder(folder) for folder in words_folders(release, beside=beside)]
    api = Neuronpedia(offline=True)
    if api.has_any:
        with suppress(UnknownRelease, InvalidArgument):
            places.append(api.words(sources_of(str(release))))
    if not places:
        return no_words
    return places[0] if len(places) == 1 else Merged(tuple(places))


def _from_pattern(pattern: str) -> Sources:
    found = _PATTERN.fullmatch(pattern)
    plain = _PLACEHOLDER.sub("", pattern)
    if found is None or "{" in plain or "}" in plain or not _LAYER.search(found["source"]):
        raise InvalidArgument(
            f"{pattern!r} names no sources. Write MODEL/SOURCE with {{layer}} and {{part}} in it: "
            "'gemma-2-2b/{layer}-gemmascope-{part}-16k'."
        )
    return Sources(found["model"], patterns={p: found["source"].replace("{part}", p.value) for p in Part})
