"""Neuronpedia's names for the features of a release, and their words, one feature at a time over its API. No torch.

    GET /api/feature/{model}/{source}/{index} -> explanations, activations, pos_str, frac_nonzero, …

Sources are named by the release's recipe (`labels` in sources/releases/*.toml), or by a pattern such as
`gemma-2-2b/{layer}-gemmascope-{part}-16k`. Answers are kept on disk. This client was written from the API's public
documentation and code, and never run against the service itself: see docs/labels.md. A key from the environment
(NEURONPEDIA_API_KEY) is sent if there is one; reading needs none. For whole sources, see `exports`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from saeflow.errors import BadFile, InvalidArgument, UnknownRelease, Unreachable, nearest
from saeflow.files import add_sha256, cache_folder, check_sha256, write_atomic
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.http import Fetcher
from saeflow.labels.words import AFTER, BEFORE, Context, FeatureWords, label_of, sentence_span
from saeflow.reading import parse_json, read_bytes
from saeflow.sources.releases import CANONICAL, is_release, known_releases, read_release

BASE_URL: Final = "https://www.neuronpedia.org"
KEY: Final = "NEURONPEDIA_API_KEY"
PER_HOUR: Final = 25_000
"""Requests per hour that the service allows."""

CONTEXTS: Final = 4
TOKENS: Final = 10

_OFFLINE: Final = ("SAEFLOW_OFFLINE", "HF_HUB_OFFLINE")
_KEPT: Final = (
    "modelId",
    "layer",
    "index",
    "explanations",
    "activations",
    "pos_str",
    "neg_str",
    "pos_values",
    "frac_nonzero",
    "maxActApprox",
)
_SPACES: Final = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n", "↵": "\n"})
_PATTERN: Final = re.compile(r"(?P<model>[A-Za-z0-9][\w.-]*)/(?P<source>[\w.{}-]+)")
_PLACEHOLDER: Final = re.compile(r"\{(layer|next|part)\}")
_LAYER: Final = re.compile(r"\{(layer|next)\}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """A set of features as Neuronpedia names it: the ids of its model and of the source."""

    model: str
    id: str

    def __post_init__(self) -> None:
        """Refuse an id that cannot be part of an address or a file name."""
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
        patterns: for other sites, by part: an id that contains `{layer}`, or `{next}` for the layer + 1.
    """

    model: str
    named: Mapping[Site, str] = field(default_factory=dict[Site, str])
    patterns: Mapping[Part, str] = field(default_factory=dict[Part, str])

    def at(self, site: Site) -> Source | None:
        """The source of a site; None if it has none."""
        if site in self.named:
            return Source(self.model, self.named[site])
        pattern = self.patterns.get(site.part)
        if pattern is None:
            return None
        return Source(self.model, pattern.format(layer=site.layer, next=site.layer + 1))


def sources_of(release: str, pattern: str = "") -> Sources:
    """The sources of a release, as named by its recipe or by a pattern.

    Args:
        release: the name of a release, such as "gemma-scope-2b" or "gemma-scope-2b@width=65k".
        pattern: "MODEL/SOURCE" with `{layer}` (or `{next}`) and, unless all parts share one, `{part}`.

    Raises:
        UnknownRelease: when neither names them.
        InvalidArgument: when the pattern is malformed, the release has another L0 than Neuronpedia shows, or its labels
            are of several models.
    """
    if pattern:
        found = _PATTERN.fullmatch(pattern)
        plain = _PLACEHOLDER.sub("", pattern)
        if found is None or "{" in plain or "}" in plain or not _LAYER.search(found["source"]):
            raise InvalidArgument(
                f"{pattern!r} names no sources. Write MODEL/SOURCE with {{layer}} and {{part}} in it: "
                "'gemma-2-2b/{layer}-gemmascope-{part}-16k'."
            )
        return Sources(found["model"], patterns={p: found["source"].replace("{part}", p.value) for p in Part})
    recipe = read_release(release) if is_release(release) else None
    named = {site: entry.labels for site, entry in recipe.sites.items() if entry.labels} if recipe else {}
    if recipe is None or not named:
        raise UnknownRelease(
            f"Nothing says what Neuronpedia calls the features of {release!r}.{nearest(release, known_releases())} "
            "Give a pattern (--neuronpedia-source on the command line): 'gemma-2-2b/{layer}-gemmascope-{part}-16k'."
        )
    if recipe.chosen.get("l0", CANONICAL) != CANONICAL:
        raise InvalidArgument(
            f"{release} has L0 {recipe.chosen['l0']}, and Neuronpedia shows the canonical dictionaries, whose features "
            "are others. Leave l0 out, or make words of your own (saeflow labels make)."
        )
    models = {one.partition("/")[0] for one in named.values()}
    if len(models) != 1:
        raise InvalidArgument(f"the labels of {release} are of several models: {', '.join(sorted(models))}.")
    return Sources(models.pop(), {site: one.partition("/")[2] for site, one in named.items()})


def is_offline() -> bool:
    """Whether the environment asks to work without a network: SAEFLOW_OFFLINE or HF_HUB_OFFLINE."""
    return any(os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"} for name in _OFFLINE)


class Neuronpedia:
    """The features the service knows, requested one at a time and kept.

    A kept answer is read from disk from then on. A feature that the service does not know is requested again, because
    someone may label it.
    """

    def __init__(
        self,
        *,
        base_url: str = BASE_URL,
        cache: Path | None = None,
        key: str | None = None,
        offline: bool | None = None,
        explainer: str = "",
        fetcher: Fetcher | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            base_url: the address of the service, or of a stand-in.
            cache: folder of kept answers; in saeflow's cache when None.
            key: sent as X-Api-Key; taken from the environment when None.
            offline: answer from disk only; taken from the environment when None.
            explainer: prefer explanations by a model whose name contains this.
            fetcher: makes the requests; at most 25,000 an hour when None.
        """
        self._base = base_url.rstrip("/")
        self._cache = cache_folder() / "neuronpedia" / "features" if cache is None else cache
        self.offline = is_offline() if offline is None else offline
        self._explainer = explainer
        found = os.environ.get(KEY, "") if key is None else key
        self._fetcher = fetcher or Fetcher(headers={"X-Api-Key": found} if found else {}, per_hour=PER_HOUR)

    @property
    def has_any(self) -> bool:
        """Whether any answer was kept."""
        return self._cache.is_dir()

    def raw(self, source: Source, index: int, *, refresh: bool = False) -> dict[str, Any] | None:
        """What the service says about a feature, in its own fields; None if it knows no feature of that index.

        Args:
            source: which set of features.
            index: the feature's row.
            refresh: ask again even if an answer was kept.

        Raises:
            Unreachable: when the service must be asked and does not answer, or must not be asked (offline).
            BadFile: when the answer does not describe this feature.
        """
        path = self._cache / source.model / source.id / f"{index}.json"
        if path.is_file() and not refresh:
            try:
                return _checked(check_sha256(read_bytes(path)), source, index, str(path))
            except (BadFile, ValueError):
                path.unlink()  # requested again below
        url = f"{self._base}/api/feature/{source}/{index}"
        if self.offline:
            raise Unreachable(
                f"feature {index} of {source} is not kept on this machine, and saeflow is offline. Unset "
                f"{' and '.join(_OFFLINE)}, or leave out --offline, to fetch {url}."
            )
        data = self._fetcher.get(url)
        if data is None or data.strip() in (b"", b"null"):
            return None
        fields = _checked(data, source, index, url)
        kept = json.dumps({name: fields[name] for name in _KEPT if name in fields})
        write_atomic(path, add_sha256(kept.encode()))
        return fields

    def feature(self, source: Source, index: int, *, refresh: bool = False) -> FeatureWords | None:
        """What the service says about a feature, as words; None if it knows nothing.

        Raises:
            Unreachable: when the service must be asked and does not answer, or must not be asked (offline).
            BadFile: when the answer does not describe this feature.
        """
        fields = self.raw(source, index, refresh=refresh)
        return None if fields is None else words_of(fields, f"feature {index} of {source}", explainer=self._explainer)

    def words(self, sources: Sources) -> NeuronpediaWords:
        """The words of a release, requested one feature at a time."""
        return NeuronpediaWords(self, sources)


@dataclass(frozen=True)
class NeuronpediaWords:
    """Words of a release from the API. Offline, only kept answers are known."""

    api: Neuronpedia
    sources: Sources

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """What is known of `feature`; None if nothing is, or if saeflow is offline and it was never requested.

        Raises:
            Unreachable: when the service must be asked and does not answer.
            BadFile: when an answer does not describe this feature.
        """
        source = self.sources.at(feature.site)
        if source is None:
            return None
        try:
            return self.api.feature(source, feature.index)
        except Unreachable:
            if self.api.offline:
                return None
            raise

    def site(self, site: Site) -> list[FeatureWords | None]:  # noqa: ARG002 - the protocol's signature
        """Nothing: a whole site is fetched with `exports`."""
        return []


def words_of(fields: Mapping[str, Any], where: str, *, explainer: str = "") -> FeatureWords:
    """Words from the fields of Neuronpedia.

    The label is the explanation with the best score if any has one, else the first; with `explainer`, the first by a
    model whose name contains it. Contexts are the strongest distinct ones.

    Raises:
        BadFile: when a field is malformed; the message begins with `where`.
    """
    try:
        tokens, contexts = contexts_of(fields.get("activations") or ())
        label, by = explanation_of(fields.get("explanations") or (), explainer)
        return FeatureWords(
            label=label or label_of(tokens),
            tokens=tokens,
            promotes=lens_of(fields, "pos_str"),
            suppresses=lens_of(fields, "neg_str"),
            contexts=contexts,
            frequency=frequency_of(fields),
            by=by,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(f"{where}: these are no fields of Neuronpedia ({error!r}). Fetch it again.") from None


def lens_of(fields: Mapping[str, Any], name: Literal["pos_str", "neg_str"]) -> tuple[str, ...]:
    """The tokens that a feature raises or lowers most in the logit lens, except pure whitespace.

    Raises:
        TypeError: when it is not a list of texts.
    """
    return tuple(token for token in map(plain, fields.get(name) or ()) if token.strip())[:TOKENS]


def frequency_of(fields: Mapping[str, Any]) -> float | None:
    """`frac_nonzero`: the share of tokens the feature is active on; None if it is missing.

    Raises:
        ValueError: when it is not a share.
    """
    found = fields.get("frac_nonzero")
    if found is None:
        return None
    share = float(found)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"frac_nonzero = {found}")
    return share


def contexts_of(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], tuple[Context, ...]]:
    """The tokens a feature fires on most strongly and the strongest contexts, from rows of activations.

    Raises:
        KeyError: for a row without tokens or values.
        TypeError: when they are not lists of texts and numbers.
        ValueError: when a row has more or fewer values than tokens, or none.
    """
    passages = sorted(map(passage_of, rows), key=lambda passage: -passage[0])
    firing = [(top, context) for peak, top, context in passages if peak > 0]
    distinct: dict[str, Context] = {}
    for _, context in firing:
        distinct.setdefault("".join(context.tokens), context)
    return tuple(dict.fromkeys(top for top, _ in firing))[:TOKENS], tuple(distinct.values())[:CONTEXTS]


def passage_of(row: Mapping[str, Any]) -> tuple[float, str, Context]:
    """The strongest activation of a row, its token, and the passage around it.

    Raises:
        KeyError: for a row without tokens or values.
        TypeError: when they are not lists of texts and numbers.
        ValueError: when there are more or fewer values than tokens, or none.
    """
    tokens, values = row["tokens"], row["values"]
    if len(tokens) != len(values) or not tokens:
        raise ValueError(f"{len(tokens)} tokens with {len(values)} values")
    top = max(range(len(values)), key=values.__getitem__)
    first, last = max(0, top - BEFORE), top + AFTER + 1
    shown = tuple(map(plain, tokens[first:last]))
    span = sentence_span(shown, top - first)
    context = Context(
        shown[span],
        tuple(round(max(float(value), 0.0), 3) for value in values[first:last][span]),
        str(row.get("dataSource") or ""),
    )
    return float(values[top]), shown[top - first], context


def plain(token: str) -> str:
    """A token as text: vocabulary marks for spaces and line breaks become the characters they stand for.

    Raises:
        TypeError: for a value that is not text.
    """
    if not isinstance(token, str):  # pyright: ignore[reportUnnecessaryIsInstance] - from a file
        raise TypeError(f"{token!r} is no token")
    return token.translate(_SPACES)


def explanation_of(rows: Sequence[Mapping[str, Any]], explainer: str = "") -> tuple[str, str]:
    """The explanation to show, on one line, and the model that wrote it; two empty strings if there is none.

    Raises:
        KeyError: for a score without a value.
        TypeError: when a field has another type.
        ValueError: when a score is not a number.
    """
    explanations = [
        (" ".join(str(row["description"]).split()), str(row.get("explanationModelName") or "a person"), _score(row))
        for row in rows
        if row.get("description")
    ]
    preferred = [row for row in explanations if explainer and explainer in row[1]]
    best = preferred or sorted(explanations, key=lambda row: row[2], reverse=True)
    return best[0][:2] if best else ("", "")


def _score(row: Mapping[str, Any]) -> float:
    """An explanation's best score among those from 0 to 1; -1 without one. Scores of all kinds count alike."""
    found = [float(score["value"]) for score in row.get("scores") or () if score.get("value") is not None]
    return max((value for value in found if 0.0 <= value <= 1.0), default=-1.0)


def _checked(data: bytes, source: Source, index: int, where: str) -> dict[str, Any]:
    """The answer as an object, checked to be about the requested feature."""
    try:
        fields: Any = parse_json(data)
    except ValueError as error:
        raise BadFile(f"{where} holds no JSON ({error}). Check the address, and fetch it again.") from None
    about = {"modelId": source.model, "layer": source.id, "index": str(index)}
    if not isinstance(fields, dict) or any(str(fields.get(name, said)) != said for name, said in about.items()):
        raise BadFile(f"{where} is not about feature {index} of {source}. Check the address, and fetch it again.")
    if not any(name in fields for name in ("explanations", "activations", "pos_str", "frac_nonzero")):
        raise BadFile(f"{where} holds nothing that describes a feature. Check the address, and fetch it again.")
    return cast("dict[str, Any]", fields)
