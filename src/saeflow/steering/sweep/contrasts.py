"""Is one method of steering better than another, over themes that stand for others? And how many would tell? No torch.

With d[t, i] the score of method a less that of method b for theme t and seed i, each at its confirmed setting:

    difference     the mean over themes of the mean over seeds
    interval       t of themes - 1 degrees of freedom times the standard deviation of the themes' means over the root of
                   their number: what a paired bootstrap of whole themes comes to, in closed form. Seeds are in it,
                   since they move the means; drawing them again would count them twice (Davison and Hinkley 1997,
                   section 3.8)
    equivalence    two one-sided tests at 5 % (Schuirmann 1987): the 90 % interval lies within -D to D
    power          the variance of a mean over T themes of n seeds is (between + within / n) / T. What is needed has a
                   true difference D found, or a true difference of 0 shown to be smaller than D, in 80 % of runs

Themes are what is drawn: with few of them an interval is wide however many seeds there are. `steering_paired` has the
differences of each theme, whose intervals are of its seeds alone.
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
"""Of each theme the method of several layers whose best setting scored highest on the grid."""

SMALLEST: Final = 0.05
"""D, where none is given: half a mark of 5 in either mark moves a score of 0.5 by as much."""

POWER: Final = 0.8


@dataclass(frozen=True, slots=True)
class Contrast:
    """What two methods differ by.

    Attributes:
        difference: the mean over themes.
        low: the lower end of its 95 % interval.
        high: the upper end.
        least: D, the smallest difference that matters.
        equal: whether the 90 % interval lies within -D to D.
        themes: how many there were.
        samples: seeds of each.
        themes_needed: themes of as many seeds that would tell D from 0, and 0 from D, in 80 % of runs.
        samples_needed: seeds of as many themes that would; None where no number does.
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
        """In words: better, worse, smaller than D (whatever its sign), or that it cannot be said."""
        side = "better" if self.low > 0 else "worse" if self.high < 0 else ""
        small = f"differs by less than {self.least:g}" if self.equal else ""
        return ", but ".join(filter(None, (side, small))) or "cannot be said"


def contrast(differences: Float[np.ndarray, "themes samples"], least: float = SMALLEST) -> Contrast:
    """The mean of paired differences, over themes and seeds, with its interval and what would be needed.

    Args:
        differences: of each theme and seed; all are numbers.
        least: D, the smallest difference that matters, above 0.

    Raises:
        InvalidArgument: for fewer than 3 themes or 2 seeds, a value that is not a number, or a D that is not above 0.
    """
    themes, samples = differences.shape
    if themes < 3 or samples < 2 or not np.isfinite(differences).all():
        raise InvalidArgument(
            f"differences of {themes} themes and {samples} samples, each a number, are too few for an interval over "
            "themes. Give 3 themes or more with 2 samples each."
        )
    if not 0 < least < math.inf:
        raise InvalidArgument(f"the smallest difference that matters, {least}, is not above 0. Give one, such as 0.05.")

    # 1. the spread of the mean
    spread = float(differences.mean(1).std(ddof=1)) / math.sqrt(themes)
    value = float(differences.mean())
    t95, t90 = (float(stats.t.ppf(q, themes - 1)) for q in ((1 + LEVEL) / 2, LEVEL))

    # 2. what would be needed, from the variance between themes and within them
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
    """Every method against every other, on fresh samples, in each direction: one line per pair.

    `several layers` is, of each theme, the method of several layers that scored highest on the grid. Random rows and
    the best setting of the start layer are left out. Pairs that fewer than 3 themes have are left out.

    Args:
        results: the folder of the grid.
        least: D, the smallest difference that matters.
        judge: whose scores; the last one that was asked when not named.

    Raises:
        InvalidArgument: when the settings are not confirmed yet, or that judge has not scored them.
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
    """For each theme, method -> the line of its confirmed setting; several layers first."""
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
