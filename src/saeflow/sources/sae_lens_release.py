"""Any release of sae-lens, through that package's loader: `load_dictionaries("sae-lens:RELEASE")`.

The package knows some 170 releases, and converts those whose files have other formats. It is an optional extra,
imported only when such a release is named. It lists the names of a release's SAEs. The site follows from the SAE's
name (`blocks.5.hook_resid_post`, `layer_20/width_16k/canonical`, `l3m_8x`) and the release's, so that listing needs no
network. Where several SAEs are at one site, a pattern of their names selects one:
`sae-lens:gemma-scope-2b-pt-res@layer_*/width_16k/average_l0_7?`.

The loaded SAE is read like a sae-lens folder: a configuration, and tensors by name.
"""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from saeflow.errors import BadFile, InvalidArgument, MissingExtra, UnknownRelease, Unreachable, UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.formats.hook_names import site_of_hook
from saeflow.sources.formats.sae_lens import sae_lens_dictionary
from saeflow.sources.formats.tensors import LoadedTensors

_DIRECTORY: Final = "sae_lens.loading.pretrained_saes_directory"
_LAYER: Final = re.compile(r"(?:^|[/_.-])(?:layer_?|l|L)?(\d+)(?=$|[/_.a-zA-Z-])")
_PARTS: Final = (
    (Part.ATT, re.compile(r"(?:^|[/_.-])(?:att|attn|attention|lxa|hook_z)(?=$|[/_.-])|^l\d+a_")),
    (Part.MLP, re.compile(r"(?:^|[/_.-])(?:mlp|transcoders?|lxm)(?=$|[/_.-])|^l\d+m_")),
    # the last three alternatives match releases of residual-stream SAEs whose names do not say so
    (Part.RES, re.compile(r"(?:^|[/_.-])(?:res|resid|lxr)(?=$|[/_.-])|^l\d+r_|^qwen-scope|^goodfire|-andyrdt$")),
)
_CLT: Final = re.compile(r"(?:^|[/_])clt(?=$|[/_])")
_CROSS_LAYER: Final = (
    "a cross-layer transcoder has a decoder for every layer that it writes, and sae-lens sums them, which is what no "
    "layer receives"
)
_HOOK: Final = re.compile(r"blocks\.\d+\.(?:attn\.)?hook_[a-z]+(?:_[a-z]+)?")


def sae_lens_openers(name: str) -> tuple[dict[Site, Callable[[], Dictionary]], str, dict[str, str]]:
    """The openers of a sae-lens release's dictionaries by site, its model's name, and the SAEs left out, with reasons.

    Fetches nothing. Where several SAEs are at one site, its opener raises an error that names them. `name` is the
    release, with a pattern of SAE names after an @ if needed.

    Raises:
        MissingExtra: when sae-lens is not installed.
        UnknownRelease: when sae-lens has no such release.
        InvalidArgument: when the pattern matches no SAE.
        UnsupportedFormat: when no SAE's name gives its site, or all are cross-layer transcoders.
    """
    release, _, pattern = name.partition("@")
    listed = _listing(release)
    names = [sae for sae in listed.saes_map if not pattern or fnmatch.fnmatchcase(sae, pattern)]
    if not names:
        raise InvalidArgument(f"{pattern!r} fits none of the SAEs of {release}: {_some(list(listed.saes_map))}.")
    at: dict[Site, list[str]] = {}
    left_out: dict[str, str] = {}
    for sae in names:
        site = _site(release, sae)
        if _is_cross_layer(listed, sae):
            left_out[sae] = _CROSS_LAYER
        elif site is None:
            left_out[sae] = "its name gives no site of saeflow"
        else:
            at.setdefault(site, []).append(sae)
    if not at:
        if _CROSS_LAYER in left_out.values():
            raise UnsupportedFormat(
                f"sae-lens:{release}: {_CROSS_LAYER}. Take transcoders of one layer each; circuit-tracer reads these."
            )
        raise UnsupportedFormat(
            f"no SAE of {release} says its site by its name: {_some(names)}. Load one with sae-lens, save it with "
            "save_model, and pass the folder."
        )
    openers: dict[Site, Callable[[], Dictionary]] = {
        site: partial(_open, release, saes, site) for site, saes in sorted(at.items())
    }
    return openers, str(listed.model), left_out


def _open(release: str, names: list[str], site: Site) -> Dictionary:
    sae_name = names[0]
    if len(names) > 1:
        raise InvalidArgument(
            f"{release} has {len(names)} SAEs at {site}: {_some(names)}. Choose with a pattern of "
            f"their names: sae-lens:{release}@{sae_name.replace(str(site.layer), '*', 1)}"
        )
    where = f"sae-lens:{release}, {sae_name}"
    try:
        sae: Any = _module("sae_lens").SAE.from_pretrained(release, sae_name, device="cpu", dtype="float32")
    except OSError as error:
        raise Unreachable(
            f"{where}: cannot be fetched ({type(error).__name__}: {error}). Check the network and that your account "
            "may read the repository (hf auth login)."
        ) from error
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise BadFile(f"{where}: sae-lens does not load it ({type(error).__name__}: {error}).") from error
    # before version 6, from_pretrained returns a tuple of the SAE, its configuration and sparsities
    sae = sae[0] if isinstance(sae, tuple) else sae
    config: dict[str, Any] = sae.cfg.to_dict()
    transcoder = "transcoder" in str(config.get("architecture"))
    made = sae_lens_dictionary(
        config, lambda: LoadedTensors(where, sae.state_dict()), None if transcoder else site, where=where
    )
    if made.site != site:
        raise UnsupportedFormat(f"{where}: is at {made.site}, and its name says {site}. Save it, and pass the folder.")
    return made


def _is_cross_layer(listed: Any, sae: str) -> bool:
    """Whether sae-lens sums an SAE's decoders: told by its conversion function or, for Gemma Scope 2, by the path."""
    function = str(getattr(listed, "conversion_func", None) or "")
    return bool(_CLT.search(function) or _CLT.search(listed.saes_map[sae]))


def _listing(release: str) -> Any:
    directory: Mapping[str, Any] = _module(_DIRECTORY).get_pretrained_saes_directory()
    if release not in directory:
        like = [name for name in directory if name.startswith(release[:6])] or list(directory)
        raise UnknownRelease(f"sae-lens has no release {release!r} among its {len(directory)}: {_some(like)}.")
    return directory[release]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"releases of sae-lens are read by that package, which cannot be imported ({error}).", "sae-lens"
        ) from error


def _site(release: str, sae: str) -> Site | None:
    hook = _HOOK.match(sae)  # some names continue with a width or the name of a training run
    if hook is not None:
        try:
            return site_of_hook(hook[0].replace(".hook_z", ".attn.hook_z").replace("attn.attn.", "attn."), "", sae)[0]
        except UnsupportedFormat:
            return None
    if "embed" in sae:
        return None
    layers = [found[1] for found in _LAYER.finditer(sae)]
    part = next((part for part, names in _PARTS if names.search(sae)), None)
    part = part or next((part for part, names in _PARTS if names.search(release)), None)
    return Site(int(layers[0]), part) if layers and part else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
