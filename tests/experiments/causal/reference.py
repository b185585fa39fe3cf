"""The plain way: one whole forward pass with hooks for every trial, and the whole dictionary encoded."""

from __future__ import annotations

import torch

from saeflow.experiments.causal import Outcome
from saeflow.ids import Part, Site
from saeflow.interventions import Positions, Rescale
from saeflow.sources.architectures import Point


def order(edit, layer):
    """The order of computation: res L-1, att L, mlp L."""
    return [Site(layer - 1, Part.RES) if layer else None, Site(layer, Part.ATT), Site(layer, Part.MLP)].index(edit.site)


class Reference:
    """Answers trials on one text; the clean pass of each set of watched features is made once."""

    def __init__(self, model, dictionaries, tokens):
        self.model, self.dictionaries, self.tokens = model, dictionaries, tokens
        self.clean = {}

    def outcome(self, trial):
        """What `PreparedText.run([trial], loss=True)` has to return."""
        edits = [
            Rescale(edit.features, edit.r, tokens=Positions((trial.position,)))
            for edit in sorted(trial.edits, key=lambda edit: order(edit, trial.layer))
        ]
        key = (trial.position, trial.watch)
        if key not in self.clean:
            self.clean[key] = self._measure(trial)
        before, loss_before = self.clean[key]
        with self.model.intervening(edits, self.dictionaries):
            after, loss_after = self._measure(trial)
        return Outcome(before, after, loss_before, loss_after)

    def _measure(self, trial):
        sites = sorted({feature.site for feature in trial.watch})
        points = {site: Point(site.layer, self.dictionaries[site].tap) for site in sites}
        held = self.model.capture(self.tokens, points.values(), logits=True)
        acts = {}
        for site, point in points.items():
            dictionary = self.dictionaries[site]
            acts[site] = dictionary.encode(held[point][0, trial.position].to(dictionary.W_enc)).tolist()
        loss = torch.nanmean(self.tokens.loss(held.logits).double())
        return tuple(acts[feature.site][feature.index] for feature in trial.watch), float(loss)
