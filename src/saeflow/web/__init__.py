"""The explorer: `saeflow serve`, one local page over an atlas, with an API of JSON. Needs the extra "web".

    access         who may ask: token, Host, Origin, sizes, how many at once; an ASGI middleware
    server, app    run, and put together
    routes_graph   routes that need no model: info, search, graphs, cards of features, exports, results
    routes_model   routes of the steering bench and the text view
    requests, responses, problems   schemas of what comes in and goes out, and errors as responses
    limits         the most that a request may ask for
    explorer       what is explored: atlas, words, results, the model
    search         features by words and ids, and those worth a first look
    results        results folders: pages, tables, origin groups
    model_thread   one thread in which the model is loaded and works
    model_worker   the loaded model: the only file that imports torch
    streams        lines from that thread to a client

Nothing here imports torch before a model is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from saeflow.errors import MissingExtra

PACKAGES: Final = ("pydantic", "fastapi", "uvicorn")
"""What the extra "web" has."""


def require_packages() -> None:
    """Call before a module of this package is imported.

    Raises:
        MissingExtra: naming the package of the extra "web" that is missing.
    """
    for name in PACKAGES:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise MissingExtra(f"the explorer needs {error.name}, which is not installed.", "web") from None
