"""Rows of the deactivation experiment as one DataFrame, and each strategy's result for each target. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from saeflow.errors import InvalidArgument
from saeflow.experiments.records import EXHAUSTIVE, GREEDY, Origin
from saeflow.experiments.results import Row
from saeflow.experiments.statistics import by_text
from saeflow.experiments.tables import LABELS, ORDER, Texts
from saeflow.experiments.tidy import TEXT

NOWHERE = Origin.NOWHERE.label
TOP_1, PEARSON, CONTROL = "top-1", "pearson top-1", "active control"
_GROUPS = ("group", "removed", "new_group")
_NUMBERS = ("r", "norm", "deactivated", "change", "loss_old", "loss_new")


@dataclass(frozen=True, slots=True, eq=False)
class PerTarget:
    """What one strategy did to each target, by removing all it names.

    Attributes:
        deactivated: 1 where the target is silent afterwards; NaN where the strategy was not tried.
        change: 1 - z_new / z_old; NaN likewise. Both 0 where nothing was named, hence nothing removed.
        named: whether the strategy removed anything.
    """

    deactivated: Float[np.ndarray, " n"]
    change: Float[np.ndarray, " n"]
    named: Bool[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Trials:
    """Every trial of a run.

    Attributes:
        frame: one line per trial. dataset, text, position, layer, strategy, control, r, norm, deactivated (0 or 1),
            change, loss_old, loss_new as in the rows; group, removed, new_group as categories in the order of every
            table; n_features: how many features were rescaled; target: number of the feature at its token; controls:
            for a control, the line it controls, else -1.
        targets: one line per target: its dataset and text.
        names: the strategies, in the order of the run.
    """

    frame: pd.DataFrame
    targets: pd.DataFrame
    names: list[str]

    @staticmethod
    def of(rows: Iterable[Row]) -> Trials:
        """From the rows of a results folder, in their order, each text with all of its rows.

        Raises:
            InvalidArgument: when there is none.
        """
        frame = pd.DataFrame({**row, "features": len(row["features"])} for row in rows)
        if frame.empty:
            raise InvalidArgument("the run has no trial: no target is active. Give more texts or tokens.")
        names = list(dict.fromkeys(frame["strategy"]))
        first = np.maximum.accumulate(np.where(frame["trial"] == 0, np.arange(len(frame)), 0))
        key = [*TEXT, "position", "target"]
        frame = frame.rename(columns={"features": "n_features"}).assign(
            strategy=pd.Categorical(frame["strategy"], names),
            controls=(frame["controls"] + first).fillna(-1).astype(np.int64),
            target=frame.groupby(key, sort=False).ngroup(),
            **{name: pd.Categorical(frame[name], [LABELS[value] for value in ORDER]) for name in _GROUPS},
            **{name: frame[name].astype(np.float64) for name in _NUMBERS},
        )
        targets = frame.drop_duplicates("target").set_index("target")[TEXT]
        return Trials(frame, targets, names)

    def __getitem__(self, column: str) -> np.ndarray:
        """A column of `frame`."""
        return self.frame[column].to_numpy()

    def origins(self, column: str) -> Int[np.ndarray, " n"]:
        """The value of `Origin` of each trial in a column of groups."""
        return np.array(ORDER)[self.frame[column].cat.codes]

    @cached_property
    def texts(self) -> Texts:
        """The texts, which are what is drawn."""
        return Texts.of(self["dataset"].tolist(), self["text"].tolist())

    @cached_property
    def cluster(self) -> Int[np.ndarray, " n"]:
        """The text of each trial."""
        return self.texts.clusters(self["dataset"].tolist(), self["text"].tolist())

    @property
    def first(self) -> str:
        """The strategy that was swept over r, and through which searches are seen."""
        return self.names[0]

    def is_(self, column: str, value: str) -> Bool[np.ndarray, " n"]:
        """Where a column has a value."""
        return (self.frame[column] == value).to_numpy()

    @property
    def controlling(self) -> Bool[np.ndarray, " n"]:
        """The controls."""
        return self["control"].astype(bool)

    @property
    def removing(self) -> Bool[np.ndarray, " n"]:
        """Trials with r = 0 that remove something, controls among them."""
        return (self["r"] == 0) & ~self.is_("removed", NOWHERE)

    @cached_property
    def whole(self) -> Bool[np.ndarray, " n"]:
        """One trial for each target and strategy, and its control: all that is named removed at once.

        For exhaustive search it is the best single feature of any site, for greedy search its set.
        """
        searched = self.is_("strategy", EXHAUSTIVE) & ~self.controlling
        by_change = self.frame[searched].sort_values("change", ascending=False, kind="stable")
        best = self.frame.index.isin(by_change.drop_duplicates("target").index)
        same = (self.origins("removed") == self.origins("group")) | self.is_("strategy", GREEDY)
        whole = np.where(searched, best, same) & (self["r"] == 0)
        control = self.controlling
        whole[control] = whole[self["controls"][control]]
        return whole

    def per_target(self, strategy: str, *, control: bool = False) -> PerTarget:
        """What a strategy, or its controls, did to each target.

        A search is tried on every target; it counts as naming where the first strategy does. Where a strategy
        removes nothing, its control removes nothing either: the target is kept, with change 0, in both.
        """
        here = self.whole & self.is_("strategy", strategy)
        here &= (self.controlling == control) | self.is_("removed", NOWHERE)
        found = self.frame[here].drop_duplicates("target", keep="last").set_index("target")
        found = found.reindex(self.targets.index)
        named = np.full(len(self.targets), False)
        named[self["target"][here & ~self.is_("group", NOWHERE)]] = True
        return PerTarget(found["deactivated"].to_numpy(), found["change"].to_numpy(), named)

    def groups(self, strategy: str) -> np.ndarray:
        """The group of each target under a strategy; None where it was not tried."""
        here = self.frame[self.is_("strategy", strategy)].drop_duplicates("target", keep="last")
        found = here.set_index("target")["group"].reindex(self.targets.index).astype(object)
        return found.where(found.notna(), None).to_numpy()

    def by_text(self, values: Float[np.ndarray, " k"], where: Bool[np.ndarray, " k"]) -> Float[np.ndarray, " n"]:
        """Sum over the targets of each text."""
        told = self.targets[where]
        clusters = self.texts.clusters(told["dataset"].tolist(), told["text"].tolist())
        shape = (len(self.texts.number), 1)
        return by_text(clusters, np.zeros_like(clusters), values[where], shape)[:, 0]
