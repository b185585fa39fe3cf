"""Deactivation: remove the predecessors of an active feature at one token and see what is left of it (section 5.2).

For one text (appendix A.2):

1. The clean pass. At each sampled token and layer, up to 25 active residual features are targets.
2. Each strategy names predecessors of a target; those that are active give its group. What it names at each
   part is removed alone, then all together. Each removal has a control: other active features of the same
   sites, as many and alike in norm.
3. Under the first strategy, all available predecessors are also rescaled by each r of a sweep (figure 7), for
   some targets with the loss of the text. Their controls are rescaled by the same r: the same features for all r.
4. Searches say what matching could have found (table 1). Exhaustive search removes each active feature of the
   predecessor sites alone and keeps the best for each target: the most a single predecessor can do. Greedy search goes
   on from there, adding the active feature that lowers the target most until it is silent, nothing helps, or the set
   is full; the paper stops at one feature.
5. All edits of the text go to the causal engine together, each once; the rows are read off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from saeflow.engines import Engine
from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.experiments.causal import PreparedText, Trial
from saeflow.experiments.methods import Predecessors
from saeflow.experiments.records import (
    EXHAUSTIVE,
    GREEDY,
    PARTS,
    DeactivationTrial,
    Effect,
    Origin,
    Removal,
    RunRequest,
)
from saeflow.experiments.results import Results, Row, versions
from saeflow.experiments.sampling import Sample, generator
from saeflow.experiments.token_layer import RowNorms, TokenLayer
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Rescale
from saeflow.records import Progress
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

SWEEP = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)

LARGEST_SET = 5
"""Features a greedy set may hold."""

CANDIDATES = 32
"""Active features greedy search looks at: those that lower the target most when removed alone."""


@dataclass(frozen=True, slots=True)
class DeactivationSettings:
    """What is done at each text; defaults are those of appendix A.2 and figure 7.

    Attributes:
        layers: residual layers of the targets.
        n_targets: the most targets of a token and layer.
        r: factors of the sweep under the first strategy; r = 0 is always done.
        loss_targets: targets of a text whose sweep and its control have the loss too; None for all.
        searches: "exhaustive", "greedy", both or neither.
        max_length: texts are cut to so many tokens, as they were when sampled.
        seed: of targets, controls and loss targets.

    Raises:
        InvalidArgument: for a value outside its range.
    """

    layers: tuple[int, ...]
    n_targets: int = 25
    r: tuple[float, ...] = SWEEP
    loss_targets: int | None = 4
    searches: tuple[str, ...] = (EXHAUSTIVE, GREEDY)
    max_length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range."""
        if self.n_targets < 1 or self.max_length < 1 or (self.loss_targets or 0) < 0:
            raise InvalidArgument(
                f"n_targets = {self.n_targets}, max_length = {self.max_length}, loss_targets = {self.loss_targets}: "
                "the first two are 1 or more, the third 0 or more, or None for all."
            )
        unknown = set(self.searches) - {EXHAUSTIVE, GREEDY}
        if unknown:
            raise InvalidArgument(f"there is no search {', '.join(sorted(unknown))}. Known: {EXHAUSTIVE}, {GREEDY}.")
        if not all(np.isfinite(self.r)):
            raise InvalidArgument(f"the factors r = {self.r} hold one that is no number. 0 removes, 1 keeps.")


def deactivate(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    strategies: Sequence[Predecessors],
    sample: Sample,
    settings: DeactivationSettings,
    norms: RowNorms | None = None,
) -> list[DeactivationTrial]:
    """All trials of one text.

    A target without an available predecessor gives one trial that removes nothing ("nowhere"), so that the
    rows count every target. The rows of a search carry the group of the first strategy, and its predecessors
    decide their new group.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: at res L, res L-1, mlp L and att L of the layers; a site without one is left out.
        strategies: what names predecessors; the first is swept over r, and is the lens of the searches.
        sample: the text and its tokens.
        settings: what is done.
        norms: lengths of decoder rows, when they are there from another text.

    Raises:
        InvalidArgument: without strategies.
        UnknownSite: for a layer without a dictionary, or that no strategy covers.
    """
    _check(dictionaries, strategies, settings)
    tokens = model.tokenize([sample.content], max_length=settings.max_length)
    # a plain dict: a DictionarySet checks every look-up, and there are a hundred thousand a text
    sites = {Site(layer, Part.RES) for layer in settings.layers}
    sites |= {predecessor for site in sites for predecessor in site.predecessors}
    around = {site: dictionaries[site] for site in sorted(sites) if site in dictionaries}
    text = PreparedText(model, around, tokens, layers=settings.layers, positions=sample.positions)
    norms = norms or RowNorms(around, {})
    return list(_TextTrials(text, sample, strategies, norms, settings).run())


def run_deactivation(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    strategies: Sequence[Predecessors],
    samples: Callable[[], Sequence[Sample]],
    settings: DeactivationSettings,
    *,
    request: RunRequest,
    out: Path | str,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Results:
    """All trials of all samples into a results folder; a killed run resumes where it stopped.

    `samples` is called for a new folder only: a run that resumes reads its samples back. `engine` is where texts are
    done; this process when None.

    Raises:
        InvalidArgument: when the folder holds a run with other arguments; without samples or strategies.
        UnknownSite: for a layer without a dictionary, or that no strategy covers.
    """
    _check(dictionaries, strategies, settings)
    results = Results.start(out, request, lambda: [sample.to_row() for sample in samples()], versions())
    return results.run(_Deactivate(model, dictionaries, strategies, settings), progress, engine)


@dataclass(frozen=True, eq=False)
class _Deactivate:
    """The rows of one text."""

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    strategies: Sequence[Predecessors]
    settings: DeactivationSettings

    @cached_property
    def norms(self) -> RowNorms:
        return RowNorms(self.dictionaries, {})

    def __call__(self, unit: Row) -> list[Row]:
        trials = deactivate(self.model, self.dictionaries, self.strategies, Sample.of(unit), self.settings, self.norms)
        return [trial.to_row(number) for number, trial in enumerate(trials)]


def _check(
    dictionaries: Mapping[Site, Dictionary], strategies: Sequence[Predecessors], settings: DeactivationSettings
) -> None:
    if not strategies:
        raise InvalidArgument("deactivation was asked for without strategies. Give one or more, such as top-1.")
    for layer in settings.layers:
        site = Site(layer, Part.RES)
        if site not in dictionaries:
            raise UnknownSite(f"there is no dictionary at {site}. Give other layers.")
        if not any(source == site for strategy in strategies for source, _ in strategy.named):
            raise UnknownSite(f"no strategy has matches for {site}. Give layers the atlas covers.")


@dataclass(frozen=True, slots=True, eq=False)
class _Planned:
    """A row to be: the removal, and what decides the group of its target afterwards."""

    here: TokenLayer
    target: FeatureId
    removal: Removal
    edit: TokenEdit
    named: Mapping[Part, Sequence[FeatureId]]
    controls: int | None = None

    @property
    def watch(self) -> list[FeatureId]:
        return [self.target, *(feature for features in self.named.values() for feature in features)]


class _TextTrials:
    """The trials of one text, planned and then answered."""

    def __init__(
        self,
        text: PreparedText,
        sample: Sample,
        strategies: Sequence[Predecessors],
        norms: RowNorms,
        settings: DeactivationSettings,
    ) -> None:
        self.sample, self.strategies, self.settings = sample, strategies, settings
        self.asked = EditBatch(text)
        self.planned: list[_Planned] = []
        self.controls: dict[tuple[int, FeatureId, tuple[FeatureId, ...]], tuple[FeatureId, ...] | None] = {}
        self.places = [
            TokenLayer.at(text, layer, position, sample, norms, n_targets=settings.n_targets, seed=settings.seed)
            for position in sample.positions
            for layer in settings.layers
        ]
        self.targets = [(here, target) for here in self.places for target in here.targets]
        self.with_loss = self._loss_targets()

    def run(self) -> Iterator[DeactivationTrial]:
        for here, target in self.targets:
            for strategy in self.strategies:
                self._plan_strategy(here, target, strategy)
            self._plan_sweep(here, target)
        if self.settings.searches:
            for here in self.places:
                _ask_singles(self.asked, here)
        self.asked.answer()
        if EXHAUSTIVE in self.settings.searches:
            self._plan_exhaustive()
        if GREEDY in self.settings.searches:
            self._plan_greedy()
        self.asked.answer()
        return map(self._trial, self.planned)

    def _plan_strategy(self, here: TokenLayer, target: FeatureId, strategy: Predecessors) -> None:
        named = here.named(strategy, target)
        available = here.available(named)
        sets: list[tuple[Part, ...]] = [(part,) for part in available]
        if len(available) != 1:
            sets.append(tuple(available))
        for parts in sets:
            features = tuple(sorted(feature for part in parts for feature in available[part]))
            self._plan_with_control(here, target, strategy.method, available, parts, features, named)

    def _plan_sweep(self, here: TokenLayer, target: FeatureId) -> None:
        """Add the other r for all available predecessors and for their control; r = 0 is there already."""
        first = self.strategies[0]
        named = here.named(first, target)
        available = here.available(named)
        features = tuple(sorted(feature for chosen in available.values() for feature in chosen))
        if not features:
            return
        for r in sorted(set(self.settings.r) - {0.0}):
            self._plan_with_control(here, target, first.method, available, tuple(available), features, named, r=r)
        if (here.position, target) in self.with_loss:
            for edited in filter(None, (features, self._control(here, target, features))):
                for r in {*self.settings.r, 0.0}:
                    self.asked.ask(TokenEdit.of(here.layer, here.position, edited, r), (target,), loss=True)

    def _plan_with_control(
        self,
        here: TokenLayer,
        target: FeatureId,
        strategy: str,
        available: Iterable[Part],
        parts: Iterable[Part],
        features: tuple[FeatureId, ...],
        named: Mapping[Part, Sequence[FeatureId]],
        *,
        r: float = 0.0,
    ) -> None:
        """Add an edit, and its control where there are features for one: the same ones whatever r is."""
        row = self._plan(here, target, strategy, available, parts, features, named, r=r)
        control = self._control(here, target, features) if features else None
        if control:
            self._plan(here, target, strategy, available, parts, control, named, r=r, controls=row)

    def _control(
        self, here: TokenLayer, target: FeatureId, features: tuple[FeatureId, ...]
    ) -> tuple[FeatureId, ...] | None:
        """The control of an edit, drawn once: every r and every strategy that edits the same has the same."""
        key = here.position, target, features
        if key not in self.controls:
            self.controls[key] = here.control(target, features, self.sample, self.settings.seed)
        return self.controls[key]

    def _plan(
        self,
        here: TokenLayer,
        target: FeatureId,
        strategy: str,
        available: Iterable[Part],
        parts: Iterable[Part],
        features: tuple[FeatureId, ...],
        named: Mapping[Part, Sequence[FeatureId]],
        *,
        r: float = 0.0,
        controls: int | None = None,
    ) -> int:
        """Add a row, ask for what it needs, and return its number."""
        norm = float(np.sqrt(sum(here.norm(feature) ** 2 for feature in features)))
        removal = Removal(
            strategy,
            controls is not None,
            Origin.of(available),
            Origin.of(parts),
            {feature: here.of(feature) for feature in features},
            norm,
            r,
        )
        edit = TokenEdit.of(here.layer, here.position, features, r)
        planned = _Planned(here, target, removal, edit, named, controls)
        self.asked.ask(edit, planned.watch)
        self.planned.append(planned)
        return len(self.planned) - 1

    def _plan_exhaustive(self) -> None:
        for here, target in self.targets:
            named = here.named(self.strategies[0], target)
            for part in PARTS:
                best = _best_single(self.asked, here, target, part)
                if best is not None:
                    group = here.available(named)
                    self._plan_with_control(here, target, EXHAUSTIVE, group, (part,), best.features, named)

    def _plan_greedy(self) -> None:
        sets = _greedy(self.asked, self.places)
        for here, target in self.targets:
            named = here.named(self.strategies[0], target)
            features = sets[here.layer, here.position, target].features
            parts = {feature.part for feature in features}
            group = here.available(named)
            self._plan_with_control(here, target, GREEDY, group, parts, features, named)

    def _loss_targets(self) -> set[tuple[int, FeatureId]]:
        """Targets with an available predecessor whose sweep has the loss, drawn once for the text."""
        first, n = self.strategies[0], self.settings.loss_targets
        every = [(here.position, target) for here, target in self.targets if here.available(here.named(first, target))]
        if n is None or len(every) <= n:
            return set(every)
        rng = generator(self.settings.seed, "loss", self.sample.dataset, self.sample.content)
        return {every[place] for place in rng.choice(len(every), n, replace=False).tolist()}

    def _trial(self, planned: _Planned) -> DeactivationTrial:
        edit, target = planned.edit, planned.target
        still = [
            part
            for part, features in planned.named.items()
            if any(self.asked.after(edit, feature) > 0 for feature in features)
        ]
        swept = planned.removal.strategy == self.strategies[0].method and (edit.position, target) in self.with_loss
        whole = planned.removal.removed == planned.removal.group
        old, new = (self.asked.losses(edit) if swept and whole else None) or (None, None)
        z_old = planned.here.targets[target]
        effect = Effect(z_old, self.asked.after(edit, target), Origin.of(still), old, new)
        return DeactivationTrial(
            self.sample.dataset, self.sample.text, edit.position, target, planned.removal, effect, planned.controls
        )


@dataclass(frozen=True, slots=True)
class TokenEdit:
    """Rescale some active features of the inputs of a layer at one token.

    Attributes:
        layer: L.
        position: the token, a column of the text.
        features: ascending; of any of the sites res L-1, att L, mlp L; may be none.
        r: the factor, 0 to remove.
    """

    layer: int
    position: int
    features: tuple[FeatureId, ...]
    r: float = 0.0

    @staticmethod
    def of(layer: int, position: int, features: Iterable[FeatureId], r: float = 0.0) -> TokenEdit:
        """An edit of features in any order."""
        return TokenEdit(layer, position, tuple(sorted(features)), r)

    @property
    def edits(self) -> tuple[Rescale, ...]:
        """One edit a site."""
        by_site: dict[Site, list[FeatureId]] = {}
        for feature in self.features:
            by_site.setdefault(feature.site, []).append(feature)
        return tuple(Rescale(tuple(features), self.r) for features in by_site.values())


class EditBatch:
    """Activations after edits of one text: asked for by anyone, computed together when `answer` is called.

    Strategies overlap: cosine and Pearson mostly name the same predecessor, and one feature is removed for several
    targets of a token. So an edit is a value, what is read after it is collected over all who ask, and the engine gets
    one trial for each edit.
    """

    def __init__(self, text: PreparedText) -> None:
        """Ask nothing yet."""
        self._text = text
        self._known: dict[TokenEdit, dict[FeatureId, float]] = {}
        self._asked: dict[TokenEdit, dict[FeatureId, None]] = {}
        self._losses: dict[TokenEdit, tuple[float, float]] = {}
        self._asked_losses: dict[TokenEdit, None] = {}

    def ask(self, edit: TokenEdit, watch: Iterable[FeatureId], *, loss: bool = False) -> None:
        """Read `watch` after `edit`, and the loss of the text if wanted, at the next `answer`."""
        known = self._known.get(edit, {})
        missing = [feature for feature in watch if feature not in known]
        if missing:
            self._asked.setdefault(edit, {}).update(dict.fromkeys(missing))
        if loss and edit not in self._losses:
            self._asked_losses[edit] = None

    def answer(self) -> None:
        """Compute everything asked since the last time."""
        with_loss = [edit for edit in self._asked if edit in self._asked_losses]
        with_loss += [edit for edit in self._asked_losses if edit not in self._asked]
        without = [edit for edit in self._asked if edit not in self._asked_losses]
        for edits, loss in ((without, False), (with_loss, True)):
            trials = [self._trial(edit) for edit in edits]
            for edit, trial, outcome in zip(edits, trials, self._text.run(trials, loss=loss), strict=True):
                self._known.setdefault(edit, {}).update(zip(trial.watch, outcome.after, strict=True))
                if outcome.loss_before is not None and outcome.loss_after is not None:
                    self._losses[edit] = outcome.loss_before, outcome.loss_after
        self._asked, self._asked_losses = {}, {}

    def after(self, edit: TokenEdit, feature: FeatureId) -> float:
        """The activation of a feature after an edit; it must have been asked for and answered."""
        return self._known[edit][feature]

    def losses(self, edit: TokenEdit) -> tuple[float, float] | None:
        """Loss of the text before and after an edit; None where it was not asked for."""
        return self._losses.get(edit)

    def _trial(self, edit: TokenEdit) -> Trial:
        return Trial(edit.layer, edit.position, edit.edits, tuple(self._asked.get(edit, ())))


def _ask_singles(asked: EditBatch, here: TokenLayer) -> None:
    """Ask for every active predecessor removed alone, all targets watched."""
    for features in here.active.values():
        for feature in features:
            asked.ask(TokenEdit(here.layer, here.position, (feature,)), here.targets)


def _best_single(asked: EditBatch, here: TokenLayer, target: FeatureId, part: Part) -> TokenEdit | None:
    """The active feature of one site whose removal leaves least of the target; None where none is active."""
    edits = [TokenEdit(here.layer, here.position, (feature,)) for feature in here.active.get(part, ())]
    return min(edits, key=lambda edit: asked.after(edit, target), default=None)


@dataclass
class _Search:
    """A greedy search for one target, between rounds."""

    here: TokenLayer
    target: FeatureId
    candidates: list[FeatureId]
    best: TokenEdit
    z: float
    open: bool = True

    def edits(self) -> list[TokenEdit]:
        """The set so far with each further candidate."""
        chosen = self.best.features
        return [
            TokenEdit.of(self.best.layer, self.best.position, (*chosen, feature))
            for feature in self.candidates
            if feature not in chosen
        ]

    def step(self, asked: EditBatch) -> None:
        """Take the best of the answered edits, or end the search."""
        best = min(self.edits(), key=lambda edit: asked.after(edit, self.target), default=None)
        z = self.z if best is None else asked.after(best, self.target)
        if best is None or z >= self.z:
            self.open = False
            return
        self.best, self.z = best, z
        self.open = z > 0 and len(best.features) < LARGEST_SET


def _greedy(asked: EditBatch, places: Sequence[TokenLayer]) -> dict[tuple[int, int, FeatureId], TokenEdit]:
    """The greedy set for every target of a text, as (layer, position, target) -> edit, in rounds over all of them.

    The single removals must be answered already. A set is empty where no single removal lowers the target.
    """
    searches = [_begin(asked, here, target) for here in places for target in here.targets]
    for search in searches:
        search.step(asked)  # the first round is the exhaustive search
    while running := [search for search in searches if search.open]:
        for search in running:
            for edit in search.edits():
                asked.ask(edit, (search.target,))
        asked.answer()
        for search in running:
            search.step(asked)
    return {(search.here.layer, search.here.position, search.target): search.best for search in searches}


def _begin(asked: EditBatch, here: TokenLayer, target: FeatureId) -> _Search:
    every = [feature for part in PARTS for feature in here.active.get(part, ())]
    every.sort(key=lambda feature: asked.after(TokenEdit(here.layer, here.position, (feature,)), target))
    empty = TokenEdit(here.layer, here.position, ())
    return _Search(here, target, every[:CANDIDATES], empty, here.targets[target])
