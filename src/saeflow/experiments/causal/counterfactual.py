"""Trials reduced to what has to be computed: counterfactuals, equal ones once, those that change nothing never."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from saeflow.experiments.causal.clean import CleanActivations
from saeflow.experiments.causal.trial import Stage, Trial


class StageEdit(NamedTuple):
    """A Rescale at one stage: its features in ascending order."""

    stage: Stage
    features: tuple[int, ...]
    r: float


class Counterfactual(NamedTuple):
    """A token of a layer under edits, in the order of computation; whatever a trial watches is left out."""

    layer: int
    position: int
    edits: tuple[StageEdit, ...]

    @property
    def first(self) -> Stage:
        """The first stage that changes."""
        return self.edits[0].stage

    def moves(self, stage: Stage, *, parallel: bool) -> bool:
        """Whether the hidden state at a stage may differ from the clean one."""
        if parallel and stage is Stage.MLP and self.first is Stage.ATT:
            return any(edit.stage is Stage.MLP for edit in self.edits)  # the MLP does not see attention
        return stage >= self.first


def counterfactual(trial: Trial, clean: CleanActivations) -> Counterfactual:
    """What a trial changes, with everything that changes nothing taken out.

    An edit with r = 1 changes nothing. The first edit that is left reads clean activations, so its silent
    features change nothing either; where all are silent, the next edit reads clean activations. Later edits
    read what the first one left and stay whole.

    Raises:
        UnknownSite: for an edit at a site without a dictionary.
    """
    edits = sorted(
        StageEdit(stage, tuple(sorted(feature.index for feature in edit.features)), edit.r)
        for edit in trial.edits
        if not isinstance(edit.r, tuple)
        and edit.r != 1.0
        and (stage := Stage.of(edit.site, trial.layer)) is not None
    )
    while edits:
        stage, features, r = edits[0]
        active = clean.at(stage.site(trial.layer), trial.position).by_index
        loud = tuple(index for index in features if index in active)
        if loud:
            edits[0] = StageEdit(stage, loud, r)
            break
        edits.pop(0)
    return Counterfactual(trial.layer, trial.position, tuple(edits))


def by_layer_and_work(
    made: Iterable[Counterfactual], *, parallel: bool, through_z: dict[int, bool]
) -> dict[tuple[int, Stage], list[Counterfactual]]:
    """Counterfactuals by layer and by the first stage that has to be run again.

    ENTRY: the block. ATT: what follows attention. EXIT: nothing, the edits add up: an edit of the MLP's output,
    or in a parallel block of what attention adds, where nothing else reads it.
    """
    groups: dict[tuple[int, Stage], list[Counterfactual]] = {}
    for one in made:
        if not one.edits:
            continue
        work = one.first
        if work is Stage.MLP or (work is Stage.ATT and parallel and not through_z[one.layer]):
            work = Stage.EXIT
        groups.setdefault((one.layer, work), []).append(one)
    return groups
