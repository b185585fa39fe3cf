"""The claims of the paper on several models, side by side: docs/claims.md from folders of `saeflow reproduce`.

saeflow reproduce demo
saeflow reproduce smollm2-135m
python scripts/claims_compared.py reproduce-demo reproduce-smollm2-135m
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from demo_build.markdown import table
from saeflow.paper.claims import Claim, claims
from saeflow.paper.verdicts import FAILS, HOLDS, OPEN, Verdict, interval
from saeflow.reproduce.record import Reproduction
from saeflow.reproduce.report import judge

PAGE = Path(__file__).parents[1] / "docs" / "claims.md"
ABOUT = (
    "Written by `python scripts/claims_compared.py`, from the folders of `saeflow reproduce` of these recipes. A claim "
    "that no recipe here can answer is left out. Each verdict has the number that decides it, with its 95 % interval, "
    "and how many parts of the claim hold where it has several."
)
MARKS = {HOLDS: "holds", FAILS: "**does not hold**", OPEN: "cannot be said"}


def main() -> None:
    """Judge every claim in each folder, and write the page."""
    runs = [Reproduction.open(folder) for folder in sys.argv[1:]]
    if len(runs) < 2:
        raise SystemExit(__doc__)
    verdicts = [judge(run) for run in runs]
    names = [str(run.record.get("recipe")) for run in runs]
    PAGE.write_text(page(names, verdicts), encoding="utf-8")
    print(PAGE)


def page(names: Sequence[str], verdicts: Sequence[dict[str, Verdict]]) -> str:
    """The page: how many claims go which way, by all of them, and each with the number that decides it."""
    asked = [claim for claim in claims() if any(found[claim.id].measured for found in verdicts)]
    counts = [Counter(found[claim.id].outcome for claim in asked) for found in verdicts]
    summary = [["model", *MARKS.values()]]
    summary += [[f"`{name}`", *(str(count[kind]) for kind in MARKS)] for name, count in zip(names, counts, strict=True)]
    groups = {
        "The models disagree": lambda kinds: {HOLDS, FAILS} <= kinds,
        "Holds wherever it can be said": lambda kinds: HOLDS in kinds and FAILS not in kinds,
        "Does not hold wherever it can be said": lambda kinds: FAILS in kinds and HOLDS not in kinds,
        "Cannot be said on any": lambda kinds: kinds == {OPEN},
    }
    parts = ["# The paper's claims on several models", ABOUT, table(summary)]
    for heading, belongs in groups.items():
        chosen = [claim for claim in asked if belongs({found[claim.id].outcome for found in verdicts})]
        if chosen:
            rows = [["claim", *(f"`{name}`" for name in names)]]
            rows += [[_stated(claim), *(_found(found[claim.id]) for found in verdicts)] for claim in chosen]
            parts += [f"## {heading}", table(rows)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _stated(claim: Claim) -> str:
    return f"{claim.item}: {' '.join(claim.statement.split())}"


def _found(verdict: Verdict) -> str:
    """`holds: +4.9 pp (4.3 to 5.5)`."""
    one = verdict.deciding
    if one is None or one.found.value is None:
        return f"{MARKS[verdict.outcome]}: {verdict.why}"
    held = sum(part.outcome == HOLDS for part in verdict.findings)
    parts = f"; {held} of {len(verdict.findings)} parts hold" if len(verdict.findings) > 1 else ""
    return f"{MARKS[verdict.outcome]}: {interval(one.found, one.unit, one.rule)}{parts}"


if __name__ == "__main__":
    main()
