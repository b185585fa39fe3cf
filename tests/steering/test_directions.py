"""Directions without features: a planted one is found, and plans add it as long as features of the same share."""

import numpy as np
import pytest
import torch

from saeflow.errors import BadFile, InvalidArgument, WidthMismatch
from saeflow.ids import Part, Site
from saeflow.interventions import AddVector
from saeflow.steering.directions import text_means, theme_directions
from saeflow.steering.plan import SteeringDirection, SteeringPlan
from saeflow.steering.row_plans import row_changes
from saeflow.steering.sizes import plan_change, shares
from saeflow.steering.sweep.plans import ThemePlans
from saeflow.steering.sweep.run import Design
from saeflow.steering.sweep.settings import Grid, Setting, Variant

from ..sources.tiny_models import D_MODEL, tiny_model
from .steered import activation, dictionaries
from .sweep_world import inputs, theme

SITE = Site(1, Part.RES)
ON = ("carry carry source carry", "carry source carry carry", "source carry carry carry")
GRID = {"activate": (0.2, 0.4), "samples": 4, "confirm": 4}


def states(n, shift):
    make = torch.Generator().manual_seed(n)
    return torch.randn(n, 6, generator=make, dtype=torch.float64) + shift * torch.eye(6, dtype=torch.float64)[2]


@pytest.mark.parametrize("kind", ["difference", "probe"])
def test_a_planted_direction_is_found_at_unit_length(kind):
    (found,) = theme_directions({SITE: states(80, 4.0)}, {SITE: states(120, 0.0)}, kind).values()
    assert float(found.norm()) == pytest.approx(1)
    assert float(found[2]) > 0.95


def test_directions_that_cannot_be_are_refused():
    with pytest.raises(InvalidArgument, match="no direction 'mean'"):
        theme_directions({SITE: states(8, 0.0)}, {SITE: states(9, 0.0)}, "mean")
    with pytest.raises(InvalidArgument, match="the same mean state at 1/res"):
        theme_directions({SITE: states(8, 0.0)}, {SITE: states(8, 0.0)}, "difference")


def test_a_texts_mean_is_that_of_its_own_tokens_whatever_shares_its_batch():
    model = inputs().model
    together = text_means(model, [SITE], ON)[SITE]
    alone = torch.cat([text_means(model, [SITE], [text])[SITE] for text in ON])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_a_plan_with_a_vector_adds_it_at_its_site_and_reads_back():
    model = tiny_model("llama")
    vector = tuple(np.linspace(-1, 1, D_MODEL).tolist())
    plan = SteeringPlan(SteeringDirection.ACTIVATE, (), vectors=(AddVector(SITE, vector),))
    assert SteeringPlan.from_json(plan.to_json()) == plan
    assert (plan.sites, plan.layers, plan.span) == ((SITE,), (1,), (1, 1))
    ids = model.tokenize(["w1 w2 w3"])
    before = model.capture(ids, [SITE])[SITE]
    for edits in (plan, row_changes([plan], None, model), plan.edits):
        with model.intervening(edits, {}):
            moved = model.capture(ids, [SITE])[SITE] - before
        torch.testing.assert_close(moved, torch.tensor(vector).expand_as(moved), rtol=1e-4, atol=1e-5)
    twice = plan_change(plan.scaled(2.0), {})
    assert twice.upto[1] == pytest.approx(2 * np.linalg.norm(vector))


def test_a_vector_and_a_feature_of_one_site_are_both_added():
    model, made = tiny_model("llama"), dictionaries()
    vector = AddVector(SITE, tuple(np.linspace(-1, 1, D_MODEL).tolist()))
    feature = activation({"1/res/3": 2.0})
    plan = SteeringPlan(SteeringDirection.ACTIVATE, feature.steps, vectors=(vector,))
    ids = model.tokenize(["w1 w2 w3"])
    before = model.capture(ids, [SITE])[SITE]

    def moved(edits):
        with model.intervening(edits, made):
            return model.capture(ids, [SITE])[SITE] - before

    both = moved(feature) + moved([vector])
    torch.testing.assert_close(moved(plan), both, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved(row_changes([plan], made, model)), both, rtol=1e-4, atol=1e-5)


def test_a_vector_that_is_none_is_refused():
    with pytest.raises(InvalidArgument, match="not finite"):
        AddVector(SITE, (0.0, float("nan")))
    with pytest.raises(InvalidArgument, match="has no vectors to add"):
        SteeringPlan(SteeringDirection.SUPPRESS, (), vectors=(AddVector(SITE, (1.0,)),))
    text = activation({"1/res/3": 2.0}).to_json()
    with pytest.raises(BadFile, match="is no vector of a site"):
        SteeringPlan.from_json(text.replace('"dropped"', '"vectors": [{"site": "1/res"}], "dropped"'))
    model = tiny_model("llama")
    with pytest.raises(WidthMismatch, match="2 values, and the stream is"):
        row_changes([SteeringPlan(SteeringDirection.ACTIVATE, (), vectors=(AddVector(SITE, (1.0, 2.0)),))], None, model)


def test_in_shares_every_method_changes_as_much():
    world = inputs()
    plans = ThemePlans.of(world, theme(examples=ON), Variant(parts=(Part.RES,), in_shares=True))
    layer = plans.layers[-1]
    settings = [
        Setting("start", -1, "constant", 0.3),
        Setting("single", layer, "constant", 0.3),
        Setting("linear", layer, "linear", 0.3),
        Setting("exponential", layer, "exponential", 0.3),
        Setting("difference", layer, "constant", 0.3),
        Setting("probe", layer, "constant", 0.3),
    ]
    for setting in settings:
        plan = plans.plan(SteeringDirection.ACTIVATE, setting)
        change = plan_change(plan, world.dictionaries, world.model)
        assert shares(change, plans._norms).total == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("setting", [Setting("single", 1, "constant", 0.3), Setting("difference", 1, "constant", 0.3)])
def test_generated_tokens_alone_leave_the_prompt_as_it_is(setting):
    world = inputs()
    task = theme().activate
    variant = Variant(parts=(Part.RES,), in_shares=True, generated_only=True)
    plan = ThemePlans.of(world, theme(examples=ON), variant).plan(SteeringDirection.ACTIVATE, setting)
    n = world.model.tokenize([task.prompt]).input_ids.shape[1]
    ids = world.model.tokenize([f"{task.prompt} carry source"])
    before = world.model.capture(ids, [SITE])[SITE]
    with world.model.intervening(plan, world.dictionaries):
        moved = (world.model.capture(ids, [SITE])[SITE] - before).norm(dim=-1)[0]
    assert (moved[:n] == 0).all()
    assert (moved[n:] > 0).all()


def test_a_sweep_adds_where_features_are_active_keeps_lengths_or_adds_what_is_new(monkeypatch):
    world = inputs()

    def plan_by(method, **ways):
        variant = Variant(parts=(Part.RES,), in_shares=True, **ways)
        plans = ThemePlans.of(world, theme(examples=ON), variant)
        return plans.plan(SteeringDirection.ACTIVATE, Setting(method, plans.layers[-1], "constant", 0.3)), plans

    plain, _ = plan_by("constant")
    assert plan_by("constant", only_active=True)[0].only_active
    assert plan_by("difference", keep_norm=True)[0].keep_norm
    new, plans = plan_by("constant", orthogonal=True)
    assert new.steps == ()
    assert new.sites == plain.sites[:1]  # its rows are the same at every layer
    change = plan_change(new, world.dictionaries, world.model)
    assert shares(change, plans._norms).total == pytest.approx(0.3, rel=1e-5)
    # the vocabulary of this model is smaller than what an output score looks at
    layers = (1.0, 0.5, 0.0)
    given = lambda _model, _dictionaries, features, **_: {f: layers[f.layer] for f in features}  # noqa: E731
    monkeypatch.setattr("saeflow.steering.sweep.plans.output_scores", given)
    divided, by_score = plan_by("constant", by_output_score=True)
    [first, second, last] = [step.value / own.value for step, own in zip(divided.steps, plain.steps, strict=True)]
    assert second == pytest.approx(first / 2)
    assert 0 < last < first / 1000
    change = plan_change(divided, world.dictionaries, world.model)
    assert shares(change, by_score._norms).total == pytest.approx(0.3, rel=1e-5)
    off = plans.plan(SteeringDirection.SUPPRESS, Setting("cumulative", plans.layers[-1], "constant", 0.0))
    assert off.steps
    with pytest.raises(InvalidArgument, match="never active"):
        Variant(only_active=True, orthogonal=True)
    with pytest.raises(InvalidArgument, match="without random"):
        Design((theme(),), (SteeringDirection.ACTIVATE,), Grid(**GRID), Variant(orthogonal=True))


def test_methods_without_features_are_named_to_be_tried_and_counted_in_shares():
    assert not Grid().wants("probe")
    assert Grid().wants("cumulative")
    grid = Grid(methods=("single", "difference"), **GRID)
    assert grid.of_method(SteeringDirection.ACTIVATE, "difference", (0, 1)) != ()
    assert grid.of_method(SteeringDirection.SUPPRESS, "difference", (0, 1)) == ()
    with pytest.raises(InvalidArgument, match="--in-shares"):
        Design((theme(),), (SteeringDirection.ACTIVATE,), grid, Variant())
