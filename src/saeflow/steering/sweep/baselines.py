"""Random rows in place of a plan's features: what steering as strong, at the same sites, does without the flow graph.

1. Every feature of the plan is replaced by a random row of its own site that no target names. Random directions
   of the stream would be a weak control: they point where the model never goes, SAE rows do not.
2. Activation: each row keeps the strength of the one it replaces; then the rows of a site are rescaled together, so
   that what is added there is as long as in the plan, however the rows of the plan add up.
3. Suppression: a silent feature changes nothing when it is rescaled, so the row is drawn among the few that
   write about as much as the one it replaces, on average over unsteered text.
4. Each sample has a draw of its own, so that intervals over samples hold the luck of the draw as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float

from saeflow.errors import InvalidArgument
from saeflow.experiments.sampling import generator
from saeflow.ids import FeatureId, Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.weights import row_peaks
from saeflow.steering.activity import activity
from saeflow.steering.plan import SteeringDirection, SteeringPlan, Step
from saeflow.steering.stream_rows import unit_rows

NEAREST: Final = 8
"""Rows alike in activity among which one is drawn."""

Written = Mapping[Site, Float[np.ndarray, " n_features"]]
"""How much each feature of a site writes on average."""


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
        dictionaries: whose features they are.
        sites: which of them.
        texts: one or more, each with a token that is not special.
        max_length: tokens a text is cut to.

    Raises:
        InvalidArgument: for no site, or a text without a token that counts.
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
    """One plan for each seed, that does at the same sites what `plan` does, with random rows.

    Args:
        plan: what is copied.
        dictionaries: where the rows come from.
        model: projects rows that live in z.
        avoid: features that are not drawn: the targets of the theme.
        seeds: a draw is a function of its seed and of the plan's features.
        active: how much features write on unsteered text; a suppression needs it.

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
        taken = [feature.index for feature in left_out if feature.site == site]
        free = (row_peaks(dictionaries[site].finite_rows("W_dec")) > 0).cpu().numpy()
        free[taken] = False
        if int(free.sum()) < len(steps):
            raise InvalidArgument(
                f"{site} has {int(free.sum())} rows that no target names, and {len(steps)} are needed for a random "
                "baseline. Leave the random method out, or steer fewer features."
            )
        chosen = [_rows(steps, free, seed, None if active is None else active[site]) for seed in seeds]
        if plan.direction is SteeringDirection.ACTIVATE:
            found = _as_long(steps, chosen, dictionaries[site], model)
        else:
            found = [_in_place_of(steps, rows, [step.value for step in steps]) for rows in chosen]
        for draw, more in zip(drawn, found, strict=True):
            draw.extend(more)
    return [replace(plan, steps=tuple(draw), dropped=()) for draw in drawn]


def _rows(
    steps: Sequence[Step],
    free: Bool[np.ndarray, " n_features"],
    seed: int,
    active: Float[np.ndarray, " n_features"] | None,
) -> list[int]:
    """A row for each step, all different: any that is free, or one of those alike in activity."""
    rng = generator(seed, "random rows", *(str(step.feature) for step in steps))
    order = rng.permutation(np.flatnonzero(free))
    if active is None:
        return order[: len(steps)].tolist()
    found: list[int] = []
    for step in steps:
        left = order[~np.isin(order, found)]
        own = active[step.feature.index]
        # by ratio, since activity spans orders of magnitude; the silent are alike and infinitely far from the rest
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = np.abs(np.log(active[left]) - np.log(own))
        apart[(active[left] == 0) & (own == 0)] = 0.0
        near = np.argsort(apart, kind="stable")[:NEAREST]
        alike = near[np.isfinite(apart[near])]  # a silent row does not stand in for an active one, if it can be helped
        found.append(int(rng.choice(left[alike if len(alike) else near])))
    return found


def _as_long(
    steps: Sequence[Step], chosen: Sequence[Sequence[int]], dictionary: Dictionary, model: LanguageModel
) -> list[list[Step]]:
    """The steps with other rows, rescaled so that their sum is as long as that of the steps."""
    site = dictionary.site
    strength = torch.tensor([step.value for step in steps], dtype=torch.float64)
    own = unit_rows(dictionary, [step.feature for step in steps], model)
    length = float(torch.linalg.vector_norm(strength @ own))
    found: list[list[Step]] = []
    for rows in chosen:
        others = unit_rows(dictionary, [FeatureId(site, row) for row in rows], model)
        there = float(torch.linalg.vector_norm(strength @ others))
        scale = length / there if there > 0 else 1.0
        found.append(_in_place_of(steps, rows, [step.value * scale for step in steps]))
    return found


def _in_place_of(steps: Sequence[Step], rows: Sequence[int], values: Sequence[float]) -> list[Step]:
    return [
        Step(FeatureId(step.feature.site, row), value, why=f"random row in place of {step.feature}")
        for step, row, value in zip(steps, rows, values, strict=True)
    ]
