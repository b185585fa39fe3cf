"""ShareMeter: what plans change, as shares of the stream, by row and layer and in all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from saeflow.ids import Part, Site
from saeflow.sources.architectures import Point
from saeflow.sources.tokens import Tokens
from saeflow.steering.row_plans import ShareMeter, row_changes

from ..experiments.causal.worlds import KINDS, dictionaries_on
from ..sources.tiny_models import N_LAYERS, TEXTS, tiny_model
from .steered import EVERY_SITE, FAMILIES, PLANS, activation, dictionaries, endless, rows_of, suppression

families = pytest.mark.parametrize("model_type", FAMILIES)


def measured(model, plans, tokens, made, skip=1):
    meter = ShareMeter(skip=skip)
    with model.intervening(row_changes(plans, made, model, meter=meter)):
        model.capture(tokens, [], logits=True)
    return meter


def _stream(model, made, plan, tokens):
    """|what the plan adds at a layer| / |h|, and for all layers, by hand: sites before and after their own edits."""
    residual = [Site(layer, Part.RES) for layer in range(N_LAYERS)]
    seen, points = {}, [Point.at(site) for site in EVERY_SITE]

    def note(key):
        def fn(h):
            seen[key] = h.clone().double()
            return h

        return fn

    with ExitStack() as stack:
        stack.enter_context(model.intervening({point: note((point, "in")) for point in points}))
        stack.enter_context(model.intervening(plan, made))
        stack.enter_context(model.intervening({point: note((point, "out")) for point in points}))
        model.capture(tokens, [], logits=True)
    shares, carried = {}, 0
    for site in residual:
        parts = [Point.at(Site(site.layer, part)) for part in Part]
        change = sum(seen[point, "out"] - seen[point, "in"] for point in parts)
        carried = carried + change
        size = seen[Point.at(site), "in"].norm(dim=-1)
        shares[site.layer] = (
            (change.norm(dim=-1) / size)[:, 1:].mean().item(),
            (carried.norm(dim=-1) / size)[:, 1:].mean().item(),
        )
    return shares


@families
def test_effort_is_the_change_over_the_stream_by_row_layer_and_in_all(model_type):
    model, made = tiny_model(model_type), dictionaries()
    tokens = rows_of(model.tokenize(TEXTS), len(PLANS))
    meter = measured(model, PLANS, tokens, made)
    by_layer, total = meter.by_layer(), meter.total(len(PLANS))
    for row, plan in enumerate(PLANS):
        if plan is None:
            assert total[row] == meter.largest(len(PLANS))[row] == 0
            continue
        expected = _stream(model, made, plan, rows_of(tokens, 1))
        for layer in range(N_LAYERS):
            assert by_layer[layer][row] == pytest.approx(expected[layer][0], rel=1e-3, abs=1e-5)
        assert total[row] == pytest.approx(expected[plan.layers[-1]][1], rel=1e-3)
        assert meter.largest(len(PLANS))[row] == pytest.approx(max(s for s, _ in expected.values()), rel=1e-3)
    one = measured(model, [PLANS[0]], rows_of(tokens, 3), made)
    assert one.total(3) == pytest.approx([total[0]] * 3, rel=1e-3)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_effort_of_a_change_of_z_is_what_attention_then_writes(model_type):
    model = tiny_model(model_type)
    tokens = rows_of(model.tokenize(TEXTS), 1)
    made = dictionaries_on(model, tokens, KINDS["z"])
    plan = suppression({f"1/att/{i}": -1.0 for i in range(12)})
    meter = measured(model, [plan], tokens, made)
    expected = {}
    site, stream = Site(1, Part.ATT), Site(1, Part.RES)
    plain = model.capture(tokens, [site])
    with model.intervening(plan, made):
        after = model.capture(tokens, [site, stream])
    change = (after[site] - plain[site]).norm(dim=-1)
    expected = (change / after[stream].norm(dim=-1))[:, 1:].mean().item()
    assert meter.by_layer() == {1: [pytest.approx(expected, rel=1e-3)]}
    assert meter.total(1) == [pytest.approx(expected, rel=1e-3)]


def test_effort_counts_live_rows_and_decoded_tokens_alike():
    model, made = endless("llama"), dictionaries()
    ids = model.tokenize([TEXTS[0]]).input_ids
    plan = activation({"0/res/1": 1.0, "2/res/1": 1.0})
    meter = ShareMeter(skip=1)
    with model.intervening(row_changes([plan], made, model, meter=meter)):
        out = model.hf_model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    whole = measured(model, [plan], Tokens(out[:, :-1], torch.ones_like(out[:, :-1])), made)
    assert meter.total(1) == pytest.approx(whole.total(1), rel=1e-4)
    dead = ShareMeter()
    dead.live = torch.tensor([True, False])
    with model.intervening(row_changes([plan], made, model, meter=dead)):
        model.capture(rows_of(model.tokenize(TEXTS), 2), [], logits=True)
    assert dead.total(2)[0] > 0
    assert dead.total(2)[1] == 0
