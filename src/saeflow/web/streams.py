"""Streams lines from the model's thread to a client that may be slow, or leave. No torch.

The thread waits while the client does not read (the queue is bounded). When the client has left or the server stops,
the thread's next `put` raises, and the context managers of the generation take the hooks off the model.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from typing import Any, Final

from fastapi.responses import StreamingResponse

from saeflow.errors import SaeflowError
from saeflow.web.model_thread import Line
from saeflow.web.problems import problem_of

MOST_LINES: Final = 256
"""Lines that may wait for the client to read them."""

_LOOK: Final = 0.2
"""Seconds between checks whether the client has left, while it does not read."""


class Left(Exception):
    """The client has left, or the server is stopping."""


class Outlet:
    """A bounded queue into which a thread puts lines, and from which a response takes them."""

    def __init__(self, closed: threading.Event) -> None:
        """Call this in the event loop; `closed` is set when the server stops."""
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[Line] = asyncio.Queue(MOST_LINES)
        self._closed, self._left = closed, threading.Event()

    def put(self, line: Line) -> None:
        """Send a line to the client; called from the thread.

        Raises:
            Left: when nobody will read it.
        """
        self._check()
        try:
            sent = asyncio.run_coroutine_threadsafe(self._lines.put(line), self._loop)
        except RuntimeError:  # the loop is closed
            raise Left from None
        while True:
            try:
                sent.result(_LOOK)
            except Late:
                if not (self._left.is_set() or self._closed.is_set()):
                    continue
                sent.cancel()
                raise Left from None
            return

    def leave(self) -> None:
        """Record that the client has left."""
        self._left.set()

    async def lines(self, job: Future[Any], *first: Line) -> AsyncGenerator[bytes]:
        """Yield `first`, then every line put until `job` is done, then its error if it failed."""
        for line in first:
            yield _encoded(line)
        done = asyncio.wrap_future(job)
        done.add_done_callback(_looked_at)
        while True:
            taken = asyncio.ensure_future(self._lines.get())
            try:
                await asyncio.wait({taken, done}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not taken.done():
                    taken.cancel()
            if taken.done() and not taken.cancelled():
                yield _encoded(taken.result())
            elif done.done():
                break
        while not self._lines.empty():
            yield _encoded(self._lines.get_nowait())
        error = done.exception()
        if error is not None:
            yield _encoded(_told(error))

    def _check(self) -> None:
        if self._left.is_set() or self._closed.is_set():
            raise Left


class Streamed(StreamingResponse):
    """A response that streams JSON lines, and tells the outlet when the client leaves."""

    media_type = "application/x-ndjson"

    def __init__(self, outlet: Outlet, job: Future[Any], *first: Line) -> None:
        """Send `first`, then every line that `job` puts into `outlet`."""
        super().__init__(outlet.lines(job, *first), headers={"x-accel-buffering": "no"})
        self._outlet, self._job = outlet, job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Stream the lines; however the stream ends, the thread is told."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._outlet.leave()
            self._job.cancel()  # a job still waiting for its turn never starts


def _looked_at(done: asyncio.Future[Any]) -> None:
    """Retrieve the outcome of a job whose client has left; otherwise asyncio logs that nobody retrieved it."""
    if not done.cancelled():
        done.exception()


def _encoded(line: Line) -> bytes:
    text = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"


def _told(error: BaseException) -> Line:
    if isinstance(error, SaeflowError):
        _, problem = problem_of(error)
        return {"type": "error", **problem.model_dump()}
    if isinstance(error, Left):
        return {"type": "error", "error": "the server stops.", "what_to_do": "Start `saeflow serve` again."}
    return {
        "type": "error",
        "error": f"saeflow failed while writing ({error!r}).",
        "what_to_do": "Report what the server printed, with the plan.",
    }
