"""`reproduction.json`: what a reproduction was asked for, on which machine, and how far each stage is. No torch.

A value that is missing or has the wrong type reads as empty, and a stage that cannot be read counts as not run. A
folder can only be resumed if its record has the digest of the recipe.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from saeflow.errors import BadFile
from saeflow.files import write_atomic
from saeflow.reading import read_json
from saeflow.reproduce.recipe import PaperStage

RECORD: Final = "reproduction.json"


class StageState(enum.StrEnum):
    """The progress of a stage, as written in `reproduction.json`."""

    DONE = "done"
    PARTIAL = "partial"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """The progress of a stage.

    Attributes:
        stage: the stage.
        items: the figures and tables it answers.
        state: done, begun, or not run.
        why: why it is not done, in words; "" if it is.
        seconds: wall-clock time, over all runs into the folder.
        cpu_seconds: processor time of this process, which unlike `seconds` does not depend on the load of the machine.
        peak_mb: peak memory of this process during the stage, in megabytes.
        made: the items that it was done for; empty for all of them.
    """

    stage: PaperStage
    items: tuple[str, ...]
    state: StageState = StageState.LEFT_OUT
    why: str = "not asked for"
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0
    made: tuple[str, ...] = ()

    def covers(self, only: Sequence[str]) -> bool:
        """Whether the stage is done for all requested items."""
        wanted = [item for item in only or self.items if item in self.items]
        return self.state is StageState.DONE and (not self.made or set(wanted) <= set(self.made))

    def done(self, only: Sequence[str]) -> StageRecord:
        """A copy marked as done: graphs for the requested items, any other stage for all of its items."""
        made: tuple[str, ...] = ()
        if only and self.stage is PaperStage.GRAPHS and (self.state is not StageState.DONE or self.made):
            made = tuple(item for item in self.items if item in only or item in self.made)
        return replace(self, state=StageState.DONE, why="", made=() if made == self.items else made)

    def to_dict(self) -> dict[str, Any]:
        """The record as written in `reproduction.json`."""
        folder = "" if self.stage is PaperStage.ATLAS else self.stage.value
        return {
            "name": self.stage.value,
            "folder": folder,
            "items": list(self.items),
            "state": self.state.value,
            "why": self.why,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "peak_mb": round(self.peak_mb),
            "made": list(self.made),
        }

    @staticmethod
    def of(row: Mapping[str, Any]) -> StageRecord:
        """The inverse of `to_dict`; a value that is missing or has the wrong type reads as empty.

        Raises:
            ValueError: when `row` does not name a stage.
        """

        def number(name: str) -> float:
            return float(row[name]) if isinstance(row.get(name), int | float) else 0.0

        def names(name: str) -> tuple[str, ...]:
            return tuple(map(str, row[name])) if isinstance(row.get(name), list) else ()

        state = StageState(row["state"]) if row.get("state") in [*StageState] else StageState.LEFT_OUT
        return StageRecord(
            PaperStage(row.get("name")),
            names("items"),
            state,
            str(row.get("why") or ""),
            number("seconds"),
            number("cpu_seconds"),
            number("peak_mb"),
            names("made"),
        )


@dataclass(frozen=True)
class Reproduction:
    """The folder of a reproduction, and its record.

    Attributes:
        folder: the folder.
        record: the content of `reproduction.json`, less the stages.
        stages: the record of each stage, in order.
    """

    folder: Path
    record: Mapping[str, Any]
    stages: Mapping[PaperStage, StageRecord] = field(default_factory=dict[PaperStage, StageRecord])

    @staticmethod
    def open(folder: Path | str) -> Reproduction:
        """Open the reproduction in a folder, finished or not.

        Raises:
            BadFile: when the record is missing or is not a JSON object.
        """
        path = Path(folder) / RECORD
        try:
            read = read_json(path)
            if not isinstance(read, dict):
                raise TypeError("not an object")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise Reproduction.unreadable(path, error) from None
        data = cast("dict[str, Any]", read)
        rows, stages = data.pop("stages", None), dict[PaperStage, StageRecord]()
        for row in cast("list[Any]", rows) if isinstance(rows, list) else []:
            if isinstance(row, dict) and row.get("name") in [*PaperStage]:
                one = StageRecord.of(cast("dict[str, Any]", row))
                stages[one.stage] = one
        return Reproduction(Path(folder), data, stages)

    @staticmethod
    def unreadable(path: Path, error: object) -> BadFile:
        """The error for a record that cannot be read."""
        return BadFile(
            f"{path} cannot be read as the record of a reproduction ({error}). Give the folder that `saeflow "
            "reproduce` wrote, or another one with --out."
        )

    def with_stage(self, changed: StageRecord) -> Reproduction:
        """A copy with a changed stage record, saved to the folder."""
        made = replace(self, stages={**self.stages, changed.stage: changed})
        made.save()
        return made

    def save(self) -> None:
        """Write the record, whole or not at all."""
        data = {**self.record, "stages": [self.stages[stage].to_dict() for stage in PaperStage]}
        write_atomic(self.folder / RECORD, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())

    @property
    def failed(self) -> list[StageRecord]:
        """The stages that were begun and are not done."""
        return [one for one in self.stages.values() if one.state is StageState.PARTIAL]

    def words(self, name: str) -> str:
        """A value of the record as text; "" if it is missing."""
        value = self.record.get(name)
        return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def group(self, name: str) -> dict[str, Any]:
        """A value of the record that is an object; empty if it is missing or not an object."""
        value = self.record.get(name)
        return dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else {}

    @property
    def unanswered(self) -> dict[str, str]:
        """The items that the recipe cannot answer, each with the reason."""
        return {item: str(why) for item, why in self.group("unanswered").items()}

    def missing(self, stage: str) -> str:
        """Why a stage has no results, or incomplete ones; "" if it is done."""
        known = next((one for one in self.stages.values() if one.stage == stage), None)
        if known is None:
            return f"The stage {stage} is not part of this run."
        if known.state is StageState.DONE:
            return ""
        why = f": {known.why.rstrip('.')}" if known.why else ""
        return f"The stage {stage} {'is not finished' if known.state is StageState.PARTIAL else 'was left out'}{why}."
