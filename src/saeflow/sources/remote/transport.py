"""Fetch a range of a file over HTTP, through the session of huggingface_hub: its proxies, certificates and token.

The session follows the hub's redirect to another host, and sends the token only to the hub. fsspec's `HfFileSystem`
also reads ranges, but if a server sends the whole file instead, it takes that for the range; it holds the bytes in
memory, and starts over after a cut. So responses are read here instead.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status, tqdm

from saeflow.errors import BadFile, Unreachable
from saeflow.patience import LARGEST, LATER, Meter, TooLong, doubled, in_thread, read_error, retry_after, within
from saeflow.reading import JSON
from saeflow.sources.remote.hub_file import (
    REFUSALS,
    TRANSPORT_ERRORS,
    WHOLE,
    HubFile,
    is_offline,
    refused,
    request_headers,
    resolve,
    strong_tag,
)

_SMALL: Final = 1 << 14
_REDIRECTS: Final = 10
_SMALL_FILES: Final = (".json", ".yaml", ".yml", ".toml")
QUIET: Final = 300.0
"""Seconds without a new byte after which a download by huggingface_hub is abandoned."""
_CUT: Final = (*TRANSPORT_ERRORS, TimeoutError, ConnectionError)


class RangesIgnored(Exception):
    """The server sends only whole files, or another part than the requested one."""


class Cut(Exception):
    """There was no response, one that broke off, or one that asks to try later."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        """`wait` is how many seconds the server asks to wait."""
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Patience:
    """How many attempts in a row may bring nothing, the longest wait in seconds, and the function that waits."""

    attempts: int = 5
    longest: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, file: HubFile, failed: int, cut: Cut) -> None:
        """Wait as long as the server asks, else 1, 2, 4, ... seconds up to `longest`.

        Raises:
            Unreachable: after the last attempt, or when the server asks to wait more than `longest`.
        """
        wait = cut.wait
        if failed >= self.attempts or (wait is not None and wait > self.longest):
            again = "" if wait is None else f" It asks to come back in {wait:.0f} seconds."
            raise Unreachable(
                f"{file} cannot be fetched: {cut}, {failed} times without a new byte.{again} What was fetched is kept: "
                "try again, and it goes on from there."
            )
        self.sleep(doubled(failed, 1.0, self.longest) if wait is None else wait)


@dataclass(frozen=True, slots=True)
class RangeResponse:
    """The response to a range request: its bytes in pieces, and the strong entity tag of the whole file, if any."""

    pieces: Iterator[bytes]
    tag: str


@contextmanager
def opened(file: HubFile, start: int, stop: int, *, tag: str = "") -> Generator[RangeResponse]:
    """Open bytes `start` to `stop` - 1 of a file; if a `tag` is given, only if the file still has it.

    Raises:
        RangesIgnored: when the response is the whole file, compressed, or another range.
        Cut: when there is no response, it breaks off, or the server asks to try later.
        Unreachable: when the hub refuses, or HF_HUB_OFFLINE is set.
    """
    if is_offline():
        raise Unreachable(
            f"{file}: bytes {start} to {stop} are not on this machine, and HF_HUB_OFFLINE is set. Unset it once to "
            "fetch them, or pass a folder that holds the file."
        )
    headers = {
        **request_headers(),
        "Accept-Encoding": "identity",
        "Range": f"bytes={start}-{stop - 1}",
        **({"If-Range": tag} if tag else {}),
    }
    try:
        response, pieces = within(WHOLE, partial(_send, file.url, headers))
    except _CUT as error:
        raise Cut(f"no answer ({type(error).__name__}: {error})") from error
    try:
        _check(file, response, pieces, start)
        yield RangeResponse(_steady(pieces, stop - start), strong_tag(response.headers))
    finally:
        response.close()


def fetch_whole(repo: str, file: str, revision: str) -> Path:
    """The path of a whole file in the hub's own cache, downloaded by huggingface_hub if it is not there.

    The hub's metadata are checked first, since they become part of a path. The download is abandoned when it brings
    more bytes than the hub stated, or none for QUIET seconds, however long the hub asks to wait.

    Raises:
        BadFile: when the hub's metadata are impossible, or state too large a .json, .yaml, .yml or .toml file.
        One of REFUSALS: when the file cannot be fetched.
    """
    most = LARGEST
    if not isinstance(huggingface_hub.try_to_load_from_cache(repo, file, revision=revision), str):
        with suppress(*REFUSALS):  # the download below fails with the same reason
            stated = resolve(repo, file, revision)
            most = LARGEST if stated is None else stated.size
        if JSON < most < LARGEST and file.endswith(_SMALL_FILES):
            raise BadFile(f"{file} of {repo} has {most:,} bytes, and at most {JSON:,} are read. Check HF_ENDPOINT.")
    moved = threading.Event()

    class Bar(tqdm):  # the only way to learn from huggingface_hub how many bytes have come
        def update(self, n: float | None = 1) -> bool | None:
            moved.set()
            if self.n + (n or 0) > most:
                raise OSError(f"more than the {most:,} bytes came that the hub stated")
            return super().update(n)

    # before version 1 huggingface_hub takes no such class, and the download is simply waited for
    tells = "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters
    bar: dict[str, Any] = {"tqdm_class": Bar} if tells else {}

    def fetch() -> str:
        return huggingface_hub.hf_hub_download(repo, file, revision=revision, **bar)

    fetched = in_thread(fetch)
    while True:
        try:
            return Path(fetched.result(QUIET if tells else None))
        except TimeoutError:
            if fetched.done():
                raise
            if not moved.is_set():
                raise TimeoutError(f"no byte came in {QUIET:g} s") from None
            moved.clear()


def _send(url: str, headers: dict[str, str]) -> tuple[Any, Iterator[bytes]]:
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    httpx = hasattr(session, "build_request")
    if httpx:
        request = session.build_request("GET", url, headers=headers, timeout=timeout)
        send, following = partial(session.send, stream=True, follow_redirects=False), "next_request"
    else:
        request = session.prepare_request(import_module("requests").Request("GET", url, headers=headers))
        options = session.merge_environment_settings(url, {}, True, None, None)
        send, following = partial(session.send, **options, timeout=timeout, allow_redirects=False), "next"
    for _ in range(_REDIRECTS):
        response = send(request)
        request = getattr(response, following)
        if request is None:
            # read bytes as they come: any held back to fill a larger piece would be lost in a kill
            return response, response.iter_raw() if httpx else response.iter_content(_SMALL)
        response.close()  # when following redirects themselves, both libraries would read the whole body first
    raise ConnectionError(f"{url} leads on more than {_REDIRECTS} times")


def _check(file: HubFile, response: Any, pieces: Iterator[bytes], start: int) -> None:
    """Check that a response holds the requested range. Raises RangesIgnored, Cut, Unreachable as `opened` does."""
    status = int(response.status_code)
    if status in LATER:
        raise Cut(f"the server answers {status}", retry_after(response.headers))
    if status >= 400 and status != 416:
        try:
            read_error(response, pieces)
            hf_raise_for_status(response)
        except (OSError, *_CUT) as error:
            raise refused(file.file, file.repo, error, revision=file.commit) from error
    place = str(response.headers.get("Content-Range", ""))
    packed = response.headers.get("Content-Encoding", "identity") not in ("", "identity")
    if status != 206 or packed or not place.startswith(f"bytes {start}-"):
        raise RangesIgnored(f"{file}: answer {status}, {place or 'no Content-Range'}")
    if place.rpartition("/")[2] not in (str(file.size), "*"):
        raise RangesIgnored(f"{file}: {place}, where the hub says {file.size} bytes")


def _steady(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the pieces, raising Cut when they break off, exceed the size, or come too slowly."""
    meter = Meter(size)
    while True:
        try:
            piece = next(pieces, None)
            meter.add(len(piece or b""))
        except (*_CUT, OSError, TooLong) as error:
            raise Cut(f"the line was cut ({type(error).__name__}: {error})") from error
        if piece is None:
            return
        yield piece
