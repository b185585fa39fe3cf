"""Strategies against each other on the same targets, and against what any strategy could do. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from saeflow.experiments.outcomes import (
    CONTROL,
    EXHAUSTIVE,
    GREEDY,
    PEARSON,
    PerTarget,
    Trials,
)
from saeflow.experiments.results import SummaryTable
from saeflow.experiments.summary import ALL, LABELS, ORDER

BY_FIRST = "deactivated by its predecessors"
BY_ANOTHER = "by another single feature"
BY_SET = "by a set of up to five"
BY_NONE = "by none tried"


def table_1(trials: Trials) -> SummaryTable:
    """All strategies on the targets that cosine or Pearson name from one part."""
    single = ("RES", "MLP", "ATT")
    shared = np.isin(trials.groups(trials.first).astype(str), single)
    if PEARSON in trials.names:
        shared |= np.isin(trials.groups(PEARSON).astype(str), single)
    order = (trials.first, PEARSON, EXHAUSTIVE, GREEDY, CONTROL)
    rest = [name for name in trials.names if name not in order]
    rows: list[tuple[Any, ...]] = []
    for strategy in (*order, *rest):
        result = _result(trials, strategy)
        if result is None:
            continue
        where = shared & np.isfinite(result.change)
        if strategy == CONTROL:
            where &= result.named
        columns = np.stack([trials.by_text(v, where) for v in (result.deactivated, result.change)], 1)
        sizes = np.repeat(trials.by_text(np.ones(len(where)), where)[:, None], 2, axis=1)
        gone, change = trials.texts.resampling.ratios(columns, sizes)
        rows.append((strategy, *gone.interval, *change.interval, gone.n))
    return SummaryTable.of(
        "table_1",
        "Strategies on shared targets",
        "table 1",
        f"Targets that {trials.first} or {PEARSON} puts into From RES, From MLP or From ATT. A strategy removes all it "
        "names; where it names nothing active the target counts as kept, with change 0. exhaustive: the best single "
        f"active feature of any site, by change. greedy: sets of up to five. {CONTROL}: other active features in "
        f"place of those of {trials.first}, alike in norm, on the targets where there are some.",
        "strategy, deactivated, low, high, change, change_low, change_high, n",
        rows,
    )


def paired(trials: Trials) -> SummaryTable:
    """The difference in deactivation between two strategies on the same targets."""
    first = trials.first
    others = [name for name in trials.names if name != first]
    pairs = [(first, other) for other in (*others, CONTROL)]
    if EXHAUSTIVE in others and GREEDY in others:
        pairs.append((EXHAUSTIVE, GREEDY))
    rows: list[tuple[Any, ...]] = []
    for a, b in pairs:
        one, two = _result(trials, a), _result(trials, b)
        if one is None or two is None:
            continue
        tried = np.isfinite(one.deactivated) & np.isfinite(two.deactivated)
        scopes = {"both name": one.named & two.named}
        if b != CONTROL:
            scopes["either names"] = one.named | two.named
        for scope, chosen in scopes.items():
            where = tried & chosen
            sums = [trials.by_text(result.deactivated, where) for result in (one, two)]
            n = trials.by_text(np.ones(len(where)), where)
            difference, p = trials.texts.resampling.difference(sums[0], sums[1], n)
            rows.append((a, b, scope, *difference.interval, p, difference.n))
    return SummaryTable.of(
        "paired",
        "Difference in deactivation on the same targets",
        "beyond the paper",
        "Rate of strategy_a less that of strategy_b, all named predecessors removed. scope: targets where both name an "
        "active predecessor, or where either does, the other counting as a failure. p: two-sided, from the bootstrap "
        "over texts that gives the interval; no less than 2 / (draws + 1) or 2 / 2^texts.",
        "strategy_a, strategy_b, scope, difference, low, high, p, n",
        rows,
    )


def remaining(trials: Trials) -> SummaryTable:
    """What would have silenced the targets that matching did not."""
    rows: list[tuple[Any, ...]] = []
    found = {name: _result(trials, name) for name in (trials.first, EXHAUSTIVE, GREEDY)}
    first, exhaustive, greedy = found.values()
    if first is not None and exhaustive is not None and greedy is not None:
        gone = [result.deactivated == 1 for result in (first, exhaustive, greedy)]
        outcome = np.select(gone, [BY_FIRST, BY_ANOTHER, BY_SET], BY_NONE)
        groups = trials.groups(trials.first)
        for group in (ALL, *(LABELS[value] for value in ORDER)):
            here = np.full(len(groups), True) if group == ALL else (groups == group).astype(bool)
            rows += [(group, *row) for row in _shares(trials, outcome, here)]
    return SummaryTable.of(
        "remaining",
        "What silences a target",
        "beyond the paper",
        f"Targets by group under {trials.first}: silenced by removing all available predecessors; else by the removal "
        "of another single active feature of the predecessor sites; else by a greedy set of up to five of them; else "
        "by none tried, which leaves what the dictionaries do not reconstruct, and larger sets.",
        "group, outcome, share, low, high, n",
        rows,
    )


def control_match(trials: Trials) -> SummaryTable:
    """How well controls are matched in norm."""
    rows: list[tuple[Any, ...]] = []
    control = np.flatnonzero(trials.controlling)
    ratio = np.full(len(trials.target), np.nan)
    ratio[control] = trials.numbers["norm"][control] / trials.numbers["norm"][trials.controls[control]]
    for strategy in trials.names:
        for value in ORDER[1:]:
            here = trials.is_("strategy", strategy) & trials.is_("removed", LABELS[value])
            values = ratio[here & trials.controlling]
            trying = int((here & trials.removing & ~trials.controlling & (trials.numbers["r"] == 0)).sum())
            if len(values):
                cuts = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
                within = float(((values > 0.5) & (values < 2)).mean())
                rows.append((strategy, LABELS[value], *cuts, within, len(values), trying))
    return SummaryTable.of(
        "control_match",
        "How controls compare in norm with what they control",
        "beyond the paper",
        "Ratio of the norms removed, control over trial. within_2: share between a half and two. controls of trials: "
        "the other trials have none, since too few other features of the site are active.",
        "strategy, removed, q05, q25, median, q75, q95, within_2, controls, trials",
        rows,
    )


def _result(trials: Trials, strategy: str) -> PerTarget | None:
    if strategy == CONTROL:
        result = trials.per_target(trials.first, control=True)
        return result if result.named.any() else None
    return trials.per_target(strategy) if strategy in trials.names else None


def _shares(trials: Trials, outcome: np.ndarray, here: Bool[np.ndarray, " k"]) -> list[tuple[Any, ...]]:
    names = (BY_FIRST, BY_ANOTHER, BY_SET, BY_NONE)
    columns = np.stack([trials.by_text((outcome == name).astype(np.float64), here) for name in names], 1)
    sizes = np.repeat(trials.by_text(np.ones(len(here)), here)[:, None], len(names), axis=1)
    estimates = trials.texts.resampling.ratios(columns, sizes)
    return [(name, *e.interval, e.n) for name, e in zip(names, estimates, strict=True)]
