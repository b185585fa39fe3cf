"""What answers about plans, texts and results hold; the others are in `answers`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from saeflow.web.answers import Answer, ResultInfo


class PlanRow(Answer):
    """A step of a plan."""

    feature: str
    label: str
    value: float
    layer: int
    why: str


class PlanAnswer(Answer):
    """A plan, to keep as a file, and as rows."""

    plan: Annotated[dict[str, Any], Field(description="A plan's file, as `saeflow steer --plan` reads it.")]
    table: list[PlanRow]
    span: list[int] | None
    folded: bool
    notes: list[str]


class TokenInfo(Answer):
    """A token of a text."""

    text: str
    id: int


class Active(Answer):
    """A feature that fires on a token."""

    index: int
    value: float
    label: str


class TextAnswer(Answer):
    """Tokens of a text, and for each site and token the strongest features, strongest first."""

    tokens: list[TokenInfo]
    active: dict[str, list[list[Active]]]
    took_ms: float


class FileInfo(Answer):
    """A file of results: /results/{id}/files/{n}."""

    n: int
    name: str
    bytes: int


class ResultFiles(ResultInfo):
    """A results folder with the files it offers, and why it has none yet."""

    files: list[FileInfo]
    problem: str | None


class ResultsAnswer(Answer):
    """Results folders."""

    results: list[ResultFiles]
