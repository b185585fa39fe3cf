"""A summary table as figures and sentences read it: named columns, gaps allowed, no torch.

Every experiment writes `summary.json` with named tables of plain cells. A `Frame` is one of them. It
reads whatever it is given: a column that is not there, a null or a NaN is a gap, and a gap is left out
of a figure, never drawn as zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from saeflow.errors import InvalidArgument
from saeflow.experiments.groups import Origin
from saeflow.experiments.results import Cell, SummaryTable
from saeflow.report.tokens import one_line

GROUPS = tuple(origin.label for origin in Origin.groups())
"""The eight groups of appendix A.1 in the order of every table and figure."""


@dataclass(frozen=True, slots=True)
class FrameRow:
    """One row by column name. Gaps are None for numbers and empty for words; a row of gaps alone is false."""

    cells: Mapping[str, Cell]

    def __bool__(self) -> bool:
        """Whether there is a row at all."""
        return bool(self.cells)

    def number(self, *names: str) -> float | None:
        """The first finite number under one of these columns."""
        for name in names:
            cell = self.cells.get(name)
            if isinstance(cell, int | float) and math.isfinite(cell):
                return float(cell)
        return None

    def count(self, name: str) -> int:
        """A number of things; 0 for a gap."""
        return int(self.number(name) or 0)

    def words(self, name: str) -> str:
        """The cell on one line without control characters; empty for a gap."""
        cell = self.cells.get(name)
        return "" if cell is None else one_line(str(cell))

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers, given as one or as JSON; empty for a gap or anything else."""
        cell = self.cells.get(name)
        if isinstance(cell, str):
            try:
                cell = json.loads(cell)
            except json.JSONDecodeError:
                return ()
        if not isinstance(cell, list | tuple):
            return ()
        good = all(isinstance(value, int | float) for value in cell)
        return tuple(float(value) for value in cell) if good else ()

    def estimate(self, name: str, low: str = "low", high: str = "high", n: str = "n") -> Interval | None:
        """The estimate under these four columns; None when its value is a gap."""
        value = self.number(name)
        if value is None:
            return None
        return Interval(value, self.number(low), self.number(high), self.number(n))


class FrameRows(dict[Any, FrameRow]):
    """Rows by the words of some columns; one that is not there is a row of gaps."""

    def __missing__(self, key: object) -> FrameRow:
        """Nothing but gaps."""
        return FrameRow({})


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval and how many rows stand behind it; gaps are None."""

    value: float
    low: float | None = None
    high: float | None = None
    n: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the interval; the value itself where one is not known."""
        low, high = self.low, self.high
        return self.value if low is None else min(low, self.value), self.value if high is None else max(
            high, self.value
        )


@dataclass(frozen=True, slots=True)
class Frame(SummaryTable):
    """A summary table that answers queries, see the module."""

    @staticmethod
    def read(table: SummaryTable) -> Frame:
        """Any table as a frame.

        Raises:
            InvalidArgument: when a row has not one cell for each column.
        """
        for row in table.rows:
            if len(row) != len(table.columns):
                raise InvalidArgument(
                    f"a row of table {table.name!r} has {len(row)} cells for {len(table.columns)} columns. "
                    "Write the summary again."
                )
        return Frame(table.name, table.title, table.paper, table.note, tuple(table.columns), tuple(table.rows))

    @property
    def records(self) -> tuple[FrameRow, ...]:
        """The rows by column name."""
        return tuple(FrameRow(dict(zip(self.columns, row, strict=True))) for row in self.rows)

    def where(self, **equal: str) -> Frame:
        """The rows whose cells, as words, are equal to these."""
        kept = tuple(
            row
            for row, record in zip(self.rows, self.records, strict=True)
            if all(record.words(column) == value for column, value in equal.items())
        )
        return replace(self, rows=kept)

    def by(self, column: str) -> dict[str, Frame]:
        """The rows of each word of a column, in the order they first appear."""
        return {word: self.where(**{column: word}) for word in self.distinct(column)}

    def distinct(self, column: str) -> tuple[str, ...]:
        """The words of a column in the order they first appear, without gaps."""
        return tuple(dict.fromkeys(word for record in self.records if (word := record.words(column))))

    def groups(self, column: str = "group") -> tuple[str, ...]:
        """The groups that appear under `column`, in the fixed order of the eight."""
        return in_order(self.distinct(column), GROUPS)

    def layers(self) -> tuple[int, ...]:
        """The numbered layers, ascending; "all" is none."""
        return tuple(sorted({int(word) for word in self.distinct("layer") if word.isdecimal()}))

    def numbers(self, *columns: str) -> list[float]:
        """The numbers under these columns, ascending, each once."""
        found = (record.number(column) for record in self.records for column in columns)
        return sorted({value for value in found if value is not None})

    def lookup(self, *keys: str) -> FrameRows:
        """The rows by the words of these columns, of one column by its word; the last of equal ones."""
        words = [tuple(record.words(key) for key in keys) for record in self.records]
        return FrameRows(zip(words if len(keys) > 1 else [word for (word,) in words], self.records, strict=True))

    def by_number(self, column: str) -> dict[float, FrameRow]:
        """The rows by the number in a column, ascending; the last of equal ones."""
        found = {value: record for record in self.records if (value := record.number(column)) is not None}
        return dict(sorted(found.items()))


def in_order(words: Iterable[str], order: Sequence[str]) -> tuple[str, ...]:
    """`words` in the order of `order`, then those it does not name as they come."""
    given = tuple(words)
    return (*(word for word in order if word in given), *(word for word in given if word not in order))


def only(frame: Frame, **where: str) -> FrameRow:
    """The first row with these words; a row of gaps where there is none."""
    return next(iter(frame.where(**where).records), FrameRow({}))


def most(rows: Iterable[FrameRow], column: str = "n") -> float:
    """The largest number in a column; 0 where there is none."""
    return max((row.number(column) or 0.0 for row in rows), default=0.0)
