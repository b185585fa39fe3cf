"""From starting features to plans, for `saeflow plan`, `steer`, `sweep` and the explorer. Imports torch only on use.

1. `choose` grows the graphs of the starts, joins them, and leaves out the features that are ruled out.
2. `weak_features` finds features with a low output score, which are left out too.
3. `own_scales` finds what a coefficient of 1 means for each feature: s counts in these units (folding, B.2).
4. `plan_of` gives each remaining feature its value: the s that the schedule has for its layer, or r.
5. `sizes.fit_budget` weakens the plan until it fits a budget.

`build_plan` takes these steps for one request; `sweep.plans` takes the first three once per theme, and the others for
each setting of a grid. Steps that need missing weights or a missing model raise an error that says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from saeflow.errors import InvalidArgument
from saeflow.flow.scores import Thresholds
from saeflow.flow.trace import Matches
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels import Words, no_words
from saeflow.matching.atlas import Atlas
from saeflow.plain_types import Progress
from saeflow.steering.growth import Chosen, Reach, grow, pick, schedule_span, targets, targets_within
from saeflow.steering.plan import SteeringDirection, SteeringPlan, Step
from saeflow.steering.schedule import STRENGTH, STRENGTH_END, Linear, Schedule

if TYPE_CHECKING:
    from saeflow.sources.dictionary import Dictionary
    from saeflow.sources.model import LanguageModel


@dataclass(frozen=True)
class PlanRequest:
    """Everything a plan depends on except the atlas, weights, model and texts.

    Attributes:
        release: the dictionaries, as `load_dictionaries` takes them; recorded in the plan.
        direction: activate or suppress.
        theme: name of a theme of the release, or the path of a theme's file; empty for none.
        starts: features to grow graphs from; those of the theme if empty.
        schedule: to activate, how the coefficient is spread over layers.
        r: to suppress, the factor of every feature.
        reach: layer `upto` only, all layers up to it, or the whole span.
        upto: the layer l of the first two reaches; None for the whole span.
        thresholds: where graphs are cut; 0.5 for the residual stream and 0.15 for modules by default (B.2).
        k: how many matches to follow at each site.
        parts: the parts whose features are changed.
        drop: features to leave out, with the reason.
        keep: if given, the only features to keep.
        min_score: leave out features whose best path to a start scores lower, in [-1, 1].
        min_output_score: leave out features with a lower output score, in [0, 1], including starts.
        fold: to activate, whether s counts in units of a feature's threshold times the length of its row (B.2).
        budget_layer: the most a plan may change at any layer, as a share of the centred norm; None for no limit.
        budget_total: the most it may change in total, measured at its last layer; None for no limit.
        shares: whether to measure and record the shares even without a budget, if a model is given.

    Raises:
        InvalidArgument: without a theme or starts, or for a value outside its range.
    """

    release: str = ""
    direction: SteeringDirection = SteeringDirection.ACTIVATE
    theme: str = ""
    starts: tuple[FeatureId, ...] = ()
    schedule: Schedule = field(default_factory=lambda: Linear(STRENGTH, STRENGTH_END))
    r: float = 0.0
    reach: Reach = Reach.SPAN
    upto: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    k: int = 1
    parts: tuple[Part, ...] = (Part.RES,)
    drop: Mapping[FeatureId, str] = field(default_factory=dict[FeatureId, str], hash=False)
    keep: tuple[FeatureId, ...] | None = None
    min_score: float | None = None
    min_output_score: float | None = None
    fold: bool = True
    budget_layer: float | None = None
    budget_total: float | None = None
    shares: bool = True

    def __post_init__(self) -> None:
        """Check values before anything is loaded."""
        if not self.theme and not self.starts:
            raise InvalidArgument(
                "a plan needs features to start from. Name a theme (--theme), or features (--starts 2/res/114,3/res/5)."
            )
        if not self.parts:
            raise InvalidArgument("no part is left to steer. Give one or more of res, mlp, att.")
        if not math.isfinite(self.r):
            raise InvalidArgument(f"the factor r = {self.r} is not finite. 0 removes, 1 keeps.")
        for name, share in (("budget_layer", self.budget_layer), ("budget_total", self.budget_total)):
            if share is not None and not 0 < share < math.inf:
                raise InvalidArgument(
                    f"{name} = {share} is no share of the centred norm. Give one above 0, such as 0.1."
                )

    def from_graphs_alone(self) -> PlanRequest:
        """The request without what needs weights or a model: enough to find the features and to detect mistakes."""
        return replace(self, fold=False, shares=False, min_output_score=None, budget_layer=None, budget_total=None)

    @property
    def folds(self) -> bool:
        """Whether values are folded; never to suppress, since a factor r has no units."""
        return self.fold and self.direction is SteeringDirection.ACTIVATE

    @property
    def needs_model(self) -> bool:
        """Whether making the plan needs the model, whatever tensors the dictionaries read."""
        return any(limit is not None for limit in (self.budget_layer, self.budget_total, self.min_output_score))

    @property
    def needs_dictionaries(self) -> bool:
        """Whether making the plan needs the weights."""
        return self.folds or self.needs_model


def build_plan(
    request: PlanRequest,
    *,
    atlas: Matches,
    dictionaries: Mapping[Site, Dictionary] | None = None,
    model: LanguageModel | None = None,
    words: Words = no_words,
    texts: Sequence[str] = (),
    progress: Progress | None = None,
) -> SteeringPlan:
    """Make the requested plan, by the steps of the module docstring.

    Args:
        request: the plan to make.
        atlas: where matches come from.
        dictionaries: of the release; needed for folding, budgets, shares and output scores.
        model: the model of the release; needed for budgets, shares and output scores, and if dictionaries read z or
            normalise tokens.
        words: labels of features.
        texts: what centred norms and activations are measured on; the theme's examples if empty. To suppress, give
            texts in which the features fire.
        progress: called with (done, all, what) while output scores are computed.

    Raises:
        InvalidArgument: when nothing is left to steer, a feature to drop or keep was not found, the weights, the
            model or texts are needed and missing, or the atlas was made from other weights.
        UnknownSite: when there is no dictionary, or there are no matches, at a start's site.
        UnknownFeature: when a start's index lies outside its dictionary.
        BadFile: when the theme's file is bad.
    """

    def weights_for(what: str) -> Mapping[Site, Dictionary]:
        if dictionaries is None:
            raise InvalidArgument(f"{what} needs the weights. Pass the dictionaries of the release.")
        return dictionaries

    def model_for(what: str) -> LanguageModel:
        if model is None:
            raise InvalidArgument(f"{what} needs the model of the release. Load it and pass it (--model).")
        return model

    theme = None
    if request.theme:
        from saeflow.steering.theme import load_theme

        theme = load_theme(request.theme, request.release)
        request = replace(request, theme=theme.name, starts=request.starts or theme.starts)
    measured_on = tuple(texts) or (theme.examples if theme else ())

    # 1. the features of the graphs; refuse weights that the atlas was not made from before running anything
    chosen = choose(request, atlas)
    if dictionaries is not None and isinstance(atlas, Atlas):
        from saeflow.matching.build import refuse_other_weights

        used = {target.feature.site for target in targets_within(chosen.kept, request.reach, request.upto)}
        refuse_other_weights(atlas, dictionaries, used, projector=model)

    # 2. leave out features that do not drive the output
    if (least := request.min_output_score) is not None:
        weights, runs = weights_for("output scores"), model_for("output scores")
        chosen = chosen.without(weak_features(chosen.features, least, weights, runs, progress=progress))

    # 3. the scales of features in reach; the span of the schedule includes silent features
    span, scales = schedule_span(chosen.kept), None
    if request.folds:
        reached = [target.feature for target in targets_within(chosen.kept, request.reach, request.upto)]
        scales, silent = own_scales(reached, weights_for("folding"), model, measured_on, leave_out_silent=True)
        chosen = chosen.without(silent)

    # 4. a value for each; the name of the model comes from the model, or else from the atlas or the dictionaries
    made_for = [getattr(model, "name", ""), getattr(atlas, "model", ""), getattr(dictionaries, "model", "")]
    plan = plan_of(chosen, request, scales=scales, span=span, words=words, made_by=_found_by(request))
    plan = replace(plan, model=next((str(name) for name in made_for if name), ""))

    # 5. fit the budget, and record the shares of the centred norm
    limited = request.budget_layer is not None or request.budget_total is not None
    if not limited and (not request.shares or model is None or dictionaries is None or not measured_on):
        return plan
    from saeflow.steering.sizes import Budget, centred_norms, fit_budget, norm_sites, plan_change, shares

    weights, runs = weights_for("a budget"), model_for("a budget")
    if not measured_on:
        raise InvalidArgument(
            "a budget is a share of the centred norm, which is measured on texts. Give some (--texts), or a theme with "
            "examples."
        )
    norms = centred_norms(runs, norm_sites(plan), measured_on)
    if limited:
        budget = Budget(request.budget_layer, request.budget_total)
        plan = fit_budget(plan, budget, weights, runs, measured_on, norms=norms)
    change = plan_change(plan, weights, runs, texts=measured_on, steered=True)
    noted = {**shares(change, norms).to_dict(), "texts": len(measured_on)}
    return replace(plan, made_by={**plan.made_by, "shares": noted})


def _found_by(request: PlanRequest) -> dict[str, Any]:
    """What a plan records about how its features were found."""
    cuts = request.thresholds
    noted: dict[str, Any] = {
        "starts": [str(start) for start in request.starts],
        "t_res": cuts.res,
        "t_mlp": cuts.of(Part.MLP),
        "t_att": cuts.of(Part.ATT),
        "fdr": cuts.fdr,
        "k": request.k,
        "parts": [part.value for part in request.parts],
        "min_score": request.min_score,
        "min_output_score": request.min_output_score,
    }
    return {name: value for name, value in noted.items() if value is not None}


def choose(request: PlanRequest, matches: Matches) -> Chosen:
    """Grow the graphs of the request's starts and choose among their features.

    Raises:
        InvalidArgument: without starts, or when a feature to drop or keep is not in the graphs.
        UnknownSite: when there are no matches at a start's site.
        UnknownFeature: when a start's index lies outside its dictionary.
    """
    graphs = grow(request.starts, matches, thresholds=request.thresholds, k=request.k)
    found = targets(graphs, parts=request.parts)
    there = {target.feature for target in found}
    # most likely a typo
    for word, named in (("drop", request.drop), ("keep", request.keep or ())):
        if strange := sorted(set(named) - there):
            raise InvalidArgument(
                f"there is no {', '.join(map(str, strange))} to {word} among the {len(there)} features of the graphs. "
                "`saeflow plan` lists them."
            )
    return pick(found, drop=request.drop, keep=request.keep, min_score=request.min_score)


def weak_features(
    features: Iterable[FeatureId],
    least: float,
    dictionaries: Mapping[Site, Dictionary],
    model: LanguageModel,
    *,
    prompts: Iterable[str] = (),
    progress: Progress | None = None,
) -> dict[FeatureId, str]:
    """Features with an output score below `least`, with the reason; scored on a neutral prompt and `prompts`.

    Raises:
        As `output_scores`.
    """
    from saeflow.steering.output_score import PROMPTS, output_scores

    scores = output_scores(model, dictionaries, features, prompts=(*PROMPTS, *prompts), progress=progress)
    return {f: f"output score {score:.2g}, below {least:g}" for f, score in scores.items() if score < least}


def own_scales(
    features: Sequence[FeatureId],
    dictionaries: Mapping[Site, Dictionary],
    model: LanguageModel | None,
    texts: Sequence[str],
    *,
    leave_out_silent: bool = False,
) -> tuple[dict[FeatureId, float], dict[FeatureId, str]]:
    """What a coefficient of 1 means for each feature, in the units of the hidden state; and why some have no scale.

    The sizes of features without a threshold are measured on the texts. A feature that is silent there has no scale:
    this is an error, or with `leave_out_silent` a reason to drop it.

    Raises:
        As `fold_scales`.
    """
    from saeflow.steering.sizes import fold_scales, has_threshold, typical_activations

    bare = [f for f in features if f.site in dictionaries and not has_threshold(dictionaries[f.site], f)]
    activity: dict[FeatureId, float] = {}
    silent: dict[FeatureId, str] = {}
    if bare and model is not None and texts:
        activity = typical_activations(model, dictionaries, bare, texts)
        if leave_out_silent:
            why = f"silent on the {len(texts)} texts measured on, and without a threshold: its size is not known"
            silent = {feature: why for feature in bare if feature not in activity}
    there = [feature for feature in features if feature not in silent]
    return fold_scales(dictionaries, there, activity=activity, model=model, texts=texts), silent


def plan_of(
    chosen: Chosen,
    request: PlanRequest,
    *,
    scales: Mapping[FeatureId, float] | None = None,
    span: tuple[int, int] | None = None,
    words: Words = no_words,
    made_by: Mapping[str, Any] | None = None,
) -> SteeringPlan:
    """Make the plan of the chosen targets: each one in reach with its value.

    To activate, a target gets the coefficient that the schedule has for its layer (appendix B.2). The span of the
    schedule is that of all targets, whatever the reach, so a feature has the same strength in the plan of its own
    layer, in cumulative plans and in the plan of the whole span. To suppress, all get the same r (sections 4.2 and
    5.3).

    Args:
        chosen: the targets to steer, and the features left out, which the plan lists.
        request: direction, schedule or r, reach, and the names of release and theme.
        scales: to activate, what a coefficient of 1 means for each feature in reach, in the units of the hidden state,
            as `fold_scales` returns them. None: a coefficient is the length of what is added.
        span: l_start and l_end of the schedule; by default those of the targets.
        words: labels of features.
        made_by: what else the plan records about how it was made, besides schedule or r and the reach.

    Raises:
        InvalidArgument: when no target lies in reach, `upto` and `reach` do not go together, a target has no
            scale, or a value is not finite.
    """
    own = schedule_span(chosen.kept)
    span = own if span is None else span
    reached = targets_within(chosen.kept, request.reach, request.upto)
    if request.direction is SteeringDirection.SUPPRESS:
        values = dict.fromkeys((target.feature for target in reached), request.r)
        how: dict[str, Any] = {"r": request.r}
    else:
        if scales is not None and (bare := [str(t.feature) for t in reached if t.feature not in scales]):
            raise InvalidArgument(
                f"there is no scale for {', '.join(bare)}. Get scales for all targets in reach with fold_scales."
            )
        values = {target.feature: request.schedule.at(target.feature.layer, span) for target in reached}
        if scales is not None:
            values = {feature: value * scales[feature] for feature, value in values.items()}
        how = {"schedule": request.schedule.to_dict(), "span": span, "folded": scales is not None}
    how |= {"reach": request.reach.value} | ({} if request.upto is None else {"upto": request.upto})
    known = {target.feature: words.get(target.feature) for target in reached}
    labels = {feature: of.label for feature, of in known.items() if of}
    steps = [Step(t.feature, values[t.feature], labels.get(t.feature, ""), t.why) for t in reached]
    return SteeringPlan(
        request.direction,
        tuple(steps),
        release=request.release,
        theme=request.theme,
        dropped=chosen.dropped,
        made_by={**how, **(made_by or {})},
    )
