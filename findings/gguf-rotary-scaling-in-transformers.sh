#!/usr/bin/env bash
# A GGUF file says how the rotary frequencies of its model are scaled: by the keys llama.rope.scaling.*, or, since Llama 3.1, by
# a tensor rope_freqs.weight with one factor per frequency. transformers reads GGUF files (gguf_file=...).
#
# One would guess: the model it makes turns queries and keys as the file says, or refuses what it cannot do.
#
# What happens: both are left out and nothing is said; the model has rope_type "default". Its weights are right, and what it
# computes is not: the same model, saved by save_pretrained and read back, differs from the one read from the GGUF file.
# Biases of a Llama's attention, which its configuration has to ask for, are left out in the same way.
#
#     read from GGUF: rope_type default, no biases; logits differ by 4.3 of 3.9 (keys), 4.3 of 3.9 (tensor), 3.8 of 3.9 (biases)
#
# Seen with transformers 5.24.0, gguf 0.19.0, torch 2.13.0, Python 3.11. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - "$folder" <<'PY' 2>"$folder/progress" || { cat "$folder/progress" >&2; exit 1; }
import sys

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=4, head_dim=8, max_position_embeddings=64)
IDS = torch.arange(3, 51)[None]


def model(**settings):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, **settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made


def written(made, path, keys, factors=None):
    """As llama.cpp's converter writes it: query and key rows with the two rotary halves interleaved."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(made.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(64)
    for key, value in keys.items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(f"llama.rope.scaling.{key}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, value in made.named_parameters():
        module, _, suffix = name.rpartition(".")
        value = value.detach()
        if module.endswith(("q_proj", "k_proj")):
            value = value.reshape(4, 2, 4, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(f"{names.get_name(module)}.{suffix}", value.contiguous().numpy())
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def difference(made, name, keys, factors=None):
    written(made, f"{sys.argv[1]}/{name}.gguf", keys, factors)
    settings = {"quantization_config": GgufConfig(dequantize=True)}
    read = AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file=f"{name}.gguf", dtype=torch.float32, **settings)
    made.save_pretrained(f"{sys.argv[1]}/{name}")
    saved = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{name}", dtype=torch.float32)
    with torch.no_grad():
        expected, plain, found = (one.eval()(input_ids=IDS).logits for one in (made, saved, read))
    assert torch.equal(expected, plain)
    weights = all(torch.allclose(read.state_dict()[k], v) for k, v in made.state_dict().items() if k in read.state_dict())
    assert weights and read.config.rope_parameters["rope_type"] == "default", "the scaling is read now"
    return (found - expected).abs().max().item(), expected.abs().max().item()


linear = model(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
by_keys = difference(linear, "keys", {"type": "linear", "factor": 4.0})
by_tensor = difference(linear, "tensor", {}, np.full(4, 4.0, np.float32))
by_biases = difference(model(attention_bias=True), "biases", {})
sizes = [f"{gap:.1f} of {largest:.1f} ({what})" for (gap, largest), what in
         ((by_keys, "keys"), (by_tensor, "tensor"), (by_biases, "biases"))]
print(f"read from GGUF: rope_type default, no biases; logits differ by {', '.join(sizes)}")
assert all(gap > 0.1 for gap, _ in (by_keys, by_tensor, by_biases))
PY
