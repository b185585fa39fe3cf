"""Open what the experiments run on from names: model, dictionaries, atlas, datasets (sections 5.1 and 5.2).

The commands and `saeflow.reproduce` open the same inputs and make the same requests, so that either can resume a
results folder that the other began.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saeflow.engines import Engine
from saeflow.errors import InvalidArgument, UnknownRelease
from saeflow.experiments.groups import SEARCHES
from saeflow.experiments.methods import (
    METHODS,
    STRATEGIES,
    Matchings,
    Predecessors,
    check_names,
    deactivation_strategies,
    origin_methods,
)
from saeflow.experiments.results import Results, RunRequest
from saeflow.experiments.sampling import Sample, draw, open_dataset
from saeflow.experiments.settings import DeactivationSize, InputNames, OriginsSize
from saeflow.files import cache_folder
from saeflow.ids import Part, Site
from saeflow.matching.atlas import Atlas, open_atlas
from saeflow.matching.build import refuse_other_weights
from saeflow.plain_types import Progress
from saeflow.sources.activity import TextBatch, site_states
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.massive import ordinary
from saeflow.sources.model import LanguageModel, load_model

Bars = Callable[[str], Progress]
"""Makes a progress callback, given the name that users see."""

Note = Callable[[str], None]
"""Called with a remark for the user, such as that a dataset has too few texts."""


def model_name(release: str, dictionaries: DictionarySet, given: str = "") -> str:
    """The name of a release's language model: the given name, or else the one that its dictionaries state.

    Raises:
        InvalidArgument: when there is neither.
    """
    named = given or dictionaries.model
    if not named:
        raise InvalidArgument(f"{release} does not say which model it is of. Give it with --model.")
    return named


def opened_model(
    release: str,
    dictionaries: DictionarySet,
    model: LanguageModel | str = "",
    *,
    device: str = "cpu",
    prepend_bos: bool | None = None,
) -> LanguageModel:
    """The model: `model` itself if it is loaded already, or else loaded by its name or the one the release states.

    A model loaded here begins texts as its dictionaries say, unless `prepend_bos` is given.

    Raises:
        InvalidArgument: when the model is named nowhere.
        BadFile, Unreachable: when it cannot be loaded.
    """
    if not isinstance(model, str):
        return model
    named = model_name(release, dictionaries, model)
    return load_model(named, device=device, prepend_bos=prepend_bos).as_trained(dictionaries)


def opened_together(
    release: str | Path | Mapping[Site, Dictionary],
    model: LanguageModel | str = "",
    *,
    device: str = "cpu",
    prepend_bos: bool | None = None,
) -> tuple[str, LanguageModel, Mapping[Site, Dictionary]]:
    """Open a release by name, or take dictionaries in memory; return its name (or ""), its model and its dictionaries.

    Raises:
        InvalidArgument: when the model is named nowhere.
        As `load_dictionaries` and `load_model` do.
    """
    if isinstance(release, str | Path):
        name, found = str(release), load_dictionaries(release, device=device)
    else:
        name, found = str(getattr(release, "name", "")), release
    if isinstance(found, DictionarySet):
        return name, opened_model(name, found, model, device=device, prepend_bos=prepend_bos), found
    if isinstance(model, str):
        if not model:
            raise InvalidArgument("dictionaries in a plain mapping do not say which model they are of. Give model=...")
        model = load_model(model, device=device, prepend_bos=prepend_bos)
    return name, model, found


def atlas_beside(
    dictionaries: Mapping[Site, Dictionary], release: str, atlas: str = "", sites: Collection[Site] = ()
) -> Atlas | None:
    """The named atlas, or that of the release; None if none is named and the release has none.

    Args:
        dictionaries: the dictionaries that the atlas must have been made from.
        release: the release whose atlas is opened when none is named.
        atlas: the name or folder of the atlas.
        sites: sites whose weights are compared; by default all that both have.

    Raises:
        UnknownRelease: when the named atlas does not exist.
        InvalidArgument: when the atlas was made from other weights.
        BadFile: when it cannot be read.
    """
    try:
        opened = open_atlas(atlas or release)
    except UnknownRelease:
        if atlas:
            raise
        return None
    refuse_other_weights(opened, dictionaries, set(sites or dictionaries) & set(opened.sites))
    return opened


@dataclass(frozen=True)
class Inputs:
    """What origins and deactivation run on.

    Attributes:
        names: the names that everything was opened from.
        model: the language model.
        dictionaries: the dictionaries at its sites.
        atlas: the cosine tables.
        layers: the residual layers of the experiment; ascending unless given otherwise.
    """

    names: InputNames
    model: LanguageModel
    dictionaries: DictionarySet
    atlas: Atlas
    layers: list[int]

    @staticmethod
    def open(names: InputNames, *, first: int) -> Inputs:
        """Open everything; names of datasets and the atlas are checked before anything large is loaded.

        Args:
            names: the names to open.
            first: the first layer used when `names` gives no layers.

        Raises:
            InvalidArgument: for an unknown dataset, a layer without matches, a release without a model, or an atlas
                of other weights.
            UnknownRelease, BadFile, Unreachable: when something cannot be opened.
        """
        for name in (*names.sampled, *names.held):
            open_dataset(name)
        atlas = open_atlas(names.atlas or names.release)
        covered = sorted({source.layer for source, target in atlas if source.part is Part.RES and target < source})
        layers = list(names.layers) or [layer for layer in covered if layer >= first]
        if missing := sorted(set(layers) - set(covered)):
            raise InvalidArgument(
                f"--layers names {missing[0]}{f' and {n} more' if (n := len(missing) - 1) else ''}, of which the atlas "
                f"has no matches. It covers layers {covered[0]} to {covered[-1]}."
            )
        dictionaries = load_dictionaries(names.release, device=names.device)
        named = model_name(names.release, dictionaries, names.model)
        sites = {site for pair in atlas if pair[0].layer in layers and pair[1] < pair[0] for site in pair}
        refuse_other_weights(atlas, dictionaries, sites)
        model = opened_model(names.release, dictionaries, named, device=names.device, prepend_bos=names.prepend_bos)
        return Inputs(names, model, dictionaries, atlas, layers)

    def matchings(self, bars: Bars | None = None) -> Matchings:
        """The tables of every matching method, each made or opened on first use."""
        names, given = self.names, None
        if names.pearson:
            given = open_atlas(names.pearson)
            refuse_other_weights(given, self.dictionaries, {site for pair in self.atlas for site in pair})
        return Matchings(
            self.model,
            self.dictionaries,
            self.atlas,
            self.layers,
            cache_folder() / "matches",
            [open_dataset(name) for name in names.held],
            given,
            names.release,
            names.seed,
            bars,
        )

    def samples(self, texts: int, tokens: int, max_length: int, note: Note | None = None) -> list[Sample]:
        """Draw up to `texts` texts of each dataset with `tokens` random tokens each.

        Positions that are massive (`sources.massive`) at any of the layers' sites or their matched sites are excluded:
        what fires there fires because of the norm. `note` receives their number, and a remark for each dataset with
        too few texts.

        Raises:
            InvalidArgument, MissingExtra, BadFile, Unreachable: as `sampling.draw` does.
        """

        def encode(text: str) -> Sequence[int]:
            return self.model.tokenize([text], max_length=max_length).input_ids[0].tolist()

        def massive(text: str) -> Collection[int]:
            batch = TextBatch.of(self.model, [text], max_length=max_length)
            states = site_states(self.model, self.dictionaries, sites, batch.tokens).values()
            kept = torch.stack([ordinary(h, batch.real) for h in states]).all(dim=0)
            return (batch.real & ~kept)[0].nonzero().flatten().tolist()

        pairs = [pair for pair in self.atlas if pair[0].layer in self.layers and pair[1] < pair[0]]
        sites = sorted({site for pair in pairs for site in pair})
        special = self.model.tokenizer.all_special_ids
        found: list[Sample] = []
        for name in self.names.sampled:
            drawn = draw(
                open_dataset(name),
                encode,
                n_texts=texts,
                n_tokens=tokens,
                seed=self.names.seed,
                special=special,
                beside=massive,
            )
            if len(drawn) < texts and note:
                note(f"{name}: {len(drawn)} texts, as many as there are to sample")
            found += drawn
        if note and (n := sum(sample.left_out for sample in found)):
            note(f"{n} positions of {len(found)} texts are massive at a site (above 100 medians) and were not drawn")
        return found

    def request(self, experiment: str, methods: Sequence[Predecessors], arguments: Mapping[str, Any]) -> RunRequest:
        """The record of this request, by which a results folder is recognised when it is resumed."""
        names = self.names
        atlases = {method.method: method.made_by for method in methods}
        made_here = any("pearson" in name for name in atlases) and not names.pearson
        fitted = list(names.held) if made_here else []
        return RunRequest(
            experiment,
            names.release,
            self.model.name or names.release,
            names.seed,
            names.sampled,
            atlases,
            {**arguments, "pearson_datasets": fitted, "prepend_bos": self.model.prepend_bos},
        )


def origins(
    inputs: Inputs,
    size: OriginsSize,
    *,
    out: Path | str,
    bars: Bars | None = None,
    note: Note | None = None,
    engine: Engine | None = None,
) -> Results:
    """Run the origins experiment (section 5.1) into a results folder; an unfinished run is resumed.

    `engine` processes the texts; None for this process.

    Raises:
        InvalidArgument: for an unknown method, no text, or a folder of another request.
        BadFile: when the folder is damaged.
    """
    from saeflow.experiments.origins import run_origins

    arguments = {"texts": size.texts, "tokens": size.tokens, "layers": inputs.layers, "max_length": size.max_length}
    check_names("method", size.methods, METHODS)
    Results.refuse_folder(out, inputs.request("origins", (), arguments))
    matched = origin_methods(size.methods, inputs.matchings(bars))
    return run_origins(
        inputs.model,
        inputs.dictionaries,
        matched,
        partial(inputs.samples, size.texts, size.tokens, size.max_length, note),
        request=inputs.request("origins", matched, arguments),
        out=out,
        progress=bars and bars("origins"),
        engine=engine,
    )


def deactivation(
    inputs: Inputs,
    size: DeactivationSize,
    *,
    out: Path | str,
    bars: Bars | None = None,
    note: Note | None = None,
    engine: Engine | None = None,
) -> Results:
    """Run the deactivation experiment (section 5.2) into a results folder; an unfinished run is resumed.

    `engine` processes the texts; None for this process.

    Raises:
        InvalidArgument: for an unknown strategy, no text, or a folder of another request.
        BadFile: when the folder is damaged.
    """
    from saeflow.experiments.deactivation import run_deactivation

    arguments: dict[str, Any] = {
        "texts": size.texts,
        "tokens": size.tokens,
        "features": size.features,
        "layers": inputs.layers,
        "r": size.r,
        "loss": "all" if size.loss is None else str(size.loss),
        "searches": tuple(name for name in size.strategies if name in SEARCHES),
        "max_length": size.max_length,
    }
    check_names("strategy", size.strategies, STRATEGIES)
    Results.refuse_folder(out, inputs.request("deactivation", (), arguments))
    matched, _ = deactivation_strategies(size.strategies, inputs.matchings(bars))
    return run_deactivation(
        inputs.model,
        inputs.dictionaries,
        matched,
        partial(inputs.samples, size.texts, size.tokens, size.max_length, note),
        size,
        request=inputs.request("deactivation", matched, arguments),
        out=out,
        progress=bars and bars("deactivation"),
        engine=engine,
    )
