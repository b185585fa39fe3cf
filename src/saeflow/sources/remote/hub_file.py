"""Which file of the hub is meant, pinned to a commit, and what is said when the hub refuses it."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from saeflow.errors import BadFile, Unreachable
from saeflow.files import is_inside
from saeflow.patience import LARGEST, within
from saeflow.version import __version__

TRANSPORT_ERRORS: Final[tuple[type[BaseException], ...]] = tuple(
    base for base in HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException")
)
"""The bases of what the HTTP library under huggingface_hub raises: httpx since 1.0, requests before."""
REFUSALS: Final = (OSError, HFValidationError, *TRANSPORT_ERRORS)
"""What asking the hub can raise."""
WHOLE: Final = 60.0
"""Seconds in which an answer about a file must be here, and a file must begin."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file at a commit: it cannot become another.

    Attributes:
        repo: the repository.
        file: its path in the repository.
        commit: the commit, 40 hexadecimal digits.
        etag: what the hub identifies its content by; the sha256 of a large file.
        size: in bytes.

    Raises:
        BadFile: when the commit is none, the path leaves the repository, or no file can have that size.
    """

    repo: str
    file: str
    commit: str
    etag: str
    size: int

    def __post_init__(self) -> None:
        """Refuse what a hub, or a file on disk, says and what cannot be: commit and path become part of a path."""
        name, commit = str(self.file)[:200], str(self.commit)[:60]
        sized = type(self.size) is int and 0 < self.size <= LARGEST
        if not (sized and is_commit(self.commit) and is_inside(self.file)):
            raise BadFile(
                f"{name!r} of {str(self.repo)[:200]!r} is said to be of commit {commit!r} "
                f"and to have {str(self.size)[:30]} bytes. A commit has 40 hexadecimal digits, and a file at most "
                f"{LARGEST:,} bytes. Check HF_ENDPOINT."
            )

    def __str__(self) -> str:
        """`layer_24/.../params.npz of google/gemma-scope-2b-pt-res`."""
        return f"{self.file} of {self.repo}"

    @property
    def url(self) -> str:
        """Where it is, at the commit, on the hub that HF_ENDPOINT names."""
        return hf_hub_url(self.repo, self.file, revision=self.commit, endpoint=constants.ENDPOINT)


def resolve(repo: str, file: str, revision: str) -> HubFile | None:
    """Ask the hub which file a revision means; None where it does not say enough to pin it.

    Raises:
        BadFile: when it says of a file what cannot be.
        TimeoutError, or another of REFUSALS, which `refused` puts into words.
    """
    url = hf_hub_url(repo, file, revision=revision, endpoint=constants.ENDPOINT)
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    client = {"library_name": "saeflow", "library_version": __version__}
    stated = within(WHOLE, partial(get_hf_file_metadata, url, timeout=timeout, **client))
    if not stated.commit_hash or not stated.etag or not stated.size:
        return None
    # raises BadFile for what cannot be
    return HubFile(repo, file, stated.commit_hash, stated.etag, stated.size)


def is_commit(text: object) -> bool:
    """Whether a text is a commit: 40 hexadecimal digits."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{40}", text) is not None


def request_headers() -> dict[str, str]:
    """What huggingface_hub itself sends: who asks, and the token of this machine where there is one."""
    return build_hf_headers(library_name="saeflow", library_version=__version__)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids all requests."""
    return bool(constants.HF_HUB_OFFLINE)


@cache
def hub_answers(endpoint: str) -> bool:
    """Whether a server answers at the hub's address within 3 seconds; asked once, and taken for granted behind a proxy.

    Libraries ask an address that does not answer again and again, for half a minute.
    """
    if getproxies():
        return True
    at = urlsplit(endpoint)
    try:
        socket.create_connection((at.hostname or "", at.port or (80 if at.scheme == "http" else 443)), 3).close()
    except OSError:
        return False
    return True


def reachable(repo: str, file: str = "") -> str:
    """A repository by its name, whose file the hub's cache holds, or whose hub answers.

    Raises:
        ConnectionError: for another.
    """
    here = file and isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str)
    if not here and not hub_answers(constants.ENDPOINT):
        raise ConnectionError(f"{constants.ENDPOINT} does not answer.")
    return repo


def refused(file: str, repo: str, error: BaseException, *, revision: str = "") -> Unreachable:
    """The error to raise for what the hub or the way to it answered, with the way in where there is one."""
    at = f" (revision {revision})" if revision else ""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
    return Unreachable(f"{file} of {repo}{at} cannot be fetched ({reason}). {_advice(repo, error)}")


def _advice(repo: str, error: BaseException) -> str:
    page = f"{constants.ENDPOINT}/{repo}"
    has_token = huggingface_hub.get_token() is not None
    token = "the token of this machine is not of an account that may" if has_token else "this machine has no token"
    login = "log in (hf auth login, or set HF_TOKEN)"
    code = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or code == 403:
        return f"The repository is gated, and {token}. Accept its conditions at {page}, then {login} and try again."
    if isinstance(error, RevisionNotFoundError | EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return f"There is no such file at this revision: see {page}, and correct the recipe."
    if isinstance(error, RepositoryNotFoundError) or code == 401:
        return f"The repository does not exist, or it is private and {token}: {login} with one that may read {page}."
    if isinstance(error, OfflineModeIsEnabled) or is_offline():
        return "HF_HUB_OFFLINE is set: unset it once to fetch the file, or pass a folder that holds it already."
    return (
        "Check the network and that your account may read the repository (hf auth login), or pass a folder "
        "that holds the file already."
    )


def strong_tag(headers: Mapping[str, str]) -> str:
    """The entity tag of an answer, where it promises the same bytes; empty otherwise."""
    tag = headers.get("ETag") or headers.get("etag") or ""
    return tag if tag.startswith('"') else ""
