"""The plans of a theme for any setting of a sweep (appendix B), and random rows in place of a plan's features.

A theme's features are chosen once and their scales measured once; the plan of a setting then needs no search, and no
forward pass unless a budget limits a suppression.

Random rows show what equally strong steering at the same sites does without the flow graph:

1. Every feature of the plan is replaced by a random row of its site that is not a target. Random directions of the
   stream would be a weak control, since unlike SAE rows they point where the model never goes.
2. Activation: each row keeps the strength of the one it replaces; then the rows of a site are rescaled together, so
   that what they add has the same length as in the plan, whether or not the plan's rows point alike.
3. Suppression: rescaling a silent feature changes nothing, so the row is drawn from the few that write about as much
   as the one it replaces, on average over unsteered text.
4. Each sample has its own draw, so that intervals over samples include the randomness of the draw.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from saeflow.errors import InvalidArgument
from saeflow.experiments.sampling import generator
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import AddVector, Span
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.weights import row_peaks
from saeflow.steering.activity import activity
from saeflow.steering.build import PlanRequest, choose, own_scales, plan_of, weak_features
from saeflow.steering.directions import text_means, theme_directions
from saeflow.steering.growth import Chosen, Reach, Target
from saeflow.steering.output_score import PROMPTS, output_scores
from saeflow.steering.plan import SteeringDirection, SteeringPlan, Step
from saeflow.steering.sizes import centred_norms, fit_budget, orthogonal, plan_change, shares, unit_rows
from saeflow.steering.sweep.inputs import SweepInputs
from saeflow.steering.sweep.settings import SINGLE, START, VECTORS, Setting, Variant
from saeflow.steering.theme import Theme

SIZE_TEXTS: Final = 64
"""The most background texts for measuring sizes: centred norms and typical activations."""


@dataclass(frozen=True, eq=False)
class ThemePlans:
    """Makes the plans of a theme.

    Attributes:
        inputs: the model and dictionaries to make plans for.
        theme: the theme whose features are steered.
        variant: how features are found and how strong each is.
        chosen: the features to change, and those that were found and left out.
        starts: the theme's start features, for the baseline that changes only these; filters do not apply to it.
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
            InvalidArgument: for a theme without starts, or when no feature is left.
            UnknownSite, UnknownFeature: for a start that is not in the matches or the dictionaries.
        """
        if not theme.starts or inputs.matches is None:
            raise InvalidArgument(
                f"the theme {theme.name!r} has no features to start from. Find some with `saeflow find`, and name them "
                "as starts in its file."
            )
        chosen = choose(_request(inputs, theme, variant), inputs.matches)
        strange = [feature for feature in chosen.features if feature.site not in inputs.dictionaries]
        chosen = chosen.without({feature: f"there is no dictionary at {feature.site}" for feature in strange})
        if variant.min_output_score is not None and chosen.kept:
            weak = weak_features(
                chosen.features, variant.min_output_score, inputs.dictionaries, inputs.model, prompts=_prompts(theme)
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

    def layers_of(self, method: str) -> tuple[int, ...]:
        """The layers where a method may act: `layers`, or for a vector all layers with a residual dictionary."""
        if method not in VECTORS:
            return self.layers
        return tuple(sorted(site.layer for site in self.inputs.dictionaries if site.part is Part.RES))

    @property
    def counts(self) -> dict[str, list[int]]:
        """The number of features at each site, and how many of them are starts: `{"2/res": [5, 1]}`."""
        found: dict[Site, list[int]] = {}
        for target in self.chosen.kept:
            count = found.setdefault(target.feature.site, [0, 0])
            count[0] += 1
            count[1] += target.start
        return {str(site): found[site] for site in sorted(found)}

    @property
    def avoided(self) -> frozenset[FeatureId]:
        """The features that random rows exclude: every feature the graphs found, kept or not."""
        named = (*self.chosen.kept, *self.starts, *self.chosen.dropped)
        return frozenset(one.feature for one in named)

    def plan(self, direction: SteeringDirection, setting: Setting) -> SteeringPlan:
        """The plan of a setting, of features or of a vector of this theme.

        Raises:
            InvalidArgument: when no feature lies in its reach, or texts that it needs are missing.
        """
        made = self._vector_plan(setting) if setting.method in VECTORS else self._feature_plan(direction, setting)
        if self.variant.keep_norm and direction is SteeringDirection.ACTIVATE:
            made = replace(made, keep_norm=True)
        if not self.variant.generated_only:
            return made
        prompt = self.inputs.model.tokenize([self.theme.task(direction).prompt]).input_ids
        return replace(made, tokens=Span(prompt.shape[1]))

    def _feature_plan(self, direction: SteeringDirection, setting: Setting) -> SteeringPlan:
        inputs, variant, start = self.inputs, self.variant, setting.method == START
        request = replace(
            _request(inputs, self.theme, variant),
            direction=direction,
            schedule=variant.schedule(setting.schedule, 1.0 if variant.in_shares else setting.value),
            r=setting.value,
            reach=Reach.SPAN if start else Reach.SINGLE if setting.method == SINGLE else Reach.CUMULATIVE,
            upto=None if start else setting.layer,
        )
        chosen = Chosen(self.starts, self.chosen.dropped) if start else self.chosen
        activates = direction is SteeringDirection.ACTIVATE
        made_by = {"method": setting.method, **variant.to_arguments()}
        plan = plan_of(chosen, request, scales=self.scales if request.folds else None, made_by=made_by)
        plan = replace(plan, model=inputs.model.name, only_active=variant.only_active and activates)
        if variant.by_output_score and activates and not start:
            scores = self._output_scores
            plan = replace(
                plan, steps=tuple(replace(step, value=step.value * scores[step.feature]) for step in plan.steps)
            )
        if variant.orthogonal and activates:
            plan = orthogonal(plan, inputs.dictionaries, inputs.model)
        if variant.in_shares and activates:
            change = plan_change(plan, inputs.dictionaries, inputs.model)
            return plan.scaled(setting.value / shares(change, self._norms).total)
        if variant.budget is None or not plan.steps:
            return plan
        # a theme's features are silent on other texts, so its examples show what a suppression changes
        texts = [*self.theme.examples, *self._texts]
        return fit_budget(plan, variant.budget, inputs.dictionaries, inputs.model, texts, norms=self._norms)

    def _vector_plan(self, setting: Setting) -> SteeringPlan:
        """One vector at one layer, whose length is the setting's share of the centred norm there."""
        site = Site(setting.layer, Part.RES)
        unit = self._vectors[setting.method][site]
        vector = tuple((setting.value * self._norms[site] * unit).tolist())
        return SteeringPlan(
            SteeringDirection.ACTIVATE,
            (),
            self.inputs.release,
            self.inputs.model.name,
            self.theme.name,
            made_by={"method": setting.method, "share": setting.value},
            vectors=(AddVector(site, vector),),
        )

    @cached_property
    def _vectors(self) -> dict[str, dict[Site, Float64[torch.Tensor, " d_model"]]]:
        """The unit vectors of each kind at each residual site, from the theme's examples and the background."""
        if not self.theme.examples:
            raise InvalidArgument(f"the theme {self.theme.name!r} has no examples to make a difference of. Add some.")
        sites = [Site(layer, Part.RES) for layer in self.layers_of(VECTORS[0])]
        on, off = (text_means(self.inputs.model, sites, texts) for texts in (self.theme.examples, self._texts))
        return {kind: theme_directions(on, off, kind) for kind in VECTORS}

    @cached_property
    def scales(self) -> dict[FeatureId, float]:
        """What a coefficient of 1 means for each target and start, in the units of the hidden state.

        Raises:
            InvalidArgument: for a feature without a threshold that is silent on the measured texts.
        """
        features = [target.feature for target in (*self.chosen.kept, *self.starts)]
        texts = [*self.theme.examples, *_spread(self.inputs.background)]
        return own_scales(features, self.inputs.dictionaries, self.inputs.model, texts)[0]

    @cached_property
    def _output_scores(self) -> dict[FeatureId, float]:
        """Output scores of the chosen features, at least 1e-6, so that a plan with only zero scores keeps its shape."""
        prompts = (*PROMPTS, *_prompts(self.theme))
        scores = output_scores(self.inputs.model, self.inputs.dictionaries, self.chosen.features, prompts=prompts)
        return {feature: max(score, 1e-6) for feature, score in scores.items()}

    @cached_property
    def _norms(self) -> dict[Site, float]:
        layers = {target.feature.layer for target in (*self.chosen.kept, *self.starts)} | {*self.layers_of(VECTORS[0])}
        return centred_norms(self.inputs.model, [Site(layer, Part.RES) for layer in layers], self._texts)

    @property
    def _texts(self) -> Sequence[str]:
        if not self.inputs.background:
            raise InvalidArgument(
                "a budget, shares and differences need texts of other things. Give some with --background, or leave "
                "them out."
            )
        return _spread(self.inputs.background)


def _request(inputs: SweepInputs, theme: Theme, variant: Variant) -> PlanRequest:
    """The part of the request that all settings of a theme have in common."""
    return PlanRequest(
        release=inputs.release,
        theme=theme.name,
        starts=theme.starts,
        thresholds=variant.thresholds,
        k=variant.k,
        parts=variant.parts,
        fold=variant.fold,
    )


def _prompts(theme: Theme) -> list[str]:
    """The prompts of a theme's tasks."""
    return sorted({task.prompt for task in (theme.activate, theme.suppress) if task})


def _spread(texts: Sequence[str]) -> list[str]:
    """At most `SIZE_TEXTS` texts, evenly spaced, since texts of one kind are often adjacent."""
    n = min(len(texts), SIZE_TEXTS)
    return [texts[place * len(texts) // n] for place in range(n)]


# --- random rows ------------------------------------------------------------------------------------------------------

NEAREST: Final = 8
"""How many rows with the most similar activity one is drawn from."""

Written = Mapping[Site, Float[np.ndarray, " n_features"]]
"""How much each feature writes on average, by site."""


def written_on(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    sites: Iterable[Site],
    texts: Sequence[str],
    *,
    max_length: int = 256,
) -> dict[Site, Float[np.ndarray, " n_features"]]:
    """How much each feature writes on some texts: the mean of a |V| over tokens that are not special.

    Args:
        model: what the texts run through, unsteered.
        dictionaries: by site.
        sites: the sites to measure at.
        texts: one or more, each with a token that is not special.
        max_length: tokens that texts are truncated to.

    Raises:
        InvalidArgument: without sites, or for a text that has only special tokens.
        UnknownSite: for a site without a dictionary.
    """
    found = activity(model, dictionaries, texts, sites=sites, max_length=max_length)
    share = found.lengths / found.lengths.sum()
    lengths = {
        site: torch.linalg.vector_norm(dictionaries[site].written_rows(model), dim=1).float().cpu().numpy()
        for site in found.sites
    }
    return {site: (share @ means) * lengths[site] for site, means in found.means.items()}


def random_mirrors(
    plan: SteeringPlan,
    dictionaries: Mapping[Site, Dictionary],
    model: LanguageModel,
    *,
    avoid: Collection[FeatureId],
    seeds: Sequence[int],
    active: Written | None = None,
) -> list[SteeringPlan]:
    """For each seed, a plan that acts like `plan` at the same sites, but on random rows.

    Args:
        plan: the plan to mirror.
        dictionaries: where the rows come from.
        model: projects rows of z.
        avoid: features that are not drawn, such as the targets of the theme.
        seeds: each draw is a function of its seed and of the plan's features.
        active: how much features write on unsteered text; needed for a suppression.

    Raises:
        InvalidArgument: for a suppression without `active`; when a site has too few other rows.
        UnknownSite: for a site without a dictionary.
    """
    if plan.direction is SteeringDirection.SUPPRESS and active is None:
        raise InvalidArgument(
            "random features for a suppression are chosen by how much they write, and that was not given. Pass "
            "active=written_on(model, dictionaries, plan.sites, texts)."
        )
    left_out = {*avoid, *plan.features}
    drawn: list[list[Step]] = [[] for _ in seeds]
    for site in plan.sites:
        steps = [step for step in plan.steps if step.feature.site == site]
        features = [step.feature for step in steps]
        # 1. find the rows that may be drawn, and draw for each seed
        free = (row_peaks(dictionaries[site].finite_rows("W_dec")) > 0).cpu().numpy()
        free[[feature.index for feature in left_out if feature.site == site]] = False
        if int(free.sum()) < len(steps):
            raise InvalidArgument(
                f"{site} has {int(free.sum())} rows that no target names, and {len(steps)} are needed for a random "
                "baseline. Leave the random method out, or steer fewer features."
            )
        chosen = [_rows(features, free, seed, None if active is None else active[site]) for seed in seeds]
        # 2. to activate, rescale the rows so that their sum is as long as that of the plan's own rows
        scales = [1.0] * len(seeds)
        if plan.direction is SteeringDirection.ACTIVATE:
            strength = torch.tensor([step.value for step in steps], dtype=torch.float64)
            own, *others = (
                float(torch.linalg.vector_norm(strength @ unit_rows(dictionaries[site], some, model)))
                for some in (features, *([FeatureId(site, row) for row in rows] for rows in chosen))
            )
            scales = [own / there if there > 0 else 1.0 for there in others]
        for draw, rows, scale in zip(drawn, chosen, scales, strict=True):
            draw += [
                Step(FeatureId(site, row), step.value * scale, why=f"random row in place of {step.feature}")
                for step, row in zip(steps, rows, strict=True)
            ]
    return [replace(plan, steps=tuple(draw), dropped=()) for draw in drawn]


def _rows(
    features: Sequence[FeatureId],
    free: Bool[np.ndarray, " n_features"],
    seed: int,
    active: Float[np.ndarray, " n_features"] | None,
) -> list[int]:
    """A different row for each feature: any free row, or with `active` one of similar activity."""
    rng = generator(seed, "random rows", *map(str, features))
    order = rng.permutation(np.flatnonzero(free))
    if active is None:
        return order[: len(features)].tolist()
    found: list[int] = []
    for feature in features:
        left = order[~np.isin(order, found)]
        own = active[feature.index]
        # compare ratios, since activity spans orders of magnitude; silent rows are infinitely far from active ones
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = np.abs(np.log(active[left]) - np.log(own))
        apart[(active[left] == 0) & (own == 0)] = 0.0
        near = np.argsort(apart, kind="stable")[:NEAREST]
        alike = near[np.isfinite(apart[near])]  # if possible, do not replace an active row by a silent one
        found.append(int(rng.choice(left[alike if len(alike) else near])))
    return found
