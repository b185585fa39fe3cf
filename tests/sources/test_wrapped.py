"""A model that another library wrapped is taken by the model inside; what acts outside of it is refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tiny_models import D_MODEL, N_LAYERS, TEXTS, tiny_hf_model, tiny_model, tiny_tokenizer
from torch import nn

from saeflow.errors import InvalidArgument
from saeflow.ids import Part, Site
from saeflow.sources.architectures import Tap
from saeflow.sources.model import LanguageModel

EVERY_PLACE = [(layer, tap) for layer in range(N_LAYERS) for tap in (Tap.RES, Tap.ATT, Tap.MLP, Tap.Z)]


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def reads_what_it_runs(model):
    """Block sums hold, the stream is what the model reports, and z is projected to what attention writes."""
    tokens = model.tokenize(TEXTS[:1])
    held = model.capture(tokens, EVERY_PLACE, inputs=range(N_LAYERS), logits=True)
    with torch.no_grad():
        out = model.hf_model(input_ids=tokens.input_ids, output_hidden_states=True)
    torch.testing.assert_close(held.logits, out.logits, atol=1e-5, rtol=1e-5)
    for layer in range(N_LAYERS):
        parts = held[layer, Tap.ATT] + held[layer, Tap.MLP]
        torch.testing.assert_close(held.inputs[layer] + parts, held[layer, Tap.RES], atol=1e-4, rtol=1e-4)
        if layer:
            assert torch.equal(held.inputs[layer], out.hidden_states[layer])
        W_O, gain = model.attention_writer(layer)
        assert gain is None
        z = held[layer, Tap.Z][:, 1:] - held[layer, Tap.Z][:, :1]  # differences: without the bias
        written = held[layer, Tap.ATT][:, 1:] - held[layer, Tap.ATT][:, :1]
        torch.testing.assert_close(z @ W_O.to(z).T, written, atol=1e-4, rtol=1e-4)
    return held


def test_what_is_no_model_of_transformers_is_said_to_be_none():
    with pytest.raises(InvalidArgument, match="a Linear is no model of transformers"):
        LanguageModel(nn.Linear(2, 2), tiny_tokenizer())
    with pytest.raises(InvalidArgument, match="a LlamaForCausalLM comes without a tokenizer"):
        LanguageModel(tiny_hf_model("llama"))


@needs("peft")
@pytest.mark.filterwarnings("ignore")
def test_adapters_of_layers_act_and_those_before_the_model_are_refused():
    import peft

    plain = tiny_model("llama")
    config = peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj", "q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_hf_model("llama"), config)
    model = LanguageModel(adapted, tiny_tokenizer())
    held = reads_what_it_runs(model)
    with torch.no_grad():
        whole = adapted(input_ids=model.tokenize(TEXTS[:1]).input_ids).logits
    assert torch.equal(held.logits, whole)
    assert not torch.allclose(held.logits, plain.capture(plain.tokenize(TEXTS[:1]), [], logits=True).logits, atol=0.1)
    with adapted.disable_adapter():
        off = model.capture(model.tokenize(TEXTS[:1]), [], logits=True).logits
        assert torch.equal(model.attention_writer(0)[0], plain.attention_writer(0)[0])
    assert torch.equal(off, plain.capture(plain.tokenize(TEXTS[:1]), [], logits=True).logits)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(InvalidArgument, match="PROMPT_TUNING acts before the model"):
        LanguageModel(peft.get_peft_model(tiny_hf_model("llama"), prompts), tiny_tokenizer())


@needs("accelerate")
@pytest.mark.parametrize("kind", ["cpu_offload", "disk_offload"])
def test_an_offloaded_model_is_read_where_its_weights_are_taken_to(kind, tmp_path):
    import accelerate

    plain = tiny_model("llama")
    options = {"offload_dir": str(tmp_path)} if kind == "disk_offload" else {}
    hf_model = getattr(accelerate, kind)(tiny_hf_model("llama"), execution_device="cpu", **options)
    assert any(parameter.is_meta for parameter in hf_model.parameters())
    model = LanguageModel(hf_model, tiny_tokenizer())
    held, known = reads_what_it_runs(model), reads_what_it_runs(plain)
    assert all(torch.equal(held[place], known[place]) for place in EVERY_PLACE)
    rows = torch.randn(2, D_MODEL)
    torch.testing.assert_close(model.unembed(rows), plain.unembed(rows), atol=1e-5, rtol=1e-5)


@needs("nnsight")
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_nnsight_is_the_one_it_runs():
    import nnsight

    wrapper = nnsight.LanguageModel(tiny_hf_model("llama"), tokenizer=tiny_tokenizer())
    model = LanguageModel(wrapper)
    held, plain = reads_what_it_runs(model), reads_what_it_runs(tiny_model("llama"))
    assert all(torch.equal(held[place], plain[place]) for place in EVERY_PLACE)


@needs("transformer_lens")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_bridge_of_transformer_lens_is_the_model_it_runs(family, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    plain = tiny_model(family)
    plain.hf_model.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    model = LanguageModel(bridge)
    held, known = reads_what_it_runs(model), reads_what_it_runs(plain)
    for place in EVERY_PLACE:
        torch.testing.assert_close(held[place], known[place], atol=1e-4, rtol=1e-4)
    with model.intervening({Site(1, Part.RES): torch.zeros_like}):
        seen = bridge.run_with_cache(model.tokenize(TEXTS[:1]).input_ids)[1]["blocks.2.hook_in"]
    assert not seen.any()
    bridge.enable_compatibility_mode()
    with pytest.raises(InvalidArgument, match="TransformerLens processed computes other hidden states"):
        LanguageModel(bridge)


@needs("bitsandbytes")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [{"load_in_8bit": True}, {"load_in_4bit": True}])
def test_a_quantised_model_is_read_as_it_computes(bits, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_hf_model("llama").save_pretrained(tmp_path)
    hf_model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**bits), device_map="cpu", dtype=torch.float32
    )
    model = LanguageModel(hf_model, tiny_tokenizer())
    assert not model.block(1).self_attn.o_proj.weight.is_floating_point()
    tokens, site = model.tokenize(TEXTS[:1]), Site(1, Part.ATT)
    held = model.capture(tokens, [site, (1, Tap.Z), (1, Tap.MLP), (1, Tap.RES)], inputs=[1])
    torch.testing.assert_close(held.inputs[1] + held[site] + held[1, Tap.MLP], held[1, Tap.RES], atol=1e-3, rtol=1e-3)
    W_O, _ = model.attention_writer(1)
    written = torch.nn.functional.cosine_similarity((held[1, Tap.Z] @ W_O.to(held[site]).T)[0], held[site][0], dim=-1)
    assert written.min() > 0.99
