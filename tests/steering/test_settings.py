"""What a sweep tries: which settings there are, what is recorded of them, seeds."""

import json
from dataclasses import astuple, replace

import pytest

from saeflow.errors import InvalidArgument
from saeflow.flow.scores import Thresholds
from saeflow.ids import Part
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.schedule import Constant, Exponential, Linear
from saeflow.steering.sizes import Budget
from saeflow.steering.sweep.settings import ACTIVATE, MULTI, ORDER, SUPPRESS, Grid, Setting, Variant, seed_of

UP, DOWN = SteeringDirection.ACTIVATE, SteeringDirection.SUPPRESS


def test_a_grid_is_every_layer_at_every_value_for_each_method_of_the_direction() -> None:
    grid = Grid(activate=(1.0, 2.0), suppress=(0.0,))
    assert grid.of_method(UP, "linear", (3, 1, 4)) == tuple(
        Setting("linear", layer, "linear", s) for layer in (3, 4) for s in (1.0, 2.0)
    )
    assert grid.of_method(UP, "single", (1,)) == tuple(Setting("single", 1, "constant", s) for s in (1.0, 2.0))
    assert grid.of_method(DOWN, "cumulative", (1, 2, 3)) == tuple(
        Setting("cumulative", layer, "constant", 0.0) for layer in (2, 3)
    )
    assert grid.of_method(UP, "start", ()) == tuple(Setting("start", -1, "constant", s) for s in (1.0, 2.0))
    assert grid.of_method(DOWN, "none", ()) == (Setting("none"),)
    assert grid.of_method(UP, "random", (1,)) == ()


def test_each_direction_has_its_own_methods_over_several_layers() -> None:
    grid = Grid()
    assert grid.steered(UP) == ("single", "constant", "linear", "exponential")
    assert grid.steered(DOWN) == ("single", "cumulative")
    assert grid.of_method(UP, "cumulative", (1,)) == ()
    assert grid.of_method(DOWN, "linear", (1,)) == ()
    assert set(MULTI[UP]) | set(MULTI[DOWN]) < set(ORDER)


def test_a_method_of_several_layers_is_never_one_of_a_single_layer() -> None:
    assert Grid().of_method(UP, "linear", (2,)) == Grid().of_method(DOWN, "cumulative", (2,)) == ()
    assert Grid(layers=(1,)).of_method(UP, "constant", (1, 2)) == ()
    assert {s.layer for s in Grid(layers=(2,)).of_method(UP, "constant", (1, 2))} == {2}


def test_methods_and_layers_can_be_chosen_and_unsteered_text_is_always_made() -> None:
    grid = Grid(layers=(2, 5), methods=("single",))
    assert {setting.layer for setting in grid.of_method(UP, "single", (1, 2, 3))} == {2}
    assert grid.of_method(UP, "constant", (1, 2, 3)) == ()
    assert grid.of_method(UP, "prompt", ()) == ()
    assert grid.of_method(UP, "none", ()) == (Setting("none"),)


def test_the_defaults_run_from_weak_to_strong() -> None:
    assert list(ACTIVATE) == sorted(ACTIVATE)
    assert len(ACTIVATE) == 6
    assert ACTIVATE[-1] / ACTIVATE[0] >= 30
    assert SUPPRESS == (0.5, 0.0, -1.0, -2.0, -4.0, -8.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"confirm": 0}, "confirm = 0"),
        ({"methods": ("single", "luck")}, "no steering method luck"),
        ({"activate": ()}, "no list of values"),
        ({"activate": (1.0, 1.0)}, "Give each number once"),
        ({"suppress": (0.0, float("nan"))}, "no list of values"),
        ({"suppress": (0.0, 1.0)}, "r = 1 changes nothing"),
    ],
)
def test_a_grid_without_sense_is_refused(changes, words) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Grid(**changes)


def test_layers_without_a_feature_are_refused_naming_those_with_one() -> None:
    with pytest.raises(InvalidArgument, match=r"none of the layers \[9\].*some at \[1, 2\]"):
        Grid(layers=(9,)).of_method(UP, "single", (2, 1))


def test_settings_come_back_from_their_lists_and_name_files_apart() -> None:
    settings = [
        Setting("none"),
        Setting("single", 2, "constant", -1.0),
        Setting("linear", 2, "linear", 0.5),
        Setting("random", 2, "linear", 0.5, "linear"),
        Setting("random", 2, "linear", 0.5, "single"),
    ]
    assert [Setting(*json.loads(json.dumps(astuple(s)))) for s in settings] == settings
    names = [setting.name(direction) for setting in settings for direction in (UP, DOWN)]
    assert len(set(names)) == len(names)
    assert settings[3].name(UP) == "activate-random-linear-l2-s0.5"
    assert settings[1].name(DOWN) == "suppress-single-l2-r-1"


def test_the_record_of_a_variant_changes_with_everything_that_changes_plans() -> None:
    plain = Variant()
    others = [
        replace(plain, thresholds=Thresholds(res=0.4)),
        replace(plain, thresholds=Thresholds(att=0.2)),
        replace(plain, thresholds=Thresholds(cuts={(1, Part.RES): 0.3})),
        replace(plain, k=2),
        replace(plain, parts=(Part.RES,)),
        replace(plain, min_output_score=0.1),
        replace(plain, fold=False),
        replace(plain, schedules=(Constant(1.0), Linear(1.0, 2.0), Exponential(1.0))),
        replace(plain, schedules=(Constant(1.0), Linear(1.0), Exponential(1.0, -0.25))),
        replace(plain, budget=Budget(per_layer=0.1)),
        replace(plain, budget=Budget(total=0.1)),
    ]
    told = [json.dumps(variant.to_arguments()) for variant in (plain, *others)]
    assert len(set(told)) == len(told)
    same = replace(plain, thresholds=Thresholds(mlp=0.15, att=0.15))
    assert same.to_arguments() == plain.to_arguments()


def test_schedules_start_at_the_value_of_the_setting_and_keep_their_shape() -> None:
    variant = Variant(schedules=(Exponential(9.0, -0.25), Constant(9.0), Linear(9.0, 3.0)))
    assert variant.schedule("exponential", 2.0) == Exponential(2.0, -0.25)
    assert variant.schedule("linear", 2.0) == Linear(2.0, 3.0)
    with pytest.raises(InvalidArgument, match="no schedule 'cubic'"):
        variant.schedule("cubic", 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedules": (Constant(1.0),)}, "one each of constant"),
        ({"schedules": (Constant(1.0), Constant(1.0), Linear(1.0))}, "one each of constant"),
        ({"parts": ()}, "Give each once"),
        ({"parts": (Part.RES, Part.RES)}, "Give each once"),
    ],
)
def test_a_variant_without_sense_is_refused(changes, words) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Variant(**changes)


def test_no_seed_of_the_second_stage_had_a_part_in_the_first() -> None:
    of = {
        (seed, stage): {seed_of(seed, stage, n) for n in range(500)}
        for seed in (0, 1)
        for stage in ("grid", "confirmed")
    }
    assert all(len(seeds) == 500 for seeds in of.values())
    assert len(set().union(*of.values())) == 2000
    assert all(0 <= seed < 2**48 for seeds in of.values() for seed in seeds)
    assert seed_of(0, "grid", 3) == seed_of(0, "grid", 3)
