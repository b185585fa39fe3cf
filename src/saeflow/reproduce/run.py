"""Run a reproduction: its stages in order, each resumed where it stopped, and the record of what was done.

    OUT/reproduction.json   what was asked for, on which machine, how far each stage is; rewritten after every step
    OUT/graphs, origins, deactivation, steering, transition
    OUT/index.html          the report

A stage calls the same functions as the command of its experiment: it writes the same files and resumes a killed run. A
folder belongs to one recipe; running the recipe again for other figures adds to the folder. If a stage fails with an
error of saeflow (no network, an extra that is not installed), the error is recorded and the other stages still run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saeflow.errors import InvalidArgument, NoSpace, NotWritable, SaeflowError, UnknownRelease
from saeflow.experiments.deactivation_tables import summarize_deactivation
from saeflow.experiments.inputs import Bars, Inputs, Note, deactivation, model_name, origins
from saeflow.experiments.origins_tables import summarize_origins
from saeflow.experiments.results import utc_now, versions
from saeflow.experiments.settings import DeactivationSize, InputNames, OriginsSize, TransitionSize
from saeflow.experiments.transition.run import transition
from saeflow.experiments.transition.tables import summarize_transition
from saeflow.ids import Part
from saeflow.matching.atlas import atlas_folder, open_atlas
from saeflow.matching.build import build_atlas
from saeflow.matching.calibration import calibrate
from saeflow.paper.results import write_page
from saeflow.reproduce.graphs import make_graphs
from saeflow.reproduce.machine import hardware, peak_memory, reset_peak, revisions
from saeflow.reproduce.recipe import PaperStage, Recipe, order
from saeflow.reproduce.record import RECORD, Reproduction, StageRecord, StageState
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.inputs import background_texts, find_themes, judge_maker, open_inputs
from saeflow.steering.sweep.run import Design, run_sweep
from saeflow.steering.sweep.settings import Grid, Variant
from saeflow.steering.sweep.summary import summarize_sweep

if TYPE_CHECKING:
    from saeflow.engines import Engine


_ENGINES: Final = {"Pool": "pool", "Cluster": "ray"}


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of a run that may differ between two runs of one recipe into one folder.

    Attributes:
        device: where to compute.
        judge: the judge of steered texts, "offline" or "llm"; "" for the recipe's.
        judge_model: the name of the llm; "" for the recipe's.
        judge_url: the address of the llm; "" for OpenAI.
        engine: where units run.
    """

    device: str = "cpu"
    judge: str = ""
    judge_model: str = ""
    judge_url: str = ""
    engine: Engine | None = None

    def judge_of(self, recipe: Recipe) -> tuple[str, str]:
        """The kind of judge, and the name of the llm; "" for the offline judge."""
        size = recipe.sizes.get(PaperStage.STEERING, {})
        kind = self.judge or size.get("judge", "offline")
        return kind, (self.judge_model or size.get("judge_model", "")) if kind == "llm" else ""

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """The settings as written in `reproduction.json`, without the judge's address, which may be private."""
        engine = _ENGINES.get(type(self.engine).__name__, "here")
        return {"device": self.device, "judge": " ".join(filter(None, self.judge_of(recipe))), "engine": engine}


@dataclass(frozen=True)
class RunContext:
    """What every stage of a run needs to know.

    Attributes:
        recipe: the recipe to run.
        out: the folder of the reproduction.
        settings: device, judge and engine.
        bars: makes a progress callback from the name of a step.
        note: called with remarks for the user.
        only: the requested figures and tables; all when empty.
    """

    recipe: Recipe
    out: Path
    settings: RunSettings = field(default_factory=RunSettings)
    bars: Bars | None = None
    note: Note | None = None
    only: tuple[str, ...] = ()

    def opening(self, stage: PaperStage) -> InputNames:
        """The names that a stage opens."""
        recipe, size = self.recipe, self.recipe.sizes[stage]
        return InputNames(
            recipe.release,
            recipe.model,
            device=self.settings.device,
            layers=tuple(size.get("layers", ())),
            datasets=recipe.datasets(stage),
            pearson_datasets=tuple(size.get("fitted", ())),
            seed=recipe.seed,
        )

    def given(self, stage: PaperStage, settings: Any) -> dict[str, Any]:
        """The values that the recipe gives for the fields of the dataclass `settings`."""
        size = self.recipe.sizes[stage]
        known = {one.name: size[one.name] for one in fields(settings) if one.name in size}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}

    def into(self, stage: PaperStage) -> dict[str, Any]:
        """Keyword arguments common to the experiments: output folder, progress and engine."""
        return {"out": self.out / stage.value, "bars": self.bars, "engine": self.settings.engine}

    def dictionaries(self) -> DictionarySet:
        """The dictionaries of the release; their tensors are not read yet."""
        return load_dictionaries(self.recipe.release, device=self.settings.device)

    def projector(self, dictionaries: DictionarySet) -> LanguageModel | None:
        """The model if matching needs it, else None."""
        if not self.recipe.projects:
            return None
        named = model_name(self.recipe.release, dictionaries, self.recipe.model)
        return load_model(named, device=self.settings.device)


def _atlas(context: RunContext) -> None:
    """Build the atlas if it does not exist yet, and calibrate it if the recipe says so."""
    release, null = context.recipe.release, context.recipe.sizes[PaperStage.ATLAS].get("null", "")
    try:
        atlas = open_atlas(release)
    except UnknownRelease:
        dictionaries = context.dictionaries()
        atlas = build_atlas(
            dictionaries,
            out=atlas_folder(release),
            release=dictionaries.name,
            model=dictionaries.model,
            projector=context.projector(dictionaries),
            engine=context.settings.engine,
            progress=context.bars and context.bars("matching"),
        )
    if null and atlas.calibration is None:
        dictionaries = context.dictionaries()
        calibrate(
            dictionaries,
            atlas,
            null=null,
            projector=context.projector(dictionaries),
            seed=context.recipe.seed,
            progress=context.bars and context.bars("calibrating"),
        )


def _graphs(context: RunContext) -> None:
    out, device = context.out / "graphs", context.settings.device
    make_graphs(context.recipe, out, device=device, only=frozenset(context.only))


def _origins(context: RunContext) -> None:
    inputs = Inputs.open(context.opening(PaperStage.ORIGINS), first=0)
    size = OriginsSize(**context.given(PaperStage.ORIGINS, OriginsSize))
    results = origins(inputs, size, note=context.note, **context.into(PaperStage.ORIGINS))
    summarize_origins(results)
    write_page(results.folder)


def _deactivation(context: RunContext) -> None:
    inputs = Inputs.open(context.opening(PaperStage.DEACTIVATION), first=1)
    size = DeactivationSize(**context.given(PaperStage.DEACTIVATION, DeactivationSize))
    results = deactivation(inputs, size, note=context.note, **context.into(PaperStage.DEACTIVATION))
    summarize_deactivation(results)
    write_page(results.folder)


def _steering(context: RunContext) -> None:
    recipe, settings, size = context.recipe, context.settings, context.recipe.sizes[PaperStage.STEERING]
    themes = find_themes(size.get("themes", ()), recipe.release)
    background = background_texts(size.get("background", ()), recipe.release, recipe.seed)
    kind, model = settings.judge_of(recipe)
    make = judge_maker(kind, model, settings.judge_url, background)
    coefficients: dict[str, Any] = {
        name: tuple(size[key]) for key, name in (("s", "activate"), ("r", "suppress")) if key in size
    }
    grid = Grid(**{**context.given(PaperStage.STEERING, Grid), **coefficients})
    directions = tuple(SteeringDirection(one) for one in size.get("directions", tuple(SteeringDirection)))
    parts = tuple(Part(part) for part in size.get("parts", tuple(Part)))
    variant = Variant(parts=tuple(part for part in Part if part in parts))
    design = Design(tuple(themes), directions, grid, variant, recipe.seed)
    batch, atlas = size.get("batch", 256), open_atlas(recipe.release)
    inputs = open_inputs(recipe.release, atlas, background, model=recipe.model, device=settings.device, batch=batch)
    into = context.out / PaperStage.STEERING.value
    results, _ = run_sweep(inputs, design, make, out=into, progress=context.bars, engine=settings.engine)
    summarize_sweep(results.folder)
    write_page(results.folder)


def _transition(context: RunContext) -> None:
    given = context.given(PaperStage.TRANSITION, TransitionSize)
    if "k" in given:
        given["k"] = tuple(None if k == "all" else int(k) for k in given["k"])
    names = context.opening(PaperStage.TRANSITION)
    results = transition(names, TransitionSize(**given), **context.into(PaperStage.TRANSITION))
    summarize_transition(results)
    write_page(results.folder)


_STAGES: Final[Mapping[PaperStage, Callable[[RunContext], None]]] = {
    PaperStage.ATLAS: _atlas,
    PaperStage.GRAPHS: _graphs,
    PaperStage.ORIGINS: _origins,
    PaperStage.DEACTIVATION: _deactivation,
    PaperStage.STEERING: _steering,
    PaperStage.TRANSITION: _transition,
}
"""The function that runs each stage."""


def start(recipe: Recipe, out: Path | str, only: Sequence[str], settings: RunSettings) -> Reproduction:
    """Start a record for a new folder, or continue the existing one of the same recipe; writes nothing.

    Raises:
        InvalidArgument: when the folder belongs to another recipe, or to the same one with other sizes.
        BadFile: when its record cannot be read.
    """
    folder = Path(out)
    there = Reproduction.open(folder) if (folder / RECORD).is_file() else None
    before, begun = list(only), utc_now()
    if there is not None:
        if not isinstance(there.record.get("digest"), str):
            raise Reproduction.unreadable(folder / RECORD, "it has no digest")
        if there.record["digest"] != recipe.digest:
            raise InvalidArgument(
                f"{folder} holds a reproduction of {there.record.get('recipe')!r} that differs from the recipe "
                f"{recipe.name!r}. Give another folder with --out."
            )
        before, begun = there.record.get("only") or [], there.words("started") or begun
    record = {
        "recipe": recipe.name,
        "title": recipe.title,
        "note": recipe.note,
        "release": recipe.release,
        "model": recipe.model,
        "revisions": revisions(recipe),
        "seed": recipe.seed,
        "versions": versions(),
        "hardware": hardware(settings.device),
        # once a run without --only used this folder, "only" stays empty: everything is wanted
        "only": sorted({*before, *only}, key=order) if before and only else [],
        "started": begun,
        "finished": None,
        "unanswered": dict(recipe.unanswered),
        "digest": recipe.digest,
        "arguments": {
            **settings.arguments(recipe),
            **{stage.value: dict(size) for stage, size in recipe.sizes.items()},
        },
    }
    stages = dict(there.stages) if there else {}
    for stage in PaperStage:
        why = "not asked for" if stage in recipe.sizes else "the recipe has no such stage"
        stages.setdefault(stage, StageRecord(stage, recipe.items(stage), why=why))
    return Reproduction(folder, record, {stage: stages[stage] for stage in PaperStage})


def reproduce(
    recipe: Recipe,
    out: Path | str,
    *,
    only: Sequence[str] = (),
    settings: RunSettings | None = None,
    bars: Bars | None = None,
    note: Note | None = None,
) -> Reproduction:
    """Run a recipe into a folder and write its report; a killed run resumes where it stopped.

    Args:
        recipe: a recipe from `open_recipe`.
        out: the folder.
        only: figures and tables from `Recipe.parse_only`; all when empty.
        settings: device, judge, engine.
        bars: makes a progress callback from the name of a step.
        note: called with remarks for the user.

    Returns:
        The folder and its record; `failed` lists the stages that could not be completed.

    Raises:
        InvalidArgument: when the folder belongs to another recipe.
        BadFile: when its record cannot be read.
        NoSpace, NotWritable: when the folder cannot be written.
    """
    from saeflow.reproduce.report import write_report

    chosen = settings or RunSettings()
    context = RunContext(recipe, Path(out), chosen, bars, note, tuple(only))
    run = start(recipe, out, only, chosen)
    run.save()
    for stage in recipe.stages_for(only):
        record = run.stages[stage]
        if record.covers(only) and not _again(run.folder, stage, chosen):
            continue
        run = run.with_stage(replace(record, state=StageState.PARTIAL, why="begun, and not ended"))
        run = run.with_stage(_done(context, run.stages[stage]))
    run = replace(run, record={**run.record, "finished": None if run.failed else utc_now()})
    run.save()
    write_report(run.folder)
    return run


def _again(folder: Path, stage: PaperStage, settings: RunSettings) -> bool:
    """Whether a stage recorded as done is called again; it keeps its existing results.

    The atlas is outside the folder and may be gone, a stage's folder may have been deleted, and another judge has to
    score the existing texts.
    """
    if stage is PaperStage.ATLAS or not (folder / stage.value).is_dir():
        return True
    return stage is PaperStage.STEERING and bool(settings.judge)


def _done(context: RunContext, record: StageRecord) -> StageRecord:
    """Run a stage, and return its record with the outcome and the time and memory it took."""
    reset_peak()
    began, worked = time.monotonic(), time.process_time()
    try:
        _STAGES[record.stage](context)
        ended = record.done(context.only)
    except (NoSpace, NotWritable):
        raise  # no other stage could write either
    except SaeflowError as error:
        if context.note:
            context.note(f"{record.stage.value}: {error}")
        ended = replace(record, why=str(error))
    return replace(
        ended,
        seconds=record.seconds + time.monotonic() - began,
        cpu_seconds=record.cpu_seconds + time.process_time() - worked,
        peak_mb=max(record.peak_mb, peak_memory()),
    )
