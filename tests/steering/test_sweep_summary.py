"""Each table of a sweep from rows written by hand, with the answers counted by hand."""

import math

import pytest

from saeflow.errors import InvalidArgument
from saeflow.experiments.results import Results, RunRequest
from saeflow.steering.judges import Score
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import Cells, choose, setting_of, start_layer
from saeflow.steering.sweep.scoring import JudgeScores, judge_rows
from saeflow.steering.sweep.settings import Grid, Setting
from saeflow.steering.sweep.summary import steering_tables, summarize_sweep

from .sweep_world import theme

# each cell: (direction, method, layer, schedule, value, mirrors): behavior and coherence of its samples
FIVE = (5.0, 5.0, 5.0, 5.0)
GRID = {
    ("activate", "none", -1, "", 0.0): (0.0, 1.0, 0.0, 1.0),
    ("activate", "prompt", -1, "", 0.0): (2.0, 2.0, 2.0, 2.0),
    ("activate", "start", -1, "constant", 1.0): (1.0, 1.0, 1.0, 1.0),
    ("activate", "start", -1, "constant", 4.0): (2.0, 2.0, 2.0, 2.0),
    ("activate", "single", 1, "constant", 1.0): (1.0, 1.0, 1.0, 1.0),
    ("activate", "single", 1, "constant", 4.0): (2.5, 2.5, 2.5, 2.5),
    ("activate", "single", 2, "constant", 1.0): (2.0, 2.0, 2.0, 2.0),
    ("activate", "single", 2, "constant", 4.0): (3.0, 3.0, 3.0, 3.0),
    ("activate", "constant", 2, "constant", 1.0): (4.0, 4.0, 4.0, 4.0),
    ("activate", "constant", 2, "constant", 4.0): (3.5, 3.5, 3.5, 3.5),
    # one sample of each half is lucky at layer 1, the other at layer 2
    ("activate", "linear", 1, "linear", 1.0): (5.0, 1.0, 1.0, 1.0),
    ("activate", "linear", 2, "linear", 1.0): (1.0, 4.0, 1.0, 1.0),
    ("suppress", "none", -1, "", 0.0): (4.0, 4.0, 4.0, 4.0),
    ("suppress", "single", 1, "constant", 0.0): (3.0, 3.0, 3.0, 3.0),
    ("suppress", "single", 1, "constant", -2.0): (2.0, 2.0, 2.0, 2.0),
    ("suppress", "cumulative", 1, "constant", 0.0): (1.0, 1.0, 1.0, 1.0),
    ("suppress", "cumulative", 1, "constant", -2.0): (1.5, 1.5, 1.5, 1.5),
}
SHARE = {1.0: 0.08, 4.0: 0.3, 0.0: 0.04, -2.0: 0.15}
SITES = {"1/res": [2, 1], "2/att": [1, 0], "2/res": [3, 0], "10/mlp": [4, 0]}


class TextJudge:
    """Reads behavior and coherence from the text: "4 5"."""

    name = "reader"

    def score(self, theme, direction, texts, *, progress=None):
        marks = [tuple(map(float, text.text.split())) for text in texts]
        return [Score(behavior=behavior, coherence=coherence) for behavior, coherence in marks]


def rows_of(cells, coherence=5.0, first_seed=0):
    for (direction, method, layer, schedule, value, *mirrors), marks in cells.items():
        steered = method not in ("none", "prompt")
        for sample, behavior in enumerate(marks):
            yield {
                "theme": "carrying",
                "direction": direction,
                "method": method,
                "layer": layer,
                "schedule": schedule,
                "value": value,
                "sample": sample,
                "seed": first_seed + sample,
                "prompt": "nothing",
                "text": f"{behavior} {coherence}",
                "ids": [3, 4],
                "n_tokens": 2,
                "loss": math.log(2 + sample % 2 * 6),
                "distinct_1": 1.0,
                "distinct_2": 0.5 + 0.5 * (sample % 2),
                "share_layer": 0.1 * steered,
                "share_total": SHARE[value] * steered,
                "n_features": layer if steered else 0,
                "mirrors": mirrors[0] if mirrors else "",
            }


def results(folder, cells, experiment="steering", roles=None, **changes):
    """A finished results folder of these rows, judged."""
    request = RunRequest(experiment, "planted", "planted", 0, ("carrying",), {}, changes)
    units = [
        {
            "dataset": "carrying",
            "text": "",
            "theme": "carrying",
            "direction": direction,
            "method": method,
            "settings": [[method, layer, schedule, value, *(mirrors or [""])]],
            "features": SITES,
            "roles": [roles[direction, method, layer, schedule, value, *mirrors] if roles else "best"],
        }
        for direction, method, layer, schedule, value, *mirrors in cells
    ]
    made = Results.start(folder, request, lambda: units, {})
    each = list(cells)
    made = made.run(lambda unit: list(rows_of({each[units.index(unit)]: cells[each[units.index(unit)]]})))
    judge_rows(made, TextJudge(), [theme()])
    return made


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The tables of the grid alone, by name."""
    made = results(tmp_path_factory.mktemp("grid"), GRID)
    return {table.name: table for table in steering_tables(made)}


def only(table, **wanted):
    found = [row for row in table.dicts() if all(row[name] == value for name, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def test_cells_hold_every_setting_with_its_means(tables) -> None:
    table = tables["steering_cells"]
    assert len(table.rows) == len(GRID)
    row = only(table, direction="activate", method="single", layer=2, value=4.0)
    assert row == {
        "theme": "carrying",
        "direction": "activate",
        "method": "single",
        "layer": 2,
        "schedule": "constant",
        "value": 4.0,
        "n": 4,
        "behavior": 3.0,
        "coherence": 5.0,
        "score": 0.6,
        "low": 0.238581,
        "high": 0.840946,
        "perplexity": 4.0,
        "distinct_2": 0.75,
        "share_layer": 0.1,
        "share_total": 0.3,
        "n_features": 2.0,
    }
    assert row["low"] == pytest.approx(0.6 * 0.025**0.25, abs=1e-6)  # four samples alike may all be of one kind
    # (1 - b / 5) * c / 5 for a suppression
    assert only(table, direction="suppress", method="cumulative", value=0.0)["score"] == pytest.approx(0.8)
    varying = only(table, direction="activate", method="none")
    assert varying["score"] == pytest.approx(0.1)
    assert varying["low"] < 0.1 < varying["high"]
    assert [row["method"] for row in table.dicts()][:4] == ["none", "prompt", "start", "start"]


def test_each_layer_shows_every_r_of_a_suppression_and_the_best_s_of_an_activation(tables) -> None:
    table = tables["steering_by_layer"]
    activate = [row for row in table.dicts() if row["direction"] == "activate"]
    assert [(r["method"], r["layer"], r["value"]) for r in activate] == [
        ("single", 1, 4.0),
        ("single", 2, 4.0),
        ("constant", 2, 1.0),
        ("linear", 1, 1.0),
        ("linear", 2, 1.0),
    ]
    assert [row["score"] for row in activate[:3]] == pytest.approx([0.5, 0.6, 0.8])
    assert {row["default"] for row in activate} == {0.1}
    suppress = [
        (r["method"], r["layer"], r["value"], r["score"]) for r in table.dicts() if r["direction"] == "suppress"
    ]
    assert suppress == [
        ("single", 1, -2.0, 0.6),
        ("single", 1, 0.0, pytest.approx(0.4)),
        ("cumulative", 1, -2.0, 0.7),
        ("cumulative", 1, 0.0, 0.8),
    ]


def test_each_value_shows_its_best_layer_and_the_start_has_none(tables) -> None:
    table = tables["steering_by_value"]
    row = only(table, direction="activate", method="single", value=1.0)
    assert (row["layer"], row["score"], row["behavior"], row["coherence"], row["default"]) == (2, 0.4, 2.0, 5.0, 0.1)
    assert only(table, direction="activate", method="start", value=4.0)["layer"] == -1
    assert "none" not in table.frame()["method"].tolist()
    assert only(table, direction="suppress", method="cumulative", value=-2.0)["default"] == pytest.approx(0.2)


def test_the_best_of_several_settings_is_measured_on_samples_that_did_not_choose_it(tables) -> None:
    # samples 0, 2 choose layer 1, where 1 and 3 score 1; samples 1, 3 choose layer 2, where 0 and 2 score 1
    row = only(tables["steering_by_value"], method="linear", value=1.0)
    assert row["score"] == pytest.approx(0.2)
    assert row["behavior"] == 2.0  # of layer 1, the best on all samples: flattered
    assert row["layer"] == 1


def test_sensitivity_is_over_values_each_at_its_best_layer(tables) -> None:
    table = tables["steering_sensitivity"]
    row = only(table, direction="activate", method="single")
    assert (row["values"], row["worst_score"], row["best_score"]) == (2, 0.4, 0.6)
    assert row["mean_score"] == pytest.approx(0.5)
    assert row["spread"] == pytest.approx(0.2)
    assert row["spread_low"] < row["spread"] < row["spread_high"]
    constant = only(table, direction="activate", method="constant")
    assert constant["spread"] == pytest.approx(0.1)
    assert only(table, direction="suppress", method="cumulative")["mean_score"] == pytest.approx(0.75)


def test_a_limit_on_the_change_leaves_only_settings_that_change_as_little(tables) -> None:
    table = tables["steering_by_share"]
    rows = [row for row in table.dicts() if (row["direction"], row["method"]) == ("activate", "single")]
    assert [(r["share_limit"], r["layer"], r["value"], r["share_total"]) for r in rows] == [
        (0.1, 2, 1.0, 0.08),
        (0.2, 2, 1.0, 0.08),
        (0.4, 2, 4.0, 0.3),
        (0.8, 2, 4.0, 0.3),
        (1.6, 2, 4.0, 0.3),
    ]
    assert [row["score"] for row in rows] == pytest.approx([0.4, 0.4, 0.6, 0.6, 0.6])
    weak = [r["share_limit"] for r in table.dicts() if (r["direction"], r["method"]) == ("suppress", "cumulative")]
    assert weak[0] == 0.05


def test_features_are_counted_by_site_in_the_order_of_layers(tables) -> None:
    assert tables["steering_features"].rows == (
        ("carrying", 1, "res", 2, 1),
        ("carrying", 2, "att", 1, 0),
        ("carrying", 2, "res", 3, 0),
        ("carrying", 10, "mlp", 4, 0),
    )


CONFIRMED = {
    ("activate", "none", -1, "", 0.0): ((0.0, 1.0, 0.0, 1.0), "baseline"),
    ("activate", "prompt", -1, "", 0.0): ((2.0, 2.0, 2.0, 2.0), "baseline"),
    ("activate", "start", -1, "constant", 4.0): ((1.0, 2.0, 1.0, 2.0), "baseline"),
    ("activate", "random", 2, "constant", 4.0, "single"): ((1.0, 1.0, 1.0, 1.0), "baseline"),
    ("activate", "random", 2, "constant", 1.0, "constant"): ((2.0, 2.0, 2.0, 2.0), "baseline"),
    ("activate", "single", 2, "constant", 4.0): ((2.0, 2.0, 2.0, 4.0), "best"),
    ("activate", "single", 1, "constant", 4.0): ((1.5, 1.5, 1.5, 1.5), "start layer"),
    ("activate", "constant", 2, "constant", 1.0): ((3.0, 3.0, 3.0, 3.0), "best"),
}


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory):
    """All tables of a sweep whose chosen settings were measured again."""
    folder = tmp_path_factory.mktemp("sweep")
    results(folder, GRID)
    marks = {key: value for key, (value, _) in CONFIRMED.items()}
    roles = {key: role for key, (_, role) in CONFIRMED.items()}
    results(folder / "confirmed", marks, "steering-confirmed", roles, chosen_by="chooser")
    return summarize_sweep(folder)


def test_the_best_of_each_method_is_told_from_the_second_stage_alone(confirmed) -> None:
    table = confirmed["steering_best"]
    row = only(table, method="constant")
    assert (row["score"], row["grid_score"], row["choice"], row["n"]) == (0.6, 0.8, "best", 4)
    single = only(table, method="single", choice="best")
    assert (single["layer"], single["behavior"], single["score"]) == (2, 2.5, 0.5)
    assert single["behavior_low"] < 2.5 < single["behavior_high"]
    assert (single["coherence"], single["coherence_high"]) == (5.0, 5.0)
    assert single["coherence_low"] == pytest.approx(5 * 0.025**0.25, abs=1e-5)
    assert only(table, method="single", choice="start layer")["layer"] == 1
    assert [row["mirrors"] for row in table.dicts() if row["method"] == "random"] == ["constant", "single"]
    assert only(table, method="none")["grid_score"] == pytest.approx(0.1)
    assert only(table, mirrors="single")["grid_score"] is None
    assert "chooser" in table.note


def test_methods_are_compared_on_equal_seeds(confirmed) -> None:
    table = confirmed["steering_paired"]
    of = {(row["method_a"], row["method_b"]): row for row in table.dicts()}
    single = of["constant", "single"]
    assert (single["n"], single["difference"]) == (4, pytest.approx(0.1))
    assert single["low"] < 0.1 < single["high"]
    assert single["p"] > 0.05  # three samples gain and one loses
    start = of["constant", "start"]
    assert start["difference"] == pytest.approx(0.3)
    # four of four agree: no sign test of four pairs goes below 2 / 2^4
    assert start["p"] == pytest.approx(0.125)
    assert of["constant", "random"]["difference"] == pytest.approx(0.2)
    assert of["single", "random"]["difference"] == pytest.approx(0.3)
    assert of["constant", "single (start layer)"]["difference"] == pytest.approx(0.3)
    assert of["constant", "prompt"]["difference"] == pytest.approx(0.2)
    assert of["start", "none"]["difference"] == pytest.approx(0.2)
    assert ("linear", "start") not in of
    assert all(row["q"] >= row["p"] for row in table.dicts())


def test_samples_stand_side_by_side_by_seed(confirmed) -> None:
    table = confirmed["steering_samples"]
    assert table.frame()["sample"].is_monotonic_increasing
    first = [row for row in table.dicts() if row["sample"] == 0]
    assert len(first) == len(CONFIRMED)
    row = only(table, sample=3, method="single", layer=2, mirrors="")
    assert (row["text"], row["behavior"], row["coherence"], row["prompt"]) == ("4.0 5.0", 4.0, 5.0, "nothing")


def test_every_table_names_the_judge_and_what_it_answers(confirmed) -> None:
    assert list(confirmed) == [
        "steering_best",
        "steering_paired",
        "steering_features",
        "steering_cells",
        "steering_by_layer",
        "steering_by_value",
        "steering_sensitivity",
        "steering_by_share",
        "steering_samples",
    ]
    for table in confirmed.values():
        assert "reader" in table.note
        assert table.title
        assert table.paper


def test_what_is_chosen_is_best_by_score_then_by_the_smaller_change(tmp_path) -> None:
    grid = results(
        tmp_path,
        GRID
        | {
            ("activate", "exponential", 1, "exponential", 4.0): FIVE,
            ("activate", "exponential", 2, "exponential", 1.0): FIVE,
        },
    )
    scores = judge_rows(grid, TextJudge(), [theme()])
    cells = Cells.of(grid, scores)
    found = choose(cells, [theme()], Grid())
    lines = found[found["direction"] == SteeringDirection.ACTIVATE].to_dict("records")
    activate = [(setting_of(line), line["role"]) for line in lines]
    assert activate == [
        (Setting("none"), "baseline"),
        (Setting("prompt"), "baseline"),
        (Setting("start", -1, "constant", 4.0), "baseline"),
        (Setting("random", 2, "constant", 4.0, "single"), "baseline"),
        (Setting("random", 2, "constant", 1.0, "constant"), "baseline"),
        (Setting("random", 1, "linear", 1.0, "linear"), "baseline"),
        (Setting("random", 2, "exponential", 1.0, "exponential"), "baseline"),
        (Setting("single", 2, "constant", 4.0), "best"),
        (Setting("single", 1, "constant", 4.0), "start layer"),
        (Setting("constant", 2, "constant", 1.0), "best"),
        (Setting("linear", 1, "linear", 1.0), "best"),
        (Setting("exponential", 2, "exponential", 1.0), "best"),
    ]
    without = choose(cells, [theme()], Grid(methods=("single", "constant")))
    assert "random" not in set(without["method"])
    assert start_layer(theme()) == 1
    assert list(cells.settings["method"].unique())[:2] == ["none", "prompt"]


def test_settings_without_scores_cannot_be_chosen_from(tmp_path) -> None:
    import numpy as np

    grid = results(tmp_path, {key: GRID[key] for key in list(GRID)[:4]})
    n = 16
    cells = Cells.of(grid, JudgeScores("nobody", np.full(n, 5.0), np.full(n, 5.0)))
    cells.values["score"][:] = np.nan
    with pytest.raises(InvalidArgument, match="no setting with a score"):
        choose(cells, [theme()], Grid())
