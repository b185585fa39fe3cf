"""Hook names to sites: `blocks.7.hook_resid_post` and `model.layers.7.mlp` to a Site and a Tap.

SAE files name the tensor they were trained on in the words of TransformerLens or of the module tree of
Hugging Face models. A name that is no site of saeflow is refused, never guessed.
"""

from __future__ import annotations

import re

from saeflow.errors import UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.dictionary import Tap

# TransformerLens: what follows `blocks.{L}.`. On Gemma these are after the norm, as added to the stream.
_LENS = {
    "hook_resid_post": (Part.RES, Tap.RES),
    "hook_mlp_out": (Part.MLP, Tap.MLP),
    "hook_attn_out": (Part.ATT, Tap.ATT),
    "attn.hook_z": (Part.ATT, Tap.Z),
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_MODULE = re.compile(r"(?:model\.layers|transformer\.h|gpt_neox\.layers|layers)\.(\d+)(?:\.(.+))?")
_PLAIN = {
    "": (Part.RES, Tap.RES),
    "mlp": (Part.MLP, Tap.MLP),
    "self_attn": (Part.ATT, Tap.ATT),
    "attn": (Part.ATT, Tap.ATT),
    "attention": (Part.ATT, Tap.ATT),
}
# Gemma 2 and 3 have a norm between the module and the stream: the module's own output is no site.
_SANDWICH = {
    "": (Part.RES, Tap.RES),
    "post_feedforward_layernorm": (Part.MLP, Tap.MLP),
    "post_attention_layernorm": (Part.ATT, Tap.ATT),
}
_OUTPUT_PROJECTIONS = ("self_attn.o_proj", "attn.c_proj", "attention.dense")


def site_of_hook(hook: str, model: str, where: str) -> tuple[Site, Tap]:
    """The site and tap a hook name means in `model`; `where` is the file, for the message.

    `hook_resid_pre` of layer L is the residual stream after layer L - 1, and read as that.

    Raises:
        UnsupportedFormat: when the name is no site.
    """
    found = _BLOCK.fullmatch(hook)
    if found is not None:
        layer, name = int(found[1]), found[2]
        if name == "hook_resid_pre" and layer > 0:
            return Site(layer - 1, Part.RES), Tap.RES
        if name in _LENS:
            part, tap = _LENS[name]
            return Site(layer, part), tap
    found = _MODULE.fullmatch(hook)
    if found is not None:
        place = _place(found[2] or "", sandwich="gemma-2" in model.lower() or "gemma-3" in model.lower())
        if place is not None:
            return Site(int(found[1]), place[0]), place[1]
    raise UnsupportedFormat(
        f"{where}: hook {hook!r} of model {model!r} is no site of saeflow. Sites are the residual stream "
        "after a block, what attention and the MLP add to it, and the input of attention's output "
        f"projection: blocks.L.{', blocks.L.'.join(_LENS)}, or the same as modules. Pass site=... if the "
        "file is one of these."
    )


def _place(name: str, *, sandwich: bool) -> tuple[Part, Tap] | None:
    if name.removesuffix(".input") in _OUTPUT_PROJECTIONS and name.endswith(".input"):
        return Part.ATT, Tap.Z
    name = "" if name == "output" else name.removesuffix(".output")
    return (_SANDWICH if sandwich else _PLAIN).get(name)
