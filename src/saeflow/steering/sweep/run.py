"""The steering experiment of section 5.3: try a grid of settings, then measure the best ones again.

    OUT/rows/*.jsonl.gz            the grid, one row for each text; a unit of work is a theme, a direction and a method
    OUT/scores.jsonl.gz            what judges said of it
    OUT/confirmed/                 the settings that were chosen, on fresh seeds, in the same form
    OUT/plans/, confirmed/plans/   the plans, one file for each setting, for `saeflow steer --plan`

1. Every setting of the grid generates the same samples: sample i has the same seed, and so the same noise, under
   every setting of a theme and direction.
2. A judge scores the rows. Of each method the setting with the highest mean score is chosen.
3. The chosen settings and the baselines generate fresh samples, whose seeds had no part in the choice.

Judging is a step of its own, over rows that are there: `judge_sweep` with another judge generates nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from saeflow.engines import Engine
from saeflow.errors import InvalidArgument
from saeflow.experiments.results import MANIFEST, Results, Row, RunRequest, versions
from saeflow.records import Progress
from saeflow.steering.judges import Judge
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import Cells
from saeflow.steering.sweep.confirm import FOLDER, Choice, choose
from saeflow.steering.sweep.inputs import SweepInputs
from saeflow.steering.sweep.scoring import JudgeScores, MakeJudge, judge_rows, unsteered
from saeflow.steering.sweep.settings import CONFIRMED, GRID, ORDER, PROMPT, Grid, Setting, Variant
from saeflow.steering.sweep.theme_plans import ThemePlans
from saeflow.steering.sweep.unit import SweepUnit
from saeflow.steering.theme import Task, Theme

EXPERIMENT, EXPERIMENT_CONFIRMED = "steering", "steering-confirmed"


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
    directions: tuple[SteeringDirection, ...]
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
    def tasks(self) -> list[tuple[Theme, SteeringDirection, Task]]:
        """Each theme and direction with what is generated, in order."""
        return [
            (theme, direction, theme.task(direction))
            for theme in self.themes
            for direction in self.directions
            if (theme.activate if direction is SteeringDirection.ACTIVATE else theme.suppress) is not None
        ]


class Sweep:
    """A sweep into a folder; a killed one resumes."""

    def __init__(self, inputs: SweepInputs, design: Design, out: Path | str, engine: Engine | None = None) -> None:
        """Nothing is computed or written yet. `engine` is where texts are generated; this process when None."""
        self.inputs, self.design, self.out, self.engine = inputs, design, Path(out), engine

    @cached_property
    def theme_plans(self) -> dict[str, ThemePlans]:
        """How each theme is steered; grows the graphs at first use.

        Raises:
            InvalidArgument: for a theme without features, or of which none is left.
            UnknownFeature, UnknownSite: for starts that the matches do not know.
        """
        return {theme.name: ThemePlans.of(self.inputs, theme, self.design.variant) for theme in self.design.themes}

    def run_grid(self, progress: Progress | None = None) -> Results:
        """Generate the samples of every setting; what is there is not generated again.

        Raises:
            InvalidArgument: when the folder holds a sweep with other arguments.
        """
        results = Results.start(self.out, self._request(EXPERIMENT, {}), self._grid_units, versions())
        return self._run(results, GRID, self.design.grid.samples, None, progress)

    def run_confirmed(self, grid: Results, scores: JudgeScores, progress: Progress | None = None) -> Results:
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
            "prepend_bos": self.inputs.model.prepend_bos,
            **more,
        }
        return RunRequest(
            experiment,
            self.inputs.release,
            self.inputs.model.name or self.inputs.release,
            design.seed,
            tuple(theme.name for theme in design.themes),
            {"graphs": self.inputs.matched},
            arguments,
        )

    def _grid_units(self) -> list[Row]:
        """A unit for each theme, direction and method."""
        units: list[Row] = []
        for theme, direction, task in self.design.tasks:
            prepared = self.theme_plans[theme.name]
            for method in ORDER:
                if method == PROMPT and not task.asked:
                    continue
                settings = self.design.grid.of_method(direction, method, prepared.layers)
                if settings:
                    unit = _unit(theme, direction, method, settings)
                    units.append(unit | {"features": prepared.counts})
        return units

    def _confirmed_units(self, grid: Results, scores: JudgeScores) -> list[Row]:
        chosen: dict[tuple[str, SteeringDirection, str], list[Choice]] = {}
        for choice in choose(Cells.of(grid, scores), self.design.themes, self.design.grid):
            key = choice.theme, choice.direction, choice.setting.method
            chosen.setdefault(key, []).append(choice)
        themes = {theme.name: theme for theme in self.design.themes}
        return [
            _unit(themes[theme], direction, method, [choice.setting for choice in choices])
            | {"roles": [choice.role for choice in choices]}
            for (theme, direction, method), choices in chosen.items()
        ]

    def _run(self, results: Results, stage: str, n: int, grid: Results | None, progress: Progress | None) -> Results:
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

        texts = None if grid is None else unsteered(grid)
        work = SweepUnit(self.theme_plans, self.design.seed, stage, n, texts, of_texts)
        return results.run(work, of_units, self.engine)


def judge_sweep(
    grid: Results, make: MakeJudge, themes: Sequence[Theme], progress: Progress | None = None
) -> tuple[Judge, JudgeScores]:
    """The judge of a sweep, made with its unsteered texts, and what it says of the grid.

    Raises:
        InvalidArgument: when a theme of the rows is not among `themes`.
        BadFile: when a file of the folder is damaged.
    """
    judge = make(unsteered(grid))
    return judge, judge_rows(grid, judge, themes, progress)


def run_sweep(
    inputs: SweepInputs,
    design: Design,
    make: MakeJudge,
    *,
    out: Path | str,
    progress: Callable[[str], Progress] | None = None,
    engine: Engine | None = None,
) -> tuple[Results, Results]:
    """Both stages of a sweep, judged: the grid and the confirmed settings. What is there is not done again.

    Args:
        inputs: model, dictionaries and matches.
        design: what is tried.
        make: makes the judge from the unsteered texts of the grid.
        out: the results folder.
        progress: gives a progress for each step by its name.
        engine: where texts are generated; this process when None. Judges are asked by this process.

    Raises:
        InvalidArgument: when the folder holds a sweep with other arguments; for themes without features.
        BadFile: when a file of the folder is damaged.
    """

    def step(name: str) -> Progress | None:
        return progress(name) if progress else None

    sweep = Sweep(inputs, design, out, engine)
    grid = sweep.run_grid(step("grid:"))
    judge, scores = judge_sweep(grid, make, design.themes, step("judging:"))
    confirmed = sweep.run_confirmed(grid, scores, step("confirming:"))
    judge_rows(confirmed, judge, design.themes, step("judging again:"))
    return grid, confirmed


def _unit(theme: Theme, direction: SteeringDirection, method: str, settings: Iterable[Setting]) -> Row:
    """A unit of work; dataset and text are what progress names it by."""
    return {
        "dataset": theme.name,
        "text": f"{direction.value} {method}",
        "theme": theme.name,
        "direction": direction.value,
        "method": method,
        "settings": [s.to_list() for s in settings],
    }


def _digest(theme: Theme) -> str:
    """A name for what a theme's file says, so that a changed one is not taken for the old."""
    told = asdict(theme) | {"starts": [str(feature) for feature in theme.starts]}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
