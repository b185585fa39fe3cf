"""Run a reproduction: its stages in order, each resumed where it stopped, and the record of what was done.

    OUT/reproduction.json   what was asked, on what machine, how far each stage is; written anew at every step
    OUT/graphs, origins, deactivation, steering, transition
    OUT/index.html          the report

A folder belongs to one recipe: the same one, asked for other figures, adds to it. A stage that ends in an error of its
own (no network, an extra that is not installed) is noted with the error, and the others are run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from saeflow.errors import BadFile, InvalidArgument, NoSpace, NotWritable, SaeflowError
from saeflow.experiments.inputs import Bars, Note
from saeflow.experiments.results import versions
from saeflow.files import write_atomic
from saeflow.reading import read_json
from saeflow.reproduce.machine import hardware, peak_memory, reset_peak
from saeflow.reproduce.recipe import Recipe
from saeflow.reproduce.revisions import revisions
from saeflow.reproduce.stages import Stage, State, items_of, order, stages_for
from saeflow.reproduce.work import WORK, Place, Settings

RECORD: Final = "reproduction.json"


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
        made: the items that it was done for; none for all.
    """

    stage: Stage
    items: tuple[str, ...]
    state: State = State.LEFT_OUT
    why: str = "not asked for"
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0
    made: tuple[str, ...] = ()

    def covers(self, only: Sequence[str]) -> bool:
        """Whether it is done for all that is asked for."""
        wanted = [item for item in only or self.items if item in self.items]
        return self.state is State.DONE and (not self.made or set(wanted) <= set(self.made))

    def done(self, only: Sequence[str]) -> StageRecord:
        """The same, done: of graphs those asked for, of any other stage all."""
        made: tuple[str, ...] = ()
        if only and self.stage is Stage.GRAPHS and (self.state is not State.DONE or self.made):
            made = tuple(item for item in self.items if item in only or item in self.made)
        return replace(self, state=State.DONE, why="", made=() if made == self.items else made)

    def to_dict(self) -> dict[str, Any]:
        """As `reproduction.json` holds it."""
        folder = "" if self.stage is Stage.ATLAS else self.stage.value
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
    def of(told: Mapping[str, Any]) -> StageRecord:
        """The inverse of `to_dict`."""
        return StageRecord(
            Stage(told["name"]),
            tuple(told["items"]),
            State(told["state"]),
            str(told["why"]),
            float(told["seconds"]),
            float(told["cpu_seconds"]),
            float(told["peak_mb"]),
            tuple(told["made"]),
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
    stages: Mapping[Stage, StageRecord] = field(default_factory=dict[Stage, StageRecord])

    @staticmethod
    def open(folder: Path | str) -> Reproduction:
        """The one in a folder, finished or not.

        Raises:
            BadFile: when there is none, or its record cannot be read.
        """
        path = Path(folder) / RECORD
        try:
            told = read_json(path)
            stages = [StageRecord.of(one) for one in told.pop("stages")]
            if not isinstance(told["arguments"], dict) or not isinstance(told["digest"], str):
                raise TypeError("arguments or digest are of another kind")
            return Reproduction(Path(folder), told, {one.stage: one for one in stages})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadFile(
                f"{path} cannot be read as the record of a reproduction ({error!r}). Give the folder that `saeflow "
                "reproduce` wrote, or another one with --out."
            ) from None

    @staticmethod
    def start(recipe: Recipe, out: Path | str, only: Sequence[str], settings: Settings) -> Reproduction:
        """A new folder, or the one there is when it belongs to the same recipe.

        Raises:
            InvalidArgument: when it belongs to another recipe, or the same in other sizes.
            BadFile: when its record cannot be read.
        """
        folder = Path(out)
        there = Reproduction.open(folder) if (folder / RECORD).is_file() else None
        if there is not None and there.record["digest"] != recipe.digest:
            raise InvalidArgument(
                f"{folder} holds a reproduction of {there.record.get('recipe')!r} that differs from the recipe "
                f"{recipe.name!r}. Give another folder with --out."
            )
        begun = there.record["started"] if there else _now()
        stages = there.stages if there else {}
        before = there.record["only"] if there else list(only)
        # of two runs into a folder, one of everything: everything was asked for
        asked = sorted({*before, *only}, key=order) if before and only else []
        told = {
            "recipe": recipe.name,
            "title": recipe.title,
            "note": recipe.note,
            "release": recipe.release,
            "model": recipe.model,
            "revisions": revisions(recipe),
            "seed": recipe.seed,
            "versions": versions(),
            "hardware": hardware(settings.device),
            "only": asked,
            "started": begun,
            "finished": None,
            "unanswered": dict(recipe.unanswered),
            "digest": recipe.digest,
            "arguments": {**settings.told(recipe), **_sizes(recipe)},
        }
        return Reproduction(folder, told, {stage: _record(recipe, stage, stages.get(stage)) for stage in Stage})

    def with_stage(self, changed: StageRecord) -> Reproduction:
        """The same with another record of a stage, written."""
        made = replace(self, stages={**self.stages, changed.stage: changed})
        made.save()
        return made

    def save(self) -> None:
        """Write the record, whole or not at all."""
        told = {**self.record, "stages": [self.stages[stage].to_dict() for stage in Stage]}
        write_atomic(self.folder / RECORD, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())

    @property
    def failed(self) -> list[StageRecord]:
        """Stages that were begun, or asked for, and are not done."""
        return [one for one in self.stages.values() if one.state is State.PARTIAL]


def reproduce(
    recipe: Recipe,
    out: Path | str,
    *,
    only: Sequence[str] = (),
    settings: Settings | None = None,
    bars: Bars | None = None,
    note: Note | None = None,
) -> Reproduction:
    """Run a recipe into a folder and write its report; one that was killed goes on where it stopped.

    Args:
        recipe: from `open_recipe`.
        out: the folder.
        only: figures and tables from `parse_only`; all when empty.
        settings: device, judge, engine.
        bars: makes the progress of a step by its name.
        note: takes remarks for people.

    Returns:
        The folder and its record; `failed` names the stages that could not be run.

    Raises:
        InvalidArgument: when the folder belongs to another recipe.
        BadFile: when its record cannot be read.
        NoSpace, NotWritable: when it cannot be written.
    """
    from saeflow.reproduce.report import write_report

    chosen = settings or Settings()
    place = Place(recipe, Path(out), chosen, bars, note, tuple(only))
    run = Reproduction.start(recipe, out, only, chosen)
    run.save()
    for stage in stages_for(recipe, only):
        record = run.stages[stage]
        if record.covers(only) and not _again(run.folder, stage, chosen):
            continue
        run = run.with_stage(replace(record, state=State.PARTIAL, why="begun, and not ended"))
        run = run.with_stage(_done(place, run.stages[stage]))
    run = replace(run, record={**run.record, "finished": None if run.failed else _now()})
    run.save()
    write_report(run.folder)
    return run


def _again(folder: Path, stage: Stage, settings: Settings) -> bool:
    """Whether a stage that is done is called once more; what is there, it keeps.

    The atlas lies outside the folder and may be gone; another judge reads the texts there are.
    """
    if stage is Stage.ATLAS or not (folder / stage.value).is_dir():
        return True
    return stage is Stage.STEERING and bool(settings.judge)


def _done(place: Place, record: StageRecord) -> StageRecord:
    """Run a stage; what it ends in, with the time and the memory it took."""
    reset_peak()
    began, worked = time.monotonic(), time.process_time()
    try:
        WORK[record.stage](place)
        ended = record.done(place.only)
    except (NoSpace, NotWritable):
        raise  # no other stage could write either
    except SaeflowError as error:
        if place.note:
            place.note(f"{record.stage.value}: {error}")
        ended = replace(record, why=str(error))
    return replace(
        ended,
        seconds=record.seconds + time.monotonic() - began,
        cpu_seconds=record.cpu_seconds + time.process_time() - worked,
        peak_mb=max(record.peak_mb, peak_memory()),
    )


def _record(recipe: Recipe, stage: Stage, there: StageRecord | None) -> StageRecord:
    """What was known of a stage, or that it was not run."""
    if there is not None:
        return there
    items = items_of(recipe, stage)
    if stage in recipe.sizes:
        return StageRecord(stage, items)
    return StageRecord(stage, items, why="the recipe has no such stage")


def _sizes(recipe: Recipe) -> dict[str, Any]:
    return {stage.value: dict(size) for stage, size in recipe.sizes.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
