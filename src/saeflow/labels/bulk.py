"""Words of whole sites from the exports of Neuronpedia. No torch.

    plan = plan_fetch("gemma-scope-2b", sites, bucket)       # asks for lists; plan.to_fetch says how many bytes
    fetch_words(plan, bucket, words_folder("gemma-scope-2b", "neuronpedia"))

A site at a time: its files are fetched, read, written as a file of words, and deleted. A killed fetch goes on: sites
that were written are left, files that came whole are read, and one that was cut resumes. Batches are sorted
as text, "10" before "9", so that all of a source are needed for any feature.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.files import add_check, agrees_with_check, write_atomic
from saeflow.ids import Site
from saeflow.labels.bucket import Bucket, Export, Kind
from saeflow.labels.lines import is_whole
from saeflow.labels.neuronpedia import CONTEXTS, TOKENS, frequency_of, passage_of, promotes_of
from saeflow.labels.sources import NEURONPEDIA, Source, Sources
from saeflow.labels.words import Context, FeatureWords, label_of, words_path, write_words
from saeflow.reading import PACKED_WRONG, gzip_lines, parse_json, read_json
from saeflow.records import Progress

ABOUT: Final = "about.json"
"""What a folder of words says of itself."""

FORMAT: Final = "saeflow-words"
VERSION: Final = 1
_WIDEST: Final = 1 << 21
"""Features of a source, at most: what lies beyond is no index."""


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
        sources: what Neuronpedia calls its sites.
        sites: the files of each site that has any.
        missing: sites Neuronpedia has nothing of.
        size: bytes of all files.
        to_fetch: bytes of those that are not on this machine.
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
    kinds: Collection[Kind] = (Kind.EXPLANATIONS, Kind.FEATURES),
    progress: Progress | None = None,
) -> FetchPlan:
    """What there is to fetch, and how large it is; fetches lists alone, one or more a site.

    Args:
        release: its name, for the folder's own description.
        sources: what Neuronpedia calls its sites.
        sites: which ones.
        bucket: where exports are.
        kinds: which files; activations are far larger than the others, and give contexts and tokens.
        progress: told (sites done, sites in all, site).

    Raises:
        InvalidArgument: for no kind of file.
        UnknownSite: when no site has anything.
        Unreachable: when the bucket does not answer.
        BadFile: when a list cannot be read.
    """
    if not kinds:
        raise InvalidArgument(f"nothing is to be fetched. Name some of {', '.join(Kind)}.")
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

    A feature with several explanations shows that of the model which explained most features of the site, or of the
    model whose name holds `explainer`. A site without explanations, or a feature, is labelled by its tokens.

    Args:
        plan: what `plan_fetch` returned.
        bucket: where exports are.
        out: the folder; sites in it that were written by the same plan are left.
        contexts: passages kept of each feature, where activations are fetched.
        explainer: part of the name of the model whose explanations are preferred.
        keep: keep the fetched files, which are deleted once the words of their site are written.
        progress: told (bytes done, bytes in all, what).

    Raises:
        Unreachable: when a file must be fetched and cannot be.
        BadFile: when a file is bad, and was bad again when it was fetched anew.
    """
    about = _read_about(out, plan)
    done = 0
    for site_plan in plan.sites:
        size = sum(export.size for export in site_plan.exports)
        asked = _request(site_plan, contexts, explainer)
        known = about["sites"].get(str(site_plan.site), {})
        if known.get("request") != asked or not is_whole(words_path(out, site_plan.site)):
            told = _tell(progress, done, plan.size, site_plan.site)
            found = _gather_again(site_plan, bucket, _Gathered(contexts, explainer), told)
            rows = found.rows()
            write_words(out, site_plan.site, rows)
            about["sites"][str(site_plan.site)] = {
                "source": str(site_plan.source),
                "request": asked,
                "features": len(rows),
                "labelled": sum(row is not None and bool(row.by) for row in rows),
                "skipped": found.skipped,
            }
            write_atomic(out / ABOUT, json.dumps(add_check(about), indent=1).encode())
        if not keep:
            for export in site_plan.exports:
                bucket.forget(export)
        done += size
    return out


@dataclass
class _Gathered:
    """What the files of a site say of its features."""

    contexts: int
    explainer: str
    skipped: int = 0
    explained: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    promotes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    frequency: dict[int, float] = field(default_factory=dict)
    passages: dict[int, list[tuple[float, str, str]]] = field(default_factory=dict)

    def add(self, kind: Kind, row: Mapping[str, Any]) -> None:
        """Take in one row; one whose index can be none is counted and left out."""
        index = int(row["index"])
        if not 0 <= index < _WIDEST:
            self.skipped += 1
        elif kind is Kind.EXPLANATIONS:
            text = " ".join(str(row.get("description") or "").split())
            if text:
                self.explained.setdefault(index, []).append((row.get("explanationModelName") or "a person", text))
        elif kind is Kind.FEATURES:
            self.promotes[index] = promotes_of(row)
            share = frequency_of(row)
            if share is not None:
                self.frequency[index] = share
        else:
            self._add_passage(index, row)

    def _add_passage(self, index: int, row: Mapping[str, Any]) -> None:
        peak, token, context = passage_of(row)
        if peak <= 0:
            return
        # as text: a source has hundreds of thousands of passages, and texts are several times smaller
        held = self.passages.setdefault(index, [])
        held.append((peak, token, json.dumps([context.tokens, context.values, context.source])))
        if len(held) > 8 * max(self.contexts, TOKENS):
            self.passages[index] = _strongest(held, 2 * max(self.contexts, TOKENS))

    def rows(self) -> list[FeatureWords | None]:
        """Words of every feature, None where no file says anything."""
        counts = Counter(by for told in self.explained.values() for by in {by for by, _ in told})
        known = (self.explained, self.promotes, self.frequency, self.passages)
        rows = max(max(part, default=-1) for part in known) + 1
        return [self._row(index, counts) for index in range(rows)]

    def _row(self, index: int, counts: Mapping[str, int]) -> FeatureWords | None:
        if not any(index in part for part in (self.explained, self.promotes, self.frequency, self.passages)):
            return None
        told = self.explained.get(index, ())
        by, label = min(told, key=lambda row: (self._foreign(row[0]), -counts[row[0]], row[0]), default=("", ""))
        passages = sorted(self.passages.get(index, ()), key=lambda passage: -passage[0])
        tokens = tuple(dict.fromkeys(token for _, token, _ in passages))[:TOKENS]
        contexts = (Context(tuple(t), tuple(v), source) for t, v, source in map(json.loads, _texts(passages)))
        return FeatureWords(
            label or label_of(tokens),
            tokens,
            self.promotes.get(index, ()),
            tuple(contexts)[: self.contexts],
            self.frequency.get(index),
            by,
        )

    def _foreign(self, by: str) -> bool:
        return bool(self.explainer) and self.explainer not in by


def _texts(passages: Iterable[tuple[float, str, str]]) -> list[str]:
    """The different passages, in order, whatever their activations."""
    kept: dict[str, str] = {}
    for _, _, text in passages:
        kept.setdefault("".join(json.loads(text)[0]), text)
    return list(kept.values())


def _strongest(passages: list[tuple[float, str, str]], n: int) -> list[tuple[float, str, str]]:
    """The `n` strongest different passages."""
    ordered = sorted(passages, key=lambda passage: -passage[0])
    first = {text: passage for passage in reversed(ordered) for text in ("".join(json.loads(passage[2])[0]),)}
    return sorted(first.values(), key=lambda passage: -passage[0])[:n]


def _gather_again(plan: SitePlan, bucket: Bucket, empty: _Gathered, told: Progress) -> _Gathered:
    """All rows of a site; a bad file is fetched anew, once."""
    for again in (True, False):
        found = _Gathered(empty.contexts, empty.explainer)
        try:
            before = 0
            for export in plan.exports:
                path = bucket.fetch(export, lambda here, before=before: told(before + here, 0, ""))
                before += export.size
                told(before, 0, "")
                _read_into(found, export, path)
            return found
        except _BadExport as error:
            bucket.forget(error.export)
            if not again or bucket.is_folder or bucket.offline:
                raise BadFile(str(error)) from None
    raise AssertionError("unreachable")


class _BadExport(BadFile):
    """A file of the exports that cannot be read."""

    def __init__(self, export: Export, why: str) -> None:
        super().__init__(why)
        self.export = export


def _read_into(found: _Gathered, export: Export, path: Path) -> None:
    number = 0
    try:
        for number, line in enumerate(_lines(path), 1):  # noqa: B007 - told in the message
            found.add(export.kind, cast("Mapping[str, Any]", parse_json(line)))
    except (*PACKED_WRONG, KeyError, TypeError, AttributeError) as error:
        raise _BadExport(
            export, f"{path}: row {number} is no row of {export.kind.value} ({error!r}). Fetch it again."
        ) from None


def _lines(path: Path) -> Iterator[str]:
    yield from (line for line in gzip_lines(path) if line.strip())


def _tell(progress: Progress | None, done: int, total: int, site: Site) -> Progress:
    def told(here: int, _total: int, _what: str) -> None:
        if progress:
            progress(done + here, total, str(site))

    return told


def _request(plan: SitePlan, contexts: int, explainer: str) -> str:
    """A digest of everything that determines the words of a site."""
    said = [str(plan.source), contexts, explainer, VERSION, [[e.key, e.size] for e in plan.exports]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _read_about(out: Path, plan: FetchPlan) -> dict[str, Any]:
    """What the folder says of itself; anew where it says nothing that can be read."""
    fresh = {
        "format": FORMAT,
        "version": VERSION,
        "release": plan.release,
        "origin": NEURONPEDIA,
        "model": plan.sources.model,
        "sites": {},
    }
    try:
        told = read_json(out / ABOUT)
        same = all(told[name] == fresh[name] for name in ("format", "version", "release", "origin", "model"))
        same = same and agrees_with_check(told)
        return cast("dict[str, Any]", told) if same and isinstance(told["sites"], dict) else fresh
    except (OSError, ValueError, KeyError, TypeError):
        return fresh
