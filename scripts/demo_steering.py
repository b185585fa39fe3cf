"""Test whether steering with flow graphs works in the demo pack: themes x methods x scores, on one page.

    saeflow sweep demo --samples 32 --out SWEEP
    python scripts/demo_steering.py SWEEP [NAME=SWEEP …]          writes docs/demo-steering.md

Every number on the page comes from the tables of these folders. Further folders are sweeps with other arguments, such
as `--parts res`; the page compares their means over themes with those of the first.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from demo_build.markdown import table
from saeflow.experiments.results import Results, SummaryTable

OUT = Path(__file__).parent.parent / "docs" / "demo-steering.md"
HEAD = """\
# Steering the demo pack

Written by `python scripts/demo_steering.py` from the folder that `saeflow sweep demo --samples {samples}` writes
({arguments}). Each method's best setting was chosen on {samples} samples and measured again on {confirm}
fresh ones; the fresh ones are reported. The score is behaviour x coherence to activate, (1 - behaviour) x coherence
to suppress, with both marks divided by 5 (section 4.2), by the offline judge ([what it can and cannot
do](offline-judge.md)). Brackets give 95 % intervals over samples. The model has 6 layers and 3.4 million parameters:
these results check the method and this code; they are not evidence about large models.
"""
WHAT = {"activate": "Towards the topic (figures 11, 16)", "suppress": "Away from the topic (figures 9, 10)"}
COLUMNS = {
    "activate": (
        "none",
        "prompt",
        "start",
        "single (start layer)",
        "single",
        "constant",
        "linear",
        "exponential",
        "random of exponential",
    ),
    "suppress": ("none", "prompt", "start", "single (start layer)", "single", "cumulative", "random of cumulative"),
}
TITLES = {
    "none": "unsteered",
    "prompt": "asked in the prompt",
    "start": "start features alone",
    "single": "best single layer",
}
COST = """\
Cost, as means over themes. The share is the norm of the total change relative to the norm of the hidden state at the
last changed layer.
"""
PAIRED = """\
On the same seeds: the number of themes in which a method is better or worse, at a false-discovery rate of 5 %.
"""
SENSITIVITY = """\
Sensitivity to the choice of s or r: the score over the grid of values, each at its best layer (cross-fitted).
"""
VALUES = ("behavior", "coherence", "score", "perplexity", "distinct_2", "share_total")
Row = dict[str, Any]


def named(row: Row) -> str:
    """The column of the page that a row of steering_best belongs to."""
    if row["method"] == "random":
        return f"random of {row['mirrors']}"
    return "single (start layer)" if row["choice"] == "start layer" else row["method"]


def best(found: SummaryTable, direction: str) -> str:
    rows = [row for row in found.dicts() if row["direction"] == direction]
    columns = [name for name in COLUMNS[direction] if any(named(row) == name for row in rows)]
    lines = [["theme", *(TITLES.get(name, name) for name in columns)]]
    for theme in dict.fromkeys(row["theme"] for row in rows):
        of = {named(row): row for row in rows if row["theme"] == theme}
        # if the start layer is the best single layer, it was measured only once
        of.setdefault("single (start layer)", of.get("single", {}))
        lines.append([theme, *(cell(of.get(name)) for name in columns)])
    means = [mean(rows, name) for name in columns]
    lines.append(["**mean**", *(f"{value:.2f}" for value in means)])
    return table(lines)


def mean(rows: Sequence[Row], name: str, value: str = "score") -> float:
    """The mean of a value over themes, for one column; NaN if there is none."""
    themes = dict.fromkeys(row["theme"] for row in rows)
    found = []
    for theme in themes:
        of = {named(row): row for row in rows if row["theme"] == theme}
        row = of.get(name) or (of.get("single") if name.startswith("single") else None)
        if row is not None and row[value] is not None:
            found.append(row[value])
    return fmean(found) if found else float("nan")


def cell(row: Row | None) -> str:
    if not row:
        return ""
    at = f" l={row['layer']}" if row["layer"] >= 0 else ""
    letter = {"activate": "s", "suppress": "r"}[row["direction"]]
    where = "" if row["method"] in ("none", "prompt") else f"; {letter}={row['value']:g}{at}"
    return f"{row['score']:.2f} ({row['low']:.2f} to {row['high']:.2f}{where})"


def cost(found: SummaryTable, direction: str) -> str:
    rows = [row for row in found.dicts() if row["direction"] == direction]
    lines = [["method", "behaviour", "coherence", "score", "perplexity", "distinct-2", "share of the hidden norm"]]
    for name in COLUMNS[direction]:
        if not any(named(row) == name for row in rows):
            continue
        values = [
            mean(rows, name, value)
            for value in ("behavior", "coherence", "score", "perplexity", "distinct_2", "share_total")
        ]
        lines.append([TITLES.get(name, name), *(f"{v:.0f}" if k == 3 else f"{v:.2f}" for k, v in enumerate(values))])
    return table(lines)


def paired(found: SummaryTable, direction: str) -> str:
    """A table of the number of themes in which one method beats another, and the mean difference."""
    rows = [row for row in found.dicts() if row["direction"] == direction]
    lines = [["method", "against", "themes", "better", "worse", "mean difference"]]
    for a, b in dict.fromkeys((row["method_a"], row["method_b"]) for row in rows):
        of = [row for row in rows if (row["method_a"], row["method_b"]) == (a, b)]
        sure = [row for row in of if row["q"] is not None and row["q"] < 0.05]
        lines.append(
            [
                a,
                b,
                str(len(of)),
                str(sum(row["difference"] > 0 for row in sure)),
                str(sum(row["difference"] < 0 for row in sure)),
                f"{fmean(row['difference'] for row in of):+.3f}",
            ]
        )
    return table(lines)


def sensitivity(found: SummaryTable, direction: str) -> str:
    rows = [row for row in found.dicts() if row["direction"] == direction]
    lines = [["method", "mean over values", "worst", "best", "spread"]]
    for method in dict.fromkeys(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == method]
        keys = ("mean_score", "worst_score", "best_score", "spread")
        lines.append([method, *(f"{fmean(row[key] for row in of):.2f}" for key in keys)])
    return table(lines)


def variants(folders: dict[str, Results]) -> str:
    lines = [["sweep", "direction", "start", "single", "constant", "linear", "exponential", "cumulative"]]
    for name, results in folders.items():
        rows = results.tables()["steering_best"].dicts()
        for direction in dict.fromkeys(row["direction"] for row in rows):
            of = [row for row in rows if row["direction"] == direction]
            values = [mean(of, column) for column in lines[0][2:]]
            lines.append([name, direction, *("" if math.isnan(v) else f"{v:.2f}" for v in values)])
    return table(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="+", help="a folder, then NAME=FOLDER of others")
    told = parser.parse_args().sweeps
    results = Results.open(told[0])
    tables, request = results.tables(), results.record.request
    grid = request.arguments
    made_with = results.record.versions
    arguments = f"seed {request.seed}, saeflow {made_with['saeflow']}, torch {made_with['torch']}"
    parts = [HEAD.format(samples=grid["samples"], confirm=grid["confirm"], arguments=arguments)]
    for direction, title in WHAT.items():
        parts += [
            f"## {title}\n",
            best(tables["steering_best"], direction),
            COST,
            cost(tables["steering_best"], direction),
            PAIRED,
            paired(tables["steering_paired"], direction),
            SENSITIVITY,
            sensitivity(tables["steering_sensitivity"], direction),
        ]
    others = {"as above": results} | {
        name: Results.open(folder) for name, folder in (text.split("=", 1) for text in told[1:])
    }
    if len(others) > 1:
        parts += ["## Other ways to make the plans\n", "Mean confirmed score over themes.\n", variants(others)]
    OUT.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    print(f"written: {OUT.name}")


if __name__ == "__main__":
    main()
