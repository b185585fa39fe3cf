"""A user's site map, for a model whose family is not in `architectures`; checked on one text.

    sf.load_model("my-model", sites={
        "res": "model.layers",              the list of blocks
        "att": "self_attn",                 the module whose output is added to the residual stream for attention
        "mlp": "mlp",                       the same for the MLP
        "mlp_in": "post_attention_layernorm",    the norm before the MLP; left out if there is none
        "z": "self_attn.o_proj",            attention's output projection, for dictionaries on z
        "norm": "model.norm",               the final norm, for the logit lens
    })

`res` and `norm` are paths from the model, the others are paths within a block. Where a norm stands between a part and
the stream, `att` or `mlp` names that norm. With the map, pre + att + mlp = post must hold in every block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from saeflow.errors import InvalidArgument
from saeflow.sources.architectures import Architecture, Tap
from saeflow.sources.captured import Captured
from saeflow.sources.modules import is_centred

SiteMap: TypeAlias = Mapping[str, str] | Architecture
"""Module paths by site, as above; or an `Architecture`, which is taken as it is."""
TEXT: Final = "The quick brown fox jumps over the lazy dog, and a map of sites is checked on this text."
_NEEDED: Final = ("res", "att", "mlp")
_KEYS: Final = (*_NEEDED, "mlp_in", "z", "norm")
_ROUNDINGS: Final = 16


def mapped(hf_model: PreTrainedModel, sites: SiteMap) -> Architecture:
    """The module paths that a site map names; `checked` then tells whether they are right.

    Raises:
        InvalidArgument: for an unknown or missing key, or a path that leads to no module.
    """
    if isinstance(sites, Architecture):
        return sites

    # 1. check the keys, and that each path exists
    if set(sites) - set(_KEYS) or not set(_NEEDED) <= set(sites):
        raise InvalidArgument(
            f"sites has the keys {', '.join(sorted(sites)) or 'none'}. It needs res, att and mlp, and may have mlp_in, "
            "z and norm: paths of modules, res and norm from the model, the others within a block."
        )
    blocks = _module(hf_model, sites["res"], "res")
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise InvalidArgument(f"sites: res is {sites['res']!r}, a {type(blocks).__name__}; it is the list of blocks.")
    for key in ("att", "mlp", "mlp_in", "z"):
        if key in sites:
            _module(blocks[0], sites[key], key)

    # 2. make the paths of blocks and final norm relative to the trunk, the model without its head, if all are in it
    trunk = str(hf_model.base_model_prefix)
    inside = (
        f"{trunk}." if trunk and all(sites[k].startswith(f"{trunk}.") for k in ("res", "norm") if k in sites) else ""
    )
    z, att = sites.get("z"), sites["att"]
    apart = z is not None and not f"{z}.".startswith(f"{att}.")
    norm = sites.get("norm")
    return Architecture(
        f"{hf_model.config.model_type} (mapped)",
        trunk=trunk if inside else "",
        blocks=sites["res"].removeprefix(inside),
        final_norm=None if norm is None else norm.removeprefix(inside),
        att=att,
        mlp=sites["mlp"],
        first_norm=None,
        mlp_norm=sites.get("mlp_in"),
        o_proj=z,
        att_norm=att if apart else None,
        centred=norm is not None and is_centred(_module(hf_model, norm, "norm"), hf_model),
        v_proj=None,
    )


def checked(architecture: Architecture, n_layers: int, capture: Callable[..., Captured]) -> Architecture:
    """The paths from `mapped`, checked in one pass, which also shows whether the MLP reads the block's input.

    Args:
        architecture: from `mapped`.
        n_layers: the number of blocks.
        capture: reads points and block inputs of one text, as `LanguageModel.capture` does.

    Raises:
        InvalidArgument: where pre + att + mlp is not the stream after the block, where the MLP reads neither the
            block's input nor the stream after attention, or where layers differ in which of the two it reads.
    """
    taps = (Tap.ATT, Tap.MLP, Tap.RES, Tap.MID)
    held = capture([(layer, tap) for layer in range(n_layers) for tap in taps], inputs=range(n_layers))
    parallel: set[bool] = set()
    for layer in range(n_layers):
        pre = held.inputs[layer]
        att, mlp, post, mid = (held[layer, tap].to(pre.device) for tap in taps)
        off = _off(pre + att + mlp, post)
        if off > 1:
            raise InvalidArgument(
                f"sites: in layer {layer} what att ({architecture.att}) and mlp ({architecture.mlp}) return does not "
                f"add up with the block's input to its output: off by {off:.3g} times what rounding explains. Where a "
                "norm stands between a part and the stream, name that norm."
            )
        serial, beside = _off(mid, pre + att) <= 1, _off(mid, pre) <= 1
        if not serial and not beside:
            raise InvalidArgument(
                f"sites: in layer {layer} {architecture.mlp_norm or architecture.mlp} reads neither the block's input "
                "nor the stream after attention. Name the norm before the MLP as mlp_in."
            )
        parallel.add(not serial)
    if len(parallel) > 1:
        raise InvalidArgument("sites: the MLP reads the block's input in some layers alone, which no map can say.")
    return replace(architecture, parallel=parallel.pop())


def _off(found: Float[Tensor, "*batch d"], expected: Float[Tensor, "*batch d"]) -> float:
    """The largest difference at any token, in units of what rounding explains there."""
    unit = _ROUNDINGS * torch.finfo(expected.dtype).eps * expected.abs().amax(dim=-1).clamp(min=1e-6)
    return float(((found - expected).abs().amax(dim=-1) / unit).max())


def _module(root: nn.Module, path: str, key: str) -> nn.Module:
    module, names = root, path.split(".")
    for i, name in enumerate(names):
        inside = dict(module.named_children())
        if name not in inside:
            where = ".".join(names[:i]) or type(root).__name__
            raise InvalidArgument(
                f"sites: {key} is {path!r}, and {where} has no module {name!r}. It has {', '.join(inside) or 'none'}."
            )
        module = inside[name]
    return module
