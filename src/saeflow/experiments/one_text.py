"""Sections 5.1 and 5.2 on one text: where its features come from, and what remains without their predecessors.

    sf.origins("demo", "demo", "Tom said hello to the girl")
    sf.deactivate("demo", "demo", '"Hello," said Tom. "Hello," she replied.', "4/res/72")

The experiments do the same for many texts, and write results folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite
from saeflow.experiments.deactivation import deactivation_trials
from saeflow.experiments.groups import Origin
from saeflow.experiments.inputs import atlas_beside, opened_together
from saeflow.experiments.methods import Tables, top_k
from saeflow.experiments.origins import observe_origins
from saeflow.experiments.sampling import Sample
from saeflow.experiments.settings import DeactivationSize
from saeflow.ids import FeatureId, FeatureLike, Part, Site, layers_by_part
from saeflow.matching.methods import match
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import DictionarySet
from saeflow.sources.model import LanguageModel

DEACTIVATION_COLUMNS = (
    *("position", "token", "removed", "features", "before", "after", "change"),
    *("control", "after control", "change under control"),
)
ORIGIN_COLUMNS = ("position", "token", "feature", "activation", "group")

Dictionaries = DictionarySet | Mapping[Site, Dictionary] | str | Path


def deactivate(
    model: LanguageModel | str,
    dictionaries: Dictionaries,
    text: str,
    feature: FeatureLike,
    *,
    atlas: Tables | str = "",
    k: int = 1,
    token: int | None = None,
    max_length: int = 128,
    seed: int = 0,
    device: str = "cpu",
) -> pd.DataFrame:
    """Measure a feature before and after its matched predecessors are removed, at every token of a text where it fires.

    At each part, those of the best matches that are active are removed, then all of them together (section 5.2). Each
    removal has a control: the removal of as many other active features of the same sites, of similar norm.

    Args:
        model: the language model or its name; "" for the one that the dictionaries name.
        dictionaries: the dictionaries at its sites, or the name of a release.
        text: the text.
        feature: a residual feature, such as "4/res/72".
        atlas: match tables or the name of an atlas; by default that of the release, or, without one, tables computed
            for the sites around the feature.
        k: how many matches at each part are removed.
        token: the only token to look at, from 0 including the begin-of-text token; negative numbers count from the
            end. None for all tokens but special ones.
        max_length: truncate the text to this many tokens.
        seed: seed of the controls.
        device: where models and dictionaries that this call loads compute.

    Returns:
        One row per token and removal: position and token; the parts removed ("nowhere" if no predecessor is active)
        and the features; the activation `before` and `after`, with `change` = 1 - after / before (1: silent); the
        features of the control, the activation after it, and its change, empty if too few other features are active
        at the sites.

    Raises:
        InvalidArgument: for a feature that is not residual, a text it does not fire on, a token outside the text, or
            an atlas of other weights.
        UnknownFeature, UnknownSite, UnknownRelease, BadFile, Unreachable: when something does not exist or cannot be
            opened.
    """
    target = FeatureId.of(feature)
    if target.part is not Part.RES:
        raise InvalidArgument(
            f"{target} has no predecessors: matching names those of residual features. Give one such as 4/res/72."
        )
    model, found, tables = _opened(model, dictionaries, atlas, [target.layer], k, device)
    if target.index >= (n := found[target.site].n_features):
        raise UnknownFeature(f"{target} does not exist: {target.site} has {n} features, 0 to {n - 1}.")
    positions, spelled = _tokens(model, text, token, max_length)
    sample = Sample("text", 0, text, positions)
    size = DeactivationSize(("top-1",), features=1, r=(0.0,), loss=0, max_length=max_length)
    trials = deactivation_trials(
        model, found, [top_k("cosine", tables, k)], sample, size, layers=[target.layer], seed=seed, targets=[target]
    )
    if not trials:
        where = "this text" if token is None else f"token {positions[0]}, {spelled[positions[0]]!r}"
        raise InvalidArgument(
            f"{target} does not fire on {where}. Give a text on which it does: `saeflow labels show` says what a "
            "feature fires on."
        )
    controls = {trial.controls: trial for trial in trials if trial.controls is not None}
    rows = []
    for number, trial in enumerate(trials):
        if trial.control:
            continue
        control = controls.get(number)
        rows.append(
            (
                trial.position,
                spelled[trial.position],
                trial.removed.label,
                " ".join(map(str, trial.features)),
                trial.z_old,
                trial.z_new,
                trial.change,
                "" if control is None else " ".join(map(str, control.features)),
                None if control is None else control.z_new,
                None if control is None else control.change,
            )
        )
    frame = pd.DataFrame(rows, columns=list(DEACTIVATION_COLUMNS))
    frame = frame.astype({"after control": float, "change under control": float})  # also where all are missing
    frame.attrs = {"title": f"{target} before and after the removal of its predecessors", "feature": str(target)}
    return frame


def origins(
    model: LanguageModel | str,
    dictionaries: Dictionaries,
    text: str,
    *,
    atlas: Tables | str = "",
    k: int = 1,
    layers: tuple[int, ...] = (),
    token: int | None = None,
    max_length: int = 128,
    device: str = "cpu",
) -> pd.DataFrame:
    """Find which matched predecessors are active together with each active residual feature of a text (section 5.1).

    Args:
        model: the language model or its name; "" for the one that the dictionaries name.
        dictionaries: the dictionaries at its sites, or the name of a release.
        text: the text.
        atlas: match tables or the name of an atlas; by default that of the release, or, without one, tables computed
            for the sites around the layers.
        k: how many matches at each part count.
        layers: residual layers; by default all but the lowest with matches.
        token: the only token to look at, from 0 including the begin-of-text token; negative numbers count from the
            end. None for all tokens but special ones.
        max_length: truncate the text to this many tokens.
        device: where models and dictionaries that this call loads compute.

    Returns:
        One row per token and active feature: position and token, feature and activation, and the parts where a
        predecessor is active too: "RES & MLP", or "nowhere".

    Raises:
        As `deactivate` does, except for the feature.
    """
    model, found, tables = _opened(model, dictionaries, atlas, layers, k, device)
    positions, spelled = _tokens(model, text, token, max_length)
    sample = Sample("text", 0, text, positions)
    looked = sorted({source.layer for source, target in tables if target in source.predecessors})
    chosen = layers or tuple(layer for layer in looked if layer > min(looked))
    trials = observe_origins(model, found, [top_k("cosine", tables, k)], sample, layers=chosen, max_length=max_length)
    rows = [
        (trial.position, spelled[trial.position], str(FeatureId(Site(trial.layer, Part.RES), row)), a, group)
        for trial in trials
        for row, a, group in zip(
            trial.features,
            trial.activations,
            (Origin(int(digit)).label for digit in trial.groups["cosine"]),
            strict=True,
        )
    ]
    frame = pd.DataFrame(rows, columns=list(ORIGIN_COLUMNS))
    frame.attrs = {"title": "Active features, and the parts where a matched predecessor is active too"}
    return frame


def _opened(
    model: LanguageModel | str,
    dictionaries: Dictionaries,
    atlas: Tables | str,
    layers: list[int] | tuple[int, ...],
    k: int,
    device: str,
) -> tuple[LanguageModel, Mapping[Site, Dictionary], Tables]:
    """Open model, dictionaries and tables; without an atlas, match the sites around the layers here."""
    name, model, found = opened_together(dictionaries, model, device=device)
    if missing := [layer for layer in layers if Site(layer, Part.RES) not in found]:
        raise UnknownSite(f"there is no residual dictionary at layer {missing[0]}. There is {layers_by_part(found)}.")
    if not isinstance(atlas, str):
        return model, found, atlas
    if (opened := atlas_beside(found, name, atlas)) is not None:
        return model, found, opened
    around = [site for site in found if site.part is Part.RES and (not layers or site.layer in layers)]
    pairs = [(site, one) for site in around for one in site.predecessors if one in found]
    return model, found, {pair: match(found[pair[0]], found[pair[1]], k=k, projector=model) for pair in pairs}


def _tokens(model: LanguageModel, text: str, token: int | None, max_length: int) -> tuple[tuple[int, ...], list[str]]:
    """The positions to look at (all but special tokens, or the one asked for), and every token as text."""
    ids = model.tokenize([text], max_length=max_length).input_ids[0].tolist()
    spelled = list(model.spelling.tokens(ids))
    if token is None:
        special = set(model.tokenizer.all_special_ids)
        positions = tuple(place for place, one in enumerate(ids) if one not in special)
        if not positions:
            raise InvalidArgument("the text is empty. Give one of a word or more.")
        return positions, spelled
    place = token + len(ids) if token < 0 else token
    if not 0 <= place < len(ids):
        raise InvalidArgument(
            f"token {token} is not in the text, which has {len(ids)} tokens. Count from 0, or back from -1, the last."
        )
    return (place,), spelled
