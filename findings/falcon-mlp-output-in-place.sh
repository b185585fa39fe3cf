#!/usr/bin/env bash
# A forward hook is the usual way to read what a part of a model writes into the residual stream: keep what the MLP returns,
# and att + mlp is what the block added.
#
# One would guess: of a Falcon model (parallel blocks, as 7B and 40B have them) a hook on the MLP keeps what the MLP returned.
#
# What happens: the block adds attention's output to the MLP's in place (`mlp_output += attention_output`). A tensor that was
# kept, detached or not, changes after the hook has run, and holds the sum of both parts. Nothing says so. A copy made in the
# hook is right.
#
#     kept: off by 2.7; that is attention's output to 2.2e-07; copied in the hook: off by 0.0e+00
#
# Seen with transformers 5.24.0, torch 2.13.0, Python 3.11. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from transformers import FalconConfig, FalconForCausalLM

torch.manual_seed(0)
config = FalconConfig(vocab_size=48, hidden_size=24, num_hidden_layers=2, num_attention_heads=4)
model = FalconForCausalLM(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
block, kept, copied, written, entry = model.transformer.h[1], [], [], [], []
block.mlp.register_forward_hook(lambda _m, _a, out: kept.append(out.detach()))
block.mlp.register_forward_hook(lambda _m, _a, out: copied.append(out.detach().clone()))
block.self_attention.register_forward_hook(lambda _m, _a, out: written.append(out[0].detach()))
block.mlp.register_forward_pre_hook(lambda _m, args: entry.append(args[0]))
with torch.no_grad():
    model(torch.randint(48, (2, 10)))
    mlp = block.mlp.forward(entry[0])  # without hooks, and nothing is added afterwards
off = float((kept[0] - mlp).abs().max())
rest = float((kept[0] - mlp - written[0]).abs().max())
right = float((copied[0] - mlp).abs().max())
print(f"kept: off by {off:.2g}; that is attention's output to {rest:.1e}; copied in the hook: off by {right:.1e}")
assert off > 0.01 and rest < 1e-5 and right < 1e-5, "the block no longer adds in place"
PY
