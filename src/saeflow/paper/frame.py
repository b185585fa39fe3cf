"""A summary table as figures and sentences read it: named columns, gaps allowed, no torch.

Every experiment writes `summary.json` with named tables of plain cells. A `Frame` is one of them and accepts whatever
it is given: a missing column, a null or a NaN is a gap, and figures leave gaps out, never drawing them as zero.
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
    """One row by column name. Gaps read as None for numbers and "" for words; a row without cells is false."""

    cells: Mapping[str, Cell]

    def __bool__(self) -> bool:
        """Whether the row has any cells."""
        return bool(self.cells)

    def number(self, *names: str) -> float | None:
        """The first finite number in these columns; None for a gap."""
        for name in names:
            cell = self.cells.get(name)
            if isinstance(cell, int | float) and math.isfinite(cell):
                return float(cell)
        return None

    def count(self, name: str) -> int:
        """The number in a column as an integer; 0 for a gap."""
        return int(self.number(name) or 0)

    def words(self, name: str) -> str:
        """The cell on one line without control characters; empty for a gap."""
        cell = self.cells.get(name)
        return "" if cell is None else one_line(str(cell))

    def numbers(self, name: str) -> tuple[float, ...]:
        """The numbers of a cell that is a list, or a list in JSON; empty for a gap or anything else."""
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
        """The estimate in these four columns; None when its value is a gap."""
        value = self.number(name)
        if value is None:
            return None
        return Interval(value, self.number(low), self.number(high), self.number(n))


class FrameRows(dict[Any, FrameRow]):
    """Rows by the words of some columns; an unknown key gives a row of gaps."""

    def __missing__(self, key: object) -> FrameRow:
        """A row of gaps."""
        return FrameRow({})


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval and the number of rows behind it; gaps are None."""

    value: float
    low: float | None = None
    high: float | None = None
    n: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the interval, widened to include the value; the value itself where an end is unknown."""
        low, high = self.low, self.high
        return self.value if low is None else min(low, self.value), self.value if high is None else max(
            high, self.value
        )


@dataclass(frozen=True, slots=True)
class Frame(SummaryTable):
    """A summary table that answers queries; see the module."""

    @staticmethod
    def read(table: SummaryTable) -> Frame:
        """Any table as a frame.

        Raises:
            InvalidArgument: when a row does not have one cell per column.
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
        """The rows whose cells, as words, equal these."""
        kept = tuple(
            row
            for row, record in zip(self.rows, self.records, strict=True)
            if all(record.words(column) == value for column, value in equal.items())
        )
        return replace(self, rows=kept)

    def by(self, column: str) -> dict[str, Frame]:
        """The rows for each word of a column, in order of first appearance."""
        return {word: self.where(**{column: word}) for word in self.distinct(column)}

    def distinct(self, column: str) -> tuple[str, ...]:
        """The words of a column in order of first appearance, without gaps."""
        return tuple(dict.fromkeys(word for record in self.records if (word := record.words(column))))

    def groups(self, column: str = "group") -> tuple[str, ...]:
        """The groups that appear under `column`, in the fixed order of the eight."""
        return in_order(self.distinct(column), GROUPS)

    def layers(self) -> tuple[int, ...]:
        """The numbered layers, ascending, without "all"."""
        return tuple(sorted({int(word) for word in self.distinct("layer") if word.isdecimal()}))

    def numbers(self, *columns: str) -> list[float]:
        """The distinct numbers in these columns, ascending."""
        found = (record.number(column) for record in self.records for column in columns)
        return sorted({value for value in found if value is not None})

    def lookup(self, *keys: str) -> FrameRows:
        """The rows by the words of these columns (by a single word for one column); the last of equal keys wins."""
        words = [tuple(record.words(key) for key in keys) for record in self.records]
        return FrameRows(zip(words if len(keys) > 1 else [word for (word,) in words], self.records, strict=True))

    def by_number(self, column: str) -> dict[float, FrameRow]:
        """The rows by the number in a column, ascending; the last of equal numbers wins."""
        found = {value: record for record in self.records if (value := record.number(column)) is not None}
        return dict(sorted(found.items()))


def in_order(words: Iterable[str], order: Sequence[str]) -> tuple[str, ...]:
    """`words` in the order of `order`; words it does not contain follow as they come."""
    given = tuple(words)
    return (*(word for word in order if word in given), *(word for word in given if word not in order))


def only(frame: Frame, **where: str) -> FrameRow:
    """The first row with these words; a row of gaps if there is none."""
    return next(iter(frame.where(**where).records), FrameRow({}))


def best(rows: Iterable[FrameRow], column: str = "score") -> FrameRow | None:
    """The row with the highest number in a column, the first of ties; None if no row has one."""
    known = [row for row in rows if row.number(column) is not None]
    return max(known, key=lambda row: row.number(column) or 0.0, default=None)


def most(rows: Iterable[FrameRow], column: str = "n") -> float:
    """The largest number in a column; 0 if there is none."""
    return max((row.number(column) or 0.0 for row in rows), default=0.0)
