"""Run the explorer: open the atlas, bind the loopback interface, announce the address, serve until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any, Final

from saeflow.errors import InvalidArgument, UnknownRelease
from saeflow.files import pack_folder
from saeflow.labels import words_for
from saeflow.labels.folders import words_folders
from saeflow.labels.neuronpedia import Sources, sources_of
from saeflow.matching.atlas import Atlas
from saeflow.sources.packaged_models import is_fetched
from saeflow.steering.theme import Theme, themes
from saeflow.web import require_packages
from saeflow.web.access import Access, Limits
from saeflow.web.explorer import Explorer, sizes_of
from saeflow.web.limits import UnicodeWords
from saeflow.web.model_thread import ModelThread, ModelWorker
from saeflow.web.results import Origins, Painter, open_results
from saeflow.web.search import Finder, Picks

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

UVICORN: Final[dict[str, Any]] = {
    "access_log": False,  # it would show the token of the address
    "log_config": None,
    "log_level": "warning",
    "lifespan": "off",
    "loop": "asyncio",
    "http": "h11",
    "ws": "none",
    "proxy_headers": False,  # do not trust headers that claim where a request comes from
    "server_header": False,
    "timeout_keep_alive": 60,
    "timeout_graceful_shutdown": 3,
    "h11_max_incomplete_event_size": 32_768,
}
"""The settings of uvicorn."""


@contextmanager
def exploring(
    atlas: Atlas, *, release: str = "", model: str = "", device: str = "cpu", results: Sequence[Path] = ()
) -> Generator[Explorer]:
    """Open an explorer over `atlas`; on exit, stop the model thread and the drawing of results.

    Raises:
        BadFile: when a results folder has no manifest.
    """
    release = release or atlas.release
    model = model or (atlas.model if pack_folder(release) and is_fetched(atlas.model) else "")
    words = UnicodeWords(words_for(release, beside=atlas.folder))
    folders = words_folders(release, beside=atlas.folder)
    sizes = sizes_of(atlas)
    known_themes: tuple[Theme, ...] = ()
    with suppress(UnknownRelease):
        known_themes = themes(release)
    sources: Sources | None = None
    with suppress(UnknownRelease, InvalidArgument):
        sources = sources_of(release)

    def load() -> ModelWorker:
        from saeflow.web.model_worker import LoadedModel

        return LoadedModel.load(release, model, device)

    painter = Painter()
    pages = open_results(results, painter)
    with_origins = next((page for page in pages if page.experiment == "origins"), None)
    explorer = Explorer(
        atlas=atlas,
        release=release,
        words=words,
        finder=Finder(folders[0] if folders else None, words, sizes),
        themes=known_themes,
        sources=sources,
        results=pages,
        origins=None if with_origins is None else Origins(with_origins.folder, with_origins.id),
        picks=Picks(atlas, words, sizes),
        model=ModelThread(load) if model else None,
    )
    try:
        yield explorer
    finally:
        painter.close()
        if explorer.model is not None:
            explorer.model.close()


def serve(
    atlas: Atlas,
    *,
    release: str = "",
    model: str = "",
    device: str = "cpu",
    results: Sequence[Path] = (),
    port: int = 0,
    ready: Callable[[str], None],
) -> None:
    """Serve an atlas on 127.0.0.1 until Ctrl-C.

    Args:
        atlas: the atlas to explore.
        release: name of its dictionaries; that of the atlas when empty.
        model: the model to steer, loaded when first needed; when empty, the model of an embedded pack ("demo") if it
            is fetched, else none.
        device: where the model computes.
        results: results folders to show.
        port: 0 for a free one.
        ready: called with the address, which includes the token, once it can be opened.

    Raises:
        MissingExtra: when FastAPI or uvicorn is not installed.
        BadFile: when a results folder has no manifest.
        InvalidArgument: when the port is taken.
    """
    require_packages()
    from saeflow.web.app import create_app

    opened = exploring(atlas, release=release, model=model, device=device, results=results)
    with bound(port) as own, opened as explorer, suppress(KeyboardInterrupt):
        server_of(explorer, create_app(explorer), own, token_urlsafe(24), ready).run(sockets=[own])


@contextmanager
def bound(port: int) -> Generator[socket.socket]:
    """Bind a socket on the loopback interface; close it at the end.

    Raises:
        InvalidArgument: when the port is taken or out of range.
    """
    # asyncio turns off Nagle's delay (40 ms per response) only when the protocol is given explicitly.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InvalidArgument(
                f"port {port} of 127.0.0.1 cannot be used ({error}). Give another with --port, or 0 for a free one."
            ) from None
        yield own


def server_of(
    explorer: Explorer,
    app: FastAPI,
    own: socket.socket,
    token: str,
    ready: Callable[[str], None],
    limits: Limits | None = None,
) -> Server:
    """A uvicorn server that runs `app` behind `Access` on a socket from `bound`.

    Args:
        explorer: the explorer of `app`; its background work begins once the server has started.
        app: the application, from `create_app`.
        own: the socket to listen on.
        token: the token that every request must carry.
        ready: called with the address once the server accepts requests.
        limits: how much the server accepts; the defaults of `Limits` when None.
    """
    import uvicorn

    class Explored(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                explorer.begin()
                ready(f"http://127.0.0.1:{at}/?token={token}")

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if explorer.model is not None:
                explorer.model.closed.set()  # generations stop at their next token, so this need not wait
            await super().shutdown(sockets)

    at = int(own.getsockname()[1])
    return Explored(uvicorn.Config(Access(app, token=token, port=at, limits=limits), **UVICORN))
