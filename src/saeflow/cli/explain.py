"""`saeflow labels explain`: labels by a language model behind the chat API of OpenAI, with detection scores.

The number of requests is told before the first one. Answers are kept by what was asked, so that a rerun, or a run
after a kill, asks only the rest. The key is read from the environment alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Json, Release, print_table, progress
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.ids import FeatureId, Site
    from saeflow.labels.explain import Chat, Explained, RequestEstimate
    from saeflow.llm.endpoint import Secret


def explain(
    release: Release,
    features: Annotated[
        list[str] | None, typer.Argument(help="Features, such as 4/res/72; or --sites.", show_default=False)
    ] = None,
    sites: Annotated[
        str, typer.Option(help="Sites or parts, commas between: 12/res,13/res or res; all their features.")
    ] = "",
    limit: Annotated[int, typer.Option(help="Features of each site at most, those that fire most; 0 for all.")] = 0,
    endpoint: Annotated[
        str, typer.Option(help="Address of the chat API; OPENAI_BASE_URL, else that of OpenAI, when not given.")
    ] = "",
    model_name: Annotated[
        str, typer.Option(help="Model that is asked; SAEFLOW_JUDGE_MODEL, else gpt-4o-mini, when not given.")
    ] = "",
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.")] = 8,
    per_minute: Annotated[float, typer.Option(help="Requests a minute at most; 0 for no limit.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Sets which silent passages are shown, and the order.")] = 0,
    words: Annotated[
        Path | None, typer.Option(help="Folder of words with passages; the one made or fetched when not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many requests it would be, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Let a language model label features by their passages, and test the labels on others.

    The key is read from OPENAI_API_KEY and written nowhere. Answers are kept: those that are there cost nothing.
    """
    from saeflow.labels.explain import estimate, write_explanations
    from saeflow.llm.endpoint import DEFAULT_MODEL, Endpoint, Pacing, place_of

    folder = words or _folder(release)
    asked = _features(folder, features or [], sites, limit)
    name = model_name or os.environ.get("SAEFLOW_JUDGE_MODEL") or DEFAULT_MODEL
    address = _address(endpoint or os.environ.get("OPENAI_BASE_URL") or "")
    pacing = Pacing(concurrency=concurrency, per_minute=per_minute or None)
    told = estimate(folder, name, asked, seed=seed)
    if not as_json:
        typer.echo(_said(told, name, place_of(address), len(asked)), err=True)
    found: list[Explained] = []
    written = 0
    if not dry_run:
        secret = _secret(address, needed=told.requests > 0)
        with Endpoint(name, base_url=address, secret=secret, temperature=0.0, seed=seed, pacing=pacing) as chat:
            try:
                _ask(folder, chat, asked, seed, found)
            finally:
                written = write_explanations(folder, found)  # what came before an error is worth keeping
    _show(told, found, folder, written, name, as_json=as_json, dry_run=dry_run)


def _ask(folder: Path, chat: Chat, asked: Sequence[FeatureId], seed: int, found: list[Explained]) -> None:
    from saeflow.labels.explain import explain as explained

    with progress("asking") as report:
        found.extend(explained(folder, chat, asked, seed=seed, progress=report))


def _folder(release: str) -> Path:
    """The words of a release that may be written: made here, else fetched."""
    from saeflow.labels.folders import LOCAL, NEURONPEDIA, words_folder
    from saeflow.labels.words import words_sites

    for origin in (LOCAL, NEURONPEDIA):
        folder = words_folder(release, origin)
        if folder.is_dir() and words_sites(folder):
            return folder
    raise InvalidArgument(
        f"there are no words of {release} that could be explained. Make them with passages to show: saeflow labels "
        f"make {release} --contexts 20 --texts ...; or name a folder of words with --words."
    )


def _features(folder: Path, named: Sequence[str], sites: str, limit: int) -> list[FeatureId]:
    """The features that were named, or those of the sites."""
    from saeflow.ids import FeatureId
    from saeflow.labels.words import words_sites

    if bool(named) == bool(sites):
        raise InvalidArgument("name features, such as 4/res/72, or sites with --sites: one of the two.")
    if limit < 0:
        raise InvalidArgument(f"--limit {limit} is below 0. Give 0 for all features, or how many of each site.")
    there = words_sites(folder)
    if named:
        asked = [FeatureId.parse(name) for name in named]
        if missing := sorted({str(one.site) for one in asked if one.site not in there}):
            raise InvalidArgument(f"{folder} has no words of {', '.join(missing)}. Make or fetch them first.")
        return asked
    return [one for site in _sites(sites, there, folder) for one in _of_site(folder, site, limit)]


def _sites(asked: str, there: Sequence[Site], folder: Path) -> list[Site]:
    from saeflow.cli.lists import names_of
    from saeflow.ids import Part, Site

    chosen: set[Site] = set()
    for name in names_of(asked):
        some = {site for site in there if site.part.value == name} if name in set(Part) else {Site.parse(name)}
        if not some or not some <= set(there):
            raise InvalidArgument(f"--sites names {name}, and {folder} has {', '.join(map(str, there))}.")
        chosen |= some
    return sorted(chosen)


def _of_site(folder: Path, site: Site, limit: int) -> list[FeatureId]:
    """Features with passages; with a limit those that fire most."""
    from saeflow.ids import FeatureId
    from saeflow.labels.words import WordsFolder

    rows = WordsFolder(folder).site(site)
    known = [(-(row.frequency or 0.0), i) for i, row in enumerate(rows) if row is not None and row.contexts]
    kept = sorted(known)[:limit] if limit else known
    return [FeatureId(site, i) for _, i in kept]


def _address(url: str) -> str | None:
    """A base URL that can be asked; None for that of OpenAI."""
    if not url:
        return None
    from saeflow.llm.endpoint import is_address

    if not is_address(url):
        raise InvalidArgument(
            "the address of the endpoint is no http(s) address. Give one such as http://localhost:8000/v1, with "
            "--endpoint or in OPENAI_BASE_URL."
        )
    return url


def _secret(address: str | None, *, needed: bool) -> Secret:
    """The key of the environment. A server of one's own may need none, and kept answers need nobody."""
    from saeflow.llm.endpoint import Secret

    key = os.environ.get("OPENAI_API_KEY") or ""
    if not key and address is None and needed:
        raise InvalidArgument(
            "there is no key for the OpenAI API. Set OPENAI_API_KEY, or give the address of a server of your own with "
            "--endpoint."
        )
    return Secret(key or "none")


def _said(told: RequestEstimate, name: str, place: str, n: int) -> str:
    """What will be asked, in a sentence."""
    requests = f"{told.requests} request{'' if told.requests == 1 else 's'}"
    said = f"{n} feature{'' if n == 1 else 's'}: {requests} to {name} at {place}, {told.cached} answers are kept"
    return f"{said}; {told.silent} have no passages" if told.silent else said


def _show(
    told: RequestEstimate,
    found: Sequence[Explained],
    folder: Path,
    written: int,
    name: str,
    *,
    as_json: bool,
    dry_run: bool,
) -> None:
    rows = [_row(one) for one in found]
    if as_json:
        asked = {"requests": told.requests, "cached": told.cached, "without_passages": told.silent}
        typer.echo(json.dumps({"model": name, **asked, "written": written, "features": rows}, indent=1))
        return
    if dry_run:
        return
    shown = [{**row, "score": "" if row["score"] is None else f"{row['score']:.2f}"} for row in rows]
    print_table("", [{k: row[k] for k in ("feature", "label", "score", "silent from", "problem")} for row in shown])
    typer.echo(f"{written} labels written to {folder}; a score of 0.5 is what guessing gives")


def _row(one: Explained) -> dict[str, Any]:
    """A feature as a row; nothing of a model's answer can steer a terminal."""
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
