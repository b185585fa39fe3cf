"""What each stage of a reproduction does: the experiments' own functions, called as their commands call them.

Every stage writes where the command of the same name would, and goes on where a killed one stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saeflow.errors import UnknownRelease
from saeflow.experiments.deactivation_tables import summarize_deactivation
from saeflow.experiments.inputs import Bars, Inputs, Note, deactivation, model_name, origins
from saeflow.experiments.origins_tables import summarize_origins
from saeflow.experiments.settings import DeactivationSize, InputNames, OriginsSize, TransitionSize
from saeflow.experiments.transition.run import transition
from saeflow.experiments.transition.tables import summarize_transition
from saeflow.ids import Part
from saeflow.matching.atlas import Atlas, atlas_folder, open_atlas
from saeflow.matching.build import build_atlas
from saeflow.matching.calibration import calibrate
from saeflow.paper.results import write_page
from saeflow.reproduce.graphs import make_graphs
from saeflow.reproduce.recipe import Recipe, Table
from saeflow.reproduce.stages import Stage
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
class Settings:
    """How a run is done: what may differ between two runs of one recipe into one folder.

    Attributes:
        device: where to compute.
        judge: of steered texts, "offline" or "llm"; "" for the recipe's.
        judge_model: of the llm; "" for the recipe's.
        judge_url: where it answers; "" for OpenAI.
        engine: where units run.
    """

    device: str = "cpu"
    judge: str = ""
    judge_model: str = ""
    judge_url: str = ""
    engine: Engine | None = None

    def judge_of(self, recipe: Recipe) -> tuple[str, str]:
        """The kind of judge, and the name of the llm where it is one."""
        size = recipe.sizes.get(Stage.STEERING, {})
        kind = self.judge or size.get("judge", "offline")
        return kind, (self.judge_model or size.get("judge_model", "")) if kind == "llm" else ""

    def told(self, recipe: Recipe) -> dict[str, Any]:
        """As `reproduction.json` holds them; the judge's address may be private and is not among them."""
        engine = _ENGINES.get(type(self.engine).__name__, "here")
        return {"device": self.device, "judge": " ".join(filter(None, self.judge_of(recipe))), "engine": engine}


@dataclass(frozen=True)
class Place:
    """Where a recipe is run.

    Attributes:
        recipe: what is run.
        out: the folder of the reproduction.
        settings: how.
        bars: makes the progress of a step by its name.
        note: takes remarks for people.
        only: the figures and tables asked for; all when empty.
    """

    recipe: Recipe
    out: Path
    settings: Settings = field(default_factory=Settings)
    bars: Bars | None = None
    note: Note | None = None
    only: tuple[str, ...] = ()

    def size(self, stage: Stage) -> Table:
        """What the recipe says of a stage."""
        return self.recipe.sizes[stage]

    def opening(self, stage: Stage) -> InputNames:
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

    def dictionaries(self) -> DictionarySet:
        """Those of the release; nothing is read yet."""
        return load_dictionaries(self.recipe.release, device=self.settings.device)

    def projector(self, dictionaries: DictionarySet) -> LanguageModel | None:
        """The model, where matching needs it."""
        if not self.recipe.projects:
            return None
        named = model_name(self.recipe.release, dictionaries, self.recipe.model)
        return load_model(named, device=self.settings.device)


def _atlas(place: Place) -> None:
    """Match what a flow needs, where that is not here yet, and calibrate it where the recipe says so."""
    release, null = place.recipe.release, place.size(Stage.ATLAS).get("null", "")
    try:
        atlas = open_atlas(release)
    except UnknownRelease:
        atlas = _built(place, release)
    if null and atlas.calibration is None:
        dictionaries = place.dictionaries()
        calibrate(
            dictionaries,
            atlas,
            null=null,
            projector=place.projector(dictionaries),
            seed=place.recipe.seed,
            progress=place.bars and place.bars("calibrating"),
        )


def _built(place: Place, release: str) -> Atlas:
    dictionaries = place.dictionaries()
    return build_atlas(
        dictionaries,
        out=atlas_folder(release),
        release=dictionaries.name,
        model=dictionaries.model,
        projector=place.projector(dictionaries),
        engine=place.settings.engine,
        progress=place.bars and place.bars("matching"),
    )


def _graphs(place: Place) -> None:
    make_graphs(place.recipe, place.out / Stage.GRAPHS.value, device=place.settings.device, only=frozenset(place.only))


def _origins(place: Place) -> None:
    given = _given(place.size(Stage.ORIGINS), "texts", "tokens", "max_length", methods="methods")
    lab = Inputs.open(place.opening(Stage.ORIGINS), first=0)
    results = origins(
        lab,
        OriginsSize(**given),
        out=place.out / Stage.ORIGINS.value,
        bars=place.bars,
        note=place.note,
        engine=place.settings.engine,
    )
    summarize_origins(results)
    write_page(results.folder)


def _deactivation(place: Place) -> None:
    given = _given(
        place.size(Stage.DEACTIVATION),
        "texts",
        "tokens",
        "features",
        "loss",
        "max_length",
        strategies="strategies",
        r="r",
    )
    lab = Inputs.open(place.opening(Stage.DEACTIVATION), first=1)
    results = deactivation(
        lab,
        DeactivationSize(**given),
        out=place.out / Stage.DEACTIVATION.value,
        bars=place.bars,
        note=place.note,
        engine=place.settings.engine,
    )
    summarize_deactivation(results)
    write_page(results.folder)


def _steering(place: Place) -> None:
    recipe, settings, size = place.recipe, place.settings, place.size(Stage.STEERING)
    themes = find_themes(size.get("themes", ()), recipe.release)
    background = background_texts(size.get("background", ()), recipe.release, recipe.seed)
    kind, model = settings.judge_of(recipe)
    make = judge_maker(kind, model, settings.judge_url, background)
    grid = Grid(**_given(size, "samples", "confirm", s="activate", r="suppress", layers="layers", methods="methods"))
    directions = tuple(SteeringDirection(one) for one in size.get("directions", tuple(SteeringDirection)))
    parts = tuple(Part(part) for part in size.get("parts", tuple(Part)))
    variant = Variant(parts=tuple(part for part in Part if part in parts))
    design = Design(tuple(themes), directions, grid, variant, recipe.seed)
    inputs = open_inputs(
        recipe.release,
        open_atlas(recipe.release),
        background,
        model=recipe.model,
        device=settings.device,
        batch=size.get("batch", 256),
    )
    results, _ = run_sweep(
        inputs, design, make, out=place.out / Stage.STEERING.value, progress=place.bars, engine=settings.engine
    )
    summarize_sweep(results.folder)
    write_page(results.folder)


def _transition(place: Place) -> None:
    given = _given(place.size(Stage.TRANSITION), "tokens", "fit_tokens", "loss_texts", "max_length", "memory")
    if ks := place.size(Stage.TRANSITION).get("k"):
        given["k"] = tuple(None if k == "all" else int(k) for k in ks)
    asked = place.opening(Stage.TRANSITION)
    results = transition(
        asked,
        TransitionSize(**given),
        out=place.out / Stage.TRANSITION.value,
        bars=place.bars,
        engine=place.settings.engine,
    )
    summarize_transition(results)
    write_page(results.folder)


def _given(size: Table, *names: str, **lists: str) -> dict[str, Any]:
    """What a table says of some keys, as arguments; `lists` maps a key that holds a list to its argument."""
    found = {name: size[name] for name in names if name in size}
    return found | {argument: tuple(size[key]) for key, argument in lists.items() if key in size}


WORK: Final[Mapping[Stage, Callable[[Place], None]]] = {
    Stage.ATLAS: _atlas,
    Stage.GRAPHS: _graphs,
    Stage.ORIGINS: _origins,
    Stage.DEACTIVATION: _deactivation,
    Stage.STEERING: _steering,
    Stage.TRANSITION: _transition,
}
"""What does each stage."""
