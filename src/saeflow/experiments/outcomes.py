"""Rows of the deactivation experiment as columns, and each strategy's result for each target. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saeflow.errors import InvalidArgument
from saeflow.experiments.records import Origin
from saeflow.experiments.results import Row
from saeflow.experiments.statistics import by_text
from saeflow.experiments.summary import LABELS, Texts, codes

NOWHERE = Origin.NOWHERE.label
EXHAUSTIVE, GREEDY, TOP_1, PEARSON, CONTROL = (
    "exhaustive",
    "greedy",
    "top-1",
    "pearson top-1",
    "active control",
)
SEARCHES = (EXHAUSTIVE, GREEDY)
_WORDS = ("strategy", "group", "removed", "new_group")
_NUMBERS = ("layer", "control", "r", "norm", "n_features", "deactivated", "change", "loss_old", "loss_new")


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
        texts: the clusters.
        cluster: the text of each trial.
        target: number of its target: of a feature at a token.
        target_cluster: the text of each target.
        names: the strategies, in the order of the run.
        words: columns of strategy, a place in `names`, and of group, removed, new_group, values of `Origin`.
        numbers: columns of layer, control, r, norm, n_features, deactivated, change, loss_old, loss_new; NaN for
            none.
        controls: for a control, the entry it controls; else -1.
    """

    texts: Texts
    cluster: Int[np.ndarray, " n"]
    target: Int[np.ndarray, " n"]
    target_cluster: Int[np.ndarray, " k"]
    names: list[str]
    words: dict[str, Int[np.ndarray, " n"]]
    numbers: dict[str, Float[np.ndarray, " n"]]
    controls: Int[np.ndarray, " n"]

    @staticmethod
    def of(rows: Iterable[Row]) -> Trials:
        """From the rows of a results folder, in their order, each text with all of its rows.

        Raises:
            InvalidArgument: when there is none.
        """
        kept: dict[str, list[Any]] = {name: [] for name in ("dataset", "text", *_WORDS, *_NUMBERS)}
        targets: list[tuple[str, int, int, str]] = []
        controls: list[int] = []
        first = 0
        for place, row in enumerate(rows):
            first = place if row["trial"] == 0 else first
            controls.append(-1 if row["controls"] is None else first + row["controls"])
            targets.append(
                (sys.intern(row["dataset"]), row["text"], row["position"], sys.intern(row["target"]))
            )
            for name, column in kept.items():
                value = len(row["features"]) if name == "n_features" else row[name]
                column.append(sys.intern(value) if isinstance(value, str) else value)
        if not targets:
            raise InvalidArgument("the run has no trial: no target is active. Give more texts or tokens.")
        texts = Texts.of(kept["dataset"], kept["text"])
        target, known = codes(targets)
        names = list(dict.fromkeys(kept["strategy"]))
        return Trials(
            texts,
            texts.clusters(kept["dataset"], kept["text"]),
            target,
            texts.clusters([key[0] for key in known], [key[1] for key in known]),
            names,
            {name: _coded(kept[name], names if name == "strategy" else LABELS) for name in _WORDS},
            {name: np.array(kept[name], dtype=np.float64) for name in _NUMBERS},
            np.array(controls, dtype=np.int64),
        )

    @property
    def first(self) -> str:
        """The strategy that was swept over r, and through which searches are seen."""
        return self.names[0]

    def is_(self, column: str, value: str) -> Bool[np.ndarray, " n"]:
        """Where a column of words has a value."""
        known = self.names if column == "strategy" else LABELS
        return self.words[column] == (known.index(value) if value in known else -1)

    def labels(self, column: str) -> list[str]:
        """A column of words."""
        known = self.names if column == "strategy" else LABELS
        return [known[code] for code in self.words[column].tolist()]

    @property
    def controlling(self) -> Bool[np.ndarray, " n"]:
        """The controls."""
        return self.numbers["control"] == 1

    @property
    def removing(self) -> Bool[np.ndarray, " n"]:
        """Trials with r = 0 that remove something, controls among them."""
        return (self.numbers["r"] == 0) & ~self.is_("removed", NOWHERE)

    @cached_property
    def whole(self) -> Bool[np.ndarray, " n"]:
        """One trial for each target and strategy, and its control: all that is named removed at once.

        For exhaustive search it is the best single feature of any site, for greedy search its set.
        """
        control = self.controlling
        same = self.words["removed"] == self.words["group"]
        searched = self.is_("strategy", EXHAUSTIVE) & ~control
        best = np.full(len(self.target), False)
        order = np.flatnonzero(searched)
        order = order[np.lexsort((-self.numbers["change"][order], self.target[order]))]
        best[order[np.unique(self.target[order], return_index=True)[1]]] = True
        same = np.where(searched, best, same | self.is_("strategy", GREEDY))
        whole = same & (self.numbers["r"] == 0)
        whole[control] = whole[self.controls[control]]
        return whole

    def per_target(self, strategy: str, *, control: bool = False) -> PerTarget:
        """What a strategy, or its controls, did to each target.

        A search is tried on every target; it counts as naming where the first strategy does. Where a strategy
        removes nothing, its control removes nothing either: the target is kept, with change 0, in both.
        """
        here = self.whole & self.is_("strategy", strategy)
        here &= (self.controlling == control) | self.is_("removed", NOWHERE)
        n = len(self.target_cluster)
        columns = {name: np.full(n, np.nan) for name in ("deactivated", "change")}
        for name, column in columns.items():
            column[self.target[here]] = self.numbers[name][here]
        named = np.full(n, False)
        named[self.target[here & ~self.is_("group", NOWHERE)]] = True
        return PerTarget(columns["deactivated"], columns["change"], named)

    def groups(self, strategy: str) -> np.ndarray:
        """The group of each target under a strategy; None where it was not tried."""
        found = np.full(len(self.target_cluster), None, dtype=object)
        here = self.is_("strategy", strategy)
        found[self.target[here]] = np.array(LABELS, dtype=object)[self.words["group"][here]]
        return found

    def by_text(
        self, values: Float[np.ndarray, " k"], where: Bool[np.ndarray, " k"]
    ) -> Float[np.ndarray, " n"]:
        """Sum over the targets of each text."""
        clusters = self.target_cluster[where]
        shape = (len(self.texts.number), 1)
        return by_text(clusters, np.zeros_like(clusters), values[where], shape)[:, 0]


def _coded(values: Sequence[str], known: Sequence[str]) -> Int[np.ndarray, " n"]:
    place = {name: code for code, name in enumerate(known)}
    return np.fromiter((place[value] for value in values), np.int64, len(values))
