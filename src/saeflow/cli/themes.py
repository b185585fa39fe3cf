"""`saeflow themes`, `themes find` and `find`: list themes, find new ones, and find features to start one from."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from saeflow.cli.options import (
    AtlasName,
    Json,
    ModelOptions,
    NTexts,
    OutFolder,
    Release,
    SiteNames,
    TextSources,
    sites_named,
)
from saeflow.cli.output import Row, print_json, print_none_found, progress, show
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.ids import Site
    from saeflow.labels import Words
    from saeflow.steering.starts import Candidate
    from saeflow.steering.theme import Theme

DEMO_BACKGROUND = 80
"""How many texts of each domain of the demo pack are its background."""


def themes_list(
    release: Annotated[str, Parameter(help="Release of dictionaries: all by default.")] = "",
    theme: str = "",
    /,
    *,
    as_json: Json = False,
) -> None:
    """List the themes to steer by: subject, start features and tasks. With a name, show one theme in full.

    Args:
        theme: Theme to steer by: a name or a .toml file, to show in full; "found" lists those of `themes find`.
    """
    from saeflow.steering.theme import load_theme
    from saeflow.steering.theme import themes as known

    if theme in ("", "found"):
        found = known(release, theme)
        rows = [
            {
                **({} if release else {"release": one.release}),
                "theme": f"{theme}/{one.name}" if theme else one.name,
                "subject": one.subject,
                "starts": " ".join(map(str, one.starts)),
                "tasks": ", ".join(key for key in ("activate", "suppress") if getattr(one, key)),
                "examples": len(one.examples),
            }
            for one in found
        ]
        show(as_json, {"themes": [_theme_row(one) for one in found]}, {}, rows)
        return
    shown = load_theme(theme, release)
    row = _theme_row(shown)
    if as_json:
        print_json(row | {"examples": list(shown.examples)})
        return
    for key in ("name", "release", "subject"):
        print(f"{key}: {row[key]}")
    print(f"starts: {' '.join(row['starts'])}")
    for key in ("activate", "suppress"):
        for inner, value in (row[key] or {}).items():
            print(f"{key} {inner}: {value}")
    if shown.keywords:
        print(f"keywords: {', '.join(shown.keywords)}")
    for subject in shown.subjects:
        print(f"rubric: {subject}")
    print(f"note: {shown.note}\n\n{len(shown.examples)} examples:")
    for example in shown.examples:
        print(f"\n{example}")


def _theme_row(theme: Theme) -> Row:
    return {
        "name": theme.name,
        "release": theme.release,
        "subject": theme.subject,
        "starts": [str(start) for start in theme.starts],
        "activate": theme.activate and asdict(theme.activate),
        "suppress": theme.suppress and asdict(theme.suppress),
        "keywords": list(theme.keywords),
        "subjects": list(theme.subjects),
        "examples": len(theme.examples),
        "note": theme.note,
    }


def themes_find(
    release: Release,
    /,
    *,
    texts: TextSources = (),
    n_texts: NTexts = 400,
    sites: Annotated[
        SiteNames,
        Parameter(
            help="Sites, or parts at all layers: where starts may lie, by default res but for the first and last sixth."
        ),
    ] = (),
    n_themes: int = 16,
    prompt: str = "I think",
    language_model: ModelOptions = ModelOptions(),
    atlas: AtlasName = "",
    seed: int = 0,
    out: Annotated[Path | None, OutFolder] = None,
    as_json: Json = False,
) -> int:
    """Find themes that a release's own features offer: each with a start feature, keywords, examples and both tasks.

    Nothing is steered: a theme is chosen for how clearly its keywords identify the texts that its feature fires on. The
    exit code is 1 if none is found.

    Args:
        texts: Where texts come from: texts of the kinds the model writes; by default those of the pack, except Python
            code and the texts that the offline judge learns from.
        n_themes: Number of themes: at most, the clearest first.
        prompt: Prompt of texts steered towards the theme.
        seed: Random seed: of the halves of the texts, and of the unsteered samples.
        out: Where to write: a folder, with a file for each theme.
    """
    from saeflow.experiments.sampling import PYTHON, expand, read_texts
    from saeflow.files import write_atomic
    from saeflow.sources.library import load_dictionaries
    from saeflow.steering.judges.offline import pack_background
    from saeflow.steering.theme_search import search_themes

    # 1. texts that no judge learns from, and sites with words
    names = texts or [name for name in expand([release]) if name not in PYTHON]
    if not texts and names == [release]:
        raise InvalidArgument(f"there are no texts of {release!r}. Give some with --texts: a file, or a dataset.")
    judged = set() if texts else set(pack_background(release))
    read = [text for text in read_texts(names, n_texts, seed) if text not in judged]
    known, there = _words_and_sites(atlas or release)
    middle = there[len(there) // 6 : len(there) - len(there) // 6]

    # 2. the search
    dictionaries = load_dictionaries(release, device=language_model.device)
    model = language_model.load(release, dictionaries)
    with progress("looking") as report:
        made = search_themes(
            model,
            dictionaries,
            known,
            read,
            sites=sites_named(sites, there) if sites else middle,
            release=release,
            limit=n_themes,
            prompt=prompt,
            seed=seed,
            progress=report,
        )

    # 3. its files and its table
    if out:
        for one in made.found:
            write_atomic(out / f"{one.theme.name}.toml", one.theme.to_toml().encode())
    left_out = dict(sorted(made.left_out.items(), key=lambda item: -item[1]))
    rows = [
        {
            "theme": one.theme.name,
            "start": str(one.theme.starts[0]),
            "AUC": one.auc,
            "texts": one.holding,
            "others": one.others,
            "unsteered": one.unsteered,
            "active": one.active,
            "keywords": ", ".join(one.theme.keywords),
        }
        for one in made.found
    ]
    summary: Row = {"release": release, "texts": len(read), "features looked at": made.looked_at}
    data = summary | {"left_out": left_out, "found": rows}
    summary |= {f"left out, {why}": n for why, n in left_out.items()} | ({"written": f"{out}"} if out else {})
    show(as_json, data, summary, rows)
    return 0 if rows else 1


def find(
    release: Release,
    /,
    *,
    words: str = "",
    texts: TextSources = (),
    theme: str = "",
    background: tuple[str, ...] = (),
    language_model: ModelOptions = ModelOptions(),
    sites: Annotated[
        SiteNames, Parameter(help="Sites, or parts at all layers: 12/res,13/res or res; those of res by default.")
    ] = (),
    limit: int = 20,
    n_texts: NTexts = 500,
    min_share: float = 0.25,
    fdr: float = 0.05,
    hold_out: bool = True,
    atlas: AtlasName = "",
    seed: int = 0,
    as_json: Json = False,
) -> int:
    """Find features to start a theme from, by words or by example texts. The exit code is 1 if there are none.

    By words, features are sorted by how well their label and tokens match. By texts, they are sorted by Hedges' g: the
    difference between their mean activations on the texts and on the background, in standard deviations. `held out` is
    the same on texts that had no part in the choice, and p is corrected for all features examined.

    Args:
        words: Words to look for: in what is known about features.
        theme: Theme to steer by: its examples are the texts.
        background: Other texts to compare with: by default all domains of the demo if it is the release, and with
            --theme the examples of the release's other themes.
        limit: Rows to print: the best first.
        min_share: Share of the texts that a feature must fire on.
        fdr: False-discovery rate: among the features found by texts.
        hold_out: Choose on half of the texts and measure again on the others.
        seed: Random seed: of the choice of texts, and of their halves.
    """
    if sum(map(bool, (words, texts, theme))) != 1:
        raise InvalidArgument("say what to look for with one of --words, --texts and --theme.")
    if words:
        from saeflow.steering.starts import find_by_words

        known, all_sites = _words_and_sites(atlas or release)
        found = find_by_words(known, words, sites_named(sites, all_sites), limit)
        summary: Row = {"release": release, "words": words}
        columns = {"feature": "feature", "score": "effect", "active on": "background", "label": "label", "why": "why"}
        rows = [{title: row[name] for title, name in columns.items()} for row in map(_found_row, found)]
        if found or as_json:
            show(as_json, summary | {"found": [_found_row(row) for row in found]}, summary, rows)
        else:
            print_none_found(words)
        return 0 if found else 1

    from saeflow.experiments.sampling import read_texts

    examples = read_texts(texts, n_texts, seed) if texts else _examples_of(release, theme)
    # examples of the other themes have the same author as those of this one, and differ from them only in subject
    others = read_texts(background, n_texts, seed) if background else _default_background(release, theme, seed)
    from saeflow.sources.library import load_dictionaries
    from saeflow.steering.starts import find_by_texts

    dictionaries = load_dictionaries(release, device=language_model.device)
    loaded = language_model.load(release, dictionaries)
    with progress("comparing") as report:
        made = find_by_texts(
            loaded,
            dictionaries,
            examples,
            others,
            sites=sites_named(sites, dictionaries.sites) if sites else None,
            limit=limit,
            min_share=min_share,
            fdr=fdr,
            hold_out=hold_out,
            seed=seed,
            words=_words_if_any(release, atlas),
            progress=report,
        )
    summary = {
        "release": release,
        "texts": len(examples),
        "background": len(others),
        "features looked at": made.looked_at,
    }
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
    return 0 if rows else 1


def _found_row(found: Candidate) -> Row:
    row = asdict(found) | {"feature": str(found.feature)}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _theme_of(release: str, name: str) -> Theme:
    from saeflow.steering.theme import load_theme
    from saeflow.steering.theme import themes as known

    return load_theme(name, release if any(release == theme.release for theme in known()) else "")


def _examples_of(release: str, name: str) -> list[str]:
    """The examples of a theme.

    Raises:
        InvalidArgument: when it has none.
    """
    found = _theme_of(release, name)
    if not found.examples:
        raise InvalidArgument(f"the theme {found.name!r} has no examples. Give a file with --texts.")
    return list(found.examples)


def _default_background(release: str, theme: str, seed: int) -> list[str]:
    """Texts of the demo pack if it is the release, and with a theme the examples of the release's other themes.

    Raises:
        InvalidArgument: when there are none.
    """
    from saeflow.experiments.sampling import read_texts
    from saeflow.steering.theme import themes as known

    found = read_texts(["demo"], DEMO_BACKGROUND, seed) if release == "demo" else []
    if theme:
        own = _theme_of(release, theme)
        others = [one for one in known() if one.release == own.release and one.name != own.name]
        found += [text for one in others for text in one.examples if text not in own.examples]
    if not found:
        raise InvalidArgument(
            f"there is no background for {release!r}. Give one with --background: a file, or a dataset such as fineweb."
        )
    return found


def _words_and_sites(atlas: str) -> tuple[Words, list[Site]]:
    """The words of an atlas's release, and the residual sites of the atlas."""
    from saeflow.ids import Part
    from saeflow.labels import words_for
    from saeflow.matching.atlas import open_atlas

    opened = open_atlas(atlas)
    return words_for(opened.release, beside=opened.folder), [site for site in opened.sites if site.part is Part.RES]


def _words_if_any(release: str, atlas: str) -> Words:
    """The same words; none if the atlas of the release cannot be opened, since labels are not needed here."""
    from saeflow.errors import SaeflowError
    from saeflow.labels import no_words

    try:
        return _words_and_sites(atlas or release)[0]
    except SaeflowError:
        if atlas:
            raise
        return no_words
