"""`saeflow agreement`: how often matching methods name the same predecessor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from saeflow.cli.app import Json, Projector, Release, progress, projector, show
from saeflow.cli.lists import check_ending, names_of
from saeflow.errors import InvalidArgument


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(agreement)


def agreement(
    release: Release,
    methods: Annotated[str, typer.Option(help="Methods to compare, with commas between; all when not given.")] = "",
    against: Annotated[str, typer.Option(help="Show only how far the others agree with this one.")] = "cosine",
    atlas: Annotated[
        list[Path] | None, typer.Option(help="Folder of an atlas made before, such as one of `saeflow correlate`.")
    ] = None,
    k: Annotated[int, typer.Option(help="Matches kept for each feature.")] = 5,
    model: Projector = "",
    figure: Annotated[Path | None, typer.Option(help="Draw it here (.svg, .png, .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """How often the ways to match name the same predecessor, by layer and part.

    `same` is the share of features whose best match is the same under both methods, `in top k` the share whose
    best match under the other method is among the k best of the one compared against.
    """
    from saeflow.matching.agreement import agreement as compare
    from saeflow.matching.atlas import open_atlas
    from saeflow.matching.build import compare_methods, refuse_other_weights
    from saeflow.matching.methods import METHODS
    from saeflow.sources.library import load_dictionaries

    check_ending("--figure", figure, ".svg", ".png", ".pdf")
    asked = names_of(methods) or list(METHODS)
    dictionaries, opened = load_dictionaries(release), [open_atlas(folder) for folder in atlas or ()]
    with progress("matching") as report:
        tables = dict(
            compare_methods(dictionaries, asked, k=k, projector=projector(model), partial=True, progress=report)
        )
    for made in opened:
        refuse_other_weights(made, dictionaries)
    found = compare({**tables, **{made.method: made for made in opened}})
    if against not in found.methods:
        raise InvalidArgument(f"--against {against!r} is none of those compared: {', '.join(found.methods)}.")
    kept = [row for row in found.rows if row.method_b == against]
    if figure:
        from saeflow.paper import agreement_by_layer, save

        save(agreement_by_layer([asdict(row) | {"part": row.part.value} for row in kept]), figure)
    rows = [
        {
            "method": row.method_a,
            "part": row.part.value,
            "layer": row.layer,
            "same": round(row.same, 4),
            f"in top {k}": round(row.in_top_k, 4),
            "features": row.n,
        }
        for row in kept
    ]
    summary = {"release": release, "against": against}
    show(as_json, summary | {"rows": rows}, summary, rows)
