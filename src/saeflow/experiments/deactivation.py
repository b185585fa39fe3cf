"""Deactivation: remove the predecessors of an active feature at one token and measure what is left (section 5.2).

For one text (appendix A.2):

1. The clean pass. At each sampled token and layer, up to 25 active residual features are targets.
2. Each strategy names predecessors of a target; the parts at which any of them is active are the target's group. The
   active ones are removed at each part separately, then at all parts together. Each removal has a control: as many
   other active features of the same sites, of similar norm.
3. Under the first strategy, all available predecessors are also rescaled by each r of a sweep (figure 7), for some
   targets with the loss of the text. Their controls are rescaled by the same r, and are the same features for all r.
4. Searches show what matching could have found (table 1). Exhaustive search removes each active feature of the
   predecessor sites on its own and keeps the best of each site for each target: the most that a single predecessor
   can do. Greedy search continues from there, adding the active feature that lowers the target most until the target
   is silent, nothing helps, or the set is full; the paper stops at one feature.
5. All edits of the text are collected and each is computed once by the causal engine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saeflow.engines import Engine
from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.experiments.causal import PreparedText, Trial
from saeflow.experiments.groups import EXHAUSTIVE, GREEDY, PARTS, SEARCHES, Origin
from saeflow.experiments.methods import Predecessors
from saeflow.experiments.results import Results, Row, RunRequest, significant, versions
from saeflow.experiments.sampling import Sample, generator
from saeflow.experiments.settings import DeactivationSize
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Rescale
from saeflow.plain_types import Progress
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

LARGEST_SET = 5
"""The most features in a greedy set."""

CANDIDATES = 32
"""How many active features greedy search considers: those that lower the target most when removed on their own."""

HANDFUL = 5
"""How many random active features a control is chosen from."""


@dataclass(slots=True)
class DeactivationTrial:
    """One target, one edit of its predecessors at one token, and the outcome (section 5.2).

    Attributes:
        dataset: name of the dataset.
        text: number of the text among the samples of the dataset, from 0.
        position: position of the token in the text.
        target: a residual feature that is active there.
        controls: for a control, the number, among the trials of its text, of the trial that it controls; else None.
        strategy: the strategy that chose the features; for a control, that of the trial it controls.
        group: the group of the target under the strategy before the edit.
        removed: the parts whose predecessors were edited.
        features: the edited features and their activations before; for a control, other active ones in place of the
            strategy's.
        norm: root of the sum over the edited features of (activation times norm of the decoder row) squared.
        r: the factor; 0 removes.
        z_old: activation of the target before the edit, above 0.
        z_new: activation of the target after the edit.
        new_group: the group under the same strategy after the edit, from the recomputed activations.
        loss_old: mean next-token loss of the text in nats before the edit; None if not measured.
        loss_new: the same after the edit.
    """

    dataset: str
    text: int
    position: int
    target: FeatureId
    controls: int | None
    strategy: str
    group: Origin
    removed: Origin
    features: Mapping[FeatureId, float]
    norm: float
    r: float
    z_old: float
    z_new: float = math.nan
    new_group: Origin = Origin.NOWHERE
    loss_old: float | None = None
    loss_new: float | None = None

    @property
    def control(self) -> bool:
        """Whether this is a control: other active features in place of the strategy's."""
        return self.controls is not None

    @property
    def deactivated(self) -> bool:
        """Whether the target is silent after the edit, at exactly 0."""
        return self.z_new == 0

    @property
    def change(self) -> float:
        """1 - z_new / z_old: 1 when silent, 0 when nothing changed, below 0 when it grew (appendix A.2)."""
        return 1 - self.z_new / self.z_old

    def to_row(self, number: int) -> Row:
        """The trial as row `number` of its text."""
        return {
            "dataset": self.dataset,
            "text": self.text,
            "position": self.position,
            "layer": self.target.layer,
            "target": str(self.target),
            "trial": number,
            "controls": self.controls,
            "strategy": self.strategy,
            "control": self.control,
            "group": self.group.label,
            "removed": self.removed.label,
            "norm": significant(self.norm),
            "r": self.r,
            "features": {str(feature): significant(a) for feature, a in self.features.items()},
            "z_old": significant(self.z_old),
            "z_new": significant(self.z_new),
            "deactivated": self.deactivated,
            "change": significant(self.change),
            "new_group": self.new_group.label,
            "loss_old": self.loss_old,
            "loss_new": self.loss_new,
        }


def deactivation_trials(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    strategies: Sequence[Predecessors],
    sample: Sample,
    size: DeactivationSize,
    *,
    layers: Sequence[int],
    seed: int = 0,
    norms: RowNorms | None = None,
    targets: Collection[FeatureId] | None = None,
) -> list[DeactivationTrial]:
    """Run all trials of one text.

    A target without an available predecessor gives one trial per strategy that removes nothing ("nowhere"), so that the
    rows count every target. The rows of a search carry the group of the first strategy, whose predecessors also decide
    their new group.

    Args:
        model: the model that the dictionaries were trained on.
        dictionaries: those at res L, res L-1, mlp L and att L of the layers; predecessor sites may lack one.
        strategies: the strategies that name predecessors; the first is swept over r and gives searches their groups.
        sample: the text and its tokens.
        size: how many targets, the factors of the sweep, the losses, and the length that texts are truncated to, as
            when they were sampled; from its strategies only the searches are read.
        layers: residual layers of the targets.
        seed: seed of targets, controls and loss targets.
        norms: norms of the decoder rows, if kept from another text.
        targets: restricts the targets to these features, where active; None for all. `size` limits both.

    Raises:
        InvalidArgument: without strategies.
        UnknownSite: for a layer without a dictionary, or that no strategy covers.
    """
    _check(dictionaries, strategies, layers)
    tokens = model.tokenize([sample.content], max_length=size.max_length)
    # a plain dict, since a DictionarySet checks every look-up, and a text needs a hundred thousand of them
    sites = {Site(layer, Part.RES) for layer in layers}
    sites |= {predecessor for site in sites for predecessor in site.predecessors}
    around = {site: dictionaries[site] for site in sorted(sites) if site in dictionaries}
    text = PreparedText(model, around, tokens, layers=layers, positions=sample.positions)
    norms = norms or RowNorms(around)
    trials = _TextTrials(EditBatch(text), sample, strategies, size, seed)
    for position, layer in itertools.product(sample.positions, layers):
        here = TokenLayer.at(text, layer, position, sample, norms, size, seed, targets)
        trials.places.append(here)
    return trials.run()


def run_deactivation(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    strategies: Sequence[Predecessors],
    samples: Callable[[], Sequence[Sample]],
    size: DeactivationSize,
    *,
    request: RunRequest,
    out: Path | str,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Results:
    """Run all trials of all samples into a results folder; a killed run resumes where it stopped.

    `request.arguments` must hold `layers`; `request.seed` seeds every draw. `samples` is called for a new folder only:
    a resumed run reads its samples from the folder. `engine` processes the texts; None for this process.

    Raises:
        InvalidArgument: when the folder holds a run with other arguments; without samples or strategies.
        UnknownSite: for a layer without a dictionary, or that no strategy covers.
    """
    layers = request.arguments["layers"]
    _check(dictionaries, strategies, layers)
    results = Results.start(out, request, lambda: [sample.to_row() for sample in samples()], versions())
    norms = RowNorms(dictionaries)
    work = partial(_rows_of_text, model, dictionaries, strategies, size, layers, request.seed, norms)
    return results.run(work, progress, engine)


def _rows_of_text(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    strategies: Sequence[Predecessors],
    size: DeactivationSize,
    layers: Sequence[int],
    seed: int,
    norms: RowNorms,
    unit: Row,
) -> list[Row]:
    sample = Sample.of(unit)
    trials = deactivation_trials(model, dictionaries, strategies, sample, size, layers=layers, seed=seed, norms=norms)
    return [trial.to_row(number) for number, trial in enumerate(trials)]


def _check(dictionaries: Mapping[Site, Dictionary], strategies: Sequence[Predecessors], layers: Sequence[int]) -> None:
    if not strategies:
        raise InvalidArgument("deactivation was asked for without strategies. Give one or more, such as top-1.")
    for layer in layers:
        site = Site(layer, Part.RES)
        if site not in dictionaries:
            raise UnknownSite(f"there is no dictionary at {site}. Give other layers.")
        if not any(source == site for strategy in strategies for source, _ in strategy.named):
            raise UnknownSite(f"no strategy has matches for {site}. Give layers the atlas covers.")


@dataclass(frozen=True, slots=True)
class RowNorms:
    """The norms of the decoder rows of each site, computed on first use."""

    dictionaries: Mapping[Site, Dictionary]
    known: dict[Site, np.ndarray] = field(default_factory=dict[Site, np.ndarray])

    def of(self, feature: FeatureId) -> float:
        """The norm of a feature's decoder row."""
        if feature.site not in self.known:
            rows = self.dictionaries[feature.site].W_dec.float()
            self.known[feature.site] = torch.linalg.vector_norm(rows, dim=1).cpu().numpy()
        return float(self.known[feature.site][feature.index])


@dataclass(eq=False, slots=True)
class TokenEdit:
    """Rescale some active features of the inputs of a layer at one token; equal edits of a text share one object.

    Attributes:
        layer: L.
        position: the position of the token in the text.
        features: the features, ascending, at any of the sites res L-1, att L, mlp L; may be empty.
        r: the factor, 0 to remove.
        wanted: the features to read after the edit, at the next `EditBatch.answer`.
        wants_loss: whether the loss of the text is computed then too.
        after: the activations after the edit that are known so far.
        losses: the loss of the text before and after the edit; None if not computed.
    """

    layer: int
    position: int
    features: tuple[FeatureId, ...]
    r: float = 0.0
    wanted: dict[FeatureId, Any] = field(default_factory=dict[FeatureId, Any])
    wants_loss: bool = False
    after: dict[FeatureId, float] = field(default_factory=dict[FeatureId, float])
    losses: tuple[float, float] | None = None

    def to_trial(self) -> Trial:
        """The edit as a `Trial` for the causal engine, with one `Rescale` per site."""
        by_site: dict[Site, list[FeatureId]] = {}
        for feature in self.features:
            by_site.setdefault(feature.site, []).append(feature)
        edits = tuple(Rescale(tuple(features), self.r) for features in by_site.values())
        return Trial(self.layer, self.position, edits, tuple(self.wanted))


class EditBatch:
    """Collects the edits of one text and computes them together when `answer` is called.

    Strategies overlap: cosine and Pearson mostly name the same predecessor, and one feature is removed for several
    targets of a token. Therefore equal edits share one object that collects every feature to read, and the engine gets
    one trial per edit.
    """

    def __init__(self, text: PreparedText) -> None:
        """Start without edits."""
        self._text = text
        self._edits: dict[tuple[int, int, tuple[FeatureId, ...], float], TokenEdit] = {}
        self._asked: dict[TokenEdit, None] = {}

    def edit(self, layer: int, position: int, features: Iterable[FeatureId], r: float = 0.0) -> TokenEdit:
        """The edit of some features, given in any order."""
        key = layer, position, tuple(sorted(features)), r
        if key not in self._edits:
            self._edits[key] = TokenEdit(*key)
        return self._edits[key]

    def ask(self, edit: TokenEdit, watch: Iterable[FeatureId], *, loss: bool = False) -> None:
        """Request the activations of `watch` after an edit, and optionally the loss of the text, from `answer`."""
        edit.wanted.update(dict.fromkeys(watch))
        edit.wants_loss |= loss and edit.losses is None
        self._asked[edit] = None

    def answer(self) -> None:
        """Compute everything requested since the last call."""
        for edit in self._asked:
            if edit.after:
                edit.wanted = {feature: None for feature in edit.wanted if feature not in edit.after}
        for loss in (False, True):
            edits = [edit for edit in self._asked if edit.wants_loss == loss and (loss or edit.wanted)]
            trials = [edit.to_trial() for edit in edits]
            for edit, trial, outcome in zip(edits, trials, self._text.run(trials, loss=loss), strict=True):
                edit.after.update(zip(trial.watch, outcome.after, strict=True))
                if outcome.loss_before is not None and outcome.loss_after is not None:
                    edit.losses = outcome.loss_before, outcome.loss_after
                edit.wanted, edit.wants_loss = {}, False
        self._asked = {}


@dataclass(frozen=True, eq=False)
class TokenLayer:
    """The targets at one token and layer, and the active features of the predecessor sites.

    Attributes:
        layer: L.
        position: the position of the token in the text.
        targets: the active features of res L that are targets, with their activations.
        active: for the part of each predecessor site, its active features, ascending, with their activations.
        norms: the norms of the decoder rows.
    """

    layer: int
    position: int
    targets: Mapping[FeatureId, float]
    active: Mapping[Part, Mapping[FeatureId, float]]
    norms: RowNorms

    @staticmethod
    def at(
        text: PreparedText,
        layer: int,
        position: int,
        sample: Sample,
        norms: RowNorms,
        size: DeactivationSize,
        seed: int,
        only: Collection[FeatureId] | None = None,
    ) -> TokenLayer:
        """Read the clean pass; if more than `size.features` features are active, draw that many (appendix A.2)."""

        def active_at(site: Site) -> dict[FeatureId, float]:
            index, values = text.active(site, position)
            return {FeatureId(site, i): v for i, v in zip(index.tolist(), values.tolist(), strict=True)}

        site = Site(layer, Part.RES)
        targets = {feature: a for feature, a in active_at(site).items() if only is None or feature in only}
        if len(targets) > size.features:
            rng = generator(seed, "targets", sample.dataset, sample.content, position, layer)
            features = list(targets)
            kept = np.sort(rng.choice(len(targets), size.features, replace=False)).tolist()
            targets = {features[place]: targets[features[place]] for place in kept}
        active = {one.part: active_at(one) for one in site.predecessors if one in norms.dictionaries}
        return TokenLayer(layer, position, targets, active, norms)

    @cached_property
    def every(self) -> dict[FeatureId, float]:
        """All active features of the predecessor sites, by part in table order."""
        return {feature: a for part in PARTS for feature, a in self.active.get(part, {}).items()}

    def of(self, feature: FeatureId) -> float:
        """The clean activation of a predecessor, 0 when silent."""
        return self.every.get(feature, 0.0)

    def norm(self, feature: FeatureId) -> float:
        """|a| times the norm of the feature's decoder row: how far its removal moves the hidden state."""
        return abs(self.of(feature)) * self.norms.of(feature)

    def named(self, strategy: Predecessors, target: FeatureId) -> dict[Part, list[FeatureId]]:
        """The features that a strategy names for a target at each predecessor site, active or not."""
        found: dict[Part, list[FeatureId]] = {}
        for predecessor in target.site.predecessors:
            table = strategy.named.get((target.site, predecessor))
            if table is not None and predecessor.part in self.active:
                rows = table.index[target.index].tolist()
                found[predecessor.part] = [FeatureId(predecessor, row) for row in rows if row >= 0]
        return found

    def available(self, named: Mapping[Part, Iterable[FeatureId]]) -> dict[Part, tuple[FeatureId, ...]]:
        """The active ones among the named features, for the parts that have any."""
        kept = {part: tuple(f for f in named.get(part, ()) if self.of(f) > 0) for part in PARTS}
        return {part: features for part, features in kept.items() if features}

    def control(
        self, target: FeatureId, removed: tuple[FeatureId, ...], sample: Sample, seed: int
    ) -> tuple[FeatureId, ...] | None:
        """Other active features in place of those removed (`alike_in_norm`), drawn by token, target and `removed`."""
        rng = generator(seed, "control", sample.dataset, sample.content, self.position, str(target), *map(str, removed))
        return alike_in_norm(removed, self.active, self.norm, rng)


def alike_in_norm(
    removed: tuple[FeatureId, ...],
    active: Mapping[Part, Iterable[FeatureId]],
    norm: Callable[[FeatureId], float],
    rng: np.random.Generator,
) -> tuple[FeatureId, ...] | None:
    """Other active features in place of those removed: as many, of the same sites, of similar norm.

    For each removed feature, five active features of its site that are neither removed nor taken yet are drawn, and the
    one with the nearest norm by ratio is taken. None if a site has too few other active features.
    """
    taken: list[FeatureId] = []
    for feature in removed:
        others = [f for f in active[feature.part] if f not in removed and f not in taken]
        if not others:
            return None
        length = norm(feature)
        places = rng.choice(len(others), min(HANDFUL, len(others)), replace=False).tolist()
        distance = {others[place]: abs(math.log(norm(others[place]) / length)) for place in places}
        taken.append(min(distance, key=distance.__getitem__))
    return tuple(sorted(taken))


class _TextTrials:
    """Plans the trials of one text, has them computed together, and reads the outcomes."""

    def __init__(
        self, batch: EditBatch, sample: Sample, strategies: Sequence[Predecessors], size: DeactivationSize, seed: int
    ) -> None:
        self.batch, self.sample, self.strategies, self.size, self.seed = batch, sample, strategies, size, seed
        self.places: list[TokenLayer] = []
        self.targets: list[tuple[TokenLayer, FeatureId, dict[Part, list[FeatureId]]]] = []
        self.planned: list[tuple[DeactivationTrial, TokenEdit, Mapping[Part, Sequence[FeatureId]]]] = []
        self.controls: dict[tuple[int, FeatureId, tuple[FeatureId, ...]], tuple[FeatureId, ...] | None] = {}

    def run(self) -> list[DeactivationTrial]:
        # 1. every target with what the first strategy names for it; draw the targets whose sweep measures the loss
        first = self.strategies[0]
        self.targets = [(here, target, here.named(first, target)) for here in self.places for target in here.targets]
        every = [(here.position, target) for here, target, named in self.targets if here.available(named)]
        n = self.size.loss
        if n is not None and len(every) > n:
            rng = generator(self.seed, "loss", self.sample.dataset, self.sample.content)
            every = [every[place] for place in rng.choice(len(every), n, replace=False).tolist()]
        with_loss = set(every)
        # 2. plan the strategies and the sweep, then the searches
        for here, target, named in self.targets:
            for strategy in self.strategies:
                self._plan_strategy(here, target, strategy)
            self._plan_sweep(here, target, named, loss=(here.position, target) in with_loss)
        if set(self.size.strategies) & set(SEARCHES):
            self._plan_searches()
        self.batch.answer()
        # 3. read the outcomes
        for trial, edit, named in self.planned:
            trial.z_new = edit.after[trial.target]
            trial.new_group = Origin.of(p for p, features in named.items() if any(edit.after[f] > 0 for f in features))
            swept = trial.strategy == first.method and (trial.position, trial.target) in with_loss
            if swept and trial.removed == trial.group and edit.losses:
                trial.loss_old, trial.loss_new = edit.losses
        return [trial for trial, _, _ in self.planned]

    def _plan_strategy(self, here: TokenLayer, target: FeatureId, strategy: Predecessors) -> None:
        """Plan the removal of what a strategy names: each part on its own, then all parts together."""
        named = here.named(strategy, target)
        available = here.available(named)
        sets: list[tuple[Part, ...]] = [(part,) for part in available]
        if len(available) != 1:
            sets.append(tuple(available))
        for parts in sets:
            features = [feature for part in parts for feature in available[part]]
            self._plan(here, target, strategy.method, named, Origin.of(parts), features)

    def _plan_sweep(
        self, here: TokenLayer, target: FeatureId, named: Mapping[Part, Sequence[FeatureId]], *, loss: bool
    ) -> None:
        """Plan the other r for all available predecessors and their control; r = 0 is planned already."""
        available = here.available(named)
        features = tuple(sorted(feature for chosen in available.values() for feature in chosen))
        if not features:
            return
        for r in sorted(set(self.size.r) - {0.0}):
            self._plan(here, target, self.strategies[0].method, named, Origin.of(available), features, r)
        if loss:
            for edited in filter(None, (features, self._control(here, target, features))):
                for r in {*self.size.r, 0.0}:
                    self.batch.ask(self.batch.edit(here.layer, here.position, edited, r), (target,), loss=True)

    def _plan_searches(self) -> None:
        """Remove every active feature on its own, then plan the best of each site and the greedy sets."""
        singles: dict[TokenLayer, dict[FeatureId, TokenEdit]] = {}
        for here in self.places:
            singles[here] = {f: self.batch.edit(here.layer, here.position, (f,)) for f in here.every}
            for edit in singles[here].values():
                self.batch.ask(edit, here.targets)
        self.batch.answer()
        if EXHAUSTIVE in self.size.strategies:
            for here, target, named in self.targets:
                alone = {feature: edit.after[target] for feature, edit in singles[here].items()}
                for part in PARTS:
                    best = min(here.active.get(part, ()), key=alone.__getitem__, default=None)
                    if best is not None:
                        self._plan(here, target, EXHAUSTIVE, named, Origin.of((part,)), (best,))
        if GREEDY in self.size.strategies:
            for (here, target, named), best in zip(self.targets, self._greedy(singles), strict=True):
                parts = Origin.of({feature.part for feature in best.features})
                self._plan(here, target, GREEDY, named, parts, best.features)

    def _plan(
        self,
        here: TokenLayer,
        target: FeatureId,
        strategy: str,
        named: Mapping[Part, Sequence[FeatureId]],
        removed: Origin,
        features: Sequence[FeatureId],
        r: float = 0.0,
    ) -> None:
        """Add the trial of an edit, and of its control if there are features for one, and request what both need."""
        own = tuple(sorted(features))
        control = self._control(here, target, own) if own else None
        group = Origin.of(here.available(named))
        row = len(self.planned)
        for chosen, controls in ((own, None), *([(control, row)] if control else ())):
            edit = self.batch.edit(here.layer, here.position, chosen, r)
            norm = math.sqrt(sum(here.norm(feature) ** 2 for feature in chosen))
            self.batch.ask(edit, (target, *(feature for features in named.values() for feature in features)))
            trial = DeactivationTrial(
                self.sample.dataset,
                self.sample.text,
                here.position,
                target,
                controls,
                strategy,
                group,
                removed,
                {feature: here.of(feature) for feature in chosen},
                norm,
                r,
                here.targets[target],
            )
            self.planned.append((trial, edit, named))

    def _control(
        self, here: TokenLayer, target: FeatureId, features: tuple[FeatureId, ...]
    ) -> tuple[FeatureId, ...] | None:
        """The control of an edit, drawn once and shared by every r and strategy that edits the same features."""
        key = here.position, target, features
        if key not in self.controls:
            self.controls[key] = here.control(target, features, self.sample, self.seed)
        return self.controls[key]

    def _greedy(self, singles: Mapping[TokenLayer, Mapping[FeatureId, TokenEdit]]) -> list[TokenEdit]:
        """The greedy set of every target, in rounds over all targets; empty if no single removal lowers the target.

        The single removals must have been answered already: they are the first round.
        """
        best = [self.batch.edit(here.layer, here.position, ()) for here, _, _ in self.targets]
        z = [here.targets[target] for here, target, _ in self.targets]
        candidates: list[list[FeatureId]] = []
        for here, target, _ in self.targets:
            alone = {feature: edit.after[target] for feature, edit in singles[here].items()}
            candidates.append(sorted(alone, key=alone.__getitem__)[:CANDIDATES])
        tried = [[singles[t[0]][f] for f in some] for t, some in zip(self.targets, candidates, strict=True)]
        running = list(range(len(best)))
        while running:
            further: list[int] = []
            for place in running:
                target = self.targets[place][1]
                found = min(tried[place], key=lambda edit, target=target: edit.after[target], default=None)
                if found is not None and found.after[target] < z[place]:
                    best[place], z[place] = found, found.after[target]
                    if z[place] > 0 and len(found.features) < LARGEST_SET:
                        further.append(place)
            running = further
            for place in running:
                chosen, (here, target, _) = best[place].features, self.targets[place]
                others = [feature for feature in candidates[place] if feature not in chosen]
                tried[place] = [self.batch.edit(here.layer, here.position, (*chosen, feature)) for feature in others]
                for edit in tried[place]:
                    self.batch.ask(edit, (target,))
            self.batch.answer()
        return best
