"""`saeflow labels`: fetch, make, show, search and explain what is known of features."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Device, Json, PrependBos, Release, print_table, progress
from saeflow.cli.explain import explain
from saeflow.errors import InvalidArgument
from saeflow.reading import read_json

if TYPE_CHECKING:
    from saeflow.ids import Site
    from saeflow.labels import FeatureWords
    from saeflow.labels.exports import Bucket, FetchPlan
    from saeflow.labels.search import Hit

Offline = Annotated[
    bool, typer.Option("--offline", help="Ask no network; SAEFLOW_OFFLINE=1 or HF_HUB_OFFLINE=1 do the same.")
]
Sites = Annotated[
    str, typer.Option(help="Sites or parts, with commas between: 12/res,13/res or res; all when not given.")
]
Pattern = Annotated[
    str, typer.Option("--source", help="What Neuronpedia calls the sites: MODEL/{layer}-name-{part}-16k.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the words; in the cache when not given.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    labels = typer.Typer(help="What is known of features: fetch, make, show, search, explain.", no_args_is_help=True)
    labels.command()(fetch)
    labels.command()(make)
    labels.command("show")(show_feature)
    labels.command()(search)
    labels.command()(explain)
    app.add_typer(labels, name="labels")


def fetch(
    release: Release,
    sites: Sites = "",
    kinds: Annotated[
        str, typer.Option(help="explanations, features, activations, with commas between.")
    ] = "explanations,features",
    contexts: Annotated[int, typer.Option(help="Passages kept of each feature, from activations.")] = 4,
    explainer: Annotated[str, typer.Option(help="Prefer explanations of a model with this in its name.")] = "",
    source: Pattern = "",
    bucket: Annotated[
        str, typer.Option(help="Where the exports are: an address, or a folder with the same tree.")
    ] = "",
    out: Out = None,
    keep: Annotated[bool, typer.Option(help="Keep the files as they were fetched.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and stop.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Fetch the words of whole sites from Neuronpedia's public exports. A killed fetch goes on."""
    from saeflow.files import cache_folder
    from saeflow.labels.exports import BUCKET, Bucket, ExportKind, fetch_words, plan_fetch
    from saeflow.labels.folders import NEURONPEDIA, words_folder
    from saeflow.labels.http import Fetcher
    from saeflow.labels.neuronpedia import is_offline, sources_of

    asked = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    unknown = sorted(set(asked) - set(ExportKind))
    if unknown:
        raise InvalidArgument(f"--kinds names {', '.join(unknown)}. Kinds are {', '.join(ExportKind)}.")
    place = Bucket(
        bucket or BUCKET, cache_folder() / "neuronpedia" / "exports", Fetcher(), offline=offline or is_offline()
    )
    folder = out or words_folder(release, NEURONPEDIA)
    with progress("listing") as report:
        plan = plan_fetch(
            release,
            sources_of(release, source),
            _sites(release, sites),
            place,
            kinds=[ExportKind(k) for k in asked],
            progress=report,
        )
    told = _told(plan, place, folder)
    if not as_json:
        typer.echo(told["said"], err=True)
    if not dry_run:
        with progress("fetching") as report:
            fetch_words(plan, place, folder, contexts=contexts, explainer=explainer, keep=keep, progress=report)
        told |= {"written": _about(folder)}
    if as_json:
        typer.echo(json.dumps({name: value for name, value in told.items() if name != "said"}, indent=1))
    elif not dry_run:
        rows = [{"site": site, **about} for site, about in told["written"].items()]
        print_table("", [{name: row.get(name) for name in ("site", "source", "features", "labelled")} for row in rows])
        typer.echo(f"in {folder}")


def make(
    release: Release,
    texts: Annotated[
        list[str],
        typer.Option(
            help='Where texts come from, once or more: a .txt, .jsonl or .parquet file, "demo", "demo:stories", or a '
            "dataset on the hub."
        ),
    ],
    model: Annotated[str, typer.Option(help="Model to run; the release's own when not given.")] = "",
    sites: Sites = "",
    n: Annotated[int, typer.Option(help="Texts taken from each source.")] = 2000,
    tokens: Annotated[int, typer.Option(help="Stop after this many tokens that are not special.")] = 1_000_000,
    contexts: Annotated[int, typer.Option(help="Passages shown of each feature; 20 for explanations.")] = 4,
    max_length: Annotated[int, typer.Option(help="Tokens of each text at most.")] = 128,
    sites_at_once: Annotated[
        int, typer.Option(help="Dictionaries in memory at a time; 0 for all. Fewer read the texts again.")
    ] = 0,
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    seed: Annotated[int, typer.Option(help="Sets the order in which texts are taken.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Make words from the model and any text: strongest tokens and passages, logit lens, how often each fires.

    A killed run resumes.
    """
    from saeflow.experiments.sampling import expand, open_dataset
    from saeflow.labels.folders import LOCAL, words_folder
    from saeflow.labels.local import make_words
    from saeflow.sources.library import load_dictionaries
    from saeflow.sources.model import load_model

    dictionaries = load_dictionaries(release, device=device)
    name = model or ("demo" if release == "demo" else dictionaries.model)
    if not name:
        raise InvalidArgument(f"{release} does not say which model it was trained on. Name it with --model.")
    if n < 1:
        raise InvalidArgument(f"--n {n} takes no text. Give 1 or more.")
    found = _Texts([open_dataset(source) for source in expand(texts)], n, seed)
    folder = out or words_folder(release, LOCAL)
    asked = _chosen(sites, dictionaries.sites)
    with progress("reading") as report:
        make_words(
            load_model(name, device=device, prepend_bos=prepend_bos),
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
    about = _about(folder)
    rows = [{"site": str(site), **_counted(folder, site), "tokens": about[str(site)]["n_tokens"]} for site in asked]
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "sites": rows}, indent=1))
        return
    print_table("", rows)
    typer.echo(f"in {folder}")


def show_feature(
    release: Release,
    feature: Annotated[str, typer.Argument(help="layer/part/index, such as 4/res/72.")],
    source: Pattern = "",
    base_url: Annotated[str, typer.Option(help="Where Neuronpedia is, or what stands in for it.")] = "",
    refresh: Annotated[bool, typer.Option(help="Ask Neuronpedia again, whatever is here.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """What is known of a feature: on this machine first, else from Neuronpedia, where it is kept from then on."""
    from dataclasses import asdict

    from saeflow.ids import FeatureId
    from saeflow.labels import words_for
    from saeflow.labels.neuronpedia import BASE_URL, Neuronpedia, sources_of
    from saeflow.sources.releases import is_release

    asked = FeatureId.parse(feature)
    known = words_for(release).get(asked)
    if (known is None or refresh) and (source or is_release(release)):
        at = sources_of(release, source).at(asked.site)
        api = Neuronpedia(base_url=base_url or BASE_URL, offline=True if offline else None)
        if at is not None:
            known = api.feature(at, asked.index, refresh=refresh) or known
    if as_json:
        typer.echo(json.dumps({"feature": feature, "words": None if known is None else asdict(known)}, indent=1))
    elif known is None:
        typer.echo(f"{feature}: nothing is known. Fetch its words (saeflow labels fetch) or make them (labels make).")
    else:
        _print_words(feature, known)


def search(
    release: Release,
    words: Annotated[str, typer.Argument(help="Words to look for; of the last one its beginning is enough.")],
    limit: Annotated[int, typer.Option(help="Features printed, best first.")] = 20,
    sites: Sites = "",
    as_json: Json = False,
) -> None:
    """Find features by their labels and tokens."""
    from dataclasses import asdict

    from saeflow.labels.folders import words_folders
    from saeflow.labels.search import search as find

    folders = words_folders(release)
    if not folders:
        raise InvalidArgument(
            f"there are no words of {release} on this machine. Fetch them (saeflow labels fetch {release}) or make "
            "them (saeflow labels make)."
        )
    there = sorted({site for folder in folders for site in _words_sites(folder)})
    asked = _chosen(sites, there) if sites else None
    found: dict[str, Hit] = {}
    for folder in folders:
        with progress("indexing") as report:
            hits = find(folder, words, limit, sites=asked, progress=report)
        for hit in hits:
            found.setdefault(str(hit.feature), hit)
    hits = list(found.values())[:limit]
    if as_json:
        told = [{**asdict(hit), "feature": str(hit.feature)} for hit in hits]
        typer.echo(json.dumps({"query": words, "features": told}, indent=1))
        return
    print_table("", [_row(hit) for hit in hits])


class _Texts:
    """Texts of some datasets, one of each in turn, read anew each time."""

    def __init__(self, datasets: Sequence[Any], n: int, seed: int) -> None:
        self._datasets, self._n, self._seed = datasets, n, seed

    def __iter__(self) -> Iterator[Any]:
        from itertools import zip_longest

        for turn in zip_longest(*map(self._read, self._datasets)):
            yield from (one for one in turn if one is not None)

    def _read(self, dataset: Any) -> Iterator[Any]:
        from itertools import islice

        from saeflow.labels.local import Passage

        for text in islice(dataset.read(self._seed), self._n):
            yield Passage(text, dataset.name.removeprefix("demo:"))

    def __len__(self) -> int:
        """An upper bound: a dataset may hold fewer."""
        return self._n * len(self._datasets)


def _sites(release: str, asked: str) -> list[Site]:
    """The sites asked for, of those the release has; of a release that cannot be opened, those named one by one."""
    from saeflow.errors import InvalidId, UnknownRelease
    from saeflow.ids import Site
    from saeflow.sources.releases import is_release, read_release

    if is_release(release):
        return _chosen(asked, list(read_release(release).sites))
    from saeflow.sources.library import load_dictionaries

    try:
        return _chosen(asked, load_dictionaries(release).sites)
    except UnknownRelease:
        try:
            return sorted({Site.parse(name.strip()) for name in asked.split(",")})
        except InvalidId:
            raise InvalidArgument(
                f"{release} is no release that can be opened. Name its sites one by one: --sites 0/res,1/res."
            ) from None


def _chosen(asked: str, there: Sequence[Site]) -> list[Site]:
    """Sites that are named one by one or by part; all when none is named."""
    from saeflow.ids import Part, Site

    names = [name.strip() for name in asked.split(",") if name.strip()]
    chosen: set[Site] = set()
    for name in names:
        sites = {site for site in there if site.part.value == name} if name in set(Part) else {Site.parse(name)}
        if not sites or not sites <= set(there):
            raise InvalidArgument(f"--sites names {name}, and there are {', '.join(map(str, there))}.")
        chosen |= sites
    return sorted(chosen) if names else list(there)


def _words_sites(folder: Path) -> tuple[Site, ...]:
    from saeflow.labels.words import words_sites

    return words_sites(folder)


def _row(hit: Hit) -> dict[str, Any]:
    """A feature that was found as a row of a table; nothing of it can steer a terminal."""
    from saeflow.report.tokens import one_line, visible

    return {
        "feature": str(hit.feature),
        "label": one_line(hit.label),
        "strongest on": " ".join(visible(token.strip()) for token in hit.tokens[:5]),
        "frequency": hit.frequency,
    }


def _told(plan: FetchPlan, place: Bucket, folder: Path) -> dict[str, Any]:
    """The plan, and a sentence that says it."""
    files = sum(len(site.exports) for site in plan.sites)
    sizes = f"{plan.size / 1e6:,.1f} MB; to fetch: {plan.to_fetch / 1e6:,.1f} MB"
    said = f"{files} files of {len(plan.sites)} sites, {sizes}"
    if plan.missing:
        said += f"\nNeuronpedia has nothing of {', '.join(map(str, plan.missing))}"
    return {
        "said": said,
        "from": place.place,
        "folder": str(folder),
        "files": files,
        "bytes": plan.size,
        "to_fetch": plan.to_fetch,
        "sites": [str(site.site) for site in plan.sites],
        "missing": [str(site) for site in plan.missing],
    }


def _about(folder: Path) -> dict[str, Any]:
    """What a folder of words says of its sites."""
    from saeflow.labels.folders import ABOUT

    told: dict[str, dict[str, Any]] = read_json(folder / ABOUT)
    return told["sites"]


def _counted(folder: Path, site: Site) -> dict[str, int]:
    from saeflow.labels import WordsFolder

    rows = WordsFolder(folder).site(site)
    return {"features": len(rows), "fire": sum(row is not None for row in rows)}


def _print_words(feature: str, known: FeatureWords) -> None:
    """What is known of a feature as lines; nothing of it can steer a terminal."""
    from saeflow.report.tokens import headline, one_line, visible

    by = f"  [{one_line(known.by)}]" if known.by else ""
    typer.echo(f"{feature}: {headline(known) or '(no label)'}{by}")
    if known.score is not None:
        typer.echo(f"detection score: {known.score:.2f}")
    if known.frequency is not None:
        typer.echo(f"fires on {known.frequency:.4%} of tokens")
    for name, tokens in (("strongest on", known.tokens), ("promotes", known.promotes)):
        if tokens:
            typer.echo(f"{name}: {'  '.join(map(visible, tokens))}")
    for context in known.contexts:
        top = max(context.values, default=0.0)
        pairs = zip(map(visible, context.tokens), context.values, strict=True)
        shown = "".join(f"[{token} {value:g}]" if value and value == top else token for token, value in pairs)
        typer.echo(f"  {shown}" + (f"   ({one_line(context.source)})" if context.source else ""))
