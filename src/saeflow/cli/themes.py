"""`saeflow themes` and `saeflow find`: the themes there are, and features to start one from."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Device, Json, PrependBos, Release, print_table, progress, show
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.ids import Site
    from saeflow.labels import Words
    from saeflow.steering.starts import Candidate, TextSearch
    from saeflow.steering.theme import Theme

DEMO_BACKGROUND = 80
"""Texts of each domain of the demo pack that are its background."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(themes)
    app.command()(find)


def themes(
    release: Annotated[str, typer.Argument(help='"demo" or the name of a release; all when not given.')] = "",
    name: Annotated[str, typer.Argument(help="A theme, or the path of one, to show in full.")] = "",
    as_json: Json = False,
) -> None:
    """List the themes to steer by: subject, start features and tasks. With a name, show one in full."""
    from saeflow.steering.theme import load_theme
    from saeflow.steering.theme import themes as known

    if name:
        _show_one(load_theme(name, release), as_json)
        return
    found = known(release)
    if as_json:
        typer.echo(json.dumps({"themes": [_theme_row(theme) for theme in found]}, indent=1))
        return
    rows = [
        {
            "release": theme.release,
            "theme": theme.name,
            "subject": theme.subject,
            "starts": " ".join(map(str, theme.starts)),
            "tasks": ", ".join(key for key in ("activate", "suppress") if getattr(theme, key)),
            "examples": len(theme.examples),
        }
        for theme in found
    ]
    print_table("", rows)


def find(
    release: Release,
    words: Annotated[str, typer.Option(help="Words to look for in what is known of features.")] = "",
    texts: Annotated[
        str, typer.Option(help="Example texts: a .txt with blank lines between them, a .jsonl, or a dataset.")
    ] = "",
    theme: Annotated[str, typer.Option(help="Take the examples of this theme, or of this .toml file.")] = "",
    background: Annotated[
        str,
        typer.Option(
            help="Other texts to compare with, with commas between. When not given: all domains of the demo "
            "pack, and with --theme the examples of the release's other themes."
        ),
    ] = "",
    model: Annotated[str, typer.Option(help="Model to run; the release's own when not given.")] = "",
    sites: Annotated[
        str, typer.Option(help="Where to look, with commas between, such as 2/res,3/res; all res when empty.")
    ] = "",
    limit: Annotated[int, typer.Option(help="Features printed, best first.")] = 20,
    n: Annotated[int, typer.Option(help="Texts taken of each source, at most.")] = 500,
    min_share: Annotated[float, typer.Option(help="Share of the texts a feature must fire on.")] = 0.25,
    fdr: Annotated[float, typer.Option(help="False-discovery rate of what is found by texts.")] = 0.05,
    hold_out: Annotated[bool, typer.Option(help="Choose on half of the texts and measure again on the others.")] = True,
    atlas: Annotated[str, typer.Option(help="Atlas whose words are used; the release's when not given.")] = "",
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    seed: Annotated[int, typer.Option(help="Sets which texts are taken and how they are split.")] = 0,
    as_json: Json = False,
) -> None:
    """Find features to start a theme from, by words or by example texts.

    By words, features are ordered by how well their label and tokens match. By texts, by Hedges' g: the difference
    of their mean activation on texts and background, in standard deviations; `held out` is the same on texts that
    were not chosen with, and p is corrected for all features looked at.
    """
    if sum(map(bool, (words, texts, theme))) != 1:
        raise InvalidArgument("say what to look for with one of --words, --texts and --theme.")
    where = _sites(sites)
    if words:
        from saeflow.steering.starts import find_by_words

        told, known_sites = _words(atlas or release)
        found = find_by_words(told, words, where or known_sites, limit)
        _show_words(found, {"release": release, "words": words}, as_json)
        return
    asked = _Texts(release, texts, theme, background, n, seed)
    _by_texts(asked, where, model, atlas, device, prepend_bos, limit, min_share, fdr, hold_out, as_json)


@dataclass(frozen=True)
class _Texts:
    """Which texts are compared with which."""

    release: str
    texts: str
    theme: str
    background: str
    n: int
    seed: int

    def examples(self) -> list[str]:
        """The texts features are looked for on."""
        if self.texts:
            return _read([self.texts], self.n, self.seed)
        found = self._theme()
        if not found.examples:
            raise InvalidArgument(f"the theme {found.name!r} has no examples. Give a file with --texts.")
        return list(found.examples)

    def others(self) -> list[str]:
        """What they are compared with.

        The examples of other themes are written in one hand with those of a theme, so that what tells them apart
        is the subject and not the style.
        """
        if self.background:
            return _read(self.background.split(","), self.n, self.seed)
        found = _read(["demo"], DEMO_BACKGROUND, self.seed) if self.release == "demo" else []
        if self.theme:
            found += self._other_examples()
        if not found:
            raise InvalidArgument(
                f"there is no background for {self.release!r}. Give one with --background: a file, or a dataset "
                "such as fineweb."
            )
        return found

    def _theme(self) -> Theme:
        from saeflow.steering.theme import load_theme, themes

        known = any(self.release == theme.release for theme in themes())
        return load_theme(self.theme, self.release if known else "")

    def _other_examples(self) -> list[str]:
        from saeflow.steering.theme import themes

        own = self._theme()
        others = [theme for theme in themes() if theme.release == own.release and theme.name != own.name]
        return [text for theme in others for text in theme.examples if text not in own.examples]


def _by_texts(
    asked: _Texts,
    where: list[Site],
    model: str,
    atlas: str,
    device: str,
    prepend_bos: bool | None,
    limit: int,
    min_share: float,
    fdr: float,
    hold_out: bool,
    as_json: bool,
) -> None:
    """Compare, and show what was found."""
    examples = asked.examples()  # what is wrong with the texts shows before a model is loaded
    others = asked.others()
    from saeflow.sources.library import load_dictionaries
    from saeflow.sources.model import load_model
    from saeflow.steering.starts import find_by_texts

    dictionaries = load_dictionaries(asked.release, device=device)
    name = model or ("demo" if asked.release == "demo" else dictionaries.model)
    if not name:
        raise InvalidArgument(f"{asked.release} does not say which model it is of. Name it with --model.")
    told = _labels(asked.release, atlas)
    with progress("comparing") as report:
        made = find_by_texts(
            load_model(name, device=device, prepend_bos=prepend_bos),
            dictionaries,
            examples,
            others,
            sites=where or None,
            limit=limit,
            min_share=min_share,
            fdr=fdr,
            hold_out=hold_out,
            seed=asked.seed,
            words=told,
            progress=report,
        )
    summary: dict[str, Any] = {
        "release": asked.release,
        "texts": len(examples),
        "background": len(others),
        "features looked at": made.looked_at,
    }
    _show_contrast(made, summary, as_json)


def _labels(release: str, atlas: str) -> Words:
    """Words beside the atlas; none where the release has no atlas, for labels are no need here."""
    from saeflow.errors import SaeflowError
    from saeflow.labels import no_words

    try:
        return _words(atlas or release)[0]
    except SaeflowError:
        if atlas:
            raise
        return no_words


def _show_contrast(made: TextSearch, summary: dict[str, Any], as_json: bool) -> None:
    check = made.check
    data = summary | {"check": check and asdict(check), "found": [_found_row(row) for row in made.found]}
    if check:
        summary["all of these together on held-out texts"] = (
            f"AUC {check.auc:.3f} (p = {check.p:.1e}, {check.texts} texts, {check.background} of background)"
        )
    rows = [
        {
            "feature": str(row.feature),
            "g": row.effect,
            "held out": row.replicated,
            "texts": row.share,
            "background": row.background,
            "p": f"{row.p:.1e}",
            "label": row.label,
        }
        for row in made.found
    ]
    show(as_json, data, summary, rows)


def _show_words(found: Sequence[Candidate], summary: dict[str, Any], as_json: bool) -> None:
    rows = [
        {
            "feature": str(row.feature),
            "score": row.effect,
            "active on": row.background,
            "label": row.label,
            "why": row.why,
        }
        for row in found
    ]
    show(as_json, summary | {"found": [_found_row(row) for row in found]}, summary, rows)


def _found_row(found: Candidate) -> dict[str, Any]:
    row = asdict(found) | {"feature": str(found.feature)}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _show_one(theme: Theme, as_json: bool) -> None:
    row = _theme_row(theme)
    if as_json:
        typer.echo(json.dumps(row | {"examples": list(theme.examples)}, indent=1))
        return
    for key in ("name", "release", "subject", "starts"):
        told = row[key]
        typer.echo(f"{key}: {' '.join(told) if isinstance(told, list) else told}")
    for key in ("activate", "suppress"):
        for inner, value in (row[key] or {}).items():
            typer.echo(f"{key} {inner}: {value}")
    for subject in theme.subjects:
        typer.echo(f"rubric: {subject}")
    typer.echo(f"note: {theme.note}\n\n{len(theme.examples)} examples:")
    for example in theme.examples:
        typer.echo(f"\n{example}")


def _theme_row(theme: Theme) -> dict[str, Any]:
    return {
        "name": theme.name,
        "release": theme.release,
        "subject": theme.subject,
        "starts": [str(start) for start in theme.starts],
        "activate": theme.activate and asdict(theme.activate),
        "suppress": theme.suppress and asdict(theme.suppress),
        "subjects": list(theme.subjects),
        "examples": len(theme.examples),
        "note": theme.note,
    }


def _sites(text: str) -> list[Site]:
    from saeflow.ids import Site

    return [Site.parse(piece.strip()) for piece in text.split(",") if piece.strip()]


def _words(atlas: str) -> tuple[Words, list[Site]]:
    """The words beside an atlas, and the residual sites it covers."""
    from saeflow.ids import Part
    from saeflow.labels import words_for
    from saeflow.matching.atlas import open_atlas

    opened = open_atlas(atlas)
    return words_for(opened.release, beside=opened.folder), [site for site in opened.sites if site.part is Part.RES]


def _read(sources: Sequence[str], n: int, seed: int) -> list[str]:
    from saeflow.experiments.sampling import expand, open_dataset

    names = expand(source.strip() for source in sources if source.strip())
    return [
        text
        for name in names
        for text in itertools.islice((text for text in open_dataset(name).read(seed) if text.strip()), n)
    ]
