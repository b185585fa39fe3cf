"""What a run is said to cost: sizes from the releases' data, times that grow with what is asked, nothing fetched."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import huggingface_hub
import pytest

from saeflow.experiments.sampling import open_dataset
from saeflow.reproduce import plan as planning
from saeflow.reproduce.costs import Costs, Speeds, active_features, measure
from saeflow.reproduce.plan import Plan, make_plan
from saeflow.reproduce.recipe import PaperStage, Recipe, open_recipe
from saeflow.reproduce.record import RECORD, StageState
from saeflow.reproduce.run import RunSettings, start
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model
from saeflow.sources.releases import read_release

FAST = Speeds(products=1e11, small=1.0, passes=None, threads=2, device="cpu")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, no network, and a machine of a known speed."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("asked the network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(planning, "measure", lambda *_, **__: FAST)
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))


def planned(name: str, only: str = "", out: Path = Path("nowhere"), judge: str = "") -> Plan:
    recipe = open_recipe(name)
    return make_plan(recipe, out, only=recipe.parse_only(only.split(",") if only else ()), judge=judge)


def by_stage(plan: Plan) -> dict[str, float]:
    return {one.stage.value: one.download for one in plan.stages}


def test_downloads_are_those_of_the_release_and_each_tensor_once():
    files = sum(entry.size.n_bytes for entry in read_release("gemma-scope-2b").sites.values() if entry.size)
    model = 4 * 2.614e9
    plan = planned("gemma-2-2b")
    found = by_stage(plan)
    # decoders and the model that projects attention first; the other halves when something encodes
    assert found["atlas"] == pytest.approx(files / 2 + model)
    assert found["origins"] == pytest.approx(files / 2)
    assert [found[name] for name in ("graphs", "deactivation", "steering", "transition")] == [0, 0, 0, 0]
    assert plan.download == pytest.approx(files + model)


def test_table_5_alone_fetches_the_decoders_it_shows_and_no_model():
    plan = planned("gemma-2-2b", "table5")
    assert [one.stage for one in plan.stages] == [PaperStage.GRAPHS]
    sizes = [e.size for site, e in read_release("gemma-scope-2b").sites.items() if site.part.value != "att"]
    assert plan.download == pytest.approx(sum(size.n_bytes for size in sizes if size) / 2)
    assert plan.requests == 0


def test_deactivation_alone_encodes_its_layers_only():
    found = by_stage(planned("llama-3.1-8b", "table1"))
    size = 2 * 2 * 32768 * 4096  # a dictionary's matrices, of two bytes a value
    assert found["deactivation"] == pytest.approx(3 * 4 * size / 2 + 2 * 8.03e9, rel=1e-3)
    assert found["atlas"] == pytest.approx(96 * size / 2, rel=1e-3)


def test_the_judge_is_asked_once_a_text_and_an_offline_one_never():
    plan = planned("gemma-2-2b", "fig10")
    recipe = open_recipe("gemma-2-2b")
    steering = recipe.sizes[PaperStage.STEERING]
    # no atlas is here, so that every layer is counted: 6 themes are activated along three schedules and one layer at a
    # time, one is suppressed; unsteered, the prompt that asks, and the starts come besides
    s, r = len(steering["s"]), len(steering["r"])
    activated = 6 * ((26 + 3 * 25) * s + s + 2)  # up to the first layer, three schedules are the single layer
    suppressed = (26 + 25) * r + r + 2
    grid = (activated + suppressed) * steering["samples"]
    assert plan.requests == pytest.approx(grid + 7 * 10 * steering["confirm"])
    assert planned("gemma-2-2b", "fig10", judge="offline").requests == 0
    assert any("asked" in remark for remark in plan.remarks)


def test_time_grows_with_what_is_asked_and_falls_with_speed():
    recipe = open_recipe("pythia-70m-deduped")
    assert recipe.shape is not None
    sizes = planning._sizes(recipe)
    for stage in (PaperStage.ATLAS, PaperStage.ORIGINS, PaperStage.DEACTIVATION, PaperStage.TRANSITION):
        plain = Costs(recipe, recipe.shape, sizes, FAST).of(stage)
        slow = Costs(recipe, recipe.shape, sizes, replace(FAST, products=1e10, small=4.0)).of(stage)
        assert slow.seconds > 2 * plain.seconds > 0
        assert slow.memory == plain.memory > 1e8
    more = {**recipe.sizes, PaperStage.DEACTIVATION: {**recipe.sizes[PaperStage.DEACTIVATION], "texts": 350}}
    larger = Costs(replace(recipe, sizes=more), recipe.shape, sizes, FAST).of(PaperStage.DEACTIVATION)
    small = Costs(recipe, recipe.shape, sizes, FAST).of(PaperStage.DEACTIVATION)
    assert larger.disk == 10 * small.disk
    assert larger.seconds > 2 * small.seconds  # tables of matches are made once


def test_costs_are_of_the_features_that_are_active_here():
    demo, model = load_dictionaries("demo"), load_model("demo")
    found = active_features(demo, model, list(islice(open_dataset("demo:stories").read(0), 2)))
    assert 4 < found < 8  # the pack's own table says 6
    recipe = open_recipe("gpt2-small")
    assert recipe.shape is not None
    many, few = (
        Costs(recipe, recipe.shape, planning._sizes(recipe), FAST, active=n).of(PaperStage.DEACTIVATION).disk
        for n in (24, 3)
    )
    assert many == 8 * few
    assert "counted on a few texts" in planned("demo").remarks[-1]
    assert "taken for 100" in planned("gpt2-small").remarks[-1]


def test_matching_takes_the_time_of_its_products():
    recipe = open_recipe("pythia-70m-deduped")
    assert recipe.shape is not None
    cost = Costs(recipe, recipe.shape, planning._sizes(recipe), FAST).of(PaperStage.ATLAS)
    pairs = 6 * 2 + 5  # each layer's modules, and the stream between layers
    assert cost.seconds == pytest.approx(1.2 * pairs * 2 * 32768**2 * 512 / 1e11, rel=0.01)


def test_a_machine_that_is_too_small_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(planning, "memory", lambda: 8_000_000_000)
    assert any("it will not run here" in remark for remark in planned("gemma-2-2b").remarks)
    monkeypatch.setattr(planning, "memory", lambda: 10**12)
    assert not any("it will not run here" in remark for remark in planned("gemma-2-2b").remarks)


def test_what_a_folder_has_costs_nothing_more(tmp_path: Path):
    recipe: Recipe = open_recipe("demo")
    made = start(recipe, tmp_path, (), RunSettings())
    record = replace(made.stages[PaperStage.ORIGINS], state=StageState.DONE)
    before = planned("demo", out=tmp_path)
    made.with_stage(record)
    assert (tmp_path / RECORD).is_file()
    after = planned("demo", out=tmp_path)
    told = {one["name"]: one["done"] for one in after.to_dict()["stages"]}
    assert (told["origins"], told["deactivation"]) == (True, False)
    assert after.seconds < before.seconds
    assert after.seconds == pytest.approx(sum(one.cost.seconds for one in after.stages if not one.done))


def test_the_demo_takes_minutes_and_fetches_nothing(monkeypatch: pytest.MonkeyPatch, saeflow):
    monkeypatch.setattr(planning, "measure", measure)
    code, out, err = saeflow("reproduce", "demo", "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["download"], told["judge_requests"]) == (0, 0, 0), err
    assert 60 < told["seconds"] / told["measured"]["small"] < 1800
    assert told["measured"]["tokens_a_second"] > 10
    assert [one["name"] for one in told["stages"]] == [stage.value for stage in PaperStage]
    code, text, _ = saeflow("reproduce", "demo", "--dry-run", "--only", "fig5,table1")
    assert (code, "origins" in text, "steering" in text) == (0, True, False)


def test_writing_texts_takes_the_passes_of_the_model_that_is_here(monkeypatch: pytest.MonkeyPatch):
    def steering(passes: float) -> float:
        monkeypatch.setattr(planning, "measure", lambda *_, **__: replace(FAST, passes=passes))
        plan = planned("smollm2-135m", "fig11")
        return next(one.cost.seconds for one in plan.stages if one.stage is PaperStage.STEERING)

    slow, fast = steering(100), steering(200)
    assert 1.6 < slow / fast <= 2.0
    assert fast > 1200  # 190,000 tokens are written


def test_recipes_are_listed(saeflow):
    code, out, _ = saeflow("reproduce", "--json")
    rows = {row["recipe"]: row for row in json.loads(out)["recipes"]}
    assert (code, next(iter(rows)), len(rows)) == (0, "demo", 7)
    assert rows["gemma-2-2b"]["figures and tables"] == 26
    code, _, err = saeflow("reproduce", "gemma")
    assert (code, "there is no recipe 'gemma'" in err) == (2, True)
