"""A plan from options: each option does what it says, and what is needed and missing is named."""

from __future__ import annotations

import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.flow import Thresholds
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import FeatureWords
from saeflow.matching.atlas import open_atlas
from saeflow.matching.build import build_atlas
from saeflow.sources.activations import ReLU
from saeflow.sources.library import load_dictionaries
from saeflow.steering.build import PlanRequest, build_plan, plan_of
from saeflow.steering.growth import Chosen, Reach, grow, pick, targets
from saeflow.steering.output_score import output_scores
from saeflow.steering.plan import Dropped, SteeringDirection
from saeflow.steering.schedule import Constant, Exponential, Linear
from saeflow.steering.sizes import centred_norms, fold_scales, norm_sites, plan_change, shares, typical_activations

from ..sources.tiny_models import N_LAYERS, TEXTS, tiny_model
from .dictionaries import random_dictionary

SITES = [Site(layer, part) for layer in range(N_LAYERS) for part in Part]
DICTIONARIES = {site: random_dictionary(site, n_features=40) for site in SITES}
MODEL = tiny_model("llama")
START = FeatureId.parse("1/res/3")
CUT = Thresholds(res=0.3, module=0.35)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    return build_atlas(DICTIONARIES, out=tmp_path_factory.mktemp("atlas"), k=5, release="tiny", model="tiny-model")


def ask(**more):
    whole = {"parts": tuple(Part), "schedule": Exponential(1.5)}
    return PlanRequest(**{"release": "tiny", "starts": (START,), "thresholds": CUT, "k": 2, **whole, **more})


def graph_targets(atlas, parts=tuple(Part)):
    return targets(grow([START], atlas, thresholds=CUT, k=2), parts=parts)


@pytest.fixture(scope="module")
def found(atlas):
    found = graph_targets(atlas)
    assert len(found) > 6
    assert len({t.feature.layer for t in found}) == N_LAYERS
    return found


def test_without_weights_or_model_a_plan_is_that_of_the_graphs(atlas, found):
    asked = ask(fold=False, schedule=Constant(2.0))
    made = build_plan(asked, atlas=atlas)
    assert made.steps == plan_of(Chosen(found), asked).steps
    assert (made.release, made.model) == ("tiny", "tiny-model")
    assert made.made_by["starts"] == [str(START)]
    assert made.made_by["t_res"] == 0.3
    assert "shares" not in made.made_by


def test_folding_multiplies_by_scales(atlas, found):
    asked = ask(schedule=Linear(8.0, 1.0))
    made = build_plan(asked, atlas=atlas, dictionaries=DICTIONARIES)
    scales = fold_scales(DICTIONARIES, [t.feature for t in found])
    assert made.steps == plan_of(Chosen(found), asked, scales=scales).steps
    assert made.made_by["folded"] is True


def test_features_without_a_threshold_are_folded_by_what_is_measured(atlas, found):
    plain = {site: random_dictionary(site, n_features=40, activation=ReLU()) for site in SITES}
    made = build_plan(ask(schedule=Constant(1.0)), atlas=atlas, dictionaries=plain, model=MODEL, texts=TEXTS)
    features = [t.feature for t in found]
    activity = typical_activations(MODEL, plain, features, TEXTS)
    scales = fold_scales(plain, activity, activity=activity)
    assert {step.feature: step.value for step in made.steps} == scales
    silent = set(features) - set(activity)
    assert silent
    assert {gone.feature for gone in made.dropped} == silent
    assert all("silent on the 3 texts" in gone.why for gone in made.dropped)
    with pytest.raises(InvalidArgument, match="cannot be folded"):
        build_plan(ask(), atlas=atlas, dictionaries=plain)


def test_what_the_graphs_alone_say_needs_nothing_else(atlas, found):
    full = ask(min_output_score=0.5, budget_layer=0.1, budget_total=0.1)
    assert full.needs_model
    made = build_plan(full.from_graphs_alone(), atlas=atlas)
    assert made.features == tuple(t.feature for t in found)


def test_a_plan_names_the_model_that_runs_it(atlas):
    assert build_plan(ask(fold=False), atlas=atlas).model == "tiny-model"
    assert (open_atlas("demo").model, load_dictionaries("demo").model) == ("demo", "demo")


def test_only_what_is_in_reach_is_folded_with_the_coefficients_of_the_whole(atlas, found):
    opened = set()

    class Watched(dict):
        def __getitem__(self, site):
            opened.add(site.layer)
            return super().__getitem__(site)

    watched = Watched(DICTIONARIES)
    asked = {"schedule": Linear(8.0, 1.0)}
    whole = build_plan(ask(**asked), atlas=atlas, dictionaries=DICTIONARIES)
    one = build_plan(ask(**asked, reach=Reach.SINGLE, upto=1), atlas=atlas, dictionaries=watched)
    assert one.steps == tuple(step for step in whole.steps if step.feature.layer == 1)
    assert opened <= {0, 1}, "the check of types under pytest looks at the first item, at layer 0"
    assert 1 in opened


def test_suppression_gives_each_feature_r_and_needs_no_weights(atlas, found):
    asked = ask(direction=SteeringDirection.SUPPRESS, r=-1.0, reach=Reach.CUMULATIVE, upto=1)
    made = build_plan(asked, atlas=atlas)
    assert made.steps == plan_of(Chosen(found), asked).steps
    assert not asked.needs_dictionaries


def test_parts_drops_and_scores_leave_features_out(atlas, found):
    residual = graph_targets(atlas, [Part.RES])
    assert 1 < len(residual) < len(found)
    victim = next(t.feature for t in residual if not t.start)
    scores = sorted(t.score for t in residual if t.score is not None)
    asked = ask(fold=False, parts=(Part.RES,), drop={victim: "about sports"}, min_score=scores[1])
    made = build_plan(asked, atlas=atlas)
    kept, dropped = pick(residual, drop={victim: "about sports"}, min_score=scores[1])
    assert made.features == tuple(t.feature for t in kept)
    assert made.dropped == dropped
    assert Dropped(victim, "about sports") in dropped
    only = build_plan(ask(fold=False, keep=(victim,)), atlas=atlas)
    assert only.features == (victim,)


@pytest.mark.parametrize("word", ["drop", "keep"])
def test_dropping_what_is_not_there_is_most_likely_a_slip(atlas, word):
    named = FeatureId.parse("0/res/39")
    value = {named: ""} if word == "drop" else (named,)
    with pytest.raises(InvalidArgument, match=f"no 0/res/39 to {word} among the"):
        build_plan(ask(fold=False, **{word: value}), atlas=atlas)


def test_features_that_do_not_drive_the_output_are_left_out(atlas, found):
    scores = output_scores(MODEL, DICTIONARIES, [t.feature for t in found])
    least = sorted(scores.values())[len(scores) // 2]
    made = build_plan(
        ask(fold=False, min_output_score=least, shares=False), atlas=atlas, dictionaries=DICTIONARIES, model=MODEL
    )
    assert made.features == tuple(f for f, score in scores.items() if score >= least)
    assert {d.feature for d in made.dropped} == {f for f, score in scores.items() if score < least}
    assert all(d.why.startswith("output score") for d in made.dropped)


@pytest.mark.parametrize("direction", SteeringDirection)
def test_a_budget_holds_and_shares_are_those_after_it(atlas, direction):
    loose = ask(direction=direction, schedule=Constant(5.0), r=-3.0)
    tight = ask(direction=direction, schedule=Constant(5.0), r=-3.0, budget_layer=0.08, budget_total=0.1)
    given = {"atlas": atlas, "dictionaries": DICTIONARIES, "model": MODEL, "texts": TEXTS}
    before, after = build_plan(loose, **given), build_plan(tight, **given)
    norms = centred_norms(MODEL, norm_sites(after), TEXTS)
    measured = shares(plan_change(after, DICTIONARIES, MODEL, texts=TEXTS, steered=True), norms)
    assert before.made_by["shares"]["total"] > 0.1
    assert measured.per_layer <= 0.08
    assert measured.total <= 0.1
    told = after.made_by["shares"]
    assert told["texts"] == len(TEXTS)
    assert told["total"] == pytest.approx(measured.total)
    assert told["per_layer"] == pytest.approx({str(n): share for n, share in measured.at_layer.items()})
    assert after.made_by["budget"]["before"]["total"] == pytest.approx(before.made_by["shares"]["total"])
    assert after.features == before.features


def test_shares_can_be_left_out(atlas):
    given = {"atlas": atlas, "dictionaries": DICTIONARIES, "model": MODEL, "texts": TEXTS}
    assert "shares" in build_plan(ask(), **given).made_by
    assert "shares" not in build_plan(ask(shares=False), **given).made_by


def test_labels_come_with_the_features(atlas):
    class Known:
        def get(self, feature):
            return FeatureWords(f"words of {feature}") if feature.layer == 1 else None

        def site(self, site):
            return []

    made = build_plan(ask(fold=False), atlas=atlas, words=Known())
    assert {s.label for s in made.steps} == {""} | {f"words of {f}" for f in made.features if f.layer == 1}


THEME = """
subject = "tides and moons"
starts = ["1/res/3"]
examples = ["w5 w9 w12 w7", "w30 w41 w8"]
[activate]
prompt = "w5"
"""


def test_a_theme_gives_its_starts_and_its_texts(atlas, tmp_path):
    path = tmp_path / "tides.toml"
    path.write_text(THEME)
    given = {"atlas": atlas, "dictionaries": DICTIONARIES, "model": MODEL}
    made = build_plan(ask(starts=(), theme=str(path)), **given)
    assert made.theme == "tides"
    named = build_plan(ask(), **given, texts=["w5 w9 w12 w7", "w30 w41 w8"])
    assert made.steps == named.steps
    assert made.made_by["shares"] == named.made_by["shares"]
    other = build_plan(ask(starts=(FeatureId.parse("0/res/1"),), theme=str(path), fold=False), atlas=atlas)
    assert other.made_by["starts"] == ["0/res/1"]


@pytest.mark.parametrize(
    ("more", "given", "said"),
    [
        ({}, (), "folding needs the weights"),
        ({"fold": False, "budget_layer": 0.1}, (), "a budget needs the weights"),
        ({"fold": False, "budget_total": 0.1}, ("dictionaries",), r"a budget needs the model.*--model"),
        ({"fold": False, "budget_total": 0.1}, ("dictionaries", "model"), r"measured on texts.*--texts"),
        ({"fold": False, "min_output_score": 0.1}, (), "output scores needs the weights"),
        ({"fold": False, "min_output_score": 0.1}, ("dictionaries",), "output scores needs the model"),
    ],
)
def test_what_is_needed_and_missing_is_named(atlas, more, given, said):
    there = {"dictionaries": DICTIONARIES, "model": MODEL}
    asked = ask(**more)
    assert asked.needs_dictionaries
    assert asked.needs_model == bool(more)
    with pytest.raises(InvalidArgument, match=said):
        build_plan(asked, atlas=atlas, **{name: there[name] for name in given})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"starts": ()}, "needs features to start from"),
        ({"parts": ()}, "no part is left"),
        ({"r": float("nan")}, "r = nan is not finite"),
        ({"budget_layer": 0.0}, "budget_layer = 0.0 is no share"),
        ({"budget_total": float("nan")}, "budget_total = nan is no share"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_at_once(more, said):
    with pytest.raises(InvalidArgument, match=said):
        ask(**more)


def test_a_plan_that_was_built_steers_as_it_says(atlas):
    made = build_plan(
        ask(schedule=Constant(4.0), reach=Reach.SINGLE, upto=N_LAYERS - 1, parts=(Part.RES,)),
        atlas=atlas,
        dictionaries=DICTIONARIES,
    )
    site = Site(N_LAYERS - 1, Part.RES)
    tokens = MODEL.tokenize(TEXTS[:1])
    plain = MODEL.capture(tokens, [site])[site]
    with MODEL.intervening(made, DICTIONARIES):
        moved = MODEL.capture(tokens, [site])[site] - plain
    rows = DICTIONARIES[site].directions()
    expected = sum(step.value * rows[step.feature.index] for step in made.steps)
    torch.testing.assert_close(moved, expected.expand_as(moved), atol=1e-4, rtol=1e-4)
