"""The tables of the origins experiment: sections 5.1, C.1 and C.4. No torch.

    rows -> observations: one line per active feature at a token -> queries

Every share is a fraction of (token, active feature) pairs; its interval treats texts as the independent units. Scores
are those of a feature's best match under the method, so a score counts as often as its feature is active.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.groups import ALL, GROUPS, ORDER, PARTS, Origin
from saeflow.experiments.results import Results, Row, SummaryTable
from saeflow.experiments.statistics import mann_whitney, shares
from saeflow.ids import FeatureId, Part, Site
from saeflow.reading import safetensors

OBSERVED: Final = ["dataset", "text", "layer", "feature"]
"""The columns of observations that precede those of the methods."""

SCORE_NAMES = {Part.RES: "s(R)", Part.MLP: "s(M)", Part.ATT: "s(A)"}
BINS = 40
ALPHA = 0.001
FEWEST_TESTED = 8
FEWEST_SEEN = 3
_SHARES = ["share", "low", "high", "n"]


def observations(rows: Iterable[Row]) -> pd.DataFrame:
    """Every active feature at every sampled token, one line each, from the rows of a results folder.

    Columns: dataset (categorical), text, layer (L of the residual site), feature (its index in the dictionary there),
    and one column per method with the feature's group (categorical, in the order of every table).

    Raises:
        InvalidArgument: when there are no rows, or no active feature in them.
    """
    kept = list(rows)
    sizes = np.array([len(row["features"]) for row in kept], dtype=np.int64)
    if not sizes.sum():
        raise InvalidArgument("the run has no active feature at any token. Give more texts or tokens.")
    tokens = pd.DataFrame({name: [row[name] for row in kept] for name in ("dataset", "text", "layer")})
    tokens["dataset"] = tokens["dataset"].astype("category")
    found = tokens.loc[tokens.index.repeat(sizes)].reset_index(drop=True)
    found["feature"] = np.fromiter((f for row in kept for f in row["features"]), np.int64, int(sizes.sum()))
    place = np.argsort(ORDER)
    for method in kept[0]["groups"]:
        values = np.frombuffer("".join(row["groups"][method] for row in kept).encode(), np.uint8) - ord("0")
        found[method] = pd.Categorical.from_codes(place[values], dtype=pd.CategoricalDtype(list(GROUPS)))
    return found


def methods_of(seen: pd.DataFrame) -> list[str]:
    """The matching methods of observations, in the order of the run."""
    return [name for name in seen.columns if name not in OBSERVED]


@dataclass(frozen=True, slots=True, eq=False)
class BestMatches:
    """The best match and score of every feature under every method, as the run saved them in `matches.safetensors`."""

    arrays: Mapping[str, np.ndarray]

    @staticmethod
    def of(results: Results) -> BestMatches:
        """Read the matches of a results folder.

        Raises:
            BadFile: when the file is missing or damaged.
        """
        path: Path = results.folder / "matches.safetensors"
        try:
            return BestMatches(load_file(safetensors(path)))
        except (OSError, ValueError, SafetensorError) as error:
            raise BadFile(f"{path} cannot be read ({error}). Run the experiment's command again.") from None

    def at(self, method: str, layer: int, part: Part, what: str) -> np.ndarray | None:
        """For each feature of a layer, its best match (`what` = "index", -1 for none) or s(P) ("score", NaN for none).

        None if the method has no table.
        """
        site = Site(layer, Part.RES)
        predecessor = next((one for one in site.predecessors if one.part is part), None)
        return self.arrays.get(f"{method} {site}-{predecessor} {what}")

    def of_each(self, seen: pd.DataFrame, method: str, part: Part, what: str = "score") -> Float[np.ndarray, " n"]:
        """The same for each line of observations; NaN for none."""
        found = np.full(len(seen), np.nan)
        feature, layer = seen["feature"].to_numpy(), seen["layer"].to_numpy()
        for each in seen["layer"].unique().tolist():
            values = self.at(method, each, part, what)
            if values is not None:
                here = layer == each
                found[here] = values[feature[here]]
        return np.where(found < 0, np.nan, found) if what == "index" else found

    def scored(self, seen: pd.DataFrame, method: str) -> pd.DataFrame:
        """Observations under one method: dataset, text, layer, feature, group, and the scores s(R), s(M), s(A)."""
        scores = {SCORE_NAMES[part]: self.of_each(seen, method, part) for part in PARTS}
        return seen[OBSERVED].assign(group=seen[method], **scores)


def summarize_origins(results: Results) -> dict[str, SummaryTable]:
    """Make the tables of a run from its rows and write them as summary.json and CSV files.

    Raises:
        BadFile: when a file of the folder is damaged.
        InvalidArgument: when it has no rows.
    """
    seen, matches = observations(results.rows()), BestMatches.of(results)
    tested = score_tests(seen, matches)
    features = most_probable_features(seen)
    by_dataset = shares_by_dataset(seen)
    return results.write_tables(
        [
            shares_by_layer(seen),
            by_dataset,
            scores(seen, matches),
            separability(tested),
            activity_differences(tested),
            transition(seen),
            most_probable(features),
            features,
            methods(by_dataset, results.record.request.arguments.get("pearson_datasets", [])),
            agreement(seen, matches),
        ]
    )


def _every(seen: pd.DataFrame, column: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The lines for each value of a column, preceded by all lines: for datasets, only if there are several."""
    values = seen[column].unique().tolist()
    if len(values) > 1 or column == "layer":
        yield ALL, seen
    for value in values if column == "dataset" else sorted(values):
        yield value, seen[seen[column] == value]


def shares_by_layer(seen: pd.DataFrame) -> SummaryTable:
    """The share of each group among the active features, by layer."""
    found: list[pd.DataFrame] = []
    layers = pd.DataFrame({"layer": np.unique(seen["layer"])})
    for method, (dataset, some) in itertools.product(methods_of(seen), list(_every(seen, "dataset"))):
        every = layers.merge(pd.DataFrame({"group": GROUPS}), how="cross")
        each = every.merge(shares(some, ["layer"], method).rename(columns={method: "group"}), how="left")
        found.append(each.assign(method=method, dataset=dataset, n=each["n"].fillna(0).astype(np.int64)))
    return SummaryTable.from_frame(
        "shares_by_layer",
        "Origin of active features by layer",
        "fig. 5, 19b",
        "Share of the active features of a layer in each group. `n` counts the (token, active feature) pairs of the "
        "layer; shares of a layer sum to 1.",
        pd.concat(found)[["method", "dataset", "layer", "group", *_SHARES]],
    )


def shares_by_dataset(seen: pd.DataFrame) -> SummaryTable:
    """The share of each group among the active features, by dataset."""
    found = [
        shares(some, [], method).rename(columns={method: "group"}).assign(method=method, dataset=dataset)
        for method in methods_of(seen)
        for dataset, some in _every(seen, "dataset")
    ]
    return SummaryTable.from_frame(
        "shares_by_dataset",
        "Origin of active features by dataset",
        "fig. 12a, 19a",
        "Share of the active features of a dataset in each group, all layers together. Layer 0 has no residual "
        "predecessor.",
        pd.concat(found)[["method", "dataset", "group", *_SHARES]],
    )


def methods(by_dataset: SummaryTable, fitted: list[str]) -> SummaryTable:
    """The shares by dataset, to compare matching methods on the same tokens."""
    found = by_dataset.frame()
    inside = [None if not fitted or dataset == ALL else dataset in fitted for dataset in found["dataset"]]
    found.insert(2, "in_distribution", pd.Series(inside, dtype=object))
    return SummaryTable.from_frame(
        "methods",
        "Origin of active features by matching method",
        "fig. 18",
        "The same tokens and active features under every method. `in_distribution`: whether the tables of `pearson` "
        "were made on texts of this dataset (others than the sampled ones). A method that finds more active "
        "predecessors has a smaller nowhere; whether they are causes is for the deactivation experiment.",
        found,
    )


def scores(seen: pd.DataFrame, matches: BestMatches) -> SummaryTable:
    """The distribution of the three scores in each group."""
    rows: list[tuple[Any, ...]] = []
    edges = np.linspace(-1, 1, BINS + 1)
    for method in methods_of(seen):
        for layer, some in _every(matches.scored(seen, method), "layer"):
            for group, lines in some.groupby("group", observed=True):
                for score in SCORE_NAMES.values():
                    values = lines[score].dropna().to_numpy()
                    if len(values):
                        cuts = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
                        histogram = json.dumps(np.histogram(values.clip(-1, 1), edges)[0].tolist())
                        rows.append((method, layer, group, score, len(values), values.mean(), *cuts, histogram))
    return SummaryTable.of(
        "scores",
        "Scores by origin",
        "fig. 3, 12b, 19c",
        "Scores of the best matches of active features. In the CSV file `histogram`: 40 counts, bins of width 0.05 "
        "over [-1, 1].",
        "method, layer, group, score, n, mean, q05, q25, median, q75, q95, histogram",
        rows,
    )


def score_tests(seen: pd.DataFrame, matches: BestMatches) -> pd.DataFrame:
    """Mann-Whitney U tests: method, dataset, layer, score, group_a, group_b, p.

    One line per method, dataset, layer, pair of groups and score; p is NaN if a group has fewer than 8 rows.
    """
    found: list[tuple[Any, ...]] = []
    pairs = list(itertools.combinations(GROUPS, 2))
    layers, datasets = np.unique(seen["layer"]).tolist(), seen["dataset"].unique().tolist()
    for method in methods_of(seen):
        frame = matches.scored(seen, method)
        cells = dict(list(frame.groupby(["dataset", "layer", "group"], observed=True)))
        for dataset, layer, score in itertools.product(datasets, layers, SCORE_NAMES.values()):
            values = {
                group: cells[key][score].dropna().to_numpy()
                if (key := (dataset, layer, group)) in cells
                else np.empty(0)
                for group in GROUPS
            }
            for a, b in pairs:
                enough = min(len(values[a]), len(values[b])) >= FEWEST_TESTED
                p = mann_whitney(values[a], values[b]) if enough else np.nan
                found.append((method, dataset, layer, score, a, b, p))
    return pd.DataFrame(found, columns=["method", "dataset", "layer", "score", "group_a", "group_b", "p"])


def _passed(tested: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """For each group of `by`, in order of appearance: how many tests were made, passed and skipped."""
    made = tested.assign(tests=tested["p"].notna(), passed=tested["p"] < ALPHA, skipped=tested["p"].isna())
    found = made.groupby(by, sort=False, observed=False)[["tests", "passed", "skipped"]].sum().reset_index()
    found["share"] = found["passed"] / found["tests"].where(found["tests"] > 0)
    return found[[*by, "tests", "passed", "share", "skipped"]]


def separability(tested: pd.DataFrame) -> SummaryTable:
    """The share of tests in which two groups differ in a score."""
    return SummaryTable.from_frame(
        "separability",
        "How often two groups differ in a score",
        "fig. 14, 19d",
        "One Mann-Whitney U test, two-sided, for each dataset and layer. `passed`: p < 0.001. A group with fewer than "
        "8 rows is not tested, and counted in `skipped`. Rows of one feature repeat its score, so that p is smaller "
        "than independent rows would give: read the shares against each other.",
        _passed(tested, ["method", "group_a", "group_b", "score"]),
    )


def activity_differences(tested: pd.DataFrame) -> SummaryTable:
    """How often two groups differ in a score, by whether they differ in the activity of a module."""
    kinds = np.array(["IB", "AO", "AB"])
    found: list[pd.DataFrame] = []
    for part in PARTS:
        with_part = [label for label in GROUPS if part in Origin.named(label).parts]
        active = [tested[name].isin(with_part) for name in ("group_a", "group_b")]
        kind = pd.Categorical(kinds[active[0].astype(int) + active[1].astype(int)], ["AO", "AB", "IB"])
        found.append(
            tested.assign(module=pd.Categorical([part.name] * len(tested), [p.name for p in PARTS]), kind=kind)
        )
    every = pd.concat(found)
    every["method"] = pd.Categorical(every["method"], every["method"].unique())
    every["score"] = pd.Categorical(every["score"], list(SCORE_NAMES.values()))
    pooled = _passed(every, ["method", "module", "score", "kind"])
    return SummaryTable.from_frame(
        "activity_differences",
        "Differences in score by activity of a module",
        "fig. 4",
        "The tests of separability, pooled over pairs of groups. `AO`: the module is active in only one of the two "
        "groups. `AB`: in both. `IB`: in neither.",
        pooled.sort_values(["method", "module", "score", "kind"]),
    )


def counts_by_feature(seen: pd.DataFrame, method: str) -> pd.DataFrame:
    """How often each feature was seen in each of the eight groups, one line per (layer, feature)."""
    features = seen.groupby(["layer", "feature"])
    keys = features.size().index
    cells = features.ngroup().to_numpy() * 8 + seen[method].cat.codes.to_numpy()
    return pd.DataFrame(np.bincount(cells, minlength=len(keys) * 8).reshape(-1, 8), keys, GROUPS)


def transition(seen: pd.DataFrame) -> SummaryTable:
    """The probability that a feature seen in one group is seen in another group in another context."""
    rows: list[tuple[Any, ...]] = []
    for method in methods_of(seen):
        counts = counts_by_feature(seen, method).to_numpy()
        counts = counts[counts.sum(1) > 1]
        others = counts.sum(1) - 1
        for place, a in enumerate(GROUPS):
            starts, total = counts[:, place], int(counts[:, place].sum())
            again = counts - np.eye(8, dtype=np.int64)[place]
            chances = ((starts / others)[:, None] * again).sum(0) / total if total else [None] * 8
            rows += [(method, a, b, chance, total) for b, chance in zip(GROUPS, chances, strict=True)]
    return SummaryTable.of(
        "transition",
        "Groups of one feature in other contexts",
        "fig. 13",
        "Take a random observation of `group_a`, then another observation of the same feature: probability that it is "
        "of `group_b`. Over features seen at least twice, all layers together; rows sum to 1 over `group_b`. `n`: "
        "observations of `group_a`.",
        "method, group_a, group_b, probability, n",
        rows,
    )


def most_probable_features(seen: pd.DataFrame) -> SummaryTable:
    """The most frequent group of every feature seen often enough."""
    found: list[pd.DataFrame] = []
    for method in methods_of(seen):
        counts = counts_by_feature(seen, method)
        counts = counts[counts.sum(axis=1) >= FEWEST_SEEN]
        best = counts.idxmax(axis=1)  # ties go to the first group
        total = counts.sum(axis=1)
        names = [str(FeatureId(Site(layer, Part.RES), index)) for layer, index in counts.index]
        columns = {"feature": names, "group": best, "probability": counts.max(axis=1) / total, "seen": total}
        found.append(pd.DataFrame({"method": method, **columns}))
    return SummaryTable.from_frame(
        "most_probable_features",
        "The most probable group of each feature",
        "C.1",
        f"Features seen at least {FEWEST_SEEN} times. `probability`: share of its observations in the group, which for "
        "few observations is too high. Among equal groups the one with fewer predecessors is named.",
        pd.concat(found),
    )


def most_probable(features: SummaryTable) -> SummaryTable:
    """How many features of each layer have which most probable group."""
    frame = features.frame()
    layer = frame["feature"].map(lambda name: FeatureId.parse(str(name)).layer).astype(np.int64)
    method = pd.Categorical(frame["method"], frame["method"].unique())
    frame = frame.assign(method=method, layer=layer, group=pd.Categorical(frame["group"], GROUPS))
    grouped = frame.groupby(["method", "layer", "group"], observed=False)
    found = grouped["probability"].agg(features="size", certainty="mean").reset_index()
    found["share"] = found["features"] / found.groupby(["method", "layer"], observed=True)["features"].transform("sum")
    return SummaryTable.from_frame(
        "most_probable",
        "Features by their most probable group",
        "C.1",
        f"Features seen at least {FEWEST_SEEN} times, each counted once. `certainty`: mean share of a feature's "
        "observations in that group.",
        found[["method", "layer", "group", "features", "share", "certainty"]],
    )


def agreement(seen: pd.DataFrame, matches: BestMatches) -> SummaryTable:
    """How often two methods name the same best match for an active feature."""
    layers = np.unique(seen["layer"]).tolist()
    different: dict[tuple[bytes | None, ...], str] = {}  # methods with identical best matches: only the first is kept
    for method in methods_of(seen):
        tables = [matches.at(method, layer, part, "index") for layer in layers for part in PARTS]
        different.setdefault(tuple(None if table is None else table.tobytes() for table in tables), method)
    rows: list[tuple[Any, ...]] = []
    for a, b in itertools.combinations(different.values(), 2):
        for part in PARTS:
            mine, theirs = (matches.of_each(seen, method, part, "index") for method in (a, b))
            both = np.isfinite(mine) & np.isfinite(theirs)
            same = seen[OBSERVED].assign(same=mine == theirs)[both]
            rows += [(a, b, part.name, layer, some["same"].mean(), len(some)) for layer, some in _every(same, "layer")]
    return SummaryTable.of(
        "agreement",
        "How often two methods name the same predecessor",
        "C.4",
        "Over (token, active feature) pairs where both methods name a match: whether the best one is the same feature, "
        "active or not. Of methods with the same best matches one is told.",
        "method_a, method_b, part, layer, share, n",
        (row for row in rows if row[-1]),
    )
