"""cfg.json of sae-lens: brought to the form of version 6, refused where a Dictionary could not follow, and placed.

Before version 6 everything lay in one object under older names; `modern` does what sae-lens itself does with
such a file (`handle_pre_6_0_config` of its 6.54.12).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.architectures import Tap, View
from saeflow.sources.dictionary import Norm
from saeflow.sources.formats.hook_names import site_of_hook, transcoder_of_hooks, view_of_hook

BATCHTOPK: Final = ("batchtopk", "matryoshka_batchtopk", "matryoshka")
"""Saved as they are trained: a trained one is otherwise saved as jumprelu."""
TRANSCODERS: Final = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES: Final = ("standard", "jumprelu", "topk", "gated", *BATCHTOPK, *TRANSCODERS)
AVERAGE: Final = "expected_average_only_in"
"""Every h multiplied by one number, which training estimates."""
NORMS: Final = {
    "none": Norm.NONE,
    "layer_norm": Norm.LAYER_NORM,
    "constant_norm_rescale": Norm.RESCALE,
    AVERAGE: Norm.NONE,
}
_OLD_NAMES: Final = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_ENDS_ON_Z: Final = ("hook_z", "attn.o.hook_in", "o_proj.input", "c_proj.input", "attention.dense.input")


@dataclass(frozen=True)
class Place:
    """Where a dictionary sits, what it reads, and how that is normalised before it is."""

    site: Site
    tap: Tap
    norm: Norm = Norm.NONE
    view: View = View.OWN


def modern(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(configuration, metadata) in the form of version 6, whatever version wrote it.

    Raises:
        Nothing.
    """
    metadata = config.get("metadata")
    if isinstance(metadata, dict):
        return dict(config), dict(metadata)
    new = {_OLD_NAMES.get(key, key): value for key, value in config.items()}
    kwargs = new.get("activation_fn_kwargs")
    if new.get("activation_fn") == "topk" and isinstance(kwargs, dict) and kwargs.get("k") is not None:
        new |= {"architecture": "topk", "k": kwargs["k"]}
    norm = new.get("normalize_activations")
    if isinstance(norm, bool):
        new["normalize_activations"] = "expected_average_only_in" if norm else "none"
    return new, new


def refuse_unsupported(config: Mapping[str, Any], metadata: Mapping[str, Any], where: str) -> None:
    """Refuse what a Dictionary does not do, each with what to use instead.

    Raises:
        UnsupportedFormat: naming the entry and its value.
    """
    architecture = config.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        raise UnsupportedFormat(
            f"{where}: architecture {architecture!r} is not supported. Supported: {', '.join(ARCHITECTURES)}."
        )
    norm = config.get("normalize_activations") or "none"
    if norm not in NORMS:
        raise UnsupportedFormat(
            f"{where}: normalize_activations is {norm!r}, which is not read. Supported: "
            f"{', '.join(NORMS)}; covariance_whitening after sae.fold_activation_whitening(mean, "
            "whitening_matrix, unwhitening_matrix), with the three of activation_whitening.safetensors, and saving "
            "again."
        )
    head = metadata.get("hook_head_index")
    if head is not None:
        raise UnsupportedFormat(
            f"{where}: hook_head_index is {head!r}; an SAE on one head is no site of "
            "saeflow. Use one trained on all heads (attn.hook_z) or on hook_attn_out."
        )
    out = metadata.get("hook_name_out")
    writes_elsewhere = out is not None and out != metadata.get("hook_name")
    if writes_elsewhere and architecture not in TRANSCODERS:
        raise UnsupportedFormat(
            f"{where}: reads {metadata.get('hook_name')!r} and writes {out!r}, and architecture {architecture!r} "
            f"is no transcoder. Supported for that: {', '.join(TRANSCODERS)}."
        )


def undone(config: Mapping[str, Any], where: str) -> str:
    """Why activations are not known, and what to do; empty where they are. Directions do not depend on it."""
    function = config.get("activation_fn") or "relu"
    if function not in ("relu", "topk"):
        return (
            f"{where}: activation_fn is {function!r}. Directions are known, activations are not. Supported for them: "
            "relu, topk."
        )
    norm = config.get("normalize_activations") or "none"
    if config.get("architecture") in TRANSCODERS and (norm != "none" or config.get("apply_b_dec_to_input")):
        return (
            f"{where}: a transcoder with normalize_activations {norm!r} and apply_b_dec_to_input "
            f"{bool(config.get('apply_b_dec_to_input'))}, which sae-lens trains none of. Directions are known, "
            "activations are not. Check the file."
        )
    return ""


def place_of(metadata: Mapping[str, Any], site: Site | None, where: str, *, transcoder: bool) -> Place:
    """The place that hook names give; `site` overrides the site.

    Raises:
        BadFile: when no hook is named and `site` is None.
        UnsupportedFormat: when the hooks are no site.
    """
    if transcoder:
        return _transcoder(metadata, site, where)
    if site is not None:
        hook = str(metadata.get("hook_name") or metadata.get("hf_hook_name") or "")
        z = hook.endswith(_ENDS_ON_Z) and site.part is Part.ATT
        return Place(site, Tap.Z if z else Tap(site.part.value), view=view_of_hook(hook))
    model = str(metadata.get("model_name") or "")
    hooks = [metadata[key] for key in ("hook_name", "hf_hook_name") if isinstance(metadata.get(key), str)]
    if not hooks:
        raise BadFile(f"{where}: neither hook_name nor hf_hook_name is given. Pass site=...")
    return _first(
        [lambda hook=hook: Place(*site_of_hook(hook, model, where), view=view_of_hook(hook)) for hook in hooks]
    )


def _transcoder(metadata: Mapping[str, Any], site: Site | None, where: str) -> Place:
    """The modules of Hugging Face first: `hook_mlp_in` is before or after the norm, as who wrote it likes."""
    model = str(metadata.get("model_name") or "")
    keys = (("hf_hook_name", "hf_hook_name_out"), ("hook_name", "hook_name_out"))
    pairs = [(metadata.get(read), metadata.get(written)) for read, written in keys]
    named = [(read, written) for read, written in pairs if isinstance(read, str) and isinstance(written, str)]
    if not named:
        raise BadFile(f"{where}: a transcoder without hook_name and hook_name_out. Add them to its metadata.")
    found = _first(
        [
            lambda pair=pair: Place(*transcoder_of_hooks(*pair, model, where), view=view_of_hook(pair[1]))
            for pair in named
        ]
    )
    if found.norm is Norm.RESCALE:
        found = replace(found, view=View.RMS)
    return found if site is None else replace(found, site=site)


def _first(ways: list[Callable[[], Place]]) -> Place:
    """What the first of some ways gives that is supported; the refusal of the first when none is."""
    refusals: list[UnsupportedFormat] = []
    for way in ways:
        try:
            return way()
        except UnsupportedFormat as error:
            refusals.append(error)
    raise refusals[-1]
