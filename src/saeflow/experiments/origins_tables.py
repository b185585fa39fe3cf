"""The tables of the origins experiment: sections 5.1, C.1 and C.4. No torch.

Every share is counted over (token, active feature) pairs; its interval is of texts. Scores are those of the
feature's best match under the method, so that a score counts as often as its feature is active.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saeflow.experiments.observations import Matched, Observations
from saeflow.experiments.records import PARTS, Origin
from saeflow.experiments.results import Results, SummaryTable
from saeflow.experiments.statistics import RATE, Estimate, by_text, mann_whitney, mean_estimates
from saeflow.experiments.tables import ALL, LABELS, ORDER
from saeflow.ids import FeatureId, Part, Site

SCORE_NAMES = {Part.RES: "s(R)", Part.MLP: "s(M)", Part.ATT: "s(A)"}
BINS = 40
ALPHA = 0.001
FEWEST_TESTED = 8
FEWEST_SEEN = 3


def origins_tables(results: Results) -> list[SummaryTable]:
    """All tables of an origins run.

    Raises:
        BadFile: when a file of the folder is damaged.
        InvalidArgument: when it has no rows.
    """
    seen, matched = Observations.of(results.rows()), Matched.of(results)
    tests = list(_tests(seen, matched))
    features = most_probable_features(seen)
    fitted = results.record.request.arguments.get("pearson_datasets", [])
    return [
        shares_by_layer(seen),
        shares_by_dataset(seen),
        scores(seen, matched),
        separability(tests),
        activity_differences(tests),
        transition(seen),
        most_probable(features),
        features,
        methods(seen, fitted),
        agreement(seen, matched),
    ]


def shares_by_layer(seen: Observations) -> SummaryTable:
    """How the groups share the active features of each layer."""
    rows = [
        (method, dataset, layer, LABELS[value], *estimate.interval, estimate.n)
        for method in seen.groups
        for dataset, layer, value, estimate in _shares(seen, method, by_layer=True)
    ]
    return SummaryTable.of(
        "shares_by_layer",
        "Origin of active features by layer",
        "fig. 5, 19b",
        "Share of the active features of a layer in each group. n counts the (token, active feature) pairs of the "
        "layer; shares of a layer sum to 1.",
        "method, dataset, layer, group, share, low, high, n",
        rows,
    )


def shares_by_dataset(seen: Observations) -> SummaryTable:
    """How the groups share the active features of each dataset."""
    rows = [
        (method, dataset, LABELS[value], *estimate.interval, estimate.n)
        for method in seen.groups
        for dataset, _, value, estimate in _shares(seen, method, by_layer=False)
    ]
    return SummaryTable.of(
        "shares_by_dataset",
        "Origin of active features by dataset",
        "fig. 12a, 19a",
        "Share of the active features of a dataset in each group, all layers together. Layer 0 has no residual "
        "predecessor.",
        "method, dataset, group, share, low, high, n",
        rows,
    )


def methods(seen: Observations, fitted: list[str]) -> SummaryTable:
    """The same tokens under each matching method."""
    rows: list[tuple[Any, ...]] = []
    for method in seen.groups:
        for dataset, _, value, estimate in _shares(seen, method, by_layer=False):
            inside = None if not fitted or dataset == ALL else dataset in fitted
            rows.append((method, dataset, inside, LABELS[value], *estimate.interval, estimate.n))
    return SummaryTable.of(
        "methods",
        "Origin of active features by matching method",
        "fig. 18",
        "The same tokens and active features under every method. in_distribution: whether the Pearson tables were made "
        "on texts of this dataset (others than the sampled ones). A method that finds more active predecessors has a "
        "smaller nowhere; whether they are causes is for the deactivation experiment.",
        "method, dataset, in_distribution, group, share, low, high, n",
        rows,
    )


def _shares(seen: Observations, method: str, *, by_layer: bool) -> Iterator[tuple[str, int, int, Estimate]]:
    """(dataset or "all", layer, group, share) in the order of the tables."""
    layers = seen.layers if by_layer else [0]
    place = np.searchsorted(layers, seen.layer) if by_layer else np.zeros_like(seen.layer)
    shape = (len(seen.texts.number), len(layers) * 8)
    for code in range(-1 if len(seen.datasets) > 1 else 0, len(seen.datasets)):
        here = np.full(len(seen.dataset), True) if code < 0 else seen.dataset == code
        cells = place[here] * 8 + seen.groups[method][here]
        counts = by_text(seen.cluster[here], cells, np.ones(len(cells)), shape)
        totals = counts.reshape(shape[0], -1, 8).sum(-1).repeat(8, axis=1)
        estimates = mean_estimates(counts, totals, seen.texts.datasets, span=RATE)
        for column, layer in enumerate(layers):
            for value in ORDER:
                yield ALL if code < 0 else seen.datasets[code], layer, value, estimates[column * 8 + value]


def scores(seen: Observations, matched: Matched) -> SummaryTable:
    """How the three scores are distributed in each group."""
    rows: list[tuple[Any, ...]] = []
    edges = np.linspace(-1, 1, BINS + 1)
    for method, groups in seen.groups.items():
        of_part = {part: matched.scores_of(method, seen, part) for part in PARTS}
        for layer in [ALL, *seen.layers]:
            here = np.full(len(groups), True) if layer == ALL else seen.layer == layer
            for value, part in itertools.product(ORDER, PARTS):
                values = of_part[part][here & (groups == value)]
                values = values[np.isfinite(values)]
                if len(values):
                    cuts = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
                    histogram = json.dumps(np.histogram(values.clip(-1, 1), edges)[0].tolist())
                    row = (method, layer, LABELS[value], SCORE_NAMES[part], len(values), values.mean())
                    rows.append((*row, *cuts, histogram))
    return SummaryTable.of(
        "scores",
        "Scores by origin",
        "fig. 3, 12b, 19c",
        "Scores of the best matches of active features. histogram: 40 counts, bins of width 0.05 over [-1, 1].",
        "method, layer, group, score, n, mean, q05, q25, median, q75, q95, histogram",
        rows,
    )


Test = tuple[str, int, int, Part, float | None]
"""(method, group, group, part of the score, p), with p None where a group has fewer than 8 rows."""


def _tests(seen: Observations, matched: Matched) -> Iterator[Test]:
    """One Mann-Whitney U test for each method, dataset, layer, pair of groups and score."""
    for method, groups in seen.groups.items():
        of_part = {part: matched.scores_of(method, seen, part) for part in PARTS}
        for code, layer in itertools.product(range(len(seen.datasets)), seen.layers):
            here = (seen.dataset == code) & (seen.layer == layer)
            for part in PARTS:
                known = here & np.isfinite(of_part[part])
                values = {value: of_part[part][known & (groups == value)] for value in ORDER}
                for a, b in itertools.combinations(ORDER, 2):
                    yield method, a, b, part, _tested(values[a], values[b])


def _tested(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " k"]) -> float | None:
    return None if min(len(a), len(b)) < FEWEST_TESTED else mann_whitney(a, b)


def separability(tests: list[Test]) -> SummaryTable:
    """In which share of tests two groups differ in a score."""
    found: dict[tuple[str, int, int, Part], list[float | None]] = {}
    for method, a, b, part, p in tests:
        found.setdefault((method, a, b, part), []).append(p)
    rows = [
        (method, LABELS[a], LABELS[b], SCORE_NAMES[part], *_passed(ps)) for (method, a, b, part), ps in found.items()
    ]
    return SummaryTable.of(
        "separability",
        "How often two groups differ in a score",
        "fig. 14, 19d",
        "One Mann-Whitney U test, two-sided, for each dataset and layer; passed: p < 0.001. A group with fewer than 8 "
        "rows is not tested, and counted in skipped. Rows of one feature repeat its score, so that p is smaller than "
        "independent rows would give: read the shares against each other.",
        "method, group_a, group_b, score, tests, passed, share, skipped",
        rows,
    )


def activity_differences(tests: list[Test]) -> SummaryTable:
    """Whether groups differ in a score when they differ in the activity of a module."""
    found: dict[tuple[str, Part, Part, str], list[float | None]] = {}
    for method, a, b, part, p in tests:
        for module in PARTS:
            active = [bool(value & Origin[module.name].value) for value in (a, b)]
            kind = "AB" if all(active) else "AO" if any(active) else "IB"
            found.setdefault((method, module, part, kind), []).append(p)
    keys = [
        (method, module, part, kind)
        for method in dict.fromkeys(test[0] for test in tests)
        for module, part, kind in itertools.product(PARTS, PARTS, ("AO", "AB", "IB"))
    ]
    rows = [
        (method, module.name, SCORE_NAMES[part], kind, *_passed(found[method, module, part, kind]))
        for method, module, part, kind in keys
    ]
    return SummaryTable.of(
        "activity_differences",
        "Differences in score by activity of a module",
        "fig. 4",
        "The tests of separability, pooled over pairs of groups. AO: the module is active in only one of the two "
        "groups; AB: in both; IB: in neither.",
        "method, module, score, kind, tests, passed, share, skipped",
        rows,
    )


def _passed(ps: list[float | None]) -> tuple[int, int, float | None, int]:
    done = [p for p in ps if p is not None]
    passed = sum(p < ALPHA for p in done)
    return len(done), passed, passed / len(done) if done else None, len(ps) - len(done)


def transition(seen: Observations) -> SummaryTable:
    """Where a feature seen in one group is seen in another context."""
    rows: list[tuple[Any, ...]] = []
    for method in seen.groups:
        _, counts = _counts(seen, method)
        counts = counts[counts.sum(1) > 1]
        others = counts.sum(1, keepdims=True) - 1
        for a in ORDER:
            starts = counts[:, a : a + 1]
            again = counts - np.eye(8, dtype=np.int64)[a]
            total = int(starts.sum())
            shares = (starts * again / others).sum(0) / total if total else [None] * 8
            rows += [(method, LABELS[a], LABELS[b], shares[b], total) for b in ORDER]
    return SummaryTable.of(
        "transition",
        "Groups of one feature in other contexts",
        "fig. 13",
        "Take a random observation of group_a, then another observation of the same feature: probability that it is of "
        "group_b. Over features seen at least twice, all layers together; rows sum to 1 over group_b. n: observations "
        "of group_a.",
        "method, group_a, group_b, probability, n",
        rows,
    )


def most_probable_features(seen: Observations) -> SummaryTable:
    """The most frequent group of every feature seen often enough."""
    rows: list[tuple[Any, ...]] = []
    order = np.array(ORDER)
    for method in seen.groups:
        features, counts = _counts(seen, method)
        often = counts.sum(1) >= FEWEST_SEEN
        best = order[counts[:, order].argmax(1)]  # the first of the order among equals
        for (layer, index), row, value in zip(
            features[often].tolist(), counts[often], best[often].tolist(), strict=True
        ):
            feature = FeatureId(Site(layer, Part.RES), index)
            rows.append((method, str(feature), LABELS[value], row[value] / row.sum(), row.sum()))
    return SummaryTable.of(
        "most_probable_features",
        "The most probable group of each feature",
        "C.1",
        f"Features seen at least {FEWEST_SEEN} times. probability: share of its observations in the group, which for "
        "few observations is too high. Among equal groups the one with fewer predecessors is named.",
        "method, feature, group, probability, seen",
        rows,
    )


def most_probable(features: SummaryTable) -> SummaryTable:
    """How many features of a layer have each most probable group."""
    found: dict[tuple[str, int, str], list[float]] = {}
    totals: dict[tuple[str, int], int] = {}
    for row in features.dicts():
        layer = FeatureId.parse(row["feature"]).layer
        found.setdefault((row["method"], layer, row["group"]), []).append(row["probability"])
        totals[row["method"], layer] = totals.get((row["method"], layer), 0) + 1
    rows: list[tuple[Any, ...]] = []
    for (method, layer), total in totals.items():
        for value in ORDER:
            sure = found.get((method, layer, LABELS[value]), [])
            rows.append((method, layer, LABELS[value], len(sure), len(sure) / total, np.mean(sure) if sure else None))
    return SummaryTable.of(
        "most_probable",
        "Features by their most probable group",
        "C.1",
        f"Features seen at least {FEWEST_SEEN} times, each counted once. certainty: mean share of a feature's "
        "observations in that group.",
        "method, layer, group, features, share, certainty",
        rows,
    )


def _counts(seen: Observations, method: str) -> tuple[Int[np.ndarray, "n k"], Int[np.ndarray, "n n_target"]]:
    """(layer, feature) of every feature seen, and how often it was seen in each of the eight groups."""
    features, which = np.unique(np.stack([seen.layer, seen.feature], 1), axis=0, return_inverse=True)
    cells = which.reshape(-1) * 8 + seen.groups[method]
    return features, np.bincount(cells, minlength=len(features) * 8).reshape(-1, 8)


def agreement(seen: Observations, matched: Matched) -> SummaryTable:
    """How often two methods name the same best match for an active feature."""
    rows: list[tuple[Any, ...]] = []
    for a, b in itertools.combinations(_different(seen, matched), 2):
        for part in PARTS:
            same = np.full(len(seen.feature), np.nan)
            for layer in seen.layers:
                first, second = matched.index(a, layer, part), matched.index(b, layer, part)
                if first is None or second is None:
                    continue
                here = seen.layer == layer
                mine, theirs = first[seen.feature[here]], second[seen.feature[here]]
                both = (mine >= 0) & (theirs >= 0)
                same[here] = np.where(both, mine == theirs, np.nan)
            for layer in [ALL, *seen.layers]:
                values = same if layer == ALL else same[seen.layer == layer]
                values = values[np.isfinite(values)]
                if len(values):
                    rows.append((a, b, part.name, layer, values.mean(), len(values)))
    return SummaryTable.of(
        "agreement",
        "How often two methods name the same predecessor",
        "C.4",
        "Over (token, active feature) pairs where both methods name a match: whether the best one is the same feature, "
        "active or not. Methods with the same best matches, as cosine and cosine top-5, are told once.",
        "method_a, method_b, part, layer, share, n",
        rows,
    )


def _different(seen: Observations, matched: Matched) -> list[str]:
    """The methods, without those whose best matches are all those of one before."""
    kept: dict[tuple[bytes | None, ...], str] = {}
    for method in seen.groups:
        tables = [matched.index(method, layer, part) for layer in seen.layers for part in PARTS]
        kept.setdefault(tuple(None if table is None else table.tobytes() for table in tables), method)
    return list(kept.values())
