"""`reproduction.json` as a report reads it: what is missing or of another kind is a gap, never an error. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from saeflow.errors import BadFile
from saeflow.reading import read_json

FILE: Final = "reproduction.json"


@dataclass(frozen=True, slots=True)
class StageTold:
    """A stage as the record has it; `state` is "done", "partial" or "left out"."""

    name: str
    items: tuple[str, ...]
    state: str
    why: str
    seconds: float | None
    peak_mb: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a reproduction."""

    told: Mapping[str, Any]
    stages: tuple[StageTold, ...]

    @staticmethod
    def read(out: Path) -> Record:
        """From a folder.

        Raises:
            BadFile: when there is none, or it is no JSON object.
        """
        path = out / FILE
        try:
            told = read_json(path)
            if not isinstance(told, dict):
                raise TypeError("not an object")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise BadFile(
                f"{path} cannot be read as the record of a reproduction ({error}). Give the folder that `saeflow "
                "reproduce` wrote."
            ) from None
        data = cast("dict[str, Any]", told)
        rows = data.get("stages")
        stages = [_stage(row) for row in cast("list[Any]", rows)] if isinstance(rows, list) else []
        return Record(data, tuple(stages))

    def words(self, name: str) -> str:
        """A value as words; "" for a gap."""
        value = self.told.get(name)
        return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def group(self, name: str) -> dict[str, Any]:
        """A value that is an object; empty for a gap."""
        value = self.told.get(name)
        return dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else {}

    @property
    def unanswered(self) -> dict[str, str]:
        """Items that the recipe cannot answer, with the reason."""
        return {item: str(why) for item, why in self.group("unanswered").items()}

    def missing(self, stage: str) -> str:
        """Why a stage gives nothing, or not all; "" for one that is done."""
        told = next((one for one in self.stages if one.name == stage), None)
        if told is None:
            return f"The stage {stage} is not part of this run."
        if told.state == "done":
            return ""
        why = f": {told.why.rstrip('.')}" if told.why else ""
        how = "is not finished" if told.state == "partial" else "was left out"
        return f"The stage {stage} {how}{why}."


def _stage(row: Any) -> StageTold:
    told = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    items = told.get("items")
    return StageTold(
        str(told.get("name", "")),
        tuple(map(str, items)) if isinstance(items, list) else (),
        str(told.get("state", "left out")),
        str(told.get("why") or ""),
        _known(told.get("seconds")),
        _known(told.get("peak_mb")),
    )


def _known(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
