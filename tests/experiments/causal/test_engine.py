"""PreparedText: what it computes and what it does not, what it refuses, and what it leaves behind."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite
from saeflow.experiments.causal import PreparedText, Trial
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Positions, Rescale
from saeflow.sources.activations import ReLU
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.sources.weights import Weights

from ...sources.tiny_models import N_LAYERS
from .worlds import KINDS, TEXT, active_features, dictionaries_on, language_model, trials_at

BEFORE, ATT, MLP, AFTER = (Site.parse(name) for name in ("0/res", "1/att", "1/mlp", "1/res"))
feature = FeatureId.parse


class World:
    def __init__(self, variant, kind="jumprelu"):
        self.model = language_model(variant)
        self.tokens = self.model.tokenize([TEXT])
        self.dictionaries = dictionaries_on(self.model, self.tokens, KINDS[kind])

    def prepare(self, **options):
        return PreparedText(self.model, self.dictionaries, self.tokens, **{"layers": range(N_LAYERS)} | options)

    def loud(self, site, position):
        return active_features(self.model, self.dictionaries, self.tokens, site, position)

    def removal(self, site, position, r=0.0):
        return Rescale((self.loud(site, position)[0],), r)


@pytest.fixture(scope="module")
def gemma():
    return World("gemma3_text")


@pytest.fixture(scope="module")
def parallel():
    return World("gpt_neox")


@contextmanager
def counted(model, layer):
    """How many tokens each part of a block is run on."""
    block, architecture = model.block(layer), model.architecture
    parts = {"o_proj": architecture.o_proj, "mlp": "mlp", "block": ""}
    tokens = Counter()
    with ExitStack() as stack:
        for name, path in parts.items():

            def hook(_module, args, kwargs, name=name):
                h = args[0] if args else kwargs["hidden_states"]
                tokens[name] += h.shape[0] * h.shape[1]

            handle = block.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield tokens


def test_an_mlp_edit_recomputes_nothing(gemma):
    text = gemma.prepare()
    trial = Trial(1, 7, (gemma.removal(MLP, 7),), (feature("1/res/0"),))
    with counted(gemma.model, 1) as tokens:
        text.run([trial])
    assert tokens == {}


def test_an_attention_edit_recomputes_the_mlp_at_one_token(gemma):
    text = gemma.prepare()
    trial = Trial(1, 7, (gemma.removal(ATT, 7), gemma.removal(MLP, 7)), (feature("1/res/0"),))
    with counted(gemma.model, 1) as tokens:
        text.run([trial])
    assert tokens == {"block": 1, "mlp": 1}


def test_in_a_parallel_block_an_attention_edit_recomputes_nothing(parallel):
    text = parallel.prepare()
    trial = Trial(1, 7, (parallel.removal(ATT, 7), parallel.removal(MLP, 7)), (feature("1/res/0"),))
    with counted(parallel.model, 1) as tokens:
        text.run([trial])
    assert tokens == {}


def test_a_residual_edit_recomputes_one_token_of_one_layer(gemma):
    text = gemma.prepare()
    trials = [Trial(1, t, (gemma.removal(BEFORE, t),), (feature("1/res/0"),)) for t in (3, 9, 12)]
    with counted(gemma.model, 1) as here, counted(gemma.model, 2) as above, counted(gemma.model, 0) as below:
        text.run(trials)
    assert here == {"block": 3, "o_proj": 3, "mlp": 3}
    assert above == below == {}


def test_the_loss_runs_tokens_from_t_and_layers_from_the_first_that_changes(gemma):
    text = gemma.prepare()
    after_t = text.n_tokens - 1 - 9  # the last token predicts nothing
    at_entry, at_mlp = (Trial(1, 9, (gemma.removal(site, 9),), ()) for site in (BEFORE, MLP))
    with counted(gemma.model, 1) as here, counted(gemma.model, 2) as above, counted(gemma.model, 0) as below:
        text.run([at_entry], loss=True)
        assert (here["block"], above["block"]) == (1 + after_t, after_t)
        text.run([at_mlp], loss=True)
        assert (here["block"], above["block"]) == (1 + after_t, 2 * after_t)
    assert below == {}


def test_equal_edits_are_computed_once_whatever_they_watch(gemma):
    text = gemma.prepare()
    one, other = gemma.loud(BEFORE, 7)[:2]
    silent = next(f for i in range(24) if (f := FeatureId(BEFORE, i)) not in gemma.loud(BEFORE, 7))
    orders = [(one, other), (other, one), (one, silent, other)]
    trials = [Trial(1, 7, (Rescale(features),), (FeatureId(AFTER, i),)) for i, features in enumerate(orders)]
    with counted(gemma.model, 1) as tokens:
        found = text.run([*trials, *trials])
    assert tokens["block"] == 1
    assert found[:3] == found[3:]
    watched = Trial(1, 7, trials[0].edits, tuple(FeatureId(AFTER, i) for i in range(3)))
    assert text.run([watched])[0].after == pytest.approx([one.after[0] for one in found[:3]], abs=1e-6)


def test_only_the_watched_rows_are_encoded(gemma, monkeypatch):
    text = gemma.prepare()
    trial = Trial(1, 7, (gemma.removal(BEFORE, 7),), (feature("1/res/4"), feature("1/mlp/9")))
    text.run([trial])  # the clean activations are there now
    widths = []
    encode_only = Dictionary.encode_only
    monkeypatch.setattr(Dictionary, "encode", lambda *_: pytest.fail("encoded every feature"))
    monkeypatch.setattr(Dictionary, "encode_only", lambda d, h, f: widths.append(len(f)) or encode_only(d, h, f))
    text.run([trial])
    assert widths == [1, 1]


@pytest.mark.parametrize("world", ["gemma", "parallel"])
def test_what_changes_nothing_gives_after_equal_to_before_bit_for_bit(world, request):
    world = request.getfixturevalue(world)
    text = world.prepare()
    watch = tuple(FeatureId(site, i) for site in (BEFORE, ATT, MLP, AFTER) for i in range(24))
    kept = tuple(Rescale(tuple(world.loud(site, 7)), 1.0) for site in (BEFORE, ATT, MLP))
    silent = [f for i in range(24) if (f := FeatureId(BEFORE, i)) not in world.loud(BEFORE, 7)]
    nothing = [(), kept, kept[:1], (Rescale(tuple(silent), -3.0),), (Rescale(tuple(silent)), kept[2])]
    found = text.run([Trial(1, 7, edits, watch) for edits in nothing], loss=True)
    for one in found:
        assert one.after == one.before
        assert one.loss_after == one.loss_before
    assert sum(value > 0 for value in found[0].before) > 10


def test_sites_before_an_edit_and_an_mlp_beside_it_stay_bit_equal(gemma, parallel):
    for world, untouched in ((gemma, {BEFORE}), (parallel, {BEFORE, MLP})):
        watch = tuple(FeatureId(site, i) for site in (BEFORE, ATT, MLP, AFTER) for i in range(24))
        [one] = world.prepare().run([Trial(1, 7, (Rescale(tuple(world.loud(ATT, 7))),), watch)])
        same = dict.fromkeys((BEFORE, ATT, MLP, AFTER), True)
        for at, before, after in zip(watch, one.before, one.after, strict=True):
            same[at.site] &= before == after
        assert {site for site, equal in same.items() if equal} == untouched


def test_an_edit_at_the_last_token_moves_no_loss(gemma):
    text = gemma.prepare()
    last = text.n_tokens - 1
    [one] = text.run([Trial(1, last, (gemma.removal(BEFORE, last),), (feature("1/res/0"),))], loss=True)
    assert one.loss_after == one.loss_before


@pytest.mark.parametrize("batch_tokens", [1, 7, 4096])
def test_the_size_of_batches_does_not_matter_and_order_is_kept(gemma, batch_tokens):
    places = [(1, 7), (2, 3), (1, 0), (0, 5)]
    trials = [
        trial
        for layer, position in places
        for trial in trials_at(gemma.model, gemma.dictionaries, gemma.tokens, layer, position)[::4]
    ]
    trials = trials[::2] + trials[1::2]
    whole = gemma.prepare().run(trials, loss=True)
    parts = gemma.prepare(batch_tokens=batch_tokens, positions=[7, 3]).run(trials, loss=True)
    for one, other in zip(whole, parts, strict=True):
        assert other.after == pytest.approx(one.after, rel=1e-5, abs=1e-5)
        assert other.loss_after == pytest.approx(one.loss_after, rel=1e-6)


def test_without_loss_there_is_none_and_the_head_is_never_run(gemma):
    text = gemma.prepare()
    head = gemma.model.hf_model.get_output_embeddings()
    handle = head.register_forward_hook(lambda *_: pytest.fail("the head was run"))
    try:
        [one] = text.run([Trial(1, 7, (gemma.removal(BEFORE, 7),), (feature("1/res/0"),))])
    finally:
        handle.remove()
    assert (one.loss_before, one.loss_after) == (None, None)
    assert text.run([]) == []


def test_active_features_are_those_of_encode(gemma):
    text = gemma.prepare(layers=[1])
    for site in (BEFORE, ATT, MLP, AFTER):
        h = gemma.model.capture(gemma.tokens, [site])[site][0, 7]
        acts = gemma.dictionaries[site].encode(h).numpy()
        index, value = text.active(site, 7)
        assert index.tolist() == np.flatnonzero(acts).tolist()
        assert len(index) > 2
        assert value == pytest.approx(acts[index], rel=1e-5)
        every = [FeatureId(site, i) for i in range(24)]
        assert text.activations(every, 7) == pytest.approx(acts.tolist(), rel=1e-5)
        [one] = text.run([Trial(1, 7, (), tuple(every))])
        assert list(one.before) == text.activations(every, 7)


def test_padding_is_cut_off(gemma):
    padded = gemma.model.tokenize([TEXT, TEXT + " w3 w4"])
    short = Tokens(padded.input_ids[:1], padded.attention_mask[:1])
    text = PreparedText(gemma.model, gemma.dictionaries, short, layers=[1])
    assert (text.n_tokens, text.tokens.input_ids.tolist()) == (13, gemma.tokens.input_ids.tolist())
    with pytest.raises(InvalidArgument, match="one text of one token or more, not 2 texts of lengths"):
        PreparedText(gemma.model, gemma.dictionaries, padded, layers=[1])


class Unreadable(Weights):
    """Weights whose tensors must not be read."""

    def read(self, name):
        pytest.fail(f"read {name}")


def test_only_the_dictionaries_in_use_are_read(gemma):
    unreadable = {
        site: Dictionary.reading(site, tap=d.tap, weights=Unreadable("a file", (24, 24), 24), activation=ReLU)
        for site, d in gemma.dictionaries.items()
    }
    used = {site: gemma.dictionaries[site] for site in (MLP, AFTER)}
    text = PreparedText(gemma.model, unreadable | used, gemma.tokens, layers=[1])
    [one] = text.run([Trial(1, 7, (gemma.removal(MLP, 7),), (feature("1/res/0"),))], loss=True)
    assert one.loss_after != one.loss_before


def test_the_caches_go_with_the_text(gemma):
    text = gemma.prepare()
    text.run([Trial(1, 7, (gemma.removal(BEFORE, 7),), (feature("1/res/0"),))], loss=True)
    tensors = [weakref.ref(t) for pair in text._clean._keys_values for t in pair]
    assert all(ref() is not None for ref in tensors)
    del text
    gc.collect()
    assert all(ref() is None for ref in tensors)


def test_the_model_is_left_as_it_was(gemma):
    before = gemma.model.capture(gemma.tokens, [AFTER], logits=True).logits
    trials = trials_at(gemma.model, gemma.dictionaries, gemma.tokens, 1, 7)
    gemma.prepare().run(trials, loss=True)
    assert torch.equal(gemma.model.capture(gemma.tokens, [AFTER], logits=True).logits, before)
    assert not any("forward" in vars(module) for module in gemma.model.hf_model.modules())


def test_half_precision_runs_and_stays_close():
    world = World("llama")
    world.model.hf_model.to(torch.bfloat16)
    text = world.prepare()
    loud = [FeatureId(BEFORE, int(i)) for i in text.active(BEFORE, 7)[0]]
    trial = Trial(1, 7, (Rescale(tuple(loud)),), tuple(FeatureId(AFTER, i) for i in range(24)))
    [one] = text.run([trial], loss=True)
    edit = Rescale(trial.edits[0].features, tokens=Positions((7,)))
    with world.model.intervening([edit], world.dictionaries):
        held = world.model.capture(world.tokens, [AFTER])[AFTER]
        loss = torch.nanmean(world.model.loss(world.tokens))
    moved = world.dictionaries[AFTER].encode(held[0, 7].float()).tolist()
    both = [(a, b) for a, b in zip(one.after, moved, strict=True) if a and b]
    assert len(both) > 2
    assert all(a == pytest.approx(b, rel=0.1, abs=0.1) for a, b in both)
    assert one.loss_after == pytest.approx(float(loss), rel=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trial(0, 3, (Rescale((feature("0/res/1"),)),), ()), "layer 0 cannot edit 0/res.*0/att, 0/mlp"),
        (lambda: Trial(0, 3, (Rescale((feature("1/mlp/1"),)),), ()), "Before layer 0 there is no residual"),
        (lambda: Trial(2, 3, (Rescale((feature("2/res/1"),)),), ()), "cannot edit 2/res. Name features at 1/res"),
        (lambda: Trial(2, 3, (), (feature("0/res/1"),)), "cannot watch 0/res/1. Name features at 1/res.*2/res"),
        (lambda: Trial(2, -1, (), ()), "token -1. Both count from 0"),
        (
            lambda: Trial(2, 3, (Rescale((feature("2/mlp/1"),)), Rescale((feature("2/mlp/2"),), 2.0)), ()),
            "edits 2/mlp, 2/mlp, a site more than once",
        ),
        (
            lambda: Trial(2, 3, (Rescale((feature("2/mlp/1"),), tokens=Positions((4,))),), ()),
            "for token 3. Leave the tokens of the edit out",
        ),
    ],
)
def test_a_trial_that_is_none_says_why(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


@pytest.mark.parametrize(
    ("trial", "error", "message"),
    [
        (Trial(2, 13, (), ()), InvalidArgument, "token 13 lies outside the text, which has 13 tokens"),
        (Trial(0, 3, (), ()), UnknownSite, "names layer 0, and this text was prepared for layers 1, 2"),
        (Trial(1, 3, (), (feature("1/res/24"),)), UnknownFeature, "1/res/24 lies outside.*from 0 to 23"),
        (Trial(1, 3, (Rescale((feature("0/res/99"),)),), ()), UnknownFeature, "0/res/99 lies outside"),
        (Trial(2, 3, (), (feature("2/att/0"),)), UnknownSite, "no dictionary at 2/att. Pass one"),
    ],
)
def test_a_trial_that_cannot_be_run_says_why(gemma, trial, error, message):
    some = {site: d for site, d in gemma.dictionaries.items() if site != Site(2, Part.ATT)}
    text = PreparedText(gemma.model, some, gemma.tokens, layers=[2, 1])
    with pytest.raises(error, match=message):
        text.run([trial])


def test_other_refusals(gemma):
    with pytest.raises(UnknownSite, match="no layer 7"):
        gemma.prepare(layers=[7])
    with pytest.raises(InvalidArgument, match="batch_tokens = 0"):
        gemma.prepare(batch_tokens=0)
    with pytest.raises(InvalidArgument, match="token 40 lies outside"):
        gemma.prepare(positions=[40])
    with pytest.raises(UnknownSite, match="2/res is at none of the layers 1 "):
        gemma.prepare(layers=[1]).active(Site(2, Part.RES), 3)
    one = gemma.model.tokenize(["w5"], add_bos=False)
    text = PreparedText(gemma.model, gemma.dictionaries, one, layers=[1])
    with pytest.raises(InvalidArgument, match="one token has no next-token loss"):
        text.run([Trial(1, 0, (), ())], loss=True)


def test_attention_that_takes_no_mask_is_refused(gemma):
    other = LanguageModel(language_model("llama").hf_model, gemma.model.tokenizer)
    other.trunk.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InvalidArgument, match=r"'flash_attention_2' takes no mask.*'sdpa' or 'eager'"):
        PreparedText(other, gemma.dictionaries, gemma.tokens, layers=[1])
