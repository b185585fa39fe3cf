"""Scored rows as matrices, settings by samples: what every table of a sweep is made from. No torch.

Two rules keep the tables honest. Samples of one seed belong together: intervals are of samples, and two
settings are compared on the same seeds. And choosing the best of several settings flatters it, since the luckiest wins:
where a table shows a best of several, each half of the samples is measured at the setting that is best on the
other half (`crossfit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int

from saeflow.errors import InvalidArgument
from saeflow.experiments.results import Results
from saeflow.experiments.statistics import Estimate, Tally, mean_estimates
from saeflow.steering.judges import Score
from saeflow.steering.metrics import combined, perplexity
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.scoring import JudgeScores
from saeflow.steering.sweep.settings import NONE, ORDER, Setting

MEASURES: Final = ("loss", "distinct_1", "distinct_2", "share_layer", "share_total", "n_features")


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A setting of a theme and a direction."""

    theme: str
    direction: SteeringDirection
    setting: Setting


@dataclass(frozen=True, eq=False)
class Cells:
    """The rows of one stage with the scores of one judge.

    Attributes:
        judge: whose scores they are.
        cells: the settings, in the order of their first row.
        samples: numbers of the samples, ascending.
        values: for "score", "behavior", "coherence" and each of `MEASURES`, cells by samples; NaN where
            there is no row, or no value.
        rows: the number of the row of each cell and sample among all rows, -1 where there is none.
    """

    judge: str
    cells: tuple[Cell, ...]
    samples: tuple[int, ...]
    values: Mapping[str, Float[np.ndarray, "n k"]]
    rows: Int[np.ndarray, "n k"]

    @staticmethod
    def of(results: Results, scores: JudgeScores) -> Cells:
        """The rows of a folder with a judge's scores.

        Raises:
            InvalidArgument: when the folder has no rows.
            BadFile: when a shard is damaged.
        """
        names = ("theme", "direction", "method", "layer", "schedule", "value", "mirrors", "sample", *MEASURES)
        told = results.columns(*names)
        if not told["theme"]:
            raise InvalidArgument(f"{results.folder} has no rows. Run the sweep again to finish it.")
        keys = [
            Cell(theme, SteeringDirection(direction), Setting(*setting))
            for theme, direction, *setting in zip(*(told[name] for name in names[:7]), strict=True)
        ]
        place = {cell: number for number, cell in enumerate(dict.fromkeys(keys))}
        samples = tuple(sorted(set(told["sample"])))
        column = {sample: number for number, sample in enumerate(samples)}
        at = np.array([place[key] for key in keys]), np.array([column[sample] for sample in told["sample"]])
        judged: dict[str, Any] = {
            "behavior": scores.behavior,
            "coherence": scores.coherence,
            "score": [
                combined(Score(coherence=float(c), behavior=float(b)), key.direction)
                for c, b, key in zip(scores.coherence, scores.behavior, keys, strict=True)
            ],
        }
        values: dict[str, Float[np.ndarray, "n k"]] = {}
        for name, numbers in (judged | {name: told[name] for name in MEASURES}).items():
            values[name] = np.full((len(place), len(samples)), np.nan)
            values[name][at] = np.array(numbers, dtype=np.float64)  # None becomes NaN
        rows = np.full((len(place), len(samples)), -1, dtype=np.int64)
        rows[at] = np.arange(len(keys))
        return Cells(scores.judge, tuple(place), samples, values, rows)

    def where(self, keep: Callable[[Cell], bool]) -> list[int]:
        """The numbers of the cells that are kept."""
        return [number for number, cell in enumerate(self.cells) if keep(cell)]

    def groups(
        self, key: Callable[[Cell], Any] = lambda _: ()
    ) -> Iterator[tuple[tuple[str, SteeringDirection, Any], list[int]]]:
        """Cells by theme, direction and `key`: themes as they come, directions and methods in the order of tables."""
        found: dict[tuple[str, SteeringDirection, Any], list[int]] = {}
        themes = list(dict.fromkeys(cell.theme for cell in self.cells))
        order = sorted(
            range(len(self.cells)),
            key=lambda number: (themes.index(self.cells[number].theme), _place(self.cells[number])),
        )
        for number in order:
            cell = self.cells[number]
            found.setdefault((cell.theme, cell.direction, key(cell)), []).append(number)
        yield from found.items()

    def mean(self, name: str, cell: int) -> float:
        """The mean of a value over the samples of a cell; NaN where it has none."""
        values = self.values[name][cell]
        there = np.isfinite(values)
        return float(values[there].mean()) if there.any() else float("nan")

    def perplexity(self, cell: int) -> float:
        """exp of the mean loss of a cell's texts under the unsteered model."""
        return perplexity(self.values["loss"][cell].tolist())

    def estimate(self, values: Float[np.ndarray, " k"]) -> Estimate:
        """The mean of one score for each sample, with its interval."""
        return self.estimates(values[None])[0]

    def estimates(self, values: Float[np.ndarray, "n k"], highest: float = 1.0) -> list[Estimate]:
        """The mean of each row of values from 0 to `highest`, one a sample, with intervals."""
        there = np.isfinite(values)
        sums, counts = np.where(there, values, 0.0).T, there.T.astype(np.float64)
        return mean_estimates(sums, counts, [0] * len(counts), span=(0.0, highest))

    def difference(self, a: Float[np.ndarray, " k"], b: Float[np.ndarray, " k"]) -> tuple[Estimate, float | None]:
        """The mean of a - b over samples that have both, with its interval and p."""
        both = np.isfinite(a) & np.isfinite(b)
        return self.tally(a - b).difference(n=int(both.sum()))

    def tally(self, values: Float[np.ndarray, "*n k"]) -> Tally:
        """Values and how many are known: samples first, then the axes of `values`, then these two."""
        there = np.isfinite(values)
        return Tally(np.moveaxis(np.stack([np.where(there, values, 0.0), there], -1), -2, 0))

    def default(self, theme: str, direction: SteeringDirection) -> float | None:
        """The mean score of unsteered text."""
        found = self.where(lambda c: (c.theme, c.direction, c.setting.method) == (theme, direction, NONE))
        return self.mean("score", found[0]) if found else None

    def best(self, candidates: Sequence[int]) -> int:
        """The candidate with the highest mean score; of equal ones that which changes least, then the first layer.

        Raises:
            InvalidArgument: without a candidate that has a score.
        """
        scored = [(self.mean("score", cell), cell) for cell in candidates]
        if not (scored := [pair for pair in scored if np.isfinite(pair[0])]):
            raise InvalidArgument("there is no setting with a score to choose from. Judge the rows first.")
        return min(scored, key=lambda pair: (-pair[0], self.mean("share_total", pair[1]), self.cells[pair[1]].setting))[
            1
        ]

    def crossfit(self, candidates: Sequence[int]) -> Float[np.ndarray, " k"]:
        """The score of each sample at the best of some settings, as chosen on samples of the other half.

        Halves are the samples of even and odd place. With one candidate, or one sample, this is its score.
        """
        scores = self.values["score"]
        if len(candidates) == 1 or len(self.samples) < 2:
            return scores[self.best(candidates)]
        even = np.arange(len(self.samples)) % 2 == 0
        found = np.full(len(self.samples), np.nan)
        for half in (even, ~even):
            found[half] = scores[self._best_on(~half, candidates), half]
        return found

    def _best_on(self, half: Bool[np.ndarray, " k"], candidates: Sequence[int]) -> int:
        part = Cells(
            self.judge,
            self.cells,
            tuple(np.array(self.samples)[half].tolist()),
            {name: self.values[name][:, half] for name in ("score", "share_total")},
            self.rows[:, half],
        )
        return part.best(candidates)


def methods(cells: Iterable[Cell]) -> list[str]:
    """The methods there are, in the order of tables."""
    there = {cell.setting.method for cell in cells}
    return [method for method in ORDER if method in there]


def _place(cell: Cell) -> tuple[Any, ...]:
    setting = cell.setting
    direction = list(SteeringDirection).index(cell.direction)
    return direction, ORDER.index(setting.method), setting.mirrors, setting.layer, setting.value
