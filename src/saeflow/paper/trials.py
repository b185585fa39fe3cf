"""Helpers for figures, sentences and claims of deactivation: rates and changes, each with its control.

A control is the same edit of a random active feature of the same site and norm. A rate is over the targets for which a
strategy names an active predecessor; its control is the same rate with as many other active features in place of the
predecessors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pandas as pd

from saeflow.experiments.deactivation_tables import CONTROL, outcomes
from saeflow.experiments.statistics import GAP, TEXT, Estimate, Span, Tally, text_codes
from saeflow.paper.frame import Frame, FrameRow, Interval, in_order
from saeflow.paper.verdicts import ABOVE_0, UNKNOWN, ClaimNumber, FindingUnit, NotMeasured, Rule, in_percent
from saeflow.paper.words import count, decimal, percent, percent_interval

MAIN: Final = "top-1"
SINGLES: Final = ("RES", "MLP", "ATT")
WITH_RES: Final = ("RES & MLP", "RES & ATT", "RES & MLP & ATT")
COMBINED: Final = (*WITH_RES, "MLP & ATT")
ALIKE: Final = 0.1
"""Rates that differ by less count as alike where the paper says similar or almost equal."""


def main_strategy(frame: Frame) -> str:
    """The strategy that sentences report: top-1, or else the first; "" if there is none."""
    strategies = frame.distinct("strategy")
    return in_order(strategies, (MAIN,))[0] if strategies else ""


def control_rate(row: FrameRow) -> Interval | None:
    """The share of targets that the control deactivates."""
    return row.estimate("control_deactivated", "control_low", "control_high", "control_n")


def rate_words(row: FrameRow, whence: str) -> str:
    """`70 % (68–73) of 2,712 targets from RES, control 5 % (4–6)`."""
    found = row.estimate("deactivated")
    if found is None:
        return ""
    of = "" if found.n is None else f" of {count(found.n)} targets"
    control = control_rate(row)
    beside = "" if control is None else f", control {percent_interval(control)}"
    return f"{percent_interval(found)}{of} {whence}{beside}"


def control_beside(row: FrameRow, column: str = "control_deactivated") -> str:
    """` (control 5 %)`; empty for a gap."""
    value = row.number(column)
    return "" if value is None else f" (control {percent(value)})"


def control_change(row: FrameRow) -> str:
    """` (control 0.02)`: the change of the control; empty for a gap."""
    value = row.number("control_change")
    return "" if value is None else f" (control {decimal(value)})"


def both(row: FrameRow) -> tuple[tuple[Interval | None, Interval | None], ...]:
    """Deactivation rate and activation change of a row, each with its control, from the columns of deactivation."""
    return (
        (row.estimate("deactivated"), control_rate(row)),
        (
            row.estimate("change", "change_low", "change_high"),
            row.estimate("control_change", "control_change_low", "control_change_high", "control_n"),
        ),
    )


def is_control(row: FrameRow) -> bool:
    """Whether a row is itself a control."""
    return row.words("control") == "True" or row.words("strategy") == "active control"


# --- claims -----------------------------------------------------------------------------------------------------------


def of_strategy(trials: pd.DataFrame, strategy: str = "") -> pd.Series[bool]:
    """A mask of the trials of a strategy, by default of the first one.

    Raises:
        NotMeasured: when the strategy was not run.
    """
    names = trials["strategy"].cat.categories
    if strategy and strategy not in names:
        raise NotMeasured(f"The strategy {strategy} was not run.")
    return trials["strategy"] == (strategy or names[0])


def removing(
    trials: pd.DataFrame, groups: Sequence[str], removed: Sequence[str] | None = None, strategy: str = ""
) -> pd.Series[bool]:
    """A mask of the trials with r = 0 and a target of some groups: all it names removed, or the parts in `removed`."""
    where = of_strategy(trials, strategy) & (trials["r"] == 0) & trials["group"].isin(groups)
    return where & (all_named(trials) if removed is None else trials["removed"].isin(removed))


def all_named(trials: pd.DataFrame) -> pd.Series[bool]:
    """A mask of the trials that edit all named predecessors at once."""
    return trials["group"] == trials["removed"]


def swept(trials: pd.DataFrame, low: float, high: float) -> pd.Series[bool]:
    """A mask of the trials that rescale all named predecessors by an r strictly between two values.

    Raises:
        NotMeasured: when there is none.
    """
    where = of_strategy(trials) & all_named(trials) & (trials["r"] > low) & (trials["r"] < high)
    if not where.any():
        raise NotMeasured(f"No r between {low:g} and {high:g} was tried.")
    return where


def of_means(
    trials: pd.DataFrame,
    values: pd.Series[float],
    sets: Sequence[pd.Series[bool]],
    of: Callable[[np.ndarray], np.ndarray],
    words: str,
    *,
    rule: Rule = ABOVE_0,
    unit: FindingUnit = "points",
    sides: str = "{} against {}",
    span: Span | None = None,
) -> ClaimNumber:
    """The finding `of(means)`, with means of `values` over sets of trials, (cases, sets); its control likewise."""
    text, datasets = text_codes(trials)
    found: list[Estimate] = []
    beside = ""
    for control in (False, True):
        known = (trials["control"] == control) & np.isfinite(values)
        columns = [
            [np.bincount(text[kept], weights, len(datasets)) for weights in (values[kept], None)]
            for kept in (where & known for where in sets)
        ]
        tally = Tally(np.moveaxis(np.array(columns, dtype=np.float64), -1, 0), datasets)
        found.append(tally.of_means(of, span=span))
        if not control and len(sets) > 1:  # a single mean is the finding itself
            beside = sides.format(*(_in_words(total, n, unit) for total, n in tally.sums.sum(0).tolist()))
    return ClaimNumber(words, found[0], rule, unit, found[1], beside)


def _in_words(total: float, n: float, unit: FindingUnit) -> str:
    """A mean, given as a total and a number of rows."""
    if not n:
        return "nothing"
    value = total / n
    return in_percent(value) if unit != "number" else f"{value:.{3 if abs(value) >= 0.001 or value == 0 else 5}f}"


def less(
    trials: pd.DataFrame,
    values: pd.Series[float],
    a: pd.Series[bool],
    b: pd.Series[bool],
    words: str,
    *,
    rule: Rule = ABOVE_0,
    unit: FindingUnit = "points",
    span: Span | None = None,
) -> ClaimNumber:
    """Mean of `values` over the trials of `a` less that over those of `b`, and the same for their controls."""
    return of_means(trials, values, [a, b], lambda m: m[:, 0] - m[:, 1], words, rule=rule, unit=unit, span=span)


def per_target(trials: pd.DataFrame, strategy: str, *, control: bool = False) -> pd.DataFrame:
    """The `outcomes` of a strategy, or of its controls, for each target; missing values if there are none.

    Raises:
        NotMeasured: when the strategy was not run.
    """
    of_strategy(trials, strategy)
    found = outcomes(trials, strategy, control=control)
    if found is not None:
        return found
    targets = trials.drop_duplicates("target").set_index("target")[TEXT]
    return targets.assign(group=None, deactivated=np.nan, change=np.nan, named=False)


def over_targets(targets: pd.DataFrame, *columns: pd.Series[float]) -> Tally:
    """Sums by text of columns with one number per target, and the number of targets."""
    text, datasets = text_codes(targets)
    sums = [np.bincount(text, weights, len(datasets)) for weights in (*columns, None)]
    return Tally(np.stack(sums, -1).astype(np.float64), datasets)


def on_same_targets(
    trials: pd.DataFrame, a: str, b: str, scope: pd.Series[bool] | None = None, rule: Rule = ABOVE_0
) -> ClaimNumber:
    """Rate of strategy a less that of strategy b on the same targets.

    `scope` selects the targets, by default those for which both name a predecessor. b may be "active control": the
    control of a.
    """
    one, two = per_target(trials, a), per_target(trials, a if b == CONTROL else b, control=b == CONTROL)
    where = one["deactivated"].notna() & two["deactivated"].notna()
    where &= one["named"] & two["named"] if scope is None else scope
    words = f"rate of {a} less that of {b} on the same targets"
    n = float(where.sum())
    if not n:
        return ClaimNumber(words, UNKNOWN, rule)
    tally = over_targets(one[where], one["deactivated"][where], two["deactivated"][where])
    found = tally.estimate(lambda x: (x[:, 0] - x[:, 1]) / x[:, 2], n=n, span=GAP, sizes=tally.sums[:, 2])
    rates = (tally.sums.sum(0)[:2] / n).tolist()
    return ClaimNumber(words, found, rule, beside=" against ".join(map(in_percent, rates)))
