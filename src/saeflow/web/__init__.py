"""The explorer behind `saeflow serve`: a local page over an atlas, with a JSON API. Needs the extra "web".

    access         access control (token, Host, Origin) and request limits, as an ASGI middleware
    server, app    start the server; assemble the application
    routes_graph   routes that need no model: info, search, graphs, feature cards, exports, results
    routes_model   routes of the steering bench and the text view
    requests, responses, problems   request and response schemas; errors as responses
    limits         upper bounds on what a request may ask for
    explorer       the state that every route sees: atlas, words, results, model
    search         search for features by words and ids; features worth a first look
    results        results folders: pages, tables, origin groups
    model_thread   the single thread that loads and runs the model
    model_worker   the loaded model; the only module that imports torch
    streams        streams lines from that thread to a client

Nothing here imports torch before a model is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from saeflow.errors import MissingExtra

PACKAGES: Final = ("pydantic", "fastapi", "uvicorn")
"""The packages of the extra "web"."""


def require_packages() -> None:
    """Check that the extra "web" is installed; call this before importing a module of this package.

    Raises:
        MissingExtra: when a package is missing, with its name.
    """
    for name in PACKAGES:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise MissingExtra(f"the explorer needs {error.name}, which is not installed.", "web") from None
