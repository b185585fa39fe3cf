"""`saeflow origins` and `saeflow deactivate`: the experiments of sections 5.1 and 5.2 into results folders.

Both go on where a killed run stopped, when they are called again with the same arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Device, Json, PrependBos, Release, bars, print_table
from saeflow.cli.engine import Address, Cpus, Engine, Gpus, Workers, opened
from saeflow.cli.lists import layers_of, names_of, number_of, numbers_of

if TYPE_CHECKING:
    from saeflow.experiments.results import Results, SummaryTable
    from saeflow.experiments.settings import InputNames

Atlas = Annotated[str, typer.Option(help="Atlas of cosine matches; that of the release when not given.")]
Model = Annotated[str, typer.Option(help="Language model; the one the release names when not given.")]
Datasets = Annotated[str, typer.Option(help='Datasets, with commas between: "demo", "demo:stories", fineweb, a file.')]
Texts = Annotated[int, typer.Option(help="Texts of each dataset, at most.")]
TokensOf = Annotated[int, typer.Option("--tokens", help="Random tokens of each text.")]
Layers = Annotated[str, typer.Option(help="Residual layers, with commas between, 6-9 for a range; empty for all.")]
MaxLength = Annotated[int, typer.Option(help="Tokens a text is cut to.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Pearson = Annotated[str, typer.Option(help="Atlas of Pearson correlations; made on held-out texts when not given.")]
PearsonDatasets = Annotated[
    str, typer.Option(help="Datasets it is made on; the first one, and for the demo all but python.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(origins)
    app.command()(deactivate)


def origins(
    release: Release,
    atlas: Atlas = "",
    model: Model = "",
    datasets: Datasets = "demo",
    texts: Texts = 250,
    tokens: TokensOf = 5,
    layers: Layers = "",
    methods: Annotated[
        str, typer.Option(help="Matching methods: cosine, cosine-top-5, permutation, pearson.")
    ] = "cosine,cosine-top-5,permutation,pearson",
    pearson: Pearson = "",
    pearson_datasets: PearsonDatasets = "",
    max_length: MaxLength = 128,
    seed: Seed = 0,
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    engine: Engine = "here",
    workers: Workers = 0,
    address: Address = "",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    out: Annotated[Path | None, typer.Option(help="Results folder; origins-RELEASE when not given.")] = None,
    as_json: Json = False,
) -> None:
    """Which matched predecessors are active with each active feature (section 5.1)."""
    from saeflow.experiments.inputs import Inputs
    from saeflow.experiments.inputs import origins as run
    from saeflow.experiments.origins_tables import summarize_origins
    from saeflow.experiments.settings import OriginsSize

    where = opened(engine, workers, address, cpus, gpus)
    asked = _opening(release, model, atlas, device, layers, datasets, pearson, pearson_datasets, seed, prepend_bos)
    lab = Inputs.open(asked, first=0)
    size = OriginsSize(tuple(names_of(methods)), texts, tokens, max_length)
    folder = out or Path(f"origins-{Path(release).name}")
    with bars() as bar, where:
        results = run(lab, size, out=folder, bars=bar, note=_note, engine=where)
    shown = ("shares_by_dataset", "activity_differences", "agreement")
    _finish(results, summarize_origins(results), shown, as_json=as_json)


def deactivate(
    release: Release,
    atlas: Atlas = "",
    model: Model = "",
    datasets: Datasets = "demo",
    texts: Texts = 35,
    tokens: TokensOf = 5,
    features: Annotated[int, typer.Option(help="Targets of a token and layer, at most.")] = 25,
    layers: Layers = "",
    strategies: Annotated[
        str,
        typer.Option(help="top-1, top-5, random, permutation, pearson, exhaustive, greedy; the first is swept over r."),
    ] = "top-1,top-5,random,permutation,pearson,exhaustive,greedy",
    r: Annotated[str, typer.Option("--r", help="Factors of the sweep.")] = "-2,-1,-0.5,0,0.5,1,1.5,2,3",
    loss: Annotated[str, typer.Option(help='Targets of a text whose sweep has the loss: a number, or "all".')] = "4",
    pearson: Pearson = "",
    pearson_datasets: PearsonDatasets = "",
    max_length: MaxLength = 128,
    seed: Seed = 0,
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    engine: Engine = "here",
    workers: Workers = 0,
    address: Address = "",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    out: Annotated[Path | None, typer.Option(help="Results folder; deactivation-RELEASE when not given.")] = None,
    as_json: Json = False,
) -> None:
    """Remove the predecessors of active features, and see what is left of them (section 5.2)."""
    from saeflow.experiments.deactivation_tables import summarize_deactivation
    from saeflow.experiments.inputs import Inputs
    from saeflow.experiments.inputs import deactivation as run
    from saeflow.experiments.settings import DeactivationSize

    where = opened(engine, workers, address, cpus, gpus)
    asked = _opening(release, model, atlas, device, layers, datasets, pearson, pearson_datasets, seed, prepend_bos)
    factors = numbers_of("--r", r)
    loss_targets = None if loss == "all" else int(number_of("--loss", loss))
    lab = Inputs.open(asked, first=1)
    size = DeactivationSize(tuple(names_of(strategies)), texts, tokens, features, factors, loss_targets, max_length)
    folder = out or Path(f"deactivation-{Path(release).name}")
    with bars() as bar, where:
        results = run(lab, size, out=folder, bars=bar, note=_note, engine=where)
    shown = ("by_strategy_layer", "table_1", "paired", "remaining")
    _finish(results, summarize_deactivation(results), shown, as_json=as_json)


def _opening(
    release: str,
    model: str,
    atlas: str,
    device: str,
    layers: str,
    datasets: str,
    pearson: str,
    pearson_datasets: str,
    seed: int,
    prepend_bos: bool | None,
) -> InputNames:
    """The names that both commands take."""
    from saeflow.experiments.settings import InputNames

    return InputNames(
        release,
        model,
        atlas,
        device,
        layers_of(layers),
        tuple(names_of(datasets)),
        pearson,
        tuple(names_of(pearson_datasets)),
        seed,
        prepend_bos,
    )


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _finish(results: Results, tables: Mapping[str, SummaryTable], shown: Sequence[str], *, as_json: bool) -> None:
    """Make the page, and print the tables that say most."""
    from saeflow.paper.results import write_page

    page = write_page(results.folder)
    if as_json:
        told = {name: {"columns": table.columns, "rows": table.rows} for name, table in tables.items()}
        typer.echo(json.dumps({"folder": str(results.folder), "tables": told}))
        return
    for name in shown:
        if tables[name].rows:
            print_table(tables[name].title, _overall(tables[name]))
            typer.echo(f"{tables[name].note}\n")
    typer.echo(f"{results.record.total} texts, {len(tables)} tables, in {results.folder}; open {page}")


def _overall(table: SummaryTable) -> list[dict[str, Any]]:
    """The rows that pool layers and datasets, for reading: an estimate with its interval is one cell."""
    rows = table.dicts()
    for column in ("dataset", "layer"):
        if any(row.get(column) == "all" for row in rows):
            rows = [{k: v for k, v in row.items() if k != column} for row in rows if row[column] == "all"]
    return [_readable(row) for row in rows]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """The cells as text; where `low` and `high` follow a value they join it, and others' bounds are left out."""
    names = list(row)
    cells: dict[str, Any] = {}
    for place, (name, value) in enumerate(row.items()):
        if name.endswith(("low", "high")) or name in ("control_change", "control_n", "in_distribution"):
            continue
        text = f"{value:.3f}" if isinstance(value, float) else "" if value is None else value
        if names[place + 1 : place + 3] == ["low", "high"] and row["low"] is not None:
            text = f"{text} ({row['low']:.3f} to {row['high']:.3f})"
        cells[name.replace("control_deactivated", "control").replace("_", " ")] = text
    return cells
