"""A results folder of an origins run with known groups, as `saeflow origins` writes one."""

from saeflow.experiments.origins import OriginTrial
from saeflow.experiments.results import Results, RunRequest, SummaryTable, versions

SEEN = {0: "1", 1: "1", 2: "3", 3: "0"}
"""Text -> the group of feature 4/res/360 in it, as the digit of its `Origin`: RES, RES, RES & MLP, nowhere."""


def write_origins(folder, *, title="Origin of <b>active</b> features"):
    """Four texts of one token each; feature 360 of layer 4 is active in all, 7 in the first alone."""
    request = RunRequest("origins", "demo", "demo", 0, ("made",), {"cosine": "x"}, {"texts": 4, "tokens": 1})
    results = Results.start(folder, request, lambda: [{"text": n} for n in range(4)], versions())
    results = results.run(_rows)
    rows = [("cosine", "made", 4, "RES", 0.5, 0.0, 1.0, 4), ("cosine", "made", 4, "nowhere", 0.5, None, None, 4)]
    columns = "method, dataset, layer, group, share, low, high, n"
    results.write_tables(
        [
            SummaryTable.of("made_table", title, "fig. 5", "a note", columns, rows),
            SummaryTable.of("../../escaped", "A name that would leave", "", "", "a, b", [(1, "=cmd()")]),
        ]
    )
    return results


def _rows(unit):
    text = unit["text"]
    group = SEEN[text]
    features, digits = ((7, 360), f"6{group}") if text == 0 else ((360,), group)
    yield OriginTrial("made", text, 5, 4, features, (1.0,) * len(features), {"cosine": digits}).to_row()
