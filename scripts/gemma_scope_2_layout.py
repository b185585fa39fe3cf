"""Write dictionaries that `saeflow train` made for a Gemma 3 model in the repository layout of Gemma Scope 2.

    saeflow models get gemma-3-270m
    saeflow train gemma-3-270m --sites res,mlp,z --layers 4-9 --width 2560 --out saes --texts ...
    python scripts/gemma_scope_2_layout.py saes gemma-scope-2-ours
    saeflow reproduce gemma-3-270m --release gemma-scope-2-ours --model gemma-3-270m

Gemma Scope 2 itself is on a hub; folders in its exact layout let the code that reads it run on real activations.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

import saeflow as sf
from saeflow.sources.activations import JumpReLU
from saeflow.sources.dictionary import PLAIN, Tap
from saeflow.sources.library import load_dictionaries

KINDS = {
    Tap.RES: ("resid_post_all", "model.layers.{}.output"),
    Tap.MLP: ("mlp_out_all", "model.layers.{}.post_feedforward_layernorm.output"),
    Tap.Z: ("attn_out_all", "model.layers.{}.self_attn.o_proj.input"),
}
"""For each tap, the folder of its dictionaries and the name of the tensor in config.json."""


def main() -> None:
    """Write each dictionary of the first folder to the second."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    for site, dictionary in load_dictionaries(sys.argv[1]).items():
        write(dictionary, Path(sys.argv[2]))
        print(site)


def write(dictionary: sf.Dictionary, out: Path) -> None:
    """Write one folder: config.json, and params.safetensors with lower-case names and the encoder [d_in n_features]."""
    activation = dictionary.activation
    if not isinstance(activation, JumpReLU) or dictionary.preprocessing != PLAIN:
        raise SystemExit(f"{dictionary.site} is no plain JumpReLU dictionary: Gemma Scope 2 has no others.")
    kind, hook = KINDS[dictionary.tap]
    layer, width = dictionary.site.layer, round(dictionary.n_features / 1024)
    folder = out / kind / f"layer_{layer}_width_{width}k_l0_small"
    folder.mkdir(parents=True)
    config = {
        "hf_hook_point_in": hook.format(layer),
        "hf_hook_point_out": None,
        "width": dictionary.n_features,
        "model_name": "google/gemma-3-270m",
        "architecture": "jump_relu",
        "type": "sae",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    tensors = {
        "w_enc": dictionary.W_enc.T,
        "w_dec": dictionary.W_dec,
        "b_enc": dictionary.b_enc,
        "b_dec": dictionary.b_dec,
        "threshold": activation.threshold,
    }
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, folder / "params.safetensors")


if __name__ == "__main__":
    main()
