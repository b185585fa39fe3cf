"""The steering experiment of section 5.3: try a grid of settings, then measure the best ones again.

    OUT/rows/*.jsonl.gz            the grid, one row per text; a unit of work is a theme, a direction and a method
    OUT/scores.jsonl.gz            the judges' scores of these rows
    OUT/confirmed/                 the chosen settings on fresh seeds, in the same form
    OUT/plans/, confirmed/plans/   the plans, one file per setting, for `saeflow steer --plan`

1. All settings of the grid use the same seeds: sample i has the same seed, and so the same noise, under every setting.
2. A judge scores the rows. For each method, the setting with the highest mean score is chosen.
3. The chosen settings and the baselines generate fresh samples, whose seeds had no part in the choice.

Judging is a separate step over existing rows: running a finished sweep with another judge generates nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from saeflow.engines import Engine
from saeflow.errors import InvalidArgument
from saeflow.experiments.results import MANIFEST, Made, Results, Row, RunRequest, significant, versions
from saeflow.plain_types import Progress
from saeflow.steering.generate import Request, Sampling, generate
from saeflow.steering.judges import Judged
from saeflow.steering.metrics import distinct, losses
from saeflow.steering.plan import SteeringDirection, SteeringPlan
from saeflow.steering.sweep.cells import FOLDER, Cells, choose, setting_of
from saeflow.steering.sweep.inputs import SweepInputs
from saeflow.steering.sweep.plans import ThemePlans, random_mirrors, written_on
from saeflow.steering.sweep.scoring import MakeJudge, judge_rows, unsteered
from saeflow.steering.sweep.settings import (
    CONFIRMED,
    GRID,
    NONE,
    ORDER,
    PROMPT,
    RANDOM,
    VECTORS,
    Grid,
    Setting,
    Variant,
    seed_of,
)
from saeflow.steering.theme import Task, Theme

EXPERIMENT, EXPERIMENT_CONFIRMED = "steering", "steering-confirmed"


@dataclass(frozen=True, slots=True)
class Design:
    """The themes, settings and seed of a sweep.

    Attributes:
        themes: in order, each with a task for every direction to steer it in.
        directions: activate, suppress or both; a theme is not steered in a direction that it has no task for.
        grid: the settings to try, and on how many samples.
        variant: how features are found and how strong each is.
        seed: of all samples and of random rows.

    Raises:
        InvalidArgument: when no theme has a task for any of the directions; for a theme named twice, vector methods
            when strengths are not in shares, or random rows together with orthogonal plans.
    """

    themes: tuple[Theme, ...]
    directions: tuple[SteeringDirection, ...]
    grid: Grid
    variant: Variant
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that the parts of the design fit together."""
        names = [theme.name for theme in self.themes]
        if len(set(names)) < len(names):
            raise InvalidArgument(f"the themes {', '.join(names)} name one twice. Give each once.")
        if (unlike := [name for name in VECTORS if name in self.grid.methods]) and not self.variant.in_shares:
            raise InvalidArgument(
                f"{' and '.join(unlike)} use no features, and have no strengths in units of features. Count all "
                "strengths in shares of the centred norm (--in-shares)."
            )
        if self.variant.orthogonal and self.grid.wants(RANDOM):
            raise InvalidArgument(
                "what is orthogonal lies along no feature, and no random rows can stand in for it. Name the methods "
                "(--steering-methods), without random."
            )
        if not self.tasks:
            raise InvalidArgument(
                f"no theme of {', '.join(names) or 'none'} has a task to {' or '.join(self.directions) or 'nothing'}. "
                "Give other themes or directions."
            )

    @property
    def tasks(self) -> list[tuple[Theme, SteeringDirection, Task]]:
        """Each theme and direction with its task, in order."""
        return [
            (theme, direction, theme.task(direction))
            for theme in self.themes
            for direction in self.directions
            if (theme.activate if direction is SteeringDirection.ACTIVATE else theme.suppress) is not None
        ]


def run_sweep(
    inputs: SweepInputs,
    design: Design,
    make: MakeJudge,
    *,
    out: Path | str,
    progress: Callable[[str], Progress] | None = None,
    engine: Engine | None = None,
) -> tuple[Results, Results]:
    """Run and judge both stages of a sweep, the grid and the confirmed settings; existing texts are kept.

    Args:
        inputs: model, dictionaries and matches.
        design: the themes, settings and seed.
        make: makes the judge from the unsteered texts of the grid.
        out: the results folder; if it holds chosen settings already, it keeps that choice.
        progress: returns the progress callback of a step, given its name.
        engine: where texts are generated; None for this process. Judging always runs in this process.

    Raises:
        InvalidArgument: when the folder holds a sweep with other arguments; for themes without features.
        UnknownFeature, UnknownSite: for starts that are not in the matches.
        BadFile: when a file of the folder is damaged.
    """

    def step(name: str) -> Progress | None:
        return progress(name) if progress else None

    @cache
    def theme_plans() -> dict[str, ThemePlans]:
        return {theme.name: ThemePlans.of(inputs, theme, design.variant) for theme in design.themes}

    # 1. generate and judge the samples of every setting
    request = _request(inputs, design, EXPERIMENT)
    grid = Results.start(Path(out), request, lambda: _grid_units(design, theme_plans()), versions())
    unit = SweepUnit(theme_plans(), design.seed, GRID, design.grid.samples)
    grid = _generate(grid, unit, step("grid:"), engine)
    judge = make(unsteered(grid))
    scores = judge_rows(grid, judge, design.themes, step("judging:"))

    # 2. choose settings by these scores; generate and judge fresh samples of them
    folder, chosen_by = Path(out) / FOLDER, scores.judge
    if (folder / MANIFEST).is_file():
        chosen_by = str(Results.open(folder).record.request.arguments.get("chosen_by", scores.judge))
    request = _request(inputs, design, EXPERIMENT_CONFIRMED, chosen_by=chosen_by)
    fresh = Results.start(folder, request, lambda: _confirmed_units(design, Cells.of(grid, scores)), versions())
    unit = SweepUnit(theme_plans(), design.seed, CONFIRMED, design.grid.confirm, unsteered(grid))
    fresh = _generate(fresh, unit, step("confirming:"), engine)
    judge_rows(fresh, judge, design.themes, step("judging again:"))
    return grid, fresh


def _request(inputs: SweepInputs, design: Design, experiment: str, **more: Any) -> RunRequest:
    """Everything that determines the rows; a digest of each theme, without its keywords, detects changed files."""
    digests: dict[str, str] = {}
    for theme in design.themes:
        decides = {name: value for name, value in asdict(theme).items() if name != "keywords"}
        said = json.dumps(decides | {"starts": list(map(str, theme.starts))}, sort_keys=True)
        digests[theme.name] = hashlib.sha256(said.encode()).hexdigest()[:12]
    arguments = {
        **design.grid.to_arguments(),
        **design.variant.to_arguments(),
        "directions": [direction.value for direction in design.directions],
        "themes": digests,
        "prepend_bos": inputs.model.prepend_bos,
        **more,
    }
    return RunRequest(
        experiment,
        inputs.release,
        inputs.model.name or inputs.release,
        design.seed,
        tuple(digests),
        {"graphs": inputs.matched},
        arguments,
    )


def _grid_units(design: Design, theme_plans: Mapping[str, ThemePlans]) -> list[Row]:
    """The units of the grid: one for each theme, direction and method."""
    units: list[Row] = []
    for theme, direction, task in design.tasks:
        prepared = theme_plans[theme.name]
        for method in ORDER:
            settings = design.grid.of_method(direction, method, prepared.layers_of(method))
            if settings and (task.asked or method != PROMPT):
                unit = _unit(theme.name, direction.value, method, settings)
                units.append(unit | {"features": prepared.counts})
    return units


def _confirmed_units(design: Design, cells: Cells) -> list[Row]:
    units: list[Row] = []
    chosen = choose(cells, design.themes, design.grid)
    for _, here in chosen.groupby(["theme", "direction", "method"], sort=False):
        lines = here.to_dict("records")
        theme, direction, method = (str(lines[0][name]) for name in ("theme", "direction", "method"))
        units.append(_unit(theme, direction, method, map(setting_of, lines)) | {"roles": here["role"].tolist()})
    return units


def _unit(theme: str, direction: str, method: str, settings: Iterable[Setting]) -> Row:
    """A unit of work; `dataset` and `text` name it in progress messages."""
    return {
        "dataset": theme,
        "text": f"{direction} {method}",
        "theme": theme,
        "direction": direction,
        "method": method,
        "settings": [list(astuple(setting)) for setting in settings],
    }


def _generate(results: Results, work: SweepUnit, progress: Progress | None, engine: Engine | None) -> Results:
    """Run the units that are not done yet; progress also counts the texts of the running unit."""
    now = (0, 0, "")

    def of_units(done: int, total: int, name: str) -> None:
        nonlocal now
        now = done, total, name
        if progress:
            progress(*now)

    def of_texts(done: int, total: int, _: str) -> None:
        if progress:
            progress(now[0], now[1], f"{now[2]}, {done} of {total} texts")

    return results.run(replace(work, progress=of_texts), of_units, engine)


# --- one unit of work -------------------------------------------------------------------------------------------------

Unsteered = Mapping[tuple[str, SteeringDirection], Sequence[Judged]]


@dataclass(eq=False)
class SweepUnit:
    """Generates and measures the texts of a theme, direction and method: one unit of work of an engine.

    The seed of a sample depends only on `seed`, the stage and its number. Plans and random draws are returned as files
    next to the rows, since workers write nothing.

    Attributes:
        theme_plans: theme -> its plans.
        seed: of all samples.
        stage: `GRID`, or `CONFIRMED` for fresh samples.
        n: samples of each setting.
        unsteered: unsteered texts of the grid, on which random rows for a suppression are matched by activity; None
            while the grid runs.
        progress: called with the texts of the unit, if it runs in the process that shows progress.
    """

    theme_plans: Mapping[str, ThemePlans]
    seed: int
    stage: str
    n: int
    unsteered: Unsteered | None = None
    progress: Progress | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process: without matches, since the graphs are grown, and without progress."""
        bare = {
            name: replace(prepared, inputs=replace(prepared.inputs, matches=None))
            for name, prepared in self.theme_plans.items()
        }
        return self.__dict__ | {"theme_plans": bare, "progress": None}

    def __call__(self, unit: Row) -> Made:
        """Generate the samples of every setting of the unit, with the same seeds for each setting."""
        prepared, direction = self.theme_plans[unit["theme"]], SteeringDirection(unit["direction"])
        inputs, task = prepared.inputs, prepared.theme.task(direction)
        settings = [Setting(*listed) for listed in unit["settings"]]
        seeds = [seed_of(self.seed, self.stage, sample) for sample in range(self.n)]
        prompt = task.asked if unit["method"] == PROMPT else task.prompt
        requests: list[Request] = []
        files: dict[str, bytes] = {}
        for setting in settings:
            plans = self._plans(files, prepared, direction, setting, seeds)
            requests += [Request(prompt, seed, plan) for seed, plan in zip(seeds, plans, strict=True)]
        sampling = Sampling(max_new_tokens=task.max_new_tokens)
        made = generate(
            inputs.model, inputs.dictionaries, requests, sampling, batch=inputs.batch, progress=self.progress
        )
        nats = losses(inputs.model, prompt, [generation.ids for generation in made])
        rows: list[Row] = []
        for number, (one, loss) in enumerate(zip(made, nats, strict=True)):
            setting, plan = settings[number // self.n], one.request.plan
            rows.append(
                {
                    "theme": unit["theme"],
                    "direction": unit["direction"],
                    "method": setting.method,
                    "layer": setting.layer,
                    "schedule": setting.schedule,
                    "value": setting.value,
                    "sample": number % self.n,
                    "seed": one.request.seed,
                    "prompt": prompt,
                    "text": one.text,
                    "ids": list(one.ids),
                    "n_tokens": len(one.ids),
                    "loss": significant(loss) if math.isfinite(loss) else None,
                    "distinct_1": significant(distinct(one.ids, 1)),
                    "distinct_2": significant(distinct(one.ids, 2)),
                    "share_layer": significant(one.share_layer),
                    "share_total": significant(one.share_total),
                    "n_features": len(plan.steps) if plan else 0,
                    "mirrors": setting.mirrors,
                }
            )
        return Made(rows, files)

    def _plans(
        self,
        files: dict[str, bytes],
        prepared: ThemePlans,
        direction: SteeringDirection,
        setting: Setting,
        seeds: Sequence[int],
    ) -> Sequence[SteeringPlan | None]:
        """The plan of each sample of a setting, also put into `files`; random rows are drawn anew for each sample."""
        if setting.method in (NONE, PROMPT):
            return [None] * len(seeds)
        stem = f"plans/{prepared.theme.name}-{setting.name(direction)}"
        if setting.method != RANDOM:
            plan = prepared.plan(direction, setting)
            files[f"{stem}.json"] = plan.to_json().encode()
            return [plan] * len(seeds)
        plan = prepared.plan(direction, replace(setting, method=setting.mirrors, mirrors=""))
        model, dictionaries, active = prepared.inputs.model, prepared.inputs.dictionaries, None
        if direction is SteeringDirection.SUPPRESS and self.unsteered is not None:
            # decode texts together with their prompts, since decoding a text alone may lose its leading space
            whole: list[str] = []
            for text in self.unsteered[prepared.theme.name, direction]:
                begin = model.tokenize([text.prompt], add_bos=False).input_ids[0].tolist()
                whole.append(str(model.tokenizer.decode([*begin, *text.ids], skip_special_tokens=True)))
            active = written_on(model, dictionaries, plan.sites, whole)
        drawn = random_mirrors(plan, dictionaries, model, avoid=prepared.avoided, seeds=seeds, active=active)
        lines = [
            json.dumps({"sample": sample, "steps": {str(step.feature): step.value for step in plan.steps}}) + "\n"
            for sample, plan in enumerate(drawn)
        ]
        files[f"{stem}.jsonl.gz"] = gzip.compress("".join(lines).encode(), mtime=0)
        return drawn
