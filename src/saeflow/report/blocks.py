"""What a report can show, apart from where it is shown.

A view (views.py) turns a result into a Page of blocks; text.py and html.py each lower the same blocks,
a terminal and a page never disagree. Blocks hold finished strings: a view decides on digits and words,
the lowering on room and colour. No block holds markup.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import FlowGraph
from saeflow.labels.words import Words


class ColumnRole(enum.StrEnum):
    """What a column holds, which decides its alignment and whether it may be shortened."""

    MARK = "mark"
    ID = "id"
    NUMBER = "number"
    TAG = "tag"
    WORDS = "words"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Only columns of words are ever shortened."""

    header: str
    role: ColumnRole


@dataclass(frozen=True, slots=True)
class BlockRow:
    """A row of a table.

    `opens` starts a group (a layer), `strong` sets the row off (the seed), `tone` names the colour of
    its tag (a case of section 3.3) or is empty.
    """

    cells: tuple[str, ...]
    opens: bool = False
    strong: bool = False
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns. `narrow` says the same in fewer columns, for where there is little room.

    Raises:
        InvalidArgument: when a row has not one cell per column.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[BlockRow, ...]
    narrow: Table | None = None

    def __post_init__(self) -> None:
        """Check that every row has one cell per column."""
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise InvalidArgument(
                    f"a row of table {self.caption!r} has {len(row.cells)} cells "
                    f"for {len(self.columns)} columns. Give one cell per column."
                )


@dataclass(frozen=True, slots=True)
class Notes:
    """Sentences under a title, one each."""

    title: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GraphFigure:
    """A flow graph as a picture. A terminal leaves it out: the table says the same."""

    graph: FlowGraph
    words: Words


Block = Notes | Table | GraphFigure


@dataclass(frozen=True, slots=True)
class Page:
    """A titled report. `facts` are names with values, as a seed: at the head of a page, at the foot in a terminal."""

    title: str
    subtitle: str
    facts: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]
