"""Words of whole sites from the public exports of Neuronpedia. No torch.

    plan = plan_fetch("gemma-scope-2b", sites, bucket)       # fetches lists; plan.to_fetch says how many bytes
    fetch_words(plan, bucket, words_folder("gemma-scope-2b", "neuronpedia"))

    v1/{model}/{source}/{explanations|features|activations}/batch-{n}.jsonl.gz

Files are listed with S3's XML interface (version 2), which Google's storage also speaks. A local folder with the same
tree, as made by `aws s3 sync --no-sign-request`, can stand in for the bucket.

Sites are processed one at a time: the files of a site are fetched, read, written as a file of words, and deleted. A
killed fetch resumes: sites already written are kept, complete files are read, and an incomplete one is continued.
Batches are sorted as text, "10" before "9", so any feature needs all batches of its source.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
import urllib.parse
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from saeflow.errors import BadFile, InvalidArgument, UnknownSite, Unreachable
from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.ids import Site
from saeflow.labels.folders import NEURONPEDIA, VERSION, read_about, write_about
from saeflow.labels.http import Fetcher, Received
from saeflow.labels.lines import is_whole
from saeflow.labels.neuronpedia import CONTEXTS, TOKENS, Source, Sources, frequency_of, lens_of, passage_of
from saeflow.labels.words import Context, FeatureWords, label_of, words_path, write_words
from saeflow.patience import LARGEST
from saeflow.plain_types import Progress
from saeflow.reading import PACKED_WRONG, gzip_lines, parse_json, read_bytes

BUCKET: Final = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
"""Where Neuronpedia keeps its exports."""

_MOST_PAGES: Final = 10_000


class ExportKind(enum.StrEnum):
    """What a file of the exports holds."""

    EXPLANATIONS = "explanations"
    """Descriptions: small."""
    FEATURES = "features"
    """How often a feature fires, and what it promotes; their histograms are not kept."""
    ACTIVATIONS = "activations"
    """Passages it fires on: far larger than the others."""


# A source may keep the explanations of each model in a separate folder, such as explanations-gpt-4o-mini.
_FILE: Final = re.compile(
    r"(?P<kind>explanations|features|activations)(-[\w.-]+)?/batch-(?P<number>[0-9]{1,9})\.jsonl\.gz"
)


@dataclass(frozen=True, slots=True)
class Export:
    """A file of a source: its kind, its key in the bucket and its size in bytes."""

    kind: ExportKind
    key: str
    size: int


@dataclass(frozen=True)
class Bucket:
    """Where exports are, and where fetched files are kept.

    Attributes:
        place: an address, or a folder with the same tree.
        folder: where lists and files go.
        fetcher: makes the requests.
        offline: use only what is in `folder`.
    """

    place: str
    folder: Path
    fetcher: Fetcher
    offline: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether the exports are on this machine."""
        return not self.place.startswith(("http://", "https://"))

    def exports(self, source: Source) -> tuple[Export, ...]:
        """The files of a source, by kind and number; empty if it has none.

        Raises:
            Unreachable: when the bucket does not answer or exist, or saeflow is offline and has no list.
            BadFile: when its list cannot be read.
        """
        prefix = f"v1/{source}/"
        list_path = self.folder / "lists" / source.model / f"{source.id}.json"
        if self.is_folder:
            root = Path(self.place)
            if not root.is_dir():
                raise Unreachable(f"{self.place} is neither a web address nor a folder. Give one that holds v1/.")
            files = sorted(path for path in (root / prefix).rglob("*.jsonl.gz") if path.is_file())
            listed = [(path.relative_to(root).as_posix(), path.stat().st_size) for path in files]
        elif not self.offline:
            listed = list(self._listed(prefix))
            write_atomic(list_path, add_sha256(json.dumps([[key, size] for key, size in listed]).encode()))
        else:
            try:
                listed = [(str(key), int(size)) for key, size in parse_json(check_sha256(read_bytes(list_path)))]
            except FileNotFoundError:
                raise Unreachable(
                    f"what files {source} has was never asked from this machine, and saeflow is offline. Fetch it "
                    "where there is a network."
                ) from None
            except (OSError, ValueError, TypeError) as error:
                raise BadFile(f"{list_path} is no list of files ({error!r}). Delete it, and fetch again.") from None
        found: list[tuple[ExportKind, str, int, Export]] = []
        for key, size in listed:
            named = _FILE.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
            if named is not None:
                kind = ExportKind(named["kind"])
                found.append((kind, key.rsplit("/", 1)[0], int(named["number"]), Export(kind, key, size)))
        return tuple(export for *_, export in sorted(found, key=lambda row: row[:3]))

    def is_here(self, export: Export) -> bool:
        """Whether a file is on this machine already."""
        path = self.path(export)
        return path.is_file() and path.stat().st_size == export.size

    def path(self, export: Export) -> Path:
        """Where a file is, or will be."""
        return (Path(self.place) if self.is_folder else self.folder) / export.key

    def fetch(self, export: Export, received: Received | None = None) -> Path:
        """The path of a file on this machine, fetched if needed.

        Raises:
            Unreachable: when it must be fetched and cannot be.
            BadFile: when it does not have the announced size.
        """
        path = self.path(export)
        if self.is_here(export) or self.is_folder:
            return path
        if self.offline:
            raise Unreachable(
                f"{export.key} is not on this machine, and saeflow is offline. Fetch it where there is a network."
            )
        url = f"{self.place.rstrip('/')}/{urllib.parse.quote(export.key)}"
        self.fetcher.download(url, path, size=export.size, received=received)
        return path

    def forget(self, export: Export) -> None:
        """Delete a fetched file; a folder that stands in for the bucket is never changed."""
        if not self.is_folder:
            self.path(export).unlink(missing_ok=True)

    def _listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Keys and sizes under a prefix, page by page."""
        token = ""
        for _ in range(_MOST_PAGES):
            query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
            url = f"{self.place.rstrip('/')}/?{urllib.parse.urlencode(query)}"
            data = self.fetcher.get(url)
            if data is None:
                raise Unreachable(f"{url} does not exist (404). Check the address of the bucket.")
            page, token = _page(data, url)
            yield from page
            if not token:
                return
        raise BadFile(f"the list of {self.place}/{prefix} does not end. Check the address of the bucket.")


def _page(data: bytes, url: str) -> tuple[list[tuple[str, int]], str]:
    """Keys and sizes of one page of a list, and the token of the next; no token on the last."""
    try:
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # a list has neither, and entities can grow without bound
            raise ValueError("it defines entities")
        root = ET.fromstring(data)  # noqa: S314 - without entities, see above
        if _name(root) != "ListBucketResult":
            raise ValueError(f"it is a {_name(root)}")
        found: list[tuple[str, int]] = []
        for entry in root:
            if _name(entry) == "Contents":
                fields = {_name(field): field.text or "" for field in entry}
                if not (fields["Size"].isdecimal() and int(fields["Size"][:19]) <= LARGEST):
                    raise ValueError(f"a file of {fields['Size'][:30]} bytes")
                found.append((fields["Key"], int(fields["Size"])))
        ends = {_name(field): field.text or "" for field in root}
        more = ends.get("IsTruncated", "false").strip().lower() == "true"
        return found, ends["NextContinuationToken"] if more else ""
    except (ET.ParseError, ValueError, KeyError) as error:
        raise BadFile(f"{url} is no list of files ({error}). Check the address of the bucket.") from None


def _name(element: ET.Element) -> str:
    """A tag without its namespace."""
    return element.tag.rsplit("}", 1)[-1]


_WIDEST: Final = 1 << 21
"""Maximum features of a source: larger numbers are not taken for an index."""


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What is fetched for one site."""

    site: Site
    source: Source
    exports: tuple[Export, ...]


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What is fetched for a release.

    Attributes:
        release: its name.
        sources: Neuronpedia's names for its sites.
        sites: the files of each site that has any.
        missing: sites for which Neuronpedia has nothing.
        size: bytes of all files.
        to_fetch: bytes of the files that are not on this machine.
    """

    release: str
    sources: Sources
    sites: tuple[SitePlan, ...]
    missing: tuple[Site, ...]
    size: int
    to_fetch: int


def plan_fetch(
    release: str,
    sources: Sources,
    sites: Iterable[Site],
    bucket: Bucket,
    *,
    kinds: Collection[ExportKind] = (ExportKind.EXPLANATIONS, ExportKind.FEATURES),
    progress: Progress | None = None,
) -> FetchPlan:
    """Find out what there is to fetch, and how large it is; fetches only lists, one or more per site.

    Args:
        release: its name, recorded in the folder of words.
        sources: Neuronpedia's names for its sites.
        sites: which sites.
        bucket: where exports are.
        kinds: which files; activations are far larger than the others, and give contexts and tokens.
        progress: called with (sites done, sites in all, site).

    Raises:
        InvalidArgument: when `kinds` is empty.
        UnknownSite: when no site has any file.
        Unreachable: when the bucket does not answer.
        BadFile: when a list cannot be read.
    """
    if not kinds:
        raise InvalidArgument(f"nothing is to be fetched. Name some of {', '.join(ExportKind)}.")
    asked = sorted(set(sites))
    plans: list[SitePlan] = []
    for done, site in enumerate(asked):
        if progress:
            progress(done, len(asked), str(site))
        source = sources.at(site)
        exports = () if source is None else tuple(e for e in bucket.exports(source) if e.kind in kinds)
        if source is not None and exports:
            plans.append(SitePlan(site, source, exports))
    if not plans:
        first = next((source for source in map(sources.at, asked) if source is not None), None)
        raise UnknownSite(
            f"Neuronpedia has no {' or '.join(sorted(kinds))} of any of the {len(asked)} sites of {release} that were "
            f"asked for (first source: {first}). Check the names of its sources."
        )
    exports = [export for plan in plans for export in plan.exports]
    there = {plan.site for plan in plans}
    return FetchPlan(
        release,
        sources,
        tuple(plans),
        tuple(site for site in asked if site not in there),
        sum(export.size for export in exports),
        0 if bucket.is_folder else sum(export.size for export in exports if not bucket.is_here(export)),
    )


def fetch_words(
    plan: FetchPlan,
    bucket: Bucket,
    out: Path,
    *,
    contexts: int = CONTEXTS,
    explainer: str = "",
    keep: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Fetch what is planned, and write it as a folder of words; returns the folder.

    A feature with several explanations gets the one by the model that explained most features of the site, or by a
    model whose name contains `explainer`. A feature without explanations is labelled by its tokens.

    Args:
        plan: what `plan_fetch` returned.
        bucket: where exports are.
        out: the folder; sites in it that were written by the same plan are kept.
        contexts: maximum passages kept per feature, if activations are fetched.
        explainer: part of the name of the model whose explanations are preferred.
        keep: keep the fetched files, which are otherwise deleted once the words of their site are written.
        progress: called with (bytes done, bytes in all, site).

    Raises:
        Unreachable: when a file must be fetched and cannot be.
        BadFile: when a file is bad, and is still bad after fetching it again.
    """
    about = read_about(out, release=plan.release, origin=NEURONPEDIA, model=plan.sources.model)
    done = 0

    def received(here: int, site: Site) -> None:
        if progress:
            progress(done + here, plan.size, str(site))

    for site_plan in plan.sites:
        site = site_plan.site
        # everything that determines the words of a site
        said = [str(site_plan.source), contexts, explainer, VERSION, [[e.key, e.size] for e in site_plan.exports]]
        request = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
        known = about["sites"].get(str(site), {})
        if known.get("request") != request or not is_whole(words_path(out, site)):
            found = _gathered(site_plan, bucket, contexts, explainer, received)
            rows = found.rows()
            write_words(out, site, rows)
            about["sites"][str(site)] = {
                "source": str(site_plan.source),
                "request": request,
                "features": len(rows),
                "labelled": sum(row is not None and bool(row.by) for row in rows),
                "skipped": found.skipped,
            }
            write_about(out, about)
        if not keep:
            for export in site_plan.exports:
                bucket.forget(export)
        done += sum(export.size for export in site_plan.exports)
    return out


@dataclass
class _Gathered:
    """What the files of a site say about its features."""

    contexts: int
    explainer: str
    skipped: int = 0
    explained: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    promotes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    suppresses: dict[int, tuple[str, ...]] = field(default_factory=dict)
    frequency: dict[int, float] = field(default_factory=dict)
    passages: dict[int, list[tuple[float, str, str]]] = field(default_factory=dict)

    def add(self, kind: ExportKind, row: Mapping[str, Any]) -> None:
        """Take in one row; a row with an impossible index is counted and left out."""
        index = int(row["index"])
        if not 0 <= index < _WIDEST:
            self.skipped += 1
        elif kind is ExportKind.EXPLANATIONS:
            text = " ".join(str(row.get("description") or "").split())
            if text:
                self.explained.setdefault(index, []).append((row.get("explanationModelName") or "a person", text))
        elif kind is ExportKind.FEATURES:
            self.promotes[index] = lens_of(row, "pos_str")
            self.suppresses[index] = lens_of(row, "neg_str")
            share = frequency_of(row)
            if share is not None:
                self.frequency[index] = share
        else:
            peak, token, context = passage_of(row)
            if peak > 0:
                # as JSON text, several times smaller: a source has hundreds of thousands of passages
                kept = self.passages.setdefault(index, [])
                kept.append((peak, token, json.dumps([context.tokens, context.values, context.source])))
                most = max(self.contexts, TOKENS)
                if len(kept) > 8 * most:
                    self.passages[index] = _distinct(kept)[: 2 * most]

    def rows(self) -> list[FeatureWords | None]:
        """Words of every feature; None where no file says anything."""
        counts = Counter(by for explained in self.explained.values() for by in {by for by, _ in explained})
        known = (self.explained, self.promotes, self.frequency, self.passages)
        rows: list[FeatureWords | None] = []
        for index in range(max(max(part, default=-1) for part in known) + 1):
            if not any(index in part for part in known):
                rows.append(None)
                continue
            explained = self.explained.get(index, ())
            ranked = sorted(explained, key=lambda row: (self.explainer not in row[0], -counts[row[0]], row[0]))
            by, label = ranked[0] if ranked else ("", "")
            passages = sorted(self.passages.get(index, ()), key=lambda passage: -passage[0])
            tokens = tuple(dict.fromkeys(token for _, token, _ in passages))[:TOKENS]
            shown = [json.loads(text) for *_, text in _distinct(passages)[: self.contexts]]
            contexts = tuple(Context(tuple(texts), tuple(values), source) for texts, values, source in shown)
            promotes, frequency = self.promotes.get(index, ()), self.frequency.get(index)
            suppresses = self.suppresses.get(index, ())
            named = label or label_of(tokens)
            rows.append(FeatureWords(named, tokens, promotes, contexts, frequency, by, suppresses=suppresses))
        return rows


def _distinct(passages: Iterable[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """The passages that differ in text, strongest first; of equal texts, the strongest."""
    kept: dict[str, tuple[float, str, str]] = {}
    for passage in sorted(passages, key=lambda passage: -passage[0]):
        kept.setdefault("".join(json.loads(passage[2])[0]), passage)
    return list(kept.values())


def _gathered(
    plan: SitePlan, bucket: Bucket, contexts: int, explainer: str, received: Callable[[int, Site], None]
) -> _Gathered:
    """All rows of a site; a bad file is fetched again once."""
    for last in (False, True):
        found = _Gathered(contexts, explainer)
        before = 0
        for export in plan.exports:
            path = bucket.fetch(export, lambda here, before=before: received(before + here, plan.site))
            before += export.size
            received(before, plan.site)
            number = 0
            try:
                lines = (line for line in gzip_lines(path) if line.strip())
                for number, line in enumerate(lines, 1):  # noqa: B007 - the message has it
                    found.add(export.kind, cast("Mapping[str, Any]", parse_json(line)))
            except (*PACKED_WRONG, KeyError, TypeError, AttributeError) as error:
                bucket.forget(export)
                if last or bucket.is_folder or bucket.offline:
                    raise BadFile(
                        f"{path}: row {number} is no row of {export.kind.value} ({error!r}). Fetch it again."
                    ) from None
                break
        else:
            return found
    raise AssertionError("unreachable")
