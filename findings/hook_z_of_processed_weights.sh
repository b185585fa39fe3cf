#!/usr/bin/env bash
# TransformerLens processes weights by default: it folds LayerNorms, and folds the bias of the values into that of the
# output projection. SAEs on hook_z were trained on such models (gpt2-small-hook-z-kk among them), and are used beside the
# model of transformers, whose z has that bias in it.
#
# One would guess: hook_z of the processed model is z of transformers less b_V, the bias of the values, as the name of the
# option (fold_value_biases) says.
#
# What happens: LayerNorms are folded first, which adds to b_V what W_V makes of the norm's bias, and all of that goes. z less
# b_V alone is off by as much as the norm's bias makes; z less b_V + W_V ln1.b is right to rounding.
#
#     off by b_V alone: 1.57, by b_V + W_V ln1.b: 0.0000
#
# Seen with transformer-lens 2.18.0, transformers 4.57.6, torch 2.13.0, Python 3.11. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformer-lens==2.18.0 transformers==4.57.6 datasets==3.6.0 pyarrow==18.1.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
hf = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=24, n_layer=2, n_head=4, n_positions=32)).eval()
with torch.no_grad():
    for parameter in hf.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.4)
config = HookedTransformerConfig(
    n_layers=2, d_model=24, n_ctx=32, d_head=6, n_heads=4, d_vocab=48, act_fn="gelu_new", normalization_type="LN"
)
lens = HookedTransformer(config)
lens.load_and_process_state_dict(convert_gpt2_weights(hf, config))
tokens = torch.randint(48, (2, 10))
block, held = hf.transformer.h[1], []
hook = block.attn.c_proj.register_forward_pre_hook(lambda _, args: held.append(args[0]))
with torch.no_grad():
    hf(tokens)
    seen = lens.run_with_cache(tokens)[1]["blocks.1.attn.hook_z"].flatten(2)
    b_V = block.attn.c_attn.bias[48:]
    folded = b_V + block.ln_1.bias @ block.attn.c_attn.weight[:, 48:]
hook.remove()
alone, both = (float((held[0] - less - seen).abs().max()) for less in (b_V, folded))
print(f"off by b_V alone: {alone:.2f}, by b_V + W_V ln1.b: {both:.4f}")
assert alone > 0.1 and both < 1e-4, "TransformerLens changed"
PY
