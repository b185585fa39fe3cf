"""Sets of causal trials and their means, trials and controls side by side: what claims of 5.2 are made from. No torch.

A rate is over the targets that a strategy names an active predecessor for. The control is the same number with other
active features of the same sites, as many and alike in norm, in place of the predecessors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from saeflow.experiments.deactivation_tables import CONTROL, outcomes
from saeflow.experiments.groups import ORDER
from saeflow.experiments.statistics import GAP, RATE, TEXT, Estimate, Span, Tally, by_text, ratio, text_codes
from saeflow.reproduce.verdicts import ABOVE_0, UNKNOWN, Contrast, NotMeasured, Rule, Unit


def percent(value: float) -> str:
    """A share in words."""
    return f"{100 * value:.1f} %"


class Trials:
    """Every trial of a run, its columns as arrays.

    Attributes:
        frame: `trials_frame`.
        names: the strategies, in the order of the run.
        first: the one that was swept over r.
        targets: dataset and text of each target.
        cluster: the text of each trial.
        datasets: the data set of each text, as a number.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        """From the trials of a run."""
        self.frame, self.names = frame, list(frame["strategy"].cat.categories)
        self.first = self.names[0]
        self.targets = frame.drop_duplicates("target").set_index("target")[TEXT]
        self.cluster, self.datasets = text_codes(frame)

    def __getitem__(self, column: str) -> np.ndarray:
        """A column of `frame`."""
        return self.frame[column].to_numpy()

    def origins(self, column: str) -> np.ndarray:
        """The value of `Origin` of each trial in a column of groups."""
        return np.array(ORDER)[self.frame[column].cat.codes]

    def is_(self, column: str, value: str) -> np.ndarray:
        """Where a column has a value."""
        return (self.frame[column] == value).to_numpy()

    def per_target(self, strategy: str, *, control: bool = False) -> pd.DataFrame:
        """What a strategy, or its controls, did to each target."""
        found = outcomes(self.frame, strategy, control=control)
        if found is not None:
            return found
        return self.targets.assign(group=None, deactivated=np.nan, change=np.nan, named=False)

    def by_text(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Sum over the targets of each text."""
        text = text_codes(self.targets)[0][where]
        return by_text(text, np.zeros_like(text), np.asarray(values)[where], (len(self.datasets), 1))[:, 0]


def named(trials: Trials, strategy: str) -> np.ndarray:
    """Where a strategy was used.

    Raises:
        NotMeasured: when it was not run.
    """
    if strategy not in trials.names:
        raise NotMeasured(f"The strategy {strategy} was not run.")
    return trials.is_("strategy", strategy)


class Cases:
    """Trials of one strategy."""

    def __init__(self, trials: Trials, strategy: str | None = None) -> None:
        """Those of a strategy; of the first one when not named.

        Raises:
            NotMeasured: when it was not run.
        """
        self.trials = trials
        self.of = named(trials, trials.first if strategy is None else strategy)
        self.group, self.removed = trials.origins("group"), trials.origins("removed")
        self.whole = self.group == self.removed

    def removing(self, groups: Sequence[int], removed: Sequence[int] | None = None) -> np.ndarray:
        """Trials with r = 0 of targets of some groups; all that is named removed, or the parts of `removed`."""
        where = self.of & (self.trials["r"] == 0) & np.isin(self.group, groups)
        return where & (self.whole if removed is None else np.isin(self.removed, removed))

    def swept(self, low: float, high: float) -> np.ndarray:
        """Trials that rescale all that is named by an r between two values, both left out.

        Raises:
            NotMeasured: when there is none.
        """
        r = self.trials["r"]
        where = self.of & self.whole & (r > low) & (r < high)
        if not where.any():
            raise NotMeasured(f"No r between {low:g} and {high:g} was tried.")
        return where

    def between(
        self,
        values: np.ndarray,
        a: np.ndarray,
        b: np.ndarray,
        words: str,
        *,
        rule: Rule = ABOVE_0,
        unit: Unit = Unit.POINTS,
        span: Span | None = None,
    ) -> Contrast:
        """Mean of `values` over the trials of `a` less that over those of `b`, and the same of their controls."""
        return self.contrast(values, [a, b], lambda m: m[:, 0] - m[:, 1], words, rule=rule, unit=unit, span=span)

    def mean(
        self, values: np.ndarray, a: np.ndarray, words: str, *, rule: Rule, unit: Unit = Unit.SHARE, span: Span = RATE
    ) -> Contrast:
        """Mean of `values` over the trials of `a`, and over their controls."""
        return self.contrast(values, [a], lambda m: m[:, 0], words, rule=rule, unit=unit, span=span)

    def contrast(
        self,
        values: np.ndarray,
        sets: Sequence[np.ndarray],
        of: Callable[[np.ndarray], np.ndarray],
        words: str,
        *,
        rule: Rule = ABOVE_0,
        unit: Unit = Unit.POINTS,
        sides: str = "{} against {}",
        span: Span | None = None,
    ) -> Contrast:
        """`of` the means over several sets of trials (cases by sets), and of those over their controls."""
        own = self.tally(values, sets)
        control = self._told(self.tally(values, sets, control=True), of, span)
        means = own.sums.sum(0)
        written = [
            _written(float(top / n), unit) if n else "nothing" for top, n in means.tolist()
        ]  # one mean is the number itself
        beside = sides.format(*written) if len(sets) > 1 else ""
        return Contrast(words, self._told(own, of, span), rule, unit, control, beside)

    def tally(self, values: np.ndarray, sets: Sequence[np.ndarray], *, control: bool = False) -> Tally:
        """Sum of `values` and number of trials of each set, by text."""
        trials = self.trials
        side = (trials["control"] == control) & np.isfinite(values)
        shape = (len(trials.datasets), 1)
        columns: list[np.ndarray] = []
        for where in (kept & side for kept in sets):
            clusters = trials.cluster[where]
            code = np.zeros_like(clusters)
            pair = [by_text(clusters, code, v, shape)[:, 0] for v in (values[where], np.ones(len(clusters)))]
            columns.append(np.stack(pair, -1))
        return Tally(np.stack(columns, 1), trials.datasets)

    def _told(self, tally: Tally, of: Callable[[np.ndarray], np.ndarray], span: Span | None) -> Estimate:
        sizes = tally.sums[..., 1]
        return tally.told(lambda x: of(ratio(x)), n=float(sizes.sum()), span=span, sizes=sizes)


def _written(value: float, unit: Unit) -> str:
    if unit is not Unit.NUMBER:
        return percent(value)
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.5f}"


def paired(trials: Trials, a: str, b: str, scope: np.ndarray | None = None, rule: Rule = ABOVE_0) -> Contrast:
    """Rate of strategy a less that of strategy b on the same targets.

    `scope`: the targets; those that both name something for when not given. b may be "active control": that of a.
    """
    for name in (a, b):
        if name != CONTROL:
            named(trials, name)
    one = trials.per_target(a)
    two = trials.per_target(a, control=True) if b == CONTROL else trials.per_target(b)
    where = np.isfinite(one.deactivated) & np.isfinite(two.deactivated)
    where &= one.named & two.named if scope is None else scope
    columns = [trials.by_text(v, where) for v in (one.deactivated, two.deactivated, np.ones(len(where)))]
    tally = Tally(np.stack(columns, -1), trials.datasets)
    n = float(tally.sums[:, 2].sum())
    words = f"rate of {a} less that of {b} on the same targets"
    if not n:
        return Contrast(words, UNKNOWN, rule)
    found = tally.told(lambda x: (x[:, 0] - x[:, 1]) / x[:, 2], n=n, span=GAP, sizes=tally.sums[:, 2])
    rates = (tally.sums.sum(0)[:2] / n).tolist()
    return Contrast(words, found, rule, beside=" against ".join(map(percent, rates)))
