"""Errors as responses: a status, what is wrong, what to do. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from saeflow.errors import (
    CorruptAtlas,
    MissingExtra,
    SaeflowError,
    UnknownFeature,
    UnknownRelease,
    UnknownSite,
    Unreachable,
)
from saeflow.web.responses import Problem

_SENTENCE: Final = re.compile(r"(?<=[.?!]) (?=[A-Z`])")
_DO: Final = {
    404: "Search for a feature that exists (/api/search).",
    422: "Correct the request; /api/openapi.json says what it may hold.",
}


class NoModel(SaeflowError):
    """A request needs a model, but the server was started without one."""

    def __init__(self, what: str) -> None:
        """`what` is the action that needs the model."""
        super().__init__(
            f"{what} needs the model, and none was named at the start. Start `saeflow serve` with --model MODEL."
        )


class Busy(SaeflowError):
    """Too many jobs wait for the model."""

    def __init__(self, jobs: int) -> None:
        """`jobs` is the number of jobs that run or wait."""
        super().__init__(f"the model has {jobs} jobs to do already. Wait for one to end, or leave it, and ask again.")


_STATUS: Final[tuple[tuple[type[SaeflowError], int], ...]] = (
    (UnknownSite, 404),
    (UnknownFeature, 404),
    (UnknownRelease, 404),
    (NoModel, 409),
    (Busy, 429),
    (MissingExtra, 501),
    (CorruptAtlas, 503),
    (Unreachable, 503),
)


def problem_of(error: SaeflowError) -> tuple[int, Problem]:
    """The HTTP status of an error, and its message split into what is wrong and what to do."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 422)
    return status, split(str(error), status)


def split(message: str, status: int) -> Problem:
    """Split a message in the style of `saeflow.errors`: its last sentence says what to do."""
    *before, last = _SENTENCE.split(message)
    if not before:
        return Problem(error=last, what_to_do=_DO.get(status, "Look at what the server printed."))
    return Problem(error=" ".join(before), what_to_do=last)


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """What pydantic found wrong with a request: one clause per location, at most three."""
    sentences: list[str] = []
    for error in errors[:3]:
        where = ".".join(str(step) for step in error["loc"][1:]) or str(error["loc"][0])
        value = ""
        if error["type"] not in ("missing", "json_invalid"):
            text = repr(error.get("input"))
            value = f", not {text if len(text) <= 60 else text[:57] + '...'}"
        sentences.append(f"{where}: {error['msg']}{value}")
    more = f" ({len(errors) - 3} more)" if len(errors) > 3 else ""
    return Problem(error="; ".join(sentences) + more + ".", what_to_do=_DO[422])
