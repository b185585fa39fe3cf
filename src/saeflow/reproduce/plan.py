"""Estimates what a reproduction will cost on this machine: downloads, memory, disk, time, judge requests.

Downloads are computed from the sizes stated for the release and from the contents of the hub's cache, without using the
network. Time is computed from a short measurement (`measure`) and the sizes of each stage (`costs`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from saeflow.engines.pool import cores
from saeflow.errors import InvalidArgument, SaeflowError
from saeflow.experiments.sampling import expand, open_dataset
from saeflow.experiments.sampling import recipes as known_datasets
from saeflow.ids import Part, Site
from saeflow.report.tables import duration
from saeflow.reproduce.costs import ACTIVE, Cost, Costs, Speeds, active_features, has_atlas, measure
from saeflow.reproduce.machine import is_held, memory
from saeflow.reproduce.recipe import FROM_WEIGHTS, PaperStage, Recipe, Shape, short
from saeflow.reproduce.record import RECORD, Reproduction
from saeflow.sources.hub import CacheState, cache_state
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model
from saeflow.sources.releases import DictionarySize, is_release, read_release

GB: Final = 1e9


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """What one stage will cost.

    Attributes:
        stage: the stage.
        items: the figures and tables it answers.
        download: bytes it fetches that no earlier stage does; datasets are streamed and not counted.
        cost: time, memory, disk and requests.
        done: whether the folder already has it, so that it will not be run.
    """

    stage: PaperStage
    items: tuple[str, ...]
    download: float
    cost: Cost
    done: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Attributes:
        recipe: the recipe to run.
        folder: the folder of the reproduction.
        speeds: the measured speeds of this machine.
        stages: the stages that are needed, in order, including those already done.
        remarks: what the user should know before starting.
    """

    recipe: Recipe
    folder: Path
    speeds: Speeds
    stages: tuple[PlannedStage, ...]
    remarks: tuple[str, ...] = ()

    @property
    def to_run(self) -> list[PlannedStage]:
        """The stages that are not done yet."""
        return [one for one in self.stages if not one.done]

    @property
    def seconds(self) -> float:
        """Seconds for all stages to run."""
        return sum(one.cost.seconds for one in self.to_run)

    @property
    def download(self) -> float:
        """Bytes to fetch for all stages to run."""
        return sum(one.download for one in self.to_run)

    @property
    def memory(self) -> float:
        """Bytes of memory in the stage that needs most."""
        return max((one.cost.memory for one in self.to_run), default=0.0)

    @property
    def disk(self) -> float:
        """Bytes written to disk, including downloads."""
        return self.download + sum(one.cost.disk for one in self.to_run)

    @property
    def requests(self) -> int:
        """Requests to the judge."""
        return sum(one.cost.requests for one in self.to_run)

    def lines(self) -> list[str]:
        """The lines above the table of stages, for a terminal."""
        speeds = self.speeds
        own = f"{speeds.passes:,.0f} tokens a second" if speeds.passes else "it is not on this machine"
        measured = f"{speeds.products / 1e9:,.0f} GFLOP/s in products; a pass of the model: {own}"
        space = f"{self.memory / GB:.1f} GB of memory, {self.disk / GB:.1f} GB of disk"
        whole = f"{duration(self.seconds)}, {self.download / GB:.1f} GB to fetch, {space}"
        return [
            f"{self.recipe.title}, into {self.folder}",
            f"measured on {speeds.device}, {speeds.threads} threads: {measured}",
            f"in all: {whole}, {self.requests:,} judge requests",
            "",
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One row per stage, for a terminal."""
        return [
            {
                "stage": one.stage.value,
                "time": "done" if one.done else duration(one.cost.seconds),
                "fetch GB": f"{one.download / GB:.1f}",
                "memory GB": f"{one.cost.memory / GB:.1f}",
                "disk GB": f"{(one.download + one.cost.disk) / GB:.2f}",
                "judge": f"{one.cost.requests:,}",
                "answers": short(one.items),
            }
            for one in self.stages
        ]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, in bytes and seconds."""
        return {
            "recipe": self.recipe.name,
            "folder": str(self.folder),
            "seconds": round(self.seconds, 1),
            "download": round(self.download),
            "memory": round(self.memory),
            "disk": round(self.disk),
            "judge_requests": self.requests,
            "measured": {
                "products": self.speeds.products,
                "tokens_a_second": self.speeds.passes,
                "small": self.speeds.small,
                "threads": self.speeds.threads,
                "device": self.speeds.device,
            },
            "stages": [
                {
                    "name": one.stage.value,
                    "items": list(one.items),
                    "done": one.done,
                    "seconds": round(one.cost.seconds, 1),
                    "download": round(one.download),
                    "memory": round(one.cost.memory),
                    "disk": round(one.cost.disk),
                    "judge_requests": one.cost.requests,
                }
                for one in self.stages
            ],
            "remarks": list(self.remarks),
        }


def make_plan(
    recipe: Recipe, out: Path | str, *, only: Sequence[str] = (), device: str = "cpu", judge: str = ""
) -> Plan:
    """Estimate what a run of a recipe into a folder will cost here; runs and fetches nothing.

    Args:
        recipe: a recipe from `open_recipe`.
        out: the folder; stages that it already has cost nothing.
        only: figures and tables from `parse_only`; all when empty.
        device: where the run would compute.
        judge: "offline" or "llm"; "" for the recipe's.

    Raises:
        InvalidArgument: when the model is not on this machine, and the recipe does not give its shape.
        BadFile: when the folder's record cannot be read.
    """
    folder = Path(out)
    shape, sizes = _shape(recipe), _sizes(recipe)
    speeds = measure(model_of(recipe), shape.d_model, device=device)
    active = _active(recipe, device)
    costs = Costs(recipe, shape, sizes, speeds, judge, ACTIVE if active is None else active)
    there = Reproduction.open(folder).stages if (folder / RECORD).is_file() else {}
    fetched = _Fetching(recipe, shape)
    planned: list[PlannedStage] = []
    for stage in recipe.stages_for(only):
        done = stage in there and there[stage].covers(only) and stage is not PaperStage.ATLAS
        download = 0.0 if done else fetched.of(stage, frozenset(only))
        items = tuple(item for item in recipe.items(stage) if not only or item in only)
        planned.append(PlannedStage(stage, items, download, costs.of(stage), done))
    made = Plan(recipe, folder, speeds, tuple(planned))
    return replace(made, remarks=tuple(_remarks(made, active)))


def model_of(recipe: Recipe) -> str:
    """The model that a recipe names, or else that of its dictionaries."""
    return recipe.model or load_dictionaries(recipe.release).model


class _Fetching:
    """Computes the downloads stage by stage; a later stage need not fetch what an earlier one has."""

    def __init__(self, recipe: Recipe, shape: Shape) -> None:
        self.recipe, self.shape = recipe, shape
        self.entries = read_release(recipe.release).sites if is_release(recipe.release) else {}
        self.decoders: set[Site] = set()
        self.whole: set[Site] = set()
        self.model = is_held(model_of(recipe))

    def of(self, stage: PaperStage, only: frozenset[str]) -> float:
        """Bytes that a stage fetches and no earlier stage does; call it for each stage in order."""
        decoder, whole = self._sites(stage, only)
        found = sum(self._part(site, whole=False) for site in decoder - self.decoders - self.whole)
        self.decoders |= decoder
        found += sum(
            self._part(site, whole=True) - (self._part(site, whole=False) if site in self.decoders else 0.0)
            for site in whole - self.whole
        )
        self.whole |= whole
        runs = stage not in (PaperStage.ATLAS, PaperStage.GRAPHS) or (
            stage is PaperStage.ATLAS and self.recipe.projects
        )
        if runs and not self.model:
            self.model = True
            found += self.shape.n_bytes
        return found

    def _sites(self, stage: PaperStage, only: frozenset[str]) -> tuple[set[Site], set[Site]]:
        """The sites of which a stage reads only the decoder, and those of which it reads the whole dictionary."""
        layers = set(self.recipe.sizes[stage].get("layers", ()))
        if stage is PaperStage.ATLAS:
            made = has_atlas(self.recipe.release) and not self.recipe.sizes[stage].get("null")
            return (set() if made else set(self.entries)), set()
        if stage is PaperStage.GRAPHS:
            direct = only and not only - FROM_WEIGHTS
            return ({site for site in self.entries if site.part is not Part.ATT} if direct else set()), set()
        if stage is PaperStage.STEERING:
            return set(self.entries), set()
        if stage is PaperStage.TRANSITION:
            wanted = layers | {layer + 1 for layer in layers}
            return set(), {s for s in self.entries if s.part is Part.RES and (not layers or s.layer in wanted)}
        around = {one for layer in layers for one in (Site(layer, Part.RES), *Site(layer, Part.RES).predecessors)}
        return set(), {site for site in self.entries if not layers or site in around}

    def _part(self, site: Site, *, whole: bool) -> float:
        """Bytes of a dictionary, or only of its decoder, that are not on this machine."""
        entry = self.entries[site]
        if entry.size is None:
            return 0.0
        held = cache_state(entry)
        if held is CacheState.YES or (held is CacheState.DECODER and not whole):
            return 0.0
        half = entry.size.n_bytes / 2
        if held is CacheState.DECODER:
            return half
        decoder_apart = any(file.endswith((".npz", ".safetensors")) for file in entry.files)
        return half if decoder_apart and not whole else 2 * half


def _shape(recipe: Recipe) -> Shape:
    if recipe.shape is not None:
        return recipe.shape
    named = model_of(recipe)
    if not is_held(named):
        raise InvalidArgument(
            f"the recipe {recipe.name} gives no [shape] of {named}, which is not on this machine. Add one to plan with."
        )
    model = load_model(named)
    weights = sum(p.numel() for p in model.trunk.parameters())
    return Shape(float(weights), model.n_layers, model.d_model, len(model.tokenizer))


def _sizes(recipe: Recipe) -> dict[Site, DictionarySize]:
    """The size of every dictionary, from the release's data or from the dictionaries on this machine."""
    if is_release(recipe.release):
        entries = read_release(recipe.release).sites
        return {site: entry.size for site, entry in entries.items() if entry.size is not None}
    return {
        site: DictionarySize(one.n_features, one.d_in, 4) for site, one in load_dictionaries(recipe.release).items()
    }


def _active(recipe: Recipe, device: str) -> float | None:
    """The counted number of active features per token; None if they cannot be counted on this machine."""
    named = model_of(recipe)
    if not is_held(named):
        return None
    if is_release(recipe.release) and any(
        cache_state(e) is not CacheState.YES for e in read_release(recipe.release).sites.values()
    ):
        return None
    local = [name for name in expand(recipe.sampled) if name not in known_datasets()]
    try:
        texts = [text for name in local or expand(["demo"]) for text in islice(open_dataset(name).read(recipe.seed), 2)]
        return active_features(
            load_dictionaries(recipe.release, device=device), load_model(named, device=device), texts
        )
    except SaeflowError:  # a plan says what it can; the run reports what is wrong
        return None


def _remarks(plan: Plan, active: float | None) -> list[str]:
    recipe, found = plan.recipe, list[str]()
    found.append("Times are of one process and right within a factor of about two.")
    streamed = {
        name for one in plan.to_run if one.stage is not PaperStage.ATLAS for name in _streamed(recipe, one.stage)
    }
    if streamed:
        found.append(f"Texts are streamed besides, some megabytes each: {', '.join(sorted(streamed))}.")
    if memory() and plan.memory > memory():
        found.append(
            f"It needs about {plan.memory / GB:.0f} GB of memory, and this machine has {memory() / GB:.0f} GB: it will "
            "not run here."
        )
    near = next(path for path in (plan.folder.resolve(), *plan.folder.resolve().parents) if path.exists())
    if plan.disk > shutil.disk_usage(near).free:
        found.append(f"It needs more disk than is free beside {plan.folder}.")
    if plan.requests:
        found.append(f"The judge is asked {plan.requests:,} times; --judge offline asks nobody.")
    if plan.speeds.threads < cores():
        found.append(f"It was measured with {plan.speeds.threads} of {cores()} cores.")
    if recipe.note:
        found.append(recipe.note)
    if active is None:
        found.append(
            f"Features active on a token are taken for {ACTIVE:.0f}: model and dictionaries are not both here."
        )
    else:
        found.append(f"Features active on a token: {active:.1f}, counted on a few texts.")
    return found


def _streamed(recipe: Recipe, stage: PaperStage) -> list[str]:
    used = [] if stage is PaperStage.GRAPHS else list(recipe.datasets(stage))
    used += recipe.sizes[stage].get("background", ())
    return [name for name in used if name in known_datasets() or name.count("/") == 1]
