"""`saeflow info`: what a release holds, and how good it is."""

from __future__ import annotations

import json

import typer

from saeflow.cli.app import Json, Release, print_table, show


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(info)


def info(release: Release, as_json: Json = False) -> None:
    """What a release holds; for the demo pack, its measured quality too."""
    from saeflow.demo import quality
    from saeflow.report.tables import quality_rows, release_rows

    if release == "demo":
        measured = quality()
        blocks = quality_rows(measured)
        if as_json:
            typer.echo(json.dumps(measured, indent=1))
            return
        for title, rows in blocks:
            print_table(title, rows)
        return
    from saeflow.sources.library import load_dictionaries

    summary, rows = release_rows(load_dictionaries(release))
    show(as_json, summary | {"sites": rows}, summary, rows)
