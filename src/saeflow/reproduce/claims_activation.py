"""Claims of the introduction and of sections 5.3, 6 and C.3 on steering towards a theme (figures 11, 16, 17)."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from saeflow.experiments.statistics import LEVEL
from saeflow.reproduce.claims_steering import ACTIVATE, SUPPRESS, find, over_themes, themes
from saeflow.reproduce.evidence import SteeringRun
from saeflow.reproduce.verdicts import ABOVE_0, BELOW_0, Contrast, NotMeasured, Unit
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import START_LAYER, Cells
from saeflow.steering.sweep.settings import MULTI, RANDOM, SINGLE, START

_METHODS: Final = "the multi-layer methods"


# --- figure 11 --------------------------------------------------------------------------------------------------------


def _same_setting(run: SteeringRun, measure: str) -> dict[str, np.ndarray]:
    """A mark of the multi-layer methods less that of single at the same s and layer, by theme: the mean over those."""
    grid = run.grid
    each: dict[str, np.ndarray] = {}
    for theme in themes(grid, ACTIVATE):
        single, several = find(grid, theme, ACTIVATE, SINGLE), find(grid, theme, ACTIVATE, *MULTI[ACTIVATE])
        several = several[several["layer"] > single["layer"].min()] if len(single) else several
        pairs = several.reset_index().merge(single.reset_index(), on=["value", "layer"], suffixes=("", "_single"))
        if len(pairs):
            values = grid.values[measure]
            each[theme] = (values[pairs["index"]] - values[pairs["index_single"]]).mean(0)
    return each


def fig11_topic(run: SteeringRun) -> list[Contrast]:
    """At the same s and up to the same layer, several layers bring more of the topic than the last alone."""
    words = f"topic (0 to 5) of {_METHODS} less that of single, at the same s and layer"
    return [over_themes(run.grid, _same_setting(run, "behavior"), words)]


def fig11_coherence(run: SteeringRun) -> list[Contrast]:
    """They cost coherence."""
    words = f"coherence (0 to 5) of {_METHODS} less that of single, at the same s and layer"
    return [over_themes(run.grid, _same_setting(run, "coherence"), words, BELOW_0)]


# --- the best settings, on fresh samples ------------------------------------------------------------------------------


def _chosen(run: SteeringRun, theme: str, direction: SteeringDirection, *methods: str) -> pd.DataFrame:
    """The confirmed best settings of a theme, without those that were chosen for the start layer."""
    found = find(run.fresh, theme, direction, *methods)
    return found[found["role"] != START_LAYER]


def _best(
    run: SteeringRun, direction: SteeringDirection, measure: str, other: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A measure of the multi-layer methods less that of another method, by theme; and of their random controls."""
    values = run.fresh.values[measure]
    each: dict[str, np.ndarray] = {}
    control: dict[str, np.ndarray] = {}
    for theme in themes(run.fresh, direction):
        against = _chosen(run, theme, direction, other).index
        several = _chosen(run, theme, direction, *MULTI[direction])
        randoms = find(run.fresh, theme, direction, RANDOM, mirrors=MULTI[direction])
        # up to the first layer of all they change that one alone, and are single themselves
        first = min(find(run.grid, theme, direction, SINGLE)["layer"], default=-1)
        several, randoms = (found.index[found["layer"] > first] for found in (several, randoms))
        if len(against) and len(several):
            each[theme] = values[several].mean(0) - values[against[0]]
            if len(randoms):
                control[theme] = values[randoms].mean(0) - values[against[0]]
    return each, control


def _both_ways(run: SteeringRun, measure: str, other: str, words: str, *, lower: bool = False) -> list[Contrast]:
    found: list[Contrast] = []
    for direction in (ACTIVATE, SUPPRESS):
        if not (run.fresh.settings["direction"] == direction.value).any():
            continue
        each, control = _best(run, direction, measure, other)
        if each:
            rule = BELOW_0 if lower else ABOVE_0
            found.append(over_themes(run.fresh, each, f"{words}, {direction.value}", rule, control=control))
    if not found:
        raise NotMeasured(f"No direction has confirmed settings of several layers and of {other}.")
    return found


def improves(run: SteeringRun) -> list[Contrast]:
    """Several layers steer better than the start features alone, each at its best setting."""
    return _both_ways(run, "score", START, f"score of {_METHODS} less that of the start features")


def beats_single(run: SteeringRun) -> list[Contrast]:
    """Several layers steer better than the best single layer."""
    return _both_ways(run, "score", SINGLE, f"score of {_METHODS} less that of the best single layer")


def smaller(run: SteeringRun) -> list[Contrast]:
    """At their best, several layers change the hidden state less than a single one."""
    words = f"share of the hidden norm that is changed by {_METHODS} less that by the best single layer"
    return _both_ways(run, "share_total", SINGLE, words, lower=True)


# --- figures 16, 17: where to steer -----------------------------------------------------------------------------------


def _any_theme(cells: Cells, each: dict[str, np.ndarray], words: str) -> list[Contrast]:
    """One contrast a theme, its interval widened for their number (Bonferroni)."""
    level = 1 - (1 - LEVEL) / max(1, len(each))
    found: list[Contrast] = []
    for theme, values in each.items():
        tally = cells.tally(values)
        estimate = tally.told(n=float(tally.sums[:, 1].sum()), sizes=tally.sums[:, 1], level=level)
        beside = f"interval at {100 * level:.1f} %, for {len(each)} themes" if len(each) > 1 else ""
        found.append(Contrast(f"{words}, {theme}", estimate, ABOVE_0, Unit.NUMBER, beside=beside))
    return found


def fig16_elsewhere(run: SteeringRun) -> list[Contrast]:
    """In some theme another layer than the start layer is better, on fresh samples."""
    scores = run.fresh.values["score"]
    each: dict[str, np.ndarray] = {}
    for theme in themes(run.fresh, ACTIVATE):
        places = find(run.fresh, theme, ACTIVATE, SINGLE)
        at_start, best = (places[(places["role"] == START_LAYER) == start] for start in (True, False))
        if len(at_start) and len(best) and best["layer"].iloc[0] != at_start["layer"].iloc[0]:
            each[theme] = scores[best.index[0]] - scores[at_start.index[0]]
    if not each:
        raise NotMeasured(
            "In no theme was another layer measured beside the one most start features lie in: that layer is best "
            "everywhere, or was not steered."
        )
    return _any_theme(run.fresh, each, "score of the best single layer less that of the start layer")


def fig17_unnamed(run: SteeringRun) -> list[Contrast]:
    """In some theme a layer without any start feature is better than every layer with one, cross-fitted."""
    grid = run.grid
    each: dict[str, np.ndarray] = {}
    for theme in themes(grid, ACTIVATE):
        starts = {layer for layer, n in run.starts.get(theme, {}).items() if n}
        places = find(grid, theme, ACTIVATE, SINGLE)
        inside, outside = (places.index[places["layer"].isin(starts) == there] for there in (True, False))
        if len(inside) and len(outside):
            each[theme] = grid.crossfit(outside) - grid.crossfit(inside)
    if not each:
        raise NotMeasured("No theme was steered at layers with and without start features.")
    return _any_theme(grid, each, "score of the best layer without start features less that of the best with some")
