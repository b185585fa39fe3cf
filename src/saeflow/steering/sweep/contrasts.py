"""Is one steering method better than another, for themes in general? And how many themes does it take? No torch.

With d[t, i] the score of method a less that of method b for theme t and seed i, each at its confirmed setting:

    difference     the mean over themes of the mean over seeds
    interval       the quantile of t with (themes - 1) degrees of freedom, times the standard deviation of the themes'
                   means over the root of their number: the closed form of a paired bootstrap of whole themes. It
                   includes the variation of seeds, which moves the means; resampling seeds too would count that twice
                   (Davison and Hinkley 1997, section 3.8)
    equivalence    two one-sided tests at 5 % (Schuirmann 1987): the 90 % interval lies within -D to D
    power          the variance of a mean over T themes of n seeds is (between + within / n) / T. The number needed is
                   such that 80 % of runs detect a true difference of D, and show a true difference of 0 to be smaller
                   than D

Themes are the unit of sampling: with few of them the interval is wide, however many seeds there are. `steering_paired`
has the differences for each theme, with intervals over its seeds only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from saeflow.errors import InvalidArgument
from saeflow.experiments.results import Results
from saeflow.experiments.statistics import LEVEL
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import START_LAYER, Cells, confirmed_cells
from saeflow.steering.sweep.scoring import read_scores
from saeflow.steering.sweep.settings import MULTI, RANDOM

SEVERAL: Final = "several layers"
"""For each theme, the method of several layers whose best setting scored highest on the grid."""

SMALLEST: Final = 0.05
"""Default D: at a score of 0.5, the effect of about half a mark out of 5 in either mark."""

POWER: Final = 0.8


@dataclass(frozen=True, slots=True)
class Contrast:
    """The difference between two methods.

    Attributes:
        difference: the mean over themes.
        low: the lower end of its 95 % interval.
        high: the upper end.
        least: D, the smallest difference that matters.
        equal: whether the 90 % interval lies within -D to D.
        themes: number of themes.
        samples: seeds per theme.
        themes_needed: themes needed, with as many seeds, to tell D from 0, and 0 from D, in 80 % of runs.
        samples_needed: seeds needed for this with as many themes; None if no number is enough.
    """

    difference: float
    low: float
    high: float
    least: float
    equal: bool
    themes: int
    samples: int
    themes_needed: int
    samples_needed: int | None

    @property
    def outcome(self) -> str:
        """The result in words: better, worse, a difference smaller than D of either sign, or undecided."""
        side = "better" if self.low > 0 else "worse" if self.high < 0 else ""
        small = f"differs by less than {self.least:g}" if self.equal else ""
        return ", but ".join(filter(None, (side, small))) or "cannot be said"


def contrast(differences: Float[np.ndarray, "themes samples"], least: float = SMALLEST) -> Contrast:
    """The mean of paired differences over themes and seeds, with its interval and the numbers needed.

    Args:
        differences: for each theme and seed; all finite.
        least: D, the smallest difference that matters, above 0.

    Raises:
        InvalidArgument: for fewer than 3 themes or 2 seeds, a value that is not finite, or a D that is not above 0.
    """
    themes, samples = differences.shape
    if themes < 3 or samples < 2 or not np.isfinite(differences).all():
        raise InvalidArgument(
            f"differences of {themes} themes and {samples} samples, each a number, are too few for an interval over "
            "themes. Give 3 themes or more with 2 samples each."
        )
    if not 0 < least < math.inf:
        raise InvalidArgument(f"the smallest difference that matters, {least}, is not above 0. Give one, such as 0.05.")

    # 1. the standard error of the mean
    spread = float(differences.mean(1).std(ddof=1)) / math.sqrt(themes)
    value = float(differences.mean())
    t95, t90 = (float(stats.t.ppf(q, themes - 1)) for q in ((1 + LEVEL) / 2, LEVEL))

    # 2. the numbers needed, from the variance between and within themes
    within = float(differences.var(axis=1, ddof=1).mean())
    between = max(0.0, float(differences.mean(1).var(ddof=1)) - within / samples)
    normal = stats.norm.ppf
    widest = max(float(normal((1 + LEVEL) / 2) + normal(POWER)), float(normal(LEVEL) + normal((1 + POWER) / 2)))
    variance = (least / widest) ** 2
    left = themes * variance - between
    return Contrast(
        difference=value,
        low=value - t95 * spread,
        high=value + t95 * spread,
        least=least,
        equal=abs(value) + t90 * spread < least,
        themes=themes,
        samples=samples,
        themes_needed=max(3, math.ceil((between + within / samples) / variance)),
        samples_needed=max(2, math.ceil(within / left)) if left > 0 else None,
    )


def contrasts(results: Results, least: float = SMALLEST, judge: str = "") -> pd.DataFrame:
    """Compare every pair of methods on fresh samples, in each direction: one line per pair.

    `several layers` is, for each theme, the method of several layers that scored highest on the grid. Random rows and
    the best setting at the start layer are left out, as are pairs that fewer than 3 themes have.

    Args:
        results: the folder of the grid.
        least: D, the smallest difference that matters.
        judge: name of the judge; by default the one that scored last.

    Raises:
        InvalidArgument: when the settings are not confirmed yet, or this judge has not scored them.
        BadFile: when a file of the folder is damaged.
    """
    grid = Cells.of(results, read_scores(results, judge))
    fresh = confirmed_cells(results, grid.judge)
    if fresh is None:
        raise InvalidArgument(f"{results.folder} has no confirmed settings yet. Run the sweep again to finish it.")
    lines: list[dict[str, Any]] = []
    for direction in SteeringDirection:
        places = _places(fresh, grid, direction)
        names = list(dict.fromkeys(method for of_theme in places.values() for method in of_theme))
        for number, a in enumerate(names):
            for b in names[number + 1 :]:
                both = [(of[a], of[b]) for of in places.values() if a in of and b in of and of[a] != of[b]]
                scores = fresh.values["score"]
                each = np.stack([scores[x] - scores[y] for x, y in both]) if both else np.zeros((0, 0))
                each = each[np.isfinite(each).all(axis=1)] if each.size else each
                if len(each) < 3:
                    continue
                found = contrast(each, least)
                lines.append(
                    {"direction": direction.value, "method_a": a, "method_b": b, "themes": found.themes}
                    | {"samples": found.samples, "difference": found.difference, "low": found.low, "high": found.high}
                    | {"outcome": found.outcome, "themes_needed": found.themes_needed}
                    | {"samples_needed": found.samples_needed}
                )
    return pd.DataFrame(lines)


def _places(fresh: Cells, grid: Cells, direction: SteeringDirection) -> Mapping[str, Mapping[str, int]]:
    """Theme -> method -> the line of its confirmed setting, with `several layers` first."""
    kept = fresh.settings
    kept = kept[(kept["direction"] == direction.value) & (kept["role"] != START_LAYER) & (kept["method"] != RANDOM)]
    best = grid.settings.groupby(["theme", "direction", "method"], observed=True)["score"].max()
    found: dict[str, dict[str, int]] = {}
    for theme, here in kept.groupby("theme", observed=True):
        own = dict(zip(map(str, here["method"]), map(int, here.index.tolist()), strict=True))
        several = [method for method in MULTI[direction] if method in own]
        if len(several) > 1:
            top = max(several, key=lambda method: best[theme, direction.value, method])
            own = {SEVERAL: own[top], **own}
        found[str(theme)] = own
    return found
