"""Which settings of a grid are measured again, on seeds that had no part in choosing them. No torch.

The best of many noisy scores is best partly by luck. So the grid only chooses: of each method the setting with the
highest mean score, and beside it the best at the layer where most starts lie. What is reported is generated anew, with
all baselines: "random" puts random rows in place of the features of each chosen method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import Cells
from saeflow.steering.sweep.settings import MULTI, ORDER, RANDOM, SINGLE, Grid, Setting
from saeflow.steering.theme import Theme

FOLDER: Final = "confirmed"
BEST, START_LAYER, BASELINE = "best", "start layer", "baseline"


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting to measure again, and why: the best of its method, the best at the start layer, or a baseline."""

    theme: str
    direction: SteeringDirection
    setting: Setting
    role: str


def start_layer(theme: Theme) -> int:
    """The layer most starts lie in; the first of several."""
    layers = [feature.layer for feature in theme.starts]
    return min(set(layers), key=lambda layer: (-layers.count(layer), layer))


def choose(cells: Cells, themes: Sequence[Theme], grid: Grid) -> list[Choice]:
    """What is measured again for each theme and direction of the grid, in the order of tables.

    Raises:
        InvalidArgument: when a method has no setting with a score.
    """
    layers = {theme.name: start_layer(theme) for theme in themes}
    found: list[Choice] = []
    for (theme, direction, _), numbers in cells.groups():
        here: dict[str, list[int]] = {}
        for number in numbers:
            here.setdefault(cells.cells[number].setting.method, []).append(number)
        chosen: list[tuple[Setting, str]] = []
        for method, candidates in here.items():
            best = cells.cells[cells.best(candidates)].setting
            steered = method in (SINGLE, *MULTI[direction])
            chosen.append((best, BEST if steered else BASELINE))
            if steered and grid.wants(RANDOM):
                mirror = Setting(RANDOM, best.layer, best.schedule, best.value, method)
                chosen.append((mirror, BASELINE))
            there = [n for n in candidates if cells.cells[n].setting.layer == layers[theme]]
            if method == SINGLE and there:
                at_start = cells.cells[cells.best(there)].setting
                chosen += [(at_start, START_LAYER)] if at_start != best else []
        chosen.sort(key=lambda pair: (ORDER.index(pair[0].method), ORDER.index(pair[0].mirrors or pair[0].method)))
        found += [Choice(theme, direction, setting, role) for setting, role in chosen]
    return found
