"""The claims of the paper that a run can check, and the figures and tables they belong to.

    claims.toml  ->  Claim;   Evidence  ->  the claim's findings  ->  Verdict
    items.toml   ->  Item: every figure and table in the paper's order, and which of our tables reproduces it

A function in the module of its figure measures each claim: `measure = "fig07_rescale.claim_loss"`. Claims that the
paper makes about one release are checked on any release; `said_of` names the one they were made about.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from saeflow.errors import SaeflowError
from saeflow.paper.evidence import Evidence
from saeflow.paper.verdicts import OPEN, ClaimNumber, NotMeasured, Verdict, verdict_of

RESULT, GRAPH, INPUT, SCHEMA = "result", "graph", "input", "schema"


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim.

    Attributes:
        id: a stable name, for `claims.json`.
        item: the figure or table it belongs to.
        section: the sections that make it.
        statement: the claim in our words.
        stage: the stage of a reproduction it needs.
        measure: from that stage's run to the numbers it rests on.
        any_of: whether one number that fulfils it is enough.
        said_of: the release the paper makes it about; "" for a general claim.
    """

    id: str
    item: str
    section: str
    statement: str
    stage: str
    measure: Callable[[Any], Sequence[ClaimNumber]]
    any_of: bool = False
    said_of: str = ""

    def check(self, evidence: Evidence) -> Verdict:
        """The verdict on a reproduction; missing data is given as the reason, never raised."""
        try:
            findings = self.measure(evidence.run(self.stage))
        except NotMeasured as error:
            return Verdict(OPEN, why=str(error))
        except SaeflowError as error:
            return Verdict(OPEN, why=f"It cannot be measured: {error}")
        return verdict_of(findings, any_of=self.any_of)


@cache
def claims() -> tuple[Claim, ...]:
    """All claims, in the order of the paper's figures and tables."""
    found: list[Claim] = []
    for row in _rows("claims.toml", "claim"):
        module, name = row["measure"].split(".")
        measure = getattr(import_module(f"saeflow.paper.{module}"), name)
        changed: dict[str, Any] = {**row, "statement": _flowed(row["statement"]), "measure": measure}
        found.append(Claim(**changed))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Item:
    """A figure or a table of the paper.

    Tables 2 to 4 are inputs, figures 1 and 22 schematic drawings. The other items are reproduced by tables of a stage,
    filtered to what the paper shows: cosine matching, one direction of steering, all pairs of sites together.

    Attributes:
        id: "fig5", "table1".
        title: what it shows.
        states: what the paper says about it, in our words; "" if all of it is in claims.
        stage: the stage that reproduces it; "" for none.
        shows: what we draw for it: tables of the stage, each with the column values that select its rows.
        kind: "result", "graph", "input" or "schema".
        seed: for a graph, the feature the paper grew it from.
        also: other items that show the same for this run.
        untested: what the paper says about it that no run can check, each with the reason.
    """

    id: str
    title: str
    states: str
    stage: str = ""
    shows: tuple[tuple[str, Mapping[str, str]], ...] = ()
    kind: str = RESULT
    seed: str = ""
    also: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in the paper: "Figure 5", "Table 1"."""
        kind = self.id.rstrip("0123456789")
        return f"{'Figure' if kind == 'fig' else 'Table'} {self.id[len(kind) :]}"


@cache
def items() -> Mapping[str, Item]:
    """All figures and tables by id, in the order of the paper."""
    found: dict[str, Item] = {}
    for row in _rows("items.toml", "item"):
        shows = [dict(one) for one in row.get("shows", ())]
        changed: dict[str, Any] = {
            **row,
            "title": _flowed(row["title"]),
            "states": _flowed(row.get("states", "")),
            "shows": tuple((one.pop("table"), one) for one in shows),
            "also": tuple(row.get("also", ())),
            "untested": tuple(map(_flowed, row.get("untested", ()))),
        }
        found[row["id"]] = Item(**changed)
    return found


def _rows(file: str, key: str) -> list[dict[str, Any]]:
    return tomllib.loads((files("saeflow.paper") / file).read_text(encoding="utf-8"))[key]


def _flowed(text: str) -> str:
    return " ".join(text.split())
