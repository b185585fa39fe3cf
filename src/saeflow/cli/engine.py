"""Options that say where the units of a long command run: `--engine`, and what an engine takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from saeflow.engines import Engine as OpenEngine

PANEL: Final = "Where it runs"

Engine = Annotated[
    str,
    typer.Option("--engine", help="here (one process), pool (processes of this machine), ray.", rich_help_panel=PANEL),
]
Workers = Annotated[
    int, typer.Option(help="Processes of the pool; 0 for as many as there are cores.", rich_help_panel=PANEL)
]
Address = Annotated[
    str,
    typer.Option(
        help='Ray cluster to join: "auto", ray://HOST:10001; one of this machine when empty.', rich_help_panel=PANEL
    ),
]
Cpus = Annotated[int, typer.Option(help="Cores, and threads, of a unit of work.", rich_help_panel=PANEL)]
Gpus = Annotated[
    float, typer.Option(help="GPUs of a unit on Ray, or a part of one; it computes there.", rich_help_panel=PANEL)
]


def opened(engine: str, workers: int, address: str, cpus: int, gpus: float) -> OpenEngine:
    """The engine that the options name, to be used in a `with`.

    Raises:
        InvalidArgument, MissingExtra, Unreachable: as `open_engine` does.
    """
    from saeflow.engines import open_engine

    return open_engine(engine, workers=workers or None, address=address, cpus=cpus, gpus=gpus)
