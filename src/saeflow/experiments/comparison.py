"""Strategies against each other on the same targets, and against what any strategy could do. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from saeflow.experiments.outcomes import (
    CONTROL,
    EXHAUSTIVE,
    GREEDY,
    NOWHERE,
    PEARSON,
    PerTarget,
    Trials,
)
from saeflow.experiments.results import SummaryTable
from saeflow.experiments.statistics import CHANGE, GAP, RATE, Estimate, Tally, mean_estimates
from saeflow.experiments.summary import ALL, LABELS, ORDER

BY_FIRST = "deactivated by its predecessors"
BY_ANOTHER = "by another single feature"
BY_SET = "by a set of up to five"
BY_NONE = "by none tried"

CHOSEN = (
    "A search reports the best of all it tries, and exhaustive tries every active feature: a random choice with as "
    "many tries would be the same search. So its control is one random feature for each that it removes, and says "
    "what an edit of that size does, not what choosing adds."
)
"""What the controls of searches mean."""

_NONE = Estimate(None, None, None, 0)


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
        own = _pooled(trials, result, shared)
        beside = None if strategy == CONTROL else _result(trials, strategy, control=True)
        control = (_NONE, _NONE) if beside is None else _pooled(trials, beside, shared)
        cells = [[*gone.interval, *change.interval, gone.n] for gone, change in (own, control)]
        rows.append((strategy, *cells[0], *cells[1]))
    return SummaryTable.of(
        "table_1",
        "Strategies on shared targets",
        "table 1",
        f"Targets that {trials.first} or {PEARSON} puts into From RES, From MLP or From ATT. A strategy removes all it "
        "names; where it names nothing active the target counts as kept, with change 0. exhaustive: the best single "
        "active feature of any site, by change. greedy: sets of up to five. Controls remove other active features of "
        "the same sites, as many and alike in norm, on the targets where there are some; where the strategy names "
        f"nothing its control removes nothing either. {CONTROL}: the control of {trials.first}. {CHOSEN}",
        "strategy, deactivated, low, high, change, change_low, change_high, n, control_deactivated, control_low, "
        "control_high, control_change, control_change_low, control_change_high, control_n",
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
            sums = [
                trials.by_text(v, where) for v in (one.deactivated - two.deactivated, np.ones(len(where)))
            ]
            tally = Tally(np.stack(sums, -1), trials.texts.datasets)
            difference, p = tally.difference(n=int(where.sum()), span=GAP)
            rows.append((a, b, scope, *difference.interval, p, difference.n))
    return SummaryTable.of(
        "paired",
        "Difference in deactivation on the same targets",
        "beyond the paper",
        "Rate of strategy_a less that of strategy_b, all named predecessors removed. scope: targets where both name an "
        "active predecessor, or where either does, the other counting as a failure. p: two-sided, of the t that "
        "gives the interval; no less than 2 / 2^texts.",
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
            beside = _beside(trials, here) if group != NOWHERE else _NONE
            for name, share in _shares(trials, outcome, here):
                control = beside if name == BY_FIRST else _NONE
                rows.append((group, name, *share.interval, share.n, *control.interval, control.n))
    return SummaryTable.of(
        "remaining",
        "What silences a target",
        "beyond the paper",
        f"Targets by group under {trials.first}: silenced by removing all available predecessors; else by the removal "
        "of another single active feature of the predecessor sites; else by a greedy set of up to five of them; else "
        "by none tried, which leaves what the dictionaries do not reconstruct, and larger sets. control_share: targets "
        f"silenced by the control of {trials.first}, other active features in place of its predecessors; targets from "
        "nowhere, of which neither removes anything, count as kept in both. The outcomes after the first are the best "
        "of many tries by definition, so that no random choice is a control of theirs.",
        "group, outcome, share, low, high, n, control_share, control_low, control_high, control_n",
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
            here &= trials.numbers["r"] == 0  # a control of the sweep edits what that of r = 0 does
            values = ratio[here & trials.controlling]
            trying = int((here & ~trials.controlling).sum())
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


def _result(trials: Trials, strategy: str, *, control: bool = False) -> PerTarget | None:
    """What a strategy did to each target, or its control; None where it was not run, or has no control."""
    name, control = (trials.first, True) if strategy == CONTROL else (strategy, control)
    if name not in trials.names:
        return None
    result = trials.per_target(name, control=control)
    return result if not control or result.named.any() else None


def _pooled(trials: Trials, result: PerTarget, among: Bool[np.ndarray, " k"]) -> tuple[Estimate, Estimate]:
    """Rate and change over those of some targets on which the strategy was tried."""
    where = among & np.isfinite(result.change)
    sizes = trials.by_text(np.ones(len(where)), where)[:, None]
    [gone], [change] = (
        mean_estimates(trials.by_text(v, where)[:, None], sizes, trials.texts.datasets, span=span)
        for v, span in ((result.deactivated, RATE), (result.change, CHANGE))
    )
    return gone, change


def _beside(trials: Trials, here: Bool[np.ndarray, " k"]) -> Estimate:
    """The rate of the first strategy's control over some targets."""
    control = _result(trials, trials.first, control=True)
    return _NONE if control is None else _pooled(trials, control, here)[0]


def _shares(trials: Trials, outcome: np.ndarray, here: Bool[np.ndarray, " k"]) -> list[tuple[str, Estimate]]:
    names = (BY_FIRST, BY_ANOTHER, BY_SET, BY_NONE)
    columns = np.stack([trials.by_text((outcome == name).astype(np.float64), here) for name in names], 1)
    sizes = np.repeat(trials.by_text(np.ones(len(here)), here)[:, None], len(names), axis=1)
    estimates = mean_estimates(columns, sizes, trials.texts.datasets, span=RATE)
    return list(zip(names, estimates, strict=True))
