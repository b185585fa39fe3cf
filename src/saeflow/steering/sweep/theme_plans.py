"""From a theme to plans: the features its flow graphs find, and how strong each setting makes them (appendix B).

    theme.starts -> graphs -> targets -> those that are kept -> for each setting of a sweep, a plan

A theme is prepared once for a theme; the plan of a setting then costs no search and no forward pass, but where a
budget limits a suppression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Part, Site
from saeflow.steering.growth import Reach, Target, activation_plan, grow, pick, suppression_plan, targets
from saeflow.steering.output_score import PROMPTS, output_scores
from saeflow.steering.plan import Direction, Dropped, SteeringPlan
from saeflow.steering.sizes import fit_budget, hidden_norms
from saeflow.steering.stream_rows import fold_scales, has_threshold, typical_activations
from saeflow.steering.sweep.inputs import Inputs
from saeflow.steering.sweep.settings import SINGLE, START, Setting, Variant
from saeflow.steering.theme import Theme

SIZE_TEXTS: Final = 64
"""Background texts that sizes are measured on: hidden norms, typical activations."""


@dataclass(frozen=True, eq=False)
class ThemePlans:
    """A theme's features, ready to be made into plans.

    Attributes:
        inputs: what plans are made for.
        theme: whose features they are.
        variant: how they were found and how strong each is.
        targets: the features that are changed.
        starts: the theme's own features, for the baseline that changes these alone; no filter leaves one out.
        dropped: features that were found and left out.
    """

    inputs: Inputs
    theme: Theme
    variant: Variant
    targets: tuple[Target, ...]
    starts: tuple[Target, ...]
    dropped: tuple[Dropped, ...]

    @staticmethod
    def of(inputs: Inputs, theme: Theme, variant: Variant) -> ThemePlans:
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
        graphs = grow(theme.starts, inputs.matches, thresholds=variant.thresholds, k=variant.k)
        found = targets(graphs, parts=variant.parts)
        drop = {
            target.feature: f"there is no dictionary at {target.feature.site}"
            for target in found
            if target.feature.site not in inputs.dictionaries
        }
        drop |= _weak(inputs, theme, variant, [t.feature for t in found if t.feature not in drop])
        kept, dropped = pick(found, drop=drop)
        if not kept:
            raise InvalidArgument(
                f"no feature of the theme {theme.name!r} is left to steer: {len(dropped)} were found and left out, "
                f"the first for {dropped[0].why if dropped else 'its part'}. Lower the thresholds, or keep more parts."
            )
        starts = tuple(Target(feature, True, None, (feature,)) for feature in sorted(theme.starts))
        return ThemePlans(inputs, theme, variant, kept, starts, dropped)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers with a feature to change, ascending."""
        return tuple(sorted({target.feature.layer for target in self.targets}))

    @property
    def counts(self) -> dict[str, list[int]]:
        """How many features there are at each site, and how many of them are starts: `{"2/res": [5, 1]}`."""
        found: dict[Site, list[int]] = {}
        for target in self.targets:
            count = found.setdefault(target.feature.site, [0, 0])
            count[0] += 1
            count[1] += target.start
        return {str(site): found[site] for site in sorted(found)}

    @property
    def avoided(self) -> frozenset[FeatureId]:
        """What a random row may not be: every feature the graphs found, kept or not."""
        features = [target.feature for target in (*self.targets, *self.starts)]
        return frozenset([*features, *(dropped.feature for dropped in self.dropped)])

    def plan(self, direction: Direction, setting: Setting) -> SteeringPlan:
        """The plan of a setting that changes features of this theme.

        Raises:
            InvalidArgument: when no feature lies in its reach.
        """
        method, layer = setting.method, setting.layer
        if method == START:
            plan = self._make(direction, setting, self.starts, Reach.SPAN, None)
        else:
            reach = Reach.SINGLE if method == SINGLE else Reach.CUMULATIVE
            plan = self._make(direction, setting, self.targets, reach, layer)
        return self._within_budget(plan)

    def _make(
        self, direction: Direction, setting: Setting, chosen: Sequence[Target], reach: Reach, upto: int | None
    ) -> SteeringPlan:
        inputs = self.inputs
        told = {"method": setting.method, **self.variant.to_arguments()}
        model = inputs.model.name
        if direction is Direction.SUPPRESS:
            return suppression_plan(
                chosen, setting.value, reach=reach, upto=upto, release=inputs.release, model=model,
                theme=self.theme.name, dropped=self.dropped, made_by=told,
            )  # fmt: skip
        schedule = self.variant.schedule(setting.schedule, setting.value)
        scales = self.scales if self.variant.fold else None
        return activation_plan(
            chosen, schedule, reach=reach, upto=upto, scales=scales, release=inputs.release, model=model,
            theme=self.theme.name, dropped=self.dropped, made_by=told,
        )  # fmt: skip

    @cached_property
    def scales(self) -> dict[FeatureId, float]:
        """What a coefficient of 1 means for each target and start, in units of the hidden state.

        Raises:
            InvalidArgument: for a feature without a threshold that is never active on the texts there are.
        """
        inputs = self.inputs
        features = [target.feature for target in (*self.targets, *self.starts)]
        bare = [f for f in features if not has_threshold(inputs.dictionaries[f.site], f)]
        texts = [*self.theme.examples, *_spread(inputs.background)]
        known = typical_activations(inputs.model, inputs.dictionaries, bare, texts) if bare and texts else {}
        return fold_scales(inputs.dictionaries, features, activity=known, model=inputs.model, texts=texts)

    @cached_property
    def _norms(self) -> dict[Site, float]:
        layers = {target.feature.layer for target in (*self.targets, *self.starts)}
        return hidden_norms(self.inputs.model, [Site(layer, Part.RES) for layer in layers], self._texts)

    @property
    def _texts(self) -> Sequence[str]:
        if not self.inputs.background:
            raise InvalidArgument(
                "a budget needs texts to measure hidden norms on. Give some with --background, or leave the budget out."
            )
        return _spread(self.inputs.background)

    def _within_budget(self, plan: SteeringPlan) -> SteeringPlan:
        budget = self.variant.budget
        if budget is None or not plan.steps:
            return plan
        # a theme's features are silent on other texts: what a suppression changes is measured on its own
        texts = [*self.theme.examples, *self._texts]
        return fit_budget(plan, budget, self.inputs.dictionaries, self.inputs.model, texts, norms=self._norms)


def _spread(texts: Sequence[str]) -> list[str]:
    """At most `SIZE_TEXTS` of the texts, evenly from all of them: those of one kind often stand together."""
    n = min(len(texts), SIZE_TEXTS)
    return [texts[place * len(texts) // n] for place in range(n)]


def _weak(
    inputs: Inputs, theme: Theme, variant: Variant, features: Sequence[FeatureId]
) -> dict[FeatureId, str]:
    """Features whose output score is too low, with the reason."""
    least = variant.min_output_score
    if least is None or not features:
        return {}
    own = sorted({task.prompt for task in (theme.activate, theme.suppress) if task is not None})
    prompts = (*PROMPTS, *own)
    scores = output_scores(inputs.model, inputs.dictionaries, features, prompts=prompts)
    return {f: f"output score {score:.2g}, below {least:g}" for f, score in scores.items() if score < least}
