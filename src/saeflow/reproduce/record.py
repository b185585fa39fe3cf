"""`reproduction.json`: what a folder of a reproduction was asked, on what machine, and how far each stage is. No torch.

What is missing in a record, or of another kind, is a gap, and a stage that cannot be read counts as not run. To go on
with a folder its digest must be known.
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
    """How far a stage has come, as `reproduction.json` says it."""

    DONE = "done"
    PARTIAL = "partial"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """How far a stage is.

    Attributes:
        stage: which one.
        items: the figures and tables it answers.
        state: done, begun, or not run.
        why: in words, why it is not done; "" for one that is.
        seconds: it took, over all runs into the folder.
        cpu_seconds: of processors, in this process: what it takes of a machine that others use too.
        peak_mb: the most memory this process held during it, in megabytes.
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
        """Whether it is done for all that is asked for."""
        wanted = [item for item in only or self.items if item in self.items]
        return self.state is StageState.DONE and (not self.made or set(wanted) <= set(self.made))

    def done(self, only: Sequence[str]) -> StageRecord:
        """The same, done: of graphs those asked for, of any other stage all."""
        made: tuple[str, ...] = ()
        if only and self.stage is PaperStage.GRAPHS and (self.state is not StageState.DONE or self.made):
            made = tuple(item for item in self.items if item in only or item in self.made)
        return replace(self, state=StageState.DONE, why="", made=() if made == self.items else made)

    def to_dict(self) -> dict[str, Any]:
        """As `reproduction.json` holds it."""
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
        """The inverse of `to_dict`; what is missing or of another kind is a gap.

        Raises:
            ValueError: when it names no stage.
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
    """A folder of a reproduction, and its record.

    Attributes:
        folder: where it is.
        record: `reproduction.json`, less the stages.
        stages: each of them, in order.
    """

    folder: Path
    record: Mapping[str, Any]
    stages: Mapping[PaperStage, StageRecord] = field(default_factory=dict[PaperStage, StageRecord])

    @staticmethod
    def open(folder: Path | str) -> Reproduction:
        """The one in a folder, finished or not.

        Raises:
            BadFile: when there is none, or its record is no JSON object.
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
        """The error of a record that cannot be read."""
        return BadFile(
            f"{path} cannot be read as the record of a reproduction ({error}). Give the folder that `saeflow "
            "reproduce` wrote, or another one with --out."
        )

    def with_stage(self, changed: StageRecord) -> Reproduction:
        """The same with another record of a stage, written."""
        made = replace(self, stages={**self.stages, changed.stage: changed})
        made.save()
        return made

    def save(self) -> None:
        """Write the record, whole or not at all."""
        data = {**self.record, "stages": [self.stages[stage].to_dict() for stage in PaperStage]}
        write_atomic(self.folder / RECORD, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())

    @property
    def failed(self) -> list[StageRecord]:
        """Stages that were begun, or asked for, and are not done."""
        return [one for one in self.stages.values() if one.state is StageState.PARTIAL]

    def words(self, name: str) -> str:
        """A value as words; "" for a gap."""
        value = self.record.get(name)
        return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def group(self, name: str) -> dict[str, Any]:
        """A value that is an object; empty for a gap."""
        value = self.record.get(name)
        return dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else {}

    @property
    def unanswered(self) -> dict[str, str]:
        """Items that the recipe cannot answer, with the reason."""
        return {item: str(why) for item, why in self.group("unanswered").items()}

    def missing(self, stage: str) -> str:
        """Why a stage gives nothing, or not all; "" for one that is done."""
        known = next((one for one in self.stages.values() if one.stage == stage), None)
        if known is None:
            return f"The stage {stage} is not part of this run."
        if known.state is StageState.DONE:
            return ""
        why = f": {known.why.rstrip('.')}" if known.why else ""
        return f"The stage {stage} {'is not finished' if known.state is StageState.PARTIAL else 'was left out'}{why}."
