"""Planning and steering in one call do what the commands do."""

from __future__ import annotations

import json

import pytest

import saeflow as sf
from saeflow.errors import InvalidArgument, InvalidId
from saeflow.steering import load_plan
from saeflow.steering.ask import TOTAL

STARTS = ("3/res/541", "2/res/114")


@pytest.fixture(scope="module")
def model():
    return sf.load_model("demo")


def test_the_default_plan_is_that_of_the_command_and_keeps_its_budget(model, stdout):
    made = sf.plan("demo", starts=STARTS, model=model)
    assert json.loads(stdout("plan", "demo", "--starts", ",".join(STARTS), "--json")) == json.loads(made.to_json())
    assert made.made_by["schedule"] == {"kind": "linear", "s": 1.0, "s_end": 1.5}
    assert {step.feature.part.value for step in made.steps} == {"res"}
    assert made.made_by["budget"]["after"]["total"] <= TOTAL * 1.001
    assert "budget" not in sf.plan("demo", starts=STARTS, strength=1, model=model).made_by


def test_steered_texts_are_those_of_the_command_and_of_the_saved_plan(model, stdout, tmp_path):
    found = sf.steer("demo", "I think", starts=STARTS, samples=2, max_new_tokens=8, model=model)
    command = ("steer", "demo", "I think", "--starts", ",".join(STARTS), "-n", 2, "--max-new-tokens", 8, "--json")
    told = json.loads(stdout(*command))["samples"]
    assert found["seed"].tolist() == [0, 1]
    assert found["steered"].tolist() == [one["steered"]["text"] for one in told]
    assert found["unsteered"].tolist() == [one["unsteered"]["text"] for one in told]
    assert (found["share"] > 0).all()
    path = tmp_path / "plan.json"
    path.write_text(found.attrs["plan"], encoding="utf-8")
    again = sf.steer("demo", "I think", plan=path, samples=2, max_new_tokens=8, model=model)
    assert again.equals(found)
    assert sf.steer("demo", "I think", plan=load_plan(path), max_new_tokens=8, model=model).equals(found[:1])


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({}, InvalidArgument, "Name a theme"),
        ({"theme": "playtim"}, InvalidArgument, "Did you mean 'playtime'"),
        ({"starts": ("3/rse/541",)}, InvalidId, "'3/rse/541' is no feature"),
        ({"starts": STARTS, "strength": -3}, InvalidArgument, "strength -3 is out of range"),
        ({"starts": STARTS, "strength": 2, "suppress": True}, InvalidArgument, "strength is to activate"),
        ({"starts": STARTS, "r": -1}, InvalidArgument, "r is to suppress"),
        ({"starts": STARTS, "schedule": "liner"}, InvalidArgument, "no schedule of kind 'liner'"),
    ],
)
def test_what_cannot_be_planned_is_said(asked, error, said):
    with pytest.raises(error, match=said):
        sf.plan("demo", **asked)


def test_a_plan_and_what_would_make_one_are_not_given_together(model):
    plan = sf.plan("demo", starts=STARTS, model=model)
    with pytest.raises(InvalidArgument, match="theme would be ignored"):
        sf.steer("demo", "I think", plan=plan, theme="playtime", model=model)


def test_suppression_of_what_does_not_fire_says_so(stdout, tmp_path):
    texts = tmp_path / "quiet.txt"
    texts.write_text("x = 1 + 2\n", encoding="utf-8")
    said = stdout("plan", "demo", "--starts", STARTS[0], "--suppress", "--texts", texts)
    assert "None of these features fires on the texts, so nothing is changed there." in said
