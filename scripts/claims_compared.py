"""Compare the paper's claims across models: writes docs/claims.md from the folders of `saeflow reproduce`.

    saeflow reproduce demo
    saeflow reproduce smollm2-135m
    python scripts/claims_compared.py reproduce-demo reproduce-smollm2-135m

The verdicts for each model are kept in docs/claims.json: a folder updates its recipe's column and leaves the others.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from demo_build.markdown import table
from saeflow.paper.claims import Claim, claims
from saeflow.paper.verdicts import FAILS, HOLDS, OPEN, Verdict, interval
from saeflow.reproduce.record import Reproduction
from saeflow.reproduce.report import judge

PAGE = Path(__file__).parents[1] / "docs" / "claims.md"
KEPT = PAGE.with_suffix(".json")
ABOUT = (
    "Written by `python scripts/claims_compared.py`, from the folders of `saeflow reproduce` of these recipes. A claim "
    "that no recipe here can answer is left out. Each verdict has the number that decides it, with its 95 % interval, "
    "and how many parts of the claim hold where it has several. Claims about steering are settled for the demo pack on "
    "16 themes in [a comparison of their own](demo-steering-comparison.md). The columns of SmolLM2 and Gemma were "
    "judged before a claim of a difference could fail for being too small: some that cannot be said would not hold."
)
MARKS = {HOLDS: "holds", FAILS: "**does not hold**", OPEN: "cannot be said"}


def main() -> None:
    """Judge every claim in each folder and write the page."""
    if not (folders := sys.argv[1:]):
        raise SystemExit(__doc__)
    found: dict[str, dict[str, dict[str, str]]] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    for folder in folders:
        run = Reproduction.open(folder)
        verdicts = judge(run)
        found[str(run.record.get("recipe"))] = {
            claim.id: {"outcome": verdicts[claim.id].outcome, "found": _found(verdicts[claim.id])}
            for claim in claims()
            if verdicts[claim.id].measured
        }
    KEPT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    print(PAGE)


def page(found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """The page: the number of claims per verdict for each model, then each claim with the number that decides it."""
    asked = [claim for claim in claims() if any(claim.id in of_model for of_model in found.values())]
    unknown = {"outcome": OPEN, "found": f"{MARKS[OPEN]}: not measured"}
    cells = {name: {claim.id: of_model.get(claim.id, unknown) for claim in asked} for name, of_model in found.items()}
    summary = [["model", *MARKS.values()]]
    for name, of_model in cells.items():
        count = Counter(cell["outcome"] for cell in of_model.values())
        summary.append([f"`{name}`", *(str(count[kind]) for kind in MARKS)])
    groups = {
        "The models disagree": lambda kinds: {HOLDS, FAILS} <= kinds,
        "Holds wherever it can be said": lambda kinds: HOLDS in kinds and FAILS not in kinds,
        "Does not hold wherever it can be said": lambda kinds: FAILS in kinds and HOLDS not in kinds,
        "Cannot be said on any": lambda kinds: kinds == {OPEN},
    }
    parts = ["# The paper's claims on several models", ABOUT, table(summary)]
    for heading, belongs in groups.items():
        chosen = [claim for claim in asked if belongs({of_model[claim.id]["outcome"] for of_model in cells.values()})]
        if chosen:
            rows = [["claim", *(f"`{name}`" for name in cells)]]
            rows += [
                [_stated(claim), *(of_model[claim.id]["found"] for of_model in cells.values())] for claim in chosen
            ]
            parts += [f"## {heading}", table(rows)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _stated(claim: Claim) -> str:
    return f"{claim.item}: {' '.join(claim.statement.split())}"


def _found(verdict: Verdict) -> str:
    """A verdict as a table cell, such as `holds: +4.9 pp (4.3 to 5.5)`."""
    one = verdict.deciding
    if one is None or one.found.value is None:
        return f"{MARKS[verdict.outcome]}: {verdict.why}"
    held = sum(part.outcome == HOLDS for part in verdict.findings)
    parts = f"; {held} of {len(verdict.findings)} parts hold" if len(verdict.findings) > 1 else ""
    return f"{MARKS[verdict.outcome]}: {interval(one.found, one.unit, one.rule)}{parts}"


if __name__ == "__main__":
    main()
