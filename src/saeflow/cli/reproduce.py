"""`saeflow reproduce`: run every experiment of the paper for a recipe and write one report, or estimate the cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from saeflow.cli.options import Device, Flag, Json, LlmModel, LlmUrl, OutFolder, Where
from saeflow.cli.output import Row, bars, note, print_json, print_table, show

if TYPE_CHECKING:
    from saeflow.reproduce.record import Reproduction


def reproduce(
    recipe: str = "",
    /,
    *,
    dry_run: Flag = False,
    only: tuple[str, ...] = (),
    release: str = "",
    model: str = "",
    out: Annotated[Path | None, OutFolder] = None,
    judge: Literal["offline", "llm"] | None = None,
    llm_model: LlmModel = "",
    llm_url: LlmUrl = "",
    device: Device = "cpu",
    where: Where = Where(),
    as_json: Json = False,
) -> int:
    """Run every experiment of the paper for a recipe, and write one report. A killed run resumes where it stopped.

    Figures and tables are in the paper's order. Each claim has a verdict, with the interval it rests on and its
    control. The exit code is 1 if a stage failed.

    Args:
        recipe: Name of a recipe, or a .toml file; without it, the recipes are listed.
        dry_run: Estimate the cost, and stop: hours and memory on this machine.
        only: Figures and tables, such as fig5,table1; all by default.
        release: Release of dictionaries: in place of the recipe's; a folder or a name of `saeflow releases`.
        model: Language model: in place of the recipe's, such as a copy of it that `saeflow models get` fetched.
        out: Where to write: the folder of the run, reproduce-RECIPE by default.
        judge: Judge of the texts: offline or llm, by default the recipe's.
        llm_model: Name of the LLM: by default the recipe's, or else that of the environment.
    """
    from saeflow.reproduce.recipe import open_recipe

    if not recipe:
        _list(as_json=as_json)
        return 0
    opened = open_recipe(recipe).of_others(release, model)
    items = opened.parse_only(only)
    folder = out or Path(f"reproduce-{Path(recipe).stem if recipe.endswith('.toml') else recipe}")
    if dry_run:
        from saeflow.reproduce.plan import make_plan

        cost = make_plan(opened, folder, only=items, device=device, judge=judge or "")
        if as_json:
            print_json(cost.to_dict())
            return 0
        print("\n".join(cost.lines()))
        print_table(cost.rows())
        for line in cost.remarks:
            print(line)
        return 0
    from saeflow.reproduce.run import RunSettings
    from saeflow.reproduce.run import reproduce as run

    with where.open() as engine, bars() as bar:
        settings = RunSettings(device, judge or "", llm_model, llm_url, engine)
        made = run(opened, folder, only=items, settings=settings, bars=bar, note=note)
    _show(made, as_json=as_json)
    return 1 if {one.stage for one in made.failed} & set(opened.stages_for(items)) else 0


def _list(*, as_json: bool) -> None:
    from saeflow.reproduce.recipe import PaperStage, known_recipes, open_recipe

    rows: list[Row] = [
        {
            "recipe": one.name,
            "what": one.title,
            "release": one.release,
            "figures and tables": len(one.answered),
            "stages": " ".join(stage.value for stage in PaperStage if stage in one.sizes),
        }
        for one in map(open_recipe, known_recipes())
    ]
    show(as_json, {"recipes": rows}, {}, rows)


def _show(made: Reproduction, *, as_json: bool) -> None:
    """Print the stages with the time and memory they took, and where the report is."""
    from saeflow.reproduce.recipe import short

    page = made.folder / "index.html"
    rows = [stage.to_dict() for stage in made.stages.values()]
    if as_json:
        print_json({"folder": str(made.folder), "report": str(page), "stages": rows}, indent=None)
        return
    print_table(
        [
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
    )
    print(f"open {page}")
