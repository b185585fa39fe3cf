"""How commands show tables, JSON, results folders and progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from saeflow.experiments.results import Results, SummaryTable

SECONDS: Final = 30.0
"""The least time between two lines of progress where there is no terminal."""

Row = dict[str, Any]
Report = Callable[[int, int, str], None]
"""Called with (done, total, what is being done)."""


def print_json(data: Any, *, indent: int | None = 1) -> None:
    """Print data as JSON."""
    print(json.dumps(data, indent=indent))


def print_table(rows: Sequence[Row], title: str = "") -> None:
    """Print rows as a table under a title."""
    from saeflow.report.tables import as_text

    print(as_text(title, rows))


def note(text: str) -> None:
    """Print a remark on stderr."""
    print(text, file=sys.stderr)


def print_none_found(words: str) -> None:
    """Print on stderr that a search found nothing."""
    note(f"saeflow: no feature has {words!r} in its label or tokens. Give the beginning of a word, or fewer words.")


def show(as_json: bool, data: Row, summary: Row, rows: Sequence[Row]) -> None:
    """Print data as JSON, or the summary as lines and the rows as a table."""
    if as_json:
        print_json(data)
        return
    for key, value in summary.items():
        print(f"{key}: {value}")
    print_table(rows)


def show_results(
    results: Results,
    tables: Mapping[str, SummaryTable],
    names: Sequence[str],
    rows_of: Callable[[SummaryTable], list[Row]],
    *,
    as_json: bool,
    units: str = "texts",
) -> None:
    """Write the page of a results folder, and print all of its tables as JSON or the main ones as text.

    Args:
        results: the results folder.
        tables: all of its tables.
        names: the main tables.
        rows_of: returns the rows that a terminal shows of a table.
        as_json: whether to print JSON.
        units: what the units of work are called.
    """
    from saeflow.paper.results import write_page

    page = write_page(results.folder)
    if as_json:
        data = {name: {"columns": table.columns, "rows": table.rows} for name, table in tables.items()}
        print_json({"folder": str(results.folder), "tables": data}, indent=None)
        return
    for name in names:
        if name in tables and tables[name].rows:
            print_table(rows_of(tables[name]), tables[name].title)
            print(tables[name].note.replace("`", "") + "\n")
    print(f"{results.record.total} {units}, {len(tables)} tables, in {results.folder}; open {page}")


@contextmanager
def progress(what: str) -> Generator[Report]:
    """Yield a callback that shows progress on stderr: as a bar, or without a terminal as a line now and then."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    with Progress(console=console) as bar:
        task = bar.add_task(what)
        yield lambda done, total, now: bar.update(task, completed=done, total=total, description=f"{what} {now}")


def _lines(what: str) -> Report:
    """A callback that prints a line at most every `SECONDS`, with an estimate of the time left."""
    from saeflow.report.tables import duration

    last = time.monotonic()
    start: tuple[int, float] | None = None

    def report(done: int, total: int, now: str) -> None:
        nonlocal last, start
        at = time.monotonic()
        first, began = start = start or (done, at)  # a resumed run did `first` of them before
        if at - last < SECONDS:
            return
        last = at
        left = f", about {duration((at - began) / (done - first) * (total - done))} left" if done > first else ""
        share = f"{done / total:.0%} " if total else ""
        note(f"{what} {now}".rstrip() + f": {share}({done:,} of {total:,}){left}")

    return report


@contextmanager
def bars() -> Generator[Callable[[str], Report]]:
    """Yield a function that starts the bar of a name and returns its callback; a new bar ends the one before."""
    with ExitStack() as stack:
        known: dict[str, Report] = {}

        def bar(what: str) -> Report:
            if what not in known:
                stack.close()  # rich shows one bar at a time
                known[what] = stack.enter_context(progress(what))
            return known[what]

        yield bar
