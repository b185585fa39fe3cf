"""Claims of sections 5.3, 6, 8 and C.3: steering along flow graphs (figures 9 to 11, 16, 17).

A number is the mean over themes, which are chosen and not drawn; samples of one seed belong together.
The best of several settings is cross-fitted on the grid, or measured on fresh samples, so that choosing does not
flatter it. Scores are of one judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd

from saeflow.experiments.statistics import Estimate, Tally, known_mean, ratio
from saeflow.reproduce.evidence import SteeringRun
from saeflow.reproduce.verdicts import ABOVE_0, BELOW_0, UNKNOWN, Contrast, NotMeasured, Rule, Unit
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import Cells
from saeflow.steering.sweep.settings import CUMULATIVE, SINGLE, START

ACTIVATE, SUPPRESS = SteeringDirection.ACTIVATE, SteeringDirection.SUPPRESS
SMALL: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Limits on the change of a hidden state, as a share of its norm, that are tried from the smallest."""


def themes(cells: Cells, direction: SteeringDirection) -> list[str]:
    """The themes of a direction.

    Raises:
        NotMeasured: when there is none.
    """
    found = list(cells.settings.loc[cells.settings["direction"] == direction.value, "theme"].unique())
    if not found:
        raise NotMeasured(f"No theme was steered in the direction {direction.value}.")
    return found


def find(
    cells: Cells, theme: str, direction: SteeringDirection, *methods: str, mirrors: Sequence[str] = ("",)
) -> pd.DataFrame:
    """The settings of a theme with these methods, and, of random ones, with these in the place of which they stand."""
    found = cells.settings
    kept = (found["theme"] == theme) & (found["direction"] == direction.value)
    return found[kept & found["method"].isin(methods) & found["mirrors"].isin(mirrors)]


def by_value(cells: Cells, theme: str, direction: SteeringDirection, method: str) -> dict[float, np.ndarray]:
    """For each s or r, weak to strong, the score of each sample at the best layer for it, cross-fitted."""
    found = find(cells, theme, direction, method)
    order = sorted(found["value"].unique().tolist(), reverse=direction is SUPPRESS)
    return {value: cells.crossfit(found.index[found["value"] == value]) for value in order}


def over_themes(
    cells: Cells,
    each: Mapping[str, np.ndarray],
    words: str,
    rule: Rule = ABOVE_0,
    unit: Unit = Unit.NUMBER,
    *,
    control: Mapping[str, np.ndarray] | None = None,
) -> Contrast:
    """The mean over themes of one number a sample, and in how many themes its own interval is on either side of 0.

    Raises:
        NotMeasured: when no theme has one.
    """
    if not each:
        raise NotMeasured("No theme has the settings that are compared.")
    found = _told(cells, list(each.values()))
    sides = [_told(cells, [values]) for values in each.values()]
    above = sum(s.low is not None and s.low > 0 for s in sides)
    below = sum(s.high is not None and s.high < 0 for s in sides)
    beside = f"above 0 in {above} and below in {below} of {len(each)} themes"
    beside_it = _told(cells, list(control.values())) if control else UNKNOWN
    return Contrast(words, found, rule, unit, beside_it, beside)


def _told(cells: Cells, each: Sequence[np.ndarray]) -> Estimate:
    """The mean over themes of the mean over samples."""
    tally = cells.tally(np.stack(each))
    sizes = tally.sums[..., 1]
    return tally.told(lambda x: ratio(x).mean(-1), n=float(sizes.sum()), sizes=sizes)


# --- figure 9: suppression by layer -----------------------------------------------------------------------------------


def _layers(run: SteeringRun) -> tuple[Tally, list[list[float]], float]:
    """Scores of single layers at the weakest and the strongest r: samples by themes by r by layers; layers; rows.

    Raises:
        NotMeasured: when a theme has fewer than two layers or two values.
    """
    grid = run.grid
    blocks: list[np.ndarray] = []
    layers: list[list[float]] = []
    for theme in themes(grid, SUPPRESS):
        places = find(grid, theme, SUPPRESS, SINGLE)
        told = dict(zip(zip(places["value"], places["layer"], strict=True), places.index, strict=True))
        values = sorted({value for value, _ in told}, reverse=True)
        common = sorted({layer for _, layer in told if all((v, layer) in told for v in values)})
        if len(values) < 2 or len(common) < 2:
            raise NotMeasured("Single layers were steered at fewer than two layers or two values of r.")
        ends = (values[0], values[-1])
        blocks.append(np.stack([[grid.values["score"][told[v, layer]] for layer in common] for v in ends]))
        layers.append([float(layer) for layer in common])
    most = max(len(block[0]) for block in blocks)
    padded = [np.pad(b, ((0, 0), (0, most - b.shape[1]), (0, 0)), constant_values=np.nan) for b in blocks]
    tally = grid.tally(np.stack(padded))
    return tally, layers, float(tally.sums[..., 1].sum())


def fig9_earlier(run: SteeringRun) -> list[Contrast]:
    """The best single layer is earlier at the strongest r than at the weakest."""
    tally, layers, n = _layers(run)

    def best(x: np.ndarray) -> np.ndarray:
        means = np.nan_to_num(x[..., 0] / x[..., 1], nan=-np.inf).argmax(-1)  # cases by themes by r
        known = np.array([row + [np.nan] * (means.max() + 1 - len(row)) for row in layers])
        at = known[np.arange(len(layers))[None, :, None], means]
        return (at[..., 1] - at[..., 0]).mean(-1)

    words = "best layer at the strongest r less that at the weakest, in layers"
    far = max(row[-1] - row[0] for row in layers)
    found = tally.told(best, n=n, span=(-far, far), chosen=True)
    return [Contrast(words, found, BELOW_0, Unit.NUMBER, beside=_of_themes(len(layers)))]


def fig9_even(run: SteeringRun) -> list[Contrast]:
    """Weak r spreads its effect more evenly over layers."""
    tally, layers, n = _layers(run)

    def uneven(x: np.ndarray) -> np.ndarray:
        means = x[..., 0] / x[..., 1]
        spread = np.sqrt(known_mean((means - known_mean(means, -1)[..., None]) ** 2, -1))
        return (spread[..., 1] - spread[..., 0]).mean(-1)

    words = "standard deviation over layers of the score at the strongest r less that at the weakest"
    return [Contrast(words, tally.told(uneven, n=n), ABOVE_0, Unit.NUMBER, beside=_of_themes(len(layers)))]


def _of_themes(n: int) -> str:
    return "mean of one theme" if n == 1 else f"mean of {n} themes"


def fig9_stronger(run: SteeringRun) -> list[Contrast]:
    """Single layers do better at the strongest r than at the weakest."""
    each: dict[str, np.ndarray] = {}
    for theme in themes(run.grid, SUPPRESS):
        scores = list(by_value(run.grid, theme, SUPPRESS, SINGLE).values())
        if len(scores) > 1:
            each[theme] = scores[-1] - scores[0]
    return [over_themes(run.grid, each, "score of the best single layer at the strongest r less that at the weakest")]


# --- figure 10: suppression by strength -------------------------------------------------------------------------------


def _over_values(run: SteeringRun, a: str, b: str, *, weak: bool = False) -> dict[str, np.ndarray]:
    """Score of method a less that of method b, the mean over r (of the weaker half), by theme."""
    each: dict[str, np.ndarray] = {}
    for theme in themes(run.grid, SUPPRESS):
        one, two = (by_value(run.grid, theme, SUPPRESS, method) for method in (a, b))
        both = [value for value in one if value in two]
        kept = both[: (len(both) + 1) // 2] if weak else both
        if kept:
            each[theme] = np.mean([one[value] - two[value] for value in kept], axis=0)
    return each


def fig10_better(run: SteeringRun) -> list[Contrast]:
    """Layers found by flow graphs do better than the initial features alone, over all r."""
    return [
        over_themes(
            run.grid,
            _over_values(run, method, START),
            f"score of {method} less that of the start features, mean over r",
        )
        for method in (SINGLE, CUMULATIVE)
    ]


def fig10_weak(run: SteeringRun) -> list[Contrast]:
    """Cumulative does better than single at weak r."""
    each = _over_values(run, CUMULATIVE, SINGLE, weak=True)
    return [over_themes(run.grid, each, "score of cumulative less that of single at the weaker half of r")]


def fig10_steady(run: SteeringRun) -> list[Contrast]:
    """The score of cumulative depends less on r than that of the initial features, and of single layers."""
    grid = run.grid
    found: list[Contrast] = []
    for other in (START, SINGLE):
        blocks = [
            np.stack([list(by_value(grid, theme, SUPPRESS, m).values()) for m in (other, CUMULATIVE)])
            for theme in themes(grid, SUPPRESS)
            if len(by_value(grid, theme, SUPPRESS, other)) == len(by_value(grid, theme, SUPPRESS, CUMULATIVE)) > 1
        ]
        if not blocks:
            raise NotMeasured(f"{other} and cumulative were not both run at several r.")
        tally = grid.tally(np.stack(blocks))  # samples by themes by methods by r

        def spread(x: np.ndarray) -> np.ndarray:
            means = x[..., 0] / x[..., 1]
            wide = means.max(-1) - means.min(-1)
            return (wide[..., 0] - wide[..., 1]).mean(-1)

        words = f"spread of the score over r of {other} less that of cumulative"
        found.append(
            Contrast(
                words,
                tally.told(spread, n=float(tally.sums[..., 1].sum())),
                ABOVE_0,
                Unit.NUMBER,
                beside=_of_themes(len(blocks)),
            )
        )
    return found


def fig10_small(run: SteeringRun) -> list[Contrast]:
    """Cumulative does better than single where both may change the hidden state little."""
    grid = run.grid
    for limit in SMALL:
        each: dict[str, np.ndarray] = {}
        for theme in themes(grid, SUPPRESS):
            steered = (find(grid, theme, SUPPRESS, method) for method in (CUMULATIVE, SINGLE))
            sides = [found.index[found["share_total"] <= limit] for found in steered]
            if all(map(len, sides)):
                each[theme] = grid.crossfit(sides[0]) - grid.crossfit(sides[1])
        if len(each) == len(themes(grid, SUPPRESS)):
            words = f"score of cumulative less that of single, both within {100 * limit:.0f} % of the hidden norm"
            return [over_themes(grid, each, words)]
    raise NotMeasured("There is no limit on the change under which every theme has both methods.")
