#!/usr/bin/env bash
# torch: the loss of a language model taken as the documentation's shape asks for it is too low, and by more the larger
# the vocabulary.
#
# `cross_entropy` wants the classes on axis 1, so the loss of logits [batch, pos, vocab] without a reduction is written
# cross_entropy(logits.transpose(1, 2), ids). One would guess: the same numbers as over logits.flatten(0, 1), up to the
# last bits of float32. But along a strided axis log_softmax adds the vocabulary up one by one in float32, and small
# terms are lost in a large sum: the loss is too low for every token, so that a mean over many tokens does not help.
# torch.logsumexp adds in pairs and is right either way.
#
# Seen with torch 2.13.0 on a CPU, against float64, logits normal with standard deviation 3:
#   49,152 tokens    transposed -4.8e-05 nats on average    flattened 2e-06 at most    logsumexp 1e-06 at most
#   262,144 tokens   transposed -4.1e-04 nats on average    flattened 4e-05 at most    logsumexp 1e-06 at most
# The difference matters where losses are compared to the third digit: loss recovered, the effect of an edit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch.nn.functional import cross_entropy

draw = torch.Generator().manual_seed(0)
print("torch", torch.__version__)
for vocabulary, least in ((49_152, 2e-5), (262_144, 2e-4)):
    logits = 3 * torch.randn(1, 24, vocabulary, generator=draw)
    ids = torch.randint(vocabulary, (1, 24), generator=draw)
    exact = cross_entropy(logits[0].double(), ids[0], reduction="none")
    chosen = logits[0].gather(1, ids[0][:, None])
    off = {
        "transposed": cross_entropy(logits.transpose(1, 2), ids, reduction="none")[0].double() - exact,
        "flattened": cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").double() - exact,
        "logsumexp": torch.logsumexp(logits[0] - chosen, dim=1).double() - exact,
    }
    for name, error in off.items():
        print(f"{vocabulary:>7} {name:<10} mean {error.mean():+.1e}  largest {error.abs().max():.1e}")
    assert off["transposed"].mean() < -least, "the transposed loss is no longer too low"
    assert off["logsumexp"].abs().max() < 1e-5
PYTHON
