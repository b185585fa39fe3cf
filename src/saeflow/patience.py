"""Polite and cautious HTTP requests: every wait, response size and duration has a limit.

Shared by the clients of Neuronpedia (`labels.http`), hubs (`sources.remote`) and language models (`llm`).
Limits that differ between callers are their arguments; shared limits are defined here.

    retry_after   how long a server asks to wait
    within        a call that must end in time, whatever the server does
    Meter         limits on the size and slowness of a response
    masked        a text with the API keys that were sent removed
"""

from __future__ import annotations

import contextvars
import email.utils
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which a request is worth retrying."""
STEP: Final = 1 << 16
"""New bytes that count as progress in a download that keeps breaking off; its attempts are then counted afresh."""
WINDOW: Final = 60.0
"""Seconds in which a response must deliver at least `LEAST` bytes; a slower one is aborted."""
LEAST: Final = 1 << 16
ERROR: Final = 1 << 16
"""Bytes read from the body of an error response."""
LARGEST: Final = 1 << 50
"""Largest file size, in bytes, that a server may announce."""

_SHORTEST_KEY: Final = 6


class TooLong(ValueError):
    """A response with more bytes than allowed."""


class Headers(Protocol):
    """The headers of a response, from any library; names are lower case if the mapping is case-sensitive."""

    def get(self, name: str, /) -> Any:
        """Return the value of a header."""
        ...


def retry_after(headers: Headers) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `Retry-After` (seconds or a date); None if neither is given."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = str(headers.get(name) or "")
        try:
            seconds = float(value) / unit
        except ValueError:
            continue
        if 0 <= seconds < math.inf:
            return seconds
    try:
        when = email.utils.parsedate_to_datetime(str(headers.get("retry-after") or ""))
        return max(0.0, when.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def doubled(failed: int, first: float, longest: float) -> float:
    """Seconds to wait after `failed` attempts when the server names none: `first`, doubling up to `longest`."""
    return min(longest, first * 2.0 ** min(failed - 1, 60))


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise what `call` does if it ends in time; otherwise leave it running in its thread.

    The timeouts of HTTP libraries are not enough: they restart with every byte, so headers could trickle in for ever.

    Raises:
        TimeoutError: when it does not end in time.
    """
    late = threading.Event()

    def closed_if_late() -> T:
        found = call()
        if late.is_set() and hasattr(found, "close"):
            found.close()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        return found

    done = in_thread(closed_if_late)
    try:
        return done.result(seconds)
    except TimeoutError:
        if done.done():
            raise
        late.set()
        raise TimeoutError(f"no whole answer within {seconds:g} s") from None


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Run `call` in a daemon thread, which process exit does not wait for; returns its future."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), daemon=True).start()
    return done


class Meter:
    """Checks the size and speed of a response as it arrives."""

    def __init__(self, most: int, *, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow at most `most` bytes in at most `seconds`, and require LEAST bytes in every WINDOW."""
        self._most, self._seconds, self._clock = most, seconds, clock
        self._began = self._since = clock()
        self._n = self._before = 0

    def add(self, n: int) -> None:
        """Record that `n` more bytes arrived.

        Raises:
            TooLong: when there are more bytes than allowed.
            TimeoutError: when the response is too slow or takes too long.
        """
        self._n += n
        if self._n > self._most:
            raise TooLong(f"more than {self._most:,} bytes came")
        now = self._clock()
        if now - self._began > self._seconds:
            raise TimeoutError(f"no whole answer within {self._seconds:g} s")
        if now - self._since > WINDOW:
            if self._n - self._before < LEAST:
                raise TimeoutError(f"{self._n - self._before:,} bytes in {now - self._since:.0f} s")
            self._since, self._before = now, self._n

    def whole(self, pieces: Iterable[bytes]) -> bytes:
        """Join the pieces of a response. Raises TooLong, TimeoutError like `add`, and whatever `pieces` raises."""
        found = bytearray()
        for piece in pieces:
            self.add(len(piece))
            found += piece
        return bytes(found)


def read_error(response: Any, pieces: Iterable[bytes]) -> None:
    """Set the body of an httpx or requests error response to its first ERROR bytes; they would read all of it."""
    found = bytearray()
    meter = Meter(ERROR, seconds=WINDOW)
    try:
        for piece in pieces:
            found += piece
            meter.add(len(piece))
    except (TooLong, OSError):
        pass
    response._content = bytes(found[:ERROR])


def masked(text: str, *keys: str) -> str:
    """Replace the API keys in a server's text by `[key]`, whether plain, URL-encoded or JSON-escaped."""
    for key in keys:
        if len(key) >= _SHORTEST_KEY:  # "none" and "EMPTY", used with self-hosted servers, are not secrets
            text = re.sub("".join(map(_written, key)), "[key]", text)
    return text


def _written(character: str) -> str:
    """A regular expression for every encoding of a character."""
    coded = "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
    return rf"(?:{re.escape(character)}|(?i:{coded}|{coded.replace('%', '%25')}|\\u{ord(character):04x}))"
