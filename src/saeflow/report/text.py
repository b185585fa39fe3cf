"""Blocks as text for a terminal.

Words give way to the width of the terminal; ids and numbers never do. A terminal too narrow for the
ids gets lines longer than itself instead of ids cut short.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence

from rich.box import Box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from saeflow.report.blocks import Block, GraphFigure, Heading, KeyValues, Notes, Page, Paragraph, Role, Row, Table

_PAD = 2  # columns stand two blanks apart: one of padding, one drawn by the box
_MIN_WORDS = 16  # a column of words narrower than this says too little
_MAX_WORDS = 64
_TONES = {"translated": "blue", "processed": "yellow", "newborn": "red", "unexplained": "bright_black"}
_RULED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def page_text(page: Page, *, width: int | None = None, colour: bool = False) -> str:
    """The page as lines of at most `width` columns, where ids and numbers leave room for that.

    `width` None takes the terminal's. `colour` adds ANSI colours; without it the text is plain.
    """
    room = shutil.get_terminal_size((100, 24)).columns if width is None else width
    out = io.StringIO()
    console = Console(
        file=out,
        width=max([room, *(_least_width(b, room) for b in page.blocks if isinstance(b, Table))]),
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},
    )
    console.print(Text(page.title, style="bold"))
    if page.subtitle:
        console.print(Text(page.subtitle, style="italic"), width=max(room, 20))
    for block in page.blocks:
        _print(console, block, room)
    console.print()
    _print(console, page.facts, room)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _print(console: Console, block: Block, room: int) -> None:
    wrap_at = max(room, 20)
    if isinstance(block, Heading):
        console.print(Text(f"\n{block.text}", style="bold"), width=wrap_at)
    elif isinstance(block, Paragraph):
        console.print(Text(f"\n{block.text}"), width=wrap_at)
    elif isinstance(block, Notes):
        console.print(Text(f"\n{block.title}", style="bold"))
        for item in block.items:
            console.print(_hanging(item), width=wrap_at)
    elif isinstance(block, KeyValues):
        key_width = max(len(key) for key, _ in block.pairs)
        for key, value in block.pairs:
            console.print(_keyed(key.ljust(key_width), value), width=wrap_at)
    elif isinstance(block, Table):
        table = _choose(block, room)
        console.print(Text(f"\n{table.caption}", style="bold"), width=wrap_at)
        console.print(_rich_table(table, _widths(table, room)))
    else:
        assert isinstance(block, GraphFigure)  # noqa: S101 - the last member of a closed union


def _hanging(item: str) -> RenderableType:
    return Padding(Text(item), (0, 0, 0, 2))


def _keyed(key: str, value: str) -> RenderableType:
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row(Text(key, style="dim"), Text(value))
    return grid


def _choose(table: Table, room: int) -> Table:
    """The wide form where each column of words has room to say something, else the narrow one."""
    if table.narrow is None:
        return table
    return table if _least_width(table, room, wide=True) <= room else table.narrow


def _least_width(table: Table, room: int, *, wide: bool = False) -> int:
    """The width below which ids or numbers would be cut."""
    chosen = table if wide else _choose(table, room)
    needs = _needs(chosen)
    least = _MIN_WORDS if wide else 5
    return _gaps(chosen) + sum(
        min(need, least) if column.role is Role.WORDS else need
        for need, column in zip(needs, chosen.columns, strict=True)
    )


def _needs(table: Table) -> list[int]:
    return [
        max([cell_len(column.header), *(cell_len(row.cells[i]) for row in table.rows)])
        for i, column in enumerate(table.columns)
    ]


def _gaps(table: Table) -> int:
    return _PAD * (len(table.columns) - 1)


def _widths(table: Table, room: int) -> list[int]:
    """Widths of columns: what they need, with the columns of words sharing what is left."""
    widths = _needs(table)
    words = [i for i, column in enumerate(table.columns) if column.role is Role.WORDS]
    left = room - _gaps(table) - sum(w for i, w in enumerate(widths) if i not in words)
    # Narrowest needs first, so that what one column leaves the others share.
    for done, i in enumerate(sorted(words, key=lambda i: widths[i])):
        share = max(5, left // (len(words) - done))
        widths[i] = min(widths[i], share, _MAX_WORDS)
        left -= widths[i]
    return widths


def _rich_table(table: Table, widths: Sequence[int]) -> RichTable:
    rich = RichTable(box=_RULED, show_edge=False, padding=(0, _PAD - 1, 0, 0), pad_edge=False, header_style="dim")
    for column, width in zip(table.columns, widths, strict=True):
        justify = "right" if column.role is Role.NUMBER else "left"
        rich.add_column(Text(column.header), justify=justify, no_wrap=True, min_width=width, max_width=width)
    for row in table.rows:
        cells = zip(row.cells, table.columns, widths, strict=True)
        rich.add_row(*(_cell(text, column.role, width, row) for text, column, width in cells))
    return rich


def _cell(text: str, role: Role, width: int, row: Row) -> Text:
    if role is Role.WORDS and cell_len(text) > width:
        text = set_cell_size(text, width - 1).rstrip(" ,;·") + "…"
    style = _TONES.get(row.tone, "") if role in {Role.TAG, Role.MARK} else ""
    return Text(text, style=f"bold {style}".strip() if row.strong else style)
