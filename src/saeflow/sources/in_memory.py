"""Dictionaries that are already in memory: objects of other libraries, modules and plain tensors, as a DictionarySet.

An object of sae-lens, EleutherAI's sparsify, dictionary_learning or OpenMOSS's llamascopium is read like a folder in
its format: its configuration and named tensors go to that format's reader in `formats`. Any other module, or mapping
of tensors, must hold the following; features are rows or columns, which the lengths of the biases tell:

    W_enc or encoder.weight   b_enc or encoder.bias   W_dec or decoder.weight   b_dec or decoder.bias   W_skip

and `activation` is the function applied to h @ W_enc^T + b_enc. If an object has its own `encode`, both it and the
dictionary made from it encode the same hidden states at first use, and the object is refused if they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from saeflow.errors import BadFile, InvalidArgument, InvalidId, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.activations import Activation, BatchTopK, Function, JumpReLU, ReLU, TopK
from saeflow.sources.architectures import Point, PointLike
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing, TrainingInfo
from saeflow.sources.formats.dictionary_learning import learned_dictionary
from saeflow.sources.formats.file_weights import refused
from saeflow.sources.formats.hook_names import site_of_hook, view_of_hook
from saeflow.sources.formats.openmoss import openmoss_dictionary
from saeflow.sources.formats.sae_lens import sae_lens_dictionary
from saeflow.sources.formats.sparsify import sparsify_dictionary
from saeflow.sources.formats.tensors import LoadedTensors
from saeflow.sources.library import DictionarySet
from saeflow.sources.weights import TensorsInMemory

Encoder = Callable[[Tensor], Tensor]
"""An object's own encoder: hidden states `[n d_in]` to activations `[n n_features]`."""

_STORED: Final = {
    "W_enc": ("W_enc", "encoder.weight"),
    "b_enc": ("b_enc", "encoder.bias"),
    "W_dec": ("W_dec", "decoder.weight"),
    "b_dec": ("b_dec", "decoder.bias"),
    "W_skip": ("W_skip",),
}
_CLOSE: Final = 1e-5
_CLOSE_IN_HALF: Final = 0.05
_FLIPPED: Final = 1e-4
"""Share of activations that may differ: a pre-activation at its threshold is on or off depending on rounding."""


class _Read(NamedTuple):
    """How an object can be read: candidates, of which the first that agrees with its own encoder, if any, is taken."""

    candidates: Sequence[Dictionary]
    own: Encoder | None
    model: str = ""


def dictionaries_from(
    objects: Mapping[Any, object] | Iterable[object],
    *,
    activation: Callable[[Tensor], Tensor] | None = None,
    model: str = "",
    device: torch.device | str = "cpu",
) -> DictionarySet:
    """Dictionaries from objects in memory, usable like those of a release: for atlas, graphs, experiments, steering.

        sf.dictionaries_from([sae, another])                    from sae-lens: their metadata states their sites
        sf.dictionaries_from({"layers.3.mlp": sparse_coder})    by hookpoint, as sparsify loads them
        sf.dictionaries_from({"3/res": module}, activation=torch.relu)
        sf.dictionaries_from({"3/res": {"W_enc": ..., "b_enc": ..., "W_dec": ..., "b_dec": ..., "activation": relu}})

    Tensors that are float32 on the CPU are shared with the object, not copied.

    Args:
        objects: a mapping by site, by `(layer, tap)` or `Point`, or by hook name; or a list of objects that know their
            site: those of sae-lens and OpenMOSS, and a `Dictionary`.
        activation: for modules and plain tensors: a function of the pre-activations `[*batch n_features]`, or one of
            `saeflow.sources.activations`. Without it only directions are available, not activations. A mapping of
            tensors may hold its own under "activation", and under "subtract_b_dec" whether b_dec is subtracted from h.
        model: the model they were trained on, by its name on the hub; by default, what the objects agree on.
        device: where to put the tensors that are used.

    Raises:
        InvalidArgument: for no object, two at one site, one without a site, or shapes that do not fit together or do
            not tell which axis is features; at first use, for an object whose own `encode` gives something else.
        UnsupportedFormat: for an object that does something a Dictionary does not, or a hook that is not a site.
        BadFile: for an object whose configuration and tensors do not fit together.
    """
    openers: dict[Site, Callable[[], Dictionary]] = {}
    models: set[str] = set()
    pairs: Iterable[tuple[Any, Any]] = objects.items() if isinstance(objects, Mapping) else ((None, o) for o in objects)
    for key, one in pairs:
        where = f"the {type(one).__name__}{'' if key is None else f' for {key}'}"
        point = None if key is None else _point(cast("PointLike | str", key))
        read = _read(one, point, activation, where, hook=key if isinstance(key, str) else "")
        first = read.candidates[0]
        if point is not None and (first.site.layer, first.tap) != (point.layer, point.tap) and not first.is_transcoder:
            raise InvalidArgument(
                f"{where} reads {first.tap.value} of layer {first.site.layer}, by what it says. Give it for that."
            )
        if first.site in openers:
            raise InvalidArgument(f"two objects are at {first.site}; the second is {where}. Give one for each site.")
        like = next(one.parameters(), None) if isinstance(one, nn.Module) else None
        openers[first.site] = partial(_agreeing, read, like, where)
        models.add(read.model)
    if not openers:
        raise InvalidArgument("there is no object to make a dictionary from. Give one or more.")
    return DictionarySet("in memory", model or (models.pop() if len(models) == 1 else ""), openers, device=device)


def _point(key: PointLike | str) -> Point:
    """The point that the key of an object stands for: a site, a point, or the name of a hook."""
    if not isinstance(key, str):
        return Point.at(key)
    try:
        return Point.at(Site.parse(key))
    except InvalidId:
        site, tap = site_of_hook(key, "", "dictionaries_from")
        return Point(site.layer, tap, view_of_hook(key))


def _read(
    one: Any, point: Point | None, activation: Callable[[Tensor], Tensor] | None, where: str, *, hook: str
) -> _Read:
    """Read an object according to the library its class comes from."""
    site = None if point is None else Site(point.layer, point.tap.part)
    libraries = {kind.__module__.partition(".")[0]: kind.__name__ for kind in reversed(type(one).__mro__)}
    if isinstance(one, Dictionary):
        if site not in (None, one.site):
            raise InvalidArgument(f"{where} is at {one.site}. Give it for that site.")
        return _Read([one], None)
    if "sae_lens" in libraries:
        return _of_sae_lens(one, site, where)
    if {"llamascopium", "lm_saes"} & set(libraries):
        return _of_openmoss(one, site, where)
    if site is None or point is None:
        raise InvalidArgument(
            f"{where} does not say which tensor of which layer it is for. Give a mapping: {{'3/res': ...}}."
        )
    if "sparsify" in libraries:
        return _of_sparsify(one, site, where, hook="" if hook == str(site) else hook)
    if "dictionary_learning" in libraries:
        config = {"dict_class": libraries["dictionary_learning"], "k": int(getattr(one, "k", 0))}
        return _Read([learned_dictionary(config, _tensors(one, where), site, where=Path(where))], one.encode)
    if isinstance(one, nn.Module | Mapping):
        return _of_tensors(one, point, activation, where)
    raise InvalidArgument(f"{where} is no module and no mapping of tensors by name. See dictionaries_from.")


def _tensors(one: nn.Module, where: str) -> LoadedTensors:
    return LoadedTensors(where, one.state_dict())


def _of_sae_lens(sae: Any, site: Site | None, where: str) -> _Read:
    config: dict[str, Any] = sae.cfg.to_dict()
    made = sae_lens_dictionary(config, partial(_tensors, sae, where), site, where=where)
    metadata = config.get("metadata")
    # preprocessing that follows from a hook name or from processed weights is left to the caller of the object's encode
    itself = config.get("normalize_activations") not in (None, "none")
    outside = replace(made.preprocessing, norm=Norm.NONE if itself else made.preprocessing.norm)

    def own(h: Tensor) -> Tensor:
        h = outside.prepare(h)[0]
        return sae.encode(h[:, None] if getattr(sae, "hook_z_reshaping_mode", False) else h)

    return _Read([made], own, str((metadata if isinstance(metadata, Mapping) else config).get("model_name") or ""))


def _of_openmoss(sae: Any, site: Site | None, where: str) -> _Read:
    config: dict[str, Any] = sae.cfg.model_dump()
    state = sae.full_state_dict() if hasattr(sae, "full_state_dict") else sae.state_dict()
    made = openmoss_dictionary(config, LoadedTensors(where, state), site, where=Path(where))
    hook = str(config.get("hook_point_in"))

    def own(h: Tensor) -> Tensor:
        acts = sae.encode(sae.normalize_activations({hook: h})[hook])
        # a TopK that ranks by activation times row norm is read with unit rows: see formats/openmoss.py
        ranked = config.get("act_fn") == "topk" and config.get("sparsity_include_decoder_norm", True)
        return acts * sae.decoder_norm() if ranked else acts

    return _Read([made], own, str(config.get("model_name") or ""))


def _of_sparsify(coder: Any, site: Site, where: str, *, hook: str) -> _Read:
    config = coder.cfg.to_dict() | {"d_in": coder.d_in}
    file = _tensors(coder, where)
    made = sparsify_dictionary(config, file, None if hook else site, hookpoint=hook, run={}, where=where)

    def own(h: Tensor) -> Tensor:
        found = coder.encode(h)
        acts = found.top_acts.new_zeros(len(h), made.n_features)
        return acts.scatter_(-1, found.top_indices, found.top_acts)

    return _Read([made], own)


def _of_tensors(
    one: nn.Module | Mapping[str, Any], point: Point, activation: Callable[[Tensor], Tensor] | None, where: str
) -> _Read:
    # 1. the tensors, and the other entries of a mapping
    entries = dict(one) if isinstance(one, Mapping) else {}
    activation, subtracts = entries.pop("activation", activation), bool(entries.pop("subtract_b_dec", False))
    encode: Any = getattr(one, "encode", None)
    held = LoadedTensors(where, one.state_dict() if isinstance(one, nn.Module) else _as_tensors(entries, where))
    names = {name: next((s for s in stored if s in held.shapes), "") for name, stored in _STORED.items()}
    rest = sorted(set(held.shapes) - set(names.values()))
    if not (names["W_enc"] and names["W_dec"]) or (rest and encode is None):
        raise InvalidArgument(
            f"{where} holds {', '.join(sorted(held.shapes)) or 'no tensor'}. What can be read: "
            f"{', '.join(' or '.join(stored) for stored in _STORED.values())}; the biases and W_skip may be left out. "
            "More is allowed beside an encode, which is then compared."
        )

    # 2. turn matrices so that rows are features; missing biases are zeros
    n_features, d_out = (held.shapes[names[bias]][0] if names[bias] else None for bias in ("b_enc", "b_dec"))
    turned = {name: _turned(held, names[name], n_features, d_out, where) for name in ("W_enc", "W_dec")}
    turned["b_enc"] = held.read(names["b_enc"]) if names["b_enc"] else torch.zeros(len(turned["W_enc"]))
    turned["b_dec"] = held.read(names["b_dec"]) if names["b_dec"] else torch.zeros(turned["W_dec"].shape[1])
    turned |= {"W_skip": held.read("W_skip")} if names["W_skip"] else {}

    # 3. whether b_dec is subtracted from h: with an encode of its own, try both
    known = None if activation is None else _activation(activation)
    why = f"{where}: nothing says its activation. Directions are known, activations are not. Give activation=..."
    candidates = [
        Dictionary.reading(
            Site(point.layer, point.tap.part),
            tap=point.tap,
            weights=TensorsInMemory(turned, where, transcoder=point.tap.is_read_only),
            activation=refused(why) if known is None else partial(_same, known),
            preprocessing=Preprocessing(subtract_b_dec=less),
            training=TrainingInfo(point.view),
        )
        for less in ([subtracts] if encode is None else [False, True])
    ]
    return _Read(candidates, encode)


def _same(activation: Activation) -> Activation:
    return activation


def _as_tensors(values: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    try:
        return {name: torch.as_tensor(value) for name, value in values.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"{where} holds something that is no tensor ({error}).") from None


def _turned(held: LoadedTensors, name: str, n_features: int | None, d_out: int | None, where: str) -> Tensor:
    """A matrix turned so that rows are features, judged by the lengths of the biases or the layout of nn.Linear."""
    tensor = held.read(name)
    shape = tuple(tensor.shape)
    if name == "encoder.weight":
        return tensor
    if name == "decoder.weight":
        return tensor.T
    rows = len(shape) == 2 and (shape[0] == n_features or (n_features is None and shape[1] == d_out))
    columns = len(shape) == 2 and (shape[1] == n_features or (n_features is None and shape[0] == d_out))
    if rows is columns:
        raise InvalidArgument(
            f"{where}: {name} has shape {list(shape)}, and biases of {n_features} features and width {d_out} do not "
            "tell whether its rows or its columns are features. Make a saeflow.Dictionary of it, whose rows are."
        )
    return tensor if rows else tensor.T


def _activation(function: Callable[[Tensor], Tensor]) -> Activation:
    if isinstance(function, ReLU | JumpReLU | TopK | BatchTopK | Function):
        return function
    if function is torch.relu or function is torch.nn.functional.relu or type(function) is nn.ReLU:
        return ReLU()
    return Function(function)


def _agreeing(read: _Read, like: Tensor | None, where: str) -> Dictionary:
    """The first candidate that encodes as the object itself does, in the dtype and on the device of `like`.

    Raises:
        InvalidArgument: when none does.
    """
    found = [_difference(made, read.own, like) for made in read.candidates] if read.own else [""]
    for made, different in zip(read.candidates, found, strict=False):
        if not different:
            return made
    raise InvalidArgument(
        f"{where} encodes otherwise than its weights{' and configuration' if len(found) == 1 else ''} say: "
        f"{found[0]}. What its encode does besides is not known here; give plain tensors and a function for the "
        "activation, as dictionaries_from takes them."
    )


@torch.no_grad()
def _difference(made: Dictionary, own: Encoder, like: Tensor | None) -> str:
    """How a dictionary's activations differ from the object's own; empty if they agree, or if it cannot encode.

    The hidden states have three sizes and lie partly along encoder rows, so that some features are on and others off.
    """
    # 1. hidden states, and the dictionary's activations on them
    try:
        rows, _ = made.W_enc, made.activation
    except (UnsupportedFormat, BadFile):
        return ""  # the dictionary raises the same error when it is used
    draw = torch.Generator().manual_seed(0)
    along = torch.nn.functional.normalize(rows[torch.randint(len(rows), (8,), generator=draw)], dim=1)
    noise = torch.randn(8, made.d_in, generator=draw)
    h = torch.cat([size * (noise + along * made.d_in**0.5) for size in (0.1, 1.0, 10.0)])
    h = h + made.b_dec if made.preprocessing.subtract_b_dec else h
    mine = made.encode(h)
    made.unload()

    # 2. the object's activations on them
    theirs: Tensor | tuple[Tensor, ...] = own(h if like is None else h.to(like))
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    theirs = (theirs if theirs.layout is torch.strided else theirs.to_dense()).reshape(len(h), -1).to(mine)

    # 3. are they the same up to rounding?
    if theirs.shape != mine.shape:
        return f"it gives {theirs.shape[1]} activations a token for {mine.shape[1]} features"
    half = like is not None and like.dtype.itemsize < 4
    close = (_CLOSE_IN_HALF if half else _CLOSE) * theirs.abs().amax(dim=1, keepdim=True).clamp(min=1)
    far = (mine - theirs).abs() > close
    if float(far.float().mean()) <= (10 * _FLIPPED if half else _FLIPPED):
        return ""
    return f"{int(far.sum())} of {far.numel()} activations differ, by up to {float((mine - theirs).abs().max()):.3g}"
