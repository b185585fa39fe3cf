#!/usr/bin/env bash
# TransformerLens 3 and 4: of two names for what an MLP writes, one lies before the norm and one after it.
#
# One would guess that `blocks.L.mlp.hook_out` and `blocks.L.hook_mlp_out` name one tensor, the native name and its
# alias, and that an SAE trained at one may be read at the other. So it is on GPT-2, Llama, Mistral, Qwen and Pythia.
# On Gemma 2 (and 3), whose MLP and attention are followed by a norm, `mlp.hook_out` is what the module returns, and
# `hook_mlp_out` is what that norm makes of it and the stream receives; the same holds of `attn.hook_out` and
# `hook_attn_out`. A file that names only its hook therefore means another tensor from family to family.
#
# Seen with transformer-lens 4.3.0 (3.9.0 alike), transformers 5.24.0, torch 2.13.0, a random model of two layers:
#   llama   blocks.1.mlp.hook_out  = hook_mlp_out: True    blocks.1.attn.hook_out = hook_attn_out: True
#   gemma2  blocks.1.mlp.hook_out  = hook_mlp_out: False   blocks.1.attn.hook_out = hook_attn_out: False
#   gemma2  ln2_post.hook_in = mlp.hook_out, ln2_post.hook_out = hook_mlp_out: True
# Fails when one of these lines changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformer-lens==4.3.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work" <<'PY' 2>/dev/null
import sys

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, LlamaConfig, PreTrainedTokenizerFast
from transformer_lens.model_bridge import TransformerBridge

folder = f"{sys.argv[1]}/tokenizer"
words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2}, unk_token="<s>"))
PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<s>", pad_token="<s>").save_pretrained(folder)
sizes = dict(vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=4, attn_implementation="eager")
names = {"llama": "meta-llama/Llama-2-7b-hf", "gemma2": "google/gemma-2-2b"}
expected = {"llama": (True, True), "gemma2": (False, False)}
for kind, config in {"llama": LlamaConfig(**sizes), "gemma2": Gemma2Config(**sizes)}.items():
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).eval()
    hf.config.architectures = [type(hf).__name__]
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    bridge = TransformerBridge.boot_transformers(
        names[kind], hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu"
    )
    _, held = bridge.run_with_cache(torch.tensor([[0, 1, 2, 1, 2]]))
    at = {name.removeprefix("blocks.1."): value for name, value in held.items() if name.startswith("blocks.1.")}
    same = tuple(torch.allclose(at[f"{part}.hook_out"], at[f"hook_{part}_out"], atol=1e-6) for part in ("mlp", "attn"))
    print(f"{kind}: mlp.hook_out = hook_mlp_out: {same[0]}; attn.hook_out = hook_attn_out: {same[1]}")
    assert same == expected[kind], same
    if kind == "gemma2":
        norm = torch.allclose(at["ln2_post.hook_in"], at["mlp.hook_out"], atol=1e-6)
        norm = norm and torch.allclose(at["ln2_post.hook_out"], at["hook_mlp_out"], atol=1e-6)
        print(f"gemma2: ln2_post leads from mlp.hook_out to hook_mlp_out: {norm}")
        assert norm
PY
