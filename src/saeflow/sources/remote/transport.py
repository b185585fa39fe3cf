"""A range of a file over HTTP, through the session of huggingface_hub: its proxies, certificates and token.

The session follows the hub's redirect to another host, and sends the token to the hub alone. fsspec's
`HfFileSystem` reads ranges too, but takes a whole file that a server sends in place of a range for the range,
holds it in memory, and begins again after a cut; so the answers are read here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status

from saeflow.errors import Unreachable
from saeflow.sources.remote.hub_file import (
    TRANSPORT_ERRORS,
    HubFile,
    is_offline,
    refused,
    request_headers,
    strong_tag,
)

_SMALL: Final = 1 << 14
_LATER: Final = {408, 425, 429, 500, 502, 503, 504}
_CUT: Final = (*TRANSPORT_ERRORS, TimeoutError, ConnectionError)


class RangesIgnored(Exception):
    """The server sends whole files only, or others than were asked for."""


class Cut(Exception):
    """No answer, an answer that broke off, or one that says "later"."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        """`wait` is what the server asks for, in seconds."""
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Patience:
    """How often an attempt that brings nothing is made again, and how the time between is passed."""

    attempts: int = 5
    longest: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, file: HubFile, failed: int, cut: Cut) -> None:
        """Wait as long as the server asks, else 1, 2, 4... seconds.

        Raises:
            Unreachable: after the last attempt, or when the server asks for more than `longest`.
        """
        asked = cut.wait
        if failed >= self.attempts or (asked is not None and asked > self.longest):
            again = "" if asked is None else f" It asks to come back in {asked:.0f} seconds."
            raise Unreachable(
                f"{file} cannot be fetched: {cut}, {failed} times without a new byte.{again} What was fetched is kept: "
                "try again, and it goes on from there."
            )
        self.sleep(min(2.0 ** (failed - 1), self.longest) if asked is None else asked)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a range request brought: pieces of bytes, and the entity tag of the whole."""

    pieces: Iterator[bytes]
    tag: str


@contextmanager
def opened(file: HubFile, start: int, stop: int, *, tag: str = "") -> Generator[Answer]:
    """Bytes `start` to `stop` of a file; with a `tag` only if the file still has it.

    Raises:
        RangesIgnored: when the answer is the whole file, packed, or of another place.
        Cut: when there is no answer, it breaks off, or the server says to come later.
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
        response, pieces = _send(file.url, headers)
    except _CUT as error:
        raise Cut(f"no answer ({type(error).__name__}: {error})") from error
    try:
        _check(file, response, start)
        yield Answer(_steady(pieces), strong_tag(response.headers))
    finally:
        response.close()


def _send(url: str, headers: dict[str, str]) -> tuple[Any, Iterator[bytes]]:
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if hasattr(session, "build_request"):  # httpx
        request = session.build_request("GET", url, headers=headers, timeout=timeout)
        response = session.send(request, stream=True, follow_redirects=True)
        return response, response.iter_raw()  # as it comes: what waits for a full piece is lost in a kill
    response = session.get(url, headers=headers, stream=True, timeout=timeout, allow_redirects=True)
    return response, response.iter_content(_SMALL)


def _check(file: HubFile, response: Any, start: int) -> None:
    """Let through the answer that holds what was asked for.

    Raises:
        RangesIgnored, Cut, Unreachable: as `opened`.
    """
    status = int(response.status_code)
    if status in _LATER:
        after = str(response.headers.get("Retry-After", ""))
        raise Cut(f"the server answers {status}", float(after) if after.isdecimal() else None)
    if status >= 400 and status != 416:
        try:
            response.read() if hasattr(response, "read") else response.content
            hf_raise_for_status(response)
        except (OSError, *_CUT) as error:
            raise refused(file.file, file.repo, error, revision=file.commit) from error
    place = str(response.headers.get("Content-Range", ""))
    packed = response.headers.get("Content-Encoding", "identity") not in ("", "identity")
    if status != 206 or packed or not place.startswith(f"bytes {start}-"):
        raise RangesIgnored(f"{file}: answer {status}, {place or 'no Content-Range'}")
    if place.rpartition("/")[2] not in (str(file.size), "*"):
        raise RangesIgnored(f"{file}: {place}, where the hub says {file.size} bytes")


def _steady(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces, with whatever breaks them off as a Cut."""
    while True:
        try:
            piece = next(pieces, None)
        except (*_CUT, OSError) as error:
            raise Cut(f"the line was cut ({type(error).__name__}: {error})") from error
        if piece is None:
            return
        yield piece
