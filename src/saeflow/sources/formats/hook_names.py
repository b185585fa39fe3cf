"""Map hook names such as `blocks.7.hook_resid_post` and `model.layers.7.mlp` to a Site and a Tap.

SAE files name the tensor they were trained on, as a TransformerLens hook or as a module of the Hugging Face
model; transcoders name two, one read and one written. A name that is not a saeflow site is refused, never
guessed.
"""

from __future__ import annotations

import re

from saeflow.errors import UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.architectures import Tap, View
from saeflow.sources.dictionary import Norm

# TransformerLens hooks without `blocks.{L}.`. On Gemma they come after the norm, as added to the residual stream.
_LENS = {
    "hook_resid_post": (Part.RES, Tap.RES),
    "hook_mlp_out": (Part.MLP, Tap.MLP),
    "hook_attn_out": (Part.ATT, Tap.ATT),
    "attn.hook_z": (Part.ATT, Tap.Z),
    "ln1_post.hook_out": (Part.ATT, Tap.ATT),
    "ln2_post.hook_out": (Part.MLP, Tap.MLP),
}
# TransformerLens 3 and 4 also name a module's input or output, as module names do: on Gemma `mlp.hook_out` comes
# before the norm and `hook_mlp_out` after it. Checked against 3.9.0 and 4.3.0.
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
# The part of a module, by its name in files, and what its output is. In some families (Gemma 2 and 3, OLMo 2, GLM 4)
# a norm follows `mlp` and `self_attn`. `post_attention_layernorm` is that norm in some models, in others the one
# before the MLP.
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
"""Module prefixes of GPT-2 and GPT-NeoX, where the output of a part is added to the residual stream unchanged."""
_OUTPUT_PROJECTIONS = (
    *("self_attn.o_proj", "attn.c_proj", "attention.dense"),
    *("self_attention.dense", "attn.attention.out_proj"),
)
_ENDS_ON_Z = ("hook_z", "attn.o.hook_in", "o_proj.input", *(f"{module}.input" for module in _OUTPUT_PROJECTIONS))

# What a transcoder reads, by TransformerLens hook. `hook_normalized` comes before the norm's gain, `mlp.hook_in` after.
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
    """The site and tap that a hook name denotes; `model` and `where`, the file, are for the error message.

    `hook_resid_pre` of layer L is the residual stream after layer L - 1, and is read as such.

    Raises:
        UnsupportedFormat: when the name does not denote a site.
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


def tap_at(site: Site, hook: str) -> Tap:
    """The tap of an SAE whose site is given: z at attention where its hook ends as those of z do."""
    return Tap.Z if site.part is Part.ATT and hook.endswith(_ENDS_ON_Z) else Tap.of(site.part)


def view_of_hook(hook: str, norm: Norm = Norm.NONE) -> View:
    """How a hook name refers to its tensor, where only the model settles which tensor that is.

    `norm` is what a transcoder does to its input. A name that does not denote a site gives `View.OWN`.
    """
    if norm is Norm.RESCALE:
        return View.RMS
    found = _MODULE.fullmatch(_as_module(hook))
    seat = None if found is None else _seat(int(found[1]), found[2] or "")
    return View.OWN if seat is None or hook.startswith(_NO_NORM_AFTER) else seat[2]


def transcoder_of_hooks(read: str, written: str, model: str, where: str) -> tuple[Site, Tap, Norm]:
    """The site a transcoder writes to, the tap it reads, and how it normalises its input.

    Raises:
        UnsupportedFormat: when it does not map the input of an MLP to the output of the same MLP.
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


def place_of_hooks(read: str, written: str, model: str, where: str, site: Site | None = None) -> tuple[Site, Tap, Norm]:
    """The site, the tap and the normalisation of an SAE, or of a transcoder where the two hooks differ.

    `site` overrides the site, not what is read there.

    Raises:
        UnsupportedFormat: when the hooks of a transcoder, or of an SAE whose site is not given, denote no site.
    """
    if read != written:
        place, tap, norm = transcoder_of_hooks(read, written, model, where)
        return site or place, tap, norm
    return *(site_of_hook(read, model, where) if site is None else (site, tap_at(site, read))), Norm.NONE


def _as_module(hook: str) -> str:
    """Translate a TransformerLens 3 name of a module's input or output to the module's; leave any other unchanged."""
    found = _BLOCK.fullmatch(hook)
    module = None if found is None else _LENS_MODULES.get(found[2])
    return hook if found is None or module is None else f"layers.{found[1]}{module}"


def _seat(layer: int, name: str) -> tuple[Site, Tap, View] | None:
    if name.removesuffix(".input") in _OUTPUT_PROJECTIONS and name.endswith(".input"):
        return Site(layer, Part.ATT), Tap.Z, View.OWN
    found = _PARTS.get("" if name == "output" else name.removesuffix(".output"))
    return None if found is None else (Site(layer, found[0]), Tap.of(found[0]), found[1])
