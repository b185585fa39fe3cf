#!/usr/bin/env bash
# circuit-tracer reads sets of transcoders: config.yaml, and a layer_L.safetensors for each layer. A set of TopK
# transcoders says so in config.yaml: `activation: topk`, `k: 8`. The package has a TopK of its own.
#
# One would guess: the set that is loaded keeps k features of each token.
#
# What happens: the released version looks at neither entry. What has no threshold in its file is a ReLU, without a word: of
# 64 features 8 were active as written, and 32 as loaded, and every attribution is of features that are not on. (The
# source on its main branch does read both.)
#
#     active as written 8.00, as loaded 32.21, activation relu
#
# Seen with circuit-tracer 0.5.0, transformers 4.57.3, torch 2.13.0, Python 3.11. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet circuit-tracer==0.5.0
"$folder/venv/bin/python" -W ignore - "$folder" <<'PY'
import sys

import torch
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.utils.hf_utils import load_transcoders

torch.manual_seed(0)
written = SingleLayerTranscoder(16, 64, TopK(8), 0, device=torch.device("cpu"), dtype=torch.float32)
with torch.no_grad():
    for parameter in written.parameters():
        parameter.copy_(torch.randn(parameter.shape))
TranscoderSet({0: written}, "mlp.hook_in", "mlp.hook_out").to_safetensors(sys.argv[1])
config = {  # what config.yaml says, with the file as it lies here
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "mlp.hook_out",
    "activation": "topk",
    "k": 8,
    "transcoders": [f"{sys.argv[1]}/layer_0.safetensors"],
    "scan": "none",
}
loaded = load_transcoders(config, device=torch.device("cpu"))[0]
h = torch.randn(500, 16)
active = [float((t.encode(h) != 0).float().sum(1).mean()) for t in (written, loaded)]
name = getattr(loaded.activation_function, "__name__", type(loaded.activation_function).__name__)
print(f"active as written {active[0]:.2f}, as loaded {active[1]:.2f}, activation {name}")
assert active[0] == 8 and active[1] > 20 and name == "relu", "topk of config.yaml is read now"
PY
