"""How far a plan moves the residual stream, as lengths and as shares of its norm; and plans weakened to fit a budget.

A row that is added at every layer is not changed once: what layer 0 added is still in the stream when layer 1 adds
to it. With d_l the sum of all that a plan adds at the sites of layer l (attention and the MLP write into the same
stream) and |h_l| the mean norm of the residual stream after layer l, two shares are therefore told:

    share of a layer    |d_l| / |h_l|
    total               |d_0 + ... + d_L| / |h_L|      L the last layer that is changed

The total is the norm of a sum: directions that differ partly cancel, like ones add up in full. It follows the change
along the stream alone: what later layers make of it is not in it.

For suppression d is (r - 1) a V, its length averaged over the tokens of texts, and the activations a can be read in
two ways. On the unsteered model d is proportional to r - 1, but what one layer has removed is counted again at the
next: the total of a cumulative plan comes out several times too large. With `steered`, the plan runs, and each site
finds what the plan has left of its features: that is what is really changed, and `fit_budget` holds it to a budget by
search. For activation the two agree.

`row_plans.ShareMeter` has the same shares of texts that are being generated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final, TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Part, Site
from saeflow.sources.architectures import Point, PointLike
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.hooks import Change
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.steering.plan import SteeringDirection, SteeringPlan
from saeflow.steering.stream_rows import (
    MAX_LENGTH,
    by_site,
    read_places,
    stream_rows,
    token_batches,
    token_factors,
    unit_rows,
)

_Key = TypeVar("_Key", Site, int)

ROUNDING: Final = 1e-6
"""The share of a budget that is left free, so that rounding cannot exceed it."""


@dataclass(frozen=True, slots=True)
class PlanChange:
    """Lengths of what a plan adds to the stream, in units of the hidden state; for suppression means over tokens.

    Attributes:
        at_site: of what is added at each site.
        at_layer: of the sum over the sites of each layer.
        upto: of the sum over this layer and all before it, at each layer that is changed.
    """

    at_site: Mapping[Site, float]
    at_layer: Mapping[int, float]
    upto: Mapping[int, float]


def norm_sites(plan: SteeringPlan) -> tuple[Site, ...]:
    """The residual sites whose norms a plan's shares are of: one for each layer it changes."""
    return tuple(Site(layer, Part.RES) for layer in plan.layers)


def hidden_norms(
    model: LanguageModel, sites: Iterable[Site], texts: Sequence[str], *, max_length: int = MAX_LENGTH
) -> dict[Site, float]:
    """The mean length of the hidden state at some sites, over the tokens of texts that are not special.

    The begin-of-text token is left out: its state is many times longer than any other.

    Args:
        model: what the texts run through, unsteered.
        sites: where.
        texts: one or more.
        max_length: tokens a text is cut to.

    Raises:
        InvalidArgument: when no text has a token that is not special.
        UnknownSite: for a layer the model does not have.
    """
    asked = sorted(set(sites))
    total = dict.fromkeys(asked, 0.0)
    n = 0
    for tokens, real in token_batches(model, texts, max_length=max_length):
        held = model.capture(tokens, asked)
        for site in asked:
            total[site] += float(torch.linalg.vector_norm(held[site][real].double(), dim=-1).sum())
        n += int(real.sum())
    return {site: length / n for site, length in total.items()}


def plan_change(
    plan: SteeringPlan,
    dictionaries: Mapping[Site, Dictionary],
    model: LanguageModel | None = None,
    *,
    texts: Sequence[str] | None = None,
    steered: bool = False,
    max_length: int = MAX_LENGTH,
) -> PlanChange:
    """How much a plan changes at each site, at each layer, and up to each layer.

    Args:
        plan: to activate or suppress; `tokens` is not looked at: lengths are those of a token that is changed.
        dictionaries: of the plan's sites.
        model: needed for suppression, and to activate features of z.
        texts: what activations are read on; needed for suppression alone.
        steered: read them while the plan runs, each site as the sites before it leave it.
        max_length: tokens a text is cut to.

    Raises:
        InvalidArgument: for a suppression without a model or texts, or `steered` with a transcoder's features.
        WidthMismatch: on z without a model, or with a model whose z has another width.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    groups = list(by_site(plan.features, dictionaries))
    values = {step.feature: step.value for step in plan.steps}
    if plan.direction is SteeringDirection.ACTIVATE:
        vectors = {
            dictionary.site: _weights(values, here) @ unit_rows(dictionary, here, model) for dictionary, here in groups
        }
        return _lengths({site: vector[None] for site, vector in vectors.items()})
    if model is None or not texts:
        raise InvalidArgument(
            "what a suppression changes depends on how active its features are. Pass the model and texts in which they "
            "fire."
        )
    edits = (plan, dictionaries) if steered else None
    return _mean_change(groups, values, model, texts, max_length, edits)


@dataclass(frozen=True, slots=True)
class NormShares:
    """A plan's change as shares of the mean norm of the residual stream after each changed layer.

    Attributes:
        at_layer: of what is changed at the layer.
        upto: of all that is changed at the layer and before it.
    """

    at_layer: Mapping[int, float]
    upto: Mapping[int, float]

    @property
    def per_layer(self) -> float:
        """The largest share of a layer; 0 for an empty plan."""
        return max(self.at_layer.values(), default=0.0)

    @property
    def total(self) -> float:
        """The share of all that is changed, at the last layer that is; 0 for an empty plan."""
        return self.upto[max(self.upto)] if self.upto else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As a plan notes it."""
        return {"per_layer": {str(layer): share for layer, share in self.at_layer.items()}, "total": self.total}


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a plan may change, in shares of the hidden norm: 0.1 is 10 %; None for no limit.

    Attributes:
        per_layer: of what is changed at any one layer.
        total: of all that is changed, at the last layer that is.

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
                    f"a budget of {name} = {share} is no share of the hidden norm. Give one above 0, such as 0.1."
                )

    def holds(self, found: NormShares) -> bool:
        """Whether shares stay within it."""
        asked = ((self.per_layer, found.per_layer), (self.total, found.total))
        return all(limit is None or share <= limit for limit, share in asked)


def shares(change: PlanChange, norms: Mapping[Site, float]) -> NormShares:
    """A change as shares of the hidden norm.

    Args:
        change: what `plan_change` returned.
        norms: what `hidden_norms` returned for the plan's `norm_sites`.

    Raises:
        InvalidArgument: when a norm is missing or not above 0.
    """
    for layer in change.at_layer:
        if not norms.get(Site(layer, Part.RES), 0.0) > 0:
            raise InvalidArgument(
                f"there is no hidden norm for {Site(layer, Part.RES)}. Measure it with "
                "hidden_norms(model, norm_sites(plan), texts)."
            )
    norm = {layer: norms[Site(layer, Part.RES)] for layer in change.at_layer}
    return NormShares(
        {layer: length / norm[layer] for layer, length in change.at_layer.items()},
        {layer: length / norm[layer] for layer, length in change.upto.items()},
    )


def within(plan: SteeringPlan, budget: Budget, norms: Mapping[Site, float], change: PlanChange) -> SteeringPlan:
    """The plan, scaled down as a whole until a change in proportion to it fits a budget; never scaled up.

    That is exact for activation, and for suppression as `plan_change` measures it unsteered. One factor for all steps
    keeps the shape of the schedule. `made_by["budget"]` tells the budget, the factor and the shares before and after.

    Args:
        plan: what `change` was measured of.
        budget: shares of the hidden norm.
        norms: what `hidden_norms` returned for the plan's `norm_sites`.
        change: what `plan_change` returned for this plan.

    Raises:
        InvalidArgument: when a norm is missing or not above 0, or the change is of other layers than the plan.
    """
    if tuple(sorted(change.at_layer)) != plan.layers:
        raise InvalidArgument(
            f"the change is of layers {sorted(change.at_layer)}, the plan of {list(plan.layers)}. Measure the change "
            "of this plan."
        )
    before = shares(change, norms)
    asked = ((budget.per_layer, before.per_layer), (budget.total, before.total))
    over = [limit / share for limit, share in asked if limit is not None and share > limit]
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
    """The plan, scaled down as a whole until what it really changes fits a budget; never scaled up.

    As `within`, which is what it comes to for activation. A suppression is measured while it runs (`steered`), and
    the largest factor that fits is searched for by halving intervals; it is found to a hundredth of itself.

    Args:
        plan: what is weakened.
        budget: shares of the hidden norm.
        dictionaries: of the plan's sites.
        model: what texts run through.
        texts: what norms and activations are measured on; to suppress, texts in which the features fire.
        norms: of `norm_sites`, where they are known.

    Raises:
        InvalidArgument: without texts, or to suppress features of a transcoder.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    if norms is None:
        norms = hidden_norms(model, norm_sites(plan), texts)
    if plan.direction is SteeringDirection.ACTIVATE or not plan.steps:
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
    return _noted(plan, budget, fits, before, after)


def _noted(plan: SteeringPlan, budget: Budget, c: float, before: NormShares, after: NormShares) -> SteeringPlan:
    """The plan scaled by c, with what it was held to and what that changed."""
    told = {
        "per_layer": budget.per_layer,
        "total": budget.total,
        "scale": c,
        "before": {"per_layer": before.per_layer, "total": before.total},
        "after": {"per_layer": after.per_layer, "total": after.total},
    }
    return replace(plan.scaled(c), made_by={**plan.made_by, "budget": told})


def _weights(values: Mapping[FeatureId, float], features: Sequence[FeatureId]) -> Float64[Tensor, " n"]:
    return torch.tensor([values[feature] for feature in features], dtype=torch.float64)


def _mean_change(
    groups: Sequence[tuple[Dictionary, list[FeatureId]]],
    values: Mapping[FeatureId, float],
    model: LanguageModel,
    texts: Sequence[str],
    max_length: int,
    edits: tuple[SteeringPlan, Mapping[Site, Dictionary]] | None,
) -> PlanChange:
    """Mean lengths of (r - 1) a V over the tokens of texts, unsteered or under the edits."""
    places = [place for dictionary, _ in groups for place in read_places(dictionary, model)]
    rows = {dictionary.site: stream_rows(dictionary, here, model) for dictionary, here in groups}
    found: list[tuple[PlanChange, int]] = []
    for tokens, real in token_batches(model, texts, max_length=max_length):
        held = _held(model, tokens, places, edits)
        vectors: dict[Site, Tensor] = {}
        for dictionary, here in groups:
            h, *after = (held[Point.at(place)][real] for place in read_places(dictionary, model))
            index = torch.tensor([feature.index for feature in here], device=dictionary.W_enc.device)
            acts = dictionary.encode_only(h.to(dictionary.W_enc), index).double().cpu()
            change = (acts * (_weights(values, here) - 1)) @ rows[dictionary.site]
            vectors[dictionary.site] = change * token_factors(dictionary, model, h, *after)
        if int(real.sum()):
            found.append((_lengths(vectors), int(real.sum())))
    return PlanChange(
        _mean([(change.at_site, n) for change, n in found]),
        _mean([(change.at_layer, n) for change, n in found]),
        _mean([(change.upto, n) for change, n in found]),
    )


def _held(
    model: LanguageModel,
    tokens: Tokens,
    places: Sequence[PointLike],
    edits: tuple[SteeringPlan, Mapping[Site, Dictionary]] | None,
) -> dict[Point, Tensor]:
    """What stands at some places, before the edit of each place and after those of all earlier ones."""
    points = [Point.at(place) for place in places]
    if edits is None:
        captured = model.capture(tokens, places)
        return {point: captured[point] for point in points}
    held: dict[Point, Tensor] = {}

    def note(point: Point) -> Change:
        def keep(h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
            held[point] = h.detach()
            return h

        return keep

    plan, dictionaries = edits
    # hooks run in the order they are set: what is noted comes in before the plan's edit of the same place
    with model.intervening({point: note(point) for point in points}), model.intervening(plan, dictionaries):
        model.capture(tokens, [Site(max(point.layer for point in points), Part.RES)])
    return held


def _mean(parts: Sequence[tuple[Mapping[_Key, float], int]]) -> dict[_Key, float]:
    """The mean under each key, each part counted as often as it has tokens."""
    total = sum(n for _, n in parts)
    return {key: sum(lengths[key] * n for lengths, n in parts) / total for key in parts[0][0]}


def _lengths(vectors: Mapping[Site, Float64[Tensor, "n d_model"]]) -> PlanChange:
    """Mean lengths over rows of the vectors, of their sums over each layer, and of the sums so far."""
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
