"""Batched generation under plans: paired by seed, in order, as each request alone, and gone when it is done."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import TopPLogitsWarper

from saeflow.errors import InvalidArgument
from saeflow.steering.generate import Noise, Request, Sampling, generate
from saeflow.steering.plan import SteeringDirection

from ..sources.tiny_models import TEXTS, VOCAB, hooks_on, tiny_model
from .steered import FAMILIES, activation, dictionaries, endless, everywhere, suppression

families = pytest.mark.parametrize("model_type", FAMILIES)
STEERED = activation({"0/mlp/1": 2.0, "1/res/3": -2.5, "2/att/0": 3.0})
REMOVED = suppression({"0/res/1": 0.0, "1/mlp/3": 2.5, "2/res/0": -1.0})
SHORT = Sampling(max_new_tokens=8)


def by_hand(model, made, request, sampling):
    """The definition: no cache, no batch; the whole text anew, the sorted nucleus, the noise, token by token."""
    ids = model.tokenize([request.prompt]).input_ids
    n = ids.shape[1]
    with model.intervening(request.plan or (), made), torch.no_grad():
        for step in range(sampling.max_new_tokens):
            scores = model.hf_model(input_ids=ids, use_cache=False).logits[:, -1] / sampling.temperature
            scores = TopPLogitsWarper(sampling.top_p)(None, scores) + Noise(VOCAB).of([request.seed], step)
            following = scores.argmax(dim=-1, keepdim=True)
            if following.item() in model.end_ids:
                break
            ids = torch.cat([ids, following], dim=1)
    return tuple(ids[0, n:].tolist())


@families
def test_each_text_is_the_one_its_plan_and_seed_define(model_type):
    model, made = tiny_model(model_type), dictionaries()
    plans = (None, STEERED, REMOVED, None, STEERED)
    requests = [Request(TEXTS[i % 2], seed, plan) for i, plan in enumerate(plans) for seed in (0, 1, 2)]
    found = generate(model, made, requests, SHORT)
    assert [one.request for one in found] == requests
    for one in found:
        assert one.ids == by_hand(model, made, one.request, SHORT)
        assert one.request.prompt + one.text == " ".join([one.request.prompt, *(f"w{i}" for i in one.ids if i > 2)])
    assert len({one.ids for one in found}) > 6
    assert hooks_on(model) == 0


@families
def test_texts_do_not_depend_on_batch_size_or_order(model_type):
    model, made = tiny_model(model_type), dictionaries()
    requests = [Request(TEXTS[seed % 3], seed, plan) for seed in range(5) for plan in (None, STEERED, REMOVED)]
    found = generate(model, made, requests, SHORT)
    for batch in (1, 4):
        again = generate(model, made, requests, SHORT, batch=batch)
        assert [one.ids for one in again] == [one.ids for one in found]
    backwards = generate(model, made, requests[::-1], SHORT)[::-1]
    assert [one.ids for one in backwards] == [one.ids for one in found]
    assert backwards[3].share_total == pytest.approx(found[3].share_total, rel=1e-4)


def test_the_same_call_gives_the_same_bits():
    model, made = tiny_model("llama"), dictionaries()
    requests = [Request(TEXTS[0], seed, plan) for seed in range(3) for plan in (None, STEERED)]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = generate(model, made, requests, SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert generate(model, made, requests, SHORT) == first


def test_a_plan_that_changes_nothing_gives_the_unsteered_text_of_the_seed():
    model, made = tiny_model("llama"), dictionaries()
    plans = (None, everywhere(SteeringDirection.ACTIVATE, 0.0), everywhere(SteeringDirection.SUPPRESS, 1.0), STEERED)
    found = generate(model, made, [Request(TEXTS[0], 5, plan) for plan in plans], SHORT)
    assert found[0].ids == found[1].ids == found[2].ids != found[3].ids
    assert [one.share_total for one in found[:3]] == [one.share_layer for one in found[:3]] == [0, 0, 0]
    assert found[3].share_layer > 0
    assert found[3].share_total > 0


def test_temperature_0_is_greedy_for_every_seed():
    model, made = endless("llama"), dictionaries()
    greedy = Sampling(max_new_tokens=6, temperature=0.0)
    found = generate(model, made, [Request(TEXTS[0], seed, STEERED) for seed in range(3)], greedy)
    assert len({one.ids for one in found}) == 1
    tokens = model.tokenize(TEXTS[:1])
    with model.intervening(STEERED, made):
        [[expected]] = model.generate(TEXTS[:1], max_new_tokens=6, temperature=0)
    assert found[0].text == expected
    assert len(found[0].ids) == 6
    assert tokens.input_ids.shape[1] == 11


def test_the_sampling_a_model_ships_with_is_not_used():
    model, made = endless("llama"), dictionaries()
    requests = [Request(TEXTS[0], seed, STEERED) for seed in range(3)]
    plain = generate(model, made, requests, SHORT)
    own = {"do_sample": True, "top_k": 1, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_new_tokens": 3}
    model.hf_model.generation_config.update(**own)
    assert generate(model, made, requests, SHORT) == plain
    assert model.hf_model.generation_config.repetition_penalty == 9.0


def ending(model_type):
    """A model that ends its texts: its end-of-text logit is high."""
    model = tiny_model(model_type)
    head = model.hf_model.get_output_embeddings()
    bias = torch.zeros(VOCAB)
    bias[2] = 3.0
    head.bias = torch.nn.Parameter(bias)
    return model


def test_a_text_ends_at_its_end_of_text_token_and_others_go_on():
    model, made = ending("llama"), dictionaries()
    long = Sampling(max_new_tokens=20)
    requests = [Request(TEXTS[0], seed, plan) for seed in range(8) for plan in (None, STEERED)]
    found = generate(model, made, requests, long)
    lengths = [len(one.ids) for one in found]
    assert min(lengths) < max(lengths)
    assert all(2 not in one.ids for one in found)
    for one in found:
        assert one.ids == by_hand(model, made, one.request, long)
        # what padding would add is left out of the shares
        [alone] = generate(model, made, [one.request], long)
        assert one.share_total == pytest.approx(alone.share_total, rel=1e-3)


def test_the_batch_ends_when_all_its_texts_have():
    model, made = ending("llama"), dictionaries()
    steps = []
    found = generate(
        model,
        made,
        [Request(TEXTS[0], seed) for seed in range(3)],
        Sampling(max_new_tokens=50),
        on_token=lambda texts: steps.append(len(texts)),
    )
    assert len(steps) == max(len(one.ids) for one in found) + 1 < 50


def test_on_token_sees_the_texts_grow_in_the_order_of_the_batch():
    model, made = endless("llama"), dictionaries()
    requests = [Request(TEXTS[0], 1, STEERED), Request(TEXTS[0], 1), Request(TEXTS[1], 2)]
    seen = []
    found = generate(model, made, requests, SHORT, on_token=lambda texts: seen.append(tuple(texts)))
    assert [len(texts) for texts in seen] == [2] * 8 + [1] * 8
    assert seen[7] == (found[0].text, found[1].text)
    assert seen[15] == (found[2].text,)
    for before, after in pairwise(seen[:8]):
        assert all(late.startswith(early) and late != early for early, late in zip(before, after, strict=True))


def test_progress_is_told_after_every_batch():
    model, made = tiny_model("llama"), dictionaries()
    told = []
    requests = [Request(TEXTS[seed % 2], seed) for seed in range(7)]
    generate(model, made, requests, SHORT, batch=3, progress=lambda *now: told.append(now))
    assert told == [(3, 7, "texts"), (4, 7, "texts"), (7, 7, "texts")]
    assert generate(model, made, [], SHORT) == []


def test_hooks_and_settings_are_back_after_an_exception():
    model, made = tiny_model("llama"), dictionaries()
    own = model.hf_model.generation_config

    def fails(texts):
        raise RuntimeError("seen enough")

    with pytest.raises(RuntimeError, match="seen enough"):
        generate(model, made, [Request(TEXTS[0], 0, STEERED)], SHORT, on_token=fails)
    assert hooks_on(model) == 0
    assert model.hf_model.generation_config is own


def test_what_cannot_be_generated_is_refused():
    model, made = tiny_model("llama"), dictionaries()
    with pytest.raises(InvalidArgument, match="batch = 0"):
        generate(model, made, [Request(TEXTS[0], 0)], SHORT, batch=0)
    with pytest.raises(InvalidArgument, match="Pass dictionaries"):
        generate(model, None, [Request(TEXTS[0], 0, STEERED)], SHORT)


def test_half_precision_generates():
    model, made = tiny_model("gemma2"), dictionaries()
    model.hf_model.to(torch.bfloat16)
    found = generate(model, made, [Request(TEXTS[0], 0, plan) for plan in (None, STEERED, REMOVED)], SHORT)
    assert [one.share_total > 0 for one in found] == [False, True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_writes_the_texts_of_the_cpu():
    model, made = tiny_model("llama"), dictionaries()
    requests = [Request(TEXTS[0], seed, plan) for seed in range(4) for plan in (None, STEERED, REMOVED)]
    expected = generate(model, made, requests, SHORT)
    model.hf_model.to("cuda")
    assert [one.ids for one in generate(model, made, requests, SHORT)] == [one.ids for one in expected]
