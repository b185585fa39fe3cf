"""A file on the hub, pinned to a commit, and the error messages for when the hub refuses it."""

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
"""The base classes of errors from the HTTP library under huggingface_hub: httpx since 1.0, requests before."""
REFUSALS: Final = (OSError, HFValidationError, *TRANSPORT_ERRORS)
"""The errors that a request to the hub can raise."""
WHOLE: Final = 60.0
"""Seconds within which metadata of a file must have arrived in full, and a download must have begun."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file at a commit, whose content therefore cannot change.

    Attributes:
        repo: the repository.
        file: its path in the repository.
        commit: the commit, 40 hexadecimal digits.
        etag: the tag by which the hub identifies its content; for a large file, the sha256.
        size: in bytes.

    Raises:
        BadFile: when the commit is not one, the path leaves the repository, or the size is impossible.
    """

    repo: str
    file: str
    commit: str
    etag: str
    size: int

    def __post_init__(self) -> None:
        """Refuse impossible values from a hub or a file on disk: commit and path become part of a local path."""
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
        """The file's URL, at the commit, on the hub that HF_ENDPOINT names."""
        return hf_hub_url(self.repo, self.file, revision=self.commit, endpoint=constants.ENDPOINT)


def resolve(repo: str, file: str, revision: str) -> HubFile | None:
    """Ask the hub which file a revision stands for; None if the answer does not suffice to pin it to a commit.

    Raises:
        BadFile: when the hub's answer is impossible.
        TimeoutError, or another of REFUSALS, which `refused` turns into an error message.
    """
    url = hf_hub_url(repo, file, revision=revision, endpoint=constants.ENDPOINT)
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    client = {"library_name": "saeflow", "library_version": __version__}
    stated = within(WHOLE, partial(get_hf_file_metadata, url, timeout=timeout, **client))
    if not stated.commit_hash or not stated.etag or not stated.size:
        return None
    return HubFile(repo, file, stated.commit_hash, stated.etag, stated.size)


def is_commit(text: object) -> bool:
    """Whether a text is a commit: 40 hexadecimal digits."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{40}", text) is not None


def request_headers() -> dict[str, str]:
    """The headers that huggingface_hub itself sends: the user agent, and this machine's token if it has one."""
    return build_hf_headers(library_name="saeflow", library_version=__version__)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids all requests."""
    return bool(constants.HF_HUB_OFFLINE)


@cache
def hub_answers(endpoint: str) -> bool:
    """Whether a server answers at the hub's address within 3 seconds; tried once, and assumed behind a proxy.

    Without this check, libraries retry an address that does not answer for half a minute.
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
    """Return `repo` if the hub's cache holds its `file`, or else if the hub answers.

    Raises:
        ConnectionError: when neither is the case.
    """
    here = file and isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str)
    if not here and not hub_answers(constants.ENDPOINT):
        raise ConnectionError(f"{constants.ENDPOINT} does not answer.")
    return repo


def refused(file: str, repo: str, error: BaseException, *, revision: str = "") -> Unreachable:
    """The error to raise when the hub, or the network on the way to it, refuses a file, with advice on what to do."""
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
    """The entity tag of a response if it is a strong one, which promises identical bytes; empty otherwise."""
    tag = headers.get("ETag") or headers.get("etag") or ""
    return tag if tag.startswith('"') else ""
