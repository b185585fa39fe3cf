"""A theme of a sweep, ready to be made into the plan of any setting (appendix B).

The features of a theme are chosen once, and their scales are measured once; the plan of a setting then costs no
search and no forward pass, but where a budget limits a suppression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Part, Site
from saeflow.steering.build import PlanRequest, choose, own_scales, plan_of, weak_features
from saeflow.steering.growth import Chosen, Reach, Target
from saeflow.steering.plan import SteeringDirection, SteeringPlan
from saeflow.steering.sizes import fit_budget, hidden_norms
from saeflow.steering.sweep.inputs import SweepInputs
from saeflow.steering.sweep.settings import SINGLE, START, Setting, Variant
from saeflow.steering.theme import Theme

SIZE_TEXTS: Final = 64
"""Background texts that sizes are measured on: hidden norms, typical activations."""


@dataclass(frozen=True, eq=False)
class ThemePlans:
    """The plans of a theme.

    Attributes:
        inputs: what plans are made for.
        theme: whose features they are.
        variant: how they were found and how strong each is.
        chosen: the features that are changed, and those that were found and left out.
        starts: the theme's own features, for the baseline that changes these alone; no filter leaves one out.
    """

    inputs: SweepInputs
    theme: Theme
    variant: Variant
    chosen: Chosen
    starts: tuple[Target, ...]

    @staticmethod
    def of(inputs: SweepInputs, theme: Theme, variant: Variant) -> ThemePlans:
        """Grow the graphs of a theme and choose among their features.

        Raises:
            InvalidArgument: for a theme without starts, or of which no feature is left.
            UnknownSite, UnknownFeature: for a start that the matches or the dictionaries do not know.
        """
        if not theme.starts:
            raise InvalidArgument(
                f"the theme {theme.name!r} has no features to start from. Find some with `saeflow find`, and name them "
                "as starts in its file."
            )
        chosen = choose(_request(inputs, theme, variant), inputs.matches)
        strange = [feature for feature in chosen.features if feature.site not in inputs.dictionaries]
        chosen = chosen.without({feature: f"there is no dictionary at {feature.site}" for feature in strange})
        if variant.min_output_score is not None and chosen.kept:
            prompts = sorted({task.prompt for task in (theme.activate, theme.suppress) if task})
            weak = weak_features(
                chosen.features, variant.min_output_score, inputs.dictionaries, inputs.model, prompts=prompts
            )
            chosen = chosen.without(weak)
        if not chosen.kept:
            gone = chosen.dropped
            raise InvalidArgument(
                f"no feature of the theme {theme.name!r} is left to steer: {len(gone)} were found and left out, "
                f"the first for {gone[0].why if gone else 'its part'}. Lower the thresholds, or keep more parts."
            )
        starts = tuple(Target(feature, True, None, (feature,)) for feature in sorted(theme.starts))
        return ThemePlans(inputs, theme, variant, chosen, starts)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers with a feature to change, ascending."""
        return tuple(sorted({target.feature.layer for target in self.chosen.kept}))

    @property
    def counts(self) -> dict[str, list[int]]:
        """How many features there are at each site, and how many of them are starts: `{"2/res": [5, 1]}`."""
        found: dict[Site, list[int]] = {}
        for target in self.chosen.kept:
            count = found.setdefault(target.feature.site, [0, 0])
            count[0] += 1
            count[1] += target.start
        return {str(site): found[site] for site in sorted(found)}

    @property
    def avoided(self) -> frozenset[FeatureId]:
        """What a random row may not be: every feature the graphs found, kept or not."""
        named = (*self.chosen.kept, *self.starts, *self.chosen.dropped)
        return frozenset(one.feature for one in named)

    def plan(self, direction: SteeringDirection, setting: Setting) -> SteeringPlan:
        """The plan of a setting that changes features of this theme.

        Raises:
            InvalidArgument: when no feature lies in its reach.
        """
        inputs, variant, start = self.inputs, self.variant, setting.method == START
        request = replace(
            _request(inputs, self.theme, variant),
            direction=direction,
            schedule=variant.schedule(setting.schedule, setting.value),
            r=setting.value,
            reach=Reach.SPAN if start else Reach.SINGLE if setting.method == SINGLE else Reach.CUMULATIVE,
            upto=None if start else setting.layer,
        )
        chosen = Chosen(self.starts, self.chosen.dropped) if start else self.chosen
        made_by = {"method": setting.method, **variant.to_arguments()}
        plan = plan_of(chosen, request, scales=self.scales if request.folds else None, made_by=made_by)
        plan = replace(plan, model=inputs.model.name)
        if variant.budget is None or not plan.steps:
            return plan
        # a theme's features are silent on other texts: what a suppression changes is measured on its own
        texts = [*self.theme.examples, *self._texts]
        return fit_budget(plan, variant.budget, inputs.dictionaries, inputs.model, texts, norms=self._norms)

    @cached_property
    def scales(self) -> dict[FeatureId, float]:
        """What a coefficient of 1 means for each target and start, in units of the hidden state.

        Raises:
            InvalidArgument: for a feature without a threshold that is never active on the texts there are.
        """
        features = [target.feature for target in (*self.chosen.kept, *self.starts)]
        texts = [*self.theme.examples, *_spread(self.inputs.background)]
        return own_scales(features, self.inputs.dictionaries, self.inputs.model, texts)[0]

    @cached_property
    def _norms(self) -> dict[Site, float]:
        layers = {target.feature.layer for target in (*self.chosen.kept, *self.starts)}
        return hidden_norms(self.inputs.model, [Site(layer, Part.RES) for layer in layers], self._texts)

    @property
    def _texts(self) -> Sequence[str]:
        if not self.inputs.background:
            raise InvalidArgument(
                "a budget needs texts to measure hidden norms on. Give some with --background, or leave the budget out."
            )
        return _spread(self.inputs.background)


def _request(inputs: SweepInputs, theme: Theme, variant: Variant) -> PlanRequest:
    """What all settings of a theme have in common."""
    return PlanRequest(
        release=inputs.release,
        theme=theme.name,
        starts=theme.starts,
        thresholds=variant.thresholds,
        k=variant.k,
        parts=variant.parts,
        fold=variant.fold,
    )


def _spread(texts: Sequence[str]) -> list[str]:
    """At most `SIZE_TEXTS` of the texts, evenly from all of them: those of one kind often stand together."""
    n = min(len(texts), SIZE_TEXTS)
    return [texts[place * len(texts) // n] for place in range(n)]
