"""Words for features, one compressed file per site, read at first use. No torch.

A folder of words holds `{layer}.{part}.jsonl.gz`, with one line of JSON per row of the dictionary (null where nothing
is known). A graph needs one feature of many sites, so only the requested lines are read:

    {"label": "...", "tokens": ["...", ...], "promotes": ["...", ...], "suppresses": ["...", ...], "frequency": 0.01,
     "contexts": [{"tokens": [...], "values": [...], "source": "python"}, ...], "by": "...", "score": 0.9,
     "spread": [{"tokens": [...], "values": [...], "source": "python", "quantile": 0.6}, ...],
     "histogram": {"width": 0.5, "counts": [40, 12, ...]}, "near": [[12, 0.71], ...]}

All fields but the label may be missing, as in files of older versions or from other sources. `lines` describes how the
lines are stored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any, Final, Protocol, cast, runtime_checkable

from saeflow.errors import BadFile
from saeflow.ids import FeatureId, Site
from saeflow.labels.lines import read_line, read_lines, write_lines
from saeflow.reading import parse_json

BEFORE: Final = 24
"""Maximum tokens of a context before its strongest one."""

AFTER: Final = 12
"""Maximum tokens of a context after its strongest one."""

_LEAST_BEFORE: Final = 9
_LEAST_AFTER: Final = 4
_SENTENCE_ENDS: Final = re.compile(r"[.!?…][\"'”’)\]]*\s*$|\n")

_IN_A_LABEL: Final = 4
_PROBED: Final = 32
"""Rows of a site that are read to find out whether its words state how often features fire."""


def sentence_span(tokens: Sequence[str], top: int) -> slice:
    """The tokens shown around `top`: its sentence, within `BEFORE` and `AFTER` tokens.

    A sentence that has just begun or is about to end says too little, so a few tokens beyond it are shown too.
    """
    start, stop = max(0, top - BEFORE), min(len(tokens), top + AFTER + 1)
    first = next((i + 1 for i in range(top - 1, start - 1, -1) if _SENTENCE_ENDS.search(tokens[i])), start)
    last = next((i + 1 for i in range(top, stop) if _SENTENCE_ENDS.search(tokens[i])), stop)
    return slice(min(first, max(0, top - _LEAST_BEFORE)), max(last, min(len(tokens), top + _LEAST_AFTER + 1)))


@dataclass(frozen=True, slots=True)
class Context:
    """A passage a feature fires on: tokens, and its activation on each (0 where silent).

    `quantile` is the share of the feature's activations that are weaker than the one the passage was drawn for, 0 to 1;
    None for a passage that is among the strongest.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    source: str = ""
    quantile: float | None = None


@dataclass(frozen=True, slots=True)
class ActivationHistogram:
    """How often a feature fires how strongly: `counts[i]` activations lie from `i * width` to `(i + 1) * width`."""

    width: float
    counts: tuple[int, ...]

    def quantile(self, value: float) -> float:
        """The share of activations below `value`, 0 to 1; those in its bin count as evenly spread."""
        place = min(int(value / self.width), len(self.counts) - 1)
        within = self.counts[place] * (value / self.width - place)
        return min(1.0, (sum(self.counts[:place]) + within) / max(1, sum(self.counts)))


@dataclass(frozen=True, slots=True)
class FeatureWords:
    """What is known of one feature.

    `label` is one line for a table or a node. `tokens` are those it fires on most strongly. `promotes` are the tokens
    its row raises most in the logit lens (the row through the final norm's gain and the unembedding; words made here
    rank logits divided by the norm of the token's own row), and `suppresses` those it lowers most, ranked in the same
    way. `frequency` is the share of tokens it is active on, None when unknown. `by` says what wrote the label: a model
    that explained it, or "" for a label made of the tokens. `score` is how well the label told held-out contexts from
    others, as balanced accuracy from 0 to 1 (`detection`), None when not measured. `spread` holds passages it fires on
    from strongly to weakly, one drawn at random from each quarter of its activations. `histogram` covers all its
    activations, None when unknown. `near` lists the rows of the same dictionary whose decoder rows have the highest
    cosine with its own, as (row, cosine).
    """

    label: str
    tokens: tuple[str, ...] = ()
    promotes: tuple[str, ...] = ()
    contexts: tuple[Context, ...] = ()
    frequency: float | None = None
    by: str = ""
    score: float | None = None
    suppresses: tuple[str, ...] = ()
    spread: tuple[Context, ...] = ()
    histogram: ActivationHistogram | None = None
    near: tuple[tuple[int, float], ...] = ()

    def filled(self, other: FeatureWords) -> FeatureWords:
        """These words with what is unknown taken from `other`; a label goes with its `by` and `score`."""
        labelled = self if self.label else other
        frequency = other.frequency if self.frequency is None else self.frequency
        return FeatureWords(
            labelled.label,
            self.tokens or other.tokens,
            self.promotes or other.promotes,
            self.contexts or other.contexts,
            frequency,
            labelled.by,
            labelled.score,
            self.suppresses or other.suppresses,
            self.spread or other.spread,
            self.histogram or other.histogram,
            self.near or other.near,
        )


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
    """Words read from a folder, one line or one site at a time."""

    folder: Path

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """What the folder says about `feature`; None if it says nothing.

        Raises:
            BadFile: when the site's file cannot be read.
        """
        path = words_path(self.folder, feature.site)
        line = read_line(path, feature.index)
        return None if line is None else _kept(line, f"{path}: line {feature.index + 1}")

    def site(self, site: Site) -> list[FeatureWords | None]:
        """Words of every row of a site, in order; empty when the folder has none.

        Raises:
            BadFile: when the site's file cannot be read.
        """
        path = words_path(self.folder, site)
        return [from_json(line, f"{path}: line {row + 1}") for row, line in enumerate(read_lines(path))]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that have words, in order of computation."""
        return words_sites(self.folder)


@dataclass(frozen=True)
class Merged:
    """Words from several places: what the first does not know about a feature is taken from the next."""

    places: tuple[Words, ...]

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """What the places together know of `feature`.

        Raises:
            BadFile: when a file of words cannot be read.
        """
        return self._filled([place.get(feature) for place in self.places])

    def site(self, site: Site) -> list[FeatureWords | None]:
        """Words of every row of a site that a place knows, in order.

        Raises:
            BadFile: when a file of words cannot be read.
        """
        by_place = [place.site(site) for place in self.places]
        rows = max(map(len, by_place), default=0)
        return [self._filled([words[row] for words in by_place if row < len(words)]) for row in range(rows)]

    @staticmethod
    def _filled(found: Sequence[FeatureWords | None]) -> FeatureWords | None:
        known = [words for words in found if words is not None]
        return reduce(FeatureWords.filled, known) if known else None


def silent(words: Words, feature: FeatureId) -> bool | None:
    """Whether a feature is dead: it fired on none of the texts its words were made from; None if that is unknown.

    A site whose words state how often features fire (its first rows are checked) covers every row, so a row without
    words never fired.

    Raises:
        BadFile: when a file of words cannot be read.
    """
    known = words.get(feature)
    if known is not None:
        return None if known.frequency is None else known.frequency == 0
    first = (words.get(FeatureId(feature.site, row)) for row in range(_PROBED))
    counted = [row.frequency is not None for row in first if row is not None]
    return True if counted and all(counted) else None


def open_words(atlas_folder: Path) -> Words:
    """The words next to an atlas, in its folder `words`; `no_words` if there is no such folder."""
    folder = atlas_folder / "words"
    return WordsFolder(folder) if folder.is_dir() else no_words


def write_words(folder: Path, site: Site, rows: Iterable[FeatureWords | None]) -> int:
    """Write the words of a site into a folder, one row per feature; returns the number of rows.

    Raises:
        OSError: when the folder cannot be written.
    """
    return write_lines(words_path(folder, site), map(to_json, rows))


def words_path(folder: Path, site: Site) -> Path:
    """The file of a site in a folder of words."""
    return folder / f"{site.layer}.{site.part.value}.jsonl.gz"


def words_sites(folder: Path) -> tuple[Site, ...]:
    """The sites a folder has words of, in order of computation; other files are ignored."""
    found: list[Site] = []
    for path in folder.glob("*.jsonl.gz"):
        with suppress(ValueError):
            found.append(Site.parse(path.name.removesuffix(".jsonl.gz").replace(".", "/")))
    return tuple(sorted(found))


def label_of(tokens: Sequence[str], n: int = _IN_A_LABEL) -> str:
    """A label of one line from a feature's strongest tokens: the first `n` that differ in more than case.

    Pure whitespace is written as an escape; a piece of a character, which cannot be shown, is left out.
    """
    kept: dict[str, str] = {}
    for token in tokens:
        word = " ".join(token.split()) or repr(token).strip("'")
        if "\ufffd" not in word:
            kept.setdefault(word.lower(), word)
    return ", ".join(list(kept.values())[:n])


def to_json(words: FeatureWords | None) -> str:
    """One line of a file of words. It is pure ASCII, so no character of a token can end the line."""
    if words is None:
        return "null"
    fields: dict[str, Any] = {
        "label": words.label,
        "tokens": words.tokens,
        "promotes": words.promotes,
        "frequency": words.frequency,
        "contexts": [_fields(context) for context in words.contexts],
    }
    if words.suppresses:
        fields["suppresses"] = words.suppresses
    if words.spread:
        fields["spread"] = [_fields(context) | {"quantile": context.quantile} for context in words.spread]
    if words.histogram is not None:
        fields["histogram"] = asdict(words.histogram)
    if words.near:
        fields["near"] = words.near
    if words.by:
        fields["by"] = words.by
    if words.score is not None:
        fields["score"] = words.score
    return json.dumps(fields, separators=(",", ":"), allow_nan=False)


def _fields(context: Context) -> dict[str, Any]:
    return {"tokens": context.tokens, "values": context.values, "source": context.source}


def from_json(line: str, where: str) -> FeatureWords | None:
    """The inverse of `to_json`.

    Raises:
        BadFile: when the line holds no words; the message begins with `where`.
    """
    if line == "null":
        return None
    try:
        fields = cast("dict[str, Any] | None", parse_json(line))
        if fields is None:
            return None
        histogram = fields.get("histogram")
        if not isinstance(fields["label"], str):
            raise TypeError(f"the label is {fields['label']!r}")
        frequency, score = fields.get("frequency"), fields.get("score")
        return FeatureWords(
            label=fields["label"],
            tokens=_texts(fields.get("tokens", ())),
            promotes=_texts(fields.get("promotes", ())),
            contexts=tuple(map(_context, fields.get("contexts", ()))),
            frequency=None if frequency is None else _number(frequency),
            by=str(fields.get("by", "")),
            score=None if score is None else _number(score),
            suppresses=_texts(fields.get("suppresses", ())),
            spread=tuple(map(_context, fields.get("spread", ()))),
            histogram=None
            if histogram is None
            else ActivationHistogram(_number(histogram["width"]), tuple(map(int, histogram["counts"]))),
            near=tuple((int(row), _number(cosine)) for row, cosine in fields.get("near", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{where} holds no words ({error!r}). Fetch or build them again.") from None


# a page asks several times for each feature of its graph, and graphs have at most a few hundred
_kept = lru_cache(maxsize=1024)(from_json)


class _NoWords:
    """Knows nothing."""

    def get(self, feature: FeatureId) -> FeatureWords | None:  # noqa: ARG002 - the protocol's signature
        return None

    def site(self, site: Site) -> list[FeatureWords | None]:  # noqa: ARG002
        return []


no_words: Words = _NoWords()
"""Words that know nothing, for whatever may be shown without any."""


def _texts(found: Any) -> tuple[str, ...]:
    if isinstance(found, str) or not set(map(type, found)) <= {str}:
        raise TypeError(f"{found!r} is no list of texts")
    return tuple(found)


def _context(found: Mapping[str, Any]) -> Context:
    quantile = found.get("quantile")
    return Context(
        _texts(found["tokens"]),
        _numbers(found["values"]),
        str(found.get("source", "")),
        None if quantile is None else _number(quantile),
    )


def _numbers(found: Any) -> tuple[float, ...]:
    values = tuple(map(float, found))
    if set(map(type, found)) <= {int, float} and math.isfinite(sum(values)):  # a release has millions of them
        return values
    return tuple(map(_number, found))


def _number(found: Any) -> float:
    value = float(found)
    if isinstance(found, bool | str) or not math.isfinite(value):
        raise TypeError(f"{found!r} is no finite number")
    return value
