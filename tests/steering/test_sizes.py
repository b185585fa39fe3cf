"""Lengths are those of what a plan really adds; a budget is never exceeded, and never strengthens a plan."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeflow.errors import InvalidArgument, UnknownSite, WidthMismatch
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import AddVector
from saeflow.sources.activations import ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Norm, Preprocessing
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sizes import (
    Budget,
    PlanChange,
    centred_norms,
    fit_budget,
    norm_sites,
    orthogonal,
    plan_change,
    shares,
    within,
)

from ..sources.tiny_models import N_LAYERS, TEXTS, tiny_model
from .dictionaries import random_dictionaries, random_dictionary
from .plans import plan_of

EVERY_SITE = [Site(layer, part) for layer in range(N_LAYERS) for part in Part]
RES = [Site(layer, Part.RES) for layer in range(N_LAYERS)]
DICTIONARIES = random_dictionaries(*EVERY_SITE)
MODEL = tiny_model("llama")


def real_tokens(model, texts):
    """(tokens of one text, which of them are no special ones), text by text."""
    special = torch.tensor(model.tokenizer.all_special_ids)
    for text in texts:
        tokens = model.tokenize([text])
        yield tokens, ~torch.isin(tokens.input_ids[0], special)


def mean_change(model, plan, dictionaries, site, texts=TEXTS):
    """The mean length by which a plan really moves a site."""
    lengths = []
    for tokens, real in real_tokens(model, texts):
        plain = model.capture(tokens, [site])[site][0, real]
        with model.intervening(plan, dictionaries):
            lengths.append((model.capture(tokens, [site])[site][0, real] - plain).norm(dim=-1))
    return torch.cat(lengths).mean().item()


def unit(name):
    feature = FeatureId.parse(name)
    row = DICTIONARIES[feature.site].W_dec[feature.index].double()
    return row / row.norm()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_centred_norm_is_the_spread_of_real_tokens(family):
    model = tiny_model(family)
    sites = [Site(1, Part.RES), Site(2, Part.MLP)]
    found = centred_norms(model, sites, TEXTS * 3)
    for site in sites:
        states = [model.capture(tokens, [site])[site][0, real] for tokens, real in real_tokens(model, TEXTS)]
        h = torch.cat(states).double()
        assert found[site] == pytest.approx((h - h.mean(0)).norm(dim=-1).square().mean().sqrt().item(), rel=1e-4)


def test_what_all_tokens_share_and_massive_positions_do_not_widen_a_budget():
    site, model = Site(1, Part.RES), tiny_model("llama")
    shared, plain = torch.full((model.d_model,), 50.0), centred_norms(model, [site], TEXTS)[site]

    def shift(h):
        return h + shared.to(h)

    def one_is_massive(h):
        return torch.cat([h[:, :2], h[:, 2:3] * 5_000, h[:, 3:]], dim=1)

    with model.intervening({site: shift}):
        assert model.capture(model.tokenize(TEXTS[:1]), [site])[site].norm(dim=-1).min() > 5 * plain
        assert centred_norms(model, [site], TEXTS)[site] == pytest.approx(plain, rel=1e-3)
    with model.intervening({site: one_is_massive}):
        assert centred_norms(model, [site], TEXTS)[site] == pytest.approx(plain, rel=0.2)


def test_the_centred_norm_needs_two_tokens():
    for texts in ((), ("<bos>",)):
        with pytest.raises(InvalidArgument, match="hold 0 tokens that are not special"):
            centred_norms(MODEL, RES, texts)


def test_what_is_added_at_one_layer_is_what_moves_it():
    plan = plan_of("activate", {"1/mlp/2": 3.0, "1/res/0": -2.0, "1/res/7": 1.5})
    change = plan_change(plan, DICTIONARIES)
    together = 3 * unit("1/mlp/2") - 2 * unit("1/res/0") + 1.5 * unit("1/res/7")
    assert change.at_site[Site(1, Part.MLP)] == pytest.approx(3.0)
    assert change.at_layer == pytest.approx({1: together.norm().item()})
    assert change.at_layer[1] == pytest.approx(mean_change(MODEL, plan, DICTIONARIES, Site(1, Part.RES)), rel=1e-4)
    assert change.upto == change.at_layer


def test_rows_of_all_layers_add_up_as_vectors():
    plan = plan_of("activate", {"0/att/1": 2.0, "1/mlp/2": 3.0, "2/res/4": -4.0})
    change = plan_change(plan, DICTIONARIES)
    first, second, third = 2 * unit("0/att/1"), 3 * unit("1/mlp/2"), -4 * unit("2/res/4")
    assert change.at_layer == pytest.approx({0: 2.0, 1: 3.0, 2: 4.0})
    assert change.upto == pytest.approx(
        {0: 2.0, 1: (first + second).norm().item(), 2: (first + second + third).norm().item()}
    )
    assert list(change.at_site.values()) == pytest.approx([2.0, 3.0, 4.0])
    assert tuple(change.at_site) == plan.sites
    assert norm_sites(plan) == tuple(RES)


def test_what_earlier_layers_add_is_taken_out_of_later_ones():
    v, w = (unit(name).double() for name in ("0/res/1", "1/res/3"))
    both = AddVector(Site(2, Part.RES), tuple((3 * v - 2 * w).tolist()))  # of which nothing is new
    plan = plan_of("activate", {"0/res/1": 2.0, "1/res/3": 1.0}, vectors=(both,))
    new = orthogonal(plan, DICTIONARIES)
    first, second = (torch.tensor(one.vector, dtype=torch.float64) for one in new.vectors)
    torch.testing.assert_close(first, 2 * v, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(second, w - (w @ v) * v, atol=1e-6, rtol=1e-6)
    assert new.steps == ()
    for wrong in (plan_of("suppress", {"0/res/1": 0.0}), plan_of("activate", {"0/res/1": 1.0}, only_active=True)):
        with pytest.raises(InvalidArgument, match="at every token"):
            orthogonal(wrong, DICTIONARIES)


def test_one_row_at_every_layer_counts_every_time_and_its_opposite_takes_it_back():
    row = torch.randn(1, MODEL.d_model, generator=torch.Generator().manual_seed(0))
    same = {}
    for site in RES:
        made = random_dictionary(site)
        made.W_dec[:1] = row * (1 + site.layer)
        same[site] = made
    norms = dict.fromkeys(RES, 10.0)
    often = shares(plan_change(plan_of("activate", {f"{site}/0": 1.0 for site in RES}), same), norms)
    assert often.per_layer == pytest.approx(0.1)
    assert often.total == pytest.approx(0.1 * N_LAYERS)
    back = shares(plan_change(plan_of("activate", {"0/res/0": 1.0, "2/res/0": -1.0}), same), norms)
    assert back.per_layer == pytest.approx(0.1)
    assert back.total == pytest.approx(0.0, abs=1e-6)
    assert back.upto == pytest.approx({0: 0.1, 2: 0.0}, abs=1e-6)


@pytest.mark.parametrize("part", [Part.MLP, Part.RES])
@pytest.mark.parametrize("preprocessing", [None, Preprocessing(norm=Norm.RESCALE), Preprocessing(center=True)])
def test_what_a_suppression_changes_is_what_moves_the_stream(part, preprocessing):
    site = Site(1, part)
    dictionaries = {site: random_dictionary(site, preprocessing=preprocessing)}
    plan = plan_of("suppress", {f"{site}/1": 0.0, f"{site}/2": -1.0, f"{site}/6": 0.5})
    change = plan_change(plan, dictionaries, MODEL, texts=TEXTS)
    moved = mean_change(MODEL, plan, dictionaries, Site(1, Part.RES))
    assert moved > 0.1
    assert change.at_layer[1] == pytest.approx(moved, rel=1e-4)
    assert change.at_site[site] == pytest.approx(moved, rel=1e-4)


def test_suppressing_features_of_z_is_measured_in_the_stream():
    site = Site(1, Part.ATT)
    dictionaries = {site: random_dictionary(site, width=32, tap=Tap.Z)}
    plan = plan_of("suppress", {"1/att/1": 0.0, "1/att/2": -1.0})
    change = plan_change(plan, dictionaries, MODEL, texts=TEXTS)
    assert change.at_site[site] == pytest.approx(mean_change(MODEL, plan, dictionaries, site), rel=1e-4)


def test_behind_a_norm_the_divisor_of_each_token_is_held_fixed():
    model, site = tiny_model("gemma2"), Site(1, Part.ATT)
    dictionary = random_dictionary(site, width=32, tap=Tap.Z, activation=ReLU())
    plan = plan_of("suppress", {"1/att/1": 0.0, "1/att/2": -1.0})
    lengths = []
    block = model.block(1)
    norm = block.post_attention_layernorm
    for tokens, real in real_tokens(model, TEXTS):
        z = model.capture(tokens, [(1, Tap.Z)])[1, Tap.Z][0, real]
        acts = dictionary.encode(z)[:, [1, 2]] * torch.tensor([-1.0, -2.0])
        written = block.self_attn.o_proj(acts @ dictionary.W_dec[[1, 2]]) * (1 + norm.weight)
        inverse = torch.rsqrt(block.self_attn.o_proj(z).pow(2).mean(-1, keepdim=True) + norm.eps)
        lengths.append((written * inverse).norm(dim=-1))
    change = plan_change(plan, {site: dictionary}, model, texts=TEXTS)
    assert change.at_site[site] == pytest.approx(torch.cat(lengths).mean().item(), rel=1e-4)


def test_activities_of_several_sites_add_up_token_by_token():
    plan = plan_of("suppress", {"0/res/3": 0.0, "1/mlp/2": 0.0, "1/res/4": -1.0})
    change = plan_change(plan, DICTIONARIES, MODEL, texts=TEXTS * 4)
    layer, upto = [], []
    for tokens, real in real_tokens(MODEL, TEXTS):
        held = MODEL.capture(tokens, EVERY_SITE)
        part = {
            site: DICTIONARIES[site].encode(held[site][0, real])[:, [i]] * DICTIONARIES[site].W_dec[i]
            for site, i in ((Site(0, Part.RES), 3), (Site(1, Part.MLP), 2), (Site(1, Part.RES), 4))
        }
        first, second, third = part.values()
        layer.append((second + 2 * third).norm(dim=-1))
        upto.append((first + second + 2 * third).norm(dim=-1))
    assert change.at_layer[1] == pytest.approx(torch.cat(layer).mean().item(), rel=1e-4)
    assert change.upto[1] == pytest.approx(torch.cat(upto).mean().item(), rel=1e-4)


def test_what_is_missing_is_said():
    plan = plan_of("suppress", {"1/res/1": 0.0})
    for model, texts in ((None, TEXTS), (MODEL, None), (MODEL, [])):
        with pytest.raises(InvalidArgument, match="Pass the model and texts"):
            plan_change(plan, DICTIONARIES, model, texts=texts)
    with pytest.raises(UnknownSite, match="0/res/1"):
        plan_change(plan_of("activate", {"0/res/1": 1.0}), {})
    z = {Site(1, Part.ATT): random_dictionary(Site(1, Part.ATT), width=32, tap=Tap.Z)}
    with pytest.raises(WidthMismatch):
        plan_change(plan_of("activate", {"1/att/1": 1.0}), z)
    assert plan_change(plan_of("activate", {"1/att/1": 2.0}), z, MODEL).at_layer == pytest.approx({1: 2.0})
    change = plan_change(plan_of("activate", {"1/res/1": 1.0}), DICTIONARIES)
    for norms in ({}, {Site(1, Part.RES): 0.0}):
        with pytest.raises(InvalidArgument, match="no centred norm for 1/res"):
            shares(change, norms)
    with pytest.raises(InvalidArgument, match=r"layers \[1\], the plan of \[2\]"):
        within(plan_of("activate", {"2/res/1": 1.0}), Budget(), {Site(1, Part.RES): 1.0}, change)
    for bad in (0.0, -0.1, float("inf"), float("nan")):
        with pytest.raises(InvalidArgument, match="is no share"):
            Budget(per_layer=bad)
        with pytest.raises(InvalidArgument, match="is no share"):
            Budget(total=bad)


values = st.floats(-20, 20)
chosen = st.dictionaries(
    st.sampled_from([f"{site}/{i}" for site in EVERY_SITE for i in range(3)]), values, min_size=1, max_size=6
)
limits = st.none() | st.floats(1e-3, 2.0)
NORMS = centred_norms(MODEL, RES, TEXTS)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SteeringDirection), chosen, limits, limits)
def test_a_budget_is_never_exceeded_and_never_strengthens(direction, strengths, per_layer, total):
    plan, budget = plan_of(direction, strengths), Budget(per_layer, total)
    change = plan_change(plan, DICTIONARIES, MODEL, texts=TEXTS)
    made = within(plan, budget, NORMS, change)
    before = shares(change, NORMS)
    after = shares(plan_change(made, DICTIONARIES, MODEL, texts=TEXTS), NORMS)
    assert per_layer is None or after.per_layer <= per_layer
    assert total is None or after.total <= total
    told = made.made_by["budget"]
    assert told["scale"] <= 1
    assert made.steps == plan.scaled(told["scale"]).steps
    assert (told["per_layer"], told["total"]) == (per_layer, total)
    assert told["before"] == {"per_layer": before.per_layer, "total": before.total}
    assert told["after"] == pytest.approx({"per_layer": after.per_layer, "total": after.total}, rel=1e-6, abs=1e-9)
    fits = (per_layer is None or before.per_layer <= per_layer) and (total is None or before.total <= total)
    assert (told["scale"] == 1) == fits
    if fits:
        assert made.steps == plan.steps
    else:  # it is used up: nothing is weakened more than the budget asks
        used = [after.per_layer / per_layer if per_layer else 0, after.total / total if total else 0]
        assert max(used) == pytest.approx(1.0, rel=1e-4)


def loudest(site):
    """The feature of a site that is most active on the texts."""
    held = [MODEL.capture(tokens, [site])[site][0, real] for tokens, real in real_tokens(MODEL, TEXTS)]
    return f"{site}/{DICTIONARIES[site].encode(torch.cat(held)).mean(0).argmax().item()}"


CUMULATIVE = {
    loudest(Site(layer, part)): r
    for layer, part, r in (
        (0, Part.RES, -2.0),
        (1, Part.ATT, -1.0),
        (1, Part.MLP, 0.0),
        (1, Part.RES, -1.0),
        (2, Part.RES, 0.5),
    )
}


def test_under_the_plan_each_site_finds_what_the_plan_has_left():
    plan = plan_of("suppress", CUMULATIVE)
    change = plan_change(plan, DICTIONARIES, MODEL, texts=TEXTS * 3, steered=True)
    lengths = {site: [] for site in plan.sites}
    for tokens, real in real_tokens(MODEL, TEXTS):
        for place, site in enumerate(plan.sites):
            with MODEL.intervening(plan.edits[:place], DICTIONARIES):
                before = MODEL.capture(tokens, [site])[site][0, real]
            with MODEL.intervening(plan.edits[: place + 1], DICTIONARIES):
                after = MODEL.capture(tokens, [site])[site][0, real]
            lengths[site].append((after - before).norm(dim=-1))
    for site, found in lengths.items():
        assert change.at_site[site] == pytest.approx(torch.cat(found).mean().item(), rel=1e-3, abs=1e-5)
    unsteered = plan_change(plan, DICTIONARIES, MODEL, texts=TEXTS)
    first = plan.sites[0]
    assert change.at_site[first] == pytest.approx(unsteered.at_site[first], rel=1e-5)
    assert change.at_layer[2] != pytest.approx(unsteered.at_layer[2], rel=1e-2)


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(CUMULATIVE)), st.floats(-5, 3), min_size=1), limits, limits)
def test_a_suppression_really_fits_its_budget(factors, per_layer, total):
    plan, budget = plan_of("suppress", factors), Budget(per_layer, total)
    made = fit_budget(plan, budget, DICTIONARIES, MODEL, TEXTS, norms=NORMS)
    after = shares(plan_change(made, DICTIONARIES, MODEL, texts=TEXTS, steered=True), NORMS)
    assert budget.holds(after)
    told = made.made_by["budget"]
    assert made.steps == plan.scaled(told["scale"]).steps
    assert told["after"] == {"per_layer": after.per_layer, "total": after.total}
    before = shares(plan_change(plan, DICTIONARIES, MODEL, texts=TEXTS, steered=True), NORMS)
    assert (told["scale"] == 1) == budget.holds(before)


def test_a_suppression_is_weakened_no_more_than_it_must_be():
    plan = plan_of("suppress", dict.fromkeys(CUMULATIVE, -1.0))
    before = shares(plan_change(plan, DICTIONARIES, MODEL, texts=TEXTS, steered=True), NORMS)
    for budget in (Budget(per_layer=before.per_layer / 3), Budget(total=before.total / 3)):
        made = fit_budget(plan, budget, DICTIONARIES, MODEL, TEXTS, norms=NORMS)
        c = made.made_by["budget"]["scale"]
        assert 0.05 < c < 1
        more = shares(plan_change(plan.scaled(1.03 * c), DICTIONARIES, MODEL, texts=TEXTS, steered=True), NORMS)
        assert not budget.holds(more)
        told = made.made_by["budget"]["before"]
        assert told == {"per_layer": before.per_layer, "total": before.total}


def test_an_activation_is_fitted_in_proportion():
    plan = plan_of("activate", {"0/res/3": 5.0, "2/mlp/1": -4.0})
    budget = Budget(0.05, 0.05)
    change = plan_change(plan, DICTIONARIES)
    assert plan_change(plan, DICTIONARIES, MODEL, texts=TEXTS, steered=True) == change
    norms = centred_norms(MODEL, norm_sites(plan), TEXTS)
    assert fit_budget(plan, budget, DICTIONARIES, MODEL, TEXTS) == within(plan, budget, norms, change)


def test_an_empty_plan_fits_every_budget():
    change = plan_change(plan_of("activate", {}), DICTIONARIES)
    assert change == PlanChange({}, {}, {})
    empty = shares(change, {})
    assert (empty.per_layer, empty.total) == (0.0, 0.0)
    assert within(plan_of("activate", {}), Budget(0.1, 0.1), {}, change).steps == ()


def test_shares_are_told_by_layer():
    told = shares(PlanChange({}, {1: 2.0, 3: 1.0}, {1: 2.0, 3: 3.0}), {Site(1, Part.RES): 10, Site(3, Part.RES): 20})
    assert told.to_dict() == {"per_layer": {"1": 0.2, "3": 0.05}, "total": 0.15}
