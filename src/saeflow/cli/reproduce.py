"""`saeflow reproduce`: every experiment of the paper for a recipe, into one report; or what it will cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Device, Json, bars, print_table, show
from saeflow.cli.engine import Address, Cpus, Engine, Gpus, Workers
from saeflow.cli.engine import opened as opened_engine
from saeflow.cli.lists import names_of

if TYPE_CHECKING:
    from saeflow.reproduce.plan import Plan
    from saeflow.reproduce.run import Reproduction


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(reproduce)


def reproduce(
    recipe: Annotated[
        str, typer.Argument(help="A recipe by name, or a .toml file; lists those there are when not given.")
    ] = "",
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what it will cost on this machine, and run nothing.")
    ] = False,
    only: Annotated[
        str, typer.Option(help="Figures and tables, with commas between: fig5,table1; all when empty.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Its folder; reproduce-RECIPE when not given.")] = None,
    judge: Annotated[str, typer.Option(help="Of steered texts: offline or llm; the recipe's when empty.")] = "",
    judge_model: Annotated[str, typer.Option(help="Name of the llm; the recipe's when empty.")] = "",
    judge_url: Annotated[str, typer.Option(help="Its address; that of OpenAI when empty.")] = "",
    device: Device = "cpu",
    engine: Engine = "here",
    workers: Workers = 0,
    address: Address = "",
    cpus: Cpus = 1,
    gpus: Gpus = 0.0,
    as_json: Json = False,
) -> None:
    """Run every experiment of the paper for a recipe, and write one report. A killed run resumes where it stopped.

    Figures and tables stand in the paper's order, each claim with a verdict, the interval it rests on and its control.
    """
    from saeflow.reproduce.recipe import open_recipe
    from saeflow.reproduce.stages import parse_only, stages_for

    if not recipe:
        _list(as_json=as_json)
        return
    opened = open_recipe(recipe)
    items = parse_only(opened, names_of(only))
    folder = out or Path(f"reproduce-{Path(recipe).stem if recipe.endswith('.toml') else recipe}")
    if plan:
        from saeflow.reproduce.plan import make_plan

        _show_plan(make_plan(opened, folder, only=items, device=device, judge=judge), as_json=as_json)
        return
    from saeflow.reproduce.run import reproduce as run
    from saeflow.reproduce.work import Settings

    with opened_engine(engine, workers, address, cpus, gpus) as where, bars() as bar:
        settings = Settings(device, judge, judge_model, judge_url, where)
        made = run(opened, folder, only=items, settings=settings, bars=bar, note=_note)
    _finish(made, as_json=as_json)
    if {one.stage for one in made.failed} & set(stages_for(opened, items)):
        raise typer.Exit(1)


def _list(*, as_json: bool) -> None:
    from saeflow.reproduce.recipe import known_recipes, open_recipe
    from saeflow.reproduce.stages import Stage, answered

    recipes = [open_recipe(name) for name in known_recipes()]
    rows: list[dict[str, Any]] = [
        {
            "recipe": one.name,
            "what": one.title,
            "release": one.release,
            "figures and tables": len(answered(one)),
            "stages": " ".join(stage.value for stage in Stage if stage in one.sizes),
        }
        for one in recipes
    ]
    show(as_json, {"recipes": rows}, {}, rows)


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(plan.to_dict(), indent=1))
        return
    for line in plan.lines():
        typer.echo(line)
    print_table("", plan.rows())
    for line in plan.remarks:
        typer.echo(line)


def _finish(made: Reproduction, *, as_json: bool) -> None:
    """The stages with what they took, and where the report is."""
    from saeflow.reproduce.stages import short

    page = made.folder / "index.html"
    rows = [stage.to_dict() for stage in made.stages.values()]
    if as_json:
        typer.echo(json.dumps({"folder": str(made.folder), "report": str(page), "stages": rows}))
        return
    shown = [
        {
            "stage": row["name"],
            "state": row["state"],
            "minutes": f"{row['seconds'] / 60:.1f}",
            "MB": row["peak_mb"],
            "answers": short(row["items"]),
            "why": row["why"],
        }
        for row in rows
    ]
    print_table("", shown)
    typer.echo(f"open {page}")


def _note(text: str) -> None:
    typer.echo(text, err=True)
