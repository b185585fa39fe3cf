"""How much a plan changes the hidden state, as shares of its norm; and plans weakened until they fit a budget.

A row that is added at every layer is not changed once: what layer 0 added is still in the stream when layer 1 adds
to it. Two shares are therefore told, with d_l the sum of all that a plan adds at the sites of layer l (attention and
the MLP write into the same stream) and |h_l| the mean norm of the residual stream after layer l:

    share of a layer    |d_l| / |h_l|
    total               |d_0 + ... + d_L| / |h_L|      L the last layer that is changed

The total follows the change along the stream alone: what later layers make of it is not in it. It is the norm of a
sum: directions that differ partly cancel, like ones add up in full.

Lengths are measured in `measuring`. Those of an activation are proportional to its strengths; so are those of a
suppression, where they are read on the unsteered model, but then they are too large for plans of several layers.
`fit_budget` therefore measures a suppression while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from saeflow.errors import InvalidArgument
from saeflow.ids import Part, Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.steering.measuring import PlanChange, change_lengths, hidden_norms, norm_sites, plan_change
from saeflow.steering.plan import Direction, SteeringPlan

__all__ = [
    "Budget", "PlanChange", "Shares", "change_lengths", "fit_budget", "hidden_norms", "norm_sites", "plan_change",
    "shares", "within",
]  # fmt: skip

ROUNDING: Final = 1e-6
"""The share of a budget that is left free, so that rounding cannot exceed it."""


@dataclass(frozen=True, slots=True)
class Shares:
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
        return {
            "per_layer": {str(layer): share for layer, share in self.at_layer.items()},
            "total": self.total,
        }


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
        """Refuse what is no share."""
        for name, share in (("per_layer", self.per_layer), ("total", self.total)):
            if share is not None and not 0 < share < math.inf:
                raise InvalidArgument(
                    f"a budget of {name} = {share} is no share of the hidden norm. Give one above 0, such as 0.1."
                )

    def holds(self, found: Shares) -> bool:
        """Whether shares stay within it."""
        asked = ((self.per_layer, found.per_layer), (self.total, found.total))
        return all(limit is None or share <= limit for limit, share in asked)


def shares(change: PlanChange, norms: Mapping[Site, float]) -> Shares:
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
    return Shares(
        {layer: length / norm[layer] for layer, length in change.at_layer.items()},
        {layer: length / norm[layer] for layer, length in change.upto.items()},
    )


def within(
    plan: SteeringPlan, budget: Budget, norms: Mapping[Site, float], change: PlanChange
) -> SteeringPlan:
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
    after = Shares(
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
    if plan.direction is Direction.ACTIVATE or not plan.steps:
        return within(plan, budget, norms, plan_change(plan, dictionaries, model, texts=texts))

    def measured(c: float) -> Shares:
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


def _noted(plan: SteeringPlan, budget: Budget, c: float, before: Shares, after: Shares) -> SteeringPlan:
    """The plan scaled by c, with what it was held to and what that changed."""
    told = {
        "per_layer": budget.per_layer,
        "total": budget.total,
        "scale": c,
        "before": {"per_layer": before.per_layer, "total": before.total},
        "after": {"per_layer": after.per_layer, "total": after.total},
    }
    return replace(plan.scaled(c), made_by={**plan.made_by, "budget": told})
