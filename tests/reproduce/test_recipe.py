"""Recipes as data: each of those shipped is consistent with the releases, themes and data sets it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.sampling import expand, open_dataset
from saeflow.files import pack_folder
from saeflow.flow.published import published_graph
from saeflow.ids import FeatureId, Part, Site
from saeflow.paper.claims import items as items_of_the_paper
from saeflow.reproduce.recipe import KEYS, PaperStage, Recipe, known_recipes, open_recipe, order, short
from saeflow.sources.library import load_dictionaries
from saeflow.sources.releases import read_release
from saeflow.steering.sweep.settings import Grid
from saeflow.steering.theme import load_theme

PAPER = {*(f"fig{n}" for n in range(1, 25)), *(f"table{n}" for n in range(1, 6))}


@pytest.fixture(params=known_recipes())
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return open_recipe(request.param)


def sites(recipe: Recipe) -> set[Site]:
    if pack_folder(recipe.release):
        return set(load_dictionaries(recipe.release).sites)
    return set(read_release(recipe.release).sites)


def test_every_figure_and_table_is_answered_or_there_is_a_reason(recipe: Recipe):
    assert set(recipe.answered) | set(recipe.unanswered) == PAPER
    assert not set(recipe.answered) & set(recipe.unanswered)
    assert len(recipe.answered) == len(set(recipe.answered))
    assert all(len(why) > 10 for why in recipe.unanswered.values())


def test_the_stages_are_those_that_the_paper_s_items_name():
    named = {item.id: item.stage for item in items_of_the_paper().values()}
    assert set(named) == PAPER
    assert {stage for stage in named.values() if stage} == {stage.value for stage in PaperStage} - {"atlas"}


def test_what_a_recipe_names_is_there(recipe: Recipe):
    there = sites(recipe)
    if not pack_folder(recipe.release):
        assert recipe.model == read_release(recipe.release).model
        assert recipe.shape is not None
        assert {site.layer for site in there} == set(range(recipe.shape.layers))
    for stage, size in recipe.sizes.items():
        for layer in size.get("layers", ()):
            assert Site(layer, Part.RES) in there
        for name in (*recipe.datasets(stage), *size.get("fitted", ()), *size.get("background", ())):
            assert all(open_dataset(one).name == one for one in expand([name]))
    for layer in recipe.sizes.get(PaperStage.TRANSITION, {}).get("layers", ()):
        assert Site(layer + 1, Part.RES) in there


def test_seeds_themes_and_grids_are_those_the_experiments_take(recipe: Recipe):
    graphs = recipe.sizes.get(PaperStage.GRAPHS, {})
    assert len(graphs.get("seeds", ())) == len(graphs.get("figures", ()))
    assert all(FeatureId.parse(seed).site in sites(recipe) for seed in graphs.get("seeds", ()))
    if published := graphs.get("published"):
        assert published_graph(recipe.release, FeatureId.parse(published)).nodes
    steering = recipe.sizes.get(PaperStage.STEERING, {})
    for name in steering.get("themes", ()):
        assert load_theme(name, recipe.release).starts
    if steering:
        assert Grid(tuple(steering["s"]), tuple(steering["r"]), samples=steering["samples"]).methods == ()


def test_the_sizes_of_gemma_are_the_paper_s():
    sizes = open_recipe("gemma-2-2b").sizes
    origins, deactivation = sizes[PaperStage.ORIGINS], sizes[PaperStage.DEACTIVATION]
    assert (origins["texts"], origins["tokens"]) == (250, 5)
    assert [deactivation[key] for key in ("texts", "tokens", "features")] == [35, 5, 25]
    assert (deactivation["layers"], deactivation["datasets"]) == ([6, 12, 18], ["fineweb"])
    assert (sizes[PaperStage.TRANSITION]["layers"], sizes[PaperStage.STEERING]["judge_model"]) == ([14], "gpt-4o-mini")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("title = 'x'", "no release"),
        ("title = 'x'\nrelease = 3", "release of the head is 3, which is no text"),
        ("title = 'x'\nrelease = 'demo'\ntexts = 3", "the unknown key 'texts'"),
        ("title = 'x'\nrelease = 'demo'\n[origins]\ntexts = true", "texts of .origins. is True"),
        ("title = 'x'\nrelease = 'demo'\n[origins]\nlayers = [1, 'two']", "layers of .origins. is .* no list of whole"),
        ("title = 'x'\nrelease = 'demo'\n[originss]\ntexts = 3", "tables it should not: originss"),
        ("title = 'x'\nrelease = 'demo'\n[shape]\nlayers = 2", "has no 'parameters'"),
        ("title = ", "cannot be read as a recipe"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_by_the_key(tmp_path: Path, text: str, named: str):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(BadFile, match=named):
        open_recipe(str(tmp_path / "own.toml"))


@pytest.mark.parametrize("name", ["gemma", "../recipes/demo", "missing.toml", ""])
def test_a_recipe_there_is_not_is_refused_with_those_there_are(name: str):
    with pytest.raises(InvalidArgument, match=r"there is no recipe .* demo, gemma-2-2b"):
        open_recipe(name)


def test_a_changed_recipe_has_another_digest(tmp_path: Path):
    path = tmp_path / "own.toml"
    path.write_text("title = 'x'\nrelease = 'demo'\n[origins]\ntexts = 3\n")
    before = open_recipe(str(path)).digest
    path.write_text("# a remark\ntitle = 'x'\nrelease = 'demo'\n\n[origins]\ntexts = 3\n")
    assert open_recipe(str(path)).digest == before
    path.write_text("title = 'x'\nrelease = 'demo'\n[origins]\ntexts = 4\n")
    assert open_recipe(str(path)).digest != before


def test_a_recipe_runs_on_other_dictionaries_under_another_digest():
    recipe = open_recipe("gemma-3-270m")
    assert recipe.of_others() is recipe
    other = recipe.of_others("saes", "gemma-3-270m")
    assert (other.release, other.model, other.sizes) == ("saes", "gemma-3-270m", recipe.sizes)
    assert recipe.of_others("saes").model == "google/gemma-3-270m"
    digests = {one.digest for one in (recipe, other, recipe.of_others("saes"), recipe.of_others("", "gemma-3-270m"))}
    assert len(digests) == 4


def test_items_are_named_as_people_write_them():
    recipe = open_recipe("gemma-2-2b")
    assert recipe.parse_only(["Table 1", "figure 10", "fig5", "fig5"]) == ("fig5", "fig10", "table1")
    assert recipe.parse_only([]) == ()
    for wrong in ("5", "fig25", "table", "figure", "fig05x"):
        with pytest.raises(InvalidArgument, match="no figure or table of the paper"):
            recipe.parse_only([wrong])


def test_an_item_that_cannot_be_answered_is_refused_with_the_reason():
    with pytest.raises(InvalidArgument, match="does not answer fig19: about Llama Scope"):
        open_recipe("demo").parse_only(["fig19"])
    with pytest.raises(InvalidArgument, match="does not answer fig1: a drawing"):
        open_recipe("gemma-2-2b").parse_only(["fig1"])


@pytest.mark.parametrize(
    ("only", "stages"),
    [
        ("", ["atlas", "graphs", "origins", "deactivation", "steering", "transition"]),
        ("fig5", ["atlas", "origins"]),
        ("fig5,table1", ["atlas", "origins", "deactivation"]),
        ("table5", ["graphs"]),
        ("table5,fig2", ["atlas", "graphs"]),
        ("table5,fig23", ["graphs", "transition"]),
        ("fig24", ["transition"]),
    ],
)
def test_only_the_stages_that_are_needed_are_run(only: str, stages: list[str]):
    recipe = open_recipe("gemma-2-2b")
    items = recipe.parse_only(only.split(",") if only else [])
    assert [stage.value for stage in recipe.stages_for(items)] == stages


def test_items_are_told_shortly():
    recipe = open_recipe("demo")
    assert short(recipe.items(PaperStage.ORIGINS)) == "fig 3-5 12-14 18"
    assert short(recipe.items(PaperStage.DEACTIVATION)) == "fig 6-8 15, table 1"
    assert short(()) == ""
    assert sorted(["table1", "fig10", "fig2"], key=order) == ["fig2", "fig10", "table1"]


def test_what_lies_beside_a_recipe_is_named_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine").mkdir()
    for name in ("saes", "texts.jsonl", "topic.toml", "demo", "fineweb"):
        (tmp_path / "mine" / name).mkdir()
    text = """
        title = "x"
        release = "saes"
        model = "demo"
        datasets = ["texts.jsonl", "fineweb", "other/set"]
        [steering]
        themes = ["topic.toml", "anger"]
        [origins]
        methods = ["saes"]
    """
    (tmp_path / "mine" / "own.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    recipe = open_recipe("mine/own.toml")
    here = tmp_path / "mine"
    assert (recipe.release, recipe.model) == (str(here / "saes"), "demo")
    assert recipe.datasets(PaperStage.ORIGINS) == (str(here / "texts.jsonl"), "fineweb", "other/set")
    assert recipe.sizes[PaperStage.STEERING]["themes"] == [str(here / "topic.toml"), "anger"]
    assert recipe.sizes[PaperStage.ORIGINS]["methods"] == ["saes"]  # no name of a file
    (tmp_path / "moved").mkdir()
    for path in here.iterdir():
        path.rename(tmp_path / "moved" / path.name)
    assert open_recipe(str(tmp_path / "moved" / "own.toml")).digest == recipe.digest


def test_the_page_of_recipes_names_every_key():
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for table, keys in KEYS.items():
        assert not table or f"`[{table}]`" in page
        assert not [key for key in keys if f"`{key}`" not in page]
