"""Asking a server as a guest should, and believing it no more than needed: every wait, answer and time has a limit.

Shared by what asks Neuronpedia (`labels.http`), a hub (`sources.remote`) and language models (`llm`).
Limits that a caller sets are arguments there; those of all are here.

    retry_after   how long a server asks to wait
    within        a call that must end in time, whatever a server does
    Meter         how long an answer may be, and how slow
    masked        a text without the keys that were sent
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
"""Statuses that say: not now."""
STEP: Final = 1 << 16
"""New bytes after which a download that is cut again and again has got on, and its attempts count anew."""
WINDOW: Final = 60.0
"""Seconds in which an answer must bring `LEAST` bytes; one that drips is cut."""
LEAST: Final = 1 << 16
ERROR: Final = 1 << 16
"""Bytes of an error's body that are read."""
LARGEST: Final = 1 << 50
"""Bytes of a file that a server may state."""

_SHORTEST_KEY: Final = 6


class TooLong(ValueError):
    """An answer of more bytes than it may have."""


class Headers(Protocol):
    """The headers of an answer, of whatever library; names in small letters where a mapping tells them apart."""

    def get(self, name: str, /) -> Any:
        """The value of a header."""
        ...


def retry_after(headers: Headers) -> float | None:
    """Seconds a server asks to wait, by `retry-after-ms` or `Retry-After` (seconds or a date); None without."""
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
    """Seconds before the next attempt after `failed` ones that no server set: first, twice as long, and so on."""
    return min(longest, first * 2.0 ** min(failed - 1, 60))


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns, or raises, where it ends in time; one that does not is left to a thread.

    Needed besides the time-outs of HTTP libraries, which begin anew with every byte: headers can drip for ever.

    Raises:
        TimeoutError: when it does not.
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
    """What a call will return, or raise, in a thread that the end of the process does not wait for."""
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
    """Counts an answer as it comes."""

    def __init__(self, most: int, *, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        """At most `most` bytes, in `seconds` at most, and LEAST of them in any WINDOW."""
        self._most, self._seconds, self._clock = most, seconds, clock
        self._began = self._since = clock()
        self._n = self._before = 0

    def add(self, n: int) -> None:
        """So many bytes more.

        Raises:
            TooLong: when that is more than may come.
            TimeoutError: when it is too slow.
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
        """All pieces of an answer in one. Raises TooLong, TimeoutError as `add`; and whatever breaks the pieces off."""
        found = bytearray()
        for piece in pieces:
            self.add(len(piece))
            found += piece
        return bytes(found)


def read_error(response: Any, pieces: Iterable[bytes]) -> None:
    """Have an error's response of httpx or requests hold the beginning of its body, which they would read whole."""
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
    """A text of others with the keys that were sent replaced by `[key]`, plain, URL-encoded or escaped as in JSON."""
    for key in keys:
        if len(key) >= _SHORTEST_KEY:  # "none" and "EMPTY", which servers of one's own take, are no secrets
            text = re.sub("".join(map(_written, key)), "[key]", text)
    return text


def _written(character: str) -> str:
    """A pattern for all ways to write a character."""
    coded = "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
    return rf"(?:{re.escape(character)}|(?i:{coded}|{coded.replace('%', '%25')}|\\u{ord(character):04x}))"
