"""Counterfactual hidden states of single tokens within one layer: the least that has to be run again.

    edit at R_{L-1}   block L at the one token, beside the clean keys and values of the tokens before
    edit at A_L       the MLP at that token; nothing in a parallel block, whose MLP does not see it
    edit at M_L       nothing: the residual stream moves by the edit

With sandwich norms (Gemma 2 and 3) A_L and M_L are what the norm hands on, so the same holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.experiments.causal.clean import CleanActivations
from saeflow.experiments.causal.counterfactual import Counterfactual
from saeflow.experiments.causal.rescaling import RowEdit, rescaled
from saeflow.experiments.causal.trial import Stage
from saeflow.sources.architectures import Tap
from saeflow.sources.blocks import CleanPass
from saeflow.sources.hooks import Change

Held = Mapping[Tap | None, Tensor]
"""The hidden states `[n width]` of a batch at each tap that was computed; None is what the block reads."""


def recompute(
    clean: CleanPass, activations: CleanActivations, layer: int, work: Stage, batch: Sequence[Counterfactual]
) -> Held:
    """The hidden states of some counterfactuals of one layer and one kind of work, a row each.

    Raises:
        WidthMismatch: when a dictionary does not fit the hidden states.
        BadFile: when a tensor of a dictionary, read at first use, is bad.
    """
    device = clean.final.device
    positions = torch.tensor([one.position for one in batch], device=device)
    edits = {stage: _row_edits(batch, stage, activations) for stage in Stage}
    changes = {
        activations.dictionary(stage.site(layer)).tap: _change(activations, layer, stage, edits[stage])
        for stage in (Stage.ATT, Stage.MLP)
        if edits[stage]
    }
    if work is Stage.EXIT:
        return _added(clean, layer, positions, changes)
    entry = clean.stages[layer].entry[positions]
    if work is Stage.ENTRY:
        entry = _change(activations, layer, Stage.ENTRY, edits[Stage.ENTRY])(entry)
    held = clean.rows(layer, entry, positions, changes, attend=work is Stage.ENTRY)
    return {None: entry, **held}


def _added(clean: CleanPass, layer: int, positions: Int[Tensor, " n"], changes: Mapping[Tap, Change]) -> Held:
    held: dict[Tap | None, Tensor] = {}
    exit_ = clean.stages[layer].taps[Tap.RES][positions]
    for tap, change in changes.items():
        before = clean.stages[layer].taps[tap][positions]
        held[tap] = change(before)
        exit_ = exit_ + (held[tap] - before)
    return {**held, Tap.RES: exit_}


def _change(activations: CleanActivations, layer: int, stage: Stage, edits: Sequence[RowEdit]) -> Change:
    dictionary = activations.dictionary(stage.site(layer))

    def change(h: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        return rescaled(h, dictionary, edits)

    return change


def _row_edits(batch: Sequence[Counterfactual], stage: Stage, activations: CleanActivations) -> list[RowEdit]:
    """The edits at one stage; the first edit of a counterfactual reads clean activations, which are known."""
    edits: list[RowEdit] = []
    for row, one in enumerate(batch):
        for edit in one.edits:
            if edit.stage is stage:
                values = None
                if stage is one.first:
                    active = activations.at(stage.site(one.layer), one.position).by_index
                    values = tuple(active[index] for index in edit.features)
                edits.append(RowEdit(row, edit.features, edit.r, values))
    return edits
