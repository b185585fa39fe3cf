"""The tables of a sweep: those of sections 5.3 and C.3, and some beyond the paper. No torch.

    rows + scores of the grid and of OUT/confirmed  ->  cells  ->  tables

Each table is for one judge, whom its note names. "score" is Behavioral x Coherence, or (1 - Behavioral) x Coherence for
a suppression, of marks divided by 5 (section 4.2): 0 to 1. "behavior" and "coherence" are the judge's marks, 0 to 5.
The best of several settings of the grid is shown with a cross-fitted score (`Cells.crossfit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import stats

from saeflow.experiments.results import Results, SummaryTable
from saeflow.experiments.statistics import ratio
from saeflow.ids import Part
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import FOLDER, KEYS, START_LAYER, Cells, confirmed_cells
from saeflow.steering.sweep.scoring import read_scores
from saeflow.steering.sweep.settings import MULTI, NONE, PROMPT, RANDOM, SINGLE, START, VECTORS

SHOWN: Final = 4
"""Samples of each setting in `steering_samples`."""

SHARES: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Limits of `steering_by_share`: shares of the hidden norm."""

CROSSFIT: Final = (
    "each half of the samples is scored at the setting that is best on the other half, so that choosing does not "
    "flatter it"
)
_METHOD: Final = ["theme", "direction", "method"]
_SHORT: Final = {"score_low": "low", "score_high": "high", "score_n": "n"}


def steering_tables(results: Results, judge: str = "") -> list[SummaryTable]:
    """All tables of a sweep for one judge; tables of chosen settings appear once these are measured again.

    Args:
        results: the folder of the grid.
        judge: name of the judge; by default the one that scored last.

    Raises:
        InvalidArgument: when this judge has not scored the rows, or there are no rows.
        BadFile: when a file of the folder is damaged.
    """
    grid = Cells.of(results, read_scores(results, judge))
    tables = [features(results, grid), cells(grid), by_layer(grid), by_value(grid), sensitivity(grid), by_share(grid)]
    fresh = confirmed_cells(results, grid.judge)
    if fresh is None:
        return tables
    again = Results.open(results.folder / FOLDER)
    chosen_by = str(again.record.request.arguments.get("chosen_by", ""))
    return [best(fresh, grid, chosen_by), paired(fresh), *tables, samples(again, fresh)]


def summarize_sweep(folder: Path | str, judge: str = "") -> dict[str, SummaryTable]:
    """Make the tables of a sweep's folder and write them as summary.json and CSV files.

    Raises:
        InvalidArgument: when this judge has not scored the rows, or there are no rows.
        BadFile: when a file of the folder is damaged.
    """
    results = Results.open(folder)
    tables = steering_tables(results, judge)
    results.write_tables(tables)
    return {table.name: table for table in tables}


def _table(name: str, title: str, paper: str, note: str, frame: pd.DataFrame, columns: str) -> SummaryTable:
    """Make a table from some columns of a frame, with short names for the interval of the score."""
    return SummaryTable.from_frame(name, title, paper, note, frame.rename(columns=_SHORT)[columns.split(", ")])


def features(results: Results, grid: Cells) -> SummaryTable:
    """How many features the graphs of each theme found at each site (figure 17a)."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for unit in results.units():
        for site, (n, starts) in unit["features"].items():
            layer, part = site.split("/")
            line = {"theme": unit["theme"], "layer": int(layer), "part": part, "features": n, "starts": starts}
            found.setdefault((unit["theme"], site), line)
    themes = list(dict.fromkeys(theme for theme, _ in found))
    lines = sorted(found.values(), key=lambda x: (themes.index(x["theme"]), x["layer"], Part(x["part"]).rank))
    columns = "theme, layer, part, features, starts"
    return _table(
        "steering_features",
        "Features to steer, found by the flow graphs",
        "figure 17a",
        "Features of all graphs of a theme at each site, each counted once; starts are those the graphs were grown "
        "from. A layer without a row has no feature to steer. No judge is in this table; scores beside it are of the "
        f"judge {grid.judge}.",
        pd.DataFrame(lines, columns=columns.split(", ")),
        columns,
    )


def cells(grid: Cells) -> SummaryTable:
    """Every setting of the grid."""
    return _table(
        "steering_cells",
        "Every setting that was tried",
        "figures 9, 10, 11, 16",
        "One row a setting, on the same seeds. value is s of an activation, r of a suppression; layer is l, where "
        "single changes layer l and the others layers 0 to l. share_layer and share_total: what was changed, as a "
        "share of the hidden norm. perplexity is that of the unsteered model on the text, distinct_2 the share of "
        "its pairs of tokens that differ: low where a text repeats itself. The best of many rows is flattered by "
        f"chance: steering_best measures it again. Judge: {grid.judge}.",
        grid.with_intervals("score").assign(perplexity=np.exp(grid.settings["loss"])),
        "theme, direction, method, layer, schedule, value, n, behavior, coherence, score, low, high, perplexity, "
        "distinct_2, share_layer, share_total, n_features",
    )


# --- the best of several settings: figures 9 to 11 and 16 ------------------------------------------------------------


def _best_of(grid: Cells, settings: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The best setting of each group on all samples, with its cross-fitted score and the score of unsteered text."""
    lines: list[dict[Any, Any]] = []
    for _, here in settings.groupby(list(by), observed=True):
        score = grid.estimate(grid.crossfit(here.index))
        chosen = here.loc[grid.best(here.index)].to_dict()
        lines.append(chosen | dict(zip(("score", "low", "high"), score.interval, strict=True)) | {"n": score.n})
    columns = [*settings.columns, "low", "high", "n"]
    return pd.DataFrame(lines, columns=columns).join(grid.default, on=["theme", "direction"])


def by_layer(grid: Cells) -> SummaryTable:
    """The score at each layer, for every r of a suppression and the best s of an activation (figures 9, 16, 17b)."""
    settings = grid.steered[grid.steered["layer"] >= 0]
    r = settings["value"].where(settings["direction"] == SteeringDirection.SUPPRESS.value, 0.0)
    return _table(
        "steering_by_layer",
        "Score by layer",
        "figures 9, 16, 17b",
        "single changes the features of this layer alone, the others those of layers 0 to it. Suppression has a row "
        f"for each r; activation one for the best s, named in value: {CROSSFIT}. default is the score of unsteered "
        f"text. Judge: {grid.judge}.",
        _best_of(grid, settings.assign(r=r), [*_METHOD, "layer", "r"]),
        "theme, direction, method, layer, value, n, score, low, high, default",
    )


def by_value(grid: Cells) -> SummaryTable:
    """The score for each s or r, at its best layer (figures 10 and 11)."""
    return _table(
        "steering_by_value",
        "Score by strength, at the best layer",
        "figures 10, 11",
        "layer is the best one for the value on all samples; behavior and coherence are those there. score: "
        f"{CROSSFIT}. start changes the first features alone, at their own layers, and has no layer to choose. "
        f"default is the score of unsteered text. Judge: {grid.judge}.",
        _best_of(grid, grid.steered, [*_METHOD, "value"]),
        "theme, direction, method, value, layer, n, behavior, coherence, score, low, high, default",
    )


def by_share(grid: Cells) -> SummaryTable:
    """The best score within each limit on the change (section 5.3: "smaller hidden state perturbations")."""
    steered = grid.steered
    within = pd.concat([steered[steered["share_total"] <= limit].assign(share_limit=limit) for limit in SHARES])
    return _table(
        "steering_by_share",
        "Score within a limit on the change of hidden states",
        "section 5.3",
        "share_limit bounds share_total, the length of all that was changed over the norm of the hidden state: methods "
        "in rows of one limit may change as much. layer, value and share_total are of the setting that is best on "
        f"all samples; score: {CROSSFIT}. A method without a row has no setting that changes so little. default is "
        f"the score of unsteered text. Judge: {grid.judge}.",
        _best_of(grid, within, [*_METHOD, "share_limit"]),
        "theme, direction, method, share_limit, layer, value, share_total, n, score, low, high, default",
    )


def sensitivity(grid: Cells) -> SummaryTable:
    """How much a value that is not the best loses (section 5.3: "reduced sensitivity to hyperparameters")."""
    columns = (
        "theme, direction, method, values, mean_score, low, high, worst_score, best_score, spread, spread_low, "
        "spread_high, default"
    )
    lines: list[dict[str, Any]] = []
    for key, here in grid.steered.groupby(_METHOD, observed=True):
        scores = np.stack([grid.crossfit(candidates.index) for _, candidates in here.groupby("value")])
        mean = grid.estimate(scores.mean(0))
        each = [value for one in scores if (value := grid.estimate(one).value) is not None]
        known = grid.tally(scores[np.isfinite(scores).any(1)])
        spread = known.estimate(lambda x: np.ptp(ratio(x), axis=-1), span=(0.0, 1.0), sizes=known.sums[..., 1])
        lines.append(
            dict(zip(_METHOD, key, strict=True))  # pyright: ignore[reportArgumentType]
            | {"values": len(scores), "mean_score": mean.value, "low": mean.low, "high": mean.high}
            | {"worst_score": min(each), "best_score": max(each), "spread": max(each) - min(each)}
            | {"spread_low": spread.low, "spread_high": spread.high}
        )
    found = pd.DataFrame(lines, columns=columns.split(", ")[:-1]).join(grid.default, on=["theme", "direction"])
    return _table(
        "steering_sensitivity",
        "Sensitivity to the strength",
        "figures 10, 11",
        "Over all s or r of the grid, each at its best layer (cross-fitted: chosen on one half of the samples, scored "
        "on the other). mean_score is what a value taken blindly gives; spread is best_score - worst_score: small "
        "where the choice matters little. A method that does nothing at any value has no spread either, so read it "
        f"beside mean_score and default, the score of unsteered text. Judge: {grid.judge}.",
        found,
        columns,
    )


# --- the chosen settings, on fresh samples ---------------------------------------------------------------------------


def best(fresh: Cells, grid: Cells, chosen_by: str) -> SummaryTable:
    """The chosen settings and the baselines."""
    before = grid.settings[[*KEYS, "score"]].rename(columns={"score": "grid_score"})
    names = ["theme", "direction", "method"]  # categories of the two stages may differ
    found = fresh.with_intervals("behavior", "coherence", "score").assign(perplexity=np.exp(fresh.settings["loss"]))
    found = found.astype(dict.fromkeys(names, object)).merge(
        before.astype(dict.fromkeys(names, object)), on=KEYS, how="left"
    )
    return _table(
        "steering_best",
        "The best setting of each method, on fresh samples",
        "figures 10, 11",
        f"Chosen on the grid by the mean score of the judge {chosen_by}, then generated again on seeds that "
        "had no part in the choice: these scores are not flattered by it, while grid_score, on the seeds that "
        "chose, is. choice tells apart the best single layer and the layer most starts lie in. random puts other "
        "rows of the same sites in place of the features of mirrors, as strong at every site and drawn anew for "
        f"each sample; a method that does not beat it owes nothing to the graph. Rows of different layers "
        "of a flow point alike and random ones do not, so that over several layers share_total of random is the "
        f"smaller one. Judge: {fresh.judge}.",
        found.rename(columns={"role": "choice"}),
        "theme, direction, method, layer, value, n, behavior, behavior_low, behavior_high, coherence, "
        "coherence_low, coherence_high, score, low, high, perplexity, distinct_2, share_total, mirrors, choice, "
        "grid_score",
    )


def paired(fresh: Cells) -> SummaryTable:
    """Differences between methods on the same seeds."""
    at_start = f"{SINGLE} ({START_LAYER})"
    lines: list[dict[str, Any]] = []
    for (theme, direction), here in fresh.settings.groupby(["theme", "direction"], observed=True):  # pyright: ignore[reportGeneralTypeIssues]
        names = here["method"].astype(object).where(here["role"] != START_LAYER, at_start)
        places = dict(zip(zip(names, here["mirrors"], strict=True), here.index, strict=True))
        # pair each graph method with the baselines, and each method of several layers with single too
        others = (START, SINGLE, at_start, PROMPT, RANDOM, NONE, *VECTORS)
        pairs = [(method, other) for method in MULTI[SteeringDirection(direction)] for other in others]
        pairs += [(SINGLE, other) for other in (START, PROMPT, RANDOM, NONE, *VECTORS)]
        pairs += [(START, PROMPT), (START, NONE)]
        for a, b in pairs:
            place_a, place_b = places.get((a, "")), places.get((b, a if b == RANDOM else ""))
            if place_a is None or place_b is None:
                continue
            apart = fresh.values["score"][place_a] - fresh.values["score"][place_b]
            found, p = fresh.tally(apart).difference(n=int(np.isfinite(apart).sum()))
            lines.append(
                {"theme": theme, "direction": direction, "method_a": a, "method_b": b, "n": found.n}
                | dict(zip(("difference", "low", "high"), found.interval, strict=True))
                | {"p": p}
            )
    columns = "theme, direction, method_a, method_b, n, difference, low, high, p, q"
    table = pd.DataFrame(lines, columns=columns.split(", "))
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "q"] = stats.false_discovery_control(table.loc[tested, "p"].to_numpy(np.float64))
    return _table(
        "steering_paired",
        "Differences between methods on the same seeds",
        "beyond the paper",
        "Mean of score a - score b over samples of equal seed, each method at the setting of steering_best; above "
        "0 where method_a is better. single (start layer) is the best single setting at the layer most starts lie "
        "in. p: two-sided, of the t of the interval; q: the same, corrected for the number of rows (Benjamini and "
        f"Hochberg 1995). random is that of method_a. Judge: {fresh.judge}.",
        table,
        columns,
    )


def samples(results: Results, fresh: Cells) -> SummaryTable:
    """A few texts of each method, sorted so that texts of one seed are adjacent."""
    said = results.columns("prompt", "text")
    texts = fresh.texts.assign(prompt=said["prompt"], text=said["text"])
    shown = sorted(texts["sample"].unique())[:SHOWN]
    columns = "theme, direction, method, layer, value, sample, behavior, coherence, prompt, text, mirrors"
    return _table(
        "steering_samples",
        "Texts of each method, side by side",
        "beyond the paper",
        f"The first {SHOWN} samples of each setting of steering_best, not picked; rows of one sample share a seed, "
        f"and so the draws of the sampling. behavior and coherence are from 0 to 5. Judge: {fresh.judge}.",
        texts[texts["sample"].isin(shown)].sort_values(["theme", "direction", "sample", "cell"]),
        columns,
    )
