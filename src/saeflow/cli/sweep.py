"""`saeflow sweep`: the steering experiment of section 5.3, from a grid of settings to the best of each method.

It goes on where a killed sweep stopped when it is called again with the same arguments. On a finished folder it only
judges: with another --judge no text is generated again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Device, Json, PrependBos, Release, bars, print_table
from saeflow.cli.engine import Address, Cpus, Engine, Gpus, Workers, opened
from saeflow.cli.lists import EXCEEDS, T_MODULE, T_RES, layers_of, names_of, numbers_of, parts_of, thresholds_of
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.experiments.results import Results, SummaryTable
    from saeflow.steering.plan import SteeringDirection
    from saeflow.steering.sizes import Budget
    from saeflow.steering.sweep.settings import Grid

_VARIANT = "Variants, each recorded with the results"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(sweep)


def sweep(
    release: Release,
    themes: Annotated[
        str, typer.Option(help="Themes by name or file, commas between; all of the release when empty.")
    ] = "",
    direction: Annotated[str, typer.Option(help="activate, suppress or both.")] = "both",
    samples: Annotated[int, typer.Option(help="Samples of each setting of the grid.")] = 64,
    confirm: Annotated[int, typer.Option(help="Fresh samples of each setting that is chosen.")] = 96,
    s: Annotated[str, typer.Option("--s", help="Strengths of activation, weak to strong.")] = "",
    r: Annotated[str, typer.Option("--r", help="Factors of suppression, weak to strong.")] = "",
    layers: Annotated[str, typer.Option(help="Layers l, as 2,3 or 2-5; all with a feature when empty.")] = "",
    methods: Annotated[
        str,
        typer.Option(help="prompt, start, random, single, constant, linear, exponential, cumulative; all when empty."),
    ] = "",
    judge: Annotated[str, typer.Option(help="offline, or llm: a model behind the chat API of OpenAI.")] = "offline",
    judge_model: Annotated[str, typer.Option(help="Its name; gpt-4o-mini when not given.")] = "",
    judge_url: Annotated[str, typer.Option(help="Its address; that of OpenAI when not given.")] = "",
    background: Annotated[
        str, typer.Option(help="Texts to tell themes from: a dataset or a file, commas between; the demo has its own.")
    ] = "",
    model: Annotated[str, typer.Option(help="Language model; the one the release names when not given.")] = "",
    atlas: Annotated[str, typer.Option(help="Atlas graphs grow in; that of the release when not given.")] = "",
    t_res: Annotated[float, typer.Option(help="t(R): graphs are cut below it.", rich_help_panel=_VARIANT)] = T_RES,
    t_mlp: Annotated[float, typer.Option(help="t(M).", rich_help_panel=_VARIANT)] = T_MODULE,
    t_att: Annotated[float, typer.Option(help="t(A).", rich_help_panel=_VARIANT)] = T_MODULE,
    fdr: Annotated[
        float | None,
        typer.Option(help=f"Calibrated thresholds at this false-discovery rate; {EXCEEDS}", rich_help_panel=_VARIANT),
    ] = None,
    k: Annotated[int, typer.Option(help="Matches of each site followed.", rich_help_panel=_VARIANT)] = 1,
    parts: Annotated[
        str, typer.Option(help="Parts whose features are changed.", rich_help_panel=_VARIANT)
    ] = "res,mlp,att",
    fold: Annotated[
        bool, typer.Option(help="Count s in units of each feature's threshold (B.2).", rich_help_panel=_VARIANT)
    ] = True,
    output_score: Annotated[
        float | None, typer.Option(help="Leave out features of a lower output score.", rich_help_panel=_VARIANT)
    ] = None,
    budget_layer: Annotated[
        float | None,
        typer.Option(help="Most that is changed at a layer, 0.1 = 10 % of the norm.", rich_help_panel=_VARIANT),
    ] = None,
    budget_total: Annotated[
        float | None, typer.Option(help="The same of all layers together.", rich_help_panel=_VARIANT)
    ] = None,
    s_end: Annotated[float, typer.Option(help="s* of the linear schedule (B.2).", rich_help_panel=_VARIANT)] = 1.0,
    alpha: Annotated[
        float, typer.Option(help="alpha of the exponential schedule (B.2).", rich_help_panel=_VARIANT)
    ] = -0.05,
    batch: Annotated[int, typer.Option(help="Texts generated at a time.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    engine: Engine = "here",
    workers: Workers = 0,
    address: Address = "",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    out: Annotated[Path | None, typer.Option(help="Results folder; sweep-RELEASE when not given.")] = None,
    as_json: Json = False,
) -> None:
    """Steer by flow graphs with every method, layer and strength; measure the best again (section 5.3)."""
    from saeflow.matching.atlas import open_atlas
    from saeflow.steering.schedule import Constant, Exponential, Linear
    from saeflow.steering.sweep.inputs import background_texts, find_themes, judge_maker, open_inputs
    from saeflow.steering.sweep.run import Design, run_sweep
    from saeflow.steering.sweep.settings import Variant
    from saeflow.steering.sweep.summary import summarize_sweep

    where = opened(engine, workers, address, cpus, gpus)
    chosen = find_themes(names_of(themes), release)
    texts = background_texts(names_of(background), release, seed)
    make = judge_maker(judge, judge_model, judge_url, texts)
    matches = open_atlas(atlas or release)
    variant = Variant(
        thresholds_of(matches, t_res, t_mlp, t_att, fdr),
        k,
        parts_of(parts),
        output_score,
        fold,
        (Constant(1.0), Linear(1.0, s_end), Exponential(1.0, alpha)),
        _budget(budget_layer, budget_total),
    )
    grid = _grid(s, r, layers, methods, samples, confirm)
    design = Design(tuple(chosen), _directions(direction), grid, variant, seed)
    inputs = open_inputs(release, matches, texts, model=model, device=device, batch=batch, prepend_bos=prepend_bos)
    folder = out or Path(f"sweep-{Path(release).name}")
    with bars() as bar, where:
        results, _ = run_sweep(inputs, design, make, out=folder, progress=bar, engine=where)
    _finish(results, summarize_sweep(results.folder), as_json=as_json)


def _grid(s: str, r: str, layers: str, methods: str, samples: int, confirm: int) -> Grid:
    from saeflow.steering.sweep.settings import ACTIVATE, SUPPRESS, Grid

    return Grid(
        numbers_of("--s", s) or ACTIVATE,
        numbers_of("--r", r) or SUPPRESS,
        layers_of(layers) or None,
        tuple(names_of(methods)),
        samples,
        confirm,
    )


def _budget(layer: float | None, total: float | None) -> Budget | None:
    from saeflow.steering.sizes import Budget

    return None if layer is None and total is None else Budget(layer, total)


def _directions(text: str) -> tuple[SteeringDirection, ...]:
    from saeflow.steering.plan import SteeringDirection

    if text == "both":
        return tuple(SteeringDirection)
    if text not in set(SteeringDirection):
        raise InvalidArgument(f"--direction {text!r} is none of activate, suppress, both.")
    return (SteeringDirection(text),)


def _finish(results: Results, tables: dict[str, SummaryTable], *, as_json: bool) -> None:
    """Draw the page, and print the tables that say most."""
    from saeflow.paper.results import write_page

    page = write_page(results.folder)
    if as_json:
        told = {name: {"columns": table.columns, "rows": table.rows} for name, table in tables.items()}
        typer.echo(json.dumps({"folder": str(results.folder), "tables": told}))
        return
    for name, readable in (("steering_best", _best_row), ("steering_paired", _paired_row)):
        if name in tables and tables[name].rows:
            print_table(tables[name].title, [readable(row) for row in tables[name].dicts()])
            typer.echo(f"{tables[name].note}\n")
    typer.echo(f"{len(tables)} tables in {results.folder}; open {page}")


def _best_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `steering_best` for a terminal; the CSV file has every interval."""
    method = f"random for {row['mirrors']}" if row["mirrors"] else row["method"]
    steered = row["method"] not in ("none", "prompt")
    return {
        "theme": row["theme"],
        "direction": row["direction"],
        "method": f"{method} (start layer)" if row["choice"] == "start layer" else method,
        "layer": row["layer"] if row["layer"] >= 0 else "",
        "value": f"{row['value']:g}" if steered else "",
        "behavior": f"{row['behavior']:.2f}",
        "coherence": f"{row['coherence']:.2f}",
        "score": _interval(row, "score"),
        "share": f"{row['share_total']:.2f}" if steered else "",
    }


def _paired_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `steering_paired` for a terminal."""
    p, q = (f"{row[name]:.2g}" if row[name] is not None else "" for name in ("p", "q"))
    return {
        "theme": row["theme"],
        "direction": row["direction"],
        "method a": row["method_a"],
        "method b": row["method_b"],
        "difference": _interval(row, "difference"),
        "p": p,
        "q": q,
    }


def _interval(row: dict[str, Any], name: str) -> str:
    value, low, high = row[name], row["low"], row["high"]
    if value is None:
        return ""
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"
