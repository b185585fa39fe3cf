"""The sweep: what is written, paired seeds, choice and confirmation, a kill in the middle, another judge later."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.results import Results
from saeflow.ids import Part
from saeflow.steering.generate import Generation
from saeflow.steering.plan import SteeringDirection, load_plan
from saeflow.steering.sizes import Budget, plan_change
from saeflow.steering.sweep import run as sweep_run
from saeflow.steering.sweep.plans import ThemePlans
from saeflow.steering.sweep.run import run_sweep
from saeflow.steering.sweep.scoring import SCORES, judge_rows, read_scores, unsteered
from saeflow.steering.sweep.settings import Grid, Setting, Variant, seed_of
from saeflow.steering.sweep.summary import summarize_sweep
from saeflow.steering.theme import Task

from .sweep_world import SMALL, NoiseJudge, WordJudge, design, inputs, luck, run, theme

ROW = {
    "theme",
    "direction",
    "method",
    "layer",
    "schedule",
    "value",
    "sample",
    "seed",
    "prompt",
    "text",
    "ids",
    "n_tokens",
    "loss",
    "distinct_1",
    "distinct_2",
    "share_layer",
    "share_total",
    "n_features",
    "mirrors",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep: its folder, its two stages and the judge."""
    folder = tmp_path_factory.mktemp("sweep")
    judge = WordJudge()
    return folder, *run(folder, judge=judge), judge


def test_every_setting_of_the_grid_has_the_same_samples(done) -> None:
    _, grid, _, _ = done
    rows = list(grid.rows())
    seeds = [seed_of(0, "grid", sample) for sample in range(4)]
    settings = {}
    for row in rows:
        assert set(row) == ROW
        key = (row["direction"], row["method"], row["layer"], row["schedule"], row["value"])
        settings.setdefault(key, []).append((row["sample"], row["seed"]))
    assert all(found == list(enumerate(seeds)) for found in settings.values())
    layers = ThemePlans.of(inputs(), theme(), Variant()).layers
    assert len(layers) > 1
    several = {
        (m, layer, m, s)
        for m in ("constant", "linear", "exponential")
        for layer in layers[1:]  # up to the first layer they would be `single`
        for s in SMALL.activate
    }
    single = {("single", layer, "constant", s) for layer in layers for s in SMALL.activate}
    assert {key[1:] for key in settings if key[0] == "activate"} == (
        several
        | single
        | {("none", -1, "", 0.0), ("prompt", -1, "", 0.0)}
        | {("start", -1, "constant", s) for s in SMALL.activate}
    )
    assert {key[1] for key in settings if key[0] == "suppress"} == {"none", "prompt", "start", "single", "cumulative"}


def test_rows_say_what_was_generated_and_how_far_it_was_moved(done) -> None:
    _, grid, confirmed, _ = done
    for row in [*grid.rows(), *confirmed.rows()]:
        asked = {
            ("activate", False): "nothing",
            ("activate", True): "nothing carry",
            ("suppress", False): "carry",
            ("suppress", True): "nothing nothing",
        }
        assert row["prompt"] == asked[row["direction"], row["method"] == "prompt"]
        assert row["n_tokens"] == len(row["ids"]) <= (4 if row["direction"] == "activate" else 5)
        steered = row["method"] not in ("none", "prompt")
        assert (row["n_features"] > 0) == steered
        assert bool(row["mirrors"]) == (row["method"] == "random")
        if row["direction"] == "activate":
            assert (row["share_total"] > 0) == (row["share_layer"] > 0) == steered
        elif not steered:
            assert row["share_total"] == row["share_layer"] == 0
        assert row["loss"] is None if not row["ids"] else row["loss"] > 0


def test_the_plan_of_every_setting_is_kept_and_is_what_the_rows_tell(done) -> None:
    folder, grid, _, _ = done
    row = next(r for r in grid.rows() if (r["method"], r["layer"], r["value"]) == ("linear", 1, 40.0))
    plan = load_plan(folder / "plans" / "carrying-activate-linear-l1-s40.json")
    assert len(plan.steps) == row["n_features"]
    assert (plan.theme, plan.release) == ("carrying", "planted")
    names = {path.name for path in (folder / "plans").iterdir()}
    assert "carrying-suppress-cumulative-l1-r-2.json" in names
    assert len(names) == len(
        {(r["direction"], r["method"], r["layer"], r["value"]) for r in grid.rows() if r["n_features"]}
    )


def test_what_is_chosen_is_best_on_the_grid_and_is_measured_on_fresh_seeds_with_all_baselines(done) -> None:
    folder, grid, confirmed, judge = done
    tables = Results.open(folder).tables()
    cells = tables["steering_cells"].dicts()
    best = tables["steering_best"].dicts()
    for row in best:
        if row["choice"] == "best":
            same = [c for c in cells if all(c[k] == row[k] for k in ("theme", "direction", "method"))]
            assert row["grid_score"] == max(c["score"] for c in same)
            assert any(all(c[k] == row[k] for k in ("layer", "value")) for c in same if c["score"] == row["grid_score"])
    activate = [(row["method"], row["mirrors"]) for row in best if row["direction"] == "activate"]
    mirrored = ["single", "constant", "linear", "exponential"]
    assert activate[:3] == [("none", ""), ("prompt", ""), ("start", "")]
    assert sorted(m for method, m in activate if method == "random") == sorted(mirrored)
    assert {method for method, _ in activate} == {"none", "prompt", "start", "random", *mirrored}
    seeds = {row["seed"] for row in confirmed.rows()}
    assert len(seeds) == 6
    assert not seeds & {row["seed"] for row in grid.rows()}
    assert {row["n"] for row in best} == {6}
    counted = sum(1 for _ in grid.rows()), sum(1 for _ in confirmed.rows())
    assert sum(n for *_, n in judge.asked) == sum(counted)


def test_random_rows_of_the_sweep_are_as_long_as_what_they_mirror_and_differ_by_sample(done) -> None:
    folder = done[0]
    here = inputs()
    [path] = (folder / "confirmed" / "plans").glob("carrying-activate-random-constant-*")
    draws = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert [draw["sample"] for draw in draws] == list(range(6))
    assert len({tuple(draw["steps"]) for draw in draws}) > 1
    name = path.name.replace("random-", "").replace(".jsonl.gz", ".json")
    mirrored = load_plan(folder / "confirmed" / "plans" / name)
    lengths = plan_change(mirrored, here.dictionaries).at_site
    targets = {str(feature) for feature in mirrored.features}
    for draw in draws:
        assert not set(draw["steps"]) & targets
        assert len(draw["steps"]) == len(targets)
        steps = tuple(
            replace(step, feature=type(step.feature).parse(name), value=value)
            for step, (name, value) in zip(mirrored.steps, draw["steps"].items(), strict=True)
        )
        assert plan_change(replace(mirrored, steps=steps), here.dictionaries).at_site == pytest.approx(
            lengths, rel=1e-6
        )


def test_a_finished_sweep_is_only_judged_again_and_keeps_what_it_chose(done, tmp_path, monkeypatch) -> None:
    run(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("rows/*")}
    monkeypatch.setattr(sweep_run, "generate", lambda *a, **k: pytest.fail("generated again"))
    run(tmp_path, judge=NoiseJudge())
    assert {p: p.read_bytes() for p in tmp_path.rglob("rows/*")} == before
    grid = Results.open(tmp_path)
    assert read_scores(grid, "words").judge == "words"
    assert read_scores(grid).judge == "noise"
    assert "Judge: noise" in grid.tables()["steering_best"].note
    assert "judge words" in grid.tables()["steering_best"].note  # who chose
    again = summarize_sweep(tmp_path, "words")
    folder = done[0]
    assert again == Results.open(folder).tables()


def test_scores_are_read_by_judge_and_damage_is_named(tmp_path) -> None:
    grid, _ = run(tmp_path)
    with pytest.raises(InvalidArgument, match="no scores of the judge 'nobody'; there are scores of words"):
        read_scores(grid, "nobody")
    path = grid.folder / SCORES
    whole = path.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:-1])))
    with pytest.raises(BadFile, match=rf"{len(lines) - 1} scores of words for {len(lines)} rows"):
        read_scores(grid)
    path.write_bytes(whole[:-5])
    with pytest.raises(BadFile, match="ask the judge again"):
        read_scores(grid)
    path.unlink()
    with pytest.raises(InvalidArgument, match="no scores of any judge"):
        summarize_sweep(grid.folder)


def test_judging_replaces_a_judges_own_scores_and_needs_the_themes_of_the_rows(tmp_path) -> None:
    grid, _ = run(tmp_path)
    judge = WordJudge()
    scores = judge_rows(grid, judge, [theme()])
    with pytest.raises(InvalidArgument, match="there are scores of words"):
        read_scores(grid, "noise")
    assert len(scores.behavior) == sum(1 for _ in grid.rows())
    with pytest.raises(InvalidArgument, match="texts of carrying"):
        judge_rows(grid, judge, [theme("other")])


def test_the_judge_is_made_with_the_unsteered_texts_of_the_grid(done) -> None:
    _, grid, _, _ = done
    found = unsteered(grid)
    assert list(found) == [("carrying", SteeringDirection.ACTIVATE), ("carrying", SteeringDirection.SUPPRESS)]
    rows = [row for row in grid.rows() if row["method"] == "none" and row["direction"] == "suppress"]
    told = found["carrying", SteeringDirection.SUPPRESS]
    assert [(j.text, j.prompt, list(j.ids)) for j in told] == [(r["text"], r["prompt"], r["ids"]) for r in rows]


def test_themes_and_directions_without_a_task_are_left_out(tmp_path) -> None:
    only = theme("pushed", suppress=None)
    silent = theme("unasked", activate=Task("nothing", "", 3), suppress=None)
    grid, confirmed = run_sweep(
        inputs(),
        design(only, silent, grid=replace(SMALL, methods=("single", "prompt"))),
        lambda _: WordJudge(),
        out=tmp_path,
    )
    assert {(r["theme"], r["direction"]) for r in grid.rows()} == {("pushed", "activate"), ("unasked", "activate")}
    methods = {(r["theme"], r["method"]) for r in [*grid.rows(), *confirmed.rows()]}
    assert methods == {
        ("pushed", "none"),
        ("pushed", "prompt"),
        ("pushed", "single"),
        ("unasked", "none"),
        ("unasked", "single"),
    }
    with pytest.raises(InvalidArgument, match="no theme of pushed has a task to suppress"):
        design(only, directions=(SteeringDirection.SUPPRESS,))
    with pytest.raises(InvalidArgument, match="name one twice"):
        design(only, only)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": replace(SMALL, samples=5)}, "samples is 4 there and 5 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"variant": Variant(fold=False)}, "fold is true there and false here"),
        ({"variant": Variant(parts=(Part.RES,))}, "parts is"),
        ({"variant": Variant(budget=Budget(total=0.1))}, "budget is null there"),
    ],
)
def test_a_folder_goes_on_only_with_the_same_arguments(done, changes, words) -> None:
    with pytest.raises(InvalidArgument, match=words):
        run(done[0], **changes)


def test_a_theme_whose_file_changed_is_not_taken_for_the_old_one(done) -> None:
    with pytest.raises(InvalidArgument, match="themes is"):
        run_sweep(inputs(), design(theme(examples=("other words",))), lambda _: WordJudge(), out=done[0])


def test_variants_change_the_plans_they_are_about(monkeypatch) -> None:
    here = inputs()
    setting = Setting("constant", 2, "constant", 2.0)
    plain = ThemePlans.of(here, theme(), Variant()).plan(SteeringDirection.ACTIVATE, setting)
    unfolded = ThemePlans.of(here, theme(), Variant(fold=False)).plan(SteeringDirection.ACTIVATE, setting)
    assert {step.value for step in unfolded.steps} == {2.0}
    assert [step.value for step in plain.steps] != [step.value for step in unfolded.steps]
    alone = ThemePlans.of(here, theme(), Variant(parts=(Part.RES,)))
    assert {feature.part for feature in alone.plan(SteeringDirection.ACTIVATE, setting).features} == {Part.RES}
    tight = ThemePlans.of(here, theme(), Variant(budget=Budget(total=1e-3))).plan(SteeringDirection.ACTIVATE, setting)
    told = tight.made_by["budget"]
    assert told["before"]["total"] > told["after"]["total"] == pytest.approx(1e-3, rel=1e-3)
    assert tight.features == plain.features

    def scores(model, dictionaries, features, *, prompts, progress):
        assert {"nothing", "carry"} < set(prompts)
        return {feature: 0.1 * feature.layer for feature in features}

    monkeypatch.setattr("saeflow.steering.output_score.output_scores", scores)
    strong = ThemePlans.of(here, theme(), Variant(min_output_score=0.1))
    assert strong.layers == (1, 2)
    assert {why.why for why in strong.chosen.dropped} == {"output score 0, below 0.1"}
    with pytest.raises(InvalidArgument, match=r"left to steer.*for output score 0, below 0.9"):
        ThemePlans.of(here, theme(), Variant(min_output_score=0.9))
    with pytest.raises(InvalidArgument, match="no features to start from"):
        ThemePlans.of(here, theme(starts=()), Variant())


def test_start_changes_the_themes_own_features_alone_and_single_one_layer() -> None:
    prepared = ThemePlans.of(inputs(), theme(), Variant())
    start = prepared.plan(SteeringDirection.SUPPRESS, Setting("start", -1, "constant", 0.0))
    assert start.features == theme().starts
    single = prepared.plan(SteeringDirection.SUPPRESS, Setting("single", 1, "constant", 0.0))
    assert set(single.layers) == {1}
    upto = prepared.plan(SteeringDirection.SUPPRESS, Setting("cumulative", 1, "constant", 0.0))
    assert set(upto.layers) == {layer for layer in prepared.layers if layer <= 1}
    assert set(single.features) < set(upto.features)
    assert prepared.counts[str(theme().starts[0].site)][1] == 1


def test_choosing_the_best_of_noise_flatters_the_grid_and_not_the_confirmed_scores(tmp_path, monkeypatch) -> None:
    def unique(model, dictionaries, requests, sampling, *, batch, progress=None):
        # no two settings say the same: a score is chance alone
        return [
            Generation(r, f"{r.seed} {r.plan.steps if r.plan else ''} {n}", (3 + n % 6, 3 + r.seed % 6), 0.1, 0.1)
            for n, r in enumerate(requests)
        ]

    monkeypatch.setattr(sweep_run, "generate", unique)
    monkeypatch.setattr(sweep_run, "losses", lambda model, prompt, ids: [1.0] * len(ids))
    values = tuple(float(v) for v in range(1, 11))
    grid = Grid(values, tuple(-v for v in values), samples=16, confirm=100)
    chosen = run(tmp_path, judge=NoiseJudge(), grid=grid)[1]
    rows = [row for row in Results.open(tmp_path).tables()["steering_best"].dicts() if row["choice"] == "best"]
    assert len(rows) == 6
    optimism = np.mean([row["grid_score"] for row in rows]) - 0.5
    honest = np.mean([row["score"] for row in rows]) - 0.5
    # the best of 30 means of 16 uniform numbers lies some 2 standard errors of 0.072 above 0.5
    assert 0.08 < optimism < 0.25
    assert abs(honest) < 3 * (1 / 12 / (100 * 6)) ** 0.5
    tables = Results.open(tmp_path).tables()
    curves = [
        row["score"]
        for name in ("steering_by_layer", "steering_by_value")
        for row in tables[name].dicts()
        if row["direction"] == "activate"
    ]
    assert abs(np.mean(curves) - 0.5) < 0.03  # cross-fitted: no optimism either
    assert chosen.record.request.arguments["chosen_by"] == "noise"
    assert luck("a") == luck("a") != luck("b")


KILLED = """
import sys
from pathlib import Path
from tests.steering.sweep_world import run

run(Path(sys.argv[1]), slow=True)
"""


@pytest.mark.parametrize("stage", [".", "confirmed"])
def test_a_killed_sweep_ends_with_the_bytes_of_one_that_was_not(done, tmp_path, stage) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")], cwd=root, env=environment, text=True
    )
    rows = tmp_path / "killed" / stage / "rows"
    give_up = time.monotonic() + 240
    while len(list(rows.glob("0*.gz"))) < 3:
        assert child.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    there = Results.open(rows.parent)
    assert 3 <= there.done < there.record.total
    assert there.record.finished is None
    run(tmp_path / "killed")
    whole, resumed = done[0], tmp_path / "killed"
    names = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(resumed) for p in resumed.rglob("*") if p.is_file())
    for name in names:
        if name.name != "manifest.json":  # which tells when it was started
            assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
