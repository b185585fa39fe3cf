"""Hook names to sites: `blocks.7.hook_resid_post` and `model.layers.7.mlp` to a Site and a Tap.

SAE files name the tensor they were trained on in the words of TransformerLens or of the module tree of
Hugging Face models; transcoders name two, one read and one written. A name that is no site of saeflow is
refused, never guessed.
"""

from __future__ import annotations

import re

from saeflow.errors import UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.architectures import Tap, View
from saeflow.sources.dictionary import Norm

# TransformerLens: what follows `blocks.{L}.`. On Gemma these are after the norm, as added to the stream.
_LENS = {
    "hook_resid_post": (Part.RES, Tap.RES),
    "hook_mlp_out": (Part.MLP, Tap.MLP),
    "hook_attn_out": (Part.ATT, Tap.ATT),
    "attn.hook_z": (Part.ATT, Tap.Z),
    "ln1_post.hook_out": (Part.ATT, Tap.ATT),
    "ln2_post.hook_out": (Part.MLP, Tap.MLP),
}
# Its versions 3 and 4 name what a module is given or returns, as the names of modules do: on Gemma `mlp.hook_out` is
# before the norm that `hook_mlp_out` is after. Checked against 3.9.0 and 4.3.0.
_LENS_MODULES = {
    "hook_out": "",
    "mlp.hook_out": ".mlp",
    "attn.hook_out": ".self_attn",
    "attn.o.hook_out": ".self_attn",
    "attn.o.hook_in": ".self_attn.o_proj.input",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_MODULE = re.compile(
    r"(?:model\.layers|model\.language_model\.layers|language_model\.model\.layers|transformer\.h|gpt_neox\.layers|layers|h)"
    r"\.(\d+)(?:\.(.+))?"
)
# A module as files name it: its part, and what its output is. In some families (Gemma 2 and 3, OLMo 2, GLM 4) a
# norm follows `mlp` and `self_attn`; `post_attention_layernorm` is that norm there, elsewhere the one before the MLP.
_PARTS = {
    "": (Part.RES, View.OWN),
    "mlp": (Part.MLP, View.MODULE),
    "self_attn": (Part.ATT, View.MODULE),
    "attn": (Part.ATT, View.OWN),
    "attention": (Part.ATT, View.OWN),
    "self_attention": (Part.ATT, View.OWN),
    "feed_forward": (Part.MLP, View.MODULE),
    "post_self_attn_layernorm": (Part.ATT, View.OWN),
    "post_mlp_layernorm": (Part.MLP, View.OWN),
    "post_feedforward_layernorm": (Part.MLP, View.OWN),
    "post_attention_layernorm": (Part.ATT, View.NORM),
}
_NO_NORM_AFTER = ("transformer.h.", "gpt_neox.layers.", "h.")
"""Trunks of GPT-2 and GPT-NeoX, where what a part returns is added as it is."""
_OUTPUT_PROJECTIONS = (
    *("self_attn.o_proj", "attn.c_proj", "attention.dense"),
    *("self_attention.dense", "attn.attention.out_proj"),
)

# What a transcoder reads. TransformerLens: `hook_normalized` is before the norm's gain, `mlp.hook_in` after it.
_LENS_READ = {
    "mlp.hook_in": (Tap.MLP_IN, Norm.NONE),
    "ln2.hook_normalized": (Tap.MID, Norm.RESCALE),
    "hook_resid_mid": (Tap.MID, Norm.NONE),
    "hook_mlp_in": (Tap.MID, Norm.NONE),
    "ln2.hook_in": (Tap.MID, Norm.NONE),
    "ln2.hook_out": (Tap.MLP_IN, Norm.NONE),
}
_MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")


def site_of_hook(hook: str, model: str, where: str) -> tuple[Site, Tap]:
    """The site and tap a hook name means; `where` is the file and `model` its model, for the message.

    `hook_resid_pre` of layer L is the residual stream after layer L - 1, and read as that.

    Raises:
        UnsupportedFormat: when the name is no site.
    """
    found = _BLOCK.fullmatch(hook)
    if found is not None:
        layer, name = int(found[1]), found[2]
        if name in ("hook_resid_pre", "hook_in") and layer > 0:
            return Site(layer - 1, Part.RES), Tap.RES
        if name in _LENS:
            part, tap = _LENS[name]
            return Site(layer, part), tap
    found = _MODULE.fullmatch(_as_module(hook))
    if found is not None:
        seat = _seat(int(found[1]), found[2] or "")
        if seat is not None:
            return seat[:2]
    raise UnsupportedFormat(
        f"{where}: hook {hook!r} of model {model!r} is no site of saeflow. Sites are the residual stream "
        "after a block, what attention and the MLP add to it, and the input of attention's output "
        f"projection: blocks.L.{', blocks.L.'.join(_LENS)}, or the same as modules. Pass site=... if the "
        "file is one of these."
    )


def view_of_hook(hook: str, norm: Norm = Norm.NONE) -> View:
    """Whether only the model says which tensor a hook name means; `norm`: what a transcoder does to what it reads.

    A name that is no site says nothing.
    """
    if norm is Norm.RESCALE:
        return View.RMS
    found = _MODULE.fullmatch(_as_module(hook))
    seat = None if found is None else _seat(int(found[1]), found[2] or "")
    return View.OWN if seat is None or hook.startswith(_NO_NORM_AFTER) else seat[2]


def transcoder_of_hooks(read: str, written: str, model: str, where: str) -> tuple[Site, Tap, Norm]:
    """The site a transcoder writes, the tap it reads, and how that is normalised before it is read.

    Raises:
        UnsupportedFormat: when it does not lead from what an MLP reads to what the MLP of that layer writes.
    """
    site, tap = site_of_hook(written, model, where)
    named = _BLOCK.fullmatch(read) or _MODULE.fullmatch(read)
    layer, name = (int(named[1]), named[2] or "") if named else (-1, "")
    found: tuple[Tap, Norm] | None = None
    if read.startswith("blocks."):
        found = _LENS_READ.get(name)
    elif name == "mlp.input":
        found = Tap.MLP_IN, Norm.NONE
    elif name.removesuffix(".input").removesuffix(".output") in _MLP_NORMS:
        found = (Tap.MID if name.endswith(".input") else Tap.MLP_IN), Norm.NONE
    if tap is not Tap.MLP or layer != site.layer or found is None:
        raise UnsupportedFormat(
            f"{where}: reads {read!r} and writes {written!r} of model {model!r}. Transcoders are read that lead "
            "from the input of an MLP to the output of the same MLP, as it is added to the residual stream."
        )
    return site, found[0], found[1]


def _as_module(hook: str) -> str:
    """A native name of TransformerLens 3 as that of the module; any other as it is."""
    found = _BLOCK.fullmatch(hook)
    module = None if found is None else _LENS_MODULES.get(found[2])
    return hook if found is None or module is None else f"layers.{found[1]}{module}"


def _seat(layer: int, name: str) -> tuple[Site, Tap, View] | None:
    if name.removesuffix(".input") in _OUTPUT_PROJECTIONS and name.endswith(".input"):
        return Site(layer, Part.ATT), Tap.Z, View.OWN
    found = _PARTS.get("" if name == "output" else name.removesuffix(".output"))
    return None if found is None else (Site(layer, found[0]), Tap.of(found[0]), found[1])
