"""Plans by row: each row gets exactly what its plan says, at every token, and other rows do not change a bit."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Add, Positions, Rescale, Span
from saeflow.sources.activations import JumpReLU, ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.tokens import Tokens
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.row_plans import ShareMeter, row_changes

from ..experiments.causal.worlds import KINDS, dictionaries_on
from ..sources.tiny_models import D_MODEL, N_LAYERS, TEXTS, hooks_on, tiny_model
from .dictionaries import random_dictionary
from .steered import (
    EVERY_SITE,
    FAMILIES,
    PLANS,
    F,
    activation,
    dictionaries,
    dictionary_at,
    endless,
    everywhere,
    rows_of,
    suppression,
)

families = pytest.mark.parametrize("model_type", FAMILIES)


def same_bits(a, b):
    """Equal to the bit: 0.0 is not -0.0, and NaN is itself."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def states(model, tokens):
    held = model.capture(tokens, EVERY_SITE, logits=True)
    return {**{site: held[site] for site in EVERY_SITE}, "logits": held.logits}


@families
def test_s_of_0_and_r_of_1_change_no_bit(model_type):
    model, made = tiny_model(model_type), dictionaries()
    tokens = model.tokenize(TEXTS)
    plain = states(model, tokens)
    for plan in (everywhere(SteeringDirection.ACTIVATE, 0.0), everywhere(SteeringDirection.SUPPRESS, 1.0)):
        for edits in (plan, row_changes([plan], made, model), row_changes([plan, None, plan], made, model)):
            with model.intervening(edits, made):
                assert all(same_bits(value, plain[key]) for key, value in states(model, tokens).items())


@pytest.mark.parametrize("value", [-0.0, 0.0, float("inf"), float("-inf"), float("nan")])
def test_rows_without_a_plan_at_a_point_keep_every_bit(value):
    model, made = tiny_model("llama"), dictionaries()
    plans = [everywhere(SteeringDirection.ACTIVATE, 2.0), None, everywhere(SteeringDirection.SUPPRESS, 0.0), None]
    h = torch.randn(4, 3, D_MODEL)
    h[[1, 3]] = value
    for change in row_changes(plans, made, model).values():
        out = change(h)
        assert same_bits(out[[1, 3]], h[[1, 3]])
        assert not torch.equal(out[[0, 2]], h[[0, 2]])


def test_a_feature_that_is_silent_changes_no_bit():
    model = tiny_model("llama")
    site = Site(1, Part.RES)
    rows = torch.randn(2, D_MODEL)
    silent = Dictionary(
        site,
        tap=Tap.RES,
        W_enc=rows,
        b_enc=torch.zeros(2),
        W_dec=rows,
        b_dec=torch.zeros(D_MODEL),
        activation=JumpReLU(torch.full((2,), 1e6)),
    )
    h = torch.randn(2, 3, D_MODEL)
    h[0, 0] = -0.0
    for r in (0.0, 3.0, -1.0):
        plan = suppression({"1/res/0": r, "1/res/1": 2 * r + 3})
        [by_rows] = row_changes([plan, plan.scaled(2)], {site: silent}, model).values()
        assert same_bits(by_rows(h), h)


@families
@pytest.mark.parametrize("part", Part)
def test_layers_before_the_first_edit_are_bit_equal(model_type, part):
    model, made = tiny_model(model_type), dictionaries()
    tokens = rows_of(model.tokenize(TEXTS), 2)
    plain = states(model, tokens)
    for plan in (activation({f"1/{part}/2": 3.0}), suppression({f"1/{part}/{i}": -i for i in range(F)})):
        with model.intervening(row_changes([plan, plan.scaled(0.5)], made, model)):
            edited = states(model, tokens)
        assert all(same_bits(edited[site], plain[site]) for site in EVERY_SITE if site < Site(1, part))
        assert not torch.equal(edited[Site(1, part)], plain[Site(1, part)])
        assert not torch.equal(edited["logits"], plain["logits"])


def planted(site, h, lengths):
    """Orthogonal features, each on an axis of its own, that fire where `h` points along it: a is a coordinate."""
    signs = h[..., : len(lengths)].mean(dim=(0, 1)).sign()
    rows = torch.eye(D_MODEL)[: len(lengths)] * (signs * torch.tensor(lengths))[:, None]
    return Dictionary(
        site,
        tap=Tap.of(site.part),
        W_enc=rows / rows.norm(dim=1, keepdim=True) ** 2,
        b_enc=torch.zeros(len(lengths)),
        W_dec=rows,
        b_dec=torch.zeros(D_MODEL),
        activation=JumpReLU(torch.zeros(len(lengths))),
    )


@families
@pytest.mark.parametrize("r", [0.0, 0.5, 2.0, 8.0])
def test_a_planted_feature_has_r_times_its_activation_afterwards_exactly(model_type, r):
    model = tiny_model(model_type)
    site = Site(1, Part.RES)
    tokens = model.tokenize(TEXTS)
    h = model.capture(tokens, [site])[site]
    dictionary = planted(site, h, [1.0, 2.0, 0.5, 4.0])
    before = dictionary.encode(h)
    assert (before > 0).any(dim=(0, 1)).all()
    plan = suppression({"1/res/0": r, "1/res/2": 1.0, "1/res/3": r})
    for edits in (plan, row_changes([plan], {site: dictionary}, model)):
        with model.intervening(edits, {site: dictionary}):
            after = dictionary.encode(model.capture(tokens, [site])[site])
        factors = torch.tensor([r, 1.0, 1.0, r])
        torch.testing.assert_close(after, factors * before, atol=1e-6, rtol=1e-6)


def test_features_of_a_site_are_removed_jointly():
    model = tiny_model("llama")
    site = Site(1, Part.RES)
    d = dictionary_at(site)
    tokens = model.tokenize(TEXTS)
    h = model.capture(tokens, [site])[site]
    factors = (0.0, -1.0, 1.0, 3.0, 0.25)
    chosen = [1, 4, 2, 8, 0]
    share = (d.encode(h)[..., chosen] * (torch.tensor(factors) - 1)) @ d.W_dec[chosen]
    edit = Rescale(tuple(FeatureId(site, i) for i in chosen), factors)
    plan = suppression({f"1/res/{i}": r for i, r in zip(chosen, factors, strict=True)})
    for edits in ([edit], plan, row_changes([plan], {site: d}, model)):
        with model.intervening(edits, {site: d}):
            torch.testing.assert_close(model.capture(tokens, [site])[site], h + share, atol=1e-5, rtol=1e-5)


def each_as_alone(plans, made, model):
    """What the model has with a plan in each row, which is what each row has with its plan alone."""
    tokens = rows_of(model.tokenize(TEXTS), len(plans))
    with model.intervening(row_changes(plans, made, model)):
        together = states(model, tokens)
    for row, plan in enumerate(plans):
        with model.intervening(plan or (), made):
            alone = states(model, rows_of(tokens, 1))
        for key, value in together.items():
            torch.testing.assert_close(value[row : row + 1], alone[key], atol=2e-4, rtol=2e-4)
    return together


@families
def test_plans_by_row_are_what_each_row_alone_gives(model_type):
    model, made = tiny_model(model_type), dictionaries()
    together = each_as_alone(PLANS, made, model)
    assert not torch.allclose(together["logits"][0], together["logits"][1], atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_dictionary_is_steered_by_rows_as_alone(kind):
    model = tiny_model("gemma2")
    tokens = rows_of(model.tokenize(TEXTS), 3)
    made = dictionaries_on(model, rows_of(tokens, 1), KINDS[kind])
    plans = [
        suppression({f"1/{part}/{i}": r for part in Part for i, r in ((3, 0.0), (5, -1.0), (9, 2.0))}),
        activation({f"1/{part}/2": 1.5 for part in Part}),
        suppression({f"1/{part}/{i}": 0.0 for part in Part for i in range(8)}),
    ]
    with model.intervening(row_changes(plans, made, model)):
        together = states(model, tokens)
    moved = []
    for row, plan in enumerate(plans):
        with model.intervening(plan, made):
            alone = states(model, rows_of(tokens, 1))
        torch.testing.assert_close(together["logits"][row], alone["logits"][0], atol=1e-3, rtol=1e-3)
        moved.append((alone["logits"] - states(model, rows_of(tokens, 1))["logits"]).abs().max())
    assert min(moved) > 1e-2


def test_a_feature_is_added_only_where_it_is_active():
    model, made = tiny_model("llama"), dictionaries()
    site, tokens = Site(1, Part.RES), model.tokenize(TEXTS)
    h = model.capture(tokens, [site])[site]
    acts = made[site].encode(h)[..., [3, 4]]
    units = torch.nn.functional.normalize(made[site].W_dec[[3, 4]], dim=1)
    expected = h + ((acts > 0) * torch.tensor([2.0, -1.5])) @ units
    plan = activation({"1/res/3": 2.0, "1/res/4": -1.5}, only_active=True)
    both = (acts > 0).any(dim=-1)
    assert both.any()
    assert not both.all()
    for edits in (plan, row_changes([plan], made, model)):
        with model.intervening(edits, made):
            after = model.capture(tokens, [site])[site]
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
        assert same_bits(after[~both], h[~both])


@pytest.mark.parametrize("only_active", [False, True])
def test_the_length_of_a_hidden_state_is_kept(only_active):
    model, made = tiny_model("llama"), dictionaries()
    site, tokens = Site(1, Part.RES), model.tokenize(TEXTS)
    free = activation({"1/res/3": 2.0}, only_active=only_active)
    kept = activation({"1/res/3": 2.0}, only_active=only_active, keep_norm=True)

    def after(edits):
        with model.intervening(edits, made):
            return model.capture(tokens, [site])[site]

    h, longer = after(()), after(free)
    for edits in (kept, row_changes([kept], made, model)):
        found = after(edits)
        torch.testing.assert_close(found.norm(dim=-1), h.norm(dim=-1), atol=1e-5, rtol=1e-5)
        along = torch.nn.functional.cosine_similarity(found, longer, dim=-1)
        torch.testing.assert_close(along, torch.ones_like(along), atol=1e-5, rtol=1e-5)
        assert same_bits(found[(longer == h).all(-1)], h[(longer == h).all(-1)])


def test_rows_whose_plans_act_otherwise_share_a_batch():
    model, made = tiny_model("llama"), dictionaries()
    values = {"0/mlp/1": 2.0, "1/res/3": -1.5, "1/res/4": 1.0}
    plans = [
        activation(values),
        None,
        activation(values, only_active=True),
        activation(values, Span(3), keep_norm=True),
        suppression({"1/res/3": 0.0, "1/res/7": 3.0}),
        activation(values, only_active=True, keep_norm=True),
    ]
    each_as_alone(plans, made, model)


def test_where_a_feature_of_z_is_active_is_not_known_in_the_stream():
    model = tiny_model("llama")
    site = Site(1, Part.ATT)
    made = {site: random_dictionary(site, tap=Tap.Z)}
    plan = activation({"1/att/2": 1.0}, only_active=True)
    said = "1/att/2 reads 1/z and is added at 1/att"
    with pytest.raises(InvalidArgument, match=said):
        row_changes([plan], made, model)
    with pytest.raises(InvalidArgument, match=said), model.intervening(plan, made):
        pass


def test_each_layer_and_each_row_gets_its_own_vector():
    model, made = tiny_model("llama"), dictionaries()
    tokens = rows_of(model.tokenize(TEXTS), 3)
    sites = [Site(layer, Part.RES) for layer in range(N_LAYERS)]
    plan = activation({f"{site}/1": 1.0 + site.layer for site in sites})
    seen = {}

    def note(site):
        def fn(h):
            seen[site] = h.clone()
            return h

        return fn

    with ExitStack() as stack:
        stack.enter_context(model.intervening({site: note(site) for site in sites}))
        stack.enter_context(model.intervening(row_changes([plan, None, plan.scaled(-2)], made, model)))
        after = model.capture(tokens, sites)
    for site in sites:
        row = made[site].W_dec[1]
        vector = (1.0 + site.layer) * row / row.norm()
        for index, factor in enumerate((1, 0, -2)):
            moved = after[site][index] - seen[site][index]
            torch.testing.assert_close(moved, (factor * vector).expand_as(moved), atol=1e-5, rtol=1e-5)


def _recomputed(model, ids, steps):
    """Greedy decoding that runs the whole text anew for every token: no cache to get wrong."""
    logits = []
    with torch.no_grad():
        for _ in range(steps):
            logits.append(model.hf_model(input_ids=ids, use_cache=False).logits[:, -1])
            ids = torch.cat([ids, logits[-1].argmax(dim=-1, keepdim=True)], dim=1)
    return ids, torch.stack(logits)


@families
@pytest.mark.parametrize("where", [Span(), Span(5), Span(12, 14), Positions((0, 13))])
def test_every_decoded_token_is_edited_in_every_row_as_its_plan_says(model_type, where):
    model, made = endless(model_type), dictionaries()
    ids = model.tokenize([TEXTS[0]]).input_ids.expand(4, -1)
    plans = [
        activation({"0/mlp/1": 3.0, "2/res/1": 2.0}, where),
        None,
        suppression({"1/res/2": -1.0, "1/res/6": 0.0, "2/att/3": 2.0}, where),
        activation({"1/res/7": -4.0}),
    ]
    with model.intervening(row_changes(plans, made, model)):
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
    unsteered, plain = _recomputed(model, ids, 7)
    assert torch.equal(unsteered[1], expected[1])
    # from the first token of a plan on, its row is another; before it, the same
    assert not torch.allclose(plain[-1, [0, 2, 3]], logits[-1, [0, 2, 3]], atol=1e-2)
    if where == Span(12, 14):
        assert same_bits(plain[0, [0, 1, 2]], logits[0, [0, 1, 2]])
    assert hooks_on(model) == 0


@families
def test_a_plan_works_inside_plain_sampling_with_return_sequences_and_left_padding(model_type):
    model, made = endless(model_type), dictionaries()
    texts = model.tokenize(TEXTS)
    width = texts.input_ids.shape[1]
    ids, mask = torch.zeros_like(texts.input_ids), torch.zeros_like(texts.attention_mask)
    for row, n in enumerate(texts.lengths):
        ids[row, width - n :], mask[row, width - n :] = texts.input_ids[row, :n], 1
    plan = activation({"0/res/1": 2.0, "2/mlp/3": 1.0})
    remove = suppression({"1/res/2": 0.0, "1/res/3": -1.0})
    settings = {"max_new_tokens": 5, "do_sample": True, "top_k": 0, "num_return_sequences": 2, "output_logits": True}
    with model.intervening(plan, made), model.intervening(remove, made):
        torch.manual_seed(0)
        out = model.hf_model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **settings)
        logits = torch.stack(out.logits, dim=1)
        for row, text in enumerate(out.sequences):
            n = texts.lengths[row // 2]
            with torch.no_grad():
                whole = model.hf_model(input_ids=text[None, width - n : -1], use_cache=False).logits[0, n - 1 :]
            torch.testing.assert_close(logits[row], whole, atol=2e-3, rtol=2e-3)
    with torch.no_grad():
        plain = model.hf_model(input_ids=out.sequences[:1, :-1], use_cache=False).logits[0, width - 1 :]
    assert not torch.allclose(plain, logits[0], atol=1e-2)


@families
@pytest.mark.parametrize("where", [Span(1), Span(2, 6), Positions((0, 3, 7))])
def test_token_positions_on_a_left_padded_batch_are_those_each_text_has_alone(model_type, where):
    model, made = endless(model_type), dictionaries()
    alone = [model.tokenize([text]).input_ids for text in TEXTS]
    width = max(ids.shape[1] for ids in alone)
    ids = torch.cat([torch.nn.functional.pad(text, (width - text.shape[1], 0)) for text in alone])
    mask = torch.cat([(torch.arange(width) >= width - text.shape[1]).long()[None] for text in alone])
    plans = [
        activation({"0/mlp/1": 3.0, "2/res/1": 2.0}, where),
        suppression({"1/res/2": -1.0, "1/res/6": 0.0, "2/att/3": 2.0}, where),
        activation({"0/res/7": -4.0}, where),
    ]
    alike = [Rescale((FeatureId.parse("1/res/2"),), 3.0, where), Add({FeatureId.parse("0/res/1"): 5.0}, where)]

    def decoded(ids, mask, edits, meter):
        with model.intervening(edits(meter), made):
            out = model.hf_model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=5,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return torch.stack(out.logits, dim=1)

    together = ShareMeter(skip=1)
    rows = decoded(ids, mask, lambda meter: row_changes(plans, made, model, meter=meter), together)
    shared = decoded(ids, mask, lambda _: alike, None)
    for row, (text, plan) in enumerate(zip(alone, plans, strict=True)):
        own, ones = ShareMeter(skip=1), torch.ones_like(text)
        expected = decoded(text, ones, lambda meter, p=plan: row_changes([p], made, model, meter=meter), own)
        torch.testing.assert_close(rows[row : row + 1], expected, atol=2e-3, rtol=2e-3)
        assert together.total(3)[row] == pytest.approx(own.total(1)[0], rel=1e-3)
        assert own.total(1)[0] > 0
        expected = decoded(text, ones, lambda _: alike, None)
        torch.testing.assert_close(shared[row : row + 1], expected, atol=2e-3, rtol=2e-3)


def test_plans_for_another_number_of_rows_are_refused_with_both_numbers():
    model, made = tiny_model("llama"), dictionaries()
    edits = row_changes([PLANS[0], None], made, model)
    with (
        pytest.raises(InvalidArgument, match="plans for 2 rows, and the batch at 0/mlp has 3"),
        model.intervening(edits),
    ):
        model.capture(model.tokenize(TEXTS), [Site(1, Part.RES)])
    assert hooks_on(model) == 0
    with pytest.raises(InvalidArgument, match="no plan was given"):
        row_changes([], made, model)


def test_a_plan_that_cannot_be_resolved_says_which():
    model = tiny_model("llama")
    made = {Site(1, Part.RES): dictionary_at(Site(1, Part.RES))}
    with pytest.raises(UnknownSite, match=r"0/res/1.*no dictionary at 0/res"):
        row_changes([None, activation({"0/res/1": 1.0})], made, model)
    with pytest.raises(UnknownFeature, match="1/res/10 lie outside"):
        row_changes([suppression({"1/res/10": 0.5})], made, model)
    with pytest.raises(InvalidArgument, match="Pass dictionaries"):
        row_changes([activation({"1/res/1": 1.0})], None, model)
    with pytest.raises(InvalidArgument, match="releases a, b"):
        row_changes([activation({"1/res/1": 1.0}, release=name) for name in "ab"], None, model)


def test_a_plan_that_names_its_release_needs_no_dictionaries(monkeypatch):
    made, asked = dictionaries(), []
    for module in ("saeflow.sources.model", "saeflow.steering.row_plans"):
        monkeypatch.setattr(f"{module}.load_dictionaries", lambda name: (asked.append(name), made)[1])
    model = tiny_model("llama")
    plan = activation({"1/res/3": 2.0}, release="mine")
    tokens = model.tokenize(TEXTS)
    with model.intervening(plan, made):
        expected = states(model, tokens)
    for edits in (plan, row_changes([plan], None, model)):
        with model.intervening(edits):
            assert all(torch.equal(value, expected[key]) for key, value in states(model, tokens).items())
    assert asked == ["mine", "mine"]
    with pytest.raises(InvalidArgument, match="Pass dictionaries"), model.intervening(activation({"1/res/3": 2.0})):
        pass


def test_adds_at_one_point_are_one_hook_and_one_vector():
    model, made = tiny_model("llama"), dictionaries()
    site = Site(1, Part.RES)
    tokens = model.tokenize(TEXTS)
    h = model.capture(tokens, [site])[site]
    one, two, three = (Add({FeatureId(site, i): float(i)}) for i in (1, 2, 3))
    rows = torch.nn.functional.normalize(made[site].W_dec[[1, 2, 3]], dim=1)
    whole = torch.tensor([1.0, 2.0, 3.0]) @ rows
    with model.intervening([one, two, three], made):
        assert hooks_on(model) == 2  # one at the block, one for the clock
        moved = model.capture(tokens, [site])[site] - h
    torch.testing.assert_close(moved, whole.expand_as(h), atol=1e-5, rtol=1e-5)
    late = Add(three.strengths, Span(2))
    with model.intervening([one, Rescale((FeatureId(site, 0),), 1.0), two, late], made):
        assert hooks_on(model) == 5  # what stands between them, and other tokens, keep them apart
        moved = model.capture(tokens, [site])[site] - h
    early = torch.tensor([1.0, 2.0]) @ rows[:2]
    real = (tokens.attention_mask == 1)[..., None]  # a span counts tokens: padding has no position
    torch.testing.assert_close(moved[:, 2:], torch.where(real, whole, early)[:, 2:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved[:, :2], early.expand_as(h[:, :2]), atol=1e-5, rtol=1e-5)


def test_features_of_a_transcoder_are_added_and_not_rescaled():
    model = tiny_model("llama")
    site = Site(1, Part.MLP)
    d = dictionary_at(site)
    transcoder = Dictionary(
        site, tap=Tap.MLP_IN, W_enc=d.W_enc, b_enc=d.b_enc, W_dec=d.W_dec, b_dec=d.b_dec, activation=ReLU()
    )
    for use in (lambda plan: row_changes([plan], {site: transcoder}, model), lambda plan: plan):
        with (
            pytest.raises(InvalidArgument, match=r"1/mlp/3 belongs to a transcoder: it reads mlp_in and writes 1/mlp"),
            model.intervening(use(suppression({"1/mlp/3": 0.0})), {site: transcoder}),
        ):
            pass
    tokens = model.tokenize(TEXTS)
    h = model.capture(tokens, [site])[site]
    with model.intervening(activation({"1/mlp/3": 2.0}), {site: transcoder}):
        moved = model.capture(tokens, [site])[site] - h
    torch.testing.assert_close(moved, (2 * d.directions()[3]).expand_as(h), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_take_the_dtype_of_the_model(dtype):
    model, made = tiny_model("llama"), dictionaries()
    model.hf_model.to(dtype)
    tokens = rows_of(model.tokenize(TEXTS), len(PLANS))
    plain = model.capture(tokens, [Site(0, Part.RES)], logits=True)
    with model.intervening(row_changes(PLANS, made, model, meter=ShareMeter(skip=1))):
        held = model.capture(tokens, [Site(0, Part.RES)], logits=True)
    assert held.logits.dtype == held[Site(0, Part.RES)].dtype == dtype
    assert held.logits.isfinite().all()
    assert torch.equal(held.logits[1], plain.logits[1])
    assert not torch.equal(held.logits[0], plain.logits[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_changes_follow_the_model_to_its_device():
    model, made = tiny_model("llama"), dictionaries()
    tokens = rows_of(model.tokenize(TEXTS), len(PLANS))
    with model.intervening(row_changes(PLANS, made, model)):
        expected = states(model, tokens)
    model.hf_model.to("cuda")
    moved = Tokens(tokens.input_ids.cuda(), tokens.attention_mask.cuda())
    with model.intervening(row_changes(PLANS, made, model)):
        for key, value in states(model, moved).items():
            torch.testing.assert_close(value.cpu(), expected[key], atol=1e-3, rtol=1e-3)
