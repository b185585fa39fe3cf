"""A plan from options: what `saeflow plan` and `saeflow steer` ask for, as one value and one call. No torch by itself.

    starts, of a theme or named -> graphs -> targets -> those that are kept -> values -> within the budget

Steps that need the weights or the model say so where they are not given: folding needs the dictionaries; budgets,
shares and output scores need the model as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from saeflow.errors import InvalidArgument
from saeflow.flow.scores import Thresholds
from saeflow.flow.trace import Matches
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels import Words, no_words
from saeflow.matching.atlas import Atlas
from saeflow.steering.growth import (
    Reach,
    Target,
    activation_plan,
    grow,
    pick,
    schedule_span,
    suppression_plan,
    targets,
    targets_within,
)
from saeflow.steering.plan import Direction, Dropped, SteeringPlan
from saeflow.steering.schedule import Exponential, Schedule

if TYPE_CHECKING:
    from saeflow.sources.dictionary import Dictionary
    from saeflow.sources.model import LanguageModel
    from saeflow.steering.theme import Theme

Progress = Callable[[int, int, str], None]

STRENGTH: Final = 1.5
"""s of a plan where none is given: it shows in the demo pack and leaves language. The paper tunes s for each case."""


@dataclass(frozen=True)
class PlanRequest:
    """Everything a plan depends on, but for atlas, weights, model and texts.

    Attributes:
        release: the dictionaries, as `load_dictionaries` takes them; the plan names them.
        direction: activate or suppress.
        theme: name of a theme of the release, or the path of a theme's file; empty for none.
        starts: features to grow graphs from; those of the theme where empty.
        schedule: to activate, how the coefficient is spread over layers.
        r: to suppress, the factor of every feature.
        reach: layer `upto` alone, all layers up to it, or all.
        upto: l of the first two.
        thresholds: where graphs are cut; 0.5 for the residual stream and 0.15 for modules by default (B.2).
        k: matches of each site that are followed.
        parts: of the features that are changed.
        drop: features to leave out, with the reason.
        keep: where given, the only features to keep.
        min_score: leave out what hangs together with no start at this score, in [-1, 1].
        min_output_score: leave out features of a lower output score, in [0, 1]; starts as well.
        fold: to activate, whether s counts in units of a feature's threshold times the length of its row (B.2).
        budget_layer: the most a plan may change at a layer, as a share of the hidden norm; None for no limit.
        budget_total: the same for all it changes, at its last layer.
        shares: whether the shares are measured and noted, where there is a model, even without a budget.

    Raises:
        InvalidArgument: for neither a theme nor starts, or a value outside its range.
    """

    release: str = ""
    direction: Direction = Direction.ACTIVATE
    theme: str = ""
    starts: tuple[FeatureId, ...] = ()
    schedule: Schedule = field(default_factory=lambda: Exponential(STRENGTH))
    r: float = 0.0
    reach: Reach = Reach.SPAN
    upto: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    k: int = 1
    parts: tuple[Part, ...] = (Part.ATT, Part.MLP, Part.RES)
    drop: Mapping[FeatureId, str] = field(default_factory=dict[FeatureId, str], hash=False)
    keep: tuple[FeatureId, ...] | None = None
    min_score: float | None = None
    min_output_score: float | None = None
    fold: bool = True
    budget_layer: float | None = None
    budget_total: float | None = None
    shares: bool = True

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if not self.theme and not self.starts:
            raise InvalidArgument(
                "a plan needs features to start from. Name a theme (--theme), or features (--start 2/res/114,3/res/5)."
            )
        if not self.parts:
            raise InvalidArgument("no part is left to steer. Give one or more of res, mlp, att.")
        if not math.isfinite(self.r):
            raise InvalidArgument(f"the factor r = {self.r} is not finite. 0 removes, 1 keeps.")
        for name, share in (("budget_layer", self.budget_layer), ("budget_total", self.budget_total)):
            if share is not None and not 0 < share < math.inf:
                raise InvalidArgument(
                    f"{name} = {share} is no share of the hidden norm. Give one above 0, such as 0.1."
                )

    def from_graphs_alone(self) -> PlanRequest:
        """The same without what needs weights or a model: it finds the features, and refuses what it cannot mean."""
        return replace(
            self, fold=False, shares=False, min_output_score=None, budget_layer=None, budget_total=None
        )

    @property
    def folds(self) -> bool:
        """Whether values are folded: a factor r has no unit, and needs none."""
        return self.fold and self.direction is Direction.ACTIVATE

    @property
    def needs_model(self) -> bool:
        """Whether a plan cannot be made without the model, whatever the dictionaries read."""
        return any(
            limit is not None for limit in (self.budget_layer, self.budget_total, self.min_output_score)
        )

    @property
    def needs_dictionaries(self) -> bool:
        """Whether a plan cannot be made without the weights."""
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
    """The plan a request asks for; see the head of the file for the steps.

    Args:
        request: what is asked for.
        atlas: where matches come from.
        dictionaries: of the release; not needed without folding, budgets, shares and output scores.
        model: the model of the release; not needed without budgets, shares and output scores, unless dictionaries
            read z or normalise tokens.
        words: labels of features.
        texts: what hidden norms and activations are measured on; the theme's examples where empty. To suppress, give
            texts in which the features fire.
        progress: is told (done, all, what) while output scores are computed.

    Raises:
        InvalidArgument: when nothing is left to steer, something is dropped that was not found, the weights, the
            model or texts are needed and missing, or the atlas was made from other weights.
        UnknownSite: when there is no dictionary, or there are no matches, at a start's site.
        UnknownFeature: when a start's index lies outside its dictionary.
        BadFile: when the theme's file is bad.
    """
    theme = _theme(request)
    starts = request.starts or (theme.starts if theme else ())
    graphs = grow(starts, atlas, thresholds=request.thresholds, k=request.k)
    found = targets(graphs, parts=request.parts)
    _check_named(request, found)
    kept, dropped = pick(found, drop=request.drop, keep=request.keep, min_score=request.min_score)
    if dictionaries is not None and isinstance(atlas, Atlas):
        from saeflow.matching.same_weights import refuse_other_weights

        used = {target.feature.site for target in targets_within(kept, request.reach, request.upto)}
        refuse_other_weights(atlas, dictionaries, used, projector=model)
    measured = tuple(texts) or (theme.examples if theme else ())
    if request.min_output_score is not None:
        kept, more = _that_drive_output(request, kept, dictionaries, model, progress)
        dropped = (*dropped, *more)
    span, scales = schedule_span(kept), None
    if request.folds:
        reached = targets_within(kept, request.reach, request.upto)
        scales, silent = _folded(reached, dictionaries, model, measured)
        kept, more = pick(kept, drop=silent)
        dropped = (*dropped, *more)
    about = _About(
        labels={target.feature: _label(words, target.feature) for target in kept},
        model=_model_name(request, atlas, dictionaries, model),
        theme=theme.name if theme else "",
        dropped=tuple(sorted(dropped, key=lambda gone: gone.feature)),
        made_by=_told(request, starts),
    )
    plan = _valued(request, kept, about, span, scales)
    return _measured(request, plan, dictionaries, model, measured)


@dataclass(frozen=True)
class _About:
    """What a plan says of itself."""

    labels: Mapping[FeatureId, str]
    model: str
    theme: str
    dropped: tuple[Dropped, ...]
    made_by: Mapping[str, Any]


def _theme(request: PlanRequest) -> Theme | None:
    if not request.theme:
        return None
    from saeflow.steering.theme import load_theme

    return load_theme(request.theme, request.release)


def _check_named(request: PlanRequest, found: Sequence[Target]) -> None:
    """Refuse to drop or keep what is not there: most likely a slip of the pen."""
    there = {target.feature for target in found}
    for word, named in (("drop", request.drop), ("keep", request.keep or ())):
        if strange := sorted(set(named) - there):
            raise InvalidArgument(
                f"there is no {', '.join(map(str, strange))} to {word} among the {len(there)} features of the graphs: "
                f"{', '.join(map(str, sorted(there))) or 'none'}."
            )


def _that_drive_output(
    request: PlanRequest,
    kept: Sequence[Target],
    dictionaries: Mapping[Site, Dictionary] | None,
    model: LanguageModel | None,
    progress: Progress | None,
) -> tuple[tuple[Target, ...], tuple[Dropped, ...]]:
    from saeflow.steering.output_score import output_scores

    weights, runs = _needed(dictionaries, "output scores"), _needed_model(model, "output scores")
    least = request.min_output_score or 0.0
    scores = output_scores(runs, weights, (target.feature for target in kept), progress=progress)
    low = {
        feature: f"output score {score:.2g}, below {least:g}"
        for feature, score in scores.items()
        if score < least
    }
    return pick(kept, drop=low)


def _folded(
    kept: Sequence[Target],
    dictionaries: Mapping[Site, Dictionary] | None,
    model: LanguageModel | None,
    texts: Sequence[str],
) -> tuple[dict[FeatureId, float], dict[FeatureId, str]]:
    """The scale of each target; and those without a threshold that are silent on the texts, which have none."""
    from saeflow.steering.stream_rows import fold_scales, has_threshold, typical_activations

    weights = _needed(dictionaries, "folding")
    features = [target.feature for target in kept]
    bare = [f for f in features if f.site in weights and not has_threshold(weights[f.site], f)]
    activity: dict[FeatureId, float] = {}
    silent: dict[FeatureId, str] = {}
    if bare and model is not None and texts:
        activity = typical_activations(model, weights, bare, texts)
        why = f"silent on the {len(texts)} texts measured on, and without a threshold: its size is not known"
        silent = {feature: why for feature in bare if feature not in activity}
    there = [feature for feature in features if feature not in silent]
    return fold_scales(weights, there, activity=activity, model=model, texts=texts), silent


def _valued(
    request: PlanRequest,
    kept: Sequence[Target],
    about: _About,
    span: tuple[int, int],
    scales: Mapping[FeatureId, float] | None,
) -> SteeringPlan:
    """The plan with the value of each feature."""
    if request.direction is Direction.SUPPRESS:
        return suppression_plan(
            kept, request.r, reach=request.reach, upto=request.upto, labels=about.labels, release=request.release,
            model=about.model, theme=about.theme, dropped=about.dropped, made_by=about.made_by,
        )  # fmt: skip
    return activation_plan(
        kept, request.schedule, reach=request.reach, upto=request.upto, scales=scales, span=span,
        labels=about.labels, release=request.release, model=about.model, theme=about.theme,
        dropped=about.dropped, made_by=about.made_by,
    )  # fmt: skip


def _measured(
    request: PlanRequest,
    plan: SteeringPlan,
    dictionaries: Mapping[Site, Dictionary] | None,
    model: LanguageModel | None,
    texts: Sequence[str],
) -> SteeringPlan:
    """The plan within its budget, with the shares of the hidden norm noted."""
    limited = request.budget_layer is not None or request.budget_total is not None
    if not limited and (not request.shares or model is None or dictionaries is None or not texts):
        return plan
    from saeflow.steering.sizes import Budget, fit_budget, hidden_norms, norm_sites, plan_change, shares

    weights, runs = _needed(dictionaries, "a budget"), _needed_model(model, "a budget")
    if not texts:
        raise InvalidArgument(
            "a budget is a share of the hidden norm, which is measured on texts. Give some (--texts), or a theme with "
            "examples."
        )
    norms = hidden_norms(runs, norm_sites(plan), texts)
    if limited:
        budget = Budget(request.budget_layer, request.budget_total)
        plan = fit_budget(plan, budget, weights, runs, texts, norms=norms)
    change = plan_change(plan, weights, runs, texts=texts, steered=True)
    told = {**shares(change, norms).to_dict(), "texts": len(texts)}
    return replace(plan, made_by={**plan.made_by, "shares": told})


def _needed(dictionaries: Mapping[Site, Dictionary] | None, what: str) -> Mapping[Site, Dictionary]:
    if dictionaries is None:
        raise InvalidArgument(f"{what} needs the weights. Pass the dictionaries of the release.")
    return dictionaries


def _needed_model(model: LanguageModel | None, what: str) -> LanguageModel:
    if model is None:
        raise InvalidArgument(f"{what} needs the model of the release. Load it and pass it (--model).")
    return model


def _model_name(request: PlanRequest, *known: object) -> str:
    """As `load_model` takes it: that of the model itself, else the one the atlas or the dictionaries were made for."""
    *others, model = known
    names = [getattr(model, "name", ""), request.release if request.release == "demo" else ""]
    names += [getattr(other, "model", "") for other in others]
    return next((str(name) for name in names if name), "")


def _label(words: Words, feature: FeatureId) -> str:
    known = words.get(feature)
    return known.label if known else ""


def _told(request: PlanRequest, starts: Sequence[FeatureId]) -> dict[str, Any]:
    """What a plan notes of how its features were found."""
    cuts = request.thresholds
    told: dict[str, Any] = {
        "starts": [str(start) for start in starts],
        "t_res": cuts.res,
        "t_mlp": cuts.of(Part.MLP),
        "t_att": cuts.of(Part.ATT),
        "fdr": cuts.fdr,
        "k": request.k,
        "parts": [part.value for part in request.parts],
        "min_score": request.min_score,
        "min_output_score": request.min_output_score,
    }
    return {name: value for name, value in told.items() if value is not None}
