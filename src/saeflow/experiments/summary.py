"""From rows to tables: what all summaries share. No torch.

    rows of a results folder -> columns -> counts a text -> estimates -> SummaryTable

`origins_summary` and `deactivation_summary` hold the tables; `summarize` writes those of a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saeflow.errors import InvalidArgument
from saeflow.experiments.records import Origin
from saeflow.experiments.results import Results, SummaryTable
from saeflow.experiments.statistics import RATE, Estimate, Span, by_text, mean_estimates

ALL = "all"
ORDER: tuple[int, ...] = tuple(origin.value for origin in Origin.groups())
"""Values of `Origin` in the order of every table."""

LABELS: tuple[str, ...] = tuple(Origin(value).label for value in range(8))
"""The label of each value of `Origin`."""


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """The texts of a run as clusters: what is drawn.

    Attributes:
        number: (dataset, text) -> cluster.
        datasets: of each cluster, as a number: they are chosen, and texts are drawn within each.
    """

    number: Mapping[tuple[str, int], int]
    datasets: Int[np.ndarray, " n"]

    @staticmethod
    def of(datasets: Sequence[str], texts: Sequence[int]) -> Texts:
        """From a column of datasets and one of texts, in any order."""
        found = sorted(set(zip(datasets, texts, strict=True)))
        names = {name: code for code, name in enumerate(dict.fromkeys(name for name, _ in found))}
        of_each = np.array([names[name] for name, _ in found], dtype=np.int64)
        return Texts({key: cluster for cluster, key in enumerate(found)}, of_each)

    def clusters(self, datasets: Sequence[str], texts: Sequence[int]) -> Int[np.ndarray, " n"]:
        """The cluster of each row."""
        number = self.number
        return np.fromiter(
            (number[key] for key in zip(datasets, texts, strict=True)), dtype=np.int64, count=len(datasets)
        )


def codes(values: Sequence[Any]) -> tuple[Int[np.ndarray, " n"], list[Any]]:
    """Each value as a number, and the value of each number, in order of first appearance."""
    known: dict[Any, int] = {}
    coded = np.fromiter((known.setdefault(value, len(known)) for value in values), np.int64, len(values))
    return coded, list(known)


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """Means of some values over the rows of each group of a key, with intervals."""

    groups: list[tuple[Any, ...]]
    estimates: dict[str, list[Estimate]]

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Estimate]]]:
        """Each key with its estimates by name."""
        for place, key in enumerate(self.groups):
            yield key, {name: column[place] for name, column in self.estimates.items()}


def means(
    keys: Sequence[Sequence[Any]],
    values: Mapping[str, Float[np.ndarray, " n"]],
    clusters: Int[np.ndarray, " n"],
    texts: Texts,
    where: Bool[np.ndarray, " n"] | None = None,
    spans: Mapping[str, Span | None] | None = None,
) -> Means:
    """The mean of every column of `values` for each key there is, NaN left out.

    Args:
        keys: columns that together name a group.
        values: columns to average.
        clusters: the text of each row.
        texts: all there are.
        where: rows to keep; all when not given.
        spans: the bounds of a column's values, None for none; those of a column that is not named are 0 or 1.
    """
    kept = np.arange(len(clusters)) if where is None else np.flatnonzero(where)
    rows = list(zip(*([column[i] for i in kept.tolist()] for column in keys), strict=True))
    coded, known = codes(rows)
    shape = (len(texts.datasets), max(1, len(known)))
    estimates: dict[str, list[Estimate]] = {}
    for name, column in values.items():
        here = column[kept]
        there = np.isfinite(here)
        at, groups = clusters[kept][there], coded[there]
        sums = by_text(at, groups, here[there], shape)
        counts = by_text(at, groups, np.ones(int(there.sum())), shape)
        span = (spans or {}).get(name, RATE)
        estimates[name] = mean_estimates(sums, counts, texts.datasets, span=span)
    return Means(known, estimates)


def group_place(label: str) -> int:
    """Where a group stands in the order of every table; "deactivated" comes last."""
    return ORDER.index(Origin.named(label).value) if label in LABELS else len(ORDER)


def summarize(results: Results) -> dict[str, SummaryTable]:
    """Make the tables of a folder from its rows and write them as summary.json and CSV files.

    Raises:
        InvalidArgument: for an experiment that has no summary, or a folder without rows.
        BadFile: when a file of the folder is damaged.
    """
    from saeflow.experiments.deactivation_summary import deactivation_tables
    from saeflow.experiments.origins_summary import origins_tables

    known = {"origins": origins_tables, "deactivation": deactivation_tables}
    experiment = results.record.request.experiment
    if experiment not in known:
        raise InvalidArgument(f"there is no summary of {experiment!r}. Known: {', '.join(known)}.")
    tables = known[experiment](results)
    results.write_tables(tables)
    return {table.name: table for table in tables}
