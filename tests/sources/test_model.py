"""LanguageModel: what it reads is what the model computes, and reading changes nothing."""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch
import transformers
from gguf_files import write_gguf
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled
from tiny_models import CONFIGS, D_MODEL, N_LAYERS, TEXTS, VOCAB, hooks_on, tiny_hf_model, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, OPTConfig

from saeflow.errors import (
    BadFile,
    InvalidArgument,
    MissingExtra,
    UnknownArchitecture,
    UnknownRelease,
    UnknownSite,
    Unreachable,
    UnsupportedFormat,
    WidthMismatch,
)
from saeflow.ids import Part, Site
from saeflow.sources import gguf_models, packaged_models, pretrained
from saeflow.sources.activations import ReLU
from saeflow.sources.activity import model_digest
from saeflow.sources.architectures import Tap
from saeflow.sources.blocks import CleanPass
from saeflow.sources.decoding import check_context
from saeflow.sources.dictionary import Dictionary, TrainingInfo
from saeflow.sources.model import LanguageModel, load_model
from saeflow.sources.remote import hub_file
from saeflow.sources.tokens import Tokens

EVERY_SITE = [Site(layer, part) for layer in range(N_LAYERS) for part in Part]
EVERY_PLACE = [*EVERY_SITE, *((layer, Tap.Z) for layer in range(N_LAYERS))]
LAST = Site(N_LAYERS - 1, Part.RES)

families = pytest.mark.parametrize("model_type", CONFIGS)
SANDWICH = {"gemma2", "gemma3_text", "gemma3", "olmo2", "olmo3", "glm4"}
"""Where a norm follows attention before the stream."""


@families
def test_sizes_are_read_from_the_model(model_type):
    model = tiny_model(model_type)
    assert (model.n_layers, model.d_model, model.device.type) == (N_LAYERS, D_MODEL, "cpu")
    assert model.parallel is (model_type in {"gpt_neox", "falcon"})


@families
@torch.no_grad()
def test_capture_changes_no_logit(model_type):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    call = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "use_cache": False}
    alone = model.hf_model(**call).logits
    held = model.capture(tokens, EVERY_PLACE, inputs=range(N_LAYERS), logits=True)
    assert torch.equal(held.logits, alone)
    assert torch.equal(model.hf_model(**call).logits, alone)
    assert hooks_on(model) == 0


@families
@torch.no_grad()
def test_residual_sites_are_the_hidden_states_the_model_reports(model_type):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    call = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "use_cache": False}
    out = model.hf_model(**call, output_hidden_states=True)
    held = model.capture(tokens, EVERY_SITE, inputs=[0])
    assert torch.equal(held.inputs[0], out.hidden_states[0])
    for layer in range(N_LAYERS - 1):
        assert torch.equal(held[Site(layer, Part.RES)], out.hidden_states[layer + 1])
    # The last one reported is after the final norm; the site is before it.
    trunk = model.hf_model.get_submodule(model.architecture.trunk)
    norm = trunk.get_submodule(model.architecture.final_norm)
    assert torch.equal(norm(held[LAST]), out.hidden_states[-1])
    assert not torch.allclose(held[LAST], out.hidden_states[-1], atol=1e-2)


@families
def test_stopping_early_reads_what_a_whole_pass_reads(model_type):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    whole = model.capture(tokens, EVERY_PLACE, inputs=[0, 1], stop_after_last=False)
    stopped = model.capture(tokens, EVERY_PLACE, inputs=[0, 1])
    for place in EVERY_PLACE:
        assert torch.equal(whole[place], stopped[place])
        assert torch.equal(model.capture(tokens, [place])[place], whole[place])
    assert hooks_on(model) == 0


def test_stopping_early_runs_no_layer_after_the_deepest_site():
    model = tiny_model("llama")
    ran = []
    blocks = model.hf_model.model.layers
    for layer, block in enumerate(blocks):
        block.mlp.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    tokens = model.tokenize(TEXTS)
    model.capture(tokens, [Site(1, Part.ATT)])
    assert ran == [0]
    ran.clear()
    model.capture(tokens, [Site(1, Part.ATT)], stop_after_last=False)
    assert ran == [0, 1, 2]


@families
def test_a_padded_batch_gives_what_each_text_gives_alone(model_type):
    model = tiny_model(model_type)
    batch = model.tokenize(TEXTS)
    assert batch.lengths == [11, 4, 8]
    held = model.capture(batch, EVERY_PLACE, logits=True)
    losses = model.loss(batch)
    for row, text in enumerate(TEXTS):
        single = model.tokenize([text])
        length = single.lengths[0]
        alone = model.capture(single, EVERY_PLACE, logits=True)
        for place in EVERY_PLACE:
            torch.testing.assert_close(held[place][row, :length], alone[place][0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(held.logits[row, :length], alone.logits[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(losses[row, : length - 1], model.loss(single)[0], atol=2e-5, rtol=1e-4)


def test_captured_is_a_mapping_over_what_was_asked_for():
    model = tiny_model("mistral")
    site = Site(1, Part.MLP)
    held = model.capture(model.tokenize(TEXTS), [site, (0, Tap.Z), site])
    assert list(held) == [site, (0, Tap.Z)]
    assert len(held) == 2
    assert held[site].shape == (3, 11, D_MODEL)
    assert held[0, Tap.Z].shape == (3, 11, 32)
    assert not held[site].requires_grad
    assert held.logits is None
    assert LAST not in held
    with pytest.raises(UnknownSite, match="2/res was not captured; captured: 1/mlp, 0/z"):
        held[LAST]


def test_a_layer_the_model_lacks_is_refused_and_leaves_no_hook():
    model = tiny_model("gpt2")
    with pytest.raises(UnknownSite, match=r"no layer 3\. Its 3 layers are 0 to 2"):
        model.capture(model.tokenize(TEXTS), [Site(0, Part.RES), Site(3, Part.RES)])
    with pytest.raises(UnknownSite, match="no layer 7"):
        model.attention_writer(7)
    assert hooks_on(model) == 0


def test_tokenize_begins_each_text_once_and_cuts_it():
    model = tiny_model("llama")
    tokens = model.tokenize(["w5 w9 w12", "<bos> w7"])
    assert tokens.input_ids.tolist() == [[1, 5, 9, 12], [1, 7, 0, 0]]
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert model.tokenize(["w5 w9 w12"], add_bos=False).input_ids.tolist() == [[5, 9, 12]]
    assert model.tokenize(["w5 w9 w12"], max_length=2).input_ids.tolist() == [[1, 5]]
    assert model.tokenize([""]).input_ids.tolist() == [[1]]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, r"one or more texts, not \[\]"),
        ("w5 w9", {}, "not 'w5 w9'. Wrap it in a list"),
        (["w5"], {"max_length": 0}, "max_length = 0"),
        (["w5", ""], {"add_bos": False}, "the text '' gives no token"),
    ],
)
def test_tokenize_refuses_what_gives_no_tokens(texts, options, message):
    with pytest.raises(InvalidArgument, match=message):
        tiny_model("llama").tokenize(texts, **options)


@families
def test_attention_writer_turns_z_into_the_direction_attention_writes(model_type):
    model = tiny_model(model_type)
    held = model.capture(model.tokenize(TEXTS[:1]), EVERY_PLACE)
    for layer in range(N_LAYERS):
        W_O, gain = model.attention_writer(layer)
        z, att = held[layer, Tap.Z][0], held[Site(layer, Part.ATT)][0]
        assert W_O.shape == (D_MODEL, z.shape[1])
        assert (gain is not None) is (model_type in SANDWICH)
        block = model.hf_model.get_submodule(model.architecture.trunk).get_submodule(model.architecture.blocks)[layer]
        bias = getattr(block.get_submodule(model.architecture.o_proj), "bias", None)
        written = att if bias is None else att - bias.detach()
        projected = z @ W_O.T if gain is None else z @ W_O.T * gain
        assert cosine_similarity(projected, written, dim=-1).min() > 1 - 1e-6
        if gain is None:
            torch.testing.assert_close(projected, written, atol=1e-5, rtol=1e-4)
        else:  # the gain is needed: without it the direction is another
            assert cosine_similarity(z @ W_O.T, written, dim=-1).max() < 0.99


def test_directions_of_another_width_are_refused_with_both_widths():
    model = tiny_model("gemma2")
    with pytest.raises(WidthMismatch, match="width 32 are not in the residual stream, which has width 24"):
        model.unembed(torch.ones(2, 32))


@families
@torch.no_grad()
def test_loss_is_the_negative_log_probability_of_the_next_token(model_type):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    loss = model.loss(tokens)
    logits = model.hf_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits.double()
    for row, length in enumerate(tokens.lengths):
        for t in range(loss.shape[1]):
            if t + 1 >= length:
                assert math.isnan(loss[row, t])
                continue
            target = tokens.input_ids[row, t + 1]
            expected = logits[row, t].exp().sum().log() - logits[row, t, target]
            assert loss[row, t].item() == pytest.approx(expected.item(), abs=1e-4)
    held = model.capture(tokens, [], logits=True)
    assert torch.equal(tokens.loss(held.logits).nan_to_num(), loss.nan_to_num())


@pytest.mark.parametrize("vocabulary", [49_152, 262_144])
def test_loss_is_that_of_float64_however_large_the_vocabulary(vocabulary):
    draw = torch.Generator().manual_seed(0)
    logits = 30 + 3 * torch.randn(2, 6, vocabulary, generator=draw)
    ids = torch.randint(vocabulary, (2, 6), generator=draw)
    loss = Tokens(ids, torch.ones_like(ids)).loss(logits)
    exact = -logits.double().log_softmax(dim=-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    assert (loss.double() - exact).abs().max() < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_states_that_are_no_numbers_are_refused_where_they_begin_and_never_give_zero_features(bad):
    model = tiny_model("llama")
    tokens = model.tokenize(TEXTS)
    with torch.no_grad():
        model.block(1).get_submodule("mlp.down_proj").weight[3, 5] = bad
    assert torch.isfinite(model.capture(tokens, [Site(0, Part.RES)])[Site(0, Part.RES)]).all()
    with pytest.raises(InvalidArgument, match=r"hidden states at 1/mlp hold NaN or infinite values, at \d+ of 23 tok"):
        model.capture(tokens, [Site(2, Part.RES), Site(1, Part.MLP), Site(0, Part.RES)])
    with pytest.raises(InvalidArgument, match="hidden states that layer 2 reads"):
        model.capture(tokens, [], inputs=[2])
    with pytest.raises(InvalidArgument, match="the logits hold NaN or infinite values, at 20 of 20 tokens"):
        model.loss(tokens)
    with pytest.raises(InvalidArgument, match=r"hidden states of layer 1 \(mlp\) hold NaN"):
        CleanPass(model, model.tokenize(TEXTS[:1]), [1])


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma3"])
def test_a_text_beyond_the_context_is_refused_with_both_numbers(model_type):
    model = tiny_model(model_type)
    fits, long = (model.tokenize([" ".join(["w5"] * n)]) for n in (63, 64))
    model.capture(fits, [Site(0, Part.RES)])
    said = "a text of 65 tokens does not fit the model's context of 64"
    for run in (
        lambda: model.capture(long, [Site(0, Part.RES)]),
        lambda: model.loss(long),
        lambda: CleanPass(model, long, [0]),
    ):
        with pytest.raises(InvalidArgument, match=said):
            run()
    with pytest.raises(InvalidArgument, match=r"a prompt of 2 tokens and 63 new ones .* context of 64"):
        model.generate(["w5"], max_new_tokens=63)


def test_the_context_grows_with_the_factor_of_scaled_rotary_angles():
    model = tiny_model("llama")
    model.hf_model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    check_context(model.hf_model, 128)
    with pytest.raises(InvalidArgument, match="context of 128"):
        check_context(model.hf_model, 129)


def test_padding_may_hold_anything():
    model = tiny_model("llama")
    tokens = model.tokenize(TEXTS)
    padding = (tokens.attention_mask == 0)[..., None]
    with model.intervening({Site(2, Part.RES): lambda h: h.masked_fill(padding, float("nan"))}):
        held = model.capture(tokens, [Site(2, Part.RES)], logits=True)
        assert held[Site(2, Part.RES)].isnan().any()
        assert torch.equal(model.loss(tokens).isnan(), padding[:, 1:, 0])


def test_logits_of_another_batch_give_no_loss():
    model = tiny_model("llama")
    logits = model.capture(model.tokenize(TEXTS), [], logits=True).logits
    with pytest.raises(WidthMismatch, match=r"\(3, 11, 48\) are not of tokens of shape \(1, 11\)"):
        model.tokenize(TEXTS[:1]).loss(logits)


@families
@torch.no_grad()
def test_unembed_is_the_final_norm_and_head_at_a_frozen_scale(model_type):
    model = tiny_model(model_type)
    directions = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(1))
    trunk = model.hf_model.get_submodule(model.architecture.trunk)
    norm, head = trunk.get_submodule(model.architecture.final_norm), model.hf_model.get_output_embeddings()
    moved = head(norm(directions)) - head(norm(torch.zeros(1, D_MODEL)))
    assert cosine_similarity(model.unembed(directions), moved, dim=-1).min() > 1 - 1e-6


def test_logit_lens_names_the_tokens_best_first():
    model = tiny_model("gemma2")
    directions = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(2))
    logits = model.unembed(directions)
    found = model.logit_lens(directions, k=4)
    for row, tokens in zip(logits, found, strict=True):
        assert [token.id for token in tokens] == row.argsort(descending=True)[:4].tolist()
        assert [token.logit for token in tokens] == sorted(row.tolist(), reverse=True)[:4]
        assert all(token.token in {f" w{token.id}", "<pad>", "<bos>", "<eos>"} for token in tokens)
    for k in (0, VOCAB + 1):
        with pytest.raises(InvalidArgument, match=f"k = {k} tokens of a vocabulary of 48"):
            model.logit_lens(directions, k=k)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_generation_is_a_function_of_the_seed_and_leaves_the_global_generator(model_type):
    model = tiny_model(model_type)
    state = torch.get_rng_state()
    first = model.generate(TEXTS, max_new_tokens=8, seed=3, n=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(row) for row in first] == [2, 2, 2]
    torch.manual_seed(99)
    assert model.generate(TEXTS, max_new_tokens=8, seed=3, n=2) == first
    assert model.generate(TEXTS[::-1], max_new_tokens=8, seed=3, n=2) == first[::-1]
    assert model.generate(TEXTS, max_new_tokens=8, seed=4, n=2) != first


@families
@torch.no_grad()
def test_greedy_generation_takes_the_most_likely_token_each_time(model_type):
    model = tiny_model(model_type)
    ids = model.tokenize(TEXTS[:1]).input_ids
    for _ in range(6):
        following = model.hf_model(input_ids=ids, use_cache=False).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, following], dim=1)
        if following.item() == 2:
            break
    expected = " " + model.tokenizer.decode(ids[0, 11:], skip_special_tokens=True)
    assert model.generate(TEXTS[:1], max_new_tokens=6, temperature=0, n=2) == [[expected, expected]]


def test_generation_ignores_the_sampling_a_model_ships_with():
    model = tiny_model("llama")
    plain = model.generate(TEXTS[:1], max_new_tokens=8, seed=0)
    model.hf_model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=1.9)
    assert model.generate(TEXTS[:1], max_new_tokens=8, seed=0) == plain


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n": 0}, "n = 0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
    ],
)
def test_a_sampling_setting_outside_its_range_is_named(setting, message):
    with pytest.raises(InvalidArgument, match=message):
        tiny_model("llama").generate(["w5"], **setting)


def _save(folder, dtype):
    hf_model = tiny_hf_model("gemma2").to(dtype)
    hf_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return hf_model


def test_a_folder_loads_in_the_dtype_asked_for(tmp_path):
    saved = _save(tmp_path, torch.bfloat16)
    model = load_model(tmp_path)
    assert {parameter.dtype for parameter in model.hf_model.parameters()} == {torch.float32}
    for name, parameter in saved.named_parameters():
        assert torch.equal(model.hf_model.get_parameter(name), parameter.float())
    assert load_model(str(tmp_path), dtype=torch.float16).hf_model.dtype == torch.float16
    assert model.generate(["w5 w9"], max_new_tokens=3)


def test_the_demo_model_is_a_folder_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged_models, "PACK", tmp_path / "pack")
    with pytest.raises(UnknownRelease, match=r"the demo model is not at .*pack.*scripts/build_demo.py"):
        load_model("demo")
    _save(tmp_path / "pack" / "model", torch.float16)
    assert load_model("demo").n_layers == N_LAYERS


def test_a_folder_that_is_not_there_is_an_unknown_release(tmp_path):
    for place in (tmp_path / "nothing", str(tmp_path / "nothing"), "./nothing-here"):
        with pytest.raises(UnknownRelease, match=r"there is no model .*nothing"):
            load_model(place)


def test_a_hub_that_cannot_be_reached_is_said_to_be(monkeypatch):
    def offline(*_):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(pretrained, "reachable", lambda repo, _: repo)
    monkeypatch.setattr(pretrained.AutoConfig, "from_pretrained", offline)
    with pytest.raises(Unreachable, match=r"'someone/model' could not be fetched: We couldn't.*network"):
        load_model("someone/model")


def test_a_hub_that_does_not_answer_is_asked_once_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_file, "getproxies", dict)
    hub_file.hub_answers.cache_clear()
    with pytest.raises(
        Unreachable, match=r"'someone/model' could not be fetched: http://127\.0\.0\.1:9 does not answer"
    ):
        load_model("someone/model")


def test_a_name_the_hub_does_not_have_is_an_unknown_release(monkeypatch):
    def missing(*_):
        cause = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its __init__ wants a response
        raise OSError("someone/model is not a valid model identifier") from cause

    monkeypatch.setattr(pretrained, "reachable", lambda repo, _: repo)
    monkeypatch.setattr(pretrained.AutoConfig, "from_pretrained", missing)
    with pytest.raises(UnknownRelease, match=r"there is no model 'someone/model'.*or 'demo'"):
        load_model("someone/model")


@pytest.mark.parametrize("damage", ["no weights", "torn weights", "no tokenizer", "no config", "no kind"])
def test_a_damaged_folder_is_a_bad_file(tmp_path, damage):
    _save(tmp_path, torch.float32)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "no weights":
        weights.unlink()
    elif damage == "torn weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "no tokenizer":
        for file in tmp_path.glob("*token*"):
            file.unlink()
    elif damage == "no config":
        config.unlink()
    else:
        config.write_text("{}")
    with pytest.raises(BadFile, match=r"does not load as a model: .*It needs config\.json"):
        load_model(tmp_path)


def test_a_model_of_an_unknown_kind_is_refused_before_its_weights_are_read(tmp_path):
    config = OPTConfig(hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UnknownArchitecture, match="'opt'"):
        load_model(tmp_path)


def test_wrapping_a_model_leaves_it_in_evaluation_mode():
    hf_model = tiny_hf_model("gpt2").train()
    assert not LanguageModel(hf_model, tiny_tokenizer()).hf_model.training


class _Former:
    """A configuration of transformers 4: whatever it does not know becomes an attribute that nothing reads."""

    def __init__(self, **told):
        self.__dict__.update({"rope_theta": 10000.0, "rope_scaling": None, "rope_local_base_freq": 10000.0} | told)


def test_rotary_settings_that_the_installed_transformers_would_drop_are_named():
    own = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    other = {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0}}
    by_kind = {"sliding_attention": own["rope_parameters"], "full_attention": other["rope_parameters"]}
    assert pretrained.lost_rope(own, _Former(**own)) == ""
    lost = pretrained.lost_rope(other, _Former(**other))
    assert lost.startswith("rope_theta 500000.0 (rope_parameters, 10000.0 here), rope_type 'llama3'")
    assert "factor 8.0 (rope_parameters, None here)" in lost
    nested = pretrained.lost_rope(
        {"text_config": {"rope_parameters": by_kind}}, _Former(text_config=_Former(rope_parameters=by_kind))
    )
    assert nested.startswith("rope_theta 500000.0 (rope_parameters full_attention, 10000.0 here)")
    assert "sliding" not in nested
    reads_them = int(transformers.__version__.partition(".")[0]) >= 5
    assert (pretrained.lost_rope(other, CONFIGS["llama"]()) == "") is reads_them


def test_a_folder_whose_rotary_settings_would_be_dropped_is_refused(tmp_path, monkeypatch):
    _save(tmp_path, torch.float32)
    monkeypatch.setattr(pretrained, "lost_rope", lambda *_: "rope_theta 500000.0")
    with pytest.raises(UnsupportedFormat, match=r"would run it without rope_theta 500000\.0\. Install"):
        load_model(tmp_path)


def test_a_tokenizer_saved_under_the_name_of_a_later_transformers_loads(tmp_path, monkeypatch):
    _save(tmp_path, torch.float32)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "TokenizersBackend"}))

    def unknown(*_):
        raise ValueError("Tokenizer class TokenizersBackend does not exist or is not currently imported.")

    monkeypatch.setattr(pretrained, "transformers", object())
    monkeypatch.setattr(pretrained.AutoTokenizer, "from_pretrained", unknown)
    assert load_model(tmp_path).tokenizer("w5 w9")["input_ids"] == [1, 5, 9]


# GGUF


@pytest.mark.filterwarnings("ignore")  # gguf's of numpy are its own
def test_a_gguf_file_is_the_model_it_was_made_of(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[gguf]'")
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[gguf]'")
    made = tiny_hf_model("qwen2")
    write_gguf(made, tmp_path / "tiny.F32.gguf")
    model = load_model(tmp_path)  # the only one of its folder
    loaded = model.hf_model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in made.state_dict().items())
    assert model.name == str(tmp_path / "tiny.F32.gguf")
    tokens = model.tokenize(["abc"])
    assert tokens.input_ids[0, -2:].tolist() == [VOCAB - 2, 5]  # "ab", "c"
    again = pickle.loads(pickle.dumps(model))  # noqa: S301  (as a worker gets it: by the path)
    assert again.name == model.name
    assert torch.equal(again.loss(tokens), model.loss(tokens))
    model.hf_model.save_pretrained(tmp_path / "saved")  # no longer refused as quantised
    model.tokenizer.save_pretrained(tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved").loss(tokens), model.loss(tokens))


def test_a_model_of_a_relative_path_has_a_name_that_holds_elsewhere(tmp_path, monkeypatch):
    tiny_hf_model("llama").save_pretrained(tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert load_model("saved").name == str(tmp_path / "saved")


def test_loading_shows_no_bar_and_leaves_bars_as_they_were(tmp_path, capfd):
    tiny_hf_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    capfd.readouterr()
    before = transformers.utils.logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    load_model(tmp_path)
    assert capfd.readouterr().err == ""
    assert (transformers.utils.logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == before


def test_of_several_gguf_files_one_must_be_named(tmp_path):
    for name in ("model.Q4_K_M.gguf", "model.Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UnknownRelease, match=r"holds 2 GGUF files: model.Q4_K_M.gguf, model.Q8_0.gguf"):
        load_model(tmp_path)


def test_a_gguf_file_needs_the_packages_that_convert_it(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_models, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(MissingExtra, match=r"gguf not installed\. In a clone .*`pip install -e '\.\[gguf\]'"):
        load_model(tmp_path / "model.gguf")


def test_a_gguf_file_that_transformers_does_not_convert_is_a_bad_file(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_models, "find_spec", str)
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(BadFile, match=r"does not load as a model through transformers .*Give the model that"):
        load_model(tmp_path / "model.gguf")


def test_a_file_that_is_no_model_is_not_said_to_be_missing(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UnknownRelease, match=r"it is a file, and no \.gguf\..*a \.gguf file"):
        load_model(tmp_path / "model.bin")


def _bare(**settings):
    """A tokenizer with a begin-of-text token that it does not put before a text by itself."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    return LanguageModel(tiny_hf_model("llama"), tokenizer, **settings)


def _trained(begun):
    W = torch.ones(3, D_MODEL)
    d = Dictionary(
        LAST,
        tap=Tap.RES,
        W_enc=W,
        b_enc=W[:, 0],
        W_dec=W,
        b_dec=W[0],
        activation=ReLU(),
        training=TrainingInfo(prepend_bos=begun),
    )
    return {d.site: d}


def test_texts_begin_as_the_tokenizer_begins_them_unless_a_file_or_the_user_says_otherwise():
    bare, own = _bare(), tiny_model("llama")
    assert bare.tokenize(["w5 w9"]).input_ids.tolist() == [[5, 9]]
    assert own.tokenize(["w5 w9"]).input_ids.tolist() == [[1, 5, 9]]
    assert bare.as_trained(_trained(True)).tokenize(["w5 w9"]).input_ids.tolist() == [[1, 5, 9]]
    assert own.as_trained(_trained(False)).tokenize(["w5 w9"]).input_ids.tolist() == [[5, 9]]
    assert own.as_trained(_trained(None)) is own
    assert _bare(prepend_bos=True).as_trained(_trained(False)).prepend_bos is True
    assert bare.prepend_bos is False  # a file changes what it was asked with, not the model it came from
    assert bare.as_trained(_trained(True)).hf_model is bare.hf_model


def test_a_model_that_begins_texts_otherwise_is_another_to_what_is_kept_and_to_a_worker(tmp_path):
    assert model_digest(_bare()) != model_digest(_bare(prepend_bos=True)) == model_digest(tiny_model("llama"))
    _save(tmp_path, torch.float32)
    changed = load_model(tmp_path).as_trained(_trained(False))
    assert pickle.loads(pickle.dumps(changed)).prepend_bos is False  # noqa: S301
