"""From rows to tables: what all summaries share. No torch.

    rows of a results folder -> columns -> counts a text -> estimates -> SummaryTable

`origins_tables` and `deactivation_tables` hold the tables; `summarize` writes those of a folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from saeflow.errors import InvalidArgument
from saeflow.experiments.records import Origin
from saeflow.experiments.results import Results, SummaryTable

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


def summarize(results: Results) -> dict[str, SummaryTable]:
    """Make the tables of a folder from its rows and write them as summary.json and CSV files.

    Raises:
        InvalidArgument: for an experiment that has no summary, or a folder without rows.
        BadFile: when a file of the folder is damaged.
    """
    from saeflow.experiments.deactivation_tables import deactivation_tables
    from saeflow.experiments.origins_tables import origins_tables

    known = {"origins": origins_tables, "deactivation": deactivation_tables}
    experiment = results.record.request.experiment
    if experiment not in known:
        raise InvalidArgument(f"there is no summary of {experiment!r}. Known: {', '.join(known)}.")
    tables = known[experiment](results)
    results.write_tables(tables)
    return {table.name: table for table in tables}
