"""The application object, and how its commands show tables, JSON and progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from saeflow.version import __version__

if TYPE_CHECKING:
    from saeflow.sources.model import LanguageModel

app = typer.Typer(
    help="Trace features of sparse autoencoders through the layers of a language model, from the weights alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _there(device: str) -> str:
    """Refuse a device that is not here, before anything is loaded; torch is asked where it is not the CPU."""
    if device != "cpu":
        from saeflow.sources.devices import known_device

        known_device(device)
    return device


Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.", callback=_there)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Projector = Annotated[str, typer.Option(help="Model to project attention features with, where they live in z.")]
Release = Annotated[
    str, typer.Argument(help='"demo", a folder, FOLDER@PATTERN for some of its SAEs, or the name of a release.')
]


PrependBos = Annotated[
    bool | None,
    typer.Option(
        "--prepend-bos/--no-prepend-bos",
        help="Begin texts with the begin-of-text token; as the SAEs' files or else the tokenizer say when not given.",
    ),
]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:  # pyright: ignore[reportUnusedFunction]
    if version:
        typer.echo(f"saeflow {__version__}")
        raise typer.Exit


def show(as_json: bool, data: dict[str, Any], summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """JSON, or the summary as lines and the rows as a table."""
    if as_json:
        typer.echo(json.dumps(data, indent=1))
        return
    for key, value in summary.items():
        typer.echo(f"{key}: {value}")
    print_table("", rows)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows as a table under a title."""
    from saeflow.report.tables import as_text

    typer.echo(as_text(title, rows))


SECONDS: Final = 30.0
"""How far apart lines of progress are where there is no terminal."""


@contextmanager
def progress(what: str) -> Generator[Callable[[int, int, str], None]]:
    """What takes (done, total, what is being done) and shows it on stderr: a bar, or a line now and then in a pipe."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    with Progress(console=console) as bar:
        task = bar.add_task(what)

        def show(done: int, total: int, now: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{what} {now}")

        yield show


def _lines(what: str) -> Callable[[int, int, str], None]:
    """Progress as a line at most every `SECONDS`, with the time that is left at the pace so far."""
    from saeflow.report.tables import duration

    last = time.monotonic()
    start: tuple[int, float] | None = None

    def show(done: int, total: int, now: str) -> None:
        nonlocal last, start
        at = time.monotonic()
        first, began = start = start or (done, at)  # a run that goes on did the others before
        if at - last < SECONDS:
            return
        last = at
        left = f", about {duration((at - began) / (done - first) * (total - done))} left" if done > first else ""
        share = f"{done / total:.0%} " if total else ""
        typer.echo(f"{what} {now}".rstrip() + f": {share}({done:,} of {total:,}){left}", err=True)

    return show


def projector(name: str) -> LanguageModel | None:
    """The model that projects attention features, where one is named."""
    if not name:
        return None
    from saeflow.sources.model import load_model

    return load_model(name)


@contextmanager
def bars() -> Generator[Callable[[str], Callable[[int, int, str], None]]]:
    """Bars that appear when they are asked for, one after the other."""
    with ExitStack() as stack:
        known: dict[str, Callable[[int, int, str], None]] = {}

        def bar(what: str) -> Callable[[int, int, str], None]:
            if what not in known:
                stack.close()  # rich shows one at a time
                known[what] = stack.enter_context(progress(what))
            return known[what]

        yield bar
