"""Made-up summary tables with the columns of the real ones: plausible numbers, gaps, groups that are missing."""

import json
import random
import subprocess
import sys
from pathlib import Path

from saeflow.experiments.groups import Origin
from saeflow.experiments.results import Results, RunRequest, SummaryTable

GROUPS = [origin.label for origin in Origin.groups()]
METHODS = ["cosine", "pearson"]
DATASETS = ["fineweb", "tinystories", "python"]
STRATEGIES = ["top-1", "random of top-5"]
SCORES = ["s(R)", "s(M)", "s(A)"]
RATE = {"top-1": 0.7, "random of top-5": 0.35, "exhaustive": 0.8, "pearson top-1": 0.66, "active control": 0.08}


def around(value, width=0.03):
    return value, max(0.0, value - width), min(1.0, value + width)


def shares(seed):
    draw = random.Random(seed)  # noqa: S311 made-up numbers
    parts = [draw.random() ** 2 + 0.02 for _ in GROUPS]
    return dict(zip(GROUPS, (p / sum(parts) for p in parts), strict=True))


def group_rows(keys, n):
    """Rows of a share for each group, with interval and n."""
    return [[*keys, group, *around(share, 0.02), n] for group, share in shares(" ".join(map(str, keys))).items()]


def histogram(seed):
    draw = random.Random(seed)  # noqa: S311 made-up numbers
    middle = draw.uniform(0.2, 0.8)
    bins = [0] * 40
    for _ in range(200):
        bins[min(39, max(20, int((draw.gauss(middle, 0.12) + 1) * 20)))] += 1
    return bins


def origins_tables(layers=range(4), methods=METHODS, datasets=DATASETS):
    every, sets = ["all", *layers], ["all", *datasets]
    pairs = [(a, b) for i, a in enumerate(GROUPS) for b in GROUPS[i + 1 :]]
    share = "dataset, layer, group, share, low, high, n"
    yield SummaryTable.of(
        "shares_by_layer",
        "Origin by layer",
        "fig. 5, 19b",
        "Shares sum to 1.",
        f"method, {share}",
        [row for m in methods for d in sets for layer in layers for row in group_rows([m, d, layer], 500)],
    )
    yield SummaryTable.of(
        "shares_by_dataset",
        "Origin by dataset",
        "fig. 12a, 19a",
        "",
        "method, dataset, group, share, low, high, n",
        [row for m in methods for d in sets for row in group_rows([m, d], 2000)],
    )
    yield SummaryTable.of(
        "methods",
        "Origin by method",
        "fig. 18",
        "",
        "method, dataset, in_distribution, group, share, low, high, n",
        [
            [*row[:2], None if d == "all" else d == "fineweb", *row[2:]]
            for m in methods
            for d in sets
            for row in group_rows([m, d], 2000)
        ],
    )
    yield SummaryTable.of(
        "scores",
        "Scores by origin",
        "fig. 3, 12b, 19c",
        "",
        "method, layer, group, score, n, mean, q05, q25, median, q75, q95, histogram",
        [
            [m, layer, g, s, 200, 0.5, 0.2, 0.4, 0.5, 0.6, 0.8, json.dumps(histogram(f"{m}{layer}{g}{s}"))]
            for m in methods
            for layer in every
            for g in GROUPS
            for s in SCORES
            if not (layer == 1 and g == "MLP & ATT")
        ],
    )
    yield SummaryTable.of(
        "separability",
        "How often two groups differ",
        "fig. 14, 19d",
        "",
        "method, group_a, group_b, score, tests, passed, share, skipped",
        [
            [m, a, b, s, *((12, 9, 0.75, 0) if a != "nowhere" else (0, 0, None, 12))]
            for m in methods
            for a, b in pairs
            for s in SCORES
        ],
    )
    yield SummaryTable.of(
        "activity_differences",
        "Differences by activity",
        "fig. 4",
        "",
        "method, module, score, kind, tests, passed, share, skipped",
        [
            [m, p, s, k, 100, round(100 * x), x, 0]
            for m in methods
            for p in ("RES", "MLP", "ATT")
            for s in SCORES
            for k, x in (("AO", 0.9 if p[0] == s[2] else 0.5), ("AB", 0.3), ("IB", 0.25))
        ],
    )
    yield SummaryTable.of(
        "transition",
        "Groups in other contexts",
        "fig. 13",
        "",
        "method, group_a, group_b, probability, n",
        [[m, a, b, p, 300] for m in methods for a in GROUPS for b, p in shares(m + a).items()],
    )
    yield SummaryTable.of(
        "most_probable",
        "Most probable group",
        "C.1",
        "",
        "method, layer, group, features, share, certainty",
        [
            [m, layer, g, round(200 * s), s, 0.8]
            for m in methods
            for layer in layers
            for g, s in shares(f"{m}{layer}").items()
        ],
    )
    yield SummaryTable.of(
        "agreement",
        "Same predecessor",
        "C.4",
        "",
        "method_a, method_b, part, layer, share, n",
        [
            ["cosine", "pearson", p, layer, x, 900]
            for p, x in (("RES", 0.8), ("MLP", 0.5), ("ATT", 0.3))
            for layer in every
        ],
    )


def trial(rate, control=0.08, n=200):
    """The cells of a deactivation table from `deactivated` on."""
    return [*around(rate), n, *around(rate + 0.1), *around(control), control + 0.03, n - 10]


TRIAL = (
    "deactivated, low, high, n, change, change_low, change_high, "
    "control_deactivated, control_low, control_high, control_change, control_n"
)


def deactivation_tables(layers=range(1, 4)):
    groups = GROUPS[1:]
    parts = [(g, p) for g in groups for p in g.split(" & ")]
    yield SummaryTable.of(
        "by_strategy",
        "Deactivation by strategy",
        "fig. 6",
        "",
        f"strategy, group, removed, {TRIAL}",
        [[s, g, g, *trial(RATE[s] - 0.04 * i)] for i, g in enumerate(groups) for s in STRATEGIES],
    )
    yield SummaryTable.of(
        "by_strategy_layer",
        "Deactivation by layer",
        "fig. 6",
        "",
        f"strategy, layer, {TRIAL}",
        [[s, layer, *trial(RATE[s] - 0.03 * layer)] for s in STRATEGIES for layer in layers],
    )
    yield SummaryTable.of(
        "by_rescale",
        "Rescaling",
        "fig. 7",
        "",
        "strategy, r, group, deactivated, low, high, change, change_low, change_high, "
        "loss_change, loss_low, loss_high, n, loss_n, control_deactivated, control_low, control_high, control_change, "
        "control_change_low, control_change_high, control_loss_change, control_loss_low, control_loss_high, "
        "control_n, control_loss_n",
        [
            [
                "top-1",
                r,
                g,
                *around(max(0, 0.6 - 0.5 * r)),
                (1 - r) * (0.8 - 0.05 * i),
                (1 - r) * 0.7,
                (1 - r) * 0.85,
                0.002 * (1 - r) ** 2,
                0.001,
                0.003 + 0.002 * (1 - r) ** 2,
                150,
                150,
                *around(max(0, 0.05 - 0.05 * r)),
                (1 - r) * 0.1,
                (1 - r) * 0.05,
                (1 - r) * 0.15,
                0.0004 * (1 - r) ** 2,
                0.0001,
                0.001 + 0.0004 * (1 - r) ** 2,
                140,
                140,
            ]
            for i, g in enumerate(groups)
            for r in (-1, -0.5, 0, 0.5, 1, 1.5, 2)
        ],
    )
    yield SummaryTable.of(
        "one_predecessor",
        "One predecessor at a time",
        "fig. 8",
        "",
        "group, removed, change, low, high, deactivated, deactivated_low, deactivated_high, n, control_change, "
        "control_low, control_high, control_deactivated, control_deactivated_low, control_deactivated_high, control_n",
        [
            [
                g,
                p,
                *around(0.8 / (1 + g.count("&"))),
                *around(0.5 / (1 + g.count("&"))),
                120,
                *around(0.05),
                *around(0.04),
                110,
            ]
            for g, p in parts
        ],
    )
    yield SummaryTable.of(
        "groups_by_strategy",
        "Groups by strategy",
        "fig. 15a",
        "",
        "strategy, group, features, share",
        [[s, g, round(1000 * x), x] for s in STRATEGIES for g, x in shares(s).items()],
    )
    yield SummaryTable.of(
        "new_group",
        "New group",
        "fig. 15b",
        "",
        "strategy, group, removed, new_group, probability, low, high, n, "
        "control_probability, control_low, control_high, control_n",
        [
            ["top-1", g, removed, new, *around(x), 90, *around(c), 80]
            for g in groups
            for removed in dict.fromkeys([*g.split(" & "), g])
            for new, x, c in (("deactivated", 0.5, 0.04), ("nowhere", 0.3, 0.06), (g, 0.2, 0.9))
        ],
    )
    yield SummaryTable.of(
        "counts",
        "Targets",
        "fig. 17a",
        "",
        "layer, group, features, trials",
        [[layer, g, round(150 * x), round(600 * x)] for layer in layers for g, x in shares(str(layer)).items()],
    )
    yield SummaryTable.of(
        "table_1",
        "Methods compared",
        "table 1",
        "",
        "strategy, deactivated, low, high, change, change_low, change_high, n, control_deactivated, control_low, "
        "control_high, control_change, control_change_low, control_change_high, control_n",
        [
            [s, *around(RATE[s]), *around(RATE[s] + 0.05), 1894, *control]
            for s, control in (
                *(
                    (s, (*around(0.07), *around(0.11), 1800))
                    for s in ("top-1", "pearson top-1", "exhaustive", "random of top-5")
                ),
                ("active control", (None,) * 6 + (0,)),
            )
        ],
    )
    yield SummaryTable.of(
        "paired",
        "Paired differences",
        "",
        "",
        "strategy_a, strategy_b, difference, low, high, p, n",
        [
            ["top-1", "pearson top-1", 0.04, 0.01, 0.07, 0.012, 1894],
            ["top-1", "active control", 0.62, 0.6, 0.64, 0.0002, 1894],
        ],
    )


def remaining_table():
    outcomes = (
        "deactivated by its predecessors",
        "by another single feature",
        "by a set of up to five",
        "by none tried",
    )
    return SummaryTable.of(
        "remaining",
        "What silences a target",
        "beyond the paper",
        "",
        "group, outcome, share, low, high, n, control_share, control_low, control_high, control_n",
        [
            [
                g,
                o,
                *around(x),
                300,
                *((*around(0.06, 0.02), 280) if o is outcomes[0] and g != "nowhere" else (None, None, None, 0)),
            ]
            for g in ("all", *GROUPS)
            for o, x in zip(outcomes, (0.5, 0.2, 0.2, 0.1), strict=True)
        ],
    )


def every_table():
    return {t.name: t for t in (*origins_tables(), *deactivation_tables())}


AGREEMENT = [
    {"method_a": "cosine", "method_b": b, "part": p, "layer": layer, "same": x, "in_top_k": x + 0.15, "n": 400}
    for b, x in (("pearson", 0.6), ("permutation", 0.4))
    for p in ("res", "mlp", "att")
    for layer in range(1, 6)
]
THRESHOLDS = [
    {
        "layer": layer,
        "part": p,
        "threshold": x + 0.01 * layer,
        "null_q50": x - 0.08,
        "null_q99": x,
        "kept": 0.6,
        "kept_fixed": 0.7,
    }
    for p, x in (("res", 0.35), ("mlp", 0.25), ("att", 0.22))
    for layer in range(1, 6)
]


def results_folder(folder: Path, experiment="origins", model="demo", tables=None) -> Path:
    """A finished results folder with a summary and no rows."""
    arguments = {"texts": 20, "tokens": 5, "layers": [0, 1, 2, 3], "max_length": 128}
    request = RunRequest(experiment, "demo", model, 7, tuple(DATASETS), {"cosine": "cosine, 17 tables"}, arguments)
    units = [{"dataset": "fineweb", "text": i} for i in range(3)]
    results = Results.start(folder, request, lambda: units, {"saeflow": "0.1.0", "numpy": "2.0"})
    results.run(lambda unit: [])
    if tables is None:
        tables = origins_tables() if experiment == "origins" else deactivation_tables()
    results.write_tables(tables)
    return folder


def drawn(folder):
    """The page of a folder, drawn in a process of its own: the checks of types make drawing take twice as long."""
    code = "import pathlib, sys; from saeflow.paper.results import write_page; write_page(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    return Path(folder) / "index.html"
