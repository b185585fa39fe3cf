"""Running a reproduction: what is done, what is left, what a kill or an error costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from saeflow.errors import BadFile, InvalidArgument, NoSpace, Unreachable
from saeflow.paper import results
from saeflow.reproduce import report
from saeflow.reproduce import run as running
from saeflow.reproduce.recipe import PaperStage, Recipe, open_recipe
from saeflow.reproduce.record import RECORD, Reproduction, StageState
from saeflow.reproduce.run import RunContext, RunSettings, reproduce

SMALL = """
title = "small"
release = "demo"
model = "demo"
datasets = ["demo:stories"]

[graphs]
picks = 1

[origins]
texts = 3
tokens = 2
layers = [2, 3]
methods = ["cosine"]
"""


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that do nothing but write down that they ran, and a report that does the same."""
    calls: list[str] = []

    def stand_in(stage: PaperStage) -> Callable[[RunContext], None]:
        def act(context: RunContext) -> None:
            calls.append(stage.value)
            (context.out / stage.value).mkdir(exist_ok=True)

        return act

    monkeypatch.setattr(running, "_STAGES", {stage: stand_in(stage) for stage in PaperStage})
    monkeypatch.setattr(report, "write_report", lambda out: out / "index.html")
    return calls


@pytest.fixture
def breaking(done: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[PaperStage, BaseException | None], None]:
    """Makes a stage end in an error; heals it with None."""
    whole = dict(running._STAGES)

    def break_it(stage: PaperStage, error: BaseException | None) -> None:
        def act(context: RunContext) -> None:
            done.append(f"{stage.value}!")
            if error is not None:
                raise error

        monkeypatch.setattr(running, "_STAGES", {**whole, stage: whole[stage] if error is None else act})

    return break_it


def states(out: Path) -> dict[str, str]:
    return {told["name"]: told["state"] for told in json.loads((out / RECORD).read_bytes())["stages"]}


ALL = ["atlas", "graphs", "origins", "deactivation", "steering", "transition"]


def test_all_stages_are_run_in_order_and_never_twice(tmp_path: Path, done: list[str]):
    recipe = open_recipe("demo")
    made = reproduce(recipe, tmp_path)
    assert done == ALL
    assert (made.failed, set(states(tmp_path).values())) == ([], {"done"})
    told = json.loads((tmp_path / RECORD).read_bytes())
    assert (told["recipe"], told["only"], told["seed"]) == ("demo", [], 0)
    assert told["finished"] >= told["started"]
    assert told["hardware"]["cores"] >= 1
    assert told["revisions"]["demo pack"].startswith("sha256 ")
    assert told["unanswered"]["fig19"] == recipe.unanswered["fig19"]
    done.clear()
    reproduce(recipe, tmp_path)
    assert done == ["atlas"]  # it lies outside the folder


def test_other_figures_add_to_a_folder(tmp_path: Path, done: list[str]):
    recipe = open_recipe("demo")
    reproduce(recipe, tmp_path, only=("fig5",))
    assert done == ["atlas", "origins"]
    assert states(tmp_path) == {**dict.fromkeys(ALL, "left out"), "atlas": "done", "origins": "done"}
    reproduce(recipe, tmp_path, only=("fig3", "table1"))
    assert done == ["atlas", "origins", "atlas", "deactivation"]
    assert json.loads((tmp_path / RECORD).read_bytes())["only"] == ["fig3", "fig5", "table1"]
    reproduce(recipe, tmp_path)
    assert done[4:] == ["atlas", "graphs", "steering", "transition"]
    assert json.loads((tmp_path / RECORD).read_bytes())["only"] == []


def test_graphs_are_grown_again_for_another_figure_alone(tmp_path: Path, done: list[str]):
    recipe = open_recipe("gemma-2-2b")
    reproduce(recipe, tmp_path, only=("table5",))
    reproduce(recipe, tmp_path, only=("table5",))
    assert done == ["graphs"]
    reproduce(recipe, tmp_path, only=("fig20",))
    assert done == ["graphs", "atlas", "graphs"]
    reproduce(recipe, tmp_path, only=("fig20", "table5"))
    assert done == ["graphs", "atlas", "graphs", "atlas"]
    assert Reproduction.open(tmp_path).stages[PaperStage.GRAPHS].made == ("fig20", "table5")


def test_a_kill_leaves_the_record_true_and_the_next_run_goes_on(tmp_path: Path, done: list[str], breaking):
    recipe = open_recipe("demo")
    breaking(PaperStage.DEACTIVATION, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        reproduce(recipe, tmp_path)
    assert states(tmp_path) == {
        "atlas": "done",
        "graphs": "done",
        "origins": "done",
        "deactivation": "partial",
        "steering": "left out",
        "transition": "left out",
    }
    assert json.loads((tmp_path / RECORD).read_bytes())["finished"] is None
    breaking(PaperStage.DEACTIVATION, None)
    done.clear()
    assert reproduce(recipe, tmp_path).failed == []
    assert done == ["atlas", "deactivation", "steering", "transition"]


def test_a_stage_that_cannot_be_run_is_noted_and_the_others_are_run(tmp_path: Path, done: list[str], breaking):
    breaking(PaperStage.ORIGINS, Unreachable("fineweb cannot be read. Check the network."))
    notes: list[str] = []
    made = reproduce(open_recipe("demo"), tmp_path, note=notes.append)
    assert [one.stage for one in made.failed] == [PaperStage.ORIGINS]
    assert made.failed[0].why == "fineweb cannot be read. Check the network."
    assert (notes, done[-1]) == (["origins: fineweb cannot be read. Check the network."], "transition")
    told = json.loads((tmp_path / RECORD).read_bytes())
    assert told["finished"] is None


def test_a_full_disk_ends_the_run(tmp_path: Path, done: list[str], breaking):
    breaking(PaperStage.GRAPHS, NoSpace("full"))
    with pytest.raises(NoSpace):
        reproduce(open_recipe("demo"), tmp_path)
    assert done == ["atlas", "graphs!"]


def test_another_judge_is_asked_of_a_finished_folder(tmp_path: Path, done: list[str]):
    recipe = open_recipe("demo")
    reproduce(recipe, tmp_path, only=("fig10",))
    reproduce(recipe, tmp_path, only=("fig10",), settings=RunSettings(judge="offline"))
    assert done == ["atlas", "steering", "atlas", "steering"]


def test_a_stage_whose_folder_is_gone_is_run_again(tmp_path: Path, done: list[str]):
    recipe = open_recipe("demo")
    reproduce(recipe, tmp_path, only=("fig5",))
    (tmp_path / "origins").rmdir()
    reproduce(recipe, tmp_path, only=("fig5",))
    assert done == ["atlas", "origins"] * 2


def test_a_folder_belongs_to_one_recipe(tmp_path: Path, done: list[str]):
    reproduce(open_recipe("demo"), tmp_path, only=("fig5",))
    with pytest.raises(InvalidArgument, match=r"holds a reproduction of 'demo' that differs .*'gpt2-small'"):
        reproduce(open_recipe("gpt2-small"), tmp_path, only=("fig5",))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": [{"name": "no"}]}', '{"stages": 3}'])
def test_a_damaged_record_is_refused(tmp_path: Path, done: list[str], text: str):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(BadFile, match="record of a reproduction"):
        reproduce(open_recipe("demo"), tmp_path)


def own(tmp_path: Path) -> Recipe:
    (tmp_path / "own.toml").write_text(SMALL)
    return open_recipe(str(tmp_path / "own.toml"))


def test_the_real_stages_write_what_their_commands_write(saeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Origins of a recipe of one's own; the command of that experiment takes the folder for its own."""
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))

    def page(folder: Path) -> Path:
        """In context of drawing, which has tests of its own."""
        (folder / "index.html").write_text("a page")
        return folder / "index.html"

    monkeypatch.setattr(running, "write_page", page)
    monkeypatch.setattr(results, "write_page", page)
    monkeypatch.setattr(report, "write_report", page)
    own(tmp_path)
    code, out, _ = saeflow("reproduce", "own.toml", "--only", "fig2,fig5", "--json")
    told = json.loads(out)
    folder = Path(told["folder"])
    assert (code, folder.name) == (0, "reproduce-own")
    rows = {row["name"]: row for row in told["stages"]}
    assert (rows["origins"]["state"], rows["steering"]["why"]) == ("done", "the recipe has no such stage")
    assert rows["origins"]["seconds"] > 0
    assert 50 < rows["origins"]["peak_mb"] < 20_000
    assert {path.suffix for path in (folder / "graphs").iterdir()} == {".json", ".html"}
    manifest = (folder / "origins" / "manifest.json").read_bytes()
    assert (folder / "origins" / "index.html").is_file()
    assert Path(told["report"]).is_file()
    code, out, err = saeflow(
        "origins",
        "demo",
        "--model",
        "demo",
        "--texts",
        "demo:stories",
        "--n-texts",
        3,
        "--tokens-per-text",
        2,
        "--layers",
        "2-3",
        "--methods",
        "cosine",
        "--out",
        folder / "origins",
        "--json",
    )
    assert (code, json.loads(out)["folder"]) == (0, str(folder / "origins")), err
    assert (folder / "origins" / "manifest.json").read_bytes() == manifest


def test_states_are_those_of_the_record():
    assert [state.value for state in StageState] == ["done", "partial", "left out"]
