"""Models in GGUF files: every family that transformers converts, written, quantised and read back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gguf_files import FAMILIES, write_gguf
from tiny_models import CONFIGS
from transformers import AutoModelForCausalLM

from saeflow.errors import UnsupportedFormat
from saeflow.sources.model import load_model

pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[gguf]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[gguf]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # gguf's of numpy are its own

IDS = torch.tensor([[1, 5, 9, 12, 7, 30, 41, 8, 19, 3, 22, 6, 6, 17, 40, 2]])


def _made(model_type, **settings):
    """A random model whose matrices divide into blocks of 32."""
    torch.manual_seed(3)
    sizes = {"n_embd": 32} if model_type == "gpt2" else {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
    if model_type == "qwen2":
        del sizes["head_dim"]
    if model_type.startswith("gemma"):
        settings = {"query_pre_attn_scalar": 16, **settings}
    config = type(CONFIGS[model_type]())(**{**CONFIGS[model_type]().to_diff_dict(), **sizes, **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def _logits(hf_model):
    with torch.no_grad():
        return hf_model(input_ids=IDS).logits


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_file_of_plain_weights_is_the_model_it_was_made_of(model_type, tmp_path):
    made = _made(model_type)
    write_gguf(made, tmp_path / "model.gguf")
    loaded = load_model(tmp_path / "model.gguf").hf_model
    torch.testing.assert_close(_logits(loaded), _logits(made), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("blocks", ["Q8_0", "Q4_1"])
def test_a_quantised_file_is_the_model_with_rounded_matrices(model_type, blocks, tmp_path):
    made = _made(model_type)
    write_gguf(made, tmp_path / "model.gguf", blocks)
    loaded = load_model(tmp_path / "model.gguf").hf_model
    read, steps = loaded.state_dict(), {"Q8_0": 127, "Q4_1": 7.5}[blocks]
    for name, value in made.state_dict().items():
        bound = value.abs().max().item() / steps * (0.51 if value.dim() > 1 else 1e-6)
        assert (read[name] - value).abs().max() <= bound + 1e-6, name


@pytest.mark.parametrize(
    ("model_type", "settings", "scaling"),
    [
        ("llama", {"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            "qwen2",
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            {"type": "yarn", "factor": 4.0, "original_context_length": 16},
        ),
    ],
)
def test_scaled_rotary_frequencies_are_not_lost(model_type, settings, scaling, tmp_path):
    plain, scaled = _made(model_type), _made(model_type, rope_scaling={**settings, "rope_theta": 10_000.0})
    write_gguf(scaled, tmp_path / "model.gguf", scaling=scaling)
    loaded = _logits(load_model(tmp_path / "model.gguf").hf_model)
    torch.testing.assert_close(loaded, _logits(scaled), rtol=2e-5, atol=2e-5)
    assert (loaded - _logits(plain)).abs().max() > 1e-3


def test_the_scaling_of_llama_3_is_found_from_its_factors(tmp_path):
    settings = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings |= {"original_max_position_embeddings": 8192, "rope_theta": 10_000.0}
    scaled = _made("llama", rope_scaling=settings)
    base = 10_000.0 ** -(np.arange(0, 16, 2) / 16)
    factors = (base / scaled.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)
    assert factors.max() > 1.1
    write_gguf(scaled, tmp_path / "model.gguf", extra={"rope_freqs.weight": factors})
    torch.testing.assert_close(
        _logits(load_model(tmp_path / "model.gguf").hf_model), _logits(scaled), rtol=2e-5, atol=2e-5
    )
    write_gguf(scaled, tmp_path / "other.gguf", extra={"rope_freqs.weight": factors * 1.5})
    with pytest.raises(UnsupportedFormat, match="not those of Llama 3"):
        load_model(tmp_path / "other.gguf")


def test_a_scaling_that_is_not_known_is_refused(tmp_path):
    write_gguf(_made("llama"), tmp_path / "model.gguf", scaling={"type": "longrope", "factor": 4.0})
    with pytest.raises(UnsupportedFormat, match=r"by 'longrope' \(factor 4.0\), which transformers would leave out"):
        load_model(tmp_path / "model.gguf")


def test_biases_that_the_configuration_leaves_out_are_read(tmp_path):
    made = _made("llama", attention_bias=True, mlp_bias=True)
    write_gguf(made, tmp_path / "model.gguf")
    torch.testing.assert_close(
        _logits(load_model(tmp_path / "model.gguf").hf_model), _logits(made), rtol=2e-5, atol=2e-5
    )


def test_caps_and_the_scale_of_attention_are_those_of_the_file(tmp_path):
    made = _made("gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
    write_gguf(made, tmp_path / "model.gguf")
    torch.testing.assert_close(
        _logits(load_model(tmp_path / "model.gguf").hf_model), _logits(made), rtol=2e-5, atol=2e-5
    )


def test_a_file_with_weights_that_the_model_has_no_place_for_is_refused(tmp_path):
    write_gguf(_made("llama"), tmp_path / "model.gguf", extra={"blk.0.attn_gate.weight": np.ones((4, 4), np.float32)})
    with pytest.raises(UnsupportedFormat, match="some would be left out, or random"):
        load_model(tmp_path / "model.gguf")


def test_sixteen_bits_are_kept_as_they_are(tmp_path):
    made = _made("qwen3")
    write_gguf(made, tmp_path / "model.gguf", "F16")
    loaded = load_model(tmp_path / "model.gguf").hf_model.state_dict()
    for name, value in made.state_dict().items():
        assert torch.equal(loaded[name], value.half().float() if value.dim() > 1 else value), name
    assert math.isfinite(_logits(load_model(tmp_path / "model.gguf").hf_model).sum().item())
