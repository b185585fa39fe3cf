#!/usr/bin/env bash
# Llamascopium (OpenMOSS's library, before it lm-saes) trains SAEs on hidden states brought to an average norm of
# sqrt(d_model), and can fold that scale into the weights: `standardize_parameters_of_dataset_norm`, or
# `fold_activation_scale=True` of `from_pretrained` and `save_pretrained`.
#
# One would guess: the folded SAE is the same function of raw hidden states, as its documentation says ("the
# reconstructed activations keep the same"): the same features are active, and the reconstruction is equal.
#
# What happens: so it is with relu and topk. With jumprelu, W_D and the biases are scaled and the thresholds are not, and
# the folded encoder compares smaller pre-activations with them where norms are below sqrt(d_model), larger ones where they are
# above. Other features are active, and the reconstruction is another. Here, average norm 7 and d_model 16:
#
#     relu      active 30.99 -> 30.99   reconstruction off by 0.000
#     topk      active  8.00 ->  8.00   reconstruction off by 0.000
#     jumprelu  active 15.15 -> 21.66   reconstruction off by 0.274
#
# Whoever reads a folded file cannot tell from it what the thresholds were trained against. Seen with llamascopium 2.0.0b34,
# torch 2.13.0, Python 3.11. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet llamascopium==2.0.0b34 "transformer-lens<4"
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

hook = "blocks.0.hook_resid_post"
torch.manual_seed(0)
h = 7 * torch.nn.functional.normalize(torch.randn(2000, 16), dim=1)
off = {}
for function in ("relu", "topk", "jumprelu"):
    sae = SparseAutoEncoder(
        SAEConfig(
            hook_point_in=hook, hook_point_out=hook, d_model=16, expansion_factor=4, act_fn=function, top_k=8
        )
    )
    with torch.no_grad():
        for _, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    sae.set_dataset_average_activation_norm({hook: 7.0})
    scaled, scale = sae.normalize_activations({hook: h}, return_scale_factor=True)
    acts = sae.encode(scaled[hook])
    out = sae.decode(acts) / scale[hook]
    sae.standardize_parameters_of_dataset_norm()
    folded = sae.encode(sae.normalize_activations({hook: h})[hook])
    off[function] = float((out - sae.decode(folded)).norm() / out.norm())
    active = [float((a > 0).float().sum(1).mean()) for a in (acts, folded)]
    print(f"{function:9} active {active[0]:5.2f} -> {active[1]:5.2f}   reconstruction off by {off[function]:.3f}")
assert off["relu"] < 1e-5 and off["topk"] < 1e-5, off
assert off["jumprelu"] > 0.1, "the thresholds are folded too now"
PY
