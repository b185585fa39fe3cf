"""The content of a report, independent of where it is shown.

A view (views.py) turns a result into a Page of blocks; text.py and html.py lower the same blocks, so that a terminal
and a page never disagree. Blocks hold finished strings: the view decides on digits and wording, the lowering on space
and colour. No block holds markup.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import FlowGraph
from saeflow.labels.words import Words


class ColumnRole(enum.StrEnum):
    """What a column holds; this decides its alignment and whether its cells may be shortened."""

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

    `opens` marks the first row of a group (a layer), `strong` emphasises the row (the seed), and `tone` names the
    colour of its tag (a case of section 3.3) or is empty.
    """

    cells: tuple[str, ...]
    opens: bool = False
    strong: bool = False
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns. `narrow` is the same content in fewer columns, for narrow terminals and screens.

    Raises:
        InvalidArgument: when a row does not have one cell per column.
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
    """A titled list with one sentence per item."""

    title: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GraphFigure:
    """A flow graph as a picture. A terminal leaves it out, since the table has the same content."""

    graph: FlowGraph
    words: Words


Block = Notes | Table | GraphFigure


@dataclass(frozen=True, slots=True)
class Page:
    """A titled report. `facts` are name-value pairs such as the seed, shown at the top in HTML, last in a terminal."""

    title: str
    subtitle: str
    facts: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]
