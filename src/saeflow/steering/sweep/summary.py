"""The tables of a sweep: sections 5.3 and C.3, and what the paper leaves open. No torch.

    rows + scores of the grid and of OUT/confirmed  ->  cells  ->  tables

Scores are of one judge, named in every note. "score" is Behavioral x Coherence, or (1 - Behavioral) x Coherence for
a suppression, of scores divided by 5 (section 4.2): 0 to 1. "behavior" and "coherence" are the judge's own, 0 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from scipy import stats

from saeflow.experiments.results import MANIFEST, Results, Row, SummaryTable
from saeflow.ids import Part
from saeflow.steering.judges import HIGHEST
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import Cell, Cells
from saeflow.steering.sweep.confirm import FOLDER, START_LAYER
from saeflow.steering.sweep.curves import by_layer, by_share, by_value, sensitivity
from saeflow.steering.sweep.scoring import read_scores
from saeflow.steering.sweep.settings import MULTI, NONE, PROMPT, RANDOM, SINGLE, START, Setting

SHOWN: Final = 4
"""Samples of each setting in `steering_samples`."""


def steering_tables(results: Results, judge: str = "") -> list[SummaryTable]:
    """All tables of a sweep, by one judge; those of chosen settings only once they are measured again.

    Args:
        results: the folder of the grid.
        judge: whose scores; the last one that was asked when not named.

    Raises:
        InvalidArgument: when that judge has not scored the rows, or there are none.
        BadFile: when a file of the folder is damaged.
    """
    grid = Cells.of(results, read_scores(results, judge))
    tables = [features(results, grid), cells(grid), by_layer(grid), by_value(grid), sensitivity(grid), by_share(grid)]
    if not (results.folder / FOLDER / MANIFEST).is_file():
        return tables
    again = Results.open(results.folder / FOLDER)
    if again.record.finished is None:
        return tables
    confirmed = Confirmed(again, Cells.of(again, read_scores(again, grid.judge)), grid)
    return [confirmed.best(), confirmed.paired(), *tables, confirmed.samples()]


def summarize_sweep(folder: Path | str, judge: str = "") -> dict[str, SummaryTable]:
    """Make the tables of a sweep's folder and write them as summary.json and CSV files.

    Raises:
        InvalidArgument: when that judge has not scored the rows, or there are none.
        BadFile: when a file of the folder is damaged.
    """
    results = Results.open(folder)
    tables = steering_tables(results, judge)
    results.write_tables(tables)
    return {table.name: table for table in tables}


def features(results: Results, grid: Cells) -> SummaryTable:
    """How many features the graphs of a theme found at each site (figure 17a)."""
    rows: list[tuple[Any, ...]] = []
    seen: set[str] = set()
    for unit in results.units():
        if unit["theme"] in seen:
            continue
        seen.add(unit["theme"])
        counts: dict[str, list[int]] = unit["features"]
        places = [(*site.split("/"), *found) for site, found in counts.items()]
        for layer, part, n, starts in sorted(places, key=lambda p: (int(p[0]), Part(p[1]).rank)):
            rows.append((unit["theme"], int(layer), part, n, starts))
    return SummaryTable.of(
        "steering_features",
        "Features to steer, found by the flow graphs",
        "figure 17a",
        "Features of all graphs of a theme at each site, each counted once; starts are those the graphs were grown "
        "from. A layer without a row has no feature to steer. No judge is in this table; scores beside it are of the "
        f"judge {grid.judge}.",
        "theme, layer, part, features, starts",
        rows,
    )


def cells(grid: Cells) -> SummaryTable:
    """Every setting of the grid."""
    score = grid.estimates(grid.values["score"])
    rows: list[tuple[Any, ...]] = []
    for (theme, direction, _), numbers in grid.groups():
        for number in numbers:
            s = grid.cells[number].setting
            rows.append(
                (
                    theme,
                    direction.value,
                    s.method,
                    s.layer,
                    s.schedule,
                    s.value,
                    score[number].n,
                    grid.mean("behavior", number),
                    grid.mean("coherence", number),
                    *score[number].interval,
                    grid.perplexity(number),
                    grid.mean("distinct_2", number),
                    grid.mean("share_layer", number),
                    grid.mean("share_total", number),
                    grid.mean("n_features", number),
                )
            )
    return SummaryTable.of(
        "steering_cells",
        "Every setting that was tried",
        "figures 9, 10, 11, 16",
        "One row a setting, on the same seeds. value is s of an activation, r of a suppression; layer is l, where "
        "single changes layer l and the others layers 0 to l. share_layer and share_total: what was changed, as a "
        "share of the hidden norm. perplexity is that of the unsteered model on the text, distinct_2 the share of "
        "its pairs of tokens that differ: low where a text repeats itself. The best of many rows is flattered by "
        f"chance: steering_best measures it again. Judge: {grid.judge}.",
        "theme, direction, method, layer, schedule, value, n, behavior, coherence, score, low, high, perplexity, "
        "distinct_2, share_layer, share_total, n_features",
        rows,
    )


class Confirmed:
    """The settings that were chosen on the grid, on fresh seeds."""

    def __init__(self, results: Results, measured: Cells, grid: Cells) -> None:
        """The rows of `OUT/confirmed`, scored by the judge of the grid's cells."""
        self.results, self.cells, self.grid = results, measured, grid
        self.roles = _roles(results.units())
        self.chosen_by = str(results.record.request.arguments.get("chosen_by", ""))

    def best(self) -> SummaryTable:
        """The chosen settings and the baselines."""
        score, behavior, coherence = (
            self.cells.estimates(self.cells.values[name], highest)
            for name, highest in (("score", 1.0), ("behavior", HIGHEST), ("coherence", HIGHEST))
        )
        before = {cell: self.grid.mean("score", number) for number, cell in enumerate(self.grid.cells)}
        rows: list[tuple[Any, ...]] = []
        for (theme, direction, _), numbers in self.cells.groups():
            for number in numbers:
                cell = self.cells.cells[number]
                s = cell.setting
                rows.append(
                    (
                        theme,
                        direction.value,
                        s.method,
                        s.layer,
                        s.value,
                        score[number].n,
                        *behavior[number].interval,
                        *coherence[number].interval,
                        *score[number].interval,
                        self.cells.perplexity(number),
                        self.cells.mean("distinct_2", number),
                        self.cells.mean("share_total", number),
                        s.mirrors,
                        self.roles[cell],
                        before.get(cell),
                    )
                )
        return SummaryTable.of(
            "steering_best",
            "The best setting of each method, on fresh samples",
            "figures 10, 11",
            f"Chosen on the grid by the mean score of the judge {self.chosen_by}, then generated again on seeds that "
            "had no part in the choice: these scores are not flattered by it, while grid_score, on the seeds that "
            "chose, is. choice tells apart the best single layer and the layer most starts lie in. random puts other "
            "rows of the same sites in place of the features of mirrors, as strong at every site and drawn anew for "
            f"each sample; a method that does not beat it owes nothing to the graph. Rows of different layers "
            "of a flow point alike and random ones do not, so that over several layers share_total of random is the "
            f"smaller one. Judge: {self.cells.judge}.",
            "theme, direction, method, layer, value, n, behavior, behavior_low, behavior_high, coherence, "
            "coherence_low, coherence_high, score, low, high, perplexity, distinct_2, share_total, mirrors, choice, "
            "grid_score",
            rows,
        )

    def paired(self) -> SummaryTable:
        """Differences of methods on the same seeds."""
        rows: list[list[Any]] = []
        for (theme, direction, _), numbers in self.cells.groups():
            named = {self._name(number): number for number in numbers}
            for a, b in _pairs(direction):
                place_a, place_b = named.get((a, "")), named.get((b, a if b == RANDOM else ""))
                if place_a is None or place_b is None:
                    continue
                scores = self.cells.values["score"]
                found, p = self.cells.difference(scores[place_a], scores[place_b])
                rows.append([theme, direction.value, a, b, found.n, *found.interval, p])
        tested = [row for row in rows if row[-1] is not None]
        adjusted = stats.false_discovery_control([row[-1] for row in tested]) if tested else []
        for row, q in zip(tested, adjusted, strict=True):
            row.append(float(q))
        return SummaryTable.of(
            "steering_paired",
            "Differences between methods on the same seeds",
            "beyond the paper",
            "Mean of score a - score b over samples of equal seed, each method at the setting of steering_best; above "
            "0 where method_a is better. single (start layer) is the best single setting at the layer most starts lie "
            "in. p: two-sided, of the t of the interval; q: the same, corrected for the number of rows (Benjamini and "
            f"Hochberg 1995). random is that of method_a. Judge: {self.cells.judge}.",
            "theme, direction, method_a, method_b, n, difference, low, high, p, q",
            [row if len(row) == 10 else [*row, None] for row in rows],
        )

    def samples(self) -> SummaryTable:
        """A few texts of each method, side by side by seed."""
        texts = list(self.results.rows())
        rows: list[tuple[Any, ...]] = []
        for (theme, direction, _), numbers in self.cells.groups():
            for column, sample in enumerate(self.cells.samples[:SHOWN]):
                for number in numbers:
                    row = int(self.cells.rows[number, column])
                    if row >= 0:
                        s = self.cells.cells[number].setting
                        rows.append(
                            (
                                theme,
                                direction.value,
                                s.method,
                                s.layer,
                                s.value,
                                sample,
                                self.cells.values["behavior"][number, column],
                                self.cells.values["coherence"][number, column],
                                texts[row]["prompt"],
                                texts[row]["text"],
                                s.mirrors,
                            )
                        )
        return SummaryTable.of(
            "steering_samples",
            "Texts of each method, side by side",
            "beyond the paper",
            f"The first {SHOWN} samples of each setting of steering_best, not picked; rows of one sample share a seed, "
            f"and so the draws of the sampling. behavior and coherence are from 0 to 5. Judge: {self.cells.judge}.",
            "theme, direction, method, layer, value, sample, behavior, coherence, prompt, text, mirrors",
            rows,
        )

    def _name(self, number: int) -> tuple[str, str]:
        """A cell as the paired table calls it, and what it mirrors."""
        cell = self.cells.cells[number]
        if self.roles[cell] == START_LAYER:
            return f"{SINGLE} ({START_LAYER})", ""
        return cell.setting.method, cell.setting.mirrors


def _pairs(direction: SteeringDirection) -> list[tuple[str, str]]:
    """What is compared: every method of graphs with the baselines, and those of several layers with single ones."""
    baselines = (START, PROMPT, RANDOM, NONE)
    several = [
        (method, other)
        for method in MULTI[direction]
        for other in (START, SINGLE, f"{SINGLE} ({START_LAYER})", PROMPT, RANDOM, NONE)
    ]
    return [*several, *((SINGLE, other) for other in baselines), (START, PROMPT), (START, NONE)]


def _roles(units: Sequence[Row]) -> dict[Cell, str]:
    """Why each setting was measured again: the best of its method, at the start layer, or a baseline."""
    found: dict[Cell, str] = {}
    for unit in units:
        for setting, role in zip(unit["settings"], unit["roles"], strict=True):
            found[Cell(unit["theme"], SteeringDirection(unit["direction"]), Setting.of(setting))] = role
    return found
