"""The steering experiment of section 5.3: try a grid of settings, then measure the best ones again.

    OUT/rows/*.jsonl.gz            the grid: a text a row; a unit of work is a theme, a direction and a method
    OUT/scores.jsonl.gz            what judges said of it
    OUT/confirmed/                 the settings that were chosen, on fresh seeds, in the same form
    OUT/plans/, confirmed/plans/   the plans, one file a setting, for `saeflow steer --plan`

1. Every setting of the grid generates the same samples: sample i has the same seed, and so the same noise, under
   every setting of a theme and direction.
2. A judge scores the rows. Of each method the setting with the highest mean score is chosen.
3. The chosen settings and the baselines generate fresh samples, whose seeds had no part in the choice.

Judging is a step of its own, over rows that are there: `judge_sweep` with another judge generates nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from saeflow.errors import InvalidArgument
from saeflow.experiments.records import RunRequest
from saeflow.experiments.results import MANIFEST, Progress, Results, Row, significant, versions
from saeflow.paths import write_atomic
from saeflow.steering.baselines import random_mirrors, written_on
from saeflow.steering.cells import Cells
from saeflow.steering.confirm import FOLDER, Choice, choose
from saeflow.steering.generate import Generation, Request, generate
from saeflow.steering.judges import Judge, Judged
from saeflow.steering.metrics import distinct, losses
from saeflow.steering.plan import Direction, SteeringPlan
from saeflow.steering.recipe import Lab, Recipe
from saeflow.steering.sampling import Sampling
from saeflow.steering.scoring import Scores, judge_rows, unsteered
from saeflow.steering.settings import (
    CONFIRMED,
    GRID,
    NONE,
    ORDER,
    PROMPT,
    RANDOM,
    Grid,
    Setting,
    Variant,
    seed_of,
)
from saeflow.steering.theme import Task, Theme

EXPERIMENT, EXPERIMENT_CONFIRMED = "steering", "steering-confirmed"
References: TypeAlias = Mapping[tuple[str, Direction], Sequence[Judged]]
"""The unsteered texts of the grid by theme and direction: what a judge compares with."""

MakeJudge: TypeAlias = Callable[[References], Judge]


@dataclass(frozen=True, slots=True)
class Design:
    """What a sweep is asked for.

    Attributes:
        themes: in order, each with a task for every direction it is to be steered in.
        directions: activate, suppress or both; a theme without a task for one is not steered so.
        grid: what is tried, on how many samples.
        variant: how features are found and how strong each is.
        seed: of all samples and of random rows.

    Raises:
        InvalidArgument: when no theme has a task for one of the directions; for a theme named twice.
    """

    themes: tuple[Theme, ...]
    directions: tuple[Direction, ...]
    grid: Grid
    variant: Variant
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has nothing to do."""
        names = [theme.name for theme in self.themes]
        if len(set(names)) < len(names):
            raise InvalidArgument(f"the themes {', '.join(names)} name one twice. Give each once.")
        if not self.tasks:
            raise InvalidArgument(
                f"no theme of {', '.join(names) or 'none'} has a task to {' or '.join(self.directions) or 'nothing'}. "
                "Give other themes or directions."
            )

    @property
    def tasks(self) -> list[tuple[Theme, Direction, Task]]:
        """Each theme and direction with what is generated, in order."""
        return [
            (theme, direction, theme.task(direction))
            for theme in self.themes
            for direction in self.directions
            if (theme.activate if direction is Direction.ACTIVATE else theme.suppress) is not None
        ]


class Sweep:
    """A sweep into a folder, which goes on where a killed one stopped."""

    def __init__(self, lab: Lab, design: Design, out: Path | str) -> None:
        """Nothing is computed or written yet."""
        self.lab, self.design, self.out = lab, design, Path(out)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """How each theme is steered; grows the graphs at first use.

        Raises:
            InvalidArgument: for a theme without features, or of which none is left.
            UnknownFeature, UnknownSite: for starts that the matches do not know.
        """
        return {theme.name: Recipe.of(self.lab, theme, self.design.variant) for theme in self.design.themes}

    def run_grid(self, progress: Progress | None = None) -> Results:
        """Generate the samples of every setting; what is there is not generated again.

        Raises:
            InvalidArgument: when the folder holds a sweep with other arguments.
        """
        results = Results.start(self.out, self._request(EXPERIMENT, {}), self._grid_units, versions())
        return self._run(results, GRID, self.design.grid.samples, None, progress)

    def run_confirmed(self, grid: Results, scores: Scores, progress: Progress | None = None) -> Results:
        """Choose settings by `scores` and generate their fresh samples; a folder that is there keeps its choice.

        Raises:
            InvalidArgument: when the folder holds a sweep with other arguments.
        """
        folder = self.out / FOLDER
        chosen_by = scores.judge
        if (folder / MANIFEST).is_file():
            chosen_by = str(Results.open(folder).record.request.arguments.get("chosen_by", scores.judge))
        request = self._request(EXPERIMENT_CONFIRMED, {"chosen_by": chosen_by})
        results = Results.start(folder, request, lambda: self._confirmed_units(grid, scores), versions())
        return self._run(results, CONFIRMED, self.design.grid.confirm, grid, progress)

    def _request(self, experiment: str, more: Mapping[str, Any]) -> RunRequest:
        design = self.design
        arguments = {
            **design.grid.to_arguments(),
            **design.variant.to_arguments(),
            "directions": [direction.value for direction in design.directions],
            "themes": {theme.name: _digest(theme) for theme in design.themes},
            **more,
        }
        return RunRequest(
            experiment, self.lab.release, self.lab.model.name or self.lab.release, design.seed,
            tuple(theme.name for theme in design.themes), {"graphs": self.lab.matched}, arguments,
        )  # fmt: skip

    def _grid_units(self) -> list[Row]:
        """A unit for each theme, direction and method."""
        units: list[Row] = []
        for theme, direction, task in self.design.tasks:
            recipe = self.recipes[theme.name]
            for method in ORDER:
                if method == PROMPT and not task.asked:
                    continue
                settings = self.design.grid.of_method(direction, method, recipe.layers)
                if settings:
                    unit = _unit(theme, direction, method, settings)
                    units.append(unit | {"features": recipe.counts})
        return units

    def _confirmed_units(self, grid: Results, scores: Scores) -> list[Row]:
        chosen: dict[tuple[str, Direction, str], list[Choice]] = {}
        for choice in choose(Cells.of(grid, scores), self.design.themes, self.design.grid):
            key = choice.theme, choice.direction, choice.setting.method
            chosen.setdefault(key, []).append(choice)
        themes = {theme.name: theme for theme in self.design.themes}
        return [
            _unit(themes[theme], direction, method, [choice.setting for choice in choices])
            | {"roles": [choice.role for choice in choices]}
            for (theme, direction, method), choices in chosen.items()
        ]

    def _run(
        self, results: Results, stage: str, n: int, grid: Results | None, progress: Progress | None
    ) -> Results:
        """Do the units that are not done; progress tells of the texts of the running unit as well."""
        now = (0, 0, "")

        def of_units(done: int, total: int, name: str) -> None:
            nonlocal now
            now = done, total, name
            if progress:
                progress(*now)

        def of_texts(done: int, total: int, _: str) -> None:
            if progress:
                progress(now[0], now[1], f"{now[2]}, {done} of {total} texts")

        return results.run(lambda unit: self._rows(results, unit, stage, n, grid, of_texts), of_units)

    def _rows(
        self, results: Results, unit: Row, stage: str, n: int, grid: Results | None, progress: Progress
    ) -> list[Row]:
        """The rows of a unit: its settings one after the other, each with the same samples."""
        recipe, direction = self.recipes[unit["theme"]], Direction(unit["direction"])
        task = recipe.theme.task(direction)
        settings = [Setting.of(told) for told in unit["settings"]]
        seeds = [seed_of(self.design.seed, stage, sample) for sample in range(n)]
        prompt = task.asked if unit["method"] == PROMPT else task.prompt
        requests: list[Request] = []
        for setting in settings:
            plans = self._plans(results.folder / "plans", recipe, direction, setting, seeds, grid)
            requests += [Request(prompt, seed, plan) for seed, plan in zip(seeds, plans, strict=True)]
        sampling = Sampling(max_new_tokens=task.max_new_tokens)
        made = generate(
            self.lab.model, self.lab.dictionaries, requests, sampling, batch=self.lab.batch, progress=progress
        )
        nats = losses(self.lab.model, prompt, [generation.ids for generation in made])
        return [
            _row(unit, settings[number // n], number % n, generation, loss)
            for number, (generation, loss) in enumerate(zip(made, nats, strict=True))
        ]

    def _plans(
        self,
        folder: Path,
        recipe: Recipe,
        direction: Direction,
        setting: Setting,
        seeds: Sequence[int],
        grid: Results | None,
    ) -> Sequence[SteeringPlan | None]:
        """The plan of each sample of a setting, saved; random ones are drawn anew for each sample."""
        if setting.method in (NONE, PROMPT):
            return [None] * len(seeds)
        stem = f"{recipe.theme.name}-{setting.name(direction)}"
        if setting.method != RANDOM:
            plan = recipe.plan(direction, setting)
            plan.save(folder / f"{stem}.json")
            return [plan] * len(seeds)
        copied = Setting(setting.mirrors, setting.layer, setting.schedule, setting.value)
        plan = recipe.plan(direction, copied)
        active = None
        if direction is Direction.SUPPRESS and grid is not None:
            texts = self._whole(unsteered(grid)[recipe.theme.name, direction])
            active = written_on(self.lab.model, self.lab.dictionaries, plan.sites, texts)
        drawn = random_mirrors(
            plan, self.lab.dictionaries, self.lab.model, avoid=recipe.avoided, seeds=seeds, active=active
        )
        _save_draws(folder / f"{stem}.jsonl.gz", drawn)
        return drawn

    def _whole(self, texts: Sequence[Judged]) -> list[str]:
        """Texts with their prompts, decoded together: decoding a text alone may lose the space it begins with."""
        model = self.lab.model
        prompts = {text.prompt for text in texts}
        begin = {prompt: model.tokenize([prompt], add_bos=False).input_ids[0].tolist() for prompt in prompts}
        ids = [[*begin[text.prompt], *text.ids] for text in texts]
        return [str(model.tokenizer.decode(one, skip_special_tokens=True)) for one in ids]


def judge_sweep(
    grid: Results,
    make: MakeJudge,
    themes: Sequence[Theme],
    progress: Progress | None = None,
) -> tuple[Judge, Scores]:
    """The judge of a sweep, made with its unsteered texts, and what it says of the grid.

    Raises:
        InvalidArgument: when a theme of the rows is not among `themes`.
        BadFile: when a file of the folder is damaged.
    """
    judge = make(unsteered(grid))
    return judge, judge_rows(grid, judge, themes, progress)


def run_sweep(
    lab: Lab,
    design: Design,
    make: MakeJudge,
    *,
    out: Path | str,
    progress: Callable[[str], Progress] | None = None,
) -> tuple[Results, Results]:
    """Both stages of a sweep, judged: the grid and the confirmed settings. What is there is not done again.

    Args:
        lab: model, dictionaries and matches.
        design: what is tried.
        make: makes the judge from the unsteered texts of the grid.
        out: the results folder.
        progress: gives a progress for each step by its name.

    Raises:
        InvalidArgument: when the folder holds a sweep with other arguments; for themes without features.
        BadFile: when a file of the folder is damaged.
    """

    def step(name: str) -> Progress | None:
        return progress(name) if progress else None

    sweep = Sweep(lab, design, out)
    grid = sweep.run_grid(step("grid:"))
    judge, scores = judge_sweep(grid, make, design.themes, step("judging:"))
    confirmed = sweep.run_confirmed(grid, scores, step("confirming:"))
    judge_rows(confirmed, judge, design.themes, step("judging again:"))
    return grid, confirmed


def _unit(theme: Theme, direction: Direction, method: str, settings: Iterable[Setting]) -> Row:
    """A unit of work; dataset and text are what progress names it by."""
    return {
        "dataset": theme.name, "text": f"{direction.value} {method}", "theme": theme.name,
        "direction": direction.value, "method": method, "settings": [s.to_list() for s in settings],
    }  # fmt: skip


def _row(unit: Row, setting: Setting, sample: int, made: Generation, loss: float) -> Row:
    asked = made.request
    return {
        "theme": unit["theme"], "direction": unit["direction"], "method": setting.method,
        "layer": setting.layer, "schedule": setting.schedule, "value": setting.value, "sample": sample,
        "seed": asked.seed, "prompt": asked.prompt, "text": made.text, "ids": list(made.ids), "n_tokens": len(made.ids),
        "loss": significant(loss) if math.isfinite(loss) else None,
        "distinct_1": significant(distinct(made.ids, 1)), "distinct_2": significant(distinct(made.ids, 2)),
        "share_layer": significant(made.share_layer), "share_total": significant(made.share_total),
        "n_features": len(asked.plan.steps) if asked.plan else 0, "mirrors": setting.mirrors,
    }  # fmt: skip


def _save_draws(path: Path, drawn: Sequence[SteeringPlan]) -> None:
    """The random features of each sample and their values, one sample a line."""
    lines = [
        json.dumps({"sample": sample, "steps": {str(step.feature): step.value for step in plan.steps}}) + "\n"
        for sample, plan in enumerate(drawn)
    ]
    write_atomic(path, gzip.compress("".join(lines).encode(), mtime=0))


def _digest(theme: Theme) -> str:
    """A name for what a theme's file says, so that a changed one is not taken for the old."""
    told = asdict(theme) | {"starts": [str(feature) for feature in theme.starts]}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
