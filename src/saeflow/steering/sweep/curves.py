"""How the score of a sweep depends on layer, strength and what is changed: figures 9 to 11 and 16. No torch.

Wherever one of several settings is shown as their best, its score is cross-fitted: chosen on one half of the samples
and measured on the other, both ways (`Cells.crossfit`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from saeflow.experiments.results import SummaryTable
from saeflow.experiments.statistics import Estimate, ratio
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import Cells
from saeflow.steering.sweep.settings import NONE, PROMPT

SHARES: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Limits of `steering_by_share`: shares of the hidden norm."""

CROSSFIT: Final = (
    "each half of the samples is scored at the setting that is best on the other half, so that choosing does not "
    "flatter it"
)
Group = tuple[str, SteeringDirection, str, list[int]]


def by_layer(grid: Cells) -> SummaryTable:
    """The score at each layer: every r of a suppression, the best s of an activation (figures 9, 16, 17b)."""
    rows: list[tuple[Any, ...]] = []
    for theme, direction, method, numbers in _steered(grid):
        default = grid.default(theme, direction)
        for layer, here in _by(numbers, lambda n: grid.cells[n].setting.layer).items():
            if layer < 0:
                continue
            options = [here] if direction is SteeringDirection.ACTIVATE else [[number] for number in here]
            for candidates in options:
                found = grid.estimate(grid.crossfit(candidates))
                value = grid.cells[grid.best(candidates)].setting.value
                rows.append((theme, direction.value, method, layer, value, found.n, *found.interval, default))
    return SummaryTable.of(
        "steering_by_layer",
        "Score by layer",
        "figures 9, 16, 17b",
        "single changes the features of this layer alone, the others those of layers 0 to it. Suppression has a row "
        f"for each r; activation one for the best s, named in value: {CROSSFIT}. default is the score of unsteered "
        f"text. Judge: {grid.judge}.",
        "theme, direction, method, layer, value, n, score, low, high, default",
        rows,
    )


def by_value(grid: Cells) -> SummaryTable:
    """The score at each s or r, at the best layer for it (figures 10 and 11)."""
    rows: list[tuple[Any, ...]] = []
    for theme, direction, method, numbers in _steered(grid):
        default = grid.default(theme, direction)
        for value, candidates in _by(numbers, lambda n: grid.cells[n].setting.value).items():
            found = grid.estimate(grid.crossfit(candidates))
            best = grid.best(candidates)
            rows.append(
                (
                    theme,
                    direction.value,
                    method,
                    value,
                    grid.cells[best].setting.layer,
                    found.n,
                    grid.mean("behavior", best),
                    grid.mean("coherence", best),
                    *found.interval,
                    default,
                )
            )
    return SummaryTable.of(
        "steering_by_value",
        "Score by strength, at the best layer",
        "figures 10, 11",
        "layer is the best one for the value on all samples; behavior and coherence are those there. score: "
        f"{CROSSFIT}. start changes the first features alone, at their own layers, and has no layer to choose. "
        f"default is the score of unsteered text. Judge: {grid.judge}.",
        "theme, direction, method, value, layer, n, behavior, coherence, score, low, high, default",
        rows,
    )


def sensitivity(grid: Cells) -> SummaryTable:
    """How much is lost by a value that is not the best (section 5.3: "reduced sensitivity to hyperparameters")."""
    rows: list[tuple[Any, ...]] = []
    for theme, direction, method, numbers in _steered(grid):
        values = _by(numbers, lambda n: grid.cells[n].setting.value)
        scores = np.stack([grid.crossfit(candidates) for candidates in values.values()])
        each = [estimate.value for estimate in grid.estimates(scores)]
        mean = grid.estimate(scores.mean(0))
        known = [value for value in each if value is not None]
        rows.append(
            (
                theme,
                direction.value,
                method,
                len(values),
                *mean.interval,
                min(known),
                max(known),
                max(known) - min(known),
                *_spread(grid, scores).interval[1:],
                grid.default(theme, direction),
            )
        )
    return SummaryTable.of(
        "steering_sensitivity",
        "Sensitivity to the strength",
        "figures 10, 11",
        "Over all s or r of the grid, each at its best layer (cross-fitted: chosen on one half of the samples, scored "
        "on the other). mean_score is what a value taken blindly gives; spread is best_score - worst_score: small "
        "where the choice matters little. A method that does nothing at any value has no spread either, so read it "
        f"beside mean_score and default, the score of unsteered text. Judge: {grid.judge}.",
        "theme, direction, method, values, mean_score, low, high, worst_score, best_score, spread, spread_low, "
        "spread_high, default",
        rows,
    )


def by_share(grid: Cells) -> SummaryTable:
    """The best score within a limit on what is changed (section 5.3: "smaller hidden state perturbations")."""
    rows: list[tuple[Any, ...]] = []
    for theme, direction, method, numbers in _steered(grid):
        shares = {number: grid.mean("share_total", number) for number in numbers}
        default = grid.default(theme, direction)
        for limit in SHARES:
            candidates = [number for number in numbers if shares[number] <= limit]
            if not candidates:
                continue
            found = grid.estimate(grid.crossfit(candidates))
            best = grid.best(candidates)
            setting = grid.cells[best].setting
            rows.append(
                (
                    theme,
                    direction.value,
                    method,
                    limit,
                    setting.layer,
                    setting.value,
                    shares[best],
                    found.n,
                    *found.interval,
                    default,
                )
            )
    return SummaryTable.of(
        "steering_by_share",
        "Score within a limit on the change of hidden states",
        "section 5.3",
        "share_limit bounds share_total, the length of all that was changed over the norm of the hidden state: methods "
        "in rows of one limit may change as much. layer, value and share_total are of the setting that is best on "
        f"all samples; score: {CROSSFIT}. A method without a row has no setting that changes so little. default is "
        f"the score of unsteered text. Judge: {grid.judge}.",
        "theme, direction, method, share_limit, layer, value, share_total, n, score, low, high, default",
        rows,
    )


def _steered(grid: Cells) -> list[Group]:
    """Theme, direction, method and cells of every method that changes something."""
    return [
        (theme, direction, method, numbers)
        for (theme, direction, method), numbers in grid.groups(lambda cell: cell.setting.method)
        if method not in (NONE, PROMPT)
    ]


def _by(numbers: Sequence[int], key: Callable[[int], Any]) -> dict[Any, list[int]]:
    """Cells by a key; keys ascending."""
    found: dict[Any, list[int]] = {}
    for number in numbers:
        found.setdefault(key(number), []).append(number)
    return dict(sorted(found.items()))


def _spread(grid: Cells, scores: Float[np.ndarray, "n k"]) -> Estimate:
    """Best minus worst mean over rows of scores; rows without a score are left out."""
    tally = grid.tally(scores[np.isfinite(scores).any(1)])
    return tally.told(lambda x: np.ptp(ratio(x), axis=-1), span=(0.0, 1.0), sizes=tally.sums[..., 1])
