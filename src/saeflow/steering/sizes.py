"""What features write into the residual stream, how far a plan moves it, and plans weakened to fit a budget.

An activation a of feature i writes a * factor * row_i, where row_i is its decoder row in the stream. The factor is 1
except in two cases, where it varies from token to token and has to be measured on texts:

    a dictionary that normalises each token    the scale that its `decode` restores
    z behind a norm (Gemma 2 and 3)            1 / rms of what attention wrote, held fixed while z changes

Folding (Balagansky et al. 2024, arXiv 2410.07656; appendix B.2) divides encoder rows by the thresholds of JumpReLU and
multiplies decoder rows by them: every threshold becomes 1, and a decoder row is what its feature writes when it only
just fires, so that one coefficient s' suits features of different sizes. Steering with folded rows adds s' times such
a row. With |W_i| the length of the unfolded row in the stream,

    scale_i = threshold_i |W_i|        strength_i = s' scale_i

Activation functions without a positive threshold (ReLU, TopK) say nothing about a feature's size; for these, a
typical activation measured on texts takes the place of the threshold.

Changes at several layers accumulate: what layer 0 added is still in the stream when layer 1 adds to it. Let d_l be the
sum of everything a plan adds at the sites of layer l (attention and the MLP write into the same stream), and c_l the
centred norm of the residual stream after layer l (`centred_norms`: how far its states lie from their mean). A plan
therefore has two shares:

    share of a layer    |d_l| / c_l
    total               |d_0 + ... + d_L| / c_L        L the last changed layer

The total is the norm of a sum, so aligned directions add up in full and others partly cancel. It counts only what is
written directly into the stream, not what later layers compute from it.

For suppression d is (r - 1) a V, its length averaged over the tokens of texts, and the activations a can be read in
two ways. On the unsteered model d is proportional to r - 1, but what one layer has removed is counted again at the
next, so the total of a cumulative plan comes out several times too large. With `steered` the plan runs, and each site
sees its features as the earlier edits left them: this is the actual change, which `fit_budget` holds to a budget by
search. For activation the two agree.

`row_plans.ShareMeter` measures shares of |h| itself, on texts as they are generated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import AddVector
from saeflow.sources import weights
from saeflow.sources.activations import BatchTopK, JumpReLU
from saeflow.sources.activity import text_batches
from saeflow.sources.architectures import Point, PointLike, Tap, View
from saeflow.sources.dictionary import Dictionary, Norm
from saeflow.sources.hooks import Change
from saeflow.sources.massive import ordinary
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.steering.plan import SteeringDirection, SteeringPlan

MAX_LENGTH: Final = 128
"""Tokens that texts are truncated to when sizes are measured."""

ROUNDING: Final = 1e-6
"""Relative tolerance: the share of a budget left unused, so that rounding cannot exceed it."""


# --- what features write ----------------------------------------------------------------------------------------------


def by_site(
    features: Iterable[FeatureId], dictionaries: Mapping[Site, Dictionary]
) -> Iterator[tuple[Dictionary, list[FeatureId]]]:
    """For each site of the features, its dictionary and the features there, sorted and without repeats.

    Raises:
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    for site, group in groupby(sorted(set(features)), key=lambda feature: feature.site):
        here = list(group)
        if site not in dictionaries:
            raise UnknownSite(f"{here[0]} is named, and there is no dictionary at {site}. Pass one for it.")
        dictionary = dictionaries[site]
        if here[-1].index >= dictionary.n_features:
            raise UnknownFeature(
                f"{here[-1]} lies outside the dictionary at {site}, which has {dictionary.n_features} features. "
                f"Indices run from 0 to {dictionary.n_features - 1}."
            )
        yield dictionary, here


def stream_rows(
    dictionary: Dictionary, features: Sequence[FeatureId], model: LanguageModel | None
) -> Float64[Tensor, "n d_model"]:
    """The features' decoder rows in the residual stream, on the CPU; rows of z are projected by the model's W_O.

    Raises:
        WidthMismatch: on z without a model, or with a model whose z has another width.
    """
    rows = dictionary.finite_rows("W_dec")[[feature.index for feature in features]]
    rows = dictionary.project(rows, model)
    return rows.detach().double().cpu()


def unit_rows(
    dictionary: Dictionary, features: Sequence[FeatureId], model: LanguageModel | None
) -> Float64[Tensor, "n d_model"]:
    """`stream_rows` at unit length: what an `Add` multiplies by its strengths.

    Raises:
        WidthMismatch: on z without a model, or with a model whose z has another width.
        InvalidArgument: for a feature whose decoder row has no direction.
    """
    return weights.unit_rows(stream_rows(dictionary, features, model), features)


def read_places(dictionary: Dictionary, model: LanguageModel) -> tuple[PointLike, ...]:
    """The tensors to capture for the activations and factors at a dictionary's site."""
    if _behind_norm(dictionary, model):
        return (dictionary.point, dictionary.site)
    return (dictionary.point,)


def token_factors(
    dictionary: Dictionary,
    model: LanguageModel,
    h: Float[Tensor, "n d_in"],
    after: Float[Tensor, "n d_model"] | None = None,
) -> Float64[Tensor, "n 1"]:
    """The factor of what a feature writes on each of n tokens, computed from the tensors captured at `read_places`.

    Raises:
        InvalidArgument: behind a norm, when `after`, the output of the norm, is missing.
    """
    scale = dictionary.scale(h)
    factor = torch.ones(len(h), 1, dtype=torch.float64)
    if isinstance(scale, Tensor):
        factor = factor * scale.double().cpu()
    if not _behind_norm(dictionary, model):
        return factor
    if after is None:
        raise InvalidArgument(
            f"the factor at {dictionary.site} needs what the part adds to the stream. Capture all of read_places."
        )
    # the norm's output is gain * (W_O z) / rms, so its length divided by that of gain * (W_O z) is 1 / rms
    before = dictionary.project(h, model)
    return factor * (_length(after) / _length(before).clamp_min(1e-30))


def fold_scales(
    dictionaries: Mapping[Site, Dictionary],
    features: Iterable[FeatureId],
    *,
    activity: Mapping[FeatureId, float] | None = None,
    model: LanguageModel | None = None,
    texts: Sequence[str] | None = None,
) -> dict[FeatureId, float]:
    """The length of what each feature writes into the stream at its threshold, in the units of the hidden state.

    Args:
        dictionaries: by site.
        features: the features to measure; the result has each once, sorted.
        activity: typical activations of features without a threshold above 0, as `typical_activations` returns them.
        model: projects rows of z, and runs the texts where these are needed.
        texts: needed only where a dictionary normalises each token, or reads z behind a norm (Gemma 2 and 3): what a
            feature writes then depends on the token, and the mean factor over these texts is used.

    Raises:
        InvalidArgument: when a feature has neither a threshold above 0 nor an activity, or a model or texts are needed
            and missing.
        WidthMismatch: on z without a model, or with a model whose z has another width.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    found: dict[FeatureId, float] = {}
    for dictionary, here in by_site(features, dictionaries):
        sizes: list[float] = []
        for feature in here:
            size = _threshold(dictionary, feature)
            size = (activity or {}).get(feature) if size is None else size
            if size is None or not size > 0:
                raise InvalidArgument(
                    f"{feature} cannot be folded: its activation {dictionary.activation.kind.value} has no threshold "
                    "above 0 for it, and no typical activation is known. Pass activity={feature: activation}, from "
                    "typical_activations on texts where it fires; or steer without folding (--no-fold)."
                )
            sizes.append(size)
        size_of = torch.tensor(sizes, dtype=torch.float64)
        length = torch.linalg.vector_norm(stream_rows(dictionary, here, model), dim=1)
        factor = _mean_factor(dictionary, model, texts)
        found |= dict(zip(here, (length * size_of * factor).tolist(), strict=True))
    return found


def has_threshold(dictionary: Dictionary, feature: FeatureId) -> bool:
    """Whether a feature has a threshold above 0, so that `fold_scales` needs no activity for it.

    Raises:
        BadFile: when a threshold read at first use is not finite.
    """
    return _threshold(dictionary, feature) is not None


def typical_activations(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], features: Iterable[FeatureId], texts: Sequence[str]
) -> dict[FeatureId, float]:
    """The mean activation of each feature over the tokens where it is active; features that never fire are missing.

    Args:
        model: what the texts run through.
        dictionaries: by site.
        features: the features to measure.
        texts: one or more; special tokens do not count.

    Raises:
        InvalidArgument: when no text has a token that is not special.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    groups = list(by_site(features, dictionaries))
    total = {feature: 0.0 for _, here in groups for feature in here}
    count = dict.fromkeys(total, 0)
    places = [dictionary.point for dictionary, _ in groups]
    for batch in text_batches(model, texts, max_length=MAX_LENGTH, least=1):
        held = model.capture(batch.tokens, places)
        for place, (dictionary, here) in zip(places, groups, strict=True):
            h = held[place][batch.real].to(dictionary.W_enc)
            index = torch.tensor([feature.index for feature in here], device=h.device)
            acts = dictionary.encode_only(h, index)
            for feature, some in zip(here, acts.T, strict=True):
                total[feature] += float(some.double().sum())
                count[feature] += int((some > 0).sum())
    return {feature: total[feature] / count[feature] for feature in total if count[feature]}


def _threshold(dictionary: Dictionary, feature: FeatureId) -> float | None:
    activation = dictionary.activation
    if not isinstance(activation, JumpReLU | BatchTopK):
        return None
    threshold = activation.threshold
    value = float(threshold if threshold.ndim == 0 else threshold[feature.index])
    return value if value > 0 else None


def _mean_factor(dictionary: Dictionary, model: LanguageModel | None, texts: Sequence[str] | None) -> float:
    """The mean over tokens of the factor between an activation and what reaches the stream; usually 1."""
    normed = dictionary.preprocessing.norm is not Norm.NONE and not dictionary.is_transcoder
    if not normed and not _behind_norm(dictionary, model):
        return 1.0
    if model is None or not texts:
        raise InvalidArgument(
            f"what the features at {dictionary.site} write depends on the token: it passes a norm. Pass model and "
            "texts, to take the mean over their tokens; or steer without folding (--no-fold)."
        )
    places = read_places(dictionary, model)
    total, n = 0.0, 0
    for batch in text_batches(model, texts, max_length=MAX_LENGTH, least=1):
        held = model.capture(batch.tokens, places)
        factors = token_factors(dictionary, model, *(held[place][batch.real] for place in places))
        total, n = total + float(factors.sum()), n + len(factors)
    return total / n


def _behind_norm(dictionary: Dictionary, model: LanguageModel | None) -> bool:
    before = dictionary.tap is Tap.Z or dictionary.training.view is View.MODULE
    return before and model is not None and model.architecture.att_norm is not None


def _length(h: Float[Tensor, "n d_model"]) -> Float64[Tensor, "n 1"]:
    return torch.linalg.vector_norm(h.double(), dim=-1, keepdim=True).cpu()


# --- how far a plan moves the stream ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanChange:
    """Lengths of what a plan adds to the stream, in the units of the hidden state; for suppression, means over tokens.

    Attributes:
        at_site: length of what is added at each site.
        at_layer: length of the sum over the sites of each layer.
        upto: for each changed layer, length of the sum over this layer and all before it.
    """

    at_site: Mapping[Site, float]
    at_layer: Mapping[int, float]
    upto: Mapping[int, float]


def norm_sites(plan: SteeringPlan) -> tuple[Site, ...]:
    """The residual sites whose norms a plan's shares refer to: one for each layer it changes."""
    return tuple(Site(layer, Part.RES) for layer in plan.layers)


def centred_norms(model: LanguageModel, sites: Iterable[Site], texts: Sequence[str]) -> dict[Site, float]:
    """How far hidden states lie from their mean at each site: the root mean square of |h - mean| over tokens.

    Most of a real model's hidden state is the same at every token: the mean is 72 to 81 % of the norm in SmolLM2
    and 91 to 99 % in Gemma 3. Only the rest tells tokens apart, so the same share of |h| is a different change in
    every model, whereas shares of |h - mean| are comparable. Special tokens and massive positions are left out.

    Args:
        model: what the texts run through, unsteered.
        sites: the sites to measure at.
        texts: with two tokens or more in all.

    Raises:
        InvalidArgument: when fewer than two tokens are not special.
        UnknownSite: for a layer the model does not have.
    """
    wanted = sorted(set(sites))
    total = {site: torch.zeros(model.d_model, dtype=torch.float64) for site in wanted}
    squares = dict.fromkeys(wanted, 0.0)
    n = dict.fromkeys(wanted, 0)
    for batch in text_batches(model, texts, max_length=MAX_LENGTH):
        held = model.capture(batch.tokens, wanted)
        for site in wanted:
            h = held[site][ordinary(held[site], batch.real)].double().cpu()
            total[site] += h.sum(0)
            squares[site] += float(h.square().sum())
            n[site] += len(h)
    return {
        site: math.sqrt(max(squares[site] / n[site] - float((total[site] / n[site]).square().sum()), 0.0))
        for site in wanted
    }


def plan_change(
    plan: SteeringPlan,
    dictionaries: Mapping[Site, Dictionary],
    model: LanguageModel | None = None,
    *,
    texts: Sequence[str] | None = None,
    steered: bool = False,
) -> PlanChange:
    """How much a plan changes at each site, at each layer, and up to each layer.

    Args:
        plan: to activate or suppress. Its `tokens`, `only_active` and `keep_norm` are ignored: lengths are those at a
            token that is changed.
        dictionaries: of the plan's sites.
        model: needed for suppression, and to activate features of z.
        texts: what activations are read on; needed only for suppression.
        steered: read the activations while the plan runs, at each site after the edits of earlier sites.

    Raises:
        InvalidArgument: for a suppression without a model or texts, or `steered` with a transcoder's features.
        WidthMismatch: on z without a model, or with a model whose z has another width.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    if plan.direction is SteeringDirection.ACTIVATE:
        return _lengths({site: vector[None] for site, vector in _added(plan, dictionaries, model).items()})
    groups = list(by_site(plan.features, dictionaries))
    values = _values(plan, dictionaries)
    if model is None or not texts:
        raise InvalidArgument(
            "what a suppression changes depends on how active its features are. Pass the model and texts in which they "
            "fire."
        )
    points = {dictionary.site: [*map(Point.at, read_places(dictionary, model))] for dictionary, _ in groups}
    rows = {dictionary.site: stream_rows(dictionary, here, model) for dictionary, here in groups}
    found: list[tuple[PlanChange, int]] = []
    for batch in text_batches(model, texts, max_length=MAX_LENGTH, least=1):
        every = [point for of_site in points.values() for point in of_site]
        held = _held(model, batch.tokens, every, (plan, dictionaries) if steered else None)
        vectors: dict[Site, Tensor] = {}
        for dictionary, here in groups:
            site = dictionary.site
            h, *after = (held[point][batch.real] for point in points[site])
            index = torch.tensor([feature.index for feature in here], device=dictionary.W_enc.device)
            acts = dictionary.encode_only(h.to(dictionary.W_enc), index).double().cpu()
            vectors[site] = (acts * (values[site] - 1)) @ rows[site] * token_factors(dictionary, model, h, *after)
        if batch.n_tokens:
            found.append((_lengths(vectors), batch.n_tokens))
    # the mean over tokens: each batch is weighted by its number of tokens
    total = sum(n for _, n in found)
    one = found[0][0]
    return PlanChange(
        {key: sum(change.at_site[key] * n for change, n in found) / total for key in one.at_site},
        {key: sum(change.at_layer[key] * n for change, n in found) / total for key in one.at_layer},
        {key: sum(change.upto[key] * n for change, n in found) / total for key in one.upto},
    )


def orthogonal(
    plan: SteeringPlan, dictionaries: Mapping[Site, Dictionary], model: LanguageModel | None = None
) -> SteeringPlan:
    """The plan reduced to what is new at each site: the component orthogonal to everything earlier sites add.

    Rows along a flow are similar, and the stream carries what one layer adds to the next, so a plan of several layers
    mostly adds one direction several times. The components lie along no decoder row, so the result holds vectors.

    Args:
        plan: to activate.
        dictionaries: of the plan's sites.
        model: needed for features of z.

    Raises:
        InvalidArgument: for a plan to suppress, or one with `only_active`.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    if plan.direction is SteeringDirection.SUPPRESS or plan.only_active:
        raise InvalidArgument(
            "only what a plan adds at every token can be made orthogonal. Give a plan to activate, without only_active."
        )
    basis: list[Tensor] = []
    vectors: list[AddVector] = []
    for site, vector in sorted(_added(plan, dictionaries, model).items()):
        new = vector
        for _ in range(2):  # the second pass removes what rounding leaves
            for earlier in basis:
                new = new - (new @ earlier) * earlier
        if (length := torch.linalg.vector_norm(new)) > ROUNDING * torch.linalg.vector_norm(vector):
            basis.append(new / length)
            vectors.append(AddVector(site, tuple(new.tolist())))
    return replace(plan, steps=(), vectors=tuple(vectors), made_by={**plan.made_by, "orthogonal": True})


def _added(
    plan: SteeringPlan, dictionaries: Mapping[Site, Dictionary], model: LanguageModel | None
) -> dict[Site, Float64[Tensor, " d_model"]]:
    """What a plan to activate adds at each site."""
    values = _values(plan, dictionaries)
    found = {d.site: values[d.site] @ unit_rows(d, here, model) for d, here in by_site(plan.features, dictionaries)}
    for one in plan.vectors:
        vector = torch.tensor(one.vector, dtype=torch.float64)
        found[one.site] = found[one.site] + vector if one.site in found else vector
    return found


def _values(plan: SteeringPlan, dictionaries: Mapping[Site, Dictionary]) -> dict[Site, Float64[Tensor, " n"]]:
    """The strengths or factors of a plan's features at each site, in the order of `by_site`."""
    of = {step.feature: step.value for step in plan.steps}
    return {
        dictionary.site: torch.tensor([of[feature] for feature in here], dtype=torch.float64)
        for dictionary, here in by_site(plan.features, dictionaries)
    }


@dataclass(frozen=True, slots=True)
class NormShares:
    """A plan's change as shares of the centred norm of the residual stream after each changed layer.

    Attributes:
        at_layer: share of what each layer adds.
        upto: share of everything added up to and including each layer.
    """

    at_layer: Mapping[int, float]
    upto: Mapping[int, float]

    @property
    def per_layer(self) -> float:
        """The largest share of any one layer; 0 for an empty plan."""
        return max(self.at_layer.values(), default=0.0)

    @property
    def total(self) -> float:
        """The share of the whole change, at the last changed layer; 0 for an empty plan."""
        return self.upto[max(self.upto)] if self.upto else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The shares in the form that plans record."""
        return {"per_layer": {str(layer): share for layer, share in self.at_layer.items()}, "total": self.total}


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a plan may change, in shares of the centred norm |h - mean|: 0.1 is 10 %; None for no limit.

    Attributes:
        per_layer: limit on what any one layer adds.
        total: limit on the whole change, at the last changed layer.

    Raises:
        InvalidArgument: for a share that is not above 0.
    """

    per_layer: float | None = None
    total: float | None = None

    def __post_init__(self) -> None:
        """Refuse a value that is not a share."""
        for name, share in (("per_layer", self.per_layer), ("total", self.total)):
            if share is not None and not 0 < share < math.inf:
                raise InvalidArgument(
                    f"a budget of {name} = {share} is no share of the centred norm. Give one above 0, such as 0.1."
                )

    def holds(self, found: NormShares) -> bool:
        """Whether shares stay within the budget."""
        limits = ((self.per_layer, found.per_layer), (self.total, found.total))
        return all(limit is None or share <= limit for limit, share in limits)


def shares(change: PlanChange, norms: Mapping[Site, float]) -> NormShares:
    """A change as shares of the centred norm.

    Args:
        change: what `plan_change` returned.
        norms: what `centred_norms` returned for the plan's `norm_sites`.

    Raises:
        InvalidArgument: when a norm is missing or not above 0.
    """
    for layer in change.at_layer:
        if not norms.get(Site(layer, Part.RES), 0.0) > 0:
            raise InvalidArgument(
                f"there is no centred norm for {Site(layer, Part.RES)}. Measure it with "
                "centred_norms(model, norm_sites(plan), texts)."
            )
    norm = {layer: norms[Site(layer, Part.RES)] for layer in change.at_layer}
    return NormShares(
        {layer: length / norm[layer] for layer, length in change.at_layer.items()},
        {layer: length / norm[layer] for layer, length in change.upto.items()},
    )


def within(plan: SteeringPlan, budget: Budget, norms: Mapping[Site, float], change: PlanChange) -> SteeringPlan:
    """The plan scaled down as a whole to fit a budget, assuming its change scales with it; never scaled up.

    The assumption is exact for activation, and for suppression as `plan_change` measures it unsteered. Using one
    factor for all steps keeps the shape of the schedule. `made_by["budget"]` records the budget, the factor, and the
    shares before and after.

    Args:
        plan: the plan that `change` was measured on.
        budget: shares of the centred norm.
        norms: what `centred_norms` returned for the plan's `norm_sites`.
        change: what `plan_change` returned for this plan.

    Raises:
        InvalidArgument: when a norm is missing or not above 0, or the change and the plan have different layers.
    """
    if tuple(sorted(change.at_layer)) != plan.layers:
        raise InvalidArgument(
            f"the change is of layers {sorted(change.at_layer)}, the plan of {list(plan.layers)}. Measure the change "
            "of this plan."
        )
    before = shares(change, norms)
    limits = ((budget.per_layer, before.per_layer), (budget.total, before.total))
    over = [limit / share for limit, share in limits if limit is not None and share > limit]
    c = min(over) * (1 - ROUNDING) if over else 1.0
    after = NormShares(
        {layer: c * share for layer, share in before.at_layer.items()},
        {layer: c * share for layer, share in before.upto.items()},
    )
    return _noted(plan, budget, c, before, after)


def fit_budget(
    plan: SteeringPlan,
    budget: Budget,
    dictionaries: Mapping[Site, Dictionary],
    model: LanguageModel,
    texts: Sequence[str],
    *,
    norms: Mapping[Site, float] | None = None,
) -> SteeringPlan:
    """The plan scaled down as a whole until its actual change fits a budget; never scaled up.

    For activation this is `within`. A suppression is measured while it runs (`steered`), and the largest factor that
    fits is found by bisection, to within 1 % of itself.

    Args:
        plan: the plan to weaken.
        budget: shares of the centred norm.
        dictionaries: of the plan's sites.
        model: what the texts run through.
        texts: what norms and activations are measured on; to suppress, texts in which the features fire.
        norms: of the plan's `norm_sites`, if already measured.

    Raises:
        InvalidArgument: without texts, or to suppress features of a transcoder.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    if norms is None:
        norms = centred_norms(model, norm_sites(plan), texts)
    if plan.direction is SteeringDirection.ACTIVATE or not plan.sites:
        return within(plan, budget, norms, plan_change(plan, dictionaries, model, texts=texts))

    def measured(c: float) -> NormShares:
        change = plan_change(plan.scaled(c), dictionaries, model, texts=texts, steered=True)
        return shares(change, norms)

    before = after = measured(1.0)
    fits, exceeds = (1.0, 1.0) if budget.holds(before) else (0.0, 1.0)
    while exceeds - fits > 0.01 * fits and exceeds > ROUNDING:
        c = (fits + exceeds) / 2
        found = measured(c)
        if budget.holds(found):
            fits, after = c, found
        else:
            exceeds = c
    if not fits:  # no factor fits, so that the plan changes nothing
        after = measured(0.0)
    return _noted(plan, budget, fits, before, after)


def _noted(plan: SteeringPlan, budget: Budget, c: float, before: NormShares, after: NormShares) -> SteeringPlan:
    """The plan scaled by c, with a record of the budget and the shares before and after."""
    noted = {
        "per_layer": budget.per_layer,
        "total": budget.total,
        "scale": c,
        "before": {"per_layer": before.per_layer, "total": before.total},
        "after": {"per_layer": after.per_layer, "total": after.total},
    }
    return replace(plan.scaled(c), made_by={**plan.made_by, "budget": noted})


def _held(
    model: LanguageModel,
    tokens: Tokens,
    points: Sequence[Point],
    edits: tuple[SteeringPlan, Mapping[Site, Dictionary]] | None,
) -> dict[Point, Tensor]:
    """The tensors at some points, each before its own edit and after those of all earlier points."""
    if edits is None:
        captured = model.capture(tokens, points)
        return {point: captured[point] for point in points}
    held: dict[Point, Tensor] = {}

    def note(point: Point) -> Change:
        def keep(h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
            held[point] = h.detach()
            return h

        return keep

    plan, dictionaries = edits
    # hooks run in the order they are set, so `keep` sees a tensor before the plan edits it
    with model.intervening({point: note(point) for point in points}), model.intervening(plan, dictionaries):
        model.capture(tokens, [Site(max(point.layer for point in points), Part.RES)])
    return held


def _lengths(vectors: Mapping[Site, Float64[Tensor, "n d_model"]]) -> PlanChange:
    """Mean lengths, over rows, of the vectors, of their sums at each layer, and of the running sums."""
    so_far: Tensor | None = None
    at_layer: dict[int, float] = {}
    upto: dict[int, float] = {}
    for layer, sites in groupby(sorted(vectors), key=lambda site: site.layer):
        here = torch.stack([vectors[site] for site in sites]).sum(0)
        so_far = here if so_far is None else so_far + here
        at_layer[layer], upto[layer] = _mean_length(here), _mean_length(so_far)
    return PlanChange({site: _mean_length(vectors[site]) for site in sorted(vectors)}, at_layer, upto)


def _mean_length(vectors: Float64[Tensor, "n d_model"]) -> float:
    return float(torch.linalg.vector_norm(vectors, dim=-1).mean())
