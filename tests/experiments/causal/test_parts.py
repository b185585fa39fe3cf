"""What the engine stands on in `saeflow.sources`: features encoded alone, modules answered for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saeflow.errors import WidthMismatch
from saeflow.ids import Part, Site
from saeflow.sources.blocks import CleanPass
from saeflow.sources.dictionary import Norm
from saeflow.sources.hooks import answered_by

from ...sources.tiny_models import D_MODEL, N_LAYERS
from .worlds import KINDS, TEXT, VARIANTS, dictionaries_on, language_model

SITE = Site(1, Part.MLP)


@pytest.fixture(scope="module")
def llama():
    return language_model("llama")


@pytest.mark.parametrize("kind", KINDS)
def test_features_encoded_alone_are_columns_of_encode(llama, kind):
    tokens = llama.tokenize([TEXT])
    dictionary = dictionaries_on(llama, tokens, KINDS[kind])[SITE]
    h = llama.capture(tokens, [SITE])[SITE]
    features = torch.tensor([9, 0, 23, 4, 4, 17])
    expected = dictionary.encode(h)[..., features]
    assert 0.1 < (expected > 0).float().mean() < 0.9
    torch.testing.assert_close(dictionary.encode_only(h, features), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(WidthMismatch, match=f"width {D_MODEL}.* 5 wide"):
        dictionary.encode_only(h[..., :5], features)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_is_what_decode_multiplies_rows_by(llama, kind):
    tokens = llama.tokenize([TEXT])
    dictionary = dictionaries_on(llama, tokens, KINDS[kind])[SITE]
    h = llama.capture(tokens, [SITE])[SITE][0]
    acts = torch.zeros(len(h), dictionary.n_features)
    silent = dictionary.decode(acts, h)
    acts[:, 3] = 2.0
    moved = dictionary.decode(acts, h) - silent
    expected = (2.0 * dictionary.W_dec[3]).expand_as(moved) * dictionary.scale(h)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-4)
    if dictionary.preprocessing.norm is Norm.NONE:
        assert dictionary.scale(h) == 1.0


def test_a_module_is_answered_for_with_its_hooks_and_then_is_itself_again():
    module, seen = nn.Linear(2, 2), []
    module.register_forward_hook(lambda _m, _a, out: seen.append(out))
    x = torch.ones(2)
    own = module(x)

    def fails():
        with answered_by(module, lambda h: 2 * h):
            assert torch.equal(module(x), 2 * x)
            with answered_by(module, lambda h: 3 * h):
                assert torch.equal(module(x), 3 * x)
            assert torch.equal(module(x), 2 * x)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert "forward" not in vars(module)
    assert torch.equal(module(x), own)
    assert len(seen) == 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_run_again_on_the_clean_stream_give_what_they_gave(variant):
    model = language_model(variant)
    tokens = model.tokenize([TEXT])
    clean = CleanPass(model, tokens, range(N_LAYERS))
    positions = torch.tensor([9, 0, 12, 9, 4])
    for layer in range(N_LAYERS):
        stages = clean.stages[layer]
        for attend in (True, False):
            held = clean.rows(layer, stages.entry[positions], positions, {}, attend=attend)
            for tap, h in held.items():
                torch.testing.assert_close(h, stages.taps[tap][positions], atol=1e-4, rtol=1e-4)
        for start in (0, 7, 12):
            twice = torch.stack([stages.entry[start:], stages.entry[start:].flip(0)])
            after = clean.onward(layer, twice, start)
            expected = clean.onward(layer, twice[:1], start)
            torch.testing.assert_close(after[:1], expected, atol=1e-4, rtol=1e-4)
            whole = next(h for tap, h in stages.taps.items() if tap.value == "res")
            torch.testing.assert_close(after[0], whole[start:], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        logits = model.hf_model(input_ids=tokens.input_ids).logits[0]
    torch.testing.assert_close(clean.logits(clean.final), logits, atol=1e-4, rtol=1e-4)
