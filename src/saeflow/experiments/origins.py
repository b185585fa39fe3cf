"""Origins: which matched predecessors are active together with each active feature (section 5.1, appendix A.1).

For every sampled token and every residual layer L, this records the features active at R_L and, for each, the group of
parts where a matched predecessor (at R_{L-1}, M_L, A_L) is active at the same token. All matching methods look at the
same tokens. One forward pass per text; each dictionary encodes the sampled tokens of the text in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from saeflow.engines import Engine
from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.experiments.groups import Origin
from saeflow.experiments.methods import Predecessors, to_bytes
from saeflow.experiments.results import Results, Row, RunRequest, significant, versions
from saeflow.experiments.sampling import Sample
from saeflow.files import write_atomic
from saeflow.ids import Part, Site
from saeflow.plain_types import Progress
from saeflow.sources.activity import site_states
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

MATCHES = "matches.safetensors"


@dataclass(frozen=True, slots=True)
class OriginTrial:
    """The active features of one residual layer at one token, and their groups (section 5.1, appendix A.1).

    Attributes:
        dataset: name of the dataset.
        text: number of the text among the samples of the dataset, from 0.
        position: position of the token in the text; 0 is the begin-of-text token, if there is one.
        layer: L of the residual site.
        features: indices of the active features at `L/res`, ascending.
        activations: their activations, above 0.
        groups: for each matching method, one digit per feature: the value of its `Origin`, 0 to 7.
    """

    dataset: str
    text: int
    position: int
    layer: int
    features: tuple[int, ...]
    activations: tuple[float, ...]
    groups: Mapping[str, str]

    def to_row(self) -> dict[str, Any]:
        """The trial as a row of a results folder."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def observe_origins(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    methods: Sequence[Predecessors],
    sample: Sample,
    *,
    layers: Sequence[int],
    max_length: int = 128,
) -> list[OriginTrial]:
    """Find the groups of all active residual features at the sampled tokens of one text.

    Args:
        model: the model that the dictionaries were trained on.
        dictionaries: at least those at the residual sites of `layers` and at the sites that the methods name. A
            transcoder's features are active by what it reads, and stand for the site that it writes.
        methods: matching methods with distinct names.
        sample: the text and its tokens.
        layers: residual layers L.
        max_length: truncate the text to this many tokens, as when it was sampled.

    Returns:
        One trial per token and layer, in this order; features ascend.

    Raises:
        UnknownSite: for a layer that no method covers, or a site without a dictionary.
        InvalidArgument: for a token outside the text.
    """
    sites = [Site(layer, Part.RES) for layer in layers]
    named = {
        site: {target for method in methods for source, target in method.named if source == site} for site in sites
    }
    for site in sites:
        if not named[site]:
            covered = sorted({layer for method in methods for layer in method.layers})
            raise UnknownSite(f"no method has matches for {site}. Layers with matches: {covered}.")
    needed = sorted({*sites, *(target for targets in named.values() for target in targets)})
    tokens = model.tokenize([sample.content], max_length=max_length)
    if max(sample.positions) >= tokens.input_ids.shape[1]:
        raise InvalidArgument(
            f"token {max(sample.positions)} of text {sample.text} of {sample.dataset} lies beyond its "
            f"{tokens.input_ids.shape[1]} tokens. Sample with the same max_length."
        )
    found: list[OriginTrial] = []
    columns = list(sample.positions)
    acts = {
        site: dictionaries[site].encode(h[0, columns]).detach().float().cpu().numpy()
        for site, h in site_states(model, dictionaries, needed, tokens).items()
    }
    on = {site: values > 0 for site, values in acts.items()}
    for site in sites:
        rows, features = np.nonzero(on[site])
        values = acts[site][rows, features]
        groups = {method.method: _groups(method, site, features, rows, on) for method in methods}
        for row, position in enumerate(columns):
            here = rows == row
            found.append(
                OriginTrial(
                    sample.dataset,
                    sample.text,
                    position,
                    site.layer,
                    tuple(features[here].tolist()),
                    tuple(significant(value, 5) for value in values[here].tolist()),
                    {name: "".join(map(str, digits[here].tolist())) for name, digits in groups.items()},
                )
            )
    order = {position: place for place, position in enumerate(columns)}
    return sorted(found, key=lambda trial: (order[trial.position], trial.layer))


def run_origins(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    methods: Sequence[Predecessors],
    samples: Callable[[], Sequence[Sample]],
    *,
    request: RunRequest,
    out: Path | str,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Results:
    """Observe all samples into a results folder; a killed run resumes where it stopped.

    `request.arguments` must hold `layers` and `max_length`. `samples` is called for a new folder only: a resumed run
    reads its samples from the folder, and needs no dataset. `engine` processes the texts; None for this process.

    Raises:
        InvalidArgument: when the folder holds a run with other arguments, or there is no sample.
    """
    results = Results.start(out, request, lambda: [sample.to_row() for sample in samples()], versions())
    write_atomic(results.folder / MATCHES, to_bytes(methods))
    layers, max_length = request.arguments["layers"], request.arguments["max_length"]
    work = partial(_rows_of_text, model, dictionaries, methods, layers, max_length)
    return results.run(work, progress, engine)


def _rows_of_text(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    methods: Sequence[Predecessors],
    layers: Sequence[int],
    max_length: int,
    unit: Row,
) -> list[Row]:
    trials = observe_origins(model, dictionaries, methods, Sample.of(unit), layers=layers, max_length=max_length)
    return [trial.to_row() for trial in trials]


def _groups(
    method: Predecessors,
    site: Site,
    features: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " n"],
    on: Mapping[Site, Bool[np.ndarray, "batch n_features"]],
) -> Int[np.ndarray, " n"]:
    """The `Origin` value of each feature under one method."""
    groups = np.zeros(len(features), dtype=np.int64)
    for predecessor in site.predecessors:
        named = method.named.get((site, predecessor))
        if named is not None:
            active = named.active(features, rows, on[predecessor])
            groups |= np.where(active, Origin[predecessor.part.name].value, 0)
    return groups
