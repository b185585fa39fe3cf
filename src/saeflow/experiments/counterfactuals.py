"""Questions to the causal engine about one text: asked by anyone, answered together, each edit computed once.

Strategies overlap: cosine and Pearson mostly name the same predecessor, and one feature is removed for several
targets of a token. So an edit is a value (`Cut`), what is read after it is collected over all who ask, and
`answer` gives the engine one trial for each edit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from saeflow.experiments.causal import PreparedText, Trial
from saeflow.ids import FeatureId, Site
from saeflow.interventions import Rescale


@dataclass(frozen=True, slots=True)
class Cut:
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
    def of(layer: int, position: int, features: Iterable[FeatureId], r: float = 0.0) -> Cut:
        """A cut of features in any order."""
        return Cut(layer, position, tuple(sorted(features)), r)

    @property
    def edits(self) -> tuple[Rescale, ...]:
        """One edit a site."""
        by_site: dict[Site, list[FeatureId]] = {}
        for feature in self.features:
            by_site.setdefault(feature.site, []).append(feature)
        return tuple(Rescale(tuple(features), self.r) for features in by_site.values())


class Counterfactuals:
    """Activations after cuts of one text, computed when `answer` is called."""

    def __init__(self, text: PreparedText) -> None:
        """Ask nothing yet."""
        self._text = text
        self._known: dict[Cut, dict[FeatureId, float]] = {}
        self._asked: dict[Cut, dict[FeatureId, None]] = {}
        self._losses: dict[Cut, tuple[float, float]] = {}
        self._asked_losses: dict[Cut, None] = {}

    def ask(self, cut: Cut, watch: Iterable[FeatureId], *, loss: bool = False) -> None:
        """Read `watch` after `cut`, and the loss of the text if wanted, at the next `answer`."""
        known = self._known.get(cut, {})
        missing = [feature for feature in watch if feature not in known]
        if missing:
            self._asked.setdefault(cut, {}).update(dict.fromkeys(missing))
        if loss and cut not in self._losses:
            self._asked_losses[cut] = None

    def answer(self) -> None:
        """Compute everything asked since the last time."""
        with_loss = [cut for cut in self._asked if cut in self._asked_losses]
        with_loss += [cut for cut in self._asked_losses if cut not in self._asked]
        without = [cut for cut in self._asked if cut not in self._asked_losses]
        for cuts, loss in ((without, False), (with_loss, True)):
            trials = [self._trial(cut) for cut in cuts]
            for cut, trial, outcome in zip(cuts, trials, self._text.run(trials, loss=loss), strict=True):
                self._known.setdefault(cut, {}).update(zip(trial.watch, outcome.after, strict=True))
                if outcome.loss_before is not None and outcome.loss_after is not None:
                    self._losses[cut] = outcome.loss_before, outcome.loss_after
        self._asked, self._asked_losses = {}, {}

    def after(self, cut: Cut, feature: FeatureId) -> float:
        """The activation of a feature after a cut; it must have been asked for and answered."""
        return self._known[cut][feature]

    def losses(self, cut: Cut) -> tuple[float, float] | None:
        """Loss of the text before and after a cut; None where it was not asked for."""
        return self._losses.get(cut)

    def _trial(self, cut: Cut) -> Trial:
        return Trial(cut.layer, cut.position, cut.edits, tuple(self._asked.get(cut, ())))
