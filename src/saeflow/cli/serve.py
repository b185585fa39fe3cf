"""`saeflow serve`: the explorer, one local page over an atlas."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Annotated

import typer

from saeflow.cli.app import Device, Release


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(serve)


def serve(
    release: Release = "demo",
    atlas: Annotated[str, typer.Option(help="Atlas to explore; that of the release when not given.")] = "",
    model: Annotated[str, typer.Option(help="Model to steer; none when not given, the embedded one for demo.")] = "",
    results: Annotated[
        list[Path] | None, typer.Option(help="A results folder to show; may be given several times.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as a line of JSON.")] = False,
) -> None:
    """Explore an atlas in the browser: search features, see their flow, steer. Stop it with Ctrl-C."""
    from saeflow.web import require_packages

    require_packages()

    from saeflow.matching.atlas import open_atlas
    from saeflow.web.server import serve as run

    def ready(address: str) -> None:
        base, _, token = address.partition("/?token=")
        told = {"url": address, "port": int(base.rpartition(":")[2]), "token": token}
        typer.echo(json.dumps(told) if as_json else f"{address}\n(for this machine alone; Ctrl-C stops)")
        if browser:
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    opened = open_atlas(atlas or release)
    named = release if atlas else opened.release or release
    run(opened, release=named, model=model, device=device, results=results or (), port=port, ready=ready)
