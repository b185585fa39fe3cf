"""Run the explorer: open what is explored, bind the loopback interface, print the address, serve until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any, Final

from saeflow.errors import InvalidArgument, UnknownRelease
from saeflow.labels import words_for
from saeflow.labels.sources import Sources, sources_of, words_folders
from saeflow.matching.atlas import Atlas
from saeflow.steering.theme import Theme, themes
from saeflow.web.access import Limits
from saeflow.web.desk import Desk, Worker
from saeflow.web.explorer import Explorer, sizes_of
from saeflow.web.extra import need_the_extra
from saeflow.web.finding import Finder
from saeflow.web.lookups import Printable
from saeflow.web.origins import EXPERIMENT, Origins
from saeflow.web.pages import Painter, open_results
from saeflow.web.picks import Picks
from saeflow.web.plans import make_plan

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
    "proxy_headers": False,  # nobody's word is taken for where a request comes from
    "server_header": False,
    "timeout_keep_alive": 60,
    "timeout_graceful_shutdown": 3,
    "h11_max_incomplete_event_size": 32_768,
}
"""Settings of uvicorn."""


@contextmanager
def exploring(
    atlas: Atlas, *, release: str = "", model: str = "", device: str = "cpu", results: Sequence[Path] = ()
) -> Generator[Explorer]:
    """What is explored, with everything begun that works in the background; stopped at the end.

    Raises:
        BadFile: when a results folder has no manifest.
    """
    release = release or atlas.release
    words = Printable(words_for(release, beside=atlas.folder))
    sizes = sizes_of(atlas)
    folders = words_folders(release, beside=atlas.folder)
    painter = Painter()
    pages = open_results(results, painter)
    seen = next((page for page in pages if page.kind == EXPERIMENT), None)
    explorer = Explorer(
        atlas=atlas,
        release=release,
        words=words,
        finder=Finder(folders[0] if folders else None, words, sizes),
        themes=_themes(release),
        sources=_sources(release),
        results=pages,
        origins=None if seen is None else Origins(seen.folder, seen.id),
        picks=Picks(atlas, words, sizes),
        desk=_desk(release, model, device),
        planner=make_plan,
    )
    try:
        yield explorer
    finally:
        painter.close()
        if explorer.desk is not None:
            explorer.desk.close()


def _desk(release: str, model: str, device: str) -> Desk | None:
    named = model or ("demo" if release == "demo" else "")
    if not named:
        return None

    def load() -> Worker:
        from saeflow.web.live import Live

        return Live.load(release, named, device)

    return Desk(load)


def _themes(release: str) -> tuple[Theme, ...]:
    with suppress(UnknownRelease):
        return themes(release)
    return ()


def _sources(release: str) -> Sources | None:
    with suppress(UnknownRelease, InvalidArgument):
        return sources_of(release)
    return None


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
        atlas: what is explored.
        release: name of its dictionaries, that of the atlas when empty.
        model: the model to steer, loaded at the first need; the embedded one of "demo"; none when empty.
        device: where the model computes.
        results: results folders to show.
        port: 0 for a free one.
        ready: called with the address, token and all, when it can be opened.

    Raises:
        MissingExtra: when FastAPI or uvicorn is not installed.
        BadFile: when a results folder has no manifest.
        InvalidArgument: when the port is taken.
    """
    need_the_extra()
    from saeflow.web.app import create_app

    what = exploring(atlas, release=release, model=model, device=device, results=results)
    with bound(port) as own, what as explorer, suppress(KeyboardInterrupt):
        made = server_of(explorer, create_app(explorer), own, token_urlsafe(24), ready)
        made.run(sockets=[own])


@contextmanager
def bound(port: int) -> Generator[socket.socket]:
    """A socket of the loopback interface, closed at the end.

    Raises:
        InvalidArgument: when the port is taken, or none.
    """
    # The protocol is named because asyncio turns Nagle's delay off (40 ms an answer) only where it is.
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
    """A server of uvicorn that runs `app`, guarded, at a socket of `bound`.

    Args:
        explorer: what `app` explores; its work in the background begins when the server has started.
        app: what `create_app` made.
        own: where to listen.
        token: what requests must know.
        ready: called with the address when the server answers.
        limits: how much it takes; the defaults of `Limits` when None.
    """
    import uvicorn

    from saeflow.web.app import guarded

    class Explored(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                explorer.begin()
                ready(f"http://127.0.0.1:{at}/?token={token}")

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if explorer.desk is not None:
                explorer.desk.closed.set()  # texts stop at the next token, so that nothing is waited for
            await super().shutdown(sockets)

    at = int(own.getsockname()[1])
    return Explored(uvicorn.Config(guarded(app, token, at, limits), **UVICORN))
