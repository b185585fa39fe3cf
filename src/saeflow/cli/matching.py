"""`saeflow match` and `saeflow atlas`: match tables of two sites, and of a whole release."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saeflow.cli import calibrate
from saeflow.cli.app import Device, Json, Projector, Release, progress, projector, show
from saeflow.cli.engine import PANEL, Address, Cpus, Engine, Gpus, Workers, opened
from saeflow.cli.lists import check_ending, parts_of

Method = Annotated[str, typer.Option(help="How rows are compared; `saeflow methods` lists the ways.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(match)
    app.command()(methods)
    atlas = typer.Typer(help="Build and inspect atlases: all match tables of a release.", no_args_is_help=True)
    atlas.command("build")(atlas_build)
    atlas.command("info")(atlas_info)
    calibrate.add_to(atlas)
    app.add_typer(atlas, name="atlas")


def match(
    release: Release,
    source: Annotated[str, typer.Argument(help="Site whose features are matched, such as 4/res.")],
    target: Annotated[str, typer.Argument(help="Site they are matched to, such as 3/res.")],
    k: Annotated[
        int | None, typer.Option(help="Matches kept for each feature; 5, or 1 for one-to-one methods.")
    ] = None,
    method: Method = "cosine",
    other: Annotated[str, typer.Option(help="Release of the target, where it is another one of the same model.")] = "",
    limit: Annotated[int, typer.Option(help="Features printed, best matched first.")] = 20,
    model: Projector = "",
    out: Annotated[Path | None, typer.Option(help="Write the whole table here (.safetensors).")] = None,
    as_json: Json = False,
) -> None:
    """Match any two sites, of one release or of two; `saeflow methods` lists the methods."""
    from saeflow.ids import Site
    from saeflow.matching.methods import find_method, match_pair
    from saeflow.report.tables import match_rows
    from saeflow.sources.library import load_dictionaries

    check_ending("--out", out, ".safetensors")
    sites = Site.parse(source), Site.parse(target)
    dictionaries = load_dictionaries(release)
    there = load_dictionaries(other) if other else dictionaries
    kept = find_method(method).default_k if k is None else k
    table, back = match_pair(dictionaries[sites[0]], there[sites[1]], k=kept, method=method, projector=projector(model))
    if out:
        table.save(out)
    summary, rows = match_rows(table, limit, back)
    show(as_json, summary | {"matches": rows}, summary, rows)


def methods(as_json: Json = False) -> None:
    """List the ways to match two dictionaries by their weights."""
    from saeflow.matching.methods import METHODS

    rows = [{"method": m.name, "what it does": m.sentence, "from": m.source} for m in METHODS.values()]
    show(as_json, {"methods": rows}, {}, rows)


def atlas_build(
    release: Release,
    out: Annotated[Path | None, typer.Option(help="Folder of the atlas; in the cache when not given.")] = None,
    k: Annotated[
        int | None, typer.Option(help="Matches kept for each feature; 5, or 1 for one-to-one methods.")
    ] = None,
    method: Method = "cosine",
    device: Device = "cpu",
    parts: Annotated[str, typer.Option(help="Parts to match, with commas between.")] = "res,mlp,att",
    model: Projector = "",
    shard_rows: Annotated[
        int,
        typer.Option(
            help="Match by shards of about so many features, for dictionaries that do not fit one machine; 0 for none.",
            rich_help_panel=PANEL,
        ),
    ] = 0,
    engine: Engine = "here",
    workers: Workers = 0,
    address: Address = "",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
) -> None:
    """Match every pair of sites that a flow graph needs. A killed build goes on where it stopped."""
    from saeflow.matching.atlas import atlas_folder
    from saeflow.matching.build import build_atlas
    from saeflow.sources.library import load_dictionaries

    where = opened(engine, workers, address, cpus, gpus)
    dictionaries = load_dictionaries(release, device=device).only(parts_of(parts))
    folder = out or atlas_folder(release, method)
    with progress("matching") as report, where:
        built = build_atlas(
            dictionaries,
            out=folder,
            k=k,
            method=method,
            release=dictionaries.name,
            model=dictionaries.model,
            projector=projector(model),
            progress=report,
            engine=where,
            shard_rows=shard_rows or None,
        )
    typer.echo(f"{len(built)} tables of {len(built.sites)} sites, k = {built.k}, in {folder}")


def atlas_info(release: Release, as_json: Json = False) -> None:
    """What an atlas holds, and how well neighbouring sites match."""
    from saeflow.matching.atlas import open_atlas
    from saeflow.report.tables import atlas_rows

    summary, rows = atlas_rows(open_atlas(release))
    show(as_json, summary | {"tables": rows}, summary, rows)
