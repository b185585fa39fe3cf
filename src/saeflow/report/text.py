"""Blocks as text for a terminal.

Words are shortened to fit the width of the terminal; ids and numbers never are. In a terminal too narrow for the ids,
lines are longer than the terminal is wide.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence

from rich.box import Box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from saeflow.report.blocks import ColumnRole, GraphFigure, Notes, Page, Table

_PAD = 2  # two spaces between columns: one of padding, one drawn by the box
_MIN_WORDS = 16  # a column of words narrower than this is of little use
_MAX_WORDS = 64
_TONES = {"translated": "blue", "processed": "yellow", "newborn": "red", "unexplained": "bright_black"}
_RULED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def page_text(page: Page, *, width: int | None = None, colour: bool = False) -> str:
    """The page as lines of at most `width` columns, unless ids and numbers need more.

    If `width` is None, the terminal's width is used. `colour` adds ANSI colours; otherwise the text is plain.
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
    wrap_at = max(room, 20)
    if page.subtitle:
        console.print(Text(page.subtitle, style="italic"), width=wrap_at)
    for block in page.blocks:
        if isinstance(block, Notes):
            console.print(Text(f"\n{block.title}", style="bold"))
            for item in block.items:
                console.print(Padding(Text(item), (0, 0, 0, 2)), width=wrap_at)
        elif isinstance(block, Table):
            table = _choose(block, room)
            console.print(Text(f"\n{table.caption}", style="bold"), width=wrap_at)
            console.print(_rich_table(table, _widths(table, room)))
        else:
            assert isinstance(block, GraphFigure)  # noqa: S101 - the last member of a closed union
    console.print()
    key_width = max(len(key) for key, _ in page.facts)
    for key, value in page.facts:
        grid = RichTable.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column()
        grid.add_row(Text(key.ljust(key_width), style="dim"), Text(value))
        console.print(grid, width=wrap_at)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _choose(table: Table, room: int) -> Table:
    """The wide form if each column of words gets enough room to be useful, else the narrow one."""
    if table.narrow is None:
        return table
    return table if _least_width(table, room, wide=True) <= room else table.narrow


def _least_width(table: Table, room: int, *, wide: bool = False) -> int:
    """The width below which ids or numbers would be cut."""
    chosen = table if wide else _choose(table, room)
    needs = _needs(chosen)
    least = _MIN_WORDS if wide else 5
    return _gaps(chosen) + sum(
        min(need, least) if column.role is ColumnRole.WORDS else need
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
    """Column widths: what each needs, except that the columns of words share what is left of `room`."""
    widths = _needs(table)
    words = [i for i, column in enumerate(table.columns) if column.role is ColumnRole.WORDS]
    left = room - _gaps(table) - sum(w for i, w in enumerate(widths) if i not in words)
    # Columns with the smallest need first, so that the others share what they leave.
    for done, i in enumerate(sorted(words, key=lambda i: widths[i])):
        share = max(5, left // (len(words) - done))
        widths[i] = min(widths[i], share, _MAX_WORDS)
        left -= widths[i]
    return widths


def _rich_table(table: Table, widths: Sequence[int]) -> RichTable:
    rich = RichTable(box=_RULED, show_edge=False, padding=(0, _PAD - 1, 0, 0), pad_edge=False, header_style="dim")
    for column, width in zip(table.columns, widths, strict=True):
        justify = "right" if column.role is ColumnRole.NUMBER else "left"
        rich.add_column(Text(column.header), justify=justify, no_wrap=True, min_width=width, max_width=width)
    for row in table.rows:
        cells: list[Text] = []
        for cell, column, width in zip(row.cells, table.columns, widths, strict=True):
            cut = column.role is ColumnRole.WORDS and cell_len(cell) > width
            text = set_cell_size(cell, width - 1).rstrip(" ,;·") + "…" if cut else cell
            style = _TONES.get(row.tone, "") if column.role in {ColumnRole.TAG, ColumnRole.MARK} else ""
            cells.append(Text(text, style=f"bold {style}".strip() if row.strong else style))
        rich.add_row(*cells)
    return rich
