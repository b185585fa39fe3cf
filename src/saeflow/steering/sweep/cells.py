"""Scored texts as frames, one line per text and one per setting: what every table of a sweep is made from. No torch.

Two rules keep the tables honest. Samples of one seed belong together: intervals are of samples, and two
settings are compared on the same seeds. And choosing the best of several settings flatters it, since the luckiest wins:
where a table shows a best of several, each half of the samples is measured at the setting that is best on the
other half (`crossfit`).

For the same reason the grid only chooses: of each method the setting with the highest mean score, and the best at the
layer where most starts lie (`choose`). What is reported is generated anew, with all baselines, on seeds that had no
part in the choice: "random" puts random rows in place of the features of each chosen method.
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
"""Of the chosen settings, in the folder of the grid."""

BEST, START_LAYER, BASELINE = "best", "start layer", "baseline"
"""Why a setting is measured again: the best of its method, the best at the start layer, or a baseline."""

KEYS: Final = ["theme", "direction", "method", "mirrors", "layer", "schedule", "value"]
"""What names a setting of a theme and a direction, as columns in the order of tables."""

MARKS: Final[Mapping[str, Span]] = {"behavior": (0.0, HIGHEST), "coherence": (0.0, HIGHEST), "score": RATE}
MEASURES: Final = ("loss", "distinct_1", "distinct_2", "share_layer", "share_total", "n_features")


class Cells:
    """The texts of one stage with the scores of one judge.

    Attributes:
        judge: whose scores they are.
        texts: one line per text, in the order of the rows: `KEYS`, `MARKS`, `MEASURES`; cell, the line of its setting
            in `settings`; dataset and text, the sample, as `experiments.statistics` names what is drawn.
        settings: one line per setting: `KEYS`, and the means of marks and measures over its samples; themes as they
            come, directions and methods in the order of tables, then by layer and value.
        values: marks and measures, settings by samples; NaN where there is no text, or no value.
    """

    def __init__(self, judge: str, texts: pd.DataFrame) -> None:
        """Of texts with `KEYS`, sample, and any of marks and measures; a cell without a number is left out of means."""
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
        """The rows of a folder with a judge's scores.

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
        """The settings that change something."""
        return self.settings[~self.settings["method"].isin([NONE, PROMPT])]

    @property
    def default(self) -> pd.Series:
        """The mean score of unsteered text, by theme and direction."""
        unsteered = self.settings[self.settings["method"] == NONE]
        return unsteered.set_index(["theme", "direction"])["score"].rename("default")

    def with_intervals(self, *names: str) -> pd.DataFrame:
        """The settings with the interval of some marks, NAME_low, NAME_high, NAME_n."""
        found = means(self.texts, ["cell"], {name: MARKS[name] for name in names})
        return self.settings.drop(columns=list(names)).join(found)

    def estimate(self, values: Float[np.ndarray, " k"]) -> Estimate:
        """The mean of one score for each sample, with its interval."""
        return self.tally(values).of_means(span=RATE)

    def tally(self, values: Float[np.ndarray, "*n k"]) -> Tally:
        """Values and how many are known: samples first, then the axes of `values`, then these two."""
        there = np.isfinite(values)
        return Tally(np.moveaxis(np.stack([np.where(there, values, 0.0), there], -1), -2, 0))

    def best(self, candidates: Iterable[int], samples: Any = slice(None)) -> int:
        """The candidate with the highest mean score; of equal ones that which changes least, then the first layer.

        Raises:
            InvalidArgument: without a candidate that has a score.
        """
        places = list(candidates)
        names = ("score", "share_total")
        found = pd.DataFrame({n: pd.DataFrame(self.values[n][places][:, samples]).mean(axis=1) for n in names})
        found = found.set_axis(places).dropna(subset="score")
        if found.empty:
            raise InvalidArgument("there is no setting with a score to choose from. Judge the rows first.")
        return int(found.sort_values([*names], ascending=[False, True], kind="stable").index[0])

    def crossfit(self, candidates: Iterable[int]) -> Float[np.ndarray, " k"]:
        """The score of each sample at the best of some settings, as chosen on samples of the other half.

        Halves are the samples of even and odd place. With one candidate, or one sample, this is its score.
        """
        scores, places = self.values["score"], list(candidates)
        n = scores.shape[1]
        if len(places) == 1 or n < 2:
            return scores[self.best(places)]
        even = np.arange(n) % 2 == 0
        return np.where(even, scores[self.best(places, ~even)], scores[self.best(places, even)])


def setting_of(line: Any) -> Setting:
    """The setting that a line of `Cells.settings` is about."""
    return Setting(line["method"], int(line["layer"]), line["schedule"], float(line["value"]), line["mirrors"])


def confirmed_cells(results: Results, judge: str) -> Cells | None:
    """The settings that were chosen on the grid, on fresh samples, with a column `role`; None before they are measured.

    Raises:
        InvalidArgument: when that judge has not scored them.
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
    """The layer most starts lie in; the first of several."""
    layers = [feature.layer for feature in theme.starts]
    return min(set(layers), key=lambda layer: (-layers.count(layer), layer))


def choose(cells: Cells, themes: Sequence[Theme], grid: Grid) -> pd.DataFrame:
    """What is measured again for each theme and direction of the grid: `KEYS` and role, in the order of tables.

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
