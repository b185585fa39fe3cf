"""`saeflow labels`: fetch, make, show, search, explain and transfer what is known about features."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from saeflow.cli.options import (
    Feature,
    Features,
    Flag,
    Json,
    LlmModel,
    LlmUrl,
    ModelOptions,
    NTexts,
    OutFolder,
    Projector,
    Release,
    SiteNames,
    SitesAtOnce,
    TextSources,
    projector,
    sites_named,
)
from saeflow.cli.output import Row, note, print_json, print_none_found, print_table, progress, show
from saeflow.errors import InvalidArgument, InvalidId, UnknownFeature, UnknownRelease
from saeflow.ids import FeatureId, Site
from saeflow.reading import read_json

if TYPE_CHECKING:
    from saeflow.experiments.sampling import Dataset
    from saeflow.labels import FeatureWords
    from saeflow.labels.explain import Explanation
    from saeflow.labels.from_texts import Passage
    from saeflow.labels.search import Hit
    from saeflow.llm.endpoint import Secret

Offline = Annotated[
    bool, Parameter(negative=(), help="Use no network; SAEFLOW_OFFLINE=1 or HF_HUB_OFFLINE=1 do the same.")
]
Pattern = Annotated[
    str, Parameter("--neuronpedia-source", help="What Neuronpedia calls the sites: MODEL/{layer}-name-{part}-16k.")
]
WordsFolderOut = Annotated[
    Path | None, OutFolder, Parameter(help="Where to write: a folder of words, in the cache by default.")
]


def labels_fetch(
    release: Release,
    /,
    *,
    sites: SiteNames = (),
    kinds: tuple[str, ...] = ("explanations", "features"),
    contexts: int = 4,
    explainer: str = "",
    source: Pattern = "",
    bucket: str = "",
    out: WordsFolderOut = None,
    keep: bool = False,
    dry_run: Flag = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Fetch the words of whole sites from Neuronpedia's public exports. A killed fetch resumes.

    Args:
        kinds: What to fetch: explanations, features, activations.
        contexts: Passages kept for each feature: if activations are fetched.
        explainer: Prefer explanations by a model with this in its name.
        bucket: Where the exports are: an address, or a folder with the same tree.
        keep: Keep intermediate files: the fetched files.
        dry_run: Estimate the cost, and stop: files and bytes to fetch.
    """
    from saeflow.files import cache_folder
    from saeflow.labels.exports import BUCKET, Bucket, ExportKind, fetch_words, plan_fetch
    from saeflow.labels.folders import NEURONPEDIA, words_folder
    from saeflow.labels.http import Fetcher
    from saeflow.labels.neuronpedia import is_offline, sources_of

    # 1. Find what there is to fetch.
    if unknown := sorted(set(kinds) - set(ExportKind)):
        raise InvalidArgument(f"--kinds names {', '.join(unknown)}. Kinds are {', '.join(ExportKind)}.")
    cache = cache_folder() / "neuronpedia" / "exports"
    exports = Bucket(bucket or BUCKET, cache, Fetcher(), offline=offline or is_offline())
    folder = out or words_folder(release, NEURONPEDIA)
    with progress("listing") as report:
        plan = plan_fetch(
            release,
            sources_of(release, source),
            _sites_of_release(release, sites),
            exports,
            kinds=[ExportKind(kind) for kind in kinds],
            progress=report,
        )
    files = sum(len(site.exports) for site in plan.sites)
    missing = [str(site) for site in plan.missing]
    if not as_json:
        sizes = f"{plan.size / 1e6:,.1f} MB; to fetch: {plan.to_fetch / 1e6:,.1f} MB"
        note(f"{files} files of {len(plan.sites)} sites, {sizes}")
        if missing:
            note(f"Neuronpedia has nothing of {', '.join(missing)}")

    # 2. Fetch it.
    written: dict[str, Row] = {}
    if not dry_run:
        with progress("fetching") as report:
            fetch_words(plan, exports, folder, contexts=contexts, explainer=explainer, keep=keep, progress=report)
        written = _about(folder)
    if as_json:
        told: Row = {
            "from": exports.place,
            "folder": str(folder),
            "files": files,
            "bytes": plan.size,
            "to_fetch": plan.to_fetch,
            "sites": [str(site.site) for site in plan.sites],
            "missing": missing,
        }
        print_json(told if dry_run else told | {"written": written})
    elif not dry_run:
        columns = ("source", "features", "labelled")
        print_table([{"site": site} | {name: row.get(name) for name in columns} for site, row in written.items()])
        print(f"in {folder}")


def labels_make(
    release: Release,
    /,
    *,
    texts: TextSources,
    language_model: ModelOptions = ModelOptions(),
    sites: SiteNames = (),
    n_texts: NTexts = 2000,
    tokens: int = 1_000_000,
    contexts: int = 4,
    max_length: int = 128,
    sites_at_once: SitesAtOnce = 0,
    seed: int = 0,
    out: WordsFolderOut = None,
    as_json: Json = False,
) -> None:
    """Make words from the model and any texts: strongest tokens and passages, logit lens, how often features fire.

    A killed run resumes.

    Args:
        tokens: Total number of tokens: where to stop, not counting special tokens.
        contexts: Passages kept for each feature: for `saeflow labels explain`, 20 or more.
        max_length: Maximum length of a text, in tokens.
        seed: Random seed: of the order of the texts, and of the passages drawn at random.
    """
    from saeflow.experiments.sampling import expand, open_dataset
    from saeflow.labels import WordsFolder
    from saeflow.labels.folders import LOCAL, words_folder
    from saeflow.labels.from_texts import make_words
    from saeflow.sources.library import load_dictionaries

    dictionaries = load_dictionaries(release, device=language_model.device)
    found = _Passages(tuple(open_dataset(source) for source in expand(texts)), n_texts, seed)
    folder = out or words_folder(release, LOCAL)
    asked = sites_named(sites, dictionaries.sites)
    with progress("reading") as report:
        make_words(
            language_model.load(release, dictionaries),
            dictionaries,
            found,
            folder,
            sites=asked,
            contexts=contexts,
            max_length=max_length,
            max_tokens=tokens,
            sites_at_once=sites_at_once or None,
            seed=seed,
            release=dictionaries.name,
            progress=report,
        )
    about, words = _about(folder), WordsFolder(folder)
    rows: list[Row] = []
    for site in asked:
        features = words.site(site)
        fire = sum(row is not None for row in features)
        read = {"tokens": about[str(site)]["n_tokens"], "massive": about[str(site)]["massive"]}
        rows.append({"site": str(site), "features": len(features), "fire": fire, **read})
    if as_json:
        print_json({"folder": str(folder), "sites": rows})
        return
    print_table(rows)
    if any(row["massive"] for row in rows):
        print("massive: positions left out at a site, with a squared norm of more than 100 of its medians")
    print(f"in {folder}")


@dataclass(frozen=True)
class _Passages:
    """Up to n texts of each dataset with its name, one of each in turn; every iteration starts anew."""

    datasets: Sequence[Dataset]
    n: int
    seed: int

    def __iter__(self) -> Iterator[Passage]:
        from saeflow.labels.from_texts import Passage

        texts = (itertools.islice(dataset.read(self.seed), self.n) for dataset in self.datasets)
        for turn in itertools.zip_longest(*texts):
            for dataset, text in zip(self.datasets, turn, strict=True):
                if text is not None:
                    yield Passage(text, dataset.name.removeprefix("demo:"))

    def __len__(self) -> int:
        """An upper bound: a dataset may hold fewer texts."""
        return self.n * len(self.datasets)


def labels_show(
    release: Release,
    feature: Feature,
    /,
    *,
    source: Pattern = "",
    neuronpedia_url: str = "",
    refresh: bool = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Show what is known about a feature, on this machine or else from Neuronpedia, whose answer is kept.

    Args:
        feature: Feature, such as 4/res/72.
        neuronpedia_url: Address of Neuronpedia: or of a server in its place.
        refresh: Ask Neuronpedia again, whatever is on this machine.
    """
    from saeflow.labels import words_for
    from saeflow.labels.neuronpedia import BASE_URL, Neuronpedia, sources_of
    from saeflow.sources.releases import is_release

    known = words_for(release).get(feature)
    if (known is None or refresh) and (source or is_release(release)):
        at = sources_of(release, source).at(feature.site)
        api = Neuronpedia(base_url=neuronpedia_url or BASE_URL, offline=True if offline else None)
        if at is not None:
            known = api.feature(at, feature.index, refresh=refresh) or known
    if known is None and not source:
        _refuse_unknown(release, feature)
    if as_json:
        print_json({"feature": str(feature), "words": None if known is None else asdict(known)})
    elif known is None:
        print(f"{feature}: nothing is known. Fetch its words (saeflow labels fetch) or make them (labels make).")
    else:
        _print_words(feature, known)


def _refuse_unknown(release: str, feature: FeatureId) -> None:
    """Refuse a release, site or feature that does not exist, as far as files on this machine tell.

    Raises:
        UnknownRelease, UnknownSite, UnknownFeature: for the one that does not exist.
    """
    from saeflow.labels import WordsFolder
    from saeflow.labels.folders import words_folders
    from saeflow.labels.words import words_sites

    folders = [folder for folder in words_folders(release) if feature.site in words_sites(folder)]
    if not folders:
        from saeflow.sources.library import load_dictionaries

        if feature.site not in (dictionaries := load_dictionaries(release)).sites:
            dictionaries[feature.site]  # raises an error that lists the sites
    size = max((len(WordsFolder(folder).site(feature.site)) for folder in folders), default=None)
    if size is not None and feature.index >= size:
        raise UnknownFeature(
            f"{feature} does not exist: the dictionary at {feature.site} has {size} features, 0 to {size - 1}."
        )


def _print_words(feature: FeatureId, known: FeatureWords) -> None:
    """Print what is known about a feature, without characters that a terminal would interpret."""
    from saeflow.report.tokens import headline, one_line, visible

    by = f"  [{one_line(known.by)}]" if known.by else ""
    print(f"{feature}: {headline(known) or '(no label)'}{by}")
    if known.score is not None:
        print(f"detection score: {known.score:.2f}")
    if known.frequency is not None:
        print(f"fires on {known.frequency:.4%} of tokens")
    lists = {"strongest on": known.tokens, "promotes": known.promotes, "suppresses": known.suppresses}
    for name, tokens in lists.items():
        if tokens:
            print(f"{name}: {'  '.join(map(visible, tokens))}")
    for context in (*known.contexts, *known.spread):
        top = max(context.values, default=0.0)
        pairs = zip(map(visible, context.tokens), context.values, strict=True)
        shown = "".join(f"[{token} {value:g}]" if value and value == top else token for token, value in pairs)
        quantile = "" if context.quantile is None else f"quantile {context.quantile:.2f}"
        told = ", ".join(word for word in (one_line(context.source), quantile) if word)
        print(f"  {shown}" + (f"   ({told})" if told else ""))


def labels_search(
    release: Release, words: str, /, *, limit: int = 20, sites: SiteNames = (), as_json: Json = False
) -> int:
    """Find features by their labels and tokens. The exit code is 1 if there are none.

    Args:
        words: Words to look for: of the last one, the beginning is enough.
        limit: Rows to print: the best first.
    """
    from saeflow.labels.folders import words_folders
    from saeflow.labels.search import search
    from saeflow.labels.words import words_sites
    from saeflow.report.tokens import one_line, visible

    if not words.strip():
        raise InvalidArgument("WORDS is empty. Give words to look for.")
    folders = words_folders(release)
    if not folders:
        raise InvalidArgument(
            f"there are no words of {release} on this machine. Fetch them (saeflow labels fetch {release}) or make "
            "them (saeflow labels make)."
        )
    there = sorted({site for folder in folders for site in words_sites(folder)})
    found: dict[FeatureId, Hit] = {}
    for folder in folders:
        with progress("indexing") as report:
            for hit in search(
                folder, words, limit, sites=sites_named(sites, there) if sites else None, progress=report
            ):
                found.setdefault(hit.feature, hit)
    hits = list(found.values())[:limit]
    if as_json:
        print_json({"query": words, "features": [asdict(hit) | {"feature": str(hit.feature)} for hit in hits]})
        return 0 if hits else 1
    if not hits:
        print_none_found(words)
        return 1
    print_table(
        [  # without characters that a terminal would interpret
            {
                "feature": str(hit.feature),
                "label": one_line(hit.label),
                "strongest on": " ".join(visible(token.strip()) for token in hit.tokens[:5]),
                "frequency": hit.frequency,
            }
            for hit in hits
        ]
    )
    return 0


def labels_explain(
    release: Release,
    features: Features = (),
    /,
    *,
    sites: Annotated[
        SiteNames, Parameter(help="Sites, or parts at all layers: 12/res,13/res or res, all of each.")
    ] = (),
    n_features: int = 0,
    llm_url: LlmUrl = "",
    llm_model: LlmModel = "",
    concurrency: int = 8,
    per_minute: float = 0.0,
    seed: int = 0,
    words_folder: Path | None = None,
    dry_run: Flag = False,
    as_json: Json = False,
) -> None:
    """Let a language model label features from their passages, and test the labels on other passages.

    Without --json, the number of requests is printed before any is made. The key is read from OPENAI_API_KEY and
    written nowhere. Answers are kept: a rerun makes only the requests that are missing.

    Args:
        features: Features, such as 4/res/72: or use --sites.
        n_features: Number of features: at each site at most, those that fire most; 0 for all.
        concurrency: Concurrent requests.
        per_minute: Requests per minute at most; 0 for no limit.
        seed: Random seed: of the choice of silent passages, and of the order of all passages.
        words_folder: Folder of words with passages: by default the one made here, or else the one fetched.
        dry_run: Estimate the cost, and stop: the number of requests.
    """
    from saeflow.labels.explain import estimate, explain, write_explanations
    from saeflow.llm.endpoint import DEFAULT_MODEL, Endpoint, Pacing, place_of

    # 1. Find what to ask.
    folder = words_folder or _folder_of_words(release)
    asked = _asked_features(folder, features, sites, n_features)
    name = llm_model or os.environ.get("SAEFLOW_JUDGE_MODEL") or DEFAULT_MODEL
    address = _address(llm_url or os.environ.get("OPENAI_BASE_URL") or "")
    pacing = Pacing(concurrency=concurrency, per_minute=per_minute or None)
    cost = estimate(folder, name, asked, seed=seed)
    if not as_json:
        requests = f"{cost.requests} request{'' if cost.requests == 1 else 's'} to {name} at {place_of(address)}"
        silent = f"; {cost.silent} have no passages" if cost.silent else ""
        note(
            f"{len(asked)} feature{'' if len(asked) == 1 else 's'}: {requests}, {cost.cached} answers are kept{silent}"
        )

    # 2. Ask; the labels that came before an error are written too.
    found: list[Explanation] = []
    written = 0
    if not dry_run:
        secret = _secret(address, needed=cost.requests > 0)
        with Endpoint(name, base_url=address, secret=secret, temperature=0.0, seed=seed, pacing=pacing) as chat:
            try:
                with progress("asking") as report:
                    found.extend(explain(folder, chat, asked, seed=seed, progress=report))
            finally:
                written = write_explanations(folder, found)

    # 3. Show the labels.
    rows = [_explained_row(one) for one in found]
    if as_json:
        counts = {"requests": cost.requests, "cached": cost.cached, "without_passages": cost.silent}
        print_json({"model": name, **counts, "written": written, "features": rows})
    elif not dry_run:
        shown = [{**row, "score": "" if row["score"] is None else f"{row['score']:.2f}"} for row in rows]
        columns = ("feature", "label", "score", "silent from", "problem")
        print_table([{name: row[name] for name in columns} for row in shown])
        print(f"{written} labels written to {folder}; a score of 0.5 is what guessing gives")


def labels_transfer(
    labelled: Release,
    unlabelled: Release,
    /,
    *,
    least: Annotated[float, Parameter("--min", validator=validators.Number(gt=0, lte=1))] = 0.9,
    sites: SiteNames = (),
    pairs: Annotated[tuple[tuple[Site, Site], ...], Parameter("--map", n_tokens=1)] = (),
    one_sided: Flag = False,
    model: Projector = "",
    out: WordsFolderOut = None,
    dry_run: Flag = False,
    as_json: Json = False,
) -> None:
    """Transfer labels from one release to unlabelled features of another, where their decoder rows agree.

    By default, the two features must be each other's best match. Each label is written with its origin and cosine.

    Args:
        labelled: Release whose words are known.
        unlabelled: Release of the same model whose features lack labels.
        least: Smallest cosine of the two decoder rows.
        pairs: Pairs of sites, one of each side, such as 3/res>4/res: by default sites of the same name.
        one_sided: Take the best match even if it is not mutual.
        dry_run: Estimate the cost, and stop: show the labels that would be transferred, and write none.
    """
    from saeflow.comparison.transfer import transfer_labels
    from saeflow.labels.folders import TRANSFERRED, words_folder
    from saeflow.sources.library import load_dictionaries

    one, other = load_dictionaries(labelled), load_dictionaries(unlabelled)
    there = [site for site in one.sites if site in other.sites]
    chosen = list(pairs) or [(site, site) for site in sites_named(sites, there)]
    folder = out or words_folder(unlabelled, TRANSFERRED)
    with progress("matching") as report:
        found = transfer_labels(
            one,
            other,
            chosen,
            release=labelled,
            target_release=unlabelled,
            least=least,
            mutual=not one_sided,
            projector=projector(model),
            out=None if dry_run else folder,
            progress=report,
        )
    rows: list[Row] = [
        {
            "feature": str(label.feature),
            "label": label.label,
            "from": str(label.source),
            "cosine": round(label.cosine, 4),
        }
        for label in found.labels
    ]
    summary: Row = {
        "from": labelled,
        "to": unlabelled,
        "unlabelled": found.unlabelled,
        "transferred": len(found.labels),
    }
    summary |= {} if dry_run else {"folder": str(folder)}
    from saeflow.report.tokens import one_line

    shown = [row | {"label": one_line(row["label"])} for row in rows[:20]]
    show(as_json, summary | {"labels": rows}, summary, shown)


def _explained_row(one: Explanation) -> Row:
    """A feature as a row, with a label that is safe to print."""
    from saeflow.report.tokens import one_line

    detection = one.detection
    return {
        "feature": str(one.feature),
        "label": one_line(one.label),
        "score": None if detection is None else round(detection.score, 4),
        "found": None if detection is None else round(detection.found, 4),
        "left": None if detection is None else round(detection.left, 4),
        "silent from": "" if detection is None else detection.silent_from,
        "problem": one.problem,
    }


def _folder_of_words(release: str) -> Path:
    """The folder of a release's words that labels may be written to: those made here, or else those fetched."""
    from saeflow.labels.folders import LOCAL, NEURONPEDIA, words_folder
    from saeflow.labels.words import words_sites

    for origin in (LOCAL, NEURONPEDIA):
        folder = words_folder(release, origin)
        if folder.is_dir() and words_sites(folder):
            return folder
    raise InvalidArgument(
        f"there are no words of {release} that could be explained. Make them with passages to show: saeflow labels "
        f"make {release} --contexts 20 --texts ...; or name a folder of words with --words-folder."
    )


def _asked_features(folder: Path, named: Sequence[FeatureId], sites: Sequence[str], limit: int) -> list[FeatureId]:
    """The named features, or those of the named sites with passages; with a limit, those of a site that fire most."""
    from saeflow.labels.words import WordsFolder, words_sites

    if bool(named) == bool(sites):
        raise InvalidArgument("name features, such as 4/res/72, or sites with --sites: one of the two.")
    there = words_sites(folder)
    if named:
        if missing := sorted({str(one.site) for one in named if one.site not in there}):
            raise InvalidArgument(f"{folder} has no words of {', '.join(missing)}. Make or fetch them first.")
        return list(named)
    asked = list[FeatureId]()
    for site in sites_named(sites, there):
        rows = WordsFolder(folder).site(site)
        known = [(-(row.frequency or 0.0), i) for i, row in enumerate(rows) if row is not None and row.contexts]
        asked += [FeatureId(site, i) for _, i in (sorted(known)[:limit] if limit else known)]
    return asked


def _address(url: str) -> str | None:
    """A base URL, checked to be an address; None for OpenAI's own."""
    if not url:
        return None
    from saeflow.llm.endpoint import is_address

    if not is_address(url):
        raise InvalidArgument(
            "the address of the endpoint is no http(s) address. Give one such as http://localhost:8000/v1, with "
            "--llm-url or in OPENAI_BASE_URL."
        )
    return url


def _secret(address: str | None, *, needed: bool) -> Secret:
    """The key from the environment; only requests to OpenAI itself require one."""
    from saeflow.llm.endpoint import Secret

    key = os.environ.get("OPENAI_API_KEY") or ""
    if not key and address is None and needed:
        raise InvalidArgument(
            "there is no key for the OpenAI API. Set OPENAI_API_KEY, or give the address of a server of your own with "
            "--llm-url."
        )
    return Secret(key or "none")


def _sites_of_release(release: str, names: Sequence[str]) -> list[Site]:
    """The named sites of a release; if it cannot be opened, they must be named one by one."""
    from saeflow.sources.library import load_dictionaries
    from saeflow.sources.releases import is_release, read_release

    if is_release(release):
        return sites_named(names, list(read_release(release).sites))
    try:
        return sites_named(names, load_dictionaries(release).sites)
    except UnknownRelease:
        pass
    try:
        if names:
            return sorted({Site.parse(name) for name in names})
    except InvalidId:
        pass
    raise InvalidArgument(
        f"{release} is no release that can be opened. Name its sites one by one: --sites 0/res,1/res."
    )


def _about(folder: Path) -> dict[str, dict[str, Any]]:
    """What a folder of words states about its sites."""
    from saeflow.labels.folders import ABOUT

    told: dict[str, dict[str, Any]] = read_json(folder / ABOUT)
    return told["sites"]
