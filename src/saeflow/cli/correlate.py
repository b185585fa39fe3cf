"""`saeflow correlate`: an atlas whose scores are Pearson correlations of activations (appendix C.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saeflow.cli.app import Device, PrependBos, Release, progress
from saeflow.errors import InvalidArgument


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(correlate)


def correlate(
    release: Release,
    texts: Annotated[
        list[str],
        typer.Option(
            help='Where texts come from, once or more: a .txt, .jsonl or .parquet file, "demo", '
            "or a dataset on the hub."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the atlas; in the cache when not given.")] = None,
    model: Annotated[str, typer.Option(help="Model to run; the release's own when not given.")] = "",
    n: Annotated[int, typer.Option(help="Texts taken from each source.")] = 500,
    tokens: Annotated[int, typer.Option(help="Stop after this many tokens that are not special.")] = 100_000,
    k: Annotated[int, typer.Option(help="Matches kept for each feature.")] = 5,
    max_length: Annotated[int, typer.Option(help="Tokens of each text at most.")] = 256,
    sites_at_once: Annotated[
        int, typer.Option(help="Dictionaries in memory at a time; 0 for all. Fewer read the texts again.")
    ] = 0,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Sets the order in which texts are taken.")] = 0,
    prepend_bos: PrependBos = None,
    keep: Annotated[bool, typer.Option(help="Keep the activations, for another k.")] = False,
) -> None:
    """Match every pair of sites of a flow by how features fire together. A killed run resumes.

    Texts come from the quarter that experiments never sample, so that no match was fitted on what it is
    tested with.
    """
    from saeflow.experiments.sampling import expand, held_out, open_dataset
    from saeflow.matching.atlas import atlas_folder
    from saeflow.matching.correlation import METHOD
    from saeflow.matching.correlation import correlate as run
    from saeflow.sources.library import load_dictionaries
    from saeflow.sources.model import load_model

    dictionaries = load_dictionaries(release, device=device)
    name = model or ("demo" if release == "demo" else dictionaries.model)
    if not name:
        raise InvalidArgument(f"{release} does not say which model it was trained on. Name it with --model.")
    found = held_out([open_dataset(source) for source in expand(texts)], n, seed)
    folder = out or atlas_folder(release, METHOD)
    with progress("correlating") as report:
        built = run(
            load_model(name, device=device, prepend_bos=prepend_bos),
            dictionaries,
            found,
            out=folder,
            k=k,
            max_length=max_length,
            max_tokens=tokens,
            sites_at_once=sites_at_once or None,
            release=dictionaries.name,
            keep_activations=keep,
            progress=report,
        )
    typer.echo(f"{len(built)} tables of {len(built.sites)} sites, k = {built.k}, in {folder}")
