"""`saeflow atlas calibrate`: what matches score by chance, and the thresholds that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from saeflow.cli.app import Device, Json, Projector, Release, progress, projector, show
from saeflow.cli.lists import EXCEEDS, check_ending


def add_to(app: typer.Typer) -> None:
    """Register the command, on the commands of `saeflow atlas`."""
    app.command()(calibrate)


def calibrate(
    release: Release,
    atlas: Annotated[
        Path | None, typer.Option(help="Folder of the atlas; the one of this name when not given.")
    ] = None,
    null: Annotated[str, typer.Option(help="What chance is: moments, families, rotation or far.")] = "moments",
    rows: Annotated[int, typer.Option(help="Null rows drawn at a time, for each pair of sites.")] = 2048,
    rotations: Annotated[int, typer.Option(help="How many times.")] = 8,
    fdr: Annotated[float, typer.Option(help=f"False-discovery rate of the thresholds shown; {EXCEEDS}")] = 0.01,
    seed: Annotated[int, typer.Option(help="What the rows are drawn with.")] = 0,
    device: Device = "cpu",
    model: Projector = "",
    figure: Annotated[Path | None, typer.Option(help="Draw thresholds by layer here (.svg, .png, .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """Draw what best matches score by chance, keep it with the atlas, and show thresholds by layer."""
    from saeflow.matching.atlas import open_atlas
    from saeflow.matching.calibration import calibrate as run
    from saeflow.report.tables import calibration_rows
    from saeflow.sources.library import load_dictionaries

    check_ending("--figure", figure, ".svg", ".png", ".pdf")
    opened = open_atlas(atlas or release)
    with progress("calibrating") as report:
        made = run(
            load_dictionaries(release, device=device),
            opened,
            rows=rows,
            rotations=rotations,
            seed=seed,
            null=null,
            projector=projector(model),
            progress=report,
        )
    found = calibration_rows(made, fdr)
    if figure:
        from saeflow.paper import calibrated_thresholds, save

        save(calibrated_thresholds(figure_rows(found)), figure)
    summary = {"release": made.release, "null": null, "fdr": fdr, "folder": str(made.folder)}
    show(as_json, summary | {"pairs": found}, summary, found)


def figure_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `calibration_rows` as the figure takes them: predecessors only, a gap where nothing is significant."""
    return [
        {
            "layer": row["layer"],
            "part": row["part"],
            "threshold": None if row["threshold"] >= 1 else row["threshold"],
            "null_q50": row["null q50"],
            "null_q99": row["null q99"],
            "kept": row["kept"],
            "kept_fixed": row["kept plain"],
        }
        for row in rows
        if row["direction"] == "backward"
    ]
