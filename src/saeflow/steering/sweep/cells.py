"""Scored texts as frames, one line per text and one per setting: the source of every table of a sweep. No torch.

Two rules keep the tables unbiased. Samples of one seed are paired: intervals are over samples, and settings are
compared on the same seeds. And since the best of several settings is partly lucky, a table that shows the best of
several scores each half of the samples at the setting that is best on the other half (`crossfit`).

For the same reason the grid is only used to choose: for each method the setting with the highest mean score, and for
single also the best at the layer where most starts lie (`choose`). Reported texts are generated anew, with all
baselines, on seeds that had no part in the choice; "random" puts random rows in place of the features of each chosen
method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float

from saeflow.errors import InvalidArgument
from saeflow.experiments.results import MANIFEST, Results
from saeflow.experiments.statistics import RATE, Estimate, Span, Tally, known_mean, means
from saeflow.steering.judges import HIGHEST, final_score
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.scoring import JudgeScores, read_scores
from saeflow.steering.sweep.settings import MULTI, NONE, ORDER, PROMPT, RANDOM, SINGLE, Grid, Setting
from saeflow.steering.theme import Theme

FOLDER: Final = "confirmed"
"""Folder of the chosen settings, inside that of the grid."""

BEST, START_LAYER, BASELINE = "best", "start layer", "baseline"
"""Role of a setting measured again: the best of its method, the best at the start layer, or a baseline."""

KEYS: Final = ["theme", "direction", "method", "mirrors", "layer", "schedule", "value"]
"""The columns that identify a setting of a theme and a direction, in the order of tables."""

MARKS: Final[Mapping[str, Span]] = {"behavior": (0.0, HIGHEST), "coherence": (0.0, HIGHEST), "score": RATE}
MEASURES: Final = ("loss", "distinct_1", "distinct_2", "share_layer", "share_total", "n_features")


class Cells:
    """The texts of one stage with the scores of one judge.

    Attributes:
        judge: name of the judge.
        texts: one line per text, in the order of the rows: `KEYS`, `MARKS`, `MEASURES`; cell, the line of its setting
            in `settings`; dataset, always 0, and text, its sample, the names that `experiments.statistics` uses.
        settings: one line per setting: `KEYS`, and the means of marks and measures over its samples; themes in the
            order of the rows, directions and methods in the order of tables, then by the other `KEYS`.
        values: for each mark and measure, its values, settings by samples; NaN for a missing text or value.
    """

    def __init__(self, judge: str, texts: pd.DataFrame) -> None:
        """Take texts with `KEYS`, sample, and any of marks and measures; means leave out missing values."""
        numbers = [name for name in (*MARKS, *MEASURES) if name in texts]
        texts = texts.assign(
            theme=pd.Categorical(texts["theme"], texts["theme"].unique()),
            direction=pd.Categorical(texts["direction"], [direction.value for direction in SteeringDirection]),
            method=pd.Categorical(texts["method"], ORDER),
            dataset=0,
            text=texts["sample"],
            **{name: texts[name].astype(np.float64) for name in numbers},
        )
        settings = texts.groupby(KEYS, observed=True)
        self.judge = judge
        self.texts = texts.assign(cell=settings.ngroup())
        wide = self.texts.pivot(index="cell", columns="text", values=numbers)
        self.values = {name: wide[name].to_numpy(np.float64, copy=True) for name in numbers}
        means_of = {name: known_mean(values, 1) for name, values in self.values.items()}
        self.settings = settings.size().reset_index()[KEYS].assign(**means_of)

    @staticmethod
    def of(results: Results, scores: JudgeScores) -> Cells:
        """Combine the rows of a folder with a judge's scores.

        Raises:
            InvalidArgument: when the folder has no rows.
            BadFile: when a shard is damaged.
        """
        found = pd.DataFrame(results.columns(*KEYS, "sample", *MEASURES))
        if found.empty:
            raise InvalidArgument(f"{results.folder} has no rows. Run the sweep again to finish it.")
        found = found.assign(behavior=scores.behavior, coherence=scores.coherence)
        marks = zip(scores.behavior.tolist(), scores.coherence.tolist(), found["direction"], strict=True)
        score = [final_score(b, c, suppress=direction == SteeringDirection.SUPPRESS) for b, c, direction in marks]
        return Cells(scores.judge, found.assign(score=score))

    @property
    def steered(self) -> pd.DataFrame:
        """The settings that steer, without the unsteered and prompted ones."""
        return self.settings[~self.settings["method"].isin([NONE, PROMPT])]

    @property
    def default(self) -> pd.Series:
        """The mean score of unsteered text, by theme and direction."""
        unsteered = self.settings[self.settings["method"] == NONE]
        return unsteered.set_index(["theme", "direction"])["score"].rename("default")

    def with_intervals(self, *names: str) -> pd.DataFrame:
        """The settings with intervals of some marks, in columns NAME, NAME_low, NAME_high and NAME_n."""
        found = means(self.texts, ["cell"], {name: MARKS[name] for name in names})
        return self.settings.drop(columns=list(names)).join(found)

    def estimate(self, values: Float[np.ndarray, " k"]) -> Estimate:
        """The mean over samples of scores in [0, 1], with its interval."""
        return self.tally(values).of_means(span=RATE)

    def tally(self, values: Float[np.ndarray, "*n k"]) -> Tally:
        """A tally of `values` and of which are known; axes: samples (last in `values`), other axes, these two."""
        there = np.isfinite(values)
        return Tally(np.moveaxis(np.stack([np.where(there, values, 0.0), there], -1), -2, 0))

    def best(self, candidates: Iterable[int], samples: Any = slice(None)) -> int:
        """The candidate with the highest mean score; ties go to the smallest change, then to the first candidate.

        Raises:
            InvalidArgument: when no candidate has a score.
        """
        places = list(candidates)
        names = ("score", "share_total")
        found = pd.DataFrame({n: pd.DataFrame(self.values[n][places][:, samples]).mean(axis=1) for n in names})
        found = found.set_axis(places).dropna(subset="score")
        if found.empty:
            raise InvalidArgument("there is no setting with a score to choose from. Judge the rows first.")
        return int(found.sort_values([*names], ascending=[False, True], kind="stable").index[0])

    def crossfit(self, candidates: Iterable[int]) -> Float[np.ndarray, " k"]:
        """The score of each sample at the best of some settings, as chosen on the other half of the samples.

        The halves are the samples at even and odd positions. With one candidate, or one sample, nothing is held out.
        """
        scores, places = self.values["score"], list(candidates)
        n = scores.shape[1]
        if len(places) == 1 or n < 2:
            return scores[self.best(places)]
        even = np.arange(n) % 2 == 0
        return np.where(even, scores[self.best(places, ~even)], scores[self.best(places, even)])


def setting_of(line: Any) -> Setting:
    """The setting of a line of `Cells.settings`."""
    return Setting(line["method"], int(line["layer"]), line["schedule"], float(line["value"]), line["mirrors"])


def confirmed_cells(results: Results, judge: str) -> Cells | None:
    """The chosen settings on fresh samples, with a column `role`; None until all of them are measured.

    Raises:
        InvalidArgument: when this judge has not scored them.
        BadFile: when a file of the folder is damaged.
    """
    if not (results.folder / FOLDER / MANIFEST).is_file():
        return None
    again = Results.open(results.folder / FOLDER)
    if again.record.finished is None:
        return None
    cells = Cells.of(again, read_scores(again, judge))
    roles = {
        (unit["theme"], unit["direction"], Setting(*setting)): role
        for unit in again.units()
        for setting, role in zip(unit["settings"], unit["roles"], strict=True)
    }
    lines = cells.settings.to_dict("records")
    cells.settings["role"] = [roles[line["theme"], line["direction"], setting_of(line)] for line in lines]
    return cells


def start_layer(theme: Theme) -> int:
    """The layer with most starts; ties go to the first."""
    layers = [feature.layer for feature in theme.starts]
    return min(set(layers), key=lambda layer: (-layers.count(layer), layer))


def choose(cells: Cells, themes: Sequence[Theme], grid: Grid) -> pd.DataFrame:
    """The settings to measure again for each theme and direction: `KEYS` and role, in the order of tables.

    Raises:
        InvalidArgument: when a method has no setting with a score.
    """
    layers = {theme.name: start_layer(theme) for theme in themes}
    found: list[dict[Any, Any]] = []
    for _, here in cells.settings[KEYS].groupby(["theme", "direction", "method"], observed=True):
        best = cells.settings.loc[cells.best(here.index), KEYS].to_dict()
        method = best["method"]
        steered = method in (SINGLE, *MULTI[best["direction"]])
        found.append(best | {"role": BEST if steered else BASELINE})
        if steered and grid.wants(RANDOM):
            found.append(best | {"method": RANDOM, "mirrors": method, "role": BASELINE})
        there = here[here["layer"] == layers[best["theme"]]]
        if method == SINGLE and len(there):
            at_start = cells.settings.loc[cells.best(there.index), KEYS].to_dict()
            found += [at_start | {"role": START_LAYER}] if at_start != best else []
    themes_there = list(cells.settings["theme"].cat.categories)
    order = [*SteeringDirection]
    found.sort(
        key=lambda line: (
            themes_there.index(line["theme"]),
            order.index(line["direction"]),
            ORDER.index(line["method"]),
            ORDER.index(line["mirrors"] or line["method"]),
        )
    )
    return pd.DataFrame(found, columns=[*KEYS, "role"])
