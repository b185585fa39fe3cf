"""The loaded model: the demo model reads texts and writes with and without a plan, as the library does."""

import json

import pytest
import torch

from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.experiments.one_text import deactivate
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels import Context, FeatureWords, no_words
from saeflow.matching.atlas import open_atlas
from saeflow.steering.build import PlanRequest, build_plan
from saeflow.steering.generate import Request, Sampling, generate
from saeflow.steering.plan import SteeringDirection, SteeringPlan, Step
from saeflow.steering.schedule import Constant
from saeflow.steering.theme import load_theme, themes
from saeflow.web import model_worker
from saeflow.web.model_thread import ModelThread
from saeflow.web.model_worker import LoadedModel
from saeflow.web.requests import DeactivateBody, SteerBody, TextBody, TraceBody
from saeflow.web.streams import Left

from .serving import serving

STARTS = (FeatureId.parse("3/res/541"), FeatureId.parse("2/res/412"))


@pytest.fixture(scope="module")
def loaded():
    return LoadedModel.load("demo", "demo", "cpu")


@pytest.fixture(scope="module")
def plan():
    return SteeringPlan(SteeringDirection.ACTIVATE, tuple(Step(start, 6.0) for start in STARTS), release="demo")


def asked(**more):
    return SteerBody(**{"plan": {}, "prompt": "I think", "samples": 2, "new_tokens": 8, "seed": 3} | more)


def steered(loaded, plan, theme=None, **more):
    told = []
    loaded.steer(asked(**more), plan, theme, themes("demo"), told.append)
    json.dumps(told, allow_nan=False)
    return told


def test_what_is_left_without_predecessors_is_what_the_library_says(loaded):
    text, atlas = '"Hello," said Tom.', open_atlas("demo")
    expected = deactivate(loaded.model, loaded.dictionaries, text, "4/res/72", atlas=atlas).to_dict("records")
    body = DeactivateBody(text=text, token=expected[0]["position"], feature="4/res/72")
    found = loaded.deactivate(body, atlas)
    assert 0 < found.before == pytest.approx(expected[0]["before"])
    same_token = [row for row in expected if row["position"] == body.token]
    assert [one.removed for one in found.removals] == [row["removed"] for row in same_token]
    assert [one.change for one in found.removals] == pytest.approx([row["change"] for row in same_token], abs=1e-4)
    assert any(one.change > 0.5 for one in found.removals)
    assert all((one.control_change is None) == (not one.control) for one in found.removals)
    with pytest.raises(InvalidArgument, match="does not fire"):
        loaded.deactivate(body.model_copy(update={"token": 0}), atlas)


def test_both_sides_are_those_of_the_library_in_one_batch(loaded, plan):
    told = steered(loaded, plan)
    requests = [Request("I think", seed, which) for seed in (3, 4) for which in (plan, None)]
    expected = generate(loaded.model, loaded.dictionaries, requests, Sampling(8, 0.8, 0.9))
    samples = [line for line in told if line["type"] == "sample"]
    assert [(s["sample"], s["side"], s["seed"]) for s in samples] == [
        (0, "steered", 3),
        (0, "plain", 3),
        (1, "steered", 4),
        (1, "plain", 4),
    ]
    assert [s["text"] for s in samples] == [one.text for one in expected]
    assert [s["share_total"] for s in samples] == pytest.approx([one.share_total for one in expected])
    assert samples[0]["share_total"] > 0 == samples[1]["share_total"]
    assert told[-1]["type"] == "done"


def test_pieces_joined_are_the_text(loaded, plan):
    told = steered(loaded, plan, new_tokens=12)
    for sample in (line for line in told if line["type"] == "sample"):
        text = ""
        for line in told:
            if line["type"] == "token" and (line["sample"], line["side"]) == (sample["sample"], sample["side"]):
                text = line["text"] if line.get("replace") else text + line["text"]
        assert text == sample["text"].rstrip("\ufffd")


def test_writing_stops_at_the_token_at_which_nobody_listens_and_leaves_no_hook(loaded, plan):
    tokens = loaded.model.tokenize(["I think"])
    before = loaded.model.capture(tokens, [Site(5, Part.RES)], logits=True).logits
    heard = []

    def put(line):
        heard.append(line)
        if len(heard) == 6:
            raise Left

    with pytest.raises(Left):
        loaded.steer(asked(new_tokens=200), plan, None, (), put)
    assert len(heard) == 6
    after = loaded.model.capture(tokens, [Site(5, Part.RES)], logits=True).logits
    assert torch.equal(before, after)


def test_scores_follow_where_the_theme_is_known(loaded, plan):
    pytest.importorskip("sklearn")
    told = steered(loaded, plan, load_theme("physics", "demo"), new_tokens=16)
    scores = [line for line in told if line["type"] == "scores"]
    assert [(s["sample"], s["side"]) for s in scores] == [(0, "steered"), (0, "plain"), (1, "steered"), (1, "plain")]
    for s in scores:
        assert 0 <= s["behavior"] <= 5
        assert 0 <= s["coherence"] <= 5
        assert s["final"] == pytest.approx(s["behavior"] * s["coherence"] / 25)
    again = steered(loaded, plan, load_theme("physics", "demo"), new_tokens=16)
    assert [line for line in again if line["type"] == "scores"] == scores
    assert not [line for line in again if line["type"] == "progress"]


def test_a_theme_without_examples_gives_a_note_and_no_scores(loaded, plan):
    from dataclasses import replace

    pytest.importorskip("sklearn")
    told = steered(loaded, plan, replace(load_theme("physics", "demo"), examples=()))
    assert [line["type"] for line in told[-2:]] == ["note", "done"]
    assert "No scores" in told[-2]["text"]


def test_a_graph_is_traced_once_and_a_full_cache_drops_only_the_first(loaded, monkeypatch):
    traced, atlas = [], open_atlas("demo")
    worker, trace = LoadedModel(loaded.model, loaded.dictionaries), model_worker.trace_text
    monkeypatch.setattr(model_worker, "trace_text", lambda *a, **how: traced.append(how["token"]) or trace(*a, **how))
    monkeypatch.setattr(model_worker, "MOST_GRAPHS", 2)
    for token in (1, 2, 3, 3, 2, 1, 3):
        worker.trace(TraceBody(text="The force on a body", token=token, effect=0.5), atlas)
    assert traced == [1, 2, 3, 1]


def test_fidelity_is_measured_once_for_the_same_nodes(loaded, monkeypatch):
    counted, atlas = [], open_atlas("demo")
    worker, measure = LoadedModel(loaded.model, loaded.dictionaries), model_worker.measure_fidelity
    monkeypatch.setattr(
        model_worker, "measure_fidelity", lambda graph, *a, **how: counted.append(graph) or measure(graph, *a, **how)
    )
    body = TraceBody(text="The force on a body", token=4)
    first = worker.trace(body, atlas)
    grouped = {"some": [first.nodes["node"].iloc[0]]}
    again = [worker.trace(body.model_copy(update=one), atlas) for one in ({}, {"cosine": -0.5}, {"groups": grouped})]
    assert [one.fidelity for one in again] == [first.fidelity] * 3
    assert again[-1].supernodes
    assert len(counted) == 1
    fewer = worker.trace(body.model_copy(update={"cosine": 0.2}), atlas)
    assert len(counted) == 2
    assert fewer.fidelity == measure(fewer, loaded.model, loaded.dictionaries, random_graphs=model_worker.RANDOM_GRAPHS)
    assert fewer.fidelity != first.fidelity


class EveryOther:
    """Words of features with even numbers: the strongest activation of 2, 4, … is that number."""

    def get(self, feature):
        peak = float(feature.index)
        known = FeatureWords(f"label of {feature}", contexts=(Context(("a", "b"), (0.0, peak)),))
        return None if feature.index % 2 or not feature.index else known

    def site(self, site):
        raise NotImplementedError


def test_a_text_shows_what_fires_each_beside_its_own_strongest(loaded):
    site = Site(4, Part.RES)
    told = loaded.text(TextBody(text="The force on a body", top=5), [site], EveryOther())
    tokens = loaded.model.tokenize(["The force on a body"])
    assert [token.id for token in told.tokens] == tokens.input_ids[0].tolist()
    active = loaded.dictionaries[site].encode(loaded.model.capture(tokens, [site])[site])[0]
    assert len(told.active["4/res"]) == len(active)
    for row, values in zip(told.active["4/res"], active.tolist(), strict=True):
        scaled = {i: v / i for i, v in enumerate(values) if v > 0 and i and i % 2 == 0}
        plain = {i: v for i, v in enumerate(values) if v > 0 and i not in scaled}
        expected = [*sorted(scaled, key=scaled.get, reverse=True), *sorted(plain, key=plain.get, reverse=True)][:5]
        assert [one.index for one in row] == expected
        assert [one.value for one in row] == pytest.approx([values[i] for i in expected], rel=1e-5)
        shares = [one.share for one in row]
        assert shares == [None if i in plain else pytest.approx(scaled[i], rel=1e-5) for i in expected]
        assert [one.label for one in row] == [f"label of 4/res/{i}" if i in scaled else "" for i in expected]


def test_a_text_at_a_site_that_is_not_there_is_refused(loaded):
    with pytest.raises(UnknownSite):
        loaded.text(TextBody(text="x"), [Site(9, Part.RES)], no_words)


def test_a_plan_is_folded_and_held_within_its_budget_by_the_model(own_cache, loaded):
    with serving() as served, served.client() as client:
        served.explorer.model = ModelThread(lambda: loaded)
        body = {"features": [str(start) for start in STARTS], "schedule": {"kind": "constant", "s": 2.0}}
        told = client.post("/api/plan", json=body).json()
        request = PlanRequest("demo", starts=STARTS, keep=STARTS, schedule=Constant(2.0), shares=False)
        expected = build_plan(request, atlas=open_atlas("demo"), dictionaries=loaded.dictionaries, model=loaded.model)
        assert [row["value"] for row in told["table"]] == pytest.approx([step.value for step in expected.steps])
        assert told["folded"] is True
        held = client.post("/api/plan", json=body | {"budget_total": 0.05}).json()
        assert any("to hold the budget" in note for note in held["notes"])
        assert held["plan"]["made_by"]["shares"]["total"] == pytest.approx(0.05, rel=0.05)
        ratios = {h["value"] / t["value"] for h, t in zip(held["table"], told["table"], strict=True)}
        assert max(ratios) == pytest.approx(min(ratios)) and max(ratios) < 1  # noqa: PT018
        with client.stream(
            "POST", "/api/steer", json={"plan": told["plan"], "prompt": "I think", "new_tokens": 3}
        ) as answer:
            kinds = [json.loads(line)["type"] for line in answer.iter_lines()]
        assert kinds[0] == "state"
        assert kinds[-3:] == ["sample", "sample", "done"]
