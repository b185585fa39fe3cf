"""Planted runs: worlds in which a claim is true or false, text by text.

A run of texts that are mostly of one world gives its verdict (`mostly`); of one with as many of either nothing can be
said.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from saeflow.experiments.deactivation_tables import trials_frame
from saeflow.experiments.groups import GROUPS, LABELS, Origin
from saeflow.experiments.origins_tables import BestMatches
from saeflow.ids import Part, Site
from saeflow.paper.evidence import OriginsRun, SteeringRun, TransitionRun
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import MARKS, Cells, setting_of
from saeflow.steering.sweep.settings import Setting

LAYERS = range(6)
EVEN = dict.fromkeys(("nowhere", "RES", "MLP", "ATT", "RES & MLP", "RES & ATT", "MLP & ATT", "RES & MLP & ATT"), 1.0)


def value(label: str) -> int:
    """The number of a group."""
    return Origin.named(label).value


World = TypeVar("World")


def mostly(world: World, other: World, n: int = 150) -> list[World]:
    """n texts, all but one of a world: where all are alike to the last digit, nothing says how much texts differ."""
    return [world] * (n - 1) + [other]


# --- origins ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Origins:
    """What the texts of one world show.

    `shares(layer, dataset, method)` weighs groups. `score(group, part)` is the mean score of a group's features, which
    scatter by `scatter`. `same` is the share of features whose match is the same under cosine and Pearson, by part.
    With `wander` a feature is seen in all groups, otherwise in one.
    """

    shares: Callable[[int, str, str], Mapping[str, float]] = lambda layer, dataset, method: EVEN
    score: Callable[[int, Part], float] = lambda group, part: 0.5
    scatter: float = 0.05
    same: Mapping[Part, float] = field(default_factory=dict)
    wander: bool = False


COPIES = 40


def origins(
    texts: Sequence[tuple[str, Origins]],
    *,
    layers: Sequence[int] = LAYERS,
    methods: Sequence[str] = ("cosine",),
    new: Sequence[str] = (),
    each: int = 80,
) -> OriginsRun:
    """A run of some texts, each of a data set and a world, with `each` observations at every layer."""
    worlds = list(dict.fromkeys(world for _, world in texts))
    datasets = list(dict.fromkeys(dataset for dataset, _ in texts))
    columns: dict[str, list[int]] = {name: [] for name in ("text", "dataset", "layer", "feature", *methods)}
    for number, (dataset, world) in enumerate(texts):
        for layer in layers:
            drawn = {method: _allocated(world.shares(layer, dataset, method), each) for method in methods}
            for i, group in enumerate(drawn["cosine"]):
                home = 0 if world.wander else group
                feature = (worlds.index(world) * 8 + home) * COPIES + (i * 7 + number) % COPIES
                row = (number, datasets.index(dataset), layer, feature, *(drawn[m][i] for m in methods))
                for column, cell in zip(columns.values(), row, strict=True):
                    column.append(cell)
    seen = pd.DataFrame(columns)
    names = pd.Categorical([datasets[code] for code in seen["dataset"]], sorted(datasets))
    groups = {method: pd.Categorical([LABELS[code] for code in seen[method]], GROUPS) for method in methods}
    seen = seen.assign(dataset=names, **groups)[["dataset", "text", "layer", "feature", *methods]]
    return OriginsRun(seen, BestMatches(_matches(worlds, layers, methods)), tuple(new))


def _allocated(weights: Mapping[str, float], n: int) -> list[int]:
    """So many groups in proportion to their weights."""
    total = sum(weights.values())
    found: list[int] = []
    for label, weight in weights.items():
        found += [value(label)] * round(n * weight / total)
    return (found + [value(next(iter(weights)))] * n)[:n]


def _matches(worlds: Sequence[Origins], layers: Sequence[int], methods: Sequence[str]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    n = len(worlds) * 8 * COPIES
    for layer, method in itertools.product(layers, methods):
        site = Site(layer, Part.RES)
        for other in site.predecessors:
            if other.layer < 0:
                continue
            rng = np.random.default_rng([layer, list(Part).index(other.part)])
            score, index = np.zeros(n), np.arange(n)
            for k, world in enumerate(worlds):
                for group in range(8):
                    here = slice((k * 8 + group) * COPIES, (k * 8 + group + 1) * COPIES)
                    score[here] = world.score(group, other.part) + world.scatter * rng.standard_normal(COPIES)
                    if method != "cosine":
                        apart = COPIES - round(COPIES * world.same.get(other.part, 1.0))
                        index[here][:apart] += 1
            name = f"{method} {site}-{other}"
            arrays[f"{name} index"], arrays[f"{name} score"] = index, score.clip(-1, 1)
    return arrays


# --- deactivation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """One trial of a target: what is removed, and what comes of it, also in its control."""

    strategy: str
    group: str
    removed: str = ""
    gone: bool = False
    change: float = 0.0
    new: str = "nowhere"
    r: float = 0.0
    loss: float | None = None
    control: bool | None = False


def trials(texts: Sequence[Sequence[Sequence[Cut]]]) -> pd.DataFrame:
    """A run of texts, each a list of targets, each a list of trials."""
    rows: list[dict[str, Any]] = []
    for text, targets in enumerate(texts):
        for position, cuts in enumerate(targets):
            first = len(rows)
            for cut in cuts:
                number = len(rows) - first
                rows.append(_row(text, position, number, cut, None))
                if cut.control is not None and cut.group != "nowhere":
                    rows.append(_row(text, position, number + 1, cut, number))
    return trials_frame(rows)


def _row(text: int, position: int, number: int, cut: Cut, controls: int | None) -> dict[str, Any]:
    beside = controls is not None
    gone = bool(cut.control) if beside else cut.gone
    removed = cut.removed or cut.group
    return {
        "dataset": "a",
        "text": text,
        "position": position,
        "layer": 3,
        "target": "3/res/1",
        "trial": number,
        "controls": controls,
        "strategy": cut.strategy,
        "control": beside,
        "group": cut.group,
        "removed": removed,
        "norm": 1.0,
        "r": cut.r,
        "features": {"2/res/1": 1.0} if removed != "nowhere" else {},
        "deactivated": gone,
        "change": float(gone) if beside else cut.change,
        "new_group": cut.new,
        "loss_old": None if cut.loss is None else 2.0,
        "loss_new": None if cut.loss is None else 2.0 * (1 + cut.loss),
    }


# --- steering ---------------------------------------------------------------------------------------------------------

Marks = Callable[[str, SteeringDirection, Setting], Mapping[str, float]]
"""From a theme, a direction and a setting to score, behavior, coherence and share_total."""


def steering(
    settings: Sequence[tuple[SteeringDirection, Setting]],
    worlds: Sequence[Marks],
    *,
    themes: Sequence[str] = ("one", "two"),
    roles: Mapping[Setting, str] | None = None,
    starts: Mapping[int, int] | None = None,
) -> SteeringRun:
    """A sweep with one sample a world; grid and confirmed settings are the same ones."""
    texts = [
        {"theme": theme, "direction": direction.value, **asdict(setting), "sample": sample}
        | {name: world(theme, direction, setting).get(name, 0.0) for name in ("score", *MARKS, "share_total")}
        for theme in themes
        for direction, setting in settings
        for sample, world in enumerate(worlds)
    ]
    found = Cells("planted", pd.DataFrame(texts))
    found.settings["role"] = [(roles or {}).get(setting_of(x), "best") for x in found.settings.to_dict("records")]
    return SteeringRun(found, found, {theme: dict(starts or {}) for theme in themes})


# --- transition -------------------------------------------------------------------------------------------------------


def transition(worlds: Sequence[Mapping[str, float]]) -> TransitionRun:
    """A run of one pair with one text a world: the explained variance of each map."""
    names = tuple(worlds[0])
    missed = np.array([[[100 * (1 - world[name]) for name in names]] for world in worlds])
    ones = np.full((len(worlds), 1), 100.0)
    return TransitionRun(names, missed, ones, ones, np.zeros(len(worlds), dtype=int))
