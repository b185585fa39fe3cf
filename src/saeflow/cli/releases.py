"""`saeflow releases`: the releases saeflow knows by name, and what of them is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Json, show

if TYPE_CHECKING:
    from saeflow.sources.releases import Release, ReleaseEntry


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(releases)


def releases(
    name: Annotated[
        str, typer.Argument(help="A release or a .toml file, with parameters after an @; all when not given.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List releases: model, sites, size, and how much is in the hub's cache. Asks no network.

    Of a site all may be here ("yes"), or what matching reads ("W_dec only"), or its sizes ("headers").
    """
    from saeflow.sources.releases import known_releases, read_release

    if name:
        recipe = read_release(name)
        rows = [_site_row(str(site), entry) for site, entry in recipe.sites.items()]
        summary = _recipe_row(recipe) | {"about": recipe.about, "parameters": _options(recipe)}
        show(as_json, summary | {"sites": rows}, summary, rows)
        return
    rows = [_recipe_row(read_release(known)) for known in known_releases()]
    # on a terminal the owner of a model is left out: lines are long enough
    short = [
        row | {"model": row["model"].split("/")[-1], "GB": "-" if row["GB"] is None else f"{row['GB']:.1f}"}
        for row in rows
    ]
    show(as_json, {"releases": rows}, {}, short)


def _recipe_row(recipe: Release) -> dict[str, Any]:
    from saeflow.ids import Part
    from saeflow.sources.hub import CacheState, cache_state

    sites = list(recipe.sites)
    layers = sorted({site.layer for site in sites})
    sizes = [entry.size for entry in recipe.sites.values() if entry.size is not None]
    whole = layers == list(range(layers[0], layers[-1] + 1))
    held = [cache_state(entry) for entry in recipe.sites.values()]
    # what is known of some sites alone would be taken for the size of all
    known = len(sizes) == len(sites)
    return {
        "release": recipe.name,
        "model": recipe.model,
        "parts": " ".join(part.value for part in Part if any(site.part is part for site in sites)),
        "layers": f"{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else " ".join(map(str, layers)),
        "features": max((size.n_features for size in sizes), default=None) if known else None,
        "GB": round(sum(size.n_bytes for size in sizes) / 1e9, 1) if known else None,
        "in cache": f"{held.count(CacheState.YES)} of {len(sites)}",
        "W_dec only": held.count(CacheState.DECODER),
    }


def _site_row(site: str, entry: ReleaseEntry) -> dict[str, Any]:
    from saeflow.sources.hub import cache_state

    size = entry.size
    return {
        "site": site,
        "features": None if size is None else size.n_features,
        "width": None if size is None else size.d_in,
        "MB": None if size is None else round(size.n_bytes / 1e6),
        "in cache": cache_state(entry).value,
        "file": f"{entry.repo}/{entry.files[0]}",
        "labels": entry.labels or None,
    }


def _options(recipe: Release) -> str:
    told = [
        f"{key} ({', '.join(f'[{v}]' if v == recipe.chosen[key] else v for v in values)})"
        for key, values in recipe.options.items()
    ]
    return "; ".join(told) or "none"
