"""`saeflow info`: what a release holds, and how good it is."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from saeflow.cli.app import Json, Release, print_table, show
from saeflow.files import folder_and_pattern


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(info)


def info(release: Release, as_json: Json = False) -> None:
    """What a release holds, and what was left out; for the demo pack and a folder of train, its quality too.

    A site that does not open says why in its row.
    """
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
    from saeflow.training.record import last_measured

    trained, quality_of = last_measured(Path(folder_and_pattern(release)[0]))
    summary, rows, left_out = release_rows(load_dictionaries(release), quality_of)
    summary |= trained
    show(as_json, summary | {"sites": rows, "left_out": left_out}, summary, rows)
    if left_out and not as_json:
        print_table("", left_out)
