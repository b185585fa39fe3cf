"""`saeflow transition`: how well a match works as a transcoder (appendix F, figures 23 and 24).

It goes on where a killed run stopped when it is called again with the same arguments.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Device, Json, PrependBos, Release, bars, print_table
from saeflow.cli.engine import Address, Cpus, Engine, Gpus, Workers, opened
from saeflow.cli.lists import layers_of, names_of
from saeflow.errors import InvalidArgument, InvalidId

if TYPE_CHECKING:
    from saeflow.experiments.results import SummaryTable
    from saeflow.ids import Site

_SHOWN = ("transition_permutations", "transition_top_k", "transition_loss", "transition_paired")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(transition)


def transition(
    release: Release,
    model: Annotated[str, typer.Option(help="Language model; the one the release names when not given.")] = "",
    layers: Annotated[
        str, typer.Option(help="Layers t of the pairs t to t + 1, commas between, 6-9 for a range; empty for all.")
    ] = "",
    part: Annotated[str, typer.Option(help="Part whose dictionaries are paired: res, mlp or att.")] = "res",
    pairs: Annotated[
        str, typer.Option(help="Pairs of sites in place of --layers and --part: 0/res>2/res,1/mlp>2/mlp.")
    ] = "",
    k: Annotated[str, typer.Option("--k", help="Entries of a row of T that are kept.")] = "1,2,5,10,50,all",
    datasets: Annotated[
        str, typer.Option(help='Datasets, with commas between: "demo", "demo:stories", fineweb, a file.')
    ] = "demo",
    tokens: Annotated[int, typer.Option(help="Tokens to measure on, in all.")] = 20_000,
    fit_tokens: Annotated[int, typer.Option(help="Tokens to fit on, of other texts, at most.")] = 100_000,
    loss: Annotated[int, typer.Option(help="Texts of each dataset on which a layer is skipped; 0 for none.")] = 20,
    max_length: Annotated[int, typer.Option(help="Tokens a text is cut to.")] = 128,
    memory: Annotated[float, typer.Option(help="GiB that sums and maps of a group of pairs may take.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    engine: Engine = "here",
    workers: Workers = 0,
    address: Address = "",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    out: Annotated[Path | None, typer.Option(help="Results folder; transition-RELEASE when not given.")] = None,
    as_json: Json = False,
) -> None:
    """Predict each layer from the features of the one before through matches, and skip layers so (appendix F)."""
    from saeflow.experiments.settings import InputNames, TransitionSize
    from saeflow.experiments.transition.run import transition as run
    from saeflow.ids import Part

    where = opened(engine, workers, address, cpus, gpus)
    if part not in set(Part):
        raise InvalidArgument(f"--part {part!r} is none of res, mlp, att.")
    named = tuple(_named_pair(one) for one in names_of(pairs))
    size = TransitionSize(named, Part(part), _ks(k), tokens, fit_tokens, loss, max_length, memory)
    asked = InputNames(
        release,
        model,
        device=device,
        layers=layers_of(layers),
        datasets=tuple(names_of(datasets)),
        seed=seed,
        prepend_bos=prepend_bos,
    )
    folder = out or Path(f"transition-{Path(release).name}")
    with bars() as bar, where:
        results = run(asked, size, out=folder, bars=bar, engine=where)
    _finish(results.folder, as_json=as_json)


def _named_pair(text: str) -> tuple[Site, Site]:
    from saeflow.ids import Site

    ends = [one.strip() for one in text.split(">")]
    try:
        if len(ends) == 2:
            return Site.parse(ends[0]), Site.parse(ends[1])
    except InvalidId:
        pass
    raise InvalidArgument(f"--pairs holds {text!r}. Write a pair as 0/res>1/res.")


def _ks(text: str) -> tuple[int | None, ...]:
    names = names_of(text)
    if not names or not all(name == "all" or (name.isdecimal() and int(name) > 0) for name in names):
        raise InvalidArgument(f"--k {text!r} is no list of numbers above 0. Write them as 1,2,5,all.")
    return tuple(None if name == "all" else int(name) for name in dict.fromkeys(names))


def _finish(folder: Path, *, as_json: bool) -> None:
    """Make the tables, the page and the figures, and print the rows of all pairs together."""
    from saeflow.experiments.results import Results
    from saeflow.experiments.transition.tables import summarize_transition
    from saeflow.paper.results import write_page

    tables = summarize_transition(Results.open(folder))
    page = write_page(folder)
    save_plates([tables[name] for name in _SHOWN if name in tables], folder / "figures")
    if as_json:
        told = {name: {"columns": table.columns, "rows": table.rows} for name, table in tables.items()}
        typer.echo(json.dumps({"folder": str(folder), "tables": told}))
        return
    for name in _SHOWN:
        if name in tables and tables[name].rows:
            print_table(tables[name].title, _rows(tables[name]))
            typer.echo(f"{tables[name].note}\n")
    typer.echo(f"{Results.open(folder).record.total} texts, {len(tables)} tables, in {folder}; open {page}")


def save_plates(tables: Sequence[SummaryTable], folder: Path) -> list[Path]:
    """The first figure of each table, of all pairs where there are several, as SVG and PNG, wide and narrow."""
    from saeflow.paper import PAGE, PHONE, draw, save

    written: list[Path] = []
    for table in tables:
        for ending, medium in (("", PAGE), ("-narrow", PHONE)):
            plate = draw(table, medium=medium)[0]
            written += [save(plate.figure, folder / f"{plate.name}{ending}{kind}") for kind in (".svg", ".png")]
    return written


def _rows(table: SummaryTable) -> list[dict[str, Any]]:
    """The rows of all pairs together, or of the only one, that explain anything; baselines last."""
    rows = table.dicts()
    first = rows[0]["pair"]
    kept = [row for row in rows if row["pair"] == first and (row.get("ev") or 0.0) >= 0]
    return [_readable(row) for row in sorted(kept, key=lambda row: row.get("kind") == "baseline")]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """The cells as text, values with their intervals."""
    told: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("pair", "kind", "low", "high", "scaled_low", "scaled_high", "n", "scale", "clean"):
            continue
        text = "" if value is None else f"{value:.3f}" if isinstance(value, float) else value
        ends = ("scaled_low", "scaled_high") if name == "scaled" else ("low", "high")
        if name in ("ev", "scaled", "change", "difference") and row.get(ends[0]) is not None:
            text = f"{text} ({row[ends[0]]:.3f} to {row[ends[1]]:.3f})"
        told[{"ev": "explained variance", "scaled": "with a factor"}.get(name, name)] = text
    return told
