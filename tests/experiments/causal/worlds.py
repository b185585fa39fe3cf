"""Tiny models of every family and random dictionaries on them whose features do fire."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from unittest.mock import patch

import torch

from saeflow.experiments.causal import Trial
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Rescale
from saeflow.sources.activations import BatchTopK, JumpReLU, ReLU, TopK
from saeflow.sources.architectures import Point, Tap
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing

from ...sources.tiny_models import CONFIGS, N_LAYERS, tiny_model

N_FEATURES = 24
TEXT = "w5 w9 w12 w7 w30 w41 w8 w19 w3 w22 w14 w27"
"""Longer than the sliding windows."""

VARIANTS = {name: (name, {}) for name in CONFIGS} | {
    "mistral sliding": ("mistral", {"sliding_window": 4}),
    "mistral sliding eager": ("mistral", {"sliding_window": 4, "_attn_implementation": "eager"}),
    "qwen2 some sliding": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "gemma2 hard caps": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gpt_neox serial": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon serial": ("falcon", {"parallel_attn": False, "multi_query": False}),
    "falcon with two norms": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt2 eager": ("gpt2", {"_attn_implementation": "eager"}),
    "gpt2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "_attn_implementation": "eager"}),
    "llama eager": ("llama", {"_attn_implementation": "eager"}),
}
"""Every mapped family, and what its configuration can change in attention."""


def language_model(variant):
    base, changes = VARIANTS[variant]
    config = CONFIGS[base]()
    for name, value in changes.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    with patch.dict(CONFIGS, {base: lambda: config}):
        return tiny_model(base)


@dataclass(frozen=True)
class Kind:
    """How the dictionaries of a world are made."""

    activation: str = "jumprelu"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    z: bool = False


KINDS = {
    "relu": Kind("relu"),
    "jumprelu": Kind(),
    "topk": Kind("topk"),
    "batchtopk": Kind("batchtopk"),
    "batchtopk, one threshold a feature": Kind("batchtopk each"),
    "z": Kind(z=True),
    "z, topk": Kind("topk", z=True),
    "layer norm": Kind(preprocessing=Preprocessing(subtract_b_dec=True, norm=Norm.LAYER_NORM)),
    "rescale": Kind("topk", preprocessing=Preprocessing(norm=Norm.RESCALE)),
    "centred": Kind("relu", preprocessing=Preprocessing(subtract_b_dec=True, center=True)),
}


def dictionaries_on(model, tokens, kind=Kind(), seed=0):
    """A dictionary at every site; about a third of its features fire at a token."""
    made = {}
    for layer, part in product(range(N_LAYERS), Part):
        site = Site(layer, part)
        tap = Tap.Z if kind.z and part is Part.ATT else Tap.of(part)
        h = model.capture(tokens, [Point(layer, tap)])[Point(layer, tap)][0]
        made[site] = _dictionary(site, tap, h, kind, seed)
    return made


def _dictionary(site, tap, h, kind, seed):
    make = torch.Generator().manual_seed(1000 * seed + 10 * site.layer + site.part.rank)
    draw = lambda *shape: torch.randn(*shape, generator=make)  # noqa: E731
    d_in = h.shape[1]
    tensors = {
        "W_enc": draw(N_FEATURES, d_in),
        "b_enc": 0.1 * draw(N_FEATURES),
        "W_dec": draw(N_FEATURES, d_in) / d_in**0.5,
        "b_dec": 0.1 * draw(d_in),
    }
    common = {"tap": tap, "preprocessing": kind.preprocessing, **tensors}
    pre = Dictionary(site, activation=ReLU(), **common).encode(h)
    each = pre.quantile(0.65, dim=0)
    activation = {
        "relu": ReLU(),
        "jumprelu": JumpReLU(each),
        "topk": TopK(7),
        "batchtopk": BatchTopK(pre.quantile(0.65)),
        "batchtopk each": BatchTopK(each),
    }[kind.activation]
    return Dictionary(site, activation=activation, **common)


def active_features(model, dictionaries, tokens, site, position):
    """The features of a site that fire at a token, by a pass of its own."""
    point = Point(site.layer, dictionaries[site].tap)
    acts = dictionaries[site].encode(model.capture(tokens, [point])[point][0, position])
    return [FeatureId(site, int(index)) for index in acts.nonzero().flatten()]


def trials_at(model, dictionaries, tokens, layer, position, rescalings=(-1.0, 0.0, 0.5, 1.0, 2.0)):
    """Edits of every combination of sites, loud and silent features, every r; everything is watched."""
    sites = [Site(layer - 1, Part.RES)] if layer else []
    sites += [Site(layer, Part.ATT), Site(layer, Part.MLP)]
    loud = {site: active_features(model, dictionaries, tokens, site, position) for site in sites}
    silent = {site: [f for i in range(N_FEATURES) if (f := FeatureId(site, i)) not in loud[site]] for site in sites}
    watch = tuple(
        FeatureId(site, index) for site in [*sites, Site(layer, Part.RES)] for index in range(0, N_FEATURES, 2)
    )
    trials = [Trial(layer, position, (), watch)]
    for n, chosen in enumerate(product([False, True], repeat=len(sites))):
        some = [site for site, take in zip(sites, chosen, strict=True) if take]
        for i, r in enumerate(rescalings):
            edits = []
            for site in some:
                features = loud[site][(i + n) % 2 :][: i + 1] + silent[site][:1]
                edits.append(Rescale(tuple(features), r))
            trials.append(Trial(layer, position, tuple(edits[::-1] if n % 2 else edits), watch))
    trials.append(Trial(layer, position, (Rescale(tuple(silent[sites[0]][:3])),), watch))
    return trials
