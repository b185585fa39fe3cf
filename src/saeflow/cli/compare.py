"""`saeflow compare`: compare two or more releases or folders of dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from saeflow.cli.options import Device, Json, OutFolder, Projector, Release, SiteNames, Together, projector, sites_named
from saeflow.cli.output import Row, print_json, print_table, progress
from saeflow.comparison.settings import ComparisonSettings
from saeflow.ids import Site

_SHOWN = {
    "pairs": ("a", "b", "pw_mcc", "rotated", "signed", "a in b", "b in a", "mutual", "shared"),
    "compare_kinds": ("a", "b", "n", "shared", "related", "only", "no direction"),
    "compare_steps": ("step", "name", "carried", "born", "lost", "drift", "pw_mcc", "pw_mcc last", "there"),
    "splits": ("of", "feature", "parts", "best", "span", "chance", "words"),
    "only": ("of", "feature", "cosine", "density", "words"),
    "duplicates": ("in", "feature", "other", "cosine", "words"),
}
"""The tables that are printed, with the columns that fit a terminal."""


def compare(
    a: Release,
    b: Release,
    /,
    *more: Release,
    settings: Annotated[ComparisonSettings, Together] = ComparisonSettings(),
    sites: SiteNames = (),
    pairing: Literal["name", "all"] = "name",
    pairs: Annotated[tuple[tuple[Site, Site], ...], Parameter("--map", n_tokens=1)] = (),
    names: tuple[str, ...] = (),
    model: Projector = "",
    device: Device = "cpu",
    out: Annotated[Path | None, OutFolder] = None,
    limit: int = 10,
    as_json: Json = False,
) -> None:
    """Compare dictionaries: seeds, widths, checkpoints, a base model and its tuned version. Three or more form a chain.

    Shows PW-MCC, mean max cosines, features that are shared or in one dictionary only, splits and duplicates; for a
    chain, also where features are born, drift and are lost. Features are shown with their words on this machine.

    Args:
        a: "demo", a folder, FOLDER@PATTERN for some of its SAEs, or the name of a release.
        b: Another one.
        more: Further ones, in order, such as checkpoints.
        pairing: "name" pairs equal sites, "all" every site of A with every site of B.
        pairs: Pairs of sites, one of each side, such as 3/res>4/res: one of A, one of B.
        names: Names to show.
        limit: Rows to print: of each table, at most.
        out: Where to write: a folder for the page, comparison.json and all tables.
    """
    from saeflow.comparison.run import compare as run
    from saeflow.sources.library import load_dictionaries

    with progress("comparing") as report:
        found = run(
            a,
            b,
            *more,
            settings=settings,
            sites=sites_named(sites, load_dictionaries(a).sites) if sites else (),
            pairing=pairing,
            mapping=pairs,
            names=names,
            projector=projector(model),
            device=device,
            progress=report,
        )
    page = None if out is None else found.save(out)
    if as_json:
        import json

        print_json(json.loads(found.to_json()), indent=None)
        return
    for name, columns in _SHOWN.items():
        if name in found.tables and found.tables[name].rows:
            table = found.tables[name]
            rows: list[Row] = [{column: row[column] for column in columns} for row in table.dicts()[:limit]]
            more_rows = f" (the first {limit} of {len(table.rows):,})" if len(table.rows) > limit else ""
            print_table(rows, f"{table.title}{more_rows}")
    if page is not None:
        print(f"{len(found.tables)} tables in {out}; open {page}")
