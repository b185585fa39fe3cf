"""The report of a reproduction: one page, and the verdicts as data. No torch.

    OUT/reproduction.json + the stages' folders  ->  verdicts  ->  OUT/index.html, claims.json, claims.csv

The page holds a table of all claims, then each figure and table of the paper in its order with what the paper states,
the verdicts and our figure, last the record of the run. It loads nothing and opens offline; it is made of whatever is
there, so that a run of some figures, or one that was killed, has a report too.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from saeflow.experiments.results import significant
from saeflow.experiments.statistics import Estimate
from saeflow.files import write_atomic
from saeflow.reproduce.claims import Claim, claims
from saeflow.reproduce.evidence import STAGES, Evidence, GraphsRun
from saeflow.reproduce.page import Material, page_html, read_tables, words_of
from saeflow.reproduce.record import Record
from saeflow.reproduce.verdicts import Contrast, NotMeasured, Outcome, Verdict
from saeflow.reproduce.wording import sentence as verdict_sentence

COLUMNS: Final = (
    "id",
    "item",
    "section",
    "said_of",
    "statement",
    "verdict",
    "number",
    "value",
    "low",
    "high",
    "rule",
    "bound",
    "control",
    "control_low",
    "control_high",
    "n",
    "sentence",
)


def write_report(out: Path | str) -> Path:
    """Judge every claim on what a folder holds, and write the page and the verdicts; the path of `index.html`.

    Args:
        out: the folder of a reproduction, finished or not.

    Raises:
        BadFile: when `reproduction.json` is missing or cannot be read.
        OSError: when the folder cannot be written.
    """
    out = Path(out)
    record = Record.read(out)
    verdicts = judge(out, record)
    write_atomic(out / "claims.json", claims_json(record, verdicts).encode("utf-8", "replace"))
    write_atomic(out / "claims.csv", claims_csv(verdicts).encode("utf-8", "replace"))
    try:
        graphs = Evidence(out).graphs
    except NotMeasured:
        graphs = GraphsRun()
    material = Material(
        out, record, claims(), verdicts, read_tables(out, STAGES), graphs, words_of(record.words("release"))
    )
    path = out / "index.html"
    # lone surrogates, which a name can hold after a bad decoding, have no UTF-8
    write_atomic(path, page_html(material).encode("utf-8", "replace"))
    return path


def judge(out: Path, record: Record) -> dict[str, Verdict]:
    """The verdict on every claim, by id; of items that the recipe does not answer the reason it gives."""
    why = {stage: missing for stage in (*STAGES, "graphs") if (missing := record.missing(stage))}
    evidence = Evidence(out, why=why)
    found: dict[str, Verdict] = {}
    for claim in claims():
        reason = record.unanswered.get(claim.item)
        if reason is not None:
            found[claim.id] = Verdict(Outcome.OPEN, why=f"Not answered by this recipe: {reason.rstrip('.')}.")
        else:
            found[claim.id] = claim.check(evidence)
    return found


# --- verdicts as data -------------------------------------------------------------------------------------------------


def claims_json(record: Record, verdicts: Mapping[str, Verdict]) -> str:
    """Every claim with its verdict and all of its numbers."""
    told = {
        "paper": "arXiv 2502.03032",
        "recipe": record.words("recipe"),
        "release": record.words("release"),
        "counts": {o.value: sum(v.outcome is o for v in verdicts.values()) for o in Outcome},
        "claims": [
            {
                "id": claim.id,
                "item": claim.item,
                "section": claim.section,
                "said_of": claim.said_of,
                "statement": claim.statement,
                "verdict": verdicts[claim.id].outcome.value,
                "sentence": verdict_sentence(verdicts[claim.id], any_of=claim.any_of),
                "why": verdicts[claim.id].why,
                "any_of": claim.any_of,
                "numbers": [_contrast(one, verdicts[claim.id]) for one in verdicts[claim.id].contrasts],
            }
            for claim in claims()
        ],
    }
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _contrast(one: Contrast, verdict: Verdict) -> dict[str, Any]:
    return {
        "what": one.words,
        **_estimate(one.found),
        "n": one.found.n,
        "unit": one.unit.value,
        "rule": one.rule.kind.value,
        "bound": one.rule.bound,
        "verdict": one.outcome.value,
        "decides": one is verdict.deciding,
        **_estimate(one.control, "control"),
        "beside": one.beside,
    }


def _estimate(found: Estimate, name: str = "") -> dict[str, float | None]:
    names = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    values = found.interval
    return {key: None if value is None else significant(value) for key, value in zip(names, values, strict=True)}


def claims_csv(verdicts: Mapping[str, Verdict]) -> str:
    """A line a claim, with the number that decides it; shares are between 0 and 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_line(claim, verdicts[claim.id]) for claim in claims())
    return text.getvalue()


def _line(claim: Claim, verdict: Verdict) -> list[Any]:
    head = [claim.id, claim.item, claim.section, claim.said_of, claim.statement, verdict.outcome.value]
    said, one = verdict_sentence(verdict, any_of=claim.any_of), verdict.deciding
    if one is None:
        return [*head, *[""] * (len(COLUMNS) - len(head) - 1), said]
    numbers = [*_estimate(one.found).values()]
    control = [*_estimate(one.control, "control").values()]
    return [*head, one.words, *numbers, one.rule.kind.value, one.rule.bound, *control, one.found.n, said]
