"""Check whether the paper's effects appear in the demo pack: flow, origins and deactivation, on one page.

    saeflow origins demo --out ORIGINS
    saeflow deactivate demo --out DEACTIVATION
    python scripts/demo_effects.py ORIGINS DEACTIVATION          writes docs/demo-effects.md

Every number on the page comes from the tables of these two folders or from pack/quality.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo_build.markdown import table
from saeflow.demo import quality
from saeflow.experiments.groups import Origin
from saeflow.experiments.results import Results

OUT = Path(__file__).parent.parent / "docs" / "demo-effects.md"
GROUPS = tuple(origin.label for origin in Origin.groups())
HEAD = """\
# The paper's effects in the demo pack

Written by `python scripts/demo_effects.py ORIGINS DEACTIVATION` from the folders that `saeflow origins demo` and
`saeflow deactivate demo` write; seeds are fixed. The model has 6 layers and 3.4 million parameters: these results check
the method and this code; they are not evidence about large models. Brackets give 95 % intervals, bootstrapped over
texts.
"""
TESTS = """\
### Do scores tell the groups apart (figure 4)?

Share of Mann-Whitney U tests between two groups with p < 0.001, one per dataset and layer, matched by cosine. AO: the
module is active in only one of the two groups; AB: in both; IB: in neither.
"""
REMOVED = """\
## Deactivation (section 5.2)

All active predecessors that a strategy names are removed at one token, and the layer is recomputed. The control removes
the same number of other active features of the same sites, with similar norms. Each strategy is judged on the targets
for which it names a predecessor.
"""
Cells = dict[str, Any]
CONTROL = ("control_deactivated", "control_low", "control_high")


def rate(row: Cells, value: str = "deactivated", low: str = "low", high: str = "high") -> str:
    return f"{row[value]:.3f} ({row[low]:.3f} to {row[high]:.3f})"


def flow() -> str:
    rows = [["match", "mean best cosine", "share above 0.5", "share above 0.7"]]
    for name, row in quality()["flow"].items():
        rows.append([name, f"{row['mean best']:.3f}", f"{row['above 0.5']:.3f}", f"{row['above 0.7']:.3f}"])
    return "## Flow: best cosine of each feature\n\n" + table(rows)


def shares(found: Sequence[Cells], key: str, method: str, title: str) -> str:
    """A table of the shares of the groups, one row per value of `key`."""
    kept = [row for row in found if row["method"] == method]
    rows = [[key, "features", *GROUPS]]
    for value in dict.fromkeys(row[key] for row in kept):
        cells = {row["group"]: row for row in kept if row[key] == value}
        told = [f"{cells[group]['share']:.1%}" if group in cells else "" for group in GROUPS]
        rows.append([str(value), f"{next(iter(cells.values()))['n']:,}", *told])
    return f"### {title}\n\n" + table(rows)


def origins(results: Results) -> str:
    tables = {name: found.dicts() for name, found in results.tables().items()}
    by_layer = [row for row in tables["shares_by_layer"] if row["dataset"] == "all"]
    tests = [["module", "score", "kind", "tests", "p < 0.001"]]
    tests += [
        [row["module"], row["score"], row["kind"], str(row["tests"]), f"{row['share']:.2f}"]
        for row in tables["activity_differences"]
        if row["method"] == "cosine" and row["tests"]
    ]
    datasets = ", ".join(results.record.request.datasets)
    methods = [row for row in tables["methods"] if row["dataset"] != "all"]
    return "\n".join(
        [
            f"## Origins (section 5.1)\n\nTexts of {datasets}: which matched predecessors are active with a feature.\n",
            shares(by_layer, "layer", "cosine", "By layer, matched by cosine (figure 5)"),
            shares(methods, "dataset", "cosine", "By dataset, matched by cosine (figures 12, 18)"),
            shares(methods, "dataset", "pearson", "By dataset, matched by Pearson correlation (figure 18)"),
            TESTS,
            table(tests),
        ]
    )


def deactivation(results: Results) -> str:
    tables = {name: found.dicts() for name, found in results.tables().items()}
    strategies = [["strategy", "targets", "deactivated", "its control", "mean change", "its control"]]
    strategies += [
        [
            row["strategy"],
            f"{row['n']:,}",
            rate(row),
            rate(row, *CONTROL),
            f"{row['change']:.3f}",
            f"{row['control_change']:.3f}",
        ]
        for row in tables["by_strategy_layer"]
        if row["layer"] == "all"
    ]
    shared = [["strategy", "targets", "deactivated", "mean change"]]
    shared += [
        [row["strategy"], f"{row['n']:,}", rate(row), rate(row, "change", "change_low", "change_high")]
        for row in tables["table_1"]
    ]
    paired = [["first", "second", "targets", "difference in rate", "p", "n"]]
    for row in tables["paired"]:
        told = [row["strategy_a"], row["strategy_b"], row["scope"], rate(row, "difference")]
        paired.append([*told, f"{row['p']:.2g}", f"{row['n']:,}"])
    alone = [["group", "removed", "change", "its control", "n"]]
    alone += [
        [
            row["group"],
            row["removed"],
            rate(row, "change"),
            rate(row, "control_change", "control_low", "control_high"),
            f"{row['n']:,}",
        ]
        for row in tables["one_predecessor"]
    ]
    return "\n".join(
        [
            REMOVED,
            table(strategies),
            "### On shared targets (table 1)\n",
            table(shared),
            "### Paired on the same targets\n",
            table(paired),
            "### One predecessor at a time (figure 8)\n",
            table(alone),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("origins", type=Path)
    parser.add_argument("deactivation", type=Path)
    told = parser.parse_args()
    parts = [HEAD, flow(), origins(Results.open(told.origins)), deactivation(Results.open(told.deactivation))]
    OUT.write_text("\n".join(parts), encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
