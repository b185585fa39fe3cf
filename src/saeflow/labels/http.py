"""Fetching over HTTP as a good guest: few requests, patience, and nothing lost when the connection is cut. No torch.

    get        a small answer, whole: retried after 429, 5xx, cut connections and time-outs
    download   a file: resumed where it was cut, if the server says that it is still the same file

A key goes in a header that is not sent on to another host, and appears in no message and no answer, even if a server
repeats it. An answer of `get` has at most 64 MB and must arrive within `whole` seconds; a file has the announced size,
or at most 64 GB, and must arrive at 1 KB per second or faster; a cut that brought less than 64 KB counts as an attempt.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from saeflow.errors import BadFile, Unreachable
from saeflow.files import file_lock, write_atomic
from saeflow.patience import LATER, STEP, Meter, TooLong, doubled, masked, retry_after, within
from saeflow.reading import read_json
from saeflow.version import __version__

T = TypeVar("T")

Received: TypeAlias = Callable[[int], None]
"""Called with the number of bytes of a file received so far."""

_CUT: Final = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
_PIECE: Final = 1 << 18
_MOST: Final = 64 << 20
"""Maximum bytes of an answer of `get`."""
_LARGEST: Final = 64 << 30
"""Maximum bytes of a file whose size was not announced."""
_HOUR: Final = 3600.0


class Fetcher:
    """A guest of one service: its key, its share of requests, its patience."""

    def __init__(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        per_hour: int | None = None,
        attempts: int = 6,
        timeout: float = 60.0,
        whole: float = 300.0,
        patience: float = 900.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the limits on requests and waiting.

        Args:
            headers: sent with each request to the address itself, but not to addresses it redirects to.
            per_hour: maximum requests in any 60 minutes; further ones wait.
            attempts: maximum attempts per request, when the service says "later" or does not answer.
            timeout: seconds without a byte after which an attempt is given up.
            whole: seconds allowed for a whole answer of `get`, and for the beginning of a file.
            patience: longest wait in seconds before another attempt, if the service asks for it.
            sleep: waits for some seconds; replaced in tests.
            clock: seconds on a monotonic clock.
        """
        self._headers = dict(headers or {})
        self._per_hour = per_hour
        self._attempts, self._timeout, self._patience = attempts, timeout, patience
        self._whole = whole
        self._sleep, self._clock = sleep, clock
        self._asked: deque[float] = deque()
        self._lock = threading.Lock()

    def get(self, url: str) -> bytes | None:
        """The answer of an address; None for a 404.

        Raises:
            Unreachable: when it refuses, or does not answer after all attempts.
        """
        return self._patiently(url, lambda: within(self._whole, lambda: self._get_once(url)))

    def download(self, url: str, path: Path, *, size: int | None = None, received: Received | None = None) -> None:
        """Fetch a file to `path`, whole or not at all; a piece left by an earlier call is resumed.

        Args:
            url: where the file is.
            path: where it goes. The piece lies next to it as `{name}.part`, with a note of what it is a piece of.
            size: expected bytes, if known.
            received: called after each piece.

        Raises:
            Unreachable: when the server refuses or does not answer after all attempts, or there is no such file.
            BadFile: when the file does not have the expected size.
        """
        part = path.with_name(f"{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path) as waited:
            if waited and path.is_file() and size in (None, path.stat().st_size):
                return  # another process fetched it meanwhile
            found = self._patiently(url, lambda: self._download_once(url, part, size, received))
            if found is None:
                raise Unreachable(f"{url} does not exist (404). Check the names, or fetch the list of files again.")
            here = part.stat().st_size
            if size is not None and here != size:
                _forget(part)
                raise BadFile(f"{url} has {here} bytes, and {size} were announced. Fetch again.")
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
            _forget(part)

    def _patiently(self, url: str, attempt: Callable[[], T]) -> T | None:
        """Make the attempts; one that makes progress resets the count."""
        failed = 0
        while True:
            try:
                self._take_turn()
                return attempt()
            except _Progress:
                failed = 0
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 404:
                    return None
                failed += 1
                if error.code not in LATER or failed == self._attempts:
                    raise self._refused(url, error.code) from None
                self._wait(url, failed, retry_after(error.headers))
            except _CUT as error:
                failed += 1
                if failed == self._attempts:
                    inner = getattr(error, "reason", None) or error
                    reason = self._masked(f"{type(inner).__name__}: {inner}".rstrip(": "))
                    raise Unreachable(
                        f"{url} does not answer ({reason}), {failed} times. Check the network, or work offline with "
                        "what is here."
                    ) from None
                self._wait(url, failed, None)

    def _take_turn(self) -> None:
        if self._per_hour is None:
            return
        with self._lock:
            now = self._clock()
            while self._asked and now - self._asked[0] >= _HOUR:
                self._asked.popleft()
            if len(self._asked) >= self._per_hour:
                self._sleep(_HOUR - (now - self._asked.popleft()))
                now = self._clock()
            self._asked.append(now)

    def _wait(self, url: str, failed: int, wanted: float | None) -> None:
        """Wait as long as the service asks, else 1, 2, 4… seconds."""
        if wanted is not None and wanted > self._patience:
            raise Unreachable(
                f"{url} asks to come back in {wanted:.0f} seconds. Try again then: what was fetched so far is kept."
            )
        self._sleep(doubled(failed, 1.0, 60.0) if wanted is None else wanted)

    def _refused(self, url: str, code: int) -> Unreachable:
        why = {
            401: "The key was not accepted: check NEURONPEDIA_API_KEY.",
            403: "It may not be read from here: check the address, and NEURONPEDIA_API_KEY if it needs one.",
            429: "Too many requests were made: try again later, what was fetched so far is kept.",
        }.get(code, "Try again later, or work offline with what is here.")
        return Unreachable(f"{url} answers {code}. {why}")

    def _request(self, url: str, extra: Mapping[str, str]) -> urllib.request.Request:
        if not url.startswith(("https://", "http://")):
            raise Unreachable(f"{url!r} is no web address. Give one that begins with https://.")
        request = urllib.request.Request(url, headers={"User-Agent": f"saeflow/{__version__}", **extra})  # noqa: S310
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        return request

    def _open(self, request: urllib.request.Request) -> Any:
        return urllib.request.urlopen(request, timeout=self._timeout)  # noqa: S310 - http and https only, see _request

    def _get_once(self, url: str) -> bytes:
        with self._open(self._request(url, {})) as answer:
            try:
                data = Meter(_MOST, seconds=self._whole).whole(_pieces(answer))
            except TooLong:
                raise Unreachable(f"{url} answers with more than {_MOST >> 20} MB. Check the address.") from None
            announced = answer.headers.get("Content-Length")
        if len(data) < (_length(announced) or 0):
            raise http.client.IncompleteRead(b"", (_length(announced) or 0) - len(data))
        return self._masked(data.decode("latin-1")).encode("latin-1")

    def _masked(self, text: str) -> str:
        """What a server said, with the key that was sent to it masked."""
        return masked(text, *self._headers.values())

    def _download_once(self, url: str, part: Path, size: int | None, received: Received | None) -> bool:
        before, sign = _left(part, url)
        extra = {"Range": f"bytes={before}-", "If-Range": sign} if before else {}
        try:
            answer = within(self._whole, lambda: self._open(self._request(url, extra)))
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # the piece is not the beginning of this file
                error.close()
                _forget(part)
                raise _Progress from None
            raise
        with answer:
            here = before if answer.status == 206 else 0
            if here and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {before}-"):
                _forget(part)
                raise http.client.HTTPException("another piece of the file came than the requested one")
            length = _length(answer.headers.get("Content-Length"))
            expected = None if length is None else here + length
            meter = Meter((_LARGEST if size is None else size) - here)
            # without an entity tag or a date, a download never resumes: the file may have changed
            tag = answer.headers.get("ETag", "")
            sign = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
            write_atomic(part.with_name(f"{part.name}.json"), json.dumps({"url": url, "sign": sign}).encode())
            try:
                with part.open("r+b" if here else "wb") as file:
                    file.seek(here)
                    file.truncate()
                    for piece in _pieces(answer):
                        meter.add(len(piece))
                        file.write(piece)
                        here += len(piece)
                        if received is not None:
                            received(here)
            except TooLong:
                _forget(part)
                raise BadFile(
                    f"{url} has more bytes than the {size or _LARGEST} that were announced. Fetch again."
                ) from None
            except _CUT:
                if here >= before + STEP and _left(part, url)[0]:
                    raise _Progress from None
                raise
        if expected is not None and here < expected:  # a cut that urllib did not report
            if here >= before + STEP and _left(part, url)[0]:
                raise _Progress
            raise http.client.IncompleteRead(b"", expected - here)
        return True


class _Progress(Exception):
    """The attempt made progress: new bytes came before a cut, or a piece of another file was discarded."""


def _left(part: Path, url: str) -> tuple[int, str]:
    """Size of the usable piece of the file, and the sign by which the server knows it; 0 and "" without one."""
    try:
        kept = read_json(part.with_name(f"{part.name}.json"))
        if kept["url"] == url and kept["sign"]:
            return part.stat().st_size, str(kept["sign"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ""


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _pieces(answer: Any) -> Iterator[bytes]:
    """What comes, as it comes: a read of a fixed length would wait for all of it."""
    while piece := answer.read1(_PIECE):
        yield piece


def _length(header: str | None) -> int | None:
    """The length in bytes that a header states; None if it states no valid one."""
    return int(header) if header and header.isdecimal() and len(header) < 19 else None
