"""LanguageModel.intervening: each edit is exactly its formula, in every pass, then is gone."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from tiny_models import CONFIGS, D_MODEL, N_LAYERS, TEXTS, hooks_on, tiny_model
from transformers.cache_utils import DynamicCache

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite, WidthMismatch
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Add, Positions, Rescale, Span
from saeflow.sources.activations import ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing
from saeflow.sources.hooks import added, token_positions

F = 10
EVERY_SITE = [Site(layer, part) for layer in range(N_LAYERS) for part in Part]
families = pytest.mark.parametrize("model_type", CONFIGS)


def random_dictionary(site, *, width=D_MODEL, tap=None, preprocessing=None):
    make = torch.Generator().manual_seed(10 * site.layer + site.part.rank)
    draw = lambda *shape: torch.randn(*shape, generator=make)  # noqa: E731
    return Dictionary(
        site,
        tap=tap or Tap.of(site.part),
        W_enc=draw(F, width),
        b_enc=draw(F),
        W_dec=draw(F, width),  # rows of lengths other than 1
        b_dec=draw(width),
        activation=ReLU(),
        preprocessing=preprocessing or Preprocessing(),
    )


def dictionaries_at(*sites):
    return {site: random_dictionary(site) for site in sites}


def unit_row(dictionary, index):
    row = dictionary.W_dec[index]
    return row / row.norm()


class Before:
    """Records a site's value before the edits, by a hook that is registered first."""

    def __init__(self, stack, model, *places):
        self.values = {}

        def note(place):
            def fn(h):
                self.values[place] = h.detach().clone()
                return h

            return fn

        stack.enter_context(model.intervening({place: note(place) for place in places}))


@families
def test_factor_one_changes_nothing_bit_for_bit(model_type):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    plain = model.capture(tokens, EVERY_SITE, logits=True)
    dictionaries = dictionaries_at(*EVERY_SITE)
    edits = [Rescale(tuple(FeatureId(site, i) for i in range(F)), r=1.0) for site in EVERY_SITE]
    with model.intervening(edits, dictionaries):
        edited = model.capture(tokens, EVERY_SITE, logits=True)
    assert torch.equal(edited.logits, plain.logits)
    assert all(torch.equal(edited[site], plain[site]) for site in EVERY_SITE)


@families
@pytest.mark.parametrize("part", Part)
def test_add_moves_its_site_by_exactly_its_vector_and_nothing_before_it(model_type, part):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    site = Site(1, part)
    dictionaries = dictionaries_at(site)
    plain = model.capture(tokens, EVERY_SITE, logits=True)
    edit = Add({FeatureId(site, 4): 3.0, FeatureId(site, 1): -0.5})
    with model.intervening([edit], dictionaries):
        edited = model.capture(tokens, EVERY_SITE, logits=True)
    vector = 3.0 * unit_row(dictionaries[site], 4) - 0.5 * unit_row(dictionaries[site], 1)
    torch.testing.assert_close(edited[site], plain[site] + vector, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(edited[other], plain[other]) for other in EVERY_SITE if other < site)
    assert not torch.equal(edited.logits, plain.logits)
    after = model.capture(tokens, EVERY_SITE, logits=True)
    assert torch.equal(after.logits, plain.logits)
    assert hooks_on(model) == 0


@families
@pytest.mark.parametrize("part", Part)
@pytest.mark.parametrize("r", [0.0, -1.0, 2.5])
def test_rescale_is_the_papers_formula_on_the_current_hidden_state(model_type, part, r):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    first, site = Site(0, Part.RES), Site(2, part)
    dictionaries = dictionaries_at(first, site)
    chosen = [7, 1, 2, 3, 4, 5, 6, 8, 9]  # all but feature 0, not in order
    edits = [Add({FeatureId(first, 0): 2.0}), Rescale(tuple(FeatureId(site, i) for i in chosen), r)]
    with ExitStack() as stack:
        before = Before(stack, model, site)
        stack.enter_context(model.intervening(edits, dictionaries))
        after = model.capture(tokens, [site])[site].double().numpy()
    assert not torch.equal(before.values[site], model.capture(tokens, [site])[site])  # the Add came first
    h = before.values[site].double().numpy()
    d = dictionaries[site]
    W_enc, b_enc, W_dec = (x.double().numpy() for x in (d.W_enc, d.b_enc, d.W_dec))
    a = (h @ W_enc.T + b_enc).clip(min=0)[..., chosen]
    assert (a > 0).any()
    assert (a == 0).any()
    assert after == pytest.approx(h + (r - 1) * a @ W_dec[chosen], abs=2e-4)


@pytest.mark.parametrize("norm", Norm)
def test_removing_every_feature_leaves_the_error_and_the_bias(norm):
    model = tiny_model("llama")
    tokens = model.tokenize(TEXTS)
    site = Site(1, Part.RES)
    d = random_dictionary(site, preprocessing=Preprocessing(norm=norm))
    h = model.capture(tokens, [site])[site]
    with model.intervening([Rescale(tuple(FeatureId(site, i) for i in range(F)))], {site: d}):
        after = model.capture(tokens, [site])[site]
    acts = d.encode(h)
    expected = h - d.decode(acts, h) + d.decode(torch.zeros_like(acts), h)
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
    assert (after - h).norm() > 1


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_a_dictionary_on_z_is_rescaled_there_and_added_in_the_stream(model_type):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    site = Site(1, Part.ATT)
    width = model.attention_writer(1)[0].shape[1]
    d = random_dictionary(site, width=width, tap=Tap.Z)
    plain = model.capture(tokens, [site, (1, Tap.Z)])
    z = plain[1, Tap.Z]
    loudest = int(d.encode(z).sum(dim=(0, 1)).argmax())
    with model.intervening([Rescale((FeatureId(site, loudest),), 0.0)], {site: d}):
        rescaled = model.capture(tokens, [site, (1, Tap.Z)])
    removed = d.encode(z)[..., [loudest]] * d.W_dec[loudest]
    torch.testing.assert_close(rescaled[1, Tap.Z], z - removed, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(rescaled[site], plain[site], atol=1e-3)
    with model.intervening([Add({FeatureId(site, 2): 1.5})], {site: d}):
        added = model.capture(tokens, [site, (1, Tap.Z)])
    assert torch.equal(added[1, Tap.Z], z)
    moved = added[site] - plain[site]
    torch.testing.assert_close(moved, (1.5 * d.directions(model)[2]).expand_as(moved), atol=1e-5, rtol=1e-4)


@families
def test_with_several_layers_each_gets_its_own_vector(model_type):
    model = tiny_model(model_type)
    sites = [Site(layer, Part.RES) for layer in range(N_LAYERS)]
    dictionaries = dictionaries_at(*sites)
    edits = [Add({FeatureId(site, 0): 1.0 + site.layer}) for site in sites]
    with ExitStack() as stack:
        before = Before(stack, model, *sites)
        stack.enter_context(model.intervening(edits, dictionaries))
        after = model.capture(model.tokenize(TEXTS), sites)
    for site in sites:
        moved = after[site] - before.values[site]
        vector = (1.0 + site.layer) * unit_row(dictionaries[site], 0)
        torch.testing.assert_close(moved, vector.expand_as(moved), atol=1e-5, rtol=1e-5)


def test_edits_at_one_site_follow_each_other():
    model = tiny_model("llama")
    tokens = model.tokenize(TEXTS)
    site = Site(1, Part.RES)
    dictionaries = dictionaries_at(site)
    add, remove = Add({FeatureId(site, 5): 20.0}), Rescale((FeatureId(site, 5),), 0.0)
    h, d = model.capture(tokens, [site])[site], dictionaries[site]
    with model.intervening([add, remove], dictionaries):
        both = model.capture(tokens, [site])[site]
    with model.intervening([add], dictionaries), model.intervening([remove], dictionaries):
        nested = model.capture(tokens, [site])[site]
    moved = h + 20.0 * unit_row(d, 5)
    expected = moved - d.encode(moved)[..., 5:6] * d.W_dec[5]
    torch.testing.assert_close(both, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(both, nested)


def test_a_selector_limits_an_edit_to_its_positions():
    model = tiny_model("gemma2")
    tokens = model.tokenize(TEXTS)
    site = Site(1, Part.RES)
    dictionaries = dictionaries_at(site)
    plain = model.capture(tokens, [site])[site]
    feature, *_ = features = tuple(FeatureId(site, i) for i in range(F))
    for selector, hit in ((Span(1, 3), [1, 2]), (Positions((0, 4)), [0, 4]), (Positions((40,)), [])):
        for edit in (Add({feature: 2.0}, tokens=selector), Rescale(features, 3.0, tokens=selector)):
            with model.intervening([Add({feature: 9.0}), edit], dictionaries):
                some = model.capture(tokens, [site])[site]
            with model.intervening([Add({feature: 9.0})], dictionaries):
                base = model.capture(tokens, [site])[site]
            changed = (some - base).abs().amax(dim=(0, 2)) > 0
            assert changed.nonzero().flatten().tolist() == hit
    assert torch.equal(model.capture(tokens, [site])[site], plain)


def _recomputed(model, ids, steps):
    """Greedy decoding that runs the whole text anew for every token: no cache to get wrong."""
    logits = []
    with torch.no_grad():
        for _ in range(steps):
            logits.append(model.hf_model(input_ids=ids, use_cache=False).logits[:, -1])
            ids = torch.cat([ids, logits[-1].argmax(dim=-1, keepdim=True)], dim=1)
    return ids, torch.stack(logits)


@families
@pytest.mark.parametrize("selector", [Span(), Span(5), Span(12, 14), Positions((0, 13))])
def test_edits_reach_the_prompt_and_each_decoded_token_through_the_cache(model_type, selector):
    model = tiny_model(model_type)
    model.hf_model.generation_config.eos_token_id = None
    ids = model.tokenize([TEXTS[0], TEXTS[0].replace("w5", "w21")]).input_ids
    sites = [Site(0, Part.MLP), Site(1, Part.RES), Site(2, Part.ATT)]
    dictionaries = dictionaries_at(*sites)
    edits = [Add({FeatureId(sites[0], 1): 3.0}, tokens=selector)]
    edits += [Rescale((FeatureId(site, 2), FeatureId(site, 6)), -1.0, tokens=selector) for site in sites]
    plain, _ = _recomputed(model, ids, 7)
    with model.intervening(edits, dictionaries):
        expected, logits = _recomputed(model, ids, 7)
        out = model.hf_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=7,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            use_cache=True,
        )
    torch.testing.assert_close(torch.stack(out.logits), logits, atol=1e-3, rtol=1e-3)
    assert torch.equal(out.sequences, expected)
    if selector == Span():
        assert not torch.equal(plain, expected)
    assert hooks_on(model) == 0


def test_token_positions_come_from_what_is_passed_and_never_from_the_name_of_the_cache():
    one, two = torch.zeros(1, 2, dtype=torch.long), torch.zeros(2, 2, dtype=torch.long)
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    padded = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    for call, expected in (
        ({"input_ids": one}, [[0, 1]]),
        ({"inputs_embeds": torch.zeros(1, 2, 4), "a_name_of_the_future": cache}, [[3, 4]]),
        ({"input_ids": two, "attention_mask": padded}, [[3, 4], [-1, 0]]),
        ({"input_ids": two, "attention_mask": padded[:, 2:4], "cache": DynamicCache()}, [[0, 1], [-1, -1]]),
        ({"input_ids": two, "attention_mask": torch.tensor([[0, 1], [1, 1]])}, [[-1, 0], [0, 1]]),
        ({"input_ids": two, "attention_mask": padded, "position_ids": one + 7}, [[7, 7], [-1, 7]]),
        ({"input_ids": one, "position_ids": torch.tensor([[4, 5]]), "cache": cache}, [[4, 5]]),
        ({"input_ids": one, "position_ids": torch.zeros(3, 1, 2), "past_key_values": cache}, [[3, 4]]),
        ({"input_ids": one, "attention_mask": torch.zeros(1, 1, 2, 5), "cache": cache}, [[3, 4]]),
    ):
        assert token_positions(call).tolist() == expected, list(call)


@families
def test_a_reconstruction_can_be_spliced_in(model_type):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    site = Site(1, Part.RES)
    d = random_dictionary(site)
    plain = model.capture(tokens, EVERY_SITE, logits=True)
    with model.intervening({place: lambda h: h for place in [*EVERY_SITE, (1, Tap.Z)]}):
        assert torch.equal(model.capture(tokens, [], logits=True).logits, plain.logits)
    with model.intervening({site: lambda h: d.decode(d.encode(h))}):
        held = model.capture(tokens, EVERY_SITE, logits=True)
    torch.testing.assert_close(held[site], d.decode(d.encode(plain[site])), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(held.logits, plain.logits, atol=1e-2)


def test_splicing_zeros_into_z_silences_attention():
    model = tiny_model("gemma3_text")
    with model.intervening({(1, Tap.Z): torch.zeros_like}):
        held = model.capture(model.tokenize(TEXTS), [Site(1, Part.ATT)])
    assert held[Site(1, Part.ATT)].abs().max() == 0


def test_a_function_that_returns_another_shape_is_refused():
    model = tiny_model("llama")
    with (
        model.intervening({Site(1, Part.RES): lambda h: h[..., :5]}),
        pytest.raises(WidthMismatch, match=r"1/res returned shape \(1, 2, 5\) .* \(1, 2, 24\)"),
    ):
        model.capture(model.tokenize(["w5"]), [Site(2, Part.RES)])


def test_hooks_are_gone_after_an_exception_inside_or_on_the_way_in():
    model = tiny_model("gpt2")
    site = Site(1, Part.RES)
    dictionaries = dictionaries_at(site)
    good = Add({FeatureId(site, 0): 1.0}, tokens=Span(1))

    def fails():
        with model.intervening([good], dictionaries):
            assert hooks_on(model) > 0
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert hooks_on(model) == 0
    with pytest.raises(UnknownSite, match="no layer 9"), model.intervening({site: abs, Site(9, Part.RES): abs}):
        pass
    assert hooks_on(model) == 0


@pytest.mark.parametrize(
    ("edit", "dictionaries", "error", "message"),
    [
        (Add({FeatureId.parse("1/res/3"): 1.0}), None, InvalidArgument, "1/res needs vectors. Pass dictionaries"),
        (Rescale((FeatureId.parse("0/res/3"),)), "1/res", UnknownSite, "0/res/3.*no dictionary at 0/res"),
        (Add({FeatureId.parse("1/res/10"): 1.0}), "1/res", UnknownFeature, "1/res/10 lie outside.*10 features"),
        (Rescale((FeatureId.parse("1/res/99"),)), "1/res", UnknownFeature, "1/res/99.*from 0 to 9"),
    ],
)
def test_an_edit_that_cannot_be_resolved_says_which(edit, dictionaries, error, message):
    model = tiny_model("llama")
    have = None if dictionaries is None else dictionaries_at(Site.parse(dictionaries))
    with pytest.raises(error, match=message), model.intervening([edit], have):
        pass
    assert hooks_on(model) == 0


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_row_without_a_direction_is_refused_where_it_is_added_and_leaves_the_others_alone(value):
    model, site = tiny_model("llama"), Site(1, Part.RES)
    have = dictionaries_at(site)
    expected = unit_row(have[site], 3)
    have[site].W_dec[4] = value
    have = {site: have[site].to()}
    assert added(Add({FeatureId(site, 3): 1.0}), have, model) == pytest.approx(expected)
    dead = Add({FeatureId(site, 3): 1.0, FeatureId(site, 4): 1.0})
    with (
        pytest.raises(InvalidArgument, match=r"1 of 2 features .*\(1/res/4\).*no direction"),
        model.intervening([dead], have),
    ):
        pass


def test_edits_work_in_half_precision():
    model = tiny_model("llama")
    model.hf_model.to(torch.bfloat16)
    site = Site(1, Part.RES)
    dictionaries = dictionaries_at(site)
    edits = [Add({FeatureId(site, 0): 4.0}), Rescale((FeatureId(site, 1),), 0.0, tokens=Span(1))]
    with model.intervening(edits, dictionaries):
        held = model.capture(model.tokenize(TEXTS), [site], logits=True)
    assert held[site].dtype == held.logits.dtype == torch.bfloat16
    assert held.logits.isfinite().all()
