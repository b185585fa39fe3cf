"""A plan is a value, its file survives a person's hand, and what a hand gets wrong is named."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given

from saeflow.errors import BadFile, InvalidArgument
from saeflow.ids import Part, Site
from saeflow.interventions import Add, AddVector, Positions, Rescale, Span
from saeflow.steering.plan import SteeringDirection, SteeringPlan, Step, load_plan

from ..sources.tiny_models import TEXTS, tiny_model
from .dictionaries import random_dictionaries
from .plans import feature, plan_from, plan_of, raw_plans

ACTIVATE = plan_of("activate", {"3/res/5": 2.0, "1/mlp/0": -1.5, "3/res/2": 6.2})
SUPPRESS = plan_of("suppress", {"3/res/5": 0.0, "3/res/2": 0.5, "1/mlp/0": -1.0, "1/mlp/4": -1.0})


@given(raw_plans)
def test_a_plan_reads_back_from_its_file_exactly(raw):
    plan = plan_from(raw)
    assert SteeringPlan.from_json(plan.to_json()) == plan


@given(raw_plans)
def test_the_file_has_a_line_for_each_step(raw):
    plan = plan_from(raw)
    lines = plan.to_json().split("\n")
    for step in plan.steps:
        assert sum(line.startswith(f'  {{"feature": "{step.feature}", "') for line in lines) >= 1
    assert json.loads(plan.to_json())["steps"] == [
        json.loads(line.rstrip(","))
        for line in lines
        if line.startswith("  {") and ('"strength":' in line or '"r":' in line)
    ]


def test_a_saved_plan_is_loaded(tmp_path):
    for plan in (ACTIVATE, SUPPRESS):
        plan.save(tmp_path / "deep" / "plan.json")
        assert load_plan(tmp_path / "deep" / "plan.json") == plan


def test_edits_by_hand_survive(tmp_path):
    plan = plan_of("activate", {"1/res/1": 1.0, "2/res/2": 2.0, "3/res/3": 3.0}, theme="seas")
    lines = plan.to_json().splitlines()
    lines = [line for line in lines if "2/res/2" not in line]  # struck out
    place = next(i for i, line in enumerate(lines) if "1/res/1" in line)
    lines[place] = lines[place].replace('"strength": 1.0', '"strength": 7')  # another value
    lines.insert(place, '   {"label": "by me", "feature":"0/mlp/9",    "strength":-0.25 },')  # a new line
    path = tmp_path / "plan.json"
    path.write_text("\n".join(lines))
    read = load_plan(path)
    assert read.theme == "seas"
    assert [(str(s.feature), s.value) for s in read.steps] == [("0/mlp/9", -0.25), ("1/res/1", 7.0), ("3/res/3", 3.0)]
    assert read.steps[0].label == "by me"
    read.save(path)
    assert load_plan(path) == read


def test_a_person_may_write_no_more_than_what_is_needed():
    text = (
        '{"format": "saeflow-plan", "version": 1, "direction": "suppress", "steps": [{"feature": "2/res/1", "r": 0}]}'
    )
    assert SteeringPlan.from_json(text) == plan_of("suppress", {"2/res/1": 0.0})


def step(**changes):
    return {"feature": "2/res/114", "strength": 6.2, **changes}


def text_of(**changes):
    return json.dumps({"format": "saeflow-plan", "version": 1, "direction": "activate", "steps": [step()], **changes})


STEPS = [step(feature="1/res/1"), step()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON.*line 1"),
        (text_of()[:-1] + ",}", "no JSON.*line 1, column"),
        ("[1, 2]", r"\[1, 2\], not a plan"),
        ("null", "null, not a plan"),
        ("[" * 100_000, "cannot be read"),
        (text_of(format="saeflow-graph"), '\'saeflow-graph\'.*Write "format": "saeflow-plan"'),
        (text_of(version=2), "version 2"),
        (text_of(direction="up"), '"direction" is "up".*"activate" or "suppress"'),
        (text_of(direction=["activate"]), '"direction" is '),
        (text_of(step=[]), 'the plan: "step" is no key.*mean "steps"'),
        (text_of(colour="red"), 'the plan: "colour" is no key here. Keys are format'),
        (text_of(steps={}), '"steps" is {}.*list'),
        ('{"format": "saeflow-plan", "version": 1, "direction": "activate"}', '"steps" is missing'),
        (text_of(steps=[step(), 3]), "step 2: 3 is no object"),
        (text_of(steps=[{"strength": 1.0}]), 'step 1: there is no "feature"'),
        (text_of(steps=[step(feature="2-res-114")]), "step 1: .*'2-res-114' is no feature"),
        (text_of(steps=[step(feature=114)]), "step 1: .*'114' is no feature"),
        (text_of(steps=[*STEPS[:1], {"feature": "2/res/114"}]), r'step 2 \(2/res/114\): there is no "strength"'),
        (text_of(steps=[step(strength="6")]), r'step 1 \(2/res/114\): "strength" is "6". Write a finite'),
        (text_of(steps=[step(strength=True)]), '"strength" is true'),
        (text_of(steps=[step(strength=float("nan"))]), '"strength" is NaN'),
        (text_of(steps=[step(strength=float("inf"))]), '"strength" is Infinity'),
        (text_of(steps=[step(strength=10**400)]), '"strength" is 1000'),
        (text_of(steps=[step(strength=None)]), '"strength" is null'),
        (text_of(steps=[step(r=0.5)]), r'step 1 \(2/res/114\).*"strength" in each step, not "r"'),
        (text_of(direction="suppress"), r'step 1 \(2/res/114\).*"r" in each step, not "strength"'),
        (text_of(steps=[step(strenght=1)]), r'step 1 \(2/res/114\): "strenght" is no key.*mean "strength"'),
        (text_of(steps=[step(label=3)]), 'step 1.*"label" is 3'),
        (text_of(steps=[*STEPS, step()]), r"step 3 \(2/res/114\): step 2 changes the same feature"),
        (text_of(dropped=[{"feature": "1/res/2", "because": ""}]), r'dropped 1 \(1/res/2\): "because"'),
        (text_of(dropped="none"), '"dropped" is "none"'),
        (text_of(theme=7), '"theme" is 7'),
        (text_of(made_by=[1]), r'"made_by" is \[1\]'),
        (text_of(made_by={"x": float("nan")}), "made_by is no JSON"),
        (text_of(tokens="some"), '"tokens" is "some".*{"start": 4, "stop": 9}'),
        (text_of(tokens={"start": -1}), '"tokens": .*-1 to None'),
        (text_of(tokens={"start": 4, "stop": 2}), '"tokens": .*4 to 2'),
        (text_of(tokens={"at": [1.5]}), '"tokens" is'),
        (text_of(tokens={}), '"tokens" is {}'),
        (text_of().replace('"strength": 6.2', '"strength": 6.2, "strength": 8'), '"strength" stands more than'),
    ],
)
def test_a_slip_of_the_hand_is_named_with_what_to_write(tmp_path, text, said):
    with pytest.raises(BadFile, match=said):
        SteeringPlan.from_json(text)
    (tmp_path / "my.json").write_text(text)
    with pytest.raises(BadFile, match=r"my\.json: "):
        load_plan(tmp_path / "my.json")


def test_a_file_that_is_not_there_or_no_text_is_one_message(tmp_path):
    with pytest.raises(BadFile, match=r"No such file.*saeflow plan --out"):
        load_plan(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="no UTF-8"):
        load_plan(tmp_path / "binary")


def test_edits_are_one_a_site_in_order_of_computation():
    assert ACTIVATE.edits == (Add({feature("1/mlp/0"): -1.5}), Add({feature("3/res/2"): 6.2, feature("3/res/5"): 2.0}))
    assert tuple(ACTIVATE) == ACTIVATE.edits
    assert ACTIVATE.sites == (Site(1, Part.MLP), Site(3, Part.RES))
    assert (ACTIVATE.layers, ACTIVATE.span) == ((1, 3), (1, 3))
    assert plan_of("activate", {}).edits == ()
    assert plan_of("activate", {}).span is None


def test_a_suppression_has_a_factor_for_each_feature_where_they_differ():
    same, other = SUPPRESS.edits
    assert same == Rescale((feature("1/mlp/0"), feature("1/mlp/4")), -1.0)
    assert other == Rescale((feature("3/res/2"), feature("3/res/5")), (0.5, 0.0))


def test_edits_touch_the_tokens_of_the_plan():
    plan = plan_of("activate", {"1/res/0": 1.0}, tokens=Positions((0, 3)))
    assert plan.edits[0].tokens == Positions((0, 3))
    assert plan_of("suppress", {"1/res/0": 1.0}, tokens=Span(2)).edits[0].tokens == Span(2)


@pytest.mark.parametrize("plan", [ACTIVATE, SUPPRESS], ids=["activate", "suppress"])
def test_a_plan_goes_into_a_model_as_its_edits_do(plan):
    model = tiny_model("llama")
    plan = SteeringPlan(
        plan.direction, tuple(Step(feature(str(s.feature).replace("3/res", "2/res")), s.value) for s in plan.steps)
    )
    dictionaries = random_dictionaries(Site(1, Part.MLP), Site(2, Part.RES))
    tokens = model.tokenize(TEXTS)
    with model.intervening(plan, dictionaries):
        by_plan = model.capture(tokens, [], logits=True).logits
    with model.intervening(list(plan.edits), dictionaries):
        by_edits = model.capture(tokens, [], logits=True).logits
    assert torch.equal(by_plan, by_edits)
    plain = model.capture(tokens, [], logits=True).logits
    assert not torch.allclose(by_plan, plain, atol=1e-3)
    with model.intervening(plan.scaled(0.0), dictionaries):
        assert torch.equal(model.capture(tokens, [], logits=True).logits, plain)


@given(raw_plans)
def test_scaled_by_nothing_changes_nothing_and_by_one_is_the_plan(raw):
    plan = plan_from(raw)
    neutral = 1.0 if plan.direction is SteeringDirection.SUPPRESS else 0.0
    assert all(step.value == neutral for step in plan.scaled(0.0).steps)
    assert plan.scaled(1.0) == plan


def test_scaled_multiplies_what_is_changed():
    assert [s.value for s in ACTIVATE.scaled(0.5).steps] == [-0.75, 3.1, 1.0]
    assert [s.value for s in SUPPRESS.scaled(2.0).steps] == [-3.0, -3.0, 0.0, -1.0]
    with pytest.raises(InvalidArgument, match="scaled by nan"):
        ACTIVATE.scaled(float("nan"))


def test_a_plan_is_sorted_keeps_its_own_copies_and_refuses_what_it_cannot_mean():
    made_by = {"span": (1, 2)}
    plan = plan_of("activate", {"3/res/5": 2.0, "1/res/1": 1.0}, made_by=made_by)
    made_by["span"] = None
    assert plan.made_by == {"span": [1, 2]}
    assert plan.features == (feature("1/res/1"), feature("3/res/5"))
    with pytest.raises(InvalidArgument, match="two steps for 1/res/1"):
        SteeringPlan(SteeringDirection.ACTIVATE, (Step(feature("1/res/1"), 1.0), Step(feature("1/res/1"), 2.0)))
    with pytest.raises(InvalidArgument, match="value nan of 1/res/1"):
        Step(feature("1/res/1"), float("nan"))
    with pytest.raises(InvalidArgument, match="made_by is no JSON"):
        plan_of("activate", {}, made_by={"when": object()})


@pytest.mark.parametrize("module", ["", ".schedule", ".plan", ".growth", ".build", ".theme", ".starts"])
def test_plans_are_made_and_read_without_torch(module):
    code = f"import saeflow.steering{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names_are_sorted_and_each_is_where_it_is_said():
    from saeflow import steering

    assert list(steering.__all__) == sorted(steering.__all__)
    assert set(steering.__all__) == set(steering._HOME)
    for name in steering.__all__:
        assert getattr(steering, name) is not None
        assert name not in {"generate", "changes"}, "a module of that name would hide it"
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = steering.no_such_name


def test_how_additions_act_is_in_the_file_and_of_activation_alone():
    plan = SteeringPlan(SteeringDirection.ACTIVATE, (Step(feature("1/res/3"), 2.0),), only_active=True, keep_norm=True)
    assert SteeringPlan.from_json(plan.to_json()) == plan
    [edit] = plan.edits
    assert edit.only_active
    assert edit.keep_norm
    plain = SteeringPlan(SteeringDirection.ACTIVATE, plan.steps)
    assert "only_active" not in plain.to_json()
    with pytest.raises(BadFile, match='"keep_norm" is 1'):
        SteeringPlan.from_json(plan.to_json().replace('"keep_norm": true', '"keep_norm": 1'))
    for how in ("only_active", "keep_norm"):
        with pytest.raises(InvalidArgument, match="of plans that add"):
            SteeringPlan(SteeringDirection.SUPPRESS, (), **{how: True})
    vector = AddVector(Site(1, Part.RES), (1.0,))
    with pytest.raises(InvalidArgument, match="never active"):
        SteeringPlan(SteeringDirection.ACTIVATE, (), vectors=(vector,), only_active=True)
